"""What the library promises, once more in plain Python: dicts, lists and brute force, written from the README's rules.

Times are whole microseconds since 1970. Nothing here is fast, and nothing is taken from power_manager.py.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR

Row = tuple[int, float, float, float]  # microseconds, volts, amperes, percent


@dataclass
class Meter:
    """One meter: the readings that are kept, all that were ever counted, and its present state."""

    id: str
    device_id: str
    kind: str
    capacity_wh: float
    name: str | None
    kept: dict[int, Row] = field(default_factory=dict)
    counted: list[Row] = field(default_factory=list)
    present: tuple[float, float, float] = (0.0, 0.0, 100.0)
    updated: int | None = None
    newest: int = -1
    pruned: int = -1  # the latest reading that prune took; recorded ones up to it are refused
    level: int = 0
    alerted: int = 0
    energy_known: bool = (
        True  # False once a reading came between pruned ones: nobody knows its neighbours
    )

    @property
    def watts(self) -> float:
        """Present watts."""
        return self.present[0] * self.present[1]


@dataclass
class Event:
    """One event, in order of recording."""

    device_id: str
    kind: str
    value: float
    us: int
    note: str | None = None


@dataclass
class Device:
    """One device as it was registered last."""

    id: str
    name: str
    shutdown_threshold: float = 3.0
    target_wh: float | None = None
    low: float | None = None
    critical: float | None = None


class Model:
    """A whole database."""

    def __init__(self, alert_repeat_us: int | None = None, max_gap_us: int = HOUR) -> None:
        self.devices: dict[str, Device] = {}
        self.meters: dict[str, Meter] = {}
        self.events: list[Event] = []
        self.alert_repeat_us, self.max_gap_us = alert_repeat_us, max_gap_us

    def of_device(self, device_id: str) -> list[Meter]:
        """A device's meters, in order of adding."""
        return [meter for meter in self.meters.values() if meter.device_id == device_id]

    def live(
        self, meter: Meter, now: int, volts: float, amperes: float, charge: float | None
    ) -> Row:
        """Log a reading without a timestamp."""
        us = now
        while us in meter.kept or us in (meter.newest, meter.pruned):
            us += 1
        row = (us, volts, amperes, self._charge(meter, charge))
        meter.energy_known &= us > meter.pruned
        self._becomes_present(meter, row)
        self._keep(meter, row)
        return row

    def recorded(
        self, meter: Meter, us: int, volts: float, amperes: float, charge: float | None
    ) -> tuple[Row, bool]:
        """Log a reading with a timestamp; say what is returned, and whether it was new."""
        row = (us, volts, amperes, self._charge(meter, charge))
        if us > meter.newest:
            self._becomes_present(meter, row)
        elif us in meter.kept:
            return meter.kept[us], False
        elif us <= meter.pruned:
            return row, False
        self._keep(meter, row)
        return row, True

    @staticmethod
    def _charge(meter: Meter, charge: float | None) -> float:
        return meter.present[2] if charge is None else min(max(charge, 0.0), 100.0)

    def _keep(self, meter: Meter, row: Row) -> None:
        meter.kept[row[0]] = row
        meter.counted.append(row)
        meter.newest = max(meter.newest, row[0])

    def _becomes_present(self, meter: Meter, row: Row) -> None:
        meter.updated, meter.present = row[0], (row[1], row[2], row[3])
        if meter.kind not in ("battery", "ups"):
            return
        low, critical = self.thresholds(meter)
        charge, before = row[3], meter.level
        if charge <= critical or (before == 2 and charge < critical + 2):
            meter.level = 2
        else:
            meter.level = int(charge <= low or (before > 0 and charge < low + 2))
        repeat = self.alert_repeat_us
        again = repeat is not None and meter.level > 0 and abs(row[0] - meter.alerted) >= repeat
        if meter.level > before or again:
            kind = "low_battery" if meter.level == 2 else "discharge"
            self.events.append(Event(meter.device_id, kind, charge, row[0]))
            meter.alerted = row[0]

    def thresholds(self, meter: Meter) -> tuple[float, float]:
        """The low and the critical threshold of a meter's device."""
        device = self.devices[meter.device_id]
        low = 20.0 if device.low is None else device.low
        return low, 5.0 if device.critical is None else device.critical

    def prune(self, cutoff: int) -> int:
        """Delete the readings before a time; return how many."""
        deleted = 0
        for meter in self.meters.values():
            old = [us for us in meter.kept if us < cutoff]
            if not old:
                continue
            deleted += len(old)
            meter.kept = {us: row for us, row in meter.kept.items() if us >= cutoff}
            meter.pruned = max(meter.pruned, *old)
        return deleted

    def state(self, meter: Meter) -> str:
        """A meter's present state."""
        if meter.kind == "solar":
            return "charging"
        if meter.kind == "main":
            return "normal" if meter.present[0] else "unknown"
        low, critical = self.thresholds(meter)
        charge = meter.present[2]
        if charge <= low:
            return "critical" if charge < critical else "low"
        return "charging" if charge >= 95 else "normal"

    def events_of(self, device_id: str, after: int = -1) -> list[Event]:
        """A device's events later than a time, newest first; of one time the later recorded first."""
        numbered = [
            (e.us, n, e)
            for n, e in enumerate(self.events)
            if e.device_id == device_id and e.us > after
        ]
        return [event for _, _, event in sorted(numbered, key=lambda item: item[:2], reverse=True)]

    def window(self, meter: Meter, after: int) -> list[Row]:
        """The readings later than a time; where prune has taken some of them, its first hour is whole."""
        begin = after // HOUR * HOUR if self.has_whole_hours(meter, after) else after + 1
        return sorted(row for row in meter.counted if row[0] >= begin)

    def has_whole_hours(self, meter: Meter, after: int) -> bool:
        """Whether prune has taken readings of the window that begins after a time."""
        return meter.pruned > after

    def energy(self, rows: list[Row], before: Row | None = None) -> tuple[float, float]:
        """Watt-hours out and in over neighbouring readings, in order of time."""
        out = taken_in = 0.0
        chain = rows if before is None else [before, *rows]
        for (t0, v0, c0, _), (t1, v1, c1, _) in itertools.pairwise(chain):
            if t1 - t0 <= self.max_gap_us:
                step = (v0 * c0 + v1 * c1) * (t1 - t0) / (2 * HOUR)
                out, taken_in = out + max(step, 0.0), taken_in + max(-step, 0.0)
        return out, taken_in

    def statistics(self, rows: list[Row], before: Row | None = None) -> dict[str, float]:
        """What reports and statistics say of readings in order of time."""
        watts = [v * c for _, v, c, _ in rows]
        out, taken_in = self.energy(rows, before)
        return {
            "reading_count": len(rows),
            "avg_wattage": math.fsum(watts) / len(rows),
            "min_wattage": min(watts),
            "max_wattage": max(watts),
            "min_charge_pct": min(row[3] for row in rows),
            "max_charge_pct": max(row[3] for row in rows),
            "energy_out_wh": out,
            "energy_in_wh": taken_in,
        }

    def buckets(self, meter: Meter, size: int, after: int) -> dict[int, dict[str, float]]:
        """Statistics of each bucket with readings, from the one on in which that time is."""
        rows, found = sorted(meter.counted), {}
        for start in sorted({row[0] // size * size for row in rows}):
            if start >= after // size * size:
                part = [row for row in rows if row[0] // size * size == start]
                before = [row for row in rows if row[0] < start]
                found[start] = self.statistics(part, before[-1] if before else None)
        return found

    def runtime(self, batteries: list[tuple[float, float, float]]) -> float | None:
        """Hours until batteries of (Wh, %, W out) are empty."""
        known = [battery for battery in batteries if battery[0] > 0]
        watts = sum(battery[2] for battery in known)
        return sum(wh * charge / 100 for wh, charge, _ in known) / watts if watts > 0 else None


ENERGIES = ("energy_out_wh", "energy_in_wh")


def differences(expected: dict[str, float], got: Any, energy_known: bool = True) -> list[str]:
    """Where statistics differ from those expected; `got` is a dict or a record."""
    wrong = []
    for name, value in expected.items():
        if name in ENERGIES and not energy_known:
            continue
        shown = got[name] if isinstance(got, dict) else getattr(got, name)
        if not math.isclose(value, shown, rel_tol=1e-7, abs_tol=1e-6):
            wrong.append(f"{name}: expected {value!r}, got {shown!r}")
    return wrong
