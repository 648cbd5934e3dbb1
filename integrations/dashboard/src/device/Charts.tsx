/** Watts, volts and charge of a device's meters over a range, and its energy by day. */

import type { PowerMeter, PowerReading, PowerStatistics } from "@blackroad/power-client";
import { useMemo, useState } from "react";
import * as format from "../format";
import {
  energyDaysOf,
  type HistoryState,
  isHourly,
  RANGES,
  type Range,
  stepOf,
  useHistory,
} from "../live/history";
import { errorText, Failure, Loading } from "../ui/states";
import { hourSeconds, join, type Points, points, readingSeconds } from "./chart-data";
import { EnergyBars } from "./EnergyBars";
import { energyPeriods, type Kind, midnights } from "./energy";
import { type Columns, type Line, TimeChart } from "./TimeChart";

const GAP_SECONDS = 120; // without a reading for so long a line is broken, as is one that is usually denser
const HOUR_GAP_SECONDS = 2.5 * 3600;

interface ChartsProps {
  readonly deviceId: string;
  readonly meters: readonly PowerMeter[];
  readonly lines: ReadonlyMap<string, Line>;
  /** The device's newest reading where its clock is ahead, else null: a range ends there, or now. */
  readonly ahead: number | null;
  readonly now: number;
}

export function Charts({ deviceId, meters, lines, ahead, now }: ChartsProps) {
  const [range, setRange] = useState<Range>("24h");
  const meterIds = meters.map((meter) => meter.id);
  const history = useHistory(deviceId, meterIds, range);
  return (
    <section className="charts" aria-labelledby="history">
      <div className="section-head">
        <h2 id="history">History</h2>
        <RangePicker range={range} onRange={setRange} />
        <span className="muted">
          {isHourly(range) ? "hourly figures" : "every peak is kept"} · times in {format.zone(now)}
        </span>
      </div>
      {ahead !== null && (
        <p className="notice">
          The clock of this device is ahead: its readings are dated up to {format.localTime(ahead)}, and the
          charts end there.
        </p>
      )}
      {history.phase === "loading" && <Loading what="history" />}
      {history.phase === "failed" && (
        <Failure what="The history could not be loaded" error={history.error} onRetry={history.refetch} />
      )}
      {history.phase === "ready" && history.error !== null && (
        <p className="problem" role="status">
          Not up to date: {errorText(history.error)}
        </p>
      )}
      {history.phase === "ready" && (
        <Plots history={history} range={range} meters={meters} lines={lines} now={ahead ?? now} />
      )}
    </section>
  );
}

function RangePicker({ range, onRange }: { range: Range; onRange: (range: Range) => void }) {
  return (
    <fieldset className="segments">
      <legend className="hidden">Range</legend>
      {Object.entries(RANGES).map(([key, { title, name }]) => (
        <label key={key}>
          <input type="radio" name="range" checked={key === range} onChange={() => onRange(key as Range)} />
          <span title={name}>{title}</span>
        </label>
      ))}
    </fieldset>
  );
}

interface PlotsProps {
  readonly history: HistoryState;
  readonly range: Range;
  readonly meters: readonly PowerMeter[];
  readonly lines: ReadonlyMap<string, Line>;
  readonly now: number;
}

type Quantity = "watts" | "volts" | "charge";

/** Null where the reading does not know it: the line has a gap there. */
const OF_READING: Record<Quantity, (reading: PowerReading) => number | null> = {
  watts: (reading) => reading.wattage,
  volts: (reading) => reading.voltage,
  charge: (reading) => reading.charge_pct,
};

/** Statistics keep no volts: those come from the readings, thinned out. */
const OF_HOUR: Record<Exclude<Quantity, "volts">, (row: PowerStatistics) => number | null> = {
  watts: (row) => row.avg_wattage,
  charge: (row) => (row.min_charge_pct + row.max_charge_pct) / 2,
};

function columns(
  { readings, statistics }: HistoryState,
  ids: readonly string[],
  quantity: Quantity,
  hourly: boolean,
) {
  const line = (id: string): Points =>
    hourly && quantity !== "volts"
      ? points(statistics.get(id) ?? [], hourSeconds, OF_HOUR[quantity], HOUR_GAP_SECONDS)
      : points(readings.get(id) ?? [], readingSeconds, OF_READING[quantity], GAP_SECONDS);
  return join(ids.map(line));
}

/** The range up to now. */
function windowOf(range: Range, now: number): readonly [number, number] {
  const end = Math.ceil(now / 1000 / stepOf(range)) * stepOf(range);
  return [end - RANGES[range].hours * 3600, end];
}

function Plots({ history, range, meters, lines, now }: PlotsProps) {
  const hourly = isHourly(range);
  const [from, to] = windowOf(range, now);
  const shown = useMemo(() => [from, to] as const, [from, to]);
  const chart = (quantity: Quantity, kept: readonly PowerMeter[]) => ({
    lines: kept.flatMap((meter) => lines.get(meter.id) ?? []),
    data: columns(
      history,
      kept.map((meter) => meter.id),
      quantity,
      hourly,
    ),
  });
  // biome-ignore lint/correctness/useExhaustiveDependencies: meters and lines change with every reading, their ids do not
  const drawn = useMemo(() => {
    const storing = meters.filter((meter) => meter.type === "battery" || meter.type === "ups");
    return { watts: chart("watts", meters), volts: chart("volts", meters), charge: chart("charge", storing) };
  }, [history.readings, history.statistics, range]);
  return (
    <div className="chart-grid live">
      {drawn.watts.data[0].length === 0 ? (
        <p className="card state chart-none">Nothing was read in this range.</p>
      ) : (
        <>
          <div className="card chart-wide">
            <TimeChart
              title="Power"
              note={hourly ? "hourly mean, W" : "W"}
              {...drawn.watts}
              window={shown}
              unit="W"
            />
          </div>
          {drawn.charge.lines.length > 0 && (
            <div className="card">
              <TimeChart
                title="Charge"
                note={hourly ? "middle of each hour’s least and most, %" : "%"}
                {...drawn.charge}
                window={shown}
                unit="%"
                bounds={PERCENT}
              />
            </div>
          )}
          <div className="card">
            <Volts error={history.readingsError} {...drawn.volts} window={shown} />
          </div>
        </>
      )}
      <div className="card energy-card">
        <EnergyCard history={history} meters={meters} days={energyDaysOf(range)} now={now} />
      </div>
    </div>
  );
}

interface EnergyCardProps {
  readonly history: HistoryState;
  readonly meters: readonly PowerMeter[];
  readonly days: number;
  readonly now: number;
}

function EnergyCard({ history, meters, days, now }: EnergyCardProps) {
  const periods = energyPeriods(meters, history.statistics, midnights(days, now));
  const types = new Set(meters.map(({ type }) => type));
  const kinds: Kind[] = [];
  if (types.has("solar")) kinds.push("solar");
  if (types.has("battery")) kinds.push("battery");
  if (types.has("main") || types.has("ups")) kinds.push("grid");
  const gridName = types.has("main") ? "grid" : "UPS";
  return <EnergyBars periods={periods} each="day" has={new Set(kinds)} gridName={gridName} />;
}

const PERCENT = [0, 100] as const;

interface VoltsProps {
  readonly error: unknown;
  readonly lines: readonly Line[];
  readonly data: Columns;
  readonly window: readonly [number, number];
}

function Volts({ error, lines, data, window }: VoltsProps) {
  if (!error)
    return <TimeChart title="Voltage" note="V" lines={lines} data={data} window={window} unit="V" />;
  return (
    <div className="chart">
      <h3>Voltage</h3>
      <p className="state">
        Hourly statistics keep no volts, and the readings of this range cannot be shown: {errorText(error)}
      </p>
    </div>
  );
}
