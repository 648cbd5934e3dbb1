"""Devices of a file that the stream refuses: each waits by itself, and the others go on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from power_fleet.backoff import Backoff

MOST_SECONDS = 60.0  # that a device waits before it is tried again
_log = logging.getLogger("power_fleet")


class Aside:
    """Which devices are left out for now, each for twice as long as the time before.

    Each is logged once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waits: dict[str, Backoff] = {}
        self._until: dict[str, float] = {}  # by the clock

    def __bool__(self) -> bool:
        return bool(self._waits)

    def names(self) -> set[str]:
        """The devices whose time is not over."""
        now = self._clock()
        return {device_id for device_id, until in self._until.items() if now < until}

    def seconds(self) -> float:
        """Until the first of them is to be tried again; 0.0 where one is now, or there is none."""
        return max(min(self._until.values(), default=0.0) - self._clock(), 0.0)

    def put(self, device_id: str, error: BaseException) -> None:
        """Leave a device out for a while."""
        is_new = device_id not in self._waits
        wait = self._waits.setdefault(device_id, Backoff(most=MOST_SECONDS)).next()
        self._until[device_id] = self._clock() + wait
        _log.log(
            logging.WARNING if is_new else logging.DEBUG,
            "device %r: not sent, kept in the file, while others are: %s",
            device_id,
            str(error) or type(error).__name__,
        )

    def take_back(self, device_id: str) -> None:
        """The stream takes it again."""
        if self._waits.pop(device_id, None) is not None:
            del self._until[device_id]
            _log.warning("device %r: it is sent again", device_id)
