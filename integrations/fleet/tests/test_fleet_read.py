"""FleetSource: each answer held against PowerManager's on the file that was carried into the
engine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chaos_common import same
from fleet_harness import HOUR, NOW, Clock, carry, emptied, random_device
from power_fleet.cached import Settling
from power_fleet.engine import Engine
from power_fleet.read import FleetSource

from power_manager import InvalidValue, NotFound, PowerManager, StorageError

DEVICES = ["edge-1", "edge-2", "edge-3"]


@pytest.fixture(scope="module")
def clock() -> Clock:
    """The clock of file and fleet."""
    return Clock()


@pytest.fixture(scope="module")
def pm(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[PowerManager]:
    """One file with three devices."""
    path = tmp_path_factory.mktemp("file") / "power.db"
    for seed, device_id in enumerate(DEVICES):
        random_device(path, seed, device_id, clock).close()
    with PowerManager(path, clock=clock, durability="normal") as manager:
        retired = manager.list_meters("edge-2")[0]
        manager.update_meter(retired.id, active=False)
        yield manager


@pytest.fixture(scope="module")
def fleet(pm: PowerManager, clock: Clock, new_urls: list[str]) -> FleetSource:
    """The same, carried into an engine."""
    carry(pm, Engine(emptied(new_urls)), site="here")
    return FleetSource(lambda: new_urls, clock, settle_seconds=0)


def plain(value: Any) -> Any:
    """Records as what JSON has, so that they can be compared to a millionth."""
    return json.loads(json.dumps(value, default=dataclasses.asdict))


class TestTheSameAsTheFile:
    """Records, order, rounding."""

    def test_devices_and_meters(self, pm: PowerManager, fleet: FleetSource) -> None:
        """All of them, those of one, and each by itself."""
        assert fleet.list_devices() == pm.list_devices()
        assert same(plain(pm.list_meters()), plain(fleet.list_meters()))
        for device in pm.list_devices():
            assert fleet.get_device(device.id) == device
            meters = pm.list_meters(device.id)
            assert same(plain(meters), plain(fleet.list_meters(device.id)))
            for meter in meters[:2]:
                assert same(plain(meter), plain(fleet.get_meter(meter.id)))

    @pytest.mark.parametrize(
        "window",
        [(None, None), (48.0, None), (None, 48.0), (100.25, 50.5), (1.0, 1.0), (0.0, 5.0)],
        ids=["all", "since", "until", "both", "nothing", "the-wrong-way-round"],
    )
    def test_readings(
        self, pm: PowerManager, fleet: FleetSource, window: tuple[float | None, float | None]
    ) -> None:
        """Each exactly as it was logged, in order."""
        since, until = (None if hours is None else NOW - hours * HOUR for hours in window)
        for meter in pm.list_meters()[::3]:
            expected = list(pm.iter_history(meter.id, since=since, until=until))
            assert list(fleet.iter_history(meter.id, since=since, until=until)) == expected

    @pytest.mark.parametrize("bucket", ["hour", "day"])
    @pytest.mark.parametrize("days", [0, 0.1, 1, 2.7, 30])
    def test_statistics(
        self, pm: PowerManager, fleet: FleetSource, bucket: str, days: float
    ) -> None:
        """The energy between two readings is in the bucket of the later one, also in the window's
        first.
        """
        for meter in pm.list_meters()[::3]:  # one of each device, of each type
            expected = pm.get_statistics(meter.id, days=days, bucket=bucket)
            found = fleet.get_statistics(meter.id, days=days, bucket=bucket)
            assert same(plain(expected), plain(found))

    def test_statistics_of_many_are_those_of_each(
        self, pm: PowerManager, fleet: FleetSource
    ) -> None:
        """One question for all of them; whole hours."""
        end = int(NOW // HOUR * HOUR)
        found = fleet.statistics_of(pm.list_meters(), int((end - 24 * HOUR) * 1e6), int(end * 1e6))
        for meter in pm.list_meters():
            expected = [
                row for row in plain(pm.get_statistics(meter.id, days=1)) if row["start"] < iso(end)
            ]
            expected = [row for row in expected if row["start"] >= iso(end - 24 * HOUR)]
            assert same(expected, plain(found[meter.id]))

    def test_energies_ever(self, pm: PowerManager, fleet: FleetSource) -> None:
        """Since the first reading."""
        for meter in pm.list_meters()[::3]:
            expected = plain(pm.energy_totals(meter.id))
            assert same(expected, plain(fleet.energy_totals(meter.id)))

    @pytest.mark.parametrize("limit", [0, 1, 7, 1000])
    def test_events_of_a_device(self, pm: PowerManager, fleet: FleetSource, limit: int) -> None:
        """The newest first."""
        for device_id in DEVICES:
            assert fleet.get_events(device_id, limit) == pm.get_events(device_id, limit)

    @pytest.mark.parametrize("minutes", [None, 0, 5, 5000])
    def test_runtimes(self, pm: PowerManager, fleet: FleetSource, minutes: float | None) -> None:
        """By present watts, and by the mean of a window."""
        for device_id in DEVICES:
            expected = pm.estimate_runtime(device_id, window_minutes=minutes)
            assert fleet.estimate_runtime(device_id, window_minutes=minutes) == expected

    def test_budgets_and_reports(self, pm: PowerManager, fleet: FleetSource) -> None:
        """The library's, of the engine's numbers."""
        ids = [*DEVICES, "nobody"]
        expected, found = pm.power_budget_check(ids), fleet.power_budget_check(ids)
        assert set(found.pop("nobody")) == set(expected.pop("nobody")) == {"error"}
        assert same(expected, found)
        for device_id in DEVICES:
            report = json.loads(pm.export_report(device_id, 3))
            assert same(report, json.loads(fleet.export_report(device_id, 3)))


def iso(when: float) -> str:
    """As the library writes it, for whole seconds."""
    from power_manager import from_microseconds

    return from_microseconds(int(when * 1e6))


class TestErrors:
    """The library's, so that the service answers alike."""

    @pytest.mark.parametrize(
        "ask",
        [
            lambda source: source.get_device("x"),
            lambda source: source.get_meter("x"),
            lambda source: list(source.iter_history("x")),
            lambda source: source.get_statistics("x"),
            lambda source: source.energy_totals("x"),
            lambda source: source.get_events("x"),
            lambda source: source.estimate_runtime("x"),
            lambda source: source.export_report("x"),
        ],
    )
    def test_what_is_not_there(
        self, pm: PowerManager, fleet: FleetSource, ask: Callable[[Any], Any]
    ) -> None:
        """NotFound, with the same kind and id."""
        errors = []
        for source in (pm, fleet):
            with pytest.raises(NotFound) as raised:
                ask(source)
            errors.append((raised.value.kind, raised.value.id))
        assert errors[0] == errors[1]

    @pytest.mark.parametrize(
        "ask",
        [
            lambda source, _: source.get_device(""),
            lambda source, _: source.get_device(7),
            lambda source, meter: source.get_statistics(meter, bucket="week"),
            lambda source, meter: source.get_statistics(meter, days=-1),
            lambda source, meter: source.iter_history(meter, since="yesterday"),
            lambda source, _: source.get_events("edge-1", -1),
            lambda source, _: source.events_since(-1),
            lambda source, _: source.events_since(0, limit=1.5),
            lambda source, _: source.power_budget_check("edge-1"),
            lambda source, _: source.export_report("edge-1", 0),
            lambda source, _: source.estimate_runtime("edge-1", window_minutes=-1),
        ],
    )
    def test_what_makes_no_sense(
        self, pm: PowerManager, fleet: FleetSource, ask: Callable[[Any, str], Any]
    ) -> None:
        """InvalidValue from both."""
        meter_id = pm.list_meters()[0].id
        for source in (pm, fleet):
            with pytest.raises(InvalidValue):
                ask(source, meter_id)

    def test_an_engine_that_is_gone(self) -> None:
        """Is a storage that cannot be used now."""
        source = FleetSource(lambda: ["http://127.0.0.1:9"])
        for ask in (source.list_devices, source.last_sequence, lambda: source.get_meter("m")):
            with pytest.raises(StorageError, match="engine"):
                ask()


class TestEvents:
    """Those of all devices, numbered in the order of the stream."""

    def test_pages_miss_nothing_and_repeat_nothing(
        self, pm: PowerManager, fleet: FleetSource
    ) -> None:
        """From any place on, however many are on a page."""
        every = fleet.events_since(0, limit=10_000)
        assert sorted(event.id for _, event in every) == sorted(
            event.id for _, event in pm.events_since(0, limit=10_000)
        )
        numbers = [number for number, _ in every]
        assert numbers == sorted(set(numbers))
        assert fleet.first_sequence() <= numbers[0]
        assert numbers[-1] <= fleet.last_sequence()
        found = []
        place = 0
        while page := fleet.events_since(place, limit=7):
            found += page
            assert len(found) <= len(every)
            place = page[-1][0]
        assert found == every

    def test_those_of_a_device_keep_the_order_of_its_file(
        self, pm: PowerManager, fleet: FleetSource
    ) -> None:
        """Whatever their times are."""
        for device_id in DEVICES:
            mine = [event.id for _, event in pm.events_since(0) if event.device_id == device_id]
            assert mine == [
                event.id for _, event in fleet.events_since(0) if event.device_id == device_id
            ]

    def test_what_other_sinks_have_not_stored_yet_is_waited_for(self) -> None:
        """As long as they may take; what is there at first was there before."""
        now = 100.0
        settling = Settling(2.0, lambda: now)
        found = []
        for newest, pause in ((7, 0.0), (9, 1.0), (12, 1.0), (12, 1.0), (12, 1.0), (13, 9.0)):
            found.append(settling.settled(newest))
            now += pause
        found.append(settling.settled(13))
        assert found == [7, 7, 7, 9, 12, 12, 13]
