import test, { type ExecutionContext } from 'ava';
import { type AddRequest, CNI_CODES, CniError } from '../../cni/protocol.ts';
import {
  addRequest,
  checkRequest,
  createWorld,
  failsWith,
  signal,
  type World,
} from '../../test/support/attachments-world.ts';
import { host, ip, settings as standard } from '../../test/support/cluster-values.ts';
import { selfNode } from '../../test/support/service-values.ts';
import { until } from '../../test/support/until.ts';
import { KernelError } from '../kernel/errors.ts';
import { families } from '../model/ip.ts';
import { keyOf, type PodLink } from '../model/items.ts';
import { podLinkName } from '../model/kernel-names.ts';
import { collide, isMeant, mappingText, type PortMapping } from '../model/port-mapping.ts';
import { planGuard } from '../plan/services/guard.ts';
import { planHostPorts } from '../plan/services/host-ports.ts';
import { baseFragment } from '../plan/services/iptables/base.ts';
import { HostPorts } from './host-ports.ts';

const settings = { ...standard, 'services.mode': 'iptables' } as const;
const guard = planGuard([selfNode], new Map(), [], settings);
const web: PortMapping = { hostPort: 8080, containerPort: 80, protocol: 'TCP' };
const NODE = '192.0.2.1';
const at = (hostIp: string): PortMapping => ({ ...web, hostIp: ip(hostIp) });

/** The node has these addresses from now on. */
function follow(world: World, ...ips: readonly string[]): void {
  for (const { family } of families) {
    const base = baseFragment(family, host());
    world.state.replace(base.id, base);
  }
  world.hostPorts.follow((pods) => planHostPorts(pods, { ips: ips.map(ip), guard, settings }));
}

function requestFor(world: World, containerId: string, ...portMappings: readonly PortMapping[]): AddRequest {
  const request = addRequest(world, containerId);
  return { ...request, config: { ...request.config, runtimeConfig: { portMappings } as never } };
}
const add = (world: World, containerId: string, ...portMappings: readonly PortMapping[]) =>
  world.attachments.add(requestFor(world, containerId, ...portMappings), signal());

async function createNode(t: ExecutionContext): Promise<World> {
  const world = await createWorld(t);
  follow(world, NODE);
  return world;
}

/** `192.0.2.1:8080/TCP` of the sets, as the fake kernel has them. */
const served = (world: World): readonly string[] =>
  [...world.drivers.member.store.values()]
    .flatMap(({ set, entry, port }) =>
      set.startsWith('tulle-svc-places-') ? [`${entry.replace('/32', '')}:${port?.number}/${port?.protocol}`] : [],
    )
    .sort();

/** Where the rules lead. */
const targets = (world: World): readonly string[] =>
  [...world.drivers['chain-part'].store.values()]
    .flatMap(
      ({ rules }) =>
        rules?.flatMap(({ args }) => (args.includes('--to-destination') ? [String(args.at(-1))] : [])) ?? [],
    )
    .sort();

test('ADD answers once the ports are in the kernel, the record has them, and DEL takes them away', async (t) => {
  const world = await createNode(t);
  const { ips } = await add(world, 'web', web, { ...web, hostPort: 53, protocol: 'UDP' });
  t.deepEqual(served(world), ['192.0.2.1:53/UDP', '192.0.2.1:8080/TCP']);
  t.deepEqual(new Set(targets(world)), new Set([`${ips[0]?.address}:80`]));
  t.is(world.records.all()[0]?.portMappings?.length, 2);
  await world.attachments.del({ containerId: 'web' });
  t.deepEqual([served(world), targets(world)], [[], []]);
});

test('ADD waits until ports can be planned, but only of pods that ask for some', async (t) => {
  const world = await createWorld(t);
  await add(world, 'plain');
  const waiting = add(world, 'web', web);
  const early = await Promise.race([waiting, new Promise((resolve) => setImmediate(resolve, 'waits'))]);
  t.is(early, 'waits');
  follow(world, NODE);
  await waiting;
  t.deepEqual(served(world), ['192.0.2.1:8080/TCP']);
  const given = AbortSignal.abort(new Error('too long'));
  await t.throwsAsync(new HostPorts(world.state).ready(given), { message: 'too long' });
});

test('a port that cannot be written fails the ADD, which leaves nothing', async (t) => {
  const world = await createNode(t);
  world.drivers['chain-part'].failNext({ action: 'create' }, 100);
  await t.throwsAsync(add(world, 'web', web), { instanceOf: CniError, message: /cannot connect default\/web/ });
  t.deepEqual([world.records.all(), served(world)], [[], []]);
});

test('addresses of the node that come and go are followed', async (t) => {
  const world = await createNode(t);
  await add(world, 'web', web);
  for (const ips of [[NODE, '192.0.2.2'], ['192.0.2.2'], [NODE]]) {
    follow(world, ...ips);
    const isFollowed = () => served(world).join() === ips.map((each) => `${each}:8080/TCP`).join();
    await until(isFollowed, ips.join());
  }
  t.is(targets(world).length, 2, 'one chain for each scope');
});

test('CHECK knows each object of a host port', async (t) => {
  const world = await createNode(t);
  const request = requestFor(world, 'web', web);
  const check = checkRequest(request, await world.attachments.add(request, signal()));
  await t.notThrowsAsync(world.attachments.check(check, signal()));
  for (const kind of ['member', 'chain-part', 'set'] as const) {
    const store = world.drivers[kind].store as Map<string, unknown>;
    const keys = [...store.keys()].filter((key) => /svc|SVC|services/.test(key));
    t.true(keys.length > 0, kind);
    for (const key of keys) {
      const value = store.get(key);
      store.delete(key);
      const error = await t.throwsAsync(world.attachments.check(check, signal()), { instanceOf: CniError }, key);
      t.true(error?.details?.includes(`${key} is missing`), key);
      store.set(key, value);
    }
  }
});

test('a port that another pod has is refused before anything is made, for each place that both mean', async (t) => {
  const world = await createNode(t);
  await add(world, 'web', at(NODE));
  for (const mapping of [web, at(NODE), at('0.0.0.0')])
    await failsWith(
      t,
      add(world, 'late', { ...web, hostPort: 1 }, mapping),
      CNI_CODES.tryAgainLater,
      /^cannot give default\/late the host port .*8080\/TCP: .* default\/web has; remove one/,
    );
  t.is(world.records.all().length, 1);
  for (const [i, mapping] of [at('192.0.2.9'), at('::'), { ...web, protocol: 'UDP' } as const].entries())
    await t.notThrowsAsync(add(world, `other-${i}`, mapping));
  await world.attachments.del({ containerId: 'web' });
  await t.notThrowsAsync(add(world, 'late', at(NODE)));
});

test('two ADDs at a time: one gets the port', async (t) => {
  const world = await createNode(t);
  const outcomes = await Promise.allSettled([add(world, 'one', web), add(world, 'two', web)]);
  t.deepEqual(outcomes.map(({ status }) => status).sort(), ['fulfilled', 'rejected']);
});

test('a pod on its way out, or dead without a DEL, keeps no port from others', async (t) => {
  const world = await createNode(t);
  await add(world, 'leaving', web);
  const gate = world.drivers.route.hold();
  const removal = world.attachments.del({ containerId: 'leaving' });
  await gate.reached;
  const next = add(world, 'next', web);
  gate.release();
  await Promise.all([removal, next]);
  const { ips } = await next;
  t.deepEqual(new Set(targets(world)), new Set([`${ips[0]?.address}:80`]));
  await t.throwsAsync(add(world, 'last', web), { message: /default\/next has/ });
  const key = keyOf('pod-link', { name: podLinkName('next', 'eth0') } as PodLink);
  const gone = new KernelError({ code: 'ESTALE', operation: 'use', object: 'netns' });
  world.namespaces.delete('/run/netns/next');
  world.drivers['pod-link'].failNext({ key, action: 'create' }, 1000, gone);
  world.drivers['pod-link'].tamper(key, undefined, { notice: true });
  await t.notThrowsAsync(add(world, 'last', web));
  t.deepEqual(
    world.records.all().map(({ containerId }) => containerId),
    ['next', 'last'],
  );
});

test('a sandbox that is made again under the name of its pod takes over from the old one', async (t) => {
  const world = await createNode(t);
  const named = (containerId: string): AddRequest => {
    const request = requestFor(world, containerId, web);
    return { ...request, args: { ...request.args, podName: 'web', podUid: 'uid' } };
  };
  await world.attachments.add(named('first'), signal());
  const { ips } = await world.attachments.add(named('second'), signal());
  const ofSecond = new Set([`${ips[0]?.address}:80`]);
  t.deepEqual(new Set(targets(world)), ofSecond);
  await world.attachments.del({ containerId: 'first' });
  t.deepEqual(new Set(targets(world)), ofSecond);
});

test('of several interfaces of a container the first has the ports', async (t) => {
  const world = await createNode(t);
  const request = requestFor(world, 'web', web);
  await world.attachments.add(request, signal());
  await world.attachments.add({ ...request, ifName: 'net1' }, signal());
  t.deepEqual(
    world.records.all().map(({ ifName, portMappings }) => [ifName, portMappings?.length]),
    [
      ['eth0', 1],
      ['net1', undefined],
    ],
  );
});

test('the next process knows the ports from the records, serves them without a write, and can take them away', async (t) => {
  const before = await createNode(t);
  await add(before, 'web', web);
  const after = await before.restart();
  after.drivers['chain-part'].written.length = 0;
  follow(after, NODE);
  await failsWith(t, add(after, 'late', web), CNI_CODES.tryAgainLater, /default\/web has/);
  await add(after, 'plain');
  t.deepEqual(served(after), ['192.0.2.1:8080/TCP']);
  t.false(after.drivers['chain-part'].written.some(({ key }) => key.includes('SVC')));
  await after.attachments.del({ containerId: 'web' });
  t.deepEqual(served(after), []);
});

test('which places a mapping means, and which two mappings both mean', (t) => {
  t.true(isMeant(web, ip('192.0.2.7')) && isMeant(at('0.0.0.0'), ip('192.0.2.7')) && isMeant(at('::'), ip('fd00::7')));
  t.false(isMeant(at('::'), ip('192.0.2.7')) || isMeant(at('192.0.2.7'), ip('192.0.2.8')));
  t.true(collide(web, at('fd00::7')) && collide(at('0.0.0.0'), at('192.0.2.7')) && collide(at('::'), at('::')));
  t.false(collide(at('0.0.0.0'), at('fd00::7')) || collide(at('0.0.0.0'), at('::')) || collide(at('::1'), at('::2')));
  t.false(collide(web, { ...web, hostPort: 8081 }) || collide(web, { ...web, protocol: 'UDP' }));
  t.deepEqual([web, at('192.0.2.7'), at('fd00::7')].map(mappingText), [
    '8080/TCP',
    '192.0.2.7:8080/TCP',
    '[fd00::7]:8080/TCP',
  ]);
});
