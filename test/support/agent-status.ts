/** Asks the agent of a lab node without a process of its own, as often as a test likes. */
import type { AgentStatus } from '../../agent/agent-status.ts';
import { AgentUnreachable, askAgent } from '../../agent/commands/ask-agent.ts';
import { type NodeRef, pathOnHost } from '../../lab/node.ts';

/** Of every agent of a lab. */
export const RUN_DIR = '/run/tulle';

/** What the node's agent says of itself; undefined while none answers. One that is not ready does. */
export async function agentStatus(node: NodeRef): Promise<AgentStatus | undefined> {
  try {
    return (await askAgent(pathOnHost(node, RUN_DIR), 'status')) as AgentStatus;
  } catch (error) {
    if (error instanceof AgentUnreachable) return undefined;
    throw error;
  }
}

/** Whether it is ready for pods, and serves Services as it was told: until that of an agent before it may hold. */
export async function isInCharge(node: NodeRef): Promise<boolean> {
  const { readiness, services } = (await agentStatus(node)) ?? {};
  return readiness?.ready === true && (services?.sockets === undefined || services.sockets.scope !== undefined);
}
