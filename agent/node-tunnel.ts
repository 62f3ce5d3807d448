/** The tunnel that this process carries, as people see it: how much goes to and comes from each peer, and who is not reached. */
import type { TunPeerStatus, TunStatus } from './kernel/tun/status.ts';
import type { ToldProblem } from './telemetry/problem-log.ts';

/** Part of `tulle status --json`. */
export interface NodeTunnelStatus extends TunStatus {
  readonly peers: readonly PeerStatus[];
}

export interface PeerStatus extends TunPeerStatus {
  /** Of inner packets, over the last seconds; absent before they were seen twice. */
  readonly rates?: { readonly sentBitsPerSecond: number; readonly receivedBitsPerSecond: number };
}

const INTERVAL_MS = 5_000;

/** Bytes of each peer at one time. */
interface Sample {
  readonly atMs: number;
  readonly bytes: ReadonlyMap<string, readonly [sent: number, received: number]>;
}

export class NodeTunnel {
  readonly #read: () => TunStatus | undefined;
  readonly #now: () => number;
  #before: Sample | undefined;
  #last: Sample | undefined;

  /** `read` is undefined where no tunnel of this kind is or was. `now`: milliseconds of a clock that does not jump. */
  constructor(read: () => TunStatus | undefined, now: () => number = () => performance.now()) {
    this.#read = read;
    this.#now = now;
  }

  /** Looks at what was carried now and then, until the signal aborts. */
  follow(signal: AbortSignal): void {
    const timer = setInterval(() => this.sample(), INTERVAL_MS).unref();
    signal.addEventListener('abort', () => clearInterval(timer));
  }

  sample(): void {
    const status = this.#read();
    this.#before = this.#last;
    this.#last = status && sampleOf(status, this.#now());
  }

  status(): NodeTunnelStatus | undefined {
    const status = this.#read();
    return status && { ...status, peers: status.peers.map((peer) => ({ ...peer, ...this.#ratesOf(peer) })) };
  }

  /** Why pods of other nodes are not reached, one sentence each. */
  problems(): readonly ToldProblem[] {
    const status = this.#read();
    return status ? tunnelProblems(status) : [];
  }

  #ratesOf({ node }: TunPeerStatus): Pick<PeerStatus, 'rates'> {
    const [before, last] = [this.#before?.bytes.get(node), this.#last?.bytes.get(node)];
    if (!before || !last || !this.#before || !this.#last) return {};
    const seconds = (this.#last.atMs - this.#before.atMs) / 1000;
    // A peer that went and came again counts from 0.
    const rate = (way: 0 | 1): number => Math.max(0, Math.round((8 * (last[way] - before[way])) / seconds));
    return { rates: { sentBitsPerSecond: rate(0), receivedBitsPerSecond: rate(1) } };
  }
}

export const tunnelProblems = ({ problems, peers }: TunStatus): readonly ToldProblem[] => [
  ...problems.map((problem) => ({ cause: 'tunnel', problem })),
  ...peers.flatMap(({ node, problem }) => (problem === undefined ? [] : [{ cause: `node ${node}`, problem }])),
];

const sampleOf = ({ peers }: TunStatus, atMs: number): Sample => ({
  atMs,
  bytes: new Map(peers.map(({ node, sent, received }) => [node, [sent.bytes, received.bytes] as const])),
});
