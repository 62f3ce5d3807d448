import test from 'ava';
import fc from 'fast-check';
import { FAMILIES } from './ip.ts';
import {
  BRIDGE_NAME,
  baseChain,
  hash,
  POD_INTERFACES,
  POD_LINK_NAME,
  podLinkMac,
  podLinkName,
  setName,
  vtepMac,
  vxlanLinkName,
} from './kernel-names.ts';

const containerId = fc.stringMatching(/^[0-9a-f]{64}$/);
const ifName = fc.stringMatching(/^[a-z][a-z0-9]{0,14}$/);

/** As iptables reads an interface: `+` at the end stands for anything. */
const matches = (pattern: string, link: string): boolean =>
  pattern.endsWith('+') ? link.startsWith(pattern.slice(0, -1)) : link === pattern;

test('the interfaces of pods are the pod links and the bridge, and no tunnel', (t) => {
  const isOfPods = (link: string) => POD_INTERFACES.some((pattern) => matches(pattern, link));
  t.true(isOfPods(BRIDGE_NAME));
  t.false([vxlanLinkName(0), vxlanLinkName(84), `${BRIDGE_NAME}1`, 'eth0'].some(isOfPods));
});

test('names of pod links have their shape and fit, whatever they stand for', (t) => {
  fc.assert(
    fc.property(containerId, ifName, (id, name) => {
      const link = podLinkName(id, name);
      t.regex(link, POD_LINK_NAME);
      t.true(link.length <= 15);
      t.true(POD_INTERFACES.some((pattern) => matches(pattern, link)));
      t.not(podLinkMac(id, name, 'host'), podLinkMac(id, name, 'pod'));
    }),
  );
});

test('two interfaces of one container, and one interface of two, have different links', (t) => {
  const names = [
    podLinkName('a', 'eth0'),
    podLinkName('a', 'eth1'),
    podLinkName('b', 'eth0'),
    podLinkName('a/eth', '0'),
  ];
  t.is(new Set(names).size, names.length);
});

test('no other name of Tulle looks like a pod link', (t) => {
  t.notRegex(vxlanLinkName(84), POD_LINK_NAME);
  t.notRegex(vxlanLinkName(16_777_215), POD_LINK_NAME);
});

test('every name is the same in every version', (t) => {
  t.deepEqual(
    [
      vxlanLinkName(84),
      vxlanLinkName(16_777_215),
      podLinkName('0123456789abcdef', 'eth0'),
      setName('nodes', FAMILIES.ipv4),
      setName('ready', FAMILIES.ipv6),
      setName('direct', FAMILIES.ipv4),
      baseChain('POSTROUTING'),
      vtepMac('worker-1'),
    ] as string[],
    [
      'tulle.84',
      'tulle.16777215',
      'tl60373cf9024d',
      'tulle-nodes-4',
      'tulle-ready-6',
      'tulle-direct-4',
      'TULLE-POSTROUTING',
      'ee:ed:7d:ac:a9:9f',
    ],
  );
});

test('a name that the kernel would cut off is refused', (t) => {
  t.throws(() => vxlanLinkName(10_000_000_000), { instanceOf: RangeError, message: /has more than 15 characters/ });
  t.is(baseChain('A'.repeat(22)).length, 28);
  t.throws(() => baseChain('A'.repeat(23)), { instanceOf: RangeError, message: /has more than 28 characters/ });
});

test('hash gives the first digits of SHA-256', (t) => {
  // FIPS 180-2, appendix B.1.
  t.is(hash('abc', 8), 'ba7816bf');
});
