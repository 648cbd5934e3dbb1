"""What is wrong with devices, noticed and said once.

Silence, copies of a file, files that went back or were exchanged.

    silent    nothing has come for a while from a device that is not retired;
              over when it is heard again
    cloned    two forwarders of one device at work at once, with copies of one file;
              over when one has stopped for long
    two files the same with two files
    restored  the device's file went back: a copy of it was put in its place,
              or a power cut took its last moments
    replaced  the device has another file than before, such as on a new card

The last two are facts: they are shown for a week. Time is the stream's, up to where the engine is
fresh: while sinks stand still, or are behind, no device becomes silent by that. What is noticed
depends on the engine's tables alone, and so does an alarm's identity: any number of these may run,
and be killed at any moment, and there is still one alarm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter

from power_fleet import tables
from power_fleet.backoff import Backoff
from power_fleet.engine import Engine, EngineError, Row, Shard, at_once, named_parts
from power_manager import DAY_US, HOUR_US, SECOND_US, from_microseconds

SILENT_SECONDS = 3600.0  # without a word, and a device is silent
OVERLAP_US = 60 * SECOND_US  # that the forwarder before may still be at work beside the next
CALM_US = HOUR_US  # without two of them, and it is over
LINES = 200  # of a device that are looked at, the last ones: a device may begin as many as it likes
SHOWN_US = 7 * DAY_US  # that a file that went back, or was exchanged, is shown
SILENT, CLONED, TWO_FILES, RESTORED, REPLACED = (
    "silent",
    "cloned",
    "two files",
    "restored",
    "replaced",
)
KINDS = (SILENT, CLONED, TWO_FILES, RESTORED, REPLACED)
_FACTS = (RESTORED, REPLACED)  # they happened, and do not last
_log = logging.getLogger("power_fleet")

_FRESH = "SELECT toInt64(max(fresh)) AS fresh FROM power_fresh"
_GONE = """device_id IN (
  SELECT device_id FROM power_retired FINAL WHERE meter_id = '' AND retired = 1)
OR device_id IN (SELECT device_id FROM power_devices FINAL WHERE deleted = 1)"""
_SILENT = f"""SELECT device_id, toInt64(max(seen)) AS heard FROM power_seen WHERE NOT ({_GONE})
GROUP BY device_id HAVING heard <= %(before)s"""
_TAKEN_BACK = """SELECT device_id, toInt64(at) AS at FROM power_retired FINAL
WHERE meter_id = '' AND retired = 0 AND at >= %(before)s"""
# Devices of which something may be noticed: those with a new line, and those of which two lines
# were heard lately.
_TWO_LATELY = """SELECT device_id FROM power_seen WHERE seen >= %(calm)s
GROUP BY device_id HAVING uniqExact(line) > 1"""
_WITH_NEWS = f"""SELECT DISTINCT device_id FROM power_lines
WHERE NOT ({_GONE}) AND (opened >= %(shown)s OR device_id IN ({_TWO_LATELY}))"""
_LINES = f"""SELECT device_id, toInt64(line) AS line, file_id, toInt64(opened) AS opened, number
FROM power_lines FINAL WHERE device_id IN %(devices)s
ORDER BY device_id, line DESC LIMIT {LINES} BY device_id"""
_SEEN = f"""SELECT device_id, toInt64(line) AS line, toInt64(max(seen)) AS seen,
  max(number) AS number FROM power_seen WHERE device_id IN %(devices)s
GROUP BY device_id, line ORDER BY line DESC LIMIT {LINES} BY device_id"""
_ALARMS = """SELECT device_id, kind, toInt64(at) AS at, note, toInt64(cleared) AS cleared
FROM power_alarms FINAL WHERE {which} ORDER BY at, device_id, kind"""
_COUNT = """SELECT kind, toInt64(count()) AS alarms FROM power_alarms FINAL
WHERE cleared = 0 GROUP BY kind"""


@dataclass(frozen=True)
class Alarm:
    """Something noticed about a device; times in microseconds since 1970.

    `cleared` is 0 while it lasts.
    """

    device_id: str
    kind: str
    at: int
    note: str
    cleared: int = 0

    @property
    def identity(self) -> tuple[str, str, int]:
        """What makes it the same alarm."""
        return self.device_id, self.kind, self.at


@dataclass(frozen=True)
class Line:
    """What is known of one start of a device's forwarder.

    See the tables power_lines and power_seen.
    """

    device_id: str
    line: int
    file_id: str
    opened: int  # microseconds since 1970, by the stream's clock
    number: int  # that the file had come to when it was opened
    seen: int  # when something of it came last
    reached: int  # the highest number that came in it


async def keep_watching(
    engine: Engine,
    interval: float,
    backoff: Backoff,
    silent_seconds: float = SILENT_SECONDS,
    once: bool = False,
) -> None:
    """Look every `interval` seconds until cancelled, and log what begins and what is over.

    With once, look once.

    A failure is waited out, but with once it is raised as EngineError.
    """
    while True:
        try:
            changes = await asyncio.to_thread(look, engine, int(silent_seconds * SECOND_US))
        except EngineError as error:
            if once:
                raise
            await backoff.wait("devices not looked after", error)
            continue
        backoff.reset()
        for alarm in changes:
            _log.warning("%s", shown_alarm(alarm))
        if once:
            return
        await asyncio.sleep(interval)


def shown_alarm(alarm: Alarm) -> str:
    """An alarm as a line of a log."""
    if alarm.cleared:
        return f"device {alarm.device_id!r}: no longer {alarm.kind}"
    return f"device {alarm.device_id!r}: {alarm.kind}: {alarm.note}"


def look(engine: Engine, silent_us: int = int(SILENT_SECONDS * SECOND_US)) -> list[Alarm]:
    """Notice what is new and what is over, store it, and return it.

    Raises EngineError; then some of it is stored.
    """
    found = at_once(lambda shard: _look(shard, silent_us), engine.shards)
    return sorted(
        (alarm for changes in found for alarm in changes),
        key=lambda alarm: (alarm.cleared or alarm.at, *alarm.identity),
    )


def list_alarms(engine: Engine, with_cleared: bool = False) -> list[Alarm]:
    """The alarms that last, or all that there ever were, oldest first. Raises EngineError."""
    question = _ALARMS.format(which="1" if with_cleared else "cleared = 0")
    found = at_once(lambda shard: shard.select(question), engine.shards)
    alarms = [_alarm(row) for rows in found for row in rows]
    return sorted(alarms, key=lambda alarm: (alarm.at, *alarm.identity))


def count_alarms(engine: Engine) -> dict[str, int]:
    """How many alarms of each kind last. Raises EngineError."""
    counts: dict[str, int] = {}
    for row in engine.select(_COUNT):
        counts[row["kind"]] = counts.get(row["kind"], 0) + row["alarms"]
    return counts


def fresh_until(engine: Engine) -> int:
    """Up to when all that the stream took in is stored, on every shard (microseconds).

    0: no sink has run yet.

    Raises EngineError.
    """
    return min((row["fresh"] for row in engine.select(_FRESH)), default=0)


def _look(shard: Shard, silent_us: int) -> list[Alarm]:
    fresh = max((int(row["fresh"]) for row in shard.select(_FRESH)), default=0)
    if fresh == 0:  # no sink has run yet
        return []
    present = [*_silent(shard, fresh, silent_us), *_of_lines(shard, fresh)]
    changes = changes_of(_known(shard, present), present, fresh)
    if changes:
        rows = [[a.device_id, a.kind, a.at, a.note, a.cleared] for a in changes]
        shard.insert("power_alarms", tables.ALARMS, rows)
    return changes


def _known(shard: Shard, present: Iterable[Alarm]) -> list[Alarm]:
    """The alarms that last, and all past ones of the devices that something is wrong with now."""
    found = [_alarm(row) for row in shard.select(_ALARMS.format(which="cleared = 0"))]
    question = _ALARMS.format(which="cleared != 0 AND device_id IN %(devices)s")
    names = sorted({alarm.device_id for alarm in present})
    for named in named_parts(names):
        found += map(_alarm, shard.select(question, devices=tuple(named)))
    return found


def _silent(shard: Shard, fresh: int, silent_us: int) -> Iterator[Alarm]:
    before = max(fresh - silent_us, 0)
    taken_back = {
        row["device_id"]: int(row["at"]) for row in shard.select(_TAKEN_BACK, before=before)
    }
    for row in shard.select(_SILENT, before=before):
        if row["device_id"] not in taken_back:  # it has time to speak again
            heard = int(row["heard"])
            note = f"nothing has come since {from_microseconds(heard)}"
            yield Alarm(row["device_id"], SILENT, heard + silent_us, note)


def _of_lines(shard: Shard, fresh: int) -> Iterator[Alarm]:
    times = {"shown": max(fresh - SHOWN_US, 0), "calm": max(fresh - CALM_US, 0)}
    names = [row["device_id"] for row in shard.select(_WITH_NEWS, **times)]
    for named in named_parts(names):
        lines = _lines(shard, named)
        for _, of_device in groupby(lines, key=attrgetter("device_id")):
            yield from problems(list(of_device), fresh)


def _lines(shard: Shard, device_ids: Sequence[str]) -> list[Line]:
    seen = {
        (row["device_id"], row["line"]): row
        for row in shard.select(_SEEN, devices=tuple(device_ids))
    }
    found = [
        _line(row, seen.get((row["device_id"], row["line"])))
        for row in shard.select(_LINES, devices=tuple(device_ids))
    ]
    return sorted(found, key=lambda line: (line.device_id, line.line))


def _line(row: Row, seen: Row | None) -> Line:
    opened, number = int(row["opened"]), int(row["number"])
    return Line(
        row["device_id"],
        int(row["line"]),
        row["file_id"],
        opened,
        number,
        opened if seen is None else max(int(seen["seen"]), opened),
        number if seen is None else max(int(seen["number"]), number),
    )


def _alarm(row: Row) -> Alarm:
    return Alarm(row["device_id"], row["kind"], int(row["at"]), row["note"], int(row["cleared"]))


# --- What is noticed: of values alone


def problems(lines: Sequence[Line], fresh: int) -> list[Alarm]:
    """What is wrong with the lines of a device, oldest first, as the stream was at `fresh`.

    There is at most one alarm of a kind.
    """
    found: dict[str, Alarm] = {}
    for number, line in enumerate(lines):
        before = lines[:number]
        for alarm in _overlaps(before, line, fresh):
            found.setdefault(alarm.kind, alarm)  # it began with the first
        if before and line.opened >= fresh - SHOWN_US:
            for alarm in _changes_of_file(before, line):
                found[alarm.kind] = alarm  # the last one is what matters
    return list(found.values())


def _overlaps(before: Sequence[Line], line: Line, fresh: int) -> Iterator[Alarm]:
    """An alarm where an earlier line was at work beside this one, and both lately."""
    for other in before:
        is_beside = other.seen > line.opened + OVERLAP_US
        if not is_beside or min(other.seen, line.seen) < fresh - CALM_US:
            continue
        if other.file_id == line.file_id:
            note = (
                "two forwarders at once send copies of one file: "
                "stop one, and give it a file of its own"
            )
            yield Alarm(line.device_id, CLONED, line.opened, note)
        else:
            note = (
                "two forwarders at once send two files as this device: "
                "one of them needs an id of its own"
            )
            yield Alarm(line.device_id, TWO_FILES, line.opened, note)


def _changes_of_file(before: Sequence[Line], line: Line) -> Iterator[Alarm]:
    """An alarm where this line's file is not what the lines before it had left."""
    reached = max((one.reached for one in before if one.file_id == line.file_id), default=-1)
    if line.number < reached:
        note = (
            f"its file went back from parcel {reached} to {line.number}: "
            "restored from a copy, or its last moments lost in a power cut"
        )
        yield Alarm(line.device_id, RESTORED, line.opened, note)
    if before[-1].file_id != line.file_id:
        note = "it has another file than before"
        yield Alarm(line.device_id, REPLACED, line.opened, note)


def changes_of(known: Iterable[Alarm], present: Iterable[Alarm], fresh: int) -> list[Alarm]:
    """What has to be stored, so that what is `known` is what is `present`.

    Alarms that begin, and alarms that are over.

    `known` are all alarms that last, and all others of the devices of `present`, which has one of a
    kind and device.
    """
    by_identity = {alarm.identity: alarm for alarm in known}
    lasting = {(a.device_id, a.kind): a for a in by_identity.values() if not a.cleared}
    begins: list[Alarm] = []
    still: set[tuple[str, str, int]] = set()
    for alarm in present:
        same = lasting.get((alarm.device_id, alarm.kind))
        if same is not None and (alarm.kind not in _FACTS or same.identity == alarm.identity):
            still.add(same.identity)  # it may have begun earlier than what is left of it says
        elif alarm.kind not in _FACTS:
            begins.append(_anew(alarm, by_identity))
        elif alarm.identity not in by_identity:
            begins.append(alarm)
    over = [a for a in by_identity.values() if not a.cleared and a.identity not in still]
    return begins + [replace(alarm, cleared=max(fresh, alarm.at + 1)) for alarm in over]


def _anew(alarm: Alarm, known: Mapping[tuple[str, str, int], Alarm]) -> Alarm:
    """The alarm; where the same one is over already, it begins once more when that was over."""
    while alarm.identity in known:
        alarm = replace(alarm, at=known[alarm.identity].cleared)
    return alarm
