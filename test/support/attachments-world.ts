/** Attachments over a kernel of fakes, with records in a directory of their own. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { pino } from 'pino';
import { KernelError } from '../../agent/kernel/errors.ts';
import type { Kind, PodMtu } from '../../agent/model/items.ts';
import { gateKeys } from '../../agent/plan/node-network.ts';
import { planPod } from '../../agent/plan/pods.ts';
import { Attachments, type Readiness } from '../../agent/pods/attachments.ts';
import { HostPorts } from '../../agent/pods/host-ports.ts';
import { PodRecords } from '../../agent/pods/records.ts';
import { KernelState } from '../../agent/reconcile/kernel-state.ts';
import { Reconciler } from '../../agent/reconcile/reconciler.ts';
import type { AnyDriver } from '../../agent/reconcile/types.ts';
import { type AddRequest, type CheckRequest, type CniCode, CniError, type PodResult } from '../../cni/protocol.ts';
import { cidr } from './cluster-values.ts';
import { FakeDriver } from './fake-driver.ts';

export const KINDS = [
  'pod-link',
  'neighbour',
  'route',
  'set',
  'member',
  'chain-part',
] as const satisfies readonly Kind[];
export const MTU: PodMtu = { mtuBytes: 1500, routeMtuBytes: 1450 };
const log = pino({ level: 'silent' });

export interface World {
  readonly attachments: Attachments;
  readonly records: PodRecords;
  readonly state: KernelState;
  /** Nothing is planned of them until it follows something. */
  readonly hostPorts: HostPorts;
  readonly drivers: { readonly [K in (typeof KINDS)[number]]: FakeDriver<K> };
  /** Namespaces that exist, by path. */
  readonly namespaces: Map<string, string>;
  ready: Readiness;
  /** A second process over the same kernel and run directory. */
  restart(): Promise<World>;
}

export async function createWorld(
  t: ExecutionContext,
  former?: Pick<World, 'drivers' | 'namespaces'> & { runDir: string },
): Promise<World> {
  const runDir = former?.runDir ?? mkdtempSync(join(tmpdir(), 'tulle-attachments-'));
  if (!former) t.teardown(() => rmSync(runDir, { recursive: true }));
  const netfilter = (kind: Kind) => (['set', 'member', 'chain-part'].includes(kind) ? 'netfilter' : 'netlink');
  const drivers = Object.fromEntries(
    KINDS.map((kind) => [
      kind,
      new FakeDriver(kind, { lane: netfilter(kind), ...(former && { store: former.drivers[kind].store as never }) }),
    ]),
  ) as unknown as World['drivers'];
  const state = new KernelState(Object.fromEntries(KINDS.map((kind) => [kind, 'one'])) as never);
  const reconciler = new Reconciler({
    state,
    drivers: Object.values(drivers) as AnyDriver[],
    log,
    options: { backoff: { minMs: 5, maxMs: 10 } },
  });
  const stop = new AbortController();
  t.teardown(() => stop.abort(new Error('test ends')));
  const gate = (['ipv4', 'ipv6'] as const).flatMap((family) => gateKeys(family));
  state.replace('gate', {
    id: 'gate',
    cause: 'test',
    rank: '',
    requires: [],
    problems: [],
    items: gate.map((key) => ({ kind: key.split(' ')[0] as never, key, value: { key } as never, needs: [] })) as never,
  });
  const namespaces = former?.namespaces ?? new Map<string, string>();
  const records = new PodRecords(runDir, log);
  const hostPorts = new HostPorts(state);
  const world: World = {
    records,
    state,
    hostPorts,
    drivers,
    namespaces,
    ready: { ready: true, podCidrs: [cidr('10.84.1.0/29'), cidr('fd84:0:0:1::/64')], mtu: MTU },
    attachments: new Attachments({
      state,
      reconciler,
      records,
      planPod: (attachment) => planPod(attachment, {}),
      readiness: () => world.ready,
      identifyNetns: (path) => {
        const inode = namespaces.get(path);
        if (inode === undefined) throw new KernelError({ code: 'ENOENT', operation: 'open', object: path });
        return { device: '4', inode };
      },
      describePodLink: async () => [],
      staticAddresses: { requestOf: async () => ({ ips: [] }), claims: () => new Map() },
      hostPorts,
      reuseDelayMs: 60_000,
      log,
    }),
    restart: async () => {
      stop.abort(new Error('killed'));
      return createWorld(t, { runDir, drivers, namespaces });
    },
  };
  reconciler.start(stop.signal);
  await reconciler.listed;
  world.attachments.restore();
  return world;
}

export const signal = () => AbortSignal.timeout(10_000);

export function addRequest(world: World, containerId: string): AddRequest {
  const path = `/run/netns/${containerId}`;
  if (!world.namespaces.has(path)) world.namespaces.set(path, String(1000 + world.namespaces.size));
  return {
    verb: 'ADD',
    containerId,
    ifName: 'eth0',
    netns: { path, device: '4', inode: world.namespaces.get(path) as string },
    netnsOverride: false,
    args: { podNamespace: 'default', podName: containerId },
    config: { cniVersion: '1.0.0', name: 'tulle', type: 'tulle', runtimeConfig: { portMappings: [] } } as never,
  };
}

export const addresses = async (world: World, containerId: string): Promise<readonly string[]> =>
  (await world.attachments.add(addRequest(world, containerId), signal())).ips.map(({ address }) => address);

export const failsWith = async (t: ExecutionContext, action: Promise<unknown>, code: CniCode, message: RegExp) => {
  const error = await t.throwsAsync(action, { instanceOf: CniError, message });
  t.is(error?.code, code);
};

/** What the fake kernel holds for one container. */
export const held = (world: World): readonly string[] =>
  [
    ...world.drivers['pod-link'].store.keys(),
    ...world.drivers.neighbour.store.keys(),
    ...world.drivers.route.store.keys(),
    ...world.drivers.member.store.keys(),
  ].sort();

/** Of an attachment that was made by this request. */
export const checkRequest = (add: AddRequest, result: PodResult): CheckRequest => ({
  ...add,
  verb: 'CHECK',
  prevResult: {
    interfaces: [],
    ips: result.ips.map(({ address, prefixLength }) => ({ address, prefixLength })),
    routes: [],
  } as never,
});
