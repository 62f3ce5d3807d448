/** What this node does for Services beside planning and writing them: who looks them up, who asks for them, what is told. */
import type { Logger } from 'pino';
import type { Config } from './config.ts';
import { DatagramSockets } from './kernel/bpf/datagram-sockets.ts';
import type { ServiceMode } from './kernel/bpf/service-mode.ts';
import type { Cluster } from './model/cluster.ts';
import { families } from './model/ip.ts';
import { baseId } from './plan/services/iptables/base.ts';
import type { ServicesPlan } from './plan/services/services.ts';
import { HostPorts } from './pods/host-ports.ts';
import type { PodRecord } from './pods/records.ts';
import type { KernelState } from './reconcile/kernel-state.ts';
import type { BatchReport, Reconciler } from './reconcile/reconciler.ts';
import { serviceObstacles } from './service-obstacles.ts';
import { serviceAnswers } from './service-report.ts';
import { SocketServices, type SocketServicesStatus } from './socket-services.ts';
import { HealthChecks } from './telemetry/health-checks.ts';

export interface NodeServicesOptions {
  readonly config: Config;
  readonly served: ServiceMode;
  readonly state: KernelState;
  readonly reconciler: Reconciler;
  readonly cluster: () => Cluster;
  readonly attachments: () => readonly PodRecord[];
  readonly log: Logger;
}

/** Part of `tulle status --json`. */
export interface NodeServicesStatus {
  readonly mode: Exclude<ServiceMode['mode'], 'off'>;
  /** Why it is this one. */
  readonly reason: string;
  /** Where sockets are translated. */
  readonly sockets?: SocketServicesStatus;
}

export class NodeServices {
  /** Absent where another plugin serves them. */
  readonly hostPorts: HostPorts | undefined;
  /** What the control socket answers about them. */
  readonly answers: ReturnType<typeof serviceAnswers>;
  readonly #options: NodeServicesOptions;
  readonly #healthChecks: HealthChecks;
  /** Absent where no socket is translated. */
  readonly #sockets: SocketServices | undefined;
  /** The last one that is in the state as a whole. */
  #plan: ServicesPlan | undefined;

  constructor(options: NodeServicesOptions) {
    const { config, served, state, reconciler, cluster, log } = options;
    this.#options = options;
    this.hostPorts = served.mode === 'off' ? undefined : new HostPorts(state);
    this.answers = serviceAnswers({
      mode: served.mode,
      cluster,
      plan: () => this.#plan,
      books: { state, reconciler },
    });
    this.#healthChecks = new HealthChecks({
      nodePort: config['services.healthPort'],
      obstacles: (service) => this.#obstacles(service),
      isLeaving: () => cluster().nodes.get(config.nodeName)?.leaving === true,
      log: log.child({ component: 'health' }),
    });
    this.#sockets = this.#openSockets();
  }

  /** The state holds all Services: from now on they may be asked for, and who looks them up may change. */
  follow(plan: ServicesPlan): void {
    this.#plan = plan;
    void this.#healthChecks.follow(plan);
    this.hostPorts?.follow(plan.planHostPorts);
    const { programs } = this.#sockets ?? {};
    if (programs) this.#options.state.replace(programs.id, programs);
  }

  /**
   * Once, when everything that was to be written for Services was tried. Resolves when what served before may go, as what
   * looks Services up is there; never, while it cannot be. Never rejects. Datagram sockets that programs connected would stay
   * with their backend, and nobody would see that it is gone.
   */
  async takeOver(signal: AbortSignal): Promise<void> {
    await this.#sockets?.attached();
    if (signal.aborted) return;
    this.#sockets?.written();
    const { served, attachments, log } = this.#options;
    const { formerSockets: connectedSockets } = served;
    const namespaces = () => attachments().map(({ netns }) => netns);
    const backendsOf = () => undefined;
    if (connectedSockets)
      await new DatagramSockets({ connectedSockets, namespaces, scope: 'all', backendsOf, log }).follow();
  }

  onBatch(report: BatchReport): void {
    this.#sockets?.onBatch(report);
  }

  async keep(): Promise<void> {
    await this.#sockets?.keep();
  }

  /** Undefined where another proxy serves them. */
  status(): NodeServicesStatus | undefined {
    const { mode, reason } = this.#options.served;
    const sockets = this.#sockets?.status();
    return mode === 'off' ? undefined : { mode, reason, ...(sockets && { sockets }) };
  }

  problems(): readonly string[] {
    const { problem } = this.#options.served;
    return [
      ...(problem === undefined ? [] : [problem]),
      ...this.#healthChecks.problems(),
      ...(this.#sockets?.problems() ?? []),
    ];
  }

  close(): void {
    this.#healthChecks.close();
  }

  #openSockets(): SocketServices | undefined {
    const { config, served, reconciler, attachments, log } = this.#options;
    const { mode, lane } = served;
    if (mode !== 'ebpf' || !lane) return undefined;
    return new SocketServices({
      lane,
      reconciler,
      namespaces: () => attachments().map(({ netns }) => netns),
      scope: config['services.ebpf.scope'],
      log: log.child({ component: 'sockets' }),
    });
  }

  /** Of one Service, or of all: what they share. */
  #obstacles(service: string | undefined): readonly string[] {
    const shared = [...families.map(({ family }) => baseId(family)), 'sockets'];
    return serviceObstacles(this.#options, service === undefined ? shared : [`service ${service}`]);
  }
}
