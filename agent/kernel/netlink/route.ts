/** Routes of the main table that carry Tulle's protocol number. */
import {
  bytesOf,
  type Cidr,
  cidrOf,
  factsOf,
  families,
  familyOf,
  type IpAddress,
  networkOf,
  parseIp,
  prefixLengthOf,
} from '../../model/ip.ts';
import { type Key, keyOf, type Route } from '../../model/items.ts';
import { ROUTE_PROTOCOL } from '../../model/kernel-names.ts';
import type { Change, Driver } from '../../reconcile/types.ts';
import { isExists, isNotFound, KernelError } from '../errors.ts';
import { attribute, parseAttributes, u32, u32Of } from './attributes.ts';
import type { Links } from './links.ts';
import { type NetlinkMessage, type NetlinkRequest, NLM } from './message.ts';
import {
  type Altered,
  type Found,
  type IfindexOf,
  isAltered,
  type ObjectDriverOptions,
  type ObjectKind,
  objectDriver,
} from './object-driver.ts';
import {
  familyOfAf,
  IFA,
  ipOf,
  parseRouteHeader,
  type RouteHeader,
  RT_SCOPE,
  RT_TABLE_MAIN,
  RTA,
  RTM,
  RTM_F_CLONED,
  RTNH_F_ONLINK,
  readLinkFacts,
  routeHeader,
} from './rtnetlink.ts';

/** RTN_* (linux/rtnetlink.h). */
const ROUTE_TYPES = { unicast: 1, blackhole: 6, unreachable: 7 } as const satisfies Record<Route['type'], number>;

export const routeKind: ObjectKind<'route'> = {
  kind: 'route',
  same: (a, b) =>
    a.destination === b.destination &&
    a.metric === b.metric &&
    a.type === b.type &&
    a.link === b.link &&
    a.gateway === b.gateway &&
    (a.onlink ?? false) === (b.onlink ?? false) &&
    a.source === b.source,
  linksOf: ({ link }) => (link === undefined ? [] : [link]),
  render: renderRoute,
  dumps: () => families.map(({ addressFamily }) => dumpOf(addressFamily)),
  readBack: readRoute,
  isGone: ({ type }) => type === RTM.DELROUTE,
};

/**
 * A new route is asked for exclusively, because a replacing request would take any route of the same destination and metric,
 * whoever's it is. An update replaces in place: a route's identity has no device in it.
 */
function renderRoute(change: Change<'route'>, ifindexOf: IfindexOf): NetlinkRequest {
  const isRemoval = change.action === 'remove';
  const value = isRemoval ? change.from : change.item.value;
  return {
    type: isRemoval ? RTM.DELROUTE : RTM.NEWROUTE,
    flags: { create: NLM.CREATE | NLM.EXCL, update: NLM.CREATE | NLM.REPLACE, remove: 0 }[change.action],
    payload: routePayload(value, ifindexOf),
    operation: change.action,
    object: `route ${value.destination} metric ${value.metric}`,
  };
}

/**
 * A deletion carries everything that is known of the route, because the kernel takes a metric of 0 for any. Of an altered one
 * only destination, metric and protocol are certain.
 */
export function routePayload(route: Route & Altered, ifindexOf: IfindexOf): Buffer {
  const { destination, metric, type, link, gateway, onlink, source } = route;
  const exact = !isAltered(route);
  const header = routeHeader({
    family: factsOf(destination).addressFamily,
    prefixLength: prefixLengthOf(destination),
    protocol: ROUTE_PROTOCOL,
    type: exact ? ROUTE_TYPES[type] : 0,
    scope: exact ? scopeOf(route) : RT_SCOPE_ANY,
    flags: onlink ? RTNH_F_ONLINK : 0,
  });
  const nexthop = exact
    ? [
        ...(gateway ? [attribute(RTA.GATEWAY, bytesOf(gateway))] : []),
        ...(link ? [u32(RTA.OIF, ifindexOf(link))] : []),
        ...(source ? [attribute(RTA.PREFSRC, bytesOf(source))] : []),
      ]
    : [];
  return Buffer.concat([
    header,
    attribute(RTA.DST, bytesOf(networkOf(destination))),
    u32(RTA.PRIORITY, metric),
    ...nexthop,
  ]);
}

/** RT_SCOPE_NOWHERE: in a deletion, any scope. */
const RT_SCOPE_ANY = 255;

/** IPv4 wants to know how far the destination is: on the link itself without a gateway. IPv6 has no scopes of routes. */
const scopeOf = ({ destination, type, gateway }: Route): number =>
  factsOf(destination).family === 'ipv4' && type === 'unicast' && !gateway ? RT_SCOPE.LINK : RT_SCOPE.UNIVERSE;

/** With the strict check on, the kernel filters by table and protocol itself: a host may hold a million other routes. */
const dumpOf = (family: number): NetlinkRequest => ({
  type: RTM.GETROUTE,
  payload: Buffer.concat([routeHeader({ family, protocol: ROUTE_PROTOCOL }), u32(RTA.TABLE, RT_TABLE_MAIN)]),
  operation: 'list',
  object: 'routes',
});

/** A route of the main table that takes part in forwarding as Tulle's do, whoever's it is. */
interface SeenRoute {
  readonly header: RouteHeader;
  readonly attributes: ReadonlyMap<number, Buffer>;
  readonly destination: Cidr;
  readonly metric: number;
}

/** Every route that anybody changes is told to each listener: what it does not ask for is not read any further. */
function seeRoute({ type, payload }: NetlinkMessage, whose: 'own' | "a stranger's"): SeenRoute | undefined {
  if ((type !== RTM.NEWROUTE && type !== RTM.DELROUTE) || payload.length < 12) return undefined;
  const header = parseRouteHeader(payload);
  // The main table's number fits into the header; most notifications are of the table of local addresses.
  if (header.table !== RT_TABLE_MAIN || (header.protocol === ROUTE_PROTOCOL) !== (whose === 'own')) return undefined;
  if (!familyOfAf(header.family) || header.tos !== 0 || (header.flags & RTM_F_CLONED) !== 0) return undefined;
  const attributes = parseAttributes(payload, 12);
  const destination = destinationOf(header, attributes.get(RTA.DST));
  if (!destination) return undefined;
  return { header, attributes, destination, metric: u32Of(attributes.get(RTA.PRIORITY)) ?? 0 };
}

function readRoute(message: NetlinkMessage, links: Links): Found<'route'> | undefined {
  const seen = seeRoute(message, 'own');
  if (!seen) return undefined;
  const { header, attributes, destination, metric } = seen;
  const routeType = (Object.keys(ROUTE_TYPES) as Route['type'][]).find((name) => ROUTE_TYPES[name] === header.type);
  const route: Route = {
    destination,
    metric,
    type: routeType ?? 'unicast',
    ...(routeType === 'unicast' && nexthopOf(header, attributes, links)),
  };
  const altered = routeType ? alterationOf(route, header, attributes) : `has the type ${header.type}`;
  return altered === undefined ? route : { ...route, altered };
}

/** The route that a stranger's has taken the place of: the kernel announces the new one, and no end of the old. */
function replacedRoute(message: NetlinkMessage): Key<'route'> | undefined {
  if (message.type !== RTM.NEWROUTE || (message.flags & NLM.REPLACE) === 0) return undefined;
  const seen = seeRoute(message, "a stranger's");
  if (!seen) return undefined;
  const { destination, metric } = seen;
  return keyOf('route', { destination, metric, type: 'unicast' });
}

/** The own route that a stranger's was in the way of, which has gone. */
function removedRival(message: NetlinkMessage): Key<'route'> | undefined {
  const seen = message.type === RTM.DELROUTE ? seeRoute(message, "a stranger's") : undefined;
  return seen && keyOf('route', { ...seen, type: 'unicast' });
}

/** Undefined for a length that the address does not have. */
function destinationOf({ family, prefixLength }: RouteHeader, bytes: Buffer | undefined): Cidr | undefined {
  const address = ipOf(bytes) ?? (parseIp(familyOfAf(family) === 'ipv6' ? '::' : '0.0.0.0') as IpAddress);
  return prefixLength > factsOf(address).bits ? undefined : cidrOf(address, prefixLength);
}

function nexthopOf({ flags }: RouteHeader, attributes: ReadonlyMap<number, Buffer>, links: Links): Partial<Route> {
  const ifindex = u32Of(attributes.get(RTA.OIF));
  const gateway = ipOf(attributes.get(RTA.GATEWAY));
  const source = ipOf(attributes.get(RTA.PREFSRC));
  return {
    ...(ifindex !== undefined && { link: links.byIndex(ifindex)?.name ?? `#${ifindex}` }),
    ...(gateway && { gateway }),
    ...((flags & RTNH_F_ONLINK) !== 0 && { onlink: true }),
    ...(source && { source }),
  };
}

function alterationOf(route: Route, header: RouteHeader, attributes: ReadonlyMap<number, Buffer>): string | undefined {
  for (const name of ['METRICS', 'MULTIPATH', 'VIA', 'ENCAP', 'NH_ID'] as const) {
    if (attributes.has(RTA[name])) return `has its own ${name}`;
  }
  return header.scope === scopeOf(route) ? undefined : `has the scope ${header.scope}`;
}

/** Driver of routes. Besides what the kernel announces it reports what it takes away in silence, see silentLosses. */
export function routeDriver(options: ObjectDriverOptions): Driver<'route'> {
  const known = new Map<Key<'route'>, Route>();
  const base = objectDriver(routeKind, options);
  const remember = (key: Key<'route'>, value: Route | undefined): void => {
    if (value) known.set(key, value);
    else known.delete(key);
  };
  return {
    ...base,
    async list(signal) {
      const found = await base.list(signal);
      known.clear();
      for (const [key, value] of found) known.set(key, value);
      return found;
    },
    async apply(asked, signal) {
      const cleared = new Map<Key<'route'>, KernelError>();
      const batch: Change<'route'>[] = [];
      for (const change of asked) batch.push(await clearAltered(change, options, cleared, signal));
      const stuck = new Map([...cleared, ...(await base.apply(batch.flatMap(removalBefore), signal))]);
      const rest = batch.filter(({ key }) => !stuck.has(key));
      const failures = new Map([...stuck, ...(await base.apply(rest, signal))]);
      await replaceOwn(base, batch, failures, signal);
      for (const change of batch)
        if (!failures.has(change.key)) remember(change.key, change.action === 'remove' ? undefined : change.item.value);
      return failures;
    },
    watch(notice, signal) {
      const found = (key: Key<'route'>, value: Route | undefined): void => {
        remember(key, value);
        notice.found(key, value);
      };
      base.watch?.({ ...notice, found, stale: (reason) => notice.stale(reason) }, signal);
      const listener = {
        message(message: NetlinkMessage, before: { readonly up: boolean; readonly name: string } | undefined) {
          for (const key of routesOnLostLink(message, before, known)) found(key, undefined);
          const replaced = replacedRoute(message);
          if (replaced && known.has(replaced)) found(replaced, undefined);
          const rival = removedRival(message);
          if (rival) notice.freed((wanted) => keyOf('route', wanted) === rival);
          const reason = removedAddress(message, known, options.links);
          if (reason) notice.stale(reason);
        },
        lost: () => {},
      };
      options.monitor?.subscribe(listener, signal);
    },
  };
}

/**
 * An update of a route that is there more than once (IPv4 tells routes apart by more than their key), or is otherwise not
 * of Tulle's making, would replace one that matches and leave the rest: all of them go, and the change becomes a creation.
 */
async function clearAltered(
  change: Change<'route'>,
  { client }: ObjectDriverOptions,
  failures: Map<Key<'route'>, KernelError>,
  signal: AbortSignal,
): Promise<Change<'route'>> {
  if (change.action !== 'update' || !isAltered(change.from)) return change;
  const { key, kind, from, item } = change;
  const removal = renderRoute({ action: 'remove', kind, key, from }, () => 0);
  for (;;) {
    signal.throwIfAborted();
    const [error] = await client.batch([removal]);
    if (!error) continue;
    if (!isNotFound(error)) failures.set(key, error);
    return { action: 'create', kind, key, item };
  }
}

/**
 * IPv6 refuses a gateway that any route leads to over another link, the one that is about to be replaced included
 * (ip6_route_check_nh_onlink): such a route has to go first.
 */
function removalBefore(change: Change<'route'>): readonly Change<'route'>[] {
  if (change.action !== 'update') return [];
  const { from, key, item } = change;
  const isInTheWay = item.value.gateway !== undefined && from.link !== item.value.link;
  return isInTheWay && familyOf(from.destination) === 'ipv6' ? [{ action: 'remove', kind: 'route', key, from }] : [];
}

/**
 * A creation that met a route of the same destination and metric: if it is Tulle's own it is replaced, so that creating is
 * idempotent; if not, it stays and the error says so.
 */
async function replaceOwn(
  driver: Driver<'route'>,
  batch: readonly Change<'route'>[],
  failures: Map<Key<'route'>, Error>,
  signal: AbortSignal,
): Promise<void> {
  const taken = batch.filter((change) => change.action === 'create' && isExists(failures.get(change.key)));
  if (taken.length === 0) return;
  const own = await driver.list(signal);
  const updates: Change<'route'>[] = [];
  for (const change of taken) {
    const from = own.get(change.key);
    failures.delete(change.key);
    if (from && change.action === 'create') updates.push({ ...change, action: 'update', from });
    else failures.set(change.key, foreignRoute(change.key));
  }
  for (const [key, error] of await driver.apply(updates, signal)) failures.set(key, error);
}

const foreignRoute = (key: Key<'route'>): KernelError =>
  new KernelError({
    code: 'EEXIST',
    operation: 'create',
    object: key,
    detail:
      "a route to the same destination with the same metric exists and is not Tulle's: remove it, or give it another metric",
  });

/**
 * The kernel says nothing of the IPv4 routes that go with a link that goes down or away; of IPv6 routes it does. Only a
 * change from up to down counts: while a link is made, it is told of as down several times.
 */
function routesOnLostLink(
  message: NetlinkMessage,
  before: { readonly up: boolean; readonly name: string } | undefined,
  known: ReadonlyMap<Key<'route'>, Route>,
): readonly Key<'route'>[] {
  const facts = readLinkFacts(message);
  if (!facts || !before?.up || (message.type === RTM.NEWLINK && facts.up)) return [];
  const lost = [...known].filter(
    ([, route]) => route.link === before.name && factsOf(route.destination).family === 'ipv4',
  );
  return lost.map(([key]) => key);
}

/**
 * Without a word, routes of IPv4 go with the address that is their source, and with the last address of their link; routes
 * of IPv6 stay and lose their source.
 */
function removedAddress(
  { type, payload }: NetlinkMessage,
  known: ReadonlyMap<Key<'route'>, Route>,
  links: Links,
): string | undefined {
  if (type !== RTM.DELADDR) return undefined;
  const attributes = parseAttributes(payload, 8);
  const ip = ipOf(attributes.get(IFA.LOCAL) ?? attributes.get(IFA.ADDRESS));
  if (!ip) return undefined;
  const link = familyOf(ip) === 'ipv4' ? links.byIndex(payload.readUInt32LE(4))?.name : undefined;
  for (const route of known.values()) {
    const isOnLink = route.link !== undefined && route.link === link && familyOf(route.destination) === 'ipv4';
    if (route.source === ip || isOnLink) return `address ${ip} was removed`;
  }
  return undefined;
}
