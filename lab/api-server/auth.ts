/** Who asks, and whether that user may. */

import type { IncomingMessage } from 'node:http';
import type { TLSSocket } from 'node:tls';
import { READING_VERBS, type ResourceRequest, resourceOf } from './routes.ts';
import { qualified, StatusError, unauthorized } from './status.ts';

/** Users and what they may do; everything can be changed while the server runs. */
export class Access {
  readonly #tokens: Map<string, string>;
  readonly #readOnly = new Set<string>();
  readonly #writeAttempts = new Map<string, number>();

  constructor(tokens: ReadonlyMap<string, string>) {
    this.#tokens = new Map(tokens);
  }

  setToken(token: string, user: string): void {
    this.#tokens.set(token, user);
  }

  /** Open watches go on, as on a real server; the next request is refused with 401. */
  revokeToken(token: string): void {
    this.#tokens.delete(token);
  }

  /** Read-only users may get, list and watch. */
  setReadOnly(user: string, readOnly: boolean): void {
    if (readOnly) this.#readOnly.add(user);
    else this.#readOnly.delete(user);
  }

  /** How many writes a user asked for, allowed or not. */
  writeAttempts(user: string): number {
    return this.#writeAttempts.get(user) ?? 0;
  }

  /**
   * A client certificate counts before a token, as on a real server; its common name is the user. Throws StatusError
   * 401 for anonymous requests, unknown tokens and certificates that the client authority did not sign.
   */
  authenticate(request: IncomingMessage): string {
    const user = certificateUser(request.socket as TLSSocket) ?? this.#tokenUser(request.headers.authorization ?? '');
    if (user === undefined) throw unauthorized();
    return user;
  }

  /** Throws StatusError 403. */
  authorize(user: string, request: ResourceRequest): void {
    const { verb } = request;
    if (verb === undefined || READING_VERBS.includes(verb)) return;
    this.#writeAttempts.set(user, this.writeAttempts(user) + 1);
    if (this.#readOnly.has(user)) throw forbidden(user, request);
  }

  #tokenUser(authorization: string): string | undefined {
    const [, token] = /^Bearer +(\S+) *$/i.exec(authorization) ?? [];
    return token === undefined ? undefined : this.#tokens.get(token);
  }
}

function certificateUser(socket: TLSSocket): string | undefined {
  if (!socket.authorized) return undefined;
  const commonName: unknown = socket.getPeerCertificate().subject?.CN;
  return typeof commonName === 'string' ? commonName : undefined;
}

function forbidden(user: string, request: ResourceRequest): StatusError {
  const { row, ref, verb } = request;
  const where = ref.namespace ? `in the namespace "${ref.namespace}"` : 'at the cluster scope';
  const object = `${qualified(row)}${ref.name ? ` "${ref.name}"` : ''}`;
  const what = `User "${user}" cannot ${verb} resource "${resourceOf(request)}" in API group "${row.group}" ${where}`;
  return new StatusError(403, 'Forbidden', `${object} is forbidden: ${what}`, {
    ...(ref.name && { name: ref.name }),
    ...(row.group && { group: row.group }),
    kind: row.resource,
  });
}
