/** Services that no sound API server would serve: what becomes of them and of the others, and who is told. */
import { readFile } from 'node:fs/promises';
import test, { type ExecutionContext } from 'ava';
import { families, type IpAddress } from '../../agent/model/ip.ts';
import { apiPath } from '../../lab/api-writer.ts';
import type { NamespacedObject } from '../../lab/control.ts';
import { inNode } from '../../lab/node.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { until } from '../../lab/until.ts';
import { output, type TestLab, TIMEOUT_MS, tulle } from './lab.ts';
import { TCP_AND_UDP } from './service-api.ts';
import { askApiServer, type Client, type ServiceLab, type ServicesMode, serversAt } from './service-lab.ts';

type Spec = Readonly<Record<string, unknown>>;
type ServiceAsStored = NamespacedObject & { readonly spec: Spec };

/** How a sound Service is spoiled. */
interface Fault {
  readonly spoil: (spec: Spec) => Spec;
  /** What is good of it is served on. */
  readonly serves: boolean;
  /** Said of it. */
  readonly says: RegExp;
}

const NODE = 'node-1';
/** Where a cluster address leads somewhere in every mode. */
const INSIDE = ['pod-1', 'pod-3', 'host-1', 'host-3'] as const satisfies readonly Client[];
const WAIT = { deadlineMs: TIMEOUT_MS, intervalMs: 200 };

const withPort =
  (port: object) =>
  (spec: Spec): Spec => ({ ...spec, ports: [...TCP_AND_UDP, port] });
const withAddresses =
  (...clusterIPs: readonly string[]) =>
  (spec: Spec): Spec => ({ ...spec, clusterIP: clusterIPs[0], clusterIPs });

const PARTS: Readonly<Record<string, Fault>> = {
  'unsound-port-zero': { spoil: withPort({ name: 'zero', port: 0 }), serves: true, says: /ports\[2\]\.port is 0/ },
  'unsound-port-as-text': {
    spoil: withPort({ name: 'text', port: '81' }),
    serves: true,
    says: /ports\[2\]\.port is "81"/,
  },
  'unsound-unknown-protocol': {
    spoil: withPort({ name: 'dccp', protocol: 'DCCP', port: 81 }),
    serves: true,
    says: /protocol is "DCCP"/,
  },
  'unsound-port-twice': {
    spoil: withPort({ name: 'again', protocol: 'TCP', port: 80 }),
    serves: true,
    says: /has TCP 80 again/,
  },
  'unsound-name-twice': {
    spoil: withPort({ name: 'tcp', protocol: 'TCP', port: 81 }),
    serves: true,
    says: /has name tcp again/,
  },
  'unsound-node-port-beyond': {
    spoil: (spec) => ({ ...spec, type: 'NodePort', ports: TCP_AND_UDP.map((port) => ({ ...port, nodePort: 70_000 })) }),
    serves: true,
    says: /nodePort is 70000/,
  },
  'unsound-odd-policies': {
    spoil: (spec) => ({ ...spec, internalTrafficPolicy: 'Near', sessionAffinity: 'Cookie' }),
    serves: true,
    says: /sessionAffinity is "Cookie"/,
  },
};

/** `taken`: addresses that are not a Service's to have. */
const addressFaults = (taken: Readonly<Record<string, readonly string[]>>): Readonly<Record<string, Fault>> => ({
  'unsound-no-address': { spoil: withAddresses('nonsense'), serves: false, says: /clusterIPs has "nonsense"/ },
  'unsound-no-spec-at-all': { spoil: () => ({}), serves: false, says: /unsound-no-spec-at-all/ },
  'unsound-loopback-address': {
    spoil: withAddresses('127.0.0.9', '::1'),
    serves: false,
    says: /it is a loopback address/,
  },
  'unsound-link-local-address': {
    spoil: withAddresses('169.254.169.254', 'fe80::99'),
    serves: false,
    says: /it is a link-local address/,
  },
  'unsound-zero-address': { spoil: withAddresses('0.0.0.0', '::'), serves: false, says: /unsound-zero-address/ },
  ...Object.fromEntries(
    Object.entries(taken).map(([name, ips]) => [
      name,
      { spoil: withAddresses(...ips), serves: false, says: /: it is / },
    ]),
  ),
});

export function unsoundServices(mode: ServicesMode, lab: () => ServiceLab): void {
  test.serial(
    `${mode}: what no sound server would serve is left out part by part, told, and taken up once mended`,
    async (t) => {
      t.timeout(180_000);
      const { api, written, lab: testLab } = lab();
      const steady = await createOldest(lab(), 'steady');
      const faults = await faultsOf(lab(), steady);
      const names = Object.keys(faults);
      const sound = await createSound(lab(), names);
      await written();
      const soundProblems = await problemCount(lab());

      for (const { name, stored } of sound) {
        const spec = faults[name]?.spoil(stored.spec);
        await testLab.control.putUnchecked('service', { ...stored, spec } as ServiceAsStored);
      }
      await written();
      for (const client of INSIDE) {
        t.deepEqual(await serversAt(lab(), client, steady), ['web-2'], `${client} to steady`);
        for (const { name, clusterIps } of sound)
          if (faults[name]?.serves)
            t.deepEqual(await serversAt(lab(), client, clusterIps), ['web-1'], `${client} to ${name}`);
        await assertNothingTaken(t, lab(), client);
      }
      const status = await statusLines(lab());
      for (const [name, { says }] of Object.entries(faults)) {
        const lines = status.filter((line) => line.includes(`default/${name}`));
        t.regex(lines.join('\n'), says, name);
      }
      t.true((await problemCount(lab())) >= soundProblems + names.length);
      await untilLogged(lab(), names, 'warn');

      for (const { stored } of sound) await testLab.control.putUnchecked('service', stored);
      await written();
      const all = sound.flatMap(({ clusterIps }) => clusterIps);
      for (const client of INSIDE) t.deepEqual(await serversAt(lab(), client, all), ['web-1'], `${client} afterwards`);
      const after = (await statusLines(lab())).filter((line) => line.includes('unsound-'));
      t.deepEqual(after, []);
      await until(async () => (await problemCount(lab())) === soundProblems, { describe: 'no more problems', ...WAIT });
      await untilLogged(lab(), names, 'info');
      for (const name of [...names, 'steady']) await api.deleteService(name);
    },
  );

  test.serial(
    `${mode}: names of 253 characters are served, and what has no usable one is told until it goes`,
    async (t) => {
      const { api, written, pods, lab: testLab } = lab();
      const { clusterIps } = await api.createService('to-be-long', { ports: TCP_AND_UDP });
      const { spec } = await readService(testLab, 'to-be-long');
      await api.deleteService('to-be-long');
      const long = `l${'o'.repeat(251)}g`;
      const put = (name: string) =>
        testLab.control.putUnchecked('service', { metadata: { namespace: 'default', name }, spec } as NamespacedObject);
      const [ipv4 = '', ipv6 = ''] = (pods.get('web-3') as PodStatus).addresses;
      for (const [addressType, ip] of [
        ['IPv4', ipv4],
        ['IPv6', ipv6],
      ] as const) {
        const metadata = {
          namespace: 'default',
          name: `${long.slice(0, 248)}-${addressType.toLowerCase()}`,
          labels: { 'kubernetes.io/service-name': long },
        };
        const ports = TCP_AND_UDP.map(({ name, protocol }) => ({ name, protocol, port: 8080 }));
        await testLab.control.putUnchecked('endpointSlice', {
          metadata,
          addressType,
          ports,
          endpoints: [{ addresses: [ip] }],
        } as NamespacedObject);
      }
      await put(long);
      const nameless = ['Capital', `${long}x`, 'a b; rm -rf'];
      // More than a status shows.
      const many = Array.from({ length: 25 }, (_, i) => `Many-${i}`);
      for (const name of [...nameless, ...many]) await put(name);
      await written();
      for (const client of INSIDE) t.deepEqual(await serversAt(lab(), client, clusterIps), ['web-3'], client);
      const { stdout } = await tulle(testLab.node(NODE), 'service', 'show', `default/${long}`);
      t.regex(stdout, /8080/);
      const status = await statusLines(lab());
      for (const name of nameless)
        t.true(
          status.some((line) => line.includes(`"${name.slice(0, 60)}`)),
          `the status tells of ${name}`,
        );
      t.false(status.some((line) => line.includes(`default/${long}`)));
      t.true(
        status.some((line) => /and \d+ more of services, which the log has$/.test(line)),
        status.join('\n'),
      );
      t.true((await problemCount(lab())) >= nameless.length + many.length);
      await untilLogged(
        lab(),
        [...nameless.map((name) => name.slice(0, 60)), ...many.map((name) => `${name}\\"`)],
        'warn',
      );
      for (const name of [...nameless, ...many])
        await testLab.control.callApi({ method: 'DELETE', path: apiPath.service('default', name) });
      await written();
      t.deepEqual(
        (await statusLines(lab())).filter((line) => line.includes('DNS form')),
        [],
      );
    },
  );
}

/** Older than what is created in the same second, whatever their uids are. */
async function createOldest({ api, lab }: ServiceLab, name: string): Promise<readonly IpAddress[]> {
  const { clusterIps } = await api.createService(name, { ports: TCP_AND_UDP });
  const stored = await readService(lab, name);
  const metadata = { ...stored.metadata, creationTimestamp: '2020-01-01T00:00:00Z' };
  await lab.control.putUnchecked('service', { ...stored, metadata } as ServiceAsStored);
  for (const { family } of families) await api.createSlice({ of: name, family, endpoints: '2' });
  return clusterIps;
}

interface Sound {
  readonly name: string;
  readonly stored: ServiceAsStored;
  readonly clusterIps: readonly IpAddress[];
}

async function createSound({ api, lab }: ServiceLab, names: readonly string[]): Promise<readonly Sound[]> {
  const made: Sound[] = [];
  for (const name of names) {
    const { clusterIps } = await api.createService(name, { ports: TCP_AND_UDP });
    for (const { family } of families) await api.createSlice({ of: name, family, endpoints: '1' });
    made.push({ name, clusterIps, stored: await readService(lab, name) });
  }
  return made;
}

const readService = async ({ control }: TestLab, name: string): Promise<ServiceAsStored> =>
  (await control.callApi({ method: 'GET', path: apiPath.service('default', name) })) as unknown as ServiceAsStored;

async function faultsOf(
  { pods, lab }: ServiceLab,
  steady: readonly IpAddress[],
): Promise<Readonly<Record<string, Fault>>> {
  const { apiServer } = await lab.control.status();
  const { hostname } = new URL(apiServer.url);
  return {
    ...PARTS,
    'unsound-address-of-another': {
      spoil: withAddresses(...steady),
      serves: false,
      says: /service default\/steady has the older/,
    },
    ...addressFaults({
      'unsound-address-of-a-pod': (pods.get('web-2') as PodStatus).addresses,
      'unsound-address-of-a-node': lab.node('node-2').addresses,
      'unsound-address-of-the-api': [hostname],
    }),
  };
}

/** Pods, nodes, loopback and the API server are still what they were. */
async function assertNothingTaken(t: ExecutionContext, serviceLab: ServiceLab, client: Client): Promise<void> {
  const { lab, pods } = serviceLab;
  const target = pods.get('web-2') as PodStatus;
  t.deepEqual(await serversAt(serviceLab, client, target.addresses, 8080), ['web-2'], `${client} to a pod`);
  const others = ['127.0.0.9', '::1', '169.254.169.254', ...lab.node('node-2').addresses] as IpAddress[];
  const servers = await serversAt(serviceLab, client, others, 80, 1000);
  t.false(
    servers.some((each) => each.startsWith('web-')),
    `${client} reaches ${servers} where no Service is`,
  );
  t.regex(await askApiServer(serviceLab), /"major"/);
}

async function statusLines({ lab }: ServiceLab): Promise<readonly string[]> {
  return (await tulle(lab.node(NODE), 'status')).stdout.split('\n').filter((line) => line.startsWith('problem'));
}

/** Its page is up to a second old. */
export const metricsOf = ({ lab }: ServiceLab): Promise<string> =>
  output(inNode(lab.node(NODE), ['curl', '-sS', '--max-time', '10', 'http://127.0.0.1:9440/metrics']));

async function problemCount(serviceLab: ServiceLab): Promise<number> {
  const page = await metricsOf(serviceLab);
  const counts = [...page.matchAll(/^tulle_problems\{about="(?:cluster|plan)"\} (\d+)$/gm)];
  return counts.reduce((sum, [, count]) => sum + Number(count), 0);
}

async function untilLogged({ lab }: ServiceLab, names: readonly string[], level: string): Promise<void> {
  let missing: readonly string[] = names;
  const isLogged = async () => {
    const lines = (await readFile(lab.node(NODE).agentLog, 'utf8')).split('\n');
    const own = lines.filter((line) => line.includes(`"level":"${level}"`) && line.includes('"problem":'));
    missing = names.filter((name) => !own.some((line) => line.includes(name)));
    return missing.length === 0;
  };
  await until(isLogged, { describe: `the log to have all names`, ...WAIT }).catch((cause: unknown) => {
    throw new Error(`the log has no line of level ${level} about ${missing.join(', ')}`, { cause });
  });
}
