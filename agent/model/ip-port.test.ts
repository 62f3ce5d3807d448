import test from 'ava';
import { ipPortText, parseIpPort } from './ip-port.ts';

const canonical = (text: string): string | undefined => {
  const parsed = parseIpPort(text);
  return parsed && ipPortText(parsed);
};

test('an address and a port, with the address in canonical form', (t) => {
  const good: readonly (readonly [string, string])[] = [
    ['127.0.0.1:9440', '127.0.0.1:9440'],
    ['0.0.0.0:1', '0.0.0.0:1'],
    ['[::1]:65535', '[::1]:65535'],
    ['[::]:9440', '[::]:9440'],
    ['[FD00:0::1]:80', '[fd00::1]:80'],
  ];
  for (const [text, expected] of good) t.is(canonical(text), expected, text);
});

test('anything else is none', (t) => {
  const bad =
    ' |9440|:9440|127.0.0.1|127.0.0.1:|127.0.0.1:0|127.0.0.1:65536|127.0.0.1:080|127.0.0.1:9a|127.0.0.1:-1|::1:9440|[::1]|[::1]9440|[127.0.0.1]:80|localhost:80|[fe80::1%eth0]:80|127.0.0.1:80:81|http://127.0.0.1:80|[::1]:80]|256.0.0.1:80';
  for (const text of ['', ...bad.split('|')]) t.is(canonical(text), undefined, text);
});
