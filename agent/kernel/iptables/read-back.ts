/** What Tulle has in the output of iptables-save. Pure; line by line, so that a host's own rules are never held. */
import type { Family } from '../../model/ip.ts';
import type { ChainPart, Rule, Table } from '../../model/items.ts';
import { CHAIN_PREFIX, COMMENT_PREFIX } from '../../model/kernel-names.ts';
import { builtinOf, type FoundPart, jumpArgs, orderOf } from './render.ts';

/** One own chain. */
export interface FoundChain {
  readonly table: Table;
  readonly chain: string;
  /** By order string; empty when no rule of the chain carries a hash. */
  readonly parts: ReadonlyMap<string, FoundPart>;
  /** Rules of its built-in chain that jump to it, as saved. */
  readonly jumps: readonly string[];
  /** It needs none, or it is the only one, plain, and the first rule. */
  readonly isJumpRight: boolean;
  /** What differs from a chain as it is written, in words. */
  readonly drift?: string;
}

interface Building {
  readonly table: Table;
  readonly chain: string;
  readonly lines: string[];
  readonly jumps: string[];
  jumpIsFirst: boolean;
}

/** Takes the lines of one iptables-save, then gives the own chains found. */
export class ReadBack {
  readonly #family: Family;
  readonly #jumpsOnly: boolean;
  readonly #chains = new Map<string, Building>();
  /** Chains of the current table that have a rule. */
  readonly #begun = new Set<string>();
  #table: Table = 'filter';

  /** `jumpsOnly`: which own chains there are and how the built-in ones lead there, without any part. */
  constructor(family: Family, { jumpsOnly = false }: { readonly jumpsOnly?: boolean } = {}) {
    this.#family = family;
    this.#jumpsOnly = jumpsOnly;
  }

  line(line: string): void {
    if (line.startsWith('-A ')) this.#rule(line);
    else if (line.startsWith('*')) {
      this.#table = line.slice(1).trim() as Table;
      this.#begun.clear();
    } else if (line.startsWith(`:${CHAIN_PREFIX}`)) this.#building(firstWord(line.slice(1)));
  }

  chains(): readonly FoundChain[] {
    return [...this.#chains.values()].map((chain) => finish(this.#family, chain));
  }

  #rule(line: string): void {
    if (this.#jumpsOnly && line.startsWith(CHAIN_PREFIX, 3)) return;
    const chain = firstWord(line.slice(3));
    const isFirst = !this.#begun.has(chain);
    if (isFirst) this.#begun.add(chain);
    if (chain.startsWith(CHAIN_PREFIX)) return void this.#building(chain).lines.push(line);
    const own = CHAIN_PREFIX + chain;
    // The cheap test first: nearly every rule of a host is somebody else's.
    if (!line.includes(own) || builtinOf(own) === undefined) return;
    const args = tokens(line).slice(2);
    const target = args[args.findLastIndex((token) => token === '-j' || token === '-g') + 1];
    if (target !== own) return;
    const building = this.#building(own);
    building.jumps.push(line);
    if (isFirst) building.jumpIsFirst = args.join('\n') === jumpArgs(own).join('\n');
  }

  #building(chain: string): Building {
    const id = `${this.#table} ${chain}`;
    let building = this.#chains.get(id);
    if (!building) {
      building = { table: this.#table, chain, lines: [], jumps: [], jumpIsFirst: false };
      this.#chains.set(id, building);
    }
    return building;
  }
}

const firstWord = (text: string): string => text.split(' ', 1)[0] as string;

function finish(family: Family, { table, chain, lines, jumps, jumpIsFirst }: Building): FoundChain {
  const orders = lines.map(orderOf);
  const byPart = Map.groupBy(lines, (_, i) => orders[i]);
  const jumpDrift = jumpDriftOf(chain, jumps, jumpIsFirst);
  const drift = orderDriftOf(orders) ?? jumpDrift;
  const parts = new Map<string, FoundPart>();
  for (const [order, own] of byPart) {
    if (order !== undefined) parts.set(order, foundPart({ family, table, chain, order }, own, drift));
  }
  return { table, chain, parts, jumps, isJumpRight: jumpDrift === undefined, ...(drift !== undefined && { drift }) };
}

/** Its rules are read when somebody asks: there may be a hundred thousand, and nearly always their text is enough. */
function foundPart(identity: Omit<ChainPart, 'rules'>, lines: readonly string[], drift: string | undefined): FoundPart {
  return Object.freeze({
    ...identity,
    get rules() {
      return lines.map(readRule);
    },
    lines,
    ...(drift !== undefined && { drift }),
  });
}

/** What is wrong between the parts. What is wrong within one shows in its hashes. */
function orderDriftOf(orders: readonly (string | undefined)[]): string | undefined {
  if (orders.includes(undefined)) return 'a rule that is not of Tulle';
  const known = orders as readonly string[];
  return known.some((order, i) => i > 0 && order < (known[i - 1] as string)) ? 'rules out of order' : undefined;
}

function jumpDriftOf(chain: string, jumps: readonly string[], jumpIsFirst: boolean): string | undefined {
  const builtin = builtinOf(chain);
  if (builtin === undefined) return undefined;
  if (jumps.length === 0) return `no jump from ${builtin}`;
  if (jumps.length > 1) return `${jumps.length} jumps from ${builtin}`;
  return jumpIsFirst ? undefined : `the jump is not the first rule of ${builtin}`;
}

/** For people: the rule without its comment match, and why it exists. */
function readRule(line: string): Rule {
  const all = tokens(line).slice(2);
  const at = all.indexOf('--comment');
  const args = at < 0 ? all : all.filter((_, i) => i < at - 2 || i > at + 1);
  const [, , ...why] = (all[at + 1] ?? '').slice(COMMENT_PREFIX.length).split(' ');
  return { args, comment: why.join(' ') };
}

/** Splits as iptables-restore does: blanks, double quotes, backslash inside these. */
export function tokens(line: string): readonly string[] {
  return [...line.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g)].map(
    ([, quoted, plain]) => quoted?.replace(/\\(.)/g, '$1') ?? (plain as string),
  );
}

/** A key for an own chain in which no part can be told: what is found of it is only there to be removed. */
export const strayPart = (family: Family, { table, chain }: FoundChain): ChainPart => ({
  family,
  table,
  chain,
  order: '',
  rules: [],
});
