/** The choice of grouping: by site, or by a part of the ids. */

import { useId, useMemo } from "react";
import { BY_SITE, type Grouping, isSame, keyOf, type Offer, offers } from "./groups";

interface GroupPickerProps {
  readonly ids: readonly string[];
  /** How many sites there are. */
  readonly sites: number;
  readonly grouping: Grouping | null;
  readonly onGrouping: (grouping: Grouping | null) => void;
}

/** Nothing if there are no sites, the ids share no part, and the address asks for no grouping. */
export function GroupPicker({ ids, sites, grouping, onGrouping }: GroupPickerProps) {
  const id = useId();
  const known = useMemo(() => offers(ids), [ids]);
  const isKnown =
    grouping === null ||
    grouping === BY_SITE ||
    known.some((offer) => isSame(offer.grouping, grouping));
  const shown: readonly Offer[] = isKnown ? known : [...known, { grouping, names: [] }];
  const bySite = sites > 1 || grouping === BY_SITE;
  if (shown.length === 0 && !bySite) return null;
  const separators = [...new Set(shown.map((offer) => offer.grouping.separator))];
  return (
    <div className="group-picker">
      <label htmlFor={id} className="hidden">
        Group by
      </label>
      <select
        id={id}
        value={keyOf(grouping)}
        onChange={({ target: { value } }) =>
          onGrouping(
            value === BY_SITE
              ? BY_SITE
              : (shown.find((offer) => keyOf(offer.grouping) === value)?.grouping ?? null),
          )
        }
      >
        <option value="">No groups</option>
        {bySite && <option value={BY_SITE}>By site ({sites})</option>}
        {separators.map((separator) => (
          <optgroup key={separator} label={`Ids split at “${separator}”`}>
            {shown
              .filter((offer) => offer.grouping.separator === separator)
              .map((offer) => (
                <option key={keyOf(offer.grouping)} value={keyOf(offer.grouping)}>
                  {offerText(offer)}
                </option>
              ))}
          </optgroup>
        ))}
      </select>
    </div>
  );
}

const MOST_NAMES = 2;
const LONGEST_NAME = 16;

/** Part 1: depot, harbour … 12 groups. */
function offerText({ grouping: { first, last }, names }: Offer): string {
  const part = first === last ? `By part ${first}` : `By parts ${first} to ${last}`;
  if (names.length === 0) return part;
  const some = names
    .slice(0, MOST_NAMES)
    .map((name) => (name.length > LONGEST_NAME ? `${name.slice(0, LONGEST_NAME)}…` : name));
  return `${part}: ${some.join(", ")}${names.length > MOST_NAMES ? " …" : ""} (${names.length})`;
}
