"""The energy of a device in its file: out and in of each meter, and what the device used.

In an hour a device uses its energy out less its energy in, over the meters that count, and nothing
if more went in than out: a battery that is charged from a source without a meter would otherwise
take back what was used before.

Each sum covers all hours of a meter. They are read once, and from then on only the last ones; the
sums are kept in the file for the next start. The file's total, which is compared at the start and
then now and then, shows whether a late reading or a correction has changed an older hour.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
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
from power_mqtt.sums import DeviceSum, MeterSum, load_sum, save_sums

_RECENT_HOURS = 2  # the hour under way, and the one before it for slightly late readings
_LEAST_PAUSE_S = 2.0  # seconds between looking back at two meters, at least
_PAUSE_PER_READ = 499  # the pause, in times that looking back at a meter takes: 0.2 % of the time
_ROUNDING_WH = 0.001  # of an hour's energy, times the hours of ten years


class Energy(NamedTuple):
    """Watt-hours out of a meter and into it."""

    out_wh: float
    in_wh: float


def energy_after(pm: PowerManager, meter_id: str, time: str) -> Energy:
    """What the file books between the reading of that time and the next one with watts.

    Raises NotFound.
    """
    before: PowerReading | None = None
    for reading in pm.iter_history(meter_id, since=time or 0):
        if reading.voltage is None or reading.current_draw is None:
            continue
        if before is None:
            if reading.timestamp != time:
                break  # it was deleted
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
class _Read:
    """What was read of a device: the hours before `from_us` of all meters but `unread`.

    is_saved: the sums are from the table; those of `unread` are still to be compared.
    """

    from_us: int
    meters: list[PowerMeter]
    unread: list[PowerMeter]
    out_wh: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by meter
    in_wh: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    net_wh: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # by hour's start
    used_wh: float = 0.0  # of the hours that are not in net_wh any more
    is_saved: bool = False

    @classmethod
    def saved(cls, saved: DeviceSum, meters: list[PowerMeter]) -> _Read:
        """What was saved of a device with these meters."""
        read = cls(saved.before_us, meters, list(meters), is_saved=True)
        for meter in saved.meters:
            read.out_wh[meter.meter_id] = meter.out_wh
            read.in_wh[meter.meter_id] = meter.in_wh
        read.used_wh = saved.used_wh
        return read

    def to_save(self, device_id: str) -> DeviceSum:
        """The same as a row of the table."""
        meters = [
            MeterSum(meter.id, self.out_wh[meter.id], self.in_wh[meter.id]) for meter in self.meters
        ]
        return DeviceSum(device_id, self.from_us, self.used_wh, tuple(meters))

    def close(self) -> None:
        """Add the hours to the sum, and drop them, once all meters are read."""
        self.used_wh += sum(max(net_wh, 0.0) for net_wh in self.net_wh.values())
        self.net_wh.clear()


class EnergyReader:
    """Reads the energy of devices from a file: all hours of a meter once, and then the last ones.

    read() does it all. To be held up less, call prepare() until it says that a device is ready: it
    reads one meter at a time, which takes some hundredths of a second for each year, or compares
    what save() has kept in the file, which takes milliseconds. look_back() compares one meter after
    another with the file's total, in at most 0.2 % of the time, and forgets a device whose older
    hours have changed.

    clock: returns the time in epoch seconds, as the PowerManager's own does. monotonic: returns
    seconds that only go up, to measure what looking back costs.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._read: dict[str, _Read] = {}  # by device
        self._turns: list[tuple[str, PowerMeter]] = []  # the meters still to be compared
        self._next_turn = 0.0

    def forget(self) -> None:
        """Forget what was read: the file is another one."""
        self._read.clear()
        self._turns.clear()

    def is_ready(self, device_id: str, meters: Sequence[PowerMeter]) -> bool:
        """Whether read() of a device with these meters will be quick."""
        known = self._known(device_id, meters)
        return known is not None and not known.unread

    def _known(self, device_id: str, meters: Sequence[PowerMeter]) -> _Read | None:
        known = self._read.get(device_id)
        if known is None or [meter.id for meter in known.meters] != [meter.id for meter in meters]:
            return None
        return known

    def prepare(self, pm: PowerManager, device_id: str, meters: Iterable[PowerMeter]) -> bool:
        """Read one more meter of a device with these meters; return whether none is left.

        Raises NotFound if a meter was deleted.
        """
        meters = list(meters)
        known = self._known(device_id, meters)
        if known is None:
            known = self._load(pm, device_id, meters) or self._anew(meters)
            self._read[device_id] = known
        if known.unread and known.is_saved:
            is_as_read = self._is_as_read(pm, known, known.unread[-1])
            if is_as_read:
                known.unread.pop()
            elif is_as_read is not None:
                self._read[device_id] = self._anew(meters)
                return False
        elif known.unread:
            self._add(pm, known, known.unread[-1], 0, known.from_us)
            known.unread.pop()
            if not known.unread:
                known.close()
        return not known.unread

    def _anew(self, meters: list[PowerMeter]) -> _Read:
        return _Read(self._recent_us(), meters, list(meters))

    def _load(self, pm: PowerManager, device_id: str, meters: list[PowerMeter]) -> _Read | None:
        """What was saved, if it is of the same meters."""
        saved = load_sum(pm, device_id)
        if saved is None:
            return None
        is_same = [meter.meter_id for meter in saved.meters] == [meter.id for meter in meters]
        return _Read.saved(saved, meters) if is_same else None

    def save(self, pm: PowerManager, present: Iterable[str]) -> None:
        """Keep what was read in the file, without devices that are not present.

        Raises StorageError.
        """
        present = set(present)
        ready = {id_: known for id_, known in self._read.items() if not known.unread}
        rows = [known.to_save(id_) for id_, known in ready.items() if id_ in present]
        save_sums(pm, rows, present)

    def read(self, pm: PowerManager, device_id: str, meters: Iterable[PowerMeter]) -> DeviceEnergy:
        """The energy of a device with these meters now. Raises NotFound if one was deleted."""
        meters = list(meters)
        while not self.prepare(pm, device_id, meters):
            pass
        known = self._read[device_id]
        self._move_on(pm, known)
        recent = _Read(known.from_us, meters, [])
        for meter in meters:
            self._add(pm, recent, meter, known.from_us, None)
        recent.close()
        by_meter: dict[str, Energy] = {}
        for meter in meters:
            out_wh = known.out_wh[meter.id] + recent.out_wh[meter.id]
            in_wh = known.in_wh[meter.id] + recent.in_wh[meter.id]
            by_meter[meter.id] = Energy(out_wh, in_wh)
        return DeviceEnergy(by_meter, known.used_wh + recent.used_wh)

    def look_back(self, pm: PowerManager) -> None:
        """Compare the next meter with the file, if it is time to."""
        begin = self._monotonic()
        if begin < self._next_turn:
            return
        if not self._turns:
            for device_id, known in self._read.items():
                self._turns += [(device_id, meter) for meter in known.meters if not known.unread]
        if not self._turns:
            return
        device_id, meter = self._turns.pop()
        try:
            read = self._read.get(device_id)
            if read is not None and self._is_as_read(pm, read, meter) is False:
                del self._read[device_id]
        except NotFound:  # it was deleted in this moment
            del self._read[device_id]
        end = self._monotonic()
        self._next_turn = end + max((end - begin) * _PAUSE_PER_READ, _LEAST_PAUSE_S)

    def _is_as_read(self, pm: PowerManager, known: _Read, meter: PowerMeter) -> bool | None:
        """Whether a meter's older hours are what is known; None if that cannot be said now."""
        before = self._recent(pm, known.from_us, meter)
        total = pm.energy_totals(meter.id)
        recent = self._recent(pm, known.from_us, meter)
        if recent != before:
            # Another program is writing. A transaction would hold it up; the meter's turn returns.
            return None
        out_wh = total.energy_out_wh - recent.out_wh - known.out_wh[meter.id]
        in_wh = total.energy_in_wh - recent.in_wh - known.in_wh[meter.id]
        return max(abs(out_wh), abs(in_wh)) < _ROUNDING_WH

    def _recent(self, pm: PowerManager, from_us: int, meter: PowerMeter) -> Energy:
        sums = _Read(from_us, [meter], [])
        self._add(pm, sums, meter, from_us, None)
        return Energy(sums.out_wh[meter.id], sums.in_wh[meter.id])

    def _move_on(self, pm: PowerManager, known: _Read) -> None:
        """Add to what is known the hours that are no longer the last ones."""
        from_us = self._recent_us()
        if from_us <= known.from_us:
            return
        more = _Read(from_us, known.meters, [])
        for meter in known.meters:
            self._add(pm, more, meter, known.from_us, from_us)
        more.close()
        for meter in known.meters:
            known.out_wh[meter.id] += more.out_wh[meter.id]
            known.in_wh[meter.id] += more.in_wh[meter.id]
        known.used_wh += more.used_wh
        known.from_us = from_us

    def _add(
        self, pm: PowerManager, sums: _Read, meter: PowerMeter, start_us: int, end_us: int | None
    ) -> None:
        """Add the hours of a meter from start_us to before end_us (None: all later ones)."""
        # One hour more, in case the clock is set back meanwhile; earlier rows are skipped below.
        days = (max(self._now_us() - start_us, 0) + HOUR_US) / DAY_US
        is_counted = any(meter.id == counted.id for counted in counted_meters(sums.meters))
        rows = pm.get_statistics(meter.id, days=days)
        for row in rows:
            hour_us = to_microseconds(row.start)
            if hour_us < start_us or (end_us is not None and hour_us >= end_us):
                continue
            sums.out_wh[meter.id] += row.energy_out_wh
            sums.in_wh[meter.id] += row.energy_in_wh
            if is_counted:
                sums.net_wh[hour_us] += row.energy_out_wh - row.energy_in_wh

    def _recent_us(self) -> int:
        """Where the last hours begin."""
        return (self._now_us() // HOUR_US + 1 - _RECENT_HOURS) * HOUR_US

    def _now_us(self) -> int:
        return round(self._clock() * SECOND_US)
