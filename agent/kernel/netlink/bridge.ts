/** The link type `bridge`, as a device that holds addresses: it has no ports. */
import type { BridgeLink } from '../../model/items.ts';
import { closedSysctls, TOWARDS_PODS, writeSysctls } from './link-conf.ts';
import type { LinkType } from './link-type.ts';

/** Everything can be changed in place, so a bridge is never made anew. */
export const bridgeType: LinkType<BridgeLink> = {
  type: 'bridge',
  data: () => [],
  change: () => [],
  readBack: ({ name, alias, mac, mtuBytes }) => (mac ? { type: 'bridge', name, alias, mac, mtuBytes } : undefined),
  same: () => true,
  ipv4: TOWARDS_PODS,
  configure({ name }, { sysctls }) {
    const enabled = { path: `net/ipv6/conf/${name}/disable_ipv6`, value: '0' };
    writeSysctls(sysctls, [...closedSysctls(name), enabled], { needed: false });
  },
  rivalAdvice: () => undefined,
  missingAdvice: 'modprobe bridge, or set podLink to routed',
  nameAdvice: 'remove it, or set podLink to routed',
};
