import test from 'ava';
import fc from 'fast-check';
import { KINDS } from './kinds.ts';
import { type ApiObject, valueAt, withField } from './objects.ts';
import { StatusError } from './status.ts';
import { Store } from './store.ts';

const at = (name: string, namespace = '') => ({ namespace, name });

const failureOf = (
  t: { throws: (fn: () => unknown, what: { instanceOf: typeof StatusError }) => StatusError | undefined },
  fn: () => unknown,
) => {
  const { code, reason } = t.throws(fn, { instanceOf: StatusError }) ?? {};
  return `${code} ${reason}`;
};

const withSpec = (spec: unknown) => (object: ApiObject) => withField(object, 'spec', spec);
const withStatus = (status: unknown) => (object: ApiObject) => withField(object, 'status', status);

test('create: the server fills in what is its own, and freezes what it keeps', (t) => {
  const store = new Store({ firstRevision: 1000 });
  const sent = {
    metadata: { name: 'p', uid: 'mine', generation: 7, creationTimestamp: null, deletionTimestamp: 'x' },
    spec: { a: [1] },
  };
  const { object, revision } = store.create(KINDS.pod, sent, 'default');
  t.like(object, {
    kind: 'Pod',
    apiVersion: 'v1',
    status: { phase: 'Pending' },
    metadata: { namespace: 'default', generation: 1 },
  });
  t.is(object.metadata.resourceVersion, String(revision));
  t.is(revision, store.revision);
  t.regex(object.metadata.uid ?? '', /^[0-9a-f-]{36}$/);
  t.regex(object.metadata.creationTimestamp ?? '', /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
  t.is(object.metadata.deletionTimestamp, undefined);
  t.throws(() => (valueAt(object, 'spec', 'a') as number[]).push(2), { instanceOf: TypeError });
});

test('create: refusals', (t) => {
  const store = new Store();
  store.create(KINDS.node, { metadata: { name: 'n' } });
  const create = (body: unknown, namespace?: string) => () =>
    store.create(namespace ? KINDS.pod : KINDS.node, body, namespace);
  const cases: readonly (readonly [expected: string, fn: () => unknown])[] = [
    ['409 AlreadyExists', create({ metadata: { name: 'n' } })],
    ['422 Invalid', create({ metadata: { name: 'Not_A_Name' } })],
    ['422 Invalid', create({ metadata: { name: 'a'.repeat(254) } })],
    ['422 Invalid', create({ metadata: { name: '../x' } })],
    ['422 Invalid', create({ metadata: {} })],
    ['422 Invalid', create({ metadata: { name: 'm', labels: { a: 1 } } })],
    ['422 Invalid', create({ metadata: { name: 'm' }, spec: { podCIDRs: ['10.0.0.0/33'] } })],
    ['422 Invalid', create({ metadata: { name: 'm' }, spec: { podCIDRs: ['10.0.0.0/24', '10.0.1.0/24'] } })],
    ['400 BadRequest', create({ metadata: { name: 'm', resourceVersion: '5' } })],
    ['400 BadRequest', create({ kind: 'Pod', metadata: { name: 'm' } })],
    ['400 BadRequest', create({ apiVersion: 'v2', metadata: { name: 'm' } })],
    ['400 BadRequest', create({ metadata: { name: 7 } })],
    ['400 BadRequest', create({ metadata: [] })],
    ['400 BadRequest', create('text')],
    ['400 BadRequest', create(undefined)],
    ['400 BadRequest', create({ metadata: { name: 'p', namespace: 'other' } }, 'default')],
    ['404 NotFound', create({ metadata: { name: 'p' } }, 'absent')],
  ];
  const before = store.revision;
  for (const [expected, fn] of cases) t.is(failureOf(t, fn), expected, fn.toString());
  t.is(store.revision, before);
});

test('create: generateName makes names that differ', (t) => {
  const store = new Store();
  const names = [1, 2].map(() => store.create(KINDS.node, { metadata: { generateName: 'n-' } }).object.metadata.name);
  t.regex(names[0] as string, /^n-[0-9a-f]{5}$/);
  t.not(names[0], names[1]);
});

test('update: the main resource leaves the status alone and the status subresource everything else', (t) => {
  const store = new Store();
  store.create(KINDS.node, { metadata: { name: 'n' }, spec: { x: 1 }, status: { kept: true } });
  const both = (object: ApiObject) => withSpec({ x: 2 })(withStatus({ kept: false })(object));
  t.like(store.update(KINDS.node, at('n'), both).object, {
    spec: { x: 2 },
    status: { kept: true },
    metadata: { generation: 2 },
  });
  const { object } = store.update(KINDS.node, at('n'), (now) => withSpec({})(withStatus({ kept: false })(now)), {
    part: 'status',
  });
  t.like(object, { spec: { x: 2 }, status: { kept: false }, metadata: { generation: 2 } });
});

test('update: what changes nothing is no write', (t) => {
  const store = new Store();
  const created = store.create(KINDS.node, { metadata: { name: 'n', labels: { a: '1' } }, spec: { x: [1] } });
  const copy = structuredClone(created.object) as ApiObject;
  t.is(
    store.update(KINDS.node, at('n'), () => copy),
    created,
  );
  t.is(store.revision, created.revision);
});

test('update: a write from an older version, or of another object of that name, is a conflict', (t) => {
  const store = new Store();
  const { object } = store.create(KINDS.node, { metadata: { name: 'n' } });
  store.update(KINDS.node, at('n'), withSpec({ x: 1 }));
  t.is(
    failureOf(t, () => store.update(KINDS.node, at('n'), () => withSpec({ x: 2 })(object))),
    '409 Conflict',
  );
  const stranger = { metadata: { name: 'n', uid: 'other' } };
  t.is(
    failureOf(t, () => store.update(KINDS.node, at('n'), () => stranger)),
    '409 Conflict',
  );
  // Without a version the last writer wins.
  const blind = { metadata: { name: 'n' }, spec: { x: 3 } };
  t.like(store.update(KINDS.node, at('n'), () => blind).object, {
    spec: { x: 3 },
    metadata: { uid: object.metadata.uid },
  });
  t.is(
    failureOf(t, () => store.update(KINDS.node, at('absent'), () => blind)),
    '404 NotFound',
  );
  t.is(
    failureOf(t, () => store.update(KINDS.node, at('n'), () => ({ metadata: { name: 'm' } }))),
    '400 BadRequest',
  );
});

test('update: podCIDRs can be set once, and stand in both fields', (t) => {
  const store = new Store();
  store.create(KINDS.node, { metadata: { name: 'n' } });
  const podCIDRs = ['10.0.0.0/24', 'fd00::/64'];
  const { object } = store.update(KINDS.node, at('n'), withSpec({ podCIDRs }));
  t.deepEqual(object['spec'], { podCIDR: '10.0.0.0/24', podCIDRs });
  const older = store.create(KINDS.node, { metadata: { name: 'm' }, spec: { podCIDR: '10.0.1.0/24' } });
  t.deepEqual(older.object['spec'], { podCIDR: '10.0.1.0/24', podCIDRs: ['10.0.1.0/24'] });
  for (const spec of [{ podCIDRs: ['10.0.9.0/24'] }, { podCIDRs: [...podCIDRs].reverse() }, {}, undefined]) {
    const error = t.throws(() => store.update(KINDS.node, at('n'), withSpec(spec)), { instanceOf: StatusError });
    t.is(
      error?.message,
      'Node "n" is invalid: spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid',
    );
    t.like(error?.details, {
      kind: 'Node',
      name: 'n',
      causes: [{ field: 'spec.podCIDRs', reason: 'FieldValueForbidden' }],
    });
  }
});

test('delete: a Pod with a grace period is marked first, and gone with the second call', (t) => {
  const store = new Store();
  store.create(KINDS.pod, { metadata: { name: 'p' } }, 'default');
  const marked = store.delete(KINDS.pod, at('p', 'default'), { graceSeconds: 30 });
  t.is(marked?.object.metadata.deletionGracePeriodSeconds, 30);
  t.true(Date.parse(marked?.object.metadata.deletionTimestamp ?? '') > Date.now() + 20_000);
  t.is(store.delete(KINDS.pod, at('p', 'default'), { graceSeconds: 60 }), marked);
  t.is(store.delete(KINDS.pod, at('p', 'default'), { graceSeconds: 5 })?.object.metadata.deletionGracePeriodSeconds, 5);
  t.is(store.delete(KINDS.pod, at('p', 'default'), { graceSeconds: 0 }), undefined);
  t.is(store.find(KINDS.pod, at('p', 'default')), undefined);
  t.is(
    failureOf(t, () => store.delete(KINDS.pod, at('p', 'default'))),
    '404 NotFound',
  );
});

test('delete: preconditions are kept', (t) => {
  const store = new Store();
  const { object } = store.create(KINDS.pod, { metadata: { name: 'p' } }, 'default');
  for (const preconditions of [{ uid: 'other' }, { resourceVersion: '1' }]) {
    t.is(
      failureOf(t, () => store.delete(KINDS.pod, at('p', 'default'), { preconditions })),
      '409 Conflict',
    );
  }
  store.delete(KINDS.pod, at('p', 'default'), { preconditions: { uid: object.metadata.uid } });
  t.is(store.find(KINDS.pod, at('p', 'default')), undefined);
});

test('dryRun: answers like the write and writes nothing', (t) => {
  const store = new Store();
  store.create(KINDS.node, { metadata: { name: 'n' } });
  const before = store.revision;
  store.create(KINDS.node, { metadata: { name: 'm' } }, '', { dryRun: true });
  t.like(store.update(KINDS.node, at('n'), withSpec({ x: 1 }), { dryRun: true }).object, { spec: { x: 1 } });
  store.delete(KINDS.node, at('n'), { dryRun: true });
  t.is(store.revision, before);
  t.deepEqual(
    store.list(KINDS.node).objects.map(({ object }) => object.metadata.name),
    ['n'],
  );
});

test('listAt: shows every version that history reaches back to, exactly as it was', (t) => {
  const step = fc.record({
    action: fc.constantFrom('create', 'update', 'delete'),
    name: fc.constantFrom('a', 'b', 'c', 'd'),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), fc.integer({ min: 1, max: 50 }), (steps, historyLimit) => {
      const store = new Store({ historyLimit, firstRevision: 100 });
      const seen = new Map([[store.revision, store.list(KINDS.node).objects]]);
      for (const [i, { action, name }] of steps.entries()) {
        const exists = store.find(KINDS.node, at(name)) !== undefined;
        if (!exists) store.create(KINDS.node, { metadata: { name } });
        else if (action === 'delete') store.delete(KINDS.node, at(name));
        else store.update(KINDS.node, at(name), withSpec({ i }));
        seen.set(store.revision, store.list(KINDS.node).objects);
      }
      const { compacted } = store.history(KINDS.node);
      for (const [revision, objects] of seen) {
        if (revision >= compacted) t.deepEqual(store.listAt(KINDS.node, revision), { revision, objects });
        else
          t.is(
            failureOf(t, () => store.listAt(KINDS.node, revision)),
            '410 Expired',
          );
      }
    }),
  );
  t.is(
    failureOf(t, () => new Store({ firstRevision: 5 }).listAt(KINDS.node, 1000)),
    '504 Timeout',
  );
});

test('putUnchecked: an object is as it is sent, keeps its identity, is watched and listed, and can be mended', (t) => {
  const store = new Store();
  const spec = { ports: [{ name: 'tcp', protocol: 'TCP', port: 80 }] };
  const { object: sound } = store.create(KINDS.service, { metadata: { name: 'web' }, spec }, 'default');
  const wrong = { ports: [{ port: 0, protocol: 'DCCP' }] };
  const { object, revision } = store.putUnchecked(KINDS.service, { metadata: { name: 'web' }, spec: wrong }, 'default');
  t.deepEqual(object['spec'], wrong);
  t.deepEqual(
    [object.metadata.uid, object.metadata.creationTimestamp],
    [sound.metadata.uid, sound.metadata.creationTimestamp],
  );
  const history = store.history(KINDS.service);
  const last = history.at(history.next - 1);
  t.deepEqual([last.revision, last.before?.object, last.after?.object], [revision, sound, object]);
  const { object: bare } = store.putUnchecked(KINDS.service, { metadata: { name: 'Not_A_Name' } }, 'default');
  t.regex(bare.metadata.uid ?? '', /^[0-9a-f-]{36}$/);
  t.is(store.list(KINDS.service).objects.length, 2);
  store.update(KINDS.service, at('web', 'default'), withSpec(spec));
  t.like(store.get(KINDS.service, at('web', 'default')).object['spec'], { type: 'ClusterIP' });
  store.delete(KINDS.service, at('Not_A_Name', 'default'));
  t.is(
    failureOf(t, () => store.putUnchecked(KINDS.service, [], 'default')),
    '400 BadRequest',
  );
});
