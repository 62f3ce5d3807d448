import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { constants } from 'node:os';

/** Runs a command in the place of this one: its terminal, its exit code, 128 + n for a signal as shells have it. */
export async function become([file, ...args]: readonly [string, ...string[]]): Promise<void> {
  const child = spawn(file, args, { stdio: 'inherit' });
  // The terminal sends them to both; what the command makes of them decides.
  const ignored = () => undefined;
  process.on('SIGINT', ignored).on('SIGQUIT', ignored);
  const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals];
  process.exitCode = code ?? 128 + constants.signals[signal];
}
