/** Thread that destroys links: the request blocks its thread for milliseconds, inside the kernel. See reaper.ts. */
import { parentPort, workerData } from 'node:worker_threads';
import { KernelError } from '../errors.ts';
import { type DoomedLink, deleteLinks } from './group-deletion.ts';
import { NETLINK_PROTOCOL } from './message.ts';
import { NetlinkSocket } from './socket.ts';

export interface DeletionWorkerData {
  /** Namespace of the links, as an fd of the process. */
  readonly netnsFd?: number | undefined;
}
export interface DeletionJob {
  readonly id: number;
  readonly links: readonly DoomedLink[];
}
export interface DeletionResult {
  readonly id: number;
  /** Fields of the KernelError, which does not survive the way between threads as one. */
  readonly error?: {
    readonly code: string;
    readonly operation: string;
    readonly object: string;
    readonly detail: string | undefined;
  };
}

const { netnsFd } = workerData as DeletionWorkerData;
const client = new NetlinkSocket(NETLINK_PROTOCOL.ROUTE, { netnsFd });
/** One job after the other: each sees what the one before has left. */
let turn: Promise<void> = Promise.resolve();

parentPort?.on('message', (job: DeletionJob) => {
  turn = turn.then(() => work(job)).then((result) => parentPort?.postMessage(result));
});

async function work({ id, links }: DeletionJob): Promise<DeletionResult> {
  try {
    await deleteLinks(client, links);
    return { id };
  } catch (error) {
    if (error instanceof KernelError) {
      const { code, operation, object, detail } = error;
      return { id, error: { code, operation, object, detail } };
    }
    return { id, error: { code: 'EIO', operation: 'delete', object: `${links.length} links`, detail: String(error) } };
  }
}
