/** A report's meters as CSV (RFC 4180): one line for each meter, units in the column names. */

import type { Report } from "@blackroad/power-client";
import { csv } from "./csv";

const COLUMNS = {
  meter_id: "meter_id",
  name: "name",
  type: "type",
  reading_count: "reading_count",
  current_state: "current_state",
  avg_wattage: "avg_wattage_w",
  min_wattage: "min_wattage_w",
  max_wattage: "max_wattage_w",
  min_charge_pct: "min_charge_pct",
  max_charge_pct: "max_charge_pct",
  energy_out_wh: "energy_out_wh",
  energy_in_wh: "energy_in_wh",
  energy_wh: "energy_wh",
} as const;

/** The report as the text of a CSV file. */
export function reportCsv(report: Report): string {
  const head = [
    "device_id",
    "device_name",
    "period_days",
    "generated_at",
    ...Object.values(COLUMNS),
  ];
  const about = [report.device_id, report.device_name, report.period_days, report.generated_at];
  const keys = Object.keys(COLUMNS) as (keyof typeof COLUMNS)[];
  const rows = report.meters.map((meter) => [...about, ...keys.map((key) => meter[key])]);
  return csv([head, ...rows]);
}
