/**
 * The package as it is installed, from its tarball, and every example and command of the README.
 * `npm run build` first.
 */

import { execFile, execFileSync } from "node:child_process";
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { createServer, type Server } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import ts from "typescript";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Service } from "./service";

const ROOT = join(import.meta.dirname, "..");
const README = readFileSync(join(ROOT, "README.md"), "utf8");
const PACKAGE = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
// What an application that uses all of it has installed beside it.
const BESIDE = [
  "partysocket",
  "event-target-polyfill",
  "react",
  "react-dom",
  "scheduler",
  "stripe",
  "ws",
  "happy-dom",
];
const TYPES = ["@types/node", "@types/react", "@types/ws", "csstype", "undici-types"];
const PAGE = `
import { Window } from "happy-dom";
import { WebSocket } from "ws";
const window = new Window({ url: process.env.POWER_URL as string });
window.sessionStorage.setItem("token", process.env.POWER_TOKEN as string);
const { document, location, sessionStorage, navigator } = window;
Object.assign(globalThis, { window, document, location, sessionStorage, WebSocket });
if (!globalThis.navigator) Object.assign(globalThis, { navigator });
const { createRoot } = await import("react-dom/client" as string);
const { createElement } = await import("react");
const { default: App } = await import("./app.js" as string);
const root = createRoot(document.body);
root.render(createElement(App));
for (const deadline = Date.now() + 60_000; !document.body.textContent.includes("Pack:"); ) {
  if (Date.now() > deadline) throw new Error(document.body.innerHTML);
  await new Promise((resolve) => setTimeout(resolve, 20));
}
console.log(document.body.textContent);
root.unmount();
await window.happyDOM.close();
`;
const SEED = `
import { PowerClient } from "@blackroad/power-client";
const [baseUrl, id] = [process.env.POWER_URL as string, "edge-001"];
const client = new PowerClient({ baseUrl });
await client.getBudget([id]);
await client.getReport(id, { days: 7 });
`;

/** The README's blocks of a language. */
function blocks(language: string): string[] {
  const found = [...README.matchAll(/^```(\w+)\n(.*?)^```$/gms)];
  return found.filter((block) => block[1] === language).map((block) => block[2] as string);
}

const [FIRST, MANY, STREAM, STRIPE] = blocks("ts") as [string, string, string, string];
const [APP] = blocks("tsx") as [string];
const LOOPBACK = STRIPE.replace(
  /new Stripe\(.*?\)/,
  'new Stripe("sk_test_x", { host: "127.0.0.1", port: process.env.PORT ?? "", protocol: "http", telemetry: false })',
);

let project: string;
const service = new Service();
const open = new Service("--no-auth");
let token: string;

/** Install the tarball into a new project, with links to what is here already. */
function install(): void {
  project = realpathSync(mkdtempSync(join(tmpdir(), "power-client-project-")));
  const modules = join(project, "node_modules");
  for (const scope of ["@blackroad/power-client", "@types"])
    mkdirSync(join(modules, scope), { recursive: true });
  const options = { cwd: ROOT, encoding: "utf8" } as const;
  const [{ filename }] = JSON.parse(
    execFileSync("npm", ["pack", "--json", "--pack-destination", project], options),
  );
  const target = join(modules, "@blackroad/power-client");
  execFileSync("tar", ["xzf", join(project, filename), "--strip-components=1", "-C", target]);
  for (const name of [...BESIDE, ...TYPES])
    symlinkSync(join(ROOT, "node_modules", name), join(modules, name));
  writeFileSync(join(project, "package.json"), '{"type": "module"}');
}

/**
 * Write programs into the project and compile them strictly; returns what the compiler says of
 * them.
 */
function compile(programs: Record<string, string>): string[] {
  const paths = Object.entries(programs).map(([name, text]) => {
    writeFileSync(join(project, name), text);
    return join(project, name);
  });
  const options: ts.CompilerOptions = {
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.NodeNext,
    jsx: ts.JsxEmit.ReactJSX,
    lib: ["lib.es2022.d.ts", "lib.dom.d.ts", "lib.dom.iterable.d.ts"],
    types: ["node"],
    typeRoots: [join(project, "node_modules", "@types")],
    strict: true,
    exactOptionalPropertyTypes: true,
    skipLibCheck: true,
  };
  const program = ts.createProgram(paths, options);
  program.emit();
  return ts
    .getPreEmitDiagnostics(program)
    .map((one) => ts.flattenDiagnosticMessageText(one.messageText, "\n"));
}

/** Run a program of the project to its end; returns what it prints. */
async function run(program: string, environment: Record<string, string>): Promise<string> {
  const env = { ...process.env, ...environment };
  const { stdout } = await promisify(execFile)(process.execPath, [program], {
    cwd: project,
    env,
    timeout: 120_000,
  });
  return stdout;
}

beforeAll(async () => {
  install();
  const first = {
    "first.ts": FIRST,
    "many.ts": MANY,
    "stream.ts": STREAM,
    "stripe.ts": STRIPE,
    "app.tsx": APP,
  };
  expect(compile({ ...first, "loopback.ts": LOOPBACK, "page.ts": PAGE, "seed.ts": SEED })).toEqual(
    [],
  );
  await Promise.all([service.start(), open.start()]);
  token = service.token();
  const now = Date.now();
  for (const client of [service.client({ token }), open.client()]) {
    await client.putDevice("edge-001", { name: "Edge" });
    const meter = await client.addMeter("edge-001", {
      type: "battery",
      capacity_wh: 50,
      name: "Pack",
    });
    const minutes = Array.from({ length: 50 }, (_, i) =>
      new Date(now - (50 - i) * 60_000).toISOString(),
    );
    const values = { meter_id: meter.id, voltage: 12, current_draw: 1, charge_pct: 50 };
    await client.logMany(minutes.map((timestamp) => ({ ...values, timestamp })));
    expect((await client.flush()).failed).toEqual([]);
    await client.triggerEvent("edge-001", { type: "restore", note: "first" });
  }
});
afterAll(async () => {
  await Promise.all([service.remove(), open.remove()]);
  rmSync(project, { recursive: true });
});

describe("the README", () => {
  const environment = () => ({ POWER_URL: service.url, POWER_TOKEN: token });

  test("its first example prints what it says", async () => {
    expect(await run("first.js", environment())).toBe(blocks("text")[0]);
  });

  test("its readings are stored, and read again", async () => {
    const printed = await run("many.js", environment());
    expect(printed).toContain("60 stored");
    expect(printed).toContain("110 readings from");
  });

  test("its stream gives what it says, and the program ends when it is closed", async () => {
    expect(await run("stream.js", environment())).toContain("open\n1 restore first\n");
  });

  test("its meter event reaches Stripe, for which a server on loopback stands", async () => {
    const bodies: string[] = [];
    const server: Server = createServer((request, response) => {
      request.on("data", (chunk) => bodies.push(String(chunk)));
      request.on("end", () => response.setHeader("Content-Type", "application/json").end("{}"));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      const { port } = server.address() as { port: number };
      const printed = await run("loopback.js", { ...environment(), PORT: String(port) });
      expect(printed).toMatch(/^keep (9|10)\.\d+ Wh/);
      expect(decodeURIComponent(bodies.join())).toMatch(/payload\[value\]=(9|10)\b/);
    } finally {
      server.close();
    }
  });

  test("its page shows the meters", async () => {
    expect(await run("page.js", environment())).toMatch(/Pack: [\d.]+ W/);
  });

  test("its commands are scripts of the package, and steps of the gate", () => {
    const gate = readFileSync(join(ROOT, "ci.sh"), "utf8");
    const commands = blocks("sh").flatMap((text) => text.trim().split("\n"));
    expect(commands.length).toBeGreaterThan(5);
    for (const command of commands) {
      if (/^npm install @blackroad\/power-client$/.test(command)) continue; // from the tarball, above
      if (command === "bash integrations/client/ci.sh") continue; // what runs this
      const step = command.replace("npm run generate", "npm run generate -- --check");
      expect(gate).toContain(step);
      const script = /^npm run (\w+)/.exec(command)?.[1];
      if (script) expect(PACKAGE.scripts).toHaveProperty(script);
    }
  });

  test("its tables have every method and every hook", async () => {
    const index = await import("../src");
    const hooks = await import("../src/react");
    const names = [
      ...Object.getOwnPropertyNames(index.PowerClient.prototype),
      ...Object.keys(hooks),
    ];
    for (const name of names.filter((one) => one !== "constructor")) expect(README).toContain(name);
  });
});

describe("the package", () => {
  test("runs the shortest program of all", async () => {
    await run("seed.js", { POWER_URL: open.url });
  });

  test("can be required as CommonJS", async () => {
    writeFileSync(
      join(project, "old.cjs"),
      `const { PowerClient, PowerError } = require("@blackroad/power-client");
       const { useBudget } = require("@blackroad/power-client/react");
       const { toMeterEvents } = require("@blackroad/power-client/stripe");
       console.log([PowerClient, PowerError, useBudget, toMeterEvents].map((one) => typeof one).join());
       new PowerClient({ baseUrl: process.env.POWER_URL }).health().then(({ status }) => console.log(status));`,
    );
    const printed = await run("old.cjs", { POWER_URL: open.url });
    expect(printed).toBe("function,function,function,function\nok\n");
  });

  test("has the same names as an ES module and as CommonJS", async () => {
    const program = `
      import { createRequire } from "node:module";
      const require = createRequire(import.meta.url);
      for (const entry of ["", "/react", "/stripe"]) {
        const name = "@blackroad/power-client" + entry;
        const names = [Object.keys(await import(name)), Object.keys(require(name))];
        console.log(names.map((one) => one.filter((key) => key !== "default").sort().join()).join(" "));
      }`;
    writeFileSync(join(project, "names.mjs"), program);
    for (const line of (await run("names.mjs", {})).trim().split("\n")) {
      const [imported, required] = line.split(" ");
      expect(imported).toBe(required);
      expect(imported).not.toContain("_");
    }
  });

  test('marks its hooks, and only these, with "use client" for server components', () => {
    const says = ["index", "react", "stripe"].flatMap((entry) =>
      ["js", "cjs"].map((kind) => {
        const file = join(
          project,
          "node_modules",
          "@blackroad",
          "power-client",
          "dist",
          `${entry}.${kind}`,
        );
        return readFileSync(file, "utf8").startsWith('"use client";');
      }),
    );
    expect(says).toEqual([false, false, true, true, false, false]);
  });

  test("has a lock for every kind of machine", () => {
    const { packages } = JSON.parse(readFileSync(join(ROOT, "package-lock.json"), "utf8"));
    for (const { optionalDependencies = {} } of Object.values<{ optionalDependencies?: object }>(
      packages,
    )) {
      for (const name of Object.keys(optionalDependencies))
        expect(packages).toHaveProperty([`node_modules/${name}`]);
    }
  });

  test("has one dependency, and no needless files", () => {
    expect(Object.keys(PACKAGE.dependencies)).toEqual(["partysocket"]);
    expect(PACKAGE.sideEffects).toBe(false);
    const installed = join(project, "node_modules", "@blackroad", "power-client");
    const files = execFileSync("find", [installed, "-type", "f"], { encoding: "utf8" })
      .trim()
      .split("\n");
    const top = files.map((file) => file.slice(installed.length + 1).split("/")[0]);
    expect([...new Set(top)].sort()).toEqual(["LICENSE", "README.md", "dist", "package.json"]);
  });
});
