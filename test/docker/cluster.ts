/** Nodes in containers on a machine of their own, containerd in them, and the image of this checkout in its store. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import { pino } from 'pino';
import { CONTAINERD_SOCKET, type Containerd, startContainerd } from '../../lab/containerd.ts';
import { inNode, type NodeRef, pathOnHost } from '../../lab/node.ts';
import { buildPauseImage } from '../../lab/pause-image.ts';
import { until } from '../../lab/until.ts';
import { bundle } from '../../scripts/bundle.ts';
import { AgentPod } from './agent-pod.ts';
import { podSpec } from './daemon-set.ts';
import { DOCKERFILE, debianBase } from './debian-base.ts';
import { type Machine, startMachine } from './machine.ts';
import { nodeContainer } from './node-container.ts';

export interface ClusterNode {
  readonly node: NodeRef;
  readonly containerd: Containerd;
  readonly agent: AgentPod;
}

const BASE_IMAGE = 'tulle-base';
const NETWORK = 'nodes';
const SUBNETS = { ipv4: '172.31.0.0/24', ipv6: 'fd31::/64' } as const;
/** Docker gives these to the machine's end of the network. */
const GATEWAY = '172.31.0.1';
const addressesOf = (index: number) => [`172.31.0.${index + 11}`, `fd31::${(index + 11).toString(16)}`] as const;
const CLUSTER_API = fileURLToPath(new URL('cluster-api.ts', import.meta.url));
/** Bounds against hanging. */
const WAIT_MS = 60_000;
const IMPORT_TIMEOUT_MS = 120_000;

export class DockerCluster {
  readonly nodes: readonly ClusterNode[];
  readonly #machine: Machine;
  readonly #api: ChildProcess;
  readonly #directory: string;

  constructor(machine: Machine, api: ChildProcess, directory: string, nodes: readonly ClusterNode[]) {
    this.#machine = machine;
    this.#api = api;
    this.#directory = directory;
    this.nodes = nodes;
  }

  async remove(): Promise<void> {
    for (const { agent } of this.nodes) agent.close();
    this.#api.kill('SIGKILL');
    await this.#machine.remove();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** `settings`: environment of each node's agent. Resolves when the agents can be started. `tell` is called with each step that is done. Everything dies with this process. */
export async function startCluster(
  settings: Readonly<Record<string, Readonly<Record<string, string>>>>,
  tell: (step: string) => void,
  signal: AbortSignal,
): Promise<DockerCluster> {
  const names = Object.keys(settings);
  const directory = mkdtempSync(join(tmpdir(), 'tulle-test-docker-'));
  const machine = await startMachine(signal);
  tell('dockerd');
  await buildImage(machine, directory);
  tell('image');
  const subnets = Object.values(SUBNETS).flatMap((subnet) => ['--subnet', subnet]);
  await machine.docker(['network', 'create', '--ipv6', ...subnets, NETWORK]);
  const image = join(directory, 'image.tar');
  await machine.docker(['save', '--output', image, podSpec().containers[0].image]);
  const pauseImage = await buildPauseImage(signal);
  const hosts = await Promise.all(names.map((name, i) => startHost(machine, name, i, { image, pauseImage }, signal)));
  tell('nodes');
  const { child, access } = await startApi(machine, names, join(directory, 'api'));
  tell('API server');
  const nodes = hosts.map((host) => ({
    ...host,
    agent: new AgentPod(host.node, access, settings[host.node.name] ?? {}),
  }));
  return new DockerCluster(machine, child, directory, nodes);
}

async function buildImage(machine: Machine, directory: string): Promise<void> {
  const dist = join(directory, 'dist');
  const [base] = await Promise.all([debianBase(), bundle(dist)]);
  await machine.docker(['import', base, BASE_IMAGE]);
  const tag = podSpec().containers[0].image;
  const build = ['build', '--network', 'none', '--build-arg', `BASE=${BASE_IMAGE}`, '--file', DOCKERFILE];
  await machine.docker([...build, '--tag', tag, dist]);
}

type Host = Pick<ClusterNode, 'node' | 'containerd'>;

async function startHost(
  machine: Machine,
  name: string,
  index: number,
  images: { readonly image: string; readonly pauseImage: Buffer },
  signal: AbortSignal,
): Promise<Host> {
  const [ip, ip6] = addressesOf(index);
  const network = ['--network', NETWORK, '--ip', ip, '--ip6', ip6];
  const { node, layout } = await machine.startNode(nodeContainer(name, BASE_IMAGE, network));
  const isUp = async () =>
    (await execa('test', ['-e', pathOnHost(node, '/run/is-up')], { reject: false })).exitCode === 0;
  await until(isUp, { describe: `${name} to be up`, deadlineMs: WAIT_MS, signal });
  const log = pino({ level: 'silent' });
  const containerd = await startContainerd({ node, layout, life: signal, pauseImage: images.pauseImage, log });
  const [file, ...args] = inNode(node, [
    'ctr',
    '--address',
    CONTAINERD_SOCKET,
    '-n',
    'k8s.io',
    'images',
    'import',
    '-',
  ]);
  await execa(file, args, { inputFile: images.image, timeout: IMPORT_TIMEOUT_MS });
  return { node, containerd };
}

async function startApi(machine: Machine, names: readonly string[], directory: string) {
  const nodes = Object.fromEntries(names.map((name, i) => [name, addressesOf(i)]));
  const argv = machine.enter([process.execPath, CLUSTER_API, directory, GATEWAY, JSON.stringify(nodes)]);
  const [file, ...args] = argv;
  const child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout as NonNullable<typeof child.stdout> });
  const [port] = (await once(lines, 'line', { signal: AbortSignal.timeout(WAIT_MS) })) as [string];
  const read = (file: string) => readFileSync(join(directory, file), 'utf8');
  return { child, access: { host: GATEWAY, port, token: read('token'), ca: read('ca.crt') } };
}
