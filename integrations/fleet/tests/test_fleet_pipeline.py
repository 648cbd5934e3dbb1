"""From files through a real NATS server into a real ClickHouse, with everything on the way failing
once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import pytest
from chaos_common import Clock as Stoppable
from chaos_common import compare, compare_all
from fleet_harness import NOW, Clock, emptied, queried, random_device
from nats.js import JetStreamContext
from nats.js.errors import APIError, ServerError
from pipeline import drained, info, messages, quick, running_sink, send, streams, until
from power_fleet import hub
from power_fleet.codec import Batch, Reading, encode
from power_fleet.dead import LETTER_BYTES, Letter, dead_subject, letters, make_dead_stream
from power_fleet.engine import Engine, EngineError
from power_fleet.fleet import Fleet
from power_fleet.forwarder import forward, publish
from power_fleet.limits import DEVICE_MESSAGES
from power_fleet.outbox import Outbox
from power_fleet.quota import Quota
from power_fleet.sink import Rows, store
from power_fleet.stream import Nats, left_behind, make_consumer, make_streams
from power_fleet.subjects import CONSUMER, DEAD_STREAM, STREAM
from servers import SOON, Server, Servers

from power_manager import PowerManager, to_microseconds


@pytest.fixture
def engine(old_urls: list[str]) -> Engine:
    """ClickHouse 18 in two shards, empty."""
    return Engine(emptied(old_urls))


@pytest.fixture
def pm(tmp_path: Path) -> Iterator[PowerManager]:
    """A device with 300 readings, some events and three meters."""
    manager = random_device(tmp_path / "edge-1.db", 1, "edge-1", Clock())
    yield manager
    manager.close()


def count(engine: Engine) -> int:
    """How many readings the engine has."""
    rows = engine.select("SELECT count() AS readings FROM power_readings FINAL WHERE deleted = 0")
    return sum(row["readings"] for row in rows)


def test_end_to_end(
    pm: PowerManager, nats: Nats, engine: Engine, old_urls: list[str], tmp_path: Path
) -> None:
    """Everything of several files arrives exactly, the stream is empty, and the answers say how
    fresh they are.
    """
    clock = Stoppable()
    with PowerManager(tmp_path / "edge-2.db", clock=clock) as other:
        other.register_device("edge-2", "Two")
        other.log_power(other.add_meter("edge-2", "main").id, 230.0, 0.5)

        async def run() -> None:
            async with running_sink(engine, nats):
                await asyncio.gather(send(pm, nats), send(other, nats))
                await drained(nats)
                await until(lambda: Fleet(old_urls).budget([]).fresh_as_of)

        asyncio.run(run())
        assert compare(pm, "edge-1", [engine.shards[engine.shard_of("edge-1")].clients[0]]) == 300
        assert compare_all({"edge-2": other}, old_urls, clock) == 1


def test_a_resend_is_harmless(pm: PowerManager, nats: Nats, engine: Engine) -> None:
    """The stream drops what it has; what another process sends again the engine has once."""

    async def run() -> None:
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        for _ in range(2):  # two forwarders that end before they note anything
            box = Outbox(pm)
            opening = box.take()
            (sequence,) = await publish(js, opening)
            assert isinstance(sequence, int), sequence
            box.done(opening, [sequence])
            waiting = await messages(nats)
            for _ in range(2):
                await publish(js, box.take())
            assert await messages(nats) == waiting + len(box.take().batches)
        async with running_sink(engine, nats):
            await drained(nats)
        await connection.close()
        await send(pm, nats)
        async with running_sink(engine, nats):
            await drained(nats)

    asyncio.run(run())
    assert compare(pm, "edge-1", [engine.shards[engine.shard_of("edge-1")].clients[0]]) == 300


def test_a_full_stream_refuses_and_the_file_keeps(
    pm: PowerManager, nats: Nats, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Progress is not noted, the forwarder tries again, and all arrives once a sink makes room."""

    async def run() -> None:
        await streams(nats, max_bytes=20_000)
        rows = [(pm.list_meters()[0].id, 1.0 + n, 1.0, 50.0, NOW - 1e6 - n) for n in range(5000)]
        pm.log_many(rows)
        sending = asyncio.ensure_future(forward(Outbox(pm), nats, 0.05, quick(), once=True))
        await until(lambda: "maximum bytes exceeded" in caplog.text)
        assert not sending.done()
        assert pm.pending_readings(1), "the file still has readings to send"
        async with running_sink(engine, nats):
            await asyncio.wait_for(sending, SOON)
            await drained(nats)

    with caplog.at_level(logging.WARNING, "power_fleet"):
        asyncio.run(run())
    assert compare(pm, "edge-1", [engine.shards[engine.shard_of("edge-1")].clients[0]]) == 5300


def test_a_server_that_is_killed_is_waited_for(
    pm: PowerManager, server: Server, nats: Nats, engine: Engine
) -> None:
    """Forwarder and sink survive kill -9 of NATS, and what was acknowledged before is still
    there.
    """

    async def run() -> None:
        await send(pm, nats)
        waiting = await messages(nats)
        async with running_sink(Engine(["http://127.0.0.1:9"]), nats):  # one that can store nothing
            server.kill()
            pm.log_power(pm.list_meters()[0].id, 1.0, 1.0)
            sending = asyncio.ensure_future(send(pm, nats))
            await asyncio.sleep(0)
            server.start()
            await sending
        assert await messages(nats) > waiting
        async with running_sink(engine, nats):
            await until(lambda: count(engine) == 301)
            server.kill()
            server.start()
            pm.log_power(pm.list_meters()[0].id, 1.0, 1.0)
            await send(pm, nats)
            await until(lambda: count(engine) == 302)

    asyncio.run(run())


def test_an_engine_that_is_killed_is_waited_for(
    pm: PowerManager, nats: Nats, tmp_path: Path
) -> None:
    """Nothing is acknowledged while ClickHouse is down; when it is back, everything is stored."""

    async def run(servers: Servers) -> None:
        from power_fleet import schema

        engine = Engine(servers.clickhouse_urls)
        schema.create(engine)
        (one,) = servers.shards[0]
        async with running_sink(engine, nats):
            one.kill()
            await send(pm, nats)
            waiting = await messages(nats)
            assert waiting > 0
            one.start()
            await drained(nats)
        assert count(engine) == 300

    with Servers(tmp_path / "servers") as servers:
        servers.start_clickhouse()
        asyncio.run(run(servers))


def test_nothing_is_acknowledged_before_it_is_stored(
    pm: PowerManager, nats: Nats, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An insert that fails after the messages were taken gives them back, and the next attempt
    stores them.
    """
    failures = iter([True, True])

    def failing(engine: Engine, shards: Sequence[Rows]) -> int:
        if next(failures, False):
            raise EngineError("out of order")
        return store(engine, shards)

    async def run() -> None:
        await send(pm, nats)
        async with running_sink(engine, nats):
            await drained(nats)

    monkeypatch.setattr("power_fleet.sink.store", failing)
    asyncio.run(run())
    assert next(failures, None) is None
    assert compare(pm, "edge-1", [engine.shards[engine.shard_of("edge-1")].clients[0]]) == 300


def test_poison_goes_to_the_dead_letters(nats: Nats, engine: Engine) -> None:
    """With the reason; the good message behind it is stored, and a batch under another device's
    subject is not.
    """
    good = Batch("edge-1", 1, 0, [Reading("m", 1, 1.0, 1.0, 1.0)])

    async def run() -> list[Letter]:
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        await js.publish("power.fleet.edge-1", b"garbage", stream=STREAM)
        await js.publish("power.fleet.edge-2", encode(good)[1], stream=STREAM)
        await js.publish("power.fleet.edge-1", encode(good)[1], stream=STREAM)
        async with running_sink(engine, nats):
            await drained(nats)
        found = [letter async for letter in letters(js)]
        await connection.close()
        return found

    first, second = asyncio.run(run())
    assert (first.device_id, first.data, first.is_whole) == ("edge-1", b"garbage", True)
    assert first.reason.startswith("neither compressed nor JSON")
    assert second.device_id == "edge-2"
    assert second.reason == "the subject is that of 'edge-2', the batch that of 'edge-1'"
    assert queried(engine, "SELECT device_id, meter_id, at FROM power_readings FINAL") == [
        ("edge-1", "m", 1)
    ]


def garbage(size: int) -> bytes:
    """That many bytes that are no batch, and do not look alike."""
    return random.Random(1).randbytes(size)


def test_poison_of_any_kind_is_buried(nats: Nats, engine: Engine) -> None:
    """A number too long for a float, types that nobody knows, and a message too long for another
    head than its own.
    """
    row = [
        ["m"],
        [0],
        ["fan"],
        [None],
        [1.0],
        [1.0],
        [1.0],
        [1.0],
        [None],
        [True],
        [True],
        ["none"],
        [1],
    ]
    long = [["n"], [""], [10**400], [None], [None], [None], [1], [1]]
    head = {"v": 2, "device_id": "edge-1", "file_id": "f", "number": 0, "line": 1}
    head |= {"max_gap": 1, "generation": 0}
    text = [json.dumps({**head, **part}) for part in ({"meters": row}, {"devices": long})]
    good = Batch("edge-1", 1, 0, [Reading("m", 1, 1.0, 1.0, 1.0)])

    async def run() -> list[Letter]:
        await streams(nats, max_bytes=100_000_000)
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        room = connection.max_payload - 200
        for data in (
            *(zlib.compress(line.encode()) for line in text),
            garbage(room),
            encode(good)[1],
        ):
            await js.publish("power.fleet.edge-1", data, stream=STREAM)
        async with running_sink(engine, nats):
            await drained(nats)
        found = [letter async for letter in letters(js, "edge-1")]
        await connection.close()
        return found

    fan, float_, big = asyncio.run(run())
    assert fan.reason == "not as it should be: Invalid enum value 'fan' - at `$.meters[2][0]`"
    assert float_.reason == "not as it should be: Number out of range - at `$.devices[2][0]`"
    assert big.size > 1_000_000
    assert len(big.data) == LETTER_BYTES
    assert not big.is_whole
    assert count(engine) == 1


def test_a_flood_of_poison_holds_up_nobody(
    pm: PowerManager, nats: Nats, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The dead letters drop their oldest, the log has one line of it, and what another device sends
    is stored.
    """

    async def flood(js: JetStreamContext) -> None:
        taken = 0
        while taken < 400:
            with contextlib.suppress(APIError):  # where its share of the stream is full
                await js.publish("power.fleet.stolen", garbage(200), stream=STREAM)
                taken += 1

    async def run() -> None:
        await streams(nats, max_bytes=1_000_000)  # a tenth of it for the dead letters
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        async with running_sink(engine, nats):
            flooding = asyncio.ensure_future(flood(js))
            await send(pm, nats)
            await until(lambda: count(engine) == 300)
            await flooding
            await drained(nats)
        state = (await info(nats, DEAD_STREAM)).state
        assert 100 < state.messages < state.last_seq
        await connection.close()

    with caplog.at_level(logging.ERROR, "power_fleet"):
        asyncio.run(run())
    assert len([record for record in caplog.records if "stolen" in record.getMessage()]) == 1


def test_a_device_holds_no_more_of_the_stream_than_its_share(nats: Nats) -> None:
    """What is beyond is refused to it, and another device's message is taken."""

    async def run() -> None:
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        for number in range(DEVICE_MESSAGES):
            await js.publish("power.fleet.stolen", b"%d" % number, stream=STREAM)
        with pytest.raises(APIError, match="maximum messages per subject exceeded"):
            await js.publish("power.fleet.stolen", b"one more", stream=STREAM)
        await js.publish("power.fleet.edge-1", b"another's", stream=STREAM)
        assert await messages(nats) == DEVICE_MESSAGES + 1
        await connection.close()

    asyncio.run(run())


def test_a_device_beyond_its_quota_waits_and_loses_nothing(
    pm: PowerManager, nats: Nats, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The sink puts its messages back until its share has grown, and stores them all; others come
    first.
    """
    begun_at = time.monotonic()

    def clock() -> float:
        """Stands until the sink has said that messages wait, however slow the machine is."""
        return time.monotonic() if "more than its quota" in caplog.text else begun_at

    async def run() -> None:
        pm.log_many([(pm.list_meters()[0].id, 1.0, 1.0, 50.0, NOW - 2e6 - n) for n in range(5000)])
        await send(pm, nats)
        quota = Quota(messages=300, size=10**9, clock=clock)
        for _ in range(299):
            quota.wait_for("edge-1", 1)
        async with running_sink(engine, nats, quota=quota):
            await drained(nats)

    with caplog.at_level(logging.ERROR, "power_fleet"):
        asyncio.run(run())
    assert "it sends more than its quota: the rest waits" in caplog.text
    assert compare(pm, "edge-1", [engine.shards[engine.shard_of("edge-1")].clients[0]]) == 5300


def test_an_acknowledgement_is_no_message(
    nats: Nats, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """What one device has the server send under another's subject is neither stored nor that one's
    dead letter.
    """

    async def run() -> None:
        connection = await nats.connect("test")
        await connection.publish("power.fleet.stolen", b"x", reply="power.fleet.edge-1")
        await connection.flush()
        async with running_sink(engine, nats):
            await drained(nats)
        found = [letter.device_id async for letter in letters(connection.jetstream(timeout=SOON))]
        assert found == ["stolen"]
        await connection.close()

    with caplog.at_level(logging.ERROR, "power_fleet"):
        asyncio.run(run())
    assert "'edge-1': dropped what another device had the server send" in caplog.text


def test_two_sinks_share_the_work(pm: PowerManager, nats: Nats, engine: Engine) -> None:
    """Together they store everything once."""

    async def run() -> None:
        async with running_sink(engine, nats), running_sink(engine, nats):
            for _ in range(10):
                pm.log_many(
                    [(meter.id, 1.0, 1.0, 50.0) for meter in pm.list_meters() for _ in range(50)]
                )
                await send(pm, nats)
            await drained(nats)

    asyncio.run(run())
    assert compare(pm, "edge-1", [engine.shards[engine.shard_of("edge-1")].clients[0]]) == 2300


def test_freshness_waits_for_the_oldest_message(
    pm: PowerManager,
    nats: Nats,
    engine: Engine,
    old_urls: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a message waits in the stream, answers are no fresher than it; without one, they are of
    now.
    """
    monkeypatch.setattr("power_fleet.sink.FRESH_EVERY", 0.1)

    async def run() -> None:
        begin = datetime.now(timezone.utc).isoformat()
        async with running_sink(engine, nats):
            await until(lambda: (Fleet(old_urls).latest().fresh_as_of or "") > begin)
        assert (Fleet(old_urls).latest().fresh_as_of or "") <= datetime.now(
            timezone.utc
        ).isoformat()

    asyncio.run(run())
    emptied(old_urls)

    async def run_behind() -> None:
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        await make_consumer(js, 3600.0)  # no other sink gets what is held
        subscription = await js.pull_subscribe_bind("sink", STREAM)
        await send(pm, nats)
        held = await subscription.fetch(1, timeout=SOON)  # by a sink that hangs
        (message,) = held
        taken_in_us = to_microseconds(message.metadata.timestamp)
        async with running_sink(engine, nats):
            for _ in range(2):
                await until(lambda: Fleet(old_urls).latest().fresh_as_of)
                fresh = Fleet(old_urls).latest().fresh_as_of
                assert fresh is not None
                off_us = abs(to_microseconds(fresh) - taken_in_us)
                assert off_us <= 2, "the client rounds it to a float"
                emptied(old_urls)
        await message.ack()
        await connection.close()

    asyncio.run(run_behind())


def test_the_streams_are_as_promised(nats: Nats) -> None:
    """A work queue on disk that refuses what is new when it is full, and that nobody can purge;
    made again, it keeps all but its sizes.
    """

    async def run() -> None:
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        secret = await dead_subject(js)
        for size in (1_000_000, 2_000_000):
            await make_streams(js, 1, size)
            await make_dead_stream(js, 1, size // 10)
            config = (await js.stream_info(STREAM)).config
            kept = (
                config.retention,
                config.discard,
                config.max_bytes,
                config.storage,
                config.subjects,
                config.deny_delete,
                config.deny_purge,
            )
            assert kept == ("workqueue", "new", size, "file", ["power.fleet.*"], True, True)
            dead = (await js.stream_info(DEAD_STREAM)).config
            assert (dead.retention, dead.discard, dead.max_bytes) == ("limits", "old", size // 10)
            assert dead.deny_purge
            assert await dead_subject(js) == secret
        await connection.close()

    asyncio.run(run())


def test_a_stream_is_made_although_files_of_a_deleted_one_are_in_its_place(
    server: Server, nats: Nats
) -> None:
    """The server refuses the first attempt, and clears the place."""
    place = server.home / "store/jetstream/$G/streams" / STREAM

    async def run() -> None:
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        await js.delete_stream(STREAM)
        place.touch()
        with pytest.raises(ServerError, match="error creating store for stream"):
            await js.add_stream(name=STREAM, subjects=["power.fleet.*"])
        place.touch()
        await make_streams(js, 1, 10_000_000)
        assert await messages(nats) == 0
        await connection.close()

    asyncio.run(run())


def test_what_stays_in_the_stream_is_stored_once_more(
    tmp_path: Path, nats: Nats, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that waits is not one; one that stays at two looks is; the sink goes on with the
    new consumer.
    """
    looks = [7, None, 7, 7, None]

    async def seen(_: object) -> int | None:
        return looks.pop(0) if looks else None

    async def run() -> int:
        connection = await nats.connect("test")
        js = connection.jetstream(timeout=SOON)
        with PowerManager(tmp_path / "a.db") as pm:
            pm.register_device("a", "A")
            meter = pm.add_meter("a", "main")
            pm.log_power(meter.id, 12.0, 1.0)
            await send(pm, nats)
            assert await left_behind(js) is None  # all of it waits
            async with running_sink(engine, nats):
                await drained(nats)
                assert await left_behind(js) is None  # all of it has left the stream
                made = (await js.consumer_info(STREAM, CONSUMER)).created
                monkeypatch.setattr(hub, "left_behind", seen)
                watching = asyncio.ensure_future(hub._watch_stream(nats, 0.01))
                await until(lambda: not looks)
                watching.cancel()
                assert (await js.consumer_info(STREAM, CONSUMER)).created != made
                pm.log_power(meter.id, 12.0, 2.0)
                await send(pm, nats)
                await drained(nats)
        await connection.close()
        rows = engine.select("SELECT count() AS readings FROM power_readings FINAL")
        return sum(row["readings"] for row in rows)

    assert asyncio.run(run()) == 2
