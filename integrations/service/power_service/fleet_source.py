"""What the service asks a fleet beyond what it asks a file, and how it comes by one that can be asked."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from power_manager import Deletion, DeviceRecord, PowerMeter, PowerStatistics
from power_service.settings import Refused, Settings
from power_service.source import Source


class FleetSource(Source, Protocol):
    """power_fleet.read.FleetSource: the reading half of PowerManager, of devices whose files are elsewhere.

    All answers raise StorageError where the engine does not give them.
    """

    def meters_of(self, device_ids: Iterable[str]) -> dict[str, list[PowerMeter]]:
        """By device id, its meters; a device that is not known is left out."""

    def statistics_of(
        self, meters: Iterable[PowerMeter], since_us: int, until_us: int
    ) -> dict[str, list[PowerStatistics]]:
        """By meter id, statistics of the UTC hours from a moment on that begin before another, oldest first."""

    def devices_of(self, device_ids: Iterable[str]) -> list[DeviceRecord]:
        """Those of these devices that are known."""

    def first_sequence(self) -> int:
        """The number of the oldest event; 0 without any."""

    def last_heard(self) -> dict[str, int]:
        """By device id, when the stream last took in something from it: microseconds by its clock."""

    def reading_deletions(self, device_ids: Collection[str] | None) -> list[Deletion]:
        """The deletions of readings of these devices, or of all, oldest first; numbered within each device."""

    def fleet_state(self) -> dict[str, Any]:
        """How far the engine is; see models.FleetState."""

    def fleet_devices(self) -> list[dict[str, Any]]:
        """What the fleet knows of each device beside its record; see models.FleetDevice."""

    def metrics_text(self) -> bytes:
        """The metrics of the engine, and of its stream where that is known, for Prometheus."""

    def energy(self, days: int) -> list[dict[str, Any]]:
        """Energy by UTC day, site and meter type; see models.SiteEnergy."""

    def silent(self, minutes: float) -> list[dict[str, Any]]:
        """Devices that nothing came from for so long; see models.SilentDevice."""


def open_fleet(settings: Settings, clock: Callable[[], float]) -> FleetSource:
    """A source that asks the engine of these settings; nothing is asked yet.

    Raises Refused where the extra is not installed, or an address is none.
    """
    try:
        # With it comes the engine's client: only for those who have a fleet.
        read = importlib.import_module("power_fleet.read")
    except ImportError as error:
        raise Refused(
            f"a fleet is wanted, but {error.name} is not installed: pip install '.[fleet]'"
        ) from None
    try:
        source: FleetSource = read.open_source(settings.fleet, settings.hub, clock)
    except read.Refused as error:
        raise Refused(str(error).replace("--clickhouse", "--fleet")) from None
    return source
