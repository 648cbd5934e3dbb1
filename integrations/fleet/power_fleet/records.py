"""The library's records, made of the engine's rows."""

from __future__ import annotations

from collections.abc import Iterable

from power_fleet.engine import Row
from power_manager import (
    HOUR_US,
    AlertLevel,
    DeviceRecord,
    MeterSums,
    MeterType,
    PowerEvent,
    PowerEventType,
    PowerMeter,
    PowerReading,
    PowerStatistics,
    from_microseconds,
    rounded,
)


def missing(kind: str, id_: str) -> str:
    """What is said of a device or a meter (`kind`) that the engine does not know."""
    return f"{kind}_id: no {kind} has the id {id_!r}: none of that id has been forwarded"


def device_of(row: Row) -> DeviceRecord:
    """A device of a row of sql.devices()."""
    return DeviceRecord(
        row["device_id"],
        row["name"],
        row["shutdown_threshold"],
        row["target_wh"],
        row["low_battery_threshold"],
        row["critical_battery_threshold"],
    )


def meter_of(row: Row, device: DeviceRecord) -> PowerMeter:
    """A meter of a row of sql.meters()."""
    updated = row["updated"]
    return PowerMeter(
        row["meter_id"],
        row["device_id"],
        MeterType(row["type"]),
        row["voltage"],
        row["current_draw"],
        row["capacity_wh"],
        row["charge_pct"],
        row["name"],
        None if updated is None else from_microseconds(updated),
        device.low_battery_threshold,
        device.critical_battery_threshold,
        active=bool(row["active"]),
        power_known=bool(row["power_known"]),
        alert_level=AlertLevel(row["alert_level"]),
    )


def event_of(row: Row) -> PowerEvent:
    """An event of a row of sql.EVENTS."""
    return PowerEvent(
        row["id"],
        row["device_id"],
        PowerEventType(row["type"]),
        row["value"],
        from_microseconds(row["at"]),
        row["note"],
        row["meter_id"],
    )


def reading_of(meter_id: str, row: Row) -> PowerReading:
    """A reading of a row of read_sql.READINGS."""
    volts = row["voltage"]
    amperes = row["current_draw"]
    known = volts is not None and amperes is not None
    return PowerReading(
        f"{meter_id}:{row['at']}",
        meter_id,
        volts,
        amperes,
        round(volts * amperes, 4) if known else None,
        row["charge_pct"],
        from_microseconds(row["at"]),
    )


def _least(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def added(parts: Iterable[MeterSums]) -> MeterSums:
    """The sums of several hours together."""
    listed = list(parts)
    return MeterSums(
        sum(part.reading_count for part in listed),
        sum(part.power_count for part in listed),
        sum(part.wattage_sum for part in listed),
        _least(part.min_wattage for part in listed),
        _most(part.max_wattage for part in listed),
        _least(part.min_charge_pct for part in listed),
        _most(part.max_charge_pct for part in listed),
        sum(part.energy_out_wh for part in listed),
        sum(part.energy_in_wh for part in listed),
    )


def hour_statistics(meter_id: str, hour: int, sums: MeterSums) -> PowerStatistics:
    """The statistics of a meter from an hour on, which is counted from 1970."""
    return PowerStatistics(
        meter_id,
        from_microseconds(hour * HOUR_US),
        sums.reading_count,
        sums.avg_wattage,
        sums.min_wattage,
        sums.max_wattage,
        sums.min_charge_pct,
        sums.max_charge_pct,
        rounded(sums.energy_out_wh),
        rounded(sums.energy_in_wh),
    )
