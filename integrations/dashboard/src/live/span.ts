/**
 * The span of time that a device's charts show: the last hours up to now, a calendar day, week,
 * month or year, or any other between two moments. Milliseconds since the epoch; calendar units are
 * local, and weeks begin on Monday.
 */

export const RANGES = {
  "1h": { hours: 1, title: "1 h", name: "Last hour" },
  "24h": { hours: 24, title: "24 h", name: "Last 24 hours" },
  "7d": { hours: 168, title: "7 d", name: "Last 7 days" },
  "30d": { hours: 720, title: "30 d", name: "Last 30 days" },
  "1y": { hours: 8760, title: "1 y", name: "Last 365 days" },
} as const;

export type Range = keyof typeof RANGES;

export const UNITS = ["day", "week", "month", "year"] as const;

export type CalendarUnit = (typeof UNITS)[number];

export type Span =
  | { readonly kind: "last"; readonly range: Range }
  | {
      readonly kind: "calendar";
      readonly unit: CalendarUnit;
      readonly from: number;
      readonly to: number;
    }
  | { readonly kind: "between"; readonly from: number; readonly to: number };

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

/** The first moment of the unit that contains a moment, or of the unit that many units later. */
export function unitStart(unit: CalendarUnit, moment: number, later = 0): number {
  const day = new Date(moment);
  const [year, month, date] = [day.getFullYear(), day.getMonth(), day.getDate()];
  switch (unit) {
    case "day":
      return new Date(year, month, date + later).getTime();
    case "week":
      return new Date(year, month, date - ((day.getDay() + 6) % 7) + 7 * later).getTime();
    case "month":
      return new Date(year, month + later, 1).getTime();
    case "year":
      return new Date(year + later, 0, 1).getTime();
  }
}

/** The unit that contains a moment, or the one that many units later. */
export function calendarSpan(unit: CalendarUnit, moment: number, later = 0): Span {
  return {
    kind: "calendar",
    unit,
    from: unitStart(unit, moment, later),
    to: unitStart(unit, moment, later + 1),
  };
}

/** How long a span is. */
export function lengthOf(span: Span): number {
  return span.kind === "last" ? RANGES[span.range].hours * HOUR_MS : span.to - span.from;
}

/**
 * A span's two ends. One that follows the present moves on by about a pixel at a time: more often
 * shows nothing new.
 */
export function endsOf(span: Span, now: number): readonly [from: number, to: number] {
  if (span.kind !== "last") return [span.from, span.to];
  const length = lengthOf(span);
  const step = length / 3600;
  const to = Math.ceil(now / step) * step;
  return [to - length, to];
}

/** The span before (-1) or after (1) this one. */
export function shifted(span: Span, direction: -1 | 1, now: number): Span {
  if (span.kind === "calendar") return calendarSpan(span.unit, span.from, direction);
  const [from, to] = endsOf(span, now);
  const by = direction * (to - from);
  return { kind: "between", from: from + by, to: to + by };
}

/** Whether the span contains the present. */
export const isLive = (span: Span, now: number): boolean => span.kind === "last" || span.to > now;

/**
 * In what detail a span is drawn: readings, hourly means, or the least, mean and most of each day.
 */
export type Detail = "readings" | "hours" | "days";

export function detailOf(span: Span): Detail {
  const length = lengthOf(span);
  // An hour more or less than the limit: the end of summer time makes two days longer, and its
  // beginning can make a month of 28 days shorter.
  if (length <= 2 * DAY_MS + HOUR_MS) return "readings";
  return length < 28 * DAY_MS - HOUR_MS ? "hours" : "days";
}

export type EnergyUnit = "hour" | "day" | "week" | "month";

/** The unit by which the energy of a span is divided. */
export function energyUnitOf(span: Span): EnergyUnit {
  const length = lengthOf(span);
  if (span.kind !== "last" && length <= 2 * DAY_MS + HOUR_MS) return "hour";
  if (length <= 62 * DAY_MS) return "day";
  return length <= 200 * DAY_MS ? "week" : "month";
}

const LEAST_DAYS = 7;

/**
 * The moments between which a span's energy is divided: whole units. A short span up to now has the
 * days before, too.
 */
export function energyMoments(span: Span, now: number): number[] {
  const unit = energyUnitOf(span);
  const [from, to] = endsOf(span, now);
  if (unit === "hour") {
    const first = Math.floor(from / HOUR_MS) * HOUR_MS;
    const count = Math.ceil((to - first) / HOUR_MS);
    return Array.from({ length: count + 1 }, (_, index) => first + index * HOUR_MS);
  }
  const last = span.kind === "last" ? now : to - 1;
  const earliest =
    span.kind === "last" ? Math.min(from + DAY_MS, unitStart("day", now, 1 - LEAST_DAYS)) : from;
  const moments = [unitStart(unit, earliest)];
  while ((moments.at(-1) as number) <= last)
    moments.push(unitStart(unit, moments.at(-1) as number, 1));
  return moments;
}
