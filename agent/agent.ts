/** Puts the rooms together: watch → plan → state → reconciler → drivers, and the CNI server beside them. */
import { mkdirSync } from 'node:fs';
import type { Logger } from 'pino';
import type { AgentStatus } from './agent-status.ts';
import { ApiClient } from './cluster/api-client.ts';
import { ClusterWatch } from './cluster/cluster.ts';
import type { CredentialsSource } from './cluster/credentials.ts';
import type { Config } from './config.ts';
import { readFormerUnderlay, saveUnderlay } from './former-underlay.ts';
import { Installer } from './installer.ts';
import { requireCapabilities } from './kernel/capabilities.ts';
import { type Kernel, openKernel } from './kernel/kernel.ts';
import { giveMemoryBack } from './memory.ts';
import { addressesOf, type Host } from './model/host.ts';
import { parseIpPort } from './model/ip-port.ts';
import { NodeServices } from './node-services.ts';
import { NodeTunnel } from './node-tunnel.ts';
import { BACKENDS } from './plan/backends.ts';
import { podBridge } from './plan/bridge.ts';
import { type Plan, type PlanInput, Planner } from './plan/planner.ts';
import { planPod, podMtu } from './plan/pods.ts';
import type { ServicesPlan } from './plan/services/services.ts';
import type { Underlay } from './plan/underlay.ts';
import { Planning } from './planning.ts';
import { Attachments, type Readiness } from './pods/attachments.ts';
import { CniServer } from './pods/cni-server.ts';
import { DeleteQueue } from './pods/delete-queue.ts';
import { conflistOf } from './pods/install.ts';
import { PodRecords } from './pods/records.ts';
import { StaticAddresses } from './pods/static-addresses.ts';
import { strayProblem } from './pods/strays.ts';
import { obstaclesOf } from './readiness.ts';
import { KernelState } from './reconcile/kernel-state.ts';
import { FAILING_AFTER } from './reconcile/list-schedule.ts';
import { type BatchReport, Reconciler } from './reconcile/reconciler.ts';
import type { Change } from './reconcile/types.ts';
import { holdNetworkNamespace } from './single-agent.ts';
import { serveControl } from './telemetry/control-server.ts';
import { Endpoint } from './telemetry/endpoint.ts';
import { healthPage, stuckLanes } from './telemetry/health.ts';
import { Metrics } from './telemetry/metrics.ts';
import { ProblemLog } from './telemetry/problem-log.ts';
import { compileEarly } from './tiering.ts';

/** How often attachments whose pods vanished without a DEL are looked for. */
const COLLECT_INTERVAL_MS = 30_000;

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
  const cluster = clusterSource(options);
  const opening = openKernel({ config, log: log.child({ component: 'kernel' }), resumesTunnel: true }, signal);
  // To know the kernel takes processes that are waited for: the cluster is listed meanwhile.
  const failed = new AbortController();
  cluster.watch.start(AbortSignal.any([signal, failed.signal]));
  const kernel = await opening.catch((error: unknown) => {
    failed.abort(error);
    throw error;
  });
  const served = { ...config, 'services.mode': kernel.services.mode };
  await new Agent({ ...options, config: served }, kernel, cluster).run(signal);
}

interface ClusterSource {
  readonly client: ApiClient;
  readonly watch: ClusterWatch;
}

function clusterSource({ config, credentials, log }: AgentOptions): ClusterSource {
  const client = new ApiClient({ credentials });
  const watch = new ClusterWatch({
    client,
    nodeName: config.nodeName,
    services: config['services.mode'] !== 'off',
    log: log.child({ component: 'cluster' }),
  });
  return { client, watch };
}

/** What `tulle status --json` prints. */
class Agent {
  readonly #options: AgentOptions;
  readonly #kernel: Kernel;
  readonly #state: KernelState;
  readonly #reconciler: Reconciler;
  readonly #client: ApiClient;
  readonly #watch: ClusterWatch;
  readonly #installer: Installer;
  readonly #attachments: Attachments;
  readonly #queue: DeleteQueue;
  readonly #server: CniServer;
  readonly #metrics = new Metrics(() => this.status());
  /** Absent where nobody may ask. */
  readonly #endpoint: Endpoint | undefined;
  readonly #services: NodeServices;
  readonly #tunnel: NodeTunnel;
  readonly #planning: Planning;
  #sweeps = false;
  #host: Host;
  #savedUnderlay: Underlay | undefined;

  constructor({ config, credentials, log, ...rest }: AgentOptions, kernel: Kernel, { client, watch }: ClusterSource) {
    this.#options = { config, credentials, log, ...rest };
    this.#kernel = kernel;
    this.#client = client;
    this.#watch = watch;
    this.#host = kernel.host();
    this.#state = new KernelState(kernel.merge);
    this.#reconciler = new Reconciler({
      state: this.#state,
      drivers: kernel.drivers,
      log: log.child({ component: 'reconcile' }),
      options: {
        resyncIntervalMs: config.resyncSeconds * 1000,
        onBatch: (report) => this.#onBatch(report),
        onList: (report) => this.#metrics.list(report),
        onCaughtUp: (durationMs) => this.#metrics.caughtUp(durationMs),
      },
    });
    this.#planning = new Planning({
      planner: new Planner(readFormerUnderlay(config.runDir, config.nodeName)),
      state: this.#state,
      reconciler: this.#reconciler,
      input: () => this.#planInput(),
      onServices: (services, signal) => this.#servicesPlanned(services, signal),
      log,
    });
    this.#installer = new Installer({
      ...rest,
      ...config,
      conflist: conflistOf(config),
      settle: (signal) => this.#reconciler.settle(this.#planning.ownKeys, signal),
      log,
    });
    this.#services = new NodeServices({
      config,
      served: kernel.services,
      state: this.#state,
      reconciler: this.#reconciler,
      cluster: () => this.#watch.snapshot(),
      attachments: () => this.#attachments.list(),
      log,
    });
    this.#tunnel = new NodeTunnel(() =>
      config.backend === 'tun' || kernel.tunnel.current() ? kernel.tunnel.status() : undefined,
    );
    const { hostPorts } = this.#services;
    const cniLog = log.child({ component: 'cni' });
    const readiness = () => this.readiness();
    this.#attachments = new Attachments({
      state: this.#state,
      reconciler: this.#reconciler,
      records: new PodRecords(config.runDir, cniLog),
      planPod: (attachment) => planPod(attachment, kernel.host()),
      readiness,
      identifyNetns: kernel.identifyNetns,
      describePodLink: kernel.describePodLink,
      staticAddresses: new StaticAddresses({
        namespaces: config['ipam.staticNamespaces'],
        source: {
          pods: () => this.#watch.snapshot().pods,
          onChange: (listener) => this.#watch.onChange(listener),
        },
      }),
      ...(hostPorts && { hostPorts }),
      reuseDelayMs: config['ipam.reuseDelaySeconds'] * 1000,
      log: cniLog,
    });
    this.#queue = new DeleteQueue({ runDir: config.runDir, attachments: this.#attachments, log: cniLog });
    this.#server = new CniServer({
      runDir: config.runDir,
      attachments: this.#attachments,
      queue: this.#queue,
      onCall: (call) => this.#metrics.call(call),
      log: cniLog,
    });
    this.#endpoint = this.#createEndpoint();
  }

  #createEndpoint(): Endpoint | undefined {
    const { config, log } = this.#options;
    const address = parseIpPort(config['metrics.address']);
    const pages = {
      '/metrics': () => this.#metrics.page(),
      '/healthz': () => healthPage(stuckLanes(this.#reconciler.work())),
      '/readyz': () => healthPage(this.#obstacles()),
    };
    const words = { purpose: 'metrics and health', alternative: 'set metrics.address to another one' };
    return address && new Endpoint({ address, pages, ...words, log });
  }

  async run(signal: AbortSignal): Promise<void> {
    const { config, log } = this.#options;
    this.#metrics.start(signal);
    await this.#endpoint?.listen();
    this.#reconciler.start(signal);
    const request = () => this.#planning.request({ isEvent: true });
    this.#watch.onChange(request);
    // For what has come by now.
    request();
    await serveControl(
      config.runDir,
      {
        status: () => this.status(),
        diff: (gone) => this.#diff(gone),
        settings: () => config,
        ...this.#services.answers,
      },
      signal,
    );
    await this.#reconciler.listed;
    this.#attachments.restore();
    await this.#queue.drainThen(() => this.#server.listen());
    this.#follow(signal);
    log.info('the agent runs');
    await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
    this.#endpoint?.close();
    this.#services.close();
    await this.#server.close();
    await this.#watch.stopped();
    this.#client.close();
    await this.#kernel.close();
  }

  /** Ready means: the node has a network now, the runtime was told, and nothing of the node's own fails in the kernel. */
  readiness(): Readiness {
    const underlay = this.#planning.plan?.underlay;
    const failures = this.#lastingFailures();
    const [reason] = this.#obstacles(failures);
    // Other nodes route nothing to a Node that is away, and what fails in the kernel may be missed by running pods.
    const limited = underlay?.suspended || failures.length > 0 ? { limited: true as const } : {};
    if (reason !== undefined || !underlay)
      return { ready: false, reason: reason ?? 'the agent is starting', ...limited };
    const podCidrs = underlay.podNetworks.map(({ cidr }) => cidr);
    const bridge = this.#options.config.podLink === 'bridge' ? podBridge(underlay) : undefined;
    return { ready: true, podCidrs, mtu: podMtu(underlay), ...(bridge && { bridge }) };
  }

  /** A runtime that asks amid a passing disturbance would take the whole node out of service; ADD waits for it anyway. */
  #lastingFailures(): readonly Error[] {
    return this.#reconciler.failures(this.#planning.ownKeys, FAILING_AFTER);
  }

  #obstacles(failures = this.#lastingFailures()): readonly string[] {
    return obstaclesOf({
      cluster: () => this.#watch.status(),
      underlay: this.#planning.plan?.underlay,
      notInstalled: this.#installer.reason,
      failures,
    });
  }

  status(): AgentStatus {
    const { config, version } = this.#options;
    const underlay = this.#planning.plan?.underlay;
    const services = this.#services.status();
    const tunnel = this.#tunnel.status();
    return {
      version,
      nodeName: config.nodeName,
      backend: config.backend,
      podLink: config.podLink,
      readiness: this.readiness(),
      obstacles: this.#obstacles(),
      ...(underlay && { underlay }),
      host: {
        kernel: this.#host.kernel.release,
        iptables: this.#kernel.iptables,
        features: this.#kernel.features(),
      },
      cluster: this.#watch.status(),
      ...(services && { services }),
      ...(tunnel && { tunnel }),
      attachments: this.#attachments.list(),
      addresses: this.#attachments.addresses(underlay?.podNetworks.map(({ cidr }) => cidr) ?? []),
      problems: [
        ...(underlay ? this.#strays(underlay) : []),
        ...[this.#endpoint?.problem ?? []].flat(),
        ...this.#services.problems(),
      ],
      kernel: this.#reconciler.status(),
    };
  }

  #follow(signal: AbortSignal): void {
    this.#kernel.onHostChange((host) => {
      this.#client.closeConnectionsFrom(addressesOf(this.#host).difference(addressesOf(host)));
      this.#host = host;
      this.#planning.request({ isEvent: false });
    });
    this.#planning.start((plan, before) => this.#planned(plan, before, signal), signal);
    const timer = setInterval(() => void this.#housekeep(), COLLECT_INTERVAL_MS).unref();
    signal.addEventListener('abort', () => clearInterval(timer));
    this.#tunnel.follow(signal);
    const problems = () => [...this.#watch.problems(), ...this.#state.problems(), ...this.#tunnel.problems()];
    new ProblemLog(this.#options.log).follow(problems, signal);
  }

  /** A pair that vanished and cannot be made again: its namespace may be gone, and no runtime may ever tell. */
  #onBatch(report: BatchReport): void {
    const { kind, failed } = report;
    this.#metrics.batch(report);
    if (kind === 'pod-link' && failed.length > 0) void this.#housekeep();
    this.#services.onBatch(report);
  }

  async #housekeep(): Promise<void> {
    const chores: readonly (() => unknown)[] = [
      () => this.#attachments.collect(),
      () => this.#queue.drain(),
      () => this.#installer.keep(),
      () => this.#endpoint?.listen(),
      () => this.#saveUnderlay(),
      () => this.#services.keep(),
    ];
    for (const chore of chores) await this.#attempt(chore);
  }

  async #attempt(chore: () => unknown): Promise<void> {
    try {
      await chore();
    } catch (err) {
      this.#options.log.warn({ err }, 'housekeeping failed and is tried again');
    }
  }

  /** Nothing derived from the cluster is written before every cache has synced once. */
  #planInput(): PlanInput | undefined {
    const { config } = this.#options;
    const cluster = this.#watch.snapshot();
    if (!cluster.synced) return undefined;
    return {
      nodeName: config.nodeName,
      cluster,
      host: this.#host,
      settings: config,
      backend: BACKENDS[config.backend],
    };
  }

  #strays({ podNetworks }: Underlay): readonly string[] {
    const problem = strayProblem(
      this.#attachments.list(),
      podNetworks.map(({ cidr }) => cidr),
    );
    return problem === undefined ? [] : [problem];
  }

  #planned({ underlay }: Plan, before: Plan | undefined, signal: AbortSignal): void {
    // Without a network nothing can be told to be left over: an earlier agent's may still carry pods.
    if (underlay.podNetworks.length === 0) return;
    if (this.#options.config['services.mode'] === 'off') void this.#sweep(signal);
    this.#installer.start(signal, () => this.#options.log.info(this.readiness(), 'ready for pods'));
    this.#attachments.follow(podMtu(underlay));
    if (underlay === before?.underlay) return;
    for (const problem of this.#strays(underlay)) this.#options.log.warn({ problem }, 'pods outlived their podCIDR');
    void this.#attempt(() => this.#saveUnderlay());
  }

  /** The state holds all Services: now it may be told what nobody wants. */
  #servicesPlanned(services: ServicesPlan, signal: AbortSignal): void {
    this.#services.follow(services);
    if (this.#planning.plan?.underlay.podNetworks.length !== 0) void this.#sweep(signal);
  }

  /** Once: what another backend, mode or agent served with goes when what serves in its place was written. */
  async #sweep(signal: AbortSignal): Promise<void> {
    if (this.#sweeps) return;
    this.#sweeps = true;
    await this.#reconciler.rest();
    await this.#services.takeOver(signal);
    if (signal.aborted) return;
    this.#reconciler.enableSweep();
    await this.#kernel.sweepOtherBackend(signal);
    await this.#reconciler.rest();
    void giveMemoryBack(signal);
    compileEarly();
  }

  /** The last one that was followed, for the next start; until it could be written, housekeeping tries again. */
  #saveUnderlay(): void {
    const underlay = this.#planning.plan?.underlay;
    const isOfUse = underlay && !underlay.suspended && underlay.podNetworks.length > 0;
    if (!isOfUse || underlay === this.#savedUnderlay) return;
    saveUnderlay(this.#options.config.runDir, underlay);
    this.#savedUnderlay = underlay;
  }

  /** Before there is a plan nothing is wanted, and an empty answer would be a lie. */
  #diff(signal: AbortSignal): Promise<readonly Change[]> {
    if (!this.#planning.plan) throw new Error(`nothing is planned yet: ${this.#obstacles()[0]}`);
    return this.#reconciler.diff(signal);
  }
}
