"""What the service sees of a fleet as it happens: FleetWatcher, and the numbers of events that it goes by."""

from __future__ import annotations

import itertools
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from fleet_harness import NOW, carry, emptied
from power_fleet import schema
from power_fleet.engine import Engine
from power_fleet.read import PLACES, FleetSource
from power_service.fleet_watcher import FleetWatcher
from power_service.presence import Changes

from power_manager import PowerManager


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
        """Readings and states of the meters that changed, new devices, events, deletions; then nothing."""
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
    """A device that sends more in one than there are numbers for loses those, and nobody else any."""
    engine = Engine(emptied(new_urls))

    def row(device_id: str, number: int, taken: int) -> list[Any]:
        return [
            device_id, number, f"{device_id}-{number}", number, "restore", 0.0, None, None, taken, 1, 0,
        ]  # fmt: skip

    flood = [row("a", number, 5) for number in range(PLACES + 10)]
    engine.shards[0].insert("power_events", schema.EVENTS, [*flood, row("b", 1, 6)])
    source = FleetSource(lambda: new_urls, settle_seconds=0)
    events = source.events_since(0, limit=3 * PLACES)
    assert len(events) == PLACES
    assert events[-1][1].device_id == "b"
    assert events == sorted(events, key=lambda one: one[0])
    assert list(islice(source.events_since(events[-2][0]), 2)) == events[-1:]
