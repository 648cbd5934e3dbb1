"""The ledger's meters at Stripe, and which of them an hour belongs to.

Without a tariff there is one meter, of a period without a name. With one the period of an hour is
noted when the hour is first counted, and stays: whatever becomes of the rules of its time zone, a
revision goes to the meter that has the hour.
"""

from __future__ import annotations

import argparse
import re
import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from power_billing.errors import BillingError
from power_billing.money import Price, forget_amount
from power_billing.sinks import EVENT_NAME
from power_billing.tables import (
    METER_NAME_SETTING,
    METER_SETTING,
    PRICE_SETTING,
    Place,
    set_setting,
    setting,
    tables,
)
from power_billing.tariff import WEEK_HOURS, Period, Tariff

PLAIN = ""  # the period of every hour without a tariff
_ZONE_SETTING = "tariff_zone"


@dataclass(frozen=True)
class LedgerMeter:
    """A meter at Stripe that usage goes to, and the price of new subscriptions; None: none yet."""

    period: str
    event_name: str
    meter_id: str
    price_id: str | None


def ledger_meters(conn: sqlite3.Connection) -> list[LedgerMeter]:
    """The ledger's meters, in the tariff's order; none before setup."""
    sql = "SELECT name, event_name, meter_id, price_id FROM billing_periods ORDER BY position"
    found = [
        LedgerMeter(name, event_name, meter_id, price_id)
        for name, event_name, meter_id, price_id in conn.execute(sql)
    ]
    meter_id = setting(conn, METER_SETTING)
    if found or meter_id is None:
        return found
    price_id = setting(conn, PRICE_SETTING)
    return [LedgerMeter(PLAIN, meter_name_of(conn), meter_id, price_id)]


def meter_name_of(conn: sqlite3.Connection) -> str:
    """The meter's name in events, with which a period's begins: EVENT_NAME, or setup's --meter."""
    return setting(conn, METER_NAME_SETTING) or EVENT_NAME


def parse_meter_name(text: str) -> str:
    """Text as a meter's name that leaves room in identifiers, for argparse.

    >>> parse_meter_name("energy_roof")
    'energy_roof'
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,15}", text):
        raise argparse.ArgumentTypeError(
            "expected 1 to 16 lower-case letters, digits and underscores, a letter first, got "
            f"{text!r}"
        )
    return text


def event_name_of(meter_name: str, period: str) -> str:
    """The name in events of a period's meter.

    >>> event_name_of("power_watt_hours", "peak")
    'power_watt_hours_peak'
    """
    return f"{meter_name}_{period}"


# --- The tariff


def tariff_of(conn: sqlite3.Connection) -> Tariff | None:
    """The ledger's tariff; None where it has none."""
    zone = setting(conn, _ZONE_SETTING)
    sql = "SELECT name, week, amount, currency, unit FROM billing_periods ORDER BY position"
    periods = []
    for name, week, amount, currency, unit in conn.execute(sql):
        hours = frozenset(hour for hour in range(WEEK_HOURS) if week[hour] == "1")
        price = Price(Decimal(amount), currency, unit)
        periods.append(Period(name, price, hours))
    if zone is None or not periods:
        return None
    return Tariff(zone, tuple(periods))


def refuse_other_hours(conn: sqlite3.Connection, place: Place, tariff: Tariff | None) -> None:
    """Raise BillingError for a tariff (None: none) that would put counted hours on other meters."""
    present = tariff_of(conn)
    if present is None and tariff is None:
        return
    is_same = present is not None and tariff is not None and present.has_same_hours(tariff)
    is_new = tariff is not None and not _has_counted(conn)
    if is_same or is_new:
        return
    if present is None:
        raise BillingError(
            f"{place.db_path}: hours are counted for the meter {meter_name_of(conn)}, and each "
            "stays on its meter: begin a ledger for the tariff by --ledger FILE"
        )
    names = ", ".join(period.name for period in present.periods)
    if tariff is None:
        raise BillingError(
            f"{place.db_path}: it has a tariff ({present.zone}; {names}): give its file by "
            "--tariff, or begin a ledger without one by --ledger FILE"
        )
    raise BillingError(
        f"{place.db_path}: hours are counted by its tariff ({present.zone}; {names}), and each "
        "stays on its meter: prices may change, but another zone or other hours need a ledger of "
        "their own, by --ledger FILE"
    )


def _has_counted(conn: sqlite3.Connection) -> bool:
    return conn.execute("SELECT 1 FROM billing_totals LIMIT 1").fetchone() is not None


def keep_tariff(
    conn: sqlite3.Connection, tariff: Tariff, meter_name: str, meters: Mapping[str, LedgerMeter]
) -> None:
    """Remember a tariff, with the meter of each period by its name, instead of the one before.

    meter_name: what the names of the meters begin with. Call refuse_other_hours() in the same
    transaction.
    """
    if not _has_counted(conn):  # what is noted may belong to customers that were forgotten
        conn.execute("DELETE FROM billing_hour_periods")
    conn.execute("DELETE FROM billing_periods")
    sql = "INSERT INTO billing_periods VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    for position, period in enumerate(tariff.periods):
        week = "".join("1" if hour in period.hours else "0" for hour in range(WEEK_HOURS))
        price = period.price
        meter = meters[period.name]
        values = (
            position,
            period.name,
            meter.event_name,
            week,
            str(price.amount),
            price.currency,
            price.unit,
            meter.meter_id,
            meter.price_id,
        )
        conn.execute(sql, values)
    set_setting(conn, _ZONE_SETTING, tariff.zone)
    set_setting(conn, METER_NAME_SETTING, meter_name)
    forget_amount(conn)  # of a price for every hour


# --- Hours


class DayPeriod(NamedTuple):
    """The hours of a UTC day (since 1970) that a period has."""

    day: int
    period: str


@dataclass(frozen=True)
class HourPeriods:
    """What is noted of hours, and the tariff for those of which nothing is."""

    noted: Mapping[int, str]
    tariff: Tariff | None

    def of(self, hour: int) -> str:
        """The period of an hour."""
        if self.tariff is None:
            return PLAIN
        return self.noted.get(hour) or self.tariff.period_of(hour)


def hour_periods(conn: sqlite3.Connection, hours: range) -> HourPeriods:
    """The periods of hours."""
    tariff = tariff_of(conn)
    if tariff is None:
        return HourPeriods({}, None)
    sql = "SELECT hour, period FROM billing_hour_periods WHERE hour >= ? AND hour < ?"
    noted = dict(conn.execute(sql, (hours.start, hours.stop)).fetchall())
    return HourPeriods(noted, tariff)


def periods_of(conn: sqlite3.Connection, hours: Collection[int]) -> HourPeriods:
    """The periods of some hours, in any order."""
    if not hours:
        return hour_periods(conn, range(0))
    return hour_periods(conn, range(min(hours), max(hours) + 1))


def note_periods(conn: sqlite3.Connection, hours: Iterable[int]) -> None:
    """Note the present period of hours, which they keep; hours already noted stay unchanged."""
    tariff = tariff_of(conn)
    if tariff is None:
        return
    sql = "INSERT OR IGNORE INTO billing_hour_periods VALUES (?, ?)"
    conn.executemany(sql, [(hour, tariff.period_of(hour)) for hour in hours])


class HourMeters:
    """The meters of a ledger, by hour.

    ids, event_names: of all its meters. name: the ledger's own, with which their names begin.
    """

    def __init__(self, place: Place, meters: Sequence[LedgerMeter]) -> None:
        self._place = place
        with tables(place) as conn:
            self.name = meter_name_of(conn)
        self._by_period = {meter.period: meter for meter in meters}
        self.ids = [meter.meter_id for meter in meters]
        self.event_names = [meter.event_name for meter in meters]

    def of(self, hours: Collection[int]) -> dict[int, LedgerMeter]:
        """The meter of each hour."""
        if not hours:
            return {}
        if PLAIN in self._by_period:  # nothing to look up
            return dict.fromkeys(hours, self._by_period[PLAIN])
        with tables(self._place) as conn:
            periods = periods_of(conn, hours)
        return {hour: self._by_period[periods.of(hour)] for hour in hours}
