"""What is present: not the meters of a card that was replaced, nor what an operator has retired;
history stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_common import same
from fleet_harness import HOUR, NOW, Clock, carry, random_device, same_json
from power_fleet import sql, tables
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from power_fleet.hours import close_hours

from power_manager import HOUR_US, PowerManager, to_microseconds

ID = "edge-1"


@pytest.fixture
def clock() -> Clock:
    """The clock of files and fleet."""
    return Clock()


@pytest.fixture
def cards(tmp_path: Path, clock: Clock) -> Iterator[tuple[PowerManager, PowerManager]]:
    """Two files of one device: the card that it had, and the one that it has."""
    with (
        random_device(tmp_path / "old.db", 1, ID, clock, 120) as old,
        PowerManager(tmp_path / "new.db", clock=clock) as new,
    ):
        new.register_device(ID, "Edge, new card")
        meter = new.add_meter(ID, "battery", 50.0, "Pack").id
        new.log_many([(meter, 12.0, 1.0, 50.0, NOW - 600), (meter, 12.0, 1.0, 50.0, NOW - 60)])
        yield old, new


def retire(
    engine: Engine, device_id: str, meter_id: str = "", *, at: int, taken_back: bool = False
) -> None:
    """As `power-fleet retire` stores it."""
    shard = engine.shards[engine.shard_of(device_id)]
    row = [device_id, meter_id, 0 if taken_back else 1, at, "edge-2"]
    shard.insert("power_retired", tables.RETIRED, [row])


def total_out(fleet: Fleet) -> float:
    """Energy out of all days and meters."""
    return float(sum(row["energy_out_wh"] for row in fleet.energy(20).value))


def test_the_meters_of_a_replaced_card_are_history(
    every_urls: list[str], clock: Clock, cards: tuple[PowerManager, PowerManager]
) -> None:
    """Budget, states and report are the new card's own at once; the energy of a month is that of
    both.
    """
    engine, fleet = Engine(every_urls), Fleet(every_urls, clock=clock)
    old, new = cards
    carry(old, engine)
    before = total_out(fleet)
    assert len(fleet.latest().value) == 4
    carry(new, engine)
    for _ in range(2):
        assert fleet.latest().value == fleet.latest([ID]).value == new.list_meters()
        assert same(fleet.budget().value, new.power_budget_check([ID]))
        assert same(fleet.budget([ID]).value, new.power_budget_check([ID]))
        report = json.loads(fleet.report(ID).value)
        expected = json.loads(new.export_report(ID))
        for part in expected.keys() - {"events", "event_count"}:  # those are the device's
            assert same(report[part], expected[part]), part
        assert total_out(fleet) == pytest.approx(before + 12.0 * 540 / 3600)
        close_hours(engine, int(NOW * 1e6))


def test_the_old_card_that_comes_back_is_present_again(
    urls: list[str], clock: Clock, cards: tuple[PowerManager, PowerManager]
) -> None:
    """Whoever opened a line last: it has sent all of its states anew."""
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    for pm in (*cards, cards[0]):
        carry(pm, engine)
    assert fleet.latest().value == cards[0].list_meters()


def test_a_retired_meter_is_in_no_present_answer(
    urls: list[str], clock: Clock, cards: tuple[PowerManager, PowerManager]
) -> None:
    """Until it is taken back; its energy stays."""
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    pm = cards[0]
    carry(pm, engine)
    before = total_out(fleet)
    meters = pm.list_meters()
    retire(engine, ID, meters[0].id, at=1)
    left = [meter for meter in meters if meter.id != meters[0].id]
    assert fleet.latest().value == left
    report = json.loads(fleet.report(ID).value)
    assert [part["meter_id"] for part in report["meters"]] == [meter.id for meter in left]
    assert fleet.budget([ID]).value[ID]["battery_count"] == 0
    assert total_out(fleet) == before
    retire(engine, ID, meters[0].id, at=2, taken_back=True)
    assert fleet.latest().value == meters


def test_a_retired_device_is_in_no_present_answer(
    urls: list[str], clock: Clock, cards: tuple[PowerManager, PowerManager]
) -> None:
    """Nor silent; who asks for its budget by name is told, and its report and its energy stay."""
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    carry(cards[0], engine)
    before = total_out(fleet)
    clock.now = NOW + 2 * HOUR
    assert len(fleet.silent(60).value) == 1
    retire(engine, ID, at=int(NOW * 1e6))
    assert fleet.budget().value == {}
    assert fleet.budget([ID, "nobody"]).value == {
        ID: {
            "error": "device_id: 'edge-1' is retired since 2026-09-21T14:13:20.000000+00:00, "
            "replaced by 'edge-2'"
        },
        "nobody": {
            "error": "device_id: no device has the id 'nobody': none of that id has been forwarded"
        },
    }
    assert fleet.latest().value == fleet.latest([ID]).value == []
    assert fleet.silent(60).value == []
    assert total_out(fleet) == before
    assert same_json(cards[0].export_report(ID), fleet.report(ID).value)
    retire(engine, ID, at=int(NOW * 1e6) + 1, taken_back=True)
    assert same(fleet.budget().value, cards[0].power_budget_check([ID]))
    assert len(fleet.silent(60).value) == 1


@pytest.mark.parametrize("closed", [False, True])
def test_hours_are_those_of_the_library(
    every_urls: list[str], clock: Clock, cards: tuple[PowerManager, PowerManager], closed: bool
) -> None:
    """Each with its sums, and the energy from the reading before in it, also from before the first
    hour asked for.
    """
    engine = Engine(every_urls)
    pm = cards[0]
    carry(pm, engine)
    if closed:
        close_hours(engine, int(NOW * 1e6))
    shard = engine.shards[engine.shard_of(ID)]
    wanted = int(NOW // HOUR) - 100
    question = shard.dialect.hours(sql.THESE, with_fresh=True)
    end = int(NOW // HOUR) + 1
    names = {"wanted": wanted, "first": wanted - 2, "oldest": wanted - 2, "end": end}
    rows = shard.select(question, devices=(ID,), **names)
    found = {}
    for row in rows:
        sums = (row["reading_count"], row["energy_out"], row["energy_in"])
        found[row["meter_id"], row["hour"]] = sums
    expected = {}
    for meter in pm.list_meters():
        for one in pm.get_statistics(meter.id, days=30):
            hour = to_microseconds(one.start) // HOUR_US
            if hour >= wanted:
                energies = (one.reading_count, one.energy_out_wh, one.energy_in_wh)
                expected[meter.id, hour] = energies
    assert found.keys() == expected.keys()
    for key, sums in expected.items():
        assert found[key] == pytest.approx(sums, abs=1e-8)
