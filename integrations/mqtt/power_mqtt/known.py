"""Tables in the file of the topics that hold something of ours at the broker, or held it.

A device can be deleted while no bridge runs. The next bridge reads here what it has to clear. What
was cleared stays noted, because a broker that is killed comes back with what it saved before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from power_manager import PowerManager

# Versions: 1 is the tables below.
_TABLES = (
    """CREATE TABLE IF NOT EXISTS mqtt_topics (
        bridge TEXT NOT NULL,     -- the name of the bridge that published it
        topic TEXT NOT NULL,
        device_id TEXT NOT NULL,  -- "" for what is of no device
        meter_id TEXT NOT NULL,   -- "" for what is of a device as a whole
        PRIMARY KEY (bridge, topic)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS mqtt_cleared (
        number INTEGER PRIMARY KEY, -- in the order of clearing
        bridge TEXT NOT NULL,
        topic TEXT NOT NULL,
        device_id TEXT NOT NULL,
        meter_id TEXT NOT NULL,
        file_id TEXT NOT NULL,      -- of the file when it was cleared
        UNIQUE (bridge, topic)
    )""",
)
_OWNERS_SQL = "SELECT topic, device_id, meter_id FROM mqtt_topics WHERE bridge = ?"
_CLEARED_SQL = """SELECT topic, device_id, meter_id, file_id FROM mqtt_cleared WHERE bridge = ?
    ORDER BY number"""
_NOTE_SQL = """INSERT OR REPLACE INTO mqtt_cleared (bridge, topic, device_id, meter_id, file_id)
    VALUES (?, ?, ?, ?, ?)"""
_MOST_CLEARED = 500  # topics that a bridge remembers after it has cleared them: the last ones


@dataclass(frozen=True)
class Owner:
    """What a topic is about; "" for none."""

    device_id: str = ""
    meter_id: str = ""


@dataclass(frozen=True)
class Cleared:
    """What a cleared topic was about, and the file_id of the file at that time."""

    owner: Owner
    file_id: str


class KnownTopics:
    """The topics of one bridge that may hold something at the broker, and their owners.

    `cleared`: the last topics that hold nothing any more, in the order of clearing.
    """

    def __init__(self, pm: PowerManager, bridge: str) -> None:
        self._pm = pm
        self._bridge = bridge
        self.owners: dict[str, Owner] = {}
        self.cleared: dict[str, Cleared] = {}
        self.load()

    def load(self) -> None:
        """Read them, and add those of before: a restored file does not know them."""
        with self._pm.connection() as connection:
            for statement in _TABLES:
                connection.execute(statement)
            rows = connection.execute(_OWNERS_SQL, (self._bridge,)).fetchall()
            cleared = connection.execute(_CLEARED_SQL, (self._bridge,)).fetchall()
        before = self.owners
        self.cleared = {
            topic: Cleared(Owner(device_id, meter_id), file_id)
            for topic, device_id, meter_id, file_id in cleared
        }
        self.owners = {topic: Owner(device_id, meter_id) for topic, device_id, meter_id in rows}
        self.add(before)

    def add(self, owners: dict[str, Owner]) -> None:
        """Note topics before anything is published there; known ones cost nothing."""
        new = {topic: owner for topic, owner in owners.items() if topic not in self.owners}
        if not new:
            return
        rows = [
            (self._bridge, topic, owner.device_id, owner.meter_id) for topic, owner in new.items()
        ]
        again = [topic for topic in new if topic in self.cleared]
        with self._pm.connection() as connection:
            connection.executemany("INSERT OR REPLACE INTO mqtt_topics VALUES (?, ?, ?, ?)", rows)
            self._forget_cleared(connection, again)
        self.owners |= new
        for topic in again:
            del self.cleared[topic]

    def remove(self, topics: Iterable[str]) -> None:
        """Note that topics hold nothing any more, as far as the broker has saved that."""
        gone = {topic: self.owners[topic] for topic in topics if topic in self.owners}
        if not gone:
            return
        file_id = self._pm.file_id
        keys = [(self._bridge, topic) for topic in gone]
        rows = [
            (self._bridge, topic, owner.device_id, owner.meter_id, file_id)
            for topic, owner in gone.items()
        ]
        oldest = list(self.cleared)[: max(len(self.cleared) + len(gone) - _MOST_CLEARED, 0)]
        with self._pm.connection() as connection:
            connection.executemany("DELETE FROM mqtt_topics WHERE bridge = ? AND topic = ?", keys)
            connection.executemany(_NOTE_SQL, rows)
            self._forget_cleared(connection, oldest)
        for topic in oldest:
            del self.cleared[topic]
        for topic, owner in gone.items():
            del self.owners[topic]
            self.cleared[topic] = Cleared(owner, file_id)

    def forget(self, topics: Iterable[str]) -> None:
        """Note that what topics hold is no longer ours."""
        keys = [(self._bridge, topic) for topic in topics if topic in self.owners]
        if not keys:
            return
        with self._pm.connection() as connection:
            connection.executemany("DELETE FROM mqtt_topics WHERE bridge = ? AND topic = ?", keys)
        for _, topic in keys:
            del self.owners[topic]

    def _forget_cleared(self, connection: sqlite3.Connection, topics: Iterable[str]) -> None:
        keys = [(self._bridge, topic) for topic in topics]
        connection.executemany("DELETE FROM mqtt_cleared WHERE bridge = ? AND topic = ?", keys)
