import type { PodLink } from '../../model/items.ts';
import type { PodLinkDriverOptions } from './pod-link.ts';
export async function describePodLink(value: PodLink, options: Pick<PodLinkDriverOptions, 'client' | 'sysctls' | 'openPodNetns'>): Promise<readonly string[]> {
  return [String(value.name), String(Object.keys(options).length)];
}
