/** Programs and maps over changes, upgrades and deaths, with connections being made all the while. */
import { once } from 'node:events';
import {
  appendFileSync,
  closeSync,
  copyFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import test from 'ava';
import { execa } from 'execa';
import { openPin, readProgramInfo } from '../../agent/kernel/bpf/commands.ts';
import type { BpfLane } from '../../agent/kernel/bpf/lane.ts';
import { OBJECT_FILE } from '../../agent/kernel/bpf/programs.ts';
import { type Command, run } from '../../agent/kernel/command.ts';
import { KernelError } from '../../agent/kernel/errors.ts';
import type { IpAddress } from '../../agent/model/ip.ts';
import { SOCKET_HOOKS } from '../../agent/model/items.ts';
import { type BackendSet, backendSet } from '../../agent/model/services.ts';
import { createOf, differences, removeOf } from '../support/converge.ts';
import {
  createEbpfNode,
  type EbpfNode,
  frontendOf,
  program,
  SERVER_PORT,
  SERVERS,
  setOf,
  TEST_SIZES,
  VIPS,
  type Wanted,
} from '../support/ebpf-node.ts';
import type { Answer } from '../support/socket-caller.ts';

const signal = new AbortController().signal;
const PER_SECOND = 500;
const STORM = join(import.meta.dirname, '../support/connect-storm.c');
const STORM_MS = 2500;
const VIP = VIPS.ipv4;
const CALL = { how: 'tcp', ip: VIP, port: 80 } as const;
const EBPF = dirname(OBJECT_FILE);
const MULTIARCH = `/usr/include/${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu`;
const AGENT = join(import.meta.dirname, '../support/ebpf-agent.ts');
const serving = (set: BackendSet): Wanted => ({ sets: [set], frontends: [frontendOf('ipv4', { target: set.id })] });
const attachments = ({ build }: BpfLane) => SOCKET_HOOKS.map((hook) => ({ hook, build }));
const sum = (counts: Answer['answers'] = {}): number => Object.values(counts).reduce((a, b) => a + b, 0);

/** The same programs as another build: bytes after the end of an ELF file mean nothing. */
function otherObject({ directory }: EbpfNode): string {
  const path = join(directory, 'other.bpf.o');
  copyFileSync(OBJECT_FILE, path);
  appendFileSync(path, 'other');
  return path;
}

/** A source of `ebpf/` under another name, with its body replaced. */
async function compile({ directory }: EbpfNode, name: string, source: string): Promise<string> {
  const [from, object] = [join(directory, `${name}.c`), join(directory, `${name}.o`)];
  writeFileSync(from, source);
  const flags = ['-target', 'bpf', '-mcpu=v2', '-O2', '-g', '-I', EBPF, '-idirafter', MULTIARCH];
  await execa('clang-14', [...flags, '-c', from, '-o', object]);
  return object;
}

interface Attached {
  readonly id: number;
  readonly attach_type: string;
  readonly name: string;
}
async function attachedTo(cgroup: string): Promise<readonly Attached[]> {
  const { stdout } = await execa('bpftool', ['-j', 'cgroup', 'show', cgroup]);
  return stdout === '' ? [] : (JSON.parse(stdout) as readonly Attached[]);
}

test.serial(
  'sets change under load: no connection fails, and none reaches a backend that was gone before it',
  async (t) => {
    const node = await createEbpfNode(t);
    const lane = node.openLane();
    const [caller, loader] = [await node.caller(), await node.caller()];
    await program(lane, serving(setOf('ipv4', 0, 1, 2)));
    const load = loader.load({ ip: VIP, port: 80, perSecond: PER_SECOND });
    const end = performance.now() + 3000;
    let switches = 0;
    for (; performance.now() < end; switches++) {
      const present = [switches % 3, (switches + 1) % 3];
      await program(lane, serving(setOf('ipv4', ...present)));
      const { from } = await caller.call(CALL);
      t.true(
        present.some((i) => SERVERS.ipv4[i] === from),
        `${from} is not of ${present}`,
      );
    }
    const { answers, errors } = await load.stop();
    t.deepEqual(errors, {});
    t.true(switches > 20);
    t.true(sum(answers) > PER_SECOND, `${sum(answers)} connections`);
    const { 'changed-meanwhile': retried } = lane.counters();
    t.log(`${sum(answers)} connections over ${switches} changes, ${retried} of which met one`);
  },
);

test.serial(
  'two Services change as fast as they can be written: nobody is refused, nobody reaches the other one',
  async (t) => {
    const node = await createEbpfNode(t);
    const storm = join(node.directory, 'storm');
    await execa('gcc', ['-O1', '-Wall', '-Wextra', '-Werror', STORM, '-o', storm]);
    const services = [
      { ip: '10.96.0.1' as IpAddress, prefix: '10.1.0.' },
      { ip: '10.96.0.2' as IpAddress, prefix: '10.2.0.' },
    ] as const;
    for (const host of [1, 2, 3]) await node.netns.run('ip', 'address', 'add', `10.2.0.${host}/32`, 'dev', 'lo');
    const lane = node.openLane();
    const stateOf = (round: number): Required<Pick<Wanted, 'sets' | 'frontends'>> => {
      const sets = services.map(({ prefix }) =>
        backendSet(
          [1, 2, 3]
            .filter((host) => host !== 1 + (round % 3))
            .map((host) => ({ ip: `${prefix}${host}` as IpAddress, port: 80 })),
        ),
      );
      const frontends = services.map(({ ip }, i) =>
        frontendOf('ipv4', { ip, protocol: 'UDP', target: (sets[i] as BackendSet).id }),
      );
      return { sets, frontends };
    };
    await program(lane, stateOf(0));
    const { 'backend-set': sets, frontend } = lane.drivers;
    const args = [String(STORM_MS), ...services.flatMap(({ ip, prefix }) => [ip, prefix])];
    const inside = [
      '-c',
      'echo 0 >"$0/cgroup.procs" && exec "$@"',
      node.cgroup,
      'ip',
      'netns',
      'exec',
      node.netns.name,
    ];
    const running = execa('sh', [...inside, storm, ...args], { timeout: 20_000 });
    let ended = false;
    void running.finally(() => {
      ended = true;
    });
    let round = 0;
    for (; !ended; round++) {
      const [old, next] = [stateOf(round), stateOf(round + 1)];
      await sets.apply(
        next.sets.map((set) => createOf('backend-set', set)),
        signal,
      );
      await frontend.apply(
        next.frontends.map((each) => createOf('frontend', each)),
        signal,
      );
      await sets.apply(
        old.sets.map((set) => removeOf('backend-set', set)),
        signal,
      );
      if (round % 100 === 0) await delay(0);
    }
    const [connected, failed, astray] = (await running).stdout.split(' ').map(Number);
    const { 'changed-meanwhile': again } = lane.counters();
    t.log(`${connected} connections over ${round} changes of both, ${again} looked again`);
    t.is(failed, 0);
    t.is(astray, 0);
    t.true((connected as number) > 10_000);
    t.true(round > 1000);
  },
);

test.serial('an upgrade under load attaches the new programs before the old ones go', async (t) => {
  const node = await createEbpfNode(t);
  const old = node.openLane();
  const loader = await node.caller();
  const set = setOf('ipv4', 0, 1);
  await program(old, serving(set));
  const before = await attachedTo(node.cgroup);
  const load = loader.load({ ip: VIP, port: 80, perSecond: PER_SECOND });
  await delay(300);
  const next = node.openLane({ object: otherObject(node) });
  t.not(next.build, old.build);
  // Equal layouts: the maps are kept, so there is nothing to write.
  t.deepEqual(await differences(next.drivers['backend-set'], [set]), []);
  t.deepEqual(await differences(next.drivers.frontend, serving(set).frontends ?? []), []);
  t.is((await differences(next.drivers.attachment, attachments(next))).length, SOCKET_HOOKS.length);
  await program(next, serving(set));
  await delay(300);
  const { answers, errors } = await load.stop();
  t.deepEqual(errors, {});
  t.true(sum(answers) > 200);
  const after = await attachedTo(node.cgroup);
  t.is(after.length, SOCKET_HOOKS.length);
  t.deepEqual(
    after.filter(({ id }) => before.some((each) => each.id === id)),
    [],
  );
  t.deepEqual(await differences(next.drivers.attachment, attachments(next)), []);
  t.deepEqual(readdirSync(join(node.bpffs, 'tulle/programs')), [next.build]);
});

for (const family of ['ipv4', 'ipv6'] as const) {
  for (const how of ['tcp', 'udp', 'udp-connected'] as const) {
    test.serial(`${family} ${how}: old and new programs together do what one does`, async (t) => {
      const node = await createEbpfNode(t);
      const lane = node.openLane();
      const protocol = how === 'tcp' ? 'TCP' : 'UDP';
      const backend = SERVERS[family][0] as IpAddress;
      // The backend is a frontend itself: who translates twice ends at the other server, or is refused.
      const [outer, inner] = [setOf(family, 0), setOf(family, 1)];
      const refused = frontendOf(family, { port: 81, protocol });
      const frontends = [
        frontendOf(family, { target: outer.id, protocol }),
        frontendOf(family, { ip: backend, port: SERVER_PORT, protocol, target: inner.id }),
        refused,
      ];
      await program(lane, { sets: [outer, inner], frontends });
      // A second of each, as in the middle of an upgrade.
      const second = join(node.bpffs, 'second');
      const pins = readdirSync(join(node.bpffs, 'tulle/maps')).flatMap((pin) => [
        ...['map', 'name', pin.replace(/-v.*/, ''), 'pinned', join(node.bpffs, 'tulle/maps', pin)],
      ]);
      await execa('bpftool', ['-n', 'prog', 'loadall', otherObject(node), second, ...pins]);
      for (const hook of SOCKET_HOOKS)
        await execa('bpftool', [
          'cgroup',
          'attach',
          node.cgroup,
          hook,
          'pinned',
          join(second, `tulle_${hook}`),
          'multi',
        ]);
      t.is((await attachedTo(node.cgroup)).length, 2 * SOCKET_HOOKS.length);
      const caller = await node.caller();
      const vip = VIPS[family];
      const before = lane.counters()['already-translated'];
      for (let i = 0; i < 5; i++)
        t.deepEqual(await caller.call({ how, ip: vip, port: 80 }), { from: backend, peer: `${vip} 80` });
      t.is(lane.counters()['already-translated'] - before, 5n);
      t.is((await caller.call({ how, ip: vip, port: 81 })).error, 'ECONNREFUSED');
      // What is attached twice is seen, and made one again.
      t.is((await differences(lane.drivers.attachment, attachments(lane))).length, SOCKET_HOOKS.length);
      await program(lane, { sets: [outer, inner], frontends });
      t.is((await attachedTo(node.cgroup)).length, SOCKET_HOOKS.length);
    });
  }
}

test.serial('an agent that is killed leaves everything at work, and the next one finds nothing to do', async (t) => {
  const node = await createEbpfNode(t);
  const agent = execa(process.execPath, [AGENT, join(node.bpffs, 'tulle'), node.cgroup], {
    reject: false,
    buffer: false,
  });
  const [build] = (await once(agent.stdout, 'data')) as [Buffer];
  const caller = await node.caller();
  t.is((await caller.call(CALL)).error, undefined);
  agent.kill('SIGKILL');
  await agent;
  t.is((await caller.call(CALL)).error, undefined);
  const ids = (await attachedTo(node.cgroup)).map(({ id }) => id);
  const lane = node.openLane();
  t.is(lane.build, String(build).trim());
  const set = setOf('ipv4', 0, 1);
  t.deepEqual(await differences(lane.drivers['backend-set'], [set]), []);
  t.deepEqual(await differences(lane.drivers.frontend, [frontendOf('ipv4', { target: set.id })]), []);
  t.deepEqual(await differences(lane.drivers.attachment, attachments(lane)), []);
  await program(lane, serving(set));
  t.deepEqual(
    (await attachedTo(node.cgroup)).map(({ id }) => id),
    ids,
    'not attached again',
  );
});

test.serial('the loader of an agent that was killed may still be at work', async (t) => {
  const node = await createEbpfNode(t);
  const begun: Command[] = [];
  const killed = node.openLane({
    run: (command) => {
      begun.push(command);
      return Promise.reject(new Error('killed'));
    },
  });
  await t.throwsAsync(killed.load(signal), { message: 'killed' });
  const lane = node.openLane({
    run: async (command) => {
      for (const left of begun.splice(0)) await run(left);
      return run(command);
    },
  });
  await program(lane, serving(setOf('ipv4', 0)));
  t.is((await (await node.caller()).call(CALL)).from, SERVERS.ipv4[0]);
  t.deepEqual(readdirSync(join(node.bpffs, 'tulle/programs')), [lane.build], 'what it made is gone');
});

test.serial('maps of another size are filled before the programs move to them', async (t) => {
  const node = await createEbpfNode(t);
  const small = node.openLane();
  const loader = await node.caller();
  await program(small, serving(setOf('ipv4', 0)));
  const load = loader.load({ ip: VIP, port: 80, perSecond: PER_SECOND });
  const large = node.openLane({ sizes: { ...TEST_SIZES, frontends: 4096, backends: 8192 } });
  t.is((await large.drivers.frontend.list(AbortSignal.timeout(10_000))).size, 0);
  await delay(200);
  await program(large, serving(setOf('ipv4', 0)));
  await delay(200);
  const { answers, errors } = await load.stop();
  t.deepEqual(errors, {});
  t.true(sum(answers) > 100);
  const pins = readdirSync(join(node.bpffs, 'tulle/maps'));
  t.is(pins.length, 8, 'the maps of the old size are gone');
  t.true(pins.includes('tulle_frontends-v1-4096'));
  // Runtime maps have kept their size, and with it their content.
  t.true(large.counters().translated > 100n);
});

test.serial('programs of others stay where they are, and nothing of ours stays when it is not wanted', async (t) => {
  const node = await createEbpfNode(t);
  // By its name it could be ours, but it uses none of our maps.
  const object = await compile(
    node,
    'foreign',
    '#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\nchar LICENSE[] SEC("license") = "GPL";\n' +
      'SEC("cgroup/connect4") int tulle_connect4(struct bpf_sock_addr *ctx) { return 1; }\n',
  );
  await execa('bpftool', ['-n', 'prog', 'load', object, join(node.bpffs, 'foreign')]);
  await execa('bpftool', ['cgroup', 'attach', node.cgroup, 'connect4', 'pinned', join(node.bpffs, 'foreign'), 'multi']);
  const [foreign] = await attachedTo(node.cgroup);
  const lane = node.openLane();
  await program(lane, serving(setOf('ipv4', 0)));
  t.is((await attachedTo(node.cgroup)).length, 1 + SOCKET_HOOKS.length);
  t.deepEqual(await differences(lane.drivers.attachment, attachments(lane)), []);
  await program(lane, { attached: false });
  t.deepEqual(await attachedTo(node.cgroup), [foreign]);
  t.false(existsSync(join(node.bpffs, 'tulle')));
  const caller = await node.caller();
  t.is((await caller.call(CALL)).error, 'ENETUNREACH');
  // And back again: the maps that this agent holds are pinned anew.
  await program(lane, serving(setOf('ipv4', 0)));
  t.is((await caller.call(CALL)).from, SERVERS.ipv4[0]);
});

test.serial('pins and attachments that are taken away by hand come back', async (t) => {
  const node = await createEbpfNode(t);
  const lane = node.openLane();
  const wanted = serving(setOf('ipv4', 0));
  await program(lane, wanted);
  const caller = await node.caller();
  rmSync(join(node.bpffs, 'tulle'), { recursive: true });
  t.is((await caller.call(CALL)).from, SERVERS.ipv4[0], 'what is attached needs no pins');
  t.is((await differences(lane.drivers.attachment, attachments(lane))).length, SOCKET_HOOKS.length);
  await program(lane, wanted);
  t.is(readdirSync(join(node.bpffs, 'tulle/maps')).length, 8);
  t.is((await attachedTo(node.cgroup)).length, SOCKET_HOOKS.length);
  const [first] = await attachedTo(node.cgroup);
  await execa('bpftool', ['cgroup', 'detach', node.cgroup, 'connect4', 'id', String(first?.id)]);
  t.deepEqual(await differences(lane.drivers.attachment, attachments(lane)), ['attachment connect4']);
  await program(lane, wanted);
  t.is((await caller.call(CALL)).from, SERVERS.ipv4[0]);
});

test.serial('a program that the kernel rejects is told with its reason, and what was attached goes on', async (t) => {
  const node = await createEbpfNode(t);
  const lane = node.openLane();
  const set = setOf('ipv4', 0);
  await program(lane, serving(set));
  const source = readFileSync(join(EBPF, 'service_connect4.bpf.c'), 'utf8');
  const broken = await compile(node, 'broken', source.replace(/return translate4.*;/, 'return 7;'));
  const next = node.openLane({ object: broken });
  const error = await t.throwsAsync(program(next, serving(set)), { instanceOf: KernelError });
  t.regex(error.message, /tulle_connect4|R0/);
  const caller = await node.caller();
  t.is((await caller.call(CALL)).from, SERVERS.ipv4[0]);
  t.false(existsSync(join(node.bpffs, 'tulle/programs', next.build)));
  t.deepEqual(await differences(lane.drivers.attachment, attachments(lane)), []);
});

test.serial('what is missing is named: a bpffs, a cgroup, the tool', async (t) => {
  const node = await createEbpfNode(t);
  t.throws(() => node.openLane({ directory: join(node.directory, 'tulle') }), {
    instanceOf: KernelError,
    message: /expected a bpffs, got a file system of type 0x.*mount -t bpf bpf/,
  });
  t.throws(() => node.openLane({ directory: join(node.directory, 'none/tulle') }), {
    message: /expected a bpffs, got ENOENT/,
  });
  const lane = node.openLane({
    run: () => Promise.reject(new KernelError({ code: 'ENOPKG', operation: 'run', object: 'bpftool' })),
  });
  const error = await t.throwsAsync(program(lane, serving(setOf('ipv4', 0))));
  t.is((error as KernelError).code, 'ENOPKG');
});

test.serial('a full map says so, and what worked goes on', async (t) => {
  const node = await createEbpfNode(t);
  const lane = node.openLane({ sizes: { frontends: 2, backends: 2, clients: 64 } });
  const set = setOf('ipv4', 0, 1);
  await program(lane, serving(set));
  t.deepEqual(lane.usage(), { frontends: { used: 1, max: 2 }, backends: { used: 2, max: 2 } });
  const more = backendSet([{ ip: '10.1.0.3' as IpAddress, port: SERVER_PORT }]);
  const both = {
    sets: [set, more],
    frontends: [...(serving(set).frontends ?? []), frontendOf('ipv4', { port: 81, target: more.id })],
  };
  const error = await t.throwsAsync(program(lane, both), { instanceOf: KernelError });
  t.regex(error.message, /map tulle_backends: ENOSPC .*2 entries/);
  const caller = await node.caller();
  t.is((await caller.call(CALL)).error, undefined);
  await program(lane, serving(set));
});

test.serial('the verifier takes every program without a warning', async (t) => {
  const node = await createEbpfNode(t);
  const pins = join(node.bpffs, 'verified');
  const { stderr } = await execa('bpftool', ['-n', 'prog', 'loadall', OBJECT_FILE, pins]);
  t.is(stderr, '');
  const steps = SOCKET_HOOKS.map((hook) => {
    const fd = openPin(join(pins, `tulle_${hook}`));
    const { verifiedInstructions } = readProgramInfo(fd);
    closeSync(fd);
    return [hook, verifiedInstructions] as const;
  });
  // A fifth of the kernel's limit of a million: older verifiers prune less. That of 6.1 needs a third more than that of 6.18.
  for (const [hook, count] of steps) t.true(count > 0 && count < 200_000, `${hook}: ${count}`);
  t.log(`verified instructions: ${steps.map((each) => each.join(' ')).join(', ')}`);
});
