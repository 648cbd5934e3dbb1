"""The outbox: one row for each event of an hour, from the decision to its outcome."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import Enum

from power_billing.sinks import EVENT_NAME, UsageEvent
from power_billing.tables import METER_NAME_SETTING, setting


class State(str, Enum):
    """What has become of an event."""

    QUEUED = "queued"  # to be sent
    SENT = "sent"  # the biller has it
    REFUSED = "refused"  # the biller has said no; a person has to act
    CONFLICT = "conflict"  # the biller has another value, from elsewhere; a person has to decide
    KEPT = "kept"  # a person has chosen the biller's value, which is the row's value
    LOST = "lost"  # a person has accepted that it was too old to be sent
    SUPERSEDED = "superseded"  # a later revision replaces it


TAKEN = (State.SENT, State.KEPT)  # the biller has that value


@dataclass(frozen=True)
class Entry:
    """A row of the outbox.

    attempted_at: when it was first sent, in epoch seconds, whatever came of it. taken_at: when the
    biller said that it takes it; None where it was found there, or not taken. theirs_wh: what the
    biller had for the hour when it was last asked because of this event; None if it was not.
    asked_at: when it was last asked what became of an event whose answer was lost; None if it was
    not.
    """

    event: UsageEvent
    state: State
    attempted_at: float | None
    attempts: int
    reason: str | None
    theirs_wh: int | None
    taken_at: float | None = None
    asked_at: float | None = None


# --- Deciding


def queue_value(conn: sqlite3.Connection, customer: str, hour: int, value_wh: int) -> None:
    """Let the outbox say that the hour has that many watt-hours."""
    before = revisions(conn, customer, hour)
    if not before:
        if value_wh != 0:  # an hour of nothing needs no event
            revise(conn, customer, hour, value_wh)
        return
    newest = before[-1]
    is_unseen = newest.state is State.QUEUED and newest.attempted_at is None
    if is_unseen or newest.state is State.CONFLICT:  # the biller has not taken it
        sql = """UPDATE billing_outbox SET value_wh = ?
            WHERE customer = ? AND hour = ? AND revision = ?"""
        conn.execute(sql, (value_wh, customer, hour, newest.event.revision))
    elif newest.state is State.KEPT:  # the hour was sent from elsewhere: a person decides again
        ours = [entry for entry in before if entry.state is not State.KEPT]
        if ours and ours[-1].event.watt_hours == value_wh:  # as it was when they decided
            return
        reason = f"{newest.event.watt_hours} Wh of the biller's were kept before"
        revise(conn, customer, hour, value_wh, State.CONFLICT, reason, newest.event.watt_hours)
    elif value_wh != newest.event.watt_hours:
        revise(conn, customer, hour, value_wh)


def revise(
    conn: sqlite3.Connection,
    customer: str,
    hour: int,
    value_wh: int,
    state: State = State.QUEUED,
    reason: str | None = None,
    theirs_wh: int | None = None,
    step: int = 1,
) -> None:
    """Add a revision of an hour; one that the biller has not taken is superseded.

    step: how much later than the last one it is.
    """
    conn.execute(
        """UPDATE billing_outbox SET state = 'superseded' WHERE customer = ? AND hour = ?
        AND state IN ('queued', 'refused', 'conflict')""",
        (customer, hour),
    )
    sql = """INSERT INTO billing_outbox
            (customer, hour, revision, value_wh, state, reason, theirs_wh)
        SELECT :customer, :hour, coalesce(max(revision) + :step, 0), :value_wh, :state, :reason,
            :theirs_wh
        FROM billing_outbox WHERE customer = :customer AND hour = :hour"""
    values = {
        "customer": customer,
        "hour": hour,
        "value_wh": value_wh,
        "state": state.value,
        "reason": reason,
        "theirs_wh": theirs_wh,
        "step": step,
    }
    conn.execute(sql, values)


# --- Noting what came of it

_OF_EVENT = "WHERE customer = ? AND hour = ? AND revision = ?"
_NOTE_ATTEMPT = f"""UPDATE billing_outbox
    SET attempted_at = coalesce(attempted_at, ?), attempts = attempts + 1 {_OF_EVENT}"""
_NOTE_OUTCOME = f"UPDATE billing_outbox SET state = ?, reason = ? {_OF_EVENT}"
_NOTE_TAKEN = f"UPDATE billing_outbox SET taken_at = ? {_OF_EVENT}"
_NOTE_ASKED = f"UPDATE billing_outbox SET theirs_wh = ?, asked_at = ? {_OF_EVENT}"
_NOTE_WAITING = f"UPDATE billing_outbox SET reason = ? {_OF_EVENT}"
_NOTE_THEIRS = f"UPDATE billing_outbox SET theirs_wh = ? {_OF_EVENT}"


def note_attempt(conn: sqlite3.Connection, event: UsageEvent, now: float) -> None:
    """Note that the event is about to be sent."""
    conn.execute(_NOTE_ATTEMPT, (now, event.customer, event.hour, event.revision))


def note_outcome(
    conn: sqlite3.Connection, event: UsageEvent, state: State, reason: str | None
) -> None:
    """Note the event's outcome."""
    conn.execute(_NOTE_OUTCOME, (state.value, reason, event.customer, event.hour, event.revision))


def note_taken(conn: sqlite3.Connection, event: UsageEvent, now: float) -> None:
    """Note that the biller has said that it takes the event."""
    conn.execute(_NOTE_TAKEN, (now, event.customer, event.hour, event.revision))


def note_theirs(conn: sqlite3.Connection, event: UsageEvent, theirs_wh: int) -> None:
    """Note what the biller has for the event's hour."""
    conn.execute(_NOTE_THEIRS, (theirs_wh, event.customer, event.hour, event.revision))


def note_asked(conn: sqlite3.Connection, event: UsageEvent, theirs_wh: int, now: float) -> None:
    """Note what the biller has for the hour, when it was asked about the event."""
    conn.execute(_NOTE_ASKED, (theirs_wh, now, event.customer, event.hour, event.revision))


def note_waiting(conn: sqlite3.Connection, event: UsageEvent, reason: str) -> None:
    """Note why the event stays as it is."""
    conn.execute(_NOTE_WAITING, (reason, event.customer, event.hour, event.revision))


def put_off(conn: sqlite3.Connection, event: UsageEvent, reason: str) -> None:
    """Note why nothing could be found out, and count it: the next run asks for others first."""
    sql = f"UPDATE billing_outbox SET attempts = attempts + 1, reason = ? {_OF_EVENT}"
    conn.execute(sql, (reason, event.customer, event.hour, event.revision))


def refuse_sent(
    conn: sqlite3.Connection, customer: str, hour: int, revision: int, reason: str
) -> None:
    """Turn an event that was refused after it was taken from sent to refused, if it counts."""
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

_ENTRY = """SELECT customer, hour, revision, value_wh, state, attempted_at, attempts, reason,
    theirs_wh, taken_at, asked_at FROM billing_outbox"""
# Those tried least come first, so that a run that gives up early starts with others the next time.
_LEAST_TRIED = "ORDER BY attempts, hour, customer, revision"
_OPEN = f"{_ENTRY} WHERE state IN ('queued', 'refused', 'conflict') {_LEAST_TRIED}"
_OF_HOUR = f"{_ENTRY} WHERE customer = ? AND hour = ? ORDER BY revision"
_OF_CUSTOMER = f"""{_ENTRY} WHERE customer = ? AND hour >= ? AND hour < ?
    ORDER BY hour, revision"""
_EVERY = f"{_ENTRY} ORDER BY customer, hour, revision"


def open_entries(conn: sqlite3.Connection) -> list[Entry]:
    """What is to be sent, or waits for a person, the least tried first, then by hour."""
    return _entries(conn, _OPEN)


def entries_in(conn: sqlite3.Connection, state: State) -> list[Entry]:
    """What is open in that state, the least tried first, then by hour."""
    return [entry for entry in open_entries(conn) if entry.state is state]


def revisions(conn: sqlite3.Connection, customer: str, hour: int) -> list[Entry]:
    """Every event of an hour; the last one counts."""
    return _entries(conn, _OF_HOUR, customer, hour)


def entries_of(conn: sqlite3.Connection, customer: str, hours: range) -> list[Entry]:
    """Every event of a customer's hours, by hour and revision."""
    return _entries(conn, _OF_CUSTOMER, customer, hours.start, hours.stop)


def every_entry(conn: sqlite3.Connection) -> list[Entry]:
    """Every event that is kept, by customer and hour."""
    return _entries(conn, _EVERY)


def counts(conn: sqlite3.Connection, customer: str) -> dict[State, int]:
    """How many of the customer's events are in each state; those of closed days were sent."""
    sql = """SELECT state, count(*) FROM billing_outbox
        WHERE customer = ? GROUP BY state ORDER BY state"""
    found = {State(state): count for state, count in conn.execute(sql, (customer,))}
    sql = "SELECT coalesce(sum(event_count), 0) FROM billing_customer_days WHERE customer = ?"
    (closed,) = conn.execute(sql, (customer,)).fetchone()
    if closed:
        found[State.SENT] = found.get(State.SENT, 0) + closed
    return found


def was_taken(conn: sqlite3.Connection) -> bool:
    """Whether a biller has said of anything that it has it."""
    sql = """SELECT EXISTS (SELECT 1 FROM billing_outbox WHERE state IN ('sent', 'kept'))
        OR EXISTS (SELECT 1 FROM billing_customer_days)"""
    (found,) = conn.execute(sql).fetchone()
    return bool(found)


def was_sent(conn: sqlite3.Connection) -> bool:
    """Whether anything has ever gone out, or was found at the biller."""
    sql = """SELECT EXISTS (SELECT 1 FROM billing_outbox
            WHERE attempted_at IS NOT NULL OR state IN ('sent', 'kept'))
        OR EXISTS (SELECT 1 FROM billing_customer_days)"""
    (found,) = conn.execute(sql).fetchone()
    return bool(found)


def _entries(conn: sqlite3.Connection, sql: str, *values: object) -> list[Entry]:
    found = []
    meter_name = setting(conn, METER_NAME_SETTING) or EVENT_NAME
    for row in conn.execute(sql, values):
        (
            customer,
            hour,
            revision,
            value_wh,
            state,
            attempted_at,
            attempts,
            reason,
            theirs_wh,
            taken_at,
            asked_at,
        ) = row
        event = UsageEvent(customer, hour, revision, value_wh, meter_name)
        found.append(
            Entry(
                event, State(state), attempted_at, attempts, reason, theirs_wh, taken_at, asked_at
            )
        )
    return found
