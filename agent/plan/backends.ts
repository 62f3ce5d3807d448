/** Every backend by the name that the setting `backend` has. */
import type { Backend } from './backend.ts';
import { hostGw } from './host-gw.ts';
import { tun } from './tun.ts';
import { vxlan } from './vxlan.ts';

export type BackendName = 'vxlan' | 'host-gw' | 'tun';

export const BACKENDS: Readonly<Record<BackendName, Backend>> = { vxlan, 'host-gw': hostGw, tun };
