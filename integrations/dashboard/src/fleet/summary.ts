/** A device as the page shows it: its state, figures and alerts. */

import type {
  DeviceBudget,
  DeviceRecord,
  FleetDevice,
  PowerMeter,
  PowerState,
} from "@blackroad/power-client";
import { meterName } from "../device/lines";
import * as format from "../format";
import type { FleetData, Heard } from "../live/fleet";
import { counted, NO_WATTS, type Watts, wattsOf } from "./watts";

/** After that time without a reading, a device is stale. */
const STALE_AFTER_MS = 120_000;
const DAY_MS = 86_400_000;

/** The library's default shutdown threshold, in watts. */
const DEFAULT_SHUTDOWN_THRESHOLD = 3;

/**
 * A meter's state for people. The library calls a full battery "charging", too.
 */
export type MeterState = PowerState | "full" | "producing";

export type DeviceState = MeterState | "stale" | "silent";

export interface Alert {
  /** A note is worth knowing but needs no action. */
  readonly severity: "critical" | "warning" | "note";
  readonly text: string;
}

/**
 * A device's present figures: watts, watt-hours, percent, hours, milliseconds since the epoch.
 * Null: not known.
 */
export interface Summary extends Watts {
  readonly id: string;
  readonly name: string;
  /** Its site, as its forwarder names it; null if it has none. */
  readonly site: string | null;
  readonly state: DeviceState;
  /** The state at the newest reading, however old it is. */
  readonly powerState: MeterState;
  readonly stale: boolean;
  /** The lowest charge of the low and critical meters; null if there are none. */
  readonly leastCharge: number | null;
  /** What it used in the last 24 hours. */
  readonly dayWh: number | null;
  readonly lastSeen: number | null;
  /** When its newest reading reached the page: the device's own clock may be ahead. */
  readonly lastHeard: number | null;
  /** Whether its readings are dated after now. */
  readonly ahead: boolean;
  readonly alerts: readonly Alert[];
}

// From there on the library calls a battery "charging", even if nothing flows in.
const FULL_PCT = 95;

/** A meter's state: low and critical by its charge, charging by its watts. */
export function stateOf(meter: PowerMeter): MeterState {
  const { type, state, wattage } = meter;
  if (type === "main" || state === "low" || state === "critical") return state;
  if (type === "solar" && state !== "unknown")
    return wattage !== null && wattage > 0 ? "producing" : "normal";
  // Also if the charge is not known.
  if (type !== "solar" && wattage !== null && wattage < 0) return "charging";
  if (state === "unknown" || meter.charge_pct === null) return state;
  return meter.charge_pct >= FULL_PCT ? "full" : "normal";
}

const WORST_FIRST: readonly MeterState[] = [
  "critical",
  "low",
  "unknown",
  "normal",
  "charging",
  "full",
  "producing",
];

/**
 * The meters that decide a device's state: batteries and UPSs; if there are none, the mains; if
 * there are none, the panels.
 */
function telling(meters: readonly PowerMeter[]): readonly PowerMeter[] {
  const storing = meters.filter((meter) => meter.type === "battery" || meter.type === "ups");
  if (storing.length > 0) return storing;
  const mains = meters.filter((meter) => meter.type === "main");
  return mains.length > 0 ? mains : meters;
}

function powerStateOf(meters: readonly PowerMeter[]): MeterState {
  const states = telling(meters).map(stateOf);
  return WORST_FIRST.find((state) => states.includes(state)) ?? "unknown";
}

const isEmptying = (meter: PowerMeter): boolean =>
  meter.state === "critical" || meter.state === "low";

function chargeAlert(meter: PowerMeter): Alert {
  const name = format.apart(meterName(meter));
  const charge =
    meter.charge_pct === null ? `${meter.state}, charge unknown` : format.percent(meter.charge_pct);
  return {
    severity: meter.state === "critical" ? "critical" : "warning",
    text: `${name} ${charge}`,
  };
}

/**
 * Below the default threshold it is only a note, because some devices always run below that.
 */
function thresholdAlert(
  { shutdown_threshold: threshold }: DeviceRecord,
  total: number | null,
): Alert[] {
  if (total === null || total >= threshold) return [];
  const severity = threshold === DEFAULT_SHUTDOWN_THRESHOLD ? "note" : "critical";
  return [{ severity, text: `Power below ${format.watts(threshold)}` }];
}

/** The kinds of alarms of a fleet, in words; a later service may have more. */
const ALARMS: Readonly<Record<string, string>> = {
  silent: "Silent",
  cloned: "Two devices from one image",
  "two files": "Two devices with one id",
  restored: "Restored from a backup",
  replaced: "Sends a new file",
};

/** Alarms for what happened once and needs no action. */
const NOTED = ["restored", "replaced"];

export const alarmText = (kind: string): string => ALARMS[kind] ?? kind;

const alarmsOf = (fact: FleetDevice | undefined): Alert[] =>
  fact?.alarms.map(({ kind }) => ({
    severity: NOTED.includes(kind) ? "note" : "warning",
    text: alarmText(kind),
  })) ?? [];

const SEVERITIES: readonly Alert["severity"][] = ["critical", "warning", "note"];

function alertsOf(
  device: DeviceRecord,
  meters: readonly PowerMeter[],
  total: number | null,
  budget: DeviceBudget | undefined,
  ahead: boolean,
  fact: FleetDevice | undefined,
): Alert[] {
  const alerts = [
    ...meters.filter(isEmptying).map(chargeAlert),
    ...thresholdAlert(device, total),
    ...alarmsOf(fact),
  ];
  if (budget?.within_target === false)
    alerts.push({ severity: "warning", text: "Over daily target" });
  if (ahead) alerts.push({ severity: "warning", text: "Its clock is ahead" });
  return alerts.sort((a, b) => SEVERITIES.indexOf(a.severity) - SEVERITIES.indexOf(b.severity));
}

/** Whether a moment, in milliseconds, is too long ago to count as present; null always is. */
export const isStale = (moment: number | null, now: number): boolean =>
  moment === null || now - moment > STALE_AFTER_MS;

/** Whether a moment is in the future, by more than clocks usually differ. */
export const isAhead = (moment: number, now: number): boolean => moment - now >= format.AHEAD_MS;

/**
 * When the newest reading was taken, or, if the device's clock is ahead, when it reached the page.
 */
function heardAt(
  meters: readonly PowerMeter[],
  lastSeen: number,
  now: number,
  heard: Heard,
): number {
  if (!isAhead(lastSeen, now)) return lastSeen;
  return Math.max(...meters.map((meter) => heard.get(meter.id) ?? now));
}

/**
 * The energy of the last 24 hours; null if they have no readings, if the watts of a meter that
 * counts are not known, or if no energy is booked although one gives watts: its readings lie too far
 * apart.
 */
function dayWh(
  meters: readonly PowerMeter[],
  budget: DeviceBudget | undefined,
  age: number,
): number | null {
  const those = counted(meters);
  const known = those.length > 0 && those.every((meter) => meter.wattage !== null);
  if (!known || !budget || age >= DAY_MS) return null;
  const gives = those.some((meter) => Number(meter.wattage) > 0);
  return budget.energy_24h_wh === 0 && gives ? null : budget.consumption_24h_wh;
}

/** A device as the fleet shows it at a moment. */
export function summarise(
  device: DeviceRecord,
  meters: readonly PowerMeter[],
  budget: DeviceBudget | undefined,
  now: number,
  heard: Heard = new Map(),
  fact?: FleetDevice,
): Summary {
  const read = meters.filter((meter) => meter.updated_at !== null);
  const base = { id: device.id, name: device.name, site: fact?.site || null };
  if (read.length === 0) return { ...base, ...NOTHING, alerts: alarmsOf(fact) };
  const lastSeen = Math.max(...read.map((meter) => Date.parse(meter.updated_at as string)));
  const lastHeard = heardAt(read, lastSeen, now, heard);
  const [stale, ahead] = [isStale(lastHeard, now), isAhead(lastSeen, now)];
  const active = read.filter((meter) => meter.active);
  const watts = active.length > 0 ? wattsOf(meters) : NO_WATTS;
  const powerState = powerStateOf(active);
  const charges = active.filter(isEmptying).flatMap((meter) => meter.charge_pct ?? []);
  return {
    ...base,
    ...watts,
    state: stale ? "stale" : powerState,
    powerState,
    stale,
    leastCharge: charges.length > 0 ? Math.min(...charges) : null,
    dayWh: dayWh(active, budget, now - lastSeen),
    lastSeen,
    lastHeard,
    ahead,
    alerts: alertsOf(device, active, watts.total, budget, ahead, fact),
  };
}

const NOTHING = {
  ...NO_WATTS,
  state: "silent",
  powerState: "unknown",
  stale: true,
  leastCharge: null,
  dayWh: null,
  lastSeen: null,
  lastHeard: null,
  ahead: false,
} as const;

/**
 * Whether a summary is still true, as far as time alone can change it.
 */
function stillTrue({ lastSeen, lastHeard, stale, ahead }: Summary, now: number): boolean {
  if (stale !== isStale(lastHeard, now)) return false;
  return lastSeen === null || ahead === isAhead(lastSeen, now);
}

/** The summaries of a fleet. Only devices that changed get a new one. */
export class Summaries {
  readonly #known = new Map<string, { from: readonly unknown[]; summary: Summary }>();

  /**
   * In the order of `devices`; the same object for a device as long as nothing about it changes.
   */
  of(
    devices: readonly DeviceRecord[],
    { meters, budgets, heard, facts }: Omit<FleetData, "devices">,
    now: number,
  ): Summary[] {
    return devices.map((device) => {
      const [its, budget] = [meters.get(device.id) ?? [], budgets.get(device.id)];
      const fact = facts.devices.get(device.id);
      // Only the facts that a summary uses: the others change with each load.
      const from = [
        device,
        budget,
        fact?.site,
        fact?.alarms.map(({ kind }) => kind).join(),
        ...its,
      ];
      const known = this.#known.get(device.id);
      const same =
        known?.from.length === from.length &&
        known.from.every((part, index) => part === from[index]);
      if (known && same && stillTrue(known.summary, now)) return known.summary;
      const summary = summarise(device, its, budget, now, heard, fact);
      this.#known.set(device.id, { from, summary });
      return summary;
    });
  }
}

/** The sum of the known values, null if none is known, and the number of unknown ones. */
export function sumOfKnown(values: readonly (number | null)[]): {
  sum: number | null;
  unknown: number;
} {
  const known = values.filter((value) => value !== null);
  const unknown = values.length - known.length;
  if (known.length === 0 && unknown > 0) return { sum: null, unknown };
  return { sum: known.reduce((all, value) => all + value, 0), unknown };
}

/**
 * A meter's volts or amperes; null if its latest reading lacks them, for which the service has 0.
 */
export function measured(meter: PowerMeter, name: "voltage" | "current_draw"): number | null {
  if (meter.updated_at === null) return null;
  return meter.power_known || meter[name] !== 0 ? meter[name] : null;
}
