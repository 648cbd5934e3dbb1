/** The columns of the fleet's table: what each is called, sorts by and shows. */

import type { ReactNode } from "react";
import * as format from "../format";
import { Badge } from "../ui/Badge";
import { Ago } from "../ui/Time";
import type { SortKey } from "./order";
import type { Summary } from "./summary";

interface Column {
  readonly key: Exclude<SortKey, "name">;
  readonly title: string;
  /** What the column means, for a hover over its head. */
  readonly hint: string;
  readonly numeric?: boolean;
  /** Which order is of use first. */
  readonly descendingFirst?: boolean;
  readonly cell: (row: Summary, now: number) => ReactNode;
}

export const COLUMNS: readonly Column[] = [
  {
    key: "state",
    title: "State",
    hint: "The worst state of its batteries; stale: nothing came for two minutes",
    cell: (row) => <Badge state={row.state} />,
  },
  {
    key: "total",
    title: "Power",
    hint: "Watts over all meters, as last read; a dash where those of one are not known",
    numeric: true,
    descendingFirst: true,
    cell: (row) => format.watts(row.total),
  },
  {
    key: "solar",
    title: "Solar",
    hint: "Watts from solar meters",
    numeric: true,
    descendingFirst: true,
    cell: (row) => format.watts(row.solar),
  },
  {
    key: "load",
    title: "Load",
    hint: "Watts that mains, batteries and UPSs supply",
    numeric: true,
    descendingFirst: true,
    cell: (row) => format.watts(row.load),
  },
  {
    key: "net",
    title: "Net",
    hint: "Solar less load, in watts",
    numeric: true,
    cell: (row) => (
      <span className={row.net !== null && row.net < 0 ? "net-out" : "net-in"}>{signed(row.net)}</span>
    ),
  },
  {
    key: "charge",
    title: "Charge",
    hint: "Mean charge of its batteries",
    numeric: true,
    cell: (row) => <Charge value={row.charge} state={row.powerState} />,
  },
  {
    key: "runtime",
    title: "Runtime",
    hint: "Until the batteries are empty, at present watts; a dash while they do not drain, or where no capacity or no wattage is known",
    numeric: true,
    cell: (row) => format.hours(row.runtime),
  },
  {
    key: "lastSeen",
    title: "Last seen",
    hint: "Its newest reading",
    numeric: true,
    descendingFirst: true,
    cell: (row, now) => (row.lastSeen === null ? "never" : <Ago at={row.lastSeen} now={now} />),
  },
  {
    key: "alerts",
    title: "Alerts",
    hint: "What stands now: charge, shutdown threshold, daily target",
    descendingFirst: true,
    cell: (row) => <Alerts row={row} />,
  },
];

const signed = (value: number | null): string =>
  (value !== null && value > 0 ? "+" : "") + format.watts(value);

export function Charge({ value, state }: { value: number | null; state: string }) {
  if (value === null) return <>{format.UNKNOWN}</>;
  return (
    <span className={`charge charge-${state}`}>
      <span className="track charge-track" aria-hidden="true">
        <span className="level" style={{ width: `${value}%` }} />
      </span>
      <span className="charge-text">{format.percent(value)}</span>
    </span>
  );
}

/** The most pressing alert, and how many more there are. */
function Alerts({ row }: { row: Summary }) {
  const [first, ...more] = row.alerts;
  if (!first) return <span className="muted">none</span>;
  return (
    <span
      className={`alert alert-${first.severity}`}
      title={row.alerts.map((alert) => alert.text).join("\n")}
    >
      <span className="alert-text">{first.text}</span>
      {more.length > 0 && <span className="alert-more">+{more.length}</span>}
    </span>
  );
}
