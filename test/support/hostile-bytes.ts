/** Bytes that nobody meant: for parsers of what arrives from outside. */
import fc from 'fast-check';

interface Edit {
  readonly at: number;
  readonly kind: 'overwrite' | 'insert' | 'cut';
  readonly bytes: Uint8Array;
}

/** One change of a message: these bytes in the place of as many, or of none, at a position (modulo the length); or its end there. */
const edits: fc.Arbitrary<Edit> = fc.record({
  at: fc.nat(1000),
  kind: fc.constantFrom('overwrite' as const, 'insert' as const, 'cut' as const),
  bytes: fc.uint8Array({ minLength: 1, maxLength: 8 }),
});

/** A message that was right before up to five changes, or bytes that never were. */
export const hostileBytes = (right: readonly Uint8Array[]): fc.Arbitrary<Buffer> => {
  const mutated = fc
    .tuple(fc.constantFrom(...right), fc.array(edits, { maxLength: 5 }))
    .map(([bytes, changes]) => changes.reduce<Buffer>(edited, Buffer.from(bytes)));
  return fc.oneof(
    { weight: 3, arbitrary: mutated },
    fc.uint8Array({ maxLength: 200 }).map((bytes): Buffer => Buffer.from(bytes)),
  );
};

function edited(message: Buffer, { at, kind, bytes }: Edit): Buffer {
  const place = at % (message.length + 1);
  if (kind === 'cut') return message.subarray(0, place);
  const rest = message.subarray(kind === 'insert' ? place : place + bytes.length);
  return Buffer.concat([message.subarray(0, place), bytes, rest]);
}
