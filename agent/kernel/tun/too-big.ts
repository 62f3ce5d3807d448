/** Answers to packets that do not fit the path: "fragmentation needed" (RFC 792, RFC 1191) and "packet too big" (RFC 4443 section 3.2). */
import { putU16be, sumOf } from './super-packet.ts';

const ICMP_HEADER_BYTES = 8;
const ICMP = 1;
const ICMPV6 = 58;
const HOPS = 64;
/** What an answer may have: what every host takes (RFC 1812 section 4.3.2.3; RFC 4443 section 3.2). */
const ANSWER_BYTES = { ipv4: 576, ipv6: 1280 } as const;

/**
 * The answer to the sender of `packet`, an IP packet of either family, as it would come from `source` (4 or 16 bytes, of the
 * packet's family).
 */
export function tooBig(packet: Buffer, mtuBytes: number, source: Uint8Array): Buffer {
  return (packet[0] as number) >>> 4 === 4 ? answer4(packet, mtuBytes, source) : answer6(packet, mtuBytes, source);
}

function answer4(packet: Buffer, mtuBytes: number, source: Uint8Array): Buffer {
  const header = 20;
  const quoted = packet.subarray(0, ANSWER_BYTES.ipv4 - header - ICMP_HEADER_BYTES);
  const answer = Buffer.alloc(header + ICMP_HEADER_BYTES + quoted.length);
  answer[0] = 0x45;
  putU16be(answer, 2, answer.length);
  answer[8] = HOPS;
  answer[9] = ICMP;
  answer.set(source, 12);
  answer.set(packet.subarray(12, 16), 16);
  putU16be(answer, 10, ~sumOf(answer, 0, header));
  answer[header] = 3;
  answer[header + 1] = 4;
  putU16be(answer, header + 6, mtuBytes);
  answer.set(quoted, header + ICMP_HEADER_BYTES);
  putU16be(answer, header + 2, ~sumOf(answer, header, answer.length - header));
  return answer;
}

function answer6(packet: Buffer, mtuBytes: number, source: Uint8Array): Buffer {
  const header = 40;
  const quoted = packet.subarray(0, ANSWER_BYTES.ipv6 - header - ICMP_HEADER_BYTES);
  const answer = Buffer.alloc(header + ICMP_HEADER_BYTES + quoted.length);
  const payload = answer.length - header;
  answer.set(source, 8);
  answer.set(packet.subarray(8, 24), 24);
  answer[header] = 2;
  answer.writeUInt32BE(mtuBytes, header + 4);
  answer.set(quoted, header + ICMP_HEADER_BYTES);
  // Over the pseudo-header (RFC 8200 section 8.1), for which length and protocol stand where the rest of the header will be.
  answer.writeUInt32BE(payload + ICMPV6, 0);
  putU16be(answer, header + 2, ~sumOf(answer, 0, answer.length));
  answer.writeUInt32BE(0x60000000, 0);
  putU16be(answer, 4, payload);
  answer[6] = ICMPV6;
  answer[7] = HOPS;
  return answer;
}
