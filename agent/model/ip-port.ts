/** Where a server listens, as text with the address in its canonical form: `127.0.0.1:9440`, `[::1]:9440`. */
import { type IpAddress, parseIp } from './ip.ts';

export interface IpPort {
  readonly ip: IpAddress;
  /** 1 to 65535. */
  readonly port: number;
}

/** RFC 3986 section 3.2.2: an IPv6 address stands in brackets. Undefined for anything else, names included. */
export function parseIpPort(text: string): IpPort | undefined {
  const parts = /^(?:\[(?<ipv6>[^\]]+)\]|(?<ipv4>[^:[\]]+)):(?<port>[1-9]\d{0,4})$/.exec(text)?.groups;
  const ip = parseIp(parts?.['ipv6'] ?? parts?.['ipv4'] ?? '');
  const port = Number(parts?.['port']);
  const isBracketed = parts?.['ipv6'] !== undefined;
  return ip === undefined || port > 65_535 || isBracketed !== ip.includes(':') ? undefined : { ip, port };
}

export const ipPortText = ({ ip, port }: IpPort): string => (ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`);
