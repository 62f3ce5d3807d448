/**
 * Whether two texts are the same rule, however iptables words it. The hash in a rule's comment says which rule it was
 * when it was written; somebody who alters it in place (`iptables -R`) may keep the comment.
 */
import type { ChainPart } from '../../model/items.ts';
import { tokens } from './read-back.ts';
import { hashOf, linesOf } from './render.ts';

/** What iptables printed, by hash, of rules that it words in a way of its own. */
export type Printed = ReadonlyMap<string, string>;

export const sameHashes = (a: readonly string[], b: readonly string[]): boolean =>
  a.length === b.length && a.every((line, i) => line === b[i] || hashOf(line) === hashOf(b[i] as string));

/** Of parts whose hashes are the same: whether the rules are, too. */
export function sameRules(wanted: ChainPart, found: ChainPart, printed: Printed): boolean {
  const [a, b] = [linesOf(wanted), linesOf(found)];
  return b.every((line, i) => isSameRule(a[i] as string, line) || printed.get(hashOf(line) ?? '') === line);
}

/** Lines of `found`, by hash, that mean what is wanted only because iptables has just printed them so. */
export function oddlyPrinted(wanted: ChainPart, found: ChainPart): Printed {
  const [a, b] = [linesOf(wanted), linesOf(found)];
  return new Map(b.filter((line, i) => !isSameRule(a[i] as string, line)).map((line) => [hashOf(line) ?? '', line]));
}

/** Most are printed as they were written. */
const isSameRule = (wanted: string, found: string): boolean =>
  wanted === found || meaningOf(wanted) === meaningOf(found);

/** The options of `-A CHAIN …`, each with its values and negation, in one order; without the comment. */
export function meaningOf(line: string): string {
  const options: string[] = [];
  let not = '';
  let previous = '';
  for (const token of tokens(line).slice(2)) {
    const isValue = !token.startsWith('-') || previous === '--comment';
    if (token === '!') not = '! ';
    else if (isValue) options.push(`${options.pop() ?? ''} ${printedValue(previous, token)}`);
    else {
      options.push(not + token);
      not = '';
    }
    if (token !== '!') previous = token;
  }
  // `-p udp` alone is printed with `-m udp` once a port is asked for.
  const implied = options.filter((option) => option.startsWith('-p ')).map((option) => `-m${option.slice(2)}`);
  const superfluous = new Set(['-m comment', ...implied]);
  return options
    .filter((option) => !superfluous.has(option) && !option.startsWith('--comment '))
    .sort()
    .join('\n');
}

/** Single addresses are printed with a prefix length, MAC addresses in upper case. */
function printedValue(option: string, value: string): string {
  if (option === '--mac-source') return value.toLowerCase();
  if ((option !== '-s' && option !== '-d') || value.includes('/')) return value;
  return `${value}/${value.includes(':') ? 128 : 32}`;
}
