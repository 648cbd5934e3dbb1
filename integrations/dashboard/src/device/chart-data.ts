/** From readings and statistics to the columns of a chart. */

import type { PowerStatistics } from "@blackroad/power-client";
import uPlot from "uplot";
import * as format from "../format";

/**
 * What a chart draws: rising times, in seconds since the epoch, then the columns of each line. In a
 * column, null is a gap, and undefined means that this line has no point at that time.
 */
export type Columns = readonly [
  xs: ArrayLike<number>,
  ...lines: ArrayLike<number | null | undefined>[],
];

/** A line's points in order of time: seconds since the epoch, and values. */
export interface Points {
  readonly xs: number[];
  readonly ys: (number | null)[];
}

/**
 * The points of some rows, with a gap where a step is much longer than the usual step of the rows
 * around it.
 */
export function points<Row>(
  rows: readonly Row[],
  moment: (row: Row) => number,
  value: (row: Row) => number | null,
  leastGap: number,
): Points {
  const times = rows.map(moment);
  const steps = times.slice(1).map((time, index) => time - (times[index] as number));
  const [xs, ys]: [number[], (number | null)[]] = [[], []];
  rows.forEach((row, index) => {
    const step = steps[index - 1];
    if (step !== undefined && step > leastGap && step > 10 * usualStep(steps, index - 1)) {
      xs.push((times[index - 1] as number) + leastGap / 2);
      ys.push(null);
    }
    xs.push(times[index] as number);
    ys.push(value(row));
  });
  return { xs, ys };
}

const AROUND = 5;

/**
 * The usual step before a place or after it, whichever is longer: a device may log every five
 * minutes for weeks, and then every second.
 */
function usualStep(steps: readonly number[], place: number): number {
  if (steps.length === 1) return steps[0] as number; // nothing to compare it with
  const before = steps.slice(Math.max(0, place - AROUND), place);
  const after = steps.slice(place + 1, place + 1 + AROUND);
  return Math.max(median(before), median(after));
}

const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;

/** The middle of a statistics' hour, in seconds since the epoch. */
export const hourSeconds = (row: PowerStatistics): number => Date.parse(row.start) / 1000 + 1800;

/** Lines with different times, as columns over all of these times. */
export function join(lines: readonly Points[]): Columns {
  if (lines.length === 0) return [[]];
  return uPlot.join(lines.map(({ xs, ys }) => [xs, ys])) as Columns;
}

/**
 * A line's value at a point, or its last value before it; its latest value if `at` is null. Null if
 * it has no value until then, or the value is not known.
 */
export function readingAt(
  xs: ArrayLike<number>,
  values: ArrayLike<number | null | undefined>,
  at: number | null,
): number | null {
  for (let index = at ?? xs.length - 1; index >= 0; index--) {
    const value = values[index];
    if (value !== undefined) return value;
  }
  return null;
}

/**
 * The places of values that have no neighbour on either side: no line leads to them, so they need a
 * dot to be visible.
 */
export function alone(values: ArrayLike<number | null | undefined>): number[] {
  const found: number[] = [];
  let [last, before] = [-1, -1]; // the places of the last two points; -1 for a gap
  for (let index = 0; index <= values.length; index++) {
    const value = index < values.length ? values[index] : null;
    if (value === undefined) continue;
    if (value === null && last >= 0 && before < 0) found.push(last);
    [before, last] = [last, value === null ? -1 : index];
  }
  return found;
}

/** The bounds of a scale: those of the data with some room, and always the given bounds. */
export function limits(
  low: number | null,
  high: number | null,
  bounds: readonly [number | null, number | null] = [null, null],
): [number, number] {
  const least = Math.min(low ?? 0, bounds[0] ?? low ?? 0);
  const most = Math.max(high ?? 1, bounds[1] ?? high ?? 1);
  const room = most > least ? (most - least) * 0.06 : Math.max(Math.abs(most) * 0.1, 0.5);
  return [bounds[0] === least ? least : least - room, bounds[1] === most ? most : most + room];
}

/** The labels of a time axis: the day at midnight, else the local time. */
export function axisTimes(
  _: uPlot,
  splits: number[],
  __: number,
  ___: number,
  step: number,
): string[] {
  return splits.map((split) => {
    const moment = new Date(split * 1000);
    const midnight =
      moment.getHours() === 0 && moment.getMinutes() === 0 && moment.getSeconds() === 0;
    if (step >= 86_400 || midnight) return format.shortDay(moment.getTime());
    return format.localClock(moment.getTime()).slice(0, step < 60 ? 8 : 5);
  });
}
