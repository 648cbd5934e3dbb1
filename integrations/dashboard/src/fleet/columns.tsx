/** The columns of the fleet's table: their titles, order and cells. */

import type { ReactNode } from "react";
import * as format from "../format";
import type { Spark } from "../live/sparklines";
import { Badge } from "../ui/Badge";
import { Sparkline } from "../ui/Sparkline";
import { Ago } from "../ui/Time";
import type { SortKey } from "./order";
import type { Summary } from "./summary";

interface Column {
  readonly key: Exclude<SortKey, "name">;
  readonly title: string;
  /** The meaning of the column, as the tooltip of its head. */
  readonly hint: string;
  readonly numeric?: boolean;
  /** Whether the first click sorts by the highest value. */
  readonly descendingFirst?: boolean;
  readonly cell: (row: Summary, now: number, spark: Spark | undefined) => ReactNode;
}

export const COLUMNS: readonly Column[] = [
  {
    key: "state",
    title: "State",
    hint: "The worst state of its batteries. Stale: no reading for two minutes",
    cell: (row) => <Badge state={row.state} />,
  },
  {
    key: "charge",
    title: "Charge",
    hint: "Mean charge of its batteries, or of its UPSs where there is no battery",
    numeric: true,
    cell: (row) => <Charge value={row.charge} state={row.powerState} />,
  },
  {
    key: "runtime",
    title: "Runtime",
    hint: "Time until the batteries are empty at present watts. A dash: they do not drain, or capacity or watts are not known",
    numeric: true,
    cell: (row) => format.hours(row.runtime),
  },
  {
    key: "consumption",
    title: "Consumption",
    hint: "Watts it uses now: what its sources give, less what goes into batteries or back to the grid",
    numeric: true,
    descendingFirst: true,
    cell: (row) => format.watts(row.consumption),
  },
  {
    key: "dayWh",
    title: "Last 24 h",
    hint: "Watt-hours it used in the last 24 hours. The line: mean watts of each hour",
    numeric: true,
    descendingFirst: true,
    cell: (row, _, spark) => (
      <>
        <Sparkline values={spark} />
        <span className="spark-sum">{format.wattHours(row.dayWh)}</span>
      </>
    ),
  },
  {
    key: "solar",
    title: "Solar",
    hint: "Watts from its panels",
    numeric: true,
    descendingFirst: true,
    cell: (row) => format.watts(row.solar),
  },
  {
    key: "grid",
    title: "Grid",
    hint: "Watts from the mains, or from its UPS where there are no mains. Negative: fed back",
    numeric: true,
    descendingFirst: true,
    cell: (row) => format.watts(row.grid),
  },
  {
    key: "lastSeen",
    title: "Last seen",
    hint: "When its newest reading was taken",
    numeric: true,
    descendingFirst: true,
    cell: (row, now) => (row.lastSeen === null ? "never" : <Ago at={row.lastSeen} now={now} />),
  },
  {
    key: "need",
    title: "Alerts",
    hint: "Present alerts. Orders by urgency: critical charge, low charge, empty within a day, silent, the rest",
    cell: (row) => <Alerts row={row} />,
  },
];

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

/** The most pressing alert, and how many more there are; notes are on the device's page only. */
function Alerts({ row }: { row: Summary }) {
  const [first, ...more] = row.alerts.filter(({ severity }) => severity !== "note");
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
