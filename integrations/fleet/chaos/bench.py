"""The figures of RESULTS.md: a million readings end to end, bytes on the wire, and questions at 10,000 devices.

python integrations/fleet/chaos/bench.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from chaos import make_files, nats_http
from chaos_common import ENVIRONMENT, Clock, Program, compare_all, fleet_program, run_fleet, settle
from power_fleet.codec import Batch, Device, Meter, Reading
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from power_fleet.hours import close_hours
from power_fleet.sink import rows_of, store
from servers import Servers

from power_manager import SECOND_US, PowerManager

DAY = 86400.0
MAX_GAP = 5400 * SECOND_US


def fill(pm: PowerManager, device_id: str, count: int, end: float, chance: random.Random) -> None:
    """That many readings of two meters, one each 10 seconds, as a sensor of millivolts and milliamperes gives them."""
    for meter, part in zip(pm.list_meters(device_id), (count // 2, count - count // 2)):
        volts, amperes, charge = 12.5, 0.8, 90.0
        rows = []
        for step in range(part):
            volts += chance.gauss(0, 0.005)
            amperes = max(amperes + chance.gauss(0, 0.01), 0.0)
            charge = max(charge - 0.0007, 5.0)
            at = end - (part - step) * 10.0 + chance.gauss(0, 0.002)
            rows.append((meter.id, round(volts, 3), round(amperes, 3), round(charge, 1), at))
        pm.log_many(rows)


def million(home: Path, devices: int, total: int) -> None:
    """Forward a million readings of 40 files through 3 NATS servers into 2 x 2 ClickHouse servers, and time it."""
    clock, chance = Clock(), random.Random(1)
    (home / "files").mkdir()
    programs: list[Program] = []
    with Servers(home / "servers") as servers:
        try:
            servers.start_nats(3)
            servers.start_clickhouse(2, 2)
            shards = [text for url in servers.clickhouse_urls for text in ("--clickhouse", url)]
            run_fleet("schema", *shards)
            run_fleet("stream", "--nats", servers.nats_url)
            files = make_files(home / "files", devices, clock)
            for device_id, pm in files.items():
                fill(pm, device_id, total // devices, time.time(), chance)
            begin = time.monotonic()
            for number in range(2):
                log = home / f"sink{number}.log"
                programs.append(
                    fleet_program(log, "sink", "--nats", servers.nats_url, *shards).start()
                )
            for device_id in files:
                arguments = (
                    "forward",
                    "--nats",
                    servers.nats_url,
                    "--db",
                    str(home / f"files/{device_id}.db"),
                    "--once",
                )
                programs.append(fleet_program(home / f"{device_id}.log", *arguments).start())
            settle(list(files.values()), nats_http(servers), 900)
            took = time.monotonic() - begin
            print(f"{total} readings of {devices} files, 3 NATS servers (R3), 2 x 2 ClickHouse servers, 2 sinks: "
                  f"{took:.0f} s, {total / took:,.0f} readings/s end to end")  # fmt: skip
            count = compare_all(files, servers.clickhouse_urls, clock)
            print(
                f"compared afterwards: {count} readings on every replica, reports and budgets of every device: equal"
            )
        finally:
            for program in programs:
                program.kill()


# --- Bytes on the wire


class Counter:
    """A TCP proxy that counts what goes through it."""

    def __init__(self, port: int) -> None:
        self._port, self.sent, self.received = port, 0, 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(
            self._pump(reader, back, "sent"), self._pump(there, writer, "received")
        )

    async def _pump(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, name: str
    ) -> None:
        while data := await source.read(65536):
            setattr(self, name, getattr(self, name) + len(data))
            to.write(data)
            await to.drain()
        to.close()


async def _through_counter(port: int, db: Path) -> Counter:
    counter = Counter(port)
    server = await asyncio.start_server(counter, "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    arguments = ("-m", "power_fleet", "forward", "--once", "--nats", url, "--db", str(db))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=ENVIRONMENT)
    assert await process.wait() == 0
    server.close()
    return counter


def wire(home: Path, total: int) -> None:
    """Count the bytes of one file's forwarder of a backlog."""
    with Servers(home / "servers") as servers:
        servers.start_nats(1)
        run_fleet("stream", "--nats", servers.nats_url, "--replicas", "1")
        port = int(servers.nats[0].url.rpartition(":")[2])
        files = make_files(home, 1, Clock())
        ((device_id, pm),) = files.items()
        fill(pm, device_id, total, time.time(), random.Random(1))
        counter = asyncio.run(_through_counter(port, home / f"{device_id}.db"))
        print(f"on the wire, a backlog in batches of 500: {counter.sent / total:.1f} bytes a reading out, "
              f"{counter.received / total:.1f} back, protocol and state records included")  # fmt: skip


# --- Questions


def populate(engine: Engine, devices: int, days: float, every: float, now: float) -> int:
    """Put devices of three meters straight into the engine, through the sink's rows; return how many readings."""
    chance, total, batches = random.Random(2), 0, []
    count, now_us = int(days * DAY / every), int(now * 1e6)
    for number in range(devices):
        id_ = f"edge-{number:05}"
        batch = Batch(id_, MAX_GAP)
        batch.devices.append(
            Device(f"Device {number}", f"site-{number % 50}", 3.0, 100.0, None, None, MAX_GAP, 1)
        )
        for position, kind in enumerate(("battery", "solar", "main")):
            meter = f"{id_}-{kind}"
            batch.meters.append(
                Meter(
                    meter,
                    position,
                    kind,
                    kind,
                    50.0,
                    12.5,
                    0.8,
                    80.0,
                    now_us,
                    True,
                    True,
                    "none",
                    1,
                )
            )
            for step in range(count):
                at = now_us - int((count - step) * every * 1e6) - number
                batch.readings.append(Reading(meter, at, 12.5, chance.random(), 80.0))
        batches.append((batch, now_us))
        total += 3 * count
        if len(batches) * 3 * count > 100_000 or number == devices - 1:
            store(engine, rows_of(batches, engine))
            batches = []
    return total


def time_each(asked: dict[str, Callable[[], object]]) -> None:
    """Time every question: median of five."""
    for name, ask in asked.items():
        times = []
        for _ in range(5):
            begin = time.monotonic()
            ask()
            times.append(time.monotonic() - begin)
        print(
            f"{name}: {statistics.median(times) * 1000:,.0f} ms (most {max(times) * 1000:,.0f})",
            flush=True,
        )


def questions(home: Path, devices: int) -> None:
    """Time every question at that many devices, hours closed; and sums once more with a late reading."""
    with Servers(home / "servers") as servers:
        servers.start_clickhouse(2, 2)
        run_fleet(
            "schema", *[text for url in servers.clickhouse_urls for text in ("--clickhouse", url)]
        )
        engine, now = Engine(servers.clickhouse_urls), time.time()
        total = populate(engine, devices, 2.0, 1800.0, now)
        begin = time.monotonic()
        hours = close_hours(engine, int(now * 1e6))
        print(f"{devices} devices, {3 * devices} meters, {total} readings of two days, 2 x 2 ClickHouse servers; "
              f"{hours} hours of devices closed in {time.monotonic() - begin:.0f} s")  # fmt: skip
        fleet = Fleet(servers.clickhouse_urls, clock=lambda: now)
        asked: dict[str, Callable[[], object]] = {
            "budget of all": fleet.budget,
            "budget of 10 named": lambda: fleet.budget(
                [f"edge-{n:05}" for n in range(0, devices, devices // 10)]
            ),
            "report of one, 7 days": lambda: fleet.report("edge-00042"),
            "latest state of every meter": fleet.latest,
            "energy by day and site, 7 days": fleet.energy,
            "silent for an hour": lambda: fleet.silent(60),
        }
        time_each(asked)
        for hours in (23, 47):
            late = Reading("edge-00007-main", int((now - hours * 3600) * 1e6), 12.5, 0.5, 80.0)
            store(
                engine,
                rows_of([(Batch("edge-00007", MAX_GAP, 0, [late]), int(now * 1e6))], engine),
            )
        print("with late readings of a closed hour of each day:")
        time_each({name: ask for name, ask in asked.items() if "all" in name or "energy" in name})


def main() -> int:
    """Run one part, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "part", nargs="?", choices=["million", "wire", "questions"], help="(default: all)"
    )
    parser.add_argument("--readings", type=int, default=1_000_000, help="(default: 1000000)")
    parser.add_argument(
        "--devices", type=int, default=10_000, help="of the questions (default: 10000)"
    )
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    parts: dict[str, Callable[[Path], None]] = {
        "million": lambda home: million(home, 40, options.readings),
        "wire": lambda home: wire(home, options.readings // 40),
        "questions": lambda home: questions(home, options.devices),
    }
    for name, part in parts.items():
        if options.part in (None, name):
            with tempfile.TemporaryDirectory(prefix="bench-") as home:
                part(Path(home))
    return 0


if __name__ == "__main__":
    sys.exit(main())
