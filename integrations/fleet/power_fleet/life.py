"""The life of devices, as an operator sees and changes it.

Which there are, retired ones, replaced ones, deleted ones.

What is retired keeps its history and leaves the present: budget, latest, silent devices, alarms.
What is deleted leaves the engine physically; a tombstone stays, which is a deletion newer than
everything that the stream has taken so far.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from power_fleet import tables
from power_fleet.codec import MAX_COUNT, MAX_US, version_of
from power_fleet.engine import Engine, Row, Shard, at_once, named_parts
from power_fleet.stream import ASKED_SECONDS, Nats
from power_fleet.subjects import STREAM
from power_manager import (
    SECOND_US,
    NotFound,
    PowerManagerError,
    from_microseconds,
    shown_duration,
    to_microseconds,
)

DELETED = "deleted"  # the kind of the alarm that tells when an operator deleted a device
QUIET_SECONDS = 3600.0  # that a device has to have been silent for, to be deleted without force

_HIGHEST_LINE = "SELECT toInt64(max(line)) AS line FROM power_lines"
_DEVICES = "SELECT device_id, name, site FROM power_devices FINAL WHERE deleted = 0"
_LINES = """SELECT device_id, toInt64(max(line)) AS last_line, argMax(file_id, line) AS last_file,
  argMax(version, line) AS last_version, toInt64(argMax(opened, line)) AS last_opened
  FROM power_lines GROUP BY device_id"""
_SEEN = "SELECT device_id, toInt64(max(seen)) AS seen FROM power_seen GROUP BY device_id"
_RETIRED = (
    "SELECT device_id, replaced_by FROM power_retired FINAL WHERE retired = 1 AND meter_id = ''"
)
_ALARMS = """SELECT device_id, groupUniqArray(kind) AS kinds FROM power_alarms FINAL
  WHERE cleared = 0 GROUP BY device_id"""
_DELETED = f"""SELECT device_id, toInt64(max(at)) AS at FROM power_alarms WHERE kind = '{DELETED}'
  AND device_id IN (SELECT device_id FROM power_devices FINAL WHERE deleted = 1)
  GROUP BY device_id"""
_DEVICE = "SELECT device_id FROM power_devices FINAL WHERE deleted = 0 AND device_id = %(id)s"
_METER = "SELECT device_id FROM power_meters FINAL WHERE deleted = 0 AND meter_id = %(id)s"
_RETIREMENT = """SELECT retired, toInt64(at) AS at, replaced_by FROM power_retired FINAL
  WHERE device_id = %(device)s AND meter_id = %(meter)s"""
_HEARD = """SELECT toInt64(max(seen)) AS seen FROM power_seen WHERE device_id = %(device)s"""
_LINES_OF = """SELECT device_id, toInt64(max(line)) AS line FROM power_seen
  WHERE device_id IN %(devices)s GROUP BY device_id"""
# All that knows a device by its id; the deletions themselves stay.
_ERASED = (
    "power_readings",
    "power_hourly",
    "power_touched",
    "power_events",
    "power_meters",
    "power_claims",
    "power_devices",
    "power_lines",
    "power_seen",
    "power_retired",
    "power_alarms",
)


@dataclass(frozen=True)
class FleetDevice:
    """A device as an operator sees it.

    Times are ISO 8601 in UTC by the stream's clock; None: never.

    line and file_id: of its forwarder's last start. alarms: kinds of those that last. replaced_by:
    an id, or "". deleted: it was, and goes on sending in a line that was opened before: nothing of
    that is kept.
    """

    device_id: str
    name: str = ""
    site: str = ""
    version: str = ""
    file_id: str = ""
    line: int = 0
    opened: str | None = None
    last_seen: str | None = None
    alarms: tuple[str, ...] = ()
    retired: bool = False
    replaced_by: str = ""
    deleted: bool = False


def highest_line(engine: Engine) -> int:
    """The highest line of all devices that the engine knows; 0: none, or it has no tables yet.

    Raises EngineError.
    """
    highest = 0
    for shard in engine.shards:
        (found,) = shard.select("EXISTS TABLE power_lines")
        if found["result"]:
            (row,) = shard.select(_HIGHEST_LINE)
            highest = max(highest, int(row["line"]))
    return highest


def list_devices(engine: Engine) -> list[FleetDevice]:
    """Every device, by its id; retired ones too. Raises EngineError."""
    found = [device for devices in at_once(_devices, engine.shards) for device in devices]
    return sorted(found, key=lambda device: device.device_id)


def _devices(shard: Shard) -> list[FleetDevice]:
    lines = _by_device(shard, _LINES)
    seen = _by_device(shard, _SEEN)
    retired = _by_device(shard, _RETIRED)
    alarms = _by_device(shard, _ALARMS)
    found = []
    for device_id, row in _by_device(shard, _DEVICES).items():
        device = FleetDevice(device_id, row["name"], row["site"])
        if device_id in lines:
            line = lines[device_id]
            device = replace(
                device,
                version=line["last_version"],
                file_id=line["last_file"],
                line=int(line["last_line"]),
                opened=from_microseconds(line["last_opened"]),
            )
        if device_id in seen:
            device = replace(device, last_seen=from_microseconds(seen[device_id]["seen"]))
        if device_id in retired:
            replaced_by = retired[device_id]["replaced_by"]
            device = replace(device, retired=True, replaced_by=replaced_by)
        if device_id in alarms:
            device = replace(device, alarms=tuple(sorted(alarms[device_id]["kinds"])))
        found.append(device)
    for device_id, row in _by_device(shard, _DELETED).items():
        heard = int(seen[device_id]["seen"]) if device_id in seen else 0
        if heard > row["at"]:
            last_seen = from_microseconds(heard)
            found.append(FleetDevice(device_id, last_seen=last_seen, deleted=True))
    return found


def _by_device(shard: Shard, question: str) -> dict[str, Row]:
    return {row["device_id"]: row for row in shard.select(question)}


# --- Retired


@dataclass(frozen=True)
class Retirement:
    """What was retired, or taken back: a device, or a meter of it (meter_id '' is the device)."""

    device_id: str
    meter_id: str
    retired: bool
    is_new: bool  # False: it was so before


def retire(
    engine: Engine,
    id_: str,
    undo: bool = False,
    kind: str | None = None,
    clock: Callable[[], float] = time.time,
) -> Retirement:
    """Retire a device or a meter by its id, or take that back with undo.

    kind: "device" or "meter", where one id is both. Raises NotFound, PowerManagerError where it is
    both, EngineError.
    """
    device_id, meter_id = _found(engine, id_, kind)
    is_new = _note(engine, device_id, meter_id, not undo, "", clock)
    return Retirement(device_id, meter_id, not undo, is_new)


def replace_device(
    engine: Engine, old: str, new: str, clock: Callable[[], float] = time.time
) -> None:
    """Note that a device has taken the place of another one, which is retired by that.

    Each keeps its own history. Raises NotFound where one of them is unknown, PowerManagerError
    where they are the same or the new one is retired itself, EngineError.
    """
    if old == new:
        raise PowerManagerError(f"{old!r} cannot replace itself: name the device in its place")
    for id_ in (old, new):
        _found(engine, id_, "device")
    if _is_retired(engine, new):
        raise PowerManagerError(f"{new!r} is retired itself: power-fleet retire --undo {new}")
    _note(engine, old, "", True, new, clock)


def _found(engine: Engine, id_: str, kind: str | None) -> tuple[str, str]:
    """The device's id, and the meter's or ''. Raises NotFound, PowerManagerError."""
    shard = engine.shards[engine.shard_of(id_)]
    is_device = kind != "meter" and bool(shard.select(_DEVICE, id=id_))
    owners = [] if kind == "device" else [row["device_id"] for row in engine.select(_METER, id=id_)]
    if is_device + len(owners) > 1:
        raise PowerManagerError(
            f"{id_!r} is more than one device or meter: give --kind device or --kind meter"
            if is_device
            else f"{id_!r} is a meter of several devices: {', '.join(sorted(owners))}"
        )
    if is_device:
        return id_, ""
    if owners:
        return owners[0], id_
    what = kind or "device or meter"
    raise NotFound(f"no {what} of the fleet has the id {id_!r}", kind or "device", id_)


def _is_retired(engine: Engine, device_id: str) -> bool:
    shard = engine.shards[engine.shard_of(device_id)]
    rows = shard.select(_RETIREMENT, device=device_id, meter="")
    return any(row["retired"] for row in rows)


def _note(
    engine: Engine,
    device_id: str,
    meter_id: str,
    retired: bool,
    replaced_by: str,
    clock: Callable[[], float],
) -> bool:
    """Note it; return whether that changed anything."""
    shard = engine.shards[engine.shard_of(device_id)]
    rows = shard.select(_RETIREMENT, device=device_id, meter=meter_id)
    at = to_microseconds(clock(), "clock")
    was_retired = False
    was_replaced_by = ""
    for row in rows:
        was_retired = bool(row["retired"])
        was_replaced_by = row["replaced_by"]
        at = max(at, int(row["at"]) + 1)  # the later one, whatever the clock says
    if was_retired == retired and was_replaced_by == replaced_by:
        return False
    note = [device_id, meter_id, int(retired), at, replaced_by]
    shard.insert("power_retired", tables.RETIRED, [note])
    return True


# --- Deleted


async def last_sequence(source: Nats) -> int:
    """The number of the message that the stream took last. Raises NATS's errors."""
    connection = await source.connect("power-fleet delete")
    try:
        js = connection.jetstream(timeout=ASKED_SECONDS)
        return int((await js.stream_info(STREAM)).state.last_seq)
    finally:
        await connection.close()


def delete_device(
    engine: Engine,
    device_id: str,
    last_sequence: int,
    force: bool = False,
    clock: Callable[[], float] = time.time,
) -> None:
    """Delete everything of a device from the engine, physically.

    last_sequence: of the stream now. What it has taken by then, and all that comes in lines which
    were opened by then, brings nothing back; a forwarder that is started later begins again. So a
    device that was heard of within the last QUIET_SECONDS is refused, unless with force. Done
    again, it takes what has come late. Raises NotFound where the engine has nothing of it,
    PowerManagerError, EngineError.
    """
    shard = engine.shards[engine.shard_of(device_id)]
    (heard,) = shard.select(_HEARD, device=device_id)
    if not heard["seen"] and not shard.select(_DEVICE, id=device_id):
        raise NotFound(f"no device of the fleet has the id {device_id!r}", "device", device_id)
    now = to_microseconds(clock(), "clock")
    quiet = (now - heard["seen"]) / SECOND_US
    if quiet < QUIET_SECONDS and not force:
        ago = shown_duration(max(quiet, 0.0))
        raise PowerManagerError(
            f"{device_id!r} was heard from {ago} ago: stop its forwarder "
            "or revoke it first, or give --force and lose what it goes on sending"
        )
    _erase(shard, [device_id], last_sequence, now)


def delete_devices(
    engine: Engine,
    device_ids: Sequence[str],
    last_sequence: int,
    clock: Callable[[], float] = time.time,
) -> None:
    """Delete everything of these devices as delete_device() does with force, many at once.

    Raises EngineError.
    """
    now = to_microseconds(clock(), "clock")
    for number, shard in enumerate(engine.shards):
        mine = [id_ for id_ in device_ids if engine.shard_of(id_) == number]
        for part in named_parts(mine):
            _erase(shard, part, last_sequence, now)


def _erase(shard: Shard, device_ids: Sequence[str], last_sequence: int, now: int) -> None:
    """Delete everything of devices of one shard; now: in microseconds."""
    names = {"devices": tuple(device_ids)}
    lines = {row["device_id"]: row["line"] for row in shard.select(_LINES_OF, **names)}
    revisions = {
        id_: version_of(max(last_sequence, lines.get(id_, 0)), MAX_COUNT) for id_ in device_ids
    }
    tombstones = [[id_, revision, "device", "", 0, MAX_US] for id_, revision in revisions.items()]
    # First, so that what sinks store from now on is deleted by them.
    shard.insert("power_deletions", tables.DELETIONS, tombstones)
    for table in _ERASED:
        shard.change(f"ALTER TABLE {table} DELETE WHERE device_id IN %(devices)s", **names)
    notes = [[id_, DELETED, now, "by an operator", now] for id_ in device_ids]
    shard.insert("power_alarms", tables.ALARMS, notes)
    unknown = [
        [id_, "", "", 0.0, None, None, None, 0, revision, 1] for id_, revision in revisions.items()
    ]
    shard.insert("power_devices", tables.DEVICES, unknown)
