/**
 * Lines over time, drawn by uPlot, with a legend that is a table: what a pointer shows, a keyboard and a screen reader
 * get as well. Left and right move along the points, Home and End to the ends, Escape leaves them.
 */

import { useEffect, useId, useMemo, useRef, useState } from "react";
import uPlot from "uplot";
import type { Unit } from "../format";
import * as format from "../format";
import { Time } from "../ui/Time";
import { useTheme } from "../ui/theme";
import { alone, axisTimes, limits, readingAt } from "./chart-data";

export interface Line {
  readonly id: string;
  readonly label: string;
  /** A CSS custom property, such as --series-solar-1. */
  readonly color: string;
  readonly dash?: readonly number[];
}

/** x in seconds since the epoch, rising; then one column a line. null is a gap, undefined no point of that line. */
export type Columns = readonly [xs: ArrayLike<number>, ...lines: ArrayLike<number | null | undefined>[]];

export interface TimeChartProps {
  readonly title: string;
  readonly note?: string;
  readonly lines: readonly Line[];
  readonly data: Columns;
  /** First and last moment shown, in seconds since the epoch. */
  readonly window: readonly [number, number];
  readonly unit: Unit;
  /** Bounds that the scale always has, such as 0 and 100 for percent. */
  readonly bounds?: readonly [number | null, number | null];
}

const SYNC = "device";
const LINE_WIDTH = 1.75;
const DENSE = 8; // points a pixel: there a line of one pixel shows as much, and is drawn several times as fast

interface Drawing {
  readonly lines: readonly Line[];
  readonly unit: Unit;
  readonly bounds: TimeChartProps["bounds"];
}

function options(
  { lines, unit, bounds }: Drawing,
  host: HTMLElement,
  onCursor: (index: number | null) => void,
) {
  const style = getComputedStyle(document.documentElement);
  const rem = Number.parseFloat(style.fontSize);
  const color = (name: string) => style.getPropertyValue(name).trim();
  const axis: uPlot.Axis = {
    stroke: color("--muted"),
    font: `${0.75 * rem}px ${style.getPropertyValue("--font")}`,
    grid: { stroke: color("--line"), width: 1 },
    ticks: { stroke: color("--line"), width: 1, size: 4 },
  };
  const labels = (_: uPlot, splits: number[]) => format.ticks(splits, unit);
  const chart: uPlot.Options = {
    width: host.clientWidth,
    height: host.clientHeight,
    legend: { show: false },
    // No line across: the same height means nothing in the charts beside it.
    cursor: { y: false, drag: { x: false, y: false }, sync: { key: SYNC }, points: { size: 7 } },
    scales: { y: { range: (_, low, high) => limits(low, high, bounds) } },
    axes: [
      { ...axis, values: axisTimes, space: 4.5 * rem, size: 2 * rem },
      { ...axis, values: labels, size: (_, texts) => axisWidth(texts, rem), space: 2.2 * rem },
    ],
    series: [{}, ...lines.map((line) => series(line, color(line.color)))],
    hooks: { setCursor: [(plot) => onCursor(plot.cursor.idx ?? null)] },
  };
  return chart;
}

function series(line: Line, stroke: string): uPlot.Series {
  return {
    label: line.label,
    stroke,
    width: LINE_WIDTH,
    points: { show: true, size: 5, fill: stroke, filter: (plot, place) => alone(plot.data[place] ?? []) },
    ...(line.dash && { dash: [...line.dash] }),
  };
}

const axisWidth = (texts: string[] | null, rem: number): number =>
  12 + 0.47 * rem * Math.max(4, ...(texts ?? []).map((text) => text.length));

/** The plot inside an element: made anew for other lines or another theme, and given data as it comes. */
function usePlot(props: TimeChartProps, onCursor: (index: number | null) => void) {
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const theme = useTheme();
  const { lines, data, window: shown, unit, bounds } = props;
  const latest = useRef({ data, shown });
  latest.current = { data, shown };

  // The same lines by value keep the plot; a new array of them at each render does not cost a new one.
  const key = JSON.stringify([theme, lines, bounds]);
  const drawing = useRef<Drawing>({ lines, unit, bounds });
  drawing.current = { lines, unit, bounds };
  // biome-ignore lint/correctness/useExhaustiveDependencies: `key` stands for the lines, the bounds and the theme
  useEffect(() => {
    const element = host.current as HTMLDivElement;
    const made = new uPlot(options(drawing.current, element, onCursor), undefined, element);
    plot.current = made;
    draw(made, latest.current.data, latest.current.shown);
    const resized = new ResizeObserver(() =>
      made.setSize({ width: element.clientWidth, height: element.clientHeight }),
    );
    resized.observe(element);
    return () => {
      resized.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [key, onCursor]);
  useEffect(() => {
    if (plot.current) draw(plot.current, data, shown);
  }, [data, shown]);
  return { host, plot };
}

function draw(plot: uPlot, data: Columns, [min, max]: readonly [number, number]): void {
  const dense = data[0].length > (DENSE * plot.bbox.width) / devicePixelRatio;
  for (const line of plot.series.slice(1)) line.width = dense ? 1 : LINE_WIDTH;
  plot.batch(() => {
    plot.setData(data as uPlot.AlignedData, false);
    plot.setScale("x", { min, max });
  });
}

/** Move the cursor of a plot to a point, or away with null. */
function point(plot: uPlot, index: number | null): void {
  const x = index === null ? undefined : plot.data[0][index];
  plot.setCursor(
    x === undefined
      ? { left: -10, top: -10 }
      : { left: plot.valToPos(x, "x"), top: plot.over.clientHeight / 2 },
  );
}

export function TimeChart(props: TimeChartProps) {
  const { title, note, lines, data, unit } = props;
  const [cursor, setCursor] = useState<number | null>(null);
  const { host, plot } = usePlot(props, setCursor);
  const id = useId();
  const xs = data[0];
  const at = cursor !== null && cursor < xs.length ? cursor : null;

  function onKeyDown(event: React.KeyboardEvent): void {
    const last = xs.length - 1;
    const from = at ?? last + 1;
    const step = event.shiftKey ? 10 : 1;
    const targets: Record<string, number | null> = {
      ArrowLeft: Math.max(0, from - step),
      ArrowRight: Math.min(last, from + step),
      Home: 0,
      End: last,
      Escape: null,
    };
    const target = targets[event.key];
    if (target === undefined || !plot.current || last < 0) return;
    event.preventDefault();
    point(plot.current, target);
  }

  return (
    <figure className="chart" aria-labelledby={id}>
      <figcaption className="chart-head">
        <h3 id={id}>{title}</h3>
        <span className="muted">{note}</span>
        <ChartMoment at={at === null ? null : (xs[at] as number)} />
      </figcaption>
      <div
        ref={host}
        className="chart-plot"
        role="group"
        tabIndex={0}
        aria-label={`${title}, chart. Arrow keys move along the points.`}
        onKeyDown={onKeyDown}
      />
      <Legend lines={lines} data={data} at={at} unit={unit} label={title} />
    </figure>
  );
}

function ChartMoment({ at }: { at: number | null }) {
  if (at === null) return <span className="chart-moment muted">Latest values</span>;
  return (
    <span className="chart-moment" aria-live="polite">
      <Time at={at * 1000} withUtc />
    </span>
  );
}

interface LegendProps {
  readonly lines: readonly Line[];
  readonly data: Columns;
  readonly at: number | null;
  readonly unit: Unit;
  readonly label: string;
}

function Legend({ lines, data, at, unit, label }: LegendProps) {
  const ranges = useMemo(() => lines.map((_, index) => extremes(data[index + 1] ?? [])), [lines, data]);
  const text = format.together(ranges.flat(), unit);
  return (
    <table className="legend" aria-label={`${label} by meter`}>
      <thead>
        <tr>
          <th scope="col">Meter</th>
          <th scope="col">{at === null ? "Latest" : "There"}</th>
          <th scope="col">Least</th>
          <th scope="col">Most</th>
        </tr>
      </thead>
      <tbody>
        {lines.map((line, index) => (
          <tr key={line.id}>
            <th scope="row">
              <Swatch line={line} />
              {line.label}
            </th>
            <td>{text(readingAt(data[0], data[index + 1] ?? [], at))}</td>
            <td>{text(ranges[index]?.[0])}</td>
            <td>{text(ranges[index]?.[1])}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

export function Swatch({ line }: { line: Line }) {
  return (
    <svg className="swatch" viewBox="0 0 24 8" aria-hidden="true">
      <path d="M1 4h22" style={{ stroke: `var(${line.color})` }} strokeDasharray={line.dash?.join(" ")} />
    </svg>
  );
}

function extremes(values: ArrayLike<number | null | undefined>): [number | null, number | null] {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (let index = 0; index < values.length; index++) {
    const value = values[index];
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [null, null];
}
