/** What the API answers, from parsed JSON (Kubernetes API conventions: lists, watch events, Status). */
import { type ApiError, type ApiRequest, malformed, refusal, type StatusBody } from './api-error.ts';
import type { ObjectEvent } from './object-cache.ts';

export interface Page {
  readonly items: readonly unknown[];
  readonly version: string;
  /** Token of the next page, or ''. */
  readonly next: string;
}

/** Strict, because everything that a list leaves out goes away: `{}` must not count as an empty cluster. */
export function parsePage(request: ApiRequest, body: unknown): Page {
  const { kind, items, metadata } = (body ?? {}) as Record<string, unknown>;
  const { resourceVersion, continue: next } = (metadata ?? {}) as Record<string, unknown>;
  const isList = typeof kind === 'string' && kind.endsWith('List') && (Array.isArray(items) || items === null);
  if (!isList)
    throw malformed(
      request,
      'a list',
      typeof kind === 'string' ? `kind ${JSON.stringify(kind.slice(0, 60))}` : 'no kind',
    );
  if (typeof resourceVersion !== 'string' || resourceVersion === '')
    throw malformed(request, 'metadata.resourceVersion', 'none');
  return {
    items: Array.isArray(items) ? items : [],
    version: resourceVersion,
    next: typeof next === 'string' ? next : '',
  };
}

export interface ParsedEvent {
  readonly version: string | undefined;
  /** Absent for a bookmark, and for kinds of events that are not known. */
  readonly change?: ObjectEvent;
}

/** An ERROR event is an ApiError. */
export function parseEvent(request: ApiRequest, line: unknown): ParsedEvent | ApiError {
  const { type, object } = (line ?? {}) as Record<string, unknown>;
  const fields = (typeof object === 'object' && object !== null ? object : {}) as Record<string, unknown>;
  const { resourceVersion } = (fields['metadata'] ?? {}) as Record<string, unknown>;
  const version = typeof resourceVersion === 'string' && resourceVersion !== '' ? resourceVersion : undefined;
  switch (type) {
    case 'ADDED':
    case 'MODIFIED':
      return { version, change: { type: 'set', object } };
    case 'DELETED':
      return { version, change: { type: 'delete', object } };
    case 'BOOKMARK':
      return { version };
    case 'ERROR':
      return refusal(request, typeof fields['code'] === 'number' ? fields['code'] : 500, statusOf(fields));
    default:
      return typeof type === 'string' ? { version } : malformed(request, 'a watch event', 'a line without a type');
  }
}

/** `reason` and `message` of a Status object, as far as they are there. */
export function statusOf(value: unknown): StatusBody {
  const { reason, message } = (value ?? {}) as Record<string, unknown>;
  return { ...(typeof reason === 'string' && { reason }), ...(typeof message === 'string' && { message }) };
}
