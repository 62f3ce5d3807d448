/** Own routes that share destination and metric with others: a real kernel, somebody with `ip route`, and the reconciler. */
import { closeSync, openSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { pino } from 'pino';
import { openNetlink } from '../../agent/kernel/netlink/open.ts';
import { type Cidr, FAMILIES, parseCidr } from '../../agent/model/ip.ts';
import { defaultMetric, item, type Key } from '../../agent/model/items.ts';
import { KernelState } from '../../agent/reconcile/kernel-state.ts';
import { Reconciler } from '../../agent/reconcile/reconciler.ts';
import { MERGE } from '../support/fragments.ts';
import { createNetns, waitFor } from '../support/netns.ts';

const DESTINATIONS = { ipv4: '10.244.1.0/24', ipv6: 'fd00:1::/64' } as const;

interface Rivals {
  readonly reconciler: Reconciler;
  readonly key: Key<'route'>;
  ip(command: string): Promise<unknown>;
  /** The routes to the destination, a line each, without what a family adds to it. */
  routes(): Promise<readonly string[]>;
}

/** What fails is not tried again unless a notice says that it may succeed now. */
const NEVER_AGAIN = { minMs: 3_600_000, maxMs: 3_600_000 };

/** A blackhole is wanted and there, or a route over a link that may be missing. Nothing is listed again unless it is asked for. */
async function open(
  t: ExecutionContext,
  family: keyof typeof DESTINATIONS,
  { link, backoff = NEVER_AGAIN }: { readonly link?: string; readonly backoff?: typeof NEVER_AGAIN } = {},
): Promise<Rivals> {
  const host = await createNetns(t, 'host');
  const netnsFd = openSync(host.path, 'r');
  const netlink = openNetlink({ netnsFd });
  const destination = parseCidr(DESTINATIONS[family]) as Cidr;
  const metric = defaultMetric(destination);
  const way = link === undefined ? ({ type: 'blackhole' } as const) : ({ type: 'unicast', link } as const);
  const route = item('route', { destination, metric, ...way });
  const state = new KernelState(MERGE);
  state.replace('test', { id: 'test', cause: 'test', rank: '', items: [route], requires: [], problems: [] });
  const reconciler = new Reconciler({
    state,
    drivers: [netlink.drivers.route],
    log: pino({ level: 'silent' }),
    options: { backoff, resyncIntervalMs: 3_600_000 },
  });
  const end = new AbortController();
  t.teardown(async () => {
    end.abort(new Error('the test is over'));
    await reconciler.stopped;
    await netlink.close();
    closeSync(netnsFd);
  });
  reconciler.start(end.signal);
  if (link === undefined) await reconciler.settle([route.key], AbortSignal.timeout(10_000));
  const flag = family === FAMILIES.ipv6.family ? '-6' : '-4';
  return {
    reconciler,
    key: route.key,
    ip: (command) => host.run('ip', flag, ...command.split(' ')),
    routes: async () => {
      const { stdout } = await host.run('ip', flag, 'route', 'show', destination);
      return stdout
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => /^\w+/.exec(line)?.[0] + (/ proto \S+/.exec(line)?.[0] ?? ''));
    },
  };
}

const OWN = ['blackhole proto 84'];

for (const [family, destination] of Object.entries(DESTINATIONS) as [keyof typeof DESTINATIONS, string][]) {
  test(`${family}: a route that somebody has replaced with his own is known to be gone, and comes back after it`, async (t) => {
    const { reconciler, key, ip, routes } = await open(t, family);
    t.deepEqual(await routes(), OWN);
    await ip(`route replace prohibit ${destination} proto static`);
    await waitFor(() => reconciler.failures([key]).length > 0, { describe: 'the failure' });
    t.deepEqual(await routes(), ['prohibit proto static'], "the stranger's route stays");
    await ip(`route delete prohibit ${destination} proto static`);
    await waitFor(async () => (await routes()).join() === OWN.join(), { describe: 'the own route' });
    t.deepEqual(await routes(), OWN);
  });
}

for (const family of ['ipv4', 'ipv6'] as const) {
  test(`${family}: a route over a link that is not there, or down, comes with the link`, async (t) => {
    const { reconciler, key, ip, routes } = await open(t, family, { link: 'wire' });
    await waitFor(() => reconciler.failures([key]).length > 0, { describe: 'the failure' });
    await ip('link add wire type veth peer name eriw');
    await ip('link set eriw up');
    await ip('link set wire up');
    await waitFor(async () => (await routes()).length > 0, { describe: 'the own route' });
    t.regex((await routes()).join(), /proto 84$/);
  });
}

for (const where of ['append', 'prepend']) {
  test(`ipv4: two own routes of one key become the one that is wanted (${where})`, async (t) => {
    const { reconciler, key, ip, routes } = await open(t, 'ipv4', { backoff: { minMs: 1, maxMs: 50 } });
    await ip(`route ${where} unreachable ${DESTINATIONS.ipv4} proto 84`);
    reconciler.resync('route');
    await waitFor(async () => (await routes()).join() === OWN.join(), { describe: 'one route', timeoutMs: 5_000 });
    await reconciler.settle([key], AbortSignal.timeout(10_000));
    t.deepEqual(await routes(), OWN);
  });
}
