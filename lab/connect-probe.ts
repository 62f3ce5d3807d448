/**
 * Runs in a pod: `node connect-probe.ts ROUNDS SERVICE DIRECT...`, each an address and port (`10.96.0.7:80`, `[fd96::7]:80`).
 * In each round it connects to the Service and to one of the direct places, by turns which of them first, and reads the
 * name of who answers. Prints a ProbeResult.
 */
import { connect } from 'node:net';
import { text } from 'node:stream/consumers';
import type { IpPort } from '../agent/model/ip-port.ts';
import { parseIpPort } from '../agent/model/ip-port.ts';

export interface ProbeResult {
  /** Connections to the Service, by the name of who answered. */
  readonly answers: Readonly<Record<string, number>>;
  /** Medians, in milliseconds, from connect() to the connection. */
  readonly serviceMs: number;
  readonly directMs: number;
}

/** Until something is answered, or not. */
const DEADLINE_MS = 5_000;

async function ask({ ip, port }: IpPort): Promise<{ readonly name: string; readonly connectMs: number }> {
  const startMs = performance.now();
  let connectMs = 0;
  const socket = connect({ host: ip, port, signal: AbortSignal.timeout(DEADLINE_MS) } as never);
  socket.once('connect', () => {
    connectMs = performance.now() - startMs;
    socket.end();
  });
  const line = await text(socket);
  return { name: line.split(' ')[0] ?? '', connectMs };
}

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1] ?? NaN;

async function probe(rounds: number, service: IpPort, direct: readonly IpPort[]): Promise<ProbeResult> {
  const answers: Record<string, number> = {};
  const [serviceMs, directMs]: [number[], number[]] = [[], []];
  for (let round = 0; round < rounds; round++) {
    const askService = async () => {
      const { name, connectMs } = await ask(service);
      answers[name] = (answers[name] ?? 0) + 1;
      serviceMs.push(connectMs);
    };
    const askDirect = async () => {
      directMs.push((await ask(direct[round % direct.length] as IpPort)).connectMs);
    };
    for (const one of round % 2 ? [askService, askDirect] : [askDirect, askService]) await one();
  }
  return { answers, serviceMs: median(serviceMs), directMs: median(directMs) };
}

if (import.meta.main) {
  const [rounds, ...places] = process.argv.slice(2);
  const [service, ...direct] = places.map((place) => {
    const parsed = parseIpPort(place);
    if (!parsed) throw new TypeError(`cannot probe ${place}: expected an address and a port`);
    return parsed;
  });
  console.log(JSON.stringify(await probe(Number(rounds), service as IpPort, direct)));
}
