/** A kubeconfig file as credentials (Kubernetes: client-go, `clientcmd/api/v1` Config). One file, no merging. */
import { X509Certificate } from 'node:crypto';
import { dirname, resolve } from 'node:path';
import { parse } from 'yaml';
import { ConfigError } from '../model/config-error.ts';
import {
  type Credentials,
  type CredentialsSource,
  checkCertificates,
  checkKey,
  checkToken,
  hostOf,
  parseServer,
  readSetting,
  rereading,
  type TlsSettings,
  tlsSettings,
} from './credentials.ts';

export interface KubeconfigOptions {
  readonly path: string;
  /** Name of a context; without it the file's current-context. */
  readonly context?: string | undefined;
  /**
   * Takes the place of the cluster's address. The certificate may then name either this address or the file's;
   * tls-server-name, where set, stays the only name.
   */
  readonly apiServer?: string | undefined;
  readonly rereadMs?: number;
}

/** The file and those that it names are read again as they change. Every problem is a ConfigError that names the field. */
export const kubeconfig = (options: KubeconfigOptions): CredentialsSource =>
  rereading(() => readKubeconfig(options), options.rereadMs);

/** A mapping of the file and the path to it, for messages: `kubeconfig /etc/k.conf: users["admin"]`. */
interface Section {
  readonly at: string;
  readonly fields: Readonly<Record<string, unknown>>;
  /** Relative paths in the file start here. */
  readonly folder: string;
}

async function readKubeconfig({ path, context, apiServer }: KubeconfigOptions): Promise<Credentials> {
  const file = parseFile(path, await readSetting(path, '--kubeconfig'));
  const chosen = pick(file, 'contexts', 'context', context ?? currentContext(file));
  const cluster = pick(file, 'clusters', 'cluster', referenceIn(chosen, 'cluster'));
  const user = pick(file, 'users', 'user', referenceIn(chosen, 'user'));
  refuseUnsupported(cluster, user);
  const ownServer = parseServer(`${cluster.at}.server`, text(cluster, 'server') ?? '');
  const server = apiServer === undefined ? ownServer : parseServer('--api-server', apiServer);
  const token = await readToken(user);
  const identity = await readClientCertificate(user);
  if (token === undefined && identity === undefined) {
    throw new ConfigError({
      key: user.at,
      expected: 'token, tokenFile or client-certificate and client-key',
      received: 'none',
    });
  }
  return {
    server,
    tls: await readTls(cluster, server, ownServer, identity),
    ...(token !== undefined && { token }),
    description: describe(user, token, identity),
  };
}

function parseFile(path: string, content: string): Section {
  const at = `kubeconfig ${path}`;
  const expected = 'a YAML mapping of kind Config';
  let parsed: unknown;
  try {
    // Without it the parser prints its warnings itself.
    parsed = parse(content, { logLevel: 'error' });
  } catch (cause) {
    const received = `text that is not YAML (${(cause as Error).message.split('\n')[0]})`;
    throw new ConfigError({ key: at, expected, received, cause });
  }
  const fields = mapping(parsed);
  if (!fields)
    throw new ConfigError({ key: at, expected, received: content.trim() === '' ? 'an empty file' : typeof parsed });
  return { at, fields, folder: dirname(resolve(path)) };
}

function currentContext(file: Section): string {
  const name = text(file, 'current-context');
  if (name) return name;
  const remedy = `name one with --context: ${namesIn(file, 'contexts')}`;
  throw new ConfigError({
    key: `${file.at}: current-context`,
    expected: 'the name of a context',
    received: 'nothing',
    remedy,
  });
}

/** The mapping `field` of the entry called `name` in a list of named entries. */
function pick(file: Section, list: string, field: string, name: string): Section {
  const at = `${file.at}: ${list}[${JSON.stringify(name)}]`;
  const entry = entriesOf(file, list).find((candidate) => candidate['name'] === name);
  if (!entry) {
    const received = `only ${namesIn(file, list)}`;
    throw new ConfigError({ key: at, expected: `an entry of that name in ${list}`, received });
  }
  // `user: null` is what kubectl writes for a user without credentials.
  const fields = mapping(entry[field] ?? {});
  if (!fields) throw new ConfigError({ key: `${at}.${field}`, expected: 'a mapping', received: typeof entry[field] });
  return { at, fields, folder: file.folder };
}

const entriesOf = (file: Section, list: string): readonly Readonly<Record<string, unknown>>[] => {
  const entries = file.fields[list];
  return Array.isArray(entries) ? entries.map(mapping).filter((entry) => entry !== undefined) : [];
};

const namesIn = (file: Section, list: string): string =>
  entriesOf(file, list)
    // A name that is no text may contain itself, by an alias of YAML.
    .flatMap(({ name }) => (typeof name === 'string' ? JSON.stringify(name) : []))
    .join(', ') || 'none';

function referenceIn(context: Section, field: 'cluster' | 'user'): string {
  const name = text(context, field);
  if (name) return name;
  throw new ConfigError({ key: `${context.at}.${field}`, expected: `the name of a ${field}`, received: 'nothing' });
}

/** What would silently change who we are or where we go must not be passed over. */
function refuseUnsupported(cluster: Section, user: Section): void {
  const refused: readonly (readonly [Section, string, string])[] = [
    [user, 'exec', 'use a token, tokenFile or client certificate; a service account can have a long-lived token'],
    [
      user,
      'auth-provider',
      'use a token, tokenFile or client certificate; a service account can have a long-lived token',
    ],
    [user, 'username', 'use a token, tokenFile or client certificate'],
    [user, 'password', 'use a token, tokenFile or client certificate'],
    [user, 'as', 'use the credentials of that user'],
    [cluster, 'proxy-url', 'give an address that needs no proxy'],
  ];
  for (const [section, field, remedy] of refused) {
    if (section.fields[field] === undefined || section.fields[field] === null) continue;
    const key = `${section.at}.${field}`;
    throw new ConfigError({
      key,
      expected: 'a kind of access that Tulle supports',
      received: `${field}, which is not supported`,
      remedy,
    });
  }
}

async function readToken(user: Section): Promise<string | undefined> {
  // tokenFile wins, as in client-go: the file is what rotates.
  const file = text(user, 'tokenFile');
  if (file)
    return checkToken(`${user.at}.tokenFile`, await readSetting(resolve(user.folder, file), `${user.at}.tokenFile`));
  const token = text(user, 'token');
  return token ? checkToken(`${user.at}.token`, token) : undefined;
}

interface ClientCertificate {
  readonly certificate: string;
  readonly key: string;
}

async function readClientCertificate(user: Section): Promise<ClientCertificate | undefined> {
  const certificate = await readPem(user, 'client-certificate');
  const key = await readPem(user, 'client-key');
  if (!certificate && !key) return undefined;
  if (!certificate || !key) {
    const missing = certificate ? 'client-key' : 'client-certificate';
    throw new ConfigError({
      key: `${user.at}.${missing}`,
      expected: `${missing} or ${missing}-data`,
      received: 'nothing',
    });
  }
  checkCertificates(`${user.at}.client-certificate`, certificate);
  return { certificate, key: checkKey(`${user.at}.client-key`, key, certificate) };
}

async function readTls(
  cluster: Section,
  server: string,
  ownServer: string,
  identity: ClientCertificate | undefined,
): Promise<TlsSettings> {
  const pem = await readPem(cluster, 'certificate-authority');
  const ca = pem && checkCertificates(`${cluster.at}.certificate-authority`, pem);
  const insecure = cluster.fields['insecure-skip-tls-verify'] === true;
  if (insecure && ca) {
    const key = `${cluster.at}.insecure-skip-tls-verify`;
    throw new ConfigError({
      key,
      expected: 'false where a certificate-authority is given',
      received: 'true',
      remedy: 'remove one of the two',
    });
  }
  return tlsSettings({
    server,
    otherName: hostOf(ownServer),
    onlyName: text(cluster, 'tls-server-name'),
    ca,
    insecure,
    ...identity,
  });
}

/** `<field>-data` (base64) or else the file that `<field>` names. */
async function readPem(section: Section, field: string): Promise<string | undefined> {
  const data = text(section, `${field}-data`);
  if (data) return Buffer.from(data, 'base64').toString('latin1');
  const file = text(section, field);
  return file ? readSetting(resolve(section.folder, file), `${section.at}.${field}`) : undefined;
}

function describe(user: Section, token: string | undefined, identity: ClientCertificate | undefined): string {
  if (token !== undefined || !identity) return `the token of ${user.at}`;
  return `the client certificate of ${user.at} (valid until ${new X509Certificate(identity.certificate).validTo})`;
}

/** A string field; undefined when it is absent or empty, ConfigError when it is something else. */
function text(section: Section, field: string): string | undefined {
  const value = section.fields[field] ?? undefined;
  if (value === undefined || value === '') return undefined;
  if (typeof value === 'string') return value;
  throw new ConfigError({ key: `${section.at}.${field}`, expected: 'a string', received: typeof value });
}

const mapping = (value: unknown): Readonly<Record<string, unknown>> | undefined =>
  typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>) : undefined;
