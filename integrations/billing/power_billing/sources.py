"""Where usage comes from: Devices and UsageSource, and the library's file as both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from power_billing.hours import hour_of
from power_billing.tables import Place
from power_manager import (
    DeviceRecord,
    NotFound,
    PowerEventType,
    PowerManager,
    PowerMeter,
    PowerStatistics,
)

NANO = 10**9  # statistics have 9 decimals: whole nano-watt-hours add up without rounding
ALL_DAYS = 100_000.0


@dataclass(frozen=True)
class HourUsage:
    """One UTC hour (since 1970) of a meter: nano-watt-hours out less in, of how many readings.

    has_power is False only where every reading says 0 W.
    """

    hour: int
    energy_nwh: int
    reading_count: int
    has_power: bool = True


@dataclass(frozen=True)
class MeterUsage:
    """A meter and its hours that have readings, oldest first."""

    meter: PowerMeter
    hours: list[HourUsage]


class Devices(Place, Protocol):
    """What billing asks about devices, and tells them. A PowerManager is one."""

    def list_devices(self) -> list[DeviceRecord]:
        """Every device."""
        ...

    def get_device(self, device_id: str) -> DeviceRecord:
        """The device with that id. Raises NotFound."""
        ...

    def list_meters(self, device_id: str) -> list[PowerMeter]:
        """The meters of a device in their present state."""
        ...

    def trigger_event(
        self,
        device_id: str,
        event_type: PowerEventType | str,
        value: float = 0.0,
        note: str | None = None,
    ) -> object:
        """Tell a device something. Raises NotFound."""
        ...


@runtime_checkable
class UsageSource(Protocol):
    """What knows the usage of devices, such as a file or a fleet's engine."""

    def usage(self, device_id: str, days: float) -> list[MeterUsage] | None:
        """Each meter of a device over the last `days`, oldest first; None: no such device."""
        ...


@runtime_checkable
class BatchSource(UsageSource, Protocol):
    """A source that is faster if it answers about many devices at once."""

    def expect(self, device_ids: Sequence[str], days: float) -> None:
        """Announce what usage() will be asked about next, in this order."""
        ...


def source_of(devices: Devices) -> UsageSource:
    """What knows the usage of these devices: the library's file, or the object itself."""
    if isinstance(devices, PowerManager):
        return FileUsage(devices)
    if isinstance(devices, UsageSource):
        return devices
    raise TypeError(f"expected a PowerManager or a UsageSource, got {devices!r}")


@dataclass(frozen=True)
class FileUsage:
    """The library's file as a source; without locks, so that no program that logs has to wait."""

    pm: PowerManager

    def usage(self, device_id: str, days: float) -> list[MeterUsage] | None:
        """Each meter of a device over the last `days`, from its hourly statistics."""
        found = []
        try:
            for meter in self.pm.list_meters(device_id):
                hours = self._hours(meter.id, days)
                if hours is not None:
                    found.append(MeterUsage(meter, hours))
            self.pm.get_device(device_id)  # last: then the device was there all the time
        except NotFound:
            return None
        return found

    def _hours(self, meter_id: str, days: float) -> list[HourUsage] | None:
        """The meter's hours; None: it was deleted meanwhile."""
        try:
            return [_hour_usage(row) for row in self.pm.get_statistics(meter_id, days=days)]
        except NotFound:
            return None


def _hour_usage(row: PowerStatistics) -> HourUsage:
    is_idle = row.min_wattage == 0 and row.max_wattage == 0
    return HourUsage(
        hour_of("start", row.start),
        round(row.energy_out_wh * NANO) - round(row.energy_in_wh * NANO),
        row.reading_count,
        not is_idle,
    )
