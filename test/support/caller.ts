/** A process that calls sockets as a test says, wherever its command line puts it. */
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { execa } from 'execa';
import type { Answer, Call } from './socket-caller.ts';

const CALLER = join(import.meta.dirname, 'socket-caller.ts');

export interface Caller {
  call(call: Call): Promise<Answer>;
  /** Side by side, some tens at a time; answers in the order of the calls. */
  callAll(calls: readonly Call[]): Promise<readonly Answer[]>;
  /** Makes connections until it is told to stop, then says how they went. */
  load(call: Omit<Call, 'how'>): { stop(): Promise<Answer> };
}

export interface OpenCaller extends Caller {
  readonly pid: number;
  end(): Promise<void>;
}

/** `inside`: argv that runs the argv behind it where the caller is to be. */
export async function openCaller(inside: readonly [string, ...string[]]): Promise<OpenCaller> {
  const [file, ...args] = inside;
  const subprocess = execa(file, [...args, process.execPath, CALLER], {
    reject: false,
    buffer: false,
    stderr: 'inherit',
  });
  const lines = createInterface({ input: subprocess.stdout })[Symbol.asyncIterator]();
  const next = async (): Promise<string> => {
    const { value, done } = await lines.next();
    if (done) throw new Error('the caller of sockets has ended');
    return value;
  };
  const write = (line: string): void => void subprocess.stdin.write(`${line}\n`);
  const ask = async (question: Call | readonly Call[]): Promise<unknown> => {
    write(JSON.stringify(question));
    return JSON.parse(await next());
  };
  const end = async () => {
    subprocess.kill('SIGKILL');
    await subprocess;
  };
  // What cannot start has no output.
  await next().catch(async (error: unknown) => {
    await end();
    throw error;
  });
  return {
    pid: subprocess.pid as number,
    call: async (call) => (await ask(call)) as Answer,
    callAll: async (calls) => (await ask(calls)) as readonly Answer[],
    load(call) {
      write(JSON.stringify({ ...call, how: 'load' }));
      return {
        async stop() {
          write('');
          return JSON.parse(await next()) as Answer;
        },
      };
    },
    end,
  };
}
