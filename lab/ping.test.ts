import test from 'ava';
import type { IpAddress } from '../agent/model/ip.ts';
import { matrixOf, type PingEnd, type PingResult, parsePing } from './ping.ts';

test('parsePing reads the summary of iputils', (t) => {
  const answered = [
    'PING 10.84.1.2 (10.84.1.2) 56(84) bytes of data.',
    '',
    '--- 10.84.1.2 ping statistics ---',
    '3 packets transmitted, 2 received, 33.3333% packet loss, time 402ms',
    'rtt min/avg/max/mdev = 0.101/0.142/0.183/0.041 ms',
  ].join('\n');
  t.deepEqual(parsePing(answered), { sent: 3, received: 2, rttMs: 0.142 });
  const lost = '1 packets transmitted, 0 received, +1 errors, 100% packet loss, time 0ms\n';
  t.deepEqual(parsePing(lost), { sent: 1, received: 0 });
  t.deepEqual(parsePing('ping: connect: Network is unreachable'), { sent: 0, received: 0 });
});

const end = (name: string): PingEnd => ({ kind: 'pod', name, node: 'node-1', addresses: [], enter: () => ['true'] });
const result = (from: string, to: string, ok: boolean): PingResult => ({
  from,
  to,
  address: '10.84.0.2' as IpAddress,
  family: 'ipv4',
  ok,
  sent: 1,
  received: ok ? 1 : 0,
  ...(ok && { rttMs: 0.1 }),
});

test('matrixOf shows each pair once and a lost one in words', (t) => {
  const [a, b] = [end('default/a'), end('other/b')];
  const results = [result(a.name, b.name, true), result(a.name, b.name, false), result(b.name, a.name, false)];
  t.deepEqual(matrixOf([a, b, end('default/unused')], results), [
    ['from \\ to', 'a', 'other/b'],
    ['a', '-', '0.10 / LOST'],
    ['other/b', 'LOST', '-'],
  ]);
});
