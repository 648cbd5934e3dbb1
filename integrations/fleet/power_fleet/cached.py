"""What a source of a fleet remembers for some seconds, however many ask."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Settling:
    """Up to which message of the stream everything is stored.

    That is where the newest one was, so many seconds ago.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: collections.deque[tuple[float, int]] = collections.deque()

    def settled(self, newest: int) -> int:
        """The place in the stream up to which everything is stored.

        `newest` is the place of the message that was stored last.
        """
        now = self._clock()
        with self._lock:
            if not self._seen:
                self._seen.append((now, newest))  # what is there at first has been there
            if newest > self._seen[-1][1]:
                self._seen.append((now, newest))
            while len(self._seen) > 1 and self._seen[1][0] <= now - self._seconds:
                self._seen.popleft()
            return self._seen[0][1]


class Cached(Generic[_T]):
    """An answer that is kept for some seconds, however many ask."""

    def __init__(self, seconds: float, ask: Callable[[], _T]) -> None:
        self._seconds = seconds
        self._ask = ask
        self._lock = threading.Lock()
        self._answer: tuple[float, _T] | None = None

    def value(self) -> _T:
        """The answer, no older than that."""
        with self._lock:
            if self._answer is None or time.monotonic() - self._answer[0] >= self._seconds:
                self._answer = (time.monotonic(), self._ask())
            return self._answer[1]
