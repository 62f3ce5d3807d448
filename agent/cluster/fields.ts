/** Fields of API objects, which may hold anything, as proper values. Nothing here throws. */
import { type Cidr, containsIp, factsOf, type IpAddress, parseIp } from '../model/ip.ts';

export interface Narrowed<T> {
  /** Absent when the object has no usable identity, or is no business of Tulle's. */
  readonly value?: T;
  readonly problems: readonly string[];
}

/** Longer lists and texts than any honest object has are cut, so that no object costs much. */
export const LIST_MAX = 64;
export const TEXT_MAX = 253;

/** DNS-1123 subdomain, which the API server asks of the names of Nodes, Pods and namespaces. */
const OBJECT_NAME = /^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$/;

/** Year 9999: an object without creation time is younger than all others and wins nothing from them. */
const LAST_MS = 253_402_300_799_999;

export const isObjectName = (text: unknown): text is string => typeof text === 'string' && OBJECT_NAME.test(text);

/** The name under which an object without a namespace is kept; undefined when it has none. */
export function nameKey(raw: unknown): string | undefined {
  const name = field(field(raw, 'metadata'), 'name');
  return isObjectName(name) ? name : undefined;
}

/** `<namespace>/<name>`, under which the others are. */
export function namespacedKey(raw: unknown): string | undefined {
  const namespace = field(field(raw, 'metadata'), 'namespace');
  const name = nameKey(raw);
  return isObjectName(namespace) && name !== undefined ? `${namespace}/${name}` : undefined;
}

export function identity(raw: unknown, problems: string[]): { readonly uid: string; readonly creationMs: number } {
  const metadata = field(raw, 'metadata');
  const created = field(metadata, 'creationTimestamp') ?? undefined;
  const parsed = typeof created === 'string' ? Date.parse(created) : Number.NaN;
  const valid = parsed >= 0 && parsed <= LAST_MS;
  if (created !== undefined && !valid)
    problems.push(`metadata.creationTimestamp is ${show(created)}: expected a time (RFC 3339)`);
  return { uid: text(field(metadata, 'uid')), creationMs: valid ? parsed : LAST_MS };
}

/** One element, or none and a problem. */
export function parsed<T>(
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

export const HOST_IP = 'the unicast address of a host';

/** Unspecified and loopback addresses and IPv4-mapped ones (RFC 6890): no packet from another host arrives there. */
const NOT_A_HOST: readonly Cidr[] = ['0.0.0.0/8', '127.0.0.0/8', '::/128', '::1/128', '::ffff:0.0.0.0/96'] as Cidr[];

export function parseHostIp(value: string): IpAddress | undefined {
  const ip = parseIp(value);
  if (ip === undefined || containsIp(factsOf(ip).multicast, ip)) return undefined;
  return NOT_A_HOST.some((cidr) => containsIp(cidr, ip)) ? undefined : ip;
}

export function nameless<T>(kind: string, raw: unknown): Narrowed<T> {
  const metadata = field(raw, 'metadata');
  const at = `${show(field(metadata, 'namespace') ?? '')}/${show(field(metadata, 'name'))}`;
  return { problems: [`${kind} ${at} is left out: expected a name and namespace of DNS form`] };
}

/** A property of whatever may be an object. */
export const field = (value: unknown, name: string): unknown =>
  typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[name] : undefined;

export const list = (value: unknown, max = LIST_MAX): readonly unknown[] =>
  Array.isArray(value) ? value.slice(0, max) : [];

/** Short text as it is; anything else is as good as absent. */
export const text = (value: unknown): string => (typeof value === 'string' && value.length <= TEXT_MAX ? value : '');

/** What came from elsewhere, short, text in quotes, for a sentence. */
export function show(value: unknown): string {
  if (typeof value === 'number' || value === null) return String(value);
  if (typeof value !== 'string') return Array.isArray(value) ? 'an array' : typeof value;
  return JSON.stringify(value.length <= 60 ? value : `${value.slice(0, 60)}…`);
}
