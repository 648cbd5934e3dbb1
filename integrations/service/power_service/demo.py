"""`power-service --demo`: a file with a year of data of three devices, and live readings after it.

The cabin has a panel, a pack, and a grid connection that it uses when the pack is low. The mast has
only a small panel and pack, and sheds its load when the pack is empty. The rack has a UPS, and had
a power cut. Energy adds up: each device's load is what its panel, pack and grid give together, and
a full pack curtails its panel.
"""

from __future__ import annotations

import functools
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from power_manager import PowerManager, PowerManagerError
from power_service.settings import ALERT_TYPES

DAYS = 365  # of statistics
RECENT_DAYS = 7  # of readings
COARSE_SECONDS = 1800.0  # between two readings of the year: two make an hour's statistics
FINE_SECONDS = 120.0  # between two of the last week
LIVE_SECONDS = 2.0  # between two from now on
_DAY_SECONDS = 86_400.0
_LATITUDE = math.radians(47)
_log = logging.getLogger("power_service")

Measured = tuple[str, float | None, float | None, float | None]  # a meter's id, V, A, %


# --- The weather


def _sun(when: float, offset_seconds: float) -> float:
    """How high the sun stands, 0 to 1, by the time of year and the local time of day."""
    days = (when + offset_seconds) / _DAY_SECONDS
    declination = math.radians(-23.4) * math.cos(2 * math.pi * (days + 10) / 365.25)
    hour_angle = 2 * math.pi * (days % 1 - 0.5)
    height = math.sin(_LATITUDE) * math.sin(declination)
    height += math.cos(_LATITUDE) * math.cos(declination) * math.cos(hour_angle)
    return max(height, 0.0)


@functools.lru_cache(maxsize=4)
def _brightness(day: int) -> float:
    """The share of sunlight that a day's clouds let through on average."""
    return random.Random(day).betavariate(1.6, 1.1)


def _clear(when: float) -> float:
    """The share that clouds let through now; it changes slowly over days, fast within a day."""
    day, part = divmod(when / _DAY_SECONDS, 1)
    base = _brightness(int(day)) * (1 - part) + _brightness(int(day) + 1) * part
    drift = math.sin(when / 1700) * math.sin(when / 5300) + 0.4 * math.sin(when / 97)
    return min(max(base + 0.18 * drift, 0.08), 1.0)


# --- The devices


@dataclass
class Event:
    """An event of a device, other than the alerts of its readings."""

    device_id: str
    type: str
    when: float
    note: str
    meter_id: str | None = None


@dataclass
class Pack:
    """A battery: its charge, and the voltage and current that it shows."""

    capacity_wh: float
    volts: float  # when it is half full
    charge_pct: float

    def most_taken(self) -> float:
        """The watts that it can be charged with: fewer and fewer as it becomes full."""
        return self.capacity_wh * 0.4 * min((100.0 - self.charge_pct) / 6.0, 1.0)

    def move(self, watts: float, hours: float) -> None:
        """Supply these watts for so many hours; charging (negative watts) loses a little."""
        taken_wh = watts * hours * (0.95 if watts < 0 else 1.0)
        self.charge_pct -= 100.0 * taken_wh / self.capacity_wh
        self.charge_pct = min(max(self.charge_pct, 0.0), 100.0)

    def row(self, meter_id: str, watts: float) -> Measured:
        """Its reading while it supplies these watts."""
        resting = self.volts * (0.96 + 0.0008 * self.charge_pct)
        volts = resting - 0.0004 * watts  # it falls under load and rises while charging
        return meter_id, round(volts, 3), round(watts / volts, 3), round(self.charge_pct, 2)


@dataclass
class Device:
    """A device of the demo. `panel_watts`: of its panel in full sun."""

    id: str
    name: str
    target_wh: float
    shutdown_threshold: float
    chance: random.Random
    panel_watts: float = 0.0
    meters: dict[str, str] = field(default_factory=dict)  # ids by type
    events: list[Event] = field(default_factory=list)

    def register(self, pm: PowerManager) -> None:
        """Register it and its meters."""
        pm.register_device(self.id, self.name, self.shutdown_threshold, self.target_wh)
        for kind, name, capacity_wh in self.wanted_meters():
            self.meters[kind] = pm.add_meter(self.id, kind, capacity_wh, name).id

    def wanted_meters(self) -> list[tuple[str, str, float]]:
        """Type, name and capacity of each."""
        raise NotImplementedError

    def step(self, when: float, hours: float, offset_seconds: float) -> list[Measured]:
        """The readings of its meters now, after so many hours since the last step."""
        raise NotImplementedError

    def note(self, kind: str, when: float, text: str, meter_id: str | None = None) -> None:
        """Keep an event, to be logged with the readings."""
        self.events.append(Event(self.id, kind, when, text, meter_id))

    def _panel_row(self, watts: float, sun_watts: float) -> Measured:
        volts = 36.0 + self.chance.uniform(-0.4, 0.4) if sun_watts > 0.5 else 0.6
        return self.meters["solar"], round(volts, 2), round(watts / volts, 3), None

    def _jitter(self, watts: float) -> float:
        return watts * self.chance.uniform(0.96, 1.04)


@dataclass
class Cabin(Device):
    """Panel, pack and grid; the grid charges the pack while it is low."""

    pack: Pack = field(default_factory=lambda: Pack(2400.0, 25.6, 70.0))
    on_grid: bool = False

    def wanted_meters(self) -> list[tuple[str, str, float]]:
        """Roof, battery and grid."""
        return [
            ("solar", "Roof", 0.0),
            ("battery", "House battery", self.pack.capacity_wh),
            ("main", "Grid", 0.0),
        ]

    def _load(self, when: float, offset_seconds: float) -> float:
        hour = (when + offset_seconds) / 3600 % 24
        watts = 38.0
        if math.sin(when / 420) > 0.35:
            watts += 62.0  # the fridge
        if 6.5 <= hour < 8:
            watts += 45.0
        if 17.5 <= hour < 22.5:
            watts += 85.0  # an evening at home
        return self._jitter(watts)

    def step(self, when: float, hours: float, offset_seconds: float) -> list[Measured]:
        """Use the sun first, then the pack, then the grid."""
        if self.pack.charge_pct < 22:
            self.on_grid = True
        elif self.pack.charge_pct > 45:
            self.on_grid = False
        load = self._load(when, offset_seconds)
        sun = self.panel_watts * _sun(when, offset_seconds) * _clear(when)
        wanted = min(180.0 if self.on_grid else max(sun - load, 0.0), self.pack.most_taken())
        panel = min(sun, load + wanted)
        grid = max(load + wanted - panel, 0.0) if self.on_grid else 0.0
        battery = load - panel - grid
        self.pack.move(battery, hours)
        volts = self.chance.gauss(231.0, 0.8)
        return [
            self._panel_row(panel, sun),
            self.pack.row(self.meters["battery"], battery),
            (self.meters["main"], round(volts, 1), round(grid / volts, 4), None),
        ]


@dataclass
class Mast(Device):
    """A small panel and pack; when the pack is empty, the load is off until it is charged again."""

    pack: Pack = field(default_factory=lambda: Pack(260.0, 12.8, 80.0))
    is_off: bool = False

    def wanted_meters(self) -> list[tuple[str, str, float]]:
        """Panel and pack."""
        return [("solar", "Panel", 0.0), ("battery", "Pack", self.pack.capacity_wh)]

    def step(self, when: float, hours: float, offset_seconds: float) -> list[Measured]:
        """Use the sun first, then the pack."""
        if not self.is_off and self.pack.charge_pct < 4:
            self.is_off = True
            self.note("shutdown", when, "pack empty: camera and radio off")
        elif self.is_off and self.pack.charge_pct > 25:
            self.is_off = False
            self.note("restore", when, "pack charged: camera and radio on")
        load = self._jitter(0.4 if self.is_off else 3.6)
        sun = self.panel_watts * _sun(when, offset_seconds) * _clear(when)
        panel = min(sun, load + self.pack.most_taken())
        battery = load - panel
        self.pack.move(battery, hours)
        return [self._panel_row(panel, sun), self.pack.row(self.meters["battery"], battery)]


@dataclass
class Rack(Device):
    """Mains and a UPS in line: both carry the load. `cut`: when a power cut began and ended."""

    cut: tuple[float, float] = (0.0, 0.0)
    backup_wh: float = 90.0
    charge_pct: float = 100.0
    is_cut: bool = False

    def wanted_meters(self) -> list[tuple[str, str, float]]:
        """Supply and UPS."""
        return [("main", "Supply", 0.0), ("ups", "UPS", self.backup_wh)]

    def step(self, when: float, hours: float, offset_seconds: float) -> list[Measured]:
        """Carry a load that follows the working day."""
        hour = (when + offset_seconds) / 3600 % 24
        load = self._jitter(58.0 + 24.0 * max(math.sin((hour - 7) / 12 * math.pi), 0.0))
        begin, end = self.cut
        was_cut = self.is_cut
        self.is_cut = begin <= when < end
        if self.is_cut:
            self.charge_pct = max(self.charge_pct - 100 * load * hours / self.backup_wh, 3.0)
        else:
            self.charge_pct = min(self.charge_pct + 40 * hours, 100.0)
        if was_cut and not self.is_cut:
            self.note("charge_start", when, "mains are back", self.meters["ups"])
        volts = 0.0 if self.is_cut else round(self.chance.gauss(230.0, 0.6), 1)
        amperes = 0.0 if self.is_cut else round(load / volts, 4)
        ups_volts = round(self.chance.gauss(229.5, 0.2), 1)
        return [
            (self.meters["main"], volts, amperes, None),
            (self.meters["ups"], ups_volts, round(load / ups_volts, 4), round(self.charge_pct, 1)),
        ]


# --- The file


def _local_offset_seconds(when: float) -> float:
    """How far local time is ahead of UTC, so that the sun rises in the local morning."""
    return float(time.localtime(when).tm_gmtoff)


class Demo:
    """The three devices in a file, and a thread that logs their live readings.

    clock: epoch seconds. offset_seconds: how far local time is ahead of UTC (default: as here).
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        offset_seconds: float | None = None,
    ) -> None:
        self.path = path
        self._clock = clock
        self._begin = clock()
        if offset_seconds is None:
            offset_seconds = _local_offset_seconds(self._begin)
        self._offset_seconds = offset_seconds
        rack = Rack("edge-rack", "Edge rack", 2000.0, 20.0, random.Random(3))
        cut = self._begin - 2.3 * _DAY_SECONDS
        rack.cut = (cut, cut + 2700)
        self._devices: list[Device] = [
            Cabin("lake-cabin", "Lake cabin", 2600.0, 10.0, random.Random(1), 620.0),
            Mast("weather-mast", "Weather mast", 90.0, 0.2, random.Random(2), 65.0),
            rack,
        ]
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def make(self) -> None:
        """Write the year: readings of the last week stay, older ones become statistics."""
        with self._open() as pm:
            with pm.transaction():
                for device in self._devices:
                    device.register(pm)
                recent = self._begin - RECENT_DAYS * _DAY_SECONDS
                for day in range(DAYS - RECENT_DAYS, 0, -1):
                    begin = recent - day * _DAY_SECONDS
                    self._log(pm, begin, begin + _DAY_SECONDS, COARSE_SECONDS)
                for day in range(RECENT_DAYS, 0, -1):
                    begin = self._begin - day * _DAY_SECONDS
                    self._log(pm, begin, begin + _DAY_SECONDS, FINE_SECONDS)
            pm.prune(RECENT_DAYS)

    def _log(self, pm: PowerManager, begin: float, end: float, seconds: float) -> None:
        """Log the meters' readings from one time to another, and the events between."""
        pm.log_many(self._rows(begin, end, seconds))
        for event in self._taken_events():
            pm.trigger_event(
                event.device_id,
                event.type,
                note=event.note,
                meter_id=event.meter_id,
                timestamp=event.when,
            )

    def _rows(self, begin: float, end: float, seconds: float) -> Iterator[tuple[object, ...]]:
        steps = round((end - begin) / seconds)
        for step in range(steps):
            when = begin + step * seconds
            for device in self._devices:
                for row in device.step(when, seconds / 3600, self._offset_seconds):
                    yield *row, when

    def _taken_events(self) -> list[Event]:
        taken = [event for device in self._devices for event in device.events]
        for device in self._devices:
            device.events.clear()
        return sorted(taken, key=lambda event: event.when)

    def _open(self) -> PowerManager:
        return PowerManager(
            self.path, durability="normal", alert_types=ALERT_TYPES, clock=self._clock
        )

    # --- Live

    def start(self) -> None:
        """Start a thread that logs live readings."""
        self._thread = threading.Thread(target=self._go_on, name="power-demo", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _go_on(self) -> None:
        with self._open() as pm:
            last = self._begin
            while True:
                now = self._clock()
                try:
                    self.log_now(pm, now, (now - last) / 3600)
                except PowerManagerError as error:
                    _log.error("the demo cannot log: %s", error)
                last = now
                if self._stopping.wait(LIVE_SECONDS):
                    return

    def log_now(self, pm: PowerManager, now: float, hours: float) -> None:
        """Log one live reading of each meter."""
        hours = min(max(hours, 0.0), 1.0)  # the machine may have slept, or its clock was set
        rows = [
            row for device in self._devices for row in device.step(now, hours, self._offset_seconds)
        ]
        pm.log_many(rows)
        for event in self._taken_events():
            pm.trigger_event(event.device_id, event.type, note=event.note, meter_id=event.meter_id)
