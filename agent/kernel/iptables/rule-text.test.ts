import test from 'ava';
import { meaningOf } from './rule-text.ts';

const COMMENT = '-m comment --comment "tulle:0123456789abcdef 90-gate why not"';
const line = (args: string) => `-A TULLE-FORWARD ${args}`;

const SAME: readonly (readonly [written: string, printed: string])[] = [
  [`-s 10.0.0.0/24 -j DROP ${COMMENT}`, `-s 10.0.0.0/24 ${COMMENT} -j DROP`],
  [`-d 10.0.0.1 -j DROP ${COMMENT}`, `-d 10.0.0.1/32 ${COMMENT} -j DROP`],
  [`-d fd00::1 -j DROP ${COMMENT}`, `-d fd00::1/128 ${COMMENT} -j DROP`],
  [`-p udp --dport 8472 -j DROP ${COMMENT}`, `-p udp -m udp --dport 8472 ${COMMENT} -j DROP`],
  [`-m mac --mac-source 02:ab:00:00:00:01 -j RETURN`, `-m mac --mac-source 02:AB:00:00:00:01 -j RETURN`],
  [`-i tl+ -m set ! --match-set a src -j DROP`, `-i tl+ -m set ! --match-set a src ${COMMENT} -j DROP`],
];

const DIFFERENT: readonly (readonly [string, string])[] = [
  ['-p udp -j DROP', '-p udp -j ACCEPT'],
  ['-s 10.0.0.0/24 -d 10.0.1.0/24 -j DROP', '-s 10.0.1.0/24 -d 10.0.0.0/24 -j DROP'],
  ['-s 10.0.0.0/24 -j DROP', '! -s 10.0.0.0/24 -j DROP'],
  ['-m set --match-set a src -j DROP', '-m set ! --match-set a src -j DROP'],
  ['-m set ! --match-set a src --match-set b dst -j DROP', '-m set --match-set a src ! --match-set b dst -j DROP'],
  ['-j CT --notrack', '-j CT'],
  ['-s 10.0.0.1/32 -j DROP', '-s 10.0.0.1/31 -j DROP'],
  ['-p udp -j DROP', '-p udp -m limit --limit 1/sec -j DROP'],
  ['-j DROP', '-i eth0 -j DROP'],
];

test('meaningOf: what iptables prints in other words means the same', (t) => {
  for (const [written, printed] of SAME) t.is(meaningOf(line(written)), meaningOf(line(printed)), printed);
});

test('meaningOf: an altered rule does not', (t) => {
  for (const [a, b] of DIFFERENT) t.not(meaningOf(line(a)), meaningOf(line(b)), b);
});
