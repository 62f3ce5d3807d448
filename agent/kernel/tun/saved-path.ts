/** What was carried last, over restarts: pods of other nodes are reached again before the cluster has answered. */
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { parseCidr, parseIp } from '../../model/ip.ts';
import { TUN_CARRIAGES, TUN_ENCRYPTIONS, type TunPathItem, type TunPeerItem } from '../../model/items.ts';

export interface SavedPath {
  readonly path: TunPathItem;
  readonly peers: readonly TunPeerItem[];
}

/** Undefined when nothing was saved, or when it cannot be understood. */
export function readSavedPath(file: string): SavedPath | undefined {
  try {
    const saved = JSON.parse(readFileSync(file, 'utf8')) as SavedPath;
    return isPath(saved.path) && saved.peers.every(isPeer) ? saved : undefined;
  } catch {
    // None was saved, or by another version: the plan enters everything again.
    return undefined;
  }
}

/** Throws the errors of the file system. */
export function savePath(file: string, saved: SavedPath): void {
  writeFileSync(`${file}.new`, JSON.stringify(saved), { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

export const forgetSavedPath = (file: string): void => rmSync(file, { force: true });

const isPath = ({ link, local, port, carriage, encryption, secretFile }: TunPathItem): boolean =>
  typeof link === 'string' &&
  parseIp(local) === local &&
  Number.isInteger(port) &&
  port > 0 &&
  port <= 65_535 &&
  TUN_CARRIAGES.includes(carriage) &&
  TUN_ENCRYPTIONS.includes(encryption) &&
  (secretFile === undefined || typeof secretFile === 'string');

const isPeer = ({ node, end, podCidrs }: TunPeerItem): boolean =>
  typeof node === 'string' && parseIp(end) === end && podCidrs.every((cidr) => parseCidr(cidr) === cidr);
