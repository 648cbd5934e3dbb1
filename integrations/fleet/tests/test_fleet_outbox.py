"""The outbox gives out everything once it is needed, and the same again until it is done."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_harness import NOW, SEQUENCES, Clock, batches_of
from power_fleet import __version__, outbox
from power_fleet.codec import Batch, Meter, encode
from power_fleet.dead import LETTER_BYTES
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


def acknowledged(box: Outbox) -> Parcel:
    """Take the next parcel, and have the stream acknowledge all of it."""
    parcel = box.take()
    box.done(parcel, [next(SEQUENCES) for _ in parcel.batches])
    return parcel


def opened(pm: PowerManager, site: str = "") -> Outbox:
    """An outbox whose lines are open."""
    box = Outbox(pm, site)
    assert all(batch.opening is not None for batch in acknowledged(box).batches)
    return box


def readings_of(batches: list[Batch]) -> list[float | None]:
    """The volts of all readings in them."""
    return [row.voltage for batch in batches for row in batch.readings]


def states_of(batches: list[Batch], meter_id: str) -> list[Meter]:
    """What they say of a meter."""
    return [row for batch in batches for row in batch.meters if row.id == meter_id]


def sent(parcel: Parcel) -> list[tuple[str, bytes]]:
    """What would go over the wire."""
    return [encode(batch) for batch in parcel.batches]


def test_a_line_is_opened_before_anything_is_said(pm: PowerManager) -> None:
    """By a message for each device that nothing equals; all that follows carries its place in the
    stream.
    """
    pm.log_power(pm.list_meters()[0].id, 1.0, 1.0, 10.0)
    box = Outbox(pm, "here")
    parcel = box.take()
    assert sent(box.take()) == sent(parcel), "until it is acknowledged"
    assert sent(Outbox(pm, "here").take()) != sent(parcel)
    assert {batch.device_id for batch in parcel.batches} == {"a", "b"}
    for batch in parcel.batches:
        assert batch.opening is not None
        assert batch.opening[:2] == (__version__, "here")
        assert batch.line == 0
        said = [batch.readings, batch.meters, batch.devices, batch.events]
        assert not any(said)
    box.done(parcel, [17, 23])
    lines = {parcel.batches[0].device_id: 17, parcel.batches[1].device_id: 23}
    batches = acknowledged(box).batches
    assert len(batches) == 4, "the states of two devices, a reading, an event"
    assert all(batch.line == lines[batch.device_id] for batch in batches)
    assert {batch.file_id for batch in batches} == {pm.file_id}


def test_everything_travels_once(pm: PowerManager) -> None:
    """Readings in batches of one device and at most 500, events, devices and meters; then nothing
    more.
    """
    meters = pm.list_meters()
    pm.log_many([(meter.id, 1.0, 1.0, 50.0, NOW - n) for n in range(700) for meter in meters])
    for _ in range(EVENTS + 1):
        pm.trigger_event("a", "restore")
    box = Outbox(pm, "here")
    batches = batches_of(box)
    assert {len(batch.readings) for batch in batches} <= set(range(READINGS + 1))
    rows = [(batch.device_id, row.meter_id, row.at) for batch in batches for row in batch.readings]
    assert len(rows) == len(set(rows)) == 1400
    assert {(d, m) for d, m, _ in rows} == {(meter.device_id, meter.id) for meter in meters}
    assert sum(len(batch.events) for batch in batches) == EVENTS + 1
    assert sorted(device.name for batch in batches for device in batch.devices) == ["a", "b"]
    assert {device.site for batch in batches for device in batch.devices} == {"here"}
    assert box.take().batches == []


def test_what_is_not_done_comes_again_to_the_byte(pm: PowerManager) -> None:
    """Within a process; another one opens lines of its own, and then says the same."""
    pm.log_power(pm.list_meters()[0].id, 1.0, 1.0, 10.0)
    box = opened(pm)
    first = box.take()
    assert sent(box.take()) == sent(first)
    again = opened(pm).take()
    for batch, other in zip(first.batches, again.batches, strict=True):
        assert batch.line < other.line
        other.line = batch.line
    assert sent(again) == sent(first)


def test_a_late_reading_is_sent_alone(pm: PowerManager) -> None:
    """Of a thousand that were sent before, none is sent again."""
    meter = pm.list_meters()[0].id
    box = Outbox(pm)
    pm.log_many([(meter, 1.0, 1.0, 50.0, NOW - n) for n in range(1000)])
    batches_of(box)
    pm.log_power(meter, 2.0, 1.0, timestamp=NOW - 500.5)
    rows = [row.voltage for batch in batches_of(box) for row in batch.readings]
    assert rows == [2.0]


def test_a_late_reading_that_comes_between_is_sent(pm: PowerManager) -> None:
    """A reading of before what was sent is sent, also one that comes between taking and noting."""
    meter = pm.list_meters()[0].id
    box = Outbox(pm)
    pm.log_power(meter, 1.0, 1.0, timestamp=NOW)
    parcel = box.take()
    pm.log_power(meter, 2.0, 1.0, timestamp=NOW - 100)
    box.done(parcel, [next(SEQUENCES) for _ in parcel.batches])
    rows = [row.at for batch in batches_of(box) for row in batch.readings]
    assert int((NOW - 100) * 1e6) in rows


def test_a_changed_clock_changes_nothing(pm: PowerManager, clock: Clock) -> None:
    """Live readings of a clock that jumps by years travel once, and the newest state has the
    highest revision.
    """
    meter = pm.list_meters()[0].id
    box = Outbox(pm)
    revisions = []
    for step, now in enumerate((NOW, NOW - 1e8, NOW + 1e8, NOW)):
        clock.now = now
        pm.log_power(meter, float(step), 1.0)
        batches = batches_of(box)
        (state,) = states_of(batches, meter)
        assert state.voltage == float(step)
        assert readings_of(batches) == [float(step)]
        revisions.append(state.revision)
    assert revisions == sorted(set(revisions))


def test_a_clock_that_was_wrong_costs_what_it_logged(pm: PowerManager, clock: Clock) -> None:
    """Two thousand readings of an hour ahead, and then each live reading is one."""
    meter = pm.list_meters()[0].id
    box = Outbox(pm)
    clock.now = NOW + 3600
    pm.log_many([(meter, 1.0, 1.0, 50.0, clock.now + n) for n in range(2000)])
    batches_of(box)
    clock.now = NOW
    for step in range(20):
        clock.now += 5
        pm.log_power(meter, float(step), 1.0)
        assert readings_of(batches_of(box)) == [float(step)]


def test_states_are_told_once_a_process_and_when_they_change(pm: PowerManager) -> None:
    """A state that comes back to what it was is news too; nothing of it is written into the
    file.
    """
    meter = pm.list_meters()[0].id
    box = Outbox(pm)
    batches_of(box)
    version = pm.data_version()
    revisions = []
    for active in (False, True):
        pm.update_meter(meter, active=active)
        pm.data_version()
        (state,) = states_of(batches_of(box), meter)
        assert state.active is active
        revisions.append(state.revision)
        assert box.take().batches == []
    assert revisions == sorted(set(revisions))
    version = pm.data_version()
    assert len(states_of(batches_of(Outbox(pm)), meter)) == 1
    assert pm.data_version() == version


def test_a_device_follows_its_meters(pm: PowerManager) -> None:
    """Its line says which of them are present: up to 100 meters go in one message, the device in
    the last.
    """
    for number in range(249):
        pm.add_meter("a", "main", name=str(number))
    batches = [batch for batch in opened(pm).take().batches if batch.device_id == "a"]
    assert [len(batch.meters) for batch in batches] == [100, 100, 50]
    assert [len(batch.devices) for batch in batches] == [0, 0, 1]


def test_nothing_is_noted_where_a_part_fails(pm: PowerManager) -> None:
    """Marks of readings and events, and the running number, are one transaction."""
    pm.log_power(pm.list_meters()[0].id, 1.0, 1.0, 10.0)
    box = opened(pm)
    parcel = box.take()
    before = sent(parcel)
    parcel.last_event = "not a number"  # type: ignore[assignment]  # wrong on purpose
    with pytest.raises(ValueError, match="sequence"):
        box.done(parcel, [next(SEQUENCES) for _ in parcel.batches])
    assert sent(box.take()) == before


def test_the_running_number_grows_with_what_the_stream_has_had(pm: PowerManager) -> None:
    """It is kept in the file, so a copy of the file goes on from what the copy knows."""
    meter = pm.list_meters()[0].id
    numbers = []
    for _ in range(3):
        box = Outbox(pm)
        pm.log_power(meter, 1.0, 1.0)
        batches = batches_of(box)
        numbers.append(batches[0].number)
        assert {batch.number for batch in batches} == {numbers[-1]}
    assert numbers == [0, 1, 2]


def test_a_restored_backup_opens_new_lines(pm: PowerManager, tmp_path: Path) -> None:
    """Under a running forwarder, too, and whatever the file knew of the fleet when it was
    copied.
    """
    meter = pm.list_meters()[0].id
    pm.backup(tmp_path / "backup.db")
    box = Outbox(pm)
    pm.log_power(meter, 1.0, 1.0)
    before = batches_of(box)
    pm.restore(tmp_path / "backup.db")
    after = batches_of(box)
    assert after[0].opening is not None
    assert after[0].line > before[-1].line
    assert after[0].file_id == pm.file_id != before[0].file_id
    assert (before[-1].number, after[-1].number) == (0, 0)
    (state,) = states_of(after, meter)
    assert state.updated is None
    assert state.revision > states_of(before, meter)[0].revision


def test_a_full_line_is_followed_by_another(
    pm: PowerManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is counted beyond what a version has room for."""
    monkeypatch.setattr(outbox, "MAX_COUNT", 20)
    box = Outbox(pm)
    meter = pm.list_meters()[0].id
    versions: list[int] = []
    lines = set()
    for step in range(60):
        pm.log_power(meter, float(step), 1.0)
        if step % 7 == 0:
            pm.delete_readings(meter, until=NOW - 1e6)
        batches = batches_of(box)
        lines |= {batch.line for batch in batches}
        assert readings_of(batches) == [float(step)]
        versions += [state.revision for state in states_of(batches, meter)]
        assert all(version % 2**20 <= 20 for version in versions)
    assert len(lines) > 3
    assert versions == sorted(set(versions))


def test_another_stream_gets_other_lines(pm: PowerManager) -> None:
    """And all states anew."""
    box = Outbox(pm)
    meter = pm.list_meters()[0].id
    batches_of(box)
    box.reopen()
    batches = batches_of(box)
    assert {batch.device_id for batch in batches if batch.opening is not None} == {"a", "b"}
    assert len(states_of(batches, meter)) == 1


def test_what_is_not_known_travels(pm: PowerManager) -> None:
    """Readings without volts or amperes, states without watts, inactive meters and alerts with
    their meter.
    """
    first, second = pm.list_meters()
    pm.log_power(first.id, None, 1.5, 10.0)
    pm.update_meter(second.id, active=False)
    (event,) = pm.get_events("a")
    batches = batches_of(Outbox(pm))
    (reading,) = [row for batch in batches for row in batch.readings]
    assert (reading.voltage, reading.current_draw, reading.charge_pct) == (None, 1.5, 10.0)
    states = {meter.id: meter for batch in batches for meter in batch.meters}
    known = {id_: (one.active, one.power_known, one.alert_level) for id_, one in states.items()}
    assert known == {first.id: (True, False, "low"), second.id: (False, True, "none")}
    assert [(row.id, row.meter_id) for batch in batches for row in batch.events] == [
        (event.id, first.id)
    ]


def test_deletions_go_first_and_by_themselves(pm: PowerManager) -> None:
    """The same until they are noted; what is sent before and after them can be told apart."""
    meter = pm.list_meters()[0].id
    box = Outbox(pm)
    pm.log_power(meter, 1.0, 1.0)
    before = max(batch.generation for batch in batches_of(box) if batch.readings)
    pm.delete_readings(meter, since=NOW - 60)
    pm.log_power(meter, 2.0, 1.0, timestamp=NOW)
    first = box.take()
    assert readings_of(first.batches) == []
    (deletion,) = [row for batch in first.batches for row in batch.deletions]
    assert deletion[1:] == ("readings", meter, int((NOW - 60) * 1e6), None, 0)
    assert sent(box.take()) == sent(first)
    batches = batches_of(box)
    (deletion,) = [row for batch in batches for row in batch.deletions]
    (batch,) = [batch for batch in batches if batch.readings]
    assert readings_of(batches) == [2.0]
    assert before < deletion.revision < batch.generation
    assert pm.pending_deletions() == []


def test_a_deletion_that_another_process_sent_is_newer_than_all_before(pm: PowerManager) -> None:
    """The first one ended before it noted it; what was recorded in its place follows in the second
    one's line.
    """
    meter = pm.list_meters()[0].id
    box = Outbox(pm)
    pm.log_power(meter, 1.0, 1.0, timestamp=NOW)
    batches_of(box)
    pm.delete_readings(meter)
    unnoted = box.take()
    pm.log_power(meter, 2.0, 1.0, timestamp=NOW)
    batches = batches_of(Outbox(pm))
    assert [len(batch.deletions) for batch in unnoted.batches if not batch.meters] == [1]
    (deletion,) = [row for batch in batches for row in batch.deletions]
    (reading,) = [batch for batch in batches if batch.readings]
    assert deletion.revision >> 20 > unnoted.batches[0].line
    assert deletion.revision < reading.generation


def test_more_deletions_than_a_message_has(pm: PowerManager) -> None:
    """No reading goes before the last of them: it could have been recorded in the place of what
    that deleted.
    """
    meter = pm.list_meters()[0].id
    box = Outbox(pm)
    with pm.transaction():
        for number in range(DELETIONS + 1):
            pm.delete_readings(meter, until=NOW - number)
    pm.log_power(meter, 1.0, 1.0)
    kinds = [
        (len(batch.deletions), len(batch.readings))
        for batch in batches_of(box)
        if batch.deletions or batch.readings
    ]
    assert kinds == [(DELETIONS, 0), (1, 0), (0, 1)]


@pytest.mark.parametrize("drained", [False, True])
def test_a_deleted_device_that_is_registered_again_is_news(pm: PowerManager, drained: bool) -> None:
    """Newer than its deletion, even if it looks as it did and nothing was sent between the two."""
    box = Outbox(pm)
    batches_of(box)
    pm.delete_device("a")
    batches = batches_of(box) if drained else []
    pm.register_device("a", "a")
    batches += batches_of(box)
    (deletion,) = [row for batch in batches for row in batch.deletions]
    assert (deletion.kind, deletion.meter_id) == ("device", None)
    (device,) = [row for batch in batches for row in batch.devices]
    assert device.name == "a"
    assert device.revision > deletion.revision


def test_a_device_that_is_gone_is_deleted_by_the_next_process(pm: PowerManager) -> None:
    """Its deletion has a line of its own."""
    batches_of(Outbox(pm))
    pm.delete_device("a")
    batches = [batch for batch in batches_of(Outbox(pm)) if batch.device_id == "a"]
    assert [batch.opening is not None for batch in batches] == [True, False]
    assert len(batches[1].deletions) == 1
    assert [batch for batch in batches_of(Outbox(pm)) if batch.device_id == "a"] == []


def test_a_long_note_fits_into_a_message(pm: PowerManager) -> None:
    """The largest events there can be stay below NATS's 1 MB."""
    chance = random.Random(1)
    for _ in range(EVENTS):
        pm.trigger_event(
            "a",
            "restore",
            note="".join(chr(chance.randrange(0x10000, 0x10FFFF)) for _ in range(10_000)),
        )
    assert all(len(data) < 2**20 for _, data in sent(opened(pm).take()))


def test_readings_of_any_kind_fit_into_a_dead_letter(pm: PowerManager) -> None:
    """So that they can be replayed when a sink is upgraded; they are the least compressible there
    can be.
    """
    chance = random.Random(1)
    meter = pm.list_meters()[0].id
    pm.log_many(
        (meter, chance.random(), chance.random(), 100 * chance.random(), chance.uniform(0, NOW))
        for _ in range(READINGS)
    )
    parcel = opened(pm).take()
    assert parcel.is_full
    assert all(len(data) < LETTER_BYTES for _, data in sent(parcel))


def test_a_device_that_is_refused_holds_up_no_other(pm: PowerManager) -> None:
    """What the stream has of the others is noted, and of its own nothing, until it is taken."""
    first, second = pm.list_meters()
    box = Outbox(pm)
    opening = box.take()
    box.done(
        opening, [None if batch.device_id == "a" else next(SEQUENCES) for batch in opening.batches]
    )
    for meter in (first, second):
        pm.log_power(meter.id, 1.0, 1.0)
    pm.delete_readings(first.id, until=NOW - 60)
    parcel = box.take()
    assert [batch.opening is not None for batch in parcel.batches if batch.device_id == "a"] == [
        True
    ]
    assert len([batch for batch in parcel.batches if batch.readings]) == 1
    box.done(
        parcel, [None if batch.device_id == "a" else next(SEQUENCES) for batch in parcel.batches]
    )
    assert [row.meter_id for row in pm.pending_readings()] == [first.id]
    assert box.take(aside={"a"}).batches == []
    batches = batches_of(box)
    assert {batch.device_id for batch in batches} == {"a"}
    (deletion,) = [row for batch in batches for row in batch.deletions]
    (reading,) = [batch for batch in batches if batch.readings]
    assert deletion.revision < reading.generation


def test_events_wait_for_those_before_them(pm: PowerManager) -> None:
    """They go in order, of all devices; so those of a device that is refused hold up the others'
    events, not more.
    """
    box = opened(pm)
    for device_id in ("b", "a", "b"):
        pm.trigger_event(device_id, "restore")
    pm.log_power(pm.list_meters()[1].id, 1.0, 1.0)
    parcel = box.take(aside={"a"})
    assert [len(batch.events) for batch in parcel.batches if batch.events] == [1]
    parcel = box.take()
    box.done(
        parcel, [None if batch.device_id == "a" else next(SEQUENCES) for batch in parcel.batches]
    )
    assert pm.pending_readings() == []
    assert [len(batch.events) for batch in box.take().batches if batch.events] == [2, 1]


def test_the_next_parcel_is_of_the_devices_whose_deletions_are_sent(pm: PowerManager) -> None:
    """Another device's readings need not wait for them."""
    first, second = pm.list_meters()
    box = Outbox(pm)
    batches_of(box)
    pm.delete_readings(first.id)
    for meter in (first, second):
        pm.log_power(meter.id, 1.0, 1.0)
    parcel = box.take()
    assert {batch.device_id for batch in parcel.batches if batch.readings} == {"b"}
    assert {batch.device_id for batch in parcel.batches if batch.deletions} == {"a"}
