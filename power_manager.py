"""Power telemetry for edge devices: a persistent store for multi-meter readings, in one file.

    with power_manager.PowerManager("power_manager.db") as pm:
        pm.register_device("edge-001", "Edge Node")
        battery = pm.add_meter("edge-001", "battery", capacity_wh=50.0)
        pm.log_power(battery.id, voltage=3.7, current=0.5, charge_pct=82.0)
        print(pm.export_report("edge-001", days=7))

Standard library only. The sections of this file, in their order:

    Constants                   units, defaults and limits
    Errors                      what is raised, and how SQLite's errors become ours
    Enums and records           what callers get
    Schema                      the tables, and the views that show them as plain numbers
    Parameters                  what an argument may be
    Times                       microseconds since 1970, and ISO 8601
    Statistics                  sums of an hour, energy by the trapezoid rule
    Alerts                      levels of charge
    Budget and report           pure functions over meters and sums
    Rows                        from SQL rows to records
    Transaction                 who writes, and the only BEGIN, COMMIT and ROLLBACK
    Readings                    how readings get into the file
    Hours                       computing, closing and deleting whole hours
    Outbox                      readings and deletions that wait to be sent elsewhere
    Opening a file              making, recognising and connecting
    First release               moving the tables of the first release
    Checking                    what is wrong with a file
    Copying                     backup and restore
    PowerManager                the public class
    Command lines               what all command lines of the project share
    Showing                     what the command line shows to a person: from records to text
    Import and export           logs of other programs, and of this one, in and out
    Command line                `python3 power_manager.py COMMAND`

What holds everywhere:

Signs. `current_draw` is amperes out of the source: positive while it supplies (a battery
    discharging, a panel producing), negative while it takes in (a battery charging). Wattage,
    voltage x current_draw, has the same sign.

Storing. A reading, its meter's present state, its hour's statistics and its alert are stored
    together or not at all. With durability="full" (the default) what a call returned survives a
    power cut, if the disk honours fsync. With "normal" it survives the end of the process, and a
    power cut may take the last moments. Neither can corrupt the file. After an error the file is
    as it was before the call (prune() works in several transactions: those that ended stay). New
    files belong to their owner alone (mode 0600). A newer, damaged or foreign file is refused and
    never changed. The file needs a local disk: WAL mode does not work over network file systems.

Threads and processes may share a file, and threads one PowerManager. Writers take turns: a call
    waits up to BUSY_TIMEOUT for another's transaction, then raises StorageError. Reads do not wait,
    and a long one does not block writers. After a fork, open a new PowerManager in the child.

Asyncio. A transaction() belongs to the task that opened it. While it is open, a write from another
    task of the same thread raises PowerManagerError, and a read from there sees the committed
    state. So keep `await` out of it, or give each task a PowerManager. In FastAPI all `async def`
    endpoints are tasks of one thread; plain `def` endpoints run in threads, which take turns.

Signals. A handler that calls the library in the middle of a call gets a PowerManagerError, and the
    call goes on unharmed: set a flag there instead. Ctrl-C leaves no lock behind at any moment.

Time. UTC, as ISO 8601 with microseconds and +00:00; naive times are refused. A reading without a
    timestamp is live: it becomes the meter's present state and may raise an alert, even if the
    clock has just jumped by years. With a timestamp it is recorded: it does so only if it is the
    newest of its meter, and the same meter and time again changes nothing, so sending twice is
    safe. Readings may arrive in any order: their statistics equal those of the sorted readings. A
    late one costs more than a new one, because its hour is computed anew from its readings;
    log_many() computes each hour once a call.

Energy. Between two neighbouring readings it is the trapezoid under their unrounded wattages, booked
    to the UTC hour of the later one: as energy out where it is positive, as energy in where it is
    negative. Over a gap longer than max_gap nothing is booked, because nothing is known.
    Consumption is what a device used: energy out less energy in over its meters, at least 0. A
    `ups` meter counts only if the device has no `main` meter (see counted_meters).

Unknown values are None, never 0. A reading without volts or amperes has no wattage: it counts in
    reading_count and in charge, not in wattage and energy, and its neighbours are neighbours of
    each other. Without a charge, a live reading takes the meter's present charge, and a recorded
    one that of the reading before it in time. An unknown charge counts in no runtime, mean or
    extreme, and raises, repeats and ends no alert.

Sending elsewhere. A file is an outbox for one other store: see pending_readings(). Events have
    numbers that rise and are never used twice, by which any number of programs follow them: see
    event_follower(). `file_id` names one line of history: restore() renews it.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import dataclasses
import errno
import functools
import io
import json
import logging
import math
import os
import re
import select
import signal
import sqlite3
import stat
import struct
import sys
import threading
import time
import weakref
from array import array
from binascii import crc32
from bisect import bisect_left, bisect_right
from collections.abc import (
    Callable,
    Collection,
    Container,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from enum import Enum
from itertools import accumulate, chain, count, islice, repeat
from numbers import Complex, Integral, Number, Real
from operator import attrgetter, itemgetter
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, BinaryIO, Generic, NamedTuple, NoReturn, TextIO, TypeVar, cast

__version__ = "1.0.0"
__all__ = [
    "ALERT_HYSTERESIS",
    "BUSY_TIMEOUT",
    "CRITICAL_BATTERY_THRESHOLD",
    "DAY_US",
    "DB_PATH",
    "FULL_BATTERY_THRESHOLD",
    "HOUR_US",
    "LOW_BATTERY_THRESHOLD",
    "SECOND_US",
    "AlertLevel",
    "Column",
    "CommandParser",
    "Deletion",
    "DeviceRecord",
    "EnergyTotals",
    "EventFollower",
    "InvalidValue",
    "MeterSums",
    "MeterType",
    "NotFound",
    "PowerEvent",
    "PowerEventType",
    "PowerManager",
    "PowerManagerError",
    "PowerMeter",
    "PowerReading",
    "PowerState",
    "PowerStatistics",
    "Screen",
    "StopSignals",
    "StorageError",
    "budget_doubt",
    "check_count",
    "check_duration",
    "check_iterable",
    "check_number",
    "check_text",
    "completion_script",
    "confirm",
    "counted_meters",
    "fit_text",
    "from_microseconds",
    "log_to_stderr",
    "main",
    "make_budget",
    "make_budget_table",
    "make_meter_table",
    "make_report",
    "make_table",
    "nearest",
    "not_installed",
    "open_secret",
    "parse_count",
    "parse_duration",
    "parse_number",
    "parse_time",
    "parse_zone",
    "plausible_charge",
    "print_error",
    "printable",
    "program_name",
    "replace_file",
    "restore_database",
    "rounded",
    "run_program",
    "settings_table",
    "shown_duration",
    "shown_json",
    "shown_number",
    "shown_time",
    "sigterm_as_exit",
    "text_width",
    "to_microseconds",
    "unknown_id",
]
_log = logging.getLogger("power_manager")

# --- Constants ------------------------------------------------------------------------

DB_PATH = Path("power_manager.db")
LOW_BATTERY_THRESHOLD = 20.0  # % charge: at or below it a battery is low
CRITICAL_BATTERY_THRESHOLD = 5.0  # % charge: at or below it an alert is critical
FULL_BATTERY_THRESHOLD = 95.0  # % charge: at or above it a battery's state is "charging"
ALERT_HYSTERESIS = 2.0  # points of charge above a threshold at which its alert ends
BUSY_TIMEOUT = 10.0  # seconds to wait for another thread or process that is writing

SECOND_US = 1_000_000  # microseconds; inside the file and this module times are whole microseconds
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US

_MINUTE_US = 60 * SECOND_US
_DEFAULT_MAX_GAP_S = 5400.0  # seconds: an hourly log with some jitter has no gaps
_END_OF_TIME_US = 7_289_654_400 * SECOND_US  # 2201-01-01T00:00:00Z
_MAX_TEXT = 200  # characters of an id or a name
_MAX_NOTE = 10_000  # characters of an event's note
_MAX_ELECTRICAL = 1e6  # volts, amperes: a value beyond it comes from a broken sensor
_MAX_QUANTITY = 1e12  # watts, watt-hours, seconds: no sum or product of them overflows
_MAX_DURATION = 1e9  # of any unit: hours, days, seconds
_MAX_FLOAT = sys.float_info.max
_MAX_INTEGER = 2**63 - 1
_CHUNK_ROWS = 10_000  # readings that log_many holds in memory at once
_PAGE_ROWS = 2_000  # readings that are read, or deleted, in one go
_MAX_IDLE_READERS = 8  # connections for reading that stay open
_PAGE_BYTES = 1024  # of a new file: a commit writes whole pages, and flash wears out by them

# --- Errors ---------------------------------------------------------------------------


class PowerManagerError(Exception):
    """The base of every error this module raises on purpose.

    By itself: a call in the wrong place, such as close() inside a transaction.
    """


class InvalidValue(PowerManagerError, ValueError):
    """An argument is invalid; nothing was stored. The text names it and says what is accepted.

    >>> check_number("voltage", math.nan, -1e6, 1e6, "V")
    Traceback (most recent call last):
    ...
    power_manager.InvalidValue: voltage: expected a number from -1e+06 to 1e+06 (V), got nan
    """


class NotFound(PowerManagerError, ValueError, LookupError):
    """No device or meter has that id; nothing was stored.

    `kind` is "device" or "meter" and `id` is what was asked for, so that each surface can say it
    in its own words; both are empty if the error was made from a text alone.
    """

    def __init__(self, message: str, kind: str = "", id: str = "") -> None:  # noqa: A002
        super().__init__(message, kind, id)
        self.kind = kind
        self.id = id

    def __str__(self) -> str:
        return str(self.args[0])


class StorageError(PowerManagerError, OSError):
    """The file could not be used; it is as it was before the call.

    `filename` is the file, `reason` says what happened and what to do, and `sqlite_errorname` is
    SQLite's name for it, or "" if SQLite gave none.
    """

    def __init__(self, path: object, reason: object, sqlite_errorname: str = "") -> None:
        super().__init__()
        self.args = (str(path), str(reason), sqlite_errorname)
        self.filename: str = str(path)
        self.reason: str = str(reason)
        self.sqlite_errorname = sqlite_errorname

    def __str__(self) -> str:  # OSError's own would speak of an errno
        return f"{self.filename}: {self.reason}"


class _DamagedValue(Exception):
    """A row of the file holds what this module never writes."""


class _CallerRaised(Exception):
    """Carries an error of the caller's own code past the translation of SQLite's errors."""

    def __init__(self, original: BaseException) -> None:
        super().__init__()
        self.original = original


_HOW_TO_RESTORE = "put a backup in its place with the command `restore`"
_HINTS = {  # what to do, by SQLite's primary error name
    "SQLITE_BUSY": "another process is writing to it: try again",
    "SQLITE_CANTOPEN": "check that its directory exists and that this user may write there",
    "SQLITE_CORRUPT": f"the file is damaged: {_HOW_TO_RESTORE}, "
    "or salvage it with .recover of the sqlite3 shell",
    "SQLITE_FULL": "the disk is full: free some space, then try again",
    "SQLITE_IOERR": "the disk failed: check the system log and the free space",
    "SQLITE_NOMEM": "the machine is out of memory",
    "SQLITE_NOTADB": f"not an SQLite database: name another file, or {_HOW_TO_RESTORE}",
    "SQLITE_READONLY": "give this user write access to the file and its directory",
}
_OTHER_HINT = "check the disk and its free space, the permissions and other users of the file"
_PERMISSION_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# What using a file can raise, apart from the errors of this module.
# A damaged schema makes SQLite's message one that Python cannot decode.
_DATABASE_ERRORS = (sqlite3.Error, MemoryError, UnicodeDecodeError, _DamagedValue)


def _storage_error(error: BaseException, path: Path) -> StorageError:
    """An error of SQLite, of the system or of a damaged row, as one that says what to do."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        if error.errno in _SPACE_ERRNOS:
            reason = f"{reason}; free some space, then try again"
        elif error.errno in _PERMISSION_ERRNOS:
            reason = f"{reason}; {_HINTS['SQLITE_CANTOPEN']}"
        return StorageError(path, reason)
    if isinstance(error, _DamagedValue):
        reason = f"a damaged value ({error}): run the command `check`, and {_HOW_TO_RESTORE}"
        return StorageError(path, reason)
    if isinstance(error, MemoryError):
        name = "SQLITE_NOMEM"
    elif isinstance(error, UnicodeDecodeError):
        name = "SQLITE_CORRUPT"
    else:
        name = getattr(error, "sqlite_errorname", "")  # from Python 3.11 on
    primary = "_".join(name.split("_")[:2])
    hint = _HINTS.get(primary, _OTHER_HINT)
    if not name and type(error) is sqlite3.DatabaseError:  # on Python 3.10
        hint = f"not an SQLite database, or a damaged one: name another file, or {_HOW_TO_RESTORE}"
    return StorageError(path, f"{name or type(error).__name__}: {error}; {hint}", name)


# --- Enums and records ----------------------------------------------------------------


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
    """What can happen to a device.

    The library records DISCHARGE when a battery has become low, and LOW_BATTERY when it has become
    critical, each once; the others are recorded by trigger_event().

    >>> with PowerManager(":memory:") as pm:
    ...     device = pm.register_device("buoy-07", "Buoy", low_battery_threshold=30.0)
    ...     cell = pm.add_meter("buoy-07", "battery", capacity_wh=20.0, name="Cell")
    ...     for charge_pct in (31.0, 30.0, 30.4, 29.5, 5.0, 4.0, 40.0):
    ...         reading = pm.log_power(cell.id, 3.6, 0.2, charge_pct)
    ...     for sequence, event in pm.events_since(0):
    ...         print(sequence, event.type, event.note)
    1 discharge Cell: 30 % charge, threshold 30 %
    2 low_battery Cell: 5 % charge, threshold 5 %
    """

    CHARGE_START = "charge_start"
    DISCHARGE = "discharge"
    LOW_BATTERY = "low_battery"
    SHUTDOWN = "shutdown"
    RESTORE = "restore"


class AlertLevel(_Text):
    """The alert that stands for a meter; the file remembers it across restarts.

    LOW begins at or below 20 %, CRITICAL at or below 5 %, or the device's own thresholds; each ends
    ALERT_HYSTERESIS points above, so that a noisy gauge does not raise it again. Entering a level
    from a better one records its event, falling straight to CRITICAL only that of CRITICAL;
    recovering records none. At exactly the critical threshold the alert has been raised while the
    meter's state still reads `low`.
    """

    NONE = "none"
    LOW = "low"
    CRITICAL = "critical"


_TYPES_WITH_CHARGE = (MeterType.BATTERY, MeterType.UPS)  # their state follows from their charge


def _thresholds(low: float | None, critical: float | None) -> tuple[float, float]:
    """A device's thresholds in % of charge: its own, or else the constants."""
    if low is None:
        low = LOW_BATTERY_THRESHOLD
    if critical is None:
        critical = CRITICAL_BATTERY_THRESHOLD
    return low, critical


@dataclass(slots=True)
class DeviceRecord:
    """A device: thresholds in W and in % of charge, and an energy target in Wh a day.

    target_wh None: no target. A battery threshold None: the module's constant.
    """

    id: str
    name: str
    shutdown_threshold: float = 3.0
    target_wh: float | None = None
    low_battery_threshold: float | None = None
    critical_battery_threshold: float | None = None


@dataclass(slots=True)
class PowerMeter:
    """A meter and its present state: V, A out of the source, Wh, %.

    `updated_at` is the time of that state, None before the first reading. The thresholds are its
    device's. If the reading of that state lacked volts or amperes, `power_known` is False, and the
    missing value is 0.0 here. An unknown charge is None. An inactive meter counts in no present
    figure.
    """

    id: str
    device_id: str
    type: MeterType
    voltage: float
    current_draw: float
    capacity_wh: float
    charge_pct: float | None
    name: str | None = None
    updated_at: str | None = None
    low_battery_threshold: float | None = None
    critical_battery_threshold: float | None = None
    active: bool = True
    power_known: bool = True
    alert_level: AlertLevel = AlertLevel.NONE

    @property
    def wattage(self) -> float | None:
        """Watts out of the source, rounded to 4 decimals; None if unknown."""
        if not self.power_known:
            return None
        return round(self.voltage * self.current_draw, 4)

    @property
    def state(self) -> PowerState:
        """What the present values say, by type.

        solar: charging, always. main: normal unless its voltage is 0, then unknown. battery and
        ups: below 5 % critical, from 5 to 20 % low, from 95 % charging, otherwise normal; unknown
        if the charge is. The device's own thresholds replace 5 and 20 %. A full battery reads
        `charging` even while it discharges: the sign of current_draw is the direction.
        """
        if self.type == MeterType.SOLAR:
            return PowerState.CHARGING
        value = self.voltage if self.type == MeterType.MAIN else self.charge_pct
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return PowerState.UNKNOWN
        if self.type == MeterType.MAIN:
            return PowerState.NORMAL if value else PowerState.UNKNOWN
        low, critical = _thresholds(self.low_battery_threshold, self.critical_battery_threshold)
        if value < critical:
            return PowerState.CRITICAL
        if value <= low:
            return PowerState.LOW
        if value >= FULL_BATTERY_THRESHOLD:
            return PowerState.CHARGING
        return PowerState.NORMAL


@dataclass(slots=True)
class PowerReading:
    """One meter at one instant; `wattage` is rounded to 4 decimals, `timestamp` ISO 8601 UTC.

    Unknown volts or amperes are None, and so is the wattage then; an unknown charge is None. `id`
    is made of the meter's id and the time, so it is the same on every copy.
    """

    id: str
    meter_id: str
    voltage: float | None
    current_draw: float | None
    wattage: float | None
    charge_pct: float | None
    timestamp: str


@dataclass(slots=True)
class PowerEvent:
    """Something that happened to a device, or to one meter of it.

    An alert's `value` is the charge in percent, and its `meter_id` the meter's.
    """

    id: str
    device_id: str
    type: PowerEventType
    value: float
    timestamp: str
    note: str | None
    meter_id: str | None = None


@dataclass(slots=True)
class PowerStatistics:
    """One meter over one UTC hour or day, whose first instant is `start` (ISO 8601).

    The wattages are None if no reading has watts, and the charges if no reading has a charge.
    """

    meter_id: str
    start: str
    reading_count: int
    avg_wattage: float | None
    min_wattage: float | None
    max_wattage: float | None
    min_charge_pct: float | None
    max_charge_pct: float | None
    energy_out_wh: float
    energy_in_wh: float


@dataclass(slots=True)
class EnergyTotals:
    """The energy of a meter since its first reading, in Wh; neither value is ever below 0."""

    meter_id: str
    energy_out_wh: float
    energy_in_wh: float


@dataclass(slots=True)
class Deletion:
    """Something that was deleted here, for a store elsewhere that holds a copy.

    kind is "readings" (those of a meter from `since` on and before `until`; None is no limit),
    "meter" (all of a meter), or "device" (all of a device; meter_id is None).
    """

    sequence: int
    kind: str
    device_id: str
    meter_id: str | None = None
    since: str | None = None
    until: str | None = None


class MeterSums(NamedTuple):
    """What readings of one meter add up to; W, % and Wh.

    power_count is how many of the readings have watts; wattage_sum is over those. The extremes
    are None where there is nothing to compare.
    """

    reading_count: int = 0
    power_count: int = 0
    wattage_sum: float = 0.0
    min_wattage: float | None = None
    max_wattage: float | None = None
    min_charge_pct: float | None = None
    max_charge_pct: float | None = None
    energy_out_wh: float = 0.0
    energy_in_wh: float = 0.0

    @property
    def avg_wattage(self) -> float | None:
        """The mean over the readings that have watts, not over time; None without any."""
        return self.wattage_sum / self.power_count if self.power_count else None


# --- Schema ---------------------------------------------------------------------------

# In the file's header. Development versions, which were never released, had ids of their own.
_APPLICATION_ID = 0x4252504F  # "BRPO"
_DEVELOPMENT_APPLICATION_IDS = (0x4252504D, 0x4252504E)  # "BRPM", "BRPN"
# The versions of the schema, kept in user_version:
# 1: the tables below.
_SCHEMA_VERSION = 1

# One statement each. sqlite_master keeps their text to the letter, and opening a file compares it.
_SCHEMA = (
    """CREATE TABLE devices (
    device_key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    shutdown_threshold REAL NOT NULL,   -- W
    target_wh REAL,                     -- Wh a day; NULL: no target
    low_battery_threshold REAL,         -- % of charge; NULL: the module's constant
    critical_battery_threshold REAL     -- likewise
)""",
    # The statistics of the hour under way are here, because every reading writes this row anyway.
    """CREATE TABLE power_meters (
    meter_key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    device_key INTEGER NOT NULL REFERENCES devices,
    type TEXT NOT NULL,
    name TEXT,
    capacity_wh REAL NOT NULL,
    -- the present state
    active INTEGER NOT NULL DEFAULT 1,
    voltage REAL DEFAULT 0,             -- NULL: the latest reading had none
    current_draw REAL DEFAULT 0,        -- likewise
    charge_pct REAL,                    -- NULL: not known
    state_us INTEGER,                   -- when that was; NULL: no reading yet
    live_us INTEGER,                    -- the instant of the last live reading,
    live_clock_us INTEGER,              -- and what the clock said: the same, or less if taken
    alert_level INTEGER NOT NULL DEFAULT 0,   -- 0 none, 1 low, 2 critical
    alerted_us INTEGER,                 -- when the event of that level was last recorded
    -- what a reading without a charge takes, beside the charge of the reading before it
    first_charge_pct REAL,              -- before the first reading; NULL: not known
    forgotten_us INTEGER,               -- readings up to this instant give later ones no charge
    -- the newest reading in time, and the newest one that has watts
    latest_us INTEGER,
    powered_us INTEGER,
    powered_wattage REAL,
    -- the outbox: no reading up to this instant waits, but for those in power_late
    acknowledged_us INTEGER,            -- NULL: none was ever acknowledged
    -- the hour under way, which is that of the newest reading: the columns of power_hourly
    hour INTEGER,
    closed INTEGER NOT NULL DEFAULT 0,
    reading_count INTEGER NOT NULL DEFAULT 0,
    power_count INTEGER NOT NULL DEFAULT 0,
    wattage_sum REAL NOT NULL DEFAULT 0,
    min_wattage REAL,
    max_wattage REAL,
    min_charge_pct REAL,
    max_charge_pct REAL,
    energy_out_wh REAL NOT NULL DEFAULT 0,
    energy_in_wh REAL NOT NULL DEFAULT 0,
    checksum INTEGER NOT NULL DEFAULT 0
)""",
    # serves list_meters, budget and report: the meters of a device
    "CREATE INDEX power_meters_by_device ON power_meters (device_key)",
    # A value is kept as a whole number of millionths (charge: hundredths) where that gives the
    # very same float back, and as that float where it does not: 30 bytes a reading, not 47.
    """CREATE TABLE power_readings (
    meter_key INTEGER NOT NULL REFERENCES power_meters,
    timestamp INTEGER NOT NULL,         -- microseconds since 1970
    voltage,                            -- NULL: not known
    current_draw,                       -- likewise
    charge_pct,                         -- likewise
    PRIMARY KEY (meter_key, timestamp)
) WITHOUT ROWID""",
    """CREATE TABLE power_hourly (
    meter_key INTEGER NOT NULL REFERENCES power_meters,
    hour INTEGER NOT NULL,              -- hours since 1970
    closed INTEGER NOT NULL,            -- 1: pruned but for its last reading with watts; 2: all
    reading_count INTEGER NOT NULL,
    power_count INTEGER NOT NULL,       -- of them, those that have watts
    wattage_sum REAL NOT NULL,
    min_wattage REAL,
    max_wattage REAL,
    min_charge_pct REAL,
    max_charge_pct REAL,
    energy_out_wh REAL NOT NULL,
    energy_in_wh REAL NOT NULL,
    checksum INTEGER NOT NULL,          -- see _HourSums
    PRIMARY KEY (meter_key, hour)
) WITHOUT ROWID""",
    # A sequence number is never used twice, so followers resume by it.
    """CREATE TABLE power_events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    device_key INTEGER NOT NULL REFERENCES devices,
    type TEXT NOT NULL,
    value REAL NOT NULL,
    timestamp INTEGER NOT NULL,
    note TEXT,
    meter_id TEXT,                      -- kept when its meter is deleted
    checksum INTEGER NOT NULL           -- see _event_checksum
)""",
    # serves get_events and the report: a device's newest events
    "CREATE INDEX power_events_by_device ON power_events (device_key, timestamp)",
    # The outbox: readings that came out of order, and what was deleted.
    """CREATE TABLE power_late (
    meter_key INTEGER NOT NULL REFERENCES power_meters,
    timestamp INTEGER NOT NULL,
    live INTEGER NOT NULL,              -- 1: it was live when it came
    PRIMARY KEY (meter_key, timestamp)
) WITHOUT ROWID""",
    """CREATE TABLE power_deletions (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    device_id TEXT NOT NULL,
    meter_id TEXT,
    since_us INTEGER,
    until_us INTEGER
)""",
    # How far each follower of the events has come.
    """CREATE TABLE power_cursors (
    name TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL
) WITHOUT ROWID""",
    "CREATE TABLE power_settings (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
    # Readings as plain numbers: the queries of this module read this view.
    """CREATE VIEW power_values AS SELECT meter_key, timestamp,
    CASE typeof(voltage) WHEN 'integer' THEN voltage / 1e6 ELSE voltage END AS voltage,
    CASE typeof(current_draw) WHEN 'integer' THEN current_draw / 1e6 ELSE current_draw END
        AS current_draw,
    CASE typeof(charge_pct) WHEN 'integer' THEN charge_pct / 1e2 ELSE charge_pct END AS charge_pct
    FROM power_readings""",
    # Every hour's statistics: the two places do not overlap.
    """CREATE VIEW power_hours AS
    SELECT meter_key, hour, closed, reading_count, power_count, wattage_sum, min_wattage,
        max_wattage, min_charge_pct, max_charge_pct, energy_out_wh, energy_in_wh, checksum
    FROM power_hourly
    UNION ALL
    SELECT meter_key, hour, closed, reading_count, power_count, wattage_sum, min_wattage,
        max_wattage, min_charge_pct, max_charge_pct, energy_out_wh, energy_in_wh, checksum
    FROM power_meters WHERE hour IS NOT NULL""",
    # The same two with text ids and ISO times, to be read in the sqlite3 shell.
    """CREATE VIEW readings AS
    SELECT m.id || ':' || v.timestamp AS id, m.id AS meter_id, v.voltage, v.current_draw,
        round(v.voltage * v.current_draw, 4) AS wattage, v.charge_pct,
        strftime('%Y-%m-%dT%H:%M:%S', v.timestamp / 1000000, 'unixepoch')
            || printf('.%06d+00:00', v.timestamp % 1000000) AS timestamp
    FROM power_values v JOIN power_meters m USING (meter_key)""",
    """CREATE VIEW statistics AS
    SELECT m.id AS meter_id,
        strftime('%Y-%m-%dT%H:%M:%S+00:00', h.hour * 3600, 'unixepoch') AS start,
        h.reading_count, h.wattage_sum / nullif(h.power_count, 0) AS avg_wattage, h.min_wattage,
        h.max_wattage, h.min_charge_pct, h.max_charge_pct, h.energy_out_wh, h.energy_in_wh, h.closed
    FROM power_hours h JOIN power_meters m USING (meter_key)""",
)
# --- Parameters -----------------------------------------------------------------------

_E = TypeVar("_E", bound=_Text)
_T = TypeVar("_T")
_K = TypeVar("_K")


class _Unchanged(Enum):
    """Stands for a parameter that was not given, where None is a value of its own."""

    UNCHANGED = "unchanged"

    def __repr__(self) -> str:
        return "UNCHANGED"


_UNCHANGED = _Unchanged.UNCHANGED


def _invalid(name: str, expected: str, value: object) -> InvalidValue:
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001  # an int of too many digits, or a __repr__ that raises
        shown = f"a {type(value).__name__}"
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return InvalidValue(f"{name}: expected {expected}, got {shown}")


def check_number(name: str, value: Any, low: float, high: float, unit: str) -> float:
    """Return the value as a float from low to high.

    Decimal and NumPy scalars are numbers too, truth values are not. Raises InvalidValue, which
    names the parameter, the limits with their unit, and the value.
    """
    is_real = isinstance(value, Real)
    is_decimal = isinstance(value, Number) and not isinstance(value, Complex)
    if (is_real or is_decimal) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if low <= number <= high:  # false for NaN
            return number + 0.0  # SQLite gives a negative zero back as zero
    if high == _MAX_FLOAT:
        raise _invalid(name, f"a finite number ({unit})", value)
    raise _invalid(name, f"a number from {low:g} to {high:g} ({unit})", value)


def check_count(name: str, value: Any) -> int:
    """Return the value as a whole number of at least 0. Raises InvalidValue."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 0:
        raise _invalid(name, "a whole number of at least 0", value)
    return min(int(value), _MAX_INTEGER)


def check_text(name: str, value: Any, limit: int = _MAX_TEXT) -> str:
    """Return the value as text that SQLite and JSON can carry. Raises InvalidValue."""
    if not isinstance(value, str) or not value.strip() or len(value) > limit:
        raise _invalid(name, f"text of 1 to {limit} characters", value)
    if re.search("[\0\ud800-\udfff]", value):
        raise _invalid(name, "text without NUL or lone surrogates", value)
    return str.__str__(value)  # of a subclass, such as an enum, what it is equal to


def check_duration(name: str, value: Any, unit_us: int, unit: str) -> int:
    """Return a length of time from 0 to 1e9 units as microseconds. Raises InvalidValue."""
    return round(check_number(name, value, 0, _MAX_DURATION, unit) * unit_us)


def check_iterable(name: str, value: Any) -> Iterable[Any]:
    """Return the value if it is an iterable other than text. Raises InvalidValue."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise _invalid(name, "an iterable, such as a list", value)
    return value


def _check_member(kind: type[_E], name: str, value: Any) -> _E:
    """Return the member of an enum that the value is, or is the text of."""
    try:
        return kind(value)
    except ValueError:
        raise _invalid(name, "one of " + ", ".join(kind), value) from None


def _check_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _invalid(name, "True or False", value)
    return value


def _check_path(name: str, value: Any) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in str(value):
        raise _invalid(name, "a path", value)
    return Path(value)


def _check_volts_or_amperes(name: str, value: Any, unit: str) -> float | None:
    if value is None:
        return None
    return check_number(name, value, -_MAX_ELECTRICAL, _MAX_ELECTRICAL, unit)


_MOST_CHARGE_PCT = 110.0  # a gauge may say a little more than full


def plausible_charge(charge_pct: float | None) -> float | None:
    """What a gauge means by a number: percent from 0 to 100, or None where it knows none.

    100 to 110 is full, for gauges overshoot a little. Below 0 and above 110 is no charge: gauges
    say -1 or 255 for one that they do not know, and clamped to 0 it would be a critical alert. For
    whatever takes numbers from devices; log_power() clamps, because its caller knows them.

    >>> [plausible_charge(number) for number in (82.5, 100.4, -1, 255, None)]
    [82.5, 100.0, None, None, None]
    """
    if charge_pct is None or not 0.0 <= charge_pct <= _MOST_CHARGE_PCT:
        return None
    return min(charge_pct, 100.0)


def _check_reading(
    voltage: Any, current: Any, charge_pct: Any
) -> tuple[float | None, float | None, float | None]:
    """Volts, amperes and percent of one reading, the charge clamped to 0..100."""
    limit = _MAX_ELECTRICAL
    # A float within its limits is what nearly every call brings; the comparison is false for NaN.
    if type(voltage) is not float or not -limit <= voltage <= limit:
        voltage = _check_volts_or_amperes("voltage", voltage, "V")
    if type(current) is not float or not -limit <= current <= limit:
        current = _check_volts_or_amperes("current", current, "A")
    if charge_pct is None:
        if voltage is None and current is None:
            raise _invalid(
                "voltage", "a number (V), since current and charge_pct are missing too", None
            )
    elif type(charge_pct) is not float or not 0.0 <= charge_pct <= 100.0:
        number = check_number("charge_pct", charge_pct, -_MAX_FLOAT, _MAX_FLOAT, "%")
        charge_pct = min(max(number, 0.0), 100.0)
    # Adding 0.0 turns a negative zero, which the packed form cannot keep, into zero.
    return (
        None if voltage is None else voltage + 0.0,
        None if current is None else current + 0.0,
        None if charge_pct is None else charge_pct + 0.0,
    )


def _check_device(
    device_id: Any,
    name: Any,
    shutdown_threshold: Any = 3.0,
    target_wh: Any = None,
    low: Any = None,
    critical: Any = None,
) -> DeviceRecord:
    """A device of checked values."""
    device = DeviceRecord(check_text("device_id", device_id), check_text("name", name))
    device.shutdown_threshold = check_number(
        "shutdown_threshold", shutdown_threshold, 0, _MAX_QUANTITY, "W"
    )
    if target_wh is not None:
        device.target_wh = check_number("target_wh", target_wh, 0, _MAX_QUANTITY, "Wh a day")
    if low is not None:
        device.low_battery_threshold = check_number("low_battery_threshold", low, 0, 100, "%")
    if critical is not None:
        device.critical_battery_threshold = check_number(
            "critical_battery_threshold", critical, 0, 100, "%"
        )
    low_pct, critical_pct = _thresholds(
        device.low_battery_threshold, device.critical_battery_threshold
    )
    if critical_pct < low_pct:
        return device
    if critical is None:
        expected = f"more than the critical threshold, {critical_pct:g} %"
        raise _invalid("low_battery_threshold", expected, low_pct)
    expected = f"less than the low threshold, {low_pct:g} %"
    raise _invalid("critical_battery_threshold", expected, critical_pct)


def _check_meter_name(name: Any) -> str | None:
    return None if name is None else check_text("name", name)


def _check_capacity(capacity_wh: Any) -> float:
    return check_number("capacity_wh", capacity_wh, 0, _MAX_QUANTITY, "Wh")


def _check_charge(charge_pct: Any) -> float | None:
    return None if charge_pct is None else check_number("charge_pct", charge_pct, 0, 100, "%")


# --- Times ----------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_ONE_MICROSECOND = timedelta(microseconds=1)


@functools.lru_cache(maxsize=1440)  # the minutes of a day: most readings of a history share them
def _iso_minute(minute: int) -> str:
    return (_EPOCH + timedelta(minutes=minute)).isoformat()[:17]


def from_microseconds(us: int) -> str:
    """ISO 8601 UTC text of a time in microseconds since 1970.

    >>> from_microseconds(1_700_000_000_000_001)
    '2023-11-14T22:13:20.000001+00:00'
    """
    minute, rest_us = divmod(us, _MINUTE_US)
    # Half the cost of a history is its timestamps, and formatting a float takes twice as long.
    # Adding ten minutes puts a "6" in front, so that the seconds always have two digits.
    digits = str(10 * _MINUTE_US + rest_us)
    return f"{_iso_minute(minute)}{digits[1:3]}.{digits[3:]}+00:00"


def _parse_iso(text: str) -> datetime:
    """Read ISO 8601 text; with Z, +0000 or any 1 to 9 decimals on Python 3.10 too."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        text = re.sub("[Zz]$", "+00:00", text.strip())
        text = re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", text)
        text = re.sub(r"[.,](\d+)", lambda found: f".{found[1][:6]:0<6}", text)
        return datetime.fromisoformat(text)


def to_microseconds(value: Any, name: str = "timestamp") -> int:
    """Whole microseconds since 1970 of a time from 1970 to 2200.

    The value is an aware datetime, ISO 8601 text with an offset, or epoch seconds. Raises
    InvalidValue, whose text names the parameter `name`.

    >>> to_microseconds("2023-11-14T22:13:20Z")
    1700000000000000
    """
    if type(value) is float and 0.0 <= value < _END_OF_TIME_US / SECOND_US:
        return round(value * SECOND_US)  # what most calls bring
    try:
        moment = _parse_iso(value) if isinstance(value, str) else value
        if isinstance(moment, datetime):
            us = (moment - _EPOCH) // _ONE_MICROSECOND  # TypeError if it has no offset
        else:
            seconds = check_number(name, moment, 0, _END_OF_TIME_US / SECOND_US, "s")
            us = round(seconds * SECOND_US)
    except (TypeError, ValueError, OverflowError):
        us = -1
    if not 0 <= us < _END_OF_TIME_US:
        expected = (
            "an aware datetime, ISO 8601 text with an offset, or epoch seconds, from 1970 to 2200"
        )
        raise _invalid(name, expected, value)
    return us


def _optional_microseconds(value: Any, name: str) -> int | None:
    return None if value is None else to_microseconds(value, name)


def _instants(since_us: int | None, until_us: int | None, until: Any) -> tuple[int, int]:
    """The first instant of a range and the one after its last; None is no limit.

    Raises InvalidValue, with `until` as it was given, for a range in which no instant can be.
    """
    start_us = 0 if since_us is None else since_us
    end_us = _END_OF_TIME_US if until_us is None else until_us
    if start_us >= end_us:
        raise _invalid("until", "a time after `since`", until)
    return start_us, end_us


# --- Statistics -----------------------------------------------------------------------

# A reading inside this module: microseconds since 1970, V, A, % of charge; None: not known.
_Sample = tuple[int, "float | None", "float | None", "float | None"]


class _Point(NamedTuple):
    """A reading that has watts, as a neighbour of another."""

    us: int
    watts: float


def rounded(value: float) -> float:
    """A result without the noise of binary fractions: 9 decimals, and no negative zero."""
    return round(value, 9) + 0.0


_pack_sample = struct.Struct("<qddd").pack
_pack_sums = struct.Struct("<qqqqddddddd").pack
_NAN = math.nan  # stands for None in a checksum: no stored value is a NaN


@dataclass(slots=True)
class _HourSums:
    """The statistics of one hour, in the order of power_hourly's columns.

    `checksum` is the CRC-32 of the hour's readings in order of time; of a closed hour, that of
    the readings it still has and then of the sums, which are the only copy of what was pruned.
    """

    reading_count: int = 0
    power_count: int = 0
    wattage_sum: float = 0.0
    min_wattage: float | None = None
    max_wattage: float | None = None
    min_charge_pct: float | None = None
    max_charge_pct: float | None = None
    energy_out_wh: float = 0.0
    energy_in_wh: float = 0.0
    checksum: int = 0

    def add(
        self, rows: Iterable[_Sample], previous: _Point | None, max_gap_us: int
    ) -> _Point | None:
        """Add readings that follow those of this hour in time; return the last that has watts.

        The energy between two neighbours is the trapezoid of their watts, booked with the later
        one, as energy out where it is positive and as energy in where it is negative; over more
        than max_gap it is not known and not booked. `previous` is the neighbour of the first row.
        A reading without watts counts, and its neighbours are neighbours of each other. Adding one
        by one gives the very same floats as adding all at once.

        >>> sums = _HourSums()
        >>> rows = [(0, 10.0, 1.0, 50.0), (1_800_000_000, 10.0, 2.0, 50.0)]  # half an hour
        >>> sums.add(rows, None, 5_400_000_000)
        _Point(us=1800000000, watts=20.0)
        >>> sums.energy_out_wh, sums.energy_in_wh
        (7.5, 0.0)
        """
        reading_count = self.reading_count
        power_count = self.power_count
        wattage_sum = self.wattage_sum
        min_wattage = math.inf if self.min_wattage is None else self.min_wattage
        max_wattage = -math.inf if self.max_wattage is None else self.max_wattage
        min_charge = math.inf if self.min_charge_pct is None else self.min_charge_pct
        max_charge = -math.inf if self.max_charge_pct is None else self.max_charge_pct
        checksum = self.checksum
        previous_us = -_END_OF_TIME_US if previous is None else previous.us
        previous_watts = 0.0 if previous is None else previous.watts
        for us, voltage, current_draw, charge in rows:
            reading_count += 1
            if charge is None:
                charge = _NAN  # of which every comparison is false
            if charge < min_charge:
                min_charge = charge
            if charge > max_charge:
                max_charge = charge
            if voltage is None or current_draw is None:
                volts = _NAN if voltage is None else voltage
                amperes = _NAN if current_draw is None else current_draw
                checksum = crc32(_pack_sample(us, volts, amperes, charge), checksum)
                continue
            checksum = crc32(_pack_sample(us, voltage, current_draw, charge), checksum)
            watts = voltage * current_draw
            power_count += 1
            wattage_sum += watts
            if watts < min_wattage:
                min_wattage = watts
            if watts > max_wattage:
                max_wattage = watts
            elapsed_us = us - previous_us
            if elapsed_us <= max_gap_us:
                energy_wh = (watts + previous_watts) * elapsed_us / (2 * HOUR_US)
                if energy_wh > 0.0:
                    self.energy_out_wh += energy_wh
                else:
                    self.energy_in_wh -= energy_wh
            previous_us = us
            previous_watts = watts
        self.reading_count = reading_count
        self.power_count = power_count
        self.wattage_sum = wattage_sum
        if power_count:
            self.min_wattage = min_wattage
            self.max_wattage = max_wattage
        if min_charge <= max_charge:  # of any charge that is known
            self.min_charge_pct = min_charge
            self.max_charge_pct = max_charge
        self.checksum = checksum
        return None if previous_us < 0 else _Point(previous_us, previous_watts)

    def seal(self, hour: int, closed: int, remaining: Iterable[_Sample]) -> None:
        """Set the checksum of a closed hour, of which these readings are still there."""
        kept = _HourSums()
        kept.add(remaining, None, 0)
        extremes = (self.min_wattage, self.max_wattage, self.min_charge_pct, self.max_charge_pct)
        packed = _pack_sums(
            hour,
            closed,
            self.reading_count,
            self.power_count,
            self.wattage_sum,
            *(_NAN if value is None else value for value in extremes),
            self.energy_out_wh,
            self.energy_in_wh,
        )
        self.checksum = crc32(packed, kept.checksum)


_SUM_COLUMNS = [field.name for field in dataclasses.fields(_HourSums)]

# Whether prune() has closed an hour.
_OPEN = 0
_CLOSED_WITH_LAST = 1  # its last reading that has watts is still there
_CLOSED = 2

# --- Alerts ---------------------------------------------------------------------------

_NO_ALERT, _LOW_ALERT, _CRITICAL_ALERT = range(3)
_ALERT_LEVELS = list(AlertLevel)  # by that number


def _next_alert_level(level: int, charge_pct: float, low: float, critical: float) -> int:
    """The alert level after a reading of that charge.

    It rises at or below a threshold, and falls ALERT_HYSTERESIS points above it, so that a noisy
    gauge does not raise the same alert again and again.

    >>> [_next_alert_level(level, 21.0, 20.0, 5.0) for level in (0, 1, 2)]
    [0, 1, 1]
    """
    if charge_pct <= critical:
        return _CRITICAL_ALERT
    if level == _CRITICAL_ALERT and charge_pct < critical + ALERT_HYSTERESIS:
        return _CRITICAL_ALERT
    if charge_pct <= low:
        return _LOW_ALERT
    if level != _NO_ALERT and charge_pct < low + ALERT_HYSTERESIS:
        return _LOW_ALERT
    return _NO_ALERT


# --- Budget and report ----------------------------------------------------------------


def counted_meters(meters: Iterable[PowerMeter]) -> list[PowerMeter]:
    """The meters of one device that count in its consumption.

    All of them, except that a ups counts only if the device has no main meter: a UPS in line with
    the mains supply passes on the same watts.
    """
    meters = list(meters)
    types = [meter.type for meter in meters]
    if MeterType.UPS not in types or MeterType.MAIN not in types:
        return meters
    return [meter for meter in meters if meter.type != MeterType.UPS]


def _consumption_wh(meters: Iterable[PowerMeter], sums: Mapping[str, MeterSums]) -> float:
    """What a device used: energy out less energy in over the meters that count, at least 0."""
    total_wh = 0.0
    for meter in counted_meters(meters):
        part = sums.get(meter.id)
        if part is not None:
            total_wh += part.energy_out_wh - part.energy_in_wh
    return max(total_wh, 0.0)


class _Battery(NamedTuple):
    """A battery as a runtime counts it."""

    capacity_wh: float
    charge_pct: float | None
    watts: float | None


def _runtime_hours(batteries: Iterable[_Battery]) -> float | None:
    """Hours until batteries are empty, 2 decimals: remaining watt-hours over watts.

    A battery of unknown capacity or charge does not count. None where none does, where the watts of
    one that does are not known, or where together they are not draining.

    >>> _runtime_hours([_Battery(capacity_wh=50.0, charge_pct=80.0, watts=5.0)])
    8.0
    """
    remaining_wh = 0.0
    total_watts = 0.0
    for battery in batteries:
        if battery.capacity_wh <= 0 or battery.charge_pct is None:
            continue
        if battery.watts is None:
            return None
        remaining_wh += battery.capacity_wh * battery.charge_pct / 100
        total_watts += battery.watts
    if total_watts <= 0:
        return None
    hours = remaining_wh / total_watts
    return round(hours, 2) if math.isfinite(hours) else None


def _present_watts(meter: PowerMeter) -> float | None:
    """Unrounded watts of the present state; None where they are not known."""
    return meter.voltage * meter.current_draw if meter.power_known else None


def make_budget(
    device: DeviceRecord, meters: Iterable[PowerMeter], last_day: Mapping[str, MeterSums]
) -> dict[str, Any]:
    """The power budget of one device, as power_budget_check() returns it.

    `meters` are all of the device's, in order of adding; `last_day` has, by meter id, the sums of
    the last 24 hours. Present figures are of active meters and of their present states, however
    old; energies are of all meters. A ups meter is counted if the device has no main meter. The
    keys, all of them always there:

    total_wattage: W, the sum of all meters, with sign
    battery_count, solar_count: meters of that type
    avg_charge_pct: %, the plain mean over batteries of known charge; None without one
    estimated_runtime_hours: as of estimate_runtime(); None if unknown or not draining
    states: the state of each meter, in order of adding
    load_wattage: W that main, battery and counted ups meters supply; negative ones count as 0
    solar_wattage: W of the solar meters
    net_wattage: W, solar less load
    energy_24h_wh: Wh out of main, battery and counted ups meters
    consumption_24h_wh: Wh that the device used
    target_wh: Wh a day; None without a target
    within_target: whether the consumption is at most the target; None without one
    below_shutdown_threshold: whether total_wattage is less than the device's shutdown_threshold:
        true without readings, false while the watts of an active meter are unknown
    unknown_power_count: active meters whose watts are unknown; the sums leave them out
    """
    meters = list(meters)
    active = [meter for meter in meters if meter.active]
    batteries: list[_Battery] = []
    unknown_count = 0
    solar_count = 0
    total_watts = 0.0
    solar_watts = 0.0
    for meter in active:
        watts = _present_watts(meter)
        if meter.type == MeterType.BATTERY:
            batteries.append(_Battery(meter.capacity_wh, meter.charge_pct, watts))
        elif meter.type == MeterType.SOLAR:
            solar_count += 1
            solar_watts += watts or 0.0
        if watts is None:
            unknown_count += 1
        else:
            total_watts += watts
    load_watts = 0.0
    for meter in counted_meters(active):
        if meter.type != MeterType.SOLAR:
            load_watts += max(_present_watts(meter) or 0.0, 0.0)
    load_wh = 0.0
    for meter in counted_meters(meters):
        if meter.type != MeterType.SOLAR and meter.id in last_day:
            load_wh += last_day[meter.id].energy_out_wh
    consumption_wh = rounded(_consumption_wh(meters, last_day))
    charges = [battery.charge_pct for battery in batteries if battery.charge_pct is not None]
    mean_charge = round(sum(charges) / len(charges), 2) if charges else None
    return {
        "total_wattage": round(total_watts, 4),
        "battery_count": len(batteries),
        "solar_count": solar_count,
        "avg_charge_pct": mean_charge,
        "estimated_runtime_hours": _runtime_hours(batteries),
        "states": [meter.state.value for meter in active],
        "load_wattage": round(load_watts, 4),
        "solar_wattage": round(solar_watts, 4),
        "net_wattage": round(solar_watts - load_watts, 4),
        "energy_24h_wh": rounded(load_wh),
        "consumption_24h_wh": consumption_wh,
        "target_wh": device.target_wh,
        "within_target": None if device.target_wh is None else consumption_wh <= device.target_wh,
        # Unknown is not zero: no alarm while the watts of a meter are missing.
        "below_shutdown_threshold": unknown_count == 0 and total_watts < device.shutdown_threshold,
        "unknown_power_count": unknown_count,
    }


def _shown_sums(sums: MeterSums) -> dict[str, Any]:
    """The fields of PowerStatistics from reading_count on."""
    return {
        "reading_count": sums.reading_count,
        "avg_wattage": sums.avg_wattage,
        "min_wattage": sums.min_wattage,
        "max_wattage": sums.max_wattage,
        "min_charge_pct": sums.min_charge_pct,
        "max_charge_pct": sums.max_charge_pct,
        "energy_out_wh": rounded(sums.energy_out_wh),
        "energy_in_wh": rounded(sums.energy_in_wh),
    }


def _meter_report(meter: PowerMeter, sums: MeterSums | None) -> dict[str, Any]:
    """One meter's part of a report."""
    report: dict[str, Any] = {
        "meter_id": meter.id,
        "name": meter.name,
        "type": meter.type.value,
        "reading_count": 0,
    }
    if sums is None or not sums.reading_count:
        return report
    report["current_state"] = meter.state.value
    for name, value in _shown_sums(sums).items():
        is_wattage = name.endswith("_wattage") and value is not None
        report[name] = rounded(value) if is_wattage else value
    report["energy_wh"] = rounded(sums.energy_out_wh - sums.energy_in_wh)
    return report


def _report_totals(
    meters: Sequence[PowerMeter], sums: Mapping[str, MeterSums]
) -> dict[str, float | None]:
    """The energies of a device over the period of a report, in Wh."""
    out_wh = dict.fromkeys(MeterType, 0.0)
    in_wh = dict.fromkeys(MeterType, 0.0)
    for meter in meters:
        part = sums.get(meter.id, MeterSums())
        out_wh[meter.type] += part.energy_out_wh
        in_wh[meter.type] += part.energy_in_wh
    main_wh = out_wh[MeterType.MAIN] - in_wh[MeterType.MAIN]
    ups_wh = out_wh[MeterType.UPS] - in_wh[MeterType.UPS]
    bought_wh = main_wh
    if not any(meter.type == MeterType.MAIN for meter in meters):
        bought_wh = ups_wh
    consumption_wh = _consumption_wh(meters, sums)
    self_sufficiency_pct = None
    if consumption_wh > 0:
        share = 100 * (1 - bought_wh / consumption_wh)
        self_sufficiency_pct = round(min(max(share, 0.0), 100.0), 2)
    return {
        "consumption_wh": rounded(consumption_wh),
        "main_wh": rounded(main_wh),
        "solar_wh": rounded(out_wh[MeterType.SOLAR] - in_wh[MeterType.SOLAR]),
        "battery_out_wh": rounded(out_wh[MeterType.BATTERY]),
        "battery_in_wh": rounded(in_wh[MeterType.BATTERY]),
        "ups_wh": rounded(ups_wh),
        "self_sufficiency_pct": self_sufficiency_pct,
    }


def make_report(
    device: DeviceRecord,
    meters: Iterable[PowerMeter],
    sums: Mapping[str, MeterSums],
    *,
    days: float,
    generated_us: int,
    events: Iterable[PowerEvent],
    event_count: int,
) -> dict[str, Any]:
    """The report of one device, as export_report() prints it.

    `meters` are all of the device's, in order of adding; `sums` has, by meter id, the sums of the
    period; `events` are the 20 newest of the period, newest first, of `event_count` in all.

    A meter without readings in the period has its first four keys alone. The others are
    current_state (now, whatever the period), wattages (W; the mean is over readings, not over time;
    None if none has watts), charges (%; None if none has a charge), and energies (Wh; energy_wh is
    out less in). Of the totals in Wh, main, solar and ups are out less in; consumption_wh is what
    the device used, and self_sufficiency_pct the share of it, 0 to 100, that neither main nor
    counted ups meters supplied, None without consumption. All is computed unrounded, and rounded to
    9 decimals at the end. Later versions may add keys; these stay.

    >>> device = DeviceRecord("gate-01", "Garden gate")
    >>> kind = MeterType.BATTERY
    >>> cell = PowerMeter("7846fc549e47", "gate-01", kind, 3.42, 1.9, 20.0, 16.5, "Cell")
    >>> sums = MeterSums(122, 122, 892.5, 6.498, 7.8, 16.5, 100.0, 14.63728, 0.0)
    >>> event = PowerEvent(
    ...     "7aab89d9cea5b2aa",
    ...     "gate-01",
    ...     PowerEventType.CHARGE_START,
    ...     0.0,
    ...     "2026-11-28T16:58:41.283168+00:00",
    ...     "panel back in the sun",
    ... )
    >>> report = make_report(
    ...     device,
    ...     [cell],
    ...     {cell.id: sums},
    ...     days=1,
    ...     generated_us=1_795_885_121_385_369,
    ...     events=[event],
    ...     event_count=1,
    ... )
    >>> print(json.dumps(report, indent=2))
    {
      "device_id": "gate-01",
      "device_name": "Garden gate",
      "period_days": 1,
      "generated_at": "2026-11-28T16:58:41.385369+00:00",
      "meters": [
        {
          "meter_id": "7846fc549e47",
          "name": "Cell",
          "type": "battery",
          "reading_count": 122,
          "current_state": "low",
          "avg_wattage": 7.31557377,
          "min_wattage": 6.498,
          "max_wattage": 7.8,
          "min_charge_pct": 16.5,
          "max_charge_pct": 100.0,
          "energy_out_wh": 14.63728,
          "energy_in_wh": 0.0,
          "energy_wh": 14.63728
        }
      ],
      "totals": {
        "consumption_wh": 14.63728,
        "main_wh": 0.0,
        "solar_wh": 0.0,
        "battery_out_wh": 14.63728,
        "battery_in_wh": 0.0,
        "ups_wh": 0.0,
        "self_sufficiency_pct": 100.0
      },
      "event_count": 1,
      "events": [
        {
          "id": "7aab89d9cea5b2aa",
          "device_id": "gate-01",
          "type": "charge_start",
          "value": 0.0,
          "timestamp": "2026-11-28T16:58:41.283168+00:00",
          "note": "panel back in the sun",
          "meter_id": null
        }
      ]
    }
    """
    meters = list(meters)
    return {
        "device_id": device.id,
        "device_name": device.name,
        # JSON knows no number but these two: a Decimal or a NumPy scalar becomes one of them.
        "period_days": days if isinstance(days, int) else float(days),
        "generated_at": from_microseconds(generated_us),
        "meters": [_meter_report(meter, sums.get(meter.id)) for meter in meters],
        "totals": _report_totals(meters, sums),
        "event_count": event_count,
        "events": [dataclasses.asdict(event) for event in events],
    }


# --- Rows -----------------------------------------------------------------------------

_Row = sqlite3.Row
_R = TypeVar("_R")


class _NamedRows(sqlite3.Cursor):
    """A cursor whose rows have names: `row["voltage"]`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self.row_factory = sqlite3.Row


def _select(conn: sqlite3.Connection, sql: str, values: Any = ()) -> list[_Row]:
    """The rows of a query, by name.

    Here and elsewhere no cursor has a name: it would live on in the frames of an exception that
    is kept, and hold its snapshot of the file, in which nothing more could be written.
    """
    return conn.cursor(_NamedRows).execute(sql, values).fetchall()


def _select_one(conn: sqlite3.Connection, sql: str, values: Any = ()) -> _Row | None:
    """The first row of a query, by name; None without any."""
    row: _Row | None = conn.cursor(_NamedRows).execute(sql, values).fetchone()
    return row


def _decoder(make: Callable[[_Row], _R]) -> Callable[[_Row], _R]:
    """Wrap a function of a row: a value that this module never writes is a _DamagedValue."""

    @functools.wraps(make)
    def decode(row: _Row) -> _R:
        try:
            return make(row)
        except (TypeError, ValueError, OverflowError, LookupError) as error:
            raise _DamagedValue(error) from error

    return decode


_DEVICE_COLUMNS = [field.name for field in dataclasses.fields(DeviceRecord)]
_DEVICE_SQL = f"SELECT device_key, {', '.join(_DEVICE_COLUMNS)} FROM devices"
_METER_SQL = """SELECT m.meter_key, m.id, d.id AS device_id, m.type, m.voltage, m.current_draw,
    m.capacity_wh, m.charge_pct, m.name, m.state_us, m.active, m.alert_level,
    d.low_battery_threshold, d.critical_battery_threshold
    FROM power_meters m JOIN devices d USING (device_key)"""
_EVENT_SQL = """SELECT e.sequence, e.id, d.id AS device_id, e.type, e.value, e.timestamp, e.note,
    e.meter_id, e.device_key, e.checksum FROM power_events e JOIN devices d USING (device_key)"""
_AGGREGATES = {"min": "min", "max": "max"}  # by the start of a name; others are added up
# In the order of MeterSums, which is made of them.
_SUMS_SQL = ", ".join(
    f"{_AGGREGATES.get(name[:3], 'sum')}({name}) AS {name}" for name in MeterSums._fields
)


@_decoder
def _device_of(row: _Row) -> DeviceRecord:
    return DeviceRecord(**{name: row[name] for name in _DEVICE_COLUMNS})


@_decoder
def _meter_of(row: _Row) -> PowerMeter:
    (
        _,
        id_,
        device_id,
        kind,
        voltage,
        current_draw,
        capacity_wh,
        charge_pct,
        name,
        state_us,
        active,
        alert_level,
        low_battery_threshold,
        critical_battery_threshold,
    ) = row  # the columns of _METER_SQL: a fleet's budget has 30,000 rows, and names take longer
    return PowerMeter(
        id=id_,
        device_id=device_id,
        type=MeterType(kind),
        voltage=0.0 if voltage is None else voltage,
        current_draw=0.0 if current_draw is None else current_draw,
        capacity_wh=capacity_wh,
        charge_pct=charge_pct,
        name=name,
        updated_at=None if state_us is None else from_microseconds(state_us),
        low_battery_threshold=low_battery_threshold,
        critical_battery_threshold=critical_battery_threshold,
        active=bool(active),
        power_known=voltage is not None and current_draw is not None,
        alert_level=_ALERT_LEVELS[alert_level],
    )


@_decoder
def _event_of(row: _Row) -> PowerEvent:
    return PowerEvent(
        id=row["id"],
        device_id=row["device_id"],
        type=PowerEventType(row["type"]),
        value=row["value"],
        timestamp=from_microseconds(row["timestamp"]),
        note=row["note"],
        meter_id=row["meter_id"],
    )


def _sums_of(values: Iterable[Any]) -> MeterSums:
    """The columns of _SUMS_SQL as sums."""
    sums = MeterSums(*values)
    # min() and max() pass on whatever they find; the result of sum() is always a number.
    extremes = (sums.min_wattage, sums.max_wattage, sums.min_charge_pct, sums.max_charge_pct)
    if any(value is not None and not isinstance(value, float) for value in extremes):
        raise _DamagedValue("no number among statistics")
    return sums


@_decoder
def _statistics_of(row: _Row) -> PowerStatistics:
    meter_id, start_hour, *values = row
    start = from_microseconds(start_hour * HOUR_US)
    return PowerStatistics(meter_id=meter_id, start=start, **_shown_sums(_sums_of(values)))


@_decoder
def _deletion_of(row: _Row) -> Deletion:
    since_us = row["since_us"]
    until_us = row["until_us"]
    return Deletion(
        sequence=row["sequence"],
        kind=row["kind"],
        device_id=row["device_id"],
        meter_id=row["meter_id"],
        since=None if since_us is None else from_microseconds(since_us),
        until=None if until_us is None else from_microseconds(until_us),
    )


def _readings_of(meter_id: str, rows: Iterable[_Sample]) -> list[PowerReading]:
    """Readings as records; one loop without calls, because a day at 1 Hz has 86,400 of them."""
    readings = []
    try:
        for us, voltage, current_draw, charge in rows:
            wattage = None
            if voltage is not None and current_draw is not None:
                wattage = round(voltage * current_draw, 4)
            readings.append(
                PowerReading(
                    f"{meter_id}:{us}",
                    meter_id,
                    voltage,
                    current_draw,
                    wattage,
                    charge,
                    from_microseconds(us),
                )
            )
    except (TypeError, ValueError, OverflowError) as error:
        raise _DamagedValue(error) from error
    return readings


_SAMPLES_SQL = "SELECT timestamp, voltage, current_draw, charge_pct FROM power_values"


def _not_found(kind: str, id_: str) -> NotFound:
    maker = {"device": "register_device", "meter": "add_meter"}[kind]
    message = f"{kind}_id: no {kind} has the id {id_!r}: {maker}() makes one"
    return NotFound(message, kind, id_)


def _device_row(conn: sqlite3.Connection, device_id: Any) -> _Row:
    """The row of _DEVICE_SQL of the device with that id. Raises NotFound."""
    id_ = check_text("device_id", device_id)
    row = _select_one(conn, f"{_DEVICE_SQL} WHERE id = ?", (id_,))
    if row is None:
        raise _not_found("device", id_)
    return row


def _meter_row(conn: sqlite3.Connection, meter_id: Any) -> _Row:
    """The row of _METER_SQL of the meter with that id. Raises NotFound."""
    id_ = check_text("meter_id", meter_id)
    row = _select_one(conn, f"{_METER_SQL} WHERE m.id = ?", (id_,))
    if row is None:
        raise _not_found("meter", id_)
    return row


def _device_key(conn: sqlite3.Connection, device_id: Any) -> int:
    return int(_device_row(conn, device_id)["device_key"])


def _meter_key(conn: sqlite3.Connection, meter_id: Any) -> int:
    return int(_meter_row(conn, meter_id)["meter_key"])


def _device_record(conn: sqlite3.Connection, device_id: Any) -> DeviceRecord:
    return _device_of(_device_row(conn, device_id))


def _meter_record(conn: sqlite3.Connection, meter_id: Any) -> PowerMeter:
    return _meter_of(_meter_row(conn, meter_id))


def _setting(conn: sqlite3.Connection, name: str, kind: type[_T]) -> _T:
    """A setting of the file. Raises _DamagedValue where it is missing or of another type."""
    found = conn.execute("SELECT value FROM power_settings WHERE name = ?", (name,)).fetchone()
    if found is not None:
        (value,) = found
        if isinstance(value, kind):
            return value
    raise _DamagedValue(f"the setting {name}")


# --- Transaction ----------------------------------------------------------------------


def _current_task() -> object:
    """The asyncio task that runs in this thread; None outside of tasks.

    It is asked for only if the program has imported asyncio, which this module never does.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        return asyncio.current_task()
    except (RuntimeError, AttributeError):  # no loop runs here; or asyncio is half imported
        return None


class _Level:
    """One level of a transaction: a call of this module, or a block of the caller's.

    A call lives as long as its frame is on its thread's stack. A block lives as long as its
    lease: an object that the with statement holds, and that is freed when the statement is left,
    however that happens.
    """

    __slots__ = (
        "__weakref__",
        "before_joining",
        "frame",
        "gate",
        "is_begun",
        "is_open",
        "lease",
        "savepoint",
        "task",
        "thread",
    )

    def __init__(self, frame: FrameType | None = None) -> None:
        self.thread = threading.get_ident()
        self.task = _current_task()
        self.frame = frame
        self.lease: weakref.ref[Any] | None = None
        self.is_open = False  # the caller's code runs: its calls may join
        self.is_begun = False  # BEGIN or SAVEPOINT has been executed
        self.savepoint = ""  # "" on the outermost level
        self.before_joining: Callable[[], None] | None = None
        self.gate = threading.Lock()  # closed while it waits for its turn

    def is_alive(self) -> bool:
        if self.lease is not None:
            return self.lease() is not None
        if self.frame is None:
            return False
        frame = sys._current_frames().get(self.thread)
        while frame is not None:
            if frame is self.frame:
                return True
            frame = frame.f_back
        return False


class _Transaction:
    """The state of the writing connection, and the only place that begins, commits and rolls back.

    An exception may come between any two bytecodes: Ctrl-C, or a signal handler that raises. So
    the turn to write is taken by one dict.setdefault(), which takes it and says whose it is in a
    single step; no lock is held while other code runs; and a level whose code is gone without
    having ended it is rolled back by the next call that finds it, in any thread.
    """

    def __init__(
        self, connection: sqlite3.Connection, path: Path, check_place: Callable[[], None]
    ) -> None:
        self.connection = connection
        self._path = path
        self._check_place = check_place
        self._turn: dict[str, _Level] = {}  # "holder": the outermost level, while there is one
        self._levels: list[_Level] = []  # outermost first
        self._waiting: list[_Level] = []  # for the turn, longest first
        self._cleaning = threading.Lock()  # held while a transaction is ended for its holder

    def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Return what work(connection) returns, in a transaction of its own or in the caller's."""
        level = _Level(sys._getframe())
        try:
            try:
                self.enter(level)
                result = work(self.connection)
                self.leave(level)
                return result
            except BaseException:
                self.abandon(level)
                raise
        except BaseException:  # again, for an interrupt in the line above; it does no harm
            self.abandon(level)
            raise
        finally:
            level.frame = None  # the frame holds the level: let neither keep the other

    def lend(self, work: Callable[[], _T], before_joining: Callable[[], None]) -> _T:
        """Run code of the caller's in the middle of a call, and let its own calls join.

        Each of them runs before_joining() first. Raises PowerManagerError if that code leaves a
        transaction() open.
        """
        level = self._levels[-1]
        level.before_joining = before_joining
        level.is_open = True
        try:
            result = work()
        finally:
            level.is_open = False
        if not self._levels or self._levels[-1] is not level:
            raise PowerManagerError(
                f"{self._path}: the rows given to log_many() left a transaction() open: "
                "leave it before the next row"
            )
        return result

    def is_mine(self) -> bool:
        """Whether this thread and task may read in a transaction that is open."""
        holder = self._turn.get("holder")
        if holder is None or holder.thread != threading.get_ident():
            return False
        if not holder.is_alive():
            self.abandon(holder)
            return False
        return holder.task is _current_task() and bool(self._levels) and self._levels[-1].is_open

    def hold(self, what: str, work: Callable[[], None]) -> None:
        """Run work() while nothing is being written through this connection.

        Raises PowerManagerError, which names `what`, inside a transaction of this thread.
        """
        level = _Level(sys._getframe())
        try:
            if self._take_turn(level) is not level:
                raise PowerManagerError(
                    f"{self._path}: {what} inside a transaction: leave it first"
                )
            work()
        finally:
            self.abandon(level)
            level.frame = None

    def enter(self, level: _Level) -> None:
        """Begin a transaction, or a savepoint in the one that this thread and task has open.

        Raises PowerManagerError for a call that may not join, StorageError if another thread or
        process goes on writing for BUSY_TIMEOUT.
        """
        holder = self._take_turn(level)
        if holder is level:
            if self.connection.in_transaction:  # left by an interrupt
                self.connection.execute("ROLLBACK")
            self._levels = [level]
            self.connection.execute("BEGIN IMMEDIATE")
            level.is_begun = True
        else:
            self._join(holder, level)

    def leave(self, level: _Level) -> None:
        """Commit, or release the savepoint; the level must be the innermost one."""
        level.is_open = False
        if not self._levels or self._levels[-1] is not level:
            raise PowerManagerError(
                f"{self._path}: a transaction() inside this one has not ended, or this one has "
                "been rolled back: leave inner ones first"
            )
        self._check_unbroken()
        if level.savepoint:
            self.connection.execute(f"RELEASE {level.savepoint}")
            self._levels.pop()
            return
        self._check_place()
        self.connection.execute("COMMIT")
        self._levels.clear()
        self._give_turn()

    def abandon(self, level: _Level) -> None:
        """Roll back a level and those inside it, if it has not ended; else do nothing."""
        if self._turn.get("holder") is level:
            self._end(level)
            return
        if level not in self._levels:
            return
        if level.is_begun and self.connection.in_transaction:
            try:
                self.connection.execute(f"ROLLBACK TO {level.savepoint}")
                self.connection.execute(f"RELEASE {level.savepoint}")
            except sqlite3.Error:
                # An interrupt came after the release: there is no savepoint to go back to.
                self.connection.execute("ROLLBACK")
        del self._levels[self._levels.index(level) :]

    def drop(self, level: _Level) -> None:
        """Abandon the level of a block that is gone; nothing where it has ended as it should.

        The garbage collector may call this anywhere, so it must not wait for a lock.
        """
        if self._turn.get("holder") is level and self._cleaning.locked():
            return  # the next call finds it
        self.abandon(level)

    def _end(self, holder: _Level) -> None:
        """End the transaction of a holder, and give up the turn, if it still has it."""
        with self._cleaning:
            if self._turn.get("holder") is not holder:
                return
            # Only C calls stand before the rollback: an interrupt in a Python call would skip it.
            try:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
            except sqlite3.ProgrammingError:
                pass  # close() has closed it
            finally:
                self._levels.clear()
                self._give_turn()

    def _take_turn(self, level: _Level) -> _Level:
        """Wait for the turn to write; return its holder: this level, or one of this thread's."""
        holder = self._turn.get("holder")
        if holder is None and not self._waiting:
            holder = self._turn.setdefault("holder", level)
        if holder is level:
            return level
        if holder is not None and holder.thread == level.thread and holder.is_alive():
            return holder
        return self._wait_for_turn(level)

    def _wait_for_turn(self, level: _Level) -> _Level:
        """Queue for the turn: a thread that writes in a loop must not starve the others.

        The gate is only a hint that the turn is free: a waiter that misses it looks again soon.
        """
        for other in list(self._waiting):
            # A signal handler's call would wait for ever for the call that it has interrupted.
            if other.thread == level.thread and other.is_alive():
                raise self._reentered()
        deadline = time.monotonic() + BUSY_TIMEOUT
        level.gate.acquire(blocking=False)
        self._waiting.append(level)
        try:
            while True:
                if self._first_waiting() is level:
                    holder = self._turn.setdefault("holder", level)
                    if holder is level:
                        return level
                    if not holder.is_alive():
                        self.abandon(holder)
                        continue
                if time.monotonic() >= deadline:
                    raise StorageError(
                        self._path,
                        f"another thread of this program has been writing for {BUSY_TIMEOUT:g} s: "
                        "try again, or end its transaction()",
                        "SQLITE_BUSY",
                    )
                level.gate.acquire(timeout=0.02)
        finally:
            if level in self._waiting:
                self._waiting.remove(level)

    def _first_waiting(self) -> _Level:
        """The first level in the queue, without those whose code is gone."""
        while not (first := self._waiting[0]).is_alive():
            with contextlib.suppress(ValueError):  # another thread has just done the same
                self._waiting.remove(first)
        return first

    def _give_turn(self) -> None:
        """Give up the turn, and wake the next level in the queue."""
        self._turn.pop("holder", None)
        for first in self._waiting[:1]:
            with contextlib.suppress(RuntimeError):  # it is open already
                first.gate.release()

    def _join(self, holder: _Level, level: _Level) -> None:
        if holder.task is not level.task:
            raise PowerManagerError(
                f"{self._path}: a transaction() that was entered outside this asyncio task is open "
                "in this thread: leave it before awaiting, or use a PowerManager for each task"
            )
        while self._levels and not self._levels[-1].is_alive():
            self.abandon(self._levels[-1])
        innermost = self._levels[-1] if self._levels else holder
        if not innermost.is_open:
            raise self._reentered()
        if innermost.before_joining is not None:
            innermost.before_joining()
        self._check_unbroken()
        level.savepoint = f"level_{len(self._levels)}"
        self._levels.append(level)
        self.connection.execute(f"SAVEPOINT {level.savepoint}")
        level.is_begun = True

    def _reentered(self) -> PowerManagerError:
        return PowerManagerError(
            f"{self._path}: called in the middle of another call of this thread, as from a "
            "signal handler: set a flag there, and call when the other call has returned"
        )

    def _check_unbroken(self) -> None:
        """On some errors, such as a full disk, SQLite itself rolls back: the rest would commit."""
        if not self.connection.in_transaction:
            raise StorageError(
                self._path,
                "an earlier error has rolled this transaction back, or other code has ended it: "
                "start another",
            )


class _LeaveBlock:
    """`__exit__` of _Block, as a descriptor.

    A with statement looks `__exit__` up before it calls `__enter__`, and holds what it got until
    the block is left. What it gets here is a C object that is passed to nothing. So when Ctrl-C
    comes just as the block is being left, and the exception is kept with all its frames, none of
    them holds that object: it goes, and takes the transaction with it. With an ordinary method,
    `self` in a kept frame would hold the transaction open, and later calls would join it.
    """

    def __get__(self, block: _Block[Any] | None, owner: object = None) -> Any:
        if block is None:
            return self  # contextlib.ExitStack takes it from the class
        leave = functools.partial(_leave_block, block.transaction, block.level, block.path)
        if block.level.lease is None:  # the first look-up is the with statement's
            block.take_lease(leave)
        return leave

    def __call__(
        self,
        block: _Block[Any],
        exc_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _leave_block(block.transaction, block.level, block.path, exc_type, error, traceback)


def _drop_level(transaction: _Transaction, level: _Level, _: object) -> None:
    transaction.drop(level)


def _leave_block(
    transaction: _Transaction,
    level: _Level,
    path: Path | None,
    exc_type: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> None:
    """End a block: commit, or roll back where it raised; translate SQLite's errors if asked to."""
    try:
        if error is None:
            transaction.leave(level)
        else:
            transaction.abandon(level)
    except sqlite3.Error as failure:
        transaction.abandon(level)
        raise _storage_error(failure, transaction._path) from failure
    except BaseException:
        transaction.abandon(level)
        raise
    finally:
        level.lease = None  # its callback would run now, and swallow a Ctrl-C that comes in it
    if path is not None and isinstance(error, sqlite3.Error):
        raise _storage_error(error, path) from error


class _Block(Generic[_T]):
    """What transaction() and connection() return: a context manager, to be entered once.

    `path`: translate SQLite's errors that the block raises, as those of that file.
    """

    def __init__(self, transaction: _Transaction, value: _T, path: Path | None) -> None:
        self.transaction = transaction
        self.value = value
        self.path = path
        self.level = _Level()

    def __enter__(self) -> _T:
        transaction = self.transaction
        level = self.level
        if level.is_begun:
            raise PowerManagerError("this transaction was used before: call the method again")
        level.thread = threading.get_ident()
        level.task = _current_task()
        if level.lease is None or level.lease() is None:
            self.take_lease(self)  # contextlib.ExitStack keeps this object itself
        try:
            transaction.enter(level)
            level.is_open = True
            return self.value
        except sqlite3.Error as error:
            transaction.abandon(level)
            raise _storage_error(error, transaction._path) from error
        except BaseException:
            transaction.abandon(level)
            raise

    def take_lease(self, lease: Any) -> None:
        """Let the block live as long as that object."""
        drop = functools.partial(_drop_level, self.transaction, self.level)
        self.level.lease = weakref.ref(lease, drop)

    __exit__ = _LeaveBlock()


class _Readers:
    """Connections for reading beside the writing one; each serves one call at a time."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._idle: list[sqlite3.Connection] = []
        self._is_closed = False

    def run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Return what work(connection) returns; it sees one snapshot of what is committed."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            connection.execute("BEGIN")
            return work(connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if len(self._idle) < _MAX_IDLE_READERS:
                self._idle.append(connection)
            else:
                connection.close()
            if self._is_closed:  # by another thread, meanwhile
                self.close()

    def close(self) -> None:
        """Close every connection, those in use when their call has ended."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().close()


# --- Readings -------------------------------------------------------------------------


@dataclass(slots=True)
class _MeterState:
    """A meter's row while readings go into it; the fields are columns of _METER_STATE_SQL."""

    meter_key: int
    device_key: int
    id: str
    type: str
    name: str | None
    low_battery_threshold: float | None
    critical_battery_threshold: float | None
    max_gap_us: int
    active: int
    voltage: float | None
    current_draw: float | None
    charge_pct: float | None
    state_us: int | None
    live_us: int | None
    live_clock_us: int | None
    alert_level: int
    alerted_us: int | None
    first_charge_pct: float | None
    forgotten_us: int | None
    latest_us: int | None
    powered_us: int | None
    powered_wattage: float | None
    acknowledged_us: int | None
    hour: int | None
    closed: int
    sums: _HourSums

    @property
    def newest_us(self) -> int:
        """The instant of the newest reading; -1 where there is none."""
        return -1 if self.latest_us is None else self.latest_us

    def powered(self) -> _Point | None:
        """The newest reading that has watts."""
        if self.powered_us is None or self.powered_wattage is None:
            return None
        return _Point(self.powered_us, self.powered_wattage)

    def passed_on(self, from_us: int, charge_pct: float | None, to_us: int) -> float | None:
        """The charge that a reading gives to a later one without any.

        None past the time at which update_meter() forgot the charge. Only the latest such time is
        kept: what came without a charge after an earlier one is stored as unknown.
        """
        if self.forgotten_us is not None and from_us <= self.forgotten_us < to_us:
            return None
        return charge_pct


# What a reading changes in its meter's row.
_MUTABLE_COLUMNS = [
    "active",
    "voltage",
    "current_draw",
    "charge_pct",
    "state_us",
    "live_us",
    "live_clock_us",
    "alert_level",
    "alerted_us",
    "latest_us",
    "powered_us",
    "powered_wattage",
    "hour",
    "closed",
]
_STATE_FIELDS = [field.name for field in dataclasses.fields(_MeterState)][:-1]
_STATE_SOURCES = {
    "low_battery_threshold": "d.low_battery_threshold",
    "critical_battery_threshold": "d.critical_battery_threshold",
    "max_gap_us": "(SELECT value FROM power_settings WHERE name = 'max_gap_us')",
}
# The columns are those of the two dataclasses in their order, so a row is what they are made of.
_METER_STATE_SQL = f"""SELECT {", ".join(_STATE_SOURCES.get(n, "m." + n) for n in _STATE_FIELDS)},
    {", ".join("m." + name for name in _SUM_COLUMNS)}
    FROM power_meters m JOIN devices d USING (device_key)"""
_SAVE_STATE_SQL = f"""UPDATE power_meters SET
    {", ".join(f"{name} = ?" for name in _MUTABLE_COLUMNS + _SUM_COLUMNS)} WHERE meter_key = ?"""
_SAVE_HOUR_SQL = f"""REPLACE INTO power_hourly (meter_key, hour, closed, {", ".join(_SUM_COLUMNS)})
    VALUES ({", ".join("?" * (3 + len(_SUM_COLUMNS)))})"""
_STORE_SQL = """INSERT INTO power_readings (meter_key, timestamp, voltage, current_draw, charge_pct)
    VALUES (?, ?, ?, ?, ?)"""
# The expressions of an UPDATE read the values from before it. A charge that is unknown already
# leaves nothing to forget.
_FORGET_CHARGE_SQL = """UPDATE power_meters SET charge_pct = NULL, first_charge_pct = NULL,
    forgotten_us = CASE WHEN charge_pct IS NULL THEN forgotten_us ELSE latest_us END
    WHERE meter_key = ?"""
_ADD_EVENT_SQL = """INSERT INTO power_events
    (sequence, id, device_key, type, value, timestamp, note, meter_id, checksum)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""

_mutable_values_of = attrgetter(*_MUTABLE_COLUMNS)
_sums_values_of = attrgetter(*_SUM_COLUMNS)


def _load_state(conn: sqlite3.Connection, where: str, value: Any) -> _MeterState | None:
    row = conn.execute(f"{_METER_STATE_SQL} WHERE {where} = ?", (value,)).fetchone()
    if row is None:
        return None
    values = list(row)
    split = len(_STATE_FIELDS)
    fields = [*values[:split], _HourSums(*values[split:])]
    state = _MeterState(*fields)
    if state.hour is not None:
        _check_hour(state.hour)
    return state


def _save_state(conn: sqlite3.Connection, state: _MeterState) -> None:
    values = (*_mutable_values_of(state), *_sums_values_of(state.sums), state.meter_key)
    conn.execute(_SAVE_STATE_SQL, values)


def _save_hour(
    conn: sqlite3.Connection, meter_key: int, hour: int, closed: int, sums: _HourSums
) -> None:
    conn.execute(_SAVE_HOUR_SQL, (meter_key, hour, closed, *_sums_values_of(sums)))


def _packed(values: Iterable[float | None], scale: float) -> list[float | None]:
    """Values as the file keeps them: whole numbers of parts where those give the same floats."""
    return [
        None
        if value is None
        else whole
        if (whole := round(value * scale)) / scale == value
        else value
        for value in values
    ]


def _store(conn: sqlite3.Connection, meter_key: int, rows: Sequence[_Sample]) -> None:
    """Put rows into power_readings; none of them may be there."""
    instants, voltages, currents, charges = zip(*rows)
    packed = zip(
        repeat(meter_key),
        instants,
        _packed(voltages, 1e6),
        _packed(currents, 1e6),
        _packed(charges, 1e2),
    )
    conn.executemany(_STORE_SQL, packed)


def _event_checksum(sequence: int, device_key: int, event: PowerEvent, us: int) -> int:
    """The CRC-32 of all that an event's row says."""
    values = (
        sequence,
        device_key,
        event.id,
        event.type.value,
        event.value,
        us,
        event.note,
        event.meter_id,
    )
    return crc32(repr(values).encode())


def _add_event(conn: sqlite3.Connection, device_key: int, event: PowerEvent, us: int) -> None:
    sequence = _last_sequence(conn) + 1
    conn.execute(
        _ADD_EVENT_SQL,
        (
            sequence,
            event.id,
            device_key,
            event.type.value,
            event.value,
            us,
            event.note,
            event.meter_id,
            _event_checksum(sequence, device_key, event, us),
        ),
    )


@dataclass(slots=True)
class _Arrival:
    """One reading on its way into the file, with checked values."""

    number: int  # of its row, from 1
    us: int
    voltage: float | None
    current_draw: float | None
    charge_pct: float | None
    live: bool
    needs_charge: bool  # None was given, so it takes the charge of the reading before

    def sample(self) -> _Sample:
        return self.us, self.voltage, self.current_draw, self.charge_pct

    def repeats(self, earlier: _Sample) -> bool:
        """Whether this is that reading again; a charge that is not given may be any."""
        _, voltage, current_draw, charge_pct = earlier
        if (self.voltage, self.current_draw) != (voltage, current_draw):
            return False
        return self.needs_charge or self.charge_pct == charge_pct


class _Chunk:
    """Readings that log_many has pulled and not yet stored, by meter."""

    def __init__(self) -> None:
        self.size = 0
        self.by_meter: dict[str, list[_Arrival]] = {}
        self._untimed: list[_Arrival] = []  # given without a time: pulled then
        self._pulled_us = 0  # when the last of those was pulled

    def add_untimed(self, meter_id: Any, arrival: _Arrival) -> None:
        """Append a reading that has the time of pulling it. Raises InvalidValue for a bad id."""
        self.add(meter_id, arrival)
        self._untimed.append(arrival)
        self._pulled_us = arrival.us

    def wait_until(self, now_us: int) -> None:
        """Move readings given without a time forward by the time spent waiting for the file.

        Otherwise two processes that log the same meter would make each other's readings late: one
        would take its time before the other, and store after it.
        """
        waited_us = now_us - self._pulled_us
        if waited_us <= 0:
            return
        for arrival in self._untimed:
            arrival.us += waited_us
        self._pulled_us = now_us

    def has_untimed(self) -> bool:
        """Whether any reading was given without a time."""
        return bool(self._untimed)

    def add(self, meter_id: Any, arrival: _Arrival) -> None:
        """Append a reading to those of its meter. Raises InvalidValue for a bad id."""
        arrivals = self.by_meter.get(meter_id) if type(meter_id) is str else None
        if arrivals is None:
            # One meter has one entry, whatever kind of text names it.
            arrivals = self.by_meter.setdefault(check_text("meter_id", meter_id), [])
        arrivals.append(arrival)
        self.size += 1


class _ReadingWriter:
    """Writes readings into the file, inside a transaction; every reading goes through it.

    write() may be called several times, finish() once at the end: it computes the hours anew that
    readings came into out of order.
    """

    def __init__(
        self,
        conn: sqlite3.Connection,
        alert_types: frozenset[str] = frozenset(),
        alert_repeat_us: int | None = None,
    ) -> None:
        self._conn = conn
        self._alert_types = alert_types
        self._alert_repeat_us = alert_repeat_us
        self._open_hours: dict[tuple[int, int], int] = {}  # to be computed anew: max_gap by hour
        self._events: list[tuple[int, int, int, PowerEvent]] = []  # row number, device, us, event
        # By meter, the instants of readings that were given the charge of the one before; a later
        # chunk may bring another one before.
        self._filled: dict[int, array[int]] = {}
        self._disturbed: set[int] = set()  # meters for which one did
        self.stored_count = 0
        self.refused_count = 0  # recorded readings of hours that prune() has closed
        self.conflict_count = 0  # those with the time of another reading and other values

    def write(self, chunk: _Chunk) -> None:
        """Store a chunk's readings, with present states, statistics and alerts. Raises NotFound."""
        states: list[tuple[_MeterState, list[_Arrival]]] = []
        for meter_id, arrivals in chunk.by_meter.items():
            state = _load_state(self._conn, "m.id", meter_id)
            if state is None:
                error = _not_found("meter", meter_id)
                message = f"row {arrivals[0].number}: {error}"
                raise NotFound(message, error.kind, error.id)
            states.append((state, arrivals))
        for state, arrivals in states:
            self._write_meter(state, arrivals)
        self._add_events()

    def _add_events(self) -> None:
        """Record the alerts of the readings just stored, in order of arrival."""
        self._events.sort(key=lambda entry: entry[0])
        for _, device_key, us, event in self._events:
            _add_event(self._conn, device_key, event, us)
        self._events.clear()

    def write_one(self, meter_id: str, arrival: _Arrival) -> _Sample:
        """Store one reading and finish; return it as the file has it. Raises NotFound."""
        id_ = check_text("meter_id", meter_id)
        state = _load_state(self._conn, "m.id", id_)
        if state is None:
            raise _not_found("meter", id_)
        is_next = arrival.us > state.newest_us and state.state_us == state.latest_us
        if arrival.needs_charge and is_next:
            arrival.charge_pct = state.charge_pct  # the present state is the reading before it
            arrival.needs_charge = False
        if self._is_plain(state, arrival):
            self._append_plain(state, arrival)
            return arrival.sample()
        self._write_meter(state, [arrival])
        self._add_events()
        self.finish()
        if not self.stored_count:
            sql = f"{_SAMPLES_SQL} WHERE meter_key = ? AND timestamp = ?"
            found = self._conn.execute(sql, (state.meter_key, arrival.us)).fetchone()
            if found is not None:
                us, voltage, current_draw, charge_pct = found
                return us, voltage, current_draw, charge_pct
            if arrival.needs_charge:
                from_us, charge_pct = _charge_before(self._conn, state, arrival.us)
                arrival.charge_pct = state.passed_on(from_us, charge_pct, arrival.us)
        return arrival.sample()

    def _is_plain(self, state: _MeterState, arrival: _Arrival) -> bool:
        """Whether a reading is what nearly all are: the next of the hour under way, no alert."""
        if arrival.needs_charge or arrival.us <= state.newest_us or state.closed:
            return False
        if arrival.us // HOUR_US != state.hour:
            return False
        if state.acknowledged_us is not None and arrival.us <= state.acknowledged_us:
            return False
        if state.type not in self._alert_types or arrival.charge_pct is None:
            return True
        low, _ = _thresholds(state.low_battery_threshold, state.critical_battery_threshold)
        return not state.alert_level and arrival.charge_pct > low

    def _append_plain(self, state: _MeterState, arrival: _Arrival) -> None:
        """Store a plain reading, by the rules of _write_meter() without what it cannot need."""
        sample = arrival.sample()
        us, voltage, current_draw, charge_pct = sample
        packed = (
            state.meter_key,
            us,
            *_packed((voltage, current_draw), 1e6),
            *_packed((charge_pct,), 1e2),
        )
        self._conn.execute(_STORE_SQL, packed)
        self._move_powered(state, state.sums.add((sample,), state.powered(), state.max_gap_us))
        state.latest_us = us
        state.state_us = us
        state.voltage = voltage
        state.current_draw = current_draw
        state.charge_pct = charge_pct
        state.active = 1
        if arrival.live:
            state.live_us = us
            state.live_clock_us = us
        _save_state(self._conn, state)
        self.stored_count += 1

    def finish(self) -> None:
        """Compute anew the hours that readings came into out of order."""
        for meter_key in self._disturbed:
            self._fill_again(meter_key)
        self._filled.clear()
        self._disturbed.clear()
        for (meter_key, hour), max_gap_us in sorted(self._open_hours.items()):
            _recompute_hour(self._conn, meter_key, hour, max_gap_us)
        self._open_hours.clear()

    def _fill_again(self, meter_key: int) -> None:
        """Give readings without a charge that of the reading that is before them now."""
        state = _load_state(self._conn, "m.meter_key", meter_key)
        assert state is not None  # its readings were written a moment ago
        for us in sorted(self._filled[meter_key]):
            from_us, charge_pct = _charge_before(self._conn, state, us)
            charge_pct = state.passed_on(from_us, charge_pct, us)
            (packed_pct,) = _packed((charge_pct,), 1e2)
            sql = """UPDATE power_readings SET charge_pct = :charge
                WHERE meter_key = :key AND timestamp = :us AND charge_pct IS NOT :charge"""
            values = {"key": meter_key, "us": us, "charge": packed_pct}
            if self._conn.execute(sql, values).rowcount:
                self._open_hours[meter_key, us // HOUR_US] = state.max_gap_us
                sql = """UPDATE power_meters SET charge_pct = ?
                    WHERE meter_key = ? AND state_us = ?"""
                self._conn.execute(sql, (charge_pct, meter_key, us))

    def log_refused(self, path: Path) -> None:
        """Log what was refused: after the transaction, because a handler may be slow."""
        if self.refused_count:
            _log.warning(
                "%s: readings that were not stored: %d; prune() has closed their hours, so the "
                "library cannot tell whether they were there before",
                path,
                self.refused_count,
            )

    # --- One meter's readings of a chunk

    def _write_meter(self, state: _MeterState, arrivals: list[_Arrival]) -> None:
        closed_hours = self._closed_hours(state, arrivals)
        accepted = arrivals
        if closed_hours or not self._are_in_order(state, arrivals):
            accepted = self._accept(state, arrivals, closed_hours)
            self._fill_charges(state, accepted)
        if not accepted:
            return
        latest_us = state.newest_us
        if state.meter_key in self._filled and min(a.us for a in accepted) <= latest_us:
            self._disturbed.add(state.meter_key)
        self._take_present(state, accepted)
        accepted.sort(key=attrgetter("us"))
        rows = [arrival.sample() for arrival in accepted]
        self.stored_count += len(rows)
        first_appended = 0
        while first_appended < len(rows) and accepted[first_appended].us <= latest_us:
            first_appended += 1
        if first_appended:
            self._store_late(state, rows[:first_appended], closed_hours)
        if first_appended < len(rows):
            self._append(state, rows[first_appended:])
        self._remember_late(state, accepted)
        _save_state(self._conn, state)

    def _closed_hours(self, state: _MeterState, arrivals: list[_Arrival]) -> dict[int, int]:
        """The closed ones among the hours of these readings, each with how it is closed."""
        first_hour = last_hour = arrivals[0].us // HOUR_US
        if len(arrivals) > 1:
            first_hour = min(arrival.us for arrival in arrivals) // HOUR_US
            last_hour = max(arrival.us for arrival in arrivals) // HOUR_US
        if first_hour == state.hour == last_hour:
            return {first_hour: state.closed} if state.closed else {}
        sql = """SELECT hour, closed FROM power_hours
            WHERE meter_key = ? AND hour BETWEEN ? AND ? AND closed"""
        return dict(self._conn.execute(sql, (state.meter_key, first_hour, last_hour)).fetchall())

    def _are_in_order(self, state: _MeterState, arrivals: list[_Arrival]) -> bool:
        """Whether readings are as most are: each later than all before it, and with a charge."""
        newest_us = state.newest_us
        live_us = state.live_us
        live_clock_us = state.live_clock_us
        for arrival in arrivals:
            if arrival.us <= newest_us or arrival.needs_charge:
                return False
            newest_us = arrival.us
            if arrival.live:
                live_us = newest_us
                live_clock_us = newest_us
        state.live_us = live_us
        state.live_clock_us = live_clock_us
        return True

    def _accept(
        self, state: _MeterState, arrivals: list[_Arrival], closed_hours: dict[int, int]
    ) -> list[_Arrival]:
        """The readings that will be stored, in order of arrival, live ones at free instants.

        Adds to closed_hours those into which a live one moves, as its instant was taken.
        """
        newest_us = state.newest_us
        stored = self._stored_samples(state, arrivals)
        accepted: list[_Arrival] = []
        taken: dict[int, _Arrival] = {}  # of this chunk, by instant
        for arrival in arrivals:
            if arrival.live:
                clock_us = arrival.us
                if clock_us <= newest_us:
                    arrival.us = self._free_instant(state, clock_us, taken)
                if arrival.us // HOUR_US != clock_us // HOUR_US:  # it may be a closed one
                    closed_hours.update(self._closed_hours(state, [arrival]))
                state.live_us = arrival.us
                state.live_clock_us = clock_us
            elif arrival.us in taken or arrival.us in stored:
                earlier = taken[arrival.us].sample() if arrival.us in taken else stored[arrival.us]
                self.conflict_count += not arrival.repeats(earlier)
                continue
            elif closed_hours and arrival.us // HOUR_US in closed_hours:
                self.refused_count += 1
                continue
            taken[arrival.us] = arrival
            if arrival.us > newest_us:
                newest_us = arrival.us
            accepted.append(arrival)
        return accepted

    def _stored_samples(self, state: _MeterState, arrivals: list[_Arrival]) -> dict[int, _Sample]:
        """What the meter has already at the instants of the recorded ones among these readings."""
        newest_us = state.newest_us
        instants = [
            arrival.us for arrival in arrivals if not arrival.live and arrival.us <= newest_us
        ]
        if not instants:
            return {}
        sql = f"""{_SAMPLES_SQL}
            WHERE meter_key = ? AND timestamp IN (SELECT value FROM json_each(?))"""
        values = (state.meter_key, json.dumps(instants))
        samples = self._conn.execute(sql, values).fetchall()
        return {sample[0]: sample for sample in samples}

    def _free_instant(self, state: _MeterState, us: int, taken: Container[int]) -> int:
        """The first microsecond from `us` on at which the meter has no reading.

        A clock that stands still makes a run of neighbouring instants. The search goes on behind
        the last one of that run, so each costs the same.
        """
        if us not in taken and not self._has_reading(state, us):
            return us
        if state.live_us is not None and us == state.live_clock_us:
            us = state.live_us
        us += 1
        while us in taken or self._has_reading(state, us):
            us += 1
        return us

    def _has_reading(self, state: _MeterState, us: int) -> bool:
        sql = "SELECT 1 FROM power_readings WHERE meter_key = ? AND timestamp = ?"
        return self._conn.execute(sql, (state.meter_key, us)).fetchone() is not None

    def _fill_charges(self, state: _MeterState, accepted: list[_Arrival]) -> None:
        """Give a charge to readings that have none.

        A live one takes the meter's present charge, a recorded one that of the reading before it
        in time, so that within a call the order of recorded readings makes no difference.
        """
        present_pct = state.charge_pct
        is_missing = False
        newest_us = state.newest_us
        for arrival in accepted:
            is_present = arrival.live or arrival.us > newest_us
            newest_us = max(newest_us, arrival.us)
            if not arrival.needs_charge:
                if is_present:
                    present_pct = arrival.charge_pct
            elif arrival.live:
                arrival.charge_pct = present_pct
                arrival.needs_charge = False
            else:
                is_missing = True
        if is_missing:
            self._fill_from_earlier(state, accepted)

    def _fill_from_earlier(self, state: _MeterState, accepted: list[_Arrival]) -> None:
        filled = self._filled.setdefault(state.meter_key, array("q"))
        before_us = -2  # earlier than any reading, and than none, which is -1
        before_pct: float | None = None
        for arrival in sorted(accepted, key=attrgetter("us")):
            if arrival.needs_charge:
                if before_us < state.newest_us:
                    stored_us, stored_pct = _charge_before(self._conn, state, arrival.us)
                    if stored_us > before_us:
                        before_us = stored_us
                        before_pct = stored_pct
                arrival.charge_pct = state.passed_on(before_us, before_pct, arrival.us)
                arrival.needs_charge = False
                filled.append(arrival.us)
            before_us = arrival.us
            before_pct = arrival.charge_pct

    def _take_present(self, state: _MeterState, accepted: list[_Arrival]) -> None:
        """Let readings become the present state, in order of arrival, and raise alerts."""
        has_alerts = state.type in self._alert_types
        low, critical = _thresholds(state.low_battery_threshold, state.critical_battery_threshold)
        newest_us = state.newest_us
        present: _Arrival | None = None
        for arrival in accepted:
            if arrival.us > newest_us:
                newest_us = arrival.us
            elif not arrival.live:
                continue
            present = arrival
            charge_pct = arrival.charge_pct
            if has_alerts and charge_pct is not None and (state.alert_level or charge_pct <= low):
                self._alert(state, arrival, charge_pct, low, critical)
        if present is not None:
            state.active = 1
            state.state_us, state.voltage, state.current_draw, state.charge_pct = present.sample()

    def _alert(
        self, state: _MeterState, arrival: _Arrival, charge_pct: float, low: float, critical: float
    ) -> None:
        """Set the alert level; record the event of a level just entered, or due again."""
        before = state.alert_level
        level = _next_alert_level(before, charge_pct, low, critical)
        state.alert_level = level
        is_due = False
        if level and self._alert_repeat_us is not None:
            # The distance either way: a clock set back must not silence alerts for years.
            elapsed_us = abs(arrival.us - (state.alerted_us or 0))
            is_due = elapsed_us >= self._alert_repeat_us
        if level <= before and not is_due:
            return
        is_critical = level == _CRITICAL_ALERT
        threshold = critical if is_critical else low
        event = PowerEvent(
            id=os.urandom(8).hex(),
            device_id="",  # the table has its key
            type=PowerEventType.LOW_BATTERY if is_critical else PowerEventType.DISCHARGE,
            value=charge_pct,
            timestamp="",
            note=f"{state.name or state.id}: {charge_pct:g} % charge, threshold {threshold:g} %",
            meter_id=state.id,
        )
        self._events.append((arrival.number, state.device_key, arrival.us, event))
        state.alerted_us = arrival.us

    def _remember_late(self, state: _MeterState, stored: list[_Arrival]) -> None:
        """Note, for the outbox, readings that are older than what has been acknowledged."""
        acknowledged_us = state.acknowledged_us
        if acknowledged_us is None or stored[0].us > acknowledged_us:
            return
        self._conn.executemany(
            "INSERT OR IGNORE INTO power_late (meter_key, timestamp, live) VALUES (?, ?, ?)",
            [
                (state.meter_key, arrival.us, int(arrival.live))
                for arrival in stored
                if arrival.us <= acknowledged_us
            ],
        )

    # --- Statistics

    def _append(self, state: _MeterState, rows: list[_Sample]) -> None:
        """Store readings later than all of the meter's, and add them to the hour under way."""
        _store(self._conn, state.meter_key, rows)
        for hour, group in _by_hour(rows):
            if hour != state.hour:
                self._start_hour(state, hour)
            previous = state.powered()
            if previous is not None and not self._are_neighbours(state, previous, hour):
                previous = None
            self._move_powered(state, state.sums.add(group, previous, state.max_gap_us))
            if state.closed:
                _seal_hour(self._conn, state.meter_key, hour, state.closed, state.sums)
        state.latest_us = rows[-1][0]

    def _start_hour(self, state: _MeterState, hour: int) -> None:
        """Make a row of power_hourly of the hour under way, and let a later one begin."""
        if state.hour is not None:
            _save_hour(self._conn, state.meter_key, state.hour, state.closed, state.sums)
        state.hour = hour
        # Deleting can leave a closed hour later than all readings.
        state.closed, state.sums = _take_hour(self._conn, state.meter_key, hour)

    def _are_neighbours(self, state: _MeterState, previous: _Point, hour: int) -> bool:
        """Whether no reading between that one and the next, in this hour, can have been pruned."""
        previous_hour = previous.us // HOUR_US
        if state.closed:
            return previous_hour == hour and state.closed == _CLOSED_WITH_LAST
        if previous_hour == hour:
            return True
        return not _may_miss_readings(self._conn, state.meter_key, previous_hour, hour)

    @staticmethod
    def _move_powered(state: _MeterState, last: _Point | None) -> None:
        """Note the newest reading that has watts."""
        if last is not None and (state.powered_us is None or last.us > state.powered_us):
            state.powered_us = last.us
            state.powered_wattage = last.watts

    def _store_late(
        self, state: _MeterState, rows: list[_Sample], closed_hours: dict[int, int]
    ) -> None:
        """Store readings that are older than the meter's newest one, hour by hour."""
        for hour, group_rows in _by_hour(rows):
            last = _last_with_watts(group_rows)
            if hour in closed_hours:
                for row in group_rows:
                    self._add_to_closed(state, hour, closed_hours[hour], row)
            elif self._ends_its_hour(state, hour, group_rows):
                _store(self._conn, state.meter_key, group_rows)
                self._add_to_hour(state, hour, group_rows)
                self._move_powered(state, last)
                continue
            else:
                _store(self._conn, state.meter_key, group_rows)
                self._open_hours[state.meter_key, hour] = state.max_gap_us
            self._move_powered(state, last)
            if last is not None:
                self._touch_next(state, hour, last.us)

    def _ends_its_hour(self, state: _MeterState, hour: int, rows: list[_Sample]) -> bool:
        """Whether rows follow all readings of their hour, with no later one within max_gap."""
        if (state.meter_key, hour) in self._open_hours:
            return False
        first_us, *_ = rows[0]
        last_us, *_ = rows[-1]
        end_us = max(last_us + state.max_gap_us, (hour + 1) * HOUR_US - 1)
        sql = """SELECT 1 FROM power_readings
            WHERE meter_key = ? AND timestamp > ? AND timestamp <= ? LIMIT 1"""
        values = (state.meter_key, first_us, min(end_us, _MAX_INTEGER))
        return self._conn.execute(sql, values).fetchone() is None

    def _add_to_hour(self, state: _MeterState, hour: int, rows: list[_Sample]) -> None:
        _, sums = _load_hour(self._conn, state.meter_key, hour)
        first_us, *_ = rows[0]
        previous = _previous_powered(self._conn, state.meter_key, first_us, state.max_gap_us)
        sums.add(rows, previous, state.max_gap_us)
        _save_hour(self._conn, state.meter_key, hour, _OPEN, sums)

    def _add_to_closed(self, state: _MeterState, hour: int, closed: int, row: _Sample) -> None:
        """Count a live reading, of a clock that was set back, in an hour that prune() has closed.

        Its energy is known only if it follows the last reading of that hour, and that one is still
        there: else pruned readings may lie between it and its neighbour.
        """
        us, *_ = row
        previous = None
        sql = """SELECT 1 FROM power_readings
            WHERE meter_key = ? AND timestamp > ? AND timestamp < ? LIMIT 1"""
        values = (state.meter_key, us, (hour + 1) * HOUR_US)
        is_last = self._conn.execute(sql, values).fetchone() is None
        if is_last and closed == _CLOSED_WITH_LAST:
            previous = _last_powered(self._conn, state.meter_key, us, state.max_gap_us)
            if previous is not None and previous.us // HOUR_US != hour:
                previous = None
        _store(self._conn, state.meter_key, [row])
        sums = state.sums
        if hour != state.hour:
            _, sums = _load_hour(self._conn, state.meter_key, hour)
        sums.add([row], previous, state.max_gap_us)
        _seal_hour(self._conn, state.meter_key, hour, closed, sums)
        if hour != state.hour:
            _save_hour(self._conn, state.meter_key, hour, closed, sums)

    def _touch_next(self, state: _MeterState, hour: int, us: int) -> None:
        """Have the hour of the next reading computed anew: its first energy has changed."""
        next_us = _next_powered_us(self._conn, state.meter_key, us, state.max_gap_us)
        if next_us is None or next_us // HOUR_US == hour:
            return
        next_hour = next_us // HOUR_US
        closed, _ = _load_hour(self._conn, state.meter_key, next_hour)
        if next_hour == state.hour:
            closed = state.closed
        if not closed:
            self._open_hours[state.meter_key, next_hour] = state.max_gap_us


# --- Hours ----------------------------------------------------------------------------


def _by_hour(rows: list[_Sample]) -> Iterator[tuple[int, list[_Sample]]]:
    """Readings in order of time, by the hour since 1970."""
    start = 0
    while start < len(rows):
        us, *_ = rows[start]
        hour = us // HOUR_US
        end = bisect_left(rows, ((hour + 1) * HOUR_US,), start)  # a row sorts by its time
        yield hour, rows[start:end]
        start = end


def _last_with_watts(rows: list[_Sample]) -> _Point | None:
    """The last of these readings that has watts."""
    for us, voltage, current_draw, _ in reversed(rows):
        if voltage is not None and current_draw is not None:
            return _Point(us, voltage * current_draw)
    return None


def _load_hour(conn: sqlite3.Connection, meter_key: int, hour: int) -> tuple[int, _HourSums]:
    """Whether an hour in power_hourly is closed, and its sums; those of no reading if missing."""
    sql = f"""SELECT closed, {", ".join(_SUM_COLUMNS)} FROM power_hourly
        WHERE meter_key = ? AND hour = ?"""
    row = conn.execute(sql, (meter_key, hour)).fetchone()
    if row is None:
        return _OPEN, _HourSums()
    closed, *values = row
    return closed, _HourSums(*values)


def _take_hour(conn: sqlite3.Connection, meter_key: int, hour: int) -> tuple[int, _HourSums]:
    """Load an hour and take it out of power_hourly: it becomes the hour under way."""
    closed, sums = _load_hour(conn, meter_key, hour)
    if sums.reading_count:
        conn.execute("DELETE FROM power_hourly WHERE meter_key = ? AND hour = ?", (meter_key, hour))
    return closed, sums


def _samples_between(
    conn: sqlite3.Connection, meter_key: int, start_us: int, end_us: int
) -> list[_Sample]:
    """The readings of a meter from a time on and before another, in order."""
    sql = f"""{_SAMPLES_SQL} WHERE meter_key = ? AND timestamp >= ? AND timestamp < ?
        ORDER BY timestamp"""
    return conn.execute(sql, (meter_key, start_us, end_us)).fetchall()


def _samples_page(
    conn: sqlite3.Connection, meter_key: int, start_us: int, end_us: int
) -> list[_Sample]:
    """At most _PAGE_ROWS readings of a meter from a time on and before another, in order."""
    sql = f"""{_SAMPLES_SQL} WHERE meter_key = ? AND timestamp >= ? AND timestamp < ?
        ORDER BY timestamp LIMIT {_PAGE_ROWS}"""
    return conn.execute(sql, (meter_key, start_us, end_us)).fetchall()


def _check_hour(hour: Any) -> None:
    """Raise _DamagedValue for a bad hour: a text times a large number would fill the memory."""
    if type(hour) is not int or not 0 <= hour < _END_OF_TIME_US // HOUR_US:
        raise _DamagedValue(f"the hour {str(hour)[:20]!r}")


def _samples_of_hour(conn: sqlite3.Connection, meter_key: int, hour: int) -> list[_Sample]:
    _check_hour(hour)
    return _samples_between(conn, meter_key, hour * HOUR_US, (hour + 1) * HOUR_US)


def _charge_before(
    conn: sqlite3.Connection, state: _MeterState, us: int
) -> tuple[int, float | None]:
    """Instant and charge of the reading before a time; without one, those of a new meter."""
    sql = f"""{_SAMPLES_SQL} WHERE meter_key = ? AND timestamp < ?
        ORDER BY timestamp DESC LIMIT 1"""
    found = conn.execute(sql, (state.meter_key, us)).fetchone()
    if found is None:
        return -1, state.first_charge_pct
    stored_us, _, _, charge_pct = found
    return stored_us, charge_pct


def _last_powered(
    conn: sqlite3.Connection, meter_key: int, us: int, max_gap_us: int
) -> _Point | None:
    """The last reading with watts before a time, within max_gap."""
    sql = """SELECT timestamp, voltage * current_draw FROM power_values
        WHERE meter_key = ? AND timestamp < ? AND timestamp >= ?
        AND voltage IS NOT NULL AND current_draw IS NOT NULL ORDER BY timestamp DESC LIMIT 1"""
    found = conn.execute(sql, (meter_key, us, max(us - max_gap_us, 0))).fetchone()
    return None if found is None else _Point(*found)


def _previous_powered(
    conn: sqlite3.Connection, meter_key: int, us: int, max_gap_us: int
) -> _Point | None:
    """As _last_powered; None if readings between that one and the time may have been pruned."""
    previous = _last_powered(conn, meter_key, us, max_gap_us)
    if previous is None:
        return None
    if _may_miss_readings(conn, meter_key, previous.us // HOUR_US, us // HOUR_US):
        return None
    return previous


def _next_powered_us(
    conn: sqlite3.Connection, meter_key: int, us: int, max_gap_us: int
) -> int | None:
    """The instant of the next reading with watts after a time, within max_gap."""
    sql = """SELECT timestamp FROM power_readings
        WHERE meter_key = ? AND timestamp > ? AND timestamp <= ?
        AND voltage IS NOT NULL AND current_draw IS NOT NULL ORDER BY timestamp LIMIT 1"""
    (next_us,) = conn.execute(sql, (meter_key, us, us + max_gap_us)).fetchone() or (None,)
    return None if next_us is None else int(next_us)


def _may_miss_readings(
    conn: sqlite3.Connection, meter_key: int, earlier_hour: int, later_hour: int
) -> bool:
    """Whether readings with watts may have been pruned between a reading of each hour.

    The one of the earlier hour is the last with watts that hour still has.
    """
    sql = """SELECT 1 FROM power_hourly WHERE meter_key = :key
        AND hour >= :earlier AND hour < :later AND power_count
        AND (closed = :closed OR closed AND hour > :earlier) LIMIT 1"""
    values = {"key": meter_key, "earlier": earlier_hour, "later": later_hour, "closed": _CLOSED}
    return conn.execute(sql, values).fetchone() is not None


def _computed_hour(
    conn: sqlite3.Connection, meter_key: int, hour: int, max_gap_us: int
) -> _HourSums:
    """The sums of an open hour, from its readings."""
    rows = _samples_of_hour(conn, meter_key, hour)
    sums = _HourSums()
    if rows:
        first_us, *_ = rows[0]
        sums.add(rows, _previous_powered(conn, meter_key, first_us, max_gap_us), max_gap_us)
    return sums


def _recompute_hour(conn: sqlite3.Connection, meter_key: int, hour: int, max_gap_us: int) -> None:
    """Compute an open hour anew and save it; delete it if it has no readings."""
    sums = _computed_hour(conn, meter_key, hour, max_gap_us)
    columns = ", ".join(f"{name} = ?" for name in _SUM_COLUMNS)
    sql = f"UPDATE power_meters SET {columns} WHERE meter_key = ? AND hour = ?"
    if conn.execute(sql, (*_sums_values_of(sums), meter_key, hour)).rowcount:
        return
    if sums.reading_count:
        _save_hour(conn, meter_key, hour, 0, sums)
    else:
        sql = "DELETE FROM power_hourly WHERE meter_key = ? AND hour = ?"
        conn.execute(sql, (meter_key, hour))


def _seal_hour(
    conn: sqlite3.Connection, meter_key: int, hour: int, closed: int, sums: _HourSums
) -> None:
    """Set the checksum of a closed hour's sums, from them and the readings that it still has."""
    sums.seal(hour, closed, _samples_of_hour(conn, meter_key, hour))


def _close_hours(conn: sqlite3.Connection, meter_key: int, limit_hour: int) -> int | None:
    """Close some open hours before limit_hour, and delete readings of closed ones.

    Of a run of closed hours the last reading is left, and the last that has watts, so that the
    open hour after it stays exact. Return how many readings went; None if there was nothing to do.
    """
    # The hour of the newest reading, which the meter's own row has, is never taken.
    sql = "SELECT coalesce(min(hour, ?), 0) FROM power_meters WHERE meter_key = ?"
    (limit_hour,) = conn.execute(sql, (limit_hour, meter_key)).fetchone() or (0,)
    sql = """SELECT hour, reading_count FROM power_hourly
        WHERE meter_key = ? AND hour < ? AND NOT closed ORDER BY hour LIMIT 500"""
    hours: list[int] = []
    reading_count = 0
    for hour, readings in conn.execute(sql, (meter_key, limit_hour)).fetchall():
        _check_hour(hour)
        hours.append(hour)
        reading_count += readings
        if reading_count >= _PAGE_ROWS:
            break
    end_us = (hours[-1] + 1 if hours else limit_hour) * HOUR_US
    kept = _last_instants(conn, meter_key, end_us)
    going = f"""FROM power_readings WHERE meter_key = ? AND timestamp < ?
        AND timestamp NOT IN ({", ".join("?" * len(kept))})"""
    values = (meter_key, end_us, *kept)
    touched = conn.execute(f"SELECT DISTINCT timestamp / {HOUR_US} {going}", values).fetchall()
    if not hours and not touched:
        return None
    deleted_count = conn.execute(f"DELETE {going}", values).rowcount
    conn.execute(
        f"""DELETE FROM power_late WHERE meter_key = ? AND timestamp < ?
        AND timestamp NOT IN ({", ".join("?" * len(kept))})""",
        values,
    )
    kept_hours = {us // HOUR_US for us in kept}
    for hour in sorted({hour for (hour,) in touched} | set(hours)):
        before, sums = _load_hour(conn, meter_key, hour)
        has_last = hour in kept_hours and before != _CLOSED
        closed = _CLOSED_WITH_LAST if has_last else _CLOSED
        _seal_hour(conn, meter_key, hour, closed, sums)
        _save_hour(conn, meter_key, hour, closed, sums)
    return deleted_count


def _last_instants(conn: sqlite3.Connection, meter_key: int, end_us: int) -> list[int]:
    """The instants of the last reading before a time, and of the last one that has watts."""
    before = "FROM power_readings WHERE meter_key = ? AND timestamp < ?"
    sql = f"SELECT timestamp {before} ORDER BY timestamp DESC LIMIT 1"
    (last_us,) = conn.execute(sql, (meter_key, end_us)).fetchone() or (None,)
    if last_us is None:
        return []
    # Beyond max_gap it would make no difference.
    max_gap_us = _setting(conn, "max_gap_us", int)
    sql = f"""SELECT timestamp {before} AND timestamp >= ?
        AND voltage IS NOT NULL AND current_draw IS NOT NULL ORDER BY timestamp DESC LIMIT 1"""
    values = (meter_key, end_us, last_us - max_gap_us)
    (powered_us,) = conn.execute(sql, values).fetchone() or (last_us,)
    return sorted({last_us, powered_us})


def _delete_range(
    conn: sqlite3.Connection, meter_key: int, since_us: int, until_us: int, max_gap_us: int
) -> int:
    """Delete a meter's readings from a time on and before another; return how many went.

    The hours that lose some are computed anew, and so is the hour of the next reading. Closed
    hours inside the range go; the caller has refused a range that cuts one.
    """
    span = "meter_key = ? AND timestamp >= ? AND timestamp < ?"
    values = (meter_key, since_us, until_us)
    deleted_count = conn.execute(f"DELETE FROM power_readings WHERE {span}", values).rowcount
    conn.execute(f"DELETE FROM power_late WHERE {span}", values)
    first_hour = since_us // HOUR_US
    last_hour = (until_us - 1) // HOUR_US
    inside = (meter_key, -(-since_us // HOUR_US), until_us // HOUR_US)  # whole hours
    conn.execute("DELETE FROM power_hourly WHERE meter_key = ? AND hour >= ? AND hour < ?", inside)
    conn.execute(
        """UPDATE power_meters SET hour = NULL, closed = 0
        WHERE meter_key = ? AND hour >= ? AND hour < ?""",
        inside,
    )
    _reload_newest(conn, meter_key, max_gap_us, range(since_us, until_us))
    affected = {first_hour, last_hour}
    next_us = _next_powered_us(conn, meter_key, until_us - 1, max_gap_us)
    if next_us is not None:
        affected.add(next_us // HOUR_US)
    sql = "SELECT closed FROM power_hours WHERE meter_key = ? AND hour = ?"
    for hour in sorted(affected):
        (closed,) = conn.execute(sql, (meter_key, hour)).fetchone() or (0,)
        if not closed:
            _recompute_hour(conn, meter_key, hour, max_gap_us)
    return deleted_count


def _reload_newest(
    conn: sqlite3.Connection, meter_key: int, max_gap_us: int, deleted: range
) -> None:
    """Bring a meter's row in line with the readings that are left.

    The hour of the newest one becomes the hour under way; if the present state is of a deleted
    instant, the newest reading takes its place, without an event.
    """
    state = _load_state(conn, "m.meter_key", meter_key)
    assert state is not None  # the caller has found the meter
    former_hour = state.hour
    former_closed = state.closed
    if former_hour is not None:
        _save_hour(conn, meter_key, former_hour, former_closed, state.sums)
    sql = f"{_SAMPLES_SQL} WHERE meter_key = ? ORDER BY timestamp DESC LIMIT 1"
    newest = conn.execute(sql, (meter_key,)).fetchone()
    if newest is None:
        state.latest_us = None
        state.hour = None
        state.closed = 0
        state.sums = _HourSums()
    else:
        state.latest_us, *_ = newest
        state.hour = state.newest_us // HOUR_US
        state.closed, state.sums = _take_hour(conn, meter_key, state.hour)
    end_us = state.newest_us + 1
    powered = _last_powered(conn, meter_key, end_us, max_gap_us + 1)
    state.powered_us = None if powered is None else powered.us
    state.powered_wattage = None if powered is None else powered.watts
    if state.state_us is not None and state.state_us in deleted:
        _set_present(state, newest)
    _save_state(conn, state)
    # A reading that comes later than all that are left passes its charge on again.
    sql = """UPDATE power_meters SET forgotten_us = min(forgotten_us, latest_us)
        WHERE meter_key = ?"""
    conn.execute(sql, (meter_key,))
    if former_hour is not None and former_hour != state.hour and not former_closed:
        _recompute_hour(conn, meter_key, former_hour, max_gap_us)


def _set_present(state: _MeterState, newest: _Sample | None) -> None:
    """Make a reading the present state; without one the state is that of a new meter."""
    if newest is None:
        state.state_us = None
        state.voltage = 0.0
        state.current_draw = 0.0
        state.charge_pct = state.first_charge_pct
        state.alert_level = _NO_ALERT
        return
    us, state.voltage, state.current_draw, charge_pct = newest
    state.state_us = us
    state.charge_pct = state.passed_on(us, charge_pct, _END_OF_TIME_US)
    low, critical = _thresholds(state.low_battery_threshold, state.critical_battery_threshold)
    if state.alert_level and state.charge_pct is not None:
        state.alert_level = _next_alert_level(state.alert_level, state.charge_pct, low, critical)


# The parts of a window, which is later than a time. Of each meter, the hours up to that of its
# first reading with watts are computed from the readings, because the energy that leads into the
# window does not count; later hours are whole, and so are closed ones, wherever they are; where
# the window starts in a closed hour, all that follows is whole. "LIMIT -1" is no limit: it keeps
# SQLite from computing the first reading anew for every row that is joined (SQLite 3.35 has
# MATERIALIZED for that).
_WINDOW_SQL = """WITH first (meter_key, hour, closed_under_way, has_closed) AS (
    SELECT meter_key, CASE WHEN f.closed_under_way = :after_hour
            OR EXISTS (SELECT 1 FROM power_hourly h
            WHERE h.meter_key = f.meter_key AND h.hour = :after_hour AND h.closed)
        THEN :after_hour - 1 ELSE f.reading_us / 3600000000 END,
        closed_under_way,
        EXISTS (SELECT 1 FROM power_hourly h WHERE h.meter_key = f.meter_key AND h.closed
            AND h.hour BETWEEN :after_hour AND f.reading_us / 3600000000)
    FROM (SELECT m.meter_key, CASE WHEN m.closed THEN m.hour END AS closed_under_way, coalesce(
            (SELECT min(timestamp) FROM power_readings r WHERE r.meter_key = m.meter_key
                AND timestamp > :after_us AND timestamp <= :after_us + :max_gap_us
                AND voltage IS NOT NULL AND current_draw IS NOT NULL),
            (SELECT min(timestamp) FROM power_readings r WHERE r.meter_key = m.meter_key
                AND timestamp > :after_us)) AS reading_us
        FROM power_meters m WHERE m.meter_key IN (SELECT value FROM json_each(:keys)) LIMIT -1) f
    LIMIT -1)"""
_IN_WINDOW = "h.hour >= :after_hour AND (h.closed OR h.hour > f.hour)"
_WINDOW_COLUMNS = ", ".join(f"h.{name}" for name in ("meter_key", *MeterSums._fields))
# Of whole hours both places, instead of the view power_hours: SQLite would read the whole of a
# view that is joined.
_WINDOW_SUMS_SQL = f"""{_WINDOW_SQL}, pairs AS (
    SELECT meter_key, watts, charge_pct, lag(watts) OVER earlier AS previous_watts,
        timestamp - lag(timestamp) OVER earlier AS elapsed_us
    FROM (SELECT meter_key, timestamp, voltage * current_draw AS watts, charge_pct
        FROM first JOIN power_values USING (meter_key)
        WHERE timestamp > :after_us AND timestamp < (hour + 1) * 3600000000
        AND timestamp / 3600000000 IS NOT closed_under_way
        AND NOT (has_closed AND EXISTS (SELECT 1 FROM power_hourly h
            WHERE h.meter_key = first.meter_key AND h.hour = timestamp / 3600000000 AND h.closed)))
    WINDOW earlier AS (PARTITION BY meter_key, watts IS NULL ORDER BY timestamp)),
    energies AS (SELECT meter_key, watts, charge_pct, CASE WHEN elapsed_us <= :max_gap_us
        THEN (watts + previous_watts) * elapsed_us / 7.2e9 ELSE 0.0 END AS energy_wh FROM pairs)
    SELECT meter_key, {_SUMS_SQL} FROM (
    SELECT meter_key, 1 AS reading_count, watts IS NOT NULL AS power_count,
        coalesce(watts, 0.0) AS wattage_sum, watts AS min_wattage, watts AS max_wattage,
        charge_pct AS min_charge_pct, charge_pct AS max_charge_pct,
        coalesce(max(energy_wh, 0.0), 0.0) AS energy_out_wh,
        coalesce(max(-energy_wh, 0.0), 0.0) AS energy_in_wh FROM energies
    UNION ALL
    SELECT {_WINDOW_COLUMNS} FROM first f CROSS JOIN power_hourly h USING (meter_key)
        WHERE {_IN_WINDOW}
    UNION ALL
    SELECT {_WINDOW_COLUMNS} FROM first f CROSS JOIN power_meters h USING (meter_key)
        WHERE {_IN_WINDOW})
    GROUP BY meter_key"""


def _window_sums(
    conn: sqlite3.Connection, meter_keys: Iterable[int], after_us: int
) -> dict[int, MeterSums]:
    """By meter key, the sums of the readings later than a time."""
    values = {
        "keys": json.dumps(list(meter_keys)),
        "after_us": after_us,
        "after_hour": after_us // HOUR_US,
        "max_gap_us": _setting(conn, "max_gap_us", int),
    }
    rows = conn.execute(_WINDOW_SUMS_SQL, values).fetchall()
    return {meter_key: _sums_of(columns) for meter_key, *columns in rows}


# --- Outbox ---------------------------------------------------------------------------

# A reading later than its meter's acknowledged_us is pending; an older one is pending if it has a
# row in power_late. So readings that come in order need no row of their own.
_OUTBOX_METERS_SQL = """SELECT m.meter_key, m.id, coalesce(m.acknowledged_us, -1) AS acknowledged_us
    FROM power_meters m WHERE m.latest_us > coalesce(m.acknowledged_us, -1)
    OR EXISTS (SELECT 1 FROM power_late l WHERE l.meter_key = m.meter_key)
    ORDER BY acknowledged_us, m.meter_key"""
_IN_ORDER_SQL = f"""{_SAMPLES_SQL} WHERE meter_key = :key AND timestamp > :after_us
    ORDER BY timestamp LIMIT :limit"""
_LATE_SQL = """SELECT v.timestamp, v.voltage, v.current_draw, v.charge_pct FROM power_late l
    CROSS JOIN power_values v ON v.meter_key = l.meter_key AND v.timestamp = l.timestamp
    WHERE l.meter_key = :key AND l.timestamp > :after_us AND l.live = :live
    ORDER BY l.timestamp LIMIT :limit"""


class _OutboxQueue:
    """Pending readings of one meter, late ones or those in order, oldest first."""

    def __init__(self, conn: sqlite3.Connection, meter: _Row, sql: str, live: int) -> None:
        self._conn = conn
        self._sql = sql
        self._values = {"key": meter["meter_key"], "live": live, "after_us": -1}
        self._meter_id = meter["id"]
        if sql == _IN_ORDER_SQL:
            self._values["after_us"] = meter["acknowledged_us"]

    def take(self, limit: int) -> list[PowerReading]:
        """The next ones, at most `limit`."""
        rows = self._conn.execute(self._sql, {**self._values, "limit": limit}).fetchall()
        if rows:
            last_us, *_ = rows[-1]
            self._values["after_us"] = last_us
        return _readings_of(self._meter_id, rows)


def _pending_readings(conn: sqlite3.Connection, limit: int) -> list[PowerReading]:
    """Readings that were live or came in order, then late ones; the meters in turn."""
    meters = _select(conn, _OUTBOX_METERS_SQL)
    first = [_OutboxQueue(conn, meter, _LATE_SQL, 1) for meter in meters]
    first += [_OutboxQueue(conn, meter, _IN_ORDER_SQL, 0) for meter in meters]
    late = [_OutboxQueue(conn, meter, _LATE_SQL, 0) for meter in meters]
    pending: list[PowerReading] = []
    for queues in (first, late):
        while queues and len(pending) < limit:
            share = max((limit - len(pending)) // len(queues), 1)
            full_queues = []
            for queue in queues:
                taken = queue.take(min(share, limit - len(pending)))
                pending += taken
                if len(taken) == share and len(pending) < limit:
                    full_queues.append(queue)
            queues = full_queues
    return pending


def _acknowledge_readings(conn: sqlite3.Connection, meter_key: int, acknowledged: set[int]) -> None:
    """Take readings of a meter, by their instants, out of the outbox."""
    conn.executemany(
        "DELETE FROM power_late WHERE meter_key = ? AND timestamp = ?",
        [(meter_key, us) for us in acknowledged],
    )
    sql = "SELECT coalesce(acknowledged_us, -1) FROM power_meters WHERE meter_key = ?"
    (before_us,) = conn.execute(sql, (meter_key,)).fetchone()
    sql = """SELECT max(timestamp) FROM power_readings WHERE meter_key = ? AND timestamp > ?
        AND timestamp IN (SELECT value FROM json_each(?))"""
    values = (meter_key, before_us, json.dumps(sorted(acknowledged)))
    (last_us,) = conn.execute(sql, values).fetchone()
    if last_us is None:
        return
    # A reading that came in between, or that was not acknowledged, stays pending by a row.
    sql = """SELECT timestamp FROM power_readings
        WHERE meter_key = ? AND timestamp > ? AND timestamp <= ?"""
    between = conn.execute(sql, (meter_key, before_us, last_us)).fetchall()
    conn.executemany(
        "INSERT OR IGNORE INTO power_late (meter_key, timestamp, live) VALUES (?, ?, 1)",
        [(meter_key, us) for (us,) in between if us not in acknowledged],
    )
    conn.execute(
        "UPDATE power_meters SET acknowledged_us = ? WHERE meter_key = ?", (last_us, meter_key)
    )


def _resend_readings(conn: sqlite3.Connection, meter_key: int, start_us: int, end_us: int) -> int:
    """Make acknowledged readings of a meter pending again, as late ones; return how many."""
    sql = """INSERT OR IGNORE INTO power_late (meter_key, timestamp, live)
        SELECT r.meter_key, r.timestamp, 0
        FROM power_meters m CROSS JOIN power_readings r USING (meter_key)
        WHERE m.meter_key = ? AND r.timestamp >= ? AND r.timestamp < ?
        AND r.timestamp <= m.acknowledged_us"""
    return conn.execute(sql, (meter_key, start_us, end_us)).rowcount


def _add_deletion(
    conn: sqlite3.Connection,
    kind: str,
    device_id: str,
    meter_id: str | None = None,
    since_us: int | None = None,
    until_us: int | None = None,
) -> None:
    conn.execute(
        """INSERT INTO power_deletions (kind, device_id, meter_id, since_us, until_us)
        VALUES (?, ?, ?, ?, ?)""",
        (kind, device_id, meter_id, since_us, until_us),
    )


# --- Opening a file -------------------------------------------------------------------

_SQLITE_BUSY = 5
_SQLITE_LOCKED = 6
_SUFFIXES = ("-wal", "-shm", "-journal")  # of the files that SQLite keeps beside a database
_SMALLEST_DATABASE = 100  # bytes: SQLite's header


class _FileKind(Enum):
    """What opening finds."""

    NEW = "new"
    OURS = "ours"
    FIRST_RELEASE = "first release"


def _pragma(conn: sqlite3.Connection, name: str) -> Any:
    (value,) = conn.execute(f"PRAGMA {name}").fetchone()
    return value


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str], mode: int | None = None) -> Iterator[BinaryIO]:
    """Write a file whole or not at all: a context manager that yields a binary file to write to.

    What is written gets the name `path` when the block ends, and is on the disk then. If the block
    raises, or the disk is full, what was there before stays. Meanwhile the file has a hidden name
    in the same directory, where only its owner can read it. A symbolic link to a file is replaced,
    not followed; a device, a pipe, a directory and /dev/stdout are refused. `mode` is the
    permissions' bits; by default those of the earlier file, or 0o600. Where root writes, the file
    belongs to the owner of the earlier one, or else of the directory, so that a program that is not
    root can go on reading it. Two writers at once: the last one wins. Raises InvalidValue,
    StorageError, and what the block raises.
    """
    target = Path(os.path.abspath(_check_path("path", path)))
    unfinished = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
    _check_regular(target, target)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with contextlib.ExitStack() as undo:
        try:
            file = open(os.open(unfinished, flags, 0o600), "w+b")  # noqa: SIM115
        except OSError as error:
            raise _storage_error(error, target) from error
        undo.callback(_discard, file, unfinished)
        try:
            yield file
        except OSError as error:
            if error.errno not in _SPACE_ERRNOS:
                raise
            raise _storage_error(error, target) from error
        try:
            file.flush()
            _give_owner_and_mode(file.fileno(), target, mode)
            os.fsync(file.fileno())
            os.replace(unfinished, target)
            _sync(target.parent, os.O_RDONLY)
        except OSError as error:
            raise _storage_error(error, target) from error


def _is_replaceable(path: Path) -> bool:
    """Whether a path that exists names a regular file by its place in a directory.

    /dev/stdout and /dev/fd/3 name what is open already, which may be a regular file too: a new one
    in their place would break them for every program.
    """
    if not path.is_file():  # such as /dev/null
        return False
    while True:
        directory = os.path.realpath(path.parent)
        if directory.startswith("/proc/"):
            return False
        if not path.is_symlink():
            return True
        path = Path(directory, os.readlink(path))


def _check_regular(path: Path, shown: Path) -> None:
    """Refuse a directory, a pipe, a device, and a name of an open file."""
    if path.exists() and not _is_replaceable(path):
        raise StorageError(shown, "not a regular file: name another")


def open_secret(path: str | os.PathLike[str], warn: Callable[[str], object]) -> TextIO:
    """Open a file that holds a password or a key, to be read as text in UTF-8.

    If every user of the machine can write it, they choose the secret: StorageError. If they can
    read it, `warn` is called with one sentence, such as the `warning` of a logger: in a container
    that is usual, and harmless. A file that cannot be opened raises OSError.
    """
    file = open(path, encoding="utf-8")  # noqa: SIM115 - the caller closes it
    mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    if mode & stat.S_IWOTH:
        file.close()
        reason = f"every user of this machine can write it (mode {mode:04o}): chmod 600 it"
        raise StorageError(path, reason)
    if mode & stat.S_IROTH:
        warn(f"{path}: every user of this machine can read it (mode {mode:04o}): chmod 600 it")
    return file


def _discard(file: BinaryIO, unfinished: Path) -> None:
    """Close a file, and remove it unless it has got another name."""
    with contextlib.suppress(OSError):  # of a full disk, which has been said
        file.close()
    with contextlib.suppress(OSError):
        os.unlink(unfinished)


def _give_owner_and_mode(descriptor: int, target: Path, mode: int | None) -> None:
    """Make a new file belong to whom the one at `target` does; see replace_file."""
    earlier: os.stat_result | None = None
    with contextlib.suppress(FileNotFoundError):
        earlier = os.lstat(target)
    if earlier is not None and not stat.S_ISREG(earlier.st_mode):  # a link has the bits 0o777
        earlier = None
    if os.geteuid() == 0:
        owner = earlier or os.stat(target.parent)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    if mode is None and earlier is not None:
        mode = stat.S_IMODE(earlier.st_mode)
    if mode is not None:
        os.fchmod(descriptor, mode)


def _create_private(path: Path) -> None:
    """Make an empty file that only its owner can read; SQLite gives -wal and -shm the same mode.

    By mknod, since it opens no descriptor: closing one would drop the locks that another thread's
    connection holds on the file.
    """
    with contextlib.suppress(FileExistsError):
        try:
            os.mknod(path, stat.S_IFREG | 0o600)
        except (AttributeError, PermissionError):  # Windows has none; macOS keeps it for root
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _connect(path: Path, durability: str = "full") -> sqlite3.Connection:
    """A connection in autocommit mode; never creates the file."""
    target = ":memory:" if str(path) == ":memory:" else path.as_uri() + "?mode=rw"
    conn = sqlite3.connect(
        target, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
    )
    try:
        conn.execute(f"PRAGMA synchronous = {durability}")
        conn.execute("PRAGMA trusted_schema = OFF")  # a crafted file must not call functions
        conn.execute("PRAGMA cell_size_check = ON")  # find a damaged page when it is read
        # Bytes that a -wal is cut back to after a long transaction.
        conn.execute("PRAGMA journal_size_limit = 4194304")
    except BaseException:
        conn.close()
        raise
    return conn


def _check_is_file(path: Path, shown: Path) -> None:
    """Refuse by name what cannot be a database."""
    if path.is_dir():
        raise StorageError(shown, "this is a directory: name a file in it")
    _check_regular(path, shown)
    # SQLite itself takes a file of one byte for a new database, and overwrites it.
    if path.exists() and 0 < path.stat().st_size < _SMALLEST_DATABASE:
        raise StorageError(
            shown, f"not an SQLite database: name another file, or {_HOW_TO_RESTORE}"
        )


def _header(conn: sqlite3.Connection) -> tuple[int, int, int]:
    """Application id, version, and how often the schema has changed, in one query."""
    application_id, version, changes = conn.execute(
        """SELECT application_id, user_version, schema_version
        FROM pragma_application_id, pragma_user_version, pragma_schema_version"""
    ).fetchone()
    return application_id, version, changes


def _recognise(conn: sqlite3.Connection, path: Path) -> _FileKind:
    """What the file is; one that is not ours is refused by name."""
    header = _header(conn)
    application_id, version, changes = header
    if application_id == _APPLICATION_ID:
        if version == _SCHEMA_VERSION:
            return _FileKind.OURS
        raise StorageError(
            path,
            f"its schema {version} is not {_SCHEMA_VERSION}: open it with a newer power_manager",
        )
    if application_id in _DEVELOPMENT_APPLICATION_IDS:
        raise StorageError(
            path,
            f"a file of a development version (schema {version}), which this version cannot read: "
            "name a new file, and move the readings by that version's `export` and this `import`",
        )
    if (application_id, version) == (0, 0):
        if not changes:
            return _FileKind.NEW
        if _has_first_release_tables(conn):
            return _FileKind.FIRST_RELEASE
        if _header(conn) != header:  # another process has upgraded it meanwhile
            return _recognise(conn, path)
    raise StorageError(path, "a database of another program: name another file")


def _enable_wal(conn: sqlite3.Connection, path: Path) -> None:
    """Switch to WAL mode. Where two processes ask at once, SQLite itself does not wait."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            mode = _pragma(conn, "journal_mode = wal")
            break
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", _SQLITE_BUSY)  # from Python 3.11 on
            if code & 0xFF != _SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
    if mode != "wal" and str(path) != ":memory:":
        raise StorageError(
            path, f"this place cannot hold a WAL database (SQLite says {mode!r}): use a local disk"
        )


def _make_tables(conn: sqlite3.Connection, path: Path, max_gap_us: int) -> None:
    """Make the tables in a new file, and move those of the first release into them."""
    kind = _recognise(conn, path)
    if kind == _FileKind.OURS:  # another process was faster
        return
    if kind == _FileKind.FIRST_RELEASE:
        for table in _FIRST_RELEASE:
            conn.execute(f"ALTER TABLE {table} RENAME TO first_release_{table}")
    for statement in _SCHEMA:
        conn.execute(statement)
    sql = "INSERT INTO power_settings (name, value) VALUES (?, ?)"
    conn.execute(sql, ("max_gap_us", max_gap_us))
    conn.execute(sql, ("file_id", _new_file_id()))
    conn.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    conn.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    if kind == _FileKind.FIRST_RELEASE:
        _upgrade_first_release(conn, path, max_gap_us)


def _new_file_id() -> str:
    return os.urandom(16).hex()


def _expected_schema() -> dict[str, str]:
    """The text of each table, index and view, by its name."""
    return {statement.split()[2]: statement for statement in _SCHEMA}


def _check_schema(conn: sqlite3.Connection, path: Path) -> None:
    """Compare the file's tables with this module's, before any of them is read.

    A crafted view could run without end, and a trigger could delete what was stored. Tables of
    other packages are left alone.
    """
    expected = _expected_schema()
    found: dict[str, str] = {}
    sql = "SELECT name, type, tbl_name, sql FROM sqlite_master"
    for name, kind, table, text in conn.execute(sql).fetchall():
        if kind == "trigger" and table in expected:
            raise StorageError(path, f"the table {table} has a trigger {name!r}: {_HOW_TO_RESTORE}")
        if name in expected:
            found[name] = text
    for name, text in expected.items():
        if found.get(name) != text:
            raise StorageError(
                path, f"its table, index or view {name} has been changed: {_HOW_TO_RESTORE}"
            )


def _check_max_gap(conn: sqlite3.Connection, path: Path, max_gap_us: int) -> None:
    kept_us = _setting(conn, "max_gap_us", int)
    if max_gap_us not in (kept_us, round(_DEFAULT_MAX_GAP_S * SECOND_US)):
        expected = f"{kept_us / SECOND_US:g} (s), the value that {path} was made with"
        raise _invalid("max_gap", expected, max_gap_us / SECOND_US)


# --- First release --------------------------------------------------------------------

_FIRST_RELEASE = {
    "devices": "id name shutdown_threshold target_wh",
    "power_meters": "id device_id type voltage current_draw capacity_wh charge_pct name",
    "power_events": "id device_id type value timestamp note",
    "power_readings": "id meter_id voltage current_draw charge_pct timestamp",
}


def _has_first_release_tables(conn: sqlite3.Connection) -> bool:
    for table, names in _FIRST_RELEASE.items():
        columns = {row["name"] for row in _select(conn, f"PRAGMA table_info({table})")}
        if not columns.issuperset(names.split()):
            return False
    return True


def _first_release_us(text: Any) -> int | None:
    """A time of the first release: ISO text, in UTC if it names no offset; None if invalid."""
    try:
        moment = _parse_iso(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return to_microseconds(moment)
    except (TypeError, ValueError):
        return None


def _upgrade_first_release(conn: sqlite3.Connection, path: Path, max_gap_us: int) -> None:
    """Move the rows of the first_release_* tables.

    A row that is not valid today cannot be migrated: it stays there, and the log says so.
    """
    _upgrade_devices(conn)
    _upgrade_meters(conn)
    _upgrade_events(conn)
    _upgrade_readings(conn)
    for table in _FIRST_RELEASE:
        (left,) = conn.execute(f"SELECT count(*) FROM first_release_{table}").fetchone()
        if left:
            _log.warning(
                "%s: rows of %s that could not be migrated: %d; they stay in first_release_%s",
                path,
                table,
                left,
                table,
            )
        else:
            conn.execute(f"DROP TABLE first_release_{table}")


def _first_release_rows(conn: sqlite3.Connection, table: str) -> list[_Row]:
    sql = f"SELECT rowid AS row_number, * FROM first_release_{table} ORDER BY rowid"
    return _select(conn, sql)


def _drop_first_release_row(conn: sqlite3.Connection, table: str, row: _Row) -> None:
    sql = f"DELETE FROM first_release_{table} WHERE rowid = ?"
    conn.execute(sql, (row["row_number"],))


def _or_default(value: Any, default: float) -> Any:
    return default if value is None else value


def _is_blank(text: Any) -> bool:
    return isinstance(text, str) and not text.strip()


def _upgrade_devices(conn: sqlite3.Connection) -> None:
    names = ", ".join(_DEVICE_COLUMNS)
    sql = f"INSERT OR IGNORE INTO devices ({names}) VALUES (?, ?, ?, ?, ?, ?)"
    for row in _first_release_rows(conn, "devices"):
        name = row["id"] if _is_blank(row["name"]) else row["name"]
        threshold = _or_default(row["shutdown_threshold"], 3.0)
        try:
            device = _check_device(row["id"], name, threshold, row["target_wh"])
        except InvalidValue:
            continue
        if conn.execute(sql, dataclasses.astuple(device)).rowcount:
            _drop_first_release_row(conn, "devices", row)


def _upgrade_meters(conn: sqlite3.Connection) -> None:
    sql = """INSERT OR IGNORE INTO power_meters (id, device_key, type, name, capacity_wh, voltage,
        current_draw, charge_pct, alert_level, first_charge_pct)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
    for row in _first_release_rows(conn, "power_meters"):
        name = None if _is_blank(row["name"]) else row["name"]
        first_charge = None if row["charge_pct"] is None else 100.0  # that of its new meters
        try:
            kind = _check_member(MeterType, "type", row["type"])
            values = (
                check_text("meter_id", row["id"]),
                _device_key(conn, row["device_id"]),
                kind.value,
                _check_meter_name(name),
                _check_capacity(_or_default(row["capacity_wh"], 0.0)),
                *_check_reading(
                    _or_default(row["voltage"], 0.0),
                    _or_default(row["current_draw"], 0.0),
                    row["charge_pct"],
                ),
                _NO_ALERT,
                first_charge,
            )
        except (InvalidValue, NotFound):
            continue
        if conn.execute(sql, values).rowcount:
            _drop_first_release_row(conn, "power_meters", row)


def _upgrade_events(conn: sqlite3.Connection) -> None:
    entries: list[tuple[int, int, PowerEvent, _Row]] = []
    for row in _first_release_rows(conn, "power_events"):
        us = _first_release_us(row["timestamp"])
        try:
            event = PowerEvent(
                id=check_text("id", row["id"]),
                device_id=row["device_id"],
                type=_check_member(PowerEventType, "type", row["type"]),
                value=check_number(
                    "value", _or_default(row["value"], 0.0), -_MAX_FLOAT, _MAX_FLOAT, ""
                ),
                timestamp="",
                note=row["note"],
            )
            device_key = _device_key(conn, row["device_id"])
        except (InvalidValue, NotFound):
            continue
        if us is not None and (event.note is None or isinstance(event.note, str)):
            entries.append((us, device_key, event, row))
    entries.sort(key=itemgetter(0))
    for us, device_key, event, row in entries:
        _add_event(conn, device_key, event, us)
        _drop_first_release_row(conn, "power_events", row)


def _upgrade_readings(conn: sqlite3.Connection) -> None:
    """Move the readings meter by meter in order of time, which keeps the cost of each the same."""
    _sort_first_release_readings(conn)
    sql = "SELECT row_number FROM temp.first_release_order ORDER BY meter_key, us, row_number"
    row_numbers = [row_number for (row_number,) in conn.execute(sql).fetchall()]
    writer = _ReadingWriter(conn)
    last: dict[str, int] = {}  # the latest instant of a meter
    for start in range(0, len(row_numbers), _CHUNK_ROWS):
        chunk = _Chunk()
        moved: list[tuple[int]] = []
        page = row_numbers[start : start + _CHUNK_ROWS]
        for row in _first_release_readings(conn, page):
            try:
                values = _check_reading(row["voltage"], row["current_draw"], row["charge_pct"])
            except InvalidValue:
                continue
            meter_id = row["meter_id"]
            us = _first_release_us(row["timestamp"])
            if us is None or None in values[:2]:
                continue
            us = max(us, last.get(meter_id, -1) + 1)  # two readings at one instant are both kept
            last[meter_id] = us
            chunk.add(meter_id, _Arrival(0, us, *values, live=False, needs_charge=False))
            moved.append((row["row_number"],))
        writer.write(chunk)
        sql = "DELETE FROM first_release_power_readings WHERE rowid = ?"
        conn.executemany(sql, moved)
    writer.finish()
    conn.execute("DROP TABLE temp.first_release_order")
    _set_upgraded_alert_levels(conn)


def _sort_first_release_readings(conn: sqlite3.Connection) -> None:
    """Note meter and time of each reading that has both, for SQLite to sort."""
    conn.execute("CREATE TEMP TABLE first_release_order (meter_key, us, row_number)")
    sql = f"""SELECT r.rowid, m.meter_key, r.timestamp FROM first_release_power_readings r
        JOIN power_meters m ON m.id = r.meter_id
        WHERE r.rowid > ? ORDER BY r.rowid LIMIT {_CHUNK_ROWS}"""
    last_row = -_MAX_INTEGER
    while page := conn.execute(sql, (last_row,)).fetchall():
        entries = []
        for row_number, meter_key, timestamp in page:
            last_row = row_number
            us = _first_release_us(timestamp)
            if us is not None:
                entries.append((meter_key, us, row_number))
        conn.executemany("INSERT INTO temp.first_release_order VALUES (?, ?, ?)", entries)


def _first_release_readings(conn: sqlite3.Connection, row_numbers: list[int]) -> list[_Row]:
    """Readings of the first release in the order of these numbers."""
    sql = """SELECT r.rowid AS row_number, r.meter_id, r.voltage, r.current_draw,
        r.charge_pct, r.timestamp
        FROM json_each(?) j CROSS JOIN first_release_power_readings r ON r.rowid = j.value
        ORDER BY j.key"""
    return _select(conn, sql, (json.dumps(row_numbers),))


def _set_upgraded_alert_levels(conn: sqlite3.Connection) -> None:
    """Give meters the alert level of their charge: the first release has recorded its events."""
    sql = """SELECT m.meter_key, m.type, m.charge_pct, d.low_battery_threshold,
        d.critical_battery_threshold FROM power_meters m JOIN devices d USING (device_key)"""
    for row in _select(conn, sql):
        if row["type"] in _TYPES_WITH_CHARGE and row["charge_pct"] is not None:
            low, critical = _thresholds(
                row["low_battery_threshold"], row["critical_battery_threshold"]
            )
            level = _next_alert_level(_NO_ALERT, row["charge_pct"], low, critical)
            conn.execute(
                "UPDATE power_meters SET alert_level = ? WHERE meter_key = ?",
                (level, row["meter_key"]),
            )


# --- Checking -------------------------------------------------------------------------


def _file_problems(conn: sqlite3.Connection) -> Iterator[str]:
    """What is wrong with a file, one text each; see PowerManager.check."""
    for (text,) in conn.execute("PRAGMA integrity_check").fetchall():
        if text != "ok":
            yield f"integrity: {text}"
    for table, text in _expected_schema().items():
        if not text.startswith("CREATE TABLE"):
            continue
        rows = conn.execute(f"PRAGMA foreign_key_check({table})").fetchall()
        if rows:
            yield f"{table}: rows that refer to rows that are not there: {len(rows)}"
    sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name GLOB 'first_release_*'"
    for (table,) in conn.execute(sql).fetchall():
        yield f"{table}: rows of the first release that could not be migrated"
    yield from _settings_problems(conn)
    for row in _select(conn, f"{_DEVICE_SQL} ORDER BY device_key"):
        yield from _problem(f"device {row['id']}", _check_device_row, row)
    for row in _select(conn, f"{_EVENT_SQL} ORDER BY e.sequence"):
        yield from _problem(f"event {row['sequence']}", _check_event_row, row)
    for row in _select(conn, f"{_METER_SQL} ORDER BY m.meter_key"):
        yield from _problem(f"meter {row['id']}", _check_meter_row, row)
        try:
            for problem in _meter_problems(conn, row["meter_key"]):
                yield f"meter {row['id']}: {problem}"
        except (_DamagedValue, TypeError, ValueError, struct.error) as error:
            yield f"meter {row['id']}: a damaged value ({error})"


def _problem(of: str, check: Callable[[_Row], object], row: _Row) -> Iterator[str]:
    try:
        check(row)
    except (_DamagedValue, ValueError, TypeError) as error:
        yield f"{of}: a damaged value ({error})"


def _settings_problems(conn: sqlite3.Connection) -> Iterator[str]:
    try:
        _setting(conn, "max_gap_us", int)
        _setting(conn, "file_id", str)
    except _DamagedValue as error:
        yield f"power_settings: a damaged value ({error})"


def _check_device_row(row: _Row) -> None:
    device = _device_of(row)
    _check_device(*dataclasses.astuple(device))


def _check_event_row(row: _Row) -> None:
    event = _event_of(row)
    expected = _event_checksum(row["sequence"], row["device_key"], event, row["timestamp"])
    if row["checksum"] != expected:
        raise _DamagedValue("its checksum does not agree")


def _check_meter_row(row: _Row) -> None:
    meter = _meter_of(row)
    check_text("id", meter.id)
    _check_meter_name(meter.name)
    _check_capacity(meter.capacity_wh)
    _check_reading(meter.voltage, meter.current_draw, meter.charge_pct)
    _check_charge(meter.charge_pct)
    if row["active"] not in (0, 1):
        raise _DamagedValue("active")


def _meter_problems(conn: sqlite3.Connection, meter_key: int) -> Iterator[str]:
    """Compare a meter's state and statistics with its readings."""
    state = _load_state(conn, "m.meter_key", meter_key)
    assert state is not None  # its row was found a moment ago
    hours = {
        row["hour"]: row
        for row in _select(conn, "SELECT * FROM power_hours WHERE meter_key = ?", (meter_key,))
    }
    yield from _state_problems(conn, state)
    sql = f"SELECT DISTINCT timestamp / {HOUR_US} FROM power_readings WHERE meter_key = ?"
    for (hour,) in conn.execute(sql, (meter_key,)).fetchall():
        if hour not in hours:
            yield f"the readings of the hour {_shown_hour(hour)} have no statistics"
    for hour, row in hours.items():
        if not _is_hour_right(conn, meter_key, row, state.max_gap_us):
            yield f"readings and statistics of the hour {_shown_hour(hour)} do not agree"


def _shown_hour(hour: Any) -> str:
    _check_hour(hour)
    return from_microseconds(hour * HOUR_US)


def _is_hour_right(conn: sqlite3.Connection, meter_key: int, row: _Row, max_gap_us: int) -> bool:
    """Whether an open hour's sums are those of its readings; of a closed one, the checksum."""
    stored = _HourSums(*(row[name] for name in _SUM_COLUMNS))
    if row["closed"]:
        if row["closed"] not in (_CLOSED_WITH_LAST, _CLOSED):
            return False
        checksum = stored.checksum
        _seal_hour(conn, meter_key, row["hour"], row["closed"], stored)
        return stored.checksum == checksum
    computed = _computed_hour(conn, meter_key, row["hour"], max_gap_us)
    if not computed.reading_count or stored.checksum != computed.checksum:
        return False
    for name in _SUM_COLUMNS:
        stored_value = getattr(stored, name)
        computed_value = getattr(computed, name)
        if stored_value is None or computed_value is None:
            if stored_value is not computed_value:
                return False
        elif not math.isclose(stored_value, computed_value, rel_tol=1e-12, abs_tol=1e-12):
            return False
    return True


def _state_problems(conn: sqlite3.Connection, state: _MeterState) -> Iterator[str]:
    """Compare what a meter's row says of its present and newest reading with the readings."""
    sql = "SELECT max(timestamp) FROM power_readings WHERE meter_key = ?"
    (latest_us,) = conn.execute(sql, (state.meter_key,)).fetchone()
    if state.latest_us != latest_us:
        yield "its newest reading is not the one that its row names"
    if state.hour != (None if latest_us is None else latest_us // HOUR_US):
        yield "its hour under way is not that of its newest reading"
    powered = None
    if latest_us is not None:
        # Up to the newest reading itself, and as far back as it could be a neighbour of the next.
        powered = _last_powered(conn, state.meter_key, latest_us + 1, state.max_gap_us + 1)
    if powered is not None and powered != state.powered():
        yield "its newest reading with watts is not the one that its row names"
    oldest_us = 0 if latest_us is None else latest_us - state.max_gap_us
    if powered is None and state.powered_us is not None and state.powered_us >= oldest_us:
        yield "its row names a newest reading with watts that is not there"
    if state.alert_level not in (_NO_ALERT, _LOW_ALERT, _CRITICAL_ALERT):
        yield "its alert level is damaged"
    _check_charge(state.first_charge_pct)
    if state.forgotten_us is not None and not 0 <= state.forgotten_us < _END_OF_TIME_US:
        yield "the time at which its charge was forgotten is damaged"
    yield from _present_problems(conn, state)


def _present_problems(conn: sqlite3.Connection, state: _MeterState) -> Iterator[str]:
    if state.state_us is None:
        if state.latest_us is not None:
            yield "it has readings but no present state"
        return
    sql = f"{_SAMPLES_SQL} WHERE meter_key = ? AND timestamp = ?"
    found = conn.execute(sql, (state.meter_key, state.state_us)).fetchone()
    if found is not None:
        us, voltage, current_draw, charge_pct = found
        if state.charge_pct is None:  # as update_meter() leaves it
            charge_pct = state.passed_on(us, charge_pct, _END_OF_TIME_US)
        present = (state.voltage, state.current_draw, state.charge_pct)
        if (voltage, current_draw, charge_pct) != present:
            yield "its present state is not that of its reading"
        return
    sql = "SELECT 1 FROM power_hours WHERE meter_key = ? AND hour = ? AND closed"
    values = (state.meter_key, state.state_us // HOUR_US)
    if conn.execute(sql, values).fetchone() is None:
        yield "the reading of its present state is missing"


# --- Copying --------------------------------------------------------------------------


def _check_target(target: Path, database: Path | None) -> None:
    """Refuse to write over a directory, this database, or what belongs to any database in use."""
    is_own = database is not None and target.exists() and target.samefile(database)
    if target.is_dir() or is_own:
        raise StorageError(target, "a directory, or the database itself: name another file")
    name = os.path.realpath(target)  # writing to a link writes to what it names
    beside = [name + suffix for suffix in ("-wal", "-journal")]
    beside += [name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)]
    if any(os.path.isfile(path) for path in beside):
        raise StorageError(target, "a database in use, or a part of one: name another file")


@contextlib.contextmanager
def _temporary_database(target: Path, purpose: str) -> Iterator[Path]:
    """A private file beside the target, which goes with all that SQLite puts beside it."""
    unfinished = target.with_name(f".{target.name}.{os.urandom(4).hex()}.{purpose}")
    try:
        _create_private(unfinished)
        yield unfinished
    finally:
        for suffix in ("", *_SUFFIXES):
            with contextlib.suppress(OSError):
                os.unlink(f"{unfinished}{suffix}")


def _copy_database(source: Path, unfinished: Path, target: Path) -> None:
    """Copy a backup, which stays as it is, with what SQLite keeps beside it.

    A full disk is that of the target, beside which the unfinished copy lies.
    """
    if not source.is_file():
        raise StorageError(source, "no such file: name a backup")
    if not source.stat().st_size:
        raise StorageError(source, "an empty file is not a backup: name another")
    try:
        # Opened to be read only: it may lie on a medium that cannot be written.
        uri = f"{source.as_uri()}?mode=ro"
        if not os.path.exists(f"{source}-wal"):
            uri += "&immutable=1"
        with contextlib.ExitStack() as stack:
            original = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT)
            stack.callback(original.close)
            copy = sqlite3.connect(unfinished)
            stack.callback(copy.close)
            _copy_pages(original, copy)
    except sqlite3.Error as error:
        raise _storage_error(error, target if _is_full_disk(error) else source) from error


def _is_full_disk(error: Exception) -> bool:
    """By the text, which every Python has; the names of SQLite's errors come with 3.11."""
    return "disk is full" in str(error)


def _copy_pages(original: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    """Copy by SQLite's own backup, in one commit; wait for other writers up to BUSY_TIMEOUT."""
    deadline = time.monotonic() + BUSY_TIMEOUT

    def give_up(status: int, _remaining: int, _total: int) -> None:
        if status in (_SQLITE_BUSY, _SQLITE_LOCKED) and time.monotonic() >= deadline:
            raise TimeoutError

    original.backup(copy, pages=-1, progress=give_up, sleep=0.02)


def _prepare_backup(unfinished: Path, source: Path, target: Path, page_bytes: int) -> None:
    """Check a private copy of a backup, upgrade it, and make it a line of history of its own."""
    try:
        with PowerManager(unfinished) as copy:
            problems = copy.check()
            copy._write(_renew_file_id)
    except StorageError as error:
        path = target if _is_full_disk(error) else source
        raise StorageError(path, error.reason, error.sqlite_errorname) from error
    damage = [problem for problem in problems if not problem.startswith("first_release_")]
    if damage:
        raise StorageError(source, f"this backup is damaged ({damage[0]}): name another")
    with contextlib.closing(_connect(unfinished)) as conn:
        _pragma(conn, "journal_mode = delete")  # in WAL mode the page size is fixed
        conn.execute(f"PRAGMA page_size = {page_bytes}")
        conn.execute("VACUUM")


def _renew_file_id(conn: sqlite3.Connection) -> None:
    conn.execute("UPDATE power_settings SET value = ? WHERE name = 'file_id'", (_new_file_id(),))


def _present_page_bytes(target: Path) -> int | None:
    """The page size of the present file, None if it is damaged. Refuse another program's."""
    try:
        with contextlib.closing(_connect(target)) as conn:
            application_id = _pragma(conn, "application_id")
            if application_id != _APPLICATION_ID and _pragma(conn, "schema_version"):
                _recognise(conn, target)
            return int(_pragma(conn, "page_size")) if _pragma(conn, "page_count") else _PAGE_BYTES
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if _is_damage(error):
            return None
        raise


def _is_damage(error: Exception) -> bool:
    if isinstance(error, UnicodeDecodeError):
        return True
    name = getattr(error, "sqlite_errorname", "")
    if not name:  # on Python 3.10; a full disk or a lock is an OperationalError
        return type(error) is sqlite3.DatabaseError
    return name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _restore(target: Path, source: Path) -> None:
    """Put a backup in place of the present content of a file, or of a file that is missing."""
    if source.exists() and target.exists() and source.samefile(target):
        raise StorageError(source, "the database itself: name a backup of it")
    _check_regular(target, target)
    try:
        with _temporary_database(target, "restore") as unfinished:
            _copy_database(source, unfinished, target)
            page_bytes: int | None = _PAGE_BYTES
            if target.exists() and target.stat().st_size:
                page_bytes = _present_page_bytes(target)
            _prepare_backup(unfinished, source, target, page_bytes or _PAGE_BYTES)
            if page_bytes is None:
                _replace_damaged(target, unfinished)
            else:
                _put_in(target, unfinished)
    except TimeoutError:
        reason = f"SQLITE_BUSY: database is locked; {_HINTS['SQLITE_BUSY']}"
        raise StorageError(target, reason, "SQLITE_BUSY") from None
    except OSError as error:
        if isinstance(error, PowerManagerError):
            raise
        raise _storage_error(error, target) from error
    except _DATABASE_ERRORS as error:
        raise _storage_error(error, target) from error


def _put_in(target: Path, unfinished: Path) -> None:
    """Write the copy into the present file with one commit.

    SQLite itself does it, so an old -wal beside the file and other processes that have it open
    do no harm: they see the new content, whole, from their next transaction on.
    """
    _create_private(target)
    with contextlib.ExitStack() as stack:
        copy = sqlite3.connect(unfinished)
        stack.callback(copy.close)
        present = _connect(target)
        stack.callback(present.close)
        present.execute("PRAGMA busy_timeout = 100")  # milliseconds: _copy_pages() waits
        _copy_pages(copy, present)


def _replace_damaged(target: Path, unfinished: Path) -> None:
    """Put the copy in place of a file that SQLite cannot open, which is kept under another name."""
    _sync(unfinished, os.O_RDWR)
    names = (target.with_name(f"{target.name}.damaged{number}") for number in chain([""], count(2)))
    aside = next(name for name in names if not name.exists())
    # An old -wal must go first: it would be replayed over the new file.
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            os.replace(f"{target}{suffix}", f"{aside}{suffix}")
    os.replace(target, aside)
    _sync(target.parent, os.O_RDONLY)
    os.replace(unfinished, target)
    _sync(target.parent, os.O_RDONLY)
    _log.warning("%s: the damaged file is kept as %s", target, aside)


def restore_database(db_path: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Put the backup at `path` in place of the database at `db_path`, as PowerManager.restore does.

    It also works if that database is missing, or too damaged to open: the damaged file is then
    kept beside it, with `.damaged` after its name. Raises StorageError; the database is then as it
    was.
    """
    target = Path(os.path.abspath(_check_path("db_path", db_path)))
    source = Path(os.path.abspath(_check_path("path", path)))
    _restore(Path(os.path.realpath(target)), source)


# --- PowerManager ---------------------------------------------------------------------


class PowerManager:
    """A file of devices, their meters, readings and events; a context manager.

    db_path: the database; if it is missing, one is made that only its owner can read. ":memory:":
        one that lasts as long as this object.
    durability: "full" (default): what log_power returned survives a power cut. "normal": it
        survives the end of the process, and a power cut may take the last moments. The file stays
        whole either way.
    alert_repeat: seconds after which a meter that is still low or critical raises its event
        again; 0: with every reading; None (default): never.
    max_gap: seconds between two readings over which energy is still booked (default 5400; 0: none
        at all). The file keeps the value it was made with: the default takes that value, any other
        must equal it.
    alert_types: the types of meters whose readings raise alerts (default: battery alone).
    clock: returns the time in epoch seconds.

    Threads can share one object, and any number of processes can have the file open. Every call
    that writes is one transaction. Raises InvalidValue for an argument, NotFound for an unknown
    id, StorageError for the file; after any of them the file is as it was before the call.
    """

    # --- Lifecycle

    _is_closed = True  # until it is open: for __del__

    def __init__(
        self,
        db_path: str | os.PathLike[str] = DB_PATH,
        *,
        durability: str = "full",
        alert_repeat: float | None = None,
        max_gap: float = _DEFAULT_MAX_GAP_S,
        alert_types: Iterable[MeterType | str] = (MeterType.BATTERY,),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pid = os.getpid()
        self.db_path: Path = _check_path("db_path", db_path)
        if durability not in ("full", "normal"):
            raise _invalid("durability", "'full' or 'normal'", durability)
        if not callable(clock):
            raise _invalid("clock", "a function that returns epoch seconds", clock)
        self._durability = durability
        self._clock = clock
        self._alert_repeat_us: int | None = None
        if alert_repeat is not None:
            self._alert_repeat_us = check_duration("alert_repeat", alert_repeat, SECOND_US, "s")
        self._alert_types = frozenset(
            _check_member(MeterType, "alert_types", kind).value
            for kind in check_iterable("alert_types", alert_types)
        )
        max_gap_us = check_duration("max_gap", max_gap, SECOND_US, "s")
        self._is_memory = str(self.db_path) == ":memory:"
        # Connections are opened later too, when the working directory may be another one.
        self._path = self.db_path
        if not self._is_memory:
            self._path = Path(os.path.abspath(self.db_path))
        self._readers = _Readers(lambda: _connect(self._path, self._durability))
        self._watcher: sqlite3.Connection | None = None  # for data_version()
        self._watching = threading.Lock()
        self._place: tuple[int, int] | None = None  # not known while it is being opened
        self._transaction = self._open(max_gap_us)
        self._is_closed = False

    def _open(self, max_gap_us: int) -> _Transaction:
        with contextlib.ExitStack() as undo:
            try:
                if not self._is_memory:
                    _check_is_file(self._path, self.db_path)
                    _create_private(Path(os.path.realpath(self._path)))
                conn = _connect(self._path, self._durability)
                undo.callback(conn.close)
                transaction = _Transaction(conn, self.db_path, self._check_place)
                if _recognise(conn, self.db_path) == _FileKind.NEW:
                    conn.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
                _enable_wal(conn, self.db_path)
                if _recognise(conn, self.db_path) != _FileKind.OURS:
                    transaction.run(lambda conn: _make_tables(conn, self.db_path, max_gap_us))
                _check_schema(conn, self.db_path)
                _check_max_gap(conn, self.db_path, max_gap_us)
                conn.execute("PRAGMA foreign_keys = ON")
                self._place = self._present_place()
            except _DATABASE_ERRORS as error:
                raise _storage_error(error, self.db_path) from error
            except OSError as error:
                if isinstance(error, PowerManagerError):
                    raise
                raise _storage_error(error, self.db_path) from error
            undo.pop_all()
        return transaction

    def __enter__(self) -> PowerManager:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._is_closed and self._pid == os.getpid():
            self._close_connections()

    def close(self) -> None:
        """Close the file; closing it again does nothing. Raises PowerManagerError in a transaction.

        In the child of a fork it only forgets the file, which is its parent's.
        """
        if self._is_closed:
            return
        if self._pid != os.getpid():  # first: at the fork another thread may have been writing
            self._is_closed = True
            return
        self._transaction.hold("close()", self._close_connections)

    def _close_connections(self) -> None:
        self._is_closed = True
        self._readers.close()
        with self._watching:
            if self._watcher is not None:
                self._watcher.close()
                self._watcher = None
        self._transaction.connection.close()

    def _check_usable(self) -> None:
        if self._is_closed:
            raise StorageError(self.db_path, "this PowerManager is closed: open another")
        if self._pid != os.getpid():
            raise StorageError(self.db_path, "opened before a fork: open another in the child")

    def _present_place(self) -> tuple[int, int] | None:
        """Which file the path names now; None in memory, or where there is no file."""
        if self._is_memory:
            return None
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def is_replaced(self) -> bool:
        """Whether the path names another file than the one that is open, or none any more.

        Such a file has no news for whoever follows it, and a write to it raises StorageError. A
        restored backup is the same file; one in memory is never replaced.
        """
        return self._place is not None and self._present_place() != self._place

    def _check_place(self) -> None:
        """Refuse to commit to a file that the path no longer names: it would be gone."""
        if self.is_replaced():
            raise StorageError(
                self.db_path,
                "this file was deleted or replaced while it was open: close it and open it again",
            )

    @property
    def max_gap(self) -> float:
        """Seconds between two readings over which energy is booked, as the file says."""
        return self._read(lambda conn: _setting(conn, "max_gap_us", int)) / SECOND_US

    @property
    def file_id(self) -> str:
        """The random id of this line of history: a restored backup starts another."""
        return self._read(lambda conn: _setting(conn, "file_id", str))

    def data_version(self) -> int:
        """A number that changes whenever anything in the file has changed since the last call.

        Changes of this object, of others and of other processes count, once they are committed.
        Compare it only with earlier results of the same object.
        """
        self._check_usable()
        if self._is_memory:
            return self._transaction.connection.total_changes
        try:
            with self._watching:
                if self._watcher is None:
                    self._watcher = _connect(self._path, self._durability)
                return int(_pragma(self._watcher, "data_version"))
        except _DATABASE_ERRORS as error:
            raise _storage_error(error, self.db_path) from error

    # --- Transactions

    def transaction(self) -> contextlib.AbstractContextManager[PowerManager]:
        """Group any calls into one commit: all of them are stored, or none.

        Nests: an inner block that fails takes back its own calls only. Any exception rolls back
        and is raised again. Writes of other threads and processes wait meanwhile, for BUSY_TIMEOUT
        at most. The block belongs to its thread and its asyncio task: a write of another task of
        the same thread raises PowerManagerError, and a read of such a task sees what is committed.
        """
        self._check_usable()
        return _Block(self._transaction, self, None)

    def connection(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """The file's own sqlite3 connection, in one transaction, for tables of another package.

        Nests with transaction(), so rows of those tables and calls of this object are stored
        together. Name the tables with a prefix of the package's own, leave those of this module
        alone, and neither commit nor roll back. SQLite's errors are raised as StorageError, all
        others as they are; after any of them nothing is stored.
        """
        self._check_usable()
        return _Block(self._transaction, self._transaction.connection, self.db_path)

    def _write(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Return what work(connection) returns, in one transaction."""
        self._check_usable()
        try:
            return self._transaction.run(work)
        except _CallerRaised as raised:
            original = raised.original
        except _DATABASE_ERRORS as error:
            raise _storage_error(error, self.db_path) from error
        raise original

    def _read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Return what work(connection) returns; it sees one snapshot.

        In a transaction of this thread and task that is the transaction's own, else it is what is
        committed, read beside the writing connection.
        """
        self._check_usable()
        if self._is_memory or self._transaction.is_mine():
            return self._write(work)
        try:
            return self._readers.run(work)
        except _DATABASE_ERRORS as error:
            self._check_place()
            raise _storage_error(error, self.db_path) from error

    def _now_us(self) -> int:
        """The clock in microseconds since 1970."""
        return to_microseconds(self._clock(), "clock")

    def _ago_us(self, name: str, span: float, unit_us: int, unit: str) -> int:
        """The time that long before now; -1 where that is before 1970."""
        return max(self._now_us() - check_duration(name, span, unit_us, unit), -1)

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
        """Register a device, or give a registered one exactly these values.

        Its meters, readings and events stay; update_device() changes single values.
        shutdown_threshold is in watts (default 3.0; 0: only a negative total is below it),
        target_wh in watt-hours a day (None: no target; 0: within it only while nothing is used).
        The two battery thresholds are in % of charge and override the constants for this device;
        critical must be below low (0: an alert at exactly 0 %, and never a critical state). Raises
        InvalidValue.
        """
        device = _check_device(
            device_id,
            name,
            shutdown_threshold,
            target_wh,
            low_battery_threshold,
            critical_battery_threshold,
        )
        self._write(lambda conn: _save_device(conn, device))
        return device

    def update_device(
        self,
        device_id: str,
        *,
        name: str | _Unchanged = _UNCHANGED,
        shutdown_threshold: float | _Unchanged = _UNCHANGED,
        target_wh: float | _Unchanged | None = _UNCHANGED,
        low_battery_threshold: float | _Unchanged | None = _UNCHANGED,
        critical_battery_threshold: float | _Unchanged | None = _UNCHANGED,
    ) -> DeviceRecord:
        """Change only the values that are given of a device; return the device.

        None means no target, or the constant for a threshold. Raises NotFound, InvalidValue.
        """
        changes = {
            "name": name,
            "shutdown_threshold": shutdown_threshold,
            "target_wh": target_wh,
            "low_battery_threshold": low_battery_threshold,
            "critical_battery_threshold": critical_battery_threshold,
        }

        def update(conn: sqlite3.Connection) -> DeviceRecord:
            device = _device_record(conn, device_id)
            for field, value in changes.items():
                if value is not _UNCHANGED:
                    setattr(device, field, value)
            device = _check_device(*dataclasses.astuple(device))
            _save_device(conn, device)
            return device

        return self._write(update)

    def get_device(self, device_id: str) -> DeviceRecord:
        """The device with that id. Raises NotFound."""
        return self._read(lambda conn: _device_record(conn, device_id))

    def list_devices(self) -> list[DeviceRecord]:
        """Every device, in order of registration."""
        sql = f"{_DEVICE_SQL} ORDER BY device_key"
        return self._read(lambda conn: [_device_of(row) for row in _select(conn, sql)])

    def delete_device(self, device_id: str) -> None:
        """Delete a device with its meters, readings, statistics and events. Raises NotFound."""

        def delete(conn: sqlite3.Connection) -> None:
            device_key = _device_key(conn, device_id)
            sql = "SELECT meter_key FROM power_meters WHERE device_key = ?"
            for (meter_key,) in conn.execute(sql, (device_key,)).fetchall():
                _delete_meter(conn, meter_key)
            conn.execute("DELETE FROM power_events WHERE device_key = ?", (device_key,))
            conn.execute("DELETE FROM devices WHERE device_key = ?", (device_key,))
            _add_deletion(conn, "device", str.__str__(device_id))

        self._write(delete)

    def add_meter(
        self,
        device_id: str,
        meter_type: MeterType | str,
        capacity_wh: float = 0.0,
        name: str | None = None,
        *,
        charge_pct: float | None = 100.0,
    ) -> PowerMeter:
        """Add a meter to a device: 0 V and 0 A until its first reading.

        meter_type is a MeterType or its text, capacity_wh watt-hours (default 0.0: unknown, so
        that it counts in no runtime). charge_pct, 0 to 100, is the charge until a reading brings
        one; None: unknown, for a pack without a gauge. Every call adds a meter, even under a name
        that is in use. Raises NotFound, InvalidValue.
        """
        kind = _check_member(MeterType, "meter_type", meter_type)
        checked_name = _check_meter_name(name)
        capacity = _check_capacity(capacity_wh)
        charge = _check_charge(charge_pct)
        meter_id = os.urandom(12).hex()  # 96 bits: unique over any fleet
        sql = """INSERT INTO power_meters
            (id, device_key, type, name, capacity_wh, charge_pct, first_charge_pct)
            VALUES (?, ?, ?, ?, ?, ?, ?)"""

        def add(conn: sqlite3.Connection) -> PowerMeter:
            device_key = _device_key(conn, device_id)
            values = (meter_id, device_key, kind.value, checked_name, capacity, charge, charge)
            conn.execute(sql, values)
            return _meter_record(conn, meter_id)

        return self._write(add)

    def update_meter(
        self,
        meter_id: str,
        *,
        name: str | _Unchanged | None = _UNCHANGED,
        capacity_wh: float | _Unchanged = _UNCHANGED,
        active: bool | _Unchanged = _UNCHANGED,
        charge_pct: _Unchanged | None = _UNCHANGED,
    ) -> PowerMeter:
        """Change only the values that are given of a meter; return the meter.

        An inactive meter counts in no present figure (budget, runtime, states); its energy still
        counts. The next reading that becomes its present state makes it active again.

        charge_pct=None forgets the charge, as of a gauge that has gone: it is unknown until a
        reading brings one. Stored readings stay as they are, and so does the alert level: only a
        known charge ends an alert. A number is refused, because only readings bring a charge.
        Raises NotFound, InvalidValue.

        >>> with PowerManager(":memory:") as pm:
        ...     device = pm.register_device("edge-001", "Edge Node")
        ...     bare = pm.add_meter("edge-001", "battery", 24.0, "No gauge", charge_pct=None)
        ...     print(pm.log_power(bare.id, 12.4, 0.5).charge_pct)
        ...     print(pm.log_power(bare.id, 12.4, 0.5, charge_pct=70.0).charge_pct)
        ...     print(pm.update_meter(bare.id, charge_pct=None).state)
        None
        70.0
        unknown
        """
        changes: dict[str, Any] = {}
        if not isinstance(name, _Unchanged):
            changes["name"] = _check_meter_name(name)
        if not isinstance(capacity_wh, _Unchanged):
            changes["capacity_wh"] = _check_capacity(capacity_wh)
        if not isinstance(active, _Unchanged):
            changes["active"] = int(_check_flag("active", active))
        forgets_charge = not isinstance(charge_pct, _Unchanged)
        if forgets_charge and charge_pct is not None:
            raise _invalid("charge_pct", "None, because only readings bring a charge", charge_pct)

        def update(conn: sqlite3.Connection) -> PowerMeter:
            meter_key = _meter_key(conn, meter_id)
            if forgets_charge:
                conn.execute(_FORGET_CHARGE_SQL, (meter_key,))
            for column, value in changes.items():
                sql = f"UPDATE power_meters SET {column} = ? WHERE meter_key = ?"
                conn.execute(sql, (value, meter_key))
            return _meter_record(conn, meter_id)

        return self._write(update)

    def get_meter(self, meter_id: str) -> PowerMeter:
        """The meter with that id, in its present state. Raises NotFound."""
        return self._read(lambda conn: _meter_record(conn, meter_id))

    def list_meters(self, device_id: str | None = None) -> list[PowerMeter]:
        """The meters of a device, or of all, in order of adding; empty for an unknown device."""
        where = ""
        values: tuple[str, ...] = ()
        if device_id is not None:
            where = "WHERE d.id = ?"
            values = (check_text("device_id", device_id),)
        sql = f"{_METER_SQL} {where} ORDER BY m.meter_key"
        return self._read(lambda conn: [_meter_of(row) for row in _select(conn, sql, values)])

    def delete_meter(self, meter_id: str) -> None:
        """Delete a meter with its readings and statistics; events stay. Raises NotFound."""

        def delete(conn: sqlite3.Connection) -> None:
            row = _meter_row(conn, meter_id)
            meter = _meter_of(row)
            _delete_meter(conn, row["meter_key"])
            _add_deletion(conn, "meter", meter.device_id, meter.id)

        self._write(delete)

    # --- Readings

    def log_power(
        self,
        meter_id: str,
        voltage: float | None,
        current: float | None,
        charge_pct: float | None = None,
        *,
        timestamp: Any = None,
        live: bool = False,
    ) -> PowerReading:
        """Store one reading, with its meter's present state, its hour's statistics and its alert.

        voltage is in volts and current in amperes out of the source, -1e6 to 1e6; None: unknown.
        charge_pct is clamped to 0..100; None takes the charge of the reading before, which may be
        unknown.

        Without timestamp the reading is live, taken now: it becomes the meter's present state,
        whatever the clock says. With one (an aware datetime, ISO 8601 text with an offset, or
        epoch seconds; 1970 to 2200) it is recorded: it becomes the present state only if it is the
        meter's newest, and it is stored once however often it is sent; the stored one is returned.
        A recorded reading of an hour that prune() has closed is not stored, and the log says so.
        live=True with a timestamp: a live reading, taken then. Two live readings in the same
        microsecond are stored one microsecond apart. Raises NotFound, InvalidValue.

        >>> with PowerManager(":memory:") as pm:  # a gauge that reports its charge alone
        ...     device = pm.register_device("edge-001", "Edge Node")
        ...     gauge = pm.add_meter("edge-001", "battery", name="Gauge")
        ...     print(pm.log_power(gauge.id, None, None, charge_pct=64.0).wattage)
        ...     print(pm.get_meter(gauge.id).power_known)
        None
        False
        """
        checked_voltage, checked_current, checked_charge = _check_reading(
            voltage, current, charge_pct
        )
        given_us = _optional_microseconds(timestamp, "timestamp")
        is_live = _check_flag("live", live) or given_us is None

        def log(conn: sqlite3.Connection) -> tuple[_Sample, _ReadingWriter]:
            us = self._now_us() if given_us is None else given_us
            arrival = _Arrival(
                0,
                us,
                checked_voltage,
                checked_current,
                checked_charge,
                is_live,
                needs_charge=checked_charge is None,
            )
            writer = self._new_writer(conn)
            return writer.write_one(meter_id, arrival), writer

        sample, writer = self._write(log)
        writer.log_refused(self.db_path)
        (reading,) = _readings_of(str.__str__(meter_id), [sample])
        return reading

    def log_many(self, readings: Iterable[Sequence[Any]], *, live: bool = False) -> int:
        """Store readings in one transaction, all or none; return how many were new.

        readings yields (meter_id, voltage, current[, charge_pct[, timestamp]]), each as in
        log_power; live=True makes those with a timestamp live too. One without a timestamp has the
        time at which it is pulled, or, if the file is busy then, the time at which it is stored.
        They are streamed, so there may be any number. Up to 10,000 rows are pulled before the
        transaction begins; if there are more, it stays open while they are pulled, and calls that
        the iterable makes join it. An error names the row, from 1. Raises NotFound, InvalidValue.
        """
        rows = enumerate(check_iterable("readings", readings), 1)
        _check_flag("live", live)
        first_chunk = self._pull(rows, live)
        writer = self._store_chunks(first_chunk, lambda: self._pull_inside(rows, live))
        return writer.stored_count

    def _store_chunks(self, first_chunk: _Chunk, pull: Callable[[], _Chunk]) -> _ReadingWriter:
        """Store readings with checked values in one transaction: chunks, until one is not full."""

        def log(conn: sqlite3.Connection) -> _ReadingWriter:
            writer = self._new_writer(conn)
            if first_chunk.has_untimed():
                first_chunk.wait_until(self._now_us())
            chunk = first_chunk
            writer.write(chunk)
            while chunk.size == _CHUNK_ROWS:
                chunk = self._transaction.lend(pull, writer.finish)
                writer.write(chunk)
            writer.finish()
            return writer

        writer = self._write(log)
        writer.log_refused(self.db_path)
        return writer

    def _new_writer(self, conn: sqlite3.Connection) -> _ReadingWriter:
        return _ReadingWriter(conn, self._alert_types, self._alert_repeat_us)

    def _pull(self, rows: Iterator[tuple[int, Sequence[Any]]], live: bool) -> _Chunk:
        """The next rows of log_many, checked, live ones with the time of pulling them."""
        chunk = _Chunk()
        for number, row in rows:
            try:
                if type(row) is not tuple or len(row) != 5:
                    row = _padded_row(row)
                meter_id, voltage, current, charge_pct, timestamp = row
                is_live = live or timestamp is None
                us = self._now_us() if timestamp is None else to_microseconds(timestamp)
                voltage, current, charge_pct = _check_reading(voltage, current, charge_pct)
                needs_charge = charge_pct is None
                arrival = _Arrival(number, us, voltage, current, charge_pct, is_live, needs_charge)
                if timestamp is None:
                    chunk.add_untimed(meter_id, arrival)
                else:
                    chunk.add(meter_id, arrival)
            except InvalidValue as error:
                raise InvalidValue(f"row {number}: {error}") from error
            if chunk.size == _CHUNK_ROWS:
                break
        return chunk

    def _pull_inside(self, rows: Iterator[tuple[int, Sequence[Any]]], live: bool) -> _Chunk:
        """The same inside the transaction; the caller's own SQLite errors are not the file's."""
        try:
            return self._pull(rows, live)
        except _DATABASE_ERRORS as error:
            raise _CallerRaised(error) from error

    def calculate_wattage(self, meter_id: str) -> float | None:
        """Present watts of a meter, rounded to 4 decimals; None if unknown. Raises NotFound."""
        return self.get_meter(meter_id).wattage

    def get_history(self, meter_id: str, hours: float = 24) -> list[PowerReading]:
        """The readings newer than `hours` ago (default 24), oldest first.

        0: only those that are dated after now. Raises NotFound, InvalidValue.
        """
        after_us = self._ago_us("hours", hours, HOUR_US, "h")

        def read(conn: sqlite3.Connection) -> list[PowerReading]:
            meter_key = _meter_key(conn, meter_id)
            id_ = str.__str__(meter_id)
            readings: list[PowerReading] = []
            start_us = after_us + 1
            # Page by page, so that rows and records are not in memory together.
            while page := _samples_page(conn, meter_key, start_us, _END_OF_TIME_US):
                readings += _readings_of(id_, page)
                last_us, *_ = page[-1]
                start_us = last_us + 1
            return readings

        return self._read(read)

    def iter_history(
        self, meter_id: str, *, since: Any = None, until: Any = None
    ) -> Iterator[PowerReading]:
        """Iterate over the readings from `since` on and before `until`, oldest first.

        Both are as log_power's timestamp; None is no limit. Memory stays constant and no
        transaction is open between two readings, so later readings that arrive meanwhile are
        included. Raises NotFound, InvalidValue.
        """
        start_us = 0 if since is None else to_microseconds(since, "since")
        end_us = _END_OF_TIME_US if until is None else to_microseconds(until, "until")

        def page(from_us: int) -> list[_Sample]:
            return self._read(
                lambda conn: _samples_page(conn, _meter_key(conn, meter_id), from_us, end_us)
            )

        def pages(rows: list[_Sample]) -> Iterator[PowerReading]:
            id_ = str.__str__(meter_id)
            while rows:
                last_us, *_ = rows[-1]
                is_full = len(rows) == _PAGE_ROWS
                try:
                    found = _readings_of(id_, rows)
                except _DamagedValue as error:
                    raise _storage_error(error, self.db_path) from error
                yield from found
                rows = page(last_us + 1) if is_full else []

        return pages(page(start_us))  # the first page now: its errors belong to this call

    def delete_readings(self, meter_id: str, *, since: Any = None, until: Any = None) -> int:
        """Delete the readings from `since` on and before `until`; return how many there were.

        Both are as log_power's timestamp; None is no limit. Statistics are computed anew without
        them; an hour that prune() has closed goes whole, and a range that cuts one is refused. If
        the reading of the present state goes, the newest one left takes its place. Events stay.
        Raises NotFound, InvalidValue.
        """
        since_us = _optional_microseconds(since, "since")
        until_us = _optional_microseconds(until, "until")
        start_us, end_us = _instants(since_us, until_us, until)

        def delete(conn: sqlite3.Connection) -> int:
            row = _meter_row(conn, meter_id)
            meter = _meter_of(row)
            meter_key = row["meter_key"]
            _refuse_cut_hours(conn, meter_key, start_us, end_us)
            max_gap_us = _setting(conn, "max_gap_us", int)
            count = _delete_range(conn, meter_key, start_us, end_us, max_gap_us)
            _add_deletion(conn, "readings", meter.device_id, meter.id, since_us, until_us)
            return count

        return self._write(delete)

    # --- Sending elsewhere

    def pending_readings(self, limit: int = 500) -> list[PowerReading]:
        """Readings that wait to be sent elsewhere, at most `limit` (default 500; 0: none).

        For the one process that sends this file's readings: take some, send them, acknowledge
        them. What came in order or was live comes first, late readings follow, meters in turn. A
        process that stops in between sends the same readings again, under the same ids. Raises
        InvalidValue.

        >>> with PowerManager(":memory:") as pm:
        ...     device = pm.register_device("edge-001", "Edge Node")
        ...     pack = pm.add_meter("edge-001", "battery", name="Pack")
        ...     stored = pm.log_many([(pack.id, 3.7, 0.5)] * 124)
        ...     while readings := pm.pending_readings(limit=100):
        ...         print("sent", len(readings))
        ...         pm.acknowledge(readings)
        sent 100
        sent 24
        """
        checked_limit = check_count("limit", limit)
        return self._read(lambda conn: _pending_readings(conn, checked_limit))

    def pending_deletions(self, limit: int = 500) -> list[Deletion]:
        """Deletions that wait to be sent elsewhere, oldest first; send them before readings.

        At most `limit` (default 500; 0: none). Raises InvalidValue.
        """
        values = (check_count("limit", limit),)
        sql = "SELECT * FROM power_deletions ORDER BY sequence LIMIT ?"
        return self._read(lambda conn: [_deletion_of(row) for row in _select(conn, sql, values)])

    def acknowledge(self, items: Iterable[PowerReading | Deletion]) -> None:
        """Remove sent items from the outbox; the others stay pending.

        `items` come from pending_readings() and pending_deletions(). What the file does not have,
        or no longer has, changes nothing. Raises InvalidValue.
        """
        instants: dict[str, set[int]] = {}
        sequences: list[tuple[int]] = []
        for item in check_iterable("items", items):
            if isinstance(item, PowerReading):
                us = to_microseconds(item.timestamp)
                instants.setdefault(check_text("meter_id", item.meter_id), set()).add(us)
            elif isinstance(item, Deletion):
                sequences.append((check_count("sequence", item.sequence),))
            else:
                raise _invalid("items", "PowerReading and Deletion records", item)

        def acknowledge(conn: sqlite3.Connection) -> None:
            sql = "SELECT meter_key FROM power_meters WHERE id = ?"
            for meter_id, acknowledged in instants.items():
                found = conn.execute(sql, (meter_id,)).fetchone()
                if found is not None:
                    (meter_key,) = found
                    _acknowledge_readings(conn, meter_key, acknowledged)
            conn.executemany("DELETE FROM power_deletions WHERE sequence = ?", sequences)

        self._write(acknowledge)

    def resend(self, meter_id: str, *, since: Any = None, until: Any = None) -> int:
        """Put acknowledged readings back into the outbox; return how many are pending again.

        For a store elsewhere that has lost readings. Those from `since` on and before `until` are
        sent again, after all others and with the same ids. Both are as log_power's timestamp; None
        is no limit. Raises NotFound, InvalidValue.
        """
        since_us = _optional_microseconds(since, "since")
        until_us = _optional_microseconds(until, "until")
        start_us, end_us = _instants(since_us, until_us, until)

        def resend(conn: sqlite3.Connection) -> int:
            meter_key = _meter_key(conn, meter_id)
            return _resend_readings(conn, meter_key, start_us, end_us)

        return self._write(resend)

    # --- Alerts and events

    def trigger_event(
        self,
        device_id: str,
        event_type: PowerEventType | str,
        value: float = 0.0,
        note: str | None = None,
        *,
        meter_id: str | None = None,
        timestamp: Any = None,
    ) -> PowerEvent:
        """Record an event of a device; meter_id says which of its meters it is about.

        value is in the event's own unit, note text of 1 to 10,000 characters. The event happened
        now, or at `timestamp`, which is as log_power's; followers get it in the order of
        recording. Raises NotFound, InvalidValue.
        """
        kind = _check_member(PowerEventType, "event_type", event_type)
        number = check_number("value", value, -_MAX_FLOAT, _MAX_FLOAT, "in the event's unit")
        text = None if note is None else check_text("note", note, _MAX_NOTE)
        given_us = _optional_microseconds(timestamp, "timestamp")

        def trigger(conn: sqlite3.Connection) -> PowerEvent:
            device_key = _device_key(conn, device_id)
            about = None
            if meter_id is not None:
                meter = _meter_record(conn, meter_id)
                if meter.device_id != device_id:
                    raise _invalid("meter_id", f"a meter of the device {device_id!r}", meter_id)
                about = meter.id
            us = self._now_us() if given_us is None else given_us
            event = PowerEvent(
                id=os.urandom(8).hex(),
                device_id=str.__str__(device_id),
                type=kind,
                value=number,
                timestamp=from_microseconds(us),
                note=text,
                meter_id=about,
            )
            _add_event(conn, device_key, event, us)
            return event

        return self._write(trigger)

    def get_events(self, device_id: str, limit: int = 50) -> list[PowerEvent]:
        """The device's newest events, newest first; at most `limit` (default 50; 0: none).

        Raises NotFound, InvalidValue.
        """
        checked_limit = check_count("limit", limit)

        def read(conn: sqlite3.Connection) -> list[PowerEvent]:
            device_key = _device_key(conn, device_id)
            return _newest_events(conn, device_key, -1, checked_limit)

        return self._read(read)

    def events_since(self, sequence: int, *, limit: int = 1000) -> list[tuple[int, PowerEvent]]:
        """Every device's events recorded after that one, oldest first, each with its number.

        For followers: start with 0, continue with the last number you got; event_follower() keeps
        that number in the file. Numbers rise and are never used twice. At most `limit` (default
        1000; 0: none). Raises InvalidValue.
        """
        values = (check_count("sequence", sequence), check_count("limit", limit))
        return self._read(lambda conn: _events_after(conn, *values))

    def last_sequence(self) -> int:
        """The number of the event that was recorded last; 0 before the first."""
        return self._read(_last_sequence)

    def event_follower(self, name: str, *, from_start: bool = False) -> EventFollower:
        """A follower of all events, whose position is kept in the file under that name.

        A new name starts after the newest event, or with from_start=True at the first one. Raises
        InvalidValue.
        """
        checked_name = check_text("name", name)

        def add(conn: sqlite3.Connection) -> None:
            sequence = 0 if from_start else _last_sequence(conn)
            sql = "INSERT OR IGNORE INTO power_cursors (name, sequence) VALUES (?, ?)"
            conn.execute(sql, (checked_name, sequence))

        self._write(add)
        return EventFollower(self, checked_name)

    # --- Estimates and statistics

    def estimate_runtime(
        self, device_id: str, *, window_minutes: float | None = None
    ) -> float | None:
        """Hours until the device's batteries of known capacity and charge are empty, 2 decimals.

        Remaining watt-hours over watts: the present ones, or with window_minutes each battery's
        mean over that long before its present state (a gauge's estimate jumps from sample to
        sample; two minutes settle it). None if there is no active one, if the watts of one are
        unknown, or if together they are not draining. Meters of type ups do not count. Raises
        NotFound, InvalidValue.
        """
        window_us = 0
        if window_minutes is not None:
            window_us = check_duration("window_minutes", window_minutes, _MINUTE_US, "min")
        sql = """SELECT capacity_wh, charge_pct, coalesce((
            SELECT avg(v.voltage * v.current_draw) FROM power_values v
            WHERE v.meter_key = m.meter_key AND v.timestamp > m.state_us - :window_us
            AND v.timestamp <= m.state_us), voltage * current_draw) AS watts
            FROM power_meters m WHERE device_key = :key AND type = 'battery' AND active"""

        def read(conn: sqlite3.Connection) -> float | None:
            values = {"key": _device_key(conn, device_id), "window_us": window_us}
            return _runtime_hours([_battery_of(row) for row in _select(conn, sql, values)])

        return self._read(read)

    def get_statistics(
        self, meter_id: str, *, days: float = 7, bucket: str = "hour"
    ) -> list[PowerStatistics]:
        """A row for each UTC hour or day ("hour", "day") with readings in the last `days`.

        Oldest first; days is 7 by default (0: the present hour or day). The bucket in which that
        span starts is whole. The energy between two readings is in the bucket of the later one.
        Raises NotFound, InvalidValue.
        """
        if bucket not in ("hour", "day"):
            raise _invalid("bucket", "'hour' or 'day'", bucket)
        hours = 1 if bucket == "hour" else 24
        first = self._ago_us("days", days, DAY_US, "days") // (HOUR_US * hours)
        sql = f"""SELECT :meter_id AS meter_id, hour / {hours} * {hours} AS start_hour, {_SUMS_SQL}
            FROM power_hours WHERE meter_key = :key AND hour >= :first
            GROUP BY start_hour ORDER BY start_hour"""

        def read(conn: sqlite3.Connection) -> list[PowerStatistics]:
            key = _meter_key(conn, meter_id)
            values = {"key": key, "first": first * hours, "meter_id": str.__str__(meter_id)}
            return [_statistics_of(row) for row in _select(conn, sql, values)]

        return self._read(read)

    def energy_totals(self, meter_id: str) -> EnergyTotals:
        """The energy of a meter since its first reading, pruned readings included.

        Raises NotFound.
        """
        sql = f"SELECT {_SUMS_SQL} FROM power_hours WHERE meter_key = ?"

        def read(conn: sqlite3.Connection) -> EnergyTotals:
            (row,) = conn.execute(sql, (_meter_key(conn, meter_id),)).fetchall()
            reading_count, *_ = row
            sums = MeterSums() if reading_count is None else _sums_of(row)
            return EnergyTotals(
                str.__str__(meter_id), rounded(sums.energy_out_wh), rounded(sums.energy_in_wh)
            )

        return self._read(read)

    # --- Budget and report

    def power_budget_check(self, device_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The power budget of each device, by its id; `{"error": ...}` for an unknown one.

        make_budget() says what its keys mean. The number of queries does not depend on how many
        devices there are. Raises InvalidValue.
        """
        ids = [check_text("device_id", id_) for id_ in check_iterable("device_ids", device_ids)]
        after_us = self._ago_us("days", 1, DAY_US, "days")
        wanted = (json.dumps(ids),)
        device_sql = f"{_DEVICE_SQL} WHERE id IN (SELECT value FROM json_each(?))"
        meter_sql = f"""{_METER_SQL} WHERE d.id IN (SELECT value FROM json_each(?))
            ORDER BY m.meter_key"""

        def read(conn: sqlite3.Connection) -> dict[str, dict[str, Any]]:
            devices = [_device_of(row) for row in _select(conn, device_sql, wanted)]
            meters: dict[str, list[PowerMeter]] = {device.id: [] for device in devices}
            ids_by_key: dict[int, str] = {}
            for row in _select(conn, meter_sql, wanted):
                meter = _meter_of(row)
                meters[meter.device_id].append(meter)
                ids_by_key[row["meter_key"]] = meter.id
            sums = _window_sums(conn, ids_by_key, after_us)
            last_day = {ids_by_key[key]: part for key, part in sums.items()}
            return {
                device.id: make_budget(device, meters[device.id], last_day) for device in devices
            }

        known = self._read(read)
        return {id_: known.get(id_, {"error": str(_not_found("device", id_))}) for id_ in ids}

    def export_report(self, device_id: str, days: float = 7) -> str:
        """The device's report over the last `days` (default 7) as JSON text.

        make_report() says what its keys mean. Exact: the same as going through the readings newer
        than that, those dated ahead of the clock included; energy counts if both readings of a pair
        are in the period. Hours of it that prune() has closed count whole. Raises NotFound, and
        InvalidValue unless days is more than 0.
        """
        now_us = self._now_us()
        span_us = check_duration("days", days, DAY_US, "days")
        if span_us == 0:
            raise _invalid("days", "a number above 0 (days)", days)
        after_us = max(now_us - span_us, -1)
        meter_sql = f"{_METER_SQL} WHERE d.id = ? ORDER BY m.meter_key"
        count_sql = "SELECT count(*) FROM power_events WHERE device_key = ? AND timestamp > ?"

        def read(conn: sqlite3.Connection) -> dict[str, Any]:
            device_row = _device_row(conn, device_id)
            device = _device_of(device_row)
            device_key = device_row["device_key"]
            rows = _select(conn, meter_sql, (device.id,))
            ids_by_key = {row["meter_key"]: row["id"] for row in rows}
            sums = _window_sums(conn, ids_by_key, after_us)
            (event_count,) = conn.execute(count_sql, (device_key, after_us)).fetchone()
            return make_report(
                device,
                [_meter_of(row) for row in rows],
                {ids_by_key[key]: part for key, part in sums.items()},
                days=days,
                generated_us=now_us,
                events=_newest_events(conn, device_key, after_us, 20),
                event_count=event_count,
            )

        return json.dumps(self._read(read), indent=2, allow_nan=False)

    # --- Maintenance

    def prune(self, keep_days: float) -> int:
        """Delete the readings of whole hours older than that many days; return how many.

        Statistics, present states and events stay; whether a reading was acknowledged makes no
        difference. A meter keeps the hour of its newest reading, and the last reading before an
        hour that stays. Recorded readings of the closed hours are no longer stored, because the
        library could not tell whether they had been counted; live ones, of a clock that was set
        back, are. prune() works in short transactions, so that others can write meanwhile.
        keep_days 0 closes all hours before the present one. Raises InvalidValue.
        """
        cutoff_us = self._ago_us("keep_days", keep_days, DAY_US, "days")
        limit_hour = max(cutoff_us, 0) // HOUR_US
        sql = "SELECT meter_key FROM power_meters ORDER BY meter_key"
        rows = self._read(lambda conn: conn.execute(sql).fetchall())
        deleted_count = 0
        for (meter_key,) in rows:
            close = functools.partial(_close_hours, meter_key=meter_key, limit_hour=limit_hour)
            while (count := self._write(close)) is not None:
                deleted_count += count
        return deleted_count

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Write a consistent copy to path, while others read and write; replace a file there.

        The copy has a temporary name until it is whole and on the disk, so path never holds half
        of one. Do not copy a database by other means: SQLite replays the -wal file that lies
        beside it over whatever has its name. Raises StorageError, also if path is a database in
        use, a pipe or a device, and PowerManagerError in a transaction.
        """
        target = Path(os.path.abspath(_check_path("path", path)))
        self._check_usable()
        if self._transaction.is_mine():
            raise PowerManagerError(
                f"{self.db_path}: backup() inside a transaction: leave it first"
            )

        def copy_to(conn: sqlite3.Connection, unfinished: Path) -> None:
            with contextlib.closing(sqlite3.connect(unfinished)) as copy:
                try:
                    conn.backup(copy)
                except sqlite3.Error as error:
                    raise _storage_error(error, target) from error

        try:
            _check_target(target, None if self._is_memory else self._path)
            _check_regular(target, target)
            with _temporary_database(target, "tmp") as unfinished:
                self._copy(functools.partial(copy_to, unfinished=unfinished))
                _sync(unfinished, os.O_RDWR)
                os.replace(unfinished, target)
                _sync(target.parent, os.O_RDONLY)
        except OSError as error:
            if isinstance(error, PowerManagerError):
                raise
            raise _storage_error(error, target) from error

    def _copy(self, work: Callable[[sqlite3.Connection], None]) -> None:
        if self._is_memory:
            self._transaction.hold("backup()", lambda: work(self._transaction.connection))
        else:
            self._read(work)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Put the backup at `path` in place of the file's content, in one commit.

        The backup, also one of the first release, is checked and upgraded in a private copy first,
        and stays as it is. Other threads and processes may have the file open: from their next
        call on they see the backup's content. The file then has a new file_id. Raises StorageError
        if the backup is damaged, or if another process goes on writing for BUSY_TIMEOUT; the file
        is then as it was. Raises PowerManagerError in a transaction, or in memory.
        """
        source = Path(os.path.abspath(_check_path("path", path)))
        self._check_usable()
        if self._is_memory:
            raise PowerManagerError("restore() in memory: open the backup as a file instead")
        if self._transaction.is_mine():
            raise PowerManagerError(
                f"{self.db_path}: restore() inside a transaction: leave it first"
            )
        _restore(Path(os.path.realpath(self._path)), source)

    def check(self) -> list[str]:
        """What is wrong with the file, one text each; an empty list if nothing is.

        It finds any single changed value in readings, in statistics, of pruned hours too, and in
        events; it compares every open hour with its readings, and present states and newest
        readings with theirs; it runs SQLite's own integrity check, and mentions rows that an
        upgrade could not place. It does not cover names, capacities, thresholds, targets and first
        charges that were changed to other valid ones, alert levels, what waits to be sent, cursors
        of followers, and tables of other packages.
        """
        problems: list[str] = []

        def read(conn: sqlite3.Connection) -> None:
            for problem in _file_problems(conn):
                problems.append(problem)  # noqa: PERF402  # what was found before an error counts

        try:
            self._read(read)
        except StorageError as error:
            problems.append(str(error))
        return problems


class EventFollower:
    """Follows every device's events, with its position kept in the file; see event_follower().

    Process what is pending, then acknowledge the last number: after a restart the next event is
    the one after it, so each event comes at least once.

    >>> with PowerManager(":memory:") as pm:
    ...     device = pm.register_device("edge-001", "Edge Node")
    ...     follower = pm.event_follower("mailer")
    ...     event = pm.trigger_event("edge-001", "restore", note="service restarted")
    ...     for sequence, event in follower.pending():
    ...         print(event.type, event.note)
    ...         follower.acknowledge(sequence)
    restore service restarted
    """

    def __init__(self, pm: PowerManager, name: str) -> None:
        self._pm = pm
        self.name = name

    @property
    def cursor(self) -> int:
        """The number of the event that was acknowledged last."""
        return self._pm._read(lambda conn: _cursor(conn, self.name))

    def pending(self, limit: int = 1000) -> list[tuple[int, PowerEvent]]:
        """The events after the acknowledged ones, oldest first, each with its number.

        At most `limit` (default 1000; 0: none). Raises InvalidValue.
        """
        checked_limit = check_count("limit", limit)
        return self._pm._read(
            lambda conn: _events_after(conn, _cursor(conn, self.name), checked_limit)
        )

    def acknowledge(self, sequence: int) -> None:
        """Mark the events up to that number as processed; an earlier number changes nothing."""
        checked = check_count("sequence", sequence)

        def acknowledge(conn: sqlite3.Connection) -> None:
            reached = min(checked, _last_sequence(conn))
            sql = """INSERT INTO power_cursors (name, sequence) VALUES (?, ?)
                ON CONFLICT (name) DO UPDATE SET sequence = max(sequence, excluded.sequence)"""
            conn.execute(sql, (self.name, reached))

        self._pm._write(acknowledge)


def _cursor(conn: sqlite3.Connection, name: str) -> int:
    """How far a follower has come; 0 where a restored file does not know it."""
    sql = "SELECT sequence FROM power_cursors WHERE name = ?"
    (sequence,) = conn.execute(sql, (name,)).fetchone() or (0,)
    return int(sequence)


def _last_sequence(conn: sqlite3.Connection) -> int:
    sql = "SELECT seq FROM sqlite_sequence WHERE name = 'power_events'"
    (sequence,) = conn.execute(sql).fetchone() or (0,)
    return int(sequence)


def _events_after(
    conn: sqlite3.Connection, sequence: int, limit: int
) -> list[tuple[int, PowerEvent]]:
    sql = f"{_EVENT_SQL} WHERE e.sequence > ? ORDER BY e.sequence LIMIT ?"
    return [(row["sequence"], _event_of(row)) for row in _select(conn, sql, (sequence, limit))]


def _newest_events(
    conn: sqlite3.Connection, device_key: int, after_us: int, limit: int
) -> list[PowerEvent]:
    sql = f"""{_EVENT_SQL} WHERE e.device_key = ? AND e.timestamp > ?
        ORDER BY e.timestamp DESC, e.sequence DESC LIMIT ?"""
    return [_event_of(row) for row in _select(conn, sql, (device_key, after_us, limit))]


@_decoder
def _battery_of(row: _Row) -> _Battery:
    return _Battery(row["capacity_wh"], row["charge_pct"], row["watts"])


def _save_device(conn: sqlite3.Connection, device: DeviceRecord) -> None:
    """Insert a device, or give a registered one these values."""
    columns = ", ".join(_DEVICE_COLUMNS)
    updates = ", ".join(f"{name} = excluded.{name}" for name in _DEVICE_COLUMNS[1:])
    sql = f"""INSERT INTO devices ({columns}) VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT (id) DO UPDATE SET {updates}"""
    conn.execute(sql, dataclasses.astuple(device))


def _delete_meter(conn: sqlite3.Connection, meter_key: int) -> None:
    for table in ("power_late", "power_readings", "power_hourly", "power_meters"):
        conn.execute(f"DELETE FROM {table} WHERE meter_key = ?", (meter_key,))


def _refuse_cut_hours(conn: sqlite3.Connection, meter_key: int, start_us: int, end_us: int) -> None:
    """Refuse a range that takes a part of an hour whose readings prune() has taken."""
    sql = """SELECT hour FROM power_hours WHERE meter_key = :key AND closed
        AND hour * 3600000000 < :end_us AND (hour + 1) * 3600000000 > :start_us
        AND (hour * 3600000000 < :start_us OR (hour + 1) * 3600000000 > :end_us) LIMIT 1"""
    values = {"key": meter_key, "start_us": start_us, "end_us": end_us}
    found = conn.execute(sql, values).fetchone()
    if found is not None:
        (hour,) = found
        shown = from_microseconds(hour * HOUR_US)
        name = "since" if hour * HOUR_US < start_us else "until"
        us = start_us if name == "since" else end_us
        raise _invalid(
            name,
            f"a time that does not cut the hour from {shown}: prune() has closed it, so it can "
            "only go whole",
            from_microseconds(us),
        )


def _padded_row(row: Any) -> Sequence[Any]:
    """A row of log_many, with None for what it leaves out."""
    if not hasattr(type(row), "__len__") or not 3 <= len(row) <= 5:
        raise _invalid("reading", "(meter_id, voltage, current[, charge_pct[, timestamp]])", row)
    return (*row, None, None)[:5]


# --- Command lines --------------------------------------------------------------------
# What all command lines of the project share: what they read, how they print, how they end.

# --- How they print


@dataclass(frozen=True)
class Screen:
    """Where a command prints: how wide it is, and what it can show."""

    width: int = 80  # columns
    is_terminal: bool = False
    has_colour: bool = False
    has_unicode: bool = True  # block characters; otherwise ASCII stands for them
    encoding: str = "utf-8"

    @classmethod
    def of(cls, stream: Any) -> Screen:
        """The screen that a stream prints to.

        Its width is that of the terminal, or COLUMNS, or 80. Colours need a terminal, and no
        NO_COLOR in the environment.
        """
        import shutil

        is_terminal = bool(stream.isatty())
        encoding = getattr(stream, "encoding", None) or "utf-8"  # None: any character will do
        is_dumb = os.environ.get("TERM") == "dumb"
        return cls(
            width=max(shutil.get_terminal_size((80, 24)).columns, 40),
            is_terminal=is_terminal,
            has_colour=is_terminal and not is_dumb and not os.environ.get("NO_COLOR"),
            has_unicode=_can_encode("█▁…", encoding),
            encoding=encoding,
        )

    @property
    def ellipsis(self) -> str:
        """What stands at the end of a text that was cut."""
        return "…" if self.has_unicode else "~"

    def printable(self, value: Any) -> str:
        """A value as text that cannot steer a terminal, in characters that this screen has."""
        text = printable(value)
        if _can_encode(text, self.encoding):
            return text
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def paint(self, text: str, colour: str) -> str:
        """The text in a colour of _COLOURS, where colours can be shown; "" leaves it plain."""
        if not self.has_colour or not colour or not text:
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"

    def bar(self, share: float, width: int) -> str:
        """A bar of `width` columns of which `share`, 0 to 1, is filled."""
        share = min(max(share, 0.0), 1.0)
        if not self.has_unicode:
            full = round(share * width)
            return "#" * full + "-" * (width - full)
        eighths = round(share * width * 8)
        full, rest = divmod(eighths, 8)
        filled = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
        return filled + "░" * (width - len(filled))

    def sparkline(self, values: Sequence[float | None], low: float, high: float) -> str:
        """A column for each value, from `low` to `high`; a blank for None."""
        steps = "▁▂▃▄▅▆▇█" if self.has_unicode else "_.-=+*#@"
        shown = []
        for value in values:
            if value is None:
                shown.append(" ")
                continue
            share = (value - low) / (high - low) if high > low else 0.0
            shown.append(steps[round(min(max(share, 0.0), 1.0) * (len(steps) - 1))])
        return "".join(shown)


_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "bold": "1", "dim": "2"}


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return False
    return True


# Control characters, line separators, what turns the direction of writing, and halves of
# characters, which no encoding has.
_UNSAFE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(value: Any) -> str:
    r"""A value as text that cannot steer a terminal; None as "-".

    Control characters and those that turn the direction of writing are shown as their escapes.

    >>> printable("two\nlines")
    'two\\nlines'
    """
    if value is None:
        return "-"
    text = f"{value + 0.0:.10g}" if isinstance(value, float) else str(value)
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


def _character_width(character: str) -> int:
    import unicodedata

    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    if "\u1160" <= character <= "\u11ff":  # the later letters of a Korean syllable
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def text_width(text: str) -> int:
    """How many columns of a terminal a text takes: wide characters two, combining ones none.

    >>> text_width("東京")
    4
    """
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def fit_text(text: str, width: int, *, right: bool = False, ellipsis: str = "…") -> str:
    """The text in exactly `width` columns: filled with blanks, or cut, which "…" shows.

    >>> fit_text("Garden gate", 8)
    'Garden …'
    """
    if width <= 0:
        return ""
    if text_width(text) > width:
        ends = list(accumulate(map(_character_width, text)))
        text = text[: bisect_right(ends, width - 1)] + ellipsis
    blanks = " " * (width - text_width(text))
    return blanks + text if right else text + blanks


@dataclass(frozen=True)
class Column:
    """A column of a table: its head, and what it shows of a record.

    `cell` returns a text, a number or None. A column that `shrinks` is cut, down to 8 columns,
    where the table would be wider than the screen. `colour` names the colour of a record's cell.
    """

    head: str
    cell: Callable[[Any], Any]
    right: bool = False
    shrinks: bool = False
    colour: Callable[[Any], str] = lambda _record: ""


_LEAST_SHRUNK_WIDTH = 8


def make_table(columns: Sequence[Column], records: Iterable[Any], screen: Screen) -> str:
    """Records as a table with a head, a line each; columns are two blanks apart.

    >>> print(make_table([Column("name", str), Column("n", len, right=True)], ["ab"], Screen()))
    name  n
    ab    2
    """
    records = list(records)
    heads = [column.head for column in columns]
    rows = [[screen.printable(column.cell(record)) for column in columns] for record in records]
    widths = [max(map(text_width, texts)) for texts in zip(heads, *rows)]
    widths = _fitting_widths(widths, columns, screen.width)
    lines = [_table_line(columns, widths, heads, ["dim"] * len(columns), screen)]
    for record, texts in zip(records, rows):
        colours = [column.colour(record) for column in columns]
        lines.append(_table_line(columns, widths, texts, colours, screen))
    return "\n".join(lines)


def _fitting_widths(
    widths: Sequence[int], columns: Sequence[Column], screen_width: int
) -> list[int]:
    """The widths with which the table fits: those of columns that shrink have one upper limit."""
    room = screen_width - 2 * (len(columns) - 1)
    for limit in range(max(screen_width, _LEAST_SHRUNK_WIDTH), _LEAST_SHRUNK_WIDTH - 1, -1):
        fitting = [
            min(width, limit) if column.shrinks else width for width, column in zip(widths, columns)
        ]
        if sum(fitting) <= room:
            break
    return fitting


def _table_line(
    columns: Sequence[Column],
    widths: Sequence[int],
    texts: Sequence[str],
    colours: Sequence[str],
    screen: Screen,
) -> str:
    parts = []
    for column, width, text, colour in zip(columns, widths, texts, colours):
        fitted = fit_text(text, width, right=column.right, ellipsis=screen.ellipsis)
        if column is columns[-1]:
            fitted = fitted.rstrip()
        parts.append(screen.paint(fitted, colour))
    return "  ".join(parts).rstrip()


def shown_number(value: float | None) -> str:
    """A number for a person, three digits or all whole ones; None as "-".

    >>> [shown_number(value) for value in (0.5, 12.345, 1234.5, -0.001)]
    ['0.50', '12.3', '1234', '0.00']
    """
    if value is None:
        return "-"
    size = abs(value)
    decimals = 2 if size < 9.995 else 1 if size < 99.95 else 0
    text = f"{value:.{decimals}f}"
    return text if float(text) else text.lstrip("-")


def _counted(count: int, noun: str) -> str:
    """A count and its noun.

    >>> _counted(1, "bad row"), _counted(2, "bad row")
    ('1 bad row', '2 bad rows')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shown_duration(seconds: float) -> str:
    """A length of time for a person, its two largest units.

    >>> [shown_duration(seconds) for seconds in (5, 200, 11_400, 200_000)]
    ['5 s', '3 min', '3 h 10 min', '2 d 7 h']
    """
    if seconds <= -1:
        return f"-{shown_duration(-seconds)}"
    if seconds < 60:
        return f"{int(seconds)} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours and days < 100 else f"{days} d"


def shown_time(value: str | int, zone: tzinfo | None) -> str:
    """A time for a person, in a zone (None: this machine's own), to the second.

    `value` is ISO 8601 text with an offset, or microseconds since 1970.
    """
    us = value if isinstance(value, int) else to_microseconds(value)
    return f"{(_EPOCH + us * _ONE_MICROSECOND).astimezone(zone):%Y-%m-%d %H:%M:%S}"


def shown_json(value: Any) -> str:
    """A value as indented JSON; records as objects, characters of any script as they are."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=dataclasses.asdict)


def confirm(question: str, *, yes: bool) -> None:
    """Ask on the terminal before something is done that cannot be undone; `yes`: do not ask.

    Raises PowerManagerError for any answer but yes, and where there is no terminal to ask.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise PowerManagerError(f"{question} There is no terminal to ask: give --yes")
    print_error(f"{question} [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise PowerManagerError("nothing was changed")


def print_error(text: str, end: str = "\n") -> None:
    """Write to standard error, if it can be written: no command may fail because it cannot."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            print(text, end=end, file=sys.stderr, flush=True)


# --- What they read


def nearest(text: str, known: Iterable[str]) -> str:
    """The end of an error text that offers the known words most like a mistyped one, or "".

    >>> nearest("regster", ["register", "report"])
    ': did you mean register?'
    """
    import difflib

    words = {word.casefold(): word for word in known}
    mistyped = text.casefold()
    found = [word for word in words if mistyped and word.startswith(mistyped)][:3]
    found = found or difflib.get_close_matches(mistyped, list(words), n=1)
    offered = " or ".join(printable(words[word]) for word in found)
    return f": did you mean {offered}?" if offered else ""


def unknown_id(kind: str, id_: str, known: Iterable[str], remedy: str = "") -> NotFound:
    """The error for an id that nothing has, which offers the nearest of the known ones.

    `kind` is "device", "meter", or another word for what was meant. `remedy` ends the text where
    no known id is near: what to do then, such as ": make it with the command `register`".

    >>> raise unknown_id("device", "edge-01", ["edge-001", "barn"])
    Traceback (most recent call last):
    ...
    power_manager.NotFound: no device has the id 'edge-01': did you mean edge-001?
    """
    hint = nearest(id_, known) or remedy
    return NotFound(f"no {kind} has the id {id_!r}{hint}", kind, id_)


def _read_number(text: str) -> int | float | None:
    """Text as a finite number, and never -0.0; None if it is not one."""
    if "_" in text:  # Python would take 1_0 for 10
        return None
    try:
        number = int(text) if text.isdecimal() else float(text) + 0.0
        return number if math.isfinite(number) else None
    except (ValueError, OverflowError):
        return None


def parse_number(
    text: str, *, at_least: float | None = None, above: float | None = None
) -> int | float:
    """Text as a finite number, int or float, for argparse; `at_least` and `above` are its limits.

    >>> parse_number("12.5")
    12.5
    """
    number = _read_number(text)
    expected = "a number"
    if at_least is not None:
        expected = f"a number of at least {at_least:g}"
    if above is not None:
        expected = f"a number above {above:g}"
    if number is None or not _is_within(number, at_least, above):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number


def _is_within(number: float, at_least: float | None, above: float | None) -> bool:
    return (at_least is None or number >= at_least) and (above is None or number > above)


_MAX_COUNT = 2**63 - 1  # the largest that SQLite knows


def parse_count(text: str, *, at_least: int = 0, at_most: int = _MAX_COUNT) -> int:
    """Text as a whole number within limits, for argparse.

    >>> parse_count("8080", at_least=1, at_most=65535)
    8080
    """
    digits = text.strip()
    is_count = digits.isascii() and digits.isdecimal() and len(digits) <= len(str(_MAX_COUNT))
    if not is_count or not at_least <= int(digits) <= at_most:
        limits = (
            f"of at least {at_least}" if at_most == _MAX_COUNT else f"from {at_least} to {at_most}"
        )
        raise argparse.ArgumentTypeError(f"expected a whole number {limits}, got {text!r}")
    return int(digits)


_DURATION_UNITS_S = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION_PART = re.compile(
    rf"\s*(\d+(?:\.\d*)?|\.\d+)\s*({'|'.join(_DURATION_UNITS_S)})", re.IGNORECASE
)


def _read_duration(text: str) -> float | None:
    """Text as a length of time in seconds; None if it is not one."""
    number = _read_number(text)
    if number is not None:
        return float(number)
    text = text.strip()
    seconds = 0.0
    position = 0
    while position < len(text):
        part = _DURATION_PART.match(text, position)
        if part is None:
            return None
        seconds += float(part[1]) * _DURATION_UNITS_S[part[2].lower()]
        position = part.end()
    return seconds if text else None


def parse_duration(text: str, *, above: float | None = None) -> float:
    """Text as a length of time in seconds, for argparse: "90", "90s", "1h30m", "7d", "2w".

    A number alone is seconds. The result is finite, and at least 0 or above the limit `above`.

    >>> parse_duration("1h30m")
    5400.0
    """
    seconds = _read_duration(text)
    if seconds is None or not 0 <= seconds < math.inf or not _is_within(seconds, None, above):
        limit = "" if above is None else f" above {above:g}"
        expected = f"expected a duration{limit} such as 90s, 15m, 1h30m or 7d"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
    return seconds


def parse_zone(text: str) -> tzinfo | None:
    """Text as a time zone, for argparse: "UTC", "Europe/Berlin", "+02:00", or "local".

    None stands for this machine's own zone, as in datetime.astimezone().
    """
    if text.lower() == "local":
        return None
    if text.lower() == "utc":
        return timezone.utc
    import zoneinfo

    try:
        if re.fullmatch(r"[+-]\d\d:?\d\d", text):
            return datetime.strptime(text, "%z").tzinfo
        return zoneinfo.ZoneInfo(text)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        expected = "expected a time zone such as Europe/Berlin, or UTC, or local"
        hint = nearest(text, zoneinfo.available_timezones())
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}{hint}") from None


def parse_time(
    text: str, *, zone: tzinfo | None = None, clock: Callable[[], float] = time.time
) -> datetime:
    """Text as a time, for argparse.

    ISO 8601, with an offset or in `zone` (None: this machine's own); a date alone is its midnight;
    "now", "today", "yesterday"; "-24h" and "-7d" before now; epoch seconds. `clock` returns the
    present as epoch seconds. The result has an offset, and lies from 1970 to 2200; a word or a
    duration that would lead to before 1970 is 1970. Of a time that exists twice, when clocks are
    put back, it is the first.

    >>> parse_time("-24h", zone=timezone.utc, clock=lambda: 1_700_086_400.0).isoformat()
    '2023-11-14T22:13:20+00:00'
    """
    stripped = text.strip()
    word = stripped.lower()
    try:
        if word in ("now", "today", "yesterday") or word.startswith("-"):
            moment = _relative_time(word, zone, clock())
        else:
            moment = _absolute_time(stripped, zone)
        to_microseconds(moment)
    except (ValueError, OverflowError, OSError):
        examples = "2026-11-28, 2026-11-28T10:00Z, today or -24h"
        raise argparse.ArgumentTypeError(
            f"expected a time from 1970 to 2200 such as {examples}, got {text!r}"
        ) from None
    return moment


def _relative_time(word: str, zone: tzinfo | None, now_s: float) -> datetime:
    """The time of "now", "today", "yesterday" or "-24h", but not before 1970. Raises ValueError.

    A device without a clock of its own starts in 1970.
    """
    if word.startswith("-"):
        ago_s = _read_duration(word[1:])
        if ago_s is None or ago_s < 0:
            raise ValueError(word)
        now_s -= min(ago_s, now_s)
    moment = (_EPOCH + timedelta(seconds=now_s)).astimezone(zone)
    if word in ("today", "yesterday"):
        day = moment.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0, fold=0)
        moment = _in_zone(day - timedelta(days=int(word == "yesterday")), zone)
    return max(moment, _EPOCH).astimezone(zone)


_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_DATE_IN_DIGITS = re.compile(r"(19[7-9]|2[01]\d)\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")


def _absolute_time(text: str, zone: tzinfo | None) -> datetime:
    """The time of epoch seconds or of ISO 8601. Raises ValueError."""
    seconds = _read_number(text)
    if seconds is not None:
        if _DATE_IN_DIGITS.fullmatch(text):  # hardly ever meant as a second of 1970
            raise ValueError(text)
        return (_EPOCH + to_microseconds(seconds) * _ONE_MICROSECOND).astimezone(zone)
    local = _parse_iso(text)
    if local.tzinfo is not None:
        return local
    moment = _in_zone(local, zone)
    # A day whose midnight is skipped begins with what follows.
    if moment.replace(tzinfo=None, fold=0) != local and not _DATE.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"expected a time that exists, got {text!r}, over which the clocks are put forward"
        )
    return moment


def _in_zone(local: datetime, zone: tzinfo | None) -> datetime:
    """A time without an offset as one of the zone; if clocks skip it, the time that follows."""
    moment = local.replace(tzinfo=zone) if zone is not None else local.astimezone()
    return moment.astimezone(timezone.utc).astimezone(zone)


# --- Completion

# How each shell loads its script.
_LOADING = """
bash: eval "$({0} bash)"    in ~/.bashrc
zsh:  eval "$({0} zsh)"     in ~/.zshrc, after compinit
fish: {0} fish | source     in ~/.config/fish/config.fish"""


def completion_script(parser: CommandParser, shell: str, installed: str) -> str:
    """A script that lets "bash", "zsh" or "fish" complete what a parser knows.

    That is its commands, their options, and the choices of options and arguments; file names
    elsewhere. `installed` is the name of the program.
    """
    return _COMPLETIONS[shell](parser, installed)


def _shown_options(parser: CommandParser) -> dict[str, argparse.Action]:
    """The long options that the help shows."""
    return {
        name: action
        for name, action in parser._option_string_actions.items()
        if name.startswith("--") and action.help != argparse.SUPPRESS
    }


def _arguments(parser: CommandParser) -> list[argparse.Action]:
    """What a command takes beside its options."""
    return [action for action in parser._actions if not action.option_strings]


def _summary(command: CommandParser) -> str:
    """What a command does, in one sentence."""
    return (command.description or "").partition("\n")[0]


def _words(action: argparse.Action) -> str:
    """The choices of an option or an argument, in one text."""
    return " ".join(str(choice) for choice in action.choices or ())


def _takes_value(action: argparse.Action) -> bool:
    return action.nargs is None


def _plain_help(action: argparse.Action, parser: CommandParser) -> str:
    """An action's help in one line, without argparse's marks."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _names_file(action: argparse.Action) -> bool:
    return (action.metavar or action.dest) in ("PATH", "FILE", "DIR", "path", "file")


def _bash_completion(parser: CommandParser, installed: str) -> str:
    cases = []
    for name, command in {"": parser, **parser.commands}.items():
        options = _shown_options(command)
        values = {option: action for option, action in options.items() if _takes_value(action)}
        cases += [
            f"    '{name} {option}') words={_quoted(_words(action))} ;;"
            for option, action in values.items()
            if action.choices is not None
        ]
        if values:
            cases.append("    '" + "'|'".join(f"{name} {option}" for option in values) + "') ;;")
        words = " ".join(filter(None, map(_words, _arguments(command))))
        cases.append(f"    '{name} '*) words={_quoted(words)} options='{' '.join(options)}' ;;")
    before_command = [
        option for option, action in _shown_options(parser).items() if _takes_value(action)
    ]
    return _BASH.format(
        function=_function_name(installed),
        installed=installed,
        values="|".join(before_command) or "''",
        commands="|".join(parser.commands) or "''",
        cases="\n".join(cases),
    )


# Bash takes --bucket=day for three words. Without words it completes the names of files.
_BASH = """{function}() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
  local command='' words='' options='' i
  if [[ $word == = ]]; then word=''
  elif [[ $before == = ]]; then before=${{COMP_WORDS[COMP_CWORD-2]}}
  fi
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "${{COMP_WORDS[i]}}" in
      {values}) i=$((i + 1)) ;;
      {commands}) command=${{COMP_WORDS[i]}}; break ;;
    esac
  done
  case "$command $before" in
{cases}
  esac
  [[ $word == -* ]] && words=$options
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F {function} {installed}"""


def _zsh_completion(parser: CommandParser, installed: str) -> str:
    commands = []
    cases = []
    for name, command in parser.commands.items():
        text = _summary(command).replace(":", r"\:")
        commands.append(f"    {_quoted(f'{name}:{text}')}")
        specs = [*_zsh_options(command), *_zsh_arguments(command)]
        cases.append(f"      {name}) _arguments {' '.join(specs)} ;;")
    options = _zsh_options(parser)
    specs = [*options, "'1:command:->command'", "'*::argument:->argument'"]
    return _ZSH.format(
        function=_function_name(installed),
        installed=installed,
        specs=" ".join(specs if commands else [*options, *_zsh_arguments(parser)]),
        commands="\n".join(commands),
        cases="\n".join(cases),
    )


_ZSH = """#compdef {installed}
{function}() {{
  local state line
  typeset -A opt_args
  local -a commands=(
{commands}
  )
  _arguments -C {specs}
  case $state in
    command) _describe command commands ;;
    argument) case $words[1] in
{cases}
    esac ;;
  esac
}}
compdef {function} {installed}"""


def _zsh_options(parser: CommandParser) -> list[str]:
    specs = []
    for name, action in _shown_options(parser).items():
        text = re.sub(r"([][:\\])", r"\\\1", _plain_help(action, parser))
        may_repeat = "*" if isinstance(action, argparse._AppendAction) else ""
        value = f"=[{text}]:{_zsh_value(action)}" if _takes_value(action) else f"[{text}]"
        specs.append(_quoted(f"{may_repeat}{name}{value}"))
    return specs


def _zsh_arguments(parser: CommandParser) -> list[str]:
    marks = {"?": "::", "*": "*:"}
    return [
        _quoted(f"{marks.get(str(action.nargs), ':')}{_zsh_value(action)}")
        for action in _arguments(parser)
    ]


def _zsh_value(action: argparse.Action) -> str:
    values = " "  # its name is shown, and nothing is completed
    if action.choices is not None:
        values = f"({_words(action)})"
    elif _names_file(action):
        values = "_files"
    return f"{action.dest}:{values}"


def _fish_completion(parser: CommandParser, installed: str) -> str:
    no_command = f"_{_function_name(installed)}_has_no_command"
    start = f"complete -c {installed} -n"
    lines = [
        f"function {no_command}",
        f"    not __fish_seen_subcommand_from {' '.join(parser.commands)}",
        "end",
    ]
    lines += [f"{start} {no_command} {words}" for words in _fish_words(parser)]
    for name, command in parser.commands.items():
        text = _fish_quoted(_summary(command))
        lines.append(f"{start} {no_command} -f -a {name} -d {text}")
        seen = f"'__fish_seen_subcommand_from {name}'"
        lines += [f"{start} {seen} {words}" for words in _fish_words(command)]
    return "\n".join(lines)


def _fish_words(parser: CommandParser) -> Iterator[str]:
    """What completes the options and the choices of one parser."""
    for name, action in _shown_options(parser).items():
        words = f"-l {name[2:]} -d {_fish_quoted(_plain_help(action, parser))}"
        if action.choices is not None:
            words += f" -x -a {_fish_quoted(_words(action))}"
        elif _takes_value(action):
            words += " -r" if _names_file(action) else " -x"
        yield words
    for action in _arguments(parser):
        if action.choices is not None and not isinstance(action, argparse._SubParsersAction):
            yield f"-f -a {_fish_quoted(_words(action))}"


def _fish_quoted(text: str) -> str:
    return "'" + re.sub(r"([\\'])", r"\\\1", text) + "'"


def _quoted(text: str) -> str:
    import shlex

    return shlex.quote(text)


def _function_name(installed: str) -> str:
    return "_" + re.sub(r"\W", "_", installed)


_COMPLETIONS = {"bash": _bash_completion, "zsh": _zsh_completion, "fish": _fish_completion}


class _PrintCompletion(argparse.Action):
    """The option that prints a shell's script and exits, before anything is found missing."""

    def __init__(self, *args: Any, installed: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.installed = installed

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        assert isinstance(parser, CommandParser)
        print(completion_script(parser, values, self.installed))
        parser.exit()


# --- Commands and options


def program_name(installed: str, script: str) -> str:
    """How the running program was started: by its `installed` name, or as a Python script."""
    if os.path.basename(sys.argv[0] if sys.argv else "") == installed:
        return installed
    return f"python3 {os.path.basename(script)}"


class _Setting(NamedTuple):
    """An option that an environment variable gives where the command line does not."""

    option: argparse.Action
    variable: str
    default: Any
    shown_default: str
    is_required: bool


class _Variable(NamedTuple):
    """An environment variable without an option."""

    name: str
    default: str
    text: str


class CommandParser(argparse.ArgumentParser):
    """An argparse parser as all command lines of the project have it.

    `prog` is how the program was started, and `name` what its error lines begin with (default:
    `prog`). Each of `examples`, what is typed after `prog`, is shown below its help. `add_command`
    makes commands; without one the parser has options alone. A mistyped command or option is
    answered with the nearest one; an option has to be written out; -V is --version; -1e-3 and -24h
    are values, not options.

    >>> def run_wait(options):
    ...     print(f"{options.length:g} s until {options.until}")
    ...     return 0
    >>> parser = CommandParser("pause", "Wait.", version="1.0", examples=["wait 5m"])
    >>> command = parser.add_command("wait", run_wait, "wait a while", examples=["90s", "1h30m"])
    >>> length = command.add_argument("length", type=parse_duration, help="how long, such as 90s")
    >>> until = command.add_argument("--until", type=parse_time, help="no longer than this")
    >>> parser.add_help_commands("pause")
    >>> def program():
    ...     options = parser.parse_args(["wait", "1h30m", "--until", "2026-11-28T10:00Z"])
    ...     return options.run(options)
    >>> run_program(program, "pause")
    5400 s until 2026-11-28 10:00:00+00:00
    0
    """

    def __init__(
        self,
        prog: str,
        description: str,
        *,
        name: str = "",
        version: str = "",
        examples: Sequence[str] = (),
        **options: Any,
    ) -> None:
        # From Python 3.14 on argparse would colour the help: the same on every version.
        plain = {"color": False} if sys.version_info >= (3, 14) else {}
        self.name: str = name or prog
        self.examples: list[str] = [f"{prog} {example}".rstrip() for example in examples]
        head = "example:" if len(examples) == 1 else "examples:"
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n  ".join([head, *self.examples]) if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # An abbreviation would mean something else as soon as a new option begins like it.
            allow_abbrev=False,
            **{**plain, **options},
        )
        # As from Python 3.14 on, and durations before now too.
        self._negative_number_matcher = re.compile(r"-\.?\d")
        self.commands: dict[str, CommandParser] = {}
        self._parent: CommandParser | None = None
        self._commands_action: Any = None
        self._groups: dict[str, Any] = {}
        self._settings: list[_Setting] = []
        self._variables: list[_Variable] = []
        if version:
            text = f"{self.name} {version}"
            self.add_argument("-V", "--version", action="version", version=text)

    def add_command(
        self,
        name: str,
        run: Callable[..., Any] | None,
        text: str,
        *,
        examples: Sequence[str],
        group: str = "commands",
    ) -> CommandParser:
        """Add a command that calls `run`; `text` is its help, in one sentence without a stop.

        Each of `examples` is what is typed after the command, which may be nothing. In the help
        commands stand together by their `group`.
        """
        if self._commands_action is None:
            self._commands_action = self.add_subparsers(
                dest="command",
                metavar="COMMAND",
                parser_class=CommandParser,
                help="one of those below, with --help for its own",
            )
        command: CommandParser = self._commands_action.add_parser(
            name,
            help=text,
            prog=f"{self.prog} {name}",
            description=f"{text[0].upper()}{text[1:]}.",
            examples=examples,
        )
        if group not in self._groups:
            self._groups[group] = self.add_argument_group(group)
        # argparse lists all commands in one place; what stands for one in the help moves.
        self._groups[group]._group_actions.append(self._commands_action._choices_actions.pop())
        command.name = self.name
        command._parent = self
        command.set_defaults(run=run, _command=command)
        self.commands[name] = command
        return command

    def add_setting(
        self,
        *options: str,
        variable: str,
        text: str,
        default: Any = None,
        shown_default: str = "",
        required: bool = False,
        **rest: Any,
    ) -> argparse.Action:
        """Add an option whose value may come from an environment variable.

        The option goes before the variable, and the variable before `default`, which is taken as
        it is; an empty variable counts as unset. An option that may be repeated (action="append")
        takes the words of the variable. A `required` one must be given in one of the two ways.
        `text` is its help, to which the variable and the default are added, the default in the
        words of `shown_default`. `rest` is as in add_argument, of options that take a value.
        """
        shown = shown_default or ("" if default is None else str(default))
        origin = f"${variable}, else {shown}" if shown else f"${variable}"
        help_text = f"{text} (default: {origin.replace('%', '%%')})"
        option = self.add_argument(*options, help=help_text, **rest)
        self._settings.append(_Setting(option, variable, default, shown, required))
        return option

    def add_variable(self, name: str, text: str, *, default: str = "") -> None:
        """Name an environment variable that has no option, for `settings_table`.

        The program reads it by itself: passwords and keys, which others see on a command line.
        """
        self._variables.append(_Variable(name, default, text))

    def add_database(self, text: str = "the database", **rest: Any) -> None:
        """Add the setting --db, a file of this library: $POWER_MANAGER_DB, or DB_PATH.

        `text` is its help. `rest` is as in add_argument, such as type=Path.
        """
        make = rest.get("type", str)
        self.add_setting(
            "--db",
            variable="POWER_MANAGER_DB",
            text=text,
            default=make(str(DB_PATH)),
            shown_default=f"{DB_PATH} here",
            metavar="PATH",
            **rest,
        )

    def add_json(self) -> None:
        """Add the option --json, of a command that prints something to be read."""
        self.add_argument("--json", action="store_true", help="JSON, for programs")

    def add_help_commands(self, installed: str) -> None:
        """Add the commands `help` and `completion`, which parse_args obeys, after all others.

        `installed` is the name of the program whose words the shells complete. A program without
        commands has --help; it gets the option --completion, which also prints and exits.
        """
        if not self.commands:
            self._add_completion_option(installed)
            return
        first = next(iter(self.commands))
        text = "show what a command does, with an example"
        command = self.add_command("help", None, text, examples=["", first], group="help")
        topics = [*self.commands, "completion"]
        command.add_argument(
            "topic", metavar="COMMAND", nargs="?", choices=topics, help="a command (default: all)"
        )
        command.set_defaults(_show=lambda options: self._help_of(options.topic))
        text = "print a script with which a shell completes commands and options"
        command = self.add_command(
            "completion", None, text, examples=list(_COMPLETIONS), group="help"
        )
        loading = _LOADING.format(f"{installed} completion").replace("\n", "\n  ")
        command.description = f"{command.description}\n{loading}"
        shells = list(_COMPLETIONS)
        command.add_argument("shell", metavar="SHELL", choices=shells, help=", ".join(shells))
        command.set_defaults(
            _show=lambda options: completion_script(self, options.shell, installed)
        )

    def _add_completion_option(self, installed: str) -> None:
        shells = list(_COMPLETIONS)
        loading = _LOADING.format(f"{installed} --completion")
        self.add_argument_group("completion", loading.strip()).add_argument(
            "--completion",
            action=_PrintCompletion,
            installed=installed,
            metavar="SHELL",
            choices=shells,
            default=argparse.SUPPRESS,
            help="print a script with which a shell completes the options, and exit: "
            f"{', '.join(shells)}",
        )

    def _help_of(self, topic: str | None) -> str:
        parser = self.commands[topic] if topic else self
        return parser.format_help().rstrip("\n")

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with 2."""
        print_error(f"{self.format_usage()}{self.name}: {printable(message)}")
        self.exit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print the help or the version; argparse itself hides that it cannot be written."""
        print(message, end="", file=file)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        hint = nearest(str(value), choices)
        if action.metavar == "COMMAND":
            all_ = f"{self.prog} --help" if self.commands else self.prog
            hint = hint or f": `{all_}` lists them"
            raise argparse.ArgumentError(None, f"unknown command {value!r}{hint}")
        hint = hint or f": expected one of {', '.join(choices)}"
        raise argparse.ArgumentError(action, f"unknown value {value!r}{hint}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's own; `help` and `completion` print and exit as --help does."""
        words = list(sys.argv[1:] if args is None else args)
        self._refuse_unknown_options(words)
        options, unexpected = self.parse_known_args(words, namespace)
        command: CommandParser = getattr(options, "_command", self)  # the innermost one
        if unexpected:
            command._take_later_arguments(options, unexpected)
        # None of its commands was given; one that has something to run says so itself.
        if command.commands and getattr(options, "run", None) is None:
            print_error(command.format_help(), end="")
            self.exit(2)
        show = getattr(options, "_show", None)
        if show is not None:
            print(show(options))
            self.exit()
        parser: CommandParser | None = command
        while parser is not None:
            parser._read_variables(options)
            parser = parser._parent
        return options

    def _read_variables(self, options: argparse.Namespace) -> None:
        """Give the settings that the command line did not name their value."""
        for setting in self._settings:
            name = setting.option.dest
            if getattr(options, name, None) is not None:
                continue
            text = os.environ.get(setting.variable, "")
            value = self._value_of_variable(setting, text) if text else setting.default
            if value is None and setting.is_required:
                option = setting.option.option_strings[-1]
                self.error(f"{option} is needed, or ${setting.variable} in the environment")
            setattr(options, name, value)

    def _value_of_variable(self, setting: _Setting, text: str) -> Any:
        is_repeatable = isinstance(setting.option, argparse._AppendAction)
        words = text.split() if is_repeatable else [text]
        try:
            values = self._values_of(setting.option, words)
        except argparse.ArgumentError as error:
            self.error(f"${setting.variable}: {error.message}")
        return values if is_repeatable else values[0]

    def _values_of(self, action: argparse.Action, words: Iterable[str]) -> list[Any]:
        """Words as values of an option or an argument. Raises argparse.ArgumentError."""
        values = []
        for word in words:
            value = self._get_value(action, word)
            self._check_value(action, value)
            values.append(value)
        return values

    def _take_later_arguments(self, options: argparse.Namespace, words: Sequence[str]) -> None:
        """Take arguments that come after an option, as in `budget a --json b`.

        argparse itself gives an argument of any number only the words that stand together.
        """
        several = [action for action in _arguments(self) if action.nargs == "*"]
        if not several:
            self.error(f"unexpected argument {words[0]!r}")
        (action,) = several
        given = getattr(options, action.dest)
        values = [] if given is action.default else list(given)
        try:
            values += self._values_of(action, words)
        except argparse.ArgumentError as error:
            self.error(str(error))
        setattr(options, action.dest, values)

    def _refuse_unknown_options(self, words: Iterable[str]) -> None:
        """End with the nearest option if one is unknown.

        argparse itself would first complain about what follows from that, such as a value that it
        takes for the next argument.
        """
        parser = self
        remaining = iter(words)
        for word in remaining:
            if word == "--":
                return
            if not word.startswith("-") or word == "-":
                if parser.commands and word not in parser.commands:
                    return  # argparse tells
                parser = parser.commands.get(word, parser)
            elif " " not in word and not self._negative_number_matcher.match(word):
                action = parser._option_of(word)
                if action.nargs is None and word in parser._option_string_actions:
                    next(remaining, None)  # its value

    def _option_of(self, word: str) -> argparse.Action:
        """The option that a word of a command line names."""
        known = self._option_string_actions
        option = word.partition("=")[0]
        if option not in known and not option.startswith("--"):
            option = word[:2]  # -Vh, or -xVALUE
        if option not in known:
            hint = nearest(option, known)
            if any(option in command._option_string_actions for command in self.commands.values()):
                hint = ": it comes after the command"
            self.error(f"unknown option {option}{hint}")
        return known[option]


_DEFAULT_IN_HELP = re.compile(r" \(default: (.*)\)$", re.DOTALL)


class _Documented(NamedTuple):
    """What a table of settings says of an option or a variable."""

    option: str
    variable: str
    default: str
    text: str

    @classmethod
    def of(cls, parser: CommandParser, action: argparse.Action) -> _Documented:
        text = (action.help or "") % {"default": action.default, "prog": parser.prog}
        found = _DEFAULT_IN_HELP.search(text)
        variable = ""
        default = found[1] if found else ""
        for setting in parser._settings:
            if setting.option is action:
                variable = setting.variable
                default = setting.shown_default
        names = list(action.option_strings)
        if action.nargs != 0:
            choices = "|".join(str(choice) for choice in action.choices or [])
            names[-1] += f" {action.metavar or choices or action.dest.upper()}"
        option = ", ".join(f"`{name}`" for name in names)
        return cls(option, variable, default, _DEFAULT_IN_HELP.sub("", text))


def _all_parsers(parser: CommandParser, name: str = "") -> dict[str, CommandParser]:
    """A parser and those of its commands, by the words that lead to each."""
    found = {name: parser}
    for word, command in parser.commands.items():
        found.update(_all_parsers(command, f"{name} {word}".strip()))
    return found


def settings_table(parser: CommandParser) -> str:
    """The options and environment variables of a program, as a table in Markdown for its README.

    Of each the option, the commands that have it (where there are commands), the variable, the
    default, and what it means; --help, --version and --completion are left out.
    """
    commands_of: dict[_Documented, list[str]] = {}
    owners = _all_parsers(parser)
    for command, owner in owners.items():
        for action in owner._actions:
            is_shown = action.help is not argparse.SUPPRESS
            explains = action.dest in ("help", "version") or isinstance(action, _PrintCompletion)
            if action.option_strings and is_shown and not explains:
                commands_of.setdefault(_Documented.of(owner, action), []).append(command)
    for command, owner in owners.items():
        for name, default, text in owner._variables:
            commands_of.setdefault(_Documented("", name, default, text), []).append(command)
    has_commands = bool(parser.commands)
    heads = ["option", *(["commands"] if has_commands else []), "variable", "default", "meaning"]
    rows = [heads, ["---"] * len(heads)]
    for documented, commands in commands_of.items():
        option, variable, default, text = documented
        named = [] if "" in commands else commands
        cells = [option, *([", ".join(named) or "all"] if has_commands else [])]
        cells += [f"`{variable}`" if variable else "", default, text]
        rows.append([" ".join(cell.split()).replace("|", r"\|") for cell in cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


# --- How they log


class _LogLine(logging.Formatter):
    """A log line: time, level, logger, message, which cannot steer a terminal or fake a line.

    systemd's journal adds the time itself, and takes the level as a syslog number in front, by
    which `journalctl -p warning` selects.
    """

    converter = staticmethod(time.gmtime)
    _JOURNAL_LEVELS = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def __init__(self, *, is_for_journal: bool) -> None:
        super().__init__(datefmt="%Y-%m-%dT%H:%M:%SZ")
        self._is_for_journal = is_for_journal

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        text = f"{record.name}: {printable(record.message)}"
        if not self._is_for_journal:
            return f"{self.formatTime(record, self.datefmt)} {record.levelname} {text}"
        for level, number in self._JOURNAL_LEVELS:
            if record.levelno >= level:
                return f"<{number}>{text}"
        return f"<7>{text}"


def _is_journal(stream: Any) -> bool:
    """Whether systemd reads the stream into its journal: it names the stream's file."""
    try:
        status = os.fstat(stream.fileno())
    except (AttributeError, OSError, ValueError):  # a stand-in for it; it was closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


@contextlib.contextmanager
def log_to_stderr(
    name: str, level: int = logging.INFO, *, others: int = logging.WARNING
) -> Generator[None, None, None]:
    """Log to standard error while the block runs, in the one format of the project's programs.

    The logger `name` and those below it show `level` and worse, all others `others` and worse. A
    line is "2026-11-28T10:00:00Z WARNING power_mqtt: text". For systemd's journal, which adds the
    time itself, it is "<4>power_mqtt: text".
    """
    root = logging.getLogger()
    logger = logging.getLogger(name)
    levels = root.level, logger.level

    def is_shown(record: logging.LogRecord) -> bool:
        is_own = f"{record.name}.".startswith(f"{name}.")
        return record.levelno >= (level if is_own else others)

    handler = logging.StreamHandler()
    handler.setFormatter(_LogLine(is_for_journal=_is_journal(sys.stderr)))
    handler.addFilter(is_shown)  # a logger may have a lower level of its own
    root.addHandler(handler)
    root.setLevel(others)
    logger.setLevel(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        logger.setLevel(levels[1])


# --- How they end


def run_program(
    program: Callable[[], int],
    name: str,
    errors: tuple[type[Exception], ...] = (),
    extra: str | None = None,
) -> int:
    """Run what a command line does, and return its exit code.

    The code that `program` returns; 0 if the reader of its output has gone (`| head`); 1 for one
    of `errors` or an OSError, printed in one line that begins with the name; 130 for Ctrl-C.
    `extra` is the extra that brings the packages that the program imports: if one is missing,
    that is an error too, see not_installed(). Without a standard output, nothing is run.
    """
    if sys.stdout is None:
        print_error(f"{name}: standard output is closed: nothing was done")
        return 1
    try:
        _let_output_show_all()
        try:
            code = program()
        except SystemExit:  # as --help ends: what it printed may not have been written
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if extra is None:
            raise
        print_error(f"{name}: {not_installed(error, extra)}")
        return 1
    except errors + (OSError,) as error:  # noqa: RUF005  # mypy does not follow a star here
        if isinstance(error, BrokenPipeError) and not _is_output_read():
            return 0
        print_error(f"{name}: {printable(_told(error))}")
        return 1
    finally:
        _drop_output_that_fails()


def _told(error: BaseException) -> str:
    """An error as a person reads it: one of the system without its number."""
    if isinstance(error, PowerManagerError) or not (isinstance(error, OSError) and error.strerror):
        return str(error)
    if error.filename is None:
        return error.strerror
    name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return f"{name}: {error.strerror}"


def not_installed(package: str | ImportError, extra: str) -> str:
    """What to tell about a package that is missing: its name, and the extra that brings it.

    `package` is its name or the error of importing it. In a checkout pip takes the extra from the
    directory, elsewhere from what is installed already.

    >>> not_installed("paho.mqtt.client", "mqtt")
    "paho-mqtt is not installed: pip install '.[mqtt]'"
    """
    name = package.name or "a package" if isinstance(package, ImportError) else package
    root = name.partition(".")[0]
    missing = _PACKAGES.get(root, root)
    return f"{missing} is not installed: pip install '{_name_for_pip()}[{extra}]'"


_PACKAGES = {"nats": "nats-py", "paho": "paho-mqtt"}  # whose names are not those of their modules
_DISTRIBUTION = "blackroad-power-manager"


def _name_for_pip() -> str:
    """What pip knows this project by: its name if this module was installed, else a directory."""
    from importlib import metadata

    try:
        installed = metadata.distribution(_DISTRIBUTION).locate_file(os.path.basename(__file__))
    except metadata.PackageNotFoundError:
        return "."
    # A checkout may be on the path before what is installed; an editable installation is one.
    is_this = os.path.realpath(str(installed)) == os.path.realpath(__file__)
    return _DISTRIBUTION if is_this else "."


@contextlib.contextmanager
def sigterm_as_exit(code: int) -> Generator[None, None, None]:
    """Let SIGTERM raise SystemExit(code) in the block, so that what it began is put in order.

    Signals belong to the main thread, and a handler of the caller's own stays.
    """

    def leave(_number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(code)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StopSignals:
    """In its block, SIGTERM, SIGINT (Ctrl-C) and SIGHUP end a wait, instead of the program.

    What the block has begun it brings to its end; between two steps it looks at `number`, or at
    what wait() returns. A signal that was ignored before, as SIGHUP under nohup, stays ignored.
    Outside the main thread, to which signals belong, only ring() ends a wait.

    `on_stop` is called once, in another thread, at the first signal, with the exit code to come.
    With `hard_end_s` the process ends that many seconds after the first signal, even if a locked
    file or a dead network holds the block up: only for a block whose every write is whole by
    itself, because nothing is put in order then.
    """

    _NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    _END = 0  # which no signal has as its number

    def __init__(
        self, on_stop: Callable[[int], None] | None = None, hard_end_s: float | None = None
    ) -> None:
        self.number: int | None = None  # of the first signal; None before
        self._on_stop = on_stop
        self._hard_end_s = hard_end_s
        self._rung = threading.Event()
        self._ended = threading.Event()
        self._before: dict[int, Any] = {}
        self._watcher: threading.Thread | None = None

    @property
    def exit_code(self) -> int:
        """130 if Ctrl-C has ended the wait, else 0."""
        return 130 if self.number == signal.SIGINT else 0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._listen()
        return self

    def _listen(self) -> None:
        # Python runs a handler in the main thread, and only when a call that is stuck has returned.
        # The number of the signal is in the pipe at once, for the thread that reads it.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, name="stop signals", daemon=True)
        self._watcher.start()
        for number in self._NUMBERS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = self.number or number

    def _watch(self) -> None:
        while (number := os.read(self._reader, 1)[0]) not in self._NUMBERS:
            if number == self._END:
                return
        self.number = self.number or number
        self._rung.set()
        if self._hard_end_s is not None:  # before on_stop, which may hang as well
            threading.Thread(target=self._end_hard, name="hard end", daemon=True).start()
        if self._on_stop is not None:
            self._on_stop(self.exit_code)

    def _end_hard(self) -> None:
        if not self._ended.wait(self._hard_end_s):
            os._exit(self.exit_code)

    def wait(self, seconds: float) -> bool:
        """Wait so many seconds, or until a signal or ring(); return whether a signal has come."""
        if self.number is None and self._rung.wait(min(seconds, threading.TIMEOUT_MAX)):
            self._rung.clear()
        return self.number is not None

    def ring(self) -> None:
        """End the present wait or the next, from any thread."""
        self._rung.set()

    def __exit__(self, *exc_info: object) -> None:
        if self._watcher is None:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        with contextlib.suppress(BlockingIOError):  # full of signals: the thread ends by them
            os.write(self._writer, bytes([self._END]))
        self._watcher.join()  # and so on_stop, which the hard end is for as well
        self._ended.set()
        os.close(self._writer)
        os.close(self._reader)


def _let_output_show_all() -> None:
    """A character that the output's encoding lacks never ends a program: its escape is printed.

    JSON's escape, because in JSON any other would be an error.
    """

    def escape(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    codecs.register_error("power_manager.escape", escape)
    with contextlib.suppress(AttributeError):  # a stand-in for it may lack the method
        sys.stdout.reconfigure(errors="power_manager.escape")  # type: ignore[union-attr]


def _is_output_read() -> bool:
    """Whether standard output has a reader, so that another pipe is the broken one."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return not poll.poll(0)
    except (AttributeError, OSError, ValueError):  # no poll() on this system; a stand-in
        return False


def _drop_output_that_fails() -> None:
    """Without this, what cannot be written would fail once more when Python exits."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), sys.stdout.fileno())


# --- Showing --------------------------------------------------------------------------
# From records to text for a person. Nothing here reads the file, the clock or the terminal.

_SPARK_HOURS = 24
_AHEAD_TOLERANCE_S = 1.0  # two processes' readings may pass each other by less than that
_LARGE_WH = 10_000  # from here on energies are shown in kWh
_MOST_DAYS = 62  # with more of them, a report has a bar a month


class _Energy(NamedTuple):
    """What a device's counted meters gave, took and used, in Wh."""

    out_wh: float
    in_wh: float
    consumption_wh: float


@dataclass(frozen=True)
class _MeterView:
    """A meter, and what `status` shows of it beyond its record.

    `age_s` is below 0 if the newest reading is dated after now, and None before the first one.
    """

    meter: PowerMeter
    age_s: float | None
    is_stale: bool
    runtime_hours: float | None
    hourly_wattage: list[float | None]  # of the last 24 UTC hours, the one under way included

    @property
    def name(self) -> str:
        return _meter_name(self.meter)

    @property
    def is_ahead(self) -> bool:
        return self.age_s is not None and self.age_s < -_AHEAD_TOLERANCE_S

    @property
    def is_present(self) -> bool:
        """Whether its values are those of now, as far as is known."""
        return self.meter.active and not self.is_stale and self.age_s is not None


@dataclass(frozen=True)
class _DeviceView:
    """A device as `status` shows it; `today` is its energy since the local day began.

    `unmeasured` are the meters that were read today, and whose energy is not known all the same.
    """

    device: DeviceRecord
    meters: list[_MeterView]
    runtime_hours: float | None
    today: _Energy
    unmeasured: list[PowerMeter]


# --- From statistics to views


def _meter_name(meter: PowerMeter) -> str:
    return meter.name or meter.type.value


def _local(us: int, zone: tzinfo | None) -> datetime:
    return (_EPOCH + us * _ONE_MICROSECOND).astimezone(zone)


def _energy_of(
    meters: Sequence[PowerMeter], rows: Mapping[str, Iterable[PowerStatistics]]
) -> _Energy:
    """The energy of a device in statistics rows by meter id; consumption as in a report."""
    sums = {}
    for meter in counted_meters(meters):
        own = list(rows.get(meter.id, ()))
        sums[meter.id] = MeterSums(
            energy_out_wh=sum(row.energy_out_wh for row in own),
            energy_in_wh=sum(row.energy_in_wh for row in own),
        )
    return _Energy(
        out_wh=sum(part.energy_out_wh for part in sums.values()),
        in_wh=sum(part.energy_in_wh for part in sums.values()),
        consumption_wh=_consumption_wh(meters, sums),
    )


def _is_energy_unknown(rows: Iterable[PowerStatistics]) -> bool:
    """Whether a meter's power was read twice or more in these rows, and no energy came of it.

    The readings are further apart than max_gap: sums of 0 Wh mean nothing. Not meant is a meter
    without watts, such as a gauge that knows its charge alone: that is said elsewhere.
    """
    rows = list(rows)
    has_energy = any(row.energy_out_wh or row.energy_in_wh for row in rows)
    count = sum(row.reading_count for row in rows if row.avg_wattage)
    return count > 1 and not has_energy


def _unmeasured(
    meters: Iterable[PowerMeter], rows: Mapping[str, Iterable[PowerStatistics]]
) -> list[PowerMeter]:
    """The counted meters of these rows whose energy is not known all the same."""
    return [meter for meter in counted_meters(meters) if _is_energy_unknown(rows.get(meter.id, ()))]


def _known_energy_of(
    meters: Sequence[PowerMeter], rows: Mapping[str, Sequence[PowerStatistics]]
) -> _Energy | None:
    """The energy of a device in these rows; None if that of a counted meter is not known."""
    return None if _unmeasured(meters, rows) else _energy_of(meters, rows)


def _rows_by_period(
    hours: Mapping[str, Iterable[PowerStatistics]], period: Callable[[int], _K]
) -> dict[_K, dict[str, list[PowerStatistics]]]:
    """Hourly rows by what `period` makes of their start, and within it by meter id."""
    found: dict[_K, dict[str, list[PowerStatistics]]] = {}
    for meter_id, rows in hours.items():
        for row in rows:
            those = found.setdefault(period(to_microseconds(row.start)), {})
            those.setdefault(meter_id, []).append(row)
    return found


def _hourly_wattage(rows: Iterable[PowerStatistics], last_hour: int, count: int) -> list[Any]:
    """The mean watts of `count` hours up to that one, oldest first; None where not known."""
    means = {to_microseconds(row.start) // HOUR_US: row.avg_wattage for row in rows}
    return [means.get(hour) for hour in range(last_hour - count + 1, last_hour + 1)]


def _means(values: Sequence[float | None], count: int) -> list[float | None]:
    """The mean of each of `count` equal parts of the values; None where none is known.

    >>> _means([1.0, 3.0, None, 5.0, None, None], 3)
    [2.0, 5.0, None]
    """
    size = len(values) // count
    means: list[float | None] = []
    for start in range(0, len(values), size):
        known = [value for value in values[start : start + size] if value is not None]
        means.append(sum(known) / len(known) if known else None)
    return means


def _battery_hours(meters: Iterable[PowerMeter]) -> float | None:
    """Hours until these meters' active batteries are empty; None if they are not draining."""
    batteries = []
    for meter in meters:
        if meter.active and meter.type == MeterType.BATTERY:
            watts = _present_watts(meter)
            batteries.append(_Battery(meter.capacity_wh, meter.charge_pct, watts))
    return _runtime_hours(batteries)


def _age_s(meter: PowerMeter, now_us: int) -> float | None:
    """How long ago its newest reading was; below 0 if that is dated after now."""
    if meter.updated_at is None:
        return None
    return (now_us - to_microseconds(meter.updated_at)) / SECOND_US


def _view_of_meter(
    meter: PowerMeter, rows: Iterable[PowerStatistics], now_us: int, stale_s: float
) -> _MeterView:
    age_s = _age_s(meter, now_us)
    return _MeterView(
        meter=meter,
        age_s=age_s,
        is_stale=age_s is not None and age_s > stale_s,
        runtime_hours=_battery_hours([meter]),
        hourly_wattage=_hourly_wattage(rows, now_us // HOUR_US, _SPARK_HOURS),
    )


def _view_of_device(
    device: DeviceRecord,
    meters: Sequence[PowerMeter],
    hours: Mapping[str, Sequence[PowerStatistics]],
    *,
    now_us: int,
    stale_s: float,
    zone: tzinfo | None,
) -> _DeviceView:
    """What `status` shows of a device, of its meters and their hourly statistics."""
    date = _local(now_us, zone).date()

    def is_today(us: int) -> bool:
        # Day by day, not from a midnight on: where clocks are put forward at midnight, none exists.
        return us <= now_us and _local(us, zone).date() == date

    today = _rows_by_period(hours, is_today).get(True, {})
    return _DeviceView(
        device=device,
        meters=[
            _view_of_meter(meter, hours.get(meter.id, ()), now_us, stale_s) for meter in meters
        ],
        runtime_hours=_battery_hours(meters),
        today=_energy_of(meters, today),
        unmeasured=_unmeasured(meters, today),
    )


# --- Words and numbers


def _brief_duration(seconds: float, parts: int = 1) -> str:
    """A length of time in few columns: at most four with one part, six with two.

    >>> [_brief_duration(seconds, 2) for seconds in (5, 200, 11_400, 200_000, 3e7)]
    ['5s', '3m', '3h10m', '2d7h', '347d']
    """
    minutes = int(seconds // 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days >= 1000:
        return f"{days // 365}y"
    if days:
        return f"{days}d{hour}h" if parts > 1 and hour and days < 10 else f"{days}d"
    if hours:
        return f"{hours}h{minute:02}m" if parts > 1 and hours < 10 else f"{hours}h"
    return f"{minutes}m" if minutes else f"{int(seconds)}s"


def _age_colour(age_s: float | None, stale_s: float) -> str:
    """Yellow for a reading that is old, or dated after now."""
    is_usual = age_s is None or -_AHEAD_TOLERANCE_S <= age_s <= stale_s
    return "" if is_usual else "yellow"


def _brief_age(age_s: float | None) -> str:
    """How long ago, in at most five columns; "+" stands before what lies after now."""
    if age_s is None:
        return "-"
    if age_s < -_AHEAD_TOLERANCE_S:
        return f"+{_brief_duration(-age_s)}"
    return _brief_duration(max(age_s, 0.0))


def _number(value: float | None) -> str:
    """A number as shown_number shows it, but exactly 0 as "0", so that what is off stands out."""
    return "0" if value == 0 else shown_number(value)


def _narrow_number(value: float | None, width: int) -> str:
    """A number in at most `width` columns: with fewer digits, or in thousands.

    >>> [_narrow_number(value, 5) for value in (-12.34, 230.0, -123456.0)]
    ['-12.3', '230', '-123k']
    """
    text = _number(value)
    if value is None or len(text) <= width:
        return text
    suffixes = iter("kMGT")
    text = f"{value:.0f}"
    while len(text) > width:
        value /= 1000
        text = f"{value:.0f}{next(suffixes)}"
    return text


def _energy_unit(values: Iterable[float | None]) -> tuple[str, float]:
    """The one unit that suits all of the energies, and how many Wh it is."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return ("kWh", 1000.0) if largest >= _LARGE_WH else ("Wh", 1.0)


def _scaled(value: float | None, unit_wh: float) -> str:
    return _number(None if value is None else value / unit_wh)


def _shown_state(meter: PowerMeter) -> str:
    """A meter's state in a word for a person.

    As PowerMeter.state, except where that would mislead: a battery is "charging" when energy goes
    into it, and "full" where its charge alone would read as charging; a panel that gives nothing
    is "idle".
    """
    if not meter.active:
        return "inactive"
    if meter.updated_at is None:
        return "no data"
    state = meter.state
    watts = meter.wattage
    if meter.type == MeterType.SOLAR:
        if watts is None:
            return PowerState.UNKNOWN.value
        return "idle" if watts <= 0 else state.value
    if meter.type in _TYPES_WITH_CHARGE and state in (PowerState.NORMAL, PowerState.CHARGING):
        if watts is not None and watts < 0:
            return PowerState.CHARGING.value
        return "full" if state == PowerState.CHARGING else state.value
    return state.value


_STATE_COLOURS = {
    "normal": "",
    "idle": "",
    "full": "green",
    "charging": "green",
    "low": "yellow",
    "critical": "red",
    "unknown": "yellow",
    "inactive": "dim",
    "no data": "dim",
}


def _state_colour(meter: PowerMeter) -> str:
    return _STATE_COLOURS[_shown_state(meter)]


def _charge_colour(meter: PowerMeter) -> str:
    """The colour of a bar of charge: green where nothing is wrong."""
    colour = _STATE_COLOURS[meter.state.value]
    is_usual = meter.state in (PowerState.NORMAL, PowerState.CHARGING)
    return "green" if is_usual else colour


def _present(meter: PowerMeter, value: float | None) -> float | None:
    """The value, if the meter has had a reading; a missing one of volts and amperes is 0."""
    if meter.updated_at is None or (not meter.power_known and not value):
        return None
    return value


def _charge_of(meter: PowerMeter) -> float | None:
    """A meter's charge in %; None if unknown, without a reading, or for a type without charge."""
    if meter.type not in _TYPES_WITH_CHARGE or meter.updated_at is None:
        return None
    return meter.charge_pct


def _shown_percent(value: float | None) -> str:
    """Whole percent, but never 100 for what is not full, nor 0 for what is not empty.

    >>> [_shown_percent(value) for value in (99.7, 0.2, 55.5)]
    ['99%', '1%', '56%']
    """
    if value is None:
        return "-"
    whole = round(value)
    if whole == 100 and value < 100:
        whole = 99
    if whole == 0 and value > 0:
        whole = 1
    return f"{whole}%"


def _shown_range(least: float | None, most: float | None) -> str:
    """Two percentages, or one where they are shown alike."""
    if _shown_percent(least) == _shown_percent(most):
        return _shown_percent(least)
    return f"{_shown_percent(least)[:-1]}-{_shown_percent(most)}"


def _full_table(records: Sequence[Any], more: Sequence[str] = ()) -> str:
    """Records as a table of all their fields, and `more` of their attributes; "none" without any.

    Not cut to the width of the screen: for `--wide`.
    """
    if not records:
        return "none"
    names = [*(field.name for field in dataclasses.fields(records[0])), *more]
    columns = [Column(name, attrgetter(name)) for name in names]
    return make_table(columns, records, Screen(width=_NO_LIMIT))


_NO_LIMIT = 1_000_000  # columns


# --- status


@dataclass(frozen=True)
class _StatusColumn:
    """A column of `status`: its head, its width, and its text and colour for a meter."""

    name: str
    head: str
    width: int
    text: Callable[[_MeterView, int, Screen], str]
    right: bool = False
    colour: Callable[[_MeterView], str] = lambda _view: ""


def _charge_text(view: _MeterView, width: int, screen: Screen) -> str:
    if view.meter.type not in _TYPES_WITH_CHARGE:
        return ""
    charge = view.meter.charge_pct
    bar = "" if charge is None else screen.bar(charge / 100, width - 5)
    return f"{bar:{width - 5}} {_shown_percent(charge):>4}"


def _spark_text(view: _MeterView, width: int, screen: Screen) -> str:
    """A column for one hour or several; 0 W is within the range, so that a steady load is full."""
    means = _means(view.hourly_wattage, width)
    seen = [0.0, *(mean for mean in means if mean is not None)]
    return screen.sparkline(means, min(seen), max(seen))


def _runtime_text(view: _MeterView, _width: int, _screen: Screen) -> str:
    if view.runtime_hours is None or not view.is_present:
        return ""
    return _brief_duration(view.runtime_hours * 3600, 2)


def _number_column(
    name: str, width: int, value: Callable[[PowerMeter], float | None]
) -> _StatusColumn:
    """A column of watts, volts or amperes; its head is its unit."""

    def text(view: _MeterView, own_width: int, _screen: Screen) -> str:
        return _narrow_number(_present(view.meter, value(view.meter)), own_width)

    return _StatusColumn(name, name, width, text, right=True)


# With one blank between them they fill 80 columns. What a narrower screen leaves out is named
# below, in that order; what a wider one adds is in _status_layout().
_STATUS_COLUMNS = [
    _StatusColumn(
        "name", "meter", 12, lambda view, _width, screen: f"  {screen.printable(view.name)}"
    ),
    _StatusColumn("type", "type", 7, lambda view, _width, _screen: view.meter.type.value),
    _StatusColumn(
        "state",
        "state",
        8,
        lambda view, _width, _screen: _shown_state(view.meter),
        colour=lambda view: _state_colour(view.meter),
    ),
    _StatusColumn(
        "charge", "charge", 10, _charge_text, colour=lambda view: _charge_colour(view.meter)
    ),
    _number_column("W", 6, attrgetter("wattage")),
    _number_column("V", 5, attrgetter("voltage")),
    _number_column("A", 5, attrgetter("current_draw")),
    _StatusColumn("left", "left", 5, _runtime_text, right=True),
    _StatusColumn("spark", "24 h", 8, _spark_text, colour=lambda _view: "blue"),
    _StatusColumn(
        "read",
        "read",
        5,
        lambda view, _width, _screen: _brief_age(view.age_s),
        right=True,
        colour=lambda view: "yellow" if view.is_stale or view.is_ahead else "",
    ),
]
_LEFT_OUT_FIRST = ["spark", "A", "V", "left", "type", "charge"]
_LONGEST_NAME = 40


@dataclass
class _StatusLayout:
    """How wide the columns of `status` are on a screen, by name, and the blanks between them."""

    screen_width: int
    widths: dict[str, int]
    gap: int = 1

    @property
    def columns(self) -> list[_StatusColumn]:
        return [column for column in _STATUS_COLUMNS if column.name in self.widths]

    @property
    def width(self) -> int:
        return sum(self.widths.values()) + self.gap * (len(self.widths) - 1)

    @property
    def room(self) -> int:
        """How much of the screen is left; below 0 if it is too narrow."""
        return self.screen_width - self.width

    def widen(self, name: str, width: int) -> None:
        """Give a column that is shown this width, if there is room for it."""
        if name in self.widths and width - self.widths[name] <= self.room:
            self.widths[name] = width

    def widen_name(self, width: int) -> None:
        """Give names this width, or what there is room for."""
        own = self.widths["name"]
        self.widths["name"] = max(own, min(width, own + self.room))

    def widen_gap(self) -> None:
        if self.room >= len(self.widths) - 1:
            self.gap += 1

    def line(self, cells: Iterable[str]) -> str:
        return (" " * self.gap).join(cells).rstrip()


def _status_layout(screen: Screen, name_width: int) -> _StatusLayout:
    """Fit the columns to the screen; a name takes `name_width` where there is room."""
    layout = _StatusLayout(screen.width, {column.name: column.width for column in _STATUS_COLUMNS})
    for name in _LEFT_OUT_FIRST:
        if layout.room < 0:
            del layout.widths[name]
    layout.widen_name(min(name_width, 24))
    layout.widen_gap()
    layout.widen("spark", _SPARK_HOURS // 2)
    layout.widen("spark", _SPARK_HOURS)
    layout.widen("charge", 15)
    layout.widen_name(min(name_width, _LONGEST_NAME))
    return layout


def _meter_line(view: _MeterView, layout: _StatusLayout, screen: Screen) -> str:
    """One meter's line; before its first reading, words instead of values."""
    cells = []
    has_values = view.age_s is not None
    for column in layout.columns:
        if not has_values and column.name not in ("name", "type"):
            continue
        width = layout.widths[column.name]
        text = column.text(view, width, screen)
        text = fit_text(text, width, right=column.right, ellipsis=screen.ellipsis)
        colour = column.colour(view) if view.is_present or column.name == "read" else "dim"
        cells.append(screen.paint(text, colour if text.strip() else ""))
    if not has_values:
        words = " " * (2 - layout.gap) + "no reading yet"  # two blanks from the type
        cells.append(screen.paint(words, "dim"))
    return layout.line(cells)


def _device_head(view: _DeviceView, screen: Screen) -> str:
    """Name and id of a device, and at the right its runtime and energy of the day."""
    name = view.device.name
    id_ = "" if view.device.id == name else view.device.id
    facts = []
    if view.runtime_hours is not None and any(part.is_present for part in view.meters):
        facts.append(f"{_brief_duration(view.runtime_hours * 3600, 2)} left")
    if view.meters:
        facts.append("today unknown" if view.unmeasured else _today_text(view.today))
    return _titled(name, id_, ", ".join(facts), screen)


def _titled(name: str, id_: str, right: str, screen: Screen) -> str:
    """A name, an id and a text at the right; the text stands below where they do not fit."""
    name = screen.printable(name)
    id_ = screen.printable(id_)
    title_width = text_width(name) + 2 * bool(id_) + text_width(id_)
    room = screen.width
    has_own_line = title_width + 2 + len(right) > screen.width
    if title_width > room:
        id_ = _cut(id_, max(room // 3, room - text_width(name) - 2), screen)
        name = _cut(name, room - 2 * bool(id_) - text_width(id_), screen)
    title = screen.paint(name, "bold")
    if id_:
        title += "  " + screen.paint(id_, "dim")
    if not right:
        return title
    if has_own_line:
        return f"{title}\n{fit_text(right, room, right=True, ellipsis=screen.ellipsis)}"
    return title + " " * (room - title_width - len(right)) + right


def _cut(text: str, width: int, screen: Screen) -> str:
    """The text in at most that many columns."""
    return fit_text(text, width, ellipsis=screen.ellipsis).rstrip()


def _today_text(today: _Energy) -> str:
    unit, unit_wh = _energy_unit(today)
    out, in_, used = (_scaled(value, unit_wh) for value in today)
    return f"today {out} {unit} out, {in_} in, {used} used"


_ALERT_COLOURS = {AlertLevel.LOW: "yellow", AlertLevel.CRITICAL: "red"}


def _meter_notes(view: _MeterView) -> Iterator[tuple[str, str]]:
    """What a person must know of a meter beyond its values: colour and text of each line."""
    meter = view.meter
    if not meter.active or view.age_s is None:
        return
    if meter.alert_level in _ALERT_COLOURS:
        left = f", {_number(meter.charge_pct)} % left"
        if meter.charge_pct is None:
            left = " when its charge was last known"
        what = f"battery {meter.alert_level}{left}"
        yield _ALERT_COLOURS[meter.alert_level], f"{view.name}: {what}"
    if view.is_stale:
        yield "yellow", f"{view.name}: stale, no reading for {shown_duration(view.age_s)}"
    if view.is_ahead:
        ahead = shown_duration(-view.age_s)
        yield "yellow", f"{view.name}: its newest reading is dated {ahead} after now"
    if not meter.power_known:
        yield "yellow", f"{view.name}: power unknown, the reading lacks volts or amperes"


def _status_text(devices: Sequence[_DeviceView], screen: Screen) -> str:
    """The whole of `status`."""
    if not devices:
        return "no devices yet: the command `register` makes one"
    views = [view for device in devices for view in device.meters]
    name_width = max((text_width(screen.printable(view.name)) + 2 for view in views), default=0)
    layout = _status_layout(screen, name_width)
    heads = [
        fit_text(column.head, layout.widths[column.name], right=column.right)
        for column in layout.columns
    ]
    lines = [screen.paint(layout.line(heads), "dim")] if views else []
    for device in devices:
        if lines:
            lines.append("")
        lines += _device_lines(device, layout, screen)
    return "\n".join(lines)


def _device_lines(view: _DeviceView, layout: _StatusLayout, screen: Screen) -> Iterator[str]:
    yield _device_head(view, dataclasses.replace(screen, width=layout.width))
    if not view.meters:
        yield _cut("  no meters yet: the command `add-meter` adds one", screen.width, screen)
    for meter in view.meters:
        yield _meter_line(meter, layout, screen)
    for meter in view.meters:
        for colour, text in _meter_notes(meter):
            line = _cut(f"  ! {screen.printable(text)}", screen.width, screen)
            yield screen.paint(line, colour)


def _meter_values(meter: PowerMeter) -> dict[str, Any]:
    """A meter's record with its wattage and state, for JSON."""
    return {**dataclasses.asdict(meter), "wattage": meter.wattage, "state": meter.state.value}


def _status_values(devices: Iterable[_DeviceView], now_us: int) -> dict[str, Any]:
    """The whole of `status`, for JSON."""
    return {
        "generated_at": from_microseconds(now_us),
        "devices": [
            {
                **dataclasses.asdict(view.device),
                "estimated_runtime_hours": view.runtime_hours,
                "energy_today_out_wh": rounded(view.today.out_wh),
                "energy_today_in_wh": rounded(view.today.in_wh),
                "consumption_today_wh": rounded(view.today.consumption_wh),
                "meters": [
                    {
                        **_meter_values(part.meter),
                        "age_seconds": part.age_s,
                        "stale": part.is_stale,
                        "ahead": part.is_ahead,
                        "estimated_runtime_hours": part.runtime_hours,
                        "hourly_wattage": part.hourly_wattage,
                    }
                    for part in view.meters
                ],
            }
            for view in devices
        ],
    }


# --- devices, meters, budget


def _devices_text(
    devices: Sequence[DeviceRecord], meter_counts: Mapping[str, int], screen: Screen
) -> str:
    """The devices with the thresholds that hold for them."""
    if not devices:
        return "no devices yet: the command `register` makes one"

    def threshold(of: int) -> Callable[[DeviceRecord], str]:
        def shown(device: DeviceRecord) -> str:
            both = _thresholds(device.low_battery_threshold, device.critical_battery_threshold)
            return f"{both[of]:.4g}"

        return shown

    columns = [
        Column("id", lambda device: device.id, shrinks=True),
        Column("name", lambda device: device.name, shrinks=True, colour=lambda _: "bold"),
        Column("meters", lambda device: meter_counts.get(device.id, 0), right=True),
        Column("target Wh", lambda device: _number(device.target_wh), right=True),
        Column("shutdown W", lambda device: _number(device.shutdown_threshold), right=True),
        Column("low %", threshold(0), right=True),
        Column("crit %", threshold(1), right=True),
    ]
    return make_table(columns, devices, screen)


def _meters_text(meters: Sequence[PowerMeter], now_us: int, stale_s: float, screen: Screen) -> str:
    """The meters with their present values, or what to do where there are none."""
    if not meters:
        return "no meters yet: the command `add-meter` adds one"
    return make_meter_table(meters, now_us, stale_s, screen)


def make_meter_table(
    meters: Iterable[PowerMeter], now_us: int, stale_s: float, screen: Screen
) -> str:
    """The meters with their present values as a table, as the command `meters` shows it.

    `now_us` is the present in microseconds since 1970; a reading older than `stale_s` seconds is
    coloured as old.
    """

    def number(value: Callable[[PowerMeter], float | None]) -> Callable[[PowerMeter], str]:
        return lambda meter: _number(_present(meter, value(meter)))

    columns = [
        Column("meter", _meter_label, shrinks=True, colour=lambda _: "bold"),
        Column("type", lambda meter: meter.type.value),
        Column("state", _shown_state, colour=_state_colour),
        Column("charge", lambda meter: _shown_percent(_charge_of(meter)), right=True),
        Column("W", number(attrgetter("wattage")), right=True),
        Column("V", number(attrgetter("voltage")), right=True),
        Column("A", number(attrgetter("current_draw")), right=True),
        Column("Wh full", lambda meter: _number(meter.capacity_wh or None), right=True),
        Column(
            "read",
            lambda meter: _brief_age(_age_s(meter, now_us)),
            right=True,
            colour=lambda meter: _age_colour(_age_s(meter, now_us), stale_s),
        ),
    ]
    return make_table(columns, meters, screen)


def _budget_verdict(budget: Mapping[str, Any], doubt: str) -> str:
    """The verdict on a budget; `doubt` says why its present figures may mean nothing."""
    if "error" in budget:
        return "no such id"
    if not budget["states"]:
        return "inactive"
    if budget["below_shutdown_threshold"] and not doubt:
        return "low supply"
    if budget["within_target"] is False:  # whatever is not known comes on top
        return "over target"
    if doubt:
        return doubt
    if budget["unknown_power_count"]:
        return "unknown W"
    if budget["consumption_24h_wh"] is None:
        return "unknown Wh"
    return "ok"


def budget_doubt(meters: Iterable[PowerMeter], now_us: int, stale_s: float) -> str:
    """Why the present figures of a device's budget may mean nothing: "stale 9d", "no readings", "".

    `meters` are the device's, of which inactive ones do not count; `now_us` is the time in
    microseconds. An active meter is stale whose newest reading is older than `stale_s` seconds:
    the file's max_gap, over which no energy is booked. For the `doubts` of make_budget_table().
    """
    ages = [_age_s(meter, now_us) for meter in meters if meter.active]
    known = [age for age in ages if age is not None]
    if not known:
        return "no readings"
    return f"stale {_brief_duration(max(known))}" if max(known) > stale_s else ""


_VERDICT_COLOURS = {
    "ok": "green",
    "inactive": "dim",
    "no readings": "dim",
    "unknown W": "yellow",
    "unknown Wh": "yellow",
    "over target": "yellow",
}


def _budget_text(
    budgets: Mapping[str, Mapping[str, Any]], doubts: Mapping[str, str], screen: Screen
) -> str:
    """Budgets, a line a device, or what to do where there are none."""
    if not budgets:
        return "no devices yet: the command `register` makes one"
    return make_budget_table(budgets, screen, doubts=doubts)


def make_budget_table(
    budgets: Mapping[str, Mapping[str, Any]],
    screen: Screen,
    *,
    doubts: Mapping[str, str] | None = None,
) -> str:
    """Budgets of power_budget_check() as a table, as the command `budget` shows it.

    `doubts` has, by device id, why its present figures may mean nothing, such as "stale 9d": it
    is the verdict then. A value that is None is shown as -.
    """

    def number(key: str) -> Callable[[str], str]:
        return lambda id_: _number(budgets[id_].get(key))

    def runtime(id_: str) -> str:
        hours = budgets[id_].get("estimated_runtime_hours")
        return "-" if hours is None else _brief_duration(hours * 3600, 2)

    def verdict(id_: str) -> str:
        return _budget_verdict(budgets[id_], (doubts or {}).get(id_, ""))

    def colour(id_: str) -> str:
        is_stale = verdict(id_).startswith("stale")
        return "yellow" if is_stale else _VERDICT_COLOURS.get(verdict(id_), "red")

    columns = [
        Column("device", str, shrinks=True, colour=lambda _: "bold"),
        Column("load W", number("load_wattage"), right=True),
        Column("solar W", number("solar_wattage"), right=True),
        Column("net W", number("net_wattage"), right=True),
        Column(
            "charge", lambda id_: _shown_percent(budgets[id_].get("avg_charge_pct")), right=True
        ),
        Column("left", runtime, right=True),
        Column("24 h Wh", number("consumption_24h_wh"), right=True),
        Column("target", number("target_wh"), right=True),
        Column("verdict", verdict, colour=colour),
    ]
    return make_table(columns, list(budgets), screen)


# --- stats


def _signed_bar(value: float | None, low: float, high: float, width: int, screen: Screen) -> str:
    """A bar from where 0 lies between `low` and `high` to the value; in steps of half a column.

    >>> _signed_bar(-5.0, -10.0, 10.0, 8, Screen())
    '  ██    '
    """
    if value is None or high <= low:
        return " " * width
    zero = round(2 * width * -low / (high - low))
    end = round(2 * width * (value - low) / (high - low))
    first, last = sorted((zero, end))
    shades = {(False, False): " ", (True, False): "▌", (False, True): "▐", (True, True): "█"}
    if not screen.has_unicode:
        shades = {**dict.fromkeys(shades, "#"), (False, False): " "}
    halves = [first <= half < last for half in range(2 * width)]
    return "".join(shades[pair] for pair in zip(halves[::2], halves[1::2]))


@dataclass(frozen=True)
class _StatsView:
    """What `stats` shows: rows by hour or by UTC day, and the hours of the same time."""

    meter: PowerMeter
    rows: Sequence[PowerStatistics]
    hours: Sequence[PowerStatistics]
    is_daily: bool
    zone: tzinfo | None


def _stats_picture(view: _StatsView, screen: Screen) -> Callable[[PowerStatistics], str]:
    """Draws a row: an hour as a bar of its mean watts, a day as the mean watts of its hours."""
    known = [0.0, *(row.avg_wattage for row in view.hours if row.avg_wattage is not None)]
    low = min(known)
    high = max(known)
    days = _rows_by_period({view.meter.id: view.hours}, lambda us: us // DAY_US)
    width = 12 if screen.width < 100 else 24

    def bar(row: PowerStatistics) -> str:
        return _signed_bar(row.avg_wattage, low, high, width, screen)

    def sparkline(row: PowerStatistics) -> str:
        day = to_microseconds(row.start) // DAY_US
        hours = days.get(day, {}).get(view.meter.id, ())
        wattage = _hourly_wattage(hours, 24 * day + 23, 24)
        return screen.sparkline(_means(wattage, width), low, high)

    return sparkline if view.is_daily else bar


def _stats_text(view: _StatsView, screen: Screen) -> str:
    """Statistics, a line an hour or a day."""
    if not view.rows:
        return "no readings in that time"
    unit, unit_wh = _energy_unit(
        value for row in view.rows for value in (row.energy_out_wh, row.energy_in_wh)
    )

    def hour(row: PowerStatistics) -> str:
        return f"{_local(to_microseconds(row.start), view.zone):%Y-%m-%d %H:%M}"

    def charge(row: PowerStatistics) -> str:
        return _shown_range(row.min_charge_pct, row.max_charge_pct)

    is_unknown = _is_energy_unknown(view.rows)

    def energy(key: str) -> Callable[[PowerStatistics], str]:
        return lambda row: _scaled(None if is_unknown else getattr(row, key), unit_wh)

    first = Column("UTC hour" if view.zone else "hour", hour)
    if view.is_daily:
        first = Column("UTC day", lambda row: row.start[:10])
    columns = [
        first,
        Column("mean W", lambda row: _number(row.avg_wattage), right=True),
        Column("", _stats_picture(view, screen), colour=lambda _: "blue"),
        Column("min", lambda row: _number(row.min_wattage), right=True),
        Column("max", lambda row: _number(row.max_wattage), right=True),
        Column("charge", charge, right=True),
        Column(f"out {unit}", energy("energy_out_wh"), right=True),
        Column(f"in {unit}", energy("energy_in_wh"), right=True),
        Column("n", lambda row: row.reading_count, right=True),
    ]
    if view.meter.type not in _TYPES_WITH_CHARGE:
        columns = [column for column in columns if column.head != "charge"]
    return make_table(columns, view.rows, screen)


# --- events


_EVENT_COLOURS = {
    PowerEventType.LOW_BATTERY: "red",
    PowerEventType.SHUTDOWN: "red",
    PowerEventType.DISCHARGE: "yellow",
    PowerEventType.CHARGE_START: "green",
    PowerEventType.RESTORE: "green",
}


def _event_colour(event: PowerEvent) -> str:
    return _EVENT_COLOURS[event.type]


def _event_note(event: PowerEvent) -> str:
    """An event's note, after its value where that is not 0 and not in the note."""
    note = event.note or ""
    if event.value and f"{event.value:g}" not in note:
        return f"{_number(event.value)}  {note}".rstrip()
    return note


_EVENT_TYPE_WIDTH = max(len(kind.value) for kind in PowerEventType)
_FOLLOWED_DEVICE_WIDTH = 14


def _events_text(
    events: Sequence[PowerEvent], device_id: str | None, zone: tzinfo | None, screen: Screen
) -> str:
    """Events of one device, or of all, each with its device's id."""
    if not events:
        return "no events"
    columns = [
        Column("UTC" if zone else "time", lambda event: shown_time(event.timestamp, zone)),
        Column("device", attrgetter("device_id"), shrinks=True),
        Column("event", lambda event: event.type.value, colour=_event_colour),
        Column("note", _event_note, shrinks=True),
    ]
    if device_id is not None:
        columns = [column for column in columns if column.head != "device"]
    return make_table(columns, events, screen)


def _event_line(event: PowerEvent, zone: tzinfo | None, screen: Screen) -> str:
    """An event as a line of its own: what comes later stands below what came before it."""
    device = screen.printable(event.device_id)
    device = fit_text(device, _FOLLOWED_DEVICE_WIDTH, ellipsis=screen.ellipsis)
    kind = screen.paint(fit_text(event.type.value, _EVENT_TYPE_WIDTH), _event_colour(event))
    cells = [shown_time(event.timestamp, zone), device, kind, screen.printable(_event_note(event))]
    return "  ".join(cells).rstrip()


# --- report


@dataclass(frozen=True)
class _Period:
    """A day or month of a report; `energy` is None where it is not known, as without readings."""

    label: str
    energy: _Energy | None


def _energy_by_period(
    meters: Sequence[PowerMeter],
    hours: Mapping[str, Sequence[PowerStatistics]],
    zone: tzinfo | None,
) -> list[_Period]:
    """The device's energy by local day; of a long time, by month."""
    days = _rows_by_period(hours, lambda us: _local(us, zone).toordinal())
    if len(days) > _MOST_DAYS:
        months = _rows_by_period(hours, lambda us: f"{_local(us, zone):%Y-%m}")
        return [_Period(label, _known_energy_of(meters, months[label])) for label in sorted(months)]
    shown: Iterable[int] = sorted(days)
    if days and max(days) - min(days) < _MOST_DAYS:  # not if a clock was years off for an hour
        shown = range(min(days), max(days) + 1)
    return [
        _Period(
            label=f"{datetime.fromordinal(day):%a %Y-%m-%d}",
            energy=_known_energy_of(meters, days[day]) if day in days else None,
        )
        for day in shown
    ]


def _stacked_bar(energy: _Energy | None, most_wh: float, width: int, screen: Screen) -> str:
    """A bar of what was used, then of what also went out and into another meter."""
    if energy is None or most_wh <= 0:
        return ""
    used_sign, in_sign = _stack_signs(screen)
    used = round(width * min(energy.consumption_wh / most_wh, 1.0))
    out = round(width * energy.out_wh / most_wh)
    return used_sign * used + in_sign * (out - used)


def _stack_signs(screen: Screen) -> tuple[str, str]:
    return ("█", "░") if screen.has_unicode else ("#", ".")


def _periods_text(periods: Sequence[_Period], screen: Screen) -> str:
    """A line a day or month, with a bar."""
    energies = [period.energy for period in periods if period.energy is not None]
    most_wh = max((max(energy) for energy in energies), default=0.0)
    unit, unit_wh = _energy_unit([most_wh])

    def number(of: Callable[[_Energy], float]) -> Callable[[_Period], str]:
        return lambda period: _scaled(period.energy and of(period.energy), unit_wh)

    used_sign, in_sign = _stack_signs(screen)
    columns = [
        Column("", lambda period: period.label),
        Column(f"used {unit}", number(attrgetter("consumption_wh")), right=True),
        Column(f"out {unit}", number(attrgetter("out_wh")), right=True),
        Column(f"in {unit}", number(attrgetter("in_wh")), right=True),
        Column(
            f"{used_sign} used  {in_sign} in",
            lambda period: _stacked_bar(period.energy, most_wh, width, screen),
            colour=lambda _: "green",
        ),
    ]
    label_width = max((len(period.label) for period in periods), default=0)
    head_widths = [len(column.head) for column in columns[1:4]]
    width = min(screen.width - label_width - sum(head_widths) - 2 * 4, 60)
    return make_table(columns, periods, screen)


class _Fact(NamedTuple):
    """A line of a report's totals."""

    name: str
    value: str
    more: str = ""


def _report_facts(
    report: Mapping[str, Any], unmeasured: Collection[PowerMeter], known_days: float
) -> Iterator[_Fact]:
    """The totals of a report, without those of types of meters that the device lacks.

    `unmeasured` are the meters whose energy is not known; `known_days` go from the first reading of
    the period to its end.
    """
    totals = report["totals"]
    unknown = {meter.type.value for meter in unmeasured}
    kinds = {meter["type"] for meter in report["meters"]}
    unit, unit_wh = _energy_unit(value for key, value in totals.items() if key.endswith("_wh"))

    def energy(key: str) -> str:
        return f"{_scaled(abs(totals[key]), unit_wh)} {unit}"

    if unknown:
        yield _Fact("used", "-")
    elif known_days <= 1:
        yield _Fact("used", energy("consumption_wh"))
    else:
        a_day = f"{_scaled(totals['consumption_wh'] / known_days, unit_wh)} {unit} a day"
        if known_days < report["period_days"]:
            a_day += f", over {_brief_duration(known_days * 86400, 2)}"
        yield _Fact("used", energy("consumption_wh"), a_day)
    sources = [
        ("solar", "from the sun", "solar_wh"),
        ("main", "from the mains", "main_wh"),
        ("ups", "from the UPS", "ups_wh"),
        ("battery", "out of batteries", "battery_out_wh"),
        ("battery", "into batteries", "battery_in_wh"),
    ]
    for kind, name, key in sources:
        if kind in unknown:
            yield _Fact(name, "-")
        elif kind in kinds and totals[key] >= 0:
            yield _Fact(name, energy(key))
        elif kind in kinds:
            yield _Fact(name.replace("from", "into"), energy(key))
    if totals["self_sufficiency_pct"] is not None and not unknown:
        yield _Fact("self-sufficient", f"{_number(totals['self_sufficiency_pct'])} %")


def _facts_text(facts: Sequence[_Fact], screen: Screen) -> str:
    name_width = max(len(fact.name) for fact in facts)
    value_width = max(len(fact.value) for fact in facts)
    lines = []
    for fact in facts:
        name = screen.paint(fact.name.ljust(name_width), "dim")
        value = screen.paint(fact.value.rjust(value_width), "bold" if fact.more else "")
        lines.append(f"{name}  {value}  {fact.more}".rstrip())
    return "\n".join(lines)


def _report_meters_text(
    report: Mapping[str, Any],
    meters: Sequence[PowerMeter],
    hours: Mapping[str, Sequence[PowerStatistics]],
    screen: Screen,
) -> str:
    """What a report says of each meter, a line each."""
    by_id = {meter.id: meter for meter in meters}
    parts = [part for part in report["meters"] if part["meter_id"] in by_id]
    unit, unit_wh = _energy_unit(
        part.get(key) for part in parts for key in ("energy_out_wh", "energy_in_wh")
    )

    def meter_of(part: Mapping[str, Any]) -> PowerMeter:
        return by_id[part["meter_id"]]

    def number(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda part: _number(part.get(key))

    def energy(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda part: _scaled(
            None if _is_energy_unknown(hours.get(part["meter_id"], ())) else part.get(key), unit_wh
        )

    def charge(part: Mapping[str, Any]) -> str:
        if meter_of(part).type not in _TYPES_WITH_CHARGE:
            return "-"
        return _shown_range(part.get("min_charge_pct"), part.get("max_charge_pct"))

    columns = [
        Column("meter", lambda part: _meter_name(meter_of(part)), shrinks=True),
        Column("type", lambda part: part["type"]),
        Column(
            "state",
            lambda part: _shown_state(meter_of(part)),
            colour=lambda part: _state_colour(meter_of(part)),
        ),
        Column("mean W", number("avg_wattage"), right=True),
        Column("min", number("min_wattage"), right=True),
        Column("max", number("max_wattage"), right=True),
        Column("charge", charge, right=True),
        Column(f"out {unit}", energy("energy_out_wh"), right=True),
        Column(f"in {unit}", energy("energy_in_wh"), right=True),
    ]
    return make_table(columns, parts, screen)


def _report_events_text(report: Mapping[str, Any], zone: tzinfo | None, screen: Screen) -> str:
    """A report's events, newest first."""
    events = [
        PowerEvent(**{**event, "type": PowerEventType(event["type"])}) for event in report["events"]
    ]
    return _events_text(events, report["device_id"], zone, screen)


def _known_days(
    report: Mapping[str, Any],
    meters: Iterable[PowerMeter],
    hours: Mapping[str, Sequence[PowerStatistics]],
) -> float:
    """The days of a report's period from its first reading of a counted meter on."""
    starts = [hours[meter.id][0].start for meter in counted_meters(meters) if hours.get(meter.id)]
    if not starts:
        return 0.0
    known_us = to_microseconds(report["generated_at"]) - to_microseconds(min(starts))
    known_days: float = min(known_us / DAY_US, report["period_days"])
    return known_days


def _report_text(
    report: Mapping[str, Any],
    meters: Sequence[PowerMeter],
    hours: Mapping[str, Sequence[PowerStatistics]],
    zone: tzinfo | None,
    screen: Screen,
) -> str:
    """A report, as export_report() makes it, for a person; `hours` are those of its period."""
    days = report["period_days"]
    until = f"{shown_time(report['generated_at'], zone)[:16]}{' UTC' if zone else ''}"
    period = f"{days:g} {'day' if days == 1 else 'days'} to {until}"
    parts = [_titled(report["device_name"], report["device_id"], period, screen)]
    if not report["meters"]:
        parts.append("no meters yet: the command `add-meter` adds one")
    else:
        unmeasured = _unmeasured(meters, hours)
        known_days = _known_days(report, meters, hours)
        parts.append(_facts_text(list(_report_facts(report, unmeasured, known_days)), screen))
        periods = _energy_by_period(meters, hours, zone)
        parts.append(_periods_text(periods, screen) if periods else "no readings in that time")
        parts.append(_report_meters_text(report, meters, hours, screen))
        if unmeasured:
            names = ", ".join(screen.printable(_meter_name(meter)) for meter in unmeasured)
            why = "its readings are further apart than the file's max_gap"
            parts[-1] += "\n" + screen.paint(f"no energy known of {names}: {why}", "yellow")
    parts.append(_report_events_text(report, zone, screen))
    hidden_count = report["event_count"] - len(report["events"])
    if hidden_count:
        parts[-1] += f"\nand {_counted(hidden_count, 'earlier event')}"
    return "\n\n".join(parts)


# --- Frames of --watch

_ENTER_FRAMES = "\x1b[?1049h\x1b[?25l"  # the terminal's second screen, without a cursor
_LEAVE_FRAMES = "\x1b[?25h\x1b[?1049l"


def _frame(lines: list[str], height: int) -> str:
    """What redraws a terminal of that many lines in place, in one go.

    A line is cleared before it is written: a line that ends in the last column would lose its last
    character to what clears the rest. Terminals that know mode 2026 show all of it at once.
    """
    if len(lines) > height:
        hidden = len(lines) - height + 1
        lines = [*lines[: height - 1], f"{hidden} more lines: the window is too short for them"]
    body = "\r\n".join(f"\x1b[K{line}" for line in lines)
    rest = "\r\n\x1b[J" if len(lines) < height else ""
    return f"\x1b[?2026h\x1b[H{body}{rest}\x1b[?2026l"


# --- Import and export ----------------------------------------------------------------
# A log is text of one of three forms: delimited lines with or without a head, a JSON object in
# each line, or one JSON array of objects. One line is one row, so that damage costs its own line.

_OWN_COLUMNS = ("timestamp", "voltage", "current", "charge_pct")
_SHOWN_BAD_ROWS = 20  # of an import: enough to see what is wrong
_SAMPLE_ROWS = 100  # rows by which a log's form is found
_MAX_LINE = 65_536  # characters of a line, or of an object in an array; more is no reading
_PIECE_BYTES = 65_536  # that are read at once
_WAITING_PIECES = 16  # read from a pipe and not yet understood
_QUIET_S = 1.0  # without input for so long, what has come from a pipe is stored
_BATCH_ROWS = 1_000  # of standard input that are stored at once
_REMEMBERED_TIMES = 20_000  # hours of a log, and ends of times after the minute

# --- What columns mean


@dataclass(frozen=True)
class _Meaning:
    """What a column can be: its units, each with its power of ten, and the names it goes by.

    Names are in lower case, without blanks and punctuation. `with_unit` are names that mean it
    only with a unit: "Battery (V)"; "" stands for a name that is a unit alone.
    """

    name: str
    units: Mapping[str, int]
    aliases: frozenset[str]
    with_unit: frozenset[str] = frozenset()

    def unit_of(self, text: str) -> str | None:
        """The unit that a text in lower case means; None if it is none of this meaning's."""
        text = _UNIT_WORDS.get(text, text)
        for unit in self.units:
            if unit.lower() == text:
                return unit
        return None


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNIT_WORDS = {
    "volt": "v",
    "volts": "v",
    "amp": "a",
    "amps": "a",
    "ampere": "a",
    "amperes": "a",
    "watt": "w",
    "watts": "w",
    "pct": "%",
    "percent": "%",
    "prozent": "%",
    "gmt": "utc",
}
# A time tells its unit by its size; these are words that may stand at the end of its name.
_TIME_UNITS = dict.fromkeys(("UTC", "local", "s", "ms", "us", "unix", "epoch", "iso"), 0)
_BATTERY_NAMES = frozenset(["", "battery", "batt", "bat", "pack", "bus", "dc", "load", "akku"])
_MEANINGS = {
    meaning.name: meaning
    for meaning in (
        _Meaning(
            "timestamp",
            _TIME_UNITS,
            _names(
                """timestamp datetime datetimestamp dateandtime ts epoch epochtime unixtime
                unixtimestamp created createdat recorded recordedat measuredat loggedat logged
                lastchanged lastupdated localtime utctime logtime eventtime sampletime zeitstempel
                zeitpunkt datumzeit datumuhrzeit datumunduhrzeit"""
            ),
        ),
        _Meaning("date", _TIME_UNITS, frozenset(["date", "datum", "day"])),
        _Meaning("time", _TIME_UNITS, frozenset(["time", "timeofday", "uhrzeit", "zeit"])),
        _Meaning(
            "voltage",
            {"V": 0, "mV": -3, "uV": -6, "kV": 3},
            _names(
                """voltage volt volts u v vbat vbatt vbus ubat ubatt batteryvoltage battvoltage
                batvoltage packvoltage busvoltage dcvoltage loadvoltage totalvoltage spannung
                batteriespannung akkuspannung voltagedc"""
            ),
            _BATTERY_NAMES,
        ),
        _Meaning(
            "current",
            {"A": 0, "mA": -3, "uA": -6},
            _names(
                """current currentdraw amp amps ampere amperes i a ibat ibatt ibus batterycurrent
                battcurrent batcurrent packcurrent buscurrent dccurrent loadcurrent totalcurrent
                strom stromstärke batteriestrom akkustrom currentdc"""
            ),
            _BATTERY_NAMES,
        ),
        _Meaning(
            "power",
            {"W": 0, "mW": -3, "kW": 3},
            _names(
                """power wattage watt watts p w batterypower battpower packpower buspower dcpower
                loadpower totalpower activepower leistung batterieleistung"""
            ),
            _BATTERY_NAMES,
        ),
        _Meaning(
            "charge_pct",
            {"%": 0, "fraction": 2},
            _names(
                """charge soc stateofcharge battery batt level batterylevel batterycharge
                batterysoc battsoc packsoc chargelevel ladezustand ladestand akkustand
                akku"""
            ),
        ),
    )
}
_MEASURES = ("voltage", "current", "power", "charge_pct")
# Meanings of which a log has one or the other.
_RIVALS = {
    "current": ("power",),
    "power": ("current",),
    "timestamp": ("date", "time"),
    "date": ("timestamp",),
    "time": ("timestamp",),
}
# What `import` does not read: energy is computed from volts and amperes.
_ENERGY_WORDS = _names("energy energie wh kwh mwh gwh ah mah j kj vah kvah varh kvarh")
# Columns that say whose a row is: a log with several of these in one is not one meter's.
_METER_NAMES = _names(
    """meter meterid metername device deviceid devicename sensor sensorid sensorname channel
    channelid entity entityid serial serialno serialnumber address node nodeid"""
)
_NAME_WITH_BRACKETS = re.compile(r"(?P<base>.*?)\s*[\[(](?P<unit>[^\[\]()]*)[\])]")


def _meaning_of(name: str) -> tuple[str, str] | None:
    """What a column's name means, and the unit in it or ""; None for an unknown name.

    >>> _meaning_of("Battery current [mA]"), _meaning_of("U_bat"), _meaning_of("remark")
    (('current', 'mA'), ('voltage', ''), None)
    """
    words, bracketed = _split_name(name)
    squeezed = "".join(words)
    for meaning in _MEANINGS.values():
        if bracketed is not None:
            unit = meaning.unit_of(bracketed)
            if unit is None and meaning.units is _TIME_UNITS:
                unit = ""  # the form of a time, such as "(HH:MM:SS)"
            if unit is not None and squeezed in meaning.aliases | meaning.with_unit:
                return meaning.name, unit
        elif squeezed in meaning.aliases:
            return meaning.name, ""
        elif words:
            unit = meaning.unit_of(words[-1])
            stem = "".join(words[:-1])
            if unit is not None and stem in meaning.aliases | meaning.with_unit:
                return meaning.name, unit
    return None


def _split_name(name: str) -> tuple[list[str], str | None]:
    """The words of a column's name in lower case, and the text in brackets at its end."""
    import unicodedata

    text = unicodedata.normalize("NFKC", name).casefold().replace("μ", "u").strip()
    bracketed = _NAME_WITH_BRACKETS.fullmatch(text)
    words = re.findall(r"[^\W_]+|%", bracketed["base"] if bracketed else text)
    if words[:1] == ["sensor"]:  # as Home Assistant begins its names
        del words[0]
    return words, bracketed["unit"].strip() if bracketed else None


def _other_quantity(meaning: str, name: str) -> str:
    """What in a column's name says that its values are of another quantity than this, or "".

    >>> _other_quantity("current", "Import kWh"), _other_quantity("current", "Load (W)")
    ('kwh', 'w')
    """
    words, bracketed = _split_name(name)
    unit = bracketed if bracketed is not None else "".join(words[-1:])
    if _MEANINGS[meaning].unit_of(unit):
        return ""
    for word in (unit, *words):
        if word in _ENERGY_WORDS:
            return word
    # One letter after a name may count channels; in brackets it is a unit.
    is_unit = bracketed is not None or (len(words) > 1 and (len(unit) > 1 or unit == "%"))
    is_known = any(_MEANINGS[other].unit_of(unit) for other in _MEASURES)
    return unit if is_unit and is_known else ""


@dataclass(frozen=True)
class _LogColumn:
    """A column that is used: what it means, its name, its place in a row, its unit."""

    meaning: str
    name: str
    index: int
    unit: str = ""  # as given; "": the first of its meaning
    is_turned: bool = False  # its sign

    @property
    def exponent(self) -> int:
        """The power of ten that makes its unit the first one of its meaning."""
        return _MEANINGS[self.meaning].units.get(self.unit, 0)

    @property
    def shown_unit(self) -> str:
        """The unit that the values are taken to have; "" of a time."""
        units = _MEANINGS[self.meaning].units
        return "" if units is _TIME_UNITS else self.unit or next(iter(units))

    def describe(self) -> str:
        """The column in a line for a person."""
        unit = f" in {self.shown_unit}" if self.shown_unit else ""
        turned = ", its sign turned" if self.is_turned else ""
        return f"  {self.meaning}: {printable(self.name)}{unit}{turned}"


@dataclass(frozen=True)
class _ColumnChoice:
    """An option --column: which column has a meaning."""

    meaning: str
    text: str  # [-]COLUMN[:UNIT]


def _parse_column(text: str) -> _ColumnChoice:
    """The value of --column, for argparse."""
    meaning, sign, column = text.partition("=")
    if not sign or not column.strip():
        expected = "expected NAME=COLUMN[:UNIT], such as current=I:mA"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
    if meaning not in _MEANINGS:
        known = ", ".join(_MEANINGS)
        hint = nearest(meaning, _MEANINGS) or f": expected one of {known}"
        raise argparse.ArgumentTypeError(f"unknown name {meaning!r}{hint}")
    return _ColumnChoice(meaning, column)


def _parse_only(text: str) -> tuple[str, str]:
    """The value of --only, for argparse."""
    name, sign, wanted = text.partition("=")
    if not sign or not name.strip() or not wanted.strip():
        expected = "expected COLUMN=TEXT, such as meter=Pack"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
    return name.strip(), wanted.strip()


class _Columns:
    """Finds the columns of a log by their names, and by what --column says."""

    def __init__(
        self, names: Sequence[str], choices: Sequence[_ColumnChoice], has_head: bool
    ) -> None:
        self._names = [name.strip() for name in names]
        self._has_head = has_head
        self._chosen: dict[str, _LogColumn] = {}
        for choice in choices:
            self._add_choice(choice)
        self._candidates: dict[str, list[_LogColumn]] = {}
        chosen_indexes = {column.index for column in self._chosen.values()}
        for index, name in enumerate(self._names):
            known = _meaning_of(name) if has_head and index not in chosen_indexes else None
            if known is not None:
                meaning, unit = known
                column = _LogColumn(meaning, name, index, unit)
                self._candidates.setdefault(meaning, []).append(column)

    def _add_choice(self, choice: _ColumnChoice) -> None:
        """Take what an option --column says. Raises InvalidValue if it is at odds with another."""
        column = self._chosen_column(choice)
        rivals = {choice.meaning, *_RIVALS.get(choice.meaning, ())}
        for other in self._chosen.values():
            if other.meaning in rivals or other.index == column.index:
                raise InvalidValue(
                    f"--column {other.meaning}={other.name} and --column {choice.meaning}="
                    f"{choice.text} contradict each other: leave one out"
                )
        self._chosen[choice.meaning] = column

    def known_count(self) -> int:
        """How many meanings have a column."""
        return len({*self._chosen, *self._candidates})

    def choose(self) -> dict[str, _LogColumn]:
        """The columns that are used, by meaning. Raises InvalidValue."""
        chosen: dict[str, _LogColumn | None] = self._time_columns()
        chosen["voltage"] = self._one("voltage")
        chosen["current"] = None if "power" in self._chosen else self._one("current")
        if chosen["current"] is None:
            chosen["power"] = self._one("power")
        chosen["charge_pct"] = self._one("charge_pct")
        used = {meaning: column for meaning, column in chosen.items() if column is not None}
        missing = [meaning for meaning in ("timestamp", "voltage") if meaning not in used]
        if "timestamp" in missing and "date" in used:
            missing.remove("timestamp")
        if "current" not in used and "power" not in used:
            missing.append("current")
        if missing:
            self._refuse(missing, {column.index for column in used.values()})
        return used

    def _time_columns(self) -> dict[str, _LogColumn | None]:
        """A timestamp; or a date and a time apart; or one of the two, which is a timestamp."""
        apart = ("date", "time")
        timestamp = None
        if not self._chosen.keys() & set(apart):
            timestamp = self._one("timestamp")
        if timestamp is not None:
            return {"timestamp": timestamp}
        columns = {meaning: self._one(meaning) for meaning in apart}
        found = [column for column in columns.values() if column is not None]
        if len(found) == 1:
            return {"timestamp": dataclasses.replace(found[0], meaning="timestamp")}
        return columns

    def _one(self, meaning: str) -> _LogColumn | None:
        """The column of a meaning. Raises InvalidValue where several could be it."""
        if meaning in self._chosen:
            return self._chosen[meaning]
        found = self._candidates.get(meaning, [])
        own = [column for column in found if column.name in _OWN_COLUMNS]
        if len(own) == 1:
            return own[0]
        if len({column.name for column in found}) < len(found):
            raise InvalidValue(
                f"two columns have the name {found[-1].name!r}: rename those that are not meant"
            )
        if len(found) > 1:
            names = " or ".join(repr(column.name) for column in found)
            raise InvalidValue(
                f"{meaning}: {names}? Name the right one: "
                f"--column {_quoted(f'{meaning}={found[0].name}')}"
            )
        return found[0] if found else None

    def _chosen_column(self, choice: _ColumnChoice) -> _LogColumn:
        """The column that an option names. Raises InvalidValue."""
        meaning = _MEANINGS[choice.meaning]
        index = self._index_of(choice.text)
        if index is not None:
            return self._made(choice.meaning, index, "", False)
        text = choice.text.strip()
        is_turned = text.startswith("-")
        name, colon, unit_text = text.removeprefix("-").rpartition(":")
        unit = meaning.unit_of(unit_text.strip().casefold().replace("µ", "u").replace("μ", "u"))
        if not colon or (unit is None and self._index_of(text.removeprefix("-")) is not None):
            name = text.removeprefix("-")
            unit = ""
        index = self.place(f"--column {choice.meaning}={choice.text}", name)
        if unit is None:
            raise InvalidValue(
                f"--column {choice.meaning}={choice.text}: no unit {unit_text!r}: "
                f"expected one of {', '.join(meaning.units)}"
            )
        if is_turned and choice.meaning not in ("current", "power"):
            raise InvalidValue(
                f"--column {choice.meaning}={choice.text}: only current and power have a sign "
                "to turn"
            )
        return self._made(choice.meaning, index, unit, is_turned)

    def _made(self, meaning: str, index: int, unit: str, is_turned: bool) -> _LogColumn:
        """The column that an option names; without a unit there, a unit in its name counts."""
        name = self._names[index]
        other = _other_quantity(meaning, name) if meaning in _MEASURES and not unit else ""
        if other:
            units = _MEANINGS[meaning].units
            example = _quoted(f"{meaning}={name}:{next(iter(units))}")
            raise InvalidValue(
                f"--column {meaning}={name}: {other} is not of {meaning}, which is in "
                f"{' or '.join(units)}; if the values are, say so: --column {example}"
            )
        if not unit:
            words, bracketed = _split_name(name)
            last = words[-1] if bracketed is None and len(words) > 1 else bracketed
            unit = _MEANINGS[meaning].unit_of(last or "") or ""
        return _LogColumn(meaning, name, index, unit, is_turned)

    def _index_of(self, name: str) -> int | None:
        """Where a column is: by its name, in any case, or without a head by its number."""
        name = name.strip()
        if not self._has_head:
            is_there = name.isdecimal() and 1 <= int(name) <= len(self._names)
            return int(name) - 1 if is_there else None
        for key in (str, str.casefold):
            found = [i for i, other in enumerate(self._names) if key(other) == key(name)]
            if len(found) > 1:
                raise InvalidValue(
                    f"two columns have the name {name!r}: rename those that are not meant"
                )
            if found:
                return found[0]
        return None

    def place(self, option: str, name: str) -> int:
        """Where the column is that an option names. Raises InvalidValue."""
        index = self._index_of(name)
        if index is None:
            raise InvalidValue(f"{option}: no column {name!r}; {self._listed()}")
        return index

    def _listed(self) -> str:
        shown = ", ".join(printable(name) for name in self._names if name)
        return f"the columns are {shown}" if shown else "there are no columns"

    def _refuse(self, missing: Sequence[str], used: set[int]) -> None:
        first, *_ = missing
        names = [name for i, name in enumerate(self._names) if i not in used and name]
        free = [name for name in names if not _other_quantity(first, name)]
        example = f"{first}={free[0] if free else 'NAME'}"
        what = " and ".join(missing).replace("current", "current (or power)")
        advice = f"name one: --column {_quoted(example)}"
        if names and not free:
            advice = f"none of them is of {first}"
        raise InvalidValue(
            "expected NDJSON, or CSV whose first line names the columns; "
            f"no column for {what}: {self._listed()}; {advice}"
        )


# --- Times of a log


class _Unclear(InvalidValue):
    """A value that has no one meaning until an option gives it one."""


_TIME_TEXT = re.compile(
    r"""(?:(?P<year>\d{4})(?P<sign>[-/])(?P<month>\d{1,2})(?P=sign)(?P<day>\d{1,2})
        |(?P<day_first>\d{1,2})\.(?P<its_month>\d{1,2})\.(?P<its_year>\d{4}))
        (?:\s*[T,]\s*|\s+)
        (?P<hour>\d{1,2}):(?P<minute>\d\d)""",
    re.VERBOSE | re.ASCII,
)
_TIME_END = re.compile(
    r"""(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?
        \s*(?P<zone>[Zz]|UTC|GMT|(?P<offset>[+-]\d\d)(?::?(?P<offset_minutes>\d\d))?)?""",
    re.VERBOSE | re.ASCII,
)
_TIME_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d*)?", re.ASCII)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # of local times, which have no offset


class _TimeMemory:
    """Remembers the parts of times: most times of a log share their minute, and how they end.

    2026-11-28T10:20:30.25Z is the hour, the minute, and an end of second, fraction and zone.
    """

    def __init__(self) -> None:
        self._hours: dict[str, int] = {}
        self._ends: dict[str, int] = {}  # without the digits of the fraction
        self._start = ""  # of the last time, up to the minute
        self._start_us = 0
        self._fraction_end = _FRACTION_START  # as in the last time that had one
        self._fraction_scale = 1

    def recall(self, text: str) -> int | None:
        """Microseconds since 1970 of a time of known parts; None for another one."""
        start = text[:_MINUTE_END]
        if start != self._start and not self._take_start(start):
            return None
        end = text[_MINUTE_END:]
        fraction_us = 0
        digits = end[_FRACTION_START : self._fraction_end]
        if digits.isdecimal() and len(digits) == self._fraction_end - _FRACTION_START:
            fraction_us = int(digits[:6]) * self._fraction_scale
            end = end[:_FRACTION_START] + end[self._fraction_end :]
        end_us = self._ends.get(end)
        return None if end_us is None else self._start_us + end_us + fraction_us

    def _take_start(self, start: str) -> bool:
        hour_us = self._hours.get(start[:_MINUTE_START])
        minute_us = _MINUTES_US.get(start[_MINUTE_START:])
        if hour_us is None or minute_us is None:
            return False
        self._start = start
        self._start_us = hour_us + minute_us
        return True

    def learn(self, text: str, hour_us: int, end: re.Match[str], second_us: int) -> None:
        """Keep the parts of a time: when its hour begins, and from its minute to its fraction."""
        if len(self._hours) + len(self._ends) > _REMEMBERED_TIMES:
            self._hours.clear()
            self._ends.clear()
        self._hours[text[:_MINUTE_START]] = hour_us
        key = end[0]
        if end["fraction"]:
            self._fraction_end = end.end("fraction") - end.start()
            self._fraction_scale = 10 ** max(6 - len(end["fraction"]), 0)
            key = key[:_FRACTION_START] + key[self._fraction_end :]
        self._ends[key] = second_us


_MINUTE_START = 14  # in 2026-11-28T10:20:30.25Z, and in 28.11.2026 10:20:30
_MINUTE_END = 16
_FRACTION_START = 4  # after the minute
_MINUTES_US = {f"{minute:02}": minute * _MINUTE_US for minute in range(60)}


class _LogTimes:
    """Reads the times of a log, whatever form they have.

    A local time that exists twice is taken as the first of the two until the times step back.
    `time_format`: "", "epoch", "epoch-ms", "excel", or one of strptime().
    """

    def __init__(self, zone: tzinfo | None, has_zone: bool, time_format: str = "") -> None:
        self._zone = zone
        self._has_zone = has_zone
        self._format = time_format
        self._told = _TimeMemory()  # of times that tell their zone
        self._local = _TimeMemory()
        self._memory = self._told  # of the last time
        self._offsets: dict[int, int | None] = {}  # of the zone, by hour; None where it changes
        self._previous_us: int | None = None
        self.repeated_count = 0  # of times that exist twice
        # The last of those, what it would be in the first pass, and how the times have gone on.
        self._repeated_us: int | None = None
        self._repeated_first_us = 0
        self._step_us = 0
        self._is_second = False
        self._is_descending = False

    def read(self, value: Any) -> int:
        """Microseconds since 1970. Raises InvalidValue."""
        us = None
        if type(value) is str and not self._format:
            us = self._memory.recall(value)
        if us is None:
            us = self._read_anew(value)
        if not 0 <= us < _END_OF_TIME_US:
            raise _invalid("timestamp", "a time from 1970 to 2200", value)
        self._previous_us = us
        return us

    def _read_anew(self, value: Any) -> int:
        text = value.strip() if isinstance(value, str) else value
        if isinstance(text, bool) or not isinstance(text, (str, int, float)) or text == "":
            raise _invalid("timestamp", "a time", value)
        if self._format == "excel":
            return self._excel_us(text)
        if self._format in ("epoch", "epoch-ms"):
            return self._epoch_us(text)
        if self._format:
            return self._formatted_us(str(text))
        if not isinstance(text, str) or _TIME_NUMBER.fullmatch(text):
            return _sized_epoch_us(text)
        found = _TIME_TEXT.match(text)
        end = _TIME_END.fullmatch(text, found.end()) if found else None
        if found is None or end is None:
            raise _unreadable_time(text)
        return self._text_us(text, found, end)

    def _text_us(self, text: str, found: re.Match[str], end: re.Match[str]) -> int:
        year, month, day = (int(found[one] or found[other]) for one, other in _DATE_GROUPS)
        minute = int(found["minute"])
        try:
            local = datetime(year, month, day, int(found["hour"]), minute)  # noqa: DTZ001
            second_us = _second_us(end)
        except ValueError:
            raise _unreadable_time(text) from None
        minute_us = (local - _NAIVE_EPOCH) // _ONE_MICROSECOND
        fraction_us = int(f"{end['fraction'] or '':0<6}"[:6])
        self._memory = self._told
        if end["zone"] is None:
            offset_us = self._offset_of_hour(minute_us // HOUR_US, text)
            if offset_us is None:
                return self._local_us(minute_us + second_us + fraction_us, text)
            minute_us -= offset_us
            self._memory = self._local
        if found.start("minute") == _MINUTE_START:
            self._memory.learn(text, minute_us - minute * _MINUTE_US, end, second_us)
        return minute_us + second_us + fraction_us

    def _offset_of_hour(self, hour: int, text: str) -> int | None:
        """The zone's offset in a local hour, if it is one and the same in all of it."""
        if not self._has_zone:
            raise _Unclear(
                f"timestamp: {text!r} has no zone: say which with --time-zone Europe/Berlin, "
                "local or UTC"
            )
        if hour not in self._offsets:
            if len(self._offsets) > _REMEMBERED_TIMES:
                self._offsets.clear()
            offsets = set()
            for local_us in (hour * HOUR_US, (hour + 1) * HOUR_US - 1):
                for us in self._instants(local_us):
                    offsets.add(None if us is None else local_us - us)
            self._offsets[hour] = offsets.pop() if len(offsets) == 1 else None
        return self._offsets[hour]

    def _instants(self, local_us: int) -> tuple[int | None, int | None]:
        """When a local time is, in the first and in the second pass; None where it never is."""
        local = _NAIVE_EPOCH + local_us * _ONE_MICROSECOND
        return self._instant(local), self._instant(local.replace(fold=1))

    def _instant(self, local: datetime) -> int | None:
        try:
            moment = local.astimezone() if self._zone is None else local.replace(tzinfo=self._zone)
            utc = moment.astimezone(timezone.utc)
            back = utc.astimezone(self._zone)
        except (ValueError, OverflowError, OSError):  # at the ends of the calendar
            return None
        if back.replace(tzinfo=None, fold=0) != local.replace(fold=0):
            return None
        return (utc - _EPOCH) // _ONE_MICROSECOND

    def _local_us(self, local_us: int, text: object) -> int:
        """A local time of an hour in which the zone's offset may change."""
        first_us, second_us = self._instants(local_us)
        if first_us is None or second_us is None:
            raise InvalidValue(
                f"timestamp: {text!r} does not exist in the zone {self._zone or 'local'}: "
                "the clocks are put forward over it"
            )
        if first_us == second_us:
            return first_us
        self.repeated_count += 1
        self._find_pass(first_us, second_us)
        self._repeated_us = second_us if self._is_second else first_us
        self._repeated_first_us = first_us
        return self._repeated_us

    def _find_pass(self, first_us: int, second_us: int) -> None:
        """Whether a time that exists twice is of the second pass, by those before it."""
        previous_us = self._previous_us
        if previous_us is None or previous_us != self._repeated_us:
            # The first row of the log in these times. A log may have its newest row first.
            self._is_descending = previous_us is not None and previous_us > second_us
            self._is_second = self._is_descending
            self._step_us = 0 if previous_us is None else first_us - previous_us
            return
        step_us = first_us - self._repeated_first_us
        # With a row an hour the second pass has the same time as the first.
        is_same = not step_us and abs(self._step_us) >= second_us - first_us
        if self._is_descending:
            self._is_second = self._is_second and step_us <= 0 and not is_same
        else:
            self._is_second = self._is_second or step_us < 0 or is_same
        if step_us:
            self._step_us = step_us

    def _formatted_us(self, text: str) -> int:
        try:
            moment = datetime.strptime(text, self._format)  # noqa: DTZ007  # it may have one
        except ValueError:
            raise _invalid("timestamp", f"a time of the form {self._format}", text) from None
        if moment.tzinfo is not None:
            return (moment - _EPOCH) // _ONE_MICROSECOND
        return self._zoned_us((moment - _NAIVE_EPOCH) // _ONE_MICROSECOND, text)

    def _zoned_us(self, local_us: int, text: object) -> int:
        """A local time, in the zone."""
        offset_us = self._offset_of_hour(local_us // HOUR_US, str(text))
        return self._local_us(local_us, text) if offset_us is None else local_us - offset_us

    def _excel_us(self, value: str | float) -> int:
        """Days since 1899-12-30, whose digits end at about a millisecond."""
        days = _time_number(value) - 25_569  # from 1970 on
        return self._zoned_us(round(days * 86_400_000) * 1000, value)

    def _epoch_us(self, value: str | float) -> int:
        scale = SECOND_US if self._format == "epoch" else 1000
        return round(_time_number(value) * scale)


_DATE_GROUPS = (("year", "its_year"), ("month", "its_month"), ("day", "day_first"))


def _second_us(end: re.Match[str]) -> int:
    """Microseconds from the minute to the second, less the offset. Raises ValueError."""
    second = int(end["second"] or 0)
    offset_minutes = int(end["offset_minutes"] or 0)
    if second > 59 or offset_minutes > 59:
        raise ValueError(end[0])
    if end["offset"] is None:
        return second * SECOND_US
    offset_us = abs(int(end["offset"])) * HOUR_US + offset_minutes * _MINUTE_US
    return second * SECOND_US + (offset_us if end["offset"].startswith("-") else -offset_us)


def _time_number(value: str | float) -> float:
    """A number of days or seconds of a time. Raises InvalidValue."""
    if isinstance(value, str):
        if not _TIME_NUMBER.fullmatch(value):
            raise _invalid("timestamp", "a number", value)
        value = value.replace(",", ".")
    return check_number("timestamp", float(value), -_MAX_FLOAT, _MAX_FLOAT, "s")


def _sized_epoch_us(value: str | float) -> int:
    """Epoch seconds, milliseconds, microseconds or nanoseconds, told apart by their size."""
    number = _time_number(value)
    digits = str(value)
    for form, what in _DATES_IN_DIGITS.items():
        if _is_time_of(digits, form):
            raise _Unclear(
                f"timestamp: {digits} looks like {what} in digits: say --time-format "
                f"{_quoted(form)}"
            )
    for least, scale in ((1e8, 1e6), (1e11, 1e3), (1e14, 1.0), (1e17, 1e-3)):
        if least <= number < least * 1e3:
            return round(number * scale)
    if 25_569 <= number <= 73_050:
        raise _Unclear(f"timestamp: {digits} looks like an Excel date: say --time-format excel")
    if 0 <= number < 1e8:
        raise _Unclear(
            f"timestamp: {digits} looks like seconds since a start, not since 1970: add the time "
            "of the start, or say --time-format epoch"
        )
    raise _invalid("timestamp", "epoch seconds, milliseconds or microseconds", value)


_DATES_IN_DIGITS = {
    "%Y%m%d": "a date",
    "%Y%m%d%H": "a date and an hour",
    "%Y%m%d%H%M": "a date and a time",
    "%Y%m%d%H%M%S": "a date and a time",
    "%y%m%d%H%M": "a date and a time",
    "%y%m%d%H%M%S": "a date and a time",
}
_DIGITS_OF_FORMS = {
    "%Y%m%d": 8,
    "%Y%m%d%H": 10,
    "%Y%m%d%H%M": 12,
    "%Y%m%d%H%M%S": 14,
    "%y%m%d%H%M": 10,
    "%y%m%d%H%M%S": 12,
}


def _is_time_of(digits: str, form: str) -> bool:
    """Whether digits are a time of that form from 1970 to 2199, and hardly one since 1970.

    Of ten digits, those that begin with a 1 are epoch seconds of 2001 to 2033; twelve would be
    milliseconds of 1973 to 2001.
    """
    if len(digits) != _DIGITS_OF_FORMS[form] or (len(digits) == 10 and digits < "2"):
        return False
    if form.startswith("%Y") and not "1970" <= digits[:4] < "2200":
        return False
    try:
        datetime.strptime(digits, form)  # noqa: DTZ007  # only to see whether it can be read
    except ValueError:
        return False
    return True


_OTHER_DATES = r"\d{1,2}\.\d{1,2}\.\d\d\b|\d{1,2}-\d{1,2}-\d{2,4}\b"


def _unreadable_time(text: str) -> InvalidValue:
    """Why a text is no time, and what would make it one."""
    shown = repr(text if len(text) <= 60 else text[:57] + "...")
    if re.match(r"\d{1,2}/\d{1,2}/\d{2,4}\b", text):
        return _Unclear(
            f"timestamp: {shown}: is the day or the month first? Say --time-format "
            "'%d/%m/%Y %H:%M' or '%m/%d/%Y %H:%M', with what else it has"
        )
    if re.match(_OTHER_DATES, text) or re.search(r"(?i)\d\s*[ap]\.?m\b", text):
        return _Unclear(
            f"timestamp: {shown}: say its form, such as --time-format '%d.%m.%y %H:%M:%S'"
        )
    if re.fullmatch(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}\.\d{1,2}\.\d{4}", text):
        return _Unclear(f"timestamp: {shown} is a date without a time of day")
    if re.fullmatch(r"\d{1,2}:\d\d(:\d\d([.,]\d+)?)?", text):
        return _Unclear(f"timestamp: {shown} is a time of day without a date")
    return InvalidValue(
        "timestamp: expected ISO 8601 such as 2026-11-28T10:00:00Z, or epoch seconds, from 1970 to "
        f"2200, got {shown}"
    )


def _parse_time_format(text: str) -> str:
    """The value of --time-format, for argparse."""
    import warnings

    if text in ("epoch", "epoch-ms", "excel"):
        return text
    probe = datetime(2026, 11, 28, 21, 35, 47, tzinfo=timezone.utc)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a form without a year, which is refused below
            got = datetime.strptime(probe.strftime(text), text)  # noqa: DTZ007
    except ValueError:
        got = _NAIVE_EPOCH
    if got.date() != probe.date() or got.hour not in (0, probe.hour):
        raise argparse.ArgumentTypeError(
            "expected epoch, epoch-ms, excel, or a form with year, month, day and the hour of 24, "
            f"such as '%d/%m/%Y %H:%M', got {text!r}"
        )
    return text


# --- The text of a log


class _LogSource:
    """The bytes of a log, as pieces of text; "" says that no more came for a while.

    `size`: how many bytes there are; None where that is not known.
    """

    def __init__(self, pieces: Iterator[bytes], size: int | None = None) -> None:
        self._bytes = pieces
        self.size = size
        self.read_count = 0  # bytes
        self.encoding = ""
        self.torn_line: int | None = None  # the last one, if it has no newline

    def pieces(self) -> Iterator[str]:
        """The text, with a newline at the end of each line; what cannot be decoded is U+FFFD."""
        decoder: io.IncrementalNewlineDecoder | None = None
        start = b""
        for piece in chain(self._bytes, [None]):
            is_end = piece is None
            self.read_count += len(piece or b"")
            if decoder is None:
                start += piece or b""
                if len(start) < 4 and not is_end:
                    continue
                self.encoding = _encoding_of(start)
                one = codecs.getincrementaldecoder(self.encoding)("replace")
                decoder = io.IncrementalNewlineDecoder(one, translate=True)
                piece = start
            text = decoder.decode(piece or b"", final=is_end)
            if text or piece == b"":
                yield text

    def line_blocks(self, pieces: Iterator[str]) -> Iterator[list[str]]:
        """Whole lines, several at once; an empty list where no more came for a while."""
        rest = ""
        count = 0
        for piece in pieces:
            lines = (rest + piece).split("\n")
            rest = lines.pop()[: _MAX_LINE + 1]  # a longer one is a bad row anyway
            count += len(lines)
            if lines or not piece:
                yield lines
        if rest:
            self.torn_line = count + 1
            yield [rest]


def _encoding_of(start: bytes) -> str:
    """The encoding of a text by its first four bytes."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    is_zero = [not byte for byte in start[:4]]
    if is_zero == [False, True, False, True]:
        return "utf-16-le"
    if is_zero == [True, False, True, False]:
        return "utf-16-be"
    return "utf-8-sig"


def _stored_pieces(stream: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file."""
    while piece := stream.read(_PIECE_BYTES):
        yield piece


def _piped_pieces(stream: BinaryIO) -> Generator[bytes, None, None]:
    """The bytes of a pipe as they come; b"" where none came for a while after the last ones.

    A thread reads them, since waiting with a limit of time works on no system for all that
    standard input can be.
    """
    import queue

    pieces: queue.Queue[bytes | Exception] = queue.Queue(_WAITING_PIECES)
    is_over = threading.Event()

    def read() -> None:
        try:
            while not is_over.is_set():
                piece = stream.read(_PIECE_BYTES)
                pieces.put(piece)
                if not piece:
                    break
        except (OSError, ValueError) as error:
            pieces.put(error)

    threading.Thread(target=read, daemon=True).start()
    limit_s: float | None = None
    try:
        while True:
            try:
                piece = pieces.get(timeout=limit_s)
            except queue.Empty:
                limit_s = None
                yield b""
                continue
            if isinstance(piece, Exception):
                raise piece
            if not piece:
                return
            limit_s = _QUIET_S
            yield piece
    finally:
        is_over.set()
        with contextlib.suppress(queue.Empty):  # the thread may be waiting for a free place
            while True:
                pieces.get_nowait()


def _standard_input() -> BinaryIO:
    """The bytes of standard input, without a buffer that would wait to be full."""
    if sys.stdin is None:
        raise InvalidValue("standard input is closed: there is nothing to import")
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:  # a stand-in of text alone
        return io.BytesIO(sys.stdin.read().encode("utf-8", "surrogatepass"))
    return cast(BinaryIO, getattr(buffer, "raw", buffer))


@contextlib.contextmanager
def _open_log(name: str, in_batches: bool) -> Iterator[_LogSource]:
    """The log of that name, "-" for standard input.

    What is stored in one transaction is copied from a pipe first, so that the transaction does
    not wait for the program that writes to the pipe.
    """
    import shutil
    import tempfile

    with contextlib.ExitStack() as stack:
        stream: BinaryIO
        if name == "-":
            stream = _standard_input()
            is_stored = False
        else:
            stream = stack.enter_context(open(name, "rb", buffering=0))
            is_stored = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
        if in_batches and not is_stored:
            pieces = stack.enter_context(contextlib.closing(_piped_pieces(stream)))
            yield _LogSource(pieces)
            return
        if not is_stored:
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, copy)
            copy.seek(0)
            stream = copy
        yield _LogSource(_stored_pieces(stream), os.fstat(stream.fileno()).st_size)


# --- Rows of a log

# The number of a row's line, and that line, or the element of a JSON array that begins there.
# None in a row's place: no more came for a while.
_LogRow = tuple[int, Any]


def _numbered_lines(blocks: Iterable[list[str]]) -> Iterator[tuple[int, str] | None]:
    """The lines that are not blank, each with its number."""
    number = 0
    for lines in blocks:
        if not lines:
            yield None
        for line in lines:
            number += 1
            if line and not line.isspace():
                yield number, line


def _check_length(line: str) -> None:
    if len(line) > _MAX_LINE:
        raise InvalidValue(f"a line of more than {_MAX_LINE} characters is no reading")


def _split_line(line: str, delimiter: str) -> list[str]:
    """The fields of one line of delimited text. Raises InvalidValue."""
    if '"' not in line:
        return line.split(delimiter)
    import csv

    try:
        (fields,) = csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True)
    except csv.Error as error:
        if str(error) == "unexpected end of data":
            raise InvalidValue(f"a quote is never closed: {_shown_line(line)}") from None
        raise InvalidValue(f"expected CSV: {error}: {_shown_line(line)}") from None
    return fields


def _shown_line(line: str) -> str:
    return printable(line if len(line) <= 60 else line[:57] + "...")


class _NameTwice(NamedTuple):
    """Stands for a JSON object in which a name stands twice: nobody can tell which one is meant."""

    name: str


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _NameTwice:
    """A JSON object, for a decoder."""
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    names = [name for name, _ in pairs]
    return _NameTwice(next(name for name in names if names.count(name) > 1))


_JSON_DECODER = json.JSONDecoder(object_pairs_hook=_object_of)


def _json_object(row: Any) -> dict[str, Any]:
    """The JSON object that a line, or an element of an array, is. Raises InvalidValue."""
    value = row
    if isinstance(row, str):
        _check_length(row)
        try:
            value = _JSON_DECODER.decode(row)
        except (ValueError, RecursionError) as error:
            raise InvalidValue(f"expected a JSON object: {error}") from None
    if isinstance(value, _NameTwice):
        raise InvalidValue(f"{printable(value.name)}: the object has this name twice")
    if not isinstance(value, dict):
        raise _invalid("row", "a JSON object", value)
    return value


class _ArrayRows:
    """Reads the objects of one JSON array, one after the other."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._place = 0  # in the text, up to which it has been read
        self._line = 1  # of that place
        self._is_complete = False  # the text has all that there is

    def __iter__(self) -> Iterator[_LogRow | None]:
        yield from self._skip_blanks()
        self._move(self._place + 1)  # after the [ by which the form was found
        yield from self._skip_blanks()
        while self._next_character() != "]":
            row = self._decoded()
            while row is None:
                yield from self._more()
                row = self._decoded()
            yield row
            if self._next_character() == ",":
                self._move(self._place + 1)
                yield from self._skip_blanks()
                if self._next_character() != "]":
                    continue
            if self._next_character() != "]":
                raise self._broken("expected a comma, or ] at the end of the array")
        self._move(self._place + 1)
        yield from self._skip_blanks()
        if self._next_character():
            raise self._broken("expected nothing after the end of the array")

    def _next_character(self) -> str:
        return self._text[self._place : self._place + 1]

    def _move(self, place: int) -> None:
        self._line += self._text.count("\n", self._place, place)
        self._place = place

    def _more(self) -> Iterator[None]:
        """Read on; None where no more comes for a while."""
        for piece in self._pieces:
            if piece:
                self._text = self._text[self._place :] + piece
                self._place = 0
                return
            yield None
        self._is_complete = True

    def _skip_blanks(self) -> Iterator[None]:
        while True:
            found = _JSON_BLANKS.match(self._text, self._place)
            self._move(found.end() if found else self._place)
            if self._next_character() or self._is_complete:
                return
            yield from self._more()

    def _decoded(self) -> _LogRow | None:
        """The next element, which is then read; None if the text does not have all of it yet."""
        number = self._line
        try:
            value, end = _JSON_DECODER.raw_decode(self._text, self._place)
        except (ValueError, RecursionError) as error:
            kept = len(self._text) - self._place
            if self._is_complete or kept > _MAX_LINE or isinstance(error, RecursionError):
                raise self._broken(f"expected a JSON object: {error}") from None
            return None
        found = _JSON_BLANKS.match(self._text, end)
        end = found.end() if found else end
        if end == len(self._text) and not self._is_complete:
            return None  # a number may go on, and what follows is not known
        self._move(end)
        return number, [value] if isinstance(value, str) else value  # text would be a line

    def _broken(self, reason: str) -> InvalidValue:
        return InvalidValue(f"line {self._line}: {reason}: nothing after it can be read")


_JSON_BLANKS = re.compile(r"[ \t\n\r]*")


# --- What is understood of a log


@dataclass(frozen=True)
class _LogOptions:
    """How a log is to be read, as far as that is given."""

    choices: Sequence[_ColumnChoice] = ()
    has_head: bool = True
    delimiter: str = ""  # "": to be found
    decimal: str = ""  # "": to be found
    zone: tzinfo | None = None
    has_zone: bool = False
    time_format: str = ""
    keeps_unknown_charge: bool = False  # an empty one does not take that of the reading before
    only: tuple[str, str] | None = None  # a column, and the text that the rows to read have there


@dataclass
class _Layout:
    """What is understood of a log before its first row is stored."""

    form: str  # "delimited text", "NDJSON", "JSON array"
    encoding: str
    names: list[str]  # of its columns, in the order of a row's fields
    columns: Mapping[str, _LogColumn]  # that are used, by meaning
    delimiter: str = ""
    decimal: str = "."
    zone: str = ""  # of its times; "": they say it themselves
    only: tuple[str, str] | None = None  # the column, and the text in it, of the rows that are read
    comment_count: int = 0  # of lines above the head that were skipped

    def unused_names(self) -> list[str]:
        """The columns that are not used."""
        used = {column.index for column in self.columns.values()}
        return [
            name
            for i, name in enumerate(self.names)
            if i not in used and name.strip() and (self.only is None or name != self.only[0])
        ]

    def meter_indexes(self) -> list[int]:
        """The places of the columns that are not used and may say whose a row is."""
        unused = self.unused_names()
        return [
            i
            for i, name in enumerate(self.names)
            if name in unused and re.sub(r"[\W_]+", "", name.casefold()) in _METER_NAMES
        ]

    def describe(self) -> str:
        """The layout for a person: a line, and one for each column."""
        parts = [f"{self.form} in {self.encoding}"]
        if self.delimiter:
            parts.append(f"delimiter {_DELIMITER_NAMES.get(self.delimiter, self.delimiter)}")
        parts.append(f"decimal {'comma' if self.decimal == ',' else 'point'}")
        parts.append(f"times in {self.zone}" if self.zone else "times with their zone")
        lines = [", ".join(parts), *(column.describe() for column in self.columns.values())]
        if self.only is not None:
            column, text = self.only
            lines.append(f"  only rows with {printable(column)}: {printable(text)}")
        unused = self.unused_names()
        if unused:
            lines.append(f"  not used: {', '.join(printable(name.strip()) for name in unused)}")
        if self.comment_count:
            lines.append(f"  skipped: {_counted(self.comment_count, 'comment line')} at the start")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The layout for programs."""
        columns = [
            {
                "meaning": column.meaning,
                "name": column.name,
                "unit": column.shown_unit or None,
                "sign": "turned" if column.is_turned else "kept",
            }
            for column in self.columns.values()
        ]
        return {
            "form": self.form,
            "encoding": self.encoding,
            "delimiter": self.delimiter or None,
            "decimal": self.decimal,
            "time_zone": self.zone or None,
            "columns": columns,
            "only": None if self.only is None else dict([self.only]),
            "not_used": self.unused_names(),
            "comment_lines": self.comment_count,
        }


_DELIMITERS = (",", ";", "\t", "|")
_DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_ENCODING_NAMES = {"utf-8-sig": "UTF-8", "utf-16": "UTF-16"}
_VALUE_TEXT = re.compile(r"[+-]?\d*[.,]?\d+(?:[eE][+-]?\d+)?|\d{1,4}[-./]\d\d?[-./]\d{1,4}.*")
_GROUPED_NUMBER = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # 1,234: one thousand, or one and a bit
_TO_POINT = str.maketrans(",.", ".?")  # a point is no sign of a number with a decimal comma
_NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d{1,9}))?", re.ASCII)


def _parse_delimiter(text: str) -> str:
    """The value of --delimiter, for argparse."""
    words = {name: sign for sign, name in _DELIMITER_NAMES.items()}
    delimiter = words.get(text.lower(), text.replace("\\t", "\t"))
    if delimiter not in _DELIMITERS:
        expected = f"expected one of , ; | or {', '.join(words)}"
        raise argparse.ArgumentTypeError(f"{expected}, got {text!r}")
    return delimiter


class _LayoutFinder:
    """Finds the layout of a log by its first rows."""

    def __init__(self, options: _LogOptions, encoding: str) -> None:
        self._options = options
        self._encoding = _ENCODING_NAMES.get(encoding, encoding.upper())

    def of_lines(self, lines: Sequence[tuple[int, str]]) -> _Layout:
        """The layout of delimited text. Raises InvalidValue."""
        texts = [line for _, line in lines if len(line) <= _MAX_LINE]
        if not texts or texts[0] is not lines[0][1]:
            raise InvalidValue(
                "expected NDJSON, or CSV whose first line names the columns; got a file with "
                + ("no text" if not lines else f"a first line of more than {_MAX_LINE} characters")
            )
        delimiter = self._options.delimiter or self._found_delimiter(texts)
        try:
            names = _split_line(texts[0], delimiter)
        except InvalidValue as error:
            (number, _), *_ = lines
            raise InvalidValue(f"line {number}: {error}") from None
        while names and not names[-1].strip():
            names.pop()
        if self._options.has_head:
            self._check_head(names, delimiter)
            texts = texts[1:]
        else:
            names = [str(number) for number, _ in enumerate(names, 1)]
        columns = _Columns(names, self._options.choices, self._options.has_head).choose()
        rows = []
        for text in texts:
            with contextlib.suppress(InvalidValue):
                rows.append(_split_line(text, delimiter))
        return self._made("delimited text", names, columns, rows, delimiter)

    def of_objects(self, objects: Sequence[Mapping[str, Any]], form: str) -> _Layout:
        """The layout of JSON objects. Raises InvalidValue."""
        names = list(dict.fromkeys(chain.from_iterable(objects)))
        if not objects:
            raise InvalidValue("expected NDJSON, or CSV; got no JSON object")
        columns = _Columns(names, self._options.choices, True).choose()
        fields = [[value.get(name) for name in names] for value in objects]
        return self._made(form, names, columns, fields, "")

    def _made(
        self,
        form: str,
        names: list[str],
        columns: Mapping[str, _LogColumn],
        rows: Sequence[Sequence[Any]],
        delimiter: str,
    ) -> _Layout:
        options = self._options
        zone = ""
        if options.has_zone:
            zone = "local" if options.zone is None else str(options.zone)
        elif any(column.unit == "UTC" for column in columns.values()):
            zone = "UTC"
        return _Layout(
            form=form,
            encoding=self._encoding,
            names=names,
            columns=columns,
            delimiter=delimiter,
            decimal=options.decimal or _found_decimal(columns, rows, delimiter),
            zone=zone,
        )

    def _found_delimiter(self, texts: Sequence[str]) -> str:
        """The delimiter that finds most known columns in the head, then the most even rows."""

        def merit(delimiter: str) -> tuple[int, int, int]:
            counts = []
            known_count = 0
            for text in texts:
                with contextlib.suppress(InvalidValue):
                    counts.append(len(_split_line(text, delimiter)))
            if self._options.has_head:
                with contextlib.suppress(InvalidValue):
                    names = _split_line(texts[0], delimiter)
                    known_count = _Columns(names, (), True).known_count()
            width = counts[0] if counts else 0
            even_count = counts.count(width) if width > 1 else 0
            # A comma is what values have too: it comes last where all else is equal.
            return known_count, even_count, int(delimiter != ",")

        return max(_DELIMITERS, key=merit)

    def names_columns(self, line: str) -> bool:
        """Whether a line is a head: it has the names of at least two columns that are known."""
        for delimiter in [self._options.delimiter] if self._options.delimiter else _DELIMITERS:
            with contextlib.suppress(InvalidValue):
                if _Columns(_split_line(line, delimiter), (), True).known_count() > 1:
                    return True
        return False

    def _check_head(self, names: Sequence[str], delimiter: str) -> None:
        """Refuse a first line that has values where the names of columns should be."""
        if _Columns(names, (), True).known_count():
            return
        values = [i for i, name in enumerate(names, 1) if _VALUE_TEXT.fullmatch(name.strip())]
        if not values:
            return
        times = [i for i in values if re.search(r"\d[-/.:]\d+[-/.:]\d", names[i - 1])]
        first = times[0] if times else values[0]
        others = [i for i in values if i != first]
        choices = zip(_OWN_COLUMNS, [first, *others])
        example = " ".join(f"--column {meaning}={number}" for meaning, number in choices)
        raise InvalidValue(
            "expected NDJSON, or CSV whose first line names the columns; "
            "the first line has values: "
            f"say which column is what, by number: --no-header {example}"
        )


def _found_decimal(
    columns: Mapping[str, _LogColumn], rows: Iterable[Sequence[Any]], delimiter: str
) -> str:
    """The decimal sign of the numbers of some rows. Raises InvalidValue if it is not clear."""
    with_comma = []
    with_point = 0
    for row in rows:
        for column in columns.values():
            if _MEANINGS[column.meaning].units is _TIME_UNITS or column.index >= len(row):
                continue
            value = row[column.index]
            if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d*[.,]\d+\s*", value):
                if "," in value:
                    with_comma.append(value.strip())
                else:
                    with_point += 1
    if len(with_comma) <= with_point:
        return "."
    # A semicolon stands between fields because the comma is the decimal sign.
    if delimiter != ";" and all(_GROUPED_NUMBER.fullmatch(value) for value in with_comma):
        raise InvalidValue(
            f"is the comma in {with_comma[0]} a decimal sign, or does it separate thousands? "
            "Say --decimal , or --decimal ."
        )
    return ","


# --- Readings of a log


class _OtherMeter(InvalidValue):
    """A row of another meter than the one that --only names."""


_Numbers = tuple["float | None", "float | None", "float | None"]  # V, A, %


class _LogReader:
    """Reads a log as readings: finds its layout, names bad rows, and counts what it leaves out.

    `report` gets the number of each bad row and what is wrong with it.
    """

    def __init__(
        self, source: _LogSource, options: _LogOptions, report: Callable[[int, str], None]
    ) -> None:
        self._source = source
        self._options = options
        self._report = report
        self.good_count = 0
        self.bad_count = 0
        self.left_out_charges = 0  # below 0 or far above 100 %
        self.filled_charges = 0  # readings that take the charge of the one before
        self.unknown_powers = 0  # readings without volts or amperes
        self.other_count = 0  # rows that --only leaves out
        self._mixed = ""  # what is wrong if rows are of more than one meter
        self.torn_line: int | None = None  # a last line without a newline that reads fine
        self._largest_charge = -1.0  # -1: there was none
        self._comment_count = 0
        self._rows = self._start()

    @property
    def repeated_count(self) -> int:
        """How many times existed twice, when clocks were put back."""
        return self._times.repeated_count

    @property
    def share(self) -> float | None:
        """The share of the log that is read; None where its size is not known."""
        size = self._source.size
        return self._source.read_count / size if size else None

    def arrivals(self) -> Iterator[_Arrival | None]:
        """The readings; None where no more came for a while."""
        number = 0
        fields_of = self._fields
        arrival_of = self._arrival
        for row in self._rows:
            if row is None:
                yield None
                continue
            number, value = row
            try:
                arrival = arrival_of(number, fields_of(value))
            except _OtherMeter:
                self.other_count += 1
                continue
            except InvalidValue as error:
                self._count_bad(number, error)
                number = 0
                continue
            self.good_count += 1
            yield arrival
        if number and number == self._source.torn_line and self._layout_is_delimited:
            self.torn_line = number

    def check(self) -> None:
        """Refuse what only many rows show. Raises InvalidValue."""
        if self._mixed:
            raise InvalidValue(self._mixed)
        self._check_charges()

    def _check_charges(self) -> None:
        """Refuse charges if nothing says whether 1 is full, or one per cent."""
        column = self._charge
        if not column.name or column.unit or column.name == "charge_pct":
            return
        if 0.0 <= self._largest_charge <= 1.0:
            choices = (_quoted(f"charge_pct={column.name}:{unit}") for unit in ("fraction", "%"))
            raise InvalidValue(
                f"charge_pct: is {self._largest_charge:g} in the column {column.name!r} a fraction "
                f"of 1, or per cent? Give --column {' or --column '.join(choices)}"
            )

    def _count_bad(self, number: int, error: InvalidValue) -> None:
        self.bad_count += 1
        torn = "; the file ends in this line" if number == self._source.torn_line else ""
        self._report(number, f"{error}{torn}")

    # --- The layout

    def _start(self) -> Iterator[_LogRow | None]:
        """Find the layout; return the rows, from the first one on."""
        first_character, pieces = _peek(self._source.pieces())
        if first_character == "[":
            return self._start_objects(iter(_ArrayRows(pieces)), "JSON array")
        lines = _numbered_lines(self._source.line_blocks(pieces))
        if first_character == "{":
            return self._start_objects(lines, "NDJSON")
        return self._start_lines(lines)

    def _start_lines(self, lines: Iterator[_LogRow | None]) -> Iterator[_LogRow | None]:
        options = self._options
        sample, lines = _sampled(self._without_comments(lines), 2 if options.has_head else 1)
        hint = re.fullmatch(r"sep=([,;\t|])", sample[0][1]) if sample else None
        if hint:  # as spreadsheets write it
            options = dataclasses.replace(options, delimiter=options.delimiter or hint[1])
            del sample[0]
            next(lines)
        layout = _LayoutFinder(options, self._source.encoding).of_lines(sample)
        layout.comment_count = self._comment_count
        self._fields: Callable[[Any], Sequence[Any]] = self._line_fields
        self._take_layout(layout)
        if options.has_head:
            del sample[0]
            next(lines)
        self._check_times(sample)
        return lines

    def _without_comments(self, lines: Iterator[_LogRow | None]) -> Iterator[_LogRow | None]:
        """Skip the lines at the start that begin with "#", but for a head that does.

        Some programs write the names of the columns as the last comment: it is the head if the
        line after it has none.
        """
        finder = _LayoutFinder(self._options, self._source.encoding)
        last_comment: _LogRow | None = None
        for row in lines:
            if row is None:
                yield None
                continue
            _, line = row
            if line.lstrip().startswith("#"):
                last_comment = row
                self._comment_count += 1
                continue
            if last_comment is not None and self._options.has_head:
                _, comment = last_comment
                if finder.names_columns(comment) and not finder.names_columns(line):
                    self._comment_count -= 1
                    yield last_comment
            yield row
            break
        yield from lines

    def _start_objects(self, rows: Iterator[_LogRow | None], form: str) -> Iterator[_LogRow | None]:
        sample, rows = _sampled(rows, 1)
        objects = []
        for _, value in sample:
            with contextlib.suppress(InvalidValue):
                objects.append(_json_object(value))
        layout = _LayoutFinder(self._options, self._source.encoding).of_objects(objects, form)
        self._fields = self._object_fields
        self._known_names = set(layout.names)
        self._take_layout(layout)
        self._check_times(sample)
        return rows

    def _take_layout(self, layout: _Layout) -> None:
        self.layout = layout
        columns = layout.columns
        self._layout_is_delimited = bool(layout.delimiter)
        self._delimiter = layout.delimiter
        self._has_point = layout.decimal == "."
        self._width = len(layout.names)
        self._timestamp = columns.get("timestamp")
        nothing = _LogColumn("charge_pct", "", sys.maxsize)
        self._voltage = columns["voltage"]
        self._current = columns.get("current", nothing)
        self._power = columns.get("power", nothing)
        self._charge = columns.get("charge_pct", nothing)
        used = (self._voltage, self._current, self._charge)
        is_plain = layout.delimiter and self._has_point and all(map(_is_plain_column, used))
        self._numbers = self._plain_numbers if is_plain else self._any_numbers
        needed = [column for column in columns.values() if column.meaning != "charge_pct"]
        self._last_needed = max(needed, key=attrgetter("index"))
        self._times = self._new_times()
        self._pick_meter()

    def _pick_meter(self) -> None:
        """Read the rows that --only names, or else note whether they are of several meters."""
        layout = self.layout
        fields_of = self._fields
        if self._options.only is not None:
            name, wanted = self._options.only
            index = _Columns(layout.names, (), self._options.has_head).place("--only", name)
            layout.only = layout.names[index], wanted

            def fields_of_one(row: Any) -> Sequence[Any]:
                fields = fields_of(row)
                if index >= len(fields) or _field_text(fields[index]) != wanted:
                    raise _OtherMeter
                return fields

            self._fields = fields_of_one
            return
        first_texts: dict[int, str] = {}
        indexes = layout.meter_indexes()

        def fields_of_any(row: Any) -> Sequence[Any]:
            fields = fields_of(row)
            for index in indexes:
                text = _field_text(fields[index]) if index < len(fields) else ""
                first = first_texts.setdefault(index, text) if text else ""
                if first != text:
                    name = layout.names[index].strip()
                    example = _quoted(f"{name}={first}")
                    self._mixed = self._mixed or (
                        f"{printable(name)}: the log has rows of {printable(first)} and of "
                        f"{printable(text)}: import each into its own meter, with --only {example}"
                    )
            return fields

        if indexes:
            self._fields = fields_of_any

    def _new_times(self) -> _LogTimes:
        options = self._options
        if self.layout.zone == "UTC":
            return _LogTimes(timezone.utc, True, options.time_format)
        return _LogTimes(options.zone, options.has_zone, options.time_format)

    def _check_times(self, sample: Iterable[_LogRow]) -> None:
        """Refuse the log at once if no time can be read without another option."""
        times = self._new_times()  # they remember and count what they have read
        unclear = ""
        for number, value in sample:
            try:
                fields = self._fields(value)
                column = self._timestamp
                times.read(self._joined_time(fields) if column is None else fields[column.index])
            except _Unclear as error:
                unclear = unclear or f"line {number}: {error}"
            except InvalidValue:  # a bad row, or one of another meter
                continue
            else:
                return
        if unclear:
            raise InvalidValue(unclear)

    # --- A row

    def _line_fields(self, line: str) -> Sequence[Any]:
        """The fields of a line of delimited text. Raises InvalidValue."""
        if len(line) > _MAX_LINE:
            _check_length(line)
        fields = line.split(self._delimiter)
        if '"' in line:
            fields = _split_line(line, self._delimiter)
        if len(fields) != self._width:
            self._check_width(fields, line)
        return fields

    def _check_width(self, fields: Sequence[str], line: str) -> None:
        if len(fields) > self._width and any(field.strip() for field in fields[self._width :]):
            whose = "head" if self._options.has_head else "first row"
            raise InvalidValue(
                f"{len(fields)} fields, the {whose} has {self._width}: {_shown_line(line)}"
            )
        last = self._last_needed
        if len(fields) <= last.index:
            raise InvalidValue(
                f"{last.meaning}: expected a number, but the row ends before the column "
                f"{printable(last.name)}: {_shown_line(line)}"
            )

    def _object_fields(self, value: Any) -> Sequence[Any]:
        """The values of a JSON object, in the order of the layout. Raises InvalidValue."""
        fields = _json_object(value)
        if not self._known_names.issuperset(fields):
            self._check_names(fields)
        return [fields.get(name) for name in self.layout.names]

    def _check_names(self, fields: Mapping[str, Any]) -> None:
        """Refuse a name that first comes later, and that would have been used from the start."""
        for name in fields.keys() - self._known_names:
            meaning, _ = _meaning_of(name) or ("", "")
            if not self._charge.name and name == "charge_pct":
                self._charge = _LogColumn(name, name, len(self.layout.names))
                self.layout.names.append(name)
            elif meaning in _MEASURES:
                self._check_later_name(name, meaning, fields)
                continue
            self._known_names.add(name)

    def _check_later_name(self, name: str, meaning: str, fields: Mapping[str, Any]) -> None:
        """Refuse a name that stands for one of the first rows, which this row does not have."""
        electric = self._current if self._current.name else self._power
        used = {"voltage": self._voltage, "charge_pct": self._charge}.get(meaning, electric)
        if not used.name:
            raise InvalidValue(
                f"{printable(name)}: the first rows have no such name: give --column "
                f"{_quoted(f'charge_pct={name}')}"
            )
        if fields.get(used.name) is None:
            raise InvalidValue(
                f"{printable(name)}: the first rows have {printable(used.name)} in its place: "
                "import the rows that have it apart"
            )

    def _arrival(self, number: int, fields: Sequence[Any]) -> _Arrival:
        """One row as a reading with checked values. Raises InvalidValue."""
        column = self._timestamp
        us = self._times.read(self._joined_time(fields) if column is None else fields[column.index])
        voltage, current, charge_pct = self._numbers(fields)
        is_left_out = False
        if charge_pct is not None and not 0.0 <= charge_pct <= self._largest_charge:
            charge_pct = plausible_charge(charge_pct)
            is_left_out = charge_pct is None
        voltage, current, charge_pct = _check_reading(voltage, current, charge_pct)
        if is_left_out:
            self.left_out_charges += 1
        elif charge_pct is not None and charge_pct > self._largest_charge:
            self._largest_charge = charge_pct
        needs_charge = charge_pct is None and not self._options.keeps_unknown_charge
        if needs_charge and not is_left_out:
            self.filled_charges += 1
        if voltage is None or current is None:
            self.unknown_powers += 1
        return _Arrival(number, us, voltage, current, charge_pct, False, needs_charge)

    def _joined_time(self, fields: Sequence[Any]) -> str:
        """The time of a row that has its date apart."""
        columns = self.layout.columns
        values = [fields[columns[meaning].index] for meaning in ("date", "time")]
        if any(value is None or value == "" for value in values):
            return ""
        return " ".join(str(value).strip() for value in values)

    def _plain_numbers(self, fields: Sequence[Any]) -> _Numbers:
        """Volts, amperes and per cent of a row of a plain log, which needs no more than float()."""
        try:
            voltage = fields[self._voltage.index]
            current = fields[self._current.index]
            charge_pct = fields[self._charge.index]
            if "_" in voltage or "_" in current or "_" in charge_pct:
                return self._any_numbers(fields)
            return float(voltage), float(current), float(charge_pct)
        except (ValueError, IndexError):
            return self._any_numbers(fields)

    def _any_numbers(self, fields: Sequence[Any]) -> _Numbers:
        """Volts, amperes and per cent of a row. Raises InvalidValue."""
        voltage = self._number(fields, self._voltage)
        if "current" in self.layout.columns:
            current = self._number(fields, self._current)
        else:
            current = _current_of(self._number(fields, self._power), voltage)
        charge_pct = None
        if self._charge.index < len(fields):
            charge_pct = self._number(fields, self._charge)
        return voltage, current, charge_pct

    def _number(self, fields: Sequence[Any], column: _LogColumn) -> float | None:
        """A number in its meaning's first unit; None for an empty field. Raises InvalidValue."""
        value = fields[column.index]
        text = value
        if isinstance(value, str):
            text = value.strip() if self._has_point else value.strip().translate(_TO_POINT)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            text = repr(float(value)) if abs(value) <= _MAX_FLOAT else "too large"
        if text is None or text == "":
            return None
        found = _NUMBER.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            sign = "" if self._has_point else ', with the decimal sign ","'
            raise _invalid(column.meaning, f"a number ({column.shown_unit}){sign}", value)
        # mV get e-3 after their digits: that is exact, and a factor of 0.001 is not.
        number = float(f"{found[1]}e{int(found[2] or 0) + column.exponent}")
        return -number if column.is_turned else number


def _field_text(value: Any) -> str:
    """A field that names something, as text; "" if it is empty."""
    return "" if value is None else str(value).strip()


def _is_plain_column(column: _LogColumn) -> bool:
    return column.name != "" and not column.exponent and not column.is_turned


def _current_of(watts: float | None, volts: float | None) -> float | None:
    """The amperes of so many watts. Raises InvalidValue where there can be none."""
    if watts is None or volts is None:
        return None
    if volts:
        return watts / volts
    if watts:
        raise _invalid("power", "0 W where there are 0 V", watts)
    return 0.0


def _peek(pieces: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The first character that is not blank, and all pieces, that one's included."""
    seen = []
    for piece in pieces:
        seen.append(piece)
        text = piece.lstrip()
        if text:
            return text[0], chain(seen, pieces)
    return "", iter(seen)


def _sampled(
    rows: Iterator[_LogRow | None], least: int
) -> tuple[list[_LogRow], Iterator[_LogRow | None]]:
    """The first rows, and all of them. It waits for no more than `least` rows."""
    sample: list[_LogRow] = []
    lull: list[None] = []  # one after the sample is passed on, so that its rows are stored
    for row in rows:
        if row is not None:
            sample.append(row)
        elif len(sample) >= least:
            lull.append(None)
            break
        if len(sample) == _SAMPLE_ROWS:
            break
    return sample, chain(list(sample), lull, rows)


# --- Import


# Leaps between readings with watts: to the last one within max_gap, or over a gap to the next.
# That is a hundred times faster than looking at each. (As a common table expression, _POWERED_SQL
# would be computed first, reading by reading.)
_POWERED_SQL = """SELECT timestamp FROM power_readings WHERE meter_key = :key
    AND voltage IS NOT NULL AND current_draw IS NOT NULL AND timestamp"""
_GAPS_SQL = f"""WITH RECURSIVE leap (us, next_us) AS (
    SELECT NULL, ({_POWERED_SQL} BETWEEN :first AND :last ORDER BY timestamp LIMIT 1)
    UNION ALL
    SELECT next_us, coalesce(
        ({_POWERED_SQL} > next_us AND timestamp <= min(next_us + :max_gap, :last)
            ORDER BY timestamp DESC LIMIT 1),
        ({_POWERED_SQL} > next_us AND timestamp <= :last ORDER BY timestamp LIMIT 1))
    FROM leap WHERE next_us IS NOT NULL)
    SELECT sum(next_us - us > :max_gap) FROM leap"""


_AHEAD_S = 60.0  # clocks differ by less


class _DryRun(Exception):
    """Takes back what a dry run has stored."""


@dataclass
class _ImportSums:
    """What an import has done so far."""

    new_count: int = 0
    refused_count: int = 0  # readings of hours that prune() has closed
    conflict_count: int = 0  # readings with the time of another one and other values
    stored_rows: int = 0  # of the log, as far as they are committed
    first_us: int | None = None
    last_us: int | None = None
    energy_out_wh: float = 0.0
    energy_in_wh: float = 0.0
    gap_count: int = 0
    ahead_s: float = 0.0  # by which the last reading is dated after now

    def add_span(self, arrivals: Sequence[_Arrival]) -> None:
        """Widen the span to these readings."""
        if arrivals:
            instants = [arrival.us for arrival in arrivals]
            first_us = min(instants)
            last_us = max(instants)
            self.first_us = first_us if self.first_us is None else min(first_us, self.first_us)
            self.last_us = last_us if self.last_us is None else max(last_us, self.last_us)


class _Import:
    """One run of `import`: stores a log's readings, and says what it did."""

    def __init__(self, pm: PowerManager, meter: PowerMeter, options: argparse.Namespace) -> None:
        self._pm = pm
        self._meter_id = meter.id
        # Readings without a charge take the one that the meter has, unless nobody knows it.
        self._passes_charge_on = meter.type in _TYPES_WITH_CHARGE and meter.charge_pct is not None
        self._file: str = options.file
        self._skips_bad: bool = options.skip_bad
        self._is_dry_run: bool = options.dry_run
        self._is_quiet: bool = options.json
        self._batch_rows: int = 0 if options.dry_run else options.batch
        if options.batch is None:
            self._batch_rows = _BATCH_ROWS if self._file == "-" and not options.dry_run else 0
        self._log_options = _LogOptions(
            choices=options.column,
            has_head=not options.no_header,
            delimiter=options.delimiter or "",
            decimal=options.decimal or "",
            zone=getattr(options, "time_zone", None),
            has_zone=hasattr(options, "time_zone"),
            time_format=options.time_format or "",
            keeps_unknown_charge=options.unknown_charge,
            only=options.only,
        )
        self._sums = _ImportSums()
        self._bad_rows: list[tuple[int, str]] = []  # the first ones
        self._pending: list[_Arrival] = []
        self._has_progress = False  # a line of it stands on the terminal

    def run(self) -> None:
        """Store the log, in one transaction or in batches. Raises InvalidValue."""
        with _open_log(self._file, self._batch_rows > 0) as source:
            try:
                self._reader = _LogReader(source, self._log_options, self._report_bad_row)
            except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
                self._say_what_is_stored()
                raise
            if not self._is_quiet:
                print_error(f"{self._file}: {self._reader.layout.describe()}")
            try:
                if self._batch_rows:
                    self._store_batches()
                else:
                    self._store_all()
            finally:
                self._end_progress()
        self._count_hidden_bad_rows()
        if self._reader.good_count:
            return
        if self._reader.other_count:
            raise InvalidValue(
                "--only {}={}: no row has that".format(*self._log_options.only or ())
            )
        if self._reader.bad_count:
            raise InvalidValue(
                f"no row can be read ({_counted(self._reader.bad_count, 'bad row')}): nothing was "
                "stored"
            )

    def result(self, zone: tzinfo | None) -> tuple[dict[str, Any], str]:
        """What was done: for programs, and for a person, in the zone of the log or in this one."""
        reader = self._reader
        if self._log_options.has_zone:
            zone = self._log_options.zone
        zone_name = "local time" if zone is None else str(zone)
        sums = self._sums
        left_out_count = sums.refused_count + sums.conflict_count
        there_count = reader.good_count - sums.new_count - left_out_count
        max_gap_s = self._pm.max_gap
        has_charges = "charge_pct" in reader.layout.columns
        filled_count = reader.filled_charges * (has_charges or self._passes_charge_on)
        new = _counted(sums.new_count, "new reading")
        bad = _counted(reader.bad_count, "bad row")
        lines = [f"{new}, {there_count} already there, {bad} left out"]
        if self._is_dry_run:
            lines.append("a dry run: nothing is stored")
        if sums.conflict_count:
            lines.append(
                f"{sums.conflict_count} not stored: each has the time of another reading, and "
                "other values"
            )
        if sums.refused_count:
            lines.append(f"{sums.refused_count} not stored: prune() has closed their hours")
        if sums.first_us is not None and sums.last_us is not None:
            first = shown_time(sums.first_us, zone)
            lines.append(f"from {first} to {shown_time(sums.last_us, zone)}, {zone_name}")
            energy_out = shown_number(sums.energy_out_wh)
            lines.append(f"energy: {energy_out} Wh out, {shown_number(sums.energy_in_wh)} Wh in")
        if sums.gap_count:
            gaps = _counted(sums.gap_count, "gap")
            lines.append(f"no energy in {gaps} of more than {shown_duration(max_gap_s)}")
        if reader.left_out_charges:
            charges = _counted(reader.left_out_charges, "charge")
            lines.append(f"{charges} left out: not from 0 to 110 %")
        if reader.other_count:
            rows = _counted(reader.other_count, "row")
            lines.append(f"{rows} left out by --only")
        if sums.ahead_s > _AHEAD_S:
            lines.append(f"the last is dated {shown_duration(sums.ahead_s)} after now")
        if reader.unknown_powers:
            lines.append(
                f"{reader.unknown_powers} without volts or amperes: their power is unknown"
            )
        if filled_count:
            lines.append(
                f"{filled_count} without a charge: each has that of the reading before "
                "(--unknown-charge: none)"
            )
        if reader.repeated_count:
            lines.append(
                f"times that exist twice, because clocks were put back: {reader.repeated_count}; "
                "taken as the first of the two until the times step back"
            )
        if reader.torn_line is not None:
            lines.append(
                f"line {reader.torn_line} is the last and has no newline: its last value may be cut"
            )
        value = {
            "new": sums.new_count,
            "already_there": there_count,
            "bad_rows_left_out": reader.bad_count,
            "with_other_values": sums.conflict_count,
            "in_closed_hours": sums.refused_count,
            "dry_run": self._is_dry_run,
            "first": None if sums.first_us is None else from_microseconds(sums.first_us),
            "last": None if sums.last_us is None else from_microseconds(sums.last_us),
            "energy_out_wh": rounded(sums.energy_out_wh),
            "energy_in_wh": rounded(sums.energy_in_wh),
            "gaps": sums.gap_count,
            "max_gap_s": max_gap_s,
            "charges_left_out": reader.left_out_charges,
            "charges_of_the_reading_before": filled_count,
            "unknown_power": reader.unknown_powers,
            "rows_of_others": reader.other_count,
            "last_is_ahead_s": sums.ahead_s,
            "times_that_exist_twice": reader.repeated_count,
            "torn_line": reader.torn_line,
            "bad_rows": [{"line": line, "error": error} for line, error in self._bad_rows],
            "layout": reader.layout.as_json(),
        }
        return value, "\n".join(lines)

    # --- One transaction

    def _store_all(self) -> None:
        rows = self._reader.arrivals()
        first_chunk = self._pull(rows)
        with contextlib.suppress(_DryRun), self._pm.transaction():
            self._store(first_chunk, lambda: self._pull(rows))
            if self._reader.bad_count and not self._skips_bad:
                self._refuse_bad_rows("nothing was")
            self._reader.check()
            self._count_gaps()
            if self._is_dry_run:
                raise _DryRun

    def _pull(self, rows: Iterator[_Arrival | None]) -> _Chunk:
        """The next readings of a log that is all there."""
        arrivals = [row for row in islice(rows, _CHUNK_ROWS) if row is not None]
        self._show_progress(self._reader.good_count)
        return self._chunk_of(arrivals)

    def _chunk_of(self, arrivals: list[_Arrival]) -> _Chunk:
        self._sums.add_span(arrivals)
        chunk = _Chunk()
        if arrivals:
            chunk.by_meter[self._meter_id] = arrivals
            chunk.size = len(arrivals)
        return chunk

    def _store(self, chunk: _Chunk, pull: Callable[[], _Chunk]) -> None:
        before = self._pm.energy_totals(self._meter_id)
        writer = self._pm._store_chunks(chunk, pull)
        after = self._pm.energy_totals(self._meter_id)
        self._sums.new_count += writer.stored_count
        self._sums.refused_count += writer.refused_count
        self._sums.conflict_count += writer.conflict_count
        self._sums.energy_out_wh += after.energy_out_wh - before.energy_out_wh
        self._sums.energy_in_wh += after.energy_in_wh - before.energy_in_wh

    def _count_gaps(self) -> None:
        """Count the gaps in the span of the log over which no energy is booked."""
        if self._sums.first_us is None or self._sums.last_us is None:
            return
        ahead_us = self._sums.last_us - self._pm._now_us()
        self._sums.ahead_s = max(0, ahead_us) / SECOND_US

        def read(conn: sqlite3.Connection) -> int:
            values = {
                "key": _meter_key(conn, self._meter_id),
                "first": self._sums.first_us,
                "last": self._sums.last_us,
                "max_gap": _setting(conn, "max_gap_us", int),
            }
            (gap_count,) = conn.execute(_GAPS_SQL, values).fetchone()
            return gap_count or 0

        self._sums.gap_count = self._pm._read(read)

    # --- Batches

    def _store_batches(self) -> None:
        try:
            for arrival in self._reader.arrivals():
                if arrival is not None:
                    self._pending.append(arrival)
                if arrival is None or len(self._pending) == self._batch_rows:
                    self._store_batch()
            self._store_batch()
        except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
            try:
                self._store_batch()
            except PowerManagerError as error:
                print_error(f"{self._file}: {error}")
            self._say_what_is_stored()
            raise
        except (PowerManagerError, OSError):
            if self._sums.stored_rows:
                self._say_what_is_stored()
            raise
        self._count_gaps()

    def _store_batch(self) -> None:
        """Store what is pending, unless there was a bad row. Raises InvalidValue."""
        self._refuse_bad_batch()
        if not self._pending:
            return
        self._reader.check()
        with self._pm.transaction():
            self._store(self._chunk_of(self._pending), _Chunk)
        self._sums.stored_rows += len(self._pending)
        self._pending = []
        self._show_progress(self._sums.stored_rows)

    def _refuse_bad_batch(self) -> None:
        if self._reader.bad_count and not self._skips_bad:
            self._refuse_bad_rows("the batch was not" if self._sums.stored_rows else "nothing was")

    def _refuse_bad_rows(self, what: str) -> None:
        self._count_hidden_bad_rows()
        raise InvalidValue(
            f"{_counted(self._reader.bad_count, 'bad row')}: {what} stored; correct the log, or "
            "leave out bad rows with --skip-bad"
        )

    def _say_what_is_stored(self) -> None:
        print_error(f"{self._file}: stored so far: {_counted(self._sums.stored_rows, 'row')}")

    # --- Messages

    def _report_bad_row(self, number: int, error: str) -> None:
        if len(self._bad_rows) < _SHOWN_BAD_ROWS:
            self._bad_rows.append((number, error))
            self._end_progress()
            print_error(f"{self._file}: line {number}: {error}")
        elif self._reader.bad_count == self._batch_rows:
            self._refuse_bad_batch()  # a pipe may go on like this for ever

    def _count_hidden_bad_rows(self) -> None:
        hidden_count = self._reader.bad_count - len(self._bad_rows)
        if hidden_count:
            print_error(f"{self._file}: and {_counted(hidden_count, 'more bad row')}")

    def _show_progress(self, count: int) -> None:
        """Say on a terminal how far the import is, in a line that the next one replaces."""
        if sys.stderr is None or not sys.stderr.isatty():
            return
        share = self._reader.share
        text = f"{count:,} rows" if share is None else f"{count:,} rows, {share:.0%}"
        print_error(f"\r{text:<{_PROGRESS_WIDTH}}\r", end="")
        self._has_progress = True

    def _end_progress(self) -> None:
        if self._has_progress:
            print_error(f"\r{'':<{_PROGRESS_WIDTH}}\r", end="")
            self._has_progress = False


_PROGRESS_WIDTH = 30  # columns


# --- Export


class _Export:
    """Writes a meter's readings, as `import` reads them or in InfluxDB's line protocol."""

    def __init__(self, pm: PowerManager, options: argparse.Namespace) -> None:
        self._pm = pm
        self._options = options
        self._meter = _named_meter(pm, options.meter)
        self._has_zone: bool = hasattr(options, "time_zone")
        self._check_options()

    def _check_options(self) -> None:
        """Refuse an option that the format has no place for."""
        options = self._options
        given = {
            "--delimiter": options.delimiter and options.format != "csv",
            "--decimal": options.decimal and options.format != "csv",
            "--time-zone": self._has_zone and options.format == "influx",
            "--wide": options.wide and options.format == "influx",
        }
        for name, is_wrong in given.items():
            if is_wrong:
                raise InvalidValue(f"{name}: the format {options.format} has no place for it")

    def write(self) -> None:
        """Write the readings of the options' range to their output."""
        options = self._options
        if options.output != "-":
            _check_target(_check_path("output", options.output), self._pm._path)
        readings = self._pm.iter_history(self._meter.id, since=options.since, until=options.until)
        with contextlib.ExitStack() as stack:
            out = sys.stdout
            if options.output != "-":
                out = stack.enter_context(_open_output(options.output))
            if options.format == "influx":
                out.writelines(self._influx_lines(readings))
            elif options.format == "ndjson":
                for row in map(self._row, readings):
                    out.write(json.dumps(dict(zip(self._names(), row)), ensure_ascii=False) + "\n")
            else:
                self._write_csv(out, readings)

    def _names(self) -> tuple[str, ...]:
        return (*_OWN_COLUMNS, "wattage", "device", "meter") if self._options.wide else _OWN_COLUMNS

    def _row(self, reading: PowerReading) -> tuple[Any, ...]:
        moment = reading.timestamp
        if self._has_zone:
            local = datetime.fromisoformat(moment).astimezone(self._options.time_zone)
            moment = local.isoformat(timespec="microseconds")
        values = (moment, reading.voltage, reading.current_draw, reading.charge_pct)
        if not self._options.wide:
            return values
        return (*values, reading.wattage, self._meter.device_id, self._meter.name or self._meter.id)

    def _write_csv(self, out: Any, readings: Iterable[PowerReading]) -> None:
        import csv

        writer = csv.writer(out, delimiter=self._options.delimiter or ",", lineterminator="\n")
        writer.writerow(self._names())
        rows: Iterable[tuple[Any, ...]] = map(self._row, readings)
        if self._options.decimal == ",":
            rows = (tuple(map(_with_comma, row)) for row in rows)
        writer.writerows(rows)

    def _influx_lines(self, readings: Iterable[PowerReading]) -> Iterator[str]:
        meter = self._meter
        tags = {
            "device": meter.device_id,
            "meter": meter.id,
            "name": meter.name or "",
            "type": str(meter.type),
        }
        texts = ((name, _influx_tag(text)) for name, text in tags.items())
        head = "power" + "".join(f",{name}={text}" for name, text in texts if text)
        for reading in readings:
            values = {
                "voltage": reading.voltage,
                "current": reading.current_draw,
                "charge_pct": reading.charge_pct,
                "wattage": reading.wattage,
            }
            fields = ",".join(
                f"{name}={value!r}" for name, value in values.items() if value is not None
            )
            yield f"{head} {fields} {to_microseconds(reading.timestamp)}000\n"


def _with_comma(value: Any) -> Any:
    """A number as text with a decimal comma; anything else as it is."""
    return repr(value).replace(".", ",") if isinstance(value, float) else value


def _influx_tag(text: str) -> str:
    r"""A tag's value by the rules of the line protocol.

    It has no escape for a newline, nor for a backslash at the end.

    >>> print(_influx_tag("Garden gate, north"))
    Garden\ gate\,\ north
    """
    text = re.sub(r"[\r\n]+", " ", text).rstrip("\\")
    return re.sub(r"([,= ])", r"\\\1", text)


@contextlib.contextmanager
def _open_output(path: str) -> Iterator[TextIO]:
    """Open a file for writing, whole or not at all; what is no file, such as a pipe, as it is."""
    name = os.path.abspath(path)
    if os.path.exists(name) and not _is_replaceable(Path(name)):
        # "a", because the shell may have opened it to append: `export ... >> all.csv`.
        with open(path, "a", encoding="utf-8", newline="") as out:
            yield out
        return
    # Writing to a link writes to what it names.
    with replace_file(os.path.realpath(path)) as file:
        out = io.TextIOWrapper(file, encoding="utf-8", newline="")
        try:
            yield out
        finally:
            out.detach()


# --- Command line ---------------------------------------------------------------------

_PROGRAM = "power-manager"  # its installed name


def _meter_names(meter: PowerMeter) -> tuple[str, str | None, str]:
    """What a person may name a meter by, each if the one before names none."""
    by_name = f"{meter.device_id}/{meter.name}" if meter.name else None
    return meter.id, by_name, f"{meter.device_id}/{meter.type}"


def _named_meter(pm: PowerManager, name: str) -> PowerMeter:
    """The meter with that id, or that is device/name, or device/type where that is one meter."""
    meters = pm.list_meters()
    all_names = [_meter_names(meter) for meter in meters]
    for names in zip(*all_names):
        found = [meter for meter, known in zip(meters, names) if known == name]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(meter.id for meter in found)
            raise NotFound(f"{name!r} names {len(found)} meters: give the id of one: {ids}")
    known = [f"{meter.device_id}/{meter.name or meter.type}" for meter in meters]
    if not any(label.casefold().startswith(name.casefold()) for label in known):
        known += filter(None, chain.from_iterable(all_names))
    hint = nearest(name, known) or ": the command `meters` lists them"
    raise NotFound(f"no meter has the id or the device/name {name!r}{hint}", "meter", name)


def _number_or_unknown(text: str) -> int | float | None:
    """Text as a number, "-" as None, for argparse."""
    if text == "-":
        return None
    try:
        return parse_number(text)
    except argparse.ArgumentTypeError:
        expected = f"expected a number, or - for unknown, got {text!r}"
        raise argparse.ArgumentTypeError(expected) from None


def _charge(text: str) -> int | float:
    """Text as percent of charge that a gauge can mean, for argparse."""
    number = parse_number(text)
    if plausible_charge(number) is None:
        expected = f"expected 0 to 110 %, got {text!r}: leave out what the gauge does not know"
        raise argparse.ArgumentTypeError(expected)
    return number


def _percent_or_unknown(text: str) -> int | float | None:
    """Text as per cent of charge, "unknown" as None, for argparse."""
    if text == "unknown":
        return None
    number = _read_number(text)
    if number is None or not 0 <= number <= 100:
        expected = f"expected per cent from 0 to 100, or unknown, got {text!r}"
        raise argparse.ArgumentTypeError(expected)
    return number


def _interval(text: str) -> float:
    """Text as the seconds from one status to the next, for argparse."""
    try:
        seconds = parse_duration(text)
    except argparse.ArgumentTypeError as error:
        # As in `status --watch edge-001`.
        raise argparse.ArgumentTypeError(f"{error}; name devices before --watch") from None
    if seconds < _LEAST_INTERVAL_S:
        expected = f"expected at least {_LEAST_INTERVAL_S} s, got {text!r}"
        raise argparse.ArgumentTypeError(expected)
    return seconds


_LEAST_INTERVAL_S = 0.1


def _days(text: str) -> int | float:
    """Text as a number of days, for argparse."""
    try:
        days = parse_number(text)
    except argparse.ArgumentTypeError:
        days = 0
    if days <= 0:
        raise argparse.ArgumentTypeError(f"expected a number of days above 0, got {text!r}")
    return days


def _make_demo(pm: PowerManager, zone: tzinfo | None) -> str:
    """A week of telemetry of one device, with the sun of the zone, and its report."""
    pm.register_device("demo-001", "Solar-powered gateway", target_wh=150.0)
    panel = pm.add_meter("demo-001", "solar", name="Panel")
    pack = pm.add_meter("demo-001", "battery", _DEMO_CAPACITY_WH, "Pack")
    pm.log_many(_demo_week(panel.id, pack.id, pm._now_us() / SECOND_US, zone))
    return pm.export_report("demo-001", days=7)


def _print_demo_hints(session: _Session) -> None:
    """Say where the demo's data is, and what to run next, in any directory."""
    path = str(session.pm._path)
    if path == ":memory:":
        print_error("\nNothing of it is kept: name a file with --db, or none, to keep it")
        return
    command = f"{_this_command()} --db {_quoted(path)}"
    print_error(f"\nThe same as JSON: {command} report demo-001")
    print_error(f"To see more, run: {command} status")


def _this_command() -> str:
    """How this command line was started, so that it can be typed again in any directory."""
    program = sys.argv[0] if sys.argv else ""
    if os.path.basename(program) == _PROGRAM:
        return _PROGRAM
    return f"{_quoted(sys.executable or 'python3')} {_quoted(os.path.abspath(__file__))}"


_DEMO_CAPACITY_WH = 120.0


# How much of the sun the clouds let through, from the day a week ago until today. The fourth day is
# grey, so that at whatever hour the demo is made, its week has a night that takes the pack below
# both thresholds.
_DEMO_SUN = (0.75, 0.6, 0.85, 0.27, 0.7, 0.8, 0.6, 0.7)


def _demo_week(
    panel_id: str, pack_id: str, now: float, zone: tzinfo | None
) -> Iterator[tuple[Any, ...]]:
    """A week until `now`, minute by minute: sun by day, clouds by chance, a load of 5 to 8 W.

    The panel supplies the load and charges the pack; when the pack is full, the panel is curtailed
    to what the load takes, so that what comes in is what goes out. The simulation begins at a
    midnight of the zone, so that each minute of a day is the same whenever the demo is made.
    """
    import random

    chance = random.Random(7)
    stored_wh = 85.0
    breaks = 0.0  # in the clouds of the day
    local = datetime.fromtimestamp(now, timezone.utc).astimezone(zone)
    midnight = now - timedelta(hours=local.hour, minutes=local.minute).total_seconds()
    midnight -= local.second + local.microsecond / 1e6
    for minute in range(8 * 24 * 60):
        day, minute_of_day = divmod(minute, 24 * 60)
        when = midnight + 60 * (minute - 7 * 24 * 60) + 30
        breaks = 0.97 * breaks + chance.uniform(-0.05, 0.05)
        clear = min(max(_DEMO_SUN[day] + breaks, 0.1), 1.0)
        height = math.sin((minute_of_day / 60 - 6) / 12 * math.pi)
        sun_watts = 40.0 * clear * max(0.0, height)
        load_watts = 5.0 + 3.0 * (chance.random() < 0.2) + chance.uniform(-0.3, 0.3)
        room_watts = 60 * (_DEMO_CAPACITY_WH - stored_wh)  # what fills the pack in this minute
        panel_watts = min(sun_watts, load_watts + room_watts)
        pack_watts = min(load_watts - panel_watts, 60 * stored_wh)
        stored_wh = min(max(stored_wh - pack_watts / 60, 0.0), _DEMO_CAPACITY_WH)
        charge_pct = round(100 * stored_wh / _DEMO_CAPACITY_WH, 1)
        panel_volts = 18.0 if sun_watts else 0.4
        pack_volts = round(11.1 + 1.5 * stored_wh / _DEMO_CAPACITY_WH, 3)
        if now - 7 * 86400 < when <= now:
            yield panel_id, panel_volts, round(panel_watts / panel_volts, 3), None, when
            yield pack_id, pack_volts, round(pack_watts / pack_volts, 3), charge_pct, when


@dataclass
class _Session:
    """What a command works with."""

    pm: PowerManager
    options: argparse.Namespace
    screen: Screen
    wait: Callable[[float], None] = time.sleep  # between two rounds of --watch or --follow
    exit_code: int = 0

    @property
    def zone(self) -> tzinfo | None:
        """The zone in which times are shown to a person; None: this machine's own."""
        return timezone.utc if getattr(self.options, "utc", False) else None

    def result(self, value: Any, text: str) -> str:
        """The value as JSON if that was asked for, else the text."""
        return shown_json(value) if self.options.json else text


# --- Commands that make and change


def _run_register(session: _Session) -> str:
    pm = session.pm
    options = session.options
    if options.max_gap not in (None, pm.max_gap):  # PowerManager takes its default for no value
        raise InvalidValue(
            f"max_gap: expected {pm.max_gap:g} (s), the value that {pm.db_path} was made with, "
            f"got {options.max_gap:g}"
        )
    with pm.transaction():
        device, done = _register_device(pm, options)
        set_up = [_set_up_meter(pm, device.id, given) for given in options.meters]
    lines = [f"{printable(device.id)} is {done}"]
    lines += [f"{_meter_label(meter)} is {done}" for meter, done in set_up]
    meters = [meter for meter, _ in set_up]
    return session.result({"device": device, "meters": meters}, "\n".join(lines))


def _register_device(pm: PowerManager, options: argparse.Namespace) -> tuple[DeviceRecord, str]:
    values = _given(
        options,
        "shutdown_threshold",
        "target_wh",
        "low_battery_threshold",
        "critical_battery_threshold",
    )
    if any(device.id == options.device_id for device in pm.list_devices()):
        return pm.update_device(options.device_id, name=options.name, **values), "changed"
    return pm.register_device(options.device_id, options.name, **values), "registered"


class _GivenMeter(NamedTuple):
    """A meter as `register --meter` gives it."""

    type: str
    name: str | None
    capacity_wh: float | None


def _given_meter(text: str) -> _GivenMeter:
    """Text as TYPE[:NAME[:WH]], for argparse; a name may hold colons."""
    kind, *parts = text.split(":")
    types = [member.value for member in MeterType]
    if kind not in types:
        hint = nearest(kind, types) or f": expected one of {', '.join(types)}"
        raise argparse.ArgumentTypeError(f"unknown type of meter {kind!r}{hint}")
    capacity_wh = _read_number(parts[-1]) if len(parts) > 1 else None
    if capacity_wh is not None:
        parts.pop()
    return _GivenMeter(kind, ":".join(parts) or None, capacity_wh)


def _set_up_meter(pm: PowerManager, device_id: str, given: _GivenMeter) -> tuple[PowerMeter, str]:
    """Add a meter, or change what is given of the device's meter of that type and name."""
    known = [
        meter
        for meter in pm.list_meters(device_id)
        if (meter.type, meter.name) == (given.type, given.name)
    ]
    if len(known) > 1:
        ids = ", ".join(meter.id for meter in known)
        label = _meter_label(known[0])
        raise NotFound(f"{label!r} names {len(known)} meters: change one by its id: {ids}")
    if not known:
        return pm.add_meter(device_id, given.type, given.capacity_wh or 0.0, given.name), "added"
    if given.capacity_wh is None:
        return known[0], "there"
    return pm.update_meter(known[0].id, capacity_wh=given.capacity_wh), "changed"


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given, of which None is the default."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _run_update_device(session: _Session) -> str:
    values = _given(
        session.options,
        "name",
        "shutdown_threshold",
        "target_wh",
        "low_battery_threshold",
        "critical_battery_threshold",
    )
    for name in session.options.unset:
        values[name.replace("-", "_")] = None
    device = session.pm.update_device(session.options.device_id, **values)
    return session.result(device, f"{printable(device.id)} is changed")


def _run_add_meter(session: _Session) -> str:
    options = session.options
    meter = session.pm.add_meter(
        options.device_id,
        options.type,
        options.capacity_wh,
        options.name,
        charge_pct=options.charge,
    )
    return session.result(meter, f"{_meter_label(meter)} is added")


def _meter_label(meter: PowerMeter) -> str:
    """A meter as a person names it: device/name, or device/type without a name."""
    return printable(f"{meter.device_id}/{meter.name or meter.type}")


def _run_update_meter(session: _Session) -> str:
    meter = _named_meter(session.pm, session.options.meter)
    values = _given(session.options, "name", "capacity_wh", "active")
    if session.options.forget_charge:
        values["charge_pct"] = None
    changed = session.pm.update_meter(meter.id, **values)
    return session.result(changed, f"{_meter_label(changed)} is changed")


def _run_log(session: _Session) -> str:
    options = session.options
    meter = _named_meter(session.pm, options.meter)
    reading = session.pm.log_power(
        meter.id,
        options.voltage,
        options.current,
        options.charge_pct,
        timestamp=options.timestamp,
    )
    if options.timestamp is not None:
        _check_stored(session.pm, reading, options)
    watts = "unknown power"
    if reading.wattage is not None:
        watts = f"{shown_number(reading.wattage)} W"
    charge = ", unknown charge"
    if reading.charge_pct is not None:
        charge = f", {shown_number(reading.charge_pct)} % charge"
    if meter.type not in _TYPES_WITH_CHARGE:
        charge = ""
    return session.result(reading, f"{_meter_label(meter)}: {watts}{charge}")


def _check_stored(pm: PowerManager, reading: PowerReading, options: argparse.Namespace) -> None:
    """Refuse to say that a reading was stored if the file has none of its time, or another."""
    us = to_microseconds(reading.timestamp)
    stored = list(
        pm.iter_history(reading.meter_id, since=reading.timestamp, until=from_microseconds(us + 1))
    )
    if not stored:
        raise InvalidValue(
            f"timestamp: nothing is stored at {reading.timestamp}, for prune() has closed that hour"
        )
    values = _check_reading(options.voltage, options.current, options.charge_pct)
    given = _Arrival(0, us, *values, live=False, needs_charge=options.charge_pct is None)
    if not given.repeats((us, reading.voltage, reading.current_draw, reading.charge_pct)):
        watts = "unknown" if reading.wattage is None else shown_number(reading.wattage)
        raise InvalidValue(
            f"timestamp: nothing is stored, for the meter has another reading ({watts} W) at "
            f"{reading.timestamp}"
        )


def _run_event(session: _Session) -> str:
    options = session.options
    event = session.pm.trigger_event(options.device_id, options.type, options.value, options.note)
    return session.result(event, f"{printable(event.device_id)}: {event.type} is recorded")


# --- Commands that import and export


def _run_import(session: _Session) -> str:
    options = session.options
    meter = _named_meter(session.pm, options.meter)
    run = _Import(session.pm, meter, options)
    run.run()
    value, text = run.result(session.zone)
    return session.result(value, text)


def _run_export(session: _Session) -> None:
    _Export(session.pm, session.options).write()


# --- Commands that show


def _run_status(session: _Session) -> str | None:
    seconds = session.options.watch
    if seconds is None:
        return _status(session, session.screen)
    if session.screen.is_terminal and not session.options.json:
        _watch_terminal(session, seconds)
    while True:  # programs and files get one after another
        text = _status(session, session.screen, indent=None)
        print(text if session.options.json else f"{text}\n", flush=True)
        _wait_for_news(session, seconds)


def _status(session: _Session, screen: Screen, indent: int | None = 2) -> str:
    """What `status` prints now."""
    pm = session.pm
    now_us = pm._now_us()
    views = [
        _view_of_device(
            device,
            meters,
            _hours_of(pm, meters, 1),  # 25 h at the end of an hour: a day may have as many
            now_us=now_us,
            stale_s=_stale_seconds(pm),
            zone=session.zone,
        )
        for device, meters in _meters_of_devices(pm, session.options.device_ids)
    ]
    if session.options.json:
        return json.dumps(_status_values(views, now_us), indent=indent, ensure_ascii=False)
    return _status_text(views, screen)


_LEAST_STALE_S = 120.0  # with a max_gap below that: readings come by the minute


def _stale_seconds(pm: PowerManager) -> float:
    """The age from which a reading is old: no energy will be booked from it to a next one."""
    return max(pm.max_gap, _LEAST_STALE_S)


def _meters_of_devices(
    pm: PowerManager, ids: Sequence[str]
) -> list[tuple[DeviceRecord, list[PowerMeter]]]:
    """The devices with those ids, or all, each with its meters."""
    devices = [pm.get_device(id_) for id_ in dict.fromkeys(ids)] if ids else pm.list_devices()
    meters: dict[str, list[PowerMeter]] = {device.id: [] for device in devices}
    for meter in pm.list_meters():
        if meter.device_id in meters:
            meters[meter.device_id].append(meter)
    return [(device, meters[device.id]) for device in devices]


def _hours_of(
    pm: PowerManager, meters: Iterable[PowerMeter], days: float
) -> dict[str, list[PowerStatistics]]:
    """The hourly statistics of the last `days`, by meter id."""
    hours: dict[str, list[PowerStatistics]] = {}
    for meter in meters:
        with contextlib.suppress(NotFound):  # another process has deleted it meanwhile
            hours[meter.id] = pm.get_statistics(meter.id, days=days)
    return hours


_RESIZE_CHECK_S = 0.2


def _watch_terminal(session: _Session, seconds: float) -> NoReturn:
    """Redraw `status` in place until Ctrl-C."""
    out = sys.stdout
    try:
        out.write(_ENTER_FRAMES)
        while True:
            size = _terminal_size()
            screen = Screen.of(out)
            moment = (
                f"{shown_time(session.pm._now_us(), session.zone)}{' UTC' * bool(session.zone)}"
            )
            title = _cut(f"{moment}, every {seconds:g} s; Ctrl-C ends", screen.width, screen)
            lines = [screen.paint(title, "dim"), "", *_status(session, screen).split("\n")]
            out.write(_frame(lines, size.lines))
            out.flush()
            _wait_or_resize(session, seconds, size)
    finally:
        out.write(_LEAVE_FRAMES)
        out.flush()


def _terminal_size() -> os.terminal_size:
    import shutil

    return shutil.get_terminal_size((80, 24))


def _wait_or_resize(session: _Session, seconds: float, size: os.terminal_size) -> None:
    """Wait that long, or until the terminal has another size."""
    remaining = seconds
    while remaining > 0 and _terminal_size() == size:
        _wait_for_news(session, min(remaining, _RESIZE_CHECK_S))
        remaining -= _RESIZE_CHECK_S


def _wait_for_news(session: _Session, seconds: float) -> None:
    """Wait that long. Raises StorageError if the file is gone: it would never show news again."""
    session.wait(seconds)
    session.pm._check_place()


def _run_devices(session: _Session) -> str:
    devices = session.pm.list_devices()
    if session.options.json:
        return shown_json(devices)
    if session.options.wide:
        return _full_table(devices)
    counts: dict[str, int] = {}
    for meter in session.pm.list_meters():
        counts[meter.device_id] = counts.get(meter.device_id, 0) + 1
    return _devices_text(devices, counts, session.screen)


def _run_meters(session: _Session) -> str:
    meters = session.pm.list_meters(session.options.device_id)
    if not meters and session.options.device_id is not None:
        session.pm.get_device(session.options.device_id)  # raises NotFound if it is unknown
    if session.options.json:
        return shown_json([_meter_values(meter) for meter in meters])
    if session.options.wide:
        return _full_table(meters, ["wattage", "state"])
    stale_s = _stale_seconds(session.pm)
    return _meters_text(meters, session.pm._now_us(), stale_s, session.screen)


def _run_stats(session: _Session) -> str:
    options = session.options
    meter = _named_meter(session.pm, options.meter)
    rows = session.pm.get_statistics(meter.id, days=options.days, bucket=options.bucket)
    if options.json:
        return shown_json(rows)
    if options.wide:
        return _full_table(rows)
    is_daily = options.bucket == "day"
    hours = rows
    if is_daily and rows:
        # The bucket in which the time starts is whole: its hours begin up to a day earlier.
        hours = session.pm.get_statistics(meter.id, days=options.days + 1)
        hours = [row for row in hours if row.start >= rows[0].start]
    return _stats_text(_StatsView(meter, rows, hours, is_daily, session.zone), session.screen)


def _run_events(session: _Session) -> str | None:
    options = session.options
    if options.follow:
        _follow_events(session)
    events = _newest_events_of(session, 50 if options.limit is None else options.limit)
    if options.json:
        return shown_json(events)
    if options.wide:
        return _full_table(events)
    return _events_text(events, options.device_id, session.zone, session.screen)


def _newest_events_of(session: _Session, limit: int) -> list[PowerEvent]:
    """The newest events of the device, or of all, newest first, from --since on."""
    pm = session.pm
    ids = [session.options.device_id]
    if session.options.device_id is None:
        ids = [device.id for device in pm.list_devices()]
    events: list[PowerEvent] = []
    for id_ in ids:
        events += pm.get_events(id_, limit)
    if session.options.since is not None:
        since = from_microseconds(to_microseconds(session.options.since))
        events = [event for event in events if event.timestamp >= since]
    return sorted(events, key=attrgetter("timestamp"), reverse=True)[:limit]


_FOLLOW_CHECK_S = 1.0


def _follow_events(session: _Session) -> NoReturn:
    """Print the newest events, then those that come, until Ctrl-C."""
    pm = session.pm
    options = session.options
    sequence = pm.last_sequence()
    context = _newest_events_of(session, 10 if options.limit is None else options.limit)
    for event in reversed(context):
        _print_event(session, event)
    printed = {event.id for event in context}  # one may have come between the two lines above
    while True:
        # A file that was restored meanwhile counts from where it was.
        sequence = min(sequence, pm.last_sequence())
        while events := pm.events_since(sequence):
            for number, event in events:
                sequence = number
                if options.device_id in (None, event.device_id) and event.id not in printed:
                    _print_event(session, event)
        _wait_for_news(session, _FOLLOW_CHECK_S)


def _print_event(session: _Session, event: PowerEvent) -> None:
    if session.options.json:
        print(json.dumps(dataclasses.asdict(event), ensure_ascii=False), flush=True)
        return
    print(_event_line(event, session.zone, session.screen), flush=True)


def _run_budget(session: _Session) -> str:
    ids = session.options.device_ids or [device.id for device in session.pm.list_devices()]
    budgets = session.pm.power_budget_check(ids)
    for id_, budget in budgets.items():
        if "error" in budget:
            budget["error"] = str(_no_device(id_, session.pm))
            session.exit_code = 1
            if not session.options.json:
                print_error(f"{_PROGRAM}: {budget['error']}")
    if session.options.json:
        return shown_json(budgets)
    return _doubted_budgets(session, budgets)


def _doubted_budgets(session: _Session, budgets: Mapping[str, Mapping[str, Any]]) -> str:
    """Budgets for a person: what is old or not known at all does not look like a measurement."""
    pm = session.pm
    shown = dict(budgets)
    doubts = {}
    now_us = pm._now_us()
    stale_s = _stale_seconds(pm)
    for device, meters in _meters_of_devices(pm, ()):
        if device.id not in budgets or "error" in budgets[device.id]:
            continue
        doubts[device.id] = budget_doubt(meters, now_us, stale_s)
        hours = _hours_of(pm, counted_meters(meters), 1)
        if not any(hours.values()) or _unmeasured(meters, hours):
            shown[device.id] = {**budgets[device.id], "consumption_24h_wh": None}
    return _budget_text(shown, doubts, session.screen)


def _run_report(session: _Session) -> str:
    options = session.options
    report = session.pm.export_report(options.device_id, options.days)
    if options.text and not options.json:
        return _readable_report(session, report, options.days)
    return report


def _readable_report(session: _Session, report: str, days: float) -> str:
    """The JSON text of a report as text for a person."""
    values = json.loads(report)
    meters = session.pm.list_meters(values["device_id"])
    hours = _hours_of(session.pm, meters, days)
    return _report_text(values, meters, hours, session.zone, session.screen)


def _run_demo(session: _Session) -> None:
    report = _make_demo(session.pm, session.zone)
    print(report if session.options.json else _readable_report(session, report, 7), flush=True)
    _print_demo_hints(session)


# --- Commands that delete and maintain


def _run_prune(session: _Session) -> str:
    count = session.pm.prune(session.options.keep_days)
    return session.result({"deleted": count}, f"{_counted(count, 'reading')} deleted")


def _run_delete_readings(session: _Session) -> str:
    options = session.options
    meter = _named_meter(session.pm, options.meter)
    since = "" if options.since is None else f" from {options.since} on"
    until = "" if options.until is None else f" before {options.until}"
    which = "the" if since or until else "all"
    confirm(f"Delete {which} readings of {options.meter}{since}{until}?", yes=options.yes)
    count = session.pm.delete_readings(meter.id, since=options.since, until=options.until)
    return session.result({"deleted": count}, f"{_counted(count, 'reading')} deleted")


def _run_delete_meter(session: _Session) -> str:
    options = session.options
    meter = _named_meter(session.pm, options.meter)
    confirm(f"Delete the meter {options.meter} with all its readings?", yes=options.yes)
    session.pm.delete_meter(meter.id)
    return session.result({"deleted": meter.id}, f"{options.meter} is deleted")


def _run_delete_device(session: _Session) -> str:
    pm = session.pm
    device_id = session.options.device_id
    meters = _counted(len(pm.list_meters(pm.get_device(device_id).id)), "meter")
    confirm(
        f"Delete the device {device_id} with {meters}, all readings and all events?",
        yes=session.options.yes,
    )
    pm.delete_device(device_id)
    return session.result({"deleted": device_id}, f"{device_id} is deleted")


def _run_backup(session: _Session) -> str:
    path = session.options.path
    session.pm.backup(path)
    return session.result({"path": path}, f"{path} is written")


def _run_check(session: _Session) -> str:
    problems = session.pm.check()
    session.exit_code = int(bool(problems))
    return session.result(problems, "\n".join(problems) or "ok")


# --- Parser


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("device_id", help="the device's id")


def _add_devices(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "device_ids", metavar="device_id", nargs="*", help="ids of devices (default: all)"
    )


def _add_meter_name(command: argparse.ArgumentParser) -> None:
    command.add_argument("meter", help="its id, DEVICE/NAME or DEVICE/TYPE")


def _add_device_values(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shutdown-threshold",
        metavar="W",
        type=parse_number,
        help="watts below which the budget warns (new device: 3)",
    )
    command.add_argument(
        "--target-wh",
        metavar="WH",
        type=parse_number,
        help="energy target a day (new device: no target)",
    )
    command.add_argument(
        "--low-battery-threshold",
        metavar="PCT",
        type=parse_number,
        help="charge at which a battery is low (new device: 20)",
    )
    command.add_argument(
        "--critical-battery-threshold",
        metavar="PCT",
        type=parse_number,
        help="charge at which a battery is critical (new device: 5)",
    )


def _add_wide(command: argparse.ArgumentParser) -> None:
    command.add_argument("--wide", action="store_true", help="every value, however wide that is")


def _add_utc(command: argparse.ArgumentParser) -> None:
    command.add_argument("--utc", action="store_true", help="times in UTC (default: local time)")


def _add_days(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--days", metavar="N", type=_days, default=7, help="how far back (default: 7)"
    )


def _add_yes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--yes", action="store_true", help="do not ask")


_DB_HELP = "the database (default: $POWER_MANAGER_DB, else power_manager.db here)"

_ABOUT_STATUS = """
Each device has a group of lines: how long its batteries will last, today's
energy (out of all meters that count in consumption, into them, and used, the
difference), and its meters. A battery is `charging` when energy goes into it,
and otherwise `full` from 95 % on; a panel without watts is `idle`. Below stand
alerts, readings older than the file's max_gap (at least two minutes), readings
dated after now, and meters whose watts are unknown.

With --json it is an object with `generated_at` and `devices`; with --watch too,
one a line. A device has the fields of its record, and
  estimated_runtime_hours    null if its batteries are not draining
  energy_today_out_wh, energy_today_in_wh, consumption_today_wh
                             of the local day, or the UTC day with --utc
  meters                     each with the fields of its record, and
    wattage, state           as `meters --json` has them; null if unknown
    age_seconds              since its newest reading: below 0 if that is dated
                             after now, null before the first one
    stale, ahead             whether that reading is old, or dated after now
    estimated_runtime_hours  of this meter alone
    hourly_wattage           the mean of each of the last 24 UTC hours, oldest
                             first, null where there is none"""

_ABOUT_BUDGET = """
The verdict is `ok`, `over target`, `low supply` (less watts than the device's
shutdown threshold), `unknown W` (of an active meter), `unknown Wh` (of the last
24 hours), `stale` (an active meter has no reading for that long, see `help
status`), `no readings`, `inactive` (no active meter), or `no such id`. With
--json it is an object with an entry for each id, as power_budget_check() has
it: by the last readings, however old; `{"error": ...}` for an unknown one."""

_ABOUT_REPORT = """
--text has a bar for each local day, or for each month if there are more than 62
days: what was used, then what went in again at another meter, such as a
battery. The JSON is that of PowerManager.export_report()."""

_ABOUT_IMPORT = """
The log is read as its device wrote it. What is understood is printed to
standard error before anything is stored; what is not clear is refused, with
the option that settles it.

form     fields apart by comma, semicolon, tab or pipe, NDJSON, or a JSON array
         of objects; UTF-8 or UTF-16; lines at the start that begin with # are
         skipped, and said
columns  timestamp (or date and time), voltage, current (or power), charge_pct,
         by many names, in any case; without current, amperes are watts by volts
units    V, mV, uV, kV; A, mA, uA; W, mW, kW; % or fraction: as the name says
sign     amperes out of the source are positive
numbers  with a decimal point or comma, as the log has them; not with both
times    ISO 8601 with an offset; epoch seconds, ms, us or ns; with --time-zone
         2026-11-28 10:00, 2026/11/28 10:00:30 and 28.11.2026 10:00 too; others
         with --time-format
charge   below 0 and above 110 is unknown, 100 to 110 is full

One line is one row. The first 20 bad rows are named, and nothing is stored;
--skip-bad leaves bad rows out. A time that the clocks skip is a bad row; one
that exists twice is the first of the two until the times step back. A reading
that is there is not stored again, so an import can be repeated; one with the
time of another and other values is counted, and not stored. A log of several
meters is refused: --only takes the rows of one.

The summary counts gaps over which no energy is booked and readings of unknown
power, and names a last line without a newline, whose last value may be cut.

A file is stored in one transaction. Standard input is stored in batches, so
that a pipe can stay open while others write; a batch with a bad row is not
stored, those before it are. Ctrl-C and SIGTERM store what has come."""

_ABOUT_EXPORT = """
`import` reads CSV and NDJSON as the same readings. InfluxDB's line protocol has
the measurement `power`, the tags device, meter, name and type, and nanoseconds.
An unknown value is an empty field, null, or left out; `import --unknown-charge`
takes an empty charge as unknown. A file of --output is there whole or not at
all, and only its owner can read a new one."""


class _PowerCommands:
    """Builds the parser: each method adds one kind of commands."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.parser = CommandParser(
            program_name(_PROGRAM, __file__),
            "Power telemetry for edge devices.",
            name=_PROGRAM,
            version=__version__,
            examples=["demo", "report edge-001 --days 7", "help register"],
        )
        self.parser.add_argument("--db", metavar="PATH", help=_DB_HELP)
        self.parser.add_variable(
            "POWER_MANAGER_DB",
            "the database if --db is not given; `demo` does not read it",
            default="power_manager.db here",
        )
        self._parse_time = functools.partial(parse_time, clock=clock)
        self._group = "making and changing"
        self._add_making_commands()
        self._group = "readings in and out"
        self._add_reading_commands()
        self._group = "showing"
        self._add_showing_commands()
        self._group = "deleting and maintaining"
        self._add_maintenance_commands()
        self.parser.add_help_commands(_PROGRAM)

    def _add(
        self,
        name: str,
        run: Callable[[_Session], str | None] | None,
        text: str,
        *examples: str,
        prints: bool = True,
    ) -> CommandParser:
        """Add a command that opens the database; `prints`: it takes --json."""
        command = self.parser.add_command(name, run, text, examples=examples, group=self._group)
        command.add_argument("--db", metavar="PATH", default=argparse.SUPPRESS, help=_DB_HELP)
        if prints:
            command.add_json()
        return command

    def _add_range(self, command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--since",
            metavar="TIME",
            type=self._parse_time,
            help="from this time on: 2026-11-28, 2026-11-28T10:00Z, today, -24h, epoch seconds",
        )
        command.add_argument(
            "--until", metavar="TIME", type=self._parse_time, help="before this time"
        )

    def _add_making_commands(self) -> None:
        command = self._add(
            "register",
            _run_register,
            "register a device, or change the values you give of a known one",
            'edge-001 "Edge Node" --target-wh 150',
            'edge-001 "Edge Node" --meter battery:Pack:50 --meter solar:Panel',
        )
        _add_device(command)
        command.add_argument("name", help="its name, to be shown")
        _add_device_values(command)
        command.add_argument(
            "--meter",
            metavar="TYPE[:NAME[:WH]]",
            type=_given_meter,
            action="append",
            default=[],
            dest="meters",
            help="a meter of it, with its capacity; a known one is changed (repeatable)",
        )
        command.add_argument(
            "--max-gap",
            metavar="TIME",
            type=parse_duration,
            help="of a new database: the longest time between two readings over which energy is "
            "still booked, such as 2h (default: 90m)",
        )
        command = self._add(
            "update-device",
            _run_update_device,
            "change the values you give of a device",
            "edge-001 --unset target-wh",
        )
        _add_device(command)
        command.add_argument("--name", help="its name, to be shown")
        _add_device_values(command)
        command.add_argument(
            "--unset",
            action="append",
            default=[],
            choices=["target-wh", "low-battery-threshold", "critical-battery-threshold"],
            help="remove the target, or return a threshold to its default",
        )
        command = self._add(
            "add-meter",
            _run_add_meter,
            "add a meter to a device",
            "edge-001 battery --name Pack --capacity-wh 50",
        )
        _add_device(command)
        types = [kind.value for kind in MeterType]
        command.add_argument("type", metavar="type", choices=types, help=", ".join(types))
        command.add_argument("--name", help="its name, to be shown (default: no name)")
        command.add_argument(
            "--capacity-wh",
            metavar="WH",
            type=parse_number,
            default=0.0,
            help="watt-hours when full (default: 0, unknown)",
        )
        command.add_argument(
            "--charge",
            metavar="PCT",
            type=_percent_or_unknown,
            default=100.0,
            help="percent until a reading brings a charge; unknown for a pack without a gauge "
            "(default: 100)",
        )
        command = self._add(
            "update-meter",
            _run_update_meter,
            "change the values you give of a meter",
            "edge-001/Pack --capacity-wh 48",
        )
        _add_meter_name(command)
        command.add_argument("--name", help="its name, to be shown")
        command.add_argument(
            "--capacity-wh",
            metavar="WH",
            type=parse_number,
            help="watt-hours when full (0: unknown)",
        )
        command.add_argument(
            "--forget-charge",
            action="store_true",
            help="its charge is unknown until a reading brings one: for a gauge that is gone",
        )
        active = command.add_mutually_exclusive_group()
        active.add_argument(
            "--active",
            action="store_true",
            default=None,
            help="include it in present figures again",
        )
        active.add_argument(
            "--inactive",
            dest="active",
            action="store_false",
            default=None,
            help="leave it out of present figures until its next reading",
        )
        command = self._add(
            "event",
            _run_event,
            "record an event",
            'edge-001 charge_start --note "panel in the sun"',
        )
        _add_device(command)
        types = [kind.value for kind in PowerEventType]
        command.add_argument("type", metavar="type", choices=types, help=", ".join(types))
        command.add_argument(
            "--value",
            metavar="X",
            type=parse_number,
            default=0.0,
            help="a number of your own (default: 0)",
        )
        command.add_argument("--note", help="a text of your own")

    def _add_reading_commands(self) -> None:
        command = self._add("log", _run_log, "store one reading", "edge-001/Pack 12.9 0.5 82")
        _add_meter_name(command)
        command.add_argument("voltage", type=_number_or_unknown, help="volts; - if unknown")
        command.add_argument(
            "current", type=_number_or_unknown, help="amperes out of the source; - if unknown"
        )
        command.add_argument(
            "charge_pct", type=_charge, nargs="?", help="percent (default: the meter's last)"
        )
        command.add_argument(
            "--timestamp", metavar="TIME", type=self._parse_time, help="when (default: now)"
        )
        self._add_import()
        self._add_export()

    def _add_import(self) -> None:
        command = self._add(
            "import",
            _run_import,
            "store the readings of a log: CSV or another delimited text, NDJSON or a JSON array",
            "edge-001/Pack readings.csv",
            "edge-001/Pack bms.csv --column current=-I:mA --time-zone Europe/Berlin --dry-run",
        )
        command.description = f"{command.description}\n{_ABOUT_IMPORT}"
        _add_meter_name(command)
        command.add_argument(
            "file", nargs="?", default="-", help="the log (default: standard input)"
        )
        command.add_argument(
            "--skip-bad", action="store_true", help="leave bad rows out instead of storing nothing"
        )
        command.add_argument(
            "--unknown-charge",
            action="store_true",
            help="an empty charge is unknown, as in what `export` writes (default: it is that of "
            "the reading before)",
        )
        command.add_argument(
            "--dry-run", action="store_true", help="say what would be done, and store nothing"
        )
        command.add_argument(
            "--column",
            action="append",
            default=[],
            metavar="NAME=[-]COLUMN[:UNIT]",
            type=_parse_column,
            help=f"which column is what: {', '.join(_MEANINGS)}; - before it turns the sign",
        )
        command.add_argument(
            "--no-header",
            action="store_true",
            help="the first line has values: --column names columns by number, from 1",
        )
        command.add_argument(
            "--only",
            metavar="COLUMN=TEXT",
            type=_parse_only,
            help="of a log of several meters, the rows that have this text in this column",
        )
        self._add_signs(command, "found")
        command.add_argument(
            "--time-zone",
            metavar="ZONE",
            type=parse_zone,
            default=argparse.SUPPRESS,
            help="of times without an offset: Europe/Berlin, UTC, local",
        )
        command.add_argument(
            "--time-format",
            metavar="FORM",
            type=_parse_time_format,
            help="of times: epoch, epoch-ms, excel, or as '%%d/%%m/%%Y %%H:%%M' (default: found)",
        )
        command.add_argument(
            "--batch",
            metavar="N",
            type=parse_count,
            help="store every N rows, and whenever a second passes without more; 0: all or none "
            f"(default: {_BATCH_ROWS} for standard input, 0 for a file)",
        )

    def _add_signs(self, command: argparse.ArgumentParser, default: str) -> None:
        command.add_argument(
            "--delimiter",
            metavar="SIGN",
            type=_parse_delimiter,
            help=f"of fields: comma, semicolon, tab, pipe (default: {default})",
        )
        command.add_argument(
            "--decimal",
            metavar="SIGN",
            choices=[".", ","],
            help=f"decimal sign, . or , (default: {default})",
        )

    def _add_export(self) -> None:
        command = self._add(
            "export",
            _run_export,
            "write a meter's readings as `import` reads them, or for InfluxDB",
            "edge-001/Pack --since -7d --output pack.csv",
            "edge-001/Pack --format influx",
            prints=False,
        )
        command.description = f"{command.description}\n{_ABOUT_EXPORT}"
        _add_meter_name(command)
        self._add_range(command)
        command.add_argument(
            "--format",
            choices=["csv", "ndjson", "influx"],
            default="csv",
            help="form of the output; influx: its line protocol (default: csv)",
        )
        command.add_argument(
            "--output", default="-", metavar="FILE", help="the file (default: standard output)"
        )
        command.add_argument(
            "--time-zone",
            metavar="ZONE",
            type=parse_zone,
            default=argparse.SUPPRESS,
            help="in which times are written: Europe/Berlin, UTC, local (default: UTC)",
        )
        self._add_signs(command, "comma and point")
        command.add_argument(
            "--wide", action="store_true", help="with wattage, device and meter too"
        )

    def _add_showing_commands(self) -> None:
        self._add_status_command()
        command = self._add("devices", _run_devices, "list the devices", "")
        _add_wide(command)
        command = self._add(
            "meters", _run_meters, "list the meters with their present values", "edge-001"
        )
        command.add_argument("device_id", nargs="?", help="the device's id (default: all)")
        _add_wide(command)
        command = self._add(
            "stats",
            _run_stats,
            "show a meter's hourly or daily statistics",
            "edge-001/Pack --days 30 --bucket day",
        )
        _add_meter_name(command)
        _add_days(command)
        command.add_argument(
            "--bucket", choices=["hour", "day"], default="hour", help="of a row (default: hour)"
        )
        _add_wide(command)
        _add_utc(command)
        self._add_events_command()
        command = self._add(
            "budget", _run_budget, "check the power budget of devices", "edge-001 edge-002"
        )
        command.description = f"{command.description}\n{_ABOUT_BUDGET}"
        _add_devices(command)
        command = self._add(
            "report",
            _run_report,
            "print a device's report, as JSON or as text",
            "edge-001 --days 30 --text",
        )
        command.description = f"{command.description}\n{_ABOUT_REPORT}"
        _add_device(command)
        _add_days(command)
        command.add_argument("--text", action="store_true", help="for a person (default: JSON)")
        _add_utc(command)

    def _add_status_command(self) -> None:
        command = self._add(
            "status", _run_status, "show how the devices are doing now", "edge-001 --watch"
        )
        command.description = f"{command.description}\n{_ABOUT_STATUS}"
        _add_devices(command)
        command.add_argument(
            "--watch",
            metavar="S",
            type=_interval,
            nargs="?",
            const=2.0,
            help="show it again every S seconds (default: 2) until Ctrl-C",
        )
        _add_utc(command)

    def _add_events_command(self) -> None:
        command = self._add(
            "events", _run_events, "list the newest events", "edge-001 --since today --follow"
        )
        command.add_argument("device_id", nargs="?", help="the device's id (default: all)")
        command.add_argument(
            "--limit",
            type=parse_count,
            metavar="N",
            help="at most so many (default: 50; with --follow: 10 before the new ones)",
        )
        command.add_argument(
            "--since", metavar="TIME", type=self._parse_time, help="from this time on"
        )
        command.add_argument(
            "--follow", action="store_true", help="print new ones as they come, until Ctrl-C"
        )
        _add_wide(command)
        _add_utc(command)

    def _add_maintenance_commands(self) -> None:
        command = self._add(
            "prune", _run_prune, "delete old readings; statistics and events stay", "90"
        )
        command.add_argument("keep_days", type=parse_number, help="days of readings to keep")
        command = self._add(
            "delete-readings",
            _run_delete_readings,
            "delete a range of a meter's readings",
            "edge-001/Pack --since 2026-11-28T10:00Z --until 2026-11-28T11:00Z",
        )
        _add_meter_name(command)
        self._add_range(command)
        _add_yes(command)
        command = self._add(
            "delete-meter",
            _run_delete_meter,
            "delete a meter with its readings and statistics",
            "edge-001/Pack",
        )
        _add_meter_name(command)
        _add_yes(command)
        command = self._add(
            "delete-device",
            _run_delete_device,
            "delete a device with all its meters and events",
            "edge-001",
        )
        _add_device(command)
        _add_yes(command)
        command = self._add(
            "backup", _run_backup, "write a consistent copy of the database", "copy.db"
        )
        command.add_argument("path", help="the copy; a file that is there is replaced")
        command = self._add(
            "restore",
            None,
            "put a backup in place of the database, even if that is damaged or missing",
            "copy.db",
        )
        command.add_argument("path", help="the backup; it stays as it is")
        self._add("check", _run_check, "look for damage; exit with 1 if there is any", "")
        command = self._add(
            "demo", _run_demo, "make a week of telemetry in a new file, and report it", ""
        )
        _add_utc(command)


def _database_of(command: str, db: str | None) -> Path:
    """The database that a command works on; only register, restore and demo may create it."""
    if command == "demo":
        names = (f"power_manager_demo{number}.db" for number in chain([""], count(2)))
        path = Path(db or next(name for name in names if not os.path.exists(name)))
        if path.exists():
            raise StorageError(path, "exists already: name a new file")
        return path
    path = Path(db or os.environ.get("POWER_MANAGER_DB") or DB_PATH)
    if command not in ("register", "restore") and not path.exists():
        raise StorageError(
            path, "no such file: name another with --db, or make one with the command `register`"
        )
    return path


def _no_device(id_: str, pm: PowerManager) -> NotFound:
    """The library's error for an unknown device in the words of the command line."""
    known = [device.id for device in pm.list_devices()]
    return unknown_id("device", id_, known, ": make it with the command `register`")


def _run(
    argv: Sequence[str] | None, clock: Callable[[], float], wait: Callable[[float], None]
) -> int:
    options = _PowerCommands(clock).parser.parse_args(argv)
    goes_on = getattr(options, "watch", None) is not None or getattr(options, "follow", False)
    with sigterm_as_exit(0 if goes_on else 128 + signal.SIGTERM):
        return _run_command(options, clock, wait)


def _run_command(
    options: argparse.Namespace, clock: Callable[[], float], wait: Callable[[float], None]
) -> int:
    path = _database_of(options.command, options.db)
    if options.command == "restore":
        restore_database(path, options.path)
        done = {"path": str(path), "restored_from": options.path}
        print(shown_json(done) if options.json else f"{path} is restored from {options.path}")
        return 0
    max_gap = getattr(options, "max_gap", None)  # of `register`
    values = {} if max_gap is None else {"max_gap": max_gap}
    with PowerManager(path, clock=clock, **values) as pm:
        session = _Session(pm, options, Screen.of(sys.stdout), wait)
        try:
            text = options.run(session)
        except NotFound as error:
            if error.kind != "device":
                raise
            raise _no_device(error.id, pm) from error
    if text is not None:
        print(text)
    return session.exit_code


def main(
    argv: Sequence[str] | None = None,
    *,
    clock: Callable[[], float] = time.time,
    wait: Callable[[float], None] = time.sleep,
) -> int:
    """Run the command line; return its exit code.

    0; 1 for an error or a finding; 2 for wrong usage; 130 for Ctrl-C. SIGTERM raises SystemExit:
    0 from a command that goes on until it is ended (--watch, --follow), 143 from any other, which
    it cuts short. `clock` returns epoch seconds, as that of PowerManager; `wait` passes the seconds
    between two rounds of --watch or --follow.
    """
    return run_program(lambda: _run(argv, clock, wait), _PROGRAM, (PowerManagerError,))


if __name__ == "__main__":
    sys.exit(main())
