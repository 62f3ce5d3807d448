import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { pino } from 'pino';
import { type LabStatus, labControl, SupervisorError } from './control.ts';
import { listenForControl } from './control-server.ts';
import type { Lab } from './lab.ts';
import { LabError } from './lab-error.ts';
import type { PhantomServices } from './phantom-services.ts';
import type { LabPodRequest, PodStatus } from './pods.ts';

/** Stands in for a lab, of which only what the routes call is needed. */
function fakeLab(calls: unknown[]): Lab {
  const pods = {
    run: async (pod: LabPodRequest) => {
      if (pod.node === 'absent')
        throw new LabError({ operation: 'use node "absent"', expected: 'one of node-1', received: 'no such node' });
      calls.push(pod);
      return { name: pod.name } as PodStatus;
    },
    check: async (pod: unknown) => void calls.push(['check', pod]),
    remove: async (pod: unknown) => void calls.push(['remove', pod]),
    setReady: async (pod: unknown, ready: boolean) => void calls.push(['ready', pod, ready]),
    terminate: async (pod: unknown, seconds: number) => void calls.push(['terminate', pod, seconds]),
  };
  return {
    pods,
    status: async () => ({ dir: '/x' }) as LabStatus,
    killAgent: async (node: string) => {
      calls.push(node);
      return 42;
    },
    stopAgent: async (node: string) => void calls.push(['stop', node]),
    startAgent: (node: string) => void calls.push(['start', node]),
    putUnchecked: (kind: string, object: unknown) => void calls.push(['unchecked', kind, object]),
    loadPhantomServices: async (request: unknown) => void calls.push(['phantoms', request]),
    setApiFault: (fault: string) => void calls.push(['fault', fault]),
  } as unknown as Lab;
}

test('labControl and the supervisor agree on every call', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'tulle-test-'));
  t.teardown(() => rm(dir, { recursive: true }));
  const controlSocket = join(dir, 'control.sock');
  const calls: unknown[] = [];
  const server = await listenForControl(
    controlSocket,
    fakeLab(calls),
    pino({ level: 'silent' }),
    new AbortController().signal,
  );
  t.teardown(() => server.close());
  const control = labControl({ controlSocket });

  t.is((await control.status()).dir, '/x');
  const pod = { namespace: 'default', name: 'web', node: 'node-1', command: ['sleep', '1'] };
  t.is((await control.runPod(pod)).name, 'web');
  await control.checkPod('a b', 'c/d');
  await control.removePod('default', 'web');
  t.deepEqual(await control.killAgent('node-1'), { pid: 42 });
  await control.stopAgent('node-1');
  await control.startAgent('node-1');
  await control.setApiFault('stalled');
  await control.setPodReady('default', 'web', false);
  await control.terminatePod('default', 'web', 30);
  const phantoms: PhantomServices = { count: 3, endpoints: 2, families: ['ipv4'] };
  await control.loadPhantomServices(phantoms);
  const odd = { metadata: { namespace: 'default', name: 'odd' } };
  await control.putUnchecked('service', odd);
  t.deepEqual(calls, [
    pod,
    ['check', { namespace: 'a b', name: 'c/d' }],
    ['remove', { namespace: 'default', name: 'web' }],
    'node-1',
    ['stop', 'node-1'],
    ['start', 'node-1'],
    ['fault', 'stalled'],
    ['ready', { namespace: 'default', name: 'web' }, false],
    ['terminate', { namespace: 'default', name: 'web' }, 30],
    ['phantoms', phantoms],
    ['unchecked', 'service', odd],
  ]);

  const error = await t.throwsAsync(control.runPod({ ...pod, node: 'absent' }), { instanceOf: SupervisorError });
  t.regex(error?.message ?? '', /use node "absent": expected one of node-1/);
});

test('labControl says what to do when no lab is up', async (t) => {
  const control = labControl({ controlSocket: '/nonexistent/control.sock' });
  await t.throwsAsync(control.status(), { instanceOf: LabError, message: /got ENOENT; no lab is up .*tulle lab up/ });
});
