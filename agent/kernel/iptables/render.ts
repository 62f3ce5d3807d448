/**
 * Chain parts as text for `iptables-restore --noflush`. Pure. The only place where text becomes a rule: every token is
 * checked and every comment is reduced to harmless characters, so that nothing in it can end a rule or begin another.
 *
 * Every rule's comment is `tulle:<hash> <order> <why>`. The hash covers table, chain, order, the rule and the hash of
 * the rule before it in the same part, so a part's list of hashes tells whether a rule of it was altered, removed,
 * inserted or moved. The order says which part a rule belongs to, so that a fresh process finds the parts again and can
 * rewrite one without knowing what the others were made of. A part without rules leaves one rule that does nothing.
 */
import { parseCidr, parseIp } from '../../model/ip.ts';
import type { ChainPart, Rule, Table } from '../../model/items.ts';
import { CHAIN_PREFIX, COMMENT_PREFIX, hash } from '../../model/kernel-names.ts';
import { KernelError } from '../errors.ts';

/** iptables-nft refuses longer ones when it stores comments natively (NFTNL_UDATA_COMMENT_MAXLEN, with the NUL). */
const COMMENT_MAX = 127;
const HASH_DIGITS = 16;
const ORDER = /^[A-Za-z0-9./:_-]{1,48}$/;
const CHAIN = new RegExp(`^${CHAIN_PREFIX}[A-Za-z0-9._-]{1,22}$`);
/** Brackets stand around an IPv6 address before a port, never at the beginning of a line. */
const TOKEN = /^[A-Za-z0-9._:/,!+[\]-]+$/;
/** A list or a host name after these makes iptables write several rules. */
const ONE_ADDRESS = new Set(['-s', '--source', '--src', '-d', '--destination', '--dst']);

export const BUILTIN_CHAINS: ReadonlySet<string> = new Set(['PREROUTING', 'INPUT', 'FORWARD', 'OUTPUT', 'POSTROUTING']);

/** The built-in chain that jumps to this own chain, or undefined for one that only own rules jump to. */
export function builtinOf(chain: string): string | undefined {
  const name = chain.slice(CHAIN_PREFIX.length);
  return chain.startsWith(CHAIN_PREFIX) && BUILTIN_CHAINS.has(name) ? name : undefined;
}

/**
 * The arguments of the one jump, as iptables-save shows them. Its target tells whose it is; a comment would be evaluated for
 * every packet of the host (iptables-nft 1.8.9, like legacy, has it as a match).
 */
export const jumpArgs = (chain: string): readonly string[] => ['-j', chain];

/** A part as it was found in the kernel: its rules exactly as iptables-save wrote them. */
export interface FoundPart extends ChainPart {
  /** `-A CHAIN …`, one a rule. */
  readonly lines: readonly string[];
  /** What is wrong with the chain around the part, in words; a part with this equals nothing. */
  readonly drift?: string;
}

const isFound = (part: ChainPart): part is FoundPart => 'lines' in part;

const rendered = new WeakMap<ChainPart, readonly string[]>();

/** A part's rules as `-A CHAIN …` lines. Throws KernelError EINVAL that names chain and token. */
export function linesOf(part: ChainPart): readonly string[] {
  if (isFound(part)) return part.lines;
  let lines = rendered.get(part);
  if (!lines) {
    lines = renderLines(part);
    rendered.set(part, lines);
  }
  return lines;
}

function renderLines(part: ChainPart): readonly string[] {
  const { family, table, chain, order, rules } = part;
  if (!CHAIN.test(chain)) throw refused(part, `chain name ${CHAIN}`, chain);
  if (!ORDER.test(order)) throw refused(part, `order ${ORDER}`, order);
  let previous = `${family} ${table} ${chain} ${order}`;
  const empty: Rule = { args: [], comment: 'empty' };
  return (rules.length === 0 ? [empty] : rules).map((rule) => {
    if (rule !== empty) checkArgs(part, rule);
    previous = hash([previous, ...rule.args, rule.comment].join('\n'), HASH_DIGITS);
    const comment = ['-m', 'comment', '--comment', `"${renderComment(previous, order, rule.comment)}"`];
    // After the rule's own matches, so that only packets which pass these pay for the comment; before the target, as
    // iptables-save words it.
    const target = rule.args.findIndex((arg) => arg === '-j' || arg === '-g');
    const at = target < 0 ? rule.args.length : target;
    return ['-A', chain, ...rule.args.slice(0, at), ...comment, ...rule.args.slice(at)].join(' ');
  });
}

/** Characters other than [A-Za-z0-9./:_-] become `_`; what is too long is cut. */
function renderComment(ruleHash: string, order: string, why: string): string {
  const safe = why.slice(0, COMMENT_MAX).replace(/[^A-Za-z0-9./:_-]/g, '_');
  return `${COMMENT_PREFIX}${ruleHash} ${order} ${safe}`.slice(0, COMMENT_MAX).trimEnd();
}

function checkArgs(part: ChainPart, { args }: Rule): void {
  if (args.length === 0) throw refused(part, 'at least one argument a rule', 'none');
  for (const [i, token] of args.entries()) {
    if (!TOKEN.test(token)) throw refused(part, `an argument ${TOKEN}`, token);
    if (!ONE_ADDRESS.has(token)) continue;
    const address = args[i + 1] ?? '';
    if (!parseIp(address) && !parseCidr(address) && !isMasked(address))
      throw refused(part, `one address after ${token}`, address);
  }
}

/** `0.0.0.5/0.0.0.15`: some bits of an address, wherever they stand. */
const isMasked = (text: string): boolean => {
  const [address = '', mask = '', ...rest] = text.split('/');
  return rest.length === 0 && parseIp(address) !== undefined && parseIp(mask) !== undefined;
};

const refused = (part: ChainPart, expected: string, received: string): KernelError =>
  new KernelError({
    code: 'EINVAL',
    operation: 'render',
    object: objectName(part),
    detail: `expected ${expected}, got ${JSON.stringify(received)}`,
  });

export const objectName = ({ family, table, chain, order }: ChainPart): string =>
  `${family} ${table} ${chain} part ${order}`;

/** The hash in a rule's comment, wherever it stands in the line. */
export const hashOf = (line: string): string | undefined => COMMENT.exec(line)?.[1];
/** The part that a rule belongs to, by its comment; undefined without a hash. */
export const orderOf = (line: string): string | undefined => COMMENT.exec(line)?.[2];
const COMMENT = new RegExp(`--comment "?${COMMENT_PREFIX}([0-9a-f]{${HASH_DIGITS}}) ([^ "\\\\]+)`);

/** What one iptables-restore run shall make of a table. */
export interface TableChange {
  readonly table: Table;
  /** Own chains with all their parts; a chain without parts is deleted. Nothing else is touched. */
  readonly chains: ReadonlyMap<string, readonly ChainPart[]>;
  /** Rules of built-in chains to delete, as iptables-save shows them (`-A …`). */
  readonly deletedJumps: readonly string[];
  /** Own chains that get a jump as the first rule of their built-in chain. */
  readonly insertedJumps: readonly string[];
}

export function renderTable({ table, chains, deletedJumps, insertedJumps }: TableChange): string {
  const names = [...chains.keys()];
  const sorted = [...chains.values()].flatMap((parts) => [...parts].sort(byOrder));
  const lines = [
    `*${table}`,
    // Makes the chain, or empties it.
    ...names.map((chain) => `:${chain} - [0:0]`),
    ...deletedJumps.map((line) => line.replace(/^-A/, '-D')),
    ...insertedJumps.map((chain) => ['-I', builtinOf(chain), '1', ...jumpArgs(chain)].join(' ')),
    ...sorted.flatMap(linesOf),
    ...names.filter((chain) => chains.get(chain)?.length === 0).map((chain) => `-X ${chain}`),
    'COMMIT',
  ];
  return `${lines.join('\n')}\n`;
}

export const byOrder = (a: ChainPart, b: ChainPart): number => (a.order < b.order ? -1 : a.order > b.order ? 1 : 0);
