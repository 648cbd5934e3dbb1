/** Readings on their way: taken in at once, sent in batches, accounted for at every flush. */

import type { PowerError } from "./errors";
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

  constructor(send: Send) {
    this.#send = send;
  }

  /** Take readings in, and send those batches that are full. */
  async add(readings: Iterable<NewReading>, options: CallOptions): Promise<void> {
    for (const reading of readings) {
      // Stamped now: later it would get the time of its sending, and could not be sent again without harm.
      this.#waiting.push({ ...reading, timestamp: reading.timestamp ?? this.#stamps.next() });
    }
    await this.#sendAll(BATCH_SIZE, options);
  }

  /** Send everything, and say what became of it. */
  async flush(options: CallOptions): Promise<FlushResult> {
    await this.#sendAll(1, options);
    const result = this.#result;
    this.#result = { received: 0, stored: 0, failed: [] };
    return result;
  }

  /** Send batches while at least so many readings wait, once those before have gone. */
  #sendAll(least: number, options: CallOptions): Promise<void> {
    const sent = this.#turn.then(async () => {
      while (this.#waiting.length >= least) await this.#sendBatch(options);
    });
    this.#turn = sent;
    return sent;
  }

  async #sendBatch(options: CallOptions): Promise<void> {
    const readings = this.#waiting.splice(0, BATCH_SIZE);
    try {
      const { received, stored } = await this.#send(readings, options);
      this.#result.received += received;
      this.#result.stored += stored;
    } catch (error) {
      this.#result.failed.push({ error: error as PowerError, readings });
    }
  }
}
