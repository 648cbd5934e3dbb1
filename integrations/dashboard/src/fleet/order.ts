/** Which devices the fleet shows, and in which order. */

import type { Summary } from "./summary";

export type SortKey =
  | "need"
  | "name"
  | "state"
  | "charge"
  | "runtime"
  | "consumption"
  | "dayWh"
  | "solar"
  | "grid"
  | "lastSeen";

export interface Sort {
  readonly key: SortKey;
  readonly descending: boolean;
}

const isCritical = (row: Summary): boolean => row.powerState === "critical";
const isLow = (row: Summary): boolean => row.powerState === "low";
const isDraining = (row: Summary): boolean => !row.stale && row.battery !== null && row.battery > 0;

/** Whether a device has an alert that needs action; a note does not. */
export const hasAlert = (row: Summary): boolean =>
  row.alerts.some(({ severity }) => severity !== "note");

/**
 * The filters. A device may match several: one that fell silent with a critical battery is stale
 * and critical.
 */
export const FILTERS = {
  all: { title: "All", keeps: () => true },
  alerts: { title: "With alerts", keeps: hasAlert },
  critical: { title: "Critical", keeps: isCritical },
  low: { title: "Low", keeps: isLow },
  draining: { title: "Draining", keeps: isDraining },
  charging: {
    title: "Charging",
    keeps: (row) => !row.stale && row.battery !== null && row.battery < 0,
  },
  stale: { title: "Stale", keeps: (row) => row.state === "stale" },
  silent: { title: "No readings", keeps: (row) => row.state === "silent" },
  live: { title: "Live", keeps: (row) => !row.stale },
} as const satisfies Record<string, { title: string; keeps: (row: Summary) => boolean }>;

export type Filter = keyof typeof FILTERS;

const COLLATOR = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/** The rows whose name or id holds every word of the search. */
export function search(rows: readonly Summary[], text: string): readonly Summary[] {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return rows;
  return rows.filter((row) => {
    const where = `${row.name} ${row.id}`.toLowerCase();
    return words.every((word) => where.includes(word));
  });
}

/** Devices by name, with numbers in order: Node 2 before Node 10. */
export function byName<Device extends { readonly id: string; readonly name: string }>(
  devices: readonly Device[],
): Device[] {
  return [...devices].sort(
    (a, b) => COLLATOR.compare(a.name, b.name) || COLLATOR.compare(a.id, b.id),
  );
}

// A battery that lasts less than a day may be empty before the sun charges it again.
const SHORT_RUNTIME_HOURS = 24;

/**
 * The most urgent first; within one level, the lower figure of `by` first.
 */
const NEEDS: readonly {
  is: (row: Summary) => boolean;
  by?: "leastCharge" | "runtime" | "lastSeen";
}[] = [
  { is: isCritical, by: "leastCharge" },
  { is: isLow, by: "leastCharge" },
  // Below a threshold of its own.
  { is: (row) => row.alerts.some(({ severity }) => severity === "critical") },
  { is: (row) => row.runtime !== null && row.runtime < SHORT_RUNTIME_HOURS, by: "runtime" },
  { is: (row) => row.state === "stale", by: "lastSeen" },
  { is: (row) => row.state === "silent" },
  { is: () => true },
];

const needOf = (row: Summary): number => NEEDS.findIndex(({ is }) => is(row));

function compareNeeds(a: Summary, b: Summary): number {
  const need = needOf(a);
  const difference = need - needOf(b) || Number(a.stale) - Number(b.stale);
  const by = NEEDS[need]?.by;
  if (difference !== 0 || by === undefined) return difference;
  return compareKnown(a[by], b[by]);
}

/** The lower value first, or last if the sign is -1; unknown values come last in both cases. */
function compareKnown(a: number | null, b: number | null, sign: 1 | -1 = 1): number {
  if (a === null || b === null) return Number(a === null) - Number(b === null);
  return sign * (a - b);
}

/** From the worst to the best. */
export const STATES: readonly Summary["state"][] = [
  "critical",
  "low",
  "stale",
  "silent",
  "unknown",
  "normal",
  "charging",
  "full",
  "producing",
];

function value(row: Summary, key: Exclude<SortKey, "name" | "need">): number | null {
  return key === "state" ? STATES.indexOf(row.state) : row[key];
}

/**
 * Sorts rows that are in order of name; unknown values come last in both directions, and equal ones
 * stay in order of name.
 */
export function order(rows: readonly Summary[], { key, descending }: Sort): readonly Summary[] {
  if (key === "name") return descending ? [...rows].reverse() : rows;
  const sign = descending ? -1 : 1;
  if (key === "need") return [...rows].sort((a, b) => sign * compareNeeds(a, b));
  return [...rows].sort((a, b) => compareKnown(value(a, key), value(b, key), sign));
}
