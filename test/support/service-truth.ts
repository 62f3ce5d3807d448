/** What Services mean to everybody, whatever serves them: the table, and its tests for one mode. */
import test from 'ava';
import { type ServicesMode, useServiceLab } from './service-lab.ts';
import { askAll, expose, type Scenario } from './service-table.ts';

const EVERYBODY = (text: string): string =>
  `          pod-1 self-1 pod-3 host-1 host-3 out-1 out-3
  ${['cluster', 'node-port', 'node-1', 'balancer', 'external'].map((name) => `${name} ${`${text} `.repeat(7)}`).join('\n  ')}`;

const SCENARIOS: readonly Scenario[] = [
  { name: 'all-ready', spec: {}, endpoints: '1 2', table: EVERYBODY('12') },
  {
    name: 'local-and-remote',
    spec: { internalTrafficPolicy: 'Local' },
    externalTrafficPolicy: 'Local',
    endpoints: '1 2',
    // Inside, external addresses are short-cut to all endpoints, whatever the policy.
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
  // KEP-1669: nothing is ready, so what still serves is used.
  { name: 'draining', spec: {}, endpoints: '1~ 2~', table: EVERYBODY('12') },
  { name: 'draining-beside-ready', spec: {}, endpoints: '1~ 2', table: EVERYBODY('2') },
  {
    name: 'draining-local',
    spec: { internalTrafficPolicy: 'Local' },
    externalTrafficPolicy: 'Local',
    endpoints: '1~ 2',
    table: `
                pod-1 self-1 pod-3 host-1 host-3 out-1 out-3
      cluster   1     1      away  1      away   1     silent
      node-port 2     2      2     2      2      1     silent
      node-1    2     2      1     2      1      1     1
      balancer  2     2      2     2      2      1     silent
      external  2     2      2     2      2      1     silent`,
  },
  { name: 'none', spec: {}, endpoints: '', table: EVERYBODY('refused') },
  { name: 'none-ready', spec: {}, endpoints: '1! 2-', table: EVERYBODY('refused') },
  {
    name: 'none-local-policies',
    spec: { internalTrafficPolicy: 'Local' },
    externalTrafficPolicy: 'Local',
    endpoints: '',
    table: EVERYBODY('refused'),
  },
  { name: 'one-of-two', spec: {}, endpoints: '1! 2', table: EVERYBODY('2') },
];

/** Call once, at the top of a file. */
export function serviceTruth(mode: ServicesMode): void {
  const lab = useServiceLab(mode);
  test.serial(`${mode}: every client gets what it should at every address of a Service`, async (t) => {
    t.timeout(120_000);
    const services = await expose(lab(), SCENARIOS);
    const { questions, connections, wrong } = await askAll(lab(), mode, services);
    t.log(`${questions} cells, ${connections} connections`);
    t.deepEqual(wrong, []);
  });
}
