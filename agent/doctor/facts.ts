/** What the checks look at, each read at most once and only when a check asks: the kernel, the API, the settings. */
import { join } from 'node:path';
import { ApiClient } from '../cluster/api-client.ts';
import type { CredentialsSource } from '../cluster/credentials.ts';
import type { Config } from '../config.ts';
import { readFormerUnderlay } from '../former-underlay.ts';
import { run } from '../kernel/command.ts';
import { findGuard } from '../kernel/features.ts';
import { readHost } from '../kernel/host.ts';
import { type Backend, type BackendName, chooseBackend, describeBackend } from '../kernel/iptables/backend.ts';
import { type RuleScan, scanRules } from '../kernel/iptables/scan.ts';
import { NETLINK_PROTOCOL, type NetlinkClient } from '../kernel/netlink/message.ts';
import { openNetlink } from '../kernel/netlink/open.ts';
import type { LinkFacts } from '../kernel/netlink/rtnetlink.ts';
import { NetlinkSocket } from '../kernel/netlink/socket.ts';
import type { SysctlFiles } from '../kernel/sysctl/files.ts';
import { createSysctlDriver, type SysctlDriver } from '../kernel/sysctl/sysctl.ts';
import { EMPTY_CLUSTER, type Node } from '../model/cluster.ts';
import type { Host } from '../model/host.ts';
import type { AnyItem } from '../model/items.ts';
import { BACKENDS } from '../plan/backends.ts';
import { type Plan, Planner } from '../plan/planner.ts';
import { Reachability } from '../reconcile/reachability.ts';
import { type ApiReading, readApi } from './api-reading.ts';
import { type Reach, readReach } from './reach.ts';

/** What the running agent says of itself, as far as it is of use here. */
export interface AgentAnswer {
  readonly version: string;
  readonly readiness: { readonly ready: true } | { readonly ready: false; readonly reason: string };
  readonly host: { readonly iptables: string };
  readonly problems: readonly string[];
  /** Absent where another proxy serves them. */
  readonly services?: { readonly mode: string };
  /** Absent where the agent carries no tunnel. */
  readonly tunnel?: {
    readonly path?: { readonly port: number };
    readonly problems: readonly string[];
    readonly peers: readonly { readonly node: string; readonly problem?: string }[];
  };
  readonly kernel: {
    readonly failing: readonly { readonly key: string; readonly error: string; readonly attempts: number }[];
    readonly blocked: readonly { readonly key: string; readonly by: string }[];
  };
}

export interface DoctorOptions {
  readonly config: Config;
  readonly credentials: CredentialsSource;
  /** The CNI executable that belongs to this version. */
  readonly executable: string;
  readonly version: string;
  /** The answer of the running agent, or why there is none. */
  readonly agent: AgentAnswer | Error;
}

export interface Facts extends DoctorOptions {
  readonly client: NetlinkClient;
  readonly nfnetlink: NetlinkClient;
  readonly sysctls: SysctlFiles;
  readonly sysctlDriver: SysctlDriver;
  links(): Promise<readonly LinkFacts[]>;
  host(): Promise<Host>;
  /** Which iptables Tulle uses, or would use. Rejects with KernelError when neither can be used. */
  iptables(): Promise<Backend>;
  /** All rules of both back ends and families; what cannot be read is left out. */
  rules(): Promise<readonly RuleScan[]>;
  api(): Promise<ApiReading>;
  /** Undefined while the Nodes cannot be read. */
  nodes(): Promise<ReadonlyMap<string, Node> | undefined>;
  /** What the peers answer to packets; undefined while the Nodes cannot be read. */
  reach(): Promise<Reach | undefined>;
  /** What the agent would want in the kernel, pods aside; undefined while the Nodes cannot be read. */
  plan(): Promise<Plan | undefined>;
  /** The items of the plan that are in effect. */
  wanted(): Promise<readonly AnyItem[] | undefined>;
  close(): Promise<void>;
}

/** The answer of a running agent, or undefined. */
export const runningAgent = ({ agent }: Pick<Facts, 'agent'>): AgentAnswer | undefined =>
  agent instanceof Error ? undefined : agent;

/** Throws KernelError when there is no netlink to ask. */
export function openFacts(options: DoctorOptions, signal: AbortSignal): Facts {
  const { config, credentials } = options;
  const netlink = openNetlink({ sysctlRoot: config.procSys });
  const nfnetlink = new NetlinkSocket(NETLINK_PROTOCOL.NETFILTER);
  const sysctlDriver = createSysctlDriver({
    files: netlink.sysctls,
    stateFile: join(config.runDir, 'sysctl.json'),
  });
  const client = new ApiClient({ credentials, limits: { answerMs: API_ANSWER_MS } });
  const iptables = once(() => chosenBackend(options, signal));
  const host = once(async () =>
    readHost({
      ...netlink,
      formerSysctl: (path) => sysctlDriver.former(path),
      // Which guards there are depends on it.
      sourceProgram: (await findGuard()).program,
      // Only how masquerade is written depends on it.
      randomFully: await iptables().then(
        ({ randomFully }) => randomFully,
        () => false,
      ),
    }),
  );
  const api = once(() => readApi(client, credentials, config.nodeName, signal));
  const nodes = async () => (await api()).nodes;
  const plan = once(async () => planOf(config, await nodes(), await host()));
  return {
    ...options,
    client: netlink.client,
    nfnetlink,
    sysctls: netlink.sysctls,
    sysctlDriver,
    links: once(() => netlink.links.refresh()),
    host,
    iptables,
    rules: once(() => scanRules(run, signal)),
    api,
    nodes,
    plan,
    wanted: once(async () => {
      const planned = await plan();
      return planned && itemsOf(planned);
    }),
    reach: once(async () => {
      const [known, planned] = [await nodes(), await plan()];
      return known && planned && readReach(known, planned.underlay, config, signal);
    }),
    async close() {
      client.close();
      nfnetlink.close();
      await netlink.close();
    },
  };
}

/** A person waits. */
const API_ANSWER_MS = 5_000;

/** What runs counts more than what would be chosen now. */
function chosenBackend(options: DoctorOptions, signal: AbortSignal): Promise<Backend> {
  const used = runningAgent(options)?.host.iptables.split(' ', 1)[0];
  if (used === 'nft' || used === 'legacy') return describeBackend(run, used, 'the agent uses it', signal);
  const setting: 'auto' | BackendName = options.config['iptables.backend'];
  return setting === 'auto' ? chooseBackend(run, signal) : describeBackend(run, setting, 'the settings say so', signal);
}

function planOf(config: Config, nodes: ReadonlyMap<string, Node> | undefined, host: Host): Plan | undefined {
  if (!nodes) return undefined;
  const planner = new Planner(readFormerUnderlay(config.runDir, config.nodeName));
  const cluster = { ...EMPTY_CLUSTER, synced: true, nodes };
  return planner.plan({
    nodeName: config.nodeName,
    cluster,
    host,
    settings: config,
    backend: BACKENDS[config.backend],
  });
}

/** Those of fragments in effect: a bridge that nobody requires is not wanted. */
function itemsOf({ fragments }: Plan): readonly AnyItem[] {
  const reachability = new Reachability();
  for (const [id, fragment] of fragments) reachability.replace(id, fragment);
  return [...fragments.values()].filter(({ id }) => reachability.isLive(id)).flatMap(({ items }) => items);
}

function once<T>(read: () => Promise<T>): () => Promise<T> {
  let result: Promise<T> | undefined;
  return () => {
    result ??= read();
    return result;
  };
}
