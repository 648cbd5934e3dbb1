"""The file of a tariff: TOML in which each table is a period."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from power_billing.hours import HOUR
from power_billing.money import UNITS, Price
from power_billing.tariff import DAYS, WEEK_HOURS, Period, Tariff, shown_hour, zone_of
from power_manager import InvalidValue, nearest

MOST_PERIODS = 20  # Stripe's limit of items in a subscription
# With the longest name of a ledger's meters before it, it is a key of a customer's metadata:
# Stripe's limit is 40.
LONGEST_NAME = 23
_TARIFF_KEYS = ("zone", "currency", "unit")
_PERIOD_KEYS = ("hours", "days", "price")
# A zone whose offset has parts of an hour in one of these years is refused.
_CHECKED_YEARS = range(2020, 2051)


class _Number(str):
    """A number with a point as the file has it: 0.30 as binary would be another price."""


def read_tariff(path: str | os.PathLike[str]) -> Tariff:
    """The tariff in a file of TOML.

    Raises InvalidValue, which names the file, for one that cannot be read or is no tariff: see
    parse_tariff().
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as error:
        raise InvalidValue(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidValue(f"{path}: expected text in UTF-8") from None
    try:
        return parse_tariff(text)
    except InvalidValue as error:
        raise InvalidValue(f"{path}: {error}") from None


def parse_tariff(text: str) -> Tariff:
    """The tariff in a text of TOML.

    Keys: zone (IANA's name; default UTC), currency (three letters), unit (Wh, kWh or MWh; default
    kWh), and a table for each period: price (of one unit, above 0), hours ("07:00-22:00", or
    several in a list; default: all of a day), days ("mon-fri", or several in a list; default: all).
    A period with neither hours nor days has whatever is left. Raises InvalidValue for anything
    else, for an hour of the week that no period has or that two have, for a border inside an hour,
    and for a zone that is parts of an hour away from UTC.
    """
    try:
        values = tomllib.loads(text, parse_float=_Number)
    except (ValueError, RecursionError) as error:
        raise InvalidValue(f"expected TOML: {error}") from None
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    for name in values:
        if name not in tables and name not in _TARIFF_KEYS:
            expected = f"expected {', '.join(_TARIFF_KEYS)}, or a period as a table [{name}]"
            raise InvalidValue(f"{expected}, got the key {name!r}{nearest(name, _TARIFF_KEYS)}")
    if not 1 <= len(tables) <= MOST_PERIODS:
        raise InvalidValue(f"expected from 1 to {MOST_PERIODS} periods, got {len(tables)}")
    zone = _text(values, "zone", "UTC")
    _check_zone(zone)
    if zone.lower() == "utc":
        zone = "UTC"  # the one name that is read in any letters
    currency = _text(values, "currency", None)
    unit = _text(values, "unit", "kWh")
    if unit not in UNITS:
        raise InvalidValue(f"unit: expected {', '.join(UNITS)}, got {unit!r}")
    hours = _divide_week({name: _named_hours(name, table) for name, table in tables.items()})
    periods = []
    for name, table in tables.items():
        price = _price(name, table, currency, unit)
        periods.append(Period(name, price, hours[name]))
    return Tariff(zone, tuple(periods))


def _text(values: Mapping[str, Any], key: str, default: str | None) -> str:
    value = values.get(key, default)
    if value is None:
        raise InvalidValue(f"{key}: expected text, got nothing")
    if not isinstance(value, str) or isinstance(value, _Number) or not value:
        raise InvalidValue(f"{key}: expected text, got {value!r}")
    return value


def _price(name: str, table: Mapping[str, Any], currency: str, unit: str) -> Price:
    price = table.get("price")
    if isinstance(price, bool) or not isinstance(price, (str, int)):
        got = "nothing" if price is None else repr(price)
        raise InvalidValue(f"{name}: price: expected an amount such as 0.34, got {got}")
    try:
        return Price.parse(str(price), currency, unit)
    except InvalidValue as error:
        raise InvalidValue(f"{name}: {error}") from None


def _check_zone(name: str) -> None:
    """Refuse a zone whose hours begin inside UTC hours: usage is counted by those."""
    zone = zone_of(name)
    for year in _CHECKED_YEARS:
        for month in range(1, 13):
            offset = datetime(year, month, 15, tzinfo=timezone.utc).astimezone(zone).utcoffset()
            seconds = 0.0 if offset is None else offset.total_seconds()
            if seconds % HOUR:
                raise InvalidValue(
                    f"zone: {name} is {seconds / HOUR:+g} hours from UTC in {year}, and usage is "
                    "counted by whole UTC hours: a period would begin inside one; name a zone that "
                    "is whole hours away, or UTC"
                )


# --- The week


def _named_hours(name: str, table: Mapping[str, Any]) -> frozenset[int] | None:
    """The hours of the week that a period names; None where it names none, and has what is left."""
    if not re.fullmatch(rf"[a-z][a-z0-9_]{{0,{LONGEST_NAME - 1}}}", name):
        expected = f"expected a period named by up to {LONGEST_NAME} small letters, digits and _"
        raise InvalidValue(f"{expected}, got {name!r}")
    for key in table:
        if key not in _PERIOD_KEYS:
            expected = f"expected {', '.join(_PERIOD_KEYS)}"
            raise InvalidValue(f"{name}: {expected}, got {key!r}{nearest(key, _PERIOD_KEYS)}")
    if "hours" not in table and "days" not in table:
        return None
    days: set[int] = set()
    for text in _texts(name, table, "days", "mon-sun"):
        days.update(_days(name, text))
    hours_of_day: set[int] = set()
    for text in _texts(name, table, "hours", "00:00-24:00"):
        hours_of_day.update(_span(name, text))
    return frozenset(day * 24 + hour for day in days for hour in hours_of_day)


def _texts(name: str, table: Mapping[str, Any], key: str, default: str) -> list[str]:
    value = table.get(key, default)
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        expected = f"expected text such as {default!r}, or a list of such"
        raise InvalidValue(f"{name}: {key}: {expected}, got {value!r}")
    return texts


def _span(name: str, text: str) -> range:
    """The hours of a day in "07:00-22:00"."""
    found = re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)", text, re.ASCII)
    if found is None:
        raise InvalidValue(f"{name}: hours: expected such as '07:00-22:00', got {text!r}")
    begin, begin_minute, end, end_minute = map(int, found.groups())
    if begin_minute or end_minute:
        raise InvalidValue(
            f"{name}: hours: expected whole hours such as '07:00-22:00', because usage is counted "
            f"by the hour, got {text!r}"
        )
    if begin > 23 or end > 24:
        raise InvalidValue(f"{name}: hours: expected from 00:00 to 24:00, got {text!r}")
    if begin >= end:
        raise InvalidValue(
            f"{name}: hours: expected an end after the start, got {text!r}: over midnight write "
            "two, such as ['22:00-24:00', '00:00-07:00']"
        )
    return range(begin, end)


def _days(name: str, text: str) -> list[int]:
    """The days in "mon-fri", in "sat", or in "sat-mon"."""
    first, dash, last = text.partition("-")
    if first not in DAYS or (dash and last not in DAYS):
        raise InvalidValue(f"{name}: days: expected such as 'mon-fri' or 'sat', got {text!r}")
    begin = DAYS.index(first)
    following = (DAYS.index(last) - begin) % 7 if dash else 0
    return [(begin + step) % 7 for step in range(following + 1)]


def _divide_week(named: Mapping[str, frozenset[int] | None]) -> dict[str, frozenset[int]]:
    """Each period's hours, of which every hour of the week is in exactly one."""
    owner: dict[int, str] = {}
    for name, hours in named.items():
        for hour in sorted(hours or ()):
            other = owner.setdefault(hour, name)
            if other != name:
                raise InvalidValue(
                    f"{shown_hour(hour)} is in {other} and in {name}: an hour belongs to one period"
                )
    left = frozenset(range(WEEK_HOURS)) - owner.keys()
    rest = None
    for name, hours in named.items():
        if hours is None and rest is not None:
            raise InvalidValue(
                f"{rest} and {name} have neither hours nor days: only one can have what is left"
            )
        rest = name if hours is None else rest
    if rest is not None and not left:
        raise InvalidValue(f"{rest}: no hour is left for it: remove it, or give it hours")
    if left and rest is None:
        raise InvalidValue(
            f"{shown_hour(min(left))} is in no period: one without hours and days has all that is "
            "left"
        )
    return {name: left if hours is None else hours for name, hours in named.items()}
