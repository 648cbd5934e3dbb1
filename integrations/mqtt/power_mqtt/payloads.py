"""The payloads, as JSON: what is unknown is null, never 0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from power_manager import MeterType, PowerEvent, PowerMeter

ONLINE, OFFLINE = b"online", b"offline"
WITH_CHARGE = (MeterType.BATTERY, MeterType.UPS)
# These keys of power_budget_check() are wrong while the watts of a meter are unknown.
_WATTS = ("load_wattage", "solar_wattage", "net_wattage", "total_wattage")


def json_bytes(value: object) -> bytes:
    """A value as compact JSON in UTF-8; letters of any script stay as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def state_payload(meter: PowerMeter) -> dict[str, Any]:
    """The present state of a meter: V, A and W out of the source; charge in %."""
    return {
        "name": meter.name,
        "type": meter.type.value,
        "voltage": meter.voltage if meter.power_known or meter.voltage else None,
        "current_draw": meter.current_draw if meter.power_known or meter.current_draw else None,
        "wattage": meter.wattage,
        "charge_pct": meter.charge_pct if meter.type in WITH_CHARGE else None,
        "state": meter.state.value,
        "alert_level": meter.alert_level.value,
        "active": meter.active,
        "time": meter.updated_at,
    }


def totals_payload(budget: Mapping[str, Any], *, is_online: bool = True) -> dict[str, Any]:
    """What a device uses as a whole, from its power_budget_check(): W, Wh, hours, %."""
    is_known = budget["unknown_power_count"] == 0
    watts = {key: budget[key] if is_known else None for key in _WATTS}
    return {
        **watts,
        "consumption_24h_wh": budget["consumption_24h_wh"],
        "target_wh": budget["target_wh"],
        "runtime_hours": budget["estimated_runtime_hours"] if is_online else None,
        "charge_pct": budget["avg_charge_pct"],
        "below_shutdown_threshold": budget["below_shutdown_threshold"],
        "unknown_power_count": budget["unknown_power_count"],
    }


def event_payload(
    sequence: int, event: PowerEvent, file_id: str, meter_name: str | None
) -> dict[str, Any]:
    """An event. `id` is the same on every copy, `sequence` counts within the file `file_id`."""
    return {
        "id": event.id,
        "sequence": sequence,
        "file_id": file_id,
        "device_id": event.device_id,
        "type": event.type.value,
        "value": event.value,
        "time": event.timestamp,
        "note": event.note,
        "meter_id": event.meter_id,
        "meter_name": meter_name,
    }
