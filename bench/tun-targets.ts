/** What the tunnel is to reach, and whether it did. */
import { quantile, type Samples } from './samples.ts';

interface Target {
  readonly place: string;
  readonly what: string;
  readonly figure: string;
  /** Of all values; median unless said. */
  readonly share?: number;
  readonly unit: string;
  /** Values are divided by this. */
  readonly per?: number;
  readonly least?: number;
  readonly most?: number;
  /** To the proxy. */
  readonly leastRatio?: number;
}

export const PROXY = 'proxy';
const GBIT = { figure: 'stream', what: 'one stream', unit: 'Gbit/s', per: 1e9 };

const stream = (place: string, least: number, leastRatio?: number): Target => ({
  place,
  ...GBIT,
  least,
  ...(leastRatio !== undefined && { leastRatio }),
});

const everyCarrier = (place: string): readonly Target[] => [
  { place, what: 'round trips on one CPU', figure: 'one rr', unit: '/s', leastRatio: 0.9 },
  { place, what: 'UDP packets received on one CPU', figure: 'one udp', unit: '/s', leastRatio: 1 },
  { place, what: 'round trips', figure: 'all rr', unit: '/s', leastRatio: 0.9 },
  { place, what: 'UDP packets received', figure: 'all udp', unit: '/s', leastRatio: 1 },
  { place, what: 'lag of the main thread, p99', figure: 'lag p99', unit: 'ms', most: 20 },
  { place, what: 'memory at its worst', figure: 'rss', share: 1, unit: 'MiB', most: 140 },
];

export const TARGETS: readonly Target[] = [
  stream('tun segments', 2.5, 3),
  stream('tun whole', 4, 5),
  stream('tun aes-gcm segments', 0.6),
  stream('tun aes-gcm whole', 2),
  ...['tun segments', 'tun whole'].flatMap(everyCarrier),
];

/** One line a target whose place was measured. Pure. */
export const judge = (samples: Samples, targets: readonly Target[] = TARGETS): readonly string[] =>
  targets.flatMap((target) => {
    const { place, what, figure, share = 0.5, unit, per = 1, least, most, leastRatio } = target;
    const value = quantile(samples.all(figure, place), share);
    if (value === undefined) return [];
    const shown = value / per;
    const ratio = samples.ratio(figure, place, PROXY);
    const isReached =
      (least === undefined || shown >= least) &&
      (most === undefined || shown <= most) &&
      (leastRatio === undefined || (ratio !== undefined && ratio >= leastRatio));
    const bounds = [
      ...(least === undefined ? [] : [`at least ${least} ${unit}`]),
      ...(most === undefined ? [] : [`at most ${most} ${unit}`]),
      ...(leastRatio === undefined ? [] : [`at least ${leastRatio} of the ${PROXY}`]),
    ];
    const seen = `${shown.toPrecision(4)} ${unit}${leastRatio === undefined ? '' : `, ${ratio?.toFixed(2) ?? 'nothing to compare'}`}`;
    return [`${isReached ? 'reached' : 'MISSED '}  ${place}, ${what}: ${seen} (${bounds.join(', ')})`];
  });
