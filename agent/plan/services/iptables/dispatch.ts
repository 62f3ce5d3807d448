/**
 * How a packet finds the chain of its Service. iptables knows no maps, so the search is a tree: two levels of four bits of
 * the address each, sixteen branches a level; ports from 30000 on, of which a node's one address may have thousands, by the
 * upper eight bits of the port. A leaf is searched line by line: one Service of 5,000 is some forty rules away, not
 * thousands, and a change of one rewrites its leaf only. Branches are shared fragments, in effect while a Service is there.
 *
 * Which leaf a port of an address belongs to follows from these alone, so that two Services that claim it claim one key.
 */
import type { Fragment, FragmentId } from '../../../model/fragment.ts';
import { bytesOf, FAMILIES, type Family, familyOf, type IpAddress, ipFromBytes } from '../../../model/ip.ts';
import { type ChainPart, item, type Key, keyOf } from '../../../model/items.ts';
import { CHAIN_PREFIX } from '../../../model/kernel-names.ts';
import type { Protocol } from '../../../model/services.ts';
import { baseId, SERVICES_CHAIN } from './base.ts';

/** What a client names. */
export interface Place {
  readonly ip: IpAddress;
  readonly port: number;
  readonly protocol: Protocol;
}

/** A chain of the tree, and how one comes there. */
export interface Branch {
  readonly id: FragmentId;
  readonly chain: string;
  readonly fragments: readonly Fragment[];
}

const TREE_PREFIX = `${CHAIN_PREFIX}SVCS-`;
/** First of the node ports, by default (kube-apiserver, service-node-port-range). */
const FIRST_NODE_PORT = 30_000;
const PORT_BITS = 8;
/** First in its chain, so that the chain is there before anything else is. */
const ANCHOR = '00';

const branches = new Map<string, Branch>();

/** The leaf of a place. The same object for the same leaf. */
export function leafOf(place: Place): Branch {
  const family = familyOf(place.ip);
  const name = place.port < FIRST_NODE_PORT ? lastByte(place.ip) : portName(place);
  const key = `${family} ${name}`;
  const known = branches.get(key);
  if (known) return known;
  const made = typeof name === 'number' ? addressLeaf(family, name) : portLeaf(family, place, name);
  branches.set(key, made);
  return made;
}

const lastByte = (ip: IpAddress): number => bytesOf(ip).at(-1) as number;
const portName = ({ port, protocol }: Place): string => `${protocol[0]}${(port >> PORT_BITS).toString(16)}`;

/** Ports come before addresses, and what is not found among them goes on; what is not found in a leaf of addresses is lost. */
function portLeaf(family: Family, { port, protocol }: Place, name: string): Branch {
  const first = (port >> PORT_BITS) << PORT_BITS;
  const match = ['-p', protocol.toLowerCase(), '--dport', `${first}:${first + (1 << PORT_BITS) - 1}`, '-j'];
  return branch({ family, name, from: SERVICES_CHAIN, order: `10-${name}`, match });
}

function addressLeaf(family: Family, byte: number): Branch {
  const low = byte & 0x0f;
  const stem = branch({
    family,
    name: low.toString(16),
    from: SERVICES_CHAIN,
    order: `20-${low.toString(16)}`,
    match: ['-d', masked(family, low, 0x0f), '-g'],
  });
  const name = byte.toString(16).padStart(2, '0');
  const match = ['-d', masked(family, byte & 0xf0, 0xf0), '-g'];
  return branch({ family, name, from: stem.chain, order: `20-${name}`, match }, stem);
}

/** Bits of the last byte of an address, as iptables-save words them. */
function masked(family: Family, value: number, mask: number): string {
  const address = (last: number) => {
    const bytes = new Uint8Array(FAMILIES[family].bits / 8);
    bytes[bytes.length - 1] = last;
    return ipFromBytes(bytes);
  };
  return `${address(value)}/${address(mask)}`;
}

interface BranchSpec {
  readonly family: Family;
  readonly name: string;
  /** The chain that leads here, with the matches and the kind of jump. */
  readonly from: string;
  readonly order: string;
  readonly match: readonly string[];
}

function branch({ family, name, from, order, match }: BranchSpec, stem?: Branch): Branch {
  const chain = `${TREE_PREFIX}${name}`;
  const id = `services ${family} ${name}`;
  const part = (fields: Pick<ChainPart, 'chain' | 'order' | 'rules'>): ChainPart => ({
    family,
    table: 'nat',
    ...fields,
  });
  const anchor = item('chain-part', part({ chain, order: ANCHOR, rules: [] }));
  const jump = item(
    'chain-part',
    part({ chain: from, order, rules: [{ args: [...match, chain], comment: 'search' }] }),
    [anchor.key, anchorKey(family, from)],
  );
  const fragment: Fragment = {
    id,
    cause: 'services',
    rank: '',
    items: [jump, anchor],
    requires: [stem?.id ?? baseId(family)],
    shared: true,
    problems: [],
  };
  return { id, chain, fragments: [...(stem?.fragments ?? []), fragment] };
}

const anchorKey = (family: Family, chain: string): Key =>
  keyOf('chain-part', { family, table: 'nat', chain, order: ANCHOR, rules: [] });
