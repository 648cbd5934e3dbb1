"""What a device deletes leaves the engine, whatever the order in which messages arrive, and nothing
else does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from chaos_common import compare, same
from fleet_harness import HOUR, NOW, Clock, batches_of, carry, queried, random_device, same_json
from power_fleet import codec, deletions
from power_fleet.codec import Batch
from power_fleet.engine import Engine, EngineError, Shard
from power_fleet.fleet import Fleet
from power_fleet.hours import close_hours
from power_fleet.outbox import Outbox
from power_fleet.sink import rows_of, store

from power_manager import NotFound, PowerManager

NOW_US = int(NOW * 1e6)
ID = "edge-1"


@pytest.fixture
def clock() -> Clock:
    """The clock of the file and of the fleet."""
    return Clock()


@pytest.fixture
def pm(tmp_path: Path, clock: Clock) -> Iterator[PowerManager]:
    """A device of four meters with readings of ten days."""
    with random_device(tmp_path / "a.db", 1, ID, clock) as manager:
        yield manager


def stored(engine: Engine, *batches: Batch) -> None:
    """Store each batch by itself."""
    for batch in batches:
        store(engine, rows_of([(batch, NOW_US)], engine))


def assert_equal(pm: PowerManager, engine: Engine, urls: list[str], clock: Clock) -> None:
    """The engine is what the file is, while hours are open and when they are closed."""
    fleet = Fleet(urls, clock=clock)
    for _ in range(2):
        compare(pm, ID, [engine.shards[engine.shard_of(ID)].clients[0]])
        assert pm.list_meters() == fleet.latest().value
        for days in (1.0, 20.0):
            assert same_json(pm.export_report(ID, days), fleet.report(ID, days).value)
        assert same(pm.power_budget_check([ID]), fleet.budget().value)
        close_hours(engine, NOW_US)
    assert close_hours(engine, NOW_US) == 0, "there is nothing left to do"


def test_deleted_readings_go_and_their_hours_are_right(
    pm: PowerManager, urls: list[str], clock: Clock
) -> None:
    """Of a range, of all up to a time and of a whole meter; the other meters of the same hours
    stay.
    """
    engine = Engine(urls)
    carry(pm, engine, clock=clock)
    close_hours(engine, NOW_US)
    first, second, third, _ = pm.list_meters()
    assert pm.delete_readings(first.id, since=NOW - 90 * HOUR, until=NOW - 30.5 * HOUR) > 0
    assert pm.delete_readings(second.id, until=NOW - 100 * HOUR) > 0
    assert pm.delete_readings(third.id) > 0
    carry(pm, engine, clock=clock, times=2)
    assert pm.pending_deletions() == []
    assert_equal(pm, engine, urls, clock)


def test_readings_recorded_in_place_of_deleted_ones_stay(
    pm: PowerManager, urls: list[str], clock: Clock
) -> None:
    """A range is corrected: the same instants have other values, and a deletion that comes again
    changes nothing.
    """
    engine = Engine(urls)
    outbox = Outbox(pm)
    stored(engine, *batches_of(outbox))
    meter = pm.list_meters()[0]
    wrong = list(pm.iter_history(meter.id))
    pm.delete_readings(meter.id)
    pm.log_many([(meter.id, 5.0, 0.5, 50.0, reading.timestamp) for reading in wrong[::2]])
    batches = batches_of(outbox)
    stored(engine, *batches, *batches)
    assert_equal(pm, engine, urls, clock)
    rows = queried(
        engine,
        "SELECT DISTINCT voltage FROM power_readings FINAL "
        "WHERE deleted = 0 AND meter_id = %(meter)s",
        meter=meter.id,
    )
    assert rows == [(5.0,)]


def test_a_deleted_meter_goes(pm: PowerManager, urls: list[str], clock: Clock) -> None:
    """With its readings; its events stay, as on the device."""
    engine = Engine(urls)
    meter = pm.list_meters()[1]
    pm.trigger_event(ID, "restore", meter_id=meter.id)
    carry(pm, engine, clock=clock)
    pm.delete_meter(meter.id)
    carry(pm, engine, clock=clock)
    assert_equal(pm, engine, urls, clock)
    assert meter.id in Fleet(urls, clock=clock).report(ID, 20).value, "its event names it"


def test_a_deleted_device_is_gone_and_may_come_back(
    pm: PowerManager, urls: list[str], clock: Clock
) -> None:
    """Unknown, and not silent; registered again, it begins with nothing, also by a clock that was
    set back.
    """
    engine = Engine(urls)
    fleet = Fleet(urls, clock=clock)
    carry(pm, engine, clock=clock)
    pm.delete_device(ID)
    carry(pm, engine, clock=clock)
    assert fleet.budget().value == {}
    assert fleet.latest().value == []
    assert fleet.energy(20).value == []
    assert fleet.silent(0).value == []
    with pytest.raises(NotFound, match=ID):
        fleet.report(ID)
    clock.now = NOW - 1e8
    pm.register_device(ID, "Back again")
    pm.log_power(pm.add_meter(ID, "main").id, 230.0, 1.0)
    pm.trigger_event(ID, "restore")
    carry(pm, engine, clock=clock)
    clock.now = NOW
    assert_equal(pm, engine, urls, clock)
    assert "Back again" in fleet.report(ID).value


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_arrival_ends_the_same(
    pm: PowerManager, urls: list[str], clock: Clock, seed: int
) -> None:
    """Messages of a file that deletes and records in turn, shuffled and some of them twice."""
    chance = random.Random(seed)
    engine = Engine(urls)
    outbox = Outbox(pm)
    batches = batches_of(outbox)
    for step in range(6):
        meter = chance.choice(pm.list_meters())
        start = NOW - chance.uniform(20, 200) * HOUR
        if step == 3:
            pm.delete_meter(meter.id)
        else:
            pm.delete_readings(meter.id, since=start, until=start + 40 * HOUR)
            pm.log_many(
                [(meter.id, 5.0, chance.random(), 50.0, start + n * 1800) for n in range(20)]
            )
        batches += batches_of(outbox)
    batches += chance.sample(batches, len(batches) // 2)
    chance.shuffle(batches)
    stored(engine, *batches)
    assert_equal(pm, engine, urls, clock)


@pytest.mark.parametrize("paused", ["the deletion", "the readings"])
def test_two_sinks_at_once(
    pm: PowerManager, urls: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch, paused: str
) -> None:
    """One has stored its rows and not yet looked for deletions when the other one does all of its
    work.
    """
    engine = Engine(urls)
    outbox = Outbox(pm)
    before = batches_of(outbox)
    pm.delete_readings(pm.list_meters()[0].id)
    after = batches_of(outbox)
    slow, quick = (after, before) if paused == "the deletion" else (before, after)
    apply = deletions.apply

    def wait_for_the_other(
        shard: Shard, generations: Mapping[str, int], tables: Mapping[str, Sequence[Sequence[Any]]]
    ) -> dict[str, int]:
        if shard is engine.shards[engine.shard_of(ID)] and quick:
            others, quick[:] = list(quick), []
            stored(engine, *others)
        return apply(shard, generations, tables)

    monkeypatch.setattr(deletions, "apply", wait_for_the_other)
    store(engine, rows_of([(batch, NOW_US) for batch in slow], engine))
    assert quick == []
    assert_equal(pm, engine, urls, clock)


@pytest.mark.parametrize("table", ["power_readings", "power_touched"])
def test_a_sink_that_ends_in_the_middle(
    pm: PowerManager, urls: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """The message comes again, and hours that were closed before are computed without what is
    deleted.
    """
    engine = Engine(urls)
    carry(pm, engine, clock=clock)
    close_hours(engine, NOW_US)
    pm.delete_readings(pm.list_meters()[0].id, until=NOW - 30 * HOUR)
    insert_from: Callable[..., None] = Shard.insert_from

    def failing(shard: Shard, name: str, sql: str, **parameters: Any) -> None:
        if name == table:
            raise EngineError("the power went")
        insert_from(shard, name, sql, **parameters)

    with monkeypatch.context() as patched:
        patched.setattr(Shard, "insert_from", failing)
        with pytest.raises(EngineError):
            carry(pm, engine, clock=clock)
    close_hours(engine, NOW_US)
    assert len(pm.pending_deletions()) == 1
    carry(pm, engine, clock=clock)
    assert_equal(pm, engine, urls, clock)


def test_a_device_deletes_nothing_of_another(
    pm: PowerManager, urls: list[str], tmp_path: Path, clock: Clock
) -> None:
    """Though it names the other's meter."""
    engine = Engine(urls)
    carry(pm, engine, clock=clock)
    thief = Batch("edge-2", 1, 2**62)
    meter = pm.list_meters()[0].id
    thief.deletions.append(codec.Deletion(2**62, "meter", meter, None, None))
    thief.deletions.append(codec.Deletion(2**62, "device", None, None, None))
    stored(engine, thief)
    assert_equal(pm, engine, urls, clock)
