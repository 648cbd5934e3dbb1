"""What the engine answers equals what each device's own file says, on ClickHouse 18 and on 26."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos_common import same
from fleet_harness import HOUR, NOW, Clock, carry, random_device, same_json
from power_fleet import fleet as fleet_module
from power_fleet import history, tables
from power_fleet.engine import Engine
from power_fleet.fleet import Answer, Fleet
from power_fleet.hours import close_hours

from power_manager import InvalidValue, NotFound, PowerManager

NOW_US = int(NOW * 1e6)
Make = Callable[..., PowerManager]


@pytest.fixture
def clock() -> Clock:
    """The clock of the files and of the fleet."""
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Make]:
    """Make random device files; they are closed afterwards."""
    made: list[PowerManager] = []

    def one(seed: int, device_id: str | None = None, **options: Any) -> PowerManager:
        name = device_id or f"edge-{seed}"
        made.append(random_device(tmp_path / f"{seed}.db", seed, name, clock, **options))
        return made[-1]

    yield one
    for pm in made:
        pm.close()


def test_a_report_is_that_of_the_device_itself(
    every_urls: list[str], make: Make, clock: Clock
) -> None:
    """Of any number of days, before hours are closed, and after, and with readings that came
    twice.
    """
    engine, fleet = Engine(every_urls), Fleet(every_urls, clock=clock)
    files = {f"edge-{seed}": make(seed) for seed in range(3)}
    for pm in files.values():
        carry(pm, engine, times=2)
    for _ in range(2):
        for days in (0.001, 0.01, 1, 3.7, 7, 400):
            for device_id, pm in files.items():
                report = fleet.report(device_id, days).value
                assert same_json(pm.export_report(device_id, days), report)
        close_hours(engine, NOW_US)


def test_a_charge_that_nobody_knows(every_urls: list[str], tmp_path: Path, clock: Clock) -> None:
    """Unknown in the meter, its readings and its hours; also in a closed hour whose known ones are
    deleted.
    """
    engine, fleet = Engine(every_urls), Fleet(every_urls, clock=clock)
    with PowerManager(tmp_path / "a.db", clock=clock) as pm:
        pm.register_device("edge-1", "Edge")
        pack = pm.add_meter("edge-1", "battery", 50.0, "Pack", charge_pct=None)
        at = NOW - 5 * HOUR
        pm.log_many([(pack.id, 12.0, 1.0, None, at), (pack.id, 12.0, 1.0, 40.0, at + 60)])
        pm.update_meter(pack.id, charge_pct=None)
        pm.log_power(pack.id, 12.0, 1.0)
        for _ in range(2):
            carry(pm, engine)
            assert fleet.latest().value == pm.list_meters()
            assert fleet.latest().value[0].charge_pct is None
            for _ in range(2):
                assert same_json(pm.export_report("edge-1"), fleet.report("edge-1").value)
                budget = pm.power_budget_check(["edge-1"])
                assert same(fleet.budget(["edge-1"]).value, budget)
                close_hours(engine, NOW_US)
            pm.delete_readings(pack.id, since=at + 1, until=at + 61)
        part = json.loads(fleet.report("edge-1").value)["meters"][0]
        assert (part["reading_count"], part["min_charge_pct"]) == (2, None)


@pytest.mark.parametrize("days", [0, -1, float("nan"), "7"])
def test_a_report_of_no_time_is_refused(days: Any) -> None:
    """As the library refuses it, before anything is asked."""
    with pytest.raises(InvalidValue, match="days"):
        Fleet(["http://127.0.0.1:9"]).report("edge-1", days)


def test_late_readings_change_a_closed_hour(
    every_urls: list[str], make: Make, clock: Clock
) -> None:
    """An hour whose readings came after it was closed is right at once, and right when it is closed
    again.
    """
    engine, fleet = Engine(every_urls), Fleet(every_urls, clock=clock)
    pm = make(1)
    carry(pm, engine)
    assert close_hours(engine, NOW_US) > 0
    assert close_hours(engine, NOW_US) == 0, "there is nothing left to do"
    meter = pm.list_meters()[0].id
    pm.log_many(
        [(meter, 12.0, 2.0, 50.0, NOW - hours * HOUR - 7.0) for hours in (1, 2, 30, 31, 100)]
    )
    carry(pm, engine)
    assert same_json(pm.export_report("edge-1"), fleet.report("edge-1").value)
    assert close_hours(engine, NOW_US) >= 5
    assert same_json(pm.export_report("edge-1"), fleet.report("edge-1").value)
    assert close_hours(engine, NOW_US) == 0


def test_readings_that_come_while_it_is_asked(
    urls: list[str], make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Late ones, between finding out which hours have to be made and making them: they are all in,
    or none of them.

    The hours they belong to, that were closed, must not be missing altogether.
    """
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    pm = make(10)
    carry(pm, engine)
    close_hours(engine, NOW_US)
    oldest, late = history.oldest_to_make, iter([(1.0, 2.0), (30.0, 50.0), (3.0,)])

    def slow(*arguments: Any) -> int:
        found = oldest(*arguments)
        for hours in next(late, ()):
            pm.log_many(
                [
                    (meter.id, 12.0, 2.0, 50.0, NOW - hours * HOUR - 7.0)
                    for meter in pm.list_meters()
                ]
            )
        carry(pm, engine)
        return found

    monkeypatch.setattr(history, "oldest_to_make", slow)
    for _ in range(3):
        before = pm.export_report("edge-10")
        report = fleet.report("edge-10").value
        after = pm.export_report("edge-10")
        assert same_json(before, report) or same_json(after, report)
    assert next(late, None) is None
    monkeypatch.undo()
    assert same_json(pm.export_report("edge-10"), fleet.report("edge-10").value)
    assert daily(pm) == pytest.approx(daily_of_fleet(fleet))


@pytest.mark.parametrize("max_gap", [0.0, 30.0, 5000.0, 1e6])
def test_max_gap_travels_with_the_readings(
    every_urls: list[str], make: Make, clock: Clock, max_gap: float
) -> None:
    """Energy over a gap is counted or not as the device's own file does, also over several
    hours.
    """
    engine, fleet = Engine(every_urls), Fleet(every_urls, clock=clock)
    pm = make(5, max_gap=max_gap)
    carry(pm, engine)
    close_hours(engine, NOW_US)
    for days in (0.5, 6.1):
        assert same_json(pm.export_report("edge-5", days), fleet.report("edge-5", days).value)
    assert daily(pm) == pytest.approx(daily_of_fleet(fleet))


def daily(pm: PowerManager, days: int = 7) -> dict[tuple[str, str], float]:
    """Energy out by day and type, by the library's statistics of the same days."""
    sums: dict[tuple[str, str], float] = {}
    for meter in pm.list_meters():
        for row in pm.get_statistics(meter.id, days=days - 1, bucket="day"):
            key = row.start[:10], meter.type.value
            sums[key] = sums.get(key, 0.0) + row.energy_out_wh
    return {key: value for key, value in sums.items() if value}


def daily_of_fleet(fleet: Fleet, days: int = 7) -> dict[tuple[str, str], float]:
    """The same of the fleet, whatever the site."""
    sums: dict[tuple[str, str], float] = {}
    for row in fleet.energy(days).value:
        key = row["day"], row["type"]
        sums[key] = sums.get(key, 0.0) + row["energy_out_wh"]
    return {key: value for key, value in sums.items() if value}


def test_energy_by_day_and_site_adds_up(every_urls: list[str], make: Make, clock: Clock) -> None:
    """Devices of one site together equal the sums of their files; before closing hours and
    after.
    """
    engine, fleet = Engine(every_urls), Fleet(every_urls, clock=clock)
    files = {seed: make(seed) for seed in range(4)}
    for seed, pm in files.items():
        carry(pm, engine, site="north" if seed < 2 else "south", times=2)
    for _ in range(2):
        for site, seeds in {"north": (0, 1), "south": (2, 3)}.items():
            expected: dict[tuple[str, str], float] = {}
            for seed in seeds:
                for key, value in daily(files[seed]).items():
                    expected[key] = expected.get(key, 0.0) + value
            rows = [row for row in fleet.energy().value if row["site"] == site]
            found = {
                (row["day"], row["type"]): row["energy_out_wh"]
                for row in rows
                if row["energy_out_wh"]
            }
            assert found == pytest.approx(expected)
        close_hours(engine, NOW_US)


def test_energy_is_asked_some_days_at_a_time(
    urls: list[str], make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, however few at a time: energy over midnight too, and with a clock that was decades
    wrong.
    """
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    pm = make(11, max_gap=50_000.0)  # so that almost every midnight has energy over it
    meter = pm.list_meters()[2].id
    pm.log_many([(meter, 12.0, 1.0, None, at) for at in (1000.0, 1600.0)])
    carry(pm, engine)
    for _ in range(2):
        monkeypatch.undo()
        expected = fleet.energy(25_000).value
        assert expected[0]["day"] == "1970-01-01"
        for hours in (1, 300):
            monkeypatch.setattr(fleet_module, "HOURS_AT_ONCE", hours)
            assert same(expected, fleet.energy(25_000).value)
        close_hours(engine, NOW_US)


def test_what_rounds_to_no_energy_is_left_out(
    urls: list[str], tmp_path: Path, clock: Clock
) -> None:
    """Two readings a microsecond apart are less than a billionth of a watt-hour."""
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    with PowerManager(tmp_path / "a.db", clock=clock) as pm:
        pm.register_device("edge-1", "One")
        meter = pm.add_meter("edge-1", "main").id
        pm.log_many([(meter, 1.0, 1.0, 50.0, NOW - 60), (meter, 1.0, 1.0, 50.0, NOW - 60 + 1e-6)])
        carry(pm, engine)
    assert fleet.energy().value == []


def test_budgets_are_those_of_the_devices(every_urls: list[str], make: Make, clock: Clock) -> None:
    """All of them, named ones in the order asked for, and one that nobody has."""
    engine, fleet = Engine(every_urls), Fleet(every_urls, clock=clock)
    files = [make(seed) for seed in range(5)]
    expected: dict[str, object] = {}
    for seed, pm in enumerate(files):
        carry(pm, engine)
        expected |= pm.power_budget_check([f"edge-{seed}"])
    for _ in range(2):
        assert same(expected, fleet.budget().value)
        named = fleet.budget(["edge-3", "edge-9", "edge-0"]).value
        assert list(named) == ["edge-3", "edge-9", "edge-0"]
        assert same(expected["edge-3"], named["edge-3"])
        assert list(named["edge-9"]) == ["error"]
        assert "'edge-9'" in named["edge-9"]["error"]
        close_hours(engine, NOW_US)


def test_the_present_state_is_not_the_newest_time(
    urls: list[str], make: Make, clock: Clock
) -> None:
    """After a clock that jumped back, the state is that of the last live reading, as in the
    file.
    """
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    pm = make(2)
    meter = pm.list_meters()[0]
    pm.log_power(meter.id, 11.0, 1.0, 77.0)
    carry(pm, engine, clock=clock)
    clock.now = NOW - 3 * 365 * 24 * HOUR
    pm.log_power(meter.id, 5.0, 0.25, 4.0)
    carry(pm, engine, clock=clock)
    clock.now = NOW
    assert pm.list_meters() == fleet.latest().value
    assert fleet.latest(["edge-2"]).value[0].voltage == 5.0
    assert fleet.latest(["edge-1"]).value == []
    assert same_json(pm.export_report("edge-2", 2000), fleet.report("edge-2", 2000).value)


def test_a_state_that_comes_back_is_news(urls: list[str], make: Make, clock: Clock) -> None:
    """A, B, A: the last one counts, though it looks like the first; and a device registered anew is
    as it is now.
    """
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    pm = make(3)
    for target in (10.0, 20.0, 10.0):
        pm.register_device("edge-3", "Renamed", target_wh=target)
        carry(pm, engine, clock=clock)
    assert fleet.budget().value["edge-3"]["target_wh"] == 10.0
    assert json.loads(fleet.report("edge-3").value)["device_name"] == "Renamed"


def test_silent_devices_by_the_clock_of_the_stream(
    urls: list[str], make: Make, clock: Clock
) -> None:
    """Silence is measured from when the stream last had something; those never heard of are not
    silent.
    """
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    carry(make(4), engine)
    clock.now = NOW + 59 * 60
    assert fleet.silent(60).value == []
    clock.now = NOW + 60 * 60
    assert fleet.silent(60).value == [
        {"device_id": "edge-4", "last_seen": "2026-09-21T14:13:20.000000+00:00"}
    ]


def test_what_nobody_has_is_not_found(urls: list[str], clock: Clock) -> None:
    """An unknown device's report names it; an empty engine answers with nothing, and nobody knows
    how fresh that is.
    """
    fleet = Fleet(urls, clock=clock)
    with pytest.raises(NotFound, match="'edge-1'"):
        fleet.report("edge-1")
    assert fleet.budget() == Answer({}, None)
    assert fleet.latest() == Answer([], None)
    assert fleet.energy() == Answer([], None)
    assert fleet.silent(0) == Answer([], None)


def test_any_number_of_devices_may_be_named(urls: list[str], make: Make, clock: Clock) -> None:
    """More than one question can name; and a text is not a list of them."""
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    pm = make(7)
    carry(pm, engine)
    names = [f"{number:04}{'é' * 196}" for number in range(1000)]
    budgets = fleet.budget([*names, "edge-7", *names]).value
    assert list(budgets) == [*names, "edge-7"]
    assert same(pm.power_budget_check(["edge-7"])["edge-7"], budgets["edge-7"])
    assert fleet.latest([*names, "edge-7", "edge-7"]).value == pm.list_meters()
    for ask in (fleet.budget, fleet.latest):
        with pytest.raises(InvalidValue, match="device_ids"):
            ask("edge-7")


def test_hours_whose_readings_were_deleted_do_not_hold_up_the_others(
    urls: list[str], make: Make, clock: Clock
) -> None:
    """Somebody cleans up the engine by hand: closing hours ends all the same, and does those that
    can be done.
    """
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    for seed in (8, 9):
        carry(make(seed), engine)
    for shard in engine.shards:
        shard.insert("power_touched", tables.TOUCHED, [["gone", NOW_US // 3_600_000_000 - 30, 1]])
    close_hours(engine, NOW_US)
    done = engine.select("SELECT DISTINCT device_id FROM power_hourly")
    assert {row["device_id"] for row in done} == {"edge-8", "edge-9"}, (
        "and not the one that is gone"
    )
    assert fleet.energy().value


@pytest.mark.parametrize("device_id", ["a.b *>", 'it\'s \\ "x"', "%s %(x)s", "电池", "x" * 200])
def test_any_id_the_library_takes_is_asked_about(
    every_urls: list[str], make: Make, clock: Clock, device_id: str
) -> None:
    """Quotes, percent signs, wildcards and letters of the world are nothing special to the
    engine.
    """
    engine, fleet = Engine(every_urls), Fleet(every_urls, clock=clock)
    pm = make(6, device_id)
    carry(pm, engine)
    close_hours(engine, NOW_US)
    assert same_json(pm.export_report(device_id), fleet.report(device_id).value)
    assert same(pm.power_budget_check([device_id]), fleet.budget([device_id]).value)
