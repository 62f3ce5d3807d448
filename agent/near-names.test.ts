import test from 'ava';
import { nearNames } from './near-names.ts';

const NAMES = ['default/web', 'default/web-2', 'kube-system/kube-dns', 'shop/checkout', 'shop/dns'];

const NEAR: readonly (readonly [given: string, near: string])[] = [
  ['default/wbe', 'default/web'],
  ['shop/web', 'default/web'],
  ['defualt/web', 'default/web'],
  ['shop/chekcout', 'shop/checkout'],
  ['default/kube-dns', 'kube-system/kube-dns'],
  ['default/nothing-like-it', ''],
  ['', ''],
];
for (const [given, near] of NEAR)
  test(`near ${JSON.stringify(given)}: ${near || 'nothing'}`, (t) => {
    t.is(nearNames(given, NAMES).join(' '), near);
  });

test('a name of ten thousand is looked for in all, and no more than a few are told', (t) => {
  const many = Array.from({ length: 10_000 }, (_, i) => `default/web-${i}`);
  t.deepEqual(nearNames('default/web-77x', many).length, 3);
});
