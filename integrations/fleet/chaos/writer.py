"""Devices at work: writes readings and events into every file of a directory."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from pathlib import Path

from power_manager import PowerManager, StorageError


class WrongClock:
    """The time, and how wrong it is (seconds)."""

    error = 0.0

    def __call__(self) -> float:
        """Epoch seconds."""
        return time.time() + self.error


def work(pm: PowerManager, device_id: str, chance: random.Random, clock: WrongClock) -> None:
    """A few live readings, a few of earlier, now and then an event or a deletion.

    Some readings lack their volts or amperes; sometimes the clock is wrong for a moment.
    """
    clock.error = (
        chance.choice([-3 * 365 * 86400.0, -5000.0, 600.0, 30 * 86400.0])
        if chance.random() < 0.05
        else 0.0
    )
    meters = [meter.id for meter in pm.list_meters(device_id)]
    rows = []
    for _ in range(chance.randint(5, 40)):
        values = (
            chance.choice(meters),
            None if chance.random() < 0.05 else round(chance.uniform(3, 14), 3),
            None if chance.random() < 0.05 else chance.uniform(-2, 2),
            chance.uniform(0, 100),
        )
        late = chance.random() < 0.3
        rows.append((*values, time.time() - chance.random() * 5 * 86400) if late else values)
    pm.log_many(rows)
    if chance.random() < 0.05:
        start = time.time() - chance.random() * 5 * 86400
        pm.delete_readings(chance.choice(meters), since=start, until=start + 20_000)
    if chance.random() < 0.2:
        pm.trigger_event(device_id, "restore", chance.random(), note="chaos")


def main(directory: Path, pause: float) -> None:
    """Go round the files."""
    chance = random.Random()
    clock = WrongClock()
    paths = sorted(directory.glob("*.db"))
    files = {path.stem: PowerManager(path, durability="normal", clock=clock) for path in paths}
    while True:
        for device_id, pm in files.items():
            with contextlib.suppress(
                StorageError
            ):  # its disk is full: as if it had not been measured
                work(pm, device_id, chance, clock)
            time.sleep(pause)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
