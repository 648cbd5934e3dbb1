/** The latest events of the stream, which tell apart two files with the same sequence numbers. */

import type { EventPage, SequencedEvent } from "./types.gen";

const SIZE = 10_000; // events; about a megabyte
const PAGE = 1_000;

/** The latest events, by sequence. */
export class Recent {
  readonly #ids = new Map<number, string>();

  /** Remember an event. */
  add(sequence: number, id: string): void {
    this.#ids.set(sequence, id);
    if (this.#ids.size > SIZE) this.#ids.delete(this.#ids.keys().next().value as number);
  }

  /**
   * The last sequence at which the service's file still equals the one that was followed; undefined
   * if they have nothing in common. A file that was restored from a backup begins like the one
   * before, and continues differently.
   */
  async common(
    page: (after: number, limit: number) => Promise<EventPage>,
  ): Promise<number | undefined> {
    const known = [...this.#ids.keys()];
    const last = Math.max(...known);
    let common: number | undefined;
    let after = Math.min(...known) - 1;
    while (after < last) {
      const { events, next_after } = await page(after, PAGE);
      const same = events.filter(
        (one: SequencedEvent) => this.#ids.get(one.sequence) === one.event.id,
      );
      common = same.at(-1)?.sequence ?? common;
      if (next_after <= after) break;
      after = next_after;
    }
    return common;
  }
}
