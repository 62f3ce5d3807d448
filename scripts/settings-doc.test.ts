import { readFileSync } from 'node:fs';
import test from 'ava';
import { renderSettingsDoc } from './settings-doc.ts';

test('docs/settings.md is what the table of settings says', (t) => {
  t.is(readFileSync(new URL('../docs/settings.md', import.meta.url), 'utf8'), renderSettingsDoc());
});
