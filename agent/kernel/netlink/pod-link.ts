/** Pod links: both ends of a pod's veth pair and everything inside the pod, made together and destroyed together. */
import { isDeepStrictEqual } from 'node:util';
import { type Key, keyOf, type PodLink } from '../../model/items.ts';
import { POD_GATEWAY } from '../../model/kernel-names.ts';
import { gatewayOf } from '../../model/pod-link.ts';
import type { Change, Driver, Notice } from '../../reconcile/types.ts';
import { ignoreNotFound, isExists, KernelError } from '../errors.ts';
import type { OpenNetns, OpenPodNetns } from '../netns/netns.ts';
import type { SysctlFiles } from '../sysctl/files.ts';
import { parseAttributes } from './attributes.ts';
import { portAlteration, readPort } from './bridge.ts';
import { netconfAlteration, writeSysctls } from './link-conf.ts';
import { dumpLinks, explainMissingType, isNodeLink, isPodLink, type Links, readLink } from './links.ts';
import type { NetlinkClient, NetlinkMessage, NetlinkRequest } from './message.ts';
import type { NetlinkMonitor } from './monitor.ts';
import { readNetconf } from './netconf.ts';
import { isAltered } from './object-driver.ts';
import { describePodLink } from './pod-link-check.ts';
import { foundPodLink, readHostSides, sameGateway } from './pod-link-list.ts';
import {
  aliasOf,
  familiesOf,
  hasIpv6,
  hostSysctls,
  podSysctls,
  renderHostMarks,
  renderHostPort,
  renderHostUp,
  renderLinkDown,
  renderMtu,
  renderOwnTable,
  renderPair,
  renderPodSetup,
  renderRouteMtu,
  renderRuleRemoval,
} from './pod-link-requests.ts';
import { podRouteName, podRoutes, readPodRoutes, readStaleRules } from './pod-routes.ts';
import type { LinkReaper } from './reaper.ts';
import { IFA, ipOf, type LinkFacts, RTM, readLinkFacts } from './rtnetlink.ts';

export interface PodLinkDriverOptions {
  readonly client: NetlinkClient;
  readonly links: Links;
  /** Of the host's namespace. */
  readonly sysctls: SysctlFiles;
  readonly openPodNetns: OpenPodNetns;
  readonly reaper: LinkReaper;
  readonly monitor?: NetlinkMonitor | undefined;
}

export function podLinkDriver(options: PodLinkDriverOptions): Driver<'pod-link'> {
  const { links, reaper, monitor } = options;
  return {
    kind: 'pod-link',
    lane: 'netlink',
    merge: 'one',
    equal: (wanted, found) =>
      !isAltered(wanted) && !isAltered(found) && sameHostSide(wanted, found) && samePodSide(wanted, found),
    async list() {
      const own = (await links.refresh()).filter((facts) => isPodLink(facts) && !reaper.isDoomed(facts.ifindex));
      const found = await readHostSides(own, options);
      return new Map(found.map((link) => [keyOf('pod-link', link), link]));
    },
    apply: (batch, signal) => applyPodLinks(batch, options, signal),
    ...(monitor && {
      watch: (notice: Notice<'pod-link'>, signal: AbortSignal) => monitor.subscribe(listener(notice, options), signal),
    }),
  };
}

const sameHostSide = (a: PodLink, b: PodLink): boolean =>
  a.name === b.name &&
  aliasOf(a) === aliasOf(b) &&
  a.hostMac === b.hostMac &&
  a.mtuBytes === b.mtuBytes &&
  a.bridge?.name === b.bridge?.name &&
  sameGateway(a, b);

/** What only the pod's namespace shows is compared when both sides know it: a value that was listed does not. */
function samePodSide(a: PodLink, b: PodLink): boolean {
  if (a.ifName === '' || b.ifName === '') return true;
  return (
    a.ifName === b.ifName &&
    a.podMac === b.podMac &&
    isDeepStrictEqual(a.ips, b.ips) &&
    isDeepStrictEqual(a.bridge, b.bridge) &&
    a.netns.device === b.netns.device &&
    a.netns.inode === b.netns.inode
  );
}

function listener(notice: Notice<'pod-link'>, { links, reaper }: PodLinkDriverOptions) {
  const tell = (facts: LinkFacts, altered?: string): void => {
    const link = { ...foundPodLink(facts, links), ...(altered && { altered }) };
    notice.found(keyOf('pod-link', link), reaper.isDoomed(facts.ifindex) ? undefined : link);
  };
  return {
    message(message: NetlinkMessage, before: LinkFacts | undefined) {
      const facts = readLinkFacts(message);
      const isThere = facts && message.type === RTM.NEWLINK && isPodLink(facts);
      if (facts && before && isPodLink(before) && (!isThere || before.name !== facts.name))
        notice.found(`pod-link ${before.name}`, undefined);
      if (isThere) tell(facts);
      const { ifindex, altered } = settingAlteration(message) ?? {};
      const changed = ifindex === undefined ? undefined : links.byIndex(ifindex);
      if (changed && altered && isPodLink(changed)) tell(changed, altered);
      const bare = withoutGateway(message, links);
      if (bare) tell(bare, `has lost ${POD_GATEWAY.ipv6}`);
    },
    lost: (reason: string) => notice.stale(reason),
  };
}

/** What a message about the settings of a link or of a bridge's port says is not as Tulle made it. */
function settingAlteration(message: NetlinkMessage): { ifindex: number; altered: string | undefined } | undefined {
  const conf = readNetconf(message);
  if (conf?.family === 'ipv4') return { ifindex: conf.ifindex, altered: netconfAlteration(conf) };
  const port = readPort(message);
  return port && { ifindex: port.ifindex, altered: portAlteration(port.settings) };
}

/** The pod link whose host side a message says has lost the pods' next hop. One that goes down is told of otherwise. */
function withoutGateway({ type, payload }: NetlinkMessage, links: Links): LinkFacts | undefined {
  if (type !== RTM.DELADDR || ipOf(parseAttributes(payload, 8).get(IFA.ADDRESS)) !== POD_GATEWAY.ipv6) return undefined;
  const link = links.byIndex(payload.readUInt32LE(4));
  return link?.up && isPodLink(link) ? link : undefined;
}

async function applyPodLinks(
  batch: readonly Change<'pod-link'>[],
  options: PodLinkDriverOptions,
  signal: AbortSignal,
): Promise<ReadonlyMap<Key<'pod-link'>, Error>> {
  const failures = new Map<Key<'pod-link'>, Error>();
  for (const change of batch) {
    signal.throwIfAborted();
    try {
      if (change.action === 'create') await createPodLink(change.item.value, options);
      else if (change.action === 'update') await updatePodLink(change.item.value, change.from, options);
      else await removePodLink(change.from, options);
    } catch (error) {
      if (!(error instanceof KernelError)) throw error;
      failures.set(change.key, error);
    }
  }
  return failures;
}

/** Makes the pair and everything inside the pod. A failure leaves nothing behind. Idempotent. */
async function createPodLink(value: PodLink, options: PodLinkDriverOptions): Promise<void> {
  const { client } = options;
  using pod = openPod(value, options);
  try {
    await client.request(renderPair(value, pod.netns.fd));
  } catch (error) {
    if (!isExists(error)) throw explainMissingType(error, 'veth', 'modprobe veth');
    if (await isThereAlready(value, options)) return;
    await destroyFormer(value, pod.netns, options);
    await client.request(renderPair(value, pod.netns.fd)).catch((again) => {
      throw isExists(again) ? nameTaken(value) : again;
    });
  }
  try {
    await setUp(value, pod.netns, options);
  } catch (error) {
    // What cannot be discarded either is found by the next creation, which begins with it.
    await discard(value, options).catch(() => undefined);
    throw error;
  }
}

/**
 * After the kernel said that a name exists: the pair may be there and complete. If it is not, or waits for its destruction
 * after an earlier DEL, or was left half-made, it is destroyed now. A link that is not Tulle's is an error.
 */
async function isThereAlready(value: PodLink, options: PodLinkDriverOptions): Promise<boolean> {
  const { client, reaper } = options;
  const facts = await readLink(client, value.name);
  // Either the pod's end has the name, or the link has vanished since: another attempt tells.
  if (!facts) return false;
  if (!isPodLink(facts) && !isHalfMade(value, facts)) throw foreignLink(value, facts);
  const isComplete = !reaper.isDoomed(facts.ifindex) && (await describePodLink(value, options)).length === 0;
  if (!isComplete) await reaper.destroy([facts]);
  return isComplete;
}

/** The pod's end may have the name from an attachment that was deleted a moment ago: that pair goes now, and not later. */
async function destroyFormer({ ifName }: PodLink, pod: OpenNetns, options: PodLinkDriverOptions): Promise<void> {
  const { client, reaper } = options;
  const end = await readLink(pod.client, ifName);
  if (!end) return;
  const isOtherEnd = ({ ifindex, peerIfindex }: LinkFacts) =>
    ifindex === end.peerIfindex && peerIfindex === end.ifindex && reaper.isDoomed(ifindex);
  const former = (await dumpLinks(client)).filter((facts) => isPodLink(facts) && isOtherEnd(facts));
  if (former.length > 0) await reaper.destroy(former);
}

async function setUp(value: PodLink, pod: OpenNetns, options: PodLinkDriverOptions): Promise<void> {
  const { client, sysctls } = options;
  const facts = await readLink(client, value.name);
  if (!facts) throw vanished(value);
  // What else the pod needs names this link, and the monitor may not have spoken of it yet.
  options.links.learn(facts);
  writeSysctls(sysctls, hostSysctls(value), { needed: hasIpv6(value) });
  writeSysctls(pod.sysctls, podSysctls(value), { needed: hasIpv6(value) });
  const settings = await hostSettings(value, facts, options);
  await all(client.batch([...settings, ...renderHostUp(value, facts.ifindex)]));
  await setUpInside(value, pod.client, facts.peerIfindex);
}

/** Where another interface of the pod has the routes already, that one stays the pod's way out. */
async function setUpInside(value: PodLink, client: NetlinkClient, ifindex: number): Promise<void> {
  const requests = renderPodSetup(value, ifindex);
  const errors = await client.batch(requests);
  const isTaken = (at: number) => requests[at]?.type === RTM.NEWROUTE && isExists(errors[at]);
  const failed = errors.find((error, at) => error && !isTaken(at));
  if (failed) throw failed;
  if (!errors.some((error) => error)) return;
  await removeStaleRules(value, client);
  await allNew(client.batch(renderOwnTable(value, ifindex)));
}

/** A pod whose further interfaces come and go would have more and more of them. */
async function removeStaleRules(value: PodLink, client: NetlinkClient): Promise<void> {
  const live = new Set((await dumpLinks(client)).map(({ ifindex }) => ifindex));
  for (const { family } of familiesOf(value)) {
    const stale = await readStaleRules(client, live, family);
    // One that somebody else has removed by now is no error, nor is one that stays.
    await client.batch(stale.map(({ ip, ifindex }) => renderRuleRemoval(value, ip, ifindex)));
  }
}

/** Everything but coming up. Of a bridged pod the host side becomes a port of the bridge. */
async function hostSettings(
  value: PodLink,
  facts: LinkFacts,
  { client }: PodLinkDriverOptions,
): Promise<readonly NetlinkRequest[]> {
  const masterIfindex = value.bridge ? await readBridgeIndex(value.bridge.name, client) : 0;
  // A link that gets too small an MTU knows no settings of IPv6, not even that it is off.
  const ipv6 = value.mtuBytes >= IPV6_MIN_MTU_BYTES && facts.inet6;
  const marks = renderHostMarks(value, facts, { ipv6, masterIfindex });
  return value.bridge ? [marks, renderHostPort(value, facts.ifindex)] : [marks];
}

async function readBridgeIndex(name: string, client: NetlinkClient): Promise<number> {
  const bridge = await readLink(client, name);
  if (bridge && isNodeLink(bridge)) return bridge.ifindex;
  const detail = bridge ? "it is not Tulle's" : 'it does not exist';
  throw new KernelError({ code: 'ENODEV', operation: 'use', object: `bridge ${name}`, detail });
}

async function discard(value: PodLink, { client, reaper }: PodLinkDriverOptions): Promise<void> {
  const facts = await readLink(client, value.name);
  if (facts && (isPodLink(facts) || isHalfMade(value, facts))) await reaper.destroy([facts]);
}

/** A pair whose mark is still missing: nobody else gives this name and this address to one link. */
const isHalfMade = ({ hostMac }: PodLink, { alias, kind, mac }: LinkFacts): boolean =>
  alias === '' && kind === 'veth' && mac === hostMac;

/** In place, as far as the kernel can: destroying the pair would take away what the pod made inside. */
async function updatePodLink(value: PodLink, from: PodLink, options: PodLinkDriverOptions): Promise<void> {
  const { client, sysctls, reaper } = options;
  const facts = await readLink(client, value.name);
  if (facts && !isPodLink(facts)) throw foreignLink(value, facts);
  if (facts?.kind !== 'veth' || !samePodSide(value, from) || hasLostIpv6(value, facts)) {
    if (facts) await reaper.destroy([facts]);
    return createPodLink(value, options);
  }
  if (facts.mtuBytes !== value.mtuBytes || facts.alias !== aliasOf(value))
    await followMtu(value, facts.peerIfindex, options);
  await all(client.batch(await hostSettings(value, facts, options)));
  // Not earlier: another MTU may have given the link its settings of IPv6 just now.
  writeSysctls(sysctls, hostSysctls(value), { needed: hasIpv6(value) });
  await all(client.batch(renderHostUp(value, facts.ifindex)));
}

/** The least MTU of IPv6 (RFC 8200 section 5). A link that goes below it loses its addresses, routes and settings of IPv6. */
const IPV6_MIN_MTU_BYTES = 1280;

/** Nothing but a new pair brings back what was inside the pod, whose end has followed. */
const hasLostIpv6 = (value: PodLink, { mtuBytes }: LinkFacts): boolean =>
  hasIpv6(value) && mtuBytes < IPV6_MIN_MTU_BYTES && value.mtuBytes >= IPV6_MIN_MTU_BYTES;

/**
 * The pod's end first: should it fail, the host's end still shows that there is something to do. The link before its routes:
 * the kernel gives an IPv6 route that says more than its link the link's MTU. A default route that the pod has replaced by
 * one of its own is left alone.
 */
async function followMtu(value: PodLink, ifindex: number, options: PodLinkDriverOptions): Promise<void> {
  using pod = openPod(value, options);
  const { client } = pod.netns;
  await client.request(renderMtu(value, ifindex));
  for (const { family } of familiesOf(value)) {
    const found = await readPodRoutes(client, { ifindex, name: value.ifName }, family);
    const stale = podRoutes(gatewayOf(value, family).ip, value).flatMap((route) => {
      const other = found.get(podRouteName(route));
      return other && other.mtuBytes !== route.mtuBytes ? [{ ...route, table: other.table }] : [];
    });
    await all(client.batch(stale.map((route) => renderRouteMtu(value, route, ifindex))));
  }
}

/** Takes the pod off the network at once; the pair itself goes with the pod's namespace, or soon after. */
async function removePodLink({ name }: PodLink, { client, reaper }: PodLinkDriverOptions): Promise<void> {
  const facts = await readLink(client, name);
  if (!facts || !isPodLink(facts)) return;
  reaper.later(facts);
  await client.request(renderLinkDown({ name }, facts.ifindex)).catch(ignoreNotFound);
}

function openPod(value: PodLink, { openPodNetns }: PodLinkDriverOptions): Disposable & { readonly netns: OpenNetns } {
  const netns = openPodNetns(value.netns);
  return { netns, [Symbol.dispose]: () => netns.close() };
}

/** The same where it does not matter that something is there already: an earlier interface of that index left it. */
async function allNew(batch: Promise<readonly (KernelError | undefined)[]>): Promise<void> {
  await all(batch.then((errors) => errors.map((error) => (isExists(error) ? undefined : error))));
}

/** The first failure of a batch. */
async function all(batch: Promise<readonly (KernelError | undefined)[]>): Promise<void> {
  const failed = (await batch).find((error) => error !== undefined);
  if (failed) throw failed;
}

const vanished = ({ name }: PodLink): KernelError =>
  new KernelError({ code: 'ENODEV', operation: 'create', object: `pod link ${name}`, detail: 'it vanished at once' });

const nameTaken = ({ ifName, netns }: PodLink): KernelError =>
  new KernelError({
    code: 'EEXIST',
    operation: 'create',
    object: `interface ${ifName} in ${netns.path}`,
    detail: 'the namespace has an interface of that name already; nothing was changed',
  });

const foreignLink = ({ name }: PodLink, { alias }: LinkFacts): KernelError =>
  new KernelError({
    code: 'EEXIST',
    operation: 'create',
    object: `pod link ${name}`,
    detail: `a link ${name} exists and is not Tulle's (${alias ? `its alias is ${alias}` : 'it has no alias tulle:pod:'}): remove it`,
  });
