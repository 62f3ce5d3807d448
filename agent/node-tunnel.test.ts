import test from 'ava';
import { tunPeer, tunStatus } from '../test/support/tun-values.ts';
import type { TunStatus } from './kernel/tun/status.ts';
import { NodeTunnel } from './node-tunnel.ts';

function stand(first: TunStatus | undefined) {
  const world = { status: first, ms: 0 };
  const tunnel = new NodeTunnel(
    () => world.status,
    () => world.ms,
  );
  const sample = (atMs: number, status: TunStatus | undefined) => {
    world.ms = atMs;
    world.status = status;
    tunnel.sample();
  };
  const rates = () => tunnel.status()?.peers.map((peer) => peer.rates);
  return { tunnel, sample, rates };
}

const carried = (sent: number, received: number) => ({
  sent: { packets: 1, bytes: sent },
  received: { packets: 1, bytes: received },
});

test('rates are those of the last interval, in bits per second', (t) => {
  const { sample, rates } = stand(undefined);
  sample(0, tunStatus(tunPeer('b', carried(1_000, 0))));
  t.deepEqual(rates(), [undefined], 'once is no rate');
  sample(5_000, tunStatus(tunPeer('b', carried(6_000, 500))));
  t.deepEqual(rates(), [{ sentBitsPerSecond: 8_000, receivedBitsPerSecond: 800 }]);
  sample(15_000, tunStatus(tunPeer('b', carried(6_000, 500))));
  t.deepEqual(rates(), [{ sentBitsPerSecond: 0, receivedBitsPerSecond: 0 }]);
});

test('a peer that is new has no rate, one that counts from the beginning again none below zero', (t) => {
  const { sample, rates } = stand(undefined);
  sample(0, tunStatus(tunPeer('b', carried(9_000, 9_000))));
  sample(1_000, tunStatus(tunPeer('b', carried(1_000, 0)), tunPeer('c', carried(5, 5))));
  t.deepEqual(rates(), [{ sentBitsPerSecond: 0, receivedBitsPerSecond: 0 }, undefined]);
});

test('problems name their peer; without a tunnel there is nothing to say', (t) => {
  const silent = tunPeer('c', { state: 'silent', problem: 'Node c does not answer: allow UDP port 8285' });
  const status = { ...tunStatus(tunPeer('b'), silent), problems: ['the secret cannot be read'] };
  t.deepEqual(stand(status).tunnel.problems(), [
    { cause: 'tunnel', problem: 'the secret cannot be read' },
    { cause: 'node c', problem: 'Node c does not answer: allow UDP port 8285' },
  ]);
  t.deepEqual(stand(undefined).tunnel.problems(), []);
  t.is(stand(undefined).tunnel.status(), undefined);
});
