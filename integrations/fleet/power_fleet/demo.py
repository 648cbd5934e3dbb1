"""A made-up fleet to look at.

Files of devices with a day behind them, which are sent as real ones are.

Each site has a file of its own and a forwarder of its own. What the devices measure follows the
hour of the day and chance, the same for the same number of devices.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from power_fleet.backoff import Backoff
from power_fleet.forwarder import forward
from power_fleet.outbox import Outbox
from power_fleet.stream import Nats
from power_manager import PowerManager

SITES = ("Harbour", "North ridge", "Old mill", "Quarry", "Reservoir", "Station", "West field")
HISTORY_S = 24 * 3600.0
STEP_S = 900.0  # between two readings of the history
LIVE_S = 10.0  # between two from now on
FORWARD_S = 1.0  # between two looks of a forwarder
_DAY_S = 86_400.0

# Meter, V, A, %, epoch seconds.
MadeReading = tuple[str, float | None, float | None, float | None, float]


@dataclass
class Device:
    """A box on a mast: a panel, a pack and what they feed."""

    number: int
    pack: str = ""  # ids of its meters
    panel: str = ""
    load_watts: float = field(init=False)
    panel_watts: float = field(init=False)
    charge_pct: float = field(init=False)
    capacity_wh: float = 480.0

    def __post_init__(self) -> None:
        chance = random.Random(self.number)
        self.load_watts = chance.uniform(6.0, 14.0)
        self.panel_watts = chance.uniform(20.0, 90.0)  # the smallest do not feed their load
        self.charge_pct = chance.uniform(35.0, 95.0)
        self._chance = chance

    @property
    def id(self) -> str:
        """Its id."""
        return f"demo-{self.number:04}"

    def register(self, pm: PowerManager) -> None:
        """Make it and its meters."""
        pm.register_device(self.id, f"Mast {self.number}", 2.0, 24 * 12.0)
        self.pack = pm.add_meter(self.id, "battery", self.capacity_wh, "Pack").id
        self.panel = pm.add_meter(self.id, "solar", name="Panel").id

    def rows(self, now: float, seconds: float) -> Iterator[MadeReading]:
        """What its meters read, `seconds` after they did last."""
        sun = max(math.sin(2 * math.pi * (now % _DAY_S / _DAY_S - 0.25)), 0.0)
        panel = self.panel_watts * sun * self._chance.uniform(0.7, 1.0)
        load = self.load_watts * self._chance.uniform(0.9, 1.1)
        wanted = load - panel  # watts out of the pack
        self.charge_pct -= 100.0 * wanted * seconds / 3600.0 / self.capacity_wh
        self.charge_pct = min(max(self.charge_pct, 0.5), 100.0)
        volts = 12.0 + 0.015 * self.charge_pct
        yield self.pack, round(volts, 2), round(wanted / volts, 3), round(self.charge_pct, 1), now
        yield self.panel, 18.0, round(panel / 18.0, 3), None, now


@dataclass
class Site:
    """Devices of one file."""

    name: str
    pm: PowerManager
    devices: list[Device]

    def make(self, now: float) -> None:
        """Register the devices, and log the day before now."""
        with self.pm.transaction():
            for device in self.devices:
                device.register(self.pm)
        steps = int(HISTORY_S / STEP_S)
        for step in range(steps, 0, -1):
            self.pm.log_many(self._rows(now - step * STEP_S, STEP_S))

    def log_live(self, now: float, seconds: float) -> None:
        """Log what the devices measure now."""
        self.pm.log_many(self._rows(now, seconds))

    def _rows(self, now: float, seconds: float) -> Iterator[MadeReading]:
        for device in self.devices:
            yield from device.rows(now, seconds)


def make_sites(directory: Path, count: int, clock: Callable[[], float] = time.time) -> list[Site]:
    """Files with that many devices in a directory, each with a day behind it.

    Files that are there are replaced.
    """
    names = SITES[: min(count, len(SITES))]
    sites = []
    for place, name in enumerate(names):
        path = directory / f"{name.lower().replace(' ', '-')}.db"
        pm = PowerManager(path, durability="normal", clock=clock)
        devices = [Device(number + 1) for number in range(place, count, len(names))]
        site = Site(name, pm, devices)
        site.make(clock())
        sites.append(site)
    return sites


async def run(
    sites: list[Site], to: Nats, once: bool, clock: Callable[[], float] = time.time
) -> None:
    """Send what the files hold; without `once`, go on measuring and sending."""
    works = [forward(Outbox(site.pm, site.name), to, FORWARD_S, Backoff(), once) for site in sites]
    if not once:
        works.append(_measure(sites, clock))
    await asyncio.gather(*works)


async def _measure(sites: list[Site], clock: Callable[[], float]) -> None:
    while True:
        await asyncio.sleep(LIVE_S)
        for site in sites:
            await asyncio.to_thread(site.log_live, clock(), LIVE_S)
