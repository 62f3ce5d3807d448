/**
 * A program for a namespace of a test of the tunnel: it answers at TCP port 7000 and UDP port 7001 with what it is sent, and calls
 * such answerers when its parent asks (process.send). With `relay` it stands between two tunnels instead.
 */
import { createHash, randomBytes } from 'node:crypto';
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { connect, createServer } from 'node:net';
import { Relay, type RelayOptions, type RelayRequest } from './tun-relay.ts';

export type EndRequest =
  /** Sends so many random bytes and reads them back over one connection. Answers with how many came back unchanged. */
  | { readonly kind: 'tcp'; readonly to: string; readonly bytes: number }
  /** The same with as many as there is time for until `done` is asked. Answers then. */
  | { readonly kind: 'tcp-until-done'; readonly to: string }
  | { readonly kind: 'done' }
  /** One datagram of each size, to and fro. Answers with the sizes that did not come back unchanged. */
  | { readonly kind: 'udp'; readonly to: string; readonly sizes: readonly number[]; readonly answerMs?: number }
  /** Answers with the errno that a connected socket of datagrams is told. */
  | { readonly kind: 'refused'; readonly to: string }
  /** Sizes of all datagrams that came to the answerer so far. */
  | { readonly kind: 'received' }
  | { readonly kind: 'relay'; readonly options: RelayOptions }
  | { readonly kind: 'relayed'; readonly request: RelayRequest };

export const TCP_PORT = 7000;
export const UDP_PORT = 7001;
/** Bounds against hanging. */
const STREAM_MS = 30_000;
const ANSWER_MS = 5_000;

const received: number[] = [];

async function answer(): Promise<void> {
  const server = createServer((socket) => socket.on('error', () => socket.destroy()).pipe(socket));
  const datagrams = createSocket('udp6');
  datagrams.on('message', (bytes, { address, port }) => {
    received.push(bytes.length);
    datagrams.send(bytes, port, address, () => {});
  });
  server.listen(TCP_PORT, '::');
  datagrams.bind(UDP_PORT, '::');
  await Promise.all([once(server, 'listening'), once(datagrams, 'listening')]);
}

async function stream(to: string, bytes: number): Promise<number> {
  const sent = randomBytes(bytes);
  const socket = connect({ host: to, port: TCP_PORT, signal: AbortSignal.timeout(STREAM_MS) } as never);
  const hash = createHash('sha256');
  let count = 0;
  socket.end(sent);
  for await (const chunk of socket as AsyncIterable<Buffer>) {
    hash.update(chunk);
    count += chunk.length;
  }
  return hash.digest('hex') === createHash('sha256').update(sent).digest('hex') ? count : -count;
}

const PIECE_BYTES = 100_000;
let isDone = false;

async function streamUntilDone(to: string): Promise<number> {
  const socket = connect({ host: to, port: TCP_PORT, signal: AbortSignal.timeout(STREAM_MS) } as never);
  const [sent, back] = [createHash('sha256'), createHash('sha256')];
  const send = async () => {
    for (isDone = false; !isDone; ) {
      const piece = randomBytes(PIECE_BYTES);
      sent.update(piece);
      if (!socket.write(piece)) await once(socket, 'drain');
    }
    socket.end();
  };
  let count = 0;
  const receive = async () => {
    for await (const chunk of socket as AsyncIterable<Buffer>) {
      back.update(chunk);
      count += chunk.length;
    }
  };
  await Promise.all([send(), receive()]);
  return back.digest('hex') === sent.digest('hex') ? count : -count;
}

async function datagrams(to: string, sizes: readonly number[], answerMs = ANSWER_MS): Promise<readonly number[]> {
  const socket = createSocket(to.includes(':') ? 'udp6' : 'udp4');
  const failed: number[] = [];
  for (const size of sizes) {
    const sent = randomBytes(size);
    const came = once(socket, 'message', { signal: AbortSignal.timeout(answerMs) }).catch(() => [Buffer.of()]);
    socket.send(sent, UDP_PORT, to);
    const [bytes] = (await came) as [Buffer];
    if (!bytes.equals(sent)) failed.push(size);
  }
  socket.close();
  return failed;
}

async function refused(to: string): Promise<string> {
  const socket: Socket = createSocket(to.includes(':') ? 'udp6' : 'udp4');
  socket.connect(9, to);
  await once(socket, 'connect');
  const failed = once(socket, 'error', { signal: AbortSignal.timeout(ANSWER_MS) }).catch((error: Error) => [error]);
  socket.send('anybody there?', (error) => error && socket.emit('error', error));
  // The answer meets a socket that reads, or the next that sends.
  const [error] = (await Promise.race([failed, once(socket, 'error')])) as [NodeJS.ErrnoException];
  socket.close();
  return error.code ?? error.message;
}

let relay: Relay | undefined;

async function carryOut(request: EndRequest): Promise<unknown> {
  switch (request.kind) {
    case 'tcp':
      return stream(request.to, request.bytes);
    case 'tcp-until-done':
      return streamUntilDone(request.to);
    case 'done':
      isDone = true;
      return;
    case 'udp':
      return datagrams(request.to, request.sizes, request.answerMs);
    case 'refused':
      return refused(request.to);
    case 'received':
      return received;
    case 'relay':
      relay?.close();
      relay = new Relay(request.options);
      return relay.ready;
    case 'relayed':
      return relay?.carryOut(request.request);
  }
}

export interface EndAnswer {
  readonly number: number;
  readonly value?: unknown;
  readonly error?: string;
}

if (import.meta.main) {
  await answer();
  process.on('message', ({ number, request }: { number: number; request: EndRequest }) => {
    carryOut(request).then(
      (value) => process.send?.({ number, value } satisfies EndAnswer),
      (error: Error) => process.send?.({ number, error: error.message } satisfies EndAnswer),
    );
  });
  process.on('disconnect', () => {
    process.exitCode = 1;
    process.kill(process.pid);
  });
  process.send?.({ number: -1 } satisfies EndAnswer);
}
