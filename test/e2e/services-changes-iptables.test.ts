/** Services that change and agents that die, where iptables serves them. */
import { serviceChanges } from '../support/service-changes.ts';

serviceChanges('iptables');
