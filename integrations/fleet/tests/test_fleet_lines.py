"""A line is opened in a stream; a stream that was made again is noticed on both sides, and nothing
is lost by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from chaos_common import compare
from fleet_harness import INTEGRATION, NOW, Clock, emptied, queried, random_device
from nats.js import JetStreamContext
from pipeline import drained, info, messages, quick, running_sink, send, streams, until
from power_fleet.aside import MOST_SECONDS, Aside
from power_fleet.dead import set_up_streams
from power_fleet.engine import Engine
from power_fleet.errors import Refused
from power_fleet.fleet import Fleet
from power_fleet.forwarder import forward, forward_file
from power_fleet.life import highest_line
from power_fleet.outbox import Outbox
from power_fleet.sink import Sink
from power_fleet.stream import EPOCH, Nats, is_other_stream, make_streams, next_sequence
from power_fleet.subjects import STREAM
from servers import SOON, Servers

from power_manager import PowerManager, PowerMeter

ID = "edge-1"


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A NATS server."""
    with Servers(tmp_path_factory.mktemp("nats")) as servers:
        servers.start_nats()
        yield servers.nats_url


@pytest.fixture
def nats(server_url: str) -> Nats:
    """The server, with new streams."""
    source = Nats(server_url)
    asyncio.run(streams(source))
    return source


@pytest.fixture
def engine(new_urls: list[str]) -> Engine:
    """An empty engine."""
    return Engine(emptied(new_urls))


@pytest.fixture
def pm(tmp_path: Path) -> Iterator[PowerManager]:
    """A device of four meters with 300 readings."""
    with random_device(tmp_path / "a.db", 1, ID, Clock()) as manager:
        yield manager


@contextlib.asynccontextmanager
async def jetstream(nats: Nats) -> AsyncIterator[JetStreamContext]:
    """A connection of a test's own."""
    connection = await nats.connect("test")
    try:
        yield connection.jetstream(timeout=SOON)
    finally:
        await connection.close()


async def made_anew(nats: Nats, first_sequence: int = 1) -> None:
    """Somebody has lost the stream, and makes another one."""
    async with jetstream(nats) as js:
        await js.delete_stream(STREAM)
        await make_streams(js, 1, 10_000_000, first_sequence=first_sequence)


def test_the_lines_of_a_device_are_known(pm: PowerManager, nats: Nats, engine: Engine) -> None:
    """Each start of a forwarder, with the file, and how far the file had come."""

    async def run() -> None:
        async with running_sink(engine, nats):
            for _ in range(2):
                await send(pm, nats)
                await drained(nats)
                await until(lambda: queried(engine, "SELECT 1 FROM power_seen FINAL"))

    asyncio.run(run())
    lines = queried(engine, "SELECT line, file_id, number FROM power_lines FINAL ORDER BY line")
    seen = queried(engine, "SELECT line, file_id FROM power_seen FINAL ORDER BY line")
    assert [file_id for _, file_id, _ in lines] == [pm.file_id] * 2
    assert [(line, file_id) for line, file_id, _ in lines] == seen
    (_, _, first), (_, _, second) = lines
    assert first == 0 < second


def test_a_forwarder_notices_a_stream_that_was_made_anew(
    pm: PowerManager, nats: Nats, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """It opens other lines and sends again what the old numbers went with; the engine is right at
    once.
    """

    async def run() -> None:
        sending = asyncio.ensure_future(forward(Outbox(pm), nats, 0.05, quick()))
        async with running_sink(engine, nats):
            await until(lambda: pm.pending_readings(1) == [])
            await drained(nats)
        await made_anew(nats, EPOCH)
        pm.log_power(pm.list_meters()[0].id, 7.0, 1.0, timestamp=NOW + 60)
        await until(lambda: pm.pending_readings(1) == [])
        async with running_sink(engine, nats):
            await drained(nats)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    asyncio.run(run())
    assert "made again" in caplog.text
    assert compare(pm, ID, [engine.shards[engine.shard_of(ID)].clients[0]]) == 301
    assert highest_line(engine) > EPOCH
    assert queried(engine, "SELECT countIf(voltage = 7) FROM power_meters FINAL") == [(1,)]


def test_a_sink_refuses_a_stream_that_has_not_come_as_far_as_the_engine(
    pm: PowerManager, nats: Nats, engine: Engine
) -> None:
    """It says with which number the stream has to begin, and works when it does."""

    async def run() -> None:
        await send(pm, nats)
        async with running_sink(engine, nats):
            await drained(nats)
        await made_anew(nats)
        with pytest.raises(Refused, match=rf"made again; run .* --first-sequence {EPOCH},"):
            await asyncio.wait_for(Sink(engine, nats, quick()).run(), SOON)
        async with jetstream(nats) as js:
            await make_streams(js, 1, 10_000_000, first_sequence=EPOCH)
        await send(pm, nats)
        async with running_sink(engine, nats):
            await drained(nats)

    asyncio.run(run())
    assert highest_line(engine) == EPOCH, "the first message of the new stream"


def test_a_stream_with_messages_is_not_made_anew(pm: PowerManager, nats: Nats) -> None:
    """They would be lost; one that has come far enough stays as it is."""

    async def run() -> None:
        await send(pm, nats)
        waiting = await messages(nats)
        async with jetstream(nats) as js:
            with pytest.raises(Refused, match=f"{waiting} messages wait"):
                await make_streams(js, 1, 10_000_000, first_sequence=waiting + 2)
            await make_streams(js, 1, 20_000_000, first_sequence=waiting + 1)
        found = await info(nats)
        assert (found.state.messages, found.config.max_bytes) == (waiting, 20_000_000)

    asyncio.run(run())


def test_a_stream_that_was_lost_is_set_up_beyond_what_the_engine_knows(nats: Nats) -> None:
    """One that has come so far, or further, stays as it is."""

    async def last_after(highest_line: int) -> int:
        await set_up_streams(nats, 1, 10_000_000, highest_line=highest_line)
        return (await info(nats)).state.last_seq

    async def run() -> None:
        assert await last_after(0) == 0
        assert await last_after(500) == EPOCH - 1
        assert await last_after(500) == EPOCH - 1
        assert await last_after(EPOCH + 5) == 2 * EPOCH - 1

    asyncio.run(run())


def test_settings_of_a_stream_change_whatever_its_first_number(nats: Nats) -> None:
    """With the number given again, with another one, or without."""

    async def run() -> None:
        await made_anew(nats, EPOCH)
        for size, first in enumerate((EPOCH, EPOCH - 5, 1), start=10_000_000):
            async with jetstream(nats) as js:
                await make_streams(js, 1, size, first_sequence=first)
            found = await info(nats)
            assert found.config.max_bytes == size
            assert found.state.last_seq == EPOCH - 1

    asyncio.run(run())


@pytest.mark.parametrize(
    ("line", "sequence", "other"),
    [
        (5, 6, False),
        (5, 5, True),
        (5, 4, True),
        (5, EPOCH - 1, False),
        (5, EPOCH, True),
        (EPOCH + 5, 2 * EPOCH + 6, True),
        (EPOCH, EPOCH + 1, False),
    ],
)
def test_another_stream_is_known_by_its_numbers(line: int, sequence: int, other: bool) -> None:
    """Those of a stream that was made again are lower, or of another epoch."""
    assert is_other_stream(line, sequence) is other
    assert next_sequence(line) > line
    assert is_other_stream(line, next_sequence(line))


def test_a_file_that_is_replaced_under_its_forwarder_is_right_at_once(
    pm: PowerManager, nats: Nats, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Copied over by a plain cp of an older state, with a clock that is years behind; or gone for a
    moment.
    """
    meter = pm.list_meters()[0].id
    pm.backup(tmp_path / "backup.db")
    pm.log_power(
        meter, 9.0, 1.0, charge_pct=90.0, timestamp=NOW + 3e7
    )  # its clock was a year ahead

    def voltage() -> object:
        rows = engine.select(
            "SELECT voltage FROM power_meters FINAL WHERE meter_id = %(m)s", m=meter
        )
        return next((row["voltage"] for row in rows), None)

    async def run() -> None:
        path = Path(pm.db_path)
        work = forward_file(path, "", nats, 0.05, quick())
        sending = asyncio.ensure_future(work)
        async with running_sink(engine, nats):
            await until(lambda: voltage() == 9.0)
            for name in ("a.db", "a.db-wal", "a.db-shm"):
                (tmp_path / name).unlink()
            await until(lambda: "no such file" in caplog.text)
            shutil.copy(tmp_path / "backup.db", tmp_path / "new.db")
            os.replace(tmp_path / "new.db", path)
            with PowerManager(path, clock=Clock(NOW - 1e8)) as restored:
                restored.log_power(meter, 4.0, 1.0, charge_pct=40.0)
            await until(lambda: voltage() == 4.0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    with caplog.at_level(logging.WARNING, "power_fleet"):
        asyncio.run(run())
    assert "another file has taken its place" in caplog.text
    with PowerManager(tmp_path / "a.db") as restored:
        latest = Fleet(["chdb://memory"]).latest().value
        assert [row.voltage for row in latest] == [row.voltage for row in restored.list_meters()]


def test_a_device_that_is_refused_does_not_hold_up_the_others_of_its_file(
    nats: Nats, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its share of the stream is full; it waits by itself, that is said once, and it is sent when
    there is room.
    """
    share = 20

    async def run(pm: PowerManager, full: PowerMeter) -> None:
        async with jetstream(nats) as js:
            await make_streams(js, 1, 10_000_000, device_messages=share)
            for number in range(share):
                await js.publish("power.fleet.a", b"%d" % number, stream=STREAM)
        sending = asyncio.ensure_future(forward(Outbox(pm), nats, 0.05, quick()))
        await until(lambda: {row.meter_id for row in pm.pending_readings()} == {full.id})
        async with running_sink(engine, nats):
            await until(lambda: pm.pending_readings() == [])
            await until(lambda: "it is sent again" in caplog.text)
            await drained(nats)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    with PowerManager(tmp_path / "two.db", clock=Clock()) as pm:
        for name in ("a", "b"):
            pm.register_device(name, name)
            pm.log_power(pm.add_meter(name, "main").id, 230.0, 1.0)
        with caplog.at_level(logging.WARNING, "power_fleet"):
            asyncio.run(run(pm, pm.list_meters("a")[0]))
    said = [line.getMessage() for line in caplog.records if "device 'a'" in line.getMessage()]
    assert [line for line in said if "not sent, kept in the file, while others are" in line] == [
        said[0]
    ]
    assert "maximum messages per subject exceeded" in said[0]
    assert said[-1].endswith("it is sent again")
    stored = {row["device_id"] for row in engine.select("SELECT device_id FROM power_readings")}
    assert stored == {"a", "b"}


def test_a_device_that_is_refused_waits_longer_each_time() -> None:
    """Up to a minute, by itself, until it is taken."""
    clock = Clock(0.0)
    aside = Aside(clock)
    assert not aside
    assert aside.seconds() == 0.0
    waits = []
    for _ in range(12):
        aside.put("a", ConnectionError("full"))
        assert aside.names() == {"a"}
        waits.append(aside.seconds())
        clock.now += waits[-1]
        assert aside.names() == set()
        assert aside
    assert waits[0] <= 0.5
    assert MOST_SECONDS / 2 <= waits[-1] <= MOST_SECONDS
    aside.take_back("b")
    aside.take_back("a")
    assert not aside


@pytest.mark.slow
def test_a_backfill_holds_up_nothing_that_is_live() -> None:
    """The program that measures it, with a small one; how old is too old depends on the machine."""
    command = [sys.executable, str(INTEGRATION / "chaos" / "backfill.py")]
    options = ["--readings", "20000", "--steady", "3", "--most", f"{SOON:g}"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "one late reading of 20000: 1 message\n" in done.stdout
    assert done.stdout.endswith("as it should be\n")
