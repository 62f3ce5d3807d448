import { setImmediate as nextTurn } from 'node:timers/promises';
import test from 'ava';
import { DeadlineError, Deadlines, withDeadline } from './deadline.ts';

const LONG_MS = 60_000;

/** Work that goes on whatever its signal says, until it is told to end. */
function stubborn() {
  const { promise, resolve } = Promise.withResolvers<string>();
  let signal: AbortSignal | undefined;
  const work = (given: AbortSignal): Promise<string> => {
    signal = given;
    return promise;
  };
  return { work, end: resolve, signal: () => signal };
}

test('Deadlines: what is done in time is handed on, and its failure, too', async (t) => {
  const deadlines = new Deadlines(new AbortController().signal);
  t.is(await deadlines.run(LONG_MS, 'list', async () => 'all'), 'all');
  await t.throwsAsync(
    deadlines.run(LONG_MS, 'list', async () => Promise.reject(new Error('refused'))),
    { message: 'refused' },
  );
});

test('Deadlines: at the deadline the work is told to stop, and nobody waits for it', async (t) => {
  const deadlines = new Deadlines(new AbortController().signal);
  const { work, signal } = stubborn();
  const error = await t.throwsAsync(deadlines.run(1, 'list', work), { instanceOf: DeadlineError });
  t.is(signal()?.reason, error);
});

test('Deadlines: neither the end of what came too late nor its signal touches what comes next', async (t) => {
  const outer = new AbortController();
  const deadlines = new Deadlines(outer.signal);
  const [late, next] = [stubborn(), stubborn()];
  await t.throwsAsync(deadlines.run(1, 'list', late.work), { instanceOf: DeadlineError });
  const running = deadlines.run(LONG_MS, 'apply', next.work);
  late.end('late');
  // Whoever waits for it is told before the next turn.
  await nextTurn();
  t.false(next.signal()?.aborted);
  const stopped = new Error('the agent stops');
  outer.abort(stopped);
  t.is(await t.throwsAsync(running), stopped);
  t.is(next.signal()?.reason, stopped);
  t.is(await t.throwsAsync(deadlines.run(LONG_MS, 'apply', next.work)), stopped);
});

test.serial('withDeadline: leaves neither timer nor listener behind, however it ends', async (t) => {
  const before = process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length;
  const outer = new AbortController();
  let listeners = 0;
  const signal = Object.assign(outer.signal, {
    addEventListener: (...args: Parameters<AbortSignal['addEventListener']>) => {
      listeners++;
      AbortSignal.prototype.addEventListener.apply(outer.signal, args);
    },
    removeEventListener: (...args: Parameters<AbortSignal['removeEventListener']>) => {
      listeners--;
      AbortSignal.prototype.removeEventListener.apply(outer.signal, args);
    },
  });
  await withDeadline(signal, LONG_MS, 'list', async () => 'all');
  await t.throwsAsync(withDeadline(signal, 1, 'list', stubborn().work));
  const running = withDeadline(signal, LONG_MS, 'list', stubborn().work);
  outer.abort(new Error('stop'));
  await t.throwsAsync(running);
  t.is(listeners, 0);
  t.is(process.getActiveResourcesInfo().filter((name) => name === 'Timeout').length, before);
});
