/**
 * API objects from `unknown` to the trimmed model. Nothing here throws: a field that is absent is empty, a field that is
 * unusable is a problem sentence, an object without a proper name is no object.
 */
import { IPS_ANNOTATION, type Node, type Pod } from '../model/cluster.ts';
import { type Cidr, familyOf, type IpAddress, parseCidr, parseIp } from '../model/ip.ts';
import {
  field,
  HOST_IP,
  identity,
  isObjectName,
  LIST_MAX,
  list,
  type Narrowed,
  nameKey,
  nameless,
  parsed,
  parseHostIp,
  TEXT_MAX,
  text,
} from './fields.ts';

/** Annotation by which an administrator names a node's tunnel end: one address a family, comma separated. */
export const UNDERLAY_IP_ANNOTATION = 'tulle.dev/underlay-ip';

/** kubernetes.io/docs/reference/labels-annotations-taints */
const ZONE_LABEL = 'topology.kubernetes.io/zone';

/** Of the cluster autoscaler, some minutes before it removes the machine. */
const LEAVING_TAINT = 'ToBeDeletedByClusterAutoscaler';

/** On the mirror of a static pod, by the kubelet alone; the hash is the uid that the runtime is told. */
const MIRROR_ANNOTATION = 'kubernetes.io/config.mirror';
const CONFIG_HASH_ANNOTATION = 'kubernetes.io/config.hash';

export function narrowNode(raw: unknown): Narrowed<Node> {
  const name = nameKey(raw);
  if (name === undefined) return nameless('Node', raw);
  const problems: string[] = [];
  const zone = text(field(field(field(raw, 'metadata'), 'labels'), ZONE_LABEL));
  const value: Node = {
    name,
    ...identity(raw, problems),
    podCidrs: Object.freeze(podCidrs(raw, problems)),
    internalIps: Object.freeze(internalIps(raw, problems)),
    underlayIps: Object.freeze(underlayIps(raw, problems)),
    ...(zone !== '' && { zone }),
    ...(isLeaving(raw) && { leaving: true }),
    problems: Object.freeze(problems),
  };
  return { value: Object.freeze(value), problems };
}

function isLeaving(raw: unknown): boolean {
  const deleted = field(field(raw, 'metadata'), 'deletionTimestamp');
  const taints = list(field(field(raw, 'spec'), 'taints'));
  return typeof deleted === 'string' || taints.some((taint) => field(taint, 'key') === LEAVING_TAINT);
}

export function narrowPod(raw: unknown): Narrowed<Pod> {
  const name = field(field(raw, 'metadata'), 'name');
  const namespace = field(field(raw, 'metadata'), 'namespace');
  if (!isObjectName(name) || !isObjectName(namespace)) return nameless('Pod', raw);
  const problems: string[] = [];
  const value: Pod = {
    namespace,
    name,
    ...identity(raw, problems),
    nodeName: text(field(field(raw, 'spec'), 'nodeName')),
    hostNetwork: field(field(raw, 'spec'), 'hostNetwork') === true,
    phase: text(field(field(raw, 'status'), 'phase')),
    podIps: Object.freeze(podIps(raw, problems)),
    ...podAnnotations(field(field(raw, 'metadata'), 'annotations')),
  };
  return { value: Object.freeze(value), problems };
}

function podAnnotations(annotations: unknown): Pick<Pod, 'ipsAnnotation' | 'staticPodUid'> {
  const ips = field(annotations, IPS_ANNOTATION);
  const isMirror = field(annotations, MIRROR_ANNOTATION) !== undefined;
  const uid = isMirror ? text(field(annotations, CONFIG_HASH_ANNOTATION)) : '';
  return {
    ...(typeof ips === 'string' && { ipsAnnotation: ips.length <= TEXT_MAX ? ips : `${ips.slice(0, TEXT_MAX)}…` }),
    ...(uid !== '' && { staticPodUid: uid }),
  };
}

function podCidrs(raw: unknown, problems: string[]): Cidr[] {
  const spec = field(raw, 'spec');
  const several = list(field(spec, 'podCIDRs'));
  const one = field(spec, 'podCIDR');
  const texts = several.length > 0 ? several : one === undefined || one === null || one === '' ? [] : [one];
  const cidrs = texts.flatMap((value) => parsed(value, parseCidr, 'spec.podCIDRs', 'a CIDR', problems));
  return firstOfFamily(cidrs, 'spec.podCIDRs', problems);
}

function internalIps(raw: unknown, problems: string[]): IpAddress[] {
  const internal = list(field(field(raw, 'status'), 'addresses')).filter(
    (entry) => field(entry, 'type') === 'InternalIP',
  );
  const at = 'status.addresses, InternalIP';
  const ips = internal.flatMap((entry) => parsed(field(entry, 'address'), parseHostIp, at, HOST_IP, problems));
  return [...new Set(ips)];
}

function underlayIps(raw: unknown, problems: string[]): IpAddress[] {
  const annotation = field(field(field(raw, 'metadata'), 'annotations'), UNDERLAY_IP_ANNOTATION) ?? '';
  const at = `annotation ${UNDERLAY_IP_ANNOTATION}`;
  const texts =
    typeof annotation === 'string' ? annotation.split(',', LIST_MAX).map((part) => part.trim()) : [annotation];
  const given = texts.filter((part) => part !== '');
  const ips = given.flatMap((part) => parsed(part, parseHostIp, at, HOST_IP, problems));
  return firstOfFamily(ips, at, problems);
}

function podIps(raw: unknown, problems: string[]): IpAddress[] {
  const status = field(raw, 'status');
  const several = list(field(status, 'podIPs')).map((entry) => field(entry, 'ip'));
  const one = field(status, 'podIP');
  const texts = several.length > 0 ? several : one === undefined || one === null || one === '' ? [] : [one];
  return [...new Set(texts.flatMap((value) => parsed(value, parseIp, 'status.podIPs', 'an IP address', problems)))];
}

function firstOfFamily<T extends IpAddress | Cidr>(values: readonly T[], at: string, problems: string[]): T[] {
  const kept: T[] = [];
  for (const value of values) {
    const former = kept.find((other) => familyOf(other) === familyOf(value));
    if (former === undefined) kept.push(value);
    else problems.push(`${at} has ${value} beside ${former}: expected at most one a family, so the first is used`);
  }
  return kept;
}
