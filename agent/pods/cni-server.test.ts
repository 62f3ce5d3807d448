import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { pino } from 'pino';
import { CNI_CODES, CniError, renderRequest } from '../../cni/protocol.ts';
import { ip } from '../../test/support/cluster-values.ts';
import { macOf } from '../model/mac.ts';
import type { Attachments } from './attachments.ts';
import { type CniCall, CniServer } from './cni-server.ts';

const RESULT = {
  hostLink: 'tl000000000001',
  hostMac: macOf('host'),
  ifName: 'eth0',
  podMac: macOf('pod'),
  sandbox: '/run/netns/web',
  mtuBytes: 1450,
  ips: [{ address: ip('10.84.1.2'), prefixLength: 32, gateway: ip('169.254.1.1') }],
  routes: [],
};

const queue = { carryOutBefore: async () => undefined };

/** Stands for the verbs: what the server does with sockets is what is tested here. */
interface Stand {
  readonly runDir: string;
  readonly calls: CniCall[];
  readonly deleted: string[];
  verbs: Partial<Attachments>;
}

async function startServer(t: ExecutionContext): Promise<Stand> {
  const runDir = mkdtempSync(join(tmpdir(), 'tulle-cni-server-'));
  t.teardown(() => rmSync(runDir, { recursive: true, force: true }));
  const stand: Stand = { runDir, calls: [], deleted: [], verbs: {} };
  const attachments = {
    add: (...args: Parameters<Attachments['add']>) => stand.verbs.add?.(...args) ?? Promise.resolve(RESULT),
    del: async ({ containerId }: { containerId: string }) => void stand.deleted.push(containerId),
    check: async () => undefined,
    gc: async () => undefined,
    status: () => stand.verbs.status?.(),
    undo: async ({ hostLink }: { hostLink: string }) => void stand.deleted.push(hostLink),
  } as unknown as Attachments;
  const server = new CniServer({
    runDir,
    queue,
    attachments,
    log: pino({ level: 'silent' }),
    onCall: (call) => stand.calls.push(call),
  });
  await server.listen();
  t.teardown(() => server.close());
  return stand;
}

const variables = (verb: string, containerId = 'web') => ({
  CNI_COMMAND: verb,
  CNI_CONTAINERID: containerId,
  CNI_NETNS: '/run/netns/web',
  CNI_IFNAME: 'eth0',
  CNI_PATH: '/opt/cni/bin',
});
const config = (cniVersion = '1.0.0') => JSON.stringify({ cniVersion, name: 'tulle', type: 'tulle' });

/** Sends bytes as the executable does and returns the whole answer: exit code and parsed output. */
function ask(
  runDir: string,
  request: Buffer,
): Promise<{ exitCode: number; output: Record<string, unknown> | undefined }> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    const socket = connect({ path: join(runDir, 'cni.sock'), allowHalfOpen: true }, () => socket.end(request));
    socket.on('data', (chunk: Buffer) => chunks.push(chunk));
    socket.on('error', reject);
    socket.on('close', () => {
      const text = Buffer.concat(chunks).toString();
      const newline = text.indexOf('\n');
      const body = text.slice(newline + 1);
      resolve({ exitCode: Number(text.slice(0, newline)), output: body === '' ? undefined : JSON.parse(body) });
    });
  });
}

test('each verb gets its answer, in the version of the request', async (t) => {
  const { runDir, calls } = await startServer(t);
  for (const version of ['0.3.0', '0.3.1', '0.4.0', '1.0.0', '1.1.0']) {
    const { exitCode, output } = await ask(runDir, renderRequest(variables('ADD'), config(version)));
    t.is(exitCode, 0);
    t.is(output?.['cniVersion'], version);
  }
  t.deepEqual(await ask(runDir, renderRequest(variables('DEL'), config())), { exitCode: 0, output: undefined });
  t.deepEqual(
    calls.map(({ verb, code }) => `${verb} ${code}`),
    ['ADD 0', 'ADD 0', 'ADD 0', 'ADD 0', 'ADD 0', 'DEL 0'],
  );
});

test('STATUS tells code and reason until pods can be attached', async (t) => {
  const stand = await startServer(t);
  const status = () =>
    ask(stand.runDir, renderRequest({ CNI_COMMAND: 'STATUS', CNI_PATH: '/opt/cni/bin' }, config('1.1.0')));
  stand.verbs = {
    status: () => {
      throw new CniError(CNI_CODES.notAvailable, 'no podCIDR');
    },
  };
  t.like((await status()).output, { code: 50, msg: 'no podCIDR' });
  stand.verbs = {};
  t.deepEqual(await status(), { exitCode: 0, output: undefined });
});

test('a failed verb is an error object with its code and details', async (t) => {
  const stand = await startServer(t);
  stand.verbs = {
    add: () => Promise.reject(new CniError(CNI_CODES.tryAgainLater, 'full', { details: 'delete pods' })),
  };
  t.deepEqual(await ask(stand.runDir, renderRequest(variables('ADD'), config())), {
    exitCode: 1,
    output: { cniVersion: '1.0.0', code: 11, msg: 'full', details: 'delete pods' },
  });
  stand.verbs = { add: () => Promise.reject(new Error('unforeseen')) };
  t.like(await ask(stand.runDir, renderRequest(variables('ADD'), config())), {
    exitCode: 1,
    output: { code: CNI_CODES.ioFailure },
  });
});

test('bytes that are no request get an error, one too large too, and the server goes on', async (t) => {
  const { runDir } = await startServer(t);
  for (const bytes of ['nonsense', 'TULLE1\0', 'TULLE1\0CNI_COMMAND=ADD\0\0{']) {
    const { exitCode, output } = await ask(runDir, Buffer.from(bytes));
    t.is(exitCode, 1, bytes);
    t.is(typeof output?.['msg'], 'string', bytes);
  }
  const huge = await ask(runDir, renderRequest(variables('ADD'), ' '.repeat(3 << 20))).catch(
    (error: NodeJS.ErrnoException) => error.code,
  );
  t.true(
    huge === 'EPIPE' ||
      huge === 'ECONNRESET' ||
      (typeof huge === 'object' && huge?.output?.['code'] === CNI_CODES.decodingFailure),
    String(huge),
  );
  t.is((await ask(runDir, renderRequest(variables('ADD'), config()))).exitCode, 0);
});

test('a caller that connects and asks nothing gets nothing, and is no call', async (t) => {
  const { runDir, calls } = await startServer(t);
  const socket = connect({ path: join(runDir, 'cni.sock') }, () => socket.end()).resume();
  await new Promise<void>((resolve, reject) => socket.once('close', () => resolve()).once('error', reject));
  t.deepEqual([socket.bytesRead, calls], [0, []]);
});

test('an ADD whose caller died before the answer is undone', async (t) => {
  const stand = await startServer(t);
  const under = Promise.withResolvers<void>();
  const answer = Promise.withResolvers<typeof RESULT>();
  stand.verbs = {
    add: () => {
      under.resolve();
      return answer.promise as never;
    },
  };
  const socket = connect({ path: join(stand.runDir, 'cni.sock'), allowHalfOpen: true }, () =>
    socket.end(renderRequest(variables('ADD', 'orphan'), config())),
  );
  await under.promise;
  await new Promise<void>((resolve) => socket.destroy().once('close', () => resolve()));
  answer.resolve(RESULT);
  while (stand.deleted.length === 0) await new Promise((resolve) => setImmediate(resolve));
  t.deepEqual(stand.deleted, [RESULT.hostLink]);
  t.deepEqual((await ask(stand.runDir, renderRequest(variables('DEL', 'other'), config()))).exitCode, 0);
  t.deepEqual(stand.deleted, [RESULT.hostLink, 'other']);
});

test("only root reaches the socket, and a dead process's socket is replaced", async (t) => {
  const { runDir } = await startServer(t);
  t.is(statSync(join(runDir, 'cni.sock')).mode & 0o777, 0o600);
  const second = new CniServer({
    runDir,
    queue,
    attachments: {} as Attachments,
    log: pino({ level: 'silent' }),
  });
  await t.notThrowsAsync(second.listen());
  await second.close();
});
