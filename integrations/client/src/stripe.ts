/**
 * Makes Stripe meter events of reports and statistics, as plain objects, without Stripe's package.
 *
 * Stripe replaced usage records by Billing Meters and their events in 2025.
 */

import type { MeterReport, MeterType, PowerStatistics, Report } from "./types.gen";

/** The argument of `stripe.billing.meterEvents.create()`. */
export interface MeterEvent {
  /** The meter's event name. */
  event_name: string;
  /**
   * Made of customer, event, hour and value. The same usage has the same identifier, so Stripe
   * counts it once; an hour that has changed has another.
   */
  identifier: string;
  /** `value` is whole watt-hours, as text. */
  payload: { stripe_customer_id: string; value: string };
  /** The start of the hour, in Unix seconds. */
  timestamp: number;
}

/** The customer and the meter of an event. */
export interface Billing {
  /** Stripe's id of the customer, `cus_...`. */
  customerId: string;
  /** The meter's event name. */
  eventName: string;
  /** Wh of this customer in earlier events, before rounding; 0 by default. */
  totalWh?: number | undefined;
}

/** The options for a report's events. */
export interface ReportBilling extends Billing {
  /** The UTC hour of the events; minutes and seconds are ignored. A Date, or ISO 8601 text. */
  hour: Date | string;
}

const HOUR_SECONDS = 3_600;
const HOUR_IN_DAYS = 1 / 24;
const LONGEST_IDENTIFIER = 100; // Stripe's
const MOST_WH = 999_999_999_999_999; // Stripe takes 15 digits

function hourSeconds(hour: Date | string): number {
  const ms = hour instanceof Date ? hour.getTime() : Date.parse(hour);
  if (!Number.isFinite(ms))
    throw new RangeError(`hour: expected a Date or ISO 8601 text, got ${String(hour)}`);
  return Math.floor(ms / 1000 / HOUR_SECONDS) * HOUR_SECONDS;
}

/**
 * Remove the noise of adding binary fractions: ten times 0.1 Wh is 1 Wh. The service's energies
 * have 9 decimals.
 */
function tidy(wh: number): number {
  return Number(wh.toFixed(9));
}

/** One hour's event, or none if no watt-hour was completed. */
function meterEvents(
  billing: Billing,
  timestamp: number,
  totalWh: number,
  wh: number,
): MeterEvent[] {
  if (!(Math.abs(totalWh) <= MOST_WH && Math.abs(totalWh + wh) <= MOST_WH)) {
    throw new RangeError(`expected watt-hours of at most ${MOST_WH}, got ${totalWh} and ${wh}`);
  }
  // The difference of two floors: what is rounded off now is in a later event, so the sum is never
  // 1 Wh short.
  const value = Math.floor(tidy(totalWh + wh)) - Math.floor(tidy(totalWh));
  if (value === 0) return [];
  const { customerId, eventName } = billing;
  // With the value: Stripe would refuse a changed hour under its earlier identifier for a day.
  const hour = new Date(timestamp * 1000).toISOString().slice(0, 13);
  const identifier = `${customerId}:${eventName}:${hour}Z:${value}`;
  if (identifier.length > LONGEST_IDENTIFIER) {
    throw new RangeError(
      `customerId, eventName: together too long for an identifier of ${LONGEST_IDENTIFIER}`,
    );
  }
  const payload = { stripe_customer_id: customerId, value: String(value) };
  return [{ event_name: eventName, identifier, payload, timestamp }];
}

/** Energy out less energy in: a battery that charges takes in what it gives later. */
function netWh(energies: { energy_out_wh?: number | null; energy_in_wh?: number | null }): number {
  return (energies.energy_out_wh ?? 0) - (energies.energy_in_wh ?? 0);
}

/**
 * The meters that count, as in the service's `consumption_wh`: behind a main meter, a ups passes on
 * the same energy.
 */
function countedMeters(report: Report): MeterReport[] {
  const hasMain = report.meters.some((meter) => meter.type === "main");
  return report.meters.filter((meter) => meter.type !== "ups" || !hasMain);
}

/**
 * The Wh that a report's device, or several devices together, consumed: energy out less energy in
 * over its meters, with a ups only where there is no main meter. With `types`, over all meters of
 * these types instead.
 */
export function consumedWh(
  reports: Report | readonly Report[],
  types?: readonly MeterType[],
): number {
  const meters = [reports]
    .flat()
    .flatMap((report: Report) =>
      types === undefined
        ? countedMeters(report)
        : report.meters.filter((meter) => types.includes(meter.type)),
    );
  return tidy(meters.reduce((sum, meter) => sum + netWh(meter), 0));
}

/** An event is for one hour: a report of days would be billed as one hour. */
function checkPeriod(report: Report): void {
  const slack = 1e-6; // days: 1 / 24 is not a binary fraction, and may arrive rounded
  if (!(report.period_days <= HOUR_IN_DAYS + slack)) {
    throw new RangeError(
      `report of ${report.device_id}: expected a period of at most an hour (days: 1 / 24), got ${report.period_days} ` +
        "days: bill longer ones hour by hour with statisticsToMeterEvents",
    );
  }
}

/**
 * The meter event, if any, for the consumption in a report of one hour. Pass all reports of a
 * customer's devices together: on a meter with an hourly window, Stripe keeps only the last of
 * several events in an hour. Add `consumedWh(report)` to `totalWh` for the next call, so that no
 * watt-hour is lost to rounding. Throws RangeError for invalid values, and for a report of more
 * than an hour.
 */
export function toMeterEvents(
  report: Report | readonly Report[],
  options: ReportBilling,
): MeterEvent[] {
  for (const one of [report].flat()) checkPeriod(one);
  return meterEvents(options, hourSeconds(options.hour), options.totalWh ?? 0, consumedWh(report));
}

/** The options for hourly events. */
export interface HourlyBilling extends Billing {
  /** Only hours that end by then. Use a time some minutes ago, because readings arrive late. */
  until: Date | string;
}

/**
 * One meter event for each UTC hour in the hourly statistics of a customer's meters, oldest first:
 * energy out less energy in. Pass the rows of all meters of a device, without its ups if it has a
 * main meter. Pass the returned `totalWh` the next time, with the hours after these. Throws
 * RangeError for invalid values.
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
