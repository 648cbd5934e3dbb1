"""A batch survives the wire exactly, and nothing else gets through."""

from __future__ import annotations

import contextlib
import copy
import json
import zlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_fleet import codec
from power_fleet.codec import (
    DELETIONS,
    MAX_BYTES,
    MAX_COUNT,
    MAX_LINE,
    Batch,
    Deletion,
    Device,
    Event,
    Meter,
    Opening,
    Poison,
    Reading,
    encode,
    version_of,
)
from power_fleet.decoding import decode

from power_manager import AlertLevel, MeterType, PowerEventType

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
times = st.integers(0, 7_289_654_399_999_999)
electrical = st.floats(-1e6, 1e6)
finite = st.floats(allow_nan=False, allow_infinity=False)
quantities = st.floats(-1e12, 1e12)
whole = st.integers(0, 2**63 - 1)
counts = st.integers(0, MAX_COUNT)
lines = st.integers(1, MAX_LINE)
maybe_electrical = st.none() | electrical
readings = st.builds(Reading, ids, times, maybe_electrical, maybe_electrical, electrical)
event_types = st.sampled_from([kind.value for kind in PowerEventType])
meter_types = st.sampled_from([kind.value for kind in MeterType])
any_text = ids | st.just("")  # a file of the first release may have empty names and notes
events = st.builds(
    Event, whole, ids, event_types, finite, times, st.none() | any_text, st.none() | ids
)
devices = st.builds(
    Device,
    any_text,
    any_text,
    quantities,
    st.none() | quantities,
    st.none(),
    st.none(),
    whole,
    counts,
)
meters = st.builds(
    Meter,
    ids,
    whole,
    meter_types,
    st.none() | any_text,
    quantities,
    electrical,
    electrical,
    electrical,
    st.none() | times,
    st.booleans(),
    st.booleans(),
    st.sampled_from([level.value for level in AlertLevel]),
    counts,
)
deletions = st.builds(
    Deletion,
    counts,
    st.sampled_from(DELETIONS),
    st.none() | ids,
    st.none() | times,
    st.none() | times,
    st.just(0),
)
openings = st.builds(Opening, ids, any_text, ids)
SEQUENCE = MAX_LINE  # of a message that is so late in the stream that any line may be its own


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """A batch of a line, or one that opens a line."""
    opening = draw(st.none() | openings)
    return Batch(
        draw(ids),
        draw(whole),
        draw(counts),
        draw(st.lists(readings).map(lambda rows: sorted(rows, key=lambda row: row.meter_id))),
        draw(st.lists(events)),
        draw(st.lists(devices)),
        draw(st.lists(meters)),
        draw(st.lists(deletions)),
        line=draw(lines) if opening is None else 0,
        file_id=draw(any_text),
        number=draw(whole),
        opening=opening,
    )


def placed(batch: Batch, sequence: int) -> Batch:
    """The batch as a sink should see it: its counts are versions of the whole fleet."""
    line = batch.line if batch.opening is None else sequence

    def version(count: int) -> int:
        return line * 2**20 + count

    return replace(
        batch,
        line=line,
        sequence=sequence,
        generation=version(batch.generation),
        devices=[row._replace(revision=version(row.revision)) for row in batch.devices],
        meters=[row._replace(revision=version(row.revision)) for row in batch.meters],
        deletions=[
            row._replace(revision=version(row.revision), line=line) for row in batch.deletions
        ],
    )


@given(batches())
def test_what_is_encoded_is_decoded(batch: Batch) -> None:
    """Every float to the last bit, every time to the microsecond, every count in its line."""
    assert decode(encode(batch)[1], SEQUENCE) == placed(batch, SEQUENCE)


@given(batches())
def test_the_same_batch_has_the_same_id(batch: Batch) -> None:
    """And the same bytes, so that a resend is known as one."""
    assert encode(batch) == encode(copy.deepcopy(batch))


@given(st.tuples(lines, counts), st.tuples(lines, counts))
def test_versions_grow_with_the_line_and_then_with_the_count(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    """And fit into what the engine has for them."""
    assert (version_of(*one) < version_of(*other)) == (one < other)
    assert version_of(*one) < 2**63


def test_a_deletion_of_an_earlier_line_keeps_its_version() -> None:
    """It is sent again; what was recorded in place of what it deleted stays."""
    again = Deletion(7, "meter", "m", None, None, line=3)
    (row,) = decode(encode(Batch("d", 1, deletions=[again], line=5))[1], 9).deletions
    assert row.revision == version_of(3, 7)


def test_another_batch_has_another_id() -> None:
    """One microsecond more is another batch."""
    first, second = (Batch("d", 1, 0, [Reading("m", at, 1.0, 1.0, 1.0)]) for at in (5, 6))
    assert encode(first)[0] != encode(second)[0]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_poison(data: bytes) -> None:
    """Nothing else is raised, compressed or not."""
    for message in (data, zlib.compress(data)):
        with pytest.raises(Poison):
            decode(message, SEQUENCE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
)


HEAD: dict[str, Any] = {
    "v": 2, "device_id": "d", "file_id": "f", "number": 0, "line": 1, "max_gap": 1, "generation": 0,
}  # fmt: skip
ROWS: dict[str, list[Any]] = {
    "readings": ["m", [1], [1.0], [1.0], [1.0]],
    "events": [1, "e", "restore", 1.0, 1, None, None],
    "devices": ["n", "", 1.0, None, None, None, 1, 1],
    "meters": ["m", 0, "main", None, 1.0, 1.0, 1.0, 1.0, None, True, True, "none", 1],
    "deletions": [1, "readings", "m", None, 1, 0],
}


def packed(message: Any) -> bytes:
    """A message of that JSON."""
    return zlib.compress(json.dumps(message).encode())


@given(st.sampled_from([*sorted(ROWS), *sorted(HEAD), "opening", "something"]), json_values)
def test_any_value_in_any_place_is_a_batch_or_poison(place: str, value: Any) -> None:
    """A message with one part replaced by anything is refused or understood, never a crash."""
    with contextlib.suppress(Poison):
        decode(packed({**HEAD, place: value}), SEQUENCE)


def part_with(name: str, column: int, value: Any) -> dict[str, list[Any]]:
    """A part of a message with one row, in which one value is another."""
    row = list(ROWS[name])
    row[column] = value
    return {name: [[cell] for cell in row]}


def message_with(name: str, row: list[Any]) -> bytes:
    """A message with one row of that part."""
    part = [row] if name == "readings" else [[value] for value in row]
    return packed({**HEAD, name: part})


huge = st.sampled_from([10**400, -(10**400), 2**63, 1e400])


@given(st.sampled_from(sorted(ROWS)), st.integers(0, 12), json_values | huge, st.booleans())
def test_any_value_in_any_cell_is_a_batch_or_poison(
    name: str, column: int, value: Any, inside: bool
) -> None:
    """A number too long for a float, a list where a text belongs: a sink must survive what a device
    makes up.
    """
    row = list(ROWS[name])
    row[column % len(row)] = [value] if inside else value
    with contextlib.suppress(Poison):
        decode(message_with(name, row), SEQUENCE)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_each_row_is_good_without_that(name: str) -> None:
    """So the test above changes a good message."""
    assert len(getattr(decode(message_with(name, ROWS[name]), SEQUENCE), name)) == 1


OPENING = {"version": "1", "site": "", "nonce": "n"}


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (part_with("meters", 2, "fan"), "Invalid enum value 'fan'.*meters"),
        (part_with("meters", 9, 1), "Expected `bool`"),
        (part_with("meters", 11, "high"), "Invalid enum value 'high'"),
        (part_with("meters", 12, 2**20), "<= 1048575"),
        (part_with("events", 2, "boom"), "Invalid enum value 'boom'"),
        (part_with("deletions", 1, "fleet"), "Invalid enum value 'fleet'"),
        (part_with("deletions", 4, -1), ">= 0"),
        (part_with("deletions", 5, 2), "a deletion of line 2 in a message of line 1"),
        ({"devices": [["n"], [""], [10**400], [None], [None], [None], [1], [1]]}, "out of range"),
        ({"v": 3}, "expected a message of version 2, got 3"),
        ({"v": 3, "line": "new", "more": {}}, "expected a message of version 2, got 3"),
        ({"v": None}, "expected a message of version 2, got None"),
        ({"more": 1}, "unknown field `more`"),
        ({"device_id": ""}, "length >= 1"),
        ({"device_id": "a" * 10_001}, "length <= 10000"),
        ({"device_id": "\ud800"}, "not as it should be"),
        ({"max_gap": -1}, ">= 0"),
        ({"generation": None}, "Expected `int`"),
        ({"generation": 2**20}, "<= 1048575"),
        ({"line": 0}, "a line of at least 1, or an opening"),
        ({"line": 2**43}, "<= 8796093022207"),
        ({"line": 1001}, "its line is 1001, but it is message 1000 of the stream"),
        ({"readings": [["m", [1], [1.0], [1.0]]]}, "at least length 5"),
        ({"readings": [["m", [1], [1.0], [1.0], [1.0], [1.0]]]}, "at most length 5"),
        ({"readings": [["m", [1], [1.0, 2.0], [1.0], [1.0]]]}, "differ in length"),
        ({"readings": [["m", [-1], [1.0], [1.0], [1.0]]]}, "from 1970"),
        ({"readings": [["m", [5, -6], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]]}, "from 1970"),
        ({"readings": [["m", [True], [1.0], [1.0], [1.0]]]}, "Expected `int`"),
        ({"readings": [["m", [1.0], [1.0], [1.0], [1.0]]]}, "Expected `int`"),
        ({"readings": [["m", [1], [1e7], [1.0], [1.0]]]}, "<= 1000000.0"),
        ({"readings": [["m", [1], [None], [1.0], ["50"]]]}, "got `str`"),
        ({"readings": [["m", [1], [float("nan")], [1.0], [1.0]]]}, "malformed"),
        ({"events": [[1], ["e"]]}, "at least length 7"),
        ({"events": [[1], ["e"], [], [], [], [], []]}, "columns of events differ in length"),
        ({"meters": {}}, "Expected `array"),
    ],
)
def test_poison_says_why(part: dict[str, Any], reason: str) -> None:
    """The reason goes with the dead letter."""
    with pytest.raises(Poison, match=reason):
        decode(packed({**HEAD, **part}), 1000)


def test_a_message_of_the_next_version_waits_for_the_sinks_upgrade(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one of this version is none of the next's, whatever else they have in common."""
    batch = Batch("d", 1, 0, [Reading("m", 1, 1.0, 1.0, 1.0)])
    old = encode(batch)[1]
    monkeypatch.setattr(codec, "VERSION", 3)
    new = encode(batch)[1]
    with pytest.raises(Poison, match="expected a message of version 3, got 2"):
        decode(old, 1)
    assert decode(new, 1).readings == batch.readings
    monkeypatch.undo()
    with pytest.raises(Poison, match="expected a message of version 2, got 3"):
        decode(new, 1)


def test_what_is_too_long_or_cut_short_is_poison() -> None:
    """A bomb is not unpacked to its end."""
    bomb = zlib.compress(b" " * (MAX_BYTES + 1) + json.dumps(HEAD).encode())
    for data in (bomb, packed(HEAD)[:-1], b""):
        with pytest.raises(Poison, match="cut short, or longer than"):
            decode(data, 1)


def test_what_nests_without_end_is_poison() -> None:
    """Whether it claims to be of this version or of another."""
    for text in ("[" * 100_000, '{"v":' + "[" * 100_000, '{"v":2,"readings":' + "[" * 100_000):
        with pytest.raises(Poison):
            decode(zlib.compress(text.encode()), 1)
