/** `tulle diff`: what the next cycle would change in the kernel. Exit code 0: nothing, 3: changes. */
import type { Change } from '../reconcile/types.ts';
import { askAgent } from './ask-agent.ts';

/** Exit code of a diff that found changes. */
export const CHANGES_FOUND = 3;

export async function diff({ runDir, json }: { runDir: string; json: boolean }): Promise<number> {
  const changes = (await askAgent(runDir, 'diff')) as readonly Change[];
  process.stdout.write(json ? `${JSON.stringify(changes, undefined, 2)}\n` : changes.map(describeChange).join(''));
  return changes.length === 0 ? 0 : CHANGES_FOUND;
}

/** `+ route 10.84.1.0/24 …` with the value, `~` for both values, `-` for what would go. */
export function describeChange(change: Change): string {
  switch (change.action) {
    case 'create':
      return `+ ${change.key}\n    ${JSON.stringify(change.item.value)}\n`;
    case 'update':
      return `~ ${change.key}\n  - ${JSON.stringify(change.from)}\n  + ${JSON.stringify(change.item.value)}\n`;
    case 'remove':
      return `- ${change.key}\n    ${JSON.stringify(change.from)}\n`;
  }
}
