/**
 * Retries, time limits, aborts and errors, against an HTTP server whose answers the test writes
 * down.
 */

import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { inspect } from "node:util";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { PowerClient, type PowerClientOptions, PowerError } from "../src";
import { holdPort, SOON } from "./service";

type Answer = (request: IncomingMessage, response: ServerResponse) => void;

let server: Server;
let answers: Answer[];
let seen: { method: string; url: string; headers: IncomingMessage["headers"]; body: string }[];

beforeEach(async () => {
  answers = [];
  seen = [];
  server = createServer((request, response) => {
    let body = "";
    request.on("data", (chunk) => {
      body += chunk;
    });
    request.on("end", () => {
      seen.push({
        method: request.method ?? "",
        url: request.url ?? "",
        headers: request.headers,
        body,
      });
      (answers.shift() ?? json(200, []))(request, response);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
});
afterEach(() => {
  server.closeAllConnections();
  server.close();
  vi.restoreAllMocks();
});

function json(status: number, value: unknown, headers: Record<string, string> = {}): Answer {
  return (_, response) => {
    response
      .writeHead(status, { "Content-Type": "application/json", ...headers })
      .end(JSON.stringify(value));
  };
}

function problem(status: number, code: string, headers: Record<string, string> = {}): Answer {
  return json(
    status,
    { type: "about:blank", title: "x", status, code, detail: "the detail" },
    headers,
  );
}

const hangUp: Answer = (request) => request.socket.destroy();
const silence: Answer = () => {};

function client(options: Partial<PowerClientOptions> = {}): PowerClient {
  const { port } = server.address() as { port: number };
  return new PowerClient({
    baseUrl: `http://127.0.0.1:${port}`,
    token: "pm_secret",
    timeoutMs: SOON.timeout, // a busy machine may be silent for seconds
    ...options,
  });
}

/** The error a promise is rejected with. */
async function failure(promise: Promise<unknown>): Promise<PowerError> {
  const error = await promise.then(
    () => undefined,
    (reason) => reason,
  );
  expect(error).toBeInstanceOf(PowerError);
  return error;
}

/** No jitter, so that what is left is what must be waited. */
function withoutJitter(): void {
  vi.spyOn(Math, "random").mockReturnValue(0);
}

describe("retries", () => {
  beforeEach(withoutJitter);

  test.each([408, 429, 500, 502, 503, 504])(
    "a GET that is answered %i is sent again",
    async (status) => {
      answers = [
        problem(status, "overloaded"),
        problem(status, "overloaded"),
        json(200, [{ id: "a" }]),
      ];
      expect(await client().devices()).toEqual([{ id: "a" }]);
      expect(seen.length).toBe(3);
    },
  );

  test("a broken connection is tried again, also for a PUT", async () => {
    answers = [hangUp, hangUp, json(200, { id: "a" })];
    await client().putDevice("a", { name: "A" });
    expect(seen.map(({ method, body }) => [method, body])).toEqual(
      Array(3).fill(["PUT", '{"name":"A"}']),
    );
  });

  test("`retries` limits them, and the last error is given", async () => {
    answers = Array(9).fill(problem(503, "storage_locked"));
    expect((await failure(client({ retries: 2 }).devices())).code).toBe("storage_locked");
    expect(seen.length).toBe(3);
    expect((await failure(client({ retries: 0 }).devices())).status).toBe(503);
    expect(seen.length).toBe(4);
  });

  test.each([400, 401, 403, 404, 409, 413, 422])(
    "what is answered %i would be so again",
    async (status) => {
      answers = [problem(status, "invalid_value")];
      expect((await failure(client().devices())).status).toBe(status);
      expect(seen.length).toBe(1);
    },
  );

  test("a call that would take effect twice is sent once", async () => {
    const reading = { meter_id: "m", voltage: 1, current_draw: 1 };
    const calls = [
      () => client().addMeter("a", { type: "solar" }),
      () => client().triggerEvent("a", { type: "restore" }),
      () => client().logPower(reading),
      () => client().logPower({ ...reading, timestamp: null }),
    ];
    for (const call of calls) {
      for (const answer of [hangUp, problem(503, "overloaded")]) {
        seen = [];
        answers = [answer];
        await failure(call());
        expect(seen.length).toBe(1);
      }
    }
  });

  test("a reading with a timestamp is sent again, also with epoch 0", async () => {
    for (const timestamp of ["2026-11-23T12:00:00Z", 0]) {
      answers = [hangUp, json(200, { received: 1, stored: 0 })];
      const result = await client().logPower({
        meter_id: "m",
        voltage: 1,
        current_draw: 1,
        timestamp,
      });
      expect(result).toEqual({ received: 1, stored: 0 });
    }
    expect(seen.length).toBe(4);
  });

  test("Retry-After is waited for, in seconds or as a date", async () => {
    vi.useFakeTimers({ now: Date.parse("2026-11-23T12:00:00Z") });
    try {
      const times: number[] = [];
      const waits = ["7", "Mon, 23 Nov 2026 12:00:20 GMT", "Mon, 23 Nov 2026 11:00:00 GMT", "soon"];
      const fetch = async () => {
        times.push(Date.now() - Date.parse("2026-11-23T12:00:00Z"));
        const wait = waits.shift();
        if (wait === undefined) return Response.json([]);
        return Response.json(
          { code: "overloaded", detail: "" },
          { status: 503, headers: { "Retry-After": wait } },
        );
      };
      const done = client({ fetch, retries: 9 }).devices();
      await vi.runAllTimersAsync();
      await done;
      expect(times).toEqual([0, 7_000, 20_000, 20_000, 20_000]);
    } finally {
      vi.useRealTimers();
    }
  });

  test("a Retry-After beyond a minute is left to the caller", async () => {
    answers = [problem(503, "storage_full", { "Retry-After": "61" })];
    expect((await failure(client().devices())).retryAfterMs).toBe(61_000);
    expect(seen.length).toBe(1);
  });

  test("pauses are random, and grow to at most eight seconds", async () => {
    vi.spyOn(Math, "random").mockReturnValue(1);
    vi.useFakeTimers();
    try {
      const pauses: number[] = [];
      let last = Date.now();
      const fetch = async () => {
        pauses.push(Date.now() - last);
        last = Date.now();
        return Response.json({ code: "overloaded", detail: "" }, { status: 503 });
      };
      const failed = failure(client({ fetch, retries: 7 }).devices());
      await vi.runAllTimersAsync();
      await failed;
      expect(pauses).toEqual([0, 250, 500, 1_000, 2_000, 4_000, 8_000, 8_000]);
    } finally {
      vi.useRealTimers();
    }
  });
});

describe("time limits and aborts", () => {
  test("no answer within timeoutMs is a timeout, and the call is tried again", async () => {
    withoutJitter();
    answers = [silence, silence];
    const tries = vi.fn(fetch); // a busy machine may not have delivered a request when its time is over
    const error = await failure(client({ fetch: tries, timeoutMs: 300, retries: 1 }).devices());
    expect([error.isTimeout, error.isAborted, error.status, error.message]).toEqual([
      true,
      false,
      0,
      "GET /v1/devices: no answer within 300 ms",
    ]);
    expect(tries).toHaveBeenCalledTimes(2);
  });

  test("an answer that stops half way is a timeout, too", async () => {
    answers = [(_, response) => response.writeHead(200).write("[")];
    expect((await failure(client({ timeoutMs: 100, retries: 0 }).devices())).code).toBe("timeout");
  });

  test("a long answer that keeps arriving is no timeout", async () => {
    vi.useFakeTimers();
    try {
      const bytes = new TextEncoder().encode('[{"id":"edge-001","name":"M\u00fchle"}]');
      const body = new ReadableStream({
        async start(controller) {
          for (const byte of bytes) {
            controller.enqueue(Uint8Array.of(byte)); // a character may be in two pieces
            await new Promise((resolve) => setTimeout(resolve, 4_900));
          }
          controller.close();
        },
      });
      const asked = client({
        fetch: async () => new Response(body),
        timeoutMs: 5_000,
        retries: 0,
      }).devices();
      await vi.runAllTimersAsync();
      expect(await asked).toEqual([{ id: "edge-001", name: "M\u00fchle" }]);
    } finally {
      vi.useRealTimers();
    }
  });

  test("the caller's signal ends a request, and calls that have not begun", async () => {
    const reason = new Error("changed my mind");
    const control = new AbortController();
    answers = [silence];
    const failed = failure(client().devices({ signal: control.signal }));
    await vi.waitFor(() => expect(seen.length).toBe(1), SOON);
    control.abort(reason);
    const error = await failed;
    expect([error.isAborted, error.isTimeout, error.cause]).toEqual([true, false, reason]);
    expect((await failure(client().devices({ signal: AbortSignal.abort() }))).isAborted).toBe(true);
    expect(seen.length).toBe(1);
  });

  test("the caller's signal ends the pause before a retry", async () => {
    vi.useFakeTimers();
    try {
      const control = new AbortController();
      const fetch = vi.fn(async () =>
        Response.json({ code: "overloaded", detail: "" }, { status: 503 }),
      );
      const failed = failure(client({ fetch }).devices({ signal: control.signal }));
      await vi.advanceTimersByTimeAsync(0);
      expect(fetch).toHaveBeenCalledTimes(1);
      control.abort();
      expect((await failed).isAborted).toBe(true);
      expect(vi.getTimerCount()).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });

  test("a signal that fires as the answer comes leaves no pause", async () => {
    const control = new AbortController();
    const fetch = async () => {
      control.abort();
      return Response.json(
        { code: "overloaded", detail: "" },
        { status: 503, headers: { "Retry-After": "60" } },
      );
    };
    expect((await failure(client({ fetch }).devices({ signal: control.signal }))).isAborted).toBe(
      true,
    );
  });

  test("a signal that is kept for many calls keeps nothing of them", async () => {
    const { signal } = new AbortController();
    const [add, remove] = [
      vi.spyOn(signal, "addEventListener"),
      vi.spyOn(signal, "removeEventListener"),
    ];
    answers = [problem(503, "x")];
    await client().devices({ signal });
    const added = add.mock.calls.length;
    expect(added).toBeGreaterThan(0);
    expect(remove.mock.calls.length).toBe(added);
  });
});

describe("errors", () => {
  test("carry the service's problem", async () => {
    answers = [problem(404, "not_found")];
    const error = await failure(client().device("a"));
    expect(error).toMatchObject({ name: "PowerError", status: 404, code: "not_found" });
    expect(error.message).toBe("GET /v1/devices/a: 404 the detail");
    expect(error.problem?.detail).toBe("the detail");
  });

  test("from a proxy or another service are named as such", async () => {
    answers = [
      (_, response) => response.writeHead(403).end("<html>"),
      json(404, null),
      json(404, { code: 4 }),
    ];
    for (const status of [403, 404, 404]) {
      const error = await failure(client().devices());
      expect(error).toMatchObject({ status, code: "invalid_response", problem: undefined });
    }
    answers = [(_, response) => response.end("<html>")];
    expect(await failure(client().devices())).toMatchObject({
      status: 200,
      code: "invalid_response",
    });
  });

  test("of the network name their cause", async () => {
    const { port, release } = await holdPort(); // where nobody listens
    const here = client({ baseUrl: `http://127.0.0.1:${port}`, retries: 0 });
    const error = await failure(here.devices());
    release();
    expect(error).toMatchObject({ status: 0, code: "network" });
    expect(error.message).toContain(`127.0.0.1:${port}`);
  });

  test("and clients never show the token", async () => {
    answers = [problem(401, "unauthorized"), hangUp];
    const here = client({ retries: 0 });
    const shown = [here, await failure(here.devices()), await failure(here.devices())];
    shown.push(await failure((async () => client({ token: "pm_secret\n" }))()));
    for (const one of shown) {
      const text = inspect(one, { depth: 9, showHidden: true }) + JSON.stringify(one) + String(one);
      expect(text).not.toContain("secret");
    }
    expect(seen[0]?.headers.authorization).toBe("Bearer pm_secret");
    expect(seen.map(({ url }) => url).join()).not.toContain("secret");
  });
});

describe("misuse", () => {
  test.each([
    ["", "baseUrl"],
    ["power.test", "baseUrl"],
    ["ftp://power.test", "baseUrl"],
    ["http://user:pw@power.test", "baseUrl"],
    ["http://power.test/?a=1", "baseUrl"],
    ["http://power.test/#a", "baseUrl"],
  ])("baseUrl %j is refused", (baseUrl, name) => {
    expect(() => new PowerClient({ baseUrl })).toThrow(new RegExp(`^${name}: expected`));
  });

  test.each([
    { timeoutMs: 0 },
    { timeoutMs: 1.5 },
    { timeoutMs: Number.NaN },
    { timeoutMs: 2 ** 31 },
    { retries: -1 },
    { retries: Number.POSITIVE_INFINITY },
  ])("%j is refused", (options) => {
    expect(() => client(options)).toThrow(/expected a whole number from/);
  });

  test.each(["", ".", ".."])(
    "the id %j cannot be in a path, and no other route is asked instead",
    async (id) => {
      expect((await failure(client().device(id))).code).toBe("invalid_argument");
      expect((await failure(client().history(id).next())).code).toBe("invalid_argument");
      expect(seen.length).toBe(0);
    },
  );

  test("half of a surrogate pair is refused as a PowerError", async () => {
    for (const call of [client().device("\ud800"), client().getBudget(["a", "\udc00"])]) {
      expect(await failure(call)).toMatchObject({
        code: "invalid_argument",
        message: expect.stringMatching(/\\ud[8c]00/),
      });
    }
    expect(seen).toEqual([]);
  });

  test("without types, a missing id, and an id in place of a list, are refused", async () => {
    const [nothing, one] = [undefined as unknown as string, "edge-001" as unknown as string[]];
    expect((await failure(client().device(nothing))).message).toBe(
      "id: undefined cannot be part of a path",
    );
    expect((await failure(client().getBudget(one))).message).toBe(
      "deviceIds: expected a list, got string",
    );
    const reading = { meter_id: "m", voltage: 1, current_draw: 1 } as unknown as [];
    expect((await failure(client().logMany(reading))).message).toBe(
      "readings: expected a list, got object",
    );
    const webSocket = class {};
    expect(() => client({ webSocket }).stream({ deviceIds: one })).toThrow(
      "deviceIds: expected a list, got string",
    );
    expect(seen).toEqual([]);
  });

  test("an invalid Date is refused as a PowerError", async () => {
    const since = new Date("soon");
    expect((await failure(client().chart("m", { since }))).code).toBe("invalid_argument");
    expect((await failure(client().history("m", { since }).next())).code).toBe("invalid_argument");
    expect(seen.length).toBe(0);
  });

  test("a path after the host is kept, and one slash is enough", async () => {
    const { port } = server.address() as { port: number };
    await client({ baseUrl: `http://127.0.0.1:${port}/power//` }).devices();
    expect(seen[0]?.url).toBe("/power/v1/devices");
  });
});
