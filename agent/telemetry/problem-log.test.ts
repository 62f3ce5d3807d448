import test from 'ava';
import { pino } from 'pino';
import { ProblemLog } from './problem-log.ts';

function newLog() {
  const lines: string[] = [];
  const write = (line: string) => {
    const { level, cause, problem } = JSON.parse(line) as Record<string, unknown>;
    lines.push(`${level} ${cause}: ${problem}`);
  };
  return { lines, log: new ProblemLog(pino({ base: null }, { write })) };
}

const of = (...problems: string[]) => problems.map((problem) => ({ cause: 'services', problem }));

test('ProblemLog: each problem is told when it comes and when it is over', (t) => {
  const { lines, log } = newLog();
  log.note(of('a', 'b', 'a'));
  log.note(of('b', 'a'));
  log.note([...of('b'), { cause: 'plan', problem: 'b' }]);
  log.note(of('a'));
  t.deepEqual(lines, [
    '40 services: a',
    '40 services: b',
    '40 plan: b',
    '30 services: a',
    '40 services: a',
    '30 services: b',
    '30 plan: b',
  ]);
});

test('ProblemLog: thousands are told one part after the other, and none is lost', (t) => {
  const { lines, log } = newLog();
  const many = of(...Array.from({ length: 120 }, (_, i) => String(i)));
  log.note(many);
  t.is(lines.length, 50);
  for (let i = 0; i < 5; i++) log.note(many);
  t.is(new Set(lines).size, 120);
  t.is(lines.length, 120);
});
