"""Power telemetry for edge devices: a persistent store for multi-meter readings, in one file.

    with power_manager.PowerManager("power_manager.db") as pm:
        pm.register_device("edge-001", "Edge Node")
        battery = pm.add_meter("edge-001", "battery", capacity_wh=50.0)
        pm.log_power(battery.id, voltage=3.7, current=0.5, charge_pct=82.0)
        print(pm.export_report("edge-001", days=7))

Standard library only. In the order of this file: constants; errors; enums and records; schema and SQL; values (what a
parameter may be); calculations (time, energy, statistics, alerts); rows (into records and parts of reports); intake
(the one way of a reading into the file); connection and upgrade; PowerManager (lifecycle, transactions, devices and
meters, readings, alerts and events, statistics, budget and report, maintenance); command line.

`current_draw` is amperes out of the source: positive while it supplies (a battery discharging, a panel producing),
negative while it takes in (a battery charging). Wattage, voltage x current_draw, has its sign. Times are UTC.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import re
import sqlite3
import stat
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from itertools import chain, filterfalse, groupby, repeat
from numbers import Complex, Integral, Number, Real
from operator import itemgetter, mul
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

__version__ = "1.0.0"
# fmt: off
__all__ = [
    "ALERT_HYSTERESIS", "BUSY_TIMEOUT", "CRITICAL_BATTERY_THRESHOLD", "DB_PATH", "FULL_BATTERY_THRESHOLD",
    "LOW_BATTERY_THRESHOLD", "DeviceRecord", "InvalidValue", "MeterType", "NotFound", "PowerEvent", "PowerEventType",
    "PowerManager", "PowerManagerError", "PowerMeter", "PowerReading", "PowerState", "PowerStatistics", "StorageError",
    "main",
]
# fmt: on
_log = logging.getLogger("power_manager")

# --- Constants --------------------------------------------------------------------------------

DB_PATH = Path("power_manager.db")
LOW_BATTERY_THRESHOLD = 20.0  # % charge: at or below it a battery is low
CRITICAL_BATTERY_THRESHOLD = 5.0  # % charge: at or below it an alert is critical
FULL_BATTERY_THRESHOLD = 95.0  # % charge: at or above it a battery's state is "charging"
ALERT_HYSTERESIS = 2.0  # points of charge above a threshold at which its alert ends
BUSY_TIMEOUT = 10.0  # seconds to wait for another process that is writing to the file

_SECOND = 1_000_000  # times are whole microseconds since 1970 inside the file and this module
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_DEFAULT_MAX_GAP = 3600.0  # seconds between two readings beyond which no energy is booked
_END_OF_TIME = 7_289_654_400 * _SECOND  # 2201-01-01T00:00:00Z
_MAX_TEXT = 200  # characters of an id or a name
_MAX_ELECTRICAL = 1e6  # volts, amperes: beyond it a value is a broken sensor's
_MAX_QUANTITY = 1e12  # watts, watt-hours, seconds: no sum or product of them overflows
_MAX_FLOAT = sys.float_info.max
_MAX_INTEGER = 2**63 - 1
_CHUNK = 10_000  # readings held in memory at once by anything that streams them in
_PAGE = 2_000  # readings read, or deleted, in one go

# --- Errors -----------------------------------------------------------------------------------


class PowerManagerError(Exception):
    """The base of every error this module raises on purpose."""


class InvalidValue(PowerManagerError, ValueError):
    """A parameter is not what it may be; nothing was stored."""


class NotFound(PowerManagerError, ValueError, LookupError):
    """No device or meter has that id; nothing was stored."""


class StorageError(PowerManagerError, OSError):
    """The file could not be used; it is as it was before the call.

    `filename` is the file, `sqlite_errorname` SQLite's name for what happened, where SQLite said so.
    """

    def __init__(self, path: object, reason: object, sqlite_errorname: str = "") -> None:
        super().__init__()
        self.args = (str(path), str(reason), sqlite_errorname)
        self.filename, self.sqlite_errorname = str(path), sqlite_errorname

    def __str__(self) -> str:  # OSError's would speak of an errno
        return f"{self.args[0]}: {self.args[1]}"


_HINTS = {  # by SQLite's primary error name: what to do
    "DatabaseError": "no SQLite database, or a damaged one: name another file, or restore a backup",  # on Python 3.10
    "SQLITE_BUSY": "another process is writing to it: try again",
    "SQLITE_CANTOPEN": "check that its directory exists and that this user may write there",
    "SQLITE_CORRUPT": "the file is damaged: restore a backup, or salvage it with the sqlite3 shell's .recover",
    "SQLITE_FULL": "the disk is full: free some space, then try again",
    "SQLITE_IOERR": "the disk failed: look at the system log, and at the free space",
    "SQLITE_NOMEM": "the machine is out of memory",
    "SQLITE_NOTADB": "this is not an SQLite database: name another file",
    "SQLITE_READONLY": "give this user the right to write the file and its directory",
}


# What a file can make SQLite, the system, or the reading of its rows raise.
_FILE_ERRORS = (
    sqlite3.Error,
    OSError,
    MemoryError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
)


def _raise_ours(exc: BaseException, path: Path) -> NoReturn:
    """Raise an error of the file as a StorageError, and this module's own as it is; the only place that does."""
    if isinstance(exc, PowerManagerError):
        raise exc
    if isinstance(exc, OSError):
        raise StorageError(path, f"{exc.strerror}; {_HINTS['SQLITE_CANTOPEN']}") from exc
    if not isinstance(exc, (sqlite3.Error, MemoryError)):
        raise StorageError(
            path, f"a damaged value ({exc}); look with `check`, and restore a backup"
        ) from exc
    name = (
        "SQLITE_NOMEM"
        if isinstance(exc, MemoryError)
        else getattr(exc, "sqlite_errorname", type(exc).__name__)
    )
    hint = _HINTS.get(
        "_".join(name.split("_")[:2]), "check the disk, the permissions and other users of the file"
    )
    raise StorageError(path, f"{name}: {exc}; {hint}", name) from exc


# --- Enums and records ------------------------------------------------------------------------


class _Text(str, Enum):
    """Members are their values: equal to them, printed as them, the same in JSON."""

    __str__ = str.__str__


class MeterType(_Text):
    """What a meter measures."""

    MAIN = "main"
    BATTERY = "battery"
    SOLAR = "solar"
    UPS = "ups"


class PowerState(_Text):
    """How a meter is doing, from its present values; see PowerMeter.state."""

    NORMAL = "normal"
    LOW = "low"
    CRITICAL = "critical"
    CHARGING = "charging"
    UNKNOWN = "unknown"


class PowerEventType(_Text):
    """What can happen to a device. The library itself fires DISCHARGE and LOW_BATTERY."""

    CHARGE_START = "charge_start"
    DISCHARGE = "discharge"
    LOW_BATTERY = "low_battery"
    SHUTDOWN = "shutdown"
    RESTORE = "restore"


_RUN_EMPTY = (MeterType.BATTERY, MeterType.UPS)  # states and alerts by charge
_LOADS = (MeterType.MAIN, MeterType.BATTERY, MeterType.UPS)  # what they supply is consumption


def _thresholds(low: float | None, critical: float | None) -> tuple[float, float]:
    """A device's thresholds in % of charge: its own or the constants."""
    low = LOW_BATTERY_THRESHOLD if low is None else low
    return low, CRITICAL_BATTERY_THRESHOLD if critical is None else critical


@dataclass(slots=True)
class DeviceRecord:
    """A device: watts, watt-hours a day or None, and % of charge, where None is the module's constant."""

    id: str
    name: str
    shutdown_threshold: float = 3.0
    target_wh: float | None = None
    low_battery_threshold: float | None = None
    critical_battery_threshold: float | None = None


@dataclass(slots=True)
class PowerMeter:
    """A meter and its present state: volts, amperes out of the source, watt-hours, percent.

    `updated_at` is the time of that state, None before the first reading. The thresholds are its device's.
    """

    id: str
    device_id: str
    type: MeterType
    voltage: float
    current_draw: float
    capacity_wh: float
    charge_pct: float
    name: str | None = None
    updated_at: str | None = None
    low_battery_threshold: float | None = None
    critical_battery_threshold: float | None = None

    @property
    def wattage(self) -> float:
        """Watts out of the source, rounded to 4 decimals."""
        return round(self.voltage * self.current_draw, 4)

    @property
    def state(self) -> PowerState:
        """What the present values say, by type.

        solar: charging, always. main: normal while it carries voltage, else unknown. battery and ups: below 5 %
        critical, from 5 to 20 % low, from 95 % charging, else normal; unknown where the charge is not a number.
        """
        if self.type == MeterType.SOLAR:
            return PowerState.CHARGING
        value = self.voltage if self.type == MeterType.MAIN else self.charge_pct
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return PowerState.UNKNOWN
        if self.type == MeterType.MAIN:
            return PowerState.NORMAL if value else PowerState.UNKNOWN
        low, critical = _thresholds(self.low_battery_threshold, self.critical_battery_threshold)
        if value <= low:
            return PowerState.CRITICAL if value < critical else PowerState.LOW
        return PowerState.CHARGING if value >= FULL_BATTERY_THRESHOLD else PowerState.NORMAL


@dataclass(slots=True)
class PowerReading:
    """One meter at one instant; `wattage` is rounded to 4 decimals, `timestamp` ISO 8601 UTC.

    `id` is made of the meter's id and the time, so it is the same on every copy.
    """

    id: str
    meter_id: str
    voltage: float
    current_draw: float
    wattage: float
    charge_pct: float
    timestamp: str


@dataclass(slots=True)
class PowerEvent:
    """Something that happened to a device. An alert's `value` is the charge in percent."""

    id: str
    device_id: str
    type: PowerEventType
    value: float
    timestamp: str
    note: str | None


@dataclass(slots=True)
class PowerStatistics:
    """One meter over one UTC hour or day, which begins at `start` (ISO 8601)."""

    meter_id: str
    start: str
    reading_count: int
    avg_wattage: float
    min_wattage: float
    max_wattage: float
    min_charge_pct: float
    max_charge_pct: float
    energy_out_wh: float
    energy_in_wh: float


# --- Schema and SQL ---------------------------------------------------------------------------

_APPLICATION_ID = 0x4252504D  # "BRPM", in the file's header
# Versions: 0 with application_id 0 is the first release of this tool; 1 had no forwarded_us; 2 knew in the place of the
# latest pruned reading only a time up to which readings may have been counted; 3 is the tables below.
_NO_SCHEMA, _FIRST_SCHEMA, _SCHEMA_VERSION = -1, 0, 3
_SQLITE_BUSY = 5
_SUFFIXES = ("-wal", "-shm", "-journal")  # of the files that SQLite keeps beside a database

_SCHEMA = """
CREATE TABLE devices (
    device_key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
    shutdown_threshold REAL NOT NULL, target_wh REAL,               -- W; Wh a day
    low_battery_threshold REAL, critical_battery_threshold REAL,    -- %; NULL: the module's constant
    CHECK (typeof(id) || typeof(name) || typeof(shutdown_threshold) || typeof(coalesce(target_wh, 0.0))
        = 'texttextrealreal' AND shutdown_threshold + abs(coalesce(target_wh, 0)) < 9e999)
);
CREATE TABLE power_meters (
    meter_key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, device_key INTEGER NOT NULL REFERENCES devices,
    type TEXT NOT NULL, name TEXT, capacity_wh REAL NOT NULL,
    voltage REAL NOT NULL DEFAULT 0, current_draw REAL NOT NULL DEFAULT 0, charge_pct REAL NOT NULL DEFAULT 100,
    updated_us INTEGER,                          -- when that present state was
    newest_us INTEGER NOT NULL DEFAULT -1,       -- the latest timestamp ever stored, and its watts
    newest_wattage REAL NOT NULL DEFAULT 0,
    pruned_us INTEGER NOT NULL DEFAULT -1,       -- the latest timestamp that prune() took, and its watts
    pruned_wattage REAL NOT NULL DEFAULT 0,
    alert_level INTEGER NOT NULL DEFAULT 0,      -- 0 none, 1 low, 2 critical
    alerted_us INTEGER NOT NULL DEFAULT 0,       -- when the level's event was last recorded
    forwarded_us INTEGER NOT NULL DEFAULT -1,    -- no reading up to it waits for mark_forwarded()
    CHECK (typeof(id) || typeof(coalesce(name, '')) || typeof(capacity_wh) = 'texttextreal' AND capacity_wh < 9e999)
);
-- serves list_meters, budget and report: the meters of a device
CREATE INDEX power_meters_by_device ON power_meters (device_key);
-- A value is kept as a whole number of millionths (charge: hundredths) wherever that gives the
-- very same float back, and as that float where it does not: 30 bytes a reading instead of 47.
CREATE TABLE power_readings (
    meter_key INTEGER NOT NULL REFERENCES power_meters, timestamp INTEGER NOT NULL,  -- microseconds since 1970
    voltage NOT NULL, current_draw NOT NULL, charge_pct NOT NULL, PRIMARY KEY (meter_key, timestamp)
) WITHOUT ROWID;
-- Statistics. For check(), the kept_ columns describe the readings that are still there (see _fingerprint).
CREATE TABLE power_hourly (
    meter_key INTEGER NOT NULL REFERENCES power_meters, hour INTEGER NOT NULL,       -- hours since 1970
    kept_sum INTEGER NOT NULL, kept_count INTEGER NOT NULL,
    reading_count INTEGER NOT NULL, wattage_sum REAL NOT NULL, min_wattage REAL NOT NULL, max_wattage REAL NOT NULL,
    min_charge_pct REAL NOT NULL, max_charge_pct REAL NOT NULL,
    energy_out_wh REAL NOT NULL, energy_in_wh REAL NOT NULL, PRIMARY KEY (meter_key, hour)
) WITHOUT ROWID;
-- A sequence is never used twice: followers resume by it.
CREATE TABLE power_events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, device_key INTEGER NOT NULL REFERENCES devices,
    type TEXT NOT NULL, value REAL NOT NULL, timestamp INTEGER NOT NULL, note TEXT,
    CHECK (typeof(id) || typeof(value) || typeof(coalesce(note, '')) = 'textrealtext' AND abs(value) < 9e999)
);
-- serves get_events and the report: a device's newest events
CREATE INDEX power_events_by_device ON power_events (device_key, timestamp);
CREATE TABLE power_settings (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
-- readings as numbers: every query of this module reads this view
CREATE VIEW power_values AS SELECT meter_key, timestamp,
    CASE typeof(voltage) WHEN 'integer' THEN voltage / 1e6 ELSE voltage END AS voltage,
    CASE typeof(current_draw) WHEN 'integer' THEN current_draw / 1e6 ELSE current_draw END AS current_draw,
    CASE typeof(charge_pct) WHEN 'integer' THEN charge_pct / 1e2 ELSE charge_pct END AS charge_pct FROM power_readings;
-- the same for people
CREATE VIEW readings AS
    SELECT m.id || ':' || v.timestamp AS id, m.id AS meter_id, v.voltage, v.current_draw,
        round(v.voltage * v.current_draw, 4) AS wattage, v.charge_pct,
        strftime('%Y-%m-%dT%H:%M:%S', v.timestamp / 1000000, 'unixepoch')
            || printf('.%06d+00:00', v.timestamp % 1000000) AS timestamp
    FROM power_values v JOIN power_meters m USING (meter_key);
"""

_DEVICE_COLUMNS = [field.name for field in dataclasses.fields(DeviceRecord)]
_DEVICE_SQL = f"SELECT {', '.join(_DEVICE_COLUMNS)} FROM devices"
_METER_SQL = """SELECT m.meter_key, m.id, d.id, m.type, m.voltage, m.current_draw, m.capacity_wh, m.charge_pct, m.name,
    m.updated_us, d.low_battery_threshold, d.critical_battery_threshold
    FROM power_meters m JOIN devices d USING (device_key)"""
_EVENT_SQL = """SELECT e.sequence, e.id, d.id, e.type, e.value, e.timestamp, e.note
    FROM power_events e JOIN devices d USING (device_key)"""
_KEY_SQL = {
    "device_id": "SELECT device_key, name FROM devices WHERE id = ?",
    "meter_id": "SELECT meter_key FROM power_meters WHERE id = ?",
}
_REGISTER_SQL = f"""INSERT INTO devices ({", ".join(_DEVICE_COLUMNS)}) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _DEVICE_COLUMNS[1:])}"""
_ADD_METER_SQL = (
    "INSERT INTO power_meters (id, device_key, type, name, capacity_wh) VALUES (?, ?, ?, ?, ?)"
)
_CHECK_SQL = f"""SELECT meter_key, id, pruned_us, pruned_wattage, charge_pct BETWEEN 0 AND 100
    AND abs(voltage) <= {_MAX_ELECTRICAL} AND abs(current_draw) <= {_MAX_ELECTRICAL} AND typeof(voltage)
    || typeof(current_draw) || typeof(charge_pct) || typeof(newest_wattage) || typeof(pruned_wattage)
        = 'realrealrealrealreal'
    AND typeof(newest_us) || typeof(pruned_us) || typeof(alert_level) || typeof(alerted_us) || typeof(forwarded_us)
    || typeof(coalesce(updated_us, 0)) = 'integerintegerintegerintegerintegerinteger' FROM power_meters"""
_BATTERIES_SQL = """SELECT capacity_wh, charge_pct, coalesce((SELECT avg(v.voltage * v.current_draw) FROM power_values v
    WHERE v.meter_key = m.meter_key AND v.timestamp > m.updated_us - :window AND v.timestamp <= m.updated_us),
    voltage * current_draw) FROM power_meters m WHERE device_key = :key AND type = 'battery'"""
_VALUES_SQL = (
    "SELECT timestamp, voltage, current_draw, charge_pct FROM power_values WHERE meter_key = :key"
)
# A meter's last reading before a time, and its next one from that on: times and watts.
_LAST_SQL, _NEXT_SQL = (
    f"SELECT timestamp, voltage * current_draw FROM power_values WHERE meter_key = ? AND timestamp {side} LIMIT 1"
    for side in ("< ? ORDER BY timestamp DESC", ">= ? ORDER BY timestamp")
)
_ADD_EVENT_SQL = "INSERT INTO power_events (id, device_key, type, value, timestamp, note) VALUES (?, ?, ?, ?, ?, ?)"
_INTAKE_SQL = """SELECT m.meter_key, m.device_key, m.type, m.name, m.voltage, m.current_draw, m.charge_pct,
    m.updated_us, m.newest_us, m.newest_wattage, m.pruned_us, m.pruned_wattage, m.alert_level, m.alerted_us,
    d.low_battery_threshold, d.critical_battery_threshold
    FROM power_meters m JOIN devices d USING (device_key) WHERE m.id = ?"""
_FREE_INSTANT_SQL = """SELECT r.timestamp + 1 FROM power_readings r WHERE meter_key = :key AND timestamp >= :us
    AND EXISTS (SELECT 1 FROM power_readings WHERE meter_key = :key AND timestamp = :us)
    AND NOT EXISTS (SELECT 1 FROM power_readings WHERE meter_key = :key AND timestamp = r.timestamp + 1)
    ORDER BY r.timestamp LIMIT 1"""
_SET_STATE_SQL = """UPDATE power_meters SET voltage = ?, current_draw = ?, charge_pct = ?, updated_us = ?,
    newest_us = ?, newest_wattage = ?, alert_level = ?, alerted_us = ?, forwarded_us = min(forwarded_us, ?)
    WHERE meter_key = ?"""
_UNFORWARDED_SQL = """SELECT m.id, v.timestamp, v.voltage, v.current_draw, v.charge_pct FROM power_meters m
    JOIN power_values v ON v.meter_key = m.meter_key AND v.timestamp > m.forwarded_us
    WHERE m.forwarded_us < m.newest_us ORDER BY m.meter_key, v.timestamp LIMIT ?"""
_FORWARDED_SQL = """SELECT timestamp FROM power_readings r JOIN power_meters m USING (meter_key)
    WHERE meter_key = :key AND timestamp > forwarded_us AND timestamp <= :last ORDER BY timestamp"""
_MARK_SQL = "UPDATE power_meters SET forwarded_us = max(forwarded_us, ?) WHERE meter_key = ?"
_BOOK_SQL = """INSERT INTO power_hourly (meter_key, hour, kept_sum, kept_count, reading_count, wattage_sum, min_wattage,
    max_wattage, min_charge_pct, max_charge_pct, energy_out_wh, energy_in_wh)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (meter_key, hour) DO UPDATE SET
    kept_sum = kept_sum + excluded.kept_sum, kept_count = kept_count + excluded.kept_count,
    reading_count = reading_count + excluded.reading_count, wattage_sum = wattage_sum + excluded.wattage_sum,
    min_wattage = min(min_wattage, excluded.min_wattage), max_wattage = max(max_wattage, excluded.max_wattage),
    min_charge_pct = min(min_charge_pct, excluded.min_charge_pct),
    max_charge_pct = max(max_charge_pct, excluded.max_charge_pct),
    energy_out_wh = energy_out_wh + excluded.energy_out_wh, energy_in_wh = energy_in_wh + excluded.energy_in_wh"""
_ADD_SQL = "UPDATE power_hourly SET {0} = {0} + ?, {1} = {1} + ? WHERE meter_key = ? AND hour = ?"
_ADD_ENERGY_SQL = _ADD_SQL.format("energy_out_wh", "energy_in_wh")
_ADD_KEPT_SQL = _ADD_SQL.format("kept_sum", "kept_count")
_PRUNED_SQL = "UPDATE power_meters SET pruned_us = ?, pruned_wattage = ? WHERE meter_key = ? AND pruned_us < ?"
_TALLY_SQL = """sum(reading_count), sum(wattage_sum), min(min_wattage), max(max_wattage), min(min_charge_pct),
    max(max_charge_pct), sum(energy_out_wh), sum(energy_in_wh)"""
# The parts of a window, which begins after a time: of each meter the hour of its first reading there, from its
# readings, and the later ones from power_hourly. Where prune() has taken readings of the window, every hour is whole.
# The LIMIT keeps SQLite from asking for the first reading again with every row that is joined.
_WINDOW_SQL = """WITH first (meter_key, hour) AS (
    SELECT meter_key, CASE WHEN pruned_us > :after THEN :after / 3600000000 - 1 ELSE (SELECT min(timestamp)
        FROM power_readings r WHERE r.meter_key = m.meter_key AND timestamp > :after) / 3600000000 END
    FROM power_meters m WHERE meter_key IN (SELECT value FROM json_each(:keys)) LIMIT -1)"""
_FIRST_HOUR_SQL = f"""{_WINDOW_SQL} SELECT meter_key, timestamp, voltage, current_draw, charge_pct
    FROM first JOIN power_values USING (meter_key) WHERE timestamp > :after AND timestamp < (hour + 1) * 3600000000
    ORDER BY meter_key, timestamp"""
_WHOLE_HOURS_SQL = f"""{_WINDOW_SQL} SELECT meter_key, {_TALLY_SQL} FROM first f JOIN power_hourly h USING (meter_key)
    WHERE h.hour > f.hour GROUP BY meter_key"""

# --- Values -----------------------------------------------------------------------------------

_E = TypeVar("_E", bound=_Text)
_T = TypeVar("_T")


def _invalid(name: str, expected: str, value: object) -> InvalidValue:
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001  # a number of too many digits, or anybody's __repr__
        shown = f"a {type(value).__name__}"
    return InvalidValue(
        f"{name}: expected {expected}, got {shown if len(shown) <= 80 else shown[:77] + '...'}"
    )


def _number(name: str, value: Any, low: float, high: float, unit: str) -> float:
    """The value as a float from low to high; Decimal and NumPy scalars are numbers too, truth values are not."""
    real = isinstance(value, Real) or (isinstance(value, Number) and not isinstance(value, Complex))
    if real and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if low <= number <= high:  # false for NaN
            return number
    bounds = "a finite number" if high == _MAX_FLOAT else f"a number from {low:g} to {high:g}"
    raise _invalid(name, f"{bounds} ({unit})", value)


def _electrical(voltage: Any, current: Any, charge_pct: Any) -> tuple[float, float, float | None]:
    """Volts, amperes and percent of one reading, the charge clamped to 0..100."""
    limit = _MAX_ELECTRICAL
    if (
        type(voltage) is not float or not -limit <= voltage <= limit
    ):  # false for NaN; the fast way out of most calls
        voltage = _number("voltage", voltage, -limit, limit, "V")
    if type(current) is not float or not -limit <= current <= limit:
        current = _number("current", current, -limit, limit, "A")
    if charge_pct is not None and (type(charge_pct) is not float or not 0.0 <= charge_pct <= 100.0):
        charge_pct = min(
            max(_number("charge_pct", charge_pct, -_MAX_FLOAT, _MAX_FLOAT, "%"), 0.0), 100.0
        )
    return voltage, current, charge_pct


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise _invalid(name, "a whole number of at least 0", value)
    return min(int(value), _MAX_INTEGER)


def _text(name: str, value: Any, limit: int = _MAX_TEXT) -> str:
    """The value as text that SQLite and JSON can carry."""
    if not isinstance(value, str) or not value.strip() or len(value) > limit:
        raise _invalid(name, f"text of 1 to {limit} characters", value)
    if re.search("[\0\ud800-\udfff]", value):
        raise _invalid(name, "text without NUL or lone surrogates", value)
    return str.__str__(value)  # of a subclass, such as an enum, what it is equal to


def _optional(check: Callable[..., Any], name: str, value: Any, *limits: Any) -> Any:
    return None if value is None else check(name, value, *limits)


def _member(kind: type[_E], name: str, value: Any) -> _E:
    try:
        return kind(value)
    except ValueError:
        raise _invalid(name, "one of " + ", ".join(kind), value) from None


def _span(name: str, value: Any, unit_us: int, unit: str) -> int:
    return round(_number(name, value, 0, 1e9, unit) * unit_us)


def _iterable(name: str, value: Any) -> Iterable[Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise _invalid(name, "an iterable, such as a list", value)
    return value


def _path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in str(value):
        raise _invalid(name, "a path", value)
    return Path(value)


def _device(
    device_id: Any,
    name: Any,
    shutdown_threshold: Any,
    target_wh: Any,
    low: Any = None,
    critical: Any = None,
) -> DeviceRecord:
    """A device of checked values."""
    device = DeviceRecord(
        _text("device_id", device_id),
        _text("name", name),
        _number("shutdown_threshold", shutdown_threshold, 0, _MAX_QUANTITY, "W"),
        _optional(_number, "target_wh", target_wh, 0, _MAX_QUANTITY, "Wh a day"),
        _optional(_number, "low_battery_threshold", low, 0, 100, "%"),
        _optional(_number, "critical_battery_threshold", critical, 0, 100, "%"),
    )
    low_pct, critical_pct = _thresholds(
        device.low_battery_threshold, device.critical_battery_threshold
    )
    if critical_pct >= low_pct:
        if critical is None:
            raise _invalid(
                "low_battery_threshold",
                f"more than the critical threshold, {critical_pct:g} %",
                low_pct,
            )
        raise _invalid(
            "critical_battery_threshold",
            f"less than the low threshold, {low_pct:g} %",
            critical_pct,
        )
    return device


def _new_meter(name: Any, capacity_wh: Any) -> tuple[str | None, float]:
    """Name and capacity of a meter, checked."""
    return _optional(_text, "name", name), _number(
        "capacity_wh", capacity_wh, 0, _MAX_QUANTITY, "Wh"
    )


# --- Calculations -----------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)

Point = tuple[int, float]  # microseconds since 1970, watts
_NEVER: Point = (-_END_OF_TIME, 0.0)  # stands for no reading: farther away than any max_gap
Row = tuple[int, float, float, float]  # microseconds since 1970, volts, amperes, percent


@functools.lru_cache(maxsize=1440)  # of a day; half the cost of a history is its timestamps
def _iso_minute(minute: int) -> str:
    return (_EPOCH + timedelta(minutes=minute)).isoformat()[:17]


def _iso(us: int) -> str:
    """ISO 8601 UTC text of a time in microseconds since 1970: '2023-11-14T22:13:20.000001+00:00'."""
    minute, rest = divmod(us, _MINUTE)
    digits = str(
        _MINUTE * 10 + rest
    )  # "6", seconds, microseconds: a float's format takes twice as long
    return f"{_iso_minute(minute)}{digits[1:3]}.{digits[3:]}+00:00"


def _parse_iso(text: str) -> datetime:
    """Read ISO 8601 text; with Z, +0000 or any 1 to 9 decimals on Python 3.10 too."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        text = re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", re.sub("[Zz]$", "+00:00", text.strip()))
        return datetime.fromisoformat(
            re.sub(r"[.,](\d+)", lambda found: f".{found[1][:6]:0<6}", text)
        )


def _microseconds(name: str, value: Any) -> int:
    """Microseconds since 1970 of an aware datetime, ISO text with an offset, or epoch seconds.

    >>> _microseconds("timestamp", "2023-11-14T22:13:20Z")
    1700000000000000
    """
    if (
        type(value) is float and 0.0 <= value < _END_OF_TIME / _SECOND
    ):  # the fast way out of most calls
        return round(value * _SECOND)
    try:
        moment = _parse_iso(value) if isinstance(value, str) else value
        if isinstance(moment, datetime):
            us = (moment - _EPOCH) // _MICROSECOND  # TypeError where it names no offset
        else:
            us = round(_number(name, moment, 0, _END_OF_TIME / _SECOND, "s") * _SECOND)
    except (TypeError, ValueError, OverflowError):
        us = -1
    if not 0 <= us < _END_OF_TIME:
        expected = (
            "an aware datetime, ISO 8601 text with an offset, or epoch seconds, from 1970 to 2200"
        )
        raise _invalid(name, expected, value)
    return us


def _tidy(value: float) -> float:
    """A result without the noise of binary fractions: 9 decimals, and no negative zero."""
    return round(value, 9) + 0.0


def _point(row: Row) -> Point:
    return row[0], row[1] * row[2]


def _energy(earlier: Point, later: Point, max_gap_us: int) -> tuple[float, float]:
    """Watt-hours out and in between neighbouring readings, by the trapezoid rule; none over a longer gap: nobody knows.

    >>> _energy((0, 10.0), (1_800_000_000, 20.0), 3_600_000_000)  # half an hour
    (7.5, 0.0)
    """
    if later[0] - earlier[0] > max_gap_us:
        return 0.0, 0.0
    energy = (earlier[1] + later[1]) * (later[0] - earlier[0]) / (2 * _HOUR)
    return max(energy, 0.0), max(-energy, 0.0)


_STATISTICS = [field.name for field in dataclasses.fields(PowerStatistics)][2:]


class _Tally(NamedTuple):
    """The statistics of one meter's readings; energies in watt-hours."""

    reading_count: int
    wattage_sum: float
    min_wattage: float
    max_wattage: float
    min_charge_pct: float
    max_charge_pct: float
    energy_out_wh: float
    energy_in_wh: float

    @classmethod
    def of(cls, rows: Sequence[Row], earlier: Point, max_gap_us: int) -> _Tally:
        """Of readings in order of time, after `earlier`; the energy of a pair, as in _energy, belongs to the later."""
        times, volts, amperes, charges = zip(*rows)
        watts = [*map(mul, volts, amperes)]
        at, powers = (earlier[0], *times), [earlier[1], *watts]
        steps = [
            (a + b) * (t - s)
            for s, t, a, b in zip(at, at[1:], powers, powers[1:])
            if t - s <= max_gap_us
        ]
        energy_out = sum([step for step in steps if step > 0.0]) / (2 * _HOUR)
        energy_in = sum([-step for step in steps if step < 0.0]) / (2 * _HOUR)
        extremes = min(watts), max(watts), min(charges), max(charges)
        return cls(len(rows), sum(watts), *extremes, energy_out, energy_in)

    def plus(self, b: _Tally) -> _Tally:
        """Of these readings and of others."""
        extremes = min(self[2], b[2]), max(self[3], b[3]), min(self[4], b[4]), max(self[5], b[5])
        return _Tally(self[0] + b[0], self[1] + b[1], *extremes, self[6] + b[6], self[7] + b[7])

    def shown(self) -> dict[str, Any]:
        """As the last fields of PowerStatistics have it."""
        count, total, *extremes, energy_out, energy_in = self
        values = count, total / count, *extremes, _tidy(energy_out), _tidy(energy_in)
        return dict(zip(_STATISTICS, values))


def _fingerprint(rows: Sequence[Row]) -> int:
    """A sum over readings in which no single value can change unseen.

    In tenths of a microvolt and microampere, 1e-5 points of charge and microseconds; the factors keep changes
    of one reading from cancelling out.
    """
    return sum(
        [
            int(v * 1e7) + 3 * int(c * 1e7) + 7 * int(q * 1e5) + 11 * (us % _HOUR)
            for us, v, c, q in rows
        ]
    )


def _by_hour(
    rows: Iterable[Row], earlier: Point, max_gap_us: int, pruned: Point = _NEVER
) -> Iterator[tuple[int, int, _Tally]]:
    """The hours since 1970 that rows, in order of time, fall into, each with its fingerprint and tally."""
    for hour, group in groupby(rows, lambda row: row[0] // _HOUR):
        part = list(group)
        if earlier[0] <= pruned[0] < part[0][0]:
            earlier = pruned
        yield hour, _fingerprint(part), _Tally.of(part, earlier, max_gap_us)
        earlier = _point(part[-1])


def _alert_level(level: int, charge_pct: float, low: float, critical: float) -> int:
    """The alert level (0 none, 1 low, 2 critical): it begins at its threshold and ends ALERT_HYSTERESIS above it.

    >>> [_alert_level(level, 21.0, 20.0, 5.0) for level in (0, 1, 2)]
    [0, 1, 1]
    """
    if charge_pct <= critical or (level == 2 and charge_pct < critical + ALERT_HYSTERESIS):
        return 2
    if charge_pct <= low or (level >= 1 and charge_pct < low + ALERT_HYSTERESIS):
        return 1
    return 0


def _runtime_hours(batteries: Iterable[tuple[float, float, float]]) -> float | None:
    """Hours until batteries of (capacity Wh, charge %, watts out) are empty; None where unknown or not draining.

    >>> _runtime_hours([(50.0, 80.0, 5.0)])
    8.0
    """
    known = [battery for battery in batteries if battery[0] > 0]
    watts = sum(battery[2] for battery in known)
    hours = (
        sum(capacity * charge / 100 for capacity, charge, _ in known) / watts
        if watts > 0
        else math.inf
    )
    return round(hours, 2) if math.isfinite(hours) else None


def _point_at(us: int, wattage: float) -> Point:
    """A reading that the file remembers by these; a time before 1970 says that there is none."""
    return (us, wattage) if us >= 0 else _NEVER


def _packed(values: Iterable[float], scale: float) -> list[int | float]:
    """Values as the file keeps them; see the comment at power_readings."""
    return [
        whole if (whole := round(value * scale)) / scale == value else value for value in values
    ]


# --- Rows -------------------------------------------------------------------------------------


def _find(conn: sqlite3.Connection, name: str, id_: str, sql: str = "") -> Any:
    """The row of the device or meter with that id, its key first; name is that of the id. Raises NotFound."""
    row = conn.execute(sql or _KEY_SQL[name], (_text(name, id_),)).fetchone()
    if row is None:
        raise NotFound(_missing(name, id_))
    return row


def _missing(name: str, id_: str) -> str:
    kind, maker = ("device", "register_device") if name == "device_id" else ("meter", "add_meter")
    return f"{name}: no {kind} has the id {id_!r}: {maker}() makes one"


def _meter(row: Sequence[Any]) -> PowerMeter:
    """A row of _METER_SQL, without its key, as a record."""
    meter = PowerMeter(*row[1:])
    meter.type = MeterType(meter.type)
    meter.updated_at = None if row[9] is None else _iso(row[9])
    return meter


def _readings(meter_id: str, rows: Iterable[Row]) -> list[PowerReading]:
    return [
        PowerReading(f"{meter_id}:{us}", meter_id, v, c, round(v * c, 4), q, _iso(us))
        for us, v, c, q in rows
    ]


def _event(row: Sequence[Any]) -> PowerEvent:
    """A row of _EVENT_SQL, without its sequence, as a record."""
    return PowerEvent(row[1], row[2], PowerEventType(row[3]), row[4], _iso(row[5]), row[6])


def _five(reading: Sequence[Any]) -> Sequence[Any]:
    """A row of log_many with None for what it leaves out."""
    if not hasattr(type(reading), "__len__") or not 3 <= len(reading) <= 5:
        raise _invalid(
            "reading", "(meter_id, voltage, current[, charge_pct[, timestamp]])", reading
        )
    return (*reading, None, None)[:5]


def _budget(
    device: DeviceRecord, meters: list[tuple[int, PowerMeter]], last_day: dict[int, _Tally]
) -> dict[str, Any]:
    present = [(m, m.voltage * m.current_draw) for _, m in meters]  # with its watts
    batteries = [
        (m.capacity_wh, m.charge_pct, watts) for m, watts in present if m.type == MeterType.BATTERY
    ]
    suns = [watts for m, watts in present if m.type == MeterType.SOLAR]
    load = sum([watts for m, watts in present if watts > 0.0 and m.type != MeterType.SOLAR], 0.0)
    total, solar = sum([watts for _, watts in present], 0.0), sum(suns, 0.0)
    energy = _tidy(sum([last_day[key].energy_out_wh for key, _ in meters if key in last_day]))
    return {
        "total_wattage": round(total, 4),
        "battery_count": len(batteries),
        "solar_count": len(suns),
        "avg_charge_pct": round(sum([b[1] for b in batteries]) / len(batteries), 2)
        if batteries
        else None,
        "estimated_runtime_hours": _runtime_hours(batteries),
        "states": [meter.state.value for _, meter in meters],
        "load_wattage": round(load, 4),
        "solar_wattage": round(solar, 4),
        "net_wattage": round(solar - load, 4),
        "energy_24h_wh": energy,
        "target_wh": device.target_wh,
        "within_target": None if device.target_wh is None else energy <= device.target_wh,
        "below_shutdown_threshold": total < device.shutdown_threshold,
    }


def _meter_report(meter: PowerMeter, tally: _Tally | None) -> dict[str, Any]:
    report = {
        "meter_id": meter.id,
        "name": meter.name,
        "type": meter.type.value,
        "reading_count": 0,
    }
    if tally is None:
        return report
    values = {
        name: _tidy(value) if "wattage" in name else value for name, value in tally.shown().items()
    }
    net = _tidy(tally.energy_out_wh - tally.energy_in_wh)
    return report | {"current_state": meter.state.value, **values, "energy_wh": net}


def _problems(of: str, found: Iterable[str]) -> Iterator[str]:
    """What is found wrong with a thing; a value that cannot be read ends the search, and is wrong too."""
    try:
        yield from (f"{of}: {problem}" for problem in found)
    except _FILE_ERRORS as exc:
        yield f"{of}: a damaged value ({exc})"


def _check_meter(conn: sqlite3.Connection, meter: Sequence[Any], max_gap_us: int) -> Iterator[str]:
    """Compare a meter's power_hourly with its readings, as far as they are kept; the meter is a row of _CHECK_SQL."""
    key, pruned = meter[0], _point_at(*meter[2:4])
    if not meter[4]:
        yield "its present state is damaged"
    sums = f"SELECT hour, kept_sum, kept_count, {', '.join(_Tally._fields)}"
    booked = {
        row[0]: row[1:]
        for row in conn.execute(f"{sums} FROM power_hourly WHERE meter_key = ?", (key,))
    }
    peak = max([abs(watts) for row in booked.values() for watts in row[4:6]], default=0.0)
    kept = conn.execute(_VALUES_SQL + " ORDER BY timestamp", {"key": key})
    for hour, fingerprint, tally in _by_hour(kept, _NEVER, max_gap_us, pruned):
        kept_sum, kept_count, *stored = booked.pop(hour, (0,) * 10)
        same = (kept_sum, kept_count) == (fingerprint, tally.reading_count)
        if same and stored[0] == kept_count:
            # The energy of a pair whose earlier reading was pruned is known for the latest of those only.
            count = len(stored) if hour > pruned[0] // _HOUR else 6
            # What sums of large numbers of both signs, added in another order, may differ by.
            slack = 1e-9 + 1e-11 * kept_count * peak * max(1.0, max_gap_us / _HOUR)
            pairs = zip(stored[:count], tally)
            same = all(math.isclose(a, b, rel_tol=1e-9, abs_tol=slack) for a, b in pairs)
        elif same:
            same = stored[0] > kept_count and hour <= pruned[0] // _HOUR
        if not same:
            yield f"readings and statistics of the hour {_iso(hour * _HOUR)} do not agree"
    for hour, (_, kept_count, reading_count, *_rest) in booked.items():
        if kept_count or hour > pruned[0] // _HOUR:
            yield f"{kept_count or reading_count} readings of the hour {_iso(int(hour) * _HOUR)} are gone"


# --- Intake -----------------------------------------------------------------------------------


class _Meter:
    """A meter while readings go into it: its row, and those that wait to be stored."""

    def __init__(self, id_: str, row: Sequence[Any]) -> None:
        self.key, self.device_key, kind, name = row[:4]
        self.voltage, self.current_draw, self.charge_pct, self.updated_us = row[4:8]
        self.newest_us, (self.alert_level, self.alerted_us) = row[8], row[12:14]
        self.stored, self.pruned = (
            _point_at(*row[8:10]),
            _point_at(*row[10:12]),
        )  # the latest of each
        self.low, self.critical = _thresholds(*row[14:])
        self.label = name or id_
        self.runs_empty = kind in _RUN_EMPTY
        self.waiting: list[Row] = []
        self.ordered = True  # the waiting rows are in order of time, and later than all stored ones
        self.late_us = _END_OF_TIME  # the earliest that came after a later one


class _Intake:
    """The one way of readings into the file, inside somebody's transaction.

    take() decides in order of arrival: present state and alerts. flush() stores what has been taken and books its
    statistics, in order of time. finish() writes the rest.
    """

    def __init__(
        self,
        conn: sqlite3.Connection,
        max_gap_us: int,
        repeat_us: int | None,
        now: Callable[[], int],
    ) -> None:
        self._conn, self._max_gap_us, self._repeat_us, self._now = conn, max_gap_us, repeat_us, now
        self._meters: dict[str, _Meter] = {}
        self._waiting = 0
        self.alerting = True  # it records the events of alerts
        self.stored = self.pruned = (
            0  # readings that were new; those older than what prune() has left
        )

    def meter(self, meter_id: str) -> _Meter:
        """The meter with that id. Raises NotFound."""
        known = self._meters.get(meter_id) if type(meter_id) is str else None
        if known is None:
            id_ = _text(
                "meter_id", meter_id
            )  # one meter has one entry, whatever kind of text names it
            known = self._meters.get(id_) or _Meter(
                id_, _find(self._conn, "meter_id", id_, _INTAKE_SQL)
            )
            self._meters[id_] = known
        return known

    def take(
        self,
        meter_id: str,
        voltage: float,
        current: float,
        charge_pct: float | None,
        us: int | None,
    ) -> Row:
        """Accept one reading with checked values; a live one where us is None. Return it as kept."""
        meter = self.meter(meter_id)
        present = us is None or us > meter.newest_us
        if us is None:
            us = self.free_instant(meter, self._now())
        row = (us, voltage, current, meter.charge_pct if charge_pct is None else charge_pct)
        if present:
            meter.updated_us, meter.voltage, meter.current_draw, meter.charge_pct = row
            if meter.runs_empty and (meter.alert_level or row[3] <= meter.low):
                self._alert(meter, us)
        elif us <= meter.pruned[0]:
            self.pruned += 1
            return row
        if us > meter.newest_us:
            meter.newest_us = us
        else:
            meter.ordered = False
        meter.waiting.append(row)
        self._waiting += 1
        if self._waiting >= _CHUNK:
            self.flush()
        return row

    def free_instant(self, meter: _Meter, us: int) -> int:
        """The first microsecond from us on at which the meter has, and had as its newest or last pruned, no reading."""
        if us >= meter.newest_us:
            return max(us, int(meter.newest_us) + 1)
        self.flush()
        while True:
            free = self._conn.execute(_FREE_INSTANT_SQL, {"key": meter.key, "us": us}).fetchone()
            us = us if free is None else int(free[0])
            if us not in (meter.newest_us, meter.pruned[0]):
                return us
            us += 1

    def _alert(self, meter: _Meter, us: int) -> None:
        """Move the alert level on, and record the event of one just entered or due again."""
        before = meter.alert_level
        level = meter.alert_level = _alert_level(
            before, meter.charge_pct, meter.low, meter.critical
        )
        # The distance either way: a clock that was set back must not silence alerts for years.
        due = (
            level > 0
            and self._repeat_us is not None
            and abs(us - meter.alerted_us) >= self._repeat_us
        )
        if self.alerting and (level > before or due):
            kind = PowerEventType.LOW_BATTERY if level == 2 else PowerEventType.DISCHARGE
            threshold = meter.critical if level == 2 else meter.low
            note = f"{meter.label}: {meter.charge_pct:g} % charge, threshold {threshold:g} %"
            event = os.urandom(8).hex(), meter.device_key, kind, meter.charge_pct, us, note
            self._conn.execute(_ADD_EVENT_SQL, event)
            meter.alerted_us = us

    def flush(self) -> None:
        """Store and book every waiting row."""
        for meter in self._meters.values():
            if meter.waiting:
                rows, meter.waiting = meter.waiting, []
                if (
                    not meter.ordered
                ):  # the first to come of two at one instant is the one that is kept
                    rows = [
                        next(same)
                        for _, same in groupby(sorted(rows, key=itemgetter(0)), itemgetter(0))
                    ]
                self._store(meter, rows)
                meter.ordered = True
        self._waiting = 0

    def finish(self) -> None:
        """Store what waits, and the present state of every meter that got readings."""
        self.flush()
        for m in self._meters.values():
            state = m.voltage, m.current_draw, m.charge_pct, m.updated_us
            self._conn.execute(
                _SET_STATE_SQL,
                (*state, *m.stored, m.alert_level, m.alerted_us, m.late_us - 1, m.key),
            )

    def warn(self, path: Path) -> None:
        """Tell the log what was refused; after the transaction, for a handler may take its time."""
        if self.pruned:
            _log.warning(
                "%s: %d readings older than what prune() has left were not stored",
                path,
                self.pruned,
            )

    def _store(self, meter: _Meter, rows: Sequence[Row]) -> None:
        """Store rows in order of time, run by run: those between the same two readings, stored or latest pruned."""
        start = 0
        while start < len(rows):
            us, end, pruned = rows[start][0], len(rows), meter.pruned
            earlier, later = meter.stored, None
            if us <= earlier[0]:
                later = self._conn.execute(_NEXT_SQL, (meter.key, us)).fetchone()
                if later is not None and later[0] == us:  # already there
                    start += 1
                    continue
                meter.late_us = min(meter.late_us, us)
                earlier = self._conn.execute(_LAST_SQL, (meter.key, us)).fetchone() or _NEVER
                if earlier[0] <= pruned[0] < us:
                    earlier = pruned
                elif pruned[0] >= us and (later is None or pruned[0] < later[0]):
                    later = pruned
                end = bisect_left(
                    rows, later[0] if later else meter.stored[0] + 1, start + 1, key=itemgetter(0)
                )
            self._store_run(meter, rows[start:end], earlier, None if later is pruned else later)
            start = end

    def _store_run(
        self, meter: _Meter, run: Sequence[Row], earlier: Point, later: Point | None
    ) -> None:
        """Store rows that are new and that no reading separates, and book their hours."""
        key, last, gap = meter.key, _point(run[-1]), self._max_gap_us
        times, voltages, currents, charges = zip(*run)
        packed = zip(
            repeat(key),
            times,
            _packed(voltages, 1e6),
            _packed(currents, 1e6),
            _packed(charges, 1e2),
        )
        self._conn.executemany("INSERT INTO power_readings VALUES (?, ?, ?, ?, ?)", packed)
        self.stored += len(run)
        for hour, fingerprint, tally in _by_hour(run, earlier, gap):
            self._conn.execute(_BOOK_SQL, (key, hour, fingerprint, tally.reading_count, *tally))
        if later is not None:  # the trapezoid that spanned the run gives way to the run's last one
            moved = [
                new - old
                for new, old in zip(_energy(last, later, gap), _energy(earlier, later, gap))
            ]
            self._conn.execute(_ADD_ENERGY_SQL, (*moved, key, later[0] // _HOUR))
        if last[0] > meter.stored[0]:
            meter.stored = last


# --- Connection and upgrade -------------------------------------------------------------------

_FIRST_RELEASE = {
    "devices": "id name shutdown_threshold target_wh",
    "power_meters": "id device_id type voltage current_draw capacity_wh charge_pct name",
    "power_events": "id device_id type value timestamp note",
    "power_readings": "id meter_id voltage current_draw charge_pct timestamp",
}
# What has no place in the present tables fails a constraint or a condition, and stays; what was moved, and could not be
# made today, goes back.
_UPGRADE_SQL = """
INSERT OR IGNORE INTO devices (id, name, shutdown_threshold, target_wh)
    SELECT id, CASE trim(name, char(9, 10, 13, 32)) WHEN '' THEN id ELSE name END,
        coalesce(shutdown_threshold, 3.0), target_wh FROM first_release_devices ORDER BY rowid;
DELETE FROM devices WHERE NOT fits_device(id, name, shutdown_threshold, target_wh);
INSERT OR IGNORE INTO power_meters (id, device_key, type, name, capacity_wh, voltage, current_draw, charge_pct)
    SELECT m.id, device_key, m.type, CASE WHEN trim(m.name, char(9, 10, 13, 32)) <> '' THEN m.name END,
        coalesce(m.capacity_wh, 0.0), CAST(coalesce(m.voltage, 0) AS REAL), CAST(coalesce(m.current_draw, 0) AS REAL),
        min(max(CAST(coalesce(m.charge_pct, 100) AS REAL), 0.0), 100.0)
    FROM first_release_power_meters m JOIN devices d ON d.id = m.device_id
    WHERE m.type IN ('main', 'battery', 'solar', 'ups') ORDER BY m.rowid;
DELETE FROM power_meters WHERE NOT (fits_meter_id(id) AND fits_meter(name, capacity_wh)
    AND fits_reading(voltage, current_draw, charge_pct));
INSERT OR IGNORE INTO power_events (id, device_key, type, value, timestamp, note)
    SELECT e.id, device_key, e.type, coalesce(e.value, 0.0), first_release_us(e.timestamp) AS us, e.note
    FROM first_release_power_events e JOIN devices d ON d.id = e.device_id
    WHERE e.type IN ('charge_start', 'discharge', 'low_battery', 'shutdown', 'restore') ORDER BY us, e.rowid;
DELETE FROM first_release_devices WHERE id IN (SELECT id FROM devices);
DELETE FROM first_release_power_meters WHERE id IN (SELECT id FROM power_meters);
DELETE FROM first_release_power_events WHERE id IN (SELECT id FROM power_events);
"""


# From a version to the one after it.
_NEXT_VERSION_SQL = {
    1: "ALTER TABLE power_meters ADD COLUMN forwarded_us INTEGER NOT NULL DEFAULT -1",
    # The latest pruned reading is put a microsecond before the first kept one from that time on, with the watts that
    # make the energy between them what it was; what a late reading counted twice in a later hour is taken off.
    2: """ALTER TABLE power_meters ADD COLUMN pruned_wattage REAL NOT NULL DEFAULT 0;
UPDATE power_meters SET (pruned_us, pruned_wattage) = (
    SELECT timestamp - 1, 7.2e9 * (pruned_out_wh - pruned_in_wh) - v.voltage * v.current_draw FROM power_values v
        JOIN power_hourly h ON h.meter_key = v.meter_key AND h.hour = timestamp / 3600000000
        WHERE v.meter_key = power_meters.meter_key AND timestamp >= pruned_us
    UNION ALL SELECT newest_us, newest_wattage ORDER BY 1 LIMIT 1) WHERE pruned_us >= 0;
UPDATE power_hourly SET energy_out_wh = energy_out_wh - pruned_out_wh, energy_in_wh = energy_in_wh - pruned_in_wh
    WHERE hour > (SELECT pruned_us + 1 FROM power_meters m WHERE m.meter_key = power_hourly.meter_key) / 3600000000""",
}


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pragma(conn: sqlite3.Connection, name: str) -> Any:
    return conn.execute(f"PRAGMA {name}").fetchone()[0]


def _script(conn: sqlite3.Connection, script: str) -> None:
    """Execute statements without the commit that executescript() begins with."""
    for statement in script.split(";\n"):
        conn.execute(statement)


def _connect(path: Path, durability: str) -> sqlite3.Connection:
    """A connection in autocommit mode; never creates the file."""
    target = ":memory:" if str(path) == ":memory:" else path.as_uri() + "?mode=rw"
    conn = sqlite3.connect(
        target, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
    )
    try:
        conn.execute(f"PRAGMA synchronous = {durability}")
        conn.execute(
            "PRAGMA trusted_schema = OFF"
        )  # a crafted file must not call functions by its views
        conn.execute("PRAGMA cell_size_check = ON")  # find a damaged page when it is read
        conn.execute(
            "PRAGMA journal_size_limit = 4194304"
        )  # bytes a -wal is cut back to after a long transaction
    except BaseException:
        conn.close()
        raise
    return conn


def _create_private(path: Path) -> None:
    """Make an empty file that only its owner can read; SQLite gives -wal and -shm the same mode.

    By mknod, for it opens no descriptor: closing one would drop the locks of another thread's connection.
    """
    with contextlib.suppress(FileExistsError):
        try:
            os.mknod(path, stat.S_IFREG | 0o600)
        except (AttributeError, PermissionError):  # Windows has none; macOS keeps it for root
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _schema_of(conn: sqlite3.Connection, path: Path) -> int:
    """The version of the file's schema, _NO_SCHEMA of an empty file; one that is not ours is refused by name."""
    application_id, version = _pragma(conn, "application_id"), _pragma(conn, "user_version")
    if application_id == _APPLICATION_ID:
        if 0 < version <= _SCHEMA_VERSION:
            return int(version)
        hint = (
            "open it with a newer power_manager"
            if version > _SCHEMA_VERSION
            else "restore a backup"
        )
        raise StorageError(path, f"its schema {version} is not {_SCHEMA_VERSION}: {hint}")
    if (application_id, version) == (0, 0):
        if not _pragma(conn, "schema_version"):
            return _NO_SCHEMA
        columns = {
            table: {row[1] for row in conn.execute(f"PRAGMA table_info({table})")}
            for table in _FIRST_RELEASE
        }
        if all(columns[table].issuperset(names.split()) for table, names in _FIRST_RELEASE.items()):
            return _FIRST_SCHEMA
    raise StorageError(path, "a database of another program: name another file")


def _switched_to_wal(conn: sqlite3.Connection) -> str:
    """The journal mode after asking for WAL. Where two processes ask at once, SQLite itself does not wait."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            return str(_pragma(conn, "journal_mode = wal"))
        except sqlite3.OperationalError as exc:
            busy = (
                getattr(exc, "sqlite_errorcode", _SQLITE_BUSY) & 0xFF == _SQLITE_BUSY
            )  # no code before Python 3.11
            if not busy or time.monotonic() >= deadline:
                raise
            time.sleep(0.005)


def _make_ours(conn: sqlite3.Connection, path: Path, max_gap_us: int) -> int:
    """Put an identified file into WAL mode and, in one transaction, onto the present schema; return its max_gap."""
    conn.execute("BEGIN")  # one look: another process may be making it
    version = _schema_of(conn, path)
    conn.execute("COMMIT")
    if version == _NO_SCHEMA:
        conn.execute(
            "PRAGMA page_size = 1024"
        )  # bytes: a commit writes whole pages, and flash wears out by them
    mode = _switched_to_wal(conn)
    if mode != "wal" and str(path) != ":memory:":
        raise StorageError(
            path, f"this place cannot hold a WAL database (it says {mode!r}): use a local disk"
        )
    if version != _SCHEMA_VERSION:
        conn.execute("BEGIN IMMEDIATE")  # closing the connection rolls back
        version = _schema_of(conn, path)  # another process may have been faster
        for older in range(version, _SCHEMA_VERSION) if version > _FIRST_SCHEMA else ():
            _script(conn, _NEXT_VERSION_SQL[older])
        if version == _FIRST_SCHEMA:
            for table in _FIRST_RELEASE:
                conn.execute(f"ALTER TABLE {table} RENAME TO first_release_{table}")
        if version <= _FIRST_SCHEMA:
            _script(conn, _SCHEMA)
            conn.execute("INSERT INTO power_settings VALUES ('max_gap_us', ?)", (max_gap_us,))
            conn.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        conn.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        if version == _FIRST_SCHEMA:
            _upgrade_first_release(conn, path, max_gap_us)
    (kept,) = conn.execute(
        "SELECT value FROM power_settings WHERE name = 'max_gap_us'"
    ).fetchone() or (None,)
    if not isinstance(kept, int):
        raise StorageError(path, "its setting max_gap_us is damaged: restore a backup")
    if max_gap_us not in (kept, _DEFAULT_MAX_GAP * _SECOND):
        raise _invalid(
            "max_gap", f"{kept / _SECOND:g}, with which {path} was made (s)", max_gap_us / _SECOND
        )
    if conn.in_transaction:
        conn.execute("COMMIT")
    conn.execute("PRAGMA foreign_keys = ON")
    return kept


def _upgrade_first_release(conn: sqlite3.Connection, path: Path, max_gap_us: int) -> None:
    """Move the rows of the first_release_* tables; those that have no place stay there, and are warned of."""

    def microseconds(
        text: Any,
    ) -> int | None:  # its times are ISO text, in UTC where they name no offset
        try:
            moment = _parse_iso(text)
            return _microseconds(
                "timestamp", moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
            )
        except (TypeError, ValueError):
            return None

    def fits(check: Callable[..., object]) -> Callable[..., bool]:
        def fitting(*values: Any) -> bool:
            with contextlib.suppress(InvalidValue):
                check(*values)
                return True
            return False

        return fitting

    conn.create_function("first_release_us", 1, microseconds)
    conn.create_function("fits_device", 4, fits(_device))
    conn.create_function("fits_meter_id", 1, fits(functools.partial(_text, "meter_id")))
    conn.create_function("fits_meter", 2, fits(_new_meter))
    conn.create_function("fits_reading", 3, fits(_electrical))
    _script(conn, _UPGRADE_SQL)
    intake, moved = _Intake(conn, max_gap_us, None, int), []
    intake.alerting = False  # its alerts are recorded already
    for (id_,) in conn.execute("SELECT id FROM power_meters").fetchall():
        known = intake.meter(id_)
        if known.runs_empty:
            known.alert_level = _alert_level(0, known.charge_pct, known.low, known.critical)
    sql = """SELECT r.rowid, m.id, r.voltage, r.current_draw, coalesce(r.charge_pct, 100.0),
        first_release_us(r.timestamp) FROM first_release_power_readings r JOIN power_meters m ON m.id = r.meter_id
        ORDER BY r.rowid"""
    for rowid, meter_id, voltage, current, charge_pct, us in conn.execute(sql):
        with contextlib.suppress(InvalidValue):
            values = _electrical(voltage, current, charge_pct)
            if us is not None:  # two readings at one instant are both kept
                intake.take(meter_id, *values, intake.free_instant(intake.meter(meter_id), us))
                moved.append((rowid,))
    intake.finish()
    conn.executemany("DELETE FROM first_release_power_readings WHERE rowid = ?", moved)
    for table in _FIRST_RELEASE:
        (left,) = conn.execute(f"SELECT count(*) FROM first_release_{table}").fetchone()
        if left:
            _log.warning(
                "%s: %d rows of %s have no place; they stay in first_release_%s",
                path,
                left,
                table,
                table,
            )
        else:
            conn.execute(f"DROP TABLE first_release_{table}")


# --- PowerManager -----------------------------------------------------------------------------


class PowerManager:
    """A file of devices, their meters, readings and events; a context manager.

    db_path: the database, made (private to its owner) where it is missing; ":memory:" for one as long as this object.
    durability: "full" (default): what log_power returned survives a power cut. "normal": it survives the end of the
        process, and a power cut may take the last moments; the file stays whole either way.
    alert_repeat: seconds after which a battery that is still low or critical raises its event again; 0: with every
        reading; None (default): never.
    max_gap: seconds between two readings over which energy is still booked (default 3600; 0: none at all). The file
        keeps the value it was made with: the default takes that one, any other must equal it.
    clock: returns the time in epoch seconds.

    Safe to share between threads, and any number of processes may have the file open. Every call that writes is one
    transaction. Raises InvalidValue for a parameter, NotFound for an unknown id, StorageError for the file; after any
    of them the file is as before the call.
    """

    # --- Lifecycle

    _closed = True  # until it is open: for __del__

    def __init__(
        self,
        db_path: str | os.PathLike[str] = DB_PATH,
        *,
        durability: str = "full",
        alert_repeat: float | None = None,
        max_gap: float = _DEFAULT_MAX_GAP,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.db_path = _path("db_path", db_path)
        if durability not in ("full", "normal"):
            raise _invalid("durability", "'full' or 'normal'", durability)
        if not callable(clock):
            raise _invalid("clock", "a function that returns epoch seconds", clock)
        self._durability, self._clock = durability, clock
        self._alert_repeat_us = _optional(_span, "alert_repeat", alert_repeat, _SECOND, "s")
        self._memory = str(self.db_path) == ":memory:"
        # Connections are opened later too, when the working directory may be another one.
        self._path = self.db_path if self._memory else Path(os.path.abspath(self.db_path))
        self._lock = threading.RLock()  # held for the length of a transaction
        self._depth = self._owner = (
            0  # how deep in transactions the thread that holds the lock is, and which it is
        )
        self._idle: list[sqlite3.Connection] = []  # connections for reading that nobody uses
        self._foreign: BaseException | None = None  # an error that came out of the caller's code
        self._streaming = False  # log_many is reading its rows
        self._pid = os.getpid()
        self._writer = self._open(_span("max_gap", max_gap, _SECOND, "s"))
        self._closed = False

    def _open(self, max_gap_us: int) -> sqlite3.Connection:
        with contextlib.ExitStack() as undo:
            try:
                if not self._memory and self._path.is_dir():
                    raise StorageError(self.db_path, "this is a directory: name a file in it")
                if not self._memory and not self._path.exists():
                    _create_private(Path(os.path.realpath(self._path)))
                conn = _connect(self._path, self._durability)
                undo.callback(conn.close)
                self._max_gap_us = _make_ours(conn, self._path, max_gap_us)
            except _FILE_ERRORS as exc:
                _raise_ours(exc, self.db_path)
            undo.pop_all()
        return conn

    def __enter__(self) -> PowerManager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed and self._pid == os.getpid():
            self._close_connections()

    def close(self) -> None:
        """Close the file; closing it again does nothing. Raises PowerManagerError in a transaction."""
        with self._lock:
            if self._depth:
                raise PowerManagerError(
                    f"{self.db_path}: close() inside a transaction: leave it first"
                )
            if not self._closed:
                self._close_connections()

    def _close_connections(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        self._writer.close()

    def _check_usable(self) -> None:
        if self._closed or self._pid != os.getpid():
            reason = "this PowerManager is closed" if self._closed else "opened before a fork"
            raise StorageError(self.db_path, f"{reason}: open another")

    # --- Transactions

    @contextlib.contextmanager
    def transaction(self) -> Iterator[PowerManager]:
        """Group any calls into one commit: all of them are stored, or none.

        Nests: an inner block that fails takes back its own calls only. Any exception rolls back, and goes on. Other
        threads' writes, and other processes', wait meanwhile; those of other tasks of this thread are part of it.
        """
        with self._writing(), self._foreign_code():
            yield self

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """The file's own sqlite3 connection, in one transaction, for tables that another package keeps in this file.

        Nests with transaction(), so rows of those tables and calls of this object are stored together. Name the
        tables with a prefix of the package's own, leave those of this module alone, and neither commit nor roll back.
        SQLite's errors come out as StorageError, all others as they are; after any of them nothing is stored.
        """
        with self._writing() as conn, self._foreign_code(sqlite3.Error):
            yield conn

    @contextlib.contextmanager
    def _foreign_code(self, *ours: type[BaseException]) -> Iterator[None]:
        """What is raised inside is the caller's own, and not to be translated, unless it is one of these."""
        try:
            yield
        except BaseException as exc:
            self._foreign = None if isinstance(exc, ours) else exc
            raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: BEGIN IMMEDIATE outermost, a savepoint inside."""
        self._check_usable()  # before the lock, which the parent of a fork may have left taken
        with self._lock:
            self._check_usable()
            conn, depth = self._writer, self._depth
            begin, commit, rollback = "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"
            if depth:
                begin, commit = f"SAVEPOINT s{depth}", f"RELEASE s{depth}"
                rollback = f"ROLLBACK TO s{depth};\n{commit}"
            try:
                if depth:
                    self._check_unbroken()
                elif (
                    conn.in_transaction
                ):  # an interrupt has come between BEGIN and the line after it
                    conn.execute(rollback)
                conn.execute(begin)
                self._depth, self._owner = depth + 1, threading.get_ident()
                try:
                    yield conn
                    self._check_unbroken()
                    conn.execute(commit)
                except BaseException:
                    if conn.in_transaction:
                        self._roll_back(conn, rollback)
                    raise
                finally:
                    self._depth, self._owner = depth, self._owner if depth else 0
            except _FILE_ERRORS as exc:
                if exc is self._foreign:
                    raise
                _raise_ours(exc, self.db_path)

    @staticmethod
    def _roll_back(conn: sqlite3.Connection, rollback: str) -> None:
        """Undo a transaction, or a part of one; all of it where an interrupt came after that part's own end."""
        try:
            _script(conn, rollback)
        except sqlite3.Error:
            conn.execute("ROLLBACK")

    def _check_unbroken(self) -> None:
        """On some errors, as a full disk, SQLite itself rolls back; what followed would commit by itself."""
        if not self._writer.in_transaction:
            reason = "an earlier error has rolled this transaction back, or somebody has ended it: begin another"
            raise StorageError(self.db_path, reason)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One snapshot to read: the writer's own inside a transaction, else one beside it."""
        self._check_usable()
        try:
            if self._memory or self._owner == threading.get_ident():
                with self._lock:
                    yield self._writer
                return
            try:
                conn = self._idle.pop()
            except IndexError:
                conn = _connect(self._path, self._durability)
            try:
                conn.execute("BEGIN")
                yield conn
            finally:
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
                self._idle.append(conn)
                if self._closed:  # by another thread, meanwhile
                    self._close_connections()
        except _FILE_ERRORS as exc:
            _raise_ours(exc, self.db_path)

    def _rows_of(
        self, make: Callable[[Iterable[Any]], _T], name: str, id_: str, sql: str, **values: Any
    ) -> _T:
        """What make makes of the rows of a statement with :key for the key of the device or meter."""
        with self._reading() as conn:
            return make(conn.execute(sql, {"key": _find(conn, name, id_)[0], **values}))

    # --- Devices and meters

    def register_device(
        self,
        device_id: str,
        name: str,
        shutdown_threshold: float = 3.0,
        target_wh: float | None = None,
        *,
        low_battery_threshold: float | None = None,
        critical_battery_threshold: float | None = None,
    ) -> DeviceRecord:
        """Register a device, or give a registered one exactly these values; its meters, readings and events stay.

        shutdown_threshold is in watts (default 3.0; at least 0), target_wh in watt-hours a day (None: no budget). The
        two battery thresholds are in % of charge and override the constants for this device; critical must be below
        low. Raises InvalidValue.
        """
        thresholds = low_battery_threshold, critical_battery_threshold
        device = _device(device_id, name, shutdown_threshold, target_wh, *thresholds)
        with self._writing() as conn:
            conn.execute(_REGISTER_SQL, dataclasses.astuple(device))
        return device

    def get_device(self, device_id: str) -> DeviceRecord:
        """The device with that id. Raises NotFound."""
        sql = _DEVICE_SQL + " WHERE device_key = :key"
        return self._rows_of(
            lambda rows: DeviceRecord(*next(iter(rows))), "device_id", device_id, sql
        )

    def list_devices(self) -> list[DeviceRecord]:
        """Every device, in order of registration."""
        with self._reading() as conn:
            return [
                DeviceRecord(*row) for row in conn.execute(_DEVICE_SQL + " ORDER BY device_key")
            ]

    def add_meter(
        self,
        device_id: str,
        meter_type: MeterType | str,
        capacity_wh: float = 0.0,
        name: str | None = None,
    ) -> PowerMeter:
        """Add a meter to a device: 0 V, 0 A, 100 % until its first reading.

        meter_type is a MeterType or its text, capacity_wh watt-hours (default 0.0: not known). Raises NotFound,
        InvalidValue.
        """
        kind, (name, capacity) = (
            _member(MeterType, "meter_type", meter_type),
            _new_meter(name, capacity_wh),
        )
        meter_id = os.urandom(12).hex()  # 96 bits: unique over any fleet
        with self._writing() as conn:
            device_key = _find(conn, "device_id", device_id)[0]
            conn.execute(_ADD_METER_SQL, (meter_id, device_key, kind, name, capacity))
            return self.get_meter(meter_id)

    def get_meter(self, meter_id: str) -> PowerMeter:
        """The meter with that id, in its present state. Raises NotFound."""
        sql = _METER_SQL + " WHERE m.meter_key = :key"
        return self._rows_of(lambda rows: _meter(next(iter(rows))), "meter_id", meter_id, sql)

    def list_meters(self, device_id: str | None = None) -> list[PowerMeter]:
        """The meters of a device, or of all, in order of adding; none of an unknown device."""
        where = "" if device_id is None else " WHERE d.id = ?"
        values = () if device_id is None else (_text("device_id", device_id),)
        with self._reading() as conn:
            return [
                _meter(row)
                for row in conn.execute(_METER_SQL + where + " ORDER BY m.meter_key", values)
            ]

    # --- Readings

    def log_power(
        self,
        meter_id: str,
        voltage: float,
        current: float,
        charge_pct: float | None = None,
        *,
        timestamp: Any = None,
    ) -> PowerReading:
        """Store one reading, with its meter's present state, its hour's statistics and its alert.

        voltage in volts and current in amperes out of the source, -1e6 to 1e6; charge_pct is clamped to 0..100, None
        keeps the meter's last. Without timestamp it is a live reading, now: the meter's present state whatever the
        clock says. With one (an aware datetime, ISO 8601 text with an offset, or epoch seconds; 1970 to 2200) it is a
        recorded one: the present state only if it is the meter's newest, and stored once however often it is sent;
        the reading that is there is then returned unchanged. Raises NotFound, InvalidValue.
        """
        values = _electrical(voltage, current, charge_pct)
        us = None if timestamp is None else _microseconds("timestamp", timestamp)
        with self._writing() as conn:
            intake = self._intake(conn)
            row = intake.take(meter_id, *values, us)
            intake.finish()
            if not intake.stored:
                there = {"key": intake.meter(meter_id).key, "us": row[0]}
                row = conn.execute(_VALUES_SQL + " AND timestamp = :us", there).fetchone() or row
        intake.warn(self.db_path)
        return _readings(meter_id, [row])[0]

    def log_many(self, readings: Iterable[Sequence[Any]]) -> int:
        """Store readings in one transaction, all or none; return how many were new.

        readings yields (meter_id, voltage, current[, charge_pct[, timestamp]]), each as in log_power; it is streamed,
        so it may be of any length. An error names the row, from 1.
        """
        with self._writing() as conn:
            intake = self._intake(conn)
            for number, reading in enumerate(self._streamed(readings), 1):
                try:
                    if type(reading) is not tuple or len(reading) != 5:
                        reading = _five(reading)
                    meter_id, voltage, current, charge_pct, timestamp = reading
                    us = None if timestamp is None else _microseconds("timestamp", timestamp)
                    voltage, current, charge_pct = _electrical(voltage, current, charge_pct)
                    intake.take(meter_id, voltage, current, charge_pct, us)
                except (InvalidValue, NotFound) as exc:
                    raise type(exc)(f"row {number}: {exc}") from exc
            intake.finish()
        intake.warn(self.db_path)
        return intake.stored

    def _streamed(self, readings: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """The caller's rows; meanwhile nothing else may put readings in, for some are still held."""
        self._streaming = True
        try:
            with self._foreign_code():
                yield from _iterable("readings", readings)
        finally:
            self._streaming = False

    def _intake(self, conn: sqlite3.Connection) -> _Intake:
        if self._streaming:
            raise PowerManagerError(
                "log_many() is still reading its rows: yield this reading to it instead"
            )
        return _Intake(conn, self._max_gap_us, self._alert_repeat_us, self._now)

    def _now(self) -> int:
        """The clock in microseconds since 1970."""
        try:
            return _microseconds("clock", self._clock())
        except BaseException as exc:  # the caller's own
            self._foreign = exc
            raise

    def _ago(self, name: str, span: float, unit_us: int, unit: str, now: int | None = None) -> int:
        """The time that long before now, in microseconds since 1970; -1 where that is before."""
        before = _span(name, span, unit_us, unit)
        return max((self._now() if now is None else now) - before, -1)

    def calculate_wattage(self, meter_id: str) -> float:
        """Present watts of a meter, rounded to 4 decimals. Raises NotFound."""
        return self.get_meter(meter_id).wattage

    def get_history(self, meter_id: str, hours: float = 24) -> list[PowerReading]:
        """The readings newer than `hours` ago (default 24), oldest first. Raises NotFound."""
        sql = _VALUES_SQL + " AND timestamp > :after ORDER BY timestamp"
        after = self._ago("hours", hours, _HOUR, "h")
        return self._rows_of(
            functools.partial(_readings, meter_id), "meter_id", meter_id, sql, after=after
        )

    def iter_history(
        self, meter_id: str, *, since: Any = None, until: Any = None
    ) -> Iterator[PowerReading]:
        """Iterate over the readings from `since` on and before `until`, oldest first.

        Both are as log_power's timestamp; None is no limit. Memory stays constant and no transaction is open between
        two readings, so readings that arrive meanwhile at later times are met too. Raises NotFound, InvalidValue.
        """
        start = 0 if since is None else _microseconds("since", since)
        end = _END_OF_TIME if until is None else _microseconds("until", until)
        sql = (
            _VALUES_SQL
            + " AND timestamp >= :start AND timestamp < :end ORDER BY timestamp LIMIT :page"
        )

        def page(start: int) -> list[PowerReading]:
            make = functools.partial(_readings, meter_id)
            return self._rows_of(make, "meter_id", meter_id, sql, start=start, end=end, page=_PAGE)

        def pages(readings: list[PowerReading]) -> Iterator[PowerReading]:
            while readings:
                last, full = readings[-1].id, len(readings) == _PAGE
                yield from readings
                readings = (
                    page(int(last.rpartition(":")[2]) + 1) if full else []
                )  # an id ends with the time

        return pages(page(start))  # the first page now: its errors belong to this call

    def unforwarded(self, limit: int = 500) -> list[PowerReading]:
        """Readings that no mark_forwarded() has had yet: meter by meter, oldest first; at most `limit` (default 500).

        For the one process that sends this file's readings elsewhere: take some, send them, mark them. What is sent
        twice has the same id both times. Raises InvalidValue.
        """
        with self._reading() as conn:
            rows = conn.execute(_UNFORWARDED_SQL, (_whole("limit", limit),))
            parts = groupby(rows, itemgetter(0))
            return [
                reading
                for id_, part in parts
                for reading in _readings(id_, [row[1:] for row in part])
            ]

    def mark_forwarded(self, readings: Iterable[PowerReading]) -> None:
        """Mark what unforwarded() gave as sent, up to the first reading that is not among these.

        A late reading, of before what is marked, takes the mark back in its own transaction: it comes out of
        unforwarded() next, and those after it once more. Raises NotFound, InvalidValue.
        """
        sent: dict[str, set[int]] = {}
        for reading in _iterable("readings", readings):
            if not isinstance(reading, PowerReading):
                raise _invalid("readings", "PowerReading records of unforwarded()", reading)
            sent.setdefault(reading.meter_id, set()).add(
                _microseconds("timestamp", reading.timestamp)
            )
        with self._writing() as conn:
            for meter_id, times in sent.items():
                key, last = _find(conn, "meter_id", meter_id)[0], max(times)
                there = conn.execute(_FORWARDED_SQL, {"key": key, "last": last})
                mark = next((us - 1 for (us,) in there if us not in times), last)
                conn.execute(_MARK_SQL, (mark, key))

    def estimate_runtime(
        self, device_id: str, *, window_minutes: float | None = None
    ) -> float | None:
        """Hours until all the device's batteries of known capacity are empty, 2 decimals.

        Remaining watt-hours over watts: the present ones, or with window_minutes each battery's mean over that long
        before its latest reading (a gauge's estimate jumps from sample to sample; two minutes settle it). None where
        no battery has a capacity, or where together they are not draining. Raises NotFound.
        """
        window = _optional(_span, "window_minutes", window_minutes, 60 * _SECOND, "min") or 0
        return self._rows_of(_runtime_hours, "device_id", device_id, _BATTERIES_SQL, window=window)

    # --- Alerts and events

    def trigger_event(
        self,
        device_id: str,
        event_type: PowerEventType | str,
        value: float = 0.0,
        note: str | None = None,
    ) -> PowerEvent:
        """Record an event of a device, now. Raises NotFound, InvalidValue."""
        kind, note = (
            _member(PowerEventType, "event_type", event_type),
            _optional(_text, "note", note, 10_000),
        )
        value = _number("value", value, -_MAX_FLOAT, _MAX_FLOAT, "in the event's unit")
        us, event_id = self._now(), os.urandom(8).hex()
        with self._writing() as conn:
            device_key = _find(conn, "device_id", device_id)[0]
            conn.execute(_ADD_EVENT_SQL, (event_id, device_key, kind, value, us, note))
        return PowerEvent(event_id, device_id, kind, value, _iso(us), note)

    def get_events(self, device_id: str, limit: int = 50) -> list[PowerEvent]:
        """The device's newest events, newest first; at most `limit` (default 50; 0: none). Raises NotFound."""
        sql = (
            _EVENT_SQL
            + " WHERE e.device_key = :key ORDER BY e.timestamp DESC, e.sequence DESC LIMIT :limit"
        )
        return self._rows_of(
            lambda rows: [*map(_event, rows)],
            "device_id",
            device_id,
            sql,
            limit=_whole("limit", limit),
        )

    def events_since(self, sequence: int, *, limit: int = 1000) -> list[tuple[int, PowerEvent]]:
        """Every device's events recorded after that one, oldest first, each with its sequence number.

        For followers: start with 0, go on with the last number that came. Numbers rise and are never used twice. At
        most `limit` (default 1000; 0: none).
        """
        values = _whole("sequence", sequence), _whole("limit", limit)
        with self._reading() as conn:
            rows = conn.execute(
                _EVENT_SQL + " WHERE e.sequence > ? ORDER BY e.sequence LIMIT ?", values
            )
            return [(row[0], _event(row)) for row in rows]

    # --- Statistics

    def get_statistics(
        self, meter_id: str, *, days: float = 7, bucket: str = "hour"
    ) -> list[PowerStatistics]:
        """A row for each UTC hour or day ("hour", "day") with readings in the last `days` (default 7), oldest first.

        The bucket in which that span begins is there whole. The energy between two readings is in the bucket of the
        later one. Raises NotFound, InvalidValue.
        """
        if bucket not in ("hour", "day"):
            raise _invalid("bucket", "'hour' or 'day'", bucket)
        hours = 1 if bucket == "hour" else 24
        first = self._ago("days", days, _DAY, "days") // (_HOUR * hours)
        sql = f"""SELECT hour / {hours} AS start, {_TALLY_SQL} FROM power_hourly
            WHERE meter_key = :key AND hour >= :first GROUP BY start ORDER BY start"""

        def make(rows: Iterable[Any]) -> list[PowerStatistics]:
            return [
                PowerStatistics(meter_id, _iso(at * hours * _HOUR), **_Tally(*row).shown())
                for at, *row in rows
            ]

        return self._rows_of(make, "meter_id", meter_id, sql, first=first * hours)

    def _window(
        self, conn: sqlite3.Connection, keys: Sequence[int], after: int
    ) -> dict[int, _Tally]:
        """Statistics, by meter, of the readings later than a time: the same as brute force over them."""
        values = {"keys": json.dumps(keys), "after": after}
        found = {key: _Tally(*row) for key, *row in conn.execute(_WHOLE_HOURS_SQL, values)}
        for key, rows in groupby(conn.execute(_FIRST_HOUR_SQL, values), itemgetter(0)):
            part = _Tally.of([row[1:] for row in rows], _NEVER, self._max_gap_us)
            found[key] = part.plus(found[key]) if key in found else part
        return found

    # --- Budget and report

    def power_budget_check(self, device_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The power budget of each device, by its id; `{"error": ...}` for an unknown one.

        In watts total_wattage (all meters), load_wattage (what main, battery and ups supply), solar_wattage and
        net_wattage (solar - load); energy_24h_wh is the load of the last 24 hours. below_shutdown_threshold: the
        total, which is what reaches the device, is less than its shutdown_threshold. The README has all keys. A fixed
        number of queries however many devices. Raises InvalidValue.
        """
        ids = [_text("device_id", device_id) for device_id in _iterable("device_ids", device_ids)]
        wanted, after = (json.dumps(ids),), self._ago("days", 1, _DAY, "days")
        with self._reading() as conn:
            devices = conn.execute(
                _DEVICE_SQL + " WHERE id IN (SELECT value FROM json_each(?))", wanted
            ).fetchall()
            sql = (
                _METER_SQL + " WHERE d.id IN (SELECT value FROM json_each(?)) ORDER BY m.meter_key"
            )
            meters = conn.execute(sql, wanted).fetchall()
            loads = [row[0] for row in meters if row[3] in _LOADS]
            last_day = self._window(conn, loads, after)
            by_device: dict[str, list[tuple[int, PowerMeter]]] = {row[0]: [] for row in devices}
            for row in meters:
                by_device[row[2]].append((row[0], _meter(row)))
            known = {
                row[0]: _budget(DeviceRecord(*row), by_device[row[0]], last_day) for row in devices
            }
        return {
            id_: known[id_] if id_ in known else {"error": _missing("device_id", id_)}
            for id_ in ids
        }

    def export_report(self, device_id: str, days: float = 7) -> str:
        """The device's report over the last `days` (default 7) as JSON text; the README has its keys.

        Exact: the same as brute force over the readings newer than that; where prune() has taken some of those, from
        the begin of its first hour. Raises NotFound, InvalidValue.
        """
        now = self._now()
        after = self._ago("days", days, _DAY, "days", now)
        days = days if isinstance(days, int) else float(days)  # for JSON knows no other number
        with self._reading() as conn:
            device_key, device_name = _find(conn, "device_id", device_id)
            meters = conn.execute(
                _METER_SQL + " WHERE m.device_key = ? ORDER BY m.meter_key", (device_key,)
            ).fetchall()
            tallies = self._window(conn, [row[0] for row in meters], after)
            period, values = " WHERE e.device_key = ? AND e.timestamp > ?", (device_key, after)
            (event_count,) = conn.execute(
                "SELECT count(*) FROM power_events e" + period, values
            ).fetchone()
            newest = _EVENT_SQL + period + " ORDER BY e.timestamp DESC, e.sequence DESC LIMIT 20"
            events = [dataclasses.asdict(_event(row)) for row in conn.execute(newest, values)]
            parts = [_meter_report(_meter(row), tallies.get(row[0])) for row in meters]
            head = {
                "device_id": device_id,
                "device_name": device_name,
                "period_days": days,
                "generated_at": _iso(now),
            }
            report = head | {"meters": parts, "event_count": event_count, "events": events}
            return json.dumps(report, indent=2, allow_nan=False)

    # --- Maintenance

    def prune(self, keep_days: float) -> int:
        """Delete the readings older than that many days; return how many went.

        Statistics, present states and events stay. In short transactions, so that others can write meanwhile. A
        recorded reading up to the latest one that went is not stored any more: nobody could tell whether it has
        been counted. Raises InvalidValue.
        """
        cutoff, deleted = self._ago("keep_days", keep_days, _DAY, "days"), 0
        with self._reading() as conn:
            keys = conn.execute("SELECT meter_key FROM power_meters ORDER BY meter_key").fetchall()
        for (key,) in keys:
            count = _PAGE
            while count == _PAGE:
                with self._writing() as conn:
                    count = self._prune_page(conn, key, cutoff)
                deleted += count
        return deleted

    def _prune_page(self, conn: sqlite3.Connection, key: int, cutoff: int) -> int:
        old = _VALUES_SQL + " AND timestamp < :cutoff ORDER BY timestamp LIMIT :page"
        rows = conn.execute(old, {"key": key, "cutoff": cutoff, "page": _PAGE}).fetchall()
        if not rows:
            return 0
        for hour, fingerprint, tally in _by_hour(rows, _NEVER, 0):
            conn.execute(_ADD_KEPT_SQL, (-fingerprint, -tally.reading_count, key, hour))
        us, wattage = _point(rows[-1])
        conn.execute("DELETE FROM power_readings WHERE meter_key = ? AND timestamp <= ?", (key, us))
        conn.execute(_PRUNED_SQL, (us, wattage, key, us))
        return len(rows)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Write a consistent copy to path, while others read and write; replace a file that is there.

        The copy has a temporary name until it is whole and on the disk, so path never holds half of one. Raises
        StorageError, also where path is a database in use, and PowerManagerError in a transaction.
        """
        target = Path(os.path.abspath(_path("path", path)))
        if self._owner == threading.get_ident():
            raise PowerManagerError(
                f"{self.db_path}: backup() inside a transaction: leave it first"
            )
        unfinished = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
        try:
            self._check_target(target)
            _create_private(unfinished)
            with self._reading() as conn, contextlib.closing(sqlite3.connect(unfinished)) as copy:
                try:
                    conn.backup(copy)
                except sqlite3.Error as exc:
                    _raise_ours(exc, target)
            _sync(unfinished, os.O_RDWR)
            os.replace(unfinished, target)
            _sync(target.parent, os.O_RDONLY)
        except OSError as exc:
            _raise_ours(exc, target)
        finally:
            for suffix in ("", "-journal"):
                with contextlib.suppress(OSError):
                    os.unlink(f"{unfinished}{suffix}")

    def _check_target(self, target: Path) -> None:
        """Refuse to write over a directory, this database, or what belongs to any database in use."""
        name = os.path.realpath(target)  # writing to a link writes to what it names
        if target.is_dir() or (
            target.exists() and not self._memory and target.samefile(self._path)
        ):
            raise StorageError(target, "a directory, or the database itself: name another file")
        beside = [name + suffix for suffix in ("-wal", "-journal")]
        beside += [name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)]
        if any(map(os.path.isfile, beside)):
            raise StorageError(target, "a database in use, or a part of one: name another file")

    def check(self) -> list[str]:
        """What is wrong with the file, one text each; an empty list where nothing is.

        SQLite's own integrity and foreign keys; every hour's statistics against its readings as far as they are kept,
        which finds any single changed value; rows that an upgrade could not place.
        """
        problems: list[str] = []
        try:
            with self._reading() as conn:
                problems += [
                    f"integrity: {row[0]}"
                    for row in conn.execute("PRAGMA integrity_check")
                    if row[0] != "ok"
                ]
                for table, _, parent, _ in conn.execute("PRAGMA foreign_key_check"):
                    if table.startswith("first_release_"):  # said below, once
                        continue
                    problems.append(f"{table}: a row refers to one of {parent} that is not there")
                for (table,) in conn.execute(
                    "SELECT name FROM sqlite_master WHERE name GLOB 'first_release_*'"
                ):
                    problems.append(f"{table}: rows of the first release that have no place")
                for table, sql, make in (
                    ("devices", _DEVICE_SQL, tuple),
                    ("power_meters", _METER_SQL, _meter),
                    ("power_events", _EVENT_SQL, _event),
                ):
                    problems += _problems(
                        table, filterfalse(make, conn.execute(sql))
                    )  # it raises, or makes a record
                for meter in conn.execute(_CHECK_SQL).fetchall():
                    problems += _problems(
                        f"meter {meter[1]}", _check_meter(conn, meter, self._max_gap_us)
                    )
        except StorageError as exc:
            problems.append(str(exc))
        return problems


# --- Command line -----------------------------------------------------------------------------

_COLUMNS = ("timestamp", "voltage", "current", "charge_pct")


def _show(result: Any, as_json: bool = False) -> None:
    """Print what a method returned: records as a table, or as JSON; text as it is."""

    def cell(value: Any) -> str:
        text = "-" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)
        # a name must not steer the terminal
        return re.sub(
            "[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]",
            lambda found: ascii(found[0])[1:-1],
            text,
        )

    if isinstance(result, list) and not as_json:
        rows = [dataclasses.asdict(record) for record in result]
        lines = [[*row] for row in rows[:1]] + [[*map(cell, row.values())] for row in rows]
        widths = [max(map(len, column)) for column in zip(*lines)]
        result = (
            "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines) or "none"
        )
    if result is not None:
        print(
            result
            if isinstance(result, str)
            else json.dumps(result, indent=2, default=dataclasses.asdict)
        )


def _say(text: str, end: str = "\n") -> None:
    """Tell whoever reads standard error, if somebody does: what is stored must not hang on it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, end=end, file=sys.stderr, flush=True)


def _meter_id(pm: PowerManager, name: str) -> str:
    """The id of the meter named by its id, as device/name, or as device/type where that is one."""
    meters = pm.list_meters()
    for form in ("{0.id}", "{0.device_id}/{0.name}", "{0.device_id}/{0.type}"):
        found = [meter.id for meter in meters if form.format(meter) == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFound(
                f"meter: {name!r} are {len(found)} meters, name one by its id: {', '.join(found)}"
            )
    raise NotFound(
        f"meter: no meter has the id or the device/name {name!r}: the command `meters` lists them"
    )


def _plain_number(text: str) -> int | float:
    if "_" in text:  # Python would take 1_0 for 10
        raise ValueError(text)
    return int(text) if text.isdecimal() else float(text)


_plain_number.__name__ = "number"  # argparse says it


def _as_number(text: Any) -> Any:
    """Text as a number, nothing as None, and anything else as it is, for the checks to judge."""
    with contextlib.suppress(ValueError):
        return _plain_number(text) if isinstance(text, str) else text
    return text if text.strip() else None


def _file_rows(lines: Iterator[str]) -> Iterator[tuple[int, Any]]:
    """Line number and fields of each row of CSV with a head; of NDJSON, the line in place of the fields."""
    import csv

    numbered = ((number, line.removeprefix("\ufeff")) for number, line in enumerate(lines, 1))
    head = next((pair for pair in numbered if pair[1].strip()), (1, ""))
    if head[1].lstrip().startswith("{"):
        yield from (pair for pair in chain([head], numbered) if pair[1].strip())
        return
    reader, skipped = csv.DictReader(chain([head[1]], lines), skipinitialspace=True), head[0] - 1
    try:
        missing = [column for column in _COLUMNS[:3] if column not in (reader.fieldnames or ())]
        if missing:
            text = f"expected NDJSON, or CSV that begins with its columns' names; no column {missing[0]!r}"
            raise InvalidValue(text)
        yield from ((skipped + reader.line_num, fields) for fields in reader)
    except csv.Error as exc:
        raise InvalidValue(f"line {skipped + reader.line_num + 1}: expected CSV: {exc}") from exc


def _imported(fields: Any) -> tuple[float, float, float | None, datetime]:
    """The checked values of one row of a file."""
    try:
        fields = json.loads(fields) if isinstance(fields, str) else fields
    except ValueError as exc:
        raise InvalidValue(f"expected a JSON object: {exc}") from exc
    if not isinstance(fields, dict):
        raise _invalid("row", "a JSON object", fields)
    timestamp, *numbers = [_as_number(fields.get(column)) for column in _COLUMNS]
    return (*_electrical(*numbers), _EPOCH + _microseconds("timestamp", timestamp) * _MICROSECOND)


def _import(pm: PowerManager, meter_id: str, file: str, skip_bad: bool) -> str:
    good, bad = 0, 0

    def checked(lines: Iterator[str]) -> Iterator[tuple[Any, ...]]:
        nonlocal good, bad
        for number, fields in _file_rows(lines):
            try:
                values = _imported(fields)
            except InvalidValue as exc:
                bad += 1
                if bad <= 20:  # enough to see what is wrong
                    _say(f"{file}: line {number}: {exc}")
                continue
            good += 1
            if good % _CHUNK == 0 and sys.stderr is not None and sys.stderr.isatty():
                _say(f"\r{good:,} readings\r", end="")
            yield (meter_id, *values)
        if bad > 20:
            _say(f"{file}: and {bad - 20} more bad rows")

    with contextlib.ExitStack() as stack, pm.transaction():
        lines: Iterable[str] = sys.stdin or ()  # None where it is closed
        if file != "-":
            lines = stack.enter_context(open(file, encoding="utf-8", errors="replace", newline=""))
        new = pm.log_many(checked(iter(lines)))
        if bad and not skip_bad:
            raise InvalidValue(
                f"{bad} bad rows: nothing was stored; mend them, or leave them out with --skip-bad"
            )
    return f"{new} new readings, {good - new} already there, {bad} bad rows left out"


def _export(
    pm: PowerManager, meter_id: str, since: Any, until: Any, style: str, output: str
) -> None:
    import csv

    if output != "-":
        pm._check_target(_path("output", output))
    history = pm.iter_history(meter_id, since=since, until=until)
    rows = ((r.timestamp, r.voltage, r.current_draw, r.charge_pct) for r in history)
    with contextlib.ExitStack() as stack:
        out = (
            sys.stdout
            if output == "-"
            else stack.enter_context(open(output, "w", encoding="utf-8", newline=""))
        )
        if style == "ndjson":
            out.writelines(json.dumps(dict(zip(_COLUMNS, row))) + "\n" for row in rows)
        else:
            csv.writer(out, lineterminator="\n").writerows(chain([_COLUMNS], rows))


def _demo(pm: PowerManager) -> str:
    pm.register_device("demo-001", "Solar-powered gateway", target_wh=150.0)
    panel, pack = (
        pm.add_meter("demo-001", "solar", name="Panel"),
        pm.add_meter("demo-001", "battery", 120.0, "Pack"),
    )
    pm.log_many(_demo_week(panel.id, pack.id))
    _say(f"See more of it: python power_manager.py --db {pm.db_path} meters")
    return pm.export_report("demo-001", days=7)


def _demo_week(panel: str, pack: str) -> Iterator[tuple[Any, ...]]:
    """A week until now, minute by minute: sun by day, clouds by chance, a load of 5 to 8 W on the pack."""
    import random

    chance, now, stored_wh, clouds = random.Random(7), time.time(), 70.0, 0.6
    for minute in range(7 * 24 * 60, 0, -1):
        when = now - 60 * minute + 30
        clouds = min(max(clouds + chance.uniform(-0.06, 0.06), 0.2), 1.0)
        sun_watts = 40.0 * clouds * max(0.0, math.sin((when % 86400 / 3600 - 6) / 12 * math.pi))
        load_watts = 5.0 + 3.0 * (chance.random() < 0.2) + chance.uniform(-0.3, 0.3)
        supplied = max(
            load_watts - sun_watts, 60 * (stored_wh - 120.0)
        )  # a full pack takes in no more
        stored_wh = min(max(stored_wh - supplied / 60, 0.0), 120.0)
        volts = round(11.1 + 1.5 * stored_wh / 120, 3)
        yield panel, 18.0 if sun_watts else 0.4, round(sun_watts / 18.0, 3), None, when
        yield pack, volts, round(supplied / volts, 3), round(stored_wh / 1.2, 1), when


def _arg(*names: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, options


def _num(
    name: str, metavar: str, text: str, default: float | None = None
) -> tuple[tuple[str, ...], dict[str, Any]]:
    return _arg(name, metavar=metavar, help=text, type=_plain_number, default=default)


_DEVICE = _arg("device_id", help="the device's id")
_METER = _arg("meter_id", metavar="meter", help="its id, DEVICE/NAME or DEVICE/TYPE")
_DAYS = _num("--days", "N", "how far back (default: 7)", 7)
_JSON = _arg("--json", action="store_true", help="JSON instead of a table")
# Of each command: the method or function that does it, its help, its arguments; a dest is a parameter's name.
# fmt: off
_COMMANDS: dict[str, tuple[Callable[..., Any], str, tuple[tuple[tuple[str, ...], dict[str, Any]], ...]]] = {
    "register": (PowerManager.register_device, "register a device, or give it new values", (
        _DEVICE, _arg("name", help="for people"), _num("--shutdown-threshold", "W", "for the budget (default: 3)", 3.0),
        _num("--target-wh", "WH", "energy budget a day (default: none)"),
        _num("--low-battery-threshold", "PCT", "charge at which a battery is low (default: 20)"),
        _num("--critical-battery-threshold", "PCT", "and critical (default: 5)"))),
    "add-meter": (PowerManager.add_meter, "add a meter to a device", (
        _DEVICE, _arg("meter_type", metavar="type", choices=[*map(str, MeterType)], help=" ".join(MeterType)),
        _arg("--name"), _num("--capacity-wh", "WH", "(default: 0, not known)", 0.0))),
    "devices": (PowerManager.list_devices, "list the devices", (_JSON,)),
    "meters": (PowerManager.list_meters, "list the meters with their present values", (
        _arg("device_id", nargs="?", help="(default: all)"), _JSON)),
    "log": (PowerManager.log_power, "store one reading", (
        _METER, _num("voltage", "voltage", "V"), _num("current", "current", "A out of the source"),
        _arg("charge_pct", type=_plain_number, nargs="?", help="percent (default: the meter's last)"),
        _arg("--timestamp", type=_as_number, help="ISO 8601 with an offset, or epoch seconds (default: now)"))),
    "import": (_import, "store the readings of a CSV or NDJSON file, all or none", (
        _METER, _arg("file", nargs="?", default="-", help=f"with {', '.join(_COLUMNS)} (default: standard input)"),
        _arg("--skip-bad", action="store_true", help="leave bad rows out instead of storing nothing"))),
    "export": (_export, "write a meter's readings as `import` reads them", (
        _METER, _arg("--since", metavar="TIME", type=_as_number,
                     help="from this time on: ISO 8601 with an offset, or epoch seconds"),
        _arg("--until", metavar="TIME", type=_as_number, help="before this time"),
        _arg("--format", dest="style", choices=["csv", "ndjson"], default="csv", help="(default: csv)"),
        _arg("--output", default="-", metavar="FILE", help="(default: standard output)"))),
    "stats": (PowerManager.get_statistics, "show a meter's hourly or daily statistics", (
        _METER, _DAYS, _arg("--bucket", choices=["hour", "day"], default="hour", help="(default: hour)"), _JSON)),
    "events": (PowerManager.get_events, "list a device's newest events", (
        _DEVICE, _arg("--limit", type=int, default=50, metavar="N", help="(default: 50)"), _JSON)),
    "event": (PowerManager.trigger_event, "fire an event", (
        _DEVICE, _arg("event_type", metavar="type", choices=[*map(str, PowerEventType)], help=" ".join(PowerEventType)),
        _num("--value", "X", "(default: 0)", 0.0), _arg("--note"))),
    "budget": (lambda pm, device_ids: pm.power_budget_check(device_ids or [device.id for device in pm.list_devices()]),
               "check the power budget of devices, as JSON", (
        _arg("device_ids", metavar="device_id", nargs="*", help="(default: all)"),)),
    "report": (PowerManager.export_report, "print a device's report, as JSON", (_DEVICE, _DAYS)),
    "prune": (lambda pm, keep_days: f"{pm.prune(keep_days)} readings deleted",
              "delete old readings; statistics and events stay", (_num("keep_days", "keep_days", "days to keep"),)),
    "backup": (lambda pm, path: pm.backup(path) or f"{path} is written", "write a consistent copy of the database",
               (_arg("path"),)),
    "check": (lambda pm: "\n".join(pm.check()) or "ok", "look for damage; exit with 1 where there is any", ()),
    "demo": (_demo, "make a week of solar-battery telemetry in a new file, and report it", ()),
}
# fmt: on


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="power_manager", description="Power telemetry for edge devices."
    )
    parser.add_argument(
        "--db", help="the database (default: $POWER_MANAGER_DB, else power_manager.db here)"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, text, arguments) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command._negative_number_matcher = re.compile(
            r"-\.?\d"
        )  # as from Python 3.14 on: -1e-3 is no option
        for names, options in (
            *arguments,
            _arg("--db", default=argparse.SUPPRESS, help=argparse.SUPPRESS),
        ):
            command.add_argument(*names, **options)
    return parser


def _database(command: str, db: str | None) -> Path:
    """The database that a command works on; only `register` and `demo` may create it."""
    path = Path(db or os.environ.get("POWER_MANAGER_DB") or DB_PATH)
    if command == "demo":
        names = (f"power_manager_demo{number}.db" for number in chain([""], range(2, _MAX_INTEGER)))
        path = Path(db or next(name for name in names if not os.path.exists(name)))
        if path.exists():
            raise StorageError(path, "exists already: name a new file")
    elif command != "register" and not path.exists():
        raise StorageError(
            path, "no such file: name another with --db, or begin one with the command `register`"
        )
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 for an error or a finding, 130 for Ctrl-C."""
    values = vars(_parser().parse_args(argv))
    command, db, as_json = values.pop("command"), values.pop("db"), values.pop("json", False)
    try:
        if sys.stdout is None:
            raise PowerManagerError("standard output is closed: nothing was done")
        with PowerManager(_database(command, db)) as pm:
            if "meter_id" in values:
                values["meter_id"] = _meter_id(pm, values["meter_id"])
            result = _COMMANDS[command][0](pm, **values)
        _show(result, as_json)
        sys.stdout.flush()
        if command == "check":
            return int(result != "ok")
        return int(command == "budget" and any("error" in budget for budget in result.values()))
    except (
        BrokenPipeError
    ):  # `| head` has read enough; what is left in the buffer must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (PowerManagerError, OSError) as exc:
        _say(f"power_manager: {exc}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
