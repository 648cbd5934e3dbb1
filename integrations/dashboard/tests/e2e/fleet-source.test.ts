/**
 * The page over a service that shows a fleet. What the routes answer alike for a file and a fleet
 * comes from a file here: the fleet's own tests hold the two against each other. What only a fleet
 * has is put in.
 */

import type { FleetDevice } from "@blackroad/power-client";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { eventually, launch, open, Service } from "./harness";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

const ME = { name: "test", scopes: ["read"], devices: null, database: null, source: "fleet" };
const STATE = {
  fresh_as_of: "2026-01-01T00:00:00.000000+00:00",
  waiting_messages: 3,
  dead_letters: 1,
};

const fact = (device_id: string, changes: Partial<FleetDevice> = {}): FleetDevice => ({
  device_id,
  site: "north",
  version: "1.0.0",
  opened_at: "2026-01-01T00:00:00.000000+00:00",
  last_seen: "2026-01-01T00:00:00.000000+00:00",
  alarms: [],
  ...changes,
});

/** The page of a dozen devices at two sites, one of which has an alarm. */
async function fleetPage(
  hash = "",
): Promise<{ page: Page; faults: string[]; problem: { now: boolean } }> {
  const service = await Service.start(["show"], "--no-auth");
  const problem = { now: false };
  const alarm = {
    kind: "silent",
    since: "2026-01-01T00:00:00.000000+00:00",
    note: "nothing for 60 min",
  };
  const ids = Array.from({ length: 12 }, (_, i) => `edge-${String(i + 1).padStart(3, "0")}`);
  const facts = ids.map((id, i) =>
    fact(id, {
      site: i < 8 ? "north" : "south",
      version: i === 0 ? "0.9.1" : "1.0.0",
      alarms: i === 2 ? [alarm] : [],
    }),
  );
  const { page, faults } = await open(browser, "about:blank");
  await page.route("**/v1/me", (route) => route.fulfill({ json: ME }));
  await page.route("**/v1/fleet", (route) => route.fulfill({ json: STATE }));
  await page.route("**/v1/fleet/devices", (route) =>
    problem.now ? route.abort() : route.fulfill({ json: facts }),
  );
  await page.goto(`${service.url}/${hash}`);
  return { page, faults, problem };
}

test("the strip shows how far the engine is, what waits, the versions and the alarms", async () => {
  const { page, faults } = await fleetPage();
  const strip = page.getByLabel("The fleet");
  await strip.waitFor();
  const text = await strip.textContent();
  expect(text).toContain("Waiting3 messages");
  expect(text).toContain("Dead letters1");
  expect(text).toContain("Versions1.0.0 (11), 0.9.1 (1)");
  expect(text).toContain("With alarms1");
  expect(text).toMatch(/Complete up to.*\(/);
  await page.locator('.alert[title*="Silent"]').waitFor();
  await eventually(async () => (await page.getByText("Add a device…").count()) === 0, "no button");
  expect(faults).toEqual([]);
});

test("its devices can be grouped by site, which the address keeps", async () => {
  const { page } = await fleetPage();
  await page.getByLabel("Group by").selectOption({ label: "By site (2)" });
  await page.getByRole("button", { name: /north/ }).waitFor();
  await page.getByRole("button", { name: /south/ }).waitFor();
  await page.waitForURL((url) => url.search === "?by=site");
});

test("a device shows its site and its forwarder's version, and nothing can be changed", async () => {
  const { page } = await fleetPage("#/device/edge-003");
  const card = page.getByRole("region", { name: "In the fleet" });
  await card.waitFor();
  const text = await card.textContent();
  expect(text).toContain("Sitenorth");
  expect(text).toContain("power-fleet 1.0.0");
  expect(text).toContain("Silent since");
  expect(text).toContain("nothing for 60 min");
  for (const name of ["Record event…", "Change…", "Add a meter…", "Delete the device…"])
    await eventually(async () => (await page.getByText(name).count()) === 0, `no button ${name}`);
});

test("the page says which facts could not be loaded, and shows all else", async () => {
  const { page, problem } = await fleetPage();
  await page.getByLabel("The fleet").waitFor();
  problem.now = true;
  await page.reload();
  await page.getByText("Sites, versions and alarms could not be loaded").waitFor();
  await page.getByRole("link", { name: "Harbour gate" }).waitFor();
});
