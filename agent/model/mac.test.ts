import test from 'ava';
import fc from 'fast-check';
import { type MacAddress, macBytes, macFromBytes, macOf, parseMac } from './mac.ts';

test('parseMac gives the canonical form, or undefined', (t) => {
  t.is(parseMac('02:AB:cd:00:00:0f'), '02:ab:cd:00:00:0f' as MacAddress);
  for (const text of [
    '',
    '02:ab:cd:00:00',
    '02:ab:cd:00:00:0f:00',
    '02-ab-cd-00-00-0f',
    '2:ab:cd:00:00:0f',
    '02:ab:cd:00:00:0g',
    ' 02:ab:cd:00:00:0f',
    '02:ab:cd:00:00:0f\n',
  ]) {
    t.is(parseMac(text), undefined, JSON.stringify(text));
  }
});

test('bytes and text are the same MAC', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 6, maxLength: 6 }), (bytes) => {
      const mac = macFromBytes(bytes);
      t.deepEqual(macBytes(mac), bytes);
      t.is(parseMac(mac), mac);
    }),
  );
  t.pass();
});

test('macOf is unicast, locally administered, and a function of its subject', (t) => {
  fc.assert(
    fc.property(fc.string(), (subject) => {
      const [first = 0] = macBytes(macOf(subject));
      t.is(first & 0x03, 0x02);
      t.is(macOf(subject), macOf(subject));
    }),
  );
  t.not(macOf('vtep/a'), macOf('vtep/b'));
});

test('macOf is stable across versions: nodes of an upgrade compute each other', (t) => {
  t.is(macOf('vtep/worker-1'), 'ee:ed:7d:ac:a9:9f' as MacAddress);
});
