/** Services in every state, and what each client gets at each of their addresses. See service-table.ts for the words. */
import type { Scenario } from './service-table.ts';

const FRONTENDS = ['cluster', 'node-port', 'node-1', 'balancer', 'external'];
const CLIENTS = 'pod-1 self-1 pod-3 host-1 host-3 out-1 out-3';
const everybody = (cell: string, frontends: readonly string[] = FRONTENDS): string =>
  [CLIENTS, ...frontends.map((frontend) => `${frontend} ${`${cell} `.repeat(7)}`)].join('\n');

const BOTH_LOCAL = { spec: { internalTrafficPolicy: 'Local' }, externalTrafficPolicy: 'Local' } as const;

export const SCENARIOS: readonly Scenario[] = [
  { name: 'all-ready', spec: {}, endpoints: '1 2', table: everybody('12') },
  {
    // Inside, external addresses are short-cut to all endpoints, whatever the policy.
    ...BOTH_LOCAL,
    name: 'local-and-remote',
    endpoints: '1 2',
    table: `
                pod-1 self-1 pod-3 host-1 host-3 out-1 out-3
      cluster   1     1      away  1      away   1     silent
      node-port 12    12     12    12     12     1     silent
      node-1    12    12     1     12     1      1     1
      balancer  12    12     12    12     12     1     silent
      external  12    12     12    12     12     1     silent`,
  },
  {
    name: 'internal-local',
    spec: { internalTrafficPolicy: 'Local' },
    endpoints: '1 2',
    table: `
                pod-1 self-1 pod-3 host-1 host-3 out-1 out-3
      cluster   1     1      away  1      away   1     silent
      node-port 12    12     12    12     12     12    12
      node-1    12    12     12    12     12     12    12
      balancer  12    12     12    12     12     12    12
      external  12    12     12    12     12     12    12`,
  },
  {
    name: 'external-local',
    spec: {},
    externalTrafficPolicy: 'Local',
    endpoints: '1 2',
    table: `
                pod-1 self-1 pod-3 host-1 host-3 out-1 out-3
      cluster   12    12     12    12     12     12    12
      node-port 12    12     12    12     12     1     silent
      node-1    12    12     1     12     1      1     1
      balancer  12    12     12    12     12     1     silent
      external  12    12     12    12     12     1     silent`,
  },

  // KEP-1669: where nothing is ready, what still serves is used.
  { name: 'draining', spec: {}, endpoints: '1~ 2~', table: everybody('12') },
  { name: 'draining-beside-ready', spec: {}, endpoints: '1~ 2', table: everybody('2') },
  {
    ...BOTH_LOCAL,
    name: 'draining-local',
    endpoints: '1~ 2',
    table: `
                pod-1 self-1 pod-3 host-1 host-3 out-1 out-3
      cluster   1     1      away  1      away   1     silent
      node-port 2     2      2     2      2      1     silent
      node-1    2     2      1     2      1      1     1
      balancer  2     2      2     2      2      1     silent
      external  2     2      2     2      2      1     silent`,
  },
  { name: 'one-unready', spec: {}, endpoints: '1! 2', table: everybody('2') },
  { name: 'none', spec: {}, endpoints: '', table: everybody('refused') },
  { name: 'none-ready', spec: {}, endpoints: '1! 2-', table: everybody('refused') },
  { ...BOTH_LOCAL, name: 'none-for-local', endpoints: '', table: everybody('refused') },

  // node-1 and node-3 are in zone-1. Hints count if all ready endpoints have them and one is meant for this place.
  {
    name: 'zone-hints',
    spec: {},
    endpoints: '1%1 2%2 3%1',
    table: everybody('13', ['cluster', 'node-port', 'balancer']),
  },
  { name: 'zone-hints-elsewhere', spec: {}, endpoints: '1%2 2%2', table: everybody('12', ['cluster', 'node-port']) },
  { name: 'zone-hints-missing', spec: {}, endpoints: '1%1 2', table: everybody('12', ['cluster', 'node-port']) },
  { name: 'zone-hints-unready', spec: {}, endpoints: '1!%1 2%2', table: everybody('2', ['cluster', 'node-port']) },
  {
    name: 'node-hints',
    spec: {},
    endpoints: '1%1@1 2%2@2 3%1@3',
    table: `
                pod-1 self-1 pod-3 host-1 host-3 out-1 out-3
      cluster   1     1      3     1      3      1     3
      node-port 1     1      3     1      3      1     3
      node-1    1     1      1     1      1      1     1`,
  },
  {
    ...BOTH_LOCAL,
    name: 'hints-and-local',
    endpoints: '1%2 2%2',
    table: `
                pod-1 self-1 pod-3 host-1 host-3 out-1 out-3
      cluster   1     1      away  1      away   1     silent
      node-port 12    12     12    12     12     1     silent`,
  },

  {
    name: 'source-ranges',
    spec: { loadBalancerSourceRanges: ['172.30.0.5/32', 'fd30::5/128'] },
    endpoints: '1 2',
    table: `
                pod-1  self-1 pod-3  host-1 host-3 out-1 out-3
      balancer  silent silent silent silent silent 12    silent
      cluster   12     12     12     12     12     12    12
      node-port 12     12     12     12     12     12    12
      external  12     12     12     12     12     12    12`,
  },
  {
    name: 'source-ranges-of-hosts',
    spec: { loadBalancerSourceRanges: ['172.30.0.11/32', '172.30.0.7/32', 'fd30::11/128', 'fd30::7/128'] },
    externalTrafficPolicy: 'Local',
    endpoints: '1 3',
    table: `
                pod-1  self-1 pod-3  host-1 host-3 out-1  out-3
      balancer  silent silent silent 13     silent silent 3`,
  },
  {
    name: 'behind-a-proxy',
    spec: {},
    ingress: { ipMode: 'Proxy' },
    endpoints: '1 2',
    table: `
                pod-1    self-1   pod-3    host-1   host-3   out-1    out-3
      cluster   12       12       12       12       12       12       12
      node-port 12       12       12       12       12       12       12
      balancer  unserved unserved unserved unserved unserved unserved unserved`,
  },
];
