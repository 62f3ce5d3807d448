/** What was planned last, over restarts: a Node that is away must not take the network of running pods with it. */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseCidr, parseIp } from './model/ip.ts';
import type { Underlay } from './plan/underlay.ts';

const fileOf = (runDir: string): string => join(runDir, 'underlay.json');

/** The saved underlay of this node; undefined when there is none, or when it cannot be understood. */
export function readFormerUnderlay(runDir: string, nodeName: string): Underlay | undefined {
  try {
    const value = JSON.parse(readFileSync(fileOf(runDir), 'utf8')) as Underlay;
    // An earlier version had one MTU for everything.
    const underlay = { ...value, linkMtuBytes: value.linkMtuBytes ?? value.mtuBytes };
    return value.nodeName === nodeName && isUsable(underlay) ? Object.freeze(underlay) : undefined;
  } catch {
    // None was saved, or it was cut short: the next plan writes it again.
    return undefined;
  }
}

/** Throws the errors of the file system. */
export function saveUnderlay(runDir: string, underlay: Underlay): void {
  const file = fileOf(runDir);
  writeFileSync(`${file}.new`, JSON.stringify(underlay), { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

function isUsable({ podNetworks, locals, tunnel, mtuBytes, linkMtuBytes }: Underlay): boolean {
  return (
    podNetworks.every(
      ({ cidr, nodeIp }) => parseCidr(cidr) === cidr && (nodeIp === undefined || parseIp(nodeIp) === nodeIp),
    ) &&
    Object.values(locals).every(({ ip }) => parseIp(ip) === ip) &&
    (tunnel === undefined || parseIp(tunnel.local) === tunnel.local) &&
    Number.isInteger(mtuBytes) &&
    Number.isInteger(linkMtuBytes) &&
    mtuBytes > 0 &&
    linkMtuBytes >= mtuBytes
  );
}
