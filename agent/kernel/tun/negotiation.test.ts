import test from 'ava';
import { type NegotiatorOptions, Negotiators } from '../../../test/support/negotiators.ts';
import { decodeControl, MAX_DATAGRAM_BYTES, readKind } from './wire.ts';

const sealed: NegotiatorOptions = { encryption: 'aes-gcm', secret: 'one' };
const both = (options: NegotiatorOptions): Negotiators => new Negotiators({ a: options, b: options });
const DIRECTIONS = [
  ['a', 'b'],
  ['b', 'a'],
] as const;

const MINUTE_MS = 60_000;
const isProbeOfFullSize = (bytes: Buffer): boolean => bytes.length === MAX_DATAGRAM_BYTES;

test('without encryption both agree at once, and the threads need not be told', async (t) => {
  const world = both({});
  await world.run(200);
  for (const [own, peer] of DIRECTIONS) {
    t.like(world.node(own).status(peer), { state: 'agreed', carriage: 'segments', encryption: 'none' });
    t.is(world.node(own).agreements.size, 0);
  }
});

for (const encryption of ['aes-gcm', 'chacha20-poly1305'] as const) {
  test(`${encryption}: a session stands after two round trips, and carries data both ways`, async (t) => {
    const world = both({ ...sealed, encryption });
    await world.run(200);
    t.is(world.recorded.length, 5, 'two greetings, an answer, a probe and its answer');
    for (const [own, peer] of DIRECTIONS) t.like(world.node(own).status(peer), { state: 'agreed', encryption });
    await world.run(1_000, { data: true });
    await world.run(100);
    for (const { received, dropped } of world.all) t.deepEqual([received.length, dropped], [50, []]);
  });
}

test('no data are sent or taken before a session stands', async (t) => {
  const world = both(sealed);
  world.channel = () => [];
  await world.run(10_000, { data: true });
  for (const node of world.all) t.deepEqual([node.dataSent, node.received.length], [0, 0]);
  t.true(world.node('a').unsent > 100);
});

test('greetings without an answer become rarer, to one in 7.5 to 15 seconds, and never end', async (t) => {
  for (const options of [{}, sealed]) {
    const world = both(options);
    world.channel = () => [];
    await world.run(MINUTE_MS);
    const first = world.node('a').controlSent;
    t.true(first >= 8 && first <= 20, `${first} in the first minute`);
    await world.run(10 * MINUTE_MS, { stepMs: 100 });
    const later = world.node('a').controlSent - first;
    t.true(later >= 35 && later <= 85, `${later} in ten minutes`);
  }
});

test('while nothing happens, a peer that has agreed is asked every 15 seconds, and no session is made anew', async (t) => {
  for (const options of [{}, sealed]) {
    const world = both(options);
    await world.run(1_000);
    const before = world.recorded.length;
    await world.run(10 * MINUTE_MS, { stepMs: 100 });
    const messages = world.recorded.slice(before).map(({ bytes }) => readKind(bytes[0] as number));
    t.deepEqual([...new Set(messages)].sort(), ['probe', 'probeAck']);
    t.true(messages.length <= 4 * 41, `${messages.length}`);
    for (const { keysSentUnder } of world.all) t.is(keysSentUnder.length, options === sealed ? 1 : 0);
  }
});

test('a peer that says nothing is silent, with a remedy, and agreed again once it answers', async (t) => {
  for (const options of [{}, sealed]) {
    const world = both(options);
    await world.run(1_000);
    world.channel = () => [];
    await world.run(25_000);
    const status = world.node('a').status('b');
    t.is(status.state, 'silent');
    t.true(status.sinceMs > 20_000);
    t.regex(status.problem ?? '', /^Node b does not answer at 192\.0\.2\.98 .*tun\.port/);
    world.channel = () => [1];
    await world.run(15_000);
    for (const [own, peer] of DIRECTIONS) t.like(world.node(own).status(peer), { state: 'agreed' });
    t.is(world.node('a').status('b').problem, undefined);
  }
});

test('silence is no problem in the first seconds', async (t) => {
  const world = both({});
  world.channel = () => [];
  await world.run(4_000);
  t.is(world.node('a').status('b').problem, undefined);
  await world.run(2_000);
  t.regex(world.node('a').status('b').problem ?? '', /does not answer/);
});

test('a port where nobody listens is told, until the peer is heard', async (t) => {
  const world = both({});
  await world.run(1_000);
  world.channel = ({ from }) => {
    if (from === 'a') world.node('a').negotiation.refused('b');
    return [];
  };
  world.node('a').negotiation.refused('b');
  t.like(world.node('a').status('b'), { state: 'refused' });
  await world.run(2 * MINUTE_MS);
  const { state, sinceMs, problem } = world.node('a').status('b');
  t.is(state, 'refused');
  t.true(sinceMs >= 2 * MINUTE_MS - 100, `${sinceMs}`);
  t.regex(problem ?? '', /nobody listens at 192\.0\.2\.98; see that its agent runs/);
  // From now on nothing comes back at all.
  world.channel = () => [];
  await world.run(2 * MINUTE_MS);
  t.is(world.node('a').status('b').state, 'silent');
  world.channel = () => [1];
  await world.run(16_000);
  t.is(world.node('a').status('b').state, 'agreed');
});

for (const [name, options] of [
  ['plain', {}],
  ['sealed', sealed],
] as const) {
  test(`${name}, whole: only once three probes of full size in a row have come through`, async (t) => {
    const world = new Negotiators({ a: { ...options, carriage: 'whole' }, b: options });
    let full = 0;
    world.channel = ({ bytes }) => {
      if (!isProbeOfFullSize(bytes)) return [1];
      full++;
      if (full === 3) t.not(world.node('a').agreements.get('b')?.carriage, 'whole');
      return full === 2 ? [] : [1];
    };
    await world.run(1_000);
    t.is(world.node('a').status('b').carriage, 'segments');
    await world.run(20_000);
    t.is(world.node('a').agreements.get('b')?.carriage, 'whole');
    t.is(world.node('a').status('b').carriage, 'whole');
    t.is(world.node('b').status('a').carriage, 'segments', 'each direction is its sender’s');
    t.is(full, 1 + 1 + 3);
  });

  test(`${name}, whole: back to segments when fragments stop passing, and to whole when they pass again`, async (t) => {
    const world = both({ ...options, carriage: 'whole' });
    await world.run(3_000);
    t.is(world.node('a').status('b').carriage, 'whole');
    world.channel = ({ bytes }) => (isProbeOfFullSize(bytes) ? [] : [1]);
    await world.run(15_000);
    t.like(world.node('a').status('b'), { state: 'agreed', carriage: 'segments' });
    t.is(world.node('a').agreements.get('b')?.carriage, 'segments');
    world.channel = () => [1];
    await world.run(15_000);
    t.is(world.node('a').agreements.get('b')?.carriage, 'whole');
  });

  test(`${name}: a peer that starts anew is agreed with within a second`, async (t) => {
    const world = both({ ...options, carriage: 'whole' });
    for (const [own, peer] of DIRECTIONS) {
      await world.run(3_000);
      world.node(own).restart();
      await world.run(1_000);
      t.like(world.node(own).status(peer), { state: 'agreed' });
      t.like(world.node(peer).status(own), { state: 'agreed' });
      const before = world.node(peer).received.length;
      await world.run(200, { data: true });
      if (name === 'sealed') t.is(world.node(peer).received.length - before, 9);
    }
  });
}

test('a single lost probe of full size changes nothing', async (t) => {
  const world = both({ carriage: 'whole' });
  await world.run(3_000);
  let lost = 0;
  const carriages = new Set<string>();
  world.channel = ({ from, bytes }) => (from === 'a' && isProbeOfFullSize(bytes) && lost++ % 2 === 0 ? [] : [1]);
  for (let i = 0; i < 60; i++) {
    await world.run(1_000);
    carriages.add(world.node('a').status('b').carriage);
  }
  t.true(lost > 6);
  t.deepEqual([...carriages], ['whole']);
});

test('a probe of full size that comes cut is not answered', async (t) => {
  const world = both({ carriage: 'whole' });
  world.channel = ({ from, to, bytes }) => {
    if (!isProbeOfFullSize(bytes)) return [1];
    world.inject({ from, to, bytes: bytes.subarray(0, 1472) }, 1);
    return [];
  };
  await world.run(30_000);
  t.like(world.node('a').status('b'), { state: 'agreed', carriage: 'segments' });
});

const MISMATCHES = [
  [{}, sealed, /tun\.encryption aes-gcm, this node has none/, /tun\.encryption none, this node has aes-gcm/],
  [
    sealed,
    { ...sealed, encryption: 'chacha20-poly1305' },
    /tun\.encryption chacha20-poly1305, this node has aes-gcm/,
    /tun\.encryption aes-gcm, this node has chacha20-poly1305/,
  ],
  [sealed, { ...sealed, secret: 'two' }, /another secret than this node/, /another secret than this node/],
] as const;

test('settings that do not go together are named at both nodes, and no data pass', async (t) => {
  for (const [a, b, atA, atB] of MISMATCHES) {
    const world = new Negotiators({ a, b });
    await world.run(40_000, { data: true });
    t.regex(world.node('a').status('b').problem ?? '', atA);
    t.regex(world.node('b').status('a').problem ?? '', atB);
    for (const node of world.all) {
      t.is(node.status(node.name === 'a' ? 'b' : 'a').state, 'mismatch');
      t.deepEqual([node.dataSent, node.received.length], [0, 0]);
    }
    world.node('b').restart(a);
    await world.run(16_000);
    for (const [own, peer] of DIRECTIONS) t.like(world.node(own).status(peer), { state: 'agreed' });
  }
});

test('a peer that comes back with other settings is a mismatch after a few seconds', async (t) => {
  for (const [a, b] of MISMATCHES) {
    const world = both(a);
    await world.run(1_000);
    world.node('b').restart(b);
    await world.run(8_000);
    t.is(world.node('a').status('b').state, 'mismatch');
    t.is(world.node('b').status('a').state, 'mismatch');
  }
});

test('a node without a secret says so, and its peer that it does not answer', async (t) => {
  const world = new Negotiators({ a: { encryption: 'aes-gcm' }, b: sealed });
  await world.run(10_000);
  t.regex(world.node('a').status('b').problem ?? '', /this node has no secret/);
  t.is(world.node('a').controlSent, 0);
  t.is(world.node('b').status('a').state, 'silent');
  world.node('a').setSecret('one');
  await world.run(15_000);
  t.is(world.node('a').status('b').state, 'agreed');
});

test('a peer at another end is another peer', async (t) => {
  const world = both(sealed);
  await world.run(1_000);
  const { negotiation, agreements } = world.node('a');
  const before = agreements.get('b')?.send;
  world.node('a').forget('b');
  t.is(world.node('a').status('b').state, 'silent');
  await world.run(1_000);
  t.truthy(before);
  t.notDeepEqual(world.node('a').agreements.get('b')?.send, before);
  negotiation.removePeer('b');
  t.throws(() => negotiation.status('b'), { instanceOf: RangeError });
  const sent = world.node('a').controlSent;
  await world.run(20_000);
  t.is(world.node('a').controlSent, sent, 'nothing is said to who is no peer');
});

test('a flood from a known node costs a bounded number of answers, and what stands goes on standing', async (t) => {
  for (const options of [{}, sealed]) {
    const world = both(options);
    await world.run(1_000);
    const hello = world.recorded.find(({ from, bytes }) => from === 'a' && decodeControl(bytes)?.kind === 'hello');
    const before = world.node('b').controlSent;
    for (let i = 0; i < 20_000; i++) if (hello) world.inject(hello, i / 4);
    await world.run(5_000, { data: true });
    t.true(world.node('b').controlSent - before <= 32 + 8 * 5 + 5, `${world.node('b').controlSent - before}`);
    t.is(world.node('b').status('a').state, 'agreed');
    if (options === sealed) t.is(world.node('b').received.length, 249);
  }
});
