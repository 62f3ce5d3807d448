import test from 'ava';
import { Samples } from './samples.ts';
import { judge, PROXY } from './tun-targets.ts';

const samplesOf = (figures: readonly (readonly [figure: string, place: string, value: number])[]): Samples => {
  const samples = new Samples();
  for (const [figure, place, value] of figures) samples.add(figure, place, 0, [value]);
  return samples;
};
const least = [
  { place: 'tun whole', what: 'one stream', figure: 'stream', unit: 'Gbit/s', per: 1e9, least: 4, leastRatio: 5 },
];
const most = [{ place: 'tun whole', what: 'memory', figure: 'rss', unit: 'MiB', most: 140 }];

test('a target is reached when the figure and its ratio to the proxy are', (t) => {
  const verdict = (own: number, proxy: number) =>
    judge(
      samplesOf([
        ['stream', 'tun whole', own],
        ['stream', PROXY, proxy],
      ]),
      least,
    );
  t.deepEqual(verdict(5e9, 1e9), [
    'reached  tun whole, one stream: 5.000 Gbit/s, 5.00 (at least 4 Gbit/s, at least 5 of the proxy)',
  ]);
  t.regex(verdict(3.9e9, 0.5e9)[0] as string, /^MISSED .*3\.900 Gbit\/s, 7\.80 /);
  t.regex(verdict(5e9, 1.1e9)[0] as string, /^MISSED .*5\.000 Gbit\/s, 4\.55 /);
});

test('without the proxy in the run, what is to be compared with it is missed and says so', (t) => {
  t.regex(judge(samplesOf([['stream', 'tun whole', 5e9]]), least)[0] as string, /^MISSED .*nothing to compare/);
});

test('what has an upper bound is missed above it; what was not measured is not told', (t) => {
  t.regex(judge(samplesOf([['rss', 'tun whole', 140]]), most)[0] as string, /^reached /);
  t.regex(judge(samplesOf([['rss', 'tun whole', 141]]), most)[0] as string, /^MISSED /);
  t.deepEqual(judge(samplesOf([]), most), []);
});
