/**
 * The wires between the nodes of a lab, made in the supervisor's own network namespace: one bridge a segment, and the
 * namespace itself as the router between segments. The API server listens on its addresses.
 */
import { writeFile } from 'node:fs/promises';
import { execa } from 'execa';
import {
  addressAt,
  type Cidr,
  FAMILIES,
  type Family,
  factsOf,
  type IpAddress,
  parseCidr,
  prefixLengthOf,
} from '../agent/model/ip.ts';
import type { NodeRef } from './node.ts';

export interface FabricShape {
  readonly families: readonly Family[];
  readonly segments: number;
}

/** How one node is connected. */
export interface Attachment {
  readonly segment: number;
  /** One a family, in the order of FabricShape.families. */
  readonly addresses: readonly IpAddress[];
}

export const MTU_BYTES = 1500;
const COMMAND_TIMEOUT_MS = 10_000;

/** Below are the router and room for a test's own hosts. */
const FIRST_HOST = 11;
/** FIRST_HOST and those after it have to fit a /24. */
export const MAX_NODES = 200;
export const MAX_SEGMENTS = 16;

/** 172.30.<segment>.0/24 or fd30:0:0:<segment>::/64. */
export function segmentCidr(segment: number, family: Family): Cidr {
  const text = family === 'ipv4' ? `172.30.${segment}.0/24` : `fd30:0:0:${segment.toString(16)}::/64`;
  return parseCidr(text) as Cidr;
}

/** The router's address in a segment, the default gateway of its nodes: .1 or ::1. */
export const routerAddress = (segment: number, family: Family): IpAddress => addressAt(segmentCidr(segment, family), 1);

export const bridgeName = (segment: number): string => `br${segment}`;

/** Place of the node with this index (from 0): segments are dealt round robin. */
export function planAttachment(index: number, { families, segments }: FabricShape): Attachment {
  const segment = index % segments;
  const addresses = families.map((family) =>
    addressAt(segmentCidr(segment, family), hostPart(index + FIRST_HOST, family)),
  );
  return { segment, addresses };
}

/** The same digits in both families, so that a node is known by them: the first one is .11 and ::11. */
const hostPart = (number: number, family: Family): number =>
  family === 'ipv4' ? number : Number.parseInt(String(number), 16);

/** Makes bridges and router in this process's network namespace; call once. */
export async function buildFabric({ families, segments }: FabricShape, signal: AbortSignal): Promise<void> {
  await writeFile('/proc/sys/net/ipv4/ip_forward', '1');
  if (families.includes('ipv6')) await enableIpv6Router();
  const lines = ['link set lo up'];
  for (let segment = 0; segment < segments; segment++) {
    const bridge = bridgeName(segment);
    lines.push(`link add ${bridge} mtu ${MTU_BYTES} type bridge mcast_snooping 0`);
    for (const family of families) lines.push(addressLine(routerAddress(segment, family), segment, bridge));
    lines.push(`link set ${bridge} up`);
  }
  await ipBatch(['ip'], lines, signal);
}

/** Gives a running node its eth0 with addresses and default routes. */
export async function attachNode(
  node: NodeRef,
  { segment, addresses }: Attachment,
  signal: AbortSignal,
): Promise<void> {
  const port = `mtu ${MTU_BYTES} master ${bridgeName(segment)}`;
  await ipBatch(
    ['ip'],
    [
      `link add ${node.name} ${port} type veth peer name eth0 mtu ${MTU_BYTES} netns ${node.pid}`,
      `link set ${node.name} up`,
    ],
    signal,
  );
  const lines = addresses.map((address) => addressLine(address, segment, 'eth0'));
  lines.push('link set eth0 up');
  for (const address of addresses)
    lines.push(`route add default via ${routerAddress(segment, factsOf(address).family)}`);
  await ipBatch(['nsenter', '--target', String(node.pid), '--net', 'ip'], lines, signal);
}

/** Without duplicate address detection, which would hold back the first packet for a second or two. */
function addressLine(address: IpAddress, segment: number, link: string): string {
  const { family } = factsOf(address);
  const length = prefixLengthOf(segmentCidr(segment, family));
  return `addr add ${address}/${length} dev ${link}${family === FAMILIES.ipv6.family ? ' nodad' : ''}`;
}

async function enableIpv6Router(): Promise<void> {
  for (const name of ['all/forwarding', 'default/forwarding']) await writeFile(`/proc/sys/net/ipv6/conf/${name}`, '1');
  for (const name of ['all/accept_dad', 'default/accept_dad']) await writeFile(`/proc/sys/net/ipv6/conf/${name}`, '0');
}

async function ipBatch(
  [file, ...args]: [string, ...string[]],
  lines: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const input = `${lines.join('\n')}\n`;
  await execa(file, [...args, '-batch', '-'], { input, timeout: COMMAND_TIMEOUT_MS, cancelSignal: signal });
}
