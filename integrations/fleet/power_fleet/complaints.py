"""What devices do wrong, said once.

A device that sends a million wrong messages must not fill a sink's log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

SAID_EVERY = 3600.0  # seconds between two lines about one device
_log = logging.getLogger("power_fleet")


@dataclass
class _Said:
    at: float
    silent: int = 0  # complaints since then


class Complaints:
    """Logs the first complaint about a device, and counts those of the hour that follows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, _Said] = {}

    def say(self, device_id: str, what: str) -> None:
        """Log it, or count it.

        A line has the number of those that were not logged since the last one.
        """
        now = self._clock()
        said = self._said.get(device_id)
        if said is not None and now - said.at < SAID_EVERY:
            said.silent += 1
            return
        more = f" (and {said.silent} other messages since the last such line)" if said else ""
        _log.error("device %r: %s%s", device_id, what, more)
        self._said[device_id] = _Said(now)
        for other in [name for name, line in self._said.items() if now - line.at >= SAID_EVERY]:
            del self._said[other]
