/** Render and read-back of addresses, neighbours, fdb entries and routes: what is written is what is read. */
import test from 'ava';
import fc from 'fast-check';
import { type Cidr, cidrOf, type Family, factsOf, type IpAddress, ipFromBytes } from '../../model/ip.ts';
import { item, type Kind, type Objects, type Route } from '../../model/items.ts';
import { type MacAddress, macFromBytes } from '../../model/mac.ts';
import type { Change } from '../../reconcile/types.ts';
import { addressKind } from './address.ts';
import { attribute, nested, parseAttributes, plainText, text, u32 } from './attributes.ts';
import { fdbKind } from './fdb.ts';
import { Links } from './links.ts';
import type { NetlinkClient } from './message.ts';
import { neighbourKind } from './neighbour.ts';
import { isAltered, type ObjectKind } from './object-driver.ts';
import { routeKind } from './route.ts';
import { AF, IFLA, linkHeader, NDA, NTF_SELF, NUD_PERMANENT, neighbourHeader, RTA, RTM } from './rtnetlink.ts';

const IFINDEX = 7;

/** An index that knows one own VXLAN device. */
function knownLinks(): Links {
  const links = new Links({} as NetlinkClient);
  const info = nested(IFLA.LINKINFO, text(IFLA.INFO_KIND, 'vxlan'));
  const payload = Buffer.concat([
    linkHeader({ ifindex: IFINDEX }),
    text(IFLA.IFNAME, 'tulle.84'),
    plainText(IFLA.IFALIAS, 'tulle:vxlan'),
    info,
  ]);
  links.see({ type: RTM.NEWLINK, flags: 0, port: 0, payload });
  return links;
}
const links = knownLinks();

const ips = (family: Family): fc.Arbitrary<IpAddress> => {
  const length = family === 'ipv4' ? 4 : 16;
  return fc.uint8Array({ minLength: length, maxLength: length }).map((bytes) => {
    // Unicast, and a destination that is not 0: the kernel writes no RTA_DST for that.
    bytes[0] = 10;
    return ipFromBytes(bytes);
  });
};
const macs: fc.Arbitrary<MacAddress> = fc.uint8Array({ minLength: 6, maxLength: 6 }).map(macFromBytes);
const families = fc.constantFrom<Family>('ipv4', 'ipv6');
const link = fc.constant('tulle.84');

function readsBack<K extends Kind>(kind: ObjectKind<K>, value: Objects[K]): boolean {
  const made = item(kind.kind, value);
  const change = { action: 'create', kind: kind.kind, key: made.key, item: made } as Change<K>;
  const { type, payload } = kind.render(change, () => IFINDEX);
  const found = kind.readBack({ type, flags: 0, port: 0, payload: Buffer.from(payload) }, links);
  return found !== undefined && !isAltered(found) && kind.same(value, found);
}

test('address: reads back what it renders', (t) => {
  const values = families.chain((family) =>
    fc.record({ link, ip: ips(family), prefixLength: fc.integer({ min: 1, max: family === 'ipv4' ? 32 : 128 }) }),
  );
  fc.assert(fc.property(values, (value) => readsBack(addressKind, value)));
  t.pass();
});

test('neighbour: reads back what it renders', (t) => {
  const values = families.chain((family) => fc.record({ link, ip: ips(family), mac: macs }));
  fc.assert(fc.property(values, (value) => readsBack(neighbourKind, value)));
  t.pass();
});

test('fdb: reads back what it renders', (t) => {
  const values = families.chain((family) => fc.record({ link, mac: macs, destination: ips(family) }));
  fc.assert(fc.property(values, (value) => readsBack(fdbKind, value)));
  t.pass();
});

test('fdb: an entry without a tunnel end is the word of the device, not its repetition by rtnetlink', (t) => {
  const header = neighbourHeader(AF.BRIDGE, { ifindex: IFINDEX, state: NUD_PERMANENT, flags: NTF_SELF });
  const repetition = Buffer.concat([header, attribute(NDA.LLADDR, Buffer.alloc(6, 2))]);
  const word = Buffer.concat([repetition, attribute(NDA.CACHEINFO, Buffer.alloc(16))]);
  for (const type of [RTM.NEWNEIGH, RTM.DELNEIGH]) {
    const read = (payload: Buffer) => fdbKind.readBack({ type, flags: 0, port: 0, payload }, links);
    t.is(read(repetition), undefined);
    t.like(read(word), { link: 'tulle.84', mac: '02:02:02:02:02:02', destination: '0.0.0.0' });
  }
});

const metrics = fc.integer({ min: 1, max: 0xffffffff });
const destinations = (family: Family): fc.Arbitrary<Cidr> =>
  fc
    .tuple(ips(family), fc.integer({ min: 8, max: family === 'ipv4' ? 32 : 128 }))
    .map(([ip, length]) => cidrOf(ip, length));

const routes: fc.Arbitrary<Route> = families.chain((family) => {
  const destination = destinations(family);
  const deadEnd = fc.record({
    destination,
    metric: metrics,
    type: fc.constantFrom('unreachable' as const, 'blackhole' as const),
  });
  const direct = fc.record({ destination, metric: metrics, type: fc.constant('unicast' as const), link });
  const viaGateway = fc.record({
    ...{ destination, metric: metrics, type: fc.constant('unicast' as const), link },
    ...{ gateway: ips(family), onlink: fc.boolean(), source: ips(family) },
  });
  return fc.oneof(deadEnd, direct, viaGateway);
});

test('route: reads back what it renders', (t) => {
  fc.assert(fc.property(routes, (route) => readsBack(routeKind, route)));
  t.pass();
});

test('route: a removal carries destination, metric, protocol and, unless altered, the next hop', (t) => {
  fc.assert(
    fc.property(routes, fc.boolean(), (route, altered) => {
      const from = altered ? { ...route, altered: 'has its own METRICS' } : route;
      const key = item('route', route).key;
      const { payload } = routeKind.render({ action: 'remove', kind: 'route', key, from }, () => IFINDEX);
      const attributes = parseAttributes(Buffer.from(payload), 12);
      const hasNexthop = attributes.has(RTA.OIF) || attributes.has(RTA.GATEWAY);
      return (
        payload[5] === 84 &&
        attributes.has(RTA.DST) &&
        attributes.has(RTA.PRIORITY) &&
        hasNexthop === (!altered && route.link !== undefined)
      );
    }),
  );
  t.pass();
});

test("readBack: what is not of this kind, not of this link, or not Tulle's is nothing", (t) => {
  const kinds = [addressKind, neighbourKind, fdbKind, routeKind] as readonly ObjectKind<Kind>[];
  for (const kind of kinds)
    t.is(kind.readBack({ type: RTM.NEWLINK, flags: 0, port: 0, payload: linkHeader() }, links), undefined);
  const route: Route = { destination: cidrOf('10.0.0.0' as IpAddress, 8), metric: 5, type: 'blackhole' };
  const made = item('route', route);
  const { payload } = routeKind.render({ action: 'create', kind: 'route', key: made.key, item: made }, () => IFINDEX);
  const changed = (at: number, value: number) => {
    const copy = Buffer.from(payload);
    copy[at] = value;
    return routeKind.readBack({ type: RTM.NEWROUTE, flags: 0, port: 0, payload: copy }, links);
  };
  t.truthy(changed(5, 84));
  t.is(changed(5, 3), undefined, 'another protocol');
  t.is(changed(4, 100), undefined, 'another table');
  t.is(changed(3, 8), undefined, 'a type of service');
  t.true(isAltered(changed(7, 9) as object), 'a type that Tulle never writes');
  const metric = Buffer.concat([payload, u32(RTA.METRICS, 1)]);
  t.true(isAltered(routeKind.readBack({ type: RTM.NEWROUTE, flags: 0, port: 0, payload: metric }, links) as object));
  t.is(factsOf(route.destination).family, 'ipv4');
});
