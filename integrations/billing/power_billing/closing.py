"""Once a month: check old hours again, and sum by day those that can no longer be billed.

So a run reads and keeps some ten weeks of hours, however many years the ledger has.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timezone

from power_billing.counting import DeviceUsage
from power_billing.findings import Finding, FindingKind
from power_billing.hours import HOUR
from power_billing.ledger import MAX_HOUR_NWH
from power_billing.periods import DayPeriod
from power_billing.sources import NANO
from power_billing.tables import set_setting, setting

KEPT_HOURS = 70 * 24  # twice as long as anything can be billed
STRIPE_EVENT_SECONDS = 60 * 86_400  # Stripe repeats a delivery for three days
_CLOSED_BEFORE = "closed_before"
_CLOSED_IN = "closed_in"


def closed_before(conn: sqlite3.Connection) -> int:
    """The first hour that is not closed; earlier ones are never billed again."""
    return int(setting(conn, _CLOSED_BEFORE) or 0)


def month_of(now: float) -> str:
    """The UTC month of a time in epoch seconds.

    >>> month_of(1_700_000_000.0)
    '2023-11'
    """
    return datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m")


def is_due(conn: sqlite3.Connection, now: float) -> bool:
    """Whether this month's closing has not been done."""
    return setting(conn, _CLOSED_IN) != month_of(now)


def close(conn: sqlite3.Connection, now: float) -> None:
    """Sum hours of more than 70 days ago by day, and forget old deliveries of Stripe's.

    The clock decides, and the newest hour that the biller has taken: a biller takes no hours of the
    future, so a clock that is years ahead does not close what can still be billed.
    """
    sql = "SELECT max(hour) FROM billing_outbox WHERE state = 'sent'"
    (newest,) = conn.execute(sql).fetchone()
    if newest is not None:
        before = (min(int(now // HOUR), newest) - KEPT_HOURS) // 24 * 24
        if before > closed_before(conn):
            _sum_by_day(conn, before)
            set_setting(conn, _CLOSED_BEFORE, str(before))
    sql = "DELETE FROM billing_stripe_events WHERE created < ?"
    conn.execute(sql, (int(now) - STRIPE_EVENT_SECONDS,))
    set_setting(conn, _CLOSED_IN, month_of(now))


def _sum_by_day(conn: sqlite3.Connection, before: int) -> None:
    """Sum what was sent before its month's invoice and never revised; other rows are kept.

    An hour without a period belongs to a ledger without a tariff.
    """
    conn.execute(
        """INSERT INTO billing_device_days (customer, day, period, device_id, counted_nwh)
        SELECT customer, hour / 24, coalesce(period, ''), device_id, sum(counted_nwh)
        FROM billing_device_hours LEFT JOIN billing_hour_periods USING (hour)
        WHERE hour < ? GROUP BY 1, 2, 3, 4
        ON CONFLICT (customer, day, period, device_id)
            DO UPDATE SET counted_nwh = counted_nwh + excluded.counted_nwh""",
        (before,),
    )
    conn.execute("DELETE FROM billing_device_hours WHERE hour < ?", (before,))
    conn.execute(
        """INSERT INTO billing_customer_days (customer, day, period, whole_wh, sent_wh, event_count)
        SELECT customer, hour / 24, coalesce(period, ''), sum(whole_wh), 0, 0
        FROM billing_hours LEFT JOIN billing_hour_periods USING (hour)
        WHERE hour < ? GROUP BY 1, 2, 3
        ON CONFLICT (customer, day, period)
            DO UPDATE SET whole_wh = whole_wh + excluded.whole_wh""",
        (before,),
    )
    conn.execute("DELETE FROM billing_hours WHERE hour < ?", (before,))
    invoice_at = """CAST(strftime('%s', hour * 3600, 'unixepoch', 'start of month', '+1 month')
        AS INTEGER) + 3600"""
    plain = f"""hour < ? AND state = 'sent' AND revision = 0
        AND coalesce(taken_at, attempted_at, 0) < {invoice_at} AND NOT EXISTS (
            SELECT 1 FROM billing_outbox AS later WHERE later.customer = billing_outbox.customer
            AND later.hour = billing_outbox.hour AND later.revision > 0)"""
    conn.execute(
        f"""INSERT INTO billing_customer_days
            (customer, day, period, whole_wh, sent_wh, event_count)
        SELECT customer, hour / 24, coalesce(period, ''), 0, sum(value_wh), count(*)
        FROM billing_outbox LEFT JOIN billing_hour_periods USING (hour)
        WHERE {plain} GROUP BY 1, 2, 3
        ON CONFLICT (customer, day, period) DO UPDATE
            SET sent_wh = sent_wh + excluded.sent_wh,
                event_count = event_count + excluded.event_count""",
        (before,),
    )
    conn.execute(f"DELETE FROM billing_outbox WHERE {plain}", (before,))


def closed_days(conn: sqlite3.Connection, customer: str, hours: range) -> dict[DayPeriod, int]:
    """Watt-hours of the events of closed days that are summed, by UTC day and period."""
    sql = """SELECT day, period, sent_wh FROM billing_customer_days
        WHERE customer = ? AND day >= ? AND day < ?"""
    days = (customer, hours.start // 24, -(-hours.stop // 24))
    return {DayPeriod(day, period): wh for day, period, wh in conn.execute(sql, days)}


def closed_findings(
    conn: sqlite3.Connection, customer: str, usages: Sequence[DeviceUsage]
) -> list[Finding]:
    """What came to light of closed days since they were closed: more energy than was counted."""
    before = closed_before(conn)
    used: dict[tuple[str, int], int] = defaultdict(int)
    found = []
    for usage in usages:
        for hour, one in usage.by_hour.items():
            if hour >= before:
                continue
            if abs(one.nwh) > MAX_HOUR_NWH:  # not counted then, nor now
                kind, wh = FindingKind.SENSOR, one.nwh / NANO
                found.append(Finding(kind, customer, usage.device_id, hour, wh))
            else:
                used[usage.device_id, hour // 24] += one.nwh
    counted: dict[tuple[str, int], int] = {}
    sql = """SELECT device_id, day, sum(counted_nwh) FROM billing_device_days
        WHERE customer = ? GROUP BY 1, 2"""
    for device_id, day, counted_nwh in conn.execute(sql, (customer,)):
        counted[device_id, day] = counted_nwh
    for (device_id, day), nwh in sorted(used.items()):
        more = nwh - counted.get((device_id, day), 0)
        if more > 0:
            kind = FindingKind.LATE
            found.append(Finding(kind, customer, device_id, day * 24, more / NANO))
    return found
