/** Which ports and families of a Service lead where, and which Services are nobody's here, for whatever serves. */
import test from 'ava';
import { families, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import { apiPath } from '../../lab/api-writer.ts';
import { until } from '../../lab/until.ts';
import { TIMEOUT_MS, tulle } from './lab.ts';
import { TCP_AND_UDP } from './service-api.ts';
import { BALANCERS, CLIENTS, GROUP, nodeOf, type ServiceLab, type ServicesMode, serversAt } from './service-lab.ts';

const INSIDE = ['pod-1', 'pod-3', 'host-1', 'host-3'] as const;

export function serviceShapes(mode: ServicesMode, lab: () => ServiceLab): void {
  test.serial(`${mode}: a port leads to what each pod calls by the name of its target`, async (t) => {
    const { api, lab: testLab } = lab();
    // One calls another number by that name, and only one has the other name.
    const serve = { 'named-1': [{ name: 'web', port: 7001 }], 'named-2': [{ name: 'web', port: 7002 }, ADMIN] };
    for (const [i, [name, served]] of Object.entries(serve).entries())
      await testLab.control.runPod({
        namespace: 'default',
        name,
        node: `node-${i + 1}`,
        labels: { group: 'named' },
        serve: served,
      });
    const ports = [
      { name: 'web', port: 80, targetPort: 'web' },
      { name: 'admin', port: 81, targetPort: 'admin' },
      { name: 'nobody', port: 82, targetPort: 'nobody' },
      { name: 'number', port: 83, targetPort: 7001 },
    ];
    const { clusterIps } = await api.createService('named', { selector: { group: 'named' }, ports });
    const expected = {
      80: 'named-1 named-2',
      81: 'named-2',
      82: 'ECONNREFUSED',
      // Of named-2, which does not listen there.
      83: 'ECONNREFUSED named-1',
    };
    for (const client of INSIDE)
      for (const [port, servers] of Object.entries(expected)) {
        let last = '';
        const isSo = async () => {
          last = (await serversAt(lab(), client, clusterIps, Number(port), 2000)).join(' ');
          return last === servers;
        };
        const describe = `${servers} for ${client} at port ${port}`;
        await until(isSo, { describe, deadlineMs: TIMEOUT_MS, intervalMs: 50 }).catch((cause: unknown) => {
          throw new Error(`${client} gets ${last} at port ${port}`, { cause });
        });
      }
    t.pass();
  });

  for (const { family, name: ipFamily } of FAMILY_NAMES)
    test.serial(`${mode}: a Service of ${family} alone has nothing in the other family`, async (t) => {
      const { api, written, lab: testLab } = lab();
      const single = { ipFamilyPolicy: 'SingleStack', ipFamilies: [ipFamily] };
      const name = `only-${family}`;
      const { clusterIps, ports } = await api.createService(name, { type: 'NodePort', ports: TCP_AND_UDP, ...single });
      await api.createSlice({ of: name, family, endpoints: '1 2' });
      await written();
      t.deepEqual(clusterIps.map(familyOf), [family]);
      for (const client of CLIENTS) {
        for (const ip of testLab.node(nodeOf(client)).addresses) {
          const servers = await serversAt(lab(), client, [ip], ports[0]?.nodePort, 2000);
          t.deepEqual(servers, familyOf(ip) === family ? ['web-1', 'web-2'] : ['ECONNREFUSED'], `${client} to ${ip}`);
        }
      }
    });

  test.serial(`${mode}: what has no address, or is for another proxy, is left alone without a word`, async (t) => {
    const { api, written, lab: testLab } = lab();
    const spec = { ports: TCP_AND_UDP, selector: GROUP, ipFamilyPolicy: 'PreferDualStack' };
    const create = (name: string, more: object, labels: Readonly<Record<string, string>> = {}) =>
      api.create(apiPath.services('default'), { metadata: { name, labels }, spec: { ...spec, ...more } });
    await create('left-headless', { clusterIP: 'None' });
    await create('left-labelled', {}, { 'service.kubernetes.io/headless': '' });
    await create('left-foreign', { type: 'LoadBalancer' }, { 'service.kubernetes.io/service-proxy-name': 'another' });
    await api.create(apiPath.services('default'), {
      metadata: { name: 'left-external' },
      spec: { type: 'ExternalName', externalName: 'example.org' },
    });
    const ingress = families.map(({ family }) => ({ ip: `${BALANCERS[family]}222` }));
    await api.patchStatus('left-foreign', { loadBalancer: { ingress } });
    await written();
    const addressed = await Promise.all(['left-labelled', 'left-foreign'].map((name) => api.readService(name)));
    const places = [...addressed.flatMap(({ clusterIps }) => clusterIps), ...ingress.map(({ ip }) => ip as IpAddress)];
    const nodePorts = addressed.flatMap(({ ports }) => ports.flatMap(({ nodePort }) => nodePort ?? []));
    t.is(places.length, 6);
    t.is(nodePorts.length, 2);
    const askAll = async (client: (typeof INSIDE)[number]) => {
      const servers = await serversAt(lab(), client, places, 80, 1000);
      t.false(
        servers.some((each) => each.startsWith('web-')),
        `${client} gets ${servers}`,
      );
      for (const port of nodePorts)
        t.deepEqual(await serversAt(lab(), client, testLab.node('node-1').addresses, port, 2000), ['ECONNREFUSED']);
    };
    await Promise.all(INSIDE.map(askAll));
    const said = await Promise.all(
      [['status'], ['service', 'ls']].map((argv) => tulle(testLab.node('node-1'), ...argv)),
    );
    // Only a Service that has an address all the same has slices that look like somebody's.
    for (const { stdout } of said)
      t.notRegex(stdout.replaceAll(/^.*default\/left-labelled, .*another proxy$/gm, ''), /left-/);
  });
}

const ADMIN = { name: 'admin', port: 7003 };
const FAMILY_NAMES = [
  { family: 'ipv4', name: 'IPv4' },
  { family: 'ipv6', name: 'IPv6' },
] as const;
