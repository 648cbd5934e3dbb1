"""A batch of one device's news as bytes, and back: JSON by columns, compressed; whatever is wrong raises Poison."""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple, NoReturn

from power_manager import AlertLevel, MeterType, PowerEventType

VERSION = 1
MAX_TEXT = 10_000  # characters: an event's note; ids and names are shorter
MAX_QUANTITY = 1e12  # watts, watt-hours: the library's limit too
MAX_BYTES = 4 * 1024 * 1024  # of one batch, unpacked: 500 readings take about 20,000
MAX_US = 7_289_654_400_000_000  # the library's end of time
MAX_INTEGER = 2**63 - 1
DELETIONS = ("readings", "meter", "device")


class Poison(Exception):
    """A message that can never be stored; says why."""


class Reading(NamedTuple):
    """A reading: microseconds since 1970, volts, amperes, percent; None: not known."""

    meter_id: str
    at: int
    voltage: float | None
    current_draw: float | None
    charge_pct: float | None


class Event(NamedTuple):
    """An event, with its sequence number in the device's file and its time in microseconds since 1970."""

    sequence: int
    id: str
    type: str
    value: float
    at: int
    note: str | None
    meter_id: str | None


class Device(NamedTuple):
    """A device as registered; of two the one with the higher revision is the present one."""

    name: str
    site: str
    shutdown_threshold: float
    target_wh: float | None
    low_battery_threshold: float | None
    critical_battery_threshold: float | None
    max_gap: int  # microseconds
    revision: int


class Meter(NamedTuple):
    """A meter in its present state; `position` is its place in the order of adding."""

    id: str
    position: int
    type: str
    name: str | None
    capacity_wh: float
    voltage: float
    current_draw: float
    charge_pct: float | None
    updated: int | None  # microseconds since 1970
    active: bool
    power_known: bool
    alert_level: str
    revision: int


class Deletion(NamedTuple):
    """What was deleted on the device: `kind` is readings, meter or device, as in the library's record.

    It concerns what came in batches of a lower generation than its revision; what came in others was recorded after it.
    """

    revision: int
    kind: str
    meter_id: str | None  # None: all of the device
    since: int | None  # microseconds since 1970; None: no limit
    until: int | None


@dataclass
class Batch:
    """What one message carries, all of one device.

    max_gap: microseconds beyond which no energy is counted. generation: higher than the revision of every deletion that
    was made before this batch.
    """

    device_id: str
    max_gap: int
    generation: int = 0
    readings: list[Reading] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    meters: list[Meter] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)


def encode(batch: Batch) -> tuple[str, bytes]:
    """The batch's message id and its bytes. The same batch has the same id on every machine and at every attempt."""
    parts = {name: list(map(list, zip(*getattr(batch, name)))) for name in _COLUMNS}
    parts["readings"] = [
        _columns(meter_id, list(rows)) for meter_id, rows in groupby(batch.readings, lambda r: r[0])
    ]
    message = {
        "v": VERSION,
        "device_id": batch.device_id,
        "max_gap": batch.max_gap,
        "generation": batch.generation,
    }
    text = json.dumps(
        message | {name: part for name, part in parts.items() if part}, separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()[:32], zlib.compress(text.encode(), 9)


def _columns(meter_id: str, rows: list[Reading]) -> list[Any]:
    """One meter's readings by columns, times as steps: alike values side by side compress to a few bytes each."""
    times = [row.at for row in rows]
    return [
        meter_id,
        [times[0], *(b - a for a, b in pairwise(times))],
        *map(list, list(zip(*rows))[2:]),
    ]


def decode(data: bytes) -> Batch:
    """The batch that these bytes are. Raises Poison."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_BYTES)
        message = json.loads(text, parse_constant=_no_constant)
    except (zlib.error, ValueError, RecursionError) as error:
        raise Poison(f"neither compressed nor JSON: {error}") from error
    if not unpacker.eof:
        raise Poison(f"cut short, or longer than {MAX_BYTES} bytes")
    if not isinstance(message, dict) or message.get("v") != VERSION:
        raise Poison(f"expected a message of version {VERSION}")
    batch = Batch(
        _text(message.get("device_id")),
        _whole(message.get("max_gap")),
        _whole(message.get("generation")),
    )
    for name, (kind, checks) in _COLUMNS.items():
        rows = [kind(*_checked(row, checks)) for row in _rows(message.get(name, []), len(checks))]
        getattr(batch, name).extend(rows)
    for part in _list(message.get("readings", [])):
        batch.readings.extend(_series(_list(part)))
    return batch


def _series(part: list[Any]) -> list[Reading]:
    if len(part) != 5:
        raise Poison(f"expected a meter's id and four columns, got {len(part)} parts")
    meter_id, (steps, *columns) = _text(part[0]), map(_list, part[1:])
    times = list(accumulate(map(_signed, steps)))
    if any(len(column) != len(times) for column in columns):
        raise Poison(f"the columns of {meter_id!r} differ in length")
    return [
        Reading(
            meter_id,
            _time(at),
            _maybe_electrical(volts),
            _maybe_electrical(amperes),
            _maybe_electrical(charge),
        )
        for at, volts, amperes, charge in zip(times, *columns)
    ]


def _rows(columns: Any, count: int) -> list[tuple[Any, ...]]:
    parts = [_list(column) for column in _list(columns)]
    if parts and (len(parts) != count or len(set(map(len, parts))) != 1):
        raise Poison(f"expected {count} columns of one length")
    return list(zip(*parts))


def _checked(row: tuple[Any, ...], checks: tuple[Callable[[Any], Any], ...]) -> list[Any]:
    return [check(value) for check, value in zip(checks, row)]


# --- What a value may be


def _wrong(expected: str, value: object) -> NoReturn:
    raise Poison(f"expected {expected}, got {repr(value)[:80]}")


def _no_constant(name: str) -> NoReturn:
    raise Poison(f"expected finite numbers, got {name}")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else _wrong("a list", value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not _encodes(value):
        _wrong(f"text of 1 to {MAX_TEXT} characters", value)
    return value


def _encodes(value: str) -> bool:
    try:
        return bool(value.encode())
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _signed(value: Any) -> int:
    if type(value) is not int or abs(value) > MAX_INTEGER:
        _wrong("a whole number", value)
    return int(value)


def _whole(value: Any) -> int:
    return (
        _signed(value)
        if type(value) is int and value >= 0
        else _wrong("a whole number of at least 0", value)
    )


def _time(value: Any) -> int:
    return (
        at
        if 0 <= (at := _signed(value)) < MAX_US
        else _wrong("microseconds from 1970 to 2200", value)
    )


def _number(most: float) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        if (
            type(value) not in (int, float) or not abs(value) <= most
        ):  # an integer may be too long for a float
            _wrong(f"a number up to {most:g}", value)
        return float(value)

    return check


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        _wrong("true or false", value)
    return bool(value)


def _one_of(names: Sequence[str]) -> Callable[[Any], str]:
    return lambda value: value if value in names else _wrong("one of " + ", ".join(names), value)


def _maybe(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)


def _any_text(value: Any) -> str:
    return "" if value == "" else _text(value)


_electrical = _number(1e6)
_maybe_electrical = _maybe(_electrical)
_quantity = _number(MAX_QUANTITY)

_COLUMNS: dict[str, tuple[Any, tuple[Callable[[Any], Any], ...]]] = {
    "events": (Event, (
        _whole, _text, _one_of(list(PowerEventType)), _number(sys.float_info.max), _time, _maybe(_any_text),
        _maybe(_text),
    )),
    "devices": (Device, (
        _any_text, _any_text, _quantity, _maybe(_quantity), _maybe(_quantity), _maybe(_quantity), _whole, _whole,
    )),
    "meters": (Meter, (
        _text, _whole, _one_of(list(MeterType)), _maybe(_any_text), _quantity, _electrical, _electrical,
        _maybe_electrical, _maybe(_time), _truth, _truth, _one_of(list(AlertLevel)), _whole,
    )),
    "deletions": (Deletion, (_whole, _one_of(DELETIONS), _maybe(_text), _maybe(_time), _maybe(_time))),
}  # fmt: skip
