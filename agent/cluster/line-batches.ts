const NEWLINE = 0x0a;

export interface LineLimits {
  readonly maxBytes: number;
  /** The error for a longer line. */
  readonly tooLong: () => Error;
  /** The error for input that ends inside a line. */
  readonly cutOff: () => Error;
}

/**
 * Whole lines (UTF-8, without their end; empty ones left out), those that arrived together in one batch. Never holds more
 * than one unfinished line and one chunk.
 */
export async function* lineBatches(
  chunks: AsyncIterable<Buffer>,
  { maxBytes, tooLong, cutOff }: LineLimits,
): AsyncGenerator<readonly string[]> {
  let begun: Buffer[] = [];
  let begunBytes = 0;
  for await (const chunk of chunks) {
    const first = chunk.indexOf(NEWLINE);
    if (begunBytes + (first < 0 ? chunk.length : first) > maxBytes) throw tooLong();
    const last = first < 0 ? -1 : chunk.lastIndexOf(NEWLINE);
    if (last >= 0) {
      const lines = Buffer.concat([...begun, chunk.subarray(0, last)])
        .toString('utf8')
        .split('\n');
      begun = [];
      begunBytes = 0;
      yield lines.filter((line) => line !== '');
    }
    if (last + 1 < chunk.length) {
      begun.push(chunk.subarray(last + 1));
      begunBytes += chunk.length - last - 1;
    }
  }
  if (begunBytes > 0) throw cutOff();
}
