/**
 * Devices in groups: by their site in a fleet, or by a part of their ids, such as the site-a of
 * site-a/gate-1 or of site-a-gate-1.
 */

import { STATES } from "./order";
import { type Summary, sumOfKnown } from "./summary";

/**
 * Which part of an id names its group: where ids are split, and the first and the last of the
 * parts, counted from 1.
 */
export interface PartOfId {
  readonly separator: string;
  readonly first: number;
  readonly last: number;
}

export const BY_SITE = "site";

export type Grouping = PartOfId | typeof BY_SITE;

export interface Group {
  /** Null for the devices without a site, or without that part in their ids. */
  readonly name: string | null;
  readonly rows: readonly Summary[];
  readonly state: Summary["state"];
}

/** The name of an id's group; null if the id has no such part. */
export function groupName(id: string, { separator, first, last }: PartOfId): string | null {
  const parts = id.split(separator);
  if (parts.length < last) return null;
  return parts.slice(first - 1, last).join(separator);
}

/** Rows in groups, which come in the order of their first rows; those without a group come last. */
export function inGroups(rows: readonly Summary[], grouping: Grouping): Group[] {
  const found = new Map<string | null, Summary[]>();
  for (const row of rows) {
    const name = grouping === BY_SITE ? row.site : groupName(row.id, grouping);
    const others = found.get(name);
    if (others) others.push(row);
    else found.set(name, [row]);
  }
  const groups = [...found].map(([name, its]) => ({ name, rows: its, state: worstState(its) }));
  return groups.sort((a, b) => Number(a.name === null) - Number(b.name === null));
}

function worstState(rows: readonly Summary[]): Summary["state"] {
  const states = new Set(rows.map(({ state }) => state));
  return STATES.find((state) => states.has(state)) ?? "unknown";
}

/** A sum over the live devices of a group, by the same rule as the totals of the page. */
export function groupSum({ rows }: Group, key: "consumption" | "dayWh" | "solar" | "grid") {
  return sumOfKnown(rows.filter(({ stale }) => !stale).map((row) => row[key]));
}

const SEPARATORS = ["/", ".", ":", "_", "-"];
const MOST_PARTS = 4;

/** A grouping that these ids allow, with the names of its groups. */
export interface Offer {
  readonly grouping: PartOfId;
  readonly names: readonly string[];
}

/**
 * The groupings worth offering: those that make more than one group, and fewer than there are
 * devices.
 */
export function offers(ids: readonly string[]): Offer[] {
  const kept = new Map<string, Offer>(); // by the division of the ids
  for (const grouping of candidates(ids)) {
    const names = ids.map((id) => groupName(id, grouping));
    const different = [...new Set(names)];
    if (different.length < 2 || different.length === ids.length) continue;
    const places = new Map(different.map((name, place) => [name, place]));
    const together = names.map((name) => places.get(name)).join();
    // Of two groupings with the same division, site-a says more than a, and no less than
    // site-a-gate.
    const before = kept.get(together)?.grouping;
    if (before && !(before.first > 1 && grouping.first === 1)) continue;
    kept.set(together, { grouping, names: different.filter((name) => name !== null).sort() });
  }
  return [...kept.values()];
}

/** One part of the ids, or several from the first on, at each separator that they have. */
function candidates(ids: readonly string[]): PartOfId[] {
  const found: PartOfId[] = [];
  for (const separator of SEPARATORS) {
    const parts = ids.reduce((most, id) => Math.max(most, id.split(separator).length), 1);
    if (parts === 1) continue;
    for (let last = 1; last <= Math.min(parts, MOST_PARTS); last++) {
      found.push({ separator, first: last, last });
      if (last > 1) found.push({ separator, first: 1, last });
    }
  }
  return found;
}

export const isSame = (a: Grouping | null, b: Grouping | null): boolean => keyOf(a) === keyOf(b);

/** A text that identifies a grouping. */
export function keyOf(grouping: Grouping | null): string {
  if (!grouping) return "";
  if (grouping === BY_SITE) return BY_SITE;
  const { separator, first, last } = grouping;
  return first === last ? `${separator}${first}` : `${separator}${first}-${last}`;
}

/**
 * The grouping in the query of an address: ?by=site, ?split=-&part=1 or ?split=-&part=1-2; null if
 * there is none.
 */
export function groupingOf(query: string): Grouping | null {
  const parameters = new URLSearchParams(query);
  if (parameters.get("by") === BY_SITE) return BY_SITE;
  const separator = parameters.get("split") ?? "";
  const [, from, to] = /^([1-9])(?:-([1-9]))?$/.exec(parameters.get("part") ?? "") ?? [];
  if (separator === "" || from === undefined) return null;
  const [first, last] = [Number(from), Number(to ?? from)];
  return first <= last ? { separator, first, last } : null;
}

/** The query of an address with this grouping in place of the present one; all else stays. */
export function queryWith(query: string, grouping: Grouping | null): string {
  const parameters = new URLSearchParams(query);
  parameters.delete("by");
  parameters.delete("split");
  parameters.delete("part");
  if (grouping === BY_SITE) parameters.set("by", BY_SITE);
  else if (grouping) {
    const { separator, first, last } = grouping;
    parameters.set("split", separator);
    parameters.set("part", first === last ? String(first) : `${first}-${last}`);
  }
  const text = parameters.toString();
  return text && `?${text}`;
}
