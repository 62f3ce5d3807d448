/** The drivers of backend sets and frontends against the fake and against maps of the kernel: the same cases, the same answers. */
import { closeSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { type BackendSetDriver, createBackendSetDriver } from '../../agent/kernel/bpf/backend-set.ts';
import { createMap } from '../../agent/kernel/bpf/commands.ts';
import { createFrontendDriver, type FrontendDriver } from '../../agent/kernel/bpf/frontend.ts';
import { type BpfMap, KernelMap } from '../../agent/kernel/bpf/map.ts';
import { MAPS } from '../../agent/kernel/bpf/store.ts';
import { KernelError } from '../../agent/kernel/errors.ts';
import { type Family, families, type IpAddress } from '../../agent/model/ip.ts';
import { item } from '../../agent/model/items.ts';
import { type Backend, type BackendSet, backendSet, type Frontend, frontendId } from '../../agent/model/services.ts';
import { converge, createOf, differences, removeOf } from '../support/converge.ts';
import { frontendOf } from '../support/ebpf-node.ts';
import { FakeBpfMap } from '../support/fake-bpf-map.ts';

const signal = new AbortController().signal;
const [MAX_FRONTENDS, MAX_BACKENDS] = [64, 64] as const;

type MakeMap = (t: ExecutionContext, name: 'frontends' | 'backends', maxEntries: number) => BpfMap;

const MAKERS: Readonly<Record<'fake' | 'kernel', MakeMap>> = {
  fake: (_, name, maxEntries) => new FakeBpfMap({ name, ...MAPS[name], maxEntries }),
  kernel: (t, name, maxEntries) => {
    const fd = createMap(`test_${name}`, { ...MAPS[name], maxEntries });
    t.teardown(() => closeSync(fd));
    return new KernelMap(fd, { name, ...MAPS[name], maxEntries });
  },
};

interface Drivers {
  readonly sets: BackendSetDriver;
  readonly frontends: FrontendDriver;
  readonly maps: { readonly frontends: BpfMap; readonly backends: BpfMap };
}

const over = (maps: Drivers['maps']): Drivers => {
  const sets = createBackendSetDriver({ map: maps.backends });
  return { maps, sets, frontends: createFrontendDriver({ map: maps.frontends, sizeOf: (id) => sets.sizeOf(id) }) };
};

const ipOf = (family: Family, i: number): IpAddress =>
  (family === 'ipv4' ? `10.0.0.${i}` : `fd00::${i.toString(16)}`) as IpAddress;
const setOf = (family: Family, ...hosts: readonly number[]): BackendSet =>
  backendSet(hosts.map((i): Backend => ({ ip: ipOf(family, i), port: 8000 + i })));
const sortBy = (all: readonly Frontend[]) => all.toSorted((a, b) => (frontendId(a) < frontendId(b) ? -1 : 1));
const code = (error: Error | undefined): string | undefined =>
  error instanceof KernelError ? error.code : error?.name;

async function contentOf({ frontends, backends }: Drivers['maps']): Promise<number> {
  const counts: number[] = [];
  for (const map of [frontends, backends]) await map.read(({ count }) => counts.push(count), signal);
  return counts.reduce((sum, count) => sum + count, 0);
}

for (const [name, make] of Object.entries(MAKERS)) {
  const open = (t: ExecutionContext): Drivers =>
    over({ frontends: make(t, 'frontends', MAX_FRONTENDS), backends: make(t, 'backends', MAX_BACKENDS) });

  for (const { family } of families) {
    test(`${name} ${family}: sets and frontends are made, found again by a fresh process, and removed`, async (t) => {
      const drivers = open(t);
      // 2 and 10: the order of text is not the order of bytes.
      const wanted = [setOf(family, 2, 10, 1), setOf(family, 7)] as const;
      const frontends: readonly Frontend[] = [
        frontendOf(family, { target: wanted[0].id, affinitySeconds: 86_400, kind: 'node-port' }),
        frontendOf(family, { target: wanted[1].id, protocol: 'SCTP', scope: 'external', masquerade: true }),
        frontendOf(family, { port: 65_535, protocol: 'UDP', target: 'drop', sourceRanges: [] }),
        frontendOf(family, { port: 0, protocol: 'any' }),
      ];
      t.is((await converge(drivers.sets, wanted)).failures.size, 0);
      t.is((await converge(drivers.frontends, frontends)).failures.size, 0);
      const fresh = over(drivers.maps);
      t.deepEqual(await differences(fresh.sets, wanted), []);
      t.deepEqual(await differences(fresh.frontends, frontends), []);
      const found = [...(await fresh.frontends.list(signal)).values()];
      t.deepEqual(sortBy(found), sortBy(frontends.map((each) => ({ ...each, service: '' }))));
      t.is(fresh.sets.entries, 4);
      t.is(fresh.frontends.entries, 4);
      t.is((await converge(fresh.frontends, [])).failures.size, 0);
      t.is((await converge(fresh.sets, [])).failures.size, 0);
      t.is(await contentOf(drivers.maps), 0);
    });
  }

  test(`${name}: writing what is there and removing what is not both succeed`, async (t) => {
    const { sets, frontends, maps } = open(t);
    const set = setOf('ipv4', 1, 2);
    const frontend = frontendOf('ipv4', { target: set.id });
    for (let i = 0; i < 2; i++) {
      t.is((await sets.apply([createOf('backend-set', set)], signal)).size, 0);
      t.is((await frontends.apply([createOf('frontend', frontend)], signal)).size, 0);
    }
    t.is(await contentOf(maps), 3);
    for (let i = 0; i < 2; i++) {
      t.is((await frontends.apply([removeOf('frontend', frontend)], signal)).size, 0);
      t.is((await sets.apply([removeOf('backend-set', set)], signal)).size, 0);
    }
    t.is(await contentOf(maps), 0);
  });

  test(`${name}: a full map says so, leaves nothing half written, and what fits is written`, async (t) => {
    const { sets, maps } = open(t);
    const small = setOf('ipv4', 1, 2);
    const large = backendSet(Array.from({ length: MAX_BACKENDS }, (_, i) => ({ ip: ipOf('ipv4', 9), port: i + 1 })));
    const other = setOf('ipv6', 3);
    const failures = await sets.apply(
      [small, large, other].map((set) => createOf('backend-set', set)),
      signal,
    );
    t.deepEqual([...failures.keys()], [item('backend-set', large).key]);
    t.is(code([...failures.values()][0]), 'ENOSPC');
    if (name === 'kernel') t.regex([...failures.values()][0]?.message ?? '', /map backends: .*full.* 64 entries/);
    t.is(await contentOf(maps), 3);
    t.is(sets.sizeOf(large.id), undefined);
    t.deepEqual(await differences(sets, [small, other]), []);
  });

  test(`${name}: a frontend whose set is not there fails alone`, async (t) => {
    const { sets, frontends } = open(t);
    const set = setOf('ipv4', 1);
    await converge(sets, [set]);
    const good = frontendOf('ipv4', { target: set.id });
    const bad = frontendOf('ipv4', { target: setOf('ipv4', 2).id, port: 81 });
    const { failures } = await converge(frontends, [good, bad]);
    t.deepEqual([...failures.keys()], [item('frontend', bad).key]);
    t.is(code(failures.get(item('frontend', bad).key)), 'ENOENT');
    t.deepEqual([...(await frontends.list(signal)).keys()], [item('frontend', good).key]);
  });

  test(`${name}: an address that would be another one in the map fails alone`, async (t) => {
    const { frontends } = open(t);
    const good = frontendOf('ipv6');
    const bad = frontendOf('ipv6', { ip: '::ffff:10.0.0.1' as IpAddress });
    const { failures } = await converge(frontends, [bad, good]);
    t.deepEqual([...failures.keys()], [item('frontend', bad).key]);
    t.deepEqual([...(await frontends.list(signal)).keys()], [item('frontend', good).key]);
  });

  test(`${name}: whatever is altered by hand is seen, and mended`, async (t) => {
    const drivers = open(t);
    const [one, two] = [setOf('ipv4', 1, 2, 3), setOf('ipv6', 4, 5)];
    const [a, b] = [frontendOf('ipv4', { target: one.id }), frontendOf('ipv6', { target: two.id })];
    const wantedSets = [one, two];
    const wanted = [a, b];
    const rebuild = async (): Promise<void> => {
      await converge(drivers.sets, wantedSets);
      await converge(drivers.frontends, wanted);
    };
    await rebuild();
    const entries = async (map: BpfMap): Promise<readonly (readonly [Buffer, Buffer])[]> => {
      const found: (readonly [Buffer, Buffer])[] = [];
      const piece = (buffer: Buffer, i: number, bytes: number) =>
        Buffer.from(buffer.subarray(i * bytes, (i + 1) * bytes));
      await map.read(({ keys, values, count }) => {
        for (let i = 0; i < count; i++) found.push([piece(keys, i, map.keyBytes), piece(values, i, map.valueBytes)]);
      }, signal);
      return found;
    };
    const put = (map: BpfMap, keys: Buffer, values: Buffer) => map.update({ keys, values, count: 1 });
    const flipped = (buffer: Buffer, at: number): Buffer => {
      const copy = Buffer.from(buffer);
      copy[at] = (copy[at] as number) ^ 1;
      return copy;
    };
    for (const map of [drivers.maps.backends, drivers.maps.frontends]) {
      const before = await entries(map);
      for (const [key, value] of before) {
        const damages: (() => void)[] = [
          ...Array.from({ length: map.valueBytes }, (_, at) => () => void put(map, key, flipped(value, at))),
          ...Array.from({ length: map.keyBytes }, (_, at) => () => void put(map, flipped(key, at), value)),
          () => void map.delete({ keys: key, count: 1 }),
        ];
        for (const damage of damages) {
          damage();
          const seen = [
            ...(await differences(drivers.sets, wantedSets)),
            ...(await differences(drivers.frontends, wanted)),
          ];
          await rebuild();
          const after = await entries(map);
          const sorted = (all: typeof before) => all.map(([k, v]) => k.toString('hex') + v.toString('hex')).toSorted();
          t.deepEqual(sorted(after), sorted(before));
          // What no frontend has is swept while it is listed; everything else must have been seen.
          if (map === drivers.maps.backends) t.true(seen.length > 0);
        }
      }
    }
    t.deepEqual(await differences(drivers.sets, wantedSets), []);
    t.deepEqual(await differences(drivers.frontends, wanted), []);
  });

  test(`${name}: after any sequence of changes the maps hold what is wanted, and no more`, async (t) => {
    const hosts = fc.uniqueArray(fc.integer({ min: 1, max: 6 }), { minLength: 0, maxLength: 4 });
    const service = fc.record({
      port: fc.integer({ min: 1, max: 4 }),
      family: fc.constantFrom<Family>('ipv4', 'ipv6'),
      hosts,
    });
    const states = fc.array(fc.array(service, { maxLength: 6 }), { minLength: 1, maxLength: 6 });
    await fc.assert(
      fc.asyncProperty(states, async (sequence) => {
        const drivers = open(t);
        let sets = new Map<string, BackendSet>();
        for (const services of sequence) {
          const frontends = new Map<string, Frontend>();
          const next = new Map<string, BackendSet>();
          for (const { port, family, hosts: chosen } of services) {
            const set = chosen.length > 0 ? setOf(family, ...chosen) : undefined;
            if (set) next.set(set.id, set);
            frontends.set(`${family} ${port}`, frontendOf(family, { port, target: set?.id ?? 'refuse' }));
          }
          // The order of applying: new sets, frontends, then old sets go.
          for (const outcome of [
            await converge(drivers.sets, [...new Map([...sets, ...next]).values()]),
            await converge(drivers.frontends, [...frontends.values()]),
            await converge(drivers.sets, [...next.values()]),
          ])
            t.is(outcome.failures.size, 0);
          sets = next;
          const fresh = over(drivers.maps);
          t.deepEqual(await differences(fresh.sets, [...next.values()]), []);
          t.deepEqual(await differences(fresh.frontends, [...frontends.values()]), []);
          const backends = [...next.values()].reduce((sum, set) => sum + set.backends.length, 0);
          t.is(await contentOf(drivers.maps), backends + frontends.size);
        }
      }),
      { numRuns: 40 },
    );
  });
}

test('fake: an entry that cannot be written fails its set alone, and nothing of it stays', async (t) => {
  const map = new FakeBpfMap({ name: 'backends', ...MAPS.backends, maxEntries: MAX_BACKENDS });
  const sets = createBackendSetDriver({ map });
  const [before, bad, after] = [setOf('ipv4', 1, 2), setOf('ipv4', 3, 4, 5), setOf('ipv4', 6)];
  const third = Buffer.alloc(map.keyBytes);
  third.write(bad.id, 'hex');
  third.writeUInt32LE(2, 16);
  map.refuse(third);
  const failures = await sets.apply(
    [before, bad, after].map((set) => createOf('backend-set', set)),
    signal,
  );
  t.deepEqual([...failures.keys()], [item('backend-set', bad).key]);
  t.is(map.store.size, 3);
});

test('fake: switching one Service writes its set and its frontend, and removes the old set', async (t) => {
  const maps = {
    frontends: new FakeBpfMap({ name: 'frontends', ...MAPS.frontends, maxEntries: 10_000 }),
    backends: new FakeBpfMap({ name: 'backends', ...MAPS.backends, maxEntries: 100_000 }),
  };
  const { sets, frontends } = over(maps);
  const many = Array.from({ length: 1000 }, (_, i) => backendSet([{ ip: ipOf('ipv4', 1), port: i + 1 }]));
  await converge(sets, many);
  await converge(
    frontends,
    many.map(({ id }, i) => frontendOf('ipv4', { port: i + 1, target: id })),
  );
  const [written, removed] = [maps.frontends.written + maps.backends.written, maps.backends.removed];
  const [old, next] = [many[500] as BackendSet, setOf('ipv4', 1, 2, 3)];
  await sets.apply([createOf('backend-set', next)], signal);
  await frontends.apply([createOf('frontend', frontendOf('ipv4', { port: 501, target: next.id }))], signal);
  await sets.apply([removeOf('backend-set', old)], signal);
  t.is(maps.frontends.written + maps.backends.written - written, 4);
  t.is(maps.backends.removed - removed, 1);
});
