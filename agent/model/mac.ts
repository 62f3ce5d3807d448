import { hash } from 'node:crypto';

declare const brand: unique symbol;
/** Six lower-case hexadecimal bytes joined by colons. */
export type MacAddress = string & { readonly [brand]: 'MacAddress' };

/** Canonical MAC address, or undefined for anything that is not one. */
export function parseMac(text: string): MacAddress | undefined {
  return /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i.test(text) ? (text.toLowerCase() as MacAddress) : undefined;
}

export const macBytes = (mac: MacAddress): Uint8Array => Uint8Array.from(Buffer.from(mac.replaceAll(':', ''), 'hex'));

export function macFromBytes(bytes: Uint8Array): MacAddress {
  return Buffer.from(bytes)
    .toString('hex')
    .replace(/..(?!$)/g, '$&:') as MacAddress;
}

/**
 * A unicast, locally administered MAC that is a function of the text it stands for: every node computes the same one
 * and a restart changes nothing (IEEE 802, section 8.2: bit 0 of the first octet clear, bit 1 set).
 */
export function macOf(subject: string): MacAddress {
  const bytes = hash('sha256', subject, 'buffer').subarray(0, 6);
  bytes[0] = ((bytes[0] as number) & 0xfc) | 0x02;
  return macFromBytes(bytes);
}
