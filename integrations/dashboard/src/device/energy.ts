/**
 * Where energy came from and went in spans of time, from hourly statistics. Hours are UTC, days are
 * local, and an hour belongs to the day in which it begins.
 *
 * The rules are those of the service's report, and a test compares the two.
 */

import type { PowerMeter, PowerStatistics } from "@blackroad/power-client";
import { counted } from "../fleet/watts";

type Meter = Pick<PowerMeter, "id" | "type">;
type Hour = Pick<PowerStatistics, "start" | "avg_wattage" | "energy_out_wh" | "energy_in_wh">;

/** Hours by meter id. */
export type Hours = ReadonlyMap<string, readonly Hour[]>;

/** Wh. */
export interface Energy {
  readonly consumption: number;
  readonly solar: number;
  /** From the mains; if the device has none, through its UPS. */
  readonly gridIn: number;
  readonly gridOut: number;
  readonly batteryOut: number;
  readonly batteryIn: number;
}

/** A span of time and its energy; milliseconds since the epoch, the end is not part of it. */
export interface Period {
  readonly start: number;
  readonly end: number;
  readonly energy: Energy;
  /** Whether there are readings of it. */
  readonly read: boolean;
  /**
   * Whether its energy is known. It is not without readings, nor where a meter's readings have watts
   * and lie so far apart that no energy is booked between them: it is not 0 then.
   */
  readonly known: boolean;
}

interface Sums {
  readonly out: number;
  readonly in: number;
  /** Whether a reading had watts other than 0. */
  readonly flows: boolean;
}

const NO_SUMS: Sums = { out: 0, in: 0, flows: false };

const isUnbooked = (sums: Sums): boolean => sums.flows && sums.out === 0 && sums.in === 0;

/** A device's energy, from the energy out of and into each of its meters. */
export function energyOf(meters: readonly Meter[], sums: ReadonlyMap<string, Sums>): Energy {
  const of = (type: Meter["type"]) => {
    const total = { out: 0, in: 0 };
    for (const meter of counted(meters)) {
      if (meter.type !== type) continue;
      total.out += sums.get(meter.id)?.out ?? 0;
      total.in += sums.get(meter.id)?.in ?? 0;
    }
    return total;
  };
  const [main, ups, panels, batteries] = [of("main"), of("ups"), of("solar"), of("battery")];
  const solar = panels.out - panels.in;
  const gridIn = main.out + ups.out - ups.in;
  const consumption = gridIn - main.in + solar + batteries.out - batteries.in;
  return {
    consumption: Math.max(0, consumption),
    solar,
    gridIn,
    gridOut: main.in,
    batteryOut: batteries.out,
    batteryIn: batteries.in,
  };
}

/**
 * The energy of each period between two neighbouring moments of a rising list; hours outside of the
 * list are left out.
 */
export function energyPeriods(
  meters: readonly Meter[],
  hours: Hours,
  moments: readonly number[],
): Period[] {
  const starts = moments.slice(0, -1);
  const sums = starts.map(() => new Map<string, Sums>());
  for (const [meterId, rows] of hours) {
    for (const row of rows) {
      const place = placeOf(Date.parse(row.start), moments);
      const sum = sums[place]?.get(meterId) ?? NO_SUMS;
      sums[place]?.set(meterId, {
        out: sum.out + row.energy_out_wh,
        in: sum.in + row.energy_in_wh,
        flows: sum.flows || Boolean(row.avg_wattage),
      });
    }
  }
  return starts.map((start, place) => {
    const ofMeters = sums[place] as Map<string, Sums>;
    const read = ofMeters.size > 0;
    return {
      start,
      end: moments[place + 1] as number,
      energy: energyOf(meters, ofMeters),
      read,
      known: read && !counted(meters).some(({ id }) => isUnbooked(ofMeters.get(id) ?? NO_SUMS)),
    };
  });
}

/** The place of the last moment that is not later; -1 before the first. */
function placeOf(moment: number, moments: readonly number[]): number {
  let [low, high] = [0, moments.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((moments[middle] as number) <= moment) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** The sum of the periods' energies. */
export function total(periods: readonly Period[]): Energy {
  const sum = (key: keyof Energy) => periods.reduce((all, { energy }) => all + energy[key], 0);
  return {
    consumption: sum("consumption"),
    solar: sum("solar"),
    gridIn: sum("gridIn"),
    gridOut: sum("gridOut"),
    batteryOut: sum("batteryOut"),
    batteryIn: sum("batteryIn"),
  };
}

/** Percent of the consumption that did not come from the grid; null without consumption. */
export function selfSufficiency({ consumption, gridIn, gridOut }: Energy): number | null {
  if (consumption <= 0) return null;
  return Math.min(100, Math.max(0, 100 * (1 - (gridIn - gridOut) / consumption)));
}

export type Kind = "solar" | "grid" | "battery" | "load";

/** A part of a period's energy in Wh, never below 0. */
export interface Part {
  readonly kind: Kind;
  readonly wh: number;
}

/** Where energy came from, and where it went. */
export interface Sides {
  readonly sources: readonly Part[];
  readonly uses: readonly Part[];
}

/**
 * Where a period's energy came from, and where it went: both sides are equal.
 *
 * Energy that passed through the battery counts once, at its source. The battery is a source by
 * what it lost in the period, or a use by what it gained.
 */
export function sidesOf(energy: Energy): Sides {
  const drained = energy.batteryOut - energy.batteryIn;
  return {
    sources: [
      { kind: "solar", wh: Math.max(0, energy.solar) },
      { kind: "battery", wh: Math.max(0, drained) },
      { kind: "grid", wh: Math.max(0, energy.gridIn) },
    ],
    uses: [
      { kind: "load", wh: energy.consumption },
      { kind: "battery", wh: Math.max(0, -drained) },
      { kind: "grid", wh: energy.gridOut },
    ],
  };
}

/** The sides of all periods, summed part by part. */
export function sidesOfAll(periods: readonly Period[]): Sides {
  const each = periods.map(({ energy }) => sidesOf(energy));
  const none = sidesOf(total([]));
  const sum = (side: keyof Sides) =>
    none[side].map(({ kind }, place) => ({
      kind,
      wh: each.reduce((all, sides) => all + (sides[side][place]?.wh ?? 0), 0),
    }));
  return { sources: sum("sources"), uses: sum("uses") };
}

/** Local midnight before a moment, or that many days later. */
export function midnight(milliseconds: number, daysLater = 0): number {
  const day = new Date(milliseconds);
  return new Date(day.getFullYear(), day.getMonth(), day.getDate() + daysLater).getTime();
}

/** The midnights of the last `days` local days up to now, and the coming one. */
export const midnights = (days: number, now: number): number[] =>
  Array.from({ length: days + 1 }, (_, index) => midnight(now, index + 1 - days));

const HOUR_MS = 3_600_000;

/**
 * What was used on the day of a moment until that moment. The hour of the moment counts in
 * proportion. Null without readings of that time.
 */
export function usedUntil(meters: readonly Meter[], hours: Hours, moment: number): number | null {
  const hour = Math.floor(moment / HOUR_MS) * HOUR_MS;
  const [whole, begun] = energyPeriods(meters, hours, [midnight(moment), hour, hour + HOUR_MS]);
  if (!whole?.known && !begun?.known) return null;
  const share = (moment - hour) / HOUR_MS;
  return (whole?.energy.consumption ?? 0) + share * (begun?.energy.consumption ?? 0);
}

/** The same time of day on the day before. */
export function dayBefore(moment: number): number {
  const day = new Date(moment);
  day.setDate(day.getDate() - 1);
  return day.getTime();
}
