/**
 * Network namespaces of a test's own: made empty, gone with the test, and described in its log when it fails. Needs
 * root. Nothing here touches the namespace that the test runs in.
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { execa, type ResultPromise } from 'execa';

/** Followed by the number of this process: what a crash leaves behind is swept when the maker is gone. */
export const TEST_PREFIX = 'tulle-test-';

/** Bound against hanging, for one command. */
const COMMAND_TIMEOUT_MS = 20_000;

type Output = { readonly stdout: string; readonly stderr: string };
export const SPAWN = { reject: false, buffer: false, stdin: 'ignore' } as const;
export type Subprocess = ResultPromise<typeof SPAWN>;

export interface Netns {
  readonly name: string;
  /** `/run/netns/<name>`. */
  readonly path: string;
  /** Runs a program inside, with `/sys` of the namespace. Rejects with execa's error when it fails. */
  run(file: string, ...args: readonly string[]): Promise<Output>;
  /** The same with text on its standard input. */
  feed(stdin: string, file: string, ...args: readonly string[]): Promise<Output>;
  /** Starts a program inside that is killed at the end of the test. */
  spawn(file: string, ...args: readonly string[]): Subprocess;
}

/** `label` makes the name readable in a failing test's log: `tulle-test-4711-1f2e-router`. */
export async function createNetns(t: ExecutionContext, label?: string): Promise<Netns> {
  const name = [`${TEST_PREFIX}${process.pid}-${randomBytes(3).toString('hex')}`, label].filter(Boolean).join('-');
  const inside = ['netns', 'exec', name];
  const feed: Netns['feed'] = (input, file, ...args) =>
    execa('ip', [...inside, file, ...args], { input, timeout: COMMAND_TIMEOUT_MS });
  const netns: Netns = {
    name,
    path: `/run/netns/${name}`,
    feed,
    run: (file, ...args) => feed('', file, ...args),
    spawn: (file, ...args) => {
      const subprocess = execa('ip', [...inside, file, ...args], SPAWN);
      t.teardown(async () => {
        subprocess.kill('SIGKILL');
        await subprocess;
      });
      return subprocess;
    },
  };
  await execa('ip', ['netns', 'add', name]);
  t.teardown(async () => {
    if (!t.passed) t.log(await describeNetns(netns));
    await execa('ip', ['netns', 'delete', name]);
  });
  await netns.run('ip', 'link', 'set', 'lo', 'up');
  return netns;
}

export interface End {
  readonly netns: Netns;
  readonly link: string;
  /** `192.0.2.1/24`, `2001:db8::1/64`; usable at once (no duplicate address detection). */
  readonly addresses?: readonly string[];
}

/** Joins two namespaces by a veth pair; both ends are up when this returns. */
export async function connect(a: End, b: End, { mtuBytes = 1500 } = {}): Promise<void> {
  const [left, right] = [
    [a.link, 'netns', a.netns.name],
    [b.link, 'netns', b.netns.name],
  ] as const;
  const mtu = ['mtu', String(mtuBytes)];
  await execa('ip', ['link', 'add', ...left, ...mtu, 'type', 'veth', 'peer', 'name', ...right, ...mtu]);
  for (const { netns, link, addresses = [] } of [a, b]) {
    const commands = addresses.map(
      (address) => `address add ${address} dev ${link}${address.includes(':') ? ' nodad' : ''}`,
    );
    await netns.feed([...commands, `link set ${link} up`].join('\n'), 'ip', '-batch', '-');
  }
  await Promise.all([a, b].map(({ netns, link }) => waitForCarrier(netns, link)));
}

/** An address of IPv6 is no source before its link has a carrier. */
async function waitForCarrier(netns: Netns, link: string): Promise<void> {
  const hasCarrier = async () =>
    (await netns.run('ip', '-brief', 'link', 'show', 'dev', link)).stdout.includes('LOWER_UP');
  await waitFor(hasCarrier, { describe: `a carrier on ${link} of ${netns.name}` });
}

export interface Capture {
  /** What tcpdump printed so far, one line a packet. */
  readonly lines: readonly string[];
  /** Ends the capture and returns all lines. */
  stop(): Promise<readonly string[]>;
}

/** Captures in one namespace; every packet after the return of this is seen. `filter` is a pcap expression. */
export async function capture(netns: Pick<Netns, 'name' | 'spawn'>, link: string, filter: string): Promise<Capture> {
  const flags = ['-i', link, '-l', '-nn', '-e', '-v', '-tt', '--immediate-mode'];
  const tcpdump = netns.spawn('tcpdump', ...flags, filter);
  const lines: string[] = [];
  const reading = collect(tcpdump.iterable({ from: 'stdout' }), (line) => {
    // The second and later lines of a packet are indented.
    if (/^\s/.test(line) && lines.length > 0) lines.push(`${lines.pop()} ${line.trim()}`);
    else lines.push(line);
  });
  const said: string[] = [];
  const complaints = collect(tcpdump.iterable({ from: 'stderr' }), (line) => said.push(line));
  let ended = false;
  const end = Promise.all([reading, complaints, tcpdump]).then(() => {
    ended = true;
  });
  const isListening = () => said.some((line) => line.includes('listening on'));
  await waitFor(() => ended || isListening(), { describe: `tcpdump to listen on ${link}` });
  if (!isListening()) throw new Error(`cannot capture on ${link} of ${netns.name}: ${said.join('; ')}`);
  const stop = async () => {
    tcpdump.kill('SIGINT');
    await end;
    return lines;
  };
  return { lines, stop };
}

async function collect(lines: AsyncIterable<unknown>, onLine: (line: string) => void): Promise<void> {
  for await (const line of lines) onLine(String(line));
}

export interface Wait {
  /** Ends the sentence `did not happen within N ms: `. */
  readonly describe: string;
  /** Bound against hanging. */
  readonly timeoutMs?: number;
}

/** Asks again until the predicate holds. For what nobody announces. */
export async function waitFor(
  predicate: () => boolean | Promise<boolean>,
  { describe, timeoutMs = COMMAND_TIMEOUT_MS }: Wait,
): Promise<void> {
  const end = performance.now() + timeoutMs;
  while (!(await predicate())) {
    if (performance.now() > end) throw new Error(`did not happen within ${timeoutMs} ms: ${describe}`);
    await sleep(5);
  }
}

const DESCRIPTION = [
  'ip -details -statistics link',
  'ip address',
  'ip rule',
  'ip -6 rule',
  'ip route show table all',
  'ip -6 route show table all',
  'ip neighbour',
  'bridge fdb',
  'ipset save',
  'iptables-save --counters',
  'ip6tables-save --counters',
];

/** What a person wants to see of a namespace in which a test failed. */
async function describeNetns({ name, run }: Netns): Promise<string> {
  const parts = await Promise.all(
    DESCRIPTION.map(async (command) => {
      const { stdout } = await run(...(command.split(' ') as [string])).catch((error: Error) => ({
        stdout: error.message,
      }));
      return stdout === '' ? '' : `# ${command}\n${stdout}`;
    }),
  );
  return [`namespace ${name}:`, ...parts.filter(Boolean)].join('\n');
}
