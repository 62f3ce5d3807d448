/**
 * Both ends of a conversation, run inside pods and nodes: `echo.ts serve` answers what it gets over TCP and UDP,
 * `echo.ts ask ADDRESS...` sends streams and datagrams of every interesting size and compares what comes back.
 */
import { createHash, randomBytes } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';

const PORT = 7007;
const STREAM_BYTES = 4 << 20;
/** Payloads: tiny, around the MTUs of tunnel and underlay, and fragmented. */
const DATAGRAM_BYTES = [1, 1200, 1372, 1402, 1422, 1423, 1452, 1472, 1473, 4000, 20_000] as const;
const DEADLINE_MS = 20_000;

async function serve(): Promise<void> {
  createServer((socket) => socket.pipe(socket).on('error', () => socket.destroy())).listen(PORT, '::');
  const datagrams = createSocket({ type: 'udp6', ipv6Only: false });
  datagrams.on('message', (bytes, { address, port }) => datagrams.send(bytes, port, address));
  datagrams.bind(PORT, '::');
  await once(datagrams, 'listening');
  process.stdout.write('ready\n');
}

const digest = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

/** The other end is started at the same time: until it listens, connections are refused. */
async function untilListening(address: string): Promise<void> {
  const end = performance.now() + DEADLINE_MS;
  for (;;) {
    const socket = connect(PORT, address);
    try {
      await once(socket, 'connect', { signal: AbortSignal.timeout(DEADLINE_MS) });
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ECONNREFUSED' || performance.now() > end) throw error;
      await delay(20);
    } finally {
      socket.destroy();
    }
  }
}

async function askStream(address: string): Promise<void> {
  const sent = randomBytes(STREAM_BYTES);
  const socket = connect({ host: address, port: PORT, signal: AbortSignal.timeout(DEADLINE_MS) } as never);
  socket.end(sent);
  const chunks: Buffer[] = [];
  for await (const chunk of socket) chunks.push(chunk as Buffer);
  const received = Buffer.concat(chunks);
  if (digest(received) !== digest(sent))
    throw new Error(`sent ${sent.length} bytes by TCP, got ${received.length} others back`);
}

/** A datagram may be lost, which UDP allows: each is asked again a few times. One that never comes back is a fault. */
async function askDatagrams(address: string): Promise<void> {
  const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
  try {
    for (const size of DATAGRAM_BYTES) await askDatagram(socket, address, randomBytes(size));
  } finally {
    socket.close();
  }
}

async function askDatagram(socket: ReturnType<typeof createSocket>, address: string, sent: Buffer): Promise<void> {
  for (let attempt = 0; attempt < 3; attempt++) {
    const answer = once(socket, 'message', { signal: AbortSignal.timeout(2_000) });
    socket.send(sent, PORT, address);
    try {
      const [received] = (await answer) as [Buffer];
      if (digest(received) === digest(sent)) return;
    } catch {
      // No answer in time.
    }
  }
  throw new Error(`no echo of a datagram of ${sent.length} bytes`);
}

const [role, ...addresses] = process.argv.slice(2);
if (role === 'serve') await serve();
else {
  for (const address of addresses) {
    try {
      await untilListening(address);
      await askStream(address);
      await askDatagrams(address);
    } catch (error) {
      process.stderr.write(`${address}: ${error instanceof Error ? error.message : String(error)}\n`);
      process.exitCode = 1;
    }
  }
}
