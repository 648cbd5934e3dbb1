/**
 * What devices used in each of the last 24 hours, for the visible rows: loaded when a row becomes
 * visible, and again after an hour.
 */

import type { PowerClient } from "@blackroad/power-client";
import { usePowerClient } from "@blackroad/power-client/react";
import { useEffect, useMemo, useSyncExternalStore } from "react";
import { present } from "../clock";

const SETTLE_MS = 150; // during fast scrolling, most rows are gone again by then
const KEEP_MS = 3_600_000;
const AGAIN_MS = 60_000; // after a failure, and to see what has become old

/** Mean watts by hour, oldest first; null where they are not known. */
export type Spark = readonly (number | null)[];

export interface SparklinesState {
  readonly sparks: ReadonlyMap<string, Spark>;
  /** Why the last load failed; null after a success. */
  readonly error: unknown;
}

interface Kept {
  readonly spark: Spark;
  /** When it was loaded, in milliseconds since the epoch. */
  readonly at: number;
}

/** A store for useSyncExternalStore; it loads nothing until rows are seen. */
export class Sparklines {
  readonly #listeners = new Set<() => void>();
  readonly #kept = new Map<string, Kept>();
  #state: SparklinesState = { sparks: new Map(), error: null }; // replaced, never changed
  #seen: readonly string[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #loading: AbortController | undefined;

  constructor(private readonly client: Pick<PowerClient, "sparklines">) {}

  readonly state = (): SparklinesState => this.#state;

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.#stop();
    };
  };

  /** Tell which devices are visible now. */
  see(ids: readonly string[]): void {
    this.#seen = ids;
    this.#loadIn(SETTLE_MS);
  }

  #loadIn(ms: number): void {
    if (this.#loading) return; // when it is done, it loads again by itself
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#load(), ms);
  }

  /**
   * Load the visible ones that are missing or old; then check again, because others may be visible
   * by then.
   */
  async #load(): Promise<void> {
    const now = present();
    const missing = this.#seen.filter((id) => now - (this.#kept.get(id)?.at ?? 0) >= KEEP_MS);
    let pause = AGAIN_MS;
    if (missing.length > 0) {
      this.#loading = new AbortController();
      const { signal } = this.#loading;
      try {
        const { devices } = await this.client.sparklines(missing, { signal });
        // A device that the service does not know is kept as empty, and not requested again at
        // once.
        for (const id of missing) this.#kept.set(id, { spark: devices[id] ?? [], at: now });
        this.#tell(null);
        pause = SETTLE_MS;
      } catch (error) {
        if (signal.aborted) return;
        this.#tell(error);
      }
      this.#loading = undefined;
    }
    this.#loadIn(pause);
  }

  #stop(): void {
    clearTimeout(this.#timer);
    this.#loading?.abort();
    this.#loading = undefined;
  }

  #tell(error: unknown): void {
    const sparks = new Map([...this.#kept].map(([id, { spark }]) => [id, spark]));
    this.#state = { sparks, error };
    for (const listener of this.#listeners) listener();
  }
}

/** One per client, so that the lines are still there after a visit to a device. */
export function useSparklinesStore(): Sparklines {
  const client = usePowerClient();
  return useMemo(() => new Sparklines(client), [client]);
}

/** The sparklines of the visible devices. */
export function useSparklines(store: Sparklines, ids: readonly string[]): SparklinesState {
  const key = JSON.stringify(ids); // by value: each render makes a new array
  useEffect(() => store.see(JSON.parse(key)), [store, key]);
  return useSyncExternalStore(store.subscribe, store.state);
}
