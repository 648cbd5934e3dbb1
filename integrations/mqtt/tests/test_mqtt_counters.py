"""Counters of energy: what Home Assistant makes of them, whatever happens to the file, the broker
and the bridge.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from power_mqtt.counters import (
    IN_FIELD,
    OUT_FIELD,
    REVISION_FIELD,
    SAVE_EVERY_S,
    USED_FIELD,
    Counters,
    Published,
    read_message,
)
from power_mqtt.energy import EnergyReader

from power_manager import InvalidValue, NotFound, PowerManager

START = 1_750_000_000.0  # 2025-06-15T15:06:40Z
HOUR = 3600.0


class Clock:
    """A clock that tests set; seconds since 1970."""

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time now."""
        return self.now


class HomeAssistant:
    """What Home Assistant's long-term statistics make of a counter that is total_increasing.

    A value of less than nine tenths of the one before is a new meter that began at 0; any other
    difference is added.
    """

    def __init__(self) -> None:
        self.last: float | None = None
        self.sum_wh = 0.0

    def take(self, value: float) -> None:
        """A message has come."""
        if self.last is not None:
            self.sum_wh += value if value < 0.9 * self.last else value - self.last
        self.last = value


class House:
    """A file, a bridge and a broker, with one device of a battery and a main meter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "power.db"
        self.clock = Clock()
        self.pm = self.open()
        self.pm.register_device("edge", "Edge")
        self.battery = self.pm.add_meter("edge", "battery").id
        self.main = self.pm.add_meter("edge", "main").id
        self.retained: bytes | None = None
        self.counters: Counters | None = None
        self.homes: dict[tuple[str, str], HomeAssistant] = {}
        self.start()

    def open(self) -> PowerManager:
        """The file."""
        return PowerManager(self.path, durability="normal", clock=self.clock)

    def log(self, meter_id: str, watts: float, seconds: float) -> None:
        """Constant power for some time, from now on, and none before and after."""
        self.pm.log_power(meter_id, 10.0, 0.0)
        self.clock.now += 1e-3
        self.pm.log_power(meter_id, 10.0, watts / 10)
        self.clock.now += seconds
        self.pm.log_power(meter_id, 10.0, watts / 10)
        self.clock.now += 1e-3
        self.pm.log_power(meter_id, 10.0, 0.0)
        self.clock.now += 1e-3

    def start(self) -> None:
        """Start a bridge, which asks the broker what it holds."""
        self.counters = Counters(EnergyReader(self.clock, self.clock), self.clock)
        if self.retained is not None:
            retained = read_message("edge", self.retained)
            assert retained is not None
            self.counters.recall("edge", retained)

    def message(self) -> dict[str, Any]:
        """What the bridge is about to publish."""
        assert self.counters is not None
        return self.counters.message(self.pm, "edge", self.pm.list_meters("edge"))

    def publish(self) -> dict[str, Any]:
        """Publish; Home Assistant sees it."""
        message = self.message()
        self.retained = json.dumps(message).encode()
        published = read_message("edge", self.retained)
        assert published is not None
        for key, value_wh in published.values_wh.items():
            self.homes.setdefault(key, HomeAssistant()).take(value_wh)
        return message

    def out(self) -> float:
        """Publish, and return what the battery's counter says."""
        value: float = self.publish()["meters"][self.battery][OUT_FIELD]
        return value

    def used(self) -> float:
        """Publish, and return what the device's consumption says."""
        value: float = self.publish()[USED_FIELD]
        return value

    def put_card_back(self, copy: Path) -> None:
        """Replace the file with an older copy of it, of the same file_id."""
        self.pm.close()
        shutil.copy(copy, self.path)
        self.pm = self.open()

    def copy_card(self, name: str) -> Path:
        """A copy of the file as it is now."""
        copy = self.folder / name
        self.pm.close()  # everything is in the one file, then
        shutil.copy(self.path, copy)
        self.pm = self.open()
        return copy


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house in which nothing has been measured yet."""
    found = House(tmp_path)
    yield found
    found.pm.close()


# --- The truth


def test_message_says_what_the_file_says(house: House) -> None:
    """A counter is the library's energy total, and consumption what went out less what went in."""
    house.log(house.battery, 20.0, HOUR)
    house.log(house.battery, -5.0, HOUR)
    house.log(house.main, 30.0, HOUR / 2)

    message = house.publish()

    totals = house.pm.energy_totals(house.battery)
    assert message["meters"][house.battery] == {
        OUT_FIELD: round(totals.energy_out_wh, 3),
        IN_FIELD: round(totals.energy_in_wh, 3),
    }
    assert message["meters"][house.main] == {
        OUT_FIELD: pytest.approx(15.0, abs=0.001),
        IN_FIELD: 0.0,
    }
    assert message["meters"][house.battery] == {
        OUT_FIELD: pytest.approx(20.0, abs=0.001),
        IN_FIELD: pytest.approx(5.0, abs=0.001),
    }


def test_device_without_readings_has_counters_of_zero(house: House) -> None:
    """A meter that has measured nothing has counted nothing."""
    message = house.publish()

    assert message[USED_FIELD] == 0.0
    assert message["meters"][house.main] == {OUT_FIELD: 0.0, IN_FIELD: 0.0}


def test_energy_is_that_of_years_and_of_now(house: House) -> None:
    """Old hours and the last ones add up to the library's total, pruned or not, at any time of
    asking.
    """
    for _ in range(60):
        house.log(house.battery, 10.0, HOUR * 1.1)
        house.clock.now += 9 * HOUR
        total = house.pm.energy_totals(house.battery).energy_out_wh
        assert house.out() == pytest.approx(total, abs=0.0006)
    house.pm.prune(5)
    house.start()

    assert house.out() == pytest.approx(total, abs=0.0006)


def test_charging_from_what_has_no_meter_takes_no_consumption_back(tmp_path: Path) -> None:
    """A battery that is charged in the hours after it was used has been used all the same."""
    clock = Clock()
    with PowerManager(tmp_path / "power.db", clock=clock) as pm:
        pm.register_device("laptop", "Laptop")
        meter = pm.add_meter("laptop", "battery")
        for _ in range(10):
            for watts in (10.0, 0.0, -12.0, 0.0):
                pm.log_power(meter.id, 10.0, watts / 10)
                clock.now += HOUR
                pm.log_power(meter.id, 10.0, watts / 10)
                clock.now += 2 * HOUR  # a gap over which nothing is booked
        counters = Counters(EnergyReader(clock, clock), clock)

        used_wh = counters.message(pm, "laptop", pm.list_meters("laptop"))[USED_FIELD]

    assert 95.0 < used_wh <= 100.0


def test_ups_in_line_with_the_mains_does_not_count_twice(tmp_path: Path) -> None:
    """Consumption has a ups only where there is no main meter."""
    clock = Clock()
    with PowerManager(tmp_path / "power.db", clock=clock) as pm:
        pm.register_device("rack", "Rack")
        for kind in ("main", "ups"):
            meter = pm.add_meter("rack", kind)
            pm.log_power(meter.id, 10.0, 1.0, timestamp=START)
            pm.log_power(meter.id, 10.0, 1.0, timestamp=START + HOUR)
        counters = Counters(EnergyReader(clock, clock), clock)

        assert counters.message(pm, "rack", pm.list_meters("rack"))[USED_FIELD] == 10.0


def test_late_reading_of_an_old_hour_is_counted_in_its_turn(house: House) -> None:
    """What is booked to hours that are read only now and then appears once the device is read whole
    again.
    """
    house.pm.log_power(house.battery, 10.0, 1.0, timestamp=START - 50 * HOUR)
    house.pm.log_power(house.battery, 10.0, 1.0, timestamp=START - 10 * HOUR)
    assert house.out() == 0.0
    house.pm.log_power(house.battery, 10.0, 1.0, timestamp=START - 49 * HOUR)
    assert house.out() == 0.0

    assert house.counters is not None
    for _ in range(2):  # a meter each time
        house.clock.now += 2.0
        house.counters.keep_up(house.pm)

    assert house.out() == 10.0


def test_clock_that_was_years_ahead_does_not_stop_the_counters(house: House) -> None:
    """Readings dated in the future count, and so do those after the clock was set right."""
    house.clock.now += 20 * 365 * 24 * HOUR
    house.log(house.battery, 10.0, HOUR)
    assert house.out() == pytest.approx(10.0, abs=0.001)
    house.clock.now = START + 5 * HOUR
    house.log(house.battery, 10.0, HOUR)
    assert house.counters is not None
    for _ in range(2):
        house.counters._reader._next_turn = 0.0  # this clock goes back, a monotonic one does not
        house.counters.keep_up(house.pm)

    assert house.out() == pytest.approx(20.0, abs=0.001)


class Asked:
    """A PowerManager that notes over how many days it was asked for statistics."""

    def __init__(self, pm: PowerManager) -> None:
        self._pm = pm
        self.days: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pm, name)

    def get_statistics(self, meter_id: str, days: float) -> Any:
        """As the library's."""
        self.days.append(days)
        return self._pm.get_statistics(meter_id, days=days)


def test_years_are_read_once(house: House) -> None:
    """After the first time only the last hours are read, however long the bridge runs."""
    house.log(house.battery, 10.0, HOUR)
    asked: Any = Asked(house.pm)
    reader = EnergyReader(house.clock, house.clock)
    meters = house.pm.list_meters("edge")
    reader.read(asked, "edge", meters)
    first = max(asked.days)
    asked.days.clear()
    for _ in range(50):
        house.log(house.battery, 10.0, HOUR)
        reader.read(asked, "edge", meters)

    assert first > 10_000
    assert max(asked.days) * 24 < 5


def test_turns_take_a_small_share_of_the_time(house: House) -> None:
    """After one meter was looked back at, no other is for 499 times as long."""
    passed = Clock(0.0)
    reads: list[float] = []

    class SlowManager:
        """Half a second for each question."""

        def __getattr__(self, name: str) -> Any:
            return getattr(house.pm, name)

        def get_statistics(self, *args: Any, **options: Any) -> Any:
            passed.now += 0.5
            reads.append(passed.now)
            return house.pm.get_statistics(*args, **options)

    reader = EnergyReader(house.clock, passed)
    slow: Any = SlowManager()
    reader.read(slow, "edge", house.pm.list_meters("edge"))
    reads.clear()
    while passed.now < 10_000:
        passed.now += 1.0
        reader.look_back(slow)

    assert 0 < len(reads) * 0.5 <= 0.0021 * 10_000


# --- Never down, never too far up


def test_correction_downwards_waits(house: House) -> None:
    """Deleted readings leave the counter where it was, until the truth has caught up."""
    house.log(house.battery, 50.0, HOUR)
    middle = house.clock.now
    house.log(house.battery, 50.0, HOUR)
    assert house.out() == pytest.approx(100.0, abs=0.001)
    house.pm.delete_readings(house.battery, since=middle)
    house.start()
    assert house.out() == pytest.approx(100.0, abs=0.001)
    house.log(house.battery, 30.0, HOUR)
    assert house.out() == pytest.approx(100.0, abs=0.001)
    house.log(house.battery, 30.0, HOUR)

    assert house.out() == pytest.approx(110.0, abs=0.002)


@pytest.mark.parametrize("is_running", [True, False])
def test_restored_backup_goes_on_from_what_was_published(house: House, is_running: bool) -> None:
    """After restore the counter neither falls nor jumps, and counts what is measured from then
    on.
    """
    house.log(house.battery, 50.0, HOUR)
    house.publish()
    house.pm.backup(house.folder / "backup.db")
    house.log(house.battery, 70.0, HOUR)
    assert house.out() == pytest.approx(120.0, abs=0.001)
    house.pm.restore(house.folder / "backup.db")
    if not is_running:
        house.start()
    assert house.out() == pytest.approx(120.0, abs=0.001)
    house.log(house.battery, 5.0, HOUR)
    assert house.out() == pytest.approx(125.0, abs=0.002)
    house.start()

    assert house.out() == pytest.approx(125.0, abs=0.002)


@pytest.mark.parametrize("is_killed", [True, False])
def test_gap_after_a_restored_backup_is_not_counted_twice(house: House, is_killed: bool) -> None:
    """Half an hour between the backup and the restoring was counted already, and a new reading
    books it once more.
    """
    pm = house.pm
    for minute in range(31):
        for meter_id, watts in ((house.battery, -60.0), (house.main, 160.0)):
            pm.log_power(meter_id, 10.0, watts / 10)
        if minute == 0:
            house.publish()
            pm.backup(house.folder / "backup.db")
        house.clock.now += 60.0
    before = house.publish()
    assert before["meters"][house.main][OUT_FIELD] == pytest.approx(80.0, abs=0.001)
    pm.restore(house.folder / "backup.db")
    assert house.publish()["meters"] == before["meters"]
    if is_killed:
        house.start()
    for minute in range(31):
        for meter_id, watts in ((house.battery, -60.0), (house.main, 160.0)):
            pm.log_power(meter_id, 10.0, watts / 10)
        house.clock.now += 60.0
        if minute % 7 == 0:
            house.publish()

    after = house.publish()

    assert after["meters"][house.main][OUT_FIELD] == pytest.approx(160.0, abs=0.002)
    assert after["meters"][house.battery][IN_FIELD] == pytest.approx(60.0, abs=0.002)
    assert after[USED_FIELD] == pytest.approx(before[USED_FIELD] + 50.0, abs=0.002)


def test_kill_between_file_and_broker_counts_on_from_the_file(house: House) -> None:
    """A bridge that was killed after it had set its counters anew, and before it published, loses
    nothing.
    """
    house.log(house.battery, 50.0, HOUR)
    house.publish()
    house.pm.backup(house.folder / "backup.db")
    house.pm.restore(house.folder / "backup.db")
    house.start()
    house.message()  # never published
    house.log(house.battery, 5.0, HOUR)
    house.start()

    assert house.out() == pytest.approx(55.0, abs=0.002)


def test_broker_that_forgets_changes_nothing(house: House) -> None:
    """Without retained messages the file's table says how the counters go on."""
    house.log(house.battery, 50.0, HOUR)
    house.pm.backup(house.folder / "backup.db")
    house.publish()
    house.pm.restore(house.folder / "backup.db")
    house.start()
    house.publish()
    house.log(house.battery, 5.0, HOUR)
    house.retained = None
    house.start()

    assert house.out() == pytest.approx(55.0, abs=0.002)


def test_wait_survives_a_broker_that_forgets_after_an_hour(house: House) -> None:
    """What was published is in the file too, as it was an hour ago or at the end of the program."""
    house.log(house.battery, 50.0, HOUR)
    house.publish()
    assert house.counters is not None
    house.clock.now += SAVE_EVERY_S
    house.counters.keep_up(house.pm)
    house.pm.delete_readings(house.battery)
    house.retained = None
    house.start()

    assert house.out() == pytest.approx(50.0, abs=0.001)


def test_wait_that_matters_is_saved_when_it_begins(house: House) -> None:
    """A counter that waits for more than a twentieth is in the file before it is published."""
    house.log(house.battery, 50.0, HOUR)
    house.publish()
    house.log(house.battery, 50.0, HOUR)
    house.publish()
    house.pm.delete_readings(house.battery, since=house.clock.now - 1.5 * HOUR)
    assert house.out() == pytest.approx(100.0, abs=0.001)
    house.retained = None
    house.start()

    assert house.out() == pytest.approx(100.0, abs=0.001)


def test_restored_file_and_forgetful_broker_begin_at_zero(house: House) -> None:
    """Where nobody knows what was published, the counter begins anew, which adds nothing at Home
    Assistant.
    """
    house.log(house.battery, 50.0, HOUR)
    house.publish()
    house.pm.backup(house.folder / "backup.db")
    house.log(house.battery, 5.0, HOUR)
    house.publish()
    before = house.homes[OUT_FIELD, house.battery].sum_wh
    house.pm.restore(house.folder / "backup.db")
    house.retained = None
    house.start()
    assert house.out() == 0.0
    assert house.homes[OUT_FIELD, house.battery].sum_wh == before
    house.log(house.battery, 5.0, HOUR)

    assert house.out() == pytest.approx(5.0, abs=0.001)


def test_older_card_with_the_same_file_id_goes_on(house: House) -> None:
    """A card that was written back is told by its revision: the counter does not wait for days."""
    house.log(house.battery, 50.0, HOUR)
    house.publish()
    card = house.copy_card("card.db")
    house.log(house.battery, 70.0, HOUR)
    assert house.counters is not None
    house.start()
    house.publish()
    house.clock.now += SAVE_EVERY_S
    house.counters.keep_up(house.pm)
    assert house.out() == pytest.approx(120.0, abs=0.001)
    house.put_card_back(card)
    house.start()
    assert house.out() == pytest.approx(120.0, abs=0.001)
    house.log(house.battery, 5.0, HOUR)

    assert house.out() == pytest.approx(125.0, abs=0.002)


def test_original_file_that_comes_back_goes_on(house: House) -> None:
    """Two files in turn under one name: each goes on from what the other has published."""
    house.log(house.battery, 50.0, HOUR)
    house.publish()
    original = house.copy_card("original.db")
    house.pm.backup(house.folder / "backup.db")
    house.pm.restore(house.folder / "backup.db")
    house.start()
    house.publish()
    house.log(house.battery, 40.0, HOUR)
    assert house.out() == pytest.approx(90.0, abs=0.002)
    house.put_card_back(original)
    house.start()
    assert house.out() == pytest.approx(90.0, abs=0.002)
    house.log(house.battery, 5.0, HOUR)

    assert house.out() == pytest.approx(95.0, abs=0.003)


# --- Devices and meters that come and go


@pytest.mark.parametrize("is_running", [True, False])
def test_deleted_meter_takes_no_consumption_back(house: House, is_running: bool) -> None:
    """A device whose meter was deleted goes on counting what the others measure."""
    house.log(house.main, 500.0, HOUR)
    house.log(house.battery, 10.0, HOUR)
    assert house.used() == pytest.approx(510.0, abs=0.002)
    house.pm.delete_meter(house.main)
    if not is_running:
        house.start()
    assert house.used() == pytest.approx(510.0, abs=0.002)
    house.log(house.battery, 10.0, HOUR)

    assert house.used() == pytest.approx(520.0, abs=0.003)


def test_new_meter_with_a_past_does_not_make_consumption_jump(house: House) -> None:
    """What an imported log says of the years before is no consumption of this moment."""
    house.log(house.battery, 10.0, HOUR)
    house.publish()
    solar = house.pm.add_meter("edge", "solar")
    rows = [(solar.id, 10.0, 10.0, None, START - hour * HOUR) for hour in range(1, 1000)]
    house.pm.log_many(rows)

    message = house.publish()

    assert message[USED_FIELD] == pytest.approx(10.0, abs=0.001)
    assert message["meters"][solar.id][OUT_FIELD] == pytest.approx(99_800.0)


def test_device_that_is_registered_again_goes_on(house: House) -> None:
    """A device that was deleted and comes back under its id counts on, and does not wait."""
    house.log(house.main, 500.0, HOUR)
    house.publish()
    house.pm.delete_device("edge")
    house.pm.register_device("edge", "Edge")
    house.battery = house.pm.add_meter("edge", "battery").id
    assert house.used() == pytest.approx(500.0, abs=0.001)
    house.log(house.battery, 7.0, HOUR)

    assert house.used() == pytest.approx(507.0, abs=0.002)


def test_meter_that_is_gone_is_not_found(house: House) -> None:
    """A meter that was deleted since the caller's look is an error, and nothing is published of
    it.
    """
    meters = house.pm.list_meters("edge")
    house.pm.delete_meter(house.battery)
    assert house.counters is not None

    with pytest.raises(NotFound, match=house.battery):
        house.counters.message(house.pm, "edge", meters)


def test_table_forgets_what_is_gone(house: House) -> None:
    """Rows of deleted meters do not stay in the file for ever."""
    house.publish()
    house.pm.delete_meter(house.main)
    house.publish()
    assert house.counters is not None
    house.counters.save(house.pm)

    with house.pm.connection() as conn:
        ids = {id_ for (id_,) in conn.execute("SELECT id FROM mqtt_counters")}
    assert ids == {"edge", house.battery}
    house.pm.delete_device("edge")
    house.pm.register_device("other", "Other")
    house.counters.message(house.pm, "other", [])
    house.counters.save(house.pm)
    with house.pm.connection() as conn:
        lines = conn.execute("SELECT device_id FROM mqtt_counter_lines").fetchall()
    assert lines == [("other",)]


def test_two_bridges_of_one_file_agree(house: House) -> None:
    """Two brokers, a bridge for each: neither takes the other's rows for another file's."""
    first, second = (
        Counters(EnergyReader(house.clock, house.clock), house.clock) for _ in range(2)
    )
    last = 0.0
    for turn in range(30):
        house.log(house.battery, 10.0, HOUR)
        for counters in (first, second):
            meters = house.pm.list_meters("edge")
            value = counters.message(house.pm, "edge", meters)["meters"][house.battery][OUT_FIELD]
            counters.keep_up(house.pm)
            assert last <= value == pytest.approx(10.0 * (turn + 1), abs=0.002)
        last = value
        if turn == 15:
            house.pm.backup(house.folder / "backup.db")
            house.pm.restore(house.folder / "backup.db")
            for counters in (first, second):
                counters.message(house.pm, "edge", house.pm.list_meters("edge"))


def test_nothing_is_written_while_nothing_is_new(house: House) -> None:
    """Publishing more energy costs no commit: flash lasts longer."""
    house.publish()
    for _ in range(10):
        house.log(house.battery, 10.0, 60.0)
        before = house.pm.data_version()
        house.publish()
        assert house.pm.data_version() == before


# --- What the broker holds


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"online",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"null",
        b'{"consumption_wh": 5, "counter_revision": 1}',
        b'{"consumption_wh": 5, "counter_revision": 1, "file_id": ""}',
        b'{"consumption_wh": 5, "counter_revision": 1, "file_id": 7}',
        b'{"consumption_wh": 5, "counter_revision": "1", "file_id": "f"}',
        b'{"consumption_wh": 5, "counter_revision": true, "file_id": "f"}',
        b'{"consumption_wh": 5, "counter_revision": -1, "file_id": "f"}',
        b'{"consumption_wh": 5, "counter_revision": 1e300, "file_id": "f"}',
        b'{"consumption_wh": 5, "file_id": "f"}',
    ],
)
def test_what_is_not_ours_says_nothing(payload: bytes) -> None:
    """Anybody can write to a broker: what is not a message of this package is none."""
    assert read_message("edge", payload) is None


@pytest.mark.parametrize(
    "fields",
    [
        '"consumption_wh": -5',
        '"consumption_wh": NaN',
        '"consumption_wh": 1e13',
        '"consumption_wh": 1' + "0" * 400,
        '"consumption_wh": true',
        '"consumption_wh": "5", "meters": [1]',
        '"meters": {"m": 5}',
        '"meters": {"m": {"energy_out_wh": null}}',
    ],
)
def test_value_that_is_no_energy_is_no_counter(fields: str) -> None:
    """A value that was never published does not hold a counter up."""
    found = read_message("edge", '{"counter_revision": 1, "file_id": "f", ' + fields + "}")

    assert found == Published("f", 1, {}, "9999")


def test_message_is_read_back(house: House) -> None:
    """Every counter that is published is recalled from the message."""
    house.log(house.battery, 10.0, HOUR)
    message = house.publish()

    found = read_message("edge", json.dumps(message))

    assert found == Published(
        house.pm.file_id,
        message[REVISION_FIELD],
        {
            (USED_FIELD, "edge"): message[USED_FIELD],
            **{
                (name, meter_id): value
                for meter_id, of_meter in message["meters"].items()
                for name, value in of_meter.items()
            },
        },
        message["time"],
    )


def test_retained_value_is_never_undercut(house: House) -> None:
    """Also one that is recalled at a later connection."""
    house.log(house.battery, 10.0, HOUR)
    house.publish()
    assert house.counters is not None
    retained = Published("another", 1, {(OUT_FIELD, house.battery): 500.0})
    house.counters.recall("edge", retained)

    assert house.out() == 500.0


# --- Whatever happens


class Fate:
    """A random life of a house, and what Home Assistant must think of it.

    `gross`: the energy that was ever measured, by counter. More than that would be a false jump.
    `taken`: what corrections have taken from the truth: a counter may have to wait for that much.
    """

    def __init__(self, house: House, seed: int) -> None:
        self.house = house
        self.chance = random.Random(seed)
        self.gross: dict[tuple[str, str], float] = {}
        self.taken: dict[tuple[str, str], float] = {}
        self.backups: list[Path] = []
        self.cards: list[Path] = []
        self.is_card_old = False  # nothing was published since a card was put back
        self.has_fallen = False  # a truth has, since the counters were saved at the end of a bridge
        self.is_forgotten = False  # nothing was published since the broker forgot
        self.history: list[str] = []

    def truths(self) -> dict[tuple[str, str], float]:
        """The energy of each meter, as the library says it."""
        house = self.house
        found = {}
        for meter in house.pm.list_meters("edge"):
            totals = house.pm.energy_totals(meter.id)
            found[OUT_FIELD, meter.id] = totals.energy_out_wh
            found[IN_FIELD, meter.id] = totals.energy_in_wh
        return found

    def measured(self, before: dict[tuple[str, str], float]) -> None:
        """Book what the truth has gained, or lost, since."""
        for key, truth in self.truths().items():
            gain = truth - before[key]
            book = self.gross if gain > 0 else self.taken
            self.has_fallen = self.has_fallen or gain < 0
            book[key] = book.get(key, 0.0) + abs(gain)

    # What can happen

    def log(self) -> None:
        """Something is measured."""
        before = self.truths()
        meter_id = self.chance.choice([self.house.battery, self.house.main])
        self.house.log(meter_id, self.chance.uniform(-100, 300), self.chance.uniform(1, 3 * HOUR))
        self.measured(before)

    def correct(self) -> None:
        """Readings are deleted."""
        if self.is_forgotten:
            return  # a truth that falls while nobody knows what was published is beyond knowing
        before = self.truths()
        meter_id = self.chance.choice([self.house.battery, self.house.main])
        since = self.house.clock.now - self.chance.uniform(0, 10 * HOUR)
        until = since + self.chance.uniform(1, 5 * HOUR)
        try:
            self.house.pm.delete_readings(meter_id, since=since, until=until)
        except InvalidValue:
            return  # it would cut an hour that prune() has closed
        self.measured(before)

    def late(self) -> None:
        """A reading comes late."""
        if self.is_forgotten:
            return  # it can lower the truth a little, as above
        before = self.truths()
        meter_id = self.chance.choice([self.house.battery, self.house.main])
        at = self.house.clock.now - self.chance.uniform(0, 30 * HOUR)
        self.house.pm.log_power(meter_id, 10.0, self.chance.uniform(-5, 20), timestamp=at)
        self.measured(before)

    def prune(self) -> None:
        """Old readings go, and their statistics stay."""
        self.house.pm.prune(self.chance.uniform(0, 1))

    def wait(self) -> None:
        """Time passes."""
        self.house.clock.now += self.chance.uniform(60, 2 * HOUR)
        assert self.house.counters is not None
        self.house.counters.keep_up(self.house.pm)

    def publish(self) -> None:
        """The bridge publishes."""
        self.house.publish()
        self.is_card_old = self.is_forgotten = False

    def kill(self) -> None:
        """The bridge is killed, and starts again."""
        self.house.start()

    def kill_before_publishing(self) -> None:
        """The bridge is killed after it has written to the file."""
        self.house.message()
        self.house.start()

    def end(self) -> None:
        """The bridge ends in order, and starts again."""
        assert self.house.counters is not None
        self.house.counters.save(self.house.pm)
        self.house.start()
        self.has_fallen = False

    def backup(self) -> None:
        """A backup is made."""
        path = self.house.folder / f"backup{len(self.backups)}.db"
        self.house.pm.backup(path)
        self.backups.append(path)

    def restore(self) -> None:
        """A backup is restored."""
        if self.backups:
            self.house.pm.restore(self.chance.choice(self.backups))

    def copy_card(self) -> None:
        """The card is copied."""
        self.cards.append(self.house.copy_card(f"card{len(self.cards)}.db"))

    def put_card_back(self) -> None:
        """The card is replaced with an older copy."""
        # A card that is put back while the broker forgets is beyond knowing.
        if self.cards and self.house.retained is not None:
            before = self.truths()
            self.house.put_card_back(self.chance.choice(self.cards))
            self.is_card_old = True
            for key, truth in self.truths().items():
                # If nothing was saved since the copy was made, the counter waits for what was lost.
                self.taken[key] = self.taken.get(key, 0.0) + max(before[key] - truth, 0.0)

    def forget(self) -> None:
        """The broker loses what it retained, and the bridge starts again."""
        if not self.is_card_old and not self.has_fallen:
            self.house.retained = None
            self.is_forgotten = True
            self.house.start()  # a bridge that goes on would have it published again

    def live(self, steps: int) -> None:
        """That many things happen; each time Home Assistant may have counted what was measured, and
        no more.
        """
        names = (
            ["log"] * 6
            + ["publish"] * 6
            + ["correct", "late", "prune", "wait", "wait", "kill", "kill_before_publishing", "end"]
            + ["backup", "restore", "copy_card", "put_card_back", "forget"]
        )
        self.publish()
        for _ in range(steps):
            name = self.chance.choice(names)
            self.history.append(name)
            sums = {key: home.sum_wh for key, home in self.house.homes.items()}
            lasts = {key: home.last or 0.0 for key, home in self.house.homes.items()}
            was_forgotten = self.is_forgotten
            getattr(self, name)()
            for key, home in self.house.homes.items():
                # A wait for a little is not worth a commit, and Home Assistant takes it for a
                # correction.
                fall_wh = 0.06 * lasts[key] if was_forgotten else 0.0
                assert home.sum_wh >= sums[key] - fall_wh - 0.01, (key, self.history)
                field, _ = key
                if key in self.gross or field != USED_FIELD:
                    assert home.sum_wh <= self.gross.get(key, 0.0) + 0.01, (key, self.history)


@pytest.mark.parametrize("seed", range(40))
def test_home_assistant_counts_no_energy_that_was_not_measured(house: House, seed: int) -> None:
    """Whatever happens, in any order: sums never fall and never exceed what was measured, and go on
    in the end.
    """
    fate = Fate(house, seed)
    fate.live(80)
    assert house.counters is not None
    fate.publish()
    key = (OUT_FIELD, house.battery)
    sum_wh = house.homes[key].sum_wh
    taken_wh = fate.taken.get(key, 0.0)

    house.log(house.battery, 1000.0, HOUR)
    fate.publish()

    gained_wh = house.homes[key].sum_wh - sum_wh
    assert 1000.0 - taken_wh - 0.1 <= gained_wh <= 1000.1, fate.history


def test_consumption_of_a_restored_file_counts_each_hour_once(house: House) -> None:
    """The device's consumption goes through restores as its meters' counters do."""
    house.log(house.main, 100.0, HOUR)
    assert house.used() == pytest.approx(100.0, abs=0.001)
    house.pm.backup(house.folder / "backup.db")
    house.log(house.main, 50.0, HOUR)
    assert house.used() == pytest.approx(150.0, abs=0.002)
    house.pm.restore(house.folder / "backup.db")
    house.log(house.main, 10.0, HOUR)
    house.start()

    assert house.used() == pytest.approx(150.0, abs=0.002)
    house.log(house.main, 10.0, HOUR)
    assert house.used() == pytest.approx(160.0, abs=0.003)
