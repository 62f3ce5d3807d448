/** Whether this host can translate connections to Services at the socket, asked once before anything depends on it. */
import { closeSync, existsSync } from 'node:fs';
import { KernelError } from '../errors.ts';
import type { Feature } from '../features.ts';
import { ATTACH_TYPES, requireRoom } from './attachment.ts';
import { createMap, loadSocketProgram, SK_STORAGE } from './commands.ts';
import { findCgroupRoot } from './place.ts';
import { requireBpffs } from './store.ts';

export interface SupportPlaces {
  /** Candidates, the first one that is of cgroup v2 counts. */
  readonly cgroupRoots?: readonly string[];
  readonly bpffs?: string;
  /** The kernel's own type information, which the object's relocations need. */
  readonly kernelBtf?: string;
}

export interface SocketSupport {
  readonly features: readonly Feature[];
  /** Those without which nothing can be translated at sockets; empty: everything is there. */
  readonly lacking: readonly Feature[];
}

interface Probe {
  readonly name: string;
  readonly consequence: string;
  /** It works without it. */
  readonly isOptional?: true;
  /** What was seen. Throws what was missed. */
  probe(places: Required<SupportPlaces>): string;
}

/** Of instructions, as struct bpf_insn (linux/bpf.h): opcode, registers, offset, immediate value. */
const instruction = (opcode: number, register: number, immediate: number): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes[0] = opcode;
  bytes[1] = register;
  bytes.writeInt32LE(immediate, 4);
  return bytes;
};
const [MOVE, CALL, EXIT] = [0xb7, 0x85, 0x95] as const;
/** BPF_FUNC_set_retval. */
const SET_RETVAL = 187;
const ECONNREFUSED = 111;

const PROBES: readonly Probe[] = [
  {
    name: 'cgroup v2',
    consequence: 'no program can be asked for the sockets of this node; mount -t cgroup2 none /sys/fs/cgroup/unified',
    probe: ({ cgroupRoots }) => `mounted at ${findCgroupRoot(cgroupRoots)}`,
  },
  {
    name: 'bpffs',
    consequence: 'maps and programs would end with the agent; mount -t bpf bpf /sys/fs/bpf',
    probe({ bpffs }) {
      requireBpffs(bpffs);
      return `mounted at ${bpffs}`;
    },
  },
  {
    name: 'type information of the kernel',
    consequence: 'the programs cannot be fitted to this kernel; needs CONFIG_DEBUG_INFO_BTF',
    probe({ kernelBtf }) {
      if (existsSync(kernelBtf)) return kernelBtf;
      throw new KernelError({ code: 'ENOENT', operation: 'find', object: kernelBtf });
    },
  },
  {
    name: 'programs at sockets',
    consequence: 'Services cannot be translated at sockets; needs Linux 5.8 with CONFIG_CGROUP_BPF',
    // The youngest of the hooks.
    probe: () => load('getpeername6', instruction(MOVE, 0, 1), instruction(EXIT, 0, 0)),
  },
  {
    name: 'room beside other programs',
    consequence: 'no program can be attached to the cgroups of this node beside those of others',
    probe({ cgroupRoots }) {
      requireRoom(findCgroupRoot(cgroupRoots));
      return 'nobody has a hook for himself';
    },
  },
  {
    name: 'storage in sockets',
    consequence: 'Services cannot be translated at sockets; needs Linux 5.8',
    probe() {
      closeSync(createMap('tulle_probe', { type: SK_STORAGE, keyBytes: 4, valueBytes: 8, maxEntries: 0, flags: 1 }));
      return 'a map was made';
    },
  },
  {
    name: 'errors that programs choose',
    consequence: 'connections to Services without endpoints fail with EPERM instead of ECONNREFUSED; needs Linux 5.18',
    isOptional: true,
    probe: () =>
      load(
        'connect4',
        instruction(MOVE, 1, -ECONNREFUSED),
        instruction(CALL, 0, SET_RETVAL),
        instruction(MOVE, 0, 0),
        instruction(EXIT, 0, 0),
      ),
  },
];

function load(hook: keyof typeof ATTACH_TYPES, ...instructions: readonly Buffer[]): string {
  closeSync(loadSocketProgram(ATTACH_TYPES[hook], Buffer.concat(instructions)));
  return `a program for ${hook} was loaded`;
}

/** Tries everything, each for itself, and leaves nothing behind. Never throws. */
export function probeSocketSupport({
  cgroupRoots = ['/sys/fs/cgroup', '/sys/fs/cgroup/unified'],
  bpffs = '/sys/fs/bpf',
  kernelBtf = '/sys/kernel/btf/vmlinux',
}: SupportPlaces = {}): SocketSupport {
  const places = { cgroupRoots, bpffs, kernelBtf };
  const tried = PROBES.map((probe) => ({ feature: tryOne(probe, places), isOptional: probe.isOptional }));
  const lacking = tried.filter(({ feature, isOptional }) => feature.state !== 'supported' && !isOptional);
  return { features: tried.map(({ feature }) => feature), lacking: lacking.map(({ feature }) => feature) };
}

function tryOne({ name, consequence, probe }: Probe, places: Required<SupportPlaces>): Feature {
  try {
    return { name, consequence, state: 'supported', evidence: probe(places) };
  } catch (error) {
    const { code, message } = error as KernelError;
    // Who may not ask learns nothing about the kernel.
    return {
      name,
      consequence,
      state: code === 'EPERM' || code === 'EACCES' ? 'unknown' : 'missing',
      evidence: message,
    };
  }
}
