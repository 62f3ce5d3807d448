/**
 * Datagram sockets that are connected to a backend which their Service has no longer: nobody tells them, so a DNS client or
 * a sender of metrics would talk to nobody for ever. Destroyed, they fail with ECONNABORTED and are opened anew. Which
 * sockets the programs connected, and to what, is read from the sockets themselves, so that no other is taken for one.
 */
import { FAMILIES, families, ipFromBytes } from '../../model/ip.ts';
import type { Backend } from '../../model/services.ts';
import { isNotFound } from '../errors.ts';
import type { NetlinkClient, NetlinkRequest } from '../netlink/message.ts';
import { readAddress, readEndpoint, STRUCTS } from './layout.ts';

/** linux/sock_diag.h */
const [SOCK_DIAG_BY_FAMILY, SOCK_DESTROY] = [20, 21];
const IPPROTO_UDP = 17;
/** struct inet_diag_req_v2 (linux/inet_diag.h). */
const REQUEST_BYTES = 56;
const ANY_STATE = 0xffffffff;

/** What a connected socket takes for its peer, and who that really is. */
export interface Conversation {
  readonly frontend: Backend;
  readonly backend: Backend;
}

/** A datagram socket, as it is named to the kernel. */
interface NamedSocket {
  /** struct inet_diag_req_v2. */
  readonly request: Buffer;
}

/** A datagram socket of the node or of a pod that the programs connected. */
export interface ConnectedSocket extends Conversation, NamedSocket {
  /** Inode of its network namespace. */
  readonly netns: number;
}

/** A datagram socket that is connected, by whomever. */
export interface DatagramSocket extends NamedSocket {
  readonly peer: Backend;
}

/**
 * What the iterator `tulle_peers_iter` wrote, struct socket_row each. Without sockets that have been connected elsewhere or
 * disconnected since: what was stored in them stays.
 */
export function readSocketRows(rows: Buffer): readonly ConnectedSocket[] {
  const { bytes } = STRUCTS.socket_row;
  const all = Array.from({ length: Math.floor(rows.length / bytes) }, (_, i) =>
    rows.subarray(i * bytes, (i + 1) * bytes),
  );
  return all.flatMap((row) => {
    const socket = readRow(row);
    const { ip, port } = readOther(row);
    return ip === socket.backend.ip && port === socket.backend.port ? socket : [];
  });
}

/** Whom the socket is connected with. */
function readOther(row: Buffer): Backend {
  const { family, other, other_port } = STRUCTS.socket_row.fields;
  const isIpv4 = row.readUInt16LE(family.offset) === FAMILIES.ipv4.addressFamily;
  const ip = isIpv4 ? ipFromBytes(row.subarray(other.offset, other.offset + 4)) : readAddress(row, other.offset);
  return { ip, port: row.readUInt16BE(other_port.offset) };
}

function readRow(row: Buffer): ConnectedSocket {
  const { fields } = STRUCTS.socket_row;
  const peer = (name: keyof typeof STRUCTS.peer.fields): Backend =>
    readEndpoint(row, fields.peer.offset + STRUCTS.peer.fields[name].offset);
  return {
    frontend: peer('frontend'),
    backend: peer('backend'),
    netns: row.readUInt32LE(fields.netns.offset),
    request: renderRequest(row),
  };
}

function renderRequest(row: Buffer): Buffer {
  const { fields } = STRUCTS.socket_row;
  const request = Buffer.alloc(REQUEST_BYTES);
  request[0] = row.readUInt16LE(fields.family.offset);
  request[1] = IPPROTO_UDP;
  request.writeUInt32LE(ANY_STATE, 4);
  const copy = ({ offset, bytes }: { offset: number; bytes: number }, at: number) =>
    row.copy(request, at, offset, offset + bytes);
  copy(fields.own_port, 8);
  copy(fields.other_port, 10);
  copy(fields.own, 12);
  copy(fields.other, 28);
  copy(fields.link, 44);
  copy(fields.cookie, 48);
  // INET_DIAG_NOCOOKIE: it has none, its addresses say which it is.
  if (row.readBigUInt64LE(fields.cookie.offset) === 0n) request.fill(0xff, 48, 56);
  return request;
}

/** The connected datagram sockets of the network namespace where `client` is, of protocol SOCK_DIAG. Rejects with KernelError. */
export async function listDatagramSockets(client: NetlinkClient): Promise<readonly DatagramSocket[]> {
  const sockets: DatagramSocket[] = [];
  for (const { addressFamily } of families) {
    for (const { payload } of await client.dump(listRequest(addressFamily))) sockets.push(readDiagMessage(payload));
  }
  return sockets.filter(({ peer }) => peer.port !== 0);
}

function listRequest(family: number): NetlinkRequest {
  return { type: SOCK_DIAG_BY_FAMILY, payload: everySocket(family), operation: 'list', object: 'datagram sockets' };
}

/** To a list: all of the family. To what names one socket: one without addresses and ports, which nobody has. */
function everySocket(family: number): Buffer {
  const request = Buffer.alloc(REQUEST_BYTES);
  request[0] = family;
  request[1] = IPPROTO_UDP;
  request.writeUInt32LE(ANY_STATE, 4);
  // INET_DIAG_NOCOOKIE
  request.fill(0xff, 48, 56);
  return request;
}

/** struct inet_diag_msg: the 48 bytes of struct inet_diag_sockid after the first four are those of a request from 8 on. */
function readDiagMessage(message: Buffer): DatagramSocket {
  const family = message[0] as number;
  const request = Buffer.alloc(REQUEST_BYTES);
  request[0] = family;
  request[1] = IPPROTO_UDP;
  request.writeUInt32LE(ANY_STATE, 4);
  message.copy(request, 8, 4, 52);
  const ip = family === FAMILIES.ipv4.addressFamily ? ipFromBytes(message.subarray(24, 28)) : readAddress(message, 24);
  return { peer: { ip, port: message.readUInt16BE(6) }, request };
}

/**
 * Destroys sockets of one network namespace, where `client`, of protocol SOCK_DIAG, is; returns how many there still were.
 * Rejects with KernelError: EOPNOTSUPP where the kernel cannot (CONFIG_INET_DIAG_DESTROY).
 */
export async function destroySockets(client: NetlinkClient, sockets: readonly NamedSocket[]): Promise<number> {
  const outcomes = await client.batch(sockets.map(({ request }) => destroyRequest(request)));
  const failure = outcomes.find((error) => error !== undefined && !isNotFound(error));
  if (failure) throw failure;
  return outcomes.filter((error) => error === undefined).length;
}

/**
 * Whether there is anybody to destroy datagram sockets, asked where there is none, with what was seen; undefined: the kernel
 * has no udp_diag. Rejects with KernelError, EOPNOTSUPP where that cannot destroy.
 */
export async function probeDestruction(client: NetlinkClient): Promise<string | undefined> {
  try {
    await listDatagramSockets(client);
  } catch (error) {
    if (isNotFound(error)) return undefined;
    throw error;
  }
  await destroySockets(client, [{ request: everySocket(FAMILIES.ipv4.addressFamily) }]);
  return 'nobody was found to destroy';
}

const destroyRequest = (payload: Buffer): NetlinkRequest => ({
  type: SOCK_DESTROY,
  payload,
  operation: 'destroy',
  object: 'a datagram socket',
});
