/**
 * Devices as they should not be but are: long names, no meters, one reading, wrong clocks; and
 * pages on paper.
 */

import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { DEADLINE, eventually, launch, open, Service, Writer } from "./harness";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

const PHONE = { width: 360, height: 800 };
const WORD = "Donaudampfschifffahrt".repeat(9);

/** A service without tokens on an empty file, and the process that writes to it. */
async function empty(): Promise<{ service: Service; writer: Writer }> {
  const service = await Service.start([], "--no-auth");
  return { service, writer: new Writer(service.db) };
}

async function add(
  writer: Writer,
  deviceId: string,
  type: string,
  capacityWh: number,
  name: string | null,
) {
  return (await writer.call<{ id: string }>("add_meter", deviceId, type, capacityWh, name)).id;
}

const wider = (page: Page) =>
  page.evaluate(() => document.documentElement.scrollWidth - innerWidth);

test("a name of two hundred characters without a space makes nothing too wide", async () => {
  const { service, writer } = await empty();
  const id = `edge-${"0".repeat(100)}`;
  await writer.call("register_device", id, WORD);
  for (const type of ["battery", "solar"]) {
    await writer.call("log_power", await add(writer, id, type, 10, WORD), 12, 1, 3);
  }
  for (const viewport of [PHONE, { width: 1440, height: 900 }]) {
    const { page } = await open(browser, service.url, { viewport });
    await page.locator(".fleet-item .alert").waitFor();
    expect(await wider(page)).toBe(0);
    await page.getByRole("link", { name: WORD }).click();
    await page.locator(".chart-plot canvas").nth(2).waitFor();
    expect(await wider(page)).toBe(0);
    await page.getByRole("button", { name: "Record event…" }).click();
    await page.getByRole("dialog").waitFor();
    expect(await wider(page)).toBe(0);
    await page.goto(`${service.url}/#/device/${WORD}`);
    await page.getByText("No device has the id").waitFor();
    expect(await wider(page)).toBe(0);
  }
});

test("kilowatts, kilowatt-hours and a common alert fit into rows and cards", async () => {
  const service = await Service.start(["crowd", "--devices", "4"], "--no-auth");
  const writer = new Writer(service.db);
  for (const name of ["node-0001", "node-0002"]) {
    const meters = await writer.call<{ id: string }[]>("list_meters", name);
    for (const meter of meters) await writer.call("log_power", meter.id, 230, -4.5, 100);
    await writer.call("log_power", meters[2]?.id, 230, 4.5, 100);
  }
  await writer.call("update_device", "node-0001", { shutdown_threshold: 4 });
  const [panel, pack] = await writer.call<{ id: string }[]>("list_meters", "node-0003");
  await writer.call("log_power", panel?.id, 18, 1);
  await writer.call("log_power", pack?.id, 12, 0.785, 50); // 11 h 41 min
  const supply = (await writer.call<{ id: string }[]>("list_meters", "node-0004"))[2]?.id;
  const hourly = Array.from({ length: 24 }, (_, hour) => [
    supply,
    230,
    0.287,
    null,
    new Date(Date.now() - (23.5 - hour) * 3_600_000).toISOString(),
  ]);
  await writer.call("log_many", hourly); // some 1,500 Wh: as wide as watt-hours get
  for (const width of [360, 896, 1313, 1377, 1440]) {
    const { page } = await open(browser, service.url, { viewport: { width, height: 800 } });
    await page.getByText("Power below 4.00 W").first().waitFor();
    await page
      .getByText(/^1,[45]\d\d Wh$/)
      .first()
      .waitFor();
    const faulty = await page
      .locator(".fleet-item, .fleet-item > div, .fleet-item .alert-text, .sum-value")
      .evaluateAll((elements) =>
        elements
          .filter(
            (one) => one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight + 2,
          )
          .map((one) => `${one.className}: ${one.textContent}`),
      );
    expect([width, faulty]).toEqual([width, []]);
  }
});

test("a device that has never sent a reading shows no zeros for what is not known", async () => {
  const { service, writer } = await empty();
  await writer.call("register_device", "new", "New site", { target_wh: 240 });
  for (const type of ["battery", "solar", "main"]) await add(writer, "new", type, 10, null);
  const { page } = await open(browser, `${service.url}/#/device/new`);
  await page.getByText("no reading has come yet").waitFor();
  await page.getByText("No readings today").waitFor();
  await page.getByText("What it used in the last 24 h is not known.").waitFor();
  await page.locator(".energy-card", { hasText: "No energy is known for this range" }).waitFor();
  expect(await page.locator("#main").textContent()).not.toMatch(/(?<![\d.])0(\.00)? (W|Wh|s|%)/);
});

test("energy that lies between readings too far apart is not known, rather than 0", async () => {
  const { service, writer } = await empty();
  await writer.call("register_device", "rare", "Rarely read", { target_wh: 100 });
  const feed = await add(writer, "rare", "main", 0, "Feed");
  const readings = Array.from({ length: 16 }, (_, place) => {
    const at = Date.now() - 2 * 3_600_000 * place;
    return [feed, 12, 10, null, new Date(at).toISOString()];
  });
  await writer.call("log_many", readings);
  const { page } = await open(browser, `${service.url}/#/device/rare`);
  await page.getByText("What it used today is not known").waitFor();
  await page.getByText("What it used in the last 24 h is not known. The target is").waitFor();
  await page.locator(".energy-card", { hasText: "No energy is known for this range" }).waitFor();
  await page.getByRole("link", { name: "All devices" }).click();
  await page.locator(".fleet-item").first().waitFor();
  expect(await page.locator(".fleet-item .cell-dayWh").textContent()).toMatch(/–$/);
});

test("in a card, no name or id lies under the state beside it", async () => {
  const { service, writer } = await empty();
  await writer.call("register_device", "an-id-of-some-length", "A site with a long name");
  const { page } = await open(browser, service.url, { viewport: PHONE });
  const box = (selector: string) =>
    page.locator(selector).evaluate((one) => one.getBoundingClientRect());
  await page.locator(".badge", { hasText: "No readings" }).waitFor();
  expect((await box(".cell-name")).right).toBeLessThanOrEqual((await box(".badge")).left);
});

test("a name that reverses the direction of text reverses no figure", async () => {
  const { service, writer } = await empty();
  await writer.call("register_device", "rtl", "محطة");
  await writer.call(
    "log_power",
    await add(writer, "rtl", "battery", 10, "Pack \u202eABC"),
    12,
    1,
    3.4,
  );
  const { page } = await open(browser, service.url);
  const alert = page.locator(".alert-text");
  await alert.waitFor();
  // Where the characters are drawn, from left to right, whatever their order in the text.
  const drawn = await alert.evaluate((element) => {
    const text = element.firstChild as Text;
    const places = [...text.data].map((character, index) => {
      const range = document.createRange();
      range.setStart(text, index);
      range.setEnd(text, index + 1);
      return { character, left: range.getBoundingClientRect().left };
    });
    return places.sort((a, b) => a.left - b.left).map(({ character }) => character);
  });
  expect(drawn.filter((character) => /[\d.%]/.test(character)).join("")).toBe("3.4%");
});

test("a single reading is visible in the chart", async () => {
  const { service, writer } = await empty();
  await writer.call("register_device", "one", "One reading");
  await writer.call("log_power", await add(writer, "one", "main", 0, null), 12, 1);
  const { page } = await open(browser, `${service.url}/#/device/one`);
  const canvas = page.locator(".chart-plot canvas").first();
  const coloured = () =>
    canvas.evaluate((element) => {
      const { width, height } = element as HTMLCanvasElement;
      const context = (element as HTMLCanvasElement).getContext("2d") as CanvasRenderingContext2D;
      const pixels = new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
      return pixels.filter((pixel) => pixel === 0xffc96324).length; // --series-main-1, from the end: alpha, b, g, r
    });
  await eventually(async () => (await coloured()) > 3, "a point");
});

test("unknown runtimes, charts and meters show no figures", async () => {
  const { service, writer } = await empty();
  await writer.call("register_device", "none", "Without meters");
  await writer.call("register_device", "never", "Never read");
  await add(writer, "never", "battery", 10, null);
  await writer.call("register_device", "drains", "Drains");
  await writer.call(
    "log_power",
    await add(writer, "drains", "battery", 0, "Unknown size"),
    12,
    1,
    50,
  );
  const { page } = await open(browser, `${service.url}/#/device/never`);
  await page.getByText("No readings in this range.").waitFor();
  expect(await page.locator(".chart-plot").count()).toBe(0);
  expect(await page.locator(".meter-head").textContent()).toMatch(/^\s*BatteryNo readings$/); // not twice
  expect(await page.locator(".charge-big").textContent()).toBe("–");
  expect(await page.locator(".outlook-answer").textContent()).toBe("Not known");
  await page.goto(`${service.url}/#/device/drains`);
  await page.getByRole("heading", { name: "Drains" }).waitFor();
  await page.getByText("12.0 W flow out; no capacity is set").waitFor();
  await page.goto(`${service.url}/#/device/none`);
  await page.getByText("No meters yet").waitFor();
  const [upper, lower] = await page
    .locator(".no-meters, .side")
    .evaluateAll((cards) => cards.map((card) => card.getBoundingClientRect()));
  expect(Number(lower?.top) - Number(upper?.bottom)).toBeGreaterThanOrEqual(8);
});

test("unknown watts are a dash in every view, not zero", async () => {
  const { service, writer } = await empty();
  await writer.call("register_device", "gauge", "Gauge alone");
  const ups = await add(writer, "gauge", "ups", 0, "Rack");
  for (const charge of [62, 61]) await writer.call("log_power", ups, 230, null, charge);
  const { page, faults } = await open(browser, service.url);
  const cell = (name: string) => page.locator(`.fleet-item .cell-${name}`).textContent();
  await page.getByRole("link", { name: "Gauge alone" }).waitFor();
  for (const name of ["consumption", "dayWh", "grid", "runtime"])
    expect(await cell(name)).toMatch(/(^[^\d]*|Last 24 h)–$/);
  const sum = page.locator(".sum", { hasText: "Consumption" }).locator(".sum-value");
  expect(await sum.textContent()).toBe("–");
  await page.getByRole("link", { name: "Gauge alone" }).click();
  const card = page.locator(".meter");
  await card.getByText("61 %").waitFor();
  expect(await card.locator(".meter-watts > span").first().textContent()).toBe("–");
  expect(await card.locator("dd").allTextContents()).toEqual(["230 V", "–", "61 %"]);
  const latest = (chart: string) =>
    page
      .getByRole("table", { name: `${chart} by meter` })
      .getByRole("row", { name: /^Rack/ })
      .locator("td")
      .allTextContents();
  await page.locator(".chart-plot canvas").nth(2).waitFor();
  expect(await latest("Power")).toEqual(["–", "–", "–"]);
  expect(await latest("Voltage")).toEqual(["230 V", "230 V", "230 V"]);
  expect(await latest("Charge")).toEqual(["61 %", "61 %", "62 %"]);
  await page.getByRole("radio", { name: "7 d" }).check();
  await page.getByText("hourly mean, W").waitFor();
  expect(await latest("Power")).toEqual(["–", "–", "–"]);
  expect(faults).toEqual([]);
});

test("a retired meter says so, and no longer counts", async () => {
  const { service, writer } = await empty();
  await writer.call("register_device", "two", "Two packs");
  const [old, pack] = [
    await add(writer, "two", "battery", 10, "Old pack"),
    await add(writer, "two", "battery", 10, "New pack"),
  ];
  await writer.call("log_power", old, 12, 5, 1);
  await writer.call("log_power", pack, 12, 1, 80);
  const { page } = await open(browser, `${service.url}/#/device/two`);
  const consumption = page.locator(".flow-load .flow-watts");
  await consumption.getByText("72.0 W").waitFor();
  await writer.call("update_meter", old, { active: false });
  await consumption.getByText("12.0 W").waitFor();
  await page.locator(".meter", { hasText: "Old pack" }).getByText("retired").waitFor();
  expect(await page.locator(".device-alerts li").count()).toBe(0);
});

test("the figures of a stale device look stale, and a clock that is ahead is mentioned", async () => {
  const { service, writer } = await empty();
  const read = async (id: string, hours: number) => {
    await writer.call("register_device", id, id);
    const meter = await add(writer, id, "battery", 10, null);
    const stamp = new Date(Date.now() + hours * 3_600_000).toISOString();
    await writer.call("log_many", [[meter, 12, 1, null, stamp]]);
  };
  await read("behind", -1.5);
  await read("ahead", 3.5);
  const { page } = await open(browser, `${service.url}/#/device/behind`);
  await page.getByText("seen 1 h ago").waitFor();
  const style = await page
    .locator(".outlook-answer")
    .evaluate((one) => getComputedStyle(one).fontStyle);
  expect(style).toBe("italic");
  await page.goto(`${service.url}/#/device/ahead`);
  await page.getByText("seen 3 h ahead").waitFor();
});

test("a device whose clock is ahead shows its readings, and says that their time is wrong", async () => {
  const { service, writer } = await empty();
  await writer.call("register_device", "future", "Future");
  const meter = await add(writer, "future", "battery", 10, "Pack");
  const stamp = (minutes: number) => new Date(Date.now() + 60_000 * minutes).toISOString();
  const readings = Array.from({ length: 30 }, (_, minute) => [
    meter,
    12,
    1,
    50,
    stamp(120 + minute),
  ]);
  await writer.call("log_many", readings);
  const { page } = await open(browser, service.url);
  await page.locator(".fleet-item .alert", { hasText: "Its clock is ahead" }).waitFor();
  await page.getByRole("link", { name: "Future" }).click();
  await page.getByText("The clock of this device is ahead").waitFor();
  const row = page
    .getByRole("table", { name: "Power by meter" })
    .getByRole("row", { name: /^Pack/ });
  expect(await row.textContent()).toBe("Pack12.0 W12.0 W12.0 W");
  const chart = page.getByRole("group", { name: /^Power, chart/ });
  await chart.locator("canvas").waitFor(); // before it is there, keys move nothing
  await chart.focus();
  await page.keyboard.press("End");
  const place = () =>
    page.evaluate(() => {
      const [plot, cursor] = [".u-over", ".u-cursor-x"].map((name) =>
        document.querySelector(name)?.getBoundingClientRect(),
      );
      return ((cursor?.left ?? 0) - (plot?.left ?? 0)) / (plot?.width ?? 1);
    });
  // Inside of the chart, at its end.
  await expect.poll(place, { timeout: DEADLINE }).toBeGreaterThan(0.95);
  expect(await place()).toBeLessThanOrEqual(1);
});

test("with a wrong browser clock, live devices are live", async () => {
  const service = await Service.start(["crowd", "--devices", "3"], "--no-auth");
  const { page } = await open(browser, "about:blank");
  await page.addInitScript(() => {
    const right = Date.now;
    Date.now = () => right() + 3_600_000;
  });
  await page.goto(service.url);
  await page.getByText("3 of 3").waitFor();
  const shown = await page.locator(".clock").getAttribute("datetime");
  expect(Math.abs(Date.parse(String(shown)) - Date.now())).toBeLessThan(60_000);
});

test("a new name of the visible device moves neither the page nor the focus", async () => {
  const service = await Service.start(["show"], "--no-auth");
  const writer = new Writer(service.db);
  const { page } = await open(browser, "about:blank");
  await page.clock.install();
  await page.goto(`${service.url}/#/device/edge-001`);
  // All is there that makes the page as long as it is, and that loads anew by a timer.
  await page.locator(".event").first().waitFor();
  await page.locator(".chart-plot canvas").nth(2).waitFor();
  await page.locator(".today-used").waitFor();
  await page.getByRole("meter").waitFor();
  await page.getByRole("button", { name: "Download CSV" }).focus();
  await page.evaluate(() => scrollTo(0, 200));
  await writer.call("register_device", "edge-001", "Harbour gate, east");
  await page.getByRole("heading", { name: "Harbour gate, east" }).waitFor();
  // Another minute: everything is loaded and drawn anew.
  const answers = ["/series?", "?days=8&", "?days=3&"].map((part) =>
    page.waitForResponse((answer) => answer.url().includes(part)),
  );
  await page.clock.fastForward(61_000);
  await Promise.all(answers);
  await writer.call("register_device", "edge-001", "Harbour gate, west");
  await page.getByRole("heading", { name: "Harbour gate, west" }).waitFor();
  expect(await page.evaluate(() => [scrollY, document.activeElement?.textContent])).toEqual([
    200,
    "Download CSV",
  ]);
});

test("a note keeps its lines", async () => {
  const { service, writer } = await empty();
  await writer.call("register_device", "noted", "Noted");
  await writer.call("trigger_event", "noted", "restore", 0, "first line\nsecond line");
  const { page } = await open(browser, `${service.url}/#/device/noted`);
  const note = page.locator(".event-note");
  await note.waitFor();
  // biome-ignore lint/performance/useDomNodeTextContent: its lines are a matter of layout
  expect(await note.innerText()).toBe("first line\nsecond line");
});

test("a printed fleet has its visible rows, one below the other, dark on white", async () => {
  const service = await Service.start(["crowd", "--devices", "1000"], "--no-auth");
  const { page } = await open(browser, service.url, { colorScheme: "dark" });
  await page.getByText("1000 devices").waitFor();
  await page.locator(".fleet-item").first().waitFor();
  const paper = await page.pdf({ format: "A4" });
  expect(paper.toString("latin1").match(/\/Type\s*\/Page\b/g)?.length).toBeLessThan(8);
  await page.emulateMedia({ media: "print" });
  await page.setViewportSize({ width: 794, height: 1123 });
  const rows = await page
    .locator(".fleet-item")
    .evaluateAll((items) => items.map((item) => item.getBoundingClientRect()));
  for (const [index, row] of rows.slice(1).entries())
    expect(row.top).toBeGreaterThanOrEqual(Number(rows[index]?.bottom));
  expect(await page.evaluate(() => getComputedStyle(document.documentElement).color)).toBe(
    "rgb(22, 32, 42)",
  );
});
