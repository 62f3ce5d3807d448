/** Pods that come and go on a node in great numbers, while the agent and those who call it are killed. See churn.c. */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import { readRecords } from '../../agent/pods/records.ts';
import { inNode, type NodeRef, pathOnHost } from '../../lab/node.ts';
import { RUN_DIR } from './agent-status.ts';

const SOURCE = fileURLToPath(new URL('churn.c', import.meta.url));

export interface ChurnOptions {
  readonly node: NodeRef;
  /** Of an ADD and a DEL. */
  readonly pairs: number;
  readonly concurrency: number;
  /** Most pods at a time. */
  readonly live: number;
  /** Of everything random, so that a failure can be looked for again; what meets with what is up to the scheduler. */
  readonly seed: number;
  /** Of the calls. */
  readonly callerKillPercent: number;
  /** An agent is killed after a random number of ADDs that have succeeded, up to this. */
  readonly addsPerAgent: number;
  /** SIGKILL; resolves when the agent is dead or about to be. */
  readonly killAgent: () => Promise<unknown>;
}

export interface ChurnReport {
  readonly adds: number;
  readonly dels: number;
  readonly checks: number;
  /** Calls that failed, or were killed, and were made again. */
  readonly retries: number;
  readonly callersKilled: number;
  readonly agentsKilled: number;
  /** One sentence each; at most 20. */
  readonly faults: readonly string[];
}

const FAULTS_SHOWN = 20;
/** ADDs a line of progress, see churn.c. */
const PROGRESS_STEP = 10;
/** An ADD takes some milliseconds: a kill hits any part of one. */
const MOMENT_MS = 20;

/** Runs until every pod is attached and detached; the agent is alive, or being started, when it returns. */
export async function churn(options: ChurnOptions): Promise<ChurnReport> {
  const { node, pairs, concurrency, live, seed, callerKillPercent } = options;
  const directory = mkdtempSync(join(tmpdir(), 'tulle-test-churn-'));
  try {
    const driver = join(directory, 'churn');
    await execa('musl-gcc', ['-static', '-std=c11', '-O1', '-Wall', '-Wextra', '-Werror', SOURCE, '-o', driver]);
    const numbers = [pairs, concurrency, live, seed, callerKillPercent].map(String);
    const [file, ...args] = inNode(node, [driver, ...numbers]);
    const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] });
    const killer = new AgentKiller(options);
    const lines: string[] = [];
    for await (const line of createInterface({ input: child.stdout })) {
      if (line === '+') killer.progress(PROGRESS_STEP);
      else lines.push(line);
    }
    const { agentsKilled, faults } = await killer.end();
    const counts = JSON.parse(lines.pop() as string) as Omit<ChurnReport, 'faults' | 'callersKilled'> & {
      readonly kills: number;
    };
    const { adds, dels, checks, retries, kills } = counts;
    return {
      ...{ adds, dels, checks, retries, callersKilled: kills, agentsKilled },
      faults: [...lines, ...faults].slice(0, FAULTS_SHOWN),
    };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** Also looks, each time, whether the records that the agent left behind give an address twice. */
class AgentKiller {
  readonly #options: ChurnOptions;
  readonly #random: () => number;
  readonly #faults: string[] = [];
  /** ADDs until the next kill. */
  #left: number;
  #killing: Promise<void> | undefined;
  #agentsKilled = 0;

  constructor(options: ChurnOptions) {
    this.#options = options;
    this.#random = randomFrom(options.seed);
    this.#left = this.#draw();
  }

  progress(adds: number): void {
    this.#left -= adds;
    if (this.#left > 0 || this.#killing !== undefined) return;
    this.#left = this.#draw();
    this.#killing = this.#kill().then(() => {
      this.#killing = undefined;
    });
  }

  async end(): Promise<{ readonly agentsKilled: number; readonly faults: readonly string[] }> {
    await this.#killing;
    return { agentsKilled: this.#agentsKilled, faults: this.#faults };
  }

  async #kill(): Promise<void> {
    const { node, killAgent } = this.#options;
    await delay(this.#random() * MOMENT_MS);
    await killAgent();
    this.#agentsKilled++;
    this.#faults.push(...addressesGivenTwice(node).map((ip) => `${ip} is in two records`));
  }

  #draw(): number {
    return this.#random() * this.#options.addsPerAgent;
  }
}

function addressesGivenTwice(node: NodeRef): readonly string[] {
  const ips = readRecords(pathOnHost(node, RUN_DIR)).flatMap((record) => record.ips);
  return ips.filter((ip, i) => ips.indexOf(ip) !== i);
}

/** mulberry32: numbers in [0, 1). */
function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
