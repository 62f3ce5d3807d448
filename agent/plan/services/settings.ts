import type { Cidr } from '../../model/ip.ts';

/** What planning Services reads of the settings. */
export interface ServiceSettings {
  readonly 'services.mode': 'off' | 'auto' | 'ebpf' | 'iptables';
  readonly 'services.ebpf.scope': 'all' | 'host';
  readonly 'services.externalAddresses': readonly Cidr[];
  readonly 'services.nodePortAddresses': readonly Cidr[];
  /** 0: none. */
  readonly 'services.healthPort': number;
  readonly clusterCidrs: readonly Cidr[];
  readonly 'vxlan.port': number;
  /** URL, or empty. */
  readonly apiServer: string;
}
