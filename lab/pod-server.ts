/**
 * What runs in a pod that serves: `node pod-server.ts NAME PORT...` answers over TCP and UDP, IPv4 and IPv6, with the line
 * `NAME CLIENT-ADDRESS CLIENT-PORT`: once for each datagram, for each piece of a stream, and at the end of a stream that
 * said nothing. A stream that speaks HTTP gets it as an HTTP response. Prints SERVING when all ports listen.
 */
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { flushCompileCache } from 'node:module';
import { createServer, type Socket } from 'node:net';

const SERVING = 'serving';
const HTTP = /^[A-Z]+ \S+ HTTP\/1\.[01]\r\n/;

async function serveStreams(name: string, port: number): Promise<void> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    // A client that resets its connection is no failure of the server.
    socket.on('error', () => socket.destroy());
    answerStream(socket, lineFor(name, socket.remoteAddress, socket.remotePort));
  });
  server.listen(port, '::');
  await once(server, 'listening');
}

function answerStream(socket: Socket, line: string): void {
  let said = false;
  socket.on('data', (bytes: Buffer) => {
    said = true;
    if (!HTTP.test(bytes.toString('latin1'))) socket.write(line);
    else socket.end(`HTTP/1.1 200 OK\r\ncontent-length: ${line.length}\r\nconnection: close\r\n\r\n${line}`);
  });
  socket.on('end', () => socket.end(said ? '' : line));
}

async function serveDatagrams(name: string, port: number): Promise<void> {
  const socket = createSocket({ type: 'udp6', ipv6Only: false });
  socket.on('message', (_, from) => socket.send(lineFor(name, from.address, from.port), from.port, from.address));
  socket.bind(port, '::');
  await once(socket, 'listening');
}

const lineFor = (name: string, address = '', port = 0): string =>
  `${name} ${address.replace(/^::ffff:/, '')} ${port}\n`;

const [name = '', ...ports] = process.argv.slice(2);
for (const port of ports.map(Number)) await Promise.all([serveStreams(name, port), serveDatagrams(name, port)]);
process.stdout.write(`${SERVING}\n`);
// For the next one: this process ends by a signal that leaves no time for it.
flushCompileCache();
