/** Pods that outlived the podCIDR of their node. */
import { attachmentName } from '../model/attachment.ts';
import { type Cidr, containsIp } from '../model/ip.ts';
import type { PodRecord } from './records.ts';

/** So many are named; a sentence has to be read. */
const NAMED = 10;

/** One sentence for people, with the remedy; undefined when every address is of a podCIDR. */
export function strayProblem(records: readonly PodRecord[], podCidrs: readonly Cidr[]): string | undefined {
  const strays = records.flatMap((record) => {
    const outside = record.ips.filter((ip) => !podCidrs.some((cidr) => containsIp(cidr, ip)));
    return outside.length > 0 ? [`${attachmentName(record)} (${outside.join(', ')})`] : [];
  });
  if (strays.length === 0) return undefined;
  const [subject, verb] = strays.length === 1 ? ['1 pod', 'has'] : [`${strays.length} pods`, 'have'];
  const more = strays.length > NAMED ? ` and ${strays.length - NAMED} more` : '';
  return `${subject} ${verb} addresses outside the node's podCIDR (${podCidrs.join(', ')}): ${strays.slice(0, NAMED).join(', ')}${more}; they keep them and reach others by the node's address, but other nodes have no route to them any more: re-create them`;
}
