/**
 * Today's energy beside yesterday's, self-sufficiency, and the last 24 hours against the target.
 */

import type { DeviceBudget, PowerMeter } from "@blackroad/power-client";
import type { Summary } from "../fleet/summary";
import * as format from "../format";
import { useToday } from "../live/today";
import { errorText, Loading } from "../ui/states";
import {
  dayBefore,
  energyPeriods,
  type Hours,
  midnights,
  selfSufficiency,
  usedUntil,
} from "./energy";
import { Pair } from "./MeterCards";

interface TodayCardProps {
  readonly meters: readonly PowerMeter[];
  readonly budget: DeviceBudget | undefined;
  readonly summary: Summary;
  readonly now: number;
}

export function TodayCard({ meters, budget, summary, now }: TodayCardProps) {
  const { hours, error } = useToday(
    summary.id,
    meters.map(({ id }) => id),
  );
  return (
    <section className="card today" aria-labelledby="today">
      <h2 id="today">Today</h2>
      {hours && <TodayFigures meters={meters} hours={hours} now={now} />}
      {!hours && error === null && <Loading what="today" />}
      {error !== null && (
        <p className="problem" role="status">
          {hours ? "Not up to date" : "Today could not be loaded"}: {errorText(error)}
        </p>
      )}
      {budget && <Target budget={budget} used={summary.dayWh} />}
    </section>
  );
}

function TodayFigures({
  meters,
  hours,
  now,
}: {
  meters: readonly PowerMeter[];
  hours: Hours;
  now: number;
}) {
  const [yesterday, today] = energyPeriods(meters, hours, midnights(2, now));
  if (!today || !yesterday) return null;
  const before = usedUntil(meters, hours, dayBefore(now));
  const used = today.known ? today.energy.consumption : null;
  const usedYesterday = yesterday.known ? yesterday.energy.consumption : null;
  const has = (type: PowerMeter["type"]) => meters.some((meter) => meter.type === type);
  const text = format.together([used, usedYesterday], "Wh");
  const wattHours = (value: number) => format.wattHours(today.known ? value : null);
  return (
    <>
      {used === null ? (
        <p className="today-none">
          {today.read ? "What it used today is not known" : "No readings today"}
        </p>
      ) : (
        <p className="today-used">
          <strong>{text(used)}</strong> used
          <Change now={used} before={before} />
        </p>
      )}
      <dl className="pairs">
        <Pair name="Yesterday by this time">{text(before)}</Pair>
        <Pair name="All of yesterday">{text(usedYesterday)}</Pair>
        {has("solar") && <Pair name="From the sun">{wattHours(today.energy.solar)}</Pair>}
        {has("main") && <Pair name="From the grid">{wattHours(today.energy.gridIn)}</Pair>}
        {today.energy.gridOut > 0 && (
          <Pair name="Fed back">{format.wattHours(today.energy.gridOut)}</Pair>
        )}
        {has("solar") && (
          <Pair name="Self-sufficiency">{format.percent(selfSufficiency(today.energy))}</Pair>
        )}
      </dl>
    </>
  );
}

/** How much more or less than yesterday by this time; nothing if yesterday had none. */
function Change({ now, before }: { now: number; before: number | null }) {
  if (before === null || before <= 0) return null;
  const change = Math.round(100 * (now / before - 1));
  const words =
    change === 0
      ? "the same as yesterday by this time"
      : `${Math.abs(change)} % ${change > 0 ? "more" : "less"} than yesterday by this time`;
  return <span className="today-change muted">{words}</span>;
}

/** The last 24 hours against the device's target; `used` null: what it used is not known. */
function Target({ budget, used }: { budget: DeviceBudget; used: number | null }) {
  const { target_wh: target, within_target: within } = budget;
  if (target === null) return null;
  if (used === null)
    return (
      <p className="target muted">
        What it used in the last 24 h is not known. The target is {format.wattHours(target)}.
      </p>
    );
  const share = target > 0 ? used / target : used > 0 ? 1 : 0;
  const text = format.together([used, target], "Wh");
  const verdict = within
    ? `${format.percent(100 * share)} of the target`
    : `over by ${text(used - target)}`;
  return (
    <div className={`target ${within ? "target-within" : "target-over"}`}>
      <p>
        <strong>{text(used)}</strong> of {text(target)} in the last 24 h
        <span className="target-verdict">{verdict}</span>
      </p>
      <div
        className="track target-track"
        role="meter"
        aria-label="Energy of the last 24 hours against the target"
        aria-valuemin={0}
        aria-valuemax={target}
        aria-valuenow={Math.min(used, target)}
        aria-valuetext={`${text(used)} of ${text(target)}, ${verdict}`}
      >
        <div className="level" style={{ width: `${Math.min(100, 100 * share)}%` }} />
      </div>
    </div>
  );
}
