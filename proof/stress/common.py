"""What the stress programs share: the checkout's library, arguments, findings, scratch places."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
sys.path.insert(0, str(CHECKOUT))

import power_manager  # noqa: E402  # the line above says where it is

# Its warnings are expected here, by the thousand.
logging.getLogger("power_manager").setLevel(logging.ERROR)
_SHOWN = 8  # findings of one kind that are printed whole


def parse(
    doc: str | None, parser: argparse.ArgumentParser | None = None, seconds: float = 5.0
) -> argparse.Namespace:
    """Parse the arguments that every program has, beside those that its own parser has already."""
    parser = parser or argparse.ArgumentParser()
    parser.description = doc
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int, default=1, help="of every random choice (default: 1)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=seconds,
        help=f"how long to go on, roughly (default: {seconds:g})",
    )
    return parser.parse_args()


def number_of(reading: power_manager.PowerReading) -> int:
    """Which reading of its writer it is: the n-th has n volts; -1 where they are not known."""
    return -1 if reading.voltage is None else int(reading.voltage)


class Deadline:
    """The end of a span of seconds that begins now."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def over(self) -> bool:
        """Whether it is past."""
        return not self.left()


class Findings:
    """What a program counted and what it found wrong. Its last printed line says how it ended."""

    def __init__(self, program: str) -> None:
        self.program = Path(program).stem
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.notes: list[str] = []

    def fail(self, kind: str, detail: object = "") -> None:
        """Record that something did not hold; details of one kind are printed a few times only."""
        self.failures[kind] += 1
        if self.failures[kind] <= _SHOWN:
            print(f"WRONG {kind}: {detail}", flush=True)

    def expect(self, holds: bool, kind: str, detail: object = "") -> None:
        """Record a failure unless it holds."""
        if not holds:
            self.fail(kind, detail)

    def whole(self, path: Path, when: str) -> None:
        """Open a database and expect that check() finds nothing in it."""
        self.counts["check() calls"] += 1
        try:
            with power_manager.PowerManager(path) as pm:
                problems = pm.check()
        except power_manager.PowerManagerError as exc:
            problems = [f"does not open: {exc}"]
        self.expect(not problems, f"check() after {when}", problems[:3])

    def finish(self) -> int:
        """Print the closing lines; return the exit status."""
        for note in self.notes:
            print(note)
        print(
            ", ".join(f"{number:,} {name}" for name, number in self.counts.items())
            or "nothing was done"
        )
        for kind, number in self.failures.most_common():
            print(f"{number} x {kind}")
        print(f"{self.program}: {'FAILED' if self.failures else 'ok'}")
        return int(bool(self.failures))


@contextlib.contextmanager
def scratch(in_memory: bool = True) -> Iterator[Path]:
    """A directory that is deleted afterwards; in memory where the disk is no part of the matter."""
    fast = "/dev/shm" if in_memory and os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="power-stress-", dir=fast)).resolve()
    try:
        yield path
    finally:
        shutil.rmtree(path)


def recorder(directory: Path) -> Path | None:
    """Compile powercut.c there; None where there is no gcc."""
    if shutil.which("gcc") is None or sys.platform != "linux":
        return None
    library = directory / "recorder.so"
    source = HERE / "powercut.c"
    subprocess.run(
        ["gcc", "-O2", "-shared", "-fPIC", "-o", library, source, "-lpthread"], check=True
    )
    return library


def machine() -> str:
    """One line on what a program ran on."""
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return (
        f"{system}, {os.cpu_count()} x {_cpu()}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )


def _cpu() -> str:
    """What the first core calls itself."""
    for line in _lines(Path("/proc/cpuinfo")):
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "CPU"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
