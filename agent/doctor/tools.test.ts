import test from 'ava';
import type { Feature } from '../kernel/features.ts';
import { lacks } from './tools.ts';

const feature = (name: string, state: Feature['state']): Feature => ({
  name,
  state,
  evidence: `seen of ${name}`,
  consequence: `modprobe ${name}`,
});

test('lacks: what is missing is told where the settings use it, what cannot be tried is not', (t) => {
  const features = [
    feature('veth links', 'missing'),
    feature('VXLAN links', 'missing'),
    feature('bridge links', 'missing'),
    feature('ip sets of addresses', 'unknown'),
    feature('IPv6', 'missing'),
  ];
  const told = (backend: 'vxlan' | 'host-gw', podLink: 'routed' | 'bridge') =>
    lacks(features, { backend, podLink }).map(({ severity, evidence }) => `${severity} ${evidence}`);
  t.deepEqual(told('vxlan', 'routed'), ['error seen of veth links', 'error seen of VXLAN links']);
  t.deepEqual(told('host-gw', 'bridge'), ['error seen of veth links', 'error seen of bridge links']);
});
