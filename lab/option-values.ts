/** Values of command line options: text to value. All throw InvalidArgumentError, which commander reports. */
import { InvalidArgumentError } from 'commander';
import { parseIp } from '../agent/model/ip.ts';
import type { PortMapping } from '../agent/model/port-mapping.ts';
import { PROTOCOLS } from '../agent/model/services.ts';
import type { ServedPort } from './pods.ts';

export const wholeNumber = (min: number, max: number) => (text: string) => {
  if (/^\d{1,6}$/.test(text) && Number(text) >= min && Number(text) <= max) return Number(text);
  throw new InvalidArgumentError(`expected a whole number from ${min} to ${max}.`);
};

export const portNumber = wholeNumber(1, 65_535);

/** `KEY=VALUE`, of an option that may be given several times. */
export function label(text: string, before: Readonly<Record<string, string>> = {}): Readonly<Record<string, string>> {
  const [key, value, ...rest] = text.split('=');
  if (!key || value === undefined || rest.length > 0) throw new InvalidArgumentError('expected KEY=VALUE.');
  return { ...before, [key]: value };
}

/** `PORT` or `NAME=PORT`, of an option that may be given several times. */
export function servedPort(text: string, before: readonly ServedPort[] = []): readonly ServedPort[] {
  const [, name, port = ''] = /^(?:([a-z0-9-]{1,15})=)?(\d+)$/.exec(text) ?? [];
  return [...before, { port: portNumber(port), ...(name !== undefined && { name }) }];
}

/** `[HOSTIP:]HOSTPORT:PORT[/PROTOCOL]`, an IPv6 address in brackets, of an option that may be given several times. */
export function hostPort(text: string, before: readonly PortMapping[] = []): readonly PortMapping[] {
  const [, address, host = '', port = '', name = 'tcp'] =
    /^(?:\[?([0-9a-fA-F.:]+?)\]?:)?(\d+):(\d+)(?:\/(\w+))?$/.exec(text) ?? [];
  const protocol = PROTOCOLS.find((each) => each === name.toUpperCase());
  const hostIp = address === undefined ? undefined : parseIp(address);
  if (!protocol || (address !== undefined && hostIp === undefined))
    throw new InvalidArgumentError('expected [HOSTIP:]HOSTPORT:PORT[/PROTOCOL], such as 8080:80/tcp.');
  const ports = { hostPort: portNumber(host), containerPort: portNumber(port), protocol };
  return [...before, { ...ports, ...(hostIp && { hostIp }) }];
}
