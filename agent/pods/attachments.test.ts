import test from 'ava';
import { type AddRequest, CNI_CODES, CniError } from '../../cni/protocol.ts';
import {
  addRequest,
  addresses,
  checkRequest,
  createWorld,
  failsWith,
  held,
  KINDS,
  MTU,
  signal,
} from '../../test/support/attachments-world.ts';
import { cidr } from '../../test/support/cluster-values.ts';
import { KernelError } from '../kernel/errors.ts';
import type { Cidr } from '../model/ip.ts';
import { type Key, keyOf, type PodLink } from '../model/items.ts';
import { podLinkName } from '../model/kernel-names.ts';

test('ADD puts link, neighbours, routes and gate members into the kernel and answers with the addresses', async (t) => {
  const world = await createWorld(t);
  const result = await world.attachments.add(addRequest(world, 'web'), signal());
  const link = podLinkName('web', 'eth0');
  t.is(result.hostLink, link);
  t.deepEqual(
    result.ips.map(({ address, prefixLength, gateway }) => `${address}/${prefixLength} via ${gateway}`),
    ['10.84.1.2/32 via 169.254.1.1', 'fd84:0:0:1::2/128 via fe80::1'],
  );
  t.deepEqual(
    result.routes.map(({ dst }) => dst as Cidr),
    [cidr('0.0.0.0/0'), cidr('::/0')],
  );
  t.deepEqual(held(world), [
    'member tulle-ready-4 10.84.1.2/32',
    'member tulle-ready-6 fd84:0:0:1::2/128',
    `neighbour ${link} 10.84.1.2`,
    `neighbour ${link} fd84:0:0:1::2`,
    `pod-link ${link}`,
    'route 10.84.1.2/32 metric 0',
    'route fd84:0:0:1::2/128 metric 1024',
  ]);
});

test('DEL leaves nothing, succeeds again, and for a container that never was', async (t) => {
  const world = await createWorld(t);
  await addresses(world, 'web');
  await world.attachments.del({ containerId: 'web', ifName: 'eth0' });
  t.deepEqual(held(world), []);
  t.deepEqual(world.records.all(), []);
  await t.notThrowsAsync(world.attachments.del({ containerId: 'web', ifName: 'eth0' }));
  await t.notThrowsAsync(world.attachments.del({ containerId: 'never' }));
});

test('addresses go round; a released one rests while others are free', async (t) => {
  const world = await createWorld(t);
  world.ready = { ready: true, podCidrs: [cidr('10.84.1.0/29')], mtu: MTU };
  t.deepEqual(await addresses(world, 'a'), ['10.84.1.2']);
  await world.attachments.del({ containerId: 'a' });
  t.deepEqual(
    [
      await addresses(world, 'b'),
      await addresses(world, 'c'),
      await addresses(world, 'd'),
      await addresses(world, 'e'),
    ].flat(),
    ['10.84.1.3', '10.84.1.4', '10.84.1.5', '10.84.1.6'],
  );
  t.deepEqual(await addresses(world, 'f'), ['10.84.1.2']);
  await failsWith(
    t,
    addresses(world, 'g'),
    CNI_CODES.tryAgainLater,
    /no free address in podCIDR 10.84.1.0\/29: all 5 are in use/,
  );
  t.is(world.records.all().length, 5);
});

test('concurrent ADDs never share an address, and one container waits for itself', async (t) => {
  const world = await createWorld(t);
  world.ready = { ready: true, podCidrs: [cidr('10.84.0.0/24')], mtu: MTU };
  const all = await Promise.all(Array.from({ length: 50 }, (_, i) => addresses(world, `pod-${i}`)));
  t.is(new Set(all.flat()).size, 50);
  const twice = await Promise.allSettled([addresses(world, 'same'), addresses(world, 'same')]);
  t.deepEqual(
    twice.map(({ status }) => status),
    ['fulfilled', 'rejected'],
  );
  const addThenDel = [addresses(world, 'brief'), world.attachments.del({ containerId: 'brief' })];
  await Promise.all(addThenDel);
  t.is(world.records.ofContainer('brief').length, 0);
});

test('an ADD that fails leaves nothing and gives its addresses back', async (t) => {
  const world = await createWorld(t);
  world.drivers.route.failNext(
    { action: 'create' },
    1,
    new KernelError({ code: 'ENODEV', operation: 'create', object: 'route' }),
  );
  await failsWith(t, addresses(world, 'web'), CNI_CODES.ioFailure, /cannot connect default\/web: .*ENODEV/);
  t.deepEqual(held(world), []);
  t.deepEqual(world.records.all(), []);
  t.is((await addresses(world, 'web')).length, 2);
});

test("an interface that exists in the pod already is the runtime's mistake", async (t) => {
  const world = await createWorld(t);
  world.drivers['pod-link'].failNext(
    { action: 'create' },
    1,
    new KernelError({ code: 'EEXIST', operation: 'create', object: 'eth0' }),
  );
  await failsWith(t, addresses(world, 'web'), CNI_CODES.invalidEnvironment, /EEXIST/);
});

test('bad namespaces are told apart, before anything is made', async (t) => {
  const world = await createWorld(t);
  const request = addRequest(world, 'web');
  const add = (netns: AddRequest['netns']) => world.attachments.add({ ...request, netns }, signal());
  await failsWith(
    t,
    add({ path: '/run/netns/absent' }),
    CNI_CODES.invalidEnvironment,
    /CNI_NETNS \/run\/netns\/absent: .*ENOENT/,
  );
  await failsWith(
    t,
    add({ ...request.netns, inode: '1' }),
    CNI_CODES.invalidEnvironment,
    /another file there than the runtime; mount its directory .*HostToContainer/,
  );
  t.is(world.drivers['pod-link'].applies, 0);
  t.deepEqual(world.records.all(), []);
});

test('while the node is not ready ADD says why and DEL works', async (t) => {
  const world = await createWorld(t);
  await addresses(world, 'web');
  world.ready = { ready: false, reason: 'the cluster API has not answered yet' };
  await failsWith(
    t,
    addresses(world, 'other'),
    CNI_CODES.tryAgainLater,
    /not ready: the cluster API has not answered yet/,
  );
  await world.attachments.del({ containerId: 'web' });
  t.deepEqual(held(world), []);
});

test('a second process takes over what lives without a write, and releases what died meanwhile', async (t) => {
  const before = await createWorld(t);
  await addresses(before, 'lives');
  await addresses(before, 'died');
  before.namespaces.delete('/run/netns/died');
  before.drivers['pod-link'].store.delete(`pod-link ${podLinkName('died', 'eth0')}`);
  const after = await before.restart();
  t.deepEqual(
    after.records.all().map(({ containerId }) => containerId),
    ['lives'],
  );
  t.deepEqual(
    KINDS.flatMap((kind) => after.drivers[kind].written.map(({ key }) => key as Key)),
    [],
  );
  // The round goes on after the youngest, and what was released rests over the restart.
  t.deepEqual((await addresses(after, 'next'))[0], '10.84.1.4');
  await after.attachments.del({ containerId: 'lives' });
  t.false(held(after).includes(`pod-link ${podLinkName('lives', 'eth0')}`));
});

test('a removal that failed half-way is finished by the next one before the address is free', async (t) => {
  const world = await createWorld(t);
  await addresses(world, 'web');
  world.drivers.route.failNext({ action: 'remove' }, 1);
  await t.throwsAsync(world.attachments.del({ containerId: 'web' }), { instanceOf: CniError });
  t.is(world.records.all().length, 1);
  await world.attachments.del({ containerId: 'web' });
  t.deepEqual(held(world), []);
  t.deepEqual(world.records.all(), []);
});

test('another MTU does not bring an attachment back that is being removed', async (t) => {
  const world = await createWorld(t);
  await addresses(world, 'web');
  const gate = world.drivers.route.hold();
  const removal = world.attachments.del({ containerId: 'web' });
  await gate.reached;
  world.attachments.follow({ mtuBytes: 1400, routeMtuBytes: 1350 });
  gate.release();
  await removal;
  t.deepEqual(held(world), []);
});

test('undoing an ADD spares what came after it', async (t) => {
  const world = await createWorld(t);
  const first = await world.attachments.add(addRequest(world, 'web'), signal());
  await world.attachments.undo(first);
  t.deepEqual(held(world), []);
  await world.attachments.add(addRequest(world, 'web'), signal());
  await world.attachments.undo(first);
  t.is(world.records.all().length, 1);
});

test('one attachment that cannot be released does not keep the others', async (t) => {
  const world = await createWorld(t);
  for (const id of ['stuck', 'gone']) await addresses(world, id);
  for (const id of ['stuck', 'gone']) {
    world.namespaces.delete(`/run/netns/${id}`);
    world.drivers['pod-link'].failNext({ action: 'create' }, 1000);
    world.drivers['pod-link'].tamper(`pod-link ${podLinkName(id, 'eth0')}`, undefined, { notice: true });
  }
  const stuck = world.records.ofContainer('stuck')[0]?.ips[0];
  world.drivers.route.failNext({ key: `route ${stuck}/32 metric 0`, action: 'remove' }, 1000);
  await world.attachments.collect();
  t.deepEqual(
    world.records.all().map(({ containerId }) => containerId),
    ['stuck'],
  );
});

test('an attachment whose namespace vanished without a DEL is released', async (t) => {
  const world = await createWorld(t);
  await addresses(world, 'web');
  world.namespaces.delete('/run/netns/web');
  await world.attachments.collect();
  t.is(world.records.all().length, 1, 'the link is still there');
  world.drivers['pod-link'].failNext(
    { action: 'create' },
    1000,
    new KernelError({ code: 'ESTALE', operation: 'use', object: 'netns' }),
  );
  world.drivers['pod-link'].tamper(keyOf('pod-link', { name: podLinkName('web', 'eth0') } as PodLink), undefined, {
    notice: true,
  });
  await world.attachments.collect();
  t.deepEqual(world.records.all(), []);
  t.deepEqual(held(world), []);
});

test('CHECK compares the result with the record and the kernel with the plan', async (t) => {
  const world = await createWorld(t);
  const add = addRequest(world, 'web');
  const result = await world.attachments.add(add, signal());
  const check = checkRequest(add, result);
  await t.notThrowsAsync(world.attachments.check(check, signal()));
  for (const kind of ['neighbour', 'route', 'member', 'pod-link'] as const) {
    const store = world.drivers[kind].store as Map<string, unknown>;
    const [key, value] = [...store][0] as [string, unknown];
    store.delete(key);
    const error = await t.throwsAsync(world.attachments.check(check, signal()), { instanceOf: CniError });
    t.is(error?.code, CNI_CODES.checkFailed, kind);
    t.true(error?.details?.includes(`${key} is missing`), kind);
    store.set(key, value);
  }
  await failsWith(
    t,
    world.attachments.check({ ...check, prevResult: { ...check.prevResult, ips: [] } }, signal()).then(),
    CNI_CODES.checkFailed,
    /not as it was set up/,
  );
  await failsWith(
    t,
    world.attachments.check({ ...check, containerId: 'never' }, signal()),
    CNI_CODES.unknownContainer,
    /never/,
  );
});

test('GC removes the attachments of its network and runtime that are not listed', async (t) => {
  const world = await createWorld(t);
  for (const id of ['keep', 'drop']) await addresses(world, id);
  await world.attachments.add({ ...addRequest(world, 'foreign'), runtime: 'podman' }, signal());
  await world.attachments.gc({ verb: 'GC', config: { name: 'other' } as never, validAttachments: [] });
  t.is(world.records.all().length, 3);
  await world.attachments.gc({
    verb: 'GC',
    config: { name: 'tulle' } as never,
    validAttachments: [{ containerId: 'keep', ifName: 'eth0' }],
  });
  t.deepEqual(
    world.records.all().map(({ containerId }) => containerId),
    ['keep', 'foreign'],
  );
  await world.attachments.gc({
    verb: 'GC',
    runtime: 'podman',
    config: { name: 'tulle' } as never,
    validAttachments: [],
  });
  t.is(world.records.all().length, 1);
});

test('STATUS says whether an ADD could succeed, and whether running pods suffer', async (t) => {
  const world = await createWorld(t);
  const status = () => {
    try {
      world.attachments.status();
      return 'ok';
    } catch (error) {
      return `${(error as CniError).code} ${(error as CniError).message}`;
    }
  };
  t.is(status(), 'ok');
  for (const id of ['a', 'b', 'c', 'd', 'e']) await addresses(world, id);
  await t.throwsAsync(addresses(world, 'f'), {
    message: /no free address in podCIDR 10\.84\.1\.0\/29: all 5 are in use/,
  });
  t.is(status(), 'ok', 'a full node serves what it has');
  world.ready = { ready: false, reason: 'no podCIDR' };
  t.is(status(), '50 the network of this node is not ready: no podCIDR');
  world.ready = { ready: false, reason: 'the Node is away', limited: true };
  t.is(status(), '51 the network of this node is not ready: the Node is away');
});

for (const mtu of [
  { mtuBytes: 1400, routeMtuBytes: 1350 },
  { mtuBytes: 1500, routeMtuBytes: 1430 },
]) {
  test(`the MTU ${mtu.mtuBytes}/${mtu.routeMtuBytes} is followed once, also over a restart`, async (t) => {
    const world = await createWorld(t);
    await addresses(world, 'web');
    world.attachments.follow(mtu);
    const link = () => world.drivers['pod-link'].store.get(`pod-link ${podLinkName('web', 'eth0')}`);
    while (link()?.routeMtuBytes !== mtu.routeMtuBytes) await new Promise((resolve) => setImmediate(resolve));
    t.like(link(), mtu);
    const after = await world.restart();
    t.like(after.records.all()[0], mtu);
    t.deepEqual(after.drivers['pod-link'].written, []);
  });
}
