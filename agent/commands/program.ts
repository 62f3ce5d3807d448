/** The command line: one subcommand a file. Reading ones ask the running agent and know `--json`. */
import { readFileSync } from 'node:fs';
import { Command, CommanderError } from 'commander';
import { describeSettings, SETTINGS, type SettingKey } from '../config.ts';
import { diff } from './diff.ts';
import { status } from './status.ts';

type Environment = Readonly<Record<string, string | undefined>>;

export interface Program {
  /** Resolves with the exit code. Throws ConfigError and others for main to report. */
  run(argv: readonly string[]): Promise<number>;
}

/** Exit code of a call that cannot be understood. */
const USAGE = 2;

export const version: string = (
  JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string }
).version;

export function createProgram(environment: Environment): Program {
  let exitCode = 0;
  const program = new Command('tulle')
    .description('The whole network of a Kubernetes node in one agent')
    .version(version)
    .enablePositionalOptions()
    .exitOverride();
  const reading = (name: string, description: string, action: (options: Reading) => Promise<number>) =>
    withReading(program.command(name).description(description), environment).action(async (options) => {
      exitCode = await action(options);
    });
  reading('status', 'what is held in the kernel, what is dirty, blocked or contested, and why', status);
  reading(
    'diff',
    'what the next cycle would change in the kernel, without changing it (exit 0 nothing, 3 changes)',
    diff,
  );
  addServiceCommand(program, environment, (code) => {
    exitCode = code;
  });
  addAgentCommand(program, environment);
  addUninstallCommand(program, environment, (code) => {
    exitCode = code;
  });
  addDoctorCommand(program, environment, (code) => {
    exitCode = code;
  });
  return {
    run: async (argv) => {
      // The lab is loaded only when it is asked for: it is no part of the agent.
      if (argv[2] === 'lab') program.addCommand((await import('../../lab/cli.ts')).labCommand());
      else program.command('lab').description('a cluster of namespaces on this machine (lab --help)');
      try {
        await program.parseAsync([...argv]);
      } catch (error) {
        if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : USAGE;
        throw error;
      }
      return exitCode || Number(process.exitCode ?? 0);
    },
  };
}

interface Reading {
  readonly runDir: string;
  readonly json: boolean;
}

/** The options of a command that asks the running agent. */
const withReading = (command: Command, environment: Environment): Command =>
  command
    .option('--run-dir <path>', 'run directory of the agent', environment['TULLE_RUN_DIR'] ?? SETTINGS.runDir.default)
    .option('--json', 'print JSON', false);

function addServiceCommand(program: Command, environment: Environment, end: (exitCode: number) => void): void {
  const service = program.command('service').alias('svc').description('Services as this node serves them');
  withReading(
    service.command('ls').description('all of them: addresses, endpoints, and what is wrong'),
    environment,
  ).action(async (options: Reading) => {
    const { listServices } = await import('./service.ts');
    end(await listServices(options));
  });
  withReading(
    service
      .command('show')
      .description('one: frontends, backends, and what the kernel holds of it (exit 0 as planned, 3 differences)')
      .argument('<name>', '<namespace>/<name>; without a namespace: of default'),
    environment,
  ).action(async (name: string, options: Reading) => {
    const { showService } = await import('./service.ts');
    end(await showService(name, options));
  });
}

function addAgentCommand(program: Command, environment: Environment): void {
  const command = program
    .command('agent')
    .description('run the agent of this node')
    .option('--config <file>', 'YAML file with settings (nested keys, as in docs/settings.md)');
  addSettings(command, () => true);
  command.action(async (options: Readonly<Record<string, string>>) => {
    const { agent } = await import('./agent.ts');
    await agent({ flags: flagsOf(options), configFile: options['config'], environment, version });
  });
}

/** What an uninstallation has to know of the agent's settings. */
const UNINSTALL_SETTINGS: readonly SettingKey[] = [
  'runDir',
  'cniConfDir',
  'cniBinDir',
  'cniExecutable',
  'procSys',
  'iptables.backend',
  'logLevel',
];

function addUninstallCommand(program: Command, environment: Environment, end: (exitCode: number) => void): void {
  const command = program
    .command('uninstall')
    .description('remove everything of Tulle from this node: kernel objects, changed sysctls, installed files')
    .option('--force', 'also with pods that live, which lose their network', false)
    .option('--dry-run', 'print what would be removed, and change nothing', false)
    .option('--config <file>', "the agent's file of settings");
  addSettings(command, (key) => UNINSTALL_SETTINGS.includes(key));
  command.action(async ({ force, dryRun, config, ...options }) => {
    const { uninstall } = await import('./uninstall.ts');
    end(await uninstall({ flags: flagsOf(options), configFile: config, environment, force, dryRun }));
  });
}

function addDoctorCommand(program: Command, environment: Environment, end: (exitCode: number) => void): void {
  const command = program
    .command('doctor')
    .description('what is wrong with this node, with evidence, cause and remedy (exit 0 nothing, 1 findings)')
    .option('--json', 'print JSON', false)
    .option(
      '--fix [names]',
      "repair what is Tulle's own; with names (flannel,kube-proxy ...) remove what these have left instead",
    )
    .option('--config <file>', "the agent's file of settings, where no agent runs");
  addSettings(command, (key) => key !== 'logLevel');
  command.action(async ({ json, fix, config, ...options }) => {
    const { doctor, fixNames } = await import('./doctor.ts');
    const names = fixNames(fix, (message) => command.error(message));
    end(await doctor({ flags: flagsOf(options), configFile: config, environment, version, json, fix: names }));
  });
}

function addSettings(command: Command, isIncluded: (key: SettingKey) => boolean): void {
  for (const { flag, key, default: standard, help, expected } of describeSettings()) {
    if (!isIncluded(key)) continue;
    command.option(`${flag} <value>`, `${help} (${expected}; default ${standard === '' ? 'none' : standard})`);
  }
}

/** Commander's camel-cased option names back to setting keys. */
function flagsOf(options: Readonly<Record<string, string>>): Partial<Record<SettingKey, string>> {
  const flags: Partial<Record<SettingKey, string>> = {};
  for (const { key, flag } of describeSettings()) {
    const name = flag.slice(2).replaceAll(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
    if (options[name] !== undefined) flags[key] = options[name];
  }
  return flags;
}
