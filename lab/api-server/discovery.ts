/** What clients ask before anything else: versions, groups, resources, health. Pure. */

import { apiVersionOf, type KindRow, kinds } from './kinds.ts';

/** The Kubernetes release whose protocol is spoken. */
const VERSION = { major: '1', minor: '31' };

const VERBS = ['create', 'delete', 'deletecollection', 'get', 'list', 'patch', 'update', 'watch'];

/** Paths that need no credentials. */
export const PUBLIC_PATHS: readonly string[] = ['/healthz', '/livez', '/readyz', '/version'];

/** The answer to a path that is no resource: text or a JSON value; undefined for an unknown path. */
export function discover(path: string, serverAddress: string): unknown {
  const found = documents.get(path.replace(/(?<=.)\/$/, ''));
  return typeof found === 'function' ? found(serverAddress) : found;
}

const groups: readonly string[] = [...new Set(kinds.map(({ group }) => group))].filter((group) => group !== '');
const apiVersions: readonly string[] = [...new Set(kinds.map(apiVersionOf))];

const pathOf = (apiVersion: string): string => (apiVersion.includes('/') ? `apis/${apiVersion}` : `api/${apiVersion}`);

const rowsOf = (apiVersion: string): readonly KindRow[] => kinds.filter((row) => apiVersionOf(row) === apiVersion);

const documents: ReadonlyMap<string, unknown> = new Map<string, unknown>([
  ['/healthz', 'ok'],
  ['/livez', 'ok'],
  ['/readyz', 'ok'],
  [
    '/version',
    { ...VERSION, gitVersion: `v${VERSION.major}.${VERSION.minor}.0+tulle-lab`, platform: `linux/${process.arch}` },
  ],
  ['/api', coreVersions],
  ['/apis', { kind: 'APIGroupList', apiVersion: 'v1', groups: groups.map(groupBody) }],
  ...groups.map((group) => [`/apis/${group}`, { kind: 'APIGroup', apiVersion: 'v1', ...groupBody(group) }] as const),
  ...apiVersions.map((apiVersion) => [`/${pathOf(apiVersion)}`, resourceList(apiVersion)] as const),
  [
    '/openapi/v3',
    {
      paths: Object.fromEntries(apiVersions.map((v) => [pathOf(v), { serverRelativeURL: `/openapi/v3/${pathOf(v)}` }])),
    },
  ],
  ...apiVersions.map((apiVersion) => [`/openapi/v3/${pathOf(apiVersion)}`, openApi(apiVersion)] as const),
]);

function coreVersions(serverAddress: string) {
  const serverAddressByClientCIDRs = [{ clientCIDR: '0.0.0.0/0', serverAddress }];
  return { kind: 'APIVersions', versions: ['v1'], serverAddressByClientCIDRs };
}

function groupBody(name: string) {
  const versions = kinds
    .filter(({ group }) => group === name)
    .map((row) => ({ groupVersion: apiVersionOf(row), version: row.version }));
  const unique = versions.filter(({ version }, i) => versions.findIndex((other) => other.version === version) === i);
  return { name, versions: unique, preferredVersion: unique[0] };
}

function resourceList(groupVersion: string) {
  return {
    kind: 'APIResourceList',
    apiVersion: 'v1',
    groupVersion,
    resources: rowsOf(groupVersion).flatMap(resourceBodies),
  };
}

function resourceBodies(row: KindRow) {
  const { resource, singular, namespaced, kind, shortNames } = row;
  const body = { name: resource, singularName: singular, namespaced, kind, verbs: VERBS, shortNames };
  const status = { name: `${resource}/status`, singularName: '', namespaced, kind, verbs: ['get', 'patch', 'update'] };
  return row.status ? [body, status] : [body];
}

/**
 * The one thing that kubectl reads before it sends an object: that the server itself checks fields (KEP 2885), so that
 * it needs no schema of its own.
 */
function openApi(apiVersion: string) {
  const paths = rowsOf(apiVersion).map((row) => {
    const { group, version, kind, resource, namespaced } = row;
    const patch = {
      parameters: [{ name: 'fieldValidation', in: 'query', schema: { type: 'string' } }],
      responses: { 200: { description: 'OK' } },
      'x-kubernetes-action': 'patch',
      'x-kubernetes-group-version-kind': { group, version, kind },
    };
    return [
      `/${pathOf(apiVersion)}/${namespaced ? 'namespaces/{namespace}/' : ''}${resource}/{name}`,
      { patch },
    ] as const;
  });
  return { openapi: '3.0.0', info: { title: 'Kubernetes', version: 'v1' }, paths: Object.fromEntries(paths) };
}
