/**
 * The CNI verbs on this node: one writer. ADD saves the record, lets the pod's fragment enter the state and waits until
 * the kernel holds it; DEL is the reverse. What happens to one container happens one after the other.
 */
import type { Logger } from 'pino';
import {
  type AddRequest,
  type CheckRequest,
  CNI_CODES,
  CniError,
  type DelRequest,
  type GcRequest,
  type PodResult,
} from '../../cni/protocol.ts';
import { type Attachment, attachmentName, hostPortsId, podFragmentId } from '../model/attachment.ts';
import type { Pod } from '../model/cluster.ts';
import type { Fragment, FragmentId } from '../model/fragment.ts';
import { type Cidr, familyOf, type IpAddress } from '../model/ip.ts';
import type { AnyItem, Key, PodBridge, PodLink, PodMtu } from '../model/items.ts';
import { podLinkName } from '../model/kernel-names.ts';
import type { PortMapping } from '../model/port-mapping.ts';
import type { KernelState } from '../reconcile/kernel-state.ts';
import type { Reconciler } from '../reconcile/reconciler.ts';
import { netnsOf, recordOf } from './add-request.ts';
import { toCniError } from './cni-errors.ts';
import type { HostPorts } from './host-ports.ts';
import { type AddressCount, type AddressUse, capacityOf, countAddresses, nextAddress } from './ipam.ts';
import { compareResult, resultOf } from './pod-result.ts';
import { type PodRecord, type PodRecords, recordKey } from './records.ts';
import { checkRequest, type StaticAddresses, type StaticRequest } from './static-addresses.ts';

/** Whether pods can be attached now, and with what. */
export type Readiness =
  | {
      readonly ready: true;
      readonly podCidrs: readonly Cidr[];
      readonly mtu: PodMtu;
      /** New pods are connected to this bridge; absent: they are routed. */
      readonly bridge?: PodBridge;
    }
  /** `limited`: pods that run may suffer from the same reason. */
  | { readonly ready: false; readonly reason: string; readonly limited?: true };

export interface AttachmentsOptions {
  readonly state: KernelState;
  readonly reconciler: Reconciler;
  readonly records: PodRecords;
  readonly planPod: (attachment: Attachment & PodMtu) => Fragment;
  readonly readiness: () => Readiness;
  /** Identity of the network namespace at a path. Throws KernelError when it is none, or the host's own. */
  readonly identifyNetns: (path: string) => { readonly device: string; readonly inode: string };
  /** What differs inside and outside between a pod link and the kernel, in words. */
  readonly describePodLink: (link: PodLink) => Promise<readonly string[]>;
  readonly staticAddresses: Pick<StaticAddresses, 'requestOf' | 'claims'>;
  /** Absent: whatever ports pods ask for, they are another plugin's business. */
  readonly hostPorts?: HostPorts;
  readonly reuseDelayMs: number;
  readonly log: Logger;
  readonly now?: () => number;
}

/** How long a removal may take before DEL is answered with an error. */
const REMOVE_TIMEOUT_MS = 8_000;

export class Attachments {
  readonly #options: AttachmentsOptions;
  readonly #now: () => number;
  /** The address given out last, by CIDR. */
  readonly #last = new Map<Cidr, IpAddress>();
  /** What each answer stands for, as long as somebody holds it. */
  readonly #made = new WeakMap<PodResult, PodRecord>();
  /** The end of the queue of each container that has something under way. */
  readonly #turns = new Map<string, Promise<unknown>>();

  constructor(options: AttachmentsOptions) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
  }

  /** Takes up the records of an earlier process, after the kernel was listed: what lives is planned, the rest released. */
  restore(): void {
    for (const record of this.#options.records.all()) {
      if (this.#isAlive(record)) this.#plan(record);
      else this.#release(record, 'its namespace is gone');
    }
  }

  /** Gives every attachment this MTU, except those that are being removed. */
  follow(mtu: PodMtu): void {
    const { records, state } = this.#options;
    for (const record of records.all()) {
      if (hasMtu(record, mtu) || !state.fragment(podFragmentId(record))) continue;
      const moved = Object.freeze({ ...record, ...mtu });
      this.#plan(moved);
      try {
        records.save(moved);
      } catch (err) {
        // The kernel has the right MTU; a restart would follow again.
        this.#options.log.warn({ err, pod: attachmentName(record) }, 'the MTU of a pod cannot be recorded');
      }
    }
  }

  /** For `tulle status`. */
  list(): readonly PodRecord[] {
    return this.#options.records.all();
  }

  /** For `tulle status` and metrics: addresses that are taken and left, of each podCIDR. */
  addresses(podCidrs: readonly Cidr[]): readonly AddressCount[] {
    const use = this.#addressUse(this.#claims());
    return podCidrs.map((cidr) => countAddresses(cidr, use));
  }

  /** Releases what no runtime will ever delete: records whose link and namespace are both gone. */
  async collect(): Promise<void> {
    const { records, reuseDelayMs, log } = this.#options;
    for (const record of records.all()) {
      if (this.#isAlive(record)) continue;
      try {
        await this.#inTurn(record.containerId, async () => {
          if (records.get(recordKey(record)) === record && !this.#isAlive(record)) await this.#remove(record);
        });
      } catch (err) {
        log.warn({ err, pod: attachmentName(record) }, 'an attachment without a pod cannot be released yet');
      }
    }
    records.forgetReleased(this.#now() - reuseDelayMs);
  }

  add(request: AddRequest, signal: AbortSignal): Promise<PodResult> {
    return this.#inTurn(request.containerId, async () => {
      const record = await this.#reserve(request, signal);
      // The way to a host port is shared with others, and may have to be made as well.
      const keys = [...this.#plan(record), ...this.#itemsWithin(hostPortsId(record)).map(({ key }) => key)];
      try {
        await this.#options.reconciler.settle(keys, signal);
      } catch (cause) {
        await this.#remove(record);
        throw toCniError(cause, `connect ${attachmentName(record)}`);
      }
      this.#warn(record);
      const result = resultOf(record, this.#linkOf(record) as PodLink);
      this.#made.set(result, record);
      return result;
    });
  }

  /** Removes what this very ADD made, and nothing that came after it. */
  undo(result: PodResult): Promise<void> {
    const record = this.#made.get(result);
    if (!record) return Promise.resolve();
    return this.#inTurn(record.containerId, async () => {
      const current = this.#options.records.get(recordKey(record));
      // The same attachment, whatever has been recorded of its MTU since.
      if (current && current.netns === record.netns) await this.#remove(current);
    });
  }

  /** Succeeds when nothing of the attachment is left, also when there never was any (SPEC, DEL). */
  del({ containerId, ifName }: Pick<DelRequest, 'containerId' | 'ifName'>): Promise<void> {
    return this.#inTurn(containerId, async () => {
      const records = this.#options.records.ofContainer(containerId);
      const asked = records.filter((record) => ifName === undefined || record.ifName === ifName);
      const outcomes = await Promise.allSettled(asked.map((record) => this.#remove(record)));
      for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
    });
  }

  /** Throws a CniError that names the first things that are missing or altered. */
  check(request: CheckRequest, signal: AbortSignal): Promise<void> {
    return this.#inTurn(request.containerId, async () => {
      const record = this.#options.records.get(recordKey(request));
      if (!record)
        throw new CniError(
          CNI_CODES.unknownContainer,
          `container ${request.containerId} has no interface ${request.ifName} here: expected an earlier ADD`,
        );
      const differences = [...compareResult(record, request), ...(await this.#compareKernel(record, signal))];
      if (differences.length > 0) {
        throw new CniError(CNI_CODES.checkFailed, `the network of ${attachmentName(record)} is not as it was set up`, {
          details: differences.slice(0, 10).join('; '),
        });
      }
    });
  }

  /** Removes the attachments of this network that the runtime made and does not list (SPEC, GC). */
  async gc({ config, validAttachments, runtime }: GcRequest): Promise<void> {
    const valid = new Set(validAttachments.map(recordKey));
    const isOwn = (record: PodRecord) => record.network === config.name && record.runtime === runtime;
    const gone = this.#options.records.all().filter((record) => isOwn(record) && !valid.has(recordKey(record)));
    const outcomes = await Promise.allSettled(gone.map((record) => this.del(record)));
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed) throw failed.reason;
  }

  /**
   * Throws the CniError that says why no ADD can be served now (SPEC, STATUS). A node whose addresses are all in use is no
   * such case: it serves the pods that it has, and a runtime would call it NotReady. The ADD that finds none says so.
   */
  status(): void {
    const readiness = this.#options.readiness();
    if (readiness.ready) return;
    const code = readiness.limited ? CNI_CODES.limitedConnectivity : CNI_CODES.notAvailable;
    throw new CniError(code, `the network of this node is not ready: ${readiness.reason}`);
  }

  #requireReady(): Extract<Readiness, { ready: true }> {
    const readiness = this.#options.readiness();
    if (!readiness.ready)
      throw new CniError(CNI_CODES.tryAgainLater, `the network of this node is not ready: ${readiness.reason}`);
    return readiness;
  }

  /** Checks the request and takes addresses for it; the saved record holds them. */
  async #reserve(request: AddRequest, signal: AbortSignal): Promise<PodRecord> {
    const { records, staticAddresses, hostPorts } = this.#options;
    this.#requireReady();
    const existing = records.get(recordKey(request));
    if (existing && this.#isAlive(existing)) {
      throw new CniError(
        CNI_CODES.invalidEnvironment,
        `container ${request.containerId} already has the interface ${request.ifName} (CNI_IFNAME): expected a DEL before another ADD`,
      );
    }
    if (existing) await this.#remove(existing);
    const netns = netnsOf(request, this.#options.identifyNetns);
    const wanted = await staticAddresses.requestOf(request.args, signal);
    if (this.#portsOf(request).length > 0) await hostPorts?.ready(signal);
    // Nothing is waited for from here on: two ADDs must not choose the same address or port.
    const ready = this.#requireReady();
    const { mtu, bridge } = ready;
    const ips = this.#allocate(ready.podCidrs, wanted);
    const portMappings = this.#portsOf(request);
    const record = recordOf(request, { netns, ips, mtu, bridge, portMappings, createdMs: this.#now() });
    hostPorts?.requireFree(record, (other) => this.#isAlive(other));
    try {
      records.save(record);
    } catch (cause) {
      throw toCniError(cause, `save the record of ${attachmentName(record)}`);
    }
    hostPorts?.enter(record);
    return record;
  }

  /** Of several interfaces of one container the first has its ports. */
  #portsOf({ containerId, config: { runtimeConfig } }: AddRequest): readonly PortMapping[] {
    const { records, hostPorts } = this.#options;
    if (!hostPorts || runtimeConfig.portMappings.length === 0) return [];
    const isServed = records.ofContainer(containerId).some(({ portMappings }) => portMappings !== undefined);
    return isServed ? [] : runtimeConfig.portMappings;
  }

  /** One address of each CIDR: the one that the pod asks for, or the next that is free and asked for by no other. */
  #allocate(podCidrs: readonly Cidr[], wanted: StaticRequest): readonly IpAddress[] {
    const { records } = this.#options;
    const claims = this.#claims();
    const holderOf = (ip: IpAddress) => {
      const holder = records.inUse.get(ip);
      return holder && attachmentName(holder);
    };
    checkRequest(wanted, { podCidrs, holderOf, claims });
    const use = this.#addressUse(claims);
    return podCidrs.map((cidr) => wanted.ips.find((ip) => familyOf(ip) === familyOf(cidr)) ?? this.#nextOf(cidr, use));
  }

  #claims(): ReadonlyMap<IpAddress, Pod> {
    const { records, staticAddresses } = this.#options;
    return staticAddresses.claims(() => new Set(records.all().flatMap(({ podUid }) => podUid ?? [])));
  }

  #addressUse(claims: ReadonlyMap<IpAddress, Pod>): Omit<AddressUse, 'last'> {
    const { records, reuseDelayMs } = this.#options;
    const { inUse, released } = records;
    return {
      inUse: claims.size === 0 ? inUse : new Map<IpAddress, unknown>([...inUse, ...claims]),
      released,
      restedMs: this.#now() - reuseDelayMs,
    };
  }

  #nextOf(cidr: Cidr, use: Omit<AddressUse, 'last'>): IpAddress {
    const ip = nextAddress(cidr, { ...use, last: this.#lastOf(cidr) });
    if (ip === undefined) throw noAddress(cidr);
    this.#last.set(cidr, ip);
    return ip;
  }

  /** After a restart the round goes on after the youngest attachment. */
  #lastOf(cidr: Cidr): IpAddress | undefined {
    const youngest = () => this.#options.records.all().toSorted((a, b) => b.createdMs - a.createdMs)[0];
    return this.#last.get(cidr) ?? youngest()?.ips.find((ip) => familyOf(ip) === familyOf(cidr));
  }

  #plan(record: PodRecord): readonly Key[] {
    const { state, planPod, hostPorts } = this.#options;
    hostPorts?.enter(record);
    return state.replace(podFragmentId(record), planPod(record));
  }

  async #remove(record: PodRecord): Promise<void> {
    const { state, reconciler, planPod, hostPorts } = this.#options;
    // What is not wanted any more may still be there: an earlier removal may have failed half-way.
    const fragment = state.fragment(podFragmentId(record)) ?? planPod(record);
    const keys = [...fragment.items.map(({ key }) => key), ...(hostPorts?.leave(record) ?? [])];
    state.replace(podFragmentId(record), undefined);
    try {
      await reconciler.settle(keys, AbortSignal.timeout(REMOVE_TIMEOUT_MS));
    } catch (cause) {
      throw toCniError(cause, `disconnect ${attachmentName(record)}`, CNI_CODES.tryAgainLater);
    }
    this.#options.records.release(record, this.#now());
  }

  #release(record: PodRecord, reason: string): void {
    this.#options.records.release(record, this.#now());
    this.#options.log.info(
      { pod: attachmentName(record), containerId: record.containerId, reason },
      'attachment released',
    );
  }

  /** A veth dies with its namespace; without a link, only the recorded namespace itself counts, never its path. */
  #isAlive(record: Pick<PodRecord, 'containerId' | 'ifName' | 'netns'>): boolean {
    if (this.#options.reconciler.known(`pod-link ${podLinkName(record.containerId, record.ifName)}`)) return true;
    try {
      const { device, inode } = this.#options.identifyNetns(record.netns.path);
      return device === record.netns.device && inode === record.netns.inode;
    } catch {
      // Nothing answers at the path, or not a network namespace: the recorded one is gone.
      return false;
    }
  }

  async #compareKernel(record: PodRecord, signal: AbortSignal): Promise<readonly string[]> {
    const { reconciler, describePodLink } = this.#options;
    const items = this.#itemsWithin(podFragmentId(record), hostPortsId(record));
    const own = new Set<Key>(items.flatMap(({ key, needs }) => [key, ...needs]));
    const changes = (await reconciler.diff(signal)).filter(({ key }) => own.has(key));
    const link = this.#linkOf(record);
    return [
      ...changes.map(({ action, key }) => `${key} ${action === 'create' ? 'is missing' : 'is altered'}`),
      ...(link ? await describePodLink(link) : []),
    ];
  }

  /** Of these fragments and of all that they require. */
  #itemsWithin(...ids: readonly FragmentId[]): readonly AnyItem[] {
    const fragments = new Map<FragmentId, Fragment>();
    const pending = [...ids];
    for (const id of pending) {
      const fragment = this.#options.state.fragment(id);
      if (!fragment || fragments.has(id)) continue;
      fragments.set(id, fragment);
      pending.push(...fragment.requires);
    }
    return [...fragments.values()].flatMap(({ items }) => items);
  }

  #linkOf(record: PodRecord): PodLink | undefined {
    const fragment = this.#options.state.fragment(podFragmentId(record));
    return fragment?.items.find(({ kind }) => kind === 'pod-link')?.value as PodLink | undefined;
  }

  /** What of a pod is not as it asks for, though it runs. */
  #warn(record: PodRecord): void {
    for (const problem of this.#options.state.fragment(hostPortsId(record))?.problems ?? [])
      this.#options.log.warn({ pod: attachmentName(record), problem }, 'a pod gets less than it asks for');
  }

  /** Runs `action` when everything asked before for this container is through. */
  #inTurn<T>(containerId: string, action: () => Promise<T>): Promise<T> {
    const result = (this.#turns.get(containerId) ?? Promise.resolve()).then(action);
    const end = result.then(
      () => undefined,
      () => undefined,
    );
    this.#turns.set(containerId, end);
    void end.then(() => {
      if (this.#turns.get(containerId) === end) this.#turns.delete(containerId);
    });
    return result;
  }
}

const hasMtu = (record: PodRecord, { mtuBytes, routeMtuBytes }: PodMtu): boolean =>
  record.mtuBytes === mtuBytes && record.routeMtuBytes === routeMtuBytes;

const noAddress = (cidr: Cidr): CniError =>
  new CniError(
    CNI_CODES.tryAgainLater,
    `no free address in podCIDR ${cidr}: all ${capacityOf(cidr)} are in use; delete pods or give the node a larger podCIDR`,
  );
