"""Devices are listed, retired, replaced and deleted, and what an operator did holds whatever
arrives afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_common import same
from fleet_harness import NOW, SEQUENCES, Clock, batches_of, carry, emptied, queried
from power_fleet import __version__, cli, tables
from power_fleet.codec import Batch
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from power_fleet.life import (
    FleetDevice,
    Retirement,
    delete_device,
    last_sequence,
    list_devices,
    replace_device,
    retire,
)
from power_fleet.outbox import Outbox
from power_fleet.sink import rows_of, store
from power_fleet.stream import Nats, make_streams
from power_fleet.watch import look
from servers import SOON, Servers

from power_manager import NotFound, PowerManager, PowerManagerError

LATER = Clock(NOW + 7200)


@pytest.fixture
def engine(new_urls: list[str]) -> Engine:
    """An empty engine."""
    return Engine(emptied(new_urls))


@pytest.fixture
def make_file(tmp_path: Path) -> Iterator[Callable[[str], PowerManager]]:
    """What makes a file of one device with a battery and readings."""
    files: list[PowerManager] = []

    def make(device_id: str, name: str = "") -> PowerManager:
        pm = PowerManager(tmp_path / f"{name or device_id}-{len(files)}.db", clock=Clock())
        files.append(pm)
        pm.register_device(device_id, name or device_id.upper())
        meter = pm.add_meter(device_id, "battery", 50.0)
        pm.log_many([(meter.id, 12.0, 1.0, 50.0, NOW - 60 * minute) for minute in range(90)])
        pm.trigger_event(device_id, "restore")
        return pm

    yield make
    for pm in files:
        pm.close()


def stored(engine: Engine, batches: list[Batch], at: float = NOW) -> None:
    """Store what the stream took in then."""
    store(engine, rows_of([(batch, int(at * 1e6)) for batch in batches], engine))


def one(engine: Engine, device_id: str) -> FleetDevice:
    """What the list says of a device."""
    (found,) = [device for device in list_devices(engine) if device.device_id == device_id]
    return found


def rows_left(engine: Engine, device_id: str) -> dict[str, int]:
    """How many rows of each table name the device; none where there are none."""
    counts = {}
    for table in tables.TABLES:
        if "device_id" in tables.TABLES[table].columns:
            sql = f"SELECT toInt64(count()) FROM {table} WHERE device_id = %(device)s"
            ((count,),) = queried(engine, sql, device=device_id)
            counts[table] = int(count)
    return {table: count for table, count in counts.items() if count}


def test_devices_are_listed(engine: Engine, make_file: Callable[[str], PowerManager]) -> None:
    """Where each is, which file and version of the program it has, and when something of it came
    last.
    """
    pm = make_file("edge-1")
    box = Outbox(pm, "roof")
    batches = batches_of(box)
    stored(engine, batches)
    pm.log_power(pm.list_meters()[0].id, 12.0, 1.0)
    stored(engine, batches_of(box), NOW + 30)
    stored(engine, batches_of(Outbox(make_file("edge-0"))))
    first, second = list_devices(engine)
    assert first.device_id == "edge-0"
    assert second == FleetDevice(
        "edge-1",
        "EDGE-1",
        "roof",
        __version__,
        pm.file_id,
        batches[0].line,
        "2026-09-21T14:13:20.000000+00:00",
        "2026-09-21T14:13:50.000000+00:00",
    )


def test_retired_and_taken_back(engine: Engine, make_file: Callable[[str], PowerManager]) -> None:
    """A device, or a meter of it; again it changes nothing, whatever the clock says."""
    pm = make_file("edge-1")
    meter = pm.list_meters()[0].id
    carry(pm, engine)
    for id_, meter_id in (("edge-1", ""), (meter, meter)):
        for step, undo in enumerate((False, True, False)):
            clock = Clock(NOW - 1000.0 * step)
            done = retire(engine, id_, undo, clock=clock)
            assert done == Retirement("edge-1", meter_id, not undo, True)
            assert one(engine, "edge-1").retired is (not undo or meter_id != "")
            assert retire(engine, id_, undo, clock=clock).is_new is False
    rows = queried(engine, "SELECT meter_id, retired FROM power_retired FINAL ORDER BY meter_id")
    assert rows == [("", 1), (meter, 1)]


def test_what_is_not_known_cannot_be_retired(
    engine: Engine, make_file: Callable[[str], PowerManager]
) -> None:
    """Nor what is a device and a meter, until it is said which."""
    pm = make_file("edge-1")
    carry(pm, engine)
    meter = pm.list_meters()[0].id
    with pytest.raises(NotFound, match="no device or meter of the fleet has the id 'edge-9'"):
        retire(engine, "edge-9")
    with pytest.raises(NotFound, match="no meter of the fleet has the id 'edge-1'"):
        retire(engine, "edge-1", kind="meter")
    carry(make_file(meter), engine)
    with pytest.raises(PowerManagerError, match="give --kind device or --kind meter"):
        retire(engine, meter)
    assert retire(engine, meter, kind="meter").device_id == "edge-1"
    assert retire(engine, meter, kind="device").meter_id == ""


def test_replaced(engine: Engine, make_file: Callable[[str], PowerManager]) -> None:
    """The old one is retired, and says by which; wrong ones are refused, and nothing is noted."""
    for id_ in ("old", "new", "newer"):
        carry(make_file(id_), engine)
    for wrong, said in (
        (("old", "old"), "cannot replace itself"),
        (("old", "none"), "no device of the fleet has the id 'none'"),
        (("none", "new"), "no device of the fleet has the id 'none'"),
    ):
        with pytest.raises(PowerManagerError, match=said):
            replace_device(engine, *wrong)
    assert queried(engine, "SELECT 1 FROM power_retired") == []
    replace_device(engine, "old", "new")
    assert (one(engine, "old").retired, one(engine, "old").replaced_by) == (True, "new")
    assert one(engine, "new").retired is False
    with pytest.raises(PowerManagerError, match=r"'old' is retired itself: .* --undo old"):
        replace_device(engine, "newer", "old")
    replace_device(engine, "new", "newer")
    retire(engine, "old", undo=True)
    assert (one(engine, "old").retired, one(engine, "old").replaced_by) == (False, "")


def test_everything_of_a_deleted_device_goes(
    engine: Engine, new_urls: list[str], make_file: Callable[[str], PowerManager]
) -> None:
    """Physically; another device's rows stay, and a forwarder that starts later begins again."""
    pm, other = make_file("edge-1"), make_file("edge-2")
    carry(pm, engine)
    carry(other, engine)
    retire(engine, "edge-1")
    before = rows_left(engine, "edge-2")
    delete_device(engine, "edge-1", next(SEQUENCES), clock=LATER)
    assert rows_left(engine, "edge-1") == {
        "power_deletions": 1,
        "power_alarms": 1,
        "power_devices": 1,
    }
    assert rows_left(engine, "edge-2") == before
    fleet = Fleet(new_urls, clock=LATER)
    assert list(fleet.budget().value) == ["edge-2"]
    assert [row["device_id"] for row in fleet.silent(0).value] == ["edge-2"]
    assert [device.device_id for device in list_devices(engine)] == ["edge-2"]
    pm.log_power(pm.list_meters()[0].id, 24.0, 1.0)
    carry(pm, engine, clock=LATER)
    assert list(fleet.budget().value) == ["edge-1", "edge-2"]
    assert one(engine, "edge-1").retired is False
    rows = queried(
        engine,
        "SELECT voltage FROM power_readings FINAL WHERE deleted = 0 AND device_id = 'edge-1'",
    )
    assert rows == [(24.0,)]


def test_what_was_sent_before_the_deletion_brings_nothing_back(
    engine: Engine, new_urls: list[str], make_file: Callable[[str], PowerManager]
) -> None:
    """Messages that waited in the stream, and a forwarder that goes on in its old line: that is
    said.
    """
    pm = make_file("edge-1")
    box = Outbox(pm)
    waiting = batches_of(box)
    stored(engine, waiting[:1])
    delete_device(engine, "edge-1", next(SEQUENCES), clock=LATER)
    stored(engine, waiting[1:])
    fleet = Fleet(new_urls, clock=LATER)
    assert fleet.budget().value == {}
    assert fleet.silent(0).value == []
    assert list_devices(engine) == []
    pm.log_power(pm.list_meters()[0].id, 24.0, 1.0)
    stored(engine, batches_of(box), LATER.now + 60)
    assert fleet.latest().value == []
    assert one(engine, "edge-1").deleted is True
    assert queried(engine, "SELECT 1 FROM power_readings FINAL WHERE deleted = 0") == []
    delete_device(engine, "edge-1", next(SEQUENCES), force=True, clock=LATER)
    assert list_devices(engine) == []
    carry(pm, engine)
    assert one(engine, "edge-1").deleted is False


def test_a_device_that_sends_is_not_deleted(
    engine: Engine, make_file: Callable[[str], PowerManager]
) -> None:
    """What it goes on sending would be lost; nor one that is not there."""
    carry(make_file("edge-1"), engine)
    before = rows_left(engine, "edge-1")
    with pytest.raises(PowerManagerError, match=r"'edge-1' was heard from 10 min ago: .* --force"):
        delete_device(engine, "edge-1", next(SEQUENCES), clock=Clock(NOW + 600))
    with pytest.raises(NotFound, match="'edge-9'"):
        delete_device(engine, "edge-9", next(SEQUENCES))
    assert rows_left(engine, "edge-1") == before
    delete_device(engine, "edge-1", next(SEQUENCES), force=True, clock=Clock(NOW + 600))
    assert list_devices(engine) == []


@pytest.fixture
def power_fleet(
    engine: Engine, new_urls: list[str], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line: its exit code and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main([*arguments, "--clickhouse", new_urls[0]])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_commands(
    engine: Engine,
    make_file: Callable[[str], PowerManager],
    power_fleet: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    """What each prints, and how it ends."""
    assert power_fleet("devices")[:2] == (
        0,
        "no devices yet: `power-fleet forward` sends one's file\n",
    )
    for id_ in ("edge-1", "edge-2", "edge-3"):
        carry(make_file(id_), engine, site="roof")
    assert power_fleet("retire", "edge-1")[:2] == (0, "edge-1 is retired\n")
    assert power_fleet("retire", "edge-1")[1] == "edge-1 was retired before: nothing changed\n"
    assert power_fleet("retire", "edge-1", "--undo")[1] == "edge-1 is not retired\n"
    assert power_fleet("replace", "edge-1", "edge-2") == (
        0,
        "edge-2 has taken the place of edge-1, which is retired\n",
        "",
    )
    assert power_fleet("retire", "edge-9") == (
        1,
        "",
        "power-fleet: no device or meter of the fleet has the id 'edge-9'\n",
    )
    code, table, said = power_fleet("devices")
    assert (code, said) == (0, "")
    assert "replaced by edge-2" in table
    found: list[dict[str, Any]] = json.loads(power_fleet("devices", "--json")[1])
    assert [(row["device_id"], row["site"], row["retired"]) for row in found] == [
        ("edge-1", "roof", True),
        ("edge-2", "roof", False),
        ("edge-3", "roof", False),
    ]
    with Servers(tmp_path / "nats") as servers:
        servers.start_nats()
        nats = ["--nats", servers.nats_url]
        source = Nats(servers.nats_url)

        async def streams() -> int:
            connection = await source.connect("test")
            await make_streams(connection.jetstream(timeout=SOON), 1, 10**6, first_sequence=10**6)
            await connection.close()
            return await last_sequence(source)

        assert asyncio.run(streams()) == 10**6 - 1
        code, _, said = power_fleet("delete", "edge-3", *nats)
        assert code == 1
        assert said.startswith("power-fleet: Delete everything of edge-3 from the engine? ")
        assert said.endswith("give --yes\n")
        assert power_fleet("delete", "edge-3", "--yes", *nats) == (
            0,
            "everything of edge-3 is deleted\n",
            "",
        )
    assert [device.device_id for device in list_devices(engine)] == ["edge-1", "edge-2"]


def noticed(engine: Engine, at: float) -> tuple[str, ...]:
    """What is noticed of the device, as the stream was then."""
    engine.shards[0].insert("power_fresh", tables.FRESH, [["stream", int(at * 1e6)]])
    look(engine)
    return one(engine, "edge-1").alarms


def logged(pm: PowerManager, box: Outbox, engine: Engine, at: float) -> None:
    """A live reading that the stream takes in then."""
    pm.log_power(pm.list_meters()[0].id, 12.0, 1.0)
    stored(engine, batches_of(box), at)


@pytest.fixture
def sending(
    engine: Engine, make_file: Callable[[str], PowerManager]
) -> tuple[PowerManager, Outbox]:
    """A device whose forwarder is at work."""
    pm = make_file("edge-1")
    box = Outbox(pm)
    stored(engine, batches_of(box))
    return pm, box


def copied(pm: PowerManager, path: Path) -> PowerManager:
    """A copy of the file as it is now, by cp."""
    with (
        contextlib.closing(sqlite3.connect(pm.db_path)) as source,
        contextlib.closing(sqlite3.connect(path)) as target,
    ):
        source.backup(target)
    return PowerManager(path, clock=Clock())


def test_a_cloned_image_is_noticed(
    engine: Engine, sending: tuple[PowerManager, Outbox], tmp_path: Path
) -> None:
    """Two devices have one card's content; it is over when one of them has stopped for an hour."""
    pm, box = sending
    with copied(pm, tmp_path / "clone.db") as clone:
        assert clone.file_id == pm.file_id
        other = Outbox(clone)
        logged(clone, other, engine, NOW + 10)
        assert noticed(engine, NOW + 11) == ()
        logged(pm, box, engine, NOW + 120)
        logged(clone, other, engine, NOW + 130)
        assert noticed(engine, NOW + 131) == ("cloned",)
        logged(pm, box, engine, NOW + 3900)
        assert "cloned" not in noticed(engine, NOW + 3901)


def test_a_restored_file_is_noticed_and_right_at_once(
    engine: Engine,
    new_urls: list[str],
    sending: tuple[PowerManager, Outbox],
    tmp_path: Path,
) -> None:
    """Copied back by cp, with a clock that is years behind."""
    pm, box = sending
    with copied(pm, tmp_path / "old.db") as old:
        for step in range(5):
            logged(pm, box, engine, NOW + step)
    with PowerManager(tmp_path / "old.db", clock=Clock(NOW - 1e8)) as old:
        meter = old.list_meters()[0]
        old.log_power(meter.id, 3.0, 1.0, charge_pct=7.0)
        stored(engine, batches_of(Outbox(old)), NOW + 60)
        assert Fleet(new_urls, clock=Clock()).latest().value == old.list_meters()
    assert noticed(engine, NOW + 61) == ("restored",)


def test_a_new_card_takes_the_place_of_the_old_one(
    engine: Engine,
    new_urls: list[str],
    sending: tuple[PowerManager, Outbox],
    make_file: Callable[..., PowerManager],
) -> None:
    """The old card's meters leave budget, latest and report at once, and their energy stays."""
    assert sending[1].take().batches == []
    fleet = Fleet(new_urls, clock=Clock())
    (before,) = fleet.energy().value
    card = make_file("edge-1", "New card")
    carry(card, engine)
    assert noticed(engine, NOW + 1) == ("replaced",)
    assert fleet.latest().value == card.list_meters()
    assert same(card.power_budget_check(["edge-1"]), fleet.budget().value)
    report = json.loads(fleet.report("edge-1").value)
    assert [meter["meter_id"] for meter in report["meters"]] == [card.list_meters()[0].id]
    (after,) = fleet.energy().value
    assert after["energy_out_wh"] == pytest.approx(2 * before["energy_out_wh"])
