/** The service's time, as its answers tell it. */

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { fetchWithTime, present } from "../../src/clock";

// A clock that stands still: a date in an answer has whole seconds.
beforeEach(() => vi.useFakeTimers({ now: Date.parse("2026-11-23T12:00:00Z"), toFake: ["Date"] }));
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

/** How far the page's time is from the machine's, in seconds, after an answer with this date. */
async function learned(date: string | null): Promise<number> {
  vi.stubGlobal("fetch", async () => new Response("", { headers: date === null ? {} : { date } }));
  await fetchWithTime("http://127.0.0.1/");
  return (present() - Date.now()) / 1000;
}

const inSeconds = (seconds: number) => new Date(Date.now() + 1000 * seconds).toUTCString();

test("is taken from its answers, and for this machine's where both are about the same", async () => {
  expect(await learned(inSeconds(-600))).toBe(-600);
  expect(await learned(null)).toBe(-600); // as it was
  expect(await learned("soon")).toBe(-600);
  expect(await learned(inSeconds(7200))).toBe(7200);
  expect(await learned(inSeconds(-3))).toBe(0);
});
