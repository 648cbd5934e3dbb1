"""The examples of the contract; a test checks them against its schemas."""

from __future__ import annotations

from typing import Any

_DEVICE: dict[str, Any] = {
    "id": "edge-001",
    "name": "Edge Node",
    "shutdown_threshold": 3.0,
    "target_wh": 150.0,
    "low_battery_threshold": None,
    "critical_battery_threshold": None,
}
_METER: dict[str, Any] = {
    "id": "5f1c9a7e0b3d4c2a9e8f7b6d",
    "device_id": "edge-001",
    "type": "battery",
    "voltage": 3.7,
    "current_draw": 0.5,
    "capacity_wh": 50.0,
    "charge_pct": 19.5,
    "name": "Pack",
    "updated_at": "2026-11-23T12:00:00.000000+00:00",
    "low_battery_threshold": None,
    "critical_battery_threshold": None,
    "active": True,
    "power_known": True,
    "alert_level": "low",
    "wattage": 1.85,
    "state": "low",
}
_READING: dict[str, Any] = {
    "id": "5f1c9a7e0b3d4c2a9e8f7b6d:1795435200000000",
    "meter_id": "5f1c9a7e0b3d4c2a9e8f7b6d",
    "voltage": 3.7,
    "current_draw": 0.5,
    "wattage": 1.85,
    "charge_pct": 19.5,
    "timestamp": "2026-11-23T12:00:00.000000+00:00",
}
_FILE_ID = "3a7d1c5e9b2f40688d4e6c1a0f93b75e"
_EVENT: dict[str, Any] = {
    "id": "9b2f60c1d7e8a354",
    "device_id": "edge-001",
    "type": "discharge",
    "value": 19.5,
    "timestamp": "2026-11-23T12:00:00.000000+00:00",
    "note": "Pack: 19.5 % charge, threshold 20 %",
    "meter_id": _METER["id"],
}
_BUDGET: dict[str, Any] = {
    "total_wattage": 1.85,
    "battery_count": 1,
    "solar_count": 0,
    "avg_charge_pct": 19.5,
    "estimated_runtime_hours": 5.27,
    "states": ["low"],
    "load_wattage": 1.85,
    "solar_wattage": 0.0,
    "net_wattage": -1.85,
    "energy_24h_wh": 38.4,
    "consumption_24h_wh": 38.4,
    "target_wh": 150.0,
    "within_target": True,
    "below_shutdown_threshold": True,
    "unknown_power_count": 0,
}
_WATTS = {"avg_wattage": 1.6, "min_wattage": 1.1, "max_wattage": 2.4}
_CHARGE = {"min_charge_pct": 19.5, "max_charge_pct": 22.0}
_ENERGY = {"energy_out_wh": 1.6, "energy_in_wh": 0.0}
_METER_REPORT: dict[str, Any] = {
    "meter_id": _METER["id"],
    "name": "Pack",
    "type": "battery",
    "reading_count": 60,
    "current_state": "low",
    **_WATTS,
    **_CHARGE,
    **_ENERGY,
    "energy_wh": 1.6,
}
_TOTALS: dict[str, Any] = {
    "consumption_wh": 1.6,
    "main_wh": 0.0,
    "solar_wh": 0.0,
    "battery_out_wh": 1.6,
    "battery_in_wh": 0.0,
    "ups_wh": 0.0,
    "self_sufficiency_pct": 100.0,
}
_STATISTICS = {
    "meter_id": _METER["id"],
    "start": "2026-11-23T11:00:00.000000+00:00",
    "reading_count": 60,
    **_WATTS,
    **_CHARGE,
    **_ENERGY,
}
_SERIES: dict[str, Any] = {
    "meter_id": _METER["id"],
    "reading_count": 2,
    "timestamps_ms": [1795435200000, 1795435260000],
    "voltage": [3.7, 3.69],
    "current_draw": [0.5, None],
    "wattage": [1.85, None],
    "charge_pct": [19.5, 19.4],
}
_METRICS = 'power_service_readings_stored_total 60.0\npower_events_total{type="discharge"} 1.0\n'

RESPONSES: dict[str, Any] = {
    "listDevices": [_DEVICE],
    "putDevice": _DEVICE,
    "getDevice": _DEVICE,
    "updateDevice": {**_DEVICE, "target_wh": 200.0},
    "listMeters": [_METER],
    "addMeter": {
        **_METER,
        "voltage": 0.0,
        "current_draw": 0.0,
        "charge_pct": 100.0,
        "updated_at": None,
        "alert_level": "none",
        "wattage": 0.0,
        "state": "charging",
    },
    "getMeter": _METER,
    "updateMeter": {**_METER, "capacity_wh": 48.0},
    "postReadings": {"received": 2, "stored": 1, "implausible_charges": 0},
    "listReadings": {"readings": [_READING], "next_cursor": "0660e9b3d08001"},
    "deleteReadings": {"deleted": 12},
    "getSeries": _SERIES,
    "getStatistics": [_STATISTICS],
    "listEvents": [_EVENT],
    "triggerEvent": {
        **_EVENT,
        "type": "restore",
        "value": 0.0,
        "note": "service restarted",
        "meter_id": None,
    },
    "followEvents": {
        "events": [{"sequence": 41, "event": _EVENT}],
        "next_after": 41,
        "recovered": True,
        "file_id": _FILE_ID,
    },
    "createStreamTicket": {"ticket": "zQ0yX4…", "expires_in": 30.0},
    "getRuntime": {"device_id": "edge-001", "estimated_runtime_hours": 5.27},
    "getBudget": {
        "edge-001": _BUDGET,
        "edge-999": {"error": "device_id: no device has the id 'edge-999'"},
    },
    "getReport": {
        "device_id": "edge-001",
        "device_name": "Edge Node",
        "period_days": 7,
        "generated_at": "2026-11-23T12:00:01.000000+00:00",
        "meters": [_METER_REPORT],
        "totals": _TOTALS,
        "event_count": 1,
        "events": [_EVENT],
    },
    "getMe": {
        "name": "laptop",
        "scopes": ["read", "write"],
        "devices": None,
        "database": "/srv/power_manager.db",
        "source": "file",
    },
    "getFleet": {
        "fresh_as_of": "2026-11-23T12:00:00.000000+00:00",
        "waiting_messages": 0,
        "dead_letters": 0,
    },
    "listFleetDevices": [
        {
            "device_id": "edge-001",
            "site": "berlin",
            "version": "1.0.0",
            "opened_at": "2026-11-20T06:30:00.000000+00:00",
            "last_seen": "2026-11-23T11:58:12.000000+00:00",
            "alarms": [],
        }
    ],
    "getFleetEnergy": [
        {
            "day": "2026-11-23",
            "site": "berlin",
            "type": "main",
            "energy_out_wh": 812.5,
            "energy_in_wh": 0.0,
        }
    ],
    "listSilentDevices": [
        {"device_id": "edge-002", "last_seen": "2026-11-23T09:14:00.000000+00:00"}
    ],
    "getSparklines": {
        "start": "2026-11-22T12:00:00.000000+00:00",
        "step_seconds": 3600,
        "devices": {"edge-001": [None] * 6 + [1.85, 1.9, 1.72] * 6},
    },
    "getSignIn": {
        "token_needed": True,
        "token_command": "power-service token new NAME --scope read --db /srv/power_manager.db",
    },
    "signIn": {"token": "pm_4cU5x0…", "name": "link", "scopes": ["read", "write"]},
    "getBackup": "SQLite format 3 …",
    "getHealth": {"status": "ok"},
    "getReadiness": {"status": "ready"},
    "getMetrics": _METRICS,
}

_NEW_READING = {
    "meter_id": _METER["id"],
    "voltage": 3.7,
    "current_draw": 0.5,
    "charge_pct": 19.5,
    "timestamp": "2026-11-23T12:00:00Z",
}
_LIVE = {"meter_id": _METER["id"], "voltage": 3.7, "current_draw": 0.5}
_CHARGE_ALONE = {
    "meter_id": _METER["id"],
    "voltage": None,
    "current_draw": None,
    "charge_pct": 80.0,
}

REQUESTS: dict[str, dict[str, dict[str, Any]]] = {
    "putDevice": {"application/json": {"device": {"name": "Edge Node", "target_wh": 150.0}}},
    "addMeter": {
        "application/json": {
            "battery": {"type": "battery", "capacity_wh": 50.0, "name": "Pack"},
            "no-gauge": {"type": "battery", "name": "Hat", "charge_pct": None},
        }
    },
    "postReadings": {
        "application/json": {
            "live": _LIVE,
            "recorded": _NEW_READING,
            "charge-alone": _CHARGE_ALONE,
            "batch": [_NEW_READING, _LIVE],
        },
        "application/x-ndjson": {"lines": [_NEW_READING, _LIVE]},
    },
    "triggerEvent": {
        "application/json": {
            "restore": {"type": "restore", "note": "service restarted"},
            "of-a-meter": {"type": "charge_start", "meter_id": _METER["id"]},
        }
    },
    "signIn": {"application/json": {"link": {"ticket": "zQ0yX4…"}}},
    "updateDevice": {"application/json": {"target": {"target_wh": 200.0}}},
    "updateMeter": {
        "application/json": {
            "capacity": {"capacity_wh": 48.0},
            "retire": {"active": False},
            "gauge-gone": {"charge_pct": None},
        }
    },
}

STREAM: tuple[dict[str, Any], ...] = (
    {
        "type": "hello",
        "resumed_from": 40,
        "oldest": 1,
        "latest": 41,
        "recovered": True,
        "file_id": _FILE_ID,
    },
    {"type": "event", "sequence": 41, "event": _EVENT},
    {"type": "reading", "device_id": "edge-001", "reading": _READING},
    {"type": "meter", "meter": _METER},
    {"type": "device", "device": _DEVICE},
    {
        "type": "deleted",
        "kind": "readings",
        "device_id": "edge-001",
        "meter_id": _METER["id"],
        "since": "2026-11-23T11:00:00.000000+00:00",
        "until": None,
    },
    {"type": "heartbeat", "latest": 41, "timestamp": "2026-11-23T12:00:15.000000+00:00"},
)
