"""Tables, shards and subjects that are what they should be; and all parts under fire for a
moment.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fleet_harness import Clock, carry, queried, random_device
from nats.errors import NoServersError
from power_fleet import engine as engine_module
from power_fleet import schema, tables
from power_fleet.backoff import Backoff
from power_fleet.engine import Connection, Engine, EngineError, _warn_of_plain_password
from power_fleet.errors import Refused
from power_fleet.hours import close_hours
from power_fleet.stream import Nats
from power_fleet.subjects import device_of, token
from servers import SOON, Servers, eventually

from power_manager import HOUR_US


def test_making_tables_again_changes_nothing(every_urls: list[str], tmp_path: Path) -> None:
    """What is stored stays; the statements are all CREATE ... IF NOT EXISTS."""
    engine = Engine(every_urls)
    with random_device(tmp_path / "a.db", 1, "edge-1", Clock()) as pm:
        carry(pm, engine)
    before = queried(engine, "SELECT toInt64(count()) FROM power_readings FINAL")
    assert all(text.startswith("CREATE TABLE IF NOT EXISTS") for text in schema.create(engine))
    assert queried(engine, "SELECT toInt64(count()) FROM power_readings FINAL") == before
    schema.check_all(engine)


def test_a_reading_lies_in_its_hour_and_month(every_urls: list[str]) -> None:
    """The engine says so itself; a clock that is decades wrong goes to the first or the last
    month.
    """
    shard = Engine(every_urls).shards[0]
    times = {1_790_000_000_000_000: "202609", 60: "202001", 7_000_000_000_000_000: "210012"}
    rows = [["a", "m", at, None, None, 50.0, 0, 0, 0] for at in times]
    shard.insert("power_readings", tables.READINGS, rows)
    found = shard.select("SELECT at, hour FROM power_readings ORDER BY at")
    assert {row["at"]: row["hour"] for row in found} == {at: at // HOUR_US for at in times}
    parts = shard.select(
        "SELECT partition FROM system.parts "
        "WHERE database = currentDatabase() AND table = 'power_readings' AND active"
    )
    assert {row["partition"] for row in parts} == set(times.values())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("(name String, other UInt64) ENGINE = MergeTree ORDER BY name", "lacks the column fresh"),
        (
            "(name String, fresh Int64) ENGINE = MergeTree ORDER BY name",
            "fresh is Int64, not UInt64",
        ),
        (
            "(name String, fresh UInt64, more UInt8) ENGINE = MergeTree ORDER BY name",
            "has a column more",
        ),
        (
            "(name String, fresh UInt64) ENGINE = MergeTree ORDER BY (fresh, name)",
            "sorted by fresh, name, not by name",
        ),
    ],
    ids=["lacks one", "another type", "one more", "another key"],
)
def test_a_table_of_another_shape_is_refused_by_name(
    new_urls: list[str], wrong: str, said: str
) -> None:
    """One of a development version, or of somebody else: nothing is stored into it."""
    engine = Engine(new_urls)
    client = engine.shards[0].clients[0]
    client.command("DROP TABLE power_fresh")
    client.command(f"CREATE TABLE power_fresh {wrong}")
    try:
        for ask in (schema.create, schema.check_all):
            with pytest.raises(Refused, match=f"power_fresh is not this version's.*{said}"):
                ask(engine)
    finally:
        client.command("DROP TABLE power_fresh")
        schema.create(engine)


def test_shards_named_in_another_order_are_refused(old_urls: list[str]) -> None:
    """Their devices would be looked for where they are not, and stored twice."""
    for wrong in (old_urls[::-1], old_urls[:1]):
        with pytest.raises(Refused, match="in the order in which they were made"):
            schema.check_all(Engine(wrong))
    with pytest.raises(Refused, match="once for each shard"):
        Engine([])


def test_replicas_each_have_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One insert on one replica is on both when it returns; with one of them dead it is refused,
    and reads go on.
    """
    with Servers(tmp_path / "servers") as servers:
        servers.start_clickhouse(1, 2)
        engine = Engine(servers.clickhouse_urls)
        with pytest.raises(Refused, match="run power-fleet schema"):
            schema.check_all(engine)
        assert all("Replicated" in text for text in schema.create(engine))
        with random_device(tmp_path / "a.db", 1, "edge-1", Clock()) as pm:
            carry(pm, engine, times=2)
            sql = "SELECT toInt64(count()) FROM power_readings FINAL"
            for client in engine.shards[0].clients:
                assert client.query(sql).result_rows == [(300,)]
            assert close_hours(engine, int(2e15)) > 0
            servers.shards[0][0].kill()
            assert queried(engine, sql) == [(300,)]
            pm.log_power(pm.list_meters()[0].id, 1.0, 1.0)
            monkeypatch.setattr(engine_module, "QUORUM_MS", 1_000)  # it is missed in any case
            with pytest.raises(EngineError):
                carry(pm, Engine(servers.clickhouse_urls))


# Each row takes a second, and is a block by itself; the question is told by the name.
SLOW = "SELECT count() AS slow FROM (SELECT sleepEachRow(1) FROM slow) SETTINGS max_threads = 1"
ROWS = 2  # of a replica that answers
MANY_ROWS = int(SOON)  # of one that is still at work when it is made to hang


def add_rows(client: Connection, count: int) -> None:
    """Give a replica a table of its own with that many rows."""
    client.command("CREATE TABLE slow (number UInt64) ENGINE = Memory")
    for number in range(count):
        client.command(f"INSERT INTO slow SELECT {number}")


def is_asked(client: Connection) -> bool:
    """Whether a replica is at work on the slow question."""
    sql = """SELECT count() AS asked FROM system.processes
        WHERE query LIKE '%AS slow%' AND query NOT LIKE '%processes%'"""
    (row,) = client.query(sql).named_results()
    return bool(row["asked"])


def test_a_replica_that_hangs_costs_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is asked, whether it hangs before it is asked or in the middle; one that only
    works is waited for.

    It looks more often than it would, so that the test is not as long.
    """
    monkeypatch.setattr(engine_module, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(engine_module, "PING_SECONDS", SOON)
    with Servers(tmp_path / "servers") as servers:
        servers.start_clickhouse(1, 2)
        engine = Engine(servers.clickhouse_urls)
        schema.create(engine)
        (shard,) = engine.shards
        first, second = shard.clients
        hung = servers.shards[0][0].process
        assert hung is not None

        for client in (first, second):
            add_rows(client, ROWS)
        assert queried(shard, SLOW) == [(ROWS,)]
        assert shard.clients == [first, second], "it gave signs of life meanwhile"

        first.command("DROP TABLE slow")
        add_rows(first, MANY_ROWS)
        monkeypatch.setattr(engine_module, "PING_SECONDS", 5.0)
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(queried, shard, SLOW)
            eventually(lambda: is_asked(first))
            hung.send_signal(signal.SIGSTOP)
            begin = time.monotonic()
            try:
                assert answer.result() == [(ROWS,)]
                took = time.monotonic() - begin
                assert shard.clients == [second, first]
                shard.clients = [first, second]
                assert queried(shard, "SELECT 1") == [(1,)]
                assert shard.clients == [second, first]
            finally:
                hung.send_signal(signal.SIGCONT)
        assert took < engine_module.ANSWER_SECONDS, "it was not waited for"


@pytest.mark.parametrize(
    ("url", "is_said"),
    [
        ("http://sink:hidden@clickhouse.example:8123", True),
        ("https://sink:hidden@clickhouse.example:8443", False),
        ("http://clickhouse.example:8123", False),
        ("http://sink:hidden@127.0.0.1:8123", False),
    ],
)
def test_a_password_without_tls_is_warned_of(
    url: str, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Once of each server that is not this machine; the password is not in the warning."""
    _warn_of_plain_password.cache_clear()
    for _ in range(2):
        Engine([url])
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == is_said
    assert all("without TLS" in text and "hidden" not in text for text in warnings)


def test_a_server_that_hangs_when_it_is_connected_to_costs_seconds_once() -> None:
    """However many threads ask at once: each would otherwise wait for it after the other."""
    with socket.socket() as silent:  # it takes connections, and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        silent.setblocking(False)
        shard = Engine([f"http://127.0.0.1:{silent.getsockname()[1]}"]).shards[0]
        at_once = threading.Barrier(8)

        def ask() -> None:
            at_once.wait()
            queried(shard, "SELECT 1")

        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(ask) for _ in range(8)]
        for answer in asked:
            with pytest.raises(EngineError, match="gives no sign of life"):
                answer.result()
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # one of the eight has tried it
            silent.accept()


def test_an_engine_that_another_program_has_open_is_said_in_one_line(tmp_path: Path) -> None:
    """A sink has it, say: who asks beside it is told why that cannot be, with exit code 1."""
    url = f"chdb://{tmp_path}/engine"
    script = f"""
import subprocess, sys
from power_fleet import schema
from power_fleet.engine import Engine
engine = Engine(["{url}"])
schema.create(engine)
beside = [sys.executable, "-m", "power_fleet", "budget", "--clickhouse", "{url}"]
run = subprocess.run(beside, capture_output=True, text=True)
print(run.returncode, run.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.startswith("1 ")
    assert f"power-fleet: {url}: one program at a time may have it open" in run.stdout
    assert "Traceback" not in run.stdout


def test_an_insert_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    """Every file of the part that it made has been synced, and the part's directory: seen by
    strace.
    """
    script = f"""
from power_fleet import schema, tables
from power_fleet.engine import Engine
engine = Engine(["chdb://{tmp_path}/engine"])
schema.create(engine)
print("stored", flush=True)
engine.shards[0].insert("power_seen", tables.SEEN, [["edge-1", 1, "f", 0, 1]])
"""
    trace = tmp_path / "trace"
    command = [
        "strace",
        "-f",
        "-y",
        "-e",
        "trace=fsync,fdatasync",
        "-o",
        str(trace),
        sys.executable,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [*command, "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr
    synced = trace.read_text()
    (one, *_) = (tmp_path / "engine").rglob("data.bin")  # a small part has all columns in it
    part = one.parent
    for file in part.iterdir():
        assert f"{part.parent.name}/tmp_insert_{part.name}/{file.name}>" in synced
    assert f"{part.parent.name}/{part.name}>" in synced, "the directory, after it got its name"
    assert f"{part.parent.name}>" in synced, "and the one that holds it"


def test_a_device_is_on_one_shard() -> None:
    """Which one depends on its id alone, and they share the devices about equally."""
    engine = Engine(["http://127.0.0.1:9", "http://127.0.0.1:10"])
    numbers = [engine.shard_of(f"edge-{number}") for number in range(1000)]
    assert numbers == [
        Engine(["http://h:1", "http://h:2"]).shard_of(f"edge-{number}") for number in range(1000)
    ]
    assert 400 < sum(numbers) < 600


@pytest.mark.parametrize("device_id", ["edge-1", "a.b", "*", ">", "a b", "电池", "%2E", "a/b"])
def test_any_id_is_one_token_of_a_subject(device_id: str) -> None:
    """And is read back from it."""
    assert not set(token(device_id)) & set(".*> \t")
    assert device_of("power.fleet." + token(device_id)) == device_id


def test_waits_double_up_to_a_limit_and_differ() -> None:
    """From half of the time to all of it; success begins again."""
    least, most = Backoff(1.0, 8.0, lambda: 0.0), Backoff(1.0, 8.0, lambda: 1.0)
    assert [least.next() for _ in range(5)] == [0.5, 1.0, 2.0, 4.0, 4.0]
    assert [most.next() for _ in range(5)] == [1.0, 2.0, 4.0, 8.0, 8.0]
    most.reset()
    assert most.next() == 1.0


def test_an_outage_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each failure of another kind too, and its end; a log must not fill while a device has no
    network for weeks.
    """
    backoff = Backoff(0.0, 0.0)

    async def outage() -> None:
        for text in ("no route", "no route", "refused", "refused", "refused"):
            await backoff.wait("not sent", OSError(text))

    asyncio.run(outage())
    backoff.reset()
    backoff.reset()
    asyncio.run(outage())
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    once = ["not sent, again in 0.0 s: no route", "not sent, again in 0.0 s: refused"]
    assert said == [*once, "it works again, after 5 failures", *once]


def test_a_server_that_is_not_there_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is tried."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and not listening: nobody else can take the port
        to = Nats(f"nats://127.0.0.1:{nobody.getsockname()[1]}")
        for _ in range(2):
            with pytest.raises(NoServersError):
                asyncio.run(to.connect("test"))
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
