/**
 * The real service on a file of its own, processes that write to that file, and Debian's Chromium.
 */

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface, type Interface } from "node:readline";
import { type Browser, type BrowserContextOptions, chromium, type Page } from "playwright-core";
import { onTestFinished } from "vitest";

const DASHBOARD = resolve(import.meta.dirname, "../..");
const REPOSITORY = resolve(DASHBOARD, "../..");
const PYTHON = process.env.POWER_PYTHON ?? "python3";
const ENVIRONMENT = {
  ...process.env,
  PYTHONPATH: `${join(REPOSITORY, "integrations/service")}:${REPOSITORY}`,
  BROWSER: "true", // what --open starts
};
/** Only a failing test waits that long. */
export const DEADLINE = 120_000;

// Binds a port and does not listen there: only who may share it, as the service does, can listen, and
// nobody gets it in the moments when the service is away.
const HOLD_PORT = join(REPOSITORY, "integrations/service/tests/hold_port.py");

/** What check returns as soon as it is true; fails after the deadline. */
export async function eventually<T>(
  check: () => T | Promise<T>,
  what: string,
  within = DEADLINE,
): Promise<NonNullable<T>> {
  const end = performance.now() + within;
  for (;;) {
    const result = await check();
    if (result) return result;
    if (performance.now() > end) throw new Error(`not within ${within} ms: ${what}`);
    await new Promise((wake) => setTimeout(wake, 20));
  }
}

function python(...args: string[]): string {
  return execFileSync(PYTHON, args, {
    env: ENVIRONMENT,
    encoding: "utf8",
    cwd: DASHBOARD,
    stdio: ["ignore", "pipe", "ignore"],
  });
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) {
    await new Promise((done) => child.once("exit", done));
  }
}

/** A directory that goes when the test ends. */
export function directory(): string {
  const path = mkdtempSync(join(tmpdir(), "power-dashboard-"));
  onTestFinished(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** A port that is nobody else's until the test ends. */
async function holdPort(): Promise<number> {
  const holder = spawn(PYTHON, [HOLD_PORT], { stdio: ["pipe", "pipe", "inherit"] });
  onTestFinished(async () => {
    holder.kill("SIGKILL");
    await ended(holder);
  });
  return Number(String(await new Promise((got) => holder.stdout.once("data", got))));
}

/** The service on a file that one part of edge.py has filled. */
export class Service {
  readonly db: string;
  /** Its own until the test ends, also while it is away. */
  port = 0;
  #process: ChildProcess | undefined;
  #log = "";
  #printed = "";

  private constructor(
    path: string,
    private readonly options: readonly string[],
  ) {
    this.db = join(path, "power.db");
  }

  /** Fill a file (`show`, or `crowd --devices 1000`, or nothing) and serve it. */
  static async start(fill: readonly string[] = ["show"], ...options: string[]): Promise<Service> {
    const service = new Service(directory(), options);
    const [part = "obey", ...more] = fill;
    if (part !== "obey") python("tests/edge.py", part, service.db, ...more);
    service.port = await holdPort();
    onTestFinished(() => service.kill());
    await service.run();
    return service;
  }

  /** Start the process, and wait until it is ready. */
  async run(): Promise<void> {
    const args = ["-m", "power_service", "--db", this.db, "--port", String(this.port), "--quiet"];
    const dist = ["--dashboard", join(DASHBOARD, "dist")];
    const child = spawn(PYTHON, [...args, ...dist, ...this.options], { env: ENVIRONMENT });
    this.#process = child;
    this.#log = "";
    child.stderr.on("data", (text) => {
      this.#log += text;
    });
    child.stdout.on("data", (text) => {
      this.#printed += text;
    });
    await eventually(async () => {
      if (child.exitCode !== null) throw new Error(`the service has ended:\n${this.#log}`);
      return fetch(`${this.url}/readyz`).then(
        (answer) => answer.ok,
        () => false,
      );
    }, "the service is ready");
  }

  /** End the process as a power cut would. */
  async kill(): Promise<void> {
    if (!this.#process) return;
    this.#process.kill("SIGKILL");
    await ended(this.#process);
  }

  /** The link that signs in once, of a service that was started with --open. */
  link(): Promise<string> {
    return eventually(() => /(http\S+#\/sign-in\/\S+)\n/.exec(this.#printed)?.[1], "a link");
  }

  /** A new token with these scopes, for one device or for all. */
  token(scopes: readonly string[], device?: string): string {
    const flags = scopes.flatMap((scope) => ["--scope", scope]);
    if (device) flags.push("--device", device);
    return python("-m", "power_service", "token", "new", "test", ...flags, "--db", this.db).trim();
  }

  /** Take back every token. */
  revokeAll(): void {
    const listed = python("-m", "power_service", "token", "list", "--db", this.db);
    for (const line of listed.split("\n").filter((text) => text.includes("test"))) {
      python(
        "-m",
        "power_service",
        "token",
        "revoke",
        line.split(/\s+/)[0] as string,
        "--db",
        this.db,
      );
    }
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }
}

/** The service's own demonstration, until the test ends; its address. */
export async function demo(): Promise<string> {
  const args = ["-m", "power_service", "--demo", "--quiet", "--dashboard", join(DASHBOARD, "dist")];
  const child = spawn(PYTHON, [...args, "--port", "0"], { env: ENVIRONMENT });
  onTestFinished(async () => {
    child.kill("SIGTERM"); // it takes its directory with it
    await ended(child);
  });
  let printed = "";
  child.stdout.on("data", (text) => {
    printed += text;
  });
  const address = await eventually(
    () => /http:\/\/127\.0\.0\.1:\d+\//.exec(printed),
    "the demonstration",
  );
  return address[0];
}

/**
 * Another process that holds the same file open, and makes the library's calls that it is told to.
 */
export class Writer {
  readonly #process: ChildProcess;
  readonly #lines: Interface;

  constructor(db: string) {
    this.#process = spawn(PYTHON, ["tests/edge.py", "obey", db], {
      env: ENVIRONMENT,
      cwd: DASHBOARD,
      stdio: ["pipe", "pipe", "inherit"],
    });
    this.#lines = createInterface({ input: this.#process.stdout as NodeJS.ReadableStream });
    onTestFinished(async () => {
      this.#process.kill("SIGKILL");
      await ended(this.#process);
    });
  }

  /**
   * The result of a call, once it is on the disk; an object as last argument is the call's
   * keywords.
   */
  async call<T = unknown>(call: string, ...given: unknown[]): Promise<T> {
    const last = given.at(-1);
    const named = typeof last === "object" && last !== null && !Array.isArray(last);
    const args = named ? given.slice(0, -1) : given;
    const kwargs = named ? last : {};
    const answer = new Promise<string>((done, failed) => {
      const ended = () => failed(new Error(`the writer ended in ${call}`));
      this.#process.once("exit", ended);
      this.#lines.once("line", (line) => {
        this.#process.off("exit", ended);
        done(line);
      });
    });
    this.#process.stdin?.write(`${JSON.stringify({ call, args, kwargs })}\n`);
    return JSON.parse(await answer) as T;
  }
}

/** A process that writes live readings until the test ends. */
export async function writing(db: string, ...options: string[]): Promise<void> {
  const child = spawn(PYTHON, ["tests/edge.py", "live", db, ...options], {
    env: ENVIRONMENT,
    cwd: DASHBOARD,
    stdio: ["pipe", "pipe", "inherit"],
  });
  onTestFinished(async () => {
    child.kill("SIGKILL");
    await ended(child);
  });
  await new Promise((begun) => child.stdout.once("data", begun));
}

/** Debian's Chromium, or the one that CHROMIUM names. */
export function launch(): Promise<Browser> {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  if (!existsSync(executablePath))
    throw new Error(`${executablePath}: no Chromium there: apt install chromium`);
  const quiet = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
  ];
  return chromium.launch({
    executablePath,
    args: [...quiet, "--disable-component-update", "--disable-sync"],
  });
}

/** A page of a fresh browser context, and whatever went wrong in it. */
export interface Seen {
  readonly page: Page;
  /** Uncaught errors, and violations of the content security policy. */
  readonly faults: string[];
}

const NETWORK = /Failed to load resource|WebSocket connection to/;

export async function open(
  browser: Browser,
  url: string,
  options: BrowserContextOptions = {},
): Promise<Seen> {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
  onTestFinished(() => context.close());
  const page = await context.newPage();
  page.setDefaultTimeout(DEADLINE);
  const faults: string[] = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => {
    // What the network refuses is the subject of some tests; whatever else is an error is a fault.
    if (["error", "warning"].includes(message.type()) && !NETWORK.test(message.text()))
      faults.push(message.text());
  });
  await page.goto(url);
  return { page, faults };
}

/** The same, signed in. */
export async function signedIn(
  browser: Browser,
  service: Service,
  options: BrowserContextOptions & { scopes?: string[]; hash?: string } = {},
): Promise<Seen> {
  const { scopes = ["read", "write"], hash = "", ...context } = options;
  const seen = await open(browser, `${service.url}/${hash}`, context);
  await signIn(seen.page, service.token(scopes));
  await seen.page.getByText("Live", { exact: true }).first().waitFor();
  return seen;
}

export async function signIn(page: Page, token: string): Promise<void> {
  await page.getByLabel("Token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
}

/** Wait until the element with this text has the focus. */
export async function focusOn(page: Page, text: string): Promise<void> {
  const focused = () => page.evaluate(() => document.activeElement?.textContent);
  await eventually(async () => (await focused()) === text, `the focus is on ${text}`);
}

/** Wait until the browser's tab says this. */
export async function titled(page: Page, title: string): Promise<void> {
  await eventually(async () => (await page.title()) === title, `the title is ${title}`);
}

/**
 * Stop the installed clock of the page, half a minute ahead: its timers then wait for the test, not
 * for the machine.
 */
export async function pauseClock(page: Page): Promise<void> {
  await page.clock.pauseAt((await page.evaluate(() => Date.now())) + 30_000);
}

const DAY_MS = 86_400_000;
const BEFORE_MIDNIGHT_MS = 180_000;

/**
 * Begin a test that knows the day, as the page and the service do too, when no midnight of UTC can
 * come between them: three minutes before one this waits for it.
 */
export async function withinOneDay(): Promise<void> {
  const left = DAY_MS - (Date.now() % DAY_MS);
  if (left < BEFORE_MIDNIGHT_MS) await new Promise((wake) => setTimeout(wake, left + 1_000));
}

/** From now on requests to that pattern are answered with a problem of that detail. */
export function refuse(page: Page, pattern: string, detail: string): Promise<unknown> {
  const problem = { title: "x", type: "x", status: 422, code: "invalid_value", detail };
  return page.route(pattern, (route) =>
    route.fulfill({
      status: 422,
      contentType: "application/problem+json",
      body: JSON.stringify(problem),
    }),
  );
}
