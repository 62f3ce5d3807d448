/** Reads what `ava --tap` prints (testanything.org, version 13), line by line. */

export interface TestResult {
  readonly title: string;
  readonly outcome: 'passed' | 'failed' | 'skipped';
  /** Everything that was printed about a failure, without the title; empty for others. */
  readonly details: string;
}

/** Yields each test as it ends. A failure is yielded once its details are complete. */
export async function* readTap(lines: AsyncIterable<string>): AsyncGenerator<TestResult> {
  let failure: { readonly title: string; readonly details: string[] } | undefined;
  for await (const line of lines) {
    const { not, title, directive } =
      /^(?<not>not )?ok \d+ - (?<title>.*?)(?<directive> # (SKIP|TODO)\b.*)?$/.exec(line)?.groups ?? {};
    const isEnd = /^1\.\.\d+$/.test(line);
    if (title === undefined && !isEnd) {
      failure?.details.push(line);
      continue;
    }
    if (failure) yield asResult(failure);
    failure = undefined;
    if (title === undefined) continue;
    if (directive !== undefined) yield { title, outcome: 'skipped', details: '' };
    else if (not === undefined) yield { title, outcome: 'passed', details: '' };
    else failure = { title, details: [] };
  }
  if (failure) yield asResult(failure);
}

const asResult = ({ title, details }: { readonly title: string; readonly details: readonly string[] }): TestResult => ({
  title,
  outcome: 'failed',
  details: details.join('\n').trimEnd(),
});
