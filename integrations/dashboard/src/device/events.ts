/** What types of events are called, and what their value means. */

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

/** An event's value with its unit; nothing where it says nothing. */
export function eventValue({ type, value }: Pick<PowerEvent, "type" | "value">): string {
  if (ALERTS.includes(type)) return format.percent(value);
  return value === 0 ? "" : String(value);
}
