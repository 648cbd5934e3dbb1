"""The sums of older hours, which the file keeps from one start of a bridge to the next."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from power_mqtt.counters import Counters
from power_mqtt.energy import DeviceEnergy, Energy, EnergyReader
from power_mqtt.sums import load_sum

from power_manager import PowerManager, counted_meters

START = 1_750_000_000.0  # 2025-06-15T15:06:40Z
HOUR = 3600.0


class Site:
    """A file with one device, a clock, and a reader that ends and starts again."""

    def __init__(self, folder: Path) -> None:
        self.now = START
        self.steady = 0.0
        self.pm = PowerManager(folder / "power.db", durability="normal", clock=lambda: self.now)
        self.pm.register_device("edge", "Edge")
        self.battery = self.pm.add_meter("edge", "battery").id
        self.solar = self.pm.add_meter("edge", "solar").id
        self.start()

    def start(self) -> None:
        """Start a reader, as the next bridge does."""
        self.reader = EnergyReader(lambda: self.now, lambda: self.steady)

    def restart(self) -> None:
        """End a reader in order, and start another."""
        self.reader.save(self.pm, ["edge"])
        self.start()

    def log(self, meter_id: str, watts: float, hours_ago: float) -> None:
        """A minute of constant power, so long ago."""
        for minutes in (0, 1):
            at = self.now - hours_ago * HOUR + minutes * 60
            self.pm.log_power(meter_id, 10.0, watts / 10, timestamp=at)

    def read(self) -> DeviceEnergy:
        """The energy as the reader says it."""
        return self.reader.read(self.pm, "edge", self.pm.list_meters("edge"))

    def look_back(self) -> None:
        """Let every meter have its turn to be compared."""
        for _ in range(2 * len(self.pm.list_meters("edge"))):
            self.steady += 100.0
            self.reader.look_back(self.pm)

    def expected(self) -> DeviceEnergy:
        """The energy of all hours, asked anew."""
        meters = self.pm.list_meters("edge")
        counted = {meter.id for meter in counted_meters(meters)}
        energies: dict[str, Energy] = {}
        net_wh: dict[str, float] = defaultdict(float)
        for meter in meters:
            rows = self.pm.get_statistics(meter.id, days=3650)
            energies[meter.id] = Energy(
                sum(row.energy_out_wh for row in rows), sum(row.energy_in_wh for row in rows)
            )
            for row in rows:
                if meter.id in counted:
                    net_wh[row.start] += row.energy_out_wh - row.energy_in_wh
        return DeviceEnergy(energies, sum(max(wh, 0.0) for wh in net_wh.values()))

    def check(self) -> None:
        """The reader says what the file says."""
        found, expected = self.read(), self.expected()
        assert found.meters.keys() == expected.meters.keys()
        for meter_id, energy in found.meters.items():
            assert energy == pytest.approx(expected.meters[meter_id], abs=0.002), meter_id
        assert found.used_wh == pytest.approx(expected.used_wh, abs=0.002)

    def questions(self) -> list[int]:
        """How many hours each question of a new reader brings."""
        counts: list[int] = []
        pm = self.pm

        class Asked:
            def __getattr__(self, name: str) -> Any:
                return getattr(pm, name)

            def get_statistics(self, meter_id: str, days: float) -> Any:
                rows = pm.get_statistics(meter_id, days=days)
                counts.append(len(rows))
                return rows

        asked: Any = Asked()
        self.reader.read(asked, "edge", pm.list_meters("edge"))
        return counts


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A site of which three hundred hours are known."""
    made = Site(tmp_path)
    for hours_ago in range(300, 2, -1):
        made.log(made.battery, 60.0 if hours_ago % 3 else -300.0, hours_ago)
        made.log(made.solar, 120.0, hours_ago)
    made.check()
    yield made
    made.pm.close()


def test_next_start_reads_the_last_hours_only(site: Site) -> None:
    """The sums of the others are there."""
    site.restart()
    site.now += 2 * HOUR

    assert max(site.questions()) < 5
    site.check()


def test_start_after_a_kill_reads_all_hours(site: Site) -> None:
    """Nothing was saved."""
    site.start()

    assert max(site.questions()) > 290
    site.check()


@pytest.mark.parametrize("hours_ago", [200, 2.5])
def test_readings_that_came_while_no_bridge_ran_are_counted(site: Site, hours_ago: float) -> None:
    """Saved sums that the file's totals do not confirm are read anew."""
    site.restart()
    site.log(site.battery, 600.0, hours_ago)

    site.check()


def test_readings_that_were_deleted_while_no_bridge_ran_are_not_counted(site: Site) -> None:
    """The same downwards, for any of the meters."""
    site.restart()
    since = site.now - 100 * HOUR
    site.pm.delete_readings(site.solar, since=since, until=since + 10 * HOUR)

    site.check()


def test_other_meters_than_before_are_read_anew(site: Site) -> None:
    """What the device used in an hour is made of them all."""
    site.restart()
    main = site.pm.add_meter("edge", "main").id
    site.log(main, 600.0, 100.0)
    site.check()
    site.restart()
    site.pm.delete_meter(site.battery)

    site.check()


def test_meter_that_is_written_all_the_time_is_compared_when_it_rests(site: Site) -> None:
    """Until then nothing is taken for known."""
    site.restart()
    writing = True
    pm = site.pm

    class Written:
        """Another program writes between any two questions."""

        def __getattr__(self, name: str) -> Any:
            return getattr(pm, name)

        def get_statistics(self, meter_id: str, days: float) -> Any:
            if writing:
                site.now += 10.0
                pm.log_power(meter_id, 10.0, 6.0)
            return pm.get_statistics(meter_id, days=days)

    written: Any = Written()
    meters = pm.list_meters("edge")
    assert not any(site.reader.prepare(written, "edge", meters) for _ in range(10))
    writing = False
    while not site.reader.prepare(written, "edge", meters):
        pass
    site.check()


def test_nothing_is_kept_of_devices_that_are_gone(site: Site) -> None:
    """Nor of those whose hours are not read yet."""
    site.restart()
    assert load_sum(site.pm, "edge") is not None
    site.pm.register_device("other", "Other")
    site.pm.add_meter("other", "main")
    site.reader.prepare(site.pm, "other", site.pm.list_meters("other"))
    site.reader.save(site.pm, ["other"])

    assert load_sum(site.pm, "edge") is None
    assert load_sum(site.pm, "other") is not None
    with site.pm.connection() as conn:
        sql = "SELECT count(*) FROM mqtt_meter_sums WHERE device_id = 'edge'"
        assert conn.execute(sql).fetchone() == (0,)


def test_device_that_is_not_wholly_read_is_not_saved(tmp_path: Path) -> None:
    """A battery at rest would confirm sums of hours that were not added up yet."""
    site = Site(tmp_path)
    site.log(site.battery, 0.0, 50.0)
    site.log(site.solar, 600.0, 50.0)
    assert not site.reader.prepare(site.pm, "edge", site.pm.list_meters("edge"))
    site.restart()

    site.check()
    site.pm.close()


def test_bridge_saves_the_sums_with_its_counters(site: Site) -> None:
    """So the next one reads the last hours only."""
    counters = Counters(site.reader)
    counters.message(site.pm, "edge", site.pm.list_meters("edge"))
    counters.save(site.pm)
    site.start()

    assert max(site.questions()) < 5


@pytest.mark.parametrize("seed", range(20))
def test_sums_are_those_of_asking_everything_anew(tmp_path: Path, seed: int) -> None:
    """Whatever is written, deleted and pruned, while a bridge runs or not, in any order."""
    chance = random.Random(seed)
    site = Site(tmp_path)
    history: list[str] = []
    for _ in range(60):
        step = chance.choice(["live", "late", "late", "delete", "prune", "kill", "restart", "wait"])
        history.append(step)
        meter_id = chance.choice([site.battery, site.solar])
        watts = chance.uniform(-500.0, 500.0)
        match step:
            case "live":
                site.log(meter_id, watts, 1 / 60)
            case "late":
                site.log(meter_id, watts, chance.uniform(0.0, 400.0))
            case "delete":
                since = (site.now // HOUR - chance.randrange(400)) * HOUR  # whole closed hours
                site.pm.delete_readings(meter_id, since=since, until=since + 20 * HOUR)
            case "prune":
                site.pm.prune(chance.uniform(5.0, 20.0))
            case "kill":
                site.start()
            case "restart":
                site.read()
                site.restart()
                if chance.random() < 0.5:
                    site.log(meter_id, watts, chance.uniform(0.0, 400.0))
            case "wait":
                site.now += chance.uniform(0.0, 5.0) * HOUR
        if step not in ("kill", "restart"):  # a start needs no turn to see what has changed
            site.read()
            site.look_back()
        site.check()
    assert site.pm.check() == [], history
    site.pm.close()
