/** Results in both directions: what an ADD answers, and what a CHECK gets back (CNI SPEC, section 5, "ADD Success"). */
import { type Cidr, factsOf, type IpAddress, parseCidr, parseIp } from '../agent/model/ip.ts';
import { type MacAddress, parseMac } from '../agent/model/mac.ts';
import { integerAt, isAbsent, listAt, matchAt, objectAt, parsedAt } from './narrow.ts';
import { type CniVersion, isAtLeast } from './versions.ts';

/** What an ADD made, in the terms of the kernel. */
export interface PodResult {
  /** Host side of the pod's link. */
  readonly hostLink: string;
  readonly hostMac: MacAddress;
  /** Pod side. */
  readonly ifName: string;
  /** The bridge that the host side is a port of; absent for a routed pod. */
  readonly bridge?: { readonly name: string; readonly mac: MacAddress };
  readonly podMac: MacAddress;
  /** CNI_NETNS as the runtime gave it. */
  readonly sandbox: string;
  /** Of both sides. */
  readonly mtuBytes: number;
  readonly ips: readonly PodIp[];
  readonly routes: readonly PodRoute[];
}

export interface PodIp {
  readonly address: IpAddress;
  readonly prefixLength: number;
  readonly gateway: IpAddress;
}

export interface PodRoute {
  readonly dst: Cidr;
  readonly gateway?: IpAddress;
  /** Absent: that of the interface. */
  readonly mtuBytes?: number;
}

/** What a CHECK can compare; other plugins of the chain may have added to it. */
export interface PrevResult {
  readonly interfaces: readonly PrevInterface[];
  readonly ips: readonly PrevIp[];
  readonly routes: readonly PodRoute[];
}

export interface PrevInterface {
  readonly name: string;
  /** Absent too where it is not an Ethernet address. */
  readonly mac?: MacAddress;
  /** Path of the network namespace; absent for links of the host. */
  readonly sandbox?: string;
}

export interface PrevIp {
  readonly address: IpAddress;
  readonly prefixLength: number;
  readonly gateway?: IpAddress;
  /** Index into the interfaces. */
  readonly interface?: number;
}

/** The result of an ADD in the version that was asked for, ready for JSON. */
export function renderResult(version: CniVersion, result: PodResult): object {
  const mtu = isAtLeast(version, '1.1.0') ? { mtu: result.mtuBytes } : {};
  // Of the host first, the bridge before its port: as the reference plugin has them.
  const interfaces = [
    ...(result.bridge ? [{ name: result.bridge.name, mac: result.bridge.mac, ...mtu }] : []),
    { name: result.hostLink, mac: result.hostMac, ...mtu },
    { name: result.ifName, mac: result.podMac, ...mtu, sandbox: result.sandbox },
  ];
  return {
    cniVersion: version,
    interfaces,
    ips: result.ips.map((ip) => renderIp(version, ip, interfaces.length - 1)),
    routes: result.routes.map((route) => renderRoute(version, route)),
    dns: {},
  };
}

/** `podInterface` is the index of the pod side among the interfaces. */
function renderIp(version: CniVersion, { address, prefixLength, gateway }: PodIp, podInterface: number): object {
  return {
    ...(!isAtLeast(version, '1.0.0') && { version: factsOf(address).digit }),
    interface: podInterface,
    address: `${address}/${prefixLength}`,
    gateway,
  };
}

const renderRoute = (version: CniVersion, { dst, gateway, mtuBytes }: PodRoute): object => ({
  dst,
  ...(gateway !== undefined && { gw: gateway }),
  ...(mtuBytes !== undefined && isAtLeast(version, '1.1.0') && { mtu: mtuBytes }),
});

/**
 * The result that a runtime hands back. All versions that we support differ only in fields that are not read here.
 * Throws CniError 7 for what is no result.
 */
export function parsePrevResult(value: unknown): PrevResult {
  const { interfaces, ips, routes } = objectAt('prevResult', value);
  return {
    interfaces: listAt('prevResult.interfaces', interfaces, parseInterface),
    ips: listAt('prevResult.ips', ips, parsePrevIp),
    routes: listAt('prevResult.routes', routes, parseRoute),
  };
}

function parseInterface(field: string, value: unknown): PrevInterface {
  const { name, mac, sandbox } = objectAt(field, value);
  const ethernet = typeof mac === 'string' ? parseMac(mac) : undefined;
  return {
    name: matchAt(`${field}.name`, name, /./, 'the name of a link'),
    ...(ethernet !== undefined && { mac: ethernet }),
    ...(!isAbsent(sandbox) && sandbox !== '' && { sandbox: matchAt(`${field}.sandbox`, sandbox, /./, 'a path') }),
  };
}

function parsePrevIp(field: string, value: unknown): PrevIp {
  const { address, gateway, interface: index } = objectAt(field, value);
  return {
    ...parsedAt(`${field}.address`, address, parseInterfaceAddress, 'an IP address with prefix length'),
    ...parseGateway(`${field}.gateway`, gateway),
    ...(!isAbsent(index) && { interface: integerAt(`${field}.interface`, index, 0, Number.MAX_SAFE_INTEGER) }),
  };
}

function parseRoute(field: string, value: unknown): PodRoute {
  const { dst, gw } = objectAt(field, value);
  return { dst: parsedAt(`${field}.dst`, dst, parseCidr, 'a CIDR'), ...parseGateway(`${field}.gw`, gw) };
}

const parseGateway = (field: string, value: unknown): { gateway?: IpAddress } =>
  isAbsent(value) || value === '' ? {} : { gateway: parsedAt(field, value, parseIp, 'an IP address') };

/** An address that keeps its host bits, unlike a Cidr. */
function parseInterfaceAddress(text: string): { address: IpAddress; prefixLength: number } | undefined {
  const cidr = parseCidr(text);
  const address = parseIp(text.slice(0, text.indexOf('/')));
  if (cidr === undefined || address === undefined) return undefined;
  return { address, prefixLength: Number(cidr.slice(cidr.indexOf('/') + 1)) };
}
