/** Reads one program out of an object file (ELF64, little-endian), for programs that the agent loads without bpftool. */

/** Elf64_Ehdr, Elf64_Shdr and Elf64_Rel (elf.h): where the fields are that matter here. */
const HEADER = { sections: 0x28, count: 0x3c, names: 0x3e } as const;
const SECTION_BYTES = 64;
const RELOCATION_BYTES = 16;
/** BPF_PSEUDO_MAP_FD (linux/bpf.h): the value that an instruction loads stands for a map, by its descriptor. */
const PSEUDO_MAP_FD = 1;

/**
 * The instructions of the program in section `tc` of an object, which knows one map: wherever they name it they get this
 * one. Throws RangeError for what is no such object.
 */
export function linkProgram(object: Buffer, mapFd: number): Buffer {
  const instructions = Buffer.from(sectionOf(object, 'tc'));
  const relocations = sectionOf(object, '.reltc');
  for (let at = 0; at < relocations.length; at += RELOCATION_BYTES) {
    const place = Number(relocations.readBigUInt64LE(at));
    // The destination register stays in the lower half of the byte.
    instructions.writeUInt8((instructions.readUInt8(place + 1) & 0x0f) | (PSEUDO_MAP_FD << 4), place + 1);
    instructions.writeInt32LE(mapFd, place + 4);
  }
  return instructions;
}

function sectionOf(object: Buffer, name: string): Buffer {
  const table = Number(object.readBigUInt64LE(HEADER.sections));
  const contentAt = (i: number): Buffer => {
    const at = table + i * SECTION_BYTES;
    const [start, bytes] = [Number(object.readBigUInt64LE(at + 24)), Number(object.readBigUInt64LE(at + 32))];
    return object.subarray(start, start + bytes);
  };
  const names = contentAt(object.readUInt16LE(HEADER.names));
  for (let i = 0; i < object.readUInt16LE(HEADER.count); i++) {
    const from = object.readUInt32LE(table + i * SECTION_BYTES);
    if (names.toString('latin1', from, names.indexOf(0, from)) === name) return contentAt(i);
  }
  throw new RangeError(`cannot read an object: expected a section ${name}, got none`);
}
