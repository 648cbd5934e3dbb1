"""Energy counters that only go up, whatever happens to the file, the broker or this program.

The truth is in the file: the energy of a meter since its first reading. No published value is ever
below an earlier one, because Home Assistant would take that for a new meter and count it all again:

    published = max(highest published so far, truth + offset)

- Readings are corrected or deleted, and the truth falls: the counter waits until the truth has
  caught up.
- A backup is restored, or another copy of the file replaces it, or a device's consumption is made
  of other meters than before: the truth is another one. The counter goes on from the last published
  value; the offset is the difference. If a meter's readings then end before the time of that value,
  its next reading ends a gap. What the file books over the gap was counted before, but for one
  reading's interval, and is not counted again. What was measured after the last message, half a
  minute while the bridge runs, is not counted then.
- The last published value is unknown, and the file is not the one it came from: the counter begins
  at 0, and Home Assistant takes it for what it is, a new meter that has measured nothing yet.

The last published values are in the message that the broker retains and, for a broker that has lost
it, in tables of this package in the file. A device's counters are written there when one begins, is
reset, or has to wait; every hour; and when the program ends: each time under a revision one higher,
and before anything is published with it. The file also knows under which file_id and revision they
were published before. A retained message with another one comes from a later state of the file: the
file is an older copy, although it may have the same file_id (a memory card that was written back).
That counts as another file, too.

Two cases cannot be recognised, and then a counter falls: a memory card that holds both file and
broker was written back; or readings were deleted around the time at which this program was killed,
and the broker has forgotten what it retained.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from power_manager import PowerManager, PowerMeter, counted_meters
from power_mqtt.energy import EnergyReader, energy_after

OUT_FIELD = "energy_out_wh"  # of each meter
IN_FIELD = "energy_in_wh"
USED_FIELD = "consumption_wh"  # of the device
METERS_FIELD = "meters"
TIME_FIELD = "time"  # of the newest reading
FILE_FIELD = "file_id"
REVISION_FIELD = "counter_revision"
SAVE_EVERY_S = 3600.0  # seconds
_DECIMALS = 3  # of the published watt-hours
# A wait for that share of a counter is saved. Home Assistant tolerates a fall of a tenth.
_NOTED_WAIT = 0.05
_MOST_WH = 1e12  # a greater retained value is not ours
_MOST_REVISION = 2**53
_MOST_TEXT = 200  # characters of a file_id
_END = "9999"  # after the time of any reading, as text

# Versions: 1 is the tables below.
_TABLES = (
    # The lines of history on which a device's counters were counted, the present one last.
    """CREATE TABLE IF NOT EXISTS mqtt_counter_lines (
        device_id TEXT NOT NULL,
        file_id TEXT NOT NULL,
        revision INTEGER NOT NULL, -- the highest of that line
        PRIMARY KEY (device_id, file_id)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS mqtt_counters (
        device_id TEXT NOT NULL,
        field TEXT NOT NULL,       -- of the energy message
        id TEXT NOT NULL,          -- of the meter, or of the device again
        basis TEXT NOT NULL,       -- the meters that a consumption is made of, JSON; else ''
        offset_wh REAL NOT NULL,   -- what is added to the truth
        value_wh REAL NOT NULL,    -- the highest published value when the row was written
        -- JSON: by meters whose next reading ends a gap that was counted before, their last reading
        gaps TEXT NOT NULL,
        PRIMARY KEY (device_id, field, id)
    ) WITHOUT ROWID""",
)
_PRESENT_SQL = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'mqtt_counters'"
_LINES_SQL = """SELECT file_id, revision FROM mqtt_counter_lines WHERE device_id = ?
    ORDER BY revision"""
_ROWS_SQL = (
    "SELECT field, id, basis, offset_wh, value_wh, gaps FROM mqtt_counters WHERE device_id = ?"
)
_OTHERS_SQL = "WHERE device_id NOT IN (SELECT value FROM json_each(?))"

Key = tuple[str, str]  # the message's field, and the id of the meter or the device


@dataclass(frozen=True)
class Published:
    """A device's energy message: its counters in Wh, and the file_id and revision they are from."""

    file_id: str
    revision: int
    values_wh: dict[Key, float]
    time: str = ""


@dataclass(frozen=True)
class _Truth:
    """What the file says of one counter now."""

    wh: float
    basis: str  # see the table
    times: dict[str, str]  # of the newest reading of each meter that it is made of


@dataclass
class _Counter:
    basis: str
    offset_wh: float
    value_wh: float  # the highest that was published, or is about to be
    gaps: dict[str, str] = field(default_factory=dict)  # see the table
    saved_wh: float = -1.0  # value_wh when it was saved last; -1: never

    @classmethod
    def going_on(cls, truth: _Truth, value_wh: float, until: str = "") -> _Counter:
        """A counter that goes on from a value by what the truth adds from now on.

        until: the time of the newest reading in the value; a meter whose readings end before that
        has a gap.
        """
        gaps = {meter_id: time for meter_id, time in truth.times.items() if time < until}
        return cls(truth.basis, value_wh - truth.wh, value_wh, gaps)

    def follow(self, truth_wh: float) -> None:
        """Go up to the truth, or stay."""
        self.value_wh = max(self.value_wh, round(truth_wh + self.offset_wh, _DECIMALS))

    def ended_gaps(self, truth: _Truth) -> list[str]:
        """The meters that have a reading after their gap now."""
        return [id_ for id_, time in self.gaps.items() if truth.times.get(id_) != time]

    def has_to_be_saved(self, truth_wh: float) -> bool:
        """Whether it is new, or waits for so much that a restart must not forget it."""
        if self.saved_wh < 0:
            return True
        waits_for_wh = self.value_wh - truth_wh - self.offset_wh
        return waits_for_wh > _NOTED_WAIT * self.value_wh and self.value_wh > self.saved_wh


@dataclass
class _Device:
    """The counters of one device, and the revision under which they are in the file."""

    counters: dict[Key, _Counter] = field(default_factory=dict)
    revision: int = 0


@dataclass(frozen=True)
class _Saved:
    """What a file has of a device's counters."""

    lines: dict[str, int]  # file_id and revision, the present one last
    counters: dict[Key, _Counter]

    def is_current(self, file_id: str, known: Published | None) -> bool:
        """Whether it was saved on this line of history, and nothing was published after it."""
        if not self.lines or list(self.lines)[-1] != file_id:
            return False
        return known is None or known.revision <= self.lines.get(known.file_id, -1)


def read_message(device_id: str, payload: bytes | str) -> Published | None:
    """The retained energy message of a device; None if it is not a message of this package.

    >>> read_message("edge", '{"file_id": "f", "counter_revision": 3, "consumption_wh": 12.5}')
    Published(file_id='f', revision=3, values_wh={('consumption_wh', 'edge'): 12.5}, time='9999')
    """
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(message, dict):
        return None
    file_id = message.get(FILE_FIELD)
    revision = message.get(REVISION_FIELD)
    if not isinstance(file_id, str) or not 0 < len(file_id) <= _MOST_TEXT:
        return None
    if type(revision) is not int or not 0 <= revision <= _MOST_REVISION:
        return None
    values: dict[Key, Any] = {(USED_FIELD, device_id): message.get(USED_FIELD)}
    meters = message.get(METERS_FIELD)
    if isinstance(meters, dict):
        for meter_id, of_meter in meters.items():
            if isinstance(of_meter, dict):
                values[OUT_FIELD, meter_id] = of_meter.get(OUT_FIELD)
                values[IN_FIELD, meter_id] = of_meter.get(IN_FIELD)
    energies = {key: float(value) for key, value in values.items() if _is_energy(value)}
    time_ = message.get(TIME_FIELD)
    return Published(file_id, revision, energies, time_ if isinstance(time_, str) else _END)


def counted_lines(pm: PowerManager) -> set[str]:
    """The file_ids under which this file's counters were published. Raises StorageError."""
    with pm.connection() as conn:
        (is_there,) = conn.execute(_PRESENT_SQL).fetchone()
        if not is_there:
            return set()
        sql = "SELECT DISTINCT file_id FROM mqtt_counter_lines"
        return {file_id for (file_id,) in conn.execute(sql)}


def _is_energy(value: Any) -> bool:
    if type(value) not in (int, float):
        return False
    return 0 <= value <= _MOST_WH and math.isfinite(value)


class Counters:
    """The counters of one file's devices, as they are published under one prefix of one broker.

    Call recall() with what the broker retains before the first message(), and save() at the end.
    After another file has replaced the first, call message() for every device soon: what is
    measured from then on counts.

    reader: reads the energies, by its clock. monotonic: seconds that only go up.
    """

    def __init__(
        self,
        reader: EnergyReader | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader or EnergyReader(monotonic=monotonic)
        self._monotonic = monotonic
        self._published: dict[str, Published] = {}  # by device
        self._devices: dict[str, _Device] = {}
        self._pm: PowerManager | None = None
        self._file_id = ""
        self._saved_at = monotonic()

    def recall(self, device_id: str, retained: Published) -> None:
        """Note what the broker retained of a device when this program connected."""
        self._published.setdefault(device_id, retained)
        device = self._devices.get(device_id, _Device())
        for key, value_wh in retained.values_wh.items():
            if key in device.counters:
                counter = device.counters[key]
                counter.value_wh = max(counter.value_wh, value_wh)

    def check_line(self, pm: PowerManager) -> None:
        """If the file is another one than before, forget the counters, so that they are reset."""
        if self._pm is not pm or pm.file_id != self._file_id:
            self._pm = pm
            self._file_id = pm.file_id
            self._reader.forget()
            self._devices.clear()

    def is_ready(self, device_id: str, meters: Sequence[PowerMeter]) -> bool:
        """Whether message() of a device with these meters will be quick."""
        return self._reader.is_ready(device_id, meters)

    def prepare(self, pm: PowerManager, device_id: str, meters: Iterable[PowerMeter]) -> bool:
        """Read a part of what the first message() has to read; return whether nothing is left.

        Raises NotFound, StorageError.
        """
        self.check_line(pm)
        return self._reader.prepare(pm, device_id, meters)

    def message(
        self, pm: PowerManager, device_id: str, meters: Iterable[PowerMeter]
    ) -> dict[str, Any]:
        """The energy message to publish now of a device; `meters` are all that it has.

        What its counters depend on is saved in the file when this returns. Raises NotFound if a
        meter was deleted, StorageError.
        """
        meters = list(meters)
        while True:
            self.check_line(pm)
            if self._follow(pm, device_id, meters):
                break
        device = self._devices[device_id]
        values_wh = {key: counter.value_wh for key, counter in device.counters.items()}
        newest = max((meter.updated_at or "" for meter in meters), default="")
        known = self._published.get(device_id)
        if known is not None and known.time != _END:
            newest = max(newest, known.time)  # counted readings stay counted if they are deleted
        self._published[device_id] = Published(self._file_id, device.revision, values_wh, newest)
        by_meter: dict[str, dict[str, float]] = {}
        for meter in meters:
            by_meter[meter.id] = {name: values_wh[name, meter.id] for name in (OUT_FIELD, IN_FIELD)}
        return {
            USED_FIELD: values_wh[USED_FIELD, device_id],
            METERS_FIELD: by_meter,
            FILE_FIELD: self._file_id,
            REVISION_FIELD: device.revision,
            TIME_FIELD: newest,
        }

    def keep_up(self, pm: PowerManager) -> None:
        """Look back at older hours if it is time to, and save once an hour. Raises StorageError."""
        self._reader.look_back(pm)
        if self._monotonic() - self._saved_at >= SAVE_EVERY_S:
            self.save(pm)

    def save(self, pm: PowerManager) -> None:
        """Write the counters to the file, for a broker that forgets. Raises StorageError."""
        self._saved_at = self._monotonic()
        if self._pm is not pm or pm.file_id != self._file_id:
            return  # they are another file's: message() resets them
        present = {device.id for device in pm.list_devices()}
        for device_id in self._devices.keys() - present:
            del self._devices[device_id]
        if self._devices:
            with pm.transaction():
                for device_id in self._devices:
                    self._write(pm, device_id)
                _drop_others(pm, present)
                self._reader.save(pm, present)

    # --- One device

    def _follow(self, pm: PowerManager, device_id: str, meters: list[PowerMeter]) -> bool:
        """Let a device's counters follow their truths; False if the file was restored meanwhile."""
        truths = self._truths(pm, device_id, meters)
        if pm.file_id != self._file_id:
            return False
        device = self._devices.get(device_id)
        if device is None:
            device = self._resumed(pm, device_id, truths)
        for key, truth in truths.items():
            counter = device.counters.get(key)
            if counter is None:
                counter = self._begun(device_id, key, truth)
            elif counter.basis != truth.basis:
                counter = _Counter.going_on(truth, counter.value_wh)
            else:
                _leave_gaps_out(pm, key, counter, truth)
            counter.follow(truth.wh)
            device.counters[key] = counter
        device.counters = {key: device.counters[key] for key in truths}
        self._devices[device_id] = device
        if any(device.counters[key].has_to_be_saved(truth.wh) for key, truth in truths.items()):
            self._write(pm, device_id)  # before it is published
        return True

    def _truths(
        self, pm: PowerManager, device_id: str, meters: list[PowerMeter]
    ) -> dict[Key, _Truth]:
        energy = self._reader.read(pm, device_id, meters)
        times = {meter.id: meter.updated_at or "" for meter in meters}
        counted = [meter.id for meter in counted_meters(meters)]
        counted_times = {id_: times[id_] for id_ in counted}
        truths = {
            (USED_FIELD, device_id): _Truth(energy.used_wh, json.dumps(counted), counted_times)
        }
        for id_, of_meter in energy.meters.items():
            truths[OUT_FIELD, id_] = _Truth(of_meter.out_wh, "", {id_: times[id_]})
            truths[IN_FIELD, id_] = _Truth(of_meter.in_wh, "", {id_: times[id_]})
        return truths

    def _resumed(self, pm: PowerManager, device_id: str, truths: dict[Key, _Truth]) -> _Device:
        """The counters of a device that go on with this file, without those that begin."""
        known = self._published.get(device_id)
        saved = _load(pm, device_id)
        if saved.is_current(self._file_id, known):
            for key, counter in saved.counters.items():
                if known is not None:
                    counter.value_wh = max(counter.value_wh, known.values_wh.get(key, 0.0))
            return _Device(saved.counters, saved.lines[self._file_id])
        if known is None and saved.lines:  # another file's, and what was published is unknown
            begun = {key: _Counter.going_on(truth, 0.0, _END) for key, truth in truths.items()}
            return _Device(begun)
        return _Device()

    def _begun(self, device_id: str, key: Key, truth: _Truth) -> _Counter:
        """A counter that this file does not have, or not as it was published last."""
        known = self._published.get(device_id)
        if known is not None and key in known.values_wh:
            return _Counter.going_on(truth, known.values_wh[key], known.time)
        return _Counter(truth.basis, 0.0, 0.0)

    # --- The tables

    def _write(self, pm: PowerManager, device_id: str) -> None:
        """Save the counters of a device under the next revision."""
        device = self._devices[device_id]
        with pm.connection() as conn:
            for statement in _TABLES:
                conn.execute(statement)
            revision = self._next_revision(conn, device_id)
            conn.execute("DELETE FROM mqtt_counters WHERE device_id = ?", (device_id,))
            rows = [
                (device_id, *key, it.basis, it.offset_wh, it.value_wh, json.dumps(it.gaps))
                for key, it in device.counters.items()
            ]
            conn.executemany("INSERT INTO mqtt_counters VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        device.revision = revision
        for counter in device.counters.values():
            counter.saved_wh = counter.value_wh

    def _next_revision(self, conn: sqlite3.Connection, device_id: str) -> int:
        """Note what was published last as a part of this file's past; return the next revision."""
        sql = """INSERT INTO mqtt_counter_lines VALUES (?, ?, ?)
            ON CONFLICT (device_id, file_id)
            DO UPDATE SET revision = max(revision, excluded.revision)"""
        known = self._published.get(device_id)
        if known is not None:
            conn.execute(sql, (device_id, known.file_id, known.revision))
        (latest,) = conn.execute(
            "SELECT max(revision) FROM mqtt_counter_lines WHERE device_id = ?", (device_id,)
        ).fetchone()
        revision = (latest or 0) + 1
        conn.execute(sql, (device_id, self._file_id, revision))
        return revision


def _leave_gaps_out(pm: PowerManager, key: Key, counter: _Counter, truth: _Truth) -> None:
    """Do not count what the file books over a gap that has ended: it was counted before.

    Raises NotFound.
    """
    ended = counter.ended_gaps(truth)
    if not ended:
        return
    booked_wh = 0.0
    for id_ in ended:
        energy = energy_after(pm, id_, counter.gaps[id_])
        if key[0] != IN_FIELD:
            booked_wh += energy.out_wh
        if key[0] != OUT_FIELD:
            booked_wh += energy.in_wh if key[0] == IN_FIELD else -energy.in_wh
    for id_ in ended:
        del counter.gaps[id_]
    counter.offset_wh -= max(booked_wh, 0.0)
    counter.saved_wh = -1.0


def _load(pm: PowerManager, device_id: str) -> _Saved:
    """What the file has saved of a device's counters."""
    with pm.connection() as conn:
        (is_there,) = conn.execute(_PRESENT_SQL).fetchone()
        if not is_there:
            return _Saved({}, {})
        lines = dict(conn.execute(_LINES_SQL, (device_id,)).fetchall())
        rows = conn.execute(_ROWS_SQL, (device_id,)).fetchall()
    counters: dict[Key, _Counter] = {}
    for name, id_, basis, offset_wh, value_wh, gaps in rows:
        counters[name, id_] = _Counter(basis, offset_wh, value_wh, json.loads(gaps), value_wh)
    return _Saved(lines, counters)


def _drop_others(pm: PowerManager, present: set[str]) -> None:
    """Forget the counters of devices that are gone."""
    values = (json.dumps(sorted(present)),)
    with pm.connection() as conn:
        for table in ("mqtt_counters", "mqtt_counter_lines"):
            conn.execute(f"DELETE FROM {table} {_OTHERS_SQL}", values)
