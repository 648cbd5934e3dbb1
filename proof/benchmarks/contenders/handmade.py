"""Programs over the standard library's sqlite3 as one writes them by hand."""

# ruff: noqa: D102  # the protocol's methods are documented once, in base.Contender
from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

from readings import Row

from .base import METER, Contender, Reading, brute_force, report_sql


def connect(path: os.PathLike[str], mode: str) -> sqlite3.Connection:
    """A connection with the library's promise: WAL, and with mode full a sync of every commit."""
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode = wal")
    conn.execute(f"PRAGMA synchronous = {mode}")
    return conn


class Floor(Contender):
    """The least that stores a reading: one integer-keyed table, one INSERT a time, no checks."""

    modes = ("full", "normal")
    lacks = "no present state, statistics or alerts; checks nothing; a report reads every reading"
    insert = "INSERT INTO reading VALUES (?, ?, ?, ?, ?)"

    def open(self) -> None:
        self.conn = connect(self.place.folder / "floor.db", self.place.mode)
        self.conn.execute(
            """CREATE TABLE IF NOT EXISTS reading (
                meter INTEGER, time INTEGER, voltage REAL, current REAL, charge REAL,
                PRIMARY KEY (meter, time)
            ) WITHOUT ROWID"""
        )

    def log(self, voltage: float, current: float, charge: float) -> None:
        self.conn.execute(self.insert, (1, int(self.clock() * 1e6), voltage, current, charge))

    def group(self, values: Sequence[tuple[float, float, float]]) -> None:
        self.conn.execute("BEGIN IMMEDIATE")
        for value in values:
            self.clock.tick()
            self.log(*value)
        self.conn.execute("COMMIT")

    def ready(self, row: Row) -> Any:
        time, voltage, current, charge = row
        return 1, int(time * 1e6), voltage, current, charge

    def bulk(self, ready: Iterable[Any]) -> None:
        self.conn.execute("BEGIN IMMEDIATE")
        self.conn.executemany(self.insert, ready)
        self.conn.execute("COMMIT")

    def history(self, since: float) -> Sequence[Any]:
        sql = """SELECT time, voltage, current, charge FROM reading
            WHERE meter = 1 AND time > ? ORDER BY time"""
        return [
            Reading(METER, us / 1e6, *rest) for us, *rest in self.conn.execute(sql, (since * 1e6,))
        ]

    def report(self, since: float) -> tuple[float, ...]:
        sql = report_sql("reading", "meter = 1 AND time > ?", 1e6)
        return tuple(self.conn.execute(sql, (since * 1e6,)).fetchone())

    def close(self) -> None:
        self.conn.close()


class Floor5(Floor):
    """The library's five statements alone: read the meter, add the reading, its hour, the state."""

    lacks = "no energy, alerts, late readings or checks; for what it measures, one reading, only"

    def open(self) -> None:
        super().open()
        self.conn.execute(
            """CREATE TABLE meter (
                key INTEGER PRIMARY KEY, id TEXT UNIQUE, voltage REAL, current REAL, charge REAL,
                updated INTEGER, level INTEGER, device INTEGER
            )"""
        )
        self.conn.execute("INSERT INTO meter VALUES (1, ?, 0.0, 0.0, 100.0, 0, 0, 1)", (METER,))
        self.conn.execute(
            """CREATE TABLE hourly (
                meter INTEGER, hour INTEGER, count INTEGER, watts REAL, low REAL, high REAL,
                least REAL, most REAL, energy REAL, PRIMARY KEY (meter, hour)
            ) WITHOUT ROWID"""
        )

    def log(self, voltage: float, current: float, charge: float) -> None:
        execute = self.conn.execute
        us = int(self.clock() * 1e6)
        watts = voltage * current
        outermost = not self.conn.in_transaction
        if outermost:
            execute("BEGIN IMMEDIATE")
        key, volts, amperes, updated = execute(
            "SELECT key, voltage, current, updated FROM meter WHERE id = ?", (METER,)
        ).fetchone()
        energy = (watts + volts * amperes) * (us - updated) / 7.2e9
        execute(self.insert, (key, us, voltage, current, charge))
        execute(
            """INSERT INTO hourly VALUES (?1, ?2, 1, ?3, ?3, ?3, ?4, ?4, ?5)
            ON CONFLICT (meter, hour) DO UPDATE SET
                count = count + 1, watts = watts + ?3, low = min(low, ?3), high = max(high, ?3),
                least = min(least, ?4), most = max(most, ?4), energy = energy + ?5""",
            (key, us // 3_600_000_000, watts, charge, energy),
        )
        execute(
            """UPDATE meter SET voltage = ?, current = ?, charge = ?, updated = ?, level = ?
            WHERE key = ?""",
            (voltage, current, charge, us, 0, key),
        )
        if outermost:
            execute("COMMIT")


class Naive(Contender):
    """The layout that most people write first; as sqlite3 comes: a rollback journal, synced."""

    lacks = (
        "ids and times are text, the key is an index beside the table; "
        "opens the file for every call"
    )

    def open(self) -> None:
        self.path = self.place.folder / "naive.db"
        with self.connection() as conn:
            conn.executescript(
                """CREATE TABLE IF NOT EXISTS power_readings (
                    id TEXT PRIMARY KEY, meter_id TEXT, voltage REAL, current_draw REAL,
                    wattage REAL, charge_pct REAL, timestamp TEXT
                );
                CREATE INDEX IF NOT EXISTS by_meter ON power_readings (meter_id, timestamp);"""
            )

    @contextlib.contextmanager
    def connection(self) -> Any:
        """One call's own connection, and its transaction."""
        conn = sqlite3.connect(self.path)
        try:
            with conn:
                yield conn
        finally:
            conn.close()

    def _fields(self, row: Row) -> tuple[Any, ...]:
        time, voltage, current, charge = row
        when = datetime.fromtimestamp(time, timezone.utc).isoformat()
        return os.urandom(16).hex(), METER, voltage, current, voltage * current, charge, when

    def log(self, voltage: float, current: float, charge: float) -> None:
        self.bulk([(self.clock(), voltage, current, charge)])

    def group(self, values: Sequence[tuple[float, float, float]]) -> None:
        def ticking() -> Iterable[Row]:
            for value in values:
                self.clock.tick()
                yield (self.clock(), *value)

        self.bulk(ticking())

    def bulk(self, ready: Iterable[Any]) -> None:
        with self.connection() as conn:
            conn.executemany(
                "INSERT INTO power_readings VALUES (?, ?, ?, ?, ?, ?, ?)", map(self._fields, ready)
            )

    def _rows(self, since: float) -> list[Any]:
        sql = """SELECT timestamp, voltage, current_draw, charge_pct FROM power_readings
            WHERE meter_id = ? AND timestamp > ? ORDER BY timestamp"""
        with self.connection() as conn:
            when = datetime.fromtimestamp(since, timezone.utc).isoformat()
            return list(conn.execute(sql, (METER, when)))

    def history(self, since: float) -> Sequence[Any]:
        return [
            Reading(METER, datetime.fromisoformat(when).timestamp(), *values)
            for when, *values in self._rows(since)
        ]

    def report(self, since: float) -> tuple[float, ...]:
        return brute_force(
            (datetime.fromisoformat(when).timestamp(), voltage, current, charge)
            for when, voltage, current, charge in self._rows(since)
        )
