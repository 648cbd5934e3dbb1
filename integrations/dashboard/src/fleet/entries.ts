/** The rows of the fleet's table: devices, and a head above those of each group. */

import { type Group, type Grouping, inGroups } from "./groups";
import type { Summary } from "./summary";

export type Entry =
  | { readonly kind: "device"; readonly row: Summary }
  | { readonly kind: "group"; readonly group: Group; readonly isOpen: boolean };

/**
 * The rows in order, with heads if they are grouped; the devices of closed groups are left out.
 */
export function entriesOf(
  rows: readonly Summary[],
  grouping: Grouping | null,
  closed: ReadonlySet<string | null>,
): Entry[] {
  const asEntries = (its: readonly Summary[]) => its.map((row): Entry => ({ kind: "device", row }));
  if (!grouping) return asEntries(rows);
  return inGroups(rows, grouping).flatMap((group) => {
    const isOpen = !closed.has(group.name);
    const head: Entry = { kind: "group", group, isOpen };
    return isOpen ? [head, ...asEntries(group.rows)] : [head];
  });
}

/** Identifies an entry, also when its figures change. */
export const entryKey = (entry: Entry): string =>
  entry.kind === "device" ? `device ${entry.row.id}` : `group ${JSON.stringify(entry.group.name)}`;
