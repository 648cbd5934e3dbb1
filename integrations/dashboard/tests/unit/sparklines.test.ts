/**
 * The lines of the last day in the fleet's rows: what is asked for and when, and how they are
 * drawn.
 */

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { Sparklines } from "../../src/live/sparklines";
import { sparkPath } from "../../src/ui/Sparkline";

const HOUR_MS = 3_600_000;

describe("requested sparklines", () => {
  beforeEach(() => {
    vi.useFakeTimers({ now: Date.parse("2026-11-23T12:10:00Z") });
  });
  afterEach(() => {
    vi.useRealTimers();
  });

  /** A store that is shown, what it asks a service for, and how that service fails. */
  function shown() {
    const asked: string[][] = [];
    const service = { fails: false };
    const sparklines = async (ids: readonly string[]) => {
      asked.push([...ids]);
      if (service.fails) throw new Error("no room");
      const devices = Object.fromEntries(
        ids.filter((id) => id !== "gone").map((id) => [id, [1, null]]),
      );
      return { start: "2026-11-22T12:00:00+00:00", step_seconds: 3600, devices };
    };
    const store = new Sparklines({ sparklines });
    return { store, asked, service, end: store.subscribe(() => undefined) };
  }

  test("are those of the visible devices once scrolling has settled, each once", async () => {
    const { store, asked } = shown();
    for (const ids of [
      ["a", "b"],
      ["m", "n"],
      ["b", "c"],
    ]) {
      store.see(ids);
      await vi.advanceTimersByTimeAsync(100);
    }
    await vi.advanceTimersByTimeAsync(100);
    expect(asked).toEqual([["b", "c"]]);
    store.see(["c", "d"]);
    await vi.advanceTimersByTimeAsync(200);
    expect(asked[1]).toEqual(["d"]);
    expect(store.state().sparks.get("c")).toEqual([1, null]);
  });

  test("are loaded again after an hour, only for devices that are visible then", async () => {
    const { store, asked } = shown();
    store.see(["a", "b"]);
    await vi.advanceTimersByTimeAsync(1000);
    store.see(["b"]);
    await vi.advanceTimersByTimeAsync(HOUR_MS - 120_000);
    expect(asked.length).toBe(1);
    await vi.advanceTimersByTimeAsync(240_000);
    expect(asked.slice(1)).toEqual([["b"]]);
  });

  test("are loaded again a minute after a failure, which is shown until then", async () => {
    const { store, asked, service } = shown();
    service.fails = true;
    store.see(["a"]);
    await vi.advanceTimersByTimeAsync(1000);
    expect(String(store.state().error)).toBe("Error: no room");
    service.fails = false;
    await vi.advanceTimersByTimeAsync(60_000);
    expect([asked.length, store.state().error]).toEqual([2, null]);
  });

  test("are not requested again and again for devices that the service lacks", async () => {
    const { store, asked } = shown();
    store.see(["gone"]);
    await vi.advanceTimersByTimeAsync(600_000);
    expect([asked.length, store.state().sparks.get("gone")]).toEqual([1, []]);
  });

  test("are not loaded while no component needs them", async () => {
    const { store, asked, end } = shown();
    store.see(["a"]);
    end();
    await vi.advanceTimersByTimeAsync(2 * HOUR_MS);
    expect(asked).toEqual([]);
    store.subscribe(() => undefined);
    store.see(["a"]);
    await vi.advanceTimersByTimeAsync(200);
    expect(asked).toEqual([["a"]]);
  });
});

describe("how it is drawn", () => {
  test("the maximum is on top, zero at the bottom, and unknown hours are gaps", () => {
    expect(sparkPath([0, 10, null, 5], 40, 24)).toBe("M5.0 22.0h0L15.0 2.0M35.0 12.0h0");
  });

  test("power fed back is below zero, and a day without watts lies at the bottom", () => {
    expect(sparkPath([-10, 10], 20, 24)).toBe("M5.0 22.0h0L15.0 2.0");
    expect(sparkPath([0, 0], 20, 24)).toBe("M5.0 22.0h0L15.0 22.0");
    expect(sparkPath([null], 20, 24)).toBe("");
  });
});
