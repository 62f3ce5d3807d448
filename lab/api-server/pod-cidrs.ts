/** Gives pod CIDRs to Nodes that have none, as kube-controller-manager does with --allocate-node-cidrs. */

import type { Logger } from 'pino';
import {
  addressAt,
  type Cidr,
  cidrOf,
  containsCidr,
  type Family,
  factsOf,
  familyOf,
  overlaps,
  parseCidr,
  prefixLengthOf,
  rangeOf,
} from '../../agent/model/ip.ts';
import type { Controller, ControllerOptions } from './controllers.ts';
import { Follower } from './follower.ts';
import { KINDS } from './kinds.ts';
import { type ApiObject, arrayAt, isJsonObject, withField } from './objects.ts';
import type { Store } from './store.ts';

const DEFAULT_PREFIX_LENGTHS: Readonly<Record<Family, number>> = { ipv4: 24, ipv6: 64 };

/** As in kube-controller-manager: more blocks than 2^16 of a cluster CIDR cannot be kept track of. */
const MAXIMUM_BLOCK_BITS = 16;

/** Equal blocks of one cluster CIDR, handed out in turn, so that a block given back rests as long as possible. */
export class CidrPool {
  readonly #cidr: Cidr;
  readonly #prefixLength: number;
  readonly #size: number;
  /** Block number to how many Nodes claim it; more than one only where Nodes brought overlapping CIDRs. */
  readonly #used = new Map<number, number>();
  #next = 0;

  /** Throws RangeError for a prefix that does not fit. */
  constructor(cidr: Cidr, prefixLength: number) {
    const blockBits = prefixLength - prefixLengthOf(cidr);
    if (blockBits < 0 || blockBits > MAXIMUM_BLOCK_BITS || prefixLength > factsOf(cidr).bits) {
      const least = prefixLengthOf(cidr);
      const most = Math.min(least + MAXIMUM_BLOCK_BITS, factsOf(cidr).bits);
      throw new RangeError(
        `cannot divide ${cidr} among nodes: expected a prefix length of ${least} to ${most}, got ${prefixLength}`,
      );
    }
    this.#cidr = cidr;
    this.#prefixLength = prefixLength;
    this.#size = 2 ** blockBits;
  }

  /** The next free block, not yet claimed; undefined when all are taken. */
  take(): Cidr | undefined {
    if (this.#used.size === this.#size) return undefined;
    while (this.#used.has(this.#next)) this.#next = (this.#next + 1) % this.#size;
    const block = this.#next;
    this.#next = (block + 1) % this.#size;
    return cidrOf(addressAt(this.#cidr, BigInt(block) << this.#blockShift), this.#prefixLength);
  }

  claim(cidr: Cidr): void {
    for (const block of this.#blocksOf(cidr)) this.#used.set(block, (this.#used.get(block) ?? 0) + 1);
  }

  release(cidr: Cidr): void {
    for (const block of this.#blocksOf(cidr)) {
      const claims = (this.#used.get(block) ?? 0) - 1;
      if (claims > 0) this.#used.set(block, claims);
      else this.#used.delete(block);
    }
  }

  get #blockShift(): bigint {
    return BigInt(factsOf(this.#cidr).bits - this.#prefixLength);
  }

  /** Numbers of the blocks that a CIDR touches; none for one from elsewhere. */
  *#blocksOf(cidr: Cidr): Iterable<number> {
    if (!overlaps(this.#cidr, cidr)) return;
    const pool = rangeOf(this.#cidr);
    // CIDRs that overlap contain one another.
    const { first, last } = containsCidr(this.#cidr, cidr) ? rangeOf(cidr) : pool;
    const end = Number((last - pool.first) >> this.#blockShift);
    for (let block = Number((first - pool.first) >> this.#blockShift); block <= end; block++) yield block;
  }
}

/** Follows the changes of Nodes, so that its cost is theirs. */
export class PodCidrController implements Controller {
  readonly watches = [KINDS.node];
  readonly #store: Store;
  readonly #log: Logger | undefined;
  readonly #pools: readonly CidrPool[];
  readonly #nodes: Follower;
  readonly #waiting = new Set<string>();

  /** Throws RangeError for cluster CIDRs that cannot be divided. */
  constructor(store: Store, options: ControllerOptions, log: Logger | undefined) {
    const { clusterCidrs, nodePrefixLengths = DEFAULT_PREFIX_LENGTHS } = options;
    this.#store = store;
    this.#log = log;
    this.#pools = clusterCidrs.map((cidr) => new CidrPool(cidr, nodePrefixLengths[familyOf(cidr)]));
    this.#nodes = new Follower(store, KINDS.node, (before, after) => this.#follow(before, after));
  }

  run(): boolean {
    this.#nodes.catchUp();
    for (const name of [...this.#waiting]) {
      this.#allocate(name);
      // What was just written is claimed before the next Node asks.
      this.#nodes.catchUp();
    }
    return false;
  }

  #follow(before: ApiObject | undefined, after: ApiObject | undefined): void {
    const former = before ? podCidrsOf(before) : [];
    const present = after ? podCidrsOf(after) : [];
    // Heartbeats change nothing here.
    if (before && after && former.join() === present.join()) return;
    for (const pool of this.#pools) {
      former.forEach((cidr) => void pool.release(cidr));
      present.forEach((cidr) => void pool.claim(cidr));
    }
    if (before) this.#waiting.delete(before.metadata.name);
    if (after && present.length === 0 && this.#pools.length > 0) this.#waiting.add(after.metadata.name);
  }

  /** All families or none: pod CIDRs cannot be added to later. */
  #allocate(name: string): void {
    const cidrs = this.#pools.map((pool) => pool.take());
    if (cidrs.includes(undefined)) {
      this.#log?.warn({ node: name }, 'no pod CIDR is left for a node');
      return;
    }
    this.#store.update(KINDS.node, { namespace: '', name }, (node) => {
      const spec = isJsonObject(node['spec']) ? node['spec'] : {};
      return withField(node, 'spec', { ...spec, podCIDR: cidrs[0], podCIDRs: cidrs });
    });
  }
}

const podCidrsOf = (node: ApiObject): readonly Cidr[] =>
  arrayAt(node, 'spec', 'podCIDRs').flatMap((text) => parseCidr(String(text)) ?? []);
