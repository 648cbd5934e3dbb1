/**
 * The top of a device: how long it lasts, where power comes from and goes, and today beside
 * yesterday.
 */

import type { DeviceBudget, PowerMeter } from "@blackroad/power-client";
import type { Summary } from "../fleet/summary";
import * as format from "../format";
import { Flow } from "./Flow";
import { outlookOf } from "./outlook";
import { TodayCard } from "./TodayCard";

interface NowCardsProps {
  readonly meters: readonly PowerMeter[];
  readonly budget: DeviceBudget | undefined;
  readonly summary: Summary;
  readonly now: number;
}

export function NowCards({ meters, budget, summary, now }: NowCardsProps) {
  const stores = meters.some(
    ({ active, type }) => active && (type === "battery" || type === "ups"),
  );
  return (
    <section className={`now live${summary.stale ? " is-stale" : ""}`} aria-label="Now and today">
      {stores && <ChargeCard meters={meters} summary={summary} now={now} />}
      <div className="card flow-card">
        <h2>{summary.stale && summary.lastSeen !== null ? "Power when last seen" : "Power now"}</h2>
        <Flow summary={summary} meters={meters} />
      </div>
      <TodayCard meters={meters} budget={budget} summary={summary} now={now} />
    </section>
  );
}

interface ChargeCardProps {
  readonly meters: readonly PowerMeter[];
  readonly summary: Summary;
  readonly now: number;
}

function ChargeCard({ meters, summary, now }: ChargeCardProps) {
  const { charge, powerState } = summary;
  const hasBattery = meters.some(({ active, type }) => active && type === "battery");
  const outlook = hasBattery ? outlookOf(summary, meters, now) : null;
  return (
    <section className={`card charge-card charge-${powerState}`} aria-labelledby="charge">
      <h2 id="charge">{hasBattery ? "Battery" : "UPS"}</h2>
      {charge === null ? (
        <p className="charge-big" title="The charge is not known">
          {format.UNKNOWN}
        </p>
      ) : (
        <>
          <p className="charge-big">{format.percent(charge)}</p>
          <div className="battery" aria-hidden="true">
            <div className="level" style={{ width: `${charge}%` }} />
          </div>
        </>
      )}
      {outlook ? (
        <div className="outlook">
          <p className="outlook-answer">{outlook.answer}</p>
          <p className="muted">{outlook.reason}</p>
        </div>
      ) : (
        <p className="muted">The runtime is estimated for batteries only.</p>
      )}
    </section>
  );
}
