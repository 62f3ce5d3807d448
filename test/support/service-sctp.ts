/** Services of SCTP: no program sees their sockets, so packets serve them in every mode. */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import test, { type ExecutionContext } from 'ava';
import { execa } from 'execa';
import { families, familyOf } from '../../agent/model/ip.ts';
import { inNode, inPod } from '../../lab/node.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { output, TIMEOUT_MS } from './lab.ts';
import type { ServiceLab, ServicesMode } from './service-lab.ts';

const PORT = 7100;
/** So many that chance leaves no backend out. */
const TRIES = 20;

export function serviceSctp(mode: ServicesMode, lab: () => ServiceLab): void {
  test.serial(`${mode}: an SCTP port leads to its backends, and another one is refused`, async (t) => {
    t.timeout(120_000);
    const { api, written, lab: testLab, pods } = lab();
    const program = await compile(t);
    for (const number of [1, 2]) await answerIn(t, lab(), program, number);
    const protocol = 'SCTP';
    const spec = { type: 'NodePort', ports: [{ protocol, port: 80, targetPort: PORT }] };
    const { clusterIps, ports } = await api.createService('sctp', spec);
    for (const { family } of families)
      await api.createSlice({ of: 'sctp', family, endpoints: '1 2', ports: [{ protocol, port: PORT }] });
    await written();
    const idle = pods.get('idle-1') as PodStatus;
    const clients = {
      pod: inPod(testLab.node(idle.node), idle.netns, [program]),
      host: inNode(testLab.node('node-1'), [program]),
      neighbour: inNode(testLab.node('node-2'), [program]),
    };
    for (const [client, argv] of Object.entries(clients)) {
      const ask = async (ip: string, port: number) => (await output([...argv, 'ask', ip, String(port)])).trim();
      for (const { family } of families) {
        const [cluster = ''] = clusterIps.filter((ip) => familyOf(ip) === family);
        const [node = ''] = testLab.node('node-1').addresses.filter((ip) => familyOf(ip) === family);
        for (const [ip, port] of [
          [cluster, 80],
          [node, ports[0]?.nodePort as number],
        ] as const) {
          const answers = await Promise.all(Array.from({ length: TRIES }, () => ask(ip, port)));
          const expected = [1, 2].map((number) => `${number} ${ip} ${port}`);
          t.deepEqual([...new Set(answers)].sort(), expected, `${client} to ${ip} ${port}`);
        }
        t.notRegex(await ask(cluster, 81), /^\d/, `${client} to another port of ${cluster}`);
      }
    }
    await api.deleteService('sctp');
  });
}

async function compile(t: ExecutionContext): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), 'tulle-test-sctp-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const program = join(directory, 'sctp-init');
  const source = join(import.meta.dirname, 'sctp-init.c');
  await execa('gcc', ['-O1', '-Wall', '-Wextra', '-Werror', source, '-o', program]);
  return program;
}

/** In the pod of that number, which is what it calls itself. */
async function answerIn(
  t: ExecutionContext,
  { lab, pods }: ServiceLab,
  program: string,
  number: number,
): Promise<void> {
  const { node, netns } = pods.get(`web-${number}`) as PodStatus;
  const [file, ...args] = inPod(lab.node(node), netns, [program, 'answer', String(number)]);
  const child: ChildProcessByStdio<null, Readable, null> = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => child.kill());
  await once(child.stdout, 'data', { signal: AbortSignal.timeout(TIMEOUT_MS) });
}
