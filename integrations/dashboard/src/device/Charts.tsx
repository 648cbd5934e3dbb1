/**
 * A device's history over a span of time, which the user can choose, move, zoom into and save as a
 * file.
 */

import type { PowerMeter } from "@blackroad/power-client";
import { useState } from "react";
import * as format from "../format";
import { type HistoryState, useHistory } from "../live/history";
import { detailOf, endsOf, type Span } from "../live/span";
import { errorText, Failure, Loading } from "../ui/states";
import type { Line } from "./lines";
import { EnergyCard, Plots } from "./Plots";
import { RangeFiles } from "./RangeFiles";
import { SpanPicker } from "./SpanPicker";
import type { Zoom } from "./TimeChart";

interface ChartsProps {
  readonly deviceId: string;
  readonly meters: readonly PowerMeter[];
  readonly lines: ReadonlyMap<string, Line>;
  /** The newest reading, in milliseconds; null before the first. */
  readonly lastSeen: number | null;
  /** Whether that is after now; a span that follows the present then ends with it. */
  readonly ahead: boolean;
  readonly now: number;
}

const FIRST: Span = { kind: "last", range: "24h" };
const LEAST_ZOOM_SECONDS = 10;

/** The span that is shown, and the earlier ones, to which a double click returns. */
function useSpan() {
  const [spans, setSpans] = useState<readonly Span[]>([FIRST]);
  const zoom: Zoom = {
    into: (from, to) => {
      if (to - from < LEAST_ZOOM_SECONDS) return;
      setSpans((before) => [...before, { kind: "between", from: 1000 * from, to: 1000 * to }]);
    },
    back: () => setSpans((before) => (before.length > 1 ? before.slice(0, -1) : before)),
  };
  return {
    span: spans.at(-1) as Span,
    setSpan: (span: Span) => setSpans([span]),
    zoom,
    isZoomed: spans.length > 1,
  };
}

const DETAILS = {
  readings: "every peak is kept",
  hours: "hourly figures",
  days: "daily figures",
} as const;

export function Charts({ deviceId, meters, lines, lastSeen, ahead, now }: ChartsProps) {
  const { span, setSpan, zoom, isZoomed } = useSpan();
  const end = ahead && lastSeen !== null ? lastSeen : now;
  const meterIds = meters.map((meter) => meter.id);
  const history = useHistory(deviceId, meterIds, span);
  return (
    <section className="charts" aria-labelledby="history">
      <div className="section-head">
        <h2 id="history">History</h2>
        <SpanPicker span={span} onSpan={setSpan} now={end} />
        {isZoomed && (
          <button type="button" className="button" onClick={zoom.back}>
            Zoom out
          </button>
        )}
        <span className="muted">
          {DETAILS[detailOf(span)]} · times in {format.zone(now)}
        </span>
      </div>
      {ahead && (
        <p className="notice">
          The clock of this device is ahead: its readings are dated up to {format.localTime(end)},
          and the charts end there.
        </p>
      )}
      {history.phase === "loading" && <Loading what="history" />}
      {history.phase === "failed" && (
        <Failure
          what="The history could not be loaded"
          error={history.error}
          onRetry={history.refetch}
        />
      )}
      {history.phase === "ready" && history.error !== null && (
        <p className="problem" role="status">
          Not up to date: {errorText(history.error)}
        </p>
      )}
      {history.phase === "ready" && (
        <div className="chart-grid live">
          {isEmpty(history, endsOf(span, end)) ? (
            <Nothing lastSeen={lastSeen} span={span} onSpan={setSpan} />
          ) : (
            <Plots
              history={history}
              span={span}
              meters={meters}
              lines={lines}
              zoom={zoom}
              now={end}
            />
          )}
          <div className="card energy-card">
            <EnergyCard history={history} span={span} meters={meters} now={end} />
          </div>
          <RangeFiles deviceId={deviceId} meters={meters} span={span} now={end} />
        </div>
      )}
    </section>
  );
}

function isEmpty(
  { readings, statistics }: HistoryState,
  [from, to]: readonly [number, number],
): boolean {
  if ([...readings.values()].some((rows) => rows.length > 0)) return false;
  const isIn = (start: string) => Date.parse(start) >= from && Date.parse(start) < to;
  return ![...statistics.values()].some((rows) => rows.some(({ start }) => isIn(start)));
}

interface NothingProps {
  readonly lastSeen: number | null;
  readonly span: Span;
  readonly onSpan: (span: Span) => void;
}

const DAY_MS = 86_400_000;

/**
 * Says that the range is empty, and leads to the newest readings: the device may be silent, or its
 * clock may be years off.
 */
function Nothing({ lastSeen, span, onSpan }: NothingProps) {
  const isElsewhere =
    lastSeen !== null && (span.kind === "last" || lastSeen < span.from || lastSeen >= span.to);
  return (
    <div className="card state chart-none">
      <p>No readings in this range.</p>
      {isElsewhere && (
        <>
          <p>Its newest reading is from {format.localTime(lastSeen)}.</p>
          <button
            type="button"
            className="button"
            onClick={() =>
              onSpan({ kind: "between", from: Math.max(0, lastSeen - DAY_MS), to: lastSeen + 1000 })
            }
          >
            Show its last day of readings
          </button>
        </>
      )}
    </div>
  );
}
