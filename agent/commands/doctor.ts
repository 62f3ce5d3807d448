/** `tulle doctor`: what is wrong with this node, with evidence, cause and remedy. Exit code 0: nothing, 1: findings. */
import { type Config, readConfigFile, resolveSettings, SETTINGS, type SettingKey } from '../config.ts';
import { type CheckReport, type Diagnosis, examine, type Repair } from '../doctor/doctor.ts';
import type { AgentAnswer, DoctorOptions } from '../doctor/facts.ts';
import type { Finding } from '../doctor/finding.ts';
import { PRODUCTS } from '../doctor/products.ts';
import { type AgentCall, bundledExecutable, credentialsOf } from './agent.ts';
import { askAgent } from './ask-agent.ts';
import { table } from './table.ts';

export interface DoctorCall extends AgentCall {
  readonly json: boolean;
  /** Absent: nothing is changed. Empty: what is safe. Otherwise what is removed by these names. */
  readonly fix: readonly string[] | undefined;
}

/** What stands after `--fix`: true for nothing. `refuse` ends the call for a name that is none. */
export function fixNames(value: string | true | undefined, refuse: (message: string) => never): DoctorCall['fix'] {
  if (value === undefined || value === true) return value && [];
  const names = value.split(',');
  const known = PRODUCTS.map(({ name }) => name);
  const unknown = names.find((name) => !known.includes(name));
  if (unknown === undefined) return names;
  return refuse(`error: cannot fix ${JSON.stringify(unknown)}: expected one of ${known.join(', ')}`);
}

export async function doctor(call: DoctorCall): Promise<number> {
  const { json, fix } = call;
  const signal = new AbortController().signal;
  let { checks, repairs } = await examine(await optionsOf(call), fix, signal);
  // What was repaired is looked at again: only the kernel knows whether it holds.
  if (repairs.length > 0) ({ checks } = await examine(await optionsOf(call), undefined, signal));
  const healthy = checks.every(({ findings }) => findings.length === 0);
  const text = json ? `${JSON.stringify({ healthy, checks, repairs }, undefined, 2)}\n` : describe({ checks, repairs });
  process.stdout.write(text);
  return healthy ? 0 : 1;
}

/** What the running agent works with counts, unless a flag says otherwise: a person need not repeat its settings. */
async function optionsOf({ flags, configFile, environment, version }: DoctorCall): Promise<DoctorOptions> {
  const file = configFile === undefined ? undefined : readConfigFile(configFile);
  const given = resolveSettings(flags, environment, file);
  const answers = async () => {
    const running = (await askAgent(given.runDir, 'settings')) as Config;
    return { running, agent: (await askAgent(given.runDir, 'status')) as AgentAnswer };
  };
  const asked = await answers().catch((error: Error) => error);
  const config = asked instanceof Error ? given : withFlags(asked.running, given, flags);
  return {
    config,
    credentials: credentialsOf(config, environment),
    executable: config.cniExecutable || bundledExecutable(),
    version,
    agent: asked instanceof Error ? asked : asked.agent,
  };
}

function withFlags(running: Config, given: Config, flags: AgentCall['flags']): Config {
  const keys = (Object.keys(SETTINGS) as SettingKey[]).filter((key) => flags[key] !== undefined);
  return { ...running, ...Object.fromEntries(keys.map((key) => [key, given[key]])) };
}

/** One line a check, and below it what was found. */
export function describe({ checks, repairs }: Diagnosis): string {
  const heads = table(checks.map((report) => [worst(report), report.check, headline(report)]));
  const lines = checks.flatMap(({ findings }, i) => [heads[i] as string, ...findings.flatMap(describeFinding)]);
  return `${[...repairs.flatMap(describeRepair), ...lines].join('\n')}\n`;
}

const worst = ({ state, findings }: CheckReport): string =>
  state !== 'findings' ? state : findings.some(({ severity }) => severity === 'error') ? 'ERROR' : 'WARNING';

const headline = ({ findings, detail }: CheckReport): string =>
  findings.length === 0
    ? detail
    : findings.length === 1
      ? (findings[0] as Finding).summary
      : `${findings.length} findings`;

const describeFinding = ({ severity, summary, evidence, cause, remedy, fix }: Finding): readonly string[] => [
  `  ${severity}: ${summary}`,
  // Read from files and from others: nothing in it may steer the terminal.
  ...evidence.map((line) => `    | ${line.replaceAll(/\p{Cc}/gu, '?')}`),
  `    cause   ${cause}`,
  `    remedy  ${remedy}`,
  ...(fix ? [`    ${fix.name === undefined ? '--fix' : `--fix=${fix.name}`} would: ${fix.steps.join('; ')}`] : []),
  '',
];

const describeRepair = ({ steps, error }: Repair): readonly string[] => [
  ...steps.map((step) => `fix: ${step}`),
  ...(error === undefined ? [] : [`fix FAILED: ${error}`]),
];
