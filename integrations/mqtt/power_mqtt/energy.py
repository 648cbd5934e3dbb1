"""The energy of a device as its file has it: out and in of each meter, and what the device used.

A device used, in an hour, its energy out less its energy in over the meters that count, and nothing where more went in
than out: a battery that is charged from a source without a meter would take back what was used before otherwise.

Behind each sum are all hours of a meter, so they are read once; from then on only the hours since, until their device's
turn comes again to be read whole. A late reading of an older hour, and a correction of one, is seen then.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from power_manager import (
    DAY_US,
    HOUR_US,
    SECOND_US,
    NotFound,
    PowerManager,
    PowerMeter,
    PowerReading,
    counted_meters,
    to_microseconds,
)

_RECENT_HOURS = 2  # an hour under way, and the one before it for what is a little late
_PAUSE_PER_READ = (
    499  # times as long as reading a device whole takes, no other one is read: 0.2 % of the time
)


class Energy(NamedTuple):
    """Watt-hours out of a meter and into it."""

    out_wh: float
    in_wh: float


def energy_after(pm: PowerManager, meter_id: str, time: str) -> Energy:
    """What the file books between the reading of that time and the next one with watts. Raises NotFound."""
    before: PowerReading | None = None
    for reading in pm.iter_history(meter_id, since=time or 0):
        if reading.voltage is None or reading.current_draw is None:
            continue
        if before is None:
            if reading.timestamp != time:
                break  # it is not there any more
            before = reading
            continue
        elapsed_s = (to_microseconds(reading.timestamp) - to_microseconds(time)) / SECOND_US
        if elapsed_s > pm.max_gap:
            break
        energy_wh = (_watts(before) + _watts(reading)) * elapsed_s / 7200
        return Energy(max(energy_wh, 0.0), max(-energy_wh, 0.0))
    return Energy(0.0, 0.0)


def _watts(reading: PowerReading) -> float:
    return (reading.voltage or 0.0) * (reading.current_draw or 0.0)


@dataclass(frozen=True)
class DeviceEnergy:
    """The energy of one device since its first reading: by meter's id, and what it used, in Wh."""

    meters: dict[str, Energy]
    used_wh: float


@dataclass
class _Sums:
    """Sums of a device over some hours."""

    out_wh: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    in_wh: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    net_wh: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # by hour's start

    def used_wh(self) -> float:
        return sum(max(net_wh, 0.0) for net_wh in self.net_wh.values())


@dataclass
class _Read:
    """What was read of a device: the hours before `from_us`, which are not read again until its turn comes."""

    from_us: int
    meter_ids: list[str]
    out_wh: dict[str, float]
    in_wh: dict[str, float]
    used_wh: float


class EnergyReader:
    """Reads the energy of devices from a file, each whole in its turn and its last hours whenever it is asked for.

    clock: returns the time in epoch seconds, as the PowerManager's own does. monotonic: returns seconds that only go
    up, to measure what reading costs.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._read: dict[str, _Read] = {}  # by device, the one read longest ago first
        self._next_turn = 0.0

    def forget(self) -> None:
        """Forget what was read: the file is another one."""
        self._read.clear()

    def read(self, pm: PowerManager, device_id: str, meters: Iterable[PowerMeter]) -> DeviceEnergy:
        """The energy of a device with these meters now. Raises NotFound if one of them is gone."""
        meters = list(meters)
        known = self._read.get(device_id)
        if known is None or known.meter_ids != [meter.id for meter in meters]:
            known = self._read_whole(pm, device_id, meters)
        recent = self._sums(pm, meters, known.from_us)
        by_meter: dict[str, Energy] = {}
        for meter in meters:
            out_wh = known.out_wh.get(meter.id, 0.0) + recent.out_wh.get(meter.id, 0.0)
            in_wh = known.in_wh.get(meter.id, 0.0) + recent.in_wh.get(meter.id, 0.0)
            by_meter[meter.id] = Energy(out_wh, in_wh)
        return DeviceEnergy(by_meter, known.used_wh + recent.used_wh())

    def take_turn(self, pm: PowerManager) -> None:
        """Read the device whose turn it is whole, if it is time to: in at most 0.2 % of the time."""
        begin = self._monotonic()
        if begin < self._next_turn or not self._read:
            return
        device_id = next(iter(self._read))
        meters = pm.list_meters(device_id)
        self._read.pop(device_id)
        if meters:
            try:
                self._read_whole(pm, device_id, meters)
            except NotFound:
                return  # deleted in this moment
        end = self._monotonic()
        self._next_turn = end + (end - begin) * _PAUSE_PER_READ

    def _read_whole(self, pm: PowerManager, device_id: str, meters: list[PowerMeter]) -> _Read:
        """Read all hours of a device but the last ones, and remember their sums."""
        now_hour = self._now_us() // HOUR_US
        from_us = (now_hour + 1 - _RECENT_HOURS) * HOUR_US
        sums = self._sums(pm, meters, 0, from_us)
        known = _Read(
            from_us, [meter.id for meter in meters], sums.out_wh, sums.in_wh, sums.used_wh()
        )
        self._read.pop(device_id, None)
        self._read[device_id] = known
        return known

    def _sums(
        self,
        pm: PowerManager,
        meters: list[PowerMeter],
        start_us: int,
        end_us: int | None = None,
    ) -> _Sums:
        """The sums of the hours from start_us on and before end_us."""
        counted = {meter.id for meter in counted_meters(meters)}
        # One hour more, for a clock that is set back meanwhile; the rows are compared with the start.
        days = (max(self._now_us() - start_us, 0) + HOUR_US) / DAY_US
        sums = _Sums()
        for meter in meters:
            for row in pm.get_statistics(meter.id, days=days):
                hour_us = to_microseconds(row.start)
                if hour_us < start_us or (end_us is not None and hour_us >= end_us):
                    continue
                sums.out_wh[meter.id] += row.energy_out_wh
                sums.in_wh[meter.id] += row.energy_in_wh
                if meter.id in counted:
                    sums.net_wh[hour_us] += row.energy_out_wh - row.energy_in_wh
        return sums

    def _now_us(self) -> int:
        return round(self._clock() * SECOND_US)
