"""Which devices and meters are new, changed or gone, as frames for clients of the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from power_manager import DeviceRecord, PowerEvent, PowerMeter, PowerReading
from power_service.errors import ServiceError
from power_service.models import (
    MESSAGE,
    DeletedMessage,
    DeviceMessage,
    EventMessage,
    MeterMessage,
    ReadingMessage,
    shown,
)


def message_text(message: object) -> str:
    """A message of the stream as it is sent."""
    return MESSAGE.dump_json(message).decode()


@dataclass(frozen=True)
class Frame:
    """Text for clients that may see the device.

    A frame replaces a waiting one of the same `key`. An event has a `sequence` and no key.
    `forgets` are keys whose waiting frames are dropped, as they are no longer true.
    """

    device_id: str
    text: str
    sequence: int = 0
    key: str = ""
    forgets: tuple[str, ...] = ()


@dataclass
class Changes:
    """What one look has found; `error` is what kept it from finding more."""

    events: list[tuple[int, PowerEvent]] = field(default_factory=list)
    meters: list[PowerMeter] = field(default_factory=list)
    deleted_meter_ids: list[str] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    error: Exception | None = None

    def add_events(self, events: list[tuple[int, PowerEvent]]) -> None:
        """Add events with their sequence numbers, and their frames."""
        self.events += events
        for sequence, event in events:
            text = message_text(EventMessage("event", sequence, event))
            self.frames.append(Frame(event.device_id, text, sequence))


@dataclass
class Bounds:
    """The line of history, and its first and last sequence; 0 and 0 without events."""

    file_id: str
    oldest: int
    latest: int


class Replaced(ServiceError):
    """Another file, or other content, has taken the database's place."""


class Presence:
    """The devices and meters of the last look, with which those of the next one are compared.

    What the first look finds is not news. `latest_readings` gives the reading that a meter's
    present state comes from, if there is one.
    """

    def __init__(self, latest_readings: Callable[[PowerMeter], Iterable[PowerReading]]) -> None:
        self._latest_readings = latest_readings
        self._devices: dict[str, DeviceRecord] = {}
        self._meters: dict[str, PowerMeter] = {}
        self.begun = False

    def compare(
        self,
        found: Changes,
        devices: dict[str, DeviceRecord],
        meters: dict[str, PowerMeter],
        frames: Iterable[Frame] = (),
    ) -> None:
        """Add to `found` what is new, changed or gone, and remember what is there now.

        `frames` go between those of devices and those of meters; the first look drops them. If this
        fails, nothing is remembered.
        """
        told: list[Frame] = []
        if self.begun:
            told += self._device_frames(devices)
            told += frames
        changed: list[PowerMeter] = []
        for meter_id, meter in meters.items():
            earlier = self._meters.get(meter_id)
            if meter == earlier:
                continue
            changed.append(meter)
            if self.begun and (earlier is None or meter.updated_at != earlier.updated_at):
                told += self._reading_frames(meter)
            text = message_text(MeterMessage("meter", shown(meter)))
            told.append(Frame(meter.device_id, text, key=f"meter {meter_id}"))
        gone = [meter for meter_id, meter in self._meters.items() if meter_id not in meters]
        told += map(_meter_deleted, gone)
        found.meters += changed
        found.deleted_meter_ids += [meter.id for meter in gone]
        found.frames += told
        self._devices = devices
        self._meters = meters
        self.begun = True

    def _device_frames(self, present: dict[str, DeviceRecord]) -> Iterator[Frame]:
        """The frames of devices that are new, changed or gone."""
        for device_id, device in present.items():
            if device != self._devices.get(device_id):
                text = message_text(DeviceMessage("device", device))
                yield Frame(device_id, text, key=f"device {device_id}")
        for device_id in self._devices:
            if device_id not in present:
                text = message_text(DeletedMessage("deleted", "device", device_id))
                key = f"device {device_id}"
                yield Frame(device_id, text, key=f"deleted {key}", forgets=(key,))

    def _reading_frames(self, meter: PowerMeter) -> Iterator[Frame]:
        for reading in self._latest_readings(meter):
            text = message_text(ReadingMessage("reading", meter.device_id, reading))
            yield Frame(meter.device_id, text, key=f"reading {meter.id}")


def _meter_deleted(meter: PowerMeter) -> Frame:
    text = message_text(DeletedMessage("deleted", "meter", meter.device_id, meter.id))
    forgets = (f"meter {meter.id}", f"reading {meter.id}")
    return Frame(meter.device_id, text, key=f"deleted meter {meter.id}", forgets=forgets)


def readings_deleted(
    key: str, device_id: str, meter_id: str, since: str | None, until: str | None
) -> Frame:
    """The frame about deleted readings of a meter; `key` names the deletion."""
    message = DeletedMessage("deleted", "readings", device_id, meter_id, since, until)
    return Frame(device_id, message_text(message), key=f"deleted readings {key}")
