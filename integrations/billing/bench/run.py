"""Measure what billing costs, and write RESULTS.md: some ten minutes on two quiet cores.

python3 integrations/billing/bench/run.py
python3 integrations/billing/bench/run.py --only file --devices 10 --days 3

--only prints one part and writes nothing. A loopback Stripe answers at once, in the same process.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
FLEET = HERE.parent / "fleet"
sys.path[:0] = [str(HERE), str(HERE / "tests"), str(ROOT)]
sys.path += [str(FLEET), str(FLEET / "tests"), str(FLEET / "chaos")]

from power_billing import Outcome, Receipt, UsageEvent, status  # noqa: E402 - see sys.path above
from power_billing.tables import tables  # noqa: E402
from world import HOUR, NOW, World  # noqa: E402

from power_manager import parse_count  # noqa: E402

YEARS = (0.2, 1.0, 3.0)
YEARS_DEVICES = 6
STORIES = 1500
MONTHS = 60
_RUNS_HEAD = "| run | events | requests | seconds |\n| --- | --- | --- | --- |"
_YEARS_HEAD = (
    "| years | hours of customers | ledger rows | report, nothing new, s | status, s |\n"
    "| --- | --- | --- | --- | --- |"
)

# --- Runs


def measure_file(options: argparse.Namespace) -> None:
    """Runs from a file: by v1 calls, then by the stream."""
    print(_RUNS_HEAD)
    for is_stream in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            world = World(Path(folder) / "power.db")
            _fill(world, options)
            _measure_runs(world, is_stream)
    _print_memory()


def measure_fleet(options: argparse.Namespace) -> None:
    """Runs from an engine in this process (chDB), by the stream; it needs the extra `fleet`."""
    from fleet_world import URL, FleetWorld
    from power_fleet import schema
    from power_fleet.engine import Engine
    from power_fleet.hours import close_hours

    print(_RUNS_HEAD)
    engine = Engine([URL])
    schema.create(engine)
    with tempfile.TemporaryDirectory() as folder:
        world = FleetWorld(Path(folder) / "power.db")
        world.engine = engine  # the tables in memory are gone with their last client
        _fill(world, options)
        world.carry_all()
        close_hours(world.engine, int(NOW * 1e6))
        _measure_runs(world, is_stream=True)
    _print_memory()


def _fill(world: World, options: argparse.Namespace) -> None:
    """A reading every ten minutes on every device, linked in turn to the customers."""
    begin = NOW - options.days * 24 * HOUR
    for number in range(options.devices):
        name = f"d{number}"
        world.add_device(name)
        world.link(name, f"cus_N{number % options.customers}", hours_ago=options.days * 24)
        rows = (
            (world.meters[name], 12.0, 1.0 + number % 7, None, begin + 600.0 * index)
            for index in range(options.days * 144)
        )
        world.pm.log_many(rows)


def _measure_runs(world: World, is_stream: bool) -> None:
    name = "stream" if is_stream else "v1"
    _measure_run(f"{name}: all hours are new", world, is_stream)
    _measure_run(f"{name}: nothing is new", world, is_stream)
    world.pm.log_power(world.meters["d0"], 24.0, 1.0, timestamp=NOW - 50 * HOUR + 17.0)
    _measure_run(f"{name}: one late reading", world, is_stream)
    world.pm.close()


def _measure_run(name: str, world: World, is_stream: bool) -> None:
    sink = world.sink(is_stream)
    requests_before = len(world.server.requests)
    begin = time.perf_counter()
    done = world.usage.report(sink)
    seconds = time.perf_counter() - begin
    requests = len(world.server.requests) - requests_before
    assert done.complete
    print(f"| {name} | {len(done.sent):,} | {requests:,} | {seconds:.2f} |")


def _print_memory() -> None:
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"\nMemory at most {memory_mb} MB, with the loopback Stripe.")


# --- Years


class _Takes:
    """A biller that takes everything at once, and never says what it has."""

    account, batch = "everything", 1000

    def send(self, events: Sequence[UsageEvent]) -> list[Receipt]:
        return [Receipt(Outcome.SENT)] * len(events)

    def recorded(self, customer: str, hours: range) -> None:
        """It never can say."""


def measure_years(_: argparse.Namespace) -> None:
    """How long a report with nothing new and status take, as the history grows."""
    print(_YEARS_HEAD)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "years.db")
        for number in range(YEARS_DEVICES):
            world.add_device(f"d{number}")
            world.link(f"d{number}", f"cus_N{number}", hours_ago=0)
        done = 0.0
        for years in YEARS:
            _grow(world, years - done)
            done = years
            _print_year(world, years)
        world.pm.close()


def _grow(world: World, years: float) -> None:
    """Add that much to the history, with a report every week."""
    step = 7 * 24 * HOUR
    end = world.now + years * 365 * 24 * HOUR
    while world.now < end:
        begin = world.now
        world.now += step
        for number in range(YEARS_DEVICES):
            meter = world.meters[f"d{number}"]
            rows = ((meter, 12.0, 1.0, None, begin + 1200.0 * index) for index in range(7 * 72))
            world.pm.log_many(rows)
        world.usage.report(_Takes())


def _print_year(world: World, years: float) -> None:
    begin = time.perf_counter()
    world.usage.report(_Takes())
    report_s = time.perf_counter() - begin
    begin = time.perf_counter()
    status(world.pm, clock=lambda: world.now)
    status_s = time.perf_counter() - begin
    row_count = 0
    with tables(world.pm) as conn:
        for name in ("outbox", "hours", "device_hours", "customer_days", "device_days"):
            (count,) = conn.execute(f"SELECT count(*) FROM billing_{name}").fetchone()
            row_count += count
    hours = round(years * 365 * 24) * YEARS_DEVICES
    print(f"| {years:g} | {hours:,} | {row_count:,} | {report_s:.2f} | {status_s:.3f} |")


# --- All of it

RESULTS = """\
# Results

Written by `python3 integrations/billing/bench/run.py`. {system}. ARM was not measured.

## A run

100 devices of 20 customers, 30 days of a reading every ten minutes, in a file with durability \
`full`. The loopback Stripe answers at once in the same process: over a network each v1 event \
takes its round trip on top.

{file}

Of the requests of each first run 40 ask which ledger bills the customers, and write that down; \
some 150 ask what Stripe has of hours of more than a day ago, a hundred hours a call. The \
stream sends a hundred events a call. Reading 40 days of the meters holds up no writer.

## A fleet

The same usage from an engine in the same process (chDB), its hours closed, by the stream.

{fleet}

At first each device is asked about by itself, for all its time; then fifty at a time, for six \
weeks.

## Years

{years_devices} devices of as many customers, a reading every 20 minutes, a report every week \
to a biller that takes everything at once.

{years}

With a report a week the last week of each month is sent after its invoice, and such events \
keep their rows: with a report every hour there are fewer.

## Stories

`BILLING_EXAMPLES={stories} pytest integrations/billing/tests/test_billing_properties.py`: \
{stories} new stories of readings, late readings, crashes, lost answers, refusals and clock \
jumps, in {stories_s} s. No difference between what the loopback Stripe had and what was \
consumed, rounded down.

## Months

`python3 integrations/billing/tests/soak.py {soak}`: months of readings late and early, faults, \
kills, wrong clocks, prunes, deletions, moved devices, restored backups, and a second file that \
bills one of the customers, by a copy of the ledger or by one of its own, and takes over or is \
taken over. Half of the months have a tariff of two periods. In the end of each: what Stripe \
has is what the ledger says, or is listed; the ledger is what the file's statistics say, or is \
listed; by v1, while Stripe's summaries could be had, no file replaced a value that it did not \
know of; what was billed of what was deleted stayed billed; each hour was on the meter of its \
period.

```text
{months}
```

## Breaks

`python3 integrations/billing/bench/breaks.py`: the code broken in one place at a time, in a copy, \
and the file of tests that fails.

{breaks}
"""

PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "file": measure_file,
    "fleet": measure_fleet,
    "years": measure_years,
}


def _part(*arguments: str) -> str:
    """What one part prints, in a process of its own: its memory is its own too."""
    return _output([str(Path(__file__).resolve()), "--only", *arguments])


def _output(arguments: Sequence[str], **variables: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def _measure_stories() -> str:
    """Seconds that the stories took."""
    begin = time.perf_counter()
    tests = str(HERE / "tests/test_billing_properties.py")
    options = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), tests]
    _output(["-m", "pytest", *options], BILLING_EXAMPLES=str(STORIES))
    return f"{time.perf_counter() - begin:.0f}"


def write_results() -> None:
    """Run every part, and write RESULTS.md."""
    soak = ["--seeds", str(MONTHS), "--first", "5000", "--steps", "150"]
    text = RESULTS.format(
        system=_system(),
        file=_part("file"),
        fleet=_part("fleet"),
        years=_part("years"),
        years_devices=YEARS_DEVICES,
        stories=STORIES,
        stories_s=_measure_stories(),
        soak=" ".join(soak),
        months=_output([str(HERE / "tests/soak.py"), *soak]),
        breaks=_output([str(HERE / "bench/breaks.py")]),
    )
    (HERE / "RESULTS.md").write_text(text, encoding="utf-8")


def _system() -> str:
    return (
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"SQLite {sqlite3.sqlite_version}, stripe {version('stripe')}"
    )


def main() -> int:
    """Write RESULTS.md, or print one part."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    add = parser.add_argument
    add("--only", choices=sorted(PARTS), help="print one part, and write nothing")
    add("--devices", type=parse_count, default=100, help="of a run (default: %(default)s)")
    add("--customers", type=parse_count, default=20, help="of a run (default: %(default)s)")
    add("--days", type=parse_count, default=30, help="of a run (default: %(default)s)")
    options = parser.parse_args()
    if options.only:
        PARTS[options.only](options)
    else:
        write_results()
    return 0


if __name__ == "__main__":
    sys.exit(main())
