/** Energy of the last day against the target, and what is left. */

import type { DeviceBudget, DeviceRecord } from "@blackroad/power-client";
import type { Summary } from "../fleet/summary";
import * as format from "../format";
import { Pair } from "./MeterCards";

interface BudgetCardProps {
  readonly device: DeviceRecord;
  readonly budget: DeviceBudget | undefined;
  readonly summary: Summary;
}

export function BudgetCard({ device, budget, summary }: BudgetCardProps) {
  return (
    <section className={`card budget live${summary.stale ? " is-stale" : ""}`} aria-labelledby="budget">
      <h2 id="budget">Budget</h2>
      {budget && <Target budget={budget} />}
      <dl className="pairs">
        <Pair name="Consumption">{format.watts(summary.consumption)}</Pair>
        <Pair name="Solar">{format.watts(summary.solar)}</Pair>
        <Pair name="Grid">{format.watts(summary.grid)}</Pair>
        <Pair name="Runtime">{format.hours(summary.runtime)}</Pair>
        <Pair name="Shutdown threshold">{format.watts(device.shutdown_threshold)}</Pair>
      </dl>
    </section>
  );
}

function Target({ budget }: { budget: DeviceBudget }) {
  const { consumption_24h_wh: used, target_wh: target, within_target: within } = budget;
  if (target === null) {
    return (
      <p>
        <strong>{format.wattHours(used)}</strong> in the last 24 h.{" "}
        <span className="muted">No target is set.</span>
      </p>
    );
  }
  const share = target > 0 ? used / target : used > 0 ? 1 : 0;
  const verdict = within
    ? `${format.percent(100 * share)} of the target`
    : `over by ${format.wattHours(used - target)}`;
  return (
    <div className={`target ${within ? "target-within" : "target-over"}`}>
      <p>
        <strong>{format.wattHours(used)}</strong> of {format.wattHours(target)} in the last 24 h
        <span className="target-verdict">{verdict}</span>
      </p>
      <div
        className="track target-track"
        role="meter"
        aria-label="Energy of the last 24 hours against the target"
        aria-valuemin={0}
        aria-valuemax={target}
        aria-valuenow={Math.min(used, target)}
        aria-valuetext={`${format.wattHours(used)} of ${format.wattHours(target)}, ${verdict}`}
      >
        <div className="level" style={{ width: `${Math.min(100, 100 * share)}%` }} />
      </div>
    </div>
  );
}
