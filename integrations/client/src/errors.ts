/** The one error of this package. */

import type { Code, ProblemDetails } from "./types.gen";

/** Failures that the client itself finds. */
export type ClientCode =
  | "aborted" // by the caller's signal
  | "timeout" // no answer within timeoutMs
  | "network" // no connection, or it broke
  | "invalid_response" // the answer is not a power-service's
  | "invalid_argument" // the request cannot be sent
  | "no_web_socket"; // this runtime has none, and the caller gave none

/** The service's codes and the client's own. Programs rely on these: texts may change. */
export type PowerErrorCode = Code | ClientCode;

/** What a {@link PowerError} is made of. */
export interface PowerErrorDetails {
  /** HTTP status; 0 if no answer came. */
  status?: number;
  /** The service's answer. */
  problem?: ProblemDetails | undefined;
  /** Milliseconds to wait before the next try, from the service's Retry-After. */
  retryAfterMs?: number | undefined;
  /** The error underneath. */
  cause?: unknown;
}

/** Every error of this package. Neither its message nor its fields ever contain the token. */
export class PowerError extends Error {
  override readonly name = "PowerError";
  /** The kind of failure, for programs. */
  readonly code: PowerErrorCode;
  /** HTTP status; 0 if no answer came. */
  readonly status: number;
  /** RFC 9457 details, if the service gave any. */
  readonly problem: ProblemDetails | undefined;
  /** Milliseconds to wait before the next try, if the service asked for that. */
  readonly retryAfterMs: number | undefined;

  constructor(code: PowerErrorCode, message: string, details: PowerErrorDetails = {}) {
    super(message, { cause: details.cause });
    this.code = code;
    this.status = details.status ?? 0;
    this.problem = details.problem;
    this.retryAfterMs = details.retryAfterMs;
  }

  /** Whether the caller's own AbortSignal ended the call. */
  get isAborted(): boolean {
    return this.code === "aborted";
  }

  /** Whether no answer came within `timeoutMs`. */
  get isTimeout(): boolean {
    return this.code === "timeout";
  }
}

/** The error for an impossible value from the caller. */
export function misuse(message: string, cause?: unknown): PowerError {
  return new PowerError("invalid_argument", message, { cause });
}

/**
 * Check that the caller gave a list. JavaScript also iterates over text, letter by letter, which is
 * a mistake here.
 */
export function list<T>(name: string, value: Iterable<T>): Iterable<T> {
  if (typeof value === "object" && value !== null && Symbol.iterator in value) return value;
  throw misuse(`${name}: expected a list, got ${value === null ? "null" : typeof value}`);
}
