/** Services as packets meet them: planned, rendered, written by the drivers, and called from everywhere. */
import { once } from 'node:events';
import test, { type ExecutionContext } from 'ava';
import type { BackendName } from '../../agent/kernel/iptables/backend.ts';
import { families, type IpAddress } from '../../agent/model/ip.ts';
import type { EndpointSlice, Service } from '../../agent/model/services.ts';
import { planGuard } from '../../agent/plan/services/guard.ts';
import { planService, type ServicePlan } from '../../agent/plan/services/service.ts';
import type { Caller } from '../support/caller.ts';
import { cidr, settings } from '../support/cluster-values.ts';
import { createPacketNode, NODE, OUTSIDE, type PacketNode, PODS, VIP } from '../support/packet-node.ts';
import { selfNode, service, slice } from '../support/service-values.ts';
import type { Call } from '../support/socket-caller.ts';

const BACKENDS: readonly BackendName[] = ['nft', 'legacy'];
const SAVES = ['iptables', 'ip6tables'].flatMap((name) => BACKENDS.map((backend) => `${name}-${backend}-save`));
const ECHO_PORT = 9000;
const ECHO = `net.createServer((each) => each.pipe(each)).listen(${ECHO_PORT}, '::', () => console.log('ready'))`;
const open = { ...settings, 'services.externalAddresses': [cidr('0.0.0.0/0'), cidr('::/0')] };
const guard = planGuard([selfNode], new Map(), [], open);

const plan = (of: Service, slices: readonly EndpointSlice[]): ServicePlan => {
  const made = planService(of, slices, { zone: undefined, nodePortIps: Object.values(NODE), guard }, () => undefined);
  if (made.problems.length > 0) throw new Error(made.problems.join('\n'));
  return made;
};

/** Endpoints in both families, by the numbers of the pods; `@`: of this node. */
const endpointsOf = (of: string, pods: readonly number[], { on = '8080', flag = '@' } = {}) =>
  families.map(({ family }) =>
    slice(of, pods.map((i) => `${PODS[family][i]}${flag}`).join(' '), { on, family, name: `${of}-${family}` }),
  );

const dual = { clusterIps: `${VIP.ipv4} ${VIP.ipv6}` };
const LB = { ipv4: '203.0.113.1', ipv6: '2001:db8:1::1' } as const;

/** `<server> <client as it sees it>`, or the error. */
async function ask(caller: Caller, ip: string, port: number, how: Call['how'] = 'tcp'): Promise<string> {
  const { from, error } = await caller.call({ how, ip, port });
  return error ?? from ?? '';
}

/** No answer in a while in which one comes otherwise. */
const isSilent = async (caller: Caller, ip: string, port: number): Promise<boolean> =>
  (await caller.call({ how: 'tcp', ip, port, deadlineMs: 1500 })).error === 'ABORT_ERR';

const askOften = async (count: number, question: () => Promise<string>): Promise<readonly string[]> => {
  const answers: string[] = [];
  for (let i = 0; i < count; i++) answers.push(await question());
  return answers;
};
const serversOf = (answers: readonly string[]) => [...new Set(answers.map((answer) => answer.split(' ')[0]))].sort();

type Body = (t: ExecutionContext, node: PacketNode) => Promise<void>;
const each = (title: string, body: Body): void => {
  for (const backend of BACKENDS)
    test(`${backend}: ${title}`, async (t) => {
      t.timeout(120_000);
      await body(t, await createPacketNode(t, backend));
    });
};

each(
  'policy Cluster: from everywhere, to each address, masqueraded',
  async (t, { node, pods, outside, caller, serve }) => {
    const all = { ...dual, loadBalancerIps: `${LB.ipv4} ${LB.ipv6}`, ports: 'http:80=30080 dns:53/UDP=30053' };
    const slices = endpointsOf('web', [0, 1], { on: 'http:8080 dns:8080/UDP' });
    await serve([plan(service('web', all), slices)]);
    const [atNode, atPod, atOutside] = [await caller(node), await caller(pods[0] as never), await caller(outside)];
    for (const { family } of families) {
      const places = [
        [VIP[family], 80],
        [LB[family], 80],
        [NODE[family], 30_080],
      ] as const;
      for (const [ip, port] of places) {
        for (const [who, from] of Object.entries({ atNode, atPod, atOutside })) {
          const answers = await askOften(8, () => ask(from, ip, port));
          const clients = new Set(answers.map((answer) => answer.split(' ')[1]));
          t.deepEqual([...clients], [NODE[family]], `${who} to ${ip} ${port}: ${answers}`);
          t.true(serversOf(answers).every((server) => PODS[family].includes(server as IpAddress)));
        }
      }
      t.deepEqual(
        serversOf(await askOften(24, () => ask(atOutside, VIP[family], 80))),
        [...PODS[family]],
        'all backends',
      );
      for (const from of [atNode, atPod, atOutside])
        t.regex(await ask(from, NODE[family], 30_053, 'udp'), new RegExp(`${NODE[family]}$`), 'UDP');
    }
  },
);

each(
  'policy Local: the client is seen; without endpoints here inside reaches all, outside nothing',
  async (t, { node, pods, outside, caller, serve }) => {
    const all = { ...dual, externalTrafficPolicy: 'Local', ports: '80=30080' } as const;
    const [atNode, atPod, atOutside] = [await caller(node), await caller(pods[0] as never), await caller(outside)];
    await serve([plan(service('web', all), endpointsOf('web', [0]))]);
    for (const { family } of families) {
      const server = PODS[family][0];
      t.is(await ask(atOutside, NODE[family], 30_080), `${server} ${OUTSIDE[family]}`);
      t.is(await ask(atNode, NODE[family], 30_080), `${server} ${NODE[family]}`);
      t.is(await ask(atPod, NODE[family], 30_080), `${server} ${NODE[family]}`, 'a pod that is its own backend');
      t.is(await ask(atOutside, VIP[family], 80), `${server} ${NODE[family]}`, 'cluster addresses are masqueraded');
    }
    await serve([plan(service('web', all), endpointsOf('web', [1], { flag: '' }))]);
    for (const { family } of families) {
      t.true(await isSilent(atOutside, NODE[family], 30_080), 'dropped');
      t.is(await ask(atPod, NODE[family], 30_080), `${PODS[family][1]} ${NODE[family]}`);
      t.is(await ask(atNode, NODE[family], 30_080), `${PODS[family][1]} ${NODE[family]}`);
    }
  },
);

each(
  'nothing listens: refused at once, and again served once it does',
  async (t, { node, pods, outside, caller, serve }) => {
    const all = { ...dual, loadBalancerIps: `${LB.ipv4} ${LB.ipv6}`, ports: 'http:80=30080 dns:53/UDP' };
    const [atNode, atPod, atOutside] = [await caller(node), await caller(pods[0] as never), await caller(outside)];
    await serve([plan(service('web', all), [])]);
    for (const { family } of families) {
      for (const from of [atNode, atPod, atOutside]) {
        for (const [ip, port] of [
          [VIP[family], 80],
          [VIP[family], 81],
          [LB[family], 80],
          [NODE[family], 30_080],
        ] as const)
          t.is(await ask(from, ip, port), 'ECONNREFUSED', `${ip} ${port}`);
        // To a sender of this host the kernel says that its datagram was dropped (ip_local_out), before the answer comes.
        const refusal = from === atNode ? 'EPERM' : 'ECONNREFUSED';
        t.is(await ask(from, VIP[family], 53, 'udp-connected'), refusal, 'UDP');
      }
    }
    await serve([plan(service('web', all), endpointsOf('web', [1], { on: 'http:8080 dns:8080/UDP' }))]);
    for (const { family } of families) {
      for (const from of [atNode, atPod, atOutside]) {
        t.is(await ask(from, VIP[family], 80), `${PODS[family][1]} ${NODE[family]}`);
        t.is(await ask(from, VIP[family], 81), 'ECONNREFUSED', 'another port');
      }
    }
  },
);

each(
  'source ranges: others get no answer, at the load-balancer address only',
  async (t, { node, pods, outside, caller, serve }) => {
    const [atNode, atPod, atOutside] = [await caller(node), await caller(pods[0] as never), await caller(outside)];
    const restricted = (sourceRanges: string) =>
      plan(
        service('web', { ...dual, loadBalancerIps: `${LB.ipv4} ${LB.ipv6}`, ports: '80=30080', sourceRanges }),
        endpointsOf('web', [1]),
      );
    for (const { family } of families) {
      const served = `${PODS[family][1]} ${NODE[family]}`;
      const other = family === 'ipv4' ? '2001:db8:9::/48' : '10.9.0.0/16';
      await serve([restricted(`${OUTSIDE[family]}/${family === 'ipv4' ? 32 : 128} ${other}`)]);
      t.is(await ask(atOutside, LB[family], 80), served);
      t.true(await isSilent(atPod, LB[family], 80));
      t.true(await isSilent(atNode, LB[family], 80));
      t.is(await ask(atPod, VIP[family], 80), served);
      t.is(await ask(atPod, NODE[family], 30_080), served);
      await serve([restricted(`${PODS[family][0]}/${family === 'ipv4' ? 32 : 128} ${other}`)]);
      t.true(await isSilent(atOutside, LB[family], 80));
      t.is(await ask(atPod, LB[family], 80), served);
    }
  },
);

each(
  'affinity: a client stays with its backend, also when others come and go',
  async (t, { pods, outside, caller, serve }) => {
    const sticky = { ...dual, affinitySeconds: 600, ports: '80=30080' };
    const [atPod, atOutside] = [await caller(pods[0] as never), await caller(outside)];
    const at = (...numbers: readonly number[]) => serve([plan(service('web', sticky), endpointsOf('web', numbers))]);
    await at(0, 1);
    for (const { family } of families) {
      for (const from of [atPod, atOutside]) {
        const first = serversOf(await askOften(12, () => ask(from, VIP[family], 80)));
        t.is(first.length, 1, `${first}`);
        // The same Service, the same client, another address: kube-proxy keeps it too.
        t.deepEqual(serversOf(await askOften(6, () => ask(from, NODE[family], 30_080))), first);
        const chosen = PODS[family].indexOf(first[0] as IpAddress);
        await at(chosen);
        await at(0, 1);
        t.deepEqual(serversOf(await askOften(12, () => ask(from, VIP[family], 80))), first, 'after a change of others');
        await at(1 - chosen);
        const moved = [PODS[family][1 - chosen] as string];
        t.deepEqual(serversOf(await askOften(2, () => ask(from, VIP[family], 80))), moved, 'its backend is gone');
        await at(0, 1);
        t.deepEqual(serversOf(await askOften(12, () => ask(from, VIP[family], 80))), moved, 'and it stays there');
      }
    }
  },
);

each(
  'UDP: a socket that goes on sending is not answered by what is no backend any more',
  async (t, { node, outside, caller, serve }) => {
    const client = await caller(outside);
    const dns = (name: string, clusterIps: string, ...pods: readonly number[]) =>
      plan(service(name, { clusterIps, ports: 'dns:53/UDP' }), endpointsOf(name, pods, { on: 'dns:8080/UDP' }));
    const other = dns('other', '10.96.0.99 fd96::99', 0);
    const send = (ip: string, deadlineMs = 5000) =>
      client.call({ how: 'udp', ip, port: 53, socket: `to ${ip}`, deadlineMs });
    const flowsTo = async (ip: string) =>
      (await node.run('conntrack', '-L', '-f', ip.includes(':') ? 'ipv6' : 'ipv4', '-p', 'udp', '-d', ip, '-o', 'id'))
        .stdout;
    for (const { family } of families) t.truthy((await send(VIP[family], 300)).error, 'before there is a Service');
    await serve([other, dns('web', `${VIP.ipv4} ${VIP.ipv6}`, 0)]);
    for (const { family } of families) {
      t.regex((await send(VIP[family])).from ?? '', new RegExp(`^${PODS[family][0]} `), 'a flow from before');
      await send(family === 'ipv4' ? '10.96.0.99' : 'fd96::99');
    }
    const kept = await Promise.all(['10.96.0.99', 'fd96::99'].map(async (ip) => /id=\d+/.exec(await flowsTo(ip))?.[0]));
    t.true(kept.every((id) => id !== undefined));
    await serve([other, dns('web', `${VIP.ipv4} ${VIP.ipv6}`, 1)]);
    for (const { family } of families)
      t.regex((await send(VIP[family])).from ?? '', new RegExp(`^${PODS[family][1]} `), 'another backend');
    await serve([other, plan(service('web', { ...dual, ports: 'dns:53/UDP' }), [])]);
    for (const { family } of families) {
      t.is(await flowsTo(VIP[family]), '', 'no endpoints');
      t.is((await send(VIP[family], 300)).from, undefined);
    }
    await serve([other, dns('web', `${VIP.ipv4} ${VIP.ipv6}`, 1)]);
    for (const { family } of families) t.truthy((await send(VIP[family])).from);
    await serve([other]);
    for (const { family } of families) t.is(await flowsTo(VIP[family]), '', 'no Service');
    const still = await Promise.all(
      ['10.96.0.99', 'fd96::99'].map(async (ip) => /id=\d+/.exec(await flowsTo(ip))?.[0]),
    );
    t.deepEqual(still, kept, 'nothing else is disturbed');
  },
);

each('what is to no Service meets none of their chains', async (t, { node, pods, outside, caller, serve }) => {
  const [atNode, atPod, atOutside] = [await caller(node), await caller(pods[0] as never), await caller(outside)];
  await serve([plan(service('web', { ...dual, ports: '80=30080' }), [])]);
  /** `TULLE-VERDICTS`, for each rule that a packet came to. */
  const met = async (): Promise<readonly string[]> => {
    const saved = await Promise.all(SAVES.map(async (save) => (await node.run(save, '-c')).stdout));
    return saved.flatMap((text) =>
      [...text.matchAll(/^\[[1-9]\d*:\d+\] -A (TULLE-(?:ARRIVED|HOST|SERVICES|VERDICTS|MASQUERADE)) /gm)].map(
        ([, chain]) => chain as string,
      ),
    );
  };
  for (const { family } of families) {
    for (const from of [atNode, atPod, atOutside])
      t.regex(await ask(from, PODS[family][1] as string, 8080), new RegExp(`^${PODS[family][1]} `));
    t.is(await ask(atOutside, NODE[family], 30_081), 'ECONNREFUSED', 'a port that no Service has');
  }
  t.deepEqual(await met(), []);
  for (const from of [atNode, atPod, atOutside]) t.is(await ask(from, VIP.ipv6, 80), 'ECONNREFUSED');
  t.deepEqual([...new Set(await met())].sort(), ['TULLE-ARRIVED', 'TULLE-HOST', 'TULLE-SERVICES', 'TULLE-VERDICTS']);
});

each(
  'what a pod sends without a connection does not leave the node, as it may be an answer untranslated',
  async (t, { node, pods, outside, caller, serve }) => {
    const [atPod, other] = [await caller(pods[0] as never), pods[1] as never as typeof outside];
    await serve([plan(service('web', dual), endpointsOf('web', [0]))]);
    for (const netns of [outside, other]) {
      const server = netns.spawn(process.execPath, '--eval', ECHO);
      await once(server.stdout, 'data', { signal: AbortSignal.timeout(20_000) });
    }
    const echo = (ip: string, deadlineMs = 5000) =>
      atPod.call({ how: 'tcp-open', ip, port: ECHO_PORT, socket: ip, deadlineMs });
    for (const { family } of families)
      for (const ip of [OUTSIDE[family], PODS[family][1] as IpAddress]) t.is((await echo(ip)).from, '?', ip);
    // Then what goes on is not taken for a new connection.
    await node.run('sysctl', '-qw', 'net.netfilter.nf_conntrack_tcp_loose=0');
    await node.run('conntrack', '-F');
    for (const { family } of families) {
      t.is((await echo(OUTSIDE[family], 1500)).error, 'ABORT_ERR', family);
      t.is((await echo(PODS[family][1] as IpAddress)).from, '?', 'between pods of the node nothing is translated');
    }
  },
);

each('one change writes one chain, and the end leaves nothing', async (t, { node, caller, serve }) => {
  const others = Array.from({ length: 40 }, (_, i) =>
    plan(
      service(`s${i}`, { clusterIps: `10.96.1.${i} fd96::1:${i}`, ports: `80=${31_000 + i}` }),
      endpointsOf(`s${i}`, [0, 1]),
    ),
  );
  const web = (...pods: readonly number[]) =>
    plan(service('web', { ...dual, ports: '80=30080' }), endpointsOf('web', pods));
  await serve([...others, web(0, 1)]);
  t.deepEqual(await serve([...others, web(0, 1)]), [], 'what was written is read back as it is');
  const written = await serve([...others, web(1)]);
  t.deepEqual(written.map((key) => key.replace(/[0-9a-f]{16}/, 'HASH')).sort(), [
    'chain-part ipv4 nat TULLE-SVC-HASH 10',
    'chain-part ipv6 nat TULLE-SVC-HASH 10',
  ]);
  t.is(await ask(await caller(node), VIP.ipv4, 80), `${PODS.ipv4[1]} ${NODE.ipv4}`);
  await serve([]);
  for (const save of SAVES) t.false((await node.run(save)).stdout.includes('TULLE-SVC-'), save);
});
