/** Services that change and agents that die, where programs at sockets serve them. */
import { serviceChanges } from '../support/service-changes.ts';

serviceChanges('ebpf');
