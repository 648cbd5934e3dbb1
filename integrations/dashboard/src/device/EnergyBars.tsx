/**
 * Energy by hour, day, week or month: sources above the line, uses below it, totals beside it, and
 * the same as a table.
 *
 * Both sides are equal, because energy that passes through the battery counts once, at its source.
 */

import { useId } from "react";
import * as format from "../format";
import type { EnergyUnit } from "../live/span";
import {
  type Energy,
  type Kind,
  type Part,
  type Period,
  selfSufficiency,
  sidesOf,
  sidesOfAll,
  total,
} from "./energy";

interface EnergyBarsProps {
  readonly periods: readonly Period[];
  /** What a period is. */
  readonly each: EnergyUnit;
  /** The kinds of meters that the device has. */
  readonly has: ReadonlySet<Kind>;
  /** "grid", or "UPS" for a device without mains. */
  readonly gridName: string;
}

interface Column {
  readonly name: string;
  readonly of: (energy: Energy) => number;
  readonly kind: Kind;
}

const UNIT_HEADS: Record<EnergyUnit, string> = {
  hour: "Hour",
  day: "Day",
  week: "Week",
  month: "Month",
};

const FED_BACK = "Fed back";

/** The figures of a device that has these kinds of meters. */
function columnsOf({ has, gridName }: Pick<EnergyBarsProps, "has" | "gridName">): Column[] {
  const all: Column[] = [
    { name: "Consumption", kind: "load", of: (energy) => energy.consumption },
    { name: "Solar", kind: "solar", of: (energy) => energy.solar },
    { name: `From the ${gridName}`, kind: "grid", of: (energy) => energy.gridIn },
    { name: FED_BACK, kind: "grid", of: (energy) => energy.gridOut },
    { name: "Out of battery", kind: "battery", of: (energy) => energy.batteryOut },
    { name: "Into battery", kind: "battery", of: (energy) => energy.batteryIn },
  ];
  return all.filter(({ kind }) => kind === "load" || has.has(kind));
}

export function EnergyBars(props: EnergyBarsProps) {
  const { periods, each, has, gridName } = props;
  const id = useId();
  const sums = total(periods);
  const columns = columnsOf(props).filter(({ name, of }) => name !== FED_BACK || of(sums) > 0);
  if (!periods.some(({ known }) => known)) {
    return (
      <figure className="chart" aria-labelledby={id}>
        <h3 id={id}>Energy by {each}</h3>
        <p className="state">No energy is known for this range.</p>
      </figure>
    );
  }
  const sides = sidesOfAll(periods);
  const text = format.together(
    [...sides.sources, ...sides.uses].map(({ wh }) => wh),
    "Wh",
  );
  const entries = (side: "sources" | "uses") =>
    sides[side]
      .filter(
        ({ kind, wh }) => kind === "load" || (has.has(kind) && (wh > 0 || side === "sources")),
      )
      .map(({ kind, wh }) => ({ kind, name: partName(side, kind, gridName), text: text(wh) }));
  const [sources, uses] = [entries("sources"), entries("uses")];
  const label = [...sources, ...uses].map(({ name, text }) => `${name} ${text}`).join(", ");
  return (
    <figure className="chart" aria-labelledby={id}>
      <figcaption className="chart-head">
        <h3 id={id}>Energy by {each}</h3>
        <span className="muted">
          sources above the line, uses below; the battery counts by what it gained or lost
        </span>
      </figcaption>
      <div className="energy">
        <Bars
          periods={periods}
          each={each}
          label={`Energy by ${each}: ${label}`}
          gridName={gridName}
        />
        <div className="energy-totals">
          <Totals title="Sources" entries={sources} />
          <Totals title="Uses" entries={uses} />
          {has.has("solar") && (
            <dl>
              <div>
                <dt>Self-sufficiency</dt>
                <dd>{format.percent(selfSufficiency(sums))}</dd>
              </div>
            </dl>
          )}
        </div>
      </div>
      <details>
        <summary>As a table</summary>
        <EnergyTable periods={periods} each={each} columns={columns} />
      </details>
    </figure>
  );
}

interface Entry {
  readonly kind: Kind;
  readonly name: string;
  readonly text: string;
}

/** What the bars of one side add up to. */
function Totals({ title, entries }: { title: string; entries: readonly Entry[] }) {
  const id = useId();
  return (
    <div>
      <h4 id={id}>{title}</h4>
      <dl aria-labelledby={id}>
        {entries.map(({ kind, name, text }) => (
          <div key={kind}>
            <dt>
              <i className={`dot dot-${kind}`} aria-hidden="true" /> {name}
            </dt>
            <dd>{text}</dd>
          </div>
        ))}
      </dl>
    </div>
  );
}

/** What a part of a bar is called. */
function partName(side: "sources" | "uses", kind: Kind, gridName: string): string {
  const names = {
    sources: {
      solar: "From the sun",
      battery: "From the battery",
      grid: `From the ${gridName}`,
      load: "",
    },
    uses: { solar: "", battery: "Into the battery", grid: FED_BACK, load: "Consumption" },
  };
  return names[side][kind];
}

/** The steps of an axis: round numbers from the lowest value to the highest. */
export function stepsOf(least: number, most: number): number[] {
  const span = Math.max(most - least, 1e-9);
  const rough = 10 ** Math.floor(Math.log10(span / 4));
  const step =
    [1, 2, 2.5, 5, 10].map((factor) => factor * rough).find((one) => span / one <= 5) ?? rough * 10;
  const first = Math.floor(least / step + 1e-9);
  const last = Math.ceil(most / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

interface BarsProps {
  readonly periods: readonly Period[];
  readonly each: EnergyUnit;
  readonly label: string;
  readonly gridName: string;
}

const sumOf = (parts: readonly Part[]): number => parts.reduce((sum, { wh }) => sum + wh, 0);

/**
 * In the picture, a period is 1 wide, and the axis is 100 high; the browser stretches it to fit.
 */
function Bars({ periods, each, label, gridName }: BarsProps) {
  const sides = periods.map(({ energy }) => sidesOf(energy));
  const most = Math.max(0, ...sides.map(({ sources }) => sumOf(sources)));
  const least = -Math.max(0, ...sides.map(({ uses }) => sumOf(uses)));
  const steps = stepsOf(least, most || 1);
  const [bottom, top] = [steps[0] ?? 0, steps.at(-1) ?? 1];
  const down = (value: number) => (100 * (top - value)) / (top - bottom);
  const texts = format.ticks(steps, "Wh");
  return (
    <div className="bars">
      <div className="bars-axis muted" aria-hidden="true">
        {steps.map((step, index) => (
          <span key={step} style={{ top: `${down(step)}%` }}>
            {texts[index]?.replace("−", "")}
          </span>
        ))}
      </div>
      <svg
        viewBox={`0 0 ${periods.length} 100`}
        preserveAspectRatio="none"
        role="img"
        aria-label={label}
      >
        {steps.map((step) => (
          <line
            key={step}
            className={step === 0 ? "bars-zero" : "bars-step"}
            x1={0}
            x2={periods.length}
            y1={down(step)}
            y2={down(step)}
          />
        ))}
        {periods.map((period, index) => (
          <g key={period.start}>
            <title>{periodText(period, each, gridName)}</title>
            <rect className="bars-day" x={index} y={0} width={1} height={100} />
            <Stack parts={sides[index]?.sources ?? []} x={index} down={down} sign={1} />
            <Stack parts={sides[index]?.uses ?? []} x={index} down={down} sign={-1} />
          </g>
        ))}
      </svg>
      <div className="bars-days muted" aria-hidden="true">
        {periods.map((period, index) => (
          <span key={period.start} className="bars-day-name">
            {isLabelled(index, periods.length) ? shortName(period, each) : ""}
          </span>
        ))}
      </div>
    </div>
  );
}

interface StackProps {
  readonly parts: readonly Part[];
  readonly x: number;
  readonly down: (value: number) => number;
  readonly sign: 1 | -1;
}

/** One side of a period: its parts one after the other, away from the line. */
function Stack({ parts, x, down, sign }: StackProps) {
  let reached = 0;
  return parts.map(({ kind, wh }) => {
    const [from, to] = [sign * reached, sign * (reached + wh)];
    reached += wh;
    const [y, end] = [Math.min(down(from), down(to)), Math.max(down(from), down(to))];
    return (
      <rect
        key={kind}
        className={`bar bar-${kind}`}
        x={x + 0.16}
        width={0.68}
        y={y}
        height={end - y}
      />
    );
  });
}

/** Seven labels at most, in the middle of their share of the periods. */
function isLabelled(index: number, count: number): boolean {
  const each = Math.ceil(count / 7);
  return index % each === Math.floor(Math.min(each, count) / 2);
}

function shortName({ start }: Period, each: EnergyUnit): string {
  if (each === "hour") return format.localClock(start).slice(0, 5);
  return each === "month" ? format.month(start) : format.shortDay(start);
}

/** A period by its name: Mon 23 Nov; 23 Nov to 29 Nov; November 2026. */
function longName({ start, end }: Period, each: EnergyUnit): string {
  if (each === "hour") return format.minute(start);
  if (each === "day") return format.localDay(start);
  if (each === "week") return `${format.shortDay(start)} to ${format.shortDay(end - 1)}`;
  return format.longMonth(start);
}

function periodText(period: Period, each: EnergyUnit, gridName: string): string {
  const { sources, uses } = sidesOf(period.energy);
  const text = format.together(
    [...sources, ...uses].map(({ wh }) => wh),
    "Wh",
  );
  const lines = (parts: readonly Part[], side: "sources" | "uses") =>
    parts
      .filter(({ wh }) => wh > 0)
      .map(({ kind, wh }) => `${partName(side, kind, gridName)}: ${text(wh)}`);
  const figures = [...lines(sources, "sources"), ...lines(uses, "uses")];
  const none = period.read ? "Not known" : "No readings";
  return [longName(period, each), ...(period.known ? figures : [none])].join("\n");
}

interface EnergyTableProps {
  readonly periods: readonly Period[];
  readonly each: EnergyUnit;
  readonly columns: readonly Column[];
}

function EnergyTable({ periods, each, columns }: EnergyTableProps) {
  const text = format.together(
    periods.flatMap(({ energy }) => columns.map(({ of }) => of(energy))),
    "Wh",
  );
  return (
    <div className="scroll-x" role="region" aria-label={`Energy by ${each}, table`} tabIndex={0}>
      <table className="plain">
        <thead>
          <tr>
            <th scope="col">{UNIT_HEADS[each]}</th>
            {columns.map(({ name }) => (
              <th scope="col" key={name}>
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {[...periods].reverse().map((period) => (
            <tr key={period.start}>
              <th scope="row">{longName(period, each)}</th>
              {columns.map(({ name, of }) => (
                <td key={name}>{text(period.known ? of(period.energy) : null)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
