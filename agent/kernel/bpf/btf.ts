/** Type information of maps (BTF, Documentation/bpf/btf.rst), where the kernel makes none without: storage in sockets. */
import { bpf } from '../libc.ts';

const BPF_BTF_LOAD = 18;
/** struct btf_header, whose fields all count from its end. */
const MAGIC = 0xeb9f;
const HEADER_BYTES = 24;
const KIND = { INT: 1, ARRAY: 3 } as const;
const STRINGS = '\0u32\0';

export interface MapBtf {
  /** Not needed any more once the map is made. */
  readonly fd: number;
  readonly keyType: number;
  readonly valueType: number;
}

/** Says that a key is an integer of 32 bits and a value an array of such. Throws KernelError. */
export function loadMapBtf(valueBytes: number): MapBtf {
  // struct btf_type: name, kind, size; then what the kind asks for.
  const int = [STRINGS.indexOf('u32'), KIND.INT << 24, 4, 32];
  const array = [0, KIND.ARRAY << 24, 0, 1, 1, valueBytes / 4];
  const words = Buffer.from(Uint32Array.from([...int, ...array]).buffer);
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt16LE(MAGIC, 0);
  header[2] = 1;
  for (const [i, value] of [HEADER_BYTES, 0, words.length, words.length, STRINGS.length].entries())
    header.writeUInt32LE(value, 4 + 4 * i);
  const btf = Buffer.concat([header, words, Buffer.from(STRINGS, 'latin1')]);
  const attribute = Buffer.alloc(32);
  attribute.writeUInt32LE(btf.length, 16);
  const what = { operation: 'load', object: 'type information of a map' };
  return { fd: bpf(BPF_BTF_LOAD, attribute, [{ at: 0, to: btf }], what), keyType: 1, valueType: 2 };
}
