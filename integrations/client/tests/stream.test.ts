/**
 * The stream's rules, held against a WebSocket whose other end is in the test: every order of
 * things can be had.
 */

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { PowerClient, PowerError, type StreamOptions, type StreamStatus } from "../src";
import { FakeService } from "./fake";
import { SOON } from "./service";

let service: FakeService;
let client: PowerClient;

beforeEach(() => {
  vi.useFakeTimers();
  service = new FakeService();
  client = new PowerClient({
    baseUrl: "http://power.test/base/",
    token: "pm_secret",
    webSocket: service.webSocket,
    fetch: service.fetch,
  });
});
afterEach(() => vi.useRealTimers());

/** Let timers run and the service send what it has. */
async function settle(ms = 20): Promise<void> {
  for (let step = 0; step < 10; step++) {
    await vi.advanceTimersByTimeAsync(ms / 10);
    service.flush();
  }
}

/** A listener that notes what it is given. */
function listen(options: Partial<StreamOptions> = {}) {
  const got: number[] = [];
  const statuses: StreamStatus[] = [];
  const handle = client.stream({
    onEvent: (_, sequence) => got.push(sequence),
    onStatus: (status) => statuses.push(status),
    ...options,
  });
  return { got, statuses, handle, states: () => statuses.map((status) => status.state) };
}

/**
 * A listener that has one event, and loses its connection; another file, without any, takes the
 * place of the first.
 */
async function replaced() {
  service.add("a");
  const all = listen({ after: 0 });
  await settle();
  service.socket.drop();
  service.events = [];
  return all;
}

describe("one connection", () => {
  test("is shared by all listeners, and ends with the last of them", async () => {
    const [one, two] = [listen(), listen()];
    await settle();
    expect(service.sockets.length).toBe(1);
    one.handle.close();
    await settle();
    expect(service.socket.readyState).toBe(1);
    two.handle.close();
    two.handle.close();
    await settle();
    expect(service.socket.readyState).toBe(3);
    expect(client.streamStatus).toEqual({ state: "idle" });
  });

  test("survives a listener that closes and opens again at once, as in StrictMode", async () => {
    const keep = listen();
    await settle();
    keep.handle.close();
    listen();
    await settle();
    expect(service.sockets.length).toBe(1);
    expect(service.socket.readyState).toBe(1);
  });

  test("keeps the token out of the URL and in the subprotocols", async () => {
    listen();
    await settle();
    expect(service.socket.url).toBe("ws://power.test/base/v1/stream");
    expect(service.socket.protocols).toEqual(["power.v1", "token.pm_secret"]);
  });

  test("asks for its listeners' devices, or for all if one wants all or there are very many", async () => {
    listen({ deviceIds: ["a b"] });
    listen({ deviceIds: ["c"] });
    await settle();
    expect(service.socket.devices).toEqual(["a b", "c"]);
    const many = listen({ deviceIds: Array.from({ length: 1_000 }, (_, i) => `d${i}`) });
    await settle();
    expect(service.socket.devices).toEqual([]);
    many.handle.close();
    listen();
    await settle();
    expect(service.sockets.length).toBe(2);
  });

  test("ignores a listener whose signal has fired, and drops one whose signal fires", async () => {
    listen({ signal: AbortSignal.abort() });
    await settle();
    expect(service.sockets.length).toBe(0);
    const control = new AbortController();
    listen({ signal: control.signal });
    await settle();
    control.abort();
    await settle();
    expect(client.streamStatus.state).toBe("idle");
  });
});

describe("exactly once", () => {
  test("`after` gives earlier and new events; without it only new ones come", async () => {
    for (const device of ["a", "b", "a"]) service.add(device);
    const [all, some, now] = [
      listen({ after: 0 }),
      listen({ after: 1, deviceIds: ["a"] }),
      listen(),
    ];
    await settle();
    service.add("a");
    service.add("b");
    await settle();
    expect(all.got).toEqual([1, 2, 3, 4, 5]);
    expect(some.got).toEqual([3, 4]);
    expect(now.got).toEqual([4, 5]);
    expect(now.handle.sequence).toBe(5);
  });

  test("a later listener gets the events that it asks for, and the others none twice", async () => {
    const first = listen({ deviceIds: ["a"] });
    await settle();
    for (const device of ["a", "b", "a"]) service.add(device);
    await settle();
    const late = listen({ after: 1, deviceIds: ["b", "a"] });
    const now = listen({ deviceIds: ["a"] });
    await settle();
    service.add("b");
    service.add("a");
    await settle();
    expect(first.got).toEqual([1, 3, 5]);
    expect(late.got).toEqual([2, 3, 4, 5]);
    expect(now.got).toEqual([5]);
    expect(first.states()).toEqual(["connecting", "open"]);
  });

  test("a listener that throws is reported; it had its event, and the others get theirs", async () => {
    const reported: unknown[] = [];
    const report = (error: unknown) => reported.push(error);
    process.on("uncaughtException", report);
    try {
      const bad = listen({
        onEvent: () => {
          throw new Error("mine");
        },
      });
      const good = listen();
      await settle();
      service.add("a");
      await settle();
      vi.useRealTimers();
      await vi.waitFor(() => expect(reported).toEqual([new Error("mine")]), SOON);
      expect(good.got).toEqual([1]);
      expect(bad.handle.sequence).toBe(1);
    } finally {
      process.off("uncaughtException", report);
    }
  });

  test("a listener closed by another one's callback gets nothing more", async () => {
    const victim: { close?: () => void } = {};
    listen({ onEvent: () => victim.close?.() });
    const second = listen();
    victim.close = second.handle.close;
    await settle();
    service.add("a");
    await settle();
    expect(second.got).toEqual([]);
  });

  test("a heartbeat moves the sequence to continue from", async () => {
    const only = listen({ deviceIds: ["a"] });
    await settle();
    service.socket.send({
      type: "heartbeat",
      latest: 7,
      timestamp: "2026-11-23T12:00:00.000000+00:00",
    });
    expect(only.handle.sequence).toBe(7);
  });

  test("in any mix of events, drops and outages, each listener gets its events once, in order", async () => {
    for (let seed = 1; seed <= 60; seed++) await storm(seed);
  }, 120_000);
});

describe("a file that is another one", () => {
  test("restored from a backup: continues where the two files agree", async () => {
    for (const device of ["a", "b", "a", "b"]) service.add(device);
    const [all, some] = [listen({ after: 0 }), listen({ deviceIds: ["a"] })];
    await settle();
    expect(all.got).toEqual([1, 2, 3, 4]);
    service.add("a");
    await settle();
    service.socket.drop();
    service.events = service.events.slice(0, 2);
    service.add("a", "other 3");
    await settle(2_000);
    service.add("b", "other 4");
    await settle();
    expect(all.got).toEqual([1, 2, 3, 4, 5, 3, 4]);
    expect(some.got).toEqual([5, 3]);
    expect(all.statuses.at(-1)).toEqual({ state: "open", recovered: false });
    service.socket.drop();
    service.add("a");
    await settle(2_000);
    expect(all.got.slice(-2)).toEqual([4, 5]);
    expect(all.statuses.at(-1)).toEqual({ state: "open", recovered: true });
  });

  test("with as many events as the one before, and more: recognised by its id", async () => {
    for (const device of ["a", "a", "a"]) service.add(device);
    const [all, now] = [listen({ after: 0 }), listen()];
    await settle();
    service.socket.drop();
    service.fileId = "second";
    service.events = service.events.slice(0, 1);
    for (const id of ["x", "y", "z"]) service.add("a", id);
    await settle(2_000);
    expect([all.got, now.got]).toEqual([
      [1, 2, 3, 2, 3, 4],
      [2, 3, 4],
    ]);
    expect(all.statuses.at(-1)).toEqual({ state: "open", recovered: false });
    service.socket.drop();
    service.add("a");
    await settle(2_000);
    expect(all.got.slice(-2)).toEqual([4, 5]);
    expect(all.statuses.at(-1)).toEqual({ state: "open", recovered: true });
  });

  test("and equal to the one before up to its end: nothing is given twice", async () => {
    service.add("a");
    const all = listen({ after: 0 });
    await settle();
    service.socket.drop();
    service.fileId = "second";
    await settle(2_000);
    expect(all.got).toEqual([1]);
    expect(all.statuses.at(-1)).toEqual({ state: "open", recovered: false });
  });

  test("does not concern listeners that come after all others have left", async () => {
    service.add("a");
    const first = listen({ after: 0 });
    await settle();
    first.handle.close();
    await settle();
    service.fileId = "second";
    const second = listen({ after: 1 });
    await settle();
    service.add("a");
    await settle();
    expect([second.got, service.sockets.length]).toEqual([[2], 2]);
  });

  test("nothing in common: a listener with `after` gets everything, others only new events", async () => {
    for (let i = 0; i < 5; i++) service.add("a");
    const [all, now] = [listen({ after: 2 }), listen()];
    await settle();
    service.socket.drop();
    service.events = [];
    service.add("a", "x");
    service.add("a", "y");
    await settle(2_000);
    service.add("a", "z");
    await settle();
    expect(all.got).toEqual([3, 4, 5, 1, 2, 3]);
    expect(now.got).toEqual([3]);
  });

  test("a listener whose `after` the file lacks changes nothing for the others", async () => {
    for (let i = 0; i < 3; i++) service.add("a");
    const [here, elsewhere] = [listen({ after: 2 }), listen({ after: 1, deviceIds: ["b"] })];
    await settle();
    const lost = listen({ after: 100 });
    await settle(2_000);
    service.add("b");
    await settle();
    expect([here.got, elsewhere.got, lost.got]).toEqual([[3, 4], [4], [1, 2, 3, 4]]);
  });

  test("at the first connection: an `after` that the file lacks", async () => {
    service.add("a");
    const all = listen({ after: 100 });
    await settle(2_000);
    expect(all.got).toEqual([1]);
    expect(all.statuses.at(-1)).toEqual({ state: "open", recovered: false });
  });

  test("the oldest events are gone: the others follow, and the status says so", async () => {
    for (let i = 0; i < 5; i++) service.add("a");
    service.events = service.events.slice(3);
    const all = listen({ after: 1 });
    await settle();
    expect(all.got).toEqual([4, 5]);
    expect(all.statuses.at(-1)).toEqual({ state: "open", recovered: false });
    expect(service.sockets.length).toBe(1);
  });

  test("nothing is given while the new file is read, which is repeated if it fails", async () => {
    const failing = vi.fn(async () => Promise.reject(new TypeError("fetch failed")));
    let fetch: typeof globalThis.fetch = failing;
    client = new PowerClient({
      baseUrl: "http://power.test",
      webSocket: service.webSocket,
      retries: 0,
      fetch: (...request) => fetch(...request),
    });
    const all = await replaced();
    await settle(2_000);
    expect(all.statuses.at(-1)?.state).toBe("reconnecting");
    expect(failing).toHaveBeenCalled();
    fetch = service.fetch;
    await settle(20_000);
    expect(all.statuses.at(-1)).toEqual({ state: "open", recovered: false });
  });

  test("closing the stream ends the reading of the new file, and nothing keeps Node alive", async () => {
    const fetch = (_: unknown, init?: RequestInit) =>
      new Promise<Response>((_resolve, reject) => {
        init?.signal?.addEventListener("abort", () => reject(init.signal?.reason));
      });
    client = new PowerClient({ baseUrl: "http://power.test", webSocket: service.webSocket, fetch });
    const all = await replaced();
    await settle(2_000);
    all.handle.close();
    await settle();
    expect([all.got, vi.getTimerCount()]).toEqual([[1], 0]);
  });

  test("an event that comes while the new file is read is given in order", async () => {
    let release = () => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    const fetch = async (input: string | URL | Request) => held.then(() => service.fetch(input));
    client = new PowerClient({ baseUrl: "http://power.test", webSocket: service.webSocket, fetch });
    for (let i = 0; i < 5; i++) service.add("a");
    const all = listen({ after: 0 });
    await settle();
    service.socket.drop();
    service.events = [];
    for (const id of ["x", "y"]) service.add("a", id);
    await settle(2_000);
    service.add("a", "z");
    await settle();
    expect(all.got).toEqual([1, 2, 3, 4, 5]);
    release();
    await settle(2_000);
    expect(all.got).toEqual([1, 2, 3, 4, 5, 1, 2, 3]);
  });

  test.each([503, 429])(
    "it cannot be looked into for now (%i): that is asked again, without haste",
    async (status) => {
      const asked = vi.fn(async () =>
        Response.json({ code: "overloaded", detail: "" }, { status }),
      );
      client = new PowerClient({
        baseUrl: "http://power.test",
        webSocket: service.webSocket,
        retries: 0,
        fetch: asked,
      });
      const all = await replaced();
      for (let step = 0; step < 1_000; step++) await settle(10);
      expect(all.statuses.at(-1)?.state).toBe("reconnecting");
      expect(asked.mock.calls.length).toBeGreaterThan(3);
      expect(asked.mock.calls.length).toBeLessThanOrEqual(10);
    },
  );

  test("the new file cannot be read: the stream stops with the reason", async () => {
    const fetch = async () =>
      Response.json({ code: "forbidden_scope", detail: "no" }, { status: 403 });
    client = new PowerClient({ baseUrl: "http://power.test", webSocket: service.webSocket, fetch });
    const all = await replaced();
    await settle(2_000);
    expect(all.statuses.at(-1)).toMatchObject({
      state: "stopped",
      error: { status: 403, code: "forbidden_scope" },
    });
  });
});

describe("a connection that goes", () => {
  test.each([4401, 4403, 4422, 1008])(
    "is not made again after %i, until somebody opens the stream again",
    async (code) => {
      service.refuseWith = code;
      const first = listen();
      await settle(60_000);
      expect(service.sockets.length).toBe(1);
      expect(first.states()).toEqual(["connecting", "stopped"]);
      const { error } = first.statuses[1] as { error: PowerError };
      expect(error).toBeInstanceOf(PowerError);
      expect([error.code, error.status]).toEqual(["unauthorized", code === 1008 ? 0 : code - 4000]);
      service.refuseWith = 0;
      listen();
      await settle();
      expect(first.states()).toEqual(["connecting", "stopped", "connecting", "open"]);
    },
  );

  test("that was refused is not opened again when one of several listeners leaves", async () => {
    service.refuseWith = 4401;
    const [one] = [listen(), listen()];
    await settle();
    one.handle.close();
    await settle(60_000);
    expect([service.sockets.length, client.streamStatus.state]).toEqual([1, "stopped"]);
  });

  test.each([1006, 1011, 1012, 1013, 4429])("is made again after %i", async (code) => {
    const only = listen();
    await settle();
    service.socket.drop(code, "why");
    expect(only.statuses.at(-1)).toEqual({ state: "reconnecting", code, reason: "why" });
    await settle(2_000);
    expect(only.states()).toEqual(["connecting", "open", "reconnecting", "open"]);
    expect(service.sockets.length).toBe(2);
  });

  test("without a service, tries come at longer and longer pauses, up to ten seconds", async () => {
    service.up = false;
    const only = listen();
    await settle(60_000);
    expect(only.statuses.at(-1)?.state).toBe("reconnecting");
    expect(service.sockets.length).toBeGreaterThan(5);
    const before = service.sockets.length;
    await settle(100_000);
    expect(service.sockets.length - before).toBeLessThanOrEqual(20);
    service.up = true;
    await settle(20_000);
    expect(only.statuses.at(-1)?.state).toBe("open");
  });

  test("a try that was due when the stream was closed does not disturb the next stream", async () => {
    service.up = false;
    const before = listen();
    await settle(30_000);
    expect(before.states().at(-1)).toBe("reconnecting");
    before.handle.close();
    await settle();
    service.up = true;
    const after = listen();
    await settle(15_000);
    service.add("a");
    await settle();
    expect([after.states(), after.got]).toEqual([["connecting", "open"], [1]]);
  });

  test("that cannot even begin is reported with the reason, and tried again", async () => {
    let allowed = false;
    const Real = service.webSocket;
    const webSocket = class {
      constructor(url: string, protocols?: string | string[]) {
        if (!allowed) throw new Error("insecure");
        // biome-ignore lint/correctness/noConstructorReturn: what a page gets is the other one
        return new Real(url, protocols);
      }
    };
    client = new PowerClient({ baseUrl: "http://power.test", webSocket });
    const only = listen();
    await settle(2_000);
    expect(only.statuses.at(-1)).toEqual({ state: "reconnecting", code: 1006, reason: "insecure" });
    allowed = true;
    await settle(20_000);
    expect(only.states().at(-1)).toBe("open");
  });

  test.each(["a browser", "Node"])(
    "that is refused at first is made again, as %s tells of it",
    async (runtime) => {
      if (runtime === "a browser") vi.stubGlobal("process", { ...process, versions: {} });
      try {
        vi.resetModules(); // what is asked is asked once, as it is loaded
        const { PowerClient: Here } = await import("../src");
        client = new Here({ baseUrl: "http://power.test", webSocket: service.webSocket });
      } finally {
        vi.unstubAllGlobals();
      }
      service.up = false;
      const only = listen();
      await settle(5_000);
      expect(only.statuses.at(-1)).toMatchObject({ state: "reconnecting", code: 1000 });
      service.up = true;
      await settle(20_000);
      service.socket.drop(1012);
      expect(only.statuses.at(-1)).toEqual({ state: "reconnecting", code: 1012, reason: "" });
      await settle(20_000);
      expect(only.states().at(-1)).toBe("open");
    },
  );

  test("a silent connection is opened anew, because a network can vanish silently", async () => {
    const only = listen();
    await settle();
    service.silent = true;
    await vi.advanceTimersByTimeAsync(70_000);
    service.silent = false;
    await settle(2_000);
    expect(only.states()).toEqual(["connecting", "open", "reconnecting", "open"]);
    expect(service.sockets.length).toBe(2);
    expect(service.sockets[0]?.readyState).toBe(3);
  });

  test("heartbeats keep it open", async () => {
    const only = listen();
    await settle();
    for (let beat = 0; beat < 10; beat++) {
      await vi.advanceTimersByTimeAsync(15_000);
      service.socket.send({
        type: "heartbeat",
        latest: 0,
        timestamp: "2026-11-23T12:00:00.000000+00:00",
      });
    }
    expect(only.states()).toEqual(["connecting", "open"]);
  });

  test("late timers of a hidden tab or a sleeping machine do not end it", async () => {
    const only = listen();
    await settle();
    for (const minutes of [1, 1, 1, 600, 1]) {
      vi.setSystemTime(Date.now() + minutes * 60_000);
      await vi.advanceTimersToNextTimerAsync();
    }
    expect(only.states()).toEqual(["connecting", "open"]);
    expect(service.sockets.length).toBe(1);
  });

  test("after a machine's sleep the service has more than a heartbeat's time to be heard, and no minute", async () => {
    const only = listen();
    await settle(6_000); // longer than the connection's other timers: the next is the look
    service.silent = true;
    vi.setSystemTime(Date.now() + 600 * 60_000);
    await vi.advanceTimersToNextTimerAsync();
    await vi.advanceTimersByTimeAsync(16_000);
    expect(only.states()).toEqual(["connecting", "open"]);
    await vi.advanceTimersByTimeAsync(30_000);
    expect(only.states()).toEqual(["connecting", "open", "reconnecting"]);
  });

  test("closing it during a pause leaves no timer, which would keep Node alive", async () => {
    service.up = false;
    const only = listen();
    await settle(60_000);
    expect(only.states().at(-1)).toBe("reconnecting");
    only.handle.close();
    await settle();
    expect(vi.getTimerCount()).toBe(0);
  });

  test.each(["<html>", "null", "7", '"text"', "[]", "{}", '{"type":"event"}'])(
    "what is no power-service stops it: %s",
    async (frame) => {
      const only = listen({ after: 0 });
      await settle();
      service.socket.send(frame);
      expect(only.statuses.at(-1)).toMatchObject({
        state: "stopped",
        error: { code: "invalid_response" },
      });
      expect(service.socket.readyState).toBe(3);
    },
  );
});

describe("meters", () => {
  const meter = (id: string, device_id: string, voltage = 1) => ({
    type: "meter",
    meter: { id, device_id, voltage },
  });

  test("each listener of a device gets its meters' present state first, also a later one", async () => {
    const [first, later]: [string[], string[]] = [[], []];
    client.stream({ onState: ({ id, voltage }) => first.push(`${id} ${voltage}`) });
    await settle();
    for (const one of [meter("m", "a"), meter("n", "b"), meter("m", "a", 2)])
      service.socket.send(one);
    client.stream({
      deviceIds: ["a"],
      onState: ({ id, voltage }) => later.push(`${id} ${voltage}`),
    });
    await settle();
    service.socket.send(meter("n", "b", 3));
    expect(first).toEqual(["m 1", "n 1", "m 2", "n 3"]);
    expect(later).toEqual(["m 2"]);
  });

  test("readings go to the listeners of their device; those of unknown meters go nowhere", async () => {
    const got: unknown[] = [];
    client.stream({
      deviceIds: ["a"],
      onReading: (reading, deviceId) => got.push([reading.id, deviceId]),
    });
    client.stream({ deviceIds: ["b"] });
    await settle();
    for (const device_id of ["a", "b"])
      service.socket.send({ type: "reading", device_id, reading: { id: device_id } });
    service.socket.send({ type: "from the future" });
    expect(got).toEqual([["a", "a"]]);
  });
});

describe("misuse", () => {
  test.each([-1, 1.5, Number.NaN, 2 ** 53])("after: %d is no sequence", (after) => {
    expect(() => client.stream({ after })).toThrow(/after: expected a sequence number from 0 on/);
  });

  test("a runtime without WebSocket is told what to install", () => {
    vi.stubGlobal("WebSocket", undefined);
    try {
      const bare = new PowerClient({ baseUrl: "http://power.test" });
      expect(() => bare.stream({})).toThrow(/npm install ws/);
    } finally {
      vi.unstubAllGlobals();
    }
  });
});

describe("the status", () => {
  test("can be watched without opening anything", async () => {
    const changed = vi.fn();
    const end = client.watchStreamStatus(changed);
    await settle();
    expect([client.streamStatus, service.sockets.length]).toEqual([{ state: "idle" }, 0]);
    const only = listen();
    await settle();
    expect(changed).toHaveBeenCalledTimes(2);
    end();
    only.handle.close();
    await settle();
    expect(changed).toHaveBeenCalledTimes(2);
  });

  test("a listener that comes while the connection is lost learns that at once", async () => {
    listen();
    await settle();
    service.up = false;
    service.socket.drop();
    const late = listen();
    await vi.advanceTimersByTimeAsync(1);
    expect(late.states()).toEqual(["reconnecting"]);
  });
});

/** A small generator of random numbers, the same in every run. */
function randomness(seed: number) {
  let state = seed * 2_654_435_761;
  return (below: number) => {
    state = (Math.imul(state ^ (state >>> 15), 2_246_822_519) + 0x9e3779b9) >>> 0;
    return state % below;
  };
}

/** Do anything in any order, then let it settle, and compare with what the file holds. */
async function storm(seed: number): Promise<void> {
  const random = randomness(seed);
  const devices = ["a", "b", "c"];
  service = new FakeService();
  client = new PowerClient({
    baseUrl: "http://power.test",
    webSocket: service.webSocket,
    fetch: service.fetch,
  });
  const listeners: {
    got: number[];
    after: number | undefined;
    ids: string[] | undefined;
    openAt?: number;
    end?: number;
    close: () => void;
  }[] = [];
  const actions = [
    () => service.add(devices[random(3)] as string),
    () => service.socket?.step(),
    () => {
      const after = random(2) ? random(service.events.length + 1) : undefined;
      const ids = random(2) ? devices.slice(random(3)) : undefined;
      const got: number[] = [];
      const one = { got, after, ids, close: () => {} } as (typeof listeners)[number];
      one.close = client.stream({
        deviceIds: ids,
        after,
        onEvent: (_, sequence) => got.push(sequence),
        onStatus: ({ state }) => {
          if (state === "open") one.openAt ??= service.events.length;
        },
      }).close;
      listeners.push(one);
    },
    () => {
      const one = listeners[random(listeners.length + 1)];
      if (one && random(4) === 0) {
        one.close();
        one.end ??= service.events.length;
      }
    },
    () => random(5) === 0 && service.socket?.drop(random(2) ? 1006 : 1012),
    () => {
      if (random(6) === 0) service.up = !service.up;
      if (!service.up) service.socket?.drop();
    },
  ];
  for (let step = 0; step < 150; step++) {
    actions[random(actions.length)]?.();
    if (random(2)) await vi.advanceTimersByTimeAsync(random(400));
  }
  service.up = true;
  for (let step = 0; step < 40; step++) await settle(1_000);
  for (const { got, after, ids, openAt, end } of listeners) {
    const file = service.events
      .filter((one) => !ids || ids.includes(one.event.device_id))
      .map((one) => one.sequence);
    const wanted = file.filter(
      (sequence) => sequence > (after ?? (got[0] ?? Number.POSITIVE_INFINITY) - 1),
    );
    const what = `seed ${seed}`;
    if (end === undefined) {
      expect(got, what).toEqual(wanted);
      // Those from now on: all that came after it was open.
      if (after === undefined)
        expect(got, what).toEqual(expect.arrayContaining(file.filter((s) => s > (openAt ?? 0))));
    } else {
      expect(got, what).toEqual(wanted.slice(0, got.length));
    }
  }
  for (const { close } of listeners) close();
  await settle(1_000);
}
