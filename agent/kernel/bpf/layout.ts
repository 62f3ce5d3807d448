/**
 * The only place that knows how keys and values lie in the maps. It says the same as ebpf/types.h and ebpf/seal.h; tests
 * compare it with the BTF of the object, and what is sealed here with what the programs believe. Little-endian machines.
 */
import { bytesOf, type IpAddress, ipFromBytes } from '../../model/ip.ts';
import {
  type Backend,
  type BackendSetId,
  type Frontend,
  type FrontendKind,
  isSetId,
  type Scope,
} from '../../model/services.ts';

interface Field {
  readonly offset: number;
  readonly bytes: number;
}
const field = (offset: number, bytes: number): Field => ({ offset, bytes });

/** By the names of types.h. */
export const STRUCTS = {
  endpoint: { bytes: 20, fields: { address: field(0, 16), port: field(16, 2), unused: field(18, 2) } },
  frontend_key: {
    bytes: 20,
    fields: { address: field(0, 16), port: field(16, 2), protocol: field(18, 1), scope: field(19, 1) },
  },
  frontend: {
    bytes: 32,
    fields: {
      set: field(0, 16),
      count: field(16, 4),
      affinity_seconds: field(20, 4),
      target: field(24, 1),
      kind: field(25, 1),
      flags: field(26, 1),
      unused: field(27, 1),
      seal: field(28, 4),
    },
  },
  backend_key: { bytes: 20, fields: { set: field(0, 16), slot: field(16, 4) } },
  backend: { bytes: 24, fields: { at: field(0, 20), seal: field(20, 4) } },
  client_key: { bytes: 32, fields: { cookie: field(0, 8), frontend: field(8, 20), unused: field(28, 4) } },
  choice: { bytes: 32, fields: { backend: field(0, 20), slot: field(20, 4), last_ns: field(24, 8) } },
  peer: { bytes: 40, fields: { frontend: field(0, 20), backend: field(20, 20) } },
  peer_key: { bytes: 32, fields: { socket: field(0, 8), backend: field(8, 20), unused: field(28, 4) } },
  socket_row: {
    bytes: 96,
    fields: {
      peer: field(0, 40),
      cookie: field(40, 8),
      netns: field(48, 4),
      link: field(52, 4),
      own: field(56, 16),
      other: field(72, 16),
      own_port: field(88, 2),
      other_port: field(90, 2),
      family: field(92, 2),
      unused: field(94, 2),
    },
  },
  pod_source: { bytes: 24, fields: { mac: field(0, 6), protocol: field(6, 2), address: field(8, 16) } },
  settings: { bytes: 16, fields: { host_netns: field(0, 8), flags: field(8, 4), unused: field(12, 4) } },
} as const;

/** Numbers by the enumerations of types.h. */
export const SCOPES = { internal: 0, external: 1 } as const satisfies Record<Scope, number>;
export const TARGETS = { set: 0, refuse: 1, drop: 2 } as const;
export const FRONTEND_FLAGS = { masquerade: 1, sourceRanges: 2 } as const;
export const SETTINGS_FLAGS = { hostOnly: 1 } as const;
/** Of no meaning to the programs. */
const KINDS: readonly FrontendKind[] = ['cluster', 'node-port', 'load-balancer', 'external', 'host-port'];
/** linux/in.h */
const PROTOCOLS = { any: 0, TCP: 6, UDP: 17, SCTP: 132 } as const satisfies Record<Frontend['protocol'], number>;

/** In the order of enum counter. */
export const COUNTERS = [
  'translated',
  'not-a-service',
  'other-protocol',
  'other-netns',
  'passed',
  'refused',
  'refused-port',
  'already-translated',
  'affinity',
  'sticky',
  'changed-meanwhile',
  'no-backend',
  'wrong-family',
  'not-remembered',
  'reversed',
  'not-reversed',
] as const;
export type CounterName = (typeof COUNTERS)[number];

const { endpoint: E, frontend_key: FK, frontend: F, backend_key: BK, backend: B } = STRUCTS;

/** The first 12 bytes of a mapped IPv4 address (RFC 4291 section 2.5.5.2). */
const MAPPED = Buffer.from('00000000000000000000ffff', 'hex');

/** Throws RangeError for a mapped address in IPv6 text: in the maps it would be the IPv4 one. */
function writeAddress(into: Buffer, offset: number, ip: IpAddress): void {
  const bytes = bytesOf(ip);
  if (bytes.length === 4) MAPPED.copy(into, offset);
  else if (MAPPED.equals(bytes.subarray(0, 12))) throw new RangeError(`cannot write ${ip}: expected its IPv4 form`);
  into.set(bytes, offset + 16 - bytes.length);
}

/** 16 bytes; a mapped IPv4 address in its own form. */
export function readAddress(from: Buffer, offset: number): IpAddress {
  const isMapped = MAPPED.compare(from, offset, offset + 12) === 0;
  return ipFromBytes(from.subarray(isMapped ? offset + 12 : offset, offset + 16));
}

/** seal_words() of seal.h, over whole words. */
function seal(from: number, buffer: Buffer, offset: number, bytes: number): number {
  let sum = from;
  for (let i = offset; i < offset + bytes; i += 4) {
    sum = Math.imul(sum ^ buffer.readInt32LE(i), 0x9e3779b1);
    sum ^= sum >>> 15;
  }
  return sum >>> 0;
}

/** Where an entry is. */
export interface Place {
  readonly keys: Buffer;
  readonly keyAt: number;
  readonly values: Buffer;
  readonly valueAt: number;
}

/** What a value's last word must be for its key. */
const sealOf = ({ keys, keyAt, values, valueAt }: Place, keyBytes: number, valueBytes: number): number =>
  seal(seal(0, keys, keyAt, keyBytes), values, valueAt, valueBytes - 4);

/** 20 bytes, all zero before. Sorted as bytes they are in the order of the slots. */
export function writeEndpoint(into: Buffer, offset: number, { ip, port }: Backend): void {
  writeAddress(into, offset + E.fields.address.offset, ip);
  into.writeUInt16BE(port, offset + E.fields.port.offset);
}

export const readEndpoint = (from: Buffer, offset: number): Backend => ({
  ip: readAddress(from, offset + E.fields.address.offset),
  port: from.readUInt16BE(offset + E.fields.port.offset),
});

export const BACKEND_KEY_BYTES = BK.bytes;
export const BACKEND_BYTES = B.bytes;

export function writeBackendKey(into: Buffer, offset: number, id: BackendSetId, slot: number): void {
  into.write(id, offset + BK.fields.set.offset, 'hex');
  into.writeUInt32LE(slot, offset + BK.fields.slot.offset);
}

export const readBackendKey = (
  from: Buffer,
  offset: number,
): { readonly set: BackendSetId; readonly slot: number } => ({
  set: from.toString('hex', offset, offset + BK.fields.set.bytes) as BackendSetId,
  slot: from.readUInt32LE(offset + BK.fields.slot.offset),
});

/** Seals the backend whose endpoint is written with its key. */
export const sealBackend = (place: Place): void =>
  void place.values.writeUInt32LE(sealOf(place, BK.bytes, B.bytes), place.valueAt + B.fields.seal.offset);

export const isBackendSealed = (place: Place): boolean =>
  sealOf(place, BK.bytes, B.bytes) === place.values.readUInt32LE(place.valueAt + B.fields.seal.offset);

export const FRONTEND_KEY_BYTES = FK.bytes;
export const FRONTEND_BYTES = F.bytes;

export type FrontendIdentity = Pick<Frontend, 'scope' | 'ip' | 'port' | 'protocol'>;

export function writeFrontendKey(into: Buffer, offset: number, { scope, ip, port, protocol }: FrontendIdentity): void {
  writeAddress(into, offset + FK.fields.address.offset, ip);
  into.writeUInt16BE(port, offset + FK.fields.port.offset);
  into[offset + FK.fields.protocol.offset] = PROTOCOLS[protocol];
  into[offset + FK.fields.scope.offset] = SCOPES[scope];
}

/** Undefined for what no frontend has: somebody else wrote it. */
export function readFrontendKey(from: Buffer, offset: number): FrontendIdentity | undefined {
  const port = from.readUInt16BE(offset + FK.fields.port.offset);
  const protocol = nameOf(PROTOCOLS, from[offset + FK.fields.protocol.offset]);
  const scope = nameOf(SCOPES, from[offset + FK.fields.scope.offset]);
  if (protocol === undefined || scope === undefined || (protocol === 'any') !== (port === 0)) return undefined;
  return { scope, ip: readAddress(from, offset + FK.fields.address.offset), port, protocol };
}

const nameOf = <K extends string>(numbers: Readonly<Record<K, number>>, value: number | undefined): K | undefined =>
  (Object.keys(numbers) as K[]).find((name) => numbers[name] === value);

/** Writes a value over zeroes, sealed with its key. `count` is the size of the set, 0 without one. */
export function writeFrontend(place: Place, frontend: Frontend, count: number): void {
  const { values, valueAt } = place;
  const { target, affinitySeconds = 0, kind, masquerade, sourceRanges } = frontend;
  if (isSetId(target)) values.write(target, valueAt + F.fields.set.offset, 'hex');
  values.writeUInt32LE(count, valueAt + F.fields.count.offset);
  values.writeUInt32LE(affinitySeconds, valueAt + F.fields.affinity_seconds.offset);
  values[valueAt + F.fields.target.offset] = isSetId(target) ? TARGETS.set : TARGETS[target];
  values[valueAt + F.fields.kind.offset] = KINDS.indexOf(kind);
  values[valueAt + F.fields.flags.offset] =
    (masquerade ? FRONTEND_FLAGS.masquerade : 0) | (sourceRanges ? FRONTEND_FLAGS.sourceRanges : 0);
  values.writeUInt32LE(sealOf(place, FK.bytes, F.bytes), valueAt + F.fields.seal.offset);
}

/** Without what the map does not hold: `service` is empty, and so are `sourceRanges` where there are any. */
export function readFrontend(
  place: Place,
  identity: FrontendIdentity,
): { readonly frontend: Frontend; readonly count: number; readonly isSealed: boolean } {
  const { values, valueAt } = place;
  const target = nameOf(TARGETS, values[valueAt + F.fields.target.offset]) ?? 'refuse';
  const affinitySeconds = values.readUInt32LE(valueAt + F.fields.affinity_seconds.offset);
  const flags = values[valueAt + F.fields.flags.offset] as number;
  const frontend: Frontend = {
    ...identity,
    kind: KINDS[values[valueAt + F.fields.kind.offset] as number] ?? 'cluster',
    target: target === 'set' ? (values.toString('hex', valueAt, valueAt + F.fields.set.bytes) as BackendSetId) : target,
    ...(affinitySeconds > 0 && { affinitySeconds }),
    ...(flags & FRONTEND_FLAGS.masquerade && { masquerade: true }),
    ...(flags & FRONTEND_FLAGS.sourceRanges && { sourceRanges: [] }),
    service: '',
  };
  return {
    frontend,
    count: values.readUInt32LE(valueAt + F.fields.count.offset),
    isSealed: sealOf(place, FK.bytes, F.bytes) === values.readUInt32LE(valueAt + F.fields.seal.offset),
  };
}

export const SETTINGS_BYTES = STRUCTS.settings.bytes;

/** `hostNetns`: translate for sockets of this network namespace only, by its cookie. */
export function renderSettings({ hostNetns }: { readonly hostNetns?: bigint }): Buffer {
  const value = Buffer.alloc(SETTINGS_BYTES);
  if (hostNetns === undefined) return value;
  value.writeBigUInt64LE(hostNetns, STRUCTS.settings.fields.host_netns.offset);
  value.writeUInt32LE(SETTINGS_FLAGS.hostOnly, STRUCTS.settings.fields.flags.offset);
  return value;
}
