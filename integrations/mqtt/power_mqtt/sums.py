"""A table in the file of the energy sums of older hours, so that a start need not read them again.

They are a copy of what the file's statistics say. Whoever loads them compares them with the file's
totals first, because readings may have changed since they were saved.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from power_manager import PowerManager

# Versions: 1 is the tables below.
_TABLES = (
    """CREATE TABLE IF NOT EXISTS mqtt_sums (
        device_id TEXT PRIMARY KEY,
        before_us INTEGER NOT NULL, -- the hours that begin before it are in the sums
        used_wh REAL NOT NULL       -- what the device used, hour by hour
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS mqtt_meter_sums (
        device_id TEXT NOT NULL REFERENCES mqtt_sums ON DELETE CASCADE,
        position INTEGER NOT NULL,  -- in the order of the device's meters
        meter_id TEXT NOT NULL,
        out_wh REAL NOT NULL,
        in_wh REAL NOT NULL,
        PRIMARY KEY (device_id, position)
    ) WITHOUT ROWID""",
)
_PRESENT_SQL = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'mqtt_sums'"
_METERS_SQL = """SELECT meter_id, out_wh, in_wh FROM mqtt_meter_sums
    WHERE device_id = ? ORDER BY position"""
_OTHERS_SQL = "DELETE FROM mqtt_sums WHERE device_id NOT IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True)
class MeterSum:
    """The energy of one meter in the older hours."""

    meter_id: str
    out_wh: float
    in_wh: float


@dataclass(frozen=True)
class DeviceSum:
    """The energy of one device, and of its meters in their order, in the hours before before_us."""

    device_id: str
    before_us: int
    used_wh: float
    meters: tuple[MeterSum, ...]


def load_sum(pm: PowerManager, device_id: str) -> DeviceSum | None:
    """What was saved of a device; None if nothing was. Raises StorageError."""
    with pm.connection() as conn:
        (is_there,) = conn.execute(_PRESENT_SQL).fetchone()
        if not is_there:
            return None
        sql = "SELECT before_us, used_wh FROM mqtt_sums WHERE device_id = ?"
        row = conn.execute(sql, (device_id,)).fetchone()
        if row is None:
            return None
        before_us, used_wh = row
        meters = [MeterSum(*row) for row in conn.execute(_METERS_SQL, (device_id,))]
    return DeviceSum(device_id, before_us, used_wh, tuple(meters))


def save_sums(pm: PowerManager, sums: Iterable[DeviceSum], present: Iterable[str]) -> None:
    """Save the sums of devices, and forget those of devices that are not present.

    Raises StorageError.
    """
    with pm.connection() as conn:
        for statement in _TABLES:
            conn.execute(statement)
        conn.execute(_OTHERS_SQL, (json.dumps(sorted(present)),))
        for one in sums:
            _save(conn, one)


def _save(conn: sqlite3.Connection, one: DeviceSum) -> None:
    conn.execute("DELETE FROM mqtt_sums WHERE device_id = ?", (one.device_id,))
    values = (one.device_id, one.before_us, one.used_wh)
    conn.execute("INSERT INTO mqtt_sums VALUES (?, ?, ?)", values)
    rows = [
        (one.device_id, position, it.meter_id, it.out_wh, it.in_wh)
        for position, it in enumerate(one.meters)
    ]
    conn.executemany("INSERT INTO mqtt_meter_sums VALUES (?, ?, ?, ?, ?)", rows)
