/** What becomes of Services and slices that contradict each other, want what is not theirs, or are no good, for whatever serves. */
import test from 'ava';
import { families, familyOf, type IpAddress } from '../../agent/model/ip.ts';
import { apiPath } from '../../lab/api-writer.ts';
import type { PodStatus } from '../../lab/pods.ts';
import { until } from '../../lab/until.ts';
import { tulle } from './lab.ts';
import { SLICES, TCP_AND_UDP } from './service-api.ts';
import { askApiServer, CLIENTS, EXTERNALS, type ServicesMode, serversAt, useServiceLab } from './service-lab.ts';
import { metricsOf, unsoundServices } from './service-unsound.ts';
import type { Call } from './socket-caller.ts';

/** Call once, at the top of a file. */
export function serviceOddities(mode: ServicesMode): void {
  const lab = useServiceLab(mode);

  test.serial(
    `${mode}: of two Services that want one address the older has it everywhere, and then the other`,
    async (t) => {
      const { api, written, lab: testLab } = lab();
      const externalIPs = families.map(({ family }) => `${EXTERNALS[family]}77`) as IpAddress[];
      for (const [name, endpoints] of [
        ['first', '1'],
        ['second', '2'],
      ] as const) {
        await api.createService(name, { ports: TCP_AND_UDP, externalIPs });
        for (const { family } of families) await api.createSlice({ of: name, family, endpoints });
      }
      await written();
      const rankOf = async (name: string) => {
        const { metadata } = await testLab.control.callApi({ method: 'GET', path: apiPath.service('default', name) });
        return `${metadata['creationTimestamp']} ${metadata.uid}`;
      };
      const [older, younger] =
        (await rankOf('first')) < (await rankOf('second')) ? ['first', 'second'] : ['second', 'first'];
      const podOf = (service: string) => (service === 'first' ? 'web-1' : 'web-2');
      for (const client of CLIENTS) t.deepEqual(await serversAt(lab(), client, externalIPs), [podOf(older)], client);
      for (const node of ['node-1', 'node-3']) {
        const { stdout } = await tulle(testLab.node(node), 'status');
        t.regex(stdout, new RegExp(`service default/${younger} cannot have .*service default/${older} `), node);
      }
      await api.deleteService(older);
      await written();
      for (const client of CLIENTS) t.deepEqual(await serversAt(lab(), client, externalIPs), [podOf(younger)], client);
    },
  );

  test.serial(`${mode}: no Service takes what is not its own, and who tries is told`, async (t) => {
    const { api, written, pods, lab: testLab } = lab();
    const victim = await api.createService('victim', { ports: TCP_AND_UDP });
    for (const { family } of families) await api.createSlice({ of: 'victim', family, endpoints: '2' });
    const target = pods.get('web-2') as PodStatus;
    const { apiServer } = await testLab.control.status();
    const { hostname: apiIp, port: apiPort } = new URL(apiServer.url);
    const wishes: Readonly<Record<string, { readonly ips: readonly string[]; readonly port: number }>> = {
      'wants-a-cluster-address': { ips: victim.clusterIps, port: 80 },
      'wants-a-pod': { ips: target.addresses, port: 8080 },
      'wants-the-api-server': { ips: [apiIp], port: Number(apiPort) },
      'wants-the-kubelet': { ips: testLab.node('node-1').addresses, port: 10_250 },
      'wants-anything': { ips: ['192.0.2.200', '2001:db8:9::200'], port: 80 },
      'wants-loopback': { ips: ['127.0.0.1', '::1'], port: 8080 },
    };
    for (const [name, { ips, port }] of Object.entries(wishes)) {
      const ports = TCP_AND_UDP.map((each) => ({ ...each, port }));
      await api.createService(
        name,
        { ports, externalIPs: ips, type: 'LoadBalancer' },
        ips.map((ip) => ({ ip })),
      );
      for (const { family } of families) await api.createSlice({ of: name, family, endpoints: '1' });
    }
    await written();
    for (const client of CLIENTS) {
      if (!(mode === 'ebpf' && client.startsWith('out')))
        t.deepEqual(await serversAt(lab(), client, victim.clusterIps), ['web-2'], client);
      if (!client.startsWith('out'))
        t.deepEqual(await serversAt(lab(), client, target.addresses, 8080), ['web-2'], client);
      const others = [...(wishes['wants-anything']?.ips ?? []), ...testLab.node('node-1').addresses];
      const port = (ip: string) => (testLab.node('node-1').addresses.includes(ip as IpAddress) ? 10_250 : 80);
      const calls = others.map((ip): Call => ({ how: 'tcp', ip, port: port(ip), deadlineMs: 1000 }));
      const answers = await lab().caller(client).callAll(calls);
      t.deepEqual(
        answers.flatMap(({ from }) => from ?? []),
        [],
        client,
      );
    }
    t.regex(await askApiServer(lab()), /"major"/);
    const { stdout } = await tulle(testLab.node('node-1'), 'status');
    for (const name of Object.keys(wishes)) t.true(stdout.includes(name), `the status tells of ${name}`);
  });

  test.serial(`${mode}: slices that are no good are left out one by one, and told`, async (t) => {
    const { api, written, pods, lab: testLab } = lab();
    const { clusterIps } = await api.createService('sound', { ports: TCP_AND_UDP });
    const [good = ''] = (pods.get('web-1') as PodStatus).addresses;
    const ports = [{ name: 'tcp', protocol: 'TCP', port: 8080 }];
    const slice = (name: string, more: object, of = 'sound') => ({
      metadata: { name, labels: { 'kubernetes.io/service-name': of } },
      addressType: 'IPv4',
      ports,
      endpoints: [{ addresses: [good], conditions: { ready: true } }],
      ...more,
    });
    const long = `l${'o'.repeat(251)}g`;
    const bad: Readonly<Record<string, object>> = {
      'port-zero': slice('port-zero', { ports: [{ name: 'tcp', protocol: 'TCP', port: 0 }] }),
      'unknown-protocol': slice('unknown-protocol', { ports: [{ name: 'tcp', protocol: 'DCCP', port: 8080 }] }),
      loopback: slice('loopback', { endpoints: [{ addresses: ['127.0.0.1'] }] }),
      'link-local': slice('link-local', { endpoints: [{ addresses: ['169.254.169.254'] }] }),
      'other-family': slice('other-family', { endpoints: [{ addresses: ['fd84::99'] }] }),
      'no-address': slice('no-address', { endpoints: [{ addresses: ['nonsense'] }] }),
      'unknown-type': slice('unknown-type', { addressType: 'IPX' }),
      'of-nobody': slice('of-nobody', {}, 'nobody'),
    };
    for (const object of Object.values(bad)) await api.create(SLICES, object);
    const metadata = (name: string) => ({ name, labels: { 'kubernetes.io/service-name': 'sound' } });
    // Every optional field absent: no ports are all ports, which no Service asks for; no conditions are a ready endpoint.
    await api.create(SLICES, { metadata: metadata('bare'), addressType: 'IPv4', endpoints: [] });
    await api.create(SLICES, { ...slice(long, {}), endpoints: [{ addresses: [good] }] });
    await written();
    const ipv4 = clusterIps.filter((ip) => familyOf(ip) === 'ipv4');
    for (const client of ['pod-1', 'pod-3', 'host-1', 'host-3'] as const)
      t.deepEqual(await serversAt(lab(), client, ipv4), ['web-1'], client);
    const { stdout } = await tulle(testLab.node('node-1'), 'status');
    for (const name of Object.keys(bad)) t.true(stdout.includes(name), `the status tells of ${name}`);
    const line = (name: string) =>
      new RegExp(
        `^tulle_object_problems\\{about="\\w+",kind="endpointslice",namespace="default",name="${name}"\\} 1$`,
        'm',
      );
    const areCounted = async () => {
      const page = await metricsOf(lab());
      return Object.keys(bad).every((name) => line(name).test(page)) && !page.includes(long);
    };
    await until(areCounted, { describe: 'the metrics to name each', deadlineMs: 10_000, intervalMs: 500 });
    t.false(stdout.includes(long), 'a long name is no fault');
  });

  test.serial(`${mode}: Services with hardly a field`, async (t) => {
    const { api, written } = lab();
    const name = `s${'-'.repeat(61)}s`;
    const ports = [{ port: 80, targetPort: 8080 }];
    const least = await api.createService(name, { ports, ipFamilyPolicy: undefined });
    const targets = [{ port: 8080 }];
    for (const { family } of families) await api.createSlice({ of: name, family, endpoints: '1 2', ports: targets });
    await written();
    for (const client of ['pod-1', 'pod-3', 'host-1', 'host-3'] as const) {
      t.deepEqual(await serversAt(lab(), client, least.clusterIps), ['web-1', 'web-2'], client);
    }
  });

  unsoundServices(mode, lab);
}
