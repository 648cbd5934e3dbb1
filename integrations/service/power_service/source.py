"""What the routes read from: a file, by the library, or a fleet, by its engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from power_manager import (
    DeviceRecord,
    EnergyTotals,
    PowerEvent,
    PowerMeter,
    PowerReading,
    PowerStatistics,
)


class Source(Protocol):
    """The reading half of PowerManager; a fleet's is power_fleet.read.FleetSource.

    Arguments, answers and errors (InvalidValue, NotFound, StorageError) are PowerManager's. Safe to
    use from many threads.
    """

    def list_devices(self) -> list[DeviceRecord]:
        """Every device."""

    def get_device(self, device_id: str) -> DeviceRecord:
        """A device."""

    def list_meters(self, device_id: str | None = None) -> list[PowerMeter]:
        """The meters of a device, or all, in their present state."""

    def get_meter(self, meter_id: str) -> PowerMeter:
        """A meter in its present state."""

    def iter_history(
        self, meter_id: str, *, since: Any = None, until: Any = None
    ) -> Iterator[PowerReading]:
        """The readings of a meter from `since` on and before `until`, oldest first."""

    def get_statistics(
        self, meter_id: str, *, days: float = 7, bucket: str = "hour"
    ) -> list[PowerStatistics]:
        """Statistics of a meter by UTC hour or day, oldest first."""

    def energy_totals(self, meter_id: str) -> EnergyTotals:
        """The energy of a meter since its first reading."""

    def get_events(self, device_id: str, limit: int = 50) -> list[PowerEvent]:
        """A device's newest events, newest first."""

    def events_since(self, sequence: int, *, limit: int = 1000) -> list[tuple[int, PowerEvent]]:
        """Every device's events after a sequence number, oldest first."""

    def last_sequence(self) -> int:
        """The sequence of the newest event; 0 if there is none."""

    def estimate_runtime(
        self, device_id: str, *, window_minutes: float | None = None
    ) -> float | None:
        """Hours until the device's batteries are empty."""

    def power_budget_check(self, device_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The power budget of each device."""

    def export_report(self, device_id: str, days: float = 7) -> str:
        """The device's report as JSON text."""


@runtime_checkable
class ManyMeters(Protocol):
    """A source that answers for many meters in one call; a fleet's engine needs a query each."""

    def meters_of(self, device_ids: Iterable[str]) -> dict[str, list[PowerMeter]]:
        """By device id, its meters; an unknown device is left out."""

    def statistics_of(
        self, meters: Iterable[PowerMeter], since_us: int, until_us: int
    ) -> dict[str, list[PowerStatistics]]:
        """By meter id, statistics of UTC hours from `since_us` on and before `until_us`."""
