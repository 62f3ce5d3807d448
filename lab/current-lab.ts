/** The lab that a command is about, and what is in it by name. */
import { type LabControl, type LabStatus, labControl } from './control.ts';
import { LabError } from './lab-error.ts';
import { DEFAULT_LAB_DIR, type LabLayout, labLayout } from './layout.ts';
import { checkRoot } from './preflight.ts';

/** Of the lab that TULLE_LAB_DIR names, or the only one. Throws LabError. */
export const layout = (): LabLayout => labLayout(process.env['TULLE_LAB_DIR'] || DEFAULT_LAB_DIR);

export const control = (): LabControl => labControl(layout());

/** Throws LabError: not root, or no lab is up. */
export async function readStatus(): Promise<LabStatus> {
  checkRoot();
  return control().status();
}

/** Throws LabError. */
export function findNode({ nodes }: LabStatus, name: string): LabStatus['nodes'][number] {
  const node = nodes.find((candidate) => candidate.name === name);
  if (node) return node;
  const expected = `one of ${nodes.map((candidate) => candidate.name).join(', ')}`;
  throw new LabError({ operation: 'find the node', expected, received: JSON.stringify(name) });
}

/** `NAME` in the namespace default, or `NAMESPACE/NAME`. Throws LabError. */
export function findPod({ pods }: LabStatus, name: string): LabStatus['pods'][number] {
  const full = name.includes('/') ? name : `default/${name}`;
  const pod = pods.find((candidate) => `${candidate.namespace}/${candidate.name}` === full);
  if (pod) return pod;
  throw new LabError({
    operation: 'find the pod',
    expected: 'a pod of the lab',
    received: JSON.stringify(name),
    remedy: 'see `tulle lab pod ls`',
  });
}
