"""A file as the first release of this tool left it: what an upgrade begins with.

The tests of the library have a copy of these tables of their own, with other rows. Both stay: a
mistake in the one would show in the other.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

_TABLES = """
CREATE TABLE devices (id TEXT PRIMARY KEY, name, shutdown_threshold, target_wh);
CREATE TABLE power_meters (
    id TEXT PRIMARY KEY, device_id, type, voltage, current_draw, capacity_wh, charge_pct, name
);
CREATE TABLE power_readings (
    id TEXT PRIMARY KEY, meter_id, voltage, current_draw, wattage, charge_pct, timestamp TEXT
);
CREATE TABLE power_events (id TEXT PRIMARY KEY, device_id, type, value, timestamp TEXT, note);
INSERT INTO devices VALUES ('old', 'Old', 3.0, NULL);
INSERT INTO power_meters
    VALUES ('old-1', 'old', 'battery', 30.0, 1.0, 50.0, 50.0, 'Old pack');
"""


def create(path: Path) -> sqlite3.Connection:
    """Make a file with the device "old" and its meter "old-1"; the caller adds readings."""
    conn = sqlite3.connect(path)
    conn.executescript(_TABLES)
    return conn
