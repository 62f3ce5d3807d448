/** What can go wrong between the agent and the API server, with the remedy for the person who reads it. */

/** One request, as messages name it. */
export interface ApiRequest {
  readonly verb: 'list' | 'watch';
  /** Path below the server's address: `/api/v1/nodes`. */
  readonly path: string;
  /** The server's address, once it is known. */
  readonly server?: string;
}

interface ApiProblem {
  readonly request: ApiRequest;
  readonly status: number;
  readonly reason: string;
  readonly expected: string;
  readonly received: string;
  readonly remedy: string;
  readonly retryAfterMs?: number | undefined;
  readonly cause?: unknown;
}

/** Callers branch on the predicates below, never on the text. */
export class ApiError extends Error {
  override readonly name = 'ApiError';
  /** HTTP status, that of an ERROR event in a watch, or 0 when no answer came. */
  readonly status: number;
  /** `Status.reason` of the server, an errno or TLS code, or Timeout, TooLarge, Malformed. */
  readonly reason: string;
  readonly path: string;
  /** The server's own wish (Retry-After), in milliseconds. */
  readonly retryAfterMs: number | undefined;

  constructor({ request, status, reason, expected, received, remedy, retryAfterMs, cause }: ApiProblem) {
    const where = request.server === undefined ? '' : ` at ${request.server}`;
    super(`cannot ${request.verb} ${resourceOf(request)}${where}: expected ${expected}, got ${received}; ${remedy}`, {
      cause,
    });
    this.status = status;
    this.reason = reason;
    this.path = request.path;
    this.retryAfterMs = retryAfterMs;
  }
}

const hasStatus = (error: unknown, ...statuses: readonly number[]): boolean =>
  error instanceof ApiError && statuses.includes(error.status);

/** The server no longer has the version or the list page that was asked for: list again from the start. */
export const isGone = (error: unknown): boolean => hasStatus(error, 410);
export const isUnauthorized = (error: unknown): boolean => hasStatus(error, 401);
export const isForbidden = (error: unknown): boolean => hasStatus(error, 403);
/** No answer, or an answer that says to come back later. */
export const isUnavailable = (error: unknown): boolean =>
  error instanceof ApiError && (error.status === 0 || error.status === 429 || error.status >= 500);

/** `metav1.Status`, as far as it is of use; every field may be missing. */
export interface StatusBody {
  readonly reason?: string;
  readonly message?: string;
}

/** The error for an answer other than 200, or for an ERROR event. `credential` says what was shown to the server. */
export function refusal(
  request: ApiRequest,
  status: number,
  { reason, message }: StatusBody,
  { credential, retryAfterMs }: { readonly credential?: string; readonly retryAfterMs?: number | undefined } = {},
): ApiError {
  const { expected, remedy } = adviceFor(request, status, credential ?? 'the credentials');
  const received = `${status}${reason ? ` ${legible(reason)}` : ''}${message ? ` (${legible(message)})` : ''}`;
  return new ApiError({ request, status, reason: reason ?? String(status), expected, received, remedy, retryAfterMs });
}

/** The error for a request that got no (whole) answer: refused, unreachable, TLS, cut off. */
export function failure(request: ApiRequest, error: unknown): ApiError {
  const { code = 'Unknown', message = String(error) } = error as { code?: string; message?: string };
  const advice = ADVICE.find(({ codes }) => codes.test(code)) ?? NO_ADVICE;
  const received = advice.received ?? legible(message);
  return new ApiError({ ...advice, request, status: 0, reason: code, received, cause: error });
}

export const timedOut = (request: ApiRequest, ms: number): ApiError =>
  new ApiError({
    request,
    status: 0,
    reason: 'Timeout',
    expected: `something within ${Math.round(ms / 100) / 10} s`,
    received: 'nothing',
    remedy: 'see whether the API server is overloaded or a firewall swallows its packets',
  });

/** An answer that is no Kubernetes API answer. Status 200, because the server thinks that it is one. */
export const malformed = (request: ApiRequest, expected: string, received: string, cause?: unknown): ApiError =>
  new ApiError({
    request,
    status: 200,
    reason: 'Malformed',
    expected,
    received,
    remedy: 'see whether a proxy or another service answers at this address',
    cause,
  });

export const tooLarge = (request: ApiRequest, what: string, limitBytes: number): ApiError =>
  new ApiError({
    request,
    status: 200,
    reason: 'TooLarge',
    expected: `${what} of at most ${limitBytes} bytes`,
    received: 'more',
    remedy: 'see what makes the objects that large (annotations, managed fields)',
  });

/** Text from elsewhere on one line, without control characters, at most 300 characters long. */
export function legible(text: string): string {
  const line = text
    .slice(0, 1000)
    .replaceAll(/[\p{C}\s]+/gu, ' ')
    .trim();
  return line.length <= 300 ? line : `${line.slice(0, 300)}…`;
}

const resourceOf = ({ path }: ApiRequest): string => path.slice(path.lastIndexOf('/') + 1);

interface Advice {
  readonly expected: string;
  readonly remedy: string;
  readonly received?: string;
}

function adviceFor(request: ApiRequest, status: number, credential: string): Advice {
  const { verb } = request;
  const resource = resourceOf(request);
  switch (status) {
    case 401:
      return { expected: `${credential} to be accepted`, remedy: 'renew it; it is read again at every attempt' };
    case 403:
      return {
        expected: `the right to ${verb} ${resource}`,
        remedy: `grant get, list and watch of ${resource} to this user (ClusterRole and ClusterRoleBinding)`,
      };
    case 404:
      return {
        expected: `a server that has ${resource}`,
        remedy: 'check that the address is that of a Kubernetes API server',
      };
    case 410:
      return { expected: 'a version that the server still has', remedy: 'the list is fetched again' };
    default:
      return { expected: 'status 200', remedy: "see the API server's own log; tried again" };
  }
}

const NO_ADVICE: Advice = { expected: 'an answer', remedy: 'tried again' };

/** By errno (errno(3)), Node's codes and OpenSSL's X509_V_ERR_ names without their prefix. */
const ADVICE: readonly (Advice & { readonly codes: RegExp })[] = [
  {
    codes: /^ECONNREFUSED$/,
    expected: 'a listening API server',
    received: 'connection refused',
    remedy: 'check the address and port (--api-server) and that the API server runs',
  },
  {
    codes: /^(ENOTFOUND|EAI_AGAIN|EAI_FAIL)$/,
    expected: "the server's name to resolve",
    remedy: 'give an address that needs no cluster DNS (--api-server)',
  },
  {
    codes: /^(EHOSTUNREACH|ENETUNREACH|ETIMEDOUT|EADDRNOTAVAIL)$/,
    expected: 'a route to the server',
    remedy:
      'give the address of a control-plane node or its load balancer (--api-server); a Service address needs a proxy on this node',
  },
  {
    codes: /^(ECONNRESET|EPIPE|HPE_\w+|ERR_STREAM_PREMATURE_CLOSE|Truncated)$/,
    expected: 'a whole answer',
    remedy: 'tried again; if it stays, see what cuts connections on the way',
  },
  {
    codes: /^ERR_TLS_CERT_ALTNAME_INVALID$/,
    expected: "a name in the server's certificate that was asked for",
    remedy:
      'use an address or name that the certificate has (--api-server, or tls-server-name in the kubeconfig), or issue a new one',
  },
  {
    codes: /^CERT_HAS_EXPIRED$/,
    expected: 'a valid server certificate',
    received: 'one that has expired',
    remedy: "renew the API server's certificate, and check this machine's clock",
  },
  {
    codes: /^CERT_NOT_YET_VALID$/,
    expected: 'a valid server certificate',
    received: 'one that is not valid yet',
    remedy: "check this machine's clock",
  },
  {
    codes: /^(UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|CERT_|INVALID_CA|PATH_LENGTH)/,
    expected: 'a server certificate signed by the configured certificate authority',
    remedy: "check that the authority (ca.crt, certificate-authority) is this cluster's, and that the address is too",
  },
  {
    codes: /^(EPROTO|ERR_SSL_)/,
    expected: 'a TLS handshake',
    remedy: 'check that the address and port are those of the API server (https), and the client certificate',
  },
];
