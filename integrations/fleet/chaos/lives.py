"""Devices to which more happens than to others: restored, replaced, cloned, or ahead of the sinks.

Each lives through its story while everything else is harmed, and then knows what the engine has to
have.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from chaos_common import Program, fleet_program, readings_of
from places import Place, next_version, wait_for
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from power_fleet.watch import CLONED, REPLACED, RESTORED, list_alarms

from power_manager import PowerManager, to_microseconds

PATIENCE = 240.0  # seconds for a file to be sent while everything is harmed
YEAR = 365 * 86400.0
Key = tuple[str, int]
Values = tuple[float | None, float | None, float | None]


class Clock:
    """The time, and how wrong it is (seconds)."""

    def __init__(self) -> None:
        self.error = 0.0
        self.stopped: float | None = None

    def __call__(self) -> float:
        """Epoch seconds."""
        return self.error + (time.time() if self.stopped is None else self.stopped)


@dataclass
class Life:
    """A device with a file and a forwarder, and what the engine has to have of it in the end."""

    home: Path
    place: Place
    device_id: str

    noticed: ClassVar[frozenset[str]] = frozenset()  # what the fleet has to say about it
    perhaps: ClassVar[frozenset[str]] = frozenset()  # what it may say, depending on who was faster

    def __post_init__(self) -> None:
        self.home.mkdir()
        self.expected: dict[Key, Values] = {}
        self.clock = Clock()
        self.forwarder: Program | None = None
        self.failure: BaseException | None = None

    @property
    def path(self) -> Path:
        """Its file."""
        return self.home / "device.db"

    def open(self, path: Path | None = None) -> PowerManager:
        """Its file, opened."""
        return PowerManager(path or self.path, durability="normal", clock=self.clock)

    def forward(
        self, path: Path | None = None, program: Callable[..., Program] = fleet_program
    ) -> Program:
        """A forwarder of the file, started."""
        path = path or self.path
        options = [*self.place.to, "--interval", "0.2s", "--db", str(path)]
        return program(path.with_suffix(".log"), "forward", *options).start()

    def keep(self, pm: PowerManager) -> None:
        """Note that the engine has to have what the file has now."""
        for meter in pm.list_meters(self.device_id):
            for reading in pm.iter_history(meter.id):
                key = (meter.id, to_microseconds(reading.timestamp))
                self.expected[key] = (reading.voltage, reading.current_draw, reading.charge_pct)

    def work(self, pm: PowerManager, count: int, charge: float) -> None:
        """Log that many live readings of each meter."""
        meters = pm.list_meters(self.device_id)
        pm.log_many(
            [
                (meter.id, 12.0, 1.0 + number / 1000, charge)
                for number in range(count)
                for meter in meters
            ]
        )

    def await_sent(self, pm: PowerManager) -> None:
        """Wait until the stream has every reading of a file."""

        def is_sent() -> bool:
            assert self.forwarder is not None
            assert self.forwarder.process is not None
            assert self.forwarder.process.poll() is None, f"{self.device_id}: its forwarder ended"
            return not pm.pending_readings(1) and not pm.pending_deletions(1)

        wait_for(is_sent, PATIENCE)

    def live(self) -> None:
        """Its story, to the end."""
        raise NotImplementedError

    def run(self) -> None:
        """Live, and remember what went wrong."""
        try:
            self.live()
        except BaseException as failure:  # noqa: BLE001  # said by check(): a thread has nobody to say it to
            self.failure = failure

    def end(self) -> None:
        """End its forwarder."""
        if self.forwarder is not None:
            self.forwarder.kill()

    def check(self, engine: Engine) -> int:
        """Assert that the engine has what it has to have; return how many readings that is."""
        if self.failure is not None:
            raise self.failure
        shard = engine.shards[engine.shard_of(self.device_id)]
        for client in shard.clients:
            found = readings_of(client, self.device_id)
            assert found == self.expected, (
                f"{self.device_id}: {len(found)} readings instead of {len(self.expected)}"
            )
        alarms = {
            alarm.kind for alarm in list_alarms(engine, True) if alarm.device_id == self.device_id
        }
        assert self.noticed <= alarms <= self.noticed | self.perhaps, f"{self.device_id}: {alarms}"
        return len(self.expected)

    def check_present(self, fleet: Fleet, *paths: Path) -> None:
        """Assert that the engine's present state of the device is that of one of its files."""
        latest = fleet.latest([self.device_id]).value
        files = []
        for path in paths or (self.path,):
            with self.open(path) as pm:
                files.append(pm.list_meters(self.device_id))
        assert latest in files, f"{self.device_id}: {latest} instead of {files}"


class Restored(Life):
    """Its clock is a year ahead for a while.

    Then its file is put back from a backup, with the clock right again.
    """

    noticed = frozenset({RESTORED})

    def live(self) -> None:
        """Before the backup, after it with a wrong clock, and again from the backup."""
        with self.open() as pm:
            pm.register_device(self.device_id, "Restored", target_wh=100.0)
            pm.add_meter(self.device_id, "battery", capacity_wh=50.0)
            self.work(pm, 200, 90.0)
            self.forwarder = self.forward()
            self.await_sent(pm)
            pm.backup(self.home / "backup.db")
            self.clock.error = YEAR
            for charge in (
                80.0,
                75.0,
                70.0,
            ):  # a single parcel less is what a power cut may cost too
                self.work(pm, 30, charge)
                self.await_sent(pm)
            self.keep(pm)
        self.forwarder.kill()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        shutil.copy(self.home / "backup.db", self.path)
        self.clock.error = 0.0
        with self.open() as pm:
            self.work(pm, 50, 40.0)
            self.forwarder.start()
            self.await_sent(pm)
            self.keep(pm)


class Replaced(Life):
    """Its card is replaced: another file with meters of its own, under the same id."""

    noticed = frozenset({REPLACED})

    def live(self) -> None:
        """One file, and then the other."""
        for number, charge in enumerate((70.0, 50.0)):
            path = self.home / f"card{number}.db"
            with self.open(path) as pm:
                pm.register_device(self.device_id, f"Card {number}")
                pm.add_meter(self.device_id, "battery", capacity_wh=50.0)
                self.work(pm, 100, charge)
                self.forwarder = self.forward(path)
                self.await_sent(pm)
                self.keep(pm)
            if number == 0:
                self.forwarder.kill()

    @property
    def path(self) -> Path:
        """The present card."""
        return self.home / "card1.db"


class Cloned(Life):
    """Its file is copied, and both go on under the same id."""

    perhaps = frozenset({CLONED, RESTORED})  # that two are at work is clear after a minute of it

    def check_present(self, fleet: Fleet, *paths: Path) -> None:
        """Its state is that of one of the two."""
        super().check_present(fleet, *(paths or (self.path, self.twin)))

    @property
    def twin(self) -> Path:
        """The copy."""
        return self.home / "twin.db"

    def live(self) -> None:
        """One file, then two of them."""
        with self.open() as pm:
            pm.register_device(self.device_id, "Cloned")
            pm.add_meter(self.device_id, "battery", capacity_wh=50.0)
            self.work(pm, 100, 70.0)
            self.forwarder = self.forward()
            self.await_sent(pm)
            self.forwarder.kill()
        shutil.copy(self.path, self.twin)  # nobody has it open: it is whole without its -wal
        self.forwarder.start()
        twin_forwarder = self.forward(self.twin)
        try:
            with self.open() as one, self.open(self.twin) as other:
                for charge in (60.0, 50.0, 40.0):
                    self.work(one, 20, charge)
                    time.sleep(0.01)  # so that no two of their readings have one microsecond
                    self.work(other, 20, charge + 5)
                    self.await_sent(one)
                    self.await_sent(other)
                self.keep(one)
                self.keep(other)
        finally:
            twin_forwarder.kill()


class Ahead(Life):
    """It was upgraded before the sinks.

    What it sends waits among the dead letters, until they are upgraded too.
    """

    def live(self) -> None:
        """Sent by the next version."""
        with self.open() as pm:
            pm.register_device(self.device_id, "Ahead")
            pm.add_meter(self.device_id, "battery", capacity_wh=50.0)
            self.forwarder = self.forward(program=next_version)
            for charge in (90.0, 80.0, 70.0):
                self.work(pm, 100, charge)
                self.await_sent(pm)
            self.keep(pm)


def all_lives(home: Path, place: Place) -> list[Life]:
    """One of each."""
    kinds: list[type[Life]] = [Restored, Replaced, Cloned, Ahead]
    return [
        kind(home / kind.__name__.lower(), place, f"{kind.__name__.lower()} 1") for kind in kinds
    ]


def start(lives: list[Life]) -> list[threading.Thread]:
    """All of them in threads of their own."""
    threads = [threading.Thread(target=life.run) for life in lives]
    for thread in threads:
        thread.start()
    return threads
