/**
 * Numbers with their units, and times with their zone: every figure on the page goes through here.
 *
 * Values: watts, volts, percent, wattHours, hours. Times: localTime, localClock, utcTime, age. Names: apart.
 * What is not known is a dash, with the unit left out.
 */

export const UNKNOWN = "–";
const LOCALE = "en-GB";

// Making one takes longer than using it a thousand times.
const FORMATS = [0, 1, 2].map(
  (digits) => new Intl.NumberFormat(LOCALE, { minimumFractionDigits: digits, maximumFractionDigits: digits }),
) as [Intl.NumberFormat, Intl.NumberFormat, Intl.NumberFormat];

function digits(value: number, fraction: 0 | 1 | 2): string {
  const text = FORMATS[fraction].format(value);
  return /^-[0.]+$/.test(text) ? text.slice(1) : text.replace("-", "−");
}

type Maybe = number | null | undefined;

function known(value: Maybe): value is number {
  return typeof value === "number" && Number.isFinite(value);
}

/** About three digits, with kilo and mega where the number is long: 7.32 W, 148 W, 12.4 kW. */
function scaled(value: Maybe, unit: string): string {
  if (!known(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size >= 9_999_500) return `${digits(value / 1e6, size >= 99_950_000 ? 0 : 1)} M${unit}`;
  if (size >= 9_999.5) return `${digits(value / 1e3, size >= 99_950 ? 0 : 1)} k${unit}`;
  return `${digits(value, size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2)} ${unit}`;
}

/** Watts. */
export const watts = (value: Maybe): string => scaled(value, "W");

/** Watt-hours. */
export const wattHours = (value: Maybe): string => scaled(value, "Wh");

/** Volts. */
export const volts = (value: Maybe): string => scaled(value, "V");

/** Amperes. */
export const amperes = (value: Maybe): string => scaled(value, "A");

/** Percent from 0 to 100; a decimal only where it matters, close to empty. */
export function percent(value: Maybe): string {
  return known(value) ? `${digits(value, value < 10 && value % 1 !== 0 ? 1 : 0)} %` : UNKNOWN;
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

export const AHEAD_MS = 60_000; // a device's clock may be that far ahead without a word

/** How long ago, from milliseconds: now, 12 s ago, 4 min ago, 3 h ago, 12 d ago, 6 y ago; of a clock that is ahead, 3 h ahead. */
export function age(milliseconds: number): string {
  const seconds = Math.floor(Math.abs(milliseconds) / 1000);
  if (milliseconds <= -AHEAD_MS) return `${span(seconds)} ahead`;
  return milliseconds < 2000 ? "now" : `${span(seconds)} ago`;
}

function span(seconds: number): string {
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h`;
  const days = Math.floor(seconds / 86_400);
  return days < 730 ? `${days} d` : `${Math.floor(days / 365.25)} y`;
}

/** A name to stand amid other text: whichever way its script runs, the figures beside it keep their order. */
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
const CLOCK = new Intl.DateTimeFormat(LOCALE, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const ZONE = new Intl.DateTimeFormat(LOCALE, { timeZoneName: "short" });
const DAY = new Intl.DateTimeFormat(LOCALE, { weekday: "short", day: "numeric", month: "short" });

/** Local date and time with the zone: 23 Nov 2026, 22:02:43 CET. */
export const localTime = (milliseconds: number): string => LOCAL.format(milliseconds);

/** Local time of day: 22:02:43. */
export const localClock = (milliseconds: number): string => CLOCK.format(milliseconds);

/** A local day: Mon 23 Nov. */
export const localDay = (milliseconds: number): string => DAY.format(milliseconds).replace(",", "");

const PLACE = LOCAL.resolvedOptions().timeZone;
const SHORT_DAY = new Intl.DateTimeFormat(LOCALE, { day: "numeric", month: "short" });

/** A local day without its weekday: 23 Nov. */
export const shortDay = (milliseconds: number): string => SHORT_DAY.format(milliseconds);

/** The zone by its short name at that moment: CET. */
export function zone(milliseconds: number): string {
  return ZONE.formatToParts(milliseconds).find((part) => part.type === "timeZoneName")?.value ?? "";
}

/** Where the zone is, in brackets: (Europe/Berlin); nothing where its name says as much. */
export function place(milliseconds: number): string {
  return !PLACE || PLACE === zone(milliseconds) ? "" : `(${PLACE})`;
}

/** UTC, for the hover: 2026-11-23 21:02:43 UTC. */
export function utcTime(milliseconds: number): string {
  return `${new Date(milliseconds).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}
