/** The fleet: a thousand devices, search, filter, order, and the keyboard. */

import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  DEADLINE,
  eventually,
  launch,
  open,
  refuse,
  Service,
  signedIn,
  titled,
  Writer,
  writing,
} from "./harness";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

const names = (page: Page) => page.locator(".fleet-item .cell-name a").allTextContents();

/**
 * The rows from top to bottom: in the document they are in the order in which they came into sight.
 */
async function shown(page: Page, column: string): Promise<string[]> {
  const cells = await page
    .locator(".fleet-item")
    .evaluateAll(
      (rows, kind) =>
        rows
          .map((row) => [
            Number((row as HTMLElement).dataset.index),
            row.querySelector(`.cell-${kind}`)?.textContent,
          ])
          .sort((a, b) => Number(a[0]) - Number(b[0])),
      column,
    );
  return cells.map(([, text]) => String(text));
}

test("of a thousand live devices only visible rows exist, and all can be reached", async () => {
  const service = await Service.start(["crowd", "--devices", "1000"]);
  await writing(service.db, "--every", "0.1", "--at-once", "20");
  const { page, faults } = await signedIn(browser, service);
  await page.getByText("1000 devices").waitFor();
  await page.getByRole("button", { name: "Device", exact: true }).click();
  await page.getByRole("link", { name: "Node 0001" }).waitFor();
  expect((await names(page)).length).toBeLessThan(60);
  await page.evaluate(() => scrollTo(0, document.body.scrollHeight));
  await page.getByRole("link", { name: "Node 1000" }).waitFor();
  expect((await names(page)).length).toBeLessThan(60);
  expect(await page.getByRole("table", { name: "Devices" }).getAttribute("aria-rowcount")).toBe(
    "1001",
  );
  await page.getByLabel("Search by name or id").fill("0777");
  await page.getByText("1 of 1000 devices").waitFor();
  expect(await names(page)).toEqual(["Node 0777"]);
  expect(faults).toEqual([]);
});

test("the columns sort the rows in both directions, with unknown values last", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service);
  const numbers = async (column: string) =>
    (await shown(page, column)).map((text) =>
      Number.parseFloat(text.replace(/^Last 24 h|^[^\d−–+-]*/, "").replace("−", "-")),
    );
  for (const [title, column] of [
    ["Consumption", "consumption"],
    ["Last 24 h", "dayWh"],
    ["Grid", "grid"],
  ] as const) {
    for (const direction of ["descending", "ascending"]) {
      const head = page.getByRole("columnheader", { name: title });
      await head.getByRole("button").click();
      expect(await head.getAttribute("aria-sort")).toBe(direction);
      const values = await numbers(column);
      expect(values.at(-1)).toBeNaN();
      const known = values.slice(0, -1);
      expect(known).toEqual([...known].sort((a, b) => (direction === "ascending" ? a - b : b - a)));
    }
  }
  await page.getByRole("button", { name: "Device", exact: true }).click();
  expect(await shown(page, "name")).toEqual([...(await shown(page, "name"))].sort());
});

test("filter and search show their matches; a search without a match offers a way back", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service);
  await page.getByRole("link", { name: "Quarry pump" }).waitFor();
  const show = (name: string) => page.getByRole("radio", { name, exact: true }).check();
  for (const [chip, wanted] of [
    ["With alerts 3", ["Depot kiosk", "Quarry pump", "Weir sensor"]],
    ["Critical 1", ["Quarry pump"]],
    ["Low 2", ["Depot kiosk", "Weir sensor"]],
    ["Stale 2", ["Bridge camera", "Tunnel fan"]],
    ["No readings 1", ["Ferry landing"]],
  ] as const) {
    await show(chip);
    expect((await names(page)).sort()).toEqual(wanted);
  }
  await show("All 12");
  await page.getByLabel("Search by name or id").fill("GATE edge-001");
  await page.getByText("1 of 12 devices").waitFor();
  expect(await names(page)).toEqual(["Harbour gate"]);
  await page.getByLabel("Search by name or id").fill("nowhere");
  await page.getByRole("button", { name: "Show all 12" }).click();
  await page.getByRole("link", { name: "Quarry pump" }).waitFor();
});

test("a flat battery is the first row, above sixty cameras of two watts", async () => {
  const service = await Service.start([], "--no-auth");
  const writer = new Writer(service.db);
  const register = async (
    id: string,
    type: string,
    watts: number,
    charge: number | null,
    ago = 0,
  ) => {
    await writer.call("register_device", id, id);
    const meter = await writer.call<{ id: string }>("add_meter", id, type, 50);
    const stamp = new Date(Date.now() - ago * 3_600_000).toISOString();
    await writer.call("log_many", [[meter.id, 12, watts / 12, charge, stamp]]);
  };
  for (let number = 1; number <= 60; number++) await register(`camera ${number}`, "main", 2, null);
  await register("wood", "battery", 6, 4.1);
  await register("river", "battery", 6, 14);
  await register("field", "battery", 6, 60);
  await register("bridge", "main", 6, null, 72);
  const { page } = await open(browser, service.url);
  await page.getByText("64 devices").waitFor();
  expect((await shown(page, "name a")).slice(0, 5)).toEqual([
    "wood",
    "river",
    "field",
    "bridge",
    "camera 1",
  ]);
  expect(
    await page.locator(".sum", { hasText: "With alerts" }).locator(".sum-value").textContent(),
  ).toBe("2");
  expect(await page.getByText("Power below").count()).toBe(0);
  await titled(page, "(2) Fleet · Power");
  await page.getByRole("link", { name: "wood" }).click();
  await titled(page, "(1) wood · Power");
});

test("search and order are still there after a visit to a device", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service);
  await page.getByLabel("Search by name or id").fill("gate");
  await page.getByRole("link", { name: "Harbour gate" }).click();
  await page.getByRole("heading", { name: "Harbour gate" }).waitFor();
  await page.goBack();
  await page.getByText("1 of 12 devices").waitFor();
});

test("after a visit to a device, the rows are where they were, with the focus on its row", async () => {
  const service = await Service.start(["crowd", "--devices", "1000"], "--no-auth");
  const { page } = await open(browser, service.url);
  await page.getByRole("button", { name: "Device", exact: true }).click();
  await page.getByRole("link", { name: "Node 0001" }).focus();
  for (const way of ["back", "link"]) {
    await page.evaluate(() => scrollTo(0, 20_000));
    await page.getByRole("link", { name: "Node 0390" }).click();
    await page.getByRole("heading", { name: "Node 0390" }).waitFor();
    if (way === "back") await page.goBack();
    else await page.getByRole("link", { name: "All devices" }).click();
    await eventually(
      () =>
        page.evaluate(
          () => document.activeElement?.textContent === "Node 0390" && scrollY === 20_000,
        ),
      `the place, by ${way}`,
    );
  }
});

test("the row with the focus is never behind the head of the table", async () => {
  const service = await Service.start(["crowd", "--devices", "100"], "--no-auth");
  const { page } = await open(browser, service.url);
  await page.getByRole("button", { name: "Device", exact: true }).click();
  await page.getByRole("link", { name: "Node 0001" }).focus();
  const focused = () => page.evaluate(() => document.activeElement?.textContent ?? "");
  await page.keyboard.press("End");
  await eventually(async () => (await focused()) === "Node 0100", "the last row");
  for (let number = 99; number > 70; number--) {
    await page.keyboard.press("ArrowUp");
    await eventually(async () => (await focused()) === `Node 00${number}`, `row ${number}`);
  }
  const [head, row] = await page.evaluate(() => [
    document.querySelector(".fleet-head")?.getBoundingClientRect().bottom,
    document.activeElement?.closest(".fleet-item")?.getBoundingClientRect().top,
  ]);
  expect(Number(row)).toBeGreaterThanOrEqual(Number(head));
});

/** Heads of groups and devices from top to bottom. */
const listed = (page: Page) =>
  page
    .locator(".fleet-item")
    .evaluateAll((rows) =>
      [...rows]
        .sort(
          (a, b) =>
            Number((a as HTMLElement).dataset.index) - Number((b as HTMLElement).dataset.index),
        )
        .map((item) => item.querySelector(".cell-name a, .group-name")?.textContent ?? ""),
    );

test("devices can be grouped by a part of their ids, which the address keeps", async () => {
  const service = await Service.start([], "--no-auth");
  const writer = new Writer(service.db);
  const now = Date.now();
  for (const [id, charge, watts] of [
    ["site-north-gate-1", 50, 6],
    ["site-north-gate-2", 12, 9],
    ["site-south-gate-1", 60, 3],
    ["depot", 70, 2],
  ] as const) {
    await writer.call("register_device", id, id);
    const { id: meter } = await writer.call<{ id: string }>("add_meter", id, "battery");
    const readings = [60_000, 0].map((ago) => [
      meter,
      12,
      watts / 12,
      charge,
      new Date(now - ago).toISOString(),
    ]);
    await writer.call("log_many", readings); // of a minute: 15 W make 0.25 Wh
  }
  const { page, faults } = await open(browser, service.url);
  await page.getByText("4 devices").waitFor();
  await eventually(async () => (await listed(page))[0] === "site-north-gate-2", "the lowest first");
  await page
    .getByLabel("Group by")
    .selectOption({ label: "By parts 1 to 2: site-north, site-south (2)" });
  const all = [
    "site-north",
    "site-north-gate-2",
    "site-north-gate-1",
    "site-south",
    "site-south-gate-1",
    "Others",
    "depot",
  ];
  await expect.poll(() => listed(page), { timeout: DEADLINE }).toEqual(all);
  const north = page.locator(".fleet-group", { hasText: "site-north" });
  await north.getByText("0.25 Wh").waitFor(); // the budgets come after the meters
  expect(await north.locator("> div").allTextContents()).toEqual([
    "site-north2 devices", "Low", "", "", "15.0 W", "0.25 Wh", "0.00 W", "0.00 W", "", "1 with alerts",
  ]); // biome-ignore format: a row
  await page.waitForURL((url) => url.search === "?split=-&part=1-2");

  // A device and back, another one and a reload: the groups are still there, and so is what was
  // closed until then.
  await north.getByRole("button").click();
  await expect.poll(() => listed(page), { timeout: DEADLINE }).toEqual([all[0], ...all.slice(3)]);
  await page.getByRole("link", { name: "depot" }).click();
  await page.getByRole("heading", { name: "depot" }).waitFor();
  await page.getByRole("link", { name: "All devices" }).click();
  await page.getByText("4 devices").waitFor();
  await expect.poll(() => listed(page), { timeout: DEADLINE }).toEqual([all[0], ...all.slice(3)]);
  await page.reload();
  await page.getByText("4 devices").waitFor();
  await expect.poll(() => listed(page), { timeout: DEADLINE }).toEqual(all);
  await page.getByLabel("Group by").selectOption({ label: "No groups" });
  await eventually(async () => (await listed(page)).length === 4, "no groups");
  await page.waitForURL((url) => url.search === "");
  await page.goBack();
  await page.getByRole("heading", { name: "depot" }).waitFor();
  await eventually(
    () => new URL(page.url()).search === "",
    "the address of before has lost its groups as well",
  );
  expect(faults).toEqual([]);
});

test("with the keyboard: the arrows reach the heads of groups, and Enter closes one", async () => {
  const service = await Service.start(["crowd", "--devices", "2000", "--sites", "40"], "--no-auth");
  const { page } = await open(browser, `${service.url}/?split=/&part=1`);
  await page.getByText("2000 devices").waitFor();
  await page.getByRole("button", { name: "Device", exact: true }).click();
  await page.getByRole("button", { name: /^site-01/ }).focus();
  const focused = () => page.evaluate(() => document.activeElement?.textContent ?? "");
  await page.keyboard.press("ArrowDown");
  await eventually(async () => (await focused()) === "Node 0001", "the first device of the group");
  await page.keyboard.press("ArrowUp");
  await eventually(async () => (await focused()).startsWith("site-01"), "the head of the group");
  await page.keyboard.press("Enter");
  await page.keyboard.press("ArrowDown");
  await eventually(async () => (await focused()).startsWith("site-02"), "the next head");
  expect(await page.getByRole("table", { name: "Devices" }).getAttribute("aria-rowcount")).toBe(
    "1991",
  );
  await page.keyboard.press("End");
  await eventually(async () => (await focused()) === "Node 2000", "the last device");
  expect(await page.locator(".fleet-item").count()).toBeLessThan(60);
});

test("visible rows have a line of 24 hours; only these are requested, each once", async () => {
  const service = await Service.start(["crowd", "--devices", "2000"], "--no-auth");
  const writer = new Writer(service.db);
  for (const { id } of await writer.call<{ id: string }[]>("list_meters", "node-0001")) {
    const readings = Array.from({ length: 20 }, (_, place) => {
      const at = Date.now() - (place + 1) * 1_800_000;
      return [id, 24, 1 + (place % 4), null, new Date(at).toISOString()];
    });
    await writer.call("log_many", readings);
  }
  const { page, faults } = await open(browser, "about:blank");
  const asked: string[] = [];
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.pathname !== "/v1/sparklines") return;
    const ids = url.searchParams.getAll("device");
    expect(ids.length).toBeLessThanOrEqual(100);
    asked.push(...ids);
  });
  await page.goto(service.url);
  await page.getByRole("button", { name: "Device", exact: true }).click();
  const row = page.locator(".fleet-item", { has: page.getByRole("link", { name: "Node 0001" }) });
  await row.getByRole("img", { name: /^by hour .* W to .* W$/ }).waitFor();
  await page.evaluate(() => scrollTo(0, document.body.scrollHeight));
  await eventually(() => asked.includes("node-2000"), "the last row is asked for");
  await page.evaluate(() => scrollTo(0, 0));
  await row.getByRole("link").click();
  await page.getByRole("heading", { name: "Node 0001" }).waitFor();
  await page.goBack();
  await row.getByRole("img", { name: /^by hour/ }).waitFor();
  expect(new Set(asked).size).toBe(asked.length);
  expect(asked.length).toBeLessThan(200);
  await refuse(page, "**/v1/sparklines**", "no room");
  await page.evaluate(() => scrollTo(0, 40_000));
  await page.getByText("The lines of the last 24 hours could not be loaded: no room").waitFor();
  expect(faults).toEqual([]);
});

test("a file without devices says how to make one", async () => {
  const service = await Service.start([]);
  const { page } = await signedIn(browser, service);
  await page.getByText("No devices yet").waitFor();
});

test("the keyboard is enough to sign in, pass a thousand rows, open a device and return", async () => {
  const service = await Service.start(["crowd", "--devices", "1000"]);
  const { page } = await open(browser, service.url);
  await page.getByLabel("Token").focus();
  await page.keyboard.type(service.token(["read"]));
  await page.keyboard.press("Enter");
  await page.getByText("1000 devices").waitFor();
  const focused = () => page.evaluate(() => document.activeElement?.textContent ?? "");
  const tabTo = (text: string) =>
    eventually(async () => {
      await page.keyboard.press("Tab");
      return (await focused()) === text;
    }, `tab reaches ${text}`);
  await tabTo("Device");
  await page.keyboard.press("Enter");
  await page.getByRole("link", { name: "Node 0001" }).waitFor();
  await tabTo("Node 0001");
  for (const [key, name] of [
    ["ArrowDown", "Node 0002"],
    ["PageDown", "Node 0012"],
    ["End", "Node 1000"],
    ["ArrowUp", "Node 0999"],
    ["Home", "Node 0001"],
  ] as const) {
    await page.keyboard.press(key);
    await eventually(async () => (await focused()) === name, `${key} goes to ${name}`);
  }
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Node 0001" }).waitFor();
  await tabTo("← All devices");
  await page.keyboard.press("Enter");
  await page.getByText("1000 devices").waitFor();
});
