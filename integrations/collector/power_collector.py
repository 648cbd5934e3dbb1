"""Log this machine's own power sensors into power_manager, and run what must run when the battery ends.

    python -m power_collector sources              # what this machine has
    python -m power_collector run edge-001         # log it every 5 s, until SIGTERM or Ctrl-C

Standard library only, beside power_manager.py: two copied files are enough. The parts of this file, in
its order: constants; values (text and numbers of a sensor); samples and sources (Supply: the kernel's power
supplies, Rail: INA219 and the like, Nut: a UPS by upsd, ApcUps: one by apcupsd, Program: any other); charge from
volts (--curve); discovery (names, --map); commands (--exec); systemd; journal (readings and events on their way
into the file); collector (the loop, events, shutdown); command line.

As in power_manager, amperes and watts are positive while a source supplies, negative while it takes in. Intervals
are measured by a clock that cannot be set and that also runs while the machine sleeps. A reading keeps that clock's
time until it is committed, and only then becomes a time of day: one taken before that was set right is stored right.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
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
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import power_manager
from power_manager import MeterType, PowerEventType, PowerManager, PowerManagerError

if TYPE_CHECKING:
    import ssl

__all__ = [
    "ApcUps",
    "Apcupsd",
    "Clocks",
    "Collector",
    "Curve",
    "Feed",
    "Journal",
    "Nut",
    "Program",
    "Rail",
    "Sample",
    "Source",
    "Supply",
    "Upsd",
    "discover",
    "main",
    "open_feeds",
]
_log = logging.getLogger("power_collector")

# --- Constants --------------------------------------------------------------------------------

RESCAN = 30.0  # seconds between looks for sensors that have come, gone or moved
HOLD = 60.0  # seconds for which a battery's last volts or amperes stand in for a missing one
ALERT_TYPES = (MeterType.BATTERY, MeterType.UPS)  # meters whose charge raises alerts
RETRY = 5.0  # seconds after a failed commit until the next attempt
MAX_WAITING = 20_000  # readings kept in memory while the file cannot be written
MAX_SILENCE = 900.0  # seconds after which --min-change keeps a reading that has not changed
SLEPT = 60.0  # seconds beyond the interval between two looks that count as the machine's sleep
JUMPED = 60.0  # seconds by which the time of day has to jump to be spoken of
SETTLED = 600.0  # seconds of steady time of day before old readings may be pruned by it
DAY = 86_400.0  # seconds between two prunes
EXEC_LIMIT = 10.0  # seconds that a --exec command may take
SHUTDOWN_LIMIT = 30.0  # seconds to wait for the shutdown command
NUT_PORT = 3493
APCUPSD_PORT = 3551
NUT_LIMIT = 3.0  # seconds for an answer of upsd
NUT_RETRY = 10.0  # seconds until upsd is asked again after it could not be reached
NUT_USERNAME = (
    "POWER_NUT_USERNAME"  # in the environment, for every upsd that --nut-login does not name
)
NUT_PASSWORD = "POWER_NUT_PASSWORD"
_NUT_SIZE = 1 << 20  # bytes of an answer
PROGRAM_FIRST = 5.0  # seconds to wait for the first line of a --program, once
PROGRAM_QUIET = 0.2  # seconds without another line that end that wait
PROGRAM_HOLD = 60.0  # seconds for which its last line stands for the present
PROGRAM_GONE = 600.0  # seconds after which a name that it no longer prints is gone
PROGRAM_PAUSE = 1.0  # seconds between its end and its next start; twice as long each time
PROGRAM_PAUSE_MAX = 300.0
PROGRAM_SOUND = 60.0  # seconds of a run after which the pause begins anew
PROGRAM_LIMIT = 2.0  # seconds that it may take to end after SIGTERM
PROGRAM_LINE = 65_536  # bytes of a line
PROGRAM_READS = 32  # reads of 64 KiB at one look
PROGRAM_NAMES = 64
CURVE_LOW = 0.8  # volts below that share of a curve's lowest are another battery's
CURVE_HIGH = 1.25  # and above that share of its highest; a charger's volts are below it
_LAST_TIME = 7_258_118_399.0  # the end of 2199, in epoch seconds: power_manager stores no later one
# Beyond these a value is a broken sensor's, whether it was read or worked out from others.
_MAX = {
    "V": 1e3, "A": 1e3, "W": 1e5, "Wh": 1e6, "VA": 1e5, "s": 1e8, "C": 200.0, "%": 1e5, "ratio": 1e3,
}  # fmt: skip

# --- Values -----------------------------------------------------------------------------------

# "All bits set" in 16 bits, as drivers scale them: x 60 s, / 10, / 100, and as one of them rounds it; in micro-units.
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


def _clean(text: str) -> str:
    r"""Text without what no name, terminal or JSON should have.

    >>> _clean(" LNV-45N1\x00\udcff ")
    'LNV-45N1'
    """
    return "".join(char for char in text if char.isprintable() and char != "\ufffd").strip()[:150]


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
    if not re.fullmatch(r"[-+]?\d{1,18}(\.\d{1,18})?", text, re.ASCII):
        return None
    value = float(text)
    return None if abs(value) in _SENTINELS else value


def _sane(value: float | None, unit: str) -> float | None:
    """The value where a working sensor may say it; amperes, watts and hwmon's volts may be negative."""
    return value if value is not None and abs(value) <= _MAX[unit] else None


def _percent(value: float | None) -> float | None:
    """A charge from 0 to 100; gauges overshoot a little, and anything else is no charge."""
    return min(value, 100.0) if value is not None and 0.0 <= value <= 110.0 else None


def _product(a: float | None, b: float | None, unit: str) -> float | None:
    """The product where both are known and a working sensor may mean it.

    >>> _product(12.0, 2.0, "W"), _product(12.0, None, "W"), _product(900.0, 900.0, "W")
    (24.0, None, None)
    """
    return None if a is None or b is None else _sane(a * b, unit)


def _quotient(a: float | None, b: float | None, unit: str) -> float | None:
    """The quotient where both are known and a working sensor may mean it.

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
    """The first known value; a 0 gives way to one that is not: many a driver leaves a file it never fills at 0.

    >>> [_agreed(0.0, None, 4.5), _agreed(None, 0.0), _agreed(None, None)]
    [4.5, 0.0, None]
    """
    return _first(*(value or None for value in values), *values)


# --- Samples and sources ----------------------------------------------------------------------

DISCHARGING, IDLE, CHARGING = 1, 0, -1  # directions: the sign of the current


@dataclass(slots=True)
class Sample:
    """What a source says at one instant; None is not known. Empty where nothing could be read, for `problem`."""

    voltage: float | None = None
    current: float | None = None
    wattage: float | None = None
    charge_pct: float | None = None
    capacity_wh: float | None = None
    status: str | None = None
    direction: int | None = None
    mains: bool | None = None  # whether power comes in from outside
    low: bool | None = None  # whether the device itself says that its battery is nearly empty
    problem: str = ""
    serial: str = ""  # the battery's or the UPS's; another one is another pack
    runtime_s: float | None = None  # what the device itself expects until it is empty
    temperature_c: float | None = None
    tokens: frozenset[str] = frozenset()  # a UPS's status in NUT's words: OL, OB, LB, RB, OVER, ...
    is_estimated: bool = False  # whether the charge was worked out from the volts

    @property
    def empty(self) -> bool:
        """Whether there is nothing that could be stored or acted on."""
        values = self.voltage, self.current, self.wattage, self.charge_pct, self.status, self.mains
        return all(value is None for value in values)

    def turned(self) -> Sample:
        """The same with the other sign of current and power."""
        current = None if self.current is None else -self.current
        wattage = None if self.wattage is None else -self.wattage
        return dataclasses.replace(self, current=current, wattage=wattage)


class Source:
    """One place where this machine measures power. read() never raises for what a sensor does."""

    # What has to answer before a source that it no longer has counts as gone: a directory under the
    # root, or a server; "": its sources never count as gone.
    origin = ""

    def __init__(self, name: str, kind: MeterType, place: str = "", address: str = "") -> None:
        self.name = name
        self.kind = kind
        self.place = place
        self.address = address
        self.peripheral = False  # a mouse: its end is not this machine's
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
# The kinds of charger that only USB-C's own protocol knows; a charger that measures detects SDP, DCP and CDP too.
_CONTRACT_KINDS = {"C", "PD", "PD_DRP", "PD_PPS", "PD_SPR_AVS", "PD_PPS_SPR_AVS"}
_EXTRAS = {"temp", "time_to_empty_now", "time_to_empty_avg"}
# Drivers disagree on the sign of current, so the status says it; without one a battery is taken to supply.
_DIRECTIONS = {"discharging": DISCHARGING, "charging": CHARGING, "full": IDLE, "not charging": IDLE}


class Supply(Source):
    """A power supply of the kernel: Battery, UPS, Mains, USB or Wireless, in micro-units."""

    origin = "sys/class/power_supply"
    is_contract = False  # whether its values are what was agreed with a charger, not what flows
    serial = ""
    extras: frozenset[str] = frozenset()  # which of the files are there that few drivers have

    @classmethod
    def discover(cls, root: str) -> list[Source]:
        """The supplies under root/sys/class/power_supply; those of peripherals are marked as left out."""
        found: list[Source] = []
        top = os.path.join(root, cls.origin)
        for name in _listed(top):
            place = f"{top}/{name}"
            kind = _KINDS.get(
                _text(f"{place}/type").lower().partition("_")[0]
            )  # USB_PD, USB_DCP: USB
            if kind is None or _number(_text(f"{place}/present")) == 0:
                continue
            supply = cls(_clean(name) or "supply", kind, place)
            supply.is_contract = kind is MeterType.MAIN and _is_contract(name, place)
            supply.serial = _clean(_text(f"{place}/serial_number"))
            supply.extras = frozenset(_EXTRAS & set(_listed(place)))
            supply.peripheral = _text(f"{place}/scope").lower() == "device"
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
        return Sample(
            voltage=volts,
            current=_agreed(amperes, _quotient(watts, volts, "A")),
            wattage=watts,
            charge_pct=self._charge(),
            capacity_wh=self._capacity(volts),
            status=status if direction is not None else None,
            direction=direction,
            serial=self.serial,
            runtime_s=self._runtime() if direction == DISCHARGING else None,
            temperature_c=_sane(self._extra("temp", 10.0), "C"),
        )

    def _extra(self, name: str, scale: float = 1.0) -> float | None:
        return self._value(name, scale) if name in self.extras else None

    def _runtime(self) -> float | None:
        seconds = _agreed(self._extra("time_to_empty_now"), self._extra("time_to_empty_avg"))
        return _sane(seconds, "s") if seconds else None

    def _capacity(self, volts: float | None) -> float | None:
        """Watt-hours when full: as it is now, else as it was designed."""
        nominal = self._positive("V", "voltage_min_design", "voltage_max_design")
        for suffix in ("", "_design"):
            energy = self._positive("Wh", "energy_full" + suffix)
            ampere_hours = self._positive("Wh", "charge_full" + suffix)
            capacity = _first(energy, _product(ampere_hours, _first(nominal, volts), "Wh"))
            if capacity is not None:
                return capacity
        return None

    def _charge(self) -> float | None:
        charge = _percent(self._value("capacity"))
        if charge:
            return charge
        # Without a capacity, and beside one of 0 that may never have been filled in, what the battery holds says it.
        return _agreed(charge, self._ratio("energy"), self._ratio("charge"))

    def _ratio(self, what: str) -> float | None:
        """What is in the battery, in percent of what it holds when full."""
        now = self._micro("Wh", what + "_now")
        full = self._positive("Wh", what + "_full")
        return _percent(_product(_quotient(now, full, "ratio"), 100.0, "%"))


def _is_contract(name: str, place: str) -> bool:
    """Whether a USB supply is a Type-C port, which knows the volts and the limit agreed on, not what flows.

    UCSI, TCPM and the port controllers name their supplies so, register their port beside the supply, and offer
    no kind of charger but USB-C's. One of the three is enough: a captured tree may lack the others.
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
        # On an INA3221 in4 to in6 are shunt voltages, in7 and curr4 are sums; elsewhere in0 is the shunt's.
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
        """Volts, amperes and watts; the watts only where there are no amperes to work them out from."""
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
    """One channel of a current monitor in iio: JetPack 4's own ina3221x, and chips with iio drivers of the kernel.

    Only known monitors are read: an iio device with volts and amperes may as well be the converter behind a
    battery that the kernel already shows as a power supply.
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
        triples = [t for t in triples if cls._is_there(files, "voltage", t[0])]
        triples = [t for t in triples if cls._is_there(files, "current", t[1])]
        address = _i2c_address(place)
        rails: list[Rail] = []
        for numbers in triples:
            label = cls._label(place, numbers)
            if label == "NC":
                continue
            rail = cls._named(place, chip, address, label, numbers[1], len(triples) > 1)
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
        """A channel's value in V, A or W: as the driver worked it out, else (raw + offset) x scale, in thousandths."""
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
# What contains what on a Jetson; the first total that is there is the one that is used. From the tables of rails in
# "Platform Power and Performance" of NVIDIA's Jetson Linux Developer Guide, for AGX Orin there: "VDDQ_VDD2_1V8AO power
# is also included in VIN_SYS_5V0 power". Thor's INA238 measures the carrier board's input: forums.developer.nvidia.com,
# topic 366461, and jetson_stats, pull request 900. An AGX Xavier has no total: its six rails add up.
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
    """What has sources beside the kernel's files: a upsd, an apcupsd, a program. It stays open between looks."""

    def sources(self) -> list[Source]:
        """The sources that it has now."""
        raise NotImplementedError

    def close(self) -> None:
        """End what was opened; the next read() opens it again."""


class _Server:
    """A host and port, left alone for NUT_RETRY seconds after it could not be reached."""

    _ADDRESS = re.compile(r"(?:\[([^\s\]]+)\]|([^\s:@\[\]\"]+))(?::(\d{1,5}))?")

    def __init__(self, what: str, address: str, port: int, clock: Callable[[], float]) -> None:
        found = self._ADDRESS.fullmatch(address)
        port = int(found[3] or port) if found else 0
        if not found or not 0 < port < 65536:
            raise ValueError(f"expected host[:port], got {address!r}")
        self.what = what
        self.host = found[1] or found[2]
        self.port = port
        self._clock = clock
        self._problem = ""
        self._retry_at = -math.inf

    def connect(self) -> socket.socket:
        """Open a connection; raises ConnectionError, with the last problem, where it is too early to try again."""
        if self._clock() < self._retry_at:
            raise ConnectionError(self._problem)
        return socket.create_connection((self.host, self.port), NUT_LIMIT)

    def failed(self, exc: OSError) -> str:
        """Leave it alone for a while; return what is wrong, in the same words until then."""
        if self._clock() >= self._retry_at:
            self._problem = str(exc)
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
    trust: str = ""  # "": no TLS; else "system", "unverified", or a file of certificates to trust

    def login(self, host: str) -> tuple[str, str] | None:
        """The user name and password for a host: from the file, else from the environment."""
        found = self.logins.authenticators(host) if self.logins else None
        if found:
            return found[0], found[2] or ""
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

    It logs in by USERNAME and PASSWORD, never by LOGIN: that would count this machine among those for which
    the UPS's primary waits at a shutdown.
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
        self.origin = f"upsd {self._server.host}:{self._server.port}"
        self._access = access or UpsdAccess()
        self._socket: socket.socket | None = None
        self._listed: list[str] = []
        self._has_warned = False

    def sources(self) -> list[Source]:
        """A source for each UPS; one that says what is wrong where upsd has never told which there are."""
        problem = self._list() if self.asks_for_all else ""
        names = dict.fromkeys([*self.names, *self._listed])
        if problem and not names:
            return [Unreachable(self.address, MeterType.UPS, problem)]
        return [Nut(name, self) for name in names]

    def _list(self) -> str:
        """Look which UPSes there are; where that fails those known stay, and what is wrong is returned."""
        try:
            answer = self.ask("LIST UPS")
        except OSError as exc:
            return str(exc)
        if answer.startswith("ERR"):
            return f"upsd says {_clean(answer)}"
        self._listed = [found[1] for found in map(self._UPS.match, answer.split("\n")) if found]
        return "" if self._listed else "upsd has no UPS"

    def variables(self, ups: str) -> dict[str, str]:
        """What it says of a UPS; raises OSError with what is wrong where it says nothing."""
        answer = self.ask(f"LIST VAR {ups}")
        if answer.startswith("ERR"):  # such as DATA-STALE: upsd is there, the UPS is not
            raise OSError(f"upsd says {_clean(answer)}")
        found = filter(None, map(self._VARIABLE.fullmatch, answer.split("\n")))
        return {match[1]: re.sub(r"\\(.)", r"\1", match[2]) for match in found}

    def ask(self, command: str) -> str:
        """Its answer to a command; raises OSError with what is wrong where there is none."""
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
        """What comes before the first question: TLS, then who is asking."""
        host = self._server.host
        if self._access.trust:
            self._require("STARTTLS")
            assert self._socket is not None
            self._socket.settimeout(NUT_LIMIT)
            context = self._access.context()
            self._socket = context.wrap_socket(self._socket, server_hostname=host)
        login = self._access.login(host)
        if login:
            self._warn_of_plain_text(host)
            self._require("USERNAME", login[0])
            self._require("PASSWORD", login[1])

    def _warn_of_plain_text(self, host: str) -> None:
        is_near = host == "localhost" or host.startswith("127.") or host == "::1"
        if not (self._access.trust or is_near or self._has_warned):
            _log.warning("%s: the password goes there unencrypted: see --nut-tls", self.address)
            self._has_warned = True

    def _require(self, *words: str) -> None:
        """Send a command that must be answered by OK and nothing else; raises ConnectionError."""
        if not all(word.isprintable() for word in words):
            raise ConnectionError(f"a control character in what {words[0]} sends")
        quoted = [re.sub(r'(["\\])', r"\\\1", word) for word in words[1:]]
        answer = self._said(" ".join([words[0], *(f'"{word}"' for word in quoted)]))
        if not re.fullmatch(r"OK[^\n]*\n", answer):
            raise ConnectionError(f"it answers {words[0]} by {_clean(answer)}")

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
    """What stands for the sources of a feed that has never told which it has."""

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
        """One as a number; None where it is none, or no working UPS says it."""
        return _sane(_number(self._texts.get(name, "").strip()), unit)

    def positive(self, unit: str, *names: str) -> float | None:
        """The first of these above 0."""
        values = (self.value(name, unit) for name in names)
        return next((value for value in values if value is not None and value > 0), None)

    def _drawn(self, name: str, unit: str) -> float | None:
        """What a load takes; it gives nothing back, so below 0 is no value."""
        value = self.value(name, unit)
        return value if value is not None and value >= 0 else None

    def _of_phases(self, name: str, unit: str) -> list[float] | None:
        """The value of every phase; None where the UPS has no phases, or one of them is not known."""
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
        """What the UPS supplies to its load; None where it does not say enough to know it.

        Volt-amperes are no watts: they count only where the power factor is known. And 0 W of a UPS that
        says it has a load is a value that its driver never fills.
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
        """The volts that the watts are kept at where the battery's are not known; below 5 V is no output."""
        measured = (
            "output.voltage", "output.L1-N.voltage", "output.L1.voltage",
            "input.voltage", "input.L1-N.voltage", "input.L1.voltage",
        )  # fmt: skip
        nominal = "output.voltage.nominal", "input.voltage.nominal", "battery.voltage.nominal"
        values = (self.positive("V", name) for name in measured)
        found = next((value for value in values if value is not None and value >= 5.0), None)
        return _first(found, self.positive("V", *nominal))


class Nut(Source):
    """A UPS of a upsd. A UPS meter's watts are what the UPS supplies to its load, on mains as on battery."""

    def __init__(self, ups: str, upsd: Upsd) -> None:
        super().__init__(f"{ups}@{upsd.address}", MeterType.UPS)
        self.origin = upsd.origin
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
            sample.current = _quotient(watts, volts, "A")
        else:
            # What the battery itself gives or takes; drivers disagree on its sign, too.
            sign = DISCHARGING if sample.direction is None else sample.direction
            sample.current = _turned(said.value("battery.current", "A"), sign)
            watts = _product(volts, sample.current, "W")
        sample.voltage = volts
        sample.wattage = watts
        sample.charge_pct = _percent(said.value("battery.charge", "%"))
        nominal = _first(said.positive("V", "battery.voltage.nominal"), volts)
        sample.capacity_wh = _product(said.value("battery.capacity", "Wh"), nominal, "Wh")
        sample.runtime_s = said.positive("s", "battery.runtime")
        temperatures = said.value("battery.temperature", "C"), said.value("ups.temperature", "C")
        sample.temperature_c = _first(*temperatures)
        sample.serial = said.text("ups.serial", "device.serial")
        sample.problem = "no values" if sample.empty else ""
        return sample


def _ups_sample(status: str) -> Sample:
    """What follows from a UPS's status, in NUT's words."""
    tokens = frozenset(status.split())
    return Sample(
        status=status or None,
        tokens=tokens,
        direction=_ups_direction(tokens),
        low=bool(tokens & {"LB", "FSD"}),
        mains=False if "OB" in tokens else True if "OL" in tokens else None,
    )


def _ups_direction(tokens: frozenset[str]) -> int | None:
    """On battery it discharges, whatever else is said; OL DISCHRG is a full battery's, or a calibration."""
    if "OB" in tokens:
        return DISCHARGING
    if "CHRG" in tokens and "DISCHRG" not in tokens:
        return CHARGING
    if "OL" in tokens:
        return IDLE
    return DISCHARGING if "DISCHRG" in tokens and "CHRG" not in tokens else None


class Apcupsd(Feed):
    """An apcupsd's network information server: what apcaccess prints, by one connection for each look."""

    def __init__(self, address: str, clock: Callable[[], float]) -> None:
        self.address = address
        self._server = _Server("apcupsd", address, APCUPSD_PORT, clock)

    def sources(self) -> list[Source]:
        """The source of its one UPS."""
        return [ApcUps(self)]

    def fields(self) -> dict[str, str]:
        """What it says; raises OSError with what is wrong where it says nothing."""
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
        """Its answer to "status": records, each after its length in two bytes, until one of length 0."""
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

    # Its words for a status in NUT's. It says SELFTEST in the place of ONLINE: mains is there.
    _TOKENS: ClassVar[dict[str, str]] = {
        "ONLINE": "OL", "ONBATT": "OB", "LOWBATT": "LB", "CAL": "CAL", "OVERLOAD": "OVER", "TRIM": "TRIM",
        "BOOST": "BOOST", "REPLACEBATT": "RB", "SELFTEST": "OL DISCHRG TEST",
    }  # fmt: skip

    def __init__(self, apcupsd: Apcupsd) -> None:
        super().__init__(f"apcupsd@{apcupsd.address}", MeterType.UPS)
        self.origin = self.name
        self._apcupsd = apcupsd

    def _read(self) -> Sample:
        try:
            return self.sample(self._apcupsd.fields())
        except OSError as exc:
            return Sample(problem=str(exc))

    @classmethod
    def sample(cls, fields: dict[str, str]) -> Sample:
        """What apcupsd says, as a sample; while it has lost its UPS its values are old, and none of them is used."""
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
        sample.current = _quotient(sample.wattage, sample.voltage, "A")
        sample.charge_pct = _percent(value("BCHARGE", "%"))
        sample.runtime_s = _product(positive("s", "TIMELEFT"), 60.0, "s")
        sample.temperature_c = value("ITEMP", "C")
        sample.serial = fields.get("SERIALNO", "")
        sample.problem = "no values" if sample.empty else ""
        return sample


def _child_environment() -> dict[str, str]:
    """The environment of a command: without what is between systemd and this process, and without passwords."""
    hidden = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", NUT_USERNAME, NUT_PASSWORD)
    return {name: text for name, text in os.environ.items() if name not in hidden}


_LINE_KEYS = (
    "name", "type", "voltage", "current", "power", "charge_pct", "status",
    "capacity_wh", "runtime_s", "temperature_c", "serial",
)  # fmt: skip


class Program(Feed):
    """A program that prints one JSON object a line, for what has no driver. README.md says which keys there are.

    It is asked at each look, without waiting: what it has printed since is taken in, and where it has ended it is
    started again, later each time. What it prints beyond what fits into the pipe waits there, with the program.
    """

    def __init__(self, name: str, command: Sequence[str], clock: Callable[[], float]) -> None:
        self.name = name
        self._command = command
        self._clock = clock
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
        """A source for each name that it has printed of late; at the first call its first lines are waited for."""
        is_new = self._started_at == -math.inf
        self.poll()
        if is_new:
            self._await_lines()
        ages = {name: self._clock() - at for name, (at, _, _) in self._samples.items()}
        # Where it prints nothing at all it is ill, and none of its names is gone.
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
            return sample
        return Sample(problem=self._problem or f"it has printed nothing for {PROGRAM_HOLD:g} s")

    def poll(self) -> bool:
        """Start it where that is due, take in what it has printed; return whether it runs."""
        if self._process is None and self._clock() >= self._start_at:
            self._start()
        if self._process is None:
            return False
        is_at_end = self._take_in()
        code = self._process.poll()
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
            self._ended(f"it cannot be run: {exc}")
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _await_lines(self) -> None:
        """Wait for its first line, and then until it is quiet for a moment: it may have several names."""
        deadline = time.monotonic() + PROGRAM_FIRST
        while self._process is not None and self._process.stdout is not None:
            left = deadline - time.monotonic()
            quiet = PROGRAM_QUIET if self._samples else left
            if left <= 0 or not select.select([self._process.stdout], [], [], min(left, quiet))[0]:
                return
            self.poll()

    def _take_in(self) -> bool:
        """Take in what it has printed; return whether its output is at an end."""
        assert self._process is not None
        assert self._process.stdout is not None
        # Not without limit: one that prints all the time must not hold up the other sources.
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
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            self._complain(f"no JSON object: {_clean(line[:80].decode('utf-8', 'replace'))}")
            return
        told = values.get("name")
        name = (_clean(told) if isinstance(told, str) else "") or self.name
        if name not in self._samples and len(self._samples) >= PROGRAM_NAMES:
            self._complain(f"more than {PROGRAM_NAMES} names: {name} is left out")
            return
        kind, sample, complaints = _sample_of_line(values)
        for complaint in complaints:
            self._complain(complaint)
        self._samples[name] = self._clock(), kind, sample
        self._problem = ""

    def _complain(self, text: str) -> None:
        """Say what is wrong with a line, once."""
        if text not in self._complaints and len(self._complaints) < 100:
            self._complaints.add(text)
            _log.warning("--program %s: %s", self.name, text)

    def _ended(self, text: str) -> None:
        """Note its end, and when it may start again: at once after a long run, else later each time."""
        now = self._clock()
        self._end_process(0.0)
        if now - self._started_at >= PROGRAM_SOUND:
            self._pause = PROGRAM_PAUSE
        self._start_at = now + self._pause
        self._pause = min(self._pause * 2, PROGRAM_PAUSE_MAX)
        self._problem = text
        self._complain(f"{text}; it is started again, after {PROGRAM_PAUSE_MAX:g} s at most")

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
            # Its group has its number; a group that is empty by now has not been given to another so soon.
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
        self.origin = f"program {program.name}"
        self._key = name  # as the program prints it; --map may give the source another
        self._program = program

    def _read(self) -> Sample:
        self._program.poll()
        return self._program.sample(self._key)


def _sample_of_line(values: dict[str, Any]) -> tuple[MeterType, Sample, list[str]]:
    """What a program's line says: its meter's type, the sample, and what was wrong with it.

    Positive is what the source supplies, as everywhere here; a battery's status, where it says one, has the last word.
    """
    complaints = [f"no such key: {_clean(key)}" for key in values if key not in _LINE_KEYS]

    def number(name: str, unit: str) -> float | None:
        value = values.get(name)
        if value is None:
            return None
        known = isinstance(value, int | float) and not isinstance(value, bool)
        sane = _sane(float(value), unit) if known and abs(value) < 1e300 else None
        if sane is None:
            complaints.append(f"no working sensor's {name}: {_clean(str(value)[:40])}")
        return sane

    def text(name: str) -> str:
        value = values.get(name)
        return _clean(value) if isinstance(value, str) else ""

    kinds = {kind.value: kind for kind in MeterType}
    kind = kinds.get(text("type") or "main")
    if kind is None:
        complaints.append(f"no such type: {text('type')}")
        kind = MeterType.MAIN
    sample = _ups_sample(text("status"))
    volts = number("voltage", "V")
    amperes = number("current", "A")
    watts = _first(number("power", "W"), _product(volts, amperes, "W"))
    amperes = _first(amperes, _quotient(watts, volts, "A"))
    if watts is not None and volts is None:
        complaints.append("power without voltage is shown, and not stored")
    sample.voltage = volts
    sample.current = amperes
    sample.wattage = watts
    sample.charge_pct = _percent(number("charge_pct", "%"))
    sample.capacity_wh = number("capacity_wh", "Wh")
    sample.runtime_s = number("runtime_s", "s")
    sample.temperature_c = number("temperature_c", "C")
    sample.serial = text("serial")
    _set_course(sample, kind)
    sample.problem = "no values" if sample.empty else ""
    return kind, sample, complaints


def _set_course(sample: Sample, kind: MeterType) -> None:
    """Set a program's sample's direction and mains, by its status or by the sign of its current."""
    status = (sample.status or "").lower()
    if kind is MeterType.UPS:
        return
    is_online = {"online": True, "offline": False}.get(status)
    sample.mains = is_online if kind is MeterType.MAIN else None
    sample.direction = None
    sample.low = None
    sample.tokens = frozenset()
    if kind is not MeterType.BATTERY:
        return
    sample.direction = _DIRECTIONS.get(status)
    if sample.direction is not None:
        sample.current = _turned(sample.current, sample.direction)
        sample.wattage = _turned(sample.wattage, sample.direction)
    elif sample.current is not None:
        sample.direction = (sample.current > 0) - (sample.current < 0)


# --- Charge from volts ------------------------------------------------------------------------

# Volts of a cell at rest, and its charge in percent. Where they are from:
# li-ion (18650 and the like, NMC or NCA): the default of Meshtastic's firmware, src/power.h, every second point.
# lipo (flat cells, LCO): the open-circuit table of candlepowerforums.com, at wiki.bluecrow.net/wiki/Batteries.
# lifepo4: a 12 V battery at rest, a quarter of it: gridwright.com/calculators/solar/lifepo4-voltage-chart.
# lead-acid: the table of the Battery Council International, a sixth of a 12 V battery at 27 C:
# studylib.net/doc/18054160.
_CHEMISTRIES: dict[str, tuple[tuple[float, float], ...]] = {
    "li-ion": ((3.1, 0), (3.42, 20), (3.63, 40), (3.8, 60), (3.99, 80), (4.19, 100)),
    "lipo": ((3.5, 0), (3.8, 30), (3.9, 55), (4.0, 75), (4.1, 87), (4.2, 100)),
    "lifepo4": ((2.5, 0), (3.0, 10), (3.2, 20), (3.25, 30), (3.3, 40), (3.325, 70), (3.35, 90), (3.4, 100)),
    "lead-acid": ((1.98, 0), (2.01, 25), (2.04, 50), (2.075, 75), (2.108, 100)),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Curve:
    """What a battery's charge is at which volts: points (volts, percent), rising in both."""

    points: tuple[tuple[float, float], ...]

    def charge(self, volts: float) -> float | None:
        """The charge at these volts, in percent; None far outside the curve, where it must be another battery's.

        >>> curve = Curve(((3.0, 0.0), (4.0, 80.0), (4.2, 100.0)))
        >>> [curve.charge(volts) for volts in (2.9, 3.5, 4.3, 8.2, 1.0)]
        [0.0, 40.0, 100.0, None, None]
        """
        lowest = self.points[0]
        highest = self.points[-1]
        if not lowest[0] * CURVE_LOW <= volts <= highest[0] * CURVE_HIGH:
            return None
        if volts <= lowest[0]:
            return lowest[1]
        for (low, low_pct), (high, high_pct) in itertools.pairwise(self.points):
            if volts <= high:
                charge = low_pct + (high_pct - low_pct) * (volts - low) / (high - low)
                return round(charge, 1)  # an estimate has no more digits than that
        return highest[1]


def _curve(text: str) -> tuple[str, Curve]:
    """A --curve argument, NAME=CHEMISTRY:CELLS or NAME=VOLTS:PERCENT,VOLTS:PERCENT,...

    >>> _curve("Pack=lead-acid:6")[1].charge(12.24)
    50.0
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
    rises = all(a[0] < b[0] and a[1] <= b[1] for a, b in itertools.pairwise(points))
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
    """What --map says of a source: its meter's type, its name ("": its own), and whether to turn the sign."""

    kind: MeterType
    name: str
    flip: bool


def _mapping(text: str) -> tuple[str, Mapping]:
    """A --map argument, RAIL=[-]TYPE[:NAME].

    >>> _mapping("ina219=-battery:Pack")
    ('ina219', Mapping(kind=<MeterType.BATTERY: 'battery'>, name='Pack', flip=True))
    """
    found = re.fullmatch(
        rf"(.+?)=(-?)({'|'.join(kind.value for kind in MeterType)})(?::(.*))?", text
    )
    if not found:
        raise argparse.ArgumentTypeError(
            f"expected RAIL=TYPE[:NAME], TYPE main, battery, solar or ups, got {text!r}"
        )
    return found[1], Mapping(MeterType(found[3]), _clean(found[4] or ""), bool(found[2]))


def _told_apart(sources: Sequence[Source]) -> None:
    """Give sources of one name different ones: by the chip's address where there is one, else by number."""
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
    """Every source under root and of the feeds, with its meter's name and type; `left_out`: why not to use one."""
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
    """Run a command, not by a shell, for at most `limit` seconds; whatever goes wrong is logged."""
    environment = _child_environment() | variables
    try:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
    except (OSError, ValueError) as exc:
        _log.error("%s: cannot be run: %s", command[0], exc)
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
    """Runs one command per event, one after another, beside the loop: a slow one must not stop the measuring."""

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
        """Wait for those submitted, for as long as one may take and a little more."""
        waiting = self._queue
        with waiting.all_tasks_done:
            if not waiting.all_tasks_done.wait_for(
                lambda: not waiting.unfinished_tasks, self._limit + 1.0
            ):
                _log.error(
                    "%s: %d events still wait for it", self._command[0], waiting.unfinished_tasks
                )

    def close(self) -> None:
        """Wait for those submitted, then end; what has still not been run is left."""
        self.wait()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)


# --- systemd ----------------------------------------------------------------------------------


def _notify(state: str) -> None:
    """Tell systemd, where it is listening."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # a systemd that does not listen must not stop the measuring
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def _watchdog() -> float:
    """Seconds after which systemd wants to hear from this process again, halved; infinite without a watchdog."""
    microseconds = _number(os.environ.get("WATCHDOG_USEC", ""))
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return microseconds / 2e6 if microseconds and ours else math.inf


# --- Journal ----------------------------------------------------------------------------------


def _boot_clock() -> float:
    """Seconds since boot, those asleep included; this clock cannot be set."""
    return (
        time.clock_gettime(time.CLOCK_BOOTTIME)
        if hasattr(time, "CLOCK_BOOTTIME")
        else time.monotonic()
    )


@dataclass(slots=True)
class Clocks:
    """Where time comes from. wait(seconds) waits, and returns True where the run is to end."""

    wall: Callable[[], float] = time.time
    boot: Callable[[], float] = _boot_clock
    wait: Callable[[float], bool] | None = None  # None: until a signal


@dataclass(slots=True)
class Row:
    """A reading on its way into the file."""

    boot_time: float  # seconds since boot when it was taken
    name: str  # the meter's
    kind: MeterType
    voltage: float | None  # V; None: not known
    current: float | None  # A; None: not known
    charge_pct: float | None

    @property
    def wattage(self) -> float | None:
        """Watts; None where volts or amperes are not known."""
        return _product(self.voltage, self.current, "W")


@dataclass(slots=True)
class Happening:
    """An event on its way into the file."""

    boot_time: float  # seconds since boot when it happened
    event_type: PowerEventType
    value: float
    name: str  # the source's, and its meter's where it has one
    kind: MeterType
    text: str


class Journal:
    """Readings and events on their way into the file, grouped, and kept until they are in it.

    Readings go in as live ones, in order, each at its own time: a live one is the present state and can raise
    an alert even where the time of day has been set back. (As recorded ones they would be history until the
    time of day has caught up.) That time is worked out at the commit, see the docstring above.
    """

    def __init__(self, db: str | os.PathLike[str], device_id: str, clocks: Clocks) -> None:
        self._db = db
        self._device_id = device_id
        self._clocks = clocks
        self.manager = self._open()
        self._place = _place(db)
        self.capacities: dict[str, float] = {}  # by meter's name, for those still to be registered
        self._rows: deque[Row] = deque()
        self._happenings: deque[Happening] = deque(maxlen=1000)
        self._ids: dict[tuple[str, MeterType], str] = {}
        self._lost = 0
        self.error = ""
        self.low = power_manager.LOW_BATTERY_THRESHOLD
        self.critical = power_manager.CRITICAL_BATTERY_THRESHOLD
        self.max_gap = math.inf  # seconds between two readings beyond which no energy is booked
        try:
            self._look_up_device()
            self._sequence = self.manager.last_sequence()
            self._file_id = self.manager.file_id
        except BaseException:
            self.manager.close()
            raise

    @property
    def waiting(self) -> int:
        """Readings and events that are not in the file."""
        return len(self._rows) + len(self._happenings)

    def _open(self) -> PowerManager:
        return PowerManager(self._db, alert_types=ALERT_TYPES, clock=self._time_of_day)

    def _time_of_day(self) -> float:
        return _storable(self._clocks.wall())

    def _look_up_device(self) -> None:
        """Register the device where it is missing; take its thresholds and the file's max_gap."""
        try:
            device = self.manager.get_device(self._device_id)
        except power_manager.NotFound:
            device = self.manager.register_device(self._device_id, self._device_id)
        low = device.low_battery_threshold
        critical = device.critical_battery_threshold
        self.low = power_manager.LOW_BATTERY_THRESHOLD if low is None else low
        self.critical = power_manager.CRITICAL_BATTERY_THRESHOLD if critical is None else critical
        self.max_gap = self.manager.max_gap

    def add(self, row: Row) -> None:
        """Keep a reading for the next commit; the oldest gives way where too many wait."""
        if len(self._rows) >= MAX_WAITING:
            self._rows.popleft()
            self._lost += 1
        self._rows.append(row)

    def happen(self, happening: Happening) -> None:
        """Keep an event for the next commit."""
        self._happenings.append(happening)

    def commit(self) -> bool:
        """Write all that waits in one transaction; on an error keep it, and return False."""
        try:
            if self.waiting:
                self._reopen_where_replaced()
                with self.manager.transaction():
                    self._write()
        except PowerManagerError as exc:
            self._ids.clear()  # a new meter has been rolled back too, or a known one was deleted
            if str(exc) != self.error:
                _log.error("%s; %d readings wait in memory", exc, len(self._rows))
            self.error = str(exc)
            return False
        if self.error:
            _log.warning(
                "%s: written again, %d readings lost meanwhile", self.manager.db_path, self._lost
            )
        self.error = ""
        self._lost = 0
        self._rows.clear()
        self._happenings.clear()
        return True

    def _reopen_where_replaced(self) -> None:
        """Open the file anew where its path names another one, or none: the open one is gone."""
        if _place(self._db) == self._place:
            return
        self.manager.close()
        self.manager = self._open()
        self._place = _place(self._db)
        self._ids.clear()
        _log.warning("%s: deleted or replaced meanwhile: opened anew", self.manager.db_path)

    def _write(self) -> None:
        """Store what waits, each at the time of day that it happened at."""
        offset = self._clocks.wall() - self._clocks.boot()
        self._look_up_device()
        readings = []
        for row in self._rows:
            meter_id = self._meter_id(row.name, row.kind)
            timestamp = _storable(row.boot_time + offset)
            readings.append((meter_id, row.voltage, row.current, row.charge_pct, timestamp))
        self.manager.log_many(readings, live=True)
        for happening in self._happenings:
            self.manager.trigger_event(
                self._device_id,
                happening.event_type,
                happening.value,
                f"{happening.name}: {happening.text}",
                meter_id=self._known_meter_id(happening.name, happening.kind),
                timestamp=_storable(happening.boot_time + offset),
            )

    def _known_meter_id(self, name: str, kind: MeterType) -> str | None:
        """The device's meter of that name and type; None where it has none."""
        if (name, kind) not in self._ids:
            for meter in self.manager.list_meters(self._device_id):
                if meter.name is not None:
                    self._ids.setdefault((meter.name, meter.type), meter.id)
        return self._ids.get((name, kind))

    def _meter_id(self, name: str, kind: MeterType) -> str:
        """The device's meter of that name and type, registered where it is missing."""
        meter_id = self._known_meter_id(name, kind)
        if meter_id is None:
            capacity_wh = self.capacities.get(name, 0.0)
            meter_id = self.manager.add_meter(self._device_id, kind, capacity_wh, name).id
            self._ids[name, kind] = meter_id
        return meter_id

    def news(self) -> list[dict[str, str]]:
        """The device's events since the last call, of any process, as environments of a command.

        The first call tells those since the journal was opened. After a restored backup it goes on with what
        comes then: events of the backup are old.
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
            self._sequence = page[-1][0]
        return environments

    def _meter_names(self) -> dict[str, str]:
        """The names of the device's meters, by id."""
        meters = self.manager.list_meters(self._device_id)
        return {meter.id: meter.name or meter.id for meter in meters}


def _place(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Which file a path names: its device and inode; None where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


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


# --- Collector --------------------------------------------------------------------------------


@dataclass(slots=True)
class Options:
    """What `run` was told; as on the command line."""

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
    exec_command: Sequence[str] = ()
    exec_limit: float = EXEC_LIMIT
    shutdown_command: Sequence[str] = ()
    shutdown_after: float = 30.0
    nut_login: netrc.netrc | None = None
    nut_tls: str = ""
    apcupsd: Sequence[str] = ()
    programs: Sequence[tuple[str, Sequence[str]]] = ()
    curves: dict[str, Curve] = field(default_factory=dict)


def open_feeds(options: Options, clock: Callable[[], float]) -> list[Feed]:
    """What the options name beside the kernel's files. Raises ValueError for what is no address."""
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
    feeds += [Program(name, command, clock) for name, command in options.programs]
    return feeds


@dataclass(slots=True)
class Course:
    """What the collector remembers of one meter."""

    problem: str = ""
    volts: float | None = None  # the last that were known
    volts_at: float = -math.inf
    amperes: float | None = None  # the last that were known
    amperes_at: float = -math.inf
    amperes_direction: int | None = None
    charge_pct: float | None = None
    direction: int | None = None  # the last that was not idle
    kept: Row | None = None  # the last reading that goes into the file
    skipped: Row | None = None  # the newest since, where it does not
    critical_at: float | None = None  # since when it is critical and discharging


class Collector:
    """Reads the sources every interval; tick() is one round, run() the loop, finish() its end."""

    def __init__(self, options: Options, clocks: Clocks) -> None:
        self._options = options
        self._clocks = clocks
        self._feeds = open_feeds(options, clocks.boot)
        self.journal = Journal(options.db, options.device_id, clocks)
        self._commands = (
            Commands(options.exec_command, options.exec_limit) if options.exec_command else None
        )
        self._sources: list[Source] = []
        self._courses: dict[str, Course] = {}
        self._mains: dict[str, bool] = {}
        now = clocks.boot()
        self._tick_at = now
        self._rescan_at = -math.inf
        self._retry_at = -math.inf
        self._commit_at = -math.inf
        self._prune_at = now + SETTLED
        self._offset = clocks.wall() - now
        self._urgent = False
        self._stored_any = False
        self._shutdown_done = False
        self._said: dict[str, str] = {}
        if options.interval > self.journal.max_gap:
            _log.warning(
                "no energy is booked: readings every %g s are farther apart than the file's max_gap, %g s",
                options.interval,
                self.journal.max_gap,
            )

    def run(self, wait: Callable[[float], bool]) -> int:
        """Collect until wait() says that it is enough; return the exit code: 1 where readings could not be stored."""
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
        """Read every source once; store, tell and act as is due."""
        now = self._clocks.boot()
        self._watch_clocks(now)
        if now >= self._rescan_at:
            self._rescan(now)
        samples = [(source, source.read()) for source in self._sources]
        for source, sample in samples:
            self._take(source, sample, now)
        self._watch_mains(samples, now)
        due = (
            self._urgent
            or self._options.once
            or now >= self._commit_at + self._options.commit_every
        )
        if due and now >= self._retry_at:
            self._commit(now)
        self._watch_shutdown(samples, now)
        self._tell()
        self._prune(now)

    def finish(self) -> int:
        """Write what waits, and close; return the exit code."""
        _notify("STOPPING=1")
        for course in self._courses.values():
            if course.skipped:
                self.journal.add(course.skipped)
                course.skipped = None
        stored = self.journal.commit()
        if not stored:
            _log.error("%d readings and events are lost", self.journal.waiting)
        self._tell()
        if self._commands:
            self._commands.close()
        for feed in self._feeds:
            feed.close()
        self.journal.manager.close()
        if self._options.once and not self._stored_any:
            _log.error("nothing to log: `power_collector sources` shows what this machine has")
        return int(not stored or (self._options.once and not self._stored_any))

    def _watch_clocks(self, now: float) -> None:
        """Notice a time of day that was set, and a machine that slept."""
        offset = self._clocks.wall() - now
        if abs(offset - self._offset) > JUMPED:
            _log.warning("the time of day has jumped by %.0f s", offset - self._offset)
            self._offset = offset
            self._prune_at = max(self._prune_at, now + SETTLED)
        if now - self._tick_at > self._options.interval + SLEPT:
            self._rescan_at = now
            for course in (
                self._courses.values()
            ):  # it may have been put on a charger: look again for as long
                course.critical_at = None if course.critical_at is None else now
        self._tick_at = now

    def _rescan(self, now: float) -> None:
        """Find sensors that have come, gone or moved."""
        options = self._options
        found = discover(
            options.root, self._feeds, options.maps, options.peripherals, options.curves
        )
        first = not self._said
        self._rescan_at = now + RESCAN
        self._sources = [source for source in found if not source.left_out]
        names = {source.name for source in self._sources}
        for name, course in self._courses.items():
            if name not in names:  # a battery taken out is not critical
                course.critical_at = course.charge_pct = None
        self._say(
            "sources", "logging " + ", ".join(sorted(names)) if names else "no sensors found yet"
        )
        known = {source.name for source in found} | {
            asked.name for asked in options.maps.values() if asked.name
        }
        missing = [
            rail for rail, asked in options.maps.items() if (asked.name or rail) not in known
        ]
        if first and missing:
            _log.warning("--map: no sensor is named %s", ", ".join(missing))
        strange = [name for name in options.curves if name not in names]
        if first and strange:
            _log.warning("--curve: no sensor is named %s", ", ".join(strange))

    def _say(self, key: str, text: str) -> None:
        """Log a text unless it is what was said of this last."""
        if self._said.get(key, "") != text:
            self._said[key] = text
            _log.info("%s", text)

    def _take(self, source: Source, sample: Sample, now: float) -> None:
        """Make a reading of a sample, and see what has happened."""
        course = self._courses.setdefault(source.name, Course())
        if sample.problem != course.problem:
            _log.info("%s: %s", source.name, sample.problem or "readable again")
            course.problem = sample.problem
            self._rescan_at = now if sample.problem else self._rescan_at  # it may have moved
        course.charge_pct = sample.charge_pct
        if sample.empty:
            return
        turned = sample.direction not in (None, IDLE, course.direction)
        if turned:
            if course.direction == DISCHARGING:
                self._happen(
                    PowerEventType.CHARGE_START, source, sample.charge_pct, "charging", now
                )
            self._urgent |= course.direction is not None
            course.direction = sample.direction
        self._watch_critical(source, sample, course, now)
        if sample.capacity_wh is not None:
            self.journal.capacities[source.name] = sample.capacity_wh
        reading = self._electrical(source, sample, course, now)
        if reading is not None:
            volts, amperes = reading
            row = Row(now, source.name, source.kind, volts, amperes, sample.charge_pct)
            low = source.kind in ALERT_TYPES and (
                sample.charge_pct is not None and sample.charge_pct <= self.journal.low
            )
            self._urgent |= low
            self._keep(course, row, turned or low)

    def _happen(
        self, kind: PowerEventType, source: Source, value: float | None, what: str, now: float
    ) -> None:
        self.journal.happen(Happening(now, kind, value or 0.0, source.name, source.kind, what))
        self._urgent = True

    @staticmethod
    def _electrical(
        source: Source, sample: Sample, course: Course, now: float
    ) -> tuple[float | None, float | None] | None:
        """Volts and amperes to store, None for one that is not known; no pair where there is nothing to store.

        What a battery's charge says is worth storing alone: for a missing value its last one stands in for
        HOLD seconds, then it is unknown.
        """
        volts = sample.voltage
        amperes = sample.current
        if sample.wattage is not None and volts:
            amperes = sample.wattage / volts
        if volts is not None:
            course.volts = volts
            course.volts_at = now
        if amperes is not None:
            course.amperes = amperes
            course.amperes_at = now
            course.amperes_direction = sample.direction
        if volts is not None and amperes is not None:
            return volts, amperes
        if source.kind not in ALERT_TYPES or sample.charge_pct is None:
            return None
        if volts is None and now - course.volts_at <= HOLD:
            volts = course.volts
        same_direction = course.amperes_direction == sample.direction
        if amperes is None and now - course.amperes_at <= HOLD and same_direction:
            amperes = course.amperes
        return volts, amperes

    def _keep(self, course: Course, row: Row, always: bool) -> None:
        """Pass a reading on, unless --min-change thinks it is like the last.

        Where the power changes after readings that were left out, the newest of them goes first: else the change
        would be booked as a slow one over all that time.
        """
        if not always and course.kept is not None and self._is_like(course.kept, row):
            course.skipped = row
            return
        if course.skipped is not None:
            self.journal.add(course.skipped)
        course.kept = row
        course.skipped = None
        self.journal.add(row)

    def _is_like(self, kept: Row, row: Row) -> bool:
        """Whether a reading differs too little and comes too soon after the last one kept to be kept too."""
        # Longer without a reading than max_gap, and the energy between would not be booked.
        silence = min(MAX_SILENCE, self.journal.max_gap)
        if row.boot_time - kept.boot_time >= silence:
            return False
        if (row.wattage is None) != (kept.wattage is None):
            return False
        watts = abs((row.wattage or 0.0) - (kept.wattage or 0.0))
        points = 0.0
        if row.charge_pct is not None and kept.charge_pct is not None:
            points = abs(row.charge_pct - kept.charge_pct)
        return watts < self._options.min_change and points < 1.0

    def _watch_mains(self, samples: Sequence[tuple[Source, Sample]], now: float) -> None:
        """Notice mains that goes or comes back: one state for the machine's own supplies, one for each UPS."""
        groups: dict[str, list[tuple[Source, Sample]]] = {}
        for source, sample in samples:
            if sample.mains is not None and not source.peripheral:
                group = source.name if source.kind is MeterType.UPS else ""
                groups.setdefault(group, []).append((source, sample))
        for group, members in groups.items():
            online = [member for member in members if member[1].mains]
            if self._mains.get(group, bool(online)) != bool(online):
                self._urgent = True
                if online:
                    source, sample = online[0]
                    charges = [
                        s.charge_pct
                        for o, s in samples
                        if o.kind is MeterType.BATTERY and not o.peripheral
                    ]
                    value = _first(sample.charge_pct, *([] if group else charges))
                    self._happen(PowerEventType.RESTORE, source, value, "mains is back", now)
            self._mains[group] = bool(online)

    def _commit(self, now: float) -> None:
        self._stored_any |= self.journal.waiting > 0
        if self.journal.commit():
            self._commit_at = now
            self._urgent = False
        else:
            self._retry_at = now + RETRY

    def _watch_critical(self, source: Source, sample: Sample, course: Course, now: float) -> None:
        """Note since when a battery is critical and discharging; what cannot be read changes nothing."""
        if source.peripheral or source.kind not in ALERT_TYPES:
            return
        critical = sample.low
        charge = sample.charge_pct
        if charge is not None and not critical:
            # A gauge that wavers about its line has not recovered.
            margin = 0.0 if course.critical_at is None else power_manager.ALERT_HYSTERESIS
            critical = charge <= self.journal.critical or charge < self.journal.critical + margin
        known = sample.direction in (IDLE, CHARGING) or (
            sample.direction is not None and critical is not None
        )
        if critical and sample.direction == DISCHARGING:
            if course.critical_at is None:
                self._say_critical(
                    source, f"critical; shutdown in {self._options.shutdown_after:g} s"
                )
                course.critical_at = now
        elif known and course.critical_at is not None:
            self._say_critical(source, "recovered; no shutdown")
            course.critical_at = None

    def _say_critical(self, source: Source, text: str) -> None:
        if self._options.shutdown_command:
            _log.warning("%s: %s", source.name, text)

    def _watch_shutdown(self, samples: Sequence[tuple[Source, Sample]], now: float) -> None:
        """Run the shutdown command, once for each time that a battery ends."""
        courses = [
            (source, self._courses[source.name]) for source, _ in samples if not source.peripheral
        ]
        ending = [(source, c) for source, c in courses if c.critical_at is not None]
        # Batteries of this machine share its load: it ends with the last of them.
        others = [
            c
            for s, c in courses
            if s.kind is MeterType.BATTERY and c.critical_at is None and c.charge_pct
        ]
        ending = [(source, c) for source, c in ending if source.kind is MeterType.UPS or not others]
        self._shutdown_done &= bool(ending)
        due = [
            (s, c)
            for s, c in ending
            if now - (c.critical_at or now) >= self._options.shutdown_after
        ]
        if not due or self._shutdown_done or not self._options.shutdown_command:
            return
        self._shutdown_done = True
        source, course = due[0]
        kind = PowerEventType.SHUTDOWN
        _log.warning(
            "%s: critical for %g s: shutting down", source.name, self._options.shutdown_after
        )
        self._happen(kind, source, course.charge_pct, "critical, shutting down", now)
        self._commit(now)  # where it fails the command runs all the same
        self._tell()
        if self._commands:
            self._commands.wait()
        variables = _environment(
            self._options.device_id, kind, course.charge_pct or 0.0, source.name
        )
        _run_command(self._options.shutdown_command, variables, SHUTDOWN_LIMIT)

    def _tell(self) -> None:
        """Run the --exec command for every event that has come into the file, from any process."""
        if self._commands is not None:
            try:
                environments = self.journal.news()
            except PowerManagerError as exc:
                self._say("events", f"events cannot be read: {exc}")
                return
            for variables in environments:
                self._commands.submit(variables)

    def _prune(self, now: float) -> None:
        """Delete old readings daily, by a time of day that has been steady for a while."""
        if self._options.keep_days is not None and (now >= self._prune_at or self._options.once):
            self._prune_at = now + DAY
            try:
                deleted = self.journal.manager.prune(self._options.keep_days)
                _log.info(
                    "%d readings older than %g days deleted", deleted, self._options.keep_days
                )
            except PowerManagerError as exc:
                _log.error("%s", exc)


# --- Command line -----------------------------------------------------------------------------


class _Signals:
    """SIGTERM, SIGINT and SIGHUP as the end of a wait: whatever is being written is written to its end."""

    def __enter__(self) -> _Signals:
        self._stopped = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays in force
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopped = True
        with contextlib.suppress(OSError):
            self._writer.send(b"x")

    def wait(self, seconds: float) -> bool:
        """Wait that long, or until a signal has come; return whether one has."""
        if not self._stopped:
            select.select([self._reader], [], [], min(seconds, DAY))
        return self._stopped

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()


_KEYS = ("name", "type", "voltage", "current", "wattage", "charge_pct", "capacity_wh", "status")
_MORE_KEYS = ("runtime_s", "temperature_c", "serial", "is_estimated")  # columns where one has them


def _show_sources(args: argparse.Namespace, clocks: Clocks) -> int:
    options = _options(args)
    feeds = open_feeds(options, clocks.boot)
    try:
        rows = _source_rows(options, feeds)
    finally:
        for feed in feeds:
            feed.close()
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    keys = [*_KEYS, *(key for key in _MORE_KEYS if any(row[key] for row in rows))]
    cells = [keys] + [[_cell(row[key]) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())
    return 0


def _source_rows(options: Options, feeds: Sequence[Feed]) -> list[dict[str, Any]]:
    """What every source says now; what is wrong with one, and which are left out, goes to standard error."""
    rows = []
    for source in discover(options.root, feeds, options.maps, options.peripherals, options.curves):
        if source.left_out:
            print(f"left out: {source.name} ({source.left_out})", file=sys.stderr)
            continue
        sample = source.read()
        values: dict[str, Any] = {"name": source.name, "type": source.kind.value}
        values |= {key: getattr(sample, key) for key in (*_KEYS[2:], *_MORE_KEYS)}
        values["serial"] = sample.serial or None
        rows.append(
            {k: round(v, 6) + 0.0 if isinstance(v, float) else v for k, v in values.items()}
        )
        if sample.problem:
            print(f"{source.name}: {sample.problem}", file=sys.stderr)
    return rows


def _cell(value: object) -> str:
    if value is None or value is False:
        return "-"
    if value is True:
        return "yes"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _options(args: argparse.Namespace) -> Options:
    """The options of a command line; those that `sources` does not have are the defaults."""
    values = {
        f.name: getattr(args, f.name) for f in dataclasses.fields(Options) if hasattr(args, f.name)
    }
    values |= {"maps": dict(args.map), "curves": dict(args.curves)}
    return Options(**({"device_id": "", "db": ""} | values))


def _run(args: argparse.Namespace, clocks: Clocks) -> int:
    options = _options(args)
    handler = (
        logging.StreamHandler()
    )  # to the standard error there is now, for as long as this runs
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with _Signals() as signals:
            return Collector(options, clocks).run(clocks.wait or signals.wait)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def _at_least(low: float, above: bool = False) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or value < low or (above and value == low):
            raise argparse.ArgumentTypeError(
                f"expected a number {'above' if above else 'of at least'} {low:g}"
            )
        return value

    return number


def _directory(text: str) -> str:
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"no such directory: {text}")
    return text


def _command_line(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{exc}: {text}") from None
    if not words:
        raise argparse.ArgumentTypeError("expected a command")
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
        logins = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError) as exc:
        raise argparse.ArgumentTypeError(f"{exc}") from None
    if os.stat(path).st_mode & 0o007:
        _log.warning("%s: every user of this machine can read it", path)
    return logins


def _trust(text: str) -> str:
    """A --nut-tls argument: whom to trust."""
    if text in ("system", "unverified"):
        return text
    try:
        UpsdAccess(None, text).context()
    except OSError as exc:
        raise argparse.ArgumentTypeError(f"{exc}: {text}") from None
    return text


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where power is measured: those of `sources` and of `run`."""
    add = parser.add_argument
    add("--root", type=_directory, default="/", metavar="DIR",
        help="read a captured tree (default: /)")  # fmt: skip
    add("--nut", action="append", default=[], type=_nut_address, metavar="[UPS@]HOST[:PORT]",
        help="a UPS of NUT's upsd; without UPS@ all of them")  # fmt: skip
    add("--nut-login", type=_logins, metavar="FILE",
        help=f"a netrc file of users and passwords of upsd (else ${NUT_USERNAME}, ${NUT_PASSWORD})")  # fmt: skip
    add("--nut-tls", type=_trust, default="", metavar="TRUST",
        help="speak TLS to upsd, and trust a FILE of certificates, `system`, or all: `unverified`")  # fmt: skip
    add("--apcupsd", action="append", default=[], type=_apcupsd_address, metavar="HOST[:PORT]",
        help="the UPS of an apcupsd")  # fmt: skip
    add("--program", action="append", default=[], type=_program, dest="programs",
        metavar="NAME=COMMAND", help="a program that prints one JSON object a line; no shell")  # fmt: skip
    add("--map", action="append", default=[], type=_mapping, metavar="RAIL=TYPE[:NAME]",
        help="a source's meter: main, battery, solar or ups; -TYPE turns the sign")  # fmt: skip
    add("--curve", action="append", default=[], type=_curve, dest="curves",
        metavar="NAME=CHEMISTRY:CELLS",
        help="estimate a meter's charge from its volts; or NAME=VOLTS:PERCENT,...")  # fmt: skip
    add("--peripherals", action="store_true", help="also batteries of mice and the like")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="power_collector", description="This machine's power sensors, logged."
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {power_manager.__version__}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    show = commands.add_parser(
        "sources", help="list what this machine has", description="List this machine's meters."
    )
    run = commands.add_parser(
        "run", help="log it", description="Log this machine's meters until SIGTERM or Ctrl-C."
    )
    show.set_defaults(run=_show_sources)
    run.set_defaults(run=_run)
    for command in (show, run):
        _add_source_options(command)
    show.add_argument("--json", action="store_true", help="JSON instead of a table")
    add = run.add_argument
    zero = _at_least(0)
    above = _at_least(0, above=True)
    db = os.environ.get("POWER_MANAGER_DB") or str(power_manager.DB_PATH)
    add("device_id", metavar="DEVICE_ID", help="registered where it is new")
    add(
        "--db",
        default=db,
        metavar="PATH",
        help="(default: $POWER_MANAGER_DB, else power_manager.db here)",
    )
    add(
        "--interval",
        type=above,
        default=5.0,
        metavar="S",
        help="seconds between readings (default: 5)",
    )
    add("--once", action="store_true", help="read and store once, then end")
    add(
        "--commit-every",
        type=zero,
        default=60.0,
        metavar="S",
        help="seconds in one transaction (default: 60)",
    )
    add(
        "--keep-days",
        type=zero,
        metavar="N",
        help="delete readings of whole hours older than that, daily (default: keep all)",
    )
    add(
        "--min-change",
        type=zero,
        default=0.0,
        metavar="W",
        help="leave out readings that change less (default: 0)",
    )
    add("--exec", type=_command_line, default=[], dest="exec_command", metavar="CMD",
        help="run for every event, with POWER_EVENT, POWER_DEVICE, POWER_VALUE, POWER_METER set; no shell")  # fmt: skip
    add(
        "--exec-limit",
        type=above,
        default=EXEC_LIMIT,
        metavar="S",
        help="seconds it may take (default: 10)",
    )
    add(
        "--shutdown-command",
        type=_command_line,
        default=[],
        metavar="CMD",
        help="run once when a battery ends",
    )
    add("--shutdown-after", type=zero, default=30.0, metavar="S",
        help="seconds critical and discharging before that (default: 30)")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None, clocks: Clocks | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 for an error. SIGTERM and Ctrl-C end `run` with 0."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args, clocks or Clocks())
        sys.stdout.flush()
        return code
    except (
        BrokenPipeError
    ):  # `| head` has read enough; what is left in the buffer must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except (PowerManagerError, OSError) as exc:
        print(f"power_collector: {exc}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
