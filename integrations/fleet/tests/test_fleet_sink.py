"""What a sink takes at once, what it stores together, and in how many inserts."""

from __future__ import annotations

import random
from typing import Any

import pytest
from fleet_harness import queried
from power_fleet import deletions, sink, tables
from power_fleet.codec import (
    DELETIONS,
    Batch,
    Deletion,
    Meter,
    Opening,
    Poison,
    Reading,
    encode,
)
from power_fleet.decoding import MAX_ROWS, decode
from power_fleet.engine import Engine, EngineError, Shard
from power_fleet.intake import Message, place_of
from power_fleet.life import highest_line
from power_fleet.sink import cost_of, rows_of, store

from power_manager import DAY_US, HOUR_US, SECOND_US


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
    """However many messages come at once: memory holds one portion of readings and a message
    more.
    """
    monkeypatch.setattr(sink, "READINGS", 100)
    left = iter([message(readings("edge-1", 40)) for _ in range(7)])
    poison: list[tuple[Message, str]] = []
    sizes = []
    while portion := sink._portion(left, poison):
        sizes.append(len(portion.good))
    assert sizes == [3, 3, 1]
    assert poison == []


def test_poison_at_the_end_makes_no_empty_portion() -> None:
    """What cannot be stored is set aside, with its reason, and does not end the work before its
    time.
    """
    bad = Message("power.fleet.edge-1", b"garbage", False, "", 3, 7)
    left = iter([bad, message(readings("edge-1", 1)), bad])
    poison: list[tuple[Message, str]] = []
    portion = sink._portion(left, poison)
    assert portion is not None
    assert len(portion.good) == 1
    assert sink._portion(left, poison) is None
    assert [found.sequence for found, _ in poison] == [3, 3]


def test_of_a_line_only_the_latest_is_noted(urls: list[str]) -> None:
    """A thousand messages of a device are one row of when it was seen, and one of each hour that
    they touched.
    """
    engine = Engine(urls)
    batches = []
    for number in range(50):
        batch = readings("edge-1", 2, number * 120)
        batch.line, batch.file_id, batch.number = 1, "f", number
        batches.append((batch, 1000 + number))
    store(engine, rows_of(reversed(batches), engine))
    assert queried(engine, "SELECT device_id, line, number, seen FROM power_seen") == [
        ("edge-1", 1, 49, 1049)
    ]
    hours = {reading.at // HOUR_US for batch, _ in batches for reading in batch.readings}
    rows = queried(engine, "SELECT hour, touches FROM power_touched")
    assert sorted(map(tuple, rows)) == [(hour, 1) for hour in sorted(hours)]


def test_a_line_is_known_before_anything_that_is_said_in_it(
    urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that is killed in the middle leaves no state of a line that a new stream, which
    begins beyond the lines that are known, could not overtake.
    """
    engine = Engine(urls)
    opening = Batch("edge-1", 1, line=17, file_id="f", opening=Opening("1.0.0", "", "nonce"))
    insert = Shard.insert_columns

    def killed(shard: Shard, table: str, *rows: Any) -> None:
        if table != "power_lines":
            raise EngineError("killed")
        insert(shard, table, *rows)

    monkeypatch.setattr(Shard, "insert_columns", killed)
    with pytest.raises(EngineError, match="killed"):
        store(engine, rows_of([(opening, 1), (readings("edge-1", 2), 2)], engine))
    assert highest_line(engine) == 17


def test_each_table_has_one_insert_however_many_messages(urls: list[str]) -> None:
    """And none where there is nothing for it."""
    engine = Engine(urls)
    state = Meter("m", 0, "main", None, 0.0, 1.0, 1.0, None, 1, True, True, "none", 1)
    batches = [(readings(f"edge-{number}", 2), 1) for number in range(100)]
    batches += [(Batch(f"edge-{number}", 1, meters=[state]), 1) for number in range(100)]
    inserts = store(engine, rows_of(batches, engine))
    # readings, meters, their claims, touched, seen
    assert inserts == 5 * len(engine.shards)
    assert store(engine, rows_of([], engine)) == 0


def test_what_a_batch_costs() -> None:
    """A usual one nothing more; deletions, many readings, and months, each of which is a part of a
    table, do.
    """
    usual = readings("edge-1", 2000)
    assert cost_of(usual) == 0
    usual.deletions = [Deletion(1, "meter", "m", None, None)] * 3
    assert cost_of(usual) == 12
    assert cost_of(readings("edge-1", MAX_ROWS)) == 4
    scattered = readings("edge-1", 900)
    for number, reading in enumerate(scattered.readings):
        scattered.readings[number] = reading._replace(at=number * 30 * DAY_US)
    assert cost_of(scattered) == 8940


@pytest.mark.parametrize("kind", ["readings", "deletions"])
def test_a_message_of_too_many_rows_is_poison(kind: str) -> None:
    """Alike rows are packed to nothing: a few hundred bytes would fill a sink's memory, and hold up
    everybody.
    """
    batch = readings("edge-1", MAX_ROWS if kind == "readings" else 1)
    if kind == "deletions":
        batch.deletions = [Deletion(1, "meter", "m", None, None)] * MAX_ROWS
    data = encode(batch)[1]
    assert len(data) < 50_000
    assert len(getattr(decode(data, 2), kind)) == MAX_ROWS
    if kind == "readings":
        batch.readings += readings("edge-1", 1, MAX_ROWS).readings
        batch.readings[0] = batch.readings[0]._replace(meter_id="another")
    else:
        batch.deletions.append(batch.deletions[0])
    with pytest.raises(Poison, match=f"{MAX_ROWS + 1} {kind} in one message"):
        decode(encode(batch)[1], 2)


def test_a_late_message_costs_one_insert_however_much_was_deleted(
    urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device with a thousand deletions, and readings from before them that come after: each is
    there, or deleted.
    """
    engine = Engine(urls)
    shard = engine.shards[engine.shard_of("edge-1")]
    deleted = [
        (
            "edge-1",
            revision,
            "readings",
            "m",
            2 * revision * SECOND_US,
            (2 * revision + 1) * SECOND_US,
        )
        for revision in range(10, 1010)
    ]
    shard.insert("power_deletions", tables.DELETIONS, deleted)

    def fail(*arguments: object, **parameters: object) -> None:
        pytest.fail("the engine looks for what a deletion takes")

    monkeypatch.setattr(type(shard), "insert_from", fail)
    late = readings("edge-1", 100)
    late.generation = 15
    shards = rows_of([(late, 1)], engine)
    store(engine, shards)
    assert [rows.looked_at for rows in shards if rows.looked_at] == [{"edge-1": 994}]
    rows = queried(shard, "SELECT at, deleted, generation FROM power_readings FINAL ORDER BY at")
    assert len(rows) == 100
    for at, is_deleted, generation in rows:
        revision = at // SECOND_US // 2
        expected = at // SECOND_US % 2 == 0 and revision > 15
        assert bool(is_deleted) == expected
        assert generation == (revision if expected else 15)


@pytest.mark.parametrize("seed", range(20))
def test_a_late_row_is_taken_by_the_latest_deletion_over_it(seed: int) -> None:
    """Of each table, as a plain search of all deletions says."""
    chance = random.Random(seed)
    known = [
        deletions._Deletion(
            "a", revision, chance.choice(DELETIONS), chance.choice("mn"), since, since + span
        )
        for revision in range(1, 30)
        for since, span in [(chance.randrange(100), chance.randrange(100))]
    ]
    known.reverse()
    rows = []
    expected = []
    for meter in "mn":
        for at in range(100):
            generation = chance.randrange(30)
            rows.append(("a", meter, at, 1.0, None, 2.0, 1, generation, 0))
            over = [
                d.revision
                for d in known
                if d.revision > generation
                and (d.kind == "device" or d.meter_id == meter)
                and d.since <= at < d.until
            ]
            if over:
                expected.append(["a", meter, at, None, None, None, 1, max(over), 1])
    gone = deletions._gone("power_readings", tables.READINGS, rows, {"a": known})
    assert gone == expected
    assert deletions._gone("power_readings", tables.READINGS, rows, {"b": known}) == []
