import test from 'ava';
import { jsonEncoding, negotiate } from './encoding.ts';
import { KINDS } from './kinds.ts';
import { StatusError } from './status.ts';
import { Store } from './store.ts';
import { formatAge } from './table.ts';

test('jsonEncoding: lists, single objects and events of any type put an object into text once', (t) => {
  const store = new Store();
  const json = jsonEncoding(KINDS.node);
  let serialised = 0;
  const spec = Object.defineProperty({}, 'toJSON', { value: () => ++serialised });
  const stored = store.create(KINDS.node, { metadata: { name: 'n' }, spec });
  json.object(stored);
  json.list([stored, stored], { resourceVersion: '1' });
  t.not(json.event('ADDED', stored), json.event('MODIFIED', stored));
  t.is(serialised, 1);
});

test('jsonEncoding: the line of an event is the same bytes for every watcher, also of an object that is gone', (t) => {
  const store = new Store();
  const json = jsonEncoding(KINDS.node);
  const stored = store.create(KINDS.node, { metadata: { name: 'n' } });
  t.is(json.event('ADDED', stored), json.event('ADDED', stored));
  store.delete(KINDS.node, { namespace: '', name: 'n' });
  const history = store.history(KINDS.node);
  const { gone } = history.at(history.next - 1);
  t.is(json.event('DELETED', gone), json.event('DELETED', history.at(history.next - 1).gone));
});

test('negotiate: the first form that is spoken', (t) => {
  const json = jsonEncoding(KINDS.node);
  const isTable = (accept: string) => negotiate(accept, KINDS.node, new URLSearchParams(), json) !== json;
  for (const accept of ['', '*/*', 'application/json', 'application/*;q=0.8', 'text/html, application/json'])
    t.false(isTable(accept));
  t.false(isTable('application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json'));
  t.true(isTable('application/json;as=Table;g=meta.k8s.io;v=v1,application/json'));
  t.false(isTable('application/json, application/json;as=Table;g=meta.k8s.io;v=v1'));
  t.is(t.throws(() => isTable('application/vnd.kubernetes.protobuf'), { instanceOf: StatusError })?.code, 406);
});

test('formatAge: the largest unit of which there are two', (t) => {
  const ages = [-5, 0, 119, 120, 7199, 7200, 2 * 86_400 - 1, 2 * 86_400].map((seconds) => formatAge(seconds * 1000));
  t.deepEqual(ages, ['0s', '0s', '119s', '2m', '119m', '2h', '47h', '2d']);
  t.is(formatAge(Number.NaN), '<unknown>');
});
