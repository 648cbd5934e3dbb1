"""What this package keeps in the file: items to tell, each way's position, alerts that stand."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from power_manager import AlertLevel, PowerManager

# Each row belongs to one follower, so that several power-notify can share a file.
_SCHEMA = (
    # The line of history that the rows belong to: a restored backup is another one.
    """CREATE TABLE IF NOT EXISTS power_notify_followers (
        follower TEXT PRIMARY KEY,
        file_id TEXT NOT NULL
    )""",
    # What is to be told; a row is deleted when every way has taken it.
    """CREATE TABLE IF NOT EXISTS power_notify_items (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        follower TEXT NOT NULL,
        kind TEXT NOT NULL,           -- an event's type, or recovered, silent, back, deleted
        is_reminder INTEGER NOT NULL, -- the alert was told before
        device_id TEXT NOT NULL,
        device_name TEXT NOT NULL,
        meter_id TEXT,
        meter_label TEXT,             -- as in texts, also when the meter is gone
        value REAL,                   -- charge in % (NULL: not known), s of silence, or the event's
        at TEXT NOT NULL,             -- ISO 8601, UTC
        note TEXT
    )""",
    # The newest item that each way has taken. A way is named by a digest of its URL.
    """CREATE TABLE IF NOT EXISTS power_notify_ways (
        follower TEXT NOT NULL,
        way TEXT NOT NULL,
        position INTEGER NOT NULL,
        PRIMARY KEY (follower, way)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS power_notify_alerts (
        follower TEXT NOT NULL,
        meter_id TEXT NOT NULL,
        level TEXT NOT NULL,          -- low, critical
        since TEXT NOT NULL,          -- when the level began
        seen TEXT NOT NULL,           -- the last time at which it is known to have stood
        is_told INTEGER NOT NULL,     -- it was told, so that its end is told too
        told_at REAL NOT NULL,        -- epoch seconds; reminders go by it
        device_id TEXT NOT NULL,      -- these three for the time when the meter is deleted
        device_name TEXT NOT NULL,
        meter_label TEXT NOT NULL,
        PRIMARY KEY (follower, meter_id)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS power_notify_silent (
        follower TEXT NOT NULL,
        device_id TEXT NOT NULL,
        heard TEXT NOT NULL,          -- the times of its meters' states when it fell silent
        since TEXT NOT NULL,          -- the newest of them
        PRIMARY KEY (follower, device_id)
    ) WITHOUT ROWID""",
)


@dataclass(frozen=True)
class Item:
    """One thing that people are told.

    `value` is the charge in % (None: not known), the seconds of silence, or the event's own value.
    """

    kind: str
    device_id: str
    device_name: str
    at: str
    value: float | None = 0.0
    meter_id: str | None = None
    meter_label: str | None = None
    note: str | None = None
    is_reminder: bool = False
    sequence: int = 0  # 0: it is not in the file


@dataclass(frozen=True)
class Standing:
    """An alert that stands for a meter."""

    level: AlertLevel
    since: str
    seen: str
    is_told: bool
    told_at: float
    device_id: str
    device_name: str
    meter_label: str


@dataclass(frozen=True)
class Silence:
    """A device that has fallen silent."""

    heard: str
    since: str


@dataclass
class State:
    """What one follower knows, by meter and by device."""

    alerts: dict[str, Standing]
    silent: dict[str, Silence]


class Store:
    """The rows of one follower in the file of `pm`."""

    def __init__(self, pm: PowerManager, follower: str) -> None:
        self._pm = pm
        self.follower = follower

    def open(self, file_id: str) -> bool:
        """Make missing tables; return whether the rows belonged to another line of history.

        They then belong to this one.
        """
        with self._pm.connection() as conn:
            _drop_alerts_of_before(conn)
            for statement in _SCHEMA:
                conn.execute(statement)
            sql = "SELECT file_id FROM power_notify_followers WHERE follower = ?"
            known = [row["file_id"] for row in _rows(conn, sql, self.follower)]
            sql = "INSERT OR REPLACE INTO power_notify_followers (follower, file_id) VALUES (?, ?)"
            conn.execute(sql, (self.follower, file_id))
        return known not in ([], [file_id])

    def load(self) -> State:
        """Read which alerts stand, and which devices are silent."""
        with self._pm.connection() as conn:
            sql = "SELECT * FROM power_notify_alerts WHERE follower = ?"
            alerts = {row["meter_id"]: _standing_of(row) for row in _rows(conn, sql, self.follower)}
            sql = "SELECT * FROM power_notify_silent WHERE follower = ?"
            silent = {
                row["device_id"]: Silence(row["heard"], row["since"])
                for row in _rows(conn, sql, self.follower)
            }
        return State(alerts, silent)

    def add(self, items: Sequence[Item], state: State) -> None:
        """Store new items and the state that goes with them, in the caller's transaction."""
        with self._pm.connection() as conn:
            conn.executemany(
                """INSERT INTO power_notify_items
                (follower, kind, is_reminder, device_id, device_name, meter_id, meter_label,
                value, at, note) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                [_row_of(self.follower, item) for item in items],
            )
            conn.execute("DELETE FROM power_notify_alerts WHERE follower = ?", (self.follower,))
            conn.executemany(
                """INSERT INTO power_notify_alerts
                (follower, meter_id, level, since, seen, is_told, told_at, device_id, device_name,
                meter_label) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                [
                    (
                        self.follower,
                        meter_id,
                        str(alert.level),
                        alert.since,
                        alert.seen,
                        int(alert.is_told),
                        alert.told_at,
                        alert.device_id,
                        alert.device_name,
                        alert.meter_label,
                    )
                    for meter_id, alert in state.alerts.items()
                ],
            )
            conn.execute("DELETE FROM power_notify_silent WHERE follower = ?", (self.follower,))
            conn.executemany(
                """INSERT INTO power_notify_silent (follower, device_id, heard, since)
                VALUES (?, ?, ?, ?)""",
                [
                    (self.follower, device_id, silence.heard, silence.since)
                    for device_id, silence in state.silent.items()
                ],
            )

    def set_ways(self, ways: Iterable[str]) -> None:
        """Set which ways there are.

        A new way begins with what happens from now on. If other ways are no longer given, it begins
        with what the slowest of them has not taken: a URL with a changed password is a new way.
        """
        with self._pm.connection() as conn:
            known = self._positions(conn)
            given = list(ways)
            dropped = [position for way, position in known.items() if way not in given]
            start = min(dropped, default=self._newest(conn))
            sql = "INSERT INTO power_notify_ways (follower, way, position) VALUES (?, ?, ?)"
            conn.executemany(
                sql, [(self.follower, way, start) for way in given if way not in known]
            )
            sql = "DELETE FROM power_notify_ways WHERE follower = ? AND way = ?"
            conn.executemany(sql, [(self.follower, way) for way in known if way not in given])
            self._forget_taken(conn)

    def waiting(self, way: str, limit: int = 1000) -> list[Item]:
        """What a way has not taken yet, oldest first."""
        with self._pm.connection() as conn:
            sql = """SELECT * FROM power_notify_items WHERE follower = ? AND sequence > ?
                ORDER BY sequence LIMIT ?"""
            position = self._positions(conn).get(way, 0)
            return [_item_of(row) for row in _rows(conn, sql, self.follower, position, limit)]

    def take(self, way: str, sequence: int) -> None:
        """Note that a way has taken all items up to this one; delete what all have taken."""
        with self._pm.connection() as conn:
            sql = "UPDATE power_notify_ways SET position = ? WHERE follower = ? AND way = ?"
            conn.execute(sql, (sequence, self.follower, way))
            self._forget_taken(conn)

    def skip_all(self) -> int:
        """Drop all that waits, for every way; return how many items were dropped."""
        with self._pm.connection() as conn:
            sql = "DELETE FROM power_notify_items WHERE follower = ?"
            count = conn.execute(sql, (self.follower,)).rowcount
            sql = "UPDATE power_notify_ways SET position = ? WHERE follower = ?"
            conn.execute(sql, (self._newest(conn), self.follower))
        return count

    def _positions(self, conn: sqlite3.Connection) -> dict[str, int]:
        sql = "SELECT way, position FROM power_notify_ways WHERE follower = ?"
        return {row["way"]: row["position"] for row in _rows(conn, sql, self.follower)}

    def _newest(self, conn: sqlite3.Connection) -> int:
        """The number of the newest item there ever was, of any follower."""
        sql = "SELECT seq FROM sqlite_sequence WHERE name = 'power_notify_items'"
        return max((int(row["seq"]) for row in _rows(conn, sql)), default=0)

    def _forget_taken(self, conn: sqlite3.Connection) -> None:
        slowest = min(self._positions(conn).values(), default=0)
        sql = "DELETE FROM power_notify_items WHERE follower = ? AND sequence <= ?"
        conn.execute(sql, (self.follower, slowest))


def _drop_alerts_of_before(conn: sqlite3.Connection) -> None:
    """Drop a table of a development version; alerts that stand are told once more."""
    sql = "SELECT name FROM pragma_table_info('power_notify_alerts')"
    columns = [name for (name,) in conn.execute(sql)]
    if columns and "device_id" not in columns:
        conn.execute("DROP TABLE power_notify_alerts")


def _rows(conn: sqlite3.Connection, sql: str, *values: object) -> list[sqlite3.Row]:
    """The rows of a query, with columns by name."""
    cursor = conn.cursor()
    cursor.row_factory = sqlite3.Row  # of this cursor only: the connection is the library's
    return cursor.execute(sql, values).fetchall()


def _standing_of(row: sqlite3.Row) -> Standing:
    return Standing(
        level=AlertLevel(row["level"]),
        since=row["since"],
        seen=row["seen"],
        is_told=bool(row["is_told"]),
        told_at=row["told_at"],
        device_id=row["device_id"],
        device_name=row["device_name"],
        meter_label=row["meter_label"],
    )


def _row_of(follower: str, item: Item) -> tuple[object, ...]:
    return (
        follower,
        item.kind,
        int(item.is_reminder),
        item.device_id,
        item.device_name,
        item.meter_id,
        item.meter_label,
        item.value,
        item.at,
        item.note,
    )


def _item_of(row: sqlite3.Row) -> Item:
    return Item(
        kind=row["kind"],
        device_id=row["device_id"],
        device_name=row["device_name"],
        at=row["at"],
        value=row["value"],
        meter_id=row["meter_id"],
        meter_label=row["meter_label"],
        note=row["note"],
        is_reminder=bool(row["is_reminder"]),
        sequence=row["sequence"],
    )
