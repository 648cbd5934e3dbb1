"""Log this machine's power sensors into power_manager, and shut down when the battery ends.

    python -m power_collector sources              # what this machine has
    python -m power_collector run edge-001         # log it every 5 s, until SIGTERM or Ctrl-C

Standard library only, beside power_manager.py: two copied files are enough. The parts of this file,
in its order: constants; values (text and numbers of a sensor); samples and sources (Supply: the
kernel's power supplies, Rail: INA219 and the like, Nut: a UPS by upsd, ApcUps: one by apcupsd,
Program: any other); charge from volts (--curve); discovery (names, --map); commands (--exec);
systemd; clocks and options; history of a meter (directions, values that stand in, --min-change);
shutdown watch; events; journal (readings, events and meters that wait for the file); collector (the
loop); command line.

As in power_manager, amperes and watts are positive while a source supplies, and negative while it
takes in. Intervals are measured by a clock that cannot be set and that also runs while the machine
sleeps. A reading keeps that clock's time until it is committed, and only then gets a time of day:
so a reading from before the time of day was set right is stored right.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import netrc
import os
import queue
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import power_manager
from power_manager import (
    Column,
    CommandParser,
    InvalidValue,
    MeterType,
    PowerEventType,
    PowerManager,
    PowerManagerError,
    PowerMeter,
    Screen,
    StopSignals,
    StorageError,
    __version__,
    log_to_stderr,
    make_table,
    nearest,
    open_secret,
    parse_duration,
    parse_number,
    plausible_charge,
    print_error,
    printable,
    program_name,
    run_program,
    shown_duration,
    shown_json,
    shown_number,
)

if TYPE_CHECKING:
    import ssl

__all__ = ["Clocks", "__version__", "main"]
_log = logging.getLogger("power_collector")

# --- Constants --------------------------------------------------------------------------------

RESCAN = 30.0  # seconds between looks for sensors that have come, gone or moved
HOLD = 60.0  # seconds for which a last known value stands in for one that cannot be read
TREND = 2.0  # points of charge after which a charge without a direction falls or rises
TREND_HOLD = 1800.0  # seconds for which such a direction lasts after the charge last moved
NOISE = 0.01  # amperes below which a monitor's current has no direction
SAME_CAPACITY = 0.01  # share by which the capacity of one and the same pack may wander
ROUGH_CAPACITY = 0.25  # the same where the capacity is ampere-hours times the present volts
EVENT_HOLD = 120.0  # seconds after which a state that has not changed is steady
URGENT_COUNT = 6  # urgent commits in URGENT_SPAN seconds, beside the regular ones
URGENT_SPAN = 600.0
LOST = 15.0  # seconds without an answer after which a UPS is lost
ALERT_TYPES = (MeterType.BATTERY, MeterType.UPS)  # meters whose charge raises alerts
RETRY = 5.0  # seconds after a failed commit until the next attempt
MAX_WAITING = 20_000  # readings kept in memory while the file cannot be written
MAX_SILENCE = 900.0  # seconds after which --min-change keeps a reading that has not changed
SLEPT = 60.0  # seconds beyond the interval between two looks after which the machine has slept
JUMPED = 60.0  # seconds; a jump of the time of day by more is logged
SETTLED = 600.0  # seconds without such a jump before old readings are pruned
DAY = 86_400.0  # seconds between two prunes
EXEC_LIMIT = 10.0  # seconds that a --exec command may take
SHUTDOWN_LIMIT = 30.0  # seconds to wait for the shutdown command
NUT_PORT = 3493
APCUPSD_PORT = 3551
NUT_LIMIT = 3.0  # seconds to wait for an answer of upsd
NUT_RETRY = 10.0  # seconds after a failed connection until the next attempt
NUT_USERNAME = (
    "POWER_NUT_USERNAME"  # in the environment, for every upsd that --nut-login does not name
)
NUT_PASSWORD = "POWER_NUT_PASSWORD"
_NUT_SIZE = 1 << 20  # bytes of an answer
PROGRAM_FIRST = 5.0  # seconds to wait for the first line of a --program, once
PROGRAM_MORE = 0.3  # seconds to wait for its other names after that
PROGRAM_HOLD = 60.0  # seconds for which its last line stands for the present
PROGRAM_GONE = 600.0  # seconds after which a name that it no longer prints is dropped
PROGRAM_PAUSE = 1.0  # seconds between its end and its next start; twice as long each time
PROGRAM_PAUSE_MAX = 300.0
PROGRAM_SOUND = 60.0  # seconds of a run after which the pause begins anew
PROGRAM_LIMIT = 2.0  # seconds that it may take to end after SIGTERM
PROGRAM_EXIT = 1.0  # seconds to wait for its end after it has closed its output
PROGRAM_LINE = 65_536  # bytes of a line
PROGRAM_READS = 4  # reads of 64 KiB at one look
PROGRAM_NAMES = 64
CURVE_LOW = 0.8  # volts below this share of a curve's lowest are another battery's,
CURVE_HIGH = 1.25  # and so are volts above this share of its highest; a charger's are lower
_LAST_TIME = 7_258_118_399.0  # the end of 2199, in epoch seconds: power_manager stores no later one
# A greater value is a broken sensor's, whether it was read or calculated.
_MAX = {
    "V": 1e3, "A": 1e3, "W": 1e5, "Wh": 1e6, "VA": 1e5, "s": 1e8, "C": 200.0, "%": 1e5,
    "ratio": 1e3,
}  # fmt: skip

# --- Values -----------------------------------------------------------------------------------

# "All bits set" in 16 bits, as drivers scale them: x 60 s, / 10, / 100, and as one of them rounds
# it; in micro-units.
_SENTINELS = {
    65535.0,
    6553.5,
    655.35,
    655.29,
    3932100.0,
    65535e3,
    65535e6,
    4294967295.0,
    2147483647.0,
}


_NUMBER = re.compile(r"[-+]?\d{1,18}(\.\d{1,18})?", re.ASCII)


def _clean(text: str) -> str:
    r"""Text without characters that no name, terminal or JSON should have.

    >>> _clean(" LNV-45N1\x00\udcff ")
    'LNV-45N1'
    """
    return "".join(char for char in text if char.isprintable() and char != "\ufffd").strip()[:150]


def _reason(error: Exception) -> str:
    """What is wrong, without the system's number for it."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _text(path: str) -> str:
    """The first line of a small file; "" where it is missing, unreadable or empty."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, 4096)
        finally:
            os.close(descriptor)
    except OSError:
        return ""
    return content.decode("utf-8", "replace").partition("\n")[0].strip()


def _number(text: str) -> float | None:
    """Text as a number; None for other text and for a sentinel.

    >>> [_number(text) for text in ("12.5", "655.290", "65535", "-7", "1e400", "")]
    [12.5, None, None, -7.0, None, None]
    """
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return None if abs(value) in _SENTINELS else value


def _sane(value: float | None, unit: str) -> float | None:
    """The value, unless only a broken sensor has it; all but charge and time may be negative."""
    return value if value is not None and abs(value) <= _MAX[unit] else None


def _product(a: float | None, b: float | None, unit: str) -> float | None:
    """The product, if both are known and it is not a broken sensor's.

    >>> _product(12.0, 2.0, "W"), _product(12.0, None, "W"), _product(900.0, 900.0, "W")
    (24.0, None, None)
    """
    return None if a is None or b is None else _sane(a * b, unit)


def _quotient(a: float | None, b: float | None, unit: str) -> float | None:
    """The quotient, if both are known and it is not a broken sensor's.

    >>> _quotient(24.0, 12.0, "A"), _quotient(24.0, 0.0, "A"), _quotient(9.0, 5e-6, "A")
    (2.0, None, None)
    """
    return None if a is None or not b else _sane(a / b, unit)


def _turned(value: float | None, sign: int) -> float | None:
    """The size of a value whose sign cannot be trusted, with this sign."""
    return None if value is None else abs(value) * sign


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _agreed(*values: float | None) -> float | None:
    """The first value that is not 0, else the first known one: some drivers leave files at 0.

    >>> [_agreed(0.0, None, 4.5), _agreed(None, 0.0), _agreed(None, None)]
    [4.5, 0.0, None]
    """
    for value in values:
        if value:
            return value
    return _first(*values)


# --- Samples and sources ----------------------------------------------------------------------

DISCHARGING, IDLE, CHARGING = 1, 0, -1  # directions: the sign of the current


@dataclass(slots=True)
class Sample:
    """What a source measures at one instant; None: not known. Empty: `problem` says why."""

    voltage: float | None = None
    current_draw: float | None = None  # A, positive out of the source
    wattage: float | None = None
    charge_pct: float | None = None
    capacity_wh: float | None = None
    status: str | None = None
    direction: int | None = None
    mains: bool | None = None  # whether external power is there
    low: bool | None = None  # whether the device itself says that its battery is nearly empty
    # Whether current_draw and wattage have a sign; without a direction they are absolute values.
    signed: bool = True
    fine_charge_pct: float | None = None  # by an energy or charge counter, if that was read
    trend: int | None = None  # the direction in which the charge moves, whatever the status says
    by_trend: bool = False  # whether nothing else says the direction
    rough_capacity: bool = False  # whether the capacity moves with the volts
    serial: str = ""  # the pack's or UPS's own number
    runtime_s: float | None = None  # seconds left, as the device itself says
    temperature_c: float | None = None
    is_estimated: bool = False  # whether the charge is estimated from the volts
    tokens: frozenset[str] = frozenset()  # the words of a UPS's status, in capitals
    problem: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing that could be stored or acted on."""
        values = (
            self.voltage,
            self.current_draw,
            self.wattage,
            self.charge_pct,
            self.status,
            self.mains,
        )
        return all(value is None for value in values)

    def turned(self) -> Sample:
        """The same with the other sign of amperes and watts."""
        current_draw = None if self.current_draw is None else -self.current_draw
        wattage = None if self.wattage is None else -self.wattage
        return dataclasses.replace(self, current_draw=current_draw, wattage=wattage)


class Source:
    """One place where this machine measures power. read() never raises for what a sensor does."""

    # A directory under the root, or a server: the source is gone only if that is there without it.
    # "": the source is never gone.
    origin = ""

    def __init__(self, name: str, kind: MeterType, place: str = "", address: str = "") -> None:
        self.name = name
        self.kind = kind
        self.place = place
        self.address = address
        self.peripheral = False  # of a mouse or the like: it never shuts this machine down
        self.left_out = ""  # why it is not used by default
        self.flip = False  # --map RAIL=-battery
        self.curve: Curve | None = None  # --curve, for a battery that knows only its volts

    def read(self) -> Sample:
        """Take a sample."""
        sample = self._read()
        if self.flip:
            sample = sample.turned()
        if self.curve is not None and sample.charge_pct is None and sample.voltage is not None:
            charge = self.curve.charge(sample.voltage)
            problem = sample.problem or ("" if charge is not None else "its volts fit no --curve")
            sample = dataclasses.replace(
                sample, charge_pct=charge, is_estimated=charge is not None, problem=problem
            )
        return sample

    def _read(self) -> Sample:
        raise NotImplementedError

    def _value(self, name: str, scale: float = 1.0) -> float | None:
        value = _number(_text(f"{self.place}/{name}"))
        return None if value is None else value / scale


def _listed(place: str) -> list[str]:
    """The names in a directory, BAT2 before BAT10; none where it cannot be read."""
    try:
        names = os.listdir(place)
    except OSError:
        return []
    return sorted(names, key=lambda name: [(len(part), part) for part in re.split(r"(\d+)", name)])


_KINDS = {"battery": MeterType.BATTERY, "ups": MeterType.UPS}
_KINDS |= dict.fromkeys(("mains", "wireless", "usb"), MeterType.MAIN)
# The kinds of charger that only USB-C's own protocol knows; a charger that measures detects SDP,
# DCP and CDP too.
_CONTRACT_KINDS = {"C", "PD", "PD_DRP", "PD_PPS", "PD_SPR_AVS", "PD_PPS_SPR_AVS"}
_EXTRAS = {"temp", "time_to_empty_now", "time_to_empty_avg"}
# Drivers disagree on the sign of current, so the status says it; without one a battery is taken to
# supply.
_DIRECTIONS = {"discharging": DISCHARGING, "charging": CHARGING, "full": IDLE, "not charging": IDLE}


class Supply(Source):
    """A power supply of the kernel: Battery, UPS, Mains, USB or Wireless, in micro-units."""

    origin = "sys/class/power_supply"
    is_contract = False  # whether its values are what was agreed with a charger, not what flows
    serial = ""
    extras: frozenset[str] = frozenset()  # which of the files are there that few drivers have
    _known_capacity: tuple[float | None, bool] | None = None

    @classmethod
    def discover(cls, root: str) -> list[Source]:
        """The supplies under root/sys/class/power_supply; peripherals' are marked as left out."""
        found: list[Source] = []
        top = os.path.join(root, cls.origin)
        for name in _listed(top):
            place = f"{top}/{name}"
            family, _, _ = _text(f"{place}/type").lower().partition("_")  # USB_PD, USB_DCP: USB
            kind = _KINDS.get(family)
            if kind is None or _number(_text(f"{place}/present")) == 0:
                continue
            supply = cls(_clean(name) or "supply", kind, place)
            supply.is_contract = kind is MeterType.MAIN and _is_contract(name, place)
            supply.extras = frozenset(_EXTRAS & set(_listed(place)))
            supply.peripheral = _text(f"{place}/scope").lower() == "device"
            supply.serial = _clean(_text(f"{place}/serial_number"))
            supply.left_out = (
                "a peripheral's: --peripherals logs it too" if supply.peripheral else ""
            )
            found.append(supply)
        return found

    def _read(self) -> Sample:
        if self._value("present") == 0:
            return Sample(problem="not present")
        online = self._value("online")
        sample = self._main(online) if self.kind is MeterType.MAIN else self._battery()
        if self.kind is not MeterType.BATTERY and online is not None:
            sample.mains = online > 0
        sample.problem = "nothing readable" if sample.empty else ""
        return sample

    def _micro(self, unit: str, *names: str) -> float | None:
        """The first of these files that has a value."""
        for name in names:
            value = _sane(self._value(name, 1e6), unit)
            if value is not None:
                return value
        return None

    def _positive(self, unit: str, *names: str) -> float | None:
        value = self._micro(unit, *names)
        return value if value is not None and value > 0 else None

    def _main(self, online: float | None) -> Sample:
        status = None if online is None else "Online" if online > 0 else "Offline"
        if self.is_contract:
            return Sample(status=status)
        volts = self._micro("V", "voltage_now", "voltage_avg")
        amperes = _turned(self._micro("A", "current_now", "current_avg"), DISCHARGING)
        watts = _turned(self._micro("W", "power_now"), DISCHARGING)
        # Some drivers keep the last values of what was pulled out.
        if online == 0 and volts is not None:
            amperes = 0.0
            watts = None
        watts = _agreed(watts, _product(volts, amperes, "W"))
        return Sample(volts, _agreed(amperes, _quotient(watts, volts, "A")), watts, status=status)

    def _battery(self) -> Sample:
        status = _clean(_text(f"{self.place}/status"))
        direction = _DIRECTIONS.get(status.lower())
        sign = DISCHARGING if direction is None else direction
        volts = self._positive("V", "voltage_now", "voltage_avg")
        amperes = _turned(self._micro("A", "current_now", "current_avg"), sign)
        watts = _turned(self._micro("W", "power_now"), sign)
        # An idle battery's 0 is known, also where the driver then has no current_now.
        if direction == IDLE:
            amperes = 0.0
            watts = 0.0
        watts = _agreed(watts, _product(volts, amperes, "W"))
        sample = Sample(
            voltage=volts,
            current_draw=_agreed(amperes, _quotient(watts, volts, "A")),
            wattage=watts,
            charge_pct=plausible_charge(self._value("capacity")),
            status=status if direction is not None else None,
            direction=direction,
            signed=direction is not None,
            serial=self.serial,
            runtime_s=self._runtime() if direction == DISCHARGING else None,
            temperature_c=_sane(self._extra("temp", 10.0), "C"),
        )
        # It hardly ever changes: it is read once for each time that sensors are looked for.
        if self._known_capacity is None:
            self._known_capacity = self._capacity(volts)
        sample.capacity_wh, sample.rough_capacity = self._known_capacity
        # If `capacity` is missing, or is 0 because the driver never fills it, a counter has it.
        if direction is None or not sample.charge_pct:
            sample.fine_charge_pct = self._counted_charge()
        sample.charge_pct = _agreed(sample.charge_pct, sample.fine_charge_pct)
        if direction == DISCHARGING and self._is_forced():
            sample.tokens = frozenset({"CAL"})
        return sample

    def _is_forced(self) -> bool:
        """Whether the battery is discharged on purpose, with mains there, to learn its capacity."""
        return "[force-discharge]" in _text(f"{self.place}/charge_behaviour")

    def _extra(self, name: str, scale: float = 1.0) -> float | None:
        return self._value(name, scale) if name in self.extras else None

    def _runtime(self) -> float | None:
        seconds = _agreed(self._extra("time_to_empty_now"), self._extra("time_to_empty_avg"))
        return _sane(seconds, "s") if seconds else None

    def _capacity(self, volts: float | None) -> tuple[float | None, bool]:
        """Watt-hours when full, now, else by design; and whether they move with the volts."""
        nominal = self._positive("V", "voltage_min_design", "voltage_max_design")
        for suffix in ("", "_design"):
            energy = self._positive("Wh", "energy_full" + suffix)
            ampere_hours = self._positive("Wh", "charge_full" + suffix)
            capacity = _first(energy, _product(ampere_hours, _first(nominal, volts), "Wh"))
            if capacity is not None:
                return capacity, energy is None and nominal is None
        return None, False

    def _counted_charge(self) -> float | None:
        """Percent by a counter of energy or charge, which is finer than `capacity`."""
        return _agreed(self._ratio("energy"), self._ratio("charge"))

    def _ratio(self, what: str) -> float | None:
        """What is in the battery, in percent of what it holds when full."""
        now = self._micro("Wh", what + "_now")
        full = self._positive("Wh", what + "_full")
        return plausible_charge(_product(_quotient(now, full, "ratio"), 100.0, "%"))


def _is_contract(name: str, place: str) -> bool:
    """Whether a USB supply is a Type-C port, which shows what was agreed, not what flows.

    UCSI, TCPM and the port controllers name their supplies so, register their port beside the
    supply, and offer no kind of charger but USB-C's. One of the three is enough: a captured tree
    may lack the others.
    """
    if "-source-psy" in name or os.path.isdir(f"{place}/device/typec"):
        return True
    kinds = set(re.findall(r"\w+", _text(f"{place}/usb_type"))) - {"Unknown"}
    return bool(kinds) and kinds <= _CONTRACT_KINDS


class Rail(Source):
    """One channel of a current monitor in hwmon (mV, mA, uW) or iio (mV, mA, mW)."""

    origin = "sys/class/hwmon"
    _CHIPS = re.compile(r"ina\d+\w*|isl28022|ltc2945|ltc4151|pac1934|sq52206")

    def __init__(self, name: str, place: str, address: str, channel: int) -> None:
        super().__init__(name, MeterType.MAIN, place, address)
        self.channel = channel
        self.chip = ""
        self.label = ""

    @classmethod
    def discover(cls, root: str) -> list[Source]:
        """The rails under root/sys; what another rail contains is marked as left out."""
        rails: list[Rail] = []
        top = os.path.join(root, cls.origin)
        for name in _listed(top):
            chip = _clean(_text(f"{top}/{name}/name"))
            if cls._CHIPS.fullmatch(chip):
                rails += cls._channels(f"{top}/{name}", chip)
        rails += IioRail.find(root)
        _leave_out_parts(rails)
        return list(rails)

    @classmethod
    def _channels(cls, place: str, chip: str) -> list[Rail]:
        files = set(_listed(place))
        # On an INA3221 in4 to in6 are shunt voltages, in7 and curr4 are sums; elsewhere in0 is the
        # shunt's.
        channels = [n for n in range(1, 4 if chip == "ina3221" else 17) if f"in{n}_input" in files]
        channels = [n for n in channels if {f"curr{n}_input", f"power{n}_input"} & files]
        # The number of a hwmon changes from boot to boot, the chip's bus and address do not.
        address = _i2c_address(f"{place}/device") if "device" in files else ""
        rails = []
        for n in channels:
            labels = [_clean(_text(f"{place}/{kind}{n}_label")) for kind in ("in", "curr", "power")]
            label = next(filter(None, labels), "")
            if label == "NC" or _text(f"{place}/in{n}_enable") == "0":
                continue
            rails.append(cls._named(place, chip, address, label, n, len(channels) > 1))
        return rails

    @classmethod
    def _named(
        cls, place: str, chip: str, address: str, label: str, channel: int, is_one_of_many: bool
    ) -> Rail:
        number = str(channel) if is_one_of_many else ""
        name = label or " ".join(filter(None, (chip, address, number)))
        rail = cls(name, place, address, channel)
        rail.chip = chip
        rail.label = label
        return rail

    def _read(self) -> Sample:
        volts, amperes, watts = self._measured()
        volts = _sane(volts, "V")
        amperes = _sane(amperes, "A")
        # The product is signed, and finer than the chip's own.
        watts = _agreed(_product(volts, amperes, "W"), _sane(watts, "W"))
        sample = Sample(volts, _agreed(amperes, _quotient(watts, volts, "A")), watts)
        sample.problem = "nothing readable" if sample.empty else ""
        return sample

    def _measured(self) -> tuple[float | None, float | None, float | None]:
        """Volts, amperes and watts; watts only without amperes, which give finer ones."""
        n = self.channel
        volts = self._value(f"in{n}_input", 1e3)
        amperes = self._value(f"curr{n}_input", 1e3)
        watts = None if amperes else self._value(f"power{n}_input", 1e6)
        return volts, amperes, watts


def _i2c_address(path: str) -> str:
    """The bus and address of the chip that a path belongs to, such as 1-0040; "" for none."""
    parts = os.path.realpath(path).split("/")
    return next((part for part in reversed(parts) if re.fullmatch(r"\d+-[0-9a-f]{4}", part)), "")


class IioRail(Rail):
    """One channel of a current monitor in iio: JetPack 4's ina3221x, and the kernel's iio drivers.

    Only known monitors are read: an iio device with volts and amperes may as well be the converter
    behind a battery that the kernel already shows as a power supply.
    """

    origin = "sys/bus"  # of iio and of the driver of JetPack 4
    _IIO_CHIPS = re.compile(r"ina3221x|ina2\d\d|ina2xx|pac19\d\d")

    def __init__(self, name: str, place: str, address: str, channel: int) -> None:
        super().__init__(name, place, address, channel)
        self.numbers = channel, channel, channel  # of the channels for volts, amperes and watts

    @classmethod
    def find(cls, root: str) -> list[Rail]:
        """The rails in iio under root/sys."""
        rails: list[Rail] = []
        seen: set[str] = set()
        for place in cls._places(root):
            if os.path.realpath(place) in seen:
                continue
            seen.add(os.path.realpath(place))
            # The driver of JetPack 4 may give its device no name.
            driver = "ina3221x" if "/ina3221x/" in place else ""
            chip = _clean(_text(f"{place}/name")) or driver
            if cls._IIO_CHIPS.fullmatch(chip):
                rails += cls._monitored(place, chip)
        return rails

    @staticmethod
    def _places(root: str) -> list[str]:
        top = os.path.join(root, "sys/bus/iio/devices")
        places = [f"{top}/{name}" for name in _listed(top)]
        top = os.path.join(root, "sys/bus/i2c/drivers/ina3221x")
        for address in _listed(top):
            names = _listed(f"{top}/{address}")
            places += [f"{top}/{address}/{name}" for name in names if name.startswith("iio:device")]
        return places

    @classmethod
    def _monitored(cls, place: str, chip: str) -> list[Rail]:
        files = set(_listed(place))
        triples = [(n, n, n) for n in range(17)]
        if chip.startswith("ina2"):
            # One monitor whose channels are numbered through: shunt, bus, watts, amperes.
            triples = [(1, 3, 2)]
        triples = [
            (bus, shunt, watts)
            for bus, shunt, watts in triples
            if cls._is_there(files, "voltage", bus) and cls._is_there(files, "current", shunt)
        ]
        address = _i2c_address(place)
        rails: list[Rail] = []
        for numbers in triples:
            label = cls._label(place, numbers)
            if label == "NC":
                continue
            _, shunt, _ = numbers
            rail = cls._named(place, chip, address, label, shunt, len(triples) > 1)
            assert isinstance(rail, IioRail)
            rail.numbers = numbers
            rails.append(rail)
        return rails

    @staticmethod
    def _is_there(files: set[str], kind: str, number: int) -> bool:
        return bool({f"in_{kind}{number}_input", f"in_{kind}{number}_raw"} & files)

    @staticmethod
    def _label(place: str, numbers: tuple[int, int, int]) -> str:
        volts, amperes, _ = numbers
        names = f"rail_name_{volts}", f"in_current{amperes}_label", f"in_voltage{volts}_label"
        return next(filter(None, (_clean(_text(f"{place}/{name}")) for name in names)), "")

    def _measured(self) -> tuple[float | None, float | None, float | None]:
        volts, amperes, watts = self.numbers
        found_amperes = self._channel_value("current", amperes)
        found_watts = None if found_amperes else self._channel_value("power", watts)
        return self._channel_value("voltage", volts), found_amperes, found_watts

    def _channel_value(self, kind: str, number: int) -> float | None:
        """A channel's value in V, A or W: the driver's own, else (raw + offset) x scale / 1000."""
        stem = f"in_{kind}{number}"
        value = self._value(f"{stem}_input", 1e3)
        if value is not None:
            return value
        raw = self._value(f"{stem}_raw")
        scale = _first(self._value(f"{stem}_scale"), self._value(f"in_{kind}_scale"), 1.0)
        offset = _first(self._value(f"{stem}_offset"), self._value(f"in_{kind}_offset"), 0.0)
        if raw is None or scale is None or offset is None:
            return None
        return (raw + offset) * scale / 1e3


class Whole(NamedTuple):
    """A rail that contains others: counting both would count the same watts twice."""

    chips: tuple[str, ...]  # whose label it is
    label: str  # "": a chip without labels
    parts: tuple[str, ...]  # all of them must be there; (): every other labelled rail of the module


_MODULE = ("ina3221", "ina3221x")  # the monitors on a Jetson's module and on its carrier board
_THOR = ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")
# What contains what on a Jetson; the first total that is there is the one that is used. From the
# tables of rails in "Platform Power and Performance" of NVIDIA's Jetson Linux Developer Guide, for
# AGX Orin there: "VDDQ_VDD2_1V8AO power is also included in VIN_SYS_5V0 power". Thor's INA238
# measures the carrier board's input: forums.developer.nvidia.com, topic 366461, and jetson_stats,
# pull request 900. An AGX Xavier has no total: its six rails add up.
_WHOLES = (
    Whole(_MODULE, "VDD_MUX", ()),  # the input of a TX1's or TX2's carrier board, VDD_IN included
    Whole(_MODULE, "VDD_IN", ()),  # TX1, TX2, Xavier NX, Orin NX, Orin Nano
    Whole(_MODULE, "POM_5V_IN", ()),  # Nano
    Whole(_MODULE, "VIN", ()),
    Whole(("ina238",), "VIN", _THOR),
    Whole(("ina238",), "", _THOR),
    Whole(_MODULE, "VIN_SYS_5V0", ("VDDQ_VDD2_1V8AO",)),  # AGX Orin
)


def _leave_out_parts(rails: Sequence[Rail]) -> None:
    """Mark the rails that another one contains."""
    module = [rail for rail in rails if rail.chip in _MODULE and rail.label]
    labels = {rail.label for rail in module}
    for whole in _WHOLES:
        found = (rail for rail in rails if rail.chip in whole.chips and rail.label == whole.label)
        total = next(found, None)
        if total is None or total.left_out or not set(whole.parts) <= labels:
            continue
        for part in module:
            is_part = part.label in (whole.parts or labels - {whole.label})
            if is_part and not part.left_out:
                example = f"--map {shlex.quote(part.name)}=main"
                part.left_out = f"a part of {total.name}: {example} logs it too"


class Feed:
    """Something with sources other than the kernel's files: a upsd, an apcupsd, a program.

    It stays open between looks.
    """

    def sources(self) -> list[Source]:
        """The sources that it has now."""
        raise NotImplementedError

    def close(self) -> None:
        """End what was opened; the next read() opens it again."""


class _Server:
    """A host and port, left alone for NUT_RETRY seconds after it could not be reached."""

    _ADDRESS = re.compile(
        r"(?:\[(?P<ipv6>[^\s\]]+)\]|(?P<name>[^\s:@\[\]\"]+))(?::(?P<port>\d{1,5}))?"
    )

    def __init__(self, what: str, address: str, port: int, clock: Callable[[], float]) -> None:
        found = self._ADDRESS.fullmatch(address)
        port = int(found["port"] or port) if found else 0
        if not found or not 0 < port < 65536:
            raise ValueError(f"expected host[:port], got {address!r}")
        self.what = what
        self.host = found["ipv6"] or found["name"]
        self.port = port
        self._clock = clock
        self._problem = ""
        self._retry_at = -math.inf

    def connect(self) -> socket.socket:
        """Open a connection; raises ConnectionError if it is too early to try again."""
        if self._clock() < self._retry_at:
            raise ConnectionError(self._problem)
        return socket.create_connection((self.host, self.port), NUT_LIMIT)

    def failed(self, exc: OSError) -> str:
        """Try no more for a while; return what is wrong, in the same words until then."""
        if self._clock() >= self._retry_at:
            self._problem = _reason(exc)
            self._retry_at = self._clock() + NUT_RETRY
        return f"{self.what} cannot be reached: {self._problem}"


def _receive(connection: socket.socket, deadline: float) -> bytes:
    """What a server sends next; raises OSError where that is nothing, or too late."""
    connection.settimeout(max(deadline - time.monotonic(), 0.001))
    part = connection.recv(65536)
    if not part:
        raise ConnectionError("it closed the connection")
    return part


@dataclass(slots=True)
class UpsdAccess:
    """How to speak to a upsd."""

    logins: netrc.netrc | None = None  # user names and passwords by host, from a file
    # Whom to trust: None is no TLS; "system", "unverified", or a file of certificates.
    trust: str | None = None

    def login(self, host: str) -> tuple[str, str] | None:
        """The user name and password for a host: from the file, else from the environment."""
        found = self.logins.authenticators(host) if self.logins else None
        if found:
            user, _, password = found
            return user, password or ""
        name = os.environ.get(NUT_USERNAME, "")
        return (name, os.environ.get(NUT_PASSWORD, "")) if name else None

    def context(self) -> ssl.SSLContext:
        """The settings of TLS; raises OSError where the file of certificates cannot be read."""
        import ssl  # here, because it takes some MiB that most machines have no use for

        file = None if self.trust in ("system", "unverified") else self.trust
        context = ssl.create_default_context(cafile=file)
        if self.trust == "unverified":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class Upsd(Feed):
    """NUT's upsd: one connection for all its UPSes, made again when it breaks. Protocol: RFC 9271.

    It logs in by USERNAME and PASSWORD, never by LOGIN: that would count this machine among those
    for which the UPS's primary waits at a shutdown.
    """

    _LIST_END = re.compile(rb"^(?:ERR|END LIST)\b.*\n", re.MULTILINE)
    _LINE_END = re.compile(rb"\n")
    _VARIABLE = re.compile(r'VAR \S+ (\S+) "((?:[^"\\]|\\.)*)"\r?')
    _UPS = re.compile(r'UPS (\S+) "')

    def __init__(
        self, address: str, clock: Callable[[], float], access: UpsdAccess | None = None
    ) -> None:
        self.address = address
        self.names: list[str] = []  # of its UPSes: those that were asked for
        self.asks_for_all = False  # whether the rest of them are wanted too
        self._server = _Server("upsd", address, NUT_PORT, clock)
        self.origin: str = f"upsd {self._server.host}:{self._server.port}"
        self._access = access or UpsdAccess()
        self._socket: socket.socket | None = None
        self._listed: list[str] = []
        self._has_warned = False

    def sources(self) -> list[Source]:
        """A source for each UPS; one with the problem if upsd has never listed its UPSes."""
        problem = self._list() if self.asks_for_all else ""
        names = dict.fromkeys([*self.names, *self._listed])
        if problem and not names:
            return [Unreachable(self.address, MeterType.UPS, problem)]
        return [Nut(name, self) for name in names]

    def _list(self) -> str:
        """List its UPSes; if that fails the known ones stay, and the problem is returned."""
        try:
            answer = self.ask("LIST UPS")
        except OSError as exc:
            return str(exc)
        if answer.startswith("ERR"):
            return f"upsd says {_clean(answer)}"
        self._listed = [found[1] for found in map(self._UPS.match, answer.split("\n")) if found]
        return "" if self._listed else "upsd has no UPS"

    def variables(self, ups: str) -> dict[str, str]:
        """The variables of a UPS; raises OSError with the problem if there are none."""
        answer = self.ask(f"LIST VAR {ups}")
        if answer.startswith("ERR"):  # such as DATA-STALE: upsd is there, the UPS is not
            raise OSError(f"upsd says {_clean(answer)}")
        found = filter(None, map(self._VARIABLE.fullmatch, answer.split("\n")))
        return {match[1]: re.sub(r"\\(.)", r"\1", match[2]) for match in found}

    def ask(self, command: str) -> str:
        """Its answer to a command; raises OSError with the problem if there is none."""
        was_open = self._socket is not None
        try:
            return self._exchange(command)
        except OSError as exc:
            self.close()
            if not was_open:
                raise OSError(self._server.failed(exc)) from exc
        try:  # upsd restarted: the old connection is no good, a new one may be
            return self._exchange(command)
        except OSError as exc:
            self.close()
            raise OSError(self._server.failed(exc)) from exc

    def _exchange(self, command: str) -> str:
        if self._socket is None:
            self._socket = self._server.connect()
            self._begin()
        return self._said(command)

    def _begin(self) -> None:
        """What comes before the first question: TLS, then user name and password."""
        host = self._server.host
        if self._access.trust:
            self._require("STARTTLS")
            assert self._socket is not None
            self._socket.settimeout(NUT_LIMIT)
            context = self._access.context()
            self._socket = context.wrap_socket(self._socket, server_hostname=host)
        login = self._access.login(host)
        if login:
            user, password = login
            self._warn_of_plain_text(host)
            self._require("USERNAME", user)
            self._require("PASSWORD", password)

    def _warn_of_plain_text(self, host: str) -> None:
        is_near = host == "localhost" or host.startswith("127.") or host == "::1"
        if not (self._access.trust or is_near or self._has_warned):
            _log.warning("%s: the password is sent unencrypted: see --nut-tls", self.address)
            self._has_warned = True

    def _require(self, *words: str) -> None:
        """Send a command that must be answered by OK and nothing else; raises ConnectionError."""
        if not all(word.isprintable() for word in words):
            raise ConnectionError(f"a control character in what {words[0]} sends")
        answer = self._said(" ".join(map(self._quoted, words)))
        if not re.fullmatch(r"OK[^\n]*\n", answer):
            raise ConnectionError(f"it answers {words[0]} by {_clean(answer)}")

    @staticmethod
    def _quoted(word: str) -> str:
        """A word as NUT's parser reads it; plain ones unquoted, for servers without quotes."""
        if re.fullmatch(r"[\w.+-]+", word, re.ASCII):
            return word
        escaped = re.sub(r'(["\\#])', r"\\\1", word)
        return f'"{escaped}"'

    def _said(self, command: str) -> str:
        assert self._socket is not None
        end = self._LIST_END if command.startswith("LIST") else self._LINE_END
        deadline = time.monotonic() + NUT_LIMIT
        self._socket.settimeout(NUT_LIMIT)
        self._socket.sendall(f"{command}\n".encode())
        answer = b""
        while not end.search(answer):
            answer += _receive(self._socket, deadline)
            if len(answer) > _NUT_SIZE:
                raise ConnectionError("its answer has no end")
        return answer.decode("utf-8", "replace")

    def close(self) -> None:
        """Close the connection; the next question makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Unreachable(Source):
    """Stands for the sources of a feed that has never listed them."""

    def __init__(self, name: str, kind: MeterType, problem: str) -> None:
        super().__init__(name, kind)
        self._problem = problem

    def _read(self) -> Sample:
        return Sample(problem=self._problem)


class UpsVariables:
    """What a UPS says, by the names that NUT gives to it (docs/nut-names.txt there)."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts
        phases = (1, 2, 3)
        starts = {n: (f"output.L{n}.", f"ups.L{n}.") for n in phases}
        self._phases = [n for n in phases if any(name.startswith(starts[n]) for name in texts)]

    def text(self, *names: str) -> str:
        """The first of these that is not empty."""
        return next(filter(None, (_clean(self._texts.get(name, "")) for name in names)), "")

    def value(self, name: str, unit: str) -> float | None:
        """One as a number; None if it is none, or a broken UPS's."""
        return _sane(_number(self._texts.get(name, "").strip()), unit)

    def positive(self, unit: str, *names: str) -> float | None:
        """The first of these above 0."""
        values = (self.value(name, unit) for name in names)
        return next((value for value in values if value is not None and value > 0), None)

    def _drawn(self, name: str, unit: str) -> float | None:
        """What a load takes. It gives nothing back, so a negative value is none."""
        value = self.value(name, unit)
        return value if value is not None and value >= 0 else None

    def _of_phases(self, name: str, unit: str) -> list[float] | None:
        """The value of every phase; None if the UPS has no phases, or one is not known."""
        values = [self._drawn(name.format(n), unit) for n in self._phases]
        known = [value for value in values if value is not None]
        return known if known and len(known) == len(values) else None

    def _summed(self, unit: str, *names: str) -> float | None:
        """The first of these that is known of every phase, summed."""
        sums = (self._of_phases(name, unit) for name in names)
        return next((sum(values) for values in sums if values is not None), None)

    def _share(self) -> float | None:
        """The load as a share of the nominal one; of three phases, their mean."""
        percent = self._drawn("ups.load", "%")
        if percent is None:
            phases = self._of_phases("output.L{}.power.percent", "%")
            percent = sum(phases) / len(phases) if phases else None
        return _quotient(percent, 100.0, "ratio")

    def _volt_amperes(self) -> float | None:
        """The apparent power of the load."""
        share = self._share()
        return _agreed(
            self._drawn("ups.power", "VA"),
            self._drawn("output.power", "VA"),
            self._summed("VA", "ups.L{}.power", "output.L{}.power"),
            _product(share, self.positive("VA", "ups.power.nominal", "output.power.nominal"), "VA"),
        )

    def _power_factor(self) -> float | None:
        factor = self.positive("%", "output.powerfactor", "ups.powerfactor")
        return factor if factor is not None and factor <= 1 else None

    def watts(self) -> float | None:
        """What the UPS supplies to its load; None if it does not say enough to know it.

        Volt-amperes are no watts: they count only where the power factor is known. And 0 W of a UPS
        that says it has a load is a value that its driver never fills.
        """
        share = self._share()
        volt_amperes = self._volt_amperes()
        watts = _agreed(
            self._drawn("ups.realpower", "W"),
            self._drawn("output.realpower", "W"),
            self._summed("W", "ups.L{}.realpower", "output.L{}.realpower"),
            _product(volt_amperes, self._power_factor(), "W"),
            _product(share, self.positive("W", "ups.realpower.nominal"), "W"),
        )
        if watts == 0 and (share or volt_amperes):
            return None
        return watts

    def volts(self) -> float | None:
        """The volts to store watts with if the battery's are unknown; below 5 V is no output."""
        measured = (
            "output.voltage", "output.L1-N.voltage", "output.L1.voltage",
            "input.voltage", "input.L1-N.voltage", "input.L1.voltage",
        )  # fmt: skip
        nominal = "output.voltage.nominal", "input.voltage.nominal", "battery.voltage.nominal"
        values = (self.positive("V", name) for name in measured)
        found = next((value for value in values if value is not None and value >= 5.0), None)
        return _first(found, self.positive("V", *nominal))


class Nut(Source):
    """A UPS of a upsd. Its watts are what it supplies to its load, on mains as on battery."""

    def __init__(self, ups: str, upsd: Upsd) -> None:
        super().__init__(f"{ups}@{upsd.address}", MeterType.UPS)
        self.origin: str = upsd.origin
        self._ups = ups
        self._upsd = upsd

    def _read(self) -> Sample:
        try:
            return self.sample(self._upsd.variables(self._ups))
        except OSError as exc:
            return Sample(problem=str(exc))

    @classmethod
    def sample(cls, texts: dict[str, str]) -> Sample:
        """What a UPS says, as a sample."""
        said = UpsVariables(texts)
        volts = said.positive("V", "battery.voltage")
        watts = said.watts()
        sample = _ups_sample(said.text("ups.status"))
        if watts is not None:
            volts = _first(volts, said.volts())
            sample.current_draw = _quotient(watts, volts, "A")
        else:
            # What the battery itself gives or takes; drivers disagree on this sign, too.
            sign = DISCHARGING if sample.direction is None else sample.direction
            sample.current_draw = _turned(said.value("battery.current", "A"), sign)
            watts = _product(volts, sample.current_draw, "W")
            sample.signed = sample.direction is not None
        sample.voltage = volts
        sample.wattage = watts
        sample.charge_pct = plausible_charge(said.value("battery.charge", "%"))
        nominal = _first(said.positive("V", "battery.voltage.nominal"), volts)
        sample.rough_capacity = said.positive("V", "battery.voltage.nominal") is None
        sample.capacity_wh = _product(said.value("battery.capacity", "Wh"), nominal, "Wh")
        sample.runtime_s = said.positive("s", "battery.runtime")
        temperatures = said.value("battery.temperature", "C"), said.value("ups.temperature", "C")
        sample.temperature_c = _first(*temperatures)
        sample.serial = said.text("ups.serial", "device.serial")
        sample.problem = "no values" if sample.empty else ""
        return sample


def _ups_sample(status: str) -> Sample:
    """What follows from a UPS's status, in NUT's words."""
    tokens = frozenset(status.upper().split())
    return Sample(
        status=status or None,
        tokens=tokens,
        direction=_ups_direction(tokens),
        low="LB" in tokens if tokens else None,
        mains=False if "OB" in tokens else True if "OL" in tokens else None,
    )


def _ups_direction(tokens: frozenset[str]) -> int | None:
    """OB means discharging, whatever else there is; OL DISCHRG a full battery or a calibration."""
    if "OB" in tokens:
        return DISCHARGING
    if "CHRG" in tokens and "DISCHRG" not in tokens:
        return CHARGING
    if "OL" in tokens:
        return IDLE
    return DISCHARGING if "DISCHRG" in tokens and "CHRG" not in tokens else None


class Apcupsd(Feed):
    """An apcupsd's network information server: one connection a look, for what apcaccess prints."""

    def __init__(self, address: str, clock: Callable[[], float]) -> None:
        self.address = address
        self._server = _Server("apcupsd", address, APCUPSD_PORT, clock)

    def sources(self) -> list[Source]:
        """The source of its one UPS."""
        return [ApcUps(self)]

    def fields(self) -> dict[str, str]:
        """Its fields; raises OSError with the problem if there are none."""
        try:
            with self._server.connect() as connection:
                answer = self._records(connection)
        except OSError as exc:
            raise OSError(self._server.failed(exc)) from exc
        fields = {}
        for line in answer.decode("utf-8", "replace").split("\n"):
            name, separator, text = line.partition(":")
            if separator:
                fields[name.strip()] = _clean(text)
        return fields

    @staticmethod
    def _records(connection: socket.socket) -> bytes:
        """Its answer to "status": records after their lengths in two bytes; the last is empty."""
        deadline = time.monotonic() + NUT_LIMIT
        connection.sendall(b"\0\6status")
        waiting = b""
        answer = b""
        while len(answer) <= _NUT_SIZE:
            while len(waiting) < 2 or len(waiting) < 2 + int.from_bytes(waiting[:2], "big"):
                waiting += _receive(connection, deadline)
            end = 2 + int.from_bytes(waiting[:2], "big")
            if end == 2:
                return answer
            answer += waiting[2:end]
            waiting = waiting[end:]
        raise ConnectionError("its answer has no end")


class ApcUps(Source):
    """The UPS of an apcupsd."""

    # Its words for a status in NUT's. SELFTEST stands in the place of ONLINE: mains is there.
    _TOKENS: ClassVar[dict[str, str]] = {
        "ONLINE": "OL", "ONBATT": "OB", "LOWBATT": "LB", "CAL": "CAL", "OVERLOAD": "OVER",
        "TRIM": "TRIM", "BOOST": "BOOST", "REPLACEBATT": "RB", "SELFTEST": "OL DISCHRG TEST",
    }  # fmt: skip

    def __init__(self, apcupsd: Apcupsd) -> None:
        super().__init__(f"apcupsd@{apcupsd.address}", MeterType.UPS)
        self.origin: str = self.name
        self._apcupsd = apcupsd

    def _read(self) -> Sample:
        try:
            return self.sample(self._apcupsd.fields())
        except OSError as exc:
            return Sample(problem=str(exc))

    @classmethod
    def sample(cls, fields: dict[str, str]) -> Sample:
        """Its fields as a sample; while apcupsd has lost its UPS they are old, and not used."""
        status = fields.get("STATUS", "")
        if "COMMLOST" in status:
            return Sample(problem="apcupsd has lost its UPS (COMMLOST)")

        def value(name: str, unit: str) -> float | None:
            # "27.1 Volts": the unit is a word of its own.
            return _sane(_number(fields.get(name, "").partition(" ")[0]), unit)

        def positive(unit: str, *names: str) -> float | None:
            values = (value(name, unit) for name in names)
            return next((found for found in values if found is not None and found > 0), None)

        words = [cls._TOKENS.get(word, "") for word in status.split()]
        if "SHUTTING DOWN" in status:
            words.append("FSD")
        sample = _ups_sample(" ".join(filter(None, words)))
        sample.status = status or None
        share = _quotient(value("LOADPCT", "%"), 100.0, "ratio")
        sample.wattage = _product(share, positive("W", "NOMPOWER"), "W")
        elsewhere = ("OUTPUTV", "LINEV", "NOMOUTV", "NOMINV", "NOMBATTV")
        names = ("BATTV", *elsewhere) if sample.wattage is not None else ("BATTV",)
        sample.voltage = positive("V", *names)
        sample.current_draw = _quotient(sample.wattage, sample.voltage, "A")
        sample.charge_pct = plausible_charge(value("BCHARGE", "%"))
        sample.runtime_s = _product(positive("s", "TIMELEFT"), 60.0, "s")
        sample.temperature_c = value("ITEMP", "C")
        sample.serial = fields.get("SERIALNO", "")
        sample.problem = "no values" if sample.empty else ""
        return sample


def _child_environment() -> dict[str, str]:
    """The environment of a command: without passwords and systemd's socket and watchdog."""
    hidden = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", NUT_USERNAME, NUT_PASSWORD)
    return {name: text for name, text in os.environ.items() if name not in hidden}


_LINE_KEYS = (
    "name", "type", "voltage", "current", "power", "charge_pct", "status",
    "capacity_wh", "runtime_s", "temperature_c", "serial",
)  # fmt: skip


class Program(Feed):
    """A program that prints JSON objects, one a line, for what has no driver (keys: README.md).

    It is asked at each look, without waiting: what it has printed since is taken in, and if it has
    ended it is started again, later each time. What it prints beyond what fits into the pipe waits
    there, with the program.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        clock: Callable[[], float],
        *,
        is_started_again: bool = True,
    ) -> None:
        self.name = name
        self._command = command
        self._clock = clock
        self._is_started_again = is_started_again  # whether there will be another look
        self._process: subprocess.Popen[bytes] | None = None
        self._line = b""  # what has come of a line that is not complete
        self._is_too_long = False  # whether the line that is coming is left out
        self._samples: dict[str, tuple[float, MeterType, Sample]] = {}
        self._pause = PROGRAM_PAUSE  # seconds between its end and its next start
        self._started_at = -math.inf
        self._start_at = -math.inf
        self._problem = "it has printed nothing yet"
        self._complaints: set[str] = set()

    def sources(self) -> list[Source]:
        """A source for each name printed of late; the first call waits for the first lines."""
        is_new = self._started_at == -math.inf
        self.poll()
        if is_new:
            self._await_lines()
        ages = {name: self._clock() - at for name, (at, _, _) in self._samples.items()}
        # If it prints nothing at all it has a problem, and none of its names is dropped.
        if min(ages.values(), default=math.inf) <= PROGRAM_HOLD:
            for name, age in ages.items():
                if age > PROGRAM_GONE:
                    del self._samples[name]
        if not self._samples:
            return [ProgramSource(self.name, MeterType.MAIN, self)]
        return [ProgramSource(name, kind, self) for name, (_, kind, _) in self._samples.items()]

    def sample(self, name: str) -> Sample:
        """The last line of that name, for as long as it may stand for the present."""
        at, _, sample = self._samples.get(name, (-math.inf, MeterType.MAIN, Sample()))
        if self._clock() - at <= PROGRAM_HOLD:
            return dataclasses.replace(sample)  # a copy: each look judges anew
        return Sample(problem=self._problem or f"it has printed nothing for {PROGRAM_HOLD:g} s")

    def poll(self) -> bool:
        """Start it if that is due, take in what it has printed; return whether it runs."""
        if self._process is None and self._clock() >= self._start_at:
            self._start()
        if self._process is None:
            return False
        is_at_end = self._take_in()
        code = self._process.poll()
        if code is None and is_at_end:  # a program that ends closes its output a little before
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(PROGRAM_EXIT)
        if code is not None:
            self._ended(f"it ended with {code}")
        elif is_at_end:
            self._ended("it closed its output")
        return self._process is not None

    def _start(self) -> None:
        self._started_at = self._clock()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env=_child_environment(),
                start_new_session=True,
            )
        except (OSError, ValueError) as exc:
            self._ended(f"it cannot be run: {self._command[0]}: {_reason(exc)}")
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _await_lines(self) -> None:
        """Wait for its first line, and then a moment for its other names."""
        deadline = time.monotonic() + PROGRAM_FIRST
        has_begun = False
        while self._process is not None and self._process.stdout is not None:
            if self._samples and not has_begun:
                has_begun = True
                deadline = time.monotonic() + PROGRAM_MORE
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return
            self.poll()

    def _take_in(self) -> bool:
        """Take in what it has printed; return whether its output is at an end."""
        assert self._process is not None
        assert self._process.stdout is not None
        # Within a limit: one that prints all the time must not hold up the other sources.
        for _ in range(PROGRAM_READS):
            try:
                part = os.read(self._process.stdout.fileno(), 65536)
            except BlockingIOError:
                return False
            if not part:
                self._take_lines(b"\n")  # the last line may lack its end
                return True
            self._take_lines(part)
        return False

    def _take_lines(self, part: bytes) -> None:
        *lines, rest = (self._line + part).split(b"\n")
        for line in lines:
            if self._is_too_long:
                self._is_too_long = False
            elif line.strip():
                self._take(line)
        self._line = rest
        if self._is_too_long or len(rest) > PROGRAM_LINE:
            self._complain(f"a line of more than {PROGRAM_LINE} bytes is left out")
            self._is_too_long = True
            self._line = b""

    def _take(self, line: bytes) -> None:
        try:
            values = _line_values(line)
            kind = _line_type(values)
        except InvalidValue as exc:
            self._complain(f"a line is left out: {exc}")
            self._problem = f"its last line was left out: {exc}"
            return
        told = values.get("name")
        name = (_clean(told) if isinstance(told, str) else "") or self.name
        if name not in self._samples and len(self._samples) >= PROGRAM_NAMES:
            self._complain(f"more than {PROGRAM_NAMES} names: {name} is left out")
            return
        sample, complaints = _sample_of_line(values, kind)
        for complaint in complaints:
            self._complain(complaint)
        self._samples[name] = self._clock(), kind, sample
        self._problem = ""

    def _complain(self, text: str) -> None:
        """Log what is wrong with a line, once."""
        if text not in self._complaints and len(self._complaints) < 100:
            self._complaints.add(text)
            _log.warning("--program %s: %s", self.name, text)

    def _ended(self, text: str) -> None:
        """Note its end, and when it starts again: soon after a long run, else later each time."""
        now = self._clock()
        self._end_process(0.0)
        if now - self._started_at >= PROGRAM_SOUND:
            self._pause = PROGRAM_PAUSE
        self._start_at = now + self._pause
        self._pause = min(self._pause * 2, PROGRAM_PAUSE_MAX)
        self._problem = text
        again = f"; it is started again, after {PROGRAM_PAUSE_MAX:g} s at most"
        self._complain(text + again if self._is_started_again else text)

    def _end_process(self, seconds: float) -> None:
        """End it and its children: at once, or after it had that many seconds to end by itself."""
        process = self._process
        if process is None:
            return
        self._process = None
        with contextlib.suppress(ProcessLookupError):
            if seconds:
                os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
            # Its group has its number, and the number of an empty group is not reused so soon.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def close(self) -> None:
        """End the program and its children."""
        self._end_process(PROGRAM_LIMIT)


class ProgramSource(Source):
    """One name that a program prints."""

    def __init__(self, name: str, kind: MeterType, program: Program) -> None:
        super().__init__(name, kind)
        self.origin: str = f"program {program.name}"
        self._key = name  # as the program prints it; --map may give the source another
        self._program = program

    def _read(self) -> Sample:
        self._program.poll()
        return self._program.sample(self._key)


def _line_values(line: bytes) -> dict[str, Any]:
    """The values of a program's line, a JSON object. Raises InvalidValue."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InvalidValue(f"the key {_clean(twice)} is there twice")
        return values

    try:
        values = json.loads(line, object_pairs_hook=unique)
    except InvalidValue:
        raise
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InvalidValue(f"no JSON object: {_clean(line[:80].decode('utf-8', 'replace'))}")
    return values


def _line_type(values: dict[str, Any]) -> MeterType:
    """The type of a line's meter, which cannot be changed later. Raises InvalidValue."""
    told = values.get("type")
    kinds = {kind.value: kind for kind in MeterType}
    if told in (None, ""):
        return MeterType.MAIN
    kind = kinds.get(told) if isinstance(told, str) else None
    if kind is None:
        shown = _clean(json.dumps(told, ensure_ascii=False)[:40])
        hint = nearest(str(told), kinds) or f": expected one of {', '.join(kinds)}"
        raise InvalidValue(f"no such type: {shown}{hint}")
    return kind


def _sample_of_line(values: dict[str, Any], kind: MeterType) -> tuple[Sample, list[str]]:
    """What a program's line says of a meter of that type, and what was wrong with it.

    Positive is what the source supplies, as everywhere here; a battery's status, where it says one,
    has the last word.
    """
    complaints = [f"no such key: {_clean(key)}" for key in values if key not in _LINE_KEYS]

    def number(name: str, unit: str) -> float | None:
        value = values.get(name)
        if value is None:
            return None
        known = isinstance(value, int | float) and not isinstance(value, bool)
        sane = _sane(float(value), unit) if known and abs(value) < 1e300 else None
        if name == "charge_pct":
            sane = plausible_charge(sane)
        if sane is None:  # as JSON, which shows a number that came as a text
            shown = json.dumps(value, ensure_ascii=False)[:40]
            complaints.append(f"not a plausible {name}: {_clean(shown)}")
        return sane

    def text(name: str) -> str:
        value = values.get(name)
        return _clean(value) if isinstance(value, str) else ""

    sample = _ups_sample(text("status"))
    volts = number("voltage", "V")
    amperes = number("current", "A")
    watts = _first(number("power", "W"), _product(volts, amperes, "W"))
    amperes = _first(amperes, _quotient(watts, volts, "A"))
    if watts is not None and volts is None:
        complaints.append("power without voltage is shown, and not stored")
    sample.voltage = volts
    sample.current_draw = amperes
    sample.wattage = watts
    sample.charge_pct = number("charge_pct", "%")
    sample.capacity_wh = number("capacity_wh", "Wh")
    sample.runtime_s = number("runtime_s", "s")
    sample.temperature_c = number("temperature_c", "C")
    sample.serial = text("serial")
    _set_course(sample, kind)
    sample.problem = "no values" if sample.empty else ""
    return sample, complaints


def _set_course(sample: Sample, kind: MeterType) -> None:
    """Set direction and mains of a program's sample by what the status means for its type."""
    status = (sample.status or "").lower()
    if kind is MeterType.UPS:
        return
    sample.low = None
    sample.tokens = frozenset()
    is_online = {"online": True, "offline": False}.get(status)
    sample.mains = is_online if kind is MeterType.MAIN else None
    # Without a status the sign of the amperes shows the direction, as a monitor's does.
    sample.direction = _DIRECTIONS.get(status) if kind is MeterType.BATTERY else None
    if sample.direction is not None:
        sample.current_draw = _turned(sample.current_draw, sample.direction)
        sample.wattage = _turned(sample.wattage, sample.direction)


# --- Charge from volts ------------------------------------------------------------------------

# Volts of a cell at rest, and its charge in percent. Where they are from: li-ion (18650 and the
# like, NMC or NCA): the default of Meshtastic's firmware, src/power.h, every second point. lipo
# (flat cells, LCO): the open-circuit table of candlepowerforums.com, at
# wiki.bluecrow.net/wiki/Batteries. lifepo4: a 12 V battery at rest, a quarter of it:
# gridwright.com/calculators/solar/lifepo4-voltage-chart. lead-acid: the table of the Battery
# Council International, a sixth of a 12 V battery at 27 C: studylib.net/doc/18054160.
_CHEMISTRIES: dict[str, tuple[tuple[float, float], ...]] = {
    "li-ion": ((3.1, 0), (3.42, 20), (3.63, 40), (3.8, 60), (3.99, 80), (4.19, 100)),
    "lipo": ((3.5, 0), (3.8, 30), (3.9, 55), (4.0, 75), (4.1, 87), (4.2, 100)),
    "lifepo4": (
        (2.5, 0), (3.0, 10), (3.2, 20), (3.25, 30), (3.3, 40), (3.325, 70), (3.35, 90), (3.4, 100),
    ),
    "lead-acid": ((1.98, 0), (2.01, 25), (2.04, 50), (2.075, 75), (2.108, 100)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Curve:
    """A battery's charge by its volts: points (volts, percent), rising in both."""

    points: tuple[tuple[float, float], ...]

    def charge(self, volts: float) -> float | None:
        """The charge at these volts, in percent; None far outside the curve: another battery's.

        >>> curve = Curve(((3.0, 0.0), (4.0, 80.0), (4.2, 100.0)))
        >>> [curve.charge(volts) for volts in (2.9, 3.5, 4.3, 8.2, 1.0)]
        [0.0, 40.0, 100.0, None, None]
        """
        lowest, lowest_pct = self.points[0]
        highest, highest_pct = self.points[-1]
        if not lowest * CURVE_LOW <= volts <= highest * CURVE_HIGH:
            return None
        if volts <= lowest:
            return lowest_pct
        for (low, low_pct), (high, high_pct) in itertools.pairwise(self.points):
            if volts <= high:
                charge = low_pct + (high_pct - low_pct) * (volts - low) / (high - low)
                return round(charge, 1)  # an estimate has no more digits than that
        return highest_pct


def _curve(text: str) -> tuple[str, Curve]:
    """A --curve argument, NAME=CHEMISTRY:CELLS or NAME=VOLTS:PERCENT,VOLTS:PERCENT,...

    >>> name, curve = _curve("Pack=lead-acid:6")
    >>> name, curve.charge(12.24)
    ('Pack', 50.0)
    >>> _curve("Pack=9:0,12.6:100")
    ('Pack', Curve(points=((9.0, 0.0), (12.6, 100.0))))
    """
    name, _, told = text.rpartition("=")
    chemistry, _, cells = told.partition(":")
    if chemistry in _CHEMISTRIES and re.fullmatch(r"[1-9]\d{0,2}", cells, re.ASCII):
        points = [(volts * int(cells), float(pct)) for volts, pct in _CHEMISTRIES[chemistry]]
    else:
        pairs = [pair.partition(":") for pair in told.split(",")]
        numbers = [(_number(volts.strip()), _number(pct.strip())) for volts, _, pct in pairs]
        points = sorted((v, p) for v, p in numbers if v is not None and p is not None)
        if len(points) < len(numbers):
            points = []
    rises = all(
        low < high and low_pct <= high_pct
        for (low, low_pct), (high, high_pct) in itertools.pairwise(points)
    )
    inside = all(0 < volts <= _MAX["V"] and 0 <= pct <= 100 for volts, pct in points)
    if not name or len(points) < 2 or not rises or not inside:
        raise argparse.ArgumentTypeError(
            f"expected NAME=CHEMISTRY:CELLS, CHEMISTRY {', '.join(_CHEMISTRIES)}, "
            f"or NAME=VOLTS:PERCENT,VOLTS:PERCENT,... rising, got {text!r}"
        )
    return name, Curve(tuple(points))


# --- Discovery --------------------------------------------------------------------------------


@dataclass(slots=True)
class Mapping:
    """A --map: its meter's type, its name ("": the source's), and whether to turn the sign."""

    kind: MeterType
    name: str
    flip: bool


def _mapping(text: str) -> tuple[str, Mapping]:
    """A --map argument, RAIL=[-]TYPE[:NAME].

    >>> _mapping("ina219=-battery:Pack")
    ('ina219', Mapping(kind=<MeterType.BATTERY: 'battery'>, name='Pack', flip=True))
    """
    types = "|".join(kind.value for kind in MeterType)
    found = re.fullmatch(rf"(?P<rail>.+?)=(?P<flip>-?)(?P<type>{types})(?::(?P<name>.*))?", text)
    if not found:
        raise argparse.ArgumentTypeError(
            f"expected RAIL=TYPE[:NAME], TYPE main, battery, solar or ups, got {text!r}"
        )
    mapping = Mapping(MeterType(found["type"]), _clean(found["name"] or ""), bool(found["flip"]))
    return found["rail"], mapping


def _told_apart(sources: Sequence[Source]) -> None:
    """Tell sources of one name apart: by the chip's address if there is one, else by number."""
    names = [source.name for source in sources]
    for source in sources:
        if names.count(source.name) > 1 and source.address and source.address not in source.name:
            source.name = f"{source.name} {source.address}"
    taken: set[str] = set()
    for source in sources:
        name = source.name
        number = 2
        while source.name in taken:
            source.name = f"{name} {number}"
            number += 1
        taken.add(source.name)


def discover(
    root: str,
    feeds: Iterable[Feed] = (),
    maps: dict[str, Mapping] | None = None,
    peripherals: bool = False,
    curves: dict[str, Curve] | None = None,
) -> list[Source]:
    """Every source under root and of the feeds; `left_out` says why one is not to be used."""
    fed = [source for feed in feeds for source in feed.sources()]
    sources = [*Supply.discover(root), *Rail.discover(root), *fed]
    _told_apart(sources)
    for source in sources:
        asked = (maps or {}).get(source.name)
        if asked is not None:
            source.kind = asked.kind
            source.name = asked.name or source.name
            source.flip = asked.flip
        if asked is not None or (source.peripheral and peripherals):
            source.left_out = ""
    _told_apart(sources)
    for source in sources:
        source.curve = (curves or {}).get(source.name)
    return sources


# --- Commands ---------------------------------------------------------------------------------


def _run_command(command: Sequence[str], variables: dict[str, str], limit: float) -> None:
    """Run a command without a shell, for at most `limit` seconds; log what goes wrong."""
    environment = _child_environment() | variables
    try:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
    except (OSError, ValueError) as exc:
        _log.error("%s: cannot be run: %s", command[0], _reason(exc))
        return
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.wait()
        _log.error("%s: killed after %g s", command[0], limit)
        return
    if code:
        _log.error("%s: ended with %d", command[0], code)


class Commands:
    """Runs a command for each event, one after another, in a thread of its own."""

    def __init__(self, command: Sequence[str], limit: float) -> None:
        self._command = command
        self._limit = limit
        self._queue: queue.Queue[dict[str, str] | None] = queue.Queue(1000)
        self._thread: threading.Thread | None = None

    def submit(self, variables: dict[str, str]) -> None:
        """Run the command with these in its environment, when those before it have ended."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, daemon=True, name="power_collector --exec"
            )
            self._thread.start()
        try:
            self._queue.put_nowait(variables)
        except queue.Full:
            _log.error(
                "%s: too many events wait for it: not run for %s",
                self._command[0],
                variables["POWER_EVENT"],
            )

    def _work(self) -> None:
        while (variables := self._queue.get()) is not None:
            _run_command(self._command, variables, self._limit)
            self._queue.task_done()
        self._queue.task_done()

    def wait(self) -> None:
        """Wait for the submitted ones, for a little longer than one may take."""
        waiting = self._queue
        with waiting.all_tasks_done:
            if not waiting.all_tasks_done.wait_for(
                lambda: not waiting.unfinished_tasks, self._limit + 1.0
            ):
                _log.error(
                    "%s: %d events still wait for it", self._command[0], waiting.unfinished_tasks
                )

    def close(self) -> None:
        """Wait for the submitted ones, then end; the rest are not run."""
        self.wait()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)


# --- systemd ----------------------------------------------------------------------------------


def _notify(state: str) -> None:
    """Tell systemd, if it is listening."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # systemd must not hold the measuring up
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _watchdog() -> float:
    """Half the seconds after which systemd's watchdog acts; infinite without a watchdog."""
    microseconds = _number(os.environ.get("WATCHDOG_USEC", ""))
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return microseconds / 2e6 if microseconds and ours else math.inf


# --- Clocks and options -----------------------------------------------------------------------


def _boot_clock() -> float:
    """Seconds since boot, those asleep included; this clock cannot be set."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(slots=True)
class Clocks:
    """Where time comes from. wait(seconds) waits, and returns True if the run is to end."""

    wall: Callable[[], float] = time.time
    boot: Callable[[], float] = _boot_clock
    wait: Callable[[float], bool] | None = None  # None: until a signal


@dataclass(slots=True)
class Options:
    """The options of `run`, as on the command line."""

    device_id: str
    db: str
    root: str = "/"
    nut: Sequence[str] = ()
    maps: dict[str, Mapping] = field(default_factory=dict)
    peripherals: bool = False
    interval: float = 5.0
    commit_every: float = 60.0
    keep_days: float | None = None
    min_change: float = 0.0
    once: bool = False
    event_hold: float = EVENT_HOLD
    exec_command: Sequence[str] = ()
    exec_limit: float = EXEC_LIMIT
    shutdown_command: Sequence[str] = ()
    shutdown_after: float = 30.0
    shutdown_on_battery: float | None = None  # seconds on battery, whatever the charge
    shutdown_runtime: float | None = None  # seconds left
    shutdown_ignore: Sequence[str] = ()  # sources that do not feed this machine
    test_shutdown: bool = False
    nut_login: netrc.netrc | None = None
    nut_tls: str | None = None
    apcupsd: Sequence[str] = ()
    programs: Sequence[tuple[str, Sequence[str]]] = ()
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def hold(self) -> float:
        """Seconds for which a source has to be gone or changed before its meter follows."""
        return 0.0 if self.once else HOLD


def open_feeds(options: Options, clock: Callable[[], float]) -> list[Feed]:
    """The feeds that the options name. Raises ValueError for a wrong address."""
    access = UpsdAccess(options.nut_login, options.nut_tls)
    upsds: dict[str, Upsd] = {}
    for address in options.nut:
        ups, at, host = address.rpartition("@")
        if host not in upsds:
            upsds[host] = Upsd(host, clock, access)
        if at:
            upsds[host].names.append(ups)
        else:
            upsds[host].asks_for_all = True
    feeds: list[Feed] = [*upsds.values()]
    feeds += [Apcupsd(address, clock) for address in options.apcupsd]
    feeds += [
        Program(name, command, clock, is_started_again=not options.once)
        for name, command in options.programs
    ]
    return feeds


class ClockWatch:
    """Notices a time of day that was set, and a machine that slept."""

    def __init__(self, clocks: Clocks, interval: float) -> None:
        self._clocks = clocks
        self._interval = interval
        self._looked_at = clocks.boot()
        self._offset = clocks.wall() - self._looked_at
        self.settled_at = self._looked_at + SETTLED  # when the time of day may be trusted

    def has_slept(self, now: float) -> bool:
        """Look at the clocks; return whether the machine has slept since the last look."""
        offset = self._clocks.wall() - now
        if abs(offset - self._offset) > JUMPED:
            _log.warning("the time of day has jumped by %.0f s", offset - self._offset)
            self._offset = offset
            self.settled_at = now + SETTLED
        slept = now - self._looked_at > self._interval + SLEPT
        self._looked_at = now
        return slept


# --- History of a meter -----------------------------------------------------------------------

_T = TypeVar("_T")


@dataclass(slots=True)
class LastKnown(Generic[_T]):
    """A value that stands in for itself for HOLD seconds while it cannot be read.

    >>> charge = LastKnown[float]()
    >>> [charge.take(40.0, now=0.0), charge.take(None, now=60.0), charge.take(None, now=61.0)]
    [40.0, 40.0, None]
    """

    value: _T | None = None
    known_at: float = -math.inf

    def take(self, value: _T | None, now: float) -> _T | None:
        """Remember a value if there is one; return it, else the last one, else None."""
        if value is not None:
            self.value = value
            self.known_at = now
        return self.at(now)

    def at(self, now: float) -> _T | None:
        """The value, unless it is too old."""
        return self.value if now - self.known_at <= HOLD else None


@dataclass(slots=True)
class Trend:
    """The direction of a battery whose gauge does not say it, by TREND points since the last turn.

    >>> trend = Trend()
    >>> [trend.take(charge, now=0.0) for charge in (50.0, 49.0, 48.0, 49.0, 50.0)]
    [None, None, 1, 1, -1]
    """

    direction: int | None = None
    lowest: float = math.inf
    highest: float = -math.inf
    moved_at: float = -math.inf

    def take(self, charge_pct: float | None, now: float) -> int | None:
        """Take a charge; return the direction, None if the charge has not moved for long."""
        if charge_pct is not None:
            falls = self.direction == DISCHARGING and charge_pct < self.lowest
            rises = self.direction == CHARGING and charge_pct > self.highest
            if falls or charge_pct <= self.highest - TREND:
                self._move(DISCHARGING, charge_pct, now)
            elif rises or charge_pct >= self.lowest + TREND:
                self._move(CHARGING, charge_pct, now)
            self.lowest = min(self.lowest, charge_pct)
            self.highest = max(self.highest, charge_pct)
        return self.direction if now - self.moved_at <= TREND_HOLD else None

    def _move(self, direction: int, charge_pct: float, now: float) -> None:
        self.direction = direction
        self.lowest = charge_pct
        self.highest = charge_pct
        self.moved_at = now


@dataclass(slots=True)
class PendingReading:
    """A reading that waits for the next commit."""

    boot_time: float  # seconds since boot when it was taken
    name: str  # the meter's
    kind: MeterType
    voltage: float | None  # V; None: not known
    current_draw: float | None  # A, positive out of the source; None: not known
    charge_pct: float | None  # None: as the file has it, unless lost_charge
    lost_charge: bool = False  # whether it has been missing for long: then it is unknown

    @property
    def says_nothing(self) -> bool:
        """Whether there is no value to store."""
        return self.voltage is None and self.current_draw is None and self.charge_pct is None

    @property
    def wattage(self) -> float | None:
        """Watts; None where volts or amperes are not known."""
        return _product(self.voltage, self.current_draw, "W")


@dataclass(slots=True)
class Facts:
    """What a meter's source is; another serial number or capacity is another source."""

    origin: str = ""  # see Source
    capacity_wh: float | None = None
    rough: bool = False  # whether the capacity moves with the volts
    serial: str = ""

    def is_like(self, other: Facts) -> bool:
        """Whether both may be the same pack: an unknown value is like any."""
        if self.serial and other.serial and self.serial != other.serial:
            return False
        if self.capacity_wh is None or other.capacity_wh is None:
            return True
        tolerance = ROUGH_CAPACITY if self.rough or other.rough else SAME_CAPACITY
        return math.isclose(self.capacity_wh, other.capacity_wh, rel_tol=tolerance)


class History:
    """What is remembered of one meter from look to look."""

    def __init__(self) -> None:
        self.problem = ""
        self.said_estimated = False  # whether the log has said that its charge is an estimate
        self.facts: Facts | None = None  # as they have been for a while
        self._new_facts: Facts | None = None  # others, since when they are seen
        self._new_facts_at = 0.0
        self._forget_values()
        self._kept: PendingReading | None = None  # the last reading that goes into the file
        self._skipped: PendingReading | None = None  # the newest since, where it does not
        self._alert = 0  # 0: none, 1: low, 2: critical
        self._charge_missed_at: float | None = None  # since when the charge is not known
        self._said_lost = False  # whether a reading has said that it is lost
        self._last_turn: int | None = None  # the last direction that was not idle

    def _forget_values(self) -> None:
        self._volts = LastKnown[float]()
        self._amperes = LastKnown[float]()
        self._amperes_direction: int | None = None
        self._charge = LastKnown[float]()
        self._direction = LastKnown[int]()
        self._direction_mains: bool | None = None  # whether mains was there then
        self._trend = Trend()
        self._fine_trend = Trend()

    def judge(self, source: Source, sample: Sample, mains: bool | None, now: float) -> None:
        """Find the direction of a battery that does not say it, and set the signs by it.

        mains: whether this battery has external power; None: not known.
        """
        if source.kind not in ALERT_TYPES:
            return
        self._follow_trend(sample, now)
        if sample.direction is None:
            sample.direction = self._find_direction(source, sample, mains, now)
        else:
            self._direction.take(sample.direction, now)
            self._direction_mains = mains
        if not sample.signed:
            sample.current_draw = _signed(sample.current_draw, sample.direction)
            sample.wattage = _signed(sample.wattage, sample.direction)

    def _follow_trend(self, sample: Sample, now: float) -> None:
        if sample.direction not in (None, self._direction.value):
            self._trend = Trend()  # the charge has not moved yet since the direction changed
            self._fine_trend = Trend()
        trend = self._trend.take(sample.charge_pct, now)
        fine_trend = self._fine_trend.take(sample.fine_charge_pct, now)
        sample.trend = trend if fine_trend is None else fine_trend

    def _find_direction(
        self, source: Source, sample: Sample, mains: bool | None, now: float
    ) -> int | None:
        last = self._direction.at(now)
        # A direction from before mains went off, or came back, may be wrong after it.
        if last is not None and mains in (None, self._direction_mains):
            return last
        if source.kind is MeterType.BATTERY and sample.signed and sample.current_draw is not None:
            return _direction_of(sample.current_draw)
        if mains is False:
            return DISCHARGING
        sample.by_trend = sample.trend is not None
        return sample.trend

    def take_facts(self, source: Source, sample: Sample, now: float, hold: float) -> bool:
        """Remember what the source is; return whether it is new, or another for `hold` seconds."""
        facts = Facts(source.origin, sample.capacity_wh, sample.rough_capacity, sample.serial)
        if self.facts is None:
            self.facts = facts
            return True
        if self.facts.is_like(facts):
            self._new_facts = None
            return self._complete_facts(facts)
        if self._new_facts is None or not self._new_facts.is_like(facts):
            self._new_facts = facts
            self._new_facts_at = now
        # A number is never read wrong into another one; a capacity may be.
        is_another = bool(facts.serial and self.facts.serial not in ("", facts.serial))
        if not is_another and now - self._new_facts_at < hold:
            return False
        self._new_facts = None
        self.facts = facts
        self._forget_values()  # another pack's volts are not this one's,
        self._charge_missed_at = -math.inf  # nor is its charge
        return True

    def _complete_facts(self, facts: Facts) -> bool:
        """Take what was not known before; return whether there was any."""
        assert self.facts is not None
        before = self.facts
        capacity_wh = _first(before.capacity_wh, facts.capacity_wh)
        serial = before.serial or facts.serial
        self.facts = Facts(facts.origin, capacity_wh, facts.rough, serial)
        return (before.capacity_wh, before.serial) != (capacity_wh, serial)

    def alert_rises(self, charge_pct: float | None, low: float, critical: float) -> bool:
        """Whether the charge has come down to a threshold, with power_manager's hysteresis."""
        if charge_pct is None:
            return False
        before = self._alert
        margins = [power_manager.ALERT_HYSTERESIS if before >= level else 0.0 for level in (1, 2)]
        self._alert = 0
        for level, threshold, margin in zip((1, 2), (low, critical), margins):
            if charge_pct <= threshold or charge_pct < threshold + margin:
                self._alert = level
        return self._alert > before

    def has_turned(self, direction: int | None) -> bool:
        """Whether the battery has begun to charge or to discharge; also at the first look."""
        if direction in (None, IDLE, self._last_turn):
            return False
        self._last_turn = direction
        return True

    def reading(
        self, source: Source, sample: Sample, now: float, hold: float
    ) -> PendingReading | None:
        """The reading to store; None if there is nothing to store.

        A battery's charge is stored even alone: for a missing value the last one stands in for HOLD
        seconds, then the value is unknown. So is a charge that is missing for `hold` seconds.
        """
        charge_pct = self._charge.take(sample.charge_pct, now)
        is_lost = source.kind in ALERT_TYPES and self._has_lost_charge(charge_pct, now, hold)
        reading = self._measured(source, sample, charge_pct, now)
        if is_lost and (reading is not None or not self._said_lost):
            if not self._said_lost:
                _log.info("%s: its charge is missing, and is stored as unknown", source.name)
            self._said_lost = True
            reading = reading or PendingReading(now, source.name, source.kind, None, None, None)
            reading.lost_charge = True
        return reading

    def _has_lost_charge(self, charge_pct: float | None, now: float, hold: float) -> bool:
        """Whether the charge is unknown, from the first look on if it never was known."""
        if charge_pct is not None:
            self._charge_missed_at = None
            self._said_lost = False
            return False
        if self._charge_missed_at is None:
            self._charge_missed_at = now
        was_known = self._charge.known_at > -math.inf
        # A value that was known has stood in for HOLD seconds by now.
        return was_known or now - self._charge_missed_at >= hold

    def _measured(
        self, source: Source, sample: Sample, charge_pct: float | None, now: float
    ) -> PendingReading | None:
        """The reading of what was measured, with that charge."""
        volts = _sane(sample.voltage, "V")
        amperes = _sane(sample.current_draw, "A")
        if sample.wattage is not None and volts:
            amperes = _quotient(sample.wattage, volts, "A")
        if amperes is not None and volts is not None and _product(volts, amperes, "W") is None:
            amperes = None
        self._volts.take(volts, now)
        if amperes is not None:
            self._amperes.take(amperes, now)
            self._amperes_direction = sample.direction
        if volts is None or amperes is None:
            if source.kind not in ALERT_TYPES or sample.charge_pct is None:
                return None
            volts = self._volts.at(now)
            if sample.direction == self._amperes_direction:
                amperes = self._amperes.at(now)
        return PendingReading(now, source.name, source.kind, volts, amperes, charge_pct)

    def keep(
        self, reading: PendingReading, min_change: float, silence: float, always: bool
    ) -> list[PendingReading]:
        """The readings to store now: this one, unless it is like the last.

        If the power changes after readings that were left out, the newest of them is stored first:
        else the change would be booked as a slow one over all that time.
        """
        kept = self._kept if min_change > 0 and not always else None
        if kept is not None and _is_like(kept, reading, min_change, silence):
            self._skipped = reading
            return []
        readings = [*self.rest(), reading]
        self._kept = reading
        return readings

    def rest(self) -> list[PendingReading]:
        """The newest reading that was left out, once."""
        skipped = self._skipped
        self._skipped = None
        return [] if skipped is None else [skipped]


def _signed(value: float | None, direction: int | None) -> float | None:
    """An absolute value with the sign of its direction; without one only 0 is known."""
    if direction is None:
        return value if value == 0 else None
    return _turned(value, direction)


def _direction_of(amperes: float) -> int:
    """The direction of measured amperes; a monitor's noise has none.

    >>> [_direction_of(amperes) for amperes in (0.5, -0.5, 0.002)]
    [1, -1, 0]
    """
    if abs(amperes) < NOISE:
        return IDLE
    return DISCHARGING if amperes > 0 else CHARGING


def _is_like(
    kept: PendingReading, reading: PendingReading, min_change: float, silence: float
) -> bool:
    """Whether a reading differs too little, and comes too soon, to be kept after the last one."""
    if reading.boot_time - kept.boot_time >= silence:
        return False
    if (reading.wattage is None) != (
        kept.wattage is None
    ) or reading.lost_charge != kept.lost_charge:
        return False
    watts = abs((reading.wattage or 0.0) - (kept.wattage or 0.0))
    points = 0.0
    if reading.charge_pct is not None and kept.charge_pct is not None:
        points = abs(reading.charge_pct - kept.charge_pct)
    return watts < min_change and points < 1.0


class Histories:
    """The history of every meter, and whether mains is there."""

    def __init__(self, ignored: Sequence[str] = ()) -> None:
        self._ignored = ignored  # names of supplies that do not feed this machine
        self._histories: dict[str, History] = {}
        self._online: dict[str, LastKnown[bool]] = {}  # by source's name
        self.mains: bool | None = None  # of the machine's own supplies; None: not known

    def of(self, source: Source) -> History:
        """The history of a source's meter."""
        history = self._histories.get(source.name)
        if history is None:
            history = self._histories[source.name] = History()
        return history

    def all(self) -> Iterable[History]:
        """Every history."""
        return self._histories.values()

    def judge(self, samples: Sequence[tuple[Source, Sample]], now: float) -> None:
        """Find out whether mains is there, then every battery's direction and signs."""
        self.mains = self._find_mains(samples, now)
        for source, sample in samples:
            mains = sample.mains
            if source.kind is MeterType.BATTERY:
                mains = None if source.peripheral else self.mains
            self.of(source).judge(source, sample, mains, now)

    def _find_mains(self, samples: Sequence[tuple[Source, Sample]], now: float) -> bool | None:
        """Whether one of the machine's own supplies is online; False only if none can be."""
        states: list[bool | None] = []
        for source, sample in samples:
            if source.kind is not MeterType.MAIN or source.peripheral:
                continue
            if source.name in self._ignored:
                continue
            if sample.mains is not None:
                self._online.setdefault(source.name, LastKnown()).take(sample.mains, now)
            if source.name in self._online:  # a rail says nothing of mains, and never did
                states.append(self._online[source.name].at(now))
        if not states:
            return None
        if any(states):
            return True
        return None if None in states else False


# --- Shutdown watch ---------------------------------------------------------------------------


@dataclass(slots=True)
class Reserve:
    """A battery or UPS that this machine can live on, and its state.

    A value that cannot be read changes nothing: a sensor that fails is no recovery.
    """

    name: str
    kind: MeterType
    charge: LastKnown[float] = field(default_factory=LastKnown)
    watts: LastKnown[float] = field(default_factory=LastKnown)
    runtime: LastKnown[float] = field(default_factory=LastKnown)  # seconds, as the device says
    capacity_wh: float | None = None
    direction: int | None = None
    heard_at: float = -math.inf
    missed_at: float | None = None  # since when it cannot be read
    discharging: bool = False
    falling: bool = False  # by its charge, whatever its status says
    on_battery_at: float | None = None  # since when a UPS is on battery
    low: bool = False  # as the device itself says
    empty: bool = False  # by its charge
    forced: bool = False  # FSD: who controls the UPS is switching it off
    calibrating: bool = False
    off: bool = False  # the UPS's output is off: it feeds nothing

    def take(self, sample: Sample, critical_pct: float, mains: bool | None, now: float) -> None:
        """Take what the battery or UPS says now; mains: whether it has external power."""
        if sample.empty:
            self.miss(now)
            return
        self.heard_at = now
        self.missed_at = None
        self.direction = sample.direction
        # A UPS says itself what it does, unless it says nothing.
        trusted = sample.by_trend or self.kind is MeterType.BATTERY
        self.falling = trusted and sample.trend == DISCHARGING
        self.charge.take(sample.charge_pct, now)
        self.watts.take(sample.wattage, now)
        self.runtime.take(sample.runtime_s, now)
        self.capacity_wh = _first(sample.capacity_wh, self.capacity_wh)
        if sample.status or sample.tokens:
            self.forced = "FSD" in sample.tokens
            self.calibrating = "CAL" in sample.tokens
            self.off = "OFF" in sample.tokens
        self._take_discharging(sample, mains, now)
        self._take_critical(sample, critical_pct)

    def miss(self, now: float) -> None:
        """Note that it cannot be read at this look."""
        if self.missed_at is None:
            self.missed_at = now

    def _take_discharging(self, sample: Sample, mains: bool | None, now: float) -> None:
        if sample.direction is not None and not sample.by_trend:
            self.discharging = sample.direction == DISCHARGING
        elif mains is not None:
            self.discharging = not mains
        if not self.discharging or self.calibrating:
            self.on_battery_at = None
        elif self.on_battery_at is None:
            self.on_battery_at = now

    def _take_critical(self, sample: Sample, critical_pct: float) -> None:
        if sample.low is not None:
            self.low = sample.low
        if sample.charge_pct is not None:
            # A gauge that wavers about the threshold has not recovered.
            margin = power_manager.ALERT_HYSTERESIS if self.empty else 0.0
            charge = sample.charge_pct
            self.empty = charge <= critical_pct or charge < critical_pct + margin

    @property
    def critical(self) -> bool:
        """Whether it is nearly empty."""
        return self.low or self.empty

    def has_charge(self, now: float) -> bool:
        """Whether it is known to have charge left above the critical threshold."""
        return self.charge.at(now) is not None and not self.critical

    def describe(self, now: float) -> str:
        """One line for people."""
        charge = self.charge.at(now)
        parts = ["charge unknown" if charge is None else f"{charge:g} %"]
        names = {DISCHARGING: "discharging", IDLE: "idle", CHARGING: "charging"}
        parts.append(names.get(self.direction, "direction unknown"))  # type: ignore[arg-type]
        marks = {"critical": self.critical, "calibrating": self.calibrating}
        marks |= {"forced shutdown (FSD)": self.forced, "output off": self.off}
        marks["no answer"] = now != self.heard_at
        parts += [text for text, is_so in marks.items() if is_so]
        return f"{self.name}: {', '.join(parts)}"


@dataclass(slots=True)
class Ending:
    """Why the machine is to shut down: the battery or UPS, the reason, when the wait begins."""

    reserve: Reserve
    why: str
    since: float
    at_once: bool = False  # whether the wait is over already


class ShutdownWatch:
    """Judges whether this machine still has a battery or UPS to live on.

    The machine's own packs share its load, so it ends with the last of them. UPSes matter while no
    pack has charge left, and the machine then ends with the last UPS: one that is on line, or has
    charge left, is enough; one that has not answered for a minute does not count.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._reserves: dict[str, Reserve] = {}
        self._ignored: list[str] = []  # names of batteries and UPSes that do not feed this machine
        self._mains: bool | None = None
        self._packs_on_battery_at: float | None = None
        self._ending_at: float | None = None
        self._said_calibrating = False
        self._said_doubts = options.test_shutdown  # describe() says them there
        self._ran = False
        self.ending: Ending | None = None  # as of the last look

    def look(
        self,
        samples: Sequence[tuple[Source, Sample]],
        mains: bool | None,
        critical_pct: float,
        now: float,
    ) -> None:
        """Take what every battery and UPS says, and judge."""
        self._mains = mains
        found = [(s, x) for s, x in samples if s.kind in ALERT_TYPES and not s.peripheral]
        self._ignored = [s.name for s, _ in found if s.name in self._options.shutdown_ignore]
        found = [(s, x) for s, x in found if s.name not in self._ignored]
        self._forget_gone({source.name for source, _ in found}, now)
        for source, sample in found:
            reserve = self._reserves.get(source.name)
            if reserve is None:
                reserve = self._reserves[source.name] = Reserve(source.name, source.kind)
            own_mains = mains if source.kind is MeterType.BATTERY else sample.mains
            reserve.take(sample, critical_pct, own_mains, now)
        self._follow_packs(now)
        before = self.ending
        self.ending = self._judge(now)
        self._follow_ending(before, now)
        if not self._said_doubts:
            self._said_doubts = True
            for doubt in self.doubts():
                _log.warning("%s", doubt)

    def _forget_gone(self, names: set[str], now: float) -> None:
        """Forget a pack that was taken out; a UPS that vanishes while on battery is lost."""
        for name in self._reserves.keys() - names:
            reserve = self._reserves[name]
            if reserve.kind is MeterType.BATTERY or reserve.on_battery_at is None:
                del self._reserves[name]
            else:
                reserve.miss(now)

    def _packs(self) -> list[Reserve]:
        return [r for r in self._reserves.values() if r.kind is MeterType.BATTERY]

    def _follow_packs(self, now: float) -> None:
        """Note since when the machine lives on its own packs."""
        packs = self._packs()
        # A discharge on purpose needs mains.
        supplying = any(p.discharging and not (p.calibrating and self._mains) for p in packs)
        # Packs that say nothing, or "idle", do supply if nothing else can.
        supplying = supplying or (bool(packs) and self._mains is False)
        charging = any(pack.direction == CHARGING for pack in packs)
        if not supplying or charging:
            self._packs_on_battery_at = None
        elif self._packs_on_battery_at is None:
            self._packs_on_battery_at = now

    def _judge(self, now: float) -> Ending | None:
        ending = self._packs_end(now)
        # With mains off, or a pack discharging, no UPS feeds this machine.
        if ending is not None or any(pack.has_charge(now) for pack in self._packs()):
            return ending
        endings: list[Ending] = []
        for ups in self._reserves.values():
            if ups.kind is not MeterType.UPS:
                continue
            ended = self._ups_end(ups, now)
            if ended is not None:
                endings.append(ended)
            elif now - ups.heard_at <= HOLD and not ups.off:
                return None
        return max(endings, key=lambda ended: ended.at_once, default=None)

    def _packs_end(self, now: float) -> Ending | None:
        packs = self._packs()
        packs.sort(key=lambda pack: (not pack.critical, not pack.discharging))
        since = self._packs_on_battery_at
        # If a charge falls, a status that says otherwise is stuck, or the charger is too weak. It
        # also falls in days of rest, so this counts only at the critical threshold.
        falling = self._mains is not True and any(pack.falling for pack in packs)
        if since is None and not falling:
            return None
        pack = packs[0]
        if pack.critical and not any(pack.has_charge(now) for pack in packs):
            return Ending(pack, "critical", now)
        if since is None:
            return None
        return self._limit_reached(pack, since, self._packs_runtime_s(now), now)

    def _packs_runtime_s(self, now: float) -> float | None:
        """Seconds until the packs are empty at the present watts; None if a part is not known."""
        packs = self._packs()
        remaining_wh = 0.0
        watts = 0.0
        for pack in packs:
            charge = pack.charge.at(now)
            pack_watts = pack.watts.at(now)
            if charge is None or pack_watts is None or pack.capacity_wh is None:
                return packs[0].runtime.at(now) if len(packs) == 1 else None
            remaining_wh += pack.capacity_wh * charge / 100.0
            watts += pack_watts
        return remaining_wh / watts * 3600.0 if watts > 0 else None

    def _ups_end(self, ups: Reserve, now: float) -> Ending | None:
        """Why a UPS can no longer feed this machine; None if it can, or nothing is known of it."""
        if ups.forced:
            return Ending(ups, "its primary says FSD", now, at_once=True)
        if ups.critical and ups.falling:
            return Ending(ups, "critical", now)
        if ups.on_battery_at is None:
            return None
        if ups.critical:
            return Ending(ups, "critical", now)
        if ups.missed_at is not None and now - ups.missed_at >= LOST:
            return Ending(ups, "on battery at its last answer", ups.missed_at)
        return self._limit_reached(ups, ups.on_battery_at, ups.runtime.at(now), now)

    def _limit_reached(
        self, reserve: Reserve, on_battery_at: float, runtime_s: float | None, now: float
    ) -> Ending | None:
        """Whether a limit of the options ends the machine before its battery does."""
        on_battery = self._options.shutdown_on_battery
        if on_battery is not None and now - on_battery_at >= on_battery:
            return Ending(reserve, f"on battery for {on_battery:g} s", now, at_once=True)
        least_s = self._options.shutdown_runtime
        if least_s is not None and runtime_s is not None and runtime_s < least_s:
            return Ending(reserve, f"less than {shown_duration(least_s)} left", now)
        return None

    def _follow_ending(self, before: Ending | None, now: float) -> None:
        """Note since when the machine is ending, and log when that begins and ends."""
        ending = self.ending
        if ending is None:
            if before is not None:
                self._say(f"{before.reserve.name}: recovered; no shutdown")
            self._ending_at = None
            self._ran = False
        elif self._ending_at is None:
            self._ending_at = ending.since
            wait = self.wait_s(now)
            self._say(f"{ending.reserve.name}: {ending.why}; shutdown in {wait:g} s")
        calibrating = [r for r in self._reserves.values() if r.calibrating and r.critical]
        if calibrating and not self._said_calibrating:
            self._say(f"{calibrating[0].name}: critical, but calibrating; no shutdown for that")
        self._said_calibrating = bool(calibrating)

    def _say(self, text: str) -> None:
        if self._options.shutdown_command:
            _log.warning("%s", text)

    def wait_s(self, now: float) -> float:
        """Seconds until the command is due; infinite if the machine is not ending."""
        if self.ending is None or self._ending_at is None:
            return math.inf
        if self.ending.at_once:
            return 0.0
        return max(self._ending_at + self._options.shutdown_after - now, 0.0)

    def is_due(self, now: float) -> bool:
        """Whether the command is to run now: once for each time that the machine ends."""
        if self._ran or self.wait_s(now) > 0:
            return False
        self._ran = True
        return True

    def has_slept(self, now: float) -> None:
        """Start all waits again: after a sleep there is time to plug in."""
        if self._ending_at is not None:
            self._ending_at = now
        if self._packs_on_battery_at is not None:
            self._packs_on_battery_at = now
        for reserve in self._reserves.values():
            if reserve.on_battery_at is not None:
                reserve.on_battery_at = now
            if reserve.missed_at is not None:
                reserve.missed_at = now

    def doubts(self) -> list[str]:
        """Why the shutdown command may never run, by what has been seen so far."""
        options = self._options
        if not options.shutdown_command:
            if options.shutdown_on_battery is None and options.shutdown_runtime is None:
                return []
            return [
                "--shutdown-on-battery and --shutdown-runtime do nothing without --shutdown-command"
            ]
        program = options.shutdown_command[0]
        doubts = []
        if shutil.which(program) is None:
            doubts.append(f"--shutdown-command cannot run: there is no program {program}")
        if options.once and options.shutdown_after > 0 and not options.test_shutdown:
            doubts.append("--shutdown-command: with --once it can only run with --shutdown-after 0")
        useless = [text for text in map(self._why_useless, self._reserves.values()) if text]
        doubts += useless
        if len(useless) == len(self._reserves):
            what = "no battery or UPS says when it ends"
            if not useless:
                what = "there is no battery or UPS"
                what += " but those of --shutdown-ignore" if self._ignored else ""
            doubts.append(f"--shutdown-command can never run as things are: {what}")
        return doubts + [text for text in map(self._why_late, self._packs()) if text]

    def _why_useless(self, reserve: Reserve) -> str:
        if reserve.heard_at == -math.inf:
            return "" if reserve.kind is MeterType.UPS else f"{reserve.name}: nothing readable"
        if reserve.kind is MeterType.UPS or self._options.shutdown_on_battery is not None:
            return ""
        if reserve.charge.value is None and reserve.runtime.value is None:
            return f"{reserve.name}: its charge is not known"
        return ""

    def _why_late(self, pack: Reserve) -> str:
        if pack.direction is not None or self._mains is not None or pack.heard_at == -math.inf:
            return ""
        doubt = (
            f"{pack.name}: neither its status nor mains says whether it discharges: "
            f"it counts as discharging once its charge has fallen by {TREND:g} points"
        )
        charge = pack.charge.value
        if charge is not None and charge < TREND:
            doubt += f". From {charge:g} % it cannot, so it shuts nothing down until it has been "
            doubt += f"above {TREND:g} %"
        return doubt

    def describe(self, now: float) -> list[str]:
        """What would happen now, and why, in lines for a person."""
        mains = {True: "on", False: "off", None: "not known"}[self._mains]
        lines = [reserve.describe(now) for reserve in self._reserves.values()]
        lines += [f"{name}: does not count (--shutdown-ignore)" for name in self._ignored]
        lines.append(f"mains: {mains}")
        wait = self.wait_s(now)
        if self.ending is None:
            return [*lines, f"no shutdown: {self._why_not(now)}", *self.doubts()]
        name = self.ending.reserve.name
        when = "now" if wait == 0 else f"in {wait:g} s, if nothing changes"
        return [*lines, f"shutdown {when}: {name}: {self.ending.why}", *self.doubts()]

    def _why_not(self, now: float) -> str:
        if not self._reserves:
            return "there is no battery or UPS"
        calibrating = [r.name for r in self._reserves.values() if r.calibrating]
        if calibrating:
            return f"{', '.join(calibrating)}: calibrating"
        charged = [r.name for r in self._reserves.values() if r.has_charge(now)]
        if charged:
            return f"{', '.join(charged)}: charge left above the critical threshold"
        return "nothing is known to be discharging"


# --- Events -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Unrest:
    """A state that may flap: in each period of unrest every state counts once.

    A period begins with a change, and ends when the state has been the same for `hold` seconds.

    >>> charger = Unrest(hold=120.0)
    >>> [charger.is_news(state, now) for now, state in enumerate((False, True, False, True, False))]
    [False, True, True, False, False]
    >>> charger.is_news(True, now=1000.0)
    True
    """

    hold: float
    state: object = None  # None: not known yet
    changed_at: float = -math.inf
    told: set[object] = field(default_factory=set)

    def is_news(self, state: object, now: float) -> bool:
        """Whether the state has changed, to one that is new in this period; not at first."""
        before = self.state
        self.state = state
        if before is None or state == before:
            return False
        if now - self.changed_at >= self.hold:
            self.told.clear()
        self.changed_at = now
        is_new = state not in self.told
        self.told.add(state)
        return is_new


@dataclass(slots=True)
class Happening:
    """An event that waits for the next commit."""

    boot_time: float  # seconds since boot when it happened
    event_type: PowerEventType
    value: float
    name: str  # the source's, and its meter's where it has one
    kind: MeterType
    text: str


class EventWatch:
    """Notices mains that comes back, and batteries that begin to charge.

    look() returns the events; `urgent`: whether the source of the power has changed.
    """

    def __init__(self, hold: float) -> None:
        self._hold = hold
        self._mains: dict[str, Unrest] = {}  # "": the machine's own supplies; else a UPS by name
        self._directions: dict[str, Unrest] = {}
        self.urgent = False

    def look(self, samples: Sequence[tuple[Source, Sample]], now: float) -> list[Happening]:
        """What has happened since the last look."""
        self.urgent = False
        happenings = [self._look_at_direction(source, sample, now) for source, sample in samples]
        happenings += self._look_at_mains(samples, now)
        return [happening for happening in happenings if happening is not None]

    def _look_at_direction(self, source: Source, sample: Sample, now: float) -> Happening | None:
        if sample.direction in (None, IDLE) or source.kind not in ALERT_TYPES:
            return None
        unrest = self._directions.get(source.name)
        if unrest is None:
            unrest = self._directions[source.name] = Unrest(self._hold)
        if not unrest.is_news(sample.direction, now):
            return None
        self.urgent = True
        if sample.direction == DISCHARGING:
            return None
        return _happening(PowerEventType.CHARGE_START, source, sample.charge_pct, "charging", now)

    def _look_at_mains(
        self, samples: Sequence[tuple[Source, Sample]], now: float
    ) -> Iterator[Happening]:
        """One state for the machine's own supplies, one for each UPS."""
        groups: dict[str, list[tuple[Source, Sample]]] = {}
        for source, sample in samples:
            if sample.mains is not None and not source.peripheral:
                group = source.name if source.kind is MeterType.UPS else ""
                groups.setdefault(group, []).append((source, sample))
        for group, members in groups.items():
            online = [(source, sample) for source, sample in members if sample.mains]
            unrest = self._mains.setdefault(group, Unrest(self._hold))
            if not unrest.is_news(bool(online), now):
                continue
            self.urgent = True
            if online:
                source, sample = online[0]
                charge = sample.charge_pct if group else _packs_charge(samples)
                kind = PowerEventType.RESTORE
                yield _happening(kind, source, charge, "mains is back", now)


def _packs_charge(samples: Sequence[tuple[Source, Sample]]) -> float | None:
    """The charge of the first of the machine's own packs that says it."""
    for source, sample in samples:
        is_pack = source.kind is MeterType.BATTERY and not source.peripheral
        if is_pack and sample.charge_pct is not None:
            return sample.charge_pct
    return None


def _happening(
    kind: PowerEventType, source: Source, value: float | None, text: str, now: float
) -> Happening:
    return Happening(now, kind, value or 0.0, source.name, source.kind, text)


class EventHooks:
    """Runs the --exec command for every event in the file, from any process."""

    def __init__(self, options: Options) -> None:
        self._commands: Commands | None = None
        if options.exec_command:
            self._commands = Commands(options.exec_command, options.exec_limit)
        self._error = ""

    def tell(self, journal: Journal) -> None:
        """Run the command for the events since the last call."""
        if self._commands is None:
            return
        try:
            environments = journal.news()
        except PowerManagerError as exc:
            if str(exc) != self._error:
                _log.error("events cannot be read: %s", exc)
            self._error = str(exc)
            return
        self._error = ""
        for variables in environments:
            self._commands.submit(variables)

    def wait(self) -> None:
        """Wait for the commands that are to run."""
        if self._commands is not None:
            self._commands.wait()

    def close(self) -> None:
        """Wait for them, and end."""
        if self._commands is not None:
            self._commands.close()


# --- Journal ----------------------------------------------------------------------------------

Key = tuple[str, MeterType]  # a meter's name, as its source has it, and its type

_REGISTRY_SQL = """CREATE TABLE IF NOT EXISTS collector_meters (
    meter_id TEXT PRIMARY KEY, -- of a meter that a collector has registered
    device_id TEXT NOT NULL,
    name TEXT NOT NULL, -- the source's: the meter may have been renamed since
    type TEXT NOT NULL,
    origin TEXT NOT NULL, -- a directory or server: without the source there, the source is gone
    capacity_wh REAL, -- as the source said it last: the meter's may have been changed since
    serial TEXT NOT NULL
)"""


class Registry:
    """The meters that collectors have registered, in a table of their own.

    Only these follow their sources: their capacity changes, and they become inactive. A meter that
    another program or a person has added stays as it is.
    """

    def __init__(self, device_id: str, hold: float) -> None:
        self._device_id = device_id
        self._hold = hold
        self._facts: dict[Key, Facts] = {}  # of the sources there are
        self._answering: set[str] = set()  # the origins that have just answered
        self._known: dict[Key, str] | None = None  # registered meters' origins; None: not read yet
        self._missing: dict[Key, float] = {}  # since when there is no source
        self._retired: set[Key] = set()
        self.has_news = True  # whether the file has to follow

    def facts(self, key: Key) -> Facts:
        """What the source of a meter is."""
        return self._facts.get(key, Facts())

    def change(self, key: Key, facts: Facts) -> None:
        """Take what a source is now."""
        self._facts[key] = facts
        self.has_news = True

    def look(self, present: set[Key], answering: set[str], now: float) -> None:
        """Take which sources there are now, and what has answered; note those that are missing."""
        self._answering = answering
        self._retired -= present
        for key in list(self._facts):
            if key not in present:
                del self._facts[key]
        if self._known is None:
            self._missing = {k: since for k, since in self._missing.items() if k not in present}
        else:
            self._missing = {
                key: self._missing.get(key, now)
                for key, origin in self._known.items()
                if key not in present and origin in answering
            }
        if any(self._is_gone(key, now) for key in self._missing):
            self.has_news = True

    def _is_gone(self, key: Key, now: float) -> bool:
        since = self._missing.get(key)
        return since is not None and now - since >= self._hold and key not in self._retired

    def forget(self) -> None:
        """Read the table again: the file was replaced, or a write has failed."""
        self._known = None
        self._retired.clear()
        self.has_news = True

    def ids(self, manager: PowerManager) -> dict[Key, str]:
        """The ids of the registered meters that are still there."""
        meters = {meter.id for meter in manager.list_meters(self._device_id)}
        with manager.connection() as conn:
            conn.execute(_REGISTRY_SQL)
            sql = "SELECT name, type, meter_id FROM collector_meters WHERE device_id = ?"
            rows = conn.execute(sql, (self._device_id,)).fetchall()
        return {(n, MeterType(kind)): meter_id for n, kind, meter_id in rows if meter_id in meters}

    def add(self, manager: PowerManager, key: Key) -> str:
        """Register a meter; return its id."""
        name, kind = key
        facts = self.facts(key)
        capacity_wh = facts.capacity_wh or 0.0
        # Its charge is unknown until a reading says it.
        meter = manager.add_meter(self._device_id, kind, capacity_wh, name, charge_pct=None)
        sql = "INSERT INTO collector_meters VALUES (?, ?, ?, ?, ?, ?, ?)"
        row = (meter.id, self._device_id, name, kind.value, facts.origin)
        with manager.connection() as conn:
            conn.execute(_REGISTRY_SQL)
            conn.execute(sql, (*row, facts.capacity_wh, facts.serial))
        self._known = None
        return meter.id

    def follow(self, manager: PowerManager, now: float) -> None:
        """Bring the registered meters up to date, in the transaction that is open."""
        meters = {meter.id: meter for meter in manager.list_meters(self._device_id)}
        sql = """SELECT name, type, meter_id, origin, capacity_wh, serial FROM collector_meters
            WHERE device_id = ?"""
        with manager.connection() as conn:
            conn.execute(_REGISTRY_SQL)
            rows = conn.execute(sql, (self._device_id,)).fetchall()
        known: dict[Key, str] = {}
        for name, kind, meter_id, origin, capacity_wh, serial in rows:
            if meter_id not in meters:
                self._execute(manager, "DELETE FROM collector_meters WHERE meter_id = ?", meter_id)
                continue
            key = (name, MeterType(kind))
            known[key] = origin
            if key in self._facts:
                before = Facts(origin, capacity_wh, self._facts[key].rough, serial)
                self._follow_facts(manager, meters[meter_id], key, before)
            elif self._must_retire(key, origin, now) and meters[meter_id].active:
                manager.update_meter(meter_id, active=False)
                _log.warning("%s: gone: its meter is inactive until it comes back", name)
        self._known = known
        self.has_news = False

    def _must_retire(self, key: Key, origin: str, now: float) -> bool:
        # At the first look of a run nothing has been missed for long: note that it is missing.
        if self._known is None and origin in self._answering:
            self._missing.setdefault(key, now)
        if not self._is_gone(key, now):
            return False
        self._retired.add(key)
        return True

    def _follow_facts(
        self, manager: PowerManager, meter: PowerMeter, key: Key, before: Facts
    ) -> None:
        """Change a meter's capacity if its source is another one now."""
        facts = self._facts[key]
        name, _ = key
        is_another = bool(before.serial and facts.serial and before.serial != facts.serial)
        if is_another:
            _log.warning("%s: another pack: %s, was %s", name, facts.serial, before.serial)
        capacity_wh = before.capacity_wh  # kept while it is alike: small steps must not add up
        if facts.capacity_wh is not None and (capacity_wh is None or not before.is_like(facts)):
            # An unknown capacity that a person has set meanwhile stays.
            if capacity_wh is not None or meter.capacity_wh == 0:
                manager.update_meter(meter.id, capacity_wh=facts.capacity_wh)
            if capacity_wh is not None and facts.capacity_wh != capacity_wh:
                text = "%s: its capacity is %.4g Wh now, was %.4g Wh"
                _log.warning(text, name, facts.capacity_wh, capacity_wh)
            capacity_wh = facts.capacity_wh
        sql = (
            "UPDATE collector_meters SET origin = ?, capacity_wh = ?, serial = ? WHERE meter_id = ?"
        )
        serial = facts.serial or before.serial
        self._execute(manager, sql, facts.origin, capacity_wh, serial, meter.id)

    @staticmethod
    def _execute(manager: PowerManager, sql: str, *values: object) -> None:
        with manager.connection() as conn:
            conn.execute(sql, values)


class Journal:
    """Readings and events that wait for the next commit, and are kept until it succeeds.

    Readings are stored as live ones, in order, each at its own time: a live one is the present
    state and can raise an alert even if the time of day was set back. (Recorded ones would be
    history until the time of day has caught up.) The commit works that time out, see the module's
    docstring.
    """

    def __init__(
        self, db: str | os.PathLike[str], device_id: str, clocks: Clocks, gone_after: float = HOLD
    ) -> None:
        self._db = db
        self._device_id = device_id
        self._clocks = clocks
        self.manager: PowerManager = self._open()
        self.registry = Registry(device_id, gone_after)
        self._readings: deque[PendingReading] = deque()
        self._happenings: deque[Happening] = deque(maxlen=1000)
        self._ids: dict[Key, str] = {}
        self._chargeless: set[Key] = set()  # meters whose charge has been made unknown
        self._lost = 0
        self._refusing = 0
        self._said_refused: set[str] = set()
        self.accepted = 0  # readings and events that were to be stored
        self.refused = 0  # readings and events that power_manager does not store
        self.error = ""
        self.low: float = power_manager.LOW_BATTERY_THRESHOLD
        self.critical: float = power_manager.CRITICAL_BATTERY_THRESHOLD
        # Seconds between two readings beyond which no energy is booked.
        self.max_gap: float = math.inf
        try:
            self._look_up_device()
            self._sequence = self.manager.last_sequence()
            self._file_id = self.manager.file_id
            self._written_file_id = self._file_id
        except BaseException:
            self.manager.close()
            raise

    @property
    def waiting(self) -> int:
        """Readings and events that are not in the file."""
        return len(self._readings) + len(self._happenings)

    def _open(self) -> PowerManager:
        return PowerManager(self._db, alert_types=ALERT_TYPES, clock=self._time_of_day)

    def _time_of_day(self) -> float:
        return _storable(self._clocks.wall())

    def _look_up_device(self) -> None:
        """Register the device if it is missing; take its thresholds and the file's max_gap."""
        try:
            device = self.manager.get_device(self._device_id)
        except power_manager.NotFound:
            device = self.manager.register_device(self._device_id, self._device_id)
        self.low, self.critical = _thresholds(device)
        self.max_gap = self.manager.max_gap

    def add(self, reading: PendingReading) -> None:
        """Keep a reading for the next commit; if too many wait, drop the oldest."""
        if len(self._readings) >= MAX_WAITING:
            self._readings.popleft()
            self._lost += 1
        self._readings.append(reading)
        self.accepted += not reading.says_nothing

    def happen(self, happening: Happening) -> None:
        """Keep an event for the next commit."""
        self.accepted += 1
        self._happenings.append(happening)

    def commit(self) -> bool:
        """Write all that waits in one transaction; on an error keep it and return False."""
        try:
            if self.waiting or self.registry.has_news:
                self._reopen_where_replaced()
                with self.manager.transaction():
                    self._write()
        except PowerManagerError as exc:
            self._forget_file()  # a new meter has been rolled back too, or a known one was deleted
            if str(exc) != self.error:
                _log.error("%s; %d readings wait in memory", exc, len(self._readings))
            self.error = str(exc)
            return False
        if self.error:
            _log.warning(
                "%s: written again, %d readings lost meanwhile", self.manager.db_path, self._lost
            )
        self.error = ""
        self._lost = 0
        self.refused += self._refusing
        self._refusing = 0
        self._readings.clear()
        self._happenings.clear()
        return True

    def _reopen_where_replaced(self) -> None:
        """Open the file again if its path now names another one, or none."""
        if not self.manager.is_replaced():
            return
        manager = self._open()  # if that fails, the file may still come back
        self.manager.close()
        self.manager = manager
        self._forget_file()
        _log.warning("%s: deleted or replaced meanwhile: opened again", self.manager.db_path)

    def _forget_file(self) -> None:
        """Forget the file's meters, and bring them up to date with the next commit."""
        self._ids.clear()
        self._chargeless.clear()
        self.registry.forget()

    def _write(self) -> None:
        """Store what waits, each at the time of day at which it happened."""
        file_id = self.manager.file_id
        if file_id != self._written_file_id:
            self._forget_file()  # a backup was restored: its meters are as they were then
            self._written_file_id = file_id
        offset = self._clocks.wall() - self._clocks.boot()
        self._refusing = 0
        self._look_up_device()
        self._write_readings(offset)
        for happening in self._happenings:
            try:
                self._write_event(happening, offset)
            except InvalidValue as exc:
                self._refuse(happening.name, f"{happening.event_type.value}: {exc}")
        if self.registry.has_news:
            self.registry.follow(self.manager, self._clocks.boot())

    def _write_readings(self, offset: float) -> None:
        rows: list[tuple[Any, ...]] = []  # as log_many() takes them
        names: list[str] = []
        for reading in self._readings:
            if self._forgets_charge(reading):
                self._log(rows, names)  # those before it have the charge that they had
                rows, names = [], []
                self._forget_charge(reading)
            if reading.says_nothing:
                continue
            try:
                meter_id = self._meter_id(reading.name, reading.kind)
            except InvalidValue as exc:  # such as a name that no meter can have
                self._refuse(reading.name, str(exc))
                continue
            timestamp = _storable(reading.boot_time + offset)
            rows.append(
                (meter_id, reading.voltage, reading.current_draw, reading.charge_pct, timestamp)
            )
            names.append(reading.name)
        self._log(rows, names)

    def _forgets_charge(self, reading: PendingReading) -> bool:
        """Whether a meter's charge is to become unknown; once, as another program may log it."""
        key = reading.name, reading.kind
        if reading.charge_pct is not None:
            self._chargeless.discard(key)
        return reading.lost_charge and key not in self._chargeless

    def _forget_charge(self, reading: PendingReading) -> None:
        meter_id = self._known_meter_id(reading.name, reading.kind)
        if meter_id is None:  # a new meter has no charge yet
            return
        self._chargeless.add((reading.name, reading.kind))
        self.manager.update_meter(meter_id, charge_pct=None)

    def _log(self, rows: list[tuple[Any, ...]], names: list[str]) -> None:
        try:
            self.manager.log_many(rows, live=True)
        except InvalidValue:
            self._write_one_by_one(rows, names)

    def _write_one_by_one(self, rows: list[tuple[Any, ...]], names: list[str]) -> None:
        """Store what can be stored: one refused reading must not cost the others."""
        for name, (*values, timestamp) in zip(names, rows):
            try:
                self.manager.log_power(*values, timestamp=timestamp, live=True)
            except InvalidValue as exc:
                self._refuse(name, str(exc))

    def _refuse(self, name: str, why: str) -> None:
        """Drop what power_manager does not store, and log it once for each source."""
        self._refusing += 1
        if name not in self._said_refused:
            self._said_refused.add(name)
            _log.error("%s: refused and left out: %s", _clean(name), why[:300])

    def _write_event(self, happening: Happening, offset: float) -> None:
        self.manager.trigger_event(
            self._device_id,
            happening.event_type,
            happening.value,
            f"{happening.name}: {happening.text}",
            meter_id=self._known_meter_id(happening.name, happening.kind),
            timestamp=_storable(happening.boot_time + offset),
        )

    def _known_meter_id(self, name: str, kind: MeterType) -> str | None:
        """The device's meter of that name and type; None if it has none."""
        if (name, kind) not in self._ids:
            for meter in self.manager.list_meters(self._device_id):
                if meter.name is not None:
                    self._ids.setdefault((meter.name, meter.type), meter.id)
            self._ids |= self.registry.ids(self.manager)  # these may have been renamed
        return self._ids.get((name, kind))

    def _meter_id(self, name: str, kind: MeterType) -> str:
        """The device's meter of that name and type, registered if it is missing."""
        meter_id = self._known_meter_id(name, kind)
        if meter_id is None:
            meter_id = self.registry.add(self.manager, (name, kind))
            self._ids[name, kind] = meter_id
        return meter_id

    def news(self) -> list[dict[str, str]]:
        """The device's events since the last call, of any process, as environments of a command.

        The first call returns those since the journal was opened. After a backup is restored it
        goes on with new events: those of the backup are old.
        """
        file_id = self.manager.file_id
        if file_id != self._file_id:
            self._sequence = self.manager.last_sequence()
            self._file_id = file_id
        environments = []
        while page := self.manager.events_since(self._sequence):
            ours = [event for _, event in page if event.device_id == self._device_id]
            names = self._meter_names() if ours else {}
            for event in ours:
                meter = names.get(event.meter_id or "", "")
                environments.append(_environment(self._device_id, event.type, event.value, meter))
            self._sequence, _ = page[-1]
        return environments

    def _meter_names(self) -> dict[str, str]:
        """The names of the device's meters, by id."""
        meters = self.manager.list_meters(self._device_id)
        return {meter.id: meter.name or meter.id for meter in meters}

    def prune(self, keep_days: float) -> None:
        """Delete old readings; a failure is logged."""
        try:
            deleted = self.manager.prune(keep_days)
        except PowerManagerError as exc:
            _log.error("%s", exc)
            return
        _log.info("%d readings older than %g days deleted", deleted, keep_days)


def _thresholds(device: power_manager.DeviceRecord) -> tuple[float, float]:
    """A device's low and critical charge, in percent."""
    low = device.low_battery_threshold
    critical = device.critical_battery_threshold
    return (
        power_manager.LOW_BATTERY_THRESHOLD if low is None else low,
        power_manager.CRITICAL_BATTERY_THRESHOLD if critical is None else critical,
    )


def _storable(time_of_day: float) -> float:
    """The nearest time that power_manager stores, in epoch seconds."""
    return min(max(time_of_day, 0.0), _LAST_TIME)


def _environment(device_id: str, kind: PowerEventType, value: float, meter: str) -> dict[str, str]:
    return {
        "POWER_EVENT": kind.value,
        "POWER_DEVICE": device_id,
        "POWER_VALUE": f"{value:g}",
        "POWER_METER": meter,
    }


class Schedule:
    """When to commit: regularly, at once if it is urgent, and again some time after a failure."""

    def __init__(self, every: float) -> None:
        self._every = every
        self._committed_at = -math.inf
        self._retry_at = -math.inf
        self._urgent = False
        self._urgent_at: deque[float] = deque(maxlen=URGENT_COUNT)

    def urge(self) -> None:
        """Commit as soon as possible."""
        self._urgent = True

    def is_due(self, now: float) -> bool:
        """Whether to commit now. Urgent commits are limited: each is a write to the storage."""
        if now < self._retry_at:
            return False
        if now >= self._committed_at + self._every:
            return True
        used_up = len(self._urgent_at) == URGENT_COUNT and now < self._urgent_at[0] + URGENT_SPAN
        return self._urgent and not used_up

    def note(self, now: float, *, stored: bool) -> None:
        """Take how a commit has ended."""
        if not stored:
            self._retry_at = now + RETRY
            return
        if self._urgent:
            self._urgent_at.append(now)
        self._urgent = False
        self._committed_at = now


# --- Collector --------------------------------------------------------------------------------


class Sensors:
    """The sources, looked for again every RESCAN seconds and whenever one fails."""

    def __init__(self, options: Options, clocks: Clocks) -> None:
        self._options = options
        self._feeds = open_feeds(options, clocks.boot)
        self.sources: list[Source] = []
        self.looked_anew = False  # whether the last look also looked for sensors
        self._rescan_at = -math.inf
        self._said: str | None = None

    def read(self, now: float) -> list[tuple[Source, Sample]]:
        """Every source with its sample."""
        self.looked_anew = now >= self._rescan_at
        if self.looked_anew:
            self._rescan(now)
        return [(source, source.read()) for source in self.sources]

    def rescan_soon(self) -> None:
        """Look for sensors at the next look: one may have moved."""
        self._rescan_at = -math.inf

    def _rescan(self, now: float) -> None:
        options = self._options
        found = discover(
            options.root, self._feeds, options.maps, options.peripherals, options.curves
        )
        self._rescan_at = now + RESCAN
        self.sources = [source for source in found if not source.left_out]
        names = sorted(source.name for source in self.sources)
        text = "logging " + ", ".join(names) if names else "no sensors found yet"
        first = self._said is None
        if text != self._said:
            self._said = text
            _log.info("%s", text)
        known = {source.name for source in found}
        known |= {asked.name for asked in options.maps.values() if asked.name}
        missing = [
            rail for rail, asked in options.maps.items() if (asked.name or rail) not in known
        ]
        if first and missing:
            _log.warning("--map: no sensor is named %s", ", ".join(missing))
        strange = [name for name in options.curves if name not in names]
        if first and strange:
            _log.warning("--curve: no sensor is named %s", ", ".join(strange))
        unseen = [name for name in options.shutdown_ignore if name not in names]
        if first and unseen:
            _log.warning("--shutdown-ignore: no sensor is named %s", ", ".join(unseen))

    def answering(self, samples: Sequence[tuple[Source, Sample]]) -> set[str]:
        """The origins that answer: existing directories, and servers with a readable source."""
        origins = {source.origin for source, sample in samples if not sample.empty}
        for kind in (Supply, Rail, IioRail):
            if os.path.isdir(os.path.join(self._options.root, kind.origin)):
                origins.add(kind.origin)
        return origins - {""}

    def close(self) -> None:
        """Close what is open."""
        for feed in self._feeds:
            feed.close()


class Collector:
    """Reads the sources every interval; tick() is one round, run() the loop, finish() its end."""

    def __init__(self, options: Options, clocks: Clocks) -> None:
        self._options = options
        self._clocks = clocks
        self._sensors = Sensors(options, clocks)
        self._histories = Histories(options.shutdown_ignore)
        self._clock_watch = ClockWatch(clocks, options.interval)
        self._events = EventWatch(options.event_hold)
        self._shutdown = ShutdownWatch(options)
        self._schedule = Schedule(options.commit_every)
        self.journal = Journal(options.db, options.device_id, clocks, options.hold)
        self._hooks = EventHooks(options)
        self._prune_at = -math.inf
        if options.interval > self.journal.max_gap:
            _log.warning(
                "no energy is booked: readings every %g s are farther apart than the file's "
                "max_gap, %g s",
                options.interval,
                self.journal.max_gap,
            )

    def run(self, wait: Callable[[float], bool]) -> int:
        """Collect until wait() returns True; return the exit code, 1 if readings are lost."""
        watchdog = _watchdog()
        next_at = self._clocks.boot()
        try:
            while True:
                self.tick()
                _notify("READY=1\nWATCHDOG=1")
                if self._options.once:
                    break
                next_at = max(next_at + self._options.interval, self._clocks.boot())
                stop = False
                while not (stop := wait(min(max(next_at - self._clocks.boot(), 0.0), watchdog))):
                    _notify("WATCHDOG=1")
                    if self._clocks.boot() >= next_at:
                        break
                if stop:
                    break
        finally:
            code = self.finish()
        return code

    def tick(self) -> None:
        """Read every source once; store what is due, and run what events call for."""
        now = self._clocks.boot()
        if self._clock_watch.has_slept(now):
            self._sensors.rescan_soon()
            self._shutdown.has_slept(now)
        samples = self._sensors.read(now)
        self._histories.judge(samples, now)
        for source, sample in samples:
            self._take(source, sample, now)
        if self._sensors.looked_anew:
            self._watch_meters(samples, now)
        for happening in self._events.look(samples, now):
            self.journal.happen(happening)
        if self._events.urgent or self._options.once:
            self._schedule.urge()
        if self._schedule.is_due(now):
            self._commit(now)
        self._watch_shutdown(samples, now)
        self._hooks.tell(self.journal)
        self._prune(now)

    def finish(self) -> int:
        """Write what waits, and close; return the exit code."""
        _notify("STOPPING=1")
        for history in self._histories.all():
            for reading in history.rest():
                self.journal.add(reading)
        stored = self.journal.commit()
        if not stored:
            _log.error("%d readings and events are lost", self.journal.waiting)
        if self.journal.refused:
            _log.error("%d readings and events were refused", self.journal.refused)
        self._hooks.tell(self.journal)
        self._hooks.close()
        self._sensors.close()
        self.journal.manager.close()
        failed = not stored
        if self._options.once and self.journal.accepted == 0:
            _log.error("nothing to log: `sources` lists this machine's sensors")
            failed = True
        return int(failed or (self._options.once and self.journal.refused > 0))

    def _take(self, source: Source, sample: Sample, now: float) -> None:
        """Make a reading from a sample."""
        history = self._histories.of(source)
        if sample.problem != history.problem:
            _log.info("%s: %s", source.name, sample.problem or "readable again")
            history.problem = sample.problem
            if sample.problem:
                self._sensors.rescan_soon()
        if sample.empty:
            return
        if history.take_facts(source, sample, now, self._options.hold):
            assert history.facts is not None
            self.journal.registry.change((source.name, source.kind), history.facts)
        reading = history.reading(source, sample, now, self._options.hold)
        if reading is None:
            return
        if sample.is_estimated and not history.said_estimated:
            history.said_estimated = True
            _log.info("%s: its charge is estimated from its volts (--curve)", source.name)
        alert = source.kind in ALERT_TYPES and history.alert_rises(
            sample.charge_pct, self.journal.low, self.journal.critical
        )
        if alert:
            self._schedule.urge()
        # Between readings farther apart than max_gap no energy is booked.
        silence = min(MAX_SILENCE, self.journal.max_gap)
        always = alert or history.has_turned(sample.direction)
        for kept in history.keep(reading, self._options.min_change, silence, always):
            self.journal.add(kept)

    def _watch_meters(self, samples: Sequence[tuple[Source, Sample]], now: float) -> None:
        """Let the meters of sources that are gone become inactive."""
        present = {(source.name, source.kind) for source, _ in samples}
        self.journal.registry.look(present, self._sensors.answering(samples), now)

    def _commit(self, now: float) -> None:
        self._schedule.note(now, stored=self.journal.commit())

    def _watch_shutdown(self, samples: Sequence[tuple[Source, Sample]], now: float) -> None:
        """Run the shutdown command, once for each time that the machine ends."""
        watch = self._shutdown
        watch.look(samples, self._histories.mains, self.journal.critical, now)
        command = self._options.shutdown_command
        if not command or not watch.is_due(now) or watch.ending is None:
            return
        reserve = watch.ending.reserve
        charge = reserve.charge.at(now) or 0.0
        _log.warning("%s: %s: shutting down", reserve.name, watch.ending.why)
        kind = PowerEventType.SHUTDOWN
        text = f"{watch.ending.why}, shutting down"
        self.journal.happen(Happening(now, kind, charge, reserve.name, reserve.kind, text))
        self._commit(now)  # if it fails, the command runs all the same
        self._hooks.tell(self.journal)
        self._hooks.wait()
        variables = _environment(self._options.device_id, kind, charge, reserve.name)
        _run_command(command, variables, SHUTDOWN_LIMIT)

    def _prune(self, now: float) -> None:
        """Delete old readings daily, if the time of day has been steady for a while."""
        keep_days = self._options.keep_days
        due = now >= max(self._prune_at, self._clock_watch.settled_at)
        if keep_days is not None and (due or self._options.once):
            self._prune_at = now + DAY
            self.journal.prune(keep_days)


# --- Command line -----------------------------------------------------------------------------


# What `sources --json` has of a sample, beside name and type; as columns only if a source has it.
_MORE_KEYS = ("runtime_s", "temperature_c", "serial", "is_estimated")
_NO_SENSORS = (
    "power-collector: no sensors to use in {}: name a UPS with --nut HOST or --apcupsd HOST, or a "
    "program that prints readings with --program NAME=COMMAND"
)


def _show_sources(args: argparse.Namespace, clocks: Clocks) -> int:
    options = dataclasses.replace(_options(args), once=True)
    feeds = open_feeds(options, clocks.boot)
    try:
        rows = _source_rows(options, feeds, clocks.boot())
    finally:
        for feed in feeds:
            feed.close()
    if not rows:
        print_error(_NO_SENSORS.format(printable(os.path.join(options.root, "sys"))))
    if args.json:
        print(shown_json(rows))
        return 0
    if not rows:
        return 0
    columns = [*_COLUMNS, *(column for column in _MORE_COLUMNS if any(map(column.cell, rows)))]
    print(make_table(columns, rows, Screen.of(sys.stdout)))
    return 0


def _text_column(key: str) -> Column:
    return Column(key, lambda row: row[key], shrinks=key == "name")


def _number_column(head: str, key: str) -> Column:
    return Column(head, lambda row: shown_number(row[key]), right=True)


def _shown_runtime(row: dict[str, Any]) -> str | None:
    return None if row["runtime_s"] is None else shown_duration(row["runtime_s"])


_COLUMNS = (
    _text_column("name"),
    _text_column("type"),
    _number_column("V", "voltage"),
    _number_column("A", "current"),
    _number_column("W", "wattage"),
    _number_column("charge %", "charge_pct"),
    _number_column("capacity Wh", "capacity_wh"),
    _text_column("status"),
)
# Shown if a source has one.
_MORE_COLUMNS = (
    Column("left", _shown_runtime, right=True),
    Column(
        "°C",
        lambda row: None if row["temperature_c"] is None else shown_number(row["temperature_c"]),
        right=True,
    ),
    _text_column("serial"),
    Column("estimated", lambda row: "yes" if row["is_estimated"] else None),
)


def _source_rows(options: Options, feeds: Sequence[Feed], now: float) -> list[dict[str, Any]]:
    """What every source says now.

    What is wrong with a source, and which ones are left out, goes to standard error.
    """
    rows = []
    samples = []
    for source in discover(options.root, feeds, options.maps, options.peripherals, options.curves):
        if source.left_out:
            print_error(f"left out: {printable(source.name)} ({printable(source.left_out)})")
        else:
            samples.append((source, source.read()))
    Histories().judge(samples, now)
    for source, sample in samples:
        values: dict[str, Any] = {
            "name": source.name,
            "type": source.kind.value,
            "voltage": sample.voltage,
            "current": sample.current_draw,
            "wattage": sample.wattage,
            "charge_pct": sample.charge_pct,
            "capacity_wh": sample.capacity_wh,
            "status": sample.status,
        }
        values |= {key: getattr(sample, key) for key in _MORE_KEYS}
        values["serial"] = sample.serial or None
        values["problem"] = sample.problem or None
        rows.append(
            {k: round(v, 6) + 0.0 if isinstance(v, float) else v for k, v in values.items()}
        )
        if sample.problem:
            print_error(f"{printable(source.name)}: {printable(sample.problem)}")
    return rows


def _options(args: argparse.Namespace) -> Options:
    """The options of a command line; those that `sources` does not have are the defaults."""
    values = {
        f.name: getattr(args, f.name) for f in dataclasses.fields(Options) if hasattr(args, f.name)
    }
    values |= {"maps": dict(args.map), "curves": dict(args.curves)}
    return Options(**({"device_id": "", "db": ""} | values))


def _run(args: argparse.Namespace, clocks: Clocks) -> int:
    options = _options(args)
    if options.test_shutdown:
        return _test_shutdown(options, clocks)
    # No hard end: what is being written is written to its end.
    with StopSignals() as signals:
        code = Collector(options, clocks).run(clocks.wait or signals.wait)
    return code or signals.exit_code


def _test_shutdown(options: Options, clocks: Clocks) -> int:
    """Print what the shutdown watch would do now and why; store nothing, run nothing."""
    now = clocks.boot()
    sensors = Sensors(options, clocks)
    watch = ShutdownWatch(options)
    histories = Histories(options.shutdown_ignore)
    try:
        samples = sensors.read(now)
        histories.judge(samples, now)
        watch.look(samples, histories.mains, _critical_threshold(options), now)
    finally:
        sensors.close()
    print("\n".join(watch.describe(now)))
    return 0


def _critical_threshold(options: Options) -> float:
    """The device's critical charge, if the file exists and knows the device."""
    if os.path.exists(options.db):
        with PowerManager(options.db) as manager, contextlib.suppress(power_manager.NotFound):
            _, critical = _thresholds(manager.get_device(options.device_id))
            return critical
    return power_manager.CRITICAL_BATTERY_THRESHOLD


def _directory(text: str) -> str:
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"expected a directory, got {text!r}: there is none")
    return text


def _command_line(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"expected a command, got {text!r}: {exc}") from None
    if not words:
        raise argparse.ArgumentTypeError("expected a command, got none")
    return words


def _nut_address(text: str) -> str:
    """A --nut argument, [UPS@]HOST[:PORT]."""
    ups, at, host = text.rpartition("@")
    try:
        if at and not re.fullmatch(r'[^@\s"]+', ups):
            raise ValueError(f"no name of a UPS: {ups!r}")
        Upsd(host, time.monotonic)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"expected [UPS@]HOST[:PORT], got {text!r}") from exc
    return text


def _apcupsd_address(text: str) -> str:
    """An --apcupsd argument, HOST[:PORT]."""
    try:
        return Apcupsd(text, time.monotonic).address
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _program(text: str) -> tuple[str, list[str]]:
    """A --program argument, NAME=COMMAND.

    >>> _program("Hat=python3 hat.py --bus 1")
    ('Hat', ['python3', 'hat.py', '--bus', '1'])
    """
    name, _, command = text.partition("=")
    if not _clean(name):
        raise argparse.ArgumentTypeError(f"expected NAME=COMMAND, got {text!r}")
    return _clean(name), _command_line(command)


def _logins(path: str) -> netrc.netrc:
    """A --nut-login argument: a file in netrc's form."""
    try:
        open_secret(path, _log.warning).close()  # netrc opens the file by itself
        return netrc.netrc(path)
    except StorageError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError) as exc:
        message = f"expected a file in netrc's form, got {path!r}: {exc}"
        raise argparse.ArgumentTypeError(message) from None


def _trust(text: str) -> str:
    """A --nut-tls argument: whom to trust."""
    if text in ("system", "unverified"):
        return text
    try:
        if not text:
            raise OSError("no file is named")
        UpsdAccess(None, text).context()
    except OSError as exc:
        message = f"expected system, unverified or a file of certificates, got {text!r}: {exc}"
        raise argparse.ArgumentTypeError(message) from None
    return text


def _add_source_options(parser: CommandParser) -> None:
    """Add the options that say where power is measured: those of `sources` and of `run`."""
    add = parser.add_argument
    add(
        "--root",
        type=_directory,
        default="/",
        metavar="DIR",
        help="read a captured tree of sensors instead of this machine's (default: /)",
    )
    _add_ups_options(parser)
    add(
        "--program",
        action="append",
        default=[],
        type=_program,
        dest="programs",
        metavar="NAME=COMMAND",
        help="a program that prints one JSON object a line, run without a shell (repeatable)",
    )
    add(
        "--map",
        action="append",
        default=[],
        type=_mapping,
        metavar="RAIL=TYPE[:NAME]",
        help="the type of a source's meter (main, battery, solar or ups) and its name; -TYPE "
        "turns the sign (repeatable)",
    )
    add(
        "--curve",
        action="append",
        default=[],
        type=_curve,
        dest="curves",
        metavar="NAME=CHEMISTRY:CELLS",
        help="estimate a meter's charge from its volts; or NAME=VOLTS:PERCENT,... (repeatable)",
    )
    add("--peripherals", action="store_true", help="also use batteries of mice and the like")
    parser.add_variable(NUT_USERNAME, "the user at every upsd that --nut-login does not name")
    parser.add_variable(NUT_PASSWORD, "the password of that user")


def _add_ups_options(parser: CommandParser) -> None:
    add = parser.add_argument
    add(
        "--nut",
        action="append",
        default=[],
        type=_nut_address,
        metavar="[UPS@]HOST[:PORT]",
        help="a UPS of NUT's upsd, all of them without UPS@ (repeatable)",
    )
    add(
        "--nut-login",
        type=_logins,
        metavar="FILE",
        help="a file in netrc's form with users and passwords of upsd",
    )
    add(
        "--nut-tls",
        type=_trust,
        metavar="TRUST",
        help="speak TLS to upsd, and trust the certificates in FILE, `system` for this machine's, "
        "or `unverified` for any",
    )
    add(
        "--apcupsd",
        action="append",
        default=[],
        type=_apcupsd_address,
        metavar="HOST[:PORT]",
        help="the UPS of an apcupsd (repeatable)",
    )


_above_zero = functools.partial(parse_duration, above=0)
_at_least_zero = functools.partial(parse_number, at_least=0)


def _add_storing_options(run: CommandParser) -> None:
    """Add where readings go, and when, to `run`."""
    add = run.add_argument
    run.add_database("the file; made if it is missing, private to its owner")
    add(
        "--interval",
        type=_above_zero,
        default=5.0,
        metavar="TIME",
        help="time between two readings of a source (default: 5s)",
    )
    add(
        "--once",
        action="store_true",
        help="read and store once, then end; exit code 1 if there was nothing to store",
    )
    add(
        "--commit-every",
        type=parse_duration,
        default=60.0,
        metavar="TIME",
        help="time between two commits; a power cut loses at most the readings of that long; "
        "0: each look (default: 60s)",
    )
    add(
        "--keep-days",
        type=_at_least_zero,
        metavar="N",
        help="daily delete the readings of whole hours older than that (default: keep all)",
    )
    add(
        "--min-change",
        type=_at_least_zero,
        default=0.0,
        metavar="W",
        help="leave out readings that differ from the last one kept by fewer watts, and by less "
        "than a point of charge (default: 0)",
    )


def _add_event_options(run: CommandParser) -> None:
    """Add what is done with events to `run`."""
    add = run.add_argument
    add(
        "--exec",
        type=_command_line,
        default=[],
        dest="exec_command",
        metavar="CMD",
        help="run for every event of the device, without a shell, with POWER_EVENT, POWER_DEVICE, "
        "POWER_VALUE and POWER_METER set",
    )
    add(
        "--exec-limit",
        type=_above_zero,
        default=EXEC_LIMIT,
        metavar="TIME",
        help="kill that command and its children after so long (default: 10s)",
    )
    add(
        "--event-hold",
        type=parse_duration,
        default=EVENT_HOLD,
        metavar="TIME",
        help="how long a state has to be steady before its event is recorded again; 0: record "
        "every change (default: 120s)",
    )


def _add_shutdown_options(run: CommandParser) -> None:
    """Add what ends a machine to `run`."""
    add = run.add_argument
    add(
        "--shutdown-command",
        type=_command_line,
        default=[],
        metavar="CMD",
        help="run once when no battery or UPS is left that the machine can live on",
    )
    add(
        "--shutdown-after",
        type=parse_duration,
        default=30.0,
        metavar="TIME",
        help="how long that has to last (default: 30s)",
    )
    add(
        "--shutdown-on-battery",
        type=parse_duration,
        metavar="TIME",
        help="also run it after so long on battery, whatever the charge",
    )
    add(
        "--shutdown-runtime",
        type=parse_duration,
        metavar="TIME",
        help="also run it when less than that is left on battery, for --shutdown-after",
    )
    add(
        "--shutdown-ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="a UPS, battery or supply, by its name in `sources`, that does not feed this machine: "
        "it is logged, but neither ends the machine nor keeps it alive (repeatable)",
    )
    add(
        "--test-shutdown",
        action="store_true",
        help="print what would happen now and why, then end; store and run nothing",
    )


def _parser() -> CommandParser:
    parser = CommandParser(
        program_name("power-collector", __file__),
        "Logs this machine's power sensors, and runs your shutdown command when the battery ends.",
        name="power-collector",
        version=__version__,
        examples=["sources", "run edge-001", "help run"],
    )
    show = parser.add_command(
        "sources", _show_sources, "list this machine's sensors", examples=["", "--json"]
    )
    _add_source_options(show)
    show.add_argument("--json", action="store_true", help="JSON, for programs")
    run = parser.add_command(
        "run",
        _run,
        "log this machine's sensors, until SIGTERM or Ctrl-C",
        examples=["edge-001", "edge-001 --interval 10s --keep-days 365"],
    )
    run.add_argument("device_id", help="the device's id; a new one is registered")
    _add_source_options(run)
    _add_storing_options(run)
    _add_event_options(run)
    _add_shutdown_options(run)
    parser.add_help_commands("power-collector")
    return parser


def main(argv: Sequence[str] | None = None, clocks: Clocks | None = None) -> int:
    """Run the command line; return its exit code.

    0: it did its work, or SIGTERM or the end of its terminal ended it; 1: an error; 130: Ctrl-C.
    Wrong usage exits with 2.
    """

    def program() -> int:
        with log_to_stderr("power_collector"):
            args = _parser().parse_args(argv)
            code: int = args.run(args, clocks or Clocks())
        return code

    return run_program(program, "power-collector", (PowerManagerError,))


if __name__ == "__main__":
    sys.exit(main())
