/** Services in Tulle beside kube-proxy's shapes: getting them into the kernel, connecting through them, and the whole agent. */
import type { Bench } from './bench.ts';
import { benchAgents } from './service-agent.ts';

export const services: Bench = {
  about: "Services beside kube-proxy's iptables and nftables: loading, changing, connecting",
  run: benchAgents,
};
