/** A day as a line without axes; its lowest and highest watts are in its label. */

import * as format from "../format";
import type { Spark } from "../live/sparklines";

const [WIDTH, HEIGHT, MARGIN] = [72, 24, 2];

/**
 * The line as a path, with gaps where the watts are not known; an hour between two gaps is a point.
 */
export function sparkPath(values: Spark, width = WIDTH, height = HEIGHT): string {
  const known = values.filter((value) => value !== null);
  const most = Math.max(0, ...known);
  const least = Math.min(0, ...known);
  const x = (index: number) => ((index + 0.5) * width) / values.length;
  const y = (value: number) => {
    const share = most > least ? (value - least) / (most - least) : 0;
    return height - MARGIN - share * (height - 2 * MARGIN);
  };
  let path = "";
  let isDrawing = false;
  values.forEach((value, index) => {
    if (value === null) {
      isDrawing = false;
      return;
    }
    const point = `${x(index).toFixed(1)} ${y(value).toFixed(1)}`;
    path += isDrawing ? `L${point}` : `M${point}h0`;
    isDrawing = true;
  });
  return path;
}

export function Sparkline({ values }: { values: Spark | undefined }) {
  const known = (values ?? []).filter((value) => value !== null);
  if (!values || known.length === 0) return <span className="spark" />;
  const range = `${format.watts(Math.min(...known))} to ${format.watts(Math.max(...known))}`;
  return (
    <svg
      className="spark"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={`by hour ${range}`}
    >
      <path d={sparkPath(values)} />
    </svg>
  );
}
