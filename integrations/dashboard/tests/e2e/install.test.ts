/**
 * The page as an app of its own: what Chromium makes of its manifest, and the icons that this
 * names.
 */

import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { launch, open, Service } from "./harness";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

interface Manifest {
  readonly start_url: string;
  readonly display: string;
  readonly icons: readonly {
    readonly src: string;
    readonly sizes: string;
    readonly type: string;
  }[];
}

/** The width and height that a PNG's head gives. */
function sizeOfPng(content: Buffer): string {
  return `${content.readUInt32BE(16)}x${content.readUInt32BE(20)}`;
}

test("Chromium accepts the manifest, and can install the page", async () => {
  const service = await Service.start([], "--no-auth");
  const { page, faults } = await open(browser, service.url);
  const session = await page.context().newCDPSession(page);
  const { url, errors, data } = await session.send("Page.getAppManifest");
  expect([url, errors]).toEqual([`${service.url}/manifest.webmanifest`, []]);
  const { installabilityErrors } = await session.send("Page.getInstallabilityErrors");
  // A context of Playwright's is like a private window; nothing else is wrong.
  expect(installabilityErrors.filter(({ errorId }) => errorId !== "in-incognito")).toEqual([]);
  const manifest = JSON.parse(data ?? "") as Manifest;
  expect([manifest.start_url, manifest.display]).toEqual(["/", "standalone"]);
  const start = await fetch(new URL(manifest.start_url, url));
  expect([start.status, start.headers.get("content-type")]).toEqual([
    200,
    "text/html; charset=utf-8",
  ]);
  for (const { src, sizes, type } of manifest.icons) {
    const answer = await fetch(new URL(src, url));
    expect([src, answer.status, answer.headers.get("content-type")?.split(";")[0]]).toEqual([
      src,
      200,
      type,
    ]);
    if (type === "image/png")
      expect(sizeOfPng(Buffer.from(await answer.arrayBuffer()))).toBe(sizes);
  }
  expect(faults).toEqual([]);
});

test("the browser's bar has the colour of the page's, light and dark", async () => {
  const service = await Service.start([], "--no-auth");
  for (const colorScheme of ["light", "dark"] as const) {
    const { page } = await open(browser, service.url, { colorScheme });
    await page.getByRole("banner").waitFor();
    const [wanted, bar] = await page.evaluate(() => {
      const metas = [...document.querySelectorAll<HTMLMetaElement>('meta[name="theme-color"]')];
      const probe = document.createElement("p");
      probe.style.color = metas.find(({ media }) => matchMedia(media).matches)?.content ?? "";
      document.body.append(probe);
      const header = document.querySelector("header") as HTMLElement;
      return [getComputedStyle(probe).color, getComputedStyle(header).backgroundColor];
    });
    expect(wanted).toBe(bar);
  }
});
