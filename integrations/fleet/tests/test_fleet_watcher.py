"""What the service sees of a fleet as it happens: FleetWatcher, and the numbers of events that it
goes by.
"""

from __future__ import annotations

import itertools
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from fleet_harness import NOW, Clock, carry, emptied, random_device
from power_fleet import tables
from power_fleet.engine import Engine
from power_fleet.hours import close_hours
from power_fleet.read import FleetSource
from power_fleet.read_sql import PLACES
from power_service.fleet_watcher import FleetWatcher
from power_service.presence import Changes

from power_manager import HOUR_US, NotFound, PowerManager, to_microseconds


def describe(changes: Changes | None) -> list[str]:
    """The frames of a look, in a few words."""
    assert changes is not None
    if changes.error is not None:
        raise changes.error
    found = []
    for frame in changes.frames:
        message = json.loads(frame.text)
        kind = message["type"]
        if kind == "deleted":
            kind += f" {message['kind']}"
        found.append(f"{kind} {frame.device_id}")
    return found


class Standing:
    """A clock that goes on by two seconds with each look, but not within one."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


class TestWatcher:
    """What devices send is seen, and nothing else."""

    def test_what_comes_is_told_once(self, tmp_path: Path, new_urls: list[str]) -> None:
        """Readings and states of the meters that changed, new devices, events, deletions; then
        nothing.
        """
        engine = Engine(emptied(new_urls))
        clock = Standing()
        watcher = FleetWatcher(FleetSource(lambda: new_urls, settle_seconds=0), 1.0, clock)
        stream_clock = itertools.count(NOW)

        def look() -> list[str]:
            clock.now += 2.0
            return describe(watcher.look())

        assert look() == []
        with PowerManager(tmp_path / "p.db") as pm:
            pm.register_device("a", "A")
            main = pm.add_meter("a", "main")
            pm.add_meter("a", "battery")
            pm.log_power(main.id, 10.0, 2.0)
            carry(pm, engine, clock=lambda: next(stream_clock))
            assert look() == ["device a", "reading a", "meter a", "meter a"]
            assert look() == []
            pm.log_power(main.id, 10.0, 3.0)
            pm.trigger_event("a", "restore")
            carry(pm, engine, clock=lambda: next(stream_clock))
            assert look() == ["event a", "reading a", "meter a"]
            pm.update_device("a", name="B")
            carry(pm, engine, clock=lambda: next(stream_clock))
            assert look() == ["device a"]
            pm.delete_readings(main.id, since=0)
            carry(pm, engine, clock=lambda: next(stream_clock))
            assert sorted(look()) == ["deleted readings a", "meter a"]
            assert look() == []
            pm.delete_meter(main.id)
            carry(pm, engine, clock=lambda: next(stream_clock))
            assert look() == ["deleted meter a"]
            pm.delete_device("a")
            carry(pm, engine, clock=lambda: next(stream_clock))
            clock.now += 60
            assert sorted(look()) == ["deleted device a", "deleted meter a"]

    def test_many_events_are_told_in_pages(
        self, tmp_path: Path, new_urls: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One look after the other, without a pause; each once."""
        monkeypatch.setattr("power_service.fleet_watcher._EVENTS_A_LOOK", 4)
        engine = Engine(emptied(new_urls))
        source = FleetSource(lambda: new_urls, settle_seconds=0)
        watcher = FleetWatcher(source, 1.0, lambda: 0.0)
        assert watcher.look() is not None
        assert watcher.look() is None, "the clock stands: it is not time yet"
        watcher._next_look = 0.0
        with PowerManager(tmp_path / "p.db") as pm:
            pm.register_device("a", "A")
            for number in range(11):
                pm.trigger_event("a", "restore", number)
            carry(pm, engine)
        found = []
        while (changes := watcher.look()) is not None:
            assert len(changes.events) <= 4
            found += changes.events
        assert [event.value for _, event in found] == list(range(11))

    def test_what_was_there_before_it_is_no_news(self, tmp_path: Path, new_urls: list[str]) -> None:
        """The meters are there to be shown, and nothing else of them is told; nor are events."""
        engine = Engine(emptied(new_urls))
        with PowerManager(tmp_path / "p.db") as pm:
            pm.register_device("a", "A")
            pm.log_power(pm.add_meter("a", "main").id, 10.0, 2.0)
            pm.trigger_event("a", "restore")
            carry(pm, engine)
        source = FleetSource(lambda: new_urls)
        watcher = FleetWatcher(source, 1.0, Standing())
        assert describe(watcher.look()) == ["meter a"]
        assert watcher.sequence == source.last_sequence() > 0
        bounds = watcher.bounds()
        assert 0 < bounds.oldest <= bounds.latest == watcher.sequence


def test_a_message_of_too_many_events_hides_no_others(new_urls: list[str]) -> None:
    """A device that sends more in one than there are numbers for loses those, and nobody else
    any.
    """
    engine = Engine(emptied(new_urls))

    def row(device_id: str, number: int, taken: int) -> list[Any]:
        return [
            device_id, number, f"{device_id}-{number}", number, "restore", 0.0, None, None, taken,
            1, 0,
        ]  # fmt: skip

    flood = [row("a", number, 5) for number in range(PLACES + 10)]
    engine.shards[0].insert("power_events", tables.EVENTS, [*flood, row("b", 1, 6)])
    source = FleetSource(lambda: new_urls, settle_seconds=0)
    events = source.events_since(0, limit=3 * PLACES)
    assert len(events) == PLACES
    numbers = [number for number, _ in events]
    assert numbers == sorted(numbers)
    *_, before_last, last = numbers
    assert dict(events)[last].device_id == "b"
    assert list(islice(source.events_since(before_last), 2)) == events[-1:]


def test_what_is_retired_is_in_no_list_and_keeps_its_history(
    tmp_path: Path, new_urls: list[str]
) -> None:
    """A device and a meter; taken back they are there again, and who follows the stream is told."""
    engine = Engine(emptied(new_urls))
    with PowerManager(tmp_path / "p.db") as pm:
        for device_id in ("a", "b"):
            pm.register_device(device_id, device_id)
        meters = [pm.add_meter(device_id, kind) for device_id in "ab" for kind in ("main", "ups")]
        for meter in meters:
            pm.log_power(meter.id, 10.0, 2.0)
        carry(pm, engine)
        energy = pm.get_statistics(meters[0].id)
    source = FleetSource(lambda: new_urls, settle_seconds=0)
    clock = Standing()
    watcher = FleetWatcher(source, 1.0, clock)
    watcher.look()

    def retire(device_id: str, meter_id: str, retired: int, at: int) -> list[str]:
        row = [device_id, meter_id, retired, at, ""]
        engine.shards[0].insert("power_retired", tables.RETIRED, [row])
        clock.now += 60
        return sorted(describe(watcher.look()))

    assert retire("a", "", 1, 1) == ["deleted device a", "deleted meter a", "deleted meter a"]
    assert retire("b", meters[3].id, 1, 1) == ["deleted meter b"]
    assert [device.id for device in source.list_devices()] == ["b"]
    assert [meter.id for meter in source.list_meters()] == [meters[2].id]
    assert list(source.meters_of(["a", "b"])) == ["b"]
    assert source.devices_of(["a"]) == []
    assert [row["device_id"] for row in source.fleet_devices()] == ["b"]
    assert source.get_device("a").name == "a"
    assert source.get_statistics(meters[0].id) == energy
    assert len(list(source.iter_history(meters[3].id))) == 1
    with pytest.raises(NotFound):
        source.get_meter(meters[3].id)
    assert retire("a", "", 0, 2) == ["device a", *["meter a"] * 2, *["reading a"] * 2]


def test_hours_whose_readings_are_gone_are_as_they_were_kept(
    tmp_path: Path, new_urls: list[str]
) -> None:
    """Whatever comes of them late."""
    engine = Engine(emptied(new_urls))
    clock = Clock()
    with random_device(tmp_path / "p.db", 4, "edge", clock) as pm:
        carry(pm, engine)
        meter_id = pm.list_meters()[0].id
        expected = pm.get_statistics(meter_id, days=30)
    close_hours(engine, int(NOW * 1e6))
    source = FleetSource(lambda: new_urls, clock)
    before = source.get_statistics(meter_id, days=30)
    assert len(before) == len(expected)
    old = to_microseconds(before[0].start) // HOUR_US
    # As `power-fleet schema --keep-readings` stores it, without the engine's own clock, which is
    # another one.
    keep = ["readings", 7, 0, int(NOW * 1e6)]
    engine.shards[0].insert("power_keep", tables.KEEP, [keep])
    engine.shards[0].do(
        f"ALTER TABLE power_readings DELETE WHERE hour <= {old} SETTINGS mutations_sync = 1"
    )
    late = ["edge", meter_id, old * HOUR_US + 1, 1.0, 1.0, None, 0, 2**40, 0]
    engine.shards[0].insert("power_readings", tables.READINGS, [late])
    engine.shards[0].insert("power_touched", tables.TOUCHED, [["edge", old, 1]])
    assert source.get_statistics(meter_id, days=30) == before
