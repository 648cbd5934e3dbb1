"""The contract of power_manager, as tests.

In order: helpers and fixtures; records and states; devices and meters; readings; alerts; events; runtime, statistics,
budget and report against a brute-force model; bad input; transactions; log_many and iter_history; threads and
processes; files; the first release; backup, prune and check; the command line; real recordings; the README's examples.

A test outside a class that takes `pm` runs three times: in memory, on a file, and on a file opened anew for every call.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import errno
import gc
import io
import itertools
import json
import math
import os
import random
import re
import runpy
import shlex
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

import power_manager
from power_manager import (
    DeviceRecord,
    InvalidValue,
    MeterType,
    NotFound,
    PowerEvent,
    PowerEventType,
    PowerManager,
    PowerManagerError,
    PowerMeter,
    PowerReading,
    PowerState,
    StorageError,
)

Opener = Callable[..., PowerManager]
Writer = Callable[[PowerManager, str], object]
HERE = Path(__file__).parent
DATA = HERE.parent / "shared" / "data"
MODULE = Path(power_manager.__file__)

NOW = 1_750_077_000.0  # 2025-06-16T12:30:00Z
SECOND = 1_000_000  # microseconds
HOUR = 3600 * SECOND
DAY = 24 * HOUR
YEARS = 20 * 365 * 86400.0  # seconds: how far a device without a clock of its own may be off


# --- Helpers ----------------------------------------------------------------------------------


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now: Any = NOW

    def __call__(self) -> float:
        """Epoch seconds."""
        return cast(float, self.now)


class Reopened:
    """A PowerManager whose file is opened for every call and closed after it."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path, self._clock = path, clock

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The method of that name, on a PowerManager of its own."""

        def call(*args: Any, **options: Any) -> Any:
            with PowerManager(self._path, clock=self._clock) as manager:
                return getattr(manager, name)(*args, **options)

        return call


class Row(NamedTuple):
    """One reading of the brute-force model."""

    us: int
    voltage: float
    current: float
    charge_pct: float

    @property
    def watts(self) -> float:
        """Watts out of the source, unrounded."""
        return self.voltage * self.current


def iso(us: float) -> str:
    """ISO 8601 text of microseconds since 1970."""
    return (datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=us)).isoformat(
        timespec="microseconds"
    )


def brute_force(
    rows: Iterable[Row],
    start: float = 0,
    end: float = math.inf,
    *,
    leading_in: bool = False,
    max_gap: float = 3600.0,
) -> dict[str, Any]:
    """Statistics of the readings from start on and before end, straight from their definition.

    leading_in: with the energy between the last reading before start and the first one after it, as in an hour's row.
    """
    ordered = sorted(rows)
    inside = [row for row in ordered if start <= row.us < end]
    if not inside:
        return {"reading_count": 0}
    energy_out = energy_in = 0.0
    for earlier, later in itertools.pairwise(ordered):
        counts = start <= later.us < end and (leading_in or earlier.us >= start)
        if counts and later.us - earlier.us <= max_gap * SECOND:
            energy = (earlier.watts + later.watts) / 2 * (later.us - earlier.us) / HOUR
            energy_out, energy_in = energy_out + max(energy, 0.0), energy_in + max(-energy, 0.0)
    watts, charges = [row.watts for row in inside], [row.charge_pct for row in inside]
    return {
        "reading_count": len(inside),
        "avg_wattage": sum(watts) / len(watts),
        "min_wattage": min(watts),
        "max_wattage": max(watts),
        "min_charge_pct": min(charges),
        "max_charge_pct": max(charges),
        "energy_out_wh": energy_out,
        "energy_in_wh": energy_in,
    }


def buckets(rows: Sequence[Row], length: int) -> list[tuple[str, dict[str, Any]]]:
    """Begin and statistics of each hour or day that has readings."""
    starts = sorted({row.us // length * length for row in rows})
    return [
        (iso(start), brute_force(rows, start, start + length, leading_in=True)) for start in starts
    ]


def random_rows(chance: random.Random, count: int, start_us: int) -> list[Row]:
    """Readings of all kinds: short and long gaps, both signs, values of few decimals and of many."""
    rows, us = [], start_us
    for _ in range(count):
        us += chance.choice(
            [
                1,
                SECOND,
                7 * SECOND + 3,
                60 * SECOND,
                600 * SECOND,
                1700 * SECOND,
                HOUR,
                HOUR + 1,
                3 * HOUR,
            ]
        )
        exact = chance.random() < 0.5
        voltage, current = (
            chance.uniform(3, 15),
            chance.choice([0.0, chance.uniform(-5, 5), chance.uniform(0, 2)]),
        )
        charge = chance.uniform(0, 100)
        rows.append(
            Row(us, voltage, current, charge)
            if exact
            else Row(us, *(round(x, 2) for x in (voltage, current, charge)))
        )
    return rows


def as_readings(meter_id: str, rows: Iterable[Row]) -> Iterator[tuple[Any, ...]]:
    """Rows as log_many takes them."""
    for row in rows:
        yield meter_id, row.voltage, row.current, row.charge_pct, iso(row.us)


def near(expected: dict[str, Any]) -> Any:
    """The same up to the order of floating-point sums."""
    return pytest.approx(expected, rel=1e-9, abs=1e-8)


def meter_part(pm: PowerManager, device_id: str, days: float, part: int = 0) -> dict[str, Any]:
    """The statistics in one meter's part of a report, by the names of the model."""
    meter = json.loads(pm.export_report(device_id, days))["meters"][part]
    if meter["reading_count"]:
        assert meter["energy_wh"] == pytest.approx(
            meter["energy_out_wh"] - meter["energy_in_wh"], abs=2e-9
        )
    return {key: value for key, value in meter.items() if key in brute_force([Row(0, 0, 0, 0)])}


def history(pm: PowerManager, meter_id: str) -> list[tuple[str, float, float, float]]:
    """Every stored reading of a meter."""
    return [
        (r.timestamp, r.voltage, r.current_draw, r.charge_pct) for r in pm.iter_history(meter_id)
    ]


def everything(pm: PowerManager) -> dict[str, Any]:
    """All that a PowerManager can tell about its file."""
    meters = pm.list_meters()
    return {
        "devices": pm.list_devices(),
        "meters": meters,
        "readings": {meter.id: history(pm, meter.id) for meter in meters},
        "statistics": {meter.id: pm.get_statistics(meter.id, days=36500) for meter in meters},
        "events": pm.events_since(0),
    }


def reread(path: Path) -> dict[str, Any]:
    """The same through a second PowerManager, and the file is whole."""
    with PowerManager(path) as second:
        assert second.check() == []
        return everything(second)


def types_of(events: Iterable[PowerEvent]) -> list[str]:
    """The types of events."""
    return [event.type.value for event in events]


def alerts_of(pm: PowerManager, device_id: str) -> list[str]:
    """The types of a device's events, in order of recording."""
    return [event.type.value for _, event in pm.events_since(0) if event.device_id == device_id]


def execute(path: Path, *statements: str) -> None:
    """Run SQL on a database file behind the library's back."""
    conn = sqlite3.connect(path)
    try:
        for statement in statements:
            conn.executescript(statement)
    finally:
        conn.close()


def fetch(path: Path, sql: str) -> list[Any]:
    """Rows of a database file, read behind the library's back."""
    conn = sqlite3.connect(path)
    try:
        return conn.execute(sql).fetchall()
    finally:
        conn.close()


def process(code: str, *args: object) -> subprocess.Popen[str]:
    """Run Python code in a process of its own, which can import power_manager and waits for its standard input."""
    env = {**os.environ, "PYTHONPATH": str(MODULE.parent)}
    command = [sys.executable, "-c", code, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


def finished(child: subprocess.Popen[str]) -> str:
    """Let a process go on, wait for it, and return what it printed."""
    out, err = child.communicate("go\n", timeout=60)
    assert (child.returncode, err) == (0, "")
    return out.strip()


class Broken(Exception):
    """Raised by tests where something has to fail."""


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond that many bytes; Python ignores the signal, so that writing fails as on a full disk."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def without_rights() -> Iterator[None]:
    """Be a user who may not write: root ignores permissions."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# --- Fixtures ---------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    """A clock that stands at NOW."""
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is, in tests that have one in a file."""
    return tmp_path / "power.db"


@pytest.fixture(params=["memory", "file", "reopened"])
def pm(request: pytest.FixtureRequest, path: Path, clock: Clock) -> Iterator[PowerManager]:
    """An empty PowerManager, of each kind of storage."""
    if request.param == "reopened":
        yield cast(PowerManager, Reopened(path, clock))
        return
    with PowerManager(":memory:" if request.param == "memory" else path, clock=clock) as manager:
        yield manager


@pytest.fixture
def opened(clock: Clock) -> Iterator[Opener]:
    """Open PowerManagers with settings of the test's own."""
    with ExitStack() as stack:

        def open_one(db_path: str | Path = ":memory:", **settings: Any) -> PowerManager:
            return stack.enter_context(PowerManager(db_path, **{"clock": clock, **settings}))

        yield open_one


@pytest.fixture
def device(pm: PowerManager) -> DeviceRecord:
    """The device dev-001."""
    return pm.register_device("dev-001", "Edge Node")


@pytest.fixture
def battery_meter(pm: PowerManager, device: DeviceRecord) -> PowerMeter:
    """A battery of 50 Wh on dev-001."""
    return pm.add_meter(device.id, "battery", capacity_wh=50.0, name="Pack")


@pytest.fixture
def solar_meter(pm: PowerManager, device: DeviceRecord) -> PowerMeter:
    """A solar panel on dev-001."""
    return pm.add_meter(device.id, MeterType.SOLAR, name="Panel")


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """Every SQLite connection that is opened from here on."""
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def recording(*args: Any, **options: Any) -> sqlite3.Connection:
        made.append(connect(*args, **options))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", recording)
    return made


def assert_closed(connections: list[sqlite3.Connection]) -> None:
    """Every one of these connections has been closed."""
    assert connections
    for connection in connections:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


class InFile:
    """Tests whose `pm` is in a file."""

    @pytest.fixture
    def pm(self, path: Path, clock: Clock) -> Iterator[PowerManager]:
        """An empty PowerManager in a file."""
        with PowerManager(path, clock=clock) as manager:
            yield manager


class InMemory:
    """Tests whose `pm` is in memory."""

    @pytest.fixture
    def pm(self, clock: Clock) -> Iterator[PowerManager]:
        """An empty PowerManager in memory."""
        with PowerManager(":memory:", clock=clock) as manager:
            yield manager


# --- Records, enums and constants -------------------------------------------------------------


def test_all_names_every_public_name() -> None:
    """`__all__` holds each public constant, class and function of the module, sorted, and nothing else."""
    defined = {
        name
        for name, value in vars(power_manager).items()
        if not name.startswith("_")
        and (name.isupper() or getattr(value, "__module__", "") == "power_manager")
    }
    assert set(power_manager.__all__) == defined
    assert len(power_manager.__all__) == len(defined)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOW_BATTERY_THRESHOLD", 20.0),
        ("CRITICAL_BATTERY_THRESHOLD", 5.0),
        ("FULL_BATTERY_THRESHOLD", 95.0),
        ("ALERT_HYSTERESIS", 2.0),
        ("DB_PATH", Path("power_manager.db")),
    ],
)
def test_constants(name: str, value: object) -> None:
    """The constants have the values of the contract."""
    assert getattr(power_manager, name) == value


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (MeterType, ["main", "battery", "solar", "ups"]),
        (PowerState, ["normal", "low", "critical", "charging", "unknown"]),
        (PowerEventType, ["charge_start", "discharge", "low_battery", "shutdown", "restore"]),
    ],
    ids=["MeterType", "PowerState", "PowerEventType"],
)
def test_enum_members_are_their_values(kind: Any, values: list[str]) -> None:
    """Members equal, print and serialise as their values, and are called as they are."""
    assert list(kind) == values
    assert [str(member) for member in kind] == values
    assert json.loads(json.dumps(list(kind))) == values
    assert [member.name for member in kind] == [value.upper() for value in values]


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ("DeviceRecord", ["id", "name", "shutdown_threshold", "target_wh"]),
        (
            "PowerMeter",
            [
                "id",
                "device_id",
                "type",
                "voltage",
                "current_draw",
                "capacity_wh",
                "charge_pct",
                "name",
            ],
        ),
        (
            "PowerReading",
            ["id", "meter_id", "voltage", "current_draw", "wattage", "charge_pct", "timestamp"],
        ),
        ("PowerEvent", ["id", "device_id", "type", "value", "timestamp", "note"]),
        (
            "PowerStatistics",
            [
                "meter_id",
                "start",
                "reading_count",
                "avg_wattage",
                "min_wattage",
                "max_wattage",
                "min_charge_pct",
                "max_charge_pct",
                "energy_out_wh",
                "energy_in_wh",
            ],
        ),
    ],
)
def test_record_fields(record: str, fields: list[str]) -> None:
    """A record begins with its promised fields; whatever follows has a default."""
    there = dataclasses.fields(getattr(power_manager, record))
    assert [field.name for field in there[: len(fields)]] == fields
    assert all(field.default is not dataclasses.MISSING for field in there[len(fields) :])


def test_device_record_defaults() -> None:
    """A device shuts down at 3 W and has no budget unless told."""
    record = power_manager.DeviceRecord("a", "A")
    assert (record.shutdown_threshold, record.target_wh) == (3.0, None)


def test_errors_are_builtins_too() -> None:
    """Each error is of the base class and of a builtin one."""
    assert issubclass(InvalidValue, (PowerManagerError, ValueError))
    assert NotFound.__mro__[1:4] == (PowerManagerError, ValueError, LookupError)
    assert StorageError.__mro__[1:3] == (PowerManagerError, OSError)


@pytest.mark.parametrize(
    "error", [InvalidValue("a"), NotFound("a"), StorageError("a.db", "gone")], ids=repr
)
def test_errors_cross_processes(error: PowerManagerError) -> None:
    """An error comes out of pickle as it went in: pools and queues hand errors on that way."""
    import pickle

    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def meter_of(kind: str, *, voltage: float = 0.0, charge: Any = 100.0, **more: Any) -> PowerMeter:
    """A meter record of some present state."""
    return PowerMeter("m", "d", MeterType(kind), voltage, 1.0, 0.0, charge, **more)


@pytest.mark.parametrize("kind", ["battery", "ups"])
@pytest.mark.parametrize(
    ("charge", "state"),
    [
        (0.0, "critical"),
        (4.999, "critical"),
        (5.0, "low"),
        (5.001, "low"),
        (20.0, "low"),
        (20.001, "normal"),
        (94.999, "normal"),
        (95.0, "charging"),
        (100.0, "charging"),
    ],
)
def test_power_state_of_charge(kind: str, charge: float, state: str) -> None:
    """A battery's or UPS's state follows from its charge, with both ends of low."""
    assert meter_of(kind, charge=charge).state == state


@pytest.mark.parametrize("kind", ["battery", "ups"])
@pytest.mark.parametrize("charge", [math.nan, math.inf, None, "80"], ids=repr)
def test_power_state_unknown_charge(kind: str, charge: object) -> None:
    """A charge that is not a number is an unknown state."""
    assert meter_of(kind, charge=charge).state is PowerState.UNKNOWN


@pytest.mark.parametrize(
    ("voltage", "state"),
    [(230.0, "normal"), (-12.0, "normal"), (0.0, "unknown"), (math.nan, "unknown")],
)
def test_power_state_main(voltage: float, state: str) -> None:
    """A main is normal while it carries voltage, whatever its charge, else unknown."""
    assert meter_of("main", voltage=voltage, charge=1.0).state == state


@pytest.mark.parametrize(
    ("charge", "state"), [(9.999, "critical"), (10.0, "low"), (50.0, "low"), (50.001, "normal")]
)
def test_power_state_with_thresholds_of_the_device(charge: float, state: str) -> None:
    """A device's own thresholds take the place of the constants."""
    meter = meter_of(
        "battery", charge=charge, low_battery_threshold=50.0, critical_battery_threshold=10.0
    )
    assert meter.state == state


@pytest.mark.parametrize("charge", [0.0, 4.0, 20.0, 50.0, math.nan])
def test_solar_state_always_charging(charge: float) -> None:
    """A panel is charging, whatever its values."""
    assert meter_of("solar", charge=charge).state is PowerState.CHARGING


def test_wattage_is_rounded_to_four_decimals() -> None:
    """Wattage is volts times amperes as shown."""
    assert PowerMeter("m", "d", MeterType.MAIN, 1.23456, 1.0, 0.0, 0.0).wattage == 1.2346


# --- Devices and meters -----------------------------------------------------------------------


def test_register_device(pm: PowerManager) -> None:
    """Registering returns the device as it is stored."""
    registered = pm.register_device("dev-001", "Edge Node", 4.5, 120.0)
    assert dataclasses.astuple(registered)[:4] == ("dev-001", "Edge Node", 4.5, 120.0)
    assert pm.get_device("dev-001") == registered


def test_register_device_defaults(pm: PowerManager) -> None:
    """The shutdown threshold is 3 W, without a budget."""
    assert dataclasses.astuple(pm.register_device("d", "D"))[:4] == ("d", "D", 3.0, None)


def test_register_device_by_position_and_by_name(pm: PowerManager) -> None:
    """The parameters have their promised names and order."""
    by_name = pm.register_device(device_id="d", name="D", shutdown_threshold=1, target_wh=2)
    assert pm.register_device("d", "D", 1, 2) == by_name


@pytest.mark.usefixtures("battery_meter")
def test_registering_again_keeps_everything(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """An update gives the device its new values and keeps meters, readings and events."""
    pm.log_power(battery_meter.id, 3.7, 1.0, 4.0)
    before = everything(pm)
    pm.register_device("dev-001", "Renamed", 5.0)
    after = everything(pm)
    assert (pm.get_device("dev-001").name, pm.get_device("dev-001").shutdown_threshold) == (
        "Renamed",
        5.0,
    )
    assert {**after, "devices": None} == {**before, "devices": None}


def test_list_devices_in_order_of_registration(pm: PowerManager) -> None:
    """Devices are listed as they came; an update moves none."""
    for name in ("b", "c", "a", "b"):
        pm.register_device(name, name)
    assert [device.id for device in pm.list_devices()] == ["b", "c", "a"]


def test_an_empty_database_lists_nothing(pm: PowerManager) -> None:
    """A new database has neither devices nor meters nor events."""
    assert (pm.list_devices(), pm.list_meters(), pm.events_since(0), pm.check()) == ([], [], [], [])


@pytest.mark.parametrize("kind", list(MeterType))
@pytest.mark.parametrize("as_text", [True, False], ids=["text", "member"])
def test_add_meter(pm: PowerManager, device: DeviceRecord, kind: MeterType, as_text: bool) -> None:
    """A new meter of any type has neither voltage nor current, and full charge."""
    meter = pm.add_meter(device.id, kind.value if as_text else kind, 50, "Name")
    assert dataclasses.astuple(meter)[1:8] == ("dev-001", kind, 0.0, 0.0, 50.0, 100.0, "Name")
    assert (type(meter.type), meter.wattage, meter.updated_at) == (MeterType, 0.0, None)
    assert pm.get_meter(meter.id) == meter


def test_add_meter_defaults(pm: PowerManager, device: DeviceRecord) -> None:
    """A meter has no capacity and no name unless told."""
    meter = pm.add_meter(device_id=device.id, meter_type="main")
    assert (meter.capacity_wh, meter.name) == (0.0, None)


def test_list_meters(pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter) -> None:
    """Meters are listed in order of adding, of one device or of all."""
    pm.register_device("other", "Other")
    third = pm.add_meter("other", "main")
    assert pm.list_meters("dev-001") == [battery_meter, solar_meter]
    assert pm.list_meters() == [battery_meter, solar_meter, third]


@pytest.mark.parametrize("device_id", ["dev-001", "nobody"])
@pytest.mark.usefixtures("device")
def test_list_meters_of_nothing(pm: PowerManager, device_id: str) -> None:
    """A device without meters, or an unknown one, lists nothing."""
    assert pm.list_meters(device_id) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda pm: pm.get_device("nobody"),
        lambda pm: pm.add_meter("nobody", "main"),
        lambda pm: pm.get_meter("nobody"),
        lambda pm: pm.log_power("nobody", 1.0, 1.0),
        lambda pm: pm.calculate_wattage("nobody"),
        lambda pm: pm.estimate_runtime("nobody"),
        lambda pm: pm.get_history("nobody"),
        lambda pm: pm.iter_history("nobody"),
        lambda pm: pm.get_statistics("nobody"),
        lambda pm: pm.trigger_event("nobody", "restore"),
        lambda pm: pm.get_events("nobody"),
        lambda pm: pm.export_report("nobody"),
        lambda pm: pm.log_many([("nobody", 1.0, 1.0)]),
    ],
    ids=lambda call: (
        re.findall(r"pm\.(\w+)", " ".join(call.__code__.co_names))[:1] or call.__code__.co_names[0]
    ),
)
def test_unknown_ids_raise(pm: PowerManager, call: Callable[[PowerManager], object]) -> None:
    """An id that nobody registered is named, and nothing is stored."""
    with pytest.raises(NotFound, match=r"no (device|meter) has the id 'nobody'"):
        call(pm)
    assert everything(pm)["devices"] == []


# --- Readings: live and recorded --------------------------------------------------------------


def test_log_power(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """A reading is returned as stored, and is the meter's present state."""
    reading = pm.log_power(battery_meter.id, 3.7, 0.5, 82.0)
    meter = pm.get_meter(battery_meter.id)
    assert dataclasses.astuple(reading)[1:] == (
        battery_meter.id,
        3.7,
        0.5,
        1.85,
        82.0,
        "2025-06-16T12:30:00.000000+00:00",
    )
    assert (meter.voltage, meter.current_draw, meter.charge_pct, meter.updated_at) == (
        3.7,
        0.5,
        82.0,
        reading.timestamp,
    )
    assert pm.get_history(battery_meter.id) == [reading]


def test_log_power_by_name(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """The parameters have their promised names."""
    reading = pm.log_power(
        meter_id=battery_meter.id, voltage=3.7, current=0.5, charge_pct=82.0, timestamp=NOW
    )
    assert pm.get_history(meter_id=battery_meter.id, hours=1) == [reading]


@pytest.mark.parametrize(
    ("given", "stored"),
    [(150.0, 100.0), (-5.0, 0.0), (100.0, 100.0), (0.0, 0.0), (1e300, 100.0), (-0.001, 0.0)],
)
def test_log_power_clamps_charge(
    pm: PowerManager, battery_meter: PowerMeter, given: float, stored: float
) -> None:
    """A charge outside 0 to 100 is brought to the nearer end."""
    assert pm.log_power(battery_meter.id, 3.7, 0.5, given).charge_pct == stored
    assert pm.get_meter(battery_meter.id).charge_pct == stored


def test_charge_none_keeps_the_last(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """Without a charge the meter's last one is kept; it is 100 before the first."""
    charges = [
        pm.log_power(battery_meter.id, 3.7, 0.5, charge).charge_pct for charge in (None, 40.0, None)
    ]
    assert charges == [100.0, 40.0, 40.0]


@pytest.mark.parametrize(
    ("voltage", "current", "charge"),
    [
        (3, 1, 80),
        (Decimal("3.7"), Fraction(1, 2), Decimal(80)),
        (-12.5, -1e-9, 1 / 3),
        (1e6, -1e6, 0.01),
        (5e-324, 1 / 3, 100),
    ],
    ids=["int", "exact", "tiny", "limits", "denormal"],
)
def test_values_come_back_to_the_last_bit(
    pm: PowerManager, battery_meter: PowerMeter, voltage: Any, current: Any, charge: Any
) -> None:
    """Whatever number is given is read back as the same float."""
    pm.log_power(battery_meter.id, voltage, current, charge)
    (reading,) = pm.get_history(battery_meter.id)
    values = (reading.voltage, reading.current_draw, reading.charge_pct)
    assert values == (float(voltage), float(current), float(charge))
    assert {type(value) for value in values} == {float}


def test_random_values_come_back_to_the_last_bit(opened: Opener) -> None:
    """Packing values into whole numbers loses nothing, for a thousand of them."""
    chance, pm = random.Random(1), opened()
    pm.register_device("d", "D")
    meter = pm.add_meter("d", "main")
    rows = [
        Row(
            int(NOW) * SECOND + i,
            chance.uniform(-1e6, 1e6),
            round(chance.uniform(-9, 9), chance.randrange(9)),
            chance.uniform(0, 100),
        )
        for i in range(1000)
    ]
    pm.log_many(as_readings(meter.id, rows))
    assert history(pm, meter.id) == [(iso(row.us), *row[1:]) for row in rows]


@pytest.mark.parametrize(
    "timestamp",
    [
        NOW,
        int(NOW),
        Decimal(NOW),
        datetime.fromtimestamp(NOW, timezone.utc),
        datetime.fromtimestamp(NOW, timezone(timedelta(hours=-5, minutes=-30))),
        "2025-06-16T12:30:00Z",
        "2025-06-16T12:30:00z",
        "2025-06-16 12:30Z",
        "2025-06-16T12:30:00+00:00",
        "2025-06-16T14:30:00.000000+02:00",
        "2025-06-16T12:30:00.0Z",
        "2025-06-16T12:30:00.0000009Z",
        "2025-06-16T12:30:00,000Z",
        "2025-06-16T12:30:00+0000",
    ],
    ids=str,
)
def test_timestamp_forms(pm: PowerManager, battery_meter: PowerMeter, timestamp: Any) -> None:
    """One instant may be given as epoch seconds, aware datetime, or ISO text with any offset, on every Python."""
    reading = pm.log_power(battery_meter.id, 3.7, 0.5, timestamp=timestamp)
    assert reading.timestamp == "2025-06-16T12:30:00.000000+00:00"


@pytest.mark.parametrize(
    "timestamp",
    [
        "1970-01-01T00:00:00.000000+00:00",
        "2200-12-31T23:59:59.999999+00:00",
        "2025-06-16T12:30:00.000001+00:00",
    ],
)
def test_timestamp_ends(pm: PowerManager, battery_meter: PowerMeter, timestamp: str) -> None:
    """The first and last instants of 1970 to 2200 are kept to the microsecond."""
    pm.log_power(battery_meter.id, 3.7, 0.5, timestamp=timestamp)
    assert history(pm, battery_meter.id)[0][0] == timestamp


def test_reading_ids_are_the_same_on_every_copy(
    pm: PowerManager, battery_meter: PowerMeter
) -> None:
    """A reading's id is made of its meter's id and its time."""
    first, second = (
        pm.log_power(battery_meter.id, 3.7, 0.5, 80.0, timestamp=NOW + i) for i in (0, 1)
    )
    again = pm.log_power(battery_meter.id, 3.7, 0.5, 80.0, timestamp=NOW)
    assert (first.id == again.id, first.id == second.id) == (True, False)
    assert first.id.startswith(battery_meter.id)


@pytest.mark.parametrize("jump", [-YEARS, YEARS], ids=["back", "forward"])
def test_live_reading_is_present_whatever_the_clock_says(
    pm: PowerManager, battery_meter: PowerMeter, clock: Clock, jump: float
) -> None:
    """After the clock has jumped by years a live reading is still the present state, and raises its alert."""
    pm.log_power(battery_meter.id, 3.9, 0.1, 90.0)
    clock.now = NOW + jump
    reading = pm.log_power(battery_meter.id, 3.5, 0.2, 4.0)
    meter = pm.get_meter(battery_meter.id)
    assert (meter.voltage, meter.charge_pct, meter.updated_at) == (3.5, 4.0, reading.timestamp)
    assert [(e.type, e.timestamp) for e in pm.get_events("dev-001")] == [
        ("low_battery", reading.timestamp)
    ]
    assert pm.check() == []


def test_live_reading_after_a_jump_there_and_back(
    pm: PowerManager, battery_meter: PowerMeter, clock: Clock
) -> None:
    """A clock that was years ahead and is right again leaves the later readings present."""
    for jump, charge in ((YEARS, 70.0), (0.0, 60.0), (1.0, 50.0)):
        clock.now = NOW + jump
        pm.log_power(battery_meter.id, 3.7, 0.1, charge)
    assert pm.get_meter(battery_meter.id).charge_pct == 50.0
    assert [row[3] for row in history(pm, battery_meter.id)] == [60.0, 50.0, 70.0]
    assert pm.check() == []


def test_live_readings_in_one_microsecond(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """Live readings at one instant are a microsecond apart, and the last is present."""
    stamps = [
        pm.log_power(battery_meter.id, 3.7, 0.1, charge).timestamp[17:26]
        for charge in (70.0, 60.0, 50.0)
    ]
    assert stamps == ["00.000000", "00.000001", "00.000002"]
    assert pm.get_meter(battery_meter.id).charge_pct == 50.0


def test_live_reading_takes_the_next_free_microsecond(
    pm: PowerManager, battery_meter: PowerMeter
) -> None:
    """Recorded readings around the present instant are neither replaced nor repeated."""
    for us in (0, 1, 3):
        pm.log_power(battery_meter.id, 1.0, 0.1, timestamp=iso(NOW * SECOND + us))
    stamps = [pm.log_power(battery_meter.id, 2.0, 0.1).timestamp[17:26] for _ in range(2)]
    assert stamps == ["00.000002", "00.000004"]


def test_recorded_reading_is_present_if_it_is_the_newest(
    pm: PowerManager, battery_meter: PowerMeter
) -> None:
    """A recorded reading becomes the present state, with its alert, when it is the newest of its meter."""
    pm.log_power(battery_meter.id, 3.9, 0.1, 90.0, timestamp=NOW - 100)
    pm.log_power(battery_meter.id, 3.5, 0.2, 4.0, timestamp=NOW - 50)
    assert pm.get_meter(battery_meter.id).charge_pct == 4.0
    assert [(e.type, e.value, e.timestamp) for e in pm.get_events("dev-001")] == [
        ("low_battery", 4.0, iso((NOW - 50) * SECOND))
    ]


def test_late_reading_leaves_the_present_alone(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """A recorded reading older than the newest is stored, and changes neither present state nor alerts."""
    pm.log_power(battery_meter.id, 3.9, 0.1, 90.0)
    before = pm.get_meter(battery_meter.id)
    pm.log_power(battery_meter.id, 3.5, 0.2, 4.0, timestamp=NOW - 50)
    assert pm.get_meter(battery_meter.id) == before
    assert pm.get_events("dev-001") == []
    assert len(history(pm, battery_meter.id)) == 2


def test_recorded_reading_must_be_newer_than_any_stored(
    pm: PowerManager, battery_meter: PowerMeter, clock: Clock
) -> None:
    """After the clock was set back a recorded reading between present and newest is a late one."""
    pm.log_power(battery_meter.id, 3.9, 0.1, 90.0)
    clock.now = NOW - YEARS
    pm.log_power(battery_meter.id, 3.8, 0.1, 80.0)
    pm.log_power(battery_meter.id, 3.7, 0.1, 70.0, timestamp=NOW - 10)
    assert pm.get_meter(battery_meter.id).charge_pct == 80.0


def test_duplicate_changes_nothing(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """A recorded reading that is there is not stored again, even with other values; the stored one is returned."""
    first = pm.log_power(battery_meter.id, 3.9, 0.1, 90.0, timestamp=NOW)
    before = everything(pm)
    assert pm.log_power(battery_meter.id, 1.0, 1.0, 1.0, timestamp=NOW) == first
    assert everything(pm) == before


def test_calculate_wattage(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """The present wattage has the sign of the current, and is 0 before the first reading."""
    assert pm.calculate_wattage(battery_meter.id) == 0.0
    pm.log_power(battery_meter.id, 3.70001, -1.5)
    assert pm.calculate_wattage(battery_meter.id) == -5.55


def test_get_history(pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter) -> None:
    """The history is that of one meter, newer than 24 hours ago, oldest first."""
    pm.log_power(solar_meter.id, 18.0, 1.0)
    for hours in (1, 25, 23.9, 24, 0):
        pm.log_power(battery_meter.id, 3.7, 0.1, hours, timestamp=NOW - 3600 * hours)
    assert [reading.charge_pct for reading in pm.get_history(battery_meter.id)] == [23.9, 1.0, 0.0]


@pytest.mark.parametrize(("hours", "count"), [(0, 0), (0.5, 1), (1, 1), (1.001, 2), (1e9, 3)])
def test_get_history_hours(
    pm: PowerManager, battery_meter: PowerMeter, hours: float, count: int
) -> None:
    """Only readings newer than that many hours are in it: one just as old is not."""
    for age in (600, 3600, 36000):
        pm.log_power(battery_meter.id, 3.7, 0.1, timestamp=NOW - age)
    assert len(pm.get_history(battery_meter.id, hours)) == count


# --- Alerts -----------------------------------------------------------------------------------


def test_low_battery_auto_event(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """A battery that falls to 20 % records one discharge event with its charge and time."""
    reading = pm.log_power(battery_meter.id, 3.4, 0.5, 15.0)
    (event,) = pm.get_events("dev-001")
    assert (event.type, event.value, event.timestamp) == (
        PowerEventType.DISCHARGE,
        15.0,
        reading.timestamp,
    )
    assert "Pack" in str(event.note)


def test_critical_battery_auto_event(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """A battery that falls to 5 % records one low_battery event, and only that."""
    pm.log_power(battery_meter.id, 3.1, 0.5, 3.0)
    (event,) = pm.get_events("dev-001")
    assert (event.type, event.value) == (PowerEventType.LOW_BATTERY, 3.0)


D, L = "discharge", "low_battery"


@pytest.mark.parametrize(
    ("charges", "events"),
    [
        pytest.param([20.001], [], id="above low"),
        pytest.param([20.0], [D], id="at low"),
        pytest.param([5.001], [D], id="above critical"),
        pytest.param([5.0], [L], id="at critical"),
        pytest.param([19, 18, 12, 6], [D], id="low once"),
        pytest.param([4, 3, 2, 0], [L], id="critical once"),
        pytest.param([20, 5], [D, L], id="low, then critical"),
        pytest.param([20, 21.999, 20], [D], id="within hysteresis of low"),
        pytest.param([20, 22, 20], [D, D], id="out of low and back"),
        pytest.param([5, 6.999, 5], [L], id="within hysteresis of critical"),
        pytest.param([5, 7, 5], [L, L], id="out of critical and back"),
        pytest.param([5, 7, 8, 20], [L], id="recovering to low"),
        pytest.param([5, 21.999, 20], [L], id="critical, within hysteresis of low"),
        pytest.param([5, 22, 20], [L, D], id="critical, recovered, low"),
        pytest.param([20, 5, 100, 20, 5], [D, L, D, L], id="two discharges"),
    ],
)
def test_alert_level(
    pm: PowerManager,
    battery_meter: PowerMeter,
    clock: Clock,
    charges: list[float],
    events: list[str],
) -> None:
    """An alert is recorded when its level is entered from below, and falls back only past the hysteresis."""
    for charge in charges:
        clock.now += 1
        pm.log_power(battery_meter.id, 3.5, 0.5, charge)
    assert alerts_of(pm, "dev-001") == events


@pytest.mark.parametrize(("kind", "events"), [("ups", [L]), ("main", []), ("solar", [])])
@pytest.mark.usefixtures("device")
def test_alerts_are_for_what_runs_empty(pm: PowerManager, kind: str, events: list[str]) -> None:
    """A UPS raises alerts as a battery does; a main and a panel raise none."""
    pm.log_power(pm.add_meter("dev-001", kind).id, 12.0, 0.5, 1.0)
    assert alerts_of(pm, "dev-001") == events


def test_alerts_with_thresholds_of_the_device(pm: PowerManager) -> None:
    """A device's own thresholds decide its alerts, and come back with its record and meters."""
    registered = pm.register_device(
        "d", "D", low_battery_threshold=50, critical_battery_threshold=10
    )
    meter = pm.add_meter("d", "battery")
    for charge in (51, 50, 51.9, 50, 52, 50, 11, 10, 11.9, 10, 12, 10):
        pm.log_power(meter.id, 3.5, 0.5, charge)
    assert alerts_of(pm, "d") == [D, D, L, L]
    assert pm.get_device("d") == registered
    assert (pm.get_meter(meter.id).low_battery_threshold, pm.get_meter(meter.id).state) == (
        50.0,
        "low",
    )


def test_thresholds_go_back_to_the_constants(pm: PowerManager) -> None:
    """Registering without thresholds takes the overrides away."""
    pm.register_device("d", "D", low_battery_threshold=50, critical_battery_threshold=10)
    meter = pm.add_meter("d", "battery")
    pm.register_device("d", "D")
    pm.log_power(meter.id, 3.5, 0.5, 40)
    assert (alerts_of(pm, "d"), pm.get_meter(meter.id).state) == ([], "normal")


@pytest.mark.parametrize(
    ("repeat", "events"),
    [(None, [D]), (0, [D] * 6), (10, [D, D, D]), (25, [D, D]), (50.001, [D])],
    ids=["never", "every reading", "10 s", "25 s", "more than all"],
)
def test_alert_repeat(opened: Opener, clock: Clock, repeat: Any, events: list[str]) -> None:
    """The present level's event is recorded again after that many seconds: never with None, always with 0."""
    pm = opened(alert_repeat=repeat)
    pm.register_device("d", "D")
    meter = pm.add_meter("d", "battery")
    for seconds in (0, 5, 10, 15, 20, 25):
        clock.now = NOW + seconds
        pm.log_power(meter.id, 3.5, 0.5, 15)
    assert alerts_of(pm, "d") == events


def test_alert_repeat_of_each_level(opened: Opener) -> None:
    """Within the hysteresis the level's event goes on; above it none does."""
    pm = opened(alert_repeat=0)
    pm.register_device("d", "D")
    meter = pm.add_meter("d", "battery")
    for charge in (5, 6, 8, 21, 23, 30):
        pm.log_power(meter.id, 3.5, 0.5, charge)
    assert alerts_of(pm, "d") == [L, L, D, D]


def test_alert_repeat_survives_a_clock_set_back(opened: Opener, clock: Clock) -> None:
    """A clock that was years ahead does not silence the repetition for years."""
    pm = opened(alert_repeat=60)
    pm.register_device("d", "D")
    meter = pm.add_meter("d", "battery")
    for seconds in (YEARS, 0, 30, 60):
        clock.now = NOW + seconds
        pm.log_power(meter.id, 3.5, 0.5, 15)
    assert alerts_of(pm, "d") == [D, D, D]


def test_each_meter_has_an_alert_level_of_its_own(
    pm: PowerManager, battery_meter: PowerMeter
) -> None:
    """Two batteries of one device alert apart."""
    second = pm.add_meter("dev-001", "battery")
    for meter_id in (battery_meter.id, second.id, battery_meter.id, second.id):
        pm.log_power(meter_id, 3.5, 0.5, 15)
    assert alerts_of(pm, "dev-001") == [D, D]


# --- Events -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(PowerEventType))
@pytest.mark.usefixtures("device")
def test_trigger_event(pm: PowerManager, kind: PowerEventType) -> None:
    """An event of any type is recorded now, and returned as stored."""
    event = pm.trigger_event("dev-001", kind.value, -1.5, "by hand")
    assert dataclasses.astuple(event)[1:] == (
        "dev-001",
        kind,
        -1.5,
        "2025-06-16T12:30:00.000000+00:00",
        "by hand",
    )
    assert (pm.get_events("dev-001"), type(event.type)) == ([event], PowerEventType)


@pytest.mark.usefixtures("device")
def test_trigger_event_defaults(pm: PowerManager) -> None:
    """An event has the value 0 and no note unless told."""
    event = pm.trigger_event("dev-001", PowerEventType.RESTORE)
    assert (event.value, event.note) == (0.0, None)


@pytest.mark.usefixtures("device")
def test_get_events_newest_first(pm: PowerManager, clock: Clock) -> None:
    """Events come newest first, the later recorded first where their times are equal."""
    for value, seconds in enumerate((0, 10, -10, 10)):
        clock.now = NOW + seconds
        pm.trigger_event("dev-001", "restore", value)
    assert [event.value for event in pm.get_events("dev-001")] == [3, 1, 0, 2]


@pytest.mark.parametrize(("limit", "count"), [(0, 0), (1, 1), (50, 50), (60, 60), (10**30, 60)])
@pytest.mark.usefixtures("device")
def test_get_events_limit(opened: Opener, limit: int, count: int) -> None:
    """At most `limit` events are returned; without it, 50."""
    pm = opened()
    pm.register_device("d", "D")
    with pm.transaction():
        for _ in range(60):
            pm.trigger_event("d", "restore")
    assert (len(pm.get_events("d", limit)), len(pm.get_events("d"))) == (count, 50)


@pytest.mark.usefixtures("device")
def test_events_since(pm: PowerManager, clock: Clock) -> None:
    """A follower gets every device's events once, in order of recording, whatever their times."""
    pm.register_device("other", "Other")
    for value, (device_id, seconds) in enumerate(
        [("dev-001", 0), ("other", -100), ("dev-001", -YEARS)]
    ):
        clock.now = NOW + seconds
        pm.trigger_event(device_id, "restore", value)
    got = pm.events_since(0)
    assert [(event.device_id, event.value) for _, event in got] == [
        ("dev-001", 0),
        ("other", 1),
        ("dev-001", 2),
    ]
    numbers = [number for number, _ in got]
    assert numbers == sorted(set(numbers))
    assert pm.events_since(numbers[0], limit=1) == got[1:2]
    assert pm.events_since(numbers[-1]) == []


@pytest.mark.parametrize("limit", [0, 2])
@pytest.mark.usefixtures("device")
def test_events_since_limit(pm: PowerManager, limit: int) -> None:
    """At most `limit` events are returned."""
    for _ in range(3):
        pm.trigger_event("dev-001", "restore")
    assert len(pm.events_since(0, limit=limit)) == limit


# --- Estimates --------------------------------------------------------------------------------


def test_estimate_runtime(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """What is left in the battery over what it supplies, in hours of 2 decimals."""
    pm.log_power(battery_meter.id, 10.0, 0.7, 80.0)
    assert pm.estimate_runtime("dev-001") == 5.71


def test_estimate_runtime_of_all_batteries_together(
    pm: PowerManager, battery_meter: PowerMeter
) -> None:
    """Batteries of known capacity count together, draining or not; others do not count."""
    charging, unknown, ups = (
        pm.add_meter("dev-001", kind, wh)
        for kind, wh in (("battery", 100), ("battery", 0), ("ups", 10))
    )
    pm.log_power(battery_meter.id, 10.0, 1.0, 80.0)
    pm.log_power(charging.id, 10.0, -0.5, 50.0)
    pm.log_power(unknown.id, 10.0, 9.0, 50.0)
    pm.log_power(ups.id, 10.0, 9.0, 50.0)
    assert pm.estimate_runtime("dev-001") == 18.0


@pytest.mark.parametrize(
    ("capacity", "current"),
    [(50, 0.0), (50, -1.0), (0, 1.0)],
    ids=["idle", "charging", "no capacity"],
)
@pytest.mark.usefixtures("device")
def test_estimate_runtime_none(pm: PowerManager, capacity: float, current: float) -> None:
    """There is no estimate without a capacity, or while nothing drains."""
    pm.log_power(pm.add_meter("dev-001", "battery", capacity).id, 3.7, current, 80.0)
    assert pm.estimate_runtime("dev-001") is None


def test_estimate_runtime_of_next_to_no_watts(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """What no number of hours can say is None, and the budget stays strict JSON."""
    pm.log_power(battery_meter.id, 1e-200, 1e-120)
    assert pm.estimate_runtime("dev-001") is None
    assert "Infinity" not in json.dumps(pm.power_budget_check(["dev-001"]))


@pytest.mark.usefixtures("device")
def test_estimate_runtime_without_battery(pm: PowerManager) -> None:
    """There is no estimate without a battery, or before its first reading."""
    assert pm.estimate_runtime("dev-001") is None
    pm.add_meter("dev-001", "battery", 50)
    assert pm.estimate_runtime("dev-001") is None


@pytest.mark.parametrize(
    ("minutes", "hours"),
    [(None, 20.0), (0, 20.0), (1, 20.0), (1.001, 10.0), (2, 10.0), (2.001, 5.0), (1e9, 5.0)],
)
def test_estimate_runtime_window(
    pm: PowerManager, battery_meter: PowerMeter, minutes: Any, hours: float
) -> None:
    """With a window the watts are the mean of the readings newer than that before the latest."""
    for age, watts in ((120, 10.0), (60, 6.0), (0, 2.0)):
        pm.log_power(battery_meter.id, 1.0, watts, 80.0, timestamp=NOW - age)
    expected = {20.0: 20.0, 10.0: 10.0, 5.0: 6.67}[hours]
    assert pm.estimate_runtime("dev-001", window_minutes=minutes) == expected


# --- Statistics against brute force -----------------------------------------------------------


def test_view_for_people(path: Path, opened: Opener) -> None:
    """The view `readings` shows anybody with SQLite the same as the history."""
    pm = opened(path)
    pm.register_device("d", "D")
    meter = pm.add_meter("d", "main")
    pm.log_many(as_readings(meter.id, random_rows(random.Random(9), 20, int(NOW) * SECOND)))
    assert fetch(path, "SELECT * FROM readings") == [
        dataclasses.astuple(r) for r in pm.iter_history(meter.id)
    ]


class TestStatistics(InMemory):
    """get_statistics and export_report are the same as brute force over the readings, in any order of arrival."""

    @pytest.mark.parametrize("bucket", ["hour", "day"])
    @pytest.mark.parametrize("seed", range(8))
    def test_any_order_of_arrival(
        self, pm: PowerManager, battery_meter: PowerMeter, seed: int, bucket: str
    ) -> None:
        """Shuffled, repeated and in pieces of any size, every bucket is that of the sorted readings."""
        chance = random.Random(seed)
        rows = random_rows(chance, 150, int(NOW - 4 * 86400) * SECOND)
        arriving = [*rows, *(row._replace(voltage=99.0) for row in chance.sample(rows, 20))]
        if seed % 2:
            chance.shuffle(arriving)
        kept: dict[int, Row] = {}
        new = 0
        while arriving:
            piece, arriving = arriving[: (size := chance.choice([1, 5, 40]))], arriving[size:]
            if size == 1:
                pm.log_power(battery_meter.id, *piece[0][1:], timestamp=iso(piece[0].us))
                new += piece[0].us not in kept
            else:
                new += pm.log_many(as_readings(battery_meter.id, piece))
            for row in piece:
                kept.setdefault(row.us, row)
        length = HOUR if bucket == "hour" else DAY
        got = pm.get_statistics(battery_meter.id, days=30, bucket=bucket)
        assert new == len(rows)
        assert [(s.start, s.reading_count) for s in got] == [
            (start, b["reading_count"]) for start, b in buckets([*kept.values()], length)
        ]
        for statistics, (_, expected) in zip(got, buckets([*kept.values()], length), strict=True):
            assert {key: getattr(statistics, key) for key in expected} == near(expected)
        assert pm.check() == []

    @pytest.mark.parametrize("seed", range(4))
    def test_report_of_any_window(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock, seed: int
    ) -> None:
        """A window that begins anywhere, mostly inside an hour, is exact."""
        chance = random.Random(seed)
        rows = random_rows(chance, 120, int(NOW) * SECOND)
        pm.log_many(as_readings(battery_meter.id, rows))
        clock.now = rows[-1].us // SECOND + 10
        for _ in range(40):
            row = chance.choice(rows)
            seconds = int(clock.now) - row.us // SECOND + chance.choice([0, 0, 1, -1, -1800, 1800])
            after = int(clock.now) * SECOND - seconds * SECOND
            if seconds >= 0:
                assert meter_part(pm, "dev-001", seconds / 86400) == near(
                    brute_force(rows, after + 1)
                )

    @pytest.mark.parametrize("max_gap", [0.0, 59.0, 600.0, 7200.0, 1e9])
    def test_max_gap(self, opened: Opener, max_gap: float) -> None:
        """Over a gap longer than max_gap nothing is booked; 0 books nothing at all."""
        pm, rows = opened(max_gap=max_gap), random_rows(random.Random(5), 80, int(NOW) * SECOND)
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "ups")
        pm.log_many(as_readings(meter.id, random.Random(6).sample(rows, len(rows))))
        assert meter_part(pm, "d", 1000) == near(brute_force(rows, max_gap=max_gap))
        assert pm.check() == []

    @pytest.mark.parametrize("seed", range(4))
    def test_window_over_a_long_gap(self, opened: Opener, clock: Clock, seed: int) -> None:
        """Where max_gap is more than an hour, a pair astride the begin of the window does not count."""
        chance, pm = random.Random(seed), opened(max_gap=4 * 3600)
        pm.register_device("d", "D")
        meter, rows = pm.add_meter("d", "main"), random_rows(chance, 60, int(NOW) * SECOND)
        pm.log_many(as_readings(meter.id, rows))
        clock.now = rows[-1].us // SECOND + 1
        for seconds in range(0, int(clock.now - NOW), 1111):
            after = (int(clock.now) - seconds) * SECOND
            assert meter_part(pm, "d", seconds / 86400) == near(
                brute_force(rows, after + 1, max_gap=4 * 3600)
            )

    def test_energy_of_a_late_reading(self, pm: PowerManager, battery_meter: PowerMeter) -> None:
        """A late reading between two others replaces their trapezoid by the two new ones."""
        base = NOW - 1800
        for seconds, watts in ((0, 10.0), (1200, 10.0), (600, -10.0)):
            pm.log_power(battery_meter.id, 1.0, watts, timestamp=base + seconds)
        (statistics,) = pm.get_statistics(battery_meter.id)
        assert (statistics.energy_out_wh, statistics.energy_in_wh) == (0.0, 0.0)

    def test_energy_is_booked_to_the_hour_of_the_later(
        self, pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """The energy between two readings of different hours is in the second one's row."""
        for seconds in (-2400, 0):
            pm.log_power(battery_meter.id, 1.0, 6.0, timestamp=NOW + seconds)
        assert [s.energy_out_wh for s in pm.get_statistics(battery_meter.id)] == [0.0, 4.0]

    @pytest.mark.parametrize(
        ("days", "count"), [(0, 1), (0.5 / 24, 1), (0.51 / 24, 2), (1.5 / 24, 2), (7, 3)]
    )
    def test_days(
        self, pm: PowerManager, battery_meter: PowerMeter, days: float, count: int
    ) -> None:
        """The hour in which the span begins is there whole; the default is 7 days."""
        for hours in (0, 1, 2, 24 * 8):
            pm.log_power(battery_meter.id, 1.0, 6.0, timestamp=NOW - 3600 * hours)
        assert len(pm.get_statistics(battery_meter.id, days=days)) == count
        assert len(pm.get_statistics(battery_meter.id)) == 3

    def test_of_a_meter_without_readings(self, pm: PowerManager, battery_meter: PowerMeter) -> None:
        """Empty buckets are left out."""
        assert pm.get_statistics(battery_meter.id) == []

    def test_energy_uses_unrounded_wattage(
        self, pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Wattages too small to show still add up."""
        pm.log_many((battery_meter.id, 1.0, 0.00004, 50.0, NOW - 3000 + i) for i in range(3001))
        assert meter_part(pm, "dev-001", 1)["energy_out_wh"] == pytest.approx(
            0.00004 * 3000 / 3600, abs=1e-9
        )


# --- Budget and report ------------------------------------------------------------------------

BUDGET_KEYS = [
    "total_wattage",
    "battery_count",
    "solar_count",
    "avg_charge_pct",
    "estimated_runtime_hours",
    "states",
    "load_wattage",
    "solar_wattage",
    "net_wattage",
    "energy_24h_wh",
    "target_wh",
    "within_target",
    "below_shutdown_threshold",
]


def test_power_budget_check(
    pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
) -> None:
    """A device's budget sums up its meters."""
    second, main = pm.add_meter("dev-001", "battery", 10.0), pm.add_meter("dev-001", "main")
    pm.log_power(battery_meter.id, 10.0, 0.8, 80.0)
    pm.log_power(second.id, 10.0, -0.3, 12.5)
    pm.log_power(solar_meter.id, 18.0, 1.0)
    pm.log_power(main.id, 0.0, 0.0)
    budget = pm.power_budget_check(["dev-001"])["dev-001"]
    assert budget == {
        "total_wattage": 23.0,
        "battery_count": 2,
        "solar_count": 1,
        "avg_charge_pct": 46.25,
        "estimated_runtime_hours": 8.25,
        "states": ["normal", "charging", "low", "unknown"],
        "load_wattage": 8.0,
        "solar_wattage": 18.0,
        "net_wattage": 10.0,
        "energy_24h_wh": 0.0,
        "target_wh": None,
        "within_target": None,
        "below_shutdown_threshold": False,
    }
    assert list(budget) == BUDGET_KEYS


@pytest.mark.usefixtures("device")
def test_power_budget_unknown_device(pm: PowerManager) -> None:
    """An unknown id gives an error that names it, beside the known ones, in the order asked."""
    budget = pm.power_budget_check(["nobody", "dev-001"])
    assert (list(budget), list(budget["nobody"])) == (["nobody", "dev-001"], ["error"])
    assert "nobody" in budget["nobody"]["error"]


@pytest.mark.usefixtures("device")
def test_power_budget_of_a_device_without_meters(pm: PowerManager) -> None:
    """Without meters the sums are 0, the charge unknown, and nothing reaches the device."""
    budget = pm.power_budget_check(iter(["dev-001"]))["dev-001"]
    assert (budget["total_wattage"], budget["avg_charge_pct"], budget["states"]) == (0.0, None, [])
    assert (budget["estimated_runtime_hours"], budget["below_shutdown_threshold"]) == (None, True)


def test_power_budget_of_nothing(pm: PowerManager) -> None:
    """No ids, no budgets."""
    assert pm.power_budget_check([]) == {}


@pytest.mark.parametrize(("target", "within"), [(12.0, True), (11.999, False), (0, False)])
def test_power_budget_target(pm: PowerManager, target: float, within: bool) -> None:
    """The load of the last 24 hours is what main, battery and UPS gave out, and is held against the target."""
    pm.register_device("d", "D", 0.0, target)
    for kind in MeterType:
        meter = pm.add_meter("d", kind)
        pm.log_many(
            (meter.id, 1.0, watts, 50.0, NOW - age)
            for age, watts in ((90000, 8.0), (88200, 8.0), (3600, 8.0), (1800, 8.0), (0, -8.0))
        )
    budget = pm.power_budget_check(["d"])["d"]
    assert (budget["energy_24h_wh"], budget["target_wh"], budget["within_target"]) == (
        12.0,
        target,
        within,
    )


@pytest.mark.parametrize("seed", range(3))
def test_power_budget_energy_is_exact(
    pm: PowerManager, battery_meter: PowerMeter, clock: Clock, seed: int
) -> None:
    """The energy of the last 24 hours is that of brute force, wherever in an hour they begin."""
    rows = random_rows(random.Random(seed), 100, int(NOW) * SECOND)
    pm.log_many(as_readings(battery_meter.id, rows))
    for seconds in range(0, 200_000, 20_011):
        clock.now = NOW + seconds
        after = int(clock.now - 86400) * SECOND
        expected = brute_force(rows, after + 1).get("energy_out_wh", 0.0)
        assert pm.power_budget_check(["dev-001"])["dev-001"]["energy_24h_wh"] == pytest.approx(
            expected, abs=1e-8
        )


@pytest.mark.parametrize(("watts", "below"), [(2.999, True), (3.0, False)])
def test_power_budget_shutdown_threshold(
    pm: PowerManager, battery_meter: PowerMeter, watts: float, below: bool
) -> None:
    """A device is below its threshold when less than that reaches it."""
    pm.log_power(battery_meter.id, 1.0, watts)
    assert pm.power_budget_check(["dev-001"])["dev-001"]["below_shutdown_threshold"] is below


def test_power_budget_makes_a_fixed_number_of_queries(
    connections: list[sqlite3.Connection], opened: Opener
) -> None:
    """As many statements run for a hundred devices as for one."""
    pm = opened()
    with pm.transaction():
        for number in range(100):
            pm.register_device(f"d{number}", "D")
            pm.log_power(pm.add_meter(f"d{number}", "battery", 10).id, 1.0, 1.0, 50.0)
    counts = []
    for ids in (["d0"], [f"d{number}" for number in range(100)]):
        statements: list[str] = []
        connections[0].set_trace_callback(statements.append)
        assert len(pm.power_budget_check(ids)) == len(ids)
        counts.append(len([s for s in statements if not s.startswith("--")]))
    assert counts[0] == counts[1] > 0


REPORT_KEYS = [
    "device_id",
    "device_name",
    "period_days",
    "generated_at",
    "meters",
    "event_count",
    "events",
]
METER_KEYS = [
    "meter_id",
    "name",
    "type",
    "reading_count",
    "current_state",
    "avg_wattage",
    "min_wattage",
    "max_wattage",
    "min_charge_pct",
    "max_charge_pct",
    "energy_out_wh",
    "energy_in_wh",
    "energy_wh",
]


def test_export_report(
    pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
) -> None:
    """A report has the promised keys, and statistics only of meters with readings in the period."""
    for seconds, watts, charge in ((0, -4.0, 60.0), (900, 8.0, 50.0), (1800, 8.0, 4.0)):
        pm.log_power(battery_meter.id, 1.0, watts, charge, timestamp=NOW - 1800 + seconds)
    text = pm.export_report("dev-001", days=7)
    report = json.loads(text)
    assert text == json.dumps(report, indent=2)
    assert list(report) == REPORT_KEYS
    head = ("dev-001", "Edge Node", 7, "2025-06-16T12:30:00.000000+00:00")
    assert tuple(report[key] for key in REPORT_KEYS[:4]) == head
    battery, solar = report["meters"]
    assert list(battery) == METER_KEYS
    assert list(battery.values()) == [
        battery_meter.id,
        "Pack",
        "battery",
        3,
        "critical",
        4.0,
        -4.0,
        8.0,
        4.0,
        60.0,
        2.5,
        0.0,
        2.5,
    ]
    assert solar == {
        "meter_id": solar_meter.id,
        "name": "Panel",
        "type": "solar",
        "reading_count": 0,
    }
    assert (report["event_count"], [event["type"] for event in report["events"]]) == (
        1,
        ["low_battery"],
    )


def test_export_report_events(opened: Opener, clock: Clock) -> None:
    """The report counts the events newer than the period's begin and holds the 20 newest, newest first."""
    pm = opened()
    pm.register_device("d", "D")
    for value in (*range(1, 25, 2), *range(0, 25, 2)):  # the clock jumps
        clock.now = NOW + value * 3600
        pm.trigger_event("d", "restore", value)
    report = json.loads(pm.export_report("d", days=22 / 24))
    assert (report["event_count"], report["period_days"]) == (22, 22 / 24)
    assert [event["value"] for event in report["events"]] == list(range(24, 4, -1))
    assert list(report["events"][0]) == ["id", "device_id", "type", "value", "timestamp", "note"]


def test_export_report_reads_the_clock_once(opened: Opener) -> None:
    """The window ends where generated_at says, also while the clock runs."""
    seconds = itertools.count(NOW)
    pm = opened(clock=lambda: next(seconds))
    pm.register_device("d", "D")
    meter = pm.add_meter("d", "main")
    pm.log_power(meter.id, 1.0, 1.0)
    report = json.loads(pm.export_report("d", 1.5 / 86400))
    assert (report["generated_at"], report["meters"][0]["reading_count"]) == (
        iso(int(NOW + 1) * SECOND),
        1,
    )


def test_export_report_default_period(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """The default period is 7 days; a reading just as old is outside."""
    for seconds in (0, 1):
        pm.log_power(battery_meter.id, 1.0, 1.0, timestamp=NOW - 7 * 86400 + seconds)
    report = json.loads(pm.export_report("dev-001"))
    assert (report["period_days"], report["meters"][0]["reading_count"]) == (7, 1)


@pytest.mark.parametrize("days", [0, 0.25, 36500, Decimal("0.5"), 1e9], ids=repr)
def test_export_report_of_any_days(pm: PowerManager, battery_meter: PowerMeter, days: Any) -> None:
    """Every number of days that is accepted gives a report, and statistics."""
    pm.log_power(battery_meter.id, 1.0, 1.0, timestamp=NOW - 60)
    assert json.loads(pm.export_report("dev-001", days))["meters"][0]["reading_count"] == int(
        days > 0
    )
    assert len(pm.get_statistics(battery_meter.id, days=days)) == 1


def test_export_report_is_strict_json_of_any_text(pm: PowerManager) -> None:
    """Quotes, control characters and any script come back as they were."""
    name = 'a "quoted"\n\x1f name: Ünï 電池 \U0001f50b'
    pm.register_device(name, name)
    pm.trigger_event(name, "restore", 1.0, name)
    report = json.loads(pm.export_report(name), parse_constant=pytest.fail)
    assert (report["device_id"], report["device_name"], report["events"][0]["note"]) == (name,) * 3


# --- Bad input --------------------------------------------------------------------------------

NUMBERS = [
    math.nan,
    math.inf,
    -math.inf,
    "5",
    b"5",
    True,
    None,
    [],
    1 + 2j,
    Decimal("NaN"),
    10**400,
]
TEXTS = ["", " ", "x" * 201, "a\0b", "a\ud800", "\udfff", 5, None, b"a", ["a"]]
TYPES = ["", "Battery", "fan", 5, None, [], PowerState.NORMAL]
TIMES = [
    "2025-06-16T12:30:00",
    "2025-06-16",
    "yesterday",
    "",
    "1969-12-31T23:59:59.999999Z",
    "2201-01-01T00:00:00Z",
    "2025-06-31T00:00:00Z",
    datetime.fromtimestamp(NOW, timezone.utc).replace(tzinfo=None),
    datetime.fromtimestamp(NOW, timezone.utc).date(),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
    -0.001,
    7_289_654_400,
    math.nan,
    math.inf,
    True,
    [],
]
DEVICE, METER = "dev-001", "<the meter>"

BAD: list[tuple[str, dict[str, Any], str, list[Any]]] = [
    # method, good arguments, parameter, bad values for it
    ("register_device", {"device_id": "d", "name": "D"}, "device_id", TEXTS),
    ("register_device", {"device_id": "d", "name": "D"}, "name", TEXTS),
    (
        "register_device",
        {"device_id": "d", "name": "D"},
        "shutdown_threshold",
        [*NUMBERS, -1, -1e-9],
    ),
    (
        "register_device",
        {"device_id": "d", "name": "D"},
        "target_wh",
        [*(number for number in NUMBERS if number is not None), -1],
    ),
    (
        "register_device",
        {"device_id": "d", "name": "D"},
        "low_battery_threshold",
        ["5", True, math.nan, -1, 100.1],
    ),
    (
        "register_device",
        {"device_id": "d", "name": "D"},
        "critical_battery_threshold",
        ["5", True, math.nan, -1, 100.1, 20.0, 50.0],
    ),
    ("get_device", {}, "device_id", TEXTS),
    ("add_meter", {"meter_type": "main"}, "device_id", TEXTS),
    ("add_meter", {"device_id": DEVICE}, "meter_type", TYPES),
    (
        "add_meter",
        {"device_id": DEVICE, "meter_type": "main"},
        "capacity_wh",
        [*NUMBERS, -1, -1e-9],
    ),
    (
        "add_meter",
        {"device_id": DEVICE, "meter_type": "main"},
        "name",
        [text for text in TEXTS if text is not None],
    ),
    ("get_meter", {}, "meter_id", TEXTS),
    ("list_meters", {}, "device_id", [text for text in TEXTS if text is not None]),
    ("log_power", {"voltage": 1.0, "current": 1.0}, "meter_id", TEXTS),
    ("log_power", {"meter_id": METER, "current": 1.0}, "voltage", [*NUMBERS, 1.1e6, -1.1e6]),
    ("log_power", {"meter_id": METER, "voltage": 1.0}, "current", [*NUMBERS, 1.1e6, -1.1e6]),
    (
        "log_power",
        {"meter_id": METER, "voltage": 1.0, "current": 1.0},
        "charge_pct",
        [n for n in NUMBERS if n is not None],
    ),
    ("log_power", {"meter_id": METER, "voltage": 1.0, "current": 1.0}, "timestamp", TIMES),
    ("log_many", {}, "readings", [None, "abc", b"abc", 5]),
    ("calculate_wattage", {}, "meter_id", TEXTS),
    ("estimate_runtime", {}, "device_id", TEXTS),
    (
        "estimate_runtime",
        {"device_id": DEVICE},
        "window_minutes",
        [n for n in NUMBERS if n is not None] + [-1],
    ),
    ("get_history", {}, "meter_id", TEXTS),
    ("get_history", {"meter_id": METER}, "hours", [*NUMBERS, -1]),
    ("iter_history", {}, "meter_id", TEXTS),
    ("iter_history", {"meter_id": METER}, "since", TIMES),
    ("iter_history", {"meter_id": METER}, "until", TIMES),
    ("get_statistics", {}, "meter_id", TEXTS),
    ("get_statistics", {"meter_id": METER}, "days", [*NUMBERS, -1]),
    ("get_statistics", {"meter_id": METER}, "bucket", ["week", "", None, 5, []]),
    ("trigger_event", {"event_type": "restore"}, "device_id", TEXTS),
    ("trigger_event", {"device_id": DEVICE}, "event_type", TYPES),
    ("trigger_event", {"device_id": DEVICE, "event_type": "restore"}, "value", NUMBERS),
    (
        "trigger_event",
        {"device_id": DEVICE, "event_type": "restore"},
        "note",
        ["", "a\0b", "a\ud800", 5, b"a", "x" * 10_001],
    ),
    ("get_events", {}, "device_id", TEXTS),
    ("get_events", {"device_id": DEVICE}, "limit", [-1, 1.5, math.nan, "5", True, None]),
    ("events_since", {}, "sequence", [-1, 1.5, math.nan, "5", True, None]),
    ("events_since", {"sequence": 0}, "limit", [-1, 1.5, math.nan, "5", True, None]),
    ("power_budget_check", {}, "device_ids", ["dev-001", b"dev-001", None, 5]),
    ("export_report", {}, "device_id", TEXTS),
    ("export_report", {"device_id": DEVICE}, "days", [*NUMBERS, -1]),
    ("prune", {}, "keep_days", [*NUMBERS, -1, -0.001]),
    ("backup", {}, "path", ["", "a\0b", None, 5, b"a", True]),
]
BAD_SETTINGS: dict[str, list[Any]] = {
    "db_path": ["", None, 5, b"a.db", "a\0b"],
    "durability": ["FULL", "off", "", None, 2, []],
    "clock": [None, 5.0],
    "alert_repeat": [-1, math.nan, math.inf, "5", True],
    "max_gap": [-1, math.nan, math.inf, "5", True, None],
}


class TestBadInput(InMemory):
    """What no parameter may be is refused, by name and value, and nothing is stored."""

    @pytest.mark.parametrize(
        ("method", "arguments", "parameter", "value"),
        [
            pytest.param(
                method, arguments, parameter, value, id=f"{method}-{parameter}-{ascii(value)[:30]}"
            )
            for method, arguments, parameter, values in BAD
            for value in values
        ],
    )
    def test_refused(
        self,
        pm: PowerManager,
        battery_meter: PowerMeter,
        method: str,
        arguments: dict[str, Any],
        parameter: str,
        value: Any,
    ) -> None:
        """The error names the parameter, the value and what would do; the database is as before."""
        before = everything(pm)
        good = {
            name: battery_meter.id if argument == METER else argument
            for name, argument in arguments.items()
        }
        with pytest.raises(InvalidValue, match=rf"^{parameter}: expected .+, got ") as caught:
            getattr(pm, method)(**{**good, parameter: value})
        assert repr(value)[:70] in str(caught.value)
        assert everything(pm) == before

    def test_truth_values_of_other_kinds(self, pm: PowerManager, battery_meter: PowerMeter) -> None:
        """What has a float but is no number, as NumPy's truth values and complex numbers, is refused."""

        class Truth:
            def __float__(self) -> float:
                return 1.0

            def __index__(self) -> int:
                return 1

        for call in (
            lambda: pm.log_power(battery_meter.id, Truth(), 1.0),  # type: ignore[arg-type]  # wrong on purpose
            lambda: pm.log_power(battery_meter.id, 1.0, 1.0, timestamp=Truth()),
            lambda: pm.get_events("dev-001", Truth()),  # type: ignore[arg-type]  # wrong on purpose
        ):
            with pytest.raises(InvalidValue, match="expected"):
                call()
        assert history(pm, battery_meter.id) == []

    @pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["large", "small"])
    def test_numbers_of_too_many_digits(
        self, pm: PowerManager, battery_meter: PowerMeter, value: int
    ) -> None:
        """What Python itself will not print is refused by its type."""
        with pytest.raises(InvalidValue, match=r"voltage: expected a number from .*, got a"):
            pm.log_power(battery_meter.id, value, 1.0)
        with pytest.raises(
            InvalidValue, match="limit: expected a whole number of at least 0, got a"
        ):
            pm.unforwarded(-(10**5000))

    def test_upper_limits_are_named(self, pm: PowerManager, device: DeviceRecord) -> None:
        """The message says up to where a quantity may go."""
        with pytest.raises(
            InvalidValue, match=r"capacity_wh: expected a number from 0 to 1e\+12 \(Wh\), got 11"
        ):
            pm.add_meter(device.id, "main", 1.1e12)
        with pytest.raises(
            InvalidValue, match=r"value: expected a finite number \(in the event's unit\), got inf"
        ):
            pm.trigger_event(device.id, "restore", math.inf)

    @pytest.mark.parametrize("value", [5, None, "", "x" * 201, b"d"], ids=ascii)
    @pytest.mark.usefixtures("device")
    def test_device_ids_of_a_budget(self, pm: PowerManager, value: Any) -> None:
        """Each id of a budget check is checked."""
        with pytest.raises(
            InvalidValue, match=r"^device_id: expected text of 1 to 200 characters, got "
        ):
            pm.power_budget_check(["dev-001", value])

    @pytest.mark.parametrize(
        "method",
        [
            "export_report",
            "get_history",
            "prune",
            "log_power",
            "trigger_event",
            "power_budget_check",
        ],
    )
    @pytest.mark.parametrize("now", [math.nan, None, "now", -1.0], ids=repr)
    def test_clock(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock, method: str, now: Any
    ) -> None:
        """A clock that gives no time is named."""
        arguments: dict[str, tuple[Any, ...]] = {
            "get_history": (battery_meter.id,),
            "prune": (1,),
            "log_power": (battery_meter.id, 1.0, 1.0),
            "trigger_event": (DEVICE, "restore"),
            "power_budget_check": ([DEVICE],),
        }
        clock.now = now
        with pytest.raises(InvalidValue, match=r"^clock: expected "):
            getattr(pm, method)(*arguments.get(method, (DEVICE,)))

    @pytest.mark.parametrize(
        ("parameter", "value"),
        [
            pytest.param(parameter, value, id=f"{parameter}-{value!a}")
            for parameter, values in BAD_SETTINGS.items()
            for value in values
        ],
    )
    def test_settings(self, parameter: str, value: Any) -> None:
        """A PowerManager is not made with a setting it cannot have."""
        with pytest.raises(InvalidValue, match=rf"^{parameter}: expected .+, got "):
            PowerManager(**{"db_path": ":memory:", parameter: value})

    @pytest.mark.parametrize(
        ("low", "critical", "named"),
        [(10, 10, "critical"), (10, 11, "critical"), (None, 20, "critical"), (3, None, "low")],
    )
    def test_thresholds_in_order(
        self, pm: PowerManager, low: Any, critical: Any, named: str
    ) -> None:
        """The critical threshold must be below the low one, whichever of them is the constant."""
        with pytest.raises(
            InvalidValue, match=rf"^{named}_battery_threshold: expected (less|more) than .+, got "
        ):
            pm.register_device(
                "d", "D", low_battery_threshold=low, critical_battery_threshold=critical
            )
        assert pm.list_devices() == []

    def test_longest_texts(self, pm: PowerManager) -> None:
        """Ids and names of 200 characters are kept, in any script."""
        text = "電" * 200
        pm.register_device(text, text)
        assert (pm.get_device(text).name, pm.add_meter(text, "main", name=text).name) == (
            text,
            text,
        )


# --- Transactions -----------------------------------------------------------------------------

WRITERS: dict[str, Writer] = {
    "register_device": lambda pm, meter_id: pm.register_device("new", "New"),
    "register_device again": lambda pm, meter_id: pm.register_device(
        DEVICE, "Renamed", 9.0, 9.0, low_battery_threshold=30
    ),
    "add_meter": lambda pm, meter_id: pm.add_meter(DEVICE, "ups", 5.0, "New"),
    "log_power live": lambda pm, meter_id: pm.log_power(meter_id, 3.0, 1.0, 15.0),
    "log_power recorded": lambda pm, meter_id: pm.log_power(
        meter_id, 3.0, 1.0, 1.0, timestamp=NOW - 550
    ),
    "log_many": lambda pm, meter_id: pm.log_many(
        (meter_id, 3.0, 1.0, 4.0, NOW + i) for i in range(10)
    ),
    "trigger_event": lambda pm, meter_id: pm.trigger_event(DEVICE, "shutdown"),
    "prune": lambda pm, meter_id: pm.prune(0.01),
    "connection": lambda pm, meter_id: insert_device(pm, "other"),
}


def insert_device(pm: PowerManager, device_id: str) -> None:
    """Write through the connection for other packages; to a table that `everything` looks at."""
    with pm.connection() as conn:
        conn.execute(
            "INSERT INTO devices (id, name, shutdown_threshold) VALUES (?, 'Other', 1.0)",
            (device_id,),
        )


def fail(
    pm: PowerManager, *actions: Callable[[], object], error: BaseException | None = None
) -> None:
    """Run actions in a transaction that fails after them."""
    with pm.transaction():
        for action in actions:
            action()
        raise error or Broken


@pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))
class TestTransactions(InFile):
    """Every writer is stored wholly or not at all, as a second PowerManager on the file sees it."""

    @pytest.fixture
    def meter_id(self, pm: PowerManager, battery_meter: PowerMeter) -> str:
        """A meter with a past and a present, so that every writer has something to change."""
        pm.log_many((battery_meter.id, 3.7, 0.5, 60.0, NOW - 3000 + 100 * i) for i in range(30))
        return battery_meter.id

    def test_alone(self, pm: PowerManager, path: Path, meter_id: str, write: Writer) -> None:
        """A writer alone is stored when it returns."""
        before = reread(path)
        write(pm, meter_id)
        assert before != reread(path) == everything(pm)

    def test_inside_a_transaction(
        self, pm: PowerManager, path: Path, meter_id: str, write: Writer
    ) -> None:
        """Inside a transaction its owner sees it at once, and others after the commit."""
        before = reread(path)
        with pm.transaction() as same:
            write(same, meter_id)
            inside = everything(pm)
            assert (reread(path), same is pm) == (before, True)
        assert before != inside == reread(path)

    @pytest.mark.parametrize(
        "error", [Broken, KeyboardInterrupt, GeneratorExit, sqlite3.OperationalError]
    )
    def test_rolled_back(
        self, pm: PowerManager, path: Path, meter_id: str, write: Writer, error: type[BaseException]
    ) -> None:
        """Any exception takes everything back and goes on as it is; the next call works."""
        before, raised = reread(path), error("mine")
        with pytest.raises(error) as caught:
            fail(pm, lambda: write(pm, meter_id), error=raised)
        assert caught.value is raised
        assert reread(path) == before == everything(pm)
        execute(path, "BEGIN IMMEDIATE; ROLLBACK")  # nothing is locked any more
        write(pm, meter_id)
        assert reread(path) != before

    def test_inner_fails(self, pm: PowerManager, path: Path, meter_id: str, write: Writer) -> None:
        """A nested transaction that fails takes back its own calls only."""
        with pm.transaction():
            pm.register_device("kept", "Kept")
            outer = everything(pm)
            with pytest.raises(Broken):
                fail(pm, lambda: write(pm, meter_id))
            assert everything(pm) == outer
            pm.trigger_event("kept", "restore")
        after = reread(path)
        assert after["devices"] == outer["devices"]
        assert [event.device_id for _, event in after["events"]] == ["kept"]

    def test_outer_fails(self, pm: PowerManager, path: Path, meter_id: str, write: Writer) -> None:
        """A nested transaction that is done goes back with the one around it."""
        before = reread(path)

        def inner() -> None:
            with pm.transaction(), pm.transaction():
                write(pm, meter_id)

        with pytest.raises(Broken):
            fail(pm, inner)
        assert reread(path) == before


class TestConnection(InFile):
    """Another package keeps tables of its own in the file, in step with the library's."""

    def test_with_calls_of_the_library(self, pm: PowerManager, path: Path) -> None:
        """Rows of such a table and calls of the library are one transaction, whichever is outside."""
        with pm.connection() as conn:
            conn.execute("CREATE TABLE other_rows (id TEXT PRIMARY KEY)")
            conn.execute("INSERT INTO other_rows VALUES ('a')")
            pm.register_device("a", "A")

        def add(conn: sqlite3.Connection) -> None:
            conn.execute("INSERT INTO other_rows VALUES ('b')")
            pm.register_device("b", "B")
            raise Broken

        for around in (pm.connection, pm.transaction):
            with pytest.raises(Broken), around(), pm.connection() as conn:
                add(conn)
        assert fetch(path, "SELECT id FROM other_rows UNION ALL SELECT id FROM devices") == [
            ("a",),
            ("a",),
        ]
        assert pm.check() == []

    @pytest.mark.parametrize(
        "error", [ValueError, TypeError, OSError, MemoryError, KeyboardInterrupt]
    )
    def test_errors_of_the_caller(self, pm: PowerManager, error: type[BaseException]) -> None:
        """The caller's own errors go on as they are."""
        raised = error("mine")
        with pytest.raises(error) as caught, pm.connection():
            raise raised
        assert caught.value is raised

    def test_errors_of_sqlite(self, pm: PowerManager, path: Path) -> None:
        """An error of SQLite's names the file, and takes the block back."""
        insert_device(pm, "a")
        with pytest.raises(StorageError, match=rf"^{path}: .*UNIQUE constraint failed: devices.id"):
            insert_device(pm, "a")
        assert len(pm.list_devices()) == 1


def test_refused_call_leaves_its_transaction_whole(pm: PowerManager, opened: Opener) -> None:
    """An error that the caller handles inside a transaction costs only its own call."""
    manager = opened()
    with manager.transaction():
        manager.register_device("a", "A")
        for bad in (
            lambda: manager.add_meter("nobody", "main"),
            lambda: manager.log_many([("nobody", 1, 1)]),
        ):
            with pytest.raises(NotFound):
                bad()
        manager.register_device("b", "B")
    assert [device.id for device in manager.list_devices()] == ["a", "b"]


@pytest.mark.parametrize("where", ["memory", "file"])
def test_close_inside_a_transaction(opened: Opener, path: Path, where: str) -> None:
    """Closing inside a transaction is refused; the transaction goes on."""
    pm = opened(path if where == "file" else ":memory:")
    with pm.transaction():
        pm.register_device("a", "A")
        with pytest.raises(PowerManagerError, match=r"close\(\) inside a transaction"):
            pm.close()
    assert len(pm.list_devices()) == 1


def test_interrupt_between_begin_and_the_next_line(
    connections: list[sqlite3.Connection], opened: Opener
) -> None:
    """A transaction that an interrupt has left open is rolled back by the next call."""
    pm = opened()
    connections[0].execute("BEGIN IMMEDIATE")
    connections[0].execute(
        "INSERT INTO devices (id, name, shutdown_threshold) VALUES ('lost', 'L', 1)"
    )
    pm.register_device("a", "A")
    assert [device.id for device in pm.list_devices()] == ["a"]


@pytest.mark.parametrize("swallowed", [False, True])
def test_interrupt_after_the_end_of_an_inner_transaction(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, swallowed: bool
) -> None:
    """It stays what it is, though the savepoint is gone already, and nothing of the whole transaction is stored."""
    pm = opened()
    unbroken = PowerManager._check_unbroken

    def interrupted(self: PowerManager) -> None:
        unbroken(self)
        if self._depth == 2:
            self._writer.execute("RELEASE s1")
            raise KeyboardInterrupt

    monkeypatch.setattr(PowerManager, "_check_unbroken", interrupted)

    def outer() -> None:
        with pm.transaction(), suppress(*([KeyboardInterrupt] if swallowed else [])):
            pm.register_device("a", "A")

    with pytest.raises(StorageError if swallowed else KeyboardInterrupt):
        outer()
    assert pm.list_devices() == []


def test_savepoint_of_a_failed_inner_transaction_is_gone(opened: Opener) -> None:
    """A later one that is interrupted at its end must not find it, and take back what came between."""
    pm = opened()

    def failing() -> None:
        with suppress(RuntimeError), pm.transaction():
            pm.register_device("a", "A")
            raise RuntimeError

    def interrupted() -> None:
        with suppress(KeyboardInterrupt), pm.connection() as conn:
            conn.execute("RELEASE s1")
            raise KeyboardInterrupt

    def outer() -> None:
        with pm.transaction():
            failing()
            pm.register_device("b", "B")
            interrupted()

    with pytest.raises(StorageError, match="ended"):
        outer()
    assert pm.list_devices() == []


def test_wrong_call_says_what_is_wrong_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that was never made has nothing to close."""
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    with pytest.raises(TypeError):
        PowerManager("a.db", "full")  # type: ignore[call-arg]  # wrong on purpose
    gc.collect()
    assert complaints == []


# --- log_many ---------------------------------------------------------------------------------


class TestLogMany(InFile):
    """log_many streams, and stores all or nothing."""

    def test_returns_how_many_were_new(self, pm: PowerManager, battery_meter: PowerMeter) -> None:
        """Readings that are there, or come twice, are not counted; the first of two stays."""
        rows = [
            (battery_meter.id, volts, 1.0, 50.0, NOW - seconds)
            for volts, seconds in ((1, 10), (2, 20), (3, 10), (4, 20))
        ]
        assert (pm.log_many(rows), pm.log_many(rows), pm.log_many([])) == (2, 0, 0)
        assert [row[1] for row in history(pm, battery_meter.id)] == [2.0, 1.0]

    def test_rows_of_every_length(self, pm: PowerManager, battery_meter: PowerMeter) -> None:
        """A row may leave out charge and timestamp, and may be any sequence."""
        pm.log_many(
            [
                (battery_meter.id, 1, 1),
                [battery_meter.id, 2, 1, 40],
                (battery_meter.id, 3, 1, None, NOW + 5),
            ]
        )
        got = [(row[1], row[3]) for row in history(pm, battery_meter.id)]
        assert got == [(1.0, 100.0), (2.0, 40.0), (3.0, 40.0)]

    def test_is_the_same_as_one_by_one(
        self, opened: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Present states, alerts, statistics and history are those of log_power, whatever the size of a chunk."""
        chance = random.Random(3)
        rows = random_rows(chance, 60, int(NOW - 86400) * SECOND)
        chance.shuffle(rows)
        results = []
        for chunk in (0, 1, 7, 10_000):
            pm = opened(alert_repeat=600)
            pm.register_device("d", "D")
            meters = [pm.add_meter("d", "battery").id for _ in range(2)]
            readings = [
                (meters[i % 2], *row[1:], None if i % 9 == 0 else iso(row.us))
                for i, row in enumerate(rows)
            ]
            if chunk:
                monkeypatch.setattr(power_manager, "_CHUNK", chunk)
                assert pm.log_many(readings) == 60
            else:
                for meter_id, *values, timestamp in readings:
                    pm.log_power(meter_id, *values, timestamp=timestamp)
            assert pm.check() == []
            found = everything(pm)
            events = [(event.type, event.value, event.timestamp) for _, event in found["events"]]
            statistics = [
                dataclasses.astuple(s)[1:] for meter in meters for s in found["statistics"][meter]
            ]
            states = [dataclasses.astuple(meter)[1:] for meter in found["meters"]]
            results.append(
                (events, [found["readings"][meter] for meter in meters], states, statistics)
            )
        for result in results[1:]:
            assert result[:3] == results[0][:3]
            assert [s[1:] for s in result[3]] == [near_tuple(s[1:]) for s in results[0][3]]

    def test_streams(
        self, pm: PowerManager, battery_meter: PowerMeter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Memory does not grow with the number of readings."""
        monkeypatch.setattr(power_manager, "_CHUNK", 500)
        peaks = []
        for number in (2_000, 10_000):
            tracemalloc.start()
            pm.log_many(
                (battery_meter.id, 3.7, 0.5, 80.0, NOW + number + i / 10) for i in range(number)
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.5 * peaks[0]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (("nobody", 1, 1), "meter_id: no meter has the id 'nobody'"),
            (("METER", "x", 1), "voltage: expected .*, got 'x'"),
            (("METER", 1, None), "current: expected .*, got None"),
            (("METER", 1, 1, math.nan), "charge_pct: expected .*, got nan"),
            (("METER", 1, 1, 1, "noon"), "timestamp: expected .*, got 'noon'"),
            (("METER", 1), r"reading: expected .*, got \("),
            (("METER", 1, 1, 1, NOW, 1), r"reading: expected .*, got \("),
            (5, "reading: expected .*, got 5"),
            (([], 1, 1), r"meter_id: expected .*, got \[\]"),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("before", [0, 10_001])
    def test_an_error_names_its_row(
        self,
        pm: PowerManager,
        path: Path,
        battery_meter: PowerMeter,
        row: Any,
        message: str,
        before: int,
    ) -> None:
        """The first bad row is named by its number from 1, and nothing of all is stored."""
        stored = reread(path)
        if isinstance(row, tuple):
            row = tuple(battery_meter.id if value == "METER" else value for value in row)
        good = ((battery_meter.id, 3.7, 0.5, 3.0, NOW + i) for i in range(before))
        with pytest.raises((InvalidValue, NotFound), match=f"^row {before + 1}: {message}"):
            pm.log_many([*good, row])
        assert reread(path) == stored

    @pytest.mark.parametrize(
        "error",
        [Broken("mine"), sqlite3.IntegrityError("mine"), KeyboardInterrupt("mine")],
        ids=repr,
    )
    def test_an_error_of_the_rows_goes_through(
        self, pm: PowerManager, path: Path, battery_meter: PowerMeter, error: BaseException
    ) -> None:
        """What the caller's own iterator raises comes out as it is, and nothing is stored."""
        stored = reread(path)

        def rows() -> Iterator[tuple[Any, ...]]:
            yield battery_meter.id, 3.7, 0.5
            raise error

        with pytest.raises(type(error)) as caught:
            pm.log_many(rows())
        assert caught.value is error
        assert reread(path) == stored

    @pytest.mark.parametrize("how", ["log_power", "log_many"])
    def test_refuses_readings_beside_its_rows(
        self, pm: PowerManager, path: Path, battery_meter: PowerMeter, how: str
    ) -> None:
        """An iterator that stores readings itself is refused, since some of its rows are still held."""

        def rows() -> Iterator[tuple[Any, ...]]:
            yield battery_meter.id, 3.7, 0.5
            if how == "log_power":
                pm.log_power(battery_meter.id, 3.7, 0.5)
            else:
                pm.log_many([])

        with pytest.raises(PowerManagerError, match="still reading its rows"):
            pm.log_many(rows())
        assert history(pm, battery_meter.id) == []
        pm.log_power(battery_meter.id, 3.7, 0.5)
        assert len(history(pm, battery_meter.id)) == 1

    def test_rows_may_come_out_of_the_same_file(
        self, pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """An iterator may read, register and add meters meanwhile."""
        pm.log_many((battery_meter.id, 3.7, 0.5, 50.0, NOW + i) for i in range(10))
        target = pm.add_meter("dev-001", "battery")

        def rows() -> Iterator[tuple[Any, ...]]:
            for reading in pm.iter_history(battery_meter.id):
                pm.register_device(reading.timestamp, "D")
                yield (
                    target.id,
                    reading.voltage,
                    reading.current_draw,
                    reading.charge_pct,
                    reading.timestamp,
                )

        assert pm.log_many(rows()) == 10
        assert history(pm, target.id) == history(pm, battery_meter.id)
        assert len(pm.list_devices()) == 11


def near_tuple(values: Sequence[float]) -> Any:
    """The same up to the order of floating-point sums."""
    return pytest.approx(tuple(values), rel=1e-9, abs=1e-8)


# --- iter_history -----------------------------------------------------------------------------


class Label(str):
    """Text of a class of its own, as NumPy and pandas have it."""

    __slots__ = ()


class Labels(str, Enum):
    """Text as the member of an enum, which prints itself otherwise."""

    HERE = "here"


def test_one_meter_by_several_kinds_of_text(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """Whatever kind of text names a meter, it is one meter: every reading is stored, and each alert fires once."""
    labels = [Label(battery_meter.id), battery_meter.id, Label(battery_meter.id)]
    assert pm.log_many((labels[i % 3], 3.7, 0.5, 10.0, NOW + i) for i in range(9)) == 9
    assert len(pm.get_history(battery_meter.id)) == 9
    assert [event.type for event in pm.get_events("dev-001")] == ["discharge"]
    assert pm.check() == []


def test_text_of_an_enum_is_its_value(pm: PowerManager) -> None:
    """An id or a name is stored as what it equals."""
    pm.register_device(Labels.HERE, Labels.HERE)
    assert [(device.id, device.name) for device in pm.list_devices()] == [("here", "here")]


class TestIterHistory(InFile):
    """iter_history takes constant memory, and holds nobody up."""

    @pytest.fixture
    def meter_id(
        self, pm: PowerManager, battery_meter: PowerMeter, monkeypatch: pytest.MonkeyPatch
    ) -> str:
        """A meter with 25 readings a second apart, read in pages of 10."""
        monkeypatch.setattr(power_manager, "_PAGE", 10)
        pm.log_many((battery_meter.id, 3.7, 0.5, i, NOW + i) for i in range(25))
        return battery_meter.id

    @pytest.mark.parametrize(
        ("since", "until", "charges"),
        [
            (None, None, range(25)),
            (NOW + 5, None, range(5, 25)),
            (None, iso((NOW + 20) * SECOND), range(20)),
            (NOW + 5, NOW + 15, range(5, 15)),
            (NOW + 4.5, datetime.fromtimestamp(NOW + 4.6, timezone.utc), range(0)),
            (NOW + 15, NOW + 5, range(0)),
        ],
        ids=["all", "since", "until", "both", "between two", "reversed"],
    )
    def test_window(
        self, pm: PowerManager, meter_id: str, since: Any, until: Any, charges: range
    ) -> None:
        """The readings from `since` on and before `until`, oldest first, as get_history gives them."""
        got = list(pm.iter_history(meter_id, since=since, until=until))
        assert [reading.charge_pct for reading in got] == list(charges)
        assert got == [
            reading for reading in pm.get_history(meter_id) if reading.charge_pct in charges
        ]

    def test_pages_that_end_with_the_history(self, pm: PowerManager, meter_id: str) -> None:
        """A history of whole pages ends after them."""
        assert len(list(pm.iter_history(meter_id, until=NOW + 20))) == 20

    def test_holds_no_transaction(self, pm: PowerManager, path: Path, meter_id: str) -> None:
        """Half-way through, another connection can truncate the write-ahead log, and new readings are met."""
        readings = pm.iter_history(meter_id)
        for _ in range(5):
            next(readings)
        pm.log_power(meter_id, 3.7, 0.5, 99.0, timestamp=NOW + 100)
        (busy, *_), *_ = fetch(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        assert (busy, Path(f"{path}-wal").stat().st_size) == (0, 0)
        assert [reading.charge_pct for reading in readings] == [*range(5, 25), 99]

    def test_constant_memory(
        self, pm: PowerManager, battery_meter: PowerMeter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Memory does not grow with the length of the history."""
        monkeypatch.setattr(power_manager, "_PAGE", 500)
        pm.log_many((battery_meter.id, 3.7, 0.5, 50.0, NOW + i) for i in range(15_000))
        peaks = []
        for until in (NOW + 2_000, NOW + 15_000):
            tracemalloc.start()
            assert sum(1 for _ in pm.iter_history(battery_meter.id, until=until)) == until - NOW
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.5 * peaks[0]


# --- Forwarding -------------------------------------------------------------------------------


class TestForwarding:
    """unforwarded() and mark_forwarded(): the file as an outbox."""

    @staticmethod
    def seconds(readings: Iterable[PowerReading]) -> list[int]:
        """When readings were, in seconds after NOW."""
        return [
            round(datetime.fromisoformat(reading.timestamp).timestamp() - NOW)
            for reading in readings
        ]

    def log(self, pm: PowerManager, meter_id: str, *seconds: int) -> None:
        """Store readings at those seconds after NOW."""
        pm.log_many((meter_id, 3.7, 0.5, 80.0, NOW + second) for second in seconds)

    def test_take_send_mark(
        self, pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter, clock: Clock
    ) -> None:
        """Every reading comes out until it is marked: meter by meter, oldest first, at most the limit."""
        self.log(pm, solar_meter.id, 5, 6)
        self.log(pm, battery_meter.id, 1, 2, 3)
        every = [*pm.iter_history(battery_meter.id), *pm.iter_history(solar_meter.id)]
        assert pm.unforwarded() == every
        assert pm.unforwarded(limit=4) == every[:4] == pm.unforwarded(4)
        pm.mark_forwarded(every[:4])
        assert pm.unforwarded() == every[4:]
        pm.mark_forwarded(iter(every[4:]))
        pm.mark_forwarded(every[:1])  # an old list takes nothing back
        pm.mark_forwarded([])
        assert pm.unforwarded() == []
        clock.now = NOW + 9
        live = pm.log_power(battery_meter.id, 3.7, 0.5)
        assert pm.unforwarded(limit=0) == []
        assert pm.unforwarded() == [live]

    def test_late_reading_comes_next(self, pm: PowerManager, battery_meter: PowerMeter) -> None:
        """A reading of before the mark takes the mark back, so it and those after it come out again."""
        self.log(pm, battery_meter.id, 1, 2, 4, 5)
        pm.mark_forwarded(pm.unforwarded())
        self.log(pm, battery_meter.id, 4, 5)  # there already: nothing new to send
        assert pm.unforwarded() == []
        self.log(pm, battery_meter.id, 6, 3)
        assert self.seconds(pm.unforwarded()) == [3, 4, 5, 6]

    def test_late_reading_between_taking_and_marking(
        self, pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """What arrives while a list is on its way is not marked with it."""
        self.log(pm, battery_meter.id, 1, 2, 4, 5)
        taken = pm.unforwarded()
        self.log(pm, battery_meter.id, 3)
        pm.mark_forwarded(taken)
        assert self.seconds(pm.unforwarded()) == [3, 4, 5]

    def test_rolled_back_reading_takes_no_mark_back(
        self, pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """The mark moves in the reading's own transaction."""
        self.log(pm, battery_meter.id, 1, 3)
        pm.mark_forwarded(pm.unforwarded())
        if isinstance(pm, PowerManager):  # a Reopened has no transaction
            with pytest.raises(Broken):
                fail(pm, lambda: self.log(pm, battery_meter.id, 2))
        assert pm.unforwarded() == []

    def test_pruned_readings_are_gone(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """prune() asks nobody whether its readings have been sent."""
        self.log(pm, battery_meter.id, 1, 2)
        clock.now = NOW + 3600
        pm.prune(0)
        assert pm.unforwarded() == []

    @pytest.mark.parametrize("seed", range(20))
    def test_everything_arrives(self, pm: PowerManager, device: DeviceRecord, seed: int) -> None:
        """Whatever the order of arriving, taking and losing, the other side ends with what the file has."""
        chance, sent = random.Random(seed), set[str]()
        meters = [pm.add_meter(device.id, "main").id for _ in range(3)]
        for _ in range(40):
            taken = pm.unforwarded(limit=chance.choice([1, 3, 500]))
            if chance.random() < 0.7:
                self.log(pm, chance.choice(meters), *(chance.randrange(60) for _ in range(3)))
            if chance.random() < 0.7:
                sent.update(reading.id for reading in taken)
                if chance.random() < 0.7:
                    pm.mark_forwarded(taken)
        while taken := pm.unforwarded(limit=7):
            sent.update(reading.id for reading in taken)
            pm.mark_forwarded(taken)
        assert sent == {reading.id for meter_id in meters for reading in pm.iter_history(meter_id)}

    def test_bad_input(self, pm: PowerManager, battery_meter: PowerMeter) -> None:
        """What is no reading, or of no meter, is refused, and nothing is marked."""
        self.log(pm, battery_meter.id, 1)
        (reading,) = pm.unforwarded()
        with pytest.raises(
            InvalidValue, match=r"readings: expected PowerReading records of unforwarded\(\), got 5"
        ):
            pm.mark_forwarded([reading, 5])  # type: ignore[list-item]
        with pytest.raises(NotFound, match="no meter has the id 'nobody'"):
            pm.mark_forwarded([reading, dataclasses.replace(reading, meter_id="nobody")])
        with pytest.raises(
            InvalidValue, match="limit: expected a whole number of at least 0, got -1"
        ):
            pm.unforwarded(-1)
        assert pm.unforwarded() == [reading]


# --- Threads and processes --------------------------------------------------------------------


def in_threads(*calls: Callable[[], object]) -> None:
    """Run calls at once, each in a thread, and raise what any of them raises."""
    barrier, errors = threading.Barrier(len(calls)), list[BaseException]()

    def run(call: Callable[[], object]) -> None:
        try:
            barrier.wait(30)
            call()
        except BaseException as exc:  # noqa: BLE001 - raised again below
            errors.append(exc)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


class Held:
    """Hold a connection inside whatever statement it runs next, in a thread of its own."""

    def __init__(self, connection: sqlite3.Connection, call: Callable[[], object]) -> None:
        self._inside, self._go_on = threading.Event(), threading.Event()
        self._connection = connection
        self.result: list[object] = []
        self._thread = threading.Thread(target=lambda: self.result.append(call()))

    def _hold(self) -> int:
        self._inside.set()
        self._go_on.wait(30)
        return 0

    def __enter__(self) -> Held:
        self._connection.set_progress_handler(self._hold, 1)
        self._thread.start()
        assert self._inside.wait(30)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._go_on.set()
        self._thread.join(30)
        with suppress(sqlite3.ProgrammingError):  # closed meanwhile
            self._connection.set_progress_handler(None, 1)
        assert not self._thread.is_alive()


class TestThreads(InFile):
    """One PowerManager may be shared by threads."""

    def test_many_writers_and_readers(
        self, pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """Readings from many threads are all there, and reports meanwhile are whole."""

        def write(meter_id: str) -> None:
            for _ in range(50):
                pm.log_power(meter_id, 1.0, 1.0, 15.0)

        def report() -> None:
            for _ in range(30):
                part = meter_part(pm, "dev-001", 7)
                assert part["reading_count"] == 0 or part["avg_wattage"] == 1.0
                pm.power_budget_check(["dev-001"])

        in_threads(
            *[lambda m=m: write(m.id) for m in (battery_meter, solar_meter, battery_meter)],
            report,
            report,
        )
        assert [len(history(pm, m.id)) for m in (battery_meter, solar_meter)] == [100, 50]
        assert (alerts_of(pm, "dev-001"), pm.check()) == (["discharge"], [])

    def test_in_memory(self, opened: Opener) -> None:
        """A database in memory may be shared too."""
        pm = opened()
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "main")
        in_threads(
            *[
                lambda: [
                    pm.log_power(meter.id, 1.0, 1.0) and pm.export_report("d") for _ in range(30)
                ]
            ]
            * 4
        )
        assert len(history(pm, meter.id)) == 120

    @pytest.mark.parametrize("call", ["export_report", "power_budget_check"])
    def test_a_report_holds_up_no_reading(
        self, connections: list[sqlite3.Connection], path: Path, opened: Opener, call: str
    ) -> None:
        """While a report is in the middle of its query, log_power returns."""
        pm = opened(path)
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "battery")
        pm.export_report("d")  # its connection is the last one opened
        argument: Any = ["d"] if call == "power_budget_check" else "d"
        with Held(connections[-1], lambda: getattr(pm, call)(argument)):
            pm.log_power(meter.id, 1.0, 1.0, 50.0)
            assert len(history(pm, meter.id)) == 1

    def test_a_report_is_of_one_instant(
        self, connections: list[sqlite3.Connection], path: Path, opened: Opener
    ) -> None:
        """What others commit between the queries of a report is not in it."""
        pm, other = opened(path), opened(path)
        pm.register_device("d", "D")
        pm.export_report("d")
        connections[-1].set_trace_callback(
            lambda statement: other.trigger_event("d", "restore") and None
        )
        report = json.loads(pm.export_report("d"))
        connections[-1].set_trace_callback(None)
        assert report["event_count"] == len(report["events"]) < len(pm.get_events("d"))

    def test_close_during_a_report(
        self, connections: list[sqlite3.Connection], path: Path, opened: Opener
    ) -> None:
        """A report that is under way when another thread closes the file is finished, and leaves nothing open."""
        pm = opened(path)
        pm.register_device("d", "D")
        pm.export_report("d")
        with Held(connections[-1], lambda: pm.export_report("d")) as held:
            pm.close()
        assert json.loads(str(held.result[0]))["device_id"] == "d"
        assert_closed(connections)

    def test_a_transaction_is_seen_by_its_own_thread_only(
        self, pm: PowerManager, device: DeviceRecord
    ) -> None:
        """Another thread reads what is committed, and its writes come after."""
        seen: list[object] = []

        def other() -> None:
            seen.append(len(pm.list_devices()))
            started.set()
            pm.register_device("second", "Second")

        started = threading.Event()
        thread = threading.Thread(target=other)
        with pm.transaction():
            pm.register_device("first", "First")
            thread.start()
            assert started.wait(30)
            seen.append(len(pm.list_devices()))
        thread.join(30)
        assert seen == [1, 2]
        assert [d.id for d in pm.list_devices()] == [device.id, "first", "second"]


WRITE_50 = """
import sys, power_manager
with power_manager.PowerManager(sys.argv[1]) as pm:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(50):
        pm.log_power(sys.argv[2], 1.0, 1.0, 15.0)
"""
CREATE = """
import sys, power_manager
print("ready", flush=True)
sys.stdin.readline()
with power_manager.PowerManager(sys.argv[1]) as pm:
    pm.register_device(sys.argv[2], "D")
"""


def at_once(children: list[subprocess.Popen[str]]) -> None:
    """Let processes go on together once all of them are ready."""
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        finished(child)


class TestProcesses(InFile):
    """Any number of processes may have the file open."""

    def test_several_writers(self, pm: PowerManager, path: Path, battery_meter: PowerMeter) -> None:
        """Readings of several processes are all there, with one alert for all of them."""
        at_once([process(WRITE_50, path, battery_meter.id) for _ in range(4)])
        assert len(history(pm, battery_meter.id)) == 200
        assert (alerts_of(pm, "dev-001"), pm.check()) == (["discharge"], [])

    def test_creators_racing(self, tmp_path: Path) -> None:
        """Processes that make the same file at once all succeed."""
        for number in range(3):
            at_once([process(CREATE, tmp_path / f"{number}.db", name) for name in "abcd"])
            with PowerManager(tmp_path / f"{number}.db") as pm:
                assert sorted(device.id for device in pm.list_devices()) == ["a", "b", "c", "d"]
                assert pm.check() == []

    def test_followers_see_other_processes(
        self, pm: PowerManager, path: Path, battery_meter: PowerMeter
    ) -> None:
        """An event recorded by another process is there for events_since."""
        finished(process(WRITE_50, path, battery_meter.id))
        assert types_of(event for _, event in pm.events_since(0)) == ["discharge"]

    def test_a_killed_writer_leaves_the_file_whole(
        self, pm: PowerManager, path: Path, battery_meter: PowerMeter
    ) -> None:
        """What log_power returned before the process was killed is there; a transaction it was in is not."""
        code = """if True:
            import sys, power_manager
            pm = power_manager.PowerManager(sys.argv[1])
            pm.log_power(sys.argv[2], 1.0, 1.0, 50.0)
            with pm.transaction():
                pm.log_power(sys.argv[2], 1.0, 1.0, 40.0)
                print("ready", flush=True)
                sys.stdin.readline()
        """
        child = process(code, path, battery_meter.id)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.kill()
        child.communicate(timeout=30)
        assert [row[3] for row in history(pm, battery_meter.id)] == [50.0]
        assert pm.check() == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    @pytest.mark.parametrize("busy", [False, True], ids=["idle", "while another thread writes"])
    def test_fork(self, path: Path, busy: bool) -> None:
        """In a child of a fork the parent's PowerManager refuses to work, at once, and the parent's goes on."""
        code = """if True:
            import os, signal, sys, threading, warnings, power_manager
            warnings.simplefilter("ignore")  # of forking with threads: that is what is tested
            pm = power_manager.PowerManager(sys.argv[1])
            pm.register_device("d", "D")
            inside, leave = threading.Event(), threading.Event()
            def write():
                with pm.transaction():
                    inside.set()
                    leave.wait(30)
            thread = threading.Thread(target=write)
            if sys.argv[2] == "True":
                thread.start()
                inside.wait(30)
            child = os.fork()
            if not child:
                signal.alarm(2)
                refused = 0
                for call in (pm.list_devices, lambda: pm.register_device("e", "E"), pm.transaction().__enter__):
                    try:
                        call()
                    except power_manager.StorageError as exc:
                        refused += "fork" in str(exc)
                del pm
                os._exit(refused)
            status = os.waitpid(child, 0)[1]
            leave.set()
            if thread.ident:
                thread.join()
            pm.register_device("f", "F")
            print(os.WIFEXITED(status) and os.WEXITSTATUS(status), [device.id for device in pm.list_devices()])
            pm.close()
        """
        assert finished(process(code, path, busy)) == "3 ['d', 'f']"
        assert [device.id for device in reread(path)["devices"]] == ["d", "f"]


# --- The file ---------------------------------------------------------------------------------


class TestLifecycle:
    """Opening and closing."""

    def test_db_path(self, path: Path) -> None:
        """The attribute db_path is the path as given."""
        with PowerManager(str(path)) as pm:
            assert pm.db_path == path

    def test_default_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a path the file is power_manager.db in the working directory; it stays there when that changes."""
        monkeypatch.chdir(tmp_path)
        with PowerManager() as pm:
            (tmp_path / "elsewhere").mkdir()
            os.chdir("elsewhere")
            pm.register_device("d", "D")
            assert len(pm.list_devices()) == 1
        assert [entry.name for entry in sorted(tmp_path.iterdir())] == [
            "elsewhere",
            "power_manager.db",
        ]

    @pytest.mark.parametrize(
        "name", ["a b.db", "50%25.db", "a?mode=ro#x.db", "電池.db", "file:x.db", "a'b\"c.db"]
    )
    def test_odd_names(self, tmp_path: Path, name: str) -> None:
        """Any file name is taken as it is."""
        with PowerManager(tmp_path / name) as pm:
            pm.register_device("d", "D")
        assert [entry.name for entry in tmp_path.iterdir()] == [name]

    def test_closed(self, opened: Opener, path: Path) -> None:
        """A closed PowerManager refuses to work; closing it again does nothing."""
        pm = opened(path)
        pm.close()
        pm.close()
        for call in (
            pm.list_devices,
            lambda: pm.register_device("d", "D"),
            pm.transaction().__enter__,
            lambda: pm.prune(1),
        ):
            with pytest.raises(StorageError, match=rf"{path}: this PowerManager is closed"):
                call()
        with pytest.raises(StorageError, match="this PowerManager is closed"):
            pm.backup(f"{path}.copy")
        assert "this PowerManager is closed" in pm.check()[0]

    def test_closing_leaves_one_file(self, tmp_path: Path) -> None:
        """After the last one has closed there is neither -wal nor -shm."""
        with PowerManager(tmp_path / "a.db") as pm:
            pm.register_device("d", "D")
            pm.list_devices()
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]

    def test_forgotten(self, tmp_path: Path) -> None:
        """A PowerManager that is dropped without close() closes its file."""
        pm = PowerManager(tmp_path / "a.db")
        pm.register_device("d", "D")
        del pm
        gc.collect()
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.db"]

    @pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
    def test_settings_read_back(
        self,
        connections: list[sqlite3.Connection],
        opened: Opener,
        path: Path,
        durability: str,
        synchronous: int,
    ) -> None:
        """The connection has the journal, durability and foreign keys that were promised."""
        opened(path, durability=durability)
        got = [
            connections[0].execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
        assert got == ["wal", synchronous, 1]

    def test_durability_default(
        self, connections: list[sqlite3.Connection], opened: Opener, path: Path
    ) -> None:
        """The default durability is full."""
        opened(path)
        assert connections[0].execute("PRAGMA synchronous").fetchone() == (2,)

    def test_max_gap_is_kept_in_the_file(self, opened: Opener, path: Path) -> None:
        """A file's max_gap is taken by who names none, and another one is refused."""
        opened(path, max_gap=60).register_device("d", "D")
        pm = opened(path)
        meter = pm.add_meter("d", "main")
        pm.log_many((meter.id, 1.0, 60.0, 50.0, NOW - age) for age in (151, 90, 30))
        assert meter_part(pm, "d", 7)["energy_out_wh"] == 1.0
        with pytest.raises(InvalidValue, match=r"^max_gap: expected 60, .+, got 61"):
            PowerManager(path, max_gap=61)

    def test_logs_by_its_own_logger_and_configures_nothing(self) -> None:
        """Importing the module gives no logger a handler or a level."""
        code = (
            "import logging, power_manager; "
            "print(logging.root.handlers, logging.getLogger('power_manager').handlers)"
        )
        assert finished(process(code)) == "[] []"

    def test_never_opens_the_database_itself(self, path: Path) -> None:
        """No call opens the database file but SQLite: closing such a descriptor would drop its locks."""
        code = """if True:
            import os, sys
            path, seen = sys.argv[1], []
            def hook(event, args):
                if event == "open" and not isinstance(args[0], int) and "power.db" in os.fsdecode(args[0]):
                    seen.append(args)
            sys.addaudithook(hook)
            import power_manager
            for _ in range(2):
                with power_manager.PowerManager(path) as pm:
                    pm.register_device("d", "D")
                    pm.log_power(pm.add_meter("d", "main").id, 1, 1)
                    pm.export_report("d"), pm.prune(0), pm.check()
                    pm.backup(os.path.join(os.path.dirname(path), "copy"))
            print(seen)
        """
        assert finished(process(code, path)) == "[]"


def filled(path: Path, count: int = 30, sql: str = "") -> str:
    """Make a database with a device, a battery and readings, then run SQL on it; return the battery's id."""
    with PowerManager(path, clock=Clock()) as pm:
        pm.register_device("dev-001", "Edge Node")
        meter = pm.add_meter("dev-001", "battery", 50.0, "Pack")
        pm.log_many(
            (meter.id, 3.7 + i / 100, 0.5, 80.0 - i, NOW - 3000 + 100 * i) for i in range(count)
        )
        pm.trigger_event("dev-001", "restore")
    execute(path, sql)
    return meter.id


def content(place: Path) -> dict[str, bytes]:
    """The files of a directory, to the last byte; the shared-memory index of a log is not content."""
    return {
        entry.name: entry.read_bytes()
        for entry in place.iterdir()
        if entry.is_file() and not entry.name.endswith("-shm")
    }


class TestFileModes:
    """New files are private to their owner."""

    @pytest.fixture(autouse=True)
    def _open_umask(self) -> Iterator[None]:
        before = os.umask(0)
        yield
        os.umask(before)

    @pytest.mark.parametrize(
        "mknod", ["works", PermissionError, None], ids=["mknod", "mknod for root only", "no mknod"]
    )
    def test_new_file(self, path: Path, monkeypatch: pytest.MonkeyPatch, mknod: Any) -> None:
        """The file and its -wal and -shm are for their owner only, whatever the umask and the system."""
        if mknod is None:
            monkeypatch.delattr(os, "mknod")
        elif mknod is PermissionError:

            def refuse(*args: object) -> None:
                raise PermissionError(errno.EPERM, "Operation not permitted")

            monkeypatch.setattr(os, "mknod", refuse)
        with PowerManager(path) as pm:
            pm.register_device("d", "D")
            modes = {
                entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()
            }
        assert modes == {"power.db": 0o600, "power.db-wal": 0o600, "power.db-shm": 0o600}

    def test_backup(self, path: Path, opened: Opener) -> None:
        """A copy is private too."""
        opened(path).backup(f"{path}.copy")
        assert stat.S_IMODE(os.stat(f"{path}.copy").st_mode) == 0o600

    def test_through_a_dangling_link(self, path: Path, tmp_path: Path) -> None:
        """A link to a file that is not there yet is followed."""
        link = tmp_path / "link.db"
        link.symlink_to(path)
        PowerManager(link).close()
        assert (link.is_symlink(), stat.S_IMODE(path.stat().st_mode)) == (True, 0o600)

    def test_mode_of_an_old_file_stays(self, path: Path) -> None:
        """The mode that a file's owner has chosen is left alone."""
        filled(path)
        path.chmod(0o640)
        PowerManager(path).close()
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def another_program(path: Path) -> None:
    """Make a database of another program."""
    execute(
        path, "CREATE TABLE devices (id TEXT, name TEXT)", "INSERT INTO devices VALUES ('x', 'X')"
    )


class TestWrongFiles:
    """What is not ours is refused by name, and left as it is."""

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: path.mkdir(), "this is a directory: name a file in it"),
            (lambda path: path.write_text("timestamp,voltage\n" * 99), "not a database"),
            (another_program, "a database of another program: name another file"),
            (
                lambda path: execute(path, "PRAGMA user_version = 1"),
                "a database of another program: name another file",
            ),
            (
                lambda path: execute(path, "PRAGMA application_id = 5"),
                "a database of another program: name another file",
            ),
            (
                lambda path: filled(path, sql="PRAGMA user_version = 4"),
                "its schema 4 is not 3: .+ newer",
            ),
            (lambda path: filled(path, sql="PRAGMA user_version = 0"), "its schema 0 is not 3"),
        ],
        ids=[
            "directory",
            "text",
            "other tables",
            "other version",
            "other application",
            "newer schema",
            "no schema",
        ],
    )
    def test_refused(
        self,
        path: Path,
        tmp_path: Path,
        connections: list[sqlite3.Connection],
        make: Callable[[Path], object],
        message: str,
    ) -> None:
        """The error names the file and what to do; not one byte is changed, and nothing is left open."""
        make(path)
        before = content(tmp_path)
        with pytest.raises(StorageError, match=rf"^{path}: .*{message}") as caught:
            PowerManager(path)
        assert caught.value.filename == str(path)
        assert content(tmp_path) == before
        if path.is_file():
            assert_closed(connections)

    @pytest.mark.parametrize("name", ["x" * 300, "file/inside.db"], ids=["too long", "in a file"])
    def test_path_that_cannot_be(self, tmp_path: Path, name: str) -> None:
        """What the system says of a path is a StorageError that names it, for databases and for copies."""
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match=re.escape(f"{tmp_path / name}: ")) as caught:
            PowerManager(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
        with PowerManager(":memory:") as pm, pytest.raises(StorageError) as caught:
            pm.backup(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)

    def test_missing_directory(self, tmp_path: Path) -> None:
        """A directory that is not there is not made."""
        with pytest.raises(StorageError, match=r"nowhere/a.db: .*check that its directory exists"):
            PowerManager(tmp_path / "nowhere" / "a.db")
        assert content(tmp_path) == {}

    def test_empty_file(self, path: Path) -> None:
        """An empty file is a new database."""
        path.touch()
        PowerManager(path).close()
        assert reread(path)["devices"] == []

    @pytest.mark.skipif(
        sys.version_info < (3, 11), reason="Python 3.10 does not tell SQLite's error codes"
    )
    def test_error_name_and_hint(self, path: Path) -> None:
        """An error has SQLite's name for it, and a hint."""
        path.write_bytes(b"x" * 1000)
        with pytest.raises(
            StorageError,
            match=r"SQLITE_NOTADB: .+; this is not an SQLite database: name another file",
        ) as caught:
            PowerManager(path)
        assert (caught.value.sqlite_errorname, type(caught.value.__cause__)) == (
            "SQLITE_NOTADB",
            sqlite3.DatabaseError,
        )

    def test_place_without_shared_memory(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A place that cannot hold a write-ahead log, as some network disks, is refused."""
        connect = sqlite3.connect
        monkeypatch.setattr(
            sqlite3,
            "connect",
            lambda target, **options: connect(f"{target}&vfs=unix-none", **options),
        )
        with pytest.raises(StorageError, match=r"cannot hold a WAL database .*: use a local disk"):
            PowerManager(path)


@pytest.fixture
def shared_place() -> Iterator[Path]:
    """A directory that other users can enter, too."""
    place = Path(tempfile.mkdtemp(prefix="power-manager-test-"))
    place.chmod(0o755)
    yield place
    place.chmod(0o755)
    shutil.rmtree(place)


class TestReadOnly:
    """A place where this user may not write."""

    def test_new_file(self, shared_place: Path) -> None:
        """A file that cannot be made is named."""
        shared_place.chmod(0o555)
        with (
            without_rights(),
            pytest.raises(StorageError, match=rf"^{shared_place}/a.db: .*check that"),
        ):
            PowerManager(shared_place / "a.db")
        assert content(shared_place) == {}

    @pytest.mark.parametrize("mode", [0o444, 0o000], ids=["readable", "unreadable"])
    def test_file_that_is_there(self, shared_place: Path, mode: int) -> None:
        """A database in a read-only place is refused and unharmed."""
        filled(shared_place / "a.db")
        before = content(shared_place)
        (shared_place / "a.db").chmod(mode)
        shared_place.chmod(0o555)
        with (
            without_rights(),
            pytest.raises(StorageError, match=rf"^{shared_place}/a.db: "),
            PowerManager(shared_place / "a.db") as pm,
        ):
            pm.register_device("d", "D")
        (shared_place / "a.db").chmod(0o600)
        assert content(shared_place) == before

    def test_backup_into_it(self, shared_place: Path, opened: Opener, path: Path) -> None:
        """A copy that cannot be made is an error, and leaves nothing."""
        pm = opened()
        shared_place.chmod(0o555)
        with without_rights(), pytest.raises(StorageError, match=rf"^{shared_place}/copy.db: "):
            pm.backup(shared_place / "copy.db")
        assert content(shared_place) == {}


LAST_READING = "(SELECT max(timestamp) FROM power_readings)"


class TestTrouble(InFile):
    """A locked file, a full disk, a damaged file."""

    def test_locked(self, path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opener) -> None:
        """While another process holds the file a writer gives up after BUSY_TIMEOUT; then it works again."""
        monkeypatch.setattr(power_manager, "BUSY_TIMEOUT", 0.01)
        pm = opened(path)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match=rf"^{path}: .*locked"):
            pm.register_device("d", "D")
        assert pm.list_devices() == []
        other.close()
        pm.register_device("d", "D")
        assert len(reread(path)["devices"]) == 1

    def test_locked_while_opening(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A new file that another process holds is an error, and left as it is."""
        monkeypatch.setattr(power_manager, "BUSY_TIMEOUT", 0.01)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StorageError, match=rf"^{path}: .*locked"):
            PowerManager(path)
        other.close()

    @pytest.mark.parametrize("released", [True, False], ids=["in time", "too late"])
    def test_reader_while_opening(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, released: bool
    ) -> None:
        """An old file that another process is reading is upgraded once that is done, if it is within BUSY_TIMEOUT."""

        class Waiting(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if "journal_mode" in sql:
                    super().execute(
                        "PRAGMA busy_timeout = 0"
                    )  # as SQLite is where two ask for it at once
                    attempts.append(sql)
                if released and len(attempts) == 2:
                    other.execute("COMMIT")
                    attempts.append("released")
                return super().execute(sql, *args)

        attempts: list[str] = []
        execute(path, FIRST_RELEASE)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN")
        assert other.execute("SELECT count(*) FROM devices").fetchone() == (2,)
        connect = sqlite3.connect
        with monkeypatch.context() as patch:
            patch.setattr(power_manager, "BUSY_TIMEOUT", 5.0 if released else 0.02)
            patch.setattr(
                sqlite3,
                "connect",
                lambda *args, **options: connect(*args, factory=Waiting, **options),
            )
            if released:
                PowerManager(path).close()
            else:
                with pytest.raises(StorageError, match=rf"^{path}: .*locked"):
                    PowerManager(path)
        other.close()
        assert len(reread(path)["devices"]) == 2

    def test_full_disk(self, path: Path) -> None:
        """On a full disk a writer gets a StorageError, others can read, and what was stored before is whole."""
        meter_id = filled(path)
        before = reread(path)
        with PowerManager(path) as pm, full_disk(path.stat().st_size + 20_000):
            with pytest.raises(StorageError, match=rf"^{path}: ") as caught:
                pm.log_many((meter_id, 1.0, i / 3, 50.0, 1e9 + i) for i in range(100_000))
            assert (caught.value.filename, everything(pm), pm.check()) == (str(path), before, [])
        assert reread(path) == before

    def test_full_disk_inside_a_transaction(
        self, connections: list[sqlite3.Connection], path: Path, opened: Opener
    ) -> None:
        """Where SQLite itself has rolled a transaction back, nothing that follows in it is stored."""
        pm = opened(path)
        pm.register_device("d", "D")
        connections[0].execute("PRAGMA max_page_count = 1")  # as small as the file is now

        def register_many() -> None:
            for number in range(10_000):
                pm.register_device(f"d{number}", "D" * 200)

        def fill() -> None:
            with pytest.raises(StorageError, match="full"):
                register_many()
            with pytest.raises(
                StorageError,
                match="an earlier error has rolled this transaction back, or somebody has ended it",
            ):
                pm.register_device("after", "A")

        def swallowing() -> None:
            with pm.transaction():
                fill()

        with pytest.raises(StorageError, match="an earlier error has rolled this transaction back"):
            swallowing()
        connections[0].execute("PRAGMA max_page_count = 1000000")
        assert [device.id for device in pm.list_devices()] == ["d"]
        pm.register_device("again", "A")
        assert [device["id"] for device in map(dataclasses.asdict, reread(path)["devices"])] == [
            "d",
            "again",
        ]

    def test_reading_connection_that_fails(
        self, connections: list[sqlite3.Connection], path: Path, opened: Opener
    ) -> None:
        """An error at the begin of reading is a StorageError, and the next call works."""
        pm = opened(path)
        pm.list_devices()
        connections[-1].set_authorizer(lambda *args: sqlite3.SQLITE_DENY)
        with pytest.raises(StorageError, match=rf"^{path}: .*not authorized"):
            pm.list_devices()
        connections[-1].set_authorizer(lambda *args: sqlite3.SQLITE_OK)
        assert pm.list_devices() == []

    @pytest.mark.parametrize("kind", ["new", "first release"])
    def test_another_process_is_faster(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """A file that another process makes or upgrades between any two statements of opening is taken as it is."""

        class Slow(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                statements.append(sql)
                if len(statements) == place and not self.in_transaction:  # before that statement
                    acted.append(place)
                    PowerManager(path, clock=Clock()).register_device("other", "Other")
                return super().execute(sql, *args)

        statements: list[str] = []
        acted: list[int] = []
        connect = sqlite3.connect
        monkeypatch.setattr(
            sqlite3, "connect", lambda *args, **options: connect(*args, factory=Slow, **options)
        )
        for place in range(1, 100):
            path = tmp_path / f"{place}.db"
            path.touch()
            execute(path, FIRST_RELEASE if kind == "first release" else "")
            statements.clear()
            with PowerManager(path) as pm:
                assert ("other" in [device.id for device in pm.list_devices()]) is (
                    acted[-1:] == [place]
                )
                assert pm.check() == []
            if statements[place - 1] == "BEGIN IMMEDIATE":
                break
        assert (len(acted) > 3, acted[-1]) == (True, place)

    @pytest.mark.parametrize(
        "damage",
        [
            "DELETE FROM power_settings",
            "UPDATE power_settings SET value = 'abc'",
            "UPDATE power_settings SET value = x'00'",
            "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'CREATE' WHERE name = 'power_hourly'",
            "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = CAST(x'c3' AS TEXT) WHERE name = 'devices'",
        ],
    )
    def test_damaged_schema_or_settings(self, path: Path, damage: str) -> None:
        """A file whose schema or settings are damaged is refused by name."""
        filled(path, sql=damage)
        with pytest.raises(StorageError, match=rf"^{path}: "):
            PowerManager(path)

    @pytest.mark.parametrize(
        "damage", ["voltage = 'abc'", "current_draw = x'00'", "timestamp = 4000000000000000000"]
    )
    def test_damaged_value(self, path: Path, damage: str) -> None:
        """A stored value that cannot be one is a StorageError that names the file and what to do."""
        meter_id = filled(
            path, sql=f"UPDATE power_readings SET {damage} WHERE timestamp = {LAST_READING}"
        )
        with (
            PowerManager(path, clock=Clock()) as pm,
            pytest.raises(StorageError, match=r"a damaged value .*`check`"),
        ):
            pm.get_history(meter_id)

    @pytest.mark.parametrize("damage", ["voltage = 'abc'", "current_draw = x'00'"])
    def test_damaged_value_on_a_later_page(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        """The same for iter_history, when it comes to that value; what is before it has come out."""
        monkeypatch.setattr(power_manager, "_PAGE", 2)
        meter_id = filled(
            path, sql=f"UPDATE power_readings SET {damage} WHERE timestamp = {LAST_READING}"
        )
        with PowerManager(path, clock=Clock()) as pm:
            readings = pm.iter_history(meter_id)
            assert next(readings).meter_id == meter_id
            with pytest.raises(StorageError, match=r"a damaged value .*`check`"):
                list(readings)

    def test_corrupt_page(self, path: Path) -> None:
        """A page of noise is an error that names the file, and check() reports it."""
        meter_id = filled(path, 3000)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size // 2 // 4096 * 4096)
            file.write(random.Random(1).randbytes(4096))
        with PowerManager(path, clock=Clock()) as pm:
            assert pm.check() != []
            with pytest.raises(StorageError, match=rf"^{path}: .*malformed"):
                pm.get_history(meter_id, 1e6)


# --- Earlier versions of the schema -----------------------------------------------------------

VERSION_2 = """
ALTER TABLE power_meters RENAME COLUMN pruned_wattage TO later_wattage;
ALTER TABLE power_meters ADD COLUMN known_us INTEGER NOT NULL DEFAULT -1;
UPDATE power_meters SET known_us = pruned_us, pruned_us = coalesce((SELECT min(r.timestamp, pruned_us + 3600000001)
    FROM power_readings r WHERE r.meter_key = power_meters.meter_key LIMIT 1), pruned_us + 1) WHERE pruned_us >= 0;
ALTER TABLE power_hourly ADD COLUMN pruned_out_wh REAL NOT NULL DEFAULT 0;
ALTER TABLE power_hourly ADD COLUMN pruned_in_wh REAL NOT NULL DEFAULT 0;
UPDATE power_hourly SET (pruned_out_wh, pruned_in_wh) = (
    SELECT max(energy, 0), max(-energy, 0) FROM (
        SELECT (v.voltage * v.current_draw + later_wattage) * (timestamp - known_us) / 7.2e9 AS energy, timestamp
        FROM power_meters m JOIN power_values v USING (meter_key) WHERE m.meter_key = power_hourly.meter_key
            AND known_us >= 0 AND timestamp - known_us <= 3600000000 ORDER BY timestamp LIMIT 1)
    WHERE timestamp / 3600000000 = hour) WHERE EXISTS (
    SELECT 1 FROM power_meters m JOIN power_values v USING (meter_key) WHERE m.meter_key = power_hourly.meter_key
        AND known_us >= 0 AND timestamp - known_us <= 3600000000 AND timestamp / 3600000000 = hour
        AND timestamp = (SELECT min(timestamp) FROM power_readings r WHERE r.meter_key = m.meter_key));
PRAGMA user_version = 2;
"""
VERSION_1 = (
    VERSION_2
    + """
ALTER TABLE power_meters RENAME COLUMN forwarded_us TO later_us;
PRAGMA user_version = 1;
"""
)


class TestUpgrade:
    """A file of an earlier version is upgraded when it is opened, with all it holds."""

    @pytest.mark.parametrize("older", [VERSION_1, VERSION_2], ids=["1", "2"])
    @pytest.mark.parametrize(
        ("seconds", "pruned"),
        [((0, 60, 4000, 7000), 0), ((0, 60, 3500, 7000), 2), ((0, 60, 3659, 7000), 2), ((0, 60, 3661, 7000), 2),
         ((0, 60, 9000, 9900), 2), ((0, 60, 600), 3), ((0, 60, 600, 1200), 3), ((0, 60, 600, 9000), 3)],
        ids=["nothing", "same hour", "in max_gap", "not in max_gap", "far away", "everything",
             "everything, then one soon after", "everything, then one"],
    )  # fmt: skip
    @pytest.mark.parametrize("amperes", [2.0, -2.0])
    def test_whatever_was_pruned(
        self,
        path: Path,
        clock: Clock,
        older: str,
        seconds: Sequence[int],
        pruned: int,
        amperes: float,
    ) -> None:
        """Statistics, reports and events stay, check() is clean, and late readings after the pruned ones are booked."""
        begin = NOW // 3600 * 3600
        clock.now = begin + 10_000
        with PowerManager(path, clock=clock) as pm:
            meter = pm.add_meter(pm.register_device("a", "A").id, "ups")
            rows = [
                (meter.id, 5.0, amperes + second / 1e4, 50.0, begin + second) for second in seconds
            ]
            pm.log_many(rows)
            if pruned:
                assert pm.prune((10_000 - seconds[pruned - 1] - 1) / 86400) == pruned
            before, report = everything(pm), json.loads(pm.export_report("a", 1))["meters"]
        nothing_left = (
            "UPDATE power_meters SET pruned_us = known_us + 1"  # as it was where prune left nothing
        )
        execute(path, older + nothing_left * (pruned == 3))
        with PowerManager(path, clock=clock) as pm:
            assert (everything(pm), pm.check()) == (before, [])
            assert (pm.log_many(rows), everything(pm)) == (0, before)
            assert json.loads(pm.export_report("a", 1))["meters"] == report
            assert len(pm.unforwarded()) == len(seconds) - pruned
            assert pm.log_many([(meter.id, 5.0, amperes, 50.0, begin + 9_950)]) == 1
            assert pm.check() == []
        assert fetch(path, "PRAGMA user_version") == [(3,)]

    @pytest.mark.parametrize(
        "damage", ["DELETE FROM power_settings", "UPDATE power_settings SET value = 'x'"]
    )
    def test_damaged_settings(self, path: Path, damage: str) -> None:
        """The file is refused by what is wrong with it, and stays of its version."""
        filled(path, sql=VERSION_2 + damage)
        with pytest.raises(
            StorageError, match="its setting max_gap_us is damaged: restore a backup"
        ):
            PowerManager(path)
        assert fetch(path, "PRAGMA user_version") == [(2,)]


# --- The first release ------------------------------------------------------------------------

FIRST_RELEASE = """
CREATE TABLE devices (id TEXT PRIMARY KEY, name TEXT, shutdown_threshold REAL, target_wh REAL);
CREATE TABLE power_meters (id TEXT PRIMARY KEY, device_id TEXT, type TEXT, voltage REAL, current_draw REAL,
    capacity_wh REAL, charge_pct REAL, name TEXT);
CREATE TABLE power_readings (id TEXT PRIMARY KEY, meter_id TEXT, voltage REAL, current_draw REAL, wattage REAL,
    charge_pct REAL, timestamp TEXT);
CREATE TABLE power_events (id TEXT PRIMARY KEY, device_id TEXT, type TEXT, value REAL, timestamp TEXT, note TEXT);
INSERT INTO devices VALUES ('dev-001', 'Edge Node', 4.0, 120.0), ('dev-002', 'Other', NULL, NULL);
INSERT INTO power_meters VALUES ('m1', 'dev-001', 'battery', 3.5, 0.5, 50.0, 15.0, 'Pack'),
    ('m2', 'dev-001', 'solar', 18.0, 1.0, 0.0, 100.0, NULL);
INSERT INTO power_readings VALUES ('r1', 'm1', 3.7, 0.5, 1.85, 80.0, '2025-06-16T10:00:00+00:00'),
    ('r3', 'm1', 3.5, 0.5, 1.75, 15.0, '2025-06-16T11:00:00+00:00'),
    ('r2', 'm1', 3.6, 0.5, 1.8, 60.0, '2025-06-16T10:30:00'),
    ('r4', 'm1', 3.9, 0.5, 1.95, 90.0, '2025-06-16T10:30:00.000000Z'),
    ('r5', 'm2', 18.0, 1.0, 18.0, 100.0, '2025-06-16T13:00:00.5+02:00');
INSERT INTO power_events VALUES ('e2', 'dev-001', 'discharge', 15.0, '2025-06-16T11:00:00', 'low'),
    ('e1', 'dev-002', 'restore', NULL, '2025-06-16T09:00:00+00:00', NULL);
"""
ODD_ROWS = """
INSERT INTO devices VALUES ('nameless', NULL, 3.0, NULL), (NULL, 'no id', 3.0, NULL);
INSERT INTO power_meters VALUES ('m3', 'gone', 'battery', 1.0, 1.0, 1.0, 1.0, NULL),
    ('m4', 'dev-001', 'fan', 1.0, 1.0, 1.0, 1.0, NULL), ('m5', 'dev-002', 'ups', NULL, NULL, NULL, NULL, NULL);
INSERT INTO power_readings VALUES ('r6', 'gone', 1.0, 1.0, 1.0, 1.0, '2025-06-16T10:00:00'),
    ('r7', 'm1', NULL, 1.0, 1.0, 1.0, '2025-06-16T10:00:00'), ('r8', 'm1', 1.0, 1.0, 1.0, 1.0, 'noon'),
    ('r9', 'm1', 1.0, 'much', 1.0, 1.0, '2025-06-16T10:00:00'), ('r10', 'm1', 1.0, 1.0, 1.0, 1.0, NULL),
    ('r11', 'm3', 1.0, 1.0, 1.0, 1.0, '2025-06-16T10:00:00'),
    ('r12', 'm1', 1.0, 9e999, 1.0, 1.0, '2025-06-16T10:00:00'),
    ('r13', 'm1', 1.0, 1.0, 1.0, NULL, '2025-06-16T08:00:00'),
    ('r14', 'm1', 1.0, 1.0, 1.0, 120.0, '2025-06-16T08:30:00'),
    ('r15', 'm1', 1.0, 1.0, 1.0, 1.0, '1960-01-01T00:00:00');
INSERT INTO power_events VALUES ('e3', 'gone', 'restore', 1.0, '2025-06-16T10:00:00', NULL),
    ('e4', 'dev-001', 'boom', 1.0, '2025-06-16T10:00:00', NULL),
    ('e5', 'dev-001', 'restore', 1.0, 'noon', NULL);
"""
OLD_TABLES = ["devices", "power_meters", "power_readings", "power_events"]


class TestFirstRelease:
    """A file of the first release is upgraded with nothing lost."""

    @pytest.fixture
    def pm(self, path: Path, opened: Opener) -> PowerManager:
        """A plain file of the first release, opened."""
        execute(path, FIRST_RELEASE)
        return opened(path)

    def test_devices(self, pm: PowerManager) -> None:
        """Devices keep their values, and get the default threshold where they had none."""
        got = [dataclasses.astuple(device)[:4] for device in pm.list_devices()]
        assert got == [("dev-001", "Edge Node", 4.0, 120.0), ("dev-002", "Other", 3.0, None)]

    def test_meters(self, pm: PowerManager) -> None:
        """Meters keep their ids and present states."""
        assert [dataclasses.astuple(meter)[:8] for meter in pm.list_meters()] == [
            ("m1", "dev-001", "battery", 3.5, 0.5, 50.0, 15.0, "Pack"),
            ("m2", "dev-001", "solar", 18.0, 1.0, 0.0, 100.0, None),
        ]
        assert [meter.updated_at for meter in pm.list_meters()] == [
            iso(NOW * SECOND - 1.5 * HOUR),
            iso(NOW * SECOND - 1.5 * HOUR + SECOND / 2),
        ]

    def test_readings(self, pm: PowerManager) -> None:
        """Readings in any order are there, naive times as UTC; two at one instant are a microsecond apart."""
        assert [(row[0][11:26], *row[1:]) for row in history(pm, "m1")] == [
            ("10:00:00.000000", 3.7, 0.5, 80.0),
            ("10:30:00.000000", 3.6, 0.5, 60.0),
            ("10:30:00.000001", 3.9, 0.5, 90.0),
            ("11:00:00.000000", 3.5, 0.5, 15.0),
        ]
        assert history(pm, "m2") == [("2025-06-16T11:00:00.500000+00:00", 18.0, 1.0, 100.0)]

    def test_events(self, pm: PowerManager) -> None:
        """Events are there in order of time, with ids and notes."""
        got = [dataclasses.astuple(event) for _, event in pm.events_since(0)]
        assert got == [
            ("e1", "dev-002", "restore", 0.0, "2025-06-16T09:00:00.000000+00:00", None),
            ("e2", "dev-001", "discharge", 15.0, "2025-06-16T11:00:00.000000+00:00", "low"),
        ]

    def test_statistics_are_made(self, pm: PowerManager) -> None:
        """Reports over the old readings are exact, and nothing is left of the old tables."""
        rows = [
            Row(int(datetime.fromisoformat(at).timestamp()) * SECOND, v, c, q)
            for at, v, c, q in history(pm, "m1")
        ]
        rows[2] = rows[2]._replace(us=rows[1].us + 1)
        assert meter_part(pm, "dev-001", 7) == near(brute_force(rows))
        assert pm.check() == []

    def test_alerts_go_on(self, pm: PowerManager, clock: Clock) -> None:
        """A battery that was low does not raise its event again; a critical one does."""
        for charge in (14.0, 4.0):
            pm.log_power("m1", 3.5, 0.5, charge)
        assert alerts_of(pm, "dev-001") == ["discharge", "low_battery"]

    def test_is_done_once(self, pm: PowerManager, path: Path) -> None:
        """The upgraded file opens as any other, with the same content."""
        assert reread(path) == everything(pm)
        tables = {
            name for (name,) in fetch(path, "SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        assert not any(name.startswith("first_release") for name in tables)

    @pytest.mark.parametrize(
        ("sql", "left"),
        [
            (
                "INSERT INTO power_meters VALUES ('', 'dev-001', 'main', 1, 1, 1, 1, NULL)",
                "power_meters",
            ),
            (
                f"INSERT INTO power_meters VALUES ('{'m' * 201}', 'dev-001', 'main', 1, 1, 1, 1, NULL)",
                "power_meters",
            ),
            (
                "INSERT INTO power_meters VALUES ('m9', 'dev-001', 'main', 9e999, 1, 1, 1, NULL)",
                "power_meters",
            ),
            (
                "INSERT INTO power_meters VALUES ('m9', 'dev-001', 'main', 1, 1, -1, 1, NULL)",
                "power_meters",
            ),
            (f"INSERT INTO devices VALUES ('{'d' * 201}', 'D', 1, NULL)", "devices"),
            ("INSERT INTO devices VALUES ('d9', 'D', 1, -5.0)", "devices"),
        ],
        ids=[
            "no id",
            "long id",
            "infinite",
            "negative capacity",
            "long device id",
            "negative target",
        ],
    )
    def test_what_could_not_be_made_today_is_kept_apart(
        self, path: Path, opened: Opener, sql: str, left: str
    ) -> None:
        """The file opens, and its reports are strict JSON; the odd row stays in its first_release_* table."""
        execute(path, FIRST_RELEASE + sql + ";")
        pm = opened(path)
        assert [device.id for device in pm.list_devices()] == ["dev-001", "dev-002"]
        assert [meter.id for meter in pm.list_meters()] == ["m1", "m2"]
        assert "Infinity" not in json.dumps(pm.power_budget_check(["dev-001", "dev-002"]))
        assert pm.check() == [f"first_release_{left}: rows of the first release that have no place"]

    def test_odd_rows_with_foreign_keys(self, path: Path, opened: Opener) -> None:
        """What refers to what is gone with them is said once for each table, by check()."""
        schema = FIRST_RELEASE.replace("device_id TEXT", "device_id TEXT REFERENCES devices (id)")
        execute(
            path,
            schema.replace("meter_id TEXT", "meter_id TEXT REFERENCES power_meters (id)")
            + ODD_ROWS,
        )
        problems = opened(path).check()
        assert len(problems) == len(set(problems)) == 4
        assert all(
            re.fullmatch(r"first_release_\w+: rows of the first release that have no place", p)
            for p in problems
        )

    def test_empty_names(self, path: Path, opened: Opener) -> None:
        """A device without a name has its id for one, a meter none."""
        execute(
            path,
            FIRST_RELEASE
            + "UPDATE devices SET name = char(9, 32); UPDATE power_meters SET name = '';",
        )
        pm = opened(path)
        assert [device.name for device in pm.list_devices()] == ["dev-001", "dev-002"]
        assert ([meter.name for meter in pm.list_meters()], pm.check()) == ([None, None], [])

    def test_odd_rows_are_kept(
        self, path: Path, opened: Opener, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Rows that have no place stay in first_release_* tables, are warned of, and the rest is upgraded."""
        execute(path, FIRST_RELEASE, ODD_ROWS)
        pm = opened(path)
        left = {
            table: {row[0] for row in fetch(path, f"SELECT id FROM first_release_{table}")}
            for table in OLD_TABLES
        }
        assert left == {
            "devices": {"nameless", None},
            "power_meters": {"m3", "m4"},
            "power_readings": {"r6", "r7", "r8", "r9", "r10", "r11", "r12", "r15"},
            "power_events": {"e3", "e4", "e5"},
        }
        assert [(row[0][11:19], row[3]) for row in history(pm, "m1")[:2]] == [
            ("08:00:00", 100.0),
            ("08:30:00", 100.0),
        ]
        assert dataclasses.astuple(pm.get_meter("m5"))[3:8] == (0.0, 0.0, 0.0, 100.0, None)
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 4
        assert [problem.split(":")[0] for problem in pm.check()] == [
            f"first_release_{table}" for table in left
        ]

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE devices SET shutdown_threshold = 'much'",
            "UPDATE devices SET shutdown_threshold = 9e999",
            "UPDATE devices SET target_wh = 'much'",
            "UPDATE devices SET name = ''",
            "UPDATE power_meters SET capacity_wh = 'big'",
            "UPDATE power_meters SET capacity_wh = 9e999",
            "UPDATE power_meters SET capacity_wh = -1",
            "UPDATE power_meters SET voltage = 'abc'",
            "UPDATE power_meters SET voltage = 9e999",
            "UPDATE power_meters SET current_draw = x'00'",
            "UPDATE power_meters SET charge_pct = 'full'",
            "UPDATE power_meters SET charge_pct = 250.0",
            "UPDATE power_meters SET name = x'00ff'",
            "UPDATE power_events SET value = 'much'",
            "UPDATE power_events SET value = 9e999",
            "UPDATE power_events SET note = x'00ff'",
        ],
    )
    def test_odd_values_break_nothing_later(
        self, path: Path, opened: Opener, statement: str
    ) -> None:
        """Whatever an old row holds, afterwards every call works, with values of the promised types."""
        execute(path, FIRST_RELEASE, statement)
        pm = opened(path)
        for device in pm.list_devices():
            json.loads(pm.export_report(device.id, 36500), parse_constant=pytest.fail)
            json.loads(json.dumps(pm.power_budget_check([device.id]), allow_nan=False))
            pm.estimate_runtime(device.id)
            assert {type(device.shutdown_threshold), type(device.target_wh)} <= {float, type(None)}
        for meter in pm.list_meters():
            assert {
                type(value)
                for value in (
                    meter.voltage,
                    meter.current_draw,
                    meter.capacity_wh,
                    meter.charge_pct,
                )
            } == {float}
            assert 0 <= meter.charge_pct <= 100
            assert isinstance(meter.name, (str, type(None)))
            pm.log_power(meter.id, 3.7, 0.5)
        for _, event in pm.events_since(0):
            assert isinstance(event.value, float)
            assert isinstance(event.note, (str, type(None)))

    def test_failing_leaves_the_file_as_it_was(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An upgrade that is interrupted has not begun."""
        execute(path, FIRST_RELEASE)
        before = (
            fetch(path, "SELECT * FROM power_readings"),
            fetch(path, "SELECT sql FROM sqlite_master ORDER BY name"),
        )

        class Interrupting(sqlite3.Connection):
            def create_function(self, *args: Any, **options: Any) -> None:
                raise KeyboardInterrupt

        connect = sqlite3.connect
        with monkeypatch.context() as patch:
            patch.setattr(
                sqlite3,
                "connect",
                lambda *args, **options: connect(*args, factory=Interrupting, **options),
            )
            with pytest.raises(KeyboardInterrupt):
                PowerManager(path)
        after = (
            fetch(path, "SELECT * FROM power_readings"),
            fetch(path, "SELECT sql FROM sqlite_master ORDER BY name"),
        )
        assert after == before

    def test_upgraders_racing(self, path: Path) -> None:
        """Processes that open an old file at once all succeed, and it is upgraded once."""
        execute(path, FIRST_RELEASE)
        at_once([process(CREATE, path, name) for name in "abcd"])
        found = reread(path)
        assert (
            [len(found[key]) for key in ("devices", "meters", "events")],
            len(found["readings"]["m1"]),
        ) == (
            [6, 2, 2],
            4,
        )


# --- Backup, prune and check ------------------------------------------------------------------


class TestBackup(InFile):
    """backup() makes a consistent copy."""

    def test_copy(self, pm: PowerManager, tmp_path: Path, battery_meter: PowerMeter) -> None:
        """The copy holds everything, replaces what was there, and is the only new file."""
        pm.log_power(battery_meter.id, 3.7, 0.5, 4.0)
        target = tmp_path / "copy.db"
        target.write_text("old")
        pm.backup(target)
        assert reread(target) == everything(pm)
        assert [entry.name for entry in sorted(tmp_path.iterdir())] == [
            "copy.db",
            "power.db",
            "power.db-shm",
            "power.db-wal",
        ]

    @pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
    def test_refuses_what_belongs_to_a_database(
        self, pm: PowerManager, path: Path, suffix: str
    ) -> None:
        """SQLite's own files beside a database, its own or another one's, are not written over."""
        pm.register_device("x", "X")
        Path(f"{path}2").write_bytes(b"")
        for target in (f"{path}{suffix}", f"{path}2{suffix}"):
            with pytest.raises(
                StorageError, match="a database in use, or a part of one: name another file"
            ):
                pm.backup(target)
        pm.backup(f"{path}3{suffix}")
        assert [device.id for device in reread(path)["devices"]] == ["x"]

    def test_of_memory(self, opened: Opener, path: Path) -> None:
        """A database in memory can be kept by a copy."""
        pm = opened()
        pm.register_device("d", "D")
        pm.backup(str(path))
        assert [device.id for device in reread(path)["devices"]] == ["d"]

    def test_is_on_the_disk_before_it_has_its_name(
        self, pm: PowerManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The copy is synced, then renamed, then its directory is synced."""
        steps: list[str] = []
        fsync, replace = os.fsync, os.replace

        def recording_fsync(descriptor: int) -> None:
            steps.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
            fsync(descriptor)

        def recording_replace(old: Path, new: Path) -> None:
            steps.append("rename")
            replace(old, new)

        monkeypatch.setattr(os, "fsync", recording_fsync)
        monkeypatch.setattr(os, "replace", recording_replace)
        pm.backup(tmp_path / "copy.db")
        assert steps == ["file", "rename", "directory"]

    def test_two_at_once(self, pm: PowerManager, tmp_path: Path) -> None:
        """Two threads may copy to one path: the later copy stays."""
        filled(tmp_path / "copy.db")

        def copy() -> None:
            for _ in range(5):
                pm.backup(tmp_path / "copy.db")

        in_threads(copy, copy, copy)
        assert reread(tmp_path / "copy.db") == everything(pm)
        assert "copy.db" in content(tmp_path)
        assert not any(name.endswith(".tmp") for name in content(tmp_path))

    def test_relative_path(
        self, pm: PowerManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A relative path is one in the working directory."""
        monkeypatch.chdir(tmp_path)
        pm.backup("copy.db")
        assert (tmp_path / "copy.db").exists()

    def test_inside_a_transaction(self, pm: PowerManager, path: Path) -> None:
        """Inside a transaction, which a copy could only wait for, it is refused; the transaction goes on."""
        with pm.transaction():
            pm.register_device("d", "D")
            with pytest.raises(
                PowerManagerError, match=r"backup\(\) inside a transaction: leave it first"
            ):
                pm.backup(f"{path}.copy")
        assert (len(reread(path)["devices"]), Path(f"{path}.copy").exists()) == (1, False)

    def test_while_others_write(
        self, pm: PowerManager, path: Path, tmp_path: Path, battery_meter: PowerMeter
    ) -> None:
        """Copies made while threads and processes write are whole, each a state between two transactions."""

        def write() -> None:
            for i in range(60):
                pm.log_many(
                    (battery_meter.id, 3.7, 0.5, 80.0, NOW + 100 * i + j) for j in range(10)
                )

        def copy() -> None:
            for number in range(5):
                pm.backup(tmp_path / f"copy{number}.db")

        in_threads(write, copy)
        for number in range(5):
            assert (
                len(reread(tmp_path / f"copy{number}.db")["readings"][battery_meter.id]) % 10 == 0
            )

    @pytest.mark.parametrize("name", ["power.db", "link.db", "hard.db", "sub", "used.db"])
    def test_refused(
        self, pm: PowerManager, path: Path, tmp_path: Path, name: str, opened: Opener
    ) -> None:
        """The database itself under any name, a directory, and a database in use are refused and unharmed."""
        (tmp_path / "link.db").symlink_to(path)
        (tmp_path / "hard.db").hardlink_to(path)
        (tmp_path / "sub").mkdir()
        opened(tmp_path / "used.db").register_device("used", "U")
        before = content(tmp_path)
        with pytest.raises(StorageError, match=rf"{name}: a d.+: name another file"):
            pm.backup(tmp_path / name)
        assert content(tmp_path) == before

    def test_missing_directory(self, pm: PowerManager, tmp_path: Path) -> None:
        """A directory that is not there is named."""
        with pytest.raises(StorageError, match=r"nowhere/copy.db: "):
            pm.backup(tmp_path / "nowhere" / "copy.db")

    def test_failing_leaves_nothing(self, path: Path, tmp_path: Path) -> None:
        """A copy that the disk has no room for is an error that leaves neither copy nor temporary file."""
        filled(path, 3000)
        with (
            PowerManager(path) as pm,
            full_disk(40_000),
            pytest.raises(StorageError, match=rf"^{tmp_path}/copy.db: "),
        ):
            pm.backup(tmp_path / "copy.db")
        assert list(content(tmp_path)) == ["power.db"]


class TestPrune(InFile):
    """prune() deletes old readings, and nothing else."""

    def test_returns_how_many_went(
        self, pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """Readings older than that many days go, of every meter; one just as old stays."""
        for meter in (battery_meter, solar_meter):
            pm.log_many((meter.id, 1.0, 1.0, 50.0, NOW - 86400 * age) for age in (0, 1, 1.00001, 2))
        assert (pm.prune(1), pm.prune(1), pm.prune(keep_days=0)) == (4, 0, 2)
        assert len(history(pm, battery_meter.id)) == 1

    def test_statistics_states_and_events_stay(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """All but the readings is as before, and check() stays clean."""
        pm.log_many(
            as_readings(battery_meter.id, random_rows(random.Random(2), 100, int(NOW) * SECOND))
        )
        clock.now = NOW + 1e6
        before = everything(pm)
        assert pm.prune(0) == 100
        assert {**everything(pm), "readings": {}} == {**before, "readings": {}}
        assert (history(pm, battery_meter.id), pm.check()) == ([], [])

    @pytest.mark.parametrize("page", [2, 2000])
    @pytest.mark.parametrize("seed", range(4))
    def test_statistics_stay_true_while_readings_arrive(
        self,
        pm: PowerManager,
        battery_meter: PowerMeter,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
        seed: int,
        page: int,
    ) -> None:
        """Pruned again and again between late and new readings, every hour is still that of all readings stored."""
        monkeypatch.setattr(power_manager, "_PAGE", page)
        chance = random.Random(seed)
        rows = random_rows(chance, 100, int(NOW) * SECOND)
        held = sorted(chance.sample(rows, 20))
        kept = [row for row in rows if row not in held]
        stored: list[Row] = []
        for start in range(0, 80, 10):
            pm.log_many(as_readings(battery_meter.id, kept[start : start + 10]))
            stored += kept[start : start + 10]
            clock.now = stored[-1].us / SECOND + 1
            pm.prune(chance.uniform(0, 0.5))
            late = [row for row in held if row.us < stored[-1].us]
            held = [row for row in held if row not in late]
            for row in late:
                count = pm.log_many(as_readings(battery_meter.id, [row]))
                stored += [row] * count
            assert pm.check() == []
        got = pm.get_statistics(battery_meter.id, days=1000)
        for statistics, (begin, expected) in zip(got, buckets(stored, HOUR), strict=True):
            assert statistics.start == begin
            assert {key: getattr(statistics, key) for key in expected} == near(expected)

    @pytest.mark.parametrize("seed", range(3))
    def test_windows_into_pruned_hours(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock, seed: int
    ) -> None:
        """A window is exact where all its readings are kept, and has its first hour whole where some are pruned."""
        rows = random_rows(random.Random(seed), 100, int(NOW) * SECOND)
        pm.log_many(as_readings(battery_meter.id, rows))
        clock.now = float(rows[-1].us // SECOND + 1)
        line = rows[60].us + 5
        pm.prune((clock.now * SECOND - line) / DAY)
        for seconds in range(0, int(clock.now - NOW), 709):
            after = int(clock.now - seconds) * SECOND
            whole = brute_force(rows, after // HOUR * HOUR, leading_in=True)
            expected = whole if after < rows[60].us else brute_force(rows, after + 1)
            assert meter_part(pm, "dev-001", seconds / 86400) == near(expected)

    @pytest.mark.parametrize("seed", range(3))
    def test_windows_of_several_meters(
        self, pm: PowerManager, device: DeviceRecord, clock: Clock, seed: int
    ) -> None:
        """In one report the hours are whole for a meter that has lost readings of it, and exact for the others."""
        chance, begin = random.Random(seed), int(NOW) * SECOND // HOUR * HOUR
        spaced = [
            Row(begin + minute * 60 * SECOND, 5.0, chance.uniform(-2, 2), 50.0)
            for minute in range(240)
        ]
        lost = pm.add_meter(device.id, "main", name="lost some")
        pm.log_many(as_readings(lost.id, spaced))
        clock.now = begin / SECOND + 4 * 3600
        line = begin + 70 * 60 * SECOND
        assert pm.prune((clock.now * SECOND - line) / DAY) == 70
        late = [row for row in spaced if chance.random() < 0.4]
        kept, sparse = pm.add_meter(device.id, "solar"), pm.add_meter(device.id, "battery")
        pm.log_many(as_readings(kept.id, late))
        around = [
            spaced[75],
            spaced[130],
            spaced[131],
        ]  # none in the rest of the first hour: a pair lies across it
        pm.log_many(as_readings(sparse.id, around))
        for seconds in range(0, 4 * 3600, 613):
            after = int(clock.now - seconds) * SECOND
            hour = after // HOUR * HOUR
            whole = brute_force(spaced, hour, leading_in=True)
            lossy = whole if after < spaced[69].us else brute_force(spaced, after + 1)
            expected = [lossy, brute_force(late, after + 1), brute_force(around, after + 1)]
            assert [meter_part(pm, device.id, seconds / 86400, part) for part in range(3)] == [
                *map(near, expected)
            ]
        assert pm.check() == []

    def test_recorded_reading_behind_the_line(
        self, pm: PowerManager, battery_meter: PowerMeter, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A recorded reading older than what is left is not stored, and warned of: it may be counted already."""
        rows = [(battery_meter.id, 1.0, 1.0, 50.0, NOW - age) for age in (90000, 80000, 0)]
        pm.log_many(rows)
        pm.prune(1)
        before = everything(pm)
        assert pm.log_many(rows) == 0
        assert pm.log_power(*rows[0][:4], timestamp=rows[0][4]).charge_pct == 50.0
        assert everything(pm) == before
        assert [(record.name, record.levelname) for record in caplog.records] == [
            ("power_manager", "WARNING")
        ] * 2
        assert "1 readings older than what prune() has left were not stored" in caplog.text

    def test_live_reading_behind_the_line(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A live reading of a clock that was set back behind the line is stored, and check() stays clean."""
        pm.log_many((battery_meter.id, 1.0, 1.0, 50.0, NOW - age) for age in (90000, 80000, 0))
        pm.prune(1)
        clock.now = NOW - 100_000
        pm.log_power(battery_meter.id, 1.0, 1.0, 40.0)
        assert (
            pm.get_meter(battery_meter.id).charge_pct,
            len(history(pm, battery_meter.id)),
            pm.check(),
        ) == (
            40.0,
            3,
            [],
        )

    def test_live_reading_after_all_are_pruned(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A live reading older than any that there was, when none is left, is stored, and check() stays clean."""
        pm.log_power(battery_meter.id, 1.0, 1.0, 50.0)
        clock.now = NOW + 1
        pm.prune(0)
        clock.now = NOW - 100
        pm.log_power(battery_meter.id, 1.0, 1.0, 40.0)
        pm.log_power(battery_meter.id, 1.0, 1.0, 30.0, timestamp=NOW + 10)
        assert ([row[3] for row in history(pm, battery_meter.id)], pm.check()) == ([40.0, 30.0], [])

    def test_report_does_not_move_with_prune(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """Pruning what is older than the report leaves it as it was, also within the hour in which it begins."""
        clock.now = NOW // 3600 * 3600 + 1800
        pm.log_many(
            (battery_meter.id, 10.0, 1.0, 50.0, clock.now - 60 * minute) for minute in range(2880)
        )
        reports = [pm.export_report("dev-001", days=days) for days in (1, 1441 / 1440)]
        budget = pm.power_budget_check(["dev-001"])
        assert [meter_part(pm, "dev-001", days)["reading_count"] for days in (1, 1441 / 1440)] == [
            1440,
            1441,
        ]
        assert pm.prune(1) == 1439
        assert [pm.export_report("dev-001", days=days) for days in (1, 1441 / 1440)] == reports
        assert pm.power_budget_check(["dev-001"]) == budget

    def test_pair_across_the_begin_of_a_report(self, opened: Opener, clock: Clock) -> None:
        """The energy from the latest pruned reading to the first kept one is outside, as it was before."""
        pm = opened(":memory:", max_gap=7200)
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "main")
        begin = NOW // 3600 * 3600
        pm.log_many((meter.id, 10.0, 1.0, 50.0, begin + hours * 3600) for hours in (0.9, 2.1, 2.2))
        clock.now = begin + 3 * 3600
        for kept_hours in (1.7, 1.5):
            assert meter_part(pm, "d", 1.5 / 24)["energy_out_wh"] == pytest.approx(1.0)
            pm.prune(kept_hours / 24)

    @pytest.mark.parametrize("seconds", [0.000001, 600, 3600, 3600.000001, 8000])
    def test_late_reading_just_after_the_last_pruned(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock, seconds: float
    ) -> None:
        """A late reading next to the latest pruned one is booked as if that one were there."""
        rows = [Row(int((NOW + s) * SECOND), 1.0, 6.0 + s / 1000, 50.0) for s in (0, 3000, 9000)]
        late = Row(rows[1].us + round(seconds * SECOND), 1.0, 2.0, 50.0)
        pm.log_many(as_readings(battery_meter.id, rows))
        clock.now = NOW + 9000
        assert pm.prune(5500 / 86400) == 2
        assert pm.log_many(as_readings(battery_meter.id, [rows[1], late])) == 1
        energies = [statistics.energy_out_wh for statistics in pm.get_statistics(battery_meter.id)]
        expected = [values["energy_out_wh"] for _, values in buckets(sorted([*rows, late]), HOUR)]
        assert energies == pytest.approx(expected, abs=1e-8)
        assert pm.check() == []

    def test_live_reading_at_the_instant_of_the_latest_pruned(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A clock set back to that very instant: the reading comes a microsecond after, and is booked as that."""
        rows = [Row(int((NOW + seconds) * SECOND), 1.0, 6.0, 50.0) for seconds in (0, 3500, 7000)]
        pm.log_many(as_readings(battery_meter.id, rows))
        clock.now = NOW + 7000
        pm.prune(3000 / 86400)
        clock.now = NOW + 3500
        pm.log_power(battery_meter.id, 9.0, 9.0)
        rows.append(Row(rows[1].us + 1, 9.0, 9.0, 50.0))
        energies = [statistics.energy_out_wh for statistics in pm.get_statistics(battery_meter.id)]
        expected = [values["energy_out_wh"] for _, values in buckets(sorted(rows), HOUR)]
        assert energies == pytest.approx(expected)
        assert pm.check() == []

    def test_instant_of_the_newest_is_not_given_again(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """Though it is pruned: a reading's id must not be another one's, which may have been sent elsewhere."""
        first = [pm.log_power(battery_meter.id, 1.0, 1.0).id for _ in range(2)]
        clock.now = NOW + 1
        assert pm.prune(0) == 2
        clock.now = NOW
        later = [pm.log_power(battery_meter.id, 1.0, 1.0).id for _ in range(3)]
        assert [int(id_.rpartition(":")[2]) - int(NOW * SECOND) for id_ in later] == [0, 2, 3]
        assert (first[1] in later, pm.check()) == (False, [])

    def test_live_readings_among_pruned_ones(
        self, pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A clock set back: the pruned hour's energy stays, and a second prune does not forget what went first."""
        rows = [(battery_meter.id, 1.0, 6.0, 50.0, NOW + seconds) for seconds in (0, 600)]
        pm.log_many(rows)
        clock.now = NOW + 700
        assert pm.prune(0) == 2
        before = [statistics.energy_out_wh for statistics in pm.get_statistics(battery_meter.id)]
        clock.now = NOW + 300
        pm.log_power(battery_meter.id, 1.0, 60.0)
        assert [
            statistics.energy_out_wh for statistics in pm.get_statistics(battery_meter.id)
        ] == before
        clock.now = NOW + 500
        assert (pm.prune(0), pm.log_many(rows), pm.check()) == (1, 0, [])

    def test_in_short_transactions(
        self,
        pm: PowerManager,
        battery_meter: PowerMeter,
        connections: list[sqlite3.Connection],
        path: Path,
        opened: Opener,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A long prune commits page by page, so that others can write between them."""
        pm.log_many((battery_meter.id, 1.0, 1.0, 50.0, NOW - 90000 - i) for i in range(25))
        monkeypatch.setattr(power_manager, "_PAGE", 10)
        second, statements = opened(path), list[str]()
        connections[0].set_trace_callback(statements.append)
        assert second.prune(1) == 25
        assert statements.count("COMMIT") == 3


CHANGES = {
    "voltage, 2 microvolt": "UPDATE power_readings SET voltage = voltage + 2 WHERE {}",
    "voltage, as a float": "UPDATE power_readings SET voltage = voltage / 1e6 + 2e-6 WHERE {}",
    "current, 2 microampere": "UPDATE power_readings SET current_draw = current_draw - 2 WHERE {}",
    "charge, 0.0002 points": "UPDATE power_readings SET charge_pct = charge_pct / 1e2 + 0.0002 WHERE {}",
    "charge, down": "UPDATE power_readings SET charge_pct = charge_pct - 1 WHERE {}",
    "timestamp, 1 microsecond": "UPDATE power_readings SET timestamp = timestamp + 1 WHERE {}",
    "timestamp, 1 hour": "UPDATE power_readings SET timestamp = timestamp + 3600000000 WHERE {}",
    "timestamp, 100,000 years": "UPDATE power_readings SET timestamp = 4000000000000000000 WHERE {}",
    "timestamp, negative": "UPDATE power_readings SET timestamp = -timestamp WHERE {}",
    "voltage, text": "UPDATE power_readings SET voltage = 'abc' WHERE {}",
    "current, blob": "UPDATE power_readings SET current_draw = x'00' WHERE {}",
    "charge, text": "UPDATE power_readings SET charge_pct = '80' WHERE {}",
    "voltage, infinite": "UPDATE power_readings SET voltage = 9e999 WHERE {}",
    "current, huge": "UPDATE power_readings SET current_draw = -1.7e308 WHERE {}",
    "deleted": "DELETE FROM power_readings WHERE {}",
    "added": "INSERT INTO power_readings SELECT meter_key, timestamp + 1, 1, 1, 1 FROM power_readings WHERE {}",
}
HOURLY = ["kept_sum", "kept_count", "reading_count", "wattage_sum", "min_wattage", "max_wattage"]
HOURLY += ["min_charge_pct", "max_charge_pct", "energy_out_wh", "energy_in_wh"]

LAST_HOUR = "(SELECT max(hour) FROM power_hourly)"
INVENT_HOUR = f"""INSERT INTO power_hourly (meter_key, hour, kept_sum, kept_count, {", ".join(HOURLY[2:])})
    SELECT meter_key, hour + 500, 0, 0, {", ".join(HOURLY[2:])} FROM power_hourly"""


class TestCheck:
    """check() finds every kind of damage."""

    @pytest.fixture
    def meter_id(self, path: Path) -> str:
        """A database with readings in two hours."""
        return filled(path)

    def found(self, path: Path) -> list[str]:
        """What check() finds."""
        with PowerManager(path) as pm:
            return pm.check()

    @pytest.mark.parametrize("which", ["min", "max"])
    @pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
    def test_reading(self, path: Path, meter_id: str, change: str, which: str) -> None:
        """A single change in the first or last reading is found, and the meter is named."""
        execute(path, change.format(f"timestamp = (SELECT {which}(timestamp) FROM power_readings)"))
        assert any(meter_id in problem for problem in self.found(path))

    def test_any_reading_by_a_little(self, path: Path) -> None:
        """Changes just above a microvolt, a microampere and 0.0001 points are found in any reading."""
        chance = random.Random(8)
        with PowerManager(path) as pm:
            pm.register_device("d", "D")
            meter = pm.add_meter("d", "ups")
            pm.log_many(as_readings(meter.id, random_rows(chance, 40, int(NOW) * SECOND)))
            for (us,) in fetch(path, "SELECT timestamp FROM power_readings"):
                column, by = chance.choice(
                    [("voltage", 1.01e-6), ("current_draw", 1.01e-6), ("charge_pct", 1.01e-4)]
                )
                ((old, value),) = fetch(
                    path,
                    f"SELECT r.{column}, v.{column} FROM power_readings r JOIN power_values v USING (timestamp)"
                    f" WHERE timestamp = {us}",
                )
                for new in (value + by, value - by, old):
                    execute(
                        path, f"UPDATE power_readings SET {column} = {new!r} WHERE timestamp = {us}"
                    )
                    assert bool(pm.check()) is (new is not old)

    @pytest.mark.parametrize(
        "value", ["{} + 1", "{} - 1", "{} * 1.0001 + 0.0001", "'abc'", "x'00'", "9e999"]
    )
    @pytest.mark.parametrize("column", HOURLY)
    def test_hourly_row(self, path: Path, meter_id: str, column: str, value: str) -> None:
        """A changed value in an hour's row is found."""
        if column in HOURLY[:3] and "." in value:
            value = "{} + 2"
        execute(
            path,
            f"UPDATE power_hourly SET {column} = {value.format(column)} WHERE hour = {LAST_HOUR}",
        )
        assert any(meter_id in problem for problem in self.found(path))

    @pytest.mark.parametrize(
        "change",
        [
            "DELETE FROM power_hourly",
            "UPDATE power_hourly SET hour = hour + 500",
            "UPDATE power_hourly SET hour = 4000000000000",
            "UPDATE power_hourly SET hour = 'abc'",
            INVENT_HOUR,
        ],
    )
    def test_hour_that_is_gone(self, path: Path, meter_id: str, change: str) -> None:
        """An hour's row that is missing, misplaced or invented is found, without gigabytes for what its hour may be."""
        execute(path, f"{change} WHERE hour = {LAST_HOUR}")
        tracemalloc.start()
        try:
            assert any(meter_id in problem for problem in self.found(path))
            assert tracemalloc.get_traced_memory()[1] < 50e6
        finally:
            tracemalloc.stop()

    def test_all_readings_of_an_hour(self, path: Path, meter_id: str) -> None:
        """Readings that have vanished with their whole hour are found."""
        execute(path, "DELETE FROM power_readings")
        problems = self.found(path)
        assert len(problems) == 2
        assert all(
            re.search(
                rf"meter {meter_id}: \d+ readings of the hour 2025-06-16T1[12]:00:00.000000\+00:00 are gone",
                p,
            )
            for p in problems
        )

    @pytest.mark.parametrize("value", ["'abc'", "x'00'", "9e999"])
    @pytest.mark.parametrize(
        "column",
        [
            "voltage",
            "current_draw",
            "charge_pct",
            "newest_us",
            "pruned_us",
            "alert_level",
            "forwarded_us",
        ],
    )
    def test_present_state(self, path: Path, meter_id: str, column: str, value: str) -> None:
        """A meter's row with what can be no state is found, and its meter is named."""
        execute(path, f"UPDATE power_meters SET {column} = {value}")
        assert any(meter_id in problem for problem in self.found(path))

    def test_statistics_that_are_gone(self, path: Path, opened: Opener) -> None:
        """Without its hours a file still reports what it can, and check() misses the hours."""
        with PowerManager(path, clock=Clock()) as pm:
            meter = pm.add_meter(pm.register_device("d", "D").id, "main")
            pm.log_many((meter.id, 1.0, 1.0, 50.0, NOW - hours * 3600) for hours in (9, 1))
        execute(path, "DELETE FROM power_hourly")
        pm = opened(path)
        assert meter_part(pm, "d", 5 / 24)["reading_count"] == 1
        assert pm.power_budget_check(["d"])["d"]["total_wattage"] == 1.0
        assert len(pm.check()) == 2

    @pytest.mark.parametrize("seed", range(4))
    def test_large_sums_that_cancel_out(self, opened: Opener, seed: int) -> None:
        """An industrial battery's readings in any order are no damage."""
        chance, pm = random.Random(seed), opened(":memory:")
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "battery")
        amperes = [chance.uniform(0.1, 150) for _ in range(1800)]
        amperes += [-current for current in amperes]
        begin, volts = NOW // 3600 * 3600, 700 + chance.random()
        rows = [
            (meter.id, volts, current, 50.0, begin + second)
            for second, current in enumerate(amperes)
        ]
        chance.shuffle(rows)
        with pm.transaction():
            for row in rows:
                pm.log_many([row])
        assert pm.check() == []

    def test_foreign_key(self, path: Path, meter_id: str) -> None:
        """A row whose device is gone is found."""
        execute(path, "DELETE FROM devices")
        problems = self.found(path)
        assert {problem.split(":")[0] for problem in problems} == {"power_meters", "power_events"}

    def test_index(self, path: Path, meter_id: str) -> None:
        """What SQLite's own check says is passed on."""
        other = "CREATE INDEX power_events_by_device ON power_events (device_key, value)"
        change = f"UPDATE sqlite_master SET sql = '{other}' WHERE name = 'power_events_by_device'"
        execute(path, "PRAGMA writable_schema = ON; " + change)
        assert any(problem.startswith("integrity: ") for problem in self.found(path))

    @pytest.mark.parametrize("seed", range(4))
    def test_bit_flips(self, path: Path, tmp_path: Path, seed: int) -> None:
        """After any single bit has flipped, readings are unchanged, or check() finds it, or the file does not open."""
        filled(path)
        good, before = path.read_bytes(), rounded_readings(path)
        chance, damaged = random.Random(seed), tmp_path / "damaged.db"
        pages = [
            page
            for page in range(len(good) // 4096)
            if any(good[page * 4096 + 8 : page * 4096 + 4096])
        ]
        for _ in range(100):
            flipped = bytearray(good)
            flipped[chance.choice(pages) * 4096 + chance.randrange(4096)] ^= 1 << chance.randrange(
                8
            )
            damaged.write_bytes(flipped)
            with suppress(StorageError):
                assert self.found(damaged) or rounded_readings(damaged) == before


def rounded_readings(path: Path) -> list[tuple[Any, ...]]:
    """The stored readings, as exact as check() promises to be."""
    values = fetch(path, "SELECT * FROM power_readings")
    return [
        tuple(round(value, 6) if isinstance(value, float) else value for value in row)
        for row in values
    ]


# --- Command line -----------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a command did: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The output, which is JSON."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out, parse_constant=pytest.fail)


COMMANDS = [
    "register",
    "add-meter",
    "devices",
    "meters",
    "log",
    "import",
    "export",
    "stats",
    "events",
    "event",
]
COMMANDS += ["budget", "report", "prune", "backup", "check", "demo"]
COLUMNS = ("timestamp", "voltage", "current", "charge_pct")
CSV_ROWS = """timestamp,voltage,current,charge_pct
2025-06-16T10:00:00+00:00,4.0,1.0,90.0
2025-06-16T10:30:00Z,3.9,-2.0,
1750071600,3.8,0.5,70.5
"""
LOOSE_NDJSON = """{"timestamp": 1750068000, "voltage": "4", "current": 1, "charge_pct": 90}

{"timestamp": "1750069800", "voltage": 3.9, "current": -2.0}
{"timestamp": "2025-06-16T11:00:00Z", "voltage": 3.8, "current": 0.5, "charge_pct": 70.5, "more": []}
"""
IMPORTED = [
    ("2025-06-16T10:00:00.000000+00:00", 4.0, 1.0, 90.0),
    ("2025-06-16T10:30:00.000000+00:00", 3.9, -2.0, 90.0),
    ("2025-06-16T11:00:00.000000+00:00", 3.8, 0.5, 70.5),
]


Run = Callable[..., Outcome]


class CommandLine:
    """Commands run in process, on a database with a device dev-001 and its battery Pack."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("POWER_MANAGER_DB", raising=False)

    @pytest.fixture
    def run(self, capsys: pytest.CaptureFixture[str]) -> Run:
        """Run one command on ./power_manager.db."""

        def run_one(*words: object) -> Outcome:
            capsys.readouterr()
            code = power_manager.main([str(word) for word in words])
            return Outcome(code, *capsys.readouterr())

        return run_one

    @pytest.fixture
    def pack(self, run: Run) -> str:
        """Register the device and its battery; return the battery's id."""
        run("register", "dev-001", "Edge Node")
        meter: dict[str, str] = run(
            "add-meter", "dev-001", "battery", "--capacity-wh", 50, "--name", "Pack"
        ).json
        return meter["id"]

    @pytest.fixture
    def stdin(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """Put text on standard input."""
        return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


class TestCommands(CommandLine):
    """Every command, with its exit code."""

    def test_register(self, run: Run) -> None:
        """A device is registered, in a new file, with every value."""
        thresholds = ("--low-battery-threshold", 30, "--critical-battery-threshold", 10)
        registered = run(
            "register", "d", "Node", "--shutdown-threshold", 4.5, "--target-wh", 120, *thresholds
        ).json
        assert tuple(registered.values()) == ("d", "Node", 4.5, 120.0, 30.0, 10.0)
        assert run("devices", "--json").json == [registered]

    def test_add_meter(self, run: Run, pack: str) -> None:
        """A meter is added, and listed with its present values."""
        meters = run("meters", "--json").json
        assert [(m["id"], m["type"], m["capacity_wh"], m["name"]) for m in meters] == [
            (pack, "battery", 50.0, "Pack")
        ]
        assert run("meters", "dev-001", "--json").json == meters
        assert run("meters", "nobody", "--json").json == []

    @pytest.mark.parametrize(
        "command",
        [("devices",), ("meters",), ("stats", "dev-001/Pack"), ("events", "dev-001")],
        ids=lambda words: words[0],
    )
    def test_tables(self, run: Run, pack: str, command: tuple[str, ...]) -> None:
        """Lists are printed as a table with a head; without --json too where they are empty."""
        empty = run(*command)
        run("log", pack, 3.7, 0.5, 3)
        filled_ = run(*command)
        fields = list(run(*command, "--json").json[0])
        assert (empty.code, filled_.code, filled_.err) == (0, 0, "")
        assert filled_.out.splitlines()[0].split() == fields
        assert len(filled_.out.splitlines()) == 2

    @pytest.mark.parametrize("name", ["id", "dev-001/Pack", "dev-001/battery"])
    def test_log(self, run: Run, pack: str, name: str) -> None:
        """A reading is stored for a meter named by its id, its name or its type."""
        reading = run(
            "log",
            pack if name == "id" else name,
            3.7,
            -0.5,
            82,
            "--timestamp",
            "2025-06-16T12:30:00Z",
        ).json
        assert tuple(reading.values())[1:] == (
            pack,
            3.7,
            -0.5,
            -1.85,
            82.0,
            "2025-06-16T12:30:00.000000+00:00",
        )

    @pytest.mark.parametrize(
        ("current", "value"),
        [("-1e-3", -0.001), ("-.5", -0.5), ("1e-9", 1e-9), ("-1.23456789e-10", -1.23456789e-10)],
    )
    def test_log_any_number(self, run: Run, pack: str, current: str, value: float) -> None:
        """A negative number in any form is a number, not an option."""
        assert run("log", pack, 3.7, current).json["current_draw"] == value

    def test_log_live(self, run: Run, pack: str) -> None:
        """Without charge and timestamp a reading is live, with the meter's last charge."""
        run("log", pack, 3.7, 0.5, 60, "--timestamp", 1_750_077_000)
        live = run("log", pack, 3.6, 0.5).json
        assert live["charge_pct"] == 60.0
        assert run("meters", "--json").json[0]["updated_at"] == live["timestamp"]

    def test_events(self, run: Run, pack: str) -> None:
        """An event is fired, and listed newest first."""
        fired = [
            run("event", "dev-001", kind, "--value", 1.5, "--note", "by hand").json
            for kind in ("shutdown", "restore")
        ]
        assert [(event["type"], event["value"], event["note"]) for event in fired] == [
            ("shutdown", 1.5, "by hand"),
            ("restore", 1.5, "by hand"),
        ]
        assert run("events", "dev-001", "--json").json == fired[::-1]
        assert run("events", "dev-001", "--json", "--limit", 1).json == fired[1:]

    @pytest.mark.parametrize("note", ["-1e5", "1e5", "-0.50"])
    def test_note_like_a_number(self, run: Run, pack: str, note: str) -> None:
        """A note stays as it was written, whatever it looks like."""
        assert run("event", "dev-001", "restore", f"--note={note}").json["note"] == note
        with suppress(SystemExit):  # argparse may take it for an option
            run("event", "dev-001", "restore", "--note", note)
        assert {event["note"] for event in run("events", "dev-001", "--json").json} == {note}

    def test_stats(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
        """Statistics by hour and day are those of the library."""
        stdin(CSV_ROWS)
        run("import", pack)
        assert run("stats", pack, "--json").json == []
        hours = run("stats", pack, "--json", "--days", 36500).json
        assert [hour["reading_count"] for hour in hours] == [2, 1]
        days = run("stats", "dev-001/Pack", "--json", "--days", 36500, "--bucket", "day").json
        with PowerManager() as pm:
            assert days == [
                dataclasses.asdict(s) for s in pm.get_statistics(pack, days=36500, bucket="day")
            ]

    def test_budget(self, run: Run, pack: str) -> None:
        """The budget of the devices named, or of all, is printed as JSON."""
        run("log", pack, 4.0, 0.5)
        run("register", "other", "Other")
        with PowerManager() as pm:
            assert run("budget", "dev-001").json == pm.power_budget_check(["dev-001"])
            assert run("budget").json == pm.power_budget_check(["dev-001", "other"])

    def test_budget_of_an_unknown_device(self, run: Run, pack: str) -> None:
        """An unknown device is in the output, and in the exit code."""
        outcome = run("budget", "dev-001", "nobody")
        assert (outcome.code, list(json.loads(outcome.out)["nobody"])) == (1, ["error"])

    def test_report(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
        """The report is that of the library."""
        stdin(CSV_ROWS)
        run("import", pack)
        report = run("report", "dev-001", "--days", 36500).json
        with PowerManager() as pm:
            assert {**report, "generated_at": 0} == {
                **json.loads(pm.export_report("dev-001", 36500)),
                "generated_at": 0,
            }
        assert run("report", "dev-001").json["period_days"] == 7

    def test_prune(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
        """Old readings are deleted, and counted."""
        stdin(CSV_ROWS)
        run("import", pack)
        assert run("prune", 1) == (0, "3 readings deleted\n", "")
        assert run("export", pack).out.splitlines() == ["timestamp,voltage,current,charge_pct"]

    def test_backup(self, run: Run, pack: str) -> None:
        """A copy is written."""
        assert run("backup", "copy.db").code == 0
        assert run("--db", "copy.db", "meters", "--json").json == run("meters", "--json").json

    def test_check(self, run: Run, pack: str) -> None:
        """Without damage it prints ok; where there is damage, a line for each and exit code 1."""
        run("log", pack, 4.0, 0.5)
        assert run("check") == (0, "ok\n", "")
        execute(Path("power_manager.db"), "DELETE FROM power_readings")
        damaged = run("check")
        assert (damaged.code, damaged.err) == (1, "")
        assert pack in damaged.out

    def test_demo(self, run: Run) -> None:
        """A week of telemetry is made in a new file, another one each time, and its report printed."""
        for name in ("power_manager_demo.db", "power_manager_demo2.db"):
            outcome = run("demo")
            report = json.loads(outcome.out)
            assert (outcome.code, name in outcome.err) == (0, True)
            assert [meter["type"] for meter in report["meters"]] == ["solar", "battery"]
            assert all(meter["reading_count"] > 7 * 24 for meter in report["meters"])
            assert run("--db", name, "check") == (0, "ok\n", "")
        assert sorted(path.name for path in Path().iterdir()) == [
            "power_manager_demo.db",
            "power_manager_demo2.db",
        ]

    def test_demo_in_a_named_file(self, run: Run) -> None:
        """A demo may be made in a file of another name, but not in one that is there."""
        assert run("--db", "week.db", "demo").code == 0
        again = run("--db", "week.db", "demo")
        assert (again.code, again.out, again.err) == (
            1,
            "",
            "power_manager: week.db: exists already: name a new file\n",
        )

    def test_environment(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """POWER_MANAGER_DB names the database, unless --db does."""
        monkeypatch.setenv("POWER_MANAGER_DB", "environment.db")
        run("register", "a", "A")
        run("--db", "option.db", "register", "b", "B")
        assert sorted(path.name for path in Path().iterdir()) == ["environment.db", "option.db"]
        assert [device["id"] for device in run("devices", "--json").json] == ["a"]


class TestCommandErrors(CommandLine):
    """Errors are one line on standard error and exit code 1; wrong usage is 2; Ctrl-C is 130."""

    @pytest.mark.parametrize("name", ["power_manager.db", "other-name.db", "power_manager.db-wal"])
    def test_export_onto_the_database(self, run: Run, pack: str, name: str) -> None:
        """By whatever name: it is refused, and the database is whole."""
        run("log", pack, 3.7, 0.5, 80)
        os.link("power_manager.db", "other-name.db")
        outcome = run("export", pack, "--output", name)
        assert (outcome.code, outcome.out) == (1, "")
        assert "name another file" in outcome.err
        assert run("check").out == "ok\n"

    def test_export_through_a_link_to_a_database_in_use(self, run: Run, pack: str) -> None:
        """Writing to a link writes to what it names."""
        run("log", pack, 3.7, 0.5, 80)
        os.symlink("other.db", "link.csv")
        with PowerManager("other.db") as pm:
            pm.register_device("d", "D")
            assert run("export", pack, "--output", "link.csv").code == 1
            assert [device.id for device in pm.list_devices()] == ["d"]

    @pytest.mark.parametrize("number", ["1_0", "1__0"])
    def test_numbers_as_python_writes_them(self, run: Run, pack: str, number: str) -> None:
        """An underscore is no digit."""
        with pytest.raises(SystemExit, match="2"):
            run("log", pack, number, 0.5)

    @pytest.mark.parametrize("current", ["-5.", "-.5", "-1e-3", "-2E+0"])
    def test_negative_numbers_are_no_options(self, run: Run, pack: str, current: str) -> None:
        """However they are written; nor is a note that begins with one."""
        assert run("log", pack, 3.7, current).json["current_draw"] == float(current)
        assert run("event", "dev-001", "restore", "--note", current).json["note"] == current

    def test_names_do_not_steer_the_terminal(self, run: Run) -> None:
        """What a terminal would obey is shown as it is written in Python."""
        run("register", "evil", "a\x1b[31mb\nc")
        assert r"  a\x1b[31mb\nc  " in run("devices").out

    @pytest.mark.parametrize("words", [["register", "d", "D"], ["devices"]])
    @pytest.mark.usefixtures("pack")
    def test_closed_standard_output(
        self, monkeypatch: pytest.MonkeyPatch, words: list[str]
    ) -> None:
        """A command whose answer nobody can get does nothing, and says so."""
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", None)
            assert power_manager.main(words) == 1
        with PowerManager("power_manager.db") as pm:
            assert [device.id for device in pm.list_devices()] == ["dev-001"]

    @pytest.mark.parametrize(
        "words",
        [
            *(
                ["devices"],
                ["meters"],
                ["add-meter", "d", "main"],
                ["log", "m", "1", "1"],
                ["import", "m"],
            ),
            *(
                ["export", "m"],
                ["stats", "m"],
                ["events", "d"],
                ["event", "d", "restore"],
                ["budget"],
            ),
            *(["report", "d"], ["prune", "1"], ["backup", "b.db"], ["check"]),
        ],
        ids=lambda words: words[0],
    )
    def test_missing_file(self, run: Run, words: list[str]) -> None:
        """A command that does not begin a file says that it is missing, and does not make it."""
        outcome = run("--db", "missing.db", *words)
        assert (outcome.code, outcome.out) == (1, "")
        assert re.fullmatch(
            r"power_manager: missing\.db: no such file: .*register.*\n", outcome.err
        )
        assert list(Path().iterdir()) == []

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["report", "nobody"], "no device has the id 'nobody'"),
            (["report", "dev-001", "--days", "nan"], "days: expected .*, got nan"),
            (["report", "dev-001", "--days", "-1"], "days: expected .*, got -1"),
            (["register", "", "N"], "device_id: expected text .*, got ''"),
            (["add-meter", "nobody", "main"], "no device has the id 'nobody'"),
            (["log", "nobody", "1", "1"], "meter: .*'nobody'.*`meters`"),
            (["log", "dev-001/Panel", "1", "1"], "meter: .*'dev-001/Panel'"),
            (["log", "dev-001/Pack", "inf", "1"], "voltage: expected .*, got inf"),
            (
                ["log", "dev-001/Pack", "1", "1", "--timestamp", "noon"],
                "timestamp: expected .*, got 'noon'",
            ),
            (["events", "dev-001", "--limit", "-1"], "limit: expected .*, got -1"),
            (["event", "dev-001", "restore", "--note", ""], "note: expected .*, got ''"),
            (["import", "dev-001/Pack", "missing.csv"], "missing.csv"),
            (["import", "dev-001/Pack", "."], "[Dd]irectory"),
            (["export", "dev-001/Pack", "--since", "noon"], "since: expected .*, got 'noon'"),
            (["export", "dev-001/Pack", "--output", "nowhere/x.csv"], "nowhere/x.csv"),
            (["backup", "power_manager.db"], "name another file"),
            (["prune", "-1"], "keep_days: expected .*, got -1"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_refused(self, run: Run, pack: str, words: list[str], message: str) -> None:
        """What is wrong is said in one line, and nothing changes."""
        before = reread(Path("power_manager.db"))
        outcome = run(*words)
        assert (outcome.code, outcome.out) == (1, "")
        assert re.fullmatch(rf"power_manager: .*{message}.*\n", outcome.err)
        assert reread(Path("power_manager.db")) == before

    @pytest.mark.parametrize("kind", ["name", "type"])
    def test_ambiguous_name(self, run: Run, pack: str, kind: str) -> None:
        """A name that two meters have is refused with the ids of both; an exact id never is."""
        twin = run("add-meter", "dev-001", "battery", "--name", "Pack").json["id"]
        outcome = run("log", "dev-001/Pack" if kind == "name" else "dev-001/battery", 1, 1)
        assert (outcome.code, outcome.out) == (1, "")
        assert re.search(rf"{pack}, {twin}", outcome.err)
        assert run("log", twin, 1, 1).code == 0

    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["fly"],
            ["log", "m"],
            ["log", "m", "x", "1"],
            ["log", "m", "1", "-1.2.3e4"],
            ["log", "m", "1", "-.e4"],
            ["add-meter", "d", "fan"],
            ["event", "d", "boom"],
            ["stats", "m", "--bucket", "week"],
            ["report", "d", "--days"],
        ],
        ids=" ".join,
    )
    def test_usage(self, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
        """Wrong usage is exit code 2, with the usage on standard error."""
        with pytest.raises(SystemExit) as caught:
            power_manager.main(words)
        out, err = capsys.readouterr()
        assert (caught.value.code, out, err[:6]) == (2, "", "usage:")

    @pytest.mark.parametrize("command", [None, *COMMANDS])
    def test_help(self, capsys: pytest.CaptureFixture[str], command: str | None) -> None:
        """Every command has help."""
        with pytest.raises(SystemExit) as caught:
            power_manager.main([command, "--help"] if command else ["--help"])
        assert caught.value.code == 0
        assert "usage: power_manager" in capsys.readouterr().out

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        """--version prints the module's."""
        with pytest.raises(SystemExit, match="0"):
            power_manager.main(["--version"])
        assert power_manager.__version__ in capsys.readouterr().out

    def test_interrupt(self, run: Run, pack: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C during an import ends quietly with 130, and nothing is stored."""

        def lines() -> Iterator[str]:
            yield from CSV_ROWS.splitlines(keepends=True)
            raise KeyboardInterrupt

        monkeypatch.setattr(sys, "stdin", lines())
        assert run("import", pack) == (130, "", "")
        assert reread(Path("power_manager.db"))["readings"] == {pack: []}

    def test_closed_pipe(self, run: Run, pack: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Output that nobody reads any more is no error."""
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as out, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            assert power_manager.main(["devices", "--json"]) == 0

    def test_closed_pipe_of_a_process(self, path: Path) -> None:
        """`| head -1` gets its line and the command ends quietly, though much was left to write."""
        meter_id = filled(path, 20_000)
        command = [
            sys.executable,
            "-W",
            "error",
            str(MODULE),
            "--db",
            str(path),
            "export",
            meter_id,
        ]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stderr is not None
            assert child.stdout.readline() == "timestamp,voltage,current,charge_pct\n"
            child.stdout.close()
            assert (child.stderr.read(), child.wait(60)) == ("", 0)

    def test_as_a_script(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The module runs as a script, and its exit code is that of main()."""
        monkeypatch.setattr(sys, "argv", [str(MODULE), "--db", "missing.db", "devices"])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(MODULE), run_name="__main__")
        out, err = capsys.readouterr()
        assert (caught.value.code, out) == (1, "")
        assert "missing.db: no such file" in err


def with_bad_rows() -> str:
    """CSV with a bad row in lines 3, 5, 6, 7 and 8."""
    good = "2025-06-16T10:{:02}:00Z,4.0,1.0,90"
    lines = ["timestamp,voltage,current,charge_pct", good.format(0), "noon,4,1,90", good.format(1)]
    bad = [
        "2025-06-16T10:30:00Z,x,1,90",
        "2025-06-16T10:31:00Z,4,,90",
        "2025-06-16T10:32:00Z,4",
        "2025-06-16T10:33:00,4,1,90",
    ]
    return "\n".join([*lines, *bad, good.format(2), ""])


class TestImport(CommandLine):
    """import and export: CSV and NDJSON, from files and standard input."""

    @pytest.mark.parametrize(
        "text",
        [
            CSV_ROWS,
            "\ufeff" + CSV_ROWS,
            CSV_ROWS.replace("\n", "\r\n"),
            CSV_ROWS.rstrip("\n"),
            "\n" + CSV_ROWS.replace("\n", "\n\n"),
            CSV_ROWS.replace(",", ", "),
            "charge_pct,extra,current,voltage,timestamp\n90.0,x,1.0,4.0,2025-06-16T10:00:00Z\n,x,-2.0,3.9,2025-06-16T10:30:00Z\n70.5,,0.5,3.8,1750071600\n",
            "timestamp,voltage,current\n"
            + "\n".join(f"{row[0]},{row[1]},{row[2]}" for row in IMPORTED),
            "\n".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in IMPORTED),
            LOOSE_NDJSON,
        ],
        ids=[
            "csv",
            "byte-order mark",
            "crlf",
            "no last newline",
            "blank lines",
            "spaces",
            "other order",
            "no charge",
            "ndjson",
            "ndjson loose",
        ],
    )
    @pytest.mark.parametrize("source", ["file", "stdin", "dash"])
    def test_forms(
        self, run: Run, pack: str, stdin: Callable[[str], None], text: str, source: str
    ) -> None:
        """The same readings come in, in any of the forms, once."""
        stdin(text)
        Path("rows").write_text(text, encoding="utf-8", newline="")
        words = {"file": ["rows"], "stdin": [], "dash": ["-"]}[source]
        assert run("import", "dev-001/Pack", *words) == (
            0,
            "3 new readings, 0 already there, 0 bad rows left out\n",
            "",
        )
        expected = IMPORTED if "charge" in text else [(*row[:3], 100.0) for row in IMPORTED]
        with PowerManager() as pm:
            assert history(pm, pack) == expected

    def test_again(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
        """Importing the same once more changes nothing."""
        for result in ("3 new readings, 0 already there", "0 new readings, 3 already there"):
            stdin(CSV_ROWS)
            assert run("import", pack).out.startswith(result)

    def test_bad_rows(self, run: Run, pack: str) -> None:
        """Bad rows are named by line number, and nothing is stored."""
        Path("rows.csv").write_text(with_bad_rows())
        outcome = run("import", pack, "rows.csv")
        assert (outcome.code, outcome.out) == (1, "")
        lines = outcome.err.splitlines()
        assert [line[: len("rows.csv: line 0: ")] for line in lines[:-1]] == [
            f"rows.csv: line {number}: " for number in (3, 5, 6, 7, 8)
        ]
        assert [re.findall(r"line \d: (\w+): expected", line) for line in lines[:-1]] == [
            ["timestamp"],
            ["voltage"],
            ["current"],
            ["current"],
            ["timestamp"],
        ]
        assert "5 bad rows: nothing was stored" in lines[-1]
        assert reread(Path("power_manager.db"))["readings"] == {pack: []}

    def test_skip_bad(self, run: Run, pack: str) -> None:
        """With --skip-bad the good rows are stored, and the bad ones named all the same."""
        Path("rows.csv").write_text(with_bad_rows())
        outcome = run("import", pack, "rows.csv", "--skip-bad")
        assert (outcome.code, outcome.out) == (
            0,
            "3 new readings, 0 already there, 5 bad rows left out\n",
        )
        assert len(outcome.err.splitlines()) == 5

    def test_bad_lines_of_ndjson(self, run: Run, pack: str) -> None:
        """Lines that are no JSON object, or lack a value, are named by number."""
        good = '{"timestamp": 1750068000, "voltage": 4, "current": 1}'
        bad = [
            "nonsense",
            "[1]",
            "5",
            "null",
            '{"timestamp": 1}',
            "{",
            '{"timestamp": 1, "voltage": true, "current": 1}',
        ]
        Path("rows.ndjson").write_text("\n".join(["", good, *bad, good]))
        outcome = run("import", pack, "rows.ndjson")
        assert outcome.code == 1
        assert re.findall(r"rows.ndjson: line (\d+): ", outcome.err) == [
            "3",
            "4",
            "5",
            "6",
            "7",
            "8",
            "9",
        ]

    def test_many_bad_rows(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
        """Of very many bad rows the first are shown, and all are counted."""
        stdin("timestamp,voltage,current\n" + "noon,1,1\n" * 1000)
        outcome = run("import", pack)
        assert "1000 bad rows" in outcome.err
        assert 5 < len(outcome.err.splitlines()) < 100

    @pytest.mark.parametrize(
        "text",
        ["", "\n\n", "a,b\n1,2\n", "timestamp,voltage\n1,2\n", "5\n"],
        ids=["empty", "blank", "other columns", "no current", "no head"],
    )
    def test_no_such_columns(
        self, run: Run, pack: str, stdin: Callable[[str], None], text: str
    ) -> None:
        """Something else than readings is refused with what was expected."""
        stdin(text)
        outcome = run("import", pack)
        assert (outcome.code, outcome.out) == (1, "")
        assert re.fullmatch(r"power_manager: .*expected .*NDJSON.*\n", outcome.err)

    def test_broken_csv(self, run: Run, pack: str) -> None:
        """CSV that the reader gives up on is an error with its line."""
        Path("rows.csv").write_text(CSV_ROWS + '1750071700,1,"' + "x" * 200_000 + '"\n')
        outcome = run("import", pack, "rows.csv")
        assert outcome.code == 1
        assert "line 5: expected CSV" in outcome.err

    def test_bytes_that_are_no_text(self, run: Run, pack: str) -> None:
        """Bytes that are not UTF-8 spoil their own row only."""
        Path("rows.csv").write_bytes(CSV_ROWS.encode() + b"1750071700,\xff,1,1\n")
        outcome = run("import", pack, "rows.csv", "--skip-bad")
        assert (outcome.code, outcome.out[:14]) == (0, "3 new readings")
        assert "line 5: voltage: expected" in outcome.err

    @pytest.mark.parametrize("terminal", [True, False])
    def test_progress(
        self,
        run: Run,
        pack: str,
        stdin: Callable[[str], None],
        monkeypatch: pytest.MonkeyPatch,
        terminal: bool,
    ) -> None:
        """On a terminal, and only there, a line shows how far the import is."""
        stdin(
            "timestamp,voltage,current\n" + "".join(f"{1_750_000_000 + i},1,1\n" for i in range(25))
        )
        monkeypatch.setattr(power_manager, "_CHUNK", 10)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        outcome = run("import", pack)
        assert outcome.code == 0
        assert re.findall(r"\r(\d+) ", outcome.err) == (["10", "20"] if terminal else [])

    @pytest.mark.parametrize("style", ["csv", "ndjson"])
    @pytest.mark.parametrize("target", ["-", "out.txt"], ids=["stdout", "file"])
    def test_export_and_back(
        self, run: Run, pack: str, stdin: Callable[[str], None], style: str, target: str
    ) -> None:
        """What export writes, import reads: the same to the last bit."""
        with PowerManager() as pm:
            rows = random_rows(random.Random(4), 50, int(NOW) * SECOND)
            pm.log_many(as_readings(pack, rows))
            expected = history(pm, pack)
        outcome = run("export", "dev-001/Pack", "--format", style, "--output", target)
        assert (outcome.code, outcome.err) == (0, "")
        text = outcome.out if target == "-" else Path(target).read_text()
        run("add-meter", "dev-001", "battery", "--name", "Copy")
        stdin(text)
        assert run("import", "dev-001/Copy").out.startswith("50 new readings")
        with PowerManager() as pm:
            assert history(pm, pm.list_meters()[1].id) == expected

    @pytest.mark.parametrize(
        ("since", "until", "count"),
        [
            ("2025-06-16T10:30:00Z", None, 2),
            (None, "1750071600", 2),
            ("1750069800", "2025-06-16T11:00:00+00:00", 1),
        ],
        ids=["since", "until", "both"],
    )
    def test_export_window(
        self, run: Run, pack: str, stdin: Callable[[str], None], since: Any, until: Any, count: int
    ) -> None:
        """From `--since` on and before `--until`."""
        stdin(CSV_ROWS)
        run("import", pack)
        words = [*(["--since", since] if since else []), *(["--until", until] if until else [])]
        outcome = run("export", pack, *words)
        (head, *rows) = csv.reader(outcome.out.splitlines())
        assert (head, len(rows)) == (["timestamp", "voltage", "current", "charge_pct"], count)

    # --- Real recordings --------------------------------------------------------------------------

    def test_head_that_is_no_csv(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
        """A carriage return where the columns' names should be is refused like one further down."""
        stdin("\r0")
        outcome = run("import", pack)
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err.startswith(
            "power_manager: line 1: expected CSV: new-line character seen in unquoted field"
        )


class TestImportWithoutAnAudience(CommandLine):
    """What import stores does not hang on who reads its messages."""

    BAD_ROWS = "timestamp,voltage,current\n" + "never,1,1\n" * 25 + "1700000000,1,1\n"

    def test_many_bad_rows(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
        """Twenty are named, and the others counted."""
        stdin(self.BAD_ROWS)
        outcome = run("import", pack, "--skip-bad")
        assert outcome.out == "1 new readings, 0 already there, 25 bad rows left out\n"
        assert outcome.err.count("line ") == 20
        assert outcome.err.endswith("-: and 5 more bad rows\n")

    @pytest.mark.parametrize(
        "broken", [errno.EPIPE, errno.ENOSPC, 0], ids=["broken pipe", "full", "closed"]
    )
    def test_standard_error_that_nobody_reads(
        self,
        run: Run,
        pack: str,
        stdin: Callable[[str], None],
        monkeypatch: pytest.MonkeyPatch,
        broken: int,
    ) -> None:
        """The good rows are stored all the same, and the exit code says so."""

        class Broken(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError(broken, "broken")

        stdin(self.BAD_ROWS)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", Broken() if broken else None)
            code = power_manager.main(["import", pack, "--skip-bad"])
        with PowerManager("power_manager.db") as pm:
            assert (code, len([*pm.iter_history(pack)])) == (0, 1)

    def test_closed_standard_input(
        self, run: Run, pack: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There is nothing in it."""
        monkeypatch.setattr(sys, "stdin", None)
        outcome = run("import", pack)
        assert (outcome.code, outcome.err.count("\n")) == (1, 1)


class TestRecordings(CommandLine):
    """Recordings of real devices, imported through the command line; skipped where they are not at hand."""

    @pytest.fixture
    def imported(self, run: Run) -> Opener:
        """Import recordings, each for a meter of its own of dev-001, and open the file half a day after their end."""

        def import_files(end: str, **files: tuple[str, str]) -> PowerManager:
            clock = Clock()
            clock.now = datetime.fromisoformat(end).timestamp()
            run("register", "dev-001", "Edge Node")
            for name, (kind, file) in files.items():
                if not (DATA / file).exists():
                    pytest.skip(f"{DATA / file} is not here")
                run("add-meter", "dev-001", kind, "--name", name, "--capacity-wh", 38)
                assert run("import", f"dev-001/{name}", DATA / file).code == 0
            assert run("check") == (0, "ok\n", "")
            return PowerManager(clock=clock)

        return import_files

    def test_discharge_of_a_pi(self, imported: Opener, run: Run) -> None:
        """A four-hour discharge gives its energy, one event for each thing that happened, and a report to match."""
        with imported("2021-04-29T12:00:00+00:00", Pack=("battery", "pi4_discharge.csv")) as pm:
            report = json.loads(pm.export_report("dev-001", days=1))
            (meter,) = report["meters"]
            assert [
                meter[key]
                for key in ("reading_count", "min_charge_pct", "max_charge_pct", "energy_in_wh")
            ] == [
                2896,
                1.0,
                79.0,
                0.0,
            ]
            assert [
                round(meter[key], 4) for key in ("energy_out_wh", "min_wattage", "max_wattage")
            ] == [
                33.5933,
                7.243,
                12.003,
            ]
            assert (meter["energy_wh"], meter["current_state"]) == (
                meter["energy_out_wh"],
                "critical",
            )
            begin = datetime(2021, 4, 28, 20, 34, 26, tzinfo=timezone.utc)
            events = [
                (e.type, (datetime.fromisoformat(e.timestamp) - begin).total_seconds())
                for e in pm.get_events("dev-001")
            ]
            assert events == [("low_battery", 13_507.0), ("discharge", 10_741.0)]
            assert report["event_count"] == 2
            statistics = pm.get_statistics(pm.list_meters()[0].id, days=2)
            assert sum(s.reading_count for s in statistics) == 2896
            assert sum(s.energy_out_wh for s in statistics) == pytest.approx(
                meter["energy_out_wh"], abs=1e-6
            )
        report = run("report", "dev-001", "--days", 36500).json
        assert round(report["meters"][0]["energy_out_wh"], 4) == 33.5933

    def test_estimate_over_a_window_is_steadier(self, imported: Opener) -> None:
        """Over two minutes the runtime of a real discharge jumps by little, where that of a sample jumps by an hour."""
        imported("2021-04-29T12:00:00+00:00", Pack=("battery", "pi4_discharge.csv")).close()
        with (DATA / "pi4_discharge.csv").open() as file, PowerManager(":memory:") as pm:
            rows = list(csv.DictReader(file))
            pm.register_device("d", "D")
            meter = pm.add_meter("d", "battery", 38.0)
            estimates: list[list[float]] = [[], []]
            for row in rows[:400]:
                values = [float(row[key]) for key in COLUMNS[1:]]
                pm.log_power(meter.id, *values, timestamp=row["timestamp"])
                for got, window in zip(estimates, (None, 2), strict=True):
                    got.append(cast(float, pm.estimate_runtime("d", window_minutes=window)))
            jumps = [max(abs(b - a) for a, b in itertools.pairwise(got[30:])) for got in estimates]
        assert jumps[0] > 2 * jumps[1]
        assert jumps[1] < 0.25

    def test_solar_week(self, imported: Opener) -> None:
        """A week of panel and battery gives the energies of both, with no gap too long."""
        files = {
            "Panel": ("solar", "solar_week_panel.csv"),
            "Pack": ("battery", "solar_week_battery.csv"),
        }
        with imported("2020-05-25T12:00:00+00:00", **files) as pm:
            panel, pack = json.loads(pm.export_report("dev-001", days=14))["meters"]
            assert (panel["reading_count"], pack["reading_count"], pm.get_events("dev-001")) == (
                768,
                768,
                [],
            )
            assert [round(panel[key], 4) for key in ("energy_out_wh", "energy_in_wh")] == [
                117.8208,
                0.0,
            ]
            assert [
                round(pack[key], 4) for key in ("energy_out_wh", "energy_in_wh", "energy_wh")
            ] == [
                0.0,
                124.1563,
                -124.1563,
            ]
            assert (pack["min_charge_pct"], pack["max_charge_pct"]) == (52.0, 100.0)
            times = [datetime.fromisoformat(at) for at, *_ in history(pm, pack["meter_id"])]
            assert round(max((b - a).total_seconds() for a, b in itertools.pairwise(times))) == 903
            days = pm.get_statistics(panel["meter_id"], days=14, bucket="day")
            assert (len(days), sum(day.reading_count for day in days)) == (8, 768)

    @pytest.mark.parametrize("max_gap", [899.0, 904.0])
    def test_solar_week_gaps(self, max_gap: float) -> None:
        """With a max_gap just under the real spacing nearly nothing is booked; just over it, everything."""
        if not (DATA / "solar_week_panel.csv").exists():
            pytest.skip(f"{DATA} is not here")
        with (
            (DATA / "solar_week_panel.csv").open() as file,
            PowerManager(":memory:", max_gap=max_gap) as pm,
        ):
            pm.register_device("d", "D")
            meter = pm.add_meter("d", "solar")
            pm.log_many(
                (meter.id, float(r["voltage"]), float(r["current"]), None, r["timestamp"])
                for r in csv.DictReader(file)
            )
            energy = sum(s.energy_out_wh for s in pm.get_statistics(meter.id, days=36500))
        assert (round(energy, 4) == 117.8208) is (max_gap == 904.0)


# --- The README -------------------------------------------------------------------------------

README = HERE / "README.md"
PROGRAM = re.compile(r"^(?:\$ )?(?:python3? power_manager\.py|power-manager)(?: |$)(.*)")


class Example(NamedTuple):
    """A Python block or a command line of a Markdown text, and the lines that the text says it prints."""

    line: int
    kind: str
    text: str
    prints: list[str]


def examples(text: str) -> Iterator[Example]:
    """Each Python block, each command line and each JSON block of a Markdown text."""
    for block in re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```\s*$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, block.start(2)) + 1
        if block[1] in ("python", "json"):
            comments = re.findall(r"^# (.*)$|print\(.*\)  # (.*)$", block[2], re.MULTILINE)
            yield Example(line, block[1], block[2], [whole or end for whole, end in comments])
        elif block[1] in ("console", "sh", "bash", "shell"):
            lines = block[2].replace("\\\n", " ").splitlines()
            for offset, command in enumerate(lines):
                if found := PROGRAM.match(command):
                    shown = itertools.takewhile(
                        lambda text: not text.startswith("$ "), lines[offset + 1 :]
                    )
                    yield Example(
                        line + offset,
                        "command",
                        found[1],
                        [*shown] if block[1] == "console" else [],
                    )


def run_command(line: str) -> str:
    """The output of a command line of the README, run in process; `< file` and `> file` work, `|` ends it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="<>|")
    lexer.whitespace_split = True
    words, source, target = list(lexer), "", ""
    words = words[: words.index("|")] if "|" in words else words
    for sign in ("<", ">"):
        if sign in words:
            place = words.index(sign)
            source, target = (
                (words[place + 1], target) if sign == "<" else (source, words[place + 1])
            )
            del words[place : place + 2]
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(sys, "stdin", io.StringIO(Path(source).read_text() if source else ""))
        assert power_manager.main(words) == 0, f"python power_manager.py {line}"
    if target:
        Path(target).write_text(out.getvalue())
    return out.getvalue()


def assert_alike(shown: Any, got: Any) -> None:
    """JSON as a document shows it: the same but for ids, times, what a clock makes of energy, and what is left out."""
    assert type(shown) is type(got)
    if isinstance(shown, dict):
        assert list(shown) == list(got)
        for key in shown:
            assert_alike(shown[key], got[key])
    elif isinstance(shown, list):
        assert shown == [] or got != []
        for part, its in zip(shown, got, strict=False):
            assert_alike(part, its)
    elif isinstance(shown, str):
        assert shown == got or all(
            re.fullmatch(r"[0-9a-f]{16,}|\d{4}-\d\d-\d\dT\S+", text) for text in (shown, got)
        )
    elif isinstance(shown, float):  # the energy of the minutes that a slow machine took
        assert shown == pytest.approx(got, rel=0.05)
    else:
        assert shown == got


def test_readme_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example of the README runs, in order, in an empty directory, and prints what the README says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POWER_MANAGER_DB", raising=False)
    found, namespace = list(examples(README.read_text(encoding="utf-8"))), {"__name__": "readme"}
    reports: list[str] = []
    assert {example.kind for example in found} == {"python", "command", "json"}
    for line, kind, text, prints in found:
        if kind == "json":
            assert_alike(json.loads(text), json.loads(reports[-1]))
            continue
        with redirect_stdout(io.StringIO()) as out:
            if kind == "python":
                exec(compile("\n" * (line - 1) + text, str(README), "exec"), namespace)
        output = run_command(text) if kind == "command" else out.getvalue()
        if text.startswith("report"):
            reports.append(output)
        if prints:  # of a Python block the lines that it names
            printed = [
                shown for shown in output.splitlines() if kind == "command" or shown in prints
            ]
            assert (line, prints) == (line, printed)


def test_readme_covers_the_contract() -> None:
    """The README names every public method, command and name of the module."""
    text = README.read_text(encoding="utf-8")
    methods = [name for name in vars(PowerManager) if not name.startswith("_")]
    missing = [
        name
        for name in [
            *methods,
            *COMMANDS,
            *power_manager.__all__,
            *BUDGET_KEYS,
            *REPORT_KEYS,
            *METER_KEYS,
        ]
        if name not in text
    ]
    assert missing == []


def test_requirements_are_two() -> None:
    """The tests need pytest and its coverage plug-in, and nothing else."""
    requirements = HERE / "requirements.txt"
    assert requirements.read_text(encoding="utf-8").split() == ["pytest>=7.0", "pytest-cov>=4.0"]


def test_only_the_standard_library_is_imported() -> None:
    """The module imports nothing that Python does not bring along."""
    tree = ast.parse(MODULE.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names) | {"__future__"}
