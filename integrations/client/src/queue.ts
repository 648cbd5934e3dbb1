/** Readings on their way: taken in at once, sent in batches, accounted for at every flush. */

import { list, PowerError } from "./errors";
import type { CallOptions } from "./http";
import type { IngestResult, NewReading } from "./types.gen";

/** Readings in one request. All of them are stored, or none. */
export const BATCH_SIZE = 1_000;

/** A batch that was not acknowledged, and why. Its readings hold their timestamps: sending them again is harmless. */
export interface FailedBatch {
  /** Why. */
  error: PowerError;
  /** The readings, to be given to `logMany` again or kept elsewhere; the client has let go of them. */
  readings: NewReading[];
}

/** What became of the readings since the flush before. */
export interface FlushResult {
  /** Number of readings that the service acknowledged. */
  received: number;
  /** Number of them that were new to it. */
  stored: number;
  /** What it did not acknowledge; empty if all is well. */
  failed: FailedBatch[];
}

type Send = (readings: NewReading[], options: CallOptions) => Promise<IngestResult>;

/** Readings that may be held once the service has failed to acknowledge some; then `logMany` takes no more. */
const MOST_HELD = 100_000;

/** A clock of which no two times are equal, in microseconds since the epoch; it follows when the system's jumps back. */
class Stamps {
  #last = 0;

  next(): string {
    const now = Date.now() * 1000;
    const ahead = this.#last - now;
    this.#last = ahead >= 0 && ahead < 1_000_000 ? this.#last + 1 : now;
    const micros = String(this.#last % 1000).padStart(3, "0");
    return new Date(Math.floor(this.#last / 1000)).toISOString().replace("Z", `${micros}Z`);
  }
}

/** The queue of one client. Batches go one at a time, in order. */
export class ReadingQueue {
  readonly #send: Send;
  readonly #stamps = new Stamps();
  #waiting: NewReading[] = [];
  #result: FlushResult = { received: 0, stored: 0, failed: [] };
  #turn: Promise<void> = Promise.resolve();
  readonly #flushes: (AbortSignal | undefined)[] = []; // the signals of those that are not over, in order
  #batch: AbortController | undefined; // ends what is under way

  constructor(send: Send) {
    this.#send = send;
  }

  /** Take readings in, and send those batches that are full. */
  async add(readings: Iterable<NewReading>, { signal }: CallOptions): Promise<void> {
    this.#checkRoom();
    for (const reading of list("readings", readings)) {
      // Stamped now: later it would get the time of its sending, and could not be sent again without harm.
      this.#waiting.push({ ...reading, timestamp: reading.timestamp ?? this.#stamps.next() });
    }
    await this.#inTurn(() => this.#sendAll(BATCH_SIZE, signal));
  }

  /** Send everything, and say what became of it. Its signal ends what is under way, whoever began that. */
  async flush({ signal }: CallOptions): Promise<FlushResult> {
    const abort = () => this.#batch?.abort(signal?.reason);
    this.#flushes.push(signal);
    signal?.addEventListener("abort", abort);
    if (signal?.aborted) abort();
    await this.#inTurn(async () => {
      await this.#sendAll(1, undefined);
      signal?.removeEventListener("abort", abort);
      this.#flushes.shift();
    });
    const result = this.#result;
    this.#result = { received: 0, stored: 0, failed: [] };
    return result;
  }

  #checkRoom(): void {
    const { failed } = this.#result;
    const last = failed.at(-1)?.error;
    const held = failed.reduce((sum, { readings }) => sum + readings.length, this.#waiting.length);
    if (!last || held < MOST_HELD) return;
    const { code, status, problem } = last;
    const message = `logMany: ${held} readings are held that were not acknowledged: flush() gives them back`;
    throw new PowerError(code, `${message} (${last.message})`, { status, problem, cause: last });
  }

  /** Do it when everything before is done. */
  #inTurn(work: () => Promise<void>): Promise<void> {
    this.#turn = this.#turn.then(work);
    return this.#turn;
  }

  /** Send batches while at least so many readings wait. */
  async #sendAll(least: number, signal: AbortSignal | undefined): Promise<void> {
    while (this.#waiting.length >= least) await this.#sendBatch(signal);
  }

  async #sendBatch(signal: AbortSignal | undefined): Promise<void> {
    const readings = this.#waiting.splice(0, BATCH_SIZE);
    const batch = new AbortController();
    const abort = () => batch.abort(signal?.reason);
    this.#batch = batch;
    signal?.addEventListener("abort", abort);
    const ended = [signal, ...this.#flushes].find((one) => one?.aborted);
    if (ended) batch.abort(ended.reason);
    try {
      const { received, stored } = await this.#send(readings, { signal: batch.signal });
      this.#result.received += received;
      this.#result.stored += stored;
    } catch (error) {
      this.#result.failed.push({ error: error as PowerError, readings });
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }
}
