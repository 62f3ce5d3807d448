import test from 'ava';
import { KINDS } from './kinds.ts';
import type { ApiObject } from './objects.ts';
import { parseFieldSelector, parseLabelSelector } from './selectors.ts';
import { StatusError } from './status.ts';

const labelled = (labels: Record<string, string>): ApiObject => ({
  kind: 'Pod',
  apiVersion: 'v1',
  metadata: { name: 'p', namespace: 'default', labels },
});

const objects: Readonly<Record<string, ApiObject>> = {
  none: labelled({}),
  web: labelled({ app: 'web' }),
  webProd: labelled({ app: 'web', 'example.com/tier': 'prod' }),
  db: labelled({ app: 'db', empty: '' }),
};

const cases: readonly (readonly [selector: string, matched: string])[] = [
  ['', 'none web webProd db'],
  ['app', 'web webProd db'],
  ['!app', 'none'],
  ['app=web', 'web webProd'],
  ['app==web', 'web webProd'],
  ['app = web', 'web webProd'],
  ['app!=web', 'none db'],
  ['app in (web, db)', 'web webProd db'],
  ['app in (web,db),example.com/tier', 'webProd'],
  ['app notin (web)', 'none db'],
  ['app=web,example.com/tier!=prod', 'web'],
  ['empty=', 'db'],
  ['constructor', ''],
  ['toString!=x', 'none web webProd db'],
];

for (const [selector, matched] of cases) {
  test(`parseLabelSelector: ${selector || 'nothing'} matches ${matched || 'none of them'}`, (t) => {
    const matches = parseLabelSelector(selector);
    t.is(
      Object.keys(objects)
        .filter((name) => matches(objects[name] as ApiObject))
        .join(' '),
      matched,
    );
  });
}

for (const selector of ['a=b=c', 'a in b', 'a in (b', '=x', 'a,,b', ',', 'a>1', '-a', 'a in ()x', '!a=b', 'a=$']) {
  test(`parseLabelSelector: ${selector} is refused with 400`, (t) => {
    t.is(t.throws(() => parseLabelSelector(selector), { instanceOf: StatusError })?.code, 400);
  });
}

const pod = { ...labelled({}), spec: { nodeName: 'n1' }, status: { phase: 'Running' } };

for (const [selector, matched] of [
  ['', true],
  ['metadata.name=p', true],
  ['metadata.name==q', false],
  ['metadata.name!=q,metadata.namespace=default', true],
  ['spec.nodeName=n1,status.phase!=Succeeded', true],
  ['spec.nodeName=', false],
  ['spec.nodeName!=n1', false],
] as const) {
  test(`parseFieldSelector: ${selector || 'nothing'} ${matched ? 'matches' : 'does not match'}`, (t) => {
    t.is(parseFieldSelector(selector, KINDS.pod)(pod), matched);
  });
}

for (const selector of ['spec.foo=x', 'metadata.name', '=x', 'constructor=x', 'spec.hostname!']) {
  test(`parseFieldSelector: ${selector} is refused with 400`, (t) => {
    t.is(t.throws(() => parseFieldSelector(selector, KINDS.pod), { instanceOf: StatusError })?.code, 400);
  });
}

test('parseFieldSelector: a cluster-wide kind has no metadata.namespace', (t) => {
  t.throws(() => parseFieldSelector('metadata.namespace=default', KINDS.node), { message: /not supported/ });
});
