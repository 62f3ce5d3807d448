import test from 'ava';
import fc from 'fast-check';
import type { IpAddress } from './ip.ts';
import { type Backend, backendSet, frontendId } from './services.ts';

const backend = (text: string): Backend => {
  const at = text.lastIndexOf(':');
  return { ip: text.slice(0, at) as IpAddress, port: Number(text.slice(at + 1)) };
};

test('the id of a backend set says what is in it, whatever the order', (t) => {
  const some = ['10.0.0.9:80', '10.0.0.10:80', '10.0.0.9:8080'].map(backend);
  const set = backendSet(some);
  t.regex(set.id, /^[0-9a-f]{32}$/);
  fc.assert(
    fc.property(fc.shuffledSubarray([...some, ...some], { minLength: 6, maxLength: 6 }), (shuffled) =>
      t.deepEqual(backendSet(shuffled), set),
    ),
  );
  t.not(backendSet(some.slice(1)).id, set.id);
  t.deepEqual(backendSet(some.map((each) => ({ ...each, more: 1 }))), set);
  t.not(backendSet([backend('10.0.0.1:18')]).id, backendSet([backend('10.0.0.11:8')]).id);
});

test('a backend set has a family, and something in it', (t) => {
  t.is(backendSet([backend('fd00::1:80')]).family, 'ipv6');
  t.throws(() => backendSet([]), { instanceOf: RangeError });
  t.throws(() => backendSet(['10.0.0.1:80', 'fd00::1:80'].map(backend)), { instanceOf: TypeError });
});

test('a frontend is named as people write it', (t) => {
  const ip = 'fd00::1' as IpAddress;
  t.is(frontendId({ scope: 'external', ip, port: 53, protocol: 'UDP' }), 'external [fd00::1]:53/UDP');
  t.is(frontendId({ scope: 'internal', ip, port: 0, protocol: 'any' }), 'internal [fd00::1]:*');
});
