import test from 'ava';
import { ListSchedule } from './list-schedule.ts';

function scheduleAt(start: number) {
  let nowMs = start;
  const schedule = new ListSchedule({
    resyncIntervalMs: 1_000,
    backoff: { minMs: 10, maxMs: 80 },
    now: () => nowMs,
    random: () => 0.5,
  });
  return { schedule, advance: (ms: number) => (nowMs += ms) };
}

const agree = { contradicted: false };

test('ListSchedule: the first list is due at once, the next one after about an interval', (t) => {
  const { schedule } = scheduleAt(5);
  t.is(schedule.dueMs, -Infinity);
  t.is(schedule.stale, 'never listed');
  schedule.begin();
  t.is(schedule.stale, 'never listed', 'what is known is not trusted while the list runs');
  schedule.succeeded(agree);
  t.is(schedule.stale, undefined);
  t.is(schedule.dueMs, 1_005);
});

test('ListSchedule: what takes long to list is listed less often', (t) => {
  const { schedule, advance } = scheduleAt(0);
  for (const [durationMs, pauseMs] of [
    [900, 1_000],
    [1_400, 280_000],
  ] as const) {
    schedule.begin();
    const nowMs = advance(durationMs);
    schedule.succeeded(agree);
    t.is(schedule.dueMs - nowMs, pauseMs);
  }
});

test('ListSchedule: what became stale during a list stays stale and is listed again', (t) => {
  const { schedule } = scheduleAt(0);
  schedule.begin();
  schedule.markStale('overrun');
  schedule.succeeded(agree);
  t.is(schedule.stale, 'overrun');
  t.is(schedule.dueMs, -Infinity);
});

test('ListSchedule: a request during a list means one more list of what can be trusted', (t) => {
  const { schedule } = scheduleAt(0);
  schedule.begin();
  schedule.request();
  schedule.succeeded(agree);
  t.is(schedule.stale, undefined);
  t.is(schedule.dueMs, -Infinity);
});

test('ListSchedule: neither requests nor notices cut the backoff of failing lists short', (t) => {
  const { schedule, advance } = scheduleAt(0);
  let nowMs = 0;
  const steps = Array.from({ length: 6 }, () => {
    schedule.begin();
    schedule.failed('no answer');
    schedule.request();
    schedule.markStale('overrun');
    const step = schedule.dueMs - nowMs;
    nowMs = advance(step);
    return step;
  });
  t.deepEqual(steps, [7.5, 15, 30, 60, 60, 60]);
});

test('ListSchedule: lists fail once three in a row did, until one succeeds; what is merely stale does not', (t) => {
  const { schedule } = scheduleAt(0);
  const told = [1, 2, 3].map(() => {
    schedule.begin();
    schedule.failed('no answer');
    return schedule.failing;
  });
  t.deepEqual(told, [undefined, undefined, 'no answer']);
  schedule.begin();
  schedule.succeeded(agree);
  schedule.markStale('overrun');
  t.is(schedule.failing, undefined);
});

test('ListSchedule: a contradicted list is trusted and done again after a while', (t) => {
  const { schedule } = scheduleAt(0);
  schedule.begin();
  schedule.succeeded({ contradicted: true });
  t.is(schedule.stale, undefined);
  t.is(schedule.dueMs, 7.5);
  schedule.begin();
  schedule.succeeded(agree);
  t.is(schedule.dueMs, 1_000);
});
