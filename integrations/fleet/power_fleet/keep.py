"""How long the engine keeps what was measured: readings, and the statistics of their hours.

Days are counted back from now, and whole months go: what was asked to be kept is there, and up to a
month more. The engine drops a day later than the answers count on, so that no two clocks need
agree.

An hour whose readings may be gone is never computed again: what a device sends of it afterwards
changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from power_fleet import tables
from power_fleet.engine import Engine, Row, Shard
from power_manager import HOUR_US, InvalidValue, to_microseconds

LEAST_DAYS = 7  # of readings: so long `power-fleet close` may be away before hours go uncomputed
MOST_DAYS = 36_500
READINGS, HOURS = "readings", "hours"
# What goes with which of the two. How often an hour was touched tells whether its statistics are
# all that came.
_TABLES = {READINGS: ("power_readings",), HOURS: ("power_hourly", "power_touched")}
# The engine's times end in 2106, and those of a wrong clock do not.
_DAY_OF_HOUR = f"toDate(least(intDiv(hour, 24), {tables.LAST_DAY}))"
_KEPT = "SELECT name, days, floor FROM power_keep FINAL"


@dataclass(frozen=True)
class Keep:
    """How many days are kept of one of the two; 0: for ever.

    `floor`: hours since 1970, before which something has gone by an earlier, shorter setting.
    """

    days: int = 0
    floor: int = 0

    def first_hour(self, now_us: int) -> int:
        """The first hour, since 1970, that is certainly all there."""
        if self.days == 0:
            return self.floor
        return max(now_us // HOUR_US - 24 * self.days, self.floor, 0)


@dataclass(frozen=True)
class Kept:
    """What a shard keeps of readings and of hours."""

    readings: Keep = Keep()
    hours: Keep = Keep()


def kept(shard: Shard) -> Kept:
    """What a shard keeps. Raises EngineError."""
    found = {row["name"]: _keep(row) for row in shard.select(_KEPT)}
    return Kept(found.get(READINGS, Keep()), found.get(HOURS, Keep()))


def keep(
    engine: Engine,
    readings_days: int | None = None,
    hours_days: int | None = None,
    clock: Callable[[], float] = time.time,
) -> None:
    """Keep readings, and hours, of that many days, on every shard: 0 for ever, None as it is now.

    Raises InvalidValue, before anything is changed, for less than LEAST_DAYS or more than
    MOST_DAYS, and for hours that would go before their readings; EngineError.
    """
    now_us = to_microseconds(clock(), "clock")
    _check_days("--keep-readings", readings_days)
    _check_days("--keep-hours", hours_days)
    present = [kept(shard) for shard in engine.shards]
    for was in present:
        _check_order(
            was.readings.days if readings_days is None else readings_days,
            was.hours.days if hours_days is None else hours_days,
        )
    for shard, was in zip(engine.shards, present):
        if readings_days is not None:
            _set(shard, READINGS, was.readings, readings_days, now_us)
        if hours_days is not None:
            _set(shard, HOURS, was.hours, hours_days, now_us)


def _keep(row: Row) -> Keep:
    return Keep(row["days"], row["floor"])


def _check_days(name: str, days: int | None) -> None:
    if days is not None and days != 0 and not LEAST_DAYS <= days <= MOST_DAYS:
        raise InvalidValue(
            f"{name}: expected {LEAST_DAYS} to {MOST_DAYS} days, or 0 for ever, got {days}"
        )


def _check_order(readings_days: int, hours_days: int) -> None:
    if hours_days and not 0 < readings_days <= hours_days:
        readings = f"{readings_days} days" if readings_days else "for ever"
        raise InvalidValue(
            f"--keep-hours: expected at least as long as readings are kept, which is {readings}, "
            f"got {hours_days}"
        )


def _set(shard: Shard, name: str, was: Keep, days: int, now_us: int) -> None:
    if days == was.days:
        return
    # The answers first: what they no longer count on may go.
    row = [name, days, was.first_hour(now_us), now_us]
    shard.insert("power_keep", tables.KEEP, [row])
    for table in _TABLES[name]:
        if days:
            shard.do(f"ALTER TABLE {table} MODIFY TTL {_DAY_OF_HOUR} + INTERVAL {days + 1} DAY")
        else:
            shard.do(f"ALTER TABLE {table} REMOVE TTL")
