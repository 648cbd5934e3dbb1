/** The client: every operation of the service's contract, the queue of readings, and the stream. */

import { list, misuse } from "./errors";
import { type CallOptions, encoded, Http, LONGEST_QUERY, path } from "./http";
import { type FlushResult, ReadingQueue } from "./queue";
import type { WebSocketClass } from "./socket";
import type { StreamStatus } from "./status";
import { SharedStream, type StreamHandle, type StreamOptions } from "./stream";
import type * as api from "./types.gen";

/** How a {@link PowerClient} reaches the service. */
export interface PowerClientOptions {
  /** Where the service is, such as `http://127.0.0.1:8080`; a path after it is kept. */
  baseUrl: string;
  /** A token of `power-service token new`. It goes into headers only, never into URLs, errors or logs. */
  token?: string | undefined;
  /** Instead of the runtime's `fetch`. */
  fetch?: typeof globalThis.fetch | undefined;
  /** Instead of the runtime's `WebSocket`; Node 20 has none: give it the one of `ws`. */
  webSocket?: WebSocketClass | undefined;
  /** Milliseconds for which one try of one request may hear nothing; 10,000 by default. */
  timeoutMs?: number | undefined;
  /** How often a call that may be repeated is tried again after its first failure; 3 by default, 0: never. */
  retries?: number | undefined;
}

/** A moment: a Date, or ISO 8601 text with an offset. */
export type Moment = Date | string;

/** Which readings of a meter. */
export interface Window {
  /** From here on; left out: from the first. */
  since?: Moment | undefined;
  /** Before here; left out: to the last. */
  until?: Moment | undefined;
}

/** Which statistics of a meter: of the last `days`, or of a window. */
export interface StatisticsWindow extends Window {
  /** How far back, 0 to 36,500; it does not go with `since` and `until`. */
  days?: number | undefined;
  /** One row for each UTC hour, or day; "hour" by default. */
  bucket?: "hour" | "day" | undefined;
}

/** The power budgets of devices by id; the entry of one that is not registered is `{ error }`. */
export type Budget = api.GetBudgetResponse;

const MOST_IDS = 100; // in one request
const LONGEST_MS = 2 ** 31 - 1; // of a timer; a longer one would end at once
const TOKEN = /^[\w!#$%&'*+.^`|~-]+$/; // what a subprotocol can hold

function baseUrl(given: string): string {
  let url: URL | undefined;
  try {
    url = new URL(given, globalThis.location?.href);
  } catch {
    // Judged below, like one of another kind.
  }
  if (!url || !/^https?:$/.test(url.protocol) || url.username || url.password || url.search || url.hash) {
    throw misuse("baseUrl: expected http://host or https://host, without user, query or fragment");
  }
  return url.href.replace(/\/+$/, "");
}

function amount(name: string, value: number, least: number, most: number): number {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw misuse(`${name}: expected a whole number from ${least} to ${most}, got ${value}`);
  }
  return value;
}

function text(moment: Moment | undefined): string | undefined {
  if (!(moment instanceof Date)) return moment;
  if (Number.isNaN(moment.getTime())) throw misuse("since, until: expected a valid Date");
  return moment.toISOString();
}

/** Ids in groups that fit into one URL each. */
function groups(ids: Iterable<string>): string[][] {
  const made: string[][] = [];
  let room = 0;
  for (const id of new Set(list("deviceIds", ids))) {
    const length = encoded(id).length + "&device_id=".length;
    if (room < length || made.at(-1)?.length === MOST_IDS) {
      made.push([]);
      room = LONGEST_QUERY;
    }
    made.at(-1)?.push(id);
    room -= length;
  }
  return made;
}

/**
 * A client of one power-service. Records go in and come out as the service's contract has them, name by name; the
 * options of a call are the camel-cased ones below. Every method rejects with a {@link PowerError}, and with nothing
 * else. Those that may be repeated without harm are tried again on network errors, timeouts, 408, 429 and 5xx.
 */
export class PowerClient {
  readonly #http: Http;
  readonly #queue: ReadingQueue;
  readonly #stream: SharedStream;

  constructor(options: PowerClientOptions) {
    const { token, timeoutMs = 10_000, retries = 3 } = options;
    if (token !== undefined && !TOKEN.test(token)) throw misuse("token: expected one of power-service token new");
    const base = baseUrl(options.baseUrl);
    this.#http = new Http({
      baseUrl: base,
      token,
      // Called as a plain function: a browser's fetch wants no other `this`.
      fetch: options.fetch ?? ((...request) => globalThis.fetch(...request)),
      timeoutMs: amount("timeoutMs", timeoutMs, 1, LONGEST_MS),
      retries: amount("retries", retries, 0, 1_000),
    });
    this.#queue = new ReadingQueue((body, call) =>
      this.#http.json({ method: "POST", path: "/v1/readings", body, idempotent: true, ...call }),
    );
    this.#stream = new SharedStream({
      baseUrl: base,
      token,
      webSocket: options.webSocket ?? globalThis.WebSocket,
      events: (after, limit, signal) => this.eventsSince(after, { limit, signal }),
    });
  }

  // --- Devices

  /** The devices, in order of registration. */
  async devices(options: CallOptions = {}): Promise<api.DeviceRecord[]> {
    return this.#http.json<api.ListDevicesResponse>({ path: "/v1/devices", ...options });
  }

  /** A device. */
  async device(deviceId: string, options: CallOptions = {}): Promise<api.DeviceRecord> {
    return this.#http.json<api.GetDeviceResponse>({ path: path("/v1/devices/{}", deviceId), ...options });
  }

  /** Register a device, or give it exactly these values: what is left out goes back to its default. */
  async putDevice(deviceId: string, body: api.DeviceSettings, options: CallOptions = {}): Promise<api.DeviceRecord> {
    const call = { method: "PUT", path: path("/v1/devices/{}", deviceId), body } as const;
    return this.#http.json<api.PutDeviceResponse>({ ...call, ...options });
  }

  /** Change what is given of a device; the rest stays. */
  async updateDevice(
    deviceId: string,
    changes: api.DeviceChanges,
    options: CallOptions = {},
  ): Promise<api.DeviceRecord> {
    const call = { method: "PATCH", path: path("/v1/devices/{}", deviceId), body: changes, idempotent: true } as const;
    return this.#http.json<api.UpdateDeviceResponse>({ ...call, ...options });
  }

  /** Delete a device with its meters, readings and events. It takes the scope admin, and cannot be taken back. */
  async deleteDevice(deviceId: string, options: CallOptions = {}): Promise<void> {
    // Tried again, it would be answered with not_found although it was done.
    const call = { method: "DELETE", path: path("/v1/devices/{}", deviceId), idempotent: false } as const;
    return this.#http.nothing({ ...call, ...options });
  }

  // --- Meters

  /** The meters in their present state, of one device or of all, in order of adding. */
  async meters({
    deviceId,
    ...options
  }: CallOptions & { deviceId?: string | undefined } = {}): Promise<api.PowerMeter[]> {
    const call = { path: "/v1/meters", query: { device_id: deviceId } };
    return this.#http.json<api.ListMetersResponse>({ ...call, ...options });
  }

  /** A meter in its present state. */
  async meter(meterId: string, options: CallOptions = {}): Promise<api.PowerMeter> {
    return this.#http.json<api.GetMeterResponse>({ path: path("/v1/meters/{}", meterId), ...options });
  }

  /** Add a meter: a new one at every call, so it is never tried again by itself. */
  async addMeter(deviceId: string, body: api.NewMeter, options: CallOptions = {}): Promise<api.PowerMeter> {
    const call = { method: "POST", path: path("/v1/devices/{}/meters", deviceId), body } as const;
    return this.#http.json<api.AddMeterResponse>({ ...call, ...options });
  }

  /** Change what is given of a meter; the rest stays. `active: false` retires it. */
  async updateMeter(meterId: string, changes: api.MeterChanges, options: CallOptions = {}): Promise<api.PowerMeter> {
    const call = { method: "PATCH", path: path("/v1/meters/{}", meterId), body: changes, idempotent: true } as const;
    return this.#http.json<api.UpdateMeterResponse>({ ...call, ...options });
  }

  /** Delete a meter with its readings. It takes the scope admin, and cannot be taken back. */
  async deleteMeter(meterId: string, options: CallOptions = {}): Promise<void> {
    const call = { method: "DELETE", path: path("/v1/meters/{}", meterId), idempotent: false } as const;
    return this.#http.nothing({ ...call, ...options });
  }

  // --- Readings

  /**
   * Store one reading now. Without a timestamp it is a live one, with the service's time, and never tried again by
   * itself, for it would be stored twice; with one it may be sent again, and is.
   */
  async logPower(reading: api.NewReading, options: CallOptions = {}): Promise<api.IngestResult> {
    const idempotent = (reading.timestamp ?? null) !== null;
    const call = { method: "POST", path: "/v1/readings", body: reading, idempotent } as const;
    return this.#http.json<api.PostReadingsResponse>({ ...call, ...options });
  }

  /**
   * Take readings in, to be sent in batches of 1,000; one without a timestamp gets this machine's time, at once.
   * Resolves when the batches that are full have been answered for, well or not: `flush()` sends the rest, and says
   * what became of all. Call it now and then: what was not acknowledged is held until then, and from 100,000 readings
   * on `logMany` rejects with the reason of the last failure, and takes none of those that it is given.
   */
  async logMany(readings: Iterable<api.NewReading>, options: CallOptions = {}): Promise<void> {
    return this.#queue.add(readings, options);
  }

  /**
   * Send what `logMany` has taken in, and resolve when the service has acknowledged it or the retries are used up. What
   * was not acknowledged is given back in `failed`, with the reason: look there, for the client keeps nothing of it. A
   * `signal` ends all sending, also of a batch that `logMany` has begun; then all that is left is given back at once.
   */
  async flush(options: CallOptions = {}): Promise<FlushResult> {
    return this.#queue.flush(options);
  }

  /** A meter's readings, oldest first, page by page of up to `pageSize` (1 to 10,000; 1,000 by default). */
  async *history(
    meterId: string,
    { since, until, pageSize, ...options }: CallOptions & Window & { pageSize?: number | undefined } = {},
  ): AsyncGenerator<api.PowerReading[], void, undefined> {
    const query = { since: text(since), until: text(until), limit: pageSize };
    const call = { path: path("/v1/meters/{}/readings", meterId), ...options };
    let cursor: string | undefined;
    do {
      const page = await this.#http.json<api.ListReadingsResponse>({ ...call, query: { ...query, cursor } });
      if (page.readings.length > 0) yield page.readings;
      cursor = page.next_cursor ?? undefined;
    } while (cursor !== undefined);
  }

  /**
   * A window's readings for a chart, at most `maxPoints` (8 to 10,000; 1,000 by default): thinned out so that every
   * peak of volts, amperes, watts and charge stays; where they are null, they were not known. Windows beyond a million
   * readings are refused.
   */
  async chart(
    meterId: string,
    { since, until, maxPoints = 1_000, ...options }: CallOptions & Window & { maxPoints?: number | undefined } = {},
  ): Promise<api.PowerReading[]> {
    const query = { since: text(since), until: text(until), max_points: maxPoints };
    const call = { path: path("/v1/meters/{}/readings", meterId), query };
    return (await this.#http.json<api.ListReadingsResponse>({ ...call, ...options })).readings;
  }

  /** Delete a meter's readings from `since` on and before `until`; how many went. It takes the scope admin. */
  async deleteReadings(
    meterId: string,
    { since, until, ...options }: CallOptions & Window & { since: NonNullable<Window["since"]> },
  ): Promise<number> {
    const query = { since: text(since), until: text(until) };
    const call = { method: "DELETE", path: path("/v1/meters/{}/readings", meterId), query, idempotent: false } as const;
    return (await this.#http.json<api.Deleted>({ ...call, ...options })).deleted;
  }

  /**
   * As `chart`, at most `maxPoints` (8 to 10,000; 2,000 by default), and as arrays by field: a fraction of the bytes.
   * Times are whole milliseconds; `reading_count` says of how many readings these are.
   */
  async series(
    meterId: string,
    { since, until, maxPoints, ...options }: CallOptions & Window & { maxPoints?: number | undefined } = {},
  ): Promise<api.Series> {
    const query = { since: text(since), until: text(until), max_points: maxPoints };
    return this.#http.json<api.GetSeriesResponse>({ path: path("/v1/meters/{}/series", meterId), query, ...options });
  }

  /**
   * A meter's statistics by UTC hour or day, oldest first; empty ones left out. Of the last `days` (7 by default), or of
   * those from the hour or day of `since` on, whole, that begin before `until`.
   */
  async statistics(
    meterId: string,
    { days, since, until, bucket, ...options }: CallOptions & StatisticsWindow = {},
  ): Promise<api.PowerStatistics[]> {
    const query = { days, since: text(since), until: text(until), bucket };
    const call = { path: path("/v1/meters/{}/statistics", meterId), query };
    return this.#http.json<api.GetStatisticsResponse>({ ...call, ...options });
  }

  // --- Events

  /** A device's newest events, newest first, up to `limit` (0 to 10,000; 50 by default). */
  async events(
    deviceId: string,
    { limit, ...options }: CallOptions & { limit?: number | undefined } = {},
  ): Promise<api.PowerEvent[]> {
    const call = { path: path("/v1/devices/{}/events", deviceId), query: { limit } };
    return this.#http.json<api.ListEventsResponse>({ ...call, ...options });
  }

  /** Every device's events after a sequence, oldest first, up to `limit` (1 to 10,000; 1,000 by default). */
  async eventsSince(
    after: number,
    { limit, ...options }: CallOptions & { limit?: number | undefined } = {},
  ): Promise<api.EventPage> {
    return this.#http.json<api.FollowEventsResponse>({ path: "/v1/events", query: { after, limit }, ...options });
  }

  /** Record an event of a device, now: a new one at every call, so it is never tried again by itself. */
  async triggerEvent(deviceId: string, body: api.NewEvent, options: CallOptions = {}): Promise<api.PowerEvent> {
    const call = { method: "POST", path: path("/v1/devices/{}/events", deviceId), body } as const;
    return this.#http.json<api.TriggerEventResponse>({ ...call, ...options });
  }

  // --- Runtime, budget, report

  /**
   * Hours until the device's batteries are empty, by their present watts or by the mean of the last `windowMinutes`;
   * null where that is not known, or while they do not drain.
   */
  async runtime(
    deviceId: string,
    { windowMinutes, ...options }: CallOptions & { windowMinutes?: number | undefined } = {},
  ): Promise<number | null> {
    const query = { window_minutes: windowMinutes };
    const call = { path: path("/v1/devices/{}/runtime", deviceId), query };
    return (await this.#http.json<api.GetRuntimeResponse>({ ...call, ...options })).estimated_runtime_hours;
  }

  /** The power budget of each of these devices, by its id; left out: of all. An unknown one's entry is `{ error }`. */
  async getBudget(deviceIds?: readonly string[], options: CallOptions = {}): Promise<Budget> {
    if (!deviceIds) return this.#http.json<api.GetBudgetResponse>({ path: "/v1/budget", ...options });
    let budget: Budget = {};
    for (const device_id of groups(deviceIds)) {
      const call = { path: "/v1/budget", query: { device_id }, ...options };
      budget = { ...budget, ...(await this.#http.json<api.GetBudgetResponse>(call)) };
    }
    return budget;
  }

  /** The device's report over the last `days` (more than 0; 7 by default). */
  async getReport(
    deviceId: string,
    { days, ...options }: CallOptions & { days?: number | undefined } = {},
  ): Promise<api.Report> {
    const call = { path: path("/v1/devices/{}/report", deviceId), query: { days } };
    return this.#http.json<api.GetReportResponse>({ ...call, ...options });
  }

  /**
   * What each of these devices used in the last 24 whole UTC hours, as mean watts of each; null where that is not known.
   * A device that is not registered is left out.
   */
  async sparklines(deviceIds: readonly string[], options: CallOptions = {}): Promise<api.Sparklines> {
    let found: api.Sparklines | undefined;
    for (const device of groups(deviceIds)) {
      const call = { path: "/v1/sparklines", query: { device }, ...options };
      const part = await this.#http.json<api.GetSparklinesResponse>(call);
      // An hour has begun between two requests: what came before is of other hours.
      if (found && found.start !== part.start) return this.sparklines(deviceIds, options);
      found = { ...part, devices: { ...found?.devices, ...part.devices } };
    }
    if (!found) throw misuse("deviceIds: expected at least one");
    return found;
  }

  // --- A fleet: of a service that shows a file each rejects with `no_fleet`

  /** How far the fleet's engine is: `fresh_as_of`, and what waits for it. */
  async fleet(options: CallOptions = {}): Promise<api.FleetState> {
    return this.#http.json<api.GetFleetResponse>({ path: "/v1/fleet", ...options });
  }

  /** Of each device its site, the version that sends its file, when something came last, and its alarms. */
  async fleetDevices(options: CallOptions = {}): Promise<api.FleetDevice[]> {
    return this.#http.json<api.ListFleetDevicesResponse>({ path: "/v1/fleet/devices", ...options });
  }

  /** Energy by UTC day, site and meter type; today and the days before it, `days` in all (7 by default). */
  async fleetEnergy({ days, ...options }: CallOptions & { days?: number | undefined } = {}): Promise<api.SiteEnergy[]> {
    return this.#http.json<api.GetFleetEnergyResponse>({ path: "/v1/fleet/energy", query: { days }, ...options });
  }

  /** The devices that nothing came from for so many `minutes` (60 by default), longest first. */
  async silentDevices({
    minutes,
    ...options
  }: CallOptions & { minutes?: number | undefined } = {}): Promise<api.SilentDevice[]> {
    const call = { path: "/v1/fleet/silent", query: { minutes } };
    return this.#http.json<api.ListSilentDevicesResponse>({ ...call, ...options });
  }

  // --- The service itself

  /** Whether this service asks for a token, and the command that makes one, where the client is on its machine. */
  async signInNeeds(options: CallOptions = {}): Promise<api.SignInNeeds> {
    return this.#http.json<api.GetSignInResponse>({ path: "/v1/sign-in", ...options });
  }

  /**
   * A token for the ticket of a one-time link, as `power-service --open` prints it. The ticket is used up, so this is
   * never tried again by itself; `unauthorized` says that it was before, or is too old.
   */
  async signIn(ticket: string, options: CallOptions = {}): Promise<api.SignedIn> {
    const call = { method: "POST", path: "/v1/sign-in", body: { ticket } } as const;
    return this.#http.json<api.SignInResponse>({ ...call, ...options });
  }

  /** Who is asking: the token's name, scopes and devices; and whether a file or a fleet is shown (`source`). */
  async me(options: CallOptions = {}): Promise<api.Me> {
    return this.#http.json<api.GetMeResponse>({ path: "/v1/me", ...options });
  }

  /** Whether the process answers. */
  async health(options: CallOptions = {}): Promise<api.Health> {
    return this.#http.json<api.GetHealthResponse>({ path: "/healthz", ...options });
  }

  /** Whether the database can be read and the stream follows it; rejects with `not_ready` otherwise. */
  async ready(options: CallOptions = {}): Promise<api.Health> {
    return this.#http.json<api.GetReadinessResponse>({ path: "/readyz", ...options });
  }

  /** What Prometheus scrapes, as text. */
  async metrics(options: CallOptions = {}): Promise<string> {
    return this.#http.text({ path: "/metrics", ...options });
  }

  // --- The stream

  /**
   * Listen to what happens, as it happens. All streams of a client share one connection, which ends with the last of
   * them; it comes back by itself, after restarts of the service too, and every event is given exactly once.
   */
  stream(options: StreamOptions): StreamHandle {
    return this.#stream.open(options);
  }

  /** How the stream's connection is doing. */
  get streamStatus(): StreamStatus {
    return this.#stream.status;
  }

  /** Call `onChange` whenever `streamStatus` changes, without opening the stream; returns how to end that. */
  watchStreamStatus(onChange: () => void): () => void {
    return this.#stream.watch(onChange);
  }

  /** A one-use pass, good for seconds, to `WS /v1/stream?ticket=`, for clients that can send no subprotocol. */
  async createStreamTicket(options: CallOptions = {}): Promise<api.StreamTicket> {
    const call = { method: "POST", path: "/v1/stream/tickets", idempotent: true } as const;
    return this.#http.json<api.CreateStreamTicketResponse>({ ...call, ...options });
  }
}
