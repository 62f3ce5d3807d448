/** What the runtime finds: the first network configuration has to be Tulle's, and name executables that are there. */
import { accessSync, constants, existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { CONFLIST_NAME } from '../../cni/conflist.ts';
import { conflistOf, installConflist, installExecutable } from '../pods/install.ts';
import { type Facts, runningAgent } from './facts.ts';
import { type Check, type Finding, type Fix, verdict } from './finding.ts';

export const cniConfig: Check = {
  name: 'cni',
  async run(facts) {
    const { cniConfDir, cniBinDir } = facts.config;
    const conflists = conflistsIn(cniConfDir);
    const findings = [...order(facts, conflists), ...content(facts, conflists), ...executables(facts)];
    return verdict(`${join(cniConfDir, CONFLIST_NAME)} comes first, executables in ${cniBinDir}`, findings);
  },
};

/** As libcni sorts and filters them (ConfFiles); containerd and CRI-O take the first. */
function conflistsIn(directory: string): readonly string[] {
  if (!existsSync(directory)) return [];
  return readdirSync(directory)
    .filter((name) => /\.(conf|conflist|json)$/.test(name))
    .sort();
}

function* order({ config: { cniConfDir } }: Facts, conflists: readonly string[]): Generator<Finding> {
  const earlier = conflists.filter((name) => name < CONFLIST_NAME);
  const [first] = earlier;
  // An administrator's own list, with further plugins after Tulle.
  if (first === undefined || pluginsIn(join(cniConfDir, first))[0] === 'tulle') return;
  yield {
    severity: 'error',
    summary: `${first} sorts before ${CONFLIST_NAME}, so the runtime does not call Tulle`,
    evidence: [
      `${cniConfDir}: ${conflists.join(' ')}`,
      ...earlier.map((name) => `${name}: ${describePlugins(join(cniConfDir, name))}`),
    ],
    cause: 'Another network was installed before, or its installer still runs: runtimes take the first file by name.',
    remedy: `remove what installs it, then the file: rm ${earlier.map((name) => join(cniConfDir, name)).join(' ')}`,
  };
}

/** What a configuration calls, for people. */
function describePlugins(path: string): string {
  const plugins = pluginsIn(path);
  return plugins.length === 0 ? 'names no plugins' : `plugins ${plugins.join(' ')}`;
}

/** Types of plugins in the order of their calls; none of a file that is no configuration. */
function pluginsIn(path: string): readonly string[] {
  try {
    const { type, plugins = [] } = JSON.parse(readFileSync(path, 'utf8')) as Configuration;
    return [type, ...plugins.map((plugin) => plugin.type)].filter((each) => each !== undefined);
  } catch {
    // Runtimes refuse it too.
    return [];
  }
}

interface Configuration {
  readonly type?: string;
  readonly plugins?: readonly { readonly type?: string }[];
}

function* content(facts: Facts, conflists: readonly string[]): Generator<Finding> {
  const { config } = facts;
  const path = join(config.cniConfDir, CONFLIST_NAME);
  const agent = runningAgent(facts);
  if (!conflists.includes(CONFLIST_NAME)) {
    // An agent that is not ready has not written it on purpose, and says so itself.
    if (agent?.readiness.ready === false) return;
    yield {
      severity: 'error',
      summary: `${path} is missing`,
      evidence: [`${config.cniConfDir}: ${conflists.join(' ') || '(empty)'}`],
      cause: agent
        ? 'Somebody removed it; the agent looks every 30 s and writes it again.'
        : 'The agent has not been ready yet, or somebody removed it.',
      remedy: agent ? 'wait, or use --fix' : 'start the agent',
      ...(agent && { fix: reinstall(facts) }),
    };
    return;
  }
  const found = readFileSync(path, 'utf8');
  if (found === conflistOf(config)) return;
  yield {
    severity: 'warning',
    summary: `${path} is not what this version of Tulle writes`,
    evidence: found.trimEnd().split('\n'),
    cause: 'Somebody edited it, another version wrote it, or the setting cni.chain is another now.',
    remedy: 'change the settings, not the file; the agent writes it again',
    ...(agent?.readiness.ready && { fix: reinstall(facts) }),
  };
}

function* executables(facts: Facts): Generator<Finding> {
  const { config, executable } = facts;
  const agent = runningAgent(facts);
  const fix = agent?.readiness.ready ? { fix: reinstall(facts) } : {};
  const names = ['tulle', 'loopback', ...config['cni.chain']];
  const missing = names.map((name) => join(config.cniBinDir, name)).filter((path) => !isExecutable(path));
  if (missing.length > 0) {
    yield {
      severity: 'error',
      summary: `the runtime cannot start ${missing.join(', ')}`,
      evidence: missing.map((path) => `${path}: ${existsSync(path) ? 'not executable' : 'no such file'}`),
      cause: 'Removed, mounted noexec, or never installed; every pod needs all of them.',
      remedy: `let the agent install tulle and loopback; install ${config['cni.chain'].join(', ') || 'others'} from the reference plugins`,
      ...(missing.every((path) => /\/(tulle|loopback)$/.test(path)) && fix),
    };
  }
  const path = join(config.cniBinDir, 'tulle');
  if (!existsSync(path) || !existsSync(executable) || readFileSync(path).equals(readFileSync(executable))) return;
  yield {
    severity: 'warning',
    summary: `${path} is another version than this Tulle's`,
    evidence: [
      `${path}: ${readFileSync(path).length} bytes`,
      `${executable}: ${readFileSync(executable).length} bytes`,
    ],
    cause: 'An earlier or later version of Tulle, or something else of this name, was installed over it.',
    remedy: 'let the agent install its own',
    ...fix,
  };
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** What the agent does by itself every half minute. */
function reinstall({ executable, config }: Facts): Fix {
  const { cniBinDir, cniConfDir } = config;
  return {
    steps: [`install ${join(cniBinDir, 'tulle')}`, `write ${join(cniConfDir, CONFLIST_NAME)}`],
    apply: async () => {
      installExecutable(executable, cniBinDir);
      installConflist(conflistOf(config), cniConfDir);
    },
  };
}
