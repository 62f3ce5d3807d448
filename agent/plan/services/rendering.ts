/** The one place that chooses how frontends get into the kernel: for packets or for sockets, as the mode says. */
import type { FragmentId } from '../../model/fragment.ts';
import type { BackendSet, Frontend } from '../../model/services.ts';
import { type IptablesItems, iptablesItems } from './iptables/iptables-items.ts';
import type { ServiceSettings } from './settings.ts';
import { socketItems } from './socket-items.ts';

/** What an owner's fragment consists of, and the shared fragments of the tree of chains that leads to it. */
export type Rendered = IptablesItems;

/**
 * `owner`: the fragment that will hold the items. Also where sockets translate, packets come from elsewhere to the addresses
 * of nodes and load balancers. To cluster addresses only sockets lead then, unless those of pods are left alone.
 */
export function rendering(
  owner: FragmentId,
  { frontends, sets }: { readonly frontends: readonly Frontend[]; readonly sets: readonly BackendSet[] },
  settings: ServiceSettings,
): Rendered {
  if (settings['services.mode'] === 'iptables')
    return iptablesItems(owner, frontends, sets, { clusterAddresses: true });
  const packets = iptablesItems(owner, frontends, sets, {
    clusterAddresses: settings['services.ebpf.scope'] === 'host',
  });
  return { ...packets, items: [...socketItems(frontends, sets), ...packets.items] };
}
