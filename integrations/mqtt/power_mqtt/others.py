"""Devices that another node publishes too: what it retains is not ours to clear.

A device that has moved to another node is published there under the same id. When it is deleted
here, its topics hold what that node says of it. The energy message names the file that it is from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from power_manager import PowerManager, printable
from power_mqtt.counters import counted_lines, read_message
from power_mqtt.known import KnownTopics, Owner
from power_mqtt.topics import Topics

_log = logging.getLogger("power_mqtt")


class Others:
    """Knows by the energy messages which devices another node publishes."""

    def __init__(self, pm: PowerManager, topics: Topics, known: KnownTopics) -> None:
        self._pm = pm
        self._topics = topics
        self._known = known
        self._lines: set[str] = set()  # the file_ids of this file before, as far as is known
        self._retained: set[str] = set()  # devices of which the broker retains another's message
        self._live: set[str] = set()  # devices of which one has come meanwhile

    def restored(self, file_id: str) -> None:
        """A backup was restored into the file, which had that file_id before."""
        self._lines.add(file_id)

    def filters(self, listened: Iterable[str]) -> list[str]:
        """The energy messages of devices that are gone, but for topics that are listened to."""
        devices = {owner.device_id for owner in self._known.owners.values() if owner.device_id}
        topics = {self._topics.energy(device_id) for device_id in devices}
        return sorted(topics & self._known.owners.keys() - set(listened))

    def arrived(self, topic: str, payload: bytes, is_retained: bool) -> None:
        """Note whose energy message that is."""
        owner = self._known.owners.get(topic)
        if owner is None or topic != self._topics.energy(owner.device_id):
            return
        message = read_message(owner.device_id, payload)
        if message is None or self._is_ours(message.file_id):
            self._retained.discard(owner.device_id)
        elif is_retained:
            self._retained.add(owner.device_id)
        else:
            self._live.add(owner.device_id)  # ours may come after it: both publish now

    def _is_ours(self, file_id: str) -> bool:
        if file_id == self._pm.file_id or file_id in self._lines:
            return True
        self._lines |= counted_lines(self._pm)
        return file_id in self._lines

    def publish(self, owner: Owner) -> bool:
        """Whether what is retained about that is another node's. A meter's id is no other's."""
        return not owner.meter_id and owner.device_id in self._retained | self._live

    def leave(self, topics: Iterable[str]) -> None:
        """Forget topics of devices that are gone here and published there. Raises StorageError."""
        topics = list(topics)
        devices = sorted({self._known.owners[topic].device_id for topic in topics})
        self._known.forget(topics)
        for device_id in devices:
            _log.warning(
                "%s: another node publishes this device too: its topics are not cleared",
                printable(device_id),
            )
