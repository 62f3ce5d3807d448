/** `ebpf-agent.ts DIRECTORY CGROUP`: an agent that programs one Service, says so, and waits to be killed. */
import { openBpfLane } from '../../agent/kernel/bpf/lane.ts';
import { frontendOf, program, setOf, TEST_SIZES } from './ebpf-node.ts';

const [directory, cgroup] = process.argv.slice(2) as [string, string];
const lane = openBpfLane({ directory, cgroup, sizes: TEST_SIZES });
const set = setOf('ipv4', 0, 1);
await program(lane, { sets: [set], frontends: [frontendOf('ipv4', { target: set.id })] });
console.log(lane.build);
setInterval(() => {}, 60_000);
