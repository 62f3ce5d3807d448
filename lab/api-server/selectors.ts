/** Label and field selectors: text to predicate. Pure; throw StatusError 400 for text that is not a selector. */

import type { KindRow } from './kinds.ts';
import type { ApiObject } from './objects.ts';
import { badRequest } from './status.ts';

export type Matches = (object: ApiObject) => boolean;

const KEY = '(?:[A-Za-z0-9.-]+/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?';
const VALUE = '(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?';
const EQUALITY = new RegExp(`^(${KEY})\\s*(==|=|!=)\\s*(${VALUE})$`);
const SET = new RegExp(`^(${KEY})\\s+(in|notin)\\s*\\(\\s*(${VALUE}(?:\\s*,\\s*${VALUE})*)\\s*\\)$`);
const EXISTS = new RegExp(`^(!?)\\s*(${KEY})$`);

/**
 * `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`, joined by commas that mean "and". As in Kubernetes,
 * `!=` and `notin` also match objects without the label.
 */
export function parseLabelSelector(text: string): Matches {
  const requirements = splitOutsideParentheses(text).map(parseLabelRequirement);
  return ({ metadata }) => {
    const labels = metadata.labels ?? {};
    return requirements.every((requirement) => requirement(labels));
  };
}

/** `field=value`, `field==value`, `field!=value`, joined by commas; the fields are those of the kind's row. */
export function parseFieldSelector(text: string, row: KindRow): Matches {
  const parts = text.split(/(?<!\\),/).filter((part) => part !== '');
  const requirements = parts.map((part) => parseFieldRequirement(part, row));
  return (object) => requirements.every((requirement) => requirement(object));
}

/** Everything that a list, a watch or a deletion of a collection selects by. */
export function parseSelection(row: KindRow, namespace: string, query: URLSearchParams): Matches {
  const byLabel = parseLabelSelector(query.get('labelSelector') ?? '');
  const byField = parseFieldSelector(query.get('fieldSelector') ?? '', row);
  return (object) =>
    (namespace === '' || object.metadata.namespace === namespace) && byLabel(object) && byField(object);
}

type Labels = Readonly<Record<string, string>>;

function parseLabelRequirement(text: string): (labels: Labels) => boolean {
  const exists = EXISTS.exec(text);
  if (exists) return (labels) => Object.hasOwn(labels, exists[2] as string) === (exists[1] === '');
  const [, key, operator, operand] = EQUALITY.exec(text) ?? SET.exec(text) ?? [];
  if (key === undefined || operand === undefined)
    throw badRequest(`unable to parse requirement: ${JSON.stringify(text)}`);
  const values = new Set<string | undefined>(operand.split(',').map((value) => value.trim()));
  const positive = operator !== '!=' && operator !== 'notin';
  return (labels) => values.has(labels[key]) === positive;
}

function parseFieldRequirement(text: string, row: KindRow): Matches {
  const [, field, operator, escaped] = /^([^=!\s]+)\s*(==|=|!=)\s*(.*)$/s.exec(text) ?? [];
  if (field === undefined || escaped === undefined) throw badRequest(`invalid field selector: ${JSON.stringify(text)}`);
  const read = fieldReader(field, row);
  const value = escaped.replace(/\\([\\,=])/g, '$1');
  return (object) => (read(object) === value) === (operator !== '!=');
}

function fieldReader(field: string, row: KindRow): (object: ApiObject) => string {
  if (field === 'metadata.name') return ({ metadata }) => metadata.name;
  if (field === 'metadata.namespace' && row.namespaced) return ({ metadata }) => metadata.namespace ?? '';
  const own = row.fields && Object.hasOwn(row.fields, field) ? row.fields[field] : undefined;
  if (!own) throw badRequest(`field label not supported: ${field}`);
  return own;
}

function splitOutsideParentheses(text: string): readonly string[] {
  return text
    .split(/,(?![^(]*\))/)
    .map((part) => part.trim())
    .filter((part, _, all) => part !== '' || all.length > 1);
}
