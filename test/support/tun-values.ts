/** What a tunnel may say of itself, with every field that a test does not care about filled in. */
import type { TunPeerStatus, TunStatus } from '../../agent/kernel/tun/status.ts';
import { ip } from './cluster-values.ts';

export const tunPeer = (node: string, more: Partial<TunPeerStatus> = {}): TunPeerStatus => ({
  node,
  end: ip('192.0.2.2'),
  state: 'agreed',
  sinceMs: 1_000,
  carriage: 'segments',
  encryption: 'none',
  sent: { packets: 0, bytes: 0 },
  received: { packets: 0, bytes: 0 },
  dropped: {},
  ...more,
});

export const tunStatus = (...peers: readonly TunPeerStatus[]): TunStatus => ({
  path: { link: 'tulle-tun', local: ip('192.0.2.1'), port: 8285, carriage: 'segments', encryption: 'none' },
  problems: [],
  peers,
  dropped: {},
});
