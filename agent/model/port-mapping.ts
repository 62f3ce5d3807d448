/** A port of the node that shall lead to a pod: one entry of the CNI capability `portMappings` (CNI CONVENTIONS). */
import { familyOf, type IpAddress, specialUse } from './ip.ts';
import type { Protocol } from './services.ts';

export interface PortMapping {
  /** 1 to 65535. */
  readonly hostPort: number;
  readonly containerPort: number;
  readonly protocol: Protocol;
  /** Absent: all addresses of the node; 0.0.0.0 and :: all of their family. */
  readonly hostIp?: IpAddress;
}

/** Whether this one means the address, if the node has it. */
export function isMeant({ hostIp }: PortMapping, ip: IpAddress): boolean {
  if (hostIp === undefined || hostIp === ip) return true;
  return specialUse(hostIp) === 'unspecified' && familyOf(hostIp) === familyOf(ip);
}

/** Whether there is a place that both ask for. */
export const collide = (a: PortMapping, b: PortMapping): boolean =>
  a.hostPort === b.hostPort &&
  a.protocol === b.protocol &&
  (a.hostIp === undefined || b.hostIp === undefined || isMeant(a, b.hostIp) || isMeant(b, a.hostIp));

/** `8080/TCP`, `192.0.2.7:8080/TCP`, `[fd00::7]:53/UDP`. */
export function mappingText({ hostIp, hostPort, protocol }: PortMapping): string {
  const at = hostIp === undefined ? '' : hostIp.includes(':') ? `[${hostIp}]:` : `${hostIp}:`;
  return `${at}${hostPort}/${protocol}`;
}
