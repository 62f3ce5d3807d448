/** Every failure of a verb as the CNI error that the runtime shows to people. */
import { CNI_CODES, type CniCode, CniError } from '../../cni/protocol.ts';
import { isExists, KernelError } from '../kernel/errors.ts';
import { SettleError } from '../reconcile/reconciler.ts';

/** Codes of the SPEC where one fits: 4 for what the runtime asked for, 11 for what may pass, 5 for the kernel's refusals. */
export function toCniError(cause: unknown, action: string, code?: CniCode): CniError {
  if (cause instanceof CniError) return cause;
  const reason = cause instanceof SettleError ? cause.cause : cause;
  const details = reason instanceof Error ? reason.message : String(reason);
  return new CniError(code ?? codeOf(reason), `cannot ${action}: ${details}`, { cause });
}

/** What may pass by itself: a busy lock, a tool or an answer that took too long. */
const PASSING: ReadonlySet<string> = new Set(['EAGAIN', 'EBUSY', 'EINTR', 'ETIMEDOUT']);

function codeOf(reason: unknown): CniCode {
  if (isExists(reason)) return CNI_CODES.invalidEnvironment;
  if (reason instanceof KernelError) return PASSING.has(reason.code) ? CNI_CODES.tryAgainLater : CNI_CODES.ioFailure;
  return reason instanceof Error && reason.name === 'TimeoutError' ? CNI_CODES.tryAgainLater : CNI_CODES.ioFailure;
}
