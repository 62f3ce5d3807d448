/** Every bench by the name that is given on the command line. */
import type { Bench } from './bench.ts';
import { cni } from './cni.ts';
import { path } from './path.ts';
import { scale } from './scale.ts';
import { services } from './services.ts';
import { tun } from './tun.ts';

export const BENCHES: Readonly<Record<string, Bench>> = { cni, path, scale, services, tun };
