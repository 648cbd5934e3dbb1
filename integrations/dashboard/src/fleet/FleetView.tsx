/** All devices: sums, search, filter, and the table. */

import {
  type Dispatch,
  type RefObject,
  type SetStateAction,
  useCallback,
  useDeferredValue,
  useEffect,
  useId,
  useMemo,
  useState,
} from "react";
import { useNow } from "../clock";
import * as format from "../format";
import type { FleetData } from "../live/fleet";
import { useDatabase, useIsFleet, useMay } from "../live/me";
import type { Sparklines } from "../live/sparklines";
import { Empty } from "../ui/states";
import { pageTitle } from "../ui/title";
import { COLUMNS } from "./columns";
import { entriesOf } from "./entries";
import { FleetStrip } from "./FleetStrip";
import { FleetTable, type Place } from "./FleetTable";
import { GroupPicker } from "./GroupPicker";
import type { Grouping } from "./groups";
import { NewDeviceDialog } from "./NewDeviceDialog";
import {
  byName,
  FILTERS,
  type Filter,
  hasAlert,
  order,
  type Sort,
  type SortKey,
  search,
} from "./order";
import { Summaries, type Summary, sumOfKnown } from "./summary";

/** The user's choices; they survive a visit to a device's view. */
export interface FleetChoice {
  readonly search: string;
  readonly filter: Filter;
  readonly sort: Sort;
  readonly grouping: Grouping | null;
  /** The groups whose devices are not shown. */
  readonly closed: ReadonlySet<string | null>;
}

export const FIRST_CHOICE: FleetChoice = {
  search: "",
  filter: "all",
  sort: { key: "need", descending: false },
  grouping: null,
  closed: new Set(),
};

interface FleetViewProps {
  readonly fleet: FleetData;
  readonly choice: FleetChoice;
  readonly onChoice: Dispatch<SetStateAction<FleetChoice>>;
  readonly place: RefObject<Place>;
  readonly sparklines: Sparklines;
  /** Called after the user has registered a device here. */
  readonly onChanged: () => void;
}

export function FleetView({
  fleet,
  choice,
  onChoice,
  place,
  sparklines,
  onChanged,
}: FleetViewProps) {
  const now = useNow();
  const database = useDatabase();
  const isFleet = useIsFleet();
  const devices = useMemo(() => byName(fleet.devices), [fleet.devices]);
  const [summaries] = useState(() => new Summaries());
  const rows = useMemo(() => summaries.of(devices, fleet, now), [summaries, devices, fleet, now]);
  const { filter, sort, grouping, closed } = choice;
  const text = useDeferredValue(choice.search);
  const found = useMemo(() => search(rows, text), [rows, text]);
  const shown = useMemo(
    () => order(found.filter(FILTERS[filter].keeps), sort),
    [found, filter, sort],
  );
  const entries = useMemo(() => entriesOf(shown, grouping, closed), [shown, grouping, closed]);
  const ids = useMemo(() => fleet.devices.map(({ id }) => id), [fleet.devices]);
  const sites = useMemo(() => new Set(rows.flatMap(({ site }) => site ?? [])).size, [rows]);
  const toggle = useCallback(
    (group: string | null) =>
      onChoice((before) => ({ ...before, closed: toggled(before.closed, group) })),
    [onChoice],
  );
  const alerts = useMemo(() => rows.filter(hasAlert).length, [rows]);
  useEffect(() => {
    document.title = pageTitle("Fleet", alerts);
  }, [alerts]);

  if (rows.length === 0) {
    return (
      <main id="main">
        <h1 className="hidden">Fleet</h1>
        <Empty title="No devices yet">
          {isFleet ? (
            <p>
              A device appears once it sends its readings. Run this on the device:{" "}
              <code className="command">power-fleet forward --db power_manager.db</code>
            </p>
          ) : (
            <p>
              To register one, run this on the service’s machine:{" "}
              <code className="command">
                power-manager --db {database} register edge-001 "Edge Node"
              </code>
            </p>
          )}
          <NewDevice devices={fleet.devices} onChanged={onChanged} />
        </Empty>
      </main>
    );
  }
  return (
    <main id="main">
      <h1 className="hidden">Fleet</h1>
      {isFleet && <FleetStrip facts={fleet.facts} now={now} />}
      <Sums rows={rows} onChoice={(chosen) => onChoice({ ...choice, filter: chosen })} />
      <Controls choice={choice} onChoice={onChoice} count={shown.length} total={rows.length} />
      <div className="filters">
        <Filters
          rows={found}
          filter={filter}
          onFilter={(chosen) => onChoice({ ...choice, filter: chosen })}
        />
        <div className="row">
          <GroupPicker
            ids={ids}
            sites={sites}
            grouping={grouping}
            onGrouping={(chosen) => onChoice({ ...choice, grouping: chosen, closed: new Set() })}
          />
          <NewDevice devices={fleet.devices} onChanged={onChanged} />
        </div>
      </div>
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
          entries={entries}
          onToggle={toggle}
          sort={sort}
          onSort={(chosen) => onChoice({ ...choice, sort: chosen })}
          now={now}
          place={place}
          sparklines={sparklines}
        />
      )}
    </main>
  );
}

function toggled<T>(set: ReadonlySet<T>, one: T): ReadonlySet<T> {
  const changed = new Set(set);
  if (!changed.delete(one)) changed.add(one);
  return changed;
}

/** Sums over the live devices; stale devices are counted, but not part of the sums. */
function Sums({
  rows,
  onChoice,
}: {
  rows: readonly Summary[];
  onChoice: (filter: Filter) => void;
}) {
  const live = rows.filter((row) => !row.stale);
  const sum = (key: "consumption" | "dayWh" | "solar") => sumOfKnown(live.map((row) => row[key]));
  const [consumption, day, solar] = [sum("consumption"), sum("dayWh"), sum("solar")];
  const alerts = rows.filter(hasAlert);
  const critical = alerts.some((row) => row.alerts.some((alert) => alert.severity === "critical"));
  return (
    <section className="sums" aria-label="Totals">
      <Sum
        label="Live devices"
        value={`${live.length} of ${rows.length}`}
        onClick={() => onChoice("live")}
      />
      <Sum
        label="Consumption"
        value={format.watts(consumption.sum)}
        unknown={consumption.unknown}
      />
      <Sum label="Last 24 h" value={format.wattHours(day.sum)} unknown={day.unknown} />
      <Sum label="Solar" value={format.watts(solar.sum)} unknown={solar.unknown} />
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
  /** The number of devices whose value is not known, and not part of the sum. */
  readonly unknown?: number;
  readonly tone?: "good" | "warn" | "bad";
  readonly onClick?: () => void;
}

function Sum({ label, value, unknown = 0, tone, onClick }: SumProps) {
  const content = (
    <>
      <span className="sum-label">{label}</span>
      <span className="sum-value">{value}</span>
      {unknown > 0 && <span className="sum-unknown muted">{unknown} unknown</span>}
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
  const { search: text, sort } = choice;
  return (
    <search className="controls">
      <label htmlFor={`${id}-search`} className="hidden">
        Search by name or id
      </label>
      <input
        id={`${id}-search`}
        type="search"
        placeholder="Search by name or id"
        value={text}
        onChange={(event) => onChoice({ ...choice, search: event.target.value })}
      />
      <div className="narrow-only">
        <label htmlFor={`${id}-sort`} className="hidden">
          Sort by
        </label>
        <select
          id={`${id}-sort`}
          value={sort.key}
          onChange={(event) =>
            onChoice({ ...choice, sort: { ...sort, key: event.target.value as SortKey } })
          }
        >
          <option value="name">By device</option>
          {COLUMNS.map((column) => (
            <option key={column.key} value={column.key}>
              {column.key === "need" ? "By urgency" : `By ${column.title.toLowerCase()}`}
            </option>
          ))}
        </select>
        <button
          type="button"
          className="button"
          aria-label={
            sort.descending ? "Descending: reverse the order" : "Ascending: reverse the order"
          }
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

interface FiltersProps {
  readonly rows: readonly Summary[];
  readonly filter: Filter;
  readonly onFilter: (filter: Filter) => void;
}

/** The number of devices in each state, to click on; states without devices are left out. */
function Filters({ rows, filter, onFilter }: FiltersProps) {
  const kinds = Object.entries(FILTERS).map(([key, { title, keeps }]) => ({
    key: key as Filter,
    title,
    count: rows.filter(keeps).length,
  }));
  return (
    <fieldset className="chips">
      <legend className="hidden">Show</legend>
      {kinds
        .filter(({ key, count }) => count > 0 || key === filter)
        .map(({ key, title, count }) => (
          <label key={key} className={`chip chip-${key}`}>
            <input
              type="radio"
              name="show"
              checked={key === filter}
              onChange={() => onFilter(key)}
            />
            <span>
              {title} <span className="chip-count">{count}</span>
            </span>
          </label>
        ))}
    </fieldset>
  );
}

/** Only with the scope `write`. */
function NewDevice({
  devices,
  onChanged,
}: {
  devices: FleetData["devices"];
  onChanged: () => void;
}) {
  const mayWrite = useMay("write");
  const [open, setOpen] = useState(false);
  if (!mayWrite) return null;
  return (
    <>
      <button type="button" className="button" onClick={() => setOpen(true)}>
        Add a device…
      </button>
      {open && (
        <NewDeviceDialog
          taken={new Set(devices.map(({ id }) => id))}
          onChanged={onChanged}
          onClose={() => setOpen(false)}
        />
      )}
    </>
  );
}
