/**
 * Pod records: what the agent must remember of each attachment, one file each, in a tmpfs directory that a reboot forgets
 * as it forgets the pods. A record is written beside and renamed; a released one is renamed away, to `<milliseconds since
 * the epoch>-<former name>`, so that its addresses rest over a restart too.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Logger } from 'pino';
import type { Attachment } from '../model/attachment.ts';
import { type IpAddress, parseIp } from '../model/ip.ts';
import type { PodBridge, PodMtu } from '../model/items.ts';
import { BRIDGE_NAME, hash } from '../model/kernel-names.ts';
import { parseMac } from '../model/mac.ts';
import type { PortMapping } from '../model/port-mapping.ts';
import { PROTOCOLS } from '../model/services.ts';

/** With the MTU as last planned. */
export interface PodRecord extends Attachment, PodMtu {
  /** Name of the CNI network configuration that the attachment belongs to. */
  readonly network: string;
  readonly podUid?: string;
  /** Absent: none, or another plugin serves them. */
  readonly portMappings?: readonly PortMapping[];
  /** Name of the runtime's program. */
  readonly runtime?: string;
  /** Milliseconds since the epoch. */
  readonly createdMs: number;
}

export type RecordKey = string;
export const recordKey = ({ containerId, ifName }: Pick<Attachment, 'containerId' | 'ifName'>): RecordKey =>
  `${containerId}/${ifName}`;

/** A record that was released: its file, and since when its addresses rest. */
interface Released {
  readonly name: string;
  readonly sinceMs: number;
  readonly ips: readonly IpAddress[];
}

/** All records, mirrored in memory. Synchronous: a record is one small write to a tmpfs. */
export class PodRecords {
  readonly #directory: string;
  readonly #releasedDirectory: string;
  readonly #records = new Map<RecordKey, PodRecord>();
  readonly #holders = new Map<IpAddress, PodRecord>();
  /** In the order of their release. */
  readonly #releases = new Set<Released>();
  readonly #released = new Map<IpAddress, number>();

  /** Reads what an earlier process left; a file that cannot be understood is moved aside and reported. */
  constructor(runDir: string, log: Logger) {
    this.#directory = join(runDir, 'pods');
    this.#releasedDirectory = join(runDir, 'released');
    for (const directory of [this.#directory, this.#releasedDirectory])
      mkdirSync(directory, { recursive: true, mode: 0o700 });
    for (const name of readdirSync(this.#directory)) this.#load(name, log);
    const released = readdirSync(this.#releasedDirectory).map((name) => this.#loadReleased(name));
    for (const each of released.sort((a, b) => a.sinceMs - b.sinceMs)) this.#rest(each);
  }

  get(key: RecordKey): PodRecord | undefined {
    return this.#records.get(key);
  }

  all(): readonly PodRecord[] {
    return [...this.#records.values()];
  }

  /** The records of one container, whatever the interface. */
  ofContainer(containerId: string): readonly PodRecord[] {
    return this.all().filter((record) => record.containerId === containerId);
  }

  /** Addresses in use, with who has them. */
  get inUse(): ReadonlyMap<IpAddress, PodRecord> {
    return this.#holders;
  }

  /** Resting addresses, with the time since when they rest. */
  get released(): ReadonlyMap<IpAddress, number> {
    return this.#released;
  }

  /** Throws the errors of the file system; then nothing has changed. */
  save(record: PodRecord): void {
    const path = this.#pathOf(record);
    try {
      writeFileSync(`${path}.new`, JSON.stringify(record), { mode: 0o600 });
      renameSync(`${path}.new`, path);
    } catch (error) {
      // A full disk still had room for the name.
      rmSync(`${path}.new`, { force: true });
      throw error;
    }
    this.#hold(record);
  }

  /** Forgets an attachment; its addresses begin to rest. */
  release(record: PodRecord, nowMs: number): void {
    const name = nameOf(record);
    const released = { name: `${nowMs}-${name}`, sinceMs: nowMs, ips: record.ips };
    try {
      renameSync(join(this.#directory, name), join(this.#releasedDirectory, released.name));
    } catch {
      // On a full disk an address rests as long as this process lives: a pod must be deletable then, too.
      rmSync(join(this.#directory, name), { force: true });
    }
    this.#records.delete(recordKey(record));
    for (const ip of record.ips) if (this.#isHeldBy(ip, record)) this.#holders.delete(ip);
    this.#rest(released);
  }

  /** Forgets that addresses rest since before `sinceMs`. */
  forgetReleased(sinceMs: number): void {
    for (const released of this.#releases) {
      if (released.sinceMs >= sinceMs) return;
      rmSync(join(this.#releasedDirectory, released.name), { force: true });
      this.#releases.delete(released);
      for (const ip of released.ips) if (this.#released.get(ip) === released.sinceMs) this.#released.delete(ip);
    }
  }

  #hold(record: PodRecord): void {
    this.#records.set(recordKey(record), record);
    for (const ip of record.ips) this.#holders.set(ip, record);
  }

  #isHeldBy(ip: IpAddress, record: PodRecord): boolean {
    const holder = this.#holders.get(ip);
    return holder !== undefined && recordKey(holder) === recordKey(record);
  }

  #rest(released: Released): void {
    this.#releases.add(released);
    for (const ip of released.ips) this.#released.set(ip, released.sinceMs);
  }

  #pathOf(record: PodRecord): string {
    return join(this.#directory, nameOf(record));
  }

  #load(name: string, log: Logger): void {
    const path = join(this.#directory, name);
    if (!name.endsWith('.json')) {
      rmSync(path, { force: true });
      return;
    }
    const record = parseRecord(readFileSync(path, 'utf8'));
    if (record) this.#hold(record);
    else {
      renameSync(path, `${path}.unreadable`);
      log.error({ path }, 'a pod record cannot be read and was moved aside: its pod keeps running until it is deleted');
    }
  }

  /** What cannot be understood goes with those that have rested long enough. */
  #loadReleased(name: string): Released {
    const record = parseRecord(readFileSync(join(this.#releasedDirectory, name), 'utf8'));
    const sinceMs = Number(/^\d{1,15}(?=-)/.exec(name)?.[0] ?? 0);
    return { name, sinceMs, ips: record?.ips ?? [] };
  }
}

const nameOf = (record: PodRecord): string => `${hash(recordKey(record), 32)}.json`;

/** The records below a run directory, without the repairs that PodRecords makes. */
export function readRecords(runDir: string): readonly PodRecord[] {
  const directory = join(runDir, 'pods');
  if (!existsSync(directory)) return [];
  const files = readdirSync(directory).filter((name) => name.endsWith('.json'));
  return files.flatMap((name) => parseRecord(readFileSync(join(directory, name), 'utf8')) ?? []);
}

/** Narrows the text of a record; undefined when a field is missing or of another type. */
export function parseRecord(text: string): PodRecord | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  const record = value as Partial<PodRecord> | null;
  const isText = (field: unknown) => typeof field === 'string' && field !== '';
  const valid =
    record !== null &&
    typeof record === 'object' &&
    [
      record.containerId,
      record.ifName,
      record.network,
      record.netns?.path,
      record.netns?.device,
      record.netns?.inode,
    ].every(isText) &&
    [record.createdMs, record.mtuBytes, record.routeMtuBytes ?? 0].every((field) => typeof field === 'number') &&
    Array.isArray(record.ips) &&
    record.ips.every(isAddress) &&
    (record.bridge === undefined || isBridge(record.bridge)) &&
    (record.portMappings === undefined ||
      (Array.isArray(record.portMappings) && record.portMappings.every(isPortMapping)));
  if (!valid) return undefined;
  // Pods of an earlier version had routes without an MTU of their own.
  const { routeMtuBytes = record.mtuBytes } = record;
  return Object.freeze({ ...record, routeMtuBytes } as PodRecord);
}

const isAddress = (value: unknown): boolean => typeof value === 'string' && parseIp(value) === value;

function isBridge({ name, mac, gateways }: Partial<PodBridge>): boolean {
  return (
    name === BRIDGE_NAME &&
    typeof mac === 'string' &&
    parseMac(mac) === mac &&
    Array.isArray(gateways) &&
    gateways.every(({ ip, prefixLength }) => isAddress(ip) && Number.isInteger(prefixLength))
  );
}

const isPort = (value: unknown): boolean =>
  Number.isInteger(value) && (value as number) > 0 && (value as number) < 65_536;

function isPortMapping(value: Partial<PortMapping> | null): boolean {
  const { hostPort, containerPort, protocol, hostIp } = value ?? {};
  const isServed = PROTOCOLS.some((each) => each === protocol) && (hostIp === undefined || isAddress(hostIp));
  return isPort(hostPort) && isPort(containerPort) && isServed;
}
