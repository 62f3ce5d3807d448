import test from 'ava';
import fc from 'fast-check';
import { ip, settings } from '../../../../test/support/cluster-values.ts';
import { selfNode, service, slice } from '../../../../test/support/service-values.ts';
import { linesOf } from '../../../kernel/iptables/render.ts';
import { families } from '../../../model/ip.ts';
import type { AnyItem, ChainPart, Key } from '../../../model/items.ts';
import { type Backend, backendSet, type Frontend } from '../../../model/services.ts';
import { planGuard } from '../guard.ts';
import { planService } from '../service.ts';
import { baseFragment } from './base.ts';
import { leafOf } from './dispatch.ts';
import { type IptablesItems, iptablesItems } from './iptables-items.ts';

const guard = planGuard([selfNode], new Map(), [], settings);
const OPTIONS = { clusterAddresses: true };
type Made = Pick<IptablesItems, 'items' | 'requires' | 'branches'>;

const render = (
  given: Parameters<typeof service>[1],
  endpoints: string,
  owner = 'service default/web',
  options = OPTIONS,
) => {
  const context = { zone: undefined, nodePortIps: [ip('172.30.0.11')], guard };
  const { frontends, sets } = planService(service('web', given), [slice('web', endpoints)], context, () => undefined);
  return iptablesItems(owner, frontends, sets, options);
};

const partsOf = (items: readonly AnyItem[]): readonly ChainPart[] =>
  items.flatMap((each) => (each.kind === 'chain-part' ? each.value : []));

/** Own chains and random hashes by their place, so that texts can be compared. */
const textOf = ({ items }: Made): string => {
  const names = new Map<string, string>();
  const named = (text: string) =>
    text
      .replace(
        /TULLE-SVC-[0-9a-f]{16}/g,
        (name) => names.get(name) ?? names.set(name, `SVC${names.size}`).get(name) ?? '',
      )
      .replace(/ -m comment --comment "[^"]*"/, '');
  const rules = partsOf(items).flatMap((part) => linesOf(part).map(named));
  const members = items.flatMap((each) => (each.kind === 'member' ? each.key.replace(/^member tulle-/, '') : []));
  return [...rules, ...members].join('\n');
};

test('policy Cluster: one chain for all addresses, found by address or by port', (t) => {
  t.is(
    textOf(render({ ports: '80=30080' }, '10.84.0.5@ 10.84.1.5')),
    `-A TULLE-SVCS-07 -d 10.96.0.7 -p tcp --dport 80 -g SVC0
-A TULLE-SVCS-T75 -d 172.30.0.11 -p tcp --dport 30080 -g SVC0
-A SVC0 -j MARK --set-xmark 0x2000/0x2000
-A SVC0 -p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.84.0.5:8080
-A SVC0 -p tcp -j DNAT --to-destination 10.84.1.5:8080
svc-cluster-4 10.96.0.7/32
svc-places-4 10.96.0.7/32,TCP:80
svc-places-4 172.30.0.11/32,TCP:30080`,
  );
});

test('policy Local: packets from outside keep their source and find endpoints of this node only', (t) => {
  t.is(
    textOf(render({ ports: '80=30080', externalTrafficPolicy: 'Local' }, '10.84.0.5@ 10.84.1.5')),
    `-A TULLE-SVCS-07 -d 10.96.0.7 -p tcp --dport 80 -g SVC0
-A TULLE-SVCS-T75 -d 172.30.0.11 -p tcp --dport 30080 -m mark --mark 0x2000/0x2000 -g SVC0
-A TULLE-SVCS-T75 -d 172.30.0.11 -p tcp --dport 30080 -m mark ! --mark 0x2000/0x2000 -g SVC1
-A SVC0 -j MARK --set-xmark 0x2000/0x2000
-A SVC0 -p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.84.0.5:8080
-A SVC0 -p tcp -j DNAT --to-destination 10.84.1.5:8080
-A SVC1 -p tcp -j DNAT --to-destination 10.84.0.5:8080
svc-cluster-4 10.96.0.7/32
svc-places-4 10.96.0.7/32,TCP:80
svc-places-4 172.30.0.11/32,TCP:30080`,
  );
});

test('without endpoints there is no rule of its own, only members of sets', (t) => {
  t.is(
    textOf(render({ ports: '80' }, '')),
    'svc-cluster-4 10.96.0.7/32\nsvc-places-4 10.96.0.7/32,TCP:80\nsvc-refused-4 10.96.0.7/32,TCP:80',
  );
});

test('without rules for cluster addresses, node ports have theirs', (t) => {
  const made = render({ ports: '80=30080' }, '10.84.0.5', 'service default/web', { clusterAddresses: false });
  t.deepEqual(
    textOf(made)
      .split('\n')
      .filter((line) => line.includes('10.96.0.7')),
    ['svc-cluster-4 10.96.0.7/32'],
  );
  t.true(textOf(made).includes('-d 172.30.0.11 -p tcp --dport 30080 -g'));
});

test('without rules for cluster addresses, SCTP has them: no program translates its sockets', (t) => {
  const context = { zone: undefined, nodePortIps: [], guard };
  const given = service('web', { ports: 'a:80 b:80/SCTP' });
  const endpoints = [slice('web', '10.84.0.5', { on: 'a:8080 b:8080/SCTP' })];
  const { frontends, sets } = planService(given, endpoints, context, () => undefined);
  const made = textOf(iptablesItems('service default/web', frontends, sets, { clusterAddresses: false }));
  t.regex(made, /-d 10\.96\.0\.7 -p sctp --dport 80 -g SVC0/);
  t.regex(made, /-A SVC0 -p sctp -j DNAT --to-destination 10\.84\.0\.5:8080/);
  t.regex(made, /svc-places-4 10\.96\.0\.7\/32,SCTP:80/);
  t.notRegex(made, /tcp/i);
});

test('other endpoints change one chain in place; two owners of one place contest one key and share no chain', (t) => {
  const keysOf = (made: Made) => made.items.map(({ key }) => key).sort();
  const [two, three] = [render({}, '10.84.0.5 10.84.1.5'), render({}, '10.84.0.5 10.84.1.5 10.84.1.6')];
  t.deepEqual(keysOf(two), keysOf(three));
  const changed = partsOf(three.items).filter(
    (part, i) => linesOf(part).join() !== linesOf(partsOf(two.items)[i] as ChainPart).join(),
  );
  t.is(changed.length, 1);
  const other = render({}, '10.84.0.9', 'service default/other');
  const shared = keysOf(two).filter((key) => keysOf(other).includes(key));
  t.deepEqual(
    shared.filter((key) => key.startsWith('chain-part')),
    ['chain-part ipv4 nat TULLE-SVCS-07 10.96.0.7-80-T'],
  );
});

const port = fc.integer({ min: 1, max: 65_535 });
const ipv4 = fc
  .tuple(...Array.from({ length: 4 }, () => fc.integer({ min: 1, max: 223 })))
  .map((bytes) => ip(bytes.join('.')));
const ipv6 = fc
  .tuple(port, port)
  .map(([a, b]) => ip(`fd00:1111:2222:3333:4444:5555:${a.toString(16)}:${b.toString(16)}`));
const anyFrontends = fc
  .record({
    // A Service that asks for one place twice is told so, and has it once.
    places: fc.uniqueArray(
      fc.record({ ip: fc.oneof(ipv4, ipv6), port, protocol: fc.constantFrom('TCP', 'UDP', 'SCTP') }),
      { minLength: 1, maxLength: 6, selector: (place) => `${place.ip} ${place.port} ${place.protocol}` },
    ),
    targets: fc.array(fc.constantFrom('set', 'other', 'refuse', 'drop'), { minLength: 2, maxLength: 12 }),
    affinitySeconds: fc.option(fc.integer({ min: 1, max: 86_400 }), { nil: undefined }),
    isLocal: fc.boolean(),
    service: fc.string({ unit: 'binary', maxLength: 300 }),
  })
  .map(({ places, targets, affinitySeconds, isLocal, service }) => {
    const sets = new Map(
      families.flatMap(({ family }) =>
        ['set', 'other'].map((name, i) => {
          const at = (n: number): Backend => ({
            ip: ip(family === 'ipv4' ? `10.84.0.${n}` : `fd84::${n}`),
            port: 80 + i,
          });
          return [`${family} ${name}`, backendSet([at(1), at(2)])] as const;
        }),
      ),
    );
    const frontends = places.flatMap((place, i) =>
      (['internal', 'external'] as const).map((scope, j): Frontend => {
        const target = targets[(2 * i + j) % targets.length] as string;
        const made = sets.get(`${place.ip.includes(':') ? 'ipv6' : 'ipv4'} ${target}`);
        return {
          scope,
          ...(place as Pick<Frontend, 'ip' | 'port' | 'protocol'>),
          kind: 'load-balancer',
          target: made?.id ?? (target as 'refuse'),
          service,
          ...(affinitySeconds !== undefined && { affinitySeconds }),
          ...(scope === 'external' && !isLocal && { masquerade: true }),
        };
      }),
    );
    return iptablesItems('service default/any', frontends, [...sets.values()], OPTIONS);
  });

test('whatever is asked for: rules can be written, chains that are jumped to exist, and needs are planned', (t) => {
  fc.assert(
    fc.property(anyFrontends, (made) => {
      const base = families.map(({ family }) => baseFragment(family, { randomFully: true }));
      const shared = new Map([...base, ...made.branches].map((each) => [each.id, each]));
      for (const { requires } of [made, ...shared.values()]) for (const id of requires) t.true(shared.has(id), id);
      const items = [...[...shared.values()].flatMap((each) => each.items), ...made.items];
      const keys = new Set<Key>(items.map(({ key }) => key));
      const doubled = items.map(({ key }) => key).filter((key, i, all) => all.indexOf(key) !== i);
      t.deepEqual(doubled, [], 'each key once');
      const parts = partsOf(items);
      const chains = new Set(parts.map(({ family, table, chain }) => `${family} ${table} ${chain}`));
      for (const { needs } of items) for (const need of needs) t.true(keys.has(need), need);
      for (const part of parts) {
        for (const line of linesOf(part)) {
          t.regex(
            line,
            /^-A TULLE-[A-Z0-9a-f-]+ ([ -~]+ )?-m comment --comment "[A-Za-z0-9./:_ -]{1,127}"( -[jg] [ -~]+)?$/,
          );
          const [, target] = / -[jg] (TULLE-\S+)/.exec(line) ?? [];
          if (target) t.true(chains.has(`${part.family} ${part.table} ${target}`), line);
        }
      }
      for (const builtin of ['PREROUTING', 'INPUT', 'FORWARD', 'OUTPUT', 'POSTROUTING'])
        t.true(parts.filter(({ chain }) => chain === `TULLE-${builtin}`).flatMap(({ rules }) => rules).length < 20);
    }),
  );
});

test('a place has one leaf, whichever Service claims it, and the tree reaches it', (t) => {
  fc.assert(
    fc.property(
      fc.oneof(ipv4, ipv6),
      port,
      fc.constantFrom('TCP' as const, 'UDP' as const),
      (address, number, protocol) => {
        const place = { ip: address, port: number, protocol };
        const leaf = leafOf(place);
        t.is(leafOf({ ...place }), leaf);
        t.true(leaf.fragments.length <= 2);
        t.true(leaf.fragments.some(({ id }) => id === leaf.id));
      },
    ),
  );
});
