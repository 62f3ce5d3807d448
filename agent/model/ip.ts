/**
 * IP addresses, CIDRs and families as branded canonical text: parsed once at the edge, after which equality, Map keys,
 * sorting and logs are free. The text form is RFC 5952 for IPv6 and dotted decimal without leading zeros for IPv4.
 */

export type Family = 'ipv4' | 'ipv6';

declare const brand: unique symbol;
export type IpAddress = string & { readonly [brand]: 'IpAddress' };
/** Network address and prefix length; host bits are always zero. */
export type Cidr = string & { readonly [brand]: 'Cidr' };

/** What differs between the two families, as data. */
export interface FamilyFacts {
  readonly family: Family;
  /** Length of an address in bits. */
  readonly bits: 32 | 128;
  /** AF_INET or AF_INET6 (linux/socket.h). */
  readonly addressFamily: 2 | 10;
  /** The suffix of names that exist once a family (sets): 4 or 6. */
  readonly digit: '4' | '6';
  /** `iptables` command prefix, followed by `-restore`, `-save`. */
  readonly iptables: 'iptables' | 'ip6tables';
  /** The word that ipset uses for the family. */
  readonly setFamily: 'inet' | 'inet6';
  /** The part of a sysctl path below `net/`. */
  readonly sysctl: 'ipv4' | 'ipv6';
  /** Multicast, never masqueraded (RFC 5771, RFC 4291 section 2.7). */
  readonly multicast: Cidr;
  /** Of an IP packet without options or extension headers (RFC 791, RFC 8200). */
  readonly headerBytes: number;
  /** Outer Ethernet + IP + UDP + VXLAN headers, in bytes, when the tunnel runs over this family (RFC 7348 section 5). */
  readonly vxlanOverheadBytes: number;
  /** The least MTU with which the family works (RFC 791, RFC 8200 section 5). */
  readonly minimumMtuBytes: number;
}

export const FAMILIES = {
  ipv4: {
    family: 'ipv4',
    bits: 32,
    addressFamily: 2,
    digit: '4',
    iptables: 'iptables',
    setFamily: 'inet',
    sysctl: 'ipv4',
    multicast: '224.0.0.0/4' as Cidr,
    headerBytes: 20,
    vxlanOverheadBytes: 50,
    minimumMtuBytes: 576,
  },
  ipv6: {
    family: 'ipv6',
    bits: 128,
    addressFamily: 10,
    digit: '6',
    iptables: 'ip6tables',
    setFamily: 'inet6',
    sysctl: 'ipv6',
    multicast: 'ff00::/8' as Cidr,
    headerBytes: 40,
    vxlanOverheadBytes: 70,
    minimumMtuBytes: 1280,
  },
} as const satisfies Record<Family, FamilyFacts>;

export const families: readonly FamilyFacts[] = Object.freeze([FAMILIES.ipv4, FAMILIES.ipv6]);

/** The family of a canonical address or CIDR. */
export const familyOf = (value: IpAddress | Cidr): Family => (value.includes(':') ? 'ipv6' : 'ipv4');

export const factsOf = (value: IpAddress | Cidr): FamilyFacts => FAMILIES[familyOf(value)];

/** Canonical address, or undefined for anything that is not one (zones, leading zeros and blanks included). */
export function parseIp(text: string): IpAddress | undefined {
  const bytes = text.includes(':') ? parseIpv6Bytes(text) : parseIpv4Bytes(text);
  return bytes && ipFromBytes(bytes);
}

/**
 * Canonical CIDR. Host bits are cleared, as the API server and `ip route` do; `strict` refuses them instead.
 * Undefined for anything else.
 */
export function parseCidr(text: string, { strict = false } = {}): Cidr | undefined {
  const slash = text.indexOf('/');
  if (slash < 0) return undefined;
  const address = parseIp(text.slice(0, slash));
  const lengthText = text.slice(slash + 1);
  if (address === undefined || !/^(0|[1-9]\d{0,2})$/.test(lengthText)) return undefined;
  const prefixLength = Number(lengthText);
  if (prefixLength > factsOf(address).bits) return undefined;
  const cidr = cidrOf(address, prefixLength);
  return strict && networkOf(cidr) !== address ? undefined : cidr;
}

/** The CIDR of this prefix length that contains the address. Throws RangeError for a length that the family has not. */
export function cidrOf(address: IpAddress, prefixLength: number): Cidr {
  const bytes = bytesOf(address);
  if (!Number.isInteger(prefixLength) || prefixLength < 0 || prefixLength > 8 * bytes.length) {
    throw new RangeError(`${address} has no prefix of length ${prefixLength}`);
  }
  for (let i = 0; i < bytes.length; i++) bytes[i] = (bytes[i] as number) & maskAt(i, prefixLength);
  return `${ipFromBytes(bytes)}/${prefixLength}` as Cidr;
}

/** The bits of byte `index` of an address that are part of a prefix. */
const maskAt = (index: number, prefixLength: number): number =>
  (0xff << (8 - Math.max(0, Math.min(8, prefixLength - 8 * index)))) & 0xff;

/** The /32 or /128 of one address. */
export const hostCidr = (address: IpAddress): Cidr => `${address}/${factsOf(address).bits}` as Cidr;

export const networkOf = (cidr: Cidr): IpAddress => cidr.slice(0, cidr.indexOf('/')) as IpAddress;

export const prefixLengthOf = (cidr: Cidr): number => Number(cidr.slice(cidr.indexOf('/') + 1));

/** How many addresses a CIDR holds, network and broadcast included. */
export const sizeOf = (cidr: Cidr): bigint => 1n << BigInt(factsOf(cidr).bits - prefixLengthOf(cidr));

/** The address `offset` after the network address. Throws RangeError outside the CIDR. */
export function addressAt(cidr: Cidr, offset: bigint | number): IpAddress {
  const n = BigInt(offset);
  if (n < 0n || n >= sizeOf(cidr)) throw new RangeError(`${cidr} has no address at offset ${n}`);
  return ipFromBits(bitsOf(networkOf(cidr)) + n, familyOf(cidr));
}

/** The place of an address in a CIDR, the inverse of addressAt; undefined outside it. */
export function offsetIn(cidr: Cidr, address: IpAddress): bigint | undefined {
  if (familyOf(cidr) !== familyOf(address)) return undefined;
  const offset = bitsOf(address) - bitsOf(networkOf(cidr));
  return offset >= 0n && offset < sizeOf(cidr) ? offset : undefined;
}

export function containsIp(cidr: Cidr, address: IpAddress): boolean {
  if (familyOf(cidr) !== familyOf(address)) return false;
  const prefixLength = prefixLengthOf(cidr);
  const network = bytesOf(networkOf(cidr));
  return bytesOf(address).every((byte, i) => ((byte ^ (network[i] as number)) & maskAt(i, prefixLength)) === 0);
}

export function containsCidr(outer: Cidr, inner: Cidr): boolean {
  return prefixLengthOf(outer) <= prefixLengthOf(inner) && containsIp(outer, networkOf(inner));
}

export const overlaps = (a: Cidr, b: Cidr): boolean => containsCidr(a, b) || containsCidr(b, a);

/** Canonical text of addresses that are no host's of their own (RFC 6890, RFC 4291), and what they are called. */
const SPECIAL: readonly (readonly [text: RegExp, name: string])[] = [
  [/^(0\.|::$)/, 'unspecified'],
  [/^(127\.|::1$)/, 'loopback'],
  [/^(169\.254\.|fe[89ab][0-9a-f]:)/, 'link-local'],
  [/^(22[4-9]\.|23\d\.|ff[0-9a-f]{2}:)/, 'multicast'],
  [/^255\.255\.255\.255$/, 'broadcast'],
  [/^::ffff:\d+\./, 'IPv4-mapped'],
];

/** What keeps an address from being that of some host which others reach, in a word: `loopback`. Undefined: nothing. */
export const specialUse = (address: IpAddress): string | undefined => SPECIAL.find(([text]) => text.test(address))?.[1];

/** The inclusive range of a CIDR as numbers, for sorting and sweeps. */
export function rangeOf(cidr: Cidr): { first: bigint; last: bigint } {
  const first = bitsOf(networkOf(cidr));
  return { first, last: first + sizeOf(cidr) - 1n };
}

/** Network byte order, 4 or 16 bytes, newly allocated. */
export function bytesOf(address: IpAddress): Uint8Array {
  const bytes = address.includes(':') ? parseIpv6Bytes(address) : parseIpv4Bytes(address);
  if (!bytes) throw new TypeError(`not a canonical address: ${address}`);
  return bytes;
}

/** 4 or 16 bytes in network byte order. Throws TypeError on any other length. */
export function ipFromBytes(bytes: Uint8Array): IpAddress {
  if (bytes.length === 4) return bytes.join('.') as IpAddress;
  if (bytes.length === 16) return formatIpv6(bytes) as IpAddress;
  throw new TypeError(`an address has 4 or 16 bytes, got ${bytes.length}`);
}

/** The address as a number, for sorting and ranges. */
export function bitsOf(address: IpAddress): bigint {
  let bits = 0n;
  for (const byte of bytesOf(address)) bits = (bits << 8n) | BigInt(byte);
  return bits;
}

function ipFromBits(bits: bigint, family: Family): IpAddress {
  const bytes = new Uint8Array(FAMILIES[family].bits / 8);
  let rest = bits;
  for (let i = bytes.length - 1; i >= 0; i--) {
    bytes[i] = Number(rest & 0xffn);
    rest >>= 8n;
  }
  return ipFromBytes(bytes);
}

/** Digit by digit: there are hundreds of thousands of addresses among many Services. */
function parseIpv4Bytes(text: string): Uint8Array | undefined {
  const bytes = new Uint8Array(4);
  let at = 0;
  for (let i = 0; i < 4; i++) {
    if (i > 0 && text.charCodeAt(at++) !== DOT) return undefined;
    const start = at;
    let value = 0;
    for (let digit = digitAt(text, at); digit >= 0; digit = digitAt(text, ++at)) value = 10 * value + digit;
    const digits = at - start;
    const isCanonical = digits === 1 || (digits > 1 && digits < 4 && text.charCodeAt(start) !== ZERO);
    if (!isCanonical || value > 255) return undefined;
    bytes[i] = value;
  }
  return at === text.length ? bytes : undefined;
}

const [DOT, ZERO] = [0x2e, 0x30];

/** Negative for what is no digit. */
function digitAt(text: string, at: number): number {
  const digit = text.charCodeAt(at) - ZERO;
  return digit <= 9 ? digit : -1;
}

function parseIpv6Bytes(text: string): Uint8Array | undefined {
  const halves = text.split('::');
  if (halves.length > 2) return undefined;
  const head = parseGroups(halves[0] as string, halves.length === 1);
  const tail = halves.length === 2 ? parseGroups(halves[1] as string, true) : [];
  if (!head || !tail) return undefined;
  const missing = 16 - head.length - tail.length;
  if (halves.length === 2 ? missing < 2 : missing !== 0) return undefined;
  return Uint8Array.from([...head, ...new Array<number>(missing).fill(0), ...tail]);
}

/** Bytes of colon-separated groups; the last one may be a dotted IPv4 address (RFC 4291 section 2.2). */
function parseGroups(text: string, mayEndInIpv4: boolean): number[] | undefined {
  if (text === '') return [];
  const groups = text.split(':');
  const bytes: number[] = [];
  for (const [i, group] of groups.entries()) {
    if (/^[0-9a-fA-F]{1,4}$/.test(group)) {
      const value = Number.parseInt(group, 16);
      bytes.push(value >> 8, value & 0xff);
      continue;
    }
    const ipv4 = mayEndInIpv4 && i === groups.length - 1 ? parseIpv4Bytes(group) : undefined;
    if (!ipv4) return undefined;
    bytes.push(...ipv4);
  }
  return bytes;
}

/** RFC 5952: lower case, the longest run of two or more zero groups (the first of equals) shortened. */
function formatIpv6(bytes: Uint8Array): string {
  const groups: number[] = [];
  for (let i = 0; i < 16; i += 2) groups.push(((bytes[i] as number) << 8) | (bytes[i + 1] as number));
  if (groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff) {
    return `::ffff:${bytes.subarray(12).join('.')}`;
  }
  const { start, length } = longestZeroRun(groups);
  const text = (part: readonly number[]) => part.map((group) => group.toString(16)).join(':');
  if (length < 2) return text(groups);
  return `${text(groups.slice(0, start))}::${text(groups.slice(start + length))}`;
}

function longestZeroRun(groups: readonly number[]): { start: number; length: number } {
  let best = { start: 0, length: 0 };
  let start = 0;
  for (let i = 0; i <= groups.length; i++) {
    if (groups[i] === 0) continue;
    if (i - start > best.length) best = { start, length: i - start };
    start = i + 1;
  }
  return best;
}
