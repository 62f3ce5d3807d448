/**
 * API objects from `unknown` to the trimmed model. Nothing here throws: a field that is absent is empty, a field that is
 * unusable is a problem sentence, an object without a proper name is no object.
 */
import { IPS_ANNOTATION, type Node, type Pod } from '../model/cluster.ts';
import { type Cidr, containsIp, factsOf, familyOf, type IpAddress, parseCidr, parseIp } from '../model/ip.ts';

/** Annotation by which an administrator names a node's tunnel end: one address a family, comma separated. */
export const UNDERLAY_IP_ANNOTATION = 'tulle.dev/underlay-ip';

/** On the mirror of a static pod, by the kubelet alone; the hash is the uid that the runtime is told. */
const MIRROR_ANNOTATION = 'kubernetes.io/config.mirror';
const CONFIG_HASH_ANNOTATION = 'kubernetes.io/config.hash';

export interface Narrowed<T> {
  /** Absent when the object has no usable identity. */
  readonly value?: T;
  readonly problems: readonly string[];
}

/** Longer lists and texts than any honest object has are cut, so that no object costs much. */
const LIST_MAX = 64;
const TEXT_MAX = 253;

/** DNS-1123 subdomain, which the API server asks of the names of Nodes, Pods and namespaces. */
const OBJECT_NAME = /^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$/;

/** Year 9999: an object without creation time is younger than all others and wins nothing from them. */
const LAST_MS = 253_402_300_799_999;

export const isObjectName = (text: unknown): text is string => typeof text === 'string' && OBJECT_NAME.test(text);

/** The name under which an object is kept, for ones without and with a namespace; undefined when it has none. */
export function nodeKey(raw: unknown): string | undefined {
  const name = field(field(raw, 'metadata'), 'name');
  return isObjectName(name) ? name : undefined;
}
export function podKey(raw: unknown): string | undefined {
  const namespace = field(field(raw, 'metadata'), 'namespace');
  const name = nodeKey(raw);
  return isObjectName(namespace) && name !== undefined ? `${namespace}/${name}` : undefined;
}

export function narrowNode(raw: unknown): Narrowed<Node> {
  const name = nodeKey(raw);
  if (name === undefined) return nameless('Node', raw);
  const problems: string[] = [];
  const value: Node = {
    name,
    ...identity(raw, problems),
    podCidrs: Object.freeze(podCidrs(raw, problems)),
    internalIps: Object.freeze(internalIps(raw, problems)),
    underlayIps: Object.freeze(underlayIps(raw, problems)),
    problems: Object.freeze(problems),
  };
  return { value: Object.freeze(value), problems };
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

function identity(raw: unknown, problems: string[]): { readonly uid: string; readonly creationMs: number } {
  const metadata = field(raw, 'metadata');
  const created = field(metadata, 'creationTimestamp') ?? undefined;
  const parsed = typeof created === 'string' ? Date.parse(created) : Number.NaN;
  const valid = parsed >= 0 && parsed <= LAST_MS;
  if (created !== undefined && !valid)
    problems.push(`metadata.creationTimestamp is ${show(created)}: expected a time (RFC 3339)`);
  return { uid: text(field(metadata, 'uid')), creationMs: valid ? parsed : LAST_MS };
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

/** One element, or none and a problem. */
function parsed<T>(
  value: unknown,
  parse: (text: string) => T | undefined,
  at: string,
  expected: string,
  problems: string[],
): T[] {
  const result = typeof value === 'string' && value.length <= TEXT_MAX ? parse(value) : undefined;
  if (result !== undefined) return [result];
  problems.push(`${at} has ${show(value)}: expected ${expected}`);
  return [];
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

const HOST_IP = 'the unicast address of a host';

/** Unspecified and loopback addresses and IPv4-mapped ones (RFC 6890): no packet from another host arrives there. */
const NOT_A_HOST: readonly Cidr[] = ['0.0.0.0/8', '127.0.0.0/8', '::/128', '::1/128', '::ffff:0.0.0.0/96'] as Cidr[];

function parseHostIp(value: string): IpAddress | undefined {
  const ip = parseIp(value);
  if (ip === undefined || containsIp(factsOf(ip).multicast, ip)) return undefined;
  return NOT_A_HOST.some((cidr) => containsIp(cidr, ip)) ? undefined : ip;
}

function nameless<T>(kind: string, raw: unknown): Narrowed<T> {
  const metadata = field(raw, 'metadata');
  const at = `${show(field(metadata, 'namespace') ?? '')}/${show(field(metadata, 'name'))}`;
  return { problems: [`${kind} ${at} is left out: expected a name and namespace of DNS form`] };
}

/** A property of whatever may be an object. */
const field = (value: unknown, name: string): unknown =>
  typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[name] : undefined;

const list = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value.slice(0, LIST_MAX) : []);

/** Short text as it is; anything else is as good as absent. */
const text = (value: unknown): string => (typeof value === 'string' && value.length <= TEXT_MAX ? value : '');

/** Text from elsewhere, short and quoted, for a sentence. */
function show(value: unknown): string {
  if (typeof value !== 'string') return value === null ? 'null' : Array.isArray(value) ? 'an array' : typeof value;
  return JSON.stringify(value.length <= 60 ? value : `${value.slice(0, 60)}…`);
}
