/** What each meter reads now. */

import type { PowerMeter } from "@blackroad/power-client";
import { Charge } from "../fleet/columns";
import { isStale, measured, stateOf } from "../fleet/summary";
import * as format from "../format";
import { Badge } from "../ui/Badge";
import { Ago } from "../ui/Time";
import { Swatch } from "./Legend";
import { type Line, meterName, typeName } from "./lines";

interface MeterCardsProps {
  readonly meters: readonly PowerMeter[];
  readonly lines: ReadonlyMap<string, Line>;
  readonly now: number;
}

export function MeterCards({ meters, lines, now }: MeterCardsProps) {
  return (
    <section aria-labelledby="meters">
      <h2 id="meters" className="hidden">
        Meters
      </h2>
      <ul className="meters live">
        {meters.map((meter) => (
          <MeterCard key={meter.id} meter={meter} line={lines.get(meter.id)} now={now} />
        ))}
      </ul>
    </section>
  );
}

function MeterCard({
  meter,
  line,
  now,
}: {
  meter: PowerMeter;
  line: Line | undefined;
  now: number;
}) {
  const seen = meter.updated_at === null ? null : Date.parse(meter.updated_at);
  const stale = isStale(seen, now);
  return (
    <li className={`card meter${stale ? " is-stale" : ""}`}>
      <div className="meter-head">
        <h3>
          {line && <Swatch line={line} />} {meterName(meter)}
        </h3>
        {meter.name && <span className="muted">{typeName(meter.type)}</span>}
        {!meter.active && <span className="muted">retired</span>}
        <Badge state={seen === null ? "silent" : stale ? "stale" : stateOf(meter)} />
      </div>
      <p className="meter-watts">
        <span>{seen === null ? format.UNKNOWN : format.watts(meter.wattage)}</span>
        <span className="meter-read">
          {seen === null ? "never read" : <>read {<Ago at={seen} now={now} />}</>}
        </span>
      </p>
      <dl className="pairs">
        <Pair name="Voltage">{format.volts(measured(meter, "voltage"))}</Pair>
        <Pair name="Current out">{format.amperes(measured(meter, "current_draw"))}</Pair>
        {meter.type !== "main" && meter.type !== "solar" && (
          <Pair name="Charge">
            <Charge value={seen === null ? null : meter.charge_pct} state={meter.state} />
          </Pair>
        )}
        {meter.capacity_wh > 0 && (
          <Pair name="Capacity">{format.wattHours(meter.capacity_wh)}</Pair>
        )}
      </dl>
    </li>
  );
}

export function Pair({ name, children }: { name: string; children: React.ReactNode }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}
