/** That the committed object is what its sources make, and that what TypeScript says of its layouts is what it holds. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { execa } from 'execa';
import { COUNTERS, FRONTEND_FLAGS, SCOPES, SETTINGS_FLAGS, STRUCTS, TARGETS } from './layout.ts';
import { BRIDGE_OBJECT_FILE, SOURCES_MAP } from './pod-sources.ts';
import { OBJECT_FILE, PEERS_FILE } from './programs.ts';
import { MAPS } from './store.ts';

const EBPF = join(OBJECT_FILE, '..');

/** A type as `bpftool -j btf dump` shows it; fields by kind. */
interface BtfType {
  readonly id: number;
  readonly kind: string;
  readonly name: string;
  readonly size?: number;
  readonly type_id?: number;
  readonly nr_elems?: number;
  readonly members?: readonly { readonly name: string; readonly type_id: number; readonly bits_offset: number }[];
  readonly vars?: readonly { readonly type_id: number }[];
}

async function readBtf(file = OBJECT_FILE) {
  const { stdout } = await execa('bpftool', ['-j', 'btf', 'dump', 'file', file]);
  const types = (JSON.parse(stdout) as { types: readonly BtfType[] }).types;
  const byId = new Map(types.map((type) => [type.id, type]));
  const get = (id: number | undefined): BtfType => {
    const type = byId.get(id ?? -1);
    if (!type) throw new Error(`no BTF type ${id}`);
    return type;
  };
  const bytesOf = (id: number | undefined): number => {
    const type = get(id);
    if (type.size !== undefined) return type.size;
    return type.kind === 'ARRAY' ? (type.nr_elems ?? 0) * bytesOf(type.type_id) : bytesOf(type.type_id);
  };
  return { types, get, bytesOf };
}

test('the committed objects are what clang makes of the sources', async (t) => {
  t.timeout(120_000);
  const { exitCode, all } = await execa('make', ['-C', EBPF, 'check'], { reject: false, all: true, timeout: 110_000 });
  t.is(exitCode, 0, `${all}\nrun npm run ebpf and commit ebpf/*.o`);
});

test('every struct lies in memory as the object says', async (t) => {
  const objects = [await readBtf(), await readBtf(PEERS_FILE), await readBtf(BRIDGE_OBJECT_FILE)];
  for (const [name, { bytes, fields }] of Object.entries(STRUCTS)) {
    const isMeant = (each: BtfType): boolean => each.kind === 'STRUCT' && each.name === name;
    const { types, bytesOf } = objects.find((object) => object.types.some(isMeant)) as (typeof objects)[0];
    const type = types.find(isMeant);
    t.is(type?.size, bytes, name);
    const found = type?.members?.map((member) => [
      member.name,
      { offset: member.bits_offset / 8, bytes: bytesOf(member.type_id) },
    ]);
    t.deepEqual(Object.fromEntries(found ?? []), { ...fields }, name);
  }
});

test('every map has the type, flags and sizes that the object asks for', async (t) => {
  t.deepEqual(await mapsIn(OBJECT_FILE), MAPS_OF_SERVICES);
  const { type, flags, keyBytes, valueBytes } = SOURCES_MAP;
  t.deepEqual(await mapsIn(BRIDGE_OBJECT_FILE), { tulle_sources: { type, flags, keyBytes, valueBytes } });
});

const MAPS_OF_SERVICES = Object.fromEntries(
  Object.entries(MAPS).map(([name, { type, flags, keyBytes, valueBytes }]) => [
    `tulle_${name}`,
    { type, flags, keyBytes, valueBytes },
  ]),
);

async function mapsIn(file: string) {
  const { types, get, bytesOf } = await readBtf(file);
  const section = types.find(({ kind, name }) => kind === 'DATASEC' && name === '.maps');
  const found = (section?.vars ?? []).map(({ type_id }) => {
    const variable = get(type_id);
    const members = new Map(
      get(variable.type_id).members?.map(({ name, type_id: id }) => [name, get(get(id).type_id)]),
    );
    const number = (name: string): number => members.get(name)?.nr_elems ?? 0;
    const bytes = (name: string): number => bytesOf(members.get(name)?.id);
    const shape = {
      type: number('type'),
      flags: number('map_flags'),
      keyBytes: bytes('key'),
      valueBytes: bytes('value'),
    };
    return [variable.name, shape] as const;
  });
  return Object.fromEntries(found);
}

test('numbers mean what the header says', (t) => {
  const header = readFileSync(join(EBPF, 'types.h'), 'utf8').replace(/\/\*.*?\*\//gs, '');
  const enumOf = (name: string): Readonly<Record<string, number>> => {
    const body = new RegExp(`enum ${name} \\{([^}]*)\\}`).exec(header)?.[1] ?? '';
    let next = 0;
    const entries = body.split(',').flatMap((part) => {
      const [, key, value] = /^\s*(\w+)(?:\s*=\s*(\d+))?\s*$/.exec(part) ?? [];
      if (key === undefined) return [];
      next = value === undefined ? next : Number(value);
      return [[key, next++] as const];
    });
    return Object.fromEntries(entries);
  };
  const named = (prefix: string, numbers: Readonly<Record<string, number>>): Readonly<Record<string, number>> =>
    Object.fromEntries(
      Object.entries(numbers).map(([name, value]) => [
        `${prefix}_${name.replace(/[A-Z]/g, '_$&').replaceAll('-', '_').toUpperCase()}`,
        value,
      ]),
    );
  t.deepEqual(enumOf('scope'), named('SCOPE', SCOPES));
  t.deepEqual(enumOf('target'), named('TARGET', TARGETS));
  t.deepEqual(enumOf('frontend_flag'), named('FRONTEND', FRONTEND_FLAGS));
  t.deepEqual(enumOf('settings_flag'), named('SETTINGS', SETTINGS_FLAGS));
  const counters = Object.fromEntries(COUNTERS.map((name, i) => [name, i]));
  t.deepEqual(enumOf('counter'), { ...named('COUNTER', counters), COUNTERS: COUNTERS.length });
});

test('every program says in its header what it does, and has a licence that the kernel accepts', async (t) => {
  const files = ['connect', 'sendmsg', 'recvmsg', 'getpeername'].flatMap((hook) => [`${hook}4`, `${hook}6`]);
  for (const hook of files) {
    const text = readFileSync(join(EBPF, `service_${hook}.bpf.c`), 'utf8');
    t.regex(text, /^\/\* SPDX-License-Identifier: \(GPL-2\.0-only OR BSD-2-Clause\) \*\//, hook);
    t.regex(text, new RegExp(`Hook: cgroup/${hook},[^]*On failure:[^]*SEC\\("cgroup/${hook}"\\)`), hook);
  }
});
