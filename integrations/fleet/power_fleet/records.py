"""The library's records, made of the engine's rows."""

from __future__ import annotations

from power_fleet.engine import Row
from power_manager import (
    AlertLevel,
    DeviceRecord,
    MeterType,
    PowerEvent,
    PowerEventType,
    PowerMeter,
    from_microseconds,
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
