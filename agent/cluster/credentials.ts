/** How the agent reaches the API server and who it says it is: read from files, and read again as they rotate. */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { ConfigError } from '../model/config-error.ts';

export interface Credentials {
  /** `https://host:port` and perhaps a path, without a slash at its end. */
  readonly server: string;
  /** Keeps its identity while nothing in it changes, so that connections can be kept as long. */
  readonly tls: TlsSettings;
  readonly token?: string;
  /** For messages: `the service account's token in FILE`. */
  readonly description: string;
}

export interface TlsSettings {
  /** The server's certificate must hold one of these host names or addresses. */
  readonly names: readonly string[];
  /** The name asked for in the greeting (SNI, RFC 6066), or undefined where `server` has an address only. */
  readonly greeting: string | undefined;
  /** PEM; undefined means the authorities that Node trusts by itself. */
  readonly ca: string | undefined;
  /** PEM; both or none. */
  readonly certificate: string | undefined;
  readonly key: string | undefined;
  /** The server's certificate is not checked at all. */
  readonly insecure: boolean;
}

/** Where credentials come from. */
export interface CredentialsSource {
  /** What to use now; an equal value keeps its identity. Throws ConfigError. */
  current(): Promise<Credentials>;
  /** The server refused what was last returned: the next `current` reads again. */
  expire(): void;
}

/** Files are read again at the first request this long after the last reading. */
const REREAD_MS = 10_000;

/** Mounted into every pod that has a service account (Kubernetes: "Service account token volume projection"). */
const SERVICE_ACCOUNT_DIR = '/var/run/secrets/kubernetes.io/serviceaccount';

/** In the certificate of every API server, whatever its addresses (kubeadm, k3s, kind and the hosted ones alike). */
const API_SERVER_NAME = 'kubernetes.default.svc';

export interface ServiceAccountOptions {
  /** KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT; not needed with `apiServer`. */
  readonly host?: string | undefined;
  readonly port?: string | undefined;
  /** Takes the place of the address: `https://host:port`. */
  readonly apiServer?: string | undefined;
  readonly directory?: string;
  readonly rereadMs?: number;
}

/**
 * The pod's own service account. With `apiServer` the certificate may name either the address given or
 * `kubernetes.default.svc`: a control-plane node's address is in it, that of a load balancer or of a local proxy often is
 * not, and either name proves the same server to the cluster's own authority.
 */
export function serviceAccount({
  host,
  port,
  apiServer,
  directory = SERVICE_ACCOUNT_DIR,
  rereadMs,
}: ServiceAccountOptions): CredentialsSource {
  const tokenFile = join(directory, 'token');
  const caFile = join(directory, 'ca.crt');
  const read = async (): Promise<Credentials> => {
    const server = apiServer === undefined ? serviceAddress(host, port) : parseServer('--api-server', apiServer);
    const [token, ca] = await Promise.all([readSetting(tokenFile), readSetting(caFile)]);
    return {
      server,
      tls: tlsSettings({ server, otherName: apiServer && API_SERVER_NAME, ca: checkCertificates(caFile, ca) }),
      token: checkToken(tokenFile, token),
      description: `the service account's token in ${tokenFile}`,
    };
  };
  return rereading(read, rereadMs);
}

/** Wraps `read` so that it runs at most once in `rereadMs`, or after `expire`, and never twice at once. */
export function rereading(read: () => Promise<Credentials>, rereadMs = REREAD_MS): CredentialsSource {
  let latest: Credentials | undefined;
  let readAt = Number.NEGATIVE_INFINITY;
  let running: Promise<Credentials> | undefined;
  const refresh = async (): Promise<Credentials> => {
    try {
      latest = keepIdentity(await read(), latest);
      readAt = performance.now();
      return latest;
    } finally {
      running = undefined;
    }
  };
  return {
    current: async () => {
      if (latest !== undefined && performance.now() - readAt < rereadMs) return latest;
      running ??= refresh();
      return running;
    },
    expire: () => {
      readAt = Number.NEGATIVE_INFINITY;
    },
  };
}

/** Canonical server address, or ConfigError. IPv6 addresses stand in brackets. */
export function parseServer(key: string, text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const plain = url && url.protocol === 'https:' && !url.username && !url.password && !url.search && !url.hash;
  if (!plain) throw new ConfigError({ key, expected: 'https://host:port', received: JSON.stringify(text) });
  return url.href.replace(/\/+$/, '');
}

interface TlsInput {
  readonly server: string;
  /** A second name that the certificate may have. */
  readonly otherName?: string | undefined;
  /** The only name that it may have (tls-server-name). */
  readonly onlyName?: string | undefined;
  readonly ca?: string | undefined;
  readonly certificate?: string | undefined;
  readonly key?: string | undefined;
  readonly insecure?: boolean;
}

export function tlsSettings({
  server,
  otherName,
  onlyName,
  ca,
  certificate,
  key,
  insecure = false,
}: TlsInput): TlsSettings {
  const host = hostOf(server);
  const names = onlyName ? [onlyName] : [...new Set([host, otherName ?? host])];
  const greeting = names.find((name) => isIP(name) === 0 && (name === onlyName || name === host));
  return { names, greeting, ca, certificate, key, insecure };
}

/** Host name or bare address of a server address. */
export const hostOf = (server: string): string => new URL(server).hostname.replace(/^\[(.*)\]$/, '$1');

/** Text of a file that a setting names. Throws ConfigError under `key`, or under the file's own name. */
export async function readSetting(file: string, key = file): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    const received = code === 'ENOENT' ? 'no such file' : (code ?? message);
    throw new ConfigError({
      key: key === file ? key : `${key} (${file})`,
      expected: 'a readable file',
      received,
      cause,
    });
  }
}

/** A bearer token without surrounding blanks. It must fit a header (RFC 6750 section 2.1) and is never shown. */
export function checkToken(key: string, text: string): string {
  const token = text.trim();
  if (/^[\x21-\x7e]+$/.test(token)) return token;
  const received = token === '' ? 'nothing' : 'blanks, line breaks or other characters inside it';
  throw new ConfigError({ key, expected: 'a bearer token on one line', received });
}

/** PEM text that holds at least one certificate, all of them readable. */
export function checkCertificates(key: string, pem: string): string {
  const blocks = pem.match(/-----BEGIN (TRUSTED )?CERTIFICATE-----[^-]*-----END (TRUSTED )?CERTIFICATE-----/g) ?? [];
  const expected = 'certificates in PEM form';
  if (blocks.length === 0) throw new ConfigError({ key, expected, received: 'none' });
  for (const block of blocks) {
    try {
      new X509Certificate(block);
    } catch (cause) {
      throw new ConfigError({ key, expected, received: 'one that cannot be read', cause });
    }
  }
  return pem;
}

/** The private key that belongs to the first certificate in `certificate`. */
export function checkKey(key: string, pem: string, certificate: string): string {
  let belongs: boolean;
  try {
    belongs = new X509Certificate(certificate).checkPrivateKey(createPrivateKey(pem));
  } catch (cause) {
    throw new ConfigError({
      key,
      expected: 'a private key in PEM form without a passphrase',
      received: 'something else',
      cause,
    });
  }
  if (belongs) return pem;
  throw new ConfigError({ key, expected: 'the private key of the client certificate', received: 'that of another' });
}

function serviceAddress(host: string | undefined, port: string | undefined): string {
  const missing = host ? (port ? undefined : 'KUBERNETES_SERVICE_PORT') : 'KUBERNETES_SERVICE_HOST';
  if (missing) {
    const remedy = 'run inside a pod, or give --kubeconfig or --api-server';
    throw new ConfigError({ key: missing, expected: "the API server's address", received: 'nothing', remedy });
  }
  return parseServer('KUBERNETES_SERVICE_HOST', `https://${isIP(host as string) === 6 ? `[${host}]` : host}:${port}`);
}

function keepIdentity(next: Credentials, former: Credentials | undefined): Credentials {
  if (former === undefined) return next;
  if (isDeepStrictEqual(next, former)) return former;
  return isDeepStrictEqual(next.tls, former.tls) ? { ...next, tls: former.tls } : next;
}
