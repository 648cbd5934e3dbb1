/**
 * What a device's meters add up to now: where power comes from, what is used, what is stored, how
 * long it lasts.
 *
 * The rules are the library's (its budget and its report), so that the figures can follow the
 * stream meter by meter; a test holds them against the service's own. Watts that are not known are
 * null, never 0.
 */

import type { PowerMeter } from "@blackroad/power-client";

/** Watts out of a source are positive, into it negative. */
export interface Watts {
  /** Over every active meter, as the shutdown threshold has it. */
  readonly total: number | null;
  readonly solar: number | null;
  /** Of the mains; without mains, of the UPSs. */
  readonly grid: number | null;
  readonly battery: number | null;
  /** What the device uses: all that comes out of its sources, less what goes into them. */
  readonly consumption: number | null;
  /** Percent, the mean of its batteries; without a battery, of its UPSs. */
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
 * The meters that count in what a device uses: a UPS in line with the mains passes on the same
 * watts.
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
 * The sum of these meters' watts; null where those of one are not known: the rest would be too
 * little.
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

// Meters are a few percent off: what is that little below zero is zero.
const TOLERANCE = 0.03;

/**
 * What a device uses; not known where more goes into its batteries than comes out of any meter it
 * has.
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

/** What batteries of known capacity and charge hold, and what they can still take. */
export interface Stored {
  readonly batteries: readonly PowerMeter[];
  readonly left_wh: number;
  readonly missing_wh: number;
}

/**
 * Null without such a battery; one of unknown capacity or charge does not count, as in the
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
 * Null where what is stored is not known, while it does not drain, or where the watts of a battery
 * are not known.
 */
function runtimeHours(meters: readonly PowerMeter[]): number | null {
  const stored = storedIn(meters);
  if (stored === null) return null;
  const drain = sumOf(stored.batteries);
  return drain !== null && drain > 0 ? stored.left_wh / drain : null;
}

/** The figures over a device's active meters. */
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
