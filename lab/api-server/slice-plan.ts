/** Which slices a Service needs, given those that it has: as few as possible are touched. Pure. */

import type { Endpoint, EndpointGroup } from './endpoints.ts';
import { type ApiObject, arrayAt, type JsonObject, valueAt } from './objects.ts';
import type { IpFamilyName } from './service-spec.ts';

/** What is in a slice; both are null in one that stands for a Service without endpoints. */
export interface SliceContent {
  readonly addressType: IpFamilyName;
  readonly ports: readonly JsonObject[] | null;
  readonly endpoints: readonly Endpoint[] | null;
}

export interface SlicePlan {
  /** Slices that stay, with what is to be in them. */
  readonly keep: readonly { readonly slice: ApiObject; readonly content: SliceContent }[];
  readonly create: readonly SliceContent[];
  readonly remove: readonly ApiObject[];
}

/** More are possible in the API; this is what the real controller fills a slice with. */
export const MAX_ENDPOINTS_PER_SLICE = 100;

/** `existing`: slices of this family that belong to the Service. An endpoint stays in the slice where it is. */
export function planSlices(
  existing: readonly ApiObject[],
  groups: readonly EndpointGroup[],
  addressType: IpFamilyName,
): SlicePlan {
  const unused = new Set(existing);
  const keep: { slice: ApiObject; content: SliceContent }[] = [];
  const create: SliceContent[] = [];
  for (const { ports, endpoints } of groups) {
    const key = portsKey(ports);
    const slices = existing.filter((slice) => portsKey(valueAt(slice, 'ports')) === key);
    for (const [slice, content] of pack(slices, endpoints)) {
      if (slice) unused.delete(slice);
      if (slice) keep.push({ slice, content: { addressType, ports, endpoints: content } });
      else create.push({ addressType, ports, endpoints: content });
    }
  }
  if (keep.length + create.length === 0) create.push({ addressType, ports: null, endpoints: null });
  // What would be removed is made into what would be created: watchers see one change in place of two.
  const remove = [...unused];
  while (remove.length > 0 && create.length > 0)
    keep.push({ slice: remove.shift() as ApiObject, content: create.shift() as SliceContent });
  return { keep, create, remove };
}

const portsKey = (ports: unknown): string => JSON.stringify(ports ?? null);

/** Who is where; undefined stands for a slice that is yet to be made. Slices that become empty are not listed. */
function pack(
  slices: readonly ApiObject[],
  endpoints: readonly Endpoint[],
): readonly (readonly [ApiObject | undefined, readonly Endpoint[]])[] {
  const homeless = new Map(endpoints.map((endpoint) => [endpoint.targetRef.uid, endpoint]));
  const filled = slices.map((slice) => [slice, takeThoseOf(slice, homeless)] as [ApiObject | undefined, Endpoint[]]);
  const rest = [...homeless.values()];
  // Slices that change anyway come first.
  const byNeed = filled.toSorted(([a, x], [b, y]) => Number(isUntouched(a, x)) - Number(isUntouched(b, y)));
  for (const [, content] of byNeed) content.push(...rest.splice(0, MAX_ENDPOINTS_PER_SLICE - content.length));
  while (rest.length > 0) filled.push([undefined, rest.splice(0, MAX_ENDPOINTS_PER_SLICE)]);
  return filled.filter(([, content]) => content.length > 0);
}

function takeThoseOf(slice: ApiObject, homeless: Map<string, Endpoint>): Endpoint[] {
  return arrayAt(slice, 'endpoints').flatMap((present) => {
    const uid = String(valueAt(present, 'targetRef', 'uid'));
    const endpoint = homeless.get(uid);
    homeless.delete(uid);
    return endpoint ?? [];
  });
}

const isUntouched = (slice: ApiObject | undefined, content: readonly Endpoint[]): boolean =>
  content.length > 0 && content.length === arrayAt(slice, 'endpoints').length;
