import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { createAuthority } from '../../test/support/certificates.ts';
import { ConfigError } from '../model/config-error.ts';
import { type Credentials, parseServer, rereading, serviceAccount, tlsSettings } from './credentials.ts';

async function mount(t: ExecutionContext) {
  const directory = await mkdtemp(join(tmpdir(), 'tulle-test-account-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const { certificate } = await createAuthority(t);
  await writeFile(join(directory, 'token'), 'first\n');
  await writeFile(join(directory, 'ca.crt'), certificate);
  return { directory, ca: certificate, write: (name: string, text: string) => writeFile(join(directory, name), text) };
}

const refusalOf = async (t: ExecutionContext, promise: Promise<unknown>) => {
  const error = await t.throwsAsync(promise, { instanceOf: ConfigError });
  return error?.message ?? '';
};

test('serviceAccount reads the mounted files and the address of the Service', async (t) => {
  const { directory, ca } = await mount(t);
  t.like(await serviceAccount({ host: '10.96.0.1', port: '443', directory }).current(), {
    server: 'https://10.96.0.1',
    token: 'first',
    tls: { names: ['10.96.0.1'], greeting: undefined, ca, insecure: false },
  });
  t.like(await serviceAccount({ host: 'fd00::1', port: '6443', directory }).current(), {
    server: 'https://[fd00::1]:6443',
    tls: { names: ['fd00::1'], greeting: undefined },
  });
});

test('serviceAccount with --api-server also accepts the name that every API server has', async (t) => {
  const { directory } = await mount(t);
  t.like(await serviceAccount({ apiServer: 'https://192.0.2.10:6443', directory }).current(), {
    server: 'https://192.0.2.10:6443',
    tls: { names: ['192.0.2.10', 'kubernetes.default.svc'], greeting: undefined },
  });
  t.like(
    await serviceAccount({
      apiServer: 'https://api.example:6443/',
      host: '10.96.0.1',
      port: '443',
      directory,
    }).current(),
    {
      server: 'https://api.example:6443',
      tls: { names: ['api.example', 'kubernetes.default.svc'], greeting: 'api.example' },
    },
  );
});

test('serviceAccount sees a rotated token after the interval, or at once when the old one was refused', async (t) => {
  const { directory, write } = await mount(t);
  const slow = serviceAccount({ host: '10.96.0.1', port: '443', directory, rereadMs: 3_600_000 });
  const eager = serviceAccount({ host: '10.96.0.1', port: '443', directory, rereadMs: 0 });
  const first = await slow.current();
  const firstEager = await eager.current();
  t.is(await eager.current(), firstEager);
  await write('token', 'second\n');
  t.is((await slow.current()).token, 'first');
  const second = await eager.current();
  t.is(second.token, 'second');
  t.is(second.tls, firstEager.tls);
  slow.expire();
  t.is((await slow.current()).token, 'second');
  t.not(await slow.current(), first);
});

test('serviceAccount names what is missing or wrong, and recovers', async (t) => {
  const { directory, ca, write } = await mount(t);
  const source = serviceAccount({ host: '10.96.0.1', port: '443', directory, rereadMs: 0 });
  await write('token', 'two words');
  t.is(
    await refusalOf(t, source.current()),
    `cannot use ${directory}/token: expected a bearer token on one line, got blanks, line breaks or other characters inside it`,
  );
  await write('token', '');
  t.regex(await refusalOf(t, source.current()), /got nothing$/);
  await write('token', 'good');
  await write('ca.crt', 'nonsense');
  t.is(
    await refusalOf(t, source.current()),
    `cannot use ${directory}/ca.crt: expected certificates in PEM form, got none`,
  );
  await write('ca.crt', '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n');
  t.regex(await refusalOf(t, source.current()), /got one that cannot be read$/);
  await write('ca.crt', ca);
  t.is((await source.current()).token, 'good');
  await rm(join(directory, 'token'));
  t.is(
    await refusalOf(t, source.current()),
    `cannot use ${directory}/token: expected a readable file, got no such file`,
  );
  t.is(
    await refusalOf(t, serviceAccount({ directory }).current()),
    "cannot use KUBERNETES_SERVICE_HOST: expected the API server's address, got nothing; run inside a pod, or give --kubeconfig or --api-server",
  );
  t.regex(
    await refusalOf(t, serviceAccount({ host: 'h', directory }).current()),
    /^cannot use KUBERNETES_SERVICE_PORT/,
  );
});

for (const text of [
  '192.0.2.1:6443',
  'http://192.0.2.1:6443',
  'https://u:p@192.0.2.1',
  'https://',
  'https://h?x=1',
  '',
]) {
  test(`parseServer refuses ${JSON.stringify(text)}`, (t) => {
    t.throws(() => parseServer('--api-server', text), {
      message: `cannot use --api-server: expected https://host:port, got ${JSON.stringify(text)}`,
    });
  });
}

test('parseServer keeps a path and drops the slash after it', (t) => {
  t.is(
    parseServer('--api-server', 'https://rancher.example/k8s/clusters/c-1/'),
    'https://rancher.example/k8s/clusters/c-1',
  );
});

test('rereading reads once for callers at the same time', async (t) => {
  let reads = 0;
  const server = 'https://h';
  const source = rereading(async (): Promise<Credentials> => {
    reads++;
    return { server, tls: tlsSettings({ server }), description: 'test' };
  }, 0);
  const [a, b] = await Promise.all([source.current(), source.current()]);
  t.is(a, b as Credentials);
  t.is(reads, 1);
});
