import test from 'ava';
import { tunPeer, tunStatus } from '../../test/support/tun-values.ts';
import { tunnelLines, tunnelTroubles } from './tunnel-lines.ts';

const rates = (sentBitsPerSecond: number, receivedBitsPerSecond = 0) => ({
  rates: { sentBitsPerSecond, receivedBitsPerSecond },
});

test('carriage, encryption and rates of each peer: the troubled ones first, then by traffic', (t) => {
  const status = {
    ...tunStatus(),
    dropped: { stranger: 3, noPeer: 0 },
    peers: [
      tunPeer('quiet'),
      { ...tunPeer('busy', { carriage: 'whole', dropped: { replayed: 2, forged: 1 } }), ...rates(5_400_000_000, 999) },
      { ...tunPeer('lost', { state: 'refused', sinceMs: 12_000, encryption: 'aes-gcm' }), ...rates(0) },
    ],
  };
  t.is(
    tunnelLines(status).join('\n'),
    `tunnel    tulle-tun, UDP port 8285 of 192.0.2.1, carriage segments, encryption none
peers     2 of 3 agreed; dropped of nobody: stranger 3

peer   end        state             carriage  encryption  sends       receives   dropped
lost   192.0.2.2  refused for 12 s  segments  aes-gcm     0 bit/s     0 bit/s
busy   192.0.2.2  agreed            whole     none        5.4 Gbit/s  999 bit/s  replayed 2, forged 1
quiet  192.0.2.2  agreed            segments  none        -           -`,
  );
});

test('thousands of peers are told of by the weightiest; none, and no path, in a line each', (t) => {
  const peers = Array.from({ length: 5_000 }, (_, i) => tunPeer(`n${i}`));
  const lines = tunnelLines({ ...tunStatus(), peers });
  t.true(lines.length < 40);
  t.is(lines.at(-1), 'and 4970 more: tulle status --json');
  const { path: _, ...closed } = tunStatus();
  t.deepEqual(tunnelLines(closed), ['tunnel    not open', 'peers     0 of 0 agreed']);
});

test('problems name the peer; of thousands the first', (t) => {
  const lost = (node: string) => tunPeer(node, { state: 'silent', problem: `Node ${node} does not answer` });
  t.deepEqual(tunnelTroubles(tunStatus(lost('b'), tunPeer('c'))), ['problem   Node b does not answer']);
  const all = tunnelTroubles(tunStatus(...Array.from({ length: 40 }, (_, i) => lost(`n${i}`))));
  t.is(all.at(-1), 'problem   and 10 more of the tunnel, which the log has');
});
