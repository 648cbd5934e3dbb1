"""The work, (a) to (j): each function drives the contenders and returns its table.

The figures go into bench.figures.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path
from statistics import median
from typing import Any

import workers
from contenders import CONTENDERS, load
from workers import HERE, Worker

LIBRARY = HERE.parents[1] / "power_manager.py"
_PEERS = ("floor", "floor5")  # what ratios are given against
_SECONDS_UNSYNCED = 30  # the kernel's dirty_expire_centisecs


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    `limit` is the longest load in seconds that a contender is given, `patience` after how many
    seconds of answers to the same question it is not asked again.
    """

    rounds: int
    burst: int
    bulk: int
    bulk_rounds: int
    written: int
    grouped: int
    month: int
    devices: int
    processes: int
    growth: tuple[int, ...]
    late: dict[str, int]  # for late.py
    limit: float
    patience: float


FULL = Sizes(
    rounds=60,
    burst=20,
    bulk=1_000_000,
    bulk_rounds=3,
    written=1_800,
    grouped=9_000,
    month=2_592_000,
    devices=10_000,
    processes=20,
    growth=(10**4, 10**5, 10**6, 10**7),
    late={
        "rounds": 3,
        "single": 1_000,
        "backlog": 51_840,
        "later": 300_000,
        "frozen": 5_000,
        "upgraded": 50_000,
    },
    limit=10.0,
    patience=2.0,
)
QUICK = Sizes(
    rounds=25,
    burst=10,
    bulk=50_000,
    bulk_rounds=2,
    written=300,
    grouped=1_200,
    month=90_000,
    devices=10_000,
    processes=4,
    growth=(10**4, 5 * 10**4),
    late={
        "rounds": 1,
        "single": 200,
        "backlog": 17_280,
        "later": 300_000,
        "frozen": 1_000,
        "upgraded": 5_000,
    },
    limit=0.8,
    patience=0.4,
)


@dataclass
class Table:
    """One table of RESULTS.md."""

    title: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Bench:
    """The run: what is compared, how much, where; and what has been found."""

    sizes: Sizes
    seed: int
    folder: Path
    pythons: dict[str, tuple[str, str]]
    before: Path | None = None  # an older power_manager.py to measure beside the present one
    figures: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)  # seconds a reading in bulk

    def names(self, *without: str) -> list[str]:
        """The contenders that are here."""
        return [name for name in self.pythons if name not in without]

    @contextmanager
    def workers(self, lanes: list[tuple[str, str]]) -> Iterator[dict[tuple[str, str], Worker]]:
        """A worker process for each (contender, tag), while the block lasts."""
        started = {}
        for name, tag in lanes:
            python, _ = self.pythons[name]
            started[name, tag] = Worker(name, python, self.folder / f"{name}-{tag}")
        try:
            yield started
        finally:
            for worker in started.values():
                worker.stop()

    def open(
        self,
        worker: Worker,
        mode: str = "",
        step: int = 1,
        room: int = 100_000,
        *,
        quantised: bool = True,
    ) -> None:
        """Begin an empty file; mode "" is the contender's first."""
        mode = mode or load_modes(worker.name)[0]
        how = {"mode": mode, "step": step, "room": room, "quantised": quantised}
        self.fine(worker.call("open", folder=str(worker.folder), seed=self.seed, **how))

    def fine(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer, where it is one; these calls every contender must be able to do."""
        if "unsupported" in answer:
            raise SystemExit(f"a contender failed: {answer['unsupported']}")
        return answer

    def may_load(self, name: str, count: int) -> bool:
        """Whether so many readings load within the limit, as far as its rate is known.

        A worker need not begin what it will not be given.
        """
        return self.rates.get(name, 0.0) * count <= self.sizes.limit

    def fits(self, worker: Worker, count: int) -> bool:
        """Whether so many readings load within the limit, by the rate so far or of a small load."""
        if worker.name not in self.rates:
            self.open(worker)
            self.rates[worker.name] = self.fine(worker.call("load", count=5_000))["seconds"] / 5_000
        return self.may_load(worker.name, count)


def load_modes(name: str) -> tuple[str, ...]:
    """The durabilities in which a contender runs.

    RRDtool's are written here: its module may be there for another Python only.
    """
    return ("none",) if name == "rrdtool" else load(name).modes


def percentile(values: list[float], share: float) -> float:
    """The value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def ratio(mine: list[float], theirs: list[float]) -> float:
    """The median of the ratios round by round, which a noisy neighbour disturbs least."""
    return median(a / b for a, b in zip(mine, theirs))


def one_reading(bench: Bench) -> Table:
    """(a) One durable reading."""
    table = Table(
        "(a) One durable reading, microseconds",
        ["contender", "durability", "median", "p99", "mean"],
    )
    table.head += [f"times {peer}" for peer in _PEERS]
    modes: list[str] = ["full", "normal", "none"]
    lanes = [(name, mode) for mode in modes for name in bench.names() if mode in load_modes(name)]
    times: dict[tuple[str, str], list[list[float]]] = {lane: [] for lane in lanes}
    with bench.workers(lanes) as started:
        for (_, mode), worker in started.items():
            bench.open(worker, mode)
            worker.call("log", count=100)
        for _ in range(bench.sizes.rounds):
            for lane, worker in started.items():
                times[lane].append(bench.fine(worker.call("log", count=bench.sizes.burst))["times"])
        problems = [
            p for worker in started.values() for p in bench.fine(worker.call("verify"))["problems"]
        ]
    if problems:
        raise SystemExit(f"the file is not as it should be: {problems}")
    for (name, mode), rounds in times.items():
        every = [t for part in rounds for t in part]
        middles = [median(part) for part in rounds]
        row = [median(every), percentile(every, 0.99), sum(every) / len(every)]
        bench.figures[f"a/{name}/{mode}"] = row
        cells = [name, mode] + [f"{t * 1e6:.1f}" for t in row]
        for peer in _PEERS:
            against = times.get((peer, mode))
            found = ratio(middles, [median(part) for part in against]) if against else None
            bench.figures[f"a/{name}/{mode}/{peer}"] = found
            cells.append("-" if found is None else f"{found:.2f}")
        table.rows.append(cells)
    table.notes.append(
        f"{bench.sizes.rounds} rounds of {bench.sizes.burst} readings each in turn; "
        "ratios are medians over rounds, of medians, against the same durability. "
        "sqlalchemy commits every fifth reading only: see its mean."
    )
    return table


def bulk(bench: Bench) -> Table:
    """(b) Bulk, (c) bytes a reading on disk."""
    table = Table(
        "(b) Readings in bulk, (c) bytes on disk a reading",
        [
            "contender",
            "readings",
            "us a reading",
            "readings/s",
            "times floor",
            "bytes",
            "bytes, full doubles",
        ],
    )
    names = bench.names("floor5")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with bench.workers([(name, "bulk") for name in names]) as started:
        counts = {}
        for (name, _), worker in started.items():
            wanted = (bench.sizes.bulk, 100_000)
            counts[name] = next((n for n in wanted if bench.fits(worker, n)), 10_000)
        sizes = {}
        for turn in range(bench.sizes.bulk_rounds):
            for (name, _), worker in started.items():
                bench.open(worker, room=counts[name], quantised=turn > 0)
                found = bench.fine(worker.call("load", count=counts[name]))["seconds"]
                seconds[name].append(found / counts[name])
                worker.call("close")
                sizes[name, turn > 0] = worker.size() / counts[name]
    for name in names:
        each = median(seconds[name])
        against = seconds.get("floor")
        found = ratio(seconds[name], against) if against else None
        bench.rates[name] = each
        bench.figures[f"b/{name}"] = each
        bench.figures[f"b/{name}/floor"] = found
        bench.figures[f"c/{name}"] = [sizes[name, True], sizes[name, False]]
        row = [name, f"{counts[name]:,}", f"{each * 1e6:.2f}", f"{1 / each:,.0f}"]
        row += [
            "-" if found is None else f"{found:.2f}",
            f"{sizes[name, True]:.1f}",
            f"{sizes[name, False]:.1f}",
        ]
        table.rows.append(row)
    table.notes.append(
        f"{bench.sizes.bulk_rounds} rounds in turn, the first of them with full doubles instead of "
        "millivolts; one transaction to the commit; the floor and power_manager get their rows "
        "ready-made, the others make theirs; fewer readings where a load would take more than "
        f"{bench.sizes.limit:g} s. Bytes are the files' lengths after closing; RRDtool's file has "
        "room for every reading from the start."
    )
    return table


def written(bench: Bench) -> Table:
    """(d) Bytes written to disk a reading."""
    head = ["contender", "durability", "alone", "in groups of 60"]
    table = Table("(d) Bytes written to disk a reading, at 1 Hz", head)
    lanes = [(name, mode) for name in bench.names() for mode in load_modes(name)]
    with bench.workers(lanes) as started:
        for (name, mode), worker in started.items():
            cells = [name, mode]
            for how, count, part in (
                ("log", bench.sizes.written, _SECONDS_UNSYNCED),
                ("group", bench.sizes.grouped, 60),
            ):
                found = _written(bench, worker, mode, how, count, part)
                bench.figures[f"d/{name}/{mode}/{how}"] = found
                cells.append("-" if found is None else f"{found:,.0f}")
            table.rows.append(cells)
    table.notes.append(
        "Counted by /proc/self/io (write_bytes: pages made dirty, by 4,096), from the first "
        f"reading to the closing of the file; {bench.sizes.written:,} readings alone, "
        f"{bench.sizes.grouped:,} in groups. The seconds are simulated: every {_SECONDS_UNSYNCED} "
        "readings the files are synced from outside, as the kernel does by then. "
        "The file system's own journal and the flash's own copying are not in it."
    )
    return table


def _written(
    bench: Bench, worker: Worker, mode: str, how: str, count: int, part: int
) -> float | None:
    bench.open(worker, mode, room=max(count, 100_000))
    worker.sync()
    before = worker.call("written")["bytes"]
    for _ in range(count // part):
        if "unsupported" in worker.call(how, count=part):
            return None
        worker.sync()
    worker.call("close")
    return float(worker.call("written")["bytes"] - before) / count


def reports(bench: Bench) -> Table:
    """(e) Reports over a month and a year."""
    month = bench.sizes.month
    # The seconds between two readings of each span, and the number of its readings.
    spans = {
        f"{month / 86400:.3g} days at 1 Hz": (1, month),
        "30 days at 1/min": (60, 43_200),
        "365 days at 1/min": (60, 525_600),
    }
    table = Table("(e) A report, milliseconds", ["contender", *spans, "same answer"])
    lanes = [
        (name, span)
        for name in bench.names("floor5")
        for span, (_, count) in spans.items()
        if bench.may_load(name, count)
    ]
    times: dict[tuple[str, str], list[float]] = {lane: [] for lane in lanes}
    answers: dict[tuple[str, str], list[float]] = {}
    with bench.workers(lanes) as started:
        for (name, span), worker in started.items():
            step, count = spans[span]
            if bench.fits(worker, count):
                bench.open(worker, step=step, room=count)
                bench.fine(worker.call("load", count=count))
            else:
                del times[name, span]
        for _ in range(9):
            for lane, taken in times.items():
                if sum(taken) < bench.sizes.patience:
                    _, span = lane
                    step, count = spans[span]
                    answer = bench.fine(started[lane].call("report", days=step * count / 86400))
                    taken.append(answer["seconds"])
                    answers[lane] = answer["answer"]
    for name in bench.names("floor5"):
        cells = [name]
        for tag, span in zip(("hz", "min", "year"), spans):
            taken = times.get((name, span), [])
            bench.figures[f"e/{name}/{tag}"] = taken and median(taken)
            cells.append(f"{median(taken) * 1e3:.2f}" if taken else "-")
        pairs = [(answers.get((name, s)), answers.get(("floor", s))) for s in spans]
        both = [(mine, theirs) for mine, theirs in pairs if mine and theirs]
        same = all(
            isclose(a, b, rel_tol=1e-6) for mine, theirs in both for a, b in zip(mine, theirs)
        )
        table.rows.append([*cells, ("yes" if same else "no") if both else "-"])
    if "power_manager" in bench.pythons:
        hz, minute = (times.get(("power_manager", span), []) for span in list(spans)[:2])
        bench.figures["e/power_manager/hz/min"] = ratio(hz, minute) if hz and minute else None
    table.notes.append(
        "Count, mean, least and most watts, least and most charge, energy out and in, of the "
        "readings newer than that; medians of 9 rounds in turn. The span begins on a full hour, "
        "where power_manager has most readings to read. "
        f"-: loading would take more than {bench.sizes.limit:g} s. "
        "Same answer: as the floor's, to 1e-6."
    )
    return table


def history(bench: Bench) -> Table:
    """(f) The last day's history as objects."""
    table = Table(
        "(f) The last day at 1 Hz as objects, milliseconds",
        ["contender", "objects", "median", "p99"],
    )
    names = [name for name in bench.names("floor5") if bench.may_load(name, 90_000)]
    times: dict[str, list[float]] = {name: [] for name in names}
    counts: dict[str, int] = {}
    with bench.workers([(name, "day") for name in names]) as started:
        for worker in started.values():
            bench.open(worker, room=90_000)
            bench.fine(worker.call("load", count=90_000))
        for _ in range(11):
            for (name, _), worker in started.items():
                if sum(times[name]) < bench.sizes.patience:
                    answer = bench.fine(worker.call("history", hours=24))
                    times[name].append(answer["seconds"])
                    counts[name] = answer["count"]
    for name, taken in times.items():
        bench.figures[f"f/{name}"] = median(taken)
        cells = [f"{median(taken) * 1e3:.1f}", f"{percentile(taken, 0.99) * 1e3:.1f}"]
        table.rows.append([name, f"{counts[name]:,}", *cells])
    table.notes.append(
        "Each contender's own objects, or a small class where it has none; power_manager's carry "
        "an id, the wattage and ISO text for the time, the others' neither. "
        "Of 90,000 readings in the file."
    )
    return table


def budgets(bench: Bench) -> Table:
    """(g) The budget of many devices."""
    count = bench.sizes.devices
    table = Table(
        f"(g) Budget of {count:,} devices x 3 meters, milliseconds",
        ["contender", "median", "least"],
    )
    command = [sys.executable, str(HERE / "budget.py"), str(count), "5", str(bench.folder)]
    done = subprocess.run(command, check=True, capture_output=True, env=workers.environment())
    for name, taken in json.loads(done.stdout).items():
        bench.figures[f"g/{name}"] = median(taken)
        table.rows.append([name, f"{median(taken) * 1e3:.0f}", f"{min(taken) * 1e3:.0f}"])
    table.notes.append(
        "By hand: two queries over tables made for it, a plain dict a device, a third of the keys."
    )
    return table


def bare_imports() -> str:
    """The standard-library imports of power_manager.py's top level, without anything else of it."""
    body = ast.parse(LIBRARY.read_text(encoding="utf-8")).body
    return "; ".join(
        ast.unparse(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom))
    )


def processes(bench: Bench) -> Table:
    """(h) Imports, and `report` as a whole process."""
    table = Table(
        "(h) Whole processes",
        ["process", "median ms", "p99 ms", "times bare imports", "peak memory, MB"],
    )
    python = sys.executable
    home = bench.folder / "report"
    imports = bare_imports()
    with bench.workers([("power_manager", "report")]) as started:
        worker = started["power_manager", "report"]
        bench.open(worker, step=60)
        bench.fine(worker.call("load", count=43_200))
        worker.call("close")
        shutil.copytree(worker.folder, home)
        shutil.copy(LIBRARY, home)  # its bytecode is kept there, and not in the checkout
    options = ["--db", str(home / "power_manager.db"), "report", "bench", "--days", "36500"]
    on_path = f"import sys; sys.path.insert(0, {str(home)!r})"
    run_main = f"{on_path}; from power_manager import main; sys.exit(main())"
    commands = {
        "an empty Python": [python, "-c", "pass"],
        "bare imports": [python, "-c", imports.replace("from __future__ import annotations; ", "")],
        "import power_manager": [python, "-c", f"{on_path}; import power_manager"],
        "python power_manager.py report": [python, str(home / "power_manager.py"), *options],
        "the same as -m, or as the installed command": [python, "-c", run_main, *options],
    }
    for name in bench.names("power_manager", "floor", "floor5", "naive"):
        its_python, _ = bench.pythons[name]
        script = f"import {CONTENDERS[name].needs}"
        commands[script] = [its_python, "-c", script]
    task = json.dumps({"commands": commands, "rounds": bench.sizes.processes})
    environment = {
        key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
    }
    launcher = [python, "-S", str(HERE / "processes.py")]
    done = subprocess.run(
        launcher, input=task, text=True, check=True, stdout=subprocess.PIPE, env=environment
    )
    found: dict[str, list[tuple[float, int]]] = json.loads(done.stdout)
    bare = [seconds for seconds, _ in found["bare imports"]]
    for name, runs in found.items():
        seconds = [taken for taken, _ in runs]
        peak_bytes = max(most for _, most in runs)
        times = ratio(seconds, bare)
        bench.figures[f"h/{name}"] = [median(seconds), times, peak_bytes]
        cells = [
            f"{median(seconds) * 1e3:.1f}",
            f"{percentile(seconds, 0.99) * 1e3:.1f}",
            f"{times:.2f}",
        ]
        table.rows.append([name, *cells, f"{peak_bytes / 1e6:.1f}"])
    table.notes.append(
        f"{bench.sizes.processes} rounds in turn, bytecode caches warm; bare imports: those at "
        "the top of power_manager.py, read from it. A script given by its path is compiled anew "
        "at every start, which is all the difference between the two reports. "
        "The report is of 30 days at 1/min. Memory by wait4."
    )
    return table


def growth(bench: Bench) -> Table:
    """(i) Growth with the number of readings."""
    head = ["contender", "readings", "one reading, us", "report over all, ms", "bytes a reading"]
    table = Table("(i) Growth", head)
    names = bench.names("floor5")
    with bench.workers([(name, "growth") for name in names]) as started:
        for (name, _), worker in started.items():
            bench.open(worker, room=bench.sizes.growth[-1])
            count = 0
            spent = 0.0
            seconds = 0.0
            patience = 4 * bench.sizes.limit
            for size in bench.sizes.growth:
                rate = spent / count if count else 0.0
                if rate * (size - count) > patience or seconds * 10 > patience:
                    table.rows.append([name, f"{size:,}", "-", "-", "-"])
                    break
                spent += bench.fine(worker.call("load", count=size - count))["seconds"]
                count = size
                # Or the load would still be written out while one reading is measured.
                worker.sync()
                taken = median(bench.fine(worker.call("log", count=3))["times"])
                if taken < 0.1:
                    taken = median(bench.fine(worker.call("log", count=50))["times"])
                seconds = bench.fine(worker.call("report", days=size / 86400 + 1))["seconds"]
                each = worker.size() / size
                bench.figures.setdefault(f"i/{name}", []).append([size, taken, seconds, each])
                cells = [f"{taken * 1e6:.0f}", f"{seconds * 1e3:.1f}", f"{each:.0f}"]
                table.rows.append([name, f"{size:,}", *cells])
                if taken > 1.0:
                    break
            worker.stop()  # with its files: ten million readings of each contender are many
    table.notes.append(
        "At 1 Hz, the same file growing; durability as in the first row of (a) for each. "
        f"-: it would take more than {4 * bench.sizes.limit:g} s to load or to report. "
        "Bytes with the -wal that is there at that moment, so high for the smallest; "
        "RRDtool's file has its final length from the start."
    )
    return table


def lateness(bench: Bench) -> Table:
    """(j) Readings out of order, wrong clocks, upgrades."""
    table = Table(
        "(j) Late readings, wrong clocks and upgrades, microseconds a reading",
        ["what", "median", "for twice as many", "the library before"],
    )
    libraries = {"now": LIBRARY}
    if bench.before is not None:
        libraries["before"] = bench.before
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in libraries}
    for _ in range(bench.sizes.late["rounds"]):
        for name, library in libraries.items():
            found[name].append(_late(bench, library, [] if name == "now" else _COMPARED))
    for what in found["now"][0]:
        times = [part[what] for part in found["now"]]
        cells = [what]
        if isinstance(times[0], list):
            once = median(single for single, _ in times)
            twice = median(double for _, double in times)
            bench.figures[f"j/{what}/growth"] = median(double / single for single, double in times)
            cells += [f"{once * 1e6:.1f}", f"{twice * 1e6:.1f}"]
        else:
            once = median(times)
            cells += [f"{once * 1e6:.1f}", "-"]
        bench.figures[f"j/{what}"] = once
        olden = [part[what] for part in found.get("before", []) if what in part]
        if olden:
            bench.figures[f"j/{what}/before"] = median(olden)
        cells.append(f"{median(olden) * 1e6:.1f}" if olden else "-")
        table.rows.append(cells)
    figures = bench.figures
    figures["j/behind/not behind"] = figures["j/behind"] / figures["j/not behind"]
    if "j/backlog/before" in figures:
        figures["j/backlog/ratio"] = figures["j/backlog"] / figures["j/backlog/before"]
    sizes = bench.sizes.late
    table.notes.append(
        f"Durability normal: no syncs. {sizes['rounds']} rounds in turn. "
        "appended, late, behind, set back: medians of single calls of log_power. "
        "late: into a day at 5 s whose hours are full. "
        f"backlog: {sizes['backlog']:,} readings at 5 s in a random order in one log_many. "
        f"behind: live, with {sizes['later']:,} readings dated later; "
        "not behind: the same without them. "
        "set back: live, half an hour back into readings at 5 s and at 1 Hz. "
        f"frozen: {sizes['frozen']:,} live readings of one instant, and twice as many; "
        "with newer ones in its hour, each call computes the whole hour anew. "
        f"upgrade: opening a first release's file of {sizes['upgraded']:,} readings, "
        "and of twice as many."
    )
    return table


_COMPARED = ["appended", "late", "backlog"]  # what an older library is asked too


def _late(bench: Bench, library: Path, scenes: list[str]) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "late.py"), str(library), str(bench.folder)]
    command += [str(bench.seed), json.dumps(bench.sizes.late), *scenes]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env=workers.environment(), text=True
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


WORKS: dict[str, Callable[[Bench], Table]] = {
    "a": one_reading,
    "b": bulk,
    "d": written,
    "e": reports,
    "f": history,
    "g": budgets,
    "h": processes,
    "i": growth,
    "j": lateness,
}
