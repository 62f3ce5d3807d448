/** Where things are measured: lab nodes with Tulle's agent, and nodes alike without one for what others do. */
import { type LabControl, type LabOptions, type LabStatus, labControl } from '../lab/control.ts';
import { labLayout, nodeLayout } from '../lab/layout.ts';
import { type RunningNode, startNode } from '../lab/node.ts';
import { DEFAULT_OPTIONS, startLabProcess } from '../lab/up.ts';

const layoutOf = (name: string) => labLayout(`/run/tulle-lab-${name}`);

/** A lab of its own, when every agent is ready. It ends with this process's namespaces. Throws LabError. */
export async function startTulle(name: string, options: Partial<LabOptions>): Promise<TulleLab> {
  const layout = layoutOf(name);
  await startLabProcess(layout, { ...DEFAULT_OPTIONS, ...options }, () => undefined);
  const control = labControl(layout);
  return { control, status: await control.status() };
}

export interface TulleLab {
  readonly control: LabControl;
  readonly status: LabStatus;
}

/** A node as those of a lab, but with nothing in it. It dies with this process. Throws LabError. */
export const startPlainNode = (name: string, signal: AbortSignal): Promise<RunningNode> =>
  startNode(name, nodeLayout(layoutOf('plain'), name), signal);
