"""What the library promises, once more in plain Python, from the rules of its docstrings.

Times are whole microseconds since 1970. Nothing here is fast, and nothing is taken from
power_manager.py, nor from the model in its tests: where one of the three misreads a rule, the
other two tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
MAX_GAP = 5400 * SECOND  # the library's default


class Row(NamedTuple):
    """One reading: microseconds, volts, amperes, percent; None: not known."""

    us: int
    volts: float | None
    amperes: float | None
    charge: float | None

    @property
    def watts(self) -> float | None:
        """Watts, where both volts and amperes are known."""
        if self.volts is None or self.amperes is None:
            return None
        return self.volts * self.amperes

    @property
    def hour(self) -> int:
        """The hour since 1970 in which it was taken."""
        return self.us // HOUR


class Given(NamedTuple):
    """One reading as a caller gives it, with its time; without a charge the last one is meant."""

    meter_id: str
    volts: float | None
    amperes: float | None
    charge: float | None
    us: int
    live: bool


NEW = Row(-1, 0.0, 0.0, 100.0)  # the present state of a meter without readings


@dataclass
class Statistics:
    """Statistics of some readings; wattages are of those whose watts are known."""

    reading_count: int = 0
    watts: list[float] = field(default_factory=list)
    charges: list[float] = field(default_factory=list)
    energy_out_wh: float = 0.0
    energy_in_wh: float = 0.0
    energy_known: bool = True

    def shown(self) -> dict[str, float | None]:
        """As the library tells them."""
        watts = self.watts
        return {
            "reading_count": self.reading_count,
            "avg_wattage": math.fsum(watts) / len(watts) if watts else None,
            "min_wattage": min(watts, default=None),
            "max_wattage": max(watts, default=None),
            "min_charge_pct": min(self.charges, default=None),
            "max_charge_pct": max(self.charges, default=None),
            "energy_out_wh": self.energy_out_wh,
            "energy_in_wh": self.energy_in_wh,
        }


def total(parts: list[Statistics]) -> Statistics:
    """The statistics of all parts together."""
    found = Statistics()
    for part in parts:
        found.reading_count += part.reading_count
        found.watts += part.watts
        found.charges += part.charges
        found.energy_out_wh += part.energy_out_wh
        found.energy_in_wh += part.energy_in_wh
        found.energy_known = found.energy_known and part.energy_known
    return found


@dataclass
class Meter:
    """One meter: the readings that are kept, the hours that are closed, and its present state."""

    id: str
    device_id: str
    kind: str
    capacity_wh: float
    name: str | None
    kept: dict[int, Row] = field(default_factory=dict)
    pruned: dict[int, Row] = field(default_factory=dict)  # counted, and gone
    closed: dict[int, Statistics] = field(default_factory=dict)  # by hour since 1970
    last_of_closed: dict[int, int] = field(default_factory=dict)  # its last reading when it closed
    waiting: set[int] = field(default_factory=set)  # times of what is not acknowledged
    present: Row = NEW
    first_charge: float | None = 100.0  # before any reading
    forgotten: int = -1  # readings up to this time give later ones no charge
    updated: int | None = None
    last_live: int = -1
    last_clock: int = -1  # what the clock said then
    active: bool = True
    level: int = 0
    alerted: int = 0

    @property
    def newest(self) -> int:
        """The time of its newest reading; -1 without one."""
        return max(self.kept, default=-1)

    @property
    def watts(self) -> float | None:
        """Present watts, where they are known."""
        return self.present.watts


@dataclass
class Event:
    """One event, in order of recording."""

    device_id: str
    kind: str
    value: float
    us: int
    note: str | None = None
    meter_id: str | None = None


@dataclass
class Device:
    """One device as it was registered last."""

    id: str
    name: str
    shutdown_threshold: float = 3.0
    target_wh: float | None = None
    low: float | None = None
    critical: float | None = None


class Refused(Exception):
    """The library must refuse this call."""


class Model:
    """A whole database."""

    def __init__(
        self,
        alert_repeat_us: int | None = None,
        max_gap_us: int = MAX_GAP,
        alert_kinds: tuple[str, ...] = ("battery",),
    ) -> None:
        self.devices: dict[str, Device] = {}
        self.meters: dict[str, Meter] = {}
        self.events: list[Event] = []
        self.deletions: list[tuple[str, str | None, str]] = []  # device, meter, kind
        self.alert_repeat_us = alert_repeat_us
        self.max_gap_us = max_gap_us
        self.alert_kinds = alert_kinds

    def of_device(self, device_id: str) -> list[Meter]:
        """A device's meters, in order of adding."""
        return [meter for meter in self.meters.values() if meter.device_id == device_id]

    # --- Readings

    def live(
        self,
        meter: Meter,
        now: int,
        volts: float | None,
        amperes: float | None,
        charge: float | None,
    ) -> Row:
        """Log a reading that is taken at that time, whatever is there already."""
        us = self._free_instant(meter, now)
        row = Row(us, volts, amperes, meter.present.charge if charge is None else _clamped(charge))
        self._store(meter, row)
        self._becomes_present(meter, row)
        return row

    @staticmethod
    def _free_instant(meter: Meter, us: int) -> int:
        """The first free microsecond; where the clock has stood still, behind the last live one."""
        clock = us
        if us in meter.kept and us == meter.last_clock:
            us = meter.last_live + 1
        while us in meter.kept:
            us += 1
        meter.last_live = us
        meter.last_clock = clock
        return us

    def _store(self, meter: Meter, row: Row) -> None:
        if row.hour in meter.closed:
            self._add_to_closed(meter, row)
        meter.kept[row.us] = row
        meter.waiting.add(row.us)

    def recorded(
        self,
        meter: Meter,
        us: int,
        volts: float | None,
        amperes: float | None,
        charge: float | None,
    ) -> tuple[Row, bool]:
        """Log a reading with a time; say what is returned, and whether it was stored."""
        if us in meter.kept:
            return meter.kept[us], False
        filled = self._charge_before(meter, us) if charge is None else _clamped(charge)
        row = Row(us, volts, amperes, filled)
        if row.hour in meter.closed:
            return row, False
        is_newest = us > meter.newest
        self._store(meter, row)
        if is_newest:
            self._becomes_present(meter, row)
        return row, True

    def many(self, readings: list[Given]) -> int:
        """Log readings in one call; return how many were stored.

        A live reading without a charge takes the last one that was given; recorded ones take that
        of the reading before them in time, which may be of this call and come later.
        """
        accepted: list[tuple[Given, bool]] = []  # with its time; whether it is the present state
        unfilled: list[tuple[str, int]] = []  # recorded ones without a charge
        present: dict[str, float | None] = {}
        newest: dict[str, int] = {}
        for given in readings:
            meter = self.meters[given.meter_id]
            us = given.us
            if given.live:
                us = self._free_instant(meter, us)
            elif us in meter.kept or us // HOUR in meter.closed:
                continue
            is_present = given.live or us > newest.setdefault(meter.id, meter.newest)
            newest[meter.id] = max(us, newest.setdefault(meter.id, meter.newest))
            charge = None if given.charge is None else _clamped(given.charge)
            last_given = present.setdefault(meter.id, meter.present.charge)
            if charge is None and given.live:
                charge = last_given
            elif charge is None:
                unfilled.append((meter.id, us))
            elif is_present:
                present[meter.id] = charge
            self._store(meter, Row(us, given.volts, given.amperes, charge))
            accepted.append((given._replace(us=us), is_present))
        for meter_id, us in sorted(unfilled):  # each takes that of the reading before it in time
            meter = self.meters[meter_id]
            meter.kept[us] = meter.kept[us]._replace(charge=self._charge_before(meter, us))
        for given, is_present in accepted:
            if is_present:
                meter = self.meters[given.meter_id]
                self._becomes_present(meter, meter.kept[given.us])
        return len(accepted)

    @staticmethod
    def _charge_before(meter: Meter, us: int) -> float | None:
        """The charge of the reading before a time; without one, that of a new meter."""
        before = [row for row in meter.kept.values() if row.us < us]
        if not before:
            return meter.first_charge
        last = max(before)
        return None if last.us <= meter.forgotten < us else last.charge

    @staticmethod
    def forget_charge(meter: Meter) -> None:
        """The charge is unknown from now on; readings and the alert level stay."""
        meter.first_charge = None
        if meter.present.charge is not None:
            meter.forgotten = meter.newest
            meter.present = meter.present._replace(charge=None)

    def _becomes_present(self, meter: Meter, row: Row) -> None:
        meter.updated = row.us
        meter.present = row
        meter.active = True
        if meter.kind not in self.alert_kinds or row.charge is None:
            return
        before = meter.level
        meter.level = self._next_level(meter)
        repeat = self.alert_repeat_us
        again = repeat is not None and meter.level > 0 and abs(row.us - meter.alerted) >= repeat
        if meter.level > before or again:
            kind = "low_battery" if meter.level == 2 else "discharge"
            self.events.append(Event(meter.device_id, kind, row.charge, row.us, None, meter.id))
            meter.alerted = row.us

    def _next_level(self, meter: Meter) -> int:
        """The alert level by the present charge and the level before."""
        low, critical = self.thresholds(meter)
        charge = meter.present.charge
        if charge is None:
            return meter.level
        if charge <= critical or (meter.level == 2 and charge < critical + 2):
            return 2
        return int(charge <= low or (meter.level > 0 and charge < low + 2))

    def thresholds(self, meter: Meter) -> tuple[float, float]:
        """The low and the critical threshold of a meter's device."""
        device = self.devices[meter.device_id]
        low = 20.0 if device.low is None else device.low
        critical = 5.0 if device.critical is None else device.critical
        return low, critical

    # --- Deleting

    def prune(self, cutoff: int) -> int:
        """Close the whole hours before a time; return how many readings went."""
        return sum(self._prune_meter(meter, cutoff) for meter in self.meters.values())

    def _prune_meter(self, meter: Meter, cutoff: int) -> int:
        # Whole hours, and never that of the newest reading.
        ending = min(cutoff // HOUR, meter.newest // HOUR)
        old = sorted(row for row in meter.kept.values() if row.hour < ending)
        if not old:
            return 0
        for hour in {row.hour for row in old} - meter.closed.keys():
            meter.closed[hour] = self.hour(meter, hour)
            meter.last_of_closed[hour] = max(row.us for row in old if row.hour == hour)
        last = old[-1]
        powered = [row for row in old if row.watts is not None]
        left = {last.us}
        if powered and last.us - powered[-1].us <= self.max_gap_us:
            left.add(powered[-1].us)
        gone = [row for row in old if row.us not in left]
        for row in gone:
            del meter.kept[row.us]
            meter.pruned[row.us] = row
            meter.waiting.discard(row.us)
        return len(gone)

    def delete_readings(self, meter: Meter, since: int, until: int) -> int:
        """Delete the readings of a span; return how many. Raises Refused in a closed hour."""
        for hour in meter.closed:
            start = hour * HOUR
            if start < until and since < start + HOUR and not since <= start <= until - HOUR:
                raise Refused
        inside = [us for us in meter.kept if since <= us < until]
        for us in inside:
            del meter.kept[us]
            meter.waiting.discard(us)
        for us in [us for us in meter.pruned if since <= us < until]:
            del meter.pruned[us]
        for hour in [hour for hour in meter.closed if since <= hour * HOUR < until]:
            del meter.closed[hour]
        self.deletions.append((meter.device_id, meter.id, "readings"))
        if meter.updated is not None and since <= meter.updated < until:
            self._take_newest(meter)
        meter.forgotten = min(meter.forgotten, meter.newest)
        return len(inside)

    def _take_newest(self, meter: Meter) -> None:
        """Let the newest reading that is left be the present state, without an event."""
        if not meter.kept:
            meter.present = NEW._replace(charge=meter.first_charge)
            meter.updated = None
            meter.level = 0
            return
        meter.present = max(meter.kept.values())
        meter.updated = meter.present.us
        if meter.updated <= meter.forgotten:
            meter.present = meter.present._replace(charge=None)
        if meter.level:
            meter.level = self._next_level(meter)

    def delete_meter(self, meter: Meter) -> None:
        """Delete a meter and its readings; events stay."""
        del self.meters[meter.id]
        self.deletions.append((meter.device_id, meter.id, "meter"))

    def delete_device(self, device_id: str) -> None:
        """Delete a device with its meters and events."""
        for meter in self.of_device(device_id):
            del self.meters[meter.id]
        self.events = [event for event in self.events if event.device_id != device_id]
        del self.devices[device_id]
        self.deletions.append((device_id, None, "device"))

    # --- Reading

    def state(self, meter: Meter) -> str:
        """A meter's present state."""
        if meter.kind == "solar":
            return "charging"
        if meter.kind == "main":
            return "normal" if meter.present.volts else "unknown"
        low, critical = self.thresholds(meter)
        charge = meter.present.charge
        if charge is None:
            return "unknown"
        if charge <= low:
            return "critical" if charge < critical else "low"
        return "charging" if charge >= 95 else "normal"

    def events_of(self, device_id: str, after: int = -1) -> list[Event]:
        """A device's events later than a time, newest first; of one time the last stored first."""
        numbered = []
        for number, event in enumerate(self.events):
            if event.device_id == device_id and event.us > after:
                numbered.append((event.us, number, event))
        numbered.sort(key=lambda item: item[:2], reverse=True)
        return [event for _, _, event in numbered]

    def counted(self, meters: list[Meter]) -> list[Meter]:
        """The meters whose energy is consumption: a ups only where there is no main meter."""
        has_main = any(meter.kind == "main" for meter in meters)
        return [meter for meter in meters if not (meter.kind == "ups" and has_main)]

    # --- Statistics

    def of_rows(self, rows: list[Row], before: Row | None) -> Statistics:
        """Of readings in order of time; `before` is the last one with known watts before them."""
        found = Statistics(reading_count=len(rows))
        found.charges = [row.charge for row in rows if row.charge is not None]
        for row in rows:
            watts = row.watts
            if watts is None:
                continue
            found.watts.append(watts)
            if before is not None and row.us - before.us <= self.max_gap_us:
                before_watts = before.watts
                assert before_watts is not None
                energy = (watts + before_watts) * (row.us - before.us) / (2 * HOUR)
                found.energy_out_wh += max(energy, 0.0)
                found.energy_in_wh += max(-energy, 0.0)
            before = row
        return found

    def _before(self, meter: Meter, us: int) -> Row | None:
        """The last reading before a time with known watts; None also where prune has taken it."""
        known = [
            row
            for row in (*meter.kept.values(), *meter.pruned.values())
            if row.us < us and row.watts is not None
        ]
        if not known:
            return None
        last = max(known)
        return last if last.us in meter.kept else None

    def hour(self, meter: Meter, hour: int) -> Statistics:
        """The statistics of one hour since 1970."""
        if hour in meter.closed:
            return meter.closed[hour]
        rows = sorted(row for row in meter.kept.values() if row.hour == hour)
        found = self.of_rows(rows, self._before(meter, rows[0].us))
        found.energy_known = not self._may_miss_readings(meter, rows[0])
        return found

    def _may_miss_readings(self, meter: Meter, row: Row) -> bool:
        """Whether the library cannot tell that no reading before this one was pruned."""
        before = self._before(meter, row.us)
        if before is None:
            return False
        if any(before.hour < hour < row.hour for hour in meter.closed):
            return True
        return before.hour in meter.closed and meter.last_of_closed[before.hour] in meter.pruned

    def _add_to_closed(self, meter: Meter, row: Row) -> None:
        """Count a live reading in a closed hour.

        Its energy is known where it follows the last reading of that hour, and that is still
        there. Otherwise it is not compared: its neighbours may be gone.
        """
        closed = meter.closed[row.hour]
        everything = (*meter.kept.values(), *meter.pruned.values())
        is_last = not any(other.hour == row.hour and other.us > row.us for other in everything)
        if not is_last or meter.last_of_closed[row.hour] in meter.pruned:
            closed.energy_known = False
        before = self._before(meter, row.us)
        if before is not None and before.hour != row.hour:
            before = None
        added = total([closed, self.of_rows([row], before)])
        meter.closed[row.hour] = added

    def hours(self, meter: Meter) -> dict[int, Statistics]:
        """The statistics of every hour, in order of time."""
        numbers = {row.hour for row in meter.kept.values()} | meter.closed.keys()
        return {number: self.hour(meter, number) for number in sorted(numbers)}

    def energy_totals(self, meter: Meter) -> Statistics:
        """Over all hours."""
        return total(list(self.hours(meter).values()))

    def window(self, meter: Meter, after: int) -> Statistics | None:
        """Of the readings later than a time.

        Up to the hour of the first one with watts, they are counted one by one, without the energy
        that leads into the window. A closed hour there counts whole, and so does all that follows;
        readings before it, in the hour in which the window starts, have no watts then.
        """
        rows = sorted(row for row in meter.kept.values() if row.us > after)
        powered = [
            row for row in rows if row.watts is not None and row.us <= after + self.max_gap_us
        ]
        start = after // HOUR
        parts = []
        if rows:
            first = powered[0].hour if powered else rows[0].hour
            if not any(start <= hour <= first for hour in meter.closed):
                parts.append(self.of_rows([row for row in rows if row.hour <= first], None))
                start = first
            elif start not in meter.closed and rows[0].hour == start:
                parts.append(self.of_rows([row for row in rows if row.hour == start], None))
        for number, part in self.hours(meter).items():
            if number > start or (number == start and number in meter.closed):
                parts.append(part)
        return total(parts) if parts else None

    def buckets(self, meter: Meter, size: int, after: int) -> dict[int, Statistics]:
        """Statistics of each bucket with readings, from the one on in which that time is."""
        found: dict[int, list[Statistics]] = {}
        for number, part in self.hours(meter).items():
            start = number * HOUR // size * size
            if start >= after // size * size:
                found.setdefault(start, []).append(part)
        return {start: total(parts) for start, parts in found.items()}

    def runtime(self, batteries: list[Meter]) -> float | None:
        """Hours until batteries are empty."""
        known = [
            meter
            for meter in batteries
            if meter.capacity_wh > 0 and meter.active and meter.present.charge is not None
        ]
        if any(meter.watts is None for meter in known):
            return None
        watts = sum(meter.watts or 0.0 for meter in known)
        if watts <= 0:
            return None
        wh = sum(meter.capacity_wh * (meter.present.charge or 0.0) / 100 for meter in known)
        return wh / watts


def _clamped(charge: float) -> float:
    return min(max(charge, 0.0), 100.0)


ENERGIES = ("energy_out_wh", "energy_in_wh")


def differences(expected: Statistics, got: Any) -> list[str]:
    """Where statistics differ from those expected; `got` is a dict or a record."""
    wrong = []
    for name, value in expected.shown().items():
        if name in ENERGIES and not expected.energy_known:
            continue
        shown = got[name] if isinstance(got, dict) else getattr(got, name)
        if value is None or shown is None:
            same = value is shown
        else:
            same = math.isclose(value, shown, rel_tol=1e-7, abs_tol=1e-6)
        if not same:
            wrong.append(f"{name}: expected {value!r}, got {shown!r}")
    return wrong
