"""A batch survives the wire exactly, and nothing else gets through."""

from __future__ import annotations

import contextlib
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from power_fleet.codec import (
    _COLUMNS,
    DELETIONS,
    MAX_BYTES,
    Batch,
    Deletion,
    Device,
    Event,
    Meter,
    Poison,
    Reading,
    decode,
    encode,
)

from power_manager import AlertLevel, MeterType, PowerEventType

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
times = st.integers(0, 7_289_654_399_999_999)
electrical = st.floats(-1e6, 1e6)
finite = st.floats(allow_nan=False, allow_infinity=False)
quantities = st.floats(-1e12, 1e12)
whole = st.integers(0, 2**63 - 1)
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
    whole,
)
meters = st.builds(
    Meter, ids, whole, meter_types, st.none() | any_text, quantities, electrical, electrical, electrical,
    st.none() | times, st.booleans(), st.booleans(), st.sampled_from([level.value for level in AlertLevel]), whole,
)  # fmt: skip
deletions = st.builds(
    Deletion,
    whole,
    st.sampled_from(DELETIONS),
    st.none() | ids,
    st.none() | times,
    st.none() | times,
)
batches = st.builds(
    Batch, ids, whole, whole,
    st.lists(readings).map(lambda rows: sorted(rows, key=lambda row: row.meter_id)),
    st.lists(events), st.lists(devices), st.lists(meters), st.lists(deletions),
)  # fmt: skip


@given(batches)
def test_what_is_encoded_is_decoded(batch: Batch) -> None:
    """Every float to the last bit, every time to the microsecond."""
    assert decode(encode(batch)[1]) == batch


@given(batches)
def test_the_same_batch_has_the_same_id(batch: Batch) -> None:
    """And the same bytes, so that a resend is known as one."""
    assert encode(batch) == encode(decode(encode(batch)[1]))


def test_another_batch_has_another_id() -> None:
    """One microsecond more is another batch."""
    first, second = (Batch("d", 1, 0, [Reading("m", at, 1.0, 1.0, 1.0)]) for at in (5, 6))
    assert encode(first)[0] != encode(second)[0]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_batch_or_poison(data: bytes) -> None:
    """Nothing else is raised, compressed or not."""
    for message in (data, zlib.compress(data)):
        with pytest.raises(Poison):
            decode(message)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
)


@given(
    st.sampled_from([*sorted(_COLUMNS), "readings", "device_id", "max_gap", "generation", "v"]),
    json_values,
)
def test_any_value_in_any_place_is_a_batch_or_poison(place: str, value: Any) -> None:
    """A message with one part replaced by anything is refused or understood, never a crash."""
    message = {"v": 1, "device_id": "d", "max_gap": 1, "generation": 0, place: value}
    with contextlib.suppress(Poison):
        decode(zlib.compress(json.dumps(message).encode()))


ROWS: dict[str, list[Any]] = {
    "readings": ["m", [1], [1.0], [1.0], [1.0]],
    "events": [1, "e", "restore", 1.0, 1, None, None],
    "devices": ["n", "", 1.0, None, None, None, 1, 1],
    "meters": ["m", 0, "main", None, 1.0, 1.0, 1.0, 1.0, None, True, True, "none", 1],
    "deletions": [1, "readings", "m", None, 1],
}


def part_with(name: str, column: int, value: Any) -> dict[str, list[Any]]:
    """A part of a message with one row, in which one value is another."""
    row = list(ROWS[name])
    row[column] = value
    return {name: [[cell] for cell in row]}


def message_with(name: str, row: list[Any]) -> bytes:
    """A message with one row of that part."""
    part = [row] if name == "readings" else [[value] for value in row]
    return zlib.compress(
        json.dumps({"v": 1, "device_id": "d", "max_gap": 1, "generation": 0, name: part}).encode()
    )


huge = st.sampled_from([10**400, -(10**400), 2**63, 1e400])


@given(st.sampled_from(sorted(ROWS)), st.integers(0, 12), json_values | huge, st.booleans())
def test_any_value_in_any_cell_is_a_batch_or_poison(
    name: str, column: int, value: Any, inside: bool
) -> None:
    """A number too long for a float, a list where a text belongs: a sink must survive what a device makes up."""
    row = list(ROWS[name])
    assert len(row) == 5 or len(row) == len(_COLUMNS[name][1])
    row[column % len(row)] = [value] if inside else value
    with contextlib.suppress(Poison):
        decode(message_with(name, row))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_each_row_is_good_without_that(name: str) -> None:
    """So the test above changes a good message."""
    assert len(getattr(decode(message_with(name, ROWS[name])), name)) == 1


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (part_with("meters", 2, "fan"), "one of main, battery"),
        (part_with("meters", 9, 1), "true or false"),
        (part_with("meters", 11, "high"), "one of none, low"),
        (part_with("events", 2, "boom"), "one of charge_start"),
        (part_with("deletions", 1, "fleet"), "one of readings, meter"),
        (part_with("deletions", 4, -1), "from 1970"),
        ({"devices": [["n"], [""], [10**400], [None], [None], [None], [1], [1]]}, r"a number up to 1e\+12"),
        ({"v": 2}, "version 1"),
        ({"device_id": ""}, "text of 1 to"),
        ({"device_id": "\ud800"}, "text of 1 to"),
        ({"max_gap": -1}, "at least 0"),
        ({"generation": None}, "at least 0"),
        ({"readings": [["m", [1], [1.0], [1.0]]]}, "four columns"),
        ({"readings": [["m", [1], [1.0, 2.0], [1.0], [1.0]]]}, "differ in length"),
        ({"readings": [["m", [-1], [1.0], [1.0], [1.0]]]}, "from 1970"),
        ({"readings": [["m", [True], [1.0], [1.0], [1.0]]]}, "whole number"),
        ({"readings": [["m", [1], [1e7], [1.0], [1.0]]]}, r"up to 1e\+06"),
        ({"readings": [["m", [1], [None], [1.0], ["50"]]]}, r"up to 1e\+06, got '50'"),
        ({"readings": [["m", [1], [float("nan")], [1.0], [1.0]]]}, "finite"),
        ({"events": [[1], ["e"]]}, "7 columns"),
        ({"meters": {}}, "a list"),
    ],
)  # fmt: skip
def test_poison_says_why(part: dict[str, Any], reason: str) -> None:
    """The reason goes with the dead letter."""
    with pytest.raises(Poison, match=reason):
        decode(
            zlib.compress(
                json.dumps(
                    {"v": 1, "device_id": "d", "max_gap": 1, "generation": 0, **part}
                ).encode()
            )
        )


def test_a_bomb_is_not_unpacked() -> None:
    """A small message that would fill the memory is refused after 4 MB, and one cut short is refused too."""
    with pytest.raises(Poison, match=r"compressed|longer"):
        decode(zlib.compress(b" " * 50 * MAX_BYTES))
    with pytest.raises(Poison):
        decode(encode(Batch("d", 1))[1][:-3])
