"""Hours of the past of a shard: which of them have to be made of readings to answer, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from power_fleet import sql
from power_fleet.engine import Row, Shard
from power_fleet.keep import kept
from power_manager import HOUR_US, MeterSums

NEVER = 2**62  # an hour that does not come


def open_hour(shard: Shard, now_us: int) -> int:
    """The first hour whose readings are certainly all there; those before it are never made anew."""
    return kept(shard).readings.first_hour(now_us)


def oldest_to_make(
    shard: Shard, of: str, names: Mapping[str, Any], first: int, end: int = NEVER
) -> int:
    """The oldest of the hours from `first` on and before `end` that have to be made to answer; `end` where none has."""
    if first >= end:
        return end
    (found,) = shard.select(sql.oldest_dirty(of), first=first, end=end, **names)
    return int(found["oldest"]) if found["hours"] else end


def hour_rows(
    shard: Shard, of: str, names: Mapping[str, Any], hours: range, max_gap_us: int, now_us: int
) -> list[Row]:
    """The hours of devices' meters among `hours` that have readings: sql.SUMS, `energy_out` and `energy_in` in Wh.

    `of` and `names` say which devices. `max_gap_us`: how long before an hour its energy may begin; a longer one costs
    more. Ordered by device, meter and hour.
    """
    if not hours:
        return []
    first = max(hours.start + -max_gap_us // HOUR_US, 0)
    oldest = oldest_to_make(shard, of, names, max(first, open_hour(shard, now_us)), hours.stop)
    question = shard.dialect.hours(of, oldest < hours.stop)
    return shard.select(
        question, wanted=hours.start, first=first, oldest=oldest, end=hours.stop, **names
    )


def meter_sums(row: Row) -> MeterSums:
    """The library's sums of a row with sql.SUMS and energy."""
    sums = MeterSums(
        reading_count=row["reading_count"],
        power_count=row["power_count"],
        wattage_sum=row["wattage_sum"],
        energy_out_wh=row["energy_out"],
        energy_in_wh=row["energy_in"],
    )
    if row["power_count"]:
        sums = sums._replace(min_wattage=row["min_wattage"], max_wattage=row["max_wattage"])
    if row["charge_count"]:
        sums = sums._replace(
            min_charge_pct=row["min_charge_pct"], max_charge_pct=row["max_charge_pct"]
        )
    return sums
