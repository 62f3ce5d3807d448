import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { type Channel, type Datagram, type NegotiatorOptions, Negotiators } from '../../../test/support/negotiators.ts';
import { decodeControl, readKind } from './wire.ts';

const sealed: NegotiatorOptions = { encryption: 'aes-gcm', secret: 'one' };
const MINUTE_MS = 60_000;
const kindOf = ({ bytes }: Datagram): string => readKind(bytes[0] as number) ?? 'none';

/** Nothing is delivered twice, and no key comes again once another took its place. */
function isSound(t: ExecutionContext, world: Negotiators, when: string): void {
  for (const { name, received, keysSentUnder } of world.all) {
    t.is(new Set(received).size, received.length, `${when}: ${name} took something twice`);
    t.is(new Set(keysSentUnder).size, keysSentUnder.length, `${when}: ${name} sends under a former key`);
  }
  // A counter under a key is what no two datagrams may share.
  const places = world.recorded
    .filter((datagram) => kindOf(datagram) === 'sealed')
    .map(({ bytes }) => `${bytes.toString('hex', 12, 24)}`);
  t.is(new Set(places).size, places.length, `${when}: a counter was used twice`);
}

/** Everything that was ever sent comes once more, to whom it was meant, to its own sender, and to third nodes. */
async function replayAll(world: Negotiators): Promise<void> {
  const names = world.all.map(({ name }) => name);
  const all = [...world.recorded];
  for (const [i, { from, to, bytes }] of all.entries()) {
    world.inject({ from, to, bytes }, i / 4);
    world.inject({ from: to, to: from, bytes }, i / 4);
    for (const third of names) {
      if (third === from || third === to) continue;
      world.inject({ from, to: third, bytes }, i / 4);
      world.inject({ from: third, to, bytes }, i / 4);
    }
  }
  await world.run(all.length / 4 + 1_000);
}

const deliveredOf = (world: Negotiators): readonly number[] => world.all.map(({ received }) => received.length);

test('whatever is replayed, reflected or passed on is not delivered, also after a restart of either side', async (t) => {
  const world = new Negotiators({ a: sealed, b: sealed, c: sealed });
  for (const restarting of [undefined, 'a', 'b', 'c']) {
    if (restarting !== undefined) world.node(restarting).restart();
    await world.run(2_000);
    await world.run(500, { data: true });
    await world.run(100);
    const delivered = deliveredOf(world);
    const keys = world.all.map(({ keysSentUnder }) => keysSentUnder.length);
    await replayAll(world);
    t.deepEqual(deliveredOf(world), delivered);
    isSound(t, world, `restart of ${restarting}`);
    // An asking that is replayed may bring a new session, and no more than one a second.
    for (const [i, node] of world.all.entries()) t.true(node.keysSentUnder.length - (keys[i] as number) < 60);
    await world.run(20_000);
    const before = deliveredOf(world);
    await world.run(500, { data: true });
    await world.run(100);
    t.deepEqual(
      deliveredOf(world),
      before.map((count) => count + 50),
      `after the replay: ${restarting}`,
    );
  }
});

test('what was recorded before a restart is replayed right into the greetings after it', async (t) => {
  for (const restarting of ['a', 'b']) {
    const world = new Negotiators({ a: sealed, b: sealed });
    await world.run(1_000);
    await world.run(1_000, { data: true });
    await world.run(100);
    const old = [...world.recorded];
    const delivered = deliveredOf(world);
    world.node(restarting).restart();
    for (const datagram of old) {
      world.inject(datagram, 0);
      world.inject(datagram, 30);
    }
    await world.run(5_000);
    t.deepEqual(deliveredOf(world), delivered);
    await world.run(20_000);
    await world.run(1_000, { data: true });
    await world.run(100);
    t.deepEqual(
      deliveredOf(world),
      delivered.map((count) => count + 50),
    );
    isSound(t, world, `restart of ${restarting}`);
  }
});

test('the node that is offered a session sends under it only once it was shown', async (t) => {
  const world = new Negotiators({ a: sealed, b: sealed });
  world.channel = (datagram) => (kindOf(datagram) === 'probe' ? [] : [1]);
  await world.run(5_000, { data: true, stepMs: 50 });
  t.deepEqual(
    world.all.map(({ dataSent }) => dataSent),
    [0, 0],
  );
  t.true(world.recorded.some((datagram) => kindOf(datagram) === 'helloAck'));
  t.is(world.node('b').agreements.size, 0, 'the threads hear of no key that was not shown');
  world.channel = () => [1];
  await world.run(10_000);
  t.like(world.node('b').status('a'), { state: 'agreed' });
});

test('each message of the exchange may be lost at first', async (t) => {
  for (const lost of ['hello', 'helloAck', 'probe', 'probeAck']) {
    for (const times of [1, 3]) {
      const world = new Negotiators({ a: sealed, b: sealed });
      let left = times;
      world.channel = (datagram) => (kindOf(datagram) === lost && left-- > 0 ? [] : [1]);
      await world.run(12_000);
      t.deepEqual(
        [world.node('a').status('b').state, world.node('b').status('a').state],
        ['agreed', 'agreed'],
        `${times} × ${lost}`,
      );
      await world.run(400, { data: true });
      await world.run(100);
      t.deepEqual(deliveredOf(world), [20, 20]);
      isSound(t, world, lost);
    }
  }
});

test('an answer to an earlier offer is no answer', async (t) => {
  const world = new Negotiators({ a: sealed, b: sealed });
  await world.run(1_000);
  const old = world.recorded.filter((datagram) => kindOf(datagram) === 'helloAck');
  t.is(old.length, 1);
  world.node('a').restart();
  for (const datagram of old) world.inject(datagram);
  await world.run(1_000);
  t.like(world.node('a').status('b'), { state: 'agreed' });
});

test('data under a session that a node does not have bring a new one, and no more than one a second', async (t) => {
  for (const [own, peer] of [
    ['a', 'b'],
    ['b', 'a'],
  ] as const) {
    const world = new Negotiators({ a: sealed, b: sealed });
    await world.run(2_000);
    world.node(own).negotiation.unknownSession(peer);
    await world.run(1_200);
    t.deepEqual(
      world.all.map(({ keysSentUnder }) => keysSentUnder.length),
      [2, 2],
    );
    for (let i = 0; i < 100; i++) {
      world.node(own).negotiation.unknownSession(peer);
      await world.run(100);
    }
    for (const { keysSentUnder } of world.all) t.true(keysSentUnder.length > 3 && keysSentUnder.length <= 13);
    await world.run(2_000);
    t.like(world.node(own).status(peer), { state: 'agreed' });
  }
});

/** Both send all the time; what is sent from the first session on is counted. */
async function lossless(t: ExecutionContext, world: Negotiators, during: () => Promise<void>): Promise<void> {
  await world.run(3_000);
  const sent = world.all.map(({ dataSent }) => dataSent);
  await during();
  await world.run(200);
  const [a, b] = world.all.map(({ dataSent }, i) => dataSent - (sent[i] as number)) as [number, number];
  t.deepEqual(deliveredOf(world), [b, a]);
  for (const { name, unsent, dropped, keysSentUnder } of world.all) {
    t.deepEqual([unsent, dropped], [0, []], name);
    t.true(keysSentUnder.length > 1, 'there was another session');
  }
  isSound(t, world, 'rekeyed');
}

const slow: Channel = ({ bytes }) => [60 + ((bytes[23] as number) % 80)];
const CHANNELS: Readonly<Record<string, Channel>> = {
  'a quick one': () => [1],
  'a slow one that reorders': slow,
};
for (const [name, channel] of Object.entries(CHANNELS)) {
  for (const installMs of [undefined, 90]) {
    const options = { ...sealed, ...(installMs !== undefined && { installMs }) };
    const how = `over ${name}, threads told ${installMs === undefined ? 'at once' : 'late'}`;

    test(`a secret that changes on one node 90 seconds before the other costs nothing: ${how}`, async (t) => {
      for (const [first, second] of [
        ['a', 'b'],
        ['b', 'a'],
      ] as const) {
        const world = new Negotiators({ a: options, b: options });
        world.channel = channel;
        await lossless(t, world, async () => {
          await world.run(5_000, { data: true, stepMs: 50 });
          world.node(first).setSecret('two');
          await world.run(90_000, { data: true, stepMs: 50 });
          t.is(world.node(first).status(second).state, 'agreed');
          world.node(second).setSecret('two');
          await world.run(30_000, { data: true, stepMs: 50 });
          world.node(first).setSecret('three');
          world.node(second).setSecret('three');
          await world.run(30_000, { data: true, stepMs: 50 });
        });
      }
    });
  }
}

test('nothing is lost while the last message of the exchange does not come through for ten seconds', async (t) => {
  const world = new Negotiators({ a: sealed, b: sealed });
  await lossless(t, world, async () => {
    const endMs = world.nowMs + 10_000;
    world.channel = (datagram) => (kindOf(datagram) === 'probeAck' && world.nowMs < endMs ? [] : [1]);
    for (const node of world.all) node.setSecret('two');
    await world.run(25_000, { data: true, stepMs: 50 });
  });
});

test('a session of an hour is replaced without loss', async (t) => {
  const world = new Negotiators({ a: { ...sealed, installMs: 90 }, b: { ...sealed, installMs: 90 } });
  world.channel = slow;
  await lossless(t, world, async () => {
    await world.run(56 * MINUTE_MS, { stepMs: 200 });
    await world.run(5 * MINUTE_MS, { data: true, stepMs: 200 });
  });
});

test('a secret is good for five minutes after another took its place, and not longer', async (t) => {
  const world = new Negotiators({ a: sealed, b: sealed });
  await world.run(2_000);
  const old = world.node('a').agreements.get('b');
  world.node('a').setSecret('two');
  await world.run(3 * MINUTE_MS, { data: true, stepMs: 100 });
  t.like(world.node('a').status('b'), { state: 'agreed' });
  t.regex(world.node('a').status('b').problem ?? '', /Node b does not use the new secret yet/);
  t.is(world.node('b').dropped.length, 0);
  await world.run(2 * MINUTE_MS + 1_000);
  t.is(world.node('a').agreements.get('b')?.send, undefined);
  t.deepEqual(world.node('a').agreements.get('b')?.receive, []);
  t.truthy(old?.send);
  const delivered = deliveredOf(world);
  await world.run(30_000, { data: true, stepMs: 100 });
  t.deepEqual(deliveredOf(world), delivered);
  for (const [own, peer] of [
    ['a', 'b'],
    ['b', 'a'],
  ] as const) {
    t.regex(world.node(own).status(peer).problem ?? '', /has another secret than this node/, own);
  }
  world.node('b').setSecret('two');
  await world.run(20_000);
  t.like(world.node('a').status('b'), { state: 'agreed' });
  t.is(world.node('a').status('b').problem, undefined);
});

test('a node that starts anew while only one side has the new secret is agreed with, under the former one', async (t) => {
  for (const [young, late] of [
    ['a', 'b'],
    ['b', 'a'],
  ] as const) {
    const world = new Negotiators({ a: sealed, b: sealed });
    await world.run(2_000);
    world.node(young).setSecret('two');
    await world.run(20_000);
    world.node(late).restart();
    await world.run(16_000);
    t.like(world.node(young).status(late), { state: 'agreed' });
    t.like(world.node(late).status(young), { state: 'agreed' });
    await world.run(400, { data: true });
    await world.run(100);
    t.deepEqual(deliveredOf(world), [20, 20]);
  }
});

test('a secret that comes back is no way back to an old session', async (t) => {
  const world = new Negotiators({ a: sealed, b: sealed });
  for (const secret of ['one', 'two', 'one', 'two', 'one']) {
    for (const node of world.all) node.setSecret(secret);
    await world.run(20_000);
    await world.run(200, { data: true });
    await replayAll(world);
  }
  t.true(world.node('a').keysSentUnder.length >= 4);
  isSound(t, world, 'secrets to and fro');
});

const someEvent = fc.record({
  afterMs: fc.integer({ min: 0, max: 8_000 }),
  node: fc.constantFrom('a', 'b', 'c'),
  what: fc.constantFrom('restart', 'forget', 'secret', 'replay', 'unknown', 'refused', 'nothing'),
});

test('whatever is lost, doubled, reordered and started anew: nothing unsound, and in the end all agree', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(someEvent, { maxLength: 8 }),
      fc.record({
        lost: fc.integer({ min: 0, max: 60 }),
        doubled: fc.integer({ min: 0, max: 40 }),
        slowMs: fc.nat(3_000),
      }),
      fc.option(fc.nat(300), { nil: undefined }),
      fc.infiniteStream(fc.nat(99)),
      async (events, { lost, doubled, slowMs }, installMs, chance) => {
        const next = (): number => chance.next().value ?? 0;
        const options = { ...sealed, carriage: 'whole', ...(installMs !== undefined && { installMs }) } as const;
        const world = new Negotiators({ a: options, b: options, c: options });
        const delay = (): number => (next() < 50 ? 1 : (slowMs * next()) / 100);
        world.channel = () => (next() < lost ? [] : next() < doubled ? [delay(), delay()] : [delay()]);
        let secrets = 0;
        for (const { afterMs, node: name, what } of events) {
          await world.run(afterMs, { data: true, stepMs: 100 });
          const node = world.node(name);
          const peer = name === 'a' ? 'b' : 'a';
          if (what === 'restart') node.restart();
          else if (what === 'forget') node.forget(peer);
          else if (what === 'secret') for (const one of world.all) one.setSecret(`secret ${secrets}`);
          else if (what === 'replay')
            for (const datagram of world.recorded.slice(-400)) world.inject(datagram, next() * 20);
          else if (what === 'unknown') node.negotiation.unknownSession(peer);
          else if (what === 'refused') node.negotiation.refused(peer);
          if (what === 'secret') secrets++;
        }
        world.channel = () => [1];
        await world.run(45_000, { stepMs: 100 });
        const delivered = deliveredOf(world);
        await world.run(2_000, { data: true, stepMs: 100 });
        await world.run(400, { stepMs: 100 });
        for (const node of world.all) {
          for (const peer of world.all) {
            if (peer === node) continue;
            t.like(node.status(peer.name), { state: 'agreed', carriage: 'whole' });
          }
        }
        t.deepEqual(
          deliveredOf(world),
          delivered.map((count) => count + 40),
        );
        isSound(t, world, 'in the end');
      },
    ),
    { numRuns: 15 },
  );
});

test('messages of the exchange that are altered in any byte lead to nothing', async (t) => {
  const world = new Negotiators({ a: sealed, b: sealed });
  world.channel = ({ from, to, bytes }) => {
    const control = decodeControl(bytes);
    const length = control && 'nonce' in control ? bytes.length : 32;
    for (let at = 0; control && at < length; at += 7) {
      const altered = Buffer.from(bytes);
      altered[at] = (altered[at] as number) ^ 0x10;
      // Not those that only say that something else is spoken, which anybody may say.
      if (decodeControl(altered)?.kind === control.kind) world.inject({ from, to, bytes: altered });
    }
    return [];
  };
  await world.run(20_000);
  for (const node of world.all) t.deepEqual([node.agreements.size, node.dataSent], [0, 0]);
});
