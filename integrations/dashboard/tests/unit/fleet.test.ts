/** What the fleet says of a device, and in which order. */

import type { DeviceBudget, DeviceRecord, FleetDevice, PowerMeter } from "@blackroad/power-client";
import { describe, expect, test } from "vitest";
import { versionsText } from "../../src/fleet/FleetStrip";
import { byName, FILTERS, order, type SortKey, search } from "../../src/fleet/order";
import {
  measured,
  Summaries,
  type Summary,
  stateOf,
  summarise,
  sumOfKnown,
} from "../../src/fleet/summary";
import { wattsOf } from "../../src/fleet/watts";
import { NO_FACTS } from "../../src/live/facts";
import { chance } from "./random";

const NOW = Date.parse("2026-11-23T12:00:00Z");
const DEVICE: DeviceRecord = {
  id: "edge-001",
  name: "Edge Node",
  shutdown_threshold: 3,
  target_wh: null,
  low_battery_threshold: null,
  critical_battery_threshold: null,
};

function meter(changes: Partial<PowerMeter> = {}): PowerMeter {
  return {
    id: "m",
    device_id: "edge-001",
    type: "battery",
    voltage: 12,
    current_draw: 1,
    capacity_wh: 100,
    charge_pct: 50,
    name: "Pack",
    updated_at: new Date(NOW - 1000).toISOString(),
    low_battery_threshold: null,
    critical_battery_threshold: null,
    active: true,
    power_known: true,
    alert_level: "none",
    wattage: 12,
    state: "normal",
    ...changes,
  };
}

describe("a device's state", () => {
  test("is the worst state of its batteries, not that of its panel", () => {
    const panel = meter({ type: "solar", state: "charging" });
    const states = (...meters: PowerMeter[]) => summarise(DEVICE, meters, undefined, NOW).state;
    expect(states(panel, meter())).toBe("normal");
    expect(states(panel, meter(), meter({ state: "low" }))).toBe("low");
    expect(states(meter({ state: "low" }), meter({ type: "ups", state: "critical" }))).toBe(
      "critical",
    );
    expect(states(meter({ type: "main", state: "unknown" }), panel)).toBe("unknown");
    expect(states(panel)).toBe("producing");
  });

  test("is charging while power flows in, and full when none does", () => {
    const ups = (changes: Partial<PowerMeter>) => stateOf(meter({ type: "ups", ...changes }));
    expect(ups({ state: "charging", charge_pct: 98, wattage: 300 })).toBe("full");
    expect(ups({ state: "charging", charge_pct: 98, wattage: null })).toBe("full");
    expect(ups({ state: "charging", charge_pct: 98, wattage: -20 })).toBe("charging");
    expect(ups({ state: "normal", charge_pct: 60, wattage: -20 })).toBe("charging");
    expect(ups({ state: "low", charge_pct: 12, wattage: -20 })).toBe("low");
    expect(stateOf(meter({ type: "solar", state: "charging", wattage: 0 }))).toBe("normal");
  });

  test("is stale after two minutes without any reading, and silent before the first", () => {
    const seen = (seconds: number) =>
      meter({ updated_at: new Date(NOW - seconds * 1000).toISOString() });
    expect(summarise(DEVICE, [seen(120), seen(9000)], undefined, NOW).state).toBe("normal");
    expect(summarise(DEVICE, [seen(121)], undefined, NOW)).toMatchObject({
      state: "stale",
      powerState: "normal",
    });
    expect(summarise(DEVICE, [meter({ updated_at: null })], undefined, NOW)).toMatchObject({
      state: "silent",
      consumption: null,
    });
    expect(summarise(DEVICE, [], undefined, NOW).state).toBe("silent");
  });

  test("with a clock that is ahead depends on when its readings came", () => {
    const ahead = meter({ updated_at: new Date(NOW + 9e6).toISOString() });
    const at = (now: number) => summarise(DEVICE, [ahead], undefined, now, new Map([["m", NOW]]));
    expect(at(NOW + 120_000)).toMatchObject({ stale: false, state: "normal", ahead: true });
    expect(at(NOW + 120_000).alerts).toEqual([{ severity: "warning", text: "Its clock is ahead" }]);
    expect(at(NOW + 120_001)).toMatchObject({ stale: true, state: "stale" });
  });
});

describe("what a device uses", () => {
  const of = (...parts: [PowerMeter["type"], number | null][]) =>
    wattsOf(
      parts.map(([type, wattage]) =>
        meter({ type, voltage: wattage ?? 0, current_draw: 1, wattage }),
      ),
    );

  test.each<[string, [PowerMeter["type"], number][], number | null]>([
    [
      "by day, with a panel that feeds load and battery",
      [
        ["battery", -28.5],
        ["solar", 35.5],
      ],
      7,
    ],
    [
      "with grid, a draining battery and a roof",
      [
        ["main", 55],
        ["battery", 33],
        ["solar", 56],
      ],
      144,
    ],
    [
      "while it feeds the grid",
      [
        ["main", -1437],
        ["solar", 2000],
      ],
      563,
    ],
    [
      "with a UPS in line with the mains",
      [
        ["main", 100],
        ["ups", 98],
      ],
      100,
    ],
    ["with a UPS alone", [["ups", 98]], 98],
    [
      "within what meters are off, nothing",
      [
        ["battery", -28.6],
        ["solar", 28.5],
      ],
      0,
    ],
    ["with a source that no meter measures, is not known", [["battery", -28.6]], null],
    ["without a meter, is not known", [], null],
  ])("%s", (_, parts, expected) => {
    const { consumption } = of(...parts);
    if (expected === null) expect(consumption).toBeNull();
    else expect(consumption).toBeCloseTo(expected, 9);
  });

  test("separates its sources", () => {
    expect(of(["main", 55], ["battery", 33], ["solar", 56], ["ups", 50])).toMatchObject({
      grid: 55,
      battery: 33,
      solar: 56,
      total: 194,
    });
    expect(of(["ups", 50])).toMatchObject({ grid: 50, charge: 50 });
  });
});

describe("watts that are not known", () => {
  const gauge = meter({
    type: "ups",
    voltage: 230,
    current_draw: 0,
    power_known: false,
    wattage: null,
  });

  test("are not zero: figures that need them are unknown, too, the others are known", () => {
    const panel = meter({ type: "solar", voltage: 20, current_draw: 2, wattage: 40 });
    expect(summarise(DEVICE, [gauge, panel], undefined, NOW)).toMatchObject({
      total: null,
      solar: 40,
      consumption: null,
      alerts: [],
    });
    const empty = meter({ voltage: 0, current_draw: 0, power_known: false, wattage: null });
    expect(wattsOf([empty, meter({ current_draw: 2 })])).toMatchObject({
      runtime: null,
      charge: 50,
    });
  });

  test("of a UPS in line with the mains leave the consumption known", () => {
    const mains = meter({ type: "main", voltage: 230, current_draw: 0.5, wattage: 115 });
    expect(wattsOf([mains, gauge])).toMatchObject({ consumption: 115, total: null });
  });

  test("leave the day's energy unknown", () => {
    const budget = { energy_24h_wh: 50, consumption_24h_wh: 40 } as DeviceBudget;
    expect(summarise(DEVICE, [meter()], budget, NOW).dayWh).toBe(40);
    expect(summarise(DEVICE, [gauge], budget, NOW).dayWh).toBeNull();
    const old = meter({ updated_at: new Date(NOW - 25 * 3.6e6).toISOString() });
    const unbooked = { ...budget, energy_24h_wh: 0, consumption_24h_wh: 0 };
    expect(summarise(DEVICE, [old], unbooked, NOW).dayWh).toBeNull();
    // Read every two hours: nothing is booked, but 0 is not what a meter of 120 W has used.
    const steady = meter({ type: "main", voltage: 12, current_draw: 10, wattage: 120 });
    expect(summarise(DEVICE, [steady], unbooked, NOW).dayWh).toBeNull();
    const off = meter({ type: "main", voltage: 12, current_draw: 0, wattage: 0 });
    expect(summarise(DEVICE, [off], unbooked, NOW).dayWh).toBe(0);
  });

  test("show as a dash; volts that were measured are shown", () => {
    expect([measured(gauge, "voltage"), measured(gauge, "current_draw")]).toEqual([230, null]);
    expect(measured(meter({ current_draw: 0 }), "current_draw")).toBe(0);
    expect(measured(meter({ updated_at: null }), "voltage")).toBeNull();
  });

  test("are said beside a sum over devices", () => {
    expect(sumOfKnown([2, null, 10, null])).toEqual({ sum: 12, unknown: 2 });
    expect(sumOfKnown([2, 10])).toEqual({ sum: 12, unknown: 0 });
    expect(sumOfKnown([null])).toEqual({ sum: null, unknown: 1 });
    expect(sumOfKnown([])).toEqual({ sum: 0, unknown: 0 });
  });
});

describe("a charge that is not known", () => {
  const unknown = { charge_pct: null };
  const pack = meter(unknown);

  test("leaves charge and runtime unknown", () => {
    expect(summarise(DEVICE, [pack], undefined, NOW)).toMatchObject({
      state: "normal",
      charge: null,
      runtime: null,
      battery: 12,
      leastCharge: null,
    });
  });

  test("is left out of mean and runtime while another battery's is known", () => {
    const known = meter({ charge_pct: 60 });
    expect(wattsOf([pack, known])).toMatchObject({ charge: 60, runtime: 5, battery: 24 });
  });

  test("is not full, and is charging while power flows in", () => {
    expect(stateOf(meter({ ...unknown, wattage: 0 }))).toBe("normal");
    expect(stateOf(meter({ ...unknown, wattage: -5 }))).toBe("charging");
    expect(stateOf(meter({ ...unknown, state: "unknown", wattage: -5 }))).toBe("charging");
    expect(stateOf(meter({ ...unknown, state: "unknown", wattage: 5 }))).toBe("unknown");
    expect(stateOf(meter({ ...unknown, type: "solar", state: "unknown", wattage: -5 }))).toBe(
      "unknown",
    );
  });

  test("is named in an alert that still stands", () => {
    const low = meter({ ...unknown, state: "low" });
    const { alerts } = summarise(DEVICE, [low], undefined, NOW);
    expect(alerts).toEqual([{ severity: "warning", text: "\u2068Pack\u2069 low, charge unknown" }]);
  });

  test("comes after those that are known, also among devices that need action", () => {
    const of = (id: string, changes: Partial<Summary>): Summary => ({
      ...summarise(DEVICE, [meter()], undefined, NOW),
      id,
      name: id,
      ...changes,
    });
    const rows = [
      of("a", { charge: null, powerState: "low", leastCharge: null }),
      of("b", { charge: 70, powerState: "low", leastCharge: 19 }),
      of("c", { charge: 20, powerState: "low", leastCharge: 8 }),
    ];
    const ids = (key: SortKey, descending: boolean) =>
      order(rows, { key, descending })
        .map(({ id }) => id)
        .join("");
    expect([ids("charge", false), ids("charge", true), ids("need", false)]).toEqual([
      "cba",
      "bca",
      "cba",
    ]);
  });
});

describe("a retired meter", () => {
  const retired = meter({
    active: false,
    state: "critical",
    charge_pct: 1,
    voltage: 400,
    wattage: 400,
  });

  test("counts in no present figure", () => {
    const both = summarise(DEVICE, [meter(), retired], undefined, NOW);
    expect(both).toEqual(summarise(DEVICE, [meter()], undefined, NOW));
    expect(both).toMatchObject({ state: "normal", total: 12, charge: 50 });
  });

  test("alone leaves only the time when it was seen", () => {
    expect(summarise(DEVICE, [retired], undefined, NOW)).toMatchObject({
      state: "unknown",
      consumption: null,
      charge: null,
      alerts: [],
      lastSeen: NOW - 1000,
    });
  });
});

describe("alerts", () => {
  const texts = (meters: PowerMeter[], budget?: DeviceBudget, threshold = 3) =>
    summarise({ ...DEVICE, shutdown_threshold: threshold }, meters, budget, NOW).alerts.map(
      ({ severity, text }) => `${severity}: ${text}`,
    );

  test("name the meter and its charge, the threshold and the target; critical ones come first", () => {
    const low = meter({ state: "low", charge_pct: 14, voltage: 1 });
    const critical = meter({ state: "critical", charge_pct: 4.5, name: null, voltage: 1 });
    expect(texts([low, critical], { within_target: false } as DeviceBudget, 4)).toEqual([
      "critical: \u2068Battery\u2069 4.5 %",
      "critical: Power below 4.00 W",
      "warning: \u2068Pack\u2069 14 %",
      "warning: Over daily target",
    ]);
    expect(texts([meter()], { within_target: true } as DeviceBudget)).toEqual([]);
  });

  test("power below the default threshold is a note, because some devices never exceed it", () => {
    const camera = meter({ type: "main", voltage: 2, wattage: 2 });
    expect(texts([camera])).toEqual(["note: Power below 3.00 W"]);
    expect(texts([camera], undefined, 2.5)).toEqual(["critical: Power below 2.50 W"]);
    expect(FILTERS.alerts.keeps(summarise(DEVICE, [camera], undefined, NOW))).toBe(false);
  });
});

describe("summaries that are kept", () => {
  test("are the same objects until something of their device changes", () => {
    const summaries = new Summaries();
    const first = meter();
    const of = (its: PowerMeter, now: number, ...facts: FleetDevice[]) =>
      summaries.of(
        [DEVICE],
        {
          meters: new Map([[DEVICE.id, [its]]]),
          budgets: new Map(),
          heard: new Map(),
          facts: { ...NO_FACTS, devices: new Map(facts.map((one) => [one.device_id, one])) },
        },
        now,
      )[0];
    const one = of(first, NOW);
    expect(of(first, NOW + 5000)).toBe(one);
    expect(of(meter({ current_draw: 2 }), NOW)).not.toBe(one);
    expect(of(first, NOW + 200_000)?.state).toBe("stale");
    const known = of(first, NOW, fact());
    expect(known?.site).toBe("north");
    expect(of(first, NOW, fact({ last_seen: "2026-11-23T12:00:05.000000+00:00" }))).toBe(known);
    expect(of(first, NOW, fact({ alarms: [ALARM] }))).not.toBe(known);
  });
});

const ALARM = { kind: "silent", since: "2026-11-23T11:00:00.000000+00:00", note: "" };

function fact(changes: Partial<FleetDevice> = {}): FleetDevice {
  return {
    device_id: DEVICE.id,
    site: "north",
    version: "1.0.0",
    opened_at: null,
    last_seen: null,
    alarms: [],
    ...changes,
  };
}

describe("what a fleet knows of a device", () => {
  test("its alarms are alerts, also without readings, and of unknown kinds", () => {
    const alarms = [ALARM, { ...ALARM, kind: "moved" }];
    for (const meters of [[], [meter()]]) {
      const summary = summarise(DEVICE, meters, undefined, NOW, new Map(), fact({ alarms }));
      expect(summary.alerts.map(({ text }) => text)).toEqual(["Silent", "moved"]);
      expect(FILTERS.alerts.keeps(summary)).toBe(true);
    }
  });

  test("alarms for a single event are notes", () => {
    const alarms = [{ ...ALARM, kind: "replaced" }];
    const summary = summarise(DEVICE, [meter()], undefined, NOW, new Map(), fact({ alarms }));
    expect(summary.alerts.map(({ severity, text }) => `${severity}: ${text}`)).toEqual([
      "note: Sends a new file",
    ]);
    expect(FILTERS.alerts.keeps(summary)).toBe(false);
  });

  test("a site without a name is no site", () => {
    const summary = summarise(DEVICE, [], undefined, NOW, new Map(), fact({ site: "" }));
    expect(summary.site).toBeNull();
  });

  test("its versions are counted, the most frequent first", () => {
    const of = (...versions: (string | null)[]) =>
      versionsText({
        devices: new Map(
          versions.map((version, i) => [`d${i}`, fact({ device_id: `d${i}`, version })]),
        ),
      });
    expect(of("1.0.0", "1.0.0")).toBe("1.0.0");
    expect(of("0.9.1", "1.0.0", "1.0.0", null)).toBe("1.0.0 (2), 0.9.1 (1), not known (1)");
    expect(of("a", "b", "c", "d", "e")).toBe("a (1), b (1), c (1) and 2 more");
  });
});

function row(index: number, random: () => number): Summary {
  const maybe = () => (random() < 0.2 ? null : Math.floor(random() * 5) - 2);
  const summary = summarise(
    { ...DEVICE, id: `d${index}`, name: `Node ${index % 7}` },
    [],
    undefined,
    NOW,
  );
  return {
    ...summary,
    consumption: maybe(),
    solar: maybe(),
    runtime: maybe(),
    lastSeen: maybe(),
    stale: random() < 0.5,
  };
}

describe("order", () => {
  const random = chance(5);
  const rows = byName(Array.from({ length: 60 }, (_, index) => row(index, random)));

  test("by name puts numbers in order", () => {
    const names = ["Node 10", "node 9", "Node 2"].map((name) => ({ id: name, name }));
    expect(byName(names).map(({ name }) => name)).toEqual(["Node 2", "node 9", "Node 10"]);
  });

  test.each<Exclude<SortKey, "need">>(["consumption", "solar", "runtime", "lastSeen"])(
    "by %s: each pair is right, and equals are by name",
    (key) => {
      for (const descending of [false, true]) {
        const sorted = order(rows, { key, descending });
        expect(new Set(sorted)).toEqual(new Set(rows));
        for (const [index, b] of sorted.entries()) {
          const a = sorted[index - 1];
          if (!a) continue;
          const [x, y] = [a[key] as number | null, b[key] as number | null];
          if (x === y) expect(rows.indexOf(a)).toBeLessThan(rows.indexOf(b));
          else if (x === null || y === null) expect(y).toBeNull();
          else expect(descending ? x > y : x < y).toBe(true);
        }
      }
    },
  );

  test("a search finds names and ids with all its words, in any case", () => {
    expect(search(rows, " NODE  d13 ").map(({ id }) => id)).toEqual(["d13"]);
    expect(search(rows, " ")).toBe(rows);
  });

  test("a filter keeps its kind", () => {
    const kept = (filter: keyof typeof FILTERS) => rows.filter(FILTERS[filter].keeps);
    expect(kept("live").every(({ stale }) => !stale)).toBe(true);
    expect(kept("silent").length).toBe(60);
    expect(kept("alerts")).toEqual([]);
    const [state, battery, stale] = ["normal", 3, false] as const;
    const draining = { ...(rows[0] as Summary), state, battery, stale };
    expect(FILTERS.draining.keeps(draining)).toBe(true);
    expect(FILTERS.draining.keeps({ ...draining, stale: true })).toBe(false);
    expect(FILTERS.charging.keeps({ ...draining, battery: -3 })).toBe(true);
  });
});

describe("in order of need", () => {
  const base = summarise(DEVICE, [meter({ current_draw: 0, wattage: 0 })], undefined, NOW);
  const of = (id: string, changes: Partial<Summary>): Summary => ({
    ...base,
    id,
    name: id,
    ...changes,
  });
  const empty = (leastCharge: number, more: Partial<Summary> = {}) => ({
    powerState: leastCharge < 5 ? ("critical" as const) : ("low" as const),
    leastCharge,
    ...more,
  });
  const silent = (hours: number) => ({
    stale: true,
    state: "stale" as const,
    lastSeen: NOW - hours * 3.6e6,
  });
  const wanted = [
    of("flat", empty(1)),
    of("nearly flat", empty(4.1)),
    of("flat when it fell silent", empty(0.5, silent(9))),
    of("lowest", empty(8)),
    of("low", empty(19)),
    of("low when it fell silent", empty(7, silent(1))),
    of("below its own threshold", {
      alerts: [{ severity: "critical", text: "Power below 9.00 W" }],
    }),
    of("two hours left", { runtime: 2 }),
    of("a day left, almost", { runtime: 23.9 }),
    of("drained when it fell silent", { runtime: 1, ...silent(2) }),
    of("silent for days", silent(70)),
    of("silent for minutes", silent(0.2)),
    of("never read", { stale: true, state: "silent", lastSeen: null }),
    of("a week left", { runtime: 168 }),
    of("fine", {}),
    of("fine 2", { alerts: [{ severity: "note", text: "Power below 3.00 W" }] }),
    of("fine 10", {}),
  ];

  test("a flat battery is first, and sixty cameras of two watts come last, by name", () => {
    const random = chance(11);
    for (let run = 0; run < 20; run++) {
      const shuffled = byName([...wanted].sort(() => random() - 0.5));
      const names = order(shuffled, { key: "need", descending: false }).map(({ id }) => id);
      expect(names.slice(0, 13)).toEqual(wanted.slice(0, 13).map(({ id }) => id));
      expect(names.slice(13)).toEqual(["a week left", "fine", "fine 2", "fine 10"]);
    }
  });
});
