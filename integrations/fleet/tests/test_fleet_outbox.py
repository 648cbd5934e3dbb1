"""The outbox gives out everything once it is needed, and the same again until it is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_harness import NOW, Clock
from power_fleet.codec import Batch, encode
from power_fleet.outbox import EVENTS, READINGS, Outbox, Parcel

from power_manager import PowerManager


@pytest.fixture
def clock() -> Clock:
    """The file's clock."""
    return Clock()


@pytest.fixture
def pm(tmp_path: Path, clock: Clock) -> Iterator[PowerManager]:
    """A file with two devices of one meter each."""
    with PowerManager(tmp_path / "a.db", clock=clock) as manager:
        for name in ("a", "b"):
            manager.register_device(name, name)
            manager.add_meter(name, "battery", name=name)
        yield manager


def drained(outbox: Outbox) -> list[Batch]:
    """All batches that are left, done with."""
    batches: list[Batch] = []
    while (parcel := outbox.take()).batches:
        batches += parcel.batches
        outbox.done(parcel)
    return batches


def sent(parcel: Parcel) -> list[tuple[str, bytes]]:
    """What would go over the wire."""
    return [encode(batch) for batch in parcel.batches]


def test_everything_travels_once(pm: PowerManager, clock: Clock) -> None:
    """Readings in batches of one device and at most 500, events, devices and meters; then nothing more."""
    meters = pm.list_meters()
    pm.log_many([(meter.id, 1.0, 1.0, 50.0, NOW - n) for n in range(700) for meter in meters])
    for _ in range(EVENTS + 1):
        pm.trigger_event("a", "restore")
    outbox = Outbox(pm, "here", clock)
    batches = drained(outbox)
    assert {len(batch.readings) for batch in batches} <= set(range(READINGS + 1))
    rows = [(batch.device_id, row.meter_id, row.at) for batch in batches for row in batch.readings]
    assert len(rows) == len(set(rows)) == 1400
    assert {(d, m) for d, m, _ in rows} == {(meter.device_id, meter.id) for meter in meters}
    assert sum(len(batch.events) for batch in batches) == EVENTS + 1
    assert sorted(device.name for batch in batches for device in batch.devices) == ["a", "b"]
    assert {device.site for batch in batches for device in batch.devices} == {"here"}
    assert outbox.take().batches == []


def test_what_is_not_done_comes_again_to_the_byte(
    pm: PowerManager, clock: Clock, tmp_path: Path
) -> None:
    """After a crash between sending and noting it, another process sends the very same messages."""
    pm.log_power(pm.list_meters()[0].id, 1.0, 1.0, 10.0)
    first = sent(Outbox(pm, clock=clock).take())
    clock.now += 5
    with PowerManager(tmp_path / "a.db", clock=clock) as again:
        assert sent(Outbox(again, clock=clock).take()) == first


def test_late_readings_lower_the_mark(pm: PowerManager, clock: Clock) -> None:
    """A reading of before what was sent is sent, also one that comes between taking and noting."""
    meter = pm.list_meters()[0].id
    outbox = Outbox(pm, clock=clock)
    pm.log_power(meter, 1.0, 1.0, timestamp=NOW)
    parcel = outbox.take()
    pm.log_power(meter, 2.0, 1.0, timestamp=NOW - 100)
    outbox.done(parcel)
    rows = [row.at for batch in drained(outbox) for row in batch.readings]
    assert int((NOW - 100) * 1e6) in rows


def test_a_changed_clock_changes_nothing(pm: PowerManager, clock: Clock) -> None:
    """Live readings of a clock that jumps back by years travel, and the newest state has the highest revision."""
    meter = pm.list_meters()[0].id
    outbox = Outbox(pm, clock=clock)
    revisions = []
    for step, now in enumerate((NOW, NOW - 1e8, NOW + 1e8, NOW)):
        clock.now = now
        pm.log_power(meter, float(step), 1.0)
        batches = drained(outbox)
        states = [state for batch in batches for state in batch.meters if state.id == meter]
        assert [state.voltage for state in states] == [float(step)]
        assert sum(len(batch.readings) for batch in batches) >= 1
        revisions.append(states[0].revision)
    assert revisions == sorted(set(revisions))


def test_nothing_is_noted_where_a_part_fails(pm: PowerManager, clock: Clock) -> None:
    """Marks of readings, events and records are one transaction."""
    pm.log_power(pm.list_meters()[0].id, 1.0, 1.0, 10.0)
    outbox = Outbox(pm, clock=clock)
    parcel = outbox.take()
    before = sent(parcel)
    parcel.records.append(("not a revision", "device", "a", "one too many"))  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(OSError, match="ProgrammingError"):
        outbox.done(parcel)
    assert sent(outbox.take()) == before


def test_a_long_note_fits_into_a_message(pm: PowerManager, clock: Clock) -> None:
    """The largest events there can be stay below NATS's 1 MB."""
    import random

    chance = random.Random(1)
    for _ in range(EVENTS):
        pm.trigger_event(
            "a",
            "restore",
            note="".join(chr(chance.randrange(0x10000, 0x10FFFF)) for _ in range(10_000)),
        )
    assert all(len(data) < 2**20 for _, data in sent(Outbox(pm, clock=clock).take()))


def test_many_meters_are_split(pm: PowerManager, clock: Clock) -> None:
    """A device of 250 meters is several messages, each meter in one of them."""
    for number in range(249):
        pm.add_meter("a", "main", name=str(number))
    batches = [batch for batch in Outbox(pm, clock=clock).take().batches if batch.device_id == "a"]
    assert [len(batch.meters) for batch in batches] == [100, 100, 50]
