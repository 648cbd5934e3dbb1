"""Where the time of the missed aims goes: profiles, and the pages of a commit.

python proof/benchmarks/where.py [--output proof/benchmarks/WHERE.md]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import budget

from power_manager import PowerManager

_READINGS = 20_000
_COMMITS = 200
_START_S = 1_700_000_000.0
_SHOWN = 12  # functions of a profile
_SQLITE = "sqlite3."  # in the name of every method that enters SQLite
_FRAME_BYTES = 24  # of a -wal file, before each of its pages
_HEADER_BYTES = 32  # of a -wal file


def profile(title: str, work: Callable[[], object]) -> list[str]:
    """A table of the functions that take the most time of their own."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    own = {place: own_seconds for place, (_, _, own_seconds, _, _) in stats.items()}
    total = sum(own.values())
    in_sqlite = sum(time for (_, _, name), time in own.items() if _SQLITE in name)
    lines = [f"## {title}", "", f"In SQLite {in_sqlite / total:.0%}, in Python the rest.", ""]
    lines += ["| function | share of the time |", "| --- | ---: |"]
    longest = sorted(own, key=lambda place: own[place], reverse=True)[:_SHOWN]
    for place in longest:
        _, _, name = place
        lines.append(f"| `{name.strip('<>')}` | {own[place] / total:.0%} |")
    return [*lines, ""]


def battery(path: Path) -> tuple[PowerManager, str]:
    """A file with one battery, and the id of its meter."""
    pm = PowerManager(path, durability="normal")
    pm.register_device("d", "D")
    return pm, pm.add_meter("d", "battery", 50.0).id


def one_reading(folder: Path) -> list[str]:
    """20,000 readings at 1 Hz, one by one, without syncs."""
    pm, meter_id = battery(folder / "one.db")
    chance = random.Random(7)
    volts = [round(chance.uniform(11.0, 13.0), 3) for _ in range(_READINGS)]

    def work() -> None:
        for second, value in enumerate(volts):
            pm.log_power(meter_id, value, 0.5, 80.0, timestamp=_START_S + second)

    lines = profile("One reading, normal", work)
    pm.close()
    return lines


def day_of_history(folder: Path) -> list[str]:
    """The 86,400 readings of a day at 1 Hz as objects."""
    pm, meter_id = battery(folder / "day.db")
    pm.log_many((meter_id, 12.5, 0.5, 80.0, _START_S + second) for second in range(86_400))
    lines = profile("A day's history at 1 Hz", lambda: list(pm.iter_history(meter_id)))
    pm.close()
    return lines


def pages_of_a_commit(folder: Path) -> list[str]:
    """How many pages single readings append to the -wal."""
    pm, meter_id = battery(folder / "pages.db")
    wal = folder / "pages.db-wal"
    counts: Counter[int] = Counter()
    with pm.connection() as conn:
        (page_bytes,) = conn.execute("PRAGMA page_size").fetchone()
    before = wal.stat().st_size
    for second in range(_COMMITS):
        pm.log_power(meter_id, 12.5 + second % 7 / 10, 0.5, 80.0, timestamp=_START_S + second)
        after = wal.stat().st_size
        counts[(after - max(before, _HEADER_BYTES)) // (page_bytes + _FRAME_BYTES)] += 1
        before = after
    pm.close()
    lines = ["## Pages of one commit", "", f"{_COMMITS} readings, one by one.", ""]
    lines += ["| pages | commits |", "| ---: | ---: |"]
    lines += [f"| {pages} | {commits} |" for pages, commits in sorted(counts.items())]
    return [*lines, ""]


def main() -> None:
    """Print the tables, and write them where --output says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE")
    options = parser.parse_args()
    lines = [
        "# Where the time goes",
        "",
        "Made by `python3 proof/benchmarks/where.py --output FILE`.",
        "",
    ]
    with tempfile.TemporaryDirectory(prefix="where-", dir=".") as name:
        folder = Path(name)
        lines += one_reading(folder)
        lines += day_of_history(folder)
        check = budget.library(folder / "budget.db", 10_000)
        lines += profile("Budget of 10,000 devices x 3 meters", check)
        lines += pages_of_a_commit(folder)
    text = "\n".join(lines)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
