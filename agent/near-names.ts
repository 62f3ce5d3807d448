/** Names that somebody may have meant, the nearest first: the same in another namespace, or with a slip of the keyboard. */
export function nearNames(given: string, names: Iterable<string>, most = 3): readonly string[] {
  const base = (name: string): string => name.slice(name.indexOf('/') + 1);
  const limit = Math.max(1, Math.floor(base(given).length / 4));
  const near: { readonly name: string; readonly slips: number }[] = [];
  for (const name of names) {
    const slips = Math.min(slipsBetween(name, given, limit), slipsBetween(base(name), base(given), limit));
    if (slips <= limit) near.push({ name, slips });
  }
  return near
    .sort((a, b) => a.slips - b.slips || (a.name < b.name ? -1 : 1))
    .slice(0, most)
    .map(({ name }) => name);
}

/** Characters too many, too few, wrong, or in the place of their neighbours; above the limit some number above it. */
function slipsBetween(a: string, b: string, limit: number): number {
  if (Math.abs(a.length - b.length) > limit) return limit + 1;
  let before: readonly number[] = [];
  let row: readonly number[] = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = at(row, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1);
      const isSwapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      const swapped = isSwapped ? at(before, j - 2) + 1 : Infinity;
      next.push(Math.min(replaced, swapped, at(row, j) + 1, at(next, j - 1) + 1));
    }
    if (Math.min(...next, ...row) > limit) return limit + 1;
    [before, row] = [row, next];
  }
  return at(row, b.length);
}

const at = (row: readonly number[], i: number): number => row[i] as number;
