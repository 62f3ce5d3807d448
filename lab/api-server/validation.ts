/** The few rules of the real server that matter to a network: names, labels, and the pod CIDRs of a Node. Pure. */

import { type Cidr, familyOf, parseCidr } from '../../agent/model/ip.ts';
import { type ApiObject, arrayAt, isJsonObject, type JsonObject, textAt, withField } from './objects.ts';
import { type Cause, forbiddenValue, invalidValue } from './status.ts';

export type NameRule = 'label' | 'service' | 'subdomain';

/** RFC 1123 label: at most 63 characters. */
const LABEL = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;
const NAME_RULES: Record<NameRule, { readonly maxLength: number; readonly expected: string }> = {
  label: { maxLength: 63, expected: 'must be a lower-case RFC 1123 label of at most 63 characters' },
  service: { maxLength: 63, expected: 'must be a lower-case RFC 1035 label of at most 63 characters' },
  subdomain: { maxLength: 253, expected: 'must be a lower-case RFC 1123 subdomain of at most 253 characters' },
};

export function isName(name: string, rule: NameRule): boolean {
  if (name.length > NAME_RULES[rule].maxLength) return false;
  // The real server bounds the length of a subdomain's labels by the whole only.
  if (rule !== 'subdomain') return LABEL.test(name) && (rule === 'label' || /^[a-z]/.test(name));
  return /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/.test(name);
}

/** Name, labels and annotations of any object, as the client sent them. */
export function validateMetadata(metadata: JsonObject, rule: NameRule): readonly Cause[] {
  const causes: Cause[] = [];
  const { name } = metadata as { name: string };
  if (!isName(name, rule)) causes.push(invalidValue('metadata.name', name, NAME_RULES[rule].expected));
  for (const field of ['labels', 'annotations']) {
    const map = metadata[field];
    if (map === undefined || map === null) continue;
    if (!isJsonObject(map) || !Object.values(map).every((value) => typeof value === 'string')) {
      causes.push(invalidValue(`metadata.${field}`, map, 'must be a map of text to text'));
    }
  }
  return causes;
}

/** `podCIDR` and `podCIDRs` always agree: the older field wins where they differ (core/v1 conversion of NodeSpec). */
export function alignPodCidrs(node: ApiObject): ApiObject {
  const first = textAt(node, 'spec', 'podCIDR');
  const all = arrayAt(node, 'spec', 'podCIDRs');
  if (first === '' && all.length === 0) return node;
  const podCIDRs = first !== '' && first !== all[0] ? [first] : all;
  return withField(node, 'spec', { ...(node['spec'] as JsonObject), podCIDR: podCIDRs[0], podCIDRs });
}

/** Pod CIDRs are valid, at most one a family, and never change once set. */
export function validatePodCidrs(node: ApiObject, previous: ApiObject | undefined): readonly Cause[] {
  const wanted = arrayAt(node, 'spec', 'podCIDRs');
  const before = arrayAt(previous, 'spec', 'podCIDRs');
  if (before.length > 0 && (before.length !== wanted.length || before.some((cidr, i) => cidr !== wanted[i]))) {
    return [forbiddenValue('spec.podCIDRs', 'node updates may not change podCIDR except from "" to valid')];
  }
  const cidrs = wanted.map((text) => (typeof text === 'string' ? parseCidr(text) : undefined));
  const causes = cidrs.flatMap((cidr, i) =>
    cidr ? [] : [invalidValue(`spec.podCIDRs[${i}]`, wanted[i], 'must be a valid CIDR')],
  );
  if (causes.length > 0) return causes;
  const families = new Set((cidrs as Cidr[]).map(familyOf));
  return families.size === wanted.length
    ? []
    : [invalidValue('spec.podCIDRs', wanted, 'may specify no more than one CIDR for each IP family')];
}
