/** What the fleet says of a device, and in which order. */

import type { DeviceBudget, DeviceRecord, PowerMeter } from "@blackroad/power-client";
import { describe, expect, test } from "vitest";
import { byName, order, type SortKey, select } from "../../src/fleet/order";
import { measured, Summaries, type Summary, summarise, sumText, totals } from "../../src/fleet/summary";
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
  test("is the worst of what stores energy, and not its panel's", () => {
    const panel = meter({ type: "solar", state: "charging" });
    const states = (...meters: PowerMeter[]) => summarise(DEVICE, meters, undefined, NOW).state;
    expect(states(panel, meter())).toBe("normal");
    expect(states(panel, meter(), meter({ state: "low" }))).toBe("low");
    expect(states(meter({ state: "low" }), meter({ type: "ups", state: "critical" }))).toBe("critical");
    expect(states(meter({ type: "main", state: "unknown" }), panel)).toBe("unknown");
    expect(states(panel)).toBe("charging");
  });

  test("is stale after two minutes without any reading, and silent before the first", () => {
    const seen = (seconds: number) => meter({ updated_at: new Date(NOW - seconds * 1000).toISOString() });
    expect(summarise(DEVICE, [seen(120), seen(9000)], undefined, NOW).state).toBe("normal");
    expect(summarise(DEVICE, [seen(121)], undefined, NOW)).toMatchObject({
      state: "stale",
      powerState: "normal",
    });
    expect(summarise(DEVICE, [meter({ updated_at: null })], undefined, NOW)).toMatchObject({
      state: "silent",
      load: null,
    });
    expect(summarise(DEVICE, [], undefined, NOW).state).toBe("silent");
  });

  test("does not mind a clock that is ahead", () => {
    const ahead = meter({ updated_at: new Date(NOW + 9e6).toISOString() });
    expect(summarise(DEVICE, [ahead], undefined, NOW).stale).toBe(false);
  });
});

describe("watts that are not known", () => {
  const gauge = meter({ type: "ups", voltage: 230, current_draw: 0, power_known: false, wattage: null });

  test("are no zero: what is made of them is not known either, and the rest is", () => {
    const panel = meter({ type: "solar", voltage: 20, current_draw: 2, wattage: 40 });
    expect(summarise(DEVICE, [gauge, panel], undefined, NOW)).toMatchObject({
      total: null,
      solar: 40,
      load: null,
      net: null,
      alerts: [],
    });
    const empty = meter({ voltage: 0, current_draw: 0, power_known: false, wattage: null });
    expect(totals([empty, meter({ current_draw: 2 })])).toMatchObject({ runtime: null, charge: 50 });
  });

  test("of a UPS in line with the mains leave the load known", () => {
    const mains = meter({ type: "main", voltage: 230, current_draw: 0.5, wattage: 115 });
    expect(totals([mains, gauge])).toMatchObject({ load: 115, total: null });
    expect(totals([mains, meter({ type: "ups" })])).toMatchObject({ load: 115, total: 127 });
  });

  test("show as a dash; volts that were measured are shown", () => {
    expect([measured(gauge, "voltage"), measured(gauge, "current_draw")]).toEqual([230, null]);
    expect(measured(meter({ current_draw: 0 }), "current_draw")).toBe(0);
    expect(measured(meter({ updated_at: null }), "voltage")).toBeNull();
  });

  test("are said beside a sum over devices", () => {
    expect(sumText([2, null, 10, null])).toBe("12.0 W + 2 unknown");
    expect(sumText([2, 10])).toBe("12.0 W");
    expect(sumText([null])).toBe("–");
    expect(sumText([])).toBe("0.00 W");
  });
});

describe("a retired meter", () => {
  const retired = meter({ active: false, state: "critical", charge_pct: 1, voltage: 400, wattage: 400 });

  test("counts in no present figure", () => {
    const both = summarise(DEVICE, [meter(), retired], undefined, NOW);
    expect(both).toEqual(summarise(DEVICE, [meter()], undefined, NOW));
    expect(both).toMatchObject({ state: "normal", total: 12, charge: 50 });
  });

  test("alone leaves nothing but when it was seen", () => {
    expect(summarise(DEVICE, [retired], undefined, NOW)).toMatchObject({
      state: "unknown",
      load: null,
      charge: null,
      alerts: [],
      lastSeen: NOW - 1000,
    });
  });
});

describe("alerts", () => {
  const texts = (meters: PowerMeter[], budget?: DeviceBudget) =>
    summarise(DEVICE, meters, budget, NOW).alerts.map(({ severity, text }) => `${severity}: ${text}`);

  test("name the meter and its charge, the threshold and the target; critical ones come first", () => {
    const low = meter({ state: "low", charge_pct: 14, voltage: 1 });
    const critical = meter({ state: "critical", charge_pct: 4.5, name: null, voltage: 1 });
    expect(texts([low, critical], { within_target: false } as DeviceBudget)).toEqual([
      "critical: \u2068battery\u2069 4.5 %",
      "critical: Power below 3.00 W",
      "warning: \u2068Pack\u2069 14 %",
      "warning: Over daily target",
    ]);
    expect(texts([meter()], { within_target: true } as DeviceBudget)).toEqual([]);
  });
});

describe("summaries that are kept", () => {
  test("are the same objects until something of their device changes", () => {
    const summaries = new Summaries();
    const first = meter();
    const of = (its: PowerMeter, now: number) =>
      summaries.of([DEVICE], { meters: new Map([[DEVICE.id, [its]]]), budgets: new Map() }, now)[0];
    const one = of(first, NOW);
    expect(of(first, NOW + 5000)).toBe(one);
    expect(of(meter({ current_draw: 2 }), NOW)).not.toBe(one);
    expect(of(first, NOW + 200_000)?.state).toBe("stale");
  });
});

function row(index: number, random: () => number): Summary {
  const maybe = () => (random() < 0.2 ? null : Math.floor(random() * 5) - 2);
  const summary = summarise({ ...DEVICE, id: `d${index}`, name: `Node ${index % 7}` }, [], undefined, NOW);
  return {
    ...summary,
    load: maybe(),
    net: maybe(),
    runtime: maybe(),
    lastSeen: maybe(),
    stale: random() < 0.5,
  };
}

describe("order", () => {
  const random = chance(5);
  const rows = byName(Array.from({ length: 60 }, (_, index) => row(index, random)));

  test("by name counts as people do", () => {
    const names = ["Node 10", "node 9", "Node 2"].map((name) => ({ id: name, name }));
    expect(byName(names).map(({ name }) => name)).toEqual(["Node 2", "node 9", "Node 10"]);
  });

  test.each<SortKey>(["load", "net", "runtime", "lastSeen"])(
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

  test("a search has every word in the name or the id, whatever its case; a filter keeps its kind", () => {
    expect(select(rows, " NODE  d13 ", "all").map(({ id }) => id)).toEqual(["d13"]);
    expect(select(rows, "", "stale").every(({ stale }) => stale)).toBe(true);
    expect(select(rows, "", "live").length + select(rows, "", "stale").length).toBe(60);
    expect(select(rows, "", "draining").every(({ stale, net }) => !stale && Number(net) < 0)).toBe(true);
    expect(select(rows, "", "alerts")).toEqual([]);
  });
});
