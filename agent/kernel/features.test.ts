/** How answers of a kernel are understood. That the questions are right is shown by test/kernel/features.test.ts. */
import test from 'ava';
import { KernelError } from './errors.ts';
import { type FeatureGround, probeFeatures } from './features.ts';
import type { NetlinkClient } from './netlink/message.ts';

/** Refuses everything with an errno. */
const refusing = (code: string): NetlinkClient => {
  const refuse = async () => {
    throw new KernelError({ code, operation: 'try', object: 'it', detail: 'Unknown device type' });
  };
  return { request: refuse, batch: refuse, dump: refuse, close: () => {} };
};

const ground = (code: string): FeatureGround => ({
  route: refusing(code),
  netfilter: refusing(code),
  socketDiag: refusing(code),
  tun: () => {
    throw new KernelError({ code, operation: 'open', object: 'link probe-tun' });
  },
  guard: async () => {
    throw new KernelError({ code, operation: 'attach', object: 'program' });
  },
  read: () => undefined,
});

test('features: what the kernel does not know is missing, with its words and what follows', async (t) => {
  const features = await probeFeatures(ground('EOPNOTSUPP'));
  t.deepEqual(
    features.filter(({ state }) => state !== 'missing'),
    [],
  );
  const vxlan = features.find(({ name }) => name === 'VXLAN links');
  t.is(vxlan?.evidence, 'cannot try it: EOPNOTSUPP (Unknown device type)');
  t.regex(vxlan?.consequence ?? '', /modprobe vxlan, or set backend to host-gw/);
});

test('features: a kernel without ip sets says EINVAL', async (t) => {
  const states = (await probeFeatures(ground('EINVAL'))).map(({ name, state }) => `${name}: ${state}`);
  t.deepEqual(states, [
    'veth links: unknown',
    'VXLAN links: unknown',
    'TUN devices: unknown',
    'bridge links: unknown',
    'locked bridge ports: unknown',
    'programs at bridges: unknown',
    'ip sets of addresses: missing',
    'ip sets of networks: missing',
    'ip sets of ports: missing',
    'destruction of datagram sockets: unknown',
    'IPv6: missing',
  ]);
});

test('features: what cannot be tried is not said to be missing', async (t) => {
  const states = (await probeFeatures(ground('EPERM'))).map(({ state }) => state);
  t.deepEqual(new Set(states.slice(0, -1)), new Set(['unknown']));
});

test('features: without a TUN file there are no TUN devices', async (t) => {
  const found = await probeFeatures(ground('ENOENT'));
  t.is(found.find(({ name }) => name === 'TUN devices')?.state, 'missing');
});
