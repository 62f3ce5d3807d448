#!/usr/bin/env node
/**
 * Runs tests on another kernel: Debian's 6.1 in QEMU, on this machine's own files, read-only. Arguments are those of
 * scripts/test.ts, or `drivers`, `services`, `lab`; without any, these three. The last line is `N passed, N failed`; the
 * exit code is 0 only when the guest said so. Always emulated: a /dev/kvm may be there and hang.
 */
import { globSync } from 'node:fs';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { buildInitramfs, type GuestKernel, guestKernel } from './guest-kernel.ts';

const HERE = import.meta.dirname;
const HOME = join(HERE, '../..');
/** All of them are the default. A file takes one to eleven minutes of a processor, all some forty. */
const SETS: Readonly<Record<string, () => readonly string[]>> = {
  drivers: () => filesIn('test/kernel').filter((file) => !isOfServices(file)),
  services: () => [...filesIn('test/kernel').filter(isOfServices), 'test/vm/services.test.ts'],
  lab: () => ['test/vm/missing-module.test.ts', 'test/e2e/lab.test.ts'],
};
/** Bound against hanging. */
const TIMEOUT_MS = 4 * 3_600_000;
const MEMORY_MIB = 3072;
/** The last line of the guest's command, see guest.sh. */
const EXIT = /^exit (?<code>\d+)$/;
/** The last lines of a kernel's log that are shown when the guest did not end by itself. */
const CONSOLE_LINES = 40;

async function main(args: readonly string[]): Promise<number> {
  const bad = args.find((arg) => !/^[\w./=-]+$/.test(arg));
  if (bad !== undefined)
    throw new Error(`cannot pass ${JSON.stringify(bad)} to the guest: expected letters, digits and ./=-_`);
  const directory = await mkdtemp(join(tmpdir(), 'tulle-vm-'));
  try {
    const kernel = await guestKernel();
    console.log(`▸ Linux ${kernel.release} in QEMU, emulated`);
    const [initrd, log] = [join(directory, 'initramfs'), join(directory, 'console')];
    await buildInitramfs(kernel, { init: join(HERE, 'init.sh'), command: guestCommand(kernel, args) }, initrd);
    const code = await runGuest(kernel, { initrd, log });
    if (code === undefined) console.log((await readFile(log, 'latin1')).split('\n').slice(-CONSOLE_LINES).join('\n'));
    if (code === undefined) console.log('0 passed, 1 failed');
    return code ?? 1;
  } finally {
    await rm(directory, { recursive: true });
  }
}

const filesIn = (directory: string): readonly string[] => globSync(`${directory}/*.test.ts`, { cwd: HOME }).sort();
const isOfServices = (file: string): boolean => /\/(ebpf|services)[.-]/.test(file);

const testsOf = (args: readonly string[]): readonly string[] =>
  (args.length > 0 ? args : Object.keys(SETS)).flatMap((arg) => SETS[arg]?.() ?? [arg]);

interface Guest {
  readonly initrd: string;
  /** File that takes what the guest's kernel says. */
  readonly log: string;
}

/** What process 1 of the guest becomes. */
function guestCommand({ modules }: GuestKernel, args: readonly string[]): readonly string[] {
  const tests = [process.execPath, join(HOME, 'scripts/test.ts'), '--slow', ...testsOf(args)];
  return ['/bin/sh', join(HERE, 'guest.sh'), modules, HOME, ...tests];
}

/** Prints what the guest's command says as it comes. Returns its exit code, or undefined when the guest ended otherwise. */
async function runGuest(kernel: GuestKernel, guest: Guest): Promise<number | undefined> {
  const subprocess = execa('setpriv', ['--pdeathsig', 'KILL', ...qemuCommand(kernel, guest)], {
    reject: false,
    buffer: false,
    stdin: 'ignore',
    stderr: 'inherit',
    timeout: TIMEOUT_MS,
    killSignal: 'SIGKILL',
  });
  let code: number | undefined;
  for await (const raw of subprocess.iterable()) {
    const line = raw.replace(/\r$/, '');
    const exit = EXIT.exec(line)?.groups?.['code'];
    if (exit === undefined) console.log(line);
    else code = Number(exit);
  }
  const { timedOut } = await subprocess;
  if (timedOut) console.log(`  ✘ the guest did not end within ${TIMEOUT_MS / 60_000} minutes`);
  else if (code === undefined) console.log('  ✘ the guest ended before its tests did');
  return code;
}

function qemuCommand(kernel: GuestKernel, { initrd, log }: Guest): readonly string[] {
  return [
    'qemu-system-x86_64',
    // An old processor: emulated, the loops that it is given cost less than a newer one's instructions for strings and vectors.
    ...['-machine', 'q35,accel=tcg', '-cpu', 'Nehalem', '-smp', '1', '-m', String(MEMORY_MIB)],
    // A nanosecond of the guest's time for each instruction: its deadlines do not know how slow or busy this machine is.
    ...['-icount', 'shift=0,sleep=on'],
    ...['-nodefaults', '-display', 'none', '-no-reboot'],
    ...['-serial', `file:${log}`, '-serial', 'stdio'],
    ...['-kernel', kernel.image, '-initrd', initrd],
    // The last word is for tests that nothing but the guest may run.
    ...['-append', 'console=ttyS0 quiet panic=-1 mitigations=off tulle.vm'],
    ...['-virtfs', 'local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap'],
    ...['-device', 'virtio-rng-pci'],
  ];
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  console.error((error as Error).message);
  console.log('0 passed, 1 failed');
  process.exitCode = 1;
}
