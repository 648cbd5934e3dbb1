/** The charts of a span: watts, charge, volts by scale, and energy. */

import type { PowerMeter, PowerStatistics } from "@blackroad/power-client";
import { useMemo } from "react";
import type { HistoryState, Sample } from "../live/history";
import {
  type Detail,
  detailOf,
  endsOf,
  energyMoments,
  energyUnitOf,
  type Span,
} from "../live/span";
import { errorText } from "../ui/states";
import { chargePart, type DayBand, dayBands, middleCharge, voltsPart, wattsPart } from "./bands";
import { type Columns, hourSeconds, join, type Points, points } from "./chart-data";
import { EnergyBars } from "./EnergyBars";
import { energyPeriods, type Kind, midnight } from "./energy";
import type { Line } from "./lines";
import { byScale } from "./scales";
import { TimeChart, type Zoom } from "./TimeChart";

const GAP_SECONDS = 120; // a line has a gap where a step is longer, and much longer than usual
const HOUR_GAP_SECONDS = 2.5 * 3600;
const DAY_GAP_SECONDS = 2.5 * 86_400;

/** When a reading was taken, in seconds since the epoch. */
const secondsOf = ({ at }: Sample): number => at / 1000;

type Quantity = "watts" | "volts" | "charge";

/** Null if the reading lacks the value: the line has a gap there. */
const OF_READING: Record<Quantity, (reading: Sample) => number | null> = {
  watts: (reading) => reading.wattage,
  volts: (reading) => reading.voltage,
  charge: (reading) => reading.charge_pct,
};

/** Statistics have no volts, so these come from the readings, thinned out. */
const OF_HOUR: Record<Exclude<Quantity, "volts">, (row: PowerStatistics) => number | null> = {
  watts: (row) => row.avg_wattage,
  charge: middleCharge,
};

const NOTES: Record<Detail, Record<Quantity, string>> = {
  readings: { watts: "W", volts: "V", charge: "%" },
  hours: {
    watts: "hourly mean, W",
    volts: "V",
    charge: "midpoint of each hour’s lowest and highest, %",
  },
  days: {
    watts: "each day’s lowest, mean and highest, W",
    volts: "each day’s lowest, midpoint and highest, V",
    charge: "each day’s lowest, midpoint and highest, %",
  },
};

/** The rows of a history that lie within a span. */
interface Within {
  readonly readings: (meterId: string) => readonly Sample[];
  readonly hours: (meterId: string) => readonly PowerStatistics[];
}

function within(
  { readings, statistics }: HistoryState,
  [from, to]: readonly [number, number],
): Within {
  const isIn = (moment: string) => Date.parse(moment) >= from && Date.parse(moment) < to;
  return {
    readings: (id) => readings.get(id) ?? [],
    // Of the hour in which the span begins, all counts.
    hours: (id) => (statistics.get(id) ?? []).filter(({ start }) => isIn(start)),
  };
}

function lineOf(
  { readings, hours }: Within,
  id: string,
  quantity: Quantity,
  detail: Detail,
): Points {
  return detail === "hours" && quantity !== "volts"
    ? points(hours(id), hourSeconds, OF_HOUR[quantity], HOUR_GAP_SECONDS)
    : points(readings(id), secondsOf, OF_READING[quantity], GAP_SECONDS);
}

function bandsOf({ readings, hours }: Within, id: string, quantity: Quantity): DayBand[] {
  if (quantity === "volts") return dayBands(readings(id).map(voltsPart));
  return dayBands(hours(id).map(quantity === "watts" ? wattsPart : chargePart));
}

/** The columns of a chart: one for each line, or three if the points are days. */
function columns(
  data: Within,
  ids: readonly string[],
  quantity: Quantity,
  detail: Detail,
): Columns {
  if (detail !== "days") return join(ids.map((id) => lineOf(data, id, quantity, detail)));
  const parts = ["mean", "least", "most"] as const;
  return join(
    ids.flatMap((id) => {
      const days = bandsOf(data, id, quantity);
      return parts.map((part) =>
        points(
          days,
          ({ at }) => at,
          (day) => day[part],
          DAY_GAP_SECONDS,
        ),
      );
    }),
  );
}

/** The greatest volts of a meter that are drawn. */
const sizeOf = (readings: readonly Sample[]): number =>
  readings.reduce((most, { voltage }) => Math.max(most, Math.abs(voltage ?? 0)), 0);

interface PlotsProps {
  readonly history: HistoryState;
  readonly span: Span;
  readonly meters: readonly PowerMeter[];
  readonly lines: ReadonlyMap<string, Line>;
  readonly zoom: Zoom;
  /** Where a span that follows the present ends. */
  readonly now: number;
}

export function Plots({ history, span, meters, lines, zoom, now }: PlotsProps) {
  const detail = detailOf(span);
  const [from, to] = endsOf(span, now);
  const shown = useMemo(() => [from / 1000, to / 1000] as const, [from, to]);
  // biome-ignore lint/correctness/useExhaustiveDependencies: a reading changes no id of meters or lines
  const drawn = useMemo(() => {
    // A day's band covers the whole day, even if the span begins within it.
    const data = within(history, [detail === "days" ? midnight(from) : from, to]);
    const chart = (quantity: Quantity, ids: readonly string[]) => ({
      lines: ids.flatMap((id) => lines.get(id) ?? []),
      data: columns(data, ids, quantity, detail),
      note: NOTES[detail][quantity],
      bands: detail === "days",
    });
    const ids = meters.map(({ id }) => id);
    const storing = meters.filter(({ type }) => type === "battery" || type === "ups");
    const scales = byScale(ids.map((id) => ({ id, size: sizeOf(data.readings(id)) })));
    return {
      watts: chart("watts", ids),
      charge: chart(
        "charge",
        storing.map(({ id }) => id),
      ),
      volts: scales.map((group) => chart("volts", group)),
    };
  }, [history.readings, history.statistics, detail, from, to]);
  const common = { window: shown, zoom };
  return (
    <>
      <div className="card chart-wide">
        <TimeChart title="Power" unit="W" {...drawn.watts} {...common} />
      </div>
      {drawn.charge.lines.length > 0 && (
        <div className="card">
          <TimeChart title="Charge" unit="%" bounds={PERCENT} {...drawn.charge} {...common} />
        </div>
      )}
      {history.readingsError !== null && <NoVolts error={history.readingsError} />}
      {history.readingsError === null &&
        drawn.volts.map((volts) => (
          <div className="card" key={volts.lines.map(({ id }) => id).join()}>
            <TimeChart
              title={voltsTitle(volts.lines, drawn.volts.length)}
              unit="V"
              {...volts}
              {...common}
            />
          </div>
        ))}
    </>
  );
}

const PERCENT = [0, 100] as const;

const voltsTitle = (lines: readonly Line[], charts: number): string =>
  charts === 1 ? "Voltage" : `Voltage of ${lines.map(({ label }) => label).join(", ")}`;

function NoVolts({ error }: { error: unknown }) {
  return (
    <div className="card chart">
      <h3>Voltage</h3>
      <p className="state">
        Hourly statistics hold no voltage, and the readings of this range cannot be shown:{" "}
        {errorText(error)}
      </p>
    </div>
  );
}

interface EnergyCardProps {
  readonly history: HistoryState;
  readonly span: Span;
  readonly meters: readonly PowerMeter[];
  readonly now: number;
}

export function EnergyCard({ history, span, meters, now }: EnergyCardProps) {
  const periods = energyPeriods(meters, history.statistics, energyMoments(span, now));
  const types = new Set(meters.map(({ type }) => type));
  const kinds: Kind[] = [];
  if (types.has("solar")) kinds.push("solar");
  if (types.has("battery")) kinds.push("battery");
  if (types.has("main") || types.has("ups")) kinds.push("grid");
  const gridName = types.has("main") ? "grid" : "UPS";
  return (
    <EnergyBars
      periods={periods}
      each={energyUnitOf(span)}
      has={new Set(kinds)}
      gridName={gridName}
    />
  );
}
