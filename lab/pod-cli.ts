/** `tulle lab pod ...`, and what is done in pods and between them. */
import { type Command, Option } from 'commander';
import { table } from '../agent/commands/table.ts';
import { families as allFamilies, type Family } from '../agent/model/ip.ts';
import type { PortMapping } from '../agent/model/port-mapping.ts';
import { become } from './become.ts';
import type { LabStatus } from './control.ts';
import { control, findNode, findPod, readStatus } from './current-lab.ts';
import { LabError } from './lab-error.ts';
import { inPod } from './node.ts';
import { hostPort, label, servedPort, wholeNumber } from './option-values.ts';
import { matrixOf, pingAll, pingEnds } from './ping.ts';
import type { ServedPort } from './pods.ts';
import { describeStatus, printLines } from './print.ts';

/** What a kubelet gives a pod unless it asks for another. */
const GRACE_SECONDS = 30;

interface RunOptions {
  readonly node: string;
  readonly namespace: string;
  readonly label?: Readonly<Record<string, string>>;
  readonly serve?: readonly ServedPort[];
  readonly hostPort?: readonly PortMapping[];
}

/** `pod ...`, `exec`, `ping`. */
export function addPodCommands(lab: Command): void {
  const pod = lab.command('pod').description('pods of the lab');
  pod
    .command('run')
    .description('start a pod: its network through the CNI executable of the node, then its command')
    .argument('<name>')
    .argument('[command...]', 'after --: what runs in it; nothing by default')
    .requiredOption('--node <node>', 'where it runs')
    .option('--namespace <namespace>', 'its namespace', 'default')
    .option('--label <key=value>', 'a label beside app=NAME; may be repeated', label)
    .addOption(
      new Option(
        '--serve <[name=]port>',
        'in place of a command: answer with its name over TCP and UDP; may be repeated',
      ).argParser(servedPort),
    )
    .option(
      '--host-port <[ip:]port:port[/protocol]>',
      'a port of the node that leads to one of the pod: 8080:80/tcp; may be repeated',
      hostPort,
    )
    .action(async (name: string, command: string[], options: RunOptions) => {
      const { node, namespace, label: labels, serve, hostPort: hostPorts } = options;
      if (serve && command.length > 0) {
        throw new LabError({ operation: `run pod ${name}`, expected: '--serve or a command', received: 'both' });
      }
      const { addresses, addMs } = await control().runPod({
        name,
        namespace,
        node,
        command,
        labels,
        serve,
        hostPorts,
      });
      printLines([`${namespace}/${name} on ${node}: ${addresses.join(', ')} (${addMs.toFixed(0)} ms)`]);
    });
  pod
    .command('ls')
    .description('list pods')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: boolean }) => {
      const status = await readStatus();
      printLines(json ? [JSON.stringify(status.pods, undefined, 2)] : describeStatus({ ...status, nodes: [] }));
    });
  podAction(pod, 'rm', 'end a pod and remove it', async ({ namespace, name }) => control().removePod(namespace, name));
  podAction(pod, 'check', 'CNI CHECK: is its network what ADD made it', async ({ namespace, name }) =>
    control().checkPod(namespace, name),
  );
  podAction(pod, 'unready', 'let its readiness probe fail from now on', async ({ namespace, name }) =>
    control().setPodReady(namespace, name, false),
  );
  podAction(pod, 'ready', 'let its readiness probe succeed again', async ({ namespace, name }) =>
    control().setPodReady(namespace, name, true),
  );
  podAction(
    pod,
    'terminate',
    'mark it as about to go, as kubectl delete does; rm ends it',
    async ({ namespace, name }) => control().terminatePod(namespace, name, GRACE_SECONDS),
  );
  podAction(pod, 'logs', 'print the output of its command', async ({ logFile }) => become(['cat', logFile]));
  lab
    .command('exec')
    .description('run a command in a pod; its exit code is passed on')
    .argument('<pod>', 'NAME or NAMESPACE/NAME')
    .argument('<command...>', 'after --')
    .action(async (name: string, command: string[]) => {
      const status = await readStatus();
      const { node, netns } = findPod(status, name);
      await become(inPod(findNode(status, node), netns, command));
    });
  addPingCommand(lab);
}

function podAction(
  pod: Command,
  name: string,
  description: string,
  action: (pod: LabStatus['pods'][number]) => Promise<void>,
): void {
  pod
    .command(name)
    .description(description)
    .argument('<pod>', 'NAME or NAMESPACE/NAME')
    .action(async (given: string) => action(findPod(await readStatus(), given)));
}

function addPingCommand(lab: Command): void {
  lab
    .command('ping')
    .description('ping every pod from every other; exit code 1 if any answer is missing')
    .option('--json', 'print JSON')
    .option('--count <n>', 'echo requests a pair', wholeNumber(1, 1000), 1)
    .addOption(new Option('--family <family>', 'only this one').choices(allFamilies.map(({ family }) => family)))
    .option('--nodes', 'nodes as well: to pods, and from pods')
    .action(
      async ({
        json,
        count,
        family,
        nodes = false,
      }: {
        json?: boolean;
        count: number;
        family?: Family;
        nodes?: boolean;
      }) => {
        const status = await readStatus();
        const ends = pingEnds(status);
        const options = { count, nodes, families: family ? [family] : status.families };
        const results = await pingAll(ends, options, new AbortController().signal);
        const ok = results.length > 0 && results.every((result) => result.ok);
        const lost = results.filter((result) => !result.ok).length;
        const text =
          results.length === 0
            ? ['nothing to ping: it takes two pods']
            : [...table(matrixOf(ends, results)), `${results.length} pairs, ${lost} lost`];
        printLines(json ? [JSON.stringify({ ok, results }, undefined, 2)] : text);
        if (!ok) process.exitCode = 1;
      },
    );
}
