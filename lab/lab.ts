/** A running lab, as its supervisor holds it: fabric, API server, nodes with their agents, pods. */
import { randomBytes } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import type { Logger } from 'pino';
import { type Cidr, type Family, type IpAddress, parseCidr, parseIp } from '../agent/model/ip.ts';
import { AgentProcess } from './agent-process.ts';
import { type ApiServer, startApiServer } from './api-server/server.ts';
import { type ApiObject, ApiWriter } from './api-writer.ts';
import { BIN_DIR, CONF_DIR } from './cni-client.ts';
import type { ApiFault, ApiRequest, LabNodeStatus, LabOptions, LabStatus } from './control.ts';
import { type Attachment, attachNode, buildFabric, planAttachment, routerAddress, segmentCidr } from './fabric.ts';
import { LabError } from './lab-error.ts';
import { DIR_IN_NODE, type LabLayout, type NodeLayout, nodeLayout } from './layout.ts';
import { type RunningNode, startNode } from './node.ts';
import { readPodCidrs, registerNode } from './node-object.ts';
import { createCa, createServingCertificate, type KeyPair, writeKubeconfig } from './pki.ts';
import { Pods } from './pods.ts';

/** Runs one step of the boot and tells people how long it took. */
export type Step = <T>(text: string, work: () => Promise<T>) => Promise<T>;

/** What the pod CIDRs of the nodes are cut from. */
const CLUSTER_CIDRS = { ipv4: '10.84.0.0/16', ipv6: 'fd84::/48' } as const satisfies Record<Family, string>;
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
  readonly agent: AgentProcess;
  ended: boolean;
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
    for (const { node, attachment } of started) await registerNode(api.writer, node.name, attachment.addresses, signal);
  });
  const nodes = await step('agents ready', () => startAgents(boot, api, started));
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
      nodes.map(({ node, layout: { podLogs }, attachment: { addresses } }) => [
        node.name,
        { ...node, podLogs, addresses },
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

  #node(name: string): LabNode {
    const entry = this.#nodes.get(name);
    if (entry) return entry;
    throw new LabError({
      operation: `find node ${JSON.stringify(name)}`,
      expected: `one of ${[...this.#nodes.keys()].join(', ')}`,
      received: 'no such node',
    });
  }

  async #nodeStatus({ node, layout, attachment, agent, ended }: LabNode): Promise<LabNodeStatus> {
    const { name, pid, cgroup } = node;
    const podCidrs = readPodCidrs(this.#api.server.store, name);
    const state = ended ? 'ended' : 'up';
    return {
      name,
      pid,
      cgroup,
      state,
      ...attachment,
      podCidrs,
      agent: await agent.status(),
      agentLog: layout.agentLog,
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
  const url = `https://${urlHost(routerAddress(0, options.families[0] as Family))}:${API_PORT}`;
  const server = await step(`API server at ${url}`, async () => {
    const tls = { cert: serving.cert, key: serving.key, clientCa: ca.cert };
    const clusterCidrs = options.families.map((family) => parseCidr(CLUSTER_CIDRS[family]) as Cidr);
    const host = options.families.includes('ipv6') ? '::' : '0.0.0.0';
    return startApiServer({ host, port: API_PORT, tls, tokens, clusterCidrs, log }, signal);
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
  const ips = [...routers.flat(), parseIp('127.0.0.1') as IpAddress, parseIp('::1') as IpAddress];
  const serving = await createServingCertificate(
    { ca, names: SERVER_NAMES, ips, directory: pkiDir, name: 'api-server' },
    signal,
  );
  return { ca, serving };
}

type StartedNode = Pick<LabNode, 'node' | 'layout' | 'attachment'>;

async function startNodes(
  { layout, options, step, signal }: Boot,
  names: readonly string[],
): Promise<readonly StartedNode[]> {
  const cidrs = Array.from({ length: options.segments }, (_, segment) =>
    options.families.map((family) => segmentCidr(segment, family)),
  );
  await step(`fabric: ${cidrs.map((segment) => segment.join(' + ')).join(', ')}`, () => buildFabric(options, signal));
  const range = names.length === 1 ? names[0] : `${names[0]} to ${names.at(-1)}`;
  return step(`nodes: ${range}`, () =>
    Promise.all(names.map((name, index) => startOne(name, index, layout, options, signal))),
  );
}

async function startOne(
  name: string,
  index: number,
  lab: LabLayout,
  options: LabOptions,
  signal: AbortSignal,
): Promise<StartedNode> {
  const layout = nodeLayout(lab, name);
  const attachment = planAttachment(index, options);
  const node = await startNode(name, layout, signal);
  await attachNode(node, attachment, signal);
  return { node, layout, attachment };
}

async function startAgents(boot: Boot, api: Api, started: readonly StartedNode[]): Promise<readonly LabNode[]> {
  const entries = await Promise.all(started.map((node) => startAgent(boot, api, node)));
  await Promise.all(entries.map(({ agent }) => agent.ready(boot.signal)));
  return entries;
}

async function startAgent(
  { options, log, signal }: Boot,
  { url, ca, agentToken }: Api,
  started: StartedNode,
): Promise<LabNode> {
  const { node, layout } = started;
  await writeKubeconfig({ path: layout.kubeconfig, server: url, ca, user: { token: agentToken } });
  const argv = [...options.agentCommand, ...agentArguments(node.name), ...options.agentArgs];
  const agent = new AgentProcess({ node, argv, logFile: layout.agentLog, log });
  const gone = new AbortController();
  const entry: LabNode = { ...started, agent, ended: false };
  void node.ended.then(() => {
    if (!signal.aborted) log.error({ node: node.name }, 'node ended');
    entry.ended = true;
    gone.abort();
  });
  void agent.run(AbortSignal.any([signal, gone.signal]));
  return entry;
}

const agentArguments = (name: string): readonly string[] => [
  ...['--node-name', name, '--kubeconfig', `${DIR_IN_NODE}/kubeconfig`],
  ...['--run-dir', '/run/tulle', '--cni-conf-dir', CONF_DIR, '--cni-bin-dir', BIN_DIR],
];

const urlHost = (address: IpAddress): string => (address.includes(':') ? `[${address}]` : address);
