"""How long `import` takes for the library's own CSV, beside log_many() with the same rows.

Both are measured in one process, in pairs, each into a new file; what is printed is the median of
the pairs' ratios.

    python proof/benchmarks/imports.py [--rows N] [--pairs N] [--seed N] [--dir FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import power_manager  # noqa: E402  # the library of this checkout

START_S = 1_760_000_000.0
AIM = 1.5  # what an import may take, in parts of log_many()

Row = tuple[float, float, float, float]


def make_rows(count: int, seed: int) -> list[Row]:
    """A reading a second with a real clock's jitter: epoch seconds, volts, amperes, per cent."""
    chance = random.Random(seed)
    return [
        (
            round(START_S + second + chance.random() / 100, 6),
            round(12.8 + chance.uniform(-0.8, 0.8), 3),
            round(chance.uniform(-3, 3), 3),
            round(40 + chance.uniform(0, 60), 1),
        )
        for second in range(count)
    ]


def in_new_file(place: Path, work: Callable[[power_manager.PowerManager, str], None]) -> float:
    """The seconds that work takes in a database with one meter."""
    with (
        tempfile.TemporaryDirectory(dir=place) as folder,
        power_manager.PowerManager(Path(folder) / "power.db") as pm,
    ):
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "battery", name="b")
        begin = time.perf_counter()
        work(pm, meter.id)
        return time.perf_counter() - begin


def import_file(pm: power_manager.PowerManager, path: Path) -> None:
    """Import a file through the command line, in this process."""
    words = ["--db", str(pm.db_path), "import", "d/b", str(path)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert power_manager.main(words) == 0


def measure(rows: list[Row], pairs: int, place: Path) -> list[tuple[float, float]]:
    """The seconds of log_many() and of an import, in pairs that begin with either in turn."""
    path = place / "log.csv"
    seconds = 0.0

    def log(pm: power_manager.PowerManager, meter_id: str) -> None:
        readings = [
            (meter_id, volts, amperes, charge, moment) for moment, volts, amperes, charge in rows
        ]
        begin = time.perf_counter()
        assert pm.log_many(readings) == len(rows)
        nonlocal seconds
        seconds = time.perf_counter() - begin
        if not path.exists():
            words = ["--db", str(pm.db_path), "export", "d/b", "--output", str(path)]
            assert power_manager.main(words) == 0

    in_new_file(place, log)
    found = []
    for number in range(pairs):
        times: dict[str, float] = {}
        for name in ("log", "import") if number % 2 == 0 else ("import", "log"):
            if name == "log":
                in_new_file(place, log)
                times[name] = seconds
            else:
                times[name] = in_new_file(place, lambda pm, _: import_file(pm, path))
        found.append((times["log"], times["import"]))
    return found


def main() -> int:
    """Measure, print, and exit with 1 if the aim is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--dir", type=Path, default=Path.cwd(), help="the disk that is measured (default: here)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        found = measure(make_rows(options.rows, options.seed), options.pairs, Path(folder))
    ratio = median(imported / logged for logged, imported in found)
    print(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"{options.rows:,} rows, {options.pairs} pairs, seed {options.seed}"
    )
    for name, seconds in zip(("log_many", "import"), zip(*found)):
        shown = ", ".join(f"{value:.2f}" for value in seconds)
        print(f"{name:8}  {1e6 * median(seconds) / options.rows:5.2f} us a row  ({shown} s)")
    print(f"import takes {ratio:.2f} of log_many (aim: {AIM} at most)")
    return int(ratio > AIM)


if __name__ == "__main__":
    sys.exit(main())
