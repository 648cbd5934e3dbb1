/** Columns of charts, energy by local day, and the report as CSV. */

import type { PowerClient, PowerMeter, PowerStatistics, Report } from "@blackroad/power-client";
import { describe, expect, test } from "vitest";
import { dayBands } from "../../src/device/bands";
import { alone, join, limits, points, readingAt } from "../../src/device/chart-data";
import { stepsOf } from "../../src/device/EnergyBars";
import {
  dayBefore,
  energyPeriods,
  midnight,
  midnights,
  type Part,
  selfSufficiency,
  sidesOf,
  sidesOfAll,
  total,
  usedUntil,
} from "../../src/device/energy";
import { eventNote, eventValue } from "../../src/device/events";
import { flowText, nodesOf } from "../../src/device/Flow";
import { linesOf } from "../../src/device/lines";
import { outlookOf } from "../../src/device/outlook";
import { fileText, rowsOf } from "../../src/device/range-files";
import { reportCsv } from "../../src/device/report-csv";
import { byScale } from "../../src/device/scales";
import type { Summary } from "../../src/fleet/summary";
import { fileName } from "../../src/ui/save";
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
    const live = Array.from({ length: 100 }, (_, second) => 1600 + second);
    expect(of([0, 500, 1000, 1500, ...live]).ys).not.toContain(null);
    expect(
      of([0, 500, 1000, 1500, ...live, 2900, 2901, 2902]).ys.filter((y) => y === null).length,
    ).toBe(1);
  });
});

test("joined lines keep their own points", () => {
  const random = chance(3);
  for (let run = 0; run < 200; run++) {
    const lines = Array.from({ length: 3 }, () => {
      const xs = [...new Set(Array.from({ length: 6 }, () => Math.floor(random() * 12)))].sort(
        (a, b) => a - b,
      );
      return { xs, ys: xs.map((x) => (random() < 0.2 ? null : x)) };
    });
    const [xs, ...columns] = join(lines);
    expect(Array.from(xs)).toEqual(
      [...new Set(lines.flatMap((line) => line.xs))].sort((a, b) => a - b),
    );
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
    const own = values
      .map((value, index) => ({ value, index }))
      .filter(({ value }) => value !== undefined);
    const expected = own
      .filter(
        ({ value }, place) => value !== null && !own[place - 1]?.value && !own[place + 1]?.value,
      )
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

const DAY_MS = 86_400_000;

describe("energy", () => {
  type Kind = PowerMeter["type"];
  const meters = (...types: Kind[]) => types.map((type) => ({ id: type, type }));
  const hour = (start: number, out: number, taken = 0, watts: number | null = out - taken) => ({
    start: new Date(start).toISOString(),
    avg_wattage: watts,
    energy_out_wh: out,
    energy_in_wh: taken,
  });
  const at = (...when: [number, number, number, number]) => new Date(...when).getTime();
  const one = (hours: Partial<Record<Kind, [number, number]>>) => {
    const rows = Object.entries(hours).map(
      ([type, [out, taken]]) => [type, [hour(0, out, taken)]] as const,
    );
    const types = Object.keys(hours) as Kind[];
    const [period] = energyPeriods(meters(...types), new Map(rows), [0, 3_600_000]);
    return (period as NonNullable<typeof period>).energy;
  };

  test("of a day is that of the hours that begin in it, also if there are none", () => {
    const now = at(2026, 10, 23, 9);
    const panel = [
      hour(at(2026, 10, 20, 23), 9),
      hour(at(2026, 10, 21, 0), 1),
      hour(at(2026, 10, 21, 23), 2),
    ];
    const main = [hour(at(2026, 10, 23, 8), 4)];
    const hours = new Map([
      ["solar", panel],
      ["main", main],
    ]);
    const days = energyPeriods(meters("solar", "main"), hours, midnights(3, now));
    expect(days.map(({ energy }) => energy.consumption)).toEqual([3, 0, 4]);
    expect(days.map(({ energy }) => energy.solar)).toEqual([3, 0, 0]);
    expect(days.map(({ known }) => known)).toEqual([true, false, true]);
    expect(days[2]?.start).toBe(midnight(now));
    expect(total(days)).toMatchObject({ consumption: 7, solar: 3, gridIn: 4 });
  });

  test("is not known where a meter has watts and no energy is booked; of one at 0 W it is 0", () => {
    const known = (...rows: ReturnType<typeof hour>[]) =>
      energyPeriods(meters("main", "solar"), new Map([["main", rows]]), [0, 2 * 3_600_000]);
    for (const [rows, wanted] of [
      [[hour(0, 0, 0, 120)], false],
      [[hour(0, 0, 0, 120), hour(3_600_000, 0, 0, 110)], false],
      [[hour(0, 0, 0, 120), hour(3_600_000, 60)], true],
      [[hour(0, 0, 0, 0)], true],
      [[hour(0, 0, 0, null)], true],
    ] as const)
      expect(known(...rows)).toMatchObject([{ read: true, known: wanted }]);
    expect(known()).toMatchObject([{ read: false, known: false }]);
    // What does not count does not matter: a UPS in line passes on what the mains have booked.
    const inLine = new Map([
      ["main", [hour(0, 60)]],
      ["ups", [hour(0, 0, 0, 60)]],
    ]);
    expect(energyPeriods(meters("main", "ups"), inLine, [0, 3_600_000])[0]?.known).toBe(true);
  });

  test("of a UPS in line with the mains counts once; of a UPS alone it is the grid's", () => {
    expect(one({ main: [100, 0], ups: [98, 0] })).toMatchObject({ consumption: 100, gridIn: 100 });
    expect(one({ ups: [98, 3] })).toMatchObject({ consumption: 95, gridIn: 95 });
  });

  test("gives the share that did not come from the grid", () => {
    expect(selfSufficiency(one({ main: [25, 0], solar: [75, 0] }))).toBe(75);
    expect(selfSufficiency(one({ main: [0, 500], solar: [600, 0] }))).toBe(100);
    expect(selfSufficiency(one({ main: [10, 0], battery: [0, 30] }))).toBeNull();
  });

  test("that passed through the battery counts once, so both sides are equal", () => {
    const sum = (parts: readonly Part[]) => parts.reduce((all, { wh }) => all + wh, 0);
    const { sources, uses } = sidesOf(one({ main: [20, 5], solar: [150, 0], battery: [90, 100] }));
    expect(sources.map(({ wh }) => wh)).toEqual([150, 0, 20]);
    expect(uses.map(({ wh }) => wh)).toEqual([155, 10, 5]);
    const random = chance(12);
    for (let run = 0; run < 200; run++) {
      const [used, back, panel] = [random() * 50, random() * 9, random() * 60];
      const battery: [number, number] = [random() * 20, random() * 20];
      const bought = Math.max(0, used + back + battery[1] - panel - battery[0]);
      const both = sidesOf(one({ main: [bought, back], solar: [panel, 0], battery }));
      if (bought > 0) expect(sum(both.sources)).toBeCloseTo(sum(both.uses), 9);
    }
  });

  test("of several periods adds up to what their bars show", () => {
    const start = at(2026, 10, 21, 0);
    const rows = new Map([
      ["battery", [hour(start, 90, 60), hour(start + DAY_MS, 10, 50)]],
      ["solar", [hour(start, 5), hour(start + DAY_MS, 70)]],
    ]);
    const moments = [start, start + DAY_MS, start + 2 * DAY_MS];
    const { sources, uses } = sidesOfAll(energyPeriods(meters("battery", "solar"), rows, moments));
    expect(sources.map(({ kind, wh }) => [kind, wh])).toEqual([
      ["solar", 75],
      ["battery", 30],
      ["grid", 0],
    ]);
    expect(uses.map(({ kind, wh }) => [kind, wh])).toEqual([
      ["load", 65],
      ["battery", 40],
      ["grid", 0],
    ]);
    expect(sidesOfAll([]).uses.map(({ wh }) => wh)).toEqual([0, 0, 0]);
  });

  test("until a moment of a day counts its hour in proportion", () => {
    const rows = [
      hour(at(2026, 10, 22, 7), 10),
      hour(at(2026, 10, 22, 8), 20),
      hour(at(2026, 10, 22, 9), 40),
    ];
    const half = at(2026, 10, 22, 8) + 1_800_000;
    const used = usedUntil(meters("main"), new Map([["main", rows]]), half);
    // In a zone of half an hour the UTC hour is another one, and so is the share.
    expect(used).toBeGreaterThanOrEqual(15);
    expect(used).toBeLessThanOrEqual(30);
    expect(usedUntil(meters("main"), new Map([["main", rows]]), half - DAY_MS)).toBeNull();
    expect(dayBefore(at(2026, 10, 23, 8))).toBe(at(2026, 10, 22, 8));
  });

  test("has an axis of round steps that includes all values", () => {
    expect(stepsOf(-155, 170)).toEqual([-200, -100, 0, 100, 200]);
    expect(stepsOf(0, 4)).toEqual([0, 1, 2, 3, 4]);
    const random = chance(13);
    for (let run = 0; run < 200; run++) {
      const [least, most] = [-random() * 10 ** (8 * random()), random() * 10 ** (8 * random())];
      const steps = stepsOf(least, most);
      expect(steps[0] as number).toBeLessThanOrEqual(least * (1 - 1e-6));
      expect(steps.at(-1) as number).toBeGreaterThanOrEqual(most * (1 - 1e-6));
      expect(steps.length).toBeGreaterThan(2);
      expect(steps.length).toBeLessThan(9);
    }
  });
});

describe("the outlook", () => {
  const NOW = new Date(2026, 10, 23, 12).getTime();
  const pack = { active: true, type: "battery", capacity_wh: 100, charge_pct: 60 } as PowerMeter;
  const of = (changes: Partial<Summary>, meter: Partial<PowerMeter> = {}) =>
    outlookOf(
      { stale: false, lastHeard: NOW, runtime: null, ...changes } as Summary,
      [{ ...pack, ...meter }],
      NOW,
    );

  test.each<[string, Partial<Summary>, Partial<PowerMeter>, string, string]>([
    ["drains", { battery: 20, runtime: 3 }, {}, "3 h left", "until 15:00 at the present 20.0 W"],
    [
      "drains for days",
      { battery: 1, runtime: 60 },
      {},
      "2 d 12 h left",
      "until Thu 26 Nov 00:00 at the present 1.00 W",
    ],
    ["charges", { battery: -20 }, {}, "Full in 2 h", "at the present 20.0 W"],
    [
      "charges, of no known size",
      { battery: -20 },
      { capacity_wh: 0 },
      "Charging",
      "20.0 W flow in; no capacity is set",
    ],
    [
      "charges, of unknown charge",
      { battery: -20 },
      { charge_pct: null },
      "Charging",
      "20.0 W flow in; the charge is not known",
    ],
    [
      "drains, of unknown charge",
      { battery: 20 },
      { charge_pct: null },
      "Draining",
      "20.0 W flow out; the charge is not known",
    ],
    ["is full", { battery: -2 }, { charge_pct: 100 }, "Full", "2.00 W flow in"],
    ["holds", { battery: 0.01 }, {}, "Holding", "nothing flows in or out"],
    [
      "drains, of no known size",
      { battery: 20 },
      { capacity_wh: 0 },
      "Draining",
      "20.0 W flow out; no capacity is set",
    ],
    ["is not known", { battery: null }, {}, "Not known", "the watts of its battery are not known"],
    [
      "is old",
      { stale: true, lastHeard: NOW - 7_200_000, runtime: 3, battery: 2 },
      {},
      "Not known",
      "no reading for 2 h",
    ],
    [
      "has never been read",
      { stale: true, lastHeard: null, battery: null },
      {},
      "Not known",
      "no reading has come yet",
    ],
  ])("of a battery that %s", (_, changes, meter, answer, reason) => {
    expect(of(changes, meter)).toEqual({ answer, reason });
  });
});

test("the flow in words names sources and uses", () => {
  const meters = [{ type: "main" }, { type: "battery" }, { type: "solar" }].map((meter) => ({
    ...meter,
    active: true,
  })) as PowerMeter[];
  const watts = { solar: 56, grid: 55, battery: -33, consumption: 78 } as Summary;
  expect(flowText(nodesOf(watts, meters))).toBe(
    "from solar 56.0 W, from grid 55.0 W, into battery 33.0 W, Consumption 78.0 W",
  );
  expect(flowText(nodesOf({ ...watts, consumption: null, solar: null }, meters))).toMatch(
    /^Solar not known.*Consumption not known$/,
  );
});

describe("days", () => {
  const at = (day: number, hour: number) => new Date(2026, 10, day, hour).getTime();
  const sample = (
    moment: number,
    least: number | null,
    mean: number | null,
    most: number | null,
  ) => ({
    moment,
    least,
    mean,
    most,
  });

  test("have the least and the most of their hours, and a mean in which each hour counts", () => {
    const samples = [
      sample(at(3, 1), -5, 2, 2),
      sample(at(3, 22), 1, 6, 40),
      sample(at(5, 3), 7, 7, 7),
    ];
    const days = dayBands(samples);
    expect(days.map(({ least, mean, most }) => [least, mean, most])).toEqual([
      [-5, 4, 40],
      [7, 7, 7],
    ]);
    expect(days.map((day) => new Date(1000 * day.at).getDate())).toEqual([3, 5]);
  });

  test("of which nothing is known are gaps", () => {
    const [day] = dayBands([
      sample(at(3, 1), null, null, null),
      sample(at(3, 2), null, null, null),
    ]);
    expect(day).toMatchObject({ least: null, mean: null, most: null });
    expect(dayBands([sample(at(3, 1), null, null, null), sample(at(3, 2), 1, 2, 3)])[0]?.mean).toBe(
      2,
    );
  });
});

describe("axes", () => {
  const groups = (sizes: Record<string, number>) =>
    byScale(Object.entries(sizes).map(([id, size]) => ({ id, size })));

  test("are shared by what is about as great: 230 V would flatten a pack of 12 V", () => {
    expect(groups({ feed: 231, pack: 13, panel: 18, supply: 24 })).toEqual([
      ["feed"],
      ["pack", "panel", "supply"],
    ]);
    expect(groups({ a: 12, b: 36 })).toEqual([["b"], ["a"]]);
    expect(groups({ a: 3.3, b: 5, c: 9, d: 17 })).toEqual([["d"], ["a", "b", "c"]]);
    expect(groups({ a: 0, b: 12, c: 230 })).toEqual([["a", "c"], ["b"]]);
    expect(groups({ a: 0 })).toEqual([["a"]]);
    expect(groups({})).toEqual([[]]);
  });
});

test("a range as CSV begins with a byte order mark, and as JSON has keys", () => {
  const rows = { head: ["time_utc", "meter"], rows: [["2026-11-23T00:00:00+00:00", "Hütte"]] };
  expect(fileText(rows, "csv")).toBe("\ufefftime_utc,meter\r\n2026-11-23T00:00:00+00:00,Hütte\r\n");
  expect(JSON.parse(fileText(rows, "json"))).toEqual([
    { time_utc: "2026-11-23T00:00:00+00:00", meter: "Hütte" },
  ]);
  expect(fileName("a/b ü", "readings", "csv")).toBe("a_b_-readings.csv");
});

test("lines have a colour by type, and a shade or a dash within a type", () => {
  const meters = Array.from({ length: 4 }, (_, index) => ({
    id: `m${index}`,
    type: "solar",
    name: null,
  }));
  const lines = [...linesOf(meters as unknown as PowerMeter[]).values()];
  expect(lines.map(({ color }) => color)).toEqual(
    [1, 2, 1, 2].map((shade) => `--series-solar-${shade}`),
  );
  expect(lines.map(({ dash }) => dash !== undefined)).toEqual([false, false, true, true]);
  expect(new Set(lines.map(({ color, dash }) => `${color} ${dash}`)).size).toBe(4);
  // The line of the mains is seen through that of a UPS with the same watts.
  const ups = { id: "ups", type: "ups", name: null } as PowerMeter;
  expect(linesOf([ups]).get("ups")?.dash).toBeDefined();
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

  test("quotes where needed, leaves missing values empty, and ends lines by RFC 4180", () => {
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
    expect([cell("avg_wattage_w"), cell("max_wattage_w"), cell("min_charge_pct")]).toEqual([
      "",
      "",
      "40",
    ]);
  });

  test.each(["=1+1", "+1", "-1", "@a", "\ta"])(
    "a name that begins like a formula is text: %j",
    (name) => {
      expect(reportCsv(report(name))).toContain(`,'${name},`);
    },
  );
});

test("a file's hours are requested by the span, because the browser's clock may be wrong", async () => {
  const hours = ["10", "11", "12"].map(
    (hour) => ({ start: `2026-11-23T${hour}:00:00.000000+00:00` }) as PowerStatistics,
  );
  const asked: unknown[] = [];
  const statistics = async (_: string, options: unknown) => {
    asked.push(options);
    return hours;
  };
  const client = { statistics } as unknown as PowerClient;
  const [from, to] = [Date.parse("2026-11-23T10:30:00Z"), Date.parse("2026-11-23T12:30:00Z")];
  const meter = { id: "m", name: "Pack", type: "battery" } as PowerMeter;
  const { rows, cut } = await rowsOf(client, "hours", [meter], [from, to]);
  expect(asked).toEqual([{ since: new Date(from), until: new Date(to), bucket: "hour" }]);
  expect([rows.map(([start]) => String(start).slice(11, 13)), cut]).toEqual([["11", "12"], false]);
});
