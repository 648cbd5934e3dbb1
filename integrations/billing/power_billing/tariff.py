"""Tariffs: periods that divide the hours of the week, each with a meter and a price."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from datetime import datetime, tzinfo

from power_billing.hours import HOUR
from power_billing.money import Price
from power_manager import InvalidValue, parse_zone

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WEEK_HOURS = 7 * 24
# The machine's own zone may be another one tomorrow, and bills must not follow it.
_OWN_ZONE = ("local", "localtime")


@dataclass(frozen=True)
class Period:
    """Hours of the week with a meter and a price of their own.

    hours: of the local week, from 0 to 167; 0 is Monday 00:00.
    """

    name: str
    price: Price
    hours: frozenset[int]


@dataclass(frozen=True)
class Tariff:
    """Periods that have every hour of the week between them; `zone` names whose week it is."""

    zone: str
    periods: tuple[Period, ...]

    def period_of(self, hour: int) -> str:
        """The name of the period that an hour (UTC, since 1970) begins in."""
        local = datetime.fromtimestamp(hour * HOUR, zone_of(self.zone))
        week_hour = local.weekday() * 24 + local.hour
        return next(period.name for period in self.periods if week_hour in period.hours)

    def prices(self) -> dict[str, Price]:
        """What energy costs, by the period's name, in the file's order."""
        return {period.name: period.price for period in self.periods}

    def has_same_hours(self, other: Tariff) -> bool:
        """Whether every hour is in the same period in both, whatever it costs."""
        return self.zone == other.zone and _by_name(self) == _by_name(other)


def _by_name(tariff: Tariff) -> dict[str, frozenset[int]]:
    return {period.name: period.hours for period in tariff.periods}


# --- Zones


def zone_of(name: str) -> tzinfo:
    """A time zone by its name. Raises InvalidValue for one that this machine does not know."""
    if name.lower() in _OWN_ZONE:
        raise InvalidValue(f"zone: expected a zone's own name such as Europe/Berlin, got {name!r}")
    try:
        zone = parse_zone(name)
    except argparse.ArgumentTypeError as error:
        import zoneinfo

        if not zoneinfo.available_timezones():
            raise InvalidValue(
                f"zone: {name}: this machine knows no time zones: install the package tzdata"
            ) from None
        raise InvalidValue(f"zone: {error}") from None
    assert zone is not None  # which stands for the machine's own
    return zone


# --- Showing


def shown_hours(hours: frozenset[int]) -> str:
    """A period's hours of the week for people.

    >>> shown_hours(frozenset([7, 8, 31, 32]))
    'mon-tue 07:00-09:00'
    """
    by_day = [
        _shown_day([hour % 24 for hour in sorted(hours) if hour // 24 == day]) for day in range(7)
    ]
    parts = []
    first = 0
    for day in range(1, 8):
        if day < 7 and by_day[day] == by_day[first]:
            continue
        if by_day[first]:
            last = f"-{DAYS[day - 1]}" if day - 1 > first else ""
            parts.append(f"{DAYS[first]}{last} {by_day[first]}")
        first = day
    return "; ".join(parts)


def _shown_day(hours: list[int]) -> str:
    """The spans that hours of one day make."""
    begins = [hour for hour in hours if hour - 1 not in hours]
    ends = [hour + 1 for hour in hours if hour + 1 not in hours]
    return ", ".join(f"{begin:02d}:00-{end:02d}:00" for begin, end in zip(begins, ends))


def shown_hour(week_hour: int) -> str:
    """The start of an hour of the week.

    >>> shown_hour(31)
    'tue 07:00'
    """
    return f"{DAYS[week_hour // 24]} {week_hour % 24:02d}:00"
