/** Certificates for tests, good and bad, made by openssl in a folder that goes with the test. */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { execa } from 'execa';

export interface KeyPair {
  /** PEM, and the files that hold it. */
  readonly certificate: string;
  readonly key: string;
  readonly certificateFile: string;
  readonly keyFile: string;
}

export interface IssueOptions {
  readonly commonName?: string;
  /** `IP:127.0.0.1`, `DNS:localhost`. */
  readonly names?: readonly string[];
  /** Days from now until the end; negative for one that has expired. */
  readonly days?: number;
}

export interface Authority extends KeyPair {
  issue(name: string, options?: IssueOptions): Promise<KeyPair>;
}

/** A certificate authority of the test's own. */
export async function createAuthority(t: ExecutionContext, commonName = 'test authority'): Promise<Authority> {
  const folder = await mkdtemp(join(tmpdir(), 'tulle-test-pki-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
  const file = (name: string) => join(folder, name);
  await execa('openssl', [
    'req',
    '-x509',
    ...newKey,
    '-keyout',
    file('ca.key'),
    '-out',
    file('ca.crt'),
    '-days',
    '30',
    '-subj',
    `/CN=${commonName}`,
  ]);
  const issue = async (name: string, { commonName: subject = name, names = [], days = 30 }: IssueOptions = {}) => {
    const [key, csr, crt, extensions] = ['key', 'csr', 'crt', 'ext'].map((suffix) => file(`${name}.${suffix}`)) as [
      string,
      string,
      string,
      string,
    ];
    await writeFile(extensions, names.length > 0 ? `subjectAltName=${names.join(',')}\n` : '');
    await execa('openssl', ['req', ...newKey, '-keyout', key, '-out', csr, '-subj', `/CN=${subject}`]);
    const signing = ['-CA', file('ca.crt'), '-CAkey', file('ca.key'), '-CAcreateserial', '-extfile', extensions];
    await execa('openssl', ['x509', '-req', '-in', csr, '-out', crt, '-days', String(days), ...signing]);
    return readPair(crt, key);
  };
  return { ...(await readPair(file('ca.crt'), file('ca.key'))), issue };
}

async function readPair(certificateFile: string, keyFile: string): Promise<KeyPair> {
  const [certificate, key] = await Promise.all([readFile(certificateFile, 'utf8'), readFile(keyFile, 'utf8')]);
  return { certificate, key, certificateFile, keyFile };
}
