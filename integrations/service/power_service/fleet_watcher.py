"""What the devices of a fleet send, as changes and frames for clients of the stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from power_manager import DeviceRecord, PowerMeter, PowerReading, to_microseconds
from power_service.fleet_source import FleetSource
from power_service.presence import Bounds, Changes, Frame, Presence, readings_deleted
from power_service.watcher import PAUSE_PER_LOOK

LINE = "fleet"  # the one line of history: the fleet's stream numbers all events
_EVENTS_A_LOOK = 1000
# Seconds between two looks at all devices, to see which an operator has retired or deleted.
_WHOLE_EVERY = 15.0


class FleetWatcher:
    """Asks the engine for what is new; used in the poller's thread only.

    Each look asks when the stream last heard of each device, then for the meters of the devices
    that were heard of since: a quiet fleet costs one small query. The events are those after the
    last look's.

    A look has two parts, like that of a file's Watcher; each notes how far it has got only when it
    has read everything.
    """

    def __init__(
        self,
        source: FleetSource,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._seconds = seconds
        self._clock = clock
        self._next_look = 0.0
        self._more = False  # there are new events beyond those of the last look
        self._next_whole = 0.0
        self._sequence: int | None = None  # None: the engine has never answered
        self._presence = Presence(_latest_reading)
        self._heard: dict[str, int] = {}
        self._devices: dict[str, DeviceRecord] = {}
        self._meters: dict[str, list[PowerMeter]] = {}
        self._deleted: dict[str, int] = {}  # by device, the last deletion that was seen

    @property
    def sequence(self) -> int:
        """Every event up to it has been seen."""
        return self._sequence or 0

    def bounds(self) -> Bounds:
        """The line of history, and its first and last sequence. Raises StorageError."""
        return Bounds(LINE, self._source.first_sequence(), self._source.last_sequence())

    def look(self) -> Changes | None:
        """What has changed since the last look, or None. Raises StorageError."""
        begin = self._clock()
        if begin < self._next_look:
            return None
        found = Changes()
        try:
            self._look_at_events(found)
        except Exception as error:  # noqa: BLE001 - the hub raises it after handing out the rest
            found.error = error
        try:
            self._look_at_presence(found, begin)
        except Exception as error:  # noqa: BLE001 - as above
            found.error = error
        if found.error is None and not self._more:
            # Thousands of meters take a while; the pause leaves most of the time to requests.
            pause = max(self._seconds, (self._clock() - begin) * PAUSE_PER_LOOK)
            self._next_look = begin + pause
        return found

    def _look_at_events(self, found: Changes) -> None:
        if self._sequence is None:
            self._sequence = self._source.last_sequence()
            return
        events = self._source.events_since(self._sequence, limit=_EVENTS_A_LOOK)
        found.add_events(events)
        if events:
            self._sequence = events[-1][0]
        self._more = len(events) == _EVENTS_A_LOOK

    def _look_at_presence(self, found: Changes, begin: float) -> None:
        """Add devices and meters that are new, changed or gone, and deleted readings."""
        heard = self._source.last_heard()  # first: the next look sees what comes after it
        if begin >= self._next_whole:
            devices = {device.id: device for device in self._source.list_devices()}
            meters = _by_device(self._source.list_meters())
            changed = None
        else:
            changed = [id_ for id_, seen in heard.items() if seen != self._heard.get(id_)]
            if not changed:
                return
            devices = self._devices | {one.id: one for one in self._source.devices_of(changed)}
            meters = self._meters | self._source.meters_of(changed)
        deletions = self._source.reading_deletions(changed)
        present = {meter.id: meter for some in meters.values() for meter in some}
        frames: list[Frame] = []
        deleted = dict(self._deleted)
        for deletion in deletions:
            if deletion.sequence <= self._deleted.get(deletion.device_id, -1):
                continue
            deleted[deletion.device_id] = deletion.sequence
            if deletion.meter_id in present:
                frames.append(
                    readings_deleted(
                        f"{deletion.device_id} {deletion.sequence} {deletion.meter_id}",
                        deletion.device_id,
                        deletion.meter_id,
                        deletion.since,
                        deletion.until,
                    )
                )
        self._presence.compare(found, devices, present, frames)
        self._heard = heard
        self._devices = devices
        self._meters = meters
        self._deleted = deleted
        if changed is None:
            self._next_whole = begin + _WHOLE_EVERY


def _by_device(meters: Iterable[PowerMeter]) -> dict[str, list[PowerMeter]]:
    found: dict[str, list[PowerMeter]] = {}
    for meter in meters:
        found.setdefault(meter.device_id, []).append(meter)
    return found


def _latest_reading(meter: PowerMeter) -> Iterator[PowerReading]:
    """The reading that a meter's present state comes from, if it has one, made from the state.

    Where only volts or only amperes are known, the state has 0 for the other one.
    """
    if meter.updated_at is None:
        return
    us = to_microseconds(meter.updated_at)
    yield PowerReading(
        f"{meter.id}:{us}",
        meter.id,
        meter.voltage if meter.power_known or meter.voltage else None,
        meter.current_draw if meter.power_known or meter.current_draw else None,
        meter.wattage,
        meter.charge_pct,
        meter.updated_at,
    )
