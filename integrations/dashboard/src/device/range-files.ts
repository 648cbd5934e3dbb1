/** What a device's meters read in a span of time, as rows for files. */

import type {
  PowerClient,
  PowerMeter,
  PowerReading,
  PowerStatistics,
} from "@blackroad/power-client";
import { type Cell, csv } from "./csv";
import { meterName } from "./lines";

/** The most rows of a file: spreadsheets take few more. */
export const MOST_ROWS = 200_000;

export type Content = "readings" | "hours";

interface Rows {
  readonly head: readonly string[];
  readonly rows: readonly (readonly Cell[])[];
  /** Whether the span has more rows. */
  readonly cut: boolean;
}

const READING_HEAD = [
  "time_utc",
  "meter_id",
  "meter",
  "type",
  "voltage_v",
  "current_a",
  "wattage_w",
  "charge_pct",
];

const HOUR_HEAD = [
  "hour_utc",
  "meter_id",
  "meter",
  "type",
  "reading_count",
  "avg_wattage_w",
  "min_wattage_w",
  "max_wattage_w",
  "min_charge_pct",
  "max_charge_pct",
  "energy_out_wh",
  "energy_in_wh",
];

type Named = readonly [id: string, name: string, type: string];

const named = (meter: PowerMeter): Named => [meter.id, meterName(meter), meter.type];

const readingRow = (reading: PowerReading, about: Named): Cell[] => [
  reading.timestamp,
  ...about,
  reading.voltage,
  reading.current_draw,
  reading.wattage,
  reading.charge_pct,
];

const hourRow = (row: PowerStatistics, about: Named): Cell[] => [
  row.start,
  ...about,
  row.reading_count,
  row.avg_wattage,
  row.min_wattage,
  row.max_wattage,
  row.min_charge_pct,
  row.max_charge_pct,
  row.energy_out_wh,
  row.energy_in_wh,
];

type Ends = readonly [from: number, to: number];

/** Every reading of a span, as it was logged, meter by meter. */
async function readingRows(
  client: PowerClient,
  meters: readonly PowerMeter[],
  [from, to]: Ends,
): Promise<Rows> {
  const rows: Cell[][] = [];
  for (const meter of meters) {
    const pages = client.history(meter.id, {
      since: new Date(from),
      until: new Date(to),
      pageSize: 10_000,
    });
    for await (const page of pages) {
      rows.push(...page.map((reading) => readingRow(reading, named(meter))));
      if (rows.length > MOST_ROWS)
        return { head: READING_HEAD, rows: rows.slice(0, MOST_ROWS), cut: true };
    }
  }
  return { head: READING_HEAD, rows, cut: false };
}

/** Every hour that begins in a span, meter by meter. */
async function hourRows(
  client: PowerClient,
  meters: readonly PowerMeter[],
  [from, to]: Ends,
): Promise<Rows> {
  const rows: Cell[][] = [];
  const window = { since: new Date(from), until: new Date(to), bucket: "hour" } as const;
  for (const meter of meters) {
    const hours = await client.statistics(meter.id, window);
    // The first hour may begin before the span.
    const inside = hours.filter(({ start }) => Date.parse(start) >= from);
    rows.push(...inside.map((row) => hourRow(row, named(meter))));
  }
  return { head: HOUR_HEAD, rows: rows.slice(0, MOST_ROWS), cut: rows.length > MOST_ROWS };
}

/** The rows of a span. */
export function rowsOf(
  client: PowerClient,
  content: Content,
  meters: readonly PowerMeter[],
  ends: Ends,
) {
  return content === "readings"
    ? readingRows(client, meters, ends)
    : hourRows(client, meters, ends);
}

/** Rows as a file's text. */
export function fileText(
  { head, rows }: Pick<Rows, "head" | "rows">,
  kind: "csv" | "json",
): string {
  if (kind === "csv") return csv([head, ...rows]);
  const objects = rows.map((row) =>
    Object.fromEntries(head.map((name, index) => [name, row[index]])),
  );
  return `${JSON.stringify(objects, null, 1)}\n`;
}
