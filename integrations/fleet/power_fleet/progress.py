"""What a forwarder keeps in the device's file beside the library's outbox.

Tables of its own, a few rows.

The number of parcels that the stream has had is what a copy of the file, or an older state of it,
is known by. Deletions that were sent are kept, because the library forgets them once they are
acknowledged, and `power-fleet resend` wants them: with the line and the revision that they had, so
that they take nothing that was recorded after them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from power_fleet import codec
from power_fleet.codec import Batch
from power_manager import NotFound, PowerManager, to_microseconds

FOLLOWER = "power-fleet"  # the name of the events' cursor in the file
KEPT_DELETIONS = 10_000  # the newest ones
_EVENTS = 1000  # looked through at a time

_TABLES = (
    """CREATE TABLE IF NOT EXISTS fleet_progress (
    name TEXT PRIMARY KEY, value INTEGER NOT NULL
) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS fleet_deletions (
    number INTEGER PRIMARY KEY,
    device_id TEXT NOT NULL,
    line INTEGER NOT NULL,      -- in which its revision was counted
    revision INTEGER NOT NULL,
    kind TEXT NOT NULL,
    meter_id TEXT,
    since_us INTEGER,
    until_us INTEGER,
    again INTEGER NOT NULL DEFAULT 0    -- 1: it is to be sent again
)""",
    # serves take(): what is to be sent again
    "CREATE INDEX IF NOT EXISTS fleet_deletions_again ON fleet_deletions (again) WHERE again",
)
_SET = """INSERT INTO fleet_progress (name, value) VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
_ADD = """INSERT INTO fleet_progress (name, value) VALUES (?, 1)
    ON CONFLICT (name) DO UPDATE SET value = value + 1"""
_KEEP = """INSERT INTO fleet_deletions
    (device_id, line, revision, kind, meter_id, since_us, until_us) VALUES (?, ?, ?, ?, ?, ?, ?)"""
_FORGET = (
    "DELETE FROM fleet_deletions WHERE number <= (SELECT max(number) FROM fleet_deletions) - ?"
)
_AGAIN = """SELECT number, device_id, line, revision, kind, meter_id, since_us, until_us
    FROM fleet_deletions WHERE again ORDER BY number LIMIT ?"""


@dataclass(frozen=True)
class Progress:
    """How far a file has come.

    Events after `events_after` and up to `events_until` are to be sent again.
    """

    number: int = 0  # parcels that the stream has had
    resends: int = 0  # how often a resend was asked for
    events_after: int = 0
    events_until: int = 0


@dataclass(frozen=True)
class KeptDeletion:
    """A deletion that was sent, and is to be sent again.

    `number` is its own among those that are kept.
    """

    number: int
    device_id: str
    deletion: codec.Deletion


@dataclass(frozen=True)
class Resent:
    """How much waits to be sent again."""

    readings: int
    events: int
    deletions: int


def read(conn: sqlite3.Connection) -> Progress:
    """How far the file has come; makes the tables where it has none."""
    for table in _TABLES:
        conn.execute(table)
    rows = conn.execute("SELECT name, value FROM fleet_progress").fetchall()
    values = {str(name): int(value) for name, value in rows}
    names = ("number", "resends", "events_after", "events_until")
    return Progress(*(values.get(name, 0) for name in names))


def count_parcel(conn: sqlite3.Connection) -> None:
    """Note that the stream has had one more parcel."""
    conn.execute(_ADD, ("number",))


def note_events(conn: sqlite3.Connection, sequence: int) -> None:
    """Note that the events up to that one have been sent again."""
    conn.execute(_SET, ("events_after", sequence))


def keep_deletions(conn: sqlite3.Connection, batches: Iterable[Batch]) -> None:
    """Keep the deletions that these batches were the first to say."""
    for batch in batches:
        for row in batch.deletions:
            if row.line == 0:
                values = (row.revision, row.kind, row.meter_id, row.since, row.until)
                conn.execute(_KEEP, (batch.device_id, batch.line, *values))
    conn.execute(_FORGET, (KEPT_DELETIONS,))


def deletions_again(conn: sqlite3.Connection, limit: int) -> list[KeptDeletion]:
    """Deletions that are to be sent again, oldest first."""
    found = []
    for row in conn.execute(_AGAIN, (limit,)).fetchall():
        number, device_id, line, revision, kind, meter_id, since_us, until_us = row
        deletion = codec.Deletion(revision, kind, meter_id, since_us, until_us, line)
        found.append(KeptDeletion(number, device_id, deletion))
    return found


def note_deletions(conn: sqlite3.Connection, kept: Sequence[KeptDeletion]) -> None:
    """Note that these have been sent again."""
    sql = "UPDATE fleet_deletions SET again = 0 WHERE number = ?"
    conn.executemany(sql, [(deletion.number,) for deletion in kept])


def resend(pm: PowerManager, since: Any, device_id: str | None = None) -> Resent:
    """Have everything of a device, or of all of a file, sent again: for an engine that has lost it.

    Return how much.

    `since` is as log_power's timestamp: readings from then on, and events from the first one that
    is dated from then on, with those of other devices between them; all deletions that are kept,
    and every state, whatever it is. All of it has the ids that it had, so it is harmless. Raises
    NotFound, InvalidValue, StorageError.
    """
    since_us = to_microseconds(since, "since")
    with pm.connection() as conn:
        progress = read(conn)
        sql = "UPDATE fleet_deletions SET again = 1 WHERE coalesce(device_id = ?, 1)"
        deletions = conn.execute(sql, (device_id,)).rowcount
        if device_id is not None and not deletions and device_id not in _device_ids(pm):
            raise NotFound(f"no device has the id {device_id!r}", "device", device_id)
        readings = sum(
            pm.resend(meter.id, since=since)
            for meter in pm.list_meters()
            if device_id in (None, meter.device_id)
        )
        until = pm.event_follower(FOLLOWER, from_start=True).cursor
        first, events = _events_since(pm, since_us, until, device_id)
        if events:
            after = first - 1
            if progress.events_after < progress.events_until:  # an earlier resend goes on
                after = min(after, progress.events_after)
            conn.execute(_SET, ("events_after", after))
            conn.execute(_SET, ("events_until", until))
        conn.execute(_ADD, ("resends",))
    return Resent(readings, events, deletions)


def _device_ids(pm: PowerManager) -> set[str]:
    return {device.id for device in pm.list_devices()}


def _events_since(
    pm: PowerManager, since_us: int, until: int, device_id: str | None
) -> tuple[int, int]:
    """The number of a device's first event from then on, and how many there are up to `until`."""
    first = 0
    count = 0
    after = 0
    while page := pm.events_since(after, limit=_EVENTS):
        for sequence, event in page:
            if sequence > until:
                return first, count
            if device_id not in (None, event.device_id):
                continue
            if not first and to_microseconds(event.timestamp) >= since_us:
                first = sequence
            if first:
                count += 1
        after, _ = page[-1]
    return first, count
