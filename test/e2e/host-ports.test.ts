/** Host ports, where iptables serves them. */
import { hostPortTruth } from '../support/host-port-truth.ts';

hostPortTruth('iptables');
