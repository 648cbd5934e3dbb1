/** The built page brings along the licences of what its script is made of. */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";

const DASHBOARD = join(import.meta.dirname, "../..");

/** The names of the packages that one depends on. */
function dependenciesOf(folder: string): string[] {
  const { dependencies } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  return Object.keys(dependencies);
}

test("every package in the page's script has its licence and its notice beside the script", () => {
  const text = readFileSync(join(DASHBOARD, "dist/licenses.md"), "utf8");
  const sections = text.split(/^## /m).slice(1);
  const bundled = [...dependenciesOf(DASHBOARD), ...dependenciesOf(join(DASHBOARD, "../client"))];
  for (const name of bundled.filter((one) => one !== "@blackroad/power-client")) {
    const section = sections.find((one) => one.startsWith(`${name} - `));
    expect(section, name).toMatch(/Copyright \(c\)/);
  }
});
