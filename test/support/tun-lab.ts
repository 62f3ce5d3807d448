/** What agents of a live lab say of the tunnel that they carry. */
import type { AgentStatus } from '../../agent/agent-status.ts';
import { until } from '../../lab/until.ts';
import { agentStatus } from './agent-status.ts';
import { TIMEOUT_MS } from './lab.ts';
import type { LiveLab } from './live-lab.ts';

export const statusOf = ({ lab }: LiveLab, name: string): Promise<AgentStatus | undefined> =>
  agentStatus(lab().node(name));

/** Waits for such a status, and says which one there is if it does not come. */
export async function untilStatus(
  live: LiveLab,
  name: string,
  describe: string,
  holds: (status: AgentStatus) => boolean,
): Promise<AgentStatus> {
  let last: AgentStatus | undefined;
  const check = async () => {
    last = await statusOf(live, name);
    return last !== undefined && holds(last);
  };
  const wait = { describe: `${describe} on ${name}`, deadlineMs: TIMEOUT_MS, intervalMs: 50 };
  await until(check, wait).catch((cause: unknown) => {
    throw new Error(`${name} says: ${JSON.stringify([last?.tunnel, last?.kernel.failing])}`, { cause });
  });
  return last as AgentStatus;
}

export const isAgreed = ({ tunnel }: AgentStatus): boolean =>
  tunnel !== undefined && tunnel.peers.length > 0 && tunnel.peers.every(({ state }) => state === 'agreed');

/** Whether some peer is in this state, with a problem that says so. */
export const hasPeer =
  (state: string, problem: RegExp) =>
  ({ tunnel }: AgentStatus): boolean =>
    tunnel?.peers.some((peer) => peer.state === state && problem.test(peer.problem ?? '')) ?? false;
