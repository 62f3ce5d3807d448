/** Puts the rooms together: watch → plan → state → reconciler → drivers, and the CNI server beside them. */
import { mkdirSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { renderConflist } from '../cni/conflist.ts';
import { ApiClient } from './cluster/api-client.ts';
import { type ClusterStatus, ClusterWatch } from './cluster/cluster.ts';
import type { CredentialsSource } from './cluster/credentials.ts';
import type { Config } from './config.ts';
import { requireCapabilities } from './kernel/capabilities.ts';
import { type Kernel, openKernel } from './kernel/kernel.ts';
import type { Host } from './model/host.ts';
import { BACKENDS } from './plan/backends.ts';
import { type Plan, Planner } from './plan/planner.ts';
import { planPod } from './plan/pods.ts';
import type { Underlay } from './plan/underlay.ts';
import { Attachments, type Readiness } from './pods/attachments.ts';
import { CniServer } from './pods/cni-server.ts';
import { DeleteQueue } from './pods/delete-queue.ts';
import { installConflist, installExecutable } from './pods/install.ts';
import { type PodRecord, PodRecords } from './pods/records.ts';
import { KernelState } from './reconcile/kernel-state.ts';
import { Reconciler, type ReconcilerStatus } from './reconcile/reconciler.ts';
import { holdNetworkNamespace } from './single-agent.ts';
import { serveControl } from './telemetry/control-server.ts';

/** How often attachments whose pods vanished without a DEL are looked for. */
const COLLECT_INTERVAL_MS = 30_000;
const INSTALL_RETRY_MS = 2_000;

export interface AgentOptions {
  readonly config: Config;
  readonly credentials: CredentialsSource;
  /** The CNI executable that belongs to this agent. */
  readonly executable: string;
  readonly version: string;
  readonly log: Logger;
}

/** Runs until the signal aborts. Rejects when the agent cannot start; stopping changes nothing in the kernel. */
export async function runAgent(options: AgentOptions, signal: AbortSignal): Promise<void> {
  const { config, log } = options;
  requireCapabilities();
  await holdNetworkNamespace(signal);
  mkdirSync(config.runDir, { recursive: true, mode: 0o700 });
  const kernel = await openKernel({ config, log: log.child({ component: 'kernel' }) }, signal);
  await new Agent(options, kernel).run(signal);
}

/** What `tulle status --json` prints. */
export interface AgentStatus {
  readonly version: string;
  readonly nodeName: string;
  readonly backend: Config['backend'];
  readonly readiness: Readiness;
  /** Absent before the cluster has answered. */
  readonly underlay?: Underlay;
  readonly host: { readonly kernel: string; readonly iptables: string };
  readonly cluster: ClusterStatus;
  readonly attachments: readonly PodRecord[];
  readonly kernel: ReconcilerStatus;
}

class Agent {
  readonly #options: AgentOptions;
  readonly #kernel: Kernel;
  readonly #state: KernelState;
  readonly #reconciler: Reconciler;
  readonly #watch: ClusterWatch;
  readonly #planner = new Planner();
  readonly #attachments: Attachments;
  readonly #queue: DeleteQueue;
  readonly #server: CniServer;
  #host: Host;
  #plan: Plan | undefined;
  #planScheduled = false;
  /** The node's own network has been in the kernel once; from then on the conflist stands. */
  #installed = false;
  #installing: Promise<void> | undefined;

  constructor({ config, credentials, log, ...rest }: AgentOptions, kernel: Kernel) {
    this.#options = { config, credentials, log, ...rest };
    this.#kernel = kernel;
    this.#host = kernel.host();
    this.#state = new KernelState(kernel.merge);
    this.#reconciler = new Reconciler({
      state: this.#state,
      drivers: kernel.drivers,
      log: log.child({ component: 'reconcile' }),
      options: { resyncIntervalMs: config.resyncSeconds * 1000 },
    });
    this.#watch = new ClusterWatch({
      client: new ApiClient({ credentials }),
      nodeName: config.nodeName,
      log: log.child({ component: 'cluster' }),
    });
    const cniLog = log.child({ component: 'cni' });
    const readiness = () => this.readiness();
    this.#attachments = new Attachments({
      state: this.#state,
      reconciler: this.#reconciler,
      records: new PodRecords(config.runDir, cniLog),
      planPod,
      readiness,
      identifyNetns: kernel.identifyNetns,
      describePodLink: kernel.describePodLink,
      reuseDelayMs: config['ipam.reuseDelaySeconds'] * 1000,
      log: cniLog,
    });
    this.#queue = new DeleteQueue({ runDir: config.runDir, attachments: this.#attachments, log: cniLog });
    this.#server = new CniServer({
      runDir: config.runDir,
      attachments: this.#attachments,
      queue: this.#queue,
      readiness,
      log: cniLog,
    });
  }

  async run(signal: AbortSignal): Promise<void> {
    const { config, executable, log } = this.#options;
    this.#reconciler.start(signal);
    this.#watch.start(signal);
    await serveControl(
      config.runDir,
      { status: () => this.status(), diff: (gone) => this.#reconciler.diff(gone) },
      signal,
    );
    await this.#reconciler.listed;
    this.#attachments.restore();
    installExecutable(executable, config.cniBinDir);
    await this.#queue.drainThen(() => this.#server.listen());
    this.#follow(signal);
    log.info('the agent runs');
    await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
    await this.#server.close();
    await this.#watch.stopped();
    await this.#kernel.close();
  }

  readiness(): Readiness {
    const underlay = this.#plan?.underlay;
    if (!underlay)
      return { ready: false, reason: this.#watch.snapshot().synced ? 'the agent is starting' : this.#whyNotSynced() };
    if (underlay.podNetworks.length === 0 || !this.#installed) {
      const problem =
        underlay.problems[0] ?? this.#state.problems()[0]?.problem ?? 'its own network is not in the kernel yet';
      return { ready: false, reason: problem };
    }
    return { ready: true, podCidrs: underlay.podNetworks.map(({ cidr }) => cidr), mtuBytes: underlay.mtuBytes };
  }

  status(): AgentStatus {
    const { config, version } = this.#options;
    const underlay = this.#plan?.underlay;
    return {
      version,
      nodeName: config.nodeName,
      backend: config.backend,
      readiness: this.readiness(),
      ...(underlay && { underlay }),
      host: { kernel: this.#host.kernel.release, iptables: this.#kernel.iptables },
      cluster: this.#watch.status(),
      attachments: this.#attachments.list(),
      kernel: this.#reconciler.status(),
    };
  }

  /** Plans after every change of the cluster or of the host; a burst of changes is planned once. */
  #follow(signal: AbortSignal): void {
    this.#watch.onChange(() => this.#schedulePlan(signal));
    this.#kernel.onHostChange((host) => {
      this.#host = host;
      this.#schedulePlan(signal);
    });
    this.#schedulePlan(signal);
    const timer = setInterval(() => void this.#housekeep(), COLLECT_INTERVAL_MS);
    timer.unref();
    signal.addEventListener('abort', () => clearInterval(timer));
  }

  async #housekeep(): Promise<void> {
    try {
      await this.#attachments.collect();
      await this.#queue.drain();
    } catch (err) {
      this.#options.log.warn({ err }, 'left-over attachments cannot be released yet');
    }
  }

  #schedulePlan(signal: AbortSignal): void {
    if (this.#planScheduled) return;
    this.#planScheduled = true;
    setImmediate(() => {
      this.#planScheduled = false;
      if (!signal.aborted) this.#replan(signal);
    });
  }

  /** Nothing derived from the cluster is written before every cache has synced once. */
  #replan(signal: AbortSignal): void {
    const { config } = this.#options;
    const cluster = this.#watch.snapshot();
    if (!cluster.synced) return;
    const first = this.#plan === undefined;
    const before = this.#plan?.fragments ?? new Map();
    const plan = this.#planner.plan({
      nodeName: config.nodeName,
      cluster,
      host: this.#host,
      settings: config,
      backend: BACKENDS[config.backend],
    });
    this.#plan = plan;
    for (const [id, fragment] of plan.fragments) this.#state.replace(id, fragment);
    for (const id of before.keys()) if (!plan.fragments.has(id)) this.#state.replace(id, undefined);
    if (plan.underlay.podNetworks.length > 0) this.#attachments.follow(plan.underlay.mtuBytes);
    if (first) this.#reconciler.enableSweep();
    if (plan.underlay.podNetworks.length > 0)
      this.#installing ??= this.#install(signal).catch((err: unknown) => this.#installFailed(err, signal));
  }

  /** The conflist is what tells the runtime that pods can start: written last, when the node's own network stands. */
  async #install(signal: AbortSignal): Promise<void> {
    const { config, log } = this.#options;
    await this.#settleOwnNetwork(signal);
    installConflist(renderConflist({ chain: config['cni.chain'] }), config.cniConfDir);
    this.#installed = true;
    log.info(this.readiness(), 'ready for pods');
    await this.#kernel.sweepOtherBackend(signal);
  }

  /** Until it succeeds: what keeps the node from being ready is logged once, and shown by status. */
  async #settleOwnNetwork(signal: AbortSignal): Promise<void> {
    for (let told = ''; ; ) {
      const own = [...(this.#plan?.fragments.values() ?? [])].filter(({ rank }) => rank === '');
      try {
        return await this.#reconciler.settle(
          own.flatMap(({ items }) => items.map(({ key }) => key)),
          signal,
        );
      } catch (err) {
        signal.throwIfAborted();
        const reason = String(err);
        if (reason !== told)
          this.#options.log.error({ err }, "not ready for pods: the node's own network cannot be set up");
        told = reason;
        // A settle would try again at once; the reconciler has its own backoff.
        await delay(INSTALL_RETRY_MS, undefined, { signal });
      }
    }
  }

  #installFailed(err: unknown, signal: AbortSignal): void {
    if (!signal.aborted)
      this.#options.log.error({ err }, 'the network configuration cannot be installed; tried again at the next change');
    this.#installing = undefined;
  }

  #whyNotSynced(): string {
    const failing = this.#watch.status().resources.find(({ error }) => error);
    return failing?.error ? `the cluster API cannot be read: ${failing.error}` : 'the cluster API has not answered yet';
  }
}
