/** Netlink attributes (linux/netlink.h, struct nlattr): length and type in host order, payload padded to four bytes. */

/** Bits of nla_type that are flags, not type. */
const TYPE_MASK = 0x3fff;
const NLA_F_NESTED = 0x8000;
/** struct nlattr. */
const HEADER_BYTES = 4;

export function attribute(type: number, payload: Uint8Array): Buffer {
  const buffer = header(type, payload.length);
  buffer.set(payload, HEADER_BYTES);
  return buffer;
}

export function nested(type: number, ...attributes: readonly Uint8Array[]): Buffer {
  let bytes = 0;
  for (const { length } of attributes) bytes += length;
  const buffer = header(type | NLA_F_NESTED, bytes);
  let at = HEADER_BYTES;
  for (const part of attributes) {
    buffer.set(part, at);
    at += part.length;
  }
  return buffer;
}

export const u8 = (type: number, value: number): Buffer => attribute(type, Uint8Array.of(value));
export const u16Be = (type: number, value: number): Buffer => attribute(type, Uint8Array.of(value >> 8, value & 0xff));
/** NUL-terminated text. */
export const text = (type: number, value: string): Buffer => plainText(type, `${value}\0`);

/** Text without a NUL, for attributes whose limit would count it (IFLA_IFALIAS). */
export function plainText(type: number, value: string): Buffer {
  const buffer = header(type, value.length);
  buffer.write(value, HEADER_BYTES, 'latin1');
  return buffer;
}

export function u32(type: number, value: number): Buffer {
  const buffer = header(type, 4);
  buffer.writeUInt32LE(value >>> 0, HEADER_BYTES);
  return buffer;
}

export function u32Be(type: number, value: number): Buffer {
  const buffer = header(type, 4);
  buffer.writeUInt32BE(value >>> 0, HEADER_BYTES);
  return buffer;
}

/** Room for an attribute whose payload is still to be written; its padding is zero. From the pool: an ADD makes a hundred. */
function header(type: number, payloadBytes: number): Buffer {
  const length = HEADER_BYTES + payloadBytes;
  const buffer = Buffer.allocUnsafe((length + 3) & ~3);
  buffer.writeUInt16LE(length, 0);
  buffer.writeUInt16LE(type, 2);
  for (let at = length; at < buffer.length; at++) buffer[at] = 0;
  return buffer;
}

/**
 * The attributes of a message from `offset` on, by type; of repeated ones the last. Bytes that do not form an attribute
 * end the list: a malformed message never throws.
 */
export function parseAttributes(buffer: Buffer, offset = 0): ReadonlyMap<number, Buffer> {
  const found = new Map<number, Buffer>();
  let at = offset;
  while (at + 4 <= buffer.length) {
    const length = buffer.readUInt16LE(at);
    if (length < 4 || at + length > buffer.length) break;
    found.set(buffer.readUInt16LE(at + 2) & TYPE_MASK, buffer.subarray(at + 4, at + length));
    at += (length + 3) & ~3;
  }
  return found;
}

/** Text up to the first NUL. */
export function textOf(payload: Buffer | undefined): string | undefined {
  if (!payload) return undefined;
  const end = payload.indexOf(0);
  return payload.toString('latin1', 0, end < 0 ? payload.length : end);
}

export const u32Of = (payload: Buffer | undefined): number | undefined =>
  payload && payload.length >= 4 ? payload.readUInt32LE(0) : undefined;
