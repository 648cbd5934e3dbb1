"""The published devices and their meters, as the file had them at the last look."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable

from power_manager import DeviceRecord, NotFound, PowerManager, PowerMeter, printable
from power_mqtt.known import Owner
from power_mqtt.options import Options

_log = logging.getLogger("power_mqtt")


class Devices:
    """The devices that the options ask for, and their meters; read() brings both up to date."""

    def __init__(self, pm: PowerManager, options: Options) -> None:
        self._pm = pm
        self._options = options
        self.all: list[DeviceRecord] = []
        self.meters: dict[str, list[PowerMeter]] = {}  # by device
        self._meter_names: dict[str, str | None] = {}  # by meter
        self._missing: set[str] = set()  # devices that were asked for and do not exist

    def read(self) -> list[str]:
        """Read them from the file; return the ids of devices that are gone since the last time."""
        devices = [device for device in self._pm.list_devices() if self._options.wants(device.id)]
        meters: dict[str, list[PowerMeter]] = {device.id: [] for device in devices}
        names: dict[str, str | None] = {}
        for meter in self._pm.list_meters():
            if meter.device_id in meters:
                meters[meter.device_id].append(meter)
                names[meter.id] = meter.name
        gone = [device.id for device in self.all if device.id not in meters]
        self.all = devices
        self.meters = meters
        self._meter_names = names
        self._say_missing()
        return gone

    def _say_missing(self) -> None:
        missing = set(self._options.device_ids) - self.meters.keys()
        for device_id in sorted(missing - self._missing):
            _log.warning(
                "%s: no such device yet: it is published once it is registered",
                printable(device_id),
            )
        self._missing = missing

    def meter_name(self, meter_id: str) -> str | None:
        """A meter's name; None if it has none, or does not exist any more."""
        if meter_id not in self._meter_names:  # it was added after the last look, or is gone
            with contextlib.suppress(NotFound):
                return self._pm.get_meter(meter_id).name
        return self._meter_names.get(meter_id)

    def removed_meter_ids(self, owners: Iterable[Owner]) -> dict[str, list[str]]:
        """Those of the owners' meters that do not exist any more, by device."""
        removed: dict[str, dict[str, None]] = {}
        for owner in owners:
            if owner.meter_id and owner.meter_id not in self._meter_names:
                removed.setdefault(owner.device_id, {})[owner.meter_id] = None
        return {device_id: list(ids) for device_id, ids in removed.items()}
