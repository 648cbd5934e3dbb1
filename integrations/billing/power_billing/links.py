"""Which device is billed to which customer, from which hour to which."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from power_billing.errors import BillingError
from power_billing.hours import hour_of, iso, next_hour, oldest_billable
from power_billing.tables import tables
from power_manager import InvalidValue, MeterType, PowerManager

# What these meters supply is consumption; a panel's output is not.
TYPES = (MeterType.MAIN.value, MeterType.BATTERY.value, MeterType.UPS.value)
_COLUMNS = "device_id, customer, subscription_item, types, from_hour, until_hour"


@dataclass(frozen=True)
class Link:
    """A device billed to a customer, for the hours (since 1970) from `from_hour` on and before `until_hour`.

    `types` are the meters that count. `subscription_item` is kept for people: meters bill by customer.
    """

    device_id: str
    customer: str
    subscription_item: str | None
    types: tuple[str, ...]
    from_hour: int
    until_hour: int | None = None

    def covers(self, hour: int) -> bool:
        """Whether that hour is billed by this link."""
        return self.from_hour <= hour and (self.until_hour is None or hour < self.until_hour)


def _check_id(name: str, prefix: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(rf"{prefix}_[A-Za-z0-9]{{1,56}}", value):
        raise InvalidValue(f"{name}: expected an id of Stripe's that begins with {prefix}_, got {value!r}")
    return value


def _check_types(types: Iterable[str]) -> tuple[str, ...]:
    wanted = [types] if isinstance(types, str) else list(types)
    if not wanted or not set(wanted) <= set(TYPES):
        raise InvalidValue(f"types: expected some of {', '.join(TYPES)}, got {', '.join(map(str, wanted)) or 'none'}")
    return tuple(kind for kind in TYPES if kind in wanted)


def link(
    pm: PowerManager,
    device_id: str,
    customer: str,
    *,
    subscription_item: str | None = None,
    types: Iterable[str] = TYPES,
    since: Any = None,
    clock: Callable[[], float] = time.time,
) -> Link:
    """Bill a device's consumption to a customer, from the next full UTC hour on, or from the hour of `since`.

    customer is Stripe's cus_..., subscription_item its si_... or None (default). types: the meters whose energy_out_wh
    counts (default: main, battery, ups). since: an aware datetime, ISO 8601 text with an offset, or epoch seconds, at
    most 35 days back. Raises NotFound, InvalidValue, and BillingError for a device that is linked then already.
    """
    pm.get_device(device_id)
    now, item = clock(), subscription_item
    begin = next_hour(now) if since is None else hour_of("since", since)
    if not oldest_billable(now) <= begin <= next_hour(now):
        raise InvalidValue(f"since: expected a time of the past 35 days, got {since!r}")
    _check_id("customer", "cus", customer)
    item = None if item is None else _check_id("subscription_item", "si", item)
    made = Link(device_id, customer, item, _check_types(types), begin)
    with tables(pm) as conn:
        for other in _select(conn, "device_id = ?", device_id):
            if other.until_hour is None or other.until_hour > begin:
                until = "now" if other.until_hour is None else iso(other.until_hour)
                raise BillingError(
                    f"{device_id}: billed to {other.customer} from {iso(other.from_hour)} to {until} already: "
                    "unlink it first, or begin later"
                )
        values = (device_id, customer, item, ",".join(made.types), begin)
        conn.execute(f"INSERT INTO billing_links ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, NULL)", values)
    return made


def unlink(pm: PowerManager, device_id: str, *, clock: Callable[[], float] = time.time) -> Link:
    """Bill a device no longer from the next full UTC hour on; the hours before stay billed, the present one too.

    Return the link as it ended. Raises BillingError for a device that is not linked.
    """
    with tables(pm) as conn:
        present = _select(conn, "until_hour IS NULL AND device_id = ?", device_id)
        if not present:
            raise BillingError(f"{device_id}: not linked: see power-billing status")
        old = present[0]
        sql = "SELECT coalesce(max(hour), -1) FROM billing_hours WHERE customer = ?"
        (counted,) = conn.execute(sql, (old.customer,)).fetchone()
        # Never before what is billed already: the clock may have been set back.
        end = max(next_hour(clock()), old.from_hour, int(counted) + 1)
        conn.execute(
            "UPDATE billing_links SET until_hour = ? WHERE until_hour IS NULL AND device_id = ?", (end, device_id)
        )
    return Link(device_id, old.customer, old.subscription_item, old.types, old.from_hour, end)


def links_of(pm: PowerManager) -> list[Link]:
    """Every link, present and past, in order of making."""
    with tables(pm) as conn:
        return _select(conn, "?", 1)


def linked_devices(conn: sqlite3.Connection, customer: str) -> list[str]:
    """The devices that are billed to a customer now."""
    return [link.device_id for link in _select(conn, "until_hour IS NULL AND customer = ?", customer)]


def _select(conn: sqlite3.Connection, condition: str, value: object) -> list[Link]:
    rows = conn.execute(f"SELECT {_COLUMNS} FROM billing_links WHERE {condition} ORDER BY link_key", (value,))
    return [
        Link(device_id, customer, item, tuple(types.split(",")), begin, end)
        for device_id, customer, item, types, begin, end in rows
    ]
