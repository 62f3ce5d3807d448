import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { stringify } from 'yaml';
import { createAuthority } from '../../test/support/certificates.ts';
import { ConfigError } from '../model/config-error.ts';
import { type KubeconfigOptions, kubeconfig } from './kubeconfig.ts';

const base64 = (text: string) => Buffer.from(text).toString('base64');

/** A file with one context `main` of one cluster `c` and one user `u`, and how to read it. */
async function setUp(t: ExecutionContext) {
  const folder = await mkdtemp(join(tmpdir(), 'tulle-test-kubeconfig-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const path = join(folder, 'config');
  const contexts = [{ name: 'main', context: { cluster: 'c', user: 'u' } }];
  const write = (fields: object) => writeFile(path, typeof fields === 'string' ? fields : stringify(fields));
  const config = (user: object | null, cluster: object = {}, more: object = {}) => ({
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'main',
    contexts,
    clusters: [{ name: 'c', cluster: { server: 'https://192.0.2.1:6443', ...cluster } }],
    users: [{ name: 'u', user }],
    ...more,
  });
  const read = async (fields: object | string, options: Partial<KubeconfigOptions> = {}) => {
    await write(fields as object);
    return kubeconfig({ path, ...options }).current();
  };
  const refused = async (fields: object | string, options: Partial<KubeconfigOptions> = {}) => {
    const error = await t.throwsAsync(read(fields, options), { instanceOf: ConfigError });
    return (error?.message ?? '').replaceAll(path, 'FILE').replaceAll(folder, 'FOLDER');
  };
  return { folder, path, config, read, refused };
}

test('kubeconfig reads token, CA data, tls-server-name and the insecure switch', async (t) => {
  const { config, read } = await setUp(t);
  const { certificate } = await createAuthority(t);
  const user = { token: 'secret' };
  t.like(await read(config(user, { 'certificate-authority-data': base64(certificate) })), {
    server: 'https://192.0.2.1:6443',
    token: 'secret',
    tls: { ca: certificate, names: ['192.0.2.1'], greeting: undefined, insecure: false },
  });
  t.like(await read(config(user, { 'tls-server-name': 'api.example' })), {
    tls: { names: ['api.example'], greeting: 'api.example', ca: undefined },
  });
  t.like(await read(config(user, { 'insecure-skip-tls-verify': true })), { tls: { insecure: true } });
});

test('kubeconfig with --api-server also accepts the name that the file has, unless tls-server-name says which', async (t) => {
  const { config, read } = await setUp(t);
  const apiServer = 'https://127.0.0.1:7443';
  t.like(await read(config({ token: 'x' }, { server: 'https://api.example' }), { apiServer }), {
    server: apiServer,
    tls: { names: ['127.0.0.1', 'api.example'] },
  });
  t.like(await read(config({ token: 'x' }, { 'tls-server-name': 'other.example' }), { apiServer }), {
    tls: { names: ['other.example'] },
  });
});

test('kubeconfig resolves relative files beside itself, and a tokenFile wins over a token', async (t) => {
  const { folder, config, read } = await setUp(t);
  const authority = await createAuthority(t);
  const client = await authority.issue('client', { commonName: 'tulle' });
  await mkdir(join(folder, 'pki'));
  await writeFile(join(folder, 'pki/ca.crt'), authority.certificate);
  await writeFile(join(folder, 'pki/client.crt'), client.certificate);
  await writeFile(join(folder, 'token'), 'from-file\n');
  const user = {
    token: 'from-field',
    tokenFile: 'token',
    'client-certificate': './pki/client.crt',
    'client-key': client.keyFile,
  };
  const credentials = await read(config(user, { 'certificate-authority': 'pki/ca.crt' }));
  t.like(credentials, {
    token: 'from-file',
    tls: { ca: authority.certificate, certificate: client.certificate, key: client.key },
  });
});

test('kubeconfig takes the named context, or says which there are', async (t) => {
  const { config, read, refused } = await setUp(t);
  const contexts = [
    { name: 'main', context: { cluster: 'c', user: 'u' } },
    { name: 'other', context: { cluster: 'c2', user: 'u' } },
  ];
  const clusters = [
    { name: 'c', cluster: { server: 'https://one' } },
    { name: 'c2', cluster: { server: 'https://two' } },
  ];
  const file = config({ token: 'x' }, {}, { contexts, clusters });
  t.is((await read(file)).server, 'https://one');
  t.is((await read(file, { context: 'other' })).server, 'https://two');
  t.is(
    await refused(file, { context: 'third' }),
    'cannot use kubeconfig FILE: contexts["third"]: expected an entry of that name in contexts, got only "main", "other"',
  );
  t.is(
    await refused({ ...file, 'current-context': '' }),
    'cannot use kubeconfig FILE: current-context: expected the name of a context, got nothing; name one with --context: "main", "other"',
  );
});

test('kubeconfig notices a change, and a file that was broken in between', async (t) => {
  const { path, config, read } = await setUp(t);
  await read(config({ token: 'first' }));
  const source = kubeconfig({ path, rereadMs: 0 });
  t.is((await source.current()).token, 'first');
  await writeFile(path, '');
  await t.throwsAsync(source.current(), { instanceOf: ConfigError, message: /got an empty file$/ });
  await writeFile(path, stringify(config({ token: 'second' })));
  t.is((await source.current()).token, 'second');
});

test('kubeconfig names each problem precisely', async (t) => {
  const { path, folder, config, read, refused } = await setUp(t);
  const authority = await createAuthority(t);
  const client = await authority.issue('client');
  const other = await authority.issue('other');
  const user = { token: 'x' };
  const at = 'cannot use kubeconfig FILE:';
  const missing = kubeconfig({ path: `${folder}/none` }).current();
  await t.throwsAsync(missing, {
    message: `cannot use --kubeconfig (${folder}/none): expected a readable file, got no such file`,
  });
  t.regex(
    await refused('a: [\n'),
    /^cannot use kubeconfig FILE: expected a YAML mapping of kind Config, got text that is not YAML \(/,
  );
  t.is(await refused('just text'), `${at} expected a YAML mapping of kind Config, got string`);
  t.is(
    await refused(config(user, {}, { clusters: [] })),
    `${at} clusters["c"]: expected an entry of that name in clusters, got only none`,
  );
  t.is(
    await refused(config(user, {}, { users: null })),
    `${at} users["u"]: expected an entry of that name in users, got only none`,
  );
  t.is(
    await refused(config(user, {}, { contexts: [{ name: 'main', context: { cluster: 'c' } }] })),
    `${at} contexts["main"].user: expected the name of a user, got nothing`,
  );
  t.is(await refused(config(user, { server: '' })), `${at} clusters["c"].server: expected https://host:port, got ""`);
  t.is(await refused(config(user, { server: 7 })), `${at} clusters["c"].server: expected a string, got number`);
  t.is(
    await refused(config(null)),
    `${at} users["u"]: expected token, tokenFile or client-certificate and client-key, got none`,
  );
  t.is(
    await refused(config({ 'client-certificate-data': base64(client.certificate) })),
    `${at} users["u"].client-key: expected client-key or client-key-data, got nothing`,
  );
  const pair = (key: string) =>
    config({ 'client-certificate-data': base64(client.certificate), 'client-key-data': base64(key) });
  t.is(
    await refused(pair(other.key)),
    `${at} users["u"].client-key: expected the private key of the client certificate, got that of another`,
  );
  t.is(
    await refused(pair('x')),
    `${at} users["u"].client-key: expected a private key in PEM form without a passphrase, got something else`,
  );
  t.regex(
    (await read(pair(client.key))).description,
    /^the client certificate of kubeconfig .* \(valid until .* GMT\)$/,
  );
  t.is(
    await refused(config({ tokenFile: 'none' })),
    `${at} users["u"].tokenFile (FOLDER/none): expected a readable file, got no such file`,
  );
  t.is(
    await refused(config(user, { 'certificate-authority-data': base64('x') })),
    `${at} clusters["c"].certificate-authority: expected certificates in PEM form, got none`,
  );
  const both = { 'insecure-skip-tls-verify': true, 'certificate-authority-data': base64(authority.certificate) };
  t.regex(
    await refused(config(user, both)),
    /insecure-skip-tls-verify: expected false where a certificate-authority is given, got true/,
  );
  t.truthy(path);
});

for (const [field, value] of [
  ['exec', { command: 'aws' }],
  ['auth-provider', { name: 'gcp' }],
  ['username', 'admin'],
  ['password', 'x'],
  ['as', 'other'],
] as const) {
  test(`kubeconfig says that ${field} is not supported, and what to use`, async (t) => {
    const { config, refused } = await setUp(t);
    const message = await refused(config({ token: 'secret', [field]: value }));
    const start = `cannot use kubeconfig FILE: users["u"].${field}: expected a kind of access that Tulle supports, got ${field}, which is not supported; use `;
    t.true(message.startsWith(start), message);
  });
}

test('kubeconfig never shows a secret in a message', async (t) => {
  const { config, refused } = await setUp(t);
  t.notRegex(await refused(config({ token: 'my secret' })), /secret/);
});

/** Whatever a document holds where a right one has something else, and text that is no document at all. */
const anyValue = fc.oneof(
  fc.jsonValue({ maxDepth: 2 }),
  fc.constantFrom('c', 'u', 'main', 'https://[::1]:6443', 'https://x:99999', '\0', 'none', 'AA==', '-----BEGIN'),
);
const FIELDS = {
  user: ['token', 'tokenFile', 'client-certificate', 'client-certificate-data', 'client-key', 'client-key-data'],
  cluster: ['server', 'tls-server-name', 'certificate-authority', 'certificate-authority-data', 'proxy-url'],
  file: ['current-context', 'contexts', 'clusters', 'users', 'kind', '__proto__'],
} as const;
/** No slash: a relative path stays in the test's folder. */
const fieldsOf = (names: readonly string[]) =>
  fc
    .dictionary(fc.constantFrom(...names), anyValue, { maxKeys: 2, noNullPrototype: true })
    .filter((fields) => !Object.values(fields).some((value) => typeof value === 'string' && /^\.*\//.test(value)));
const fragments = fc.constantFrom(
  ...['contexts:', 'users: &a', ' *a', '\n', '- name: main', '  ', 'current-context: main', '[', '{', '"', '!!set'],
  ...['&b [*b]', '%YAML 1.1\n---\n', '<<: *a', '? ', '- name: &c [*c]', '\t', '\0', '\ufeff', '---\n', 'null', '1e999'],
);

test('kubeconfig: of any document, either credentials or a ConfigError', async (t) => {
  const { config, path } = await setUp(t);
  const mutated = fc
    .tuple(fieldsOf(FIELDS.user), fieldsOf(FIELDS.cluster), fieldsOf(FIELDS.file), fc.boolean())
    .map(([user, cluster, file, asJson]) => {
      const fields = config({ token: 'x', ...user }, cluster, file);
      return asJson ? JSON.stringify(fields) : stringify(fields);
    });
  const document = fc.oneof(
    mutated,
    fc.array(fragments, { maxLength: 12 }).map((parts) => parts.join('')),
    fc.jsonValue().map((value) => stringify(value)),
    fc.uint8Array({ maxLength: 100 }),
  );
  let read = 0;
  await fc.assert(
    fc.asyncProperty(document, async (content) => {
      await writeFile(path, content);
      try {
        t.is(typeof (await kubeconfig({ path }).current()).server, 'string');
        read++;
      } catch (error) {
        t.true(error instanceof ConfigError, `${error}`);
      }
    }),
    { numRuns: 500 },
  );
  t.true(read > 0, 'some are still right');
});

test('kubeconfig: a name that contains itself is refused like any other', async (t) => {
  const { refused } = await setUp(t);
  t.regex(await refused('current-context: main\ncontexts:\n- name: &a [*a]\n'), /expected an entry of that name/);
});
