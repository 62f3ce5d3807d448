/** A machine of its own for Docker: a node of a lab with nothing in it but dockerd, whose containers are nodes again. */
import { randomBytes } from 'node:crypto';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { execa, type Options } from 'execa';
import { pino } from 'pino';
import { removeCgroup } from '../../lab/cgroup.ts';
import { DIR_IN_NODE, type LabLayout, labLayout, type NodeLayout, nodeLayout } from '../../lab/layout.ts';
import { inNode, type NodeRef, type RunningNode, startNode } from '../../lab/node.ts';
import { NodeProcess } from '../../lab/node-process.ts';
import { createDataDirectory, type DataDirectory } from './data-directory.ts';

const NAME = 'machine';
const SOCKET = '/run/docker.sock';
/** A bound against hanging. */
const COMMAND_TIMEOUT_MS = 300_000;

export interface ContainerNode {
  readonly node: NodeRef;
  readonly layout: NodeLayout;
}

export interface ContainerRequest {
  readonly name: string;
  readonly image: string;
  /** Of `docker run`, before the image. */
  readonly options: readonly string[];
  readonly command: readonly string[];
}

/** Resolves when dockerd answers. It dies with this process; with the signal it ends. */
export async function startMachine(signal: AbortSignal): Promise<Machine> {
  const lab = labLayout(`/run/tulle-lab-test-${randomBytes(4).toString('hex')}`);
  const layout = nodeLayout(lab, NAME);
  await mkdir(layout.dir, { recursive: true });
  const data = await createDataDirectory();
  const machine = new Machine(lab, layout, await startNode(NAME, layout, signal), data);
  try {
    await machine.startDockerd(signal);
    return machine;
  } catch (error) {
    await machine.remove();
    throw error;
  }
}

export class Machine {
  readonly #lab: LabLayout;
  readonly #layout: NodeLayout;
  readonly #node: RunningNode;
  readonly #data: DataDirectory;

  constructor(lab: LabLayout, layout: NodeLayout, node: RunningNode, data: DataDirectory) {
    this.#lab = lab;
    this.#layout = layout;
    this.#node = node;
    this.#data = data;
  }

  /** Without a bridge and rules of its own; networks are made by name. */
  async startDockerd(signal: AbortSignal): Promise<void> {
    const argv = [
      ...['dockerd', '--host', `unix://${SOCKET}`, '--data-root', this.#data.path, '--exec-root', '/run/docker'],
      ...['--pidfile', '/run/dockerd.pid', '--bridge=none', '--iptables=false', '--ip6tables=false'],
    ];
    const [node, logFile, log] = [this.#node, join(this.#layout.dir, 'dockerd.log'), pino({ level: 'silent' })];
    const dockerd = new NodeProcess({ name: 'dockerd', node, argv, logFile, log });
    void dockerd.run(signal);
    const answers = () =>
      this.docker(['version']).then(
        () => true,
        () => false,
      );
    await dockerd.ready('an answer of dockerd', answers, signal);
  }

  /** argv that runs `argv` on the machine, outside of its containers. */
  enter(argv: readonly string[]): readonly [string, ...string[]] {
    return inNode(this.#node, argv);
  }

  /** Runs the client to its end and returns what it printed. Rejects with execa's error. */
  async docker(args: readonly string[], options: Options = {}): Promise<string> {
    // The builder that needs no other program than dockerd.
    const [file, ...rest] = this.enter(['env', 'DOCKER_BUILDKIT=0', 'docker', '--host', `unix://${SOCKET}`, ...args]);
    const { stdout } = await execa(file, rest, { timeout: COMMAND_TIMEOUT_MS, ...options });
    return String(stdout);
  }

  /** Starts a container that can be entered as a node; it has DIR_IN_NODE in common with this process. */
  async startNode({ name, image, options, command }: ContainerRequest): Promise<ContainerNode> {
    const dir = join(this.#layout.dir, name);
    await mkdir(dir);
    const shared = ['--volume', `${DIR_IN_NODE}/${name}:${DIR_IN_NODE}`];
    const run = ['run', '--detach', '--name', name, '--hostname', name, ...shared, ...options, image, ...command];
    const id = (await this.docker(run)).trim();
    const cgroup = join(this.#layout.cgroup, 'docker', id);
    const layout = { ...this.#layout, dir, cgroup, containerdLog: join(dir, 'containerd.log') };
    return { node: { name, cgroup, pid: await initOf(cgroup) }, layout };
  }

  /** Nothing is left of it then. */
  async remove(): Promise<void> {
    await removeCgroup(this.#lab.cgroup);
    await this.#node.ended;
    await rm(this.#lab.dir, { recursive: true, force: true });
    await this.#data.remove();
  }
}

/** The process of a cgroup that is process 1 to itself, as this process numbers it (proc_pid_status(5), NSpid). */
async function initOf(cgroup: string): Promise<number> {
  const pids = (await readFile(join(cgroup, 'cgroup.procs'), 'utf8')).trim().split('\n');
  for (const pid of pids) {
    const status = await readFile(`/proc/${pid}/status`, 'utf8');
    if (/^NSpid:.*\t1$/m.test(status)) return Number(pid);
  }
  throw new Error(`cannot enter the container of ${cgroup}: expected its process 1 in it, got ${pids.join(', ')}`);
}
