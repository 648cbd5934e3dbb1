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
from enum import Enum

from power_billing.hours import BILLABLE_HOURS, hour_of
from power_billing.links import Link
from power_billing.sinks import UsageEvent
from power_billing.tables import Place, tables
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


class State(str, Enum):
    """What has become of an event."""

    QUEUED = "queued"  # to be sent
    SENT = "sent"  # the biller has it
    REFUSED = "refused"  # the biller has said no; somebody has to look
    SUPERSEDED = "superseded"  # a later revision took its place before it was sent


@dataclass(frozen=True)
class Entry:
    """A row of the outbox. `attempted_at` is when it was first sent, in epoch seconds, whatever came of it."""

    event: UsageEvent
    state: State
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
    before = revisions(conn, customer, hour)
    if not before:
        if value != 0:  # an hour of nothing that nobody was told of needs no event
            revise(conn, customer, hour, value)
        return
    newest = before[-1]
    if value == newest.event.watt_hours:
        return
    if newest.state is State.QUEUED and newest.attempted_at is None:  # nobody has seen it
        sql = """UPDATE billing_outbox SET value_wh = ?
            WHERE customer = ? AND hour = ? AND revision = ?"""
        conn.execute(sql, (value, customer, hour, newest.event.revision))
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


def refuse_sent(
    conn: sqlite3.Connection, customer: str, hour: int, revision: int, reason: str
) -> None:
    """Turn an event that was taken, and refused afterwards, from sent to refused, if it is the one that counts."""
    conn.execute(_REFUSE_EVENT, (reason, customer, hour, revision, customer, hour))


def refuse_customer(conn: sqlite3.Connection, customer: str, reason: str) -> None:
    """Turn every event of a customer that never was from sent to refused."""
    conn.execute(_REFUSE_CUSTOMER, (reason, customer))


_REFUSE_EVENT = """UPDATE billing_outbox SET state = 'refused', reason = ?
    WHERE customer = ? AND hour = ? AND revision = ? AND state = 'sent'
    AND revision = (SELECT max(revision) FROM billing_outbox WHERE customer = ? AND hour = ?)"""
_REFUSE_CUSTOMER = """UPDATE billing_outbox SET state = 'refused', reason = ?
    WHERE customer = ? AND state = 'sent' AND revision = (
        SELECT max(revision) FROM billing_outbox AS later
        WHERE later.customer = billing_outbox.customer AND later.hour = billing_outbox.hour)"""

# --- Looking

_ENTRY = """SELECT customer, hour, revision, value_wh, state, attempted_at, attempts, reason
    FROM billing_outbox"""
# Those tried least come first, so that a run that gives up early starts with others the next time.
_QUEUED = f"{_ENTRY} WHERE state = 'queued' ORDER BY attempts, hour, customer, revision"
_OPEN = f"""{_ENTRY} WHERE state IN ('queued', 'refused')
    ORDER BY attempts, hour, customer, revision"""
_REFUSED = f"{_ENTRY} WHERE state = 'refused' AND hour >= ? ORDER BY hour, customer"
_EVERY = f"{_ENTRY} ORDER BY customer, hour, revision"
_OF_CUSTOMER = f"""{_ENTRY} WHERE customer = ? AND hour >= ? AND hour < ?
    ORDER BY hour, revision"""
_OF_HOUR = f"{_ENTRY} WHERE customer = ? AND hour = ? ORDER BY revision"


def queued(conn: sqlite3.Connection) -> list[Entry]:
    """What is to be sent, the least tried first, then by hour."""
    return _entries(conn, _QUEUED)


def open_entries(conn: sqlite3.Connection) -> list[Entry]:
    """What is to be sent or looked at by somebody, the least tried first, then by hour."""
    return _entries(conn, _OPEN)


def refused_entries(conn: sqlite3.Connection, oldest: int) -> list[Entry]:
    """What was refused of the hours from `oldest` on."""
    return _entries(conn, _REFUSED, oldest)


def revisions(conn: sqlite3.Connection, customer: str, hour: int) -> list[Entry]:
    """Every event of an hour; the last one counts."""
    return _entries(conn, _OF_HOUR, customer, hour)


def entries_of(conn: sqlite3.Connection, customer: str, hours: range) -> list[Entry]:
    """Every event of a customer's hours, by hour and revision."""
    return _entries(conn, _OF_CUSTOMER, customer, hours.start, hours.stop)


def every_entry(conn: sqlite3.Connection) -> list[Entry]:
    """Every event that is kept, by customer and hour."""
    return _entries(conn, _EVERY)


def _entries(conn: sqlite3.Connection, sql: str, *values: object) -> list[Entry]:
    rows = conn.execute(sql, values)
    return [
        Entry(
            UsageEvent(customer, hour, revision, value_wh),
            State(state),
            attempted_at,
            attempts,
            reason,
        )
        for customer, hour, revision, value_wh, state, attempted_at, attempts, reason in rows
    ]


def counts(conn: sqlite3.Connection, customer: str) -> dict[State, int]:
    """How many of the customer's events are in each state."""
    sql = "SELECT state, count(*) FROM billing_outbox WHERE customer = ? GROUP BY state ORDER BY state"
    return {State(state): count for state, count in conn.execute(sql, (customer,))}


def billed_wh(conn: sqlite3.Connection, customer: str) -> int:
    """The whole watt-hours made of what was taken into account so far."""
    rows = conn.execute("SELECT whole_wh FROM billing_hours WHERE customer = ?", (customer,))
    return sum(wh for (wh,) in rows)


def missed(
    pm: PowerManager, place: Place, customer: str, links: Sequence[Link], oldest: int
) -> list[Missed]:
    """What the customer consumed and can no longer be billed for, hour by hour; `oldest` is the first that can."""
    consumed = consumption(pm, links, ALWAYS_DAYS)
    with tables(place) as conn:
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
