/** How long a device will last, in words: the reason why most people open its page. */

import type { PowerMeter } from "@blackroad/power-client";
import type { Summary } from "../fleet/summary";
import { storedIn } from "../fleet/watts";
import * as format from "../format";

export interface Outlook {
  /** The answer: 3 h 2 min left. */
  readonly answer: string;
  /** What the answer is based on, or why there is none. */
  readonly reason: string;
}

const HOLDING_WATTS = 0.05;

/** Why it is not known how much energy a device's batteries hold. */
function whyNotStored(meters: readonly PowerMeter[]): string {
  const sized = meters.some(
    ({ active, type, capacity_wh }) => active && type === "battery" && capacity_wh > 0,
  );
  return sized ? "the charge is not known" : "no capacity is set";
}

function whileCharging(meters: readonly PowerMeter[], watts: number): Outlook {
  const stored = storedIn(meters);
  const flow = `${format.watts(-watts)} flow in`;
  if (stored === null) return { answer: "Charging", reason: `${flow}; ${whyNotStored(meters)}` };
  const hours = stored.missing_wh / -watts;
  if (hours < 1 / 60) return { answer: "Full", reason: flow };
  return {
    answer: `Full in ${format.hours(hours)}`,
    reason: `at the present ${format.watts(-watts)}`,
  };
}

/** The outlook of a device with a battery at a moment. */
export function outlookOf(summary: Summary, meters: readonly PowerMeter[], now: number): Outlook {
  const { battery, runtime, stale, lastHeard } = summary;
  if (lastHeard === null) return { answer: "Not known", reason: "no reading has come yet" };
  if (stale) {
    const silence = format.span(Math.floor((now - lastHeard) / 1000));
    return { answer: "Not known", reason: `no reading for ${silence}` };
  }
  if (battery === null)
    return { answer: "Not known", reason: "the watts of its battery are not known" };
  if (battery < -HOLDING_WATTS) return whileCharging(meters, battery);
  if (battery <= HOLDING_WATTS) return { answer: "Holding", reason: "nothing flows in or out" };
  const watts = format.watts(battery);
  if (runtime === null)
    return { answer: "Draining", reason: `${watts} flow out; ${whyNotStored(meters)}` };
  return {
    answer: `${format.hours(runtime)} left`,
    reason: `until ${format.dayAndTime(now + runtime * 3_600_000, now)} at the present ${watts}`,
  };
}
