/** The truth table of Services, where programs at sockets serve them. */
import { serviceTruth } from '../support/service-truth.ts';

serviceTruth('ebpf');
