/**
 * iptables of one host, nft and legacy, both families, as commands behind `Run`: it behaves like the tools where drivers
 * can tell, refuses what they refuse, and applies all of a table or nothing. Held to that by the contract tests.
 */
import type { Command, Run } from '../../agent/kernel/command.ts';
import { KernelError } from '../../agent/kernel/errors.ts';

interface Chain {
  /** ACCEPT for built-in chains, `-` for others. */
  readonly policy: 'ACCEPT' | '-';
  /** Arguments of each rule, in the order in which iptables-save prints them. */
  readonly rules: (readonly string[])[];
}
type Table = Map<string, Chain>;

const BUILTINS: Readonly<Record<string, readonly string[]>> = {
  raw: ['PREROUTING', 'OUTPUT'],
  mangle: ['PREROUTING', 'INPUT', 'FORWARD', 'OUTPUT', 'POSTROUTING'],
  nat: ['PREROUTING', 'INPUT', 'OUTPUT', 'POSTROUTING'],
  filter: ['INPUT', 'FORWARD', 'OUTPUT'],
};
const TARGETS = new Set(['ACCEPT', 'DROP', 'RETURN', 'REJECT', 'MASQUERADE', 'CT', 'MARK', 'DNAT', 'SNAT', 'TCPMSS']);
const OPTIONS =
  /^(!|-[sdiopmjg]|--(comment|match-set|ctstate|ctproto|dport|sport|dst-type|mark|set-xmark|set-mark|notrack|random-fully|reject-with|to-destination|to-source|clamp-mss-to-pmtu|tcp-flags))$/;

export interface FakeIptablesOptions {
  /** Whether a set that a rule names exists. Without it there are no sets. */
  readonly hasSet?: (name: string) => boolean;
  /** Set to false for a host whose kernel has no IPv6. */
  readonly ipv6?: boolean;
}

export class FakeIptables {
  /** Every command that ran. */
  readonly commands: Command[] = [];
  /** By command prefix: `iptables-nft`, `ip6tables-legacy`. */
  readonly #hosts = new Map<string, Map<string, Table>>();
  readonly #options: FakeIptablesOptions;
  readonly #failures: KernelError[] = [];
  #hangs = 0;

  constructor(options: FakeIptablesOptions = {}) {
    this.#options = options;
  }

  /** The next -restore fails with this and changes nothing. */
  failNext(error: KernelError): void {
    this.#failures.push(error);
  }

  /** The next -restore does nothing until its time is over or its signal is aborted. */
  hangNext(): void {
    this.#hangs++;
  }

  /** Whether a rule of any table names this set: it cannot be destroyed then. */
  usesSet(name: string): boolean {
    const tables = [...this.#hosts.values()].flatMap((host) => [...host.values()]);
    const rules = tables.flatMap((table) => [...table.values()].flatMap((chain) => chain.rules));
    return rules.some((rule) => rule[rule.indexOf('--match-set') + 1] === name && rule.includes('--match-set'));
  }

  readonly run: Run = async (command) => {
    this.commands.push(command);
    const [, prefix, verb] = /^(ip6?tables-(?:nft|legacy))-(restore|save)$/.exec(command.file) ?? [];
    if (prefix === undefined) throw failure(command, 'ENOPKG', `not found; install the Debian package iptables`);
    if (command.signal?.aborted) throw failure(command, 'ECANCELED', 'aborted');
    if (this.#options.ipv6 === false && prefix.startsWith('ip6')) {
      throw failure(command, 'EAFNOSUPPORT', 'Address family not supported by protocol');
    }
    if (command.args.includes('--version')) return { stdout: `${prefix} v1.8.9 (fake)` };
    if (verb === 'restore') return this.#restore(prefix, command);
    for (const line of this.#save(prefix, command)) command.onLine?.(line);
    return { stdout: command.onLine ? '' : this.#save(prefix, command).join('\n') };
  };

  async #restore(prefix: string, command: Command): Promise<{ stdout: string }> {
    if (this.#hangs > 0) {
      this.#hangs--;
      await hang(command);
    }
    const injected = this.#failures.shift();
    if (injected) throw injected;
    const host = this.#host(prefix);
    let name = '';
    let table: Table = new Map();
    for (const [i, line] of (command.stdin ?? '').split('\n').entries()) {
      const refuse = (code: string, detail: string): never => {
        throw failure(command, code, `${detail}; line ${i + 1} failed`);
      };
      if (line === '' || line.startsWith('#')) continue;
      if (line.startsWith('*')) {
        name = line.slice(1);
        if (!(name in BUILTINS)) refuse('ENOPROTOOPT', `Table ${name} does not exist`);
        table = new Map(
          [...this.#table(host, name)].map(([chain, { policy, rules }]) => [chain, { policy, rules: [...rules] }]),
        );
      } else if (line === 'COMMIT') {
        if (!command.args.includes('--test')) host.set(name, table);
      } else this.#line(table, line, refuse);
    }
    return { stdout: '' };
  }

  #line(table: Table, line: string, refuse: (code: string, detail: string) => never): void {
    if (line.startsWith(':')) {
      const name = line.slice(1, line.indexOf(' '));
      const old = table.get(name);
      if (old) old.rules.length = 0;
      else table.set(name, { policy: '-', rules: [] });
      return;
    }
    const [verb, name, ...args] = split(line);
    const chain = table.get(name as string) ?? refuse('ENOENT', 'No chain/target/match by that name');
    const number = /^\d+$/.test(args[0] ?? '') ? Number(args[0]) : undefined;
    if (verb === '-A') chain.rules.push(this.#rule(table, args, refuse));
    else if (verb === '-I')
      chain.rules.splice((number ?? 1) - 1, 0, this.#rule(table, number ? args.slice(1) : args, refuse));
    else if (verb === '-F') chain.rules.length = 0;
    else if (verb === '-D') {
      const text = number ? '' : asSaved(args).join('\n');
      const at = number ? number - 1 : chain.rules.findIndex((rule) => rule.join('\n') === text);
      if (chain.rules[at] === undefined) refuse('ENOENT', 'Bad rule');
      chain.rules.splice(at, 1);
    } else if (verb === '-X') {
      const isJumpedTo = [...table.values()].some(({ rules }) => rules.some((rule) => targetOf(rule) === name));
      if (chain.rules.length > 0 || isJumpedTo) refuse('EBUSY', 'CHAIN_DEL failed (Device or resource busy)');
      table.delete(name as string);
    } else refuse('EINVAL', `unknown command ${verb}`);
  }

  #rule(table: Table, args: readonly string[], refuse: (code: string, detail: string) => never): readonly string[] {
    const saved = asSaved(args);
    const option = saved.find((arg, i) => arg.startsWith('-') && !OPTIONS.test(arg) && saved[i - 1] !== '--comment');
    if (option !== undefined) refuse('EINVAL', `unknown option "${option}"`);
    const target = targetOf(saved);
    if (target !== undefined && !TARGETS.has(target) && table.get(target)?.policy !== '-') {
      refuse('ENOENT', `Couldn't load target ${target}: No such file or directory`);
    }
    const set = saved.includes('--match-set') ? saved[saved.indexOf('--match-set') + 1] : undefined;
    if (set !== undefined && !this.#options.hasSet?.(set)) refuse('ENOENT', `Set ${set} doesn't exist`);
    return saved;
  }

  #save(prefix: string, { args }: Command): readonly string[] {
    const host = this.#host(prefix);
    const asked = args[0] === '-t' ? [args[1] as string] : [...host.keys()];
    return asked.flatMap((name) => {
      const table = [...this.#table(host, name)];
      return [
        `*${name}`,
        ...table.map(([chain, { policy }]) => `:${chain} ${policy} [0:0]`),
        ...table.flatMap(([chain, { rules }]) => rules.map((rule) => ['-A', chain, ...rule.map(quoted)].join(' '))),
        'COMMIT',
      ];
    });
  }

  #host(prefix: string): Map<string, Table> {
    const host = this.#hosts.get(prefix) ?? new Map<string, Table>();
    this.#hosts.set(prefix, host);
    return host;
  }

  #table(host: Map<string, Table>, name: string): Table {
    return host.get(name) ?? new Map((BUILTINS[name] ?? []).map((chain) => [chain, { policy: 'ACCEPT', rules: [] }]));
  }
}

const failure = ({ file, args }: Command, code: string, detail: string): KernelError =>
  new KernelError({ code, operation: 'run', object: [file, ...args].join(' '), detail });

function hang(command: Command): Promise<never> {
  return new Promise((_, reject) => {
    const late = () => reject(failure(command, 'ETIMEDOUT', `killed after ${command.timeoutMs} ms`));
    const timer = setTimeout(late, command.timeoutMs);
    command.signal?.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(failure(command, 'ECANCELED', 'aborted'));
    });
  });
}

const targetOf = (rule: readonly string[]): string | undefined => {
  const at = rule.findIndex((arg) => arg === '-j' || arg === '-g');
  return at < 0 ? undefined : rule[at + 1];
};

/** The target with its options last, and single addresses with their prefix length. */
function asSaved(args: readonly string[]): readonly string[] {
  const start = args.findIndex((arg) => arg === '-j' || arg === '-g');
  if (start < 0) return args.map(withLength);
  const length = args.slice(start).indexOf('-m');
  const end = length < 0 ? args.length : start + length;
  return [...args.slice(0, start), ...args.slice(end), ...args.slice(start, end)].map(withLength);
}

function withLength(arg: string, i: number, args: readonly string[]): string {
  const isAddress = (args[i - 1] === '-s' || args[i - 1] === '-d') && !arg.includes('/');
  return isAddress ? `${arg}/${arg.includes(':') ? 128 : 32}` : arg;
}

/** Comments are quoted when they hold more than harmless characters. */
const quoted = (arg: string, i: number, rule: readonly string[]): string =>
  rule[i - 1] === '--comment' && /[^A-Za-z0-9_./,+=-]/.test(arg) ? `"${arg}"` : arg;

/** Blanks and double quotes. */
function split(line: string): readonly string[] {
  const args: string[] = [];
  for (const [, inside, plain] of line.matchAll(/"([^"]*)"|(\S+)/g)) args.push(inside ?? (plain as string));
  return args;
}
