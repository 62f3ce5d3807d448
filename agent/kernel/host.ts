/** Facts about this host that planning needs, read again when links or addresses change. */
import { release } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import type { Host, HostLink } from '../model/host.ts';
import { families } from '../model/ip.ts';
import { parseAttributes } from './netlink/attributes.ts';
import { isOwnLink, isUnmarkedPodLink, type Links } from './netlink/links.ts';
import type { NetlinkClient, NetlinkMessage } from './netlink/message.ts';
import type { MonitorListener, NetlinkMonitor } from './netlink/monitor.ts';
import { readForwarding } from './netlink/netconf.ts';
import { addressHeader, IFA, ipOf, type LinkFacts, RTM, readLinkFacts } from './netlink/rtnetlink.ts';
import { retryDelayMs } from './retry-delay.ts';
import type { SysctlFiles } from './sysctl/files.ts';

/** Where the facts are read. */
export interface HostSources {
  readonly client: NetlinkClient;
  readonly links: Links;
  readonly sysctls: SysctlFiles;
  readonly randomFully: boolean;
  /** Host.sourceProgram. */
  readonly sourceProgram?: string | undefined;
  /** What a sysctl was before Tulle wrote it: the plan must not depend on what it has done. */
  readonly formerSysctl: (path: string) => string | undefined;
}

export interface HostOptions extends HostSources {
  readonly monitor: NetlinkMonitor;
  /** Told of a listener that threw: a fault of the agent's own. */
  readonly onFault?: (error: unknown) => void;
}

/** The newest facts; an equal reading keeps its identity and tells nobody. */
export class HostWatch {
  readonly #options: HostOptions;
  readonly #listeners: ((host: Host) => void)[] = [];
  #current: Host | undefined;
  #reading = false;
  #outdated = false;

  constructor(options: HostOptions) {
    this.#options = options;
  }

  /** Reads for the first time and then follows the monitor until the signal aborts. Throws KernelError. */
  async start(signal: AbortSignal): Promise<void> {
    const listener: MonitorListener = {
      message: (message, before) => concernsHost(message, before, this.#options.links) && this.#read(signal),
      lost: () => this.#read(signal),
    };
    this.#options.monitor.subscribe(listener, signal);
    this.#current = await readHost(this.#options);
  }

  get current(): Host {
    if (!this.#current) throw new Error('the host has not been read yet');
    return this.#current;
  }

  onChange(listener: (host: Host) => void): void {
    this.#listeners.push(listener);
  }

  /** One reading at a time; what comes meanwhile causes one more. */
  #read(signal: AbortSignal): void {
    this.#outdated = true;
    if (this.#reading) return;
    this.#reading = true;
    void this.#readWhileOutdated(signal).finally(() => {
      this.#reading = false;
    });
  }

  /** What cannot be read is tried until it can: no other notice need come. */
  async #readWhileOutdated(signal: AbortSignal): Promise<void> {
    for (let failures = 0; this.#outdated && !signal.aborted; ) {
      this.#outdated = false;
      const host = await readHost(this.#options).catch(() => undefined);
      if (!host) {
        this.#outdated = true;
        failures++;
        // An abort ends the wait and then the loop.
        await sleep(retryDelayMs(failures), undefined, { signal, ref: false }).catch(() => undefined);
        continue;
      }
      failures = 0;
      if (isDeepStrictEqual(host, this.#current)) continue;
      this.#current = host;
      for (const listener of this.#listeners) this.#tell(listener, host);
    }
  }

  #tell(listener: (host: Host) => void, host: Host): void {
    try {
      listener(host);
    } catch (error) {
      this.#options.onFault?.(error);
    }
  }
}

/** Pods' links come and go and say nothing about the host; should somebody else's look like one, its addresses do. */
const isOfPods = (facts: LinkFacts): boolean => isOwnLink(facts) || isUnmarkedPodLink(facts);

function concernsHost(message: NetlinkMessage, before: LinkFacts | undefined, links: Links): boolean {
  if (message.type === RTM.NEWADDR || message.type === RTM.DELADDR) {
    if (message.payload.length < 8) return false;
    const link = links.byIndex(message.payload.readUInt32LE(4));
    return !link || !isOwnLink(link);
  }
  if (readForwarding(message).length > 0) return true;
  const facts = readLinkFacts(message);
  if (!facts) return false;
  return !isOfPods(facts) || (before !== undefined && !isOfPods(before));
}

/** The facts as they are now. Throws KernelError. */
export async function readHost(sources: HostSources): Promise<Host> {
  const { client, links, sysctls, randomFully, sourceProgram, formerSysctl } = sources;
  const all = await links.refresh();
  const addresses = await readAddresses(client);
  const before = (path: string) => formerSysctl(path) ?? sysctls.read(path);
  const ipv6 = sysctls.read('net/ipv6/conf/all/disable_ipv6') === '0';
  const hostLinks = all
    .filter((facts) => !isOwnLink(facts))
    .map((facts) => hostLink(facts, addresses.get(facts.ifindex) ?? [], sysctls));
  const [major = 0, minor = 0] = release()
    .split('.')
    .map((part) => Number.parseInt(part, 10));
  return Object.freeze({
    links: hostLinks,
    ipv6,
    ipv6Forwarding: before('net/ipv6/conf/all/forwarding') === '1',
    randomFully,
    ...(sourceProgram !== undefined && { sourceProgram }),
    kernel: { release: release(), major, minor },
  });
}

function hostLink(
  { name, ifindex, mtuBytes, up }: LinkFacts,
  addresses: HostLink['addresses'],
  sysctls: SysctlFiles,
): HostLink {
  const acceptRa = /^[A-Za-z0-9_.:@-]+$/.test(name) ? sysctls.read(`net/ipv6/conf/${name}/accept_ra`) : undefined;
  return { name, ifindex, mtuBytes, up, addresses, ...(acceptRa !== undefined && { acceptRa }) };
}

async function readAddresses(client: NetlinkClient): Promise<ReadonlyMap<number, HostLink['addresses']>> {
  const byLink = new Map<number, HostLink['addresses']>();
  for (const { addressFamily } of families) {
    const dump = { type: RTM.GETADDR, payload: addressHeader(addressFamily), operation: 'list', object: 'addresses' };
    for (const { payload } of await client.dump(dump)) {
      const attributes = parseAttributes(payload, 8);
      // IFA_ADDRESS is the far end of a point-to-point link, IFA_LOCAL then the own one.
      const ip = ipOf(attributes.get(IFA.LOCAL)) ?? ipOf(attributes.get(IFA.ADDRESS));
      const ifindex = payload.readUInt32LE(4);
      if (ip) byLink.set(ifindex, [...(byLink.get(ifindex) ?? []), { ip, prefixLength: payload.readUInt8(1) }]);
    }
  }
  return byLink;
}
