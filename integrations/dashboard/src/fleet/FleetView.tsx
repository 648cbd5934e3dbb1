/** All devices: sums, search, filter, and the table. */

import { type RefObject, useDeferredValue, useEffect, useId, useMemo, useState } from "react";
import { useNow } from "../clock";
import type { FleetData } from "../live/fleet";
import { Empty } from "../ui/states";
import { COLUMNS } from "./columns";
import { FleetTable, type Place } from "./FleetTable";
import { byName, FILTERS, type Filter, order, type Sort, type SortKey, select } from "./order";
import { Summaries, type Summary, sumText } from "./summary";

/** What the user chose; it outlives a visit to a device's view. */
export interface FleetChoice {
  readonly search: string;
  readonly filter: Filter;
  readonly sort: Sort;
}

export const FIRST_CHOICE: FleetChoice = {
  search: "",
  filter: "all",
  sort: { key: "alerts", descending: true },
};

interface FleetViewProps {
  readonly fleet: FleetData;
  readonly choice: FleetChoice;
  readonly onChoice: (choice: FleetChoice) => void;
  readonly place: RefObject<Place>;
}

export function FleetView({ fleet, choice, onChoice, place }: FleetViewProps) {
  const now = useNow();
  const devices = useMemo(() => byName(fleet.devices), [fleet.devices]);
  const [summaries] = useState(() => new Summaries());
  const rows = useMemo(() => summaries.of(devices, fleet, now), [summaries, devices, fleet, now]);
  const { filter, sort } = choice;
  const search = useDeferredValue(choice.search);
  const shown = useMemo(() => order(select(rows, search, filter), sort), [rows, search, filter, sort]);
  useEffect(() => {
    document.title = "Fleet · Power";
  }, []);

  if (rows.length === 0) {
    return (
      <main id="main">
        <h1 className="hidden">Fleet</h1>
        <Empty title="No devices yet">
          <p>
            Register one on the service’s machine: <code>power-manager register edge-001 "Edge Node"</code>.
            It appears here with its first reading.
          </p>
        </Empty>
      </main>
    );
  }
  return (
    <main id="main">
      <h1 className="hidden">Fleet</h1>
      <Sums rows={rows} onChoice={(chosen) => onChoice({ ...choice, filter: chosen })} />
      <Controls choice={choice} onChoice={onChoice} count={shown.length} total={rows.length} />
      {shown.length === 0 ? (
        <Empty title="No device matches">
          <button
            type="button"
            className="button"
            onClick={() => onChoice({ ...choice, search: "", filter: "all" })}
          >
            Show all {rows.length}
          </button>
        </Empty>
      ) : (
        <FleetTable
          rows={shown}
          sort={sort}
          onSort={(chosen) => onChoice({ ...choice, sort: chosen })}
          now={now}
          place={place}
        />
      )}
    </main>
  );
}

/** Sums over the devices that are live; what is stale is counted, not added. */
function Sums({ rows, onChoice }: { rows: readonly Summary[]; onChoice: (filter: Filter) => void }) {
  const live = rows.filter((row) => !row.stale);
  const sum = (key: "load" | "solar" | "net") => sumText(live.map((row) => row[key]));
  const alerts = rows.filter((row) => row.alerts.length > 0);
  const critical = alerts.some((row) => row.alerts.some((alert) => alert.severity === "critical"));
  return (
    <section className="sums" aria-label="Totals">
      <Sum label="Live devices" value={`${live.length} of ${rows.length}`} onClick={() => onChoice("live")} />
      <Sum label="Load" value={sum("load")} />
      <Sum label="Solar" value={sum("solar")} />
      <Sum label="Net" value={sum("net")} />
      <Sum
        label="With alerts"
        value={String(alerts.length)}
        tone={alerts.length === 0 ? "good" : critical ? "bad" : "warn"}
        onClick={() => onChoice("alerts")}
      />
    </section>
  );
}

interface SumProps {
  readonly label: string;
  readonly value: string;
  readonly tone?: "good" | "warn" | "bad";
  readonly onClick?: () => void;
}

function Sum({ label, value, tone, onClick }: SumProps) {
  const content = (
    <>
      <span className="sum-label">{label}</span>
      <span className="sum-value">{value}</span>
    </>
  );
  const className = `sum${tone ? ` tone-${tone}` : ""}`;
  if (!onClick) return <div className={className}>{content}</div>;
  return (
    <button
      type="button"
      className={className}
      onClick={onClick}
      title={`Show these: ${label.toLowerCase()}`}
    >
      {content}
    </button>
  );
}

interface ControlsProps {
  readonly choice: FleetChoice;
  readonly onChoice: (choice: FleetChoice) => void;
  readonly count: number;
  readonly total: number;
}

function Controls({ choice, onChoice, count, total }: ControlsProps) {
  const id = useId();
  const { search, filter, sort } = choice;
  return (
    <search className="controls">
      <label htmlFor={`${id}-search`} className="hidden">
        Search by name or id
      </label>
      <input
        id={`${id}-search`}
        type="search"
        placeholder="Search by name or id"
        value={search}
        onChange={(event) => onChoice({ ...choice, search: event.target.value })}
      />
      <label htmlFor={`${id}-filter`} className="hidden">
        Show
      </label>
      <select
        id={`${id}-filter`}
        value={filter}
        onChange={(event) => onChoice({ ...choice, filter: event.target.value as Filter })}
      >
        {Object.entries(FILTERS).map(([key, text]) => (
          <option key={key} value={key}>
            {text}
          </option>
        ))}
      </select>
      <div className="narrow-only">
        <label htmlFor={`${id}-sort`} className="hidden">
          Sort by
        </label>
        <select
          id={`${id}-sort`}
          value={sort.key}
          onChange={(event) => onChoice({ ...choice, sort: { ...sort, key: event.target.value as SortKey } })}
        >
          <option value="name">By device</option>
          {COLUMNS.map((column) => (
            <option key={column.key} value={column.key}>
              By {column.title.toLowerCase()}
            </option>
          ))}
        </select>
        <button
          type="button"
          className="button"
          aria-label={sort.descending ? "Descending: turn round" : "Ascending: turn round"}
          onClick={() => onChoice({ ...choice, sort: { ...sort, descending: !sort.descending } })}
        >
          {sort.descending ? "↓" : "↑"}
        </button>
      </div>
      <p className="muted count" role="status">
        {count === total ? total : `${count} of ${total}`} {total === 1 ? "device" : "devices"}
      </p>
    </search>
  );
}
