"""Statistics of closed hours, computed from the deduplicated readings.

They are computed again whenever more readings of an hour have come.

A view that adds up what is inserted would count a resent reading twice. Here a sink counts, after
storing readings, how often each hour was touched; an hour's statistics say how many touches they
have seen, and are right as long as there are no more. So any number of these can run at once, or
none: the answers are the same, only slower.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from power_fleet import sql
from power_fleet.backoff import Backoff
from power_fleet.engine import Engine, EngineError, Row, Shard, at_once, parts
from power_fleet.keep import kept
from power_fleet.schema import check_all
from power_fleet.tables import HOURLY
from power_manager import HOUR_US

LIMIT = 50_000  # hours of devices to know of at once
RECENT = 3 * 24  # hours
ALL_EVERY = 60  # of so many looks one is for all hours, the others for recent ones
TOO_LATE = (
    "%d hours of devices have readings that came when others were no longer kept: "
    "they change nothing"
)
_log = logging.getLogger("power_fleet")


@dataclass
class Closed:
    """What has been done since it began."""

    hours: int = 0  # of devices, computed
    failures: int = 0  # looks that failed
    looked_at: float = 0.0  # when the last look ended, epoch seconds; 0.0: never


async def keep_closing(
    engine: Engine,
    interval: float,
    backoff: Backoff,
    clock: Callable[[], float] = time.time,
    once: bool = False,
    closed: Closed | None = None,
) -> None:
    """Close hours every `interval` seconds until cancelled.

    With once, close all that there are and return.

    It is a process of its own: what it has to do at its first look, after days without it, must not
    hold up a sink. Any number of them may run. A failure is waited out, but with once it is raised
    as EngineError.
    """
    looks = 0
    closed = Closed() if closed is None else closed
    late = 0
    while True:
        is_recent = looks % ALL_EVERY != 0
        try:
            await asyncio.to_thread(check_all, engine)
            now_us = int(clock() * 1e6)
            done = await asyncio.to_thread(close_hours, engine, now_us, is_recent)
            if not is_recent:
                late_before = late
                late = await asyncio.to_thread(late_hours, engine, now_us)
                if late > late_before:
                    _log.warning(TOO_LATE, late)
        except EngineError as error:
            if once:
                raise
            closed.failures += 1
            await backoff.wait("hours not closed, answers are right but slower", error)
            continue
        backoff.reset()
        looks += 1
        closed.hours += done
        closed.looked_at = clock()
        if done:
            _log.info("%d hours computed", done)
        if once:
            return
        await asyncio.sleep(interval)


def close_hours(engine: Engine, now_us: int, recent: bool = False) -> int:
    """Compute the hours before the present one that lack it, or only those of three days.

    Return how many.

    Raises EngineError; then some of them may be done.
    """
    return sum(at_once(lambda shard: _close(shard, now_us, recent), engine.shards))


def late_hours(engine: Engine, now_us: int) -> int:
    """How many hours of devices have readings that came too late: others were no longer kept.

    They change nothing. Raises EngineError.
    """
    return sum(at_once(lambda shard: _late(shard, now_us), engine.shards))


def _late(shard: Shard, now_us: int) -> int:
    open_hour = kept(shard).readings.first_hour(now_us)
    if open_hour == 0:
        return 0
    (late,) = shard.select(sql.oldest_dirty(sql.EVERY), first=0, end=open_hour)
    return int(late["hours"])


def _close(shard: Shard, now_us: int, recent: bool) -> int:
    present = now_us // HOUR_US
    open_hour = kept(shard).readings.first_hour(now_us)
    if recent:
        return _close_window(shard, max(present - RECENT, open_hour), present)
    weeks = sorted(row["week"] for row in shard.select(sql.TOUCHED_WEEKS, present=present))
    done = 0
    for week in weeks:
        first = max(week * sql.WEEK, open_hour)
        done += _close_window(shard, first, min((week + 1) * sql.WEEK, present))
    return done


def _close_window(shard: Shard, first: int, end: int) -> int:
    """Compute the hours of the window that lack it; return how many those are."""
    if first >= end:
        return 0
    done = 0
    before: list[Row] = []
    while dirty := shard.select(sql.DIRTY, first=first, end=end, limit=LIMIT):
        if (
            dirty == before
        ):  # their readings are not there: they were deleted from the engine itself
            break
        for part in parts(dirty, lambda row: 2 * len(row["device_id"].encode()) + 20):
            _close_part(shard, part)
        done += len(dirty)
        before = dirty
    return done


def _close_part(shard: Shard, part: Sequence[Row]) -> None:
    """Compute these hours of devices, which are in order of time.

    Their touches were read before their readings are: what comes after them makes an hour one to do
    again.
    """
    touches = {(row["device_id"], row["hour"]): row["touches"] for row in part}
    rows = shard.select(
        shard.dialect.segments(f"{sql.THESE} AND {sql.READ_BETWEEN}", sql.THESE_HOURS),
        devices=tuple({device_id for device_id, _ in touches}),
        hours=tuple(touches),
        first=part[0]["hour"],
        end=part[-1]["hour"] + 1,
    )
    for row in rows:
        row["touches"] = touches[row["device_id"], row["hour"]]
    shard.insert("power_hourly", HOURLY, [[row[name] for name in HOURLY] for row in rows])
