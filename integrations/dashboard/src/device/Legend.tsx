/**
 * A chart's legend: the name of each line, its value at the cursor, its lowest and its highest. A
 * click on a name hides the line.
 */

import { useMemo } from "react";
import type { Unit } from "../format";
import * as format from "../format";
import { type Columns, readingAt } from "./chart-data";
import type { Line } from "./lines";

interface LegendProps {
  readonly lines: readonly Line[];
  readonly data: Columns;
  /** Whether each line has columns of its own for its lowest and highest values. */
  readonly bands: boolean;
  readonly at: number | null;
  readonly unit: Unit;
  readonly label: string;
  readonly hidden: ReadonlySet<string>;
  readonly onToggle: (lineId: string) => void;
}

type Values = ArrayLike<number | null | undefined>;

const NONE: Values = [];

export function Legend({ lines, data, bands, at, unit, label, hidden, onToggle }: LegendProps) {
  const ranges = useMemo(
    () =>
      lines.map((_, index): [number | null, number | null] => {
        const column = (part: number): Values => data[1 + index * (bands ? 3 : 1) + part] ?? NONE;
        return bands ? [extremes(column(1))[0], extremes(column(2))[1]] : extremes(column(0));
      }),
    [lines, data, bands],
  );
  const text = format.together(ranges.flat(), unit);
  return (
    <table className="legend" aria-label={`${label} by meter`}>
      <thead>
        <tr>
          <th scope="col">Meter</th>
          <th scope="col">{at === null ? "Latest" : "At cursor"}</th>
          <th scope="col">Lowest</th>
          <th scope="col">Highest</th>
        </tr>
      </thead>
      <tbody>
        {lines.map((line, index) => (
          <tr key={line.id} className={hidden.has(line.id) ? "is-hidden" : undefined}>
            <th scope="row">
              <button
                type="button"
                aria-pressed={!hidden.has(line.id)}
                title={hidden.has(line.id) ? "Show this line" : "Hide this line"}
                onClick={() => onToggle(line.id)}
              >
                <Swatch line={line} />
                {line.label}
              </button>
            </th>
            <td>{text(readingAt(data[0], data[1 + index * (bands ? 3 : 1)] ?? NONE, at))}</td>
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
      <path
        d="M1 4h22"
        style={{ stroke: `var(${line.color})` }}
        strokeDasharray={line.dash?.join(" ")}
      />
    </svg>
  );
}

function extremes(values: Values): [number | null, number | null] {
  let [low, high] = [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY];
  for (let index = 0; index < values.length; index++) {
    const value = values[index];
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [null, null];
}
