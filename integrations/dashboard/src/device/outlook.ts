/** How long a device will last, in words: what most people open its page for. */

import type { PowerMeter } from "@blackroad/power-client";
import type { Summary } from "../fleet/summary";
import * as format from "../format";

export interface Outlook {
  /** The answer: 3 h 2 min left. */
  readonly answer: string;
  /** What it rests on, or why there is none. */
  readonly reason: string;
}

const HOLDING_WATTS = 0.05;

/** Hours until the batteries of known capacity are full, at what flows into them now. */
function fullIn(meters: readonly PowerMeter[], watts: number): number | null {
  const sized = meters.filter((meter) => meter.active && meter.type === "battery" && meter.capacity_wh > 0);
  if (sized.length === 0) return null;
  const missing = sized.reduce((sum, meter) => sum + meter.capacity_wh * (1 - meter.charge_pct / 100), 0);
  return missing / -watts;
}

function whileCharging(meters: readonly PowerMeter[], watts: number): Outlook {
  const hours = fullIn(meters, watts);
  const flow = `${format.watts(-watts)} flow in`;
  if (hours === null) return { answer: "Charging", reason: `${flow}; no capacity is set` };
  if (hours < 1 / 60) return { answer: "Full", reason: flow };
  return { answer: `Full in ${format.hours(hours)}`, reason: `while ${flow}` };
}

/** The outlook of a device with a battery at a moment. */
export function outlookOf(summary: Summary, meters: readonly PowerMeter[], now: number): Outlook {
  const { battery, runtime, stale, lastHeard } = summary;
  if (stale) {
    const silence = format.span(Math.floor((now - (lastHeard ?? now)) / 1000));
    return { answer: "Not known", reason: `nothing has come for ${silence}` };
  }
  if (battery === null) return { answer: "Not known", reason: "the watts of its battery are not known" };
  if (battery < -HOLDING_WATTS) return whileCharging(meters, battery);
  if (battery <= HOLDING_WATTS) return { answer: "Holding", reason: "nothing flows in or out" };
  const drain = `while ${format.watts(battery)} flow out`;
  if (runtime === null) return { answer: "Draining", reason: `${drain}; no capacity is set` };
  return {
    answer: `${format.hours(runtime)} left`,
    reason: `until ${format.dayAndTime(now + runtime * 3_600_000, now)}, ${drain}`,
  };
}
