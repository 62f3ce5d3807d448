/** A running lab, as its supervisor holds it: fabric, API server, nodes with their agents, pods. */
import { randomBytes } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import type { Logger } from 'pino';
import { addressAt, type Cidr, type Family, type IpAddress, parseCidr, parseIp } from '../agent/model/ip.ts';
import { ipPortText } from '../agent/model/ip-port.ts';
import { KINDS } from './api-server/kinds.ts';
import { type ApiServer, startApiServer } from './api-server/server.ts';
import { type ApiObject, ApiWriter } from './api-writer.ts';
import { BIN_DIR, CONF_DIR, hasNetworkList } from './cni-client.ts';
import type { Containerd } from './containerd.ts';
import type {
  ApiFault,
  ApiRequest,
  LabNodeStatus,
  LabOptions,
  LabStatus,
  NamespacedObject,
  UncheckedKind,
} from './control.ts';
import { type Attachment, attachNode, buildFabric, planAttachment, routerAddress, segmentCidr } from './fabric.ts';
import { LabError } from './lab-error.ts';
import { DIR_IN_NODE, type LabLayout, type NodeLayout, nodeLayout } from './layout.ts';
import { type RunningNode, startNode } from './node.ts';
import { readPodCidrs, registerNode, zoneOfNode } from './node-object.ts';
import { NodeProcess } from './node-process.ts';
import { loadPhantomServices, type PhantomServices } from './phantom-services.ts';
import { createCa, createServingCertificate, type KeyPair, writeKubeconfig } from './pki.ts';
import { Pods } from './pods.ts';
import { labRuntime } from './runtime.ts';

/** Runs one step of the boot and tells people how long it took. */
export type Step = <T>(text: string, work: () => Promise<T>) => Promise<T>;

/** What the pod CIDRs of the nodes are cut from. */
const CLUSTER_CIDRS = { ipv4: '10.84.0.0/16', ipv6: 'fd84::/48' } as const satisfies Record<Family, string>;
/** What Services get their addresses from. */
const SERVICE_CIDRS = { ipv4: '10.96.0.0/12', ipv6: 'fd96::/108' } as const satisfies Record<Family, string>;
const API_PORT = 6443;
const SERVER_NAMES = ['kubernetes', 'kubernetes.default', 'kubernetes.default.svc', 'localhost'];
/** May do everything. */
const ADMIN = 'lab-admin';
/** May get, list and watch, as the agent's service account in a real cluster. */
const AGENT = 'system:serviceaccount:kube-system:tulle';

interface LabNode {
  readonly node: RunningNode;
  readonly layout: NodeLayout;
  readonly attachment: Attachment;
  readonly zone: string | undefined;
  /** Aborted when the node ends. */
  readonly life: AbortSignal;
  readonly containerd: Containerd | undefined;
  readonly agent: NodeProcess;
}

interface Api {
  readonly server: ApiServer;
  readonly writer: ApiWriter;
  readonly url: string;
  readonly ca: string;
  readonly agentToken: string;
}

interface Boot {
  readonly layout: LabLayout;
  readonly options: LabOptions;
  readonly log: Logger;
  readonly step: Step;
  readonly signal: AbortSignal;
}

/** Resolves when every agent is ready. Throws LabError. Everything ends with this process; there is nothing to close. */
export async function startLab(boot: Boot): Promise<Lab> {
  const { options, step, signal } = boot;
  const names = Array.from({ length: options.nodes }, (_, i) => `node-${i + 1}`);
  const [api, started] = await Promise.all([startApi(boot), startNodes(boot, names)]);
  await step(`${names.length} Node objects`, async () => {
    for (const { node, attachment, zone } of started) {
      await registerNode(api.writer, { name: node.name, addresses: attachment.addresses, zone }, signal);
    }
  });
  const nodes = await step('agents ready', () => startAgents(boot, api, started));
  for (const { containerd } of nodes) await containerd?.networkReady(signal);
  return new Lab(boot, api, nodes);
}

export class Lab {
  readonly pods: Pods;
  readonly #boot: Boot;
  readonly #api: Api;
  readonly #nodes: ReadonlyMap<string, LabNode>;

  constructor(boot: Boot, api: Api, nodes: readonly LabNode[]) {
    this.#boot = boot;
    this.#api = api;
    this.#nodes = new Map(nodes.map((entry) => [entry.node.name, entry]));
    const hosts = new Map(
      nodes.map(({ node, layout: { podLogs }, attachment: { addresses }, containerd }) => [
        node.name,
        { ...node, podLogs, addresses, runtime: containerd ?? labRuntime },
      ]),
    );
    this.pods = new Pods({ hosts, api: api.writer, log: boot.log });
  }

  async status(): Promise<LabStatus> {
    const { layout, options } = this.#boot;
    return {
      dir: layout.dir,
      supervisorPid: process.pid,
      families: options.families,
      segments: options.segments,
      apiServer: { url: this.#api.url, kubeconfig: layout.kubeconfig },
      nodes: await Promise.all([...this.#nodes.values()].map((entry) => this.#nodeStatus(entry))),
      pods: this.pods.list(),
    };
  }

  /** The process that was killed; it is started again at once. Throws LabError. */
  async killAgent(name: string): Promise<number> {
    return this.#node(name).agent.kill();
  }

  /** Ends the agent of a node and keeps it away until startAgent. Throws LabError. */
  async stopAgent(name: string, signal: AbortSignal): Promise<void> {
    await this.#node(name).agent.hold(signal);
  }

  /** Throws LabError. */
  startAgent(name: string): void {
    this.#node(name).agent.release();
  }

  /** A fault of the API server, or the end of it. */
  setApiFault(fault: ApiFault): void {
    const { server } = this.#api;
    server.setUnavailable(fault === 'unavailable');
    server.stall(fault === 'stalled');
  }

  /** With all rights. Throws LabError when the API server refuses. */
  callApi({ method, path, object }: ApiRequest, signal: AbortSignal): Promise<ApiObject> {
    return this.#api.writer.send(method, path, object, signal);
  }

  /** Throws StatusError for what is no object of the kind. */
  putUnchecked(kind: UncheckedKind, object: NamespacedObject): void {
    this.#api.server.store.putUnchecked(KINDS[kind], object, object.metadata.namespace);
  }

  loadPhantomServices(request: PhantomServices): Promise<void> {
    return loadPhantomServices(this.#api.server.store, request);
  }

  #node(name: string): LabNode {
    const entry = this.#nodes.get(name);
    if (entry) return entry;
    throw new LabError({
      operation: `find node ${JSON.stringify(name)}`,
      expected: `one of ${[...this.#nodes.keys()].join(', ')}`,
      received: 'no such node',
    });
  }

  async #nodeStatus({ node, layout, attachment, zone, agent, containerd, life }: LabNode): Promise<LabNodeStatus> {
    const { name, pid, cgroup } = node;
    const podCidrs = readPodCidrs(this.#api.server.store, name);
    const state = life.aborted ? 'ended' : 'up';
    return {
      name,
      pid,
      cgroup,
      state,
      ...attachment,
      ...(zone !== undefined && { zone }),
      podCidrs,
      agent: { ...(await agent.status()), ready: await hasNetworkList(node) },
      agentLog: layout.agentLog,
      ...(containerd && { containerd: await containerd.status() }),
    };
  }
}

async function startApi({ layout, options, log, step, signal }: Boot): Promise<Api> {
  const { ca, serving } = await step('certificates', () => createCertificates(layout, options, signal));
  const [adminToken, agentToken] = [randomBytes(24).toString('base64url'), randomBytes(24).toString('base64url')];
  const tokens = new Map([
    [adminToken, ADMIN],
    [agentToken, AGENT],
  ]);
  const advertised = { ip: routerAddress(0, options.families[0] as Family), port: API_PORT };
  const url = `https://${ipPortText(advertised)}`;
  const server = await step(`API server at ${url}`, async () => {
    const tls = { cert: serving.cert, key: serving.key, clientCa: ca.cert };
    const clusterCidrs = cidrsOf(CLUSTER_CIDRS, options.families);
    const serviceCidrs = cidrsOf(SERVICE_CIDRS, options.families);
    const host = options.families.includes('ipv6') ? '::' : '0.0.0.0';
    const ranges = { clusterCidrs, serviceCidrs, advertised };
    return startApiServer({ host, port: API_PORT, tls, tokens, ...ranges, log }, signal);
  });
  server.access.setReadOnly(AGENT, true);
  await writeKubeconfig({ path: layout.kubeconfig, server: url, ca: ca.cert, user: { token: adminToken } });
  return { server, writer: new ApiWriter({ url, ca: ca.cert, token: adminToken }), url, ca: ca.cert, agentToken };
}

async function createCertificates(
  { pkiDir }: LabLayout,
  { families, segments }: LabOptions,
  signal: AbortSignal,
): Promise<{ readonly ca: KeyPair; readonly serving: KeyPair }> {
  await mkdir(pkiDir, { recursive: true, mode: 0o700 });
  const ca = await createCa({ directory: pkiDir, name: 'ca' }, signal);
  const routers = Array.from({ length: segments }, (_, segment) =>
    families.map((family) => routerAddress(segment, family)),
  );
  const virtual = cidrsOf(SERVICE_CIDRS, families).map((cidr) => addressAt(cidr, 1));
  const ips = [...routers.flat(), ...virtual, parseIp('127.0.0.1') as IpAddress, parseIp('::1') as IpAddress];
  const serving = await createServingCertificate(
    { ca, names: SERVER_NAMES, ips, directory: pkiDir, name: 'api-server' },
    signal,
  );
  return { ca, serving };
}

type StartedNode = Omit<LabNode, 'agent'>;

async function startNodes(boot: Boot, names: readonly string[]): Promise<readonly StartedNode[]> {
  const { options, step, signal } = boot;
  const cidrs = Array.from({ length: options.segments }, (_, segment) =>
    options.families.map((family) => segmentCidr(segment, family)),
  );
  await step(`fabric: ${cidrs.map((segment) => segment.join(' + ')).join(', ')}`, () => buildFabric(options, signal));
  const range = names.length === 1 ? names[0] : `${names[0]} to ${names.at(-1)}`;
  const nodes = await step(`nodes: ${range}`, () =>
    Promise.all(names.map((name, index) => startOne(name, index, boot))),
  );
  return options.runtime === 'containerd' ? step('containerd', () => startContainerds(boot, nodes)) : nodes;
}

async function startOne(
  name: string,
  index: number,
  { layout: lab, options, log, signal }: Boot,
): Promise<StartedNode> {
  const layout = nodeLayout(lab, name);
  const attachment = planAttachment(index, options);
  const node = await startNode(name, layout, signal);
  const ended = new AbortController();
  void node.ended.then(() => {
    if (!signal.aborted) log.error({ node: name }, 'node ended');
    ended.abort();
  });
  await attachNode(node, attachment, signal);
  const zone = zoneOfNode(index, options.zones);
  return { node, layout, attachment, zone, life: AbortSignal.any([signal, ended.signal]), containerd: undefined };
}

/** Loaded on demand: a lab without containerd needs no gRPC. */
async function startContainerds({ log, signal }: Boot, nodes: readonly StartedNode[]): Promise<readonly StartedNode[]> {
  const [{ startContainerd }, { buildPauseImage }] = await Promise.all([
    import('./containerd.ts'),
    import('./pause-image.ts'),
  ]);
  const pauseImage = await buildPauseImage(signal);
  return Promise.all(
    nodes.map(async (started) => ({ ...started, containerd: await startContainerd({ ...started, pauseImage, log }) })),
  );
}

async function startAgents(boot: Boot, api: Api, started: readonly StartedNode[]): Promise<readonly LabNode[]> {
  const entries = await Promise.all(started.map((node) => startAgent(boot, api, node)));
  const conflist = `a conflist in ${CONF_DIR}`;
  await Promise.all(entries.map(({ node, agent }) => agent.ready(conflist, () => hasNetworkList(node), boot.signal)));
  return entries;
}

async function startAgent(
  { options, log }: Boot,
  { url, ca, agentToken }: Api,
  started: StartedNode,
): Promise<LabNode> {
  const { node, layout } = started;
  await writeKubeconfig({ path: layout.kubeconfig, server: url, ca, user: { token: agentToken } });
  const argv = [...options.agentCommand, ...agentArguments(node.name), ...options.agentArgs];
  const agent = new NodeProcess({ name: 'the agent', node, argv, logFile: layout.agentLog, log });
  void agent.run(started.life);
  return { ...started, agent };
}

const agentArguments = (name: string): readonly string[] => [
  ...['--node-name', name, '--kubeconfig', `${DIR_IN_NODE}/kubeconfig`],
  ...['--run-dir', '/run/tulle', '--cni-conf-dir', CONF_DIR, '--cni-bin-dir', BIN_DIR],
];

const cidrsOf = (texts: Readonly<Record<Family, string>>, families: readonly Family[]): readonly Cidr[] =>
  families.map((family) => parseCidr(texts[family]) as Cidr);
