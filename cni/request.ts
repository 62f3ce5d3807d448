/** What a runtime asks for (CNI SPEC 1.1.0, section 2), checked. Pure: bytes in, values out. */
import { getSystemErrorName } from 'node:util';
import { CNI_CODES, CniError, invalid, shown } from './cni-error.ts';
import { readFrame } from './frame.ts';
import { INTERFACE_NAME_EXPECTED, isInterfaceName, NAME_EXPECTED, NAME_PATTERN } from './names.ts';
import { type JsonObject, objectAt } from './narrow.ts';
import { type AttachmentId, type NetworkConfig, parseNetworkConfig, parseValidAttachments } from './network-config.ts';
import { type PrevResult, parsePrevResult } from './result.ts';
import { type CniVersion, isAtLeast, isSupportedVersion } from './versions.ts';

export type CniRequest = AddRequest | CheckRequest | DelRequest | GcRequest | StatusRequest | VersionRequest;
export type Verb = CniRequest['verb'];

/** Name of the program that called, such as `containerd`; absent when its process cannot be seen. */
export type RuntimeName = string;

interface Attachment {
  readonly containerId: string;
  readonly ifName: string;
  readonly netns: NetnsReference;
  /** The runtime says that the pod may share the plugin's own namespace (CNI_NETNS_OVERRIDE). */
  readonly netnsOverride: boolean;
  readonly args: PodArgs;
  readonly runtime?: RuntimeName;
  readonly config: NetworkConfig;
}

export interface AddRequest extends Attachment {
  readonly verb: 'ADD';
}

export interface CheckRequest extends Attachment {
  readonly verb: 'CHECK';
  readonly prevResult: PrevResult;
}

/**
 * Everything but the container id is a hint. A DEL is not refused for what it does not need: a pod that cannot be deleted
 * is worse than any fault in its configuration.
 */
export interface DelRequest {
  readonly verb: 'DEL';
  readonly containerId: string;
  /** Absent: all attachments of the container. */
  readonly ifName?: string;
  readonly netns?: NetnsReference;
  readonly args: PodArgs;
  readonly config?: NetworkConfig;
  /** What was there and could not be used, one sentence each. */
  readonly ignored: readonly string[];
}

export interface GcRequest {
  readonly verb: 'GC';
  /** What stays; everything else of this network goes. */
  readonly validAttachments: readonly AttachmentId[];
  readonly runtime?: RuntimeName;
  readonly config: NetworkConfig;
}

export interface StatusRequest {
  readonly verb: 'STATUS';
  readonly config: NetworkConfig;
}

/** The executable answers it itself; it is here for completeness. */
export interface VersionRequest {
  readonly verb: 'VERSION';
  readonly config?: never;
}

/** CNI_NETNS, and what the runtime's side found there: the same path may be another file on the agent's side. */
export interface NetnsReference {
  readonly path: string;
  /** st_dev and st_ino in decimal. */
  readonly device?: string;
  readonly inode?: string;
  /** Why the runtime's side found nothing: an errno name. */
  readonly error?: string;
}

/** From CNI_ARGS; which of them come depends on the runtime. */
export interface PodArgs {
  readonly podNamespace?: string;
  readonly podName?: string;
  readonly podUid?: string;
  readonly infraContainerId?: string;
}

const VERBS: readonly string[] = ['ADD', 'CHECK', 'DEL', 'GC', 'STATUS', 'VERSION'] satisfies Verb[];
/** The version of the spec that introduced the verb. */
const INTRODUCED: { readonly [V in Verb]?: CniVersion } = { CHECK: '0.4.0', GC: '1.1.0', STATUS: '1.1.0' };
const PATH_MAX_BYTES = 4095;

/** Throws nothing but CniError, whose `version` is the one to answer in, if the request named one. */
export function parseRequest(bytes: Uint8Array): CniRequest {
  const { variables, stdin } = readFrame(bytes);
  const verb = parseVerb(variables.get('CNI_COMMAND'));
  const decoded = decodeConfig(stdin);
  const named = decoded instanceof CniError ? undefined : decoded['cniVersion'];
  const version = isSupportedVersion(named) ? named : undefined;
  try {
    return parsers[verb](variables, decoded);
  } catch (error) {
    if (!(error instanceof CniError)) throw error;
    throw new CniError(error.code, `cannot ${verb}: ${error.message}`, {
      cause: error,
      details: error.details,
      version,
    });
  }
}

type Variables = ReadonlyMap<string, string>;
/** The decoded configuration, or why there is none: whether that matters depends on the verb. */
type Decoded = JsonObject | CniError;

const parsers: { readonly [V in Verb]: (variables: Variables, decoded: Decoded) => CniRequest } = {
  ADD: parseAdd,
  CHECK: parseCheck,
  DEL: parseDel,
  GC: (variables, decoded) => ({
    verb: 'GC',
    config: parseConfig('GC', decoded),
    validAttachments: parseValidAttachments(unwrap(decoded)),
    ...parseRuntime(variables),
  }),
  STATUS: (_, decoded) => ({ verb: 'STATUS', config: parseConfig('STATUS', decoded) }),
  VERSION: () => ({ verb: 'VERSION' }),
};

function parseAdd(variables: Variables, decoded: Decoded): AddRequest {
  const attachment = parseAttachment('ADD', variables, decoded);
  const { prevResult } = attachment.config;
  if (prevResult === undefined) return { verb: 'ADD', ...attachment };
  throw new CniError(CNI_CODES.invalidConfig, `prevResult: expected none, got ${shown(prevResult)}`, {
    details: "the plugin tulle makes the pod's interface and must come first in the list of plugins",
  });
}

function parseCheck(variables: Variables, decoded: Decoded): CheckRequest {
  const attachment = parseAttachment('CHECK', variables, decoded);
  return { verb: 'CHECK', ...attachment, prevResult: parsePrevResult(attachment.config.prevResult) };
}

function parseAttachment(verb: 'ADD' | 'CHECK', variables: Variables, decoded: Decoded): Attachment {
  const problems: string[] = [];
  const containerId = readVariable(variables, CONTAINER_ID, problems);
  const ifName = readVariable(variables, IF_NAME, problems);
  const netns = readVariable(variables, NETNS, problems);
  const args = parseArgs(variables.get('CNI_ARGS') ?? '', problems);
  if (containerId === undefined || ifName === undefined || netns === undefined || problems.length > 0) {
    throw new CniError(CNI_CODES.invalidEnvironment, problems.join('; '));
  }
  return {
    containerId,
    ifName,
    netns: identify(netns, variables),
    netnsOverride: ['1', 'true'].includes((variables.get('CNI_NETNS_OVERRIDE') ?? '').toLowerCase()),
    args,
    ...parseRuntime(variables),
    config: parseConfig(verb, decoded),
  };
}

function parseDel(variables: Variables, decoded: Decoded): DelRequest {
  const fatal: string[] = [];
  const ignored: string[] = [];
  const containerId = readVariable(variables, CONTAINER_ID, fatal);
  if (containerId === undefined) throw new CniError(CNI_CODES.invalidEnvironment, fatal.join('; '));
  const ifName = readVariable(variables, IF_NAME, ignored);
  // The second DEL of a pod comes without a namespace: nothing to mention.
  const netns = variables.get('CNI_NETNS') ? readVariable(variables, NETNS, ignored) : undefined;
  const config = ignoringFaults(() => parseConfig('DEL', decoded), ignored);
  return {
    verb: 'DEL',
    containerId,
    ...(ifName !== undefined && { ifName }),
    ...(netns !== undefined && { netns: identify(netns, variables) }),
    args: parseArgs(variables.get('CNI_ARGS') ?? '', ignored),
    ...(config !== undefined && { config }),
    ignored,
  };
}

function ignoringFaults<T>(parse: () => T, ignored: string[]): T | undefined {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof CniError)) throw error;
    ignored.push(error.message);
    return undefined;
  }
}

function parseVerb(command: string | undefined): Verb {
  if (command !== undefined && VERBS.includes(command)) return command as Verb;
  throw invalid(CNI_CODES.invalidEnvironment, 'CNI_COMMAND', `one of ${VERBS.join(', ')}`, command);
}

const DECODER = new TextDecoder('utf-8', { fatal: true });

/** The configuration that came last, and what it says: nearly all pods of a node bring the same, byte for byte. */
let last: { readonly bytes: Buffer; readonly decoded: Decoded } | undefined;
const parsedConfigs = new WeakMap<JsonObject, NetworkConfig>();

function decodeConfig(stdin: Uint8Array): Decoded {
  if (!last?.bytes.equals(stdin)) last = { bytes: Buffer.from(stdin), decoded: decodeJson(stdin) };
  return last.decoded;
}

function decodeJson(stdin: Uint8Array): Decoded {
  const field = 'network configuration on standard input';
  try {
    return objectAt(field, JSON.parse(DECODER.decode(stdin)), CNI_CODES.decodingFailure);
  } catch (error) {
    if (error instanceof CniError) return error;
    const reason = error instanceof Error ? error.message : String(error);
    return new CniError(CNI_CODES.decodingFailure, `${field}: expected a JSON object in UTF-8, got ${reason}`, {
      cause: error,
    });
  }
}

function unwrap(decoded: Decoded): JsonObject {
  if (decoded instanceof CniError) throw decoded;
  return decoded;
}

function parseConfig(verb: Verb, decoded: Decoded): NetworkConfig {
  const object = unwrap(decoded);
  const config = parsedConfigs.get(object) ?? parseNetworkConfig(object);
  parsedConfigs.set(object, config);
  const introduced = INTRODUCED[verb];
  if (introduced === undefined || isAtLeast(config.cniVersion, introduced)) return config;
  throw invalid(CNI_CODES.incompatibleVersion, 'cniVersion', `${introduced} or later for ${verb}`, config.cniVersion);
}

/** One variable: undecodable bytes arrive as U+FFFD, which no pattern accepts. */
interface VariableRule {
  readonly name: string;
  readonly expected: string;
  accepts(text: string): boolean;
}

const CONTAINER_ID: VariableRule = {
  name: 'CNI_CONTAINERID',
  expected: NAME_EXPECTED,
  accepts: (text) => NAME_PATTERN.test(text),
};
const IF_NAME: VariableRule = { name: 'CNI_IFNAME', expected: INTERFACE_NAME_EXPECTED, accepts: isInterfaceName };
const NETNS: VariableRule = {
  name: 'CNI_NETNS',
  expected: `an absolute path of at most ${PATH_MAX_BYTES} bytes without control characters`,
  accepts: (text) => /^\/[^\p{Cc}\ufffd]*$/u.test(text) && Buffer.byteLength(text) <= PATH_MAX_BYTES,
};

/** The value if it is there and acceptable; otherwise a problem is noted. An empty variable is a missing one. */
function readVariable(
  variables: Variables,
  { name, expected, accepts }: VariableRule,
  problems: string[],
): string | undefined {
  const text = variables.get(name) || undefined;
  if (text !== undefined && accepts(text)) return text;
  problems.push(`${name}: expected ${expected}, got ${shown(text)}`);
  return undefined;
}

function identify(path: string, variables: Variables): NetnsReference {
  const number = (name: string) => /^\d{1,20}$/.exec(variables.get(name) ?? '')?.[0];
  const device = number('TULLE_NETNS_DEV');
  const inode = number('TULLE_NETNS_INO');
  const errno = number('TULLE_NETNS_ERROR');
  return {
    path,
    ...(device !== undefined && { device }),
    ...(inode !== undefined && { inode }),
    ...(errno !== undefined && { error: errnoName(Number(errno)) }),
  };
}

function parseRuntime(variables: Variables): { readonly runtime?: RuntimeName } {
  const runtime = variables.get('TULLE_RUNTIME');
  return runtime !== undefined && /^[!-~]{1,64}$/.test(runtime) ? { runtime } : {};
}

const errnoName = (errno: number): string =>
  errno >= 1 && errno <= 0xffff ? getSystemErrorName(-errno) : `errno ${errno}`;

const ARGS: ReadonlyMap<string, keyof PodArgs> = new Map([
  ['K8S_POD_NAMESPACE', 'podNamespace'],
  ['K8S_POD_NAME', 'podName'],
  ['K8S_POD_UID', 'podUid'],
  ['K8S_POD_INFRA_CONTAINER_ID', 'infraContainerId'],
] as const);

/** Wide enough for podman's container names; an object's name has at most 253 characters. */
const ARG_VALUE = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,252}$/;

/**
 * `KEY=value;KEY=value` in any order. Unknown keys are ignored, with or without IgnoreUnknown=1: every plugin of a list
 * gets the same CNI_ARGS, whoever they are meant for (CNI SPEC, section 3, "Deriving runtimeConfig").
 */
function parseArgs(text: string, problems: string[]): PodArgs {
  const args: { -readonly [K in keyof PodArgs]: PodArgs[K] } = {};
  for (const pair of text.split(';').filter((part) => part !== '')) {
    const equals = pair.indexOf('=');
    const field = ARGS.get(pair.slice(0, equals));
    const value = pair.slice(equals + 1);
    if (equals < 1) problems.push(`CNI_ARGS: expected KEY=value pairs with ';' between them, got ${shown(pair)}`);
    else if (field === undefined || value === '') continue;
    else if (ARG_VALUE.test(value)) args[field] = value;
    else
      problems.push(
        `CNI_ARGS: ${pair.slice(0, equals)}: expected 1 to 253 letters, digits, '_', '.' or '-', got ${shown(value)}`,
      );
  }
  return args;
}
