/**
 * The ports of this node that its pods ask for. Who has one is decided here, at ADD; what it comes to in the kernel follows
 * the addresses of the node, so it is planned again whenever these change.
 */
import { CNI_CODES, CniError } from '../../cni/protocol.ts';
import { attachmentName, type HostPortPod, hostPortsId } from '../model/attachment.ts';
import type { Fragment, FragmentId } from '../model/fragment.ts';
import type { Key } from '../model/items.ts';
import { collide, mappingText } from '../model/port-mapping.ts';
import type { KernelState } from '../reconcile/kernel-state.ts';
import { type PodRecord, type RecordKey, recordKey } from './records.ts';

/** What pods with host ports come to on this node. Pure; another function when the node has changed. */
export type PlanHostPorts = (pods: readonly HostPortPod[]) => readonly Fragment[];

export class HostPorts {
  readonly #state: Pick<KernelState, 'replace'>;
  /** Those that are not on their way out. */
  readonly #pods = new Map<RecordKey, HostPortPod>();
  readonly #planned = Promise.withResolvers<void>();
  #plan: PlanHostPorts | undefined;
  #entered: ReadonlySet<FragmentId> = new Set();

  constructor(state: Pick<KernelState, 'replace'>) {
    this.#state = state;
  }

  /** Plans by this from now on. The same function again is a no-op. */
  follow(plan: PlanHostPorts): void {
    if (plan === this.#plan) return;
    this.#plan = plan;
    this.#replan();
    this.#planned.resolve();
  }

  /** Resolves when ports can be planned. Rejects with the reason of the signal. */
  async ready(signal: AbortSignal): Promise<void> {
    const { promise, reject } = Promise.withResolvers<never>();
    const onAbort = (): void => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      signal.throwIfAborted();
      await Promise.race([this.#planned.promise, promise]);
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  /**
   * Throws CniError 11 when a port is another pod's. One that was made again under its name takes the ports over, as its
   * predecessor is about to go; so does anybody from what is dead and was never deleted.
   */
  requireFree(record: PodRecord, isAlive: (other: HostPortPod) => boolean): void {
    for (const mapping of record.portMappings ?? []) {
      for (const other of this.#pods.values()) {
        if (attachmentName(other) === attachmentName(record) || !isAlive(other)) continue;
        if (!other.portMappings.some((each) => collide(each, mapping))) continue;
        throw new CniError(
          CNI_CODES.tryAgainLater,
          `cannot give ${attachmentName(record)} the host port ${mappingText(mapping)}: expected one that is free on this node, got one that ${attachmentName(other)} has; remove one of the two pods, or give it another hostPort`,
        );
      }
    }
  }

  /** Lets the ports of an attachment be served, as the fragment hostPortsId; once they can be planned. */
  enter(record: PodRecord): void {
    const { portMappings } = record;
    if (!portMappings) return;
    const former = this.#pods.get(recordKey(record));
    this.#pods.set(recordKey(record), { ...record, portMappings });
    if (former?.portMappings !== portMappings) this.#replan();
  }

  /** The reverse. What the ports had in the kernel, also of what has left before. */
  leave(record: PodRecord): readonly Key[] {
    const { portMappings } = record;
    if (!portMappings) return [];
    if (this.#pods.delete(recordKey(record))) this.#replan();
    const fragments = this.#plan?.([{ ...record, portMappings }]) ?? [];
    return fragments.filter(({ shared }) => !shared).flatMap(({ items }) => items.map(({ key }) => key));
  }

  /** All of them: they are few, and what has not changed does not become dirty. */
  #replan(): void {
    const fragments = this.#plan?.([...this.#pods.values()]) ?? [];
    for (const fragment of fragments) this.#state.replace(fragment.id, fragment);
    const entered = new Set([...this.#pods.values()].map(hostPortsId));
    for (const id of this.#entered.difference(entered)) this.#state.replace(id, undefined);
    this.#entered = entered;
  }
}
