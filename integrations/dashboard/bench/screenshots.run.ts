/**
 * Makes the pictures of the README: each view, light and dark, on a phone, a desktop and a wall
 * screen.
 */

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { test } from "vitest";
import { demo, launch, open, Service, signedIn, writing } from "../tests/e2e/harness";

const SCREENSHOTS = join(import.meta.dirname, "../screenshots");
const SCREENS = {
  phone: { width: 360, height: 800 },
  desktop: { width: 1440, height: 900 },
  wall: { width: 2560, height: 1440 },
} as const;

/** As of a service that was installed: the file of this one goes when the pictures are made. */
const SIGN_IN = {
  token_needed: true,
  token_command: "power-service token new NAME --scope read --db /var/lib/power/power_manager.db",
};
const DEMO_DEVICE = "lake-cabin";
const MOST_BYTES = 56 * 1024;

/** WebP straight from the browser, as good as fits: a tenth of a PNG, and no program beside it. */
async function picture(page: Page, name: string): Promise<void> {
  const session = await page.context().newCDPSession(page);
  for (let quality = 64; quality > 0; quality -= 8) {
    const { data } = await session.send("Page.captureScreenshot", { format: "webp", quality });
    const content = Buffer.from(data, "base64");
    if (content.length > MOST_BYTES) continue;
    writeFileSync(join(SCREENSHOTS, `${name}.webp`), content);
    return;
  }
  throw new Error(`${name}: too large at any quality`);
}

/** The picture on the door: a device of the demonstration that everybody can start. */
async function demonstration(browser: Browser): Promise<void> {
  const url = await demo();
  const { page } = await open(browser, `${url}#/device/${DEMO_DEVICE}`, {
    viewport: { width: 1440, height: 1220 },
  });
  await page.locator(".chart-plot canvas").nth(2).waitFor();
  await page.getByText("Live", { exact: true }).first().waitFor();
  await picture(page, "demo-desktop-light");
}

/** Rows in groups, with a line of the last day each. */
async function groups(browser: Browser): Promise<void> {
  const service = await Service.start(["sites"], "--no-auth");
  await writing(service.db, "--every", "1", "--at-once", "24");
  for (const [name, options] of [
    ["groups-desktop-light", { viewport: SCREENS.desktop, colorScheme: "light" }],
    ["groups-phone-dark", { viewport: SCREENS.phone, colorScheme: "dark" }],
  ] as const) {
    const { page } = await open(browser, `${service.url}/?split=/&part=1`, options);
    await page
      .getByRole("img", { name: /^by hour/ })
      .first()
      .waitFor();
    await picture(page, name);
  }
}

test("screenshots", { timeout: 300_000 }, async () => {
  mkdirSync(SCREENSHOTS, { recursive: true });
  const browser = await launch();
  try {
    await demonstration(browser);
    await groups(browser);
    const service = await Service.start(["show"]);
    await writing(service.db, "--every", "1", "--at-once", "9");
    for (const colorScheme of ["light", "dark"] as const) {
      for (const [screen, viewport] of Object.entries(SCREENS)) {
        const options = { viewport, colorScheme, timezoneId: "Europe/Berlin" };
        const name = (view: string) => `${view}-${screen}-${colorScheme}`;
        const out = await open(browser, "about:blank", options);
        await out.page.route("**/v1/sign-in", (route) => route.fulfill({ json: SIGN_IN }));
        await out.page.goto(service.url);
        await out.page.getByLabel("Token").waitFor();
        if (screen !== "wall") await picture(out.page, name("sign-in"));

        const { page } = await signedIn(browser, service, options);
        await page.getByRole("link", { name: "Harbour gate" }).waitFor();
        await page.mouse.move(0, 0); // off the row that took the place of the button
        await page
          .getByRole("img", { name: /^by hour/ })
          .first()
          .waitFor();
        await picture(page, name("fleet"));

        await page.goto(`${service.url}/#/device/edge-001`);
        await page.locator(".chart-plot canvas").nth(2).waitFor();
        await page.locator(".event").first().waitFor();
        if (screen === "desktop") await page.setViewportSize({ width: 1440, height: 1220 });
        await picture(page, name("device"));
        if (screen === "wall") continue;
        await page.setViewportSize(viewport);
        await page.getByRole("heading", { name: "History" }).scrollIntoViewIfNeeded();
        await page.getByRole("radio", { name: "30 d" }).check();
        await page.getByText("each day’s lowest, mean and highest, W").waitFor();
        await page.locator(".charts").evaluate((charts) => charts.scrollIntoView());
        await picture(page, name("history"));

        await page.getByRole("button", { name: "Record event…" }).click();
        await page.getByRole("dialog").waitFor();
        await picture(page, name("event"));
      }
    }
  } finally {
    await browser.close();
  }
});
