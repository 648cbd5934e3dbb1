"""Statistics of a window, and sparklines, held against the library on the same file."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx2
import pytest
from power_service.hours import SPARKLINE_HOURS, sparklines, statistics_between
from service_harness import Service

from power_manager import HOUR_US, PowerManager, from_microseconds, to_microseconds

NOW = datetime(2026, 3, 10, 12, 34, 56, tzinfo=timezone.utc)
END = datetime(2026, 3, 10, 12, tzinfo=timezone.utc)  # of the last whole hour
START = END - timedelta(hours=SPARKLINE_HOURS)


@pytest.fixture
def pm(tmp_path: Path) -> Iterator[PowerManager]:
    """A library whose clock stands at NOW, with a device."""
    with PowerManager(tmp_path / "p.db", clock=NOW.timestamp, durability="normal") as manager:
        manager.register_device("a", "A")
        yield manager


def fill(
    pm: PowerManager, meter_id: str, hours: range, watts: float, voltage: float = 10.0
) -> None:
    """Four readings of a meter in each of these hours after START."""
    times = [
        START + timedelta(hours=hour, minutes=minute)
        for hour in hours
        for minute in (0, 15, 30, 45)
    ]
    pm.log_many([(meter_id, voltage, watts / voltage, 50.0, when) for when in times])


def hours_of(pm: PowerManager, device_id: str = "a") -> list[float | None]:
    """The device's sparkline."""
    return sparklines(pm, [device_id], to_microseconds(NOW)).devices[device_id]


class TestSparklines:
    """Mean watts of 24 whole hours; what is not known is null."""

    def test_every_meter_that_counts_adds_up(self, pm: PowerManager) -> None:
        """Out less in; charging a battery takes from what a panel gives; nothing is below 0."""
        main, battery, solar = (pm.add_meter("a", kind) for kind in ("main", "battery", "solar"))
        fill(pm, main.id, range(24), 20.0)
        fill(pm, battery.id, range(12), -30.0)
        fill(pm, battery.id, range(12, 24), 5.0)
        fill(pm, solar.id, range(24), 40.0)
        assert hours_of(pm) == [30.0] * 12 + [65.0] * 12
        fill(pm, main.id, range(3, 4), 20.0)  # stored already: nothing changes
        assert hours_of(pm) == [30.0] * 12 + [65.0] * 12

    def test_even_readings_have_the_watts_of_their_energy(self, pm: PowerManager) -> None:
        """An hour's mean watts are its watt-hours, out less in, over all meters."""
        battery, panel = pm.add_meter("a", "battery"), pm.add_meter("a", "solar")
        fill(pm, battery.id, range(-1, 24), 12.5)
        fill(pm, panel.id, range(-1, 24), -2.25)
        energy = [0.0] * 25
        for meter in (battery, panel):
            for hour, row in enumerate(pm.get_statistics(meter.id, days=2)):
                energy[hour] += row.energy_out_wh - row.energy_in_wh
        assert hours_of(pm) == pytest.approx(energy[1:])

    def test_what_is_sold_is_not_used(self, pm: PowerManager) -> None:
        """More into the grid than a panel gives is a measuring error, not less than 0."""
        main, solar = pm.add_meter("a", "main"), pm.add_meter("a", "solar")
        fill(pm, main.id, range(24), -50.0)
        fill(pm, solar.id, range(24), 49.5)
        assert hours_of(pm) == [0.0] * 24

    def test_a_ups_counts_where_there_is_no_main_meter(self, pm: PowerManager) -> None:
        """Both would be the same watts twice."""
        ups = pm.add_meter("a", "ups")
        fill(pm, ups.id, range(24), 7.0)
        assert hours_of(pm) == [7.0] * 24
        main = pm.add_meter("a", "main")
        fill(pm, main.id, range(24), 9.0)
        assert hours_of(pm) == [9.0] * 24

    def test_an_hour_in_which_a_meter_is_silent_is_not_known(self, pm: PowerManager) -> None:
        """It is not an hour without it; nor is one whose readings have no watts."""
        main, battery = pm.add_meter("a", "main"), pm.add_meter("a", "battery")
        fill(pm, main.id, range(24), 20.0)
        fill(pm, battery.id, range(10), 5.0)
        pm.log_power(battery.id, None, None, 40.0, timestamp=START + timedelta(hours=12))
        assert hours_of(pm) == [25.0] * 10 + [None] * 14

    def test_a_meter_that_is_retired_counts_in_its_own_hours(self, pm: PowerManager) -> None:
        """After them the others are all there is."""
        main, battery = pm.add_meter("a", "main"), pm.add_meter("a", "battery")
        fill(pm, main.id, range(24), 20.0)
        fill(pm, battery.id, range(10), 5.0)
        pm.update_meter(battery.id, active=False)
        assert hours_of(pm) == [25.0] * 10 + [20.0] * 14

    def test_a_meter_that_never_measured_does_not_count(self, pm: PowerManager) -> None:
        """One that fell silent days ago does: what it measures now is not known."""
        main = pm.add_meter("a", "main")
        silent = pm.add_meter("a", "battery")
        fill(pm, main.id, range(24), 20.0)
        assert hours_of(pm) == [20.0] * 24
        pm.log_power(silent.id, 12.0, 1.0, 50.0, timestamp=START - timedelta(days=3))
        assert hours_of(pm) == [None] * 24

    def test_hours_are_whole_and_the_one_under_way_is_not_among_them(
        self, pm: PowerManager
    ) -> None:
        """The list has the hours from `start` on; whatever is before or after is left out."""
        main = pm.add_meter("a", "main")
        fill(pm, main.id, range(-1, 0), 1.0)
        fill(pm, main.id, range(23, 25), 2.0)
        found = sparklines(pm, ["a"], to_microseconds(NOW))
        assert (found.start, found.step_seconds) == (
            from_microseconds(to_microseconds(START)),
            3600,
        )
        assert found.devices["a"] == [None] * 23 + [2.0]

    def test_a_device_that_is_not_registered_is_left_out(self, pm: PowerManager) -> None:
        """The others come all the same; one without meters is there, and nothing is known of it."""
        found = sparklines(pm, ["nobody", "a", "a"], to_microseconds(NOW))
        assert found.devices == {"a": [None] * 24}


class TestTheRoute:
    """GET /v1/sparklines."""

    def test_it_answers_for_the_devices_that_are_asked_for(
        self, api: httpx2.Client, service: Service
    ) -> None:
        """The hours up to the present one, of a file that another process writes."""
        with PowerManager(service.db) as pm:
            for device_id in ("spark-a", "spark-b"):
                pm.register_device(device_id, device_id)
            meter = pm.add_meter("spark-a", "main")
            begin = to_microseconds(datetime.now(timezone.utc)) // HOUR_US * HOUR_US
            half_past = from_microseconds(begin - HOUR_US // 2)
            pm.log_power(meter.id, 10.0, 2.0, timestamp=half_past)
        answer = api.get("/v1/sparklines", params={"device": ["spark-a", "spark-b", "nobody"]})
        assert answer.status_code == 200
        found = answer.json()
        start = to_microseconds(found["start"])
        assert start in (begin - 24 * HOUR_US, begin - 23 * HOUR_US)  # an hour may just have ended
        place = (begin - HOUR_US - start) // HOUR_US
        assert found["devices"]["spark-a"][place] == 20.0
        assert found["devices"]["spark-b"] == [None] * 24
        assert "nobody" not in found["devices"]

    @pytest.mark.parametrize("count", [0, 101])
    def test_no_device_or_too_many_are_refused(self, api: httpx2.Client, count: int) -> None:
        """One request asks for at most 100."""
        answer = api.get("/v1/sparklines", params={"device": [f"d{n}" for n in range(count)]})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_value")
        assert "device" in answer.json()["detail"]


class TestStatistics:
    """GET /v1/meters/{id}/statistics, from a time on and before another."""

    @pytest.mark.parametrize("bucket", ["hour", "day"])
    @pytest.mark.parametrize(
        "window",
        [(None, None), (5.5, None), (None, 30.0), (3.0, 30.25), (26.0, 26.0), (40.0, 2.0)],
        ids=["all", "since", "until", "both", "nothing", "the-wrong-way-round"],
    )
    def test_the_buckets_that_begin_in_the_window(
        self, pm: PowerManager, bucket: str, window: tuple[float | None, float | None]
    ) -> None:
        """Of all that there are; the one in which the window begins is whole."""
        meter = pm.add_meter("a", "main")
        fill(pm, meter.id, range(-30, 23), 5.0)
        since, until = (
            None if hours is None else END - timedelta(hours=48 - hours) for hours in window
        )
        size = timedelta(hours=24 if bucket == "day" else 1)
        expected = [
            row
            for row in pm.get_statistics(meter.id, days=30, bucket=bucket)
            if (since is None or datetime.fromisoformat(row.start) > since - size)
            and (until is None or datetime.fromisoformat(row.start) < until)
        ]
        found = statistics_between(pm, meter.id, since, until, bucket, to_microseconds(NOW))
        assert found == expected
        assert found or (window[0] or 0) >= (window[1] or 99)

    def test_readings_of_a_clock_that_is_ahead_are_found(self, pm: PowerManager) -> None:
        """Also where all of the window lies after now."""
        meter = pm.add_meter("a", "main")
        fill(pm, meter.id, range(100, 103), 5.0)
        since, until = START + timedelta(hours=101), START + timedelta(hours=102)
        found = statistics_between(pm, meter.id, since, until, "hour", to_microseconds(NOW))
        assert [row.reading_count for row in found] == [4]

    def test_the_route(self, api: httpx2.Client, service: Service) -> None:
        """By ISO 8601; days do not go with it, and what is no time is refused."""
        with PowerManager(service.db) as pm:
            pm.register_device("stat", "Stat")
            meter = pm.add_meter("stat", "main")
            for hour in range(5):
                pm.log_power(meter.id, 10.0, 1.0, timestamp=END + timedelta(hours=hour))
        url = f"/v1/meters/{meter.id}/statistics"

        def starts(**params: Any) -> list[str]:
            return [row["start"][11:13] for row in api.get(url, params=params).json()]

        found = starts(since="2026-03-10T13:30:00Z", until="2026-03-10T15:00:00+00:00")
        assert found == ["13", "14"]
        assert starts(since="2026-03-10T15:00:00Z") == ["15", "16"]
        assert starts(until="2026-03-10T13:00:00Z") == ["12"]
        assert starts(days=0.5) == starts()
        for query in ("since=2026-03-10T13:30:00Z&days=1", "until=yesterday"):
            answer = api.get(f"{url}?{query}")
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_value")
