/** `tulle diff`: what the next cycle would change in the kernel. Exit code 0: nothing, 3: changes. */
import type { ChainPart } from '../model/items.ts';
import type { Change } from '../reconcile/types.ts';
import { askAgent } from './ask-agent.ts';

/** Exit code of a diff that found changes. */
export const CHANGES_FOUND = 3;

export async function diff({ runDir, json }: { runDir: string; json: boolean }): Promise<number> {
  const changes = (await askAgent(runDir, 'diff')) as readonly Change[];
  process.stdout.write(json ? `${JSON.stringify(changes, undefined, 2)}\n` : changes.map(describeChange).join(''));
  return changes.length === 0 ? 0 : CHANGES_FOUND;
}

/** `+ route 10.84.1.0/24 …` and the value, `~` with both values, `-` for what would go. */
export function describeChange(change: Change): string {
  const sign = { create: '+', update: '~', remove: '-' }[change.action];
  const from = change.action === 'create' ? [] : describeValue(change.from).map((line) => `    - ${line}`);
  const to = change.action === 'remove' ? [] : describeValue(change.item.value).map((line) => `    + ${line}`);
  return [`${sign} ${change.key}`, ...from, ...to, ''].join('\n');
}

/** The value of an item: one line; of a part of a chain, one a rule. */
export function describeValue(value: object): readonly string[] {
  if ('rules' in value) return (value as ChainPart).rules.map(({ args, comment }) => `${args.join(' ')}  # ${comment}`);
  return [
    Object.entries(value)
      .map(([field, content]) => `${field}=${typeof content === 'string' ? content : JSON.stringify(content)}`)
      .join(' '),
  ];
}
