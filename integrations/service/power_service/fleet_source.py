"""What the service asks a fleet beyond what it asks a file, and how it opens one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from power_manager import Deletion, DeviceRecord, not_installed
from power_service.settings import Refused, Settings
from power_service.source import ManyMeters, Source


class FleetSource(Source, ManyMeters, Protocol):
    """power_fleet.read.FleetSource: PowerManager's reading half, over the devices of a fleet.

    Each call raises StorageError if the engine does not answer.
    """

    def devices_of(self, device_ids: Iterable[str]) -> list[DeviceRecord]:
        """The records of these devices; an unknown one is left out."""

    def first_sequence(self) -> int:
        """The sequence of the oldest event; 0 if there is none."""

    def last_heard(self) -> dict[str, int]:
        """By device id, when its last message came: microseconds, by the stream's clock."""

    def reading_deletions(self, device_ids: Collection[str] | None) -> list[Deletion]:
        """Deletions of readings of these devices, or of all, oldest first, numbered by device."""

    def fleet_state(self) -> dict[str, Any]:
        """How fresh the answers are; see models.FleetState."""

    def fleet_devices(self) -> list[dict[str, Any]]:
        """What the fleet knows of each device beside its record; see models.FleetDevice."""

    def metrics_text(self) -> bytes:
        """Metrics for Prometheus: the engine's, and its stream's if that is known."""

    def energy(self, days: int) -> list[dict[str, Any]]:
        """Energy by UTC day, site and meter type; see models.SiteEnergy."""

    def silent(self, minutes: float) -> list[dict[str, Any]]:
        """Devices that have sent nothing for so many minutes; see models.SilentDevice."""


def open_fleet(settings: Settings, clock: Callable[[], float]) -> FleetSource:
    """A source that asks the engine of these settings; it asks nothing yet.

    Raises Refused if the extra is not installed or an address is invalid.
    """
    try:
        # It brings the engine's client, so it is imported for a fleet only.
        read = importlib.import_module("power_fleet.read")
    except ModuleNotFoundError as error:
        raise Refused(f"--fleet, --hub: {not_installed(error, 'fleet')}") from None
    try:
        source: FleetSource = read.open_source(settings.fleet, settings.hub, clock)
    except read.Refused as error:
        raise Refused(str(error).replace("--clickhouse", "--fleet")) from None
    return source
