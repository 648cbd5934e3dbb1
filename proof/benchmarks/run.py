"""Measure power_manager beside what a user would pick instead, on the same work in one run.

A full run writes RESULTS.md and growth.svg beside this file; --quick and --only print their
tables only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import plot
from contenders import CONTENDERS, load
from workers import HERE, interpreters
from works import FULL, LIBRARY, QUICK, WORKS, Bench, Table

_LIMITS = """\
- One machine, virtual, shared with other work while this ran: absolute times are its own, and a
  sync costs what its disk says it costs. Ratios are of rounds in turn (A, B, A, B), so they carry
  further; differences below a tenth say nothing.
- Time is simulated: readings come as fast as the contender takes them, one meter at a time, from
  one process. Nothing here says how contenders do with several writers, or with cold caches.
- The data is a seeded imitation of a sensor of millivolts and milliamperes; power_manager keeps
  such values in fewer bytes than full doubles, so both sizes are given.
- Every contender was written by this project's author, in the way its manual shows first; its own
  experts may do better. `lacks` in the table of contenders says what each does not do: RRDtool and
  TinyDB sync nothing, so their times are not of durable readings at all.
- Bytes written are those that the process hands to the kernel, not those that a flash chip writes
  in the end.
"""


class Aim(NamedTuple):
    """One thing that the project set itself."""

    text: str
    key: str  # of the figure
    most: float | None  # that the figure may be; None: no aim
    unit: float = 1.0  # what the figure is multiplied by to be shown
    part: int | None = None  # of a figure that is a list


AIMS = (
    Aim(
        "one reading, full: at most 1.15 times the five statements",
        "a/power_manager/full/floor5",
        1.15,
    ),
    Aim(
        "one reading, normal: at most 1.9 times the five statements",
        "a/power_manager/normal/floor5",
        1.9,
    ),
    Aim("one reading, full, beside one INSERT (no aim)", "a/power_manager/full/floor", None),
    Aim("one reading, normal, beside one INSERT (no aim)", "a/power_manager/normal/floor", None),
    Aim("bulk: at most 3 times a bare executemany", "b/power_manager/floor", 3.0),
    Aim("bulk: us a reading (no aim)", "b/power_manager", None, 1e6),
    Aim("bytes on disk a reading: at most 30", "c/power_manager", 30.0, part=0),
    Aim("bytes written a reading alone, full: at most 7,000", "d/power_manager/full/log", 7_000.0),
    Aim(
        "bytes written a reading in groups of 60: at most 430",
        "d/power_manager/full/group",
        430.0,
    ),
    Aim("report over a month at 1 Hz: under 5 ms", "e/power_manager/hz", 5e-3, 1e3),
    Aim("the same: no slower than a month at 1/min (times)", "e/power_manager/hz/min", 1.05),
    Aim("report over a year: under 10 ms", "e/power_manager/year", 10e-3, 1e3),
    Aim("a day's history at 1 Hz: under 120 ms", "f/power_manager", 0.12, 1e3),
    Aim("budget of 10,000 devices x 3 meters: under 300 ms", "g/power_manager", 0.3, 1e3),
    Aim(
        "`report` as a process: at most 1.5 times its bare imports (script)",
        "h/python power_manager.py report",
        1.5,
        part=1,
    ),
    Aim(
        "the same as the installed command",
        "h/the same as -m, or as the installed command",
        1.5,
        part=1,
    ),
    Aim("a late reading alone at 5 s: under 5 ms", "j/late", 5e-3, 1e3),
    Aim("shuffled backlog at 5 s: faster than the library before (times)", "j/backlog/ratio", 1.0),
    Aim("live, 300,000 later readings there: at most 2 times without", "j/behind/not behind", 2.0),
    Aim("live, clock half an hour back into 5 s: ms (no aim)", "j/set back, 5 s", None, 1e3),
    Aim("live, clock half an hour back into 1 Hz: ms (no aim)", "j/set back, 1 Hz", None, 1e3),
    Aim(
        "frozen, call by call, newer ones in its hour (no aim)",
        "j/frozen, call by call, newer ones in its hour/growth",
        None,
    ),
    *(
        Aim(f"{what}: a reading of twice as many at most 1.3 times", f"j/{what}/growth", 1.3)
        for what in (
            "frozen, call by call",
            "frozen, one call",
            "frozen, call by call, newer ones there",
            "frozen, one call, newer ones there",
            "upgrade, ascending",
            "upgrade, descending",
            "upgrade, random",
            "upgrade, one instant",
        )
    ),
)


def aims(bench: Bench) -> Table:
    """What the project set itself, and what came out."""
    table = Table("Aims", ["aim", "measured", "met"])
    for aim in AIMS:
        found = bench.figures.get(aim.key)
        if found and aim.part is not None:
            found = found[aim.part]
        if not found:
            continue
        met = "-"
        if aim.most is not None:
            met = "yes" if found <= aim.most else "no"
        value = found * aim.unit
        shown = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        table.rows.append([aim.text, shown, met])
    return table


def contenders(bench: Bench) -> Table:
    """Who takes part, and what each does not do."""
    table = Table("Contenders", ["contender", "version", "what it is", "lacks"])
    for name in CONTENDERS:
        if name not in bench.pythons:
            table.rows.append([name, "skipped", "not installed, or not asked for", ""])
            continue
        python, version = bench.pythons[name]
        if name == "rrdtool" and python != sys.executable:
            told = f"one archive of every step, hours for a year; worker under {python}"
            lacks = (
                "no exact times (whole seconds), syncs nothing, no late readings; "
                "energies are of means"
            )
        else:
            kind = load(name)
            told = _summary(kind.__doc__).rstrip(".")
            lacks = kind.lacks
        table.rows.append([name, version, told, lacks])
    return table


def _summary(docstring: str | None) -> str:
    """The first line."""
    return (docstring or "").partition("\n")[0]


def markdown(table: Table) -> str:
    """A table with its heading and notes."""
    lines = [f"## {table.title}", "", "| " + " | ".join(table.head) + " |"]
    numbers = table.title != "Contenders"
    lines.append("| --- |" + (" ---: |" if numbers else " --- |") * (len(table.head) - 1))
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join([*lines, "", *[note + "\n" for note in table.notes]])


def machine(folder: Path) -> list[str]:
    """Where this ran."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    system = f"{os.cpu_count()} cores, Linux {platform.release()}"
    versions = f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    size = LIBRARY.stat().st_size
    return [
        f"- machine: {model}, {system}, files on {_file_system(folder)}",
        f"- {versions}, power_manager.py of {size:,} bytes",
    ]


def _file_system(folder: Path) -> str:
    """The type and the device of the file system that a folder is on."""
    longest = ""
    found = ""
    for line in Path("/proc/mounts").read_text().splitlines():
        device, mounted_at, kind, *_ = line.split()
        inside = folder.is_relative_to(mounted_at)
        if inside and len(mounted_at) >= len(longest):
            longest = mounted_at
            found = f"{kind} ({device})"
    return found


def write_results(bench: Bench, tables: list[Table], began: float) -> None:
    """Write RESULTS.md and growth.svg beside this file."""
    when = datetime.now(timezone.utc).isoformat(timespec="minutes")
    head = [
        "# Results",
        "",
        "## Limits of these figures",
        "",
        _LIMITS,
        "## This run",
        "",
        *machine(bench.folder),
    ]
    beside = " --before OLD" if bench.before else ""
    command = f"python proof/benchmarks/run.py --seed {bench.seed}{beside}"
    head.append(f"- {when}, `{command}`, {time.time() - began:.0f} s")
    if bench.before:
        size = bench.before.stat().st_size
        head.append(f"- the library before, in (j): a power_manager.py of {size:,} bytes")
    plot.write(
        HERE / "growth.svg",
        {key[2:]: rows for key, rows in bench.figures.items() if key.startswith("i/")},
    )
    body = [markdown(table) for table in [aims(bench), *tables, contenders(bench)]]
    picture = "![Growth with the number of readings](growth.svg)\n"
    (HERE / "RESULTS.md").write_text(
        "\n".join([*head, "", *body[:-1], picture, body[-1]]), encoding="utf-8"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=_summary(__doc__))
    parser.add_argument("--seed", type=int, default=7, help="of the data (default: 7)")
    parser.add_argument(
        "--quick", action="store_true", help="a minute instead of ten: fewer rounds, smaller files"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=[],
        help="contenders, and works by their letter",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the figures, in seconds and bytes, as JSON"
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="FILE",
        help="an older power_manager.py, of which (j) measures a part too",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(),
        help="on the disk to measure (default: here); not a tmpfs",
    )
    args = parser.parse_args(argv)
    unknown = [
        name for name in args.only if name not in CONTENDERS and name not in WORKS and name != "c"
    ]
    if unknown:
        parser.error(
            f"no contender or work {unknown[0]!r}: expected {', '.join([*CONTENDERS, *WORKS])}"
        )
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the benchmarks."""
    args = parse(argv)
    began = time.time()
    names = [name for name in CONTENDERS if name in args.only] or list(CONTENDERS)
    letters = [
        letter for letter in WORKS if letter in args.only or (letter == "b" and "c" in args.only)
    ] or list(WORKS)
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=args.dir) as folder:
        bench = Bench(
            QUICK if args.quick else FULL,
            args.seed,
            Path(folder).resolve(),
            interpreters(names),
            args.before and args.before.resolve(),
        )
        tables = []
        for letter in letters:
            if letter in "ghj" and "power_manager" not in bench.pythons:
                continue
            start = time.time()
            tables.append(WORKS[letter](bench))
            print(f"{tables[-1].title}: {time.time() - start:.0f} s", file=sys.stderr)
        if args.json:
            print(json.dumps(bench.figures, indent=1))
        else:
            print("\n".join(markdown(table) for table in [*tables, aims(bench), contenders(bench)]))
        if not (args.quick or args.only):
            write_results(bench, tables, began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
