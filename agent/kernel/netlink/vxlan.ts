/** The link type `vxlan` (RFC 7348; attribute numbers from linux/if_link.h, IFLA_VXLAN_*). */
import { bytesOf, familyOf } from '../../model/ip.ts';
import type { VxlanLink } from '../../model/items.ts';
import { attribute, u8, u16Be, u32, u32Of } from './attributes.ts';
import { TOWARDS_NODES } from './link-conf.ts';
import type { LinkType } from './link-type.ts';
import { isAltered } from './object-driver.ts';
import { ipOf, type LinkFacts } from './rtnetlink.ts';

const VXLAN = {
  ID: 1,
  GROUP: 2,
  LOCAL: 4,
  LEARNING: 7,
  PORT: 15,
  GROUP6: 16,
  LOCAL6: 17,
  COLLECT_METADATA: 25,
  GPE: 27,
} as const;

/**
 * No IFLA_VXLAN_LINK: outer packets follow the host's routing table, and the device survives the deletion of the underlay's
 * link (with it, the kernel takes the device along). The price is that the kernel does not work out the MTU; Tulle always
 * says it. UDP checksums stay at the kernel's default: none over IPv4, always over IPv6.
 */
export const vxlanType: LinkType<VxlanLink> = {
  type: 'vxlan',
  data: (link) => [u32(VXLAN.ID, link.vni), u16Be(VXLAN.PORT, link.port), u8(VXLAN.LEARNING, 0), localOf(link)],
  change(wanted, found) {
    if (isAltered(found)) return undefined;
    const sameTunnel =
      wanted.vni === found.vni && wanted.port === found.port && familyOf(wanted.local) === familyOf(found.local);
    if (!sameTunnel) return undefined;
    // A request that carries the VNI or the port is refused even when they are what they were.
    return wanted.local === found.local ? [] : [localOf(wanted)];
  },
  readBack(facts, { ethtool }) {
    const local = ipOf(facts.data.get(VXLAN.LOCAL)) ?? ipOf(facts.data.get(VXLAN.LOCAL6));
    const defect = defectOf(facts);
    const { name, alias, mac, mtuBytes } = facts;
    if (!local || !mac) return undefined;
    return {
      type: 'vxlan',
      name,
      alias,
      mac,
      mtuBytes,
      vni: vniOf(facts) ?? 0,
      port: portOf(facts) ?? 0,
      local,
      txChecksumOffload: ethtool.readTxChecksum(name) ?? false,
      ...(defect && { altered: defect }),
    };
  },
  same: (a, b) =>
    a.vni === b.vni && a.port === b.port && a.local === b.local && a.txChecksumOffload === b.txChecksumOffload,
  ipv4: TOWARDS_NODES,
  configure(wanted, { ethtool }) {
    if (ethtool.readTxChecksum(wanted.name) !== wanted.txChecksumOffload)
      ethtool.writeTxChecksum(wanted.name, wanted.txChecksumOffload);
  },
  rivalAdvice({ vni, port }, other) {
    if (other.kind !== 'vxlan' || vniOf(other) !== vni || portOf(other) !== port) return undefined;
    return `the VXLAN device ${other.name} has VNI ${vni} and port ${port} already: remove it, or set another VNI or port`;
  },
  missingAdvice: 'modprobe vxlan, or set backend to host-gw',
  nameAdvice: 'remove it, or set another VNI',
};

const localOf = ({ local }: VxlanLink): Buffer =>
  attribute(familyOf(local) === 'ipv4' ? VXLAN.LOCAL : VXLAN.LOCAL6, bytesOf(local));

/** What tells VXLAN devices apart; undefined for another device, and for one without a VNI of its own. */
export function vxlanIdentity(link: LinkFacts): { readonly vni: number; readonly port: number } | undefined {
  const [vni, port] = [vniOf(link), portOf(link)];
  return link.kind === 'vxlan' && vni !== undefined && port !== undefined ? { vni, port } : undefined;
}

const vniOf = ({ data }: LinkFacts): number | undefined => u32Of(data.get(VXLAN.ID));

function portOf({ data }: LinkFacts): number | undefined {
  const port = data.get(VXLAN.PORT);
  return port?.length === 2 ? port.readUInt16BE(0) : undefined;
}

/** What only another device could cure. */
function defectOf({ data }: LinkFacts): string | undefined {
  if (data.get(VXLAN.LEARNING)?.[0]) return 'learns addresses';
  if (data.has(VXLAN.GROUP) || data.has(VXLAN.GROUP6)) return 'has a default destination';
  if (data.get(VXLAN.COLLECT_METADATA)?.[0]) return 'is an external one';
  return data.has(VXLAN.GPE) ? 'speaks GPE' : undefined;
}
