import test from 'ava';
import fc from 'fast-check';
import { KernelError } from '../errors.ts';
import { attribute, parseAttributes, text, textOf, u32, u32Of } from './attributes.ts';
import { Answer, encodeAll, INTERRUPTED, type NetlinkMessage, NLM, splitDatagram, wholeDump } from './message.ts';

const request = { type: 26, payload: Buffer.of(2, 0, 0, 0), operation: 'list', object: 'routes' };
const message = (type: number, payload: Buffer = Buffer.alloc(4), flags = 0): NetlinkMessage => ({
  type,
  flags,
  port: 0,
  payload,
});
const DONE = 3;
const ERROR = 2;

const errno = (value: number): Buffer => {
  const payload = Buffer.alloc(20);
  payload.writeInt32LE(value);
  return payload;
};

test('splitDatagram: any number of encoded messages comes back, with odd lengths padded', (t) => {
  const payloads = fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 8 });
  fc.assert(
    fc.property(payloads, (list) => {
      const parts = [
        ...splitDatagram(
          encodeAll(
            list.map((payload) => ({ ...request, payload })),
            1,
          ),
        ),
      ];
      return (
        parts.length === list.length &&
        parts.every((part, n) => part.sequence === n + 1 && part.message.payload.equals(list[n] as Uint8Array)) &&
        parts.every(({ message: { flags } }, n) => ((flags & NLM.ACK) !== 0) === (n === list.length - 1))
      );
    }),
  );
  t.pass();
});

test('splitDatagram and parseAttributes: arbitrary bytes never throw', (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      for (const part of splitDatagram(Buffer.from(bytes))) parseAttributes(part.message.payload);
      parseAttributes(Buffer.from(bytes));
    }),
  );
  t.pass();
});

test('parseAttributes: what was written is read, and a flagged type is its type', (t) => {
  const found = parseAttributes(
    Buffer.concat([text(3, 'tulle.84'), u32(4 | 0x8000, 1450), attribute(5, Buffer.of(1))]),
  );
  t.is(textOf(found.get(3)), 'tulle.84');
  t.is(u32Of(found.get(4)), 1450);
  t.deepEqual(found.get(5), Buffer.of(1));
});

test('Answer: messages until the end, an ACK without any', (t) => {
  const dump = new Answer(request);
  t.is(dump.take(message(24)), undefined);
  t.is(dump.take(message(1)), undefined, 'NOOP');
  t.deepEqual(dump.take(message(DONE)), [message(24)]);
  t.deepEqual(new Answer(request).take(message(ERROR, errno(0))), []);
});

test("Answer: a refusal names what was asked, in the kernel's own words", (t) => {
  const words = text(1, 'Nexthop has invalid gateway');
  const payload = Buffer.concat([errno(-101), words]);
  // The echoed request is its header only.
  payload.writeUInt32LE(16, 4);
  const outcome = new Answer(request).take(message(ERROR, payload, 0x300));
  t.true(outcome instanceof KernelError);
  t.is((outcome as KernelError).message, 'cannot list routes: ENETUNREACH (Nexthop has invalid gateway)');
  t.is((new Answer(request).take(message(DONE, errno(-4))) as KernelError).code, 'EINTR', 'a dump that fails half-way');
  t.is((new Answer(request).take(message(ERROR, errno(-524))) as KernelError).code, 'ENOTSUPP');
});

test('wholeDump: asks again while dumps are interrupted, and not for ever', async (t) => {
  const interrupted = () => {
    const answer = new Answer(request);
    answer.take(message(24, Buffer.alloc(4), NLM.DUMP_INTR));
    return answer.take(message(DONE)) ?? [];
  };
  t.is(interrupted(), INTERRUPTED);
  let asked = 0;
  const whole = await wholeDump(request, (asDump) => {
    t.is(asDump.flags, NLM.DUMP);
    return ++asked < 3 ? interrupted() : [message(24)];
  });
  t.is(asked, 3);
  t.is(whole.length, 1);
  await t.throwsAsync(wholeDump(request, interrupted), { instanceOf: KernelError, message: /EINTR.*each of 10 dumps/ });
});
