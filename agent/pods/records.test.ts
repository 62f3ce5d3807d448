import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { pino } from 'pino';
import { ip } from '../../test/support/cluster-values.ts';
import type { IpAddress } from '../model/ip.ts';
import { type PodRecord, PodRecords, parseRecord, recordKey } from './records.ts';

const log = pino({ level: 'silent' });

function runDir(t: ExecutionContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'tulle-records-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  return directory;
}

const record = (containerId: string, address: string): PodRecord => ({
  containerId,
  ifName: 'eth0',
  network: 'tulle',
  netns: { path: '/run/netns/x', device: '4', inode: '4026532000' },
  podNamespace: 'default',
  podName: 'web',
  ips: [ip(address)],
  mtuBytes: 1500,
  routeMtuBytes: 1450,
  createdMs: 1,
});

test('a fresh process finds what an earlier one saved and released, and nothing else', (t) => {
  const directory = runDir(t);
  const before = new PodRecords(directory, log);
  before.save(record('one', '10.84.0.2'));
  before.save(record('two', '10.84.0.3'));
  before.release(record('two', '10.84.0.3'), 5000);
  const after = new PodRecords(directory, log);
  t.deepEqual(after.all(), [record('one', '10.84.0.2')]);
  t.deepEqual(after.get(recordKey({ containerId: 'one', ifName: 'eth0' })), record('one', '10.84.0.2'));
  t.deepEqual([...after.inUse.keys()], [ip('10.84.0.2')]);
  t.deepEqual([...after.released], [[ip('10.84.0.3'), 5000]]);
  after.forgetReleased(5001);
  t.deepEqual([...new PodRecords(directory, log).released], []);
});

test('addresses rest from their last release, in the order of their releases, and also over a restart', (t) => {
  const directory = runDir(t);
  const records = new PodRecords(directory, log);
  const turns = [
    [record('one', '10.84.0.2'), 1000],
    [record('two', '10.84.0.3'), 2000],
    // The same attachment and the same address again.
    [record('one', '10.84.0.4'), 3000],
    [record('three', '10.84.0.2'), 4000],
  ] as const;
  for (const [each, nowMs] of turns) {
    records.save(each);
    t.is(records.inUse.get(each.ips[0] as IpAddress), each);
    records.release(each, nowMs);
  }
  t.is(records.inUse.size, 0);
  const resting = [
    ['10.84.0.2', 4000],
    ['10.84.0.3', 2000],
    ['10.84.0.4', 3000],
  ];
  const restarted = new PodRecords(directory, log);
  for (const each of [records, restarted]) t.deepEqual([...each.released].sort(), resting);
  restarted.forgetReleased(3500);
  t.deepEqual([...restarted.released], [['10.84.0.2', 4000]]);
  t.is(readdirSync(join(directory, 'released')).length, 1);
});

test('a record of an address that another one has, too, does not free it', (t) => {
  const records = new PodRecords(runDir(t), log);
  records.save(record('one', '10.84.0.2'));
  records.save(record('two', '10.84.0.2'));
  records.release(record('one', '10.84.0.2'), 1000);
  t.deepEqual([...records.inUse.keys()], [ip('10.84.0.2')]);
});

test('what is no released record is forgotten with those that have rested', (t) => {
  const directory = runDir(t);
  mkdirSync(join(directory, 'released'));
  for (const name of ['10.84.0.9', '5000-x.json', 'x']) writeFileSync(join(directory, 'released', name), '');
  const records = new PodRecords(directory, log);
  t.is(records.released.size, 0);
  records.forgetReleased(6000);
  t.deepEqual(readdirSync(join(directory, 'released')), []);
});

test('directories are for root alone and no partial file is taken for a record', (t) => {
  const directory = runDir(t);
  new PodRecords(directory, log).save(record('one', '10.84.0.2'));
  t.is(statSync(join(directory, 'pods')).mode & 0o777, 0o700);
  writeFileSync(join(directory, 'pods', 'abc.json.new'), '{"containerId":');
  writeFileSync(join(directory, 'pods', 'broken.json'), '{"containerId":');
  t.deepEqual(
    new PodRecords(directory, log).all().map(({ containerId }) => containerId),
    ['one'],
  );
  t.true(readdirSync(join(directory, 'pods')).includes('broken.json.unreadable'));
  t.false(readdirSync(join(directory, 'pods')).includes('abc.json.new'));
});

test('parseRecord takes what was written and nothing that lacks a field', (t) => {
  t.deepEqual(parseRecord(JSON.stringify(record('one', 'fd84::2'))), record('one', 'fd84::2'));
  for (const field of ['containerId', 'ifName', 'network', 'netns', 'ips', 'createdMs', 'mtuBytes']) {
    t.is(parseRecord(JSON.stringify({ ...record('one', '10.84.0.2'), [field]: undefined })), undefined, field);
  }
  const earlier = { ...record('one', '10.84.0.2'), mtuBytes: 1450, routeMtuBytes: undefined };
  t.is(parseRecord(JSON.stringify(earlier))?.routeMtuBytes, 1450, 'a pod of an earlier version');
  t.is(parseRecord(JSON.stringify({ ...record('one', '10.84.0.2'), ips: ['10.84.0.02'] })), undefined);
  const mapping = { hostPort: 8080, containerPort: 80, protocol: 'TCP', hostIp: '192.0.2.7' };
  const withPort = (change: object | null) =>
    parseRecord(JSON.stringify({ ...record('one', '10.84.0.2'), portMappings: [change && { ...mapping, ...change }] }));
  t.like(withPort({}), { portMappings: { 0: mapping } } as never);
  for (const change of [
    { hostPort: 0 },
    { containerPort: 65_536 },
    { protocol: 'tcp' },
    { hostIp: '192.0.2.07' },
    null,
  ])
    t.is(withPort(change), undefined, JSON.stringify(change));
  fc.assert(fc.property(fc.oneof(fc.json(), fc.string()), (text) => parseRecord(text) === undefined));
});
