import type { Cidr } from '../../model/ip.ts';

/** What planning Services reads of the settings. */
export interface ServiceSettings {
  readonly 'services.mode': 'off' | 'auto' | 'ebpf' | 'iptables';
  readonly 'services.externalAddresses': readonly Cidr[];
  readonly 'services.nodePortAddresses': readonly Cidr[];
  readonly clusterCidrs: readonly Cidr[];
  readonly 'vxlan.port': number;
  /** URL, or empty. */
  readonly apiServer: string;
}
