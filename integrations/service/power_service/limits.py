"""Token buckets: so many requests a second for each key, and some saved up."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable


class Buckets:
    """One token bucket for each key; the least recently used are forgotten."""

    def __init__(
        self,
        rate: float,
        burst: float,
        size: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate, self._burst, self._size, self._clock = rate, burst, size, clock
        self._filled: OrderedDict[str, tuple[float, float]] = (
            OrderedDict()
        )  # level, and when it was that

    def take(self, key: str) -> float:
        """Take one from a key's bucket: 0.0, or the seconds until there is one again. A rate of 0 is no limit."""
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
