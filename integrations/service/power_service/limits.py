"""Token buckets: a rate of requests for each key, and a burst."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable


class Buckets:
    """One token bucket for each key; of more than `size`, the least recently used are dropped.

    rate: requests a second; 0: no limit. burst: the most that a bucket holds.
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        size: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._size = size
        self._clock = clock
        # By key, the bucket's level, and when it had that level.
        self._filled: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take one request from a key's bucket; return 0.0, or the seconds to wait for the next."""
        if not self._rate:
            return 0.0
        now = self._clock()
        level, at = self._filled.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate)
        wait = 0.0 if level >= 1 else (1 - level) / self._rate
        self._filled[key] = (level if wait else level - 1, now)
        if len(self._filled) > self._size:
            self._filled.popitem(last=False)
        return wait
