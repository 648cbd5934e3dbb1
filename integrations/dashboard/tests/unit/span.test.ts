/** Spans of time: their ends, the one before and after, and into what their energy is divided. */

import { describe, expect, test } from "vitest";
import {
  calendarSpan,
  detailOf,
  endsOf,
  energyMoments,
  energyUnitOf,
  isLive,
  lengthOf,
  type Span,
  shifted,
  UNITS,
  unitStart,
} from "../../src/live/span";

const NOW = new Date(2026, 10, 25, 14, 30).getTime(); // a Wednesday
const day = (...when: [number, number, number]) => new Date(...when).getTime();
const between = (from: number, to: number): Span => ({ kind: "between", from, to });

test.each([
  ["day", day(2026, 10, 25), day(2026, 10, 26)],
  ["week", day(2026, 10, 23), day(2026, 10, 30)],
  ["month", day(2026, 10, 1), day(2026, 11, 1)],
  ["year", day(2026, 0, 1), day(2027, 0, 1)],
] as const)("this %s begins and ends at the right moments", (unit, from, to) => {
  expect(calendarSpan(unit, NOW)).toEqual({ kind: "calendar", unit, from, to });
  expect(isLive(calendarSpan(unit, NOW), NOW)).toBe(true);
});

test("the previous one ends where this one begins, over leap days and clock changes", () => {
  for (const unit of UNITS) {
    let span = calendarSpan(unit, day(2028, 5, 1));
    for (let count = 0; count < 60; count++) {
      const before = shifted(span, -1, NOW);
      expect(endsOf(before, NOW)[1]).toBe(endsOf(span, NOW)[0]);
      expect(shifted(before, 1, NOW)).toEqual(span);
      span = before;
    }
  }
  expect(shifted(calendarSpan("month", day(2028, 2, 31)), -1, NOW)).toEqual(
    calendarSpan("month", day(2028, 1, 1)),
  );
});

test("the span before the last hours has the same length, and stays fixed", () => {
  const last: Span = { kind: "last", range: "24h" };
  const before = shifted(last, -1, NOW);
  expect(before.kind).toBe("between");
  expect(lengthOf(before)).toBe(86_400_000);
  expect(endsOf(before, NOW)[1]).toBe(endsOf(last, NOW)[0]);
  expect(isLive(before, NOW)).toBe(false);
  expect(isLive(last, NOW)).toBe(true);
});

test.each<[string, Span, string]>([
  ["an hour", { kind: "last", range: "1h" }, "readings"],
  ["a day", calendarSpan("day", NOW), "readings"],
  ["a week", calendarSpan("week", NOW), "hours"],
  ["a February", calendarSpan("month", day(2026, 1, 3)), "days"],
  ["30 days", { kind: "last", range: "30d" }, "days"],
])("%s is drawn by %s", (_, span, detail) => expect(detailOf(span)).toBe(detail));

describe("energy", () => {
  test("of the last day covers seven days up to now; of a month, its days", () => {
    const week = energyMoments({ kind: "last", range: "24h" }, NOW);
    expect(week.map((moment) => new Date(moment).getDate())).toEqual([
      19, 20, 21, 22, 23, 24, 25, 26,
    ]);
    const month = energyMoments(calendarSpan("month", NOW), NOW);
    expect([month.length, month[0], month.at(-1)]).toEqual([
      31,
      day(2026, 10, 1),
      day(2026, 11, 1),
    ]);
    expect(energyMoments({ kind: "last", range: "30d" }, NOW).length).toBe(31);
  });

  test("of a day is by hour, of a year by month", () => {
    const today = calendarSpan("day", NOW);
    expect(energyUnitOf(today)).toBe("hour");
    expect(energyMoments(today, NOW).length).toBeGreaterThanOrEqual(24);
    expect(energyMoments(calendarSpan("year", NOW), NOW).length).toBe(13);
    const spring = between(day(2026, 2, 1), day(2026, 5, 1));
    expect(energyUnitOf(spring)).toBe("week");
    expect(energyMoments(spring, NOW)[0]).toBe(unitStart("week", day(2026, 2, 1)));
  });
});
