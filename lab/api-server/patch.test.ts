import test from 'ava';
import fc from 'fast-check';
import * as patches from './patch.ts';
import { StatusError } from './status.ts';

const parsePatch = (contentType: string, patch: unknown) => patches.parsePatch(contentType, () => patch);

const MERGE = 'application/merge-patch+json';
const STRATEGIC = 'application/strategic-merge-patch+json';
const JSON_PATCH = 'application/json-patch+json';

/** RFC 7396, appendix A, as far as the patch is an object. */
const merges: readonly (readonly [document: unknown, patch: unknown, result: unknown])[] = [
  [{ a: 'b' }, { a: 'c' }, { a: 'c' }],
  [{ a: 'b' }, { b: 'c' }, { a: 'b', b: 'c' }],
  [{ a: 'b' }, { a: null }, {}],
  [{ a: 'b', b: 'c' }, { a: null }, { b: 'c' }],
  [{ a: ['b'] }, { a: 'c' }, { a: 'c' }],
  [{ a: 'c' }, { a: ['b'] }, { a: ['b'] }],
  [{ a: { b: 'c' } }, { a: { b: 'd', c: null } }, { a: { b: 'd' } }],
  [{ a: [{ b: 'c' }] }, { a: [1] }, { a: [1] }],
  [{ e: null }, { a: 1 }, { e: null, a: 1 }],
  [[1, 2], { a: 'b', c: null }, { a: 'b' }],
  [{}, { a: { bb: { ccc: null } } }, { a: { bb: {} } }],
];

for (const [document, patch, result] of merges) {
  test(`merge patch: ${JSON.stringify(patch)} of ${JSON.stringify(document)}`, (t) => {
    t.deepEqual(parsePatch(MERGE, patch)(document), result);
  });
}

/** RFC 6902, appendix A. */
const operations: readonly (readonly [document: unknown, patch: readonly unknown[], result: unknown])[] = [
  [{ foo: 'bar' }, [{ op: 'add', path: '/baz', value: 'qux' }], { foo: 'bar', baz: 'qux' }],
  [{ foo: ['bar', 'baz'] }, [{ op: 'add', path: '/foo/1', value: 'qux' }], { foo: ['bar', 'qux', 'baz'] }],
  [{ foo: ['bar'] }, [{ op: 'add', path: '/foo/-', value: ['abc'] }], { foo: ['bar', ['abc']] }],
  [{ baz: 'qux', foo: 'bar' }, [{ op: 'remove', path: '/baz' }], { foo: 'bar' }],
  [{ foo: ['bar', 'qux', 'baz'] }, [{ op: 'remove', path: '/foo/1' }], { foo: ['bar', 'baz'] }],
  [{ baz: 'qux' }, [{ op: 'replace', path: '/baz', value: 'boo' }], { baz: 'boo' }],
  [{ foo: { bar: 1 }, qux: {} }, [{ op: 'move', from: '/foo/bar', path: '/qux/thud' }], { foo: {}, qux: { thud: 1 } }],
  [{ foo: ['all', 'cows'] }, [{ op: 'move', from: '/foo/0', path: '/foo/1' }], { foo: ['cows', 'all'] }],
  [{ foo: 1 }, [{ op: 'copy', from: '/foo', path: '/bar' }], { foo: 1, bar: 1 }],
  [{ baz: ['a', 2] }, [{ op: 'test', path: '/baz/1', value: 2 }], { baz: ['a', 2] }],
  [
    { '/': 9, '~1': 10 },
    [
      { op: 'test', path: '/~01', value: 10 },
      { op: 'remove', path: '/~1' },
    ],
    { '~1': 10 },
  ],
  [{ foo: 1 }, [{ op: 'replace', path: '', value: { bar: 2 } }], { bar: 2 }],
];

for (const [document, patch, result] of operations) {
  test(`JSON patch: ${JSON.stringify(patch)}`, (t) => {
    const before = structuredClone(document);
    t.deepEqual(parsePatch(JSON_PATCH, patch)(document), result);
    t.deepEqual(document, before);
  });
}

for (const [patch, code] of [
  [{}, 400],
  [[{ op: 'jump', path: '/a' }], 400],
  [[{ op: 'constructor', path: '/a' }], 400],
  [[{ op: 'add', path: 'a', value: 1 }], 400],
  [[{ op: 'add', path: '/x' }], 400],
  [[{ op: 'move', path: '/x' }], 400],
  [[{ op: 'remove', path: '/absent' }], 422],
  [[{ op: 'replace', path: '/absent', value: 1 }], 422],
  [[{ op: 'add', path: '/absent/x', value: 1 }], 422],
  [[{ op: 'add', path: '/list/3', value: 1 }], 422],
  [[{ op: 'add', path: '/list/01', value: 1 }], 422],
  [[{ op: 'remove', path: '/toString' }], 422],
  [[{ op: 'test', path: '/list', value: [1] }], 422],
] as const) {
  test(`JSON patch: ${JSON.stringify(patch)} is refused with ${code}`, (t) => {
    const apply = () => parsePatch(JSON_PATCH, patch)({ list: [1, 2] });
    t.is(t.throws(apply, { instanceOf: StatusError })?.code, code);
  });
}

test('strategic patch: without directives it is a merge patch, with them it is refused', (t) => {
  t.deepEqual(parsePatch(STRATEGIC, { metadata: { labels: { a: '1' } } })({ metadata: {} }), {
    metadata: { labels: { a: '1' } },
  });
  for (const directive of [{ spec: { '$setElementOrder/ports': [] } }, { spec: { ports: [{ $patch: 'delete' }] } }]) {
    t.is(t.throws(() => parsePatch(STRATEGIC, directive), { instanceOf: StatusError })?.code, 400);
  }
});

test('parsePatch: server-side apply is refused with 415', (t) => {
  t.is(t.throws(() => parsePatch('application/apply-patch+yaml', {}), { instanceOf: StatusError })?.code, 415);
});

test('merge patch: applied twice it changes nothing more, and a field named __proto__ is only a field', (t) => {
  fc.assert(
    fc.property(
      fc.dictionary(fc.string(), fc.jsonValue()),
      fc.dictionary(fc.string(), fc.jsonValue()),
      (document, patch) => {
        const once = parsePatch(MERGE, patch)(document);
        t.deepEqual(parsePatch(MERGE, patch)(once), once);
      },
    ),
  );
  const hostile = JSON.parse('{"__proto__":{"polluted":true}}');
  for (const patched of [
    parsePatch(MERGE, hostile)({}),
    parsePatch(JSON_PATCH, [{ op: 'add', path: '/__proto__', value: { polluted: true } }])({}),
  ]) {
    t.is(JSON.stringify(patched), '{"__proto__":{"polluted":true}}');
    t.is((patched as { polluted?: boolean }).polluted, undefined);
  }
});
