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
  /** The service's address, such as `http://127.0.0.1:8080`; a path after it is kept. */
  baseUrl: string;
  /**
   * A token from `power-service token new`. It is sent in headers only, never in URLs, errors or
   * logs.
   */
  token?: string | undefined;
  /** Instead of the runtime's `fetch`. */
  fetch?: typeof globalThis.fetch | undefined;
  /** Instead of the runtime's `WebSocket`. Node 20 has none: pass the one of `ws`. */
  webSocket?: WebSocketClass | undefined;
  /** The longest silence of one try of one request, in milliseconds; 10,000 by default. */
  timeoutMs?: number | undefined;
  /**
   * How often a call that is safe to repeat is retried after its first failure; 3 by default, 0 for
   * never.
   */
  retries?: number | undefined;
}

/** A moment: a Date, or ISO 8601 text with an offset. */
export type Moment = Date | string;

/** Which readings of a meter. */
export interface Window {
  /** The first moment; by default, the first reading's. */
  since?: Moment | undefined;
  /** The end, exclusive; by default, after the last reading. */
  until?: Moment | undefined;
}

/** Which statistics of a meter: those of the last `days`, or of a window. */
export interface StatisticsWindow extends Window {
  /** How far back, 0 to 36,500; it cannot be combined with `since` and `until`. */
  days?: number | undefined;
  /** One row per UTC hour or day; "hour" by default. */
  bucket?: "hour" | "day" | undefined;
}

/**
 * The power budgets of devices by id. The entry of a device that is not registered is `{ error }`.
 */
export type Budget = api.GetBudgetResponse;

const MOST_IDS = 100; // in one request
const LONGEST_MS = 2 ** 31 - 1; // of a timer; a longer one would fire at once
const TOKEN = /^[\w!#$%&'*+.^`|~-]+$/; // what a subprotocol can hold

function baseUrl(given: string): string {
  let url: URL | undefined;
  try {
    url = new URL(given, globalThis.location?.href);
  } catch {
    // Refused below, like every other URL that does not fit.
  }
  if (
    !url ||
    !/^https?:$/.test(url.protocol) ||
    url.username ||
    url.password ||
    url.search ||
    url.hash
  ) {
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

/** The ids in groups, each of which fits into one URL. */
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
 * A client of one power-service. Records have the names of the service's contract; the options of a
 * call are camel-cased. Methods reject with a {@link PowerError} and with nothing else. Calls that
 * are safe to repeat are retried after network errors, timeouts, 408, 429 and 5xx.
 */
export class PowerClient {
  readonly #http: Http;
  readonly #queue: ReadingQueue;
  readonly #stream: SharedStream;

  constructor(options: PowerClientOptions) {
    const { token, timeoutMs = 10_000, retries = 3 } = options;
    if (token !== undefined && !TOKEN.test(token))
      throw misuse("token: expected one of power-service token new");
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
    return this.#http.json<api.GetDeviceResponse>({
      path: path("/v1/devices/{}", deviceId),
      ...options,
    });
  }

  /**
   * Register a device, or give it exactly these values: values left out go back to their defaults.
   */
  async putDevice(
    deviceId: string,
    body: api.DeviceSettings,
    options: CallOptions = {},
  ): Promise<api.DeviceRecord> {
    const call = { method: "PUT", path: path("/v1/devices/{}", deviceId), body } as const;
    return this.#http.json<api.PutDeviceResponse>({ ...call, ...options });
  }

  /** Change the given values of a device; the others stay. */
  async updateDevice(
    deviceId: string,
    changes: api.DeviceChanges,
    options: CallOptions = {},
  ): Promise<api.DeviceRecord> {
    const call = {
      method: "PATCH",
      path: path("/v1/devices/{}", deviceId),
      body: changes,
      idempotent: true,
    } as const;
    return this.#http.json<api.UpdateDeviceResponse>({ ...call, ...options });
  }

  /**
   * Delete a device with its meters, readings and events. Needs the scope admin, and cannot be
   * undone.
   */
  async deleteDevice(deviceId: string, options: CallOptions = {}): Promise<void> {
    // A retry would be answered with not_found although the device was deleted.
    const call = {
      method: "DELETE",
      path: path("/v1/devices/{}", deviceId),
      idempotent: false,
    } as const;
    return this.#http.nothing({ ...call, ...options });
  }

  // --- Meters

  /**
   * The meters with their present state, of one device or of all, in the order in which they were
   * added.
   */
  async meters({
    deviceId,
    ...options
  }: CallOptions & { deviceId?: string | undefined } = {}): Promise<api.PowerMeter[]> {
    const call = { path: "/v1/meters", query: { device_id: deviceId } };
    return this.#http.json<api.ListMetersResponse>({ ...call, ...options });
  }

  /** A meter with its present state. */
  async meter(meterId: string, options: CallOptions = {}): Promise<api.PowerMeter> {
    return this.#http.json<api.GetMeterResponse>({
      path: path("/v1/meters/{}", meterId),
      ...options,
    });
  }

  /** Add a meter. Every call adds one, so it is never retried. */
  async addMeter(
    deviceId: string,
    body: api.NewMeter,
    options: CallOptions = {},
  ): Promise<api.PowerMeter> {
    const call = { method: "POST", path: path("/v1/devices/{}/meters", deviceId), body } as const;
    return this.#http.json<api.AddMeterResponse>({ ...call, ...options });
  }

  /** Change the given values of a meter; the others stay. `active: false` retires it. */
  async updateMeter(
    meterId: string,
    changes: api.MeterChanges,
    options: CallOptions = {},
  ): Promise<api.PowerMeter> {
    const call = {
      method: "PATCH",
      path: path("/v1/meters/{}", meterId),
      body: changes,
      idempotent: true,
    } as const;
    return this.#http.json<api.UpdateMeterResponse>({ ...call, ...options });
  }

  /** Delete a meter with its readings. Needs the scope admin, and cannot be undone. */
  async deleteMeter(meterId: string, options: CallOptions = {}): Promise<void> {
    const call = {
      method: "DELETE",
      path: path("/v1/meters/{}", meterId),
      idempotent: false,
    } as const;
    return this.#http.nothing({ ...call, ...options });
  }

  // --- Readings

  /**
   * Store one reading now. Without a timestamp it is a live reading with the service's time, and is
   * never retried because it would be stored twice. With a timestamp it is retried.
   */
  async logPower(reading: api.NewReading, options: CallOptions = {}): Promise<api.IngestResult> {
    const idempotent = (reading.timestamp ?? null) !== null;
    const call = { method: "POST", path: "/v1/readings", body: reading, idempotent } as const;
    return this.#http.json<api.PostReadingsResponse>({ ...call, ...options });
  }

  /**
   * Queue readings, to be sent in batches of 1,000. A reading without a timestamp gets this
   * machine's time now. Resolves when each full batch has succeeded or failed. `flush()` sends the
   * rest and reports on all, so call it regularly: until then, readings that were not acknowledged
   * are held, and from 100,000 of them on `logMany` rejects with the reason of the last failure and
   * takes none of the new ones.
   */
  async logMany(readings: Iterable<api.NewReading>, options: CallOptions = {}): Promise<void> {
    return this.#queue.add(readings, options);
  }

  /**
   * Send the queued readings, and resolve when the service has acknowledged them or the retries are
   * used up. `failed` has the readings that were not acknowledged, with the reason; the client
   * keeps no copy. A `signal` stops all sending, including a batch that `logMany` began, and
   * everything left is returned at once.
   */
  async flush(options: CallOptions = {}): Promise<FlushResult> {
    return this.#queue.flush(options);
  }

  /**
   * A meter's readings, oldest first, in pages of up to `pageSize` (1 to 10,000; 1,000 by default).
   */
  async *history(
    meterId: string,
    {
      since,
      until,
      pageSize,
      ...options
    }: CallOptions & Window & { pageSize?: number | undefined } = {},
  ): AsyncGenerator<api.PowerReading[], void, undefined> {
    const query = { since: text(since), until: text(until), limit: pageSize };
    const call = { path: path("/v1/meters/{}/readings", meterId), ...options };
    let cursor: string | undefined;
    do {
      const page = await this.#http.json<api.ListReadingsResponse>({
        ...call,
        query: { ...query, cursor },
      });
      if (page.readings.length > 0) yield page.readings;
      cursor = page.next_cursor ?? undefined;
    } while (cursor !== undefined);
  }

  /**
   * A window's readings for a chart, at most `maxPoints` (8 to 10,000; 1,000 by default), thinned
   * out so that every peak of volts, amperes, watts and charge stays. Values that are not known are
   * null. A window of more than a million readings is refused.
   */
  async chart(
    meterId: string,
    {
      since,
      until,
      maxPoints = 1_000,
      ...options
    }: CallOptions & Window & { maxPoints?: number | undefined } = {},
  ): Promise<api.PowerReading[]> {
    const query = { since: text(since), until: text(until), max_points: maxPoints };
    const call = { path: path("/v1/meters/{}/readings", meterId), query };
    return (await this.#http.json<api.ListReadingsResponse>({ ...call, ...options })).readings;
  }

  /**
   * Delete a meter's readings from `since` on and before `until`, and return their number. Without
   * `until`, all from `since` on. `since` has no default, so that a value left out by mistake
   * deletes nothing; `new Date(0)` means all readings. Needs the scope admin, and cannot be undone.
   */
  async deleteReadings(
    meterId: string,
    { since, until, ...options }: CallOptions & Window & { since: NonNullable<Window["since"]> },
  ): Promise<number> {
    const query = { since: text(since), until: text(until) };
    const call = {
      method: "DELETE",
      path: path("/v1/meters/{}/readings", meterId),
      query,
      idempotent: false,
    } as const;
    return (await this.#http.json<api.Deleted>({ ...call, ...options })).deleted;
  }

  /**
   * The same as `chart` with at most `maxPoints` (8 to 10,000; 2,000 by default), as one array per
   * field: a fraction of the bytes. Times are whole milliseconds. `reading_count` is the number of
   * readings in the window.
   */
  async series(
    meterId: string,
    {
      since,
      until,
      maxPoints,
      ...options
    }: CallOptions & Window & { maxPoints?: number | undefined } = {},
  ): Promise<api.Series> {
    const query = { since: text(since), until: text(until), max_points: maxPoints };
    return this.#http.json<api.GetSeriesResponse>({
      path: path("/v1/meters/{}/series", meterId),
      query,
      ...options,
    });
  }

  /**
   * A meter's statistics by UTC hour or day, oldest first, without empty ones: of the last `days`
   * (7 by default), or from the whole hour or day of `since` to the last one that begins before
   * `until`.
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

  /**
   * Every device's events after a sequence, oldest first, up to `limit` (1 to 10,000; 1,000 by
   * default). Pass the last answer's `next_after` and `file_id` to go on; where `recovered` is
   * false, the file is another one or has lost events.
   */
  async eventsSince(
    after: number,
    {
      limit,
      fileId,
      ...options
    }: CallOptions & { limit?: number | undefined; fileId?: string | undefined } = {},
  ): Promise<api.EventPage> {
    return this.#http.json<api.FollowEventsResponse>({
      path: "/v1/events",
      query: { after, limit, file_id: fileId },
      ...options,
    });
  }

  /** Record an event of a device, now. Every call records one, so it is never retried. */
  async triggerEvent(
    deviceId: string,
    body: api.NewEvent,
    options: CallOptions = {},
  ): Promise<api.PowerEvent> {
    const call = { method: "POST", path: path("/v1/devices/{}/events", deviceId), body } as const;
    return this.#http.json<api.TriggerEventResponse>({ ...call, ...options });
  }

  // --- Runtime, budget, report

  /**
   * Hours until the device's batteries are empty, at their present watts or at the mean of the last
   * `windowMinutes`; null if that is not known, or if they do not drain.
   */
  async runtime(
    deviceId: string,
    { windowMinutes, ...options }: CallOptions & { windowMinutes?: number | undefined } = {},
  ): Promise<number | null> {
    const query = { window_minutes: windowMinutes };
    const call = { path: path("/v1/devices/{}/runtime", deviceId), query };
    return (await this.#http.json<api.GetRuntimeResponse>({ ...call, ...options }))
      .estimated_runtime_hours;
  }

  /**
   * The power budgets of these devices by id, or of all. The entry of an unknown device is `{ error
   * }`.
   */
  async getBudget(deviceIds?: readonly string[], options: CallOptions = {}): Promise<Budget> {
    if (!deviceIds)
      return this.#http.json<api.GetBudgetResponse>({ path: "/v1/budget", ...options });
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
   * The mean watts that each of these devices used in each of the last 24 whole UTC hours; null
   * where they are not known. Devices that are not registered are left out.
   */
  async sparklines(
    deviceIds: readonly string[],
    options: CallOptions = {},
  ): Promise<api.Sparklines> {
    let found: api.Sparklines | undefined;
    for (const device of groups(deviceIds)) {
      const call = { path: "/v1/sparklines", query: { device }, ...options };
      const part = await this.#http.json<api.GetSparklinesResponse>(call);
      // A new hour began between two requests: the parts before are of other hours.
      if (found && found.start !== part.start) return this.sparklines(deviceIds, options);
      found = { ...part, devices: { ...found?.devices, ...part.devices } };
    }
    if (!found) throw misuse("deviceIds: expected at least one");
    return found;
  }

  // --- A fleet: a service that shows a file rejects these with `no_fleet`

  /** How far the fleet's engine is: `fresh_as_of`, and the messages that wait for it. */
  async fleet(options: CallOptions = {}): Promise<api.FleetState> {
    return this.#http.json<api.GetFleetResponse>({ path: "/v1/fleet", ...options });
  }

  /**
   * Each device's site, the version of its forwarder, the time of its last message, and its alarms.
   */
  async fleetDevices(options: CallOptions = {}): Promise<api.FleetDevice[]> {
    return this.#http.json<api.ListFleetDevicesResponse>({ path: "/v1/fleet/devices", ...options });
  }

  /**
   * Energy by UTC day, site and meter type, over the last `days` including today (7 by default).
   */
  async fleetEnergy({
    days,
    ...options
  }: CallOptions & { days?: number | undefined } = {}): Promise<api.SiteEnergy[]> {
    return this.#http.json<api.GetFleetEnergyResponse>({
      path: "/v1/fleet/energy",
      query: { days },
      ...options,
    });
  }

  /** The devices that sent nothing for `minutes` (60 by default), the longest silent first. */
  async silentDevices({
    minutes,
    ...options
  }: CallOptions & { minutes?: number | undefined } = {}): Promise<api.SilentDevice[]> {
    const call = { path: "/v1/fleet/silent", query: { minutes } };
    return this.#http.json<api.ListSilentDevicesResponse>({ ...call, ...options });
  }

  // --- The service itself

  /**
   * Whether this service asks for a token; to a client on its own machine, also the command that
   * makes one.
   */
  async signInNeeds(options: CallOptions = {}): Promise<api.SignInNeeds> {
    return this.#http.json<api.GetSignInResponse>({ path: "/v1/sign-in", ...options });
  }

  /**
   * Exchange the ticket of a one-time link, as `power-service --open` prints it, for a token. This
   * uses up the ticket, so it is never retried. `unauthorized` means that the ticket was used
   * before or is too old.
   */
  async signIn(ticket: string, options: CallOptions = {}): Promise<api.SignedIn> {
    const call = { method: "POST", path: "/v1/sign-in", body: { ticket } } as const;
    return this.#http.json<api.SignInResponse>({ ...call, ...options });
  }

  /**
   * The token's name, scopes and devices, and whether the service shows a file or a fleet
   * (`source`).
   */
  async me(options: CallOptions = {}): Promise<api.Me> {
    return this.#http.json<api.GetMeResponse>({ path: "/v1/me", ...options });
  }

  /** Whether the process answers. */
  async health(options: CallOptions = {}): Promise<api.Health> {
    return this.#http.json<api.GetHealthResponse>({ path: "/healthz", ...options });
  }

  /**
   * Whether the database can be read and the stream follows it; otherwise rejects with `not_ready`.
   */
  async ready(options: CallOptions = {}): Promise<api.Health> {
    return this.#http.json<api.GetReadinessResponse>({ path: "/readyz", ...options });
  }

  /** The metrics that Prometheus scrapes, as text. */
  async metrics(options: CallOptions = {}): Promise<string> {
    return this.#http.text({ path: "/metrics", ...options });
  }

  // --- The stream

  /**
   * Listen to events, readings and changes, live. All streams of a client share one connection,
   * which closes with the last of them. It reconnects by itself, also after restarts of the
   * service, and delivers every event exactly once.
   */
  stream(options: StreamOptions): StreamHandle {
    return this.#stream.open(options);
  }

  /** The state of the stream's connection. */
  get streamStatus(): StreamStatus {
    return this.#stream.status;
  }

  /**
   * Call `onChange` whenever `streamStatus` changes, without opening the stream. Returns a function
   * that stops this.
   */
  watchStreamStatus(onChange: () => void): () => void {
    return this.#stream.watch(onChange);
  }

  /**
   * A ticket for `WS /v1/stream?ticket=`, valid once and for seconds, for clients that cannot send
   * a subprotocol.
   */
  async createStreamTicket(options: CallOptions = {}): Promise<api.StreamTicket> {
    const call = { method: "POST", path: "/v1/stream/tickets", idempotent: true } as const;
    return this.#http.json<api.CreateStreamTicketResponse>({ ...call, ...options });
  }
}
