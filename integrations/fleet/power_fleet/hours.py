"""Statistics of closed hours, computed from the deduplicated readings; again whenever readings of an hour have come.

A view that adds up what is inserted would count a resent reading twice. Here the sink counts, after storing readings,
how often each hour was touched; an hour's statistics say how many touches they have seen, and are right as long as
there are no more. So any number of these can run at once, or none: the answers are the same, only slower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from power_fleet import sql
from power_fleet.engine import Engine, Shard
from power_fleet.schema import HOURLY

QUESTION = 100_000  # bytes of names in one question; the engine takes 262,144 in all
LIMIT = 50_000  # hours of devices to know of at once
RECENT = 3 * 24  # hours


def close_hours(engine: Engine, now_us: int, recent: bool = False) -> int:
    """Compute the hours before the present one that lack it, or only those of three days; return how many.

    Raises EngineError; then some of them may be done.
    """
    return sum(_close(shard, now_us // sql.HOUR, recent) for shard in engine.shards)


def _close(shard: Shard, present: int, recent: bool) -> int:
    if recent:
        return _close_window(shard, present - RECENT, present)
    weeks = sorted(week for (week,) in shard.query(sql.TOUCHED_WEEKS, present=present))
    return sum(_close_window(shard, week * sql.WEEK, min((week + 1) * sql.WEEK, present)) for week in weeks)


def _close_window(shard: Shard, first: int, end: int) -> int:
    done = 0
    while dirty := shard.query(sql.DIRTY, first=first, end=end, limit=LIMIT):
        # The touches were read first: what comes after them makes an hour one to do again.
        for part in _parts(dirty):
            touches = {(device_id, hour): count for device_id, hour, count in part}
            rows = shard.query(
                sql.segments(sql.THESE_HOURS),
                devices=tuple({device_id for device_id, _ in touches}),
                hours=tuple(touches),
                first=part[0][1],
                end=part[-1][1] + 1,
            )
            shard.insert("power_hourly", HOURLY, [[*row, touches[row[0], row[2]]] for row in rows])
        done += len(dirty)
    return done


def _parts(dirty: Sequence[Sequence[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
    """The same in parts whose devices and hours can be named in one question."""
    start = size = 0
    for number, (device_id, _, _) in enumerate(dirty):
        size += 2 * len(device_id.encode()) + 20
        if size > QUESTION:
            yield dirty[start:number]
            start, size = number, 0
    yield dirty[start:]
