"""Flip single bits in a closed database, and in a -wal, and see whether anything says so.

For each flip: opening, reading or check() must say so, or nothing may have changed in the
readings (beyond a microvolt, a microampere or 0.0001 points of charge), in the statistics (those
of pruned hours too), in the events and in the present states. The share found is printed beside
that of SQLite's integrity_check alone. What changes in names, thresholds and capacities is
counted apart: there a flip that goes unnoticed is no failure of this program.

A flip in a -wal breaks the checksum of its frame; SQLite then takes the log to end there, as
after a power cut, and the newest transactions are gone without a word. Nothing in the file can
tell that from a power cut. So such an image must be whole and hold a beginning of what was
written, and how many do is printed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import workloads
from common import Deadline, Findings, parse, scratch

import power_manager

_TOLERANCES = (1e-6, 1e-6, 1e-4)
_COVERED = ("events", "present states", "statistics")  # beside the readings
_START = 1.7e9
T = TypeVar("T")
Reading = tuple[str, "float | None", "float | None", "float | None"]


@dataclass
class Content:
    """What the library reads from a file: each meter's readings, all else by its kind."""

    readings: list[list[Reading]]
    other: dict[str, object]


def _fill(pm: power_manager.PowerManager, rng: random.Random, count: int) -> None:
    """Two devices and every way to store a value, over several hours and pages, some pruned.

    Values are stored whole, stored as floats, and unknown.
    """
    for number in range(2):
        pm.register_device(f"device-{number}", f"Device {number}", target_wh=20.0)
        for kind in ("battery", "solar"):
            pm.add_meter(f"device-{number}", kind, 50.0, f"{kind} {number}")
    meters = [meter.id for meter in pm.list_meters()]
    rows = [
        (
            rng.choice(meters),
            round(rng.uniform(3, 15), 3) if rng.random() < 0.7 else rng.uniform(3, 15),
            rng.choice([round(rng.uniform(-2, 2), 3)] * 7 + [rng.uniform(-2, 2)] * 2 + [None]),
            round(rng.uniform(0, 100), 1),
            _START + n * 30,
        )
        for n in range(count)
    ]
    pm.log_many(rows)
    pm.trigger_event("device-0", "restore", 1.0, "by hand")
    pm.prune(0.1)


def _read(pm: power_manager.PowerManager) -> Content:
    meters = pm.list_meters()
    devices = pm.list_devices()
    readings = [
        [(r.timestamp, r.voltage, r.current_draw, r.charge_pct) for r in pm.iter_history(meter.id)]
        for meter in meters
    ]
    names = ("id", "device_id", "type", "name", "capacity_wh")
    state = ("voltage", "current_draw", "charge_pct", "updated_at", "power_known")
    other: dict[str, object] = {
        "devices": [dataclasses.astuple(device) for device in devices],
        "meters' names": [[getattr(meter, name) for name in names] for meter in meters],
        "present states": [[getattr(meter, name) for name in state] for meter in meters],
        "events": [dataclasses.astuple(event) for _, event in pm.events_since(0)],
        "statistics": [
            [dataclasses.astuple(row) for row in pm.get_statistics(meter.id, days=1e5)]
            for meter in meters
        ],
    }
    return Content(readings, other)


def _changed(before: list[list[Reading]], after: list[list[Reading]]) -> bool:
    """Whether a reading is gone, new, at another time, or another by more than the tolerances."""
    if [len(rows) for rows in before] != [len(rows) for rows in after]:
        return True
    unlike = [(old, new) for old, new in zip(before, after) if old != new]
    return any(_another(a, b) for old, new in unlike for a, b in zip(old, new))


def _another(old: Reading, new: Reading) -> bool:
    old_time, *old_values = old
    new_time, *new_values = new
    if old_time != new_time:
        return True
    for was, found, tolerance in zip(old_values, new_values, _TOLERANCES):
        if was is None or found is None:
            if was is not found:
                return True
        elif abs(was - found) > tolerance:
            return True
    return False


def _same(before: Any, after: Any) -> bool:
    """Whether two values are the same, numbers but for what rounding makes of them."""
    if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        return len(before) == len(after) and all(map(_same, before, after))
    if isinstance(before, float) and isinstance(after, float):
        return math.isclose(before, after, rel_tol=1e-9, abs_tol=1e-9)
    return bool(before == after)


def _integrity_check_finds(path: Path) -> bool:
    """Whether SQLite alone says that something is wrong."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        try:
            return bool(conn.execute("PRAGMA integrity_check").fetchall() != [("ok",)])
        except (sqlite3.Error, UnicodeDecodeError):
            return True


class Flipper:
    """Flips bits of one database."""

    def __init__(self, place: Path, out: Findings, rng: random.Random, kind: str) -> None:
        self._image = place / "image"
        self._out = out
        self._rng = rng
        self._kind = kind
        self.found = self.found_by_sqlite = self.changing = self.flips = self.shortened = 0
        self.unnoticed_other: dict[str, int] = {}

    def flip(self, files: dict[str, bytes], name: str, before: Content) -> None:
        """Flip one random bit of the file with that name; judge what comes of it."""
        at = self._rng.randrange(len(files[name]) * 8)
        damaged = bytearray(files[name])
        damaged[at // 8] ^= 1 << at % 8
        self._lay(files | {name: bytes(damaged)})
        self.flips += 1
        where = f"bit {at % 8} of byte {at // 8} of {name}"
        noticed, after = self._look(where)
        readings_changed = after is None or _changed(before.readings, after.readings)
        if (
            readings_changed
            and not noticed
            and self._kind == "-wal"
            and after
            and _beginning(before, after)
        ):
            self.shortened += 1
            return
        if readings_changed:
            self.changing += 1
            self.found += noticed
            self._lay(files | {name: bytes(damaged)})
            self.found_by_sqlite += _integrity_check_finds(self._image / "p.db")
            self._out.expect(noticed, f"{self._kind}: a changed reading goes unnoticed", where)
        elif not noticed and after is not None:
            for part, value in before.other.items():
                if _same(value, after.other[part]):
                    continue
                self.unnoticed_other[part] = self.unnoticed_other.get(part, 0) + 1
                if self._kind != "-wal" and part in _COVERED:
                    self._out.fail(f"{self._kind}: a change in {part} goes unnoticed", where)

    def expect_unharmed(self, files: dict[str, bytes], before: Content) -> None:
        """Expect that without a flip nothing is noticed and nothing is missing."""
        self._lay(files)
        noticed, after = self._look("no flip")
        same = after is not None and not _changed(before.readings, after.readings)
        self._out.expect(same and not noticed, f"{self._kind}: the file without a flip", noticed)

    def _lay(self, files: dict[str, bytes]) -> None:
        workloads.clear(self._image)
        for name, data in files.items():
            (self._image / name).write_bytes(data)

    def _look(self, where: str) -> tuple[bool, Content | None]:
        """Whether opening, reading or check() says what is wrong; and what can be read."""
        pm = self._attempt(
            lambda: power_manager.PowerManager(self._image / "p.db"), "opening", where
        )
        if pm is None:
            return True, None
        with pm:
            problems = self._attempt(pm.check, "check()", where)
            content = self._attempt(lambda: _read(pm), "reading", where)
        return problems is None or bool(problems) or content is None, content

    def _attempt(self, call: Callable[[], T], doing: str, where: str) -> T | None:
        """What the call returns, or None where it refuses the file."""
        try:
            return call()
        except power_manager.PowerManagerError:
            return None
        except Exception as exc:  # noqa: BLE001  # another kind of exception is one of the things looked for
            self._out.fail(
                f"{self._kind}: {doing} raises {type(exc).__name__}, no StorageError",
                f"{where}: {exc}",
            )
            return None

    def report(self) -> None:
        """Print the shares."""

        def share(found: int) -> str:
            return f"{found} ({100 * found / self.changing:.1f} %)" if self.changing else "0"

        self._out.counts[f"flips in {self._kind}"] += self.flips
        self._out.notes.append(
            f"{self._kind}: {self.flips} flips, {self.changing} change or hide readings; "
            f"noticed by the library: {share(self.found)}, "
            f"by integrity_check alone: {share(self.found_by_sqlite)}"
        )
        if self._kind == "-wal":
            self._out.notes.append(
                f"-wal: {self.shortened} flips silently end the log early, as a power cut does"
            )
        elif self.unnoticed_other:
            parts = ", ".join(
                f"{number} in {part}" for part, number in sorted(self.unnoticed_other.items())
            )
            self._out.notes.append(f"{self._kind}: unnoticed changes outside the readings: {parts}")


def _beginning(before: Content, after: Content) -> bool:
    """Whether each meter's readings are a beginning of what they were."""
    return len(before.readings) == len(after.readings) and all(
        new == old[: len(new)] for old, new in zip(before.readings, after.readings)
    )


def _closed_file(place: Path, rng: random.Random) -> tuple[dict[str, bytes], Content]:
    path = place / "whole.db"
    with power_manager.PowerManager(path, clock=lambda: _START + 600 * 30) as pm:
        _fill(pm, rng, 600)
    with power_manager.PowerManager(path) as pm:
        return {"p.db": path.read_bytes()}, _read(pm)


def _file_with_wal(place: Path, rng: random.Random) -> tuple[dict[str, bytes], Content]:
    path = place / "logged.db"
    with power_manager.PowerManager(path, clock=lambda: _START + 100 * 30) as pm:
        _fill(pm, rng, 100)
    with power_manager.PowerManager(path) as pm:
        meters = pm.list_meters()
        for n in range(100, 140):
            pm.log_power(meters[n % 4].id, rng.uniform(3, 15), 1.0, 50.0, timestamp=_START + n * 30)
        # Copied while the file is open, so that the log is not yet in the database.
        files = {f"p.db{suffix}": Path(f"{path}{suffix}").read_bytes() for suffix in ("", "-wal")}
        return files, _read(pm)


def main() -> int:
    """Flip bits until the time is over."""
    args = parse(__doc__, seconds=8.0)
    out = Findings(__file__)
    with scratch() as place:
        for kind, make, share in (
            ("closed file", _closed_file, 0.7),
            ("-wal", _file_with_wal, 0.3),
        ):
            rng = random.Random(f"{args.seed}/{kind}")
            files, before = make(place, rng)
            flipper = Flipper(place, out, rng, kind)
            deadline = Deadline(args.seconds * share)
            flipper.expect_unharmed(files, before)
            while not deadline.over():
                flipper.flip(files, "p.db-wal" if kind == "-wal" else "p.db", before)
            flipper.report()
        path = place / "whole.db"
        shutil.rmtree(place / "image")
        out.whole(path, "all flips, in the file that was only copied")
    return out.finish()


if __name__ == "__main__":
    sys.exit(main())
