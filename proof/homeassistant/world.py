"""A day of two devices, and what Home Assistant has to say of them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from house import FastClock

from power_manager import MeterType, PowerManager, PowerMeter

EDGE = "edge/001 Büro"  # a device's id is any text
GATE = "gate-7"
UNIQUE = {EDGE: "power__edge_2F001_20B_C3_BCro", GATE: "power__gate-7"}
STEP_SECONDS = 60.0  # between two readings of a meter
_CAPACITY_WH = 1600.0


@dataclass(frozen=True)
class Kind:
    """What an entity has to be."""

    platform: str
    unit: str | None = None
    device_class: str | None = None
    state_class: str | None = None
    precision: int | None = None
    category: str | None = None


_COUNTER = Kind("sensor", "Wh", "energy", "total_increasing", 1)
KINDS = {
    "power": Kind("sensor", "W", "power", "measurement", 1),
    "voltage": Kind("sensor", "V", "voltage", "measurement", 2),
    "current": Kind("sensor", "A", "current", "measurement", 3),
    "charge": Kind("sensor", "%", "battery", "measurement", 0),
    "state": Kind("sensor", None, "enum"),
    "low": Kind("binary_sensor", None, "problem"),
    "critical": Kind("binary_sensor", None, "problem"),
    "energy_out": _COUNTER,
    "energy_in": _COUNTER,
    "last_reading": Kind("sensor", None, "timestamp", None, None, "diagnostic"),
    "consumption": _COUNTER,
    "net_power": Kind("sensor", "W", "power", "measurement", 1),
    "runtime": Kind("sensor", "h", "duration", "measurement", 1),
    "event": Kind("event"),
}


@dataclass(frozen=True)
class Expected:
    """What one entity has to be and to say; value None: unknown."""

    kind: Kind
    value: str | float | None


class World:
    """Two devices and their file.

    `wall`: what meters on the wall would have counted, by unique id, in Wh.
    """

    def __init__(self, path: Path, clock: FastClock) -> None:
        self.clock = clock
        self.pm = PowerManager(
            path, clock=clock, alert_types=(MeterType.BATTERY, MeterType.UPS), durability="normal"
        )
        self.pm.register_device(EDGE, "Edge Node", target_wh=9000)
        self.pm.register_device(GATE, "Gate")
        self.grid = self.pm.add_meter(EDGE, "main", name="Grid").id
        self.roof = self.pm.add_meter(EDGE, "solar", name="Roof").id
        self.shed = self.pm.add_meter(EDGE, "solar", name="Shed").id
        self.pack = self.pm.add_meter(EDGE, "battery", _CAPACITY_WH, "Pack").id
        self.ups = self.pm.add_meter(GATE, "ups", 120.0).id
        self.wall: dict[str, float] = {}
        self.charge_pct = 28.0
        self._chance = random.Random(17)
        self._at = clock()
        self.readings = 0

    def step(self) -> None:
        """Read every meter once."""
        now = self.clock()
        hours = (now - self._at) / 3600
        self._at = now
        hour = (now - self.clock.start) / 3600 % 24
        sun = max(math.sin(math.pi * (hour - 5.5) / 14), 0.0)
        roof = 950.0 * sun * self._chance.uniform(0.85, 1.0)
        shed = 120.0 * sun
        load = 230.0 + 140.0 * (17 < hour < 22) + self._chance.uniform(-15, 15)
        if not self._has(self.shed):
            shed = 0.0
        pack = self._pack_watts(load - roof - shed)
        grid = load - roof - shed - pack
        self.charge_pct -= 100 * pack * hours / _CAPACITY_WH
        self.charge_pct = min(max(self.charge_pct, 0.0), 100.0)
        ups = 18.0 + self._chance.uniform(-1, 1)
        # No value stays exactly the same: that the same was read again is said only now and then.
        grid += self._chance.uniform(0.01, 0.3)
        roof += self._chance.uniform(0.01, 0.3)
        shed += self._chance.uniform(0.01, 0.3)
        pack += self._chance.uniform(0.01, 0.3)
        self._log(self.grid, 230.0, grid)
        self._log(self.roof, 48.0, roof)
        self._log(self.shed, 24.0, shed)
        self._log(self.pack, 51.2, pack, self.charge_pct)
        self._log(self.ups, 12.0, ups, 97.0)

    def _pack_watts(self, missing: float) -> float:
        if missing > 0 and self.charge_pct > 4:
            return min(missing, 400.0)
        if missing < 0 and self.charge_pct < 96:
            return max(missing, -600.0)
        return 0.0

    def _has(self, meter_id: str) -> bool:
        return any(meter.id == meter_id for meter in self.pm.list_meters())

    def _log(self, meter_id: str, volts: float, watts: float, charge: float | None = None) -> None:
        if not self._has(meter_id):
            return
        meter = self.pm.get_meter(meter_id)
        before = self.pm.energy_totals(meter_id)
        self.pm.log_power(meter_id, volts, watts / volts, charge)
        after = self.pm.energy_totals(meter_id)
        self.readings += 1
        out_wh = after.energy_out_wh - before.energy_out_wh
        in_wh = after.energy_in_wh - before.energy_in_wh
        self._count(f"{UNIQUE[meter.device_id]}__{meter_id}__energy_out", out_wh)
        self._count(f"{UNIQUE[meter.device_id]}__{meter_id}__energy_in", in_wh)
        self._count(f"{UNIQUE[meter.device_id]}__consumption", out_wh - in_wh)

    def _count(self, unique_id: str, energy_wh: float) -> None:
        self.wall[unique_id] = self.wall.get(unique_id, 0.0) + energy_wh

    def restore(self, backup: Path) -> None:
        """Restore a backup; the meters on the wall do not know of it.

        What is read first in the restored file books the time since the backup once more, so it is
        not counted.
        """
        self.pm.restore(backup)

    def step_after_restore(self) -> None:
        """Read every meter once, and count nothing: the time since the backup was counted."""
        counted = dict(self.wall)
        self.step()
        self.wall = counted

    # --- What Home Assistant has to say

    def expected(self) -> dict[str, Expected]:
        """Every entity by its unique id."""
        found: dict[str, Expected] = {}
        budgets = self.pm.power_budget_check([EDGE, GATE])
        for device in self.pm.list_devices():
            id_ = UNIQUE[device.id]
            for meter in self.pm.list_meters(device.id):
                for key, value in self._of_meter(f"{id_}__{meter.id}", meter).items():
                    found[f"{id_}__{meter.id}__{key}"] = Expected(KINDS[key], value)
            budget = budgets[device.id]
            of_device: dict[str, Any] = {
                "consumption": self.wall[f"{id_}__consumption"],
                "net_power": budget["net_wattage"],
                "runtime": budget["estimated_runtime_hours"],
                "event": self._newest_event(device.id),
            }
            for key, value in of_device.items():
                found[f"{id_}__{key}"] = Expected(KINDS[key], value)
        return found

    def _of_meter(self, id_: str, meter: PowerMeter) -> dict[str, str | float | None]:
        values: dict[str, str | float | None] = {
            "power": meter.wattage,
            "voltage": meter.voltage,
            "current": meter.current_draw,
            "state": meter.state.value,
            "energy_out": self.wall[f"{id_}__energy_out"],
            "energy_in": self.wall[f"{id_}__energy_in"],
            "last_reading": meter.updated_at,
        }
        if meter.type in (MeterType.BATTERY, MeterType.UPS):
            is_critical = meter.alert_level == "critical"
            is_low = is_critical or meter.alert_level == "low"
            values["charge"] = meter.charge_pct
            values["low"] = "on" if is_low or meter.state in ("low", "critical") else "off"
            values["critical"] = "on" if is_critical or meter.state == "critical" else "off"
        return values

    def _newest_event(self, device_id: str) -> str | None:
        events = self.pm.get_events(device_id, 1)
        return events[0].id if events else None


def differences(
    expected: dict[str, Expected],
    entities: dict[str, dict[str, Any]],
    states: dict[str, dict[str, Any]],
) -> list[str]:
    """What is not as it has to be, one line each."""
    found = [f"{id_}: not there" for id_ in expected.keys() - entities.keys()]
    found += [f"{id_}: still there" for id_ in entities.keys() - expected.keys()]
    for id_ in expected.keys() & entities.keys():
        entity = entities[id_]
        state = states.get(entity["entity_id"])
        if state is None:
            found.append(f"{id_}: has no state")
        else:
            found += _of_one(id_, expected[id_], entity, state)
    return sorted(found)


def _of_one(
    id_: str, expected: Expected, entity: dict[str, Any], state: dict[str, Any]
) -> list[str]:
    kind = expected.kind
    attributes = state["attributes"]
    sensor = entity.get("options", {}).get("sensor", {})
    precision = sensor.get("suggested_display_precision") if kind.platform == "sensor" else None
    pairs: list[tuple[str, object, object]] = [
        ("platform", kind.platform, entity["entity_id"].split(".")[0]),
        ("unit", kind.unit, attributes.get("unit_of_measurement")),
        ("device class", kind.device_class, attributes.get("device_class")),
        ("state class", kind.state_class, attributes.get("state_class")),
        ("precision", kind.precision, precision),
        ("category", kind.category, entity["entity_category"]),
    ]
    found = [f"{id_}: {what} {got!r}, not {want!r}" for what, want, got in pairs if want != got]
    if not _says(expected.value, kind, state):
        found.append(f"{id_}: says {state['state']!r}, not {expected.value!r}")
    return found


def _says(value: str | float | None, kind: Kind, state: dict[str, Any]) -> bool:
    if kind.platform == "event":
        return bool(state["attributes"].get("id") == value)
    if value is None:
        return bool(state["state"] == "unknown")
    if kind.device_class == "timestamp" and state["state"] != "unavailable":
        shown = datetime.fromisoformat(state["state"])
        return abs((shown - datetime.fromisoformat(str(value))).total_seconds()) <= 1.0
    if isinstance(value, str):
        return bool(state["state"] == value)
    try:
        shown_value = float(state["state"])
    except ValueError:
        return False
    return math.isclose(shown_value, value, rel_tol=1e-9, abs_tol=0.01)
