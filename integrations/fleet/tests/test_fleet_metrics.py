"""What forwarders, sinks, the stream and the engine say about themselves."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_harness import Clock, emptied, random_device
from hub_process import running_hub
from pipeline import drained, quick, running_sink, until
from power_fleet import cli, metrics, tables, watch
from power_fleet.codec import Batch, Reading, encode
from power_fleet.engine import Engine
from power_fleet.forwarder import Sent, forward
from power_fleet.metrics import fleet_metrics, forward_metrics, registry_of, sink_metrics
from power_fleet.outbox import Outbox
from power_fleet.quota import Quota
from power_fleet.sink import Work
from power_fleet.stream import Nats
from power_fleet.subjects import STREAM, SUBJECT
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from servers import SOON, eventually

from power_manager import PowerManager, StorageError


@pytest.fixture
def engine(new_urls: list[str]) -> Engine:
    """An empty engine."""
    return Engine(emptied(new_urls))


@pytest.fixture
def pm(tmp_path: Path) -> Iterator[PowerManager]:
    """A device with 300 readings."""
    manager = random_device(tmp_path / "edge-1.db", 1, "edge-1", Clock())
    yield manager
    manager.close()


def values(text: str) -> dict[str, float]:
    """Metrics by name and labels, as Prometheus reads them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = "".join(f"[{value}]" for value in sample.labels.values())
            found[sample.name.removeprefix("power_fleet_") + labels] = sample.value
    return found


def of_registry(registry: CollectorRegistry) -> dict[str, float]:
    """The same of a registry."""
    return values(generate_latest(registry).decode())


async def publish(nats: Nats, device_id: str, messages: list[bytes]) -> None:
    """Put messages of a device into the stream."""
    connection = await nats.connect("test")
    for data in messages:
        await connection.jetstream(timeout=SOON).publish(
            SUBJECT + device_id, data, stream=STREAM, headers={"From": "test"}
        )
    await connection.close()


def test_a_sink_says_what_it_has_done(nats: Nats, engine: Engine) -> None:
    """Messages, readings, dead letters, and what waits because of a quota."""
    good = [
        encode(Batch("edge-1", 1, 0, [Reading("m", n, 1.0, 1.0, None)], line=1))[1]
        for n in range(3)
    ]
    work = Work()

    quota = Quota(messages=3, size=1e9, clock=Clock())  # no share grows, however long this takes

    async def run() -> None:
        await publish(nats, "edge-0", [b"first"])
        await publish(nats, "edge-1", good)
        await publish(nats, "edge-2", [b"garbage"] * 3)
        async with running_sink(engine, nats, quota, work=work):
            await drained(nats)
            await publish(nats, "edge-1", good[:1])
            await until(lambda: work.postponed)

    asyncio.run(run())
    found = of_registry(registry_of(lambda: sink_metrics(work)))
    assert found["sink_messages_total"] == 3
    assert found["sink_readings_total"] == 3
    assert found["sink_dead_letters_total"] == 4
    assert found["sink_postponed_messages_total"] >= 1
    assert found["sink_inserts_total"] >= 3
    assert found["sink_failures_total"] == 0
    assert found["sink_last_stored_timestamp_seconds"] > 1.7e9
    assert 0 <= found["sink_lag_seconds"] < 60


def test_a_forwarder_says_what_waits(nats: Nats, pm: PowerManager) -> None:
    """Before it has sent anything, and after."""
    sent = Sent(file=pm)
    registry = registry_of(lambda: forward_metrics(sent))
    before = of_registry(registry)
    assert before["forward_waiting_readings"] == 300
    assert before["forward_last_sent_timestamp_seconds"] == 0
    asyncio.run(forward(Outbox(pm), nats, 0.05, quick(), once=True, sent=sent))
    after = of_registry(registry)
    assert after["forward_waiting_readings"] == 0
    assert after["forward_readings_total"] == 300
    assert after["forward_messages_total"] > 1
    assert after["forward_line"] >= 1
    assert after["forward_failures_total"] == 0
    assert after["forward_last_sent_timestamp_seconds"] > 1.7e9


def test_stream_and_engine_are_shown(
    nats: Nats,
    engine: Engine,
    new_urls: list[str],
    pm: PowerManager,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What waits, what is dead, how fresh the engine is, and what is noticed about devices."""

    async def run() -> None:
        await forward(Outbox(pm), nats, 0.05, quick(), once=True)
        await publish(nats, "edge-2", [b"garbage"])
        async with running_sink(engine, nats):
            await drained(nats)
            await until(lambda: engine.select("SELECT 1 FROM power_fresh WHERE fresh > 0"))
        await publish(nats, "edge-2", [b"garbage"] * 2)

    asyncio.run(run())
    alarm = ["edge-1", watch.SILENT, 1, "", 0]
    engine.shards[0].insert("power_alarms", tables.ALARMS, [alarm])
    command = ["metrics", "--nats", nats.urls, "--clickhouse", new_urls[0]]
    assert cli.main(command) == 0
    found = values(capsys.readouterr().out)
    assert found["stream_up"] == found["engine_up"] == 1
    assert found["stream_messages"] == 2
    assert found["stream_bytes"] > 0
    assert found["stream_lag_seconds"] >= 0
    assert found["stream_dead_letters"] == 1
    assert found["devices"] == 1
    assert found["alarms[silent]"] == 1
    assert found["alarms[cloned]"] == 0
    assert found["fresh_timestamp_seconds"] > 1.7e9


def test_what_does_not_answer_is_said_to_be_down(
    engine: Engine, new_urls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is made up about it; the command fails, with what does answer printed."""
    assert cli.main(["metrics", "--nats", "nats://127.0.0.1:9", "--clickhouse", new_urls[0]]) == 1
    found = values(capsys.readouterr().out)
    assert found["stream_up"] == 0
    assert "stream_messages" not in found
    assert found["engine_up"] == 1
    text = asyncio.run(fleet_metrics(Engine(["http://127.0.0.1:9"]))).decode()
    assert values(text) == {"engine_up": 0}


def test_an_empty_engine_is_not_fresh(engine: Engine) -> None:
    """No sink has run yet: 0, which is no time of a fleet's."""
    found = values(asyncio.run(fleet_metrics(engine)).decode())
    assert (found["fresh_timestamp_seconds"], found["devices"]) == (0, 0)


# --- The file


def test_a_file_is_written_while_work_goes_on_and_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, with nothing beside it, and for others to read."""
    monkeypatch.setattr(metrics, "WRITE_SECONDS", 0.01)
    work = Work()
    path = tmp_path / "sink.prom"

    def written() -> dict[str, float]:
        return values(path.read_text())

    async def run() -> None:
        assert written()["sink_messages_total"] == 0
        work.messages = 7
        await until(lambda: written()["sink_messages_total"] == 7)
        work.messages = 9

    asyncio.run(metrics.with_metrics(run(), path, registry_of(lambda: sink_metrics(work))))
    assert written()["sink_messages_total"] == 9
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_that_cannot_be_written_is_said_at_the_start(
    tmp_path: Path, nats: Nats, new_urls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The program does not start: else nobody would miss the metrics."""
    path = tmp_path / "no directory" / "sink.prom"
    command = [
        "sink",
        "--nats",
        nats.urls,
        "--clickhouse",
        new_urls[0],
        "--metrics-file",
        str(path),
    ]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"power-fleet: {path}: No such file or directory; check that ")


def test_a_file_that_cannot_be_written_later_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, once as long as it lasts, and the work goes on."""
    monkeypatch.setattr(metrics, "WRITE_SECONDS", 0.01)
    attempts = 0

    def fail(path: Path, registry: CollectorRegistry) -> None:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            raise StorageError(path, "No space left on device")

    async def run() -> None:
        await until(lambda: attempts > 4)

    monkeypatch.setattr(metrics, "write_metrics", fail)
    path = tmp_path / "f.prom"
    asyncio.run(metrics.with_metrics(run(), path, CollectorRegistry()))
    assert caplog.messages == [f"{path}: No space left on device"]


def test_forward_and_close_write_files(
    nats: Nats, engine: Engine, new_urls: list[str], pm: PowerManager, tmp_path: Path
) -> None:
    """With --once the file says what was done."""
    path = tmp_path / "forward.prom"
    command = ["forward", "--once", "--db", str(tmp_path / "edge-1.db"), "--nats", nats.urls]
    assert cli.main([*command, "--metrics-file", str(path)]) == 0
    found = values(path.read_text())
    assert (found["forward_readings_total"], found["forward_waiting_readings"]) == (300, 0)
    path = tmp_path / "close.prom"
    command = ["close", "--once", "--clickhouse", new_urls[0], "--metrics-file", str(path)]
    assert cli.main(command) == 0
    found = values(path.read_text())
    assert found["close_last_look_timestamp_seconds"] > 1.7e9
    assert (found["close_hours_total"], found["close_failures_total"]) == (0, 0)


def test_a_hub_writes_a_file(tmp_path: Path) -> None:
    """What its sink and its closing of hours do."""
    path = tmp_path / "hub.prom"
    options = ("--nats-port", "0", "--no-service", "--metrics-file", str(path))
    with running_hub(tmp_path / "fleet", *options):
        eventually(path.exists)
    found = values(path.read_text())
    assert found["sink_failures_total"] == 0
    assert "close_hours_total" in found
