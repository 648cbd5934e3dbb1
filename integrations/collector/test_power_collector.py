"""Tests of power_collector, in the order of its parts; no test waits for the time of day to
pass.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import power_collector as pc
import pytest

import power_manager
from power_manager import MeterType, PowerManager, settings_table

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
TREES = HERE / "trees"
NOON = 1_700_000_000.0


class Time:
    """Clocks that only move when the collector waits; `then` is called at every wait, and True ends
    the run.
    """

    def __init__(self, ticks: int = 1, then: Callable[[int], Any] | None = None) -> None:
        self.now, self.day, self.ticks, self.count, self.then = 1000.0, NOON, ticks, 0, then
        self.clocks = pc.Clocks(wall=lambda: self.day, boot=lambda: self.now, wait=self.wait)

    def wait(self, seconds: float) -> bool:
        """Let that long pass."""
        self.pass_(seconds)
        self.count += 1
        stop = self.then(self.count) if self.then else None
        return bool(stop) or self.count >= self.ticks

    def pass_(self, seconds: float) -> None:
        """Move both clocks on."""
        self.now += seconds
        self.day += seconds


class Tree:
    """A machine's /sys in a temporary directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def supply(self, supply_name: str, **files: object) -> Path:
        """Write files of a power supply; None removes one."""
        return self._write(self.root / "sys/class/power_supply" / supply_name, files)

    def iio(self, number: int, **files: object) -> Path:
        """Write files of an iio device."""
        return self._write(self.root / f"sys/bus/iio/devices/iio:device{number}", files)

    def hwmon(self, number: int, **files: object) -> Path:
        """Write files of a hwmon device."""
        return self._write(self.root / f"sys/class/hwmon/hwmon{number}", files)

    @staticmethod
    def _write(place: Path, files: dict[str, object]) -> Path:
        place.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            if value is None:
                (place / name).unlink(missing_ok=True)
            else:
                (place / name).write_bytes(
                    value if isinstance(value, bytes) else f"{value}\n".encode()
                )
        return place

    def only_supply(self) -> pc.Source:
        """The one power supply that the collector finds."""
        (source,) = pc.Supply.discover(str(self.root))
        return source

    def only_rail(self) -> pc.Source:
        """The one power monitor's rail that the collector finds."""
        (source,) = pc.Rail.discover(str(self.root))
        return source

    def battery(self, battery_name: str = "BAT0", **files: object) -> Path:
        """Write a battery of 50 Wh that supplies 10 W at 10 V, at 60 %, and these files."""
        usual = {"type": "Battery", "present": 1, "status": "Discharging", "capacity": 60}
        usual |= {"voltage_now": 10_000_000, "current_now": 1_000_000, "energy_full": 50_000_000}
        new = not (self.root / "sys/class/power_supply" / battery_name).exists()
        return self.supply(battery_name, **((usual | files) if new else files))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, what answers and what ends is waited for."""
    monkeypatch.setattr(pc, "NUT_LIMIT", 60.0)
    monkeypatch.setattr(pc, "PROGRAM_LIMIT", 60.0)
    monkeypatch.setattr(pc, "PROGRAM_FIRST", 60.0)
    monkeypatch.setattr(pc, "PROGRAM_EXIT", 60.0)


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed is as wide wherever the tests run: their own terminal may be narrow."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty machine."""
    (tmp_path / "root").mkdir()
    return Tree(tmp_path / "root")


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """The place of a database that is not there yet."""
    return tmp_path / "power.db"


class Machine:
    """A collector on a tree, ticked by hand."""

    def __init__(self, tree: Tree, db: Path, **options: Any) -> None:
        self.time, self.tree, self.db = Time(), tree, db
        self.collector = pc.Collector(
            pc.Options("dev", str(db), str(tree.root), **options), self.time.clocks
        )

    def tick(self, count: int = 1, seconds: float = 5.0) -> None:
        """Let the collector look that often, that long apart."""
        for _ in range(count):
            self.collector.tick()
            self.time.pass_(seconds)

    def events(self) -> list[tuple[str, float]]:
        """The events in the file, oldest first."""
        with PowerManager(self.db) as pm:
            return [(event.type.value, event.value) for _, event in pm.events_since(0)]

    def readings(self, name: str = "BAT0") -> list[power_manager.PowerReading]:
        """The readings of a meter in the file."""
        with PowerManager(self.db) as pm:
            return [
                r for m in pm.list_meters("dev") if m.name == name for r in pm.iter_history(m.id)
            ]


@pytest.fixture
def machine(tree: Tree, db: Path) -> Iterator[Callable[..., Machine]]:
    """A maker of machines, finished at the end."""
    made: list[Machine] = []

    def make(**options: Any) -> Machine:
        made.append(Machine(tree, db, **options))
        return made[-1]

    yield make
    for one in made:
        one.collector.finish()


def sources(
    root: Path | str, *arguments: str, capsys: pytest.CaptureFixture[str]
) -> list[dict[str, Any]]:
    """What `sources --json` says."""
    capsys.readouterr()
    assert pc.main(["sources", "--root", str(root), "--json", *arguments]) == 0
    listed: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return listed


def recorder(path: Path) -> list[str]:
    """A command that appends its event to a file."""
    text = "import os, sys; e = os.environ; open(sys.argv[1], 'a').write(' '.join(["
    text += "e['POWER_EVENT'], e['POWER_DEVICE'], e['POWER_VALUE'], e['POWER_METER']]) + chr(10))"
    return [sys.executable, "-c", text, str(path)]


def only_meter(pm: PowerManager) -> power_manager.PowerMeter:
    """The one meter in a file."""
    (meter,) = pm.list_meters()
    return meter


def lines(path: Path) -> list[str]:
    """The lines of a file; none where it is missing."""
    return path.read_text().splitlines() if path.exists() else []


# --- Values


@pytest.mark.parametrize(
    "text",
    ["65535", "655.350", "655.290", "6553.5", "3932100", "65535000", "nan", "1e9", "1_0", ""],
)
def test_sentinels_and_other_text_are_no_numbers(text: str) -> None:
    """What a device says for "unknown" is no value."""
    assert pc._number(text) is None


def test_a_file_that_cannot_be_read_is_empty_text(tmp_path: Path) -> None:
    """Missing files, directories and pipes without a writer neither raise nor block."""
    os.mkfifo(tmp_path / "pipe")
    assert [pc._text(f"{tmp_path}/{name}") for name in ("none", "", "pipe")] == ["", "", ""]


# --- Supplies


def test_a_laptop_as_the_kernel_shows_it(
    tree: Tree, db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file of a laptop's supplies gives 6.384 W, 11.4 V, 62 %, 51.48 Wh, and 5 h to empty."""
    tree.supply("AC", type="Mains", online=0, uevent="POWER_SUPPLY_NAME=AC")
    tree.supply(
        "BAT0",
        type="Battery",
        present=1,
        status="Discharging",
        technology="Li-poly",
        manufacturer="Own Make",
        model_name=b"OM-5148\xff\xfe\n",
        serial_number=" 4711",
        cycle_count=214,
        alarm=0,
        capacity=62,
        capacity_level="Normal",
        energy_now=31_920_000,
        energy_full=51_480_000,
        energy_full_design=57_000_000,
        power_now=6_384_000,
        voltage_now=11_400_000,
        voltage_min_design=11_100_000,
    )
    ac, battery = sources(tree.root, capsys=capsys)
    assert (ac["name"], ac["type"], ac["status"], ac["wattage"]) == ("AC", "main", "Offline", None)
    assert battery == {
        "name": "BAT0",
        "type": "battery",
        "voltage": 11.4,
        "current": 0.56,
        "wattage": 6.384,
        "charge_pct": 62.0,
        "capacity_wh": 51.48,
        "status": "Discharging",
        "runtime_s": None,
        "temperature_c": None,
        "serial": "4711",
        "is_estimated": False,
        "problem": None,
    }
    assert pc.main(["run", "lap", "--root", str(tree.root), "--db", str(db), "--once"]) == 0
    with PowerManager(db) as pm:
        assert pm.estimate_runtime("lap") == 5.0
        assert [(m.name, m.type, m.wattage) for m in pm.list_meters("lap")] == [
            ("BAT0", "battery", 6.384)
        ]


class Shown(NamedTuple):
    """What `sources` says of one source."""

    name: str
    type: str
    voltage: float | None
    current: float | None
    wattage: float | None
    charge_pct: float | None
    capacity_wh: float | None
    status: str | None

    @property
    def is_stored(self) -> bool:
        """Whether it has a meter: with volts and amperes, or with a charge."""
        measures = bool(self.voltage) and self.current is not None
        return measures or self.charge_pct is not None


EXPECTED: dict[str, list[Shown]] = {
    "laptop": [
        Shown("ADP1", "main", None, None, None, None, None, "Offline"),
        Shown("BAT0", "battery", 11.4, 1.25, 14.25, 64.0, 44.4, "Discharging"),
        Shown("ucsi-source-psy-USBC000:001", "main", None, None, None, None, None, "Offline"),
    ],
    "ina3221": [Shown("VDD_IN", "main", 5.032, 1.192, 5.998144, None, None, None)],
    "ina219": [
        Shown("ina219", "main", 4.228, -0.04, -0.16912, None, None, None),
        Shown("Panel", "main", 18.25, 1.5, 27.375, None, None, None),
    ],
    "ups": [Shown("ups0", "ups", 13.65, -0.8, -10.92, 88.0, 84.0, "Charging")],
    "two-batteries": [
        Shown("AC", "main", None, None, None, None, None, "Offline"),
        Shown("BAT0", "battery", 11.4, 1.25, 14.25, 4.0, 44.4, "Discharging"),
        Shown("BAT1", "battery", 12.1, 0.0, 0.0, 95.0, 24.0, "Not charging"),
    ],
    "absent": [],
    "garbage": [
        Shown("BAT0", "battery", None, None, None, None, None, None),
        Shown("BAT1", "battery", None, None, None, 100.0, None, "Discharging"),
        Shown("ina219", "main", None, None, None, None, None, None),
        Shown("[31mred", "main", 5.0, 0.5, 2.5, None, None, None),
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_captured_trees(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every captured tree gives exactly its meters."""
    rows = sources(TREES / name, capsys=capsys)
    assert [Shown(*(row[key] for key in Shown._fields)) for row in rows] == EXPECTED[name]
    for row in rows:
        assert (row["runtime_s"], row["temperature_c"], row["serial"]) == (None, None, None)
        assert row["is_estimated"] is False


@pytest.mark.parametrize("name", EXPECTED)
def test_captured_trees_run(name: str, db: Path) -> None:
    """Every captured tree can be logged for ten minutes, and leaves a sound file."""
    time_ = Time(120)
    assert pc.main(["run", "dev", "--root", str(TREES / name), "--db", str(db)], time_.clocks) == 0
    with PowerManager(db) as pm:
        assert pm.check() == []
        meters = {(meter.name, meter.type.value) for meter in pm.list_meters("dev")}
    assert meters == {(row.name, row.type) for row in EXPECTED[name] if row.is_stored}


@pytest.mark.parametrize(
    ("status", "sign"),
    [("Discharging", 1), ("Charging", -1), ("Full", 0), ("Not charging", 0), ("", 1)],
)
@pytest.mark.parametrize("current", [-2_000_000, 2_000_000])
def test_the_status_gives_the_direction(tree: Tree, current: int, status: str, sign: int) -> None:
    """Whatever sign a driver gives to its current, the status says the direction."""
    tree.battery(status=status, current_now=current)
    sample = tree.only_supply().read()
    assert (sample.current_draw, sample.wattage, sample.status) == (
        2 * sign,
        20 * sign,
        status or None,
    )


@pytest.mark.parametrize("status", ["Full", "Not charging"])
def test_an_idle_battery_gives_nothing_also_without_a_current(tree: Tree, status: str) -> None:
    """A driver that has no current_now while the battery rests has said all the same that it is
    0.
    """
    tree.battery(status=status, current_now=None)
    sample = tree.only_supply().read()
    assert (sample.voltage, sample.current_draw, sample.wattage) == (10.0, 0.0, 0.0)


def test_power_comes_from_power_now_first(tree: Tree) -> None:
    """power_now wins over current times voltage, and gives the current where there is none."""
    tree.battery(power_now=-12_000_000)
    tree.battery("BAT1", power_now=12_000_000, current_now=None)
    first, second = (source.read() for source in pc.Supply.discover(str(tree.root)))
    assert (first.wattage, first.current_draw) == (12.0, 1.0)
    assert (second.wattage, second.current_draw) == (12.0, 1.2)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 50.0),
        ({"energy_full": None}, None),
        ({"energy_full": None, "charge_full": 2_000_000}, 20.0),
        ({"energy_full": 0, "charge_full": 2_000_000, "voltage_max_design": 12_000_000}, 24.0),
        (
            {
                "energy_full": 0,
                "charge_full": 2_000_000,
                "voltage_max_design": 1,
                "voltage_min_design": 11_000_000,
            },
            22.0,
        ),
        ({"energy_full": None, "energy_full_design": 60_000_000}, 60.0),
    ],
)
def test_capacity(tree: Tree, files: dict[str, Any], expected: float | None) -> None:
    """Watt-hours come from energy_full, else charge_full times a voltage in the order of trust."""
    tree.battery(**files)
    assert tree.only_supply().read().capacity_wh == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"energy_now": 10_000_000}, 60.0),
        ({"capacity": None, "energy_now": 10_000_000}, 20.0),
        ({"capacity": 255, "charge_now": 1_000_000, "charge_full": 4_000_000}, 25.0),
        ({"capacity": None}, None),
    ],
)
def test_charge(tree: Tree, files: dict[str, Any], expected: float | None) -> None:
    """Charge comes from capacity, else from the ratio of energy or charge."""
    tree.battery(**files)
    assert tree.only_supply().read().charge_pct == expected


def test_peripherals_are_left_out_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """A mouse is no meter of the machine by default."""
    assert "hidpp_battery_0" in [
        s["name"] for s in sources(TREES / "laptop", "--peripherals", capsys=capsys)
    ]
    sources(TREES / "laptop", capsys=capsys)
    assert pc.main(["sources", "--root", str(TREES / "laptop")]) == 0
    assert (
        "left out: hidpp_battery_0 (a peripheral's: --peripherals logs it too)"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("kind", ["USB", "USB_PD", "USB_DCP", "Wireless", "Mains"])
def test_supplies_from_outside(tree: Tree, kind: str) -> None:
    """Mains, USB and Wireless are main meters, whose last current does not outlive the plug."""
    tree.supply("usb", type=kind, online=2, voltage_now=5_000_000, current_now=-1_500_000)
    source = tree.only_supply()
    sample = source.read()
    assert (source.kind, sample.wattage, sample.mains, sample.status) == (
        MeterType.MAIN,
        7.5,
        True,
        "Online",
    )
    tree.supply("usb", online=0)
    sample = source.read()
    assert (sample.wattage, sample.current_draw, sample.mains, sample.status) == (
        0.0,
        0.0,
        False,
        "Offline",
    )


@pytest.mark.parametrize(
    ("name", "usb_type"),
    [
        ("ucsi-source-psy-USBC000:001", None),
        ("tcpm-source-psy-2-0022", None),
        ("tcpm-source-psy-2-0022", "[C] PD PD_PPS"),
        ("tps6598x-source-psy-0-0020", "C [PD]"),
        ("port0", "[C] PD PD_PPS PD_PPS_SPR_AVS"),
        ("port0", "Unknown C [PD_DRP]"),
    ],
)
def test_what_was_agreed_with_a_charger_is_not_measured(
    tree: Tree, name: str, usb_type: str | None
) -> None:
    """A Type-C port's supply says whether it is online, and no watts, whatever driver it is of."""
    files = {"online": 1, "voltage_now": 9_000_000, "current_now": 3_000_000, "usb_type": usb_type}
    tree.supply(name, type="USB", **files)
    sample = tree.only_supply().read()
    assert (sample.voltage, sample.current_draw, sample.wattage) == (None, None, None)
    assert (sample.status, sample.mains) == ("Online", True)


def test_a_supply_beside_a_type_c_port_is_a_contract(tree: Tree) -> None:
    """The device that registers the port registers the supply, whatever it calls it."""
    place = tree.supply("any", type="USB", online=1, voltage_now=5_000_000, current_now=500_000)
    (tree.root / "devices/2-0022/typec/port0").mkdir(parents=True)
    (place / "device").symlink_to(tree.root / "devices/2-0022")
    assert tree.only_supply().read().wattage is None


@pytest.mark.parametrize("usb_type", [None, "[SDP] DCP CDP", "SDP DCP CDP [C] PD", "[Unknown]"])
def test_a_charger_that_measures_is_no_contract(tree: Tree, usb_type: str | None) -> None:
    """A charger that detects the older kinds of charger has a converter of its own."""
    files = {"online": 1, "voltage_now": 5_000_000, "current_now": 2_000_000, "usb_type": usb_type}
    tree.supply("axp20x-usb", type="USB", **files)
    assert tree.only_supply().read().wattage == 10.0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"power_now": 0, "current_now": 1_200_000, "voltage_now": 3_800_000}, (1.2, 4.56)),
        ({"power_now": 4_560_000, "current_now": 0, "voltage_now": 3_800_000}, (1.2, 4.56)),
        ({"power_now": 0, "current_now": 0}, (0.0, 0.0)),
        ({"power_now": 0, "current_now": None}, (0.0, 0.0)),
        ({"power_now": 0, "status": "Full"}, (0.0, 0.0)),
        ({"power_now": 0, "status": "Charging"}, (-1.0, -10.0)),
    ],
)
def test_a_zero_gives_way_to_a_file_that_contradicts_it(
    tree: Tree, files: dict[str, Any], expected: tuple[float, float]
) -> None:
    """A power_now or current_now that a driver never fills is not 0 W."""
    tree.battery(**files)
    sample = tree.only_supply().read()
    assert (sample.current_draw, sample.wattage) == pytest.approx(expected)


def test_power_of_0_beside_a_current_is_stored_as_what_flows(tree: Tree, db: Path) -> None:
    """The file has the watts that volts and amperes make."""
    tree.battery(power_now=0, current_now=1_200_000, voltage_now=3_800_000)
    tree.supply(
        "USB", type="USB", online=1, voltage_now=5_000_000, current_now=900_000, power_now=0
    )
    assert pc.main(["run", "d", "--once", "--root", str(tree.root), "--db", str(db)]) == 0
    with PowerManager(db) as pm:
        watts = {m.name: m.wattage for m in pm.list_meters("d")}
    assert watts == pytest.approx({"BAT0": 4.56, "USB": 4.5})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"capacity": 0, "energy_now": 30_000_000}, 60.0),
        ({"capacity": 0, "energy_now": 0}, 0.0),
        ({"capacity": 0}, 0.0),
        ({"capacity": 0, "charge_now": 1_000_000, "charge_full": 2_000_000}, 50.0),
    ],
)
def test_a_charge_of_0_gives_way_to_what_the_battery_holds(
    tree: Tree, files: dict[str, Any], expected: float
) -> None:
    """A gauge that says 0 % beside 30 of 50 Wh shuts nothing down; one that is empty is empty."""
    tree.battery(**files)
    assert tree.only_supply().read().charge_pct == expected


def test_what_a_battery_says_of_itself(tree: Tree) -> None:
    """Serial number, time left and temperature, each unknown where it is not there or a
    sentinel.
    """
    tree.battery(serial_number=" 4711\x00", time_to_empty_now=3600, temp=312)
    tree.battery("BAT1", time_to_empty_now=3932100, time_to_empty_avg=60, temp=655350)
    tree.battery("BAT2", status="Charging", time_to_empty_now=3600)
    samples = [source.read() for source in pc.Supply.discover(str(tree.root))]
    found = [(s.serial, s.runtime_s, s.temperature_c) for s in samples]
    assert found == [("4711", 3600.0, 31.2), ("", 60.0, None), ("", None, None)]


def test_a_battery_taken_out_has_no_values(tree: Tree) -> None:
    """What a driver goes on saying of an absent battery is not read."""
    tree.battery()
    source = tree.only_supply()
    tree.battery(present=0)
    sample = source.read()
    assert (sample.empty, sample.problem) == (True, "not present")


# --- Rails


def test_parts_of_a_jetsons_total_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """VDD_IN already contains the other rails: they are used only where --map asks."""
    mapped = sources(TREES / "ina3221", "--map", "VDD_SOC=main:SoC", capsys=capsys)
    assert [(row["name"], row["wattage"]) for row in mapped] == [
        ("VDD_IN", 5.998144),
        ("SoC", 1.487104),
    ]


def test_rails_without_a_total_are_all_used(tree: Tree) -> None:
    """Where no rail is the total each one is a meter."""
    for n, label in enumerate(("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), 1):
        tree.hwmon(
            0,
            **{
                "name": "ina3221",
                f"in{n}_label": label,
                f"in{n}_input": 5000,
                f"curr{n}_input": 100 * n,
            },
        )
    assert [(s.name, s.left_out) for s in pc.Rail.discover(str(tree.root))] == [
        ("VDD_GPU_SOC", ""), ("VDD_CPU_CV", ""), ("VIN_SYS_5V0", ""),
    ]  # fmt: skip


def test_a_users_own_monitor_beside_a_jetsons_total_is_used(tree: Tree) -> None:
    """Only the labelled rails of the module are parts of its total."""
    tree.hwmon(0, name="ina3221", in1_label="VDD_IN", in1_input=5000, curr1_input=1000)
    tree.hwmon(1, name="ina219", in1_input=18000, curr1_input=500)
    tree.hwmon(2, name="ina3221", in1_input=12000, curr1_input=500)
    assert [s.left_out for s in pc.Rail.discover(str(tree.root))] == ["", "", ""]


def rails(tree: Tree) -> dict[str, tuple[float | None, str]]:
    """The watts of each rail, and which rail it is a part of ("" for none)."""
    found: dict[str, tuple[float | None, str]] = {}
    for source in pc.Rail.discover(str(tree.root)):
        watts = source.read().wattage
        whole = re.match(r"a part of (.*?):", source.left_out)
        assert source.name not in found
        rounded = None if watts is None else round(watts, 6)
        found[source.name] = rounded, whole.group(1) if whole else ""
    return found


def module(tree: Tree, number: int, *rows: tuple[str, int, int], chip: str = "ina3221") -> None:
    """Write a monitor with these labels, mV and mA; a label of "" has no file."""
    files: dict[str, object] = {"name": chip}
    for n, (label, millivolts, milliamperes) in enumerate(rows, 1):
        files |= {f"in{n}_input": millivolts, f"curr{n}_input": milliamperes}
        files |= {f"in{n}_label": label} if label else {}
    tree.hwmon(number, **files)


def test_an_agx_orins_memory_is_a_part_of_its_5_v(tree: Tree, db: Path) -> None:
    """VDDQ_VDD2_1V8AO is in VIN_SYS_5V0; the three others add up to the module's 9.7 W."""
    gpu, cpu = ("VDD_GPU_SOC", 19000, 200), ("VDD_CPU_CV", 19000, 100)
    module(tree, 1, gpu, cpu, ("VIN_SYS_5V0", 5000, 800))
    module(tree, 2, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 300), ("NC", 0, 0))
    assert rails(tree) == {
        "VDD_GPU_SOC": (3.8, ""),
        "VDD_CPU_CV": (1.9, ""),
        "VIN_SYS_5V0": (4.0, ""),
        "VDDQ_VDD2_1V8AO": (1.5, "VIN_SYS_5V0"),
    }
    assert pc.main(["run", "d", "--once", "--root", str(tree.root), "--db", str(db)]) == 0
    with PowerManager(db) as pm:
        assert sum(meter.wattage or 0.0 for meter in pm.list_meters("d")) == pytest.approx(9.7)


@pytest.mark.parametrize("label", ["VIN", ""])
def test_a_thors_input_contains_its_rails(tree: Tree, label: str) -> None:
    """The INA238 of an AGX Thor measures the whole board, also where it has no label."""
    thor = ("VDD_GPU", 20000, 300), ("VDD_CPU_SOC_MSS", 20000, 325), ("VIN_SYS_5V0", 5000, 1300)
    module(tree, 0, *thor)
    module(tree, 1, (label, 20000, 1150), chip="ina238")
    total = label or "ina238"
    assert rails(tree) == {
        "VDD_GPU": (6.0, total),
        "VDD_CPU_SOC_MSS": (6.5, total),
        "VIN_SYS_5V0": (6.5, total),
        total: (23.0, ""),
    }


@pytest.mark.parametrize("label", ["VIN", ""])
def test_another_ina238_contains_nothing(tree: Tree, label: str) -> None:
    """A user's own monitor on an AGX Orin is no total: only Thor's is."""
    module(tree, 0, ("VDD_GPU_SOC", 19000, 200), ("VDD_CPU_CV", 19000, 1), ("VIN_SYS_5V0", 5000, 1))
    module(tree, 1, (label, 12000, 1000), chip="ina238")
    assert [part for _, part in rails(tree).values()] == ["", "", "", ""]


def test_a_carrier_boards_input_contains_its_module(tree: Tree) -> None:
    """On a TX2's developer kit VDD_MUX contains VDD_IN and what that contains; one total is
    used.
    """
    module(tree, 0, ("VDD_SYS_GPU", 19000, 10), ("VDD_SYS_SOC", 19000, 10))
    module(tree, 1, ("VDD_IN", 19000, 200), ("VDD_SYS_CPU", 19000, 10))
    module(tree, 2, ("VDD_MUX", 19000, 300), ("VDD_5V0_IO_SYS", 5000, 10))
    assert [name for name, (_, part) in rails(tree).items() if not part] == ["VDD_MUX"]


def test_an_agx_xaviers_rails_add_up(tree: Tree) -> None:
    """None of its six is a part of another."""
    module(tree, 0, ("GPU", 19000, 10), ("CPU", 19000, 10), ("SOC", 19000, 10))
    module(tree, 1, ("CV", 19000, 10), ("VDDRQ", 19000, 10), ("SYS5V", 5000, 10))
    assert [part for _, part in rails(tree).values()] == [""] * 6


def test_a_jetson_on_jetpack_4(tree: Tree, db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its driver shows the rails in iio, in mV, mA and mW; the parts of the total are left out."""
    device = tree.root / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    rows = (
        ("POM_5V_IN", 5080, 400, 2032),
        ("POM_5V_GPU", 5080, 8, 40),
        ("POM_5V_CPU", 5072, 80, 405),
    )
    for n, (label, millivolts, milliamperes, milliwatts) in enumerate(rows):
        files = {f"rail_name_{n}": label, f"in_voltage{n}_input": millivolts}
        files |= {f"in_current{n}_input": milliamperes, f"in_power{n}_input": milliwatts}
        Tree._write(device, files)
    (row,) = sources(tree.root, capsys=capsys)
    assert (row["name"], row["voltage"], row["current"]) == ("POM_5V_IN", 5.08, 0.4)
    assert row["wattage"] == 2.032
    assert list(rails(tree).values())[1:] == [(0.04064, "POM_5V_IN"), (0.40576, "POM_5V_IN")]
    assert pc.main(["run", "d", "--once", "--root", str(tree.root), "--db", str(db)]) == 0
    with PowerManager(db) as pm:
        assert [(m.name, m.wattage) for m in pm.list_meters("d")] == [("POM_5V_IN", 2.032)]


def test_one_device_at_two_paths_is_one(tree: Tree) -> None:
    """A driver's directory and iio's lead to the same device; its bus address is its name's."""
    device = tree.root / "sys/devices/i2c-1/1-0041/iio:device0"
    Tree._write(device, {"name": "ina3221x", "in_voltage0_input": 5000, "in_current0_input": 100})
    for place in ("sys/bus/iio/devices", "sys/bus/i2c/drivers/ina3221x"):
        (tree.root / place).mkdir(parents=True)
    (tree.root / "sys/bus/iio/devices/iio:device0").symlink_to(device)
    (tree.root / "sys/bus/i2c/drivers/ina3221x/1-0041").symlink_to(device.parent)
    assert rails(tree) == {"ina3221x 1-0041": (0.5, "")}


def test_other_monitors_in_iio(tree: Tree) -> None:
    """Raw values are worked out by scale and offset; an INA2xx numbers its channels through."""
    ina = {"in_voltage0_raw": 80, "in_voltage0_scale": "0.010000000"}
    ina |= {"in_voltage1_raw": 3040, "in_voltage1_scale": "4.000000000"}
    ina |= {"in_power2_raw": 999, "in_power2_scale": "20.0"}
    ina |= {"in_current3_raw": -1500, "in_current3_scale": "1.000000000"}
    tree.iio(0, name="ina219", **ina)
    pac = {"in_voltage1_raw": 10000, "in_voltage1_scale": 0.5, "in_voltage1_label": "PANEL"}
    pac |= {"in_current1_raw": 900, "in_current_scale": 2, "in_current_offset": 100}
    pac |= {
        "in_voltage2_raw": 1,
        "in_voltage3_raw": 1,
        "in_current3_raw": 1,
        "in_voltage3_label": "NC",
    }
    tree.iio(1, name="pac1934", **pac)
    tree.iio(2, name="axp20x-adc", in_voltage0_raw=5000, in_current0_raw=1000)
    assert rails(tree) == {"ina219": (-18.24, ""), "PANEL": (10.0, "")}


def test_an_iio_monitor_that_cannot_be_read_costs_its_values(tree: Tree) -> None:
    """Unreadable amperes are unknown, and so are watts that nothing else gives."""
    place = tree.iio(0, name="ina226", in_voltage1_input=5000, in_current3_input=100)
    (place / "in_current3_input").write_text("")
    sample = tree.only_rail().read()
    assert (sample.voltage, sample.current_draw, sample.wattage) == (5.0, None, None)


def test_a_rail_without_amperes_of_its_own_has_the_chips_watts(tree: Tree) -> None:
    """A current of 0 beside real watts is not 0 W."""
    tree.hwmon(0, name="ina260", in1_input=5000, curr1_input=0, power1_input=2_000_000)
    sample = tree.only_rail().read()
    assert (sample.current_draw, sample.wattage) == (0.4, 2.0)


def test_map_gives_type_name_and_sign(capsys: pytest.CaptureFixture[str]) -> None:
    """--map makes a rail a panel or a battery, also one that is wired the other way round."""
    arguments = ["--map", "ina219=-battery:UPS HAT", "--map", "Panel=solar"]
    rows = sources(TREES / "ina219", *arguments, capsys=capsys)
    found = [(row["name"], row["type"], row["current"]) for row in rows]
    assert found == [("UPS HAT", "battery", 0.04), ("Panel", "solar", 1.5)]


@pytest.mark.parametrize("text", ["VDD_IN", "VDD_IN=", "VDD_IN=water", "=main", "VDD_IN=--main"])
def test_map_refuses_what_it_cannot_read(text: str) -> None:
    """A wrong --map is a usage error."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected RAIL=TYPE"):
        pc._mapping(text)


def test_map_of_a_nut_address() -> None:
    """A source whose name has colons can be mapped, to a name that has any sign."""
    assert pc._mapping("ups@[::1]:3493=ups:a=b:c") == (
        "ups@[::1]:3493",
        pc.Mapping(MeterType.UPS, "a=b:c", False),
    )


def test_meters_keep_their_names_when_hwmon_numbers_change(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """After a boot in another order every rail goes on in its own meter."""
    for place, bus in ((1, "1-0040"), (2, "1-0041")):
        (tree.root / "devices" / bus).mkdir(parents=True)
        chip = tree.hwmon(place, name="ina219", in1_input=place * 1000, curr1_input=1000)
        (chip / "device").symlink_to(tree.root / "devices" / bus)
    first = machine()
    first.tick()
    hwmon = tree.root / "sys/class/hwmon"
    (hwmon / "hwmon1").rename(hwmon / "hwmon7")
    second = machine()
    second.time.pass_(60)
    second.tick()
    for name, volts in (("ina219 1-0040", 1.0), ("ina219 1-0041", 2.0)):
        assert [reading.voltage for reading in first.readings(name)] == [volts, volts]


def test_two_sources_of_one_name_are_two_meters(tree: Tree) -> None:
    """The chip's address tells them apart, else a number."""
    for number in (1, 2, 3, 4):
        chip = tree.hwmon(
            number, name="ina226", in1_label="Panel", in1_input=18000, curr1_input=1000
        )
        if number < 3:
            (tree.root / "devices" / f"1-004{number}").mkdir(parents=True)
            (chip / "device").symlink_to(tree.root / "devices" / f"1-004{number}")
    names = [source.name for source in pc.discover(str(tree.root))]
    assert names == ["Panel 1-0041", "Panel 1-0042", "Panel", "Panel 2"]


def test_power_alone_gives_the_current_of_a_rail(tree: Tree) -> None:
    """Without currN_input the chip's own watts are used."""
    tree.hwmon(0, name="ina260", in1_input=5000, power1_input=2_000_000)
    sample = tree.only_rail().read()
    assert (sample.voltage, sample.current_draw, sample.wattage) == (5.0, 0.4, 2.0)


# --- NUT


class Upsd:
    """A upsd on loopback; `variables` is what it tells, `reply` replaces that, None hangs up."""

    def __init__(self, text: str = "") -> None:
        self.variables: dict[str, str] = {}
        self.others: dict[str, dict[str, str]] = {}
        self.reply: bytes | None = b""
        self.login: tuple[str, str] | None = None  # asked for before anything is told
        self.tls: ssl.SSLContext | None = (
            None  # with it STARTTLS works, and is asked for before all else
        )
        self.after_tls = b""  # sent in plain text behind the answer to STARTTLS
        self.commands: list[str] = []
        self.asked = self.connected = 0
        self.update(text)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.address = f"ups@{self.host}"
        self._peers: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def update(self, text: str) -> None:
        """Set variables from lines of a NUT dump."""
        for line in text.splitlines():
            if ": " in line and not line.startswith("#"):
                name, _, value = line.partition(": ")
                self.variables[name] = value

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            self.connected += 1
            self._peers.append(peer)
            self._threads.append(threading.Thread(target=self._speak, args=[peer]))
            self._threads[-1].start()

    def _speak(self, peer: socket.socket) -> None:
        told: list[str] = []
        with contextlib.suppress(OSError):
            while line := self._line(peer):
                self.commands.append(line)
                answer = self._answer(line, told, isinstance(peer, ssl.SSLSocket))
                if answer is None:
                    break
                peer.sendall(answer)
                if line == "STARTTLS" and self.tls:
                    peer = self.tls.wrap_socket(peer, server_side=True)
                    self._peers.append(peer)
        peer.close()

    @staticmethod
    def _line(peer: socket.socket) -> str:
        """One line without its end; "" where there is none to come."""
        line = b""
        while not line.endswith(b"\n"):
            byte = peer.recv(1)
            if not byte:
                return ""
            line += byte
        return line.decode().strip()

    def _answer(self, line: str, told: list[str], is_encrypted: bool) -> bytes | None:
        # As NUT's own parser, which does not take a bare # even in quotes.
        assert not re.search(r"(?<!\\)#", line), line
        words = shlex.split(line.replace("\\#", "#"))
        verb = words[0]
        if verb == "STARTTLS":
            return (
                b"OK STARTTLS\n" + self.after_tls if self.tls else b"ERR FEATURE-NOT-CONFIGURED\n"
            )
        if self.tls and not is_encrypted:
            return b"ERR ACCESS-DENIED\n"
        if verb in ("USERNAME", "PASSWORD"):
            _, value = words
            told.append(value)
            is_wrong = self.login is not None and len(told) == 2 and tuple(told) != self.login
            return b"ERR ACCESS-DENIED\n" if is_wrong else b"OK\n"
        if self.login is not None and tuple(told) != self.login:
            return b"ERR USERNAME-REQUIRED\n"
        self.asked += 1
        if self.reply is None:
            return None
        return self.reply or self._list(words).encode("latin-1")

    def _list(self, words: list[str]) -> str:
        upses = {"ups": self.variables} | self.others
        if words[:2] == ["LIST", "UPS"]:
            rows = [f'UPS {name} "One of \\"ours\\""\n' for name in upses]
        elif words[:2] == ["LIST", "VAR"] and words[2] in upses:
            _, _, ups = words
            rows = [f'VAR {ups} {name} "{value}"\n' for name, value in upses[ups].items()]
        else:
            return "ERR UNKNOWN-UPS\n"
        what = " ".join(words[1:])
        return f"BEGIN LIST {what}\n{''.join(rows)}END LIST {what}\n"

    def close(self) -> None:
        """Hang up on everybody."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._threads[0].join(5)
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(5)


@pytest.fixture
def upsd() -> Iterator[Upsd]:
    """A fake upsd."""
    server = Upsd()
    yield server
    server.close()


@pytest.fixture
def nut(upsd: Upsd) -> Iterator[pc.Nut]:
    """A source that reads the fake upsd."""
    client = pc.Upsd(upsd.host, time.monotonic)
    yield pc.Nut("ups", client)
    client.close()


def test_nut_variables(upsd: Upsd, nut: pc.Nut) -> None:
    """Volts and charge are the battery's, watts the load's."""
    upsd.update(
        "battery.voltage: 24.0\nbattery.charge: 97\nups.realpower: 48\nups.status: OL CHRG\n"
        'x: \\"\\\\\xff'
    )
    sample = nut.read()
    assert (sample.voltage, sample.current_draw, sample.wattage) == (24.0, 2.0, 48.0)
    assert (sample.charge_pct, sample.status) == (97.0, "OL CHRG")
    assert (sample.mains, sample.direction) == (True, pc.CHARGING)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ups.load: 20\nups.realpower.nominal: 300", 60.0),
        ("ups.load: 20\nups.power.nominal: 300", None),
        ("ups.realpower: 65535\nups.load: 10\nups.realpower.nominal: 300", 30.0),
        ("battery.voltage: 12\nbattery.current: -2\nups.status: OB", 24.0),
        ("battery.voltage: 12\nbattery.current: 2\nups.status: OL CHRG", -24.0),
        ("battery.voltage: 655.290\nbattery.current: 2", None),
        ("battery.voltage: 0\nups.realpower: 5", 5.0),
    ],
)
def test_nut_watts(upsd: Upsd, nut: pc.Nut, text: str, expected: float | None) -> None:
    """Real power, else load by nominal real power, else what the battery gives or takes."""
    upsd.update(text)
    assert nut.read().wattage == expected


@pytest.mark.parametrize(
    ("status", "direction", "mains"),
    [
        ("OL", 0, True),
        ("OL CHRG", -1, True),
        ("OB", 1, False),
        ("OB DISCHRG", 1, False),
        ("OB CHRG", 1, False),
        ("OL DISCHRG", 0, True),
        ("OL CHRG DISCHRG", 0, True),
        ("DISCHRG", 1, None),
        ("CHRG", -1, None),
        ("OL OB", 1, False),
        ("HB OL", 0, True),
        ("CHRG DISCHRG", None, None),
        ("WAIT", None, None),
        ("", None, None),
    ],
)
def test_nut_status(status: str, direction: int | None, mains: bool | None) -> None:
    """On battery it discharges whatever else it says; on mains only CHRG alone is charging."""
    sample = pc.Nut.sample({"ups.status": status})
    assert (sample.direction, sample.mains, sample.status) == (direction, mains, status or None)


HAT = """# one cell that rests on mains, as `upsc` lists it
battery.capacity: 2.300
battery.charge: 88.5
battery.charge.low: 25
battery.charger.status: resting
battery.current: 0.012
battery.packs: 1
battery.temperature: 46
battery.type: LiPO
battery.voltage: 4.052
battery.voltage.nominal: 3.700
device.mfr: Own Make
device.type: HAT
input.current: 1.633
input.voltage: 5.020
ups.firmware: 1.4
ups.status: HB OL
"""
LINE_INTERACTIVE = """# a desktop UPS that calls its trickle a discharge
battery.charge: 100
battery.charge.low: 10
battery.runtime: 3180
battery.type: PbAc
battery.voltage: 13.6
battery.voltage.nominal: 12.0
device.mfr: Own Make
device.model: OM 650
input.transfer.high: 278
input.transfer.low: 160
input.voltage: 231.0
ups.load: 6
ups.realpower.nominal: 300
ups.status: OL DISCHRG
"""


@pytest.mark.parametrize(
    ("dump", "expected"),
    [
        (HAT, (4.052, 0.0, 88.5, 8.51, "HB OL")),
        (LINE_INTERACTIVE, (13.6, 18.0, 100.0, None, "OL DISCHRG")),
    ],
    ids=["HAT", "line interactive"],
)
def test_dumps_of_whole_upses(
    upsd: Upsd, nut: pc.Nut, dump: str, expected: tuple[Any, ...]
) -> None:
    """All that a UPS says is read as what it is."""
    upsd.update(dump)
    sample = nut.read()
    capacity = None if sample.capacity_wh is None else round(sample.capacity_wh, 4)
    assert (sample.voltage, sample.wattage, sample.charge_pct, capacity, sample.status) == expected


@pytest.mark.parametrize(
    "address",
    [
        "",
        "@host",
        "ups@",
        "ups@h:0",
        "ups@h:70000",
        "a b@c",
        'u"@h',
        "ups@h:x",
        "a@b@c",
        "h:",
        "a b",
    ],
)
def test_nut_addresses_that_are_none(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong --nut is a usage error."""
    with pytest.raises(SystemExit):
        pc.main(["sources", "--nut", address])
    assert "expected [UPS@]HOST[:PORT]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("u@h", ("h", 3493)),
        ("h", ("h", 3493)),
        ("u@h:1", ("h", 1)),
        ("u@[::1]:9", ("::1", 9)),
        ("[::1]", ("::1", 3493)),
    ],
)
def test_nut_addresses(address: str, peer: tuple[str, int]) -> None:
    """The port has NUT's default, and IPv6 its brackets."""
    (feed,) = pc.open_feeds(pc.Options("", "", nut=[address]), time.monotonic)
    assert isinstance(feed, pc.Upsd)
    assert (feed._server.host, feed._server.port) == peer
    assert (feed.names, feed.asks_for_all) == ((["u"], False) if "@" in address else ([], True))


def test_stale_data_is_no_data(upsd: Upsd, nut: pc.Nut) -> None:
    """What upsd itself calls stale is not stored, and the connection stays."""
    upsd.reply = b"ERR DATA-STALE\n"
    assert (nut.read().empty, nut.read().problem) == (True, "upsd says ERR DATA-STALE")
    upsd.reply = b""
    upsd.update("ups.status: OL")
    assert (nut.read().status, upsd.connected) == ("OL", 1)


def test_a_upsd_that_restarts_is_read_on(upsd: Upsd, nut: pc.Nut) -> None:
    """A broken connection is made again within the same look."""
    upsd.update("ups.status: OL")
    assert nut.read().status == "OL"
    upsd._peers[0].shutdown(socket.SHUT_RDWR)
    assert (nut.read().status, upsd.connected) == ("OL", 2)


def test_a_upsd_that_is_gone_is_left_alone_for_a_while(upsd: Upsd) -> None:
    """One that cannot be reached costs one attempt in ten seconds, and is used again when it is
    back.
    """
    time_ = Time()
    client = pc.Upsd(upsd.host, time_.clocks.boot)
    source = pc.Nut("ups", client)
    upsd.reply = None
    # In the same words, so that it is said once in the log.
    for _ in range(3):
        assert source.read().problem == "upsd cannot be reached: it closed the connection"
    assert upsd.asked == 1
    upsd.reply = b""
    upsd.update("ups.status: OL")
    time_.pass_(pc.NUT_RETRY)
    assert source.read().status == "OL"
    client.close()


def test_a_upsd_that_is_gone_is_asked_again_however_often_one_looks(upsd: Upsd) -> None:
    """A look while it is left alone does not put the next attempt off."""
    time_ = Time()
    source = pc.Nut("ups", pc.Upsd(upsd.host, time_.clocks.boot))
    upsd.reply = None
    for _ in range(6):  # at 0, 4, ... 20 s
        source.read()
        time_.pass_(4)
    assert upsd.asked == 2  # at 0 and 12 s


def test_an_answer_without_end_is_cut_off(
    upsd: Upsd, nut: pc.Nut, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither endless nor unfinished answers stop the run."""
    monkeypatch.setattr(pc, "_NUT_SIZE", 100)
    monkeypatch.setattr(pc, "NUT_RETRY", 0.0)
    upsd.reply = b"VAR ups x\n" * 50
    assert "its answer has no end" in nut.read().problem
    monkeypatch.setattr(pc, "NUT_LIMIT", 0.05)
    upsd.reply = b"BEGIN"
    assert "timed out" in nut.read().problem


def test_nonsense_from_upsd_is_no_values(upsd: Upsd, nut: pc.Nut) -> None:
    """Lines that are no variables are passed over."""
    upsd.reply = b"\xff\xfe\nVAR ups\nVAR ups battery.charge 5\nEND LIST VAR ups\n"
    assert nut.read().problem == "no values"


SCRIPT = [
    (60, "battery.charge: 90\nbattery.voltage: 24.0\nups.realpower: 48\nups.status: OL CHRG"),
    (60, "ups.status: OB DISCHRG"),
    (60, "battery.charge: 18\nups.status: OB DISCHRG"),
    (60, "battery.charge: 4\nups.status: OB LB DISCHRG"),
    (60, "battery.charge: 9\nups.status: OL CHRG"),
]


def replay(
    upsd: Upsd, script: list[tuple[int, str]], db: Path, *arguments: str
) -> list[tuple[str, float]]:
    """Run a collector over a script of (seconds, variables), every 5 s; return the events."""
    starts = {}
    at = 0
    for seconds, text in script:
        starts[at // 5] = text
        at += seconds
    upsd.update(starts[0])
    time_ = Time(at // 5, then=lambda tick: upsd.update(starts.get(tick, "")))
    command = [
        "run",
        "dev",
        "--root",
        str(TREES / "absent"),
        "--db",
        str(db),
        "--nut",
        upsd.address,
        *arguments,
    ]
    assert pc.main(command, time_.clocks) == 0
    with PowerManager(db) as pm:
        assert pm.check() == []
        return [(event.type.value, event.value) for _, event in pm.events_since(0)]


def test_a_power_failure_by_nut(upsd: Upsd, db: Path) -> None:
    """A failure, its alerts and its end are each told once, in their order."""
    expected = [("discharge", 18.0), ("low_battery", 4.0), ("charge_start", 9.0), ("restore", 9.0)]
    assert replay(upsd, SCRIPT, db) == expected


def test_a_failure_whose_charge_is_never_low(upsd: Upsd, db: Path, tmp_path: Path) -> None:
    """A UPS that says LB at 85 % and is back on mains tells one story, to the file and to
    --exec.
    """
    script = [
        (300, "battery.charge: 85\nbattery.voltage: 54.0\nups.load: 25\nups.status: OL CHRG"),
        (300, "ups.status: OB DISCHRG"),
        (60, "ups.status: OB LB DISCHRG"),
        (30, "ups.status: OL CHRG"),
    ]
    told = tmp_path / "told"
    arguments = ["--exec", shlex.join(recorder(told))]
    assert replay(upsd, script, db, *arguments) == [("charge_start", 85.0), ("restore", 85.0)]
    assert lines(told) == [f"charge_start dev 85 {upsd.address}", f"restore dev 85 {upsd.address}"]


def test_a_ups_that_measures_nothing_but_its_charge(upsd: Upsd, db: Path) -> None:
    """Its watts are unknown: neither 0 W in energy and statistics nor a reason for alarm in the
    budget.
    """
    assert replay(upsd, [(600, "battery.charge: 70\nups.load: 25\nups.status: OL")], db) == []
    with PowerManager(db, clock=lambda: NOON + 600) as pm:
        (meter,) = pm.list_meters("dev")
        assert (meter.power_known, meter.charge_pct) == (False, 70.0)
        (reading, *_) = pm.iter_history(meter.id)
        assert (reading.voltage, reading.current_draw, reading.wattage) == (None, None, None)
        (hour, *_) = pm.get_statistics(meter.id, days=1)
        assert (hour.avg_wattage, hour.min_wattage, hour.max_wattage) == (None, None, None)
        assert (hour.reading_count, hour.energy_out_wh) == (120, 0.0)
        budget = pm.power_budget_check(["dev"])["dev"]
        assert (budget["unknown_power_count"], budget["below_shutdown_threshold"]) == (1, False)


def test_low_battery_by_the_ups_itself_shuts_down(upsd: Upsd, db: Path, tmp_path: Path) -> None:
    """LB on battery is critical whatever the charge is."""
    script = [
        (10, "battery.charge: 90\nups.status: OL"),
        (10, "ups.status: OB"),
        (60, "ups.status: OB LB"),
    ]
    command = " ".join([sys.executable, "-c", f"\"open('{tmp_path}/off', 'a').write('x')\""])
    assert replay(upsd, script, db, "--shutdown-command", command) == [("shutdown", 90.0)]
    assert lines(tmp_path / "off") == ["x"]


def variables(text: str) -> dict[str, str]:
    """Variables from words such as ups.load=20."""
    return dict(word.split("=", 1) for word in text.split())


@pytest.mark.parametrize(
    ("text", "watts"),
    [
        ("output.realpower=150 ups.load=18", 150.0),
        ("ups.realpower=140 output.realpower=150", 140.0),
        ("ups.L1.realpower=100 ups.L2.realpower=110 ups.L3.realpower=120", 330.0),
        ("output.L1.realpower=100 output.L2.realpower=110 output.L3.realpower=0", 210.0),
        ("output.L1.realpower=100 output.L2.realpower=65535 output.L3.realpower=120", None),
        ("output.L1.realpower=100 output.L2.current=1 output.L3.realpower=120", None),
        ("output.L1.realpower=100", 100.0),
        ("ups.power=200 output.powerfactor=0.9", 180.0),
        ("output.power=200 output.powerfactor=0.9", 180.0),
        ("ups.L1.power=100 ups.L2.power=100 ups.L3.power=200 output.powerfactor=0.5", 200.0),
        ("ups.load=50 ups.power.nominal=1000 output.powerfactor=0.8", 400.0),
        ("ups.power=200", None),
        ("ups.power=200 output.powerfactor=90", None),
        ("ups.power=200 output.powerfactor=0", None),
        ("ups.power=200 ups.load=20 ups.realpower.nominal=900", 180.0),
        (
            """output.L1.power.percent=10 output.L2.power.percent=20 output.L3.power.percent=30
            ups.realpower.nominal=9000""",
            1800.0,
        ),
        ("ups.realpower=0 ups.load=18 ups.realpower.nominal=300", 54.0),
        ("ups.realpower=0 ups.load=18", None),
        ("ups.realpower=0 ups.power=120", None),
        ("ups.realpower=0 ups.load=0", 0.0),
        ("ups.realpower=0", 0.0),
        ("ups.realpower=-5 ups.load=10 ups.realpower.nominal=300", 30.0),
        ("ups.load=18", None),
        ("ups.load=180 ups.realpower.nominal=300", 540.0),
        ("input.realpower=300", None),
    ],
)
def test_watts_of_a_ups(text: str, watts: float | None) -> None:
    """Watts are what the load takes, from what says it best; volt-amperes are none, and unknown is
    not 0.
    """
    sample = pc.Nut.sample(variables(text) | {"output.voltage": "230"})
    assert sample.wattage == (None if watts is None else pytest.approx(watts))
    assert sample.current_draw == (None if watts is None else pytest.approx(watts / 230))


@pytest.mark.parametrize(
    ("text", "volts"),
    [
        ("battery.voltage=27 output.voltage=231", 27.0),
        ("output.voltage=231 input.voltage=229", 231.0),
        ("output.L1-N.voltage=231 input.voltage=229", 231.0),
        ("output.voltage=0 input.voltage=229", 229.0),
        ("output.voltage=0.4 input.voltage=1.2 output.voltage.nominal=230", 230.0),
        ("input.voltage.nominal=120 battery.voltage.nominal=24", 120.0),
        ("battery.voltage.nominal=24", 24.0),
        ("", None),
    ],
)
def test_volts_that_watts_are_kept_at(text: str, volts: float | None) -> None:
    """The battery's, else the output's, the input's, a nominal one: volts x amperes are the
    watts.
    """
    sample = pc.Nut.sample(variables(text + " ups.realpower=140"))
    assert (sample.wattage, sample.voltage) == (140.0, volts)
    assert sample.current_draw == (None if volts is None else 140 / volts)


def test_output_volts_without_watts_are_not_the_meters() -> None:
    """A meter that has nothing but the output's volts has no volts: they are not its battery's."""
    sample = pc.Nut.sample(variables("output.voltage=231 battery.charge=90"))
    assert (sample.voltage, sample.current_draw, sample.wattage) == (None, None, None)


@pytest.mark.parametrize("charge", ["battery.charge: 100\n", ""])
def test_watts_of_a_ups_without_battery_volts_are_stored(
    upsd: Upsd, db: Path, charge: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `sources` shows is what the file has, also of a UPS that knows no charge."""
    upsd.update(charge + "ups.status: OL\nups.realpower: 140\nups.load: 18\noutput.voltage: 231.0")
    (row,) = sources(TREES / "absent", "--nut", upsd.address, capsys=capsys)
    assert row["wattage"] == 140.0
    arguments = ["--once", "--root", str(TREES / "absent"), "--nut", upsd.address, "--db", str(db)]
    assert pc.main(["run", "d", *arguments]) == 0
    with PowerManager(db) as pm:
        (meter,) = pm.list_meters("d")
        assert meter.wattage == pytest.approx(140.0, abs=1e-3)
        assert (meter.voltage, meter.power_known) == (231.0, True)


def test_what_a_ups_says_beside_its_watts(upsd: Upsd, capsys: pytest.CaptureFixture[str]) -> None:
    """Time left, temperature, serial number, and in its status that it is overloaded or wants a
    battery.
    """
    upsd.update("ups.status: OL OVER RB\nbattery.runtime: 1200\nups.temperature: 31.5")
    upsd.update("device.serial: AB12\nbattery.charge: 70")
    arguments = ["sources", "--root", str(TREES / "absent"), "--nut", upsd.address]
    assert pc.main(arguments) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[-4:] == ["status", "left", "°C", "serial"]
    assert re.split(r"\s{2,}", line)[-4:] == ["OL OVER RB", "20 min", "31.5", "AB12"]
    sample = pc.Nut.sample(upsd.variables)
    assert sample.tokens == {"OL", "OVER", "RB"}


def test_all_upses_of_a_upsd(upsd: Upsd, db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A host alone means every UPS there, over one connection; one that comes later is found."""
    upsd.update("ups.status: OL\nbattery.charge: 90")
    upsd.others = {"rack": {"ups.status": "OB", "battery.charge": "40"}}
    rows = sources(TREES / "absent", "--nut", upsd.host, "--nut", upsd.address, capsys=capsys)
    found = [(row["name"], row["charge_pct"], row["status"]) for row in rows]
    assert found == [(upsd.address, 90.0, "OL"), (f"rack@{upsd.host}", 40.0, "OB")]
    assert upsd.connected == 1
    late = {"late": {"battery.charge": "10"}}
    time_ = Time(20, then=lambda _: upsd.others.update(late))
    arguments = ["--root", str(TREES / "absent"), "--db", str(db), "--nut", upsd.host]
    assert pc.main(["run", "d", *arguments], time_.clocks) == 0
    with PowerManager(db) as pm:
        names = {meter.name for meter in pm.list_meters("d")}
    assert names == {f"{ups}@{upsd.host}" for ups in ("ups", "rack", "late")}


def test_a_upsd_that_has_never_answered_is_one_source_that_says_so(
    upsd: Upsd, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which UPSes it has is not known then; one that fails later keeps those it had."""
    client = pc.Upsd(upsd.host, time.monotonic)
    client.asks_for_all = True
    assert [source.name for source in client.sources()] == [upsd.address]
    upsd.close()
    assert [source.name for source in client.sources()] == [upsd.address]
    client.close()
    assert pc.main(["sources", "--root", str(TREES / "absent"), "--nut", upsd.host]) == 0
    assert f"{upsd.host}: upsd cannot be reached: Connection refused\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (b"ERR ACCESS-DENIED\n", "upsd says ERR ACCESS-DENIED"),
        (b"BEGIN LIST UPS\nEND LIST UPS\n", "upsd has no UPS"),
    ],
)
def test_a_upsd_without_a_list(upsd: Upsd, reply: bytes, problem: str) -> None:
    """One that refuses the list or has nothing to list says so."""
    upsd.reply = reply
    client = pc.Upsd(upsd.host, time.monotonic)
    client.asks_for_all = True
    (source,) = client.sources()
    assert source.read().problem == problem
    client.close()


SECRET = 'p"a\\s s'


@pytest.fixture
def login(tmp_path: Path) -> Path:
    """A file of logins in netrc's form."""
    path = tmp_path / "nut-login"
    path.write_text("machine 127.0.0.1 login monitor password s3cr#t\n")
    path.chmod(0o600)
    return path


def test_a_upsd_that_asks_who_is_there(
    upsd: Upsd, login: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """User and password come from a file, and are said once for each connection; LOGIN never is."""
    upsd.update("battery.charge: 50")
    upsd.login = ("monitor", "s3cr#t")
    arguments = ["--nut", upsd.host, "--nut-login", str(login)]
    (row,) = sources(TREES / "absent", *arguments, capsys=capsys)
    assert row["charge_pct"] == 50.0
    verbs = [command.split()[0] for command in upsd.commands]
    assert verbs == ["USERNAME", "PASSWORD", "LIST", "LIST"]


def test_a_login_by_the_environment(
    upsd: Upsd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a file, or where it does not name the host, the environment says it; no command
    inherits that.
    """
    monkeypatch.setenv(pc.NUT_USERNAME, "monitor")
    monkeypatch.setenv(pc.NUT_PASSWORD, SECRET)
    upsd.update("battery.charge: 50")
    upsd.login = ("monitor", SECRET)
    (row,) = sources(TREES / "absent", "--nut", upsd.address, capsys=capsys)
    assert row["charge_pct"] == 50.0
    assert not {pc.NUT_USERNAME, pc.NUT_PASSWORD} & set(pc._child_environment())


def test_a_wrong_password_is_said_and_not_tried_all_the_time(
    upsd: Upsd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused login waits as an unreachable upsd does."""
    monkeypatch.setenv(pc.NUT_USERNAME, "monitor")
    monkeypatch.setenv(pc.NUT_PASSWORD, "wrong")
    upsd.login = ("monitor", "right")
    client = pc.Upsd(upsd.host, Time().clocks.boot)
    source = pc.Nut("ups", client)
    problem = "upsd cannot be reached: it answers PASSWORD by ERR ACCESS-DENIED"
    assert [source.read().problem, source.read().problem] == [problem, problem]
    assert upsd.connected == 1


def test_a_password_cannot_smuggle_a_command(upsd: Upsd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line end in it is refused."""
    monkeypatch.setenv(pc.NUT_USERNAME, "monitor")
    monkeypatch.setenv(pc.NUT_PASSWORD, 'x"\nFSD ups')
    source = pc.Nut("ups", pc.Upsd(upsd.host, time.monotonic))
    assert "control character" in source.read().problem
    assert [command.split()[0] for command in upsd.commands] == ["USERNAME"]


@pytest.mark.parametrize(
    ("word", "sent"),
    [
        ("secret-1.x", "secret-1.x"),
        ("a b", '"a b"'),
        ("a#b", '"a\\#b"'),
        ('a"\\b', '"a\\"\\\\b"'),
        ("", '""'),
    ],
)
def test_words_are_quoted_where_they_have_to_be(word: str, sent: str) -> None:
    """As NUT's parser has it: a `#` would begin a comment there, also in quotes."""
    assert pc.Upsd._quoted(word) == sent


def test_a_file_of_logins_that_others_can_read(
    login: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said; one that others can write, or that is none, is a usage error."""
    login.chmod(0o644)
    assert pc.main(["sources", "--root", str(TREES / "absent"), "--nut-login", str(login)]) == 0
    assert "every user of this machine can read it" in caplog.text
    login.chmod(0o666)
    with pytest.raises(SystemExit):
        pc.main(["sources", "--nut-login", str(login)])
    assert f"{login}: every user of this machine can write it" in capsys.readouterr().err
    login.chmod(0o600)
    login.write_text("who goes there")
    for wrong in (login, login.parent / "none"):
        with pytest.raises(SystemExit):
            pc.main(["sources", "--nut-login", str(wrong)])
    assert "usage:" in capsys.readouterr().err


def test_a_password_in_plain_text_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Where it goes to another machine without TLS; to this one it does not matter."""
    for host in ("nas.example", "localhost", "127.0.0.1", "[::1]"):
        client = pc.Upsd(host, time.monotonic)
        client._warn_of_plain_text(client._server.host)
        client._warn_of_plain_text(client._server.host)
    warned = [record.getMessage() for record in caplog.records]
    assert warned == ["nas.example: the password is sent unencrypted: see --nut-tls"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1, signed by itself, with its key in the same file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    place = tmp_path_factory.mktemp("tls")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=upsd", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(place / "key"), "-out", str(place / "certificate")]
    subprocess.run(command, check=True, capture_output=True)
    both = place / "both"
    both.write_text((place / "certificate").read_text() + (place / "key").read_text())
    return both


@pytest.fixture
def tls_upsd(upsd: Upsd, certificate: Path) -> Upsd:
    """A upsd that speaks to nobody without TLS."""
    upsd.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    upsd.tls.load_cert_chain(certificate)
    upsd.update("battery.charge: 50")
    return upsd


@pytest.mark.parametrize("trust", ["certificate", "unverified"])
def test_a_upsd_by_tls(
    tls_upsd: Upsd, certificate: Path, login: Path, trust: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """STARTTLS comes first, and the password after it."""
    tls_upsd.login = ("monitor", "s3cr#t")
    trusted = str(certificate) if trust == "certificate" else trust
    arguments = ["--nut", tls_upsd.address, "--nut-login", str(login), "--nut-tls", trusted]
    (row,) = sources(TREES / "absent", *arguments, capsys=capsys)
    assert row["charge_pct"] == 50.0
    verbs = [command.split()[0] for command in tls_upsd.commands]
    assert verbs == ["STARTTLS", "USERNAME", "PASSWORD", "LIST"]


def test_tls_costs_only_those_who_ask_for_it() -> None:
    """A collector without --nut-tls does not load it: it takes 6 MiB."""
    text = "import sys, power_collector as pc\n"
    text += "pc._parser().parse_args(['sources'])\nprint('ssl' in sys.modules)\n"
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{CHECKOUT}"}
    command = [sys.executable, "-c", text]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_certificate_that_nobody_trusts(tls_upsd: Upsd, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets no password and is asked nothing."""
    monkeypatch.setenv(pc.NUT_USERNAME, "monitor")
    client = pc.Upsd(tls_upsd.host, time.monotonic, pc.UpsdAccess(trust="system"))
    problem = pc.Nut("ups", client).read().problem
    assert "CERTIFICATE_VERIFY_FAILED" in problem
    assert tls_upsd.commands == ["STARTTLS"]


def test_a_upsd_without_tls_gets_no_password(upsd: Upsd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TLS was asked for, nothing is said without it."""
    monkeypatch.setenv(pc.NUT_USERNAME, "monitor")
    client = pc.Upsd(upsd.host, time.monotonic, pc.UpsdAccess(trust="unverified"))
    problem = pc.Nut("ups", client).read().problem
    assert problem.endswith("it answers STARTTLS by ERR FEATURE-NOT-CONFIGURED")
    assert upsd.commands == ["STARTTLS"]


def test_plain_text_behind_the_answer_to_starttls_is_refused(tls_upsd: Upsd) -> None:
    """Somebody in between may have put it there, to be taken for a secure answer."""
    tls_upsd.after_tls = b"END LIST VAR ups\n"
    client = pc.Upsd(tls_upsd.host, time.monotonic, pc.UpsdAccess(trust="unverified"))
    assert "it answers STARTTLS by" in pc.Nut("ups", client).read().problem


def test_a_file_of_certificates_that_is_none(
    login: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a usage error, whether it is missing or something else: no name is not no TLS."""
    for wrong in (login, login.parent / "none", ""):
        with pytest.raises(SystemExit):
            pc.main(["sources", "--nut-tls", str(wrong)])
    assert "usage:" in capsys.readouterr().err


# --- apcupsd


APC = """APC      : 001,036,0862
DATE     : 2026-01-02 03:04:05 +0000
HOSTNAME : own
UPSNAME  : office
CABLE    : USB Cable
MODEL    : Own Make 1500
STATUS   : ONLINE
LINEV    : 231.0 Volts
LOADPCT  : 12.0 Percent
BCHARGE  : 100.0 Percent
TIMELEFT : 45.5 Minutes
MBATTCHG : 5 Percent
BATTV    : 27.2 Volts
ITEMP    : 29.2 C
SERIALNO : 4B1234P56789
NOMPOWER : 865 Watts
NOMBATTV : 24.0 Volts
END APC  : 2026-01-02 03:04:06 +0000
"""


class ApcServer:
    """An apcupsd's network information server on loopback; `reply` replaces what it would send."""

    def __init__(self) -> None:
        self.text = APC
        self.reply: bytes | None = None
        self.connected = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            self.connected += 1
            with contextlib.suppress(OSError), peer:
                asked = b""
                while len(asked) < 8:
                    asked += peer.recv(8 - len(asked))
                assert asked == b"\0\x06status"
                for part in self._parts():
                    peer.sendall(part)

    def _parts(self) -> list[bytes]:
        """A record for each line, sent in pieces that end anywhere."""
        if self.reply is not None:
            return [self.reply]
        lines = [line.encode() + b"\n" for line in self.text.splitlines()]
        whole = b"".join(len(line).to_bytes(2, "big") + line for line in lines) + b"\0\0"
        return [whole[at : at + 37] for at in range(0, len(whole), 37)]

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)


@pytest.fixture
def apcupsd() -> Iterator[ApcServer]:
    """A fake apcupsd."""
    server = ApcServer()
    yield server
    server.close()


def test_an_apcupsd(apcupsd: ApcServer, db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Watts are the load's share of the nominal power; the file has them, named by the address."""
    (row,) = sources(TREES / "absent", "--apcupsd", apcupsd.host, capsys=capsys)
    assert row == {
        "name": f"apcupsd@{apcupsd.host}",
        "type": "ups",
        "voltage": 27.2,
        "current": 3.816176,
        "wattage": 103.8,
        "charge_pct": 100.0,
        "capacity_wh": None,
        "status": "ONLINE",
        "runtime_s": 2730.0,
        "temperature_c": 29.2,
        "serial": "4B1234P56789",
        "is_estimated": False,
        "problem": None,
    }
    arguments = ["--root", str(TREES / "absent"), "--db", str(db), "--apcupsd", apcupsd.host]
    arguments += ["--map", f"apcupsd@{apcupsd.host}=ups:Office"]
    assert pc.main(["run", "d", "--once", *arguments]) == 0
    with PowerManager(db) as pm:
        (meter,) = pm.list_meters("d")
    assert meter.name == "Office"
    assert meter.wattage == pytest.approx(103.8, abs=1e-3)


@pytest.mark.parametrize(
    ("status", "tokens", "direction", "mains", "low"),
    [
        ("ONLINE", "OL", 0, True, False),
        ("ONBATT", "OB", 1, False, False),
        ("ONBATT LOWBATT", "OB LB", 1, False, True),
        ("CAL ONBATT LOWBATT", "CAL OB LB", 1, False, True),
        ("TRIM ONLINE", "TRIM OL", 0, True, False),
        ("BOOST ONLINE OVERLOAD", "BOOST OL OVER", 0, True, False),
        ("ONLINE REPLACEBATT", "OL RB", 0, True, False),
        ("SELFTEST", "OL DISCHRG TEST", 0, True, False),
        ("SHUTTING DOWN", "FSD", None, None, False),
        ("NEVER SEEN", "", None, None, None),
    ],
)
def test_apcupsd_status(
    status: str, tokens: str, direction: int | None, mains: bool | None, low: bool | None
) -> None:
    """Its words are read as NUT's."""
    sample = pc.ApcUps.sample({"STATUS": status})
    assert (sample.status, sample.tokens) == (status, frozenset(tokens.split()))
    assert (sample.direction, sample.mains, sample.low) == (direction, mains, low)


@pytest.mark.parametrize(
    ("text", "volts", "watts"),
    [
        (
            "LOADPCT: 10.0 Percent Load Capacity\nNOMPOWER: 500 Watts\nLINEV: 230.0 Volts",
            230.0,
            50.0,
        ),
        (
            "LOADPCT: 10.0 Percent\nNOMPOWER: 500 Watts\nOUTPUTV: 0.0 Volts\nNOMOUTV: 120 Volts",
            120.0,
            50.0,
        ),
        ("LOADPCT: 0.0 Percent\nNOMPOWER: 500 Watts\nBATTV: 13.6 Volts", 13.6, 0.0),
        ("LOADPCT: 10.0 Percent\nBATTV: 13.6 Volts\nLINEV: 230.0 Volts", 13.6, None),
        ("LINEV: 230.0 Volts\nBCHARGE: 90.0 Percent", None, None),
        ("LOADPCT: N/A\nNOMPOWER: 500 Watts", None, None),
    ],
)
def test_apcupsd_watts(text: str, volts: float | None, watts: float | None) -> None:
    """Without a nominal power the watts are unknown, whatever the load is."""
    fields = dict(line.split(": ") for line in text.splitlines())
    sample = pc.ApcUps.sample(fields)
    assert (sample.voltage, sample.wattage) == (volts, watts)


def test_an_apcupsd_that_has_lost_its_ups_has_no_values(apcupsd: ApcServer) -> None:
    """What it goes on saying is old."""
    apcupsd.text = APC.replace("ONLINE", "COMMLOST")
    (source,) = pc.Apcupsd(apcupsd.host, time.monotonic).sources()
    sample = source.read()
    assert (sample.empty, sample.problem) == (True, "apcupsd has lost its UPS (COMMLOST)")


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (b"", "it closed the connection"),
        (b"\0\x05BC", "it closed the connection"),
        (b"\xff\xff" + b"x" * 65535, "its answer has no end"),
        (b"\0\x03\xff\xfe:\0\0", "no values"),
    ],
)
def test_nonsense_from_apcupsd(
    apcupsd: ApcServer, reply: bytes, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It neither stops the run nor becomes values; what cannot be used is left alone for a
    while.
    """
    monkeypatch.setattr(pc, "_NUT_SIZE", 60_000)
    apcupsd.reply = reply
    time_ = Time()
    (source,) = pc.Apcupsd(apcupsd.host, time_.clocks.boot).sources()
    assert problem in source.read().problem
    if problem != "no values":
        assert (problem in source.read().problem, apcupsd.connected) == (True, 1)
        apcupsd.reply = None
        time_.pass_(pc.NUT_RETRY)
    else:
        apcupsd.reply = None
    assert source.read().charge_pct == 100.0


@pytest.mark.parametrize("address", ["", "a b", "h:0", "u@h", "h:x"])
def test_apcupsd_addresses_that_are_none(address: str) -> None:
    """A wrong --apcupsd is a usage error."""
    with pytest.raises(SystemExit):
        pc.main(["sources", "--apcupsd", address])


# --- Programs


def until(condition: Callable[[], Any]) -> None:
    """Wait for what another process does; it is looked at often, and not for ever."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def printing(*printed: object, then: str = "time.sleep(600)") -> list[str]:
    """A program that prints these lines, JSON but for text, and then does something else."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in printed]
    code = "import os, signal, subprocess, sys, time\n"
    # In one piece: however busy the machine is, the lines arrive together.
    code += (
        f"sys.stdout.write({''.join(f'{text}{chr(10)}' for text in texts)!r}); sys.stdout.flush()\n"
    )
    code += then
    return [sys.executable, "-c", code]


@pytest.fixture
def program() -> Iterator[Callable[..., pc.Program]]:
    """A maker of programs on simulated clocks, ended at the end."""
    made: list[pc.Program] = []

    def make(command: list[str], time_: Time | None = None) -> pc.Program:
        made.append(pc.Program("Hat", command, (time_ or Time()).clocks.boot))
        return made[-1]

    yield make
    for one in made:
        one.close()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"voltage": 12, "current": 2}, ("main", 12.0, 2.0, 24.0, None)),
        ({"voltage": 12.0, "power": 6, "type": "solar"}, ("solar", 12.0, 0.5, 6.0, None)),
        ({"voltage": 12, "current": 2, "type": "battery"}, ("battery", 12.0, 2.0, 24.0, 1)),
        ({"voltage": 12, "current": -2, "type": "battery"}, ("battery", 12.0, -2.0, -24.0, -1)),
        ({"voltage": 12, "current": 0, "type": "battery"}, ("battery", 12.0, 0.0, 0.0, 0)),
        (
            {"voltage": 12, "current": 2, "type": "battery", "status": "Charging"},
            ("battery", 12.0, -2.0, -24.0, -1),
        ),
        (
            {"voltage": 12, "power": -6, "type": "battery", "status": "Discharging"},
            ("battery", 12.0, 0.5, 6.0, 1),
        ),
        ({"voltage": 12, "type": "battery", "charge_pct": 50}, ("battery", 12.0, None, None, None)),
        ({"power": 6}, ("main", None, None, 6.0, None)),
        (
            {"voltage": 24, "power": 48, "type": "ups", "status": "OB LB"},
            ("ups", 24.0, 2.0, 48.0, 1),
        ),
        ({"voltage": None, "current": 1}, ("main", None, 1.0, None, None)),
        ({"voltage": 0, "power": 0}, ("main", 0.0, None, 0.0, None)),
    ],
)
def test_a_line_of_a_program(line: dict[str, Any], expected: tuple[Any, ...]) -> None:
    """Its keys are volts, amperes or watts; a battery's direction is its status's, else its
    sign's.
    """
    kind = pc._line_type(line)
    sample, complaints = pc._sample_of_line(line, kind)
    pc.Histories().judge([(pc.Source("x", kind), sample)], 0.0)
    found = (kind.value, sample.voltage, sample.current_draw, sample.wattage, sample.direction)
    assert found == expected
    assert complaints == (
        ["power without voltage is shown, and not stored"] if line == {"power": 6} else []
    )


def test_all_that_a_line_may_say() -> None:
    """Charge, capacity, time left, temperature and serial number; a UPS's status is read as
    NUT's.
    """
    line = {"name": "x", "type": "ups", "charge_pct": 55, "status": "OB LB RB", "capacity_wh": 84}
    sample, complaints = pc._sample_of_line(
        line | {"runtime_s": 600, "temperature_c": 25.5, "serial": "A1"}, MeterType.UPS
    )
    assert (sample.charge_pct, sample.capacity_wh, sample.runtime_s) == (55.0, 84.0, 600.0)
    assert (sample.temperature_c, sample.serial) == (25.5, "A1")
    assert (sample.mains, sample.low, sample.tokens) == (False, True, frozenset({"OB", "LB", "RB"}))
    assert complaints == []
    for status, mains in (("Online", True), ("offline", False), ("", None), ("OB", None)):
        sample, _ = pc._sample_of_line({"status": status}, MeterType.MAIN)
        assert sample.mains is mains
    sample, _ = pc._sample_of_line({"status": "Charging"}, MeterType.BATTERY)
    assert (sample.mains, sample.low, sample.tokens) == (None, None, frozenset())


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"volts": 5}, "no such key: volts"),
        ({"voltage": "5"}, 'not a plausible voltage: "5"'),
        ({"voltage": True}, "not a plausible voltage: true"),
        ({"voltage": 1e9}, "not a plausible voltage: 1000000000.0"),
        ({"voltage": 10**400}, f"not a plausible voltage: 1{'0' * 39}"),
        ({"voltage": [1]}, "not a plausible voltage: [1]"),
        ({"current": float("nan")}, "not a plausible current: NaN"),
        ({"capacity_wh": 1e12}, "not a plausible capacity_wh: 1000000000000.0"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: dict[str, Any], complaint: str) -> None:
    """One value costs that value."""
    sample, complaints = pc._sample_of_line({"charge_pct": 50} | line, MeterType.MAIN)
    assert complaints == [complaint]
    assert (sample.charge_pct, sample.wattage) == (50.0, None)


@pytest.mark.parametrize("charge", [254, -1, 110.5, "50"])
def test_a_charge_that_no_gauge_means_is_named(charge: object) -> None:
    """It is unknown, and the value is said: 254 is a gauge's word for unknown, -1 another's."""
    sample, complaints = pc._sample_of_line({"charge_pct": charge}, MeterType.BATTERY)
    assert sample.charge_pct is None
    assert complaints == [f"not a plausible charge_pct: {json.dumps(charge)}"]
    sample, complaints = pc._sample_of_line({"charge_pct": 104}, MeterType.BATTERY)
    assert (sample.charge_pct, complaints) == (100.0, [])


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"type": "batery", "voltage": 12}', 'no such type: "batery": did you mean battery?'),
        (
            '{"type": 5, "voltage": 12}',
            "no such type: 5: expected one of main, battery, solar, ups",
        ),
        ('{"voltage": 12, "voltage": 13}', "the key voltage is there twice"),
        ('{"serial": {"a": 1, "a": 2}}', "the key a is there twice"),
        ("[12]", "no JSON object: [12]"),
        ("12 V", "no JSON object: 12 V"),
        ("[" * 50_000, f"no JSON object: {'[' * 80}"),
    ],
    ids=["type", "number for a type", "twice", "twice inside", "array", "text", "too deep"],
)
def test_a_line_that_cannot_be_right_is_left_out(
    program: Callable[..., pc.Program], caplog: pytest.LogCaptureFixture, line: str, why: str
) -> None:
    """The source says why, and no meter is made: the type of a meter can never be changed."""
    one = program(printing(line))
    until(lambda: one.poll() and bool(caplog.records))
    assert [record.getMessage() for record in caplog.records] == [
        f"--program Hat: a line is left out: {why}"
    ]
    assert one._samples == {}
    (source,) = one.sources()
    assert source.read().problem == f"its last line was left out: {why}"


@pytest.mark.parametrize(("told", "kind"), [({}, "main"), ({"type": None}, "main")])
def test_a_line_without_a_type(told: dict[str, Any], kind: str) -> None:
    """It is of a main meter."""
    assert pc._line_type(told) == kind


def test_a_program(
    tree: Tree, db: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its names are meters, in `sources` and in the file, and it has ended when that has."""
    pid = tmp_path / "pid"
    panel = {"name": "Panel", "type": "solar", "voltage": 18, "current": 2}
    pack = {"type": "battery", "voltage": 12, "current": -1, "charge_pct": 80, "status": "Charging"}
    told = f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    words = f"Hat={shlex.join(printing(panel, pack, then=told))}"
    rows = sources(tree.root, "--program", words, "--map", "Panel=main:Roof", capsys=capsys)
    found = [(row["name"], row["type"], row["wattage"], row["charge_pct"]) for row in rows]
    assert found == [("Roof", "main", 36.0, None), ("Hat", "battery", -12.0, 80.0)]
    arguments = ["--root", str(tree.root), "--db", str(db), "--program", words]
    assert pc.main(["run", "d", *arguments], Time(3).clocks) == 0
    assert not is_alive(int(pid.read_text()))
    with PowerManager(db) as pm:
        stored_meters = {(m.name, m.type.value, m.wattage) for m in pm.list_meters("d")}
    assert stored_meters == {("Panel", "solar", 36.0), ("Hat", "battery", -12.0)}


def test_a_program_that_goes_on_is_read_at_every_look(
    program: Callable[..., pc.Program], tmp_path: Path
) -> None:
    """The newest line of a name counts, whole lines only."""
    go = tmp_path / "go"
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.005)\n"
    whole = '{"voltage": 6, "current": 1}'
    cut_off = '{"voltage": 7, "cur'
    more = f"print({whole!r}, {cut_off!r}, sep='\\n', end='', flush=True)\ntime.sleep(600)"
    one = program(printing({"voltage": 5, "current": 1}, then=wait + more))
    (source,) = one.sources()
    assert source.read().wattage == 5.0
    go.touch()
    until(lambda: source.read().voltage == 6.0)
    until(lambda: one.poll() and one._line.startswith(b'{"voltage": 7'))
    assert source.read().voltage == 6.0


def test_the_last_line_needs_no_end(program: Callable[..., pc.Program]) -> None:
    """A program that ends in the middle of a line has said it all the same."""
    one = program(printing(then="""print('{"voltage": 5, "current": 1}', end="")"""))
    until(lambda: one.sources()[0].read().wattage == 5.0)
    (source,) = one.sources()
    assert source.read().wattage == 5.0


def test_a_program_that_is_silent_has_no_values(
    program: Callable[..., pc.Program], tmp_path: Path
) -> None:
    """Its last line stands for a minute; a name is gone after ten, where the program prints
    others.
    """
    time_ = Time()
    go = tmp_path / "go"
    wait = f"while not os.path.exists({str(go)!r}): time.sleep(0.005)\n"
    more = """print('{"voltage": 7, "current": 1}', flush=True); time.sleep(600)"""
    lines_ = {"voltage": 5, "current": 1}, {"name": "B", "voltage": 6}
    one = program(printing(*lines_, then=wait + more), time_)
    first, second = one.sources()
    time_.pass_(pc.PROGRAM_HOLD)
    assert (first.read().wattage, second.read().voltage) == (5.0, 6.0)
    time_.pass_(1)
    assert first.read().problem == "it has printed nothing for 60 s"
    time_.pass_(pc.PROGRAM_GONE)
    assert [source.name for source in one.sources()] == ["Hat", "B"]
    go.touch()
    until(lambda: first.read().wattage == 7.0)
    assert [source.name for source in one.sources()] == ["Hat"]


def test_a_program_that_ends_is_started_again_later_each_time(
    program: Callable[..., pc.Program], tmp_path: Path
) -> None:
    """After 1 s, 2 s, 4 s, and at most five minutes; after a long run the pause begins anew."""
    time_ = Time()
    starts = tmp_path / "starts"
    end = tmp_path / "end"
    then = f"open({str(starts)!r}, 'a').write('x')\n"
    then += f"while not os.path.exists({str(end)!r}): time.sleep(0.005)\nsys.exit(3)"
    one = program(printing({"voltage": 5, "current": 1}, then=then), time_)
    end.touch()
    pauses = []
    for _ in range(11):
        one.poll()
        until(lambda: not one.poll())
        pauses.append(one._start_at - time_.now)
        time_.now = one._start_at - 0.01
        one.poll()
        assert one._process is None
        time_.now = one._start_at
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert len(starts.read_text()) == 11
    end.unlink()
    one.poll()
    time_.pass_(pc.PROGRAM_SOUND)
    end.touch()
    until(lambda: not one.poll())
    assert one._start_at - time_.now == 1


def test_a_program_that_ended_says_so(
    program: Callable[..., pc.Program], caplog: pytest.LogCaptureFixture
) -> None:
    """In the log once, however often it ends, and in the source's problem."""
    time_ = Time()
    one = program(printing(then="sys.exit(3)"), time_)
    for _ in range(3):
        one.poll()
        until(lambda: not one.poll())
        time_.now = one._start_at
    assert one._problem == "it ended with 3"
    assert [record.getMessage() for record in caplog.records] == [
        "--program Hat: it ended with 3; it is started again, after 300 s at most"
    ]


@pytest.mark.parametrize("words", ["/no/such/program", "sh -c 'exit 3'"])
@pytest.mark.parametrize("command", ["run", "run --once", "sources"])
def test_a_program_is_started_again_where_there_is_another_look(
    tree: Tree, db: Path, caplog: pytest.LogCaptureFixture, words: str, command: str
) -> None:
    """What ends after one look does not say that it will be."""
    what, *once = command.split()
    arguments = [what, "--root", str(tree.root), "--program", f"Hat={words}", *once]
    if what == "run":
        arguments[1:1] = ["d", "--db", str(db)]
    pc.main(arguments, Time(3).clocks)
    (said,) = [
        record.getMessage() for record in caplog.records if "--program Hat" in record.getMessage()
    ]
    assert said.endswith("; it is started again, after 300 s at most") == (command == "run")
    assert re.match("--program Hat: it (cannot be run: /no/such/program: No|ended with 3)", said)


@pytest.mark.parametrize("command", [["/no/such/program"], [""], ["a\0b"]])
def test_a_program_that_cannot_be_run(
    program: Callable[..., pc.Program], command: list[str]
) -> None:
    """It is one source that says so, and costs nothing else."""
    (source,) = program(command).sources()
    assert re.match(r"it cannot be run: .*: [^\[]", source.read().problem)


def test_a_program_that_ends_a_little_after_its_output(
    program: Callable[..., pc.Program],
) -> None:
    """As every program does: it has ended by itself, and its exit code is told."""
    one = program(printing(then="os.close(1); time.sleep(0.2); os._exit(3)"))
    one.poll()
    until(lambda: not one.poll())
    assert one._problem == "it ended with 3"


def test_a_program_that_closes_its_output_is_ended(
    program: Callable[..., pc.Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can come from it any more."""
    monkeypatch.setattr(pc, "PROGRAM_EXIT", 0.05)
    one = program(printing(then="os.close(1); time.sleep(600)"))
    one.poll()
    assert one._process is not None
    pid = one._process.pid
    until(lambda: not one.poll())
    assert (one._problem, is_alive(pid)) == ("it closed its output", False)


@pytest.mark.parametrize("ignores", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"])
def test_a_program_ends_with_its_children(
    program: Callable[..., pc.Program],
    monkeypatch: pytest.MonkeyPatch,
    ignores: str,
    tmp_path: Path,
) -> None:
    """By SIGTERM where they heed it, else by SIGKILL."""
    monkeypatch.setattr(pc, "PROGRAM_LIMIT", 0.2 if ignores else 20.0)
    child = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    path = tmp_path / "pid"
    tell = f"open({str(path)!r}, 'w').write(str(child.pid))\n"
    one = program(printing(then=f"{ignores}{child}{tell}time.sleep(600)"))
    one.poll()
    assert one._process is not None
    until(lambda: path.exists() and path.read_text())
    pids = [one._process.pid, int(path.read_text())]
    one.close()
    until(lambda: not any(map(is_alive, pids)))


def test_a_program_may_end_by_itself(program: Callable[..., pc.Program], tmp_path: Path) -> None:
    """SIGTERM comes first, and leaves it time to put its device to rest."""
    path = tmp_path / "rested"
    rest = f"def rest(*_): open({str(path)!r}, 'w').write('x'); sys.exit()\n"
    rest += "signal.signal(signal.SIGTERM, rest)\n"
    say = """print('{"voltage": 5}', flush=True)\n"""
    one = program(printing(then=f"{rest}{say}time.sleep(600)"))
    until(lambda: one.poll() and one.sample("Hat").voltage == 5.0)
    one.close()
    assert path.read_text() == "x"


def test_children_that_a_program_leaves_behind_end_with_it(
    program: Callable[..., pc.Program], tmp_path: Path
) -> None:
    """Where it ends by itself its children would go on holding its output."""
    path = tmp_path / "pid"
    child = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    one = program(printing(then=f"{child}open({str(path)!r}, 'w').write(str(child.pid))"))
    one.poll()
    until(lambda: not one.poll())
    until(lambda: not is_alive(int(path.read_text())))
    assert not is_alive(int(path.read_text()))


def test_a_programs_memory_is_bounded(
    program: Callable[..., pc.Program], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Neither a line without end nor names without end are kept; the next line is read again."""
    big = "for n in range(40): sys.stdout.write('x' * 50_000)\nprint()\n"
    names = """for n in range(100): print('{"name": "n%d", "voltage": 1}' % n)\n"""
    last = """print('{"name": "n0", "voltage": 9}', flush=True); time.sleep(600)"""
    one = program(printing(then=big + names + last))
    one.poll()
    lengths = []

    def is_done() -> bool:
        one.poll()
        lengths.append(len(one._line))
        return one.sample("n0").voltage == 9.0

    until(is_done)
    assert (max(lengths) <= pc.PROGRAM_LINE, len(one._samples)) == (True, pc.PROGRAM_NAMES)
    said = [record.getMessage() for record in caplog.records]
    assert said[:2] == [
        "--program Hat: a line of more than 65536 bytes is left out",
        "--program Hat: more than 64 names: n64 is left out",
    ]
    assert len(said) <= 100


def test_a_program_that_prints_all_the_time_holds_up_nothing(
    program: Callable[..., pc.Program],
) -> None:
    """A look takes in so much, and the rest waits with the program."""
    line = '{"voltage": 5, "current": 1}\\n'
    one = program(printing(then=f"while True: sys.stdout.write('{line}' * 1000)"))
    (source,) = one.sources()
    for _ in range(5):
        assert source.read().wattage == 5.0


@pytest.mark.parametrize("line", ["", "hello", "[1]", "{", "[" * 50_000, "\udcff".join("ab")])
def test_lines_that_are_no_objects(program: Callable[..., pc.Program], line: str) -> None:
    """They are passed over."""
    one = program(["true"])
    one._take_lines(line.encode("utf-8", "surrogateescape") + b'\n{"voltage": 5, "current": 1}\n')
    assert one.sample("Hat").wattage == 5.0


def test_a_programs_errors_are_said_once(
    program: Callable[..., pc.Program], caplog: pytest.LogCaptureFixture
) -> None:
    """A line that is wrong every second fills no log."""
    one = program(["true"])
    one._take_lines(b'{"volts": 5}\nboo\n' * 500)
    assert [record.getMessage() for record in caplog.records] == [
        "--program Hat: no such key: volts",
        "--program Hat: a line is left out: no JSON object: boo",
    ]


def test_errors_without_end_are_not_all_said(
    program: Callable[..., pc.Program], caplog: pytest.LogCaptureFixture
) -> None:
    """A program that is wrong in another way each time fills neither the log nor memory."""
    one = program(["true"])
    one._take_lines(b"".join(b'{"key%d": 5}\n' % number for number in range(1000)))
    assert (len(caplog.records), len(one._complaints)) == (100, 100)


@pytest.mark.parametrize("text", ["", "Hat", "=true", "Hat=", "Hat='", " =true"])
def test_programs_that_are_none(text: str) -> None:
    """A wrong --program is a usage error."""
    with pytest.raises(SystemExit):
        pc.main(["sources", "--program", text])


def readme_programs() -> dict[str, str]:
    """The programs in the README, by what they read."""
    programs = re.findall(r"```python\n(.*?)```", (HERE / "README.md").read_text(), re.DOTALL)
    return dict(zip(("HAT", "VE.Direct", "ESP"), programs, strict=True))


STUBS = {
    "smbus2.py": """
class SMBus:
    def __init__(self, bus):
        assert bus == 1
    def read_i2c_block_data(self, address, register, length):
        assert (address, length) == (0x42, 2)
        value = {1: 65536 - 2000, 2: (3000 << 3) | 2}[register]
        return [value >> 8, value & 255]
""",
    "serial.py": """
def Serial(device, baud):
    assert (device, baud) == ("/dev/ttyUSB0", 19200)
    block = b"\\r\\nV\\t12800\\r\\nI\\t-1500\\r\\nVPV\\t33000\\r\\nPPV\\t66\\r\\nChecksum\\t\\xfe"
    return (block * 2).splitlines(keepends=True)
""",
}


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("HAT", [("Hat", "battery", 12.0, 0.2, 2.4)]),
        (
            "VE.Direct",
            [("Battery", "battery", 12.8, 1.5, 19.2), ("Panel", "solar", 33.0, 2.0, 66.0)],
        ),
    ],
    ids=["HAT", "VE.Direct"],
)
def test_the_readmes_programs(
    device: str,
    expected: list[tuple[Any, ...]],
    tmp_path: Path,
    program: Callable[..., pc.Program],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is ten lines, and says what its device does."""
    for name, text in STUBS.items():
        (tmp_path / name).write_text(text)
    code = readme_programs()[device]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "it.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    one = program([sys.executable, str(tmp_path / "it.py")])
    found = []
    for source in one.sources():
        sample = source.read()
        values = sample.voltage, sample.current_draw, sample.wattage
        rounded = [None if value is None else round(value, 6) for value in values]
        found.append((source.name, source.kind.value, *rounded))
    assert found == expected


def test_the_readmes_esp(
    program: Callable[..., pc.Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs on the ESP prints lines that are read; the machine's part only passes them on."""
    code = readme_programs()["ESP"]
    compile(code, "main.py", "exec")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    printed: list[str] = []

    class Pin:
        def __init__(self, number: int) -> None:
            self.number = number

        def read_uv(self) -> int:
            return {32: 1_200_000, 33: 500_000}[self.number]

    def rest(seconds: float) -> None:
        raise KeyboardInterrupt

    machine = type(sys)("machine")
    machine.__dict__.update(ADC=Pin)
    monkeypatch.setitem(sys.modules, "machine", machine)
    monkeypatch.setattr(time, "sleep", rest)
    with pytest.raises(KeyboardInterrupt):
        exec(code, {"print": printed.append})
    values = json.loads(printed[0])
    kind = pc._line_type(values)
    sample, complaints = pc._sample_of_line(values, kind)
    assert (kind, complaints) == (MeterType.BATTERY, [])
    assert (sample.voltage, sample.current_draw) == (12.0, 5.0)


# --- Charge from volts


@pytest.mark.parametrize(
    ("text", "volts", "charge"),
    [
        ("Pack=li-ion:3", 12.57, 100.0),
        ("Pack=li-ion:3", 11.4, 60.0),
        ("Pack=li-ion:3", 9.0, 0.0),
        ("Pack=li-ion:1", 3.53, 30.5),
        ("Pack=lipo:2", 7.6, 30.0),
        ("Pack=lifepo4:4", 13.2, 40.0),
        ("Pack=lead-acid:6", 12.65, 100.0),
        ("Pack=lead-acid:6", 14.4, 100.0),
        ("Pack=9.0:0,11.1:50,12.6:100", 11.85, 75.0),
        ("Pack=12.6:100, 9.0:0", 10.8, 50.0),
        ("a=b=li-ion:3", 12.6, 100.0),
        ("Pack=li-ion:3", 4.1, None),
        ("Pack=li-ion:1", 8.2, None),
        ("Pack=li-ion:3", 0.0, None),
        ("Pack=li-ion:3", -12.0, None),
    ],
)
def test_charge_from_volts(text: str, volts: float, charge: float | None) -> None:
    """Between the points of a curve, and nothing where the volts are another battery's."""
    _, curve = pc._curve(text)
    found = curve.charge(volts)
    assert found == (None if charge is None else pytest.approx(charge, abs=1e-3))


@pytest.mark.parametrize("chemistry", pc._CHEMISTRIES)
def test_curves_rise(chemistry: str) -> None:
    """From 0 to 100 percent, in volts and in percent."""
    points = pc._CHEMISTRIES[chemistry]
    volts = [volt for volt, _ in points]
    percent = [pct for _, pct in points]
    assert (percent[0], percent[-1]) == (0, 100)
    assert volts == sorted(set(volts))
    assert percent == sorted(set(percent))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Pack",
        "Pack=",
        "=li-ion:3",
        "Pack=li-ion",
        "Pack=li-ion:0",
        "Pack=li-ion:x",
        "Pack=li-ion:-3",
        "Pack=li-ion:3.5",
        "Pack=water:3",
        "Pack=9:0",
        "Pack=9:0,9:100",
        "Pack=9:100,12:0",
        "Pack=9:0,12:101",
        "Pack=9:0,12:-1",
        "Pack=9:0,5000:100",
        "Pack=-9:0,12:100",
        "Pack=9:0,12:100,x",
    ],
)
def test_curves_that_are_none(text: str) -> None:
    """A wrong --curve is a usage error."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected NAME=CHEMISTRY:CELLS"):
        pc._curve(text)


def test_a_pack_without_a_gauge(tree: Tree, db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its charge is estimated and marked so; without a curve it is unknown; a gauge's own charge
    stays.
    """
    tree.hwmon(0, name="ina219", in1_input=11400, curr1_input=-500)
    tree.battery(voltage_now=11_400_000, capacity=77)
    tree.battery("BAT1", voltage_now=11_400_000, capacity=None)
    arguments = ["--map", "ina219=-battery:Pack"]
    for name in ("Pack", "BAT0"):
        arguments += ["--curve", f"{name}=li-ion:3"]
    rows = {row["name"]: row for row in sources(tree.root, *arguments, capsys=capsys)}
    found = {name: (row["charge_pct"], row["is_estimated"]) for name, row in rows.items()}
    expected = {"BAT0": (77.0, False), "BAT1": (None, False), "Pack": (60.0, True)}
    assert found == expected
    assert pc.main(["sources", "--root", str(tree.root), *arguments]) == 0
    head, *_, last = capsys.readouterr().out.splitlines()
    assert (head.split()[-1], last.split()[-1]) == ("estimated", "yes")
    assert (
        pc.main(["run", "d", "--once", "--root", str(tree.root), "--db", str(db), *arguments]) == 0
    )
    with PowerManager(db) as pm:
        charges = {meter.name: meter.charge_pct for meter in pm.list_meters("d")}
    assert charges == {"BAT0": 77.0, "BAT1": None, "Pack": 60.0}


def test_volts_that_fit_no_curve_are_said(tree: Tree) -> None:
    """A wrong number of cells does not shut the machine down: the charge is unknown."""
    tree.hwmon(0, name="ina219", in1_input=4100, curr1_input=500)
    maps = dict([pc._mapping("ina219=battery:Pack")])
    curves = dict([pc._curve("Pack=li-ion:3")])
    (source,) = pc.discover(str(tree.root), maps=maps, curves=curves)
    sample = source.read()
    assert (sample.charge_pct, sample.is_estimated) == (None, False)
    assert sample.wattage == pytest.approx(2.05)
    assert sample.problem == "its volts fit no --curve"


def test_a_curve_of_nobody_is_said(
    tree: Tree, machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    """A name that no meter has is a slip of the pen."""
    tree.battery()
    machine(curves=dict([pc._curve("Pack=li-ion:3")])).tick()
    assert "--curve: no sensor is named Pack" in caplog.text


def test_an_estimate_is_said_at_the_start(
    tree: Tree, machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    """Once: the file has no place for it."""
    caplog.set_level(logging.INFO)
    tree.battery(voltage_now=11_400_000, capacity=None)
    machine(curves=dict([pc._curve("BAT0=li-ion:3")])).tick(5)
    assert caplog.text.count("BAT0: its charge is estimated from its volts (--curve)") == 1


# --- A charge that nobody knows


def meter_of(db: Path, name: str = "BAT0") -> power_manager.PowerMeter:
    """The meter of that name as the file has it; the file is sound."""
    with PowerManager(db) as pm:
        assert pm.check() == []
        (meter,) = [meter for meter in pm.list_meters("dev") if meter.name == name]
        return meter


def test_a_new_pack_without_a_gauge_has_an_unknown_charge(
    tree: Tree,
    machine: Callable[..., Machine],
    db: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """From its first reading on, not 100 %; which the log says once."""
    caplog.set_level(logging.INFO)
    tree.battery(capacity=None)
    tree.hwmon(0, name="ina219", in1_input=5000, curr1_input=500)
    one = machine(commit_every=0)
    one.tick(30)
    assert [r.charge_pct for r in one.readings()] == [None] * 30
    assert {r.charge_pct for r in one.readings("ina219")} == {None}
    assert (meter_of(db).charge_pct, meter_of(db).state) == (None, "unknown")
    assert caplog.text.count("BAT0: its charge is missing, and is stored as unknown") == 1
    assert "ina219: its charge" not in caplog.text
    with PowerManager(db) as pm:
        assert pm.estimate_runtime("dev") is None


def test_a_meter_that_was_there_with_100_percent(
    tree: Tree, machine: Callable[..., Machine], db: Path
) -> None:
    """A pack without a gauge keeps nobody's 100 %: after a minute it is unknown."""
    with PowerManager(db) as pm:
        pm.register_device("dev", "Device")
        pm.add_meter("dev", "battery", 50.0, "BAT0")
    tree.battery(capacity=None)
    one = machine(commit_every=0)
    one.tick(12)
    assert meter_of(db).charge_pct == 100.0  # a gauge may yet answer
    one.tick()
    assert meter_of(db).charge_pct is None
    assert [r.charge_pct for r in one.readings()] == [100.0] * 12 + [None]


def test_once_knows_no_last_value(tree: Tree, db: Path) -> None:
    """With --once what is not known at that look is unknown."""
    arguments = ["run", "dev", "--once", "--root", str(tree.root), "--db", str(db)]
    tree.battery()
    assert pc.main(arguments) == 0
    assert meter_of(db).charge_pct == 60.0
    tree.battery(capacity=None)
    assert pc.main(arguments) == 0
    assert meter_of(db).charge_pct is None


def test_once_with_nothing_but_a_status(tree: Tree, db: Path) -> None:
    """There is nothing to log, and the exit code says so."""
    tree.battery(capacity=None, voltage_now=None, current_now=None)
    arguments = ["run", "dev", "--once", "--root", str(tree.root), "--db", str(db)]
    assert pc.main(arguments) == 1


@pytest.mark.parametrize("commit_every", [0.0, 600.0])
def test_a_gauge_that_fails_and_comes_back(
    tree: Tree, machine: Callable[..., Machine], db: Path, commit_every: float
) -> None:
    """Its last charge stands in for a minute; each reading has the charge of its own time."""
    tree.battery()
    one = machine(commit_every=commit_every)
    one.tick(3)
    tree.battery(capacity=None)
    one.tick(15)
    tree.battery(capacity=55)
    one.tick(2)
    tree.battery(capacity=None)
    one.tick(3)
    one.collector.journal.commit()
    charges = [r.charge_pct for r in one.readings()]
    assert charges == [60.0] * 15 + [None] * 3 + [55.0] * 5
    assert meter_of(db).charge_pct == 55.0


def test_a_pack_of_which_nothing_is_left_but_its_status(
    tree: Tree, machine: Callable[..., Machine], db: Path
) -> None:
    """Nothing is stored of it, and its charge becomes unknown all the same."""
    tree.battery()
    one = machine(commit_every=0)
    one.tick()
    tree.battery(capacity=None, voltage_now=None, current_now=None)
    one.tick(20)
    assert len(one.readings()) == 1
    meter = meter_of(db)
    assert (meter.charge_pct, meter.voltage) == (None, 10.0)


def test_a_pack_that_only_ever_says_its_status(
    tree: Tree, machine: Callable[..., Machine], db: Path
) -> None:
    """It gets no meter, and nothing fails."""
    tree.battery(capacity=None, voltage_now=None, current_now=None)
    one = machine(commit_every=0)
    one.tick(20)
    with PowerManager(db) as pm:
        assert (pm.list_meters(), one.collector.journal.error) == ([], "")


def test_what_another_program_says_of_the_charge_stays(
    tree: Tree, machine: Callable[..., Machine], db: Path
) -> None:
    """A BMS that logs its charge to the same meter is not forgotten again and again."""
    tree.battery(capacity=None)
    one = machine(commit_every=0)
    one.tick(15)
    with PowerManager(db, clock=lambda: one.time.day) as pm:
        pm.log_power(meter_of(db).id, None, None, 42.0)
    one.tick(30)
    assert meter_of(db).charge_pct == 42.0


def test_a_curve_that_is_given_later(tree: Tree, machine: Callable[..., Machine], db: Path) -> None:
    """It makes an unknown charge known."""
    tree.battery(capacity=None, voltage_now=11_400_000)
    machine(commit_every=0).tick(15)
    assert meter_of(db).charge_pct is None
    machine(commit_every=0, curves=dict([pc._curve("BAT0=li-ion:3")])).tick()
    assert meter_of(db).charge_pct == 60.0


def test_another_pack_does_not_inherit_a_charge(
    tree: Tree, machine: Callable[..., Machine], db: Path
) -> None:
    """One without a gauge in the place of one with: the old charge is not the new one's."""
    tree.battery(serial_number="A")
    one = machine(commit_every=0)
    one.tick()
    tree.battery(serial_number="B", capacity=None)
    one.tick(8)  # serial numbers are looked at every 30 s
    assert meter_of(db).charge_pct is None


def test_a_charge_that_is_lost_is_a_change(
    tree: Tree, machine: Callable[..., Machine], db: Path
) -> None:
    """--min-change keeps the reading at which the charge became unknown."""
    tree.battery()
    one = machine(commit_every=0, min_change=5.0)
    one.tick(2)
    tree.battery(capacity=None)
    one.tick(15)
    assert [r.charge_pct for r in one.readings()] == [60.0, 60.0, None]
    assert meter_of(db).charge_pct is None


def test_a_lost_charge_waits_for_a_file_that_cannot_be_written(
    tree: Tree, machine: Callable[..., Machine], db: Path
) -> None:
    """What is rolled back is done again."""
    tree.battery()
    one = machine(commit_every=0)
    one.tick()
    tree.battery(capacity=None)
    one.tick(10)
    kept = db.rename(db.with_suffix(".kept"))  # as a disk that is gone for a while
    db.mkdir()
    one.tick(10)
    assert "this is a directory" in one.collector.journal.error
    db.rmdir()
    kept.rename(db)
    one.tick(3)
    assert one.collector.journal.error == ""
    assert meter_of(db).charge_pct is None


def test_a_restored_backup_is_brought_up_to_date(
    tree: Tree, machine: Callable[..., Machine], db: Path, tmp_path: Path
) -> None:
    """Capacity and charge are right with the next commit, not only at the next start."""
    tree.battery(energy_full=24_000_000)
    one = machine(commit_every=0)
    one.tick(2)
    with PowerManager(db) as pm:
        pm.backup(tmp_path / "backup.db")
    tree.battery(energy_full=72_000_000, capacity=None)
    one.tick(30)
    assert (meter_of(db).capacity_wh, meter_of(db).charge_pct) == (72.0, None)
    with PowerManager(db) as pm:
        pm.restore(tmp_path / "backup.db")
        assert (meter_of(db).capacity_wh, meter_of(db).charge_pct) == (24.0, 60.0)
    one.tick()
    assert (meter_of(db).capacity_wh, meter_of(db).charge_pct) == (72.0, None)


# --- Commands


def test_a_hanging_command_is_killed_with_its_children(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The time limit ends a command and all that it has started."""
    os.mkfifo(tmp_path / "alive")
    alive = os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)

    def has_no_writer() -> bool:
        try:
            return not os.read(alive, 1)
        except BlockingIOError:
            return False

    # The pipe stands open for as long as the shell or its child is there.
    script = f"exec 9>{shlex.quote(str(tmp_path / 'alive'))}; sleep 300 & wait"
    pc._run_command(["sh", "-c", script], {}, 0.3)
    assert "sh: killed after 0.3 s" in caplog.text
    until(has_no_writer)
    os.close(alive)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["/no/such"], "cannot be run: No such file"),
        (["false"], "ended with 1"),
        (["a\0"], "cannot"),
    ],
)
def test_a_command_that_fails_is_logged(
    command: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No command can fail the run."""
    pc._run_command(command, {}, 5)
    assert message in caplog.text


def test_too_many_waiting_events_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """A queue that is full, or that does not empty in time, is reported."""
    commands = pc.Commands(["sleep", "60"], 0.01)
    commands._thread = threading.current_thread()  # it takes nothing from the queue
    for _ in range(1001):
        commands.submit({"POWER_EVENT": "restore"})
    commands._limit = -1.0
    commands.wait()
    assert "too many events wait for it: not run for restore" in caplog.text
    assert "1000 events still wait for it" in caplog.text
    commands.close()


def test_exec_runs_for_every_event_of_the_device(
    tree: Tree, machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """Alerts of the library and events of other processes are told too; older and foreign ones are
    not.
    """
    tree.battery()
    told = tmp_path / "told"
    with PowerManager(machine().db) as pm:
        for device in ("dev", "other"):
            pm.register_device(device, device)
            pm.trigger_event(device, "restore", 1.0)
        one = machine(exec_command=recorder(told))
        one.tick()
        pm.trigger_event("dev", "restore", 2.5)
        pm.trigger_event("other", "restore", 3.0)
        tree.battery(capacity=20)
        one.tick()
        tree.battery(capacity=5)
        one.tick()
    one.collector.finish()
    assert sorted(lines(told)) == [
        "discharge dev 20 BAT0",
        "low_battery dev 5 BAT0",
        "restore dev 2.5 ",
    ]


def test_exec_gets_no_shell(tree: Tree, db: Path, tmp_path: Path) -> None:
    """Words are split as a shell would, and nothing else of it happens."""
    tree.battery(capacity=3)
    script = "import sys; open(sys.argv[1], 'w').write(sys.argv[2])"
    command = f"{sys.executable} -c \"{script}\" {tmp_path}/out '$HOME;ls'"
    arguments = ["--root", str(tree.root), "--db", str(db), "--once", "--exec", command]
    assert pc.main(["run", "dev", *arguments], Time().clocks) == 0
    assert lines(tmp_path / "out") == ["$HOME;ls"]


def test_exec_names_the_events_own_meter(
    tree: Tree, machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """POWER_METER comes from the event's meter, whatever its note looks like."""
    told = tmp_path / "told"
    tree.battery()
    tree.battery("BAT0: b", capacity=20)
    one = machine(exec_command=recorder(told))
    one.tick()
    manager = one.collector.journal.manager
    (first,) = (m.id for m in manager.list_meters("dev") if m.name == "BAT0")
    manager.trigger_event("dev", "restore", 1.0, "BAT0: of the whole device")
    manager.trigger_event("dev", "restore", 2.0, meter_id=first)
    one.tick()
    one.collector.finish()
    assert lines(told) == ["discharge dev 20 BAT0: b", "restore dev 1 ", "restore dev 2 BAT0"]


def test_events_of_a_restored_backup_are_not_told_again(
    tree: Tree, machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """A backup put in place while the collector runs has old events only; what comes then is
    told.
    """
    told = tmp_path / "told"
    tree.battery()
    one = machine(exec_command=recorder(told))
    manager = one.collector.journal.manager
    manager.trigger_event("dev", "restore", 1.0)
    manager.trigger_event("dev", "restore", 2.0)
    one.tick()
    manager.trigger_event("dev", "restore", 3.0)
    one.tick()
    manager.backup(tmp_path / "backup.db")
    with PowerManager(one.db) as other:
        other.restore(tmp_path / "backup.db")
    one.tick()
    manager.trigger_event("dev", "restore", 4.0)
    one.tick()
    with PowerManager(tmp_path / "backup.db") as backup:
        for value in (5.0, 6.0, 7.0):
            backup.trigger_event("dev", "restore", value)
    with PowerManager(one.db) as other:
        other.restore(tmp_path / "backup.db")
    one.tick()
    manager.trigger_event("dev", "restore", 8.0)
    one.tick()
    one.collector.finish()
    assert lines(told) == [f"restore dev {value} " for value in (1, 2, 3, 4, 8)]


# --- Events


def test_charge_start_and_restore(tree: Tree, machine: Callable[..., Machine]) -> None:
    """Plugging in gives one restore and one charge_start, also by way of "Not charging", and a
    flush at once.
    """
    tree.supply("AC", type="Mains", online=0)
    tree.battery()
    one = machine()
    one.tick(3)
    tree.supply("AC", online=1)
    tree.battery(status="Not charging")
    one.tick()
    assert one.events() == [("restore", 60.0)]
    assert len(one.readings()) == 4
    tree.battery(status="Charging")
    one.tick(3)
    tree.battery(status="Full")
    one.tick()
    tree.battery(status="Charging")
    one.tick()
    assert one.events() == [("restore", 60.0), ("charge_start", 60.0)]


@pytest.mark.parametrize(
    ("measured", "battery", "told"),
    [
        ({}, {}, "restore dev 60 "),
        ({"voltage_now": 12_000_000, "current_now": 0}, {"capacity": None}, "restore dev 0 AC"),
    ],
    ids=["no meter", "unknown charge"],
)
def test_restore_by_mains_names_its_meter_and_charge(
    tree: Tree,
    machine: Callable[..., Machine],
    tmp_path: Path,
    measured: dict[str, Any],
    battery: dict[str, Any],
    told: str,
) -> None:
    """No meter of mains that measures nothing, 0 for a charge that is not known; the note has the
    supply's name.
    """
    tree.supply("AC", type="Mains", online=0, **measured)
    tree.battery(**battery)
    one = machine(exec_command=recorder(tmp_path / "told"))
    one.tick()
    tree.supply("AC", online=1)
    one.tick()
    assert [event.note for event in one.collector.journal.manager.get_events("dev")] == [
        "AC: mains is back"
    ]
    one.collector.finish()
    assert lines(tmp_path / "told") == [told]


def test_events_name_their_meter(tree: Tree, machine: Callable[..., Machine]) -> None:
    """Alerts and the collector's own events carry their meter's id; mains that measures nothing has
    none.
    """
    tree.supply("AC", type="Mains", online=0)
    tree.battery(capacity=15)
    one = machine()
    one.tick()
    tree.supply("AC", online=1)
    tree.battery(status="Charging")
    one.tick()
    manager = one.collector.journal.manager
    (meter,) = manager.list_meters("dev")
    assert [(event.type, event.meter_id) for _, event in manager.events_since(0)] == [
        ("discharge", meter.id),
        ("charge_start", meter.id),
        ("restore", None),
    ]


def test_mains_lost_flushes_and_is_no_event(tree: Tree, machine: Callable[..., Machine]) -> None:
    """A power-source change is stored at once."""
    tree.supply("AC", type="Mains", online=1)
    tree.battery(status="Full")
    one = machine()
    one.tick(4)
    assert len(one.readings()) == 1
    tree.supply("AC", online=0)
    one.tick()
    assert (len(one.readings()), one.events()) == (5, [])


def test_a_battery_that_begins_to_supply_is_stored_at_once(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """Also a machine without a word about its mains changes its source of power."""
    tree.battery(status="Charging")
    one = machine()
    one.tick(4)
    assert len(one.readings()) == 1
    tree.battery(status="Discharging")
    one.tick()
    assert (len(one.readings()), one.events()) == (5, [])


def test_a_second_charger_is_no_restore(tree: Tree, machine: Callable[..., Machine]) -> None:
    """Mains was there already; nor is a supply that cannot be read a change."""
    tree.supply("AC", type="Mains", online=1)
    tree.supply("USB", type="USB", online=0)
    tree.battery()
    one = machine()
    one.tick()
    tree.supply("USB", online=1)
    one.tick()
    tree.supply("USB", online=None)
    tree.supply("AC", online=None)
    one.tick()
    tree.supply("AC", online=1)
    one.tick()
    assert one.events() == []


def test_the_first_look_is_no_event(tree: Tree, machine: Callable[..., Machine]) -> None:
    """A machine that is on mains when the run begins has not just come back to it."""
    tree.supply("AC", type="Mains", online=1)
    tree.battery(status="Charging")
    one = machine()
    one.tick(3)
    assert one.events() == []


# --- Shutdown


class Off(NamedTuple):
    """A shutdown command that records its runs."""

    told: Path
    options: dict[str, Any]


@pytest.fixture
def off(tmp_path: Path) -> Off:
    """A shutdown command that records its runs, and the options with it."""
    path = tmp_path / "off"
    return Off(path, {"shutdown_command": recorder(path)})


def test_shutdown_runs_once(tree: Tree, machine: Callable[..., Machine], off: Off) -> None:
    """Thirty seconds critical and discharging: commit, record, run, and not again."""
    tree.battery(capacity=5)
    one = machine(**off.options)
    one.tick(6)
    assert (one.events(), lines(off.told)) == ([("low_battery", 5.0)], [])
    one.tick(20)
    assert one.events() == [("low_battery", 5.0), ("shutdown", 5.0)]
    assert lines(off.told) == ["shutdown dev 5 BAT0"]


def test_recovery_cancels_the_shutdown(
    tree: Tree,
    machine: Callable[..., Machine],
    off: Off,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Charging, or charge well above the line, begins the wait anew; a gauge that wavers does
    not.
    """
    caplog.set_level(logging.WARNING)
    tree.battery(capacity=4)
    one = machine(**off.options)
    one.tick(5)
    tree.battery(status="Charging")
    one.tick()
    assert "BAT0: recovered; no shutdown" in caplog.text
    tree.battery(status="Discharging")
    one.tick(5)
    tree.battery(capacity=7)
    one.tick()
    tree.battery(capacity=5)
    one.tick(3)
    tree.battery(capacity=6)
    one.tick(3)
    assert lines(off.told) == []
    one.tick()
    assert lines(off.told) == ["shutdown dev 6 BAT0"]


def test_shutdown_is_armed_again_after_recovery(
    tree: Tree, machine: Callable[..., Machine], off: Off
) -> None:
    """A machine that did not go down shuts down at its next end."""
    tree.battery(capacity=4)
    one = machine(shutdown_after=0, **off.options)
    one.tick(2)
    tree.battery(status="Charging")
    one.tick()
    tree.battery(status="Discharging")
    one.tick()
    assert len(lines(off.told)) == 2


@pytest.mark.parametrize(
    "files", [{"status": None}, {"capacity": None}, {"status": None, "capacity": None}]
)
def test_what_cannot_be_read_does_not_cancel_the_shutdown(
    tree: Tree,
    machine: Callable[..., Machine],
    off: Off,
    files: dict[str, Any],
) -> None:
    """A sensor that fails while the battery ends is no recovery."""
    tree.battery(capacity=4)
    one = machine(**off.options)
    one.tick()
    tree.battery(**files)
    one.tick(6)
    assert len(lines(off.told)) == 1


def test_a_battery_taken_out_is_not_critical(
    tree: Tree, machine: Callable[..., Machine], off: Off
) -> None:
    """What is gone does not shut the machine down, and is used again when it comes back."""
    tree.battery(capacity=4)
    one = machine(**off.options)
    one.tick(2)
    tree.battery(present=0)
    one.tick(10)
    assert lines(off.told) == []
    tree.battery(present=1)
    one.tick(6)  # looked for every 30 s, and critical for less than that
    assert lines(off.told) == []
    tree.battery(capacity=50)
    one.tick(2)
    one.collector.journal.commit()
    assert one.readings()[-1].charge_pct == 50.0


def test_a_mouse_shuts_nothing_down(tree: Tree, machine: Callable[..., Machine], off: Off) -> None:
    """A peripheral may be logged, and may end."""
    tree.battery("mouse", capacity=1, scope="Device")
    one = machine(peripherals=True, shutdown_after=0, commit_every=0, **off.options)
    one.tick(3)
    assert (len(one.readings("mouse")), lines(off.told)) == (3, [])


def test_a_machine_with_two_batteries_ends_with_the_last(
    tree: Tree, machine: Callable[..., Machine], off: Off
) -> None:
    """One empty battery beside a full one is no reason to shut down; nor is one look at two empty
    ones.
    """
    tree.battery(capacity=3)
    tree.battery("BAT1", capacity=80, status="Not charging")
    one = machine(shutdown_after=10, **off.options)
    one.tick(5)
    assert lines(off.told) == []
    tree.battery("BAT1", capacity=3, status="Discharging")
    one.tick(2)
    tree.battery("BAT1", capacity=80)
    one.tick(1)
    tree.battery("BAT1", capacity=3)
    one.tick(2)
    assert lines(off.told) == []
    one.tick(1)
    assert len(lines(off.told)) == 1


def test_a_machine_that_slept_waits_again(
    tree: Tree, machine: Callable[..., Machine], off: Off
) -> None:
    """After a sleep there is time to plug in."""
    tree.battery(capacity=3)
    one = machine(**off.options)
    one.tick()
    one.time.pass_(8 * 3600)
    one.tick(6)
    assert lines(off.told) == []
    one.tick()
    assert len(lines(off.told)) == 1


def test_shutdown_runs_even_where_nothing_can_be_stored(
    tree: Tree,
    machine: Callable[..., Machine],
    off: Off,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A full disk does not keep the machine from going down, and its hooks go first."""
    tree.battery(capacity=3)
    one = machine(exec_command=["true"], shutdown_after=0, **off.options)
    with monkeypatch.context() as patch:
        patch.setattr(one.collector.journal.manager, "log_many", full_disk)
        one.tick()
    assert len(lines(off.told)) == 1


def test_shutdown_is_in_the_file_before_the_command_runs(
    tree: Tree, machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command switches off need not be written any more."""
    tree.battery(capacity=3)
    one = machine(shutdown_command=["off"], shutdown_after=0)
    seen: list[Any] = []
    monkeypatch.setattr(
        pc, "_run_command", lambda *_: seen.append((one.events(), len(one.readings())))
    )
    one.tick()
    assert seen == [([("low_battery", 3.0), ("shutdown", 3.0)], 1)]


def full_disk(*_: object, **__: object) -> int:
    """Fail as a write to a full disk does."""
    raise power_manager.StorageError(
        "power.db", "SQLITE_FULL: database or disk is full", "SQLITE_FULL"
    )


def test_four_hours_of_discharge(tree: Tree, db: Path, tmp_path: Path) -> None:
    """A simulated discharge from 79 % ends in one discharge, one low_battery, one shutdown, and its
    energy.
    """
    tree.battery(capacity=79, current_now=-800_000)

    def drain(tick: int) -> bool:
        tree.battery(capacity=round(79 - 78 * tick / 1440))
        return False

    time_, off = Time(1440, drain), tmp_path / "off"
    arguments = ["--root", str(tree.root), "--db", str(db), "--interval", "10"]
    arguments += ["--shutdown-command", shlex.join(recorder(off))]
    assert pc.main(["run", "dev", *arguments], time_.clocks) == 0
    with PowerManager(db, clock=lambda: time_.day) as pm:
        (report,) = json.loads(pm.export_report("dev", days=1))["meters"]
        assert report["energy_out_wh"] == pytest.approx(8.0 * 1439 * 10 / 3600)
        assert report["reading_count"] == 1440
        assert [e.type.value for _, e in pm.events_since(0)] == [
            "discharge",
            "low_battery",
            "shutdown",
        ]
        assert pm.check() == []
    assert lines(off) == ["shutdown dev 5 BAT0"]


# --- The end of a battery


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The meters for whose end the shutdown command was run, without running anything."""
    told: list[str] = []

    def record(command: Any, variables: dict[str, str], limit: float) -> None:
        if variables["POWER_EVENT"] == "shutdown":
            told.append(variables["POWER_METER"])

    monkeypatch.setattr(pc, "_run_command", record)
    return told


SHUTDOWN = {"shutdown_command": ["sh"]}


@pytest.mark.parametrize("status", ["Not charging", "Full", "Unknown", "Discharging", None, ""])
def test_two_packs_at_their_end_shut_down_whatever_the_idle_one_says(
    tree: Tree, machine: Callable[..., Machine], runs: list[str], status: str | None
) -> None:
    """An idle pack at 3 % is nothing to live on."""
    tree.supply("AC", type="Mains", online=0)
    tree.battery("BAT0", status=status, capacity=3, current_now=0)
    tree.battery("BAT1", capacity=2)
    one = machine(**SHUTDOWN)
    one.tick(6)
    assert runs == []
    one.tick(10)
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("first", "second", "mains", "ends"),
    [
        (("Discharging", 3), ("Not charging", 6), 0, False),
        (("Discharging", 3), ("Charging", 3), 1, False),
        (("Discharging", 3), ("Discharging", None), 0, True),
        (("Not charging", 3), ("Not charging", 3), 0, True),
        (("Not charging", 3), ("Not charging", 3), 1, False),
        (("Not charging", 3), ("Not charging", 3), None, False),
        (("Unknown", 3), ("Unknown", 3), 0, True),
        (("Unknown", 3), ("Unknown", 3), 1, False),
        (("Unknown", 3), ("Unknown", 3), None, False),
        (("Discharging", 3), ("Unknown", 3), None, True),
        (("Discharging", 3), ("Unknown", 3), 1, True),
        (("Discharging", 0), ("Full", 0), None, True),
        (("Charging", 1), ("Not charging", 1), 0, False),
    ],
)
def test_a_machine_ends_with_the_last_pack_that_it_could_live_on(
    tree: Tree,
    machine: Callable[..., Machine],
    runs: list[str],
    first: tuple[str, int | None],
    second: tuple[str, int | None],
    mains: int | None,
    ends: bool,
) -> None:
    """Status, charge and mains of two packs, and whether anything is left."""
    if mains is not None:
        tree.supply("AC", type="Mains", online=mains)
    for name, (status, charge) in {"BAT0": first, "BAT1": second}.items():
        tree.battery(name, status=status, capacity=charge)
    machine(**SHUTDOWN).tick(12)
    assert bool(runs) is ends


def test_a_gauge_without_a_direction_ends_the_machine(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """With mains off at once; without a word of mains when its charge has fallen."""
    tree.supply("AC", type="Mains", online=0)
    tree.battery(status="Unknown", capacity=1, current_now=None)
    machine(**SHUTDOWN).tick(7)
    assert runs == ["BAT0"]
    shutil.rmtree(tree.root / "sys/class/power_supply/AC")
    one = machine(**SHUTDOWN)
    for charge in (9, 8, 7, 6, 5, 4):
        tree.battery(capacity=charge)
        one.tick(3)
    assert runs == ["BAT0"]
    one.tick(3)
    assert runs == ["BAT0"] * 2


@pytest.mark.parametrize(
    ("status", "mains", "ends"),
    [
        ("Charging", None, True),
        ("Charging", 0, True),
        ("Not charging", None, True),
        ("Full", None, True),
        ("Charging", 1, False),
        ("Not charging", 1, False),
    ],
)
def test_a_status_that_is_stuck_does_not_keep_a_falling_charge_from_its_end(
    tree: Tree,
    machine: Callable[..., Machine],
    runs: list[str],
    status: str,
    mains: int | None,
    ends: bool,
) -> None:
    """Where mains is not known to be on, a charge that falls says it louder."""
    if mains is not None:
        tree.supply("AC", type="Mains", online=mains)
    tree.battery(status=status)
    one = machine(**SHUTDOWN)
    for charge in (9, 8, 7, 6, 5, 4):
        tree.battery(capacity=charge)
        one.tick(8)
    assert bool(runs) is ends


@pytest.mark.parametrize("status", ["Full", "Not charging", "Unknown"])
def test_a_charge_that_falls_by_itself_is_not_on_battery(
    tree: Tree, machine: Callable[..., Machine], runs: list[str], status: str
) -> None:
    """A pack that rests loses a point in days: --shutdown-on-battery does not count from that."""
    tree.battery(status=status, capacity=100, current_now=0)
    one = machine(shutdown_on_battery=60.0, shutdown_runtime=1e9, **SHUTDOWN)
    for charge in (100, 99, 98, 97):
        tree.battery(capacity=charge)
        one.tick(60)
    assert runs == []


def test_a_kernels_ups_that_says_its_charge_alone_ends(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """A HAT of that type without status and without a word of mains."""
    tree.supply("hat", type="UPS", capacity=9)
    one = machine(**SHUTDOWN)
    for charge in (9, 8, 7, 6, 5, 4):
        tree.supply("hat", capacity=charge)
        one.tick(8)
    assert runs == ["hat"]


def test_a_program_whose_line_stands_is_judged_anew_at_each_look(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """Mains went off and came back between two lines: what was judged of the first look is over."""
    tree.supply("AC", type="Mains", online=0)
    line = {"name": "hat", "type": "battery", "charge_pct": 3}
    command = [sys.executable, "-uc", f"import time; print({json.dumps(line)!r}); time.sleep(600)"]
    one = machine(programs=[("hat", command)], **SHUTDOWN)
    one.tick(3)
    tree.supply("AC", online=1)
    one.tick(8)
    assert runs == []


def test_a_charger_that_is_plugged_in_at_the_end_cancels_the_shutdown(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """The charge has fallen until now, but that is over."""
    tree.battery(capacity=9)
    one = machine(**SHUTDOWN)
    for charge in (9, 8, 7, 6, 5):
        tree.battery(capacity=charge)
        one.tick(4)
    tree.battery(status="Charging")
    one.tick(20)
    tree.battery(capacity=4)  # a gauge may well fall a little more
    one.tick(20)
    assert runs == []


@pytest.mark.parametrize("status", ["Unknown", None])
def test_a_status_that_is_unknown_while_the_charger_is_plugged_in_is_no_discharge(
    tree: Tree, machine: Callable[..., Machine], runs: list[str], status: str | None
) -> None:
    """Drivers need a while to say Charging: the direction of before mains came back does not stand
    in.
    """
    tree.supply("AC", type="Mains", online=0)
    tree.battery(capacity=4)
    one = machine(**SHUTDOWN)
    one.tick(4)
    tree.supply("AC", online=1)
    tree.battery(status=status)
    one.tick(11)
    tree.battery(status="Charging")
    one.tick(5)
    assert runs == []


def test_a_discharge_on_purpose_does_not_shut_down(
    tree: Tree, machine: Callable[..., Machine], runs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A laptop that recalibrates its battery is on mains; where that goes, it ends."""
    tree.supply("AC", type="Mains", online=1)
    tree.battery(capacity=2, charge_behaviour="auto inhibit-charge [force-discharge]")
    one = machine(**SHUTDOWN)
    one.tick(20)
    assert runs == []
    assert caplog.text.count("BAT0: critical, but calibrating; no shutdown") == 1
    tree.supply("AC", online=0)
    one.tick(20)
    assert runs == ["BAT0"]


def test_a_discharge_on_purpose_without_a_word_of_mains_ends(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """Where nobody says that mains is there, the battery is what the machine lives on."""
    tree.battery(capacity=2, charge_behaviour="auto [force-discharge]")
    machine(**SHUTDOWN).tick(10)
    assert runs == ["BAT0"]


class Upses:
    """Simulated UPSes beside a machine without sensors of its own; None: upsd does not answer."""

    def __init__(self, count: int = 1, **options: Any) -> None:
        self.time = Time()
        names = [f"ups{number}" for number in range(count)]
        upsd = pc.Upsd("localhost", self.time.clocks.boot)
        self.sources = [pc.Nut(name, upsd) for name in names]
        for source, name in zip(self.sources, names):
            source.name = name
        settings = pc.Options("dev", "", **(SHUTDOWN | options))
        self.watch, self.histories = pc.ShutdownWatch(settings), pc.Histories()

    def look(self, *variables: dict[str, str] | None, seconds: float = 0.0) -> float | None:
        """Look every 5 s for that long; return after how many seconds the command was due."""
        begin = self.time.now
        while True:
            samples: list[tuple[pc.Source, pc.Sample]] = []
            for source, values in zip(self.sources, variables):
                lost = pc.Sample(problem="upsd cannot be reached")
                samples.append((source, lost if values is None else source.sample(values)))
            self.histories.judge(samples, self.time.now)
            self.watch.look(samples, self.histories.mains, 5.0, self.time.now)
            if self.watch.is_due(self.time.now):
                return self.time.now - begin
            if self.time.now - begin >= seconds:
                return None
            self.time.pass_(5.0)


def ups(status: str, **values: object) -> dict[str, str]:
    """Variables of a UPS at 80 %, by a short name each."""
    names = {"charge": "battery.charge", "volts": "battery.voltage", "runtime": "battery.runtime"}
    usual = {"charge": 80, "volts": 24.0} | values
    variables = {names[key]: str(value) for key, value in usual.items() if value is not None}
    return variables | {"ups.status": status}


# What upsmon, as a primary with its default settings, would do about one UPS that says this for a
# minute.
BOTH_STAY = """
OL|OL CHRG|OL CHRG LB|OL LB|LB OL|OL DISCHRG|OL DISCHRG LB|OL RB|OL RB LB|OL OVER|OL OVER CHRG
OL TRIM|OL BOOST|OL TRIM CHRG|OL BOOST CHRG LB|OL BYPASS|OL BYPASS RB|BYPASS|BYPASS OL LB|OL CAL
OL CAL DISCHRG LB|OL CAL CHRG|CAL OL|CAL OB DISCHRG LB|OB CAL LB|CAL OB LB|OB CAL
LB CAL OB DISCHRG|CAL|CAL LB|ALARM CAL OB LB|cal ob lb|OB LB CAL RB|OB|OB DISCHRG|OB RB|OB OVER
OB RB OVER|DISCHRG OB|OB CHRG|OB BYPASS|ALARM OB|ALARM OL|ALARM OL RB|ALARM OL LB|ob|Ob Dischrg
OB TEST|OB TRIM|OB BOOST|OB ECO|OL OB|HB OL|HB OL CHRG|HB OB|VRANGE OL|FRANGE OL|OL ECO
ECO OL CHRG|OL TEST|OL CHRG TEST|WAIT|WAIT OL|WAIT OB| |RB|LB|OVER|TRIM|BOOST|CHRG|CHRG LB
CHRG DISCHRG|CHRG DISCHRG LB|OL OL|ol|ol chrg|Ol Lb|OBLB|OB,LB|OB-LB|XOB LB|OBX LB|OB ALB|OB LBX
NOBATT OL|COMMFAULT OL|NULL|DEPLETED OL|HIGHBATT OL|SHUTDOWNIMM OL LB|RB LB|OVER LB|ALARM|ALARM LB
ALARM RB OL CHRG|DISCHRG|DISCHRG RB
"""
BOTH_END = """
OB LB|LB OB|OB DISCHRG LB|LB OB DISCHRG|OB LB RB|OB LB OVER|OB LB OVER RB|ALARM OB LB|OB LB CHRG
OB LB BYPASS|HB OB LB|ob lb|Ob Lb|OB  LB|OB LB TEST|OB LB ECO|OB LB TRIM|OB LB BOOST
OB DISCHRG LB RB OVER|ALARM OB DISCHRG LB RB|OL OB LB|FSD|FSD OB|FSD OB LB|OB LB FSD|FSD OL|OL FSD
OL CHRG FSD|FSD OL CHRG LB|fsd ol|FSD CAL OL|FSD CAL OB LB|ALARM FSD OL|FSD RB|FSD OL BYPASS
WAIT FSD|OB OB LB LB|LB LB OB|OB LB OFF|COMMFAULT OB LB
"""
# A status of two minds: upsmon goes by the word that comes last, the collector never takes OB for
# less than it is.
ONLY_WE_END = "OB OL LB|OB LB OL|DISCHRG LB|DISCHRG LB RB"
# A UPS that says its output is off does not feed a machine that is running.
ONLY_UPSMON_ENDS = "OFF|OL OFF|OFF LB|ALARM OFF|OL OFF CHRG|OFF RB|CAL OFF"


def statuses(text: str) -> list[str]:
    """The statuses of a table."""
    return [status for line in text.strip("\n").splitlines() for status in line.split("|")]


def upsmon(status: str, lost: bool = False) -> bool:
    """Whether upsmon would shut down, by its rules and not by its code."""
    words = status.upper().split()
    if "FSD" in words:
        return True
    if lost and {"CAL", "BYPASS", "OFF"} & set(words):
        return True
    if "OFF" in words:
        return True  # for more than OFFDURATION
    line = [word for word in words if word in ("OL", "OB")]
    on_battery = line[-1:] == ["OB"]
    if lost:
        return on_battery
    return on_battery and "LB" in words and "CAL" not in words


STATUSES = [
    *((status, False, False) for status in statuses(BOTH_STAY)),
    *((status, True, True) for status in statuses(BOTH_END)),
    *((status, False, True) for status in statuses(ONLY_WE_END)),
    *((status, True, False) for status in statuses(ONLY_UPSMON_ENDS)),
]


@pytest.mark.parametrize(("status", "by_upsmon", "by_us"), STATUSES)
def test_the_end_by_status_is_upsmons(status: str, by_upsmon: bool, by_us: bool) -> None:
    """Where the collector differs from upsmon, the table says so."""
    assert upsmon(status) is by_upsmon
    assert (Upses().look(ups(status), seconds=60) is not None) is by_us


# The same where upsd is lost after the status.
# The last word was that it was on battery, or that it is being switched off.
LOST_BOTH_END = """
OB|OB DISCHRG|OB RB|ALARM OB|OB CHRG|OB BYPASS|OL OB|OB OVER
FSD OL|FSD|FSD OB LB|OB LB|ob|DISCHRG OB|OB TEST
"""
# Mains was there, or nothing was known.
LOST_BOTH_STAY = """
OL|OL CHRG|OL LB|OL RB|ALARM OL|OL TRIM|OL BOOST|OL OVER
OL DISCHRG|HB OL|OL CHRG LB|WAIT|LB|CHRG|OL TEST|OL ECO|NULL
"""
# A upsd that restarts during a calibration, or while the UPS is on bypass, is no power failure.
LOST_ONLY_UPSMON_ENDS = "OL CAL|CAL|OB CAL|CAL OB LB|OL BYPASS|BYPASS|OL OFF|OFF"
# Discharging without a word of mains is on battery.
LOST_ONLY_WE_END = "DISCHRG"
LOST = [
    *((status, True, True) for status in statuses(LOST_BOTH_END)),
    *((status, False, False) for status in statuses(LOST_BOTH_STAY)),
    *((status, True, False) for status in statuses(LOST_ONLY_UPSMON_ENDS)),
    *((status, False, True) for status in statuses(LOST_ONLY_WE_END)),
]


@pytest.mark.parametrize(("status", "by_upsmon", "by_us"), LOST)
def test_the_end_by_a_lost_upsd_is_upsmons(status: str, by_upsmon: bool, by_us: bool) -> None:
    """After a last word, silence for a minute."""
    upses = Upses()
    before = upses.look(ups(status), seconds=20)
    assert upsmon(status, lost=True) is by_upsmon
    assert (before is not None or upses.look(None, seconds=60) is not None) is by_us


CHARGES = [
    *(("OB DISCHRG", charge, False) for charge in (100, 20, 6, 5.1)),
    *(("OB DISCHRG", charge, True) for charge in (5, 4.9, 1, 0)),
    *(("OL CHRG", charge, False) for charge in (100, 5, 0)),
    *(("OL", charge, False) for charge in (5, 0)),
    *(("CAL OB DISCHRG", charge, False) for charge in (8, 5, 0)),
    *(("OB", charge, False) for charge in (None, "unknown", 255, 65535, -1)),
    *(("OB LB", charge, True) for charge in (None, 85, 255)),
]


@pytest.mark.parametrize(("status", "charge", "ends"), CHARGES)
def test_the_end_by_charge(status: str, charge: object, ends: bool) -> None:
    """On battery a charge at the critical line is the end, also where the UPS does not say LB as
    upsmon wants.
    """
    assert (Upses().look(ups(status, charge=charge), seconds=60) is not None) is ends


def test_the_tables_are_as_large_as_they_say() -> None:
    """At least 150 sets, none of them twice."""
    assert len(STATUSES) + len(LOST) + len(CHARGES) >= 200
    assert len({status for status, _, _ in STATUSES}) == len(STATUSES)


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        ("OB LB", "OL", False),
        ("OB LB", "OB", False),
        ("OB LB", "OB LB", True),
        ("FSD OL", "OL", False),
        ("FSD OL", "OB LB", True),
        ("OB LB", "CAL OB LB", False),
        ("OB LB", "OFF", True),
        ("OB LB", "OL LB", False),
        ("OB", "OL", False),
    ],
)
def test_a_machine_ends_with_its_last_ups(first: str, second: str, ends: bool) -> None:
    """As with upsmon's MINSUPPLIES 1: one that is on line or has charge left is something to live
    on.
    """
    assert (Upses(2).look(ups(first), ups(second), seconds=60) is not None) is ends


def test_a_ups_that_is_not_heard_is_nothing_to_live_on() -> None:
    """It was on line a minute ago and longer: nobody knows what it is now."""
    upses = Upses(2)
    upses.look(ups("OL"), ups("OL"))
    assert upses.look(ups("OB LB"), None, seconds=55) is None
    assert upses.look(ups("OB LB"), None, seconds=60) is not None
    assert Upses(2).look(ups("OB LB"), None, seconds=60) == 30


def test_waits() -> None:
    """FSD at once; a lost UPS after --shutdown-after since it was heard last, but at least 15 s."""
    assert Upses().look(ups("FSD OL"), seconds=60) == 0
    assert Upses().look(ups("OB LB"), seconds=60) == 30
    for after, due in ((30.0, 30), (0.0, 15), (300.0, 300)):
        upses = Upses(shutdown_after=after)
        upses.look(ups("OB"), seconds=5)
        upses.time.pass_(5)
        assert upses.look(None, seconds=400) == due


def test_a_upsd_that_restarts_on_battery_does_not_shut_down() -> None:
    """Ten seconds without an answer are no end."""
    upses = Upses(shutdown_after=0.0)
    for _ in range(20):
        assert upses.look(ups("OB"), seconds=20) is None
        assert upses.look(None, seconds=5) is None


def test_a_status_that_is_empty_for_a_while_changes_nothing() -> None:
    """A driver that begins anew says nothing, or WAIT: neither an end nor a recovery."""
    upses = Upses(shutdown_after=120.0)
    assert upses.look(ups("OB LB"), seconds=60) is None
    assert upses.look({"battery.charge": "80"}, seconds=30) is None
    assert upses.look(ups("OB LB"), seconds=60) is not None


def test_shutdown_on_battery() -> None:
    """So many seconds on battery, whatever the charge; mains begins the count anew, a calibration
    does not count.
    """
    upses = Upses(shutdown_on_battery=300.0)
    assert upses.look(ups("OL"), seconds=600) is None
    assert upses.look(ups("OB CAL"), seconds=600) is None
    assert upses.look(ups("OB"), seconds=290) is None
    assert upses.look(ups("OL"), seconds=5) is None
    upses.time.pass_(5)
    assert upses.look(ups("OB"), seconds=600) == 300


@pytest.mark.parametrize(
    ("status", "runtime", "due"),
    [
        ("OB", 299, 30),
        ("OB", 301, None),
        ("OL", 10, None),
        ("OB CAL", 10, None),
        ("OB", None, None),
    ],
)
def test_shutdown_by_runtime(status: str, runtime: object, due: float | None) -> None:
    """Less than five minutes left on battery, for --shutdown-after."""
    upses = Upses(shutdown_runtime=300.0)
    assert upses.look(ups(status, runtime=runtime), seconds=60) == due


def test_shutdown_by_the_runtime_of_packs(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """Both packs' watt-hours over their watts: 5 Wh for 30 W are 10 minutes."""
    tree.battery("BAT0", capacity=8, energy_full=50_000_000, current_now=3_000_000)
    tree.battery("BAT1", capacity=10, energy_full=10_000_000, current_now=0, status="Not charging")
    one = machine(shutdown_runtime=606.0, **SHUTDOWN)
    one.tick(7)
    assert runs == ["BAT0"]
    other = machine(shutdown_runtime=594.0, **SHUTDOWN)
    other.tick(20)
    tree.battery("BAT0", energy_full=None)  # unknown: nothing can be said
    other.tick(20)
    assert len(runs) == 1


def test_shutdown_on_battery_by_packs(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """However full they are, and however they take turns; charging begins the count anew."""
    tree.supply("AC", type="Mains", online=1)
    tree.battery("BAT0", capacity=90, status="Charging")
    tree.battery("BAT1", capacity=90, status="Not charging")
    one = machine(shutdown_on_battery=60.0, **SHUTDOWN)
    one.tick(20)
    tree.supply("AC", online=0)
    for _ in range(3):
        tree.battery("BAT0", status="Discharging")
        tree.battery("BAT1", status="Not charging")
        one.tick(2)
        tree.battery("BAT0", status="Not charging")
        tree.battery("BAT1", status="Discharging")
        one.tick(2)
    assert runs == []
    one.tick()
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("charge", "online", "status", "ends"),
    [
        (80, 0, "Discharging", False),
        (80, 1, "Full", False),
        (3, 1, "Not charging", True),
        (None, 1, None, True),
    ],
)
def test_a_pack_of_ones_own_outlives_the_ups(
    tree: Tree,
    machine: Callable[..., Machine],
    runs: list[str],
    upsd: Upsd,
    charge: int | None,
    online: int,
    status: str | None,
    ends: bool,
) -> None:
    """A laptop whose UPS is empty, or forced off, lives on its battery while that has charge."""
    tree.supply("AC", type="Mains", online=online)
    tree.battery(capacity=charge, status=status)
    upsd.update("battery.charge: 4\nups.status: OB LB")
    machine(nut=[upsd.address], **SHUTDOWN).tick(10)
    assert runs == ([upsd.address] if ends else [])


def test_a_ups_on_line_does_not_feed_a_laptop_that_is_not_plugged_in(
    tree: Tree, machine: Callable[..., Machine], runs: list[str], upsd: Upsd
) -> None:
    """Its battery ends however full the UPS in the next room is."""
    tree.supply("AC", type="Mains", online=0)
    tree.battery(capacity=3)
    upsd.update("battery.charge: 100\nups.status: OL")
    machine(nut=[upsd.address], **SHUTDOWN).tick(10)
    assert runs == ["BAT0"]


def test_a_upsd_lost_on_battery_by_the_whole_collector(
    tree: Tree, machine: Callable[..., Machine], runs: list[str], upsd: Upsd
) -> None:
    """OB, then stale data, then nobody there: the end, once; and what follows is the next one."""
    upsd.update("battery.charge: 90\nups.status: OB")
    one = machine(nut=[upsd.address], **SHUTDOWN)
    one.tick(2)
    upsd.reply = b"ERR DATA-STALE\n"
    one.tick(3)
    upsd.reply = None
    one.tick(3)
    assert runs == []
    one.tick(20)
    assert runs == [upsd.address]
    assert ("shutdown", 0.0) in one.events() or ("shutdown", 90.0) in one.events()


def test_a_kernels_ups_that_goes_while_on_battery_is_lost(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """Its cable or driver is gone, not the power failure; one that goes while on line is no end."""
    tree.supply("ups", type="UPS", status="Discharging", capacity=70, online=0)
    one = machine(**SHUTDOWN)
    one.tick(2)
    away = tree.root / "ups"
    (tree.root / "sys/class/power_supply/ups").rename(away)
    one.tick(10)
    assert runs == ["ups"]
    away.rename(tree.root / "sys/class/power_supply/ups")
    tree.supply("ups", status="Full", online=1)
    one.tick(10)
    shutil.rmtree(tree.root / "sys/class/power_supply/ups")
    one.tick(20)
    assert runs == ["ups"]


def test_a_machine_that_slept_on_battery_waits_anew() -> None:
    """Neither hours on battery nor a silence from before the sleep end it at once."""
    for upses, status in ((Upses(shutdown_on_battery=60.0), "OB"), (Upses(), "OB LB")):
        upses.look(ups(status), seconds=25)
        upses.time.pass_(8 * 3600)
        upses.watch.has_slept(upses.time.now)
        assert upses.look(ups(status), seconds=25) is None
        assert upses.look(ups(status), seconds=60) is not None


def test_a_laptop_that_slept_on_battery_counts_anew(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """An hour on battery does not include the night."""
    tree.battery(capacity=90)
    one = machine(shutdown_on_battery=3600.0, **SHUTDOWN)
    one.tick(20)
    one.time.pass_(8 * 3600)
    one.tick(700)
    assert runs == []
    one.tick(40)
    assert runs == ["BAT0"]


def test_a_silence_from_before_the_sleep_counts_anew() -> None:
    """A upsd needs a moment after the network has come back."""
    upses = Upses()
    upses.look(ups("OB"), seconds=5)
    for silent in (20, 5):
        upses.look(ups("OB"), seconds=5)
        upses.look(None, seconds=silent)
        upses.time.pass_(8 * 3600)
        upses.watch.has_slept(upses.time.now)
        assert upses.look(None, seconds=25) is None
        assert upses.look(ups("OL"), seconds=60) is None


def test_recovery_is_said_and_arms_again(caplog: pytest.LogCaptureFixture) -> None:
    """Each time that the machine ends is one run."""
    upses = Upses()
    for _ in range(2):
        assert upses.look(ups("OB LB"), seconds=60) == 30
        assert upses.look(ups("OB LB"), seconds=600) is None
        assert upses.look(ups("OL LB CHRG"), seconds=10) is None
    assert (
        caplog.messages == ["ups0: critical; shutdown in 30 s", "ups0: recovered; no shutdown"] * 2
    )


def test_a_calibration_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A word in the log, not one at every look."""
    upses = Upses()
    assert upses.look(ups("CAL OB DISCHRG LB", charge=8), seconds=3600) is None
    assert caplog.messages == ["ups0: critical, but calibrating; no shutdown for that"]


@pytest.mark.parametrize("charge", [None, 60, 4])
def test_a_pack_whose_charge_is_lost(
    tree: Tree, machine: Callable[..., Machine], runs: list[str], charge: int | None
) -> None:
    """An unknown charge ends no machine; one that was critical before it was lost does."""
    tree.battery(capacity=charge)
    one = machine(**(SHUTDOWN | {"shutdown_after": 120.0}))
    one.tick(2)
    tree.battery(capacity=None)
    one.tick(60)
    assert runs == (["BAT0"] if charge == 4 else [])
    one.collector.journal.commit()
    assert one.readings()[-1].charge_pct is None


def test_a_pack_of_unknown_charge_is_nothing_to_live_on(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """With another one critical the machine ends; a limit that was asked for ends it, too."""
    tree.battery(capacity=None)
    tree.battery("BAT1", capacity=30)
    one = machine(**SHUTDOWN)
    one.tick(20)
    assert runs == []
    tree.battery("BAT1", capacity=4)
    one.tick(10)
    assert runs == ["BAT1"]


def test_a_limit_ends_a_pack_of_unknown_charge(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """--shutdown-on-battery is what helps a pack without a gauge."""
    tree.battery(capacity=None)
    machine(**(SHUTDOWN | {"shutdown_on_battery": 100.0})).tick(30)
    assert runs == ["BAT0"]


def test_a_ups_of_something_else_neither_ends_the_machine_nor_keeps_it_alive(
    tree: Tree, machine: Callable[..., Machine], runs: list[str], db: Path
) -> None:
    """With --shutdown-ignore it is logged, and that is all."""
    tree.supply("desk", type="UPS", status="Charging", capacity=90, voltage_now=12_000_000)
    tree.supply("rack", type="UPS", status="Discharging", capacity=3, voltage_now=12_000_000)
    one = machine(**(SHUTDOWN | {"commit_every": 0.0, "shutdown_ignore": ["rack"]}))
    one.tick(20)
    assert runs == []  # it is the desk's that feeds this machine
    one.collector.finish()
    two = machine(**(SHUTDOWN | {"commit_every": 0.0, "shutdown_ignore": ["desk"]}))
    two.tick(20)
    assert runs == ["rack"]
    assert {meter.charge_pct for meter in (meter_of(db, "desk"), meter_of(db, "rack"))} == {90, 3}


def test_a_supply_of_something_else_says_nothing_of_mains(
    tree: Tree, machine: Callable[..., Machine], runs: list[str]
) -> None:
    """Nor does it keep the machine alive while its own is off."""
    tree.supply("other", type="Mains", online=1)
    tree.supply("AC", type="Mains", online=0)
    tree.battery(status="Unknown", capacity=4)
    machine(**SHUTDOWN).tick(20)
    assert runs == []
    machine(**(SHUTDOWN | {"shutdown_ignore": ["other"]})).tick(20)
    assert runs == ["BAT0"]


def test_what_is_said_of_what_is_ignored(
    tree: Tree, db: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """--test-shutdown names it; a name of nothing is a slip of the pen; without any other there is
    a doubt.
    """
    tree.battery(capacity=3)
    words = ["run", "dev", "--root", str(tree.root), "--db", str(db), "--test-shutdown"]
    words += ["--shutdown-command", "true", "--shutdown-ignore"]
    assert pc.main([*words, "BAT0"]) == 0
    said = capsys.readouterr().out
    assert "BAT0: does not count (--shutdown-ignore)" in said
    assert "no shutdown: there is no battery or UPS" in said
    assert (
        "can never run as things are: there is no battery or UPS but those of --shutdown-" in said
    )
    assert pc.main([*words, "BAT1"]) == 0
    assert "--shutdown-ignore: no sensor is named BAT1" in caplog.text
    assert "shutdown in 30 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("charges", "ends"),
    [([2, 1, 0], True), ([1, 0], False), ([0], False), ([1, 2, 4, 3, 2], True), ([1, 3, 2], False)],
)
def test_a_gauge_without_a_direction_that_starts_nearly_empty(
    tree: Tree,
    machine: Callable[..., Machine],
    runs: list[str],
    caplog: pytest.LogCaptureFixture,
    charges: list[int],
    ends: bool,
) -> None:
    """It has to be seen falling by 2 points: most often it is there because somebody has just begun
    to charge it.
    """
    tree.battery(status="Unknown", capacity=charges[0], current_now=None)
    one = machine(**SHUTDOWN)
    for charge in charges:
        tree.battery(capacity=charge)
        one.tick(20)
    assert runs == (["BAT0"] if ends else [])
    said = "BAT0: neither its status nor mains says" in caplog.text
    hopeless = (
        f"From {charges[0]} % it cannot, so it shuts nothing down until it has been above 2 %"
    )
    assert (said, hopeless in caplog.text) == (True, charges[0] < 2)


# --- What is said of a shutdown


@pytest.mark.parametrize(
    ("supplies", "options", "said"),
    [
        ({}, {}, "can never run as things are: there is no battery or UPS"),
        (
            {"BAT0": {"capacity": None}},
            {},
            "can never run as things are: no battery or UPS says when it ends",
        ),
        ({"BAT0": {"capacity": None}}, {"shutdown_on_battery": 60.0}, ""),
        ({"BAT0": {"capacity": None}, "BAT1": {}}, {}, "BAT0: its charge is not known"),
        (
            {"BAT0": {"status": "Unknown"}},
            {},
            "BAT0: neither its status nor mains says whether it discharges",
        ),
        ({"BAT0": {"status": "Unknown"}, "AC": {"type": "Mains", "online": 0}}, {}, ""),
        ({"BAT0": {}}, {}, ""),
        ({"BAT0": {}}, {"once": True}, "with --once it can only run"),
        ({"BAT0": {}}, {"once": True, "shutdown_after": 0.0}, ""),
        (
            {"BAT0": {}},
            {"shutdown_command": ["no-such-program"]},
            "there is no program no-such-program",
        ),
        (
            {"BAT0": {}},
            {"shutdown_command": [], "shutdown_runtime": 5.0},
            "do nothing without --shutdown-command",
        ),
        ({}, {"shutdown_command": []}, ""),
        ({"mouse": {"scope": "Device"}}, {}, "there is no battery or UPS"),
    ],
)
def test_a_shutdown_that_can_never_come_is_said_at_the_start(
    tree: Tree,
    machine: Callable[..., Machine],
    caplog: pytest.LogCaptureFixture,
    supplies: dict[str, dict[str, Any]],
    options: dict[str, Any],
    said: str,
) -> None:
    """Once, by what is seen; where all is well nothing is said."""
    for name, files in supplies.items():
        if name == "AC":
            tree.supply(name, **files)
        else:
            tree.battery(name, **files)
    one = machine(**(SHUTDOWN | options))
    one.tick(10)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert bool(warnings) is bool(said)
    assert sum(said in text for text in warnings) == bool(said)


TESTED = """BAT0: 3 %, discharging, critical
BAT1: 80 %, idle
mains: off
no shutdown: BAT1: charge left above the critical threshold
"""


def test_test_shutdown_says_what_would_happen(
    tree: Tree, db: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It names every battery, mains, the verdict and its reason; it stores and runs nothing."""
    command = f"touch {tmp_path}/off"
    arguments = ["run", "dev", "--root", str(tree.root), "--db", str(db), "--test-shutdown"]
    arguments += ["--shutdown-command", command]
    tree.supply("AC", type="Mains", online=0)
    tree.battery("BAT0", capacity=3)
    tree.battery("BAT1", capacity=80, status="Not charging")
    assert pc.main(arguments, Time().clocks) == 0
    assert capsys.readouterr().out == TESTED
    tree.battery("BAT1", capacity=4)
    assert pc.main(arguments, Time().clocks) == 0
    assert "shutdown in 30 s, if nothing changes: BAT0: critical\n" in capsys.readouterr().out
    assert pc.main([*arguments, "--shutdown-after", "0"], Time().clocks) == 0
    assert "shutdown now: BAT0: critical\n" in capsys.readouterr().out
    assert (db.exists(), (tmp_path / "off").exists()) == (False, False)


def test_test_shutdown_where_nothing_can_end(
    tree: Tree, db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says why not, and what could never come."""
    arguments = ["run", "dev", "--root", str(tree.root), "--db", str(db), "--test-shutdown"]
    assert pc.main([*arguments, "--shutdown-command", "sh"]) == 0
    never = "--shutdown-command can never run as things are: there is no battery or UPS"
    nothing = f"mains: not known\nno shutdown: there is no battery or UPS\n{never}\n"
    assert capsys.readouterr().out == nothing
    tree.battery(status="Not charging", capacity=3)
    assert pc.main(arguments) == 0
    assert "no shutdown: nothing is known to be discharging\n" in capsys.readouterr().out


def test_test_shutdown_goes_by_the_devices_own_line(
    tree: Tree, db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the file knows the device, its critical charge counts."""
    with PowerManager(db) as pm:
        pm.register_device(
            "dev", "dev", low_battery_threshold=40.0, critical_battery_threshold=30.0
        )
    tree.battery(capacity=29)
    arguments = ["run", "dev", "--root", str(tree.root), "--db", str(db), "--test-shutdown"]
    assert pc.main(arguments, Time().clocks) == 0
    assert "BAT0: 29 %, discharging, critical" in capsys.readouterr().out


def test_test_shutdown_of_upses(upsd: Upsd, capsys: pytest.CaptureFixture[str], db: Path) -> None:
    """A calibration and a forced shutdown are named."""
    arguments = ["run", "dev", "--root", str(TREES / "absent"), "--db", str(db), "--test-shutdown"]
    arguments += ["--nut", upsd.address, "--shutdown-command", "sh"]
    upsd.update("battery.charge: 3\nups.status: CAL OB LB")
    assert pc.main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"no shutdown: {upsd.address}: calibrating\n" in shown
    upsd.update("ups.status: FSD OL")
    assert pc.main(arguments) == 0
    assert f"shutdown now: {upsd.address}: its primary says FSD\n" in capsys.readouterr().out


# --- Events that flap


def test_a_flapping_charger_is_one_event(tree: Tree, machine: Callable[..., Machine]) -> None:
    """An hour of on and off every 5 s is one restore and one charge_start, and costs one commit a
    minute.
    """
    tree.supply("AC", type="Mains", online=0)
    tree.battery()
    one = machine()
    commits = count_commits(one)
    for look in range(720):
        on = look % 2
        tree.supply("AC", online=on)
        tree.battery(status="Charging" if on else "Discharging")
        one.tick()
    assert one.events() == [("charge_start", 60.0), ("restore", 60.0)]
    assert len(commits) <= 63


def test_after_a_while_of_peace_the_next_is_an_event_again(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """Two minutes of the same state end the unrest; a short failure between is told when it
    ends.
    """
    tree.supply("AC", type="Mains", online=1)
    tree.battery(status="Full")
    one = machine()
    one.tick(30)
    for quiet in (2, 2, 30, 2, 30):
        tree.supply("AC", online=0)
        one.tick(2)
        tree.supply("AC", online=1)
        one.tick(quiet)
    one.tick(2)
    assert one.events() == [("restore", 60.0)] * 2


@pytest.mark.parametrize(("hold", "count"), [(120.0, 1), (0.0, 6), (10.0, 6), (11.0, 1)])
def test_the_hold_can_be_set(
    tree: Tree, machine: Callable[..., Machine], hold: float, count: int
) -> None:
    """--event-hold 0 tells every change."""
    tree.supply("AC", type="Mains", online=0)
    tree.battery()
    one = machine(event_hold=hold)
    for look in range(13):
        tree.supply("AC", online=look % 2)
        one.tick(2)
    assert one.events() == [("restore", 60.0)] * count


# --- Simulated days


class Laptop:
    """A simulated laptop of two packs, with the truth of its power beside what its sensors say."""

    def __init__(self, tree: Tree, seed: int) -> None:
        self.tree, self.random = tree, random.Random(seed)
        self.charge = {"BAT0": 60.0, "BAT1": 55.0}
        self.inside = {"BAT0": True, "BAT1": True}
        self.mains = True
        self.near_end_s = self.ended_s = 0.0
        self.shown: dict[str, dict[str, Any]] = {"AC": {}, "BAT0": {}, "BAT1": {}}
        tree.supply("AC", type="Mains", online=1)
        for name in self.charge:
            tree.battery(name, capacity=round(self.charge[name]), energy_full=24_000_000)

    def live(self, seconds: float) -> None:
        """Let time pass: one pack after the other supplies 12 W or is charged by it."""
        order = [name for name in self.charge if self.inside[name]]
        step = seconds / 3600 * 12 / 24 * 100
        active = ""
        for name in order if self.mains else reversed(order):
            full = self.charge[name] >= 100 if self.mains else self.charge[name] <= 1
            if not full:
                active = name
                moved = self.charge[name] + (step if self.mains else -step)
                self.charge[name] = min(max(moved, 1.0), 100.0)
                break
        # Between the critical line and its hysteresis it depends on where the charge came from.
        best = max((int(self.charge[name]) for name in order), default=100)
        self.near_end_s = 0.0 if self.mains or best >= 7 else self.near_end_s + seconds
        self.ended_s = 0.0 if self.mains or best > 5 else self.ended_s + seconds
        self.show(active)

    def show(self, active: str) -> None:
        """Write what the sensors say, some of it wrong or not at all."""
        self.write("AC", {"online": int(self.mains)})
        for name in self.charge:
            if not self.inside[name]:
                continue
            status = "Not charging"
            if name == active:
                status = "Charging" if self.mains else "Discharging"
            files: dict[str, Any] = {"status": status, "capacity": int(self.charge[name])}
            files["current_now"] = 1_200_000 if name == active else 0
            if self.random.random() < 0.1:
                files[self.random.choice(["status", "capacity", "current_now"])] = "garbage"
            if self.random.random() < 0.02:
                files["voltage_now"] = 5
            self.write(name, {"voltage_now": 10_000_000} | files)

    def write(self, name: str, files: dict[str, Any]) -> None:
        """Write the files that have changed."""
        self.tree.supply(name, **dict(files.items() - self.shown[name].items()))
        self.shown[name] = files

    def change(self) -> None:
        """Now and then somebody plugs, unplugs, or takes a pack out or puts another in."""
        chance = self.random.random()
        if chance < 0.012:
            self.mains = not self.mains
        elif chance < 0.018:
            name = self.random.choice(sorted(self.charge))
            place = self.tree.root / "sys/class/power_supply" / name
            self.inside[name] = not self.inside[name]
            self.shown[name] = {}
            if not self.inside[name]:
                shutil.rmtree(place)
            else:
                self.charge[name] = self.random.uniform(2, 100)
                number = self.random.randrange(10**6)
                self.tree.battery(name, energy_full=24_000_000, serial_number=number)


@pytest.mark.parametrize("seed", [0, 2, 46])
def test_days_of_a_laptop(
    tree: Tree, machine: Callable[..., Machine], runs: list[str], seed: int
) -> None:
    """Over a day of plugs, packs and bad values: off wherever nothing is left, and nowhere else."""
    laptop = Laptop(tree, seed)
    one = machine(interval=60.0, commit_every=900, **SHUTDOWN)
    was_due = False
    for _ in range(1440):
        laptop.change()
        laptop.live(60)
        before = len(runs)
        one.tick(seconds=60)
        if len(runs) > before:
            assert laptop.near_end_s >= 30, laptop.charge
        if laptop.ended_s == 180:
            was_due = True
            assert len(runs) > 0
            laptop.mains = True  # somebody comes with a charger
            runs.clear()
    manager = one.collector.journal.manager
    one.collector.journal.commit()
    assert manager.check() == []
    inside = {name for name, is_inside in laptop.inside.items() if is_inside}
    assert was_due
    for meter in manager.list_meters("dev"):
        assert meter.active or meter.name not in inside


class Judge:
    """What is to become of a machine behind one UPS, in so few words that it can be seen to be
    right.
    """

    def __init__(self) -> None:
        self.words: set[str] = set()
        self.silent_at: float | None = None
        self.ending_at: float | None = None
        self.has_run = False

    def is_due(self, status: str | None, now: float) -> bool:
        """Whether the command is to run at a look that heard this; None: nothing."""
        if status is None:
            self.silent_at = now if self.silent_at is None else self.silent_at
        else:
            self.silent_at = None
            self.words = set(status.split()) or self.words
        forced = "FSD" in self.words
        on_battery = "OB" in self.words and "CAL" not in self.words
        lost = self.silent_at is not None and now - self.silent_at >= 15
        if not (forced or (on_battery and ("LB" in self.words or lost))):
            self.ending_at, self.has_run = None, False
            return False
        if self.ending_at is None:
            is_lost = lost and "LB" not in self.words
            self.ending_at = self.silent_at if is_lost and self.silent_at is not None else now
        due = (forced or now - self.ending_at >= 30) and not self.has_run
        self.has_run |= due
        return due


@pytest.mark.parametrize("seed", range(10))
def test_weeks_of_a_ups_whose_upsd_comes_and_goes(seed: int) -> None:
    """The command is due where a few plain rules say so, at that very look, and nowhere else."""
    chance, upses, judge = random.Random(seed), Upses(), Judge()
    said = [
        *statuses("OL|OL CHRG|OL LB|OB|OB DISCHRG|OB LB|OB DISCHRG LB RB|CAL OB LB|OL CAL|"),
        None,
        None,
    ]
    weights = [9, 9, 2, 6, 6, 3, 2, 2, 2, 3, 4, 4]
    runs = 0
    for _ in range(2000):
        status = "FSD OL" if chance.random() < 0.01 else chance.choices(said, weights)[0]
        for _ in range(chance.choice((1, 1, 2, 3, 5, 8, 20))):
            values = None if status is None else ups(status)
            due = judge.is_due(status, upses.time.now)
            assert (upses.look(values) is not None) is due, (status, upses.time.now)
            runs += due
            upses.time.pass_(5.0)
    assert runs > 20


def test_a_night_of_power_failures_by_nut(
    tree: Tree, machine: Callable[..., Machine], runs: list[str], upsd: Upsd
) -> None:
    """Forty short failures, upsd restarting and data going stale meanwhile, are no end; the long
    one is.
    """
    upsd.update("battery.charge: 100\nbattery.voltage: 26.5\nups.realpower: 50\nups.status: OL")
    one = machine(nut=[upsd.address], **SHUTDOWN)
    one.tick(30)
    for failure in range(40):
        upsd.update(f"battery.charge: {100 - failure}\nups.status: OB DISCHRG")
        one.tick(6)
        upsd.reply = b"ERR DATA-STALE\n" if failure % 3 == 0 else b""
        one.tick(3)
        upsd.reply = b""
        upsd.update("ups.status: OL CHRG")
        one.tick(3 if failure % 2 else 40)
    assert runs == []
    kinds = [kind for kind, _ in one.events()]
    assert kinds.count("restore") == kinds.count("charge_start") <= 21
    for charge in range(60, 0, -1):
        status = "OB DISCHRG LB" if charge < 10 else "OB DISCHRG"
        upsd.update(f"battery.charge: {charge}\nups.status: {status}")
        one.tick(4)
        if charge == 10:
            assert runs == []
    assert runs == [upsd.address]
    assert one.collector.journal.manager.check() == []


def test_a_day_of_sleeps(tree: Tree, machine: Callable[..., Machine], runs: list[str]) -> None:
    """A machine that wakes with an empty battery has time to be plugged in, and is at the third
    awakening.
    """
    tree.supply("AC", type="Mains", online=0)
    tree.battery(capacity=9)
    one = machine(**SHUTDOWN)
    one.tick(20)
    for charge in (7, 5, 4):
        one.time.pass_(4 * 3600)
        tree.battery(capacity=charge)
        one.tick(5)
        assert runs == []
    tree.supply("AC", online=1)
    tree.battery(status="Charging")
    one.tick(200)
    assert runs == []
    tree.supply("AC", online=0)
    tree.battery(status="Discharging")
    one.tick(7)
    assert runs == ["BAT0"]


# --- One value costs that value


def test_derived_values_are_held_to_bounds(tree: Tree) -> None:
    """Watts over microvolts, and hundreds of volts times hundreds of amperes, are no values."""
    tree.battery(voltage_now=5, current_now=None, power_now=9_000_000)
    tree.battery("BAT1", voltage_now=3_900, current_now=None, power_now=15_000_000)
    tree.battery("BAT2", voltage_now=900_000_000, current_now=900_000_000)
    samples = [source.read() for source in pc.Supply.discover(str(tree.root))]
    assert [(s.current_draw, s.wattage) for s in samples] == [
        (None, 9.0),
        (None, 15.0),
        (900.0, None),
    ]


def test_an_absurd_value_costs_that_value_only(tree: Tree, machine: Callable[..., Machine]) -> None:
    """A look at microvolts takes neither the other battery's readings nor those that come later."""
    tree.battery(current_now=None, power_now=9_000_000)
    tree.battery("BAT1", capacity=70)
    one = machine(commit_every=0)
    one.tick(2)
    tree.battery(voltage_now=5)
    one.tick()
    tree.battery(voltage_now=10_000_000)
    one.tick(2)
    assert [(r.voltage, r.current_draw) for r in one.readings()] == [
        (10, 0.9), (10, 0.9), (5e-06, 0.9), (10, 0.9), (10, 0.9)
    ]  # fmt: skip
    assert len(one.readings("BAT1")) == 5


@pytest.mark.parametrize("bad", [2e6, float("nan"), -1e9])
def test_a_source_out_of_bounds_is_stored_as_unknown(
    tree: Tree, machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    """Whatever a source says, the row that comes of it can be stored."""
    tree.battery()
    one = machine(commit_every=0)
    sample = pc.Sample(voltage=bad, current_draw=bad, charge_pct=50.0, direction=pc.DISCHARGING)
    monkeypatch.setattr(pc.Supply, "_read", lambda _: sample)
    one.tick(2)
    assert [(r.voltage, r.current_draw, r.charge_pct) for r in one.readings()] == [
        (None, None, 50.0)
    ] * 2


def test_watts_out_of_bounds_are_stored_as_unknown(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """900 V and 900 A may each be measured; 810 kW are no machine's."""
    tree.battery(voltage_now=900_000_000, current_now=900_000_000)
    one = machine(commit_every=0)
    one.tick()
    assert [(r.voltage, r.current_draw) for r in one.readings()] == [(900.0, None)]


def pending(
    name: str, voltage: float, at: float, kind: MeterType = MeterType.MAIN
) -> pc.PendingReading:
    """A reading of 1 A."""
    return pc.PendingReading(at, name, kind, voltage, 1.0, None)


def test_a_refused_row_is_said_once_and_dropped(
    tree: Tree, machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    """What power_manager does not store, a name that none can have among it, costs no other row."""
    one = machine(commit_every=0)
    journal = one.collector.journal
    for number in range(4):
        journal.add(pending("good", 5.0, 1000.0 + number))
        journal.add(pending("bad", 2e6, 1000.0 + number))
        journal.add(pending("x" * 5000, 5.0, 1000.0 + number))
    for value in (float("nan"), 1.0):
        kind = power_manager.PowerEventType.RESTORE
        journal.happen(pc.Happening(1000.0, kind, value, "good", MeterType.MAIN, ""))
    assert journal.commit()
    assert (journal.waiting, journal.refused) == (0, 9)
    assert len(one.readings("good")) == 4
    assert one.events() == [("restore", 1.0)]
    assert caplog.text.count("bad: refused and left out: voltage: expected a number") == 1
    assert one.collector.finish() == 0
    assert "9 readings and events were refused" in caplog.text


def test_once_that_is_refused_is_an_error(tree: Tree, machine: Callable[..., Machine]) -> None:
    """A cron job's exit code says that something was left out."""
    tree.battery()
    one = machine(once=True)
    one.collector.journal.add(pending("bad", 2e6, 1000.0))
    one.tick()
    assert (len(one.readings()), one.collector.finish()) == (1, 1)


# --- Direction


def test_a_status_that_cannot_be_read_keeps_the_last_direction(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """Every sixth status is unreadable: neither the energy nor its sign suffers."""
    tree.supply("AC", type="Mains", online=1)
    tree.battery(status="Charging", voltage_now=12_000_000, current_now=None, power_now=30_000_000)
    one = machine()
    for look in range(60):
        tree.battery(status=None if look % 6 == 5 else "Charging")
        one.tick()
    one.collector.finish()
    with PowerManager(one.db, clock=lambda: one.time.day) as pm:
        (meter,) = pm.list_meters("dev")
        totals = pm.energy_totals(meter.id)
        assert totals.energy_in_wh == pytest.approx(30 * 59 * 5 / 3600)
        assert totals.energy_out_wh == 0
        assert pm.get_statistics(meter.id, days=1)[0].max_wattage == -30
    assert one.events() == []


def test_a_status_that_stays_unreadable_is_no_direction(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """After a minute the sign is unknown, and so are the watts; 0 A need no sign."""
    tree.supply("AC", type="Mains", online=1)
    tree.battery(status="Charging")
    one = machine(commit_every=0)
    one.tick()
    tree.battery(status=None)
    one.tick(14)
    assert [r.wattage for r in one.readings()] == [-10.0] * 13 + [None] * 2
    tree.battery(current_now=0)
    one.tick()
    assert one.readings()[-1].wattage == 0


def test_mains_known_to_be_off_means_discharging(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a status mains says the direction, also to `sources`; mains that is on says
    nothing.
    """
    tree.supply("AC", type="Mains", online=0)
    tree.supply("USB", type="USB", online=0)
    tree.battery(status="Unknown", current_now=-2_000_000)
    shown = {row["name"]: row for row in sources(tree.root, capsys=capsys)}
    assert (shown["BAT0"]["wattage"], shown["BAT0"]["current"]) == (20.0, 2.0)
    tree.supply("USB", online=1)
    shown = {row["name"]: row for row in sources(tree.root, capsys=capsys)}
    assert (shown["BAT0"]["wattage"], shown["BAT0"]["voltage"]) == (None, 10.0)


def test_mains_that_cannot_be_read_is_not_off(tree: Tree, machine: Callable[..., Machine]) -> None:
    """Of two supplies the one that was on cannot be read: it may still be."""
    tree.supply("AC", type="Mains", online=1)
    tree.supply("USB", type="USB", online=0)
    tree.battery(status="Unknown", capacity=2)
    one = machine(commit_every=0)
    one.tick()
    tree.supply("AC", online=None)
    one.tick(40)
    assert {r.wattage for r in one.readings()} == {None}
    tree.supply("AC", online=0)
    one.tick()
    assert one.readings()[-1].wattage == 10


def test_mains_that_goes_off_ends_a_held_charging(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """Nothing charges without mains, whatever the status was a moment ago."""
    tree.supply("AC", type="Mains", online=1)
    tree.battery(status="Charging")
    one = machine(commit_every=0)
    one.tick()
    tree.supply("AC", online=0)
    tree.battery(status=None)
    one.tick()
    assert [r.wattage for r in one.readings()] == [-10.0, 10.0]


@pytest.mark.parametrize(
    ("files", "step"),
    [
        ({"capacity": 60}, {"capacity": 1}),
        ({"capacity": 60, "energy_now": 30_000_000}, {"energy_now": 500_000}),
        (
            {"capacity": 60, "charge_now": 3_000_000, "charge_full": 5_000_000},
            {"charge_now": 50_000},
        ),
    ],
    ids=["charge", "energy counter", "charge counter"],
)
def test_a_falling_charge_means_discharging_and_a_rising_one_charging(
    tree: Tree, machine: Callable[..., Machine], files: dict[str, Any], step: dict[str, Any]
) -> None:
    """A gauge without status and mains has its direction from two points of charge on."""
    tree.battery(**({"status": "Unknown"} | files))
    one = machine(commit_every=0)
    for look in range(8):
        tree.battery(**{name: files[name] - size * look for name, size in step.items()})
        one.tick()
    for look in range(8):
        tree.battery(**{name: files[name] - size * (7 - look) for name, size in step.items()})
        one.tick()
    watts = [r.wattage for r in one.readings()]
    assert watts == [None] * 2 + [10.0] * 8 + [-10.0] * 6
    assert [kind for kind, _ in one.events()] == ["charge_start"]


def test_a_gauge_that_wavers_has_no_direction(tree: Tree, machine: Callable[..., Machine]) -> None:
    """A point up and down is noise; and a direction ends when the charge has not moved for half an
    hour.
    """
    tree.battery(status="Unknown", capacity=50)
    one = machine(commit_every=0)
    for look in range(20):
        tree.battery(capacity=50 - look % 2)
        one.tick()
    assert {r.wattage for r in one.readings()} == {None}
    tree.battery(capacity=48)
    one.tick(int(pc.TREND_HOLD) // 5 + 2)
    watts = [r.wattage for r in one.readings()][20:]
    assert (watts[0], watts[-1]) == (10.0, None)


def test_a_monitor_as_battery_has_its_direction_from_its_current(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """A HAT by INA219 charges where its current is negative; a few milliamperes are noise."""
    tree.hwmon(0, name="ina219", in1_input=4000, curr1_input=800)
    one = machine(maps={"ina219": pc.Mapping(MeterType.BATTERY, "", False)}, commit_every=0)
    one.tick()
    tree.hwmon(0, curr1_input=-2)
    one.tick()
    tree.hwmon(0, curr1_input=-500)
    one.tick()
    assert one.events() == [("charge_start", 0.0)]
    assert [r.wattage for r in one.readings("ina219")] == [3.2, -0.008, -2.0]


# --- Packs that come, go and change


def budget(one: Machine) -> dict[str, Any]:
    """The device's present budget."""
    with PowerManager(one.db, clock=lambda: one.time.day) as pm:
        return pm.power_budget_check(["dev"])["dev"]


def two_packs(tree: Tree) -> None:
    """An idle pack of 24 Wh at 50 %, and one of 48 Wh that supplies 12 W."""
    usual = {"voltage_now": 12_000_000, "current_now": None}
    tree.battery("BAT0", capacity=50, power_now=0, energy_full=24_000_000, **usual)
    tree.battery("BAT1", capacity=80, power_now=12_000_000, energy_full=48_000_000, **usual)


@pytest.mark.parametrize("once", [True, False], ids=["once", "in one run"])
def test_a_pack_that_was_pulled_out_counts_no_more(
    tree: Tree, machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture, once: bool
) -> None:
    """Its meter becomes inactive, said once, and active again when it is back."""

    def look() -> Machine:
        one = machine(once=True) if once else run
        one.tick(1 if once else 25)
        return one

    two_packs(tree)
    run = machine()
    look()
    pack = tree.root / "sys/class/power_supply/BAT1"
    pack.rename(tree.root / "BAT1")
    tree.battery("BAT0", power_now=12_000_000)
    for _ in range(2):
        one = look()
    assert (budget(one)["total_wattage"], budget(one)["estimated_runtime_hours"]) == (12.0, 1.0)
    assert caplog.text.count("BAT1: gone: its meter is inactive") == 1
    (tree.root / "BAT1").rename(pack)
    assert budget(look())["total_wattage"] == 24.0


def test_a_pack_that_says_it_is_not_present_counts_no_more(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """A driver that keeps the files of an empty bay says it in `present`."""
    two_packs(tree)
    one = machine()
    one.tick(2)
    tree.battery("BAT1", present=0)
    one.tick(10)
    assert budget(one)["battery_count"] == 2  # it may be back in a moment
    one.tick(20)
    assert budget(one)["battery_count"] == 1


def test_sensors_that_do_not_answer_are_not_gone(
    tree: Tree, machine: Callable[..., Machine], upsd: Upsd
) -> None:
    """Neither unreadable files, nor a class without its directory, nor a upsd that is down takes a
    meter.
    """
    two_packs(tree)
    upsd.update("battery.charge: 90\nups.status: OL")
    one = machine(nut=[upsd.address])
    one.tick()
    for name in ("voltage_now", "power_now", "capacity", "status"):
        tree.battery("BAT1", **{name: "garbage"})
    upsd.reply = b"ERR DATA-STALE\n"
    one.tick(60)
    manager = one.collector.journal.manager
    assert [meter.active for meter in manager.list_meters("dev")] == [True] * 3
    (tree.root / "sys").rename(tree.root / "away")
    upsd.reply = None
    one.tick(60)
    assert [meter.active for meter in manager.list_meters("dev")] == [True] * 3


def test_a_pack_that_is_pulled_out_twice_counts_no_more_twice(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """Each time that it goes its meter becomes inactive."""
    two_packs(tree)
    one = machine()
    pack = tree.root / "sys/class/power_supply/BAT1"
    for _ in range(2):
        one.tick(20)
        assert budget(one)["battery_count"] == 2
        pack.rename(tree.root / "BAT1")
        one.tick(40)
        assert budget(one)["battery_count"] == 1
        (tree.root / "BAT1").rename(pack)


def test_another_pack_of_the_same_capacity_is_one_line(
    tree: Tree, machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is said of a capacity that is what it was."""
    tree.battery(serial_number="A1")
    machine(once=True).tick()
    tree.battery(serial_number="B2")
    machine(once=True).tick()
    assert caplog.messages == ["BAT0: another pack: B2, was A1"]


def test_meters_of_others_are_left_alone(
    tree: Tree, machine: Callable[..., Machine], db: Path
) -> None:
    """A meter that somebody else has added keeps its capacity, and stays active without a
    source.
    """
    with PowerManager(db) as pm:
        pm.register_device("dev", "dev")
        pm.add_meter("dev", "battery", 99.0, "BAT0")
        pm.add_meter("dev", "battery", 10.0, "in the shed")
    tree.battery()
    one = machine(once=True)
    one.tick()
    shutil.rmtree(tree.root / "sys/class/power_supply/BAT0")
    other = machine(once=True)
    other.tick()
    meters = other.collector.journal.manager.list_meters("dev")
    assert [(m.name, m.capacity_wh, m.active) for m in meters] == [
        ("BAT0", 99.0, True),
        ("in the shed", 10.0, True),
    ]


@pytest.mark.parametrize("once", [True, False], ids=["once", "in one run"])
def test_another_capacity_is_taken_over(
    tree: Tree, machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture, once: bool
) -> None:
    """A pack of 72 Wh in the place of one of 24 Wh gives three times the hours, and a line in the
    log.
    """
    tree.battery(capacity=50, current_now=1_200_000, energy_full=24_000_000)
    run = machine()
    (machine(once=True) if once else run).tick()
    tree.battery(energy_full=72_000_000)
    one = machine(once=True) if once else run
    one.tick(1 if once else 30)
    assert budget(one)["estimated_runtime_hours"] == 3.0
    assert caplog.text.count("BAT0: its capacity is 72 Wh now, was 24 Wh") == 1


def test_a_capacity_that_glitches_or_wanders_is_no_other_pack(
    tree: Tree, machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    """One look at another capacity is none, half a percent is none; what adds up is."""
    tree.battery(energy_full=50_000_000)
    one = machine(commit_every=0)
    one.tick(2)
    for look in range(60):
        tree.battery(energy_full=999_000_000 if look in (4, 28) else 50_000_000 - look * 5_000)
        one.tick()
    (meter,) = one.collector.journal.manager.list_meters("dev")
    assert (meter.capacity_wh, "its capacity" in caplog.text) == (50.0, False)
    tree.battery(energy_full=49_000_000)
    one.tick(30)
    (meter,) = one.collector.journal.manager.list_meters("dev")
    assert meter.capacity_wh == 49.0


def test_a_capacity_of_ampere_hours_does_not_follow_the_volts(
    tree: Tree, machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    """Without a nominal voltage watt-hours move with the charge, and that is no other pack."""
    tree.battery(energy_full=None, charge_full=2_000_000, voltage_now=12_600_000)
    one = machine()
    for step in range(60):
        tree.battery(voltage_now=12_600_000 - step * 45_000)
        one.tick(2)
    (meter,) = one.collector.journal.manager.list_meters("dev")
    assert (meter.capacity_wh, "its capacity" in caplog.text) == (25.2, False)


def test_another_serial_number_is_another_pack(
    tree: Tree, machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, its capacity taken over, and the last volts and amperes are not its own."""
    tree.battery(serial_number="A1", energy_full=50_000_000)
    one = machine(commit_every=0)
    one.tick(2)
    shutil.rmtree(tree.root / "sys/class/power_supply/BAT0")
    one.tick()
    tree.battery(serial_number="B2", energy_full=50_200_000, current_now=None)
    one.tick()
    assert one.readings()[-1].current_draw is None
    one.tick(30)
    assert caplog.text.count("BAT0: another pack: B2, was A1") == 1
    (meter,) = one.collector.journal.manager.list_meters("dev")
    assert meter.capacity_wh == 50.2


def test_a_capacity_that_a_person_has_told_outlives_the_sensors_first(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """Where the pack says its capacity late, what somebody has set meanwhile stays."""
    tree.battery(energy_full=None)
    one = machine(once=True)
    one.tick()
    manager = one.collector.journal.manager
    manager.update_meter(only_meter(manager).id, capacity_wh=45.0)
    tree.battery(energy_full=50_000_000)
    machine(once=True).tick()
    assert only_meter(manager).capacity_wh == 45.0


def test_what_a_person_changes_of_a_meter_stays(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """A name and a capacity of one's own outlive restarts, until another pack is put in."""
    tree.battery(energy_full=50_000_000)
    one = machine(once=True)
    one.tick()
    manager = one.collector.journal.manager
    (meter,) = manager.list_meters("dev")
    manager.update_meter(meter.id, name="Main pack", capacity_wh=45.0)
    machine(once=True).tick()
    again = machine(once=True)
    again.tick()
    (meter,) = manager.list_meters("dev")
    assert (meter.name, meter.capacity_wh, len(one.readings("Main pack"))) == ("Main pack", 45, 3)
    tree.battery(energy_full=30_000_000)
    machine(once=True).tick()
    assert only_meter(manager).capacity_wh == 30.0


def test_a_capacity_that_comes_late_is_taken(tree: Tree, machine: Callable[..., Machine]) -> None:
    """A meter that was registered without one gets it as soon as it is known."""
    tree.battery(energy_full=None)
    one = machine()
    one.tick(2)
    tree.battery(energy_full=50_000_000)
    one.tick(20)
    (meter,) = one.collector.journal.manager.list_meters("dev")
    assert meter.capacity_wh == 50.0


def test_a_meter_becomes_inactive_also_after_a_failed_commit(
    tree: Tree, machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be written of a pack's end is written when the file can be again."""
    two_packs(tree)
    one = machine()
    one.tick()
    shutil.rmtree(tree.root / "sys/class/power_supply/BAT1")
    with monkeypatch.context() as patch:
        patch.setattr(one.collector.journal.manager, "log_many", full_disk)
        one.tick(40)
    one.tick(20)
    assert budget(one)["battery_count"] == 1


# --- Readings


def test_readings_are_grouped(tree: Tree, machine: Callable[..., Machine]) -> None:
    """After the first, writes happen once in --commit-every seconds; every reading keeps its own
    time.
    """
    tree.battery()
    one = machine(commit_every=60)
    one.tick(12)
    assert len(one.readings()) == 1
    one.tick()
    stamps = [reading.timestamp for reading in one.readings()]
    assert len(stamps) == 13
    assert (stamps[0], stamps[-1]) == (
        "2023-11-14T22:13:20.000000+00:00",
        "2023-11-14T22:14:20.000000+00:00",
    )


def test_at_a_threshold_the_reading_is_stored_at_once(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """Low, at the device's own threshold where it has one, and critical do not wait; what follows
    may.
    """
    with PowerManager(machine().db) as pm:
        pm.register_device("dev", "dev", low_battery_threshold=30.0)
    tree.battery(capacity=31)
    one = machine()
    one.tick(2)
    assert len(one.readings()) == 1
    tree.battery(capacity=30)
    one.tick(3)
    assert (len(one.readings()), one.events()) == (3, [("discharge", 30.0)])
    tree.battery(capacity=5)
    one.tick(3)
    assert len(one.readings()) == 6
    assert one.events() == [("discharge", 30.0), ("low_battery", 5.0)]


def count_commits(one: Machine) -> list[float]:
    """The times of the commits that have something to write, from now on."""
    commits: list[float] = []
    journal = one.collector.journal
    real = journal.commit

    def counted() -> bool:
        if journal.waiting:
            commits.append(one.time.now)
        return real()

    journal.commit = counted  # type: ignore[method-assign]
    return commits


@pytest.mark.parametrize("charge", [100, 20, 5, 1])
def test_a_battery_that_stays_low_costs_no_more_commits_than_a_full_one(
    tree: Tree, machine: Callable[..., Machine], charge: int
) -> None:
    """An hour at any charge is 61 commits: the first look, and one a minute."""
    tree.battery(capacity=charge)
    one = machine()
    commits = count_commits(one)
    one.tick(720)
    assert len(commits) == 60


def test_urgent_commits_have_a_rate(tree: Tree, machine: Callable[..., Machine]) -> None:
    """Forty chargers that come one after another cannot make a commit at every look."""
    for number in range(40):
        tree.battery(f"BAT{number}")
    one = machine(commit_every=600)
    commits = count_commits(one)
    for number in range(40):
        one.tick()
        tree.battery(f"BAT{number}", status="Charging")
    one.tick(82)
    assert len(commits) <= pc.URGENT_COUNT + 2
    assert [kind for kind, _ in one.events()] == ["charge_start"] * 40


def test_a_value_that_vanishes_costs_that_value_only(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """A battery's last volts and amperes stand in for a minute, then are unknown; its charge goes
    on.
    """
    tree.battery()
    one = machine(commit_every=0)
    one.tick()
    tree.battery(current_now=None, voltage_now=None, capacity=59)
    one.tick()
    assert [(r.voltage, r.current_draw, r.charge_pct) for r in one.readings()] == [
        (10, 1, 60),
        (10, 1, 59),
    ]
    tree.battery(status="Charging")
    one.tick()
    one.time.pass_(60)
    one.tick()
    assert [(r.voltage, r.current_draw, r.wattage) for r in one.readings()[2:]] == [
        (10, None, None),
        (None, None, None),
    ]


def test_a_rail_that_vanishes_is_used_again(tree: Tree, machine: Callable[..., Machine]) -> None:
    """Without a value there is no reading; when it is back, also under another number, it goes
    on.
    """
    chip = tree.hwmon(1, name="ina219", in1_input=5000, curr1_input=1000)
    one = machine(commit_every=0)
    one.tick()
    shutil.rmtree(chip)
    one.tick(8)
    assert len(one.readings("ina219")) == 1
    tree.hwmon(5, name="ina219", in1_input=5000, curr1_input=1000)
    one.tick(8)
    assert 2 <= len(one.readings("ina219")) <= 9
    assert len(one.collector.journal.manager.list_meters("dev")) == 1


def test_a_rail_that_moves_costs_one_reading(tree: Tree, machine: Callable[..., Machine]) -> None:
    """A driver loaded anew has another hwmon number: it is looked for at once."""
    chip = tree.hwmon(1, name="ina219", in1_input=5000, curr1_input=1000)
    one = machine(commit_every=0)
    one.tick(2)
    chip.rename(chip.with_name("hwmon5"))
    one.tick(3)
    assert len(one.readings("ina219")) == 4


def test_a_sensor_says_once_that_it_fails(
    tree: Tree, machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    """A line when it begins, a line when it ends."""
    caplog.set_level(logging.INFO)
    tree.hwmon(1, name="ina219", in1_input=5000, curr1_input=1000)
    one = machine()
    one.tick()
    tree.hwmon(1, in1_input="x", curr1_input="")
    one.tick(5)
    tree.hwmon(1, in1_input=5000, curr1_input=1000)
    one.tick(5)
    said = [text for text in caplog.messages if "ina219:" in text]
    assert said == ["ina219: nothing readable", "ina219: readable again"]


def test_min_change_keeps_the_energy(tree: Tree, machine: Callable[..., Machine]) -> None:
    """Readings like the last are left out, but not the one before a change, nor one in 15
    minutes.
    """
    tree.hwmon(1, name="ina219", in1_input=10000, curr1_input=1000)
    one = machine(commit_every=0, min_change=1.0)
    one.tick(100)
    tree.hwmon(1, curr1_input=2000)
    one.tick(1)
    assert [(r.wattage, r.timestamp[11:19]) for r in one.readings("ina219")] == [
        (10.0, "22:13:20"), (10.0, "22:21:35"), (20.0, "22:21:40"),
    ]  # fmt: skip
    one.tick(181)
    assert len(one.readings("ina219")) == 5
    one.tick(3)
    one.collector.finish()
    assert len(one.readings("ina219")) == 6


def test_min_change_keeps_a_change_of_charge(tree: Tree, machine: Callable[..., Machine]) -> None:
    """A point of charge is a change, as is a direction."""
    tree.battery()
    one = machine(commit_every=0, min_change=100.0)
    one.tick(2)
    tree.battery(capacity=59)
    one.tick()
    assert [r.charge_pct for r in one.readings()] == [60.0, 60.0, 59.0]
    tree.battery(status="Charging")
    one.tick()
    assert len(one.readings()) == 4


def test_min_change_goes_by_what_is_known(tree: Tree, machine: Callable[..., Machine]) -> None:
    """Watts that become unknown, or known, are a change; unknown ones stay alike."""
    tree.battery(current_now=None)
    one = machine(commit_every=0, min_change=1.0)
    one.tick(3)
    tree.battery(current_now=0)
    one.tick(3)
    tree.battery(current_now=None)
    one.time.pass_(pc.HOLD)
    one.tick(3)
    one.collector.finish()
    assert [reading.wattage for reading in one.readings()] == [None, None, 0, 0, None, None]


def test_min_change_leaves_no_gap_that_the_file_does_not_book(
    tree: Tree, db: Path, machine: Callable[..., Machine]
) -> None:
    """Where the file's max_gap is short, readings that do not change are kept as often."""
    PowerManager(db, max_gap=60.0).close()
    tree.hwmon(1, name="ina219", in1_input=10000, curr1_input=1000)
    one = machine(commit_every=0, min_change=1.0)
    one.tick(121)
    one.collector.finish()
    with PowerManager(db) as pm:
        (meter,) = pm.list_meters("dev")
        assert pm.energy_totals(meter.id).energy_out_wh == pytest.approx(10.0 * 600 / 3600)


@pytest.mark.parametrize(("interval", "said"), [(60.0, False), (61.0, True)])
def test_an_interval_beyond_max_gap_is_said(
    db: Path,
    machine: Callable[..., Machine],
    caplog: pytest.LogCaptureFixture,
    interval: float,
    said: bool,
) -> None:
    """Readings that are too far apart for energy are worth a word at the start."""
    PowerManager(db, max_gap=60.0).close()
    machine(interval=interval)
    assert ("no energy is booked" in caplog.text) is said


def test_a_meter_that_is_deleted_meanwhile_is_registered_anew(
    tree: Tree, machine: Callable[..., Machine], caplog: pytest.LogCaptureFixture
) -> None:
    """Deleting a meter, or the device, under a running collector costs no reading that comes
    then.
    """
    tree.battery()
    one = machine(commit_every=0)
    one.tick()
    with PowerManager(one.db) as pm:
        pm.delete_meter(only_meter(pm).id)
        one.tick(2)
        assert len(one.readings()) == 2
        pm.delete_device("dev")
    one.tick(2)
    assert len(one.readings()) == 2
    assert caplog.text.count("written again, 0 readings lost") == 2


def test_meters_are_registered_once_by_name(tree: Tree, db: Path) -> None:
    """A device and its meters that are there are used, with the names and thresholds they have."""
    tree.battery()
    with PowerManager(db) as pm:
        pm.register_device("dev", "My laptop", 7.0)
        mine = pm.add_meter("dev", "battery", 99.0, "BAT0")
    for _ in range(2):
        assert (
            pc.main(
                ["run", "dev", "--root", str(tree.root), "--db", str(db), "--once"], Time().clocks
            )
            == 0
        )
    with PowerManager(db) as pm:
        assert [(d.id, d.name, d.shutdown_threshold) for d in pm.list_devices()] == [
            ("dev", "My laptop", 7.0)
        ]
        assert [(m.id, m.capacity_wh) for m in pm.list_meters("dev")] == [(mine.id, 99.0)]


# --- Clocks


def test_a_clock_that_is_set_right_after_boot(tree: Tree, machine: Callable[..., Machine]) -> None:
    """What waits when the time of day jumps from 1970 is stored at its true time."""
    tree.battery()
    one = machine(commit_every=60)
    one.time.day = 10.0
    one.tick(6)
    one.time.day = NOON
    one.tick(7)
    stamps = [reading.timestamp for reading in one.readings()]
    assert stamps[0] == "1970-01-01T00:00:10.000000+00:00"
    assert stamps[1] == "2023-11-14T22:12:55.000000+00:00"
    assert len(stamps) == 13


def test_alerts_come_also_after_the_clock_was_set_back(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """A clock that was years ahead does not silence alerts until it has caught up."""
    tree.battery()
    one = machine()
    one.time.day = NOON + 9e8
    one.tick(3)
    one.time.day = NOON
    tree.battery(capacity=10)
    one.tick()
    assert one.events() == [("discharge", 10.0)]
    with PowerManager(one.db) as pm:
        assert only_meter(pm).charge_pct == 10.0


def test_a_clock_out_of_range_does_not_stop_the_run(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """Before 1970 and after 2200 readings are stored at the nearest time there is."""
    tree.battery()
    one = machine(commit_every=0)
    for day in (-100.0, 1e11):
        one.time.day = day
        one.tick()
    assert [reading.timestamp[:4] for reading in one.readings()] == ["1970", "2199"]


def test_jumps_are_said_and_do_not_stall_the_interval(
    tree: Tree, db: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop goes by a clock that cannot be set."""
    tree.battery()

    def jump(tick: int) -> None:
        time_.day += {3: 1e6, 6: -2e6}.get(tick, 0.0)

    time_ = Time(12, jump)
    assert pc.main(["run", "dev", "--root", str(tree.root), "--db", str(db)], time_.clocks) == 0
    assert (time_.now, caplog.text.count("the time of day has jumped")) == (1060.0, 2)


def test_old_readings_are_pruned_only_by_a_settled_clock(
    tree: Tree, machine: Callable[..., Machine]
) -> None:
    """Whole old hours go daily, but for their last reading, and not by a time of day that has just
    jumped.
    """
    tree.battery()
    one = machine(commit_every=0, keep_days=1)
    one.tick(100)
    one.time.day += 1e8
    one.tick(100)
    assert len(one.readings()) == 200
    one.tick(22)
    stamps = [reading.timestamp for reading in one.readings()]
    assert (stamps[0], len(stamps)) == ("2023-11-14T22:21:35.000000+00:00", 1 + 100 + 22)
    assert stamps[1] > "2026"


def test_prune_failures_are_logged(
    tree: Tree,
    machine: Callable[..., Machine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A prune that fails does not end the run."""
    one = machine(once=True, keep_days=1)
    monkeypatch.setattr(one.collector.journal.manager, "prune", full_disk)
    one.tick()
    assert "SQLITE_FULL" in caplog.text


# --- Failing storage


def test_a_full_disk_loses_nothing(
    tree: Tree,
    machine: Callable[..., Machine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Readings and events wait in memory, said once, and are written in order when there is space
    again.
    """
    tree.supply("AC", type="Mains", online=0)
    tree.battery()
    one = machine(commit_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(one.collector.journal.manager, "trigger_event", full_disk)
        patch.setattr(one.collector.journal.manager, "log_many", full_disk)
        one.tick(10)
        tree.supply("AC", online=1)
        one.tick(10)
    assert (caplog.text.count("SQLITE_FULL"), one.readings(), one.events()) == (1, [], [])
    one.tick()
    assert (len(one.readings()), one.events()) == (21, [("restore", 60.0)])
    assert "written again, 0 readings lost" in caplog.text
    (event,) = one.collector.journal.manager.get_events("dev")
    assert event.timestamp == one.readings()[10].timestamp


def test_a_commit_that_fails_is_tried_again_after_a_while(
    tree: Tree, machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at every look: an attempt may itself take its time."""
    tree.battery()
    one = machine(commit_every=0)
    attempts: list[object] = []

    def fail(rows: object, *, live: bool) -> int:
        attempts.append(rows)
        return full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(one.collector.journal.manager, "log_many", fail)
        one.tick(10, seconds=1)
    assert len(attempts) == 2


def test_a_group_that_fails_half_way_is_not_written_twice(
    tree: Tree, machine: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readings, new meters and events go in together or not at all."""
    tree.supply("AC", type="Mains", online=0)
    tree.battery()
    one = machine(commit_every=60)
    one.tick()
    tree.supply("AC", online=1)
    tree.battery("BAT1")
    with monkeypatch.context() as patch:
        patch.setattr(one.collector.journal.manager, "trigger_event", full_disk)
        one.tick(7)
        assert (len(one.readings()), one.readings("BAT1")) == (1, [])
    one.tick()
    assert (len(one.readings()), len(one.readings("BAT1")), one.events()) == (
        9,
        3,
        [("restore", 60.0)],
    )


def test_memory_stays_bounded_while_nothing_can_be_written(
    tree: Tree,
    machine: Callable[..., Machine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Beyond the limit the oldest give way, and how many is said."""
    monkeypatch.setattr(pc, "MAX_WAITING", 5)
    tree.battery()
    one = machine(commit_every=0)
    with monkeypatch.context() as patch:
        patch.setattr(one.collector.journal.manager, "log_many", full_disk)
        one.tick(9)
    one.tick()
    assert (len(one.readings()), "written again, 5 readings lost" in caplog.text) == (5, True)


def test_a_file_that_is_deleted_meanwhile_is_made_anew(
    tree: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is read after that goes into a new file, and where its directory is gone it waits in
    memory.
    """
    place = tmp_path / "place"
    place.mkdir()
    tree.battery()
    told = tmp_path / "told"
    one = Machine(tree, place / "power.db", commit_every=0, exec_command=recorder(told))
    one.tick(2)
    (place / "power.db").unlink()
    one.tick(3)
    assert len(one.readings()) == 3
    assert caplog.text.count("deleted or replaced meanwhile: opened again") == 1
    shutil.rmtree(place)
    one.tick(4)
    place.mkdir()
    one.tick(1)
    with PowerManager(one.db) as pm:
        pm.trigger_event("dev", "restore", 7.0)
        one.tick()
        assert pm.check() == []
    assert one.collector.finish() == 0
    assert (len(one.readings()), lines(told)) == (6, ["restore dev 7 "])


def test_a_file_that_is_replaced_meanwhile_is_used(
    tree: Tree, machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """A backup moved to the file's place gets the readings that come then, and its meter goes
    on.
    """
    tree.battery()
    one = machine(commit_every=0)
    one.tick(2)
    one.collector.journal.manager.backup(tmp_path / "backup.db")
    one.tick(2)
    (tmp_path / "backup.db").replace(one.db)
    Path(f"{one.db}-wal").unlink()
    Path(f"{one.db}-shm").unlink()
    one.tick(3)
    assert len(one.readings()) == 2 + 3


def test_readings_that_cannot_be_stored_at_the_end_are_reported(
    tree: Tree, db: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends with 1, and says what was lost."""
    tree.battery()
    monkeypatch.setattr(PowerManager, "log_many", full_disk)
    assert pc.main(["run", "dev", "--root", str(tree.root), "--db", str(db)], Time(3).clocks) == 1
    assert "3 readings and events are lost" in capsys.readouterr().err


def test_a_file_that_cannot_be_opened_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A place without the right to write, or no database at all, is one line and exit code 1."""
    (tmp_path / "text").write_text("no database" * 100)
    assert pc.main(["run", "dev", "--db", str(tmp_path / "text"), "--once"]) == 1
    assert capsys.readouterr().err.startswith("power-collector: ")


def test_a_wrong_device_id_ends_the_run(db: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What power_manager refuses is said, and the file closed."""
    assert pc.main(["run", " ", "--db", str(db)]) == 1
    assert "device_id: expected text" in capsys.readouterr().err


def test_events_that_cannot_be_read_are_said_once(
    tree: Tree,
    machine: Callable[..., Machine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Telling goes on when the file can be read again."""
    caplog.set_level(logging.INFO)
    one = machine(exec_command=["true"])
    with monkeypatch.context() as patch:
        patch.setattr(one.collector.journal.manager, "events_since", lambda sequence: full_disk())
        one.tick(3)
    assert caplog.text.count("events cannot be read") == 1


# --- The run, its signals and its end


def test_sigterm_loses_nothing(tree: Tree, db: Path) -> None:
    """A signal, here in the middle of a commit, ends the run with 0 and everything stored."""
    tree.battery()
    log_many = PowerManager.log_many

    def interrupted(self: PowerManager, readings: Any, *, live: bool) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return log_many(self, readings, live=live)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PowerManager, "log_many", interrupted)
        assert pc.main(["run", "dev", "--root", str(tree.root), "--db", str(db)]) == 0
    with PowerManager(db) as pm:
        assert len(pm.get_history(only_meter(pm).id)) == 1


CHILD = """
import json, os, signal, sys
import power_collector as pc
import power_manager

ignored, sent = json.loads(sys.argv[1])
for name in ("SIGHUP", "SIGINT", "SIGTERM"):  # whatever the shell that runs the tests ignores
    signal.signal(signal.Signals[name], signal.SIG_IGN if name in ignored else signal.SIG_DFL)
now, wait = 1000.0, power_manager.StopSignals.wait


def send_and_wait(self, seconds):
    global now
    now += seconds
    for name in [name for name, at in sent.items() if now >= at]:
        del sent[name]
        os.kill(os.getpid(), signal.Signals[name])
    return wait(self, 0.0)


power_manager.StopSignals.wait = send_and_wait
sys.exit(pc.main(sys.argv[2:], pc.Clocks(wall=lambda: 1.7e9 + now, boot=lambda: now)))
"""
END = 1149.5  # by the child's clock, which begins at 1000 s


def child(
    tree: Tree, db: Path, sent: dict[str, float], ignored: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """A collector in a process of its own, every second, that sends itself signals by its clock."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(CHECKOUT)])}
    arguments = ["run", "dev", "--root", str(tree.root), "--db", str(db), "--interval", "1"]
    command = [sys.executable, "-c", CHILD, json.dumps([ignored, sent]), *arguments]
    return subprocess.run(
        command, env=environment, text=True, capture_output=True, timeout=60, check=False
    )


def stored(db: Path) -> int:
    """The number of readings in a file that is sound."""
    with PowerManager(db) as pm:
        assert pm.check() == []
        return sum(1 for _ in pm.iter_history(only_meter(pm).id))


def test_kill_9_loses_at_most_the_last_commit_window(tree: Tree, db: Path) -> None:
    """Of 150 readings at least all but the last 60 are stored."""
    tree.battery()
    assert child(tree, db, {"SIGKILL": END}).returncode == -signal.SIGKILL
    assert 150 - 60 <= stored(db) <= 150


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 0), ("SIGINT", 130), ("SIGHUP", 0)])
def test_a_signal_in_another_process_loses_nothing(
    tree: Tree, db: Path, name: str, code: int
) -> None:
    """SIGTERM and a closed terminal end with 0, Ctrl-C with 130, and all with all 150 readings."""
    tree.battery()
    done = child(tree, db, {name: END})
    assert (done.returncode, stored(db)) == (code, 150), done.stderr


def test_nohup_is_kept(tree: Tree, db: Path) -> None:
    """Under nohup the end of the terminal does not end the run."""
    tree.battery()
    done = child(tree, db, {"SIGHUP": END - 100, "SIGTERM": END}, ignored=("SIGHUP",))
    assert (done.returncode, stored(db)) == (0, 150), done.stderr


def test_signals_are_given_back(tree: Tree, db: Path) -> None:
    """When a run has ended, its signals do what they did before."""
    tree.battery()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    during: list[Any] = []
    time_ = Time(3, lambda _: during.append(signal.getsignal(signal.SIGTERM)))
    assert pc.main(["run", "dev", "--root", str(tree.root), "--db", str(db)], time_.clocks) == 0
    assert signal.SIG_DFL not in during
    assert [signal.getsignal(number) for number in numbers] == before


def test_ctrl_c_does_not_hide_a_failure(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where readings could not be stored the exit code is 1, also after Ctrl-C."""
    tree.battery()
    monkeypatch.setattr(PowerManager, "log_many", full_disk)
    db = tmp_path / "full.db"
    time_ = Time(3, lambda tick: os.kill(os.getpid(), signal.SIGINT) if tick == 2 else None)
    assert pc.main(["run", "dev", "--root", str(tree.root), "--db", str(db)], time_.clocks) == 1


def test_a_run_in_a_thread_leaves_signals_alone(tree: Tree, db: Path) -> None:
    """Only the main thread can have handlers; elsewhere the run works without."""
    tree.battery()
    codes: list[int] = []
    arguments = ["run", "dev", "--root", str(tree.root), "--db", str(db), "--once"]
    thread = threading.Thread(target=lambda: codes.append(pc.main(arguments)))
    thread.start()
    thread.join(20)
    assert codes == [0]


def test_a_defect_still_writes_what_waits(
    tree: Tree, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even an error of the collector itself does not cost the readings."""
    tree.battery()
    time_ = Time(
        10, lambda tick: monkeypatch.setattr(pc.Supply, "_read", None) if tick == 5 else None
    )
    with pytest.raises(TypeError):
        pc.main(["run", "dev", "--root", str(tree.root), "--db", str(db)], time_.clocks)
    assert stored(db) == 5


def test_once_without_sensors_is_an_error(
    tree: Tree, db: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cron job that logs nothing should be known."""
    assert (
        pc.main(
            ["run", "dev", "--root", str(tree.root), "--db", str(db), "--once", "--map", "X=main"]
        )
        == 1
    )
    errors = capsys.readouterr().err
    assert "nothing to log" in errors
    assert "--map: no sensor is named X" in errors


def test_systemd_is_told(
    tree: Tree, db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY after the first look, WATCHDOG between looks however long the interval, STOPPING at the
    end.
    """
    tree.battery()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        sock.setblocking(False)
        heard: list[str] = []

        def listen(_: int) -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    heard.append(sock.recv(100).decode())

        time_ = Time(20, listen)
        arguments = ["--root", str(tree.root), "--db", str(db), "--interval", "300"]
        assert pc.main(["run", "dev", *arguments], time_.clocks) == 0
        listen(0)
    assert heard[0] == "READY=1\nWATCHDOG=1"
    assert (heard.count("WATCHDOG=1"), heard[-1], time_.now) == (19, "STOPPING=1", 1600.0)


def test_a_systemd_that_hangs_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages that are not taken are dropped."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for _ in range(5000):
            pc._notify("WATCHDOG=1")
        assert sock.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("path", ["/no/such/socket", "@power-collector-test-absent"])
def test_a_systemd_that_does_not_listen_is_no_problem(
    path: str,
    tree: Tree,
    db: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run whose socket, a file or an abstract name, has no listener stores, ends with 0 and
    complains of nothing.
    """
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    tree.battery()
    caplog.set_level(logging.WARNING)
    arguments = ["--root", str(tree.root), "--db", str(db), "--interval", "300"]
    assert pc.main(["run", "dev", *arguments], Time(20).clocks) == 0
    assert (stored(db), caplog.messages) == (2, [])


def test_the_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """WATCHDOG_PID says whom systemd wants to hear."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert pc._watchdog() == float("inf")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert pc._watchdog() == 1.0


def test_commands_do_not_inherit_systemds_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child must not answer for the collector."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/x")
    script = "import os, sys; open(sys.argv[1], 'w').write(str('NOTIFY_SOCKET' in os.environ))"
    pc._run_command([sys.executable, "-c", script, str(tmp_path / "out")], {}, 20)
    assert lines(tmp_path / "out") == ["False"]


# --- Command line


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """`sources` prints a table, with a dash for what is not known."""
    assert pc.main(["sources", "--root", str(TREES / "ups")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "name  type     V      A      W  charge %  capacity Wh  status",
        "ups0  ups   13.7  -0.80  -10.9      88.0         84.0  Charging",
    ]


def test_a_machine_without_sensors_is_told_what_to_name(
    tree: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sources` prints no empty table, and says on standard error what would do; JSON stays
    JSON.
    """
    for more, out in (([], ""), (["--json"], "[]\n")):
        assert pc.main(["sources", "--root", str(tree.root), *more]) == 0
        printed = capsys.readouterr()
        assert printed.out == out
        assert printed.err.startswith(f"power-collector: no sensors to use in {tree.root}/sys: ")
        for option in ("--nut", "--apcupsd", "--program"):
            assert option in printed.err


def test_what_is_wrong_with_a_source_is_in_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    """As on standard error, so that a program sees it."""
    words = ["sources", "--root", str(TREES / "absent"), "--nut", "127.0.0.1:1", "--json"]
    assert pc.main(words) == 0
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)
    assert row["problem"].startswith("upsd cannot be reached: ")
    assert row["problem"] in printed.err


def test_sources_of_a_upsd(upsd: Upsd, capsys: pytest.CaptureFixture[str]) -> None:
    """--nut is shown beside this machine's own; its name is its address."""
    upsd.update("battery.charge: 50\nups.status: OL")
    (row,) = sources(TREES / "absent", "--nut", upsd.address, capsys=capsys)
    assert (row["name"], row["type"], row["charge_pct"], row["status"]) == (
        upsd.address,
        "ups",
        50.0,
        "OL",
    )


@pytest.mark.parametrize(
    "line",
    [
        "",
        "run",
        "rnu d",
        "run d --interval 0",
        "run d --interval nan",
        "run d --interval often",
        "run d --interval -5s",
        "run d --intervl 5",
        "run d --inter 5",
        "run d --keep-days=-1",
        "run d --commit-every=-1",
        "run d --min-change=-1",
        "run d --exec ''",
        """run d --exec "'" """,
        "run d --exec-limit 0s",
        "run d --root /no/such",
        "sources --nut @",
        "sources --map x",
    ],
)
def test_usage_errors(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be understood ends with 2 and a usage line."""
    arguments = shlex.split(line)
    with pytest.raises(SystemExit) as caught:
        pc.main(arguments)
    err = capsys.readouterr().err
    assert (caught.value.code, err.startswith("usage: python3 power_collector.py ")) == (2, True)
    assert not arguments or "\npower-collector: " in err


def test_durations() -> None:
    """What was in seconds alone may have units too."""
    words = ["run", "d", "--interval", "1m30s", "--commit-every", "5m", "--exec-limit", "20"]
    options = pc._parser().parse_args([*words, "--shutdown-after", "0"])
    assert (options.interval, options.commit_every) == (90.0, 300.0)
    assert (options.exec_limit, options.shutdown_after) == (20.0, 0.0)


def test_examples() -> None:
    """The examples of the help are lines that the parser takes."""
    parser = pc._parser()
    for command in (parser, *parser.commands.values()):
        assert command.examples
        for example in command.examples:
            words = shlex.split(example.removeprefix(parser.prog))
            if words[0] in ("help", "completion"):
                with pytest.raises(SystemExit, match="0"):
                    parser.parse_args(words)
            else:
                assert parser.parse_args(words).command == words[0]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (PermissionError, 1)])
def test_sources_ends_quietly(
    error: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C and a system error have their exit codes."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pc.Supply, "discover", fail)
    assert pc.main(["sources"]) == code


def test_it_runs_as_a_script_beside_the_library(tmp_path: Path) -> None:
    """Two copied files are enough, as a script and as a module."""
    for name in (pc.__file__, power_manager.__file__):
        shutil.copy(str(name), tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "PYTHONWARNINGS": "error"
    }
    for how in (["power_collector.py"], ["-m", "power_collector"]):
        command = [sys.executable, *how, "sources", "--json", "--root", str(TREES / "ups")]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert (json.loads(done.stdout)[0]["name"], done.stderr) == ("ups0", "")


def test_the_readmes_commands_run(tmp_path: Path) -> None:
    """Every shell block of the README runs as it stands, beside the two files and the captured
    trees.
    """
    blocks = re.findall(r"```sh\n(.*?)```", _readme(), re.DOTALL)
    (tmp_path / "integrations").mkdir()
    shutil.copytree(
        HERE,
        tmp_path / "integrations/collector",
        ignore=shutil.ignore_patterns("__pycache__", ".*"),
    )
    shutil.copy(CHECKOUT / "power_manager.py", tmp_path)
    (tmp_path / "bin").mkdir()
    # What is done as root here only looks whether the files it names are there.
    stubs = {
        "sudo": 'for f; do case $f in /*) ;; *.py|*.service) test -f "$f" || exit 1 ;; esac; done'
    }
    stubs |= {"python3": f'exec {sys.executable} "$@"', "journalctl": ":", "systemctl": ":"}
    for name, text in stubs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "POWER_MANAGER_DB")
    }
    environment["PATH"] = f"{tmp_path}/bin:{environment['PATH']}"
    assert len(blocks) >= 4
    said = ""
    for block in blocks:
        command = ["sh", "-ec", block]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, block + done.stderr
        said += done.stdout
    for number, code in (("SIGKILL", -9), ("SIGTERM", 0)):
        assert re.search(rf"{number} after .* exit {code}, .* check ok\n", said), said


def _readme() -> str:
    return (HERE / "README.md").read_text(encoding="utf-8")


def test_the_readmes_settings_are_the_programs() -> None:
    """The table of options, variables and defaults is the one that the parser makes."""
    table = settings_table(pc._parser())
    shown = _readme().partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert shown == table, f"paste this into README.md:\n{table}"


def test_the_readmes_board_is_what_is_printed() -> None:
    """The README's output of a Jetson Orin Nano is that of its captured tree, errors first."""
    tree = str(TREES / "ina3221")
    script = (
        f"import sys, power_collector as pc; sys.exit(pc.main(['sources', '--root', {tree!r}]))"
    )
    path = os.pathsep.join([str(HERE), str(CHECKOUT)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    assert f"```text\n{done.stdout}```\n" in _readme()


def test_the_unit_is_hardened_and_valid() -> None:
    """The systemd unit has what its README promises, and systemd understands it."""
    text = (HERE / "power-collector.service").read_text()
    hardened = [
        "StateDirectoryMode=0700",
        "UMask=0077",
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
    ]
    for line in ("Type=notify", *hardened):
        assert f"\n{line}\n" in text
    assert re.search(r"\nWatchdogSec=\d+\n", text)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    command = ["systemd-analyze", "verify", "--man=no", str(HERE / "power-collector.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "power-collector.service:" in line]
    assert [line for line in complaints if "not executable" not in line] == []


def test_the_unit_shares_its_file() -> None:
    """It has power-service's user, directory and file, which the README and its polkit rule name,
    and keeps others out.
    """
    theirs = (CHECKOUT / "integrations/service/power-service.service").read_text().splitlines()
    ours = (HERE / "power-collector.service").read_text().splitlines()
    names = ("User=", "Group=", "StateDirectory=", "StateDirectoryMode=", "UMask=", "DynamicUser=")
    shared = [line for line in theirs if line.startswith(names)]
    assert shared == [line for line in ours if line.startswith(names)]
    file = "--db /var/lib/power-manager/power_manager.db"
    for unit in (ours, theirs):
        (command,) = (line for line in unit if line.startswith("ExecStart="))
        assert f" {file} " in f"{command} "
    assert f"sudo -u power python3 /opt/power-collector/power_manager.py {file}" in _readme()
    assert 'subject.user === "power")' in _readme()


def test_the_file_is_private(tree: Tree, db: Path) -> None:
    """A new database is its owner's alone."""
    tree.battery()
    assert (
        pc.main(["run", "dev", "--root", str(tree.root), "--db", str(db), "--once"], Time().clocks)
        == 0
    )
    assert db.stat().st_mode & 0o777 == 0o600
