"""Statistics of a window of time, and what devices used in each of the last 24 hours."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from power_manager import (
    DAY_US,
    HOUR_US,
    SECOND_US,
    NotFound,
    PowerMeter,
    PowerStatistics,
    counted_meters,
    from_microseconds,
    to_microseconds,
)
from power_service.models import Sparklines
from power_service.source import ManyMeters, Source

SPARKLINE_HOURS = 24


# --- Statistics of a window


def statistics_between(
    source: Source, meter_id: str, since: Any, until: Any, bucket: str, now: int
) -> list[PowerStatistics]:
    """A meter's statistics from the bucket of `since` on, of buckets that begin before `until`.

    None: no limit on that side. `now` is in microseconds: the library counts days back from now.
    Raises NotFound, InvalidValue.
    """
    bucket_us = DAY_US if bucket == "day" else HOUR_US
    since_us = 0 if since is None else to_microseconds(since, "since")
    first_us = since_us // bucket_us * bucket_us
    # An hour more than needed: the library reads the clock a moment later.
    days = max(now - first_us + HOUR_US, 0) / DAY_US
    rows = source.get_statistics(meter_id, days=days, bucket=bucket)
    end_us = None if until is None else to_microseconds(until, "until")
    found: list[PowerStatistics] = []
    for row in rows:
        start_us = to_microseconds(row.start)
        if start_us >= first_us and (end_us is None or start_us < end_us):
            found.append(row)
    return found


# --- Sparklines


def sparklines(source: Source, device_ids: Iterable[str], now: int) -> Sparklines:
    """What each registered device used in the last SPARKLINE_HOURS whole UTC hours."""
    end_us = now // HOUR_US * HOUR_US
    start_us = end_us - SPARKLINE_HOURS * HOUR_US
    many = source if isinstance(source, ManyMeters) else _OneByOne(source, now)
    counted = {
        device_id: counted_meters(meters)
        for device_id, meters in many.meters_of(dict.fromkeys(device_ids)).items()
    }
    rows = many.statistics_of(itertools.chain(*counted.values()), start_us, end_us)
    devices = {
        device_id: _consumption(meters, rows, start_us) for device_id, meters in counted.items()
    }
    return Sparklines(from_microseconds(start_us), HOUR_US // SECOND_US, devices)


class _OneByOne:
    """ManyMeters with one call for each device and meter, which is cheap for a file."""

    def __init__(self, source: Source, now: int) -> None:
        self._source = source
        self._now = now

    def meters_of(self, device_ids: Iterable[str]) -> dict[str, list[PowerMeter]]:
        found: dict[str, list[PowerMeter]] = {}
        for device_id in device_ids:
            with contextlib.suppress(NotFound):
                self._source.get_device(device_id)
                found[device_id] = self._source.list_meters(device_id)
        return found

    def statistics_of(
        self, meters: Iterable[PowerMeter], since_us: int, until_us: int
    ) -> dict[str, list[PowerStatistics]]:
        window = (from_microseconds(since_us), from_microseconds(until_us))
        found: dict[str, list[PowerStatistics]] = {}
        for meter in meters:
            with contextlib.suppress(NotFound):  # it was deleted meanwhile
                found[meter.id] = statistics_between(
                    self._source, meter.id, *window, "hour", self._now
                )
        return found


def _consumption(
    meters: Iterable[PowerMeter], rows: Mapping[str, list[PowerStatistics]], start_us: int
) -> list[float | None]:
    """A device's mean watts by hour, at least 0: the sum over the meters of its consumption.

    An hour is known if every meter that measures now has it. A retired meter counts in the hours
    that it has; a meter that never measured anything does not count.
    """
    by_meter = [
        (_measures(meter), _wattage_by_hour(rows.get(meter.id, ()), start_us)) for meter in meters
    ]
    consumption: list[float | None] = []
    for hour in range(SPARKLINE_HOURS):
        parts = [wattage.get(hour) for measures, wattage in by_meter if measures or hour in wattage]
        known = [part for part in parts if part is not None]
        if parts and len(known) == len(parts):
            consumption.append(round(max(sum(known), 0.0), 4))
        else:
            consumption.append(None)
    return consumption


def _measures(meter: PowerMeter) -> bool:
    return meter.active and meter.updated_at is not None


def _wattage_by_hour(rows: Iterable[PowerStatistics], start_us: int) -> dict[int, float | None]:
    """Mean watts of each hour with readings, by hours after `start_us`; None: not known."""
    return {(to_microseconds(row.start) - start_us) // HOUR_US: row.avg_wattage for row in rows}
