"""What any process writes to the file, as changes and frames for clients of the stream."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from power_manager import (
    Deletion,
    PowerManager,
    PowerMeter,
    PowerReading,
    from_microseconds,
    to_microseconds,
)
from power_service.presence import Bounds, Changes, Frame, Presence, Replaced, readings_deleted
from power_service.shapes import LAST_US

_EVENTS_A_LOOK = 1000
_DELETIONS_A_READ = 500  # beyond those that were seen already
PAUSE_PER_LOOK = 4  # the next look at all meters waits this many times as long as the last took


class Watches(Protocol):
    """What the hub polls, in the poller's thread only: a file's Watcher, or a fleet's."""

    @property
    def sequence(self) -> int:
        """Every event up to it has been seen."""

    def bounds(self) -> Bounds:
        """The line of history, and its first and last sequence."""

    def look(self) -> Changes | None:
        """What has changed since the last look, or None."""


class Watcher:
    """Sees what any process writes to the file; used in the poller's thread only.

    The library's data_version says whether the file has changed. It costs microseconds, and does
    not notice that a file was moved away, so the inode is compared too. A restored backup keeps the
    inode and has another file_id.

    A look has two parts: the events; and devices, meters and deletions. Each part notes how far it
    has got only when it has read everything, so a failed part is read again and does not affect the
    other.

    Deletions of readings are read from the library's outbox, where they wait for a program that
    sends them on. One that was sent on before the look is missed.
    """

    def __init__(
        self,
        pm: PowerManager,
        path: Path,
        reading_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pm = pm
        self._path = path.absolute()
        self._reading_seconds = reading_seconds
        self._clock = clock
        self._inode = os.stat(self._path).st_ino
        self._file_id = pm.file_id
        self._version: int | None = None
        self._presence = Presence(self._latest_readings)
        self._last_deletion = 0  # the sequence of the last one that was seen
        self._waiting_deletions = 0  # in the outbox at the last look
        self._next_presence = 0.0  # the earliest time of the next look at devices and meters
        self._presence_due = True
        self._more = True
        self._sequence = pm.last_sequence()

    @property
    def sequence(self) -> int:
        """Every event up to it has been seen."""
        return self._sequence

    def bounds(self) -> Bounds:
        """The line of history, and its first and last sequence. Raises Replaced."""
        latest = self._pm.last_sequence()
        oldest = 0
        for sequence, _ in self._pm.events_since(0, limit=1):
            oldest = sequence
        self._check_line()  # last, so that it covers what was read before
        return Bounds(self._file_id, oldest, latest)

    def _check_line(self) -> None:
        if self._pm.file_id != self._file_id:
            raise Replaced(f"a backup was restored into {self._path}")

    def look(self) -> Changes | None:
        """What has changed since the last look, or None. Raises Replaced."""
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self._path).st_ino == self._inode:
                return self._look()
        raise Replaced(f"{self._path} was moved, deleted or replaced")

    def _look(self) -> Changes | None:
        version = self._pm.data_version()
        changed = version != self._version
        if changed:
            self._check_line()
            self._presence_due = True
            self._more = True
            self._version = version
        begin = self._clock()
        presence_due = self._presence_due and begin >= self._next_presence
        if not (self._more or presence_due):
            return None
        found = Changes()
        try:
            if self._more:
                self._look_at_events(found)
        except Exception as error:  # noqa: BLE001 - the hub raises it after handing out the rest
            found.error = error
        try:
            if presence_due:
                self._look_at_presence(found, begin)
        except Exception as error:  # noqa: BLE001 - as above
            found.error = error
        return found

    def _look_at_events(self, found: Changes) -> None:
        """Add new events and their frames."""
        events = self._pm.events_since(self._sequence, limit=_EVENTS_A_LOOK)
        found.add_events(events)
        if events:
            self._sequence = events[-1][0]
        self._more = len(events) == _EVENTS_A_LOOK

    def _look_at_presence(self, found: Changes, begin: float) -> None:
        """Add devices and meters that are new, changed or gone, and deleted readings."""
        deletions = self._read_deletions()
        devices = {device.id: device for device in self._pm.list_devices()}
        present = {meter.id: meter for meter in self._pm.list_meters()}
        self._presence.compare(found, devices, present, self._deletion_frames(deletions, present))
        self._waiting_deletions = len(deletions)
        if deletions:
            self._last_deletion = deletions[-1].sequence
        self._presence_due = False
        # Thousands of meters take a while; the pause leaves most of the time to requests.
        pause = max(self._reading_seconds, (self._clock() - begin) * PAUSE_PER_LOOK)
        self._next_presence = begin + pause

    def _read_deletions(self) -> list[Deletion]:
        """All that wait in the outbox, oldest first: any number, if no program sends them on."""
        limit = self._waiting_deletions + _DELETIONS_A_READ
        while True:
            deletions = self._pm.pending_deletions(limit)
            if len(deletions) < limit:
                return deletions
            limit *= 4

    def _deletion_frames(
        self, deletions: list[Deletion], present: dict[str, PowerMeter]
    ) -> Iterator[Frame]:
        """The frames of deleted readings whose meter still exists."""
        for deletion in deletions:
            meter_id = deletion.meter_id
            is_new = deletion.sequence > self._last_deletion
            if is_new and deletion.kind == "readings" and meter_id in present:
                assert meter_id is not None
                yield readings_deleted(
                    str(deletion.sequence),
                    deletion.device_id,
                    meter_id,
                    deletion.since,
                    deletion.until,
                )

    def _latest_readings(self, meter: PowerMeter) -> Iterator[PowerReading]:
        """The reading that a meter's present state comes from, if it has one."""
        if meter.updated_at is None:
            return
        us = to_microseconds(meter.updated_at)
        end = None if us == LAST_US else from_microseconds(us + 1)  # LAST_US is the last time
        yield from self._pm.iter_history(meter.id, since=meter.updated_at, until=end)
