"""Whether the file that is open is still the one that its path names."""

from __future__ import annotations

import os
from pathlib import Path

from power_mqtt.errors import MqttError


class Place:
    """The file that a path names now; check() says whether it still does."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._found = self._look()

    def _look(self) -> tuple[int, int] | None:
        """Its device and inode; None if there is no file, as in memory."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def check(self) -> None:
        """Raise MqttError if the path names another file, or none: what is open is nobody's."""
        if self._look() != self._found:
            raise MqttError(
                f"{self._path} was moved, deleted or replaced: start again on the new file"
            )
