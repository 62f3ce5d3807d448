/** Among thousands of Nodes one change costs the kernel a handful of requests, and no dump. Counted at the sockets. */
import { closeSync, openSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import pino from 'pino';
import { createMemberDriver } from '../../agent/kernel/ipset/member.ts';
import { createSetDriver } from '../../agent/kernel/ipset/set.ts';
import { describeBackend } from '../../agent/kernel/iptables/backend.ts';
import { createChainDriver } from '../../agent/kernel/iptables/chain.ts';
import { createNetlinkDrivers } from '../../agent/kernel/netlink/drivers.ts';
import { openEthtool } from '../../agent/kernel/netlink/ethtool.ts';
import { Links } from '../../agent/kernel/netlink/links.ts';
import { NETLINK_PROTOCOL, type NetlinkClient, type NetlinkRequest } from '../../agent/kernel/netlink/message.ts';
import { NetlinkMonitor } from '../../agent/kernel/netlink/monitor.ts';
import { NetlinkSocket } from '../../agent/kernel/netlink/socket.ts';
import { tunsOf } from '../../agent/kernel/netlink/tun.ts';
import { openPodNetns } from '../../agent/kernel/netns/netns.ts';
import { openSysctls } from '../../agent/kernel/sysctl/files.ts';
import { createSysctlDriver } from '../../agent/kernel/sysctl/sysctl.ts';
import type { Node } from '../../agent/model/cluster.ts';
import { Planner } from '../../agent/plan/planner.ts';
import { vxlan } from '../../agent/plan/vxlan.ts';
import { KernelState } from '../../agent/reconcile/kernel-state.ts';
import { Reconciler } from '../../agent/reconcile/reconciler.ts';
import type { AnyDriver } from '../../agent/reconcile/types.ts';
import { cluster, host, node, settings } from '../support/cluster-values.ts';
import { makeRunDir } from '../support/cni-executable.ts';
import { netfilterOf } from '../support/netfilter-host.ts';
import { CollectingReaper } from '../support/netlink-host.ts';
import { createNetns, waitFor } from '../support/netns.ts';

const PEERS = 2_000;

/** What went to the kernel: every request by what it does, and every dump by what it asks for. */
class Traffic {
  #requests: string[] = [];
  #dumps: string[] = [];

  count(client: NetlinkClient): NetlinkClient {
    return {
      request: (request) => {
        this.#requests.push(wordsOf(request));
        return client.request(request);
      },
      batch: (requests) => {
        this.#requests.push(...requests.map(wordsOf));
        return client.batch(requests);
      },
      dump: (request) => {
        this.#dumps.push(request.object);
        return client.dump(request);
      },
      close: () => client.close(),
    };
  }

  /** Since it was asked last. */
  take(): { readonly requests: readonly string[]; readonly dumps: readonly string[] } {
    const taken = { requests: this.#requests, dumps: this.#dumps };
    this.#requests = [];
    this.#dumps = [];
    return taken;
  }
}

const wordsOf = ({ operation, object }: NetlinkRequest): string => `${operation} ${object}`;

/** A reconciler over all drivers of a node, in a namespace that is its host. */
async function openNode(t: ExecutionContext) {
  const netns = await createNetns(t, 'host');
  await netns.feed('link add eth0 type veth peer name wire\nlink set eth0 up\nlink set wire up', 'ip', '-batch', '-');
  const netnsFd = openSync(netns.path, 'r');
  t.teardown(() => closeSync(netnsFd));
  const traffic = new Traffic();
  const socket = new NetlinkSocket(NETLINK_PROTOCOL.ROUTE, { netnsFd });
  const client = traffic.count(socket);
  const links = new Links(client);
  const monitor = new NetlinkMonitor({ links, netnsFd });
  const [sysctls, ethtool] = [openSysctls({ netnsFd }), openEthtool(netnsFd)];
  t.teardown(() => {
    monitor.close();
    ethtool.close();
    socket.close();
  });
  const { run, client: nfnetlink } = netfilterOf(t, netns);
  const sets = traffic.count(nfnetlink);
  const reaper = new CollectingReaper(client);
  const drivers = [
    ...Object.values(
      createNetlinkDrivers({ client, links, monitor, sysctls, ethtool, tuns: tunsOf(netnsFd), reaper, openPodNetns }),
    ),
    createSysctlDriver({ files: sysctls, stateFile: `${makeRunDir(t)}/sysctl.json`, monitor }),
    createSetDriver({ run, client: sets }),
    createMemberDriver({ client: sets }),
    createChainDriver({ run, backend: await describeBackend(run, 'nft', 'test') }),
  ] as AnyDriver[];
  const state = new KernelState(Object.fromEntries(drivers.map(({ kind, merge }) => [kind, merge])) as never);
  const reconciler = new Reconciler({ state, drivers, log: pino({ enabled: false }) });
  const end = new AbortController();
  t.teardown(async () => {
    end.abort();
    await reconciler.stopped;
  });
  reconciler.start(end.signal);
  await reconciler.listed;
  reconciler.enableSweep();
  let knocks = 0;
  /** What the kernel told of earlier changes has been heard once a later change is heard. */
  const heardAll = async () => {
    const alias = `knock ${++knocks}`;
    await netns.run('ip', 'link', 'set', 'dev', 'wire', 'alias', alias);
    await waitFor(() => links.byName('wire')?.alias === alias, { describe: 'the monitor to come to the end' });
  };
  return { netns, traffic, state, reconciler, heardAll };
}

const self = node('a', { ips: '172.30.0.11 fd30::11', cidrs: '10.84.0.0/24 fd84::/64' });
const peer = (index: number, ips = `172.31.${index >> 8}.${index & 255} fd31::${(index + 1).toString(16)}`): Node =>
  node(`n${index}`, {
    ips,
    cidrs: `10.${128 + (index >> 8)}.${index & 255}.0/24 fd85:0:0:${index.toString(16)}::/64`,
    creationMs: index,
  });

function expectRequests(t: ExecutionContext, traffic: Traffic, count: number, what: string): void {
  const { requests, dumps } = traffic.take();
  t.deepEqual(dumps, [], what);
  t.is(requests.length, count, `${what}: ${requests.join(', ')}`);
}

test(`one change among ${PEERS} Nodes is a handful of requests, and no dump`, async (t) => {
  t.timeout(120_000);
  const { netns, traffic, state, reconciler, heardAll } = await openNode(t);
  const planner = new Planner();
  let fragments: ReadonlySet<string> = new Set();
  const plan = async (nodes: readonly Node[]) => {
    const input = { nodeName: 'a', host: host(), settings, backend: vxlan, cluster: cluster(self, ...nodes) };
    const planned = planner.plan(input);
    for (const [id, fragment] of planned.fragments) state.replace(id, fragment);
    for (const id of fragments.difference(new Set(planned.fragments.keys()))) state.replace(id as never, undefined);
    fragments = new Set(planned.fragments.keys());
    await waitFor(
      () => Object.values(reconciler.status().kinds).every(({ dirty, stale }) => dirty === 0 && stale === null),
      { describe: `everything in the kernel: ${JSON.stringify(reconciler.status().failing)}`, timeoutMs: 60_000 },
    );
    await heardAll();
  };
  const peers = Array.from({ length: PEERS }, (_, index) => peer(index));
  await plan(peers);
  const entries = async () =>
    (await netns.run('bridge', 'fdb', 'show', 'dev', 'tulle.84')).stdout.split('\n').filter(Boolean);
  t.is((await entries()).length, PEERS);
  t.true(
    traffic.take().requests.length >= PEERS * 7,
    'a forwarding entry, two neighbours, two routes and members each',
  );

  const moved = peers.with(7, peer(7, '172.31.99.99 fd31::9999'));
  await plan(moved);
  t.is((await entries()).filter((line) => line.includes('172.31.99.99')).length, 1);
  expectRequests(t, traffic, 3, 'another address: the forwarding entry, a node in, a node out');

  await plan(moved.toSpliced(9, 1));
  t.is((await entries()).length, PEERS - 1);
  expectRequests(t, traffic, 8, 'a Node that goes');
  await plan(moved);
  t.is((await entries()).length, PEERS);
  expectRequests(t, traffic, 8, 'a Node that comes');

  await netns.run('bridge', 'fdb', 'del', (await entries())[5]?.split(' ')[0] as string, 'dev', 'tulle.84');
  await waitFor(async () => (await entries()).length === PEERS, { describe: 'the entry to come back' });
  expectRequests(t, traffic, 1, 'a repair');
});
