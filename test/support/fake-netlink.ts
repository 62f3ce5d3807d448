/**
 * A small kernel behind NetlinkClient: links (vxlan, veth, bridge, tun), addresses, routes, neighbours and forwarding entries of several
 * network namespaces. It refuses what Linux refuses, and loses in silence what Linux loses. Its truth is held against a real
 * kernel by test/kernel/netlink.contract.test.ts.
 */
import { KernelError } from '../../agent/kernel/errors.ts';
import { attribute, parseAttributes, textOf, u32Of } from '../../agent/kernel/netlink/attributes.ts';
import type { Ethtool } from '../../agent/kernel/netlink/ethtool.ts';
import {
  type NetlinkClient,
  type NetlinkMessage,
  type NetlinkRequest,
  NLM,
} from '../../agent/kernel/netlink/message.ts';
import { AF, addressHeader, IFA, IFF_UP, IFLA, ipOf, linkHeader, RTM } from '../../agent/kernel/netlink/rtnetlink.ts';
import type { Tuns } from '../../agent/kernel/netlink/tun.ts';
import type { SysctlFiles } from '../../agent/kernel/sysctl/files.ts';
import { bytesOf, factsOf, familyOf } from '../../agent/model/ip.ts';
import { macFromBytes } from '../../agent/model/mac.ts';
import { enslave, type FakeLink, linkMessage, newLink, parseLinkRequest, tunnelOf, VXLAN } from './fake-links.ts';
import { FakeNeighbours } from './fake-neighbours.ts';
import { type FakeAddress, FakeRoutes, fail, message } from './fake-routes.ts';

/** A terminating NUL counts. */
const ALIAS_MAX_BYTES = 255;

/** Namespaces by the number that stands for their fd. */
export class FakeKernel {
  readonly #namespaces = new Map<number, FakeNetns>();
  readonly veths = new Map<FakeLink, { readonly netns: FakeNetns; readonly link: FakeLink }>();

  netns(): FakeNetns {
    const fd = 1000 + this.#namespaces.size;
    const netns = new FakeNetns(this, fd);
    this.#namespaces.set(fd, netns);
    return netns;
  }

  byFd(fd: number): FakeNetns {
    const netns = this.#namespaces.get(fd);
    if (!netns) fail('EBADF');
    return netns;
  }
}

/** One namespace; it is the client of its own sockets. */
export class FakeNetns implements NetlinkClient {
  readonly fd: number;
  readonly links = new Map<number, FakeLink>();
  readonly files = new Map<string, string>();
  /** Requests and dumps answered. */
  requests = 0;
  readonly #kernel: FakeKernel;
  readonly #failures: { readonly type: number; readonly code: string }[] = [];
  #addresses: FakeAddress[] = [];
  readonly #neighbours = new FakeNeighbours();
  readonly #routes = new FakeRoutes();
  readonly #rules: Buffer[] = [];
  #nextIfindex = 1;

  constructor(kernel: FakeKernel, fd: number) {
    this.#kernel = kernel;
    this.fd = fd;
    this.files.set('net/ipv6/conf/all/disable_ipv6', '0');
    this.files.set('net/ipv4/conf/all/accept_redirects', '1');
    this.#add({ attributes: new Map(), name: 'lo', kind: '', data: new Map(), port: new Map(), up: true });
  }

  /** The next request of this type (RTM_*) fails. */
  failNext(type: number, code: string): void {
    this.#failures.push({ type, code });
  }

  readonly sysctls: SysctlFiles = {
    read: (path) => this.files.get(path),
    write: (path, value) => {
      if (!this.files.has(path))
        throw new KernelError({ code: 'ENOENT', operation: 'write', object: `sysctl ${path}` });
      this.files.set(path, value);
    },
    together: (action) => action(),
    names: (directory) => {
      const below = [...this.files.keys()].filter((path) => path.startsWith(`${directory}/`));
      return [...new Set(below.map((path) => path.slice(directory.length + 1).split('/')[0] as string))];
    },
  };

  readonly ethtool: Ethtool = {
    readTxChecksum: (name) => this.#byName(name)?.txChecksum,
    writeTxChecksum: (name, on) => {
      const link = this.#byName(name);
      if (link) link.txChecksum = on;
    },
    close: () => {},
  };

  readonly tuns: Tuns = {
    create: (name) => {
      const { attributes, data, port } = parseLinkRequest(linkHeader());
      this.#add({ attributes, data, port, name, kind: 'tun', up: false });
    },
  };

  async request(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    return this.#handle(request);
  }

  async batch(requests: readonly NetlinkRequest[]): Promise<readonly (KernelError | undefined)[]> {
    return requests.map((request) => {
      try {
        this.#handle(request);
        return undefined;
      } catch (error) {
        return error as KernelError;
      }
    });
  }

  async dump(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    return this.#handle({ ...request, flags: NLM.DUMP });
  }

  close(): void {}

  #handle(request: NetlinkRequest): readonly NetlinkMessage[] {
    const { type, operation, object } = request;
    this.requests++;
    try {
      const planned = this.#failures.findIndex((failure) => failure.type === type);
      if (planned >= 0) fail((this.#failures.splice(planned, 1)[0] as { code: string }).code);
      return this.#answer({ ...request, payload: Buffer.from(request.payload) });
    } catch (error) {
      const { code } = error as { code?: string };
      if (!code) throw error;
      throw new KernelError({ code, operation, object });
    }
  }

  #answer({ type, flags = 0, payload }: NetlinkRequest & { payload: Buffer }): readonly NetlinkMessage[] {
    switch (type) {
      case RTM.GETLINK:
        return this.#getLink(payload, flags === NLM.DUMP);
      case RTM.NEWLINK:
        this.#newLink(payload, flags);
        return [];
      case RTM.SETLINK:
        this.#setLink(this.#target(payload), payload);
        return [];
      case RTM.DELLINK:
        this.#deleteLinks(payload);
        return [];
      case RTM.NEWADDR:
      case RTM.DELADDR:
        this.#changeAddress(type, payload, flags);
        return [];
      case RTM.GETADDR:
        return this.#getAddresses(payload);
      case RTM.NEWNEIGH:
      case RTM.DELNEIGH:
        this.#neighbours.change(type, payload, flags, this.links);
        return [];
      case RTM.GETNEIGH:
        return this.#neighbours.dump(payload, this.links);
      case RTM.NEWROUTE:
        this.#routes.add(payload, flags, { links: this.links, addresses: this.#addresses });
        return [];
      case RTM.DELROUTE:
        this.#routes.remove(payload);
        return [];
      case RTM.GETROUTE:
        return this.#routes.dump(payload);
      case RTM.NEWRULE:
        this.#addRule(payload, flags);
        return [];
      case RTM.DELRULE:
        this.#removeRule(payload);
        return [];
      case RTM.GETRULE:
        return this.#rules.filter((rule) => rule[0] === payload[0]).map((rule) => message(RTM.NEWRULE, rule));
      default:
        return fail('ENOTSUP');
    }
  }

  #removeRule(payload: Buffer): void {
    const at = this.#rules.findIndex((rule) => rule.equals(payload));
    if (at < 0) fail('ENOENT');
    this.#rules.splice(at, 1);
  }

  #addRule(payload: Buffer, flags: number): void {
    if (flags & NLM.EXCL && this.#rules.some((rule) => rule.equals(payload))) fail('EEXIST');
    this.#rules.push(payload);
  }

  // Links.

  #byName(name: string): FakeLink | undefined {
    return [...this.links.values()].find((link) => link.name === name);
  }

  #target(payload: Buffer): FakeLink {
    const name = textOf(parseAttributes(payload, 16).get(IFLA.IFNAME));
    const link = this.links.get(payload.readInt32LE(4)) ?? (name === undefined ? undefined : this.#byName(name));
    return link ?? fail('ENODEV');
  }

  #getLink(payload: Buffer, isDump: boolean): readonly NetlinkMessage[] {
    return isDump ? [...this.links.values()].map(linkMessage) : [linkMessage(this.#target(payload))];
  }

  #newLink(payload: Buffer, flags: number): void {
    const wanted = parseLinkRequest(payload);
    const existing = this.links.get(payload.readInt32LE(4)) ?? (wanted.name ? this.#byName(wanted.name) : undefined);
    if (existing && flags & NLM.EXCL) fail('EEXIST');
    if (existing) {
      this.#changeLink(existing, wanted);
      return;
    }
    if (!(flags & NLM.CREATE)) fail('ENODEV');
    if (wanted.attributes.has(IFLA.AF_SPEC)) fail('EAFNOSUPPORT');
    if (wanted.kind === 'vxlan' && this.#isTunnelTaken(wanted.data)) fail('EEXIST');
    if (wanted.kind === 'veth') this.#newPair(wanted);
    else this.#add(wanted);
  }

  #isTunnelTaken(data: ReadonlyMap<number, Buffer>): boolean {
    return [...this.links.values()].some((link) => link.kind === 'vxlan' && tunnelOf(link.data) === tunnelOf(data));
  }

  #newPair(wanted: ReturnType<typeof parseLinkRequest>): void {
    const peer = parseLinkRequest(wanted.data.get(IFLA.VETH_INFO_PEER) ?? fail('EINVAL'));
    const fd = u32Of(peer.attributes.get(IFLA.NET_NS_FD));
    const netns = fd === undefined ? this : this.#kernel.byFd(fd);
    if (peer.name !== undefined && netns.#byName(peer.name)) fail('EEXIST');
    const far = netns.#add({ ...peer, kind: 'veth' });
    const near = this.#add(wanted);
    near.peerIfindex = far.ifindex;
    far.peerIfindex = near.ifindex;
    this.#kernel.veths.set(near, { netns, link: far });
    this.#kernel.veths.set(far, { netns: this, link: near });
  }

  #add(wanted: ReturnType<typeof parseLinkRequest>): FakeLink {
    const link = newLink(this.#nextIfindex++, wanted);
    this.links.set(link.ifindex, link);
    const defaults = { accept_ra: '1', accept_redirects: '1', disable_ipv6: '0' };
    for (const [name, value] of Object.entries(defaults)) this.files.set(`net/ipv6/conf/${link.name}/${name}`, value);
    this.files.set(`net/ipv4/conf/${link.name}/accept_redirects`, '1');
    return link;
  }

  /** A vxlan takes its own VNI and port for a change, and refuses it. */
  #changeLink(link: FakeLink, { data, port }: ReturnType<typeof parseLinkRequest>): void {
    if (port.size > 0 && link.masterIfindex === 0) fail('ENOTSUP');
    for (const [type, value] of port) link.port.set(type, value);
    if (link.kind === 'bridge') for (const [type, value] of data) link.data.set(type, value);
    if (link.kind !== 'vxlan') return;
    if (data.has(VXLAN.ID) || data.has(VXLAN.PORT)) fail('ENOTSUP');
    for (const type of [VXLAN.LOCAL, VXLAN.LOCAL6]) {
      const local = data.get(type);
      if (!local) continue;
      if (!link.data.has(type)) fail('ENOTSUP');
      link.data.set(type, local);
    }
  }

  #setLink(link: FakeLink, payload: Buffer): void {
    const attributes = parseAttributes(payload, 16);
    const mac = attributes.get(IFLA.ADDRESS);
    if (mac) {
      link.mac = macFromBytes(mac);
      this.#dropNeighbours(link);
    }
    link.mtuBytes = u32Of(attributes.get(IFLA.MTU)) ?? link.mtuBytes;
    link.group = u32Of(attributes.get(IFLA.GROUP)) ?? link.group;
    const master = u32Of(attributes.get(IFLA.MASTER));
    if (master !== undefined) this.#enslave(link, master);
    if ((attributes.get(IFLA.IFALIAS)?.length ?? 0) > ALIAS_MAX_BYTES) fail('ERANGE');
    link.alias = textOf(attributes.get(IFLA.IFALIAS)) ?? link.alias;
    const inet = parseAttributes(attributes.get(IFLA.AF_SPEC) ?? Buffer.alloc(0)).get(AF.INET);
    const conf = parseAttributes(parseAttributes(inet ?? Buffer.alloc(0)).get(IFLA.INET_CONF) ?? Buffer.alloc(0));
    for (const [number, value] of conf) link.ipv4Conf.set(number, value.readUInt32LE(0));
    if (payload.readUInt32LE(12) & IFF_UP) this.#switch(link, (payload.readUInt32LE(8) & IFF_UP) !== 0);
  }

  /** The forwarding entries of a port are its bridge's. */
  #enslave(link: FakeLink, masterIfindex: number): void {
    if (masterIfindex !== 0 && this.links.get(masterIfindex)?.kind !== 'bridge') fail('ENODEV');
    this.#neighbours.drop(link, [AF.BRIDGE]);
    enslave(link, masterIfindex);
  }

  /** With a link go its routes, IPv6 addresses and neighbours; IPv4 addresses and forwarding entries stay. */
  #switch(link: FakeLink, up: boolean): void {
    if (link.up && !up) {
      this.#routes.dropLink(link.ifindex);
      this.#addresses = this.#addresses.filter(
        ({ ifindex, ip }) => ifindex !== link.ifindex || familyOf(ip) === 'ipv4',
      );
      this.#dropNeighbours(link);
    }
    link.up = up;
  }

  /** Permanent ones too; with a change of the hardware address even when it is none. */
  #dropNeighbours(link: FakeLink): void {
    this.#neighbours.drop(link, [AF.INET, AF.INET6]);
  }

  #deleteLinks(payload: Buffer): void {
    const group = u32Of(parseAttributes(payload, 16).get(IFLA.GROUP));
    if (group === 0) fail('EPERM');
    const isMember = (link: FakeLink) => link.group === group;
    const members = group === undefined ? [this.#target(payload)] : [...this.links.values()].filter(isMember);
    if (members.length === 0) fail('ENODEV');
    for (const link of members) this.#delete(link);
  }

  #delete(link: FakeLink): void {
    if (!this.links.delete(link.ifindex)) return;
    for (const other of this.links.values()) if (other.masterIfindex === link.ifindex) this.#enslave(other, 0);
    this.#switch(link, false);
    this.#addresses = this.#addresses.filter(({ ifindex }) => ifindex !== link.ifindex);
    this.#neighbours.drop(link, [AF.INET, AF.INET6, AF.BRIDGE]);
    for (const path of [...this.files.keys()]) if (path.includes(`/conf/${link.name}/`)) this.files.delete(path);
    const peer = this.#kernel.veths.get(link);
    this.#kernel.veths.delete(link);
    if (peer) peer.netns.#delete(peer.link);
  }

  // Addresses.

  #changeAddress(type: number, payload: Buffer, flags: number): void {
    const ifindex = payload.readUInt32LE(4);
    const attributes = parseAttributes(payload, 8);
    const ip = ipOf(attributes.get(IFA.LOCAL) ?? attributes.get(IFA.ADDRESS)) ?? fail('EINVAL');
    const prefixLength = payload.readUInt8(1);
    const link = this.links.get(ifindex) ?? fail('ENODEV');
    const isSame = (other: FakeAddress) =>
      other.ifindex === ifindex && other.ip === ip && (familyOf(ip) === 'ipv6' || other.prefixLength === prefixLength);
    const found = this.#addresses.find(isSame);
    if (type === RTM.DELADDR) {
      if (!found) fail('EADDRNOTAVAIL');
      this.#addresses = this.#addresses.filter((other) => other !== found);
      this.#routes.dropSource(ip);
      if (familyOf(ip) === 'ipv4') this.#dropWithLastAddress(link);
      return;
    }
    if (found && flags & NLM.EXCL) fail('EEXIST');
    if (familyOf(ip) === 'ipv6' && this.files.get(`net/ipv6/conf/${link.name}/disable_ipv6`) === '1') fail('EACCES');
    if (!found) this.#addresses.push({ ifindex, ip, prefixLength });
  }

  /** IPv4 ends on a link with its last address. */
  #dropWithLastAddress(link: FakeLink): void {
    if (this.#addresses.some(({ ifindex, ip }) => ifindex === link.ifindex && familyOf(ip) === 'ipv4')) return;
    this.#routes.dropLink(link.ifindex, AF.INET);
    this.#neighbours.drop(link, [AF.INET]);
  }

  #getAddresses(payload: Buffer): readonly NetlinkMessage[] {
    const ifindex = payload.readUInt32LE(4);
    return this.#addresses
      .filter(({ ip, ifindex: on }) => factsOf(ip).addressFamily === payload[0] && (ifindex === 0 || on === ifindex))
      .map(({ ip, prefixLength, ifindex: on }) => {
        const bytes = attribute(IFA.ADDRESS, bytesOf(ip));
        const local = familyOf(ip) === 'ipv4' ? [attribute(IFA.LOCAL, bytesOf(ip))] : [];
        const header = addressHeader(factsOf(ip).addressFamily, { prefixLength, ifindex: on });
        return message(RTM.NEWADDR, Buffer.concat([header, bytes, ...local]));
      });
  }
}
