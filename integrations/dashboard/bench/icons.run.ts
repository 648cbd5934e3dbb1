/** Makes the icons that the manifest names, from the favicon: for systems that take no SVG. */

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "vitest";
import { launch } from "../tests/e2e/harness";

const PUBLIC = join(import.meta.dirname, "../public");

/**
 * Which part of the favicon's 32 units is seen: more than there is, where the system cuts off the
 * edges.
 */
const VIEWS = { whole: "0 0 32 32", maskable: "-5 -5 42 42" } as const;

const ICONS: readonly (readonly [name: string, size: number, view: keyof typeof VIEWS])[] = [
  ["icon-180.png", 180, "maskable"],
  ["icon-192.png", 192, "whole"],
  ["icon-512.png", 512, "whole"],
  ["icon-maskable-512.png", 512, "maskable"],
];

test("icons", async () => {
  const favicon = readFileSync(join(PUBLIC, "favicon.svg"), "utf8");
  const browser = await launch();
  try {
    const page = await browser.newPage();
    for (const [name, size, view] of ICONS) {
      await page.setViewportSize({ width: size, height: size });
      const picture = favicon.replace("<svg", `<svg width="${size}" height="${size}"`);
      const seen = picture.replace(/viewBox="[^"]*"/, `viewBox="${VIEWS[view]}"`);
      const ground = view === "maskable" ? "#0b5fd0" : "transparent";
      await page.setContent(`<style>* { margin: 0; background: ${ground} }</style>${seen}`);
      writeFileSync(join(PUBLIC, name), await page.screenshot({ omitBackground: true }));
    }
  } finally {
    await browser.close();
  }
});
