/** Which pods still use the network, told by the kernel and the records alone. */
import { deleteQueueName } from '../../cni/protocol.ts';
import { attachmentName } from '../model/attachment.ts';
import type { PodLink } from '../model/items.ts';
import { ALIAS_PREFIX, podLinkName } from '../model/kernel-names.ts';
import type { PodRecord } from './records.ts';

export interface PodEvidence {
  readonly records: readonly PodRecord[];
  /** Every own pod link that the kernel has. */
  readonly links: readonly (PodLink & { readonly isDown: boolean })[];
  /** File names in the queue of deletions. */
  readonly queued: readonly string[];
  /** Whether the recorded network namespace still answers. */
  readonly hasNamespace: (record: PodRecord) => boolean;
}

/**
 * Names of attachments, sorted. One lives while its link or its namespace exists and its runtime has not deleted it; a link
 * without a record does unless it is down: a DEL that was cut short leaves it so.
 */
export function livePods({ records, links, queued, hasNamespace }: PodEvidence): readonly string[] {
  const linkOf = ({ containerId, ifName }: PodRecord) => podLinkName(containerId, ifName);
  const existing = new Set(links.map(({ name }) => name));
  const recorded = new Set(records.map(linkOf));
  const isDeleted = ({ containerId, ifName }: PodRecord) => queued.includes(deleteQueueName(containerId, ifName));
  const live = records.filter((record) => !isDeleted(record) && (existing.has(linkOf(record)) || hasNamespace(record)));
  const unrecorded = links.filter(({ name, isDown }) => !isDown && !recorded.has(name));
  const names = unrecorded.map(({ alias }) => alias.slice(`${ALIAS_PREFIX}pod:`.length));
  return [...live.map(attachmentName), ...names].sort();
}
