/** What the hooks make of what comes in: held against plain lists. */

import { describe, expect, test, vi } from "vitest";
import type {
  DeviceRecord,
  PowerClient,
  PowerEvent,
  PowerMeter,
  PowerReading,
  StreamOptions,
} from "../src";
import { Resource, type Source } from "../src/react/resource";
import {
  budgetSource,
  devicesSource,
  eventsSource,
  historySource,
  livePowerSource,
  meterSource,
  reportSource,
} from "../src/react/sources";
import { event } from "./fake";
import { SOON } from "./service";

const NOW = Date.parse("2026-11-23T12:00:00Z");

function reading(ms: number, meter_id = "m"): PowerReading {
  const timestamp = new Date(ms).toISOString().replace("Z", "000+00:00");
  return {
    id: `${meter_id}:${ms}`,
    meter_id,
    voltage: 1,
    current_draw: 1,
    wattage: 1,
    charge_pct: 1,
    timestamp,
  };
}

/** A client whose answers and stream are in the test's hands. */
function fake(methods: Partial<Record<keyof PowerClient, unknown>>) {
  const streams: StreamOptions[] = [];
  const handle = { sequence: undefined as number | undefined, close: vi.fn() };
  const stream = (options: StreamOptions) => {
    streams.push(options);
    return handle;
  };
  return { client: { stream, ...methods } as unknown as PowerClient, streams, handle };
}

const open = { state: "open", recovered: true } as const;

describe("a resource", () => {
  test("waits for the stream, applies messages of its loading time, and loads again on a reconnect", async () => {
    let answer: (events: PowerEvent[]) => void = () => {};
    const events = vi.fn(() => new Promise<PowerEvent[]>((resolve) => (answer = resolve)));
    const { client, streams } = fake({ events });
    const resource = new Resource(client, eventsSource("a", 10));
    const [stream] = streams as [StreamOptions];
    stream.onStatus?.({ state: "connecting" });
    expect(events).not.toHaveBeenCalled();
    stream.onStatus?.(open);
    const [one, two, three] = [event(1, "a").event, event(2, "a").event, event(3, "a").event];
    for (const [i, came] of [two, three].entries()) stream.onEvent?.(came, i + 2);
    answer([two, one]);
    await vi.waitFor(() => expect(resource.state.isLoading).toBe(false), SOON);
    expect(resource.state.data).toEqual([three, two, one]);
    stream.onStatus?.({ state: "reconnecting", code: 1006, reason: "" });
    expect(events).toHaveBeenCalledTimes(1);
    stream.onStatus?.(open);
    stream.onStatus?.(open); // during the load: once more after it
    answer([]);
    await vi.waitFor(() => expect(events).toHaveBeenCalledTimes(3), SOON);
  });

  test("works without a stream if that cannot be opened", async () => {
    const events = vi.fn(async () => []);
    const { client, streams } = fake({ events });
    const resource = new Resource(client, eventsSource("a", 10));
    for (let i = 0; i < 3; i++)
      streams[0]?.onStatus?.({ state: "reconnecting", code: 1006, reason: "" });
    await vi.waitFor(() => expect(resource.state.data).toEqual([]), SOON);
    streams[0]?.onStatus?.({ state: "reconnecting", code: 1006, reason: "" });
    expect(events).toHaveBeenCalledTimes(1);
  });

  test("is loaded at most once in each interval, at its end", async () => {
    vi.useFakeTimers();
    try {
      const getBudget = vi.fn(async () => ({}));
      const { client, streams, handle } = fake({ getBudget });
      const never = new Resource(client, budgetSource(["b"], Number.POSITIVE_INFINITY));
      for (const stream of streams.splice(0)) stream.onReading?.(reading(NOW), "b");
      const resource = new Resource(client, budgetSource(["a"], 5_000));
      streams[0]?.onStatus?.(open);
      for (let second = 0; second < 12; second++) {
        await vi.advanceTimersByTimeAsync(1_000);
        for (let i = 0; i < 10; i++) streams[0]?.onReading?.(reading(NOW), "a");
      }
      expect(getBudget).toHaveBeenCalledTimes(3);
      for (const one of [resource, never]) one.close();
      await vi.advanceTimersByTimeAsync(60_000);
      expect(getBudget).toHaveBeenCalledTimes(3);
      expect(handle.close).toHaveBeenCalled();
    } finally {
      vi.useRealTimers();
    }
  });
});

describe("a history", () => {
  /** A history of an hour that holds these readings. */
  async function history(readings: PowerReading[], maxPoints = 1_000) {
    const chart = vi.fn(async () => readings);
    const { client, streams } = fake({ chart });
    const resource = new Resource(client, historySource("m", 1, maxPoints, undefined));
    const [stream] = streams as [StreamOptions];
    stream.onStatus?.(open);
    await vi.waitFor(() => expect(resource.state.isLoading).toBe(false), SOON);
    return { resource, stream, chart };
  }

  test("takes readings in any order, each once, and drops those that are too old", async () => {
    vi.useFakeTimers({ now: NOW, toFake: ["Date"] });
    try {
      let state = 7;
      const random = (below: number) => {
        state = (state * 16_807) % 2_147_483_647;
        return state % below;
      };
      for (let run = 0; run < 30; run++) {
        const { resource, stream } = await history([]);
        const given = new Map<number, PowerReading>();
        let newest: PowerReading | undefined;
        for (let i = 0; i < 60; i++) {
          const ms = NOW - random(80) * 60_000 - 30_000; // none just at the edge
          newest = reading(ms);
          given.set(ms, newest);
          stream.onReading?.(newest, "a");
          stream.onReading?.(reading(ms, "another"), "a");
        }
        const wanted = [...given.values()].sort((a, b) => (a.timestamp < b.timestamp ? -1 : 1));
        const within = wanted.filter((one) => Date.parse(one.timestamp) >= NOW - 3_600_000);
        expect(resource.state.data).toEqual(within);
      }
    } finally {
      vi.useRealTimers();
    }
  });

  test("is loaded again when it is too long, or a reading was missed", async () => {
    const { stream, chart } = await history([], 8);
    for (let i = 0; i < 16; i++) stream.onReading?.(reading(Date.now() + i), "a");
    await new Promise((resolve) => setTimeout(resolve));
    expect(chart).toHaveBeenCalledTimes(1);
    stream.onReading?.(reading(Date.now() + 99), "a");
    await vi.waitFor(() => expect(chart).toHaveBeenCalledTimes(2), SOON);
    const state = { id: "m", updated_at: reading(Date.now() + 200).timestamp } as PowerMeter;
    stream.onState?.(state);
    await vi.waitFor(() => expect(chart).toHaveBeenCalledTimes(3), SOON);
    stream.onState?.({ ...state, updated_at: null });
    stream.onState?.({ ...state, id: "another" });
  });
});

describe("events of all devices", () => {
  test.each([undefined, 25, 3])(
    "the newest are found where the stream is at %s",
    async (sequence) => {
      const all = Array.from({ length: 25 }, (_, i) => event(i + 1, "a"));
      const asked: number[] = [];
      const eventsSince = async (after: number) => {
        asked.push(after);
        const events = all.filter((one) => one.sequence > after).slice(0, 7);
        return { events, next_after: events.at(-1)?.sequence ?? after };
      };
      const { client, streams, handle } = fake({ eventsSince });
      handle.sequence = sequence;
      const resource = new Resource(client, eventsSource(undefined, 4));
      streams[0]?.onStatus?.(open);
      await vi.waitFor(
        () => expect(resource.state.data?.map((one) => one.id)).toEqual(["25", "24", "23", "22"]),
        SOON,
      );
      if (sequence === 25) expect(asked[0]).toBe(21);
    },
  );
});

test("the newest events that a token may see are found, however far back", async () => {
  const some = Array.from({ length: 9 }, (_, i) => event(100 * (i + 1), "a"));
  const eventsSince = async (after: number) => ({
    events: some.filter((one) => one.sequence > after),
    next_after: Math.max(after, 900),
  });
  const { client, streams, handle } = fake({ eventsSince });
  handle.sequence = 900;
  const resource = new Resource(client, eventsSource(undefined, 4));
  streams[0]?.onStatus?.(open);
  await vi.waitFor(
    () => expect(resource.state.data?.map((one) => one.id)).toEqual(["900", "800", "700", "600"]),
    SOON,
  );
});

describe("devices", () => {
  const record = (id: string, name: string) => ({ id, name }) as DeviceRecord;

  test("are added, changed and removed by the stream, also while they are loaded", async () => {
    let answer: (devices: DeviceRecord[]) => void = () => {};
    const devices = vi.fn(() => new Promise<DeviceRecord[]>((resolve) => (answer = resolve)));
    const { client, streams } = fake({ devices });
    const resource = new Resource(client, devicesSource());
    const [stream] = streams as [StreamOptions];
    stream.onStatus?.(open);
    stream.onDevice?.(record("c", "new"));
    stream.onDeleted?.({
      kind: "device",
      device_id: "b",
      meter_id: null,
      since: null,
      until: null,
    });
    answer([record("a", "A"), record("b", "B")]);
    await vi.waitFor(
      () => expect(resource.state.data).toEqual([record("a", "A"), record("c", "new")]),
      SOON,
    );
    stream.onDevice?.(record("a", "renamed"));
    stream.onDeleted?.({ kind: "meter", device_id: "c", meter_id: "m", since: null, until: null });
    expect(resource.state.data).toEqual([record("a", "renamed"), record("c", "new")]);
    expect(devices).toHaveBeenCalledTimes(1);
  });

  test("that are deleted lose their events, too", async () => {
    const all = [event(1, "a"), event(2, "b")];
    const eventsSince = async (after: number) => ({
      events: all.filter((one) => one.sequence > after),
      next_after: 2,
    });
    const { client, streams } = fake({ eventsSince });
    const resource = new Resource(client, eventsSource(undefined, 4));
    streams[0]?.onStatus?.(open);
    await vi.waitFor(() => expect(resource.state.data?.length).toBe(2), SOON);
    streams[0]?.onDeleted?.({
      kind: "device",
      device_id: "a",
      meter_id: null,
      since: null,
      until: null,
    });
    expect(resource.state.data?.map(({ id }) => id)).toEqual(["2"]);
  });
});

test("several changes and deletions load budget, history and meter again once", async () => {
  vi.useFakeTimers();
  try {
    const load = vi.fn(async () => []);
    const { client, streams } = fake({
      getBudget: load,
      getReport: load,
      chart: load,
      meter: load,
    });
    const sources = [
      budgetSource(["a"], 60_000),
      reportSource("a", 7, 60_000),
      historySource("m", 1, 100, "a"),
      meterSource("m", "a"),
    ];
    for (const source of sources) new Resource<unknown>(client, source as Source<unknown>);
    for (const stream of streams) stream.onStatus?.(open);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(load).toHaveBeenCalledTimes(4);
    for (const stream of streams) {
      for (const meter_id of ["m", "n"])
        stream.onDeleted?.({ kind: "meter", device_id: "a", meter_id, since: null, until: null });
    }
    await vi.advanceTimersByTimeAsync(1_000);
    expect(load).toHaveBeenCalledTimes(8);
  } finally {
    vi.useRealTimers();
  }
});

describe("live power", () => {
  const meter = (id: string, device_id: string, voltage: number) =>
    ({ id, device_id, voltage }) as PowerMeter;

  test("a deleted meter is gone with the next load", async () => {
    const answers = [[meter("m", "a", 1), meter("n", "a", 1)], [meter("n", "a", 2)]];
    const source = livePowerSource(undefined);
    const client = { meters: async () => answers.shift() } as unknown as PowerClient;
    expect([...(await source.load(client, undefined)).keys()]).toEqual(["m", "n"]);
    expect([...(await source.load(client, undefined)).keys()]).toEqual(["n"]);
  });

  test("a meter deleted during loading is missing, and one deleted later goes at once", async () => {
    vi.useFakeTimers();
    try {
      let answer: (meters: PowerMeter[]) => void = () => {};
      const meters = () => new Promise<PowerMeter[]>((resolve) => (answer = resolve));
      const { client, streams } = fake({ meters });
      const resource = new Resource(client, livePowerSource(undefined));
      const ids = () => [...(resource.state.data?.keys() ?? [])];
      const gone = (kind: "meter" | "readings", meter_id: string) =>
        streams[0]?.onDeleted?.({ kind, device_id: "a", meter_id, since: null, until: null });
      streams[0]?.onStatus?.(open);
      gone("meter", "m");
      answer([meter("m", "a", 1), meter("n", "a", 1), meter("o", "a", 1)]);
      await vi.advanceTimersByTimeAsync(1_000);
      expect(ids()).toEqual(["n", "o"]);
      gone("meter", "o");
      gone("readings", "n");
      await vi.advanceTimersByTimeAsync(1_000);
      expect(ids()).toEqual(["n"]);
    } finally {
      vi.useRealTimers();
    }
  });

  test("a thousand changes are one render, and messages during loading win over what was loaded", async () => {
    vi.useFakeTimers();
    try {
      let answer: (meters: PowerMeter[]) => void = () => {};
      const meters = () => new Promise<PowerMeter[]>((resolve) => (answer = resolve));
      const { client, streams } = fake({ meters });
      const resource = new Resource(client, livePowerSource(["a"]));
      const changes = vi.fn();
      resource.show(changes);
      streams[0]?.onStatus?.(open);
      streams[0]?.onState?.(meter("m", "a", 2));
      answer([meter("m", "a", 1), meter("n", "a", 1), meter("o", "b", 1)]);
      await vi.advanceTimersByTimeAsync(1_000);
      expect([...(resource.state.data?.values() ?? [])]).toEqual([
        meter("m", "a", 2),
        meter("n", "a", 1),
      ]);
      changes.mockClear();
      for (let i = 0; i < 1_000; i++) streams[0]?.onState?.(meter(`m${i % 100}`, "a", i));
      await vi.advanceTimersByTimeAsync(1_000);
      expect(changes).toHaveBeenCalledTimes(1);
      expect(resource.state.data?.get("m99")?.voltage).toBe(999);
    } finally {
      vi.useRealTimers();
    }
  });
});
