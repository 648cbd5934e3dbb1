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

/** Wattages and charge over all meters, as the service's budget has them. */
export function totals(meters: readonly PowerMeter[]) {
  let [total, solar, load] = [0, 0, 0];
  for (const { type, voltage, current_draw } of meters) {
    const wattage = voltage * current_draw;
    total += wattage;
    if (type === "solar") solar += wattage;
    else load += Math.max(wattage, 0);
  }
  return { total, solar, load, net: solar - load, charge: meanCharge(meters), runtime: runtimeHours(meters) };
}

function meanCharge(meters: readonly PowerMeter[]): number | null {
  const charges = meters.filter((meter) => meter.type === "battery").map((meter) => meter.charge_pct);
  return charges.length ? charges.reduce((sum, charge) => sum + charge, 0) / charges.length : null;
}

/** Hours until the batteries of known capacity are empty; null without one, or while they do not drain. */
function runtimeHours(meters: readonly PowerMeter[]): number | null {
  const known = meters.filter((meter) => meter.type === "battery" && meter.capacity_wh > 0);
  const drain = known.reduce((sum, meter) => sum + meter.voltage * meter.current_draw, 0);
  const left = known.reduce((sum, meter) => sum + (meter.capacity_wh * meter.charge_pct) / 100, 0);
  return drain > 0 ? left / drain : null;
}

const WORST_FIRST: readonly PowerState[] = ["critical", "low", "unknown", "normal", "charging"];

/** The worst state of what stores energy; without that, of the mains; without that, of the panels. */
function powerState(meters: readonly PowerMeter[]): PowerState {
  const storing = meters.filter((meter) => meter.type === "battery" || meter.type === "ups");
  const mains = meters.filter((meter) => meter.type === "main");
  const states = (storing.length ? storing : mains.length ? mains : meters).map((meter) => meter.state);
  return WORST_FIRST.find((state) => states.includes(state)) ?? "unknown";
}

function alertsOf(device: DeviceRecord, meters: readonly PowerMeter[], total: number, budget?: DeviceBudget) {
  const alerts: Alert[] = [];
  for (const meter of meters) {
    if (meter.state !== "critical" && meter.state !== "low") continue;
    const severity = meter.state === "critical" ? "critical" : "warning";
    alerts.push({
      severity,
      text: `${format.apart(meter.name ?? meter.type)} ${format.percent(meter.charge_pct)}`,
    });
  }
  if (total < device.shutdown_threshold) {
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
  const sums = totals(meters);
  const state = powerState(heard);
  const alerts = alertsOf(device, heard, sums.total, budget);
  return { ...base, ...sums, state: stale ? "stale" : state, powerState: state, stale, lastSeen, alerts };
}

const NOTHING = {
  state: "silent",
  powerState: "unknown",
  stale: true,
  total: null,
  solar: null,
  load: null,
  net: null,
  charge: null,
  runtime: null,
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
