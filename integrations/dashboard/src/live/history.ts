/**
 * A device's meters over a range of time: fetched once, then followed as readings come.
 *
 * Fetched again after each reconnecting, for the stream does not repeat readings; now and then, for what the statistics
 * have gained; and when so much has come live that the service had better thin it out. The client's useHistory is for
 * one meter; here any number of them is drawn over the same times, beside their statistics.
 */

import type { PowerClient, PowerReading, PowerStatistics, StreamHandle } from "@blackroad/power-client";
import { usePowerClient } from "@blackroad/power-client/react";
import { useMemo, useSyncExternalStore } from "react";
import { present } from "../clock";

/** What can be looked at. Beyond a day, lines are hourly statistics. */
export const RANGES = {
  "1h": { hours: 1, title: "1 h", name: "Last hour" },
  "24h": { hours: 24, title: "24 h", name: "Last 24 hours" },
  "7d": { hours: 168, title: "7 d", name: "Last 7 days" },
  "30d": { hours: 720, title: "30 d", name: "Last 30 days" },
} as const;

export type Range = keyof typeof RANGES;

/** Whether a range's lines are hourly statistics. */
export const isHourly = (range: Range): boolean => RANGES[range].hours > 24;

/** In seconds: how often a range moves on by about a pixel. Drawing or fetching more often would show nothing new. */
export const stepOf = (range: Range): number => RANGES[range].hours;

/** How many local days of energy a range shows. */
export const energyDaysOf = (range: Range): number => Math.max(7, RANGES[range].hours / 24);

const REFRESH_MS = 60_000; // at the soonest: a month of readings is a lot of work for the service
const TELL_MS = 200; // however much comes, the charts are drawn five times a second at most
const MAX_POINTS = 2000; // of each meter, as the service thins them out
const MAX_LIVE = 4000; // of all meters, before they are thinned out again

export interface HistoryState {
  readonly phase: "loading" | "ready" | "failed";
  /** Why the last fetch failed; null after one that did not. */
  readonly error: unknown;
  /** By meter id, oldest first. */
  readonly readings: ReadonlyMap<string, readonly PowerReading[]>;
  /** Why there are no readings although there are statistics: the range has too many of them. */
  readonly readingsError: unknown;
  /** By meter id, hours, oldest first. */
  readonly statistics: ReadonlyMap<string, readonly PowerStatistics[]>;
}

const NOTHING: HistoryState = {
  phase: "loading",
  error: null,
  readings: new Map(),
  readingsError: null,
  statistics: new Map(),
};

/** The history of these meters of a device, and how to fetch it again. */
export function useHistory(deviceId: string, meterIds: readonly string[], range: Range) {
  const client = usePowerClient();
  const ids = JSON.stringify(meterIds); // by value: the array is another one at each render
  const history = useMemo(
    () => new History(client, deviceId, JSON.parse(ids), range),
    [client, deviceId, ids, range],
  );
  return { ...useSyncExternalStore(history.subscribe, history.state), refetch: history.fetch };
}

/** A store for useSyncExternalStore; it works while somebody is subscribed. */
class History {
  readonly #listeners = new Set<() => void>();
  #state = NOTHING; // replaced, never changed
  #live: PowerReading[] = []; // since the last fetch began
  #stream: StreamHandle | undefined;
  #fetching: AbortController | undefined;
  #refresh: ReturnType<typeof setTimeout> | undefined;
  #telling: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly client: PowerClient,
    private readonly deviceId: string,
    private readonly meterIds: readonly string[],
    private readonly range: Range,
  ) {}

  readonly state = (): HistoryState => this.#state;

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener);
    if (this.#listeners.size === 1) this.#start();
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.#stop();
    };
  };

  /** Fetch everything now. */
  readonly fetch = async (): Promise<void> => {
    clearTimeout(this.#refresh);
    this.#fetching?.abort();
    this.#fetching = new AbortController();
    const { signal } = this.#fetching;
    this.#live = [];
    try {
      const [readings, statistics] = await Promise.all([this.#readings(signal), this.#statistics(signal)]);
      this.#state = { phase: "ready", error: null, ...readings, statistics };
      this.#append(this.#live);
    } catch (error) {
      if (signal.aborted) return;
      const phase = this.#state.phase === "ready" ? "ready" : "failed";
      this.#state = { ...this.#state, phase, error };
    }
    this.#refresh = setTimeout(this.fetch, Math.max(REFRESH_MS, 1000 * stepOf(this.range)));
    this.#tell();
  };

  async #readings(signal: AbortSignal): Promise<Pick<HistoryState, "readings" | "readingsError">> {
    const since = new Date(present() - RANGES[this.range].hours * 3_600_000);
    const options = { since, maxPoints: MAX_POINTS, signal };
    try {
      return { readings: await this.#ofEach((id) => this.client.chart(id, options)), readingsError: null };
    } catch (error) {
      // Statistics alone still show most of a long range.
      if (signal.aborted || !isHourly(this.range)) throw error;
      return { readings: new Map(), readingsError: error };
    }
  }

  #statistics(signal: AbortSignal): Promise<Map<string, PowerStatistics[]>> {
    const days = energyDaysOf(this.range) + 1; // the first local day may have begun a day earlier by UTC
    return this.#ofEach((id) => this.client.statistics(id, { days, bucket: "hour", signal }));
  }

  async #ofEach<T>(fetch: (meterId: string) => Promise<T>): Promise<Map<string, T>> {
    return new Map(await Promise.all(this.meterIds.map(async (id) => [id, await fetch(id)] as const)));
  }

  #start(): void {
    this.#stream = this.client.stream({
      deviceIds: [this.deviceId],
      onReading: (reading) => this.#onReading(reading),
      onStatus: ({ state }) => {
        if (state === "open" && this.#state.phase !== "loading") void this.fetch();
      },
    });
    void this.fetch();
  }

  #stop(): void {
    this.#stream?.close();
    this.#fetching?.abort();
    clearTimeout(this.#refresh);
    clearTimeout(this.#telling);
    this.#telling = undefined;
  }

  #onReading(reading: PowerReading): void {
    if (isHourly(this.range)) return;
    this.#live.push(reading);
    this.#append([reading]);
    if (this.#live.length > MAX_LIVE) void this.fetch();
    else this.#telling ??= setTimeout(() => this.#tell(), TELL_MS);
  }

  /** Add readings that came live, where they are later than what is there: the fetch may have brought them as well. */
  #append(fresh: readonly PowerReading[]): void {
    const readings = new Map(this.#state.readings);
    for (const reading of fresh) {
      const before = readings.get(reading.meter_id) ?? [];
      const last = before.at(-1);
      if (!last || Date.parse(last.timestamp) < Date.parse(reading.timestamp)) {
        readings.set(reading.meter_id, [...before, reading]);
      }
    }
    this.#state = { ...this.#state, readings };
  }

  #tell(): void {
    clearTimeout(this.#telling);
    this.#telling = undefined;
    for (const listener of this.#listeners) listener();
  }
}
