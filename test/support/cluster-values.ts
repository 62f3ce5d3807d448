/** Model values for tests, with every field that a test does not care about filled in. */
import { type Cluster, EMPTY_CLUSTER, type Node } from '../../agent/model/cluster.ts';
import type { Host } from '../../agent/model/host.ts';
import { type Cidr, type IpAddress, parseCidr, parseIp } from '../../agent/model/ip.ts';
import type { PlanSettings } from '../../agent/plan/underlay.ts';

export const ip = (text: string): IpAddress => {
  const parsed = parseIp(text);
  if (parsed === undefined) throw new TypeError(`not an address: ${text}`);
  return parsed;
};

export const cidr = (text: string): Cidr => {
  const parsed = parseCidr(text);
  if (parsed === undefined) throw new TypeError(`not a CIDR: ${text}`);
  return parsed;
};

/** `node('a', { ips: '10.0.0.1', cidrs: '10.84.0.0/24' })`; lists are separated by blanks. */
export function node(name: string, { ips = '', cidrs = '', underlay = '', creationMs = 0, uid = name } = {}): Node {
  const words = (text: string) => text.split(' ').filter((word) => word !== '');
  return Object.freeze({
    name,
    uid,
    creationMs,
    podCidrs: words(cidrs).map(cidr),
    internalIps: words(ips).map(ip),
    underlayIps: words(underlay).map(ip),
    problems: [],
  });
}

export const cluster = (...nodes: readonly Node[]): Cluster => ({
  ...EMPTY_CLUSTER,
  synced: true,
  nodes: new Map(nodes.map((each) => [each.name, each])),
});

/** An address of a host's link, with the prefix length of its segment: `/24`, `/64`. */
const onSegment = (text: string) => ({ ip: ip(text), prefixLength: text.includes(':') ? 64 : 24 });

export function host({
  ips = '172.30.0.11 fd30::11',
  mtuBytes = 1500,
  acceptRa = '0',
  ipv6 = true,
  ipv6Forwarding = false,
} = {}): Host {
  return {
    links: [{ name: 'eth0', ifindex: 2, mtuBytes, up: true, addresses: ips.split(' ').map(onSegment), acceptRa }],
    ipv6,
    ipv6Forwarding,
    randomFully: true,
    kernel: { release: '6.1.0', major: 6, minor: 1 },
  };
}

export const settings: PlanSettings = {
  'vxlan.vni': 84,
  'vxlan.port': 8472,
  'vxlan.txChecksumOffload': 'auto',
  'vxlan.directRouting': false,
  'tun.port': 8285,
  'tun.carriage': 'segments',
  'tun.encryption': 'none',
  'tun.secretFile': '',
  tunnelFamily: 'auto',
  mtuBytes: 0,
  masquerade: true,
  podLink: 'routed',
  clusterCidrs: [],
  nonMasqueradeCidrs: [],
  apiServer: '',
  'services.mode': 'off',
  'services.externalAddresses': [],
  'services.nodePortAddresses': [],
  'services.ebpf.scope': 'all',
  'services.healthPort': 10_256,
};
