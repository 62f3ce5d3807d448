/** What a cluster's controllers would do that Tulle depends on. A further controller is one more entry of the list. */

import type { Logger } from 'pino';
import { addressAt, type Cidr, type Family } from '../../agent/model/ip.ts';
import type { IpPort } from '../../agent/model/ip-port.ts';
import { EndpointSliceController } from './endpoint-slices.ts';
import { KINDS, type KindRow, kinds } from './kinds.ts';
import { kubernetesService } from './kubernetes-service.ts';
import { refOf } from './objects.ts';
import { PodCidrController } from './pod-cidrs.ts';
import type { Store } from './store.ts';

export interface Controller {
  /** It runs after these kinds changed, and once at the start. */
  readonly watches: readonly KindRow[];
  /**
   * Brings the store to where it should be; finding nothing to do is normal. True: something is left, for another turn of
   * the event loop.
   */
  run(): boolean;
}

export interface ControllerOptions {
  readonly clusterCidrs: readonly Cidr[];
  /** Prefix length of what each Node gets; 24 and 64 unless given. */
  readonly nodePrefixLengths?: Readonly<Record<Family, number>>;
  /** What Services get their addresses from, that of the default family first. */
  readonly serviceCidrs: readonly Cidr[];
  /** Where Pods reach this server: the endpoint of the Service `kubernetes`, which is there where both are given. */
  readonly advertised?: IpPort;
}

/** Runs until the signal. Like the real ones they act after the answer to the write that calls for them. */
export function startControllers(
  store: Store,
  options: ControllerOptions,
  log: Logger | undefined,
  signal: AbortSignal,
): void {
  const {
    serviceCidrs: [serviceCidr],
    advertised,
  } = options;
  const controllers: readonly Controller[] = [
    new PodCidrController(store, options, log),
    namespaceController(store),
    new EndpointSliceController(store, log),
    ...(advertised && serviceCidr ? [kubernetesService(store, advertised, addressAt(serviceCidr, 1))] : []),
  ];
  for (const controller of controllers) start(store, controller, log, signal);
}

/** However many changes one turn of the event loop brings, they make one run. */
function start(store: Store, controller: Controller, log: Logger | undefined, signal: AbortSignal): void {
  let scheduled = false;
  const run = () => {
    scheduled = false;
    if (signal.aborted) return;
    try {
      if (controller.run()) schedule();
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
  const run = () => {
    kinds.filter((row) => row.namespaced).forEach(deleteOrphans);
    return false;
  };
  return { watches: [KINDS.namespace], run };
}
