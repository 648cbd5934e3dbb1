/**
 * The dashboard's own chart, 900 pixels wide, with three lines of so many points that all move on
 * with every frame.
 */

import { useEffect, useMemo, useState } from "react";
import { createRoot } from "react-dom/client";
import "uplot/dist/uPlot.min.css";
import type { Line } from "../../src/device/lines";
import { TimeChart } from "../../src/device/TimeChart";
import "../../src/style/theme.css";
import "../../src/style/base.css";
import "../../src/style/charts.css";

const POINTS = Number(new URLSearchParams(location.search).get("points"));
const [WARM_UP, FRAMES] = [30, 240];

const xs = Float64Array.from({ length: POINTS + WARM_UP + FRAMES }, (_, index) => 1.79e9 + index);
const ys = [3, 7, 13].map((period) =>
  xs.map((x) => 10 * period + 8 * Math.sin(x / period / 60) + Math.sin(x * period)),
);
const LINES: Line[] = ["solar", "battery", "main"].map((type) => ({
  id: type,
  label: type,
  color: `--series-${type}-1`,
}));

declare global {
  interface Window {
    /** Milliseconds between frames, once all are drawn. */
    frameTimes?: number[];
  }
}

function Bench() {
  const [begin, setBegin] = useState(0);
  useEffect(() => {
    const moments: number[] = [];
    const step = (moment: number) => {
      moments.push(moment);
      if (moments.length > WARM_UP + FRAMES) {
        window.frameTimes = moments
          .slice(WARM_UP)
          .flatMap((at, index, all) => (index ? [at - (all[index - 1] ?? at)] : []));
      } else {
        setBegin(moments.length - 1);
        requestAnimationFrame(step);
      }
    };
    requestAnimationFrame(step);
  }, []);
  const data = useMemo(
    () =>
      [
        xs.subarray(begin, begin + POINTS),
        ...ys.map((line) => line.subarray(begin, begin + POINTS)),
      ] as const,
    [begin],
  );
  const shown = useMemo(() => [data[0][0] ?? 0, data[0].at(-1) ?? 1] as const, [data]);
  return (
    <main style={{ width: 900 }}>
      <TimeChart title={`${POINTS} points`} lines={LINES} data={data} window={shown} unit="W" />
    </main>
  );
}

createRoot(document.getElementById("root") as HTMLElement).render(<Bench />);
