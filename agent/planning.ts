/**
 * Keeps the state equal to the plan: plans after every change of the cluster or of the host, a burst of them once, and hands
 * the fragments to the state. With thousands of Nodes both take many turns of the event loop, between which ADDs, notices
 * and batches go on; what only a few Nodes changed fits into one.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { Fragment, FragmentId } from './model/fragment.ts';
import type { Key } from './model/items.ts';
import type { Plan, PlanInput, Planner } from './plan/planner.ts';
import { NO_SERVICES, type ServicesInput, type ServicesPlan, ServicesPlanner } from './plan/services/services.ts';
import { Doorbell } from './reconcile/doorbell.ts';
import type { KernelState } from './reconcile/kernel-state.ts';
import type { Followed, Reconciler } from './reconcile/reconciler.ts';
import { inTurns } from './turns.ts';

export interface PlanningOptions {
  readonly planner: Planner;
  readonly state: KernelState;
  readonly reconciler: Pick<Reconciler, 'follow'>;
  /** What to plan from now; undefined: nothing yet. */
  readonly input: () => PlanInput | undefined;
  /** Told once the state holds a plan of Services. */
  readonly onServices: (plan: ServicesPlan, signal: AbortSignal) => void;
  readonly log: Logger;
}

type OnPlanned = (plan: Plan, before: Plan | undefined) => void;

export class Planning {
  readonly #options: PlanningOptions;
  /** What of the state is planned here, also when a plan got there only in part. */
  readonly #entered = new Set<FragmentId>();
  readonly #servicesPlanner = new ServicesPlanner();
  /** The fragments of Services that are in the state. */
  #services = NO_SERVICES.fragments;
  #plan: Plan | undefined;
  #ownKeys: readonly Key[] = [];
  readonly #bell = new Doorbell();
  /** When the oldest event came that no plan has seen. */
  #eventMs: number | undefined;

  constructor(options: PlanningOptions) {
    this.#options = options;
  }

  /** The last one that is in the state as a whole. */
  get plan(): Plan | undefined {
    return this.#plan;
  }

  /** What the node needs for itself: everything that no other Node's fragment wants. */
  get ownKeys(): readonly Key[] {
    return this.#ownKeys;
  }

  /** `isEvent`: the cluster API said something new. */
  request({ isEvent }: { readonly isEvent: boolean }): void {
    if (isEvent) this.#eventMs ??= performance.now();
    this.#bell.ring();
  }

  /** Plans now, and after each request, until the signal aborts. `onPlanned` is called once the state holds a new plan. */
  start(onPlanned: OnPlanned, signal: AbortSignal): void {
    signal.addEventListener('abort', () => this.#bell.ring(), { once: true });
    void this.#run(onPlanned, signal);
  }

  async #run(onPlanned: OnPlanned, signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        await this.#replan(onPlanned, signal);
      } catch (err) {
        if (signal.aborted) return;
        this.#options.log.error({ err }, 'planning failed and is tried again at the next change');
      }
      await this.#bell.wait(Infinity);
      // What else arrived in this turn is planned along with it.
      await nextTurn();
    }
  }

  async #replan(onPlanned: OnPlanned, signal: AbortSignal): Promise<void> {
    const { planner, reconciler } = this.#options;
    const input = this.#options.input();
    if (!input) return;
    const eventMs = this.#eventMs;
    this.#eventMs = undefined;
    const followed = eventMs === undefined ? undefined : reconciler.follow(performance.now() - eventMs);
    const before = this.#plan;
    try {
      const plan = await inTurns(planner.steps(input), signal);
      if (plan !== before) await inTurns(this.#enter(plan, followed), signal);
      this.#plan = plan;
      this.#ownKeys = [...plan.fragments.values()]
        .filter(({ rank }) => rank === '')
        .flatMap(({ items }) => items.map(({ key }) => key));
      onPlanned(plan, before);
      const underlayIps = Object.values(plan.underlay.locals).map(({ ip }) => ip);
      await this.#replanServices({ ...input, losses: plan.losses, underlayIps }, followed, signal);
    } finally {
      followed?.end();
    }
  }

  /** After everything else: the node's network does not wait for thousands of Services. */
  async #replanServices(input: ServicesInput, followed: Followed | undefined, signal: AbortSignal): Promise<void> {
    if (input.settings['services.mode'] === 'off') return;
    const plan = await inTurns(this.#servicesPlanner.steps(input), signal);
    await inTurns(this.#enterServices(plan.fragments, followed), signal);
    this.#options.onServices(plan, signal);
  }

  /** What differs from what was entered last, also when that was interrupted. */
  *#enterServices(fragments: ServicesPlan['fragments'], followed: Followed | undefined): Generator<void, void> {
    let entered: [FragmentId, Fragment | undefined][] | undefined = [];
    try {
      for (const id of fragments.changedSince(this.#services)) {
        const fragment = fragments.get(id);
        const touched = this.#options.state.replace(id, fragment);
        followed?.add(touched);
        entered.push([id, fragment]);
        yield;
      }
      entered = undefined;
    } finally {
      this.#services = entered ? this.#services.with(entered) : fragments;
    }
  }

  /** The node's own fragments come first, those that nobody wants any more go last. */
  *#enter(plan: Plan, followed: Followed | undefined): Generator<void, void> {
    for (const [id, fragment] of plan.fragments) {
      if (this.#replace(id, fragment, followed)) yield;
    }
    for (const id of this.#entered) {
      if (plan.fragments.has(id)) continue;
      this.#replace(id, undefined, followed);
      yield;
    }
  }

  /** Whether there was anything to do. */
  #replace(id: FragmentId, fragment: Fragment | undefined, followed: Followed | undefined): boolean {
    const touched = this.#options.state.replace(id, fragment);
    followed?.add(touched);
    if (fragment) this.#entered.add(id);
    else this.#entered.delete(id);
    return touched.length > 0;
  }
}
