/**
 * What the threads of the tunnel count, in memory that they share with the main thread: one writer a table, a row for each
 * peer. Row 0 is for what belongs to nobody.
 */

export const OUTBOUND = [
  'packets',
  'bytes',
  'datagrams',
  'noPeer',
  'noSession',
  'tooLarge',
  'overflow',
  'unreachable',
] as const;
export const INBOUND = [
  'packets',
  'bytes',
  'datagrams',
  'stranger',
  'unknownVersion',
  'malformed',
  'notTaken',
  'foreignSource',
  'noSession',
  'forged',
  'replayed',
  'overflow',
] as const;

/** As many as the set of nodes holds, and the row of nobody. */
export const ROWS = 65_537;
const STRIDE = 16;

type Column = (typeof OUTBOUND)[number] | (typeof INBOUND)[number];

/** Numbers stay whole up to 2^53; pages of rows that nobody writes to cost nothing. */
export class Counters<C extends Column> {
  readonly shared: SharedArrayBuffer;
  readonly #values: Float64Array;
  readonly #columns: readonly C[];

  constructor(columns: readonly C[], shared = new SharedArrayBuffer(8 * STRIDE * ROWS)) {
    this.shared = shared;
    this.#columns = columns;
    this.#values = new Float64Array(shared);
  }

  /** Where a column of row 0 stands in `values`; a row further is `STRIDE` further. */
  column(name: C): number {
    return this.#columns.indexOf(name);
  }

  add(row: number, column: number, by: number): void {
    const at = row * STRIDE + column;
    this.#values[at] = (this.#values[at] as number) + by;
  }

  read(row: number): Readonly<Record<C, number>> {
    const entries = this.#columns.map((name, i) => [name, this.#values[row * STRIDE + i]]);
    return Object.fromEntries(entries) as Record<C, number>;
  }

  /** Before a row is another peer's. */
  clear(row: number): void {
    this.#values.fill(0, row * STRIDE, (row + 1) * STRIDE);
  }
}
