/** What sysctls were before Tulle wrote them, and what else the kernel changed in them by itself. */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { isNotFound, KernelError } from '../errors.ts';
import { isSysctlPath, type SysctlFiles } from './files.ts';

interface Former {
  readonly value: string;
  /** Other files that the kernel writes along with this one, and what they were. */
  readonly sideEffects: Readonly<Record<string, string>>;
}

/**
 * Kept in a JSON file below the run directory: a reboot forgets it and the kernel's values alike. A file that cannot be
 * read is as good as none: the values of now become the former ones.
 */
export class FormerValues {
  readonly #files: SysctlFiles;
  readonly #stateFile: string;
  readonly #former: Map<string, Former>;

  constructor(files: SysctlFiles, stateFile: string) {
    this.#files = files;
    this.#stateFile = stateFile;
    this.#former = readState(stateFile);
  }

  has(path: string): boolean {
    return this.#former.has(path);
  }

  valueOf(path: string): string | undefined {
    return this.#former.get(path)?.value;
  }

  paths(): Iterable<string> {
    return this.#former.keys();
  }

  /** Before the first write: a crash in between must not take Tulle's value for the former one. Throws KernelError. */
  remember(path: string): void {
    if (this.#former.has(path)) return;
    const value = this.#files.read(path);
    if (value === undefined) throw new KernelError({ code: 'ENOENT', operation: 'write', object: `sysctl ${path}` });
    this.#former.set(path, { value, sideEffects: readSideEffects(path, value, this.#files) });
    try {
      this.#save();
    } catch (error) {
      // The next attempt has to save it, too, and not to find it remembered.
      this.#former.delete(path);
      throw error;
    }
  }

  /** Writes back what was before, and forgets it. Throws KernelError. */
  restore(path: string): void {
    const former = this.#former.get(path);
    if (!former) return;
    this.#write(path, former.value);
    for (const [other, value] of Object.entries(former.sideEffects)) this.#write(other, value);
    this.#former.delete(path);
    this.#save();
  }

  #write(path: string, value: string): void {
    try {
      this.#files.write(path, value);
    } catch (error) {
      // The link that the file belonged to is gone, and its settings with it.
      if (!isNotFound(error)) throw error;
    }
  }

  #save(): void {
    const file = this.#stateFile;
    try {
      writeFileSync(`${file}.new`, JSON.stringify(Object.fromEntries(this.#former)), { mode: 0o600 });
      renameSync(`${file}.new`, file);
    } catch (cause) {
      const code = (cause as NodeJS.ErrnoException).code ?? 'EIO';
      throw new KernelError({ code, operation: 'save', object: `former sysctl values in ${file}`, cause });
    }
  }
}

/**
 * Switching forwarding for all links writes that of every link, and in IPv4 `accept_redirects` of all
 * (net/ipv4/devinet.c, inet_forward_change; net/ipv6/addrconf.c, addrconf_forward_change): switching it back does not
 * bring back what differed.
 */
const SIDE_EFFECTS: ReadonlyMap<string, { readonly links: string; readonly others: readonly string[] }> = new Map([
  ['net/ipv4/ip_forward', { links: 'net/ipv4/conf', others: ['net/ipv4/conf/all/accept_redirects'] }],
  ['net/ipv6/conf/all/forwarding', { links: 'net/ipv6/conf', others: [] }],
]);

function readSideEffects(path: string, value: string, files: SysctlFiles): Record<string, string> {
  const { links, others } = SIDE_EFFECTS.get(path) ?? { links: undefined, others: [] };
  const names = links === undefined ? [] : files.names(links).filter((name) => name !== 'all');
  const found: Record<string, string> = {};
  for (const name of names) {
    const other = `${links}/${name}/forwarding`;
    const text = files.read(other);
    if (text !== undefined && text !== value) found[other] = text;
  }
  for (const other of others) {
    const text = files.read(other);
    if (text !== undefined) found[other] = text;
  }
  return found;
}

function readState(file: string): Map<string, Former> {
  try {
    const entries = Object.entries(JSON.parse(readFileSync(file, 'utf8')) as Record<string, Former>);
    return new Map(entries.filter(([path, former]) => isSysctlPath(path) && isFormer(former)));
  } catch {
    return new Map();
  }
}

const isFormer = ({ value, sideEffects }: Former): boolean =>
  typeof value === 'string' &&
  Object.entries(sideEffects).every(([path, text]) => isSysctlPath(path) && typeof text === 'string');
