/**
 * Reports and statistics as Stripe meter events, as plain objects: this needs no package of Stripe.
 *
 * Stripe removed usage records in 2025; a Billing Meter and its events are what takes their place.
 */

import type { MeterType, PowerStatistics, Report } from "./types.gen";

/** What `stripe.billing.meterEvents.create()` takes. */
export interface MeterEvent {
  /** The meter's event name. */
  event_name: string;
  /** The same for the same hour of the same customer, so that Stripe takes it once. */
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

/** What supplies a device's load; a panel's energy is counted when the battery gives it out. */
const SUPPLIES: readonly MeterType[] = ["main", "battery", "ups"];
const HOUR_SECONDS = 3_600;
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
  if (!(wh >= 0 && totalWh >= 0 && totalWh + wh <= MOST_WH)) {
    throw new RangeError(`expected watt-hours from 0 to ${MOST_WH}, got ${totalWh} and ${wh}`);
  }
  // The difference of two floors: what is rounded off now is in a later event, so all of them are never 1 Wh short.
  const value = Math.floor(tidy(totalWh + wh)) - Math.floor(tidy(totalWh));
  if (value === 0) return [];
  const { customerId, eventName } = billing;
  const identifier = `${customerId}:${eventName}:${new Date(timestamp * 1000).toISOString().slice(0, 13)}Z`;
  if (identifier.length > LONGEST_IDENTIFIER) {
    throw new RangeError(`customerId, eventName: together too long for an identifier of ${LONGEST_IDENTIFIER}`);
  }
  const payload = { stripe_customer_id: customerId, value: String(value) };
  return [{ event_name: eventName, identifier, payload, timestamp }];
}

/** Wh that a report's device, or several devices together, took from these types of meters. */
export function consumedWh(reports: Report | readonly Report[], types: readonly MeterType[] = SUPPLIES): number {
  const meters = [reports].flat().flatMap((report: Report) => report.meters);
  return meters.reduce((sum, meter) => sum + (types.includes(meter.type) ? (meter.energy_out_wh ?? 0) : 0), 0);
}

/**
 * The meter event for the consumption in a report: none or one. Give all reports of a customer's devices together: of
 * several events in one hour, Stripe keeps the last where the meter has an hourly window. Add `consumedWh(report)` to
 * what you give as `totalWh` the next time, and no watt-hour is lost to rounding. Throws RangeError.
 */
export function toMeterEvents(report: Report | readonly Report[], options: ReportBilling): MeterEvent[] {
  return meterEvents(options, hourSeconds(options.hour), options.totalWh ?? 0, consumedWh(report));
}

/** Events by the hour. */
export interface HourlyBilling extends Billing {
  /** Only hours that are over by then; take a time some minutes ago, for readings come late. */
  until: Date | string;
}

/**
 * One meter event for each UTC hour in the hourly statistics of a customer's meters, oldest first; take those of the
 * meters that supply, not of panels. `totalWh` is what to give the next time, with the hours after these. Throws
 * RangeError.
 */
export function statisticsToMeterEvents(
  statistics: readonly PowerStatistics[],
  options: HourlyBilling,
): { events: MeterEvent[]; totalWh: number } {
  const until = hourSeconds(options.until);
  const hours = new Map<number, number>();
  for (const { start, energy_out_wh } of statistics) {
    const hour = hourSeconds(start);
    if (hour < until) hours.set(hour, (hours.get(hour) ?? 0) + energy_out_wh);
  }
  let totalWh = options.totalWh ?? 0;
  const events: MeterEvent[] = [];
  for (const [hour, wh] of [...hours].sort(([a], [b]) => a - b)) {
    events.push(...meterEvents(options, hour, totalWh, wh));
    totalWh = tidy(totalWh + wh);
  }
  return { events, totalWh };
}
