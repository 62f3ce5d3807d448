import test, { type ExecutionContext } from 'ava';
import { type CniCode, CniError, type PodArgs } from '../../cni/protocol.ts';
import { cidr, ip } from '../../test/support/cluster-values.ts';
import type { Pod } from '../model/cluster.ts';
import { checkRequest, StaticAddresses } from './static-addresses.ts';

const pod = (name: string, fields: Partial<Pod> = {}): Pod => ({
  namespace: 'fixed',
  name,
  uid: `uid-${name}`,
  creationMs: 1,
  nodeName: 'node-1',
  hostNetwork: false,
  phase: 'Pending',
  podIps: [],
  ...fields,
});
const args = (name: string, fields: PodArgs = {}): PodArgs => ({
  podNamespace: 'fixed',
  podName: name,
  podUid: `uid-${name}`,
  ...fields,
});

function world(...first: readonly Pod[]) {
  const pods = new Map(first.map((each) => [`${each.namespace}/${each.name}`, each]));
  const listeners = new Set<() => void>();
  const source = {
    pods: () => pods,
    onChange: (listener: () => void) => {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
  };
  const appear = (each: Pod) => {
    pods.set(`${each.namespace}/${each.name}`, each);
    for (const listener of listeners) listener();
  };
  return { addresses: new StaticAddresses({ namespaces: ['fixed'], source, waitMs: 100 }), listeners, appear };
}

const signal = () => AbortSignal.timeout(10_000);
const refused = async (t: ExecutionContext, action: Promise<unknown>, code: CniCode, message: RegExp) =>
  t.is((await t.throwsAsync(action, { instanceOf: CniError, message }))?.code, code);

test('a pod of a listed namespace gets what its annotation asks for, in either family or both', async (t) => {
  for (const [ipsAnnotation, expected] of [
    [undefined, []],
    [' ', []],
    ['10.84.1.9', ['10.84.1.9']],
    [' fd84::9 , 10.84.1.9', ['fd84::9', '10.84.1.9']],
  ] as const) {
    const { addresses } = world(pod('web', ipsAnnotation === undefined ? {} : { ipsAnnotation }));
    t.deepEqual((await addresses.requestOf(args('web'), signal())).ips, expected.map(ip));
  }
});

test('an annotation that is not understood refuses the pod', async (t) => {
  for (const ipsAnnotation of [
    'web',
    '10.84.1.9/32',
    '10.84.1.9,10.84.1.8',
    ',',
    '10.84.1.9,',
    '010.84.1.9',
    'x'.repeat(300),
  ]) {
    const { addresses } = world(pod('web', { ipsAnnotation }));
    await refused(
      t,
      addresses.requestOf(args('web'), signal()),
      7,
      /pod fixed\/web .*at most one IP address a family.*got "/,
    );
  }
});

test('nothing is looked up for other namespaces and for containers that are no pods', async (t) => {
  const { addresses, listeners } = world(pod('web', { namespace: 'default', ipsAnnotation: '10.84.1.9' }));
  for (const other of [args('web', { podNamespace: 'default' }), {}, { podName: 'web' }, { podNamespace: 'fixed' }])
    t.deepEqual(await addresses.requestOf(other, signal()), { ips: [] });
  t.is(listeners.size, 0);
  t.is(addresses.claims(() => new Set()).size, 0);
});

test('the Pod is waited for, and its uid tells it from its predecessor', async (t) => {
  const { addresses, listeners, appear } = world(pod('web', { uid: 'uid-old', ipsAnnotation: '10.84.1.9' }));
  const request = addresses.requestOf(args('web'), signal());
  appear(pod('other'));
  appear(pod('web', { ipsAnnotation: '10.84.1.8' }));
  t.deepEqual((await request).ips, [ip('10.84.1.8')]);
  t.is(listeners.size, 0);
  await refused(
    t,
    addresses.requestOf(args('web', { podUid: 'uid-old' }), signal()),
    11,
    /a Pod with uid uid-old within 0\.1 s, got none/,
  );
  await refused(t, addresses.requestOf({ podNamespace: 'fixed', podName: 'web' }, signal()), 4, /K8S_POD_UID/);
  const stop = new AbortController();
  const stopped = addresses.requestOf(args('late'), stop.signal);
  stop.abort(new Error('the agent stops'));
  await t.throwsAsync(stopped, { message: 'the agent stops' });
  t.is(listeners.size, 0);
});

test('a static pod is known by the hash of its configuration', async (t) => {
  const mirror = pod('web', { uid: 'of-the-mirror', staticPodUid: 'the-hash', ipsAnnotation: '10.84.1.9' });
  const { addresses } = world(mirror);
  t.deepEqual((await addresses.requestOf(args('web', { podUid: 'the-hash' }), signal())).ips, [ip('10.84.1.9')]);
  t.deepEqual([...addresses.claims(() => new Set()).keys()], [ip('10.84.1.9')]);
  t.is(addresses.claims(() => new Set(['the-hash'])).size, 0);
});

test('pods that wait claim their addresses, the oldest first; pods that have or need none do not', (t) => {
  const ipsAnnotation = '10.84.1.9';
  const { addresses } = world(
    pod('young', { creationMs: 2, ipsAnnotation: '10.84.1.9,fd84::9' }),
    pod('old', { ipsAnnotation }),
    pod('host', { hostNetwork: true, ipsAnnotation: '10.84.1.3' }),
    pod('done', { phase: 'Succeeded', ipsAnnotation: '10.84.1.4' }),
    pod('running', { phase: 'Running', ipsAnnotation: '10.84.1.5' }),
    pod('wrong', { ipsAnnotation: '10.84.1.6,x' }),
  );
  const claims = [...addresses.claims(() => new Set(['uid-running']))].map(
    ([address, { name }]) => `${address} ${name}`,
  );
  t.deepEqual(claims.sort(), ['10.84.1.9 old', 'fd84::9 young']);
});

test('an address outside, reserved or taken is refused, each with its code', (t) => {
  const own = pod('web');
  const check = (text: string, holder?: string, claimant?: Pod) =>
    checkRequest(
      { pod: own, ips: [ip(text)] },
      {
        podCidrs: [cidr('10.84.1.0/28')],
        holderOf: () => holder,
        claims: new Map(claimant ? [[ip(text), claimant]] : []),
      },
    );
  const rows = ['10.84.1.0', '10.84.1.1', '10.84.1.15', '10.84.1.16', '10.84.0.9', 'fd84::9'];
  for (const text of rows)
    t.is(t.throws(() => check(text), { instanceOf: CniError, message: /podCIDR .*got / }, text)?.code, 7, text);
  for (const text of ['10.84.1.2', '10.84.1.14']) t.notThrows(() => check(text, undefined, own), text);
  t.is(
    t.throws(() => check('10.84.1.2', 'default/db'), { instanceOf: CniError, message: /default\/db has/ })?.code,
    11,
  );
  t.is(
    t.throws(() => check('10.84.1.2', undefined, pod('older')), {
      instanceOf: CniError,
      message: /fixed\/older waits for/,
    })?.code,
    11,
  );
});
