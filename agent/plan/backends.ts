/** Every backend by the name that the setting `backend` has. */
import type { Backend } from './backend.ts';
import { hostGw } from './host-gw.ts';
import { tun } from './tun.ts';
import { vxlan } from './vxlan.ts';

export const BACKENDS = { vxlan, 'host-gw': hostGw, tun } as const satisfies Readonly<Record<string, Backend>>;
