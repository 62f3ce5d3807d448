/** Drives one cni-exec, the program that calls plugins and times them; this process only waits meanwhile. */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface, type Interface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { inNode, type NodeRef } from '../lab/node.ts';

/** One plugin of a chain: where it is, and its part of the network's configuration with name and cniVersion. */
export interface Plugin {
  readonly file: string;
  readonly config: Readonly<Record<string, unknown>>;
}

/** Times in microseconds. */
export interface Timing {
  readonly wallUs: number;
  /** One a call, in the order of the pods. */
  readonly us: readonly number[];
  /** CPU time of each call's processes. */
  readonly cpuUs: readonly number[];
  /** DELs that went on beside. */
  readonly others: number;
}

/** Pods are numbers below 512; a range ends before its second number. Throws when any call fails. */
export class Launcher {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: Interface;
  readonly #gone: Promise<never>;

  /** `program` is the compiled cni-exec. */
  constructor(program: string, node: NodeRef, chain: readonly Plugin[]) {
    const pairs = chain.flatMap(({ file, config }) => [file, JSON.stringify(config)]);
    const [file, ...args] = inNode(node, [program, ...pairs]);
    this.#child = spawn(file, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#lines = createInterface({ input: this.#child.stdout });
    this.#gone = once(this.#child, 'exit').then(([code]) => {
      throw new Error(`cannot go on: cni-exec ended with ${code}`);
    });
    // Whoever asks is told; at the end of the bench nobody does.
    this.#gone.catch(() => undefined);
  }

  /** Makes network namespaces. */
  create = (first: number, end: number): Promise<Timing> => this.#ask(`new ${first} ${end}`);

  call = (verb: 'ADD' | 'DEL', first: number, end: number, threads = 1): Promise<Timing> =>
    this.#ask(`call ${verb} ${first} ${end} ${threads}`);

  /** ADDs one by one while others are deleted with their namespaces: only those that began meanwhile are told. */
  mix = (adds: readonly [number, number], dels: readonly [number, number]): Promise<Timing> =>
    this.#ask(`mix ${adds.join(' ')} ${dels.join(' ')}`);

  /** Drops network namespaces; the kernel takes them apart afterwards. */
  end = (first: number, end: number): Promise<Timing> => this.#ask(`end ${first} ${end}`);

  async #ask(command: string): Promise<Timing> {
    const answered = once(this.#lines, 'line');
    this.#child.stdin.write(`${command}\n`);
    const [line] = (await Promise.race([answered, this.#gone])) as [string];
    const { failed, message, ...timing } = JSON.parse(line) as Timing & { failed: number; message: string };
    if (failed === 0) return timing;
    throw new Error(`cannot ${command}: ${failed} calls failed, the last with ${message}`);
  }
}
