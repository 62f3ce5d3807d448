import test from 'ava';
import { Negotiators } from '../../../test/support/negotiators.ts';

const SECRET = 'the secret that all nodes share';

test('without encryption: both agree at once, and nothing needs to be told to the threads', async (t) => {
  const world = new Negotiators({ a: {}, b: {} });
  await world.run(200);
  t.like(world.node('a').status('b'), { state: 'agreed', carriage: 'segments', encryption: 'none' });
  t.like(world.node('b').status('a'), { state: 'agreed' });
  t.is(world.node('a').agreements.size, 0);
});

for (const encryption of ['aes-gcm', 'chacha20-poly1305'] as const) {
  test(`${encryption}: a session stands within three round trips, and carries data both ways`, async (t) => {
    const world = new Negotiators({ a: { encryption, secret: SECRET }, b: { encryption, secret: SECRET } });
    await world.run(200);
    for (const [own, peer] of [
      ['a', 'b'],
      ['b', 'a'],
    ] as const) {
      t.like(world.node(own).status(peer), { state: 'agreed', encryption });
    }
    await world.run(1_000, { data: true });
    await world.run(100);
    for (const name of ['a', 'b']) {
      const { received, dropped } = world.node(name);
      t.is(received.length, 50);
      t.deepEqual(dropped, []);
    }
  });
}
