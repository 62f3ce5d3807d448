/** What a person reads about the agreement with a peer. */

import type { IpAddress } from '../../model/ip.ts';
import type { TunCarriage, TunEncryption } from '../../model/items.ts';
import type { TunPeerStatus } from './status.ts';

/** What a peer said that cannot go together with this node. Nobody vouches for it where it is not authenticated. */
export type Mismatch =
  | { readonly kind: 'encryption'; readonly theirs: TunEncryption }
  | { readonly kind: 'secret'; readonly epoch: string };

export interface Facts {
  readonly node: string;
  readonly end: IpAddress;
  readonly carriage: TunCarriage;
  readonly encryption: TunEncryption;
  /** How long it has been so, each undefined when it is not. */
  readonly agreedForMs: number | undefined;
  readonly refusedForMs: number | undefined;
  readonly mismatchedForMs: number | undefined;
  readonly mismatch: Mismatch | undefined;
  /** Since the peer was heard, or entered. */
  readonly quietForMs: number;
  readonly hasSecret: boolean;
  /** The session is under the secret before the present one. */
  readonly isUnderFormerSecret: boolean;
}

export type AgreementStatus = Pick<TunPeerStatus, 'state' | 'sinceMs' | 'carriage' | 'encryption' | 'problem'>;

/** Before that, silence means nothing: the peer's agent may have started just now. */
const SILENCE_MS = 5_000;

export function reportOf(facts: Facts): AgreementStatus {
  const { carriage, encryption } = facts;
  const [state, sinceMs, problem] = stateOf(facts);
  return { state, sinceMs, carriage, encryption, ...(problem !== undefined && { problem }) };
}

function stateOf(facts: Facts): [state: AgreementStatus['state'], sinceMs: number, problem: string | undefined] {
  const { node, end, quietForMs, agreedForMs, refusedForMs, mismatchedForMs, mismatch, encryption } = facts;
  if (refusedForMs !== undefined) {
    const remedy = 'see that its agent runs, and that backend and tun.port are the same on all nodes';
    return ['refused', refusedForMs, `Node ${node} refuses the tunnel: nobody listens at ${end}; ${remedy}`];
  }
  if (agreedForMs !== undefined) {
    const late = `Node ${node} does not use the new secret yet: give it the same Secret; the former one ends soon`;
    return ['agreed', agreedForMs, facts.isUnderFormerSecret ? late : undefined];
  }
  if (!facts.hasSecret) {
    return ['mismatch', quietForMs, `Node ${node} cannot be reached: this node has no secret to agree with it`];
  }
  if (mismatch && mismatchedForMs !== undefined) {
    return ['mismatch', mismatchedForMs, mismatchProblem(node, mismatch, encryption)];
  }
  const remedy =
    'see that its agent runs with backend tun and the same tun.port, and that UDP passes between the nodes';
  const problem = `Node ${node} does not answer at ${end} through the tunnel; ${remedy}`;
  return ['silent', quietForMs, quietForMs >= SILENCE_MS ? problem : undefined];
}

function mismatchProblem(node: string, mismatch: Mismatch, own: TunEncryption): string {
  return mismatch.kind === 'encryption'
    ? `Node ${node} has tun.encryption ${mismatch.theirs}, this node has ${own}: set the same on all nodes`
    : `Node ${node} has another secret than this node: give all nodes the same Secret (a new one takes up to two minutes to reach them all)`;
}
