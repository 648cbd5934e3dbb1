"""The writers that powercut.py, kill.py and resources.py end, and what must be left of their work.

As a program it writes to DIRECTORY/p.db until it is stopped or has done --count steps. Each
writer has a device and a meter of its own; its n-th reading has n volts, so what is left can be
told from the numbers alone. What the library has confirmed goes to the --ack file, a line each:
"reading WRITER N", "backup N", "kept WRITER N" (prune has left nothing before N), "most WRITER N"
(no reading after N is there: it is not yet logged, or restore has taken it back), "upgraded N".
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import common

import power_manager
import proof.first_release

KINDS = ("single", "crowd", "many", "prune", "sweep", "backup", "restore", "upgrade")
FAULTS = ("early-ack", "split", "sync-off", "rename-first")
# Readings of one log_many; "sweep" covers hours enough that one prune closes many of them.
_BATCH = {"many": 40, "sweep": 5000}
_OLD_READINGS = 30
_STEP_SECONDS = 600.0  # between two readings, so that a short run meets many hours
_HOUR_SECONDS = 3600.0
_EVER = 100_000.0  # days

Acks = dict[str, int]


def _clock(number: int) -> float:
    """The time of a writer's n-th reading."""
    return 1.7e9 + number * _STEP_SECONDS


def first_kept(number: int, keep: int) -> int:
    """The first reading that may be left when a prune after the n-th keeps so many.

    prune() takes whole hours before its cut-off, and leaves the last reading before those that
    stay.
    """
    cutoff = _clock(number) - keep * _STEP_SECONDS
    hour_start = cutoff // _HOUR_SECONDS * _HOUR_SECONDS
    first = 1
    while first < number and _clock(first) < hour_start:
        first += 1
    return max(1, first - 1)


def _charge(number: int) -> float:
    """Up and down through both alert thresholds."""
    return float(100 - number * 3 % 101)


def expected_events(count: int) -> int:
    """How many alerts the first readings of a writer raise, by AlertLevel's rule, not its code."""
    level = events = 0
    for charge in map(_charge, range(1, count + 1)):
        entered = (
            2
            if charge <= 5 or (level == 2 and charge < 7)
            else int(charge <= 20 or (level > 0 and charge < 22))
        )
        events += entered > level
        level = entered
    return events


def first_release(path: Path) -> None:
    """Write a database as the first release of this tool did."""
    conn = proof.first_release.create(path)
    conn.executescript(
        """INSERT INTO power_events VALUES
            ('e1', 'old', 'restore', 1.0, '2023-01-01T00:00:00', NULL),
            ('e2', 'old', 'shutdown', 2.0, '2023-01-02T00:00:00+00:00', 'note');"""
    )
    for n in range(1, _OLD_READINGS + 1):
        taken_at = datetime.fromtimestamp(1.6e9 + n * _STEP_SECONDS, timezone.utc)
        conn.execute(
            "INSERT INTO power_readings VALUES (?, 'old-1', ?, 1.0, ?, 50.0, ?)",
            (f"r{n}", float(n), float(n), taken_at.replace(tzinfo=None).isoformat()),
        )
    conn.commit()
    conn.close()


# --- Planted faults: wrongs of a kind that a change to the library could bring


class _UnsyncedConnection(sqlite3.Connection):
    """A connection that syncs nothing, whatever it is told."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return super().execute(
            "PRAGMA synchronous = OFF" if "PRAGMA synchronous" in sql else sql, *values
        )


class SplitConnection(sqlite3.Connection):
    """A connection that commits each change by itself."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        """Execute a statement; commit what it has changed."""
        cursor = super().execute(sql, *values)
        if self.in_transaction and sql.lstrip().startswith(("INSERT", "UPDATE", "DELETE")):
            super().execute("COMMIT")
            super().execute("BEGIN IMMEDIATE")
        return cursor


def _rename_first() -> None:
    """Make a backup's copy unsynced, and sync it only when it has its final name."""
    connect = sqlite3.connect
    replace = os.replace
    fsync = os.fsync

    def careless_connect(target: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        conn: sqlite3.Connection = connect(target, *args, **options)
        if not options.get(
            "uri"
        ):  # the library's own connections are by URI; a backup's copy is not
            conn.execute("PRAGMA synchronous = OFF")
        return conn

    def late_sync(source: Any, target: Any) -> None:
        replace(source, target)
        for path, flags in ((target, os.O_RDWR), (os.path.dirname(target), os.O_RDONLY)):
            descriptor = os.open(path, flags)
            fsync(descriptor)
            os.close(descriptor)

    sqlite3.connect = careless_connect  # type: ignore[assignment]
    os.replace = late_sync  # type: ignore[assignment]
    os.fsync = lambda _: None  # type: ignore[assignment]


def plant(fault: str | None) -> None:
    """Put a fault into this process's sqlite3 or os module."""
    if fault in ("split", "sync-off"):
        factory = SplitConnection if fault == "split" else _UnsyncedConnection
        sqlite3.connect = functools.partial(sqlite3.connect, factory=factory)  # type: ignore[assignment]
    elif fault == "rename-first":
        _rename_first()


# --- Writing


class Writer:
    """One writer and its meter, going on where an earlier life of it ended."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.number = 0
        self._ack_file = os.open(args.ack, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.path = args.directory / "p.db"
        self.pm = power_manager.PowerManager(
            self.path, durability=args.durability, clock=lambda: _clock(self.number)
        )
        if args.kind == "upgrade":
            self.ack(f"upgraded {_OLD_READINGS}")
        device_id = f"device-{args.writer}"
        self.pm.register_device(device_id, args.writer)
        meters = self.pm.list_meters(device_id) or [
            self.pm.add_meter(device_id, "battery", 50.0, args.writer)
        ]
        self.meter_id = meters[0].id
        self.number = int(meters[0].voltage)

    def ack(self, text: str) -> None:
        """Tell that the library has confirmed something."""
        os.write(self._ack_file, f"{text}\n".encode())

    def _ack_readings(self) -> None:
        self.ack(f"reading {self.args.writer} {self.number}")

    def _ack_most(self) -> None:
        self.ack(f"most {self.args.writer} {self.number}")

    def _rows(self, count: int) -> Iterable[tuple[str, float, float, float]]:
        for _ in range(count):
            self.number += 1
            yield self.meter_id, float(self.number), 1.0, _charge(self.number)

    def log(self) -> None:
        """Log the next reading, alone or in a batch."""
        batch = _BATCH.get(self.args.kind)
        before = self.number
        try:
            if batch:
                self.pm.log_many(self._rows(batch))
            else:
                self.number += 1
                if self.args.kind == "restore":
                    self._ack_most()
                if self.args.fault == "early-ack":
                    self._ack_readings()
                self.pm.log_power(self.meter_id, float(self.number), 1.0, _charge(self.number))
        except power_manager.PowerManagerError:
            self.number = before
            raise
        self._ack_readings()

    def step(self, number: int) -> None:
        """Log, and every so often do what this kind of writer does beside it."""
        self.log()
        if self.args.kind in ("prune", "sweep") and (number % 12 == 0 or self.args.kind == "sweep"):
            keep = 20 if self.args.kind == "prune" else 100
            self.pm.prune(keep * _STEP_SECONDS / 86400)
            self.ack(f"kept {self.args.writer} {first_kept(self.number, keep)}")
        if self.args.kind in ("backup", "restore") and number % 5 == 0:
            self.pm.backup(self.args.directory / "copy.db")
            self.ack(f"backup {self.number}")
        if self.args.kind == "restore" and number % 5 == 3 and number > 5:
            self.restore(self.number - 3)

    def restore(self, number: int) -> None:
        """Go back to the last backup, which has so many readings."""
        before = self.number
        self.number = number
        self._ack_readings()  # from here on no more than these are promised
        try:
            self.pm.restore(self.args.directory / "copy.db")
        except power_manager.PowerManagerError:
            self.number = before
            raise
        self._ack_most()

    def run(self) -> None:
        """Write until stopped, or as many steps as were asked for."""
        number = 0
        while not self.args.count or number < self.args.count:
            number += 1
            self.attempt(functools.partial(self.step, number))
        self.attempt(self.pm.close)

    def attempt(self, call: Callable[[], None]) -> None:
        """Do it; with --patient, acknowledge and pass over a StorageError that names our file."""
        try:
            call()
        except power_manager.StorageError as exc:
            if not self.args.patient or Path(str(exc.filename)) not in (
                self.path,
                self.args.directory / "copy.db",
            ):
                raise
            self.ack(f"refused {re.sub('[^A-Z_]', '', exc.sqlite_errorname) or 'OSERROR'} 1")
            if exc.sqlite_errorname == "SQLITE_PROTOCOL":
                # A lock that could not be given back: every later call would take ten seconds.
                raise SystemExit(0) from exc


# --- Judging what is left


def read_acks(text: str) -> Acks:
    """The last number of each kind of acknowledgement."""
    return {
        " ".join(words[:-1]): int(words[-1])
        for words in map(str.split, text.splitlines())
        if len(words) > 1
    }


def judge(kind: str, directory: Path, acks: Acks) -> tuple[list[str], int]:
    """What is wrong with the files in a directory; how many acknowledged readings are missing."""
    wrong, numbers = _judge_file(kind, directory / "p.db", acks)
    for name, number in numbers.items():
        if number > acks.get(f"most {name}", number):
            wrong.append(f"{name}: reading {number} is there again after a restore")
    if kind == "upgrade" and "old-1" not in numbers:
        wrong.append("the first release's readings are gone")
    lost = sum(
        max(0, n - numbers.get(key.split()[1], 0))
        for key, n in acks.items()
        if key.startswith("reading ")
    )
    copy = directory / "copy.db"
    if copy.exists():
        problems, copied = _judge_file(kind, copy, {})
        wrong += [f"backup: {problem}" for problem in problems]
        lost += max(0, acks.get("backup", 0) - copied.get("w0", 0))
    elif acks.get("backup"):
        wrong.append("backup: an acknowledged one is not there")
    return wrong, lost


def _judge_file(kind: str, path: Path, acks: Acks) -> tuple[list[str], dict[str, int]]:
    """What is wrong with one database, and the last reading's number of each of its writers."""
    if not path.exists():
        return [], {}
    wrong: list[str] = []
    numbers: dict[str, int] = {}
    try:
        with power_manager.PowerManager(path) as pm:
            wrong += [f"check(): {problem}" for problem in pm.check()]
            for meter in pm.list_meters():
                name = meter.id if meter.id == "old-1" else str(meter.name)
                problem, numbers[name] = _judge_meter(kind, pm, meter, acks.get(f"kept {name}", 1))
                wrong += [f"{name}: {problem}"] if problem else []
    except Exception as exc:  # noqa: BLE001  # whatever comes out of an image is itself what is wrong with it
        wrong.append(f"{type(exc).__name__}: {exc}")
    return wrong, numbers


def _judge_meter(
    kind: str, pm: power_manager.PowerManager, meter: power_manager.PowerMeter, kept: int
) -> tuple[str, int]:
    """What is wrong with one writer's meter, and its last number."""
    found = [common.number_of(reading) for reading in pm.iter_history(meter.id)]
    last = int(meter.voltage)
    counted = sum(row.reading_count for row in pm.get_statistics(meter.id, days=_EVER))
    events = len(pm.get_events(meter.device_id, 10**6))
    if meter.id == "old-1":
        holds = (
            found == list(range(1, _OLD_READINGS + 1)) and counted == _OLD_READINGS and events == 2
        )
        return (
            "" if holds else f"not the first release's rows: {len(found)} readings, {events} events"
        ), last
    if found != list(range(last - len(found) + 1, last + 1)):
        broken = f"the readings {found[:3]}..{found[-3:]} are not unbroken"
        return f"{broken} until the present state's {last}", last
    if counted != last or (kind not in ("prune", "sweep") and len(found) != last):
        return f"{last} readings, {len(found)} kept, {counted} counted", last
    if found and found[0] < kept:
        return f"reading {found[0]} is there again after a prune that kept {kept} and later", last
    if last % _BATCH.get(kind, 1):
        return f"{last} readings of log_many in batches of {_BATCH[kind]}", last
    if events != expected_events(last):
        return f"{events} events, expected {expected_events(last)} after {last} readings", last
    return "", last


def main() -> None:
    """Run one writer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--ack", required=True)
    parser.add_argument("--writer", default="w0")
    parser.add_argument(
        "--count", type=int, default=0, help="steps to do (default 0: until stopped)"
    )
    parser.add_argument("--durability", choices=["full", "normal"], default="full")
    parser.add_argument("--fault", choices=FAULTS, help="a wrong to plant")
    parser.add_argument("--patient", action="store_true", help="go on after a StorageError")
    args = parser.parse_args()
    plant(args.fault)
    if args.patient:  # a lock that fails for ever would be waited for 10 seconds in every call
        power_manager.BUSY_TIMEOUT = 0.2
    Writer(args).run()


def clear(directory: Path) -> None:
    """Make a directory anew and empty."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


PROGRAM = common.HERE / "workloads.py"

if __name__ == "__main__":
    main()
