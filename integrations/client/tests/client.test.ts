/** The whole REST surface, against the real service. */

import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { PowerClient, PowerError, type PowerReading } from "../src";
import { Service } from "./service";

const CONTRACT = JSON.parse(
  readFileSync(new URL("../../service/openapi.json", import.meta.url), "utf8"),
);
const START = Date.parse("2026-11-01T00:00:00Z");

const service = new Service();
const asked = new Set<string>();
let client: PowerClient;

/** Note which operation of the contract a request is. */
const noted: typeof fetch = async (input, init) => {
  const { pathname } = new URL(String(input));
  for (const [template, methods] of Object.entries<Record<string, { operationId: string }>>(
    CONTRACT.paths,
  )) {
    const pattern = new RegExp(`^${template.replace(/\{\w+\}/g, "[^/]+")}$`);
    const operation = methods[(init?.method ?? "GET").toLowerCase()];
    if (operation && pattern.test(pathname)) asked.add(operation.operationId);
  }
  return fetch(input, init);
};

beforeAll(async () => {
  await service.start();
  client = service.client({ token: service.token(), fetch: noted });
});
afterAll(() => service.remove());

/** So many recorded readings of a meter, one each two seconds. */
function readings(meter_id: string, count: number) {
  return Array.from({ length: count }, (_, i) => ({
    meter_id,
    voltage: 12,
    current_draw: i % 7,
    timestamp: new Date(START + i * 2_000).toISOString(),
  }));
}

describe("devices and meters", () => {
  test("a device is registered, changed, got and listed", async () => {
    const made = await client.putDevice("edge-1", { name: "Edge", target_wh: 150 });
    expect(made).toEqual({
      id: "edge-1",
      name: "Edge",
      shutdown_threshold: 3,
      target_wh: 150,
      low_battery_threshold: null,
      critical_battery_threshold: null,
    });
    expect((await client.putDevice("edge-1", { name: "Edge 1" })).target_wh).toBeNull();
    expect((await client.device("edge-1")).name).toBe("Edge 1");
    expect(await client.devices()).toContainEqual(await client.device("edge-1"));
  });

  test("changes to a device and its meters keep all other values; after deletion they are gone", async () => {
    await client.putDevice("edge-9", { name: "Edge", target_wh: 150 });
    expect(await client.updateDevice("edge-9", { name: "North" })).toMatchObject({
      name: "North",
      target_wh: 150,
    });
    const meter = await client.addMeter("edge-9", {
      type: "battery",
      capacity_wh: 50,
      name: "Pack",
    });
    const retired = await client.updateMeter(meter.id, { active: false });
    expect(retired).toMatchObject({ active: false, capacity_wh: 50, name: "Pack" });
    const [since, until] = [new Date(START), new Date(START + 3_000)];
    await client.logMany(
      [0, 1_000, 3_000].map((ms) => ({
        meter_id: meter.id,
        voltage: 12,
        current_draw: 1,
        timestamp: new Date(START + ms).toISOString(),
      })),
    );
    await client.flush();
    expect(await client.deleteReadings(meter.id, { since, until })).toBe(2);
    await client.deleteMeter(meter.id);
    expect(await client.meters({ deviceId: "edge-9" })).toEqual([]);
    await client.deleteDevice("edge-9");
    expect(await client.devices()).not.toContainEqual(expect.objectContaining({ id: "edge-9" }));
  });

  test.each(["a/b", "a b+c&d=e?f#g%2F", "Gerät 東京", "__proto__", "...", "a\\b"])(
    "the id %j arrives",
    async (id) => {
      await client.putDevice(id, { name: "odd" });
      expect((await client.device(id)).id).toBe(id);
      const meter = await client.addMeter(id, { type: "solar", name: "Panel" });
      expect((await client.meters({ deviceId: id })).map((one) => one.id)).toEqual([meter.id]);
      expect((await client.triggerEvent(id, { type: "restore" })).device_id).toBe(id);
      expect((await client.events(id)).length).toBe(1);
      const budget = await client.getBudget([id, "nobody"]);
      expect(Object.getOwnPropertyNames(budget).sort()).toEqual([id, "nobody"].sort());
      expect(budget.nobody).toHaveProperty("error");
      expect((await client.getReport(id)).device_id).toBe(id);
      expect(await client.runtime(id)).toBeNull();
    },
  );

  test("a meter is added, got and listed, with its state", async () => {
    await client.putDevice("edge-2", { name: "Edge" });
    const meter = await client.addMeter("edge-2", {
      type: "battery",
      capacity_wh: 50,
      name: "Pack",
    });
    expect(meter).toMatchObject({
      capacity_wh: 50,
      state: "charging",
      wattage: 0,
      updated_at: null,
    });
    expect(await client.meter(meter.id)).toEqual(meter);
    expect(await client.meters()).toContainEqual(meter);
  });

  test("a missing device or meter is not_found", async () => {
    await expect(client.device("nobody")).rejects.toMatchObject({ status: 404, code: "not_found" });
    await expect(client.meter("nothing")).rejects.toBeInstanceOf(PowerError);
  });
});

describe("readings", () => {
  let meter: string;
  beforeAll(async () => {
    await client.putDevice("edge-3", { name: "Edge" });
    meter = (await client.addMeter("edge-3", { type: "battery", capacity_wh: 50 })).id;
  });

  test("a reading is logged live, or recorded once", async () => {
    const live = await client.logPower({
      meter_id: meter,
      voltage: 3.7,
      current_draw: 0.5,
      charge_pct: 18,
    });
    expect(live).toEqual({ received: 1, stored: 1, implausible_charges: 0 });
    const recorded = {
      meter_id: meter,
      voltage: 3.7,
      current_draw: 0.5,
      timestamp: "2026-10-01T00:00:00Z",
    };
    expect((await client.logPower(recorded)).stored).toBe(1);
    expect((await client.logPower(recorded)).stored).toBe(0);
    expect((await client.meter(meter)).state).toBe("low");
    expect(await client.runtime("edge-3", { windowMinutes: 60 })).toBeGreaterThan(0);
  });

  test("many are logged in batches, and read page by page, in a window, and thinned out", async () => {
    await client.logMany(readings(meter, 2_500));
    expect(await client.flush()).toMatchObject({ received: 2_500, stored: 2_500, failed: [] });
    const pages: PowerReading[][] = [];
    for await (const page of client.history(meter, { since: new Date(START), pageSize: 1_000 }))
      pages.push(page);
    expect(pages.map((page) => page.length).slice(0, 2)).toEqual([1_000, 1_000]);
    const all = pages.flat().filter((one) => one.timestamp < "2026-11-02");
    expect(all.length).toBe(2_500);
    expect(all).toEqual([...all].sort((a, b) => (a.timestamp < b.timestamp ? -1 : 1)));
    const window = { since: new Date(START + 10_000), until: "2026-11-01T00:00:20+00:00" };
    const few: PowerReading[] = [];
    for await (const page of client.history(meter, window)) few.push(...page);
    expect(few.length).toBe(5);
    const chart = await client.chart(meter, { until: new Date(START + 5_000_000), maxPoints: 100 });
    expect(chart.length).toBeLessThanOrEqual(100);
    expect(Math.max(...chart.map((one) => one.wattage ?? Number.NaN))).toBe(72);
    const series = await client.series(meter, {
      until: new Date(START + 5_000_000),
      maxPoints: 100,
    });
    expect(series.reading_count).toBeGreaterThanOrEqual(2_500);
    expect(series.timestamps_ms).toEqual(chart.map((one) => Date.parse(one.timestamp)));
    expect(series.wattage).toEqual(chart.map((one) => one.wattage));
  });

  test("unknown values are null in both directions", async () => {
    const gauge = await client.addMeter("edge-3", { type: "ups" });
    const reading = { meter_id: gauge.id, voltage: 230, current_draw: null, charge_pct: 70 };
    expect(await client.logPower(reading)).toMatchObject({ received: 1, stored: 1 });
    const pages: PowerReading[][] = [];
    for await (const page of client.history(gauge.id)) pages.push(page);
    for (const [one] of [...pages, await client.chart(gauge.id)]) {
      expect(one).toMatchObject({
        voltage: 230,
        current_draw: null,
        wattage: null,
        charge_pct: 70,
      });
    }
    expect(await client.meter(gauge.id)).toMatchObject({
      power_known: false,
      wattage: null,
      charge_pct: 70,
    });
    expect(await client.statistics(gauge.id, { days: 1 })).toMatchObject([
      { avg_wattage: null, reading_count: 1 },
    ]);
    expect(await client.getBudget(["edge-3"])).toMatchObject({
      "edge-3": { unknown_power_count: 1 },
    });
  });

  test("an empty window has no pages", async () => {
    for await (const page of client.history(meter, { until: "1980-01-01T00:00:00Z" }))
      throw new Error(String(page));
  });

  test("statistics by hour and by day", async () => {
    const hours = await client.statistics(meter, { days: 36_500 });
    const days = await client.statistics(meter, { days: 36_500, bucket: "day" });
    const count = (rows: typeof hours) => rows.reduce((sum, row) => sum + row.reading_count, 0);
    expect(count(hours)).toBe(2_502);
    expect(count(days)).toBe(2_502);
    expect(days.length).toBeLessThan(hours.length);
    const window = { since: new Date(START + 1_800_000), until: "2026-11-01T01:00:00Z" };
    const some = await client.statistics(meter, window);
    expect(some.map((row) => row.start)).toEqual(["2026-11-01T00:00:00.000000+00:00"]);
    const asked = client.statistics(meter, { ...window, days: 7 });
    await expect(asked).rejects.toMatchObject({ status: 422, code: "invalid_value" });
  });

  test("a number that JSON lacks is refused, not sent as null", async () => {
    for (const charge_pct of [Number.NaN, Number.NEGATIVE_INFINITY]) {
      const reading = { meter_id: meter, voltage: 1, current_draw: 0, charge_pct };
      const refused = client.logPower(reading);
      await expect(refused).rejects.toMatchObject({ code: "invalid_argument" });
      await expect(refused).rejects.toThrow(
        /charge_pct: expected a finite number, got (NaN|-Infinity)/,
      );
    }
  });

  test("a refusal says the reason", async () => {
    const reading = { meter_id: meter, voltage: 1e9, current_draw: 0 };
    await expect(client.logPower(reading)).rejects.toMatchObject({
      status: 422,
      code: "invalid_value",
    });
    await expect(client.history(meter, { since: "yesterday" }).next()).rejects.toThrow(
      /yesterday|ISO/,
    );
  });
});

describe("events, budget, report", () => {
  test("an event is recorded, listed, and found by its sequence", async () => {
    await client.putDevice("edge-4", { name: "Edge" });
    const made = await client.triggerEvent("edge-4", {
      type: "shutdown",
      value: 2,
      note: "maintenance",
    });
    expect(await client.events("edge-4", { limit: 1 })).toEqual([made]);
    const { events, next_after, file_id } = await client.eventsSince(0);
    expect(events.at(-1)).toEqual({ sequence: next_after, event: made });
    const none = { events: [], next_after, file_id };
    expect(await client.eventsSince(next_after, { fileId: file_id })).toEqual({
      ...none,
      recovered: true,
    });
    expect(await client.eventsSince(next_after, { fileId: "of another file" })).toMatchObject({
      file_id,
      recovered: false,
    });
  });

  test("the budget of many devices takes several requests, of none no request, of all one", async () => {
    const ids = Array.from({ length: 250 }, (_, i) => `far-away-${i}`);
    const budget = await client.getBudget([...ids, "edge-1", "edge-1"]);
    expect(Object.keys(budget).length).toBe(251);
    expect(budget["edge-1"]).toHaveProperty("total_wattage");
    expect(await client.getBudget([])).toEqual({});
    expect(Object.keys(await client.getBudget()).length).toBe((await client.devices()).length);
  });

  test("sparklines of many devices take several requests; of no device they are misuse", async () => {
    const ids = Array.from({ length: 250 }, (_, i) => `far-away-${i}`);
    const found = await client.sparklines(["edge-1", ...ids, "edge-2"]);
    expect(found.step_seconds).toBe(3_600);
    expect(Object.keys(found.devices)).toEqual(["edge-1", "edge-2"]);
    expect(found.devices["edge-1"]).toEqual(Array(24).fill(null));
    await expect(client.sparklines([])).rejects.toMatchObject({ code: "invalid_argument" });
  });

  test("sparklines start again when an hour ends between two requests", async () => {
    const starts = ["11", "12", "12", "12"];
    const answer = async () => {
      const start = `2026-11-23T${starts.shift()}:00:00.000000+00:00`;
      return Response.json({
        start,
        step_seconds: 3_600,
        devices: { [`at-${starts.length}`]: [] },
      });
    };
    const other = new PowerClient({ baseUrl: "http://127.0.0.1:1", fetch: answer });
    const found = await other.sparklines(Array.from({ length: 101 }, (_, i) => `d${i}`));
    expect(found.start).toContain("T12");
    expect(Object.keys(found.devices)).toEqual(["at-1", "at-0"]);
  });

  test("ids of the greatest length fit", async () => {
    const ids = Array.from({ length: 100 }, (_, i) => "東".repeat(197) + (100 + i));
    expect(Object.keys(await client.getBudget(ids)).length).toBe(100);
  });

  test("a report covers the given days", async () => {
    expect((await client.getReport("edge-3", { days: 0.5 })).period_days).toBe(0.5);
    expect((await client.getReport("edge-3")).period_days).toBe(7);
  });
});

test("a service that shows a file refuses the calls for a fleet with a code", async () => {
  const calls = [
    client.fleet(),
    client.fleetDevices(),
    client.fleetEnergy({ days: 2 }),
    client.silentDevices({ minutes: 5 }),
  ];
  for (const call of calls)
    await expect(call).rejects.toMatchObject({ status: 404, code: "no_fleet" });
});

describe("the service itself", () => {
  test("says what the token is", async () => {
    const me = await client.me();
    expect(me).toMatchObject({ scopes: ["read", "write", "admin"], devices: null, source: "file" });
  });

  test("says whether it needs a token, and accepts a link once", async () => {
    const needs = await service.client({ fetch: noted }).signInNeeds();
    expect(needs).toEqual({
      token_needed: true,
      token_command: expect.stringContaining(service.db),
    });
    const refused = client.signIn("used");
    await expect(refused).rejects.toMatchObject({ status: 401, code: "unauthorized" });
    await expect(refused).rejects.toThrow(/used before/);
  });

  test("is healthy and ready, and has metrics and tickets", async () => {
    expect(await client.health()).toEqual({ status: "ok" });
    expect(await client.ready()).toEqual({ status: "ready" });
    expect(await client.metrics()).toContain("power_service_readings_stored_total");
    expect((await client.createStreamTicket()).expires_in).toBe(30);
  });

  test("tokens that are wrong, or lack a scope or device, are refused", async () => {
    await expect(service.client().devices()).rejects.toMatchObject({
      status: 401,
      code: "unauthorized",
    });
    const reader = service.client({ token: service.token(["read"]) });
    await expect(reader.putDevice("x", { name: "X" })).rejects.toMatchObject({
      code: "forbidden_scope",
    });
    const bound = service.client({ token: service.token(["read"], ["edge-1"]) });
    await expect(bound.device("edge-2")).rejects.toMatchObject({ code: "forbidden_device" });
    expect((await bound.devices()).map((device) => device.id)).toEqual(["edge-1"]);
  });
});

test("every operation of the contract except the backup, a file, has its method", () => {
  const all = Object.values<Record<string, { operationId: string }>>(CONTRACT.paths).flatMap(
    (methods) => Object.values(methods).map(({ operationId }) => operationId),
  );
  expect([...asked, "getBackup"].sort()).toEqual(all.sort());
});

test("every method takes a signal", async () => {
  const options = { signal: AbortSignal.abort() };
  const calls: Record<string, () => Promise<unknown>> = {
    devices: () => client.devices(options),
    device: () => client.device("a", options),
    putDevice: () => client.putDevice("a", { name: "A" }, options),
    updateDevice: () => client.updateDevice("a", { name: "A" }, options),
    deleteDevice: () => client.deleteDevice("a", options),
    updateMeter: () => client.updateMeter("m", { active: false }, options),
    deleteMeter: () => client.deleteMeter("m", options),
    deleteReadings: () =>
      client.deleteReadings("m", { since: new Date(0), until: new Date(1), ...options }),
    series: () => client.series("m", options),
    me: () => client.me(options),
    meters: () => client.meters(options),
    meter: () => client.meter("m", options),
    addMeter: () => client.addMeter("a", { type: "solar" }, options),
    logPower: () => client.logPower({ meter_id: "m", voltage: 1, current_draw: 1 }, options),
    history: () => client.history("m", options).next(),
    chart: () => client.chart("m", options),
    statistics: () => client.statistics("m", options),
    events: () => client.events("a", options),
    eventsSince: () => client.eventsSince(0, options),
    triggerEvent: () => client.triggerEvent("a", { type: "restore" }, options),
    runtime: () => client.runtime("a", options),
    getBudget: () => client.getBudget(["a"], options),
    getReport: () => client.getReport("a", options),
    health: () => client.health(options),
    ready: () => client.ready(options),
    metrics: () => client.metrics(options),
    sparklines: () => client.sparklines(["a"], options),
    fleet: () => client.fleet(options),
    fleetDevices: () => client.fleetDevices(options),
    fleetEnergy: () => client.fleetEnergy(options),
    silentDevices: () => client.silentDevices(options),
    signInNeeds: () => client.signInNeeds(options),
    signIn: () => client.signIn("x", options),
    createStreamTicket: () => client.createStreamTicket(options),
  };
  for (const [name, call] of Object.entries(calls)) {
    await expect(call(), name).rejects.toMatchObject({ isAborted: true });
  }
  const others = ["constructor", "logMany", "flush", "stream", "watchStreamStatus", "streamStatus"]; // elsewhere
  expect(Object.getOwnPropertyNames(PowerClient.prototype).sort()).toEqual(
    [...Object.keys(calls), ...others].sort(),
  );
});
