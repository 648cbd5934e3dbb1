/** The one error of this package. */

import type { Code, ProblemDetails } from "./types.gen";

/** What went wrong where the service said nothing of it. */
export type ClientCode =
  | "aborted" // the caller's signal
  | "timeout" // no answer within timeoutMs
  | "network" // no connection, or it broke
  | "invalid_response" // an answer that is not a power-service's
  | "invalid_argument" // what was asked for cannot be sent
  | "no_web_socket"; // this runtime has none, and none was given

/** The service's own codes, and those of the client. Go by these: texts may change. */
export type PowerErrorCode = Code | ClientCode;

/** What a {@link PowerError} is made of. */
export interface PowerErrorDetails {
  /** HTTP status; 0 where nothing was answered. */
  status?: number;
  /** What the service answered. */
  problem?: ProblemDetails | undefined;
  /** Milliseconds to wait before the next try, as the service's Retry-After said. */
  retryAfterMs?: number | undefined;
  /** What was thrown underneath. */
  cause?: unknown;
}

/** Every error of this package. Neither its message nor its fields ever hold the token. */
export class PowerError extends Error {
  override readonly name = "PowerError";
  /** What went wrong, for programs. */
  readonly code: PowerErrorCode;
  /** HTTP status; 0 where nothing was answered. */
  readonly status: number;
  /** RFC 9457 details, where the service gave them. */
  readonly problem: ProblemDetails | undefined;
  /** Milliseconds to wait before the next try, where the service said so. */
  readonly retryAfterMs: number | undefined;

  constructor(code: PowerErrorCode, message: string, details: PowerErrorDetails = {}) {
    super(message, { cause: details.cause });
    this.code = code;
    this.status = details.status ?? 0;
    this.problem = details.problem;
    this.retryAfterMs = details.retryAfterMs;
  }

  /** Whether the caller's own AbortSignal ended it. */
  get isAborted(): boolean {
    return this.code === "aborted";
  }

  /** Whether no answer came within `timeoutMs`. */
  get isTimeout(): boolean {
    return this.code === "timeout";
  }
}

/** The caller has given an impossible value. */
export function misuse(message: string, cause?: unknown): PowerError {
  return new PowerError("invalid_argument", message, { cause });
}

/** A list that the caller has given. Text is one to JavaScript as well: of letters, which nobody means. */
export function list<T>(name: string, value: Iterable<T>): Iterable<T> {
  if (typeof value === "object" && value !== null && Symbol.iterator in value) return value;
  throw misuse(`${name}: expected a list, got ${value === null ? "null" : typeof value}`);
}
