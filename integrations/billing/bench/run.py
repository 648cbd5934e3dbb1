"""What a run costs: a fleet in one file, its consumption into the ledger, the ledger to a loopback Stripe.

python integrations/billing/bench/run.py --devices 100 --customers 20 --days 30
python integrations/billing/bench/run.py --devices 100 --customers 20 --days 30 --fleet
python integrations/billing/bench/run.py --years 0.2,1,3 --devices 20 --customers 20
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
FLEET = HERE.parent / "fleet"
sys.path[:0] = [str(HERE), str(HERE / "tests"), str(HERE.parents[1])]
sys.path += [str(FLEET), str(FLEET / "tests"), str(FLEET / "chaos")]

from power_billing import Outcome, Receipt, UsageEvent, status  # noqa: E402 - the path above comes first
from power_billing.tables import tables  # noqa: E402
from world import HOUR, NOW, World  # noqa: E402


def _fill(world: World, devices: int, customers: int, days: int) -> None:
    """A reading every ten minutes on every device, linked in turn to the customers."""
    begin = NOW - days * 24 * HOUR
    for number in range(devices):
        name = f"d{number}"
        world.add_device(name)
        world.link(name, f"cus_N{number % customers}", hours_ago=days * 24)
        rows = (
            (world.meters[name], 12.0, 1.0 + number % 7, None, begin + 600.0 * i)
            for i in range(days * 144)
        )
        world.pm.log_many(rows)


def _in_an_engine(path: Path) -> World:
    """A world whose usage comes from chDB in this process; it needs the extra `fleet`."""
    from fleet_world import URL, FleetWorld
    from power_fleet import schema
    from power_fleet.engine import Engine

    engine = Engine([URL])
    schema.create(engine)
    world = FleetWorld(path)
    world.engine = engine  # the tables in memory are gone with their last client
    return world


def _close_hours(world: World) -> None:
    """Have the engine hold what the file has, its hours closed."""
    from fleet_world import FleetWorld
    from power_fleet.hours import close_hours

    assert isinstance(world, FleetWorld)
    world.carry_all()
    close_hours(world.engine, int(NOW * 1e6))


def _timed(name: str, world: World, stream: bool) -> None:
    sink, begin = world.sink(stream), time.perf_counter()
    requests = len(world.server.requests)
    done = world.usage.report(sink)
    seconds, requests = time.perf_counter() - begin, len(world.server.requests) - requests
    assert done.complete
    print(f"| {name} | {len(done.sent):,} | {requests:,} | {seconds:.2f} |")


class _Takes:
    """A biller that takes everything at once, and never says what it has."""

    account, batch = "everything", 1000

    def send(self, events: Sequence[UsageEvent]) -> list[Receipt]:
        return [Receipt(Outcome.SENT)] * len(events)

    def recorded(self, customer: str, hours: range) -> None:
        """It never can say."""


def _grow(world: World, options: argparse.Namespace, years: float) -> None:
    """Add that much to the history, with a report every week."""
    step = 7 * 24 * HOUR
    end = world.now + years * 365 * 24 * HOUR
    while world.now < end:
        begin, world.now = world.now, world.now + step
        for number in range(options.devices):
            meter = world.meters[f"d{number}"]
            rows = ((meter, 12.0, 1.0, None, begin + 1200.0 * i) for i in range(7 * 72))
            world.pm.log_many(rows)
        world.usage.report(_Takes())


def _show_years(options: argparse.Namespace) -> None:
    """How long a report with nothing new and status take, as the history grows."""
    print(f"Python {platform.python_version()}, {options.devices} devices, {options.customers} customers\n\n"
          "| years | hours of customers | ledger rows | report, nothing new, s | status, s |\n"
          "| --- | --- | --- | --- | --- |")  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        world = World(Path(directory) / "years.db")
        for number in range(options.devices):
            world.add_device(f"d{number}")
            world.link(f"d{number}", f"cus_N{number % options.customers}", hours_ago=0)
        done = 0.0
        for years in map(float, options.years.split(",")):
            _grow(world, options, years - done)
            done = years
            begin = time.perf_counter()
            world.usage.report(_Takes())
            report_s = time.perf_counter() - begin
            begin = time.perf_counter()
            status(world.pm, clock=lambda: world.now)
            status_s = time.perf_counter() - begin
            with tables(world.pm) as conn:
                names = ("outbox", "hours", "device_hours", "customer_days", "device_days")
                sizes = [conn.execute(f"SELECT count(*) FROM billing_{name}") for name in names]
                row_count = sum(size.fetchone()[0] for size in sizes)
            hours = round(years * 365 * 24) * options.customers
            print(f"| {years:g} | {hours:,} | {row_count:,} | {report_s:.2f} | {status_s:.3f} |")
        world.pm.close()


def main() -> None:
    """Fill, report with everything new, report with nothing new, after one late reading, and by the stream."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--customers", type=int, default=20)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument(
        "--fleet", action="store_true", help="usage from a fleet's engine, by the stream alone"
    )
    parser.add_argument("--years", help="instead, how report and status grow: 0.2,1,3")
    options = parser.parse_args()
    if options.years:
        _show_years(options)
        return
    print(f"Python {platform.python_version()}, {options.devices} devices, {options.customers} customers, "
          f"{options.days} days\n\n| run | events | requests | seconds |\n| --- | --- | --- | --- |")  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        for stream in (True,) if options.fleet else (False, True):
            path = Path(directory) / f"{stream}.db"
            world = _in_an_engine(path) if options.fleet else World(path)
            _fill(world, options.devices, options.customers, options.days)
            if options.fleet:
                _close_hours(world)
            name = "stream" if stream else "v1"
            _timed(f"{name}: all hours are new", world, stream)
            _timed(f"{name}: nothing is new", world, stream)
            world.pm.log_power(world.meters["d0"], 24.0, 1.0, timestamp=NOW - 50 * HOUR + 17.0)
            _timed(f"{name}: one late reading", world, stream)
            world.pm.close()
    print(f"\nmemory at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")


if __name__ == "__main__":
    main()
