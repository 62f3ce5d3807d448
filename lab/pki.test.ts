import { X509Certificate } from 'node:crypto';
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { parse } from 'yaml';
import { ip } from '../test/support/cluster-values.ts';
import { createCa, createClientCertificate, createServingCertificate, writeKubeconfig } from './pki.ts';

const signal = AbortSignal.timeout(60_000);

async function folder(t: ExecutionContext): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'tulle-test-pki-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

const modeOf = async (path: string) => ((await stat(path)).mode & 0o777).toString(8);

test('createServingCertificate: signed by the authority, for names and addresses of both families', async (t) => {
  const directory = await folder(t);
  const ca = await createCa({ directory, name: 'ca' }, signal);
  const place = {
    directory,
    name: 'serving',
    ca,
    names: ['kubernetes.default.svc'],
    ips: [ip('192.0.2.1'), ip('2001:db8::1')],
  };
  const serving = await createServingCertificate(place, signal);
  const certificate = new X509Certificate(serving.cert);
  const authority = new X509Certificate(ca.cert);
  t.true(authority.ca && certificate.verify(authority.publicKey) && certificate.checkIssued(authority));
  t.false(certificate.ca);
  t.truthy(
    certificate.checkHost('kubernetes.default.svc') &&
      certificate.checkIP('192.0.2.1') &&
      certificate.checkIP('2001:db8::1'),
  );
  t.is(certificate.checkHost('elsewhere'), undefined);
  t.is(certificate.publicKey.asymmetricKeyDetails?.namedCurve, 'prime256v1');
  t.true(Date.parse(certificate.validTo) > Date.now() + 9 * 365 * 86_400_000);
  for (const { keyFile } of [ca, serving]) t.is(await modeOf(keyFile), '600');
});

test('createClientCertificate: the user is the common name, the group the organization', async (t) => {
  const directory = await folder(t);
  const ca = await createCa({ directory, name: 'ca' }, signal);
  const client = await createClientCertificate(
    { directory, name: 'agent', ca, user: 'system:node:n1', group: 'system:nodes' },
    signal,
  );
  t.is(new X509Certificate(client.cert).subject, 'O=system:nodes\nCN=system:node:n1');
});

test('certificates: text that would be read as something else is refused', async (t) => {
  const directory = await folder(t);
  const ca = await createCa({ directory, name: 'ca' }, signal);
  for (const user of ['a/O=system:masters', 'a\nb', '']) {
    const created = createClientCertificate({ directory, name: 'x', ca, user }, signal);
    await t.throwsAsync(created, { instanceOf: TypeError }, JSON.stringify(user));
  }
  const names = ['x,IP:1.2.3.4'];
  const created = createServingCertificate({ directory, name: 'x', ca, names, ips: [] }, signal);
  await t.throwsAsync(created, { instanceOf: TypeError });
});

test('writeKubeconfig: holds everything, for the owner only', async (t) => {
  const path = join(await folder(t), 'config');
  await writeFile(path, 'former');
  await chmod(path, 0o644);
  await writeKubeconfig({ path, server: 'https://192.0.2.1:6443', ca: 'CA', user: { token: 'secret' } });
  t.is(await modeOf(path), '600');
  const config = parse(await readFile(path, 'utf8'));
  t.is(config['current-context'], config.contexts[0].name);
  t.deepEqual(config.contexts[0].context, {
    cluster: config.clusters[0].name,
    user: config.users[0].name,
    namespace: 'default',
  });
  t.deepEqual(config.clusters[0].cluster, { server: 'https://192.0.2.1:6443', 'certificate-authority-data': 'Q0E=' });
  t.deepEqual(config.users[0].user, { token: 'secret' });
  await writeKubeconfig({
    path,
    server: 'https://192.0.2.1:6443',
    ca: 'CA',
    user: { clientCert: { cert: 'C', key: 'K' } },
  });
  t.deepEqual(parse(await readFile(path, 'utf8')).users[0].user, {
    'client-certificate-data': 'Qw==',
    'client-key-data': 'Sw==',
  });
});
