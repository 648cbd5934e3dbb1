"""How long to wait after a failure, and what is said of it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

_log = logging.getLogger("power_fleet")


class Backoff:
    """Waiting after failures in a row.

    Twice as long each time, up to a limit, and never the same for all.

    A failure is said once, not again for as long as it lasts: an outage of weeks must not wear out
    a device's flash.
    """

    def __init__(
        self, first: float = 0.5, most: float = 60.0, chance: Callable[[], float] = random.random
    ) -> None:
        self._first, self._most, self._chance, self._failures = first, most, chance, 0
        self._said = ""

    def reset(self) -> None:
        """It works again."""
        if self._said:
            _log.warning("it works again, after %d failures", self._failures)
        self._failures, self._said = 0, ""

    def next(self) -> float:
        """Seconds to wait now, from half of the time to all of it."""
        wait: float = min(self._most, self._first * 2 ** min(self._failures, 30))
        self._failures += 1
        return wait * (0.5 + self._chance() / 2)

    async def wait(self, what: str, error: BaseException) -> None:
        """Wait out one failure."""
        seconds, text = self.next(), str(error) or type(error).__name__
        _log.log(
            logging.DEBUG if text == self._said else logging.WARNING,
            "%s, again in %.1f s: %s",
            what,
            seconds,
            text,
        )
        self._said = text
        await asyncio.sleep(seconds)
