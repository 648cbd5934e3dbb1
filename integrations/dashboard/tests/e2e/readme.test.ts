/** What the README says can be done, is; what it shows, is there. */

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, statSync, symlinkSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { chromium } from "playwright-core";
import { expect, onTestFinished, test } from "vitest";
import { directory, eventually, launch, open, signIn } from "./harness";

const DASHBOARD = resolve(import.meta.dirname, "../..");
const README = readFileSync(join(DASHBOARD, "README.md"), "utf8");
const BLOCKS = [...README.matchAll(/```sh\n(.*?)```/gs)].map((match) => match[1] as string);

/**
 * Where commands of the README run: an empty folder with the integrations, and the environment that
 * the gate installed.
 */
function checkout() {
  const cwd = directory();
  symlinkSync(resolve(DASHBOARD, ".."), join(cwd, "integrations"));
  const bin = dirname(process.env.POWER_PYTHON ?? "");
  return { cwd, env: { ...process.env, PATH: `${bin}:${process.env.PATH}` } };
}

/** Run a command of the README until the test ends; returns the address that it serves. */
async function serve(command: string, where: ReturnType<typeof checkout>): Promise<string> {
  const child = spawn("bash", ["-c", `exec ${command} --port 0 2>&1`], {
    ...where,
    stdio: ["ignore", "pipe", "ignore"],
  });
  let printed = "";
  child.stdout.on("data", (text) => {
    printed += text;
  });
  onTestFinished(async () => {
    child.kill("SIGTERM");
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  });
  const address = await eventually(() => {
    if (child.exitCode !== null) throw new Error(`${command} has ended: ${printed}`);
    return / at (http:\/\/127\.0\.0\.1:\d+)\/?\n/.exec(printed);
  }, `the address of ${command}`);
  const url = `${address[1]}/`;
  await eventually(
    () =>
      fetch(`${url}readyz`).then(
        (answer) => answer.ok,
        () => false,
      ),
    `an answer of ${command}`,
  );
  return url;
}

test("the first commands show the demonstration", async () => {
  const [environment, install, demo] = (BLOCKS[0] ?? "").trim().split("\n");
  expect(environment).toBe("python3 -m venv .venv && . .venv/bin/activate");
  expect(install).toBe("pip install '.[service]'"); // the gate has run it: POWER_PYTHON is what it made
  const url = await serve(demo as string, checkout());
  const browser = await launch();
  onTestFinished(() => browser.close());
  const { page } = await open(browser, url);
  await page.locator(".fleet-item").first().waitFor();
});

test("the next commands serve the page, and their token opens it", async () => {
  const [token, command] = (BLOCKS[1] ?? "").trim().split("\n");
  const where = checkout();
  const printed = execFileSync("bash", ["-c", token as string], {
    ...where,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  const url = await serve(command as string, where);
  const browser = await launch();
  onTestFinished(() => browser.close());
  const { page } = await open(browser, url);
  await signIn(page, printed.trim());
  await page.getByText("No devices yet").waitFor();
});

test("every other command is a step of the gate, or a script of the package", () => {
  const gate = readFileSync(join(DASHBOARD, "ci.sh"), "utf8");
  const scripts = JSON.parse(readFileSync(join(DASHBOARD, "package.json"), "utf8"))
    .scripts as Record<string, string>;
  for (const line of `${BLOCKS[2]}${BLOCKS[3]}`.trim().split("\n")) expect(gate).toContain(line);
  for (const [, name] of README.matchAll(/npm (?:run )?(\w+)/g))
    expect(["ci", ...Object.keys(scripts)]).toContain(name);
});

test("every picture is used, exists and is small", () => {
  const shown = [
    ...new Set([...README.matchAll(/screenshots\/([\w-]+\.webp)/g)].map((match) => match[1])),
  ].sort();
  expect(readdirSync(join(DASHBOARD, "screenshots")).sort()).toEqual(shown);
  for (const name of shown)
    expect(statSync(join(DASHBOARD, "screenshots", String(name))).size).toBeLessThan(60 * 1024);
});

test("the versions in the README are the pinned ones", () => {
  const { dependencies, devDependencies } = JSON.parse(
    readFileSync(join(DASHBOARD, "package.json"), "utf8"),
  );
  const pinned: Record<string, string> = { ...dependencies, ...devDependencies };
  const given = [...README.matchAll(/([@\w/-]+) (\d+\.\d+\.\d+)/g)].map((match) => [
    match[1],
    match[2],
  ]);
  expect(given.length).toBe(9);
  for (const [name, version] of given)
    expect([name, pinned[String(name)]]).toEqual([name, version]);
  expect(chromium.name()).toBe("chromium");
});
