/**
 * Any span of time: calendar, back and forth, dates, zoom, what a legend hides, and files of what
 * is seen.
 */

import { readFileSync } from "node:fs";
import type { Browser, Page, Request } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { eventually, focusOn, launch, open, Service, Writer, withinOneDay } from "./harness";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

const row = (page: Page, chart: string, meter: string) =>
  page
    .getByRole("table", { name: `${chart} by meter` })
    .getByRole("row", { name: new RegExp(`^${meter}`) });

const spanName = (page: Page) => page.locator(".span-name").textContent();

/** The page of a device with a month behind it. */
async function device(options = {}) {
  const service = await Service.start(["show"], "--no-auth");
  const seen = await open(browser, `${service.url}/#/device/edge-001`, {
    timezoneId: "UTC",
    ...options,
  });
  await row(seen.page, "Power", "Panel").waitFor();
  await seen.page.locator(".today-used").waitFor(); // what comes later moves the charts down
  await seen.page.getByRole("meter").waitFor();
  return { service, ...seen };
}

/** The window of a request for readings, as dates; null for every other request. */
function windowOf(request: Request): [since: string | null, until: string] | null {
  const query = new URL(request.url()).searchParams;
  const until = query.get("until");
  // Without an end it is that of a span up to now, which the page loads again by itself.
  return query.has("max_points") && until !== null ? [query.get("since"), until] : null;
}

const lastAsked = new WeakMap<Page, string>();

/** The window that the page asks for because of an act, and did not ask for just before. */
async function asked(page: Page, act: () => Promise<unknown>): Promise<(string | null)[]> {
  const last = lastAsked.get(page);
  const request = page.waitForRequest((one) => {
    const found = windowOf(one);
    return found !== null && String(found) !== last; // the same window is asked for once a meter
  });
  await act();
  const found = windowOf(await request) as [string | null, string];
  lastAsked.set(page, String(found));
  return found;
}

const utcDay = (ago: number) =>
  new Date(Math.floor(Date.now() / 86_400_000 - ago) * 86_400_000).toISOString();

test("this day, earlier ones and any dates request the right spans, and name them", async () => {
  await withinOneDay();
  const { page, faults } = await device();
  const later = page.getByRole("button", { name: "Later" });
  expect(await asked(page, () => page.getByRole("radio", { name: "Day" }).check())).toEqual([
    utcDay(0),
    utcDay(-1),
  ]);
  expect(await later.isDisabled()).toBe(true);
  const earlier = page.getByRole("button", { name: "Earlier" });
  expect(await asked(page, () => earlier.click())).toEqual([utcDay(1), utcDay(0)]);
  expect(await asked(page, () => earlier.click())).toEqual([utcDay(2), utcDay(1)]);
  expect(await asked(page, () => later.click())).toEqual([utcDay(1), utcDay(0)]);
  await page.getByText("Energy by hour").waitFor();

  await page.locator(".dates summary").click();
  await page.getByLabel("From", { exact: true }).fill(utcDay(9).slice(0, 10));
  await page.getByLabel("to", { exact: true }).fill(utcDay(12).slice(0, 10));
  await page.getByRole("button", { name: "Show", exact: true }).click();
  await page.getByText("The second date is before the first.").waitFor();
  await page.getByLabel("to", { exact: true }).fill(utcDay(7).slice(0, 10));
  const chosen = await asked(page, () =>
    page.getByRole("button", { name: "Show", exact: true }).click(),
  );
  expect(chosen).toEqual([utcDay(9), utcDay(6)]);
  expect(await spanName(page)).toMatch(/^\d+ \w+ 2\d{3} to \d+ \w+ 2\d{3}$/);
  await page.getByText("hourly mean, W").waitFor();
  await focusOn(page, "Dates");
  const dates = page.locator(".dates-form");
  for (const leave of ["Escape", "elsewhere"]) {
    await page.locator(".dates summary").click();
    await page.getByLabel("From", { exact: true }).focus();
    if (leave === "Escape") await page.keyboard.press("Escape");
    else await page.getByRole("heading", { name: "Events" }).click();
    await dates.waitFor({ state: "hidden" });
  }

  await page.getByRole("radio", { name: "Month" }).check();
  await page.getByText("each day’s lowest, mean and highest, W").waitFor();
  await page.getByRole("radio", { name: "Year" }).check();
  await page.getByText("Energy by month").waitFor();
  expect(faults).toEqual([]);
});

test("dragging over a chart zooms all charts in; a double click or minus goes back", async () => {
  const { page } = await device();
  const chart = page.getByRole("group", { name: /^Power, chart/ });
  await chart.scrollIntoViewIfNeeded();
  const plot = chart.locator(".u-over");
  const box = await plot.evaluate((one) => one.getBoundingClientRect());
  const at = (share: number) => [box.left + share * box.width, box.top + 40] as const;
  await page.mouse.move(...at(0.25));
  await page.mouse.down();
  await page.mouse.move(...at(0.5), { steps: 5 });
  const [since, until] = await asked(page, () => page.mouse.up());
  const hours = (Date.parse(String(until)) - Date.parse(String(since))) / 3_600_000;
  expect(Math.abs(hours - 6)).toBeLessThan(0.3);
  await eventually(async () => / to /.test(String(await spanName(page))), "a part of it");
  await row(page, "Voltage", "Panel").waitFor();
  await plot.dblclick();
  await eventually(async () => (await spanName(page)) === "Last 24 hours", "as it was");

  await chart.focus();
  await page.keyboard.press("+");
  await eventually(async () => / to /.test(String(await spanName(page))), "half of it");
  await page.getByRole("button", { name: "Zoom out" }).waitFor();
  await row(page, "Power", "Panel").waitFor();
  await page.getByRole("group", { name: /^Power, chart/ }).focus();
  await page.keyboard.press("-");
  await eventually(async () => (await spanName(page)) === "Last 24 hours", "as it was");
});

test("a click in a legend hides a line of that chart, and another shows it again", async () => {
  const { page } = await device({ colorScheme: "light" });
  const canvas = page.locator(".chart", { hasText: "Power" }).locator(".chart-plot canvas").first();
  const orange = () =>
    canvas.evaluate((element) => {
      const { width, height } = element as HTMLCanvasElement;
      const context = (element as HTMLCanvasElement).getContext("2d") as CanvasRenderingContext2D;
      const pixels = new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
      return pixels.filter((pixel) => pixel === 0xff006ab9).length; // --series-solar-1: alpha, b, g, r
    });
  await eventually(async () => (await orange()) > 20, "the panel's line");
  const panel = row(page, "Power", "Panel").getByRole("button");
  await panel.focus();
  await page.keyboard.press("Enter");
  await eventually(async () => (await orange()) === 0, "no line");
  expect(await panel.getAttribute("aria-pressed")).toBe("false");
  await panel.click();
  await eventually(async () => (await orange()) > 20, "the panel's line");
});

test("a feed of 230 V and a pack of 12 V have a chart each", async () => {
  const service = await Service.start([], "--no-auth");
  const writer = new Writer(service.db);
  await writer.call("register_device", "hut", "Hut");
  for (const [type, name, volts] of [
    ["main", "Feed", 231],
    ["battery", "Pack", 12.6],
    ["solar", "Roof", 18],
  ]) {
    const meter = await writer.call<{ id: string }>("add_meter", "hut", type, 0, name);
    await writer.call("log_power", meter.id, volts, 1);
  }
  const { page } = await open(browser, `${service.url}/#/device/hut`);
  await row(page, "Voltage of Feed", "Feed").waitFor();
  await row(page, "Voltage of Pack, Roof", "Roof").waitFor();
  expect(await page.getByRole("table", { name: /^Voltage/ }).count()).toBe(2);
});

test("a device whose clock says 1970 offers its readings", async () => {
  const service = await Service.start([], "--no-auth");
  const writer = new Writer(service.db);
  await writer.call("register_device", "old", "Old clock");
  const meter = await writer.call<{ id: string }>("add_meter", "old", "battery", 10, "Pack");
  const readings = Array.from({ length: 20 }, (_, minute) => [
    meter.id,
    12,
    1,
    50,
    new Date(60_000 * minute).toISOString(),
  ]);
  await writer.call("log_many", readings);
  const { page } = await open(browser, `${service.url}/#/device/old`, { timezoneId: "UTC" });
  await page.getByText("Its newest reading is from 1 Jan 1970").waitFor();
  await page.getByRole("button", { name: "Show its last day of readings" }).click();
  await row(page, "Power", "Pack").waitFor();
  expect(await row(page, "Power", "Pack").textContent()).toBe("Pack12.0 W12.0 W12.0 W");
});

test("a range downloads as CSV and JSON: every reading, or the energy by hour", async () => {
  await withinOneDay();
  const { service, page } = await device();
  await page.getByRole("radio", { name: "Day" }).check();
  await page.getByRole("button", { name: "Earlier" }).click();
  const files = page.locator(".range-files");
  const get = async (kind: string): Promise<[name: string, text: string]> => {
    const coming = page.waitForEvent("download");
    await files.getByRole("button", { name: kind }).click();
    const download = await coming;
    return [download.suggestedFilename(), readFileSync(await download.path(), "utf8")];
  };
  const day = utcDay(1).slice(0, 10);
  const [name, text] = await get("CSV");
  expect(name).toBe(`edge-001-readings-${day}-${day}.csv`);
  const [head, ...lines] = text.trimEnd().split("\r\n");
  expect(head).toBe("\ufefftime_utc,meter_id,meter,type,voltage_v,current_a,wattage_w,charge_pct");
  expect(lines.length).toBe(3 * 288); // each five minutes, of three meters
  expect(lines.every((line) => line.startsWith(day))).toBe(true);
  await files.getByText(/^Saved .*: 864 rows\./).waitFor();

  await files.getByLabel("Content").selectOption({ label: "Energy and statistics by hour" });
  const [, json] = await get("JSON");
  const hours = JSON.parse(json) as { meter: string; energy_out_wh: number }[];
  expect(hours.length).toBe(3 * 24);
  const meters = (await (await fetch(`${service.url}/v1/meters?device_id=edge-001`)).json()) as {
    id: string;
    name: string;
  }[];
  const panel = meters.find((meter) => meter.name === "Panel")?.id;
  const rows = (await (
    await fetch(`${service.url}/v1/meters/${panel}/statistics?days=3`)
  ).json()) as {
    start: string;
    energy_out_wh: number;
  }[];
  const sum = (all: { energy_out_wh: number }[]) =>
    all.reduce((wh, one) => wh + one.energy_out_wh, 0);
  expect(sum(hours.filter(({ meter }) => meter === "Panel"))).toBeCloseTo(
    sum(rows.filter(({ start }) => start.startsWith(day))),
    6,
  );
});
