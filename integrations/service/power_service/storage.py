"""The library or the fleet behind one function, which runs blocking calls off the event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import TypeVar

from starlette.requests import Request

from power_manager import PowerManager, StorageError, to_microseconds
from power_service.fleet_source import FleetSource
from power_service.fleet_watcher import FleetWatcher
from power_service.problems import Code, Problem, retry_later
from power_service.settings import ALERT_TYPES, Settings
from power_service.source import Source
from power_service.watcher import Watcher, Watches

_T = TypeVar("_T")
_log = logging.getLogger("power_service")


class Lane(Enum):
    """Threads of its own, so that a waiting writer or a backup delays no reader and no poller."""

    READ = "read"
    WRITE = "write"
    POLL = "poll"
    BACKUP = "backup"


# One to write: the library lets one writer in at a time.
_THREADS = {Lane.READ: 4, Lane.WRITE: 1, Lane.POLL: 1, Lane.BACKUP: 1}


_NEEDS_A_FILE = (
    "this service serves a fleet, which is read-only here: write on the device, with power-manager "
    "or a service there; retire or delete devices with power-fleet"
)


class Storage:
    """The open library, or a fleet in its place, and the threads that call it."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        fleet: FleetSource | None = None,
        max_waiting: int = 200,
        max_seconds: float = 20.0,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._fleet = fleet
        self._pm: PowerManager | None = None
        self.source: Source
        if fleet is not None:
            self.source = fleet
        else:
            self.source = self._pm = PowerManager(
                settings.db, durability=settings.durability, clock=clock, alert_types=ALERT_TYPES
            )
        self._max_waiting = max_waiting
        self._max_seconds = max_seconds
        self._waiting = dict.fromkeys(Lane, 0)
        self._threads = {
            lane: ThreadPoolExecutor(count, f"power-{lane.value}")
            for lane, count in _THREADS.items()
        }
        self.replaced = False  # another file has taken its place

    @property
    def is_fleet(self) -> bool:
        """Whether a fleet is read, which is read-only here."""
        return self._fleet is not None

    @property
    def pm(self) -> PowerManager:
        """The library, to write with. Raises Problem 409 for a fleet."""
        self.check_has_file()
        assert self._pm is not None
        return self._pm

    def check_has_file(self) -> None:
        """Raise Problem 409 for a fleet, which has no file to write to."""
        if self._pm is None:
            raise Problem(Code.NEEDS_A_FILE, _NEEDS_A_FILE)

    @property
    def fleet(self) -> FleetSource:
        """The fleet. Raises Problem 404 for a file."""
        if self._fleet is None:
            raise Problem(
                Code.NO_FLEET,
                "this service serves a file: start it with --fleet or --hub to serve a fleet",
            )
        return self._fleet

    def now_us(self) -> int:
        """Microseconds since 1970, by the source's clock."""
        return to_microseconds(self._clock(), "clock")

    def make_watcher(self) -> Watches:
        """A follower of the file or the fleet."""
        if self._fleet is not None:
            return FleetWatcher(self._fleet, self._settings.fleet_seconds)
        return Watcher(self.pm, self._settings.db, self._settings.reading_seconds)

    async def call(
        self, lane: Lane, function: Callable[..., _T], *args: object, **options: object
    ) -> _T:
        """Run a blocking call in a thread of that lane.

        Raises what the call raises, and Problem 503 if the call could not begin: nothing was done.
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
            # Only a call that has not begun can be cancelled; one that has is waited for.
            if not done and future.cancel():
                raise retry_later(Code.OVERLOADED, "the database is busy; nothing was stored", 1)
            return await waiting
        except StorageError as error:
            _log.error("%s", error)
            raise
        finally:
            self._waiting[lane] -= 1

    def close(self) -> None:
        """Close the library; threads that are still in a call end with it."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
        if self._pm is not None:
            self._pm.close()


def storage_of(request: Request) -> Storage:
    """The storage of the application that a request came to."""
    storage: Storage = request.app.state.storage
    return storage
