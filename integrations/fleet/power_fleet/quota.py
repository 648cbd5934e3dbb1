"""How much of a sink's time one device may take.

A stolen device that floods the stream must not hold up the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from power_fleet.limits import BYTES_A_MINUTE, MESSAGES_A_MINUTE

MOST_DEBT = 10.0  # minutes of a share that a device may owe


@dataclass
class _Share:
    """What a device has left of its minute, as of `at` (seconds)."""

    messages: float
    size: float
    at: float


class Quota:
    """A share of messages and of bytes for each device, which is full again after a minute.

    messages and size are what a device may send in a minute (both at least 1). A device that has
    been quiet for a minute takes no memory.
    """

    def __init__(
        self,
        messages: float = MESSAGES_A_MINUTE,
        size: float = BYTES_A_MINUTE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._messages = messages
        self._size = size
        self._clock = clock
        self._shares: dict[str, _Share] = {}
        self._swept_at = clock()

    def wait_for(self, device_id: str, size: int) -> float:
        """Seconds until a message of so many bytes is within the device's share.

        0.0: it is, and is taken off the share.

        A message that is larger than a whole share is let through when the share is full.
        """
        now = self._clock()
        self._sweep(now)
        share = self._shares.setdefault(device_id, _Share(self._messages, self._size, now))
        minutes = (now - share.at) / 60.0
        share.messages = min(self._messages, share.messages + minutes * self._messages)
        share.size = min(self._size, share.size + minutes * self._size)
        share.at = now
        missing_messages = 1.0 - share.messages
        missing_size = min(size, self._size) - share.size
        if missing_messages <= 0.0 and missing_size <= 0.0:
            share.messages -= 1.0
            share.size -= size
            return 0.0
        return 60.0 * max(missing_messages / self._messages, missing_size / self._size)

    def charge(self, device_id: str, messages: float) -> None:
        """Take more off a device's share: what it has sent cost as much as so many messages.

        It may owe MOST_DEBT.
        """
        now = self._clock()
        share = self._shares.setdefault(device_id, _Share(self._messages, self._size, now))
        share.messages = max(share.messages - messages, -MOST_DEBT * self._messages)

    def _sweep(self, now: float) -> None:
        """Forget, once a minute, the devices whose share is full again."""
        if now - self._swept_at < 60.0:
            return
        self._shares = {
            device_id: share
            for device_id, share in self._shares.items()
            if not self._is_full(share, now)
        }
        self._swept_at = now

    def _is_full(self, share: _Share, now: float) -> bool:
        minutes = (now - share.at) / 60.0
        return (
            share.messages + minutes * self._messages >= self._messages
            and share.size + minutes * self._size >= self._size
        )
