/**
 * Which span of time the charts show: the last hours, a calendar unit, back and forth, or any two
 * dates.
 */

import { type FocusEvent, type FormEvent, type KeyboardEvent, useId, useState } from "react";
import * as format from "../format";
import {
  type CalendarUnit,
  calendarSpan,
  endsOf,
  isLive,
  RANGES,
  type Range,
  type Span,
  shifted,
  UNITS,
  unitStart,
} from "../live/span";

interface SpanPickerProps {
  readonly span: Span;
  readonly onSpan: (span: Span) => void;
  readonly now: number;
}

const UNIT_NAMES: Record<CalendarUnit, string> = {
  day: "Day",
  week: "Week",
  month: "Month",
  year: "Year",
};

export function SpanPicker({ span, onSpan, now }: SpanPickerProps) {
  const range = span.kind === "last" ? span.range : null;
  const unit = span.kind === "calendar" ? span.unit : null;
  return (
    <div className="span-picker">
      <fieldset className="segments">
        <legend className="hidden">Range</legend>
        {Object.entries(RANGES).map(([key, { title, name }]) => (
          <Choice
            key={key}
            title={title}
            hint={name}
            checked={key === range}
            onChoose={() => onSpan({ kind: "last", range: key as Range })}
          />
        ))}
      </fieldset>
      <fieldset className="segments">
        <legend className="hidden">Calendar</legend>
        {UNITS.map((key) => (
          <Choice
            key={key}
            title={UNIT_NAMES[key]}
            hint={`This ${key}`}
            checked={key === unit}
            onChoose={() => onSpan(calendarSpan(key, now))}
          />
        ))}
      </fieldset>
      <div className="span-move">
        <button
          type="button"
          className="button"
          aria-label="Earlier"
          onClick={() => onSpan(shifted(span, -1, now))}
        >
          ‹
        </button>
        <output className="span-name">{spanName(span, now)}</output>
        <button
          type="button"
          className="button"
          aria-label="Later"
          disabled={isLive(span, now)}
          onClick={() => onSpan(shifted(span, 1, now))}
        >
          ›
        </button>
      </div>
      <Dates span={span} onSpan={onSpan} now={now} />
    </div>
  );
}

interface ChoiceProps {
  readonly title: string;
  readonly hint: string;
  readonly checked: boolean;
  readonly onChoose: () => void;
}

function Choice({ title, hint, checked, onChoose }: ChoiceProps) {
  return (
    <label>
      <input type="radio" name="span" checked={checked} onChange={onChoose} />
      <span title={hint}>{title}</span>
    </label>
  );
}

/** A span in words: 25 Nov 2026; November 2026; 25 Nov 14:00 to 26 Nov 02:00. */
export function spanName(span: Span, now: number): string {
  if (span.kind === "last") return RANGES[span.range].name;
  const [from, to] = endsOf(span, now);
  if (span.kind === "calendar") {
    if (span.unit === "day") return format.longDay(from);
    if (span.unit === "month") return format.longMonth(from);
    if (span.unit === "year") return String(new Date(from).getFullYear());
  }
  const areDays = unitStart("day", from) === from && unitStart("day", to) === to;
  if (areDays) return `${format.longDay(from)} to ${format.longDay(to - 1)}`;
  return `${format.minute(from)} to ${format.minute(to)}`;
}

/** Close the dates, and return the focus to the button that opened them. */
function close(details: HTMLDetailsElement): void {
  details.open = false;
  details.querySelector("summary")?.focus();
}

/** Close the dates, which cover the charts, when the focus leaves them. */
function closeBehind({
  currentTarget: details,
  relatedTarget: next,
}: FocusEvent<HTMLDetailsElement>): void {
  if (!details.contains(next)) details.open = false;
}

function closeByEscape({ currentTarget: details, key }: KeyboardEvent<HTMLDetailsElement>): void {
  if (key === "Escape" && details.open) close(details);
}

/** From one date to another, including both. */
function Dates({ span, onSpan, now }: SpanPickerProps) {
  const id = useId();
  const [problem, setProblem] = useState<string | null>(null);
  const [from, to] = endsOf(span, now);

  function show(event: FormEvent<HTMLFormElement>): void {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const [first, last] = [localDate(form.get("from")), localDate(form.get("to"))];
    const wrong = datesProblem(first, last);
    setProblem(wrong);
    if (wrong !== null || first === null || last === null) return;
    onSpan({ kind: "between", from: first, to: unitStart("day", last, 1) });
    close(event.currentTarget.closest("details") as HTMLDetailsElement);
  }

  return (
    <details className="dates" onBlur={closeBehind} onKeyDown={closeByEscape}>
      <summary>Dates</summary>
      {/* Another span has other defaults: the key makes the fields anew. */}
      <form key={JSON.stringify(span)} className="dates-form card" onSubmit={show} noValidate>
        <label htmlFor={`${id}-from`}>From</label>
        <input id={`${id}-from`} name="from" type="date" defaultValue={format.isoDay(from)} />
        <label htmlFor={`${id}-to`}>to</label>
        <input id={`${id}-to`} name="to" type="date" defaultValue={format.isoDay(to - 1)} />
        <button type="submit" className="button">
          Show
        </button>
        <p className={problem ? "problem" : "hidden"} role="alert">
          {problem}
        </p>
      </form>
    </details>
  );
}

function datesProblem(first: number | null, last: number | null): string | null {
  if (first === null || last === null) return "Enter both dates.";
  return last < first ? "The second date is before the first." : null;
}

/** Local midnight of the date in a date field; null if there is none. */
function localDate(text: FormDataEntryValue | null): number | null {
  const [year, month, day] = String(text).split("-").map(Number);
  return year && month && day ? new Date(year, month - 1, day).getTime() : null;
}
