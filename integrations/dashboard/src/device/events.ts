/** The names of the types of events, and the meaning of their values. */

import type { PowerEvent } from "@blackroad/power-client";
import * as format from "../format";

type EventType = PowerEvent["type"];

export const EVENT_NAMES: Record<EventType, string> = {
  charge_start: "Charging started",
  discharge: "Battery low",
  low_battery: "Battery critical",
  shutdown: "Shutdown",
  restore: "Restored",
};

/** Types that the library records by itself as alerts; their value is a charge in percent. */
const ALERTS: readonly EventType[] = ["discharge", "low_battery"];

// The note of an alert, as the library writes it: the meter, and figures with many decimals.
const ALERT_NOTE = /^(.*): [\d.e+-]+ % charge, threshold ([\d.e+-]+) %$/s;

/** An event's value with its unit; nothing if it has no meaning. */
export function eventValue({ type, value }: Pick<PowerEvent, "type" | "value">): string {
  if (ALERTS.includes(type)) return format.percent(Math.round(10 * value) / 10, 1);
  return value === 0 ? "" : String(value);
}

/**
 * An event's note; for an alert, the meter and the threshold, because the value is shown before.
 */
export function eventNote({ type, note }: Pick<PowerEvent, "type" | "note">): string | null {
  const [, meter, threshold] = (ALERTS.includes(type) && ALERT_NOTE.exec(note ?? "")) || [];
  return meter === undefined
    ? note
    : `${format.apart(meter)}, threshold ${format.percent(Number(threshold))}`;
}
