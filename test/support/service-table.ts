/**
 * The truth table of Services: what each client gets at each address of a Service, observed by real connections over TCP and
 * UDP and both families. What is expected is written by hand from what kube-proxy documents; where Tulle differs on purpose,
 * that is said beside it.
 */
import { type Family, families, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import { type ServiceObject, TCP_AND_UDP } from './service-api.ts';
import { BALANCERS, type Client, EXTERNALS, nodeOf, type ServiceLab, type ServicesMode } from './service-lab.ts';
import type { Answer, Call } from './socket-caller.ts';

/** `node-port` is that of the node whose Services the client meets, `node-1` that of node-1. */
export type FrontendName = 'cluster' | 'node-port' | 'node-1' | 'balancer' | 'external';

interface Cell {
  readonly frontend: FrontendName;
  readonly client: Client;
  readonly text: string;
}

/** The first line names the clients, each other one a frontend and what they get. */
function parseTable(text: string): readonly Cell[] {
  const [clients = [], ...rows] = text
    .trim()
    .split('\n')
    .map((line) => line.trim().split(/\s+/));
  return rows.flatMap(([frontend, ...cells]) =>
    cells.map((cell, i) => ({ frontend: frontend as FrontendName, client: clients[i] as Client, text: cell })),
  );
}

/**
 * Whom a backend takes for its client: `own`, its real address; `node`, one of the node whose Services the client meets.
 * kube-proxy shows the pod's own address to backends that a pod calls at a cluster address, unless it calls itself; Tulle with
 * iptables shows its node, and translating at the socket needs no other address than the client's.
 */
const SOURCES: Readonly<Record<ServicesMode, Readonly<Record<'Cluster' | 'Local', string>>>> = {
  iptables: {
    Cluster: `
                pod-1  self-1 pod-3  host-1 host-3 out-1  out-3
      cluster   node   node   node   node   node   node   node
      node-port node   node   node   node   node   node   node
      node-1    node-1 node-1 node-1 node-1 node-1 node-1 node-1
      balancer  node   node   node   node   node   node   node
      external  node   node   node   node   node   node   node`,
    // What a pod sends to another node leaves its own with the address of that.
    Local: `
                pod-1  self-1 pod-3  host-1 host-3 out-1  out-3
      cluster   node   node   node   node   node   node   node
      node-port node   node   node   node   node   own    own
      node-1    node   node   node   node   node   own    own
      balancer  node   node   node   node   node   own    own
      external  node   node   node   node   node   own    own`,
  },
  ebpf: {
    Cluster: `
                pod-1  self-1 pod-3  host-1 host-3 out-1  out-3
      cluster   own    own    own    node   node   node   node
      node-port own    own    own    node   node   node   node
      node-1    own    own    node-1 node   node-1 node-1 node-1
      balancer  own    own    own    node   node   node   node
      external  own    own    own    node   node   node   node`,
    Local: `
                pod-1  self-1 pod-3  host-1 host-3 out-1  out-3
      cluster   own    own    own    node   node   node   node
      node-port own    own    own    node   node   own    own
      node-1    own    own    node   node   node   own    own
      balancer  own    own    own    node   node   own    own
      external  own    own    own    node   node   own    own`,
  },
};

export interface Scenario {
  readonly name: string;
  readonly spec: object;
  readonly externalTrafficPolicy?: 'Cluster' | 'Local';
  /** As SliceText has them, in both families. */
  readonly endpoints: string;
  /** Of status.loadBalancer.ingress, beside the address. */
  readonly ingress?: object;
  /**
   * `12`: each of these pods, and no other one, answers; `refused`: ECONNREFUSED at once; `silent`: nothing comes; `away`:
   * only other nodes have endpoints, which is refused to a socket and silent to a packet; `unserved`: whatever becomes of
   * packets to an address that is nobody's.
   */
  readonly table: string;
}

/** A Service with everything that a Service can be reached by. */
interface Exposed {
  readonly scenario: Scenario;
  readonly object: ServiceObject;
  /** Last byte of its load-balancer and external addresses. */
  readonly number: number;
}

/** Writes the Services and their slices, and waits until the nodes have them. */
export async function expose(
  { api, written }: Pick<ServiceLab, 'api' | 'written'>,
  scenarios: readonly Scenario[],
): Promise<readonly Exposed[]> {
  const exposed: Exposed[] = [];
  for (const [i, scenario] of scenarios.entries()) {
    const number = i + 1;
    const { name, spec, externalTrafficPolicy = 'Cluster', endpoints } = scenario;
    const ips = (prefixes: Readonly<Record<Family, string>>) =>
      families.map(({ family }) => `${prefixes[family]}${number}`);
    const full = { type: 'LoadBalancer', externalTrafficPolicy, externalIPs: ips(EXTERNALS), ...spec };
    const object = await api.createService(
      name,
      { ports: TCP_AND_UDP, ...full },
      ips(BALANCERS).map((ip) => ({ ip, ...scenario.ingress })),
    );
    for (const { family } of families) await api.createSlice({ of: name, family, endpoints });
    exposed.push({ scenario, object, number });
  }
  await written();
  return exposed;
}

/** Long enough on a busy machine; without an answer nothing is as expected anyway. */
const ANSWER_MS = 10_000;
/** No answer for so long where one comes within milliseconds. */
const SILENCE_MS = 1500;

interface Question {
  readonly cell: Cell;
  readonly exposed: Exposed;
  readonly family: Family;
  readonly protocol: 'tcp' | 'udp';
  readonly expected: string;
  readonly calls: readonly Call[];
}

export interface Verdicts {
  readonly questions: number;
  readonly connections: number;
  /** What was otherwise than expected, one sentence each. */
  readonly wrong: readonly string[];
}

/** All clients ask side by side. */
export async function askAll(lab: ServiceLab, mode: ServicesMode, services: readonly Exposed[]): Promise<Verdicts> {
  const questions = services.flatMap((exposed) =>
    parseTable(exposed.scenario.table).flatMap((cell) =>
      families.flatMap(({ family }) =>
        (['tcp', 'udp'] as const).map((protocol) => questionOf(lab, mode, { cell, exposed, family, protocol })),
      ),
    ),
  );
  const byClient = Map.groupBy(questions, ({ cell }) => cell.client);
  const judged = await Promise.all([...byClient].map(([client, own]) => askClient(lab, mode, client, own)));
  const answered = judged.flat();
  return {
    questions: questions.length,
    connections: questions.reduce((sum, { calls }) => sum + calls.length, 0),
    wrong: [...answered.flatMap(({ wrong }) => wrong), ...missingBackends(answered)],
  };
}

interface Judged {
  readonly question: Question;
  readonly servers: readonly string[];
  readonly wrong: readonly string[];
}

async function askClient(
  lab: ServiceLab,
  mode: ServicesMode,
  client: Client,
  questions: readonly Question[],
): Promise<readonly Judged[]> {
  const answers = (await lab.caller(client).callAll(questions.flatMap(({ calls }) => calls))).values();
  return questions.map((question) => judge(lab, mode, question, [...answers.take(question.calls.length)]));
}

function questionOf(
  lab: ServiceLab,
  mode: ServicesMode,
  { cell, exposed, family, protocol }: Pick<Question, 'cell' | 'exposed' | 'family' | 'protocol'>,
): Question {
  const expected = expectedIn(mode, cell);
  const isServed = /^\d+$/.test(expected);
  const [ip, port] = placeOf(lab, cell, exposed, family);
  // A socket that is not connected hears nothing of a refusal.
  const manner = (i: number): Call['how'] => (protocol === 'tcp' ? 'tcp' : isServed && i % 2 ? 'udp' : 'udp-connected');
  const count = isServed ? 2 * expected.length : 1;
  const deadlineMs = expected === 'silent' || expected === 'unserved' ? SILENCE_MS : ANSWER_MS;
  const calls = Array.from({ length: count }, (_, i): Call => ({ how: manner(i), ip, port, deadlineMs }));
  return { cell, exposed, family, protocol, expected, calls };
}

/** Programs at sockets are all that leads to cluster addresses where they serve: packets from elsewhere are refused. */
function expectedIn(mode: ServicesMode, { frontend, client, text }: Cell): string {
  if (mode === 'ebpf' && frontend === 'cluster' && client.startsWith('out')) return 'refused';
  return text === 'away' ? AWAY[mode] : text;
}

const AWAY: Readonly<Record<ServicesMode, string>> = { iptables: 'silent', ebpf: 'refused' };

function placeOf(
  lab: ServiceLab,
  { frontend, client }: Cell,
  { object, number }: Exposed,
  family: Family,
): readonly [IpAddress, number] {
  const ofFamily = (ips: readonly IpAddress[]) => ips.find((ip) => familyOf(ip) === family) as IpAddress;
  if (frontend === 'cluster') return [ofFamily(object.clusterIps), 80];
  if (frontend === 'balancer') return [`${BALANCERS[family]}${number}` as IpAddress, 80];
  if (frontend === 'external') return [`${EXTERNALS[family]}${number}` as IpAddress, 80];
  const node = frontend === 'node-1' ? 'node-1' : nodeOf(client);
  return [ofFamily(lab.lab.node(node).addresses), object.ports[0]?.nodePort as number];
}

function judge(lab: ServiceLab, mode: ServicesMode, question: Question, answers: readonly Answer[]): Judged {
  const { cell, exposed, family, protocol, expected, calls } = question;
  const { name } = exposed.scenario;
  const title = `${name}: ${cell.client} to ${cell.frontend} (${calls[0]?.ip} ${calls[0]?.port} ${protocol})`;
  const judgeOne = (answer: Answer, i: number): readonly string[] => {
    const got = outcome(mode, question, answer);
    if (!/^\d+$/.test(expected)) return got === expected ? [] : [`${title}: expected ${expected}, got ${got}`];
    const [server = '', source = ''] = (answer.from ?? '').split(' ');
    const wrong: string[] = [];
    if (!expected.includes(server.replace('web-', '') || '?')) wrong.push(`${title}: expected ${expected}, got ${got}`);
    else if (!sourcesOf(lab, mode, cell, exposed.scenario).includes(source as IpAddress))
      wrong.push(`${title}: the backend ${server} took ${source} for its client`);
    const { ip, port } = calls[i] as Call;
    if (answer.from !== undefined && answer.peer !== `${ip} ${port}`)
      wrong.push(`${title}: its own socket takes ${answer.peer} for its peer`);
    return wrong;
  };
  const wrong = [...new Set(answers.flatMap(judgeOne))];
  return {
    question: { ...question, family },
    servers: answers.flatMap(({ from }) => from?.split(' ')[0] ?? []),
    wrong,
  };
}

/** As the table calls it, or what was seen. */
function outcome(mode: ServicesMode, { cell, exposed, expected }: Question, { from, error = '' }: Answer): string {
  if (from !== undefined) return from;
  // A datagram that the host's own rules reject or drop is told to its sender in this way (ip_local_out).
  const isByPackets = translatorOf(mode, exposed.scenario.spec, cell.frontend) === 'iptables';
  if (error === 'EPERM' && cell.client.startsWith('host') && isByPackets) return expected;
  if (expected === 'unserved') return expected;
  return { ECONNREFUSED: 'refused', ABORT_ERR: 'silent' }[error] ?? error;
}

/** Only a packet can be asked for its source, so sockets leave such an address alone. */
const translatorOf = (mode: ServicesMode, spec: object, frontend: FrontendName): ServicesMode =>
  frontend === 'balancer' && 'loadBalancerSourceRanges' in spec ? 'iptables' : mode;

function sourcesOf(
  lab: ServiceLab,
  mode: ServicesMode,
  { frontend, client }: Cell,
  { spec, externalTrafficPolicy = 'Cluster' }: Scenario,
): readonly IpAddress[] {
  const word = parseTable(SOURCES[translatorOf(mode, spec, frontend)][externalTrafficPolicy]).find(
    (each) => each.frontend === frontend && each.client === client,
  );
  if (word?.text === 'own') return lab.addressesOf(client);
  return lab.nodeAddresses(word?.text === 'node-1' ? 'node-1' : nodeOf(client));
}

/** Fewer connections may all go one way by chance. */
const TRIES_MIN = 20;

/** Of all the connections of a row, each backend that is expected must have got one. */
function missingBackends(judged: readonly Judged[]): readonly string[] {
  const rows = Map.groupBy(
    judged.filter(({ question }) => /^\d+$/.test(question.expected)),
    ({ question: { exposed, cell, expected, family, protocol } }) =>
      [exposed.scenario.name, cell.frontend, expected, family, protocol].join(' '),
  );
  return [...rows].flatMap(([row, own]) => {
    const seen = new Set(own.flatMap(({ servers }) => servers));
    const expected = own[0]?.question.expected ?? '';
    const missing = [...expected].filter((number) => !seen.has(`web-${number}`));
    const count = own.reduce((sum, { question }) => sum + question.calls.length, 0);
    return missing.length > 0 && count >= TRIES_MIN
      ? [`${row}: none of ${count} connections reached ${missing.join(' ')}`]
      : [];
  });
}
