"""UTC hours as whole numbers since 1970, and how far back one may still be billed."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from power_manager import SECOND_US, to_microseconds

HOUR = 3600  # seconds
DAY = 24 * HOUR
# Stripe takes timestamps of the past 35 calendar days. The oldest hour that is billed began at most
# 34 days and 23 hours ago: that leaves an hour for sending, and for clocks that differ.
BILLABLE_HOURS = 35 * 24 - 2
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def iso(hour: int) -> str:
    """The start of an hour as text.

    >>> iso(472_222)
    '2023-11-14T22:00Z'
    """
    return (_EPOCH + timedelta(hours=hour)).strftime("%Y-%m-%dT%H:%MZ")


def day_of(hour: int) -> str:
    """The UTC day that an hour is in.

    >>> day_of(472_222)
    '2023-11-14'
    """
    return (_EPOCH + timedelta(hours=hour)).strftime("%Y-%m-%d")


def shown_minute(at: float) -> str:
    """Epoch seconds as text, to the minute.

    >>> shown_minute(1_700_000_000)
    '2023-11-14T22:13Z'
    """
    return (_EPOCH + timedelta(seconds=at)).strftime("%Y-%m-%dT%H:%MZ")


def iso_second(at: int) -> str:
    """Epoch seconds as text, as Stripe's API v2 takes it.

    >>> iso_second(1_700_000_000)
    '2023-11-14T22:13:20.000Z'
    """
    return (_EPOCH + timedelta(seconds=at)).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def oldest_billable(now: float) -> int:
    """The first hour that may still be billed at that time (epoch seconds)."""
    return int(now // HOUR) - BILLABLE_HOURS


def next_hour(now: float) -> int:
    """The first hour that does not begin before that time."""
    return -int(-now // HOUR)


def seconds_of(name: str, value: Any) -> float:
    """Epoch seconds of a time as the library takes it.

    That is an aware datetime, ISO 8601 text with an offset, or epoch seconds. Raises InvalidValue
    for anything else, and for a time before 1970 or from 2200 on.

    >>> seconds_of("start", "2023-11-14T22:13:20Z")
    1700000000.0
    """
    # By the library's rule, so that every part reads times alike.
    return to_microseconds(value, name) / SECOND_US


def hour_of(name: str, value: Any) -> int:
    """The hour that a time is in; see seconds_of.

    >>> hour_of("since", "2023-11-14T22:13:20Z")
    472222
    """
    return int(seconds_of(name, value) // HOUR)
