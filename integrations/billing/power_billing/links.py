"""Which device is billed to which customer, from which hour to which."""

from __future__ import annotations

import argparse
import re
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from power_billing.errors import BillingError
from power_billing.hours import HOUR, hour_of, iso, next_hour, oldest_billable, seconds_of
from power_billing.sources import Devices
from power_billing.tables import LedgerFile, Place, has_tables, tables
from power_manager import InvalidValue, MeterType, PowerEventType, check_text, nearest

TYPES = tuple(kind.value for kind in MeterType)
SEE_STATUS = ": see power-billing status"
_COLUMNS = "device_id, customer, subscription_item, types, from_hour, until_hour"
_ALL_LINKS = f"SELECT {_COLUMNS} FROM billing_links ORDER BY link_key"
_LINKS_OF_DEVICE = f"SELECT {_COLUMNS} FROM billing_links WHERE device_id = ? ORDER BY link_key"
_PRESENT_LINKS_OF_CUSTOMER = f"""SELECT {_COLUMNS} FROM billing_links
    WHERE customer = ? AND until_hour IS NULL ORDER BY link_key"""


@dataclass(frozen=True)
class Link:
    """A device billed to a customer, in hours (since 1970) from `from_hour` to before `until_hour`.

    `types` are the meters that count, each with what it gave less what it took; None: by the
    library's rule, all of them, but a ups only where the device has no main meter.
    `subscription_item` is kept for people: meters bill by customer.
    """

    device_id: str
    customer: str
    subscription_item: str | None
    types: tuple[str, ...] | None
    from_hour: int
    until_hour: int | None = None

    def covers(self, hour: int) -> bool:
        """Whether that hour is billed by this link."""
        return self.from_hour <= hour and (self.until_hour is None or hour < self.until_hour)


def check_id(name: str, prefix: str, value: Any) -> str:
    """The value, if it looks like one of Stripe's ids, such as cus_...; otherwise InvalidValue."""
    if not _is_id(value, prefix):
        raise InvalidValue(f"{name}: {_expected_id(prefix)}, got {value!r}")
    return str(value)


def parse_id(text: str, prefix: str) -> str:
    """Text as one of Stripe's ids, for argparse.

    >>> parse_id("cus_Nf1XyzAbc", "cus")
    'cus_Nf1XyzAbc'
    """
    if not _is_id(text, prefix):
        raise argparse.ArgumentTypeError(f"{_expected_id(prefix)}, got {text!r}")
    return text


def _is_id(value: Any, prefix: str) -> bool:
    pattern = rf"{prefix}_[A-Za-z0-9]{{1,56}}"
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _expected_id(prefix: str) -> str:
    return f"expected an id of Stripe's that begins with {prefix}_"


def parse_types(text: str) -> tuple[str, ...]:
    """Text as the types of meters that count, for argparse.

    >>> parse_types("ups,main")
    ('main', 'ups')
    """
    wanted = text.split(",")
    for word in wanted:
        if word not in TYPES:
            expected = f"expected some of {', '.join(TYPES)}, with commas between them"
            raise argparse.ArgumentTypeError(f"{expected}, got {text!r}{nearest(word, TYPES)}")
    return tuple(kind for kind in TYPES if kind in wanted)


def _check_types(types: Iterable[str] | None) -> tuple[str, ...] | None:
    if types is None:
        return None
    wanted = [types] if isinstance(types, str) else list(types)
    if not wanted or not set(wanted) <= set(TYPES):
        got = ", ".join(map(str, wanted)) or "none"
        raise InvalidValue(f"types: expected some of {', '.join(TYPES)}, got {got}")
    return tuple(kind for kind in TYPES if kind in wanted)


def check_clock(pm: Devices, device_id: str, now: float) -> None:
    """Raise BillingError for a clock that is behind a device's newest reading.

    A machine that starts without a network may have such a clock; it would bill the past as well.
    """
    times = [meter.updated_at for meter in pm.list_meters(device_id) if meter.updated_at]
    newest = max(times, default=None)
    if newest is not None and seconds_of("updated_at", newest) > now + HOUR:
        raise BillingError(
            f"{device_id}: its newest reading is of {newest}, and this machine's clock is behind "
            "that: set the clock, or say since when"
        )


def can_begin(hour: int, now: float) -> bool:
    """Whether a link may begin with that hour: one that can still be billed, or the next."""
    return oldest_billable(now) <= hour <= next_hour(now)


def link(
    pm: Devices,
    device_id: str,
    customer: str,
    *,
    subscription_item: str | None = None,
    types: Iterable[str] | None = None,
    since: Any = None,
    clock: Callable[[], float] = time.time,
    ledger: Place | None = None,
) -> Link:
    """Bill a device's consumption to a customer, from the next full UTC hour on.

    customer is Stripe's cus_..., subscription_item its si_... or None (default). types: the meters
    that count, with what they gave less what they took (default: the library's rule, all of them,
    but a ups only where there is no main). since: an aware datetime, ISO 8601 text with an offset,
    or epoch seconds, at most 35 days back. ledger: where the billing tables are (default: the file
    itself). A device that another customer's debt has shut down gets a `restore` event, and one
    whose new customer's devices are shut down gets `shutdown`. Raises NotFound, InvalidValue, and
    BillingError for a device that is linked then already, and without since for a clock behind the
    device's newest reading.
    """
    pm.get_device(device_id)
    now, item = clock(), subscription_item
    if since is None:
        check_clock(pm, device_id, now)
    begin = next_hour(now) if since is None else hour_of("since", since)
    if not can_begin(begin, now):
        raise InvalidValue(f"since: expected a time of the past 35 days, got {since!r}")
    check_id("customer", "cus", customer)
    item = None if item is None else check_id("subscription_item", "si", item)
    made = Link(device_id, customer, item, _check_types(types), begin)
    with tables(ledger or pm) as conn:
        for other in _select(conn, _LINKS_OF_DEVICE, device_id):
            # One that ended before it began has billed nothing.
            if other.until_hour is None or other.until_hour > max(begin, other.from_hour):
                until = "now" if other.until_hour is None else iso(other.until_hour)
                raise BillingError(
                    f"{device_id}: billed to {other.customer} from {iso(other.from_hour)} to "
                    f"{until} already: unlink it first, or begin later"
                )
        kept_types = None if made.types is None else ",".join(made.types)
        values = (device_id, customer, item, kept_types, begin)
        conn.execute(f"INSERT INTO billing_links ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, NULL)", values)
        _tell_device(pm, conn, device_id, customer)
    return made


def _tell_device(pm: Devices, conn: sqlite3.Connection, device_id: str, customer: str) -> None:
    """Let a device that changes hands follow the debts of its new customer alone."""
    sql = "DELETE FROM billing_shutdowns WHERE device_id = ? AND customer != ?"
    was_held = conn.execute(sql, (device_id, customer)).rowcount > 0
    sql = """SELECT invoice FROM billing_invoices WHERE customer = ? AND told AND NOT settled
        ORDER BY due_at LIMIT 1"""
    unpaid = next((invoice for (invoice,) in conn.execute(sql, (customer,))), None)
    if unpaid is None:
        if was_held:
            note = f"billing: it is {customer}'s now"
            pm.trigger_event(device_id, PowerEventType.RESTORE, note=note)
        return
    sql = "INSERT OR IGNORE INTO billing_shutdowns VALUES (?, ?)"
    if conn.execute(sql, (device_id, customer)).rowcount:
        note = f"billing: {unpaid} is not paid"
        pm.trigger_event(device_id, PowerEventType.SHUTDOWN, note=note)


def unlink(place: Place, device_id: str, *, clock: Callable[[], float] = time.time) -> Link:
    """Stop billing a device at the next full UTC hour; the present hour is still billed.

    A link that was given a later end, by a clock that was ahead, is ended too. Return the link as
    it ended. Raises InvalidValue, and BillingError for a device that is not linked.
    """
    check_text("device_id", device_id)
    following = next_hour(clock())
    with tables(place) as conn:
        present = [
            one
            for one in _select(conn, _LINKS_OF_DEVICE, device_id)
            if one.until_hour is None or one.until_hour > max(following, one.from_hour)
        ]
        if not present:
            sql = "SELECT device_id FROM billing_links WHERE until_hour IS NULL"
            hint = nearest(device_id, [one for (one,) in conn.execute(sql)])
            raise BillingError(f"{device_id}: not linked{hint or SEE_STATUS}")
        old = present[-1]
        sql = "SELECT coalesce(max(hour), -1) FROM billing_hours WHERE customer = ?"
        (counted,) = conn.execute(sql, (old.customer,)).fetchone()
        # Never before what is billed already: the clock may have been set back.
        end = max(following, old.from_hour, int(counted) + 1)
        sql = """UPDATE billing_links SET until_hour = ?
            WHERE device_id = ? AND from_hour = ? AND until_hour IS ?"""
        conn.execute(sql, (end, device_id, old.from_hour, old.until_hour))
    return Link(device_id, old.customer, old.subscription_item, old.types, old.from_hour, end)


def links_of(place: Place) -> list[Link]:
    """Every link, present and past, oldest first; place: a PowerManager, or a LedgerFile."""
    with tables(place) as conn:
        return _select(conn, _ALL_LINKS)


def has_links(place: Place) -> bool:
    """Whether any device was ever linked; it makes neither tables nor a ledger's own file."""
    if isinstance(place, LedgerFile) and not place.db_path.exists():
        return False
    with place.connection() as conn:
        return has_tables(conn) and bool(_select(conn, _ALL_LINKS))


def links_to(place: Place, customer: str) -> list[Link]:
    """Every link to a customer, oldest first. Raises BillingError if there never was one."""
    links = links_of(place)
    found = [one for one in links if one.customer == customer]
    if not found:
        hint = nearest(customer, [one.customer for one in links])
        raise BillingError(f"{customer}: no device was ever billed to it{hint or SEE_STATUS}")
    return found


def keep_item(place: Place, customer: str, subscription_item: str) -> None:
    """Keep the subscription item (si_...) beside each device that is billed to the customer now."""
    with tables(place) as conn:
        sql = """UPDATE billing_links SET subscription_item = ?
            WHERE customer = ? AND until_hour IS NULL"""
        conn.execute(sql, (subscription_item, customer))


def linked_devices(conn: sqlite3.Connection, customer: str) -> list[str]:
    """The devices that are billed to a customer now."""
    return [link.device_id for link in _select(conn, _PRESENT_LINKS_OF_CUSTOMER, customer)]


def _select(conn: sqlite3.Connection, sql: str, *values: str) -> list[Link]:
    return [
        Link(
            device_id,
            customer,
            item,
            None if types is None else tuple(types.split(",")),
            begin,
            end,
        )
        for device_id, customer, item, types, begin, end in conn.execute(sql, values)
    ]
