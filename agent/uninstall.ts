/**
 * Takes everything away that Tulle made on this node: what it owns in the kernel, the sysctls that it changed, the files
 * that it installed. Needs no cluster. Whatever fails can be tried again: what is gone is gone, and the rest is still known.
 */
import { existsSync, readdirSync, rmdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import type { Config } from './config.ts';
import { requireCapabilities } from './kernel/capabilities.ts';
import { type Kernel, openKernel, TUN_STATE_FILE } from './kernel/kernel.ts';
import type { Altered } from './kernel/netlink/object-driver.ts';
import type { Key, PodLink } from './model/items.ts';
import { findConflist, findExecutables } from './pods/install.ts';
import { livePods } from './pods/live-pods.ts';
import { type PodRecord, readRecords } from './pods/records.ts';
import { KernelState } from './reconcile/kernel-state.ts';
import { Reconciler } from './reconcile/reconciler.ts';
import type { AnyDriver, Change } from './reconcile/types.ts';
import { holdNetworkNamespace } from './single-agent.ts';

/** Bound of the whole, for a kernel or a tool that does not answer. */
const TIMEOUT_MS = 300_000;
/** Objects that are waited for together. */
const SETTLED_AT_ONCE = 256;
/** nftables destroys deleted rules in the background and until then holds on to the sets that they name. */
const ATTEMPTS = 10;
const PAUSE_MS = 100;

export interface UninstallOptions {
  readonly config: Config;
  /** The CNI executable that belongs to this version: copies of it are removed, others stay. */
  readonly executable: string;
  /** Goes on although pods would lose their network. */
  readonly force: boolean;
  readonly log: Logger;
}

/** What there is to remove, in the order of removal. */
export interface UninstallPlan {
  /** Pods that have their network from Tulle. */
  readonly livePods: readonly string[];
  readonly conflist: readonly string[];
  readonly changes: readonly Change[];
  readonly executables: readonly string[];
  /** Files that look like ours and are something else: they stay. */
  readonly kept: readonly string[];
  readonly runFiles: readonly string[];
}

/** Pods that live would lose their network. Exit code 1. */
export class PodsAlive extends Error {
  override readonly name = 'PodsAlive';
  readonly pods: readonly string[];

  constructor(pods: readonly string[]) {
    super(
      `cannot uninstall: expected no pods with a network from Tulle, got ${pods.length}: ${pods.join(', ')}; drain the node first, or take their network away with --force (their runtime can then not delete them in order)`,
    );
    this.pods = pods;
  }
}

/** Objects that could not be removed. Exit code 1; another call goes on where this one ended. */
export class UninstallFailed extends Error {
  override readonly name = 'UninstallFailed';

  constructor(failures: readonly Error[]) {
    super(
      `cannot remove everything: ${failures.map(({ message }) => message).join('; ')}; the rest of Tulle stays installed: remove the cause and try again`,
      { cause: failures[0] },
    );
  }
}

/** Looks, changes nothing; may run beside the agent. */
export async function planUninstall(options: Omit<UninstallOptions, 'force'>): Promise<UninstallPlan> {
  return withKernel(options.config, options.log, (kernel, signal) => survey(kernel, options, signal));
}

/** Removes everything and returns what that was. Throws PodsAlive, UninstallFailed, or when an agent runs. */
export async function uninstall({ force, ...options }: UninstallOptions): Promise<UninstallPlan> {
  const { config, log } = options;
  const held = new AbortController();
  await holdNetworkNamespace(held.signal);
  try {
    return await withKernel(config, log, async (kernel, signal) => {
      const plan = await survey(kernel, options, signal);
      if (plan.livePods.length > 0 && !force) throw new PodsAlive(plan.livePods);
      // First, so that the runtime starts no pod in between.
      for (const path of plan.conflist) rmSync(path, { force: true });
      await emptyKernel(kernel, log, signal);
      for (const path of [...plan.executables, ...plan.runFiles]) rmSync(path, { force: true, recursive: true });
      removeIfEmpty(config.runDir);
      return plan;
    });
  } finally {
    held.abort();
  }
}

async function withKernel<T>(
  config: Config,
  log: Logger,
  work: (kernel: Kernel, signal: AbortSignal) => Promise<T>,
): Promise<T> {
  requireCapabilities();
  const done = new AbortController();
  const signal = AbortSignal.any([done.signal, AbortSignal.timeout(TIMEOUT_MS)]);
  // What serves Services is not opened in order to be taken away.
  const kernel = await openKernel({ config: { ...config, 'services.mode': 'off' }, log }, signal);
  try {
    return await work(kernel, signal);
  } finally {
    done.abort(new Error('done'));
    await kernel.close();
  }
}

async function survey(
  kernel: Kernel,
  { config, executable, log }: Pick<UninstallOptions, 'config' | 'executable' | 'log'>,
  signal: AbortSignal,
): Promise<UninstallPlan> {
  const changes = await emptying(kernel, kernel.drivers, log).diff(signal);
  const { own, foreign } = findExecutables(executable, config.cniBinDir);
  return {
    livePods: livePods({
      records: readRecords(config.runDir),
      links: changes.flatMap(podLinkOf),
      queued: namesIn(join(config.runDir, 'delete-queue')),
      hasNamespace: (record) => hasNamespace(record, kernel),
    }),
    conflist: findConflist(config.cniConfDir),
    changes,
    executables: own,
    kept: foreign,
    runFiles: RUN_FILES.map((name) => join(config.runDir, name)).filter((path) => existsSync(path)),
  };
}

/** Everything that an agent keeps in its run directory. Somebody may have named one that holds other things too. */
const RUN_FILES = [
  'pods',
  'released',
  'delete-queue',
  'delete-queue.lock',
  'cni.sock',
  'control.sock',
  'sysctl.json',
  'sysctl.json.new',
  'underlay.json',
  'underlay.json.new',
  TUN_STATE_FILE,
  `${TUN_STATE_FILE}.new`,
] as const;

function podLinkOf(change: Change): readonly (PodLink & { readonly isDown: boolean })[] {
  if (change.action !== 'remove' || change.kind !== 'pod-link') return [];
  const { from } = change;
  return [{ ...from, isDown: (from as PodLink & Altered).altered === 'is down' }];
}

function hasNamespace({ netns }: PodRecord, kernel: Kernel): boolean {
  try {
    const { device, inode } = kernel.identifyNetns(netns.path);
    return device === netns.device && inode === netns.inode;
  } catch {
    // Nothing answers at the path, or not a network namespace: the recorded one is gone.
    return false;
  }
}

/** A reconciler that wants nothing, not started. */
function emptying(kernel: Kernel, drivers: readonly AnyDriver[], log: Logger): Reconciler {
  const reconciler = new Reconciler({ state: new KernelState(kernel.merge), drivers, log });
  reconciler.enableSweep();
  return reconciler;
}

/**
 * Pods and tunnels go first, with everything that leads to them; then the rules that guard them, and at last forwarding: at
 * no time does something pass that the gate would have stopped.
 */
async function emptyKernel(kernel: Kernel, log: Logger, signal: AbortSignal): Promise<void> {
  const isNetfilter = ({ lane }: AnyDriver) => lane === 'netfilter';
  const isSysctl = ({ kind }: AnyDriver) => kind === 'sysctl';
  await sweep(kernel, (driver) => !isNetfilter(driver) && !isSysctl(driver), log, signal);
  await kernel.finishDeletions();
  // Rules of the iptables that is not used now would hold on to the sets.
  await kernel.sweepOtherBackend(signal);
  await sweep(kernel, isNetfilter, log, signal);
  await sweep(kernel, isSysctl, log, signal);
}

async function sweep(
  kernel: Kernel,
  included: (driver: AnyDriver) => boolean,
  log: Logger,
  signal: AbortSignal,
): Promise<void> {
  const reconciler = emptying(kernel, kernel.drivers.filter(included), log);
  const keys = (await reconciler.diff(signal)).map(({ key }) => key);
  const stop = new AbortController();
  reconciler.start(AbortSignal.any([signal, stop.signal]));
  try {
    // In batches of the drivers' own: to remove any rule of legacy iptables takes a second, and all of them not much more.
    await reconciler.rest();
    await settleAll(reconciler, keys, signal);
  } finally {
    stop.abort(new Error('done'));
    await reconciler.stopped;
  }
}

/** One that cannot be removed keeps no other. Throws UninstallFailed. */
async function settleAll(reconciler: Reconciler, keys: readonly Key[], signal: AbortSignal): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    const failures: Error[] = [];
    for (let at = 0; at < keys.length; at += SETTLED_AT_ONCE) {
      failures.push(...(await settleSome(reconciler, keys.slice(at, at + SETTLED_AT_ONCE), signal)));
    }
    if (failures.length === 0) return;
    if (attempt === ATTEMPTS) throw new UninstallFailed(failures);
    await delay(PAUSE_MS, undefined, { signal });
  }
}

/** Together, and each on its own only when that fails: among thousands of Nodes there are tens of thousands. */
async function settleSome(
  reconciler: Reconciler,
  keys: readonly Key[],
  signal: AbortSignal,
): Promise<readonly Error[]> {
  try {
    await reconciler.settle(keys, signal);
    return [];
  } catch {
    const outcomes = await Promise.allSettled(keys.map((key) => reconciler.settle([key], signal)));
    return outcomes.flatMap((outcome) => (outcome.status === 'rejected' ? [outcome.reason as Error] : []));
  }
}

const namesIn = (directory: string): readonly string[] => (existsSync(directory) ? readdirSync(directory) : []);

/** What somebody else put there stays, and a mount point. */
function removeIfEmpty(directory: string): void {
  try {
    rmdirSync(directory);
  } catch (error) {
    if (!['ENOENT', 'ENOTEMPTY', 'EBUSY'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
  }
}
