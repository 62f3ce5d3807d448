import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import fc from 'fast-check';
import { cidr, ip } from '../../../test/support/cluster-values.ts';
import { hostileBytes } from '../../../test/support/hostile-bytes.ts';
import { parseCidr, parseIp } from '../../model/ip.ts';
import { forgetSavedPath, readSavedPath, type SavedPath, savePath } from './saved-path.ts';

function fileOf(t: ExecutionContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'tulle-saved-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  return join(directory, 'tun.json');
}

const saved: SavedPath = {
  path: {
    link: 'tulle-tun',
    local: ip('192.0.2.1'),
    port: 8285,
    carriage: 'whole',
    encryption: 'aes-gcm',
    secretFile: '/etc/tulle/secret',
  },
  peers: [
    { node: 'b', end: ip('2001:db8::2'), podCidrs: [cidr('10.84.1.0/24'), cidr('fd84:0:0:1::/64')] },
    { node: 'c', end: ip('192.0.2.3'), podCidrs: [] },
  ],
};

test('what is saved is read back, for its owner only, and forgotten', (t) => {
  const file = fileOf(t);
  t.is(readSavedPath(file), undefined);
  savePath(file, saved);
  t.deepEqual(readSavedPath(file), saved);
  t.is(statSync(file).mode & 0o777, 0o600);
  savePath(file, { ...saved, peers: [] });
  t.deepEqual(readSavedPath(file)?.peers, []);
  t.deepEqual(readdirSync(join(file, '..')), ['tun.json']);
  forgetSavedPath(file);
  t.false(existsSync(file));
  t.notThrows(() => forgetSavedPath(file));
});

const wrong: Readonly<Record<string, unknown>> = {
  'no object': [null, 1, 'x', [], {}],
  'no path': { peers: [] },
  'no peers': { path: saved.path },
  'peers that are no list': { ...saved, peers: {} },
  'a peer that is none': { ...saved, peers: [null] },
  'a peer without prefixes': { ...saved, peers: [{ node: 'b', end: '192.0.2.2' }] },
  'an end that is no address': { ...saved, peers: [{ node: 'b', end: '192.0.2', podCidrs: [] }] },
  'an end in another form': { ...saved, peers: [{ node: 'b', end: '2001:DB8::2', podCidrs: [] }] },
  'a prefix with bits of a host': { ...saved, peers: [{ node: 'b', end: '192.0.2.2', podCidrs: ['10.84.1.1/24'] }] },
  'a number for a node': { ...saved, peers: [{ node: 1, end: '192.0.2.2', podCidrs: [] }] },
  'a local end that is none': { ...saved, path: { ...saved.path, local: 'localhost' } },
  'port 0': { ...saved, path: { ...saved.path, port: 0 } },
  'port 65536': { ...saved, path: { ...saved.path, port: 65_536 } },
  'a port of text': { ...saved, path: { ...saved.path, port: '8285' } },
  'half a port': { ...saved, path: { ...saved.path, port: 8285.5 } },
  'a carriage that nobody knows': { ...saved, path: { ...saved.path, carriage: 'half' } },
  'an encryption that nobody knows': { ...saved, path: { ...saved.path, encryption: 'rot13' } },
  'a secret that is no path': { ...saved, path: { ...saved.path, secretFile: 7 } },
  'a link without name': { ...saved, path: { ...saved.path, link: undefined } },
};
for (const [what, value] of Object.entries(wrong)) {
  test(`readSavedPath: ${what} is not believed`, (t) => {
    const file = fileOf(t);
    for (const each of Array.isArray(value) ? value : [value]) {
      writeFileSync(file, JSON.stringify(each));
      t.is(readSavedPath(file), undefined);
    }
  });
}

test('readSavedPath: never throws, and what it returns has addresses only', (t) => {
  const file = fileOf(t);
  const right = [Buffer.from(JSON.stringify(saved))];
  fc.assert(
    fc.property(hostileBytes(right), (bytes) => {
      writeFileSync(file, bytes);
      const read = readSavedPath(file);
      if (!read) return;
      t.is(parseIp(read.path.local), read.path.local);
      for (const { end, podCidrs } of read.peers) {
        t.is(parseIp(end), end);
        for (const each of podCidrs) t.is(parseCidr(each), each);
      }
    }),
    { numRuns: 500 },
  );
});
