/** The site of a device of a fleet, the version of its forwarder, and its alarms. */

import type { FleetDevice } from "@blackroad/power-client";
import { alarmText } from "../fleet/summary";
import * as format from "../format";
import { Ago, Time } from "../ui/Time";
import { Pair } from "./MeterCards";

export function FactsCard({ fact, now }: { fact: FleetDevice; now: number }) {
  const opened = fact.opened_at === null ? null : Date.parse(fact.opened_at);
  const seen = fact.last_seen === null ? null : Date.parse(fact.last_seen);
  return (
    <section className="card" aria-labelledby="facts">
      <h2 id="facts">In the fleet</h2>
      <dl className="pairs">
        <Pair name="Site">{fact.site || format.UNKNOWN}</Pair>
        <Pair name="Software">{fact.version ? `power-fleet ${fact.version}` : format.UNKNOWN}</Pair>
        <Pair name="Started">
          {opened === null ? format.UNKNOWN : <Ago at={opened} now={now} />}
        </Pair>
        <Pair name="Last message">{seen === null ? "none" : <Ago at={seen} now={now} />}</Pair>
      </dl>
      {fact.alarms.length > 0 && (
        <ul className="facts-alarms" aria-label="Alarms">
          {fact.alarms.map((alarm) => (
            <li key={`${alarm.kind} ${alarm.since}`}>
              <strong>{alarmText(alarm.kind)}</strong> since <Time at={Date.parse(alarm.since)} />
              {alarm.note && <span className="muted"> · {format.apart(alarm.note)}</span>}
            </li>
          ))}
        </ul>
      )}
    </section>
  );
}
