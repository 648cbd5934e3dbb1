"""The library of this checkout."""

# ruff: noqa: D102  # the protocol's methods are documented once, in base.Contender
from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from readings import DAY, Row

from .base import Contender

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import power_manager


class PowerManagerContender(Contender):
    """Every reading with its meter's state, hourly statistics and alerts; full: as it comes."""

    modes = ("full", "normal")
    lacks = "no other thing than power: its columns are fixed"

    def open(self) -> None:
        self.pm = power_manager.PowerManager(
            self.place.folder / "power_manager.db", durability=self.place.mode, clock=self.clock
        )
        self.pm.register_device("bench", "Benchmark")
        self.meter = self.pm.add_meter("bench", "battery", 120.0, "Pack").id

    def log(self, voltage: float, current: float, charge: float) -> None:
        self.pm.log_power(self.meter, voltage, current, charge)

    def group(self, values: Sequence[tuple[float, float, float]]) -> None:
        with self.pm.transaction():
            for value in values:
                self.clock.tick()
                self.pm.log_power(self.meter, *value)

    def ready(self, row: Row) -> Any:
        time, voltage, current, charge = row
        return self.meter, voltage, current, charge, time

    def bulk(self, ready: Iterable[Any]) -> None:
        self.pm.log_many(ready)

    def history(self, since: float) -> Sequence[Any]:
        return self.pm.get_history(self.meter, (self.clock() - since) / 3600)

    def report(self, since: float) -> tuple[float, ...]:
        text = self.pm.export_report("bench", (self.clock() - since) / DAY)
        (found,) = json.loads(text)["meters"]
        keys = (
            "reading_count avg_wattage min_wattage max_wattage "
            "min_charge_pct max_charge_pct energy_out_wh energy_in_wh"
        )
        return tuple(found[key] for key in keys.split())

    def verify(self) -> list[str]:
        return self.pm.check()

    def close(self) -> None:
        self.pm.close()
