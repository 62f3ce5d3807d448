/** Routes of a fake network namespace: what Linux refuses of them, and which it forgets without a word. */
import { attribute, parseAttributes, u32, u32Of } from '../../agent/kernel/netlink/attributes.ts';
import { type NetlinkMessage, NLM } from '../../agent/kernel/netlink/message.ts';
import {
  AF,
  ipOf,
  parseRouteHeader,
  RTA,
  RTM,
  RTNH_F_ONLINK,
  routeHeader,
} from '../../agent/kernel/netlink/rtnetlink.ts';
import { cidrOf, containsIp, factsOf, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import type { FakeLink } from './fake-links.ts';

export interface FakeAddress {
  readonly ifindex: number;
  readonly ip: IpAddress;
  readonly prefixLength: number;
}

interface FakeRoute {
  readonly id: string;
  readonly header: ReturnType<typeof parseRouteHeader>;
  readonly attributes: ReadonlyMap<number, Buffer>;
  readonly ifindex: number;
  readonly table: number;
}

/** What routes depend on. */
interface Surroundings {
  readonly links: ReadonlyMap<number, FakeLink>;
  readonly addresses: readonly FakeAddress[];
}

const RTN_UNICAST = 1;
/** RT_SCOPE_NOWHERE: in a deletion, any. */
const ANY_SCOPE = 255;

/** An errno without the request that it belongs to, which whoever catches it adds. */
export function fail(code: string): never {
  throw Object.assign(new Error(code), { code });
}

export const message = (type: number, payload: Buffer): NetlinkMessage => ({ type, flags: 0, port: 0, payload });

/** The main table of both families. */
export class FakeRoutes {
  #routes: FakeRoute[] = [];
  /** Of IPv4 only: before its first route, the table does not exist. */
  #hasTable = false;

  add(payload: Buffer, flags: number, surroundings: Surroundings): void {
    const route = parseRoute(payload);
    if (route.header.type === RTN_UNICAST) checkNexthop(route, surroundings);
    if (route.header.family === AF.INET) this.#hasTable = true;
    const found = this.#routes.find(({ id }) => id === route.id);
    if (found && flags & NLM.EXCL) fail('EEXIST');
    if (!found && !(flags & NLM.CREATE)) fail('ENOENT');
    if (found && !(flags & NLM.REPLACE)) fail('EEXIST');
    this.#routes = [...this.#routes.filter((other) => other !== found), route];
  }

  remove(payload: Buffer): void {
    const wanted = parseRoute(payload);
    const found = this.#routes.find((route) => isMeant(wanted, route));
    if (!found) fail('ESRCH');
    this.#routes = this.#routes.filter((route) => route !== found);
  }

  dump(payload: Buffer): readonly NetlinkMessage[] {
    const { family, protocol } = parseRouteHeader(payload);
    const table = tableOf(payload);
    const oif = u32Of(parseAttributes(payload, 12).get(RTA.OIF));
    if (family === AF.INET && !this.#hasTable) fail('ENOENT');
    return this.#routes
      .filter((route) => route.table === table)
      .filter(({ header }) => header.family === family && (protocol === 0 || header.protocol === protocol))
      .filter(({ ifindex }) => oif === undefined || ifindex === oif)
      .map(({ header, attributes }) => {
        const parts = [...attributes].map(([type, value]) => attribute(type, value));
        return message(RTM.NEWROUTE, Buffer.concat([routeHeader(header), ...parts, u32(RTA.TABLE, table)]));
      });
  }

  /** Routes over a link, of one family or of both. */
  dropLink(ifindex: number, family?: number): void {
    const goes = (route: FakeRoute) =>
      route.ifindex === ifindex && (family === undefined || family === route.header.family);
    this.#routes = this.#routes.filter((route) => !goes(route));
  }

  /** IPv4 routes go with their source; IPv6 routes lose it and stay. */
  dropSource(ip: IpAddress): void {
    this.#routes = this.#routes.flatMap((route) => {
      if (ipOf(route.attributes.get(RTA.PREFSRC)) !== ip) return [route];
      if (familyOf(ip) === 'ipv4') return [];
      const attributes = new Map(route.attributes);
      attributes.delete(RTA.PREFSRC);
      return [{ ...route, attributes }];
    });
  }
}

function parseRoute(payload: Buffer): FakeRoute {
  const header = parseRouteHeader(payload);
  const attributes = parseAttributes(payload, 12);
  const metric = u32Of(attributes.get(RTA.PRIORITY)) ?? (header.family === AF.INET6 ? 1024 : 0);
  const destination = attributes.get(RTA.DST)?.toString('hex') ?? '';
  // Routes without a device are on none of IPv4's, and on lo of IPv6's.
  const ifindex = u32Of(attributes.get(RTA.OIF)) ?? 1;
  const table = tableOf(payload);
  const id = `${header.family} ${destination}/${header.prefixLength} ${metric} table ${table}`;
  return { id, header, attributes, ifindex, table };
}

const tableOf = (payload: Buffer): number =>
  u32Of(parseAttributes(payload, 12).get(RTA.TABLE)) ?? parseRouteHeader(payload).table;

/** Whether a deletion means this route: what it does not say matches anything. */
function isMeant(wanted: FakeRoute, route: FakeRoute): boolean {
  const { header } = wanted;
  const same = (type: number) => {
    const asked = wanted.attributes.get(type);
    return asked === undefined || route.attributes.get(type)?.equals(asked) === true;
  };
  return (
    wanted.id === route.id &&
    header.protocol === route.header.protocol &&
    (header.type === 0 || header.type === route.header.type) &&
    (header.scope === ANY_SCOPE || header.family === AF.INET6 || header.scope === route.header.scope) &&
    [RTA.OIF, RTA.GATEWAY].every(same)
  );
}

function checkNexthop({ ifindex, header, attributes }: FakeRoute, { links, addresses }: Surroundings): void {
  const link = links.get(ifindex) ?? fail('ENODEV');
  if (!link.up) fail('ENETDOWN');
  const gateway = ipOf(attributes.get(RTA.GATEWAY));
  const source = ipOf(attributes.get(RTA.PREFSRC));
  if (source && !addresses.some(({ ip }) => ip === source)) fail('EINVAL');
  if (!gateway || header.flags & RTNH_F_ONLINK) return;
  const isReached = addresses.some(
    ({ ip, prefixLength }) => factsOf(ip) === factsOf(gateway) && containsIp(cidrOf(ip, prefixLength), gateway),
  );
  if (!isReached) fail(header.family === AF.INET ? 'ENETUNREACH' : 'EHOSTUNREACH');
}
