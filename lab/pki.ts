/** Keys and certificates of a lab cluster, made by openssl, and the kubeconfig files that use them. */

import { chmod, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { stringify } from 'yaml';
import { type IpAddress, parseIp } from '../agent/model/ip.ts';

/** A certificate and its key, as files and as PEM text. */
export interface KeyPair {
  readonly certFile: string;
  /** Mode 0600. */
  readonly keyFile: string;
  readonly cert: string;
  readonly key: string;
}

/** What every certificate needs: `<name>.crt` and `<name>.key` are written to `directory`, which exists. */
interface Place {
  readonly directory: string;
  readonly name: string;
}

interface Subject {
  readonly commonName: string;
  readonly organization?: string;
}

const VALID_DAYS = 3650;
/** Longer than openssl needs for an EC key on a busy machine, by far. */
const OPENSSL_TIMEOUT_MS = 30_000;

/** A certificate authority of its own. Throws when openssl is missing or fails. */
export const createCa = async (place: Place, signal: AbortSignal): Promise<KeyPair> =>
  createCertificate(place, { commonName: `tulle lab ${place.name}` }, CA_EXTENSIONS, undefined, signal);

/** A server's certificate for these DNS names and addresses. Throws TypeError for names that are not DNS names. */
export async function createServingCertificate(
  { ca, names, ips, ...place }: Place & { ca: KeyPair; names: readonly string[]; ips: readonly IpAddress[] },
  signal: AbortSignal,
): Promise<KeyPair> {
  const dnsNames = names.map((name) => `DNS:${plain(name, /^[a-zA-Z0-9*][a-zA-Z0-9.-]*$/)}`);
  const addresses = ips.map((ip) => `IP:${parseIp(ip) ?? plain(ip, /^$/)}`);
  const extensions = [
    ...LEAF_EXTENSIONS,
    'extendedKeyUsage=serverAuth',
    `subjectAltName=${[...dnsNames, ...addresses].join()}`,
  ];
  return createCertificate(place, { commonName: names[0] ?? place.name }, extensions, ca, signal);
}

/** A client's certificate; the API takes its common name as the user and its organization as the group. */
export async function createClientCertificate(
  { ca, user, group, ...place }: Place & { ca: KeyPair; user: string; group?: string },
  signal: AbortSignal,
): Promise<KeyPair> {
  const subject = { commonName: user, ...(group !== undefined && { organization: group }) };
  return createCertificate(place, subject, [...LEAF_EXTENSIONS, 'extendedKeyUsage=clientAuth'], ca, signal);
}

export interface KubeconfigOptions {
  readonly path: string;
  /** `https://HOST:PORT`. */
  readonly server: string;
  /** PEM text of the authority that signed the server's certificate. */
  readonly ca: string;
  readonly user: { readonly token: string } | { readonly clientCert: Pick<KeyPair, 'cert' | 'key'> };
  readonly namespace?: string;
}

/** Everything is embedded, so that the file can be moved. Mode 0600. */
export async function writeKubeconfig({
  path,
  server,
  ca,
  user,
  namespace = 'default',
}: KubeconfigOptions): Promise<void> {
  const credentials =
    'token' in user
      ? { token: user.token }
      : { 'client-certificate-data': base64(user.clientCert.cert), 'client-key-data': base64(user.clientCert.key) };
  const config = {
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'lab',
    clusters: [{ name: 'lab', cluster: { server, 'certificate-authority-data': base64(ca) } }],
    users: [{ name: 'lab', user: credentials }],
    contexts: [{ name: 'lab', context: { cluster: 'lab', user: 'lab', namespace } }],
  };
  await writeFile(path, stringify(config), { mode: 0o600 });
  // The mode above counts for new files only.
  await chmod(path, 0o600);
}

const CA_EXTENSIONS = [
  'basicConstraints=critical,CA:TRUE',
  'keyUsage=critical,keyCertSign,cRLSign',
  'subjectKeyIdentifier=hash',
];
const LEAF_EXTENSIONS = ['basicConstraints=critical,CA:FALSE', 'keyUsage=critical,digitalSignature'];

async function createCertificate(
  { directory, name }: Place,
  { commonName, organization }: Subject,
  extensions: readonly string[],
  ca: KeyPair | undefined,
  signal: AbortSignal,
): Promise<KeyPair> {
  const keyFile = join(directory, `${name}.key`);
  const certFile = join(directory, `${name}.crt`);
  const subject = `${organization === undefined ? '' : `/O=${subjectPart(organization)}`}/CN=${subjectPart(commonName)}`;
  const signer = ca ? ['-CA', ca.certFile, '-CAkey', ca.keyFile] : [];
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-noenc', '-keyout', keyFile];
  // The system's own openssl.cnf would add extensions of its choice.
  const args = ['req', '-x509', '-config', '/dev/null', '-subj', subject, '-days', `${VALID_DAYS}`, '-sha256'];
  const added = extensions.flatMap((extension) => ['-addext', extension]);
  await execa('openssl', [...args, ...key, '-out', certFile, ...signer, ...added], {
    timeout: OPENSSL_TIMEOUT_MS,
    cancelSignal: signal,
  });
  await chmod(keyFile, 0o600);
  return { certFile, keyFile, cert: await readFile(certFile, 'utf8'), key: await readFile(keyFile, 'utf8') };
}

/** `system:node:worker-1` and the like, without what -subj would read as a separator. */
const subjectPart = (text: string): string => plain(text, /^[a-zA-Z0-9:._@ -]{1,64}$/);

function plain(text: string, shape: RegExp): string {
  if (shape.test(text)) return text;
  throw new TypeError(`cannot put ${JSON.stringify(text)} into a certificate: expected ${shape}`);
}

const base64 = (text: string): string => Buffer.from(text).toString('base64');
