/**
 * The lab's own runtime: what containerd does for the network of a pod, in small. A namespace, loopback, ADD; CHECK; DEL
 * twice. Works on any node of a running lab from any process of the host.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { basename } from 'node:path';
import { execa } from 'execa';
import { type IpAddress, parseIp } from '../agent/model/ip.ts';
import type { PortMapping } from '../agent/model/port-mapping.ts';
import { createCgroup, removeCgroup } from './cgroup.ts';
import {
  type Attachment,
  addNetwork,
  checkNetwork,
  deleteNetwork,
  LOOPBACK,
  type NetworkList,
  readNetworkList,
} from './cni-client.ts';
import { LabError } from './lab-error.ts';
import { type NodeRef, podCgroup } from './node.ts';

export interface PodRequest {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  /** Annotations of the pod, for plugins that ask for them. */
  readonly annotations?: Readonly<Record<string, string>>;
  /** Ports of the node that shall lead to it. */
  readonly hostPorts?: readonly PortMapping[];
}

/** A pod, and how its runtime behaves. */
export interface CniPodRequest extends PodRequest {
  /** Further capability arguments: what containerd makes of the bandwidth annotations. */
  readonly runtimeConfig?: Readonly<Record<string, unknown>>;
  /** Instead of the conflist's, to act as an older or newer runtime. */
  readonly cniVersion?: string;
}

/** A pod's network as the runtime knows it. Plain data. */
export interface Sandbox {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  /** 64 hexadecimal digits. */
  readonly containerId: string;
  /** Name below /run/netns of the node. */
  readonly netns: string;
  readonly addresses: readonly IpAddress[];
  /** As the last plugin printed it. */
  readonly result: Readonly<Record<string, unknown>>;
  readonly network: NetworkList;
  readonly attachment: Attachment;
}

/** What attaches and detaches the pods of a node. */
export interface PodRuntime {
  /** Nothing is left of a pod that fails. Throws PluginError, CriError, LabError. */
  addPod(node: NodeRef, pod: PodRequest, signal: AbortSignal): Promise<Sandbox>;
  /** Idempotent. Throws PluginError, CriError. */
  removePod(node: NodeRef, sandbox: Sandbox, signal: AbortSignal): Promise<void>;
}

const COMMAND_TIMEOUT_MS = 10_000;

/** The lab itself. */
export const labRuntime: PodRuntime = { addPod, removePod };

/** Makes the namespace and attaches it. A failed ADD is undone as containerd does it. Throws PluginError, LabError. */
export async function addPod(node: NodeRef, pod: CniPodRequest, signal: AbortSignal): Promise<Sandbox> {
  const network = await networkFor(node, pod.cniVersion);
  const netns = `cni-${randomUUID()}`;
  await ipNetns(node, ['add', netns], signal);
  await createCgroup(podCgroup(node, netns));
  const attachment = attachmentOf(pod, randomBytes(32).toString('hex'), `/var/run/netns/${netns}`);
  try {
    await addNetwork(node, LOOPBACK, loopbackOf(attachment), signal);
    const result = await addNetwork(node, network, attachment, signal);
    return sandboxOf(pod, attachment, network, result);
  } catch (error) {
    await undo(node, network, attachment, netns, signal);
    throw error;
  }
}

/** Throws PluginError when the pod's network is not what ADD made. */
export async function checkPod(node: NodeRef, { network, attachment }: Sandbox, signal: AbortSignal): Promise<void> {
  await checkNetwork(node, network, attachment, signal);
}

/** Ends the pod's processes, detaches it and removes its namespace: StopPodSandbox and RemovePodSandbox. Throws PluginError. */
export async function removePod(
  node: NodeRef,
  { network, attachment, netns }: Sandbox,
  signal: AbortSignal,
): Promise<void> {
  await removeCgroup(podCgroup(node, netns), signal);
  await deleteNetworks(node, network, attachment, signal);
  await ipNetns(node, ['delete', netns], signal);
  // containerd 1.6 calls again when it forgets the sandbox: the namespace and the cached result are gone by then.
  await deleteNetworks(node, network, { ...attachment, netns: '' }, signal);
}

/** Of a pod that is attached. */
export function sandboxOf(
  { namespace, name, uid }: PodRequest,
  attachment: Attachment,
  network: NetworkList,
  result: Sandbox['result'],
): Sandbox {
  const { containerId } = attachment;
  const netns = basename(attachment.netns);
  return { namespace, name, uid, containerId, netns, addresses: addressesOf(result), result, network, attachment };
}

/** Throws LabError while the node has no network. */
export async function networkFor(node: NodeRef, cniVersion?: string): Promise<NetworkList> {
  const network = await readNetworkList(node);
  if (network) return cniVersion === undefined ? network : { ...network, cniVersion };
  throw new LabError({
    operation: `attach a pod on ${node.name}`,
    expected: 'a *.conflist in /etc/cni/net.d',
    received: 'none: the network of the node is not ready',
    remedy: `see \`tulle lab logs ${node.name}\``,
  });
}

/** As containerd calls plugins for a pod; `netns` is the path in the node. */
export function attachmentOf(
  { namespace, name, uid, annotations = {}, hostPorts = [], runtimeConfig = {} }: CniPodRequest,
  containerId: string,
  netns: string,
): Attachment {
  return {
    containerId,
    ifName: 'eth0',
    netns,
    args: [
      ['IgnoreUnknown', '1'],
      ['K8S_POD_NAMESPACE', namespace],
      ['K8S_POD_NAME', name],
      ['K8S_POD_INFRA_CONTAINER_ID', containerId],
      ['K8S_POD_UID', uid],
    ],
    runtimeConfig: {
      'io.kubernetes.cri.pod-annotations': annotations,
      ...(hostPorts.length > 0 && { portMappings: hostPorts.map(capabilityArgument) }),
      ...runtimeConfig,
    },
  };
}

/** As containerd 1.6 spells it. */
const capabilityArgument = ({
  hostPort,
  containerPort,
  protocol,
  hostIp = '',
}: Omit<PortMapping, 'hostIp'> & { readonly hostIp?: string }) => ({
  HostPort: hostPort,
  ContainerPort: containerPort,
  Protocol: protocol.toLowerCase(),
  HostIP: hostIp,
});

const loopbackOf = (attachment: Attachment): Attachment => ({ ...attachment, ifName: 'lo' });

async function deleteNetworks(
  node: NodeRef,
  network: NetworkList,
  attachment: Attachment,
  signal: AbortSignal,
): Promise<void> {
  await deleteNetwork(node, LOOPBACK, loopbackOf(attachment), signal);
  await deleteNetwork(node, network, attachment, signal);
}

/** `ips` of a CNI result, prefix lengths taken off. */
function addressesOf(result: Readonly<Record<string, unknown>>): readonly IpAddress[] {
  const ips = Array.isArray(result['ips']) ? (result['ips'] as readonly { readonly address?: unknown }[]) : [];
  return ips.flatMap(({ address }) => parseIp(String(address).split('/')[0] as string) ?? []);
}

async function undo(
  node: NodeRef,
  network: NetworkList,
  attachment: Attachment,
  netns: string,
  signal: AbortSignal,
): Promise<void> {
  // The caller is about to learn why ADD failed; that the undoing fails as well would only hide it.
  await deleteNetworks(node, network, attachment, signal).catch(() => undefined);
  await ipNetns(node, ['delete', netns], signal).catch(() => undefined);
  await removeCgroup(podCgroup(node, netns), signal).catch(() => undefined);
}

async function ipNetns(node: NodeRef, args: readonly string[], signal: AbortSignal): Promise<void> {
  const enter = ['--target', String(node.pid), '--mount', '--net', '--pid', '--', 'ip', 'netns'];
  await execa('nsenter', [...enter, ...args], { timeout: COMMAND_TIMEOUT_MS, cancelSignal: signal });
}
