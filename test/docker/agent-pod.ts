/** The agent's pod on one node, started and asked over CRI as kubelet does for a DaemonSet. */
import { readFileSync } from 'node:fs';
import { execa } from 'execa';
import { CONTAINERD_SOCKET } from '../../lab/containerd.ts';
import { type ContainerStatus, Cri, type ExecResult } from '../../lab/cri.ts';
import { type NodeRef, pathOnHost } from '../../lab/node.ts';
import { until } from '../../lab/until.ts';
import { containerOf, LOG_DIR, type Placement, type Probe, podSpec, sandboxOf } from './daemon-set.ts';

const DEADLINE_MS = 60_000;
const EXEC_TIMEOUT_SECONDS = 20;
/** Prints the status and the body of an answer. */
const FETCH = 'fetch(process.argv[1]).then(async (r) => console.log(r.status, await r.text()))';

export class AgentPod {
  readonly #node: NodeRef;
  readonly #placement: Omit<Placement, 'attempt'>;
  readonly #cri: Cri;
  #sandbox = '';
  #container = '';
  #attempt = -1;

  /** `settings`: in the environment, beside those of the manifest. */
  constructor(node: NodeRef, api: Placement['api'], settings: Placement['settings']) {
    this.#node = node;
    this.#cri = new Cri(pathOnHost(node, CONTAINERD_SOCKET));
    this.#placement = {
      nodeName: node.name,
      uid: `uid-of-agent-on-${node.name}`,
      api,
      settings,
      pathOnHost: (path) => pathOnHost(node, path),
      volumeDir: '/run/pod-volumes',
    };
  }

  /** Starts a container, the first or another after the last one ended. */
  async start(): Promise<void> {
    const placement = { ...this.#placement, attempt: ++this.#attempt };
    const sandbox = sandboxOf(placement);
    this.#sandbox ||= await this.#cri.runPodSandbox(sandbox);
    this.#container = await this.#cri.createContainer(this.#sandbox, containerOf(placement), sandbox);
    await this.#cri.startContainer(this.#container);
  }

  /** Waits for the manifest's readiness probe; says what the agent wrote when it ends before. */
  async ready(): Promise<void> {
    const { readinessProbe } = podSpec().containers[0];
    const isReady = async () => {
      const { state } = await this.status();
      if (state !== 'CONTAINER_RUNNING') throw new Error(`the agent of ${this.#node.name} ended: ${this.log()}`);
      return (await this.probe(readinessProbe)).startsWith('200 ');
    };
    const wait = { describe: `a ready agent on ${this.#node.name}`, deadlineMs: DEADLINE_MS, intervalMs: 100 };
    await until(isReady, wait).catch((cause: unknown) => {
      throw new Error(`the agent of ${this.#node.name} does not get ready: ${this.log()}`, { cause });
    });
  }

  status(): Promise<ContainerStatus> {
    return this.#cri.containerStatus(this.#container);
  }

  /** `200 ok`: status and body; only what went wrong while nobody answers. */
  async probe({ httpGet: { host, port, path } }: Probe): Promise<string> {
    const enter = ['--target', `${this.#node.pid}`, '--net', '--', process.execPath, '-e', FETCH];
    const { stdout, stderr } = await execa('nsenter', [...enter, `http://${host}:${port}${path}`], { reject: false });
    return stdout || stderr;
  }

  /** In the container, as `kubectl exec`. */
  exec(...argv: readonly string[]): Promise<ExecResult> {
    return this.#cri.execSync(this.#container, argv, EXEC_TIMEOUT_SECONDS);
  }

  /** The end of what the present container printed. */
  log(): string {
    const { name } = podSpec().containers[0];
    return readFileSync(pathOnHost(this.#node, `${LOG_DIR}/${name}-${this.#attempt}.log`), 'utf8').slice(-4000);
  }

  /** SIGKILL for its first process, as the kernel does when memory runs out; resolves when the runtime knows. */
  async kill(): Promise<void> {
    await this.#cri.stopContainer(this.#container, 0);
    await until(async () => (await this.status()).state === 'CONTAINER_EXITED', {
      describe: `the agent on ${this.#node.name} to end`,
      deadlineMs: DEADLINE_MS,
    });
  }

  close(): void {
    this.#cri[Symbol.dispose]();
  }
}
