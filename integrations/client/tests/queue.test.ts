/**
 * logMany and flush: what is acknowledged, what is given back, and that nothing is lost or stored
 * twice.
 */

import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import type { FlushResult, NewReading, PowerClient } from "../src";
import { Service, SOON } from "./service";

const service = new Service();
let token: string;
let meter: string;
let other: string;

beforeAll(async () => {
  await service.start();
  token = service.token();
  const client = service.client({ token });
  await client.putDevice("edge", { name: "Edge" });
  meter = (await client.addMeter("edge", { type: "main" })).id;
  other = (await client.addMeter("edge", { type: "main" })).id;
});
afterAll(() => service.remove());

function some(count: number, change: Partial<NewReading> = {}): NewReading[] {
  return Array.from({ length: count }, (_, i) => ({
    meter_id: meter,
    voltage: 5,
    current_draw: i / 100,
    ...change,
  }));
}

const FINE = { implausible_charges: 0, failed: [] };

/** How many readings a meter has. */
async function count(client: PowerClient, meterId: string): Promise<number> {
  let sum = 0;
  for await (const page of client.history(meterId, { pageSize: 10_000 })) sum += page.length;
  return sum;
}

function givenBack({ failed }: FlushResult): NewReading[] {
  return failed.flatMap(({ readings }) => readings);
}

test("readings wait for a full batch, or for flush", async () => {
  const bodies: number[] = [];
  const client = service.client({
    token,
    fetch: (input, init) => {
      bodies.push(JSON.parse(String(init?.body)).length);
      return fetch(input, init);
    },
  });
  await client.logMany(some(600));
  expect(bodies).toEqual([]);
  await client.logMany(some(1_600));
  expect(bodies).toEqual([1_000, 1_000]);
  expect(await client.flush()).toEqual({ received: 2_200, stored: 2_200, ...FINE });
  expect(bodies).toEqual([1_000, 1_000, 200]);
  expect(await client.flush()).toEqual({ received: 0, stored: 0, ...FINE });
});

test("readings without a timestamp get different ones at once, so a repeat stores nothing twice", async () => {
  let lost = 0;
  const client = service.client({
    token,
    fetch: async (input, init) => {
      const response = await fetch(input, init);
      if (init?.method === "POST" && lost++ < 2) throw new TypeError("the answer was lost");
      return response;
    },
  });
  const before = await count(client, other);
  const begin = new Date().toISOString();
  const given = some(3_000, { meter_id: other });
  await client.logMany(given);
  const { received, stored, failed } = await client.flush();
  expect([received, failed]).toEqual([3_000, []]);
  expect(stored).toBe(2_000); // as the last answer for each batch has it: the first of them was lost twice
  expect(await count(client, other)).toBe(before + 3_000);
  for await (const page of client.history(other, { since: begin }))
    expect(page.length).toBeGreaterThan(0);
  expect(given[0]).not.toHaveProperty("timestamp");
});

test("without a service all readings are returned, and can be queued again", async () => {
  const client = service.client({ token, retries: 1 });
  const before = await count(client, meter);
  await service.end("SIGKILL");
  await client.logMany(some(1_500));
  const result = await client.flush();
  expect([result.received, result.stored]).toEqual([0, 0]);
  expect(result.failed.map(({ error, readings }) => [error.code, readings.length])).toEqual([
    ["network", 1_000],
    ["network", 500],
  ]);
  await service.start();
  await client.logMany(givenBack(result));
  await client.logMany(givenBack(result)); // twice is harmless
  expect(await client.flush()).toEqual({ received: 3_000, stored: 1_500, ...FINE });
  expect(await count(client, meter)).toBe(before + 1_500);
});

test("charges that no gauge means are counted over all batches, also of a service that counts none", async () => {
  const client = service.client({ token });
  await client.logMany([
    ...some(999),
    ...some(2, { charge_pct: 255 }),
    ...some(1, { charge_pct: -1 }),
  ]);
  expect(await client.flush()).toEqual({
    received: 1_002,
    stored: 1_002,
    implausible_charges: 3,
    failed: [],
  });
  const older = service.client({
    token,
    fetch: async () => Response.json({ received: 1, stored: 1 }),
  });
  await older.logMany(some(1));
  expect(await older.flush()).toEqual({ received: 1, stored: 1, ...FINE });
});

test("a refused reading returns only its batch", async () => {
  const client = service.client({ token });
  await client.logMany([
    ...some(999),
    { meter_id: "nobody's", voltage: 1, current_draw: 1 },
    ...some(10),
  ]);
  const result = await client.flush();
  expect([result.received, result.stored]).toEqual([10, 10]);
  expect(result.failed.map(({ error, readings }) => [error.status, readings.length])).toEqual([
    [404, 1_000],
  ]);
});

test("readings that JSON cannot hold are returned, too", async () => {
  const client = service.client({ token });
  await client.logMany(some(1, { voltage: 5n as unknown as number }));
  expect((await client.flush()).failed.map(({ error }) => error.code)).toEqual([
    "invalid_argument",
  ]);
});

describe("a signal", () => {
  test("returns the readings that were not acknowledged", async () => {
    const client = service.client({ token });
    await client.logMany(some(10));
    const result = await client.flush({ signal: AbortSignal.abort() });
    expect(givenBack(result).length).toBe(10);
    expect(result.failed[0]?.error.isAborted).toBe(true);
  });

  test("of logMany does so for its batches, and flush reports it", async () => {
    const client = service.client({ token });
    await client.logMany(some(1_100), { signal: AbortSignal.abort() });
    const result = await client.flush();
    expect([result.received, givenBack(result).length]).toEqual([100, 1_000]);
  });
});

describe("a service that never answers", () => {
  let asked = 0;
  const silent: typeof fetch = (_, init) =>
    new Promise((_resolve, reject) => {
      asked++;
      init?.signal?.addEventListener("abort", () => reject(init.signal?.reason));
    });

  test("flush's signal also ends the batches of logMany; later readings are sent as usual", async () => {
    let real = false;
    const client = service.client({
      token,
      timeoutMs: 2 ** 31 - 1,
      fetch: (input, init) => (real ? fetch(input, init) : silent(input, init)),
    });
    asked = 0;
    const control = new AbortController();
    const added = client.logMany(some(2_500));
    await vi.waitFor(() => expect(asked).toBe(1), SOON);
    const flushed = client.flush({ signal: control.signal });
    control.abort("enough");
    const { failed, received } = await flushed;
    await added;
    expect([received, asked]).toEqual([0, 1]);
    expect(
      failed.map(({ error, readings }) => [error.isAborted, error.cause, readings.length]),
    ).toEqual([
      [true, "enough", 1_000],
      [true, "enough", 1_000],
      [true, "enough", 500],
    ]);
    real = true;
    await client.logMany(some(10));
    expect(await client.flush()).toEqual({ received: 10, stored: 10, ...FINE });
  });

  test("a signal that fired before flush does the same", async () => {
    const client = service.client({ token, timeoutMs: 2 ** 31 - 1, fetch: silent });
    asked = 0;
    const added = client.logMany(some(1_000));
    await vi.waitFor(() => expect(asked).toBe(1), SOON);
    expect(givenBack(await client.flush({ signal: AbortSignal.abort() })).length).toBe(1_000);
    await added;
  });
});

test("without a service and without flush, logMany rejects from 100,000 readings on", async () => {
  let away = true;
  const client = service.client({
    token,
    retries: 0,
    fetch: (input, init) => (away ? Promise.reject(new TypeError("away")) : fetch(input, init)),
  });
  await client.logMany(some(99_999));
  await client.logMany(some(1));
  const refused = client.logMany(some(7));
  await expect(refused).rejects.toThrow(
    /logMany: holding 100000 readings .* flush\(\) returns them .*away/,
  );
  await expect(refused).rejects.toMatchObject({ name: "PowerError", code: "network" });
  away = false;
  const result = await client.flush();
  expect([result.received, givenBack(result).length]).toEqual([0, 100_000]);
  await client.logMany(some(5));
  expect((await client.flush()).received).toBe(5);
});

test("simultaneous calls run in turn, and each reading is in one answer", async () => {
  const client = service.client({ token });
  const added = Array.from({ length: 5 }, () => client.logMany(some(700)));
  const results = await Promise.all([client.flush(), client.flush()]);
  await Promise.all(added);
  expect(results.map(({ received }) => received)).toEqual([3_500, 0]);
});
