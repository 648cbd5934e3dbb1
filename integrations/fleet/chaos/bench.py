"""A million readings end to end, bytes on the wire, and questions at 90 days of history.

python3 integrations/fleet/chaos/bench.py
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from chaos import make_files
from chaos_common import (
    ENVIRONMENT,
    Clock,
    Program,
    compare_all,
    fleet_program,
    nats_http,
    run_fleet,
    settle,
)
from power_fleet import schema
from power_fleet.engine import Engine, Shard
from power_fleet.fleet import Fleet
from power_fleet.hours import close_hours
from power_fleet.outbox import READINGS as BATCH
from servers import Servers

from power_manager import DAY_US, SECOND_US, PowerManager

MAX_GAP = 5400 * SECOND_US


def fill(pm: PowerManager, device_id: str, count: int, end: float, chance: random.Random) -> None:
    """That many readings of two meters, one each 10 s, as a sensor of millivolts gives them."""
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
    """Time how long a million readings of 40 files take into 2 x 2 ClickHouse servers."""
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
            print(
                f"{total} readings of {devices} files, 3 NATS servers (R3), "
                "2 x 2 ClickHouse servers, 2 sinks: "
                f"{took:.0f} s, {total / took:,.0f} readings/s end to end"
            )
            count = compare_all(files, servers.clickhouse_urls, clock)
            print(
                f"compared afterwards: {count} readings on every replica, "
                "reports and budgets of every device: equal"
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
        print(
            f"on the wire, a backlog in batches of {BATCH}: "
            f"{counter.sent / total:.1f} bytes a reading out, {counter.received / total:.1f} back, "
            "protocol and state records included"
        )


# --- Questions

# Percent signs are doubled, because the driver formats the questions.
DEVICES = """SELECT concat('edge-', toString(100000 + number)) AS device_id,
  concat('Device ', toString(number)) AS name, concat('site-', toString(number %% 50)) AS site,
  3. AS shutdown_threshold, 100. AS target_wh, NULL AS low, NULL AS critical,
  toInt64(%(max_gap)s) AS max_gap, toUInt64(1) AS revision, toUInt8(0) AS deleted
FROM numbers(%(devices)s)"""
METERS = """SELECT concat('edge-', toString(100000 + intDiv(number, 3))) AS device_id,
  concat(device_id, '-', toString(number %% 3)) AS meter_id, toInt64(number %% 3) AS position,
  arrayElement(['battery', 'solar', 'main'], 1 + number %% 3) AS type, type AS name,
  50. AS capacity_wh, 12.5 AS voltage, 0.8 AS current_draw, 80. AS charge_pct,
  toInt64(%(now)s) AS updated, toUInt8(1) AS active, toUInt8(1) AS power_known,
  'none' AS alert_level, toUInt64(1) AS revision, toUInt8(0) AS deleted
FROM numbers(3 * %(devices)s)"""  # of three meters each
SEEN = """SELECT concat('edge-', toString(100000 + number)) AS device_id, toUInt64(1) AS line,
  'file' AS file_id, toInt64(1) AS count, toUInt64(%(now)s) AS seen
FROM numbers(%(devices)s)"""
READINGS = """SELECT
  concat('edge-', toString(100000 + intDiv(number, 3 * %(count)s))) AS device_id,
  concat(device_id, '-', toString(intDiv(number, %(count)s) %% 3)) AS meter_id,
  toInt64(%(begin)s + (number %% %(count)s) * %(step)s + intDiv(number, %(count)s)) AS at,
  12.5 AS voltage, (cityHash64(number) %% 1000) / 1000 AS current_draw, 80. AS charge_pct,
  toInt64(%(max_gap)s) AS max_gap, toUInt64(1) AS generation, toUInt8(0) AS deleted
FROM numbers(3 * %(devices)s * %(count)s)"""  # of one day
TOUCHED = """SELECT concat('edge-', toString(100000 + intDiv(number, 24))) AS device_id,
  toInt64(intDiv(%(begin)s, 3600000000) + number %% 24) AS hour, toUInt64(1) AS touches
FROM numbers(24 * %(devices)s)"""
READINGS_A_DAY = 48  # of a meter


def register(shard: Shard, devices: int, now_us: int) -> None:
    """Put the devices and their meters into the engine."""
    shard.insert_from("power_devices", DEVICES, devices=devices, max_gap=MAX_GAP)
    shard.insert_from("power_meters", METERS, devices=devices, now=now_us)
    shard.insert_from("power_seen", SEEN, devices=devices, now=now_us)


def add_days(shard: Shard, devices: int, first_day: int, end_day: int) -> int:
    """Put the readings of these days into the engine as a sink would, and close their hours."""
    for day in range(first_day, end_day):
        begin = day * DAY_US
        step = DAY_US // READINGS_A_DAY
        numbers = {
            "devices": devices,
            "begin": begin,
            "count": READINGS_A_DAY,
            "step": step,
            "max_gap": MAX_GAP,
        }
        shard.insert_from("power_readings", READINGS, **numbers)
        shard.insert_from("power_touched", TOUCHED, devices=devices, begin=begin)
    return 3 * devices * READINGS_A_DAY * (end_day - first_day)


ROUNDS = 7


def time_both(few: Callable[[], object], many: Callable[[], object]) -> tuple[float, float]:
    """Median milliseconds of a question, asked of two engines in turn under the same load."""
    few_ms: list[float] = []
    many_ms: list[float] = []
    for _ in range(ROUNDS):
        for ask, taken in ((few, few_ms), (many, many_ms)):
            begin = time.monotonic()
            ask()
            taken.append((time.monotonic() - begin) * 1000)
    return statistics.median(few_ms), statistics.median(many_ms)


def fill_engine(url: str, devices: int, days: int, today: int, now_us: int) -> None:
    """Make an engine with that many days of history, and close its hours.

    Say how long the looks for them take.
    """
    engine = Engine([url])
    schema.create(engine)
    (shard,) = engine.shards
    register(shard, devices, now_us)
    count = add_days(shard, devices, today - days + 1, today + 1)
    begin = time.monotonic()
    hours = close_hours(engine, now_us)
    print(
        f"{days} days: {devices} devices, {3 * devices} meters, {count} readings; "
        f"{hours} hours of devices closed in {time.monotonic() - begin:.0f} s",
        end="",
    )
    for name, is_recent in {"all": False, "three days": True}.items():
        begin = time.monotonic()
        close_hours(engine, now_us, is_recent)
        print(
            f"; a look at {name}, with nothing to close: {time.monotonic() - begin:.1f} s", end=""
        )
    print(flush=True)


def questions(few_url: str, many_url: str, devices: int, days: int) -> None:
    """Time every question at 7 days of history and at that many, and print both."""
    today = int(time.time()) // 86400
    now = today * 86400 + 43_200.0
    fill_engine(few_url, devices, 7, today, int(now * 1e6))
    fill_engine(many_url, devices, days, today, int(now * 1e6))
    few = Fleet([few_url], clock=lambda: now)
    many = Fleet([many_url], clock=lambda: now)
    ten = [f"edge-{100_000 + number}" for number in range(10)]
    one = ten[0]
    asked: dict[str, Callable[[Fleet], object]] = {
        "budget of all": lambda fleet: fleet.budget(),
        "budget of 10": lambda fleet: fleet.budget(ten),
        "report of one, 7 days": lambda fleet: fleet.report(one),
        "latest state of every meter": lambda fleet: fleet.latest(),
        "energy by day and site, 7 days": lambda fleet: fleet.energy(),
        "silent for an hour": lambda fleet: fleet.silent(60),
    }
    for name, ask in asked.items():
        short, long = time_both(partial(ask, few), partial(ask, many))
        print(
            f"{name}: {short:,.0f} ms at 7 days, {long:,.0f} at {days}: {long / short:.2f} times",
            flush=True,
        )
    begin = time.monotonic()
    rows = many.energy(days).value
    took_ms = (time.monotonic() - begin) * 1000
    print(f"energy over all {days} days: {took_ms:,.0f} ms, {len(rows)} rows")


def ask_chdb(home: Path, devices: int, days: int) -> None:
    """The questions on ClickHouse 26 in this process."""
    few, many = (f"chdb://{home}/engine?database={name}" for name in ("few", "many"))
    keeper = Engine([f"chdb://{home}/engine"])
    (shard,) = keeper.shards
    for name in ("few", "many"):
        shard.everywhere(f"CREATE DATABASE {name}")
    questions(few, many, devices, days)
    most_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"most memory of the process: {most_kb // 1024} MB")


def ask_old(home: Path, devices: int, days: int) -> None:
    """The questions on ClickHouse 18, which takes 2 GB of memory for one at most."""
    with Servers(home / "servers") as servers:
        servers.start_clickhouse(shards=2)  # two engines of one server each
        few, many = servers.clickhouse_urls
        questions(few, many, devices, days)


def main() -> int:
    """Run one part, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "part",
        nargs="?",
        choices=["million", "wire", "questions", "questions18"],
        help="(default: all)",
    )
    parser.add_argument("--readings", type=int, default=1_000_000, help="(default: 1000000)")
    parser.add_argument(
        "--devices", type=int, default=1_000, help="of the questions (default: 1000)"
    )
    parser.add_argument("--days", type=int, default=90, help="of the questions (default: 90)")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}")
    parts: dict[str, Callable[[Path], None]] = {
        "million": lambda home: million(home, 40, options.readings),
        "wire": lambda home: wire(home, options.readings // 40),
        "questions": lambda home: ask_chdb(home, options.devices, options.days),
        "questions18": lambda home: ask_old(home, options.devices, options.days),
    }
    for name, part in parts.items():
        if options.part in (None, name):
            with tempfile.TemporaryDirectory(prefix="bench-") as home:
                part(Path(home))
    return 0


if __name__ == "__main__":
    sys.exit(main())
