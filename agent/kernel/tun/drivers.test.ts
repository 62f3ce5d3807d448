import test from 'ava';
import { cidr, ip } from '../../../test/support/cluster-values.ts';
import { FakeCarrier } from '../../../test/support/fake-carrier.ts';
import { create, holds, remove, update } from '../../../test/support/netlink-host.ts';
import type { TunPathItem, TunPeerItem } from '../../model/items.ts';
import type { Notice } from '../../reconcile/types.ts';
import { KernelError } from '../errors.ts';
import { createTunDrivers } from './drivers.ts';

const path: TunPathItem = {
  link: 'tulle-tun',
  local: ip('192.0.2.1'),
  port: 8285,
  carriage: 'segments',
  encryption: 'none',
};
const peer = (node: string, end = '192.0.2.2'): TunPeerItem => ({
  node,
  end: ip(end),
  podCidrs: [cidr('10.84.1.0/24')],
});

const open = () => {
  const carrier = new FakeCarrier();
  return { carrier, ...createTunDrivers(carrier) };
};

test('a path is opened, opened anew when it should be another, and closed', async (t) => {
  const { 'tun-path': driver, carrier } = open();
  t.true(await holds(driver));
  await create(driver, path);
  t.true(await holds(driver, path));
  const whole = { ...path, carriage: 'whole' } as const;
  t.false(await holds(driver, whole));
  await update(driver, whole, path);
  t.true(await holds(driver, whole));
  await remove(driver, whole);
  t.true(await holds(driver));
  await t.notThrowsAsync(remove(driver, whole), 'what is closed is removed');
  t.is(carrier.current(), undefined);
});

test('peers are entered, changed and removed, whether a path is open or not', async (t) => {
  const { 'tun-peer': driver, carrier } = open();
  await create(driver, peer('b'));
  await create(driver, peer('c', '2001:db8::3'));
  t.true(await holds(driver, peer('b'), peer('c', '2001:db8::3')));
  await carrier.open(path);
  await update(driver, peer('b', '192.0.2.9'), peer('b'));
  t.true(await holds(driver, peer('b', '192.0.2.9'), peer('c', '2001:db8::3')));
  await remove(driver, peer('c'));
  t.true(await holds(driver, peer('b', '192.0.2.9')));
});

test('what cannot be done is told of its own object, and the rest is done', async (t) => {
  const { 'tun-path': pathDriver, 'tun-peer': peerDriver, carrier } = open();
  const taken = new KernelError({ code: 'EADDRINUSE', operation: 'bind', object: 'UDP port 8285' });
  carrier.failNext(taken);
  t.is(await t.throwsAsync(create(pathDriver, path)), taken);
  t.true(await holds(pathDriver));
  carrier.failNext(taken);
  await t.throwsAsync(create(peerDriver, peer('b')));
  await create(peerDriver, peer('c'));
  t.true(await holds(peerDriver, peer('c')));
});

test('a path that breaks is reported as gone, until nobody listens', async (t) => {
  const { 'tun-path': driver, carrier } = open();
  const heard: unknown[][] = [];
  const stop = new AbortController();
  const notice = { found: (...args: unknown[]) => heard.push(args), stale: t.fail, freed: t.fail };
  driver.watch?.(notice as unknown as Notice<'tun-path'>, stop.signal);
  await create(driver, path);
  carrier.break();
  t.deepEqual(heard, [['tun-path tulle-tun', undefined]]);
  t.true(await holds(driver));
  await create(driver, path);
  stop.abort();
  carrier.break();
  t.is(heard.length, 1);
});
