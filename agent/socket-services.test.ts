import test from 'ava';
import pino from 'pino';
import { ip } from '../test/support/cluster-values.ts';
import type { BpfLane } from './kernel/bpf/lane.ts';
import { item } from './model/items.ts';
import type { Frontend } from './model/services.ts';
import type { BatchReport } from './reconcile/reconciler.ts';
import { SocketServices } from './socket-services.ts';

const from: Frontend = {
  scope: 'internal',
  ip: ip('10.96.0.7'),
  port: 53,
  protocol: 'UDP',
  kind: 'cluster',
  target: 'refuse',
  service: 'default/dns:53',
};

test('nobody is taken for stale, and no scope gets narrower, before all Services were written', async (t) => {
  const done: string[] = [];
  const lane = {
    build: 'build',
    connectedSockets: async () => {
      done.push('looked for sockets');
      return [];
    },
    writeSettings: ({ hostNetns }: { hostNetns?: bigint }) => done.push(`narrowed: ${hostNetns !== undefined}`),
  } as unknown as BpfLane;
  const services = new SocketServices({
    lane,
    reconciler: { known: () => undefined },
    namespaces: () => [],
    scope: 'host',
    log: pino({ level: 'silent' }),
  });
  const { key } = item('frontend', from);
  const report = { kind: 'frontend', changes: [{ action: 'remove', kind: 'frontend', key, from }] } as const;
  services.onBatch(report as unknown as BatchReport);
  await services.keep();
  t.deepEqual(done, []);
  services.written();
  t.deepEqual(done, ['narrowed: true', 'looked for sockets']);
  await services.keep();
  services.onBatch(report as unknown as BatchReport);
  t.deepEqual(done.slice(2), ['looked for sockets', 'looked for sockets']);
});
