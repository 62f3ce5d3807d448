/** API objects as the server keeps them: deeply frozen JSON, of which it understands the metadata only. */

export interface JsonObject {
  readonly [field: string]: unknown;
}

export interface Metadata extends JsonObject {
  readonly name: string;
  readonly namespace?: string;
  readonly generateName?: string;
  readonly uid?: string;
  /** Decimal text, as clients must treat it as opaque. */
  readonly resourceVersion?: string;
  readonly generation?: number;
  /** RFC 3339, whole seconds. */
  readonly creationTimestamp?: string;
  readonly deletionTimestamp?: string;
  readonly deletionGracePeriodSeconds?: number;
  readonly labels?: Readonly<Record<string, string>>;
  readonly annotations?: Readonly<Record<string, string>>;
}

export interface ApiObject extends JsonObject {
  readonly kind: string;
  readonly apiVersion: string;
  readonly metadata: Metadata;
}

/** Where an object is found within its kind; the namespace of cluster-wide objects is ''. */
export interface ObjectRef {
  readonly namespace: string;
  readonly name: string;
}

export const isJsonObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

export const refOf = ({ metadata }: ApiObject): ObjectRef => ({
  namespace: metadata.namespace ?? '',
  name: metadata.name,
});

/** Map key of an object within its kind; sorted as text it gives the order of lists. */
export const keyOfRef = ({ namespace, name }: ObjectRef): string => `${namespace}/${name}`;

/** The value below a path of fields; undefined as soon as a part is missing. */
export function valueAt(value: unknown, ...path: readonly string[]): unknown {
  let found = value;
  for (const field of path) {
    if (!isJsonObject(found) || !Object.hasOwn(found, field)) return undefined;
    found = found[field];
  }
  return found;
}

/** The text below a path; '' for anything else, as field selectors and printed columns want it. */
export function textAt(value: unknown, ...path: readonly string[]): string {
  const found = valueAt(value, ...path);
  return typeof found === 'string' ? found : '';
}

/** The array below a path; empty for anything else. */
export function arrayAt(value: unknown, ...path: readonly string[]): readonly unknown[] {
  const found = valueAt(value, ...path);
  return Array.isArray(found) ? found : [];
}

/** A copy with one field set, or without it when the value is undefined. */
export function withField<T extends JsonObject>(object: T, field: string, value: unknown): T {
  const { [field]: _, ...rest } = object;
  return (value === undefined ? rest : { ...rest, [field]: value }) as T;
}

export function deepFreeze<T>(value: T): T {
  if (typeof value !== 'object' || value === null || Object.isFrozen(value)) return value;
  for (const part of Object.values(value)) deepFreeze(part);
  return Object.freeze(value);
}
