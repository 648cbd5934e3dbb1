"""What a file has not sent yet.

The file is the outbox: nothing waits anywhere else, and progress is kept in it.

Readings, deletions and events: the library's own outbox and a follower of its events. Devices and
meters are sent again by every process, and whenever they have changed; nothing of that is written.

A process opens a line of each device before it says anything of it (see codec). It counts what it
says: each change of a state, and each set of deletions, gets the next count as its revision.
Deletions go before readings and events, in parcels of their own, and whatever follows them has a
higher generation. So the engine can tell readings that were deleted from those that were recorded
in their place, whatever the order in which the messages arrive.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from power_fleet import __version__, codec, progress
from power_fleet.codec import MAX_COUNT, Batch, Device, Event, Meter, Opening, Reading
from power_fleet.progress import FOLLOWER, KeptDeletion, Progress
from power_manager import (
    SECOND_US,
    Deletion,
    PowerEvent,
    PowerManager,
    PowerMeter,
    PowerReading,
    to_microseconds,
)

READINGS = 2000  # in a message: 50 kB of the least compressible
EVENTS = 25  # notes of 10,000 characters are allowed, and a message may have 1 MB
RECORDS = 100  # meters in a message
DELETIONS = 500  # in a message
_COUNTS_A_PARCEL = 3  # deletions take two, changed states one


@dataclass
class Parcel:
    """What is to be sent next, and what done() is to note once it has been."""

    batches: list[Batch] = field(default_factory=list)
    readings: dict[str, list[PowerReading]] = field(default_factory=dict)  # by device
    deletions: list[Deletion] = field(default_factory=list)
    last_event: int | None = None
    deletions_again: list[KeptDeletion] = field(default_factory=list)
    last_event_again: int | None = None
    states: list[_State] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether there are more readings than it took."""
        return sum(map(len, self.readings.values())) == READINGS

    def without(self, refused: set[str]) -> Parcel:
        """The part of it that is not of these devices."""
        batches = [batch for batch in self.batches if batch.device_id not in refused]
        # Events go in order: those of all devices wait for one.
        has_events = not any(b.events for b in self.batches if b.device_id in refused)
        return Parcel(
            batches,
            {name: rows for name, rows in self.readings.items() if name not in refused},
            [row for row in self.deletions if row.device_id not in refused],
            self.last_event if has_events else None,
            [row for row in self.deletions_again if row.device_id not in refused],
            self.last_event_again if has_events else None,
            [row for row in self.states if row.device_id not in refused],
        )


@dataclass(frozen=True)
class _State:
    """What a device or a meter was found to be, and the revision that it then got."""

    device_id: str
    meter_id: str | None  # None: the device itself
    content: tuple[Any, ...]  # the fields of codec.Device or codec.Meter but for the revision
    revision: int


class Outbox:
    """A file's outbox; its calls block.

    One for each start of a forwarder. `site` is where the devices are.
    """

    def __init__(self, pm: PowerManager, site: str = "") -> None:
        self._pm = pm
        self._site = site
        self._events = pm.event_follower(FOLLOWER, from_start=True)
        self._file_id = ""
        self._progress = Progress()
        self._max_gap = 0
        self._lines: dict[str, int] = {}  # by device: the number of its line
        self._openings: dict[str, Opening] = {}  # by device: one that is not acknowledged yet
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

    def take(self, aside: Collection[str] = ()) -> Parcel:
        """What is to be sent next; without batches if there is nothing.

        The same again until done().

        Of a device that has no line yet it is the opening alone. Of the devices `aside` there is
        nothing.
        """
        parcel = Parcel()
        # One transaction: a reading that is taken together with a deletion must be of the time
        # before or after both.
        with self._pm.transaction():
            self._read_head()
            deletions = self._pm.pending_deletions(DELETIONS)
            again = self._deletions_again()
            meters = self._pm.list_meters()
            self._claim_deletions(deletions)
            self._claim_states([*_meter_states(meters), *self._device_states()])
            devices = [device.id for device in self._pm.list_devices()]
            devices += [row.device_id for row in deletions]
            devices += [row.device_id for row in again]
            parcel.batches += self._take_openings(set(devices).difference(aside))
            ready = set(self._lines).difference(aside)
            self._add_states(parcel, ready)
            self._add_deletions(parcel, [row for row in deletions if row.device_id in ready])
            self._add_deletions_again(parcel, [row for row in again if row.device_id in ready])
            # What was recorded after a deletion goes after it.
            ready -= {row.device_id for row in deletions}
            device_of = {row.id: row.device_id for row in meters if row.device_id in ready}
            self._add_readings(parcel, device_of)
            self._add_events(parcel, ready)
        return parcel

    def done(self, parcel: Parcel, sequences: Sequence[int | None]) -> None:
        """Note, in one transaction, what the stream has: each batch at that place.

        None: the stream does not have it. Of a device of which a batch is missing nothing is
        noted, but its opening.
        """
        refused = set()
        for batch, sequence in zip(parcel.batches, sequences, strict=True):
            if sequence is None:
                refused.add(batch.device_id)
            elif batch.opening is not None:
                self._lines[batch.device_id] = sequence
                self._openings.pop(batch.device_id, None)
        taken = parcel.without(refused)
        readings = [row for rows in taken.readings.values() for row in rows]
        events = (taken.last_event, taken.last_event_again)
        if readings or taken.deletions or taken.deletions_again or events != (None, None):
            with self._pm.connection() as conn:
                self._pm.acknowledge([*readings, *taken.deletions])
                progress.keep_deletions(conn, taken.batches)
                progress.note_deletions(conn, taken.deletions_again)
                if taken.last_event is not None:
                    self._events.acknowledge(taken.last_event)
                if taken.last_event_again is not None:
                    progress.note_events(conn, taken.last_event_again)
                progress.count_parcel(conn)
        for state in taken.states:
            self._sent[state.device_id, state.meter_id] = state.revision

    def is_replaced(self) -> bool:
        """Whether the path of the file names another one now, or none."""
        return self._pm.is_replaced()

    def reopen(self) -> None:
        """Open new lines: the stream is not the one that the present lines were opened in."""
        self._start()

    # --- What goes into a parcel

    def _read_head(self) -> None:
        """Read what every batch carries; where it wants other lines, begin with them."""
        with self._pm.connection() as conn:
            found = progress.read(conn)
        file_id = self._pm.file_id
        if (
            file_id != self._file_id  # a backup was restored under us
            or found.resends != self._progress.resends
            or self._count > MAX_COUNT - _COUNTS_A_PARCEL  # the lines are full
        ):
            self._start()
        self._file_id = file_id
        self._progress = found
        self._max_gap = round(self._pm.max_gap * SECOND_US)

    def _deletions_again(self) -> list[KeptDeletion]:
        with self._pm.connection() as conn:
            return progress.deletions_again(conn, DELETIONS)

    def _batch(self, device_id: str) -> Batch:
        return Batch(
            device_id,
            self._max_gap,
            self._count,
            line=self._lines[device_id],
            file_id=self._file_id,
            number=self._progress.number,
        )

    def _take_openings(self, device_ids: Iterable[str]) -> list[Batch]:
        """The openings of the lines that are missing; the same until they are acknowledged."""
        batches = []
        for device_id in sorted(device_ids):
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
                    number=self._progress.number,
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

    def _add_deletions_again(self, parcel: Parcel, again: list[KeptDeletion]) -> None:
        """With their old revisions, so that they take nothing that was recorded after them."""
        strangers = [kept for kept in again if kept.deletion.line > self._lines[kept.device_id]]
        with self._pm.connection() as conn:
            # Another fleet's: this one has never heard of them.
            progress.note_deletions(conn, strangers)
        by_device: dict[str, Batch] = {}
        for kept in again:
            if kept in strangers:
                continue
            device_id = kept.device_id
            parcel.deletions_again.append(kept)
            if device_id not in by_device:
                by_device[device_id] = self._batch(device_id)
            by_device[device_id].deletions.append(kept.deletion)
        parcel.batches += by_device.values()

    def _add_readings(self, parcel: Parcel, device_of: dict[str, str]) -> None:
        by_device: dict[str, Batch] = {}
        for reading in self._pm.pending_readings(READINGS):
            device_id = device_of.get(reading.meter_id)
            if device_id is None:
                continue
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
            parcel.readings.setdefault(device_id, []).append(reading)
        parcel.batches += by_device.values()

    def _add_events(self, parcel: Parcel, ready: set[str]) -> None:
        """The next events; where there are none, those that are to be sent again."""
        pending = self._events.pending(EVENTS)
        events = _of_devices(pending or self._events_again(), ready)
        if events and pending:
            parcel.last_event, _ = events[-1]
        elif events:
            parcel.last_event_again, _ = events[-1]
        by_device: dict[str, Batch] = {}
        for sequence, event in events:
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
        parcel.batches += by_device.values()

    def _events_again(self) -> list[tuple[int, PowerEvent]]:
        """The next of the events that are to be sent again."""
        after = self._progress.events_after
        until = self._progress.events_until
        if after >= until:
            return []
        found = self._pm.events_since(after, limit=EVENTS)
        events = [(sequence, event) for sequence, event in found if sequence <= until]
        if not events:  # they were deleted meanwhile
            with self._pm.connection() as conn:
                progress.note_events(conn, until)
        return events

    def _add_states(self, parcel: Parcel, ready: set[str]) -> None:
        """The devices and meters that the stream does not have as they are now.

        A device comes after its meters.
        """
        by_device: dict[str, list[_State]] = {}
        for key, state in self._states.items():
            if state.device_id in ready and self._sent.get(key) != state.revision:
                by_device.setdefault(state.device_id, []).append(state)
        for device_id, states in by_device.items():
            parcel.states += states
            parcel.batches += self._state_batches(device_id, states)

    def _claim_states(self, found: list[tuple[str, str | None, tuple[Any, ...]]]) -> None:
        """Give the next revision to what has changed, and forget what is gone."""
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

        The engine takes those meters for present that the device's present line names; so they come
        before the device.
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


def _of_devices(
    events: list[tuple[int, PowerEvent]], device_ids: set[str]
) -> list[tuple[int, PowerEvent]]:
    """Those before the first one of another device: events go in order."""
    found = []
    for sequence, event in events:
        if event.device_id not in device_ids:
            break
        found.append((sequence, event))
    return found


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
