/**
 * The part of a container runtime that calls CNI plugins, as libcni does it (CNI SPEC 1.1.0, sections 2 to 4): the first
 * configuration list of a directory, its plugins one after the other, results cached between the verbs.
 */
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { LabError } from './lab-error.ts';
import { type NodeRef, pathOnHost } from './node.ts';

export const CONF_DIR = '/etc/cni/net.d';
export const BIN_DIR = '/opt/cni/bin';
const CACHE_DIR = '/var/lib/cni/results';
/** Longer than any deadline of a plugin's own. */
const PLUGIN_TIMEOUT_MS = 90_000;

export type CniVerb = 'ADD' | 'CHECK' | 'DEL';

type Json = Readonly<Record<string, unknown>>;

export interface PluginConfig extends Json {
  readonly type: string;
  readonly capabilities?: Readonly<Record<string, boolean>>;
}

export interface NetworkList {
  readonly name: string;
  readonly cniVersion: string;
  readonly plugins: readonly PluginConfig[];
}

/** One attachment of one container: what every call of its life has in common. */
export interface Attachment {
  readonly containerId: string;
  readonly ifName: string;
  /** Path of the network namespace in the node, or '' when it is gone. */
  readonly netns: string;
  /** CNI_ARGS. */
  readonly args: readonly (readonly [string, string])[];
  /** By capability; only those that a plugin declares reach it. */
  readonly runtimeConfig?: Json;
}

/** A plugin that failed. The text is what a runtime reports: `plugin type="tulle" failed (add): MSG; DETAILS`. */
export class PluginError extends Error {
  override readonly name = 'PluginError';
  readonly plugin: string;
  readonly verb: CniVerb;
  /** CNI error code; 999 when the plugin printed no error object. */
  readonly code: number;

  constructor(fields: {
    plugin: string;
    verb: CniVerb;
    code: number;
    msg: string;
    details?: string | undefined;
    cause?: unknown;
  }) {
    const { plugin, verb, code, msg, details, cause } = fields;
    super(`plugin type="${plugin}" failed (${verb.toLowerCase()}): ${msg}${details ? `; ${details}` : ''}`, { cause });
    this.plugin = plugin;
    this.verb = verb;
    this.code = code;
  }
}

/** What containerd asks for first in every sandbox, whatever the cluster's network is. */
export const LOOPBACK: NetworkList = { name: 'cni-loopback', cniVersion: '0.3.1', plugins: [{ type: 'loopback' }] };

/** The first conflist by name in the node, or undefined: then the node's network is not ready. Throws LabError. */
export async function readNetworkList(node: NodeRef): Promise<NetworkList | undefined> {
  const dir = pathOnHost(node, CONF_DIR);
  const file = (await readdir(dir)).filter((name) => name.endsWith('.conflist')).sort()[0];
  return file === undefined ? undefined : parseNetworkList(file, await readFile(join(dir, file), 'utf8'));
}

/** Whether a runtime may attach pods. Nothing can be read of a node that ended. */
export async function hasNetworkList(node: NodeRef): Promise<boolean> {
  const files = await readdir(pathOnHost(node, CONF_DIR)).catch(() => []);
  return files.some((name) => name.endsWith('.conflist'));
}

/** ADD of every plugin in order; the last result is cached and returned. Throws PluginError. */
export async function addNetwork(
  node: NodeRef,
  list: NetworkList,
  attachment: Attachment,
  signal: AbortSignal,
): Promise<Json> {
  let result: Json = {};
  for (const [index, plugin] of list.plugins.entries()) {
    const config = pluginConfig(list, plugin, attachment, index === 0 ? undefined : result);
    result = (await callPlugin(node, 'ADD', plugin.type, config, attachment, signal)) ?? {};
  }
  await cacheResult(node, list, attachment, result);
  return result;
}

/** CHECK of every plugin with the cached result. Throws PluginError. */
export async function checkNetwork(
  node: NodeRef,
  list: NetworkList,
  attachment: Attachment,
  signal: AbortSignal,
): Promise<void> {
  const result = await cachedResult(node, list, attachment);
  for (const plugin of list.plugins) {
    await callPlugin(node, 'CHECK', plugin.type, pluginConfig(list, plugin, attachment, result), attachment, signal);
  }
}

/** DEL of every plugin in reverse order, with the cached result if there is one; then that is forgotten. Throws PluginError. */
export async function deleteNetwork(
  node: NodeRef,
  list: NetworkList,
  attachment: Attachment,
  signal: AbortSignal,
): Promise<void> {
  const result = await cachedResult(node, list, attachment);
  for (const plugin of list.plugins.toReversed()) {
    await callPlugin(node, 'DEL', plugin.type, pluginConfig(list, plugin, attachment, result), attachment, signal);
  }
  await rm(cachePath(node, list, attachment), { force: true });
}

function parseNetworkList(file: string, text: string): NetworkList {
  const problem = (received: string, cause?: unknown) =>
    new LabError({
      operation: `read ${CONF_DIR}/${file}`,
      expected: 'a JSON object with name, cniVersion and plugins',
      received,
      cause,
    });
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    throw problem('no JSON', cause);
  }
  const { name, cniVersion, plugins } = (parsed ?? {}) as Partial<NetworkList>;
  if (typeof name !== 'string' || typeof cniVersion !== 'string' || !Array.isArray(plugins))
    throw problem(text.slice(0, 200));
  return { name, cniVersion, plugins };
}

/** The plugin's own part of the list with what libcni adds: name, version, the result so far, capability arguments. */
function pluginConfig(
  list: NetworkList,
  plugin: PluginConfig,
  attachment: Attachment,
  prevResult: Json | undefined,
): Json {
  const { capabilities = {}, ...own } = plugin;
  const asked = Object.entries(attachment.runtimeConfig ?? {}).filter(
    ([capability]) => capabilities[capability] === true,
  );
  return {
    ...own,
    name: list.name,
    cniVersion: list.cniVersion,
    ...(asked.length > 0 && { runtimeConfig: Object.fromEntries(asked) }),
    ...(prevResult !== undefined && { prevResult }),
  };
}

async function callPlugin(
  node: NodeRef,
  verb: CniVerb,
  plugin: string,
  config: Json,
  attachment: Attachment,
  signal: AbortSignal,
): Promise<Json | undefined> {
  const { exitCode, stdout, stderr, shortMessage } = await execa(
    'nsenter',
    ['--target', String(node.pid), '--mount', '--net', '--pid', '--', `${BIN_DIR}/${plugin}`],
    {
      env: environmentOf(verb, attachment),
      extendEnv: false,
      input: JSON.stringify(config),
      reject: false,
      cancelSignal: signal,
      timeout: PLUGIN_TIMEOUT_MS,
      maxBuffer: 1 << 20,
    },
  );
  const answer = parseAnswer(stdout);
  if (exitCode === 0) return answer;
  const {
    code = 999,
    msg = stderr.trim() || shortMessage || 'no message',
    details,
  } = (answer ?? {}) as { code?: number; msg?: string; details?: string };
  throw new PluginError({ plugin, verb, code, msg, details });
}

/** containerd gives CNI_ARGS in no fixed order, so neither does the lab. */
function environmentOf(verb: CniVerb, { containerId, netns, ifName, args }: Attachment): Record<string, string> {
  const shuffled = args.map((pair) => ({ pair, place: Math.random() })).sort((a, b) => a.place - b.place);
  return {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    CNI_COMMAND: verb,
    CNI_CONTAINERID: containerId,
    CNI_NETNS: netns,
    CNI_IFNAME: ifName,
    CNI_PATH: BIN_DIR,
    CNI_ARGS: shuffled.map(({ pair: [key, value] }) => `${key}=${value}`).join(';'),
  };
}

function parseAnswer(stdout: string): Json | undefined {
  try {
    return JSON.parse(stdout) as Json;
  } catch {
    // DEL and CHECK print nothing; a failing plugin that prints something else is reported by its stderr.
    return undefined;
  }
}

const cachePath = (node: NodeRef, list: NetworkList, { containerId, ifName }: Attachment): string =>
  pathOnHost(node, `${CACHE_DIR}/${list.name}-${containerId}-${ifName}`);

async function cacheResult(node: NodeRef, list: NetworkList, attachment: Attachment, result: Json): Promise<void> {
  await mkdir(pathOnHost(node, CACHE_DIR), { recursive: true });
  const { containerId, ifName } = attachment;
  const entry = { kind: 'cniCacheV1', containerId, ifName, networkName: list.name, result };
  await writeFile(cachePath(node, list, attachment), JSON.stringify(entry));
}

/** What ADD printed last, as libcni keeps it too; undefined when there is nothing of the kind. */
export async function cachedResult(
  node: NodeRef,
  list: NetworkList,
  attachment: Attachment,
): Promise<Json | undefined> {
  try {
    return (JSON.parse(await readFile(cachePath(node, list, attachment), 'utf8')) as { result: Json }).result;
  } catch {
    // Never added, or deleted before: the verbs work without.
    return undefined;
  }
}
