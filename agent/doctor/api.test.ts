import test, { type ExecutionContext } from 'ava';
import {
  listOf,
  nodeObject,
  type Script,
  sendJson,
  startScriptedApi,
  statusBody,
} from '../../test/support/scripted-api.ts';
import type { CredentialsSource } from '../cluster/credentials.ts';
import { ConfigError } from '../model/config-error.ts';
import { api } from './api.ts';
import { readApi } from './api-reading.ts';
import type { Facts } from './facts.ts';
import type { Finding } from './finding.ts';

/** What the check says of a server that answers like this. */
async function findingsOf(
  t: ExecutionContext,
  script: Script,
  credentials?: CredentialsSource,
): Promise<readonly Finding[]> {
  const server = await startScriptedApi(t, script);
  const source = credentials ?? { current: async () => server.credentials, expire: () => {} };
  const signal = AbortSignal.timeout(10_000);
  const facts = {
    config: { nodeName: 'node-1' },
    api: () => readApi(server.client(), source, 'node-1', signal),
  } as unknown as Facts;
  const verdict = await api.run(facts, signal);
  if ('findings' in verdict) return verdict.findings;
  throw new Error(`skipped: ${verdict.skipped}`);
}

const healthy: Script = ({ path, query }, response) => {
  if (query.get('watch') === 'true') return void response.writeHead(200).flushHeaders();
  sendJson(
    response,
    path.endsWith('/nodes') ? listOf('Node', [nodeObject('node-1', '1', '10.0.0.0/24')], '1') : listOf('Pod', [], '1'),
  );
};

test('API: nothing is found where everything is granted', async (t) => {
  t.deepEqual(await findingsOf(t, healthy), []);
});

test('API: Nodes are read page by page', async (t) => {
  const server = await startScriptedApi(t, (request, response) => {
    const [name, next] = request.query.has('continue') ? ['b'] : ['a', 'more'];
    if (!request.path.endsWith('/nodes') || request.query.has('watch')) return healthy(request, response);
    return sendJson(response, listOf('Node', [nodeObject(name, '1', '10.0.0.0/24')], '1', next));
  });
  const source = { current: async () => server.credentials, expire: () => {} };
  const { nodes } = await readApi(server.client(), source, 'a', AbortSignal.timeout(10_000));
  t.deepEqual([...(nodes?.keys() ?? [])], ['a', 'b']);
});

test('API: each right that is missing is named, that to watch too', async (t) => {
  const found = await findingsOf(t, (request, response) => {
    if (request.query.get('watch') !== 'true' && request.path.endsWith('/nodes')) return healthy(request, response);
    return sendJson(response, statusBody(403, 'Forbidden', 'no'), 403);
  });
  t.deepEqual(
    found.map(({ evidence, remedy }) => [/cannot (\w+ \w+) /.exec(evidence[0] ?? '')?.[1], /ClusterRole/.test(remedy)]),
    [
      ['list pods', true],
      ['watch nodes', true],
      ['watch pods', true],
    ],
  );
});

test('API: a token that is refused is told once', async (t) => {
  const found = await findingsOf(t, (_, response) => sendJson(response, statusBody(401, 'Unauthorized', 'no'), 401));
  t.is(found.length, 1);
  t.regex(found[0]?.evidence.join() ?? '', /401/);
});

test('API: clocks that differ are told, with the direction', async (t) => {
  const shifted =
    (ms: number): Script =>
    (request, response) => {
      response.setHeader('date', new Date(Date.now() + ms).toUTCString());
      return healthy(request, response);
    };
  const [behind] = await findingsOf(t, shifted(600_000));
  t.regex(behind?.summary ?? '', /^the clock of this node is (599|600|601) s behind that of the API server$/);
  const [ahead] = await findingsOf(t, shifted(-600_000));
  t.regex(ahead?.summary ?? '', /ahead of/);
  t.deepEqual(await findingsOf(t, shifted(5_000)), []);
});

test('API: credentials that cannot be used are told as they are', async (t) => {
  const current = async () => {
    throw new ConfigError({
      key: 'kubeconfig',
      expected: 'a readable file',
      received: 'no such file',
      remedy: 'give --kubeconfig',
    });
  };
  const [found] = await findingsOf(t, healthy, { current, expire: () => {} });
  t.deepEqual(found?.evidence, ['cannot use kubeconfig: expected a readable file, got no such file']);
  t.is(found?.remedy, 'give --kubeconfig');
});
