/** Every way of building the pod network that needs nothing but the kernel. That of the agent itself: tun-matrix.test.ts. */
import { BOTH, type Cell, testCell } from '../support/matrix.ts';

const NETWORKS: readonly Cell[] = [
  { name: 'vxlan over IPv4, dual stack, two segments', families: BOTH, segments: 2, agentArgs: [], mtuBytes: 1450 },
  {
    name: 'vxlan over IPv6, dual stack, two segments',
    families: BOTH,
    segments: 2,
    agentArgs: ['--tunnel-family', 'ipv6'],
    mtuBytes: 1430,
  },
  { name: 'vxlan, IPv4 alone', families: ['ipv4'], segments: 1, agentArgs: [], mtuBytes: 1450 },
  { name: 'vxlan, IPv6 alone', families: ['ipv6'], segments: 1, agentArgs: [], mtuBytes: 1430 },
  {
    name: 'vxlan with direct routing, dual stack, two segments',
    families: BOTH,
    segments: 2,
    agentArgs: ['--vxlan-direct-routing', 'true'],
    mtuBytes: 1450,
  },
  {
    name: 'host-gw, dual stack',
    families: BOTH,
    segments: 1,
    agentArgs: ['--backend', 'host-gw'],
    mtuBytes: 1500,
  },
];

for (const podLink of ['routed', 'bridge'] as const) for (const network of NETWORKS) testCell(network, podLink);
