"""Past hours of a shard: which have to be computed for an answer, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from power_fleet import sql
from power_fleet.engine import Engine, Row, Shard, at_once
from power_fleet.keep import kept
from power_manager import HOUR_US, MeterSums

NEVER = 2**62  # an hour that does not come


def open_hour(shard: Shard, now_us: int) -> int:
    """The first hour whose readings are certainly all there.

    Earlier hours are never computed again.
    """
    return kept(shard).readings.first_hour(now_us)


def oldest_to_make(
    shard: Shard, of: str, names: Mapping[str, Any], first: int, end: int = NEVER
) -> int:
    """The oldest of the hours from `first` on and before `end` that have to be made to answer.

    `end` if there is none.
    """
    if first >= end:
        return end
    (found,) = shard.select(sql.oldest_dirty(of), first=first, end=end, **names)
    return int(found["oldest"]) if found["hours"] else end


def hour_rows(
    shard: Shard, of: str, names: Mapping[str, Any], hours: range, max_gap_us: int, now_us: int
) -> list[Row]:
    """The hours of devices' meters among `hours` that have readings.

    Each has sql.SUMS, and `energy_out` and `energy_in` in Wh.

    `of` and `names` say which devices. `max_gap_us`: how long before an hour its energy may begin;
    a longer one costs more. Ordered by device, meter and hour.
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


HoursOfMeters = dict[tuple[str, str], list[tuple[int, MeterSums]]]


def sums_by_hour(
    engine: Engine, now_us: int, device_ids: Sequence[str], first: int, end: int | None
) -> HoursOfMeters:
    """By device and meter, the hours from `first` on and before `end`, with their sums.

    `end` None: to the last one.
    """
    hours = range(first, NEVER if end is None else end)

    def ask(question: _Question) -> HoursOfMeters:
        found: HoursOfMeters = {}
        names = {"devices": question.device_ids}
        rows = hour_rows(question.shard, sql.THESE, names, hours, question.max_gap_us, now_us)
        for row in rows:
            of_meter = found.setdefault((row["device_id"], row["meter_id"]), [])
            of_meter.append((row["hour"], meter_sums(row)))
        return found

    found: HoursOfMeters = {}
    for answer in at_once(ask, _questions(engine, device_ids)):
        found |= answer
    return found


class _Question(NamedTuple):
    """Devices to ask a shard about, and how long before an hour its energy may begin."""

    shard: Shard
    device_ids: tuple[str, ...]
    max_gap_us: int


def _questions(engine: Engine, device_ids: Sequence[str]) -> list[_Question]:
    """One for each shard, and for each device that counts energy over more than a day."""
    found = []
    for number, shard in enumerate(engine.shards):
        mine = tuple(id_ for id_ in device_ids if engine.shard_of(id_) == number)
        if not mine:
            continue
        gaps = {
            row["device_id"]: row["max_gap"] for row in shard.select(sql.MAX_GAPS, devices=mine)
        }
        near = tuple(id_ for id_ in mine if gaps.get(id_, 0) <= sql.NEAR_US)
        if near:
            found.append(_Question(shard, near, max(gaps.get(id_, 0) for id_ in near)))
        found += [_Question(shard, (id_,), gaps[id_]) for id_ in mine if id_ not in near]
    return found
