/** The lowest, mean and highest value of each day: enough detail for a month or a year. */

import type { PowerStatistics } from "@blackroad/power-client";
import type { Sample } from "../live/history";
import { midnight } from "./energy";

/** One day of a meter; null where nothing is known. */
export interface DayBand {
  /** The middle of the local day, seconds since the epoch. */
  readonly at: number;
  readonly least: number | null;
  readonly mean: number | null;
  readonly most: number | null;
}

/** What is known of a moment, or of an hour. */
interface Part {
  /** Milliseconds since the epoch. */
  readonly moment: number;
  readonly least: number | null;
  readonly mean: number | null;
  readonly most: number | null;
}

/** Groups parts, which come in order of time, by day. */
export function dayBands(parts: readonly Part[]): DayBand[] {
  const days = new Map<number, Part[]>();
  for (const part of parts) {
    const day = midnight(part.moment);
    const others = days.get(day);
    if (others) others.push(part);
    else days.set(day, [part]);
  }
  return [...days].map(([day, its]) => ({
    at: (day + midnight(day, 1)) / 2000,
    least: extreme(
      its.map(({ least }) => least),
      Math.min,
    ),
    mean: meanOf(its.map(({ mean }) => mean)),
    most: extreme(
      its.map(({ most }) => most),
      Math.max,
    ),
  }));
}

function extreme(
  values: readonly (number | null)[],
  pick: (...values: number[]) => number,
): number | null {
  const known = values.filter((value) => value !== null);
  return known.length > 0 ? pick(...known) : null;
}

/** Each part counts alike: an hour with many readings is as long as one with few. */
function meanOf(values: readonly (number | null)[]): number | null {
  const known = values.filter((value) => value !== null);
  return known.length > 0 ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

/** An hour's watts. */
export const wattsPart = (row: PowerStatistics): Part => ({
  moment: Date.parse(row.start),
  least: row.min_wattage,
  mean: row.avg_wattage,
  most: row.max_wattage,
});

/**
 * The midpoint of an hour's charge, in place of its mean, which statistics do not keep. Null if the
 * charge was not known.
 */
export function middleCharge({
  min_charge_pct: least,
  max_charge_pct: most,
}: PowerStatistics): number | null {
  return least === null || most === null ? null : (least + most) / 2;
}

/** An hour's charge. */
export const chargePart = (row: PowerStatistics): Part => ({
  moment: Date.parse(row.start),
  least: row.min_charge_pct,
  mean: middleCharge(row),
  most: row.max_charge_pct,
});

/**
 * A reading's volts. The readings are thinned out so that every peak stays, so their mean is only
 * approximate.
 */
export const voltsPart = (reading: Sample): Part => ({
  moment: reading.at,
  least: reading.voltage,
  mean: reading.voltage,
  most: reading.voltage,
});
