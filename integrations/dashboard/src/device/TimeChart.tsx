/**
 * Lines over time, drawn by uPlot, with a table as legend, so that keyboard and screen reader get
 * all that a pointer gets. The left and right arrow keys move along the points, Home and End go to
 * the ends, Escape leaves the points. Dragging over a chart, or plus, zooms in; a double click, or
 * minus, goes back.
 */

import { useCallback, useEffect, useId, useRef, useState } from "react";
import uPlot from "uplot";
import * as format from "../format";
import { Time } from "../ui/Time";
import { useTheme } from "../ui/theme";
import { alone, axisTimes, type Columns, limits } from "./chart-data";
import { Legend } from "./Legend";
import type { Line } from "./lines";

export interface TimeChartProps {
  readonly title: string;
  readonly note?: string;
  readonly lines: readonly Line[];
  readonly data: Columns;
  /**
   * Whether a line has three columns: its mean, its lowest and its highest values, with a band
   * between the last two.
   */
  readonly bands?: boolean;
  /** First and last moment shown, in seconds since the epoch. */
  readonly window: readonly [number, number];
  readonly unit: format.Unit;
  /** Bounds that the scale always has, such as 0 and 100 for percent. */
  readonly bounds?: readonly [number | null, number | null];
  readonly zoom?: Zoom;
}

/** Zooms into a part of a chart, and back. */
export interface Zoom {
  /** In seconds since the epoch. */
  readonly into: (from: number, to: number) => void;
  readonly back: () => void;
}

const SYNC = "device";
const LINE_WIDTH = 1.75;
// Points for each pixel: beyond, a thin line shows as much, and is drawn several times as fast.
const DENSE = 8;

interface Drawing {
  readonly lines: readonly Line[];
  readonly unit: format.Unit;
  readonly bands: boolean;
  readonly bounds: TimeChartProps["bounds"];
  readonly hidden: ReadonlySet<string>;
}

interface Hooks {
  readonly onCursor: (index: number | null) => void;
  readonly onZoom: (from: number, to: number) => void;
  readonly onZoomOut: () => void;
}

const LEAST_DRAG = 8; // pixels; less is a click

/** Charts share their cursor and nothing else: a zoom in one of them already applies to all. */
const FOLLOWED = new Set(["mousemove", "mouseenter", "mouseleave"]);

function cursorOptions({ onZoomOut }: Hooks): uPlot.Cursor {
  return {
    // No horizontal line: the same height means nothing in the other charts.
    y: false,
    drag: { x: true, y: false, setScale: false },
    sync: { key: SYNC, filters: { pub: (type) => FOLLOWED.has(type) } },
    points: { size: 7 },
    bind: {
      dblclick: () => () => {
        onZoomOut();
        return null;
      },
    },
  };
}

function selected(plot: uPlot, { onZoom }: Hooks): void {
  const { left, width } = plot.select;
  if (width < LEAST_DRAG) return;
  const [from, to] = [plot.posToVal(left, "x"), plot.posToVal(left + width, "x")];
  plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
  onZoom(from, to);
}

function options(drawing: Drawing, host: HTMLElement, hooks: Hooks): uPlot.Options {
  const { lines, unit, bands, bounds, hidden } = drawing;
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
  const seriesOf = (line: Line) => {
    const show = !hidden.has(line.id);
    const middle = { ...series(line, color(line.color)), show };
    return bands ? [middle, { ...EDGE, show }, { ...EDGE, show }] : [middle];
  };
  return {
    width: host.clientWidth,
    height: host.clientHeight,
    legend: { show: false },
    cursor: cursorOptions(hooks),
    scales: { y: { range: (_, low, high) => limits(low, high, bounds) } },
    axes: [
      { ...axis, values: axisTimes, space: 4.5 * rem, size: 2 * rem },
      { ...axis, values: labels, size: (_, texts) => axisWidth(texts, rem), space: 2.2 * rem },
    ],
    series: [{}, ...lines.flatMap(seriesOf)],
    ...(bands && { bands: lines.map((line, index) => band(color(line.color), index)) }),
    hooks: {
      setCursor: [(plot) => hooks.onCursor(plot.cursor.idx ?? null)],
      setSelect: [(plot) => selected(plot, hooks)],
    },
  };
}

/** Not drawn itself: only the band between two edges is. */
const EDGE: uPlot.Series = { width: 0, points: { show: false } };
const BAND_OPACITY = "38"; // of 256, in hexadecimal

function band(color: string, index: number): uPlot.Band {
  const [least, most] = [3 * index + 2, 3 * index + 3];
  return { series: [most, least], fill: color + BAND_OPACITY };
}

function series(line: Line, stroke: string): uPlot.Series {
  return {
    label: line.label,
    stroke,
    width: LINE_WIDTH,
    points: {
      show: true,
      size: 5,
      fill: stroke,
      filter: (plot, place) => alone(plot.data[place] ?? []),
    },
    ...(line.dash && { dash: [...line.dash] }),
  };
}

const axisWidth = (texts: string[] | null, rem: number): number =>
  12 + 0.47 * rem * Math.max(4, ...(texts ?? []).map((text) => text.length));

/**
 * The plot inside an element. Other lines or another theme make a new plot; new data goes into the
 * existing one.
 */
function usePlot(props: TimeChartProps, hidden: ReadonlySet<string>, hooks: Hooks) {
  const host = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const theme = useTheme();
  const { lines, data, window: shown, unit, bands = false, bounds } = props;
  const latest = useRef({ data, shown, hooks });
  latest.current = { data, shown, hooks };

  // Compared by value: each render makes a new array of the same lines.
  const key = JSON.stringify([theme, lines, bands, bounds, [...hidden]]);
  const drawing = useRef<Drawing>({ lines, unit, bands, bounds, hidden });
  drawing.current = { lines, unit, bands, bounds, hidden };
  // biome-ignore lint/correctness/useExhaustiveDependencies: `key` has all of these
  useEffect(() => {
    const element = host.current as HTMLDivElement;
    const now: Hooks = {
      onCursor: (index) => latest.current.hooks.onCursor(index),
      onZoom: (from, to) => latest.current.hooks.onZoom(from, to),
      onZoomOut: () => latest.current.hooks.onZoomOut(),
    };
    const made = new uPlot(options(drawing.current, element, now), undefined, element);
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
  }, [key]);
  useEffect(() => {
    if (plot.current) draw(plot.current, data, shown);
  }, [data, shown]);
  return { host, plot };
}

function draw(plot: uPlot, data: Columns, [min, max]: readonly [number, number]): void {
  const dense = data[0].length > (DENSE * plot.bbox.width) / devicePixelRatio;
  for (const line of plot.series.slice(1)) if (line.stroke) line.width = dense ? 1 : LINE_WIDTH;
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

/** The index to which a key moves the cursor; undefined for keys that do something else. */
function keyTarget(
  event: React.KeyboardEvent,
  at: number | null,
  last: number,
): number | null | undefined {
  const from = at ?? last + 1;
  const step = event.shiftKey ? 10 : 1;
  const targets: Record<string, number | null> = {
    ArrowLeft: Math.max(0, from - step),
    ArrowRight: Math.min(last, from + step),
    Home: 0,
    End: last,
    Escape: null,
  };
  return targets[event.key];
}

/** The half of a window around a moment, within it. */
function halfAround([from, to]: readonly [number, number], moment: number): [number, number] {
  const half = (to - from) / 2;
  const begin = Math.min(Math.max(from, moment - half / 2), to - half);
  return [begin, begin + half];
}

/** Which lines are hidden, and a press on one of them. */
function useHidden() {
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set());
  const toggle = useCallback((id: string) => {
    setHidden((before) => {
      const after = new Set(before);
      if (!after.delete(id)) after.add(id);
      return after;
    });
  }, []);
  return { hidden, toggle };
}

export function TimeChart(props: TimeChartProps) {
  const { title, note, lines, data, unit, bands = false, zoom, window: shown } = props;
  const [cursor, setCursor] = useState<number | null>(null);
  const { hidden, toggle } = useHidden();
  const { host, plot } = usePlot(props, hidden, {
    onCursor: setCursor,
    onZoom: (from, to) => zoom?.into(from, to),
    onZoomOut: () => zoom?.back(),
  });
  const id = useId();
  const xs = data[0];
  const at = cursor !== null && cursor < xs.length ? cursor : null;

  function onKeyDown(event: React.KeyboardEvent): void {
    const target = keyTarget(event, at, xs.length - 1);
    if (target !== undefined && plot.current && xs.length > 0) point(plot.current, target);
    else if (event.key === "+" || event.key === "=")
      zoom?.into(
        ...halfAround(shown, at === null ? (shown[0] + shown[1]) / 2 : (xs[at] as number)),
      );
    else if (event.key === "-") zoom?.back();
    else return;
    event.preventDefault();
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
        aria-label={`${title}, chart. Arrow keys move along the points, plus and minus zoom.`}
        onKeyDown={onKeyDown}
      />
      <Legend
        lines={lines}
        data={data}
        bands={bands}
        at={at}
        unit={unit}
        label={title}
        hidden={hidden}
        onToggle={toggle}
      />
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
