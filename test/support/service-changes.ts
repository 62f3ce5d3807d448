/** What must hold while Services change and agents die, for whatever serves them. */
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { type Family, families, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import { until } from '../../lab/until.ts';
import { agentStatus } from './agent-status.ts';
import { TIMEOUT_MS, untilSettled } from './lab.ts';
import { TCP_AND_UDP } from './service-api.ts';
import { type Client, nodeOf, type ServiceLab, type ServicesMode, useServiceLab } from './service-lab.ts';
import type { Answer, Call } from './socket-caller.ts';

/** All that a Service of a generated sequence is. */
interface Wish {
  /** As SliceText has them; absent: no slice. */
  readonly endpoints: Readonly<Record<Family, string | undefined>>;
  readonly internalTrafficPolicy: 'Cluster' | 'Local';
  readonly port: number;
}

interface Step {
  readonly service: string;
  /** Undefined: it is deleted, and its slices with it or not. */
  readonly wish: Wish | undefined;
}

const SERVICES = ['a', 'b', 'c'];
const RUNS = 3;
const WATCHERS = ['pod-1', 'host-3'] as const satisfies readonly Client[];

const endpoints = fc.option(
  fc
    .subarray(['1', '2', '3'])
    .chain((pods) => fc.tuple(...pods.map((pod) => fc.constantFrom(pod, pod, pod, `${pod}~`, `${pod}!`))))
    .map((texts) => texts.join(' ')),
  { nil: undefined, freq: 8 },
);
const wish: fc.Arbitrary<Wish> = fc.record({
  endpoints: fc.record({ ipv4: endpoints, ipv6: endpoints }),
  internalTrafficPolicy: fc.constantFrom('Cluster', 'Cluster', 'Local'),
  port: fc.constantFrom(80, 81),
});
const step: fc.Arbitrary<Step> = fc.record({
  service: fc.constantFrom(...SERVICES),
  wish: fc.option(wish, { nil: undefined, freq: 5 }),
});
/** Steps of one list are written in one go. */
const sequence = fc.array(fc.array(step, { minLength: 1, maxLength: 4 }), { minLength: 3, maxLength: 6 });

/** Call once, at the top of a file. */
export function serviceChanges(mode: ServicesMode): void {
  const lab = useServiceLab(mode);

  test.serial(
    `${mode}: after any sequence of changes nodes hold the plan, and nobody reaches what is gone`,
    async (t) => {
      t.timeout(180_000);
      await fc.assert(
        fc.asyncProperty(sequence, async (batches) => {
          const world = new World(lab(), mode);
          try {
            for (const batch of batches) {
              for (const each of batch) await world.take(each);
              await lab().written();
              t.deepEqual(await world.contradictions(), []);
            }
          } finally {
            for (const service of SERVICES) await world.take({ service, wish: undefined });
          }
        }),
        // A shrunk failure would cost minutes, and the sequence is in the report anyway.
        { numRuns: RUNS, endOnFailure: true },
      );
    },
  );

  test.serial(`${mode}: agents are killed and endpoints change under load: nothing fails or goes astray`, async (t) => {
    t.timeout(120_000);
    await underLoad(t, lab(), async (changeEndpoints) => {
      await killAgents(lab());
      await changeEndpoints();
      await killAgents(lab());
    });
  });
}

/** What a place is to give: any of these, or for datagrams of a socket that is not connected no pod at all. */
interface Place {
  readonly title: string;
  readonly ip: IpAddress;
  readonly port: number;
  /** Names of pods, or errors. */
  readonly expected: (client: Client) => readonly string[];
}

/** The Services of one sequence as they were written last. */
class World {
  readonly #lab: ServiceLab;
  readonly #mode: ServicesMode;
  readonly #written = new Map<string, { readonly wish: Wish; readonly clusterIps: readonly IpAddress[] }>();
  /** Addresses of Services that were deleted. */
  readonly #gone = new Set<IpAddress>();

  constructor(lab: ServiceLab, mode: ServicesMode) {
    this.#lab = lab;
    this.#mode = mode;
  }

  async take({ service, wish: wanted }: Step): Promise<void> {
    const former = this.#written.get(service);
    await this.#writeSlices(service, former?.wish, wanted);
    if (wanted) {
      const clusterIps = await this.#writeService(service, former?.clusterIps, wanted);
      this.#written.set(service, { wish: wanted, clusterIps });
    } else if (former) {
      await this.#lab.api.deleteService(service);
      this.#written.delete(service);
      for (const ip of former.clusterIps) this.#gone.add(ip);
    }
  }

  async #writeSlices(service: string, before: Wish | undefined, after: Wish | undefined): Promise<void> {
    const { api } = this.#lab;
    for (const { family } of families) {
      const [former, now] = [before?.endpoints[family], after?.endpoints[family]];
      if (former === now) continue;
      if (now === undefined) await api.deleteSlice(service, family);
      else if (former === undefined) await api.createSlice({ of: service, family, endpoints: now });
      else await api.setEndpoints({ of: service, family, endpoints: now });
    }
  }

  async #writeService(
    service: string,
    former: readonly IpAddress[] | undefined,
    { port, internalTrafficPolicy }: Wish,
  ): Promise<readonly IpAddress[]> {
    const { api } = this.#lab;
    const spec = { ports: TCP_AND_UDP.map((each) => ({ ...each, port })), internalTrafficPolicy };
    if (!former) return (await api.createService(service, spec)).clusterIps;
    await api.patchService(service, { spec });
    return former;
  }

  /** What clients get that they should not, one sentence each. */
  async contradictions(): Promise<readonly string[]> {
    return (await Promise.all(WATCHERS.map((client) => this.#ask(client)))).flat();
  }

  #places(): readonly Place[] {
    const places = [...this.#written].flatMap(([title, { wish: wanted, clusterIps }]) =>
      clusterIps.map((ip): Place => {
        const expected = (client: Client) => expectedOf(wanted, familyOf(ip), client, this.#mode);
        return { title, ip, port: wanted.port, expected };
      }),
    );
    const taken = new Set(places.map(({ ip }) => ip));
    const gone = [...this.#gone].filter((ip) => !taken.has(ip));
    return [...places, ...gone.map((ip) => ({ title: 'deleted', ip, port: 80, expected: () => [] }))];
  }

  async #ask(client: Client): Promise<readonly string[]> {
    const questions = this.#places().flatMap((place) => {
      const expected = place.expected(client);
      return callsOf(place, expected).map((call) => ({ call, expected, title: place.title }));
    });
    const answers = await this.#lab.caller(client).callAll(questions.map(({ call }) => call));
    return questions.flatMap(({ call, expected, title }, i) => {
      const got = shortly(answers[i] ?? {});
      const isRight = expected.includes(got) || (!isPod(got) && (call.how === 'udp' || title === 'deleted'));
      if (isRight && !(isPod(expected[0]) && !isPod(got))) return [];
      return [`${client} to ${title} (${call.how} ${call.ip} ${call.port}): expected ${expected}, got ${got}`];
    });
  }
}

const isPod = (text = ''): boolean => text.startsWith('web-');
const shortly = ({ from, error = 'nothing' }: Answer): string => from?.split(' ')[0] ?? error;

/** Among them a socket that lives as long as the lab and sends on, whatever its backend is. */
function callsOf({ ip, port }: Place, expected: readonly string[]): readonly Call[] {
  const deadlineMs = isPod(expected[0]) ? 10_000 : 1000;
  const at = { ip, port, deadlineMs };
  const fresh: Call = { how: 'tcp', ...at };
  return [fresh, fresh, fresh, { how: 'udp-connected', ...at }, { how: 'udp', socket: `to ${ip}`, ...at }];
}

/** A few lines of what kube-proxy documents: ready ones, else those that drain; of this node with the policy Local. */
function expectedOf(wanted: Wish, family: Family, client: Client, mode: ServicesMode): readonly string[] {
  const all = (wanted.endpoints[family] ?? '').split(' ').filter((text) => text !== '');
  const usable = (texts: readonly string[]): readonly string[] => {
    const ready = texts.filter((text) => text.length === 1);
    return (ready.length > 0 ? ready : texts.filter((text) => text.endsWith('~'))).map((text) => `web-${text[0]}`);
  };
  const isLocal = wanted.internalTrafficPolicy === 'Local';
  const chosen = usable(isLocal ? all.filter((text) => nodeOf(client).endsWith(text[0] as string)) : all);
  if (chosen.length > 0) return chosen;
  const isAway = isLocal && usable(all).length > 0;
  // A datagram that the host's own rules reject or drop is told to its sender as EPERM.
  if (mode === 'iptables')
    return [isAway ? 'ABORT_ERR' : 'ECONNREFUSED', ...(client.startsWith('host') ? ['EPERM'] : [])];
  return ['ECONNREFUSED'];
}

/** Of each caller. */
const RATE = { perSecond: 125, deadlineMs: 60_000 };

/**
 * Four callers make 500 connections a second to Services whose backends all serve on, whichever is chosen: none may fail,
 * and none may end at web-3, which belongs to another Service.
 */
export async function underLoad(
  t: ExecutionContext,
  lab: ServiceLab,
  disturb: (changeEndpoints: () => Promise<void>) => Promise<void>,
): Promise<void> {
  const { api, written, caller } = lab;
  const { clusterIps, ports } = await api.createService('loaded', { type: 'NodePort', ports: TCP_AND_UDP });
  await api.createService('other', { ports: TCP_AND_UDP });
  for (const { family } of families) {
    await api.createSlice({ of: 'loaded', family, endpoints: '1 2' });
    await api.createSlice({ of: 'other', family, endpoints: '3' });
  }
  await written();
  const ipOf = (ips: readonly IpAddress[], family: Family) => ips.find((ip) => familyOf(ip) === family) as IpAddress;
  const nodePort = ports[0]?.nodePort as number;
  const loads = [
    caller('pod-1').load({ ip: ipOf(clusterIps, 'ipv4'), port: 80, ...RATE }),
    caller('pod-3').load({ ip: ipOf(clusterIps, 'ipv6'), port: 80, ...RATE }),
    caller('host-3').load({ ip: ipOf(clusterIps, 'ipv4'), port: 80, ...RATE }),
    caller('out-1').load({ ip: ipOf(lab.lab.node('node-1').addresses, 'ipv6'), port: nodePort, ...RATE }),
  ];
  const changeEndpoints = async () => {
    for (const endpoints of ['1', '2', '1 2', '1~ 2', '1 2']) {
      for (const { family } of families) await api.setEndpoints({ of: 'loaded', family, endpoints });
      for (const { family } of families) await api.setEndpoints({ of: 'other', family, endpoints: `${endpoints} 3` });
    }
  };
  try {
    await disturb(changeEndpoints);
  } finally {
    const results = await Promise.all(loads.map((load) => load.stop()));
    const counts = results.map(({ answers = {}, errors = {} }) => ({ answers, errors }));
    t.log(JSON.stringify(counts));
    for (const { answers, errors } of counts) {
      t.deepEqual(errors, {});
      t.deepEqual(Object.keys(answers).sort(), ['web-1', 'web-2']);
    }
  }
}

/** Of both nodes whose Services the callers meet, at once; they are back when this returns. */
export async function killAgents({ lab }: ServiceLab): Promise<void> {
  const nodes = ['node-1', 'node-3'].map((name) => lab.node(name));
  const killed = await Promise.all(nodes.map(({ name }) => lab.control.killAgent(name)));
  const pids = new Set(killed.map(({ pid }) => pid));
  for (const node of nodes) {
    const isBack = async () => {
      const status = await lab.control.status();
      const { pid } = status.nodes.find(({ name }) => name === node.name)?.agent ?? {};
      return pid !== undefined && !pids.has(pid) && (await agentStatus(node))?.readiness.ready === true;
    };
    // A start takes its time where hundreds of connections a second are made beside it.
    const wait = { describe: `another agent of ${node.name}`, deadlineMs: 3 * TIMEOUT_MS, intervalMs: 100 };
    await until(isBack, wait);
    await untilSettled(node);
  }
}
