"""Energy by meter and hour, as a bill is made of it: what each device's own statistics say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet_harness import HOUR, NOW, Clock, carry, emptied, random_device
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from power_fleet.hours import close_hours
from power_fleet.usage import MeterEnergy

from power_manager import HOUR_US, InvalidValue, MeterType, PowerManager, to_microseconds

NOW_US = int(NOW * 1e6)
THIS_HOUR = int(NOW // HOUR)
Make = Callable[..., PowerManager]


@pytest.fixture
def clock() -> Clock:
    """The clock of the files and of the fleet."""
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Make]:
    """Make random device files; they are closed afterwards."""
    made: list[PowerManager] = []

    def one(seed: int, **options: Any) -> PowerManager:
        made.append(random_device(tmp_path / f"{seed}.db", seed, f"edge-{seed}", clock, **options))
        return made[-1]

    yield one
    for pm in made:
        pm.close()


Hours = dict[int, tuple[float, float, int, float | None, float | None]]


def engine_hours(meter: MeterEnergy) -> Hours:
    """Its hours that have watts: the old dialect leaves the others out."""
    return {
        one.hour: (
            one.energy_out_wh,
            one.energy_in_wh,
            one.reading_count,
            one.least_wattage,
            one.most_wattage,
        )
        for one in meter.hours
        if one.least_wattage is not None and one.most_wattage is not None
    }


def file_hours(pm: PowerManager, meter_id: str, days: float) -> Hours:
    """The same of the file, without the hour under way."""
    found: Hours = {}
    for row in pm.get_statistics(meter_id, days=days):
        hour = to_microseconds(row.start, "start") // HOUR_US
        if hour < THIS_HOUR and row.min_wattage is not None and row.max_wattage is not None:
            found[hour] = (
                row.energy_out_wh,
                row.energy_in_wh,
                row.reading_count,
                row.min_wattage,
                row.max_wattage,
            )
    return found


def compare(fleet: Fleet, files: dict[str, PowerManager], days: float) -> int:
    """The engine's hours of those days are the files'; return how many there are."""
    answer = fleet.hour_energies(files, NOW - days * 24 * HOUR, NOW).value
    assert sorted(answer) == sorted(files)
    count = 0
    for id_, pm in files.items():
        meters = pm.list_meters(id_)
        assert [(one.meter_id, one.type, one.name) for one in answer[id_]] == [
            (meter.id, meter.type, meter.name) for meter in meters
        ]
        for one in answer[id_]:
            expected = file_hours(pm, one.meter_id, days)
            actual = engine_hours(one)
            assert expected.keys() == actual.keys()
            for hour, values in expected.items():
                assert actual[hour] == pytest.approx(values, abs=2e-9), hour
            assert [hour.hour for hour in one.hours] == sorted(hour.hour for hour in one.hours)
            count += len(expected)
    return count


@pytest.mark.parametrize("days", [0.2, 3.7, 400])
def test_hours_are_those_of_the_files(
    urls: list[str], make: Make, clock: Clock, days: float
) -> None:
    """Before hours are closed, and after, with readings that came twice, and for several devices at
    once.
    """
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    files = {f"edge-{seed}": make(seed) for seed in range(3)}
    for pm in files.values():
        carry(pm, engine, times=2)
    for _ in range(2):
        assert compare(fleet, files, days) > 3
        close_hours(engine, NOW_US)


def test_late_readings_and_deletions_are_in_them(urls: list[str], make: Make, clock: Clock) -> None:
    """Of closed hours too."""
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    pm = make(7)
    files = {"edge-7": pm}
    carry(pm, engine)
    close_hours(engine, NOW_US)
    battery, solar, *_ = pm.list_meters("edge-7")
    pm.log_many([(battery.id, 10.0, 1.0, 50.0, NOW - 30 * HOUR + 60 * step) for step in range(20)])
    pm.delete_readings(solar.id, since=NOW - 90 * HOUR, until=NOW - 50 * HOUR)
    carry(pm, engine)
    assert compare(fleet, files, 10) > 3
    pm.delete_meter(solar.id)
    carry(pm, engine)
    assert compare(fleet, files, 10) > 3
    assert len(fleet.hour_energies(["edge-7"], 0).value["edge-7"]) == 3
    present = fleet.hour_energies(["edge-7"], NOW).value["edge-7"]
    assert {hour.hour for meter in present for hour in meter.hours} == {THIS_HOUR}


def test_who_is_not_there_is_left_out(urls: list[str], make: Make, clock: Clock) -> None:
    """Unknown devices and deleted ones; a device without meters has an empty list."""
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    pm = make(1)
    pm.register_device("bare", "Bare")
    pm.register_device("gone", "Gone")
    carry(pm, engine)
    pm.delete_device("gone")
    carry(pm, engine)
    found = fleet.hour_energies(["edge-1", "bare", "gone", "ghost"], NOW - HOUR, NOW).value
    assert sorted(found) == ["bare", "edge-1"]
    assert found["bare"] == []
    assert fleet.hour_energies([], 0, NOW).value == {}
    assert all(
        meter.hours == [] for meter in fleet.hour_energies(["edge-1"], NOW, NOW).value["edge-1"]
    )
    assert [device.id for device in fleet.devices().value] == ["bare", "edge-1"]
    assert [device.name for device in fleet.devices(["bare", "ghost"]).value] == ["Bare"]


def test_a_device_whose_record_is_on_its_way_is_left_out(
    urls: list[str], make: Make, clock: Clock
) -> None:
    """Its meters came first: until its record is there, nobody knows the device."""
    engine, fleet = Engine(urls), Fleet(urls, clock=clock)
    carry(make(1), engine)
    for shard in engine.shards:
        shard.everywhere("TRUNCATE TABLE power_devices")
    assert fleet.hour_energies(["edge-1"], 0).value == {}


def test_times_are_checked(urls: list[str]) -> None:
    """By name."""
    with pytest.raises(InvalidValue, match="until"):
        Fleet(urls).hour_energies(["edge"], 0, "tomorrow")


def test_an_hour_of_no_watts_has_no_extremes(new_urls: list[str], tmp_path: Path) -> None:
    """Readings that lack their volts or amperes: unknown is not zero."""
    engine = Engine(emptied(new_urls))
    clock = Clock()
    with PowerManager(tmp_path / "bare.db", clock=clock) as pm:
        pm.register_device("bare", "Bare")
        meter = pm.add_meter("bare", MeterType.BATTERY)
        pm.log_power(meter.id, None, None, 50.0, timestamp=NOW - 2 * HOUR)
        carry(pm, engine)
    (found,) = Fleet(new_urls, clock=clock).hour_energies(["bare"], 0, NOW).value["bare"]
    (hour,) = found.hours
    assert (hour.reading_count, hour.least_wattage, hour.most_wattage) == (1, None, None)
    assert (hour.energy_out_wh, hour.energy_in_wh) == (0.0, 0.0)
