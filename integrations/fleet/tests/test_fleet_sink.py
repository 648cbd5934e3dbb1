"""What a sink takes at once, what it stores together, and in how many inserts."""

from __future__ import annotations

import pytest
from power_fleet import sink
from power_fleet.codec import Batch, Meter, Reading, encode
from power_fleet.engine import Engine
from power_fleet.intake import Message, place_of
from power_fleet.sink import rows_of, store

from power_manager import HOUR_US


def message(batch: Batch, sequence: int = 2) -> Message:
    """A batch as it comes out of the stream."""
    subject = f"power.fleet.{batch.device_id}"
    return Message(subject, encode(batch)[1], True, "$JS.ACK", sequence, 7)


def readings(device_id: str, count: int, first: int = 0) -> Batch:
    """A batch of that many readings, a second apart."""
    rows = [Reading("m", (first + number) * 1_000_000, 1.0, 1.0, 1.0) for number in range(count)]
    return Batch(device_id, 1, 0, rows)


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.POWER_FLEET.sink.1.12.13.1700000000123456789.0",
        "$JS.ACK._.AB12.POWER_FLEET.sink.1.12.13.1700000000123456789.0",
        "$JS.ACK.hub.AB12.POWER_FLEET.sink.1.12.13.1700000000123456789.0.xyz",
    ],
    ids=["short", "of an account", "of a domain"],
)
def test_the_place_of_a_message_is_in_its_reply(reply: str) -> None:
    """Its number and time, in all forms that servers give it."""
    assert place_of(reply) == (12, 1_700_000_000_123_456)


@pytest.mark.parametrize("reply", ["", "$JS.ACK.a.b", "$JS.ACK.a.b.c.d.e.f.g"])
def test_a_reply_that_names_no_place_is_refused(reply: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="not where"):
        place_of(reply)


def test_what_is_stored_together_is_limited_by_its_readings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many messages come at once: memory holds one portion of readings and a message more."""
    monkeypatch.setattr(sink, "READINGS", 100)
    left = iter([message(readings("edge-1", 40)) for _ in range(7)])
    poison: list[tuple[Message, str]] = []
    sizes = []
    while portion := sink._portion(left, poison):
        sizes.append(len(portion.good))
    assert sizes == [3, 3, 1]
    assert poison == []


def test_poison_at_the_end_makes_no_empty_portion() -> None:
    """What cannot be stored is set aside, with its reason, and does not end the work before its time."""
    bad = Message("power.fleet.edge-1", b"garbage", False, "", 3, 7)
    left = iter([bad, message(readings("edge-1", 1)), bad])
    poison: list[tuple[Message, str]] = []
    portion = sink._portion(left, poison)
    assert portion is not None
    assert len(portion.good) == 1
    assert sink._portion(left, poison) is None
    assert [found.sequence for found, _ in poison] == [3, 3]


def test_of_a_line_only_the_latest_is_noted(urls: list[str]) -> None:
    """A thousand messages of a device are one row of when it was seen, and one of each hour that they touched."""
    engine = Engine(urls)
    batches = []
    for number in range(50):
        batch = readings("edge-1", 2, number * 120)
        batch.line, batch.file_id, batch.number = 1, "f", number
        batches.append((batch, 1000 + number))
    store(engine, rows_of(reversed(batches), engine))
    assert engine.ask("SELECT device_id, line, number, seen FROM power_seen") == [
        ("edge-1", 1, 49, 1049)
    ]
    hours = {reading.at // HOUR_US for batch, _ in batches for reading in batch.readings}
    rows = engine.ask("SELECT hour, touches FROM power_touched")
    assert sorted(map(tuple, rows)) == [(hour, 1) for hour in sorted(hours)]


def test_each_table_has_one_insert_however_many_messages(urls: list[str]) -> None:
    """And none where there is nothing for it."""
    engine = Engine(urls)
    state = Meter("m", 0, "main", None, 0.0, 1.0, 1.0, None, 1, True, True, "none", 1)
    batches = [(readings(f"edge-{number}", 2), 1) for number in range(100)]
    batches += [(Batch(f"edge-{number}", 1, meters=[state]), 1) for number in range(100)]
    inserts = store(engine, rows_of(batches, engine))
    assert inserts == 4 * len(engine.shards)  # readings, meters, touched, seen
    assert store(engine, rows_of([], engine)) == 0
