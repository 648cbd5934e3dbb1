"""A file with devices, a clock that only tests move, and notifiers that look on request."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ends import PATIENCE_S
from power_notify.news import Clocks, Rules
from power_notify.notifier import Notifier, Timing
from power_notify.ways import open_ways

from power_manager import PowerManager, PowerMeter

START = datetime(2026, 11, 28, 12, 0, tzinfo=timezone.utc)


class World:
    """Gate 01 with a battery of 50 Wh, and a pump without one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = START.timestamp()
        self.steady_s = 1000.0
        self.clocks = Clocks(lambda: self.now_s, lambda: self.steady_s)
        self.pm = PowerManager(path, clock=lambda: self.now_s)
        self.pm.register_device("gate-01", "Gate 01")
        self.pack: PowerMeter = self.pm.add_meter(
            "gate-01", "battery", capacity_wh=50.0, name="Pack"
        )
        self.pm.register_device("pump", "Pump")

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.pm.close()

    def pass_time(self, seconds: float) -> None:
        """Move both clocks."""
        self.now_s += seconds
        self.steady_s += seconds

    def set_time(self, day: int, hour: int, minute: int = 0) -> None:
        """Let it be that UTC time of November 2026."""
        target = datetime(2026, 11, day, hour, minute, tzinfo=timezone.utc).timestamp()
        self.pass_time(target - self.now_s)

    def log(self, charge_pct: float, amperes: float = 0.5) -> None:
        """A second later, a live reading of Gate 01's battery."""
        self.pass_time(1.0)
        self.pm.log_power(self.pack.id, 3.4, amperes, charge_pct)

    def notifier(
        self, *urls: str, name: str = "main", timing: dict[str, Any] | None = None, **rules: Any
    ) -> Notifier:
        """One that tells these URLs, without a pause between two messages."""
        when = Timing(**{"zone": timezone.utc, "pause_s": 0.0, **(timing or {})})
        ways = open_ways(urls)
        return Notifier(self.pm, name, ways, Rules(**rules), when, self.clocks)


def tell(notifier: Notifier) -> None:
    """One look, until all that it sends has been taken or has failed."""
    notifier.look()
    notifier.settle(PATIENCE_S)
