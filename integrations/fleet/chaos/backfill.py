"""What late readings cost, and how old a live reading is when the engine has it, beside a backfill.

    python3 integrations/fleet/chaos/backfill.py                    # 500,000 readings late at once
    python3 integrations/fleet/chaos/backfill.py --readings 50000 --most 2

One NATS server, one ClickHouse server, a sink and a forwarder of one device, each a process. Live
readings are logged twice a second. It ends with 1 where a live reading was older than `--most`
seconds, or the engine is not the file.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from chaos_common import Program, compare, fleet_program, run_fleet
from nats.js.api import StreamState
from power_fleet.engine import Engine
from power_fleet.stream import Nats
from power_fleet.subjects import STREAM
from servers import Servers

from power_manager import PowerManager, to_microseconds

ID = "edge-001"
LIVE_SECONDS = 0.5  # between two live readings
LOOK_SECONDS = 0.05  # between two looks at the engine
PATIENCE = 600.0


class Watch:
    """Logs live readings, and notes how old each of them is when the engine has it."""

    def __init__(self, pm: PowerManager, meter_id: str, engine: Engine) -> None:
        self._pm = pm
        self._meter_id = meter_id
        self._shard = engine.shards[0]
        self._logged: list[int] = []  # microseconds, oldest first
        self.ages: list[float] = []  # seconds
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._log, self._look)
        ]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _log(self) -> None:
        while not self._ended.wait(LIVE_SECONDS):
            reading = self._pm.log_power(self._meter_id, 12.0, 1.0, 50.0)
            self._logged.append(to_microseconds(reading.timestamp))

    def _look(self) -> None:
        """Until the last of them is there."""
        while not (self._ended.is_set() and len(self.ages) == len(self._logged)):
            time.sleep(LOOK_SECONDS)
            if len(self.ages) == len(self._logged):
                continue
            first = self._logged[len(self.ages)]
            rows = self._shard.select(
                "SELECT DISTINCT at FROM power_readings "
                "WHERE device_id = %(device)s AND at >= %(first)s",
                device=ID,
                first=first,
            )
            there = {row["at"] for row in rows}
            now = time.time()
            for at in self._logged[len(self.ages) :]:
                if at not in there:
                    break
                self.ages.append(now - at / 1e6)


def shown(name: str, watch: Watch, seconds: float) -> float:
    """Print what was seen; return the age of the oldest live reading."""
    ages = sorted(watch.ages)
    median, high = ages[len(ages) // 2], ages[int(len(ages) * 0.95)]
    print(
        f"{name}: {seconds:.1f} s; {len(ages)} live readings, "
        f"age median {median:.2f} s, p95 {high:.2f} s, most {ages[-1]:.2f} s",
        flush=True,
    )
    return ages[-1]


def until(check: Callable[[], object]) -> float:
    """Wait until it is true; return the seconds that took."""
    begin = time.monotonic()
    while not check():
        assert time.monotonic() - begin < PATIENCE, "it does not come"
        time.sleep(LOOK_SECONDS)
    return time.monotonic() - begin


def stream_state(nats: Nats) -> StreamState:
    """What the stream has taken so far, and what waits in it."""

    async def ask() -> StreamState:
        connection = await nats.connect("backfill")
        try:
            return (await connection.jetstream().stream_info(STREAM)).state
        finally:
            await connection.close()

    return asyncio.run(ask())


def late(
    meter_id: str, count: int, before: float
) -> Iterator[tuple[str, float, float, float, float]]:
    """That many readings of five seconds each, the last of them before that time."""
    for number in range(count):
        yield meter_id, 12.0 + number % 7 / 10, 1.5, 40.0, before - 5.0 * (count - number)


def measure(home: Path, count: int, steady_seconds: float, most: float) -> bool:
    """Everything; whether it was as it should be."""
    with Servers(home / "servers") as servers, PowerManager(home / "edge.db") as pm:
        servers.start_nats()
        servers.start_clickhouse()
        to_nats = ["--nats", servers.nats_url]
        to_engine = ["--clickhouse", *servers.clickhouse_urls]
        run_fleet("schema", *to_engine)
        run_fleet("stream", "--replicas", "1", *to_nats)
        paced = ["--interval", "0.5", "--db", str(home / "edge.db")]
        engine, nats = Engine(servers.clickhouse_urls), Nats(servers.nats_url)
        programs: list[Program] = [
            fleet_program(home / "sink.log", "sink", *to_nats, *to_engine).start(),
            fleet_program(home / "forward.log", "forward", *to_nats, *paced).start(),
        ]
        try:
            return _measured(pm, engine, nats, count, steady_seconds, most)
        finally:
            for program in programs:
                program.kill()


def _measured(
    pm: PowerManager,
    engine: Engine,
    nats: Nats,
    count: int,
    steady_seconds: float,
    most: float,
) -> bool:
    pm.register_device(ID, "Edge")
    meter = pm.add_meter(ID, "battery", 50.0)
    begin = time.time()
    oldest = []

    def is_sent() -> bool:
        return not pm.pending_readings(1)

    pm.log_power(meter.id, 12.0, 1.0, 50.0)
    until(is_sent)
    pm.log_many(late(meter.id, count, begin))
    with Watch(pm, meter.id, engine) as watch:
        took = until(is_sent)
        until(lambda: watch.ages)  # at least one live reading was beside it
    oldest.append(shown(f"{count} late at once", watch, took))
    until(lambda: is_sent() and stream_state(nats).messages == 0)
    before = stream_state(nats).last_seq
    pm.log_power(meter.id, 12.0, 1.0, 50.0, timestamp=begin - 7.5)
    until(is_sent)
    print(
        f"one late reading of {count}: {stream_state(nats).last_seq - before} message", flush=True
    )
    with Watch(pm, meter.id, engine) as watch:
        end = time.monotonic() + steady_seconds
        step = 0
        while time.monotonic() < end:
            step += 1
            pm.log_power(meter.id, 12.0, 1.0, 50.0, timestamp=begin - 5.0 * step - 1.0)
            time.sleep(1.0)
        until(lambda: watch.ages)
    oldest.append(shown("one late reading a second", watch, steady_seconds))
    until(lambda: is_sent() and stream_state(nats).messages == 0)
    readings = compare(pm, ID, [engine.shards[0].clients[0]])
    print(f"{readings} readings in the file and in the engine alike")
    return max(oldest) < most


def main() -> int:
    """Run it in a directory of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--readings", type=int, default=500_000, help="(default: %(default)s)")
    parser.add_argument("--steady", type=float, default=20.0, help="seconds (default: %(default)s)")
    parser.add_argument("--most", type=float, default=2.0, help="seconds (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        is_right = measure(Path(home), options.readings, options.steady, options.most)
    print("as it should be" if is_right else f"a live reading was older than {options.most:g} s")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
