"""A message as the batch that it is.

Whatever is wrong with it raises Poison, so that nothing else is ever stored.

The types below are the wire format. msgspec checks them as it reads, which no device has to.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import accumulate, repeat
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from power_fleet import codec
from power_fleet.codec import (
    MAX_BYTES,
    MAX_COUNT,
    MAX_ELECTRICAL,
    MAX_INTEGER,
    MAX_LINE,
    MAX_QUANTITY,
    MAX_TEXT,
    MAX_US,
    Batch,
    Deletion,
    Device,
    Event,
    Meter,
    Opening,
    Poison,
    Reading,
    version_of,
)
from power_manager import AlertLevel, MeterType, PowerEventType

MAX_ROWS = 10_000  # readings of one message, and rows of any other kind: a forwarder sends 2,000
_REASON = 300  # characters of what is said about a message

_Text = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
_AnyText = Annotated[str, Meta(max_length=MAX_TEXT)]
_Whole = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
_Step = Annotated[int, Meta(ge=-MAX_US, le=MAX_US)]  # microseconds between two readings
_Time = Annotated[int, Meta(ge=0, lt=MAX_US)]
_Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
_Line = Annotated[int, Meta(ge=0, le=MAX_LINE)]
_Electrical = Annotated[float, Meta(ge=-MAX_ELECTRICAL, le=MAX_ELECTRICAL)]
_Quantity = Annotated[float, Meta(ge=-MAX_QUANTITY, le=MAX_QUANTITY)]


class _Part(Struct, array_like=True, forbid_unknown_fields=True):
    """Columns of one length, in the order of the fields of a row."""


class _Series(_Part):
    meter_id: _Text
    steps: list[_Step]  # the first one is a time
    voltage: list[_Electrical | None]
    current_draw: list[_Electrical | None]
    charge_pct: list[_Electrical | None]


class _Events(_Part):
    sequence: list[_Whole]
    id: list[_Text]
    type: list[PowerEventType]
    value: list[float]
    at: list[_Time]
    note: list[_AnyText | None]
    meter_id: list[_Text | None]


class _Devices(_Part):
    name: list[_AnyText]
    site: list[_AnyText]
    shutdown_threshold: list[_Quantity]
    target_wh: list[_Quantity | None]
    low_battery_threshold: list[_Quantity | None]
    critical_battery_threshold: list[_Quantity | None]
    max_gap: list[_Whole]
    revision: list[_Count]


class _Meters(_Part):
    id: list[_Text]
    position: list[_Whole]
    type: list[MeterType]
    name: list[_AnyText | None]
    capacity_wh: list[_Quantity]
    voltage: list[_Electrical]
    current_draw: list[_Electrical]
    charge_pct: list[_Electrical | None]
    updated: list[_Time | None]
    active: list[bool]
    power_known: list[bool]
    alert_level: list[AlertLevel]
    revision: list[_Count]


class _Deletions(_Part):
    revision: list[_Count]
    kind: list[Literal["readings", "meter", "device"]]
    meter_id: list[_Text | None]
    since: list[_Time | None]
    until: list[_Time | None]
    line: list[_Line]


class _Opening(Struct, forbid_unknown_fields=True):
    version: _Text
    site: _AnyText
    nonce: _Text


class _Message(Struct, forbid_unknown_fields=True):
    v: int
    device_id: _Text
    file_id: _AnyText
    number: _Whole
    line: _Line
    max_gap: _Whole
    generation: _Count
    opening: _Opening | None = None
    readings: list[_Series] = []
    events: _Events | None = None
    devices: _Devices | None = None
    meters: _Meters | None = None
    deletions: _Deletions | None = None


class _Head(Struct):
    v: Any = None


_message_decoder = msgspec.json.Decoder(_Message)
_head_decoder = msgspec.json.Decoder(_Head)


def decode(data: bytes, sequence: int) -> Batch:
    """The batch that these bytes are; `sequence` is the message's place in the stream.

    Raises Poison.
    """
    text = _unpacked(data)
    try:
        message = _message_decoder.decode(text)
    except (ValueError, RecursionError) as error:
        _check_version(text)
        raise Poison(f"not as it should be: {error}"[:_REASON]) from error
    if message.v != codec.VERSION:
        raise _other_version(message.v)
    _check_size(message)
    line = _line(message, sequence)
    batch = Batch(
        message.device_id,
        message.max_gap,
        version_of(line, message.generation),
        line=line,
        file_id=message.file_id,
        number=message.number,
        sequence=sequence,
    )
    if message.opening is not None:
        batch.opening = Opening(*_fields(message.opening))
    for series in message.readings:
        batch.readings += _readings(series)
    if message.events is not None:
        batch.events += map(Event._make, _rows(message.events))
    if message.devices is not None:
        for device in map(Device._make, _rows(message.devices)):
            batch.devices.append(device._replace(revision=version_of(line, device.revision)))
    if message.meters is not None:
        for meter in map(Meter._make, _rows(message.meters)):
            batch.meters.append(meter._replace(revision=version_of(line, meter.revision)))
    if message.deletions is not None:
        for deletion in map(Deletion._make, _rows(message.deletions)):
            batch.deletions.append(_placed(deletion, line))
    return batch


def _check_size(message: _Message) -> None:
    """Raise Poison for more rows than any forwarder sends.

    Alike rows are packed so small that they would fill a sink.
    """
    counts = {"readings": sum(len(series.steps) for series in message.readings)}
    for name in ("events", "devices", "meters", "deletions"):
        part = getattr(message, name)
        counts[name] = 0 if part is None else len(next(_fields(part)))
    for name, count in counts.items():
        if count > MAX_ROWS:
            raise Poison(f"{count} {name} in one message: at most {MAX_ROWS} are taken")


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise Poison(f"neither compressed nor JSON: {error}") from error
    if not unpacker.eof:
        raise Poison(f"cut short, or longer than {MAX_BYTES} bytes")
    return text


def _check_version(text: bytes) -> None:
    """Raise Poison for a message that is in order, only of another version."""
    try:
        head = _head_decoder.decode(text)
    except (ValueError, RecursionError):
        return
    if head.v != codec.VERSION:
        raise _other_version(head.v)


def _other_version(found: Any) -> Poison:
    return Poison(f"expected a message of version {codec.VERSION}, got {repr(found)[:80]}")


def _line(message: _Message, sequence: int) -> int:
    """The number of the message's line."""
    if (
        message.line == 0 and message.opening is None
    ):  # an opening that is sent once more has its line
        raise Poison("expected a line of at least 1, or an opening")
    if message.line > sequence:
        raise Poison(
            f"its line is {message.line}, but it is message {sequence} of the stream: "
            "the line is of another stream"
        )
    return message.line or sequence


def _placed(deletion: Deletion, line: int) -> Deletion:
    """The same with a version of the whole fleet as its revision."""
    if deletion.line > line:
        raise Poison(f"a deletion of line {deletion.line} in a message of line {line}")
    own_line = deletion.line or line
    return deletion._replace(revision=version_of(own_line, deletion.revision), line=own_line)


def _readings(series: _Series) -> Iterable[Reading]:
    count = len(series.steps)
    times = list(accumulate(series.steps))
    columns = (series.voltage, series.current_draw, series.charge_pct)
    if any(len(column) != count for column in columns):
        raise Poison(f"the columns of {series.meter_id!r} differ in length"[:_REASON])
    if times and not 0 <= min(times) <= max(times) < MAX_US:
        raise Poison(f"the times of {series.meter_id!r} are not all from 1970 to 2200"[:_REASON])
    return map(Reading._make, zip(repeat(series.meter_id), times, *columns))


def _fields(part: Struct) -> Iterator[Any]:
    return (getattr(part, name) for name in part.__struct_fields__)


def _rows(part: _Part) -> Iterator[tuple[Any, ...]]:
    columns = list(_fields(part))
    if len({len(column) for column in columns}) != 1:
        raise Poison(f"the columns of {type(part).__name__[1:].lower()} differ in length")
    return zip(*columns)
