/** `tulle service ls` and `tulle service show`: Services as this node plans them, and what the kernel holds of them. */

import { ipPortText } from '../model/ip-port.ts';
import { kindOf } from '../model/items.ts';
import { type BackendSet, type Frontend, isSetId, type Service } from '../model/services.ts';
import type { ItemReport, ServiceReport, ServiceRow } from '../service-report.ts';
import { askAgent } from './ask-agent.ts';
import { CHANGES_FOUND, describeValue } from './diff.ts';
import { table } from './table.ts';

interface Call {
  readonly runDir: string;
  readonly json: boolean;
}

/** Exit code 0, also where Services have problems. */
export async function listServices({ runDir, json }: Call): Promise<number> {
  const rows = (await askAgent(runDir, 'services')) as readonly ServiceRow[];
  process.stdout.write(json ? `${JSON.stringify(rows, undefined, 2)}\n` : describeRows(rows));
  return 0;
}

/** Exit code 0 when the kernel holds what is planned for it, 3 when not, as of `tulle diff`. */
export async function showService(name: string, { runDir, json }: Call): Promise<number> {
  const full = name.includes('/') ? name : `default/${name}`;
  const report = (await askAgent(runDir, `service?name=${encodeURIComponent(full)}`)) as ServiceReport;
  process.stdout.write(json ? `${JSON.stringify(report, undefined, 2)}\n` : describeService(report));
  return report.items.every(({ state }) => state === 'held') ? 0 : CHANGES_FOUND;
}

/** One line each; what is wrong comes below. */
export function describeRows(rows: readonly ServiceRow[]): string {
  const head = ['SERVICE', 'ADDRESSES', 'PORTS', 'READY', 'HERE', 'STATE'];
  const cells = rows.map(({ service, addresses, ports, endpoints: { ready, draining, local }, problems }) => [
    service,
    addresses.join(' '),
    ports.join(' '),
    `${ready}${draining > 0 ? `+${draining} draining` : ''}`,
    `${local}`,
    problems.length === 0 ? 'ok' : `${problems.length} problem${problems.length > 1 ? 's' : ''}`,
  ]);
  const troubles = rows.flatMap(({ service, problems }) =>
    problems.map((problem) => `problem   ${service}: ${problem}`),
  );
  return lines([table([head, ...cells]), troubles]);
}

export function describeService(report: ServiceReport): string {
  const { service, frontends, sets, health, items, problems } = report;
  const labels = new Map(sets.map(({ id }, i) => [id as string, `set ${i + 1}`]));
  return lines([
    serviceLines(service),
    frontendLines(frontends, labels),
    setLines(sets, labels),
    health
      ? [
          `health    port ${health.port} at ${health.ips.join(', ') || 'no address'}: ${health.localEndpoints.ipv4} IPv4 and ${health.localEndpoints.ipv6} IPv6 endpoints here`,
        ]
      : [],
    kernelLines(items),
    problems.map((problem) => `problem   ${problem}`),
  ]);
}

const lines = (sections: readonly (readonly string[])[]): string =>
  `${sections
    .filter((section) => section.length > 0)
    .map((section) => section.join('\n'))
    .join('\n\n')}\n`;

function serviceLines(service: Service): readonly string[] {
  const { namespace, name, internalTrafficPolicy: inside, externalTrafficPolicy: outside, affinitySeconds } = service;
  return [
    `service   ${namespace}/${name}`,
    `policy    ${inside} from inside, ${outside} from outside`,
    ...(affinitySeconds === undefined ? [] : [`affinity  a client keeps its backend for ${affinitySeconds} s`]),
  ];
}

/** Both scopes of a place in one line. */
function frontendLines(frontends: readonly Frontend[], labels: ReadonlyMap<string, string>): readonly string[] {
  const places = Map.groupBy(frontends, ({ ip, port, protocol }) => `${ip} ${port} ${protocol}`);
  const rows = [...places.values()].map((pair) => {
    const [{ ip, port, protocol, kind, sourceRanges }] = pair as [Frontend];
    const meaning = (scope: Frontend['scope']): string => {
      const frontend = pair.find((each) => each.scope === scope);
      if (!frontend) return '';
      const { target, masquerade } = frontend;
      return `${isSetId(target) ? (labels.get(target) ?? target) : target}${masquerade ? ', masqueraded' : ''}`;
    };
    return [
      protocol === 'any' ? `${ip}, all other ports` : `${ipPortText({ ip, port })}/${protocol}`,
      kind,
      meaning('internal'),
      meaning('external'),
      sourceRanges === undefined ? 'everybody' : sourceRanges.join(' ') || 'nobody',
    ];
  });
  return rows.length === 0 ? [] : table([['FRONTEND', 'KIND', 'FROM INSIDE', 'FROM OUTSIDE', 'ADMITS'], ...rows]);
}

const setLines = (sets: readonly BackendSet[], labels: ReadonlyMap<string, string>): readonly string[] =>
  sets.flatMap(({ id, backends }) => [
    `${labels.get(id)}: ${backends.length} backend${backends.length > 1 ? 's' : ''} (${id})`,
    ...backends.map((backend) => `  ${ipPortText(backend)}`),
  ]);

/** What the Service shares with others is shown only where it is not as planned. */
function kernelLines(items: readonly ItemReport[]): readonly string[] {
  const shared = items.filter((item) => item.shared);
  const own = items.filter((item) => !item.shared);
  const count = (of: readonly ItemReport[]) => `${of.filter(({ state }) => state === 'held').length} of ${of.length}`;
  return [
    `kernel    ${count(own)} items as planned, ${count(shared)} of those shared with other Services`,
    ...[...own, ...shared.filter(({ state }) => state !== 'held')].flatMap(itemLines),
  ];
}

const SIGNS = { held: '=', missing: '+', differs: '~', contested: '!' } as const;

/** As `tulle diff` says it: `-` is what the kernel has, `+` what is planned; `=` where both are one. */
function itemLines({ key, state, shared, wanted, found, owner, error }: ItemReport): readonly string[] {
  const isOne = state === 'held' || state === 'contested';
  // The key of a member says all that there is.
  const value = (sign: string, of: object) =>
    kindOf(key) === 'member' ? [] : describeValue(of).map((line) => `    ${sign} ${line}`);
  return [
    `${SIGNS[state]} ${key}${shared ? ' (shared)' : ''}${owner === undefined ? '' : `: ${owner} has it, which is older`}`,
    ...(found ? value(isOne ? '=' : '-', found) : []),
    ...(isOne ? [] : value('+', wanted)),
    ...(error === undefined ? [] : [`    failing: ${error}`]),
  ];
}
