/**
 * The figures of RESULTS.md: frames of the chart, a thousand devices, and how soon a reading is on
 * the page.
 */

import { writeFileSync } from "node:fs";
import { cpus, getPriority, loadavg } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import type { Browser } from "playwright-core";
import { build, preview } from "vite";
import { expect, onTestFinished, test } from "vitest";
import { directory, launch, open, Service, signedIn, Writer, writing } from "../tests/e2e/harness";
import { linkSeconds, loaded, slowDown, turnsOf } from "../tests/e2e/link";

const at = (values: readonly number[], share: number): number =>
  [...values].sort((a, b) => a - b)[
    Math.min(values.length - 1, Math.floor(share * values.length))
  ] ?? Number.NaN;

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length;

const ms = (value: number): string => `${value.toFixed(value < 10 ? 1 : 0)} ms`;

/** Rows of a table: what, and how much. */
type Rows = [what: string, figure: string][];

async function chartFrames(browser: Browser): Promise<Rows> {
  const outDir = directory();
  const config = {
    configFile: false,
    root: join(import.meta.dirname, "page"),
    logLevel: "error",
  } as const;
  await build({ ...config, build: { outDir, emptyOutDir: true } });
  const server = await preview({
    ...config,
    build: { outDir },
    preview: { host: "127.0.0.1", port: 0 },
  });
  onTestFinished(() => server.close());
  const rows: Rows = [];
  for (const points of [3_600, 20_000]) {
    const runs: number[] = [];
    for (let run = 0; run < 3; run++) {
      const { page } = await open(browser, `${server.resolvedUrls?.local[0]}?points=${points}`);
      await page.waitForFunction(() => window.frameTimes);
      const frames = (await page.evaluate(() => window.frameTimes)) as number[];
      runs.push(1000 / mean(frames));
      await page.context().close();
    }
    const median = at(runs, 0.5);
    rows.push([
      `chart, ${points.toLocaleString("en")} points x 3 lines, all moving each frame`,
      `${median.toFixed(1)} fps`,
    ]);
  }
  return rows;
}

async function thousandDevices(browser: Browser): Promise<Rows> {
  const service = await Service.start(["crowd", "--devices", "1000"]);
  await writing(service.db, "--every", "0.1", "--at-once", "20");
  const { page } = await signedIn(browser, service);
  await page.getByRole("button", { name: "Device", exact: true }).click();
  await page.getByRole("link", { name: "Node 0001" }).waitFor();
  const frames = await page.evaluate(async () => {
    const times: number[] = [];
    let before = await new Promise<number>(requestAnimationFrame);
    for (let frame = 0; frame < 300; frame++) {
      scrollBy(0, 150);
      const now = await new Promise<number>(requestAnimationFrame);
      times.push(now - before);
      before = now;
    }
    return times;
  });
  const nodes = await page.evaluate(() => document.querySelectorAll("*").length);
  return [
    [
      "1,000 devices, 600 readings a second: scrolling, mean",
      `${(1000 / mean(frames)).toFixed(1)} fps`,
    ],
    ["  99 of 100 frames within", ms(at(frames, 0.99))],
    ["  longest frame", ms(Math.max(...frames))],
    ["  elements in the page", String(nodes)],
  ];
}

async function latency(browser: Browser): Promise<Rows> {
  const service = await Service.start(["crowd", "--devices", "1000"]);
  const writer = new Writer(service.db);
  const [meter] = await writer.call<{ id: string }[]>("list_meters", "node-0500");
  const { page } = await signedIn(browser, service);
  await page.getByLabel("Search by name or id").fill("0500");
  await page.getByText("1 of 1000 devices").waitFor();
  const delays: number[] = [];
  for (let count = 1; count <= 40; count++) {
    const text = `${(10 + count).toFixed(1)} W`;
    const shown = page.waitForFunction(
      (wanted) =>
        document.querySelector(".cell-solar")?.textContent?.includes(wanted) &&
        performance.timeOrigin + performance.now(),
      text,
      { polling: "raf" },
    );
    const begin = performance.timeOrigin + performance.now();
    await writer.call("log_power", meter?.id, 10, (10 + count) / 10);
    delays.push(Number(await (await shown).jsonValue()) - begin);
  }
  return [
    [
      "reading written by another process, until it is in the row: half within",
      ms(at(delays, 0.5)),
    ],
    ["  longest of 40", ms(Math.max(...delays))],
  ];
}

/**
 * From the address until all of a view is drawn, over the link of 1.6 Mbit/s and 150 ms; median of
 * three.
 */
async function slowLink(browser: Browser): Promise<Rows> {
  const views = [
    [
      "a device’s day, 4 meters, 1 reading a minute",
      ["day"],
      "#/device/hut",
      ".chart-plot canvas >> nth=2",
    ],
    ["rows of 2,000 devices", ["crowd", "--devices", "2000"], "", ".fleet-item >> nth=0"],
  ] as const;
  const rows: Rows = [];
  for (const [what, fill, hash, drawn] of views) {
    const service = await Service.start(fill);
    const token = service.token(["read"]);
    const times: number[] = [];
    let link = "";
    for (let run = 0; run < 3; run++) {
      const { page } = await open(browser, "about:blank");
      await page.addInitScript(
        (kept) => localStorage.setItem("power-dashboard.token", kept),
        token,
      );
      const traffic = await slowDown(page);
      await page.goto(`${service.url}/${hash}`, { waitUntil: "commit" });
      await page.locator(drawn).waitFor();
      times.push(await page.evaluate(() => performance.now()));
      const requests = await loaded(page);
      const bytes = requests.reduce((sum, request) => sum + request.bytes, 0);
      const seconds = linkSeconds(requests, traffic.streamBytes()).toFixed(1);
      link = `${turnsOf(requests)} turns, ${Math.round(bytes / 1000)} kB and ${Math.round(traffic.streamBytes() / 1000)} kB of the stream: the link’s share is ${seconds} s`;
      await page.context().close();
    }
    rows.push([`1.6 Mbit/s, 150 ms: ${what}`, `${(at(times, 0.5) / 1000).toFixed(1)} s`]);
    rows.push(["  of which", link]);
  }
  return rows;
}

async function bundle(): Promise<Rows> {
  const built = await build({ logLevel: "error", build: { write: false } });
  const { output } = (Array.isArray(built) ? built[0] : built) as {
    output: { fileName: string; code?: string; source?: string | Uint8Array }[];
  };
  return output
    .filter(({ fileName }) => /\.(js|css)$/.test(fileName))
    .map(({ fileName, code, source }) => {
      const content = Buffer.from(code ?? source ?? "");
      return [
        `${fileName.split(".").pop()}, gzip`,
        `${(gzipSync(content).length / 1024).toFixed(0)} KB`,
      ];
    });
}

// Of vitest it would be "test", and React another build.
process.env.NODE_ENV = "production";

test("figures", { timeout: 300_000 }, async () => {
  const browser = await launch();
  onTestFinished(() => browser.close());
  const load = loadavg()[0]?.toFixed(1);
  const rows = [
    ...(await chartFrames(browser)),
    ...(await thousandDevices(browser)),
    ...(await latency(browser)),
    ...(await slowLink(browser)),
    ...(await bundle()),
  ];
  const table = rows.map(([what, figure]) => `| ${what} | ${figure} |`).join("\n");
  console.log(table);
  const place = `${cpus().length} cores shared with the service, the writer and other work, load average ${load} at the start, nice ${getPriority()}`;
  const about = `Chromium ${browser.version()} without a window or a graphics card, Node ${process.version}; ${place}`;
  writeFileSync(
    join(import.meta.dirname, "../RESULTS.md"),
    `# Results\n\nMade by \`npm run bench\`. ${about}. A display of 60 Hz allows 60 fps at most.\n\n| what | figure |\n| --- | --- |\n${table}\n\nThe chart is the page's own component with its legend, 900 pixels wide: the mean of 240 frames, median of 3 runs.\n`,
  );
  expect(rows.length).toBeGreaterThan(8);
});
