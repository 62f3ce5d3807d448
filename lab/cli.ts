/** `tulle lab …`: the command line of the lab. Thin: each command asks the supervisor, or enters a node itself. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:os';
import { resolve } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import { table } from '../agent/commands/table.ts';
import { flagName, SETTINGS } from '../agent/config.ts';
import { families as allFamilies, type Family } from '../agent/model/ip.ts';
import { type LabOptions, type LabStatus, labControl, RUNTIMES, type RuntimeName } from './control.ts';
import { hasLeftovers, removeLab } from './down.ts';
import { MAX_NODES, MAX_SEGMENTS } from './fabric.ts';
import { LabError } from './lab-error.ts';
import { DEFAULT_LAB_DIR, type LabLayout, labLayout } from './layout.ts';
import { lockLab } from './lock.ts';
import { inNode, inPod } from './node.ts';
import { matrixOf, pingAll, pingEnds } from './ping.ts';
import { checkMachine, checkRoot } from './preflight.ts';
import { describeStatus, printLines, printStep } from './print.ts';
import { tour } from './tour.ts';
import { DEFAULT_OPTIONS, isUp, startLabProcess, TULLE } from './up.ts';

const FAMILY_CHOICES: Readonly<Record<string, readonly Family[]>> = {
  ipv4: ['ipv4'],
  ipv6: ['ipv6'],
  dual: ['ipv4', 'ipv6'],
};

/** Settings of the agents that are options of the lab, under the agent's own names. */
const AGENT_SETTINGS = ['backend', 'podLink'] as const;

type AgentOptions = { readonly [K in (typeof AGENT_SETTINGS)[number]]?: string };

interface UpOptions extends AgentOptions {
  readonly nodes: number;
  readonly families: string;
  readonly segments: number;
  readonly agent: string;
  readonly runtime: RuntimeName;
  readonly force?: boolean;
}

/** The commander sub-tree. Actions set process.exitCode; they throw LabError and others for main to report. */
export function labCommand(): Command {
  const lab = new Command('lab')
    .description('a cluster of namespaces on this machine')
    .enablePositionalOptions()
    .exitOverride();
  addLifeCommands(lab);
  addPodCommands(lab);
  addNodeCommands(lab);
  return lab;
}

function addLifeCommands(lab: Command): void {
  withUpOptions(lab.command('up').description('start a lab and wait until every agent is ready'))
    .option('--force', 'replace a lab that is up')
    .action(up);
  lab.command('down').description('end the lab, or remove what is left of one that crashed').action(down);
  lab
    .command('status')
    .description('nodes, agents, pods, and where the API server is')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: boolean }) => {
      const status = await readStatus();
      print(json ? [JSON.stringify(status, undefined, 2)] : describeStatus(status));
    });
  lab
    .command('kubeconfig')
    .description('print the path of a kubeconfig with all rights; it works inside of the lab, see lab kubectl')
    .action(async () => print([(await readStatus()).apiServer.kubeconfig]));
  lab
    .command('kubectl')
    .description('run the kubectl of this machine against the API server of the lab')
    .argument('[args...]', 'after --: its arguments')
    .action(async (args: string[]) => {
      const { supervisorPid, apiServer } = await readStatus();
      await become([
        'nsenter',
        '--target',
        `${supervisorPid}`,
        '--net',
        '--',
        'kubectl',
        '--kubeconfig',
        apiServer.kubeconfig,
        ...args,
      ]);
    });
  withUpOptions(
    lab
      .command('tour')
      .description('a guided tour with real packets; starts a lab if none is up and leaves it running'),
  ).action(async (agentArgs: string[], options: UpOptions) => {
    checkRoot();
    if (!(await isUp(layout()))) await up(agentArgs, options);
    await tour(labControl(layout()));
  });
}

const withUpOptions = (command: Command): Command => {
  for (const key of AGENT_SETTINGS) command.addOption(agentOption(key));
  return command
    .option('--nodes <n>', 'how many nodes', wholeNumber(1, MAX_NODES), DEFAULT_OPTIONS.nodes)
    .addOption(
      new Option('--families <families>', 'addresses of nodes and pods')
        .choices(Object.keys(FAMILY_CHOICES))
        .default('dual'),
    )
    .option(
      '--segments <n>',
      'how many L2 segments the nodes are spread over, with a router between',
      wholeNumber(1, MAX_SEGMENTS),
      1,
    )
    .option('--agent <file>', 'the `tulle` of another build, such as dist/tulle, for the agents', TULLE)
    .addOption(
      new Option('--runtime <runtime>', 'what runs the pods: the lab, as containerd would, or containerd in each node')
        .choices(RUNTIMES)
        .default(DEFAULT_OPTIONS.runtime),
    )
    .argument('[agentArgs...]', 'after --: further arguments of every agent, such as --vxlan-vni 7');
};

function agentOption(key: (typeof AGENT_SETTINGS)[number]): Option {
  const { type, help } = SETTINGS[key];
  return new Option(`--${flagName(key)} <value>`, `${help} (${type.expected})`).argParser((text: string) => {
    if (type.parse(text) === undefined) throw new InvalidArgumentError(`expected ${type.expected}.`);
    return text;
  });
}

function addPodCommands(lab: Command): void {
  const pod = lab.command('pod').description('pods of the lab');
  pod
    .command('run')
    .description('start a pod: its network through the CNI executable of the node, then its command')
    .argument('<name>')
    .argument('[command...]', 'after --: what runs in it; nothing by default')
    .requiredOption('--node <node>', 'where it runs')
    .option('--namespace <namespace>', 'its namespace', 'default')
    .action(async (name: string, command: string[], { node, namespace }: { node: string; namespace: string }) => {
      const { addresses, addMs } = await control().runPod({ name, namespace, node, command });
      print([`${namespace}/${name} on ${node}: ${addresses.join(', ')} (${addMs.toFixed(0)} ms)`]);
    });
  pod
    .command('ls')
    .description('list pods')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: boolean }) => {
      const status = await readStatus();
      print(json ? [JSON.stringify(status.pods, undefined, 2)] : describeStatus({ ...status, nodes: [] }));
    });
  podAction(pod, 'rm', 'end a pod and remove it', async ({ namespace, name }) => control().removePod(namespace, name));
  podAction(pod, 'check', 'CNI CHECK: is its network what ADD made it', async ({ namespace, name }) =>
    control().checkPod(namespace, name),
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
        print(json ? [JSON.stringify({ ok, results }, undefined, 2)] : text);
        if (!ok) process.exitCode = 1;
      },
    );
}

function addNodeCommands(lab: Command): void {
  lab
    .command('logs')
    .description("print a node's agent log")
    .argument('<node>')
    .option('-f, --follow', 'and what is added to it')
    .action(async (name: string, { follow }: { follow?: boolean }) => {
      const { agentLog } = findNode(await readStatus(), name);
      await become(['tail', '-n', '+1', ...(follow ? ['-F'] : []), agentLog]);
    });
  lab
    .command('kill-agent')
    .description("SIGKILL a node's agent; it is started again")
    .argument('<node>')
    .action(async (name: string) =>
      print([`killed process ${(await control().killAgent(name)).pid}, the agent of ${name}`]),
    );
  lab
    .command('exec-node')
    .description('run a command in a node; its exit code is passed on')
    .argument('<node>')
    .argument('<command...>', 'after --')
    .action(async (name: string, command: string[]) => become(inNode(findNode(await readStatus(), name), command)));
}

async function up(
  agentArgs: string[],
  { nodes, families, segments, agent, runtime, force, ...settings }: UpOptions,
): Promise<void> {
  checkMachine(runtime);
  const startMs = performance.now();
  const options: LabOptions = {
    ...DEFAULT_OPTIONS,
    nodes,
    segments,
    runtime,
    families: FAMILY_CHOICES[families] ?? [],
    agentCommand: [resolve(agent), 'agent'],
    agentArgs: [...agentArgumentsOf(settings), ...agentArgs],
  };
  await using _ = await lockLab(layout().dir);
  if (force) await removeLab(layout(), printStep);
  await startLabProcess(layout(), options, printStep);
  printStep(`the lab is up: ${nodes} nodes`, performance.now() - startMs);
}

/** Before those after `--`, which therefore win. */
const agentArgumentsOf = (settings: AgentOptions): readonly string[] =>
  AGENT_SETTINGS.flatMap((key) => (settings[key] === undefined ? [] : [`--${flagName(key)}`, settings[key]]));

async function down(): Promise<void> {
  checkRoot();
  await using _ = await lockLab(layout().dir);
  if (!(await hasLeftovers(layout()))) print(['nothing to end: no lab is up and nothing of one is left']);
  await removeLab(layout(), printStep);
}

const layout = (): LabLayout => labLayout(process.env['TULLE_LAB_DIR'] || DEFAULT_LAB_DIR);

const control = () => labControl(layout());

async function readStatus(): Promise<LabStatus> {
  checkRoot();
  return control().status();
}

function findNode({ nodes }: LabStatus, name: string): LabStatus['nodes'][number] {
  const node = nodes.find((candidate) => candidate.name === name);
  if (node) return node;
  const expected = `one of ${nodes.map((candidate) => candidate.name).join(', ')}`;
  throw new LabError({ operation: 'find the node', expected, received: JSON.stringify(name) });
}

function findPod({ pods }: LabStatus, name: string): LabStatus['pods'][number] {
  const full = name.includes('/') ? name : `default/${name}`;
  const pod = pods.find((candidate) => `${candidate.namespace}/${candidate.name}` === full);
  if (pod) return pod;
  throw new LabError({
    operation: 'find the pod',
    expected: 'a pod of the lab',
    received: JSON.stringify(name),
    remedy: 'see `tulle lab pod ls`',
  });
}

/** Runs a command in the place of this one: its terminal, its exit code, 128 + n for a signal as shells have it. */
async function become([file, ...args]: readonly [string, ...string[]]): Promise<void> {
  const child = spawn(file, args, { stdio: 'inherit' });
  // The terminal sends them to both; what the command makes of them decides.
  const ignored = () => undefined;
  process.on('SIGINT', ignored).on('SIGQUIT', ignored);
  const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals];
  process.exitCode = code ?? 128 + constants.signals[signal];
}

const wholeNumber = (min: number, max: number) => (text: string) => {
  if (/^\d{1,6}$/.test(text) && Number(text) >= min && Number(text) <= max) return Number(text);
  throw new InvalidArgumentError(`expected a whole number from ${min} to ${max}.`);
};

const print = printLines;
