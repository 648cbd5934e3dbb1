/**
 * Reports and statistics as Stripe meter events, as plain objects: this needs no package of Stripe.
 *
 * Stripe removed usage records in 2025; a Billing Meter and its events are what takes their place.
 */

import type { MeterReport, MeterType, PowerStatistics, Report } from "./types.gen";

/** What `stripe.billing.meterEvents.create()` takes. */
export interface MeterEvent {
  /** The meter's event name. */
  event_name: string;
  /**
   * Made of customer, event, hour and value: the same usage has the same identifier, so that Stripe takes it once, and an
   * hour that has changed has another.
   */
  identifier: string;
  /** `value` is whole watt-hours, as text. */
  payload: { stripe_customer_id: string; value: string };
  /** Unix seconds: when the hour begins. */
  timestamp: number;
}

/** Whom and what an event is for. */
export interface Billing {
  /** Stripe's id of the customer, `cus_...`. */
  customerId: string;
  /** The meter's event name. */
  eventName: string;
  /** Wh of this customer that earlier events were made of, before rounding; 0 by default. */
  totalWh?: number | undefined;
}

/** A report's events. */
export interface ReportBilling extends Billing {
  /** The UTC hour that the events are for; minutes and seconds count for nothing. A Date, or ISO 8601 text. */
  hour: Date | string;
}

const HOUR_SECONDS = 3_600;
const HOUR_IN_DAYS = 1 / 24;
const LONGEST_IDENTIFIER = 100; // Stripe's
const MOST_WH = 999_999_999_999_999; // Stripe takes 15 digits

function hourSeconds(hour: Date | string): number {
  const ms = hour instanceof Date ? hour.getTime() : Date.parse(hour);
  if (!Number.isFinite(ms)) throw new RangeError(`hour: expected a Date or ISO 8601 text, got ${String(hour)}`);
  return Math.floor(ms / 1000 / HOUR_SECONDS) * HOUR_SECONDS;
}

/** Without the noise of adding binary fractions: ten times 0.1 Wh are 1 Wh. The service's energies have 9 decimals. */
function tidy(wh: number): number {
  return Number(wh.toFixed(9));
}

/** One hour's event, or none where no watt-hour was completed. */
function meterEvents(billing: Billing, timestamp: number, totalWh: number, wh: number): MeterEvent[] {
  if (!(Math.abs(totalWh) <= MOST_WH && Math.abs(totalWh + wh) <= MOST_WH)) {
    throw new RangeError(`expected watt-hours of at most ${MOST_WH}, got ${totalWh} and ${wh}`);
  }
  // The difference of two floors: what is rounded off now is in a later event, so all of them are never 1 Wh short.
  const value = Math.floor(tidy(totalWh + wh)) - Math.floor(tidy(totalWh));
  if (value === 0) return [];
  const { customerId, eventName } = billing;
  // The value is part of it: under the identifier of its earlier value Stripe would refuse a changed hour for a day.
  const hour = new Date(timestamp * 1000).toISOString().slice(0, 13);
  const identifier = `${customerId}:${eventName}:${hour}Z:${value}`;
  if (identifier.length > LONGEST_IDENTIFIER) {
    throw new RangeError(`customerId, eventName: together too long for an identifier of ${LONGEST_IDENTIFIER}`);
  }
  const payload = { stripe_customer_id: customerId, value: String(value) };
  return [{ event_name: eventName, identifier, payload, timestamp }];
}

/** Out less in: a battery that is charged takes back what it will give later. */
function netWh(energies: { energy_out_wh?: number | null; energy_in_wh?: number | null }): number {
  return (energies.energy_out_wh ?? 0) - (energies.energy_in_wh ?? 0);
}

/** The meters that count, as in the service's own `consumption_wh`: in line behind a main meter, a ups passes on the same. */
function countedMeters(report: Report): MeterReport[] {
  const hasMain = report.meters.some((meter) => meter.type === "main");
  return report.meters.filter((meter) => meter.type !== "ups" || !hasMain);
}

/**
 * Wh that a report's device, or several devices together, consumed: energy out less energy in over its meters, a ups only
 * where there is no main meter. With `types`, over all meters of these types instead.
 */
export function consumedWh(reports: Report | readonly Report[], types?: readonly MeterType[]): number {
  const meters = [reports]
    .flat()
    .flatMap((report: Report) =>
      types === undefined ? countedMeters(report) : report.meters.filter((meter) => types.includes(meter.type)),
    );
  return tidy(meters.reduce((sum, meter) => sum + netWh(meter), 0));
}

/** One event is for one hour: a report of days would be billed as that hour's. */
function checkPeriod(report: Report): void {
  const slack = 1e-6; // days: 1 / 24 is no binary fraction, and may come rounded
  if (!(report.period_days <= HOUR_IN_DAYS + slack)) {
    throw new RangeError(
      `report of ${report.device_id}: expected a period of at most an hour (days: 1 / 24), got ${report.period_days} ` +
        "days: bill longer ones hour by hour with statisticsToMeterEvents",
    );
  }
}

/**
 * The meter event for the consumption in a report of an hour: none or one. Give all reports of a customer's devices
 * together: of several events in one hour, Stripe keeps the last where the meter has an hourly window. Add
 * `consumedWh(report)` to what you give as `totalWh` the next time, and no watt-hour is lost to rounding. Throws
 * RangeError, also for a report of more than an hour.
 */
export function toMeterEvents(report: Report | readonly Report[], options: ReportBilling): MeterEvent[] {
  for (const one of [report].flat()) checkPeriod(one);
  return meterEvents(options, hourSeconds(options.hour), options.totalWh ?? 0, consumedWh(report));
}

/** Events by the hour. */
export interface HourlyBilling extends Billing {
  /** Only hours that are over by then; take a time some minutes ago, for readings come late. */
  until: Date | string;
}

/**
 * One meter event for each UTC hour in the hourly statistics of a customer's meters, oldest first: their energy out less
 * their energy in. Give the rows of all meters of a device but its ups, where it has a main meter too. `totalWh` is what
 * to give the next time, with the hours after these. Throws RangeError.
 */
export function statisticsToMeterEvents(
  statistics: readonly PowerStatistics[],
  options: HourlyBilling,
): { events: MeterEvent[]; totalWh: number } {
  const until = hourSeconds(options.until);
  const hours = new Map<number, number>();
  for (const row of statistics) {
    const hour = hourSeconds(row.start);
    if (hour < until) hours.set(hour, (hours.get(hour) ?? 0) + netWh(row));
  }
  let totalWh = options.totalWh ?? 0;
  const events: MeterEvent[] = [];
  for (const [hour, wh] of [...hours].sort(([a], [b]) => a - b)) {
    events.push(...meterEvents(options, hour, totalWh, wh));
    totalWh = tidy(totalWh + wh);
  }
  return { events, totalWh };
}
