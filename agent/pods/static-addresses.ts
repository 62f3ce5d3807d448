/**
 * Addresses that pods ask for by the annotation tulle.dev/ips, in namespaces that the administrator lists. Whose request it
 * is, is told by the uid and not by the name: a pod that is made again never gets what its predecessor asked for.
 */
import { CNI_CODES, CniError, type PodArgs } from '../../cni/protocol.ts';
import { IPS_ANNOTATION, type Pod } from '../model/cluster.ts';
import { rankOf } from '../model/fragment.ts';
import { type Cidr, familyOf, type IpAddress, parseIp } from '../model/ip.ts';
import { isUsable } from './ipam.ts';

/** The Pods of this node, as the watch knows them. */
export interface PodSource {
  /** By `<namespace>/<name>`. */
  pods(): ReadonlyMap<string, Pod>;
  /** Calls after each change; returns how to end it. */
  onChange(listener: () => void): () => void;
}

export interface StaticAddressesOptions {
  readonly namespaces: readonly string[];
  readonly source: PodSource;
  /** How long an ADD waits for its Pod to appear. */
  readonly waitMs?: number;
}

/** What one pod asks for; empty for most. */
export interface StaticRequest {
  readonly pod?: Pod;
  /** At most one a family. */
  readonly ips: readonly IpAddress[];
}

const WAIT_MS = 5_000;
const NO_REQUEST: StaticRequest = { ips: [] };

export class StaticAddresses {
  readonly #namespaces: ReadonlySet<string>;
  readonly #source: PodSource;
  readonly #waitMs: number;

  constructor({ namespaces, source, waitMs = WAIT_MS }: StaticAddressesOptions) {
    this.#namespaces = new Set(namespaces);
    this.#source = source;
    this.#waitMs = waitMs;
  }

  /**
   * What the pod of an ADD asks for. Looks only into namespaces that are listed; a container that is no pod asks for
   * nothing. Throws CniError: 4 without a uid, 7 for an annotation that cannot be read, 11 while the Pod is not known.
   */
  async requestOf({ podNamespace, podName, podUid }: PodArgs, signal: AbortSignal): Promise<StaticRequest> {
    if (podNamespace === undefined || podName === undefined || !this.#namespaces.has(podNamespace)) return NO_REQUEST;
    const name = `${podNamespace}/${podName}`;
    if (podUid === undefined) {
      throw new CniError(
        CNI_CODES.invalidEnvironment,
        `cannot tell which addresses pod ${name} asks for: expected K8S_POD_UID in CNI_ARGS, got none; use a runtime that passes it, or take ${podNamespace} out of ipam.staticNamespaces`,
      );
    }
    const pod = await this.#waitFor(name, podUid, signal);
    if (!pod) {
      throw new CniError(
        CNI_CODES.tryAgainLater,
        `cannot tell which addresses pod ${name} asks for: expected a Pod with uid ${podUid} within ${this.#waitMs / 1000} s, got none from the cluster API`,
      );
    }
    const ips = parseRequest(pod.ipsAnnotation ?? '');
    if (ips) return { pod, ips };
    throw new CniError(
      CNI_CODES.invalidConfig,
      `cannot give pod ${name} the addresses that it asks for: expected at most one IP address a family, comma separated, in the annotation ${IPS_ANNOTATION}, got ${JSON.stringify(pod.ipsAnnotation)}`,
    );
  }

  /**
   * Addresses that pods of this node ask for and do not have yet, with the pod that comes first for each: the oldest.
   * `attachedUids` tells which pods have their network, whatever they ask for now; it is asked only if any may ask.
   */
  claims(attachedUids: () => ReadonlySet<string>): ReadonlyMap<IpAddress, Pod> {
    const claims = new Map<IpAddress, Pod>();
    if (this.#namespaces.size === 0) return claims;
    const attached = attachedUids();
    for (const pod of this.#source.pods().values()) {
      if (!this.#namespaces.has(pod.namespace) || !isWaiting(pod, attached)) continue;
      for (const ip of parseRequest(pod.ipsAnnotation ?? '') ?? []) {
        const other = claims.get(ip);
        if (!other || rank(pod) < rank(other)) claims.set(ip, pod);
      }
    }
    return claims;
  }

  async #waitFor(name: string, uid: string, signal: AbortSignal): Promise<Pod | undefined> {
    const find = (): Pod | undefined => {
      const pod = this.#source.pods().get(name);
      return pod?.uid === uid || pod?.staticPodUid === uid ? pod : undefined;
    };
    const { promise, resolve } = Promise.withResolvers<Pod | undefined>();
    const look = (): void => {
      const pod = find();
      if (pod) resolve(pod);
    };
    const end = this.#source.onChange(look);
    const timer = setTimeout(() => resolve(undefined), this.#waitMs);
    const onAbort = (): void => resolve(undefined);
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      look();
      return await promise;
    } finally {
      end();
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
      signal.throwIfAborted();
    }
  }
}

const isWaiting = ({ hostNetwork, phase, uid, staticPodUid }: Pod, attached: ReadonlySet<string>): boolean =>
  !hostNetwork &&
  phase !== 'Succeeded' &&
  phase !== 'Failed' &&
  !attached.has(uid) &&
  (staticPodUid === undefined || !attached.has(staticPodUid));

const rank = ({ creationMs, uid }: Pod): string => rankOf(creationMs, uid);

/** Undefined when the text is something else than at most one address a family. */
function parseRequest(text: string): readonly IpAddress[] | undefined {
  if (text.trim() === '') return [];
  const parsed = text.split(',').map((part) => parseIp(part.trim()));
  const ips = parsed.filter((ip) => ip !== undefined);
  const families = new Set(ips.map(familyOf));
  return ips.length === parsed.length && families.size === ips.length ? ips : undefined;
}

export interface Holders {
  readonly podCidrs: readonly Cidr[];
  /** Name of the attachment that has an address. */
  readonly holderOf: (ip: IpAddress) => string | undefined;
  readonly claims: ReadonlyMap<IpAddress, Pod>;
}

/** Throws CniError when the pod cannot have what it asks for: 7 where that can never be, 11 where it may be free later. */
export function checkRequest({ pod, ips }: StaticRequest, { podCidrs, holderOf, claims }: Holders): void {
  const refuse = (code: 7 | 11, expected: string, got: string) =>
    new CniError(
      code,
      `cannot give pod ${pod?.namespace}/${pod?.name} the addresses that it asks for (annotation ${IPS_ANNOTATION}): expected ${expected}, got ${got}`,
    );
  for (const ip of ips) {
    const cidr = podCidrs.find((each) => familyOf(each) === familyOf(ip));
    if (cidr === undefined || !isUsable(cidr, ip)) {
      const range = cidr ?? `none of ${familyOf(ip)}`;
      throw refuse(
        CNI_CODES.invalidConfig,
        `an address of the node's podCIDR (${range}) that is neither its network or broadcast address nor the node's own`,
        ip,
      );
    }
    const claimant = claims.get(ip);
    const holder = holderOf(ip);
    if (holder === undefined && (claimant === undefined || claimant === pod)) continue;
    const who = holder === undefined ? `${claimant?.namespace}/${claimant?.name} waits for` : `${holder} has`;
    throw refuse(CNI_CODES.tryAgainLater, 'addresses that are free', `${ip}, which ${who}`);
  }
}
