"""Each hour in whole watt-hours.

For each customer two sums are kept: the nano-watt-hours taken into account, and the whole
watt-hours made of them. The second is always the first rounded down, so all hours together are
never off by 1 Wh. An hour that is new, or that late readings have changed, gets the difference that
keeps this so; no other hour is touched.

What was billed of readings, meters or devices that are deleted later stays billed. The number of
readings, which is kept with each device's hour, shows that some were deleted.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from power_billing.counting import DeviceUsage, Used
from power_billing.findings import Finding, FindingKind
from power_billing.hours import BILLABLE_HOURS
from power_billing.links import Link
from power_billing.outbox import queue_value
from power_billing.periods import DayPeriod, hour_periods, note_periods
from power_billing.sources import NANO

# No device draws 100 MW: an hour beyond that is a broken sensor's. A device's day of such hours
# fits SQLite's integers, and so does a customer's hour of 90 such devices.
MAX_HOUR_NWH = 10**8 * NANO
MAX_CUSTOMER_NWH = 90 * MAX_HOUR_NWH
# Some days more than can be billed: the clock may move meanwhile, and what has just become too old
# has to be listed.
LOOK_BACK_DAYS = BILLABLE_HOURS // 24 + 6
_KEPT_HOURS = 48  # for so long a deletion counts as the cause of changes in the hours after it


@dataclass(frozen=True)
class Hours:
    """The hours that a run looks at, from `seen` on, and those of them that it may bill."""

    seen: int
    billable: range


def by_customer(links: Iterable[Link]) -> dict[str, list[Link]]:
    """Links by customer, in order of making."""
    found = defaultdict(list)
    for link in links:
        found[link.customer].append(link)
    return dict(found)


def book(
    conn: sqlite3.Connection, customer: str, usages: Sequence[DeviceUsage], hours: Hours
) -> list[Finding]:
    """Count what the customer's devices used, queue what changes, and return what cannot be billed.

    An hour without readings counts as nothing. Call it in the transaction of tables().
    """
    counted = _counted(conn, customer, hours.seen)
    totals = _by_hour(counted)
    changes: dict[int, int] = defaultdict(int)  # nano-watt-hours by hour
    found: list[Finding] = []
    for device in _merged(usages):
        known = counted.get(device.device_id, {})
        for change in _changes(device, known, hours.seen):
            used, before = change.used, known.get(change.hour, Used())
            kind = None
            if change.is_kept:
                is_more = used.nwh > before.nwh and device.is_kept(change.hour)
                kind = FindingKind.UNCLEAR if is_more else FindingKind.KEPT
            elif abs(used.nwh) > MAX_HOUR_NWH:
                kind = FindingKind.SENSOR
            elif change.hour < hours.billable.start:
                kind = FindingKind.LATE
            elif change.hour not in hours.billable:
                continue
            elif abs(totals[change.hour] + used.nwh - before.nwh) > MAX_CUSTOMER_NWH:
                kind = FindingKind.SENSOR
            difference = used.nwh - before.nwh
            if kind is None:
                totals[change.hour] += difference
                changes[change.hour] += difference
                _keep(conn, customer, device.device_id, change.hour, used)
            elif difference:
                wh = difference / NANO
                found.append(Finding(kind, customer, device.device_id, change.hour, wh))
    note_periods(conn, changes)
    _round(conn, customer, changes)
    return _by_day(found)


def _by_day(found: Sequence[Finding]) -> list[Finding]:
    """The same, with one finding a kind, device and day for what was deleted: it may be a month."""
    by_day: dict[tuple[FindingKind, str, int], Finding] = {}
    others = []
    for one in found:
        if one.kind not in (FindingKind.KEPT, FindingKind.UNCLEAR):
            others.append(one)
            continue
        key = (one.kind, one.device_id, one.hour // 24)
        there = by_day.get(key)
        if there is not None:
            watt_hours = there.watt_hours + one.watt_hours
            one = Finding(one.kind, one.customer, one.device_id, there.hour, watt_hours)
        by_day[key] = one
    return others + list(by_day.values())


@dataclass(frozen=True)
class _Change:
    """An hour of a device that has changed since it was counted; is_kept: it stays billed so."""

    hour: int
    used: Used
    is_kept: bool


def _merged(usages: Sequence[DeviceUsage]) -> list[DeviceUsage]:
    """One usage a device: it may have been linked to the customer more than once."""
    found: dict[str, DeviceUsage] = {}
    for usage in usages:
        merged = found.setdefault(usage.device_id, DeviceUsage(usage.device_id))
        merged.by_hour.update(usage.by_hour)
        merged.kept.extend(usage.kept)
        merged.is_deleted = usage.is_deleted
    return list(found.values())


def _changes(device: DeviceUsage, known: dict[int, Used], seen: int) -> Iterator[_Change]:
    """The device's hours that differ from what was counted, in order.

    An hour with fewer readings than before has lost some. That also changes the energy at the start
    of the hours after it, which have as many readings as before.
    """
    deleted_at: int | None = None
    for hour in sorted(hour for hour in {*known, *device.by_hour} if hour >= seen):
        before, used = known.get(hour), device.by_hour.get(hour, Used())
        if before is None:
            yield _Change(hour, used, is_kept=False)
            continue
        if used.reading_count < before.reading_count:
            deleted_at = hour
        elif used.reading_count > before.reading_count:
            deleted_at = None
        if used != before:
            follows = deleted_at is not None and hour - deleted_at <= _KEPT_HOURS
            yield _Change(hour, used, follows or device.is_kept(hour))


def _counted(conn: sqlite3.Connection, customer: str, seen: int) -> dict[str, dict[int, Used]]:
    """What was counted of each device, by hour."""
    found: dict[str, dict[int, Used]] = defaultdict(dict)
    sql = """SELECT device_id, hour, counted_nwh, reading_count FROM billing_device_hours
        WHERE customer = ? AND hour >= ?"""
    for device_id, hour, counted_nwh, reading_count in conn.execute(sql, (customer, seen)):
        found[device_id][hour] = Used(counted_nwh, reading_count)
    return found


def _by_hour(counted: dict[str, dict[int, Used]]) -> dict[int, int]:
    """What was counted of all devices together: nano-watt-hours by hour."""
    totals: dict[int, int] = defaultdict(int)
    for by_hour in counted.values():
        for hour, used in by_hour.items():
            totals[hour] += used.nwh
    return totals


def _keep(conn: sqlite3.Connection, customer: str, device_id: str, hour: int, used: Used) -> None:
    sql = "INSERT OR REPLACE INTO billing_device_hours VALUES (?, ?, ?, ?, ?)"
    conn.execute(sql, (customer, hour, device_id, used.nwh, used.reading_count))


def _round(conn: sqlite3.Connection, customer: str, changes: dict[int, int]) -> None:
    """Make whole watt-hours of what has changed, and queue them.

    `rest` is the part of the customer's total that is not a whole watt-hour yet: 0 to below 1 Wh.
    """
    sql = "SELECT billed_wh, rest_nwh FROM billing_totals WHERE customer = ?"
    billed, rest = conn.execute(sql, (customer,)).fetchone() or (0, 0)
    sql = "SELECT counted_nwh, whole_wh FROM billing_hours WHERE customer = ? AND hour = ?"
    for hour in sorted(changes):
        if not changes[hour]:
            continue
        nwh, whole = conn.execute(sql, (customer, hour)).fetchone() or (0, 0)
        step, rest = divmod(rest + changes[hour], NANO)
        billed += step
        whole += step
        row = (customer, hour, nwh + changes[hour], whole)
        conn.execute("INSERT OR REPLACE INTO billing_hours VALUES (?, ?, ?, ?)", row)
        queue_value(conn, customer, hour, whole)
    conn.execute("INSERT OR REPLACE INTO billing_totals VALUES (?, ?, ?)", (customer, billed, rest))


def counted_by_day(
    conn: sqlite3.Connection, customer: str, hours: range
) -> dict[str, dict[DayPeriod, int]]:
    """Nano-watt-hours counted in hours and closed days, by device, then UTC day and period."""
    found: dict[str, dict[DayPeriod, int]] = defaultdict(lambda: defaultdict(int))
    periods = hour_periods(conn, hours)
    sql = """SELECT device_id, hour, counted_nwh FROM billing_device_hours
        WHERE customer = ? AND hour >= ? AND hour < ?"""
    for device_id, hour, counted_nwh in conn.execute(sql, (customer, hours.start, hours.stop)):
        found[device_id][DayPeriod(hour // 24, periods.of(hour))] += counted_nwh
    sql = """SELECT device_id, day, period, counted_nwh FROM billing_device_days
        WHERE customer = ? AND day >= ? AND day < ?"""
    days = (customer, hours.start // 24, -(-hours.stop // 24))
    for device_id, day, period, counted_nwh in conn.execute(sql, days):
        found[device_id][DayPeriod(day, period)] += counted_nwh
    return {device_id: dict(by_day) for device_id, by_day in found.items()}


def billed_wh(conn: sqlite3.Connection, customer: str) -> int:
    """The whole watt-hours made of what was taken into account so far."""
    sql = "SELECT billed_wh FROM billing_totals WHERE customer = ?"
    (wh,) = conn.execute(sql, (customer,)).fetchone() or (0,)
    return int(wh)
