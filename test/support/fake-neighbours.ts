/** Neighbours and forwarding entries of a fake network namespace. */
import { attribute, parseAttributes, u32Of } from '../../agent/kernel/netlink/attributes.ts';
import type { NetlinkMessage } from '../../agent/kernel/netlink/message.ts';
import { NLM } from '../../agent/kernel/netlink/message.ts';
import { AF, ipOf, NDA, NTF_SELF, NUD_PERMANENT, neighbourHeader, RTM } from '../../agent/kernel/netlink/rtnetlink.ts';
import { bytesOf, type IpAddress } from '../../agent/model/ip.ts';
import { macBytes } from '../../agent/model/mac.ts';
import type { FakeLink } from './fake-links.ts';
import { fail, message } from './fake-routes.ts';

interface FakeNeighbour {
  readonly ifindex: number;
  /** AF_INET, AF_INET6, or AF_BRIDGE for a forwarding entry. */
  readonly family: number;
  /** Address of a neighbour, hardware address of a forwarding entry. */
  readonly id: string;
  readonly payload: Buffer;
}

type Links = ReadonlyMap<number, FakeLink>;

export class FakeNeighbours {
  #entries: FakeNeighbour[] = [];

  change(type: number, payload: Buffer, flags: number, links: Links): void {
    const family = payload.readUInt8(0);
    const ifindex = payload.readInt32LE(4);
    const link = links.get(ifindex) ?? fail('ENODEV');
    if (family === AF.BRIDGE && link.kind !== 'vxlan') fail('ENOTSUP');
    const attributes = parseAttributes(payload, 12);
    const id = family === AF.BRIDGE ? attributes.get(NDA.LLADDR)?.toString('hex') : ipOf(attributes.get(NDA.DST));
    if (id === undefined) fail('EINVAL');
    const found = this.#entries.find(
      (other) => other.ifindex === ifindex && other.family === family && other.id === id,
    );
    if (type === RTM.DELNEIGH && !found) fail('ENOENT');
    // The default destination may be several.
    if (family === AF.BRIDGE && id === '000000000000' && flags & NLM.REPLACE) fail('ENOTSUP');
    if (type === RTM.NEWNEIGH && found && flags & NLM.EXCL) fail('EEXIST');
    this.#entries = this.#entries.filter((other) => other !== found);
    if (type === RTM.NEWNEIGH) this.#entries.push({ ifindex, family, id, payload });
  }

  dump(payload: Buffer): readonly NetlinkMessage[] {
    const on = u32Of(parseAttributes(payload, 12).get(NDA.IFINDEX));
    return this.#entries
      .filter(({ family, ifindex }) => family === payload[0] && (on === undefined || ifindex === on))
      .map((entry) => message(RTM.NEWNEIGH, entry.payload));
  }

  /** Forgets the entries of these families on a link. */
  drop(link: FakeLink, families: readonly number[]): void {
    this.#entries = this.#entries.filter(
      ({ ifindex, family }) => ifindex !== link.ifindex || !families.includes(family),
    );
  }
}

/** A forwarding entry as the kernel would report it, for tests that put a stranger's in. */
export const fdbPayload = (ifindex: number, mac: Parameters<typeof macBytes>[0], destination: IpAddress): Buffer =>
  Buffer.concat([
    neighbourHeader(AF.BRIDGE, { ifindex, state: NUD_PERMANENT, flags: NTF_SELF }),
    attribute(NDA.LLADDR, macBytes(mac)),
    attribute(NDA.DST, bytesOf(destination)),
  ]);
