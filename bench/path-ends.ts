/** Runs nb and iperf3 between two ends of a path. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { execa } from 'execa';
import type { IpAddress } from '../agent/model/ip.ts';

/** Makes argv run at an end: in a pod, or in a node. */
export type Enter = (argv: readonly string[]) => readonly [string, ...string[]];

export interface Ends {
  readonly client: Enter;
  readonly server: Enter;
  /** The server's. */
  readonly address: IpAddress;
}

/** What nb prints, see nb.c. */
export interface Exchange {
  readonly count: number;
  readonly sent: number;
  readonly us: number;
  readonly cpuUs: number;
  readonly mss: number;
  readonly p50Ns: number;
  readonly p99Ns: number;
}

/** iperf3's own names. */
export interface Received {
  readonly bytes: number;
  readonly bits_per_second: number;
}

export type Exchanges = 'rr' | 'crr' | 'udp' | 'stream';

const NB_PORT = 7000;
const IPERF_PORT = 5201;
/** On top of the time that is measured. */
const DEADLINE_MS = 20_000;

/** How long paths are measured. */
export interface Plan {
  readonly rounds: number;
  /** Of one measurement of small packets. */
  readonly seconds: number;
  /** Of one by iperf3, which counts whole ones. */
  readonly iperfSeconds: number;
}

/** The programs of one path; both ends of nb share the last CPU, iperf3's ends have one each where there are two. */
export class PathEnds {
  readonly #ends: Ends;
  readonly #nb: string;
  readonly #cpus: number;

  private constructor(ends: Ends, nb: string, cpus: number) {
    this.#ends = ends;
    this.#nb = nb;
    this.#cpus = cpus;
  }

  /** Resolves when both servers listen; they die with the namespaces of the bench. `nb` is the compiled program. */
  static async start(ends: Ends, nb: string, cpus: number): Promise<PathEnds> {
    const cpu = String(cpus - 1);
    await startServer(ends.server([nb, 'serve', String(NB_PORT), cpu]));
    await startServer(
      ends.server(['iperf3', '--server', '--port', String(IPERF_PORT), '--affinity', cpu, '--forceflush']),
    );
    return new PathEnds(ends, nb, cpus);
  }

  /** `address`: another one that leads to the server. */
  async exchange(what: Exchanges, seconds: number, address = this.#ends.address): Promise<Exchange> {
    const cpu = String(this.#cpus - 1);
    const stdout = await this.#run([this.#nb, what, address, String(NB_PORT), String(seconds), cpu], seconds);
    return JSON.parse(stdout) as Exchange;
  }

  /** What the receiver counted of TCP streams side by side. */
  async iperf(seconds: number, streams = 1): Promise<Received> {
    const argv = ['iperf3', '--client', this.#ends.address, '--port', String(IPERF_PORT), '--json'];
    const times = ['--time', String(seconds), '--parallel', String(streams), '--affinity', '0'];
    const { end } = JSON.parse(await this.#run([...argv, ...times], seconds)) as { end: { sum_received: Received } };
    return end.sum_received;
  }

  async #run(argv: readonly string[], seconds: number): Promise<string> {
    const [file, ...args] = this.#ends.client(argv);
    const { stdout } = await execa(file, args, { timeout: seconds * 1000 + DEADLINE_MS });
    return stdout;
  }
}

/** Resolves when the program prints something, which it does once it listens. Its standard input is held open. */
export async function startServer([file, ...args]: readonly [string, ...string[]]): Promise<void> {
  const server = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const line = once(createInterface({ input: server.stdout }), 'line');
  const end = once(server, 'exit').then(([code]) => {
    throw new Error(`cannot serve ${args.join(' ')}: ended with ${code}`);
  });
  // Once it listens, its end shows at the client.
  end.catch(() => undefined);
  await Promise.race([line, end]);
}
