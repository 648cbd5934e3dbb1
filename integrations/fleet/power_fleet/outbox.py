"""What a file has not sent yet. The file is the outbox: nothing waits anywhere else, and progress is kept in it.

Readings: the library's own marks, one a meter. Events: the last sequence number sent. Devices and meters:
`fleet_records` holds what was last claimed and its revision, so that what is sent again after a crash is the same to
the byte, and so that a state that comes back to what it was is news all the same.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from power_fleet.codec import Batch, Device, Event, Meter, Reading
from power_manager import PowerManager, PowerMeter, PowerReading

READINGS = 500  # in a message
EVENTS = 25  # notes of 10,000 characters are allowed, and a message may have 1 MB
RECORDS = 100  # meters in a message

_TABLES = (
    "CREATE TABLE IF NOT EXISTS fleet_progress (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS fleet_records (kind TEXT, id TEXT, content TEXT NOT NULL,
        revision INTEGER NOT NULL, sent INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (kind, id)) WITHOUT ROWID""",
)
_CLAIM = """INSERT INTO fleet_records (kind, id, content, revision) VALUES (?, ?, ?, ?) ON CONFLICT (kind, id)
    DO UPDATE SET content = excluded.content, revision = max(revision + 1, excluded.revision)"""
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def microseconds(timestamp: str) -> int:
    """Microseconds since 1970 of one of the library's ISO times.

    >>> microseconds("2023-11-14T22:13:20.000001+00:00")
    1700000000000001
    """
    return (datetime.fromisoformat(timestamp) - _EPOCH) // timedelta(microseconds=1)


@dataclass
class Parcel:
    """What is to be sent next, and what done() is to note once it has been."""

    batches: list[Batch] = field(default_factory=list)
    readings: list[PowerReading] = field(default_factory=list)
    last_event: int | None = None
    records: list[tuple[int, str, str]] = field(default_factory=list)  # revision, kind, id


class Outbox:
    """A file's outbox; its calls block."""

    def __init__(
        self, pm: PowerManager, site: str = "", clock: Callable[[], float] = time.time
    ) -> None:
        self._pm, self._site, self._clock = pm, site, clock
        with pm.connection() as conn:
            for table in _TABLES:
                conn.execute(table)
            (self._max_gap,) = conn.execute(
                "SELECT value FROM power_settings WHERE name = 'max_gap_us'"
            ).fetchone()

    def take(self) -> Parcel:
        """What is to be sent next; without batches if there is nothing. The same again until done()."""
        meters = self._pm.list_meters()
        parcel = Parcel()
        self._add_records(parcel, meters)
        self._add_readings(parcel, {meter.id: meter.device_id for meter in meters})
        self._add_events(parcel)
        return parcel

    def done(self, parcel: Parcel) -> None:
        """Note, in one transaction, that the stream has all of it."""
        with self._pm.connection() as conn:
            self._pm.mark_forwarded(parcel.readings)
            if parcel.last_event is not None:
                conn.execute(
                    "INSERT OR REPLACE INTO fleet_progress VALUES ('events', ?)",
                    (parcel.last_event,),
                )
            conn.executemany(
                "UPDATE fleet_records SET sent = ? WHERE kind = ? AND id = ?", parcel.records
            )

    def _batch(self, device_id: str) -> Batch:
        return Batch(device_id, self._max_gap)

    def _add_readings(self, parcel: Parcel, device_of: dict[str, str]) -> None:
        by_device: dict[str, Batch] = {}
        for reading in self._pm.unforwarded(READINGS):
            device_id = device_of.get(reading.meter_id)
            if device_id is None:  # added after the meters were listed: it comes next time
                break
            batch = by_device.setdefault(device_id, self._batch(device_id))
            at = int(reading.id.rpartition(":")[2])
            values = reading.voltage, reading.current_draw, reading.charge_pct
            batch.readings.append(Reading(reading.meter_id, at, *values))
            parcel.readings.append(reading)
        parcel.batches += by_device.values()

    def _add_events(self, parcel: Parcel) -> None:
        with self._pm.connection() as conn:
            row = conn.execute("SELECT value FROM fleet_progress WHERE name = 'events'").fetchone()
        by_device: dict[str, Batch] = {}
        for sequence, event in self._pm.events_since(row[0] if row else 0, limit=EVENTS):
            batch = by_device.setdefault(event.device_id, self._batch(event.device_id))
            at = microseconds(event.timestamp)
            batch.events.append(
                Event(sequence, event.id, event.type.value, event.value, at, event.note)
            )
            parcel.last_event = sequence
        parcel.batches += by_device.values()

    def _add_records(self, parcel: Parcel, meters: list[PowerMeter]) -> None:
        with self._pm.connection() as conn:
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
        """Give every device and meter that has changed its next revision; later by the clock, too, if that is right."""
        known = {
            (kind, id_): text
            for kind, id_, text in conn.execute("SELECT kind, id, content FROM fleet_records")
        }
        now = int(self._clock() * 1e6)
        for kind, id_, content in (*self._devices(), *_states(meters)):
            if known.get((kind, id_)) != content:
                conn.execute(_CLAIM, (kind, id_, content, now))

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
    for position, m in enumerate(meters):
        updated = None if m.updated_at is None else microseconds(m.updated_at)
        values = (
            m.type.value,
            m.name,
            m.capacity_wh,
            m.voltage,
            m.current_draw,
            m.charge_pct,
            updated,
        )
        yield "meter", m.id, json.dumps([m.device_id, m.id, position, *values])


def _split(batch: Batch) -> Iterator[Batch]:
    """The same in batches of at most RECORDS meters."""
    yield Batch(
        batch.device_id, batch.max_gap, devices=batch.devices, meters=batch.meters[:RECORDS]
    )
    for start in range(RECORDS, len(batch.meters), RECORDS):
        yield Batch(batch.device_id, batch.max_gap, meters=batch.meters[start : start + RECORDS])
