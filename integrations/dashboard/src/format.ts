/**
 * Numbers with their units, and times with their zone: every figure on the page goes through here.
 *
 * Values: watts, volts, percent, wattHours, hours. Times: localTime, localClock, utcTime, age.
 * Names: apart. What is not known is a dash, with the unit left out.
 */

export const UNKNOWN = "–";
const LOCALE = "en-GB";

// Making a formatter takes longer than a thousand uses of it.
const FORMATS = [0, 1, 2].map(
  (digits) =>
    new Intl.NumberFormat(LOCALE, { minimumFractionDigits: digits, maximumFractionDigits: digits }),
) as [Intl.NumberFormat, Intl.NumberFormat, Intl.NumberFormat];

function digits(value: number, fraction: 0 | 1 | 2): string {
  const text = FORMATS[fraction].format(value);
  return /^-[0.]+$/.test(text) ? text.slice(1) : text.replace("-", "−");
}

type Maybe = number | null | undefined;

function known(value: Maybe): value is number {
  return typeof value === "number" && Number.isFinite(value);
}

/** The unit of a figure; large figures get a prefix such as k by themselves. */
export type Unit = "W" | "Wh" | "V" | "A" | "%";

const PREFIXES = [
  { from: 9_999_500, by: 1e6, name: "M" },
  { from: 9_999.5, by: 1e3, name: "k" },
  { from: 0, by: 1, name: "" },
] as const;

type Prefix = (typeof PREFIXES)[number];

const prefixOf = (size: number): Prefix => PREFIXES.find(({ from }) => size >= from) ?? PREFIXES[2];

/** A figure of about three digits. */
function withPrefix(value: number, { by, name }: Prefix, unit: Unit): string {
  const scaled = value / by;
  const size = Math.abs(scaled);
  return `${digits(scaled, size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2)} ${name}${unit}`;
}

/** About three digits, with kilo and mega where the number is long: 7.32 W, 148 W, 12.4 kW. */
function figure(value: Maybe, unit: Unit): string {
  return known(value) ? withPrefix(value, prefixOf(Math.abs(value)), unit) : UNKNOWN;
}

/** Watts. */
export const watts = (value: Maybe): string => figure(value, "W");

/** Watt-hours. */
export const wattHours = (value: Maybe): string => figure(value, "Wh");

/** Volts. */
export const volts = (value: Maybe): string => figure(value, "V");

/** Amperes. */
export const amperes = (value: Maybe): string => figure(value, "A");

/** How to write figures that stand side by side: all with the prefix of the greatest. */
export function together(values: readonly Maybe[], unit: Unit): (value: Maybe) => string {
  if (unit === "%") return percent;
  const prefix = prefixOf(Math.max(0, ...values.filter(known).map(Math.abs)));
  return (value) => (known(value) ? withPrefix(value, prefix, unit) : UNKNOWN);
}

/** The labels of an axis: with one prefix, and as many decimals as tell its steps apart. */
export function ticks(values: readonly number[], unit: Unit): string[] {
  const prefix = prefixOf(Math.max(0, ...values.map(Math.abs)));
  const step = Math.abs((values[1] ?? 0) - (values[0] ?? 0)) / prefix.by;
  const fraction = isWhole(step) ? 0 : isWhole(10 * step) ? 1 : 2;
  return values.map((value) => `${digits(value / prefix.by, fraction)} ${prefix.name}${unit}`);
}

const isWhole = (value: number): boolean => Math.abs(value - Math.round(value)) < 1e-6;

/** Percent from 0 to 100; decimals close to empty, where they matter, or as many as asked for. */
export function percent(value: Maybe, fraction?: 0 | 1): string {
  if (!known(value)) return UNKNOWN;
  return `${digits(value, value % 1 === 0 ? 0 : (fraction ?? (value < 10 ? 1 : 0)))} %`;
}

/** A span in hours, in the two units that fit it: 42 min, 5 h 20 min, 3 d 4 h. */
export function hours(value: Maybe): string {
  if (!known(value)) return UNKNOWN;
  const minutes = Math.round(value * 60);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60)
    return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
  const whole = Math.round(value);
  if (whole >= 100 * 24) return `${digits(Math.round(whole / 24), 0)} d`;
  return whole % 24 ? `${Math.floor(whole / 24)} d ${whole % 24} h` : `${whole / 24} d`;
}

export const AHEAD_MS = 60_000; // up to that far ahead, the page does not mention a device's clock

/**
 * How long ago, from milliseconds: now, 12 s ago, 4 min ago, 3 h ago, 12 d ago, 6 y ago; for a
 * moment in the future, 3 h ahead.
 */
export function age(milliseconds: number): string {
  const seconds = Math.floor(Math.abs(milliseconds) / 1000);
  if (milliseconds <= -AHEAD_MS) return `${span(seconds)} ahead`;
  return milliseconds < 2000 ? "now" : `${span(seconds)} ago`;
}

/** A span in its greatest unit: 12 s, 4 min, 3 h, 12 d, 6 y. */
export function span(seconds: number): string {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h`;
  const days = Math.floor(seconds / 86_400);
  return days < 730 ? `${days} d` : `${Math.floor(days / 365.25)} y`;
}

/**
 * A name for use inside other text. It may be in a script that runs from right to left: the figures
 * beside it keep their order.
 */
export const apart = (name: string): string => `\u2068${name}\u2069`;

const LOCAL = new Intl.DateTimeFormat(LOCALE, {
  day: "numeric",
  month: "short",
  year: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  timeZoneName: "short",
});
const CLOCK = new Intl.DateTimeFormat(LOCALE, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});
const ZONE = new Intl.DateTimeFormat(LOCALE, { timeZoneName: "short" });
const DAY = new Intl.DateTimeFormat(LOCALE, { weekday: "short", day: "numeric", month: "short" });

/** Local date and time with the zone: 23 Nov 2026, 22:02:43 CET. */
export const localTime = (milliseconds: number): string => LOCAL.format(milliseconds);

/** Local time of day: 22:02:43. */
export const localClock = (milliseconds: number): string => CLOCK.format(milliseconds);

/** A local day: Mon 23 Nov. */
export const localDay = (milliseconds: number): string => DAY.format(milliseconds).replace(",", "");

const LONG_DAY = new Intl.DateTimeFormat(LOCALE, {
  day: "numeric",
  month: "short",
  year: "numeric",
});

const MINUTE = new Intl.DateTimeFormat(LOCALE, {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});

/** A local day with its year: 23 Nov 2026. */
export const longDay = (milliseconds: number): string => LONG_DAY.format(milliseconds);

/** A local day and minute: 23 Nov, 18:05. */
export const minute = (milliseconds: number): string => MINUTE.format(milliseconds);

/** A local day as the value of a date field: 2026-11-23. */
export function isoDay(milliseconds: number): string {
  const day = new Date(milliseconds);
  const two = (value: number) => String(value).padStart(2, "0");
  return `${day.getFullYear()}-${two(day.getMonth() + 1)}-${two(day.getDate())}`;
}

const PLACE = LOCAL.resolvedOptions().timeZone;
const SHORT_DAY = new Intl.DateTimeFormat(LOCALE, { day: "numeric", month: "short" });

/** A local day without its weekday: 23 Nov. */
export const shortDay = (milliseconds: number): string => SHORT_DAY.format(milliseconds);

const SHORT_CLOCK = new Intl.DateTimeFormat(LOCALE, { hour: "2-digit", minute: "2-digit" });

/**
 * A moment near now: 18:05 on the same day, Mon 23 Nov 18:05 on another; far away the day alone.
 */
export function dayAndTime(milliseconds: number, now: number): string {
  const day = localDay(milliseconds);
  if (Math.abs(milliseconds - now) > 30 * 86_400_000) return LONG_DAY.format(milliseconds);
  return (day === localDay(now) ? "" : `${day} `) + SHORT_CLOCK.format(milliseconds);
}

const MONTH = new Intl.DateTimeFormat(LOCALE, { month: "short" });
const LONG_MONTH = new Intl.DateTimeFormat(LOCALE, { month: "long", year: "numeric" });

/** A local month: Nov. */
export const month = (milliseconds: number): string => MONTH.format(milliseconds);

/** A local month with its year: November 2026. */
export const longMonth = (milliseconds: number): string => LONG_MONTH.format(milliseconds);

/** The zone by its short name at that moment: CET. */
export function zone(milliseconds: number): string {
  return ZONE.formatToParts(milliseconds).find((part) => part.type === "timeZoneName")?.value ?? "";
}

/** The place of the zone in brackets: (Europe/Berlin); nothing if the name of the zone has it. */
export function place(milliseconds: number): string {
  return !PLACE || PLACE === zone(milliseconds) ? "" : `(${PLACE})`;
}

/** UTC, for the hover: 2026-11-23 21:02:43 UTC. */
export function utcTime(milliseconds: number): string {
  return `${new Date(milliseconds).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}
