/**
 * What the agent tells Prometheus. Only durations are observed as they happen; everything else is read from the agent's
 * status when somebody asks (families.ts). Nothing is counted per pod, per peer or per packet.
 */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import Counter from 'prom-client/lib/counter.js';
import Gauge from 'prom-client/lib/gauge.js';
import Histogram from 'prom-client/lib/histogram.js';
import Registry from 'prom-client/lib/registry.js';
import type { BatchReport, ListReport } from '../reconcile/reconciler.ts';
import type { Page } from './endpoint.ts';
import { FAMILIES_OF_METRICS, type MetricsView } from './families.ts';
import { readProcess } from './process-figures.ts';

/** A call of the CNI executable that was answered. */
interface CniCall {
  readonly verb: string;
  /** CNI error code, 0 for success. */
  readonly code: number;
  readonly durationMs: number;
}

/** Seconds. From the cost of one netlink message to the deadline of a batch. */
const BATCH_BUCKETS = [0.0002, 0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60];
/** Around what an ADD takes (some milliseconds), and up to the deadline of a verb. */
const CALL_BUCKETS = [0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5, 2, 10, 50];
const LAG_BUCKETS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2, 10, 60, 300];

/** Who asks again within this time gets the same text, so that no number of scrapers costs more than one. */
const FRESH_MS = 1_000;
/** How many batches wait for the next rendering at most. */
const UNBOOKED_MAX = 256;
/** How finely stalls of the event loop are watched: ten wake-ups a second, outside of JavaScript. */
const STALL_RESOLUTION_MS = 100;

export class Metrics {
  readonly #view: () => Omit<MetricsView, 'process'>;
  readonly #now: () => number;
  readonly #registry = new Registry();
  readonly #scraped: readonly ((view: MetricsView) => void)[];
  readonly #batches: Histogram<'lane' | 'kind'>;
  /** Batches that are not in the histogram yet. */
  readonly #unbooked: Pick<BatchReport, 'lane' | 'kind' | 'durationMs'>[] = [];
  readonly #lists: Histogram<'lane' | 'kind'>;
  readonly #calls: Histogram<'verb' | 'code'>;
  readonly #lag: Histogram;
  readonly #delay = monitorEventLoopDelay({ resolution: STALL_RESOLUTION_MS });
  #rendered: { readonly atMs: number; readonly text: Promise<string> } | undefined;

  /** `view` is asked once a rendering. */
  constructor(view: () => Omit<MetricsView, 'process'>, now: () => number = () => performance.now()) {
    this.#view = view;
    this.#now = now;
    const registers = [this.#registry];
    this.#scraped = FAMILIES_OF_METRICS.map(({ name, help, type, labels, read }) => {
      const metric = new (type === 'counter' ? Counter : Gauge)({ name, help, labelNames: [...labels], registers });
      return (seen) => {
        metric.reset();
        for (const [value, ...texts] of read(seen)) {
          metric.inc(Object.fromEntries(labels.map((label, i) => [label, texts[i] ?? ''])), value);
        }
      };
    });
    const histogram = <L extends string>(name: string, help: string, labelNames: L[], buckets: number[]) =>
      new Histogram({ name, help, labelNames, buckets, registers });
    const drivers: ('lane' | 'kind')[] = ['lane', 'kind'];
    this.#batches = histogram(
      'tulle_reconcile_batch_duration_seconds',
      'Time in which a driver applied one batch of changes to the kernel.',
      drivers,
      BATCH_BUCKETS,
    );
    this.#lists = histogram(
      'tulle_reconcile_list_duration_seconds',
      'Time in which a driver listed all own objects of the kernel.',
      drivers,
      BATCH_BUCKETS,
    );
    this.#calls = histogram(
      'tulle_cni_call_duration_seconds',
      'Time from the request of the CNI executable to its answer, by verb and CNI error code (0: success).',
      ['verb', 'code'],
      CALL_BUCKETS,
    );
    this.#lag = histogram(
      'tulle_api_to_kernel_duration_seconds',
      'Time from the arrival of events of the cluster API until the kernel holds what they changed.',
      [],
      LAG_BUCKETS,
    );
  }

  /** Starts to watch for stalls of the event loop. */
  start(signal: AbortSignal): void {
    this.#delay.enable();
    signal.addEventListener('abort', () => this.#delay.disable(), { once: true });
  }

  /** An ADD waits for its batches, and must not for this. */
  batch({ lane, kind, durationMs }: BatchReport): void {
    this.#unbooked.push({ lane, kind, durationMs });
    if (this.#unbooked.length >= UNBOOKED_MAX) this.#book();
  }

  #book(): void {
    for (const { lane, kind, durationMs } of this.#unbooked.splice(0))
      this.#batches.observe({ lane, kind }, durationMs / 1000);
  }

  /** How long a failed list took says nothing. */
  list({ lane, kind, durationMs, error }: ListReport): void {
    if (!error) this.#lists.observe({ lane, kind }, durationMs / 1000);
  }

  call({ verb, code, durationMs }: CniCall): void {
    this.#calls.observe({ verb, code }, durationMs / 1000);
  }

  caughtUp(durationMs: number): void {
    this.#lag.observe(durationMs / 1000);
  }

  /** The text format of Prometheus, at most a second old. */
  async page(): Promise<Page> {
    const atMs = this.#now();
    if (!this.#rendered || atMs - this.#rendered.atMs >= FRESH_MS) this.#rendered = { atMs, text: this.#render() };
    return { status: 200, contentType: Registry.PROMETHEUS_CONTENT_TYPE, body: await this.#rendered.text };
  }

  #render(): Promise<string> {
    this.#book();
    const view = { ...this.#view(), process: readProcess(this.#stallMs()) };
    for (const set of this.#scraped) set(view);
    return this.#registry.metrics();
  }

  /** The longest since the last rendering. The histogram holds the time between two wake-ups, not their delay. */
  #stallMs(): number {
    const stallMs = this.#delay.max / 1e6 - STALL_RESOLUTION_MS;
    this.#delay.reset();
    return Math.max(0, stallMs);
  }
}
