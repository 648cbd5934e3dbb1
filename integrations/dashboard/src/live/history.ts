/**
 * A device's meters over a span of time: fetched once; if the span goes up to now, new readings are
 * added as they come.
 *
 * Fetched as soon as the stream brings this device's readings, so that none falls between, or if
 * the stream cannot open. Fetched again after each reconnect, because the stream does not repeat
 * readings; after a deletion; regularly, for new statistics; and after so many live readings that
 * the service should thin them out. The client's useHistory is for one meter; this is for any number of them over the
 * same times, with their statistics.
 */

import type {
  PowerClient,
  PowerReading,
  PowerStatistics,
  Series,
  StreamHandle,
} from "@blackroad/power-client";
import { usePowerClient } from "@blackroad/power-client/react";
import { useMemo, useSyncExternalStore } from "react";
import { present } from "../clock";
import { detailOf, endsOf, energyMoments, isLive, lengthOf, type Span } from "./span";

const REFRESH_MS = 60_000; // at the soonest: a month of readings is a lot of work for the service
const TELL_MS = 200; // the charts are drawn five times a second at most
const MAX_POINTS = 2000; // of each meter, as the service thins them out
const DAY_MS = 86_400_000;
const MOST_HOURLY_DAYS = 800; // beyond, days of UTC are enough: hours would be megabytes
const MAX_LIVE = 4000; // of all meters, before they are thinned out again

/** What was read of a meter at a moment, in milliseconds since the epoch; null: not known. */
export interface Sample {
  readonly at: number;
  readonly voltage: number | null;
  readonly wattage: number | null;
  readonly charge_pct: number | null;
}

/** A reading that came live. */
const sampleOf = ({ timestamp, voltage, wattage, charge_pct }: PowerReading): Sample => ({
  at: Date.parse(timestamp),
  voltage,
  wattage,
  charge_pct,
});

/** Readings as the service sends them for charts: arrays by field. */
const samplesOf = ({ timestamps_ms, voltage, wattage, charge_pct }: Series): Sample[] =>
  timestamps_ms.map((at, place) => ({
    at,
    voltage: voltage[place] ?? null,
    wattage: wattage[place] ?? null,
    charge_pct: charge_pct[place] ?? null,
  }));

export interface HistoryState {
  readonly phase: "loading" | "ready" | "failed";
  /** Why the last fetch failed; null after a success. */
  readonly error: unknown;
  /** By meter id, oldest first. */
  readonly readings: ReadonlyMap<string, readonly Sample[]>;
  /** Why there are no readings although there are statistics: the span has too many of them. */
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
export function useHistory(deviceId: string, meterIds: readonly string[], span: Span) {
  const client = usePowerClient();
  // By value: each render makes new objects.
  const [ids, key] = [JSON.stringify(meterIds), JSON.stringify(span)];
  const history = useMemo(
    () => new History(client, deviceId, JSON.parse(ids), JSON.parse(key)),
    [client, deviceId, ids, key],
  );
  return { ...useSyncExternalStore(history.subscribe, history.state), refetch: history.fetch };
}

/** A store for useSyncExternalStore; active while it has subscribers. */
class History {
  readonly #listeners = new Set<() => void>();
  #state = NOTHING; // replaced, never changed
  #live: PowerReading[] = []; // since the last fetch began
  #stream: StreamHandle | undefined;
  #fetching: AbortController | undefined; // of the last fetch; undefined before the first
  #refresh: ReturnType<typeof setTimeout> | undefined;
  #telling: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly client: PowerClient,
    private readonly deviceId: string,
    private readonly meterIds: readonly string[],
    private readonly span: Span,
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
      const [readings, statistics] = await Promise.all([
        this.#readings(signal),
        this.#statistics(signal),
      ]);
      this.#state = { phase: "ready", error: null, ...readings, statistics };
      this.#append(this.#live);
    } catch (error) {
      if (signal.aborted) return;
      const phase = this.#state.phase === "ready" ? "ready" : "failed";
      this.#state = { ...this.#state, phase, error };
    }
    if (isLive(this.span, present()))
      this.#refresh = setTimeout(this.fetch, Math.max(REFRESH_MS, lengthOf(this.span) / 3600));
    this.#tell();
  };

  async #readings(signal: AbortSignal): Promise<Pick<HistoryState, "readings" | "readingsError">> {
    const [from, to] = endsOf(this.span, present());
    // A device's clock may be ahead: readings dated after now belong to the last hours, too.
    const until = this.span.kind === "last" ? undefined : new Date(to);
    const options = { since: new Date(from), until, maxPoints: MAX_POINTS, signal };
    try {
      const readings = await this.#ofEach(async (id) =>
        samplesOf(await this.client.series(id, options)),
      );
      return { readings, readingsError: null };
    } catch (error) {
      // Statistics alone still show most of a long span.
      if (signal.aborted || detailOf(this.span) === "readings") throw error;
      return { readings: new Map(), readingsError: error };
    }
  }

  /**
   * The hours of the span, and of the days before it that its energy chart begins with; for many
   * years, the days.
   */
  #statistics(signal: AbortSignal): Promise<Map<string, PowerStatistics[]>> {
    const now = present();
    const [first = now] = energyMoments(this.span, now);
    const days = Math.max(1, Math.ceil((now - first) / DAY_MS) + 1); // the service goes by UTC
    const bucket = days > MOST_HOURLY_DAYS ? "day" : "hour";
    return this.#ofEach((id) => this.client.statistics(id, { days, bucket, signal }));
  }

  async #ofEach<T>(fetch: (meterId: string) => Promise<T>): Promise<Map<string, T>> {
    return new Map(
      await Promise.all(this.meterIds.map(async (id) => [id, await fetch(id)] as const)),
    );
  }

  #start(): void {
    this.#fetching = undefined;
    this.#stream = this.client.stream({
      deviceIds: [this.deviceId],
      onReading: (reading) => this.#onReading(reading),
      onDeleted: ({ kind }) => {
        if (kind === "readings") void this.fetch(); // a deleted meter changes `meterIds` anyway
      },
      onStatus: ({ state }) => {
        const cannotOpen = state !== "open" && state !== "connecting";
        if (state === "open" || (cannotOpen && !this.#fetching)) void this.fetch();
      },
    });
  }

  #stop(): void {
    this.#stream?.close();
    this.#fetching?.abort();
    clearTimeout(this.#refresh);
    clearTimeout(this.#telling);
    this.#telling = undefined;
  }

  #onReading(reading: PowerReading): void {
    if (detailOf(this.span) !== "readings" || !isLive(this.span, present())) return;
    this.#live.push(reading);
    this.#append([reading]);
    if (this.#live.length > MAX_LIVE) void this.fetch();
    else this.#telling ??= setTimeout(() => this.#tell(), TELL_MS);
  }

  /**
   * Add live readings that are later than those that are there: the fetch may have brought some of
   * them, too.
   */
  #append(fresh: readonly PowerReading[]): void {
    const readings = new Map(this.#state.readings);
    for (const reading of fresh) {
      const before = readings.get(reading.meter_id) ?? [];
      const last = before.at(-1);
      const sample = sampleOf(reading);
      if (!last || last.at < sample.at) readings.set(reading.meter_id, [...before, sample]);
    }
    this.#state = { ...this.#state, readings };
  }

  #tell(): void {
    clearTimeout(this.#telling);
    this.#telling = undefined;
    for (const listener of this.#listeners) listener();
  }
}
