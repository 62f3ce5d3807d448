/** systemd-networkd removes routes and rules that it did not make, each time it starts (networkd.conf(5)). */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { IN_CONTAINER } from '../config.ts';
import { type Check, type Finding, verdict } from './finding.ts';

/** Its own directory at run time. */
const RUNTIME = '/run/systemd/netif';
/** In ascending priority; drop-ins of all of them are sorted by name together. */
const ROOTS = ['/usr/lib/systemd', '/usr/local/lib/systemd', '/run/systemd', '/etc/systemd'];
const SETTING = 'ManageForeignRoutes';

export const networkd: Check = {
  name: 'networkd',
  async run() {
    if (IN_CONTAINER) return { skipped: 'a container does not show what runs on the node: run the doctor there' };
    if (!existsSync(RUNTIME)) return verdict('systemd-networkd does not run here', []);
    const found = readSetting();
    const isKept = found !== undefined && /^(no|n|false|f|off|0)$/i.test(found.value);
    return verdict(`systemd-networkd leaves foreign routes alone (${found?.file})`, [
      isKept ? undefined : wipes(found),
    ]);
  },
};

interface Found {
  readonly file: string;
  readonly value: string;
}

const wipes = (found: Found | undefined): Finding => ({
  severity: 'warning',
  summary: 'systemd-networkd removes the routes of Tulle whenever it restarts',
  evidence: [`${RUNTIME} exists`, found ? `${found.file}: ${SETTING}=${found.value}` : `${SETTING}: not set, so yes`],
  cause:
    'By default it takes every route for its own. The agent puts them back within a second; until then, and as long as no agent runs, pods are cut off.',
  remedy: `printf '[Network]\\n${SETTING}=no\\nManageForeignRoutingPolicyRules=no\\n' > /etc/systemd/networkd.conf.d/10-tulle.conf, then systemctl restart systemd-networkd`,
});

/** The main file first, then the drop-ins by name; the last that sets it counts. */
function readSetting(): Found | undefined {
  const main = ROOTS.map((root) => join(root, 'networkd.conf'))
    .filter((file) => existsSync(file))
    .slice(-1);
  const dropIns = new Map<string, string>();
  for (const root of ROOTS) {
    const directory = join(root, 'networkd.conf.d');
    if (!existsSync(directory)) continue;
    for (const name of readdirSync(directory)) if (name.endsWith('.conf')) dropIns.set(name, join(directory, name));
  }
  const files = [...main, ...[...dropIns].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, file]) => file)];
  return files.flatMap((file) => settingIn(file) ?? []).at(-1);
}

function settingIn(file: string): Found | undefined {
  let section = '';
  let value: string | undefined;
  for (const line of readFileSync(file, 'utf8')
    .split('\n')
    .map((text) => text.trim())) {
    const [, name] = /^\[(.+)\]$/.exec(line) ?? [];
    if (name !== undefined) section = name;
    const [, key, text] = /^([A-Za-z]+)\s*=\s*(.*)$/.exec(line) ?? [];
    if (section === 'Network' && key === SETTING) value = text;
  }
  return value === undefined ? undefined : { file, value };
}
