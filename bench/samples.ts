/** Measured values by figure and subject, and what is told of them. Pure. */

/** One list a round: a figure may be measured several times in one. */
type Rounds = number[][];

export class Samples {
  readonly #values = new Map<string, Map<string, Rounds>>();

  add(figure: string, subject: string, round: number, values: readonly number[]): void {
    const subjects = this.#values.get(figure) ?? new Map<string, Rounds>();
    this.#values.set(figure, subjects);
    const rounds = subjects.get(subject) ?? [];
    subjects.set(subject, rounds);
    rounds[round] = [...(rounds[round] ?? []), ...values];
  }

  all(figure: string, subject: string): readonly number[] {
    return this.#rounds(figure, subject).flat();
  }

  /**
   * Median over the rounds of the subject's median divided by the reference's: what disturbs a whole round falls out.
   * Undefined when no round has both.
   */
  ratio(figure: string, subject: string, reference: string): number | undefined {
    const others = this.#rounds(figure, reference);
    const ratios = this.#rounds(figure, subject).flatMap((values, round) => {
      const [own, other] = [median(values), median(others[round] ?? [])];
      return own === undefined || other === undefined ? [] : [own / other];
    });
    return median(ratios);
  }

  #rounds(figure: string, subject: string): readonly (readonly number[])[] {
    // A round without a value is a hole in the list.
    return Array.from(this.#values.get(figure)?.get(subject) ?? [], (values) => values ?? []);
  }
}

export const median = (values: readonly number[]): number | undefined => quantile(values, 0.5);

/** The smallest value that at least this share of them does not exceed (nearest rank); the mean of two for even medians. */
export function quantile(values: readonly number[], share: number): number | undefined {
  const sorted = values.toSorted((a, b) => a - b);
  const rank = sorted.length * share;
  const upper = sorted[Math.max(0, Math.ceil(rank) - 1)];
  if (share !== 0.5 || upper === undefined || !Number.isInteger(rank)) return upper;
  return (upper + (sorted[rank] as number)) / 2;
}
