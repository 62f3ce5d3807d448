/**
 * A program: sends one UDP datagram and ends. Its argument is a Datagram as JSON. Without a process of its own a test could
 * not send from another network namespace; sendDatagram() of places.ts runs it.
 */
import { createSocket } from 'node:dgram';

export interface Datagram {
  /** May name a link: `ff02::1%eth0`. */
  readonly to: string;
  readonly port: number;
  /** Base64. */
  readonly payload: string;
  /** Source address. */
  readonly from?: string;
  /** Sends as nobody, without any capability. */
  readonly unprivileged?: boolean;
}

const NOBODY = 65_534;

function send({ to, port, payload, from, unprivileged }: Datagram): void {
  if (unprivileged) {
    process.setgroups?.([]);
    process.setgid?.(NOBODY);
    process.setuid?.(NOBODY);
  }
  const socket = createSocket(to.includes(':') ? 'udp6' : 'udp4');
  socket.bind({ port: 0, ...(from && { address: from }) }, () => {
    socket.setBroadcast(true);
    socket.send(Buffer.from(payload, 'base64'), port, to, (error) => {
      socket.close();
      if (error) throw error;
    });
  });
}

if (import.meta.main) send(JSON.parse(process.argv[2] ?? '{}') as Datagram);
