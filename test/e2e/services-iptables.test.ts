/** The truth table of Services, where iptables serves them. */
import { serviceTruth } from '../support/service-truth.ts';

serviceTruth('iptables');
