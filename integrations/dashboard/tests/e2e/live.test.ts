/**
 * What another process writes to the file is on the page at once, also after the service was
 * killed.
 */

import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { launch, open, refuse, Service, signedIn, Writer } from "./harness";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

interface Meter {
  readonly id: string;
  readonly type: string;
}

async function metersOf(writer: Writer, deviceId: string): Promise<Record<string, string>> {
  const meters = await writer.call<Meter[]>("list_meters", deviceId);
  return Object.fromEntries(meters.map((meter) => [meter.type, meter.id]));
}

const row = (page: Page, name: string) =>
  page.locator(".fleet-item", { has: page.getByRole("link", { name, exact: true }) });

test("a reading reaches the fleet and the device through the stream, without a request", async () => {
  const service = await Service.start(["show"]);
  const writer = new Writer(service.db);
  const { solar, battery } = await metersOf(writer, "edge-002");
  const { page } = await signedIn(browser, service);
  await row(page, "North mast").waitFor();
  // RESULTS.md has the time this takes; on a machine that is busy with other tests it takes longer.
  const requests: string[] = [];
  page.on("request", (request) => requests.push(new URL(request.url()).pathname));
  for (const amperes of [2, 3, 4]) {
    await writer.call("log_power", solar, 18, amperes);
    await row(page, "North mast")
      .locator(".cell-solar", { hasText: `${18 * amperes}.0 W` })
      .waitFor();
  }
  await page.getByRole("link", { name: "North mast" }).click();
  await page.getByRole("heading", { name: "North mast" }).waitFor();
  const pack = page.locator(".meter", { hasText: "Pack" });
  for (const amperes of [4, 5]) {
    await writer.call("log_power", battery, 12, amperes, 61);
    await pack.getByText(`${12 * amperes}.0 W`, { exact: true }).waitFor();
  }
  await pack.getByText("61 %").waitFor();
  // In the chart as well, whose legend has the latest of each line.
  const power = page.getByRole("table", { name: "Power by meter" });
  await power.getByRole("row", { name: /^Pack 60\.0 W/ }).waitFor();
  expect(requests.filter((path) => path === "/v1/devices" || path === "/v1/meters")).toEqual([]);
});

test("an event and a new device appear by themselves", async () => {
  const service = await Service.start(["show"]);
  const writer = new Writer(service.db);
  const { page } = await signedIn(browser, service, { hash: "#/device/edge-002" });
  await page.getByText("No events yet").waitFor();
  await writer.call("trigger_event", "edge-002", "restore", 0, "written elsewhere");
  await page.getByText("written elsewhere").waitFor();
  await page.getByRole("link", { name: "All devices" }).click();
  await writer.call("register_device", "edge-100", "Newcomer");
  await writer.call("add_meter", "edge-100", "battery", 10, "Cell");
  await row(page, "Newcomer").waitFor();
});

test("changes by another process are on the page at once", async () => {
  const service = await Service.start(["show"]);
  const writer = new Writer(service.db);
  const { solar, main, battery } = await metersOf(writer, "edge-002");
  const { page } = await signedIn(browser, service);
  await row(page, "North mast").waitFor();
  // The page's own looks are minutes and hours apart: only the stream is as fast as this test.
  const requests: string[] = [];
  page.on("request", (request) => requests.push(new URL(request.url()).pathname));
  await writer.call("register_device", "edge-100", "Newcomer");
  await row(page, "Newcomer").getByText("No readings").waitFor();
  await writer.call("update_device", "edge-100", { name: "Old hand" });
  await row(page, "Old hand").waitFor();
  await writer.call("delete_device", "edge-100");
  await row(page, "Old hand").waitFor({ state: "detached" });

  await page.getByRole("link", { name: "North mast" }).click();
  const cards = page.locator(".meter h3");
  const legend = page.getByRole("table", { name: "Power by meter" });
  await legend.getByRole("row", { name: /^Supply/ }).waitFor();
  await writer.call("update_meter", main, { name: "Feed" });
  await cards.filter({ hasText: "Feed" }).waitFor();
  await writer.call("delete_meter", main);
  await cards.filter({ hasText: "Feed" }).waitFor({ state: "detached" });
  await legend.getByRole("row", { name: /^Feed/ }).waitFor({ state: "detached" });
  for (const meter of [solar, battery])
    await writer.call("delete_readings", meter, { since: "2020-01-01T00:00:00Z" });
  await page.getByText("No readings in this range.").waitFor();
  await writer.call("delete_device", "edge-002");
  await page.getByText("No device has the id edge-002").waitFor();
  expect(requests.filter((path) => path === "/v1/devices" || path === "/v1/meters")).toEqual([]);
});

test("while the service is down, the page says so; afterwards nothing is missing", async () => {
  const service = await Service.start(["show"]);
  const writer = new Writer(service.db);
  const { battery } = await metersOf(writer, "edge-002");
  const { page } = await signedIn(browser, service, { hash: "#/device/edge-002" });
  await page.getByText("No events yet").waitFor();
  const refused = page.waitForEvent("websocket");
  await service.kill();
  await page.getByText("Reconnecting…", { exact: true }).waitFor();
  await refused; // at least once it was tried in vain
  await page.getByText("The connection to the service is lost.").waitFor();
  const look = () =>
    page
      .locator(".meters")
      .evaluate((meters) => [getComputedStyle(meters).filter, getComputedStyle(meters).fontStyle]);
  expect(await look()).toEqual(["grayscale(1)", "italic"]);
  // Meanwhile the edge goes on.
  await writer.call("log_power", battery, 12, 4, 15);
  for (const note of ["first while away", "second while away"]) {
    await writer.call("trigger_event", "edge-002", "restore", 0, note);
  }
  await service.run();
  await page.getByText("second while away").waitFor();
  await page.getByText("Live", { exact: true }).waitFor();
  expect(await look()).toEqual(["none", "normal"]);
  for (const text of ["first while away", "second while away", "Battery low"]) {
    expect(await page.locator(".event", { hasText: text }).count()).toBe(1);
  }
  await page.locator(".meter", { hasText: "Pack" }).getByText("48.0 W", { exact: true }).waitFor();
  // The reading of the time without a connection is in the chart too.
  await page
    .getByRole("table", { name: "Power by meter" })
    .getByRole("row", { name: /^Pack 48\.0 W/ })
    .waitFor();
});

test("a refused stream says why, and can be connected again by hand", async () => {
  const service = await Service.start(["show"], "--no-auth");
  const { page } = await open(browser, "about:blank");
  let refused = true;
  await page.routeWebSocket(/\/v1\/stream/, (socket) => {
    if (refused) void socket.close({ code: 4422, reason: "invalid_value" });
    else socket.connectToServer();
  });
  await page.goto(service.url);
  await page.getByText("The live connection has ended.").waitFor();
  await page.getByText("the stream was refused: 4422 invalid_value").waitFor();
  // The devices are there all the same, fetched once.
  await row(page, "North mast").waitFor();
  refused = false;
  await page.getByRole("button", { name: "Connect again" }).click();
  await page.getByText("Live", { exact: true }).first().waitFor();
  await row(page, "North mast").waitFor();
});

test("a device without a reading for two minutes is stale, in word and look", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service);
  const stale = row(page, "Tunnel fan");
  await stale.getByText("Stale", { exact: true }).waitFor();
  await stale.getByText(/^[45]\d min ago$/).waitFor();
  await row(page, "Ferry landing").getByText("No readings").waitFor();
  const style = (name: string) =>
    row(page, name)
      .locator(".cell-consumption")
      .evaluate((cell) => getComputedStyle(cell).fontStyle);
  expect([await style("Tunnel fan"), await style("Harbour gate")]).toEqual(["italic", "normal"]);
});

test("the page says what it can no longer load, beside what it has", async () => {
  const service = await Service.start(["show"], "--no-auth");
  const { page } = await open(browser, "about:blank");
  await refuse(page, "**/v1/budget**", "no room");
  await page.goto(service.url);
  await row(page, "North mast").waitFor();
  await page.getByText("Some data could not be loaded").waitFor();
  await page.getByText("no room").waitFor();
  await page.unrouteAll();
  await page.getByRole("button", { name: "Try again" }).click();
  await page.getByText("Some data could not be loaded").waitFor({ state: "hidden" });

  await row(page, "North mast").getByRole("link").click();
  await page.locator(".chart-plot canvas").nth(2).waitFor();
  await refuse(page, "**/statistics**", "no room");
  await service.kill();
  await page.getByText("The connection to the service is lost.").waitFor();
  await service.run();
  await page.getByText("Not up to date: no room").waitFor();
  expect(await page.locator(".chart-plot canvas").count()).toBe(3);
});
