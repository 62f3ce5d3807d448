/**
 * What conntrack remembers of UDP flows to Services. A flow keeps its translation as long as it goes on, whatever the rules
 * say by then: a statsd sender would send to a backend that is gone for hours, and whoever gets its address next would be
 * sent what is not for it. So flows whose backend does not serve their place any more are forgotten, and the next datagram
 * meets the rules. Also flows that began while there were no rules, and are not translated at all. Others are left alone.
 */
import { FAMILIES, type Family, type IpAddress, ipFromBytes } from '../model/ip.ts';
import { isNotFound, type KernelError } from './errors.ts';
import { attribute, nested, parseAttributes, u8, u16Be, u32 } from './netlink/attributes.ts';
import type { NetlinkClient, NetlinkMessage, NetlinkRequest } from './netlink/message.ts';

/** An address and a port, as a client names a Service or a rule names a backend. */
export interface FlowEnd {
  readonly ip: IpAddress;
  readonly port: number;
}

/** A place of a Service, and all backends that flows to it may have. */
export interface ServedPlace {
  readonly place: FlowEnd;
  readonly backends: readonly FlowEnd[];
}

/** One tracked UDP flow. */
export interface Flow {
  /** Where its first datagram was sent. */
  readonly to: FlowEnd;
  /** Who answers: the backend, or the same as `to` when nothing was translated. */
  readonly backend: FlowEnd;
  /** CTA_TUPLE_ORIG, CTA_ZONE and CTA_ID as the kernel wrote them: they name this flow and no later one. */
  readonly name: Buffer;
}

export interface ForgetResult {
  readonly forgotten: number;
  readonly failures: readonly KernelError[];
}

/** linux/netfilter/nfnetlink_conntrack.h */
const NFNL_SUBSYS_CTNETLINK = 1;
const COMMAND = { GET: 1, DELETE: 2 } as const;
const CTA = { TUPLE_ORIG: 1, TUPLE_REPLY: 2, ID: 12, ZONE: 18, FILTER: 25 } as const;
const TUPLE = { IP: 1, PROTO: 2 } as const;
const IP = { ipv4: { SOURCE: 1, DESTINATION: 2 }, ipv6: { SOURCE: 3, DESTINATION: 4 } } as const;
const PROTO = { NUMBER: 1, SOURCE_PORT: 2, DESTINATION_PORT: 3 } as const;
const FILTER = { ORIG_FLAGS: 1, REPLY_FLAGS: 2 } as const;
/** Which parts of a tuple a filter compares (CTA_FILTER_FLAG in net/netfilter/nf_conntrack_netlink.c). */
const COMPARE = { PROTO_NUMBER: 1 << 3, PROTO_DESTINATION_PORT: 1 << 5 } as const;
const NLA_F_NESTED = 0x8000;
const IPPROTO_UDP = 17;
const NFGENMSG_BYTES = 4;
/** Places at more ports than this are looked for in one dump of all UDP flows. */
const FILTERED_DUMPS = 8;

/**
 * Forgets the UDP flows to these places whose backend does not serve there. Places without backends lose all flows. Rejects
 * with KernelError when the table cannot be read. `client` is a socket of protocol NETFILTER.
 */
export async function forgetStaleFlows(
  client: NetlinkClient,
  family: Family,
  places: readonly ServedPlace[],
): Promise<ForgetResult> {
  const served = new Map(places.map(({ place, backends }) => [textOf(place), new Set(backends.map(textOf))]));
  const ports = new Set(places.map(({ place }) => place.port));
  const filters = ports.size <= FILTERED_DUMPS ? ports : [undefined];
  const stale = new Map<string, Flow>();
  for (const filter of filters) {
    for (const message of await client.dump(listFlows(family, filter))) {
      const flow = readFlow(family, message);
      const backends = flow && served.get(textOf(flow.to));
      // Older kernels (before 5.8) do not filter.
      if (flow && backends && !backends.has(textOf(flow.backend))) stale.set(flow.name.toString('latin1'), flow);
    }
  }
  const outcomes = await client.batch([...stale.values()].map((flow) => forgetFlow(family, flow)));
  // What has ended by itself since is forgotten, too.
  const failures = outcomes.filter((error) => error !== undefined).filter((error) => !isNotFound(error));
  return { forgotten: stale.size - failures.length, failures };
}

const textOf = ({ ip, port }: FlowEnd): string => `${ip} ${port}`;

/**
 * To be dumped: UDP flows, or those to one port. Not by address: of IPv6 the kernel (seen with 6.18) leaves out those that have
 * the address, instead of the others.
 */
export function listFlows(family: Family, port?: number): NetlinkRequest {
  const flags = COMPARE.PROTO_NUMBER | (port === undefined ? 0 : COMPARE.PROTO_DESTINATION_PORT);
  const ofPort = port === undefined ? [] : [u16Be(PROTO.DESTINATION_PORT, port)];
  return {
    type: (NFNL_SUBSYS_CTNETLINK << 8) | COMMAND.GET,
    payload: payload(
      family,
      nested(CTA.TUPLE_ORIG, nested(TUPLE.PROTO, u8(PROTO.NUMBER, IPPROTO_UDP), ...ofPort)),
      nested(CTA.FILTER, u32(FILTER.ORIG_FLAGS, flags), u32(FILTER.REPLY_FLAGS, 0)),
    ),
    operation: 'list',
    object: `${family} UDP flows${port === undefined ? '' : ` to port ${port}`}`,
  };
}

const forgetFlow = (family: Family, { name, to, backend }: Flow): NetlinkRequest => ({
  type: (NFNL_SUBSYS_CTNETLINK << 8) | COMMAND.DELETE,
  payload: payload(family, name),
  operation: 'forget',
  object: `a UDP flow to ${to.ip} port ${to.port} at ${backend.ip}`,
});

const payload = (family: Family, ...attributes: readonly Uint8Array[]): Uint8Array =>
  Buffer.concat([Uint8Array.of(FAMILIES[family].addressFamily, 0, 0, 0), ...attributes]);

/** Undefined for what is no whole UDP flow of this family. */
export function readFlow(family: Family, { payload: bytes }: NetlinkMessage): Flow | undefined {
  const attributes = parseAttributes(bytes, NFGENMSG_BYTES);
  const [original, reply] = [attributes.get(CTA.TUPLE_ORIG), attributes.get(CTA.TUPLE_REPLY)];
  const to = original && readEnd(family, original, 'DESTINATION');
  const backend = reply && readEnd(family, reply, 'SOURCE');
  if (!original || !to || !backend) return undefined;
  const rest = [CTA.ID, CTA.ZONE].flatMap((type) => {
    const value = attributes.get(type);
    return value ? [attribute(type, value)] : [];
  });
  return { to, backend, name: Buffer.concat([attribute(CTA.TUPLE_ORIG | NLA_F_NESTED, original), ...rest]) };
}

function readEnd(family: Family, tuple: Buffer, side: 'SOURCE' | 'DESTINATION'): FlowEnd | undefined {
  const parts = parseAttributes(tuple);
  const address = parseAttributes(parts.get(TUPLE.IP) ?? NOTHING).get(IP[family][side]);
  const protocol = parseAttributes(parts.get(TUPLE.PROTO) ?? NOTHING);
  const port = protocol.get(PROTO[`${side}_PORT`]);
  const isUdp = protocol.get(PROTO.NUMBER)?.[0] === IPPROTO_UDP;
  if (!isUdp || address?.length !== FAMILIES[family].bits / 8 || port?.length !== 2) return undefined;
  return { ip: ipFromBytes(address), port: port.readUInt16BE(0) };
}

const NOTHING = Buffer.alloc(0);
