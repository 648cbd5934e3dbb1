/**
 * The present figures of a device from its meters: where power comes from, how much it uses and
 * stores, and how long it lasts.
 *
 * The rules are those of the library's budget and report; they are repeated here so that the
 * figures can follow the stream, and a test compares them with the service's. Watts that are not
 * known are null, never 0.
 */

import type { PowerMeter } from "@blackroad/power-client";

/** Watts out of a source are positive, watts into it negative. */
export interface Watts {
  /** Over all active meters: the figure for the shutdown threshold. */
  readonly total: number | null;
  readonly solar: number | null;
  /** Of the mains; if there are none, of the UPSs. */
  readonly grid: number | null;
  readonly battery: number | null;
  /** What the device uses: all that comes out of its sources, less what goes into them. */
  readonly consumption: number | null;
  /** Percent, the mean of its batteries; if there are none, of its UPSs. */
  readonly charge: number | null;
  /** Hours until the batteries are empty. */
  readonly runtime: number | null;
}

export const NO_WATTS: Watts = {
  total: null,
  solar: null,
  grid: null,
  battery: null,
  consumption: null,
  charge: null,
  runtime: null,
};

/**
 * The meters that count in the consumption of a device: a UPS in line with the mains only passes on
 * the same watts.
 */
export function counted<Meter extends Pick<PowerMeter, "type">>(
  meters: readonly Meter[],
): readonly Meter[] {
  const hasMains = meters.some((meter) => meter.type === "main");
  return hasMains ? meters.filter((meter) => meter.type !== "ups") : meters;
}

/** A meter's watts without the rounding of `wattage`. */
function exactWatts(meter: PowerMeter): number | null {
  return meter.wattage === null ? null : meter.voltage * meter.current_draw;
}

/**
 * The sum of these meters' watts; null if one of them is not known, because the sum of the others
 * would be too low.
 */
function sumOf(meters: readonly PowerMeter[]): number | null {
  let sum = 0;
  for (const meter of meters) {
    const watts = exactWatts(meter);
    if (watts === null) return null;
    sum += watts;
  }
  return sum;
}

// Meters are a few percent off: a sum that is only that far below zero counts as zero.
const TOLERANCE = 0.03;

/**
 * What a device uses; not known if more goes into its batteries than comes out of all its meters.
 */
function consumptionOf(meters: readonly PowerMeter[]): number | null {
  const sum = sumOf(meters);
  if (sum === null || meters.length === 0 || sum >= 0) return meters.length === 0 ? null : sum;
  const flowing = meters.reduce((all, meter) => all + Math.abs(exactWatts(meter) ?? 0), 0);
  return -sum <= TOLERANCE * flowing ? 0 : null;
}

function meanCharge(meters: readonly PowerMeter[]): number | null {
  const batteries = meters.filter((meter) => meter.type === "battery");
  const storing = batteries.length > 0 ? batteries : meters.filter((meter) => meter.type === "ups");
  if (storing.length === 0) return null;
  const known = storing.flatMap((meter) => meter.charge_pct ?? []);
  return known.length > 0 ? known.reduce((sum, charge) => sum + charge, 0) / known.length : null;
}

/** The energy in the batteries of known capacity and charge, and how much more they can take. */
export interface Stored {
  readonly batteries: readonly PowerMeter[];
  readonly left_wh: number;
  readonly missing_wh: number;
}

/**
 * Null without such a battery. A battery of unknown capacity or charge does not count, as in the
 * library's runtime.
 */
export function storedIn(meters: readonly PowerMeter[]): Stored | null {
  const batteries: PowerMeter[] = [];
  let [left_wh, missing_wh] = [0, 0];
  for (const meter of meters) {
    const { active, type, capacity_wh, charge_pct } = meter;
    if (!active || type !== "battery" || capacity_wh <= 0 || charge_pct === null) continue;
    batteries.push(meter);
    left_wh += (capacity_wh * charge_pct) / 100;
    missing_wh += (capacity_wh * (100 - charge_pct)) / 100;
  }
  return batteries.length > 0 ? { batteries, left_wh, missing_wh } : null;
}

/**
 * Null if the stored energy or the watts of a battery are not known, or if the batteries do not
 * drain.
 */
function runtimeHours(meters: readonly PowerMeter[]): number | null {
  const stored = storedIn(meters);
  if (stored === null) return null;
  const drain = sumOf(stored.batteries);
  return drain !== null && drain > 0 ? stored.left_wh / drain : null;
}

/** The figures of a device's active meters. */
export function wattsOf(meters: readonly PowerMeter[]): Watts {
  const active = meters.filter((meter) => meter.active);
  const counting = counted(active);
  return {
    total: sumOf(active),
    solar: sumOf(counting.filter((meter) => meter.type === "solar")),
    grid: sumOf(counting.filter((meter) => meter.type === "main" || meter.type === "ups")),
    battery: sumOf(counting.filter((meter) => meter.type === "battery")),
    consumption: consumptionOf(counting),
    charge: meanCharge(active),
    runtime: runtimeHours(active),
  };
}
