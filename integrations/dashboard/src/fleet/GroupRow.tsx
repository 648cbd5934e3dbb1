/**
 * The head of a group: its name, its number of devices, its worst state and its watts. A click
 * opens or closes it.
 */

import { memo } from "react";
import * as format from "../format";
import { Badge } from "../ui/Badge";
import { COLUMNS } from "./columns";
import { type Group, groupSum } from "./groups";
import { hasAlert } from "./order";

interface GroupRowProps {
  readonly group: Group;
  readonly isOpen: boolean;
  readonly index: number;
  /** How far down the table, in pixels. */
  readonly top: number;
  readonly tabStop: boolean;
  readonly onToggle: (group: string | null) => void;
}

export const GroupRow = memo(function GroupRow(props: GroupRowProps) {
  const { group, isOpen, index, top, tabStop, onToggle } = props;
  const count = group.rows.length;
  return (
    <div
      role="row"
      aria-rowindex={index + 2}
      data-index={index}
      className="fleet-row fleet-item fleet-group"
      style={{ transform: `translateY(${top}px)` }}
    >
      <div role="rowheader" className="cell-name">
        <button
          type="button"
          aria-expanded={isOpen}
          tabIndex={tabStop ? 0 : -1}
          onClick={() => onToggle(group.name)}
        >
          <span className="group-name">{groupTitle(group)}</span>
          <span className="muted">
            {count} {count === 1 ? "device" : "devices"}
          </span>
        </button>
      </div>
      {COLUMNS.map(({ key }) => (
        <div key={key} role="cell" className={`cell-${key} numeric`}>
          {cellOf(group, key)}
        </div>
      ))}
    </div>
  );
});

const groupTitle = ({ name }: Group): string =>
  name === null ? "Others" : name === "" ? "(no name)" : name;

function cellOf(group: Group, key: (typeof COLUMNS)[number]["key"]) {
  switch (key) {
    case "state":
      return <Badge state={group.state} />;
    case "consumption":
    case "solar":
    case "grid":
      return <GroupSum {...groupSum(group, key)} text={format.watts} />;
    case "dayWh":
      return <GroupSum {...groupSum(group, key)} text={format.wattHours} />;
    case "need": {
      const alerts = group.rows.filter(hasAlert).length;
      return alerts > 0 ? `${alerts} with alerts` : null;
    }
    default:
      return null;
  }
}

interface GroupSumProps {
  readonly sum: number | null;
  readonly unknown: number;
  readonly text: (value: number | null) => string;
}

/** The sum of the known values, and for how many live devices the value is not known. */
function GroupSum({ sum, unknown, text }: GroupSumProps) {
  return (
    <>
      {text(sum)}
      {unknown > 0 && <span className="sum-unknown muted">{unknown} unknown</span>}
    </>
  );
}
