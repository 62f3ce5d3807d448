/** Tables of figures: computed once from samples, then printed for people or kept as JSON. Pure. */
import { table as aligned } from '../agent/commands/table.ts';
import { quantile, type Samples } from './samples.ts';

export interface Column {
  readonly heading: string;
  readonly figure: string;
  /** Of all values: 0.5 is the median. */
  readonly share: number;
  readonly digits: number;
  /** Values are divided by this before they are shown. */
  readonly per?: number;
}

export interface Cell {
  readonly value: number;
  readonly n: number;
  /** To the reference, see Samples.ratio; of medians only. */
  readonly ratio?: number;
}

export interface Row {
  readonly subject: string;
  /** By heading; a figure that was not measured is absent. */
  readonly cells: Readonly<Record<string, Cell>>;
}

export interface Table {
  readonly title: string;
  readonly reference: string;
  readonly columns: readonly Column[];
  readonly rows: readonly Row[];
}

export interface TableRequest {
  readonly title: string;
  readonly subjects: readonly string[];
  /** What the ratios are to. */
  readonly reference: string;
  readonly columns: readonly Column[];
}

export function computeTable(samples: Samples, { title, subjects, reference, columns }: TableRequest): Table {
  const rows = subjects.map((subject) => ({
    subject,
    cells: Object.fromEntries(columns.flatMap((column) => cellOf(samples, column, subject, reference))),
  }));
  return { title, reference, columns, rows };
}

function cellOf(
  samples: Samples,
  { heading, figure, share, per = 1 }: Column,
  subject: string,
  reference: string,
): readonly (readonly [string, Cell])[] {
  const values = samples.all(figure, subject);
  const value = quantile(values, share);
  if (value === undefined) return [];
  const ratio = share === 0.5 ? samples.ratio(figure, subject, reference) : undefined;
  return [
    [heading, { value: value / per, n: values.length, ...(Number.isFinite(ratio) && { ratio: ratio as number }) }],
  ];
}

/** `2.91 (0.31)`: the figure, and its ratio to the row that is named above the table. */
export function renderTable({ title, reference, columns, rows }: Table): readonly string[] {
  const cell = (column: Column, { cells }: Row): string => {
    const found = cells[column.heading];
    if (!found) return '-';
    const ratio = found.ratio === undefined ? '' : ` (${found.ratio.toFixed(2)})`;
    return `${found.value.toFixed(column.digits)}${ratio}`;
  };
  const lines = rows.map((row) => [row.subject, ...columns.map((column) => cell(column, row))]);
  const heading = ['', ...columns.map((column) => column.heading)];
  return [
    `${title}; in brackets: median of the ratios to ${reference}, round by round`,
    ...aligned([heading, ...lines]),
  ];
}
