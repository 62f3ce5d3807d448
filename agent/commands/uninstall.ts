/** `tulle uninstall`: takes everything away that Tulle made on this node. Exit code 0, or 1 with the reason. */
import { readConfigFile, resolveSettings } from '../config.ts';
import { createLog } from '../telemetry/log.ts';
import { planUninstall, type UninstallPlan, uninstall as uninstallNode } from '../uninstall.ts';
import { type AgentCall, bundledExecutable } from './agent.ts';
import { describeChange } from './diff.ts';

export interface UninstallCall extends Omit<AgentCall, 'version'> {
  readonly force: boolean;
  readonly dryRun: boolean;
}

export async function uninstall({ flags, configFile, environment, force, dryRun }: UninstallCall): Promise<number> {
  const file = configFile === undefined ? undefined : readConfigFile(configFile);
  const config = resolveSettings({ logLevel: 'error', ...flags }, environment, file);
  const options = { config, executable: config.cniExecutable || bundledExecutable(), log: createLog(config.logLevel) };
  const plan = dryRun ? await planUninstall(options) : await uninstallNode({ ...options, force });
  process.stdout.write(`${describeUninstall(plan, dryRun).join('\n')}\n`);
  return dryRun && plan.livePods.length > 0 && !force ? 1 : 0;
}

/** One line a thing, in the order of removal. */
export function describeUninstall(
  { livePods, conflist, changes, executables, kept, runFiles }: UninstallPlan,
  dryRun: boolean,
): readonly string[] {
  const file = (path: string) => `- file ${path}`;
  const refused = dryRun && livePods.length > 0 ? [`these pods would lose their network: ${livePods.join(', ')}`] : [];
  const lines = [
    ...conflist.map(file),
    ...changes.map((change) => describeChange(change).split('\n')[0] as string),
    ...[...executables, ...runFiles].map(file),
    ...kept.map((path) => `kept: file ${path} is not the executable of this version`),
    ...refused,
  ];
  return lines.length > 0 ? lines : ['nothing of Tulle is here'];
}
