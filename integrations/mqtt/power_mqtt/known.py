"""A table in the file of the topics that hold something of ours at the broker.

A device can be deleted while no bridge runs. The next bridge reads here what it has to clear.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from power_manager import PowerManager

_SCHEMA = """CREATE TABLE IF NOT EXISTS mqtt_topics (
    bridge TEXT NOT NULL,     -- the name of the bridge that published it
    topic TEXT NOT NULL,
    device_id TEXT NOT NULL,  -- "" for what is of no device
    meter_id TEXT NOT NULL,   -- "" for what is of a device as a whole
    PRIMARY KEY (bridge, topic)
) WITHOUT ROWID"""


@dataclass(frozen=True)
class Owner:
    """What a topic is about; "" for none."""

    device_id: str = ""
    meter_id: str = ""


class KnownTopics:
    """The topics of one bridge that may hold something at the broker, and their owners."""

    def __init__(self, pm: PowerManager, bridge: str) -> None:
        self._pm = pm
        self._bridge = bridge
        self.owners: dict[str, Owner] = {}
        self.load()

    def load(self) -> None:
        """Read them, and add those of before: a restored file does not know them."""
        with self._pm.connection() as connection:
            connection.execute(_SCHEMA)
            sql = "SELECT topic, device_id, meter_id FROM mqtt_topics WHERE bridge = ?"
            rows = connection.execute(sql, (self._bridge,)).fetchall()
        before = self.owners
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
        with self._pm.connection() as connection:
            connection.executemany("INSERT OR REPLACE INTO mqtt_topics VALUES (?, ?, ?, ?)", rows)
        self.owners |= new

    def remove(self, topics: Iterable[str]) -> None:
        """Forget topics that hold nothing any more."""
        gone = [(self._bridge, topic) for topic in topics if topic in self.owners]
        if not gone:
            return
        with self._pm.connection() as connection:
            connection.executemany("DELETE FROM mqtt_topics WHERE bridge = ? AND topic = ?", gone)
        for _, topic in gone:
            del self.owners[topic]
