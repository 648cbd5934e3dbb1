"""Whether the file that is open is still the one that its path names."""

from __future__ import annotations

from power_manager import PowerManager
from power_mqtt.errors import MqttError


def check_place(pm: PowerManager) -> None:
    """Raise MqttError if the path names another file, or none: what is open is nobody's."""
    if pm.is_replaced():
        raise MqttError(f"{pm.db_path} was moved, deleted or replaced: start again on the new file")
