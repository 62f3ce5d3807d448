/** What a cluster's controllers would do that Tulle depends on. A further controller is one more entry of the list. */

import type { Logger } from 'pino';
import type { Cidr, Family } from '../../agent/model/ip.ts';
import { KINDS, type KindRow, kinds } from './kinds.ts';
import { refOf } from './objects.ts';
import { PodCidrController } from './pod-cidrs.ts';
import type { Store } from './store.ts';

export interface Controller {
  /** It runs after these kinds changed, and once at the start. */
  readonly watches: readonly KindRow[];
  /** Brings the store to where it should be; finding nothing to do is normal. */
  run(): void;
}

export interface ControllerOptions {
  readonly clusterCidrs: readonly Cidr[];
  /** Prefix length of what each Node gets; 24 and 64 unless given. */
  readonly nodePrefixLengths?: Readonly<Record<Family, number>>;
}

/** Runs until the signal. Like the real ones they act after the answer to the write that calls for them. */
export function startControllers(
  store: Store,
  options: ControllerOptions,
  log: Logger | undefined,
  signal: AbortSignal,
): void {
  const controllers: readonly Controller[] = [new PodCidrController(store, options, log), namespaceController(store)];
  for (const controller of controllers) start(store, controller, log, signal);
}

/** However many changes one turn of the event loop brings, they make one run. */
function start(store: Store, controller: Controller, log: Logger | undefined, signal: AbortSignal): void {
  let scheduled = false;
  const run = () => {
    scheduled = false;
    if (signal.aborted) return;
    try {
      controller.run();
    } catch (err) {
      log?.error({ err }, 'a controller failed');
    }
  };
  const schedule = () => {
    if (scheduled) return;
    scheduled = true;
    setImmediate(run);
  };
  const stops = controller.watches.map((row) => store.onChange(row, schedule));
  signal.addEventListener('abort', () => stops.forEach((stop) => void stop()), { once: true });
  schedule();
}

/** What lived in a namespace goes with it. */
function namespaceController(store: Store): Controller {
  const deleteOrphans = (row: KindRow) => {
    for (const { object } of store.list(row).objects) {
      const namespace = object.metadata.namespace ?? '';
      const exists = store.find(KINDS.namespace, { namespace: '', name: namespace });
      if (!exists) store.delete(row, refOf(object), { graceSeconds: 0 });
    }
  };
  return { watches: [KINDS.namespace], run: () => kinds.filter((row) => row.namespaced).forEach(deleteOrphans) };
}
