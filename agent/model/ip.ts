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
  if (!text.includes(':')) return parseIpv4Bytes(text) && (text as IpAddress);
  const bytes = parseIpv6Bytes(text);
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
  const view = new DataView(bytesOf(address).buffer);
  if (view.byteLength === 4) return BigInt(view.getUint32(0));
  return (view.getBigUint64(0) << 64n) | view.getBigUint64(8);
}

function ipFromBits(bits: bigint, family: Family): IpAddress {
  const bytes = new Uint8Array(FAMILIES[family].bits / 8);
  const view = new DataView(bytes.buffer);
  if (family === 'ipv4') view.setUint32(0, Number(bits));
  else {
    view.setBigUint64(0, bits >> 64n);
    view.setBigUint64(8, BigInt.asUintN(64, bits));
  }
  return ipFromBytes(bytes);
}

/** Digit by digit: there are hundreds of thousands of addresses among many Services. Takes nothing but canonical text. */
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

/** Colon-separated groups, one run of zeros shortened; the last two may be a dotted IPv4 address (RFC 4291 section 2.2). */
function parseIpv6Bytes(text: string): Uint8Array | undefined {
  const bytes = new Uint8Array(16);
  let gap = text.startsWith('::') ? 0 : -1;
  let filled = 0;
  for (let at = gap < 0 ? 0 : 2; at < text.length; ) {
    const start = at;
    let value = 0;
    for (let digit = hexDigitAt(text, at); digit >= 0 && at - start < 4; digit = hexDigitAt(text, ++at))
      value = (value << 4) | digit;
    if (text.charCodeAt(at) === DOT) {
      const tail = filled <= 12 ? parseIpv4Bytes(text.slice(start)) : undefined;
      if (!tail) return undefined;
      bytes.set(tail, filled);
      filled += 4;
      break;
    }
    if (at === start || filled === 16) return undefined;
    bytes[filled++] = value >> 8;
    bytes[filled++] = value & 0xff;
    if (at === text.length) break;
    if (text.charCodeAt(at++) !== COLON || at === text.length) return undefined;
    if (text.charCodeAt(at) !== COLON) continue;
    if (gap >= 0) return undefined;
    gap = filled;
    at++;
  }
  if (gap < 0) return filled === 16 ? bytes : undefined;
  if (filled > 14) return undefined;
  const tailAt = 16 - (filled - gap);
  return bytes.copyWithin(tailAt, gap, filled).fill(0, gap, tailAt);
}

const COLON = 0x3a;

/** Negative for what is no hexadecimal digit. */
function hexDigitAt(text: string, at: number): number {
  const digit = digitAt(text, at);
  if (digit >= 0) return digit;
  const letter = text.charCodeAt(at) | 0x20;
  return letter >= 0x61 && letter <= 0x66 ? letter - 0x57 : -1;
}

/** RFC 5952: lower case, the longest run of two or more zero groups (the first of equals) shortened. */
function formatIpv6(bytes: Uint8Array): string {
  const { start, length } = longestZeroRun(bytes);
  if (start === 0 && length === 5 && groupAt(bytes, 5) === 0xffff) return `::ffff:${bytes.subarray(12).join('.')}`;
  let text = '';
  for (let i = 0; i < 8; i++) {
    if (i === start && length >= 2) {
      text += '::';
      i += length - 1;
    } else text += `${text === '' || text.endsWith('::') ? '' : ':'}${groupAt(bytes, i).toString(16)}`;
  }
  return text;
}

const groupAt = (bytes: Uint8Array, i: number): number =>
  ((bytes[2 * i] as number) << 8) | (bytes[2 * i + 1] as number);

function longestZeroRun(bytes: Uint8Array): { readonly start: number; readonly length: number } {
  let [best, length, start] = [0, 0, 0];
  for (let i = 0; i <= 8; i++) {
    if (i < 8 && groupAt(bytes, i) === 0) continue;
    if (i - start > length) [best, length] = [start, i - start];
    start = i + 1;
  }
  return { start: best, length };
}
