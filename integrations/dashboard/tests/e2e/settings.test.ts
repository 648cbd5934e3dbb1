/** Setting up from the page: by a token that may write, and seen at once. */

import type { DeviceRecord, PowerMeter } from "@blackroad/power-client";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { eventually, focusOn, launch, Service, signedIn, Writer } from "./harness";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

test("name, target and thresholds can be changed; a wrong figure keeps the other input", async () => {
  const service = await Service.start(["show"]);
  const writer = new Writer(service.db);
  const { page, faults } = await signedIn(browser, service, { hash: "#/device/edge-002" });
  const settings = page.locator(".settings");
  await settings.getByRole("button", { name: "Change…" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Name").fill("North mast, east");
  await dialog.getByLabel("Daily target, Wh").fill("a lot");
  await dialog.getByRole("button", { name: "Save" }).click();
  await dialog.getByText("Daily target: expected a number such as 12.5, got “a lot”.").waitFor();
  await dialog.getByLabel("Daily target, Wh").fill("1,200");
  await dialog.getByRole("button", { name: "Save" }).click();
  await dialog.getByText("Daily target: “1,200” can be 1200 or 1.200.").waitFor();
  await dialog.getByLabel("Daily target, Wh").fill("1,5");
  await dialog.getByLabel("Low battery at, %").fill("3");
  await dialog.getByLabel("Critical battery at, %").fill("30");
  await dialog.getByRole("button", { name: "Save" }).click();
  await dialog.getByText(/critical_battery_threshold/).waitFor(); // the service's own word
  await dialog.getByLabel("Low battery at, %").fill("40");
  await dialog.getByRole("button", { name: "Save" }).click();
  await dialog.waitFor({ state: "hidden" });
  await page.getByRole("heading", { name: "North mast, east" }).waitFor();
  await page.getByText("Over daily target").waitFor();
  await focusOn(page, "Change…");
  const devices = await writer.call<DeviceRecord[]>("list_devices");
  expect(devices.find(({ id }) => id === "edge-002")).toMatchObject({
    target_wh: 1.5,
    shutdown_threshold: 3,
    low_battery_threshold: 40,
    critical_battery_threshold: 30,
  });
  expect(faults).toEqual([]);
});

test("a meter is added, named, sized and retired", async () => {
  const service = await Service.start(["show"]);
  const writer = new Writer(service.db);
  const { page } = await signedIn(browser, service, { hash: "#/device/edge-002" });
  const settings = page.locator(".settings");
  const dialog = page.getByRole("dialog");
  await settings.getByRole("button", { name: "Add a meter…" }).click();
  await dialog.getByLabel("Type").selectOption({ label: "Battery" });
  await dialog.getByLabel("Name").fill("Spare");
  await dialog.getByRole("button", { name: "Add", exact: true }).click();
  await dialog.waitFor({ state: "hidden" });
  await page.locator(".meter", { hasText: "Spare" }).waitFor();
  await settings.getByRole("button", { name: "Spare…" }).click();
  await dialog.getByLabel("Capacity, Wh").fill("120");
  await dialog.getByLabel("Retired").check();
  await dialog.getByRole("button", { name: "Save" }).click();
  await dialog.waitFor({ state: "hidden" });
  await page.locator(".meter", { hasText: "Spare" }).getByText("retired").waitFor();
  const meters = await writer.call<PowerMeter[]>("list_meters", "edge-002");
  expect(meters.find(({ name }) => name === "Spare")).toMatchObject({
    capacity_wh: 120,
    active: false,
  });
});

test("a token that may only read sees the settings, and nothing to change them with", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service, {
    hash: "#/device/edge-002",
    scopes: ["read"],
  });
  await page.locator(".settings dd").first().waitFor();
  await eventually(async () => (await page.locator(".settings button").count()) === 0, "no button");
});

test("a device is registered once on the page; deleting needs its name and the scope admin", async () => {
  const service = await Service.start(["show"]);
  const writer = new Writer(service.db);
  const { page } = await signedIn(browser, service, { scopes: ["admin"] });
  const dialog = page.getByRole("dialog");
  await page.getByRole("button", { name: "Add a device…" }).click();
  await dialog.getByLabel("Id").fill("edge-001");
  await dialog.getByRole("button", { name: "Register" }).click();
  await dialog.getByText("There is already a device with the id edge-001.").waitFor();
  await dialog.getByLabel("Id").fill("edge-077");
  await dialog.getByLabel("Name", { exact: true }).fill("Salt store");
  await dialog.getByRole("button", { name: "Register" }).click();
  await page.getByRole("heading", { name: "Salt store" }).waitFor();

  await page.getByRole("button", { name: "Add a meter…" }).click();
  await dialog.getByRole("button", { name: "Add", exact: true }).click();
  await dialog.waitFor({ state: "hidden" });
  await page.getByRole("button", { name: "Mains…" }).click();
  await page.getByRole("button", { name: "Delete the meter…" }).click();
  await dialog.getByLabel("Type its name, Mains").fill("Mains");
  await dialog.getByRole("button", { name: "Delete" }).click();
  await page.getByText("No meters yet").waitFor();
  expect(await writer.call("list_meters", "edge-077")).toEqual([]);

  await page.getByRole("button", { name: "Delete the device…" }).click();
  await dialog.getByRole("button", { name: "Delete" }).click();
  await dialog.getByText("Type Salt store to delete it.").waitFor();
  await dialog.getByLabel("Type its name, Salt store").fill("Salt store");
  await dialog.getByRole("button", { name: "Delete" }).click();
  await page.getByText("12 devices").waitFor();
  const devices = await writer.call<DeviceRecord[]>("list_devices");
  expect(devices.map(({ id }) => id)).not.toContain("edge-077");
});

test("without the scope admin nothing can be deleted", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service, { hash: "#/device/edge-002" });
  await page.getByRole("button", { name: "Add a meter…" }).waitFor();
  await eventually(
    async () => (await page.getByRole("button", { name: /^Delete/ }).count()) === 0,
    "none",
  );
});
