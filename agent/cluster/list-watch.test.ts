import type { ServerResponse } from 'node:http';
import test, { type ExecutionContext } from 'ava';
import { pino } from 'pino';
import {
  eventLine,
  listOf,
  nodeObject,
  type ScriptedRequest,
  sendJson,
  startScriptedApi,
  statusBody,
} from '../../test/support/scripted-api.ts';
import { until } from '../../test/support/until.ts';
import { nameKey } from './fields.ts';
import { ListWatch, type ListWatchTiming } from './list-watch.ts';
import { narrowNode } from './narrow.ts';
import { ObjectCache } from './object-cache.ts';

const QUICK = { backoffMinMs: 5, backoffMaxMs: 40, healthyMs: 10_000 } as const;

type Answer = (request: ScriptedRequest, response: ServerResponse) => unknown;

/** A list+watch of nodes against a server that gives `lists` and `watches` in order, the last of each for ever. */
async function follow(
  t: ExecutionContext,
  {
    lists,
    watches,
    timing = {},
    answerMs = 20_000,
  }: { lists: readonly Answer[]; watches: readonly Answer[]; timing?: Partial<ListWatchTiming>; answerMs?: number },
) {
  const seen = { lists: [] as ScriptedRequest[], watches: [] as ScriptedRequest[] };
  const api = await startScriptedApi(t, (request, response) => {
    const [requests, answers] = request.query.has('watch') ? [seen.watches, watches] : [seen.lists, lists];
    requests.push(request);
    (answers[Math.min(requests.length, answers.length) - 1] as Answer)(request, response);
  });
  const changes: string[] = [];
  const logged: { level: number; msg: string }[] = [];
  const cache = new ObjectCache({
    keyOf: nameKey,
    narrow: narrowNode,
    changed: (keys) =>
      changes.push(
        [...keys]
          .sort()
          .map((key) => `${key}=${cache.objects.get(key)?.podCidrs ?? 'gone'}`)
          .join(' '),
      ),
  });
  const watch = new ListWatch({
    client: api.client({ limits: { answerMs } }),
    resource: { name: 'nodes', path: '/api/v1/nodes', query: { labelSelector: 'a=b' } },
    sink: cache,
    log: pino({ level: 'debug' }, { write: (line: string) => void logged.push(JSON.parse(line)) }),
    timing: { ...QUICK, ...timing },
  });
  const controller = new AbortController();
  const running = watch.run(controller.signal);
  const stop = () => {
    controller.abort();
    return running;
  };
  t.teardown(stop);
  return {
    api,
    cache,
    changes,
    logged,
    watch,
    seen,
    stop,
    versions: () => seen.watches.map(({ query }) => query.get('resourceVersion')),
  };
}

const list =
  (version: string, ...names: readonly (readonly [name: string, podCidr: string])[]): Answer =>
  (_, response) =>
    sendJson(
      response,
      listOf(
        'Node',
        names.map(([name, podCidr]) => nodeObject(name, '1', podCidr)),
        version,
      ),
    );
const page =
  (version: string, names: readonly string[], next?: string): Answer =>
  (_, response) =>
    sendJson(
      response,
      listOf(
        'Node',
        names.map((name) => nodeObject(name, '1', '10.0.0.0/24')),
        version,
        next,
      ),
    );
const stream =
  (...lines: readonly string[]): Answer =>
  (_, response) =>
    response.write(lines.join('') || '\n');
const ended =
  (...lines: readonly string[]): Answer =>
  (_, response) =>
    response.end(lines.join(''));
const cut: Answer = (_, response) => response.destroy();
const gone: Answer = (_, response) => sendJson(response, statusBody(410, 'Expired', 'too old resource version'), 410);
const refuse =
  (code: number): Answer =>
  (_, response) =>
    sendJson(response, statusBody(code, 'Refused', 'no'), code);
const bookmark = (version: string) => eventLine('BOOKMARK', { kind: 'Node', metadata: { resourceVersion: version } });
const modified = (name: string, version: string, cidr: string) =>
  eventLine('MODIFIED', nodeObject(name, version, cidr));

test('lists in pages, then watches from the version of the list with bookmarks and a random end', async (t) => {
  const { cache, seen, watch } = await follow(t, {
    lists: [page('10', ['a', 'b'], 'token-1'), page('10', ['c'], 'token-2'), page('10', ['d'])],
    watches: [stream()],
    timing: { pageSize: 2 },
  });
  await until(() => watch.status().connected, 'the watch is open');
  t.deepEqual([...cache.objects.keys()].sort(), ['a', 'b', 'c', 'd']);
  t.deepEqual(
    seen.lists.map(({ query }) => Object.fromEntries(query)),
    [
      { labelSelector: 'a=b', limit: '2' },
      { labelSelector: 'a=b', limit: '2', continue: 'token-1' },
      { labelSelector: 'a=b', limit: '2', continue: 'token-2' },
    ],
  );
  const { timeoutSeconds, ...query } = Object.fromEntries(seen.watches[0]?.query ?? []);
  t.deepEqual(query, { labelSelector: 'a=b', watch: 'true', resourceVersion: '10', allowWatchBookmarks: 'true' });
  t.true(Number(timeoutSeconds) >= 300 && Number(timeoutSeconds) <= 600);
  t.like(watch.status(), { synced: true, resourceVersion: '10', relists: 0, error: undefined });
});

test('events change the content; bookmarks and unknown events only the version', async (t) => {
  const { changes, watch } = await follow(t, {
    lists: [list('10', ['a', '10.0.1.0/24'])],
    watches: [
      stream(
        eventLine('ADDED', nodeObject('b', '11', '10.0.2.0/24')),
        modified('a', '12', '10.0.9.0/24'),
        eventLine('DELETED', nodeObject('b', '13')),
        eventLine('SOMETHING', { metadata: { resourceVersion: '14' } }),
        bookmark('15'),
      ),
    ],
  });
  await until(() => watch.status().resourceVersion === '15', 'the bookmark arrived');
  t.deepEqual(changes, ['a=10.0.1.0/24', 'a=10.0.9.0/24']);
  t.true(Date.now() - (watch.status().lastEventMs ?? 0) < 60_000);
});

test('after a proper end the watch goes on from the last version, without a list', async (t) => {
  const { seen, watch, versions } = await follow(t, {
    lists: [list('10')],
    watches: [ended(modified('a', '12', '10.0.1.0/24')), ended(bookmark('20')), stream()],
  });
  await until(() => versions().length === 3, 'three watches');
  t.deepEqual(versions(), ['10', '12', '20']);
  t.is(seen.lists.length, 1);
  t.is(watch.status().error, undefined);
});

test('a connection that is cut or refuses is resumed without a list and loses nothing', async (t) => {
  /** Cut when the client has taken in what came before. */
  const cutAfter =
    (version: string, text: string): Answer =>
    async (_, response) => {
      response.write(text);
      await until(() => watch.status().resourceVersion === version, `version ${version}`);
      response.destroy();
    };
  const { seen, cache, logged, versions, watch } = await follow(t, {
    lists: [list('10', ['a', '10.0.1.0/24'])],
    watches: [
      cut,
      cutAfter('11', modified('b', '11', '10.0.2.0/24')),
      cutAfter('12', `${modified('c', '12', '10.0.3.0/24')}{"type":"MOD`),
      refuse(503),
      stream(`${modified('d', '13', '10.0.4.0/24')}garbage\n`),
      stream(modified('d', '13', '10.0.4.0/24')),
    ],
  });
  await until(() => cache.objects.has('d'), 'the last event');
  t.deepEqual(versions(), ['10', '10', '11', '12', '12', '12']);
  t.is(seen.lists.length, 1, 'the garbage was one refusal of two');
  t.deepEqual([...cache.objects.keys()].sort(), ['a', 'b', 'c', 'd']);
  t.true(logged.some(({ msg }) => msg === 'watch interrupted') && logged.some(({ msg }) => msg === 'watch resumed'));
});

test('a server that accepts and says nothing is asked again', async (t) => {
  const { seen, watch } = await follow(t, {
    lists: [() => {}, list('10')],
    watches: [() => {}, stream()],
    answerMs: 1000,
  });
  await until(() => watch.status().connected, 'watching');
  t.true(seen.lists.length >= 2 && seen.watches.length >= 2);
});

for (const [name, answer] of [
  ['as the status of a watch', gone],
  ['as an event', stream(eventLine('ERROR', statusBody(410, 'Expired', 'too old resource version: 10 (99)')))],
  [
    'as an event after a change',
    stream(modified('a', '11', '10.0.8.0/24'), eventLine('ERROR', statusBody(410, 'Gone', 'x'))),
  ],
] as const) {
  test(`410 ${name}: the old content stays until the new list is whole, then the difference shows`, async (t) => {
    const old = ['a', 'b'];
    const shown: string[][] = [];
    const whole = list('50', ['a', '10.0.9.0/24'], ['c', '10.0.3.0/24']);
    const { cache, changes, watch, versions } = await follow(t, {
      lists: [
        list('10', ['a', '10.0.1.0/24'], ['b', '10.0.2.0/24']),
        refuse(500),
        page('49', ['a'], 'more'),
        (...args) => {
          shown.push([...cache.objects.keys()].sort());
          cut(...args);
        },
        whole,
      ],
      watches: [answer, stream()],
    });
    await until(() => versions().length === 2 && watch.status().connected, 'watching again');
    t.deepEqual(shown, [old]);
    t.is(changes.at(-1), 'a=10.0.9.0/24 b=gone c=10.0.3.0/24');
    t.deepEqual(versions(), ['10', '50']);
    t.like(watch.status(), { relists: 1, expired: 1 });
  });
}

test('what came before an ERROR in the same breath is kept', async (t) => {
  const error = eventLine('ERROR', statusBody(500, 'InternalError', 'no'));
  const { changes, versions } = await follow(t, {
    lists: [list('10')],
    watches: [stream(modified('a', '11', '10.0.8.0/24') + error), stream()],
  });
  await until(() => versions().length === 2, 'resumed');
  t.deepEqual(changes, ['a=10.0.8.0/24']);
  t.deepEqual(versions(), ['10', '11']);
});

test('410 between two pages: the list begins again without a continue token', async (t) => {
  const { cache, seen, watch } = await follow(t, {
    lists: [page('10', ['a', 'old'], 'token-1'), gone, page('20', ['a', 'b'], 'token-2'), page('20', ['c'])],
    watches: [stream()],
  });
  await until(() => watch.status().connected, 'watching');
  t.deepEqual(
    seen.lists.map(({ query }) => query.get('continue')),
    [null, 'token-1', null, 'token-2'],
  );
  t.deepEqual([...cache.objects.keys()].sort(), ['a', 'b', 'c']);
});

test('an answer that only looks like an empty cluster removes nothing', async (t) => {
  const bodies = [
    {},
    [],
    'text',
    { kind: 'Status', metadata: { resourceVersion: '1' }, items: [] },
    { kind: 'NodeList', metadata: {}, items: [] },
    { kind: 'NodeList', metadata: { resourceVersion: '1' } },
  ];
  const { cache, seen, watch } = await follow(t, {
    lists: [
      list('10', ['a', '10.0.1.0/24']),
      ...bodies.map(
        (body): Answer =>
          (_, response) =>
            sendJson(response, body),
      ),
      list('30', ['a', '10.0.1.0/24']),
    ],
    watches: [gone, stream()],
  });
  await until(() => watch.status().connected && seen.lists.length > 1, 'watching again');
  t.is(seen.lists.length, bodies.length + 2);
  t.deepEqual([...cache.objects.keys()].sort(), ['a']);
});

test('a list that repeats its continue token is given up, and tried again', async (t) => {
  const { watch, cache } = await follow(t, {
    lists: [page('1', ['a'], 'x'), page('1', ['a'], 'x'), page('1', ['b'])],
    watches: [stream()],
  });
  await until(() => watch.status().connected, 'watching');
  t.deepEqual([...cache.objects.keys()].sort(), ['b']);
});

test('a server that went back in time is listed again after its second refusal', async (t) => {
  const { versions, watch } = await follow(t, {
    lists: [list('900'), list('5')],
    watches: [refuse(504), refuse(504), stream()],
  });
  await until(() => versions().length === 3 && watch.status().connected, 'watching');
  t.deepEqual(versions(), ['900', '900', '5']);
});

test('401 and 403 are said, keep the version and the content, and end by themselves', async (t) => {
  const { seen, cache, versions, watch, logged } = await follow(t, {
    lists: [list('10', ['a', '10.0.1.0/24'])],
    watches: [refuse(401), refuse(401), refuse(401), refuse(403), refuse(403), refuse(403), stream()],
  });
  await until(() => versions().length === 5, 'refused');
  t.regex(watch.status().error ?? '', /got 40[13] Refused \(no\)/);
  t.false(watch.status().connected);
  await until(() => watch.status().connected, 'watching');
  t.deepEqual([seen.lists.length, cache.objects.size, watch.status().error], [1, 1, undefined]);
  t.is(logged.filter(({ level }) => level === 40).length, 2, 'one warning for each reason');
});

test('requests stay few while a server refuses, ends or expires everything at once', async (t) => {
  for (const watches of [[ended()], [refuse(500)], [gone], [cut], [ended(bookmark('11'))]]) {
    const { seen, stop } = await follow(t, {
      lists: [list('10')],
      watches,
      timing: { backoffMinMs: 20, backoffMaxMs: 100_000 },
    });
    await until(() => seen.watches.length >= 3, 'three attempts');
    await new Promise((resolve) => setTimeout(resolve, 300));
    t.true(seen.lists.length + seen.watches.length < 20, `${seen.lists.length} lists, ${seen.watches.length} watches`);
    await stop();
  }
});

test('a watch that was healthy is resumed at once, whatever came before', async (t) => {
  const endsLater: Answer = (_, response) => {
    response.flushHeaders();
    setTimeout(() => response.end('\n'), 400);
  };
  // Without a new start in the middle, the waits would add up to half a minute.
  const cuts = new Array<Answer>(6).fill(cut);
  const { versions, watch } = await follow(t, {
    lists: [list('10')],
    watches: [...cuts, endsLater, ...cuts, stream()],
    timing: { backoffMinMs: 10, backoffMaxMs: 60_000, healthyMs: 100 },
  });
  await until(() => versions().length === 14 && watch.status().connected, 'watching', 15_000);
  t.pass();
});

test('Retry-After is kept to, up to the longest backoff', async (t) => {
  const { seen, watch } = await follow(t, {
    lists: [(_, response) => sendJson(response, {}, 429, { 'retry-after': '3600' }), list('10')],
    watches: [stream()],
    timing: { backoffMinMs: 1, backoffMaxMs: 2000 },
  });
  await until(() => seen.lists.length === 1, 'refused');
  await new Promise((resolve) => setTimeout(resolve, 150));
  t.is(seen.lists.length, 1);
  await until(() => watch.status().connected, 'watching');
});

test('silence beyond the time of a watch ends it, and it is resumed', async (t) => {
  const { versions, watch } = await follow(t, {
    lists: [list('10')],
    watches: [stream(bookmark('11')), stream()],
    timing: { watchSeconds: [0, 0], graceMs: 1000 },
  });
  await until(() => versions().length === 2, 'resumed');
  t.is(versions()[1], '11');
  await until(() => watch.status().connected, 'the resumed watch is open');
});

test('run ends with the signal, at any point', async (t) => {
  for (const watches of [[stream()], [cut], [() => {}]]) {
    const { seen, stop, watch } = await follow(t, {
      lists: [list('10')],
      watches: watches as Answer[],
      timing: { backoffMinMs: 60_000, backoffMaxMs: 60_000 },
    });
    await until(() => seen.watches.length === 1, 'watching');
    await stop();
    t.false(watch.status().connected);
  }
});
