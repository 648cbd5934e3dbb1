"""The outbox gives out everything once it is needed, and the same again until it is done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_harness import NOW, Clock
from power_fleet.codec import Batch, encode
from power_fleet.outbox import DELETIONS, EVENTS, READINGS, Outbox, Parcel

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


def test_a_late_reading_is_sent_alone(pm: PowerManager, clock: Clock) -> None:
    """Of a thousand that were sent before, none is sent again."""
    meter = pm.list_meters()[0].id
    outbox = Outbox(pm, clock=clock)
    pm.log_many([(meter, 1.0, 1.0, 50.0, NOW - n) for n in range(1000)])
    drained(outbox)
    pm.log_power(meter, 2.0, 1.0, timestamp=NOW - 500.5)
    rows = [row.voltage for batch in drained(outbox) for row in batch.readings]
    assert rows == [2.0]


def test_a_late_reading_that_comes_between_is_sent(pm: PowerManager, clock: Clock) -> None:
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


def test_what_is_not_known_travels(pm: PowerManager, clock: Clock) -> None:
    """Readings without volts or amperes, states without watts, inactive meters and alerts with their meter."""
    first, second = pm.list_meters()
    pm.log_power(first.id, None, 1.5, 10.0)
    pm.update_meter(second.id, active=False)
    (event,) = pm.get_events("a")
    batches = drained(Outbox(pm, clock=clock))
    (reading,) = [row for batch in batches for row in batch.readings]
    assert (reading.voltage, reading.current_draw, reading.charge_pct) == (None, 1.5, 10.0)
    states = {meter.id: meter for batch in batches for meter in batch.meters}
    known = {id_: (one.active, one.power_known, one.alert_level) for id_, one in states.items()}
    assert known == {first.id: (True, False, "low"), second.id: (False, True, "none")}
    assert [(row.id, row.meter_id) for batch in batches for row in batch.events] == [
        (event.id, first.id)
    ]


def test_deletions_go_first_and_by_themselves(
    pm: PowerManager, clock: Clock, tmp_path: Path
) -> None:
    """The same to the byte until they are noted; what is sent before and after them can be told apart."""
    meter = pm.list_meters()[0].id
    outbox = Outbox(pm, clock=clock)
    pm.log_power(meter, 1.0, 1.0)
    before = max(batch.generation for batch in drained(outbox))
    pm.delete_readings(meter, since=NOW - 60)
    pm.log_power(meter, 2.0, 1.0, timestamp=NOW)
    clock.now = NOW - 1e8
    first = outbox.take()
    assert [batch.readings for batch in first.batches if batch.readings] == []
    (deletion,) = [row for batch in first.batches for row in batch.deletions]
    assert deletion[1:] == ("readings", meter, int((NOW - 60) * 1e6), None)
    with PowerManager(tmp_path / "a.db", clock=clock) as again:
        clock.now += 5
        assert sent(Outbox(again, clock=clock).take()) == sent(first)
    outbox.done(first)
    (batch,) = [batch for batch in drained(outbox) if batch.readings]
    assert [row.voltage for row in batch.readings] == [2.0]
    assert before < deletion.revision < batch.generation
    assert pm.pending_deletions() == []


def test_a_deletion_between_taking_and_noting_waits(pm: PowerManager, clock: Clock) -> None:
    """Its revision is higher than that of the one that was sent."""
    meter = pm.list_meters()[0].id
    outbox = Outbox(pm, clock=clock)
    pm.log_power(meter, 1.0, 1.0)
    drained(outbox)
    revisions = []
    pm.delete_readings(meter)
    for _ in range(3):
        parcel = outbox.take()
        pm.delete_readings(meter)
        outbox.done(parcel)
        revisions += [row.revision for batch in parcel.batches for row in batch.deletions]
    assert len(revisions) == 3
    assert revisions == sorted(set(revisions))


def test_more_deletions_than_a_message_has(pm: PowerManager, clock: Clock) -> None:
    """No reading goes before the last of them: it could have been recorded in the place of what that deleted."""
    meter = pm.list_meters()[0].id
    outbox = Outbox(pm, clock=clock)
    with pm.transaction():
        for number in range(DELETIONS + 1):
            pm.delete_readings(meter, until=NOW - number)
    pm.log_power(meter, 1.0, 1.0)
    kinds = [
        (len(batch.deletions), len(batch.readings)) for batch in drained(outbox) if not batch.meters
    ]
    assert kinds == [(DELETIONS, 0), (1, 0), (0, 1)]


def test_a_deleted_device_leaves_nothing_behind(pm: PowerManager, clock: Clock) -> None:
    """In the file; and registered again it is news, newer than its deletion by any clock."""
    outbox = Outbox(pm, clock=clock)
    drained(outbox)
    pm.delete_device("a")
    clock.now = NOW - 1e8
    batches = drained(outbox)
    (deletion,) = [row for batch in batches for row in batch.deletions]
    assert (deletion.kind, deletion.meter_id) == ("device", None)
    with pm.connection() as conn:
        (content,) = conn.execute("SELECT id FROM fleet_records WHERE kind = 'device'").fetchall()
    assert content == ("b",)
    pm.register_device("a", "Again")
    (device,) = [row for batch in drained(outbox) for row in batch.devices]
    assert device.name == "Again"
    assert device.revision > deletion.revision


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
