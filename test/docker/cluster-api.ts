#!/usr/bin/env node
/**
 * The API server of the nodes in containers, in a process of its own because it listens in the machine's network.
 * Arguments: a directory, an address, names and addresses of the nodes as JSON. Writes `token` and `ca.crt` into the
 * directory, as kubelet has them for a service account; prints its port when the nodes are registered.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { finished } from 'node:stream/promises';
import { type Cidr, type IpAddress, parseCidr } from '../../agent/model/ip.ts';
import { startApiServer } from '../../lab/api-server/server.ts';
import { ApiWriter } from '../../lab/api-writer.ts';
import { registerNode } from '../../lab/node-object.ts';
import { createCa, createServingCertificate } from '../../lab/pki.ts';

const CLUSTER_CIDRS = ['10.84.0.0/16', 'fd84::/48'];
const SERVICE_CIDRS = ['10.96.0.0/16', 'fd96::/108'];
/** The machine has a network of its own. */
const PORT = 6443;
const [AGENT, AGENT_TOKEN] = ['system:serviceaccount:tulle-system:tulle', 'token-of-the-agent'];
const [ADMIN, ADMIN_TOKEN] = ['admin', 'token-of-the-administrator'];

async function main(directory: string, ip: IpAddress, nodes: Readonly<Record<string, readonly IpAddress[]>>) {
  const stop = new AbortController();
  const { signal } = stop;
  mkdirSync(directory, { recursive: true });
  const ca = await createCa({ directory, name: 'ca' }, signal);
  const place = { ca, names: ['kubernetes'], ips: [ip], directory, name: 'serving' };
  const { cert, key } = await createServingCertificate(place, signal);
  const tokens = new Map([
    [AGENT_TOKEN, AGENT],
    [ADMIN_TOKEN, ADMIN],
  ]);
  const cidrs = (texts: readonly string[]) => texts.map((text) => parseCidr(text) as Cidr);
  const ranges = {
    clusterCidrs: cidrs(CLUSTER_CIDRS),
    serviceCidrs: cidrs(SERVICE_CIDRS),
    advertised: { ip, port: PORT },
  };
  const tls = { cert, key, clientCa: ca.cert };
  const server = await startApiServer({ host: ip, port: PORT, tls, tokens, ...ranges }, signal);
  server.access.setReadOnly(AGENT, true);
  const api = new ApiWriter({ url: server.url, ca: ca.cert, token: ADMIN_TOKEN });
  for (const [name, addresses] of Object.entries(nodes)) await registerNode(api, { name, addresses }, signal);
  writeFileSync(join(directory, 'ca.crt'), ca.cert);
  writeFileSync(join(directory, 'token'), AGENT_TOKEN);
  process.stdout.write(`${new URL(server.url).port}\n`);
  // Ends with whoever holds the other end.
  await finished(process.stdin.resume());
  stop.abort();
  api.close();
}

const [directory = '', ip = '', nodes = '{}'] = process.argv.slice(2);
await main(directory, ip as IpAddress, JSON.parse(nodes));
