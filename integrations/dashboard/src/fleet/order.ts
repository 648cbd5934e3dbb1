/** Which devices the fleet shows, and in which order. */

import type { DeviceState, Summary } from "./summary";

export type SortKey =
  | "name"
  | "state"
  | "total"
  | "solar"
  | "load"
  | "net"
  | "charge"
  | "runtime"
  | "lastSeen"
  | "alerts";

export interface Sort {
  readonly key: SortKey;
  readonly descending: boolean;
}

export const FILTERS = {
  all: "All devices",
  alerts: "With alerts",
  live: "Live",
  stale: "Stale or silent",
  draining: "Draining",
} as const;

export type Filter = keyof typeof FILTERS;

const STATE_RANK: Record<DeviceState, number> = {
  critical: 0,
  low: 1,
  stale: 2,
  silent: 3,
  unknown: 4,
  normal: 5,
  charging: 6,
};

const COLLATOR = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/** How pressing the alerts are: one critical weighs more than any number of warnings. */
const weight = (row: Summary): number =>
  row.alerts.reduce((sum, alert) => sum + (alert.severity === "critical" ? 1000 : 1), 0);

function value(row: Summary, key: Exclude<SortKey, "name">): number | null {
  if (key === "state") return STATE_RANK[row.state];
  return key === "alerts" ? weight(row) : row[key];
}

function kept(row: Summary, filter: Filter): boolean {
  switch (filter) {
    case "alerts":
      return row.alerts.length > 0;
    case "live":
      return !row.stale;
    case "stale":
      return row.stale;
    case "draining":
      return !row.stale && row.net !== null && row.net < 0;
    default:
      return true;
  }
}

/** The rows whose name or id holds every word of the search, and that the filter keeps. */
export function select(rows: readonly Summary[], search: string, filter: Filter): Summary[] {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  return rows.filter((row) => {
    const text = `${row.name} ${row.id}`.toLowerCase();
    return kept(row, filter) && words.every((word) => text.includes(word));
  });
}

/** Devices by name, as people count: Node 2 before Node 10. */
export function byName<Device extends { readonly id: string; readonly name: string }>(
  devices: readonly Device[],
): Device[] {
  return [...devices].sort((a, b) => COLLATOR.compare(a.name, b.name) || COLLATOR.compare(a.id, b.id));
}

/** Rows that come by name in the order asked for; what is not known comes last either way, and equals stay by name. */
export function order(rows: readonly Summary[], { key, descending }: Sort): readonly Summary[] {
  if (key === "name") return descending ? [...rows].reverse() : rows;
  const sign = descending ? -1 : 1;
  return [...rows].sort((a, b) => {
    const [x, y] = [value(a, key), value(b, key)];
    return x === null || y === null ? Number(x === null) - Number(y === null) : sign * (x - y);
  });
}
