/** Columns of charts, energy by local day, and the report as CSV. */

import type { PowerMeter, PowerStatistics, Report } from "@blackroad/power-client";
import { describe, expect, test } from "vitest";
import { alone, join, limits, points, readingAt } from "../../src/device/chart-data";
import { energyDays, midnight, sum } from "../../src/device/energy";
import { eventNote, eventValue } from "../../src/device/events";
import { linesOf } from "../../src/device/lines";
import { reportCsv } from "../../src/device/report-csv";
import { chance } from "./random";

describe("points", () => {
  const of = (times: number[], least = 100) =>
    points(
      times,
      (time) => time,
      (time) => time,
      least,
    );
  test("break where nothing came for long, and only there", () => {
    expect(of([0, 5, 10, 111]).ys).toEqual([0, 5, 10, null, 111]);
    expect(of([0, 5, 10, 110]).ys).toEqual([0, 5, 10, 110]);
    expect(of([]).ys).toEqual([]);
  });
  test("of readings that are far apart anyway do not break at each of them", () => {
    expect(of([0, 500, 1000, 1500]).ys).toEqual([0, 500, 1000, 1500]);
    expect(of([0, 500, 1000, 9000]).ys).toContain(null);
  });
});

test("joined lines keep each its own points over all times", () => {
  const random = chance(3);
  for (let run = 0; run < 200; run++) {
    const lines = Array.from({ length: 3 }, () => {
      const xs = [...new Set(Array.from({ length: 6 }, () => Math.floor(random() * 12)))].sort(
        (a, b) => a - b,
      );
      return { xs, ys: xs.map((x) => (random() < 0.2 ? null : x)) };
    });
    const [xs, ...columns] = join(lines);
    expect(Array.from(xs)).toEqual([...new Set(lines.flatMap((line) => line.xs))].sort((a, b) => a - b));
    for (const [index, { xs: own, ys }] of lines.entries()) {
      const column = Array.from(columns[index] ?? []);
      expect(own.map((x) => column[Array.from(xs).indexOf(x)])).toEqual(ys);
      expect(column.filter((value) => value === undefined).length).toBe(xs.length - own.length);
      // The legend: the last value at or before a point, a dash where that is not known.
      for (let at = 0; at < xs.length; at++) {
        const before = own.filter((x) => x <= Number(xs[at]));
        const expected = before.length ? ys[before.length - 1] : null;
        expect(readingAt(xs, column, at)).toBe(expected);
      }
      expect(readingAt(xs, column, null)).toBe(ys.at(-1) ?? null);
    }
  }
});

test("a point that no line would show is one without a neighbour between gaps", () => {
  const random = chance(8);
  for (let run = 0; run < 500; run++) {
    const values = Array.from({ length: 9 }, () => [1, null, undefined][Math.floor(random() * 3)]);
    // Without the places where it has no point, a line is runs of values between gaps.
    const own = values.map((value, index) => ({ value, index })).filter(({ value }) => value !== undefined);
    const expected = own
      .filter(({ value }, place) => value !== null && !own[place - 1]?.value && !own[place + 1]?.value)
      .map(({ index }) => index);
    expect(alone(values)).toEqual(expected);
  }
});

test("a scale holds its data and the bounds asked for", () => {
  const random = chance(4);
  for (let run = 0; run < 200; run++) {
    const [a, b] = [random() * 200 - 100, random() * 200 - 100];
    const [low, high] = limits(Math.min(a, b), Math.max(a, b));
    expect(low < Math.min(a, b) && high > Math.max(a, b)).toBe(true);
  }
  expect(limits(40, 60, [0, 100])).toEqual([0, 100]);
  expect(limits(5, 5)).toEqual([4.5, 5.5]);
  expect(limits(null, null)[0]).toBeLessThan(limits(null, null)[1]);
});

describe("energy by day", () => {
  const hour = (start: string, out: number, taken: number) =>
    ({ start, energy_out_wh: out, energy_in_wh: taken }) as PowerStatistics;

  test("puts each hour into the local day in which it begins, and keeps days without energy", () => {
    const now = new Date(2026, 10, 23, 9).getTime();
    const at = (...when: [number, number, number, number]) => new Date(...when).toISOString();
    const days = energyDays(
      new Map([
        [
          "a",
          [
            hour(at(2026, 10, 20, 23), 9, 9),
            hour(at(2026, 10, 21, 0), 1, 0),
            hour(at(2026, 10, 21, 23), 2, 0.5),
          ],
        ],
        ["b", [hour(at(2026, 10, 23, 8), 4, 0)]],
      ]),
      3,
      now,
    );
    expect(days.map((day) => [sum(day, "out"), sum(day, "in")])).toEqual([
      [3, 0.5],
      [0, 0],
      [4, 0],
    ]);
    expect(days[2]?.start).toBe(midnight(now));
  });
});

test("lines have a colour by type, and others of that type another shade or a dash", () => {
  const meters = Array.from({ length: 4 }, (_, index) => ({ id: `m${index}`, type: "solar", name: null }));
  const lines = [...linesOf(meters as unknown as PowerMeter[]).values()];
  expect(lines.map(({ color }) => color)).toEqual([1, 2, 1, 2].map((shade) => `--series-solar-${shade}`));
  expect(lines.map(({ dash }) => dash !== undefined)).toEqual([false, false, true, true]);
  expect(new Set(lines.map(({ color, dash }) => `${color} ${dash}`)).size).toBe(4);
});

test("an alert says each figure once, and no more of it than can be read", () => {
  const alert = {
    type: "discharge",
    value: 19.902_134,
    note: "House: battery: 19.9021 % charge, threshold 20 %",
  } as const;
  expect(eventValue(alert)).toBe("19.9 %");
  expect(eventNote(alert)).toBe("\u2068House: battery\u2069, threshold 20 %");
  expect(eventNote({ ...alert, note: "by hand" })).toBe("by hand");
  expect(eventNote({ ...alert, type: "restore" })).toBe(alert.note);
  expect(eventValue({ ...alert, value: 20 })).toBe("20 %");
});

describe("the report as CSV", () => {
  const report = (name: string | null): Report => ({
    device_id: "edge-001",
    device_name: 'Gate, "north"',
    period_days: 7,
    generated_at: "2026-11-23T21:02:43.023562+00:00",
    meters: [{ meter_id: "m1", name, type: "battery", reading_count: 0 }],
    totals: {
      consumption_wh: 0,
      main_wh: 0,
      solar_wh: 0,
      battery_out_wh: 0,
      battery_in_wh: 0,
      ups_wh: 0,
      self_sufficiency_pct: null,
    },
    event_count: 0,
    events: [],
  });

  test("quotes what needs it, leaves empty what is not there, and ends lines as RFC 4180 has it", () => {
    const [head, line, rest] = reportCsv(report("Pack")).split("\r\n");
    expect(head?.split(",").length).toBe(17);
    expect(head?.slice(0, 10)).toBe("\ufeffdevice_id");
    expect(line).toBe(
      'edge-001,"Gate, ""north""",7,2026-11-23T21:02:43.023562+00:00,m1,Pack,battery,0,,,,,,,,,',
    );
    expect(rest).toBe("");
  });

  test("leaves watts that are not known empty", () => {
    const gauge = { avg_wattage: null, min_wattage: null, max_wattage: null, min_charge_pct: 40 };
    const known = report("Pack");
    const meters = known.meters.map((meter) => ({ ...meter, reading_count: 3, ...gauge }));
    const [head = "", line = ""] = reportCsv({ ...known, meters }).split("\r\n");
    const cells = line.replace(/"[^"]*(""[^"]*)*"/, "name").split(",");
    const cell = (name: string) => cells[head.split(",").indexOf(name)];
    expect([cell("avg_wattage_w"), cell("max_wattage_w"), cell("min_charge_pct")]).toEqual(["", "", "40"]);
  });

  test.each(["=1+1", "+1", "-1", "@a", "\ta"])("a name that begins like a formula is text: %j", (name) => {
    expect(reportCsv(report(name))).toContain(`,'${name},`);
  });
});
