/**
 * The bytes between the executable that a runtime calls and the agent; tulle-cni.c is the other side.
 *
 * Request: "TULLE1", then NAME=value strings, then an empty string, each ended by NUL; then the runtime's standard input,
 * up to the end of the stream. Answer: the exit code in decimal, a newline, and one line of JSON unless there is nothing
 * to say. By the last newline the executable knows that an answer is whole.
 */
import { CNI_CODES, CniError, invalid, shown } from './cni-error.ts';

export interface Frame {
  /** By name. Bytes that are no UTF-8 have become U+FFFD. */
  readonly variables: ReadonlyMap<string, string>;
  /** A view of the request. */
  readonly stdin: Uint8Array;
}

/** The most that the executable sends: 64 KiB of variables and 1 MiB of configuration. */
export const REQUEST_MAX_BYTES = (64 + 1024) * 1024;

const MAGIC = 'TULLE1';
const OTHER_RELEASE =
  'the CNI executable and the agent are of different releases; install the one that comes with the agent';

/** Throws CniError 6. */
export function readFrame(bytes: Uint8Array): Frame {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const end = buffer.indexOf('\0\0');
  const [magic = '', ...texts] = buffer.toString('utf8', 0, end < 0 ? buffer.length : end).split('\0');
  checkMagic(magic);
  if (end < 0) throw invalid(CNI_CODES.decodingFailure, 'request', 'an empty string after the variables', undefined);
  const variables = new Map<string, string>();
  for (const text of texts) addVariable(variables, text);
  return { variables, stdin: bytes.subarray(end + 2) };
}

function checkMagic(text: string): void {
  if (text === MAGIC) return;
  throw new CniError(CNI_CODES.decodingFailure, `request: expected ${shown(MAGIC)} first, got ${shown(text)}`, {
    details: OTHER_RELEASE,
  });
}

function addVariable(variables: Map<string, string>, text: string): void {
  const equals = text.indexOf('=');
  const name = text.slice(0, equals);
  if (equals < 1) throw invalid(CNI_CODES.decodingFailure, 'request', 'NAME=value', text);
  if (variables.has(name)) throw invalid(CNI_CODES.decodingFailure, 'request', `${name} once`, text);
  variables.set(name, text.slice(equals + 1));
}

/** The inverse of what parseRequest reads first, byte for byte what the executable sends. */
export function renderRequest(variables: Readonly<Record<string, string>>, stdin: string | Uint8Array): Buffer {
  const strings = [MAGIC, ...Object.entries(variables).map(([name, value]) => `${name}=${value}`), ''];
  return Buffer.concat([Buffer.from(strings.map((text) => `${text}\0`).join('')), Buffer.from(stdin)]);
}

/** `output` is what the runtime gets on standard output: a result or an error object. */
export function renderAnswer(exitCode: number, output?: object): Buffer {
  return Buffer.from(`${exitCode}\n${output === undefined ? '' : `${JSON.stringify(output)}\n`}`);
}

/**
 * Name of the file in which the executable queues the DEL of an attachment (delete_queue.c): FNV-1a with 64 bits
 * (RFC 9923) of `<container id>/<interface name>`, in hexadecimal.
 */
export function deleteQueueName(containerId: string, ifName: string): string {
  // In two halves: every ADD computes it, and a BigInt would be made three times a byte. The prime is 2^40 + 0x1b3.
  let high = 0xcbf29ce4;
  let low = 0x84222325;
  for (const byte of Buffer.from(`${containerId}/${ifName}`)) {
    low = (low ^ byte) >>> 0;
    const product = low * 0x1b3;
    high = (high * 0x1b3 + Math.floor(product / 2 ** 32) + low * 2 ** 8) >>> 0;
    low = product >>> 0;
  }
  return [high, low].map((half) => half.toString(16).padStart(8, '0')).join('');
}
