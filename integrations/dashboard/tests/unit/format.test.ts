/** Numbers carry their unit, and times their zone. */

import { describe, expect, test } from "vitest";
import * as format from "../../src/format";
import { deviceHref, parseRoute } from "../../src/route";
import { numberIn } from "../../src/ui/number";

test.each([
  ["12.5", 12.5],
  ["1,5", 1.5],
  ["0,125", 0.125],
  ["1234", 1234],
  ["1.234", 1.234],
  ["-7", -7],
  ["1000,5", 1000.5],
])("%s is typed for %d", (text, value) => expect(numberIn(text, "Value")).toBe(value));

test.each(["", "a lot", "1,234,567", "1,234.5", "1e999", "NaN"])("%j is no number", (text) =>
  expect(() => numberIn(text, "Value")).toThrow(
    `Value: expected a number such as 12.5, got “${text}”.`,
  ),
);

test("a comma that may be one of thousands is asked about, rather than guessed", () => {
  for (const text of ["1,234", "-12,000"])
    expect(() => numberIn(text, "Daily target")).toThrow(
      `Daily target: “${text}” can be ${text.replace(",", "")} or ${text.replace(",", ".")}.`,
    );
});

test.each([
  [0, "0.00 W"],
  [-0.001, "0.00 W"],
  [7.3171, "7.32 W"],
  [-12.34, "−12.3 W"],
  [9.996, "10.0 W"],
  [99.96, "100 W"],
  [1234.5, "1,235 W"],
  [9999.4, "9,999 W"],
  [9999.6, "10.0 kW"],
  [123_456, "123 kW"],
  [2e9, "2,000 MW"],
  [null, "–"],
  [Number.NaN, "–"],
])("%d watts are %s", (value, text) => expect(format.watts(value)).toBe(text));

test("the other units are written the same way", () => {
  expect([format.volts(3.7), format.amperes(-0.5), format.wattHours(15_000)]).toEqual([
    "3.70 V",
    "−0.50 A",
    "15.0 kWh",
  ]);
});

test("figures side by side have the prefix of the greatest", () => {
  const row = [3700, 10_800, 7100, null];
  expect(row.map(format.together(row, "W"))).toEqual(["3.70 kW", "10.8 kW", "7.10 kW", "–"]);
  const energies = [25_100, 4608];
  expect(energies.map(format.together(energies, "Wh"))).toEqual(["25.1 kWh", "4.61 kWh"]);
  expect([3.2, -648].map(format.together([-648], "W"))).toEqual(["3.20 W", "−648 W"]);
});

test.each([
  [[-5, 0, 5], "V", ["−5 V", "0 V", "5 V"]],
  [[0, 2.5, 5], "W", ["0.0 W", "2.5 W", "5.0 W"]],
  [[12, 12.05, 12.1], "V", ["12.00 V", "12.05 V", "12.10 V"]],
  [[0, 5000, 10_000], "W", ["0 kW", "5 kW", "10 kW"]],
  [[0, 50, 100], "%", ["0 %", "50 %", "100 %"]],
] as const)("an axis of %j %s has as many decimals as it needs", (values, unit, labels) =>
  expect(format.ticks(values, unit)).toEqual(labels),
);

test.each([
  [4.6, "4.6 %"],
  [5, "5 %"],
  [9.96, "10.0 %"],
  [82.4, "82 %"],
  [null, "–"],
])("%d percent are %s", (value, text) => expect(format.percent(value)).toBe(text));

test.each([
  [0.004, "0 min"],
  [0.7, "42 min"],
  [0.999, "1 h"],
  [5.3333, "5 h 20 min"],
  [22.16, "22 h 10 min"],
  [72, "3 d"],
  [76.2, "3 d 4 h"],
  [9000, "375 d"],
  [null, "–"],
])("%d hours are %s", (value, text) => expect(format.hours(value)).toBe(text));

test.each([
  [-59_999, "now"],
  [-60_000, "1 min ahead"],
  [-3 * 3_600_000, "3 h ahead"],
  [1999, "now"],
  [12_000, "12 s ago"],
  [125_000, "2 min ago"],
  [7_300_000, "2 h ago"],
  [86_400_000 * 3, "3 d ago"],
  [86_400_000 * 729, "729 d ago"],
  [86_400_000 * 2200, "6 y ago"],
])("%d ms are %s", (value, text) => expect(format.age(value)).toBe(text));

describe("times", () => {
  const moment = Date.parse("2026-11-23T21:02:43.023562+00:00");
  test("UTC is the same everywhere", () =>
    expect(format.utcTime(moment)).toBe("2026-11-23 21:02:43 UTC"));
  test("local times name their zone", () => {
    expect(format.localTime(moment)).toMatch(/^2[34] Nov 2026, \d\d:\d\d:\d\d \S+$/);
    expect(format.zone(moment)).not.toBe("");
  });
});

describe("addresses", () => {
  test.each(["edge-001", "a/b", "50 %", "ü#?&=", "..", "%2F"])(
    "the id %s survives its address",
    (deviceId) => {
      expect(parseRoute(deviceHref(deviceId))).toEqual({ view: "device", deviceId });
    },
  );
  test.each(["", "#", "#/", "#/device/", "#/device/a/b", "#/device/%E0%A4%A", "#/elsewhere"])(
    "%s is the fleet",
    (hash) => expect(parseRoute(hash)).toEqual({ view: "fleet" }),
  );
});
