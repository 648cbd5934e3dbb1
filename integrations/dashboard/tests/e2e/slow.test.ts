/**
 * A link of 1.6 Mbit/s that takes 150 ms each way and back: what the page loads over it, and in how
 * many turns.
 *
 * How long that takes is what the link makes of bytes and turns, and what the machine makes of the
 * rest. The link's share is held here, for it is the same on every machine: the turns are counted on
 * a link so long that none of them is the machine's. RESULTS.md has the whole, as `npm run bench` has
 * seen it.
 */

import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { launch, open, Service } from "./harness";
import { FAR_LINK, LINK, linkSeconds, loaded, slowDown, turnsOf } from "./link";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

// Of three and six seconds, what the browser and the service may take on a small machine.
const MACHINE_SECONDS = 0.6;

/**
 * What the link takes, until a page is there that was opened by a device that is remembered, or
 * without a token.
 */
async function linkTime(
  fill: readonly string[],
  hash: string,
  withToken: boolean,
  drawn: (page: Page) => Promise<void>,
): Promise<number> {
  const service = await Service.start(fill, ...(withToken ? [] : ["--no-auth"]));
  const { page, faults } = await open(browser, "about:blank");
  if (withToken) {
    const keep = (token: string) => localStorage.setItem("power-dashboard.token", token);
    await page.addInitScript(keep, service.token(["read"]));
  }
  const traffic = await slowDown(page, FAR_LINK);
  await page.goto(`${service.url}/${hash}`, { waitUntil: "commit" });
  await drawn(page);
  const requests = await loaded(page);
  expect(requests.filter(({ status }) => status !== 200)).toEqual([]); // nothing was refused, or given up
  expect(faults).toEqual([]);
  return linkSeconds(requests, traffic.streamBytes());
}

test.each([true, false])(
  "a device's day, four meters read each minute, is drawn within three seconds of such a link; with a token: %s",
  async (withToken) => {
    const seconds = await linkTime(["day"], "#/device/hut", withToken, (page) =>
      page.locator(".chart-plot canvas").nth(2).waitFor(),
    );
    expect(seconds).toBeLessThan(3 - MACHINE_SECONDS);
    expect(seconds).toBeGreaterThan(1); // the page alone takes that
  },
);

test.each([true, false])(
  "the rows of two thousand devices are there within six seconds of such a link; with a token: %s",
  async (withToken) => {
    const seconds = await linkTime(["crowd", "--devices", "2000"], "", withToken, async (page) => {
      await page.getByText("2000 devices").waitFor();
      await page.locator(".fleet-item").first().waitFor();
    });
    expect(seconds).toBeLessThan(6 - MACHINE_SECONDS);
    expect(seconds).toBeGreaterThan(2);
  },
);

test("round trips count once for requests at the same time", () => {
  const request = (start: number, end: number) => ({ start, end, bytes: 0, status: 200, url: "" });
  expect(
    turnsOf([
      request(0, 150),
      request(0, 900),
      request(160, 300),
      request(170, 320),
      request(310, 500),
    ]),
  ).toBe(3);
  expect(turnsOf([])).toBe(0);
  expect(linkSeconds([{ ...request(0, 1000), bytes: LINK.bytesPerSecond }], 0)).toBeCloseTo(1.15);
});
