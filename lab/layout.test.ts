import test from 'ava';
import { LabError } from './lab-error.ts';
import { cgroupRoot, labLayout, nodeLayout } from './layout.ts';

test('labLayout derives every place from the directory', (t) => {
  const layout = labLayout('/run/tulle-lab-x1');
  t.is(layout.controlSocket, '/run/tulle-lab-x1/control.sock');
  t.regex(layout.cgroup, /\/tulle-lab-x1$/);
  t.is(nodeLayout(layout, 'node-1').agentLog, '/run/tulle-lab-x1/nodes/node-1/agent.log');
});

test('labLayout refuses a directory whose removal could hit something else', (t) => {
  for (const dir of [
    '/',
    '/run',
    'tulle-lab',
    '/run/tulle',
    '/run/tulle-labor',
    '/run/tulle-lab/..',
    '/run/x;y/tulle-lab',
    '',
  ]) {
    t.throws(() => labLayout(dir), { instanceOf: LabError }, dir);
  }
});

test('cgroupRoot finds the v2 hierarchy of pure and hybrid hosts, and says what to do without one', (t) => {
  t.is(cgroupRoot('proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n'), '/sys/fs/cgroup');
  t.is(
    cgroupRoot('cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\nx /sys/fs/cgroup/unified cgroup2 rw 0 0\n'),
    '/sys/fs/cgroup/unified',
  );
  t.throws(() => cgroupRoot('proc /proc proc rw 0 0\n'), { message: /find cgroup v2: .*mount -t cgroup2/ });
});
