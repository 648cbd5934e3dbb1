"""The library behind one function: the only way of a blocking call off the event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import TypeVar

from power_manager import PowerManager, StorageError
from power_service.problems import Code, retry_later
from power_service.settings import Settings

_T = TypeVar("_T")
_log = logging.getLogger("power_service")


class Lane(Enum):
    """Threads of their own: neither a writer that waits for the file nor a backup holds up a reader or the poller."""

    READ = "read"
    WRITE = "write"
    POLL = "poll"
    BACKUP = "backup"


ALERT_TYPES = ("battery", "ups")  # as the collector has them: both run empty
# The library lets one writer in at a time.
_THREADS = {Lane.READ: 4, Lane.WRITE: 1, Lane.POLL: 1, Lane.BACKUP: 1}


class Storage:
    """The open library and its threads."""

    def __init__(
        self, settings: Settings, max_waiting: int = 200, max_seconds: float = 20.0
    ) -> None:
        self.pm = PowerManager(settings.db, durability=settings.durability, alert_types=ALERT_TYPES)
        self._max_waiting, self._max_seconds = max_waiting, max_seconds
        self._waiting = dict.fromkeys(Lane, 0)
        self._threads = {
            lane: ThreadPoolExecutor(count, f"power-{lane.value}")
            for lane, count in _THREADS.items()
        }
        self.replaced = False  # somebody put another file in its place

    async def call(
        self, lane: Lane, function: Callable[..., _T], *args: object, **options: object
    ) -> _T:
        """Run a blocking call in a thread of that lane.

        Raises what it raises, and a problem where it could not even begin: then nothing has happened.
        """
        if self.replaced and lane is not Lane.POLL:
            raise retry_later(
                Code.STORAGE_UNAVAILABLE, "the database was replaced; the service restarts", 5
            )
        if self._waiting[lane] >= self._max_waiting:
            raise retry_later(Code.OVERLOADED, "too many calls are waiting; nothing was stored", 1)
        self._waiting[lane] += 1
        try:
            future = self._threads[lane].submit(functools.partial(function, *args, **options))
            waiting = asyncio.wrap_future(future)
            done, _ = await asyncio.wait({waiting}, timeout=self._max_seconds)
            if (
                not done and future.cancel()
            ):  # not begun: what has begun is waited for, so that its outcome is known
                raise retry_later(Code.OVERLOADED, "the database is busy; nothing was stored", 1)
            return await waiting
        except StorageError as error:
            _log.error("%s", error)
            raise
        finally:
            self._waiting[lane] -= 1

    def close(self) -> None:
        """Close the library; threads that are still at work end with their call."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
        self.pm.close()
