/** Energy by local day, out of hourly statistics: the hours are UTC's, the days those of whoever looks. */

import type { PowerStatistics } from "@blackroad/power-client";

/** One meter's energy in a day, Wh, neither below 0. */
export interface Share {
  readonly meterId: string;
  readonly out: number;
  readonly in: number;
}

export interface EnergyDay {
  /** Local midnight, in milliseconds since the epoch. */
  readonly start: number;
  readonly shares: readonly Share[];
}

/** Local midnight of the day that a moment is in. */
export function midnight(milliseconds: number): number {
  const day = new Date(milliseconds);
  return new Date(day.getFullYear(), day.getMonth(), day.getDate()).getTime();
}

/** The last `days` local days up to now, oldest first, also those without energy; an hour counts where it begins. */
export function energyDays(
  statistics: ReadonlyMap<string, readonly PowerStatistics[]>,
  days: number,
  now: number,
): EnergyDay[] {
  const today = new Date(midnight(now));
  const starts = Array.from({ length: days }, (_, index) =>
    new Date(today.getFullYear(), today.getMonth(), today.getDate() - (days - 1 - index)).getTime(),
  );
  const sums = new Map(starts.map((start) => [start, new Map<string, Share>()]));
  for (const [meterId, rows] of statistics) {
    for (const row of rows) {
      const day = sums.get(midnight(Date.parse(row.start)));
      if (!day) continue;
      const sum = day.get(meterId) ?? { meterId, out: 0, in: 0 };
      day.set(meterId, { meterId, out: sum.out + row.energy_out_wh, in: sum.in + row.energy_in_wh });
    }
  }
  return starts.map((start) => ({ start, shares: [...(sums.get(start)?.values() ?? [])] }));
}

/** A day's energy over its meters. */
export const sum = (day: EnergyDay, side: "in" | "out"): number =>
  day.shares.reduce((total, share) => total + share[side], 0);
