/** The queue of readings: taken in at once, sent in batches, reported at every flush. */

import { list, PowerError } from "./errors";
import type { CallOptions } from "./http";
import type { IngestResult, NewReading } from "./types.gen";

/** Readings in one request. All of them are stored, or none. */
export const BATCH_SIZE = 1_000;

/**
 * A batch that was not acknowledged. Its readings have timestamps, so sending them again is
 * harmless.
 */
export interface FailedBatch {
  /** The reason. */
  error: PowerError;
  /** The readings. Pass them to `logMany` again or store them: the client keeps no copy. */
  readings: NewReading[];
}

/** The outcome for all readings since the previous flush. */
export interface FlushResult {
  /** Number of readings that the service acknowledged. */
  received: number;
  /** Number of those that were new to it. */
  stored: number;
  /**
   * Number of those whose charge was below 0 or above 110 %: the service stored them without one.
   */
  implausible_charges: number;
  /** The batches that it did not acknowledge; empty if all went well. */
  failed: FailedBatch[];
}

type Send = (readings: NewReading[], options: CallOptions) => Promise<IngestResult>;

/** The most readings to hold once a batch has failed; from then on `logMany` takes no more. */
const MOST_HELD = 100_000;

/**
 * A clock that never gives the same microsecond twice, and follows the system's clock when that is
 * set back.
 */
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

const nothingYet = (): FlushResult => ({
  received: 0,
  stored: 0,
  implausible_charges: 0,
  failed: [],
});

/** The queue of one client. It sends one batch at a time, in order. */
export class ReadingQueue {
  readonly #send: Send;
  readonly #stamps = new Stamps();
  #waiting: NewReading[] = [];
  #result: FlushResult = nothingYet();
  #turn: Promise<void> = Promise.resolve();
  /** The signals of the unfinished flushes, in order. */
  readonly #flushes: (AbortSignal | undefined)[] = [];
  #batch: AbortController | undefined; // ends the present request

  constructor(send: Send) {
    this.#send = send;
  }

  /** Queue readings, and send the full batches. */
  async add(readings: Iterable<NewReading>, { signal }: CallOptions): Promise<void> {
    this.#checkRoom();
    for (const reading of list("readings", readings)) {
      // Stamped now: later it would get the time of its sending, and sending it again would store
      // it twice.
      this.#waiting.push({ ...reading, timestamp: reading.timestamp ?? this.#stamps.next() });
    }
    await this.#inTurn(() => this.#sendAll(BATCH_SIZE, signal));
  }

  /**
   * Send everything, and report on it. The signal ends the present request, also one that `add`
   * began.
   */
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
    this.#result = nothingYet();
    return result;
  }

  #checkRoom(): void {
    const { failed } = this.#result;
    const last = failed.at(-1)?.error;
    const held = failed.reduce((sum, { readings }) => sum + readings.length, this.#waiting.length);
    if (!last || held < MOST_HELD) return;
    const { code, status, problem } = last;
    const message = `logMany: holding ${held} readings that were not acknowledged: flush() returns them`;
    throw new PowerError(code, `${message} (${last.message})`, { status, problem, cause: last });
  }

  /** Do the work after all earlier work. */
  #inTurn(work: () => Promise<void>): Promise<void> {
    this.#turn = this.#turn.then(work);
    return this.#turn;
  }

  /** Send batches while at least `least` readings wait. */
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
      const answer = await this.#send(readings, { signal: batch.signal });
      this.#result.received += answer.received;
      this.#result.stored += answer.stored;
      this.#result.implausible_charges += answer.implausible_charges ?? 0; // an older service's
    } catch (error) {
      this.#result.failed.push({ error: error as PowerError, readings });
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }
}
