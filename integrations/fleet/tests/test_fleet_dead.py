"""`power-fleet dead`: an operator lists, reads, replays and drops what can never be stored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from fleet_harness import emptied, queried, run_command
from pipeline import drained, messages, running_sink, streams
from power_fleet.codec import Batch, Reading, encode
from power_fleet.dead import LETTER_BYTES
from power_fleet.engine import Engine
from power_fleet.stream import Nats
from power_fleet.subjects import STREAM
from servers import SOON, Servers

GOOD = Batch("edge-1", 1, 0, [Reading("m", 1, 1.0, 1.0, 1.0)])


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One NATS server for the module."""
    with Servers(tmp_path_factory.mktemp("nats")) as servers:
        servers.start_nats(1)
        yield servers.nats_url


@pytest.fixture
def nats(url: str, monkeypatch: pytest.MonkeyPatch) -> Nats:
    """Where it is, with empty streams; the command line finds it there too."""
    monkeypatch.setenv("POWER_FLEET_NATS", url)
    nats = Nats(url)
    asyncio.run(streams(nats))
    return nats


@pytest.fixture
def engine(old_urls: list[str]) -> Engine:
    """An empty engine."""
    return Engine(emptied(old_urls))


def buried(nats: Nats, engine: Engine, *wrong: tuple[str, bytes]) -> None:
    """Have a sink bury messages, each given with the id of its device."""

    async def run() -> None:
        connection = await nats.connect("test")
        for device_id, data in wrong:
            await connection.jetstream(timeout=SOON).publish(
                f"power.fleet.{device_id}", data, stream=STREAM, headers={"From": "test"}
            )
        async with running_sink(engine, nats):
            await drained(nats)
        await connection.close()

    asyncio.run(run())


def power_fleet(*arguments: str) -> int:
    """Run the command line."""
    return run_command("dead", *arguments)


def listed(capsys: pytest.CaptureFixture[str]) -> list[int]:
    """The numbers of the letters that there are."""
    capsys.readouterr()
    assert power_fleet("list", "--json") == 0
    return [letter["number"] for letter in json.loads(capsys.readouterr().out)]


def test_list_shows_what_is_wrong(
    nats: Nats, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line each with device, size and reason; of one device on request; JSON for programs."""
    buried(nats, engine, ("edge-1", b"garbage"), ("edge-2", b"rubbish!"))
    assert power_fleet("list") == 0
    out, error = capsys.readouterr()
    head, first, second = out.splitlines()
    assert head.split() == ["number", "device", "since", "bytes", "reason"]
    assert first.split()[:2] == ["1", "edge-1"]
    assert "neither compr" in first
    assert second.split()[:2] == ["2", "edge-2"]
    assert error == ""
    assert power_fleet("list", "--device", "edge-2", "--json") == 0
    (letter,) = json.loads(capsys.readouterr().out)
    assert (letter["device_id"], letter["bytes"], letter["whole"]) == ("edge-2", 8, True)


def test_list_of_none_says_so(nats: Nats, capsys: pytest.CaptureFixture[str]) -> None:
    """No head without lines, and the exit code is 0."""
    assert power_fleet("list") == 0
    assert capsys.readouterr() == ("no dead letters\n", "")


def test_read_shows_what_it_holds(
    nats: Nats, engine: Engine, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A batch as JSON, bytes that are none as hexadecimal text, and either as it came with
    --raw.
    """
    data = encode(GOOD)[1]
    buried(nats, engine, ("edge-2", data), ("edge-1", b"\x00\xffgarbage"))
    assert power_fleet("read", "1") == 0
    shown = json.loads(capsysbinary.readouterr().out)
    assert shown["content"]["device_id"] == "edge-1"
    assert shown["reason"] == "the subject is that of 'edge-2', the batch that of 'edge-1'"
    assert power_fleet("read", "2") == 0
    assert json.loads(capsysbinary.readouterr().out)["content"].startswith("00 ff 67")
    assert power_fleet("read", "--raw", "1") == 0
    assert capsysbinary.readouterr().out == data


def test_a_newer_format_waits_until_its_sink_is_upgraded(
    nats: Nats,
    engine: Engine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that was upgraded first loses nothing: replayed to the newer sink its readings are
    stored.
    """
    with monkeypatch.context() as before:
        before.setattr("power_fleet.codec.VERSION", 3)
        newer = encode(GOOD)[1]
    buried(nats, engine, ("edge-1", newer))
    assert queried(engine, "SELECT device_id FROM power_readings") == []
    monkeypatch.setattr("power_fleet.codec.VERSION", 3)  # the sink is upgraded
    assert power_fleet("replay", "--all") == 0
    assert capsys.readouterr().out == "replayed: 1 dead letter\n"
    assert listed(capsys) == []

    async def run() -> None:
        async with running_sink(engine, nats):
            await drained(nats)

    asyncio.run(run())
    assert queried(engine, "SELECT device_id, meter_id, at FROM power_readings FINAL") == [
        ("edge-1", "m", 1)
    ]


def test_replayed_poison_is_buried_again(
    nats: Nats, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a new number, at its own device's."""
    buried(nats, engine, ("edge-1", b"garbage"))
    assert power_fleet("replay", "1") == 0
    buried(nats, engine)
    assert listed(capsys) == [2]


def test_drop_deletes_those_that_are_named(
    nats: Nats, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """By number, by device, or all; the others stay."""
    buried(nats, engine, *((f"edge-{n}", b"%d" % n) for n in (1, 2, 2, 3, 4)))
    assert power_fleet("drop", "1", "5") == 0
    assert listed(capsys) == [2, 3, 4]
    assert power_fleet("drop", "--device", "edge-2") == 0
    assert listed(capsys) == [4]
    assert power_fleet("drop", "--all") == 0
    assert listed(capsys) == []


def test_what_was_cut_off_is_not_replayed(
    nats: Nats, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is anything named with it, and the message says how much there is."""
    long = b"x" * (LETTER_BYTES + 1)
    buried(nats, engine, ("edge-1", b"garbage"), ("edge-1", long))
    assert power_fleet("replay", "--all") == 1
    assert "dead letter 2 holds 131072 of 131073 bytes" in capsys.readouterr().err
    assert listed(capsys) == [1, 2]
    assert asyncio.run(messages(nats)) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["drop"], 2, "name letters by their numbers, or give --device ID or --all"),
        (["drop", "1", "--all"], 2, "name letters by their numbers, or give --device ID or --all"),
        (["read", "9"], 1, "no dead letter has the number 9; there are: 1 to 1"),
        (["replay", "1", "9"], 1, "no dead letter has the number 9; there are: 1 to 1"),
    ],
    ids=["nothing", "two ways", "unknown", "one of them unknown"],
)
def test_wrong_use_changes_nothing(
    nats: Nats,
    engine: Engine,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    """One line says what is wrong and what there is."""
    buried(nats, engine, ("edge-1", b"garbage"))
    capsys.readouterr()
    assert power_fleet(*arguments) == code
    assert message in capsys.readouterr().err
    assert listed(capsys) == [1]
