/**
 * Devices as rows. Only visible rows exist, so the page scrolls through thousands of devices.
 *
 * Tab reaches one row's link, or the button of a group; from there the arrow keys, Page Up, Page
 * Down, Home and End move through the rows. After a visit to a device, the rows are where they
 * were. On a narrow screen, the style sheet lays the same rows out as cards.
 */

import { useWindowVirtualizer } from "@tanstack/react-virtual";
import {
  type KeyboardEvent,
  memo,
  type RefObject,
  useEffect,
  useLayoutEffect,
  useRef,
  useState,
} from "react";
import { type Spark, type Sparklines, useSparklines } from "../live/sparklines";
import { deviceHref } from "../route";
import { errorText } from "../ui/states";
import { COLUMNS } from "./columns";
import { type Entry, entryKey } from "./entries";
import { GroupRow } from "./GroupRow";
import type { Sort, SortKey } from "./order";
import type { Summary } from "./summary";

/**
 * Where the user left the table for a device: how far down the page was scrolled, in pixels, and
 * the link of the row.
 */
export interface Place {
  readonly scroll: number;
  readonly href: string | null;
}

export const AT_THE_TOP: Place = { scroll: 0, href: null };

interface FleetTableProps {
  readonly entries: readonly Entry[];
  /** Open a group, or close it. */
  readonly onToggle: (group: string | null) => void;
  readonly sort: Sort;
  readonly onSort: (sort: Sort) => void;
  readonly now: number;
  /** Read when the table appears, written when it disappears. */
  readonly place: RefObject<Place>;
  readonly sparklines: Sparklines;
}

const PAGE = 10;

export function FleetTable(props: FleetTableProps) {
  const { entries, onToggle, sort, onSort, now, place, sparklines } = props;
  const body = useRef<HTMLDivElement>(null);
  const { rowHeight, groupHeight, scrollMargin, headHeight } = useLayout(body);
  const list = useWindowVirtualizer({
    count: entries.length,
    estimateSize: (index) => (entries[index]?.kind === "group" ? groupHeight : rowHeight),
    overscan: 8,
    scrollMargin,
    scrollPaddingStart: headHeight,
    initialOffset: () => place.current.scroll,
    getItemKey: (index) => {
      const entry = entries[index];
      return entry ? entryKey(entry) : index;
    },
  });
  // biome-ignore lint/correctness/useExhaustiveDependencies: new heights need a new measurement
  useLayoutEffect(() => list.measure(), [rowHeight, groupHeight, list]);
  const items = list.getVirtualItems();
  const { sparks, error } = useSparklines(sparklines, devicesIn(items, entries));
  const [left] = useState(() =>
    entries.findIndex(
      (entry) => entry.kind === "device" && deviceHref(entry.row.id) === place.current.href,
    ),
  );
  const scrollTo = (index: number) => list.scrollToIndex(index, { align: "auto" });
  const roving = useRoving(body, entries.length, left, scrollTo);
  useLayoutEffect(
    () => () => {
      place.current = { scroll: scrollY, href: location.hash };
    },
    [place],
  );
  const tabStop = items.some((item) => item.index === roving.active)
    ? roving.active
    : (items[0]?.index ?? 0);
  return (
    <>
      {error !== null && (
        <p className="problem" role="status">
          The lines of the last 24 hours could not be loaded: {errorText(error)}
        </p>
      )}
      <div
        className="fleet-table"
        role="table"
        aria-label="Devices"
        aria-rowcount={entries.length + 1}
      >
        <Head sort={sort} onSort={onSort} />
        <div
          ref={body}
          role="rowgroup"
          className="fleet-body"
          style={{ height: list.getTotalSize() }}
          onKeyDown={roving.onKeyDown}
        >
          {items.map((item) => {
            const entry = entries[item.index] as Entry;
            const at = {
              index: item.index,
              top: item.start - scrollMargin,
              tabStop: item.index === tabStop,
            };
            return entry.kind === "group" ? (
              <GroupRow key={item.key} {...entry} {...at} onToggle={onToggle} />
            ) : (
              <Row
                key={item.key}
                row={entry.row}
                {...at}
                now={now}
                spark={sparks.get(entry.row.id)}
              />
            );
          })}
        </div>
      </div>
    </>
  );
}

/**
 * The devices of the rows that exist, in the order of their ids: a list that stays as it is while
 * rows change places.
 */
function devicesIn(items: readonly { index: number }[], entries: readonly Entry[]): string[] {
  const ids = items.flatMap(({ index }) => {
    const entry = entries[index];
    return entry?.kind === "device" ? [entry.row.id] : [];
  });
  return ids.sort();
}

/**
 * In pixels: the heights of a row and of a group's head in the style sheet, how far down the page
 * the rows begin, and how much of them the sticky head covers. Read when the size of the page
 * changes: it does with the layout, the text size, and anything new above the table. Reading them
 * at each render would make the browser lay out the page each time.
 */
function useLayout(body: React.RefObject<HTMLDivElement | null>) {
  const [layout, setLayout] = useState({
    rowHeight: 52,
    groupHeight: 48,
    scrollMargin: 0,
    headHeight: 0,
  });
  useLayoutEffect(() => {
    const read = () => {
      const element = body.current;
      if (!element) return;
      const rem = Number.parseFloat(getComputedStyle(document.documentElement).fontSize);
      const style = getComputedStyle(element);
      const height = (name: string) => Number.parseFloat(style.getPropertyValue(name)) * rem;
      const [rowHeight, groupHeight] = [height("--row-height"), height("--group-height")];
      const scrollMargin = Math.round(element.getBoundingClientRect().top + scrollY);
      const head = element.previousElementSibling as HTMLElement;
      const headHeight = Math.ceil(head.getBoundingClientRect().height);
      setLayout((before) =>
        before.rowHeight === rowHeight &&
        before.groupHeight === groupHeight &&
        before.scrollMargin === scrollMargin &&
        before.headHeight === headHeight
          ? before
          : { rowHeight, groupHeight, scrollMargin, headHeight },
      );
    };
    read();
    const resized = new ResizeObserver(read);
    resized.observe(document.body);
    return () => resized.disconnect();
  }, [body]);
  return layout;
}

/**
 * Which row has the tab stop, and how the keys move it: the page scrolls to the row, and focuses it
 * once it exists. It begins with the row that the user left, if there is one.
 */
function useRoving(
  body: React.RefObject<HTMLDivElement | null>,
  count: number,
  left: number,
  scrollTo: (index: number) => void,
) {
  const [active, setActive] = useState(Math.max(0, left));
  const wanted = useRef(left < 0 ? null : left);
  useEffect(() => {
    if (wanted.current === null) return;
    const row = `[data-index="${wanted.current}"]`;
    const link = body.current?.querySelector<HTMLElement>(`${row} a, ${row} button`);
    if (!link) return;
    wanted.current = null;
    // A user who has moved on, for example to the search, stays there.
    const { activeElement } = document;
    if (activeElement === document.body || body.current?.contains(activeElement))
      link.focus({ preventScroll: true });
  });
  function onKeyDown(event: KeyboardEvent): void {
    const row = (event.target as HTMLElement).closest<HTMLElement>("[data-index]");
    if (!row || event.altKey || event.ctrlKey || event.metaKey) return;
    const from = Number(row.dataset.index);
    const targets: Record<string, number> = {
      ArrowDown: from + 1,
      ArrowUp: from - 1,
      PageDown: from + PAGE,
      PageUp: from - PAGE,
      Home: 0,
      End: count - 1,
    };
    const target = targets[event.key];
    if (target === undefined) return;
    event.preventDefault();
    const next = Math.min(count - 1, Math.max(0, target));
    wanted.current = next;
    setActive(next);
    scrollTo(next);
  }
  return { active, onKeyDown };
}

function Head({ sort, onSort }: Pick<FleetTableProps, "sort" | "onSort">) {
  const choose = (key: SortKey, descendingFirst = false) =>
    onSort(
      sort.key === key
        ? { key, descending: !sort.descending }
        : { key, descending: descendingFirst },
    );
  const direction = (key: SortKey) =>
    sort.key === key ? (sort.descending ? "descending" : "ascending") : "none";
  return (
    <div role="rowgroup" className="fleet-head">
      <div role="row" className="fleet-row" aria-rowindex={1}>
        <div role="columnheader" aria-sort={direction("name")}>
          <button type="button" onClick={() => choose("name")}>
            Device
          </button>
        </div>
        {COLUMNS.map((column) => (
          <div
            key={column.key}
            role="columnheader"
            aria-sort={direction(column.key)}
            className={column.numeric ? "numeric" : undefined}
          >
            <button
              type="button"
              title={column.hint}
              onClick={() => choose(column.key, column.descendingFirst)}
            >
              {column.title}
            </button>
          </div>
        ))}
      </div>
    </div>
  );
}

interface RowProps {
  readonly row: Summary;
  readonly index: number;
  readonly top: number;
  readonly tabStop: boolean;
  readonly now: number;
  readonly spark: Spark | undefined;
}

const Row = memo(function Row({ row, index, top, tabStop, now, spark }: RowProps) {
  return (
    <div
      role="row"
      aria-rowindex={index + 2}
      data-index={index}
      className={`fleet-row fleet-item${row.stale ? " is-stale" : ""}`}
      style={{ transform: `translateY(${top}px)` }}
    >
      <div role="rowheader" className="cell-name">
        <a href={deviceHref(row.id)} tabIndex={tabStop ? 0 : -1}>
          {row.name}
        </a>
        <span className="muted">{row.id}</span>
      </div>
      {COLUMNS.map((column) => (
        <div
          key={column.key}
          role="cell"
          className={`cell-${column.key}${column.numeric ? " numeric" : ""}`}
        >
          <span className="cell-label">{column.title}</span>
          {column.cell(row, now, spark)}
        </div>
      ))}
    </div>
  );
});
