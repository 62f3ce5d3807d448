/** Neighbours and forwarding entries of a fake network namespace. */
import { attribute, parseAttributes, u32Of } from '../../agent/kernel/netlink/attributes.ts';
import type { NetlinkMessage } from '../../agent/kernel/netlink/message.ts';
import { NLM } from '../../agent/kernel/netlink/message.ts';
import {
  AF,
  ipOf,
  NDA,
  NTF_MASTER,
  NTF_SELF,
  NUD_PERMANENT,
  neighbourHeader,
  RTM,
} from '../../agent/kernel/netlink/rtnetlink.ts';
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
    if (family === AF.BRIDGE && !takesEntries(link, payload)) fail('ENOTSUP');
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

  dump(payload: Buffer, links: Links): readonly NetlinkMessage[] {
    const attributes = parseAttributes(payload, 12);
    const [on, master] = [NDA.IFINDEX, NDA.MASTER].map((type) => u32Of(attributes.get(type)));
    return this.#entries
      .filter(({ family, ifindex }) => family === payload[0] && (on === undefined || ifindex === on))
      .filter(({ ifindex }) => master === undefined || links.get(ifindex)?.masterIfindex === master)
      .map((entry) => message(RTM.NEWNEIGH, reported(entry.payload)));
  }

  /** Forgets the entries of these families on a link. */
  drop(link: FakeLink, families: readonly number[]): void {
    this.#entries = this.#entries.filter(
      ({ ifindex, family }) => ifindex !== link.ifindex || !families.includes(family),
    );
  }
}

/** A forwarding entry is a device's own, or that of the bridge of which the device is a port. */
const takesEntries = (link: FakeLink, payload: Buffer): boolean =>
  payload.readUInt8(10) & NTF_MASTER ? link.masterIfindex !== 0 : link.kind === 'vxlan';

/** That an entry is the bridge's shows otherwise than by a flag. */
function reported(payload: Buffer): Buffer {
  const copy = Buffer.from(payload);
  copy.writeUInt8(copy.readUInt8(10) & ~NTF_MASTER, 10);
  return copy;
}

/** A forwarding entry as the kernel would report it, for tests that put a stranger's in. */
export const fdbPayload = (ifindex: number, mac: Parameters<typeof macBytes>[0], destination: IpAddress): Buffer =>
  Buffer.concat([
    neighbourHeader(AF.BRIDGE, { ifindex, state: NUD_PERMANENT, flags: NTF_SELF }),
    attribute(NDA.LLADDR, macBytes(mac)),
    attribute(NDA.DST, bytesOf(destination)),
  ]);
