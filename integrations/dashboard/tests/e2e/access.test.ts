/** What axe and the browser's own security say of each view: nothing. */

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { eventually, launch, open, Service, signedIn, Writer } from "./harness";

let browser: Browser;
beforeAll(async () => {
  browser = await launch();
});
afterAll(() => browser.close());

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

interface Finding {
  readonly id: string;
  readonly impact: string;
  readonly nodes: readonly {
    readonly target: readonly string[];
    readonly failureSummary: string;
  }[];
}

/**
 * What axe finds on a page, rule by rule. It runs outside the page's own policy, as the browser's
 * tools do. A dark page differs from a light one in its colours alone.
 */
async function findings(page: Page, scheme: "light" | "dark"): Promise<string[]> {
  const options = {
    resultTypes: ["violations"],
    ...(scheme === "dark" && { runOnly: ["color-contrast"] }),
  };
  const found = await page.evaluate<Finding[]>(
    `${AXE}; axe.run(document, ${JSON.stringify(options)}).then((result) => result.violations)`,
  );
  return found.map(
    ({ id, impact, nodes }) => `${impact} ${id}: ${nodes.map((node) => node.target).join(", ")}`,
  );
}

const SCREENS = { phone: { width: 360, height: 800 }, desktop: { width: 1440, height: 900 } };

for (const colorScheme of ["light", "dark"] as const) {
  for (const [screen, viewport] of Object.entries(SCREENS)) {
    test(`axe finds nothing in any view: ${screen}, ${colorScheme}`, async () => {
      const service = await Service.start(["show"]);
      const writer = new Writer(service.db);
      for (
        let day = 1;
        day <= 20;
        day++ // more than fit: what scrolls must be reached by keys
      )
        await writer.call("trigger_event", "edge-001", "restore", 0, `day ${day}`);
      await writer.call("register_device", "hut", "Hut"); // of another kind of id: there are groups
      const options = { viewport, colorScheme };
      const out = await open(browser, service.url, options);
      await out.page.getByLabel("Token").fill("wrong");
      await out.page.keyboard.press("Enter");
      await out.page.getByText("The service does not accept this token.").waitFor();
      expect(await findings(out.page, colorScheme)).toEqual([]);

      const { page, faults } = await signedIn(browser, service, options);
      await page.getByRole("link", { name: "Quarry pump" }).waitFor();
      expect(await findings(page, colorScheme)).toEqual([]);
      await page.getByLabel("Group by").selectOption({ index: 1 });
      await page.locator(".fleet-group").first().waitFor();
      expect(await findings(page, colorScheme)).toEqual([]);
      await page.getByRole("button", { name: "Add a device…" }).click();
      expect(await findings(page, colorScheme)).toEqual([]);
      await page.keyboard.press("Escape");
      await page.evaluate(() => {
        location.hash = "#/device/edge-001";
      });
      await page.locator(".event").first().waitFor();
      await page.locator(".chart-plot canvas").nth(2).waitFor();
      await page.getByText("As a table").click();
      await page.locator(".dates summary").click();
      expect(await findings(page, colorScheme)).toEqual([]);
      await page.getByRole("radio", { name: "30 d" }).check();
      await page.getByText("each day’s lowest, mean and highest, W").waitFor();
      expect(await findings(page, colorScheme)).toEqual([]);
      for (const name of ["Change…", "Pack…", "Add a meter…"]) {
        await page.getByRole("button", { name }).click();
        expect(await findings(page, colorScheme)).toEqual([]);
        await page.keyboard.press("Escape");
      }
      await page.getByRole("button", { name: "Record event…" }).click();
      expect(await findings(page, colorScheme)).toEqual([]);
      await page.getByRole("button", { name: "Continue" }).click();
      expect(await findings(page, colorScheme)).toEqual([]);
      await page.keyboard.press("Escape");
      await service.kill();
      await page.getByText("The connection to the service is lost.").waitFor();
      expect(await findings(page, colorScheme)).toEqual([]);
      expect(faults).toEqual([]);
    });
  }
}

test("nothing is wider than a phone", async () => {
  const service = await Service.start(["show"]);
  const { page } = await signedIn(browser, service, { viewport: { width: 320, height: 640 } });
  const wider = () => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  await page.getByRole("link", { name: "Quarry pump" }).waitFor();
  expect(await wider()).toBe(0);
  await page.evaluate(() => {
    location.hash = "#/device/edge-001";
  });
  await page.locator(".chart-plot canvas").nth(2).waitFor();
  expect(await wider()).toBe(0);
});

test("the page keeps to a strict content security policy, and requests nothing elsewhere", async () => {
  const service = await Service.start(["show"]);
  const asked: string[] = [];
  const { page, faults } = await open(browser, "about:blank");
  page.on("request", (request) => asked.push(new URL(request.url()).origin));
  const answer = await page.goto(`${service.url}/#/device/edge-001`);
  const policy = answer?.headers()["content-security-policy"] ?? "";
  expect(policy).toContain("default-src 'none'; script-src 'self'; style-src 'self';");
  expect(policy).not.toMatch(/unsafe|\*|data:|blob:/);
  await page.getByLabel("Token").fill(service.token(["read", "write"]));
  await page.keyboard.press("Enter");
  await page.locator(".chart-plot canvas").nth(2).waitFor();
  const saved = page.waitForEvent("download");
  await page.getByRole("button", { name: "Download CSV" }).click();
  await saved;
  await page.getByRole("button", { name: "Record event…" }).click();
  // That faults would catch a violation is seen by making one, last of all.
  expect(faults).toEqual([]);
  await page.evaluate(() => document.body.setAttribute("style", "color: red"));
  await eventually(() => faults.join().includes("Content Security Policy"), "the violation");
  expect([...new Set(asked)]).toEqual([service.url]);
});
