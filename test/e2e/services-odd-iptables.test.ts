/** Services that contradict each other or are no good, where iptables serves them. */
import { serviceOddities } from '../support/service-odd.ts';

serviceOddities('iptables');
