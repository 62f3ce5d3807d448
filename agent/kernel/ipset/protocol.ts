/** The part of ipset's netlink protocol that Tulle speaks (linux/netfilter/ipset/ip_set.h). Pure. */
import {
  bytesOf,
  type Cidr,
  FAMILIES,
  type Family,
  factsOf,
  ipFromBytes,
  networkOf,
  prefixLengthOf,
} from '../../model/ip.ts';
import type { IpSet, MemberPort } from '../../model/items.ts';
import { PROTOCOLS, type Protocol } from '../../model/services.ts';
import { KernelError } from '../errors.ts';
import { attribute, nested, parseAttributes, text, textOf, u8, u16Be, u32Be } from '../netlink/attributes.ts';
import type { NetlinkMessage, NetlinkRequest } from '../netlink/message.ts';

const NFNL_SUBSYS_IPSET = 6;
const COMMAND = { DESTROY: 3, LIST: 7, ADD: 9, DEL: 10, TYPE: 13 } as const;
/** Version 6 is understood by every kernel that knows 7 (IPSET_PROTOCOL_MIN). */
const PROTOCOL_VERSION = 6;

const ATTR = { PROTOCOL: 1, SETNAME: 2, TYPENAME: 3, REVISION: 4, FAMILY: 5, FLAGS: 6, DATA: 7, ADT: 8 } as const;
/** Inside DATA. MAXELEM belongs to headers, CADT_FLAGS to both. */
const DATA = { IP: 1, CIDR: 3, PORT: 4, PROTO: 7, CADT_FLAGS: 8, MAXELEM: 19 } as const;
const IPADDR: Readonly<Record<Family, number>> = { ipv4: 1, ipv6: 2 };
const FLAG_LIST_HEADER = 1 << 2;
const NLA_F_NET_BYTEORDER = 0x4000;
/** struct nfgenmsg: family, version, resource id. */
const NFGENMSG_BYTES = 4;

/** An element of a set as the kernel shows it. */
export interface FoundElement {
  readonly entry: Cidr;
  readonly port?: MemberPort;
  /** It has flags (nomatch) that Tulle never sets: not what its entry says. */
  readonly altered: boolean;
}

const payload = (family: number, ...attributes: readonly Uint8Array[]): Uint8Array =>
  Buffer.concat([Uint8Array.of(family, 0, 0, 0), u8(ATTR.PROTOCOL, PROTOCOL_VERSION), ...attributes]);

const type = (command: number): number => (NFNL_SUBSYS_IPSET << 8) | command;

/** To be dumped: every set's header without its elements, foreign sets included. */
export const listHeaders = (): NetlinkRequest => ({
  type: type(COMMAND.LIST),
  payload: payload(0, u32Be(ATTR.FLAGS | NLA_F_NET_BYTEORDER, FLAG_LIST_HEADER)),
  operation: 'list',
  object: 'ip sets',
});

/** To be dumped: one set with its elements. */
export const listElements = (set: string): NetlinkRequest => ({
  type: type(COMMAND.LIST),
  payload: payload(0, text(ATTR.SETNAME, set)),
  operation: 'list',
  object: `members of ${set}`,
});

/** Which revision of a type the kernel has. It loads the module of a type that it does not know yet. */
export const askType = (name: IpSet['type'], family: Family): NetlinkRequest => {
  const { addressFamily } = FAMILIES[family];
  return {
    type: type(COMMAND.TYPE),
    payload: payload(addressFamily, text(ATTR.TYPENAME, name), u8(ATTR.FAMILY, addressFamily)),
    operation: 'find',
    object: `ip sets of the type ${name} ${family}`,
  };
};

export const readRevision = ({ payload }: NetlinkMessage): number | undefined =>
  parseAttributes(payload, NFGENMSG_BYTES).get(ATTR.REVISION)?.[0];

export const destroySet = (set: string): NetlinkRequest => ({
  type: type(COMMAND.DESTROY),
  payload: payload(0, text(ATTR.SETNAME, set)),
  operation: 'destroy',
  object: `ip set ${set}`,
});

/** Without NLM_F_EXCL: adding what is there and removing what is not both succeed. */
export function changeElement(
  action: 'add' | 'remove',
  set: string,
  entry: Cidr,
  port: MemberPort | undefined,
): NetlinkRequest {
  const { bits, family, addressFamily } = factsOf(entry);
  const prefixLength = prefixLengthOf(entry);
  const address = attribute(IPADDR[family] | NLA_F_NET_BYTEORDER, bytesOf(networkOf(entry)));
  const parts = [nested(DATA.IP, address)];
  if (prefixLength < bits) parts.push(u8(DATA.CIDR, prefixLength));
  if (port)
    parts.push(u16Be(DATA.PORT | NLA_F_NET_BYTEORDER, port.number), u8(DATA.PROTO, PROTOCOL_NUMBERS[port.protocol]));
  return {
    type: type(action === 'add' ? COMMAND.ADD : COMMAND.DEL),
    payload: payload(addressFamily, text(ATTR.SETNAME, set), nested(ATTR.DATA, ...parts)),
    operation: action,
    object: `member ${entry}${port ? `,${port.protocol}:${port.number}` : ''} of ${set}`,
  };
}

/** The header in one message of a dump. A type that Tulle does not make is handed on as it is named. */
export function readHeader(message: NetlinkMessage): IpSet | undefined {
  const attributes = parseAttributes(message.payload, NFGENMSG_BYTES);
  const name = textOf(attributes.get(ATTR.SETNAME));
  const data = attributes.get(ATTR.DATA);
  if (name === undefined || data === undefined) return undefined;
  const family = attributes.get(ATTR.FAMILY)?.[0] === FAMILIES.ipv6.addressFamily ? 'ipv6' : 'ipv4';
  const maxElements = u32BeOf(parseAttributes(data).get(DATA.MAXELEM)) ?? 0;
  return { name, type: textOf(attributes.get(ATTR.TYPENAME)) as IpSet['type'], family, maxElements };
}

/** The elements in one message of a dump. */
export function* readElements(message: NetlinkMessage): Generator<FoundElement> {
  const list = parseAttributes(message.payload, NFGENMSG_BYTES).get(ATTR.ADT);
  let at = 0;
  while (list && at + 4 <= list.length) {
    const length = list.readUInt16LE(at);
    if (length < 4) return;
    const element = readElement(list.subarray(at + 4, at + length));
    if (element) yield element;
    at += (length + 3) & ~3;
  }
}

function readElement(data: Buffer): FoundElement | undefined {
  const attributes = parseAttributes(data);
  const ip = attributes.get(DATA.IP);
  const bytes = ip && [...parseAttributes(ip).values()][0];
  if (!bytes || (bytes.length !== 4 && bytes.length !== 16)) return undefined;
  const prefixLength = attributes.get(DATA.CIDR)?.[0] ?? bytes.length * 8;
  if (prefixLength > bytes.length * 8) return undefined;
  const flags = u32BeOf(attributes.get(DATA.CADT_FLAGS)) ?? 0;
  const portBytes = attributes.get(DATA.PORT);
  const port = readPort(portBytes, attributes.get(DATA.PROTO));
  return {
    entry: `${ipFromBytes(bytes)}/${prefixLength}` as Cidr,
    ...(port && { port }),
    // A port of a protocol that no Service has is somebody else's work.
    altered: flags !== 0 || (portBytes !== undefined && port === undefined),
  };
}

function readPort(bytes: Buffer | undefined, protocolBytes: Buffer | undefined): MemberPort | undefined {
  const protocol = PROTOCOLS.find((each) => PROTOCOL_NUMBERS[each] === protocolBytes?.[0]);
  return bytes?.length === 2 && protocol ? { protocol, number: bytes.readUInt16BE(0) } : undefined;
}

/** IPPROTO_* (linux/in.h). */
const PROTOCOL_NUMBERS: Readonly<Record<Protocol, number>> = { TCP: 6, UDP: 17, SCTP: 132 };

/** An element as the ipset command reads it. */
export const elementText = ({ entry, port }: Pick<FoundElement, 'entry' | 'port'>): string =>
  port ? `${networkOf(entry)},${port.protocol.toLowerCase()}:${port.number}` : entry;

const u32BeOf = (payload: Buffer | undefined): number | undefined =>
  payload?.length === 4 ? payload.readUInt32BE(0) : undefined;

/** IPSET_ERR_*: errno values above 4095 that only ipset knows, as the errno that comes nearest and words. */
const ERRORS: Readonly<Record<number, readonly [code: string, detail: string]>> = {
  4097: ['EPROTO', 'the kernel cannot read the request: another protocol version, or an address of the other family'],
  4098: ['EOPNOTSUPP', 'the kernel does not know this set type'],
  4099: ['ENFILE', 'the kernel holds as many sets as it can (max_sets)'],
  4100: ['EBUSY', 'the set is in use by a rule'],
  4101: ['EEXIST', 'a set with the second name exists'],
  4102: ['EINVAL', 'the two sets have different types'],
  4103: ['EEXIST', 'the element is there already, or is not there'],
  4104: ['EINVAL', 'bad prefix length'],
  4106: ['EAFNOSUPPORT', 'the set is of the other family'],
  4108: ['EBUSY', 'the set is in use by another set'],
  4109: ['EAFNOSUPPORT', 'the set needs an IPv4 address'],
  4110: ['EAFNOSUPPORT', 'the set needs an IPv6 address'],
  4352: ['ENOSPC', 'the set holds as many elements as it can; raise its maxElements'],
};

/** Gives an ipset error number its name; other errors pass. */
export function named(error: KernelError): KernelError {
  const [code, detail] = ERRORS[Number(/-?(\d{4})$/.exec(error.code)?.[1])] ?? [];
  if (code === undefined) return error;
  return new KernelError({ code, operation: error.operation, object: error.object, detail, cause: error });
}
