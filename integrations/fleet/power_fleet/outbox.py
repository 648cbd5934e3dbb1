"""What a file has not sent yet. The file is the outbox: nothing waits anywhere else, and progress is kept in it.

Readings, deletions and events: the library's own outbox and a follower of its events. Devices and meters:
`fleet_records` holds what was last claimed and its revision, so that what is sent again after a crash is the same to
the byte, and so that a state that comes back to what it was is news all the same.

Deletions go before readings and events, in parcels of their own. Each has a revision, and whatever is sent after it has
a higher generation. So the engine can tell readings that were deleted from those that were recorded in their place,
whatever the order in which the messages arrive.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from power_fleet import codec
from power_fleet.codec import Batch, Device, Event, Meter, Reading
from power_manager import (
    SECOND_US,
    Deletion,
    PowerManager,
    PowerMeter,
    PowerReading,
    to_microseconds,
)

READINGS = 500  # in a message
EVENTS = 25  # notes of 10,000 characters are allowed, and a message may have 1 MB
RECORDS = 100  # meters in a message
DELETIONS = 500  # in a message
FOLLOWER = "power-fleet"  # the name of the events' cursor in the file

_TABLES = (
    "CREATE TABLE IF NOT EXISTS fleet_progress (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS fleet_records (kind TEXT, id TEXT, content TEXT NOT NULL,
        revision INTEGER NOT NULL, sent INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (kind, id)) WITHOUT ROWID""",
)
_CLAIM = """INSERT INTO fleet_records (kind, id, content, revision) VALUES (?, ?, ?, ?) ON CONFLICT (kind, id)
    DO UPDATE SET content = excluded.content, revision = max(revision + 1, excluded.revision)"""


@dataclass
class Parcel:
    """What is to be sent next, and what done() is to note once it has been."""

    batches: list[Batch] = field(default_factory=list)
    readings: list[PowerReading] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    last_event: int | None = None
    records: list[tuple[int, str, str]] = field(default_factory=list)  # revision, kind, id


class Outbox:
    """A file's outbox; its calls block."""

    def __init__(
        self, pm: PowerManager, site: str = "", clock: Callable[[], float] = time.time
    ) -> None:
        self._pm = pm
        self._site = site
        self._clock = clock
        self._events = pm.event_follower(FOLLOWER, from_start=True)
        self._max_gap = 0
        self._generation = 0
        with pm.connection() as conn:
            for table in _TABLES:
                conn.execute(table)

    def take(self) -> Parcel:
        """What is to be sent next; without batches if there is nothing. The same again until done()."""
        parcel = Parcel()
        # One transaction: a reading that is taken together with a deletion must be of the time before or after both.
        with self._pm.connection() as conn:
            self._max_gap = round(self._pm.max_gap * SECOND_US)
            deletions = self._pm.pending_deletions(DELETIONS)
            revision = self._claim_deletions(conn, deletions)
            meters = self._pm.list_meters()
            self._add_records(parcel, conn, meters)
            if deletions:
                self._add_deletions(parcel, deletions, revision)
            else:
                self._add_readings(parcel, {meter.id: meter.device_id for meter in meters})
                self._add_events(parcel)
        return parcel

    def done(self, parcel: Parcel) -> None:
        """Note, in one transaction, that the stream has all of it."""
        with self._pm.connection() as conn:
            self._pm.acknowledge([*parcel.readings, *parcel.deletions])
            if parcel.last_event is not None:
                self._events.acknowledge(parcel.last_event)
            conn.executemany(
                "UPDATE fleet_records SET sent = ? WHERE kind = ? AND id = ?", parcel.records
            )

    def _claim_deletions(self, conn: sqlite3.Connection, deletions: list[Deletion]) -> int:
        """Return the revision of the deletions, and set the generation of all that is sent from now on.

        New ones get a revision beyond all that was sent before; those that are sent again keep theirs.
        """
        rows = conn.execute("SELECT name, value FROM fleet_progress").fetchall()
        progress: dict[str, int] = dict(rows)
        revision = progress.get("deletions_revision", 0)
        last = deletions[-1].sequence if deletions else 0
        if last > progress.get("deletions_sequence", 0):
            sql = "SELECT coalesce(max(revision), 0) FROM fleet_records"
            (highest,) = conn.execute(sql).fetchone()
            now = int(self._clock() * SECOND_US)
            revision = max(revision + 2, highest + 1, now)  # the number between is a generation
            conn.executemany(
                "INSERT OR REPLACE INTO fleet_progress (name, value) VALUES (?, ?)",
                [("deletions_sequence", last), ("deletions_revision", revision)],
            )
        self._generation = revision + 1
        return revision

    def _batch(self, device_id: str) -> Batch:
        return Batch(device_id, self._max_gap, self._generation)

    def _add_readings(self, parcel: Parcel, device_of: dict[str, str]) -> None:
        by_device: dict[str, Batch] = {}
        for reading in self._pm.pending_readings(READINGS):
            device_id = device_of[reading.meter_id]
            batch = by_device.setdefault(device_id, self._batch(device_id))
            batch.readings.append(
                Reading(
                    reading.meter_id,
                    to_microseconds(reading.timestamp),
                    reading.voltage,
                    reading.current_draw,
                    reading.charge_pct,
                )
            )
            parcel.readings.append(reading)
        parcel.batches += by_device.values()

    def _add_deletions(self, parcel: Parcel, deletions: list[Deletion], revision: int) -> None:
        by_device: dict[str, Batch] = {}
        for deletion in deletions:
            batch = by_device.setdefault(deletion.device_id, self._batch(deletion.device_id))
            since = None if deletion.since is None else to_microseconds(deletion.since)
            until = None if deletion.until is None else to_microseconds(deletion.until)
            batch.deletions.append(
                codec.Deletion(revision, deletion.kind, deletion.meter_id, since, until)
            )
            parcel.deletions.append(deletion)
        parcel.batches += by_device.values()

    def _add_events(self, parcel: Parcel) -> None:
        by_device: dict[str, Batch] = {}
        for sequence, event in self._events.pending(EVENTS):
            batch = by_device.setdefault(event.device_id, self._batch(event.device_id))
            batch.events.append(
                Event(
                    sequence,
                    event.id,
                    event.type.value,
                    event.value,
                    to_microseconds(event.timestamp),
                    event.note,
                    event.meter_id,
                )
            )
            parcel.last_event = sequence
        parcel.batches += by_device.values()

    def _add_records(
        self, parcel: Parcel, conn: sqlite3.Connection, meters: list[PowerMeter]
    ) -> None:
        self._claim(conn, meters)
        rows = conn.execute(
            "SELECT kind, id, content, revision FROM fleet_records WHERE revision > sent"
        ).fetchall()
        by_device: dict[str, Batch] = {}
        for kind, id_, content, revision in rows:
            device_id, *values = json.loads(content)
            batch = by_device.setdefault(device_id, self._batch(device_id))
            if kind == "device":
                batch.devices.append(Device._make((*values, revision)))
            else:
                batch.meters.append(Meter._make((*values, revision)))
            parcel.records.append((revision, kind, id_))
        for batch in by_device.values():
            parcel.batches += _split(batch)

    def _claim(self, conn: sqlite3.Connection, meters: list[PowerMeter]) -> None:
        """Give every device and meter that has changed its next revision; later by the clock, too, if that is right.

        What is deleted from the file goes: its deletion is in the outbox.
        """
        rows = conn.execute("SELECT kind, id, content FROM fleet_records").fetchall()
        known = {(kind, id_): content for kind, id_, content in rows}
        # Registered again after a deletion, it is newer than that whatever the clock says.
        revision = max(int(self._clock() * SECOND_US), self._generation)
        for kind, id_, content in (*self._devices(), *_states(meters)):
            if known.pop((kind, id_), None) != content:
                conn.execute(_CLAIM, (kind, id_, content, revision))
        conn.executemany("DELETE FROM fleet_records WHERE kind = ? AND id = ?", list(known))

    def _devices(self) -> Iterator[tuple[str, str, str]]:
        for d in self._pm.list_devices():
            thresholds = (
                d.shutdown_threshold,
                d.target_wh,
                d.low_battery_threshold,
                d.critical_battery_threshold,
            )
            yield "device", d.id, json.dumps([d.id, d.name, self._site, *thresholds, self._max_gap])


def _states(meters: Iterable[PowerMeter]) -> Iterator[tuple[str, str, str]]:
    for position, meter in enumerate(meters):
        updated = None if meter.updated_at is None else to_microseconds(meter.updated_at)
        content = (
            meter.device_id,
            meter.id,
            position,
            meter.type.value,
            meter.name,
            meter.capacity_wh,
            meter.voltage,
            meter.current_draw,
            meter.charge_pct,
            updated,
            meter.active,
            meter.power_known,
            meter.alert_level.value,
        )
        yield "meter", meter.id, json.dumps(content)


def _split(batch: Batch) -> Iterator[Batch]:
    """The same in batches of at most RECORDS meters."""
    for start in range(0, max(len(batch.meters), 1), RECORDS):
        part = Batch(batch.device_id, batch.max_gap, batch.generation)
        part.devices = batch.devices if start == 0 else []
        part.meters = batch.meters[start : start + RECORDS]
        yield part
