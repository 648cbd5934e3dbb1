"""Energy by meter and hour, such as a bill is made of.

The numbers of the library's get_statistics, for many devices.

Hours and their energy are those of every other answer: the energy between two readings is in the
hour of the later one, an hour that has changed since it was computed is computed again, and what is
deleted is in none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from power_fleet import sql
from power_fleet.engine import Row, Shard
from power_fleet.history import hour_rows
from power_manager import MeterType

# Whether retired, replaced or at work: what a meter has measured stays energy of its device.
_METERS = f"""SELECT device_id, meter_id, type, name FROM power_meters FINAL
WHERE deleted = 0 AND {sql.THESE} ORDER BY device_id, position, meter_id"""


@dataclass(frozen=True)
class HourEnergy:
    """A UTC hour (since 1970) of a meter that has readings.

    Wh out and in, and how many readings it is made of.

    least_wattage, most_wattage: of its readings that have watts; None where none has.
    """

    hour: int
    energy_out_wh: float
    energy_in_wh: float
    reading_count: int
    least_wattage: float | None
    most_wattage: float | None


@dataclass(frozen=True)
class MeterEnergy:
    """A meter of a device, whatever it does now, and its hours, oldest first."""

    meter_id: str
    type: MeterType
    name: str | None
    hours: list[HourEnergy]


def hour_energies(
    shard: Shard, names: dict[str, Any], hours: range, now_us: int
) -> dict[str, list[MeterEnergy]]:
    """By device, its meters in order of adding, each with its hours among `hours`.

    Unknown devices are left out.
    """
    devices = shard.select(sql.MAX_GAPS, **names)
    found: dict[str, list[MeterEnergy]] = {row["device_id"]: [] for row in devices}
    by_meter: dict[tuple[str, str], list[HourEnergy]] = {}
    for row in shard.select(_METERS, **names):
        meter = MeterEnergy(row["meter_id"], MeterType(row["type"]), row["name"], [])
        if row["device_id"] in found:  # else its device's record is still on its way
            found[row["device_id"]].append(meter)
            by_meter[row["device_id"], row["meter_id"]] = meter.hours
    if by_meter and hours:
        max_gap_us = max(row["max_gap"] for row in devices)
        for row in hour_rows(shard, sql.THESE, names, hours, max_gap_us, now_us):
            of_meter = by_meter.get((row["device_id"], row["meter_id"]))
            if of_meter is not None:
                of_meter.append(_hour_energy(row))
    return found


def _hour_energy(row: Row) -> HourEnergy:
    has_watts = row["power_count"] > 0
    return HourEnergy(
        row["hour"],
        row["energy_out"],
        row["energy_in"],
        row["reading_count"],
        row["min_wattage"] if has_watts else None,
        row["max_wattage"] if has_watts else None,
    )
