"""What `power-mqtt publish` is asked for: which file, which devices, and under which topics."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from power_mqtt.discovery import DEFAULT_PREFIX as DISCOVERY_PREFIX
from power_mqtt.parts import Rules
from power_mqtt.topics import Topics

DEFAULT_PREFIX = "power"


@dataclass(frozen=True)
class Options:
    """What is published, and how."""

    db: Path
    name: str  # the bridge's own level in its topic
    key: str = "mqtt"  # the bridge's name in the file: for its cursor and its topics
    prefix: str = DEFAULT_PREFIX
    device_ids: tuple[str, ...] = ()  # empty: all devices
    discovery: str | None = (
        DISCOVERY_PREFIX  # prefix of Home Assistant's topics; None: no discovery
    )
    rules: Rules = field(default_factory=Rules)

    def wants(self, device_id: str) -> bool:
        """Whether that device is published."""
        return not self.device_ids or device_id in self.device_ids

    def topics(self) -> Topics:
        """The topics of this bridge."""
        return Topics(self.prefix, self.name)

    def is_for_one_device(self) -> bool:
        """Whether the bridge publishes one device only, whose availability is then its own."""
        return len(self.device_ids) == 1

    def availability(self) -> str:
        """The topic of the bridge's `online` and of its last will.

        A connection has one last will. A bridge for one device uses that device's topic.
        """
        if self.is_for_one_device():
            return self.topics().availability(self.device_ids[0])
        return self.topics().bridge()
