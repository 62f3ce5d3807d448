/**
 * Compares a pod link with both ends in the kernel, for CHECK: every single object that its creation wrote is looked at, and
 * nothing else. What a pod adds of its own (addresses, routes, links) is no difference.
 */
import { type Family, families, familyOf, type IpAddress } from '../../model/ip.ts';
import type { PodLink, Sysctl } from '../../model/items.ts';
import { podTable } from '../../model/kernel-names.ts';
import { gatewayOf, podPrefixLength } from '../../model/pod-link.ts';
import { KernelError } from '../errors.ts';
import type { OpenNetns, OpenPodNetns } from '../netns/netns.ts';
import type { SysctlFiles } from '../sysctl/files.ts';
import { parseAttributes } from './attributes.ts';
import { dumpLinks, isPodLink, readLink } from './links.ts';
import type { NetlinkClient } from './message.ts';
import {
  aliasOf,
  familiesOf,
  HOST_LINK_LOCAL,
  hasHostLinkLocal,
  hasIpv6,
  hostAlteration,
  hostSysctls,
  LOOPBACK_IFINDEX,
  podSysctls,
} from './pod-link-requests.ts';
import { type PodRoute, podRouteName, podRoutes, readPodRoutes, readRuleSources } from './pod-routes.ts';
import {
  addressHeader,
  IFA,
  ipOf,
  type LinkFacts,
  macOfBytes,
  NDA,
  NUD_PERMANENT,
  neighbourHeader,
  RT_TABLE_MAIN,
  RTM,
} from './rtnetlink.ts';

export interface PodLinkCheckOptions {
  readonly client: NetlinkClient;
  /** Of the host's namespace. */
  readonly sysctls: SysctlFiles;
  readonly openPodNetns: OpenPodNetns;
}

/** One sentence a difference; none when everything is as it was made. Throws KernelError when the kernel cannot be asked. */
export async function describePodLink(value: PodLink, options: PodLinkCheckOptions): Promise<readonly string[]> {
  const host = await describeHostSide(value, options);
  const pod = await describePodSide(value, options.openPodNetns);
  return [...host.map((text) => `host: ${text}`), ...pod.map((text) => `pod: ${text}`)];
}

async function describeHostSide(value: PodLink, { client, sysctls }: PodLinkCheckOptions): Promise<readonly string[]> {
  const facts = await readLink(client, value.name);
  if (!facts) return [`interface ${value.name} is missing`];
  if (!isPodLink(facts))
    return [
      `interface ${value.name} is not Tulle's: its alias is ${quoted(facts.alias)}, not ${quoted(aliasOf(value))}`,
    ];
  const differences = [...linkDifferences(facts, { name: value.name, mac: value.hostMac, mtuBytes: value.mtuBytes })];
  if (facts.alias !== aliasOf(value))
    differences.push(`the alias of ${value.name} is ${quoted(facts.alias)}, not ${quoted(aliasOf(value))}`);
  const master = await masterDifference(value, facts, client);
  if (master) differences.push(master);
  const altered = facts.up ? hostAlteration(facts) : undefined;
  if (altered) differences.push(`interface ${value.name} ${altered}`);
  if (hasHostLinkLocal(value) && !(await readIps(client, facts)).has(hostLinkLocal))
    differences.push(`address ${hostLinkLocal} is missing on ${value.name}`);
  return [...differences, ...sysctlDifferences(sysctls, hostSysctls(value), value)];
}

async function masterDifference(
  { name, bridge }: PodLink,
  { masterIfindex }: LinkFacts,
  client: NetlinkClient,
): Promise<string | undefined> {
  if (!bridge) return masterIfindex === 0 ? undefined : `interface ${name} is a port of a bridge`;
  const isPort = masterIfindex !== 0 && (await readLink(client, bridge.name))?.ifindex === masterIfindex;
  return isPort ? undefined : `interface ${name} is no port of ${bridge.name}`;
}

const hostLinkLocal = `${HOST_LINK_LOCAL.ip}/${HOST_LINK_LOCAL.prefixLength}`;

async function describePodSide(value: PodLink, openPodNetns: OpenPodNetns): Promise<readonly string[]> {
  let netns: OpenNetns;
  try {
    netns = openPodNetns(value.netns);
  } catch (error) {
    if (error instanceof KernelError) return [error.message];
    throw error;
  }
  try {
    const links = await dumpLinks(netns.client);
    const loopback = links.find(({ ifindex }) => ifindex === LOOPBACK_IFINDEX);
    const facts = links.find(({ name }) => name === value.ifName);
    const differences = loopback?.up ? [] : ['interface lo is down'];
    if (!facts) return [...differences, `interface ${value.ifName} is missing`];
    return [...differences, ...(await describePodInterface(value, facts, netns))];
  } finally {
    netns.close();
  }
}

async function describePodInterface(
  value: PodLink,
  facts: LinkFacts,
  { client, sysctls }: OpenNetns,
): Promise<readonly string[]> {
  const { ifName, podMac, mtuBytes } = value;
  const differences = [...linkDifferences(facts, { name: ifName, mac: podMac, mtuBytes })];
  const ips = await readIps(client, facts);
  for (const ip of value.ips) {
    const address = `${ip}/${podPrefixLength(value, ip)}`;
    if (!ips.has(address)) differences.push(`address ${address} is missing on ${ifName}`);
  }
  for (const { family } of familiesOf(value)) {
    const { ip: gateway, mac } = gatewayOf(value, family);
    const neighbour = (await readPermanentNeighbours(client, facts)).get(gateway);
    if (neighbour !== mac)
      differences.push(
        neighbour
          ? `the neighbour ${gateway} has the address ${neighbour}, not ${mac}`
          : `the permanent neighbour ${gateway} is missing`,
      );
    const routes = await readPodRoutes(client, facts, family);
    differences.push(...routeDifferences(podRoutes(gateway, value), routes));
    if ([...routes.values()].some(({ table }) => table !== RT_TABLE_MAIN))
      differences.push(...(await ruleDifferences(value, facts, family, client)));
  }
  return [...differences, ...sysctlDifferences(sysctls, podSysctls(value), value)];
}

function* linkDifferences(facts: LinkFacts, wanted: Pick<LinkFacts, 'name' | 'mac' | 'mtuBytes'>): Generator<string> {
  const { name, mac, mtuBytes } = wanted;
  if (facts.mac !== mac) yield `the hardware address of ${name} is ${facts.mac ?? 'missing'}, not ${mac}`;
  if (facts.mtuBytes !== mtuBytes) yield `the MTU of ${name} is ${facts.mtuBytes} bytes, not ${mtuBytes}`;
  if (!facts.up) yield `interface ${name} is down`;
}

/** Without IPv6 in the kernel there are no such settings. */
function* sysctlDifferences(sysctls: SysctlFiles, wanted: readonly Sysctl[], value: PodLink): Generator<string> {
  for (const { path, value: text } of wanted) {
    const found = sysctls.read(path);
    if (found === undefined && !hasIpv6(value)) continue;
    if (found !== text) yield `sysctl ${path} is ${found ?? 'missing'}, not ${text}`;
  }
}

/** Addresses of a link with their prefix lengths. */
async function readIps(client: NetlinkClient, { ifindex, name }: LinkFacts): Promise<ReadonlySet<string>> {
  const found = new Set<string>();
  for (const { addressFamily } of families) {
    const payload = addressHeader(addressFamily, { ifindex });
    for (const message of await client.dump({
      type: RTM.GETADDR,
      payload,
      operation: 'list',
      object: `addresses on ${name}`,
    })) {
      const attributes = parseAttributes(message.payload, 8);
      const ip = ipOf(attributes.get(IFA.LOCAL) ?? attributes.get(IFA.ADDRESS));
      if (ip && message.payload.readUInt32LE(4) === ifindex) found.add(`${ip}/${message.payload.readUInt8(1)}`);
    }
  }
  return found;
}

async function readPermanentNeighbours(
  client: NetlinkClient,
  { ifindex, name }: LinkFacts,
): Promise<ReadonlyMap<IpAddress, string>> {
  const found = new Map<IpAddress, string>();
  for (const { addressFamily } of families) {
    const request = {
      type: RTM.GETNEIGH,
      payload: neighbourHeader(addressFamily),
      operation: 'list',
      object: `neighbours on ${name}`,
    };
    for (const { payload } of await client.dump(request)) {
      const attributes = parseAttributes(payload, 12);
      const ip = ipOf(attributes.get(NDA.DST));
      const mac = macOfBytes(attributes.get(NDA.LLADDR));
      if (ip && mac && payload.readInt32LE(4) === ifindex && payload.readUInt16LE(8) === NUD_PERMANENT)
        found.set(ip, mac);
    }
  }
  return found;
}

/** What Tulle wrote and is not there any more, and what has another MTU. */
function* routeDifferences(wanted: readonly PodRoute[], found: ReadonlyMap<string, PodRoute>): Generator<string> {
  for (const route of wanted) {
    const name = podRouteName(route);
    const other = found.get(name);
    if (!other) yield `${name} is missing`;
    else if (other.mtuBytes !== route.mtuBytes) yield `the MTU of ${name} is ${mtuText(other)}, not ${mtuText(route)}`;
  }
}

/** Of an interface with a table of its own. */
async function ruleDifferences(
  { ips }: PodLink,
  { ifindex }: LinkFacts,
  family: Family,
  client: NetlinkClient,
): Promise<readonly string[]> {
  const found = await readRuleSources(client, ifindex, family);
  const missing = ips.filter((ip) => familyOf(ip) === family && !found.has(ip));
  return missing.map((ip) => `the rule from ${ip} to the table ${podTable(ifindex)} is missing`);
}

const mtuText = ({ mtuBytes }: PodRoute): string => (mtuBytes === undefined ? "the link's" : `${mtuBytes} bytes`);

const quoted = (text: string): string => (text ? JSON.stringify(text) : 'empty');
