"""What a broker shows again after it was killed: devices and meters that were cleared since.

A broker saves what it retains now and then. One that is killed comes back with what it had saved,
and shows what the file has deleted and this bridge has cleared meanwhile. The bridge listens to the
topics that it has cleared itself, and to no others. What is retained there can be another node's:
a device may have been registered there with the same id. So a device's topics are cleared again
only if its energy message names this bridge's own file.
"""

from __future__ import annotations

from collections.abc import Iterator

from power_manager import NotFound, PowerManager
from power_mqtt.counters import read_message
from power_mqtt.known import KnownTopics, Owner
from power_mqtt.topics import Topics


class Ghosts:
    """Finds what has to be cleared once more."""

    def __init__(self, pm: PowerManager, topics: Topics, known: KnownTopics) -> None:
        self._pm = pm
        self._topics = topics
        self._known = known
        self._seen: dict[str, bytes] = {}  # what was retained on topics that were cleared

    def filters(self) -> list[str]:
        """The topics to listen to: of deleted devices, and of deleted meters of the others."""
        present = {device.id for device in self._pm.list_devices()}
        filters = []
        for topic, cleared in self._known.cleared.items():
            owner = cleared.owner
            is_there = owner.device_id in present
            if owner.meter_id if is_there else topic == self._topics.energy(owner.device_id):
                filters.append(topic)
        return filters

    def arrived(self, topic: str, payload: bytes, is_retained: bool) -> bool:
        """Note what the broker retains; return whether a topic was cleared that holds something."""
        if not (is_retained and payload and topic in self._known.cleared):
            return False
        self._seen[topic] = payload
        return True

    def clear(self) -> None:
        """Have what is a ghost cleared again, with the next look. Raises StorageError."""
        again: dict[str, Owner] = {}
        for topic, payload in self._seen.items():
            if topic in self._known.cleared:
                again |= {
                    ghost: self._known.cleared[ghost].owner for ghost in self._of(topic, payload)
                }
        self._known.add(again)
        self._seen.clear()

    def _of(self, topic: str, payload: bytes) -> Iterator[str]:
        """The topics that a retained message shows to be ghosts."""
        cleared = self._known.cleared[topic]
        owner = cleared.owner
        if owner.meter_id:
            if self._has_device(owner.device_id) and not self._has_meter(owner.meter_id):
                yield topic
            return
        message = read_message(owner.device_id, payload)
        if message is None or message.file_id != cleared.file_id:
            return  # another node's
        if not self._has_device(owner.device_id):
            for other, it in self._known.cleared.items():
                if it.owner.device_id == owner.device_id:
                    yield other

    def _has_device(self, device_id: str) -> bool:
        try:
            self._pm.get_device(device_id)
        except NotFound:
            return False
        return True

    def _has_meter(self, meter_id: str) -> bool:
        try:
            self._pm.get_meter(meter_id)
        except NotFound:
            return False
        return True
