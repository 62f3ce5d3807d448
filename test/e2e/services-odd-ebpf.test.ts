/** Services that contradict each other or are no good, where programs at sockets serve them. */
import { serviceOddities } from '../support/service-odd.ts';

serviceOddities('ebpf');
