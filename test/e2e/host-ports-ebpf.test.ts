/** Host ports, where sockets are translated and iptables serves what comes from elsewhere. */
import { hostPortTruth } from '../support/host-port-truth.ts';

hostPortTruth('ebpf');
