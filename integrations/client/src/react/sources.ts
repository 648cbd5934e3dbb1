/**
 * The source of each hook: how its data loads, and which messages of the stream keep it current.
 */

import type {
  Budget,
  DeviceRecord,
  PowerClient,
  PowerEvent,
  PowerMeter,
  PowerReading,
  Report,
  StreamOptions,
} from "../index";
import type { Resource, Source } from "./resource";

type Ids = readonly string[] | undefined;

const CHANGE_MS = 250; // one reload for a device that is deleted with all of its meters
const DRAW_MS = 100; // the shortest time between two renderings: thousands of meters may change

function key(...parts: unknown[]): string {
  return JSON.stringify(parts);
}

/** Reload after changes and deletions: people make them, and look at the result. */
function afterChanges(
  resource: Pick<Resource<unknown>, "loadSoon">,
): Pick<StreamOptions, "onDevice" | "onDeleted"> {
  const reload = () => resource.loadSoon(CHANGE_MS);
  return { onDevice: reload, onDeleted: reload };
}

/** Budgets, reloaded at most every `refreshMs` while readings or events arrive. */
export function budgetSource(ids: Ids, refreshMs: number): Source<Budget> {
  return {
    key: key("budget", ids, refreshMs),
    load: (client) => client.getBudget(ids),
    follow: (resource) => {
      const reload = () => resource.loadSoon(refreshMs);
      return { deviceIds: ids, onReading: reload, onEvent: reload, ...afterChanges(resource) };
    },
  };
}

/** A report, reloaded at most every `refreshMs` while readings or events arrive. */
export function reportSource(deviceId: string, days: number, refreshMs: number): Source<Report> {
  return {
    key: key("report", deviceId, days, refreshMs),
    load: (client) => client.getReport(deviceId, { days }),
    follow: (resource) => {
      const reload = () => resource.loadSoon(refreshMs);
      return {
        deviceIds: [deviceId],
        onReading: reload,
        onEvent: reload,
        ...afterChanges(resource),
      };
    },
  };
}

/** The devices, in order of registration. */
export function devicesSource(): Source<DeviceRecord[]> {
  return {
    key: key("devices"),
    load: (client) => client.devices(),
    follow: (resource) => ({
      onDevice: (changed) => resource.update((devices) => withDevice(devices, changed)),
      onDeleted: ({ kind, device_id }) => {
        if (kind === "device")
          resource.update((devices) => devices.filter(({ id }) => id !== device_id));
      },
    }),
  };
}

function withDevice(devices: DeviceRecord[], changed: DeviceRecord): DeviceRecord[] {
  const isKnown = devices.some(({ id }) => id === changed.id);
  return isKnown
    ? devices.map((device) => (device.id === changed.id ? changed : device))
    : [...devices, changed];
}

/** A meter's present state. */
export function meterSource(meterId: string, deviceId: string | undefined): Source<PowerMeter> {
  return {
    key: key("meter", meterId, deviceId),
    load: (client) => client.meter(meterId),
    follow: (resource) => ({
      deviceIds: deviceId === undefined ? undefined : [deviceId],
      onState: (meter) => {
        if (meter.id === meterId) resource.update(() => meter);
      },
      onDeleted: ({ meter_id }) => {
        if (meter_id === meterId) resource.loadSoon(CHANGE_MS); // the answer is an error
      },
    }),
  };
}

/** The readings with one more, in order of time, without those older than `hours`. */
function withReading(
  readings: PowerReading[],
  reading: PowerReading,
  hours: number,
): PowerReading[] {
  const since = Date.now() - hours * 3_600_000;
  let place = readings.length;
  while (place > 0 && (readings[place - 1] as PowerReading).timestamp > reading.timestamp) place--;
  if (readings[place - 1]?.timestamp === reading.timestamp) return readings;
  const all = [...readings.slice(0, place), reading, ...readings.slice(place)];
  const first = all.findIndex((one) => Date.parse(one.timestamp) >= since);
  return first > 0 ? all.slice(first) : all;
}

/**
 * A meter's readings of the last hours, thinned out, and each new one; reloaded when there are too
 * many.
 */
export function historySource(
  meterId: string,
  hours: number,
  maxPoints: number,
  deviceId: string | undefined,
): Source<PowerReading[]> {
  return {
    key: key("history", meterId, hours, maxPoints, deviceId),
    load: (client) =>
      client.chart(meterId, { since: new Date(Date.now() - hours * 3_600_000), maxPoints }),
    follow: (resource) => ({
      deviceIds: deviceId === undefined ? undefined : [deviceId],
      onReading: (reading) => {
        if (reading.meter_id !== meterId) return;
        resource.update((readings) => withReading(readings, reading, hours));
        if ((resource.state.data?.length ?? 0) > 2 * maxPoints) resource.loadSoon(0);
      },
      onState: (meter) => {
        // A state newer than the last reading: that reading was missed while the stream
        // reconnected.
        const last = resource.state.data && (resource.state.data.at(-1)?.timestamp ?? "");
        if (meter.id === meterId && last !== undefined && (meter.updated_at ?? "") > last)
          resource.loadSoon(1_000);
      },
      onDeleted: ({ meter_id }) => {
        if (meter_id === meterId) resource.loadSoon(CHANGE_MS);
      },
    }),
  };
}

/** The newest of the events after a sequence, oldest first. */
async function lastEvents(
  client: PowerClient,
  after: number,
  limit: number,
): Promise<PowerEvent[]> {
  let newest: PowerEvent[] = [];
  for (let place = after; ; ) {
    const { events, next_after } = await client.eventsSince(place, { limit: 10_000 });
    newest = [...newest, ...events.map(({ event }) => event)].slice(-limit);
    if (next_after <= place) return newest;
    place = next_after;
  }
}

/** The newest events of all devices, newest first. */
async function newestEvents(
  client: PowerClient,
  sequence: number | undefined,
  limit: number,
): Promise<PowerEvent[]> {
  // A token that sees only some devices may have to look far back for a few events.
  for (let back = limit; ; back *= 10) {
    const after = Math.max(0, (sequence ?? 0) - back);
    const newest = await lastEvents(client, after, limit);
    if (newest.length >= limit || after === 0) return newest.reverse();
  }
}

/** The newest events of one device or of all, newest first. */
export function eventsSource(deviceId: string | undefined, limit: number): Source<PowerEvent[]> {
  return {
    key: key("events", deviceId, limit),
    load: (client, sequence) =>
      deviceId === undefined
        ? newestEvents(client, sequence, limit)
        : client.events(deviceId, { limit }),
    follow: (resource) => ({
      deviceIds: deviceId === undefined ? undefined : [deviceId],
      onEvent: (event) =>
        resource.update((events) =>
          events.some((one) => one.id === event.id) ? events : [event, ...events].slice(0, limit),
        ),
      onDeleted: ({ kind, device_id }) => {
        if (kind === "device")
          resource.update((events) => events.filter((event) => event.device_id !== device_id));
      },
    }),
  };
}

/** Meters' present states by id, of some devices or of all. */
export function livePowerSource(ids: Ids): Source<ReadonlyMap<string, PowerMeter>> {
  const meters = new Map<string, PowerMeter>();
  const fresh = new Set<string>(); // meters that changed or went during the load, after its answer
  let due = false;
  const draw = (resource: Resource<ReadonlyMap<string, PowerMeter>>) => {
    if (due) return;
    due = true;
    setTimeout(() => {
      due = false;
      resource.update(() => new Map(meters));
    }, DRAW_MS);
  };
  return {
    key: key("live", ids),
    load: async (client) => {
      fresh.clear();
      const loaded = await client.meters(ids?.length === 1 ? { deviceId: ids[0] } : {});
      const there = new Set(loaded.map((meter) => meter.id));
      for (const id of meters.keys()) if (!there.has(id) && !fresh.has(id)) meters.delete(id);
      for (const meter of loaded) {
        if (!fresh.has(meter.id) && (!ids || ids.includes(meter.device_id)))
          meters.set(meter.id, meter);
      }
      return new Map(meters);
    },
    follow: (resource) => ({
      deviceIds: ids,
      onState: (meter) => {
        fresh.add(meter.id);
        meters.set(meter.id, meter);
        draw(resource);
      },
      onDeleted: ({ kind, meter_id }) => {
        if (kind !== "meter" || !meter_id) return;
        fresh.add(meter_id);
        meters.delete(meter_id);
        draw(resource);
      },
    }),
  };
}
