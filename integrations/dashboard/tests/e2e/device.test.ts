/** One device: ranges, energy, budget, events with a confirmation, the report as files. */

import { readFileSync } from "node:fs";
import type { Report } from "@blackroad/power-client";
import type { Browser, Download, Page, Request, Route } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  eventually,
  focusOn,
  launch,
  open,
  pauseClock,
  refuse,
  Service,
  signedIn,
  titled,
  Writer,
  withinOneDay,
} from "./harness";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

const HASH = "#/device/edge-001";

/** The text of a cell of a chart's legend. */
const legend = (page: Page, chart: string, meter: string) =>
  page
    .getByRole("table", { name: `${chart} by meter` })
    .getByRole("row", { name: new RegExp(`^${meter}`) });

/** How many hours back a request for readings goes; null for every other request. */
function hoursOf(request: Request): number | null {
  const query = new URL(request.url()).searchParams;
  const since = query.get("since");
  if (!query.has("max_points") || since === null) return null;
  return Math.round((Date.now() - Date.parse(since)) / 3_600_000);
}

test("each range requests its window, beyond a day as hourly statistics, and draws all charts", async () => {
  const service = await Service.start(["show"]);
  const { page, faults } = await signedIn(browser, service, { hash: HASH });
  await legend(page, "Power", "Panel").waitFor();
  for (const [title, hours] of [
    ["1 h", 1],
    ["7 d", 168],
    ["30 d", 720],
    ["24 h", 24],
  ] as const) {
    // Among the requests that the page makes by itself each minute.
    const asked = page.waitForRequest((request) => hoursOf(request) === hours);
    const days = Math.max(7, hours / 24) + 1;
    const statistics = page.waitForRequest((request) => request.url().includes(`?days=${days}&`));
    await page.getByRole("radio", { name: title }).check();
    await Promise.all([asked, statistics]);
    const notes = { 168: "hourly mean, W", 720: "each day’s lowest, mean and highest, W" };
    await page.getByText(notes[hours as 168 | 720] ?? "every peak is kept").waitFor();
    for (const [chart, unit] of [
      ["Power", "W"],
      ["Voltage", "V"],
      ["Charge", "%"],
    ]) {
      const text = await legend(page, chart as string, "Pack").textContent();
      expect(text).toMatch(new RegExp(`Pack(−?[\\d.,]+ ${unit}){3}`));
    }
  }
  await page.locator(".chart-plot canvas").nth(2).waitFor();
  expect(await page.locator(".chart-plot canvas").count()).toBe(3);
  expect(faults).toEqual([]);
});

test("a month of readings each second lacks only the volts, and says why", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service, { hash: HASH });
  await refuse(page, "**/series?**", "too many readings");
  await page.getByRole("radio", { name: "30 d" }).check();
  await page.getByText("the readings of this range cannot be shown: too many readings").waitFor();
  await legend(page, "Power", "Panel").waitFor();
  await page.getByRole("radio", { name: "1 h" }).check();
  await page.getByText("The history could not be loaded").waitFor();
  await page.unrouteAll();
  await page.getByRole("button", { name: "Try again" }).click();
  await legend(page, "Voltage", "Panel").waitFor();
});

/** The page on a clock of its own; `asked` counts its requests for readings, in the page itself. */
async function clocked(service: Service, hash: string) {
  const { page } = await open(browser, "about:blank");
  await page.clock.install();
  await page.addInitScript(() => {
    const real = window.fetch;
    const counted = window as unknown as { asked: number };
    counted.asked = 0;
    window.fetch = (...request) => {
      if (String(request[0]).includes("max_points=")) counted.asked++;
      return real(...request);
    };
  });
  await page.goto(`${service.url}/${hash}`);
  return {
    page,
    asked: () => page.evaluate(() => (window as unknown as { asked: number }).asked),
  };
}

test("a range is fetched again only when it has moved by a pixel", async () => {
  const service = await Service.start(["show"], "--no-auth");
  const { page, asked } = await clocked(service, HASH);
  // What is drawn has set the timer of the next fetch; from then on time passes only here.
  await legend(page, "Power", "Panel").waitFor();
  await pauseClock(page);
  expect(await asked()).toBe(3);
  await page.clock.fastForward(61_000);
  expect(await asked()).toBe(6); // a day after a minute
  await page.clock.resume();
  await page.getByRole("radio", { name: "30 d" }).check();
  await page.getByText("each day’s lowest, mean and highest, W").waitFor();
  await pauseClock(page);
  expect(await asked()).toBe(9);
  await page.clock.fastForward(600_000);
  expect(await asked()).toBe(9);
  await page.clock.fastForward(130_000);
  expect(await asked()).toBe(12); // a month after twelve minutes
});

test("a history waits for the stream to bring its readings, and is then fetched once", async () => {
  const service = await Service.start(["show"], "--no-auth");
  const { page, asked } = await clocked(service, "");
  const link = page.getByRole("link", { name: "Harbour gate", exact: true });
  await link.waitFor();
  await pauseClock(page); // a new listener joins the stream by a timer
  await link.click();
  await titled(page, "Harbour gate · Power"); // said after the history has begun
  expect(await asked()).toBe(0);
  await page.clock.runFor(1_000);
  await legend(page, "Power", "Panel").waitFor();
  await page.clock.runFor(1_000);
  expect(await asked()).toBe(3);
});

test("a history is fetched without a stream too, and again when there is one", async () => {
  const service = await Service.start(["show"], "--no-auth");
  const { page } = await open(browser, "about:blank");
  await page.addInitScript(() => {
    const real = window.setTimeout;
    const soon = (call: () => void, ms = 0) => (ms < 60_000 ? real(call, ms) : 0);
    window.setTimeout = soon as typeof setTimeout; // what comes each minute never comes
  });
  let refused = true;
  await page.routeWebSocket(/\/v1\/stream/, (socket) => {
    if (refused) void socket.close({ code: 4429, reason: "too_many_connections" });
    else socket.connectToServer();
  });
  await page.goto(`${service.url}/${HASH}`);
  await legend(page, "Power", "Panel").waitFor();
  await page.getByText("Reconnecting…", { exact: true }).waitFor();
  const again = page.waitForRequest((request) => request.url().includes("max_points="));
  refused = false;
  await again;
});

test("the arrow keys move along a chart, and show the moment in local time and UTC", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service, { hash: HASH, timezoneId: "Asia/Kathmandu" });
  await legend(page, "Power", "Panel").waitFor();
  const chart = page.getByRole("group", { name: /^Power, chart/ });
  await chart.locator("canvas").waitFor(); // before it is there, keys move nothing
  await chart.focus();
  await page.keyboard.press("Home");
  const moment = page.locator(".chart", { has: chart }).locator(".chart-moment time");
  const first = await moment.textContent();
  expect(first).toMatch(/GMT\+5:45 · 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC$/);
  await page.keyboard.press("ArrowRight");
  await eventually(async () => (await moment.textContent()) !== first, "another moment");
  await page.keyboard.press("Escape");
  await page.locator(".chart", { has: chart }).getByText("Latest values").waitFor();
});

test("the energy by day equals the report's, by the viewer's local days", async () => {
  await withinOneDay();
  const service = await Service.start(["show"], "--no-auth");
  const { page } = await signedOff(service);
  await page.getByText("As a table").click();
  const cells = await page
    .getByRole("region", { name: "Energy by day, table" })
    .locator("td:nth-child(3)") // after the day and the consumption
    .allTextContents();
  expect(cells.length).toBe(7);
  const midnight = new Date();
  midnight.setUTCHours(0, 0, 0, 0);
  const days = (Date.now() - midnight.getTime()) / 86_400_000 + 6;
  const report = (await (
    await fetch(`${service.url}/v1/devices/edge-001/report?days=${days}`)
  ).json()) as Report;
  const solar = cells
    .map((cell) => Number.parseFloat(cell.replace(",", "")))
    .reduce((sum, value) => sum + value, 0);
  expect(Math.abs(solar - report.totals.solar_wh)).toBeLessThan(0.5 * 7 + 3);
});

async function signedOff(service: Service) {
  const seen = await open(browser, `${service.url}/${HASH}`, { timezoneId: "UTC" });
  await legend(seen.page, "Power", "Panel").waitFor();
  return seen;
}

test("the top shows how long it lasts, where power flows, and today beside yesterday", async () => {
  const service = await Service.start(["show"]);
  const writer = new Writer(service.db);
  const { page } = await signedIn(browser, service, { hash: "#/device/edge-004" });
  const flow = page.getByRole("img", { name: /^from solar/ });
  await flow.waitFor();
  const meters = await writer.call<{ id: string; type: string }[]>("list_meters", "edge-004");
  const log = async (type: string, ...values: unknown[]) =>
    writer.call("log_power", meters.find((meter) => meter.type === type)?.id, ...values);
  await log("solar", 20, 0);
  await log("main", 24, 0.25);
  await log("battery", 12, 1, 50);
  await page.getByText("9 h 10 min left").waitFor();
  expect(await page.locator(".charge-big").textContent()).toBe("50 %");
  const name = "from solar 0.00 W, from grid 6.00 W, from battery 12.0 W, Consumption 18.0 W";
  await page.getByRole("img", { name, exact: true }).waitFor();
  await log("battery", 12, -5, 90);
  await page.getByText("Full in 22 min").waitFor();
  // More flows into the battery than out of anything: where from is not known, and so not what is
  // used.
  await page.getByRole("img", { name: /into battery 60\.0 W, Consumption not known$/ }).waitFor();
  await page.locator(".today .pairs div", { hasText: "All of yesterday" }).waitFor();
  expect(await page.locator(".today-used").textContent()).toMatch(/^[\d.]+ Wh used/);
});

test("the budget shows the energy against the target, and says when it is over", async () => {
  const service = await Service.start(["show"]);
  const writer = new Writer(service.db);
  const { page } = await signedIn(browser, service, { hash: HASH });
  const meter = page.getByRole("meter");
  expect(await meter.getAttribute("aria-valuetext")).toMatch(
    /^\d+ Wh of 400 Wh, \d+ % of the target$/,
  );
  await writer.call("register_device", "edge-001", "Harbour gate", 3, 50);
  await page.getByText(/^over by \d+(\.\d+)? Wh$/).waitFor();
  await page.getByText("Over daily target").waitFor();
});

test("an event is recorded only once it is confirmed", async () => {
  const service = await Service.start(["show"]);
  const writer = new Writer(service.db);
  const { page } = await signedIn(browser, service, { hash: "#/device/edge-002" });
  const recorded = () =>
    writer.call<{ type: string; value: number; note: string | null }[]>("get_events", "edge-002");
  const dialog = page.getByRole("dialog");
  const fill = async () => {
    await page.getByRole("button", { name: "Record event…" }).click();
    await dialog.getByLabel("Type").selectOption({ label: "Shutdown" });
    await dialog.getByLabel("Value").fill("a few");
    await dialog.getByRole("button", { name: "Continue" }).click();
    await dialog.getByText("Value: expected a number such as 12.5, got “a few”.").waitFor();
    await dialog.getByLabel("Value").fill("1,5");
    await dialog.getByLabel("Note").fill("before the storm");
    await dialog.getByRole("button", { name: "Continue" }).click();
    await dialog.getByText("Record this event?").waitFor();
  };
  await fill();
  await page.keyboard.press("Escape");
  await dialog.waitFor({ state: "hidden" });
  expect(await recorded()).toEqual([]);
  await focusOn(page, "Record event…");
  await fill();
  await dialog.getByRole("button", { name: "Record", exact: true }).click();
  await dialog.waitFor({ state: "hidden" });
  await page.locator(".event", { hasText: "before the storm" }).waitFor();
  expect(await page.locator(".event").count()).toBe(1);
  expect(await recorded()).toMatchObject([
    { type: "shutdown", value: 1.5, note: "before the storm" },
  ]);
});

test("the dialog stays open until the service has answered whether an event was recorded", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service, { hash: "#/device/edge-002" });
  let sent: (route: Route) => void;
  const request = new Promise<Route>((resolve) => {
    sent = resolve;
  });
  await page.route("**/events", (route) => sent(route));
  await page.evaluate(() => {
    const real = window.setTimeout;
    const unlimited = (call: () => void, ms = 0) => (ms === 10_000 ? 0 : real(call, ms));
    window.setTimeout = unlimited as typeof setTimeout; // without the client's limit on silence
  });
  await page.getByRole("button", { name: "Record event…" }).click();
  await page.getByRole("button", { name: "Continue" }).click();
  await page.getByRole("button", { name: "Record", exact: true }).click();
  await page.getByText("Recording…").waitFor();
  const route = await request;
  for (let count = 0; count < 3; count++) await page.keyboard.press("Escape");
  await route.abort();
  await page.getByText("The service cannot be reached.").waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "hidden" });
});

test("a token that may only read sees no form", async () => {
  const service = await Service.start(["show"]);
  const options = { hash: "#/device/edge-002" };
  const reader = await signedIn(browser, service, { ...options, scopes: ["read"] });
  await reader.page.getByText("No events yet").waitFor();
  await reader.page.getByRole("button", { name: "Record event…" }).waitFor({ state: "hidden" });
  const writer = await signedIn(browser, service, options);
  await writer.page.getByText("No events yet").waitFor();
  await writer.page.getByRole("button", { name: "Record event…" }).waitFor();
});

test("the report comes as JSON and as CSV, with the figures of the service", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service, { hash: HASH });
  await page.getByLabel("Period").selectOption({ label: "30 days" });
  const get = async (kind: string): Promise<[Download, string]> => {
    const coming = page.waitForEvent("download");
    await page.getByRole("button", { name: `Download ${kind}` }).click();
    const download = await coming;
    return [download, readFileSync(await download.path(), "utf8")];
  };
  const [json, text] = await get("JSON");
  const report = JSON.parse(text) as Report;
  expect(json.suggestedFilename()).toBe(`edge-001-${report.generated_at.slice(0, 10)}-30d.json`);
  expect([report.device_id, report.period_days, report.meters.length]).toEqual(["edge-001", 30, 3]);
  const [csv, table] = await get("CSV");
  expect(csv.suggestedFilename()).toMatch(/^edge-001-.*-30d\.csv$/);
  const [head = "", ...lines] = table.trimEnd().split("\r\n");
  expect(head.split(",").slice(4, 9)).toEqual([
    "meter_id",
    "name",
    "type",
    "reading_count",
    "current_state",
  ]);
  const column = head.split(",").indexOf("energy_out_wh");
  expect(lines.map((line) => Math.round(Number(line.split(",")[column])))).toEqual(
    report.meters.map((meter) => Math.round(meter.energy_out_wh ?? Number.NaN)),
  );
});

test("times are local with their zone, and UTC on hover; an unknown device is named", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service, { hash: HASH, timezoneId: "America/New_York" });
  const time = page.locator(".event time").last();
  expect(await time.textContent()).toMatch(/\d\d:\d\d:\d\d GMT-[45]$/);
  expect(await time.getAttribute("title")).toMatch(/^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC$/);
  await page.evaluate(() => {
    location.hash = "#/device/edge-999";
  });
  await page.getByText("No device has the id edge-999").waitFor();
});
