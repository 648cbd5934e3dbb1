/** Energy out (up) and in (down) by local day, each meter in the colour of its lines; the same as a table below. */

import type { PowerStatistics } from "@blackroad/power-client";
import { useId } from "react";
import * as format from "../format";
import { type EnergyDay, energyDays, type Share, sum } from "./energy";
import type { Line } from "./TimeChart";
import { Swatch } from "./TimeChart";

interface EnergyBarsProps {
  readonly statistics: ReadonlyMap<string, readonly PowerStatistics[]>;
  readonly lines: ReadonlyMap<string, Line>;
  readonly days: number;
  readonly now: number;
}

const [WIDTH, HEIGHT] = [700, 180];

export function EnergyBars({ statistics, lines, days, now }: EnergyBarsProps) {
  const id = useId();
  const rows = energyDays(statistics, days, now);
  const total = (side: "in" | "out") => rows.reduce((all, day) => all + sum(day, side), 0);
  const summary = `${format.wattHours(total("out"))} out, ${format.wattHours(total("in"))} in`;
  return (
    <figure className="chart" aria-labelledby={id}>
      <figcaption className="chart-head">
        <h3 id={id}>Energy by day</h3>
        <span className="muted">
          {days} days in {format.zone(now)}: {summary}
        </span>
      </figcaption>
      <Bars days={rows} lines={lines} label={`Energy by day: ${summary}`} />
      <ul className="key">
        {[...lines].map(([meterId, line]) => (
          <li key={meterId}>
            <Swatch line={line} /> {line.label}
          </li>
        ))}
      </ul>
      <details>
        <summary>As a table</summary>
        <EnergyTable days={rows} lines={lines} />
      </details>
    </figure>
  );
}

interface BarsProps {
  readonly days: readonly EnergyDay[];
  readonly lines: ReadonlyMap<string, Line>;
  readonly label: string;
}

function Bars({ days, lines, label }: BarsProps) {
  const most = Math.max(...days.map((day) => sum(day, "out")), 0);
  const least = Math.max(...days.map((day) => sum(day, "in")), 0);
  const scale = HEIGHT / Math.max(most + least, 1e-9);
  const step = WIDTH / days.length;
  return (
    <div className="bars">
      <span className="bars-most muted">{format.wattHours(most)} out</span>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={label}>
        {days.map((day, index) => (
          <g key={day.start}>
            <title>{dayText(day, lines)}</title>
            <rect className="bars-day" x={index * step} y={0} width={step} height={HEIGHT} />
            {stack(day, lines, scale, most * scale).map((bar) => (
              <rect
                key={bar.key}
                x={(index + 0.16) * step}
                width={step * 0.68}
                y={bar.y}
                height={bar.height}
                style={{ fill: `var(${bar.color})`, opacity: bar.side === "in" ? 0.6 : 1 }}
              />
            ))}
          </g>
        ))}
        <line className="bars-zero" x1={0} x2={WIDTH} y1={most * scale} y2={most * scale} />
      </svg>
      <span className="bars-most muted">{least > 0 ? `${format.wattHours(least)} in` : ""}</span>
      <div className="bars-days muted" aria-hidden="true">
        {days.map((day, index) => (
          <span key={day.start} className="bars-day-name">
            {labelled(index, days.length) ? format.shortDay(day.start) : ""}
          </span>
        ))}
      </div>
    </div>
  );
}

/** At most seven of the days have room for a label; the last one always has. */
const labelled = (index: number, count: number): boolean => (count - 1 - index) % Math.ceil(count / 7) === 0;

interface Bar {
  readonly key: string;
  readonly side: "in" | "out";
  readonly color: string;
  readonly y: number;
  readonly height: number;
}

/** A day's bars in the order of the lines: out goes up from zero, in goes down. */
function stack(day: EnergyDay, lines: ReadonlyMap<string, Line>, scale: number, zero: number): Bar[] {
  const bars: Bar[] = [];
  let [up, down] = [zero, zero];
  for (const [meterId, { color }] of lines) {
    const share = day.shares.find((one) => one.meterId === meterId);
    if (!share) continue;
    up -= share.out * scale;
    bars.push({ key: `${meterId} out`, side: "out", color, y: up, height: share.out * scale });
    bars.push({ key: `${meterId} in`, side: "in", color, y: down, height: share.in * scale });
    down += share.in * scale;
  }
  return bars;
}

function dayText(day: EnergyDay, lines: ReadonlyMap<string, Line>): string {
  const text = ({ meterId, out, in: taken }: Share) =>
    `${format.apart(lines.get(meterId)?.label ?? meterId)}: ${format.wattHours(out)} out, ${format.wattHours(taken)} in`;
  return [format.localDay(day.start), ...day.shares.map(text)].join("\n");
}

function EnergyTable({ days, lines }: Omit<BarsProps, "label">) {
  return (
    <div className="scroll-x" role="region" aria-label="Energy by day, table" tabIndex={0}>
      <table className="plain">
        <thead>
          <tr>
            <th scope="col">Day</th>
            {[...lines].map(([meterId, line]) => (
              <th scope="col" key={meterId}>
                {format.apart(line.label)}, out / in
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {[...days].reverse().map((day) => (
            <tr key={day.start}>
              <th scope="row">{format.localDay(day.start)}</th>
              {[...lines.keys()].map((meterId) => {
                const share = day.shares.find((one) => one.meterId === meterId);
                return (
                  <td key={meterId}>
                    {format.wattHours(share?.out ?? 0)} / {format.wattHours(share?.in ?? 0)}
                  </td>
                );
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
