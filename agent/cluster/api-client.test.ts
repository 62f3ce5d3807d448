import type { ServerResponse } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { createAuthority } from '../../test/support/certificates.ts';
import { eventLine, listOf, sendJson, startScriptedApi, statusBody } from '../../test/support/scripted-api.ts';
import type { IpAddress } from '../model/ip.ts';
import { ApiClient } from './api-client.ts';
import { ApiError, failure, isForbidden, isGone, isUnauthorized, isUnavailable } from './api-error.ts';
import { tlsSettings } from './credentials.ts';

const never = () => new AbortController().signal;
const list = (client: ApiClient, signal = never()) => client.list('/api/v1/nodes', { limit: '500' }, signal);

async function failureOf(promise: Promise<unknown>): Promise<ApiError> {
  const error = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (error instanceof ApiError) return error;
  throw new Error(`expected an ApiError, got ${error}`);
}

async function watchAll(client: ApiClient, { idleMs = 10_000, signal = never() } = {}): Promise<unknown[]> {
  const events: unknown[] = [];
  for await (const batch of client.watch('/api/v1/nodes', { watch: 'true' }, { idleMs, signal })) events.push(...batch);
  return events;
}

test('list sends token, query and nothing to write, and keeps its connection', async (t) => {
  const api = await startScriptedApi(t, (_, response) => sendJson(response, listOf('Node', [], '7')));
  const client = api.client();
  t.deepEqual(await list(client), listOf('Node', [], '7'));
  await list(client);
  const [first, second] = api.requests;
  t.is(first?.path, '/api/v1/nodes');
  t.is(first?.query.get('limit'), '500');
  t.is(first?.headers.authorization, 'Bearer secret');
  t.is(first?.headers.accept, 'application/json');
  t.is(first?.connection, second?.connection as number);
});

test('list goes below the path of the server address', async (t) => {
  const api = await startScriptedApi(t, (_, response) => sendJson(response, {}));
  await list(api.client({ credentials: { server: `${api.url}/k8s/clusters/c-1` } }));
  t.is(api.requests[0]?.path, '/k8s/clusters/c-1/api/v1/nodes');
});

test('a refusal carries status, reason and wish of the server, and a remedy', async (t) => {
  const refusals: readonly [number, object | string][] = [
    [401, statusBody(401, 'Unauthorized', 'Unauthorized')],
    [403, statusBody(403, 'Forbidden', 'nodes is forbidden: User "x" cannot list resource "nodes"')],
    [410, statusBody(410, 'Expired', 'The provided continue parameter is too old')],
    [503, '<html>\nproxy error</html>'],
    [302, ''],
  ];
  const api = await startScriptedApi(t, ({ number }, response) => {
    const [status, body] = refusals[number - 1] as [number, object];
    sendJson(response, body, status, status === 503 ? { 'retry-after': '7' } : {});
  });
  const client = api.client();
  const at = `cannot list nodes at ${api.url}: expected`;
  const unauthorized = await failureOf(list(client));
  t.true(isUnauthorized(unauthorized) && !isForbidden(unauthorized));
  t.is(
    unauthorized.message,
    `${at} the token of the test to be accepted, got 401 Unauthorized (Unauthorized); renew it; it is read again at every attempt`,
  );
  const forbidden = await failureOf(list(client));
  t.true(isForbidden(forbidden));
  t.is(
    forbidden.message,
    `${at} the right to list nodes, got 403 Forbidden (nodes is forbidden: User "x" cannot list resource "nodes"); grant get, list and watch of nodes to this user (ClusterRole and ClusterRoleBinding)`,
  );
  const gone = await failureOf(list(client));
  t.true(isGone(gone) && gone.reason === 'Expired');
  const unavailable = await failureOf(list(client));
  t.true(isUnavailable(unavailable));
  t.is(unavailable.retryAfterMs, 7000);
  t.is((await failureOf(list(client))).status, 302);
});

test('a 401 expires the credentials', async (t) => {
  let expired = 0;
  const api = await startScriptedApi(t, (_, response) => sendJson(response, {}, 401));
  const client = new ApiClient({ credentials: { current: async () => api.credentials, expire: () => expired++ } });
  t.teardown(() => client.close());
  await failureOf(list(client));
  t.is(expired, 1);
});

test('new TLS settings take effect at the next request, a new token too, and open streams go on', async (t) => {
  const api = await startScriptedApi(t, ({ query }, response) => {
    if (query.has('watch')) response.write(eventLine('ADDED', {}));
    else sendJson(response, {});
  });
  let credentials = api.credentials;
  const client = new ApiClient({ credentials: { current: async () => credentials, expire: () => {} } });
  t.teardown(() => client.close());
  const watch = client.watch('/api/v1/nodes', { watch: 'true' }, { idleMs: 10_000, signal: never() });
  await watch.next();
  await watch.next();
  credentials = { ...credentials, token: 'other' };
  await list(client);
  await list(client);
  credentials = {
    ...credentials,
    tls: tlsSettings({ server: api.url, onlyName: 'elsewhere', ca: api.authority.certificate }),
  };
  await failureOf(list(client));
  t.deepEqual(
    api.requests.map(({ headers }) => headers.authorization),
    ['Bearer secret', 'Bearer other', 'Bearer other'],
  );
  t.is(api.requests[1]?.connection, api.requests[2]?.connection as number);
  await watch.return(undefined);
});

test('connections from an address that the host lost are ended, others go on', async (t) => {
  let stream: ServerResponse | undefined;
  const api = await startScriptedApi(t, (_, response) => {
    stream = response;
    response.write(eventLine('ADDED', {}));
  });
  const client = api.client();
  const watch = client.watch('/api/v1/nodes', { watch: 'true' }, { idleMs: 10_000, signal: never() });
  await watch.next();
  await watch.next();
  client.closeConnectionsFrom(new Set(['127.0.0.2' as IpAddress]));
  stream?.write(eventLine('MODIFIED', {}));
  t.like((await watch.next()).value, [{ type: 'MODIFIED' }]);
  client.closeConnectionsFrom(new Set(['127.0.0.1' as IpAddress]));
  t.true(isUnavailable(await failureOf(watch.next())));
});

test('a certificate of another name is refused with both names, and any of the accepted names will do', async (t) => {
  const api = await startScriptedApi(t, (_, response) => sendJson(response, {}), {
    names: ['DNS:kubernetes.default.svc', 'IP:192.0.2.1'],
  });
  const error = await failureOf(list(api.client()));
  t.is(error.reason, 'ERR_TLS_CERT_ALTNAME_INVALID');
  t.is(
    error.message,
    `cannot list nodes at ${api.url}: expected a name in the server's certificate that was asked for, got a certificate for kubernetes.default.svc, 192.0.2.1 instead of 127.0.0.1; use an address or name that the certificate has (--api-server, or tls-server-name in the kubeconfig), or issue a new one`,
  );
  const withName = (input: object) =>
    api.client({ credentials: { tls: tlsSettings({ server: api.url, ca: api.authority.certificate, ...input }) } });
  t.deepEqual(await list(withName({ otherName: 'kubernetes.default.svc' })), {});
  t.deepEqual(await list(withName({ onlyName: 'kubernetes.default.svc' })), {});
  t.deepEqual(await list(withName({ onlyName: '192.0.2.1' })), {});
  t.deepEqual(await list(withName({ ca: undefined, insecure: true })), {});
  t.is((await failureOf(list(withName({ otherName: 'api.example' })))).reason, 'ERR_TLS_CERT_ALTNAME_INVALID');
});

test('an expired certificate, an unknown authority and a server without TLS are told apart', async (t) => {
  const authority = await createAuthority(t);
  const expired = await authority.issue('expired', { names: ['IP:127.0.0.1'], days: -1 });
  const answer = (_: unknown, response: Parameters<typeof sendJson>[0]) => sendJson(response, {});
  const old = await startScriptedApi(t, answer, { authority, serving: expired });
  t.regex(
    (await failureOf(list(old.client()))).message,
    /expected a valid server certificate, got one that has expired; renew/,
  );
  const other = await startScriptedApi(t, answer);
  const stranger = other.client({
    credentials: { tls: tlsSettings({ server: other.url, ca: authority.certificate }) },
  });
  const unknown = await failureOf(list(stranger));
  t.regex(
    unknown.message,
    /expected a server certificate signed by the configured certificate authority, got .*; check that the authority/,
  );
  t.true(isUnavailable(unknown));
  const noCa = other.client({ credentials: { tls: tlsSettings({ server: other.url }) } });
  t.regex((await failureOf(list(noCa))).message, /signed by the configured certificate authority/);
});

test('a refused connection has its own words, as other errors have by their code', async (t) => {
  const api = await startScriptedApi(t, () => {});
  const at = (server: string) => api.client({ credentials: { server } });
  t.is(
    (await failureOf(list(at('https://127.0.0.1:1')))).message,
    'cannot list nodes at https://127.0.0.1:1: expected a listening API server, got connection refused; check the address and port (--api-server) and that the API server runs',
  );
  const words = (code: string) =>
    failure({ verb: 'watch', path: '/api/v1/pods' }, Object.assign(new Error('some text'), { code })).message;
  t.is(
    words('EAI_AGAIN'),
    "cannot watch pods: expected the server's name to resolve, got some text; give an address that needs no cluster DNS (--api-server)",
  );
  t.regex(
    words('EHOSTUNREACH'),
    /expected a route to the server, got some text; give the address of a control-plane node/,
  );
  t.regex(words('EPROTO'), /expected a TLS handshake/);
  t.is(words('ESOMETHING'), 'cannot watch pods: expected an answer, got some text; tried again');
});

test('a client certificate is shown to the server', async (t) => {
  let subject: unknown;
  const api = await startScriptedApi(t, (_, response) => {
    subject = (response.socket as unknown as { getPeerCertificate(): { subject: { CN: string } } }).getPeerCertificate()
      .subject.CN;
    sendJson(response, {});
  });
  const { certificate, key } = await api.authority.issue('client', { commonName: 'tulle' });
  await list(
    api.client({
      credentials: { tls: tlsSettings({ server: api.url, ca: api.authority.certificate, certificate, key }) },
    }),
  );
  t.is(subject, 'tulle');
});

test('an answer that is no JSON, too large, cut off or absent is an ApiError', async (t) => {
  const api = await startScriptedApi(t, ({ number }, response) => {
    if (number === 1) response.end('<html>');
    if (number === 2) response.end('x'.repeat(2000));
    if (number === 3) response.write('{"a":', () => response.destroy());
  });
  const client = api.client({ limits: { answerBytes: 1000 } });
  t.is((await failureOf(list(client))).reason, 'Malformed');
  t.is((await failureOf(list(client))).reason, 'TooLarge');
  const cut = await failureOf(list(client));
  t.is(cut.status, 0);
  t.regex(cut.message, /expected a whole answer, got aborted/);
  const silent = await failureOf(list(api.client({ limits: { answerMs: 300 } })));
  t.is(silent.reason, 'Timeout');
  t.regex(silent.message, /expected something within 0.3 s, got nothing/);
});

test('list and watch end with the signal, with its reason', async (t) => {
  const api = await startScriptedApi(t, ({ query }, response) => {
    if (query.has('watch')) response.write('\n');
  });
  const client = api.client();
  const reason = new Error('stop');
  for (const act of [
    (signal: AbortSignal) => list(client, signal),
    (signal: AbortSignal) => watchAll(client, { signal }),
  ]) {
    const controller = new AbortController();
    const running = act(controller.signal);
    setTimeout(() => controller.abort(reason), 50);
    t.is(await t.throwsAsync(running), reason);
    t.is(await t.throwsAsync(act(AbortSignal.abort(reason))), reason);
  }
});

test('watch says first that it is open, then yields events until the proper end', async (t) => {
  const api = await startScriptedApi(t, (_, response) => {
    response.flushHeaders();
    setTimeout(() => response.end(eventLine('ADDED', { a: 1 }) + eventLine('DELETED', { a: 'é' })), 20);
  });
  const batches = await Array.fromAsync(
    api.client().watch('/api/v1/nodes', { watch: 'true', resourceVersion: '5' }, { idleMs: 10_000, signal: never() }),
  );
  t.deepEqual(batches, [
    [],
    [
      { type: 'ADDED', object: { a: 1 } },
      { type: 'DELETED', object: { a: 'é' } },
    ],
  ]);
  t.is(api.requests[0]?.query.get('resourceVersion'), '5');
});

test('watch gives what came before a fault, then the fault', async (t) => {
  const faults: Readonly<Record<string, (response: ServerResponse) => unknown>> = {
    ECONNRESET: (response) => response.destroy(),
    Truncated: (response) => response.end('{"type":"ADD'),
    Malformed: (response) => response.write('garbage\n'),
    TooLarge: (response) => response.write('x'.repeat(5000)),
    Timeout: () => {},
  };
  let open: ServerResponse | undefined;
  const api = await startScriptedApi(t, (_, response) => {
    open = response;
    response.write(eventLine('ADDED', {}));
  });
  const client = api.client({ limits: { lineBytes: 1000 } });
  for (const [reason, fault] of Object.entries(faults)) {
    const seen: unknown[] = [];
    const read = async () => {
      for await (const batch of client.watch('/api/v1/nodes', {}, { idleMs: 1000, signal: never() })) {
        seen.push(...batch);
        if (batch.length > 0) fault(open as ServerResponse);
      }
    };
    t.is((await failureOf(read())).reason, reason);
    t.is(seen.length, 1);
  }
});

test('watch counts silence from the last byte, not from the start', async (t) => {
  const line = eventLine('ADDED', {});
  const api = await startScriptedApi(t, async (_, response) => {
    for (const part of line.match(/.{1,4}\n?/gs) ?? []) {
      response.write(part);
      await sleep(200);
    }
    response.end();
  });
  t.deepEqual(await watchAll(api.client(), { idleMs: 1000 }), [{ type: 'ADDED', object: {} }]);
});

test('a slow consumer of a watch slows the server', async (t) => {
  const all = 2000;
  let written = 0;
  const line = eventLine('ADDED', { text: 'x'.repeat(50_000) });
  const api = await startScriptedApi(t, (_, response) => {
    const write = () => {
      while (written < all) {
        written++;
        if (!response.write(line)) return;
      }
      response.end();
    };
    response.on('drain', write);
    write();
  });
  const watch = api.client().watch('/api/v1/nodes', {}, { idleMs: 10_000, signal: never() });
  await watch.next();
  await sleep(500);
  t.true(written < all, 'everything was taken in without anybody asking');
  let events = 0;
  for await (const batch of watch) events += batch.length;
  t.is(events, all);
});

test('a consumer that stops ends the connection', async (t) => {
  let closed: () => void;
  const end = new Promise<void>((resolve) => {
    closed = resolve;
  });
  const api = await startScriptedApi(t, (_, response) => {
    response.on('close', () => closed());
    response.write(eventLine('ADDED', {}));
  });
  for await (const _ of api.client().watch('/api/v1/nodes', {}, { idleMs: 10_000, signal: never() })) break;
  await end;
  t.pass();
});
