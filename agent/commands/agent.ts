/** `tulle agent`: settings, credentials, log, and the agent itself until a signal ends it. */
import { flushCompileCache } from 'node:module';
import { fileURLToPath } from 'node:url';
import { runAgent } from '../agent.ts';
import { serviceAccount } from '../cluster/credentials.ts';
import { kubeconfig } from '../cluster/kubeconfig.ts';
import { type Config, readConfigFile, resolveConfig, type SettingKey } from '../config.ts';
import { createLog } from '../telemetry/log.ts';

export interface AgentCall {
  readonly flags: Partial<Record<SettingKey, string>>;
  readonly configFile: string | undefined;
  readonly environment: Readonly<Record<string, string | undefined>>;
  readonly version: string;
}

export async function agent({ flags, configFile, environment, version }: AgentCall): Promise<void> {
  const config = resolveConfig(flags, environment, configFile === undefined ? undefined : readConfigFile(configFile));
  const log = createLog(config.logLevel);
  log.info({ version, config }, 'settings');
  const stop = new AbortController();
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.once(signal, () => {
      log.info({ signal }, 'the agent stops; the kernel keeps what it has');
      stop.abort(new Error(`stopped by ${signal}`));
    });
  }
  // For the next start: all modules are loaded, and an agent ends by a signal that leaves no time for it.
  flushCompileCache();
  const credentials = credentialsOf(config, environment);
  // A wrong kubeconfig is told at once, with the exit code for it, not retried.
  await credentials.current();
  await runAgent(
    { config, credentials, executable: config.cniExecutable || bundledExecutable(), version, log },
    stop.signal,
  );
}

/** Those that the settings name. */
export function credentialsOf(config: Config, environment: AgentCall['environment']) {
  const apiServer = config.apiServer === '' ? undefined : config.apiServer;
  if (config.kubeconfig !== '') return kubeconfig({ path: config.kubeconfig, apiServer });
  return serviceAccount({
    host: environment['KUBERNETES_SERVICE_HOST'],
    port: environment['KUBERNETES_SERVICE_PORT'],
    apiServer,
  });
}

/** The CNI executable beside this program. */
export const bundledExecutable = (): string => fileURLToPath(new URL('../../cni/build/tulle-cni', import.meta.url));
