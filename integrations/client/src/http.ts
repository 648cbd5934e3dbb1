/** One request: its URL, its time limit, its retries, and its answer or a PowerError. */

import { misuse, PowerError } from "./errors";
import type { ProblemDetails } from "./types.gen";

/** The options of every call. */
export interface CallOptions {
  /**
   * Ends the call with a {@link PowerError} whose `isAborted` is true. Nothing else cancels a call.
   */
  signal?: AbortSignal | undefined;
}

type Read<T> = (body: string) => T;
type Parameter = string | number | undefined;

/** A REST request. */
export interface Call extends CallOptions {
  method?: "PUT" | "POST" | "PATCH" | "DELETE";
  path: string;
  query?: Record<string, Parameter | readonly string[]>;
  body?: unknown;
  /** Whether sending it twice has the same effect as once; GET and PUT always are. */
  idempotent?: boolean;
}

/** How requests are made. */
export interface HttpOptions {
  baseUrl: string;
  token: string | undefined;
  fetch: typeof fetch;
  timeoutMs: number;
  retries: number;
}

/** Characters of a query that every server and proxy accepts. */
export const LONGEST_QUERY = 6_000;
const FIRST_PAUSE_MS = 250;
const LONGEST_PAUSE_MS = 8_000;
const LONGEST_RETRY_AFTER_MS = 60_000; // beyond that the caller gets the error and decides
/** Statuses after which another try may succeed. */
export const WORTH_A_RETRY = new Set([408, 429, 500, 502, 503, 504]);

/** An id as a part of a URL. */
export function encoded(id: string): string {
  try {
    return encodeURIComponent(id);
  } catch (cause) {
    throw misuse(`id: ${JSON.stringify(id)} has half of a character`, cause);
  }
}

/** A path with the encoded ids in place of its `{}`. */
export function path(template: string, ...ids: string[]): string {
  return template.replace(/\{\}/g, () => {
    const id = ids.shift() as string;
    // Every URL parser reads `.` and `..` as directories, encoded or not.
    if (typeof id !== "string" || id === "" || id === "." || id === "..") {
      throw misuse(`id: ${JSON.stringify(id)} cannot be part of a path`);
    }
    return encoded(id);
  });
}

/** `?a=1&a=2`, or nothing; undefined values are left out. */
export function queryText(query: Record<string, Parameter | readonly string[]>): string {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined) parameters.append(name, String(one));
    }
  }
  const text = parameters.toString();
  return text && `?${text}`;
}

/** A body as JSON. JSON has neither NaN nor Infinity, and null would mean something else. */
function serialize(body: unknown): string {
  try {
    return JSON.stringify(body, (name, value) => {
      if (typeof value !== "number" || Number.isFinite(value)) return value;
      throw misuse(`${name}: expected a finite number, got ${value}`);
    });
  } catch (error) {
    if (error instanceof PowerError) throw error;
    throw misuse(`the body is not JSON: ${(error as Error).message}`, error);
  }
}

/** Wait for so many milliseconds, or until the signal ends the wait with a PowerError. */
function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(aborted(signal));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", abort, { once: true });
    if (signal?.aborted) abort(); // a signal fires only once, and this one already has
  });
}

function aborted(signal: AbortSignal | undefined): PowerError {
  return new PowerError("aborted", "aborted by the caller's signal", { cause: signal?.reason });
}

/** Why a fetch failed; Node gives the reason in the cause. */
function reason(error: Error): string {
  return error.cause instanceof Error ? `${error.message}: ${error.cause.message}` : error.message;
}

/** The milliseconds of a Retry-After, which is in seconds or a date. */
function retryAfter(header: string | null): number | undefined {
  if (header === null) return undefined;
  const ms = /^\d+$/.test(header.trim()) ? Number(header) * 1000 : Date.parse(header) - Date.now();
  return Number.isFinite(ms) ? Math.max(ms, 0) : undefined;
}

/** Ends a request after too long a silence, however long the request takes in all. */
class SilenceLimit {
  readonly #end: () => void;
  readonly #ms: number;
  #timer: ReturnType<typeof setTimeout> | undefined;
  isOver = false;

  constructor(ms: number, end: () => void) {
    this.#ms = ms;
    this.#end = end;
    this.heard();
  }

  /** Data arrived: the silence starts again. */
  heard(): void {
    this.stop();
    this.#timer = setTimeout(() => {
      this.isOver = true;
      this.#end();
    }, this.#ms);
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}

/** The body as text, read piece by piece if the runtime allows that. */
async function bodyText(response: Response, limit: SilenceLimit): Promise<string> {
  limit.heard(); // the headers have arrived
  if (!response.body) return response.text();
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const pieces: string[] = [];
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    limit.heard();
    pieces.push(decoder.decode(piece.value, { stream: true }));
  }
  pieces.push(decoder.decode());
  return pieces.join("");
}

/** The error for an answer that is not a success. */
function refusal(what: string, response: Response, text: string): PowerError {
  const details = {
    status: response.status,
    retryAfterMs: retryAfter(response.headers.get("retry-after")),
  };
  let problem: ProblemDetails | undefined;
  try {
    problem = JSON.parse(text);
  } catch {
    // Not JSON, such as a proxy's page: handled below.
  }
  if (typeof problem?.code === "string") {
    return new PowerError(problem.code, `${what}: ${response.status} ${problem.detail}`, {
      ...details,
      problem,
    });
  }
  return new PowerError(
    "invalid_response",
    `${what}: ${response.status}, and not from a power-service`,
    details,
  );
}

/** Milliseconds until the next try; undefined for no further try. */
function pauseBefore(retry: number, error: PowerError): number | undefined {
  if (error.code !== "network" && error.code !== "timeout" && !WORTH_A_RETRY.has(error.status))
    return undefined;
  const jitter = Math.random() * Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** retry);
  const least = error.retryAfterMs ?? 0;
  return least > LONGEST_RETRY_AFTER_MS ? undefined : least + jitter;
}

/** Makes requests. */
export class Http {
  readonly #options: HttpOptions;

  constructor(options: HttpOptions) {
    this.#options = options;
  }

  /** The answer as JSON, of the type that the caller takes from the contract. */
  async json<T>(call: Call): Promise<T> {
    return this.#send(call, (body) => JSON.parse(body) as T);
  }

  /** An answer without a body. */
  async nothing(call: Call): Promise<void> {
    return this.#send(call, () => undefined);
  }

  /** The answer as text. */
  async text(call: Call): Promise<string> {
    return this.#send(call, (body) => body);
  }

  async #send<T>(call: Call, read: Read<T>): Promise<T> {
    const idempotent = call.idempotent ?? call.method !== "POST";
    const body = call.body === undefined ? undefined : serialize(call.body);
    for (let retry = 0; ; retry++) {
      try {
        return await this.#try(call, body, read);
      } catch (error) {
        const ms = error instanceof PowerError ? pauseBefore(retry, error) : undefined;
        if (!idempotent || retry >= this.#options.retries || ms === undefined) throw error;
        await pause(ms, call.signal);
      }
    }
  }

  async #try<T>(call: Call, body: string | undefined, read: Read<T>): Promise<T> {
    const { signal } = call;
    if (signal?.aborted) throw aborted(signal);
    const what = `${call.method ?? "GET"} ${call.path}`;
    const control = new AbortController();
    const abort = () => control.abort();
    const limit = new SilenceLimit(this.#options.timeoutMs, abort);
    signal?.addEventListener("abort", abort);
    let response: Response | undefined;
    try {
      response = await this.#request(call, body, control.signal);
      const text = await bodyText(response, limit);
      if (!response.ok) throw refusal(what, response, text);
      return read(text);
    } catch (error) {
      if (error instanceof PowerError) throw error;
      if (signal?.aborted) throw aborted(signal);
      if (limit.isOver) {
        throw new PowerError("timeout", `${what}: no answer within ${this.#options.timeoutMs} ms`, {
          cause: error,
        });
      }
      if (error instanceof SyntaxError && response) {
        const details = { status: response.status, cause: error };
        throw new PowerError(
          "invalid_response",
          `${what}: ${response.status}, but not with JSON`,
          details,
        );
      }
      throw new PowerError("network", `${what}: ${reason(error as Error)}`, { cause: error });
    } finally {
      limit.stop();
      signal?.removeEventListener("abort", abort);
    }
  }

  #request(call: Call, body: string | undefined, signal: AbortSignal): Promise<Response> {
    const { baseUrl, token, fetch } = this.#options;
    const headers: Record<string, string> = { Accept: "application/json" };
    if (token !== undefined) headers.Authorization = `Bearer ${token}`;
    const init: RequestInit = { method: call.method ?? "GET", headers, signal };
    if (body !== undefined) {
      headers["Content-Type"] = "application/json";
      init.body = body;
    }
    return fetch(baseUrl + call.path + queryText(call.query ?? {}), init);
  }
}
