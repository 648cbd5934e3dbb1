/** The stream of the real service: killed, restarted, put back from a backup, and refusing. */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { WebSocket } from "ws";
import type { PowerClient, PowerEvent, StreamStatus, WebSocketClass } from "../src";
import { eventually, python, Service, spawnPython } from "./service";

let service: Service;
let client: PowerClient;

beforeEach(async () => {
  service = await new Service().start();
  client = service.client({ token: service.token() });
  for (const id of ["a", "b"]) await client.putDevice(id, { name: id });
});
afterEach(() => service.remove());

// Another process, which writes into the same file, so many events or until its input ends, and
// prints how many.
const WRITER = `
import sys, threading, time
from power_manager import PowerManager
ended = threading.Event()
if len(sys.argv) < 3:
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
count = 0
with PowerManager(sys.argv[1], durability="normal") as pm:
    while not ended.is_set() and count < int(sys.argv[2] if len(sys.argv) > 2 else 10**6):
        pm.trigger_event("ab"[count % 2], "restore", float(count))
        count += 1
        time.sleep(0.001)
print(count)
`;
const BACKUP =
  "import sys; from power_manager import PowerManager; PowerManager(sys.argv[1]).backup(sys.argv[2])";
const RESTORE =
  "import sys; from power_manager import restore_database; restore_database(sys.argv[1], sys.argv[2])";

/** A listener that notes everything. */
function listen(by: PowerClient, options: { deviceIds?: string[]; after?: number } = {}) {
  const events: PowerEvent[] = [];
  const sequences: number[] = [];
  const statuses: StreamStatus[] = [];
  const handle = by.stream({
    ...options,
    onEvent: (event, sequence) => {
      events.push(event);
      sequences.push(sequence);
    },
    onStatus: (status) => statuses.push(status),
  });
  return { events, sequences, statuses, handle };
}

// Node 20 has no WebSocket of its own; from 22 on both are tried.
const classes: [string, WebSocketClass][] = [["ws", WebSocket]];
if (globalThis.WebSocket) classes.push(["the runtime's own", globalThis.WebSocket]);

describe.each(classes)("with the WebSocket of %s", (_, webSocket) => {
  test("gives each event of another process once, in order, while the service is killed three times", async () => {
    const following = service.client({ token: service.token(["read"]), webSocket });
    const [all, half] = [
      listen(following, { after: 0 }),
      listen(following, { deviceIds: ["b"], after: 0 }),
    ];
    const writer = spawnPython(["-c", WRITER, service.db], ["pipe", "pipe", "inherit"]);
    try {
      for (let kill = 0; kill < 3; kill++) {
        const before = all.events.length;
        await eventually(
          () => all.statuses.at(-1)?.state === "open" && all.events.length > before + 200,
        );
        await service.end("SIGKILL");
        await eventually(() => all.statuses.at(-1)?.state === "reconnecting");
        await service.start();
      }
      await eventually(() => all.statuses.at(-1)?.state === "open");
      writer.stdin?.end();
      const count = Number(
        String(await new Promise((resolve) => writer.stdout?.once("data", resolve))),
      );
      expect(count).toBeGreaterThan(600);
      const odd = Math.floor(count / 2);
      await eventually(() => all.events.length >= count && half.events.length >= odd);
      expect(all.events.map((event) => event.value)).toEqual(
        Array.from({ length: count }, (_, i) => i),
      );
      expect(half.events.map((event) => event.value)).toEqual(
        Array.from({ length: odd }, (_, i) => 2 * i + 1),
      );
    } finally {
      writer.kill();
    }
    expect(all.statuses.filter(({ state }) => state === "open").length).toBe(4);
    expect(all.statuses.at(-1)).toEqual({ state: "open", recovered: true });
    all.handle.close();
    half.handle.close();
    await eventually(() => following.streamStatus.state === "idle");
  });

  test("an unknown token stops it with 401, a token of another device with 403", async () => {
    const cases = [
      [service.client({ token: "pm_nobody", webSocket }), 401, "unauthorized"],
      [
        service.client({ token: service.token(["read"], ["a"]), webSocket }),
        403,
        "forbidden_device",
      ],
    ] as const;
    for (const [by, status, code] of cases) {
      const { statuses } = listen(by, { deviceIds: ["b"] });
      const stopped = await eventually(() => statuses.find(({ state }) => state === "stopped"));
      expect(stopped).toMatchObject({ error: { status, code } });
      expect(statuses.map(({ state }) => state)).toEqual(["connecting", "stopped"]);
    }
  });

  test("a token that is revoked stops it while it runs", async () => {
    const ids = () =>
      service
        .tokens("list")
        .split("\n")
        .filter(Boolean)
        .map((line) => line.split(/\s/)[0] as string);
    const before = ids();
    const token = service.token(["read"]);
    const { statuses } = listen(service.client({ token, webSocket }));
    await eventually(() => statuses.at(-1)?.state === "open");
    service.tokens("revoke", ids().find((id) => !before.includes(id)) as string);
    await eventually(() => statuses.at(-1)?.state === "stopped");
    expect(statuses.at(-1)).toMatchObject({ error: { status: 401 } });
  });

  test("loses nothing over an orderly restart", async () => {
    const { events, statuses, handle } = listen(
      service.client({ token: service.token(), webSocket }),
      { after: 0 },
    );
    await eventually(() => statuses.at(-1)?.state === "open");
    await service.end("SIGTERM");
    expect(
      await eventually(() => statuses.find(({ state }) => state === "reconnecting")),
    ).toMatchObject({
      code: 1012,
    });
    await service.start();
    await client.triggerEvent("a", { type: "restore" });
    await eventually(() => events.length === 1);
    handle.close();
  });
});

test("after a restored backup, only its new events are given", async () => {
  const all = listen(client, { after: 0 });
  for (const note of ["1", "2"]) await client.triggerEvent("a", { type: "restore", note });
  python(["-c", BACKUP, service.db, `${service.db}.backup`]);
  for (const note of ["3", "4", "5"]) await client.triggerEvent("a", { type: "restore", note });
  await eventually(() => all.events.length === 5);
  await service.end();
  python(["-c", RESTORE, service.db, `${service.db}.backup`]);
  python(["-c", WRITER, service.db, "1"]);
  await service.start();
  await eventually(() => all.events.length === 6);
  await client.triggerEvent("b", { type: "restore", note: "last" });
  await eventually(() => all.events.length === 7);
  expect(all.events.map((event) => event.note)).toEqual(["1", "2", "3", "4", "5", null, "last"]);
  expect(all.sequences).toEqual([1, 2, 3, 4, 5, 3, 4]);
  expect(all.statuses.at(-1)).toEqual({ state: "open", recovered: false });
  all.handle.close();
});

test("after a restored backup with more new events than were lost, all new ones are given", async () => {
  const all = listen(client, { after: 0 });
  for (const note of ["1", "2"]) await client.triggerEvent("a", { type: "restore", note });
  python(["-c", BACKUP, service.db, `${service.db}.backup`]);
  await client.triggerEvent("a", { type: "restore", note: "3" });
  await eventually(() => all.events.length === 3);
  await service.end();
  python(["-c", RESTORE, service.db, `${service.db}.backup`]);
  python(["-c", WRITER, service.db, "4"]);
  await service.start();
  await eventually(() => all.events.length === 7);
  expect(all.sequences).toEqual([1, 2, 3, 3, 4, 5, 6]);
  expect(all.statuses.at(-1)).toEqual({ state: "open", recovered: false });
  all.handle.close();
});

test("new, changed and deleted devices and meters are told, from any process", async () => {
  const got: string[] = [];
  const { close } = client.stream({
    onStatus: ({ state }) => got.push(state),
    onDevice: ({ id, name }) => got.push(`device ${id} ${name}`),
    onState: ({ name }) => got.push(`meter ${name}`),
    onDeleted: ({ kind, device_id }) => got.push(`deleted ${kind} ${device_id}`),
  });
  // What was registered before the stream may be told after "open", so a message may stand between
  // others.
  const then = async (message: string) => {
    await eventually(() => got.includes(message));
    got.splice(0, got.indexOf(message) + 1);
  };
  await then("open");
  await client.putDevice("c", { name: "New" });
  await then("device c New");
  const meter = await client.addMeter("c", { type: "battery", capacity_wh: 50, name: "Pack" });
  await then("meter Pack");
  await client.updateDevice("c", { name: "Other" });
  await then("device c Other");
  await client.updateMeter(meter.id, { name: "Cell" });
  await then("meter Cell");
  const timestamp = "2026-01-01T00:00:00Z";
  await client.logPower({ meter_id: meter.id, voltage: 4, current_draw: 1, timestamp });
  await then("meter Cell");
  await client.deleteReadings(meter.id, { since: timestamp, until: "2026-01-02T00:00:00Z" });
  await then("deleted readings c");
  const elsewhere =
    "import sys; from power_manager import PowerManager; PowerManager(sys.argv[1]).delete_device('c')";
  python(["-c", elsewhere, service.db]);
  const deleted = () => got.filter((message) => message.startsWith("deleted"));
  await eventually(() => deleted().length === 2);
  expect(deleted().sort()).toEqual(["deleted device c", "deleted meter c"]);
  close();
});

test("readings and states come as they are written", async () => {
  const meter = await client.addMeter("a", { type: "battery", capacity_wh: 50 });
  const got: string[] = [];
  const { close } = client.stream({
    deviceIds: ["a"],
    onReading: ({ wattage }, deviceId) => got.push(`reading ${deviceId} ${wattage}`),
    onState: ({ id, wattage }) => got.push(`state ${id === meter.id} ${wattage}`),
  });
  await eventually(() => got.includes("state true 0"));
  await client.logPower({ meter_id: meter.id, voltage: 4, current_draw: 0.5, charge_pct: 50 });
  await eventually(() => got.includes("reading a 2") && got.includes("state true 2"));
  // The meter was added before the stream opened, so its first state may be told twice.
  expect([...new Set(got)]).toEqual(["state true 0", "reading a 2", "state true 2"]);
  close();
});
