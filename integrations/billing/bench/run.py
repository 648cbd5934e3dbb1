"""What a run costs: a fleet in one file, its consumption into the ledger, the ledger to a loopback Stripe.

python integrations/billing/bench/run.py --devices 100 --customers 20 --days 30
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE / "tests"), str(HERE.parents[1])]

from world import HOUR, NOW, World  # noqa: E402 - the path above comes first


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


def _timed(name: str, world: World, stream: bool) -> None:
    sink, begin = world.sink(stream), time.perf_counter()
    requests = len(world.server.requests)
    done = world.usage.report(sink)
    seconds, requests = time.perf_counter() - begin, len(world.server.requests) - requests
    assert done.complete
    print(f"| {name} | {len(done.sent):,} | {requests:,} | {seconds:.2f} |")


def main() -> None:
    """Fill, report with everything new, report with nothing new, after one late reading, and by the stream."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--customers", type=int, default=20)
    parser.add_argument("--days", type=int, default=30)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {options.devices} devices, {options.customers} customers, "
          f"{options.days} days\n\n| run | events | requests | seconds |\n| --- | --- | --- | --- |")  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        for stream in (False, True):
            world = World(Path(directory) / f"{stream}.db")
            _fill(world, options.devices, options.customers, options.days)
            name = "stream" if stream else "v1"
            _timed(f"{name}: all hours are new", world, stream)
            _timed(f"{name}: nothing is new", world, stream)
            world.pm.log_power(world.meters["d0"], 24.0, 1.0, timestamp=NOW - 50 * HOUR + 17.0)
            _timed(f"{name}: one late reading", world, stream)
            world.pm.close()
    print(f"\nmemory at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")


if __name__ == "__main__":
    main()
