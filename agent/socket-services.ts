/** Services at the sockets of this node, beside their maps: the programs, the sockets that a change leaves behind, figures. */
import type { Logger } from 'pino';
import { DatagramSockets, type DatagramSocketsOptions } from './kernel/bpf/datagram-sockets.ts';
import type { BpfLane } from './kernel/bpf/lane.ts';
import { writeScope } from './kernel/bpf/service-mode.ts';
import type { Fragment } from './model/fragment.ts';
import { type Key, keyOf, SOCKET_HOOKS } from './model/items.ts';
import { type Backend, type BackendSet, type Frontend, isSetId } from './model/services.ts';
import { socketPrograms } from './plan/services/socket-items.ts';
import type { BatchReport, Reconciler } from './reconcile/reconciler.ts';
import type { Change } from './reconcile/types.ts';

export interface SocketServicesOptions {
  readonly lane: BpfLane;
  readonly reconciler: Pick<Reconciler, 'known'>;
  /** Network namespaces of the pods. */
  readonly namespaces: DatagramSocketsOptions['namespaces'];
  /** Whose sockets are translated. */
  readonly scope: DatagramSocketsOptions['scope'];
  readonly log: Logger;
}

/** What `tulle status --json` and the metrics show. */
export interface SocketServicesStatus {
  readonly usage: ReturnType<BpfLane['usage']>;
  /** Whose sockets are translated; absent until all Services were written: that of an agent before this one may still hold. */
  readonly scope?: SocketServicesOptions['scope'];
  /** Sockets and datagrams by what became of them, since the maps were made. Up to 2^53, then inexact. */
  readonly counters: Readonly<Record<string, number>>;
}

const NEARLY_FULL = 0.9;
const SETTING_OF = {
  frontends: 'services.ebpf.maxFrontends',
  backends: 'services.ebpf.maxBackends',
} as const satisfies Record<keyof ReturnType<BpfLane['usage']>, string>;

export class SocketServices {
  /** To be entered once all Services are. */
  readonly programs: Fragment;
  readonly #lane: BpfLane;
  readonly #reconciler: Pick<Reconciler, 'known'>;
  readonly #sockets: DatagramSockets;
  readonly #scope: SocketServicesOptions['scope'];
  readonly #attached = Promise.withResolvers<void>();
  #isWritten = false;

  constructor({ lane, reconciler, namespaces, scope, log }: SocketServicesOptions) {
    this.programs = socketPrograms(lane.build);
    this.#lane = lane;
    this.#scope = scope;
    this.#reconciler = reconciler;
    const { connectedSockets } = lane;
    this.#sockets = new DatagramSockets({
      connectedSockets,
      namespaces,
      scope,
      backendsOf: (at) => this.#backendsOf(at),
      log,
    });
  }

  /**
   * Once: all Services were written, for packets too. Until then nobody can tell which sockets have lost their backend (maps of
   * another size begin empty), and pods that are left to packets from now on had no rules.
   */
  written(): void {
    this.#isWritten = true;
    writeScope(this.#lane, this.#scope);
    void this.#sockets.takeOver();
    void this.#sockets.follow();
  }

  /** Resolves once the programs are attached: until then no socket is served, whatever was tried. */
  async attached(): Promise<void> {
    if (!this.#isAttached()) await this.#attached.promise;
  }

  onBatch({ kind, changes }: BatchReport): void {
    if (kind === 'attachment' && this.#isAttached()) this.#attached.resolve();
    if (!this.#isWritten) return;
    if (kind === 'frontend' && changes.some(mayStrand)) void this.#sockets.follow();
    if (kind === 'attachment' && changes.some(({ action }) => action === 'create')) void this.#sockets.takeOver();
  }

  /** Who was just connecting when its backend went was missed. */
  async keep(): Promise<void> {
    if (this.#isWritten) await this.#sockets.follow();
  }

  status(): SocketServicesStatus {
    const counters = Object.entries(this.#lane.counters()).map(([name, count]) => [name, Number(count)]);
    const scope = this.#isWritten ? { scope: this.#scope } : {};
    return { usage: this.#lane.usage(), ...scope, counters: Object.fromEntries(counters) };
  }

  /** One sentence for each map that will soon be full: what does not fit is not served at sockets. */
  problems(): readonly string[] {
    const nearlyFull = Object.entries(this.#lane.usage()).filter(([, { used, max }]) => used > max * NEARLY_FULL);
    return nearlyFull.map(
      ([map, { used, max }]) =>
        `the map of ${map} holds ${used} of at most ${max}: set ${SETTING_OF[map as keyof typeof SETTING_OF]} higher before it is full`,
    );
  }

  #isAttached(): boolean {
    const { build } = this.#lane;
    return SOCKET_HOOKS.every((hook) => this.#reconciler.known(keyOf('attachment', { hook, build }))?.build === build);
  }

  /** By what is known of the maps. Undefined where the programs leave datagrams alone. */
  #backendsOf(at: Backend): readonly Backend[] | undefined {
    const frontend = this.#reconciler.known(datagramKey(at));
    if (frontend === undefined || frontend.sourceRanges) return undefined;
    const { target } = frontend;
    return isSetId(target) ? this.#reconciler.known(keyOf('backend-set', { id: target } as BackendSet))?.backends : [];
  }
}

const datagramKey = (at: Backend): Key<'frontend'> =>
  keyOf('frontend', { scope: 'internal', ...at, protocol: 'UDP' } as Frontend);

/** Whether sockets may have been connected by what there was before. */
const mayStrand = (change: Change): boolean =>
  change.kind === 'frontend' && change.action !== 'create' && change.from.protocol === 'UDP';
