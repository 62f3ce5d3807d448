import { setFlagsFromString } from 'node:v8';

/**
 * Has V8 compile what runs more than a few times. By itself it waits for 400 calls of a function and for 500 in which
 * nothing new was seen: most of what a pod costs is run once a pod, so that a node which gets a hundred a day would
 * interpret it for ever. Interpreted code is the slower the longer nobody asked, as it lies about in the memory more than
 * compiled code does.
 *
 * Only Maglev, whose compilation is cheap; and only after the start, which would be compiled for nothing. Some 10 MB once
 * pods come.
 */
export function compileEarly(): void {
  setFlagsFromString('--invocation-count-for-maglev=20');
  setFlagsFromString('--minimum-invocations-after-ic-update=5');
}
