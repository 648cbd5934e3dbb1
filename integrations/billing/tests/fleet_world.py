"""The same world in a fleet: the file is forwarded to an engine, the ledger has its own file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fleet_harness import carry, emptied
from power_billing.fleet_usage import FleetDevices
from power_billing.sources import MeterUsage
from power_billing.tables import LedgerFile
from power_billing.usage import Run
from power_fleet.engine import Engine
from world import World

from power_manager import DeviceRecord, PowerManager

URL = "chdb://memory"


class Carrier:
    """Carries a file to an engine, as the forwarder and a sink do, if anything has changed."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._carried: tuple[PowerManager, int] | None = None  # what the file was like afterwards

    def carry(self, pm: PowerManager) -> None:
        """Carry what has changed in the file."""
        if self._carried == (pm, _change_count(pm)):
            return
        carry(pm, self.engine, clock=time.time)
        self._carried = (pm, _change_count(pm))


def _change_count(pm: PowerManager) -> int:
    """How many rows this process has changed in the file since it opened it."""
    with pm.connection() as conn:
        return conn.total_changes


class CarriedDevices(FleetDevices):
    """A fleet's devices; what their files have not sent is carried before each question."""

    def __init__(
        self, ledger: LedgerFile, carry_all: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        super().__init__([URL], ledger, clock)
        self.carry_all = carry_all

    def get_device(self, device_id: str) -> DeviceRecord:
        """As a fleet's."""
        self.carry_all()
        return super().get_device(device_id)

    def usage(self, device_id: str, days: float) -> list[MeterUsage] | None:
        """As a fleet's."""
        if device_id not in self._found:
            self.carry_all()
        return super().usage(device_id, days)

    def expect(self, device_ids: Sequence[str], days: float) -> None:
        """As a fleet's."""
        self.carry_all()
        super().expect(device_ids, days)


class FleetWorld(World):
    """`pm` is the device's file, of which billing sees nothing but what reaches the engine."""

    def open(self, db: Path | str) -> None:
        """Open the file, with an engine that has nothing yet."""
        super().open(db)
        self.engine = Engine(emptied([URL]))
        self._carrier = Carrier(self.engine)
        ledger = LedgerFile(Path(db).with_suffix(".ledger"))
        self.devices = CarriedDevices(ledger, self.carry_all, lambda: self.now)
        self.usage = Run(self.devices, clock=lambda: self.now, sleep=self.slept.append)

    def carry_all(self) -> None:
        """What the forwarder and a sink do."""
        self._carrier.carry(self.pm)
