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
    feature('TUN devices', 'missing'),
    feature('bridge links', 'missing'),
    feature('programs at bridges', 'missing'),
    feature('ip sets of addresses', 'unknown'),
    feature('destruction of datagram sockets', 'missing'),
    feature('IPv6', 'missing'),
  ];
  const told = (
    backend: 'vxlan' | 'host-gw' | 'tun',
    podLink: 'routed' | 'bridge',
    mode: 'off' | 'auto' | 'iptables',
  ) =>
    lacks(features, { backend, podLink, 'services.mode': mode }).map(
      ({ severity, evidence }) => `${severity} ${evidence}`,
    );
  t.deepEqual(told('vxlan', 'routed', 'off'), ['error seen of veth links', 'error seen of VXLAN links']);
  t.deepEqual(told('tun', 'routed', 'off'), ['error seen of veth links', 'error seen of TUN devices']);
  t.deepEqual(told('host-gw', 'bridge', 'iptables'), [
    'error seen of veth links',
    'error seen of bridge links',
    'warning seen of programs at bridges',
  ]);
  t.deepEqual(told('host-gw', 'routed', 'auto'), [
    'error seen of veth links',
    'error seen of destruction of datagram sockets',
  ]);
});
