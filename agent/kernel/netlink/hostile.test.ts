/** Read-backs of messages that are wrong in any way: they never throw, and never take a stranger's object for Tulle's. */
import test from 'ava';
import fc from 'fast-check';
import { hostileBytes } from '../../../test/support/hostile-bytes.ts';
import { type Cidr, type IpAddress, parseCidr } from '../../model/ip.ts';
import { item, type Kind, keyOf, type Link, type Objects } from '../../model/items.ts';
import { type MacAddress, macBytes } from '../../model/mac.ts';
import type { Change } from '../../reconcile/types.ts';
import { addressKind } from './address.ts';
import { attribute, nested, plainText, text, u8, u16Be, u32 } from './attributes.ts';
import { readPort, renderPort } from './bridge.ts';
import { fdbKind } from './fdb.ts';
import { linkDriver } from './link.ts';
import { ipv4ConfAlteration } from './link-conf.ts';
import { Links } from './links.ts';
import type { NetlinkClient, NetlinkMessage } from './message.ts';
import { neighbourKind } from './neighbour.ts';
import { readForwarding, readNetconf } from './netconf.ts';
import type { ObjectKind } from './object-driver.ts';
import type { LinkReaper } from './reaper.ts';
import { routeKind } from './route.ts';
import { AF, IFF_UP, IFLA, linkHeader, RTM, readLinkFacts } from './rtnetlink.ts';

const RUNS = { numRuns: 2000 };
const MAC = '02:54:75:6c:6c:65' as MacAddress;
const IPS = ['10.84.1.0', 'fd84:0:0:1::'] as readonly string[] as readonly IpAddress[];

interface Named {
  readonly ifindex: number;
  readonly name: string;
  readonly alias: string;
  readonly kind: string;
  readonly data?: readonly Buffer[];
}

const VXLAN_DATA = [u32(1, 84), u16Be(15, 8472), u8(7, 0), attribute(4, Buffer.of(192, 0, 2, 1))];

/** Own ones by name and alias, and strangers that lack one of the two. */
const LINKS: readonly Named[] = [
  { ifindex: 1, name: 'tulle.84', alias: 'tulle:vxlan', kind: 'vxlan', data: VXLAN_DATA },
  { ifindex: 2, name: 'tulle0', alias: 'tulle:bridge', kind: 'bridge', data: [u32(5, 0), u8(7, 0), u8(23, 0)] },
  { ifindex: 3, name: 'tl0123456789ab', alias: 'tulle:pod:{}', kind: 'veth' },
  { ifindex: 4, name: 'eth0', alias: '', kind: '' },
  { ifindex: 5, name: 'tulle.85', alias: '', kind: 'vxlan', data: VXLAN_DATA },
  { ifindex: 6, name: 'flannel.1', alias: 'tulle:vxlan', kind: 'vxlan', data: VXLAN_DATA },
  { ifindex: 7, name: 'tlcdef01234567', alias: 'mine', kind: 'veth' },
  { ifindex: 8, name: 'tulle-tun', alias: 'tulle:tun', kind: 'tun', data: [u32(1, 0), u8(3, 1), u8(6, 1)] },
];
const OWN_NODE_LINKS = ['tulle-tun', 'tulle.84', 'tulle0'];
const OWN_POD_LINKS = ['tl0123456789ab'];

const linkPayload = ({ ifindex, name, alias, kind, data = [] }: Named): Buffer =>
  Buffer.concat([
    linkHeader({ ifindex, flags: IFF_UP }),
    text(IFLA.IFNAME, name),
    u32(IFLA.MTU, 1450),
    attribute(IFLA.ADDRESS, macBytes(MAC)),
    plainText(IFLA.IFALIAS, alias),
    nested(IFLA.LINKINFO, text(IFLA.INFO_KIND, kind), nested(IFLA.INFO_DATA, ...data)),
    nested(IFLA.AF_SPEC, nested(AF.INET, attribute(IFLA.INET_CONF, Buffer.alloc(128)))),
  ]);

const message = (type: number, payload: Buffer): NetlinkMessage => ({ type, flags: 0, port: 0, payload });

function indexOfAll(): Links {
  const links = new Links({} as NetlinkClient);
  for (const link of LINKS) links.see(message(RTM.NEWLINK, linkPayload(link)));
  return links;
}
const links = indexOfAll();

function rendered<K extends Kind>(kind: ObjectKind<K>, value: Objects[K], ifindex: number): Uint8Array {
  const made = item(kind.kind, value);
  const change = { action: 'create', kind: kind.kind, key: made.key, item: made } as Change<K>;
  return kind.render(change, () => ifindex).payload;
}

const onEveryLink = <T>(make: (link: string, ip: IpAddress, ifindex: number) => T): readonly T[] =>
  LINKS.flatMap(({ name, ifindex }) => IPS.map((ip) => make(name, ip, ifindex)));

interface Subject {
  readonly kind: ObjectKind<Kind>;
  readonly types: readonly number[];
  readonly right: readonly Uint8Array[];
  /** What only the message itself can say about whose the object is. */
  readonly isOurs: (value: Objects[Kind], payload: Buffer) => boolean;
}

const linkOf = (value: unknown): string => (value as { link: string }).link;

const SUBJECTS = [
  {
    kind: addressKind,
    types: [RTM.NEWADDR, RTM.DELADDR],
    right: onEveryLink((link, ip, ifindex) => rendered(addressKind, { link, ip, prefixLength: 32 }, ifindex)),
    isOurs: (value: unknown) => OWN_NODE_LINKS.includes(linkOf(value)),
  },
  {
    kind: neighbourKind,
    types: [RTM.NEWNEIGH, RTM.DELNEIGH],
    right: onEveryLink((link, ip, ifindex) => rendered(neighbourKind, { link, ip, mac: MAC }, ifindex)),
    isOurs: (value: unknown) => [...OWN_NODE_LINKS, ...OWN_POD_LINKS].includes(linkOf(value)),
  },
  {
    kind: fdbKind,
    types: [RTM.NEWNEIGH, RTM.DELNEIGH],
    right: [
      ...onEveryLink((link, ip, ifindex) => rendered(fdbKind, { link, mac: MAC, destination: ip }, ifindex)),
      ...onEveryLink((link, _, ifindex) => rendered(fdbKind, { link, mac: MAC }, ifindex)),
    ],
    isOurs: (value: unknown) => ['tulle.84', ...OWN_POD_LINKS].includes(linkOf(value)),
  },
  {
    kind: routeKind,
    types: [RTM.NEWROUTE, RTM.DELROUTE],
    right: onEveryLink((link, ip, ifindex) =>
      rendered(
        routeKind,
        { destination: `${ip}/${ip.includes(':') ? 64 : 24}` as Cidr, metric: 5, type: 'unicast', link, gateway: ip },
        ifindex,
      ),
    ),
    // struct rtmsg: rtm_protocol.
    isOurs: (value: unknown, payload: Buffer) =>
      payload[5] === 84 && parseCidr((value as { destination: Cidr }).destination) !== undefined,
  },
] as unknown as readonly Subject[];

for (const { kind, types, right, isOurs } of SUBJECTS) {
  test(`${kind.kind}: wrong messages are read as nothing or as an own object`, (t) => {
    let read = 0;
    fc.assert(
      fc.property(fc.constantFrom(...types), hostileBytes(right), (type, payload) => {
        const value = kind.readBack(message(type, payload), links);
        if (!value) return true;
        read++;
        kind.isGone(message(type, payload));
        return keyOf(kind.kind, value).startsWith(`${kind.kind} `) && isOurs(value, payload);
      }),
      RUNS,
    );
    t.true(read > 0, 'some of them are still read');
  });
}

/** As the driver lists it when a dump has just these messages. */
async function listedLinks(payloads: readonly Buffer[]): Promise<readonly Link[]> {
  const client = { dump: async () => payloads.map((payload) => message(RTM.NEWLINK, payload)) };
  const options = {
    client: client as unknown as NetlinkClient,
    links: new Links(client as unknown as NetlinkClient),
    reaper: {} as LinkReaper,
    ethtool: { readTxChecksum: () => true, writeTxChecksum: () => {} },
    sysctls: { read: () => undefined, write: () => {} },
  };
  const driver = linkDriver(options as unknown as Parameters<typeof linkDriver>[0]);
  return [...(await driver.list(new AbortController().signal)).values()];
}

test('link: of wrong messages only what has both marks is listed', async (t) => {
  t.deepEqual((await listedLinks(LINKS.map(linkPayload))).map(({ name }) => name).sort(), OWN_NODE_LINKS);
  const data = fc.array(
    fc.tuple(fc.nat(30), fc.uint8Array({ maxLength: 5 })).map(([type, bytes]) => attribute(type, bytes)),
  );
  const oddData = fc
    .tuple(fc.constantFrom(...LINKS), data)
    .map(([link, odd]) => linkPayload({ ...link, data: [...VXLAN_DATA, ...odd] }));
  const payloads = fc.array(fc.oneof(hostileBytes(LINKS.map(linkPayload)), oddData), { maxLength: 4 });
  await fc.assert(
    fc.asyncProperty(payloads, async (list) => {
      const found = await listedLinks(list);
      return found.every(
        ({ name, alias }) => /^tulle(\.\d+|-tun|0)$/.test(name) && /^tulle:/.test(alias) && !/^tulle:pod:/.test(alias),
      );
    }),
    RUNS,
  );
});

test('link facts, ports and settings: wrong messages never throw', (t) => {
  const port = Buffer.concat([linkHeader({ ifindex: 3 }), nested(IFLA.PROTINFO, renderPort())]);
  port[0] = AF.BRIDGE;
  const netconf = Buffer.concat([Buffer.of(AF.INET, 0, 0, 0), u32(1, 0xffffffff), u32(2, 1)]);
  const right = [port, netconf, ...LINKS.map(linkPayload)];
  fc.assert(
    fc.property(fc.constantFrom(RTM.NEWLINK, RTM.DELLINK, RTM.NEWNETCONF), hostileBytes(right), (type, payload) => {
      const facts = readLinkFacts({ type, payload });
      if (facts) ipv4ConfAlteration(facts);
      readPort(message(type, payload));
      readNetconf(message(type, payload));
      readForwarding(message(type, payload));
    }),
    RUNS,
  );
  t.truthy(readPort(message(RTM.NEWLINK, port)));
});
