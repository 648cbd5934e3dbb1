/** The service's time, as its answers tell it. */

import { afterEach, expect, test, vi } from "vitest";
import { fetchWithTime, present } from "../../src/clock";

afterEach(() => vi.unstubAllGlobals());

/** How far the page's time is from the machine's, in seconds, after an answer with this date. */
async function learned(date: string | null): Promise<number> {
  vi.stubGlobal("fetch", async () => new Response("", { headers: date === null ? {} : { date } }));
  await fetchWithTime("http://127.0.0.1/");
  return Math.round((present() - Date.now()) / 1000) + 0; // no minus zero
}

const inSeconds = (seconds: number) => new Date(Date.now() + 1000 * seconds).toUTCString();

test("is taken from its answers, and for this machine's where both are about the same", async () => {
  expect(Math.abs((await learned(inSeconds(-600))) + 600)).toBeLessThanOrEqual(1);
  expect(await learned(null)).toBeLessThan(-590); // as it was
  expect(await learned("soon")).toBeLessThan(-590);
  expect(Math.abs((await learned(inSeconds(7200))) - 7200)).toBeLessThanOrEqual(1);
  expect(await learned(inSeconds(-3))).toBe(0);
});
