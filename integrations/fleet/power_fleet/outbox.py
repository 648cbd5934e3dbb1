"""What a file has not sent yet. The file is the outbox: nothing waits anywhere else, and progress is kept in it.

Readings, deletions and events: the library's own outbox and a follower of its events. Devices and meters are told
anew by every process, and whenever they have changed; nothing of that is written.

A process opens a line of each device before it says anything of it (see codec). It counts what it says: each change of
a state, and each set of deletions, gets the next count as its revision. Deletions go before readings and events, in
parcels of their own, and whatever follows them has a higher generation. So the engine can tell readings that were
deleted from those that were recorded in their place, whatever the order in which the messages arrive.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from power_fleet import __version__, codec
from power_fleet.codec import MAX_COUNT, Batch, Device, Event, Meter, Opening, Reading
from power_manager import (
    SECOND_US,
    Deletion,
    PowerManager,
    PowerMeter,
    PowerReading,
    to_microseconds,
)

READINGS = 2000  # in a message: 50 kB of the least compressible
EVENTS = 25  # notes of 10,000 characters are allowed, and a message may have 1 MB
RECORDS = 100  # meters in a message
DELETIONS = 500  # in a message
FOLLOWER = "power-fleet"  # the name of the events' cursor in the file
_COUNTS_A_PARCEL = 3  # deletions take two, changed states one

# How many parcels the stream has had of this file: a copy of the file, or an older state of it, is known by it.
_TABLE = """CREATE TABLE IF NOT EXISTS fleet_progress (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID"""
_NUMBER = "SELECT coalesce(max(value), 0) FROM fleet_progress WHERE name = 'number'"
_COUNT_PARCEL = """INSERT INTO fleet_progress (name, value) VALUES ('number', 1)
    ON CONFLICT (name) DO UPDATE SET value = value + 1"""


@dataclass
class Parcel:
    """What is to be sent next, and what done() is to note once it has been."""

    batches: list[Batch] = field(default_factory=list)
    readings: list[PowerReading] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    last_event: int | None = None
    states: list[_State] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether there are more readings than it took."""
        return len(self.readings) == READINGS

    @property
    def is_progress(self) -> bool:
        """Whether the file has something to note once it is sent."""
        return bool(self.readings or self.deletions) or self.last_event is not None


@dataclass(frozen=True)
class _State:
    """What a device or a meter was found to be, and the revision that it then got."""

    device_id: str
    meter_id: str | None  # None: the device itself
    content: tuple[Any, ...]  # the fields of codec.Device or codec.Meter but for the revision
    revision: int


class Outbox:
    """A file's outbox; its calls block. One for each start of a forwarder. `site` is where the devices are."""

    def __init__(self, pm: PowerManager, site: str = "") -> None:
        self._pm = pm
        self._site = site
        self._events = pm.event_follower(FOLLOWER, from_start=True)
        self._file_id = ""
        self._number = 0
        self._max_gap = 0
        self._lines: dict[str, int] = {}  # by device: the number of its line
        self._openings: dict[
            str, Opening
        ] = {}  # by device: an opening that is not acknowledged yet
        self._start()

    def _start(self) -> None:
        """Begin to count, with lines that are still to be opened."""
        self._lines.clear()
        self._openings.clear()
        self._count = 0
        self._states: dict[tuple[str, str | None], _State] = {}  # as they were claimed last
        self._sent: dict[tuple[str, str | None], int] = {}  # the revisions that the stream has had
        self._last_deletion = 0  # the sequence number of the last one that has a revision
        self._deletions_revision = 0

    def take(self) -> Parcel:
        """What is to be sent next; without batches if there is nothing. The same again until done().

        Where a device has no line yet, these are openings, and nothing else.
        """
        parcel = Parcel()
        # One transaction: a reading that is taken together with a deletion must be of the time before or after both.
        with self._pm.transaction():
            if self._pm.file_id != self._file_id or self._count > MAX_COUNT - _COUNTS_A_PARCEL:
                self._start()  # a backup was restored under us, or the lines are full
            self._read_head()
            deletions = self._pm.pending_deletions(DELETIONS)
            devices = [device.id for device in self._pm.list_devices()]
            openings = self._take_openings([*devices, *(row.device_id for row in deletions)])
            if openings:
                parcel.batches += openings
                return parcel
            meters = self._pm.list_meters()
            self._claim_deletions(deletions)
            self._add_states(parcel, meters)
            if deletions:
                self._add_deletions(parcel, deletions)
            else:
                self._add_readings(parcel, {meter.id: meter.device_id for meter in meters})
                self._add_events(parcel)
        return parcel

    def done(self, parcel: Parcel, sequences: Sequence[int]) -> None:
        """Note, in one transaction, that the stream has all of it: each batch at that place."""
        for batch, sequence in zip(parcel.batches, sequences, strict=True):
            if batch.opening is not None:
                self._lines[batch.device_id] = sequence
                self._openings.pop(batch.device_id, None)
        if parcel.is_progress:
            with self._pm.connection() as conn:
                self._pm.acknowledge([*parcel.readings, *parcel.deletions])
                if parcel.last_event is not None:
                    self._events.acknowledge(parcel.last_event)
                conn.execute(_COUNT_PARCEL)
        for state in parcel.states:
            self._sent[state.device_id, state.meter_id] = state.revision

    def reopen(self) -> None:
        """Open new lines: the stream is not the one that the present lines were opened in."""
        self._start()

    # --- What goes into a parcel

    def _read_head(self) -> None:
        """What every batch carries."""
        self._file_id = self._pm.file_id
        self._max_gap = round(self._pm.max_gap * SECOND_US)
        with self._pm.connection() as conn:
            conn.execute(_TABLE)  # a restored file may not have it
            (self._number,) = conn.execute(_NUMBER).fetchone()

    def _batch(self, device_id: str) -> Batch:
        return Batch(
            device_id,
            self._max_gap,
            self._count,
            line=self._lines[device_id],
            file_id=self._file_id,
            number=self._number,
        )

    def _take_openings(self, device_ids: Iterable[str]) -> list[Batch]:
        """The openings of the lines that are missing; the same until they are acknowledged."""
        batches = []
        for device_id in dict.fromkeys(device_ids):
            if device_id in self._lines:
                continue
            if device_id not in self._openings:
                opening = Opening(__version__, self._site, secrets.token_hex(8))
                self._openings[device_id] = opening
            batches.append(
                Batch(
                    device_id,
                    self._max_gap,
                    line=0,
                    file_id=self._file_id,
                    number=self._number,
                    opening=self._openings[device_id],
                )
            )
        return batches

    def _claim_deletions(self, deletions: list[Deletion]) -> None:
        """Give new deletions a revision; what follows them gets a higher count."""
        if not deletions or deletions[-1].sequence <= self._last_deletion:
            return
        self._last_deletion = deletions[-1].sequence
        self._deletions_revision = self._count + 1
        self._count += 2
        gone = {row.device_id for row in deletions if row.kind == "device"}
        # Registered again meanwhile, it is news even if it looks the same.
        self._states = {key: row for key, row in self._states.items() if row.device_id not in gone}

    def _add_deletions(self, parcel: Parcel, deletions: list[Deletion]) -> None:
        by_device: dict[str, Batch] = {}
        for deletion in deletions:
            device_id = deletion.device_id
            if device_id not in by_device:
                by_device[device_id] = self._batch(device_id)
            by_device[device_id].deletions.append(
                codec.Deletion(
                    self._deletions_revision,
                    deletion.kind,
                    deletion.meter_id,
                    None if deletion.since is None else to_microseconds(deletion.since),
                    None if deletion.until is None else to_microseconds(deletion.until),
                )
            )
            parcel.deletions.append(deletion)
        parcel.batches += by_device.values()

    def _add_readings(self, parcel: Parcel, device_of: dict[str, str]) -> None:
        by_device: dict[str, Batch] = {}
        for reading in self._pm.pending_readings(READINGS):
            device_id = device_of[reading.meter_id]
            if device_id not in by_device:
                by_device[device_id] = self._batch(device_id)
            by_device[device_id].readings.append(
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

    def _add_events(self, parcel: Parcel) -> None:
        by_device: dict[str, Batch] = {}
        for sequence, event in self._events.pending(EVENTS):
            device_id = event.device_id
            if device_id not in by_device:
                by_device[device_id] = self._batch(device_id)
            by_device[device_id].events.append(
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

    def _add_states(self, parcel: Parcel, meters: list[PowerMeter]) -> None:
        """The devices and meters that the stream does not have as they are now; a device after its meters."""
        self._claim_states([*_meter_states(meters), *self._device_states()])
        by_device: dict[str, list[_State]] = {}
        for key, state in self._states.items():
            if self._sent.get(key) != state.revision:
                by_device.setdefault(state.device_id, []).append(state)
        for device_id, states in by_device.items():
            parcel.states += states
            parcel.batches += self._state_batches(device_id, states)

    def _claim_states(self, found: list[tuple[str, str | None, tuple[Any, ...]]]) -> None:
        """Give every device and meter that has changed the next revision, and forget those that are gone."""
        states: dict[tuple[str, str | None], _State] = {}
        is_changed = False
        for device_id, meter_id, content in found:
            state = self._states.get((device_id, meter_id))
            if state is None or state.content != content:
                state = _State(device_id, meter_id, content, self._count + 1)
                is_changed = True
            states[device_id, meter_id] = state
        self._states = states
        if is_changed:
            self._count += 1

    def _state_batches(self, device_id: str, states: list[_State]) -> Iterator[Batch]:
        """In batches of at most RECORDS meters, the device in the last of them.

        The engine takes those meters for present that the device's present line names; so they come before the device.
        """
        meters = [
            Meter._make((*state.content, state.revision))
            for state in states
            if state.meter_id is not None
        ]
        devices = [
            Device._make((*state.content, state.revision))
            for state in states
            if state.meter_id is None
        ]
        for start in range(0, len(meters), RECORDS):
            batch = self._batch(device_id)
            batch.meters = meters[start : start + RECORDS]
            if start + RECORDS >= len(meters):
                batch.devices = devices
            yield batch
        if devices and not meters:
            batch = self._batch(device_id)
            batch.devices = devices
            yield batch

    def _device_states(self) -> Iterator[tuple[str, None, tuple[Any, ...]]]:
        for device in self._pm.list_devices():
            content = (
                device.name,
                self._site,
                device.shutdown_threshold,
                device.target_wh,
                device.low_battery_threshold,
                device.critical_battery_threshold,
                self._max_gap,
            )
            yield device.id, None, content


def _meter_states(meters: Iterable[PowerMeter]) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    for position, meter in enumerate(meters):
        content = (
            meter.id,
            position,
            meter.type.value,
            meter.name,
            meter.capacity_wh,
            meter.voltage,
            meter.current_draw,
            meter.charge_pct,
            None if meter.updated_at is None else to_microseconds(meter.updated_at),
            meter.active,
            meter.power_known,
            meter.alert_level.value,
        )
        yield meter.device_id, meter.id, content
