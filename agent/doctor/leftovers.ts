/** Other networks of Kubernetes nodes: what is left of them, and whether they still run. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { IN_CONTAINER } from '../config.ts';
import { listAllSets } from '../kernel/ipset/set.ts';
import type { RuleScan } from '../kernel/iptables/scan.ts';
import type { LinkFacts } from '../kernel/netlink/rtnetlink.ts';
import { listTables, type NftTable } from '../kernel/nftables.ts';
import { type Facts, runningAgent } from './facts.ts';
import { type Check, type Finding, type Fix, several, verdict } from './finding.ts';
import { type Chains, describeRemoval, removeLeftovers } from './leftover-removal.ts';
import { PRODUCTS, type Product } from './products.ts';
import { listeningPorts } from './sockets.ts';

export const leftovers: Check = {
  name: 'leftovers',
  async run(facts) {
    const host = await surveyHost(facts);
    const findings = PRODUCTS.map((product) => findingOf(product, tracesOf(product, host), host, facts));
    return verdict(`none of ${PRODUCTS.map(({ name }) => name).join(', ')}`, findings);
  },
};

/** Everything of the host that products are looked for in. */
interface Survey {
  readonly links: readonly LinkFacts[];
  readonly rules: readonly RuleScan[];
  readonly sets: readonly string[];
  readonly tables: readonly NftTable[];
  readonly conflists: readonly string[];
  readonly ports: ReadonlySet<number>;
  readonly programs: ReadonlySet<string>;
}

async function surveyHost(facts: Facts): Promise<Survey> {
  const { cniConfDir } = facts.config;
  return {
    links: await facts.links(),
    rules: await facts.rules(),
    sets: await listAllSets(facts.nfnetlink),
    tables: await listTables(facts.nfnetlink),
    conflists: existsSync(cniConfDir) ? readdirSync(cniConfDir).map((name) => join(cniConfDir, name)) : [],
    ports: listeningPorts(),
    programs: runningPrograms(),
  };
}

/** Names of all processes that can be seen from here; in a container without the host's pid namespace its own. */
function runningPrograms(): ReadonlySet<string> {
  const names = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(nameOfProcess);
  return new Set(names.filter((name) => name !== undefined));
}

function nameOfProcess(pid: string): string | undefined {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trim();
  } catch {
    // It has ended since the directory was read.
    return undefined;
  }
}

/** What is there of one product. */
export interface Traces {
  readonly links: readonly LinkFacts[];
  readonly podLinks: readonly LinkFacts[];
  readonly chains: readonly Chains[];
  readonly sets: readonly string[];
  readonly tables: readonly NftTable[];
  readonly files: readonly string[];
}

function tracesOf(product: Product, { links, rules, sets, tables, conflists }: Survey): Traces {
  const matching = (pattern: RegExp | undefined) => (name: string) => pattern?.test(name) ?? false;
  const own = links.filter(({ name }) => matching(product.links)(name));
  const isPort = ({ masterIfindex }: LinkFacts) => own.some(({ ifindex }) => ifindex === masterIfindex);
  const isBare = ({ name }: LinkFacts) => !matching(product.links)(name);
  return {
    links: own,
    podLinks: links.filter((link) => matching(product.podLinks)(link.name) || (isPort(link) && isBare(link))),
    chains: rules.flatMap((scan) => chainsOf(product, scan)),
    sets: sets.filter(matching(product.sets)),
    tables: tables.filter(({ name }) => matching(product.tables)(name)),
    files: [
      ...conflists.filter((path) => matching(product.conflists)(path.slice(path.lastIndexOf('/') + 1))),
      ...(product.paths ?? []).filter((path) => existsSync(path)),
    ],
  };
}

/** Chains of a product, and the rules in built-in chains that lead to them or are marked as its own. */
export function chainsOf({ chains, comments }: Product, { backend, family, tables }: RuleScan): readonly Chains[] {
  return tables.flatMap(({ table, chains: all, builtin }) => {
    const names = [...all.keys()].filter((name) => chains?.test(name));
    const own = new Set(names);
    const rules = builtin.filter((rule) => own.has(targetOf(rule)) || comments?.test(commentOf(rule)));
    return names.length + rules.length > 0 ? [{ backend, family, table, names, rules }] : [];
  });
}

/** Not what a comment or a log prefix says: that may be an administrator's remark about the product. */
const targetOf = (rule: string): string => / -[jg] (\S+)/.exec(rule.replace(/"(?:[^"\\]|\\.)*"/g, '""'))?.[1] ?? '';
const commentOf = (rule: string): string => {
  const [, quoted, plain] = / --comment (?:"([^"]*)"|(\S+))/.exec(rule) ?? [];
  return quoted ?? plain ?? '';
};

function findingOf(product: Product, traces: Traces, host: Survey, facts: Facts): Finding | undefined {
  const ownPorts = servesServices(facts) ? [facts.config['services.healthPort']] : [];
  const signs = signsOfLife(product, host, ownPorts);
  const evidence = describeTraces(traces);
  const isRival = product.isWelcome && servesServices(facts);
  if (evidence.length === 0 || (product.isWelcome && !isRival && signs.length > 0)) return undefined;
  const pods = traces.podLinks.map(({ name }) => name);
  // Whether a product runs is known by its processes, and its leftovers may be what it works with.
  const isGone = signs.length === 0 && pods.length === 0 && !IN_CONTAINER;
  return {
    severity: 'warning',
    summary:
      signs.length > 0
        ? `${product.name} runs on this node beside Tulle`
        : `${product.name} has left things on this node`,
    evidence: [...evidence, ...signs],
    cause:
      signs.length > 0
        ? isRival
          ? 'Two proxies on one node serve the same Services: whose rules come first decides, and one of them lacks its health port.'
          : 'Two networks on one node undo each other: both own the pods, the routes and the first network configuration.'
        : pods.length > 0
          ? `It was removed from the cluster, but ${pods.length} pods still have their network from it: ${several(pods)}.`
          : 'It was removed from the cluster, which does not remove what it made on the nodes. Its rules still see every packet.',
    remedy:
      pods.length > 0
        ? `${product.remedy}; then drain the node, so that these pods are made again`
        : signs.length > 0
          ? isRival
            ? `let services.mode be off, or take ${product.name} away (kubectl -n kube-system delete daemonset ${product.name}) and then: ${product.remedy}`
            : product.remedy
          : `--fix=${product.name} ${IN_CONTAINER ? 'on the node itself, not in a container, ' : ''}removes what is listed, or a reboot does for all but the files; ${product.remedy}, if it is still there`,
    ...(isGone && { fix: removal(product, traces, facts) }),
  };
}

/** Whether Tulle does the work of kube-proxy: by the agent's own word, else as the settings say. */
function servesServices(facts: Facts): boolean {
  const agent = runningAgent(facts);
  return agent ? agent.services !== undefined : facts.config['services.mode'] !== 'off';
}

/** Why it is believed to run. `ownPorts` are Tulle's. */
function signsOfLife(
  { programs = [], ports = [] }: Product,
  host: Survey,
  ownPorts: readonly number[],
): readonly string[] {
  return [
    ...programs.filter((name) => host.programs.has(name)).map((name) => `process ${name} runs`),
    ...ports
      .filter((port) => host.ports.has(port) && !ownPorts.includes(port))
      .map((port) => `something listens on TCP port ${port}`),
  ];
}

function describeTraces({ links, podLinks, chains, sets, tables, files }: Traces): readonly string[] {
  return [
    ...links.map(({ name, kind }) => `link ${name} (${kind || 'hardware'})`),
    ...(podLinks.length > 0 ? [`links of pods: ${several(podLinks.map(({ name }) => name))}`] : []),
    ...chains.map(
      ({ backend, family, table, names, rules }) =>
        `iptables-${backend} (${family}) ${table}: chains ${several(names) || 'none'}; ${rules.length} rules in built-in chains${rules[0] ? `, the first: ${rules[0]}` : ''}`,
    ),
    ...(sets.length > 0 ? [`ip sets: ${several(sets)}`] : []),
    ...tables.map(({ family, name }) => `nftables: table ${family} ${name}`),
    ...files,
  ];
}

const removal = ({ name }: Product, traces: Traces, { client, nfnetlink }: Facts): Fix => ({
  name,
  steps: describeRemoval(traces),
  apply: (signal) => removeLeftovers(traces, { client, nfnetlink }, signal),
});
