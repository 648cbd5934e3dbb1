/**
 * A real power-service process on a loopback port, with a database of its own, and how to wait for
 * things.
 */

import { type ChildProcess, execFileSync, type SpawnOptions, spawn } from "node:child_process";
import { mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { WebSocket } from "ws";
import { PowerClient, type PowerClientOptions } from "../src";

const ROOT = join(import.meta.dirname, "..", "..", "..");
const PYTHON = process.env.POWER_PYTHON ?? "python3";
// The modules of this checkout, installed or not.
const ENVIRONMENT = {
  ...process.env,
  PYTHONPATH: [ROOT, join(ROOT, "integrations", "service")].join(delimiter),
  PYTHONDONTWRITEBYTECODE: "1",
};
// Binds a port and does not listen there: only who may share it, as the service does, can listen, and
// nobody gets it in the moments when the service is away.
const HOLD_PORT = join(ROOT, "integrations/service/tests/hold_port.py");
/** How long to wait for what takes moments: only a failing test waits that long. */
export const SOON = { timeout: 60_000 };

/** What `check` returns as soon as it is neither false nor undefined; fails if that takes long. */
export async function eventually<T>(
  check: () => T | Promise<T>,
  ms = SOON.timeout,
): Promise<NonNullable<T>> {
  const deadline = Date.now() + ms;
  for (;;) {
    const result = await check();
    if (result !== false && result !== undefined && result !== null) return result;
    if (Date.now() > deadline) throw new Error(`not within ${ms} ms: ${check}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Run Python with the library and the service at hand; returns what it prints. */
export function python(args: string[]): string {
  return execFileSync(PYTHON, args, {
    env: ENVIRONMENT,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "pipe"],
  });
}

/** Begin to run Python with the library at hand. */
export function spawnPython(args: string[], stdio: SpawnOptions["stdio"]): ChildProcess {
  const started = spawn(PYTHON, args, { env: ENVIRONMENT, stdio });
  const kill = () => started.kill("SIGKILL"); // also where the tests end before their time
  process.once("exit", kill);
  started.once("exit", () => process.off("exit", kill));
  return started;
}

/** A port that is nobody else's until it is released. */
export async function holdPort(): Promise<{ port: number; release: () => void }> {
  const holder = spawnPython([HOLD_PORT], ["pipe", "pipe", "inherit"]);
  const printed = await new Promise((got) => holder.stdout?.once("data", got));
  return { port: Number(String(printed)), release: () => void holder.kill("SIGKILL") };
}

/** A service of a test's own. */
export class Service {
  readonly directory = mkdtempSync(join(tmpdir(), "power-client-"));
  readonly db = join(this.directory, "power.db");
  #process: ChildProcess | undefined;
  #release = () => {}; // what holds its port
  readonly #options: string[];
  /** 0 until it has started; then it keeps it, also while it is away. */
  port = 0;

  constructor(...options: string[]) {
    this.#options = options;
  }

  /** Start it, at the port it had before, and wait until it listens. */
  async start(): Promise<this> {
    if (!this.port) {
      const { port, release } = await holdPort();
      this.port = port;
      this.#release = release;
    }
    const path = join(this.directory, "service.log");
    const log = openSync(path, "a");
    const begin = readFileSync(path, "utf8").length;
    const args = [
      "-m",
      "power_service",
      "--db",
      this.db,
      "--port",
      `${this.port}`,
      "--rate",
      "0",
      ...this.#options,
    ];
    const started = spawnPython(args, ["ignore", log, log]);
    this.#process = started;
    await eventually(() => {
      const text = readFileSync(path, "utf8").slice(begin);
      if (started.exitCode !== null) throw new Error(`the service ended: ${text}`);
      return text.includes("listening at http");
    });
    return this;
  }

  /** Send it a signal and wait until it is gone. */
  async end(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const ended = this.#process;
    if (!ended || ended.exitCode !== null || ended.signalCode !== null) return;
    const gone = new Promise((resolve) => ended.once("exit", resolve));
    ended.kill(signal);
    await gone;
  }

  /** End it and remove its files. */
  async remove(): Promise<void> {
    await this.end("SIGKILL");
    this.#release();
    rmSync(this.directory, { recursive: true, force: true });
  }

  /** A token of these scopes, bound to devices where some are named. */
  token(scopes: string[] = ["admin"], devices: string[] = []): string {
    const options = [
      ...scopes.flatMap((scope) => ["--scope", scope]),
      ...devices.flatMap((id) => ["--device", id]),
    ];
    return this.tokens("new", "test", ...options);
  }

  /** What `power-service token` prints. */
  tokens(...args: string[]): string {
    return python(["-m", "power_service", "token", ...args, "--db", this.db]).trim();
  }

  /** Where it is. */
  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** A client of it. */
  client(options: Partial<PowerClientOptions> = {}): PowerClient {
    const timeoutMs = SOON.timeout; // a busy machine may be silent for seconds
    return new PowerClient({ baseUrl: this.url, webSocket: WebSocket, timeoutMs, ...options });
  }
}
