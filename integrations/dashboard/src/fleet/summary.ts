/**
 * What the page says about a device, worked out from its meters' present states.
 *
 * The sums are those of the service's budget, so that they can follow the stream meter by meter; a test holds them
 * against the service's own. Energy and the target come from the budget itself.
 */

import type { DeviceBudget, DeviceRecord, PowerMeter, PowerState } from "@blackroad/power-client";
import * as format from "../format";
import type { FleetData } from "../live/fleet";

/** Without a reading for so long, a device's values are old: they are shown as stale. */
const STALE_AFTER_MS = 120_000;

export type DeviceState = PowerState | "stale" | "silent";

export interface Alert {
  readonly severity: "critical" | "warning";
  readonly text: string;
}

/** A device's present figures: watts, percent, hours, milliseconds since the epoch. Null: not known. */
export interface Summary {
  readonly id: string;
  readonly name: string;
  readonly state: DeviceState;
  readonly powerState: PowerState;
  readonly stale: boolean;
  readonly total: number | null;
  readonly solar: number | null;
  readonly load: number | null;
  readonly net: number | null;
  readonly charge: number | null;
  readonly runtime: number | null;
  readonly lastSeen: number | null;
  readonly alerts: readonly Alert[];
}

/** The sum of these meters' watts; null where those of one are not known: the rest would be too little. */
function sumOf(meters: readonly PowerMeter[], watts: (meter: PowerMeter) => number): number | null {
  let sum = 0;
  for (const meter of meters) {
    if (meter.wattage === null) return null;
    sum += watts(meter);
  }
  return sum;
}

/** A meter's watts without the rounding of `wattage`. */
const exact = (meter: PowerMeter): number => meter.voltage * meter.current_draw;

/** Whether a meter supplies the load: a UPS in line with a main meter measures the same watts once more. */
function supplies(meter: PowerMeter, among: readonly PowerMeter[]): boolean {
  if (meter.type === "ups") return !among.some((other) => other.type === "main");
  return meter.type !== "solar";
}

/** Wattages and charge over the active meters, as the service's budget has them where all watts are known. */
export function totals(meters: readonly PowerMeter[]) {
  const active = meters.filter((meter) => meter.active);
  const panels = active.filter((meter) => meter.type === "solar");
  const suppliers = active.filter((meter) => supplies(meter, active));
  const solar = sumOf(panels, exact);
  const load = sumOf(suppliers, (meter) => Math.max(exact(meter), 0));
  return {
    total: sumOf(active, exact),
    solar,
    load,
    net: solar === null || load === null ? null : solar - load,
    charge: meanCharge(active),
    runtime: runtimeHours(active),
  };
}

function meanCharge(meters: readonly PowerMeter[]): number | null {
  const charges = meters.filter((meter) => meter.type === "battery").map((meter) => meter.charge_pct);
  return charges.length ? charges.reduce((sum, charge) => sum + charge, 0) / charges.length : null;
}

/** Hours until the batteries of known capacity are empty; null without one, while they do not drain, or where the
 * watts of one are not known. */
function runtimeHours(meters: readonly PowerMeter[]): number | null {
  const sized = meters.filter((meter) => meter.type === "battery" && meter.capacity_wh > 0);
  const drain = sumOf(sized, exact);
  const left = sized.reduce((sum, meter) => sum + (meter.capacity_wh * meter.charge_pct) / 100, 0);
  return drain !== null && drain > 0 ? left / drain : null;
}

const WORST_FIRST: readonly PowerState[] = ["critical", "low", "unknown", "normal", "charging"];

/** The worst state of what stores energy; without that, of the mains; without that, of the panels. */
function powerState(meters: readonly PowerMeter[]): PowerState {
  const storing = meters.filter((meter) => meter.type === "battery" || meter.type === "ups");
  const mains = meters.filter((meter) => meter.type === "main");
  const states = (storing.length ? storing : mains.length ? mains : meters).map((meter) => meter.state);
  return WORST_FIRST.find((state) => states.includes(state)) ?? "unknown";
}

function alertsOf(
  device: DeviceRecord,
  meters: readonly PowerMeter[],
  total: number | null,
  budget?: DeviceBudget,
) {
  const alerts: Alert[] = [];
  for (const meter of meters) {
    if (meter.state !== "critical" && meter.state !== "low") continue;
    const severity = meter.state === "critical" ? "critical" : "warning";
    alerts.push({
      severity,
      text: `${format.apart(meter.name ?? meter.type)} ${format.percent(meter.charge_pct)}`,
    });
  }
  if (total !== null && total < device.shutdown_threshold) {
    alerts.push({ severity: "critical", text: `Power below ${format.watts(device.shutdown_threshold)}` });
  }
  if (budget?.within_target === false) alerts.push({ severity: "warning", text: "Over daily target" });
  return alerts.sort((a, b) => a.severity.localeCompare(b.severity));
}

/** Whether a moment, in milliseconds, is too long ago to be the present; never is. */
export const isStale = (lastSeen: number | null, now: number): boolean =>
  lastSeen === null || now - lastSeen > STALE_AFTER_MS;

/** A device as the fleet shows it at a moment. */
export function summarise(
  device: DeviceRecord,
  meters: readonly PowerMeter[],
  budget: DeviceBudget | undefined,
  now: number,
): Summary {
  const heard = meters.filter((meter) => meter.updated_at !== null);
  const base = { id: device.id, name: device.name };
  if (heard.length === 0) return { ...base, ...NOTHING };
  const lastSeen = Math.max(...heard.map((meter) => Date.parse(meter.updated_at as string)));
  const stale = isStale(lastSeen, now);
  const active = heard.filter((meter) => meter.active);
  const sums = active.length > 0 ? totals(meters) : NO_FIGURES;
  const state = powerState(active);
  const alerts = alertsOf(device, active, sums.total, budget);
  return { ...base, ...sums, state: stale ? "stale" : state, powerState: state, stale, lastSeen, alerts };
}

const NO_FIGURES = {
  total: null,
  solar: null,
  load: null,
  net: null,
  charge: null,
  runtime: null,
} as const;

const NOTHING = {
  ...NO_FIGURES,
  state: "silent",
  powerState: "unknown",
  stale: true,
  lastSeen: null,
  alerts: [],
} as const;

/** The summaries of a fleet, of which only those are worked out anew whose device has changed. */
export class Summaries {
  readonly #known = new Map<string, { from: readonly unknown[]; summary: Summary }>();

  /** In the order of `devices`; the same object for a device as long as nothing about it changes. */
  of(
    devices: readonly DeviceRecord[],
    { meters, budgets }: Omit<FleetData, "devices">,
    now: number,
  ): Summary[] {
    return devices.map((device) => {
      const [its, budget] = [meters.get(device.id) ?? [], budgets.get(device.id)];
      const from = [device, budget, ...its];
      const known = this.#known.get(device.id);
      const same =
        known?.from.length === from.length && known.from.every((part, index) => part === from[index]);
      if (known && same && known.summary.stale === isStale(known.summary.lastSeen, now)) return known.summary;
      const summary = summarise(device, its, budget, now);
      this.#known.set(device.id, { from, summary });
      return summary;
    });
  }
}

/** The sum of what is known, and of how many devices it is not. */
export function sumText(values: readonly (number | null)[]): string {
  const known = values.filter((value) => value !== null);
  const unknown = values.length - known.length;
  if (known.length === 0 && unknown > 0) return format.UNKNOWN;
  const sum = format.watts(known.reduce((all, value) => all + value, 0));
  return unknown > 0 ? `${sum} + ${unknown} unknown` : sum;
}

/** A meter's volts or amperes; null where its latest reading lacks them, and 0 stands for that. */
export function measured(meter: PowerMeter, name: "voltage" | "current_draw"): number | null {
  if (meter.updated_at === null) return null;
  return meter.power_known || meter[name] !== 0 ? meter[name] : null;
}
