/** Netlink attributes (linux/netlink.h, struct nlattr): length and type in host order, payload padded to four bytes. */

/** Bits of nla_type that are flags, not type. */
const TYPE_MASK = 0x3fff;
const NLA_F_NESTED = 0x8000;

export function attribute(type: number, payload: Uint8Array): Buffer {
  const length = 4 + payload.length;
  const buffer = Buffer.alloc((length + 3) & ~3);
  buffer.writeUInt16LE(length, 0);
  buffer.writeUInt16LE(type, 2);
  buffer.set(payload, 4);
  return buffer;
}

export const nested = (type: number, ...attributes: readonly Uint8Array[]): Buffer =>
  attribute(type | NLA_F_NESTED, Buffer.concat(attributes));
export const u8 = (type: number, value: number): Buffer => attribute(type, Uint8Array.of(value));
export const u16Be = (type: number, value: number): Buffer => attribute(type, Uint8Array.of(value >> 8, value & 0xff));
/** NUL-terminated text. */
export const text = (type: number, value: string): Buffer => attribute(type, Buffer.from(`${value}\0`, 'latin1'));

/** Text without a NUL, for attributes whose limit would count it (IFLA_IFALIAS). */
export const plainText = (type: number, value: string): Buffer => attribute(type, Buffer.from(value, 'latin1'));

export function u32(type: number, value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return attribute(type, bytes);
}

export function u32Be(type: number, value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return attribute(type, bytes);
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
