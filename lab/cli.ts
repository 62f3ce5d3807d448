/** `tulle lab …`: the command line of the lab. Thin: each command asks the supervisor, or enters a node itself. */
import { resolve } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import { flagName, SETTINGS } from '../agent/config.ts';
import type { Family } from '../agent/model/ip.ts';
import { become } from './become.ts';
import { type LabOptions, labControl, RUNTIMES, type RuntimeName } from './control.ts';
import { control, findNode, layout, readStatus } from './current-lab.ts';
import { hasLeftovers, removeLab } from './down.ts';
import { MAX_NODES, MAX_SEGMENTS } from './fabric.ts';
import { lockLab } from './lock.ts';
import { inNode } from './node.ts';
import { wholeNumber } from './option-values.ts';
import { addPodCommands } from './pod-cli.ts';
import { checkMachine, checkRoot } from './preflight.ts';
import { describeStatus, printLines, printStep } from './print.ts';
import { addServiceCommands } from './service-cli.ts';
import { tour } from './tour.ts';
import { DEFAULT_OPTIONS, isUp, startLabProcess, TULLE } from './up.ts';

const FAMILY_CHOICES: Readonly<Record<string, readonly Family[]>> = {
  ipv4: ['ipv4'],
  ipv6: ['ipv6'],
  dual: ['ipv4', 'ipv6'],
};

/** Settings of the agents that are options of the lab, under the agent's own names. */
const AGENT_SETTINGS = ['backend', 'podLink', 'services.mode'] as const;

/** Where a lab is made otherwise than an agent is by default: there is no other proxy in it. */
const LAB_DEFAULTS: { readonly [K in (typeof AGENT_SETTINGS)[number]]?: string } = { 'services.mode': 'auto' };

/** Under the names that commander gives them: `servicesMode`. */
type AgentOptions = Readonly<Partial<Record<string, string>>>;

interface UpOptions {
  readonly nodes: number;
  readonly families: string;
  readonly segments: number;
  readonly zones: number;
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
  addServiceCommands(lab);
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
      printLines(json ? [JSON.stringify(status, undefined, 2)] : describeStatus(status));
    });
  lab
    .command('kubeconfig')
    .description('print the path of a kubeconfig with all rights; it works inside of the lab, see lab kubectl')
    .action(async () => printLines([(await readStatus()).apiServer.kubeconfig]));
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
    .option(
      '--zones <n>',
      'how many zones the nodes are spread over; 0: none',
      wholeNumber(0, MAX_NODES),
      DEFAULT_OPTIONS.zones,
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
  const option = new Option(`--${flagName(key)} <value>`, `${help} (${type.expected})`).argParser((text: string) => {
    if (type.parse(text) === undefined) throw new InvalidArgumentError(`expected ${type.expected}.`);
    return text;
  });
  return option.default(LAB_DEFAULTS[key]);
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
      printLines([`killed process ${(await control().killAgent(name)).pid}, the agent of ${name}`]),
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
  { nodes, families, segments, zones, agent, runtime, force, ...settings }: UpOptions,
): Promise<void> {
  checkMachine(runtime);
  const startMs = performance.now();
  const options: LabOptions = {
    ...DEFAULT_OPTIONS,
    nodes,
    segments,
    zones,
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
  AGENT_SETTINGS.flatMap((key) => {
    const value = settings[agentOption(key).attributeName()];
    return value === undefined ? [] : [`--${flagName(key)}`, value];
  });

async function down(): Promise<void> {
  checkRoot();
  await using _ = await lockLab(layout().dir);
  if (!(await hasLeftovers(layout()))) printLines(['nothing to end: no lab is up and nothing of one is left']);
  await removeLab(layout(), printStep);
}
