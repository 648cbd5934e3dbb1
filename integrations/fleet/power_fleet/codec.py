"""A batch of one device's news as bytes: JSON by columns, compressed. decoding.py is the way back.

A device needs no more than this module, the library and the standard library to send.

Each start of a forwarder opens a line of each device: its first message is an opening, and the
place that the stream gives to it is the line's number, which every later batch of that process
carries. Within its line a process counts what it says. So of two states of a meter the later one
has the higher version, (line, count), whatever any clock says.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from power_fleet.errors import FleetError

VERSION = 2
# Of a version: what a process has counted in its line, a million. The rest, the line's number,
# lasts for 69 years of 4,000 messages a second.
COUNT_BITS = 20
MAX_COUNT = 2**COUNT_BITS - 1
MAX_LINE = 2 ** (63 - COUNT_BITS) - 1
MAX_TEXT = 10_000  # characters: an event's note; ids and names are shorter
MAX_ELECTRICAL = 1e6  # volts, amperes, and percent of charge
MAX_QUANTITY = 1e12  # watts, watt-hours: the library's limit too
MAX_BYTES = 4 * 1024 * 1024  # of one batch, unpacked: 500 readings take about 20,000
MAX_US = 7_289_654_400_000_000  # the library's end of time
MAX_INTEGER = 2**63 - 1
DELETIONS = ("readings", "meter", "device")


class Poison(FleetError):
    """A message that can never be stored; says why."""


class Reading(NamedTuple):
    """A reading: microseconds since 1970, volts, amperes, percent; None: not known."""

    meter_id: str
    at: int
    voltage: float | None
    current_draw: float | None
    charge_pct: float | None


class Event(NamedTuple):
    """An event: its number in the device's file, its time in microseconds since 1970."""

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
    """What was deleted on the device.

    `kind` is readings, meter or device, as in the library's record.

    It concerns what came in batches of a lower generation than its revision; what came in others
    was recorded after it.
    """

    revision: int
    kind: str
    meter_id: str | None  # None: all of the device
    since: int | None  # microseconds since 1970; None: no limit
    until: int | None
    line: int = 0  # the line that its revision was counted in; 0: that of its batch


class Opening(NamedTuple):
    """The first message of a line.

    It has the package's version, where the device is, and what makes this message unique.
    """

    version: str
    site: str
    nonce: str


@dataclass
class Batch:
    """What one message carries, all of one device.

    max_gap: microseconds beyond which no energy is counted. generation: higher than the revision of
    every deletion that was made before this batch. line: 0 in an opening. file_id and number: the
    device's file, and how many parcels the stream had of it, so that a copy of a file is noticed.
    sequence: the message's place in the stream.

    generation and revisions are counts within the line (at most MAX_COUNT) when a batch is encoded,
    and versions of the whole fleet when it has been decoded: see version_of.
    """

    device_id: str
    max_gap: int
    generation: int = 0
    readings: list[Reading] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    meters: list[Meter] = field(default_factory=list)
    deletions: list[Deletion] = field(default_factory=list)
    line: int = 1
    file_id: str = ""
    number: int = 0
    opening: Opening | None = None
    sequence: int = 0


def version_of(line: int, count: int) -> int:
    """What is counted in a line as a number that grows over all lines.

    >>> version_of(2, 1) > version_of(1, MAX_COUNT) > version_of(1, 0)
    True
    """
    return line << COUNT_BITS | count


def encode(batch: Batch) -> tuple[str, bytes]:
    """The batch's message id and its bytes.

    The same batch has the same id on every machine and at every attempt.
    """
    message: dict[str, Any] = {
        "v": VERSION,
        "device_id": batch.device_id,
        "file_id": batch.file_id,
        "number": batch.number,
        "line": batch.line,
        "max_gap": batch.max_gap,
        "generation": batch.generation,
    }
    if batch.opening is not None:
        message["opening"] = batch.opening._asdict()
    parts = {
        "readings": [
            _columns(meter_id, list(rows))
            for meter_id, rows in groupby(batch.readings, lambda reading: reading.meter_id)
        ],
        "events": _by_columns(batch.events),
        "devices": _by_columns(batch.devices),
        "meters": _by_columns(batch.meters),
        "deletions": _by_columns(batch.deletions),
    }
    message |= {name: part for name, part in parts.items() if part}
    text = json.dumps(message, separators=(",", ":")).encode()
    return hashlib.sha256(text).hexdigest()[:32], zlib.compress(text, 9)


def _by_columns(rows: list[Any]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows)]


def _columns(meter_id: str, rows: list[Reading]) -> list[Any]:
    """One meter's readings by columns, times as steps.

    Alike values side by side compress to a few bytes each.
    """
    times = [row.at for row in rows]
    return [
        meter_id,
        [times[0], *(later - earlier for earlier, later in pairwise(times))],
        [row.voltage for row in rows],
        [row.current_draw for row in rows],
        [row.charge_pct for row in rows],
    ]
