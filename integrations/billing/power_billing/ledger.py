"""What each hour is in whole watt-hours, and the outbox of what is to be sent.

For each customer two sums are kept: the nano-watt-hours taken into account, and the whole watt-hours made of them.
The second is always the first rounded down, so all hours together are never off by 1 Wh. An hour that is new, or that
late readings have changed, is given the difference that this takes; no other hour is touched.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from power_billing.hours import BILLABLE_HOURS, hour_of, iso
from power_billing.links import Link
from power_billing.sinks import UsageEvent
from power_billing.tables import tables
from power_manager import NotFound, PowerManager

NANO = 10**9  # statistics have 9 decimals: whole nano-watt-hours add up without rounding
# No customer's devices draw 9 GW: an hour beyond that is a broken sensor's. It also fits SQLite's integers.
MAX_HOUR_NWH = 9 * 10**9 * NANO
LOOK_BACK_DAYS = (
    BILLABLE_HOURS // 24 + 6
)  # some days more than can be billed: the clock may move meanwhile
ALWAYS_DAYS = 100_000


@dataclass(frozen=True)
class Missed:
    """Consumption that cannot be billed: of an hour too long ago, or beyond all reason. Negative: billed too much."""

    customer: str
    hour: int
    watt_hours: float


@dataclass(frozen=True)
class Entry:
    """A row of the outbox. `state` is queued, sent, refused or superseded."""

    event: UsageEvent
    state: str
    attempted_at: float | None
    attempts: int
    reason: str | None


# --- Consumption


def by_customer(links: Iterable[Link]) -> dict[str, list[Link]]:
    """Links by customer, in order of making."""
    found = defaultdict(list)
    for link in links:
        found[link.customer].append(link)
    return dict(found)


@dataclass(frozen=True)
class Consumption:
    """Nano-watt-hours by hour, and the links of devices that are not in the file any more."""

    by_hour: dict[int, int]
    deleted: list[Link] = field(default_factory=list)

    def of(self, hour: int, counted: int) -> int:
        """What the hour consumed; `counted` is what was taken into account of it before.

        What was counted of a deleted device stays counted: only its own readings could tell how much that is.
        """
        consumed = self.by_hour.get(hour, 0)
        if any(link.covers(hour) for link in self.deleted):
            consumed = max(consumed, counted)
        return consumed


def consumption(pm: PowerManager, links: Sequence[Link], days: float) -> Consumption:
    """What the links' devices consumed in the last `days`, the links' hours only."""
    by_hour: dict[int, int] = defaultdict(int)
    deleted: list[Link] = []
    for link in links:
        try:
            of_device = _consumed_hours(pm, link, days)
        except NotFound:
            deleted.append(link)
            continue
        for hour, nwh in of_device:
            by_hour[hour] += nwh
    return Consumption(dict(by_hour), deleted)


def _consumed_hours(pm: PowerManager, link: Link, days: float) -> list[tuple[int, int]]:
    """Hours and nano-watt-hours of each meter that counts.

    Raises NotFound where the device was deleted, or loses a meter in this moment.
    """
    found: list[tuple[int, int]] = []
    for meter in pm.list_meters(link.device_id):
        if meter.type.value not in link.types:
            continue
        for row in pm.get_statistics(meter.id, days=days):
            hour = hour_of("start", row.start)
            if link.covers(hour):
                found.append((hour, round(row.energy_out_wh * NANO)))
    pm.get_device(link.device_id)  # afterwards: it was there all the time, then
    return found


# --- Booking


def book(conn: sqlite3.Connection, customer: str, consumed: Consumption, hours: range) -> None:
    """Take the consumption of those hours into account, and queue what changes by it.

    An hour without consumption counts as nothing. Call it in the transaction of tables().
    """
    rows = conn.execute(
        "SELECT hour, counted_nwh, whole_wh FROM billing_hours WHERE customer = ?", (customer,)
    )
    counted = {hour: (nwh, wh) for hour, nwh, wh in rows}
    # In Python, where integers do not overflow.
    total = sum(nwh for nwh, _ in counted.values())
    billed = sum(wh for _, wh in counted.values())
    for hour in sorted(hour for hour in {*counted, *consumed.by_hour} if hour in hours):
        before, whole = counted.get(hour, (0, 0))
        nwh = consumed.of(hour, before)
        if nwh == before or nwh > MAX_HOUR_NWH:
            continue
        total += nwh - before
        whole += total // NANO - billed
        billed = total // NANO
        conn.execute(
            "INSERT OR REPLACE INTO billing_hours VALUES (?, ?, ?, ?)", (customer, hour, nwh, whole)
        )
        _queue(conn, customer, hour, whole)


def _queue(conn: sqlite3.Connection, customer: str, hour: int, value: int) -> None:
    """Have the outbox say that the hour is that many watt-hours."""
    sql = """SELECT revision, value_wh, state, attempted_at FROM billing_outbox
        WHERE customer = ? AND hour = ? ORDER BY revision DESC LIMIT 1"""
    revision, there, state, attempted_at = conn.execute(sql, (customer, hour)).fetchone() or (
        -1,
        0,
        "sent",
        None,
    )
    if value == there:  # an hour of nothing that nobody was told of needs no event either
        return
    if state == "queued" and attempted_at is None:  # nobody has seen it
        sql = "UPDATE billing_outbox SET value_wh = ? WHERE customer = ? AND hour = ? AND revision = ?"
        conn.execute(sql, (value, customer, hour, revision))
    else:
        revise(conn, customer, hour, value)


def revise(conn: sqlite3.Connection, customer: str, hour: int, value: int) -> None:
    """Queue a new revision of an hour; one that has not been sent before is superseded."""
    conn.execute(
        """UPDATE billing_outbox SET state = 'superseded' WHERE customer = ? AND hour = ?
        AND state IN ('queued', 'refused')""",
        (customer, hour),
    )
    sql = """INSERT INTO billing_outbox (customer, hour, revision, value_wh)
        SELECT :customer, :hour, coalesce(max(revision), -1) + 1, :value FROM billing_outbox
        WHERE customer = :customer AND hour = :hour"""
    conn.execute(sql, {"customer": customer, "hour": hour, "value": value})


# --- Looking

OPEN = "state IN ('queued', 'refused')"


def outbox(
    conn: sqlite3.Connection, condition: str = "1", values: Sequence[object] = ()
) -> list[Entry]:
    """Rows of the outbox, the least tried first, then by hour."""
    sql = f"""SELECT customer, hour, revision, value_wh, state, attempted_at, attempts, reason FROM billing_outbox
        WHERE {condition} ORDER BY attempts, hour, customer, revision"""
    return [Entry(UsageEvent(*row[:4]), *row[4:]) for row in conn.execute(sql, values)]


def latest(conn: sqlite3.Connection, customer: str, hour: int) -> Entry:
    """The row that counts of an hour that has some."""
    rows = outbox(conn, "customer = ? AND hour = ?", (customer, hour))
    return max(rows, key=lambda row: row.event.revision)


def counts(conn: sqlite3.Connection, customer: str) -> dict[str, int]:
    """How many of the customer's events are in each state."""
    sql = "SELECT state, count(*) FROM billing_outbox WHERE customer = ? GROUP BY state ORDER BY state"
    return dict(conn.execute(sql, (customer,)).fetchall())


def billed_wh(conn: sqlite3.Connection, customer: str) -> int:
    """The whole watt-hours made of what was taken into account so far."""
    rows = conn.execute("SELECT whole_wh FROM billing_hours WHERE customer = ?", (customer,))
    return sum(wh for (wh,) in rows)


def missed(pm: PowerManager, customer: str, links: Sequence[Link], oldest: int) -> list[Missed]:
    """What the customer consumed and can no longer be billed for, hour by hour; `oldest` is the first that can."""
    consumed = consumption(pm, links, ALWAYS_DAYS)
    with tables(pm) as conn:
        rows = conn.execute(
            "SELECT hour, counted_nwh FROM billing_hours WHERE customer = ?", (customer,)
        )
        counted = dict(rows.fetchall())
    found = []
    for hour in sorted({*consumed.by_hour, *counted}):
        nwh = consumed.of(hour, counted.get(hour, 0))
        if nwh != counted.get(hour, 0) and (hour < oldest or nwh > MAX_HOUR_NWH):
            found.append(Missed(customer, hour, (nwh - counted.get(hour, 0)) / NANO))
    return found


TABLE_HEAD = f"{'customer':<24}  {'hour':<17}  {'watt-hours':>12}  {'revision':>8}"


def describe(event: UsageEvent) -> str:
    """An event as a line of a table."""
    return f"{event.customer:<24}  {iso(event.hour)}  {event.watt_hours:>12}  {event.revision:>8}"
