/** argv → settings → wiring → run. The only place that ends the process. */
import { AgentUnreachable } from './commands/ask-agent.ts';
import { createProgram } from './commands/program.ts';
import { ConfigError } from './model/config-error.ts';

/** Exit codes: 0 done, 1 failed at run time, 2 usage, 78 bad configuration (sysexits.h). */
const EXIT = { failed: 1, usage: 2, configuration: 78 } as const;

try {
  process.exitCode = await createProgram(process.env).run(process.argv);
} catch (error) {
  process.exitCode = report(error);
}
// Sockets of the runtime (keep-alive connections) must not hold up an end that is decided.
process.exit();

function report(error: unknown): number {
  if (error instanceof ConfigError) {
    process.stderr.write(`tulle: ${error.message}\n`);
    return EXIT.configuration;
  }
  const text =
    error instanceof AgentUnreachable || !(error instanceof Error)
      ? String((error as Error).message ?? error)
      : `${error.message}`;
  process.stderr.write(`tulle: ${text}\n`);
  return (error as { code?: unknown }).code === 'commander.usage' ? EXIT.usage : EXIT.failed;
}
