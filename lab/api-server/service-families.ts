/** Which IP families a Service has in a cluster that has these (KEP-563). Pure. */

import { isDeepStrictEqual } from 'node:util';
import { familyOf, parseIp } from '../../agent/model/ip.ts';
import { type IpFamilyName, isHeadless, type ServiceSpec } from './service-spec.ts';
import { type Cause, invalidValue } from './status.ts';

/** The spec with ipFamilyPolicy and ipFamilies filled in, or what is wrong with them. */
export type Families = { readonly spec: ServiceSpec } | { readonly causes: readonly Cause[] };

/** `configured`: the families of the cluster, the default one first. The spec is that of a valid Service, not ExternalName. */
export function decideFamilies(
  sent: ServiceSpec,
  before: ServiceSpec | undefined,
  configured: readonly IpFamilyName[],
): Families {
  const ipFamilyPolicy = sent.ipFamilyPolicy ?? before?.ipFamilyPolicy ?? defaultPolicy(sent);
  const policed: ServiceSpec = { ...sent, ipFamilyPolicy };
  const spec = before && ipFamilyPolicy === 'SingleStack' ? withoutSecond(policed, before) : policed;
  const causes = [...objectToPolicy(spec, before), ...objectToInferred(spec, configured)];
  if (causes.length > 0) return { causes };
  const given = [...(spec.ipFamilies ?? []), ...inferred(spec)];
  if (isManual(spec)) return { spec: { ...spec, ipFamilies: extended(spec, given, configured, ['IPv4', 'IPv6']) } };
  const objections = objectToCluster(spec, given, configured);
  if (objections.length > 0) return { causes: objections };
  return { spec: { ...spec, ipFamilies: extended(spec, given, configured, configured) } };
}

export const familyNameOf = (address: string): IpFamilyName | undefined => {
  const ip = parseIp(address);
  return ip && (familyOf(ip) === 'ipv4' ? 'IPv4' : 'IPv6');
};

/** Headless without a selector: its endpoints are made by hand, whatever the cluster has. */
const isManual = (spec: ServiceSpec): boolean => isHeadless(spec) && Object.keys(spec.selector ?? {}).length === 0;

const defaultPolicy = (spec: ServiceSpec): string => (isManual(spec) ? 'RequireDualStack' : 'SingleStack');

/** Turning a Service to SingleStack is enough to give up its second address. */
function withoutSecond(spec: ServiceSpec, before: ServiceSpec): ServiceSpec {
  const first = <T>(values: readonly T[] | undefined, former: readonly T[] | undefined): readonly T[] | undefined =>
    isDeepStrictEqual(values, former) ? values?.slice(0, 1) : values;
  const { clusterIPs, ipFamilies, ...rest } = spec;
  const kept = { clusterIPs: first(clusterIPs, before.clusterIPs), ipFamilies: first(ipFamilies, before.ipFamilies) };
  return {
    ...rest,
    ...(kept.clusterIPs && { clusterIPs: kept.clusterIPs }),
    ...(kept.ipFamilies && { ipFamilies: kept.ipFamilies }),
  };
}

const FIELDS = [
  ['clusterIPs', 'cluster IP'],
  ['ipFamilies', 'IP family'],
] as const;

const PLURALS = { clusterIPs: 'cluster IPs', ipFamilies: 'IP families' } as const;

function objectToPolicy(spec: ServiceSpec, before: ServiceSpec | undefined): readonly Cause[] {
  const policy = spec.ipFamilyPolicy;
  const counts = (field: 'clusterIPs' | 'ipFamilies') =>
    [spec[field]?.length ?? 0, before?.[field]?.length ?? 0] as const;
  return FIELDS.flatMap(([field, noun]) => {
    const [now, then] = counts(field);
    if (policy === 'SingleStack' && now === 2)
      return [
        policyCause(
          policy,
          `must be 'RequireDualStack' or 'PreferDualStack' when multiple ${PLURALS[field]} are specified`,
        ),
      ];
    if (policy !== 'SingleStack' && then === 2 && now === 1)
      return [policyCause(policy, `must be 'SingleStack' to release the secondary ${noun}`)];
    return [];
  });
}

const policyCause = (policy: string | undefined, why: string): Cause =>
  invalidValue('spec.ipFamilyPolicy', policy, why);

/** Families of the cluster IPs that ipFamilies does not name. */
function inferred({ clusterIPs = [], ipFamilies = [] }: ServiceSpec): readonly IpFamilyName[] {
  return clusterIPs.slice(ipFamilies.length).flatMap((address) => familyNameOf(address) ?? []);
}

function objectToInferred(spec: ServiceSpec, configured: readonly IpFamilyName[]): readonly Cause[] {
  return inferred(spec).flatMap((family, i) =>
    configured.includes(family)
      ? []
      : [
          invalidValue(
            `spec.clusterIPs[${i + (spec.ipFamilies?.length ?? 0)}]`,
            spec.clusterIPs,
            `${family} is not configured on this cluster`,
          ),
        ],
  );
}

function objectToCluster(
  { ipFamilyPolicy }: ServiceSpec,
  given: readonly IpFamilyName[],
  configured: readonly IpFamilyName[],
): readonly Cause[] {
  const policy =
    ipFamilyPolicy === 'RequireDualStack' && configured.length < 2
      ? [policyCause(ipFamilyPolicy, 'this cluster is not configured for dual-stack services')]
      : [];
  return [
    ...policy,
    ...given.flatMap((family, i) =>
      configured.includes(family)
        ? []
        : [invalidValue(`spec.ipFamilies[${i}]`, family, 'not configured on this cluster')],
    ),
  ];
}

/** At least the default family, and the second one where the policy asks for it. */
function extended(
  { ipFamilyPolicy }: ServiceSpec,
  given: readonly IpFamilyName[],
  [standard]: readonly IpFamilyName[],
  possible: readonly IpFamilyName[],
): readonly IpFamilyName[] {
  const some = given.length > 0 ? given : standard ? [standard] : [];
  return ipFamilyPolicy === 'SingleStack' ? some : [...some, ...possible.filter((family) => !some.includes(family))];
}
