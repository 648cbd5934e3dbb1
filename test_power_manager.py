"""The contract of power_manager, as tests.

In order: helpers, the brute-force model, recordings of our own making, fixtures; the tests of the
first contract, by their names; then a class for each subject: names, devices and meters, readings,
alerts and events, unknown values, runtime, statistics, budget and report, updating and deleting,
bad input, the outbox and followers, transactions, log_many and iter_history, threads and processes,
tasks, signal handlers and interrupts, the file, the first release, backup, restore, prune and
check, cost, random lives, the pattern of command lines, the command line, recordings, and the
README's examples.

The fixture that a test takes says on which kinds of store it runs: `any_pm` in memory, in a file,
and in a file that is opened anew for every call; `file_pm` in a file; `memory_pm` in memory.
Without one of the three, `pm` is in a file.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import contextlib
import csv
import dataclasses
import errno
import functools
import gc
import io
import itertools
import json
import logging
import math
import os
import random
import re
import runpy
import select
import shlex
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import unicodedata
import weakref
import zoneinfo
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, redirect_stdout, suppress
from datetime import datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from types import FrameType, FunctionType, MappingProxyType
from typing import Any, NamedTuple, cast

import pytest

import power_manager
from power_manager import (
    AlertLevel,
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
MODULE = Path(power_manager.__file__)

NOW = 1_750_077_000.0  # 2025-06-16T12:30:00Z
SECOND = 1_000_000  # microseconds
HOUR = 3600 * SECOND
DAY = 24 * HOUR
YEARS = 20 * 365 * 86400.0  # seconds: how far a device without a clock of its own may be off
MAX_GAP = 5400.0  # seconds: the default


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
        self._path = path
        self._clock = clock

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The method of that name, on a PowerManager of its own."""

        def call(*args: Any, **options: Any) -> Any:
            with PowerManager(self._path, clock=self._clock) as manager:
                return getattr(manager, name)(*args, **options)

        return call


def history(pm: PowerManager, meter_id: str) -> list[tuple[Any, ...]]:
    """Time, volts, amperes and charge of every stored reading of a meter."""
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
        "totals": {meter.id: pm.energy_totals(meter.id) for meter in meters},
        "events": pm.events_since(0),
        "waiting": [reading.id for reading in pm.pending_readings(10**6)],
        "deletions": pm.pending_deletions(10**6),
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


def filled(path: Path, count: int = 30, sql: str = "") -> str:
    """Make a database with a device, a battery and readings, then run SQL on it.

    Return the battery's id.
    """
    with PowerManager(path, clock=Clock()) as pm:
        pm.register_device("dev-001", "Edge Node")
        meter = pm.add_meter("dev-001", "battery", 50.0, "Pack")
        pm.log_many(
            (meter.id, 3.7 + i / 100, 0.5, 80.0 - i % 60, NOW - 3000 + 100 * i)
            for i in range(count)
        )
        pm.trigger_event("dev-001", "restore")
    execute(path, sql)
    return meter.id


def content(place: Path) -> dict[str, bytes]:
    """The files of a directory, to the last byte, without SQLite's shared-memory index."""
    return {
        entry.name: entry.read_bytes()
        for entry in place.iterdir()
        if entry.is_file() and not entry.name.endswith("-shm")
    }


def process(code: str, *args: object) -> subprocess.Popen[str]:
    """Run Python code in a process of its own, which can import power_manager."""
    env = {**os.environ, "PYTHONPATH": str(MODULE.parent)}
    command = [sys.executable, "-c", code, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


def finished(child: subprocess.Popen[str]) -> str:
    """Let a process that waits for its standard input go on; return what it printed."""
    out, err = child.communicate("go\n", timeout=60)
    assert (child.returncode, err) == (0, "")
    return out.strip()


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


def in_threads(*calls: Callable[[], object]) -> None:
    """Run calls at once, each in a thread, and raise what any of them raises."""
    barrier = threading.Barrier(len(calls))
    errors: list[BaseException] = []

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


class Broken(Exception):
    """Raised by tests where something has to fail."""


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond that many bytes.

    Python ignores the signal, so that writing fails as on a full disk.
    """
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


# --- The brute-force model --------------------------------------------------------------------


class Reading(NamedTuple):
    """One reading of the model; None is what is not known."""

    us: int
    voltage: float | None
    current_draw: float | None
    charge_pct: float | None

    @property
    def watts(self) -> float | None:
        """Watts out of the source, unrounded."""
        if self.voltage is None or self.current_draw is None:
            return None
        return self.voltage * self.current_draw


def iso(us: float) -> str:
    """ISO 8601 text of microseconds since 1970."""
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=us)
    return moment.isoformat(timespec="microseconds")


def brute_force(
    rows: Iterable[Reading],
    start: float = 0,
    end: float = math.inf,
    *,
    leading_in: bool = False,
    max_gap: float = MAX_GAP,
    closed: Mapping[int, bool] = MappingProxyType({}),
) -> dict[str, Any]:
    """Statistics of the readings from start on and before end, straight from their definition.

    leading_in: with the energy between the last reading before start and the first one after it,
    as in an hour's row. closed: hours of which readings were pruned, so that the energy across one
    of them is not known; out of one it is, where its last reading is still there (true).
    """
    ordered = sorted(rows, key=lambda row: row.us)
    inside = [row for row in ordered if start <= row.us < end]
    if not inside:
        return {"reading_count": 0}
    energy_out = 0.0
    energy_in = 0.0
    powered = [(row.us, row.watts) for row in ordered if row.watts is not None]
    for (earlier_us, earlier_watts), (later_us, later_watts) in itertools.pairwise(powered):
        if not start <= later_us < end or (earlier_us < start and not leading_in):
            continue
        hours_between = range(earlier_us // HOUR, later_us // HOUR)
        if any(
            hour in hours_between and (hour > hours_between[0] or not has_last)
            for hour, has_last in closed.items()
        ):
            continue
        if later_us - earlier_us <= max_gap * SECOND:
            energy = (earlier_watts + later_watts) / 2 * (later_us - earlier_us) / HOUR
            energy_out += max(energy, 0.0)
            energy_in += max(-energy, 0.0)
    watts = [row.watts for row in inside if row.watts is not None]
    charges = [row.charge_pct for row in inside if row.charge_pct is not None]
    return {
        "reading_count": len(inside),
        "avg_wattage": sum(watts) / len(watts) if watts else None,
        "min_wattage": min(watts, default=None),
        "max_wattage": max(watts, default=None),
        "min_charge_pct": min(charges, default=None),
        "max_charge_pct": max(charges, default=None),
        "energy_out_wh": energy_out,
        "energy_in_wh": energy_in,
    }


def buckets(
    rows: Iterable[Reading], length: int, *, max_gap: float = MAX_GAP
) -> list[tuple[str, dict[str, Any]]]:
    """Start and statistics of each hour or day that has readings."""
    rows = list(rows)
    starts = sorted({row.us // length * length for row in rows})
    return [
        (iso(start), brute_force(rows, start, start + length, leading_in=True, max_gap=max_gap))
        for start in starts
    ]


def near(expected: dict[str, Any]) -> dict[str, Any]:
    """The same up to the order of floating-point sums; None and text as they are."""
    return {
        name: pytest.approx(value, rel=1e-9, abs=1e-8) if isinstance(value, float) else value
        for name, value in expected.items()
    }


def about(value: float) -> Any:
    """The same up to the order of floating-point sums."""
    return pytest.approx(value, rel=1e-9, abs=1e-8)


def assert_statistics(
    pm: PowerManager,
    meter_id: str,
    expected: list[tuple[str, dict[str, Any]]],
    bucket: str = "hour",
) -> None:
    """The meter's statistics are these, bucket by bucket."""
    got = pm.get_statistics(meter_id, days=36500, bucket=bucket)
    assert [(s.start, s.reading_count) for s in got] == [
        (start, values["reading_count"]) for start, values in expected
    ]
    for statistics, (_, values) in zip(got, expected, strict=True):
        assert {name: getattr(statistics, name) for name in values} == near(values)


def meter_part(pm: PowerManager, device_id: str, days: float, part: int = 0) -> dict[str, Any]:
    """The statistics in one meter's part of a report, by the names of the model."""
    meter = json.loads(pm.export_report(device_id, days))["meters"][part]
    if meter["reading_count"]:
        net_wh = meter["energy_out_wh"] - meter["energy_in_wh"]
        assert meter["energy_wh"] == pytest.approx(net_wh, abs=2e-9)
    names = brute_force([Reading(0, 0.0, 0.0, 0.0)])
    return {name: value for name, value in meter.items() if name in names}


def random_rows(
    chance: random.Random, count: int, start_us: int, *, unknown: float = 0.0
) -> list[Reading]:
    """Readings of all kinds: short and long gaps, both signs, few decimals and many.

    unknown: the share of readings that lack their volts, their amperes, or both.
    """
    gaps_us = [1, SECOND, 7 * SECOND + 3, 60 * SECOND, 600 * SECOND, 1700 * SECOND]
    gaps_us += [HOUR, HOUR + 1, 5400 * SECOND, 5400 * SECOND + 1, 3 * HOUR]
    rows = []
    us = start_us
    for _ in range(count):
        us += chance.choice(gaps_us)
        voltage: float | None = chance.uniform(3, 15)
        current: float | None = chance.choice([0.0, chance.uniform(-5, 5), chance.uniform(0, 2)])
        charge = chance.uniform(0, 100)
        if chance.random() < 0.5:
            voltage = round(cast(float, voltage), 2)
            current = round(cast(float, current), 2)
            charge = round(charge, 2)
        if chance.random() < unknown:
            voltage, current = chance.choice([(None, current), (voltage, None), (None, None)])
        rows.append(Reading(us, voltage, current, charge))
    return rows


def as_readings(meter_id: str, rows: Iterable[Reading]) -> Iterator[tuple[Any, ...]]:
    """Rows as log_many takes them."""
    for row in rows:
        yield meter_id, row.voltage, row.current_draw, row.charge_pct, iso(row.us)


# --- Recordings of our own making -------------------------------------------------------------

DISCHARGE_START = int(NOW - 6 * 3600) * SECOND // HOUR * HOUR + 1777 * SECOND
SOLAR_START = int(NOW - 8 * 86400) * SECOND // DAY * DAY + 290 * SECOND


def discharge() -> list[Reading]:
    """Four hours of a battery that runs down every 5 to 6 s, with a noisy gauge.

    The gauge's noise is less than the hysteresis of an alert, and crosses both thresholds often.
    """
    chance = random.Random(2021)
    rows = []
    us = DISCHARGE_START
    while us < DISCHARGE_START + 4 * HOUR:
        left = 1 - (us - DISCHARGE_START) / (4 * HOUR)
        volts = round(3.3 + 0.9 * left + chance.uniform(-0.01, 0.01), 3)
        amperes = round(2.1 + chance.uniform(-0.3, 0.8), 6)
        charge = round(79 * left + chance.uniform(-0.9, 0.9), 1)
        rows.append(Reading(us, volts, amperes, max(charge, 0.0)))
        us += chance.choice([5, 5, 5, 6]) * SECOND
    return rows


def solar_week() -> tuple[list[Reading], list[Reading]]:
    """A week of a panel and of the battery that it charges, about every 15 minutes.

    Two gaps of some hours are in it: one at night, one at noon.
    """
    chance = random.Random(2020)
    panel = []
    battery = []
    charge = 60.0
    for quarter in range(7 * 96):
        us = SOLAR_START + quarter * 900 * SECOND + chance.randrange(3 * SECOND)
        hour_of_day = us % DAY / HOUR
        sun = max(0.0, math.sin((hour_of_day - 6) / 12 * math.pi)) * chance.uniform(0.3, 1.0)
        watts = round(40 * sun, 2)
        volts = round(12.4 + charge / 100, 2)
        charge = min(max(charge + watts / 40 - 0.3, 50.0), 100.0)
        is_gap = quarter in range(200, 212) or quarter in range(433, 442)
        if not is_gap:
            panel.append(Reading(us, 18.0 if watts else 0.33, round(watts / 18.0, 3), 100.0))
            battery.append(Reading(us, volts, -round(watts / volts, 3), round(charge, 1)))
    return panel, battery


def write_csv(path: Path, rows: Iterable[Reading]) -> None:
    """Write readings as `import` takes them."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["timestamp", "voltage", "current", "charge_pct"])
        writer.writerows((iso(row.us), *row[1:]) for row in rows)


# --- Fixtures ---------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes any_pm once on each kind of store."""
    if "any_pm" in metafunc.fixturenames:
        metafunc.parametrize("store", ["memory", "file", "reopened"])


@pytest.fixture(scope="session", autouse=True)
def programs_end_by_ctrl_c() -> None:
    """A shell that runs the tests in the background makes them, and what they start, ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def store(request: pytest.FixtureRequest) -> str:
    """The kind of store that `pm` is; of a test that takes any_pm, each in turn."""
    return "memory" if "memory_pm" in request.fixturenames else "file"


@pytest.fixture
def clock() -> Clock:
    """A clock that stands at NOW."""
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is, in tests that have one in a file."""
    return tmp_path / "power.db"


@pytest.fixture
def pm(store: str, path: Path, clock: Clock) -> Iterator[PowerManager]:
    """An empty PowerManager."""
    if store == "reopened":
        yield cast(PowerManager, Reopened(path, clock))
        return
    with PowerManager(":memory:" if store == "memory" else path, clock=clock) as manager:
        yield manager


@pytest.fixture
def any_pm(pm: PowerManager) -> PowerManager:
    """`pm`, in memory, in a file, and in a file that is opened anew for every call."""
    return pm


@pytest.fixture
def file_pm(pm: PowerManager) -> PowerManager:
    """`pm`, in a file."""
    return pm


@pytest.fixture
def memory_pm(pm: PowerManager) -> PowerManager:
    """`pm`, in memory."""
    return pm


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


# --- The tests of the first contract ----------------------------------------------------------


def test_register_device(pm: PowerManager) -> None:
    """Registering returns the device as it is stored."""
    registered = pm.register_device("dev-001", "Edge Node", 4.5, 120.0)
    assert dataclasses.astuple(registered)[:4] == ("dev-001", "Edge Node", 4.5, 120.0)
    assert pm.get_device("dev-001") == registered


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
    assert (meter.voltage, meter.current_draw, meter.charge_pct) == (3.7, 0.5, 82.0)
    assert (meter.updated_at, meter.wattage) == (reading.timestamp, 1.85)
    assert pm.get_history(battery_meter.id) == [reading]


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


def test_get_history(pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter) -> None:
    """The history is that of one meter, newer than 24 hours ago, oldest first."""
    pm.log_power(solar_meter.id, 18.0, 1.0)
    for hours in (1, 25, 23.9, 24, 0):
        pm.log_power(battery_meter.id, 3.7, 0.1, hours, timestamp=NOW - 3600 * hours)
    assert [reading.charge_pct for reading in pm.get_history(battery_meter.id)] == [23.9, 1.0, 0.0]


def test_low_battery_auto_event(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """A battery that falls to 20 % records one discharge event with its charge and time."""
    reading = pm.log_power(battery_meter.id, 3.4, 0.5, 15.0)
    (event,) = pm.get_events("dev-001")
    assert (event.type, event.value) == (PowerEventType.DISCHARGE, 15.0)
    assert (event.timestamp, event.meter_id) == (reading.timestamp, battery_meter.id)
    assert "Pack" in str(event.note)


def test_critical_battery_auto_event(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """A battery that falls to 5 % records one low_battery event, and only that."""
    pm.log_power(battery_meter.id, 3.1, 0.5, 3.0)
    (event,) = pm.get_events("dev-001")
    assert (event.type, event.value) == (PowerEventType.LOW_BATTERY, 3.0)
    assert event.meter_id == battery_meter.id


def test_estimate_runtime(pm: PowerManager, battery_meter: PowerMeter) -> None:
    """What is left in the battery over what it supplies, in hours of 2 decimals."""
    pm.log_power(battery_meter.id, 10.0, 0.7, 80.0)
    assert pm.estimate_runtime("dev-001") == 5.71


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
    "consumption_24h_wh",
    "target_wh",
    "within_target",
    "below_shutdown_threshold",
    "unknown_power_count",
]


def test_power_budget_check(
    pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
) -> None:
    """A device's budget sums up its meters."""
    second = pm.add_meter("dev-001", "battery", 10.0)
    main = pm.add_meter("dev-001", "main")
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
        "consumption_24h_wh": 0.0,
        "target_wh": None,
        "within_target": None,
        "below_shutdown_threshold": False,
        "unknown_power_count": 0,
    }
    assert list(budget) == BUDGET_KEYS


@pytest.mark.usefixtures("device")
def test_power_budget_unknown_device(pm: PowerManager) -> None:
    """An unknown id gives an error that names it, beside the known ones, in the order asked."""
    budget = pm.power_budget_check(["absent", "dev-001"])
    assert (list(budget), list(budget["absent"])) == (["absent", "dev-001"], ["error"])
    assert "absent" in budget["absent"]["error"]


REPORT_KEYS = [
    "device_id",
    "device_name",
    "period_days",
    "generated_at",
    "meters",
    "totals",
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
TOTALS_KEYS = [
    "consumption_wh",
    "main_wh",
    "solar_wh",
    "battery_out_wh",
    "battery_in_wh",
    "ups_wh",
    "self_sufficiency_pct",
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
    assert report["totals"] == {
        "consumption_wh": 2.5,
        "main_wh": 0.0,
        "solar_wh": 0.0,
        "battery_out_wh": 2.5,
        "battery_in_wh": 0.0,
        "ups_wh": 0.0,
        "self_sufficiency_pct": 100.0,
    }
    assert list(report["totals"]) == TOTALS_KEYS
    (event,) = report["events"]
    assert (report["event_count"], event["type"]) == (1, "low_battery")
    assert event["meter_id"] == battery_meter.id


# --- Names, records and enums -----------------------------------------------------------------


class TestNames:
    """What the module offers, under the names of its contract."""

    def test_all_names_every_public_name(self) -> None:
        """`__all__` holds each public constant, class and function once, and nothing else."""
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
            ("SECOND_US", SECOND),
            ("HOUR_US", HOUR),
            ("DAY_US", DAY),
        ],
    )
    def test_constants(self, name: str, value: object) -> None:
        """The constants have the values of the contract."""
        assert getattr(power_manager, name) == value

    @pytest.mark.parametrize(
        ("kind", "values"),
        [
            (MeterType, ["main", "battery", "solar", "ups"]),
            (PowerState, ["normal", "low", "critical", "charging", "unknown"]),
            (PowerEventType, ["charge_start", "discharge", "low_battery", "shutdown", "restore"]),
            (AlertLevel, ["none", "low", "critical"]),
        ],
        ids=["MeterType", "PowerState", "PowerEventType", "AlertLevel"],
    )
    def test_enum_members_are_their_values(self, kind: Any, values: list[str]) -> None:
        """Members equal, print and serialise as their values, and are called as they are."""
        assert list(kind) == values
        assert [str(member) for member in kind] == values
        assert json.loads(json.dumps(list(kind))) == values
        assert [member.name for member in kind] == [value.upper() for value in values]

    @pytest.mark.parametrize(
        ("record", "fields"),
        [
            ("DeviceRecord", "id name shutdown_threshold target_wh"),
            ("PowerMeter", "id device_id type voltage current_draw capacity_wh charge_pct name"),
            ("PowerReading", "id meter_id voltage current_draw wattage charge_pct timestamp"),
            ("PowerEvent", "id device_id type value timestamp note"),
            (
                "PowerStatistics",
                (
                    "meter_id start reading_count avg_wattage min_wattage max_wattage "
                    "min_charge_pct max_charge_pct energy_out_wh energy_in_wh"
                ),
            ),
        ],
    )
    def test_record_fields(self, record: str, fields: str) -> None:
        """A record starts with the fields of its contract; each field after them has a default."""
        names = fields.split()
        there = dataclasses.fields(getattr(power_manager, record))
        assert [field.name for field in there[: len(names)]] == names
        assert all(field.default is not dataclasses.MISSING for field in there[len(names) :])

    def test_device_record_defaults(self) -> None:
        """A device shuts down at 3 W and has no budget unless told."""
        record = power_manager.DeviceRecord("a", "A")
        assert (record.shutdown_threshold, record.target_wh) == (3.0, None)

    def test_errors_are_builtins_too(self) -> None:
        """Each error is of the base class and of a builtin one."""
        assert issubclass(InvalidValue, (PowerManagerError, ValueError))
        assert NotFound.__mro__[1:4] == (PowerManagerError, ValueError, LookupError)
        assert StorageError.__mro__[1:3] == (PowerManagerError, OSError)

    @pytest.mark.parametrize(
        "error", [InvalidValue("a"), NotFound("a"), StorageError("a.db", "gone")], ids=repr
    )
    def test_errors_cross_processes(self, error: PowerManagerError) -> None:
        """An error comes out of pickle as it went in: pools and queues hand errors on that way."""
        import pickle

        assert str(pickle.loads(pickle.dumps(error))) == str(error)

    def test_wattage_is_rounded_to_four_decimals(self) -> None:
        """Wattage is volts times amperes as shown."""
        assert PowerMeter("m", "d", MeterType.MAIN, 1.23456, 1.0, 0.0, 0.0).wattage == 1.2346


# --- Devices and meters -----------------------------------------------------------------------


class Labels(str, Enum):
    """Text as the member of an enum, which prints itself otherwise."""

    HERE = "here"


class TestDevices:
    """Registering and listing devices."""

    def test_register_device_defaults(self, any_pm: PowerManager) -> None:
        """The shutdown threshold is 3 W, without a budget."""
        assert dataclasses.astuple(any_pm.register_device("d", "D"))[:4] == ("d", "D", 3.0, None)

    def test_register_device_by_position_and_by_name(self, any_pm: PowerManager) -> None:
        """The parameters have their promised names and order."""
        by_name = any_pm.register_device(device_id="d", name="D", shutdown_threshold=1, target_wh=2)
        assert any_pm.register_device("d", "D", 1, 2) == by_name

    def test_registering_again_keeps_everything(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """An update gives the device its new values and keeps meters, readings and events."""
        any_pm.log_power(battery_meter.id, 3.7, 1.0, 4.0)
        before = everything(any_pm)
        any_pm.register_device("dev-001", "Renamed", 5.0)
        after = everything(any_pm)
        (device,) = after["devices"]
        assert (device.name, device.shutdown_threshold) == ("Renamed", 5.0)
        assert {**after, "devices": None} == {**before, "devices": None}

    def test_list_devices_in_order_of_registration(self, any_pm: PowerManager) -> None:
        """Devices are listed as they were registered; an update leaves the order."""
        for name in ("b", "c", "a", "b"):
            any_pm.register_device(name, name)
        assert [device.id for device in any_pm.list_devices()] == ["b", "c", "a"]

    def test_an_empty_database_lists_nothing(self, any_pm: PowerManager) -> None:
        """A new database has neither devices nor meters nor events."""
        assert (any_pm.list_devices(), any_pm.list_meters()) == ([], [])
        assert (any_pm.events_since(0), any_pm.check()) == ([], [])

    def test_text_of_an_enum_is_its_value(self, any_pm: PowerManager) -> None:
        """An id or a name is stored as what it equals."""
        any_pm.register_device(Labels.HERE, Labels.HERE)
        assert [(device.id, device.name) for device in any_pm.list_devices()] == [("here", "here")]


class TestMeters:
    """Adding and listing meters."""

    @pytest.mark.parametrize("kind", list(MeterType))
    @pytest.mark.parametrize("as_text", [True, False], ids=["text", "member"])
    def test_add_meter(
        self, any_pm: PowerManager, device: DeviceRecord, kind: MeterType, as_text: bool
    ) -> None:
        """A new meter of any type has neither voltage nor current, and full charge."""
        meter = any_pm.add_meter(device.id, kind.value if as_text else kind, 50, "Name")
        assert dataclasses.astuple(meter)[1:8] == ("dev-001", kind, 0.0, 0.0, 50.0, 100.0, "Name")
        assert (type(meter.type), meter.wattage, meter.updated_at) == (MeterType, 0.0, None)
        assert any_pm.get_meter(meter.id) == meter

    def test_add_meter_defaults(self, any_pm: PowerManager, device: DeviceRecord) -> None:
        """A meter has no capacity and no name unless told."""
        meter = any_pm.add_meter(device_id=device.id, meter_type="main")
        assert (meter.capacity_wh, meter.name) == (0.0, None)

    def test_list_meters(
        self, any_pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """Meters are listed in order of adding, of one device or of all."""
        any_pm.register_device("other", "Other")
        third = any_pm.add_meter("other", "main")
        assert any_pm.list_meters("dev-001") == [battery_meter, solar_meter]
        assert any_pm.list_meters() == [battery_meter, solar_meter, third]

    @pytest.mark.parametrize("device_id", ["dev-001", "absent"])
    @pytest.mark.usefixtures("device")
    def test_list_meters_of_nothing(self, any_pm: PowerManager, device_id: str) -> None:
        """A device without meters, or an unknown one, lists nothing."""
        assert any_pm.list_meters(device_id) == []

    @pytest.mark.parametrize(
        "call",
        [
            lambda pm: pm.get_device("absent"),
            lambda pm: pm.add_meter("absent", "main"),
            lambda pm: pm.get_meter("absent"),
            lambda pm: pm.log_power("absent", 1.0, 1.0),
            lambda pm: pm.calculate_wattage("absent"),
            lambda pm: pm.estimate_runtime("absent"),
            lambda pm: pm.get_history("absent"),
            lambda pm: pm.iter_history("absent"),
            lambda pm: pm.get_statistics("absent"),
            lambda pm: pm.trigger_event("absent", "restore"),
            lambda pm: pm.get_events("absent"),
            lambda pm: pm.export_report("absent"),
            lambda pm: pm.log_many([("absent", 1.0, 1.0)]),
        ],
        ids=lambda call: call.__code__.co_names[0],
    )
    def test_unknown_ids_raise(
        self, any_pm: PowerManager, call: Callable[[PowerManager], object]
    ) -> None:
        """An id that was never registered is named, and nothing is stored."""
        with pytest.raises(NotFound, match=r"no (device|meter) has the id 'absent'") as caught:
            call(any_pm)
        assert (caught.value.kind in ("device", "meter"), caught.value.id) == (True, "absent")
        assert everything(any_pm)["devices"] == []


# --- Readings ---------------------------------------------------------------------------------


class TestValues:
    """What a reading keeps of the numbers and times it is given."""

    def test_log_power_by_name(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """The parameters have their promised names."""
        reading = any_pm.log_power(
            meter_id=battery_meter.id, voltage=3.7, current=0.5, charge_pct=82.0, timestamp=NOW
        )
        assert any_pm.get_history(meter_id=battery_meter.id, hours=1) == [reading]

    def test_charge_none_keeps_the_last(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Without a charge the meter's last one is kept; it is 100 before the first."""
        charges = [
            any_pm.log_power(battery_meter.id, 3.7, 0.5, charge).charge_pct
            for charge in (None, 40.0, None)
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
        self,
        any_pm: PowerManager,
        battery_meter: PowerMeter,
        voltage: Any,
        current: Any,
        charge: Any,
    ) -> None:
        """Any number that is given is read back as the same float."""
        any_pm.log_power(battery_meter.id, voltage, current, charge)
        (reading,) = any_pm.get_history(battery_meter.id)
        values = (reading.voltage, reading.current_draw, reading.charge_pct)
        assert values == (float(voltage), float(current), float(charge))
        assert {type(value) for value in values} == {float}

    def test_random_values_come_back_to_the_last_bit(self, opened: Opener) -> None:
        """Packing values into whole numbers loses nothing, for a thousand of them."""
        chance = random.Random(1)
        pm = opened()
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "main")
        rows = [
            Reading(
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
    def test_timestamp_forms(
        self, any_pm: PowerManager, battery_meter: PowerMeter, timestamp: Any
    ) -> None:
        """One instant may be epoch seconds, an aware datetime, or ISO text with any offset."""
        reading = any_pm.log_power(battery_meter.id, 3.7, 0.5, timestamp=timestamp)
        assert reading.timestamp == "2025-06-16T12:30:00.000000+00:00"

    @pytest.mark.parametrize(
        "timestamp",
        [
            "1970-01-01T00:00:00.000000+00:00",
            "2200-12-31T23:59:59.999999+00:00",
            "2025-06-16T12:30:00.000001+00:00",
        ],
    )
    def test_first_and_last_timestamp(
        self, any_pm: PowerManager, battery_meter: PowerMeter, timestamp: str
    ) -> None:
        """The first and last instants of 1970 to 2200 are kept to the microsecond."""
        any_pm.log_power(battery_meter.id, 3.7, 0.5, timestamp=timestamp)
        assert history(any_pm, battery_meter.id)[0][0] == timestamp

    def test_reading_ids_are_the_same_on_every_copy(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A reading's id is made of its meter's id and its time."""
        first, second = (
            any_pm.log_power(battery_meter.id, 3.7, 0.5, 80.0, timestamp=NOW + i) for i in (0, 1)
        )
        again = any_pm.log_power(battery_meter.id, 3.7, 0.5, 80.0, timestamp=NOW)
        assert (first.id == again.id, first.id == second.id) == (True, False)
        assert first.id.startswith(battery_meter.id)

    def test_calculate_wattage(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """The present wattage has the sign of the current, and is 0 before the first reading."""
        assert any_pm.calculate_wattage(battery_meter.id) == 0.0
        any_pm.log_power(battery_meter.id, 3.70001, -1.5)
        assert any_pm.calculate_wattage(battery_meter.id) == -5.55

    @pytest.mark.parametrize(("hours", "count"), [(0, 0), (0.5, 1), (1, 1), (1.001, 2), (1e9, 3)])
    def test_get_history_hours(
        self, any_pm: PowerManager, battery_meter: PowerMeter, hours: float, count: int
    ) -> None:
        """Only readings newer than that many hours are in it: one just as old is not."""
        for age in (600, 3600, 36000):
            any_pm.log_power(battery_meter.id, 3.7, 0.1, timestamp=NOW - age)
        assert len(any_pm.get_history(battery_meter.id, hours)) == count

    def test_view_readings(self, path: Path, opened: Opener) -> None:
        """The view `readings` shows in the sqlite3 shell the same as the history."""
        pm = opened(path)
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "main")
        rows = random_rows(random.Random(9), 20, int(NOW) * SECOND, unknown=0.3)
        pm.log_many(as_readings(meter.id, rows))
        assert fetch(path, "SELECT * FROM readings") == [
            dataclasses.astuple(reading) for reading in pm.iter_history(meter.id)
        ]

    def test_view_statistics(self, path: Path, opened: Opener) -> None:
        """The view `statistics` shows the same as get_statistics, the hour under way included."""
        pm = opened(path)
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "main")
        rows = random_rows(random.Random(9), 20, int(NOW) * SECOND, unknown=0.3)
        pm.log_many(as_readings(meter.id, rows))
        names = [field.name for field in dataclasses.fields(power_manager.PowerStatistics)]
        shown = fetch(path, f"SELECT {', '.join(names)} FROM statistics ORDER BY start")
        expected = pm.get_statistics(meter.id, days=36500)
        assert len(shown) == len(expected) > 3
        for row, statistics in zip(shown, expected, strict=True):
            values = dict(zip(names, row, strict=True))
            start = datetime.fromisoformat(values.pop("start"))
            there = dataclasses.asdict(statistics)
            assert start == datetime.fromisoformat(there.pop("start"))
            assert values == near(there)


class TestLiveAndRecorded:
    """Which reading becomes the present state, and at which instant it is kept."""

    @pytest.mark.parametrize("jump", [-YEARS, YEARS], ids=["back", "forward"])
    def test_live_reading_is_present_whatever_the_clock_says(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock, jump: float
    ) -> None:
        """After the clock jumped by years a live reading is the present state, with its alert."""
        any_pm.log_power(battery_meter.id, 3.9, 0.1, 90.0)
        clock.now = NOW + jump
        reading = any_pm.log_power(battery_meter.id, 3.5, 0.2, 4.0)
        meter = any_pm.get_meter(battery_meter.id)
        assert (meter.voltage, meter.charge_pct, meter.updated_at) == (3.5, 4.0, reading.timestamp)
        assert [(e.type, e.timestamp) for e in any_pm.get_events("dev-001")] == [
            ("low_battery", reading.timestamp)
        ]
        assert any_pm.check() == []

    def test_live_reading_after_a_jump_there_and_back(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A clock that was years ahead and is right again leaves the later readings present."""
        for jump, charge in ((YEARS, 70.0), (0.0, 60.0), (1.0, 50.0)):
            clock.now = NOW + jump
            any_pm.log_power(battery_meter.id, 3.7, 0.1, charge)
        assert any_pm.get_meter(battery_meter.id).charge_pct == 50.0
        assert [row[3] for row in history(any_pm, battery_meter.id)] == [60.0, 50.0, 70.0]
        assert any_pm.check() == []

    def test_live_readings_in_one_microsecond(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Live readings at one instant are a microsecond apart, and the last is present."""
        stamps = [
            any_pm.log_power(battery_meter.id, 3.7, 0.1, charge).timestamp[17:26]
            for charge in (70.0, 60.0, 50.0)
        ]
        assert stamps == ["00.000000", "00.000001", "00.000002"]
        assert any_pm.get_meter(battery_meter.id).charge_pct == 50.0

    def test_live_reading_takes_the_next_free_microsecond(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Recorded readings around the present instant are neither replaced nor repeated."""
        for us in (0, 1, 3):
            any_pm.log_power(battery_meter.id, 1.0, 0.1, timestamp=iso(NOW * SECOND + us))
        stamps = [any_pm.log_power(battery_meter.id, 2.0, 0.1).timestamp[17:26] for _ in range(2)]
        assert stamps == ["00.000002", "00.000004"]

    def test_recorded_reading_is_present_if_it_is_the_newest(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A recorded reading becomes the present state, with its alert, if it is the newest."""
        any_pm.log_power(battery_meter.id, 3.9, 0.1, 90.0, timestamp=NOW - 100)
        any_pm.log_power(battery_meter.id, 3.5, 0.2, 4.0, timestamp=NOW - 50)
        assert any_pm.get_meter(battery_meter.id).charge_pct == 4.0
        assert [(e.type, e.value, e.timestamp) for e in any_pm.get_events("dev-001")] == [
            ("low_battery", 4.0, iso((NOW - 50) * SECOND))
        ]

    def test_late_reading_leaves_the_present_alone(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A recorded reading older than the newest changes neither present state nor alerts."""
        any_pm.log_power(battery_meter.id, 3.9, 0.1, 90.0)
        before = any_pm.get_meter(battery_meter.id)
        any_pm.log_power(battery_meter.id, 3.5, 0.2, 4.0, timestamp=NOW - 50)
        assert any_pm.get_meter(battery_meter.id) == before
        assert any_pm.get_events("dev-001") == []
        assert len(history(any_pm, battery_meter.id)) == 2

    def test_recorded_reading_must_be_newer_than_any_stored(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """After the clock was set back, a recorded reading between present and newest is late."""
        any_pm.log_power(battery_meter.id, 3.9, 0.1, 90.0)
        clock.now = NOW - YEARS
        any_pm.log_power(battery_meter.id, 3.8, 0.1, 80.0)
        any_pm.log_power(battery_meter.id, 3.7, 0.1, 70.0, timestamp=NOW - 10)
        assert any_pm.get_meter(battery_meter.id).charge_pct == 80.0

    def test_duplicate_changes_nothing(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A recorded reading that is there is returned as stored, even if others are given."""
        first = any_pm.log_power(battery_meter.id, 3.9, 0.1, 90.0, timestamp=NOW)
        before = everything(any_pm)
        assert any_pm.log_power(battery_meter.id, 1.0, 1.0, 1.0, timestamp=NOW) == first
        assert everything(any_pm) == before


# --- Alerts and events ------------------------------------------------------------------------

D = "discharge"
L = "low_battery"


class Label(str):
    """Text of a class of its own, as NumPy and pandas have it."""

    __slots__ = ()


class TestAlerts:
    """When a charge records an event."""

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
        self,
        any_pm: PowerManager,
        battery_meter: PowerMeter,
        clock: Clock,
        charges: list[float],
        events: list[str],
    ) -> None:
        """An alert is recorded when its level is reached, and ends past the hysteresis."""
        for charge in charges:
            clock.now += 1
            any_pm.log_power(battery_meter.id, 3.5, 0.5, charge)
        assert alerts_of(any_pm, "dev-001") == events

    @pytest.mark.parametrize("kind", ["ups", "main", "solar"])
    @pytest.mark.usefixtures("device")
    def test_other_meters_raise_no_alerts(self, any_pm: PowerManager, kind: str) -> None:
        """By default a battery alone raises alerts."""
        meter = any_pm.add_meter("dev-001", kind)
        any_pm.log_power(meter.id, 12.0, 0.5, 1.0)
        assert (alerts_of(any_pm, "dev-001"), any_pm.get_meter(meter.id).alert_level) == (
            [],
            "none",
        )

    @pytest.mark.parametrize(
        ("alert_types", "events"),
        [
            (("battery",), [L]),
            (["battery", "ups"], [L, L]),
            ({MeterType.UPS}, [L]),
            ((), []),
            (list(MeterType), [L, L, L, L]),
        ],
        ids=["default", "battery and ups", "ups", "no type", "all"],
    )
    def test_alert_types(self, opened: Opener, alert_types: Any, events: list[str]) -> None:
        """Meters of the given types raise alerts."""
        pm = opened(alert_types=alert_types)
        pm.register_device("d", "D")
        for kind in MeterType:
            pm.log_power(pm.add_meter("d", kind).id, 12.0, 0.5, 1.0)
        assert alerts_of(pm, "d") == events

    def test_alert_level_is_kept_in_the_file(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """The level of a meter's alert is part of its record."""
        levels = []
        for charge in (50, 20, 5, 6.9, 7, 21.9, 22):
            any_pm.log_power(battery_meter.id, 3.5, 0.5, charge)
            levels.append(any_pm.get_meter(battery_meter.id).alert_level)
        assert levels == ["none", "low", "critical", "critical", "low", "low", "none"]
        assert {type(level) for level in levels} == {AlertLevel}

    def test_alerts_with_thresholds_of_the_device(self, any_pm: PowerManager) -> None:
        """A device's own thresholds decide its alerts, and come back with its record and meters."""
        registered = any_pm.register_device(
            "d", "D", low_battery_threshold=50, critical_battery_threshold=10
        )
        meter = any_pm.add_meter("d", "battery")
        for charge in (51, 50, 51.9, 50, 52, 50, 11, 10, 11.9, 10, 12, 10):
            any_pm.log_power(meter.id, 3.5, 0.5, charge)
        assert alerts_of(any_pm, "d") == [D, D, L, L]
        assert any_pm.get_device("d") == registered
        present = any_pm.get_meter(meter.id)
        assert (present.low_battery_threshold, present.critical_battery_threshold) == (50.0, 10.0)
        assert present.state == "low"

    def test_thresholds_go_back_to_the_constants(self, any_pm: PowerManager) -> None:
        """Registering without thresholds takes the overrides away."""
        any_pm.register_device("d", "D", low_battery_threshold=50, critical_battery_threshold=10)
        meter = any_pm.add_meter("d", "battery")
        any_pm.register_device("d", "D")
        any_pm.log_power(meter.id, 3.5, 0.5, 40)
        assert (alerts_of(any_pm, "d"), any_pm.get_meter(meter.id).state) == ([], "normal")

    @pytest.mark.parametrize(
        ("repeat", "events"),
        [(None, [D]), (0, [D] * 6), (10, [D, D, D]), (25, [D, D]), (50.001, [D])],
        ids=["never", "every reading", "10 s", "25 s", "more than all"],
    )
    def test_alert_repeat(
        self, opened: Opener, clock: Clock, repeat: Any, events: list[str]
    ) -> None:
        """The level's event is recorded again after that many seconds: never with None."""
        pm = opened(alert_repeat=repeat)
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "battery")
        for seconds in (0, 5, 10, 15, 20, 25):
            clock.now = NOW + seconds
            pm.log_power(meter.id, 3.5, 0.5, 15)
        assert alerts_of(pm, "d") == events

    def test_alert_repeat_of_each_level(self, opened: Opener) -> None:
        """Within the hysteresis the level's event goes on; above it none does."""
        pm = opened(alert_repeat=0)
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "battery")
        for charge in (5, 6, 8, 21, 23, 30):
            pm.log_power(meter.id, 3.5, 0.5, charge)
        assert alerts_of(pm, "d") == [L, L, D, D]

    def test_alert_repeat_survives_a_clock_set_back(self, opened: Opener, clock: Clock) -> None:
        """A clock that was years ahead does not silence the repetition for years."""
        pm = opened(alert_repeat=60)
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "battery")
        for seconds in (YEARS, 0, 30, 60):
            clock.now = NOW + seconds
            pm.log_power(meter.id, 3.5, 0.5, 15)
        assert alerts_of(pm, "d") == [D, D, D]

    def test_each_meter_has_an_alert_level_of_its_own(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Two batteries of one device alert independently."""
        second = any_pm.add_meter("dev-001", "battery")
        for meter_id in (battery_meter.id, second.id, battery_meter.id, second.id):
            any_pm.log_power(meter_id, 3.5, 0.5, 15)
        assert alerts_of(any_pm, "dev-001") == [D, D]

    def test_one_meter_by_several_kinds_of_text(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Any kind of text names the same meter: all readings are stored, an alert fires once."""
        labels = [Label(battery_meter.id), battery_meter.id, Label(battery_meter.id)]
        assert any_pm.log_many((labels[i % 3], 3.7, 0.5, 10.0, NOW + i) for i in range(9)) == 9
        assert len(any_pm.get_history(battery_meter.id)) == 9
        assert [event.type for event in any_pm.get_events("dev-001")] == ["discharge"]
        assert any_pm.check() == []


class TestEvents:
    """Recording events, listing and following them."""

    @pytest.mark.parametrize("kind", list(PowerEventType))
    @pytest.mark.usefixtures("device")
    def test_trigger_event(self, any_pm: PowerManager, kind: PowerEventType) -> None:
        """An event of any type is recorded now, and returned as stored."""
        event = any_pm.trigger_event("dev-001", kind.value, -1.5, "by hand")
        time = "2025-06-16T12:30:00.000000+00:00"
        assert dataclasses.astuple(event)[1:6] == ("dev-001", kind, -1.5, time, "by hand")
        assert event.meter_id is None
        assert (any_pm.get_events("dev-001"), type(event.type)) == ([event], PowerEventType)

    @pytest.mark.usefixtures("device")
    def test_trigger_event_defaults(self, any_pm: PowerManager) -> None:
        """An event has the value 0 and no note unless told."""
        event = any_pm.trigger_event("dev-001", PowerEventType.RESTORE)
        assert (event.value, event.note) == (0.0, None)

    @pytest.mark.usefixtures("device")
    def test_get_events_newest_first(self, any_pm: PowerManager, clock: Clock) -> None:
        """Events come newest first, the later recorded first where their times are equal."""
        for value, seconds in enumerate((0, 10, -10, 10)):
            clock.now = NOW + seconds
            any_pm.trigger_event("dev-001", "restore", value)
        assert [event.value for event in any_pm.get_events("dev-001")] == [3, 1, 0, 2]

    @pytest.mark.parametrize(("limit", "count"), [(0, 0), (1, 1), (50, 50), (60, 60), (10**30, 60)])
    def test_get_events_limit(self, opened: Opener, limit: int, count: int) -> None:
        """At most `limit` events are returned; without it, 50."""
        pm = opened()
        pm.register_device("d", "D")
        with pm.transaction():
            for _ in range(60):
                pm.trigger_event("d", "restore")
        assert (len(pm.get_events("d", limit)), len(pm.get_events("d"))) == (count, 50)

    @pytest.mark.usefixtures("device")
    def test_events_since(self, any_pm: PowerManager, clock: Clock) -> None:
        """A follower gets every device's events once, in order of recording, not of time."""
        any_pm.register_device("other", "Other")
        for value, (device_id, seconds) in enumerate(
            [("dev-001", 0), ("other", -100), ("dev-001", -YEARS)]
        ):
            clock.now = NOW + seconds
            any_pm.trigger_event(device_id, "restore", value)
        got = any_pm.events_since(0)
        assert [(event.device_id, event.value) for _, event in got] == [
            ("dev-001", 0),
            ("other", 1),
            ("dev-001", 2),
        ]
        numbers = [number for number, _ in got]
        assert numbers == sorted(set(numbers))
        assert any_pm.events_since(numbers[0], limit=1) == got[1:2]
        assert any_pm.events_since(numbers[-1]) == []

    @pytest.mark.parametrize("limit", [0, 2])
    @pytest.mark.usefixtures("device")
    def test_events_since_limit(self, any_pm: PowerManager, limit: int) -> None:
        """At most `limit` events are returned."""
        for _ in range(3):
            any_pm.trigger_event("dev-001", "restore")
        assert len(any_pm.events_since(0, limit=limit)) == limit


class TestMetersOfEvents:
    """PowerEvent.meter_id, and the alert level of a meter."""

    def test_alerts_name_their_meter(self, any_pm: PowerManager, device: DeviceRecord) -> None:
        """An event that a reading raised is about that reading's meter."""
        meters = [any_pm.add_meter(device.id, "battery", name=name).id for name in "ab"]
        any_pm.log_power(meters[1], 3.0, 1.0, 15.0)
        any_pm.log_many([(meters[0], 3.0, 1.0, 4.0)])
        found = [(event.type.value, event.meter_id) for _, event in any_pm.events_since(0)]
        assert found == [("discharge", meters[1]), ("low_battery", meters[0])]
        report = json.loads(any_pm.export_report(device.id))
        assert [event["meter_id"] for event in report["events"]] == meters

    def test_trigger_event(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """An event may name a meter of its device, and need not."""
        named = any_pm.trigger_event("dev-001", "charge_start", meter_id=battery_meter.id)
        plain = any_pm.trigger_event("dev-001", "restore")
        assert (named.meter_id, plain.meter_id) == (battery_meter.id, None)
        assert any_pm.get_events("dev-001") == [plain, named]

    def test_event_at_a_time(self, any_pm: PowerManager, device: DeviceRecord) -> None:
        """An event may have a time of its own; followers see it in the order of recording."""
        late = any_pm.trigger_event(device.id, "shutdown", timestamp=NOW - 3600)
        now = any_pm.trigger_event(device.id, "restore")
        assert (late.timestamp, now.timestamp) == (iso((NOW - 3600) * SECOND), iso(NOW * SECOND))
        later = any_pm.trigger_event(device.id, "shutdown", timestamp=iso((NOW - 7200) * SECOND))
        assert [event for _, event in any_pm.events_since(0)] == [late, now, later]
        assert any_pm.get_events(device.id) == [now, late, later]
        with pytest.raises(InvalidValue, match="timestamp"):
            any_pm.trigger_event(device.id, "restore", timestamp="noon")

    def test_other_meters_are_refused(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A meter that is not there, or of another device, is named and nothing is recorded."""
        any_pm.register_device("other", "Other")
        with pytest.raises(NotFound, match="'absent'"):
            any_pm.trigger_event("dev-001", "restore", meter_id="absent")
        with pytest.raises(InvalidValue, match=r"meter_id: .*'other'"):
            any_pm.trigger_event("other", "restore", meter_id=battery_meter.id)
        assert any_pm.events_since(0) == []

    def test_alert_level(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """A meter says at which level its alert stands."""
        levels = []
        for charge in (21.0, 20.0, 21.0, 5.0, 6.9, 7.0, 22.0):
            any_pm.log_power(battery_meter.id, 3.0, 1.0, charge)
            levels.append(any_pm.get_meter(battery_meter.id).alert_level)
        assert levels == ["none", "low", "low", "critical", "critical", "low", "none"]
        assert all(isinstance(level, power_manager.AlertLevel) for level in levels)

    def test_bad_alert_types(self) -> None:
        """What is no type of meter is refused."""
        for bad in (["fan"], "battery", 5):
            with pytest.raises(InvalidValue, match="alert_types"):
                PowerManager(":memory:", alert_types=bad)  # type: ignore[arg-type]


# --- Unknown values, and live readings at a time ----------------------------------------------


class TestUnknownValues:
    """Volts or amperes that are not known are None, and count as unknown, not as zero."""

    UNKNOWN = ((None, 1.5), (12.0, None), (None, None))

    @pytest.mark.parametrize(("voltage", "current"), UNKNOWN)
    def test_reading(
        self,
        any_pm: PowerManager,
        battery_meter: PowerMeter,
        voltage: float | None,
        current: float | None,
    ) -> None:
        """A reading keeps what is known, and has no wattage."""
        reading = any_pm.log_power(battery_meter.id, voltage, current, 81.0)
        assert (reading.voltage, reading.current_draw, reading.wattage, reading.charge_pct) == (
            voltage,
            current,
            None,
            81.0,
        )
        assert [*any_pm.iter_history(battery_meter.id)] == [reading]
        assert any_pm.get_history(battery_meter.id) == [reading] == any_pm.pending_readings()
        again = any_pm.log_many([(battery_meter.id, voltage, current, 80.0, NOW + 5)])
        assert again == 1
        assert history(any_pm, battery_meter.id)[1][1:] == (voltage, current, 80.0)

    @pytest.mark.parametrize(("voltage", "current"), UNKNOWN)
    def test_present_state(
        self,
        any_pm: PowerManager,
        battery_meter: PowerMeter,
        voltage: float | None,
        current: float | None,
    ) -> None:
        """The meter says that its power is not known; a missing value is 0 in its record."""
        new = any_pm.get_meter(battery_meter.id)
        assert (new.power_known, new.wattage) == (True, 0.0)
        any_pm.log_power(battery_meter.id, voltage, current, 81.0)
        meter = any_pm.get_meter(battery_meter.id)
        assert (meter.power_known, meter.wattage) == (False, None)
        assert (meter.voltage, meter.current_draw) == (voltage or 0.0, current or 0.0)
        assert any_pm.calculate_wattage(battery_meter.id) is None
        any_pm.log_power(battery_meter.id, 12.0, 1.5, 81.0)
        meter = any_pm.get_meter(battery_meter.id)
        assert (meter.power_known, meter.wattage) == (True, 18.0)

    def test_energy_of_the_neighbours(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """For energy the neighbours of a reading without watts are neighbours of each other."""
        rows = [(10.0, 1.0), (None, 1.0), (10.0, None), (20.0, 1.0)]
        start = NOW - 1800
        any_pm.log_many(
            (battery_meter.id, *row, 50.0, start + 300 * i) for i, row in enumerate(rows)
        )
        (hour,) = any_pm.get_statistics(battery_meter.id)
        assert (hour.reading_count, hour.avg_wattage) == (4, 15.0)
        assert (hour.min_wattage, hour.max_wattage) == (10.0, 20.0)
        assert hour.energy_out_wh == about(15.0 * 900 / 3600)

    @pytest.mark.parametrize("gap", [5400.0, 5401.0])
    def test_gap_between_the_neighbours(
        self, any_pm: PowerManager, battery_meter: PowerMeter, gap: float
    ) -> None:
        """A reading without watts in a gap does not bridge it."""
        for offset, volts in ((0.0, 10.0), (gap / 2, None), (gap, 10.0)):
            any_pm.log_power(battery_meter.id, volts, 1.0, 50.0, timestamp=NOW - 9000 + offset)
        expected = 15.0 if gap <= 5400 else 0.0
        assert any_pm.energy_totals(battery_meter.id).energy_out_wh == about(expected)

    def test_hours_without_watts(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """Where no reading of an hour or of a period has watts, the wattages are None."""
        any_pm.log_power(battery_meter.id, None, None, 40.0, timestamp=NOW - 60)
        any_pm.log_power(battery_meter.id, 12.0, None, 42.0, timestamp=NOW - 30)
        for bucket in ("hour", "day"):
            (row,) = any_pm.get_statistics(battery_meter.id, bucket=bucket)
            assert (row.reading_count, row.min_charge_pct, row.max_charge_pct) == (2, 40.0, 42.0)
            assert (row.avg_wattage, row.min_wattage, row.max_wattage) == (None, None, None)
            assert (row.energy_out_wh, row.energy_in_wh) == (0.0, 0.0)
        report = json.loads(any_pm.export_report("dev-001"))
        (part,) = report["meters"]
        assert (part["avg_wattage"], part["min_wattage"], part["max_wattage"]) == (None,) * 3
        assert (part["reading_count"], part["energy_wh"]) == (2, 0.0)
        assert report["totals"]["self_sufficiency_pct"] is None

    def test_budget(
        self, any_pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """Unknown watts count nowhere, are counted, and raise no alarm."""
        any_pm.update_device("dev-001", shutdown_threshold=50.0)
        any_pm.log_power(solar_meter.id, 18.0, 0.5)
        any_pm.log_power(battery_meter.id, 12.0, 1.0, 50.0)
        known = any_pm.power_budget_check(["dev-001"])["dev-001"]
        assert (known["unknown_power_count"], known["below_shutdown_threshold"]) == (0, True)
        any_pm.log_power(battery_meter.id, None, 1.0, 49.0)
        budget = any_pm.power_budget_check(["dev-001"])["dev-001"]
        assert (budget["unknown_power_count"], budget["below_shutdown_threshold"]) == (1, False)
        assert (budget["total_wattage"], budget["load_wattage"]) == (9.0, 0.0)
        assert (budget["estimated_runtime_hours"], budget["avg_charge_pct"]) == (None, 49.0)
        assert any_pm.estimate_runtime("dev-001") is None
        any_pm.update_meter(battery_meter.id, active=False)
        budget = any_pm.power_budget_check(["dev-001"])["dev-001"]
        assert (budget["unknown_power_count"], budget["below_shutdown_threshold"]) == (0, True)

    def test_alerts_go_by_charge(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """A gauge that knows charge alone raises alerts as others do."""
        for charge in (50.0, 20.0, 5.0):
            any_pm.log_power(battery_meter.id, None, None, charge)
        assert alerts_of(any_pm, "dev-001") == ["discharge", "low_battery"]
        assert any_pm.get_meter(battery_meter.id).state == PowerState.LOW

    def test_main_without_voltage(self, any_pm: PowerManager, device: DeviceRecord) -> None:
        """A main meter whose voltage is not known is in the state unknown."""
        meter = any_pm.add_meter(device.id, "main")
        any_pm.log_power(meter.id, None, 1.0)
        assert any_pm.get_meter(meter.id).state == PowerState.UNKNOWN

    @pytest.mark.parametrize("seed", range(10))
    def test_any_order(self, opened: Opener, seed: int) -> None:
        """Statistics are those of brute force, however the readings arrive."""
        chance = random.Random(seed)
        rows = random_rows(chance, 60, int(NOW - 80_000) * SECOND, unknown=0.5)
        pm = opened()
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "ups")
        for start in range(0, 60, 7):
            order = chance.sample(rows, len(rows))[: start + 7]
            pm.log_many(as_readings(meter.id, order))
        pm.log_many(as_readings(meter.id, rows))
        assert_statistics(pm, meter.id, buckets(rows, HOUR))
        assert_statistics(pm, meter.id, buckets(rows, DAY), "day")
        totals = pm.energy_totals(meter.id)
        everything_ = brute_force(rows)
        assert totals.energy_out_wh == about(everything_["energy_out_wh"])
        assert totals.energy_in_wh == about(everything_["energy_in_wh"])
        assert pm.check() == []


class TestLiveAtATime:
    """live=True beside a timestamp: a live reading that was taken then."""

    @pytest.mark.parametrize("many", [False, True])
    def test_is_present_whatever_its_time(
        self, any_pm: PowerManager, battery_meter: PowerMeter, many: bool
    ) -> None:
        """It becomes the present state and can raise an alert, behind newer readings too."""
        any_pm.log_power(battery_meter.id, 4.0, 1.0, 90.0)
        if many:
            row = (battery_meter.id, 3.0, 2.0, 15.0, NOW - 500)
            assert any_pm.log_many([row], live=True) == 1
        else:
            any_pm.log_power(battery_meter.id, 3.0, 2.0, 15.0, timestamp=NOW - 500, live=True)
        meter = any_pm.get_meter(battery_meter.id)
        assert (meter.voltage, meter.charge_pct) == (3.0, 15.0)
        assert meter.updated_at == iso((NOW - 500) * SECOND)
        (event,) = any_pm.get_events("dev-001")
        assert (event.type, event.timestamp) == ("discharge", iso((NOW - 500) * SECOND))

    def test_takes_the_next_free_microsecond(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Two live readings of one instant are both kept; a recorded one of it is a duplicate."""
        for volts in (1.0, 2.0):
            any_pm.log_power(battery_meter.id, volts, 1.0, timestamp=NOW, live=True)
        any_pm.log_many([(battery_meter.id, 3.0, 1.0, None, NOW)] * 2, live=True)
        any_pm.log_power(battery_meter.id, 9.0, 1.0, timestamp=NOW)
        start = NOW * SECOND
        assert [row[:2] for row in history(any_pm, battery_meter.id)] == [
            (iso(start + number), volts) for number, volts in enumerate((1.0, 2.0, 3.0, 3.0))
        ]

    def test_without_a_time(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """live=True alone is a live reading, now, as it always is."""
        clock.now = NOW + 5
        reading = any_pm.log_power(battery_meter.id, 1.0, 1.0, live=True)
        assert reading.timestamp == iso((NOW + 5) * SECOND)

    def test_default_is_recorded(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """Without live=True a reading with a time changes the present only if it is the newest."""
        any_pm.log_power(battery_meter.id, 4.0, 1.0, 90.0)
        any_pm.log_power(battery_meter.id, 3.0, 2.0, 15.0, timestamp=NOW - 500)
        assert any_pm.get_meter(battery_meter.id).voltage == 4.0
        assert alerts_of(any_pm, "dev-001") == []


class TestChargeThatIsMissing:
    """A reading without a charge takes that of the reading before it in time."""

    def test_late_reading(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """A late one takes it from its own past, not from the present."""
        for second, charge in ((-300, 90.0), (-100, 60.0)):
            any_pm.log_power(battery_meter.id, 3.0, 1.0, charge, timestamp=NOW + second)
        reading = any_pm.log_power(battery_meter.id, 3.0, 1.0, timestamp=NOW - 200)
        assert reading.charge_pct == 90.0
        first = any_pm.log_power(battery_meter.id, 3.0, 1.0, timestamp=NOW - 999)
        assert first.charge_pct == 100.0  # as a new meter has it
        live = any_pm.log_power(battery_meter.id, 3.0, 1.0)
        assert live.charge_pct == 60.0

    @pytest.mark.parametrize("seed", range(10))
    def test_order_within_a_call(self, opened: Opener, seed: int) -> None:
        """In one call the order of the rows makes no difference."""
        chance = random.Random(seed)
        rows = [
            (3.0, 1.0, chance.choice([None, None, float(number)]), NOW - 900 + number)
            for number in range(40)
        ]
        found = []
        for _ in range(2):
            pm = opened()
            pm.register_device("d", "D")
            meter = pm.add_meter("d", "ups")
            pm.log_power(meter.id, 3.0, 1.0, 77.0, timestamp=NOW - 880.5)
            pm.log_many((meter.id, *row) for row in rows)
            found.append(history(pm, meter.id))
            chance.shuffle(rows)
        assert found[0] == found[1]
        before = 100.0
        given = {row[3]: row[2] for row in rows} | {NOW - 880.5: 77.0}
        for (_, _, _, charge), second in zip(found[0], sorted(given), strict=True):
            known = given[second]
            before = before if known is None else known
            assert charge == before

    def test_across_calls_what_was_filled_in_stays(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A reading that comes later changes no stored one."""
        any_pm.log_power(battery_meter.id, 3.0, 1.0, 90.0, timestamp=NOW - 300)
        any_pm.log_power(battery_meter.id, 3.0, 1.0, timestamp=NOW - 100)
        any_pm.log_power(battery_meter.id, 3.0, 1.0, 60.0, timestamp=NOW - 200)
        charges = [row[3] for row in history(any_pm, battery_meter.id)]
        assert charges == [90.0, 60.0, 90.0]


class TestUnknownCharge:
    """An unknown charge is None: not 100 %, not 0 %, and not the last one for ever."""

    @pytest.fixture
    def pack(self, pm: PowerManager, device: DeviceRecord) -> PowerMeter:
        """A battery of 50 Wh whose charge is not measured."""
        return pm.add_meter(device.id, "battery", 50.0, "Pack", charge_pct=None)

    @pytest.mark.parametrize("charge", [None, 0, 40, Decimal("99.5"), 100.0], ids=str)
    def test_new_meter(self, any_pm: PowerManager, device: DeviceRecord, charge: Any) -> None:
        """A meter has the charge it was added with until a reading brings one."""
        meter = any_pm.add_meter(device.id, "battery", charge_pct=charge)
        expected = None if charge is None else float(charge)
        assert meter.charge_pct == expected
        assert any_pm.log_power(meter.id, 12.0, 1.0).charge_pct == expected
        early = any_pm.log_power(meter.id, 12.0, 1.0, timestamp=NOW - 60)
        assert early.charge_pct == expected
        any_pm.delete_readings(meter.id)
        assert any_pm.get_meter(meter.id).charge_pct == expected
        assert any_pm.check() == []

    def test_readings(self, any_pm: PowerManager, pack: PowerMeter) -> None:
        """Readings without a charge keep it unknown; one that brings a charge makes it known."""
        for number, charge in enumerate([None, None, 40.0, None]):
            reading = any_pm.log_power(pack.id, 12.0, 1.0, charge, timestamp=NOW + number)
            assert reading.charge_pct == any_pm.get_meter(pack.id).charge_pct
        assert [row[3] for row in history(any_pm, pack.id)] == [None, None, 40.0, 40.0]
        late = any_pm.log_power(pack.id, 12.0, 1.0, timestamp=NOW + 1.5)
        assert late.charge_pct is None
        assert any_pm.get_history(pack.id) == any_pm.pending_readings()
        assert any_pm.check() == []

    def test_many_readings(self, any_pm: PowerManager, pack: PowerMeter) -> None:
        """log_many takes them, in order or not, live or not."""
        rows = [(pack.id, 12.0, 1.0, None, NOW + number) for number in (3, 1, 2)]
        assert any_pm.log_many(rows) == 3
        assert any_pm.log_many([(pack.id, 12.0, 1.0)]) == 1
        assert [row[3] for row in history(any_pm, pack.id)] == [None] * 4
        assert any_pm.log_many(rows) == 0
        assert any_pm.check() == []

    def test_forgotten(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """From then on it is unknown until a reading brings one; what is stored stays."""
        any_pm.log_power(battery_meter.id, 12.0, 1.0, 80.0, timestamp=NOW - 60)
        meter = any_pm.update_meter(battery_meter.id, charge_pct=None)
        assert (meter.charge_pct, meter.state) == (None, PowerState.UNKNOWN)
        assert (meter.voltage, meter.updated_at) == (12.0, iso((NOW - 60) * SECOND))
        assert any_pm.check() == []
        for at in (None, NOW + 5):
            assert any_pm.log_power(battery_meter.id, 12.0, 1.0, timestamp=at).charge_pct is None
        assert any_pm.log_power(battery_meter.id, 12.0, 1.0, 79.0).charge_pct == 79.0
        assert any_pm.log_power(battery_meter.id, 12.0, 1.0).charge_pct == 79.0
        charges = [row[3] for row in history(any_pm, battery_meter.id)]
        assert charges == [80.0, None, 79.0, 79.0, None]
        assert any_pm.check() == []

    def test_late_readings_around_a_forgotten_charge(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A late reading from before it takes the charge of its own past, one from after none."""
        for second in (-300, -100):
            any_pm.log_power(battery_meter.id, 12.0, 1.0, 80.0, timestamp=NOW + second)
        any_pm.update_meter(battery_meter.id, charge_pct=None)
        any_pm.update_meter(battery_meter.id, charge_pct=None)  # there is nothing more to forget
        any_pm.log_power(battery_meter.id, 12.0, 1.0, timestamp=NOW)
        any_pm.update_meter(battery_meter.id, charge_pct=None)
        late = {second: NOW + second for second in (-400, -200, -50)}
        charges = {
            second: any_pm.log_power(battery_meter.id, 12.0, 1.0, timestamp=at).charge_pct
            for second, at in late.items()
        }
        assert charges == {-400: None, -200: 80.0, -50: None}
        assert any_pm.check() == []

    def test_deleting_does_not_bring_it_back(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Neither the readings before it nor a meter without readings have it again."""
        for second, charge in ((-200, 80.0), (-100, 70.0)):
            any_pm.log_power(battery_meter.id, 12.0, 1.0, charge, timestamp=NOW + second)
        any_pm.update_meter(battery_meter.id, charge_pct=None)
        any_pm.log_power(battery_meter.id, 12.0, 1.0, 60.0, timestamp=NOW)
        any_pm.delete_readings(battery_meter.id, since=NOW)
        meter = any_pm.get_meter(battery_meter.id)
        assert (meter.charge_pct, meter.updated_at) == (None, iso((NOW - 100) * SECOND))
        any_pm.delete_readings(battery_meter.id)
        assert any_pm.get_meter(battery_meter.id).charge_pct is None
        assert any_pm.log_power(battery_meter.id, 12.0, 1.0).charge_pct is None
        assert any_pm.check() == []

    def test_charge_that_comes_after_deleting(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """What comes later than all readings left is news, though earlier than what was deleted."""
        for second in (-300, -100):
            any_pm.log_power(battery_meter.id, 12.0, 1.0, 80.0, timestamp=NOW + second)
        any_pm.update_meter(battery_meter.id, charge_pct=None)
        any_pm.delete_readings(battery_meter.id, since=NOW - 200)
        assert any_pm.get_meter(battery_meter.id).charge_pct is None
        any_pm.log_power(battery_meter.id, 12.0, 1.0, 60.0, timestamp=NOW - 150)
        any_pm.log_many([(battery_meter.id, 12.0, 1.0, None, NOW - 90)])
        assert any_pm.log_power(battery_meter.id, 12.0, 1.0, timestamp=NOW - 50).charge_pct == 60.0
        assert [row[3] for row in history(any_pm, battery_meter.id)] == [80.0, 60.0, 60.0, 60.0]

    def test_live_and_recorded_in_one_call(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A live one takes the present charge though it is unknown, a recorded one its past's."""
        for second in (-300, -100):
            any_pm.log_power(battery_meter.id, 12.0, 1.0, 80.0, timestamp=NOW + second)
        any_pm.update_meter(battery_meter.id, charge_pct=None)
        clock.now = NOW - 200  # a clock that was set back
        live = (battery_meter.id, 12.0, 1.0)
        any_pm.log_many([live, (*live, None, NOW - 250), (*live, None, NOW - 150)])
        charges = [row[3] for row in history(any_pm, battery_meter.id)]
        assert charges == [80.0, 80.0, None, None, 80.0]

    def test_forgotten_before_any_reading(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A new meter's 100 % can be forgotten too."""
        assert any_pm.update_meter(battery_meter.id, charge_pct=None).charge_pct is None
        assert any_pm.log_power(battery_meter.id, 12.0, 1.0).charge_pct is None

    @pytest.mark.parametrize("charge", [0, 50.0, "None", False], ids=repr)
    def test_a_charge_comes_by_a_reading(
        self, any_pm: PowerManager, battery_meter: PowerMeter, charge: Any
    ) -> None:
        """update_meter() takes no number, and then changes nothing else either."""
        with pytest.raises(InvalidValue, match=r"charge_pct: expected None, because .*, got"):
            any_pm.update_meter(battery_meter.id, name="Other", charge_pct=charge)
        assert any_pm.get_meter(battery_meter.id) == battery_meter

    def test_alerts(self, opened: Opener, clock: Clock) -> None:
        """An unknown charge raises no alert, repeats none, and ends none."""
        pm = opened(alert_repeat=0)
        pm.register_device("d", "D")
        pack = pm.add_meter("d", "battery", charge_pct=None)
        pm.log_power(pack.id, 12.0, 1.0)
        assert (alerts_of(pm, "d"), pm.get_meter(pack.id).alert_level) == ([], "none")
        pm.log_power(pack.id, 12.0, 1.0, 15.0)
        pm.update_meter(pack.id, charge_pct=None)
        for _ in range(3):
            clock.now += 3600
            pm.log_power(pack.id, 12.0, 1.0)
        meter = pm.get_meter(pack.id)
        assert (alerts_of(pm, "d"), meter.alert_level) == (["discharge"], "low")
        pm.log_power(pack.id, 12.0, 1.0, 4.0)
        assert alerts_of(pm, "d") == ["discharge", "low_battery"]
        pm.log_power(pack.id, 12.0, 1.0, 80.0)
        assert pm.get_meter(pack.id).alert_level == "none"

    def test_alert_level_after_deleting(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """If the newest reading left has no charge, the level stays."""
        any_pm.update_meter(battery_meter.id, charge_pct=None)
        any_pm.log_power(battery_meter.id, 12.0, 1.0, timestamp=NOW - 60)
        any_pm.log_power(battery_meter.id, 12.0, 1.0, 10.0, timestamp=NOW)
        any_pm.delete_readings(battery_meter.id, since=NOW)
        meter = any_pm.get_meter(battery_meter.id)
        assert (meter.charge_pct, meter.alert_level) == (None, "low")
        assert any_pm.check() == []

    def test_runtime(self, any_pm: PowerManager, pack: PowerMeter) -> None:
        """A battery of unknown charge counts in no runtime; without another there is none."""
        any_pm.log_power(pack.id, 12.0, 1.0)
        assert any_pm.estimate_runtime("dev-001") is None
        other = any_pm.add_meter("dev-001", "battery", 10.0)
        any_pm.log_power(other.id, 10.0, 0.5, 50.0)
        assert any_pm.estimate_runtime("dev-001") == 1.0
        budget = any_pm.power_budget_check(["dev-001"])["dev-001"]
        assert (budget["estimated_runtime_hours"], budget["avg_charge_pct"]) == (1.0, 50.0)
        assert (budget["battery_count"], budget["states"]) == (2, ["unknown", "normal"])
        any_pm.update_meter(other.id, charge_pct=None)
        budget = any_pm.power_budget_check(["dev-001"])["dev-001"]
        assert (budget["estimated_runtime_hours"], budget["avg_charge_pct"]) == (None, None)
        assert budget["total_wattage"] == 17.0

    def test_statistics(self, any_pm: PowerManager, pack: PowerMeter) -> None:
        """It is neither the least nor the most charge; without any other there is none."""
        hour_start = NOW // 3600 * 3600 - 7200
        for number, charge in enumerate([None, None, 60.0, 40.0]):
            any_pm.log_power(pack.id, 12.0, 1.0, charge, timestamp=hour_start + 1200 * number)
        for bucket in ("hour", "day"):
            first, *_ = any_pm.get_statistics(pack.id, bucket=bucket)
            charges = (first.min_charge_pct, first.max_charge_pct)
            assert charges == ((60.0, 60.0) if bucket == "hour" else (40.0, 60.0))
        any_pm.delete_readings(pack.id, since=hour_start + 1)
        (hour,) = any_pm.get_statistics(pack.id)
        assert (hour.reading_count, hour.avg_wattage) == (1, 12.0)
        assert (hour.min_charge_pct, hour.max_charge_pct) == (None, None)
        (part,) = json.loads(any_pm.export_report("dev-001"))["meters"]
        assert (part["min_charge_pct"], part["max_charge_pct"]) == (None, None)
        assert part["current_state"] == "unknown"
        any_pm.prune(0)
        assert any_pm.check() == []

    def test_checksum_tells_unknown_from_zero(self, path: Path, opened: Opener) -> None:
        """check() finds an unknown charge that was made 0 behind our back, and the other way."""
        pm = opened(path)
        pm.register_device("d", "D")
        pack = pm.add_meter("d", "main", charge_pct=None)
        for charge in (None, 0.0, 5.0):
            pm.log_power(pack.id, 12.0, 1.0, charge)
        assert pm.check() == []
        for old, new in (("charge_pct IS NULL", "0"), ("charge_pct = 0", "NULL")):
            kept = fetch(path, f"SELECT timestamp FROM power_readings WHERE {old}")
            change = "UPDATE power_readings SET charge_pct = {} WHERE timestamp = {}"
            execute(path, change.format(new, *kept[0]))
            assert len(pm.check()) == 1
            execute(path, change.format("NULL" if new == "0" else "0", *kept[0]))
            assert pm.check() == []

    @pytest.mark.parametrize(
        "damage",
        [
            "first_charge_pct = 'x'",
            "first_charge_pct = -1",
            "forgotten_us = 'x'",
            "forgotten_us = -1e30",
            "charge_pct = NULL",
            "charge_pct = 101",
        ],
    )
    def test_damaged_values(self, path: Path, opened: Opener, damage: str) -> None:
        """check() finds what no call leaves."""
        filled(path)
        execute(path, f"UPDATE power_meters SET {damage}")
        assert len(opened(path).check()) >= 1

    def test_views(self, file_pm: PowerManager, path: Path, pack: PowerMeter) -> None:
        """The views for the sqlite3 shell show NULL."""
        file_pm.log_power(pack.id, 12.0, 1.0)
        assert fetch(path, "SELECT wattage, charge_pct FROM readings") == [(12.0, None)]
        assert fetch(path, "SELECT min_charge_pct, max_charge_pct FROM statistics") == [
            (None, None)
        ]

    def test_copies(self, file_pm: PowerManager, path: Path, pack: PowerMeter) -> None:
        """A backup, a prune and a restore keep it."""
        file_pm.log_power(pack.id, 12.0, 1.0, 50.0, timestamp=NOW - 7200)
        file_pm.update_meter(pack.id, charge_pct=None)
        file_pm.log_power(pack.id, 12.0, 1.0, timestamp=NOW - 3600)
        file_pm.log_power(pack.id, 12.0, 1.0, timestamp=NOW)
        file_pm.prune(0)
        before = everything(file_pm)
        backup = path.with_name("backup.db")
        file_pm.backup(backup)
        file_pm.log_power(pack.id, 12.0, 1.0, 30.0)
        file_pm.restore(backup)
        assert everything(file_pm) == before
        assert [row[3] for row in history(file_pm, pack.id)][-1] is None

    @pytest.mark.parametrize("seed", range(10))
    def test_chunks_in_any_order(
        self, opened: Opener, monkeypatch: pytest.MonkeyPatch, seed: int
    ) -> None:
        """In one call of several chunks the order of the rows makes no difference."""
        monkeypatch.setattr(power_manager, "_CHUNK_ROWS", 5)
        chance = random.Random(seed)
        rows = [
            (3.0, 1.0, chance.choice([None, None, None, float(number)]), NOW - 900 + number)
            for number in range(40)
        ]
        found = []
        for _ in range(2):
            pm = opened()
            pm.register_device("d", "D")
            meter = pm.add_meter("d", "ups", charge_pct=None)
            pm.log_power(meter.id, 3.0, 1.0, 77.0, timestamp=NOW - 880.5)
            pm.update_meter(meter.id, charge_pct=None)
            pm.log_many((meter.id, *row) for row in rows)
            assert pm.check() == []
            found.append(history(pm, meter.id))
            chance.shuffle(rows)
        assert found[0] == found[1]
        by_time = {at: charge for _, charge, at in [(row[0], row[2], row[3]) for row in rows]}
        expected: list[float | None] = []
        before: float | None = None
        for at in sorted(by_time | {NOW - 880.5: 77.0}):
            known = 77.0 if at == NOW - 880.5 else by_time[at]
            before = before if known is None else known
            expected.append(before)
            if at == NOW - 880.5:
                before = None  # forgotten: it goes to no later reading
        assert [row[3] for row in found[0]] == expected


# --- Runtime, statistics, budget and report ---------------------------------------------------


class TestRuntime:
    """Hours until the batteries are empty."""

    def test_estimate_runtime_of_all_batteries_together(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Batteries of known capacity count together, draining or not; others do not count."""
        charging, unknown, ups = (
            any_pm.add_meter("dev-001", kind, wh)
            for kind, wh in (("battery", 100), ("battery", 0), ("ups", 10))
        )
        any_pm.log_power(battery_meter.id, 10.0, 1.0, 80.0)
        any_pm.log_power(charging.id, 10.0, -0.5, 50.0)
        any_pm.log_power(unknown.id, 10.0, 9.0, 50.0)
        any_pm.log_power(ups.id, 10.0, 9.0, 50.0)
        assert any_pm.estimate_runtime("dev-001") == 18.0

    @pytest.mark.parametrize(
        ("capacity", "current"),
        [(50, 0.0), (50, -1.0), (0, 1.0)],
        ids=["idle", "charging", "no capacity"],
    )
    @pytest.mark.usefixtures("device")
    def test_estimate_runtime_none(
        self, any_pm: PowerManager, capacity: float, current: float
    ) -> None:
        """There is no estimate without a capacity, or while nothing drains."""
        any_pm.log_power(any_pm.add_meter("dev-001", "battery", capacity).id, 3.7, current, 80.0)
        assert any_pm.estimate_runtime("dev-001") is None

    def test_estimate_runtime_of_next_to_no_watts(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """What no number of hours can say is None, and the budget stays strict JSON."""
        any_pm.log_power(battery_meter.id, 1e-200, 1e-120)
        assert any_pm.estimate_runtime("dev-001") is None
        assert "Infinity" not in json.dumps(any_pm.power_budget_check(["dev-001"]))

    @pytest.mark.usefixtures("device")
    def test_estimate_runtime_without_battery(self, any_pm: PowerManager) -> None:
        """There is no estimate without a battery, or before its first reading."""
        assert any_pm.estimate_runtime("dev-001") is None
        any_pm.add_meter("dev-001", "battery", 50)
        assert any_pm.estimate_runtime("dev-001") is None

    @pytest.mark.parametrize(
        ("minutes", "hours"),
        [(None, 20.0), (0, 20.0), (1, 20.0), (1.001, 10.0), (2, 10.0), (2.001, 6.67), (1e9, 6.67)],
    )
    def test_estimate_runtime_window(
        self, any_pm: PowerManager, battery_meter: PowerMeter, minutes: Any, hours: float
    ) -> None:
        """With a window the watts are the mean of the readings in it, up to the latest one."""
        for age, watts in ((120, 10.0), (60, 6.0), (0, 2.0)):
            any_pm.log_power(battery_meter.id, 1.0, watts, 80.0, timestamp=NOW - age)
        assert any_pm.estimate_runtime("dev-001", window_minutes=minutes) == hours


class TestStatistics:
    """Statistics and reports are those of brute force, in any order of arrival."""

    @pytest.mark.parametrize("bucket", ["hour", "day"])
    @pytest.mark.parametrize("seed", range(8))
    def test_any_order_of_arrival(
        self, memory_pm: PowerManager, battery_meter: PowerMeter, seed: int, bucket: str
    ) -> None:
        """Shuffled, repeated, in pieces of any size: each bucket is that of the sorted readings."""
        chance = random.Random(seed)
        rows = random_rows(chance, 150, int(NOW - 4 * 86400) * SECOND, unknown=seed % 3 / 5)
        arriving = [*rows, *(row._replace(voltage=99.0) for row in chance.sample(rows, 20))]
        if seed % 2:
            chance.shuffle(arriving)
        kept: dict[int, Reading] = {}
        new = 0
        while arriving:
            size = chance.choice([1, 5, 40])
            piece = arriving[:size]
            arriving = arriving[size:]
            if size == 1:
                memory_pm.log_power(battery_meter.id, *piece[0][1:], timestamp=iso(piece[0].us))
                new += piece[0].us not in kept
            else:
                new += memory_pm.log_many(as_readings(battery_meter.id, piece))
            for row in piece:
                kept.setdefault(row.us, row)
        assert new == len(rows)
        expected = buckets(kept.values(), HOUR if bucket == "hour" else DAY)
        assert_statistics(memory_pm, battery_meter.id, expected, bucket)
        assert memory_pm.check() == []

    @pytest.mark.parametrize("seed", range(4))
    def test_report_of_any_window(
        self, memory_pm: PowerManager, battery_meter: PowerMeter, clock: Clock, seed: int
    ) -> None:
        """A window that starts anywhere, mostly inside an hour, is exact."""
        chance = random.Random(seed)
        rows = random_rows(chance, 120, int(NOW) * SECOND, unknown=seed % 2 / 5)
        memory_pm.log_many(as_readings(battery_meter.id, rows))
        clock.now = rows[-1].us // SECOND + 10
        for _ in range(40):
            row = chance.choice(rows)
            seconds = int(clock.now) - row.us // SECOND + chance.choice([0, 0, 1, -1, -1800, 1800])
            after = int(clock.now) * SECOND - seconds * SECOND
            if seconds > 0:
                assert meter_part(memory_pm, "dev-001", seconds / 86400) == near(
                    brute_force(rows, after + 1)
                )

    @pytest.mark.parametrize("max_gap", [0.0, 59.0, 600.0, 7200.0, 1e9])
    def test_max_gap(self, opened: Opener, max_gap: float) -> None:
        """Over a gap longer than max_gap nothing is booked; 0 books nothing at all."""
        pm = opened(max_gap=max_gap)
        rows = random_rows(random.Random(5), 80, int(NOW) * SECOND)
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "ups")
        pm.log_many(as_readings(meter.id, random.Random(6).sample(rows, len(rows))))
        assert meter_part(pm, "d", 1000) == near(brute_force(rows, max_gap=max_gap))
        assert pm.check() == []

    @pytest.mark.parametrize("seed", range(4))
    def test_window_over_a_long_gap(self, opened: Opener, clock: Clock, seed: int) -> None:
        """With a max_gap of hours, a pair astride the start of the window does not count."""
        chance = random.Random(seed)
        pm = opened(max_gap=4 * 3600)
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "main")
        rows = random_rows(chance, 60, int(NOW) * SECOND)
        pm.log_many(as_readings(meter.id, rows))
        clock.now = rows[-1].us // SECOND + 1
        for seconds in range(11, int(clock.now - NOW), 1111):
            after = (int(clock.now) - seconds) * SECOND
            assert meter_part(pm, "d", seconds / 86400) == near(
                brute_force(rows, after + 1, max_gap=4 * 3600)
            )

    def test_energy_of_a_late_reading(
        self, memory_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A late reading between two others replaces their trapezoid by the two new ones."""
        base = NOW - 1800
        for seconds, watts in ((0, 10.0), (1200, 10.0), (600, -10.0)):
            memory_pm.log_power(battery_meter.id, 1.0, watts, timestamp=base + seconds)
        (statistics,) = memory_pm.get_statistics(battery_meter.id)
        assert (statistics.energy_out_wh, statistics.energy_in_wh) == (0.0, 0.0)

    def test_energy_is_booked_to_the_hour_of_the_later(
        self, memory_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """The energy between two readings of different hours is in the second one's row."""
        for seconds in (-2400, 0):
            memory_pm.log_power(battery_meter.id, 1.0, 6.0, timestamp=NOW + seconds)
        assert [s.energy_out_wh for s in memory_pm.get_statistics(battery_meter.id)] == [0.0, 4.0]

    @pytest.mark.parametrize(
        ("days", "count"), [(0, 1), (0.5 / 24, 1), (0.51 / 24, 2), (1.5 / 24, 2), (7, 3)]
    )
    def test_days_of_statistics(
        self, memory_pm: PowerManager, battery_meter: PowerMeter, days: float, count: int
    ) -> None:
        """The hour in which the span starts is there whole; the default is 7 days."""
        for hours in (0, 1, 2, 24 * 8):
            memory_pm.log_power(battery_meter.id, 1.0, 6.0, timestamp=NOW - 3600 * hours)
        assert len(memory_pm.get_statistics(battery_meter.id, days=days)) == count
        assert len(memory_pm.get_statistics(battery_meter.id)) == 3

    def test_statistics_of_a_meter_without_readings(
        self, memory_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Empty buckets are left out."""
        assert memory_pm.get_statistics(battery_meter.id) == []

    def test_energy_uses_unrounded_wattage(
        self, memory_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Wattages too small to show still add up."""
        memory_pm.log_many(
            (battery_meter.id, 1.0, 0.00004, 50.0, NOW - 3000 + i) for i in range(3001)
        )
        assert meter_part(memory_pm, "dev-001", 1)["energy_out_wh"] == pytest.approx(
            0.00004 * 3000 / 3600, abs=1e-9
        )


class TestBudget:
    """The power budget of devices."""

    @pytest.mark.usefixtures("device")
    def test_power_budget_of_a_device_without_meters(self, any_pm: PowerManager) -> None:
        """Without meters the sums are 0, the charge unknown, and nothing reaches the device."""
        budget = any_pm.power_budget_check(iter(["dev-001"]))["dev-001"]
        expected: dict[str, Any] = {
            "total_wattage": 0.0,
            "avg_charge_pct": None,
            "states": [],
            "estimated_runtime_hours": None,
            "consumption_24h_wh": 0.0,
            "below_shutdown_threshold": True,
        }
        assert {key: budget[key] for key in expected} == expected

    def test_power_budget_of_nothing(self, any_pm: PowerManager) -> None:
        """No ids, no budgets."""
        assert any_pm.power_budget_check([]) == {}

    @pytest.mark.parametrize(("target", "within"), [(11.0, True), (10.999, False), (0, False)])
    def test_power_budget_target(self, any_pm: PowerManager, target: float, within: bool) -> None:
        """The consumption of the last 24 hours is held against the target; it is out less in.

        Beside a main the ups does not count: both measure the same watts.
        """
        any_pm.register_device("d", "D", 0.0, target)
        watts_by_age = {90000: 8.0, 88200: 8.0, 3600: 8.0, 1800: 8.0, 0: -8.0}
        for kind in MeterType:
            meter = any_pm.add_meter("d", kind)
            any_pm.log_many(
                (meter.id, 1.0, watts, 50.0, NOW - age) for age, watts in watts_by_age.items()
            )
        charging = any_pm.add_meter("d", "battery")
        any_pm.log_many((charging.id, 1.0, -2.0, 50.0, NOW - age) for age in (1800, 0))
        budget = any_pm.power_budget_check(["d"])["d"]
        assert (budget["energy_24h_wh"], budget["consumption_24h_wh"]) == (8.0, 11.0)
        assert (budget["target_wh"], budget["within_target"]) == (target, within)

    @pytest.mark.usefixtures("device")
    def test_power_budget_consumption_is_never_negative(self, any_pm: PowerManager) -> None:
        """A device that took in more than it gave out, as by a charger that is no meter, used 0."""
        meter = any_pm.add_meter("dev-001", "battery")
        any_pm.log_many((meter.id, 1.0, -2.0, 50.0, NOW - age) for age in (1800, 0))
        budget = any_pm.power_budget_check(["dev-001"])["dev-001"]
        assert (budget["energy_24h_wh"], budget["consumption_24h_wh"]) == (0.0, 0.0)

    def test_power_budget_ups_counts_without_a_main(self, any_pm: PowerManager) -> None:
        """Where a device has no main meter, its ups counts as load and as consumption."""
        any_pm.register_device("d", "D")
        meter = any_pm.add_meter("d", "ups")
        any_pm.log_many((meter.id, 1.0, 8.0, 50.0, NOW - age) for age in (1800, 0))
        budget = any_pm.power_budget_check(["d"])["d"]
        assert (budget["energy_24h_wh"], budget["consumption_24h_wh"]) == (4.0, 4.0)
        assert budget["load_wattage"] == 8.0

    @pytest.mark.parametrize("seed", range(3))
    def test_power_budget_energy_is_exact(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock, seed: int
    ) -> None:
        """The energy of the last 24 hours is that of brute force, from any minute of an hour on."""
        rows = random_rows(random.Random(seed), 100, int(NOW) * SECOND)
        any_pm.log_many(as_readings(battery_meter.id, rows))
        for seconds in range(0, 200_000, 20_011):
            clock.now = NOW + seconds
            after = int(clock.now - 86400) * SECOND
            day = brute_force(rows, after + 1)
            energy_out = day.get("energy_out_wh", 0.0)
            consumption = max(energy_out - day.get("energy_in_wh", 0.0), 0.0)
            budget = any_pm.power_budget_check(["dev-001"])["dev-001"]
            assert budget["energy_24h_wh"] == pytest.approx(energy_out, abs=1e-8)
            assert budget["consumption_24h_wh"] == pytest.approx(consumption, abs=1e-8)

    @pytest.mark.parametrize(("watts", "below"), [(2.999, True), (3.0, False)])
    def test_power_budget_shutdown_threshold(
        self, any_pm: PowerManager, battery_meter: PowerMeter, watts: float, below: bool
    ) -> None:
        """A device is below its threshold when less than that reaches it."""
        any_pm.log_power(battery_meter.id, 1.0, watts)
        budget = any_pm.power_budget_check(["dev-001"])["dev-001"]
        assert budget["below_shutdown_threshold"] is below

    def test_power_budget_makes_a_fixed_number_of_queries(
        self, connections: list[sqlite3.Connection], opened: Opener
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


class TestReport:
    """The report of a device."""

    def test_export_report_events(self, opened: Opener, clock: Clock) -> None:
        """The report counts the events of its period and holds the 20 newest, newest first."""
        pm = opened()
        pm.register_device("d", "D")
        for value in (*range(1, 25, 2), *range(0, 25, 2)):  # the clock jumps
            clock.now = NOW + value * 3600
            pm.trigger_event("d", "restore", value)
        report = json.loads(pm.export_report("d", days=22 / 24))
        assert (report["event_count"], report["period_days"]) == (22, 22 / 24)
        assert [event["value"] for event in report["events"]] == list(range(24, 4, -1))
        keys = ["id", "device_id", "type", "value", "timestamp", "note", "meter_id"]
        assert list(report["events"][0]) == keys

    def test_export_report_reads_the_clock_once(self, opened: Opener) -> None:
        """The window ends where generated_at says, also while the clock runs."""
        seconds = itertools.count(NOW)
        pm = opened(clock=lambda: next(seconds))
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "main")
        pm.log_power(meter.id, 1.0, 1.0)
        report = json.loads(pm.export_report("d", 1.5 / 86400))
        (part,) = report["meters"]
        assert (report["generated_at"], part["reading_count"]) == (iso(int(NOW + 1) * SECOND), 1)

    def test_export_report_default_period(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """The default period is 7 days; a reading just as old is outside."""
        for seconds in (0, 1):
            any_pm.log_power(battery_meter.id, 1.0, 1.0, timestamp=NOW - 7 * 86400 + seconds)
        report = json.loads(any_pm.export_report("dev-001"))
        assert (report["period_days"], report["meters"][0]["reading_count"]) == (7, 1)

    @pytest.mark.parametrize("days", [0.001, 0.25, 36500, Decimal("0.5"), 1e9], ids=repr)
    def test_export_report_of_any_days(
        self, any_pm: PowerManager, battery_meter: PowerMeter, days: Any
    ) -> None:
        """Every number of days that is accepted gives a report, and statistics."""
        any_pm.log_power(battery_meter.id, 1.0, 1.0, timestamp=NOW - 60)
        (part,) = json.loads(any_pm.export_report("dev-001", days))["meters"]
        assert part["reading_count"] == 1
        assert len(any_pm.get_statistics(battery_meter.id, days=days)) == 1

    def test_export_report_is_strict_json_of_any_text(self, any_pm: PowerManager) -> None:
        """Quotes, control characters and any script come back as they were."""
        name = 'a "quoted"\n\x1f name: Ünï 電池 \U0001f50b'
        any_pm.register_device(name, name)
        any_pm.trigger_event(name, "restore", 1.0, name)
        report = json.loads(any_pm.export_report(name), parse_constant=pytest.fail)
        assert (report["device_id"], report["device_name"]) == (name, name)
        assert report["events"][0]["note"] == name


class TestEnergyTotals:
    """energy_totals(): a meter's energy since its first reading."""

    def test_new_meter(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """Before the first reading it is nothing; an unknown meter is named."""
        expected = power_manager.EnergyTotals(battery_meter.id, 0.0, 0.0)
        assert any_pm.energy_totals(battery_meter.id) == expected
        with pytest.raises(NotFound, match="'absent'"):
            any_pm.energy_totals("absent")

    @pytest.mark.parametrize("seed", range(8))
    def test_over_prune_and_restore(
        self, opened: Opener, path: Path, clock: Clock, seed: int
    ) -> None:
        """It is that of brute force over all readings ever stored, pruned or restored."""
        chance = random.Random(seed)
        pm = opened(path, durability="normal")
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "battery")
        rows = random_rows(chance, 80, int(NOW - 100_000) * SECOND, unknown=0.1)
        backup = path.with_name("backup.db")
        for start in range(0, 80, 8):
            pm.log_many(as_readings(meter.id, rows[start : start + 8]))
            clock.now = rows[start + 7].us / SECOND
            pm.prune(chance.choice([0, 0.1, 1]))
            if start == 40:
                pm.backup(backup)
        pm.restore(backup)
        assert pm.log_many(as_readings(meter.id, rows[48:])) == 32
        expected = brute_force(rows)
        totals = pm.energy_totals(meter.id)
        assert totals.meter_id == meter.id
        assert totals.energy_out_wh == about(expected["energy_out_wh"])
        assert totals.energy_in_wh == about(expected["energy_in_wh"])
        assert min(totals.energy_out_wh, totals.energy_in_wh) >= 0.0


class TestConsumption:
    """What a device used: energy out less energy in, over the meters that count."""

    def log_hour(self, pm: PowerManager, meter_id: str, watts: float) -> None:
        """An hour of so many watts until now."""
        for minute in range(-60, 1, 30):
            pm.log_power(meter_id, abs(watts), math.copysign(1, watts), timestamp=NOW + 60 * minute)

    @pytest.mark.parametrize(
        ("meters", "consumption", "main", "sufficiency"),
        [
            ({"main": 50.0}, 50.0, 50.0, 0.0),
            ({"main": 50.0, "ups": 50.0}, 50.0, 50.0, 0.0),
            ({"ups": 50.0}, 50.0, 0.0, 0.0),
            ({"solar": 40.0, "battery": -30.0}, 10.0, 0.0, 100.0),
            ({"solar": 0.0, "battery": 10.0}, 10.0, 0.0, 100.0),
            ({"solar": 40.0, "main": 10.0}, 50.0, 10.0, 80.0),
            ({"solar": 40.0, "ups": 10.0}, 50.0, 0.0, 80.0),
            ({"solar": 40.0, "ups": 10.0, "main": 10.0}, 50.0, 10.0, 80.0),
            ({"solar": 40.0, "main": -15.0}, 25.0, -15.0, 100.0),
            ({"battery": -30.0}, 0.0, 0.0, None),
            ({"main": 30.0, "battery": -20.0}, 10.0, 30.0, 0.0),
            ({}, 0.0, 0.0, None),
        ],
        ids=str,
    )
    def test_of_meters(
        self,
        memory_pm: PowerManager,
        device: DeviceRecord,
        meters: dict[str, float],
        consumption: float,
        main: float,
        sufficiency: float | None,
    ) -> None:
        """Budget and report agree; a ups counts only without a main meter; never below 0."""
        for kind, watts in meters.items():
            self.log_hour(memory_pm, memory_pm.add_meter(device.id, kind).id, watts)
        budget = memory_pm.power_budget_check([device.id])[device.id]
        totals = json.loads(memory_pm.export_report(device.id, 1))["totals"]
        assert budget["consumption_24h_wh"] == about(consumption) == totals["consumption_wh"]
        assert totals["main_wh"] == about(main)
        assert totals["solar_wh"] == about(meters.get("solar", 0.0))
        assert totals["ups_wh"] == about(meters.get("ups", 0.0))
        assert totals["battery_out_wh"] == about(max(meters.get("battery", 0.0), 0.0))
        assert totals["battery_in_wh"] == about(max(-meters.get("battery", 0.0), 0.0))
        if sufficiency is None:
            assert totals["self_sufficiency_pct"] is None
        else:
            assert totals["self_sufficiency_pct"] == about(sufficiency)
        assert [*totals] == [
            "consumption_wh",
            "main_wh",
            "solar_wh",
            "battery_out_wh",
            "battery_in_wh",
            "ups_wh",
            "self_sufficiency_pct",
        ]

    @pytest.mark.parametrize(("target", "within"), [(None, None), (9.9, False), (10.0, True)])
    def test_target(
        self, any_pm: PowerManager, device: DeviceRecord, target: float | None, within: bool | None
    ) -> None:
        """The target goes by consumption, not by what the battery alone gave."""
        any_pm.update_device(device.id, target_wh=target)
        self.log_hour(any_pm, any_pm.add_meter(device.id, "solar").id, 40.0)
        self.log_hour(any_pm, any_pm.add_meter(device.id, "battery").id, -30.0)
        budget = any_pm.power_budget_check([device.id])[device.id]
        assert (budget["within_target"], budget["target_wh"]) == (within, target)
        assert budget["energy_24h_wh"] == 0.0

    @pytest.mark.parametrize("days", [0, -1, math.nan, math.inf, "x", None, True, 1e300])
    def test_days_of_a_report(self, any_pm: PowerManager, device: DeviceRecord, days: Any) -> None:
        """They must be a number of more than 0."""
        with pytest.raises(InvalidValue, match="days"):
            any_pm.export_report(device.id, days)


class TestPureFunctions:
    """The public functions that need no file."""

    def meter(self, kind: str, **values: Any) -> PowerMeter:
        """A meter of a type, by its name."""
        return PowerMeter(kind, "d", MeterType(kind), 12.0, 1.0, 0.0, 50.0, **values)

    def test_counted_meters(self) -> None:
        """All count, but a ups only where there is no main meter."""
        meters = {kind: self.meter(kind) for kind in ("main", "ups", "solar", "battery")}
        for names in itertools.chain.from_iterable(
            itertools.combinations(meters, count) for count in range(5)
        ):
            counted = power_manager.counted_meters([meters[name] for name in names])
            expected = [name for name in names if name != "ups" or "main" not in names]
            assert [meter.id for meter in counted] == expected

    def test_budget_and_report_are_those_of_the_methods(
        self, any_pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """A fleet that has meters and sums makes the same of them."""
        for second in (-1800, 0):
            any_pm.log_power(battery_meter.id, 12.0, -1.0, 60.0, timestamp=NOW + second)
            any_pm.log_power(solar_meter.id, 18.0, 1.0, timestamp=NOW + second)
        event = any_pm.trigger_event("dev-001", "restore", meter_id=solar_meter.id)
        device = any_pm.get_device("dev-001")
        sums = {
            battery_meter.id: power_manager.MeterSums(
                2, 2, -24.0, -12.0, -12.0, 60.0, 60.0, 0.0, 6.0
            ),
            solar_meter.id: power_manager.MeterSums(2, 2, 36.0, 18.0, 18.0, 100.0, 100.0, 9.0, 0.0),
        }
        meters = any_pm.list_meters()
        budget = power_manager.make_budget(device, meters, sums)
        assert budget == any_pm.power_budget_check(["dev-001"])["dev-001"]
        report = power_manager.make_report(
            device,
            meters,
            sums,
            days=1,
            generated_us=round(NOW) * SECOND,
            events=[event],
            event_count=1,
        )
        assert json.loads(json.dumps(report)) == json.loads(any_pm.export_report("dev-001", 1))

    def test_sums_default_to_nothing(self) -> None:
        """A device without sums has a budget and a report too."""
        device = DeviceRecord("d", "D", target_wh=5.0)
        assert power_manager.MeterSums() == (0, 0, 0.0, None, None, None, None, 0.0, 0.0)
        budget = power_manager.make_budget(device, [self.meter("main")], {})
        assert (budget["consumption_24h_wh"], budget["within_target"]) == (0.0, True)
        report = power_manager.make_report(
            device, [self.meter("main")], {}, days=7, generated_us=0, events=[], event_count=0
        )
        assert report["meters"] == [
            {"meter_id": "main", "name": None, "type": "main", "reading_count": 0}
        ]

    def test_times(self) -> None:
        """Microseconds and ISO text are inverses of each other over all times."""
        chance = random.Random(1)
        ends = [0, 1, 999_999, 7_289_654_400 * SECOND - 1]
        for us in ends + [chance.randrange(7_289_654_400 * SECOND) for _ in range(500)]:
            text = power_manager.from_microseconds(us)
            assert text == iso(us)
            assert power_manager.to_microseconds(text) == us
            assert power_manager.to_microseconds(datetime.fromisoformat(text)) == us

    @pytest.mark.parametrize(
        ("value", "us"),
        [
            (0, 0),
            (1.5, 1_500_000),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1970-01-01T00:00:01Z", SECOND),
            (datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), 0),
        ],
    )
    def test_to_microseconds(self, value: Any, us: int) -> None:
        """Aware datetimes, ISO text with an offset, and epoch seconds are times."""
        assert power_manager.to_microseconds(value) == us

    @pytest.mark.parametrize(
        "value", [-1, math.nan, "noon", "2025-06-16", "2025-06-16T12:30:00", None, True, 1e12]
    )
    def test_no_time(self, value: Any) -> None:
        """What is not a time is refused under the name it is given."""
        with pytest.raises(InvalidValue, match=r"^when: "):
            power_manager.to_microseconds(value, "when")

    def test_checks(self) -> None:
        """Each returns the value in one form, or refuses it by name and unit."""
        assert power_manager.check_text("n", "x") == "x"
        assert power_manager.check_number("n", 3, 0, 5, "W") == 3.0
        assert power_manager.check_count("n", 3) == 3
        assert power_manager.check_duration("n", 1.5, SECOND, "s") == 1_500_000
        assert list(power_manager.check_iterable("n", iter([1]))) == [1]
        for call in (
            lambda: power_manager.check_text("n", " "),
            lambda: power_manager.check_number("n", 6, 0, 5, "W"),
            lambda: power_manager.check_count("n", -1),
            lambda: power_manager.check_count("n", 1.0),
            lambda: power_manager.check_duration("n", -1, SECOND, "s"),
            lambda: power_manager.check_iterable("n", "text"),
        ):
            with pytest.raises(InvalidValue, match=r"^n: expected "):
                call()

    @pytest.mark.parametrize(
        ("value", "expected"), [(1 / 3, 0.333333333), (-1e-12, 0.0), (2.0, 2.0)]
    )
    def test_rounded(self, value: float, expected: float) -> None:
        """9 decimals, and never -0.0."""
        assert power_manager.rounded(value) == expected
        assert math.copysign(1, power_manager.rounded(value)) == 1

    def test_units(self) -> None:
        """The units of time in microseconds are public."""
        units = (power_manager.SECOND_US, power_manager.HOUR_US, power_manager.DAY_US)
        assert units == (SECOND, HOUR, DAY)


# --- Updating and deleting --------------------------------------------------------------------


DEVICE_CHANGES: list[dict[str, Any]] = [
    {"name": "Renamed"},
    {"shutdown_threshold": 9.0},
    {"target_wh": 5.0},
    {"target_wh": None},
    {"low_battery_threshold": 50.0},
    {"low_battery_threshold": None, "critical_battery_threshold": None},
    {"critical_battery_threshold": 10.0},
    {"name": "Renamed", "target_wh": 0.0},
    {},
]


class TestUpdating:
    """update_device() and update_meter() change what is given, and nothing else."""

    @pytest.mark.parametrize("changes", DEVICE_CHANGES, ids=str)
    def test_device(self, any_pm: PowerManager, changes: dict[str, Any]) -> None:
        """The record that is returned is the one that is stored."""
        before = any_pm.register_device(
            "d", "D", 4.0, 120.0, low_battery_threshold=30, critical_battery_threshold=7
        )
        updated = any_pm.update_device("d", **changes)
        assert updated == dataclasses.replace(before, **changes)
        assert any_pm.list_devices() == [updated] == [any_pm.get_device("d")]

    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({"name": ""}, "name"),
            ({"name": None}, "name"),
            ({"shutdown_threshold": -1}, "shutdown_threshold"),
            ({"target_wh": "much"}, "target_wh"),
            ({"low_battery_threshold": 7.0}, "low_battery_threshold|critical_battery_threshold"),
            ({"critical_battery_threshold": 40.0}, "critical_battery_threshold"),
        ],
    )
    def test_bad_device(self, any_pm: PowerManager, changes: dict[str, Any], name: str) -> None:
        """A bad value is refused by name, also against what is not given, and nothing changes."""
        before = any_pm.register_device(
            "d", "D", low_battery_threshold=30, critical_battery_threshold=7
        )
        with pytest.raises(InvalidValue, match=name):
            any_pm.update_device("d", **{"name": "Renamed", **changes})
        assert any_pm.get_device("d") == before
        with pytest.raises(NotFound, match="'absent'"):
            any_pm.update_device("absent", name="Renamed")

    def test_thresholds_count_at_once(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """The next reading is judged by the new thresholds."""
        any_pm.log_power(battery_meter.id, 3.0, 1.0, 45.0)
        assert any_pm.get_meter(battery_meter.id).state == PowerState.NORMAL
        any_pm.update_device("dev-001", low_battery_threshold=50.0)
        assert any_pm.get_meter(battery_meter.id).state == PowerState.LOW
        any_pm.log_power(battery_meter.id, 3.0, 1.0, 44.0)
        assert alerts_of(any_pm, "dev-001") == ["discharge"]

    @pytest.mark.parametrize(
        "changes",
        [
            {"name": "Renamed"},
            {"name": None},
            {"capacity_wh": 80.0},
            {"active": False},
            {"active": False, "capacity_wh": 0, "name": "x"},
            {},
        ],
        ids=str,
    )
    def test_meter(
        self, any_pm: PowerManager, battery_meter: PowerMeter, changes: dict[str, Any]
    ) -> None:
        """Present state, readings and statistics stay."""
        any_pm.log_power(battery_meter.id, 3.0, 1.0, 15.0)
        before = any_pm.get_meter(battery_meter.id)
        rows = history(any_pm, battery_meter.id)
        updated = any_pm.update_meter(battery_meter.id, **changes)
        assert updated == dataclasses.replace(before, **changes)
        assert any_pm.list_meters() == [updated]
        assert history(any_pm, battery_meter.id) == rows

    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({"name": ""}, "name"),
            ({"capacity_wh": -1.0}, "capacity_wh"),
            ({"capacity_wh": None}, "capacity_wh"),
            ({"active": 1}, "active"),
            ({"active": None}, "active"),
        ],
        ids=str,
    )
    def test_bad_meter(
        self, any_pm: PowerManager, battery_meter: PowerMeter, changes: dict[str, Any], name: str
    ) -> None:
        """A bad value is refused by name, and nothing changes."""
        with pytest.raises(InvalidValue, match=name):
            any_pm.update_meter(battery_meter.id, **{"name": "Renamed", **changes})
        assert any_pm.get_meter(battery_meter.id) == battery_meter
        with pytest.raises(NotFound, match="'absent'"):
            any_pm.update_meter("absent", name="Renamed")

    def test_only_by_keyword(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """New parameters are keyword-only."""
        with pytest.raises(TypeError):
            any_pm.update_meter(battery_meter.id, "Renamed")  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            any_pm.log_power(battery_meter.id, 1.0, 1.0, 50.0, NOW)  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            any_pm.trigger_event("dev-001", "restore", 0.0, None, None)  # type: ignore[call-arg]


class TestInactiveMeters:
    """An inactive meter counts in no present figure, until it measures again."""

    def test_present_figures(
        self, any_pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """Budget, states and runtime are those of the other meters; energies still count."""
        spare = any_pm.add_meter("dev-001", "battery", 500.0, "Spare")
        for meter_id, watts in ((battery_meter.id, 10.0), (spare.id, 2.0)):
            for second in (-1800, 0):
                any_pm.log_power(meter_id, watts, 1.0, 50.0, timestamp=NOW + second)
        with_both = any_pm.power_budget_check(["dev-001"])["dev-001"]
        any_pm.update_meter(spare.id, active=False)
        budget = any_pm.power_budget_check(["dev-001"])["dev-001"]
        assert (with_both["battery_count"], budget["battery_count"]) == (2, 1)
        assert (budget["total_wattage"], budget["load_wattage"]) == (10.0, 10.0)
        assert budget["states"] == ["normal", "charging"]
        assert budget["estimated_runtime_hours"] == 2.5 == any_pm.estimate_runtime("dev-001")
        for key in ("energy_24h_wh", "consumption_24h_wh"):
            assert budget[key] == with_both[key] == about(6.0)
        report = json.loads(any_pm.export_report("dev-001"))
        assert report["totals"]["consumption_wh"] == about(6.0)
        assert [meter["reading_count"] for meter in report["meters"]] == [2, 0, 2]
        assert [meter.active for meter in any_pm.list_meters()] == [True, True, False]

    def test_becomes_active_again(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """The next reading that becomes its present state makes it active; a late one does not."""
        any_pm.log_power(battery_meter.id, 3.0, 1.0)
        cases: list[tuple[bool, dict[str, Any]]] = [
            (False, {"timestamp": NOW - 500}),
            (True, {"timestamp": NOW + 500}),
            (True, {}),
            (True, {"timestamp": NOW - 700, "live": True}),
        ]
        for active, values in cases:
            any_pm.update_meter(battery_meter.id, active=False)
            any_pm.log_power(battery_meter.id, 3.0, 1.0, **values)
            assert any_pm.get_meter(battery_meter.id).active is active

    def test_inactive_main(self, any_pm: PowerManager, device: DeviceRecord) -> None:
        """A main meter that is inactive leaves a ups in line as the load that is measured."""
        main = any_pm.add_meter(device.id, "main")
        ups = any_pm.add_meter(device.id, "ups")
        for meter in (main, ups):
            any_pm.log_power(meter.id, 230.0, 1.0)
        assert any_pm.power_budget_check([device.id])[device.id]["load_wattage"] == 230.0
        any_pm.update_meter(main.id, active=False)
        budget = any_pm.power_budget_check([device.id])[device.id]
        assert (budget["load_wattage"], budget["total_wattage"]) == (230.0, 230.0)


class TestDeleting:
    """delete_readings(), delete_meter() and delete_device()."""

    START = NOW // 3600 * 3600  # the hour under way begins

    def log_hours(self, pm: PowerManager, meter_id: str, hours: int = 4) -> list[Reading]:
        """A reading every 10 minutes in the last hours, this one included."""
        first = int(self.START - 3600 * (hours - 1))
        rows = [
            Reading((first + 600 * i) * SECOND, 12.0, 1.0 + i / 7, float(90 - i))
            for i in range(6 * hours)
        ]
        pm.log_many(as_readings(meter_id, rows))
        return rows

    def test_all_readings_of_the_hour_under_way(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A range that begins inside that hour leaves neither statistics nor state of it."""
        rows = self.log_hours(any_pm, battery_meter.id, hours=2)[:6]
        any_pm.delete_readings(battery_meter.id)
        any_pm.log_many(as_readings(battery_meter.id, rows))
        before = any_pm.get_statistics(battery_meter.id, days=9999)
        any_pm.log_power(battery_meter.id, 3.0, 1.0, 4.0, timestamp=self.START + 600)
        assert any_pm.delete_readings(battery_meter.id, since=self.START + 300) == 1
        assert any_pm.get_statistics(battery_meter.id, days=9999) == before
        assert any_pm.get_meter(battery_meter.id).charge_pct == rows[-1].charge_pct
        assert any_pm.check() == []

    def test_all(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """Without a range all readings and statistics go, and the meter is as it was new."""
        rows = self.log_hours(any_pm, battery_meter.id)
        any_pm.log_power(battery_meter.id, 3.0, 1.0, 4.0, timestamp=NOW + 3600)
        assert any_pm.delete_readings(battery_meter.id) == len(rows) + 1
        assert any_pm.get_meter(battery_meter.id) == battery_meter
        assert history(any_pm, battery_meter.id) == []
        assert any_pm.get_statistics(battery_meter.id, days=9999) == []
        assert any_pm.energy_totals(battery_meter.id).energy_out_wh == 0.0
        assert alerts_of(any_pm, "dev-001") == ["low_battery"]
        assert any_pm.check() == []
        assert any_pm.delete_readings(battery_meter.id) == 0

    @pytest.mark.parametrize(
        ("since", "until"),
        [
            (None, -3600),
            (-7200, -3600),
            (-5000, -4000),
            (-9000, 600),
            (-3600, None),
            (-600, None),
            (0, 1),
            (99, 100),
        ],
    )
    def test_range(
        self,
        any_pm: PowerManager,
        battery_meter: PowerMeter,
        since: float | None,
        until: float | None,
    ) -> None:
        """From `since` on and before `until`; statistics are those of what is left."""
        rows = self.log_hours(any_pm, battery_meter.id)
        start = -math.inf if since is None else (self.START + since) * SECOND
        end = math.inf if until is None else (self.START + until) * SECOND
        left = [row for row in rows if not start <= row.us < end]
        count = any_pm.delete_readings(
            battery_meter.id,
            since=None if since is None else self.START + since,
            until=None if until is None else iso(end),
        )
        assert count == len(rows) - len(left)
        assert [row[1:] for row in history(any_pm, battery_meter.id)] == [row[1:] for row in left]
        assert_statistics(any_pm, battery_meter.id, buckets(left, HOUR))
        meter = any_pm.get_meter(battery_meter.id)
        newest = left[-1]
        assert (meter.updated_at, meter.current_draw, meter.charge_pct) == (
            iso(newest.us),
            newest.current_draw,
            newest.charge_pct,
        )
        assert any_pm.check() == []

    def test_again_after_deleting(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """Readings that were deleted may be stored again, and are exact."""
        rows = self.log_hours(any_pm, battery_meter.id)
        any_pm.delete_readings(battery_meter.id, since=self.START - 5000)
        assert any_pm.log_many(as_readings(battery_meter.id, rows)) > 0
        assert_statistics(any_pm, battery_meter.id, buckets(rows, HOUR))
        assert any_pm.check() == []

    def test_present_state_that_is_not_the_newest(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A present state of a clock that was set back stays, unless its own reading goes."""
        self.log_hours(any_pm, battery_meter.id)
        clock.now = self.START - 5000
        any_pm.log_power(battery_meter.id, 9.0, 1.0, 33.0)
        any_pm.delete_readings(battery_meter.id, since=self.START)
        assert any_pm.get_meter(battery_meter.id).voltage == 9.0
        any_pm.delete_readings(battery_meter.id, since=clock.now, until=clock.now + 1)
        meter = any_pm.get_meter(battery_meter.id)
        assert (meter.voltage, meter.updated_at) == (12.0, iso((self.START - 600) * SECOND))

    def test_closed_hours(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A closed hour wholly inside goes; a range that cuts one is refused, and names it."""
        rows = self.log_hours(any_pm, battery_meter.id)
        assert any_pm.prune((NOW - self.START) / 86400 + 1 / 24) > 0  # the first two hours
        before = everything(any_pm)
        closed = [iso((self.START - 3600 * hours) * SECOND) for hours in (3, 2)]
        for since, until, named in (
            (-10_800, -7000, closed[1]),
            (-9000, None, closed[0]),
            (None, -10_000, closed[0]),
            (-7199, -3600, closed[1]),
        ):
            with pytest.raises(InvalidValue, match=re.escape(named)):
                any_pm.delete_readings(
                    battery_meter.id,
                    since=None if since is None else self.START + since,
                    until=None if until is None else self.START + until,
                )
            assert everything(any_pm) == before
        any_pm.delete_readings(battery_meter.id, since=self.START - 10_800, until=self.START - 7200)
        found = [row.start for row in any_pm.get_statistics(battery_meter.id)]
        assert found == [iso((self.START - 3600 * hours) * SECOND) for hours in (2, 1, 0)]
        any_pm.delete_readings(battery_meter.id, until=self.START - 3600)
        left = [row for row in rows if row.us >= (self.START - 3600) * SECOND]
        assert_statistics(any_pm, battery_meter.id, buckets(left, HOUR))
        assert any_pm.log_many(as_readings(battery_meter.id, rows)) == 12  # no hour is closed now
        assert_statistics(any_pm, battery_meter.id, buckets(rows, HOUR))
        assert any_pm.check() == []

    def test_bad_ranges(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """A range that cannot be, or of no meter, is refused."""
        with pytest.raises(InvalidValue, match="since"):
            any_pm.delete_readings(battery_meter.id, since="noon")
        with pytest.raises(InvalidValue, match="until"):
            any_pm.delete_readings(battery_meter.id, since=NOW, until=NOW)
        with pytest.raises(NotFound, match="'absent'"):
            any_pm.delete_readings("absent")
        for call in (any_pm.delete_meter, any_pm.delete_device):
            with pytest.raises(NotFound, match="'absent'"):
                call("absent")
        assert any_pm.pending_deletions() == []

    def test_meter(
        self, any_pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """A meter goes with all that it has; its events and other meters stay."""
        self.log_hours(any_pm, solar_meter.id)
        other = history(any_pm, solar_meter.id)
        self.log_hours(any_pm, battery_meter.id)
        any_pm.log_power(battery_meter.id, 3.0, 1.0, 4.0, timestamp=NOW - 9000)
        any_pm.log_power(battery_meter.id, 3.0, 1.0, 4.0)
        any_pm.delete_meter(battery_meter.id)
        assert any_pm.list_meters() == [any_pm.get_meter(solar_meter.id)]
        assert history(any_pm, solar_meter.id) == other
        (event,) = any_pm.get_events("dev-001")
        assert (event.type, event.meter_id) == ("low_battery", battery_meter.id)
        for call in (any_pm.get_meter, any_pm.get_history, any_pm.energy_totals):
            with pytest.raises(NotFound):
                call(battery_meter.id)
        assert {r.meter_id for r in any_pm.pending_readings()} == {solar_meter.id}
        assert any_pm.check() == []

    def test_device(
        self, any_pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """A device goes with its meters and events; other devices stay."""
        any_pm.register_device("other", "Other")
        meter = any_pm.add_meter("other", "main")
        self.log_hours(any_pm, meter.id)
        kept = any_pm.trigger_event("other", "restore")
        self.log_hours(any_pm, battery_meter.id)
        any_pm.log_power(battery_meter.id, 3.0, 1.0, 4.0)
        any_pm.delete_device("dev-001")
        assert [device.id for device in any_pm.list_devices()] == ["other"]
        assert [left.id for left in any_pm.list_meters()] == [meter.id]
        assert [event for _, event in any_pm.events_since(0)] == [kept]
        assert any_pm.power_budget_check(["dev-001"])["dev-001"].keys() == {"error"}
        assert any_pm.check() == []
        any_pm.register_device("dev-001", "Again")
        assert any_pm.list_meters("dev-001") == []

    @pytest.mark.parametrize("seed", range(8))
    def test_random(self, opened: Opener, seed: int) -> None:
        """Whatever was deleted, statistics are those of brute force over what is left."""
        chance = random.Random(seed)
        pm = opened()
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "ups")
        rows = random_rows(chance, 50, int(NOW - 100_000) * SECOND, unknown=0.2)
        stored: dict[int, Reading] = {}
        for _ in range(12):
            some = chance.sample(rows, 12)
            pm.log_many(as_readings(meter.id, some))
            for row in some:
                stored.setdefault(row.us, row)
            start, end = sorted(chance.sample([row.us for row in rows], 2))
            if chance.random() < 0.6:
                gone = [us for us in stored if start <= us < end]
                assert pm.delete_readings(meter.id, since=iso(start), until=iso(end)) == len(gone)
                for us in gone:
                    del stored[us]
            assert_statistics(pm, meter.id, buckets(stored.values(), HOUR))
            assert pm.check() == []
            present = pm.get_meter(meter.id)
            assert present.updated_at == (iso(max(stored)) if stored else None)


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
DEVICE = "dev-001"
METER = "<the meter>"  # stands for the id of a battery meter
GIVEN_NUMBERS = [number for number in NUMBERS if number is not None]
GIVEN_TEXTS = [text for text in TEXTS if text is not None]
COUNTS = [-1, 1.5, math.nan, "5", True, None]
NOTES = ["", "a\0b", "a\ud800", 5, b"a", "x" * 10_001]
REGISTER = {"device_id": "d", "name": "D"}
ADD_METER = {"device_id": DEVICE, "meter_type": "main"}
LOG_POWER = {"meter_id": METER, "voltage": 1.0, "current": 1.0}
TRIGGER = {"device_id": DEVICE, "event_type": "restore"}
UPDATE_DEVICE = {"device_id": DEVICE}

BAD: list[tuple[str, dict[str, Any], str, list[Any]]] = [
    # method, good arguments, parameter, bad values for it
    ("register_device", REGISTER, "device_id", TEXTS),
    ("register_device", REGISTER, "name", TEXTS),
    ("register_device", REGISTER, "shutdown_threshold", [*NUMBERS, -1, -1e-9]),
    ("register_device", REGISTER, "target_wh", [*GIVEN_NUMBERS, -1]),
    ("register_device", REGISTER, "low_battery_threshold", ["5", True, math.nan, -1, 100.1]),
    (
        "register_device",
        REGISTER,
        "critical_battery_threshold",
        ["5", True, math.nan, -1, 100.1, 20.0, 50.0],
    ),
    ("update_device", {}, "device_id", TEXTS),
    ("update_device", UPDATE_DEVICE, "name", TEXTS),
    ("update_device", UPDATE_DEVICE, "shutdown_threshold", [*NUMBERS, -1]),
    ("update_device", UPDATE_DEVICE, "target_wh", [*GIVEN_NUMBERS, -1]),
    ("update_device", UPDATE_DEVICE, "low_battery_threshold", ["5", True, -1, 100.1, 5.0]),
    ("update_device", UPDATE_DEVICE, "critical_battery_threshold", ["5", True, -1, 100.1, 20.0]),
    ("delete_device", {}, "device_id", TEXTS),
    ("get_device", {}, "device_id", TEXTS),
    ("add_meter", {"meter_type": "main"}, "device_id", TEXTS),
    ("add_meter", {"device_id": DEVICE}, "meter_type", TYPES),
    ("add_meter", ADD_METER, "capacity_wh", [*NUMBERS, -1, -1e-9]),
    ("add_meter", ADD_METER, "name", GIVEN_TEXTS),
    ("add_meter", ADD_METER, "charge_pct", [*GIVEN_NUMBERS, -1, 100.1]),
    ("update_meter", {}, "meter_id", TEXTS),
    ("update_meter", {"meter_id": METER}, "name", GIVEN_TEXTS),
    ("update_meter", {"meter_id": METER}, "capacity_wh", [*NUMBERS, -1, -1e-9]),
    ("update_meter", {"meter_id": METER}, "active", [None, 1, 0, "yes", 2.0]),
    ("update_meter", {"meter_id": METER}, "charge_pct", [0, 50.0, "unknown", False]),
    ("delete_meter", {}, "meter_id", TEXTS),
    ("delete_readings", {}, "meter_id", TEXTS),
    ("delete_readings", {"meter_id": METER}, "since", TIMES),
    ("delete_readings", {"meter_id": METER}, "until", TIMES),
    ("get_meter", {}, "meter_id", TEXTS),
    ("list_meters", {}, "device_id", GIVEN_TEXTS),
    ("log_power", {"voltage": 1.0, "current": 1.0}, "meter_id", TEXTS),
    ("log_power", {"meter_id": METER, "current": 1.0}, "voltage", [*GIVEN_NUMBERS, 1.1e6, -1.1e6]),
    ("log_power", {"meter_id": METER, "voltage": 1.0}, "current", [*GIVEN_NUMBERS, 1.1e6, -1.1e6]),
    ("log_power", LOG_POWER, "charge_pct", GIVEN_NUMBERS),
    ("log_power", LOG_POWER, "timestamp", TIMES),
    ("log_many", {}, "readings", [None, "abc", b"abc", 5]),
    ("calculate_wattage", {}, "meter_id", TEXTS),
    ("energy_totals", {}, "meter_id", TEXTS),
    ("estimate_runtime", {}, "device_id", TEXTS),
    ("estimate_runtime", {"device_id": DEVICE}, "window_minutes", [*GIVEN_NUMBERS, -1]),
    ("get_history", {}, "meter_id", TEXTS),
    ("get_history", {"meter_id": METER}, "hours", [*NUMBERS, -1]),
    ("iter_history", {}, "meter_id", TEXTS),
    ("iter_history", {"meter_id": METER}, "since", TIMES),
    ("iter_history", {"meter_id": METER}, "until", TIMES),
    ("pending_readings", {}, "limit", COUNTS),
    ("pending_deletions", {}, "limit", COUNTS),
    ("acknowledge", {}, "items", [None, "abc", 5]),
    ("get_statistics", {}, "meter_id", TEXTS),
    ("get_statistics", {"meter_id": METER}, "days", [*NUMBERS, -1]),
    ("get_statistics", {"meter_id": METER}, "bucket", ["week", "", None, 5, []]),
    ("trigger_event", {"event_type": "restore"}, "device_id", TEXTS),
    ("trigger_event", {"device_id": DEVICE}, "event_type", TYPES),
    ("trigger_event", TRIGGER, "value", NUMBERS),
    ("trigger_event", TRIGGER, "note", NOTES),
    ("trigger_event", TRIGGER, "meter_id", GIVEN_TEXTS),
    ("get_events", {}, "device_id", TEXTS),
    ("get_events", {"device_id": DEVICE}, "limit", COUNTS),
    ("events_since", {}, "sequence", COUNTS),
    ("events_since", {"sequence": 0}, "limit", COUNTS),
    ("event_follower", {}, "name", TEXTS),
    ("power_budget_check", {}, "device_ids", ["dev-001", b"dev-001", None, 5]),
    ("export_report", {}, "device_id", TEXTS),
    ("export_report", {"device_id": DEVICE}, "days", [*NUMBERS, -1, 0, 0.0]),
    ("prune", {}, "keep_days", [*NUMBERS, -1, -0.001]),
    ("backup", {}, "path", ["", "a\0b", None, 5, b"a", True]),
    ("restore", {}, "path", ["", "a\0b", None, 5, b"a", True]),
]
BAD_SETTINGS: dict[str, list[Any]] = {
    "db_path": ["", None, 5, b"a.db", "a\0b"],
    "durability": ["FULL", "off", "", None, 2, []],
    "clock": [None, 5.0],
    "alert_repeat": [-1, math.nan, math.inf, "5", True],
    "alert_types": ["battery", None, 5, ["fan"], ["battery", None], b"ups"],
    "max_gap": [-1, math.nan, math.inf, "5", True, None],
}


class TestBadInput:
    """A value that a parameter may not have is refused by name, and nothing is stored."""

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
        memory_pm: PowerManager,
        battery_meter: PowerMeter,
        method: str,
        arguments: dict[str, Any],
        parameter: str,
        value: Any,
    ) -> None:
        """The error names the parameter, the value and what is accepted; nothing changes."""
        before = everything(memory_pm)
        good = {
            name: battery_meter.id if argument == METER else argument
            for name, argument in arguments.items()
        }
        with pytest.raises(InvalidValue, match=rf"^{parameter}: expected .+, got ") as caught:
            getattr(memory_pm, method)(**{**good, parameter: value})
        assert repr(value)[:70] in str(caught.value)
        assert everything(memory_pm) == before

    def test_truth_values_of_other_kinds(
        self, memory_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """An object that converts to a float but is no number, as a NumPy bool, is refused."""

        class Truth:
            def __float__(self) -> float:
                return 1.0

            def __index__(self) -> int:
                return 1

        truth: Any = Truth()
        for call in (
            lambda: memory_pm.log_power(battery_meter.id, truth, 1.0),
            lambda: memory_pm.log_power(battery_meter.id, 1.0, 1.0, timestamp=truth),
            lambda: memory_pm.get_events("dev-001", truth),
        ):
            with pytest.raises(InvalidValue, match="expected"):
                call()
        assert history(memory_pm, battery_meter.id) == []

    @pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["large", "small"])
    def test_numbers_of_too_many_digits(
        self, memory_pm: PowerManager, battery_meter: PowerMeter, value: int
    ) -> None:
        """What Python itself will not print is refused by its type."""
        with pytest.raises(InvalidValue, match=r"voltage: expected a number from .*, got a"):
            memory_pm.log_power(battery_meter.id, value, 1.0)
        with pytest.raises(
            InvalidValue, match="sequence: expected a whole number of at least 0, got a"
        ):
            memory_pm.events_since(-(10**5000))

    def test_upper_limits_are_named(self, memory_pm: PowerManager, device: DeviceRecord) -> None:
        """The message says up to where a quantity may go."""
        with pytest.raises(
            InvalidValue, match=r"capacity_wh: expected a number from 0 to 1e\+12 \(Wh\), got 11"
        ):
            memory_pm.add_meter(device.id, "main", 1.1e12)
        with pytest.raises(
            InvalidValue, match=r"value: expected a finite number \(in the event's unit\), got inf"
        ):
            memory_pm.trigger_event(device.id, "restore", math.inf)

    @pytest.mark.parametrize("value", [5, None, "", "x" * 201, b"d"], ids=ascii)
    @pytest.mark.usefixtures("device")
    def test_device_ids_of_a_budget(self, memory_pm: PowerManager, value: Any) -> None:
        """Each id of a budget check is checked."""
        with pytest.raises(
            InvalidValue, match=r"^device_id: expected text of 1 to 200 characters, got "
        ):
            memory_pm.power_budget_check(["dev-001", value])

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
    def test_clock_that_gives_no_time(
        self,
        memory_pm: PowerManager,
        battery_meter: PowerMeter,
        clock: Clock,
        method: str,
        now: Any,
    ) -> None:
        """The error names the clock."""
        arguments: dict[str, tuple[Any, ...]] = {
            "get_history": (battery_meter.id,),
            "prune": (1,),
            "log_power": (battery_meter.id, 1.0, 1.0),
            "trigger_event": (DEVICE, "restore"),
            "power_budget_check": ([DEVICE],),
        }
        clock.now = now
        with pytest.raises(InvalidValue, match=r"^clock: expected "):
            getattr(memory_pm, method)(*arguments.get(method, (DEVICE,)))

    @pytest.mark.parametrize(
        ("parameter", "value"),
        [
            pytest.param(parameter, value, id=f"{parameter}-{value!a}")
            for parameter, values in BAD_SETTINGS.items()
            for value in values
        ],
    )
    def test_refused_settings(self, parameter: str, value: Any) -> None:
        """A PowerManager is not made with a setting it cannot have."""
        with pytest.raises(InvalidValue, match=rf"^{parameter}: expected .+, got "):
            PowerManager(**{"db_path": ":memory:", parameter: value})

    @pytest.mark.parametrize(
        ("low", "critical", "named"),
        [(10, 10, "critical"), (10, 11, "critical"), (None, 20, "critical"), (3, None, "low")],
    )
    def test_thresholds_in_order(
        self, memory_pm: PowerManager, low: Any, critical: Any, named: str
    ) -> None:
        """The critical threshold must be below the low one, whichever of them is the constant."""
        with pytest.raises(
            InvalidValue, match=rf"^{named}_battery_threshold: expected (less|more) than .+, got "
        ):
            memory_pm.register_device(
                "d", "D", low_battery_threshold=low, critical_battery_threshold=critical
            )
        assert memory_pm.list_devices() == []

    def test_longest_texts(self, memory_pm: PowerManager) -> None:
        """Ids and names of 200 characters are kept, in any script."""
        text = "電" * 200
        memory_pm.register_device(text, text)
        assert memory_pm.get_device(text).name == text
        assert memory_pm.add_meter(text, "main", name=text).name == text

    @pytest.mark.parametrize("item", [5, "abc", None, ("a", 1.0)], ids=repr)
    def test_acknowledging_something_else(
        self, memory_pm: PowerManager, battery_meter: PowerMeter, item: Any
    ) -> None:
        """An item that is neither reading nor deletion is named, and the others go on waiting."""
        reading = memory_pm.log_power(battery_meter.id, 3.7, 0.5)
        with pytest.raises(InvalidValue, match=r"^items: expected PowerReading and Deletion") as e:
            memory_pm.acknowledge([reading, item])
        assert repr(item) in str(e.value)
        assert memory_pm.pending_readings() == [reading]

    @pytest.mark.usefixtures("device")
    def test_reading_without_any_value(
        self, memory_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A reading with neither volts nor amperes nor charge says nothing, and is refused."""
        with pytest.raises(InvalidValue, match=r"^voltage: expected a number .*, got None"):
            memory_pm.log_power(battery_meter.id, None, None)
        assert history(memory_pm, battery_meter.id) == []


# --- The outbox, followers, and what has changed ----------------------------------------------


class TestOutbox:
    """pending_readings(), pending_deletions() and acknowledge(): the file as an outbox."""

    @staticmethod
    def seconds(readings: Iterable[PowerReading]) -> list[int]:
        """When readings were, in seconds after NOW."""
        return [
            round(datetime.fromisoformat(reading.timestamp).timestamp() - NOW)
            for reading in readings
        ]

    def log(self, pm: PowerManager, meter_id: str, *seconds: int) -> None:
        """Store recorded readings at those seconds after NOW."""
        pm.log_many((meter_id, 3.7, 0.5, 80.0, NOW + second) for second in seconds)

    def test_take_send_acknowledge(
        self,
        any_pm: PowerManager,
        battery_meter: PowerMeter,
        solar_meter: PowerMeter,
        clock: Clock,
    ) -> None:
        """Every reading comes out until it is acknowledged, oldest first of each meter."""
        self.log(any_pm, battery_meter.id, 1, 2, 3)
        self.log(any_pm, solar_meter.id, 5, 6)
        every = [
            *any_pm.iter_history(battery_meter.id),
            *any_pm.iter_history(solar_meter.id),
        ]
        taken = any_pm.pending_readings()
        assert sorted(taken, key=every.index) == every
        assert len(any_pm.pending_readings(limit=4)) == 4 == len(any_pm.pending_readings(4))
        any_pm.acknowledge(every[:4])
        assert any_pm.pending_readings() == every[4:]
        any_pm.acknowledge(iter(every[4:]))
        any_pm.acknowledge(every[:1])  # an old list takes nothing back
        any_pm.acknowledge([])
        assert any_pm.pending_readings() == []
        clock.now = NOW + 9
        live = any_pm.log_power(battery_meter.id, 3.7, 0.5)
        assert any_pm.pending_readings(limit=0) == []
        assert any_pm.pending_readings() == [live]

    def test_one_late_reading_sends_one(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A late reading among many that were sent does not make those go again."""
        self.log(any_pm, battery_meter.id, *range(0, 1000, 2))
        any_pm.acknowledge(any_pm.pending_readings(1000))
        self.log(any_pm, battery_meter.id, 500, 502)  # there already: nothing new to send
        assert any_pm.pending_readings() == []
        self.log(any_pm, battery_meter.id, 501)
        assert self.seconds(any_pm.pending_readings()) == [501]
        self.log(any_pm, battery_meter.id, 1001)
        assert sorted(self.seconds(any_pm.pending_readings())) == [501, 1001]

    def test_device_that_once_booted_in_1970(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A clock that starts at 1970 after a boot sends nothing twice."""
        self.log(any_pm, battery_meter.id, *range(-100, 0))
        any_pm.acknowledge(any_pm.pending_readings())
        clock.now = 5.0
        booted = any_pm.log_power(battery_meter.id, 3.7, 0.5)
        clock.now = NOW
        live = any_pm.log_power(battery_meter.id, 3.7, 0.5)
        taken = any_pm.pending_readings()
        assert sorted(taken, key=lambda reading: reading.timestamp) == [booted, live]
        any_pm.acknowledge(taken)
        assert any_pm.pending_readings() == []

    def test_live_readings_come_first(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """Behind a clock that ran ahead, live readings do not queue behind a backfill."""
        clock.now = NOW + YEARS
        any_pm.log_power(battery_meter.id, 3.7, 0.5)
        any_pm.acknowledge(any_pm.pending_readings())
        self.log(any_pm, battery_meter.id, *range(-300, 0))  # a backfill
        for second in (5, 6):
            clock.now = NOW + second
            any_pm.log_power(battery_meter.id, 3.7, 0.5)
        assert self.seconds(any_pm.pending_readings(3)) == [5, 6, -300]

    def test_live_readings_of_other_meters_come_first(
        self,
        any_pm: PowerManager,
        battery_meter: PowerMeter,
        solar_meter: PowerMeter,
        clock: Clock,
    ) -> None:
        """One meter's backfill does not hold up what another meter measures now."""
        for meter in (battery_meter, solar_meter):
            self.log(any_pm, meter.id, 0)
        any_pm.acknowledge(any_pm.pending_readings())
        self.log(any_pm, battery_meter.id, *range(-300, 0))
        clock.now = NOW + 5
        live = any_pm.log_power(solar_meter.id, 18.0, 0.5)
        assert any_pm.pending_readings(2)[0] == live

    def test_meters_in_turn(self, any_pm: PowerManager, device: DeviceRecord) -> None:
        """A limit is shared: no meter with many readings keeps the others waiting."""
        meters = [any_pm.add_meter(device.id, "main").id for _ in range(3)]
        for meter_id, count in zip(meters, (200, 2, 50), strict=True):
            self.log(any_pm, meter_id, *range(count))
        taken = [reading.meter_id for reading in any_pm.pending_readings(30)]
        assert len(taken) == 30
        assert [taken.count(meter_id) > 1 for meter_id in meters] == [True] * 3
        any_pm.acknowledge(any_pm.pending_readings(1000))
        for meter_id in meters:
            self.log(any_pm, meter_id, *range(-40, 0))  # late ones take turns too
        taken = [reading.meter_id for reading in any_pm.pending_readings(30)]
        assert [taken.count(meter_id) for meter_id in meters] == [10, 10, 10]

    @pytest.mark.parametrize("second", [3, 6, -1])
    def test_reading_between_asking_and_acknowledging(
        self, any_pm: PowerManager, battery_meter: PowerMeter, second: int
    ) -> None:
        """What arrives while a list is on its way still comes, and nothing else does again."""
        self.log(any_pm, battery_meter.id, 1, 2, 4, 5)
        taken = any_pm.pending_readings()
        self.log(any_pm, battery_meter.id, second)
        any_pm.acknowledge(taken)
        assert self.seconds(any_pm.pending_readings()) == [second]

    def test_any_part_may_be_acknowledged(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """What was left out goes on waiting by itself."""
        self.log(any_pm, battery_meter.id, *range(10))
        taken = any_pm.pending_readings()
        any_pm.acknowledge(taken[3:9:2])
        assert sorted(self.seconds(any_pm.pending_readings())) == [0, 1, 2, 4, 6, 8, 9]
        any_pm.acknowledge(taken)
        assert any_pm.pending_readings() == []

    @pytest.mark.parametrize(
        ("since", "until", "again"),
        [
            (None, None, [1, 2, 3, 4]),
            (2, None, [2, 3, 4]),
            (None, 3, [1, 2]),
            (2, 4, [2, 3]),
            (5, None, []),
        ],
    )
    def test_sent_again(
        self,
        any_pm: PowerManager,
        battery_meter: PowerMeter,
        solar_meter: PowerMeter,
        since: int | None,
        until: int | None,
        again: list[int],
    ) -> None:
        """Acknowledged readings of a range wait once more, behind what has never been sent."""
        self.log(any_pm, battery_meter.id, 1, 2, 3, 4)
        self.log(any_pm, solar_meter.id, 1, 2, 3, 4)
        any_pm.acknowledge(any_pm.pending_readings())
        self.log(any_pm, battery_meter.id, 5)
        limits = {
            "since": None if since is None else NOW + since,
            "until": None if until is None else NOW + until,
        }
        for count in (len(again), 0):
            assert any_pm.resend(battery_meter.id, **limits) == count
            taken = any_pm.pending_readings()
            assert self.seconds(taken) == [5, *again]
            assert {reading.meter_id for reading in taken} == {battery_meter.id}
        any_pm.acknowledge(taken)
        assert any_pm.pending_readings() == []

    def test_sent_again_what_was_never_sent(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """It waits already, once; what is wrong is refused."""
        self.log(any_pm, battery_meter.id, 1, 2)
        assert any_pm.resend(battery_meter.id) == 0
        assert self.seconds(any_pm.pending_readings()) == [1, 2]
        with pytest.raises(NotFound, match="no meter has the id 'absent'"):
            any_pm.resend("absent")
        with pytest.raises(InvalidValue, match="until: expected a time after `since`"):
            any_pm.resend(battery_meter.id, since=NOW, until=NOW)

    def test_what_the_file_does_not_have(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Acknowledging readings, meters and deletions that are not there changes nothing."""
        self.log(any_pm, battery_meter.id, 1, 2)
        first, second = any_pm.pending_readings()
        later = dataclasses.replace(first, timestamp=iso((NOW + 9_000) * SECOND))
        elsewhere = dataclasses.replace(first, meter_id="absent")
        deletion = power_manager.Deletion(7, "readings", "dev-001", battery_meter.id)
        any_pm.acknowledge([later, elsewhere, deletion])
        assert any_pm.pending_readings() == [first, second]
        self.log(any_pm, battery_meter.id, 5_000, 9_000)
        assert self.seconds(any_pm.pending_readings()) == [1, 2, 5_000, 9_000]
        any_pm.delete_readings(battery_meter.id)
        assert len(any_pm.pending_deletions()) == 1

    @pytest.mark.parametrize("late", [False, True])
    def test_rolled_back(
        self, file_pm: PowerManager, battery_meter: PowerMeter, late: bool
    ) -> None:
        """What waits changes in the transaction of the reading, or of the acknowledgement."""
        self.log(file_pm, battery_meter.id, 1, 3)
        taken = file_pm.pending_readings()
        with pytest.raises(Broken):
            fail(file_pm, lambda: file_pm.acknowledge(taken))
        assert file_pm.pending_readings() == taken
        file_pm.acknowledge(taken)
        with pytest.raises(Broken):
            fail(file_pm, lambda: self.log(file_pm, battery_meter.id, 2 if late else 4))
        assert file_pm.pending_readings() == []

    def test_prune_takes_late_readings_along(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """What prune() took waits no more, in order or late."""
        self.log(any_pm, battery_meter.id, 1, 2, 3, 7200)
        any_pm.acknowledge(any_pm.pending_readings(1))
        self.log(any_pm, battery_meter.id, 0)
        clock.now = NOW + 7200
        assert any_pm.prune(0) == 3
        assert self.seconds(any_pm.pending_readings()) == [3, 7200]
        any_pm.acknowledge(any_pm.pending_readings())
        assert any_pm.pending_readings() == []

    def test_deleted_readings_wait_no_more(
        self, any_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """What was deleted is not sent, and an acknowledgement of it does no harm."""
        self.log(any_pm, battery_meter.id, 1, 2, 3)
        taken = any_pm.pending_readings()
        any_pm.acknowledge(taken)
        self.log(any_pm, battery_meter.id, -1, -2)
        any_pm.delete_readings(battery_meter.id, since=NOW - 1, until=NOW + 3)
        assert self.seconds(any_pm.pending_readings()) == [-2]
        any_pm.acknowledge(taken)
        self.log(any_pm, battery_meter.id, 2)  # measured again, after it was deleted
        assert sorted(self.seconds(any_pm.pending_readings())) == [-2, 2]

    def test_newest_readings_deleted(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """After the newest, acknowledged readings are gone, older ones that come are sent."""
        self.log(any_pm, battery_meter.id, 1, 50, 60)
        any_pm.acknowledge(any_pm.pending_readings())
        any_pm.delete_readings(battery_meter.id, since=NOW + 40)
        self.log(any_pm, battery_meter.id, 20, 30, 60, 70)
        assert sorted(self.seconds(any_pm.pending_readings())) == [20, 30, 60, 70]
        any_pm.acknowledge(any_pm.pending_readings())
        assert any_pm.pending_readings() == []

    def test_deletions(
        self, any_pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """Deletions wait in order until they are acknowledged, with what they were."""
        self.log(any_pm, battery_meter.id, 1, 2)
        any_pm.delete_readings(battery_meter.id, since=NOW + 2)
        any_pm.delete_readings(battery_meter.id, until=NOW)
        any_pm.delete_meter(solar_meter.id)
        any_pm.delete_device("dev-001")
        waiting = any_pm.pending_deletions()
        shown = [
            (deletion.device_id, deletion.meter_id, deletion.since, deletion.until, deletion.kind)
            for deletion in waiting
        ]
        assert shown == [
            ("dev-001", battery_meter.id, iso((NOW + 2) * SECOND), None, "readings"),
            ("dev-001", battery_meter.id, None, iso(NOW * SECOND), "readings"),
            ("dev-001", solar_meter.id, None, None, "meter"),
            ("dev-001", None, None, None, "device"),
        ]
        assert any_pm.pending_deletions(2) == waiting[:2] == any_pm.pending_deletions(limit=2)
        any_pm.acknowledge(waiting[:1] + waiting[2:3])
        assert any_pm.pending_deletions() == [waiting[1], waiting[3]]
        any_pm.acknowledge(waiting)
        assert any_pm.pending_deletions() == []
        any_pm.register_device("dev-002", "Other")
        any_pm.delete_device("dev-002")
        (last,) = any_pm.pending_deletions()
        assert last.sequence > waiting[-1].sequence  # no number is used twice

    def test_bad_input(self, any_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """What is no record is refused, and nothing is acknowledged."""
        self.log(any_pm, battery_meter.id, 1)
        (reading,) = any_pm.pending_readings()
        with pytest.raises(InvalidValue, match="items: expected PowerReading and Deletion"):
            any_pm.acknowledge([reading, 5])  # type: ignore[list-item]
        with pytest.raises(InvalidValue, match="items: expected an iterable"):
            any_pm.acknowledge(reading)  # type: ignore[arg-type]
        for call in (any_pm.pending_readings, any_pm.pending_deletions):
            with pytest.raises(
                InvalidValue, match="limit: expected a whole number of at least 0, got -1"
            ):
                call(-1)
        assert any_pm.pending_readings() == [reading]

    @pytest.mark.parametrize("seed", range(10))
    def test_everything_arrives_once_acknowledged(
        self, opened: Opener, clock: Clock, seed: int
    ) -> None:
        """Whatever the order, each reading waits exactly until it is acknowledged or deleted."""
        chance = random.Random(seed)
        pm = opened()
        pm.register_device("d", "D")
        meters = [pm.add_meter("d", "main").id for _ in range(3)]
        waiting: set[str] = set()
        stored: set[str] = set()
        taken: list[PowerReading] = []

        def refresh() -> None:
            nonlocal stored
            now_stored = {r.id for meter_id in meters for r in pm.iter_history(meter_id)}
            waiting.update(now_stored - stored)
            waiting.intersection_update(now_stored)
            stored = now_stored

        for _ in range(60):
            action = chance.randrange(9)
            meter_id = chance.choice(meters)
            if action <= 2:
                self.log(pm, meter_id, *(chance.randrange(-9000, 9000) for _ in range(4)))
            elif action == 8:
                start = NOW + chance.randrange(-9000, 9000)
                some = list(pm.iter_history(meter_id, since=start, until=start + 900))
                count = pm.resend(meter_id, since=start, until=start + 900)
                assert count == len({reading.id for reading in some} - waiting)
                waiting.update(reading.id for reading in some)
            elif action == 3:
                clock.now = NOW + chance.choice([-3 * 3600, 0, 5, 3600, 7200])
                pm.log_power(meter_id, 3.7, 0.5)
            elif action == 4:
                taken = pm.pending_readings(chance.choice([1, 3, 7, 500]))
                assert {r.id for r in taken} <= waiting
            elif action == 5:
                part = [reading for reading in taken if chance.random() < 0.7]
                pm.acknowledge(part)
                waiting.difference_update(r.id for r in part)
            elif action == 6 and chance.random() < 0.3:
                start = chance.randrange(-9000, 9000)
                with suppress(InvalidValue):  # a range that cuts a closed hour
                    pm.delete_readings(meter_id, since=NOW + start, until=NOW + start + 900)
            elif action == 7 and chance.random() < 0.3:
                pm.prune(chance.choice([0, 0.05]))
            refresh()
            everything_waiting = pm.pending_readings(10**6)
            assert len(everything_waiting) == len(waiting)
            assert {r.id for r in everything_waiting} == waiting
        while some := pm.pending_readings(7):
            pm.acknowledge(some)
            waiting.difference_update(r.id for r in some)
        assert waiting == set()
        assert pm.check() == []


class TestFollower:
    """event_follower(): a place in the events that is kept in the file."""

    def test_from_the_present_or_the_start(
        self, file_pm: PowerManager, device: DeviceRecord
    ) -> None:
        """A new follower starts behind the last event, or at the first."""
        first = file_pm.trigger_event(device.id, "restore")
        new = file_pm.event_follower("new")
        old = file_pm.event_follower("old", from_start=True)
        assert (new.name, new.cursor, new.pending()) == ("new", 1, [])
        assert (old.name, old.cursor, old.pending()) == ("old", 0, [(1, first)])
        second = file_pm.trigger_event(device.id, "shutdown")
        assert new.pending() == [(2, second)]
        assert old.pending() == [(1, first), (2, second)]
        assert old.pending(1) == [(1, first)] == old.pending(limit=1)
        assert old.pending(0) == []

    def test_place_is_kept(self, path: Path, clock: Clock) -> None:
        """Another object finds the place, whatever it says of the start; names are apart."""
        with PowerManager(path, clock=clock) as pm:
            pm.register_device("d", "D")
            for _ in range(3):
                pm.trigger_event("d", "restore")
            pm.event_follower("mail", from_start=True).acknowledge(2)
            pm.event_follower("mqtt", from_start=True)
        for from_start in (False, True):
            with PowerManager(path, clock=clock) as pm:
                mail = pm.event_follower("mail", from_start=from_start)
                assert (mail.cursor, [number for number, _ in mail.pending()]) == (2, [3])
                assert pm.event_follower("mqtt").cursor == 0

    def test_acknowledging(self, file_pm: PowerManager, device: DeviceRecord) -> None:
        """An older number changes nothing, and one that is not there yet skips no event."""
        for _ in range(3):
            file_pm.trigger_event(device.id, "restore")
        follower = file_pm.event_follower("f", from_start=True)
        follower.acknowledge(2)
        follower.acknowledge(1)
        assert follower.cursor == 2
        follower.acknowledge(10**9)
        assert follower.cursor == 3
        event = file_pm.trigger_event(device.id, "shutdown")
        assert follower.pending() == [(4, event)]

    def test_rolled_back(self, file_pm: PowerManager, device: DeviceRecord) -> None:
        """The place is part of the transaction in which it is acknowledged."""
        event = file_pm.trigger_event(device.id, "restore")
        follower = file_pm.event_follower("f", from_start=True)
        with pytest.raises(Broken):
            fail(file_pm, lambda: follower.acknowledge(1))
        assert follower.pending() == [(1, event)]

    def test_events_of_a_deleted_device(self, file_pm: PowerManager, device: DeviceRecord) -> None:
        """They come no more, and the numbers after them go on."""
        file_pm.register_device("other", "Other")
        follower = file_pm.event_follower("f")
        file_pm.trigger_event("other", "restore")
        file_pm.delete_device("other")
        assert follower.pending() == []
        event = file_pm.trigger_event(device.id, "restore")
        assert follower.pending() == [(2, event)]

    def test_bad_input(self, file_pm: PowerManager) -> None:
        """Names and numbers that cannot be are refused."""
        with pytest.raises(InvalidValue, match="name"):
            file_pm.event_follower("")
        follower = file_pm.event_follower("f")
        with pytest.raises(InvalidValue, match="limit"):
            follower.pending(-1)
        with pytest.raises(InvalidValue, match="sequence"):
            follower.acknowledge("1")  # type: ignore[arg-type]

    def test_last_sequence(self, any_pm: PowerManager, device: DeviceRecord) -> None:
        """It is the number of the last event, also where that event is gone."""
        assert any_pm.last_sequence() == 0
        for number in (1, 2):
            any_pm.trigger_event(device.id, "restore")
            assert any_pm.last_sequence() == number == any_pm.events_since(0)[-1][0]
        any_pm.delete_device(device.id)
        assert (any_pm.last_sequence(), any_pm.events_since(0)) == (2, [])


WRITES: dict[str, Callable[[PowerManager, str], object]] = {
    "log_power": lambda pm, meter_id: pm.log_power(meter_id, 3.0, 1.0),
    "log_many": lambda pm, meter_id: pm.log_many([(meter_id, 3.0, 1.0)]),
    "trigger_event": lambda pm, meter_id: pm.trigger_event("dev-001", "shutdown"),
    "update_meter": lambda pm, meter_id: pm.update_meter(meter_id, name="Renamed"),
    "delete_readings": lambda pm, meter_id: pm.delete_readings(meter_id),
    "register_device": lambda pm, meter_id: pm.register_device("new", "New"),
}


class TestDataVersion:
    """data_version() tells whether anything in the file has changed."""

    @pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
    def test_own_changes(self, pm: PowerManager, battery_meter: PowerMeter, write: Writer) -> None:
        """A call of this object that writes changes it; calls that read do not."""
        pm.log_power(battery_meter.id, 1.0, 1.0)
        before = pm.data_version()
        everything(pm)
        pm.export_report("dev-001")
        assert pm.data_version() == before
        write(pm, battery_meter.id)
        assert pm.data_version() != before

    def test_in_memory(self, memory_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """It is there in memory too."""
        before = memory_pm.data_version()
        assert memory_pm.data_version() == before
        memory_pm.log_power(battery_meter.id, 1.0, 1.0)
        assert memory_pm.data_version() != before

    def test_changes_of_others(
        self, file_pm: PowerManager, opened: Opener, path: Path, battery_meter: PowerMeter
    ) -> None:
        """Another object and another process change it, once they have committed."""
        seen = [file_pm.data_version()]
        other = opened(path)
        with other.transaction():
            other.log_power(battery_meter.id, 1.0, 1.0)
            assert file_pm.data_version() == seen[-1]
        seen.append(file_pm.data_version())
        code = """if True:
            import sys, power_manager
            with power_manager.PowerManager(sys.argv[1]) as pm:
                pm.log_power(sys.argv[2], 1.0, 1.0)
        """
        finished(process(code, path, battery_meter.id))
        seen.append(file_pm.data_version())
        execute(path, "UPDATE devices SET name = 'Other'")
        seen.append(file_pm.data_version())
        assert len(set(seen)) == 4

    def test_rolled_back(self, file_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """What was rolled back has changed nothing."""
        before = file_pm.data_version()
        with pytest.raises(Broken):
            fail(file_pm, lambda: file_pm.log_power(battery_meter.id, 1.0, 1.0))
        assert file_pm.data_version() == before

    def test_restored(self, file_pm: PowerManager, battery_meter: PowerMeter, path: Path) -> None:
        """restore() changes it, though the content may be the same."""
        backup = path.with_name("backup.db")
        file_pm.backup(backup)
        before = file_pm.data_version()
        file_pm.restore(backup)
        assert file_pm.data_version() != before


class TestFileAttributes:
    """max_gap and file_id of a file."""

    def test_max_gap(self, opened: Opener, path: Path) -> None:
        """It is 5,400 s unless the file was made with another."""
        assert opened().max_gap == 5400.0
        assert opened(path, max_gap=90).max_gap == 90.0 == opened(path).max_gap

    def test_hourly_log_with_jitter(self, opened: Opener) -> None:
        """An hourly log whose readings are a second early or late has no gaps."""
        pm = opened()
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "main")
        jitter = random.Random(1)
        start = NOW - 24 * 3600
        at = [start + 3600 * hour + jitter.choice([-1, 0, 1]) for hour in range(25)]
        pm.log_many((meter.id, 10.0, 1.0, 100.0, second) for second in at)
        assert pm.energy_totals(meter.id).energy_out_wh == about(10 * (at[-1] - at[0]) / 3600)

    def test_file_id(self, opened: Opener, path: Path) -> None:
        """Each file has its own, which stays."""
        pm = opened(path)
        file_id = pm.file_id
        assert isinstance(file_id, str)
        assert len(file_id) >= 16
        assert opened(path).file_id == file_id
        ids = {opened().file_id, opened(path.with_name("other.db")).file_id, file_id}
        assert len(ids) == 3

    @pytest.mark.parametrize("name", ["max_gap", "file_id"])
    def test_cannot_be_set(self, pm: PowerManager, name: str) -> None:
        """They are the file's, not the object's."""
        with pytest.raises(AttributeError):
            setattr(pm, name, 1)


# --- Transactions -----------------------------------------------------------------------------

WRITERS: dict[str, Writer] = {
    "register_device": lambda pm, meter_id: pm.register_device("new", "New"),
    "register_device again": lambda pm, meter_id: pm.register_device(
        DEVICE, "Renamed", 9.0, 9.0, low_battery_threshold=30
    ),
    "update_device": lambda pm, meter_id: pm.update_device(DEVICE, name="Renamed"),
    "delete_device": lambda pm, meter_id: pm.delete_device(DEVICE),
    "add_meter": lambda pm, meter_id: pm.add_meter(DEVICE, "ups", 5.0, "New"),
    "update_meter": lambda pm, meter_id: pm.update_meter(meter_id, name="Renamed"),
    "delete_meter": lambda pm, meter_id: pm.delete_meter(meter_id),
    "log_power live": lambda pm, meter_id: pm.log_power(meter_id, 3.0, 1.0, 15.0),
    "log_power recorded": lambda pm, meter_id: pm.log_power(
        meter_id, 3.0, 1.0, 1.0, timestamp=NOW - 550
    ),
    "log_power without volts": lambda pm, meter_id: pm.log_power(meter_id, None, 1.0, 4.0),
    "log_many": lambda pm, meter_id: pm.log_many(
        (meter_id, 3.0, 1.0, 4.0, NOW + i) for i in range(10)
    ),
    "delete_readings": lambda pm, meter_id: pm.delete_readings(meter_id, since=NOW - 1000),
    "acknowledge": lambda pm, meter_id: pm.acknowledge(pm.pending_readings(7)),
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
class TestTransactions:
    """Every writer is stored wholly or not at all, as a second PowerManager on the file sees it."""

    @pytest.fixture
    def meter_id(self, file_pm: PowerManager, battery_meter: PowerMeter) -> str:
        """A meter with a past and a present, so that every writer has something to change."""
        file_pm.log_many(
            (battery_meter.id, 3.7, 0.5, 60.0, NOW - 3000 + 100 * i) for i in range(30)
        )
        return battery_meter.id

    def test_writer_alone(
        self, file_pm: PowerManager, path: Path, meter_id: str, write: Writer
    ) -> None:
        """A writer alone is stored when it returns."""
        before = reread(path)
        write(file_pm, meter_id)
        assert before != reread(path) == everything(file_pm)

    def test_writer_inside_a_transaction(
        self, file_pm: PowerManager, path: Path, meter_id: str, write: Writer
    ) -> None:
        """Inside a transaction its owner sees it at once, and others after the commit."""
        before = reread(path)
        with file_pm.transaction() as same:
            write(same, meter_id)
            inside = everything(file_pm)
            assert (reread(path), same is file_pm) == (before, True)
        assert before != inside == reread(path)

    @pytest.mark.parametrize(
        "error", [Broken, KeyboardInterrupt, GeneratorExit, sqlite3.OperationalError]
    )
    def test_writer_rolled_back(
        self,
        file_pm: PowerManager,
        path: Path,
        meter_id: str,
        write: Writer,
        error: type[BaseException],
    ) -> None:
        """Any exception takes everything back and goes on as it is; the next call works."""
        before = reread(path)
        raised = error("mine")
        with pytest.raises(error) as caught:
            fail(file_pm, lambda: write(file_pm, meter_id), error=raised)
        assert caught.value is raised
        assert reread(path) == before == everything(file_pm)
        execute(path, "BEGIN IMMEDIATE; ROLLBACK")  # the file is not locked any more
        write(file_pm, meter_id)
        assert reread(path) != before

    def test_inner_transaction_fails(
        self, file_pm: PowerManager, path: Path, meter_id: str, write: Writer
    ) -> None:
        """A nested transaction that fails takes back its own calls only."""
        with file_pm.transaction():
            file_pm.register_device("kept", "Kept")
            outer = everything(file_pm)
            with pytest.raises(Broken):
                fail(file_pm, lambda: write(file_pm, meter_id))
            assert everything(file_pm) == outer
            file_pm.trigger_event("kept", "restore")
        after = reread(path)
        assert after["devices"] == outer["devices"]
        assert [event.device_id for _, event in after["events"]] == ["kept"]

    def test_outer_transaction_fails(
        self, file_pm: PowerManager, path: Path, meter_id: str, write: Writer
    ) -> None:
        """A nested transaction that has ended is rolled back with the one around it."""
        before = reread(path)

        def inner() -> None:
            with file_pm.transaction(), file_pm.transaction():
                write(file_pm, meter_id)

        with pytest.raises(Broken):
            fail(file_pm, inner)
        assert reread(path) == before


class TestConnection:
    """Another package keeps tables of its own in the file, in step with the library's."""

    def test_connection_with_calls_of_the_library(self, file_pm: PowerManager, path: Path) -> None:
        """Rows of such a table and calls of the library are one transaction, in any nesting."""
        with file_pm.connection() as conn:
            conn.execute("CREATE TABLE other_rows (id TEXT PRIMARY KEY)")
            conn.execute("INSERT INTO other_rows VALUES ('a')")
            file_pm.register_device("a", "A")

        def add(conn: sqlite3.Connection) -> None:
            conn.execute("INSERT INTO other_rows VALUES ('b')")
            file_pm.register_device("b", "B")
            raise Broken

        for around in (file_pm.connection, file_pm.transaction):
            with pytest.raises(Broken), around(), file_pm.connection() as conn:
                add(conn)
        ids = fetch(path, "SELECT id FROM other_rows UNION ALL SELECT id FROM devices")
        assert ids == [("a",), ("a",)]
        assert file_pm.check() == []

    @pytest.mark.parametrize(
        "error", [ValueError, TypeError, OSError, MemoryError, KeyboardInterrupt]
    )
    def test_errors_of_the_caller(self, file_pm: PowerManager, error: type[BaseException]) -> None:
        """The caller's own errors go on as they are."""
        raised = error("mine")
        with pytest.raises(error) as caught, file_pm.connection():
            raise raised
        assert caught.value is raised

    def test_errors_of_sqlite(self, file_pm: PowerManager, path: Path) -> None:
        """An error of SQLite's names the file, and takes the block back."""
        insert_device(file_pm, "a")
        with pytest.raises(StorageError, match=rf"^{path}: .*UNIQUE constraint failed: devices.id"):
            insert_device(file_pm, "a")
        assert len(file_pm.list_devices()) == 1


def innermost_savepoint(statements: Sequence[str]) -> str:
    """The name of the savepoint that was set last, from a trace of a connection's statements."""
    names = [text.split()[1] for text in statements if text.startswith("SAVEPOINT ")]
    return names[-1]


class TestTransactionEnds:
    """What is left when a transaction ends in an unusual way."""

    def test_refused_call_leaves_its_transaction_whole(
        self, file_pm: PowerManager, path: Path, battery_meter: PowerMeter
    ) -> None:
        """An error that the caller handles inside a transaction costs only its own call."""
        half_bad = [(battery_meter.id, 3.7, 0.5, 4.0), ("absent", 1, 1)]
        with file_pm.transaction():
            file_pm.register_device("a", "A")
            for bad in (
                lambda: file_pm.add_meter("absent", "main"),
                lambda: file_pm.log_many(half_bad),
            ):
                with pytest.raises(NotFound):
                    bad()
            file_pm.register_device("b", "B")
        stored = reread(path)
        assert [device.id for device in stored["devices"]] == ["dev-001", "a", "b"]
        assert (stored["readings"], stored["events"]) == ({battery_meter.id: []}, [])

    @pytest.mark.parametrize("where", ["memory", "file"])
    def test_close_inside_a_transaction(self, opened: Opener, path: Path, where: str) -> None:
        """Closing inside a transaction is refused; the transaction goes on."""
        pm = opened(path if where == "file" else ":memory:")
        with pm.transaction():
            pm.register_device("a", "A")
            with pytest.raises(PowerManagerError, match=r"close\(\) inside a transaction"):
                pm.close()
        assert len(pm.list_devices()) == 1

    def test_interrupt_between_begin_and_the_next_line(
        self, connections: list[sqlite3.Connection], opened: Opener
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
    def test_interrupt_after_the_release_of_a_savepoint(
        self, connections: list[sqlite3.Connection], opened: Opener, swallowed: bool
    ) -> None:
        """Nothing of the whole transaction is stored: its part cannot be told apart any more."""
        pm = opened()
        statements: list[str] = []
        connections[0].set_trace_callback(statements.append)

        def interrupted() -> None:
            with pm.connection() as conn:
                savepoint = innermost_savepoint(statements)
                pm.register_device("b", "B")
                conn.execute(f"RELEASE {savepoint}")
                raise KeyboardInterrupt

        def outer() -> None:
            with pm.transaction():
                pm.register_device("a", "A")
                if swallowed:
                    with suppress(KeyboardInterrupt):
                        interrupted()
                else:
                    interrupted()

        with pytest.raises(StorageError if swallowed else KeyboardInterrupt):
            outer()
        assert pm.list_devices() == []
        pm.register_device("c", "C")
        assert len(pm.list_devices()) == 1

    def test_savepoint_of_a_failed_inner_transaction_is_gone(
        self, connections: list[sqlite3.Connection], opened: Opener
    ) -> None:
        """A later block that is interrupted at its end does not roll back to it."""
        pm = opened()
        statements: list[str] = []
        connections[0].set_trace_callback(statements.append)

        def failing() -> None:
            with suppress(RuntimeError), pm.transaction():
                pm.register_device("a", "A")
                raise RuntimeError

        def interrupted() -> None:
            with suppress(KeyboardInterrupt), pm.connection() as conn:
                conn.execute(f"RELEASE {innermost_savepoint(statements)}")
                raise KeyboardInterrupt

        def outer() -> None:
            with pm.transaction():
                failing()
                pm.register_device("b", "B")
                interrupted()

        with pytest.raises(StorageError, match="ended"):
            outer()
        assert pm.list_devices() == []

    def test_wrong_call_says_what_is_wrong_and_nothing_else(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An object whose constructor failed has nothing to close, and says nothing at its end."""
        complaints: list[Any] = []
        monkeypatch.setattr(sys, "unraisablehook", complaints.append)
        with pytest.raises(TypeError):
            PowerManager("a.db", "full")  # type: ignore[call-arg]  # wrong on purpose
        gc.collect()
        assert complaints == []


# --- log_many and iter_history ----------------------------------------------------------------


class TestLogMany:
    """log_many streams, and stores all or nothing."""

    def test_returns_how_many_were_new(
        self, file_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Readings that are there, or come twice, are not counted; the first of two stays."""
        rows = [
            (battery_meter.id, volts, 1.0, 50.0, NOW - seconds)
            for volts, seconds in ((1, 10), (2, 20), (3, 10), (4, 20))
        ]
        assert (file_pm.log_many(rows), file_pm.log_many(rows), file_pm.log_many([])) == (2, 0, 0)
        assert [row[1] for row in history(file_pm, battery_meter.id)] == [2.0, 1.0]

    def test_rows_of_every_length(self, file_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """A row may leave out charge and timestamp, and may be any sequence."""
        file_pm.log_many(
            [
                (battery_meter.id, 1, 1),
                [battery_meter.id, 2, 1, 40],
                (battery_meter.id, 3, 1, None, NOW + 5),
            ]
        )
        got = [(row[1], row[3]) for row in history(file_pm, battery_meter.id)]
        assert got == [(1.0, 100.0), (2.0, 40.0), (3.0, 40.0)]

    @pytest.mark.parametrize("chunk", [1, 7, 10_000])
    def test_log_many_is_the_same_as_one_by_one(
        self, opened: Opener, monkeypatch: pytest.MonkeyPatch, chunk: int
    ) -> None:
        """States, alerts, statistics and history are those of log_power, for any size of chunk."""
        monkeypatch.setattr(power_manager, "_CHUNK_ROWS", chunk)
        chance = random.Random(3)
        rows = random_rows(chance, 60, int(NOW - 86400) * SECOND, unknown=0.2)
        chance.shuffle(rows)
        managers = [opened(alert_repeat=600), opened(alert_repeat=600)]
        meters: list[list[str]] = []
        for pm in managers:
            pm.register_device("d", "D")
            meters.append([pm.add_meter("d", "battery").id for _ in range(2)])
        together, one_by_one = managers
        for number, row in enumerate(rows):
            timestamp = None if number % 9 == 0 else iso(row.us)
            one_by_one.log_power(meters[1][number % 2], *row[1:], timestamp=timestamp)
        new = together.log_many(
            (meters[0][number % 2], *row[1:], None if number % 9 == 0 else iso(row.us))
            for number, row in enumerate(rows)
        )
        assert new == 60
        found = [everything(pm) for pm in managers]
        for pm in managers:
            assert pm.check() == []
        for this, other in zip(*meters, strict=True):
            assert found[0]["readings"][this] == found[1]["readings"][other]
            expected = [near(dataclasses.asdict(s)) for s in found[1]["statistics"][other]]
            got = [dataclasses.asdict(s) for s in found[0]["statistics"][this]]
            assert [{**s, "meter_id": other} for s in got] == expected
            assert (
                dataclasses.astuple(together.get_meter(this))[1:]
                == (dataclasses.astuple(one_by_one.get_meter(other))[1:])
            )
        events = [
            [(event.type, event.value, event.timestamp) for _, event in part["events"]]
            for part in found
        ]
        assert events[0] == events[1] != []

    def test_two_that_log_many_make_none_late(
        self, opened: Opener, path: Path, clock: Clock
    ) -> None:
        """A live reading pulled before another process stored one is stored after it, and later."""
        first = opened(path)
        second = opened(path)
        first.register_device("d", "D")
        meter = first.add_meter("d", "battery")

        def rows() -> Iterator[tuple[Any, ...]]:
            yield meter.id, 3.0, 1.0, 60.0
            clock.now += 2
            yield meter.id, 4.0, 1.0, 50.0
            clock.now += 1
            second.log_many([(meter.id, 5.0, 1.0, 40.0)])  # while the first one waits for the file
            clock.now += 1

        first.log_many(rows())
        got = [(row[1], row[0]) for row in history(first, meter.id)]
        assert got == [(3.0, iso(int((NOW + 2) * SECOND)))] + [
            (volts, iso(int((NOW + seconds) * SECOND))) for volts, seconds in ((5.0, 3), (4.0, 4))
        ]
        assert first.get_meter(meter.id).voltage == 4.0

    def test_log_many_keeps_the_time_of_pulling_while_the_clock_goes_back(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A clock that is set back between pulling and storing moves no reading."""

        def rows() -> Iterator[tuple[Any, ...]]:
            yield battery_meter.id, 3.0, 1.0, 60.0
            clock.now -= 3600

        file_pm.log_many(rows())
        assert [row[0] for row in history(file_pm, battery_meter.id)] == [iso(int(NOW * SECOND))]

    def test_log_many_streams(
        self, file_pm: PowerManager, battery_meter: PowerMeter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Memory does not grow with the number of readings."""
        monkeypatch.setattr(power_manager, "_CHUNK_ROWS", 500)
        peaks = []
        for number in (2_000, 10_000):
            tracemalloc.start()
            file_pm.log_many(
                (battery_meter.id, 3.7, 0.5, 80.0, NOW + number + i / 10) for i in range(number)
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.5 * peaks[0]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (("absent", 1, 1), "meter_id: no meter has the id 'absent'"),
            (("METER", "x", 1), "voltage: expected .*, got 'x'"),
            (("METER", 1, []), r"current: expected .*, got \[\]"),
            (("METER", None, None), "voltage: expected .*, got None"),
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
        file_pm: PowerManager,
        path: Path,
        battery_meter: PowerMeter,
        row: Any,
        message: str,
        before: int,
    ) -> None:
        """The first bad row is named by its number from 1, and not one row is stored."""
        stored = reread(path)
        if isinstance(row, tuple):
            row = tuple(battery_meter.id if value == "METER" else value for value in row)
        good = ((battery_meter.id, 3.7, 0.5, 3.0, NOW + i) for i in range(before))
        with pytest.raises((InvalidValue, NotFound), match=f"^row {before + 1}: {message}"):
            file_pm.log_many([*good, row])
        assert reread(path) == stored

    @pytest.mark.parametrize(
        "error",
        [Broken("mine"), sqlite3.IntegrityError("mine"), KeyboardInterrupt("mine")],
        ids=repr,
    )
    @pytest.mark.parametrize("chunk", [1, 10_000], ids=["later chunk", "first chunk"])
    def test_an_error_of_the_rows_goes_through(
        self,
        file_pm: PowerManager,
        path: Path,
        battery_meter: PowerMeter,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        chunk: int,
    ) -> None:
        """What the caller's own iterator raises comes out as it is, and nothing is stored."""
        monkeypatch.setattr(power_manager, "_CHUNK_ROWS", chunk)
        stored = reread(path)

        def rows() -> Iterator[tuple[Any, ...]]:
            yield battery_meter.id, 3.7, 0.5
            yield battery_meter.id, 3.7, 0.5
            raise error

        with pytest.raises(type(error)) as caught:
            file_pm.log_many(rows())
        assert caught.value is error
        assert reread(path) == stored

    def test_the_file_is_free_while_the_first_chunk_is_pulled(
        self, file_pm: PowerManager, path: Path, battery_meter: PowerMeter
    ) -> None:
        """Other processes and the rows themselves can write meanwhile, each call by itself."""

        def rows() -> Iterator[tuple[Any, ...]]:
            yield battery_meter.id, 3.7, 0.5
            execute(path, "BEGIN IMMEDIATE; ROLLBACK")
            file_pm.log_power(battery_meter.id, 3.7, 0.6)
            raise Broken

        with pytest.raises(Broken):
            file_pm.log_many(rows())
        assert [row[2] for row in history(file_pm, battery_meter.id)] == [0.6]

    @pytest.mark.parametrize("fails", [False, True])
    def test_calls_out_of_later_rows_join_the_transaction(
        self,
        file_pm: PowerManager,
        path: Path,
        battery_meter: PowerMeter,
        monkeypatch: pytest.MonkeyPatch,
        fails: bool,
    ) -> None:
        """From the second chunk on they are stored together with the rows, or not at all."""
        monkeypatch.setattr(power_manager, "_CHUNK_ROWS", 5)

        def rows() -> Iterator[tuple[Any, ...]]:
            for second in range(18):
                yield battery_meter.id, 3.7, 0.5, 50.0, NOW + second
                if second == 7:
                    file_pm.log_power(battery_meter.id, 3.7, 0.7, 4.0, timestamp=NOW + 7.5)
                    file_pm.log_many([(battery_meter.id, 3.7, 0.8, 50.0, NOW + 8)])
                    file_pm.register_device("e", "E")
                if second == 16 and fails:
                    raise Broken

        before = reread(path)
        if fails:
            with pytest.raises(Broken):
                file_pm.log_many(rows())
            assert reread(path) == before
            return
        assert file_pm.log_many(rows()) == 17
        after = reread(path)
        amperes = [row[2] for row in after["readings"][battery_meter.id]]
        assert amperes == [0.5] * 8 + [0.7, 0.8] + [0.5] * 9
        assert len(after["devices"]) == 2
        assert after["events"] == [(1, file_pm.get_events("dev-001")[0])]

    def test_rows_that_leave_a_transaction_open(
        self,
        file_pm: PowerManager,
        path: Path,
        battery_meter: PowerMeter,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """They are refused, with what is wrong, and nothing is stored."""
        monkeypatch.setattr(power_manager, "_CHUNK_ROWS", 5)

        def rows() -> Iterator[tuple[Any, ...]]:
            for second in range(7):
                yield battery_meter.id, 3.7, 0.5, 50.0, NOW + second
            with file_pm.transaction():
                for second in range(7, 20):
                    yield battery_meter.id, 3.7, 0.5, 50.0, NOW + second

        with pytest.raises(PowerManagerError, match=r"left a transaction\(\) open"):
            file_pm.log_many(rows())
        assert reread(path)["readings"] == {battery_meter.id: []}
        file_pm.log_power(battery_meter.id, 3.7, 0.5)
        assert len(reread(path)["readings"][battery_meter.id]) == 1

    def test_rows_may_come_out_of_the_same_file(
        self, file_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """An iterator may read, register and add meters meanwhile."""
        file_pm.log_many((battery_meter.id, 3.7, 0.5, 50.0, NOW + i) for i in range(10))
        target = file_pm.add_meter("dev-001", "battery")

        def rows() -> Iterator[tuple[Any, ...]]:
            for reading in file_pm.iter_history(battery_meter.id):
                file_pm.register_device(reading.timestamp, "D")
                yield (
                    target.id,
                    reading.voltage,
                    reading.current_draw,
                    reading.charge_pct,
                    reading.timestamp,
                )

        assert file_pm.log_many(rows()) == 10
        assert history(file_pm, target.id) == history(file_pm, battery_meter.id)
        assert len(file_pm.list_devices()) == 11


class TestRowsThatCall:
    """The rows of log_many may come out of code that calls the library meanwhile."""

    def test_prune_while_rows_are_pulled(self, opened: Opener) -> None:
        """Readings that are there are not counted twice, though they go and are given again."""
        pm = opened()
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "main")
        first = [(meter.id, 1.0, 1.0, 50.0, NOW - 7200 + 600 * i) for i in range(13)]
        pm.log_many(first)
        pruned: list[int] = []

        def again() -> Iterator[Any]:
            yield from first[:7]
            pruned.append(pm.prune(0))
            yield from first

        before = [row.reading_count for row in pm.get_statistics(meter.id)]
        assert pm.log_many(again()) == 0
        assert pruned[0] > 0
        assert [row.reading_count for row in pm.get_statistics(meter.id)] == before
        assert pm.check() == []

    @pytest.mark.parametrize("chunk", [1, 10_000])
    def test_thresholds_that_change_while_rows_are_pulled(
        self, opened: Opener, monkeypatch: pytest.MonkeyPatch, chunk: int
    ) -> None:
        """The thresholds that hold when a reading is stored decide about its alert."""
        monkeypatch.setattr(power_manager, "_CHUNK_ROWS", chunk)
        pm = opened()
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "battery")

        def rows() -> Iterator[Any]:
            yield meter.id, 1.0, 1.0, 60.0
            pm.register_device("d", "D", low_battery_threshold=50)
            yield meter.id, 1.0, 1.0, 40.0

        pm.log_many(rows())
        assert alerts_of(pm, "d") == ["discharge"]

    def test_live_rows_are_stamped_as_they_are_pulled(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """Each live reading has the time at which its row came."""

        def rows() -> Iterator[Any]:
            for minute in range(3):
                clock.now = NOW + 60 * minute
                yield battery_meter.id, 3.0, 1.0

        file_pm.log_many(rows())
        assert [row[0] for row in history(file_pm, battery_meter.id)] == [
            iso((NOW + 60 * minute) * SECOND) for minute in range(3)
        ]

    def test_transaction_around_the_rows(
        self, file_pm: PowerManager, path: Path, battery_meter: PowerMeter
    ) -> None:
        """Rows may come out of a transaction() that ends with them."""

        def rows() -> Iterator[Any]:
            with file_pm.transaction():
                file_pm.trigger_event("dev-001", "restore")
                yield battery_meter.id, 3.0, 1.0

        assert file_pm.log_many(rows()) == 1
        assert reread(path) == everything(file_pm)
        assert (len(history(file_pm, battery_meter.id)), alerts_of(file_pm, "dev-001")) == (
            1,
            ["restore"],
        )

    def test_log_many_out_of_log_many(
        self,
        file_pm: PowerManager,
        battery_meter: PowerMeter,
        solar_meter: PowerMeter,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The rows of one call may come out of another call, before and after the first chunk."""
        monkeypatch.setattr(power_manager, "_CHUNK_ROWS", 5)

        def rows() -> Iterator[Any]:
            for number in range(12):
                if number in (3, 8):
                    file_pm.log_many([(solar_meter.id, 18.0, 1.0, None, NOW + number)])
                yield battery_meter.id, 3.0, 1.0, 50.0, NOW - 100 + number

        assert file_pm.log_many(rows()) == 12
        assert len(history(file_pm, solar_meter.id)) == 2
        assert file_pm.check() == []


class TestIterHistory:
    """iter_history takes constant memory, and no call waits for it."""

    @pytest.fixture
    def meter_id(
        self, file_pm: PowerManager, battery_meter: PowerMeter, monkeypatch: pytest.MonkeyPatch
    ) -> str:
        """A meter with 25 readings a second apart, read in pages of 10."""
        monkeypatch.setattr(power_manager, "_PAGE_ROWS", 10)
        file_pm.log_many((battery_meter.id, 3.7, 0.5, i, NOW + i) for i in range(25))
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
    def test_since_and_until(
        self, file_pm: PowerManager, meter_id: str, since: Any, until: Any, charges: range
    ) -> None:
        """The readings from `since` on and before `until`, as get_history gives them."""
        got = list(file_pm.iter_history(meter_id, since=since, until=until))
        assert [reading.charge_pct for reading in got] == list(charges)
        assert got == [
            reading for reading in file_pm.get_history(meter_id) if reading.charge_pct in charges
        ]

    def test_pages_that_end_with_the_history(self, file_pm: PowerManager, meter_id: str) -> None:
        """A history of whole pages ends after them."""
        assert len(list(file_pm.iter_history(meter_id, until=NOW + 20))) == 20

    def test_iterating_holds_no_transaction(
        self, file_pm: PowerManager, path: Path, meter_id: str
    ) -> None:
        """Half-way, another connection can truncate the -wal; new readings are met."""
        readings = file_pm.iter_history(meter_id)
        for _ in range(5):
            next(readings)
        file_pm.log_power(meter_id, 3.7, 0.5, 99.0, timestamp=NOW + 100)
        (busy, *_), *_ = fetch(path, "PRAGMA wal_checkpoint(TRUNCATE)")
        assert (busy, Path(f"{path}-wal").stat().st_size) == (0, 0)
        assert [reading.charge_pct for reading in readings] == [*range(5, 25), 99]

    def test_constant_memory(
        self, file_pm: PowerManager, battery_meter: PowerMeter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Memory does not grow with the length of the history."""
        monkeypatch.setattr(power_manager, "_PAGE_ROWS", 500)
        file_pm.log_many((battery_meter.id, 3.7, 0.5, 50.0, NOW + i) for i in range(15_000))
        peaks = []
        for until in (NOW + 2_000, NOW + 15_000):
            tracemalloc.start()
            assert (
                sum(1 for _ in file_pm.iter_history(battery_meter.id, until=until)) == until - NOW
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.5 * peaks[0]


# --- Threads and processes --------------------------------------------------------------------


class Held:
    """Hold a connection inside whatever statement it runs next, in a thread of its own."""

    def __init__(self, connection: sqlite3.Connection, call: Callable[[], object]) -> None:
        self._inside = threading.Event()
        self._go_on = threading.Event()
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


class TestThreads:
    """One PowerManager may be shared by threads."""

    def test_many_writers_and_readers(
        self, file_pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """Readings from many threads are all there, and reports meanwhile are whole."""

        def write(meter_id: str) -> None:
            for _ in range(50):
                file_pm.log_power(meter_id, 1.0, 1.0, 15.0)

        def report() -> None:
            for _ in range(30):
                part = meter_part(file_pm, "dev-001", 7)
                assert part["reading_count"] == 0 or part["avg_wattage"] == 1.0
                file_pm.power_budget_check(["dev-001"])

        in_threads(
            lambda: write(battery_meter.id),
            lambda: write(solar_meter.id),
            lambda: write(battery_meter.id),
            report,
            report,
        )
        assert [len(history(file_pm, m.id)) for m in (battery_meter, solar_meter)] == [100, 50]
        assert (alerts_of(file_pm, "dev-001"), file_pm.check()) == (["discharge"], [])

    def test_threads_share_a_database_in_memory(
        self, memory_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """A database in memory may be shared too."""

        def work() -> None:
            for _ in range(30):
                memory_pm.log_power(battery_meter.id, 1.0, 1.0)
                memory_pm.export_report("dev-001")

        in_threads(work, work, work, work)
        assert len(history(memory_pm, battery_meter.id)) == 120

    @pytest.mark.parametrize("call", ["export_report", "power_budget_check"])
    def test_log_power_does_not_wait_for_a_report(
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
        pm = opened(path)
        other = opened(path)
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
        """A report that is under way when another thread closes the file is finished."""
        pm = opened(path)
        pm.register_device("d", "D")
        pm.export_report("d")
        with Held(connections[-1], lambda: pm.export_report("d")) as held:
            pm.close()
        assert json.loads(str(held.result[0]))["device_id"] == "d"
        assert_closed(connections)

    def test_a_transaction_is_seen_by_its_own_thread_only(
        self, file_pm: PowerManager, device: DeviceRecord
    ) -> None:
        """Another thread reads what is committed, and its writes come after."""
        seen: list[object] = []

        def other() -> None:
            seen.append(len(file_pm.list_devices()))
            started.set()
            file_pm.register_device("second", "Second")

        started = threading.Event()
        thread = threading.Thread(target=other)
        with file_pm.transaction():
            file_pm.register_device("first", "First")
            thread.start()
            assert started.wait(30)
            seen.append(len(file_pm.list_devices()))
        thread.join(30)
        assert seen == [1, 2]
        assert [d.id for d in file_pm.list_devices()] == [device.id, "first", "second"]


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


class TestProcesses:
    """Any number of processes may have the file open."""

    def test_several_writers(
        self, file_pm: PowerManager, path: Path, battery_meter: PowerMeter
    ) -> None:
        """Readings of several processes are all there, with one alert for all of them."""
        at_once([process(WRITE_50, path, battery_meter.id) for _ in range(4)])
        assert len(history(file_pm, battery_meter.id)) == 200
        assert (alerts_of(file_pm, "dev-001"), file_pm.check()) == (["discharge"], [])

    def test_creators_racing(self, tmp_path: Path) -> None:
        """Processes that make the same file at once all succeed."""
        for number in range(2):
            at_once([process(CREATE, tmp_path / f"{number}.db", name) for name in "abcd"])
            with PowerManager(tmp_path / f"{number}.db") as pm:
                assert sorted(device.id for device in pm.list_devices()) == ["a", "b", "c", "d"]
                assert pm.check() == []

    def test_followers_see_other_processes(
        self, file_pm: PowerManager, path: Path, battery_meter: PowerMeter
    ) -> None:
        """An event recorded by another process is there for events_since."""
        finished(process(WRITE_50, path, battery_meter.id))
        assert types_of(event for _, event in file_pm.events_since(0)) == ["discharge"]

    def test_a_killed_writer_leaves_the_file_whole(
        self, file_pm: PowerManager, path: Path, battery_meter: PowerMeter
    ) -> None:
        """What log_power returned before the kill is there; an open transaction is not."""
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
        assert [row[3] for row in history(file_pm, battery_meter.id)] == [50.0]
        assert file_pm.check() == []

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    @pytest.mark.parametrize("busy", [False, True], ids=["idle", "while another thread writes"])
    def test_after_a_fork(self, path: Path, busy: bool) -> None:
        """In the child the parent's PowerManager refuses to work, at once; the parent's goes on.

        Closing it in the child does nothing to the file, and does not wait either.
        """
        code = """if True:
            import os, signal, sys, threading, warnings, power_manager
            warnings.simplefilter("ignore")  # of forking with threads: that is what is tested
            pm = power_manager.PowerManager(sys.argv[1])
            pm.register_device("d", "D")
            inside = threading.Event()
            leave = threading.Event()
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
                signal.alarm(20)  # ends a child that waits for ever
                refused = 0
                def register():
                    pm.register_device("e", "E")
                def transaction():
                    with pm.transaction():
                        pass
                for call in (pm.list_devices, register, transaction):
                    try:
                        call()
                    except power_manager.StorageError as exc:
                        refused += "fork" in str(exc)
                pm.close()
                del pm
                os._exit(refused)
            status = os.waitpid(child, 0)[1]
            leave.set()
            if thread.ident:
                thread.join()
            pm.register_device("f", "F")
            print(os.WIFEXITED(status) and os.WEXITSTATUS(status))
            print([device.id for device in pm.list_devices()])
            pm.close()
        """
        assert finished(process(code, path, busy)) == "3\n['d', 'f']"
        assert [device.id for device in reread(path)["devices"]] == ["d", "f"]


class TestFork:
    """A child of a fork leaves its parent's file alone, at once."""

    @pytest.mark.parametrize("ending", ["close", "with", "forgotten"])
    def test_closing_in_the_child(self, path: Path, ending: str) -> None:
        """close() returns, though another thread was in a transaction when the child was made."""
        code = """if True:
            import gc, os, signal, sys, threading, warnings, power_manager
            warnings.simplefilter("ignore")  # of forking with threads: that is what is tested
            pm = power_manager.PowerManager(sys.argv[1])
            pm.register_device("d", "D")
            inside = threading.Event()
            leave = threading.Event()
            def hold():
                with pm.transaction():
                    pm.register_device("e", "E")
                    inside.set()
                    leave.wait(30)
            thread = threading.Thread(target=hold)
            thread.start()
            inside.wait(30)
            child = os.fork()
            if child == 0:
                signal.alarm(20)         # ends a child that waits for ever
                if sys.argv[2] == "close":
                    pm.close()
                elif sys.argv[2] == "with":
                    pm.__exit__(None, None, None)
                else:
                    del pm
                    gc.collect()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            leave.set()
            thread.join()
            print(status, len(pm.list_devices()), pm.check())
            pm.close()
        """
        assert finished(process(code, path, ending)) == "0 2 []"


@contextlib.contextmanager
def written_by_another_thread(pm: PowerManager) -> Iterator[None]:
    """Another thread has a transaction open until the block ends."""
    inside = threading.Event()
    leave = threading.Event()

    def hold() -> None:
        with pm.transaction():
            inside.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert inside.wait(30)
        yield
    finally:
        leave.set()
        holder.join(30)


# --- Tasks, signal handlers and interrupts ----------------------------------------------------


class TestTasks:
    """A transaction() belongs to the asyncio task that entered it."""

    def test_without_asyncio(self, file_pm: PowerManager, monkeypatch: pytest.MonkeyPatch) -> None:
        """A program that has not imported asyncio has no tasks, and transactions work."""
        monkeypatch.delitem(sys.modules, "asyncio", raising=False)
        with file_pm.transaction():
            file_pm.register_device("a", "A")
        assert [device.id for device in file_pm.list_devices()] == ["a"]
        assert "asyncio" not in sys.modules

    def test_overlapping_transactions(
        self, file_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """The second of two that would overlap is refused by name, and nothing of it is stored."""
        meter_id = battery_meter.id

        async def group(volts: float, inside: asyncio.Event, leave: asyncio.Event) -> None:
            with file_pm.transaction():
                file_pm.log_power(meter_id, volts, 1.0)
                inside.set()
                await leave.wait()
                file_pm.log_power(meter_id, volts, 2.0)

        async def main() -> tuple[BaseException | None, BaseException | None]:
            inside = asyncio.Event()
            leave = asyncio.Event()
            first = asyncio.create_task(group(3.0, inside, leave))
            await inside.wait()
            second = asyncio.create_task(group(4.0, inside, leave))
            await asyncio.sleep(0)
            leave.set()
            return await asyncio.gather(first, second, return_exceptions=True)

        first, second = asyncio.run(main())
        assert first is None
        assert type(second) is PowerManagerError
        assert "transaction()" in str(second)
        assert "asyncio task" in str(second)
        assert [row[1:3] for row in history(file_pm, meter_id)] == [(3.0, 1.0), (3.0, 2.0)]
        in_threads(lambda: file_pm.log_power(meter_id, 3.0, 3.0))
        file_pm.log_power(meter_id, 3.0, 4.0)
        assert len(history(file_pm, meter_id)) == 4
        assert file_pm.check() == []
        file_pm.close()

    @pytest.mark.parametrize("ending", ["commit", "rollback"])
    @pytest.mark.parametrize(
        "call",
        [
            lambda pm, meter_id: pm.log_power(meter_id, 9.0, 1.0, 1.0),
            lambda pm, meter_id: pm.log_many([(meter_id, 9.0, 1.0)]),
            lambda pm, meter_id: pm.trigger_event("dev-001", "shutdown"),
            lambda pm, meter_id: pm.register_device("other", "Other"),
            lambda pm, meter_id: pm.update_meter(meter_id, name="Other"),
            lambda pm, meter_id: pm.delete_readings(meter_id),
            lambda pm, meter_id: pm.prune(0),
            lambda pm, meter_id: pm.acknowledge(pm.pending_readings()),
            lambda pm, meter_id: pm.transaction().__enter__(),
            lambda pm, meter_id: pm.connection().__enter__(),
            lambda pm, meter_id: pm.close(),
        ],
        ids=[
            "log_power",
            "log_many",
            "trigger_event",
            "register_device",
            "update_meter",
            "delete_readings",
            "prune",
            "acknowledge",
            "transaction",
            "connection",
            "close",
        ],
    )
    def test_write_of_another_task(
        self,
        file_pm: PowerManager,
        path: Path,
        battery_meter: PowerMeter,
        call: Callable[[PowerManager, str], object],
        ending: str,
    ) -> None:
        """It is refused, whatever becomes of the transaction, and returns nothing that is lost."""
        meter_id = battery_meter.id
        file_pm.log_many((meter_id, 3.0, 1.0, 50.0, NOW - 7200 + 3600 * i) for i in range(2))
        errors: list[PowerManagerError] = []

        async def other() -> None:
            try:
                call(file_pm, meter_id)
            except PowerManagerError as error:
                errors.append(error)

        async def main() -> None:
            with file_pm.transaction():
                file_pm.log_power(meter_id, 3.0, 1.0)
                await asyncio.create_task(other())
                file_pm.log_power(meter_id, 3.0, 2.0)
                if ending == "rollback":
                    raise Broken

        before = reread(path)
        if ending == "rollback":
            with pytest.raises(Broken):
                asyncio.run(main())
            assert reread(path) == before
        else:
            asyncio.run(main())
            assert [row[2] for row in history(file_pm, meter_id)] == [1.0, 1.0, 1.0, 2.0]
            assert (file_pm.events_since(0), len(file_pm.list_devices())) == ([], 1)
        assert [type(error) for error in errors] == [PowerManagerError]
        assert "transaction" in str(errors[0])
        assert reread(path) == everything(file_pm)

    def test_read_of_another_task(self, file_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """It sees what is committed; a read of the task itself sees its own."""
        seen: list[int] = []

        async def other() -> None:
            seen.append(len(history(file_pm, battery_meter.id)))

        async def main() -> None:
            with file_pm.transaction():
                file_pm.log_power(battery_meter.id, 3.0, 1.0)
                await asyncio.create_task(other())
                seen.append(len(history(file_pm, battery_meter.id)))

        asyncio.run(main())
        assert seen == [0, 1]

    def test_callback_of_the_loop(self, file_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """What the loop calls outside of any task is not of the task that has a transaction."""
        errors: list[PowerManagerError] = []

        def callback() -> None:
            try:
                file_pm.log_power(battery_meter.id, 9.0, 1.0)
            except PowerManagerError as error:
                errors.append(error)

        async def main() -> None:
            asyncio.get_running_loop().call_soon(callback)
            with file_pm.transaction():
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        asyncio.run(main())
        assert [type(error) for error in errors] == [PowerManagerError]
        assert history(file_pm, battery_meter.id) == []

    def test_nested_in_one_task(self, file_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """A task nests as a thread does: an inner block that fails undoes its own calls only."""

        async def main() -> None:
            with file_pm.transaction():
                file_pm.log_power(battery_meter.id, 3.0, 1.0)
                await asyncio.sleep(0)
                with pytest.raises(Broken):
                    fail(file_pm, lambda: file_pm.log_power(battery_meter.id, 9.0, 1.0))
                await asyncio.sleep(0)
                with file_pm.transaction():
                    file_pm.log_power(battery_meter.id, 4.0, 1.0)

        asyncio.run(main())
        assert [row[1] for row in history(file_pm, battery_meter.id)] == [3.0, 4.0]

    def test_cancelled_task(self, file_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """A task that is cancelled inside its transaction takes it back, and others go on."""

        async def waits() -> None:
            with file_pm.transaction():
                file_pm.log_power(battery_meter.id, 9.0, 1.0)
                await asyncio.Event().wait()

        async def main() -> None:
            task = asyncio.create_task(waits())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            file_pm.log_power(battery_meter.id, 3.0, 1.0)

        asyncio.run(main())
        assert [row[1] for row in history(file_pm, battery_meter.id)] == [3.0]

    def test_tasks_in_turn(self, file_pm: PowerManager, battery_meter: PowerMeter) -> None:
        """Transactions of several tasks that do not overlap are all stored."""

        async def group(volts: float) -> None:
            await asyncio.sleep(0)
            with file_pm.transaction():
                file_pm.log_power(battery_meter.id, volts, 1.0)
                file_pm.log_power(battery_meter.id, volts, 2.0)
            await asyncio.sleep(0)

        async def main() -> None:
            await asyncio.gather(*[group(float(volts)) for volts in range(5)])

        asyncio.run(main())
        assert len(history(file_pm, battery_meter.id)) == 10

    def test_asyncio_is_not_imported(self, path: Path) -> None:
        """The library never imports asyncio by itself."""
        code = """if True:
            import sys, power_manager
            with power_manager.PowerManager(sys.argv[1]) as pm:
                pm.register_device("d", "D")
                with pm.transaction():
                    pm.log_power(pm.add_meter("d", "main").id, 1.0, 1.0)
            print("asyncio" in sys.modules)
        """
        assert finished(process(code, path)) == "False"


# What a program that is stopped anywhere can do next, and what is watched while it is.


class Interrupted(KeyboardInterrupt):
    """What a test raises in the middle of a call, as Ctrl-C would."""


def interrupt() -> None:
    """Raise Interrupted."""
    raise Interrupted


def reaches(number: int, call: Callable[[], object], act: Callable[[], object]) -> bool:
    """Run a call and act at one place of it; return whether it has so many places.

    Places are the entries and returns of functions, and the returns of C functions: there CPython
    looks for signals. What `act` raises comes out of the call.
    """
    count = 0

    def watch(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal count
        if event in ("call", "return", "c_return"):
            count += 1
            if count == number:
                sys.setprofile(None)
                act()

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count >= number


CALLS: dict[str, Callable[[PowerManager, str, str], object]] = {
    "log_power": lambda pm, device_id, meter_id: pm.log_power(meter_id, 9.0, 1.0, 4.0),
    "late": lambda pm, device_id, meter_id: pm.log_power(
        meter_id, 9.0, 1.0, 4.0, timestamp=NOW - 500
    ),
    "log_many": lambda pm, device_id, meter_id: pm.log_many(
        [(meter_id, 9.0, 1.0, 4.0), (meter_id, 9.0, 2.0, 50.0)]
    ),
    "trigger_event": lambda pm, device_id, meter_id: pm.trigger_event(device_id, "shutdown"),
    "register_device": lambda pm, device_id, meter_id: pm.register_device(device_id, "Renamed"),
    "update_meter": lambda pm, device_id, meter_id: pm.update_meter(meter_id, name="Renamed"),
    "delete_readings": lambda pm, device_id, meter_id: pm.delete_readings(meter_id),
    "delete_device": lambda pm, device_id, meter_id: pm.delete_device(device_id),
    "transaction": lambda pm, device_id, meter_id: nested(pm, device_id, meter_id),
    "connection": lambda pm, device_id, meter_id: through_connection(pm, meter_id),
}


def nested(pm: PowerManager, device_id: str, meter_id: str) -> None:
    """Log a reading and an event in transactions inside each other."""
    with pm.transaction():
        pm.log_power(meter_id, 9.0, 1.0, 4.0)
        with pm.transaction():
            pm.trigger_event(device_id, "restore")


def through_connection(pm: PowerManager, meter_id: str) -> None:
    """Log a reading in a transaction of another package."""
    with pm.connection() as conn:
        conn.execute("SELECT count(*) FROM devices").fetchone()
        pm.log_power(meter_id, 9.0, 1.0, 4.0)


def shape(pm: PowerManager, device_id: str) -> Any:
    """What there is of a device, without ids."""
    meters = pm.list_meters(device_id)
    try:
        name = pm.get_device(device_id).name
        events = types_of(pm.get_events(device_id))
    except NotFound:
        return (len(meters), "gone")
    parts = [
        (
            meter.name,
            meter.voltage,
            meter.updated_at,
            [row[1:] for row in history(pm, meter.id)],
            [(hour.start, hour.reading_count) for hour in pm.get_statistics(meter.id, days=9999)],
        )
        for meter in meters
    ]
    return (name, events, parts)


# Python itself drops an exception that comes while the garbage collector calls back.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestInterrupts:
    """After an exception at any place of a call nothing is locked, lost or half done."""

    @pytest.fixture
    def pm(self, path: Path, clock: Clock) -> Iterator[PowerManager]:
        """An empty PowerManager in a file, without waiting for the disk."""
        with PowerManager(path, clock=clock, durability="normal") as manager:
            yield manager

    @pytest.fixture
    def outside(self, pm: PowerManager, path: Path) -> Iterator[sqlite3.Connection]:
        """A connection that waits for nothing, as another process has it."""
        with closing(
            sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        ) as conn:
            yield conn

    @pytest.fixture
    def checked(self, pm: PowerManager, outside: sqlite3.Connection) -> Callable[[], None]:
        """Check that others and this thread can write at once, and that what they write stays."""
        pm.register_device("after", "After")
        meter_id = pm.add_meter("after", "main").id
        count_sql = """SELECT count(*) FROM power_readings JOIN power_meters USING (meter_key)
            WHERE id = ?"""
        count = itertools.count(1)

        def check() -> None:
            outside.execute("BEGIN IMMEDIATE")
            outside.execute("ROLLBACK")
            thread = threading.Thread(target=pm.log_power, args=(meter_id, 1.0, 1.0), daemon=True)
            thread.start()
            thread.join(20)
            assert not thread.is_alive(), "another thread waits for ever"
            assert outside.execute(count_sql, (meter_id,)).fetchone() == (2 * next(count) - 1,)
            pm.log_power(meter_id, 1.0, 1.0)
            next_count = outside.execute(count_sql, (meter_id,)).fetchone()
            assert next_count == (2 * (next_count[0] // 2),)
            assert next_count[0] % 2 == 0

        return check

    def make(self, pm: PowerManager, number: int) -> tuple[str, str]:
        """A device and its battery, with two readings."""
        device_id = f"device {number}"
        pm.register_device(device_id, "Device")
        meter_id = pm.add_meter(device_id, "battery", 10.0, "Pack").id
        pm.log_many((meter_id, 3.0, 1.0, 50.0, NOW - 2000 + 1000 * i) for i in range(2))
        return device_id, meter_id

    @pytest.mark.parametrize("kept", [False, True], ids=["dropped", "kept"])
    @pytest.mark.parametrize("name", CALLS)
    def test_at_any_place(
        self,
        pm: PowerManager,
        outside: sqlite3.Connection,
        checked: Callable[[], None],
        name: str,
        kept: bool,
    ) -> None:
        """The call is there as a whole or not at all, also while its exception is kept alive."""
        call = CALLS[name]
        device_id, meter_id = self.make(pm, 0)
        before = shape(pm, device_id)
        call(pm, device_id, meter_id)
        after = shape(pm, device_id)
        assert before != after
        errors: list[Interrupted] = []
        step = 4 if name == "log_power" else 13
        for number in itertools.count(1 + kept, step):
            device_id, meter_id = self.make(pm, number)
            try:
                run = functools.partial(call, pm, device_id, meter_id)
                reached = reaches(number, run, interrupt)
            except Interrupted as error:
                reached = True
                if kept:
                    errors.append(error)
            checked()
            with PowerManager(pm.db_path) as second:
                assert shape(second, device_id) in (before, after), number
            if not reached:
                break
        assert number > 30
        errors.clear()
        gc.collect()
        checked()
        assert pm.check() == []
        pm.close()

    def test_in_another_thread(
        self, pm: PowerManager, outside: sqlite3.Connection, checked: Callable[[], None]
    ) -> None:
        """The same in a thread, which ends by it."""
        kept: list[BaseException] = []
        for number in itertools.count(1, 5):
            device_id, meter_id = self.make(pm, number)
            reached = [True]

            def run(number: int, device_id: str, meter_id: str, reached: list[bool]) -> None:
                try:
                    reached[0] = reaches(number, lambda: nested(pm, device_id, meter_id), interrupt)
                except Interrupted as error:
                    kept.append(error)

            thread = threading.Thread(
                target=run, args=(number, device_id, meter_id, reached), daemon=True
            )
            thread.start()
            thread.join(20)
            assert not thread.is_alive()
            checked()
            if not reached[0]:
                break
        assert len(kept) > 20
        assert pm.check() == []

    @pytest.mark.parametrize("where", ["entering", "leaving"])
    def test_of_a_block(
        self,
        pm: PowerManager,
        battery_meter: PowerMeter,
        checked: Callable[[], None],
        where: str,
    ) -> None:
        """An interrupt while a block inside another is entered or left rolls both back."""
        meter_id = battery_meter.id

        def blocks(number: int) -> bool:
            with pm.transaction():
                pm.log_power(meter_id, 9.0, 1.0)
                inner = pm.transaction()
                if where == "entering":
                    reached = reaches(number, inner.__enter__, interrupt)
                    inner.__exit__(None, None, None)
                else:
                    inner.__enter__()
                    pm.log_power(meter_id, 9.0, 2.0)
                    reached = reaches(number, lambda: inner.__exit__(None, None, None), interrupt)
            return reached

        for number in itertools.count(1):
            before = history(pm, meter_id)
            try:
                reached = blocks(number)
                assert len(history(pm, meter_id)) > len(before)
            except Interrupted:
                reached = True
                assert history(pm, meter_id) == before
            checked()
            with pytest.raises(ValueError, match=r"^mine$") as caught, pm.transaction():
                raise ValueError("mine")
            assert type(caught.value) is ValueError
            if not reached:
                break
        assert number > 5

    def test_transaction_whose_manager_is_gone(
        self, pm: PowerManager, battery_meter: PowerMeter, checked: Callable[[], None]
    ) -> None:
        """A transaction that was entered, and that nothing can leave any more, is rolled back."""
        manager = pm.transaction()
        manager.__enter__()
        pm.log_power(battery_meter.id, 9.0, 1.0)
        del manager
        gc.collect()
        pm.log_power(battery_meter.id, 3.0, 1.0)
        assert [row[1] for row in history(pm, battery_meter.id)] == [3.0]
        checked()

    def test_interrupt_after_waiting_for_another_writer(
        self, pm: PowerManager, path: Path, battery_meter: PowerMeter
    ) -> None:
        """Ctrl-C while BEGIN waits: when it then succeeds, the lock is given back at once."""
        code = """if True:
            import os, signal, sqlite3, sys, threading, power_manager
            pm = power_manager.PowerManager(sys.argv[1])
            writer = sqlite3.connect(sys.argv[1], isolation_level=None, check_same_thread=False)
            probe = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
            # The signal is in the pipe at once; its handler runs when BEGIN has returned.
            arrived, wakeup = os.pipe()
            os.set_blocking(wakeup, False)
            signal.set_wakeup_fd(wakeup)
            def on_alarm(*_):
                raise KeyboardInterrupt
            def give_way():
                os.read(arrived, 1)
                writer.execute("ROLLBACK")
            signal.signal(signal.SIGALRM, on_alarm)
            for kept in range(3):
                writer.execute("BEGIN IMMEDIATE")
                thread = threading.Thread(target=give_way)
                thread.start()
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.05)
                    pm.log_power(sys.argv[2], 1.0, 1.0)
                except KeyboardInterrupt as error:
                    sys.last_exc = error
                thread.join()
                probe.execute("BEGIN IMMEDIATE")
                probe.execute("ROLLBACK")
            print("free")
        """
        assert finished(process(code, path, battery_meter.id)) == "free"
        assert pm.check() == []

    @pytest.mark.parametrize("kept", [0, 1], ids=["dropped", "kept"])
    def test_by_real_signals(
        self, pm: PowerManager, path: Path, battery_meter: PowerMeter, kept: int
    ) -> None:
        """SIGALRM at random moments: what returned is in the file, and every thread can write."""
        code = """if True:
            import random, signal, sqlite3, sys, threading, power_manager
            path, meter_id, keeps = sys.argv[1:]
            pm = power_manager.PowerManager(path, durability="normal")
            probe = sqlite3.connect(path, timeout=0, isolation_level=None)
            chance = random.Random(7)
            armed = False
            def on_alarm(*_):
                global armed
                if armed:
                    armed = False
                    raise KeyboardInterrupt
            signal.signal(signal.SIGALRM, on_alarm)
            errors = []
            returned = 0
            interrupted = 0
            while interrupted < 80:
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 8e-4))
                    with pm.transaction():
                        pm.log_power(meter_id, 1.0, 1.0)
                        with pm.transaction():
                            pm.log_power(meter_id, 1.0, 2.0)
                    pm.log_power(meter_id, 1.0, 3.0)
                    armed = False
                except KeyboardInterrupt as error:
                    interrupted += 1
                    if keeps == "1":
                        errors.append(error)
                probe.execute("BEGIN IMMEDIATE")
                probe.execute("ROLLBACK")
                pm.log_power(meter_id, 2.0, 1.0)
                returned += 1
                thread = threading.Thread(target=pm.log_power, args=(meter_id, 2.0, 1.0))
                thread.daemon = True
                thread.start()
                thread.join(20)
                assert not thread.is_alive(), "another thread waits for ever"
                returned += 1
            sql = "SELECT count(*) FROM power_values WHERE voltage = 2.0"
            assert probe.execute(sql).fetchone() == (returned,)
            errors.clear()
            assert probe.execute(sql).fetchone() == (returned,)
            print(pm.check())
            pm.close()
        """
        assert finished(process(code, path, battery_meter.id, kept)) == "[]"
        pairs = [row[2] for row in history(pm, battery_meter.id) if row[1] == 1.0]
        assert pairs.count(1.0) == pairs.count(2.0)

    def test_exceptions_of_the_caller_are_not_kept(
        self, pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """What raised in a block, with its locals, is gone when the exception is."""

        class Local:
            """Something of the caller's."""

        seen: list[weakref.ref[Local]] = []

        def block(context: Any) -> None:
            local = Local()
            seen.append(weakref.ref(local))
            with context:
                pm.log_power(battery_meter.id, 1.0, 1.0)
                raise Broken

        def rows() -> Iterator[Any]:
            local = Local()
            seen.append(weakref.ref(local))
            yield battery_meter.id, 1.0, 1.0
            raise Broken

        for call in (
            lambda: block(pm.transaction()),
            lambda: block(pm.connection()),
            lambda: pm.log_many(rows()),
        ):
            with suppress(Broken):
                call()
        gc.collect()
        assert [reference() for reference in seen] == [None, None, None]


class TestSignalHandlers:
    """A handler's call in the middle of another call is refused, or comes wholly after it."""

    @pytest.mark.parametrize("handler", ["log_power", "trigger_event", "transaction"])
    @pytest.mark.parametrize("name", ["log_power", "late", "log_many", "trigger_event"])
    def test_at_any_place(self, opened: Opener, path: Path, name: str, handler: str) -> None:
        """Whatever returned is stored, whatever was refused is not, and statistics stay right."""
        pm = opened(path, durability="normal")
        call = CALLS[name]
        errors: list[PowerManagerError] = []
        expected: list[int] = []
        for number in itertools.count(1, 3):
            device_id = f"d{number}"
            pm.register_device(device_id, "Device")
            meter_id = pm.add_meter(device_id, "battery").id
            pm.log_power(meter_id, 3.0, 1.0, 50.0)
            returned = 0

            def handle() -> None:
                nonlocal returned
                try:
                    if handler == "log_power":
                        pm.log_power(meter_id, 5.0, 1.0, 60.0)  # noqa: B023 - runs at once
                    elif handler == "trigger_event":
                        pm.trigger_event(device_id, "charge_start")  # noqa: B023
                    else:
                        with pm.transaction():
                            pm.log_power(meter_id, 5.0, 1.0, 60.0)  # noqa: B023
                    returned += 1
                except PowerManagerError as error:
                    errors.append(error)

            reached = reaches(number, lambda: call(pm, device_id, meter_id), handle)  # noqa: B023
            stored = [row[1] for row in history(pm, meter_id)]
            if handler == "trigger_event":
                assert types_of(pm.get_events(device_id)).count("charge_start") == returned
            else:
                assert stored.count(5.0) == returned
            assert stored.count(9.0) == {"log_many": 2, "trigger_event": 0}.get(name, 1)
            expected.append(returned)
            if not reached:
                break
        assert pm.check() == []
        assert len(errors) > 5
        assert {type(error) for error in errors} == {PowerManagerError}
        assert all("signal handler" in str(error) for error in errors)
        assert sum(expected) > 1

    @pytest.mark.parametrize("name", ["log_power", "log_many"])
    def test_that_ends_the_program(self, opened: Opener, path: Path, name: str) -> None:
        """An event whose call returned in a handler is in the file, though the handler exits."""
        pm = opened(path, durability="normal")
        pm.register_device("d", "D")
        meter_id = pm.add_meter("d", "battery").id
        returned = 0

        def handle() -> None:
            nonlocal returned
            with suppress(PowerManagerError):
                pm.trigger_event("d", "shutdown")
                returned += 1
            sys.exit()

        for number in itertools.count(1):
            try:
                reached = reaches(number, lambda: CALLS[name](pm, "d", meter_id), handle)
            except SystemExit:
                reached = True
            ((stored,),) = fetch(path, "SELECT count(*) FROM power_events WHERE type = 'shutdown'")
            assert stored == returned
            if not reached:
                break
        assert returned > 5
        assert pm.check() == []

    @pytest.mark.parametrize("durability", ["full", "normal"])
    @pytest.mark.parametrize("action", ["log_power", "trigger_event", "trigger_event and exit"])
    def test_real_signals(self, path: Path, clock: Clock, action: str, durability: str) -> None:
        """Real handlers are refused by name or return, and what returned is in the file."""
        meter_id = filled(path, 3)
        code = """if True:
            import json, random, signal, sys, power_manager
            path, meter_id, action, durability = sys.argv[1:]
            pm = power_manager.PowerManager(path, durability=durability)
            chance = random.Random(5)
            counts = {"returned": 0, "refused": 0}
            wrong = []
            armed = False
            def on_alarm(*_):
                global armed
                if not armed:
                    return
                armed = False
                try:
                    if action == "log_power":
                        pm.log_power(meter_id, 9.0, 1.0, 40.0)
                    else:
                        pm.trigger_event("dev-001", "shutdown")
                    counts["returned"] += 1
                except power_manager.PowerManagerError as error:
                    known = type(error) is power_manager.PowerManagerError
                    if not known or "signal handler" not in str(error):
                        wrong.append(repr(error))
                    counts["refused"] += 1
                if action.endswith("exit"):
                    sys.exit()
            signal.signal(signal.SIGALRM, on_alarm)
            logged = 0
            while sum(counts.values()) < 40:
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 6e-4))
                    pm.log_power(meter_id, 1.0, 1.0, 50.0)
                    logged += 1
                    armed = False
                except SystemExit:
                    pass
            armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(json.dumps([wrong, counts["returned"], logged, pm.check()]))
            pm.close()
        """
        child = process(code, path, meter_id, action, durability)
        wrong, returned, logged, problems = json.loads(finished(child))
        assert (wrong, problems) == ([], [])
        with PowerManager(path) as pm:
            volts = [row[1] for row in history(pm, meter_id)]
            if action == "log_power":
                assert volts.count(9.0) == returned
            else:
                assert alerts_of(pm, "dev-001").count("shutdown") == returned
            if not action.endswith("exit"):
                assert volts.count(1.0) == logged


class TestWaiting:
    """Waiting for another thread's transaction ends, as waiting for another process does."""

    def test_for_another_thread(
        self,
        file_pm: PowerManager,
        battery_meter: PowerMeter,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """After BUSY_TIMEOUT a call is a StorageError that says who is writing."""
        monkeypatch.setattr(power_manager, "BUSY_TIMEOUT", 0.05)
        with written_by_another_thread(file_pm):
            with pytest.raises(StorageError, match="another thread") as caught:
                file_pm.log_power(battery_meter.id, 9.0, 1.0)
            assert caught.value.sqlite_errorname == "SQLITE_BUSY"
            assert history(file_pm, battery_meter.id) == []
        file_pm.log_power(battery_meter.id, 3.0, 1.0)
        assert len(history(file_pm, battery_meter.id)) == 1

    def test_signal_handler_of_a_thread_that_waits(self, path: Path) -> None:
        """A call from a handler while its thread waits is refused at once, and all go on."""
        meter_id = filled(path, 3)
        code = """if True:
            import signal, sys, threading, time, power_manager
            power_manager.BUSY_TIMEOUT = 60.0
            pm = power_manager.PowerManager(sys.argv[1])
            inside = threading.Event()
            handled = threading.Event()
            told = []
            def hold():
                with pm.transaction():
                    inside.set()
                    handled.wait(30)
            def on_alarm(*_):
                try:
                    pm.trigger_event("dev-001", "shutdown")
                except power_manager.PowerManagerError as error:
                    told.append("signal handler" in str(error))
                handled.set()
            signal.signal(signal.SIGALRM, on_alarm)
            holder = threading.Thread(target=hold)
            holder.start()
            def ring():
                while not pm._transaction._waiting:
                    time.sleep(0.001)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
            inside.wait(30)
            ringing = threading.Thread(target=ring)
            ringing.start()
            pm.log_power(sys.argv[2], 9.0, 1.0)      # waits for the other thread
            ringing.join()
            holder.join()
            print(told, len(pm.get_events("dev-001")), pm.check())
            pm.close()
        """
        assert finished(process(code, path, meter_id)) == "[True] 1 []"

    def test_rows_that_another_thread_makes(
        self, file_pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """Rows of log_many may come from a thread that logs readings of its own meanwhile."""
        made = iter([threading.Event(), threading.Event()])

        def rows() -> Iterator[tuple[str, float, float]]:
            for done in made:
                thread = threading.Thread(
                    target=lambda done=done: (
                        file_pm.log_power(solar_meter.id, 18.0, 1.0),
                        done.set(),
                    ),
                    daemon=True,
                )
                thread.start()
                assert done.wait(20)
                yield battery_meter.id, 3.0, 1.0

        assert file_pm.log_many(rows()) == 2
        assert len(history(file_pm, solar_meter.id)) == 2

    def test_clock_is_read_inside_the_transaction(self, path: Path) -> None:
        """So readings and events of several processes have times in the order of their commits."""
        locked: list[bool] = []
        probe = sqlite3.connect(path, timeout=0, isolation_level=None)

        def clock() -> float:
            try:
                probe.execute("BEGIN IMMEDIATE")
                probe.execute("ROLLBACK")
                locked.append(False)
            except sqlite3.OperationalError:
                locked.append(True)
            return NOW

        with closing(probe), PowerManager(path, clock=clock) as pm:
            pm.register_device("d", "D")
            meter = pm.add_meter("d", "main")
            locked.clear()
            pm.log_power(meter.id, 1.0, 1.0)
            pm.trigger_event("d", "restore")
            assert locked == [True, True]
            locked.clear()
            pm.log_many([(meter.id, 1.0, 1.0)] * 3)
            # Stamped as they are pulled, and moved on by the wait for the file.
            assert locked == [False, False, False, True]


# --- The file ---------------------------------------------------------------------------------


class TestLifecycle:
    """Opening and closing."""

    def test_db_path(self, path: Path) -> None:
        """The attribute db_path is the path as given."""
        with PowerManager(str(path)) as pm:
            assert pm.db_path == path

    def test_default_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a path the file is power_manager.db in the directory of the opening moment."""
        monkeypatch.chdir(tmp_path)
        with PowerManager() as pm:
            (tmp_path / "elsewhere").mkdir()
            os.chdir("elsewhere")
            pm.register_device("d", "D")
            assert len(pm.list_devices()) == 1
        names = [entry.name for entry in sorted(tmp_path.iterdir())]
        assert names == ["elsewhere", "power_manager.db"]

    @pytest.mark.parametrize(
        "name", ["a b.db", "50%25.db", "a?mode=ro#x.db", "電池.db", "file:x.db", "a'b\"c.db"]
    )
    def test_odd_file_names(self, tmp_path: Path, name: str) -> None:
        """Any file name is taken as it is."""
        with PowerManager(tmp_path / name) as pm:
            pm.register_device("d", "D")
        assert [entry.name for entry in tmp_path.iterdir()] == [name]

    def test_closed_manager_refuses_to_work(self, opened: Opener, path: Path) -> None:
        """Each call says that it is closed; closing it again does nothing."""
        pm = opened(path)
        pm.close()
        pm.close()

        def transaction() -> None:
            with pm.transaction():
                pass

        for call in (
            pm.list_devices,
            lambda: pm.register_device("d", "D"),
            transaction,
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

    def test_dropped_without_close(self, tmp_path: Path) -> None:
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
        """The connection has the journal, durability and foreign keys that are promised."""
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

    def test_max_gap_default(self, any_pm: PowerManager, path: Path) -> None:
        """Without a max_gap a new file gets 5,400 s: an hourly log with some jitter has no gaps."""
        pm = any_pm if isinstance(any_pm, PowerManager) else PowerManager(path)
        assert pm.max_gap == MAX_GAP
        pm.close()

    def test_max_gap_is_kept_in_the_file(self, opened: Opener, path: Path) -> None:
        """Opened without max_gap, a file keeps its own; another one is refused."""
        opened(path, max_gap=60).register_device("d", "D")
        pm = opened(path)
        assert (pm.max_gap, opened(path, max_gap=60).max_gap) == (60.0, 60.0)
        meter = pm.add_meter("d", "main")
        pm.log_many((meter.id, 1.0, 60.0, 50.0, NOW - age) for age in (151, 90, 30))
        assert meter_part(pm, "d", 7)["energy_out_wh"] == 1.0
        with pytest.raises(InvalidValue, match=r"^max_gap: expected 60 \(s\), .+, got 61"):
            PowerManager(path, max_gap=61)

    def test_logs_by_its_own_logger_and_configures_nothing(self) -> None:
        """Importing the module gives no logger a handler or a level."""
        code = (
            "import logging, power_manager; "
            "print(logging.root.handlers, logging.getLogger('power_manager').handlers)"
        )
        assert finished(process(code)) == "[] []"

    def test_never_opens_the_database_itself(self, path: Path) -> None:
        """SQLite alone opens the file: closing another descriptor of it would drop its locks."""
        code = """if True:
            import os, sys
            path = sys.argv[1]
            seen = []
            def hook(event, args):
                if event == "open" and not isinstance(args[0], int):
                    if os.fsdecode(args[0]).startswith(path):
                        seen.append(args)
            sys.addaudithook(hook)
            import power_manager
            for _ in range(2):
                with power_manager.PowerManager(path) as pm:
                    pm.register_device("d", "D")
                    pm.log_power(pm.add_meter("d", "main").id, 1, 1)
                    pm.export_report("d")
                    pm.prune(0)
                    pm.check()
                    copy = os.path.join(os.path.dirname(path), "copy")
                    pm.backup(copy)
                    pm.restore(copy)
            print(seen)
        """
        assert finished(process(code, path)) == "[]"


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
    def test_mode_of_a_new_file(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, mknod: Any
    ) -> None:
        """The file, its -wal and its -shm are private, under any umask and on any system."""
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

    def test_mode_of_a_backup(self, path: Path, opened: Opener) -> None:
        """A copy is private too."""
        opened(path).backup(f"{path}.copy")
        assert stat.S_IMODE(os.stat(f"{path}.copy").st_mode) == 0o600

    def test_new_file_through_a_dangling_link(self, path: Path, tmp_path: Path) -> None:
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
    """A file that is not this module's is refused by name, and left as it is."""

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda path: path.mkdir(), "this is a directory: name a file in it"),
            (lambda path: path.write_text("timestamp,voltage\n" * 99), "not a database"),
            (lambda path: path.write_text("t"), "name another file"),
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
                lambda path: filled(path, sql="PRAGMA user_version = 2"),
                "schema 2 .*newer",
            ),
            (lambda path: filled(path, sql="PRAGMA user_version = 0"), "schema 0 "),
            (
                lambda path: filled(path, sql=f"PRAGMA application_id = {0x4252504D}"),
                "development",
            ),
            (
                lambda path: filled(path, sql=f"PRAGMA application_id = {0x4252504E}"),
                "development",
            ),
        ],
        ids=[
            "directory",
            "text",
            "one character",
            "other tables",
            "other version",
            "other application",
            "newer schema",
            "no schema",
            "development version",
            "later development version",
        ],
    )
    def test_refused_file(
        self,
        path: Path,
        tmp_path: Path,
        connections: list[sqlite3.Connection],
        make: Callable[[Path], object],
        message: str,
    ) -> None:
        """The error names the file and what to do; no byte changes, no connection is left."""
        make(path)
        before = content(tmp_path)
        with pytest.raises(StorageError, match=rf"^{path}: .*{message}") as caught:
            PowerManager(path)
        assert caught.value.filename == str(path)
        assert content(tmp_path) == before
        if path.is_file() and path.stat().st_size > 1:  # else it was refused before that
            assert_closed(connections)

    @pytest.mark.parametrize("name", ["x" * 300, "file/inside.db"], ids=["too long", "in a file"])
    def test_path_that_cannot_be(self, tmp_path: Path, name: str) -> None:
        """An error of the system names the path, of a database and of a copy."""
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
        message = r"SQLITE_NOTADB: .+; not an SQLite database: name another file"
        with pytest.raises(StorageError, match=message) as caught:
            PowerManager(path)
        assert caught.value.sqlite_errorname == "SQLITE_NOTADB"
        assert type(caught.value.__cause__) is sqlite3.DatabaseError

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

    def test_new_file_in_a_read_only_place(self, shared_place: Path) -> None:
        """A file that cannot be made is named."""
        shared_place.chmod(0o555)
        with (
            without_rights(),
            pytest.raises(StorageError, match=rf"^{shared_place}/a.db: .*check that"),
        ):
            PowerManager(shared_place / "a.db")
        assert content(shared_place) == {}

    @pytest.mark.parametrize("mode", [0o444, 0o000], ids=["readable", "unreadable"])
    def test_database_in_a_read_only_place(self, shared_place: Path, mode: int) -> None:
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

    def test_backup_into_a_read_only_place(self, shared_place: Path, opened: Opener) -> None:
        """A copy that cannot be made is an error, and leaves nothing."""
        pm = opened()
        shared_place.chmod(0o555)
        with without_rights(), pytest.raises(StorageError, match=rf"^{shared_place}/copy.db: "):
            pm.backup(shared_place / "copy.db")
        assert content(shared_place) == {}


def page_size_of(path: Path) -> int:
    """The bytes of a page of a database."""
    ((size,),) = fetch(path, "PRAGMA page_size")
    return int(size)


WRITABLE_SCHEMA = "PRAGMA writable_schema = ON; UPDATE sqlite_master "
LAST_READING = "(SELECT max(timestamp) FROM power_readings)"


class TestTrouble:
    """A locked file, a full disk, a damaged file."""

    def test_locked_file(self, path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opener) -> None:
        """A writer waits BUSY_TIMEOUT for another process, and works again afterwards."""
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
        """An old file that another process reads is upgraded when that ends, within the timeout."""

        class Waiting(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if "journal_mode" in sql:
                    # as SQLite is where two ask for it at once
                    super().execute("PRAGMA busy_timeout = 0")
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
        """On a full disk a writer gets a StorageError, and what was stored before is whole."""
        meter_id = filled(path)
        before = reread(path)
        with PowerManager(path) as pm, full_disk(path.stat().st_size + 20_000):
            with pytest.raises(StorageError, match=rf"^{path}: ") as caught:
                pm.log_many((meter_id, 1.0, i / 3, 50.0, 1e9 + i) for i in range(100_000))
            assert caught.value.filename == str(path)
            assert (everything(pm), pm.check()) == (before, [])
        assert reread(path) == before

    def test_full_disk_inside_a_transaction(
        self, connections: list[sqlite3.Connection], path: Path, opened: Opener
    ) -> None:
        """Where SQLite itself has rolled back, nothing that follows in the block is stored."""
        pm = opened(path)
        pm.register_device("d", "D")
        connections[0].execute("PRAGMA max_page_count = 1")  # as small as the file is now
        ended = "an earlier error has rolled this transaction back, or other code has ended it"

        def register_many() -> None:
            for number in range(10_000):
                pm.register_device(f"d{number}", "D" * 200)

        def fill() -> None:
            with pytest.raises(StorageError, match="full"):
                register_many()
            with pytest.raises(StorageError, match=ended):
                pm.register_device("after", "A")

        def swallowing() -> None:
            with pm.transaction():
                fill()

        with pytest.raises(StorageError, match=ended):
            swallowing()
        connections[0].execute("PRAGMA max_page_count = 1000000")
        assert [device.id for device in pm.list_devices()] == ["d"]
        pm.register_device("again", "A")
        assert [device.id for device in reread(path)["devices"]] == ["d", "again"]

    def test_reading_connection_that_fails(
        self, connections: list[sqlite3.Connection], path: Path, opened: Opener
    ) -> None:
        """An error when reading starts is a StorageError, and the next call works."""
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
        """A file that another process makes or upgrades during the opening is taken as it is."""

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
            WRITABLE_SCHEMA + "SET sql = 'CREATE' WHERE name = 'power_hourly'",
            WRITABLE_SCHEMA + "SET sql = CAST(x'c3' AS TEXT) WHERE name = 'devices'",
        ],
    )
    def test_damaged_schema_or_settings(self, path: Path, damage: str) -> None:
        """A file whose schema or settings are damaged is refused by name."""
        filled(path, sql=damage)
        with pytest.raises(StorageError, match=rf"^{path}: "):
            PowerManager(path)

    @pytest.mark.parametrize("damage", ["voltage = 'abc'", "current_draw = x'00'"])
    def test_damaged_value(self, path: Path, damage: str) -> None:
        """A stored value of a wrong kind is an error that names the file and what to do."""
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
        """iter_history gives what comes before it, and then raises the same."""
        monkeypatch.setattr(power_manager, "_PAGE_ROWS", 2)
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
        page_size = page_size_of(path)
        pages = path.stat().st_size // page_size
        with path.open("r+b") as file:
            file.seek(pages // 2 * page_size)
            file.write(random.Random(1).randbytes(page_size))
        with PowerManager(path, clock=Clock()) as pm:
            assert pm.check() != []
            with pytest.raises(StorageError, match=rf"^{path}: .*malformed"):
                pm.get_history(meter_id, 1e6)


class TestFileThatIsGone:
    """A file that was deleted or replaced while it is open is written to no more."""

    @pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
    @pytest.mark.parametrize("how", ["deleted", "replaced", "renamed"])
    def test_next_write_says_so(
        self, opened: Opener, path: Path, tmp_path: Path, write: Writer, how: str
    ) -> None:
        """It is a StorageError, and what now has the name is as it was."""
        meter_id = filled(path)
        other = tmp_path / "other.db"
        shutil.copyfile(path, other)
        pm = opened(path)
        before = everything(pm)
        assert not pm.is_replaced()
        if how == "deleted":
            path.unlink()
        elif how == "replaced":
            os.replace(other, path)
        else:
            path.rename(tmp_path / "renamed.db")
        assert pm.is_replaced()
        with pytest.raises(StorageError, match="deleted or replaced"):
            write(pm, meter_id)
        pm.close()
        if how == "replaced":
            assert reread(path) == before
        else:
            assert not path.exists()

    def test_transaction(self, opened: Opener, path: Path) -> None:
        """A transaction in which the file goes is not stored, and says so."""
        meter_id = filled(path)
        pm = opened(path)

        def block() -> None:
            with pm.transaction():
                pm.log_power(meter_id, 3.0, 1.0)
                path.unlink()

        with pytest.raises(StorageError, match="deleted or replaced"):
            block()

    def test_opened_through_a_link(self, opened: Opener, path: Path, tmp_path: Path) -> None:
        """A link to the file that is led elsewhere is another file too."""
        meter_id = filled(path)
        other = tmp_path / "other.db"
        filled(other)
        link = tmp_path / "link.db"
        link.symlink_to(path)
        pm = opened(link)
        pm.log_power(meter_id, 3.0, 1.0)
        link.unlink()
        link.symlink_to(other)
        with pytest.raises(StorageError, match="deleted or replaced"):
            pm.log_power(meter_id, 3.0, 1.0)


ENDLESS = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"


ENDLESS_VIEWS = {
    "endless settings": f"""ALTER TABLE power_settings RENAME TO hidden;
        CREATE VIEW power_settings (name, value) AS {ENDLESS} SELECT 'max_gap_us', x FROM n
        WHERE x < 0""",
    "endless values": f"""DROP VIEW power_values;
        CREATE VIEW power_values (meter_key, timestamp, voltage, current_draw, charge_pct) AS
        {ENDLESS} SELECT 1, x, 1.0, 1.0, 1.0 FROM n""",
    "endless hours": f"""DROP VIEW power_hours;
        CREATE VIEW power_hours (meter_key, hour, closed) AS {ENDLESS} SELECT 1, x, 0 FROM n
        WHERE x < 0""",
    "endless devices": f"""PRAGMA foreign_keys = OFF; ALTER TABLE devices RENAME TO hidden;
        CREATE VIEW devices (device_key, id, name, shutdown_threshold, target_wh,
        low_battery_threshold, critical_battery_threshold) AS {ENDLESS}
        SELECT x, x, x, 1.0, NULL, NULL, NULL FROM n""",
}

OTHER_SCHEMAS = {
    "a trigger on readings": """CREATE TRIGGER taker AFTER INSERT ON power_readings BEGIN
        DELETE FROM power_readings WHERE timestamp = new.timestamp; END""",
    "a trigger on events": """CREATE TRIGGER taker AFTER INSERT ON power_events BEGIN
        DELETE FROM power_events; END""",
    "a trigger on meters": """CREATE TRIGGER taker AFTER UPDATE ON power_meters BEGIN
        DELETE FROM power_late; END""",
    "a temporary name": "ALTER TABLE power_late RENAME TO power_latest",
    "another column": "ALTER TABLE power_meters ADD COLUMN more",
    "another default": """PRAGMA writable_schema = ON; UPDATE sqlite_master
        SET sql = replace(sql, 'DEFAULT 0', 'DEFAULT 1') WHERE name = 'power_meters'""",
    "without an index": "DROP INDEX power_events_by_device",
    "without a view": "DROP VIEW statistics",
}


class TestCraftedFiles:
    """A file that says it is ours and is not as we made it is refused, and cannot hang us."""

    LOOK = """if True:
        import sys, power_manager
        try:
            pm = power_manager.PowerManager(sys.argv[1])
        except power_manager.StorageError as error:
            print("refused:", error)
        else:
            print("opened", pm.check())
    """

    @pytest.mark.parametrize("craft", ENDLESS_VIEWS.values(), ids=list(ENDLESS_VIEWS))
    def test_endless_view(self, path: Path, craft: str) -> None:
        """It is refused in a moment, in a process of its own, which could hang."""
        filled(path, sql=craft)
        out = finished(process(self.LOOK, path))
        assert re.match("refused: .*table, index or view .*command `restore`", out)

    @pytest.mark.parametrize("craft", OTHER_SCHEMAS.values(), ids=list(OTHER_SCHEMAS))
    def test_other_schema(self, path: Path, craft: str) -> None:
        """It is a StorageError that says what is not as it was made."""
        filled(path, sql=craft)
        message = "(table, index or view|trigger 'taker').*command `restore`"
        with pytest.raises(StorageError, match=message):
            PowerManager(path)

    def test_tables_of_other_packages(self, path: Path) -> None:
        """Tables, indexes, views and triggers of other packages may be there."""
        filled(
            path,
            sql="""CREATE TABLE other_rows (id INTEGER PRIMARY KEY, value);
            CREATE INDEX other_index ON other_rows (value);
            CREATE VIEW other_view AS SELECT value FROM other_rows;
            CREATE TRIGGER other_trigger AFTER INSERT ON other_rows BEGIN
            DELETE FROM other_rows WHERE id < new.id; END""",
        )
        assert finished(process(self.LOOK, path)) == "opened []"

    def test_endless_view_of_another_name(self, path: Path) -> None:
        """check() looks at nothing that is not ours."""
        filled(path, sql=f"CREATE VIEW first_release_devices AS {ENDLESS} SELECT x FROM n")
        assert finished(process(self.LOOK, path)) == "opened []"


class TestOtherFiles:
    """Files that are no database of ours are refused unharmed."""

    @pytest.mark.parametrize("size", [1, 2, 99, 100, 511])
    def test_few_bytes(self, path: Path, size: int) -> None:
        """A file of few bytes is not a new database, and is not written over."""
        before = b"SQLite format 3\0".ljust(size, b"x")[:size]
        path.write_bytes(before)
        with pytest.raises(StorageError, match=r"power\.db"):
            PowerManager(path)
        assert path.read_bytes() == before

    def test_header(self, path: Path) -> None:
        """Our files say whose they are, and the first version of the schema."""
        filled(path)
        assert fetch(path, "PRAGMA application_id") == [(0x4252504F,)]
        assert fetch(path, "PRAGMA user_version") == [(1,)]

    def test_first_release_without_primary_keys(self, path: Path) -> None:
        """Rows of the first release with the id of another are lost nowhere."""
        execute(path, FIRST_RELEASE.replace("id TEXT PRIMARY KEY", "id TEXT"))
        execute(
            path,
            """INSERT INTO power_readings VALUES ('r1', 'm1', 1.0, 1.0, 1.0, 1.0,
            '2025-06-16T08:00:00+00:00')""",
            """INSERT INTO power_events VALUES ('e1', 'dev-001', 'restore', 1.0,
            '2025-06-16T08:00:00+00:00', NULL)""",
            "INSERT INTO devices VALUES ('dev-001', 'Twin', 1.0, 1.0)",
            "INSERT INTO power_meters VALUES ('m1', 'dev-002', 'ups', 1.0, 1.0, 1.0, 1.0, 'Twin')",
        )
        with PowerManager(path) as pm:
            assert [row[1] for row in history(pm, "m1")] == [1.0, 3.7, 3.6, 3.9, 3.5]
            assert len(pm.events_since(0)) == 3
            assert [device.name for device in pm.list_devices()] == ["Edge Node", "Other"]
            assert len(pm.check()) == 2  # the twins have no place, and are kept apart
        for table in ("devices", "power_meters"):
            assert fetch(path, f"SELECT name FROM first_release_{table}") == [("Twin",)]

    def test_first_release_without_rowid(self, path: Path) -> None:
        """Tables WITHOUT ROWID are upgraded, or refused by name and left as they are."""
        execute(path, re.sub(r"(TEXT|REAL)\);", r"\1) WITHOUT ROWID;", FIRST_RELEASE))
        sql = "SELECT * FROM power_readings ORDER BY id"
        before = fetch(path, sql)
        try:
            with PowerManager(path) as pm:
                assert len(history(pm, "m1")) == 4
                assert pm.check() == []
        except StorageError:
            assert fetch(path, sql) == before


# --- The first release ------------------------------------------------------------------------

FIRST_RELEASE = """
CREATE TABLE devices (id TEXT PRIMARY KEY, name TEXT, shutdown_threshold REAL, target_wh REAL);
CREATE TABLE power_meters (id TEXT PRIMARY KEY, device_id TEXT, type TEXT, voltage REAL,
    current_draw REAL, capacity_wh REAL, charge_pct REAL, name TEXT);
CREATE TABLE power_readings (id TEXT PRIMARY KEY, meter_id TEXT, voltage REAL, current_draw REAL,
    wattage REAL, charge_pct REAL, timestamp TEXT);
CREATE TABLE power_events (id TEXT PRIMARY KEY, device_id TEXT, type TEXT, value REAL,
    timestamp TEXT, note TEXT);
INSERT INTO devices VALUES ('dev-001', 'Edge Node', 4.0, 120.0), ('dev-002', 'Other', NULL, NULL);
INSERT INTO power_meters VALUES ('m1', 'dev-001', 'battery', 3.5, 0.5, 50.0, 15.0, 'Pack'),
    ('m2', 'dev-001', 'solar', 18.0, 1.0, 0.0, 100.0, NULL);
INSERT INTO power_readings VALUES
    ('r1', 'm1', 3.7, 0.5, 1.85, 80.0, '2025-06-16T10:00:00+00:00'),
    ('r3', 'm1', 3.5, 0.5, 1.75, 15.0, '2025-06-16T11:00:00+00:00'),
    ('r2', 'm1', 3.6, 0.5, 1.8, 60.0, '2025-06-16T10:30:00'),
    ('r4', 'm1', 3.9, 0.5, 1.95, 90.0, '2025-06-16T10:30:00.000000Z'),
    ('r5', 'm2', 18.0, 1.0, 18.0, 100.0, '2025-06-16T13:00:00.5+02:00');
INSERT INTO power_events VALUES
    ('e2', 'dev-001', 'discharge', 15.0, '2025-06-16T11:00:00', 'low'),
    ('e1', 'dev-002', 'restore', NULL, '2025-06-16T09:00:00+00:00', NULL);
"""
ODD_ROWS = """
INSERT INTO devices VALUES ('nameless', NULL, 3.0, NULL), (NULL, 'no id', 3.0, NULL);
INSERT INTO power_meters VALUES ('m3', 'gone', 'battery', 1.0, 1.0, 1.0, 1.0, NULL),
    ('m4', 'dev-001', 'fan', 1.0, 1.0, 1.0, 1.0, NULL),
    ('m5', 'dev-002', 'ups', NULL, NULL, NULL, NULL, NULL);
INSERT INTO power_readings VALUES ('r6', 'gone', 1.0, 1.0, 1.0, 1.0, '2025-06-16T10:00:00'),
    ('r7', 'm1', NULL, 1.0, 1.0, 1.0, '2025-06-16T10:00:00'),
    ('r8', 'm1', 1.0, 1.0, 1.0, 1.0, 'noon'),
    ('r9', 'm1', 1.0, 'much', 1.0, 1.0, '2025-06-16T10:00:00'),
    ('r10', 'm1', 1.0, 1.0, 1.0, 1.0, NULL),
    ('r11', 'm3', 1.0, 1.0, 1.0, 1.0, '2025-06-16T10:00:00'),
    ('r12', 'm1', 1.0, 9e999, 1.0, 1.0, '2025-06-16T10:00:00'),
    ('r13', 'm1', 1.0, 1.0, 1.0, NULL, '2025-06-16T08:00:00'),
    ('r14', 'm1', 1.0, 1.0, 1.0, 120.0, '2025-06-16T08:30:00'),
    ('r15', 'm1', 1.0, 1.0, 1.0, 1.0, '1960-01-01T00:00:00');
INSERT INTO power_events VALUES ('e3', 'gone', 'restore', 1.0, '2025-06-16T10:00:00', NULL),
    ('e4', 'dev-001', 'boom', 1.0, '2025-06-16T10:00:00', NULL),
    ('e5', 'dev-001', 'restore', 1.0, 'noon', NULL);
"""
LONG = "m" * 201
OLD_TABLES = ["devices", "power_meters", "power_readings", "power_events"]


class TestFirstRelease:
    """A file of the first release is upgraded with nothing lost."""

    @pytest.fixture
    def upgraded(self, path: Path, opened: Opener) -> PowerManager:
        """A plain file of the first release, opened."""
        execute(path, FIRST_RELEASE)
        return opened(path)

    def test_old_devices(self, upgraded: PowerManager) -> None:
        """Devices keep their values, and get the default threshold where they had none."""
        got = [dataclasses.astuple(device)[:4] for device in upgraded.list_devices()]
        assert got == [("dev-001", "Edge Node", 4.0, 120.0), ("dev-002", "Other", 3.0, None)]

    def test_old_meters(self, upgraded: PowerManager) -> None:
        """Meters keep their ids and present states."""
        assert [dataclasses.astuple(meter)[:8] for meter in upgraded.list_meters()] == [
            ("m1", "dev-001", "battery", 3.5, 0.5, 50.0, 15.0, "Pack"),
            ("m2", "dev-001", "solar", 18.0, 1.0, 0.0, 100.0, None),
        ]
        assert [meter.updated_at for meter in upgraded.list_meters()] == [
            iso(NOW * SECOND - 1.5 * HOUR),
            iso(NOW * SECOND - 1.5 * HOUR + SECOND / 2),
        ]

    def test_old_readings(self, upgraded: PowerManager) -> None:
        """Readings are there, naive times as UTC; two at one instant are a microsecond apart."""
        assert [(row[0][11:26], *row[1:]) for row in history(upgraded, "m1")] == [
            ("10:00:00.000000", 3.7, 0.5, 80.0),
            ("10:30:00.000000", 3.6, 0.5, 60.0),
            ("10:30:00.000001", 3.9, 0.5, 90.0),
            ("11:00:00.000000", 3.5, 0.5, 15.0),
        ]
        assert history(upgraded, "m2") == [("2025-06-16T11:00:00.500000+00:00", 18.0, 1.0, 100.0)]

    def test_old_events(self, upgraded: PowerManager) -> None:
        """Events are there in order of time, with ids and notes."""
        got = [dataclasses.astuple(event) for _, event in upgraded.events_since(0)]
        assert got == [
            ("e1", "dev-002", "restore", 0.0, "2025-06-16T09:00:00.000000+00:00", None, None),
            ("e2", "dev-001", "discharge", 15.0, "2025-06-16T11:00:00.000000+00:00", "low", None),
        ]

    def test_statistics_are_made(self, upgraded: PowerManager) -> None:
        """Reports over the old readings are exact, and nothing is left of the old tables."""
        rows = [
            Reading(int(datetime.fromisoformat(at).timestamp()) * SECOND, v, c, q)
            for at, v, c, q in history(upgraded, "m1")
        ]
        rows[2] = rows[2]._replace(us=rows[1].us + 1)
        assert meter_part(upgraded, "dev-001", 7) == near(brute_force(rows))
        assert upgraded.check() == []

    def test_alerts_go_on(self, upgraded: PowerManager, clock: Clock) -> None:
        """A battery that was low does not raise its event again; a critical one does."""
        for charge in (14.0, 4.0):
            upgraded.log_power("m1", 3.5, 0.5, charge)
        assert alerts_of(upgraded, "dev-001") == ["discharge", "low_battery"]

    def test_upgrade_is_done_once(self, upgraded: PowerManager, path: Path) -> None:
        """The upgraded file opens as any other, with the same content."""
        assert reread(path) == everything(upgraded)
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
                f"INSERT INTO power_meters VALUES ('{LONG}', 'dev-001', 'main', 1, 1, 1, 1, NULL)",
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
        """The file opens, with strict JSON; the odd row stays in its first_release_* table."""
        execute(path, FIRST_RELEASE + sql + ";")
        pm = opened(path)
        assert [device.id for device in pm.list_devices()] == ["dev-001", "dev-002"]
        assert [meter.id for meter in pm.list_meters()] == ["m1", "m2"]
        assert "Infinity" not in json.dumps(pm.power_budget_check(["dev-001", "dev-002"]))
        assert pm.check() == [
            f"first_release_{left}: rows of the first release that could not be migrated"
        ]

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
            re.fullmatch(
                r"first_release_\w+: rows of the first release that could not be migrated", p
            )
            for p in problems
        )

    def test_empty_old_names(self, path: Path, opened: Opener) -> None:
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
        """Rows that have no place stay in first_release_* tables, with a warning for each table."""
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
            ("08:00:00", None),  # it had no charge, which is unknown, not 100 %
            ("08:30:00", 100.0),
        ]
        assert dataclasses.astuple(pm.get_meter("m5"))[3:8] == (0.0, 0.0, 0.0, None, None)
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
        """After any old value every call works, with values of the promised types."""
        execute(path, FIRST_RELEASE, statement)
        pm = opened(path)
        for device in pm.list_devices():
            json.loads(pm.export_report(device.id, 36500), parse_constant=pytest.fail)
            json.loads(json.dumps(pm.power_budget_check([device.id]), allow_nan=False))
            pm.estimate_runtime(device.id)
            assert {type(device.shutdown_threshold), type(device.target_wh)} <= {float, type(None)}
        for meter in pm.list_meters():
            for name in ("voltage", "current_draw", "capacity_wh"):
                assert type(getattr(meter, name)) is float
            assert meter.charge_pct is None or 0 <= meter.charge_pct <= 100
            assert isinstance(meter.name, (str, type(None)))
            pm.log_power(meter.id, 3.7, 0.5)
        for _, event in pm.events_since(0):
            assert isinstance(event.value, float)
            assert isinstance(event.note, (str, type(None)))

    def test_interrupted_upgrade_leaves_the_file_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before any statement of it that an interrupt comes, the file is still an old one."""
        statements: list[str] = []

        class Interrupting(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                statements.append(sql)
                if len(statements) == place:
                    raise KeyboardInterrupt
                return super().execute(sql, *args)

        def old_content(path: Path) -> list[Any]:
            schema = fetch(path, "SELECT sql FROM sqlite_master ORDER BY name")
            return [schema, *(fetch(path, f"SELECT * FROM {table}") for table in OLD_TABLES)]

        connect = sqlite3.connect
        interrupted = 0
        for place in range(1, 1000, 7):
            path = tmp_path / f"{place}.db"
            execute(path, FIRST_RELEASE)
            before = old_content(path)
            statements.clear()
            with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
                patch.setattr(
                    sqlite3,
                    "connect",
                    lambda *args, **options: connect(*args, factory=Interrupting, **options),
                )
                PowerManager(path).close()
                break
            if fetch(path, "PRAGMA application_id") == [(0,)]:
                assert old_content(path) == before
                interrupted += 1
            else:  # it came after the upgrade's commit
                assert len(reread(path)["devices"]) == 2
        assert interrupted > 10

    def test_upgraded_between_two_looks(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that another process upgrades while it is recognised is not another program's."""
        execute(path, FIRST_RELEASE)
        look = power_manager._has_first_release_tables

        def upgraded_first(conn: sqlite3.Connection) -> bool:
            monkeypatch.setattr(power_manager, "_has_first_release_tables", look)
            PowerManager(path).close()
            return look(conn)

        monkeypatch.setattr(power_manager, "_has_first_release_tables", upgraded_first)
        with PowerManager(path) as pm:
            assert pm.check() == []

    def test_upgraders_racing(self, path: Path) -> None:
        """Processes that open an old file at once all succeed, and it is upgraded once."""
        execute(path, FIRST_RELEASE)
        at_once([process(CREATE, path, name) for name in "abcd"])
        found = reread(path)
        assert [len(found[key]) for key in ("devices", "meters", "events")] == [6, 2, 2]
        assert len(found["readings"]["m1"]) == 4


# --- Backup, prune and check ------------------------------------------------------------------


class TestBackup:
    """backup() makes a consistent copy."""

    def test_backup_holds_everything(
        self, file_pm: PowerManager, tmp_path: Path, battery_meter: PowerMeter
    ) -> None:
        """The copy holds everything, replaces what was there, and is the only new file."""
        file_pm.log_power(battery_meter.id, 3.7, 0.5, 4.0)
        target = tmp_path / "copy.db"
        target.write_text("old")
        file_pm.backup(target)
        assert reread(target) == everything(file_pm)
        names = sorted(entry.name for entry in tmp_path.iterdir())
        assert names == ["copy.db", "power.db", "power.db-shm", "power.db-wal"]

    @pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
    def test_backup_over_a_part_of_a_database(
        self, file_pm: PowerManager, path: Path, suffix: str
    ) -> None:
        """SQLite's own files beside a database, its own or another one's, are not written over."""
        file_pm.register_device("x", "X")
        Path(f"{path}2").write_bytes(b"")
        for target in (f"{path}{suffix}", f"{path}2{suffix}"):
            with pytest.raises(
                StorageError, match="a database in use, or a part of one: name another file"
            ):
                file_pm.backup(target)
        file_pm.backup(f"{path}3{suffix}")
        assert [device.id for device in reread(path)["devices"]] == ["x"]

    def test_backup_of_a_database_in_memory(self, opened: Opener, path: Path) -> None:
        """A database in memory can be kept by a copy."""
        pm = opened()
        pm.register_device("d", "D")
        pm.backup(str(path))
        assert [device.id for device in reread(path)["devices"]] == ["d"]

    def test_backup_is_on_the_disk_before_it_has_its_name(
        self, file_pm: PowerManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The copy is synced, then renamed, then its directory is synced."""
        steps: list[str] = []
        fsync = os.fsync
        replace = os.replace

        def recording_fsync(descriptor: int) -> None:
            steps.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
            fsync(descriptor)

        def recording_replace(old: Path, new: Path) -> None:
            steps.append("rename")
            replace(old, new)

        monkeypatch.setattr(os, "fsync", recording_fsync)
        monkeypatch.setattr(os, "replace", recording_replace)
        file_pm.backup(tmp_path / "copy.db")
        assert steps == ["file", "rename", "directory"]

    def test_two_backups_at_once(self, file_pm: PowerManager, tmp_path: Path) -> None:
        """Two threads may copy to one path: the later copy stays."""
        filled(tmp_path / "copy.db")

        def copy() -> None:
            for _ in range(5):
                file_pm.backup(tmp_path / "copy.db")

        in_threads(copy, copy, copy)
        assert reread(tmp_path / "copy.db") == everything(file_pm)
        assert "copy.db" in content(tmp_path)
        assert not any(name.endswith(".tmp") for name in content(tmp_path))

    def test_backup_to_a_relative_path(
        self, file_pm: PowerManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A relative path is one in the working directory."""
        monkeypatch.chdir(tmp_path)
        file_pm.backup("copy.db")
        assert (tmp_path / "copy.db").exists()

    def test_backup_inside_a_transaction(self, file_pm: PowerManager, path: Path) -> None:
        """It could only wait for the transaction: it is refused, and the transaction goes on."""
        with file_pm.transaction():
            file_pm.register_device("d", "D")
            with pytest.raises(
                PowerManagerError, match=r"backup\(\) inside a transaction: leave it first"
            ):
                file_pm.backup(f"{path}.copy")
        assert (len(reread(path)["devices"]), Path(f"{path}.copy").exists()) == (1, False)

    def test_backup_while_others_write(
        self, file_pm: PowerManager, path: Path, tmp_path: Path, battery_meter: PowerMeter
    ) -> None:
        """Each copy is a state between two transactions."""

        def write() -> None:
            for i in range(60):
                file_pm.log_many(
                    (battery_meter.id, 3.7, 0.5, 80.0, NOW + 100 * i + j) for j in range(10)
                )

        def copy() -> None:
            for number in range(5):
                file_pm.backup(tmp_path / f"copy{number}.db")

        in_threads(write, copy)
        for number in range(5):
            copied = reread(tmp_path / f"copy{number}.db")
            assert len(copied["readings"][battery_meter.id]) % 10 == 0

    @pytest.mark.parametrize("name", ["power.db", "link.db", "hard.db", "sub", "used.db"])
    def test_backup_over_the_database(
        self, file_pm: PowerManager, path: Path, tmp_path: Path, name: str, opened: Opener
    ) -> None:
        """The database itself, by any name, a directory and a database in use are refused."""
        (tmp_path / "link.db").symlink_to(path)
        (tmp_path / "hard.db").hardlink_to(path)
        (tmp_path / "sub").mkdir()
        opened(tmp_path / "used.db").register_device("used", "U")
        before = content(tmp_path)
        with pytest.raises(StorageError, match=rf"{name}: a d.+: name another file"):
            file_pm.backup(tmp_path / name)
        assert content(tmp_path) == before

    @pytest.mark.parametrize(
        "make", [os.mkfifo, lambda path: path.symlink_to("/dev/null")], ids=["pipe", "device"]
    )
    def test_backup_over_what_is_no_file(
        self, file_pm: PowerManager, tmp_path: Path, make: Callable[[Path], None]
    ) -> None:
        """A pipe and a device stay what they are: root would make a file of /dev/null."""
        target = tmp_path / "place"
        make(target)
        before = target.lstat(), sorted(os.listdir(tmp_path))
        with pytest.raises(StorageError, match="place: not a regular file: name another"):
            file_pm.backup(target)
        assert (target.lstat(), sorted(os.listdir(tmp_path))) == before

    def test_backup_into_a_missing_directory(self, file_pm: PowerManager, tmp_path: Path) -> None:
        """A directory that is not there is named."""
        with pytest.raises(StorageError, match=r"nowhere/copy.db: "):
            file_pm.backup(tmp_path / "nowhere" / "copy.db")

    def test_backup_to_a_full_disk(self, path: Path, tmp_path: Path) -> None:
        """A copy that the disk has no room for leaves neither copy nor temporary file."""
        filled(path, 3000)
        with (
            PowerManager(path) as pm,
            full_disk(40_000),
            pytest.raises(StorageError, match=rf"^{tmp_path}/copy.db: .* free "),
        ):
            pm.backup(tmp_path / "copy.db")
        assert list(content(tmp_path)) == ["power.db"]


class TestFullDisk:
    """What a full disk does is said as what it is."""

    @pytest.mark.parametrize("size", [0, 4096, 20_000])
    def test_backup(self, opened: Opener, path: Path, tmp_path: Path, size: int) -> None:
        """backup() speaks of space, names its target, leaves nothing, and the file goes on."""
        meter_id = filled(path, 3_000)
        pm = opened(path)
        target = tmp_path / "copy.db"
        with full_disk(size), pytest.raises(StorageError) as caught:
            pm.backup(target)
        assert "space" in str(caught.value)
        assert "directory exists" not in str(caught.value)
        assert caught.value.filename == str(target)
        assert not any(entry.name.startswith((".copy", "copy")) for entry in tmp_path.iterdir())
        pm.log_power(meter_id, 3.0, 1.0)
        pm.backup(target)
        assert reread(target) == everything(pm)

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
    def test_backup_that_cannot_be_synced(
        self, opened: Opener, path: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        """Where the system itself says that there is no space, it is said as that."""

        def fsync(_descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        pm = opened(path)
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError) as caught:
            pm.backup(path.with_name("copy.db"))
        assert "space" in str(caught.value)
        assert "directory exists" not in str(caught.value)
        assert not path.with_name("copy.db").exists()


KILLED_WRITER = """
import os, signal, sys, power_manager
pm = power_manager.PowerManager(sys.argv[1], clock=lambda: 1_750_077_000.0)
rows = int(sys.argv[3])
pm.log_many((sys.argv[2], 3.0, 1.0, 50.0, 1_750_000_000.0 + i) for i in range(rows))
print(len(list(pm.iter_history(sys.argv[2]))), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
OPEN_ELSEWHERE = """
import sys, power_manager
pm = power_manager.PowerManager(sys.argv[1], clock=lambda: 1_750_077_600.0)
print("ready", flush=True)
before = pm.file_id, pm.max_gap, len(list(pm.iter_history(sys.argv[2])))
sys.stdin.readline()
now = pm.file_id, pm.max_gap, len(list(pm.iter_history(sys.argv[2])))
pm.log_power(sys.argv[2], 9.0, 1.0)
print(before != now, *now, pm.check())
pm.close()
"""


def make_notes(backup: Path) -> None:
    """Put a database of another program in place of a backup."""
    backup.unlink()
    execute(backup, "CREATE TABLE notes (text)")


def make_directory(backup: Path) -> None:
    """Put a directory in place of a backup."""
    backup.unlink()
    backup.mkdir()


BAD_BACKUPS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "text": lambda backup: backup.write_text("no database\n" * 100),
    "empty": lambda backup: backup.write_bytes(b""),
    "one byte": lambda backup: backup.write_bytes(b"S"),
    "cut": lambda backup: backup.write_bytes(backup.read_bytes()[:5000]),
    "a changed reading": lambda backup: execute(
        backup, "UPDATE power_readings SET voltage = voltage + 1"
    ),
    "another program's": make_notes,
    "a development version's": lambda backup: execute(
        backup, f"PRAGMA application_id = {0x4252504D}; PRAGMA user_version = 3"
    ),
    "a newer version's": lambda backup: execute(backup, "PRAGMA user_version = 2"),
    "a directory": make_directory,
}


class TestRestore:
    """restore() puts a backup in place of the present content, in one step."""

    @pytest.fixture
    def backup(self, path: Path, tmp_path: Path) -> Path:
        """A backup of a file that has gone on since: 30 readings, and now 40 and an event."""
        meter_id = filled(path)
        backup = tmp_path / "backup.db"
        with PowerManager(path, clock=Clock()) as pm:
            pm.backup(backup)
            pm.log_many((meter_id, 9.0, 1.0, 60.0, NOW - 50 + i) for i in range(10))
            pm.trigger_event("dev-001", "shutdown")
        return backup

    @staticmethod
    def restore(how: str, pm: PowerManager, backup: Path) -> None:
        """Restore a backup by the method or by the function."""
        if how == "restore":
            pm.restore(backup)
        else:
            power_manager.restore_database(pm.db_path, backup)

    def test_damaged_file_is_kept(self, path: Path, backup: Path) -> None:
        """The damaged file is kept under another name, and an old -wal beside it does no harm."""
        damaged = b"no database at all, and longer than a header of SQLite is. " * 10
        path.write_bytes(damaged)
        Path(f"{path}-wal").write_bytes(b"of before")
        power_manager.restore_database(path, backup)
        assert reread(path) == reread(backup)
        aside = Path(f"{path}.damaged")
        assert aside.read_bytes() == damaged

    def test_locked_file(self, path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that another program has locked whole is named as busy, and stays as it was."""
        monkeypatch.setattr(power_manager, "BUSY_TIMEOUT", 0.1)
        before = reread(path)
        other = sqlite3.connect(path, isolation_level=None)
        try:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StorageError, match="locked") as caught:
                power_manager.restore_database(path, backup)
        finally:
            other.close()
        assert caught.value.filename == str(path)
        assert reread(path) == before

    @pytest.mark.parametrize(
        ("error", "is_damage"),
        [
            (sqlite3.DatabaseError("malformed"), True),
            (sqlite3.OperationalError("locked"), False),
            (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a schema"), True),
        ],
        ids=["damaged", "locked", "damaged schema"],
    )
    def test_what_is_damage(self, error: Exception, is_damage: bool) -> None:
        """On Python 3.10, where SQLite's errors have no names, their class tells damage."""
        assert power_manager._is_damage(error) == is_damage

    def test_content(self, opened: Opener, path: Path, backup: Path) -> None:
        """Everything is as it was at the backup, in this object and in others; the backup stays."""
        bytes_before = backup.read_bytes()
        expected = reread(backup)
        pm = opened(path)
        other = opened(path)
        assert everything(pm) != expected
        pm.restore(backup)
        assert everything(pm) == everything(other) == reread(path) == expected
        assert backup.read_bytes() == bytes_before
        meter_id = pm.list_meters()[0].id
        other.log_power(meter_id, 5.0, 1.0)
        pm.log_power(meter_id, 6.0, 1.0)
        assert len(history(pm, meter_id)) == 32
        assert pm.check() == []

    def test_leaves_no_file_beside(self, opened: Opener, path: Path, backup: Path) -> None:
        """Nothing but the database and the backup is there afterwards, private to its owner."""
        opened(path).restore(backup)
        names = {entry.name for entry in path.parent.iterdir()}
        assert names <= {"power.db", "power.db-wal", "power.db-shm", "backup.db"}
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize("rows", [150, 3_000])
    @pytest.mark.parametrize("how", ["restore", "restore_database"])
    def test_beside_the_log_of_a_killed_writer(
        self, path: Path, tmp_path: Path, rows: int, how: str
    ) -> None:
        """An old -wal is not replayed over the restored content."""
        meter_id = filled(path)
        backup = tmp_path / "backup.db"
        with PowerManager(path) as pm:
            pm.backup(backup)
        child = process(KILLED_WRITER, path, meter_id, rows)
        out, _ = child.communicate(timeout=60)
        assert out.strip() == str(30 + rows)
        assert (tmp_path / "power.db-wal").stat().st_size > 0
        if how == "restore":
            with PowerManager(path) as pm:
                assert len(history(pm, meter_id)) == 30 + rows
                pm.restore(backup)
        else:
            power_manager.restore_database(path, backup)
        assert reread(path) == reread(backup)

    def test_while_another_process_has_it_open(
        self, opened: Opener, path: Path, tmp_path: Path
    ) -> None:
        """It sees the new content and settings at its next call, and what it logs is stored."""
        backup = tmp_path / "backup.db"
        with PowerManager(backup, max_gap=60.0) as pm:
            pm.register_device("d", "D")
            meter_id = pm.add_meter("d", "main").id
            pm.log_power(meter_id, 9.0, 1.0, timestamp=NOW + 535)
        with PowerManager(path) as pm:
            pm.register_device("d", "D")
            pm.restore(backup)  # so that both know the meter
            pm.log_power(meter_id, 9.0, 1.0, timestamp=NOW)
        execute(path, "UPDATE power_settings SET value = 5400000000 WHERE name = 'max_gap_us'")
        child = process(OPEN_ELSEWHERE, path, meter_id)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        pm = opened(path)
        former_id = pm.file_id
        pm.restore(backup)
        changed, file_id, max_gap, count, problems = finished(child).split()
        assert (changed, max_gap, count, problems) == ("True", "60.0", "1", "[]")
        assert former_id != file_id == pm.file_id
        (hour,) = pm.get_statistics(meter_id)
        assert hour.reading_count == 2
        assert hour.energy_out_wh == 0.0  # 65 s are more than this file's max_gap
        assert pm.check() == []

    def test_file_id_is_renewed(self, opened: Opener, path: Path, backup: Path) -> None:
        """Each restored content is a new line of history."""
        pm = opened(path)
        ids = [pm.file_id]
        for _ in range(2):
            pm.restore(backup)
            ids.append(pm.file_id)
        with PowerManager(backup) as other:
            ids.append(other.file_id)
        assert ids[0] == ids[-1]  # a backup is of the same line of history
        assert len(set(ids[:-1])) == 3

    @pytest.mark.parametrize("damage", ["missing", "empty", "text", "page", "one byte", "cut"])
    def test_present_file_that_cannot_be_opened(
        self, path: Path, backup: Path, damage: str
    ) -> None:
        """restore_database() works where the present file is missing or damaged."""
        expected = reread(backup)
        good = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(
                {
                    "empty": b"",
                    "text": b"this was a database once\n" * 100,
                    "page": good[:100] + bytes(4096) + good[4196:],
                    "one byte": b"S",
                    "cut": good[: len(good) // 2],
                }[damage]
            )
        power_manager.restore_database(path, backup)
        assert reread(path) == expected
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_damaged_file_that_opens(self, opened: Opener, path: Path, backup: Path) -> None:
        """restore() takes the damage away."""
        execute(path, "UPDATE power_readings SET voltage = 'x'")
        pm = opened(path)
        assert pm.check() != []
        pm.restore(backup)
        assert pm.check() == []
        assert everything(pm) == reread(backup)

    @pytest.mark.parametrize("size", [4096, 65536])
    def test_page_size(self, opened: Opener, path: Path, backup: Path, size: int) -> None:
        """The content takes this file's page size, whatever the backup's is."""
        execute(backup, f"PRAGMA journal_mode = delete; PRAGMA page_size = {size}; VACUUM")
        assert fetch(backup, "PRAGMA page_size") == [(size,)]
        before = fetch(path, "PRAGMA page_size")
        pm = opened(path)
        pm.restore(backup)
        assert fetch(path, "PRAGMA page_size") == before
        assert everything(pm) == reread(backup)

    def test_first_release(self, opened: Opener, path: Path, backup: Path) -> None:
        """A backup of the first release is upgraded on the way, and stays as it is."""
        backup.unlink()
        execute(backup, FIRST_RELEASE)
        bytes_before = backup.read_bytes()
        pm = opened(path)
        pm.restore(backup)
        assert [device.id for device in pm.list_devices()] == ["dev-001", "dev-002"]
        assert [len(history(pm, meter.id)) for meter in pm.list_meters()] == [4, 1]
        assert pm.check() == []
        assert backup.read_bytes() == bytes_before

    @pytest.mark.parametrize("spoil", BAD_BACKUPS.values(), ids=list(BAD_BACKUPS))
    @pytest.mark.parametrize("how", ["restore", "restore_database"])
    def test_bad_backup(
        self, path: Path, backup: Path, how: str, spoil: Callable[[Path], object]
    ) -> None:
        """It is refused by name, and the present content is as it was."""
        spoil(backup)
        before = reread(path)
        with PowerManager(path) as pm:
            file_id = pm.file_id
            if how == "restore":
                with pytest.raises(StorageError, match=r"backup\.db"):
                    pm.restore(backup)
                assert everything(pm) == before
        if how == "restore_database":
            with pytest.raises(StorageError, match=r"backup\.db"):
                power_manager.restore_database(path, backup)
        assert reread(path) == before
        with PowerManager(path) as pm:
            assert pm.file_id == file_id

    def test_other_refusals(self, opened: Opener, path: Path, backup: Path) -> None:
        """Restoring the file onto itself, in a transaction, or over another program's file."""
        pm = opened(path)
        before = everything(pm)
        with pytest.raises(StorageError, match="itself"):
            pm.restore(path)
        with (
            pm.transaction(),
            pytest.raises(PowerManagerError, match=r"restore\(\) inside a transaction"),
        ):
            pm.restore(backup)
        with pytest.raises(InvalidValue, match="path"):
            pm.restore(5)  # type: ignore[arg-type]
        pm.close()
        with pytest.raises(StorageError, match="closed"):
            pm.restore(backup)
        assert reread(path) == before
        notes = path.with_name("notes.db")
        execute(notes, "CREATE TABLE notes (text)")
        bytes_before = notes.read_bytes()
        with pytest.raises(StorageError, match="another program"):
            power_manager.restore_database(notes, backup)
        assert notes.read_bytes() == bytes_before

    @pytest.mark.parametrize("how", ["restore", "restore_database"])
    def test_waiting_for_a_writer_ends(
        self, opened: Opener, path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        """Where another process goes on writing it gives up after BUSY_TIMEOUT."""
        monkeypatch.setattr(power_manager, "BUSY_TIMEOUT", 0.2)
        pm = opened(path)
        before = everything(pm)
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageError, match="another process is writing") as caught:
                self.restore(how, pm, backup)
            assert caught.value.sqlite_errorname in ("SQLITE_BUSY", "")
            writer.execute("ROLLBACK")
        assert everything(pm) == reread(path) == before
        pm.restore(backup)
        assert everything(pm) == reread(backup)

    def test_while_another_reads(self, opened: Opener, path: Path, backup: Path) -> None:
        """A reader in the middle of a report goes on seeing the content that it began with."""
        pm = opened(path)
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            count = reader.execute("SELECT count(*) FROM power_readings").fetchone()
            pm.restore(backup)
            assert reader.execute("SELECT count(*) FROM power_readings").fetchone() == count
            reader.execute("ROLLBACK")
            assert reader.execute("SELECT count(*) FROM power_readings").fetchone() == (30,)
        assert everything(pm) == reread(path) == reread(backup)

    def test_full_disk(self, opened: Opener, path: Path, backup: Path) -> None:
        """Without space nothing is restored, and the error speaks of space."""
        pm = opened(path)
        before = everything(pm)
        with full_disk(8192), pytest.raises(StorageError, match="space"):
            pm.restore(backup)
        assert everything(pm) == before
        assert pm.check() == []

    def test_full_disk_of_the_copy(
        self, opened: Opener, path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The copy lies beside the database, so a full disk is told of the database."""
        pm = opened(path)
        connect = sqlite3.connect

        def connect_to_a_full_disk(*arguments: Any, **options: Any) -> sqlite3.Connection:
            conn: sqlite3.Connection = connect(*arguments, **options)
            if str(arguments[0]).endswith(".restore"):
                conn.execute("PRAGMA max_page_count = 2")
            return conn

        monkeypatch.setattr(sqlite3, "connect", connect_to_a_full_disk)
        with pytest.raises(StorageError, match="disk is full") as caught:
            pm.restore(backup)
        assert caught.value.filename == str(path)
        assert pm.check() == []

    def test_followers_of_a_restored_file(self, opened: Opener, path: Path, backup: Path) -> None:
        """A follower that the backup does not know goes on, and can acknowledge."""
        pm = opened(path)
        follower = pm.event_follower("mail", from_start=True)
        follower.acknowledge(pm.last_sequence())
        assert follower.pending() == []
        pm.restore(backup)
        follower.acknowledge(pm.last_sequence())
        assert follower.pending() == []
        event = pm.trigger_event("dev-001", "shutdown")
        assert follower.pending() == [(pm.last_sequence(), event)]

    def test_errors_say_how(self, path: Path) -> None:
        """Where a damaged file is reported, the command `restore` is named."""
        filled(path)
        good = path.read_bytes()
        path.write_bytes(good[:100] + bytes(len(good) - 100))
        with pytest.raises(StorageError, match="the command `restore`"):
            PowerManager(path)


class TestPrune:
    """prune() closes whole hours: their readings go, their statistics stay."""

    HOUR_START = NOW // 3600 * 3600  # 12:00, seconds

    def test_prune_returns_how_many_went(
        self, file_pm: PowerManager, battery_meter: PowerMeter, solar_meter: PowerMeter
    ) -> None:
        """Of every meter the readings of whole hours before the cut-off go, but for the last."""
        for meter in (battery_meter, solar_meter):
            for hours in (48, 25, 24, 0):
                file_pm.log_power(meter.id, 1.0, 1.0, 50.0, timestamp=NOW - 3600 * hours)
        assert (file_pm.prune(1), file_pm.prune(1)) == (2, 0)
        assert [row[0][8:13] for row in history(file_pm, battery_meter.id)] == [
            "15T11",
            "15T12",
            "16T12",
        ]
        assert file_pm.prune(keep_days=0) == 2
        assert [row[0][8:13] for row in history(file_pm, solar_meter.id)] == ["15T12", "16T12"]
        assert file_pm.check() == []

    @pytest.mark.parametrize(
        ("seconds", "went"), [(3600, 3), (3599, 0), (7199, 3), (7200, 7)], ids=str
    )
    def test_prune_takes_whole_hours(
        self,
        file_pm: PowerManager,
        battery_meter: PowerMeter,
        clock: Clock,
        seconds: int,
        went: int,
    ) -> None:
        """An hour is closed when it has ended before the cut-off, and not before."""
        start = self.HOUR_START
        file_pm.log_many((battery_meter.id, 1.0, 1.0, 50.0, start + 900 * i) for i in range(12))
        clock.now = start + seconds
        assert (file_pm.prune(0), file_pm.check()) == (went, [])

    def test_prune_leaves_the_hour_of_the_newest_reading(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """However old it is, that hour stays whole, and the last reading before it."""
        start = self.HOUR_START
        file_pm.log_many((battery_meter.id, 1.0, 1.0, i, start + 900 * i) for i in range(10))
        clock.now = start + 1e7
        assert file_pm.prune(0) == 7
        assert [row[3] for row in history(file_pm, battery_meter.id)] == [7.0, 8.0, 9.0]
        assert file_pm.check() == []

    def test_prune_leaves_the_last_reading_with_watts(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """Where the last reading lacks its watts, the one that is the next hour's neighbour stays.

        So a late reading that comes first in the open hour is booked exactly.
        """
        start = int(self.HOUR_START) * SECOND
        rows = [
            Reading(start + minute * 60 * SECOND, 5.0, 2.0, 50.0) for minute in (10, 20, 30, 70)
        ]
        rows.insert(3, Reading(start + 40 * 60 * SECOND, None, 2.0, 50.0))
        file_pm.log_many(as_readings(battery_meter.id, rows))
        clock.now = self.HOUR_START + 7200
        assert file_pm.prune(0) == 2
        assert [row[1] for row in history(file_pm, battery_meter.id)] == [5.0, None, 5.0]
        rows.append(Reading(start + 65 * 60 * SECOND, 5.0, -2.0, 50.0))
        assert file_pm.log_many(as_readings(battery_meter.id, rows)) == 1
        assert_statistics(file_pm, battery_meter.id, buckets(rows, HOUR))
        assert file_pm.check() == []

    def test_prune_leaves_statistics_states_and_events(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """All but the readings, and with them what waits of them, is as before."""
        rows = random_rows(random.Random(2), 100, int(NOW) * SECOND, unknown=0.2)
        file_pm.log_many(as_readings(battery_meter.id, rows))
        clock.now = NOW + 1e6
        before = everything(file_pm)
        left = [row.us for row in rows if row.us // HOUR == rows[-1].us // HOUR]
        went = file_pm.prune(0)
        after = everything(file_pm)
        changed = {"readings", "waiting"}
        for part in before.keys() - changed:
            assert after[part] == before[part]
        assert len(history(file_pm, battery_meter.id)) == 100 - went
        assert 1 <= 100 - went - len(left) <= 2
        assert [int(id_.rpartition(":")[2]) for id_ in after["waiting"]][-len(left) :] == left
        assert file_pm.check() == []

    @pytest.mark.parametrize("seed", range(3))
    def test_report_into_closed_hours(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock, seed: int
    ) -> None:
        """A report is exact from an open hour on, and has a closed hour whole."""
        rows = random_rows(random.Random(seed), 100, int(NOW) * SECOND)
        file_pm.log_many(as_readings(battery_meter.id, rows))
        end = rows[-1].us // SECOND + 1
        clock.now = float(end)
        limit = rows[60].us // HOUR * HOUR
        file_pm.prune((end * SECOND - limit) / DAY)
        closed = {row.us // HOUR for row in rows if row.us < limit}
        for seconds in range(1, int(end - NOW), 1709):
            after = (end - seconds) * SECOND
            hour = after // HOUR
            first_hour = next((row.us // HOUR for row in rows if row.us > after), hour)
            if closed.isdisjoint(range(hour, first_hour + 1)):
                expected = brute_force(rows, after + 1)
            else:
                start = hour if hour in closed else hour + 1
                expected = brute_force(rows, start * HOUR, leading_in=True)
            assert meter_part(file_pm, "dev-001", seconds / 86400) == near(expected)

    def test_report_of_a_meter_with_closed_hours_and_others(
        self, file_pm: PowerManager, device: DeviceRecord, clock: Clock
    ) -> None:
        """The first hour is whole for a meter that has it closed, and exact for the others."""
        chance = random.Random(1)
        start = int(self.HOUR_START) * SECOND
        rows = [
            Reading(start + minute * 60 * SECOND, 5.0, chance.uniform(-2, 2), 50.0)
            for minute in range(240)
        ]
        pruned = file_pm.add_meter(device.id, "main")
        file_pm.log_many(as_readings(pruned.id, rows))
        clock.now = self.HOUR_START + 4 * 3600
        assert file_pm.prune(2 / 24) == 119
        kept = file_pm.add_meter(device.id, "solar")
        late = [row for row in rows if chance.random() < 0.4]
        file_pm.log_many(as_readings(kept.id, late))
        sparse = file_pm.add_meter(device.id, "battery")
        around = [rows[75], rows[130], rows[131]]  # a pair lies across the start of most windows
        file_pm.log_many(as_readings(sparse.id, around))
        for seconds in range(1, 4 * 3600, 613):
            after = int(clock.now - seconds) * SECOND
            hour_start = after // HOUR * HOUR
            if hour_start < start + 2 * HOUR:
                first = brute_force(rows, hour_start, leading_in=True)
            else:
                first = brute_force(rows, after + 1)
            expected = [first, brute_force(late, after + 1), brute_force(around, after + 1)]
            got = [meter_part(file_pm, device.id, seconds / 86400, part) for part in range(3)]
            assert got == [near(part) for part in expected]
        assert file_pm.check() == []

    def test_recorded_reading_of_a_closed_hour(
        self, file_pm: PowerManager, battery_meter: PowerMeter, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is not stored, and the log says so: it cannot be told whether it was counted."""
        rows = [(battery_meter.id, 1.0, 1.0, 50.0, NOW - age) for age in (90000, 89000, 0)]
        file_pm.log_many(rows)
        assert file_pm.prune(1) == 1
        before = everything(file_pm)
        assert file_pm.log_many(rows) == 0
        again = file_pm.log_power(*rows[0][:4], timestamp=rows[0][4])
        assert (again.charge_pct, again.timestamp) == (50.0, iso((NOW - 90000) * SECOND))
        beside = file_pm.log_many([(battery_meter.id, 1.0, 1.0, 50.0, NOW - 89500)])
        assert (beside, everything(file_pm)) == (0, before)
        logged = [(record.name, record.levelname) for record in caplog.records]
        assert logged == [("power_manager", "WARNING")] * 3
        assert "not stored: 1; prune() has closed their hours" in caplog.text

    def test_recorded_reading_between_closed_hours(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """Closed is a mark of an hour: one that had no readings is open, before and after."""
        start = self.HOUR_START
        rows = [(battery_meter.id, 1.0, 6.0, 50.0, start + 3600 * hour) for hour in (0, 2, 4)]
        file_pm.log_many(rows)
        clock.now = start + 4 * 3600
        assert file_pm.prune(0) == 1
        between = [(battery_meter.id, 1.0, 6.0, 40.0, start + 3600 * hour) for hour in (-1, 1, 3)]
        assert file_pm.log_many(between) == 3
        got = file_pm.get_statistics(battery_meter.id)
        assert [s.reading_count for s in got] == [1] * 6
        # Known are those of the stored neighbours: 2 and 3 o'clock, and 3 and 4.
        assert [s.energy_out_wh for s in got] == [0.0, 0.0, 0.0, 0.0, 6.0, 6.0]
        assert file_pm.check() == []

    def test_live_reading_in_a_closed_hour(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A clock that was set back: the reading is stored, counted, and the present state."""
        start = self.HOUR_START
        file_pm.log_many((battery_meter.id, 1.0, 6.0, 50.0, start + 600 * i) for i in range(13))
        clock.now = start + 7200
        assert file_pm.prune(0) == 11
        (before, _, _) = file_pm.get_statistics(battery_meter.id)
        clock.now = start + 300
        file_pm.log_power(battery_meter.id, 1.0, 60.0, 40.0)
        (after, _, _) = file_pm.get_statistics(battery_meter.id)
        assert (after.reading_count, after.min_charge_pct, after.max_wattage) == (7, 40.0, 60.0)
        assert after.energy_out_wh == before.energy_out_wh
        assert file_pm.get_meter(battery_meter.id).charge_pct == 40.0
        assert file_pm.check() == []
        clock.now = start + 7200
        assert (file_pm.prune(0), file_pm.check()) == (1, [])
        assert file_pm.get_statistics(battery_meter.id)[0] == after

    @pytest.mark.parametrize("count", [1, 3])
    def test_live_reading_that_moves_into_a_closed_hour(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock, count: int
    ) -> None:
        """A clock that was set back to the last microsecond of an open hour and stands still: from
        the second reading on they are in the next hour, which is closed, and count in it.
        """
        start = self.HOUR_START
        file_pm.log_many((battery_meter.id, 1.0, 6.0, 50.0, start + 600 * i) for i in range(13))
        clock.now = start + 7200
        assert file_pm.prune(0) == 11
        clock.now = start - 1e-6
        file_pm.log_power(battery_meter.id, 1.0, 60.0, 40.0)
        (_, closed, *_) = file_pm.get_statistics(battery_meter.id)
        assert closed.reading_count == 6
        file_pm.log_many((battery_meter.id, 1.0, 70.0, 30.0) for _ in range(count))
        (before, after, *_) = file_pm.get_statistics(battery_meter.id)
        assert (before.reading_count, after.reading_count) == (1, 6 + count)
        assert (after.max_wattage, after.min_charge_pct) == (70.0, 30.0)
        assert after.energy_out_wh == closed.energy_out_wh
        assert file_pm.check() == []

    def test_prune_after_the_clock_was_set_back(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A live reading of a closed hour does not pass for its last one, which is gone."""
        start = self.HOUR_START
        hours = [0, 0.5, 3, 3.5, 4]
        file_pm.log_many((battery_meter.id, 1.0, 6.0, 50.0, start + 3600 * h) for h in hours)
        clock.now = start + 4 * 3600
        assert file_pm.prune(0) == 3
        for seconds in (2900, 3000):
            clock.now = start + seconds
            file_pm.log_power(battery_meter.id, 1.0, 6.0, 50.0)
        file_pm.log_power(battery_meter.id, 1.0, 6.0, 50.0, timestamp=start + 3700)
        clock.now = start + 3800
        assert (file_pm.prune(0), file_pm.check()) == (1, [])
        _, next_hour, *_ = file_pm.get_statistics(battery_meter.id)
        assert (next_hour.reading_count, next_hour.energy_out_wh) == (1, 0.0)

    def test_report_with_an_open_hour_before_a_closed_one(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A reading without watts of the open hour in which the report starts is counted."""
        start = self.HOUR_START
        file_pm.log_many((battery_meter.id, 1.0, 6.0, 50.0, start + s) for s in (4200, 4800, 7800))
        clock.now = start + 9000
        assert file_pm.prune(0) == 1
        file_pm.log_power(battery_meter.id, None, 6.0, 20.5, timestamp=start + 3000)
        part = meter_part(file_pm, "dev-001", 6600 / 86400)
        assert (part["reading_count"], part["min_charge_pct"]) == (4, 20.5)
        assert part["energy_out_wh"] == pytest.approx(6.0 * 3600 / 3600)

    def test_prune_while_the_clock_is_years_ahead(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """Its hours are closed; those of the right time are not, and go on exactly."""
        for seconds in range(0, 7200, 600):
            clock.now = NOW + YEARS + seconds
            file_pm.log_power(battery_meter.id, 5.0, 2.0, 50.0)
        file_pm.prune(0)
        rows = [
            Reading(int(NOW + seconds) * SECOND, 5.0, 2.0 + seconds / 1e4, 50.0)
            for seconds in range(0, 7200, 600)
        ]
        for row in rows:
            clock.now = row.us / SECOND
            file_pm.log_power(battery_meter.id, *row[1:])
        assert file_pm.log_many(as_readings(battery_meter.id, rows)) == 0
        got = file_pm.get_statistics(battery_meter.id, days=36500)
        expected = buckets(rows, HOUR)
        assert [s.start for s in got[: len(expected)]] == [start for start, _ in expected]
        for statistics, (_, values) in zip(got, expected, strict=False):
            assert {name: getattr(statistics, name) for name in values} == near(values)
        assert sum(s.reading_count for s in got) == 24
        assert (file_pm.prune(0), file_pm.check()) == (8, [])

    def test_report_does_not_move_with_prune(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """Pruning what is older than a report's first hour leaves the report as it was."""
        clock.now = self.HOUR_START + 1800
        file_pm.log_many(
            (battery_meter.id, 10.0, 1.0, 50.0, clock.now - 60 * minute) for minute in range(2880)
        )
        days = [1, 1441 / 1440, 1469 / 1440]
        reports = [file_pm.export_report("dev-001", days=span) for span in days]
        budget = file_pm.power_budget_check(["dev-001"])
        counts = [meter_part(file_pm, "dev-001", span)["reading_count"] for span in days]
        assert counts == [1440, 1441, 1469]
        assert file_pm.prune(1) == 1408
        assert [file_pm.export_report("dev-001", days=span) for span in days] == reports
        assert file_pm.power_budget_check(["dev-001"]) == budget

    def test_prune_in_short_transactions(
        self,
        battery_meter: PowerMeter,
        connections: list[sqlite3.Connection],
        path: Path,
        opened: Opener,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A long prune commits page by page, so that others can write between them."""
        monkeypatch.setattr(power_manager, "_PAGE_ROWS", 10)
        pm = opened(path)
        pm.log_many((battery_meter.id, 1.0, 1.0, 50.0, NOW - 600 * i) for i in range(300))
        statements: list[str] = []
        connections[0].set_trace_callback(statements.append)
        assert pm.prune(0) == 295
        assert statements.count("COMMIT") >= 10
        assert pm.check() == []


class TestClosedHours:
    """prune() closes whole hours: the sequences of the design, one by one."""

    START = NOW // 3600 * 3600

    @pytest.fixture
    def pm(self, opened: Opener) -> PowerManager:
        """A PowerManager in memory, with the device and the meter of `meter_id`."""
        pm = opened()
        pm.register_device("d", "D")
        return pm

    @pytest.fixture
    def meter_id(self, pm: PowerManager) -> str:
        """A meter with readings of 10 W every 10 minutes, from three hours ago to this hour."""
        meter = pm.add_meter("d", "main")
        pm.log_many((meter.id, 10.0, 1.0, 50.0, self.START - 10_800 + 600 * i) for i in range(21))
        return meter.id

    def counts(self, pm: PowerManager, meter_id: str) -> list[int]:
        """The reading count of each hour."""
        return [row.reading_count for row in pm.get_statistics(meter_id, days=36500)]

    def energy(self, pm: PowerManager, meter_id: str) -> float:
        """All energy out."""
        return pm.energy_totals(meter_id).energy_out_wh

    def test_what_goes(self, pm: PowerManager, meter_id: str) -> None:
        """Whole hours before the cut-off go, but for the last reading before one that stays."""
        before = pm.get_statistics(meter_id)
        cut = NOW - (self.START - 7200 + 1800)  # in the middle of the second hour
        assert pm.prune(cut / 86400) == 5
        assert pm.prune(cut / 86400) == 0
        assert len(history(pm, meter_id)) == 16
        assert pm.prune(0) == 12
        assert [row[0] for row in history(pm, meter_id)] == [
            iso((self.START + second) * SECOND) for second in (-600, 0, 600, 1200)
        ]
        assert pm.get_statistics(meter_id) == before
        assert self.energy(pm, meter_id) == about(10.0 * 12_000 / 3600)
        assert pm.check() == []

    def test_live_reading_of_a_closed_hour(
        self, pm: PowerManager, meter_id: str, clock: Clock
    ) -> None:
        """A clock that was set back: it is stored and counted, and so is the one after it."""
        pm.prune(0)
        clock.now = self.START - 9000
        pm.log_power(meter_id, 20.0, 1.0, 40.0)
        assert pm.get_meter(meter_id).updated_at == iso((self.START - 9000) * SECOND)
        assert self.counts(pm, meter_id) == [7, 6, 6, 3]
        clock.now = self.START - 6000
        pm.log_power(meter_id, 20.0, 1.0, 40.0)
        assert self.counts(pm, meter_id) == [7, 7, 6, 3]
        clock.now = NOW
        pm.log_power(meter_id, 10.0, 1.0, 40.0)
        assert self.counts(pm, meter_id) == [7, 7, 6, 4]
        assert len(history(pm, meter_id)) == 7
        assert self.energy(pm, meter_id) >= 10.0 * (10_800 + 1800) / 3600 - 1e-9
        assert pm.check() == []

    def test_late_reading_into_an_open_hour_after_a_closed_one(
        self, pm: PowerManager, meter_id: str
    ) -> None:
        """The reading that was left is its neighbour, so the hour stays exact."""
        pm.prune((NOW - self.START) / 86400 + 1 / 24)
        pm.log_power(meter_id, 40.0, 1.0, 50.0, timestamp=self.START - 3600 + 300)
        rows = [
            Reading(int(self.START - 10_800 + 600 * i) * SECOND, 10.0, 1.0, 50.0) for i in range(21)
        ]
        rows.append(Reading(int(self.START - 3300) * SECOND, 40.0, 1.0, 50.0))
        assert_statistics(pm, meter_id, buckets(sorted(rows), HOUR))
        assert pm.check() == []

    def test_max_gap_of_days(self, opened: Opener) -> None:
        """With a long max_gap a late reading changes an hour many hours later."""
        pm = opened(max_gap=10 * 86400)
        pm.register_device("d", "D")
        meter_id = pm.add_meter("d", "main").id
        at = [int(NOW - 8 * 86400), int(NOW - 86400), int(NOW)]
        rows = [Reading(second * SECOND, 10.0, 1.0 + i, 50.0) for i, second in enumerate(at)]
        pm.log_many(as_readings(meter_id, rows))
        late = Reading(int(NOW - 4 * 86400) * SECOND, 77.0, 1.0, 50.0)
        pm.log_many(as_readings(meter_id, [late]))
        rows.append(late)
        expected = buckets(sorted(rows), HOUR, max_gap=10 * 86400)
        assert_statistics(pm, meter_id, expected)
        pm.prune(2)
        assert_statistics(pm, meter_id, expected)
        assert pm.check() == []

    def test_max_gap_of_nothing(self, opened: Opener) -> None:
        """With a max_gap of 0 no energy is booked, in any order."""
        pm = opened(max_gap=0)
        pm.register_device("d", "D")
        meter_id = pm.add_meter("d", "main").id
        rows = [Reading(int(NOW - second) * SECOND, 10.0, 1.0, 50.0) for second in (10, 5, 7000, 1)]
        for row in rows:
            pm.log_many(as_readings(meter_id, [row]))
        assert_statistics(pm, meter_id, buckets(sorted(rows), HOUR, max_gap=0))
        assert self.energy(pm, meter_id) == 0.0
        assert pm.check() == []

    def test_two_processes_in_turn(self, opened: Opener, path: Path, clock: Clock) -> None:
        """Two objects that write one meter in turn make the same statistics as one."""
        first = opened(path)
        second = opened(path)
        first.register_device("d", "D")
        meter_id = first.add_meter("d", "main").id
        rows = []
        for number in range(60):
            clock.now = NOW + 300 * number
            (first, second)[number % 2].log_power(meter_id, 10.0, 1.0 + number, 50.0)
            rows.append(Reading(round(clock.now) * SECOND, 10.0, 1.0 + number, 50.0))
            if number in (20, 40):
                (second, first)[number % 2].prune(0)
        assert_statistics(first, meter_id, buckets(rows, HOUR))
        assert first.check() == []

    def test_backfill_and_live_in_turn(self, opened: Opener, clock: Clock) -> None:
        """A backfill from the past and live readings make the statistics of the sorted readings."""
        pm = opened()
        pm.register_device("d", "D")
        meter_id = pm.add_meter("d", "main").id
        rows = []
        for number in range(40):
            old = Reading(int(NOW - 40_000 + 700 * number) * SECOND, 10.0, -2.0, 50.0)
            clock.now = NOW + 400 * number
            new = Reading(round(clock.now) * SECOND, 10.0, 3.0 + number, 50.0)
            pm.log_many(as_readings(meter_id, [old]))
            pm.log_power(meter_id, *new[1:])
            rows += [old, new]
        assert_statistics(pm, meter_id, buckets(sorted(rows), HOUR))
        assert pm.check() == []


CHANGES = {
    "voltage, 1 microvolt": "voltage = voltage + 1",
    "voltage, as a float": "voltage = voltage / 1e6 + 2e-6",
    "current, 1 microampere": "current_draw = current_draw - 1",
    "charge, 0.0002 points": "charge_pct = charge_pct / 1e2 + 0.0002",
    "charge, down": "charge_pct = charge_pct - 1",
    "timestamp, 1 microsecond": "timestamp = timestamp + 1",
    "timestamp, 1 hour": "timestamp = timestamp + 3600000050",
    "timestamp, 100,000 years": "timestamp = 4000000000000000000",
    "timestamp, negative": "timestamp = -timestamp",
    "voltage, not known": "voltage = NULL",
    "current, not known": "current_draw = NULL",
    "voltage, text": "voltage = 'abc'",
    "current, blob": "current_draw = x'00'",
    "charge, text": "charge_pct = '80'",
    "voltage, infinite": "voltage = 9e999",
    "current, huge": "current_draw = -1.7e308",
}
SUMS = ["closed", "reading_count", "power_count", "wattage_sum", "min_wattage", "max_wattage"]
SUMS += ["min_charge_pct", "max_charge_pct", "energy_out_wh", "energy_in_wh", "checksum"]
NULLABLE = ["min_wattage", "max_wattage", "min_charge_pct", "max_charge_pct"]
WHOLE_NUMBERS = ["closed", "reading_count", "power_count", "checksum"]
ONE_READING = "timestamp = (SELECT {}(timestamp) FROM power_readings)"
ALL_SUMS = ", ".join(SUMS)
INVENT_HOUR = f"""INSERT INTO power_hourly (meter_key, hour, {ALL_SUMS})
    SELECT meter_key, hour + 500, {ALL_SUMS} FROM power_hourly"""


class TestCheck:
    """check() finds every kind of damage."""

    @pytest.fixture
    def meter_id(self, path: Path) -> str:
        """A database with readings in three hours: closed, open, and under way."""
        id_ = filled(path, 60)
        clock = Clock()
        clock.now = NOW + 1800
        with PowerManager(path, clock=clock) as pm:
            assert pm.prune(0.5 / 24) == 11
            assert pm.check() == []
        closed = fetch(path, "SELECT closed, reading_count > 0 FROM power_hours ORDER BY hour")
        assert closed == [(1, 1), (0, 1), (0, 1)]
        return id_

    def found(self, path: Path) -> list[str]:
        """What check() finds."""
        with PowerManager(path) as pm:
            return pm.check()

    @pytest.mark.parametrize("which", ["min", "max"])
    @pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
    def test_changed_reading(self, path: Path, meter_id: str, change: str, which: str) -> None:
        """A single change in the first or last reading is found, and the meter is named."""
        execute(path, f"UPDATE power_readings SET {change} WHERE {ONE_READING.format(which)}")
        assert any(meter_id in problem for problem in self.found(path))

    @pytest.mark.parametrize("which", ["min", "max"])
    def test_deleted_reading(self, path: Path, meter_id: str, which: str) -> None:
        """A reading that is gone is found."""
        execute(path, f"DELETE FROM power_readings WHERE {ONE_READING.format(which)}")
        assert any(meter_id in problem for problem in self.found(path))

    @pytest.mark.parametrize("which", ["min", "max"])
    def test_added_reading(self, path: Path, meter_id: str, which: str) -> None:
        """A reading that was put in behind the library's back is found."""
        added = "SELECT meter_key, timestamp + 1, 1, 1, 1 FROM power_readings"
        execute(path, f"INSERT INTO power_readings {added} WHERE {ONE_READING.format(which)}")
        assert any(meter_id in problem for problem in self.found(path))

    def test_any_reading_by_the_least_change(self, path: Path) -> None:
        """In any reading the next float up or down is found, and the value itself is not."""
        chance = random.Random(8)
        with PowerManager(path) as pm:
            pm.register_device("d", "D")
            meter = pm.add_meter("d", "ups")
            pm.log_many(as_readings(meter.id, random_rows(chance, 40, int(NOW) * SECOND)))
            for (us,) in fetch(path, "SELECT timestamp FROM power_readings"):
                column = chance.choice(["voltage", "current_draw", "charge_pct"])
                sql = f"SELECT v.{column}, r.{column} FROM power_values v JOIN power_readings r"
                ((value, packed),) = fetch(path, f"{sql} USING (timestamp) WHERE timestamp = {us}")
                for new in (math.nextafter(value, 1e9), math.nextafter(value, -1e9), packed):
                    change = f"UPDATE power_readings SET {column} = {new!r} WHERE timestamp = {us}"
                    execute(path, change)
                    assert bool(pm.check()) is (new is not packed)

    @pytest.mark.parametrize(
        "value", ["{} + 1", "{} - 1", "{} * 1.0001 + 0.0001", "NULL", "'abc'", "x'00'", "9e999"]
    )
    @pytest.mark.parametrize("column", SUMS)
    @pytest.mark.parametrize("which", ["closed", "open", "under way"])
    def test_changed_sum_of_an_hour(
        self, path: Path, meter_id: str, column: str, value: str, which: str
    ) -> None:
        """A changed value in the statistics of an hour is found, in the only copy too."""
        if column in WHOLE_NUMBERS and "." in value:
            value = "{} + 2"
        table = "power_meters" if which == "under way" else "power_hourly"
        rows = {"closed": "closed", "open": "NOT closed", "under way": "1"}[which]
        change = f"UPDATE {table} SET {column} = {value.format(column)} WHERE {rows}"
        if value == "NULL" and column not in NULLABLE:
            with pytest.raises(sqlite3.IntegrityError, match="NOT NULL constraint failed"):
                execute(path, change)
            return
        execute(path, change)
        assert any(meter_id in problem for problem in self.found(path))

    @pytest.mark.parametrize("which", ["closed", "NOT closed"])
    @pytest.mark.parametrize(
        "change",
        [
            "DELETE FROM power_hourly",
            "UPDATE power_hourly SET hour = hour + 500",
            "UPDATE power_hourly SET hour = hour - 500",
            "UPDATE power_hourly SET hour = 4000000000000",
            "UPDATE power_hourly SET hour = 'abc'",
            INVENT_HOUR,
        ],
        ids=["gone", "moved", "moved back", "far away", "text", "invented"],
    )
    def test_misplaced_hour(self, path: Path, meter_id: str, change: str, which: str) -> None:
        """An hour's row that is missing, misplaced or invented is found, in little memory."""
        execute(path, f"{change} WHERE {which}")
        tracemalloc.start()
        try:
            assert any(meter_id in problem for problem in self.found(path))
            assert tracemalloc.get_traced_memory()[1] < 50e6
        finally:
            tracemalloc.stop()

    def test_all_readings_are_gone(self, path: Path, meter_id: str) -> None:
        """Readings that have vanished with their whole hour are found, hour by hour."""
        execute(path, "DELETE FROM power_readings")
        problems = [problem for problem in self.found(path) if meter_id in problem]
        for hour in (11, 12, 13):
            assert any(f"2025-06-16T{hour}:00:00.000000+00:00" in p for p in problems)

    @pytest.mark.parametrize("value", ["'abc'", "x'00'", "9e999", "5"])
    @pytest.mark.parametrize(
        "column",
        [
            "voltage",
            "current_draw",
            "charge_pct",
            "state_us",
            "latest_us",
            "powered_us",
            "powered_wattage",
            "alert_level",
            "hour",
        ],
    )
    def test_changed_present_state(
        self, path: Path, meter_id: str, column: str, value: str
    ) -> None:
        """A meter's row that does not agree with its readings is found, and its meter named."""
        execute(path, f"UPDATE power_meters SET {column} = {value}")
        assert any(meter_id in problem for problem in self.found(path))

    @pytest.mark.parametrize(
        "change",
        [
            "id = 'other'",
            "type = 'shutdown'",
            "type = 'boom'",
            "value = value + 1e-6",
            "value = 'much'",
            "timestamp = timestamp + 1",
            "timestamp = -1",
            "note = 'other'",
            "note = x'00'",
            "meter_id = 'other'",
            "checksum = checksum + 1",
        ],
    )
    def test_changed_event(self, path: Path, meter_id: str, change: str) -> None:
        """A changed value of an event is found."""
        execute(path, f"UPDATE power_events SET {change}")
        assert any(problem.startswith("event 1: ") for problem in self.found(path))

    def test_statistics_that_are_gone(self, path: Path, opened: Opener) -> None:
        """Without its hours a file reports what it can, and check() misses the hours."""
        with PowerManager(path, clock=Clock()) as pm:
            meter = pm.add_meter(pm.register_device("d", "D").id, "main")
            pm.log_many((meter.id, 1.0, 1.0, 50.0, NOW - hours * 3600) for hours in (9, 5, 1))
        execute(path, "DELETE FROM power_hourly")
        pm = opened(path)
        assert meter_part(pm, "d", 4 / 24)["reading_count"] == 1
        assert pm.power_budget_check(["d"])["d"]["total_wattage"] == 1.0
        assert len(pm.check()) == 2

    @pytest.mark.parametrize("seed", range(4))
    def test_large_sums_that_cancel_out(
        self, memory_pm: PowerManager, battery_meter: PowerMeter, seed: int
    ) -> None:
        """An industrial battery's readings in any order are no damage."""
        chance = random.Random(seed)
        amperes = [chance.uniform(0.1, 150) for _ in range(1800)]
        amperes += [-current for current in amperes]
        start = NOW // 3600 * 3600
        volts = 700 + chance.random()
        rows = [
            (battery_meter.id, volts, current, 50.0, start + second)
            for second, current in enumerate(amperes)
        ]
        chance.shuffle(rows)
        for first in range(0, len(rows), 100):
            memory_pm.log_many(rows[first : first + 100])
        assert memory_pm.check() == []

    @pytest.mark.parametrize("volts", [1e6, 1e3])
    def test_largest_values_in_many_readings(
        self, memory_pm: PowerManager, battery_meter: PowerMeter, volts: float
    ) -> None:
        """An hour of the largest values there may be is no damage, and energy is never below 0."""
        start = NOW // 3600 * 3600
        memory_pm.log_many(
            (battery_meter.id, volts, (-1) ** i * 1e6, 50.0, start + i / 10) for i in range(20_000)
        )
        assert memory_pm.check() == []
        (statistics,) = memory_pm.get_statistics(battery_meter.id)
        assert statistics.energy_out_wh >= 0
        assert statistics.energy_in_wh >= 0

    def test_missing_present_state(self, path: Path, meter_id: str) -> None:
        """A meter that has readings, and no time of its present state, is found."""
        execute(path, "UPDATE power_meters SET state_us = NULL")
        assert any(meter_id in problem for problem in self.found(path))

    def test_meter_that_is_neither_active_nor_not(self, path: Path, meter_id: str) -> None:
        """A mark that can be neither is found."""
        execute(path, "UPDATE power_meters SET active = 5")
        assert any(meter_id in problem or "active" in problem for problem in self.found(path))

    def test_row_whose_device_is_gone(self, path: Path, meter_id: str) -> None:
        """A row that refers to a missing one is found."""
        execute(path, "DELETE FROM devices")
        problems = self.found(path)
        assert {"power_meters", "power_events"} <= {problem.split(":")[0] for problem in problems}

    def test_damaged_index(self, path: Path, meter_id: str) -> None:
        """What SQLite's own check says is passed on."""
        page_size = page_size_of(path)
        name = "power_events_by_device"
        sql = f"SELECT rootpage FROM sqlite_master WHERE name = '{name}'"
        ((page,),) = fetch(path, sql)
        with path.open("r+b") as file:
            file.seek((page - 1) * page_size + 3)
            file.write(b"\0\0")  # the number of its entries
        assert any(problem.startswith("integrity: ") for problem in self.found(path))

    @pytest.mark.parametrize("seed", range(4))
    def test_bit_flips(self, path: Path, tmp_path: Path, meter_id: str, seed: int) -> None:
        """After any one bit flips, readings are unchanged, or it is found, or opening fails."""
        good = path.read_bytes()
        before = all_readings(path)
        chance = random.Random(seed)
        damaged = tmp_path / "damaged.db"
        page_size = page_size_of(path)
        pages = range(len(good) // page_size)
        assert len(good) == len(pages) * page_size
        for page in (*pages, *chance.choices(pages, k=80)):
            flipped = bytearray(good)
            place = page * page_size + chance.randrange(page_size)
            flipped[place] ^= 1 << chance.randrange(8)
            damaged.write_bytes(flipped)
            with suppress(StorageError):
                assert self.found(damaged) or all_readings(damaged) == before


def all_readings(path: Path) -> list[Any]:
    """The stored readings, as they are in the file."""
    return fetch(path, "SELECT * FROM power_readings")


def changes_of(value: Any) -> list[Any]:
    """Other values that a cell could have instead."""
    if value is None:
        return [0, 1, 0.5, "x"]
    if isinstance(value, str):
        return [None, "", value + "x", value[:-1] or "y", 5]
    others: list[Any] = [None, "x", b"\0", value + 1, value - 1, -value - 1]
    if isinstance(value, float):
        others += [value * 1.0001 + 1e-9, math.inf]
    else:
        others += [value + 3600 * SECOND, value ^ 1, value + 0.5, 2**62]
    return others


COVERED_COLUMNS = {
    "power_readings": "meter_key timestamp voltage current_draw charge_pct",
    "power_hourly": """meter_key hour closed reading_count power_count wattage_sum min_wattage
        max_wattage min_charge_pct max_charge_pct energy_out_wh energy_in_wh checksum""",
    "power_meters": """hour closed reading_count power_count wattage_sum min_wattage
        max_wattage min_charge_pct max_charge_pct energy_out_wh energy_in_wh checksum
        voltage current_draw charge_pct state_us latest_us powered_us powered_wattage""",
    "power_events": "id device_key type value timestamp note meter_id checksum",
}


class TestAnyChangedValue:
    """check() finds any single changed value in readings, statistics, events and states."""

    @pytest.fixture
    def whole(self, path: Path, clock: Clock) -> Path:
        """A file with closed hours, open ones, unknown watts, late readings and events."""
        with PowerManager(path, clock=clock, alert_types=["battery", "ups"]) as pm:
            pm.register_device("d", "D")
            pm.register_device("e", "E")
            meters = [pm.add_meter("d", "battery", 50.0, "Pack"), pm.add_meter("e", "ups")]
            for meter in meters:
                rows: list[tuple[Any, ...]] = [
                    (meter.id, 12.5, 0.4 + i / 100, 99.0 - 3 * i, NOW - 18_000 + 601 * i)
                    for i in range(29)
                ]
                rows[7] = (meter.id, None, 1.0, 80.0, NOW - 18_000 + 601 * 7)
                pm.log_many(rows[:20] + rows[21:])
                pm.log_many(rows[20:21])
            pm.prune(0.125)
            clock.now = NOW - 17_000
            for meter in meters:
                pm.log_power(meter.id, 11.0, -1.0, 70.0)  # live, in a closed hour
            clock.now = NOW
            for meter in meters:
                pm.log_power(meter.id, 12.0, 1.0, 40.0)
            pm.trigger_event("d", "restore", 1.5, "by hand", meter_id=meters[0].id)
            pm.trigger_event("e", "shutdown")
            assert pm.check() == []
        assert len(fetch(path, "SELECT DISTINCT closed FROM power_hours")) > 1
        return path

    @pytest.mark.parametrize("table", COVERED_COLUMNS)
    def test_every_cell(self, whole: Path, table: str) -> None:
        """Another value in any cell is found; three of each cell's possible ones are tried."""
        conn = sqlite3.connect(whole, isolation_level=None)
        conn.execute("PRAGMA synchronous = off")
        key = {
            "power_readings": ("meter_key", "timestamp"),
            "power_hourly": ("meter_key", "hour"),
            "power_meters": ("meter_key",),
            "power_events": ("sequence",),
        }[table]
        conn.row_factory = sqlite3.Row
        rows = conn.execute(f"SELECT * FROM {table}").fetchall()
        where = " AND ".join(f"{name} = :{name}" for name in key)
        missed: list[str] = []
        chance = random.Random(table)
        with closing(conn), PowerManager(whole) as pm:
            for row, column in itertools.product(rows, COVERED_COLUMNS[table].split()):
                old = row[column]
                values = chance.sample(changes_of(old), 3)
                for new in values:
                    if new == old and type(new) is type(old):
                        continue
                    conn.execute("BEGIN")
                    keys = {name: row[name] for name in key}
                    update = f"UPDATE OR IGNORE {table} SET {column} = :new WHERE {where}"
                    with suppress(sqlite3.IntegrityError, OverflowError):
                        conn.execute(update, {**keys, "new": new})
                    changed = conn.execute(f"SELECT * FROM {table}").fetchall() != rows
                    conn.execute("COMMIT")
                    if changed and pm.check() == []:
                        missed.append(f"{column}: {old!r} -> {new!r}")
                    conn.execute("BEGIN")
                    conn.execute(f"DELETE FROM {table}")
                    marks = ", ".join("?" * len(row))
                    conn.executemany(
                        f"INSERT INTO {table} VALUES ({marks})", [tuple(row) for row in rows]
                    )
                    conn.execute("COMMIT")
            assert missed == []
            assert pm.check() == []

    def test_reading_that_is_gone(self, whole: Path) -> None:
        """A row of any of these tables but events that is deleted is found."""
        for table in ("power_readings", "power_hourly"):
            rows = fetch(whole, f"SELECT * FROM {table}")
            for row in rows:
                key, instant = row[:2]
                column = "timestamp" if table == "power_readings" else "hour"
                execute(
                    whole,
                    f"DELETE FROM {table} WHERE meter_key = {key} AND {column} = {instant}",
                )
                with PowerManager(whole) as pm:
                    assert pm.check() != [], row
                with closing(sqlite3.connect(whole)) as conn, conn:
                    marks = ", ".join("?" * len(row))
                    conn.execute(f"INSERT INTO {table} VALUES ({marks})", row)
        with PowerManager(whole) as pm:
            assert pm.check() == []

    def test_says_what_it_does_not_cover(self) -> None:
        """The docstring names it."""
        text = str(PowerManager.check.__doc__)
        assert "does not cover" in text


class TestEnergyIsNeverNegative:
    """Neither energy out nor energy in is ever below 0."""

    @pytest.mark.parametrize("seed", [1, 2, 34, 44, 52])
    def test_large_values_in_any_order(self, opened: Opener, seed: int) -> None:
        """Kilovolts and kiloamperes of both signs, late readings and deletions included."""
        chance = random.Random(seed)
        pm = opened()
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "battery")
        volts = chance.choice([1e4, 1e6])
        rows = [
            (meter.id, volts, chance.choice([-1, 1]) * chance.uniform(1e3, 3e3), 50.0, NOW - at)
            for at in chance.sample(range(10_000), 60)
        ]
        for row in rows:
            pm.log_many([row])
            totals = pm.energy_totals(meter.id)
            found = [totals.energy_out_wh, totals.energy_in_wh]
            for hour in pm.get_statistics(meter.id):
                found += [hour.energy_out_wh, hour.energy_in_wh]
            (part,) = json.loads(pm.export_report("d", 0.05))["meters"]
            found += [part.get("energy_out_wh", 0.0), part.get("energy_in_wh", 0.0)]
            assert min(found) >= 0.0
        pm.delete_readings(meter.id, since=NOW - 5000, until=NOW - 1000)
        totals = pm.energy_totals(meter.id)
        assert min(totals.energy_out_wh, totals.energy_in_wh) >= 0.0
        assert pm.check() == []


# --- Cost -------------------------------------------------------------------------------------


class Effort:
    """Counts what calls cost, without a clock: steps of SQLite, and calls inside Python."""

    def __init__(self) -> None:
        self.connections: list[sqlite3.Connection] = []
        self._steps = 0

    def step(self) -> int:
        """Count a step of SQLite, and let it go on."""
        self._steps += 1
        return 0

    def _watch(self, _frame: FrameType, event: str, _argument: Any) -> None:
        self._steps += event in ("call", "c_call")

    def of(self, call: Callable[[], object]) -> int:
        """The steps that a call takes, on connections that it opens too."""
        self._steps = 0
        for connection in self.connections:
            with suppress(sqlite3.ProgrammingError):  # closed
                connection.set_progress_handler(self.step, 1)
        sys.setprofile(self._watch)
        try:
            call()
        finally:
            sys.setprofile(None)
        for connection in self.connections:
            with suppress(sqlite3.ProgrammingError):
                connection.set_progress_handler(None, 1)
        return self._steps


@pytest.fixture
def effort(monkeypatch: pytest.MonkeyPatch) -> Effort:
    """Counts the cost of calls, on every connection that is opened from here on."""
    counter = Effort()
    connect = sqlite3.connect

    def counting(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_progress_handler(counter.step, 1)
        counter.connections.append(connection)
        return connection

    monkeypatch.setattr(sqlite3, "connect", counting)
    return counter


class TestCost:
    """What a call costs does not grow with what it does not touch."""

    def test_live_reading_before_many_later_ones(
        self, effort: Effort, opened: Opener, clock: Clock
    ) -> None:
        """It costs the same behind 30,000 later readings as behind ten."""
        pm = opened()
        pm.register_device("d", "D")
        meter_id = pm.add_meter("d", "main").id
        later = NOW + 10 * 3600
        rows = [(meter_id, 1.0, 1.0, 50.0, later + 5 * i) for i in range(30_000)]
        costs = []
        for some in ([], rows[:10], rows[10:]):
            pm.log_many(some)
            # At an instant that is free, and at one that is taken.
            costs += [effort.of(lambda: pm.log_power(meter_id, 1.0, 1.0)) for _ in range(2)]
            clock.now += 5
        ordinary = min(costs[:2])
        assert max(costs[4:]) < 1.1 * max(costs[2:4])
        assert max(costs[4:]) < 3 * ordinary

    @pytest.mark.parametrize("behind", [False, True], ids=["newest", "behind newer readings"])
    def test_frozen_clock_in_one_call(
        self, effort: Effort, opened: Opener, clock: Clock, behind: bool
    ) -> None:
        """Twice as many live rows of one instant cost about twice as much."""
        costs = []
        for count in (500, 1_000):
            pm = opened()
            pm.register_device("d", "D")
            meter_id = pm.add_meter("d", "main").id
            if behind:
                pm.log_many((meter_id, 1.0, 1.0, 50.0, NOW + 1 + i) for i in range(100))
            rows = [(meter_id, 1.0, 1.0)] * count
            costs.append(effort.of(lambda: pm.log_many(rows)))  # noqa: B023 - runs at once
            assert len(history(pm, meter_id)) == count + 100 * behind
            assert pm.check() == []
        assert costs[1] < 2.2 * costs[0]

    @pytest.mark.parametrize("behind", [0, 3 * 3600], ids=["newest", "behind newer readings"])
    def test_frozen_clock_call_by_call(
        self, effort: Effort, opened: Opener, clock: Clock, behind: float
    ) -> None:
        """The last of 600 live calls of one instant costs about what the tenth costs."""
        pm = opened()
        pm.register_device("d", "D")
        meter_id = pm.add_meter("d", "main").id
        if behind:
            pm.log_many((meter_id, 1.0, 1.0, 50.0, NOW + behind + i) for i in range(100))
        costs = []
        with pm.transaction():
            for number in range(600):
                if number in (10, 599):
                    costs.append(effort.of(lambda: pm.log_power(meter_id, 1.0, 1.0)))
                else:
                    pm.log_power(meter_id, 1.0, 1.0)
        assert costs[1] < 1.5 * costs[0]
        assert pm.check() == []

    @pytest.mark.parametrize("order", ["ascending", "descending", "random", "one instant"])
    def test_upgrade_of_a_first_release(self, effort: Effort, path: Path, order: str) -> None:
        """Twice as many readings cost about twice as much, in any order."""
        costs = []
        for count in (300, 600):
            old = path.with_name(f"{count}.db")
            execute(old, FIRST_RELEASE)
            seconds = [0 if order == "one instant" else 60 * i for i in range(count)]
            if order == "descending":
                seconds.reverse()
            if order == "random":
                random.Random(1).shuffle(seconds)
            with closing(sqlite3.connect(old)) as conn, conn:
                conn.executemany(
                    "INSERT INTO power_readings VALUES (?, 'm1', 1.0, 1.0, 1.0, 50.0, ?)",
                    [(f"n{i}", iso(second * SECOND)) for i, second in enumerate(seconds)],
                )
            costs.append(effort.of(lambda: PowerManager(old).close()))  # noqa: B023 - runs at once
            with PowerManager(old) as pm:
                assert len(history(pm, "m1")) == count + 4
        assert costs[1] < 2.3 * costs[0]


# --- Random lives -----------------------------------------------------------------------------


@dataclasses.dataclass
class ClosedHour:
    """An hour that prune() has closed: what was counted in it, and the energy that was known."""

    rows: list[Reading]
    energy_out_wh: float
    energy_in_wh: float
    has_last: bool  # its last reading is still there


class Life:
    """One meter, kept the plainest way: what is stored, and what closed hours add up to."""

    def __init__(self, max_gap: float) -> None:
        self.max_gap = max_gap
        self.rows: dict[int, Reading] = {}
        self.closed: dict[int, ClosedHour] = {}
        self.first_pct: float | None = 100.0
        self.forgotten_us = -1  # readings up to this instant give later ones no charge
        self.present_us = -1
        self.present_pct: float | None = 100.0

    def record(self, rows: Iterable[Reading]) -> int:
        """Recorded readings of one call; how many were new.

        In order of time each without a charge takes that of the reading before it.
        """
        new: list[int] = []
        for row in rows:
            if row.us in self.rows or row.us // HOUR in self.closed:
                continue
            if row.us > max(self.rows, default=-1):
                self.present_us = row.us
            self.rows[row.us] = row
            new.append(row.us)
        for us in sorted(new):
            if self.rows[us].charge_pct is None:
                self.rows[us] = self.rows[us]._replace(charge_pct=self.charge_before(us))
        if self.present_us in new:
            self.present_pct = self.rows[self.present_us].charge_pct
        return len(new)

    def charge_before(self, us: int) -> float | None:
        """The charge that a recorded reading takes."""
        earlier_us = max((other for other in self.rows if other < us), default=-1)
        if earlier_us < 0:
            return self.first_pct
        if earlier_us <= self.forgotten_us < us:
            return None
        return self.rows[earlier_us].charge_pct

    def forget_charge(self) -> None:
        """The charge is unknown from now on; what is stored stays."""
        self.first_pct = None
        if self.present_pct is not None:
            self.forgotten_us = max(self.rows, default=-1)
        self.present_pct = None

    def live(self, row: Reading) -> None:
        """A live reading, at the instant that it got; in a closed hour it is counted.

        Its energy is known there only if it follows the hour's last reading.
        """
        self.present_us = row.us
        self.present_pct = row.charge_pct
        closed = self.closed.get(row.us // HOUR)
        if closed is not None:
            closed.rows.append(row)
            stored = [r for r in self.rows.values() if r.us // HOUR == row.us // HOUR]
            with_watts = [other for other in stored if other.watts is not None]
            if closed.has_last and with_watts and all(other.us < row.us for other in stored):
                energy = brute_force([max(with_watts), row], max_gap=self.max_gap)
                closed.energy_out_wh += energy["energy_out_wh"]
                closed.energy_in_wh += energy["energy_in_wh"]
        self.rows[row.us] = row

    def prune(self, cutoff_us: int) -> int:
        """Close the whole hours before a time; how many readings went."""
        if not self.rows:
            return 0
        limit_us = min(cutoff_us // HOUR, max(self.rows) // HOUR) * HOUR
        before = sorted(us for us in self.rows if us < limit_us)
        closing = {us // HOUR for us in before} - self.closed.keys()
        self.closed |= {hour: self.close(hour) for hour in sorted(closing)}
        kept = before[-1:]
        powered = [us for us in before if self.rows[us].watts is not None]
        kept += [us for us in powered[-1:] if us >= before[-1] - self.max_gap * SECOND]
        gone = set(before) - set(kept)
        for us in gone:
            del self.rows[us]
        for hour in closing | {us // HOUR for us in gone}:
            if hour not in {us // HOUR for us in kept}:
                self.closed[hour].has_last = False
        return len(gone)

    def close(self, hour: int) -> ClosedHour:
        """An hour as it is now."""
        values = self.statistics(hour)
        rows = [row for row in self.rows.values() if row.us // HOUR == hour]
        return ClosedHour(rows, values["energy_out_wh"], values["energy_in_wh"], has_last=True)

    def cuts_a_closed_hour(self, since_us: int, until_us: int) -> bool:
        """Whether a range has a part of a closed hour, and not the whole of it."""
        for hour in self.closed:
            inside_us = min(until_us, (hour + 1) * HOUR) - max(since_us, hour * HOUR)
            if 0 < inside_us < HOUR:
                return True
        return False

    def delete(self, since_us: int, until_us: int) -> int:
        """Delete readings and the closed hours of a range; how many readings went."""
        gone = [us for us in self.rows if since_us <= us < until_us]
        for us in gone:
            del self.rows[us]
        for hour in list(self.closed):
            if since_us <= hour * HOUR < until_us:
                del self.closed[hour]
        if since_us <= self.present_us < until_us:
            self.present_us = max(self.rows, default=-1)
            is_forgotten = self.present_us <= self.forgotten_us
            self.present_pct = self.first_pct
            if self.rows:
                newest = self.rows[self.present_us]
                self.present_pct = None if is_forgotten else newest.charge_pct
        self.forgotten_us = min(self.forgotten_us, max(self.rows, default=-1))
        return len(gone)

    def hours(self) -> list[int]:
        """The hours that have statistics."""
        return sorted({us // HOUR for us in self.rows} | self.closed.keys())

    def statistics(self, hour: int, after_us: int = -1) -> dict[str, Any]:
        """The statistics of an hour; of an open one, those of the readings later than a time."""
        if hour in self.closed:
            closed = self.closed[hour]
            energies = {"energy_out_wh": closed.energy_out_wh, "energy_in_wh": closed.energy_in_wh}
            return brute_force(closed.rows) | energies
        with_watts = {
            number: closed.has_last
            for number, closed in self.closed.items()
            if any(row.watts is not None for row in closed.rows)
        }
        return brute_force(
            (row for row in self.rows.values() if row.us > after_us),
            hour * HOUR,
            (hour + 1) * HOUR,
            leading_in=True,
            max_gap=self.max_gap,
            closed=with_watts,
        )

    def window(self, after_us: int) -> dict[str, Any]:
        """What a report says of the readings later than a time.

        The hour in which it starts counts whole where it is closed, and then the next one does.
        """
        hours = [hour for hour in self.hours() if hour >= after_us // HOUR]
        if after_us // HOUR in self.closed:
            after_us = -1
        rows: list[Reading] = []
        energies = {"energy_out_wh": 0.0, "energy_in_wh": 0.0}
        for hour in hours:
            if hour in self.closed:
                rows += self.closed[hour].rows
            else:
                rows += [r for us, r in self.rows.items() if us > after_us and us // HOUR == hour]
            for name in energies:
                energies[name] += self.statistics(hour, after_us).get(name, 0.0)
        if not rows:
            return {"reading_count": 0}
        return brute_force(rows) | energies


class RandomLife:
    """Two meters of one device, and what a random sequence of calls does to them."""

    def __init__(self, pm: PowerManager, clock: Clock, seed: int) -> None:
        self.pm = pm
        self.clock = clock
        self.chance = random.Random(seed)
        pm.register_device("d", "D")
        self.meters = [pm.add_meter("d", kind).id for kind in ("battery", "main")]
        self.lives = [Life(pm.max_gap) for _ in self.meters]
        self.start_us = int(NOW) * SECOND // HOUR * HOUR

    def step(self) -> None:
        """Do one thing to the file, and the same to the model."""
        steps = [self.log_live] * 6 + [self.log_recorded] * 6 + [self.log_many] * 3
        steps += [self.prune] * 3 + [self.delete] + [self.move_clock] * 6 + [self.forget_charge]
        self.chance.choice(steps)()

    def row(self, us: int) -> Reading:
        """A reading at some instant; some lack volts or amperes, some their charge."""
        chance = self.chance
        voltage = chance.choice([None, 5.0, 12.5, round(chance.uniform(3, 15), 3)])
        current = chance.choice([None, 0.0, -1.5, 2.0, chance.uniform(-3, 3)])
        charge: float | None = round(chance.uniform(0, 100), 1)
        if chance.random() < 0.4 and (voltage, current) != (None, None):
            charge = None
        return Reading(us, voltage, current, charge)

    def instant(self) -> int:
        """An instant of half a day, minutes apart, so that many are the same; some far off."""
        us = self.start_us + self.chance.randrange(720) * 60 * SECOND
        return us + self.chance.choice([0] * 40 + [1, -1, 40 * DAY])

    def move_clock(self) -> None:
        """The clock goes on, is set right, stands on a minute, or is far off."""
        seconds = self.chance.choice([0.5, 60, 600, 3600, 7200, -1800, -7200, YEARS, -YEARS])
        if abs(seconds) == YEARS and self.chance.random() < 0.7:
            self.clock.now = self.instant() / SECOND
        else:
            self.clock.now += seconds
        self.clock.now = min(max(self.clock.now, NOW - YEARS), NOW + 2 * YEARS)

    def log_live(self) -> None:
        """Log live readings; a taken instant gives way to the next free microsecond."""
        which = self.chance.randrange(2)
        life = self.lives[which]
        for _ in range(self.chance.choice([1, 1, 3])):
            now_us = round(self.clock.now * SECOND)
            row = self.row(now_us)
            reading = self.pm.log_power(self.meters[which], *row[1:])
            us = int(reading.id.rpartition(":")[2])
            assert us not in life.rows
            if now_us in life.rows:
                assert now_us < us <= now_us + SECOND
            else:
                assert us == now_us
            charge = life.present_pct if row.charge_pct is None else row.charge_pct
            assert reading.charge_pct == charge
            life.live(row._replace(us=us, charge_pct=charge))

    def log_recorded(self) -> None:
        """Log one recorded reading, new or not."""
        which = self.chance.randrange(2)
        row = self.row(self.instant())
        self.pm.log_power(self.meters[which], *row[1:], timestamp=iso(row.us))
        self.lives[which].record([row])

    def log_many(self) -> None:
        """Log some recorded readings of both meters in one call."""
        rows = [self.row(self.instant()) for _ in range(self.chance.randrange(20))]
        if self.chance.random() < 0.3:
            rows.sort(key=lambda row: row.us)
        readings: list[tuple[Any, ...]] = []
        by_life: tuple[list[Reading], list[Reading]] = ([], [])
        for row in rows:
            which = self.chance.randrange(2)
            readings += as_readings(self.meters[which], [row])
            by_life[which].append(row)
        new = sum(life.record(part) for life, part in zip(self.lives, by_life))
        assert self.pm.log_many(readings) == new

    def forget_charge(self) -> None:
        """The charge of one meter is unknown from now on."""
        which = self.chance.randrange(2)
        self.pm.update_meter(self.meters[which], charge_pct=None)
        self.lives[which].forget_charge()

    def prune(self) -> None:
        """Prune up to some hours before the clock."""
        hours = self.chance.choice([0, 1, 2.5, 6, 48])
        cutoff_us = round(self.clock.now * SECOND) - round(hours * HOUR)
        gone = sum(life.prune(cutoff_us) for life in self.lives)
        assert self.pm.prune(hours / 24) == gone

    def delete(self) -> None:
        """Delete a range of one meter's readings; one that cuts a closed hour is refused."""
        which = self.chance.randrange(2)
        since_us, until_us = sorted([self.instant(), self.instant()])
        until_us = max(until_us, since_us + 1)
        if self.chance.random() < 0.5:
            since_us = since_us // HOUR * HOUR
            until_us = (until_us // HOUR + 1) * HOUR
        span = {"since": iso(since_us), "until": iso(until_us)}
        life = self.lives[which]
        if life.cuts_a_closed_hour(since_us, until_us):
            with pytest.raises(PowerManagerError, match="closed"):
                self.pm.delete_readings(self.meters[which], **span)
        else:
            gone = life.delete(since_us, until_us)
            assert self.pm.delete_readings(self.meters[which], **span) == gone

    def compare(self) -> None:
        """The file says the same as the model."""
        assert self.pm.check() == []
        clock_us = round(self.clock.now * SECOND)
        for which, life in enumerate(self.lives):
            meter_id = self.meters[which]
            rows = [life.rows[us] for us in sorted(life.rows)]
            assert history(self.pm, meter_id) == [(iso(row.us), *row[1:]) for row in rows]
            assert self.pm.get_meter(meter_id).charge_pct == life.present_pct
            by_hour = [(iso(hour * HOUR), life.statistics(hour)) for hour in life.hours()]
            assert_statistics(self.pm, meter_id, by_hour)
            totals = self.pm.energy_totals(meter_id)
            for name in ("energy_out_wh", "energy_in_wh"):
                expected = sum(values[name] for _, values in by_hour)
                assert getattr(totals, name) == pytest.approx(expected, abs=1e-6)
            for _ in range(6):
                seconds = self.chance.choice(
                    [1, 1800, 7200, 90000, self.chance.randrange(1, 90000)]
                )
                expected_part = life.window(clock_us - seconds * SECOND)
                assert meter_part(self.pm, "d", seconds / 86400, which) == near(expected_part)


class TestRandomLives:
    """Statistics, reports and totals are those of the model after any sequence of calls."""

    @pytest.mark.parametrize("max_gap", [0.0, 600.0, MAX_GAP, 4 * 3600.0, 3 * 86400.0])
    @pytest.mark.parametrize("seed", range(4))
    def test_random_life(
        self,
        opened: Opener,
        clock: Clock,
        monkeypatch: pytest.MonkeyPatch,
        seed: int,
        max_gap: float,
    ) -> None:
        """Live, late and unknown readings, prunes, deletions, clocks set back and ahead."""
        monkeypatch.setattr(power_manager, "_PAGE_ROWS", [2, 7, 2000][seed % 3])
        life = RandomLife(opened(max_gap=max_gap), clock, seed)
        for _ in range(12):
            for _ in range(10):
                life.step()
            life.compare()


# --- Rare cases -------------------------------------------------------------------------------


class TestBlocks:
    """transaction() and connection() in the hands of other code than a with statement."""

    def test_exit_stack(self, file_pm: PowerManager, path: Path) -> None:
        """In an ExitStack a block commits, and rolls back where the stack is left by an error."""
        with ExitStack() as stack:
            stack.enter_context(file_pm.transaction())
            file_pm.register_device("a", "A")
            assert reread(path)["devices"] == []
        assert len(reread(path)["devices"]) == 1

        def failing() -> None:
            with ExitStack() as stack:
                stack.enter_context(file_pm.transaction())
                file_pm.register_device("b", "B")
                raise Broken

        with pytest.raises(Broken):
            failing()
        assert [device.id for device in reread(path)["devices"]] == ["a"]

    def test_block_is_entered_once(self, any_pm: PowerManager) -> None:
        """A block that was used before is refused, and the object goes on."""
        pm = any_pm if isinstance(any_pm, PowerManager) else PowerManager(":memory:")
        block = pm.transaction()
        with block:
            pm.register_device("a", "A")
        with pytest.raises(PowerManagerError, match="used before"), block:
            pass
        pm.register_device("b", "B")
        assert len(pm.list_devices()) == 2
        pm.close()

    def test_blocks_left_in_the_wrong_order(self, file_pm: PowerManager, path: Path) -> None:
        """Leaving the outer one first is refused, nothing is stored, and the object goes on."""
        outer = file_pm.transaction()
        outer.__enter__()
        inner = file_pm.transaction()
        inner.__enter__()
        file_pm.register_device("a", "A")
        with pytest.raises(PowerManagerError, match="inside this one has not ended"):
            outer.__exit__(None, None, None)
        assert reread(path)["devices"] == []
        del outer, inner
        file_pm.register_device("b", "B")
        assert [device.id for device in reread(path)["devices"]] == ["b"]

    def test_commit_that_fails(self, file_pm: PowerManager, path: Path) -> None:
        """SQLite's error at the commit is a StorageError, and nothing is stored."""

        def dangling() -> None:
            with file_pm.connection() as conn:
                conn.execute("PRAGMA defer_foreign_keys = ON")
                conn.execute("INSERT INTO power_late VALUES (5, 5, 5)")

        with pytest.raises(StorageError, match=rf"^{path}: .*FOREIGN KEY constraint failed"):
            dangling()
        assert fetch(path, "SELECT * FROM power_late") == []
        file_pm.register_device("a", "A")

    def test_block_on_a_locked_file(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opener
    ) -> None:
        """A block that cannot start says that the file is locked."""
        monkeypatch.setattr(power_manager, "BUSY_TIMEOUT", 0.01)
        pm = opened(path)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="database is locked"), pm.transaction():
            pass
        other.close()
        with pm.transaction():
            pm.register_device("a", "A")
        assert len(pm.list_devices()) == 1

    def test_error_of_sqlite_without_a_name(self, file_pm: PowerManager, path: Path) -> None:
        """Where Python does not tell SQLite's name for an error, the hint is of both kinds."""
        error = sqlite3.DatabaseError("file is not a database")
        with (
            pytest.raises(StorageError, match="not an SQLite database, or a damaged one"),
            file_pm.connection(),
        ):
            raise error

    def test_call_in_the_middle_of_another(self, opened: Opener) -> None:
        """A clock that writes, as a signal handler may, is refused; so is the call around it."""

        def writing_clock() -> float:
            manager.register_device("b", "B")
            return NOW

        manager = opened(clock=writing_clock)
        manager.register_device("a", "A")
        with pytest.raises(PowerManagerError, match="in the middle of another call"):
            manager.trigger_event("a", "restore")
        assert [device.id for device in manager.list_devices()] == ["a"]
        assert manager.events_since(0) == []


class TestLeftovers:
    """What an interrupt at the worst of moments leaves behind is cleaned up by the next call."""

    @staticmethod
    def level_of_a_call_that_is_gone() -> Any:
        """A level whose frame has ended without ending it."""
        return power_manager._Level(sys._getframe())

    @pytest.mark.parametrize("reads_first", [False, True])
    def test_turn_of_a_call_that_is_gone(
        self, file_pm: PowerManager, path: Path, reads_first: bool
    ) -> None:
        """The next call rolls it back and takes the turn; a read sees nothing of it."""
        transaction = file_pm._transaction
        transaction.enter(self.level_of_a_call_that_is_gone())
        transaction.connection.execute("INSERT INTO power_settings VALUES ('lost', 1)")
        if reads_first:
            assert file_pm.list_devices() == []
        file_pm.register_device("a", "A")
        assert fetch(path, "SELECT * FROM power_settings WHERE name = 'lost'") == []
        assert len(reread(path)["devices"]) == 1

    def test_place_in_the_queue_of_a_call_that_is_gone(self, file_pm: PowerManager) -> None:
        """It is taken out of the queue, and the next call takes the turn."""
        transaction = file_pm._transaction
        transaction._waiting += [self.level_of_a_call_that_is_gone(), power_manager._Level()]
        file_pm.register_device("a", "A")
        assert (transaction._waiting, len(file_pm.list_devices())) == ([], 1)

    def test_call_behind_a_waiting_one_of_its_own_thread(self, file_pm: PowerManager) -> None:
        """A signal handler's call, while the call that it came into waits, is refused at once."""
        with written_by_another_thread(file_pm):
            file_pm._transaction._waiting.append(power_manager._Level(sys._getframe()))
            with pytest.raises(PowerManagerError, match="in the middle of another call"):
                file_pm.register_device("a", "A")
            file_pm._transaction._waiting.clear()
        file_pm.register_device("a", "A")
        assert len(file_pm.list_devices()) == 1

    def test_ending_what_has_ended(self, file_pm: PowerManager) -> None:
        """It does nothing, also while another thread cleans up."""
        transaction = file_pm._transaction
        level = self.level_of_a_call_that_is_gone()
        with file_pm.transaction():
            file_pm.register_device("a", "A")
            transaction._end(level)
        transaction.enter(level)
        with transaction._cleaning:
            transaction.drop(level)
        is_still_open = transaction.connection.in_transaction
        assert is_still_open
        transaction.drop(level)
        assert not transaction.connection.in_transaction
        assert len(file_pm.list_devices()) == 1

    def test_savepoint_of_a_call_that_is_gone(self, file_pm: PowerManager, path: Path) -> None:
        """Inside a block the next call takes that one back, and the block goes on."""
        with file_pm.transaction():
            file_pm.register_device("a", "A")
            file_pm._transaction.enter(self.level_of_a_call_that_is_gone())
            file_pm._transaction.connection.execute("INSERT INTO power_settings VALUES ('lost', 1)")
            file_pm.register_device("b", "B")
        assert fetch(path, "SELECT * FROM power_settings WHERE name = 'lost'") == []
        assert len(reread(path)["devices"]) == 2


class TestErrorsOfTheSystem:
    """Errors that are no fault of the file's."""

    def test_no_space_when_a_backup_is_synced(
        self, file_pm: PowerManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error says so, and names the copy."""

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        message = rf"^{tmp_path}/copy.db: No space left on device; free some space"
        with pytest.raises(StorageError, match=message):
            file_pm.backup(tmp_path / "copy.db")
        assert "copy.db" not in content(tmp_path)

    def test_no_space_when_a_restored_file_is_synced(
        self, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error says so, and the damaged file is as it was."""
        filled(tmp_path / "backup.db")
        path.write_bytes(b"noise" * 1000)

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            power_manager.restore_database(path, tmp_path / "backup.db")
        assert path.read_bytes() == b"noise" * 1000

    def test_more_readers_than_are_kept(
        self,
        connections: list[sqlite3.Connection],
        path: Path,
        opened: Opener,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A connection for reading that is one too many is closed after its call."""
        monkeypatch.setattr(power_manager, "_MAX_IDLE_READERS", 0)
        pm = opened(path)
        assert pm.list_devices() == []
        assert_closed(connections[-1:])
        assert len(connections) == 2

    def test_out_of_memory(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, opened: Opener
    ) -> None:
        """It is a StorageError that says so; the next call works."""

        class Hungry(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if is_hungry:
                    raise MemoryError
                return super().execute(sql, *args)

        is_hungry = False
        connect = sqlite3.connect
        monkeypatch.setattr(
            sqlite3, "connect", lambda *args, **options: connect(*args, factory=Hungry, **options)
        )
        pm = opened(path)
        is_hungry = True
        with pytest.raises(StorageError, match=r"SQLITE_NOMEM: .*out of memory"):
            pm.register_device("a", "A")
        is_hungry = False
        pm.register_device("a", "A")
        assert len(reread(path)["devices"]) == 1

    def test_in_the_child_of_a_fork(
        self, file_pm: PowerManager, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With another process id each call refuses, and closing leaves the parent's file."""
        child = PowerManager(path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(StorageError, match="opened before a fork"):
                child.register_device("a", "A")
            child.close()
            with pytest.raises(StorageError, match="closed"):
                child.list_devices()
        child._transaction.connection.close()
        file_pm.register_device("a", "A")

    def test_data_version_of_a_file_that_is_gone(self, path: Path, opened: Opener) -> None:
        """The first look at a file that cannot be opened any more is a StorageError."""
        pm = opened(path)
        for entry in path.parent.iterdir():
            entry.unlink()
        with pytest.raises(StorageError, match=rf"^{path}: "):
            pm.data_version()

    def test_restore_from_a_database_in_use(self, path: Path, tmp_path: Path) -> None:
        """What is in the -wal of the backup is restored too."""
        with PowerManager(tmp_path / "used.db") as used:
            used.register_device("d", "D")
            assert (tmp_path / "used.db-wal").stat().st_size > 0
            power_manager.restore_database(path, tmp_path / "used.db")
        assert [device.id for device in reread(path)["devices"]] == ["d"]

    def test_restore_from_itself(self, file_pm: PowerManager, path: Path) -> None:
        """A database is no backup of itself, and stays as it is."""
        file_pm.register_device("d", "D")
        with pytest.raises(StorageError, match="the database itself"):
            file_pm.restore(path)
        assert len(reread(path)["devices"]) == 1

    def test_restore_over_a_file_whose_schema_is_no_text(self, path: Path, tmp_path: Path) -> None:
        """The damaged file is kept aside, and the backup takes its place."""
        filled(tmp_path / "backup.db")
        filled(path, sql=WRITABLE_SCHEMA + "SET name = CAST(x'ff' AS TEXT), sql = 'CREATE'")
        with pytest.raises(StorageError, match=rf"^{path}: "):
            PowerManager(path)
        power_manager.restore_database(path, tmp_path / "backup.db")
        assert len(reread(path)["devices"]) == 1
        assert "power.db.damaged" in content(tmp_path)

    def test_restore_in_memory(self, memory_pm: PowerManager, path: Path) -> None:
        """A database in memory is not replaced."""
        filled(path)
        with pytest.raises(PowerManagerError, match="in memory"):
            memory_pm.restore(path)

    def test_restore_onto_a_directory(self, path: Path, tmp_path: Path) -> None:
        """It is refused by name."""
        filled(path)
        with pytest.raises(StorageError, match=rf"^{tmp_path}: not a regular file"):
            power_manager.restore_database(tmp_path, path)

    def test_help_shows_what_is_left_unchanged(self) -> None:
        """The signature of update_meter names the default for what it is."""
        import inspect

        assert "UNCHANGED" in str(inspect.signature(PowerManager.update_meter))


class TestRareReadings:
    """Orders of calls that random lives meet seldom."""

    @pytest.fixture
    def closed(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> PowerManager:
        """Readings every 10 minutes from 12:00 to 14:00, the hours of 12 and 13 closed."""
        start = NOW // 3600 * 3600
        file_pm.log_many((battery_meter.id, 1.0, 6.0, 50.0, start + 600 * i) for i in range(13))
        clock.now = start + 7200
        assert file_pm.prune(0) == 11
        return file_pm

    def test_newest_reading_in_a_closed_hour(
        self, closed: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """When later ones are deleted, live readings go on in it: they are counted, and known."""
        start = NOW // 3600 * 3600
        assert closed.delete_readings(battery_meter.id, since=start + 7200) == 1
        _, before = closed.get_statistics(battery_meter.id)
        clock.now = start + 7100
        closed.log_power(battery_meter.id, 1.0, 6.0, 50.0)
        closed.log_power(battery_meter.id, None, 6.0, 50.0)
        assert closed.log_many([(battery_meter.id, 1.0, 6.0, 50.0, start + 7150)]) == 0
        _, after = closed.get_statistics(battery_meter.id)
        assert after.reading_count == before.reading_count + 2
        # The last reading of the hour, at 13:50, is still there.
        assert after.energy_out_wh == pytest.approx(before.energy_out_wh + 6.0 * 500 / 3600)
        for seconds in (3500, 6500, 7150):
            clock.now = start + seconds
            closed.log_power(battery_meter.id, 1.0, 6.0, 50.0)
        assert closed.check() == []

    def test_live_reading_after_a_last_one_without_watts(
        self, file_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """In a closed hour that has no watts left it is counted, and books no energy."""
        start = NOW // 3600 * 3600
        rows = [(6.0, 3000.0), (None, 4200.0), (6.0, 7200.0)]
        file_pm.log_many((battery_meter.id, 1.0, a, 50.0, start + seconds) for a, seconds in rows)
        clock.now = start + 7200
        assert file_pm.prune(0) == 0
        clock.now = start + 5400
        file_pm.log_power(battery_meter.id, 1.0, 6.0, 50.0)
        _, hour, _ = file_pm.get_statistics(battery_meter.id)
        assert (hour.reading_count, hour.energy_out_wh) == (2, 0.0)
        assert file_pm.check() == []

    def test_refused_reading_without_a_charge(
        self, closed: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """What is returned of a recorded reading of a closed hour has the charge before it."""
        start = NOW // 3600 * 3600
        closed.log_power(battery_meter.id, 1.0, 6.0, 33.0, timestamp=start - 3600)
        refused = closed.log_power(battery_meter.id, 1.0, 6.0, timestamp=start + 10)
        assert refused.charge_pct == 33.0
        assert len(history(closed, battery_meter.id)) == 3

    def test_newest_reading_in_an_hour_that_is_all_gone(
        self, closed: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """A live reading in it is counted, and no energy is booked from one to the next."""
        start = NOW // 3600 * 3600
        closed.delete_readings(battery_meter.id, since=start + 3600)
        (before,) = closed.get_statistics(battery_meter.id)
        for seconds in (1000, 2000, 3000):
            clock.now = start + seconds
            closed.log_power(battery_meter.id, 1.0, 6.0, 50.0)
        (after,) = closed.get_statistics(battery_meter.id)
        assert after.reading_count == before.reading_count + 3
        assert after.energy_out_wh == before.energy_out_wh
        assert closed.check() == []

    def test_live_reading_older_than_what_was_acknowledged(
        self, any_pm: PowerManager, battery_meter: PowerMeter, clock: Clock
    ) -> None:
        """After the newest was deleted, a reading before its time waits to be sent."""
        for seconds in (0, 100):
            clock.now = NOW + seconds
            any_pm.log_power(battery_meter.id, 3.7, 0.5, 50.0)
        any_pm.acknowledge(any_pm.pending_readings())
        any_pm.delete_readings(battery_meter.id, since=NOW + 50)
        clock.now = NOW + 60
        reading = any_pm.log_power(battery_meter.id, 3.7, 0.5, 50.0)
        assert any_pm.pending_readings() == [reading]

    @pytest.mark.parametrize(("left", "level"), [(12.0, "low"), (60.0, "none")])
    def test_alert_level_after_the_newest_is_deleted(
        self, any_pm: PowerManager, battery_meter: PowerMeter, left: float, level: str
    ) -> None:
        """The level is that of the newest reading left, without an event."""
        any_pm.log_power(battery_meter.id, 3.7, 0.5, left, timestamp=NOW - 100)
        any_pm.log_power(battery_meter.id, 3.7, 0.5, 3.0, timestamp=NOW)
        events = len(any_pm.get_events("dev-001"))
        any_pm.delete_readings(battery_meter.id, since=NOW - 50)
        meter = any_pm.get_meter(battery_meter.id)
        assert (meter.charge_pct, meter.alert_level) == (left, level)
        assert len(any_pm.get_events("dev-001")) == events

    @pytest.mark.parametrize("seed", range(3))
    def test_missing_charges_in_several_chunks(
        self, opened: Opener, monkeypatch: pytest.MonkeyPatch, seed: int
    ) -> None:
        """Within one call each takes the charge of the reading before it, in any order."""
        monkeypatch.setattr(power_manager, "_CHUNK_ROWS", 4)
        rows = [
            (1.0, 1.0, float(i) if i % 3 == 0 else None, iso(NOW * SECOND + i * 700 * SECOND))
            for i in range(20)
        ]
        pm = opened()
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "battery")
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert pm.log_many((meter.id, *row) for row in shuffled) == 20
        assert [row[3] for row in history(pm, meter.id)] == [float(i // 3 * 3) for i in range(20)]
        assert pm.get_meter(meter.id).charge_pct == 18.0
        assert pm.check() == []


class TestRareDamage:
    """Damage of kinds that single changed values are not."""

    def test_trigger_on_a_table(self, path: Path) -> None:
        """A table with a trigger is refused: it could take away what log_power stores."""
        sql = "CREATE TRIGGER taker AFTER INSERT ON power_readings BEGIN SELECT 1; END"
        filled(path, sql=sql)
        with pytest.raises(StorageError, match=rf"^{path}: .*trigger 'taker'"):
            PowerManager(path)

    @pytest.mark.parametrize("name", ["max_gap_us", "file_id"])
    def test_damaged_setting(self, path: Path, opened: Opener, name: str) -> None:
        """check() of an open file finds a setting that was changed meanwhile."""
        filled(path)
        pm = opened(path)
        execute(path, f"UPDATE power_settings SET value = x'00' WHERE name = '{name}'")
        assert any(problem.startswith("power_settings: ") for problem in pm.check())

    def test_doubled_ids_of_the_first_release(self, path: Path, opened: Opener) -> None:
        """Where its tables have no primary key, the second row of an id is kept apart."""
        doubled = (
            FIRST_RELEASE.replace("id TEXT PRIMARY KEY", "id TEXT")
            + """
            INSERT INTO devices VALUES ('dev-001', 'Twin', 1.0, NULL);
            INSERT INTO power_meters SELECT id, device_id, 'main', 1, 1, 1, 1, 'Twin'
                FROM power_meters WHERE id = 'm1';
            """
        )
        execute(path, doubled)
        pm = opened(path)
        assert [device.name for device in pm.list_devices()] == ["Edge Node", "Other"]
        assert [meter.name for meter in pm.list_meters()] == ["Pack", None]
        assert fetch(path, "SELECT name FROM first_release_devices") == [("Twin",)]
        assert fetch(path, "SELECT name FROM first_release_power_meters") == [("Twin",)]
        assert len(pm.check()) == 2

    @pytest.mark.parametrize(
        ("column", "value"), [("max_wattage", "'abc'"), ("max_charge_pct", "x'00'")]
    )
    def test_statistics_of_a_wrong_kind(
        self, path: Path, opened: Opener, column: str, value: str
    ) -> None:
        """A report and a list of statistics say that a value is damaged."""
        meter_id = filled(path, sql=f"UPDATE power_meters SET {column} = {value}")
        pm = opened(path)
        for call in (
            lambda: pm.export_report("dev-001", 1),
            lambda: pm.get_statistics(meter_id),
        ):
            with pytest.raises(StorageError, match="a damaged value"):
                call()


# --- Command lines: the pattern ---------------------------------------------------------------


def refused(parse: Callable[[str], object], text: str) -> str:
    """What a parser for argparse says of a text that it refuses."""
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("expected ")
    assert f"got {text!r}" in message
    return message


class TestParsers:
    """Texts of a command line as numbers, durations and zones."""

    @pytest.mark.parametrize(
        ("text", "number"),
        [("0", 0), ("12", 12), ("12.5", 12.5), ("-3", -3.0), ("1e3", 1000.0), (" .5 ", 0.5)],
    )
    def test_number(self, text: str, number: float) -> None:
        """A number is what Python reads; whole ones stay whole."""
        parsed = power_manager.parse_number(text)
        assert (parsed, type(parsed)) == (number, type(number))

    def test_negative_zero(self) -> None:
        """-0 is 0, so that no table ever shows -0."""
        assert str(power_manager.parse_number("-0")) == "0.0"
        assert str(power_manager.parse_number("-0.0")) == "0.0"

    @pytest.mark.parametrize(
        "text",
        ["", " ", "x", "1_0", "1,5", "nan", "inf", "-inf", "1e999", "0x10", "9" * 400, "9" * 5000],
        ids=lambda text: text[:9],
    )
    def test_no_number(self, text: str) -> None:
        """What is no finite number is refused, however long it is."""
        assert "expected a number, " in refused(power_manager.parse_number, text)

    def test_limits_of_a_number(self) -> None:
        """A limit belongs to the numbers or does not, and is named."""
        at_least = functools.partial(power_manager.parse_number, at_least=1)
        above = functools.partial(power_manager.parse_number, above=0)
        assert (at_least("1"), above("0.1")) == (1, 0.1)
        assert "a number of at least 1, " in refused(at_least, "0.9")
        assert "a number above 0, " in refused(above, "0")
        assert "a number above 0, " in refused(above, "x")

    @pytest.mark.parametrize(
        ("text", "count"), [("0", 0), (" 12 ", 12), (f"{2**63 - 1}", 2**63 - 1)]
    )
    def test_count(self, text: str, count: int) -> None:
        """A count is a whole number that SQLite can hold."""
        assert power_manager.parse_count(text) == count

    @pytest.mark.parametrize("text", ["", "-1", "1.0", "1e3", "x", "٣", f"{2**63}", "9" * 5000])
    def test_no_count(self, text: str) -> None:
        """Anything else is refused."""
        refused(power_manager.parse_count, text)

    def test_limits_of_a_count(self) -> None:
        """A count may have a lower and an upper limit."""
        port = functools.partial(power_manager.parse_count, at_least=1, at_most=65535)
        positive = functools.partial(power_manager.parse_count, at_least=1)
        assert (port("1"), port("65535"), positive("1")) == (1, 65535, 1)
        for text in ("0", "65536", "x"):
            assert f"a whole number from 1 to 65535, got {text!r}" in refused(port, text)
        assert "a whole number of at least 1, " in refused(positive, "0")

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("0", 0.0), ("-0", 0.0), ("90", 90.0), ("1.5", 1.5), ("90s", 90.0), ("15m", 900.0),
            ("15min", 900.0), ("1h30m", 5400.0), ("1 h 30 min", 5400.0), (" 2H ", 7200.0),
            ("1.5h", 5400.0), (".5h", 1800.0), ("2.h", 7200.0), ("7d", 604800.0), ("2w", 1209600.0),
        ],
    )  # fmt: skip
    def test_duration(self, text: str, seconds: float) -> None:
        """A number alone is seconds; otherwise each part has its unit."""
        assert str(power_manager.parse_duration(text)) == str(seconds)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "h",
            "-1",
            "-1h",
            "1h30",
            "5x",
            "1h,30m",
            "1,5h",
            "nan",
            "9" * 400 + "s",
            "1e999",
        ],
        ids=lambda text: text[:9],
    )
    def test_no_duration(self, text: str) -> None:
        """A duration is at least 0 and finite, and its last part has a unit too."""
        assert "such as 90s" in refused(power_manager.parse_duration, text)

    @pytest.mark.parametrize("name", ["number", "count", "duration", "zone", "time"])
    def test_texts_by_chance(self, name: str) -> None:
        """Whatever the text, it is read or refused: there is no other error."""
        parse = getattr(power_manager, f"parse_{name}")
        chance = random.Random(name)
        for _ in range(30 if name == "zone" else 300):  # an unknown zone is compared with all
            text = "".join(
                chance.choices("0123456789.-+:eE_hdwmsTZ /\\\0\ud800٣é", k=chance.randrange(9))
            )
            with suppress(argparse.ArgumentTypeError):
                parse(text)

    def test_limit_of_a_duration(self) -> None:
        """A duration that must be above its limit says so."""
        above = functools.partial(power_manager.parse_duration, above=0)
        assert above("0.1") == 0.1
        assert "a duration above 0 such as" in refused(above, "0s")

    def test_durations_as_they_are_shown(self) -> None:
        """What shown_duration shows is read as the duration, down to what it leaves out."""
        chance = random.Random(3)
        for _ in range(500):
            seconds = 10 ** chance.uniform(-1, 8)
            shown = power_manager.parse_duration(power_manager.shown_duration(seconds))
            left_out = 1 if seconds < 60 else 60 if seconds < 86400 else 3600
            left_out = 86400 if seconds >= 100 * 86400 else left_out
            assert 0 <= seconds - shown < left_out

    def test_zones(self) -> None:
        """A zone is known by its name, or by its offset; local is this machine's own."""
        moment = datetime(2025, 7, 1, tzinfo=timezone.utc)
        offsets = {"UTC": 0, "utc": 0, "Europe/Berlin": 2, "+05:30": 5.5, "-0800": -8}
        for text, hours in offsets.items():
            zone = power_manager.parse_zone(text)
            assert moment.astimezone(zone).utcoffset() == timedelta(hours=hours)
        assert power_manager.parse_zone("Local") is None

    @pytest.mark.parametrize(
        "text",
        ["", "Nowhere", "Europe", "../etc/passwd", "/etc/passwd", "+99:99", "a\0b", "x" * 999],
    )
    def test_no_zone(self, text: str) -> None:
        """What is no zone is refused, whatever the file system says of such a name."""
        refused(power_manager.parse_zone, text)

    def test_mistyped_zone(self) -> None:
        """The nearest zone is offered."""
        message = refused(power_manager.parse_zone, "Europe/Berln")
        assert message.endswith(": did you mean Europe/Berlin?")


BERLIN = power_manager.parse_zone("Europe/Berlin")


class TestTimes:
    """Texts of a command line as times. The clock stands at 2025-06-16T12:30:00Z."""

    @pytest.fixture(autouse=True)
    def _berlin(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TZ", "Europe/Berlin")
            time.tzset()
            yield
        time.tzset()

    @staticmethod
    def parsed(text: str, now: float = NOW, zone: tzinfo | None = None) -> str:
        """The time in UTC, without its offset."""
        moment = power_manager.parse_time(text, zone=zone, clock=lambda: now)
        assert moment.tzinfo is not None
        return moment.astimezone(timezone.utc).isoformat(" ").removesuffix("+00:00")

    @pytest.mark.parametrize("zone", [None, BERLIN], ids=["local", "named"])
    @pytest.mark.parametrize(
        ("text", "utc"),
        [
            ("now", "2025-06-16 12:30:00"),
            ("today", "2025-06-15 22:00:00"),
            (" Yesterday ", "2025-06-14 22:00:00"),
            ("-24h", "2025-06-15 12:30:00"),
            ("-1h30m", "2025-06-16 11:00:00"),
            ("-.5h", "2025-06-16 12:00:00"),
            ("-90", "2025-06-16 12:28:30"),
            ("-0", "2025-06-16 12:30:00"),
            ("2025-06-16", "2025-06-15 22:00:00"),
            ("2025-01-16", "2025-01-15 23:00:00"),
            ("2025-06-16 10:00", "2025-06-16 08:00:00"),
            ("2025-06-16T10:00:00.25", "2025-06-16 08:00:00.250000"),
            ("2025-06-16t10:00z", "2025-06-16 10:00:00"),
            ("2025-06-16T10:00-0500", "2025-06-16 15:00:00"),
            ("1750077000", "2025-06-16 12:30:00"),
            ("1750077000.25", "2025-06-16 12:30:00.250000"),
            ("0", "1970-01-01 00:00:00"),
            ("2199-12-31T00:00Z", "2199-12-31 00:00:00"),
        ],
    )
    def test_time(self, text: str, utc: str, zone: tzinfo | None) -> None:
        """Words, durations before now, ISO 8601 and epoch seconds; local without an offset."""
        assert self.parsed(text, zone=zone) == utc

    @pytest.mark.parametrize(
        "text",
        ["", "noon", "-", "--5", "-x", "2025-13-01", "2025-06-31", "1969-12-31", "2300-01-01",
         "1750077000000", "20250616", "9999-12-31", "0001-01-01", "1e300", "nan", "24h"],
    )  # fmt: skip
    def test_no_time(self, text: str) -> None:
        """Anything else is refused; so are milliseconds, and a date in digits."""
        message = refused(power_manager.parse_time, text)
        assert "a time from 1970 to 2200 such as 2026-11-28" in message

    @pytest.mark.parametrize("zone", [None, BERLIN], ids=["local", "named"])
    def test_clocks_that_are_put_forward(self, zone: tzinfo | None) -> None:
        """A time that clocks skip is refused; durations and days go by what has passed."""
        now = 1_743_328_800.0  # 2025-03-30 12:00 in Berlin: two o'clock was three
        assert self.parsed("-12h", now, zone) == "2025-03-29 22:00:00"
        assert self.parsed("today", now, zone) == "2025-03-29 23:00:00"
        assert self.parsed("yesterday", now + 86400, zone) == "2025-03-29 23:00:00"
        parse = functools.partial(power_manager.parse_time, zone=zone)
        assert "put forward" in refused(parse, "2025-03-30T02:30")

    @pytest.mark.parametrize("zone", [None, BERLIN], ids=["local", "named"])
    def test_clocks_that_are_put_back(self, zone: tzinfo | None) -> None:
        """A time that exists twice is the first of them."""
        assert self.parsed("2025-10-26T02:30", zone=zone) == "2025-10-26 00:30:00"
        now = 1_761_442_200.0  # 2025-10-26 02:30, the second time
        assert self.parsed("now", now, zone) == "2025-10-26 01:30:00"
        assert self.parsed("today", now, zone) == "2025-10-25 22:00:00"
        assert self.parsed("-24h", now + 86400, zone) == "2025-10-26 01:30:00"

    def test_midnight_that_does_not_exist(self) -> None:
        """Where clocks are put forward at midnight, the day begins with what follows."""
        cairo = power_manager.parse_zone("Africa/Cairo")
        for text in ("today", "2025-04-25"):
            assert self.parsed(text, 1_745_582_400.0, cairo) == "2025-04-24 22:00:00"

    def test_midnight_that_exists_twice(self) -> None:
        """Where clocks are put back to midnight, the day begins with the first."""
        havana = power_manager.parse_zone("America/Havana")
        now = 1_762_061_400.0  # 2025-11-02 00:30, the second time
        assert self.parsed("today", now, havana) == "2025-11-02 04:00:00"

    @pytest.mark.parametrize("text", ["-24h", "today", "yesterday", "-999999999d", "-1e300"])
    def test_device_without_a_clock(self, text: str) -> None:
        """Nothing is before 1970, where such a device begins."""
        assert self.parsed(text, 100.0) == "1970-01-01 00:00:00"

    def test_clock_of_another_world(self) -> None:
        """A clock beyond 2200 gives no time."""
        parse = functools.partial(power_manager.parse_time, clock=lambda: 1e18)
        refused(parse, "now")


class TestText:
    """Text in columns of a terminal."""

    LETTERS = "ab \x1b\n\0\x7f\x9b\u0301\u200d\u202e\u2028\ud800\U0001f600東é가\u1161\u115f\xad-…"

    def random_text(self, chance: random.Random) -> str:
        """A text of what is hard to show."""
        return "".join(chance.choices(self.LETTERS, k=chance.randrange(12)))

    def test_printable_never_steers_a_terminal(self) -> None:
        """No control character, line separator or change of direction is left, in any script."""
        everything = "".join(map(chr, range(0x11000)))
        shown = power_manager.printable(everything)
        categories = {unicodedata.category(letter) for letter in shown}
        assert categories.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
        turning = {unicodedata.bidirectional(letter) for letter in shown}
        assert turning.isdisjoint({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
        assert power_manager.printable("東京 é\u0301") == "東京 é\u0301"

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "-"),
            (0.1, "0.1"),
            (-0.0, "0"),
            (1 / 3, "0.3333333333"),
            (12, "12"),
            (True, "True"),
        ],
    )
    def test_printable_values(self, value: object, text: str) -> None:
        """Numbers are shown with ten digits at most, nothing as a dash."""
        assert power_manager.printable(value) == text

    @pytest.mark.parametrize(
        ("text", "width"),
        [("", 0), ("abc", 3), ("é", 1), ("e\u0301", 1), ("東京", 4), ("ｱ", 1), ("한", 2),
         ("\u1112\u1161\u11ab", 2), ("\U0001f600", 2), ("a\u200db", 2)],
    )  # fmt: skip
    def test_width(self, text: str, width: int) -> None:
        """Wide characters take two columns, and what joins another none."""
        assert power_manager.text_width(text) == width

    def test_fitted_text_is_exact(self) -> None:
        """Whatever the text, it takes the columns that it should, and only a long one is cut."""
        chance = random.Random(4)
        for _ in range(2000):
            text = power_manager.printable(self.random_text(chance))
            width = chance.randrange(15)
            for right in (False, True):
                fitted = power_manager.fit_text(text, width, right=right)
                assert power_manager.text_width(fitted) == width
                if power_manager.text_width(text) <= width > 0:
                    assert fitted == (text.rjust if right else text.ljust)(
                        len(text) + width - power_manager.text_width(text)
                    )

    @pytest.mark.parametrize(
        ("width", "fitted"), [(-1, ""), (0, ""), (1, "…"), (2, "… "), (3, "東…"), (4, "東京")]
    )
    def test_fitting_wide_letters(self, width: int, fitted: str) -> None:
        """A wide letter is never halved."""
        assert power_manager.fit_text("東京", width) == fitted

    def test_letter_is_cut_with_its_accent(self) -> None:
        """An accent stays with its letter."""
        assert power_manager.fit_text("e\u0301e\u0301e\u0301", 2) == "e\u0301…"

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0, "0 s"), (0.9, "0 s"), (-0.9, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"),
         (3600, "1 h"), (86400, "1 d"), (100 * 86400 + 3600, "100 d"), (-7200, "-2 h")],
    )  # fmt: skip
    def test_shown_duration(self, seconds: float, text: str) -> None:
        """Two units at most, and a minus for what is still to come."""
        assert power_manager.shown_duration(seconds) == text

    @pytest.mark.parametrize(
        ("value", "text"),
        [(None, "-"), (0, "0.00"), (-0.0, "0.00"), (9.994, "9.99"), (9.996, "10.0"), (99.96, "100"),
         (-12.34, "-12.3"), (1e12, "1000000000000")],
    )  # fmt: skip
    def test_shown_number(self, value: float | None, text: str) -> None:
        """Three digits, or all whole ones."""
        assert power_manager.shown_number(value) == text

    def test_shown_time(self) -> None:
        """A time is shown in its zone, from ISO 8601 or microseconds."""
        for value in ("2025-06-16T12:30:00.5+00:00", int(NOW) * SECOND):
            assert power_manager.shown_time(value, timezone.utc) == "2025-06-16 12:30:00"
            assert power_manager.shown_time(value, BERLIN) == "2025-06-16 14:30:00"


class TestTables:
    """Tables of records."""

    COLUMNS = (
        power_manager.Column("name", lambda record: record[0], shrinks=True),
        power_manager.Column("W", lambda record: record[1], right=True),
    )

    def table(self, *records: tuple[object, ...], **screen: Any) -> list[str]:
        """The lines of a table of names and watts."""
        shown = power_manager.make_table(self.COLUMNS, records, power_manager.Screen(**screen))
        return shown.split("\n")

    def test_table(self) -> None:
        """Numbers stand to the right, wide letters line up, nothing is a dash."""
        assert self.table(("Pack", 1.5), ("東京", 12), ("\n", None)) == [
            "name    W",
            "Pack  1.5",
            "東京   12",
            r"\n      -",
        ]

    def test_table_of_nothing(self) -> None:
        """Without records the head is left, without columns empty lines."""
        assert self.table() == ["name  W"]
        assert power_manager.make_table([], [1, 2], power_manager.Screen()) == "\n\n"

    def test_table_on_a_narrow_screen(self) -> None:
        """A column that shrinks is cut to fit, but not below eight columns."""
        long = ("x" * 100_000, 1.5)
        lines = self.table(long, width=40)
        assert [len(line) for line in lines] == [40, 40]
        assert lines[1].endswith("x…  1.5")
        assert self.table(long, width=0)[1] == "xxxxxxx…  1.5"
        assert self.table(long, width=40, has_unicode=False)[1].endswith("x~  1.5")

    def test_longest_column_shrinks_first(self) -> None:
        """Two that shrink end at the same width."""
        columns = [
            power_manager.Column("a", lambda record: record[0], shrinks=True),
            power_manager.Column("b", lambda record: record[1], shrinks=True),
        ]
        records = [("x" * 30, "y" * 60)]
        shown = power_manager.make_table(columns, records, power_manager.Screen(width=42))
        assert shown.split("\n")[1] == "x" * 19 + "…  " + "y" * 19 + "…"

    def test_table_in_colours(self) -> None:
        """Colours take no columns, and no blanks follow the last one."""
        columns = [dataclasses.replace(column, colour=lambda _: "red") for column in self.COLUMNS]
        columns.reverse()
        screen = power_manager.Screen(has_colour=True)
        shown = power_manager.make_table(columns, [("ab", 1.5), ("", 2)], screen)
        assert shown.split("\n") == [
            "\x1b[2m  W\x1b[0m  \x1b[2mname\x1b[0m",
            "\x1b[31m1.5\x1b[0m  \x1b[31mab\x1b[0m",
            "\x1b[31m  2\x1b[0m",
        ]

    def test_tables_of_meters_and_budgets(self, pm: PowerManager) -> None:
        """They are those of the commands `meters` and `budget`, without a word for nothing."""
        screen = power_manager.Screen()
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "main", name="Mains")
        pm.log_power(meter.id, 230.0, 0.5)
        now_us = power_manager.to_microseconds(pm.list_meters()[0].updated_at)
        shown = power_manager.make_meter_table(pm.list_meters(), now_us, 60.0, screen)
        assert shown.split("\n")[1].split() == [
            "d/Mains",
            "main",
            "normal",
            "-",
            *["115", "230", "0.50", "-", "0s"],
        ]
        shown = power_manager.make_budget_table(pm.power_budget_check(["d"]), screen)
        assert shown.split("\n")[1].split()[:4] == ["d", "115", "0", "-115"]
        nothing = power_manager.make_budget_table({}, screen)
        assert nothing == shown.split("\n")[0]

    def test_letters_that_the_screen_lacks(self) -> None:
        """They are escaped before they are measured, so that columns stay in line."""
        lines = self.table(("東", 1), ("Pack", 2), has_unicode=False, encoding="ascii")
        assert lines == ["name    W", r"\u6771  1", "Pack    2"]


class Stream(NamedTuple):
    """What Screen asks a stream for."""

    encoding: str | None
    is_terminal: bool

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self.is_terminal


class TestScreen:
    """What a command knows of where it prints."""

    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("COLUMNS", "100")

    @pytest.mark.parametrize(
        ("encoding", "has_unicode"),
        [("utf-8", True), ("cp437", False), ("ascii", False), (None, True), ("unknown", False)],
    )
    def test_block_characters(self, encoding: str | None, has_unicode: bool) -> None:
        """Block characters are used where the encoding has all of them; text alone has none."""
        screen = power_manager.Screen.of(Stream(encoding, False))
        assert (screen.has_unicode, screen.width) == (has_unicode, 100)

    def test_colours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Colours need a terminal that knows them, and no NO_COLOR."""
        of = power_manager.Screen.of
        assert of(Stream("utf-8", True)).has_colour
        assert not of(Stream("utf-8", False)).has_colour
        monkeypatch.setenv("NO_COLOR", "")
        assert of(Stream("utf-8", True)).has_colour
        monkeypatch.setenv("NO_COLOR", "1")
        assert not of(Stream("utf-8", True)).has_colour
        monkeypatch.delenv("NO_COLOR")
        monkeypatch.setenv("TERM", "dumb")
        assert not of(Stream("utf-8", True)).has_colour

    def test_least_width(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A screen has at least 40 columns."""
        monkeypatch.setenv("COLUMNS", "5")
        assert power_manager.Screen.of(Stream("utf-8", True)).width == 40

    @pytest.mark.parametrize(
        ("share", "bar", "plain"),
        [(-1, "░░░░", "----"), (0, "░░░░", "----"), (0.5, "██░░", "##--"), (0.59, "██▍░", "##--"),
         (1, "████", "####"), (2, "████", "####")],
    )  # fmt: skip
    def test_bar(self, share: float, bar: str, plain: str) -> None:
        """A bar is filled by eighths of a column, or by whole ones."""
        assert power_manager.Screen().bar(share, 4) == bar
        assert power_manager.Screen(has_unicode=False).bar(share, 4) == plain

    def test_sparkline(self) -> None:
        """A column for each value; what lies outside the limits is at them."""
        values = (0, 5, None, 10, 99, -5)
        assert power_manager.Screen().sparkline(values, 0, 10) == "▁▅ ██▁"
        assert power_manager.Screen(has_unicode=False).sparkline(values, 0, 10) == "_+ @@_"
        assert power_manager.Screen().sparkline((3, 3), 3, 3) == "▁▁"


class TestNearest:
    """Words that were mistyped."""

    @pytest.mark.parametrize(
        ("text", "known", "end"),
        [
            ("regster", ["register", "report"], ": did you mean register?"),
            ("REPORT", ["register", "report"], ": did you mean report?"),
            ("de", ["delete-meter", "devices", "log"], ": did you mean delete-meter or devices?"),
            ("", ["register"], ""),
            ("fly", ["register"], ""),
            ("x", [], ""),
            ("a\x1bbc", ["a\x1bbd"], r": did you mean a\x1bbd?"),
        ],
    )
    def test_nearest(self, text: str, known: list[str], end: str) -> None:
        """The most like it, or those that it begins; nothing that steers a terminal."""
        assert power_manager.nearest(text, known) == end

    @pytest.mark.parametrize(
        ("id_", "known", "end"),
        [
            ("edge-01", ["edge-001", "barn"], "'edge-01': did you mean edge-001?"),
            ("far", ["edge-001"], "'far': add it"),
            ("far", [], "'far': add it"),
        ],
    )
    def test_unknown_id(self, id_: str, known: list[str], end: str) -> None:
        """The error knows what was asked for, and offers the nearest id or says what to do."""
        error = power_manager.unknown_id("customer", id_, known, ": add it")
        assert type(error) is power_manager.NotFound
        assert (str(error), error.kind, error.id) == (
            f"no customer has the id {end}",
            "customer",
            id_,
        )
        assert str(power_manager.unknown_id("device", "x", [])) == "no device has the id 'x'"


class Ended(NamedTuple):
    """How a parser ended a program."""

    code: object
    out: str
    err: str


NO_TIME = "expected a time from 1970 to 2200 such as 2026-11-28, 2026-11-28T10:00Z, today or -24h"


class TestCommandParser:
    """Parsers of command lines."""

    @pytest.fixture
    def parser(self) -> power_manager.CommandParser:
        """A parser with two commands."""
        parser = power_manager.CommandParser(
            "tool", "Do things.", name="the_tool", version="1.2", examples=["look"]
        )
        parser.add_argument("--place")
        look = parser.add_command("look", len, "look at things", examples=["", "-24h"])
        look.add_argument("since", nargs="?", type=power_manager.parse_time)
        look.add_argument("--until", type=power_manager.parse_time)
        look.add_argument("--size", choices=["small", "large"], default="small")
        look.add_argument("--count", type=int, choices=[1, 2])
        look.add_argument("-v", "--verbose", action="store_true")
        look.add_argument("-n", type=int)
        parser.add_command("leave", None, "leave them", examples=["now"], group="other things")
        parser.add_help_commands("tool")
        return parser

    @pytest.fixture
    def end(
        self, parser: power_manager.CommandParser, capsys: pytest.CaptureFixture[str]
    ) -> Callable[[str], Ended]:
        """Parse a command line that ends the program."""

        def ended(line: str) -> Ended:
            with pytest.raises(SystemExit) as caught:
                parser.parse_args(shlex.split(line))
            return Ended(caught.value.code, *capsys.readouterr())

        return ended

    def test_command(self, parser: power_manager.CommandParser) -> None:
        """Options say which command was given, and what it runs."""
        options = parser.parse_args(["--place", "here", "look", "--verbose", "--count", "2", "-n1"])
        assert (options.command, options.run, options.place) == ("look", len, "here")
        assert (options.verbose, options.count, options.n) == (True, 2, 1)

    def test_words_of_the_process(
        self, parser: power_manager.CommandParser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without words those of the process are taken."""
        monkeypatch.setattr(sys, "argv", ["tool", "look"])
        assert parser.parse_args().command == "look"

    @pytest.mark.parametrize(
        "line",
        ["look -24h", "look --until -24h", "look --until=-24h", "look -- -24h", "look -.5h"],
    )
    def test_values_that_begin_with_a_dash(
        self, parser: power_manager.CommandParser, line: str
    ) -> None:
        """A duration before now is a value, wherever it stands."""
        options = parser.parse_args(line.split())
        assert datetime.now(timezone.utc) - (options.since or options.until) < timedelta(hours=25)

    @pytest.mark.parametrize(
        ("line", "error"),
        [
            ("lok", "unknown command 'lok': did you mean look?"),
            ("fly", "unknown command 'fly': `tool --help` lists them"),
            ("fly --place x", "unknown command 'fly': `tool --help` lists them"),
            ("help lok", "unknown command 'lok': did you mean look?"),
            ("help fly", "unknown command 'fly': `tool help` lists them"),
            ("--plce x look", "unknown option --plce: did you mean --place?"),
            ("--pla x look", "unknown option --pla: did you mean --place?"),
            ("--verbose look", "unknown option --verbose: it comes after the command"),
            ("-x look", "unknown option -x"),
            ("look --untl x", "unknown option --untl: did you mean --until?"),
            ("look --untl=x", "unknown option --untl: did you mean --until?"),
            ("look -q", "unknown option -q"),
            ("look -n1 --untl x", "unknown option --untl: did you mean --until?"),
            ("look --size larg", "argument --size: unknown value 'larg': did you mean large?"),
            ("look --size x", "argument --size: unknown value 'x': expected one of small, large"),
            ("look --count 3", "argument --count: unknown value 3: expected one of 1, 2"),
            ("look today tomorrow", "unexpected argument 'tomorrow'"),
            ("look --until", "argument --until: expected one argument"),
            ("look noon", f"argument since: {NO_TIME}, got 'noon'"),
            ("look 'a\x1b[2J' b", rf"argument since: {NO_TIME}, got 'a\x1b[2J'"),
            ("look --\x1b", r"unknown option --\x1b"),
        ],
    )  # fmt: skip
    def test_errors(self, end: Callable[[str], Ended], line: str, error: str) -> None:
        """The usage and one line, which begins with the name and offers what was meant."""
        ended = end(line)
        assert (ended.code, ended.out, ended.err[:11]) == (2, "", "usage: tool")
        assert ended.err.splitlines()[-1] == f"the_tool: {error}"

    def test_usage_of_the_command(self, end: Callable[[str], Ended]) -> None:
        """What is wrong with a command's words is told beside that command's usage."""
        assert end("look --untl x").err.startswith("usage: tool look ")
        assert end("look today b").err.startswith("usage: tool look ")
        assert end("help lok").err.startswith("usage: tool help ")

    @pytest.mark.parametrize("option", ["-V", "--version"])
    def test_version(self, end: Callable[[str], Ended], option: str) -> None:
        """Both options print the name and the version."""
        assert end(option) == (0, "the_tool 1.2\n", "")

    def test_no_command(self, end: Callable[[str], Ended]) -> None:
        """Without a command the whole help is printed as an error."""
        assert end("") == (2, "", end("--help").out)

    def test_help(self, end: Callable[[str], Ended]) -> None:
        """Commands stand together by their group; examples come last."""
        shown = end("help")
        assert (shown.code, shown.err) == (0, "")
        assert shown.out == end("--help").out == end("-h").out
        _, *sections = shown.out.split("\n\n")
        assert sections[0] == "Do things."
        assert [section.partition(":")[0] for section in sections[1:]] == [
            "positional arguments", "options", "commands", "other things", "help", "examples"
            if shown.out.count("\n  tool ") > 1 else "example",
        ]  # fmt: skip
        assert re.search(r"^other things:\n  leave +leave them$", shown.out, re.MULTILINE)
        assert shown.out.endswith("\n\nexample:\n  tool look\n")

    def test_help_of_a_command(self, end: Callable[[str], Ended]) -> None:
        """It is what the command's own --help prints."""
        shown = end("help look")
        assert (shown.code, shown.err) == (0, "")
        assert shown.out == end("look --help").out
        assert shown.out.startswith("usage: tool look ")
        assert "\n\nLook at things.\n\n" in shown.out
        assert shown.out.endswith("\nexamples:\n  tool look\n  tool look -24h\n")

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_completion_command(
        self, parser: power_manager.CommandParser, end: Callable[[str], Ended], shell: str
    ) -> None:
        """It prints the script of that shell."""
        script = power_manager.completion_script(parser, shell, "tool")
        assert end(f"completion {shell}") == (0, script + "\n", "")

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    @pytest.mark.parametrize("line", ["--completion {}", "--completion={} --size"])
    def test_completion_option(
        self, capsys: pytest.CaptureFixture[str], shell: str, line: str
    ) -> None:
        """A program without commands prints the script by an option, whatever else is missing."""
        parser = power_manager.CommandParser("./tool", "Do things.")
        parser.add_argument("--size", required=True)
        parser.add_help_commands("tool")
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(line.format(shell).split())
        script = power_manager.completion_script(parser, shell, "tool")
        assert (caught.value.code, *capsys.readouterr()) == (0, f"{script}\n", "")

    def test_help_of_the_completion_option(self) -> None:
        """The help says how each shell loads its script, by the installed name."""
        parser = power_manager.CommandParser("./tool", "Do things.", examples=["--size 3"])
        parser.add_help_commands("tool")
        shown = parser.format_help()
        for line in (
            '  bash: eval "$(tool --completion bash)"    in ~/.bashrc',
            '  zsh:  eval "$(tool --completion zsh)"     in ~/.zshrc, after compinit',
            "  fish: tool --completion fish | source     in ~/.config/fish/config.fish",
        ):
            assert f"\n{line}\n" in shown
        assert shown.endswith("\nexample:\n  ./tool --size 3\n")
        assert vars(parser.parse_args([])) == {}

    def test_unknown_shell(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A shell without a script is answered with those that have one."""
        parser = power_manager.CommandParser("tool", "Do things.")
        parser.add_help_commands("tool")
        for shell, hint in (("bsh", "did you mean bash?"), ("csh9", "expected one of bash, zsh")):
            with pytest.raises(SystemExit, match="2"):
                parser.parse_args(["--completion", shell])
            assert f"unknown value {shell!r}: {hint}" in capsys.readouterr().err

    def test_parser_without_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Without commands a parser has options alone, and no name but its own."""
        parser = power_manager.CommandParser("tool", "Do things.")
        parser.add_argument("--size", type=power_manager.parse_count)
        parser.add_argument("file", nargs="*")
        options = parser.parse_args(["--size", "1", "a", "-", "b"])
        assert (options.size, options.file) == (1, ["a", "-", "b"])
        with pytest.raises(SystemExit):
            parser.parse_args(["--sze", "1"])
        assert capsys.readouterr().err.endswith(
            "tool: unknown option --sze: did you mean --size?\n"
        )
        assert "example" not in parser.format_help()

    @pytest.mark.parametrize(
        ("line", "files"),
        [
            ("a b --json", ["a", "b"]),
            ("--json a b", ["a", "b"]),
            ("a --json b", ["a", "b"]),
            ("a --json b --size 3 c -d", None),
            ("a --size 3 b c", ["a", "b", "c"]),
            ("--json", ["all"]),
        ],
    )
    def test_options_between_arguments(self, line: str, files: list[str] | None) -> None:
        """An argument of any number takes its words wherever options stand."""
        parser = power_manager.CommandParser("tool", "Do things.")
        parser.add_json()
        parser.add_argument("--size", type=int)
        parser.add_argument("file", nargs="*", default=["all"])
        if files is None:
            with pytest.raises(SystemExit):
                parser.parse_args(line.split())
        else:
            assert parser.parse_args(line.split()).file == files

    @pytest.mark.parametrize(
        ("word", "error"),
        [
            ("x", "argument n: invalid int value: 'x'"),
            ("9", "argument n: unknown value 9: expected one of 1, 2"),
        ],
    )
    def test_bad_argument_after_an_option(
        self, capsys: pytest.CaptureFixture[str], word: str, error: str
    ) -> None:
        """It is refused as one before the option is."""
        parser = power_manager.CommandParser("tool", "Do things.")
        parser.add_json()
        parser.add_argument("n", nargs="*", type=int, choices=[1, 2])
        for line in (f"1 {word} --json", f"1 --json {word}"):
            with pytest.raises(SystemExit, match="2"):
                parser.parse_args(line.split())
            assert capsys.readouterr().err.splitlines()[-1] == f"tool: {error}"

    @pytest.mark.parametrize(
        ("started", "name"),
        [(["/usr/bin/tool"], "tool"), (["/x/tool.py"], "python3 tool.py"), ([], "python3 tool.py")],
    )
    def test_program_name(
        self, monkeypatch: pytest.MonkeyPatch, started: list[str], name: str
    ) -> None:
        """A program is called as it was started."""
        monkeypatch.setattr(sys, "argv", started)
        assert power_manager.program_name("tool", "/x/tool.py") == name


class TestSettings:
    """Options that environment variables give too, and the table of them."""

    @pytest.fixture
    def parser(self) -> power_manager.CommandParser:
        """A parser with settings of its own, and of one of its two commands."""
        parser = power_manager.CommandParser("tool", "Do things.", version="1.2", examples=["go"])
        parser.add_setting(
            "--place", variable="TOOL_PLACE", text="where", default=Path("here"), metavar="PATH"
        )
        go = parser.add_command("go", len, "go there", examples=[""])
        go.add_setting("--way", variable="TOOL_WAYS", text="a way", action="append")
        go.add_setting(
            "--count",
            variable="TOOL_COUNT",
            text="how often, 100 %% sure",
            type=power_manager.parse_count,
            shown_default="once",
        )
        go.add_setting("--size", variable="TOOL_SIZE", text="size", choices=["small", "large"])
        go.add_argument("--days", type=int, default=7, help="how far back (default: %(default)s)")
        go.add_argument("-q", "--quiet", action="store_true", help="say a|b\nonly")
        go.add_argument("--secret", help=argparse.SUPPRESS)
        go.add_variable("TOOL_KEY", "a key", default="none")
        stay = parser.add_command("stay", len, "stay here", examples=[""])
        stay.add_argument("-q", "--quiet", action="store_true", help="say a|b\nonly")
        stay.add_setting("--host", variable="TOOL_HOST", text="a host", required=True)
        parser.add_help_commands("tool")
        return parser

    def test_default(self, parser: power_manager.CommandParser) -> None:
        """Without option and variable a setting has its default, as that is."""
        options = parser.parse_args(["go"])
        assert (options.place, options.way, options.count, options.size) == (
            Path("here"), None, None, None,
        )  # fmt: skip

    def test_variable(
        self, parser: power_manager.CommandParser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A variable goes before the default; its words are those of an option that is repeated."""
        for name, text in [("PLACE", "a b"), ("WAYS", " a  b "), ("COUNT", "3"), ("SIZE", "large")]:
            monkeypatch.setenv(f"TOOL_{name}", text)
        options = parser.parse_args(["go"])
        assert (options.place, options.way, options.count, options.size) == (
            "a b", ["a", "b"], 3, "large",
        )  # fmt: skip

    def test_option_before_variable(
        self, parser: power_manager.CommandParser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The option goes before the variable, even one with a value that would not do."""
        for name in ["PLACE", "WAYS", "COUNT", "SIZE"]:
            monkeypatch.setenv(f"TOOL_{name}", "wrong")
        line = "--place x go --way a --way b --count 0 --size small"
        options = parser.parse_args(line.split())
        assert (options.place, options.way, options.count, options.size) == (
            "x", ["a", "b"], 0, "small",
        )  # fmt: skip

    def test_empty_variable(
        self, parser: power_manager.CommandParser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An empty variable counts as unset."""
        monkeypatch.setenv("TOOL_COUNT", "")
        assert parser.parse_args(["go"]).count is None

    @pytest.mark.parametrize(
        ("name", "text", "error"),
        [
            (
                "TOOL_COUNT",
                "many",
                "$TOOL_COUNT: expected a whole number of at least 0, got 'many'",
            ),
            ("TOOL_SIZE", "larg", "$TOOL_SIZE: unknown value 'larg': did you mean large?"),
        ],
    )
    def test_bad_variable(
        self,
        parser: power_manager.CommandParser,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        name: str,
        text: str,
        error: str,
    ) -> None:
        """A value that would not do is refused by the variable's name, beside the usage."""
        monkeypatch.setenv(name, text)
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(["go"])
        assert caught.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"tool: {error}"

    def test_required(
        self,
        parser: power_manager.CommandParser,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """One that is needed may be given in both ways, and both are named where it is not."""
        with pytest.raises(SystemExit):
            parser.parse_args(["stay"])
        said = "tool: --host is needed, or $TOOL_HOST in the environment\n"
        assert capsys.readouterr().err.endswith(said)
        assert parser.parse_args(["stay", "--host", "a"]).host == "a"
        monkeypatch.setenv("TOOL_HOST", "b")
        assert parser.parse_args(["stay"]).host == "b"

    def test_help(self, parser: power_manager.CommandParser) -> None:
        """The help says which variable gives the value, and what else it is."""
        shown = " ".join(parser.format_help().split())
        assert "--place PATH where (default: $TOOL_PLACE, else here)" in shown
        shown = " ".join(parser.commands["go"].format_help().split())
        assert "how often, 100 % sure (default: $TOOL_COUNT, else once)" in shown
        assert "a way (default: $TOOL_WAYS)" in shown

    def test_table(self, parser: power_manager.CommandParser) -> None:
        """Each option and variable once, with the commands that have it."""
        assert power_manager.settings_table(parser) == (
            "| option | commands | variable | default | meaning |\n"
            "| --- | --- | --- | --- | --- |\n"
            "| `--place PATH` | all | `TOOL_PLACE` | here | where |\n"
            "| `--way WAY` | go | `TOOL_WAYS` |  | a way |\n"
            "| `--count COUNT` | go | `TOOL_COUNT` | once | how often, 100 % sure |\n"
            "| `--size small\\|large` | go | `TOOL_SIZE` |  | size |\n"
            "| `--days DAYS` | go |  | 7 | how far back |\n"
            "| `-q`, `--quiet` | go, stay |  |  | say a\\|b only |\n"
            "| `--host HOST` | stay | `TOOL_HOST` |  | a host |\n"
            "|  | go | `TOOL_KEY` | none | a key |"
        )

    def test_commands_of_commands(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The variables of each are read, the table has its words, errors its usage."""
        parser = power_manager.CommandParser("tool", "Do things.")
        dead = parser.add_command("dead", None, "letters", examples=["list"])
        dead.add_setting("--host", variable="TOOL_HOST", text="where")
        listing = dead.add_command("list", len, "list them", examples=[""])
        listing.add_setting("--way", variable="TOOL_WAY", text="how")
        monkeypatch.setenv("TOOL_HOST", "here")
        monkeypatch.setenv("TOOL_WAY", "slowly")
        options = parser.parse_args(["dead", "list"])
        assert (options.run, options.host, options.way) == (len, "here", "slowly")
        assert power_manager.settings_table(parser).endswith(
            "| `--host HOST` | dead | `TOOL_HOST` |  | where |\n"
            "| `--way WAY` | dead list | `TOOL_WAY` |  | how |"
        )
        for words, start in ((["dead"], "tool dead"), (["dead", "list", "x"], "tool dead list")):
            with pytest.raises(SystemExit, match="2"):
                parser.parse_args(words)
            assert capsys.readouterr().err.startswith(f"usage: {start} [-h]")

    def test_table_without_commands(self) -> None:
        """A program without commands has no column of them, and no row of what explains it."""
        parser = power_manager.CommandParser("tool", "Do things.", version="1")
        parser.add_argument("file")
        parser.add_argument("--size", type=int)
        parser.add_help_commands("tool")
        assert power_manager.settings_table(parser) == (
            "| option | variable | default | meaning |\n"
            "| --- | --- | --- | --- |\n"
            "| `--size SIZE` |  |  |  |"
        )


class TestAddDatabase:
    """The option that names a file of the library, in every program."""

    def test_database(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The option goes before the variable, and that before the file in this directory."""
        parser = power_manager.CommandParser("tool", "Do.")
        parser.add_database("the file", type=Path)
        monkeypatch.delenv("POWER_MANAGER_DB", raising=False)
        assert parser.parse_args([]).db == Path("power_manager.db")
        monkeypatch.setenv("POWER_MANAGER_DB", "a.db")
        assert parser.parse_args([]).db == Path("a.db")
        assert parser.parse_args(["--db", "b.db"]).db == Path("b.db")
        row = "| `--db PATH` | `POWER_MANAGER_DB` | power_manager.db here | the file |"
        assert power_manager.settings_table(parser).splitlines()[-1] == row


class TestLogToStderr:
    """Log lines of programs."""

    def test_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A line has time, level, logger and text, and a text with line ends stays one line."""
        log = logging.getLogger("tool.part")
        with power_manager.log_to_stderr("tool"):
            log.info("at\n%s", "\x1b[2J")
            log.debug("not shown")
            logging.getLogger("other").info("not shown")
            logging.getLogger("other").warning("shown")
        log.info("after it")
        first, second = capsys.readouterr().err.splitlines()
        when, text = first.split(" ", 1)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", when)
        assert text == r"INFO tool.part: at\n\x1b[2J"
        assert second.split(" ", 1)[1] == "WARNING other: shown"

    def test_time_is_utc(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Whatever the zone of the machine is."""
        record = logging.makeLogRecord(
            {"name": "tool", "levelno": 20, "levelname": "INFO", "msg": "x", "created": 0.0}
        )
        with power_manager.log_to_stderr("tool"):
            logging.getLogger("tool").handle(record)
        assert capsys.readouterr().err == "1970-01-01T00:00:00Z INFO tool: x\n"

    def test_levels(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Own lines and those of others are chosen by two levels; then all is as before."""
        root, own = logging.getLogger(), logging.getLogger("tool")
        before = (root.level, own.level, list(root.handlers))
        with power_manager.log_to_stderr("tool", logging.DEBUG, others=logging.ERROR):
            own.debug("shown")
            logging.getLogger("other").warning("not shown")
        assert capsys.readouterr().err.endswith(" DEBUG tool: shown\n")
        assert (root.level, own.level, root.handlers) == before

    def test_level_of_another_logger(
        self, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What another logger lets through is not shown for that; its name may begin alike."""
        other = logging.getLogger("tools")
        caplog.set_level(logging.DEBUG, logger="tools")
        with power_manager.log_to_stderr("tool"):
            other.info("not shown")
            other.warning("shown")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("Z WARNING tools: shown")

    def test_journal(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The journal adds the time itself, and reads the level as a number of syslog."""
        path = tmp_path / "journal"
        with path.open("w") as stream:
            status = os.fstat(stream.fileno())
            monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
            monkeypatch.setattr(sys, "stderr", stream)
            with power_manager.log_to_stderr("tool", logging.DEBUG):
                for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.CRITICAL):
                    logging.getLogger("tool").log(level, "x")
        assert path.read_text() == "<7>tool: x\n<6>tool: x\n<4>tool: x\n<3>tool: x\n"

    def test_another_journal(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A journal that reads another stream is not this stream's."""
        monkeypatch.setenv("JOURNAL_STREAM", "1:1")
        with power_manager.log_to_stderr("tool"):
            logging.getLogger("tool").info("x")
        assert capsys.readouterr().err.endswith("Z INFO tool: x\n")

    def test_stream_of_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A standard error that is a file is no journal."""
        path = tmp_path / "log"
        with path.open("w") as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            with power_manager.log_to_stderr("tool"):
                logging.getLogger("tool").info("x")
        assert path.read_text().endswith("Z INFO tool: x\n")


class TestReplaceFile:
    """A file that is written whole, or not at all."""

    @staticmethod
    def write(path: Path, content: bytes, mode: int | None = None) -> None:
        """Write it by the function."""
        with power_manager.replace_file(path, mode) as file:
            file.write(content)

    def test_new(self, tmp_path: Path) -> None:
        """A new file is its owner's alone, and nothing else stays in the directory."""
        path = tmp_path / "new"
        self.write(path, b"text")
        assert path.read_bytes() == b"text"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(tmp_path) == ["new"]

    @pytest.mark.parametrize(("mode", "expected"), [(None, 0o640), (0o644, 0o644)])
    def test_mode(self, tmp_path: Path, mode: int | None, expected: int) -> None:
        """The permissions are those given, or stay as they were."""
        path = tmp_path / "old"
        path.write_bytes(b"before")
        path.chmod(0o640)
        self.write(path, b"after", mode)
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"after", expected)

    def test_a_block_that_raises(self, tmp_path: Path) -> None:
        """The earlier file stays; meanwhile nobody sees the unfinished one under its name."""
        path = tmp_path / "old"
        path.write_bytes(b"before")

        def write() -> None:
            with power_manager.replace_file(path) as file:
                file.write(b"after")
                file.flush()
                (unfinished,) = set(os.listdir(tmp_path)) - {"old"}
                assert stat.S_IMODE((tmp_path / unfinished).stat().st_mode) == 0o600
                assert path.read_bytes() == b"before"
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write()
        assert (path.read_bytes(), os.listdir(tmp_path)) == (b"before", ["old"])

    @pytest.mark.parametrize("size", [5000, 50_000], ids=["at the end", "in the block"])
    def test_full_disk(self, tmp_path: Path, size: int) -> None:
        """The error names the file and says what to do; the earlier file stays."""
        path = tmp_path / "old"
        path.write_bytes(b"before")
        with full_disk(1000), pytest.raises(StorageError) as caught:
            self.write(path, bytes(size))
        assert str(caught.value) == f"{path}: File too large; free some space, then try again"
        assert (path.read_bytes(), os.listdir(tmp_path)) == (b"before", ["old"])

    def test_error_of_the_block(self, tmp_path: Path) -> None:
        """What else the block raises is not about this file."""
        with pytest.raises(ConnectionError), power_manager.replace_file(tmp_path / "new"):
            raise ConnectionError
        assert os.listdir(tmp_path) == []

    def test_no_directory(self, tmp_path: Path) -> None:
        """The error names the file, not the unfinished one."""
        path = tmp_path / "none" / "new"
        with pytest.raises(StorageError, match="No such file or directory; check that") as caught:
            self.write(path, b"")
        assert caught.value.filename == str(path)

    @pytest.mark.parametrize(
        "make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/null")]
    )
    def test_not_a_file(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        """A directory, a pipe and a link to a device are not replaced."""
        path = tmp_path / "place"
        make(path)
        before = path.lstat()
        with pytest.raises(StorageError, match="place: not a regular file: name another"):
            self.write(path, b"")
        assert (path.lstat().st_ino, os.listdir(tmp_path)) == (before.st_ino, ["place"])

    def test_link_to_the_name_of_an_open_file(self, tmp_path: Path) -> None:
        """It is refused through any number of links."""
        with open(tmp_path / "open", "w") as file:
            (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{file.fileno()}")
            (tmp_path / "again").symlink_to("stdout")
            with pytest.raises(StorageError, match="again: not a regular file: name another"):
                self.write(tmp_path / "again", b"text")
        assert (tmp_path / "open").read_bytes() == b""

    @pytest.mark.parametrize("leads_to", ["/dev/stdout", "/proc/self/fd/{}", "/dev/fd/{}"])
    def test_name_of_an_open_file(self, tmp_path: Path, leads_to: str) -> None:
        """A link such as /dev/stdout is not replaced, even if it leads to a regular file now."""
        path = tmp_path / "place"
        with open(tmp_path / "open", "w") as file, PowerManager(":memory:") as pm:
            path.symlink_to(leads_to.format(file.fileno()))
            with pytest.raises(StorageError, match="place: not a regular file: name another"):
                self.write(path, b"")
            with pytest.raises(StorageError, match="place: not a regular file: name another"):
                pm.backup(path)
        assert path.is_symlink()
        assert sorted(os.listdir(tmp_path)) == ["open", "place"]

    def test_link(self, tmp_path: Path) -> None:
        """A link is replaced by the file; what it leads to stays."""
        (tmp_path / "target").write_bytes(b"before")
        (tmp_path / "link").symlink_to(tmp_path / "target")
        self.write(tmp_path / "link", b"after")
        assert (tmp_path / "target").read_bytes() == b"before"
        assert stat.S_IMODE((tmp_path / "link").lstat().st_mode) == 0o600
        assert not (tmp_path / "link").is_symlink()

    def test_owner(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where root writes, the file goes to the owner of the earlier one, or of the directory."""
        owners: list[tuple[int, int]] = []
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(os, "fchown", lambda _file, user, group: owners.append((user, group)))
        own = (tmp_path.stat().st_uid, tmp_path.stat().st_gid)
        self.write(tmp_path / "new", b"")
        earlier = os.stat_result((0o100600, 0, 0, 1, 7, 8, 0, 0, 0, 0))
        monkeypatch.setattr(os, "lstat", lambda _path: earlier)
        self.write(tmp_path / "new", b"")
        monkeypatch.setattr(os, "geteuid", lambda: 1)
        self.write(tmp_path / "new", b"")
        assert owners == [own, (7, 8)]

    def test_power_cut(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The content is on the disk before the name, and the name at the end."""
        steps: list[str] = []
        fsync, replace = os.fsync, os.replace

        def note_sync(descriptor: int) -> None:
            is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            steps.append("directory" if is_directory else "content")
            fsync(descriptor)

        def note_name(source: Path, target: Path) -> None:
            steps.append("name")
            replace(source, target)

        monkeypatch.setattr(os, "fsync", note_sync)
        monkeypatch.setattr(os, "replace", note_name)
        self.write(tmp_path / "new", b"text")
        assert steps == ["content", "name", "directory"]


class TestOpenSecret:
    """A file that holds a password or a key."""

    @pytest.mark.parametrize(
        ("mode", "warning"),
        [(0o600, ""), (0o660, ""), (0o604, "(mode 0604): chmod 600 it"), (0o644, "mode 0644")],
    )
    def test_read(self, tmp_path: Path, mode: int, warning: str) -> None:
        """It is read; if every user can read it, too, that is said."""
        path = tmp_path / "secret"
        path.write_text("kö")
        path.chmod(mode)
        warnings: list[str] = []
        with power_manager.open_secret(path, warnings.append) as file:
            assert file.read() == "kö"
        assert bool(warnings) == bool(warning)
        assert all(
            text.startswith(f"{path}: every user of this machine can read it") and warning in text
            for text in warnings
        )

    @pytest.mark.parametrize("mode", [0o666, 0o602])
    def test_others_can_write(self, tmp_path: Path, mode: int) -> None:
        """It is refused, because every user of the machine could choose the secret."""
        path = tmp_path / "secret"
        path.touch()
        path.chmod(mode)
        with pytest.raises(StorageError, match=rf"can write it \(mode {mode:04o}\): chmod 600 it"):
            power_manager.open_secret(path, pytest.fail)

    def test_no_file(self, tmp_path: Path) -> None:
        """A file that is not there is an error of the system."""
        with pytest.raises(FileNotFoundError):
            power_manager.open_secret(tmp_path / "none", pytest.fail)


class TestStopSignals:
    """Signals that end a wait."""

    STOPS = """
import sys
from power_manager import StopSignals
with StopSignals() as signals:
    print("ready", flush=True)
    print(signals.wait(600), signals.number, signals.wait(600), flush=True)
sys.exit(signals.exit_code)
"""
    STUCK = """
import ctypes
from power_manager import StopSignals
mutex = ctypes.create_string_buffer(64)
lock = ctypes.CDLL(None).pthread_mutex_lock
with StopSignals(hard_end_s=0.01):
    lock(mutex)
    print("ready", flush=True)
    lock(mutex)  # for ever, and no handler of Python's runs meanwhile
"""

    @staticmethod
    def start(tmp_path: Path, program: str) -> subprocess.Popen[str]:
        """Start a program that uses it, and wait until it is ready."""
        path = tmp_path / "program.py"
        path.write_text(program)
        process = subprocess.Popen(
            [sys.executable, str(path)],
            env={**os.environ, "PYTHONPATH": str(MODULE.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)]
    )
    def test_signal(self, tmp_path: Path, number: int, code: int) -> None:
        """A signal ends the present wait and all later ones; only Ctrl-C changes the exit code."""
        process = self.start(tmp_path, self.STOPS)
        process.send_signal(number)
        text, _ = process.communicate()
        assert (text, process.returncode) == (f"True {int(number)} True\n", code)

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    def test_hard_end(self, tmp_path: Path, number: int, code: int) -> None:
        """A call that is stuck, and that no handler interrupts, does not hold the program up."""
        process = self.start(tmp_path, self.STUCK)
        process.send_signal(number)
        process.communicate()
        assert process.returncode == code

    def test_how_it_ends_the_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the exit code, and only if the block has not ended in time."""
        codes: list[int] = []
        ended = threading.Event()

        def end(code: int) -> None:
            codes.append(code)
            ended.set()

        monkeypatch.setattr(os, "_exit", end)
        with power_manager.StopSignals(hard_end_s=0.0):
            os.kill(os.getpid(), signal.SIGINT)
            assert ended.wait(60)
        with power_manager.StopSignals(hard_end_s=600.0):
            os.kill(os.getpid(), signal.SIGINT)
        assert codes == [130]

    def test_ignored_signal(self) -> None:
        """A signal that was ignored before, as under nohup, stays ignored."""
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with power_manager.StopSignals() as signals:
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGTERM)
                assert signals.wait(600)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGHUP, before)
        assert signals.number == signal.SIGTERM

    def test_all_is_as_before(self) -> None:
        """After the block, signals do what they did before it, and no thread or file is left."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        handlers = [signal.getsignal(number) for number in numbers]
        # Not the same, but no more: a thread of what ran before may just be ending.
        threads = set(threading.enumerate())
        files = set(os.listdir("/proc/self/fd"))
        with power_manager.StopSignals() as signals:
            assert [signal.getsignal(number) for number in numbers] != handlers
        assert [signal.getsignal(number) for number in numbers] == handlers
        assert set(threading.enumerate()) <= threads
        assert set(os.listdir("/proc/self/fd")) <= files
        assert signal.set_wakeup_fd(-1) == -1
        assert (signals.number, signals.exit_code) == (None, 0)

    def test_signals_at_once(self) -> None:
        """The first counts; more of them than a pipe holds do no harm."""
        codes: list[int] = []
        with power_manager.StopSignals(codes.append) as signals:
            os.kill(os.getpid(), signal.SIGINT)
            assert signals.wait(600)
            for _ in range(70_000):
                signal.raise_signal(signal.SIGTERM)
        assert (signals.number, codes) == (signal.SIGINT, [130])

    def test_other_signals(self) -> None:
        """Those that the program handles itself end no wait."""
        before = signal.signal(signal.SIGUSR1, lambda _number, _frame: signals.ring())
        try:
            with power_manager.StopSignals() as signals:
                os.kill(os.getpid(), signal.SIGUSR1)
                assert not signals.wait(600)
        finally:
            signal.signal(signal.SIGUSR1, before)

    def test_ring(self) -> None:
        """It ends the wait that it meets, or the next, once."""
        with power_manager.StopSignals() as signals:
            ringing = threading.Thread(target=signals.ring)
            ringing.start()
            assert not signals.wait(600)
            ringing.join()
            assert not signals.wait(0)

    def test_outside_the_main_thread(self) -> None:
        """Where signals cannot be had, everything else works."""
        waits: list[bool] = []

        def use() -> None:
            with power_manager.StopSignals() as signals:
                signals.ring()
                waits.append(signals.wait(600))

        thread = threading.Thread(target=use)
        before = signal.getsignal(signal.SIGTERM)
        thread.start()
        thread.join()
        assert (waits, signal.getsignal(signal.SIGTERM)) == ([False], before)

    def test_on_stop_that_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The hard end comes all the same."""
        ended = threading.Event()
        monkeypatch.setattr(os, "_exit", lambda _code: ended.set())

        def hang(_code: int) -> None:
            ended.wait()

        with power_manager.StopSignals(hang, hard_end_s=0.0):
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.is_set()


class TestRunProgram:
    """How a program ends."""

    @staticmethod
    def run(program: Callable[[], object]) -> int:
        """Run it; its errors are those of the library."""
        return power_manager.run_program(
            cast("Callable[[], int]", program), "tool", (PowerManagerError, KeyError)
        )

    @pytest.mark.parametrize(
        ("error", "code", "line"),
        [
            (PowerManagerError("it is\nwrong"), 1, "tool: it is\\nwrong\n"),
            (KeyError("x"), 1, "tool: 'x'\n"),
            (FileNotFoundError(2, "No such file", "x"), 1, "tool: x: No such file\n"),
            (FileNotFoundError(2, "No such file", b"x"), 1, "tool: x: No such file\n"),
            (OSError(9, "Bad file descriptor", 3), 1, "tool: 3: Bad file descriptor\n"),
            (ConnectionError(104, "Reset by peer"), 1, "tool: Reset by peer\n"),
            (TimeoutError("too late"), 1, "tool: too late\n"),
            (KeyboardInterrupt(), 130, ""),
            (BrokenPipeError(), 0, ""),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
    )
    def test_errors(
        self,
        capsys: pytest.CaptureFixture[str],
        error: BaseException,
        code: int,
        line: str,
    ) -> None:
        """An error is one line, Ctrl-C and a reader that has gone none."""

        def program() -> int:
            raise error

        assert (self.run(program), *capsys.readouterr()) == (code, "", line)

    def test_code(self) -> None:
        """The program's own exit code is returned."""
        assert self.run(lambda: 3) == 3
        assert power_manager.run_program(lambda: 4, "tool") == 4

    def test_missing_package(self, capsys: pytest.CaptureFixture[str]) -> None:
        """It is named, with the extra that brings it; without an extra it is a fault."""

        def program() -> int:
            raise ModuleNotFoundError("No module named 'a.b'", name="a.b")

        assert power_manager.run_program(program, "tool", extra="all") == 1
        said = power_manager.not_installed("a", "all")
        assert capsys.readouterr().err == f"tool: {said}\n"
        with pytest.raises(ModuleNotFoundError):
            power_manager.run_program(program, "tool")
        unnamed = power_manager.not_installed(ImportError("x"), "all")
        assert unnamed == said.replace("a is", "a package is")

    @pytest.mark.parametrize(
        ("metadata_of", "name"),
        [
            ([], "."),
            (["copy"], "blackroad-power-manager"),
            (["other"], "."),
            (["copy", "other"], "blackroad-power-manager"),
        ],
        ids=["checkout", "installed", "editable", "both"],
    )
    def test_what_pip_knows(self, tmp_path: Path, metadata_of: list[str], name: str) -> None:
        """Where the module was installed, pip knows the extras by the name of the project."""
        for folder in ("copy", "other"):
            (tmp_path / folder).mkdir()
        shutil.copy(MODULE, tmp_path / "copy")
        for folder in metadata_of:
            information = tmp_path / folder / "blackroad_power_manager-1.0.0.dist-info"
            information.mkdir()
            (information / "METADATA").write_text("Name: blackroad-power-manager\nVersion: 1.0.0\n")
        code = "import power_manager; print(power_manager.not_installed('a', 'all'))"
        done = subprocess.run(
            [sys.executable, "-S", "-c", code],  # -S: without what is installed here
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{tmp_path / 'copy'}:{tmp_path / 'other'}"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout == f"a is not installed: pip install '{name}[all]'\n"

    @pytest.mark.parametrize("has_metadata", [False, True])
    def test_module_that_was_not_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_metadata: bool
    ) -> None:
        """Whether or not the project is installed somewhere, this copy is a checkout's."""
        power_manager.not_installed("a", "all")  # imports what it needs
        information = tmp_path / "blackroad_power_manager-1.0.0.dist-info"
        if has_metadata:
            information.mkdir()
            (information / "METADATA").write_text("Name: blackroad-power-manager\nVersion: 1.0.0\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        said = power_manager.not_installed("a", "all")
        assert said == "a is not installed: pip install '.[all]'"

    @pytest.mark.parametrize("error", [ValueError, SystemExit])
    def test_other_errors(self, error: type[BaseException]) -> None:
        """What is not one of its errors is not hidden."""

        def program() -> int:
            raise error

        with pytest.raises(error):
            self.run(program)

    def test_no_output(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Where nothing can be printed, nothing is run."""
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", None)
            assert self.run(pytest.fail) == 1
        assert capsys.readouterr().err == "tool: standard output is closed: nothing was done\n"

    def test_closed_output(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stand-in for standard output that was closed hides no error of the program."""
        stream = io.StringIO()

        def program() -> int:
            stream.close()
            raise KeyError

        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert self.run(program) == 1

    def test_closed_standard_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error that cannot be told still has its exit code."""
        stream = io.StringIO()
        stream.close()
        for broken in (stream, None):
            monkeypatch.setattr(sys, "stderr", broken)
            assert self.run(lambda: {"a": 0}["x"]) == 1

    def run_process(self, program: str, target: Any, **environment: str) -> tuple[int, str]:
        """Run a program that prints into a file; its exit code, and what it says of errors."""
        code = f"import sys, power_manager\n{program}\n"
        code += "sys.exit(power_manager.run_program(run, 'tool', (KeyError,)))"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            stdout=target,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            cwd=MODULE.parent,
            env={**os.environ, **environment},
        )
        return done.returncode, done.stderr

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    @pytest.mark.parametrize(
        "body",
        [
            "print('x')\n    return 0",
            "print('x')\n    sys.exit()",
            "power_manager.CommandParser('tool', 'Do.').parse_args(['--help'])",
            "power_manager.CommandParser('tool', 'Do.', version='1').parse_args(['--version'])",
        ],
        ids=["code", "exit", "help", "version"],
    )
    def test_full_disk(self, body: str, unbuffered: str) -> None:
        """It is said once, and Python does not try again at its exit."""
        program = f"def run():\n    {body}"
        with open("/dev/full", "w") as target:
            ended = self.run_process(program, target, PYTHONUNBUFFERED=unbuffered)
        assert ended == (1, "tool: No space left on device\n")

    @pytest.mark.parametrize(
        ("last", "code", "line", "unbuffered"),
        [
            ("return 0", 0, "", ""),
            ("return 0", 0, "", "1"),
            ("raise KeyError('x')", 1, "tool: 'x'\n", ""),
            ("raise KeyboardInterrupt", 130, "", ""),
        ],
        ids=["well", "well, unbuffered", "error", "Ctrl-C"],
    )
    def test_reader_that_has_gone(self, last: str, code: int, line: str, unbuffered: str) -> None:
        """However the program ends, what was left to print is dropped without a word."""
        read, write = os.pipe()
        os.close(read)
        program = f"def run():\n    print('x')\n    {last}"
        with os.fdopen(write, "w") as target:
            ended = self.run_process(program, target, PYTHONUNBUFFERED=unbuffered)
        assert ended == (code, line)

    def test_another_pipe_that_broke(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A broken pipe that is not the output is an error."""

        def program() -> int:
            raise BrokenPipeError(32, "Broken pipe")

        read, write = os.pipe()
        with os.fdopen(read), os.fdopen(write, "w") as out, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            assert self.run(program) == 1
        assert capsys.readouterr().err == "tool: Broken pipe\n"

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
    def test_letters_that_the_output_lacks(
        self, monkeypatch: pytest.MonkeyPatch, encoding: str
    ) -> None:
        """They are printed as JSON escapes them, so that JSON can be read again."""
        text = 'ü ☀ 北京 \U0001f600 \ud800 \\ "'
        out = io.BytesIO()

        def program() -> int:
            print(power_manager.shown_json([text]))
            return 0

        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
            assert self.run(program) == 0
            printed = out.getvalue().decode(encoding)
        assert json.loads(printed) == [text]
        assert ("\\u2600" in printed) == (encoding != "utf-8")


SHELLS = [shell for shell in ("bash", "zsh", "fish") if shutil.which(shell)]


class TestCompletion:
    """Shells complete commands, options and their values."""

    # What is typed, and what it can become.
    CASES: tuple[tuple[str, list[str]], ...] = (
        ("power-manager regi", ["register"]),
        ("power-manager upda", ["update-device", "update-meter"]),
        ("power-manager --db x.db bac", ["backup"]),
        ("power-manager --vers", ["--version"]),
        ("power-manager stats d/m --buck", ["--bucket"]),
        ("power-manager stats d/m --bucket ", ["day", "hour"]),
        ("power-manager stats --bucket h", ["hour"]),
        ("power-manager add-meter d bat", ["battery"]),
        ("power-manager help upda", ["update-device", "update-meter"]),
        ("power-manager completion f", ["fish"]),
        ("power-manager devices --bucket", []),
    )

    @pytest.fixture
    def script(self, tmp_path: Path) -> Callable[[str], str]:
        """Write a shell's script into a file."""

        def written(shell: str) -> str:
            path = tmp_path / f"completion.{shell}"
            with redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit, match="0"):
                power_manager.main(["completion", shell])
            path.write_text(out.getvalue())
            return shlex.quote(str(path))

        return written

    @staticmethod
    def output(*command: str) -> str:
        """What a shell prints; it must have no complaint."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def bash(self, script: str, words: Sequence[str]) -> list[str]:
        """What bash completes the last of some words to."""
        line = f"source {script}; COMP_WORDS=({' '.join(map(shlex.quote, words))}); "
        line += f"COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _{words[0].replace('-', '_')}; "
        line += f'printf "%s\\n" "${{COMPREPLY[@]}}"; complete -p {words[0]} >&3'
        return sorted(self.output("bash", "--norc", "-c", f"exec 3>/dev/null; {line}").split())

    @pytest.mark.parametrize("shell", SHELLS)
    def test_shell(self, script: Callable[[str], str], shell: str) -> None:
        """The shell loads the script, and completes."""
        path = script(shell)
        if shell == "bash":
            for line, completed in self.CASES:
                assert (line, self.bash(path, line.split(" "))) == (line, completed)
        elif shell == "fish":
            self.complete_in_fish(path)
        else:
            cases = {line: completed for line, completed in self.CASES if completed}
            self.complete_in_zsh(path, cases)

    def test_bash_completes_after_an_equals_sign(self, script: Callable[[str], str]) -> None:
        """Bash takes --bucket=d for three words."""
        path = script("bash")
        start = ["power-manager", "stats", "--bucket", "="]
        assert self.bash(path, start) == ["day", "hour"]
        assert self.bash(path, [*start, "d"]) == ["day"]

    def test_bash_completes_files(self, script: Callable[[str], str]) -> None:
        """Where nothing else is known, bash completes the names of files."""
        path = script("bash")
        assert self.bash(path, ["power-manager", "--db", ""]) == []
        assert self.bash(path, ["power-manager", "--db", "report", "bac"]) == ["backup"]
        assert self.bash(path, ["power-manager", "stats", ""]) == []
        output = self.output("bash", "--norc", "-c", f"source {path}; complete -p power-manager")
        assert " -o default " in output

    def test_bash_completes_all_commands_and_options(self, script: Callable[[str], str]) -> None:
        """Every command is offered, and every option that its help shows."""
        path = script("bash")
        assert self.bash(path, ["power-manager", ""]) == sorted(COMMANDS)
        parser = power_manager._PowerCommands(lambda: NOW).parser
        lines = []
        expected = []
        for name, command in parser.commands.items():
            lines.append(f"COMP_WORDS=(power-manager {name} --); COMP_CWORD=2; _power_manager; ")
            lines.append('echo "${COMPREPLY[*]}"; ')
            expected.append(sorted(set(re.findall(r"--[a-z-]+", command.format_usage()))))
        output = self.output("bash", "--norc", "-c", f"source {path}; {''.join(lines)}")
        completed = [sorted(set(line.split()) - {"--help"}) for line in output.splitlines()]
        assert completed == expected

    def complete_in_fish(self, script: str) -> None:
        """Ask fish what a line can become."""
        lines = "".join(
            f"echo '> {line}'; complete -C {shlex.quote(line)}; " for line, _ in self.CASES
        )
        output = self.output("fish", "--no-config", "-c", f"source {script}; {lines}")
        for part, (line, completed) in zip(output.split("> ")[1:], self.CASES, strict=True):
            found = [entry.partition("\t")[0] for entry in part.splitlines()[1:]]
            assert (line, sorted(found)) == (line, completed)

    def complete_in_zsh(self, script: str, cases: Mapping[str, Sequence[str]]) -> None:
        """Type at the prompt of zsh, which completes nowhere else."""
        import pty

        child, terminal = pty.fork()
        if child == 0:
            environment = {**os.environ, "TERM": "dumb", "COLUMNS": "100"}
            os.execvpe("zsh", ["zsh", "-f", "-i"], environment)
        try:
            start = f"autoload -U compinit; compinit -u -D; source {script}; echo DO''NE\n"
            self.until(terminal, start, "DONE\r\n")
            for line, completed in cases.items():
                self.until(terminal, f"{line}\t\t", *completed)
                self.until(terminal, "\x15echo DO''NE\n", "DONE\r\n")
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(terminal)

    @staticmethod
    def until(terminal: int, typed: str, *expected: str) -> None:
        """Type into a terminal, and read until it shows what is expected."""
        os.write(terminal, typed.encode())
        shown = ""
        while not all(text in shown for text in expected):
            ready, _, _ = select.select([terminal], [], [], 30)
            assert ready, f"{typed!r} shows {shown!r}, without {expected}"
            shown += os.read(terminal, 65536).decode(errors="replace")

    def test_parser_without_commands(self, tmp_path: Path) -> None:
        """A parser of options alone has scripts too; no letter of its help means something else."""
        help_ = r"50% of [it]: it's `big` $HOME \n"
        parser = power_manager.CommandParser("tool", "Do things.")
        parser.add_argument("--size", choices=["small", "large"], help=help_.replace("%", "%%"))
        parser.add_argument("--secret", help=argparse.SUPPRESS)
        parser.add_argument("--bare", action="append", metavar="FILE")
        parser.add_argument("what", choices=["this", "that"])
        parser.add_help_commands("tool")
        for shell in ("bash", "zsh", "fish"):
            script = tmp_path / shell
            script.write_text(power_manager.completion_script(parser, shell, "tool"))
            assert "secret" not in script.read_text()
            if shell in SHELLS:
                self.output(shell, "-n", str(script))
        if "bash" in SHELLS:
            for typed, completed in (
                ("", ["that", "this"]),
                ("tha", ["that"]),
                ("--s", ["--size"]),
                ("--size l", ["large"]),
                ("--size small tha", ["that"]),
                ("--completion z", ["zsh"]),
            ):
                words = ["tool", *typed.split(" ")]
                assert (typed, self.bash(str(tmp_path / "bash"), words)) == (typed, completed)
        if "zsh" in SHELLS:
            cases = {"tool --s": [" --size="], "tool --": [help_], "tool --completion=f": ["ish"]}
            self.complete_in_zsh(str(tmp_path / "zsh"), cases)
        if "fish" in SHELLS:
            for typed, completed in (
                ("--s", ["--size"]),
                ("--size l", ["large"]),
                ("--completion z", ["zsh"]),
            ):
                lines = f"source {tmp_path / 'fish'}; complete -C 'tool {typed}'"
                output = self.output("fish", "--no-config", "-c", lines)
                found = [line.partition("\t")[0] for line in output.splitlines()]
                assert (typed, found) == (typed, completed)
            assert f"--size\t{help_}\n" in self.output(
                "fish", "--no-config", "-c", f"source {tmp_path / 'fish'}; complete -C 'tool --s'"
            )


# --- The command line -------------------------------------------------------------------------


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


COMMANDS = ["register", "update-device", "delete-device", "add-meter", "update-meter"]
COMMANDS += ["delete-meter", "delete-readings", "devices", "meters", "log", "import", "export"]
COMMANDS += ["status", "stats", "events", "event", "budget", "report", "prune", "backup", "restore"]
COMMANDS += ["check", "demo", "help", "completion"]
COLUMNS = ("timestamp", "voltage", "current", "charge_pct")
CSV_ROWS = """timestamp,voltage,current,charge_pct
2025-06-16T10:00:00+00:00,4.0,1.0,90.0
2025-06-16T10:30:00Z,3.9,-2.0,
1750071600,3.8,0.5,70.5
"""
OTHER_ORDER = """charge_pct,extra,current,voltage,timestamp
90.0,x,1.0,4.0,2025-06-16T10:00:00Z
,x,-2.0,3.9,2025-06-16T10:30:00Z
70.5,,0.5,3.8,1750071600
"""
LOOSE_NDJSON = """{"timestamp": 1750068000, "voltage": "4", "current": 1, "charge_pct": 90}

{"timestamp": "1750069800", "voltage": 3.9, "current": -2.0}
{"timestamp": "2025-06-16T11:00:00Z", "voltage": 3.8, "current": 0.5, "charge_pct": 70.5, "x": []}
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
        for name in ("POWER_MANAGER_DB", "NO_COLOR"):
            monkeypatch.delenv(name, raising=False)
        # As wide wherever the tests run: their own terminal may be narrow.
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("LINES", "24")

    @pytest.fixture
    def run(self, capsys: pytest.CaptureFixture[str]) -> Run:
        """Run one command on ./power_manager.db."""

        def run_one(*words: object, **more: Any) -> Outcome:
            capsys.readouterr()
            code = power_manager.main([str(word) for word in words], **more)
            return Outcome(code, *capsys.readouterr())

        return run_one

    @pytest.fixture
    def pack(self, run: Run) -> str:
        """Register the device and its battery; return the battery's id."""
        run("register", "dev-001", "Edge Node")
        meter: dict[str, str] = run(
            "add-meter", "dev-001", "battery", "--capacity-wh", 50, "--name", "Pack", "--json"
        ).json
        return meter["id"]

    @pytest.fixture
    def stdin(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """Put text on standard input."""
        return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


class TestCommands(CommandLine):
    """Every command, with its exit code."""

    def test_register_command(self, run: Run) -> None:
        """A device is registered, in a new file, with every value."""
        thresholds = ("--low-battery-threshold", 30, "--critical-battery-threshold", 10, "--json")
        registered = run(
            "register", "d", "Node", "--shutdown-threshold", 4.5, "--target-wh", 120, *thresholds
        ).json
        assert registered["meters"] == []
        assert tuple(registered["device"].values()) == ("d", "Node", 4.5, 120.0, 30.0, 10.0)
        assert run("devices", "--json").json == [registered["device"]]

    def test_register_again_changes_only_what_is_given(self, run: Run) -> None:
        """A value that the command does not name stays as it is; the name is always given."""
        values = ("--target-wh", 120, "--low-battery-threshold", 30)
        first = run("register", "d", "Node", *values, "--json").json["device"]
        threshold = ("--shutdown-threshold", 4.5)
        second = run("register", "d", "Renamed", *threshold, "--json").json["device"]
        assert second == {**first, "name": "Renamed", "shutdown_threshold": 4.5}
        assert run("devices", "--json").json == [second]

    def test_add_meter_command(self, run: Run, pack: str) -> None:
        """A meter is added, and listed with its present values."""
        meters = run("meters", "--json").json
        assert [(m["id"], m["type"], m["capacity_wh"], m["name"]) for m in meters] == [
            (pack, "battery", 50.0, "Pack")
        ]
        assert run("meters", "dev-001", "--json").json == meters
        run("register", "dev-002", "Bare")
        assert run("meters", "dev-002", "--json").json == []

    @pytest.mark.parametrize(
        "command",
        [("devices",), ("meters",), ("stats", "dev-001/Pack"), ("events", "dev-001")],
        ids=lambda words: words[0],
    )
    def test_lists_as_wide_tables(self, run: Run, pack: str, command: tuple[str, ...]) -> None:
        """With --wide, lists are printed as a table of all that --json has."""
        empty = run(*command, "--wide")
        run("log", pack, 3.7, 0.5, 3)
        filled_ = run(*command, "--wide")
        fields = list(run(*command, "--json").json[0])
        assert (empty.code, filled_.code, filled_.err) == (0, 0, "")
        assert filled_.out.splitlines()[0].split() == fields
        assert len(filled_.out.splitlines()) == 2

    @pytest.mark.parametrize("name", ["id", "dev-001/Pack", "dev-001/battery"])
    def test_log_command(self, run: Run, pack: str, name: str) -> None:
        """A reading is stored for a meter named by its id, its name or its type."""
        meter = pack if name == "id" else name
        time = "2025-06-16T12:30:00Z"
        reading = run("log", meter, 3.7, -0.5, 82, "--timestamp", time, "--json").json
        stored = "2025-06-16T12:30:00.000000+00:00"
        assert tuple(reading.values())[1:] == (pack, 3.7, -0.5, -1.85, 82.0, stored)

    def test_what_log_says(self, run: Run, pack: str) -> None:
        """Watts, and the charge of what has one; no watts where they are unknown."""
        run("add-meter", "dev-001", "solar")
        assert run("log", pack, 3.7, -0.5, 82).out == "dev-001/Pack: -1.85 W, 82.0 % charge\n"
        assert run("log", pack, "-", "-", 81).out == "dev-001/Pack: unknown power, 81.0 % charge\n"
        assert run("log", "dev-001/solar", 18, 2).out == "dev-001/solar: 36.0 W\n"
        run("update-meter", pack, "--forget-charge")
        assert run("log", pack, 3.7, 1).out == "dev-001/Pack: 3.70 W, unknown charge\n"

    @pytest.mark.parametrize(
        "number",
        ["-1e-3", "-.5", "-5.", "-2E+0", "1e-9", "-1.23456789e-10", "-0.50"],
    )
    def test_numbers_of_any_form(self, run: Run, pack: str, number: str) -> None:
        """A negative number is a number, not an option; as a note it stays as it was written."""
        assert run("log", pack, 3.7, number, "--json").json["current_draw"] == float(number)
        for note in (("--note", number), (f"--note={number}",)):
            assert run("event", "dev-001", "restore", *note, "--json").json["note"] == number
        assert {e["note"] for e in run("events", "dev-001", "--json").json} == {number}

    def test_log_live(self, run: Run, pack: str) -> None:
        """Without charge and timestamp a reading is live, with the meter's last charge."""
        run("log", pack, 3.7, 0.5, 60, "--timestamp", 1_750_077_000)
        live = run("log", pack, 3.6, 0.5, "--json").json
        assert live["charge_pct"] == 60.0
        assert run("meters", "--json").json[0]["updated_at"] == live["timestamp"]

    def test_event_commands(self, run: Run, pack: str) -> None:
        """An event is fired, and listed newest first."""
        fired = [
            run("event", "dev-001", kind, "--value", 1.5, "--note", "by hand", "--json").json
            for kind in ("shutdown", "restore")
        ]
        assert [(event["type"], event["value"], event["note"]) for event in fired] == [
            ("shutdown", 1.5, "by hand"),
            ("restore", 1.5, "by hand"),
        ]
        assert run("events", "dev-001", "--json").json == fired[::-1]
        assert run("events", "dev-001", "--json", "--limit", 1).json == fired[1:]

    def test_stats_command(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
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

    def test_budget_command(self, run: Run, pack: str) -> None:
        """The budget of the devices named, or of all, is printed as JSON."""
        run("log", pack, 4.0, 0.5)
        run("register", "other", "Other")
        with PowerManager() as pm:
            budget = pm.power_budget_check(["dev-001", "other"])
            assert run("budget", "--json").json == budget
            assert run("budget", "dev-001", "--json").json == {"dev-001": budget["dev-001"]}

    def test_budget_of_an_unknown_device(self, run: Run, pack: str) -> None:
        """An unknown device is in the output, and in the exit code."""
        outcome = run("budget", "dev-001", "absent", "--json")
        assert (outcome.code, list(json.loads(outcome.out)["absent"])) == (1, ["error"])

    def test_report_command(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
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

    def test_prune_command(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
        """Readings of old hours are deleted, and counted."""
        stdin(CSV_ROWS)
        run("import", pack)
        assert run("prune", 1) == (0, "1 reading deleted\n", "")
        assert [line[:16] for line in run("export", pack).out.splitlines()[1:]] == [
            "2025-06-16T10:30",
            "2025-06-16T11:00",
        ]

    def test_backup_command(self, run: Run, pack: str) -> None:
        """A copy is written."""
        assert run("backup", "copy.db").code == 0
        assert run("--db", "copy.db", "meters", "--json").json == run("meters", "--json").json

    def test_check_command(self, run: Run, pack: str) -> None:
        """Without damage it prints ok; where there is damage, a line for each and exit code 1."""
        run("log", pack, 4.0, 0.5)
        assert run("check") == (0, "ok\n", "")
        execute(Path("power_manager.db"), "DELETE FROM power_readings")
        damaged = run("check")
        assert (damaged.code, damaged.err) == (1, "")
        assert pack in damaged.out

    def test_demo_command(self, run: Run) -> None:
        """A week of telemetry is made in a new file each time, and its report is printed."""
        for name in ("power_manager_demo.db", "power_manager_demo2.db"):
            outcome = run("demo", "--json")
            report = json.loads(outcome.out)
            assert (outcome.code, name in outcome.err) == (0, True)
            assert [meter["type"] for meter in report["meters"]] == ["solar", "battery"]
            assert all(meter["reading_count"] > 7 * 24 for meter in report["meters"])
            assert run("--db", name, "check") == (0, "ok\n", "")
        names = sorted(path.name for path in Path().iterdir())
        assert names == ["power_manager_demo.db", "power_manager_demo2.db"]

    def test_demo_of_the_installed_command(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """What it tells to run next names the command that was run."""
        monkeypatch.setattr(sys, "argv", ["/usr/local/bin/power-manager"])
        assert "power-manager --db " in run("demo").err

    def test_demo_in_a_named_file(self, run: Run) -> None:
        """A demo may be made in a file of another name, but not in one that is there."""
        assert run("--db", "week.db", "demo").code == 0
        again = run("--db", "week.db", "demo")
        error = "power-manager: week.db: exists already: name a new file\n"
        assert again == (1, "", error)

    def test_demo_adds_up(self, run: Run) -> None:
        """What the panel gives, less what the pack takes in, is what the load uses."""
        report = run("demo", "--json")
        panel, pack = json.loads(report.out)["meters"]
        totals = json.loads(report.out)["totals"]
        used = panel["energy_out_wh"] + pack["energy_out_wh"] - pack["energy_in_wh"]
        assert totals["consumption_wh"] == pytest.approx(used, abs=1e-6)
        # The load is 5 to 8.3 W, all the week.
        assert 7 * 24 * 4.7 < totals["consumption_wh"] < 7 * 24 * 6.5
        assert totals["self_sufficiency_pct"] == 100.0

    def test_database_named_before_or_after_the_command(self, run: Run) -> None:
        """--db may stand on either side; after the command it counts."""
        run("--db", "a.db", "register", "a", "A")
        run("register", "b", "B", "--db=b.db")
        run("--db", "a.db", "register", "c", "C", "--db", "c.db")
        for name in "abc":
            devices = run("devices", "--json", "--db", f"{name}.db").json
            assert [device["id"] for device in devices] == [name]

    def test_database_named_by_the_environment(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """POWER_MANAGER_DB names the database, unless --db does."""
        monkeypatch.setenv("POWER_MANAGER_DB", "environment.db")
        run("register", "a", "A")
        run("--db", "option.db", "register", "b", "B")
        assert sorted(path.name for path in Path().iterdir()) == ["environment.db", "option.db"]
        assert [device["id"] for device in run("devices", "--json").json] == ["a"]


NO_METER = "no meter has the id or the device/name"


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

    def test_export_that_fails_leaves_the_earlier_file(self, run: Run, pack: str) -> None:
        """A file is written whole or not at all: half of one would be imported as all there is."""
        with PowerManager() as pm:
            pm.log_many([(pack, 3.7, 0.5, 80.0, int(NOW) - n) for n in range(1000)])
        Path("old.csv").write_text("before")
        with full_disk(40_000):  # the database needs 32 KiB beside itself
            outcome = run("export", pack, "--output", "old.csv")
        assert (outcome.code, outcome.out) == (1, "")
        assert re.match(r"power-manager: \S*old.csv: File too large; free some space", outcome.err)
        assert Path("old.csv").read_text() == "before"
        assert sorted(os.listdir()) == ["old.csv", "power_manager.db"]

    def test_export_to_a_pipe_and_to_what_is_open(self, run: Run, pack: str) -> None:
        """They get the text as it comes, and stay what they are."""
        run("log", pack, 3.7, 0.5, 80)
        whole = run("export", pack).out
        os.mkfifo("pipe")
        reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
        assert run("export", pack, "--output", "pipe").code == 0
        assert os.read(reader, 10_000).decode() == whole
        os.close(reader)
        with open("appended", "w+b", buffering=0) as file:
            assert run("export", pack, "--output", f"/proc/self/fd/{file.fileno()}").code == 0
            assert Path("appended").read_text() == whole
            assert os.fstat(file.fileno()).st_ino == os.stat("appended").st_ino

    def test_a_reading_that_is_not_stored(self, run: Run, pack: str) -> None:
        """One of a taken time with other values, or of a closed hour, is an error."""
        time = "2025-06-01T10:00:00Z"
        for words in (["12", "1", "50"], ["12", "1"], ["12", "1", "50"]):
            assert run("log", pack, *words, "--timestamp", time).code == 0
        outcome = run("log", pack, "99", "9", "50", "--timestamp", time, "--json")
        assert (outcome.code, outcome.out) == (1, "")
        assert "nothing is stored, for the meter has another reading (12.0 W)" in outcome.err
        run("log", pack, "-", "1", "50", "--timestamp", "2025-06-01T11:00:00Z")
        outcome = run("log", pack, "9", "1", "50", "--timestamp", "2025-06-01T11:00:00Z")
        assert "another reading (unknown W)" in outcome.err
        run("prune", "0")
        outcome = run("log", pack, "99", "9", "--timestamp", "2025-06-01T10:30:00Z")
        assert (outcome.code, outcome.out) == (1, "")
        assert "nothing is stored at 2025-06-01T10:30:00.000000+00:00, for prune()" in outcome.err

    @pytest.mark.parametrize("charge", ["-1", "255", "110.1"])
    def test_a_charge_that_no_gauge_means(
        self, run: Run, pack: str, capsys: pytest.CaptureFixture[str], charge: str
    ) -> None:
        """Clamped to 0, a gauge's "unknown" would be a critical alert: nothing is stored."""
        with pytest.raises(SystemExit, match="2"):
            run("log", pack, 3.7, 0.5, charge)
        expected = f"charge_pct: expected 0 to 110 %, got '{charge}': leave out what"
        assert expected in capsys.readouterr().err
        assert run("events").out + run("export", pack).out.partition("\n")[2] == "no events\n"
        assert "100 % charge" in run("log", pack, 3.7, 0.5, "100.4").out

    def test_export_through_a_link_to_a_database_in_use(self, run: Run, pack: str) -> None:
        """Writing to a link writes to what it names."""
        run("log", pack, 3.7, 0.5, 80)
        os.symlink("other.db", "link.csv")
        with PowerManager("other.db") as pm:
            pm.register_device("d", "D")
            assert run("export", pack, "--output", "link.csv").code == 1
            assert [device.id for device in pm.list_devices()] == ["d"]

    @pytest.mark.parametrize(
        ("id_", "advice"),
        [
            ("dev-01", "did you mean dev-001?"),
            ("DEV-001", "did you mean dev-001?"),
            ("dev", "did you mean dev-001?"),
            ("absent", "make it with the command `register`"),
        ],
    )
    @pytest.mark.parametrize(
        "line",
        [
            "update-device {} --name x", "add-meter {} solar", "event {} shutdown",
            "status {}", "status {} --json", "status dev-001 {}", "status {} --watch",
            "meters {}", "meters {} --json", "meters {} --wide",
            "events {}", "events {} --json", "events {} --wide", "events {} --follow",
            "budget {}", "budget {} --json", "budget dev-001 {}",
            "report {}", "report {} --text", "delete-device {} --yes",
        ],
    )  # fmt: skip
    def test_unknown_device(self, run: Run, pack: str, line: str, id_: str, advice: str) -> None:
        """Every command that takes a device's id says the same of one that no device has."""
        outcome = run(*line.format(id_).split())
        said = f"no device has the id {id_!r}: {advice}"
        assert outcome.code == 1
        if "--json" in line and "budget" in line:
            assert json.loads(outcome.out) == {id_: {"error": said}}
        else:
            assert outcome.err == f"power-manager: {said}\n"
        if "budget" not in line:
            assert outcome.out == ""

    @pytest.mark.parametrize(
        ("name", "advice"),
        [
            ("dev-001/Pak", "did you mean dev-001/Pack?"),
            ("dev-01/Pack", "did you mean dev-001/Pack?"),
            ("dev-001/pack", "did you mean dev-001/Pack?"),
            ("dev-001/batery", "did you mean dev-001/battery?"),
            ("dev-001/solr", "did you mean dev-001/solar?"),
            ("dev-001", "did you mean dev-001/Pack or dev-001/solar?"),
            ("dev-001/None", "did you mean dev-001/solar?"),
            ("{id}x", "did you mean {id}?"),
            ("far away", "the command `meters` lists them"),
        ],
    )
    @pytest.mark.parametrize(
        "line",
        [
            "update-meter {} --name x", "log {} 1 1", "import {}", "export {}", "stats {}",
            "delete-readings {} --yes", "delete-meter {} --yes",
        ],
    )  # fmt: skip
    def test_unknown_meter(self, run: Run, pack: str, line: str, name: str, advice: str) -> None:
        """Every command that takes a meter offers the nearest of what names one."""
        run("add-meter", "dev-001", "solar")
        name = name.format(id=pack)
        words = [name if word == "{}" else word for word in line.split()]
        said = f"power-manager: {NO_METER} {name!r}: {advice.format(id=pack)}\n"
        assert run(*words) == (1, "", said)

    @pytest.mark.parametrize("number", ["1_0", "1__0"])
    def test_numbers_as_python_writes_them(self, run: Run, pack: str, number: str) -> None:
        """An underscore is no digit."""
        with pytest.raises(SystemExit, match="2"):
            run("log", pack, number, 0.5)

    def test_names_do_not_steer_the_terminal(self, run: Run) -> None:
        """What a terminal would obey is shown as it is written in Python."""
        run("register", "evil", "a\x1b[31mb\nc")
        assert r"  a\x1b[31mb\nc  " in run("devices").out

    @pytest.mark.parametrize("words", [["register", "d", "D"], ["devices"]])
    @pytest.mark.usefixtures("pack")
    def test_closed_standard_output(
        self, monkeypatch: pytest.MonkeyPatch, words: list[str]
    ) -> None:
        """A command whose answer cannot be printed does nothing, and says so."""
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", None)
            assert power_manager.main(words) == 1
        with PowerManager("power_manager.db") as pm:
            assert [device.id for device in pm.list_devices()] == ["dev-001"]

    @pytest.mark.parametrize(
        "words",
        [
            "status",
            "devices",
            "meters",
            "update-device d --name D",
            "delete-device d --yes",
            "add-meter d main",
            "update-meter m --name M",
            "delete-meter m --yes",
            "delete-readings m --yes",
            "log m 1 1",
            "import m",
            "export m",
            "stats m",
            "events d",
            "event d restore",
            "budget",
            "report d",
            "prune 1",
            "backup b.db",
            "check",
        ],
    )
    def test_missing_file(self, run: Run, words: str) -> None:
        """A command that makes no file says that it is missing, and does not make it."""
        outcome = run("--db", "missing.db", *words.split())
        assert (outcome.code, outcome.out) == (1, "")
        assert re.fullmatch(
            r"power-manager: missing\.db: no such file: .*register.*\n", outcome.err
        )
        assert list(Path().iterdir()) == []

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["report", "absent"], "no device has the id 'absent': .*`register`"),
            (["register", "", "N"], "device_id: expected text .*, got ''"),
            (["add-meter", "absent", "main"], "no device has the id 'absent': .*`register`"),
            (["log", "absent", "1", "1"], "meter .*'absent'.*`meters`"),
            (["log", "dev-001/Panel", "1", "1"], "meter .*'dev-001/Panel'"),
            (["log", "dev-001/Pack", "1e9", "1"], "voltage: expected .*, got 1000000000.0"),
            (["event", "dev-001", "restore", "--note", ""], "note: expected .*, got ''"),
            (["import", "dev-001/Pack", "missing.csv"], "missing.csv"),
            (["import", "dev-001/Pack", "."], "[Dd]irectory"),
            (["export", "dev-001/Pack", "--output", "nowhere/x.csv"], "nowhere/x.csv"),
            (["backup", "power_manager.db"], "name another file"),
            (["prune", "-1"], "keep_days: expected .*, got -1"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_refused_command(self, run: Run, pack: str, words: list[str], message: str) -> None:
        """What is wrong is said in one line, in words of the command line; nothing changes."""
        before = reread(Path("power_manager.db"))
        outcome = run(*words)
        assert (outcome.code, outcome.out) == (1, "")
        assert re.fullmatch(rf"power-manager: .*{message}.*\n", outcome.err)
        assert "()" not in outcome.err
        assert reread(Path("power_manager.db")) == before

    @pytest.mark.parametrize("kind", ["name", "type"])
    def test_ambiguous_name(self, run: Run, pack: str, kind: str) -> None:
        """A name that two meters have is refused with the ids of both; an exact id never is."""
        twin = run("add-meter", "dev-001", "battery", "--name", "Pack", "--json").json["id"]
        outcome = run("log", "dev-001/Pack" if kind == "name" else "dev-001/battery", 1, 1)
        assert (outcome.code, outcome.out) == (1, "")
        assert re.search(rf"{pack}, {twin}", outcome.err)
        assert run("log", twin, 1, 1).code == 0

    @pytest.mark.parametrize(
        "words",
        [
            "fly",
            "log m",
            "log m x 1",
            "log m 1 -1.2.3e4",
            "log m 1 -.e4",
            "log m inf 1",
            "log m 1 1 --timestamp noon",
            "events d --limit -1",
            "export m --since noon",
            "delete-readings m --until noon --yes",
            "add-meter d fan",
            "event d boom",
            "stats m --bucket week",
            "stats m --days -1",
            "stats m --days nan",
            "report d --days",
            "report d --days 0",
            "report d --days -1",
            "report d --days nan",
            "report d --days x",
            "report d --days inf",
        ],
    )
    def test_wrong_usage(self, capsys: pytest.CaptureFixture[str], words: str) -> None:
        """Wrong usage is exit code 2, with the usage on standard error."""
        with pytest.raises(SystemExit) as caught:
            power_manager.main(words.split())
        out, err = capsys.readouterr()
        assert (caught.value.code, out, err[:6]) == (2, "", "usage:")
        assert list(Path().iterdir()) == []

    def test_no_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Without a command the whole help is on standard error, and the exit code is 2."""
        with pytest.raises(SystemExit) as caught:
            power_manager.main(["--help"])
        assert caught.value.code == 0
        help_text = capsys.readouterr().out
        try:
            code: Any = power_manager.main([])
        except SystemExit as exc:
            code = exc.code
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert help_text.strip() in err
        for command in COMMANDS:
            assert re.search(rf"^ +{command}( |$)", err, re.MULTILINE)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help_of_a_command(self, capsys: pytest.CaptureFixture[str], command: str) -> None:
        """Every command says its usage, what it does, what each argument is, and an example."""
        with pytest.raises(SystemExit) as caught:
            power_manager.main([command, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: python3 power_manager.py {command} ")
        usage, description, *_, last = text.split("\n\n")
        assert re.fullmatch(r"[A-Z][^.]+(\.[^.]+)*\.", description.strip())
        named = set(re.findall(r"--[a-z-]+", usage))
        assert all(re.search(rf"^ +{option}\b", text, re.MULTILINE) for option in named)
        assert re.match(rf"examples?:\n  python3 power_manager\.py {command}\b", last)
        with pytest.raises(SystemExit):
            power_manager.main(["help", command])
        assert capsys.readouterr().out == text

    def test_help_of_the_installed_command(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It calls the program as it was started, and errors begin with the same name."""
        monkeypatch.setattr(sys, "argv", ["/usr/local/bin/power-manager"])
        with pytest.raises(SystemExit):
            power_manager.main(["help", "log"])
        text = capsys.readouterr().out
        assert text.startswith("usage: power-manager log ")
        assert "\n  power-manager log edge-001/Pack 12.9 0.5 82\n" in text
        with pytest.raises(SystemExit):
            power_manager.main(["lgo"])
        error = "power-manager: unknown command 'lgo': did you mean log?"
        assert capsys.readouterr().err.splitlines()[-1] == error

    @pytest.mark.parametrize(
        ("words", "error"),
        [
            ("report dev-01", "no device has the id 'dev-01': did you mean dev-001?"),
            ("log dev-001/Pak 1 1", f"{NO_METER} 'dev-001/Pak': did you mean dev-001/Pack?"),
            ("stats dev-001/solr", f"{NO_METER} 'dev-001/solr': did you mean dev-001/solar?"),
        ],
    )
    @pytest.mark.usefixtures("pack")
    def test_mistyped_name(self, run: Run, words: str, error: str) -> None:
        """The nearest device or meter is offered."""
        run("add-meter", "dev-001", "solar")
        assert run(*words.split()) == (1, "", f"power-manager: {error}\n")

    @pytest.mark.parametrize("option", ["-V", "--version"])
    def test_version_option(self, capsys: pytest.CaptureFixture[str], option: str) -> None:
        """Both options print the module's version."""
        with pytest.raises(SystemExit, match="0"):
            power_manager.main([option])
        assert capsys.readouterr().out == f"power-manager {power_manager.__version__}\n"

    def test_closed_pipe(self, run: Run, pack: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Output into a pipe that the reader has closed is no error."""
        read, write = os.pipe()
        os.close(read)
        with os.fdopen(write, "w") as out, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            assert power_manager.main(["devices", "--json"]) == 0

    def test_closed_pipe_of_a_process(self, path: Path) -> None:
        """`| head -1` gets its line and the command ends quietly, though much was left to write."""
        meter_id = filled(path, 20_000)
        command = [sys.executable, "-W", "error", str(MODULE), "--db", str(path)]
        command += ["export", meter_id]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as child:
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


def command_examples() -> list[str]:
    """What follows the program's name in each example of its help."""
    parser = power_manager._PowerCommands(lambda: NOW).parser
    lines = [*parser.examples]
    for command in parser.commands.values():
        assert command.examples
        lines += command.examples
    return list(dict.fromkeys(line.removeprefix(parser.prog).strip() for line in lines))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The devices and files that the examples name."""
    place = tmp_path_factory.mktemp("world")
    with PowerManager(place / "power_manager.db") as pm:
        pm.register_device("edge-001", "Edge Node")
        pm.register_device("edge-002", "Other Node")
        pack = pm.add_meter("edge-001", "battery", 50.0, "Pack")
        pm.log_power(pack.id, 12.9, 0.5, 82.0)
        pm.backup(place / "copy.db")
    (place / "readings.csv").write_text(CSV_ROWS)
    (place / "bms.csv").write_text("timestamp;V;I\n2026-11-28 10:00;12,8;1500\n")
    return place


class TestExamples(CommandLine):
    """Every example of the help runs as it is printed."""

    @pytest.mark.parametrize("line", command_examples())
    def test_example(
        self,
        world: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        line: str,
    ) -> None:
        """It ends well, at Ctrl-C if it goes on until then, and complains of nothing."""

        def press_ctrl_c(_seconds: float) -> None:
            raise KeyboardInterrupt

        shutil.copytree(world, ".", dirs_exist_ok=True)
        answer = io.StringIO("y\n")
        monkeypatch.setattr(answer, "isatty", lambda: True)  # deleting asks
        monkeypatch.setattr(sys, "stdin", answer)
        try:
            code: object = power_manager.main(shlex.split(line), wait=press_ctrl_c)
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        assert code == (130 if "--watch" in line or "--follow" in line else 0)
        assert out or "--output" in line or "--follow" in line
        assert err == "" or "[y/N]" in err or line.startswith(("demo", "import"))


class TestRegister(CommandLine):
    """Setting up a device with its meters in one command."""

    def test_device_with_its_meters(self, run: Run) -> None:
        """A person reads what was made; the meters have their names and capacities."""
        meters = ("--meter", "battery:Pack:50", "--meter", "solar:Panel", "--meter", "main")
        registered = run("register", "edge-001", "Edge Node", *meters)
        lines = ["edge-001 is registered", "edge-001/Pack is added", "edge-001/Panel is added"]
        assert registered == (0, "\n".join([*lines, "edge-001/main is added\n"]), "")
        made = run("meters", "--json").json
        assert [(meter["type"], meter["name"], meter["capacity_wh"]) for meter in made] == [
            ("battery", "Pack", 50.0),
            ("solar", "Panel", 0.0),
            ("main", None, 0.0),
        ]

    def test_meters_as_json(self, run: Run) -> None:
        """Programs get the device and the meters that the command names."""
        run("register", "d", "D", "--meter", "solar:Panel")
        registered = run("register", "d", "E", "--meter", "battery:Pack:50", "--json").json
        assert registered["device"] == run("devices", "--json").json[0]
        (meter,) = registered["meters"]
        known = run("meters", "--json").json[1]
        assert (meter["id"], meter["name"], meter["capacity_wh"]) == (known["id"], "Pack", 50.0)

    def test_again(self, run: Run) -> None:
        """Run again, it changes what is given of the meter of that type and name."""
        run("register", "d", "D", "--meter", "battery:Pack:50", "--meter", "solar")
        before = run("meters", "--json").json
        meters = ("--meter", "battery:Pack:48", "--meter", "solar", "--meter", "ups:Pack")
        again = run("register", "d", "D", *meters)
        lines = ["d is changed", "d/Pack is changed", "d/solar is there", "d/Pack is added"]
        assert again == (0, "\n".join(lines) + "\n", "")
        after = run("meters", "--json").json
        assert after[:2] == [{**before[0], "capacity_wh": 48.0}, before[1]]
        assert (after[2]["type"], after[2]["name"], len(after)) == ("ups", "Pack", 3)
        run("register", "d", "D", "--meter", "battery:Pack")
        assert run("meters", "--json").json == after

    @pytest.mark.parametrize(
        ("text", "name", "capacity_wh"),
        [
            ("battery", None, 0.0),
            ("battery:", None, 0.0),
            ("battery:Pack", "Pack", 0.0),
            ("battery:24", "24", 0.0),
            ("battery:24:", "24:", 0.0),
            ("battery::50", None, 50.0),
            ("battery:Pack:50.5", "Pack", 50.5),
            ("battery:Pack:front", "Pack:front", 0.0),
            ("battery:Pack:front:50", "Pack:front", 50.0),
            ("battery:a:b:c", "a:b:c", 0.0),
        ],
    )
    def test_meter(self, run: Run, text: str, name: str | None, capacity_wh: float) -> None:
        """A name may hold colons: the last part is the capacity if it is a number."""
        assert run("register", "d", "D", "--meter", text).code == 0
        (meter,) = run("meters", "--json").json
        assert (meter["name"], meter["capacity_wh"]) == (name, capacity_wh)

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("batery:Pack", "unknown type of meter 'batery': did you mean battery?"),
            ("fan", "unknown type of meter 'fan': expected one of main, battery, solar, ups"),
            ("", "unknown type of meter '': expected one of main, battery, solar, ups"),
        ],
    )
    def test_wrong_meter(self, capsys: pytest.CaptureFixture[str], text: str, error: str) -> None:
        """What is no type is refused, and no file is made."""
        with pytest.raises(SystemExit, match="2"):
            power_manager.main(["register", "d", "D", "--meter", text])
        assert capsys.readouterr().err.endswith(f"power-manager: argument --meter: {error}\n")
        assert list(Path().iterdir()) == []

    @pytest.mark.usefixtures("pack")
    def test_all_or_nothing(self, run: Run) -> None:
        """If one meter cannot be added, nothing is changed."""
        before = reread(Path("power_manager.db"))
        meters = ("--meter", "solar:Panel", "--meter", "battery:Big:1e13")
        outcome = run("register", "dev-001", "Renamed", *meters)
        assert (outcome.code, outcome.out) == (1, "")
        assert "capacity_wh: expected " in outcome.err
        assert reread(Path("power_manager.db")) == before

    def test_two_meters_of_one_name(self, run: Run, pack: str) -> None:
        """Which of them is meant cannot be told: it is refused with both ids."""
        values = ("battery", "--name", "Pack", "--json")
        twin = run("add-meter", "dev-001", *values).json["id"]
        outcome = run("register", "dev-001", "D", "--meter", "battery:Pack:60")
        assert (outcome.code, outcome.out) == (1, "")
        assert f"'dev-001/Pack' names 2 meters: change one by its id: {pack}, {twin}" in outcome.err

    @pytest.mark.parametrize(("text", "seconds"), [("2h", 7200.0), ("0", 0.0), ("5400", 5400.0)])
    def test_max_gap_of_a_new_file(self, run: Run, text: str, seconds: float) -> None:
        """A new file keeps it; the same value may be given again."""
        for _ in range(2):
            assert run("register", "d", "D", "--max-gap", text).code == 0
        with PowerManager() as pm:
            assert pm.max_gap == seconds
        assert run("register", "d", "D").code == 0

    @pytest.mark.parametrize("text", ["2h", "90m"])
    def test_max_gap_of_another_file(self, run: Run, text: str) -> None:
        """Another value than the file's is refused by name, also if it is the default."""
        run("register", "d", "D", "--max-gap", "1h")
        outcome = run("register", "d", "Renamed", "--max-gap", text)
        assert (outcome.code, outcome.out) == (1, "")
        expected = (
            r"max_gap: expected 3600 \(s\), the value that power_manager\.db was made with, got"
        )
        assert re.search(expected, outcome.err)
        assert run("devices", "--json").json[0]["name"] == "D"


def with_bad_rows() -> str:
    """CSV with a bad row in lines 3, 5, 6, 7 and 8; in line 9 a row that lacks its amperes."""
    good = "2025-06-16T10:{:02}:00Z,4.0,1.0,90"
    lines = ["timestamp,voltage,current,charge_pct", good.format(0), "noon,4,1,90", good.format(1)]
    bad = [
        "2025-06-16T10:30:00Z,x,1,90",
        "2025-06-16T10:31:00Z,4,true,90",
        "2025-06-16T10:32:00Z",
        "2025-06-16T10:33:00,4,1,90",
    ]
    return "\n".join([*lines, *bad, "2025-06-16T10:34:00Z,4,,90", ""])


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
            OTHER_ORDER,
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
    def test_import_forms(
        self, run: Run, pack: str, stdin: Callable[[str], None], text: str, source: str
    ) -> None:
        """The same readings are stored from any of the forms."""
        stdin(text)
        Path("rows").write_text(text, encoding="utf-8", newline="")
        words = {"file": ["rows"], "stdin": [], "dash": ["-"]}[source]
        outcome = run("import", "dev-001/Pack", *words)
        assert (outcome.code, outcome.out.splitlines()[0]) == (
            0,
            "3 new readings, 0 already there, 0 bad rows left out",
        )
        expected = IMPORTED if "charge" in text else [(*row[:3], 100.0) for row in IMPORTED]
        with PowerManager() as pm:
            assert history(pm, pack) == expected

    def test_import_again(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
        """Importing the same once more changes nothing."""
        for result in ("3 new readings, 0 already there", "0 new readings, 3 already there"):
            stdin(CSV_ROWS)
            assert run("import", pack).out.startswith(result)

    def test_import_of_bad_rows(self, run: Run, pack: str) -> None:
        """Bad rows are named by line number, and nothing is stored."""
        Path("rows.csv").write_text(with_bad_rows())
        outcome = run("import", pack, "rows.csv")
        assert (outcome.code, outcome.out) == (1, "")
        assert re.findall(r"^rows.csv: line (\d): (\w+): ", outcome.err, re.MULTILINE) == [
            ("3", "timestamp"),
            ("5", "voltage"),
            ("6", "current"),
            ("7", "current"),
            ("8", "timestamp"),
        ]
        assert "5 bad rows: nothing was stored" in outcome.err.splitlines()[-1]
        assert reread(Path("power_manager.db"))["readings"] == {pack: []}

    def test_import_that_skips_bad_rows(self, run: Run, pack: str) -> None:
        """With --skip-bad the good rows are stored, and the bad ones named all the same."""
        Path("rows.csv").write_text(with_bad_rows())
        outcome = run("import", pack, "rows.csv", "--skip-bad")
        left_out = "3 new readings, 0 already there, 5 bad rows left out"
        assert (outcome.code, outcome.out.splitlines()[0]) == (0, left_out)
        assert outcome.err.count("rows.csv: line ") == 5
        with PowerManager() as pm:
            assert [row[1:] for row in history(pm, pack)] == [
                (4.0, 1.0, 90.0),
                (4.0, 1.0, 90.0),
                (4.0, None, 90.0),
            ]

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
        assert re.findall(r"rows.ndjson: line (\d+): ", outcome.err) == list("3456789")

    @pytest.mark.parametrize(
        "text",
        ["", "\n\n", "a,b\n1,2\n", "timestamp,voltage\n1,2\n", "5\n"],
        ids=["empty", "blank", "other columns", "no current", "no head"],
    )
    def test_import_of_something_else(
        self, run: Run, pack: str, stdin: Callable[[str], None], text: str
    ) -> None:
        """Something else than readings is refused with what was expected."""
        stdin(text)
        outcome = run("import", pack)
        assert (outcome.code, outcome.out) == (1, "")
        assert re.fullmatch(r"power-manager: .*expected .*NDJSON.*\n", outcome.err)

    def test_import_of_bytes_that_are_no_text(self, run: Run, pack: str) -> None:
        """Bytes that are not UTF-8 spoil their own row only."""
        Path("rows.csv").write_bytes(CSV_ROWS.encode() + b"1750071700,\xff,1,1\n")
        outcome = run("import", pack, "rows.csv", "--skip-bad")
        assert (outcome.code, outcome.out[:14]) == (0, "3 new readings")
        assert "line 5: voltage: expected" in outcome.err

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


class TestMessagesOfImport(CommandLine):
    """What import stores does not depend on where its messages go."""

    BAD_ROWS = "timestamp,voltage,current\n" + "never,1,1\n" * 25 + "1700000000,1,1\n"

    def test_many_bad_rows(self, run: Run, pack: str, stdin: Callable[[str], None]) -> None:
        """Twenty are named, and the others are counted."""
        stdin(self.BAD_ROWS)
        outcome = run("import", pack, "--skip-bad")
        assert outcome.out.startswith("1 new reading, 0 already there, 25 bad rows left out\n")
        assert outcome.err.count("line ") == 20
        assert outcome.err.endswith("-: and 5 more bad rows\n")
        stdin(self.BAD_ROWS)
        refused = run("import", pack)
        assert (refused.code, refused.err.count("line ")) == (1, 20)
        assert "25 bad rows: nothing was stored" in refused.err

    @pytest.mark.parametrize(
        "broken", [errno.EPIPE, errno.ENOSPC, 0], ids=["broken pipe", "full", "closed"]
    )
    def test_import_with_a_broken_standard_error(
        self,
        run: Run,
        pack: str,
        stdin: Callable[[str], None],
        monkeypatch: pytest.MonkeyPatch,
        broken: int,
    ) -> None:
        """The good rows are stored all the same, and the exit code says so."""

        class BrokenStream(io.StringIO):
            def write(self, text: str) -> int:
                raise OSError(broken, "broken")

        stdin(self.BAD_ROWS)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", BrokenStream() if broken else None)
            code = power_manager.main(["import", pack, "--skip-bad"])
        with PowerManager("power_manager.db") as pm:
            assert (code, len([*pm.iter_history(pack)])) == (0, 1)

    def test_import_from_a_closed_standard_input(
        self, run: Run, pack: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is refused in one line: there is nothing to import."""
        monkeypatch.setattr(sys, "stdin", None)
        outcome = run("import", pack)
        assert (outcome.code, outcome.err.count("\n")) == (1, 1)


class Logs(CommandLine):
    """Logs that are imported for the meter dev-001/Pack, in process."""

    @pytest.fixture
    def take(self, run: Run, pack: str) -> Callable[..., Outcome]:
        """Import a text or bytes as the file log.txt."""

        def take_one(log: str | bytes, *words: object) -> Outcome:
            data = log if isinstance(log, bytes) else log.encode()
            Path("log.txt").write_bytes(data)
            return run("import", pack, "log.txt", *words)

        return take_one

    @pytest.fixture
    def stored(self, pack: str) -> Callable[[], list[tuple[Any, ...]]]:
        """The readings of the meter: time, volts, amperes, charge."""

        def read() -> list[tuple[Any, ...]]:
            with PowerManager() as pm:
                assert pm.check() == []
                return history(pm, pack)

        return read


HEAD = "timestamp,voltage,current,charge_pct\n"
Take = Callable[..., Outcome]
Stored = Callable[[], list[tuple[Any, ...]]]


def bad_lines(outcome: Outcome) -> list[int]:
    """The numbers of the bad rows that an import names."""
    return [int(number) for number in re.findall(r"^\S+: line (\d+): ", outcome.err, re.MULTILINE)]


class TestDamagedLogs(Logs):
    """One line is one row: damage costs its own line, and is named."""

    def test_more_fields_than_the_head(self, take: Take, stored: Stored) -> None:
        """A row with a decimal comma in it is not misread: it is bad, and says how many fields."""
        log = HEAD + "2026-06-01T08:00:00Z,13,21,0,85,77,4\n2026-06-01T08:10:00Z,13,19,0,90,77,0\n"
        outcome = take(log)
        assert (outcome.code, outcome.out, stored()) == (1, "", [])
        assert outcome.err.count("7 fields, the head has 4") == 2

    def test_empty_fields_at_the_end(self, take: Take, stored: Stored) -> None:
        """They are no fields, in the head and in rows."""
        log = HEAD.rstrip() + ",\n2026-06-01T08:00:00Z,13,2,85,\n2026-06-01T08:10:00Z,13,2,84,, ,\n"
        assert take(log).out.startswith("2 new readings")
        assert [row[1:] for row in stored()] == [(13.0, 2.0, 85.0), (13.0, 2.0, 84.0)]

    def test_open_quote(self, take: Take, stored: Stored) -> None:
        """A quote that is never closed costs its line, and not the rest of the file."""
        lines = [f"2026-06-01T08:{minute}:00Z,13.2,0.8,77,ok\n" for minute in range(10, 60)]
        log = HEAD.rstrip() + ",remark\n" + '2026-06-01T07:59:00Z,13.2,0.8,77,"\n' + "".join(lines)
        outcome = take(log, "--skip-bad")
        assert outcome.out.startswith("50 new readings, 0 already there, 1 bad row left out\n")
        assert "line 2: a quote is never closed" in outcome.err
        assert len(stored()) == 50
        assert take(log).code == 1

    @pytest.mark.parametrize(
        "garbage",
        [b"\0" * 140_000, b"\0", b"x" * 70_000, b"1," * 200_000, b'"a"b', b"\xff\xfe\0\1", b"{}"],
        ids=["NULs", "NUL", "long", "many fields", "text behind a quote", "bytes", "object"],
    )
    def test_garbage_line(self, take: Take, stored: Stored, garbage: bytes) -> None:
        """A line of anything, of any length, is one bad row."""
        good = [b"2026-06-01T08:00:00Z,13.2,0.8,77", b"2026-06-01T08:05:00Z,13.2,0.8,76", b""]
        log = HEAD.encode() + b"\n".join([good[0], garbage, *good[1:]])
        outcome = take(log, "--skip-bad")
        assert outcome.out.startswith("2 new readings, 0 already there, 1 bad row left out\n")
        assert (bad_lines(outcome), len(stored())) == ([3], 2)
        assert all(len(line) < 300 for line in outcome.err.splitlines())

    def test_head_that_is_damaged(self, take: Take) -> None:
        """It is refused, named by its line."""
        assert "line 2: a quote is never closed" in take('\n"timestamp;voltage\n').err
        assert "a first line of more than 65536 characters" in take(b"x" * 70_000 + b"\n1,2\n").err
        assert "a file with no text" in take("\n").err

    def test_long_lines_take_no_memory(self, take: Take) -> None:
        """Of a line of 30 MB next to nothing is kept."""
        log = HEAD.encode() + b"x" * 30_000_000 + b"\n2026-06-01T08:05:00Z,13.2,0.8,76\n"
        Path("log.txt").write_bytes(log)
        del log
        tracemalloc.start()
        try:
            with power_manager._open_log("log.txt", False) as source:
                lines = [
                    len(line) for block in source.line_blocks(source.pieces()) for line in block
                ]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (lines[0], lines[2]) == (36, 32)
        assert lines[1] <= power_manager._MAX_LINE + 1 + power_manager._PIECE_BYTES
        assert peak < 2_000_000

    @pytest.mark.parametrize("row", ["2026-06-01T08:00:00Z", "2026-06-01T08:00:00Z,13.1"])
    def test_row_that_ends_early(self, take: Take, row: str) -> None:
        """A row without volts or amperes at its end is bad; the column that it lacks is named."""
        outcome = take(f"{HEAD}{row}\n")
        assert (outcome.code, bad_lines(outcome)) == (1, [2])
        assert "ends before the column current" in outcome.err

    def test_row_without_its_charge(self, take: Take, stored: Stored) -> None:
        """A charge that is missing at the end is no charge."""
        take(HEAD + "2026-06-01T08:00:00Z,13,1,50\n2026-06-01T08:10:00Z,13,1\n")
        assert [row[3] for row in stored()] == [50.0, 50.0]

    @pytest.mark.parametrize("end", ["2026-06-01T08:1", "2026-06-01T08:10:00Z,13", "{"])
    def test_torn_last_line(self, take: Take, end: str) -> None:
        """A last line that is cut and cannot be read is named as the end of the file."""
        outcome = take(HEAD + "2026-06-01T08:00:00Z,13,1,50\n" + end)
        assert (outcome.code, bad_lines(outcome)) == (1, [3])
        assert "the file ends in this line" in outcome.err

    def test_last_line_without_newline(self, take: Take) -> None:
        """One that can be read is taken, and named: its last value may be cut."""
        log = HEAD + "2026-06-01T08:00:00Z,13,1,50\n2026-06-01T08:10:00Z,13,1,5"
        outcome = take(log)
        assert outcome.out.startswith("2 new readings")
        assert outcome.out.endswith(
            "line 3 is the last and has no newline: its last value may be cut\n"
        )
        assert take(log, "--dry-run", "--json").json["torn_line"] == 3
        assert take(log + "\n", "--dry-run", "--json").json["torn_line"] is None

    def test_ndjson_without_newline(self, take: Take) -> None:
        """An object that ends is not cut; one that does not is named as torn."""
        log = '{"timestamp": 1750068000, "voltage": 4, "current": 1}\n'
        assert take((log * 2).rstrip(), "--json").json["torn_line"] is None
        outcome = take(log + log[:30])
        assert (outcome.code, bad_lines(outcome)) == (1, [2])
        assert "the file ends in this line" in outcome.err

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
    def test_encodings(self, take: Take, stored: Stored, encoding: str) -> None:
        """UTF-8 and UTF-16, with a mark at the start or without."""
        take((HEAD.replace("charge", "µ,charge") + "1780300800,13,1,ü,50\r\n").encode(encoding))
        assert stored() == [("2026-06-01T08:00:00.000000+00:00", 13.0, 1.0, 50.0)]

    def test_utf16_big_endian_with_mark(self, take: Take, stored: Stored) -> None:
        """The mark says the order of bytes."""
        take(b"\xfe\xff" + (HEAD + "1780300800,13,1,50\n").encode("utf-16-be"))
        assert len(stored()) == 1

    def test_bytes_that_cannot_be_decoded(self, take: Take, stored: Stored) -> None:
        """They make a row bad only where they are in a field that is used."""
        log = b"timestamp,voltage,current,place\n1780300800,13,1,B\xfcro\n1780300860,1\xff3,1,x\n"
        outcome = take(log, "--skip-bad")
        assert (bad_lines(outcome), len(stored())) == ([3], 1)

    def test_lines_of_any_end(self, take: Take, stored: Stored) -> None:
        """Of a newline, a carriage return, or both."""
        take(HEAD.replace("\n", "\r") + "1780300800,13,1,50\r1780300860,13,1,50\r\n\r\n")
        assert len(stored()) == 2

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
    def test_pieces_of_any_size(
        self, take: Take, stored: Stored, monkeypatch: pytest.MonkeyPatch, size: int, encoding: str
    ) -> None:
        """What is read at once makes no difference."""
        monkeypatch.setattr(power_manager, "_PIECE_BYTES", size)
        text = (
            CSV_ROWS.replace("\n", "\r\n")
            .replace("current", "current,µ")
            .replace(",-2.0", ",-2.0,ü")
        )
        text = text.replace("4.0,1.0", "4.0,1.0,").replace("0.5,70.5", "0.5,,70.5")
        assert take(text.encode(encoding)).out.startswith("3 new readings")
        assert stored() == IMPORTED

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_quoted_fields(self, take: Take, stored: Stored, delimiter: str) -> None:
        """Quotes may stand around any field, and hold the delimiter."""
        rows = [["timestamp", "remark", "voltage", "current"], ["1780300800", "a{}b", "13", "1"]]
        log = "\n".join(delimiter.join(f'"{field}"' for field in row) for row in rows)
        take(log.format(delimiter))
        assert [row[1:3] for row in stored()] == [(13.0, 1.0)]


class TestJsonLogs(Logs):
    """NDJSON and arrays of objects."""

    ROWS = ('{"ts": 1780300800, "v": 13, "i": 1}', '{"ts": 1780300860, "v": 13.5, "i": null}')

    @pytest.mark.parametrize(
        "log",
        [
            "[{},{}]",
            "[\n{},\n{}\n]\n",
            "\n\n [ {} , {} ] \n\n",
            "[{},{},]",
            "{}\n{}",
            "  {}\n\n {}\n",
        ],
    )
    @pytest.mark.parametrize("size", [1, 5, 60, 65_536])
    def test_forms_of_json(
        self, take: Take, stored: Stored, monkeypatch: pytest.MonkeyPatch, log: str, size: int
    ) -> None:
        """An array in one line or in many, read in pieces of any size; an object in each line."""
        monkeypatch.setattr(power_manager, "_PIECE_BYTES", size)
        outcome = take(log.replace("{}", "%s") % self.ROWS)
        assert (outcome.code, outcome.out[:14]) == (0, "2 new readings")
        assert [row[1:3] for row in stored()] == [(13.0, 1.0), (13.5, None)]

    def test_empty_array(self, take: Take) -> None:
        """It has no columns, and is refused."""
        for log in ("[]", "[ ]", "[1]", "{"):
            outcome = take(log)
            assert (outcome.code, outcome.out) == (1, "")
            assert "expected NDJSON" in outcome.err

    def test_elements_that_are_no_objects(self, take: Take, stored: Stored) -> None:
        """Each is one bad row, by the number of its line."""
        log = f'[{self.ROWS[0]},\n5, "text",\nnull, [1],\n{self.ROWS[1]}]'
        outcome = take(log, "--skip-bad")
        assert (bad_lines(outcome), len(stored())) == ([2, 2, 3, 3], 2)

    @pytest.mark.parametrize(
        ("log", "line"),
        [
            ("[%s,\n%s\n", 3),
            ("[%s,\n%s", 2),
            ("[%s\n%s]", 2),
            ("[%s,\n%s]\nx", 3),
            ("[%s,\n%s,\n{]", 3),
            ("[%s,%s,\n" + "[" * 100_000, 2),
            ('[%s,%s,\n{"x": "' + "x" * 200_000, 2),
        ],
        ids=["no end", "torn", "no comma", "text behind", "broken", "deep", "endless"],
    )
    def test_array_that_is_broken(self, take: Take, stored: Stored, log: str, line: int) -> None:
        """What cannot be read ends the import, named by its line; nothing is stored."""
        outcome = take(log % self.ROWS, "--skip-bad")
        assert (outcome.code, outcome.out, stored()) == (1, "", [])
        assert f"line {line}: expected " in outcome.err

    def test_line_of_json_that_is_too_deep_or_too_long(self, take: Take) -> None:
        """It is one bad row."""
        log = "\n".join([self.ROWS[0], "{" + '"a":[' * 5000, '{"a": "' + "x" * 70_000 + '"}', ""])
        assert bad_lines(take(log)) == [2, 3]

    def test_values_of_json(self, take: Take, stored: Stored) -> None:
        """Numbers, and text that is a number; true, a list and NaN are bad rows."""
        values = [
            "13",
            '"13"',
            "13.0",
            "true",
            "[13]",
            "{}",
            "NaN",
            "1e400",
            "1" + "0" * 400,
            '"x"',
        ]
        lines = [
            f'{{"ts": {1780300800 + number}, "v": {value}, "i": 1}}'
            for number, value in enumerate(values)
        ]
        assert bad_lines(take("\n".join(lines), "--skip-bad")) == [4, 5, 6, 7, 8, 9, 10]
        assert [row[1] for row in stored()] == [13.0] * 3

    def test_charge_that_comes_later(self, take: Take, stored: Stored) -> None:
        """Behind the rows by which columns are found, its own name is known, others are asked."""
        lines = [f'{{"ts": {1780300800 + n}, "v": 13, "i": 1}}' for n in range(150)]
        own = '{"ts": 1780301800, "v": 13, "i": 1, "charge_pct": 40, "t": 1}'
        outcome = take("\n".join([*lines, own]))
        assert (outcome.out[:16], stored()[-1][3]) == ("151 new readings", 40.0)
        outcome = take("\n".join([*lines, own.replace("charge_pct", "soc")]))
        assert bad_lines(outcome) == [151]
        assert "--column charge_pct=soc" in outcome.err
        named = take("\n".join([own.replace("charge_pct", "soc"), *lines]))
        assert named.code == 0

    @pytest.mark.parametrize(
        ("first", "later", "name"),
        [
            ('"voltage": 13, "current": 1', '"volts": 14, "current": 1', "volts"),
            ('"voltage": 13, "current": 1', '"voltage": 13, "amps": 5', "amps"),
            ('"voltage": 13, "current": 1', '"voltage": 13, "watts": 65', "watts"),
            ('"voltage": 13, "power": 26', '"voltage": 13, "current": 5', "current"),
            ('"v": 13, "a": 1, "soc": 50', '"v": 13, "a": 1, "charge_pct": 9', "charge_pct"),
            ('"voltage": 13, "a": 1', '"voltage": null, "volts": 14, "a": 1', "volts"),
        ],
    )
    def test_name_that_changes(
        self, take: Take, stored: Stored, first: str, later: str, name: str
    ) -> None:
        """A value is not left out because its name is another one than in the first rows."""
        lines = [f'{{"ts": {1780300800 + n}, {first}}}' for n in range(150)]
        lines += [f'{{"ts": {1780301800 + n}, {later}}}' for n in range(2)]
        outcome = take("\n".join(lines), "--skip-bad")
        assert (bad_lines(outcome), len(stored())) == ([151, 152], 150)
        assert f"line 151: {name}: the first rows have " in outcome.err

    def test_name_that_is_added(self, take: Take, stored: Stored) -> None:
        """A second name of a meaning is not used where the first one is still there."""
        lines = [f'{{"ts": {1780300800 + n}, "voltage": 13, "current": 1}}' for n in range(150)]
        lines += ['{"ts": 1780301800, "voltage": 13, "current": 1, "volts": 14, "watts": 2}'] * 2
        outcome = take("\n".join(lines))
        assert (outcome.code, stored()[-1][1:3]) == (0, (13.0, 1.0))


class TestColumnsOfLogs(Logs):
    """Which column is what, by its name or by --column."""

    @pytest.mark.parametrize(
        ("name", "meaning", "unit"),
        [
            ("timestamp", "timestamp", ""),
            ("Date/Time", "timestamp", ""),
            ("Time Stamp (UTC)", "timestamp", "UTC"),
            ("Zeitstempel", "timestamp", ""),
            ("epoch_ms", "timestamp", "ms"),
            ("Datum", "date", ""),
            ("Date (dd.mm.yyyy)", "date", ""),
            ("Uhrzeit", "time", ""),
            ("Time", "time", ""),
            ("Voltage (V)", "voltage", "V"),
            ("voltage_mv", "voltage", "mV"),
            ("VOLTAGE_MV", "voltage", "mV"),
            ("Battery (V)", "voltage", "V"),
            ("Bus_V", "voltage", "V"),
            ("V", "voltage", ""),
            ("U_bat", "voltage", ""),
            ("sensor.battery_voltage", "voltage", ""),
            ("BatteryVoltage", "voltage", ""),
            ("Spannung/mV", "voltage", "mV"),
            ("Current[mA]", "current", "mA"),
            ("Current (µA)", "current", "uA"),
            ("Current (μA)", "current", "uA"),
            ("mA", "current", "mA"),
            ("Amps", "current", ""),
            ("current_draw", "current", ""),
            ("Stromstärke [A]", "current", "A"),
            ("Power (kW)", "power", "kW"),
            ("wattage", "power", ""),
            ("mW", "power", "mW"),
            ("battery %", "charge_pct", "%"),
            ("charge_pct", "charge_pct", "%"),
            ("SOC (percent)", "charge_pct", "%"),
            ("State of charge", "charge_pct", ""),
            ("soc_fraction", "charge_pct", "fraction"),
            ("Current (kA)", "", ""),
            ("Shunt voltage (mV)", "", ""),
            ("Voltage (cell 1)", "", ""),
            ("Temperature", "", ""),
            ("elapsed time", "", ""),
            ("%", "", ""),
            ("", "", ""),
            ("()", "", ""),
        ],
    )
    def test_names(self, name: str, meaning: str, unit: str) -> None:
        """A name tells a meaning, in any case, and often a unit."""
        assert power_manager._meaning_of(name) == ((meaning, unit) if meaning else None)

    @pytest.mark.parametrize(
        ("head", "row", "volts", "amperes"),
        [
            ("ts,mV,mA", "12801,-1499", 12.801, -1.499),
            ("ts,voltage [uV],current (uA)", "3300001,7", 3.300001, 7e-6),
            ("ts,kV,A", "0.4,2", 400.0, 2.0),
            ("ts,V,A", "4.35,0.1", 4.35, 0.1),
            ("ts,mV,mA", "1.5e3,4e2", 1.5, 0.4),
            ("ts,mV,mA", " 12801 , 1 ", 12.801, 0.001),
            ("ts,V,W", "12.5,25", 12.5, 2.0),
            ("ts,V,kW", "50,-0.1", 50.0, -2.0),
            ("ts,V,mW", "5,2500", 5.0, 0.5),
            ("ts,V,W", "0,0", 0.0, 0.0),
            ("ts,V,W", "5,", 5.0, None),
            ("ts,V,W,charge_pct", ",5,50", None, None),
        ],
    )
    def test_units(
        self, take: Take, stored: Stored, head: str, row: str, volts: float, amperes: float
    ) -> None:
        """Units are converted exactly; watts give amperes where there is no column of those."""
        assert take(f"{head}\n1780300800,{row}\n").code == 0
        assert [row[1:3] for row in stored()] == [(volts, amperes)]

    def test_watts_without_volts(self, take: Take) -> None:
        """0 V and some watts are no reading."""
        outcome = take("ts,V,W\n1780300800,0,5\n")
        assert bad_lines(outcome) == [2]
        assert "power: expected 0 W where there are 0 V, got 5.0" in outcome.err

    def test_power_beside_a_current(self, take: Take, stored: Stored) -> None:
        """It is not used, and said so; --column can prefer it."""
        log = "ts,V,A,W\n1780300800,10,1,50\n"
        assert "not used: W" in take(log, "--dry-run").err
        assert take(log, "--column", "power=W").code == 0
        assert [row[2] for row in stored()] == [5.0]

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            ("ts,bus voltage,load voltage,A", "'bus voltage' or 'load voltage'?"),
            ("ts,V,A,Amps", "--column current=A"),
            ("ts,created at,V,A", "'ts' or 'created at'?"),
            ("ts,V,A,soc,battery level", "'soc' or 'battery level'"),
            ("ts,voltage,current,voltage", "two columns have the name 'voltage'"),
            ("ts,V,A,soc,soc", "two columns have the name 'soc'"),
        ],
    )
    def test_two_columns_that_could_be_one(self, take: Take, head: str, message: str) -> None:
        """They are refused, with both names and the option that would settle it."""
        outcome = take(f"{head}\n1780300800,1,2,3,4\n")
        assert (outcome.code, outcome.out) == (1, "")
        assert message in outcome.err

    def test_own_names_win(self, take: Take, stored: Stored) -> None:
        """A column of the library's own name is taken, and the others are listed as not used."""
        log = (
            "time,timestamp,date,U,voltage,I,current,soc,charge_pct\n1,1780300800,1,1,13,1,2,1,50\n"
        )
        outcome = take(log)
        assert "not used: time, date, U, I, soc\n" in outcome.err
        assert [row[1:] for row in stored()] == [(13.0, 2.0, 50.0)]

    @pytest.mark.parametrize(
        ("wishes", "row"),
        [
            (["voltage=x", "current=-y:mA"], (12000.0, -1.5, None)),
            (["voltage=x:mV", "current=y"], (12.0, 1500.0, None)),
            (["voltage=X:mV", "current=Y:mA", "charge_pct=z:fraction"], (12.0, 1.5, 57.0)),
            (["voltage=x:mv", "power=-y:mW"], (12.0, -0.125, None)),
            (["voltage=x:mV", "current=y:µA"], (12.0, 0.0015, None)),
            (["voltage=x:mV", "current=a:b (mA)"], (12.0, 0.007, None)),
            (["voltage=x:mV", "current=-a:b (mA)"], (12.0, -0.007, None)),
            (["voltage=x:mV", "current=-c"], (12.0, 3.0, None)),
            (["voltage=x:mV", "current=--c"], (12.0, -3.0, None)),
        ],
        ids=str,
    )
    def test_column_option(
        self, take: Take, stored: Stored, wishes: list[str], row: tuple[Any, ...]
    ) -> None:
        """It names a column in any case, with its unit and a minus that turns its sign."""
        words = itertools.chain.from_iterable(("--column", wish) for wish in wishes)
        log = "when,x,y,z,a:b (mA),-c\n1780300800,12000,1500,0.57,7,3\n"
        outcome = take(log, "--column", "timestamp=when", *words)
        assert outcome.code == 0, outcome.err
        assert [reading[1:] for reading in stored()] == [
            (*row[:2], 100.0 if row[2] is None else row[2])
        ]

    @pytest.mark.parametrize(
        ("wish", "message"),
        [
            ("voltage=q", "no column 'q'; the columns are ts, V, A, Z, z"),
            ("voltage=V:mA", "no unit 'mA': expected one of V, mV, uV, kV"),
            ("voltage=-V", "only current and power have a sign"),
            ("voltage=z:q", "no unit 'q'"),
            ("voltage=zZ", "no column 'zZ'"),
        ],
    )
    def test_column_option_that_is_wrong(self, take: Take, wish: str, message: str) -> None:
        """It is refused with what there is."""
        outcome = take("ts,V,A,Z,z\n1780300800,1,2,3,4\n", "--column", wish)
        assert (outcome.code, outcome.out) == (1, "")
        assert message in outcome.err

    def test_column_option_of_two_columns(self, take: Take) -> None:
        """A name that two columns have in other cases is refused, if it is neither's."""
        outcome = take("ts,V,A,Zz,zz\n1780300800,1,2,3,4\n", "--column", "voltage=ZZ")
        assert "two columns have the name 'ZZ'" in outcome.err

    @pytest.mark.parametrize("wish", ["voltage", "voltage=", "volts=U", "colour=U"])
    def test_column_option_of_no_form(
        self, take: Take, wish: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is wrong usage."""
        with pytest.raises(SystemExit, match="2"):
            take(HEAD, "--column", wish)
        err = capsys.readouterr().err
        assert "expected NAME=COLUMN" in err or "unknown name" in err

    def test_missing_columns(self, take: Take) -> None:
        """They are named, with the columns that there are and an example."""
        err = take("when,x,y\n1780300800,1,2\n").err
        assert "no column for timestamp and voltage and current (or power)" in err
        assert "the columns are when, x, y; name one: --column timestamp=when" in err
        err = take("date,time,volts\n2026-06-01,08:00,1\n").err
        assert "no column for current (or power): the columns are date, time, volts" in err
        assert "--column current=NAME" in err

    def test_no_header(self, take: Take, stored: Stored) -> None:
        """Columns go by their numbers."""
        log = "1780300800;13;1;x\n1780300860;13;2;x\n"
        words = [f"--column={wish}" for wish in ("timestamp=1", "voltage=2", "current=-3:mA")]
        outcome = take(log, "--no-header", *words)
        assert (outcome.code, outcome.out[:14]) == (0, "2 new readings")
        assert [row[1:3] for row in stored()] == [(13.0, -0.001), (13.0, -0.002)]
        assert (
            "5 fields, the first row has 4" in take(log + "1;2;3;4;5\n", "--no-header", *words).err
        )
        assert "no column '9'" in take(log, "--no-header", "--column", "voltage=9").err

    @pytest.mark.parametrize(
        ("first", "wishes"),
        [
            ("2026-06-01 08:00:00,13.1,0.5,80", "timestamp=1 voltage=2 current=3 charge_pct=4"),
            ("13.1;0.5;01.06.2026 08:00", "timestamp=3 voltage=1 current=2"),
            ("1780300800|x|13.1", "timestamp=1 voltage=3"),
        ],
    )
    def test_file_without_a_head(self, take: Take, first: str, wishes: str) -> None:
        """A first line of values is refused with the options that would do."""
        outcome = take(f"{first}\n{first}\n")
        assert (outcome.code, outcome.out) == (1, "")
        shown = " ".join(f"--column {wish}" for wish in wishes.split())
        assert outcome.err.endswith(f"--no-header {shown}\n")

    @pytest.mark.parametrize("sign", [",", ";", "\t", "|"])
    def test_delimiters(self, take: Take, stored: Stored, sign: str) -> None:
        """The delimiter is found, whatever else is in the lines."""
        log = "timestamp,voltage,current,remark\n1780300800,13,1,a:b\n".replace(",", sign)
        outcome = take(log, "--json").json
        assert (outcome["layout"]["delimiter"], len(stored())) == (sign, 1)

    @pytest.mark.parametrize("word", ["semicolon", ";", "SEMICOLON"])
    def test_delimiter_option(self, take: Take, word: str) -> None:
        """It is given as a sign or a word."""
        log = 'ts;V;A;"a,V,A,ts"\n1780300800;13;1;x\n'
        assert take(log, "--delimiter", word).code == 0
        assert take(log.replace(";", "\t"), "--delimiter", "\\t").code == 0

    def test_delimiter_option_of_no_form(self, take: Take) -> None:
        """Others are wrong usage."""
        with pytest.raises(SystemExit, match="2"):
            take(HEAD, "--delimiter", "x")

    def test_hint_of_a_spreadsheet(self, take: Take, stored: Stored) -> None:
        """A first line sep=; says the delimiter."""
        assert take("sep=;\nts;V;A\n1780300800;13;1\n").code == 0
        assert len(stored()) == 1

    @pytest.mark.parametrize(
        ("log", "sign", "volts"),
        [
            ("ts;V;A\n1780300800;12,5;1\n", ",", 12.5),
            ("ts;V;A\n1780300800;12.5;1\n", ".", 12.5),
            ("ts;V;A\n1780300800;12;1\n", ".", 12.0),
            ('ts,V,A\n1780300800,"12,5",1\n', ",", 12.5),
            ('ts,V,A\n1780300800,"0,125","1,000"\n', ",", 0.125),
            ("ts;V;A\n1780300800;1,5e1;1\n1780300801;1,5;1\n", ",", 15.0),
            ("ts\tV\tA\n1780300800\t1,234\t0,345\n", ",", 1.234),
            ("ts;V;A\n1780300800;1,234;2,345\n", ",", 1.234),
            ('{"ts": 1780300800, "V": "12,5", "A": 1}', ",", 12.5),
        ],
    )
    def test_decimal_sign(
        self, take: Take, stored: Stored, log: str, sign: str, volts: float
    ) -> None:
        """It is found from the numbers of the columns that are used."""
        assert take(log, "--json").json["layout"]["decimal"] == sign
        assert stored()[0][1] == volts

    @pytest.mark.parametrize(
        "log",
        [
            'ts,V,mA\n1780300800,12,"1,234"\n1780300801,12,"1,300"\n',
            "ts\tV\tmA\n1780300800\t12\t1,234\n1780300801\t12\t1,300\n",
            "ts|V|mA\n1780300800|12|1,234\n",
            '{"ts": 1780300800, "V": 12, "mA": "1,234"}\n',
        ],
    )
    def test_commas_that_may_be_of_thousands(self, take: Take, stored: Stored, log: str) -> None:
        """Read as the other sign they would be wrong by a thousand: the user is asked."""
        outcome = take(log)
        assert outcome.code == 1
        assert "is the comma in 1,234 a decimal sign, or does it separate thou" in outcome.err
        assert stored() == []
        assert take(log, "--decimal", ",").code == 0
        assert stored()[0][2] == 0.001234

    def test_values_with_both_signs(self, take: Take, stored: Stored) -> None:
        """They, and those of the other sign, are bad rows: a thousand is not one and a bit."""
        values = ["12,5", "1.234,5", "1,234.5", "1.234", "13,5", "1,2,3"]
        lines = [f"{1780300800 + n};{value};1" for n, value in enumerate(values)]
        outcome = take("ts;V;A\n" + "\n".join(lines) + "\n", "--skip-bad")
        assert bad_lines(outcome) == [3, 4, 5, 7]
        assert [row[1] for row in stored()] == [12.5, 13.5]
        assert bad_lines(take('ts,V,A\n1780300800,"1,234.5",1\n5,1.5,1\n')) == [2, 3]

    @pytest.mark.parametrize(
        "options",
        [
            "voltage=U voltage=X current=I",
            "voltage=U current=U",
            "voltage=U current=I power=X",
            "voltage=U power=X current=I",
            "voltage=U current=I timestamp=time date=X",
            "voltage=U current=I time=X timestamp=time",
        ],
    )
    def test_options_that_are_at_odds(self, take: Take, stored: Stored, options: str) -> None:
        """None of them is left out without a word."""
        words = [f"--column={option}" for option in options.split()]
        outcome = take("time,U,I,X\n2026-06-01T08:00:00Z,13,1,14\n", *words)
        assert (outcome.code, stored()) == (1, [])
        assert "contradict each other: leave one out" in outcome.err

    def test_commas_that_may_part_thousands(self, take: Take, stored: Stored) -> None:
        """They are asked about; an option settles it."""
        log = 'ts,mV,A\n1780300800,"12,801",1\n'
        outcome = take(log)
        assert outcome.code == 1
        assert "is the comma in 12,801 a decimal sign" in outcome.err
        assert bad_lines(take(log, "--decimal", ".")) == [2]
        assert take(log, "--decimal", ",").code == 0
        assert stored()[0][1] == 0.012801

    @pytest.mark.parametrize("value", ["1_0", "nan", "inf", "0x1", "1e7", "٣x", "--1", "1 2"])
    def test_values_that_are_no_numbers(self, take: Take, value: str) -> None:
        """They are bad rows."""
        for unit in ("V", "mV"):
            outcome = take(f"ts,{unit},A\n1780300800,{value}{'0' * (unit == 'mV')}00,1\n")
            assert bad_lines(outcome) == [2]
            assert "voltage: expected a number" in outcome.err


class TestOtherQuantities(Logs):
    """What is no voltage, current or power is neither offered nor taken as one."""

    @pytest.mark.parametrize(
        ("head", "said"),
        [
            ("ts,V,kWh", "no column for current (or power): the columns are ts, V, kWh; none of"),
            ("ts,energy", "the columns are ts, energy; none of them is of voltage"),
            ("ts,V,Import [Wh],X", "name one: --column current=X"),
        ],
    )
    def test_not_offered(self, take: Take, head: str, said: str) -> None:
        """A counter of energy is not proposed as a current."""
        outcome = take(f"{head}\n1780300800,12,1,1\n")
        assert (outcome.code, said in outcome.err) == (1, True)

    @pytest.mark.parametrize(
        ("column", "unit"),
        [
            ("Import kWh", "kwh"),
            ("Energy", "energy"),
            ("Charge [mAh]", "mah"),
            ("Load (W)", "w"),
            ("Gauge %", "%"),
        ],
    )
    def test_not_taken_without_a_word(
        self, take: Take, stored: Stored, column: str, unit: str
    ) -> None:
        """A column whose name says another unit is refused, unless the option gives the unit."""
        log = f"ts,V,{column}\n1780300800,12,1\n"
        outcome = take(log, "--column", f"current={column}")
        assert outcome.code == 1
        assert f"{unit} is not of current, which is in A or mA or uA; if the va" in outcome.err
        assert take(log, "--column", f"current={column}:A").code == 0
        assert stored()[0][2] == 1.0

    @pytest.mark.parametrize("column", ["Channel V", "reading", "Draw (mA)", "Current consumption"])
    def test_names_that_say_nothing_else(self, take: Take, column: str) -> None:
        """One letter may count channels, and a unit of its own is right."""
        log = f"ts,volts,{column}\n1780300800,12,1\n"
        assert take(log, "--column", f"current={column}").code == 0


class TestLogsOfSeveralMeters(Logs):
    """A log in which a column says whose each row is."""

    LOG = "ts,meter,V,A\n" + "".join(
        f"{1780306800 + 60 * minute},{meter},{volts},{amperes}\n"
        for minute in range(3)
        for meter, volts, amperes in [("A", 12, 1), ("B", 24, 5)]
    )

    def test_refused(self, take: Take, stored: Stored) -> None:
        """Merged into one meter it would be no meter's, and half of it would be called repeats."""
        outcome = take(self.LOG)
        assert (outcome.code, stored()) == (1, [])
        assert (
            "meter: the log has rows of A and of B: import each into its own meter, with "
            "--only 'meter=A'\n" in outcome.err.replace("only meter=A", "only 'meter=A'")
        )

    @pytest.mark.parametrize("form", ["csv", "ndjson"])
    def test_only_one(self, take: Take, stored: Stored, form: str) -> None:
        """The rows of one are read, and the others counted."""
        log = self.LOG
        if form == "ndjson":
            rows = csv.DictReader(io.StringIO(log))
            log = "".join(json.dumps(row) + "\n" for row in rows)
        outcome = take(log, "--only", "METER=B")
        assert "  only rows with meter: B\n" in outcome.err
        assert "\n3 rows left out by --only\n" in outcome.out
        assert [row[1] for row in stored()] == [24.0, 24.0, 24.0]
        value = json.loads(take(log, "--only", "meter=A", "--json").out)
        assert (value["with_other_values"], value["rows_of_others"]) == (3, 3)
        assert (value["layout"]["only"], value["layout"]["not_used"]) == ({"meter": "A"}, [])

    def test_only_without_a_head(self, take: Take, stored: Stored) -> None:
        """The column is named by its number."""
        log = self.LOG.partition("\n")[2] + "1780307000,,13,1\n1780307001\n"
        columns = ("--column", "timestamp=1", "--column", "voltage=3", "--column", "current=4")
        assert take(log, "--no-header", *columns, "--only", "2=A", "--skip-bad").code == 0
        assert [row[1] for row in stored()] == [12.0, 12.0, 12.0]

    def test_one_meter(self, take: Take, stored: Stored) -> None:
        """A log that names one meter in each row, or in some, is that meter's."""
        log = "ts,meter,V,A\n1780306800,A,12,1\n1780306801,,12,1\n1780306802,A,12,1\n"
        assert take(log).code == 0
        assert len(stored()) == 3

    @pytest.mark.parametrize(
        ("option", "code", "said"),
        [
            ("meter=C", 1, "--only meter=C: no row has that"),
            ("unit=A", 1, "--only: no column 'unit'; the columns are ts, meter, V, A"),
        ],
    )
    def test_a_wrong_choice(self, take: Take, option: str, code: int, said: str) -> None:
        """Nothing is stored, and it says so."""
        outcome = take(self.LOG, "--only", option)
        assert (outcome.code, said in outcome.err) == (code, True)

    def test_no_choice(self, take: Take) -> None:
        """The option needs a column and a text."""
        for option in ("meter", "=A", "meter= "):
            with pytest.raises(SystemExit, match="2"):
                take(self.LOG, "--only", option)

    def test_standard_input(
        self, run: Run, pack: str, stdin: Callable[[str], None], stored: Stored
    ) -> None:
        """A batch in which another meter first appears is not stored."""
        stdin(self.LOG)
        assert run("import", pack, "--batch", "1").code == 1
        assert [row[1] for row in stored()] == [12.0]


class TestWhatNobodyMeasured(Logs):
    """What the summary says of values that the log does not have."""

    def test_no_row_can_be_read(self, take: Take) -> None:
        """Nothing stored is no success, even where bad rows are left out."""
        outcome = take(HEAD + "1780306800,x,1,1\n1780306801,x,1,1\n", "--skip-bad")
        assert (outcome.code, outcome.out) == (1, "")
        assert "no row can be read (2 bad rows): nothing was stored" in outcome.err

    def test_unknown_power(self, take: Take) -> None:
        """Rows without volts or amperes are counted."""
        outcome = take("ts,V,A\n1780306800,12,\n1780306801,12,1\n1780306802,,1\n", "--json")
        assert json.loads(outcome.out)["unknown_power"] == 2
        outcome = take("ts,V,A\n1780306800,12,\n1780306801,12,1\n")
        assert "\n1 without volts or amperes: their power is unknown\n" in outcome.out

    @pytest.mark.parametrize(
        ("days", "said"), [(0, ""), (184, "the last is dated 184 d after now")]
    )
    def test_dated_after_now(self, run: Run, pack: str, days: int, said: str) -> None:
        """A log of the wrong year becomes the present state for long: it is said."""
        Path("log.csv").write_text(HEAD + f"{int(NOW) + 86_400 * days},12,1,50\n")
        out = run("import", pack, "log.csv", clock=Clock()).out
        assert out.partition(" Wh in\n")[2].strip() == said

    @pytest.mark.parametrize(("kind", "count"), [("battery", 2), ("solar", 0), ("ups", 2)])
    def test_charge_of_a_log_without_one(self, run: Run, pack: str, kind: str, count: int) -> None:
        """The meter's charge is kept for each reading, and that is said; a panel has none."""
        Path("log.csv").write_text("ts,V,A\n1780306800,12,1\n1780306801,12,1\n")
        run("add-meter", "dev-001", kind, "--name", "New")
        outcome = run("import", "dev-001/New", "log.csv")
        said = "2 without a charge: each has that of the reading before (--unknown-charge: none)"
        assert (said in outcome.out) == bool(count)
        run("add-meter", "dev-001", kind, "--name", "Bare", "--charge", "unknown")
        assert said not in run("import", "dev-001/Bare", "log.csv").out


class TestRepeatedRows(Logs):
    """Rows with the time of another reading."""

    def test_other_values(self, take: Take, stored: Stored) -> None:
        """They are counted apart from repeats: a log with minutes alone would lose most rows."""
        log = HEAD + "".join(
            f"178030{seconds},12,{amperes},50\n"
            for seconds, amperes in [
                (6800, 1),
                (6800, 2),
                (6800, 1),
                (6800, 3),
                (6860, 4),
                (6860, 4),
            ]
        )
        first = take(log)
        said = "2 not stored: each has the time of another reading, and other values\n"
        assert first.out.startswith(f"2 new readings, 2 already there, 0 bad rows left out\n{said}")
        again = json.loads(take(log, "--json").out)
        assert (again["new"], again["already_there"], again["with_other_values"]) == (0, 4, 2)
        assert [row[2] for row in stored()] == [1.0, 4.0]

    @pytest.mark.parametrize("end", ["", "0"], ids=["no charge", "charge 0"])
    def test_charges(self, take: Take, end: str) -> None:
        """A row without a charge repeats one with any; another charge is another value."""
        take(HEAD + "1780306800,12,1,50\n")
        log = HEAD + f"1780306800,12,1,{end}\n1780306801,12,1,50\n"
        value = json.loads(take(log, "--json").out)
        assert (value["already_there"], value["with_other_values"]) == (not end, bool(end))

    @pytest.mark.parametrize("brackets", [True, False], ids=["array", "NDJSON"])
    def test_a_name_twice(self, take: Take, stored: Stored, brackets: bool) -> None:
        """A JSON object that has a name twice is a bad row: nobody can tell which is meant."""
        good = '{"ts": 1780300800, "V": 12, "A": 1}'
        bad = '{"ts": 1780300801, "V": 12, "A": 1, "V": 13}'
        log = f"[{good},\n{bad}]" if brackets else f"{good}\n{bad}\n"
        outcome = take(log)
        assert (outcome.code, stored()) == (1, [])
        assert bad_lines(outcome) == [2]
        assert "V: the object has this name twice\n" in outcome.err
        assert take(log, "--skip-bad").code == 0
        assert [row[1] for row in stored()] == [12.0]


class TestChargesOfLogs(Logs):
    """What a log's charge is."""

    def test_charges_out_of_range(self, take: Take, stored: Stored) -> None:
        """Below 0 and above 110 are none and counted; a little above 100 is full."""
        values = [50, -1, 255, 110.1, 110, 100.5, 0]
        lines = [f"{1780300800 + n},13,1,{value}" for n, value in enumerate(values)]
        outcome = take(HEAD + "\n".join(lines) + "\n")
        assert [row[3] for row in stored()] == [50.0, 50.0, 50.0, 50.0, 100.0, 100.0, 0.0]
        assert "3 charges left out: not from 0 to 110 %\n" in outcome.out

    def test_charge_alone_that_is_out_of_range(self, take: Take) -> None:
        """A row with nothing else is bad, and not counted twice."""
        log = HEAD + "1780300800,,,255\n1780300801,,,nan\n1780300802,12,1,50\n"
        outcome = take(log, "--skip-bad", "--json")
        assert json.loads(outcome.out)["charges_left_out"] == 0
        assert bad_lines(outcome) == [2, 3]

    @pytest.mark.parametrize("name", ["soc", "level", "battery", "charge"])
    @pytest.mark.parametrize("values", [(0.5, 0.57), (1, 1), (0, 0)])
    def test_charge_without_a_unit(
        self, take: Take, stored: Stored, name: str, values: tuple[float, float]
    ) -> None:
        """If it is never above 1 it is asked about, and nothing is stored until it is told."""
        log = f"ts,V,A,{name}\n" + "".join(
            f"{1780300800 + n},1,1,{v}\n" for n, v in enumerate(values)
        )
        outcome = take(log)
        assert (outcome.code, stored()) == (1, [])
        assert f"--column charge_pct={name}:fraction or --column charge_pct={name}:%" in outcome.err
        assert take(log, "--column", f"charge_pct={name}:fraction").code == 0
        assert [row[3] for row in stored()] == [round(100 * value, 6) for value in values]
        assert take(log, "--column", f"charge_pct={name}:%").code == 0

    @pytest.mark.parametrize("name", ["charge_pct", "soc %", "battery_percent", "SOC [%]"])
    def test_charge_with_a_unit(self, take: Take, stored: Stored, name: str) -> None:
        """It is taken as it is told."""
        assert take(f"ts,V,A,{name}\n1780300800,1,1,0.5\n").code == 0
        assert stored()[0][3] == 0.5

    def test_charge_that_is_always_missing(self, take: Take) -> None:
        """There is nothing to ask about."""
        assert take("ts,V,A,soc\n1780300800,1,1,\n").code == 0

    EMPTY = "1780300800,13,1,\n1780300801,13,1,60\n1780300802,13,1,\n1780300803,13,1,255\n"

    def test_empty_charges(self, take: Take, stored: Stored) -> None:
        """Each takes that of the reading before, which is said, as it is a guess."""
        outcome = take(HEAD + self.EMPTY)
        assert [row[3] for row in stored()] == [100.0, 60.0, 60.0, 60.0]
        assert (
            "2 without a charge: each has that of the reading before (--unknown-charge: none)\n"
        ) in outcome.out
        again = take(HEAD + self.EMPTY, "--json").json
        assert again["charges_of_the_reading_before"] == 2

    def test_unknown_charges(self, take: Take, stored: Stored) -> None:
        """With --unknown-charge each is unknown, and so is one that is out of range."""
        outcome = take(HEAD + self.EMPTY, "--unknown-charge")
        assert [row[3] for row in stored()] == [None, 60.0, None, None]
        assert "without a charge" not in outcome.out

    @pytest.mark.parametrize("words", [[], ["--unknown-charge"]])
    def test_log_without_charges(self, take: Take, stored: Stored, words: list[str]) -> None:
        """A battery's readings keep its charge, and that is said; or they have none."""
        outcome = take("timestamp,voltage,current\n1780300800,13,1\n", *words)
        assert [row[3] for row in stored()] == [None if words else 100.0]
        assert ("1 without a charge: each has that of the" in outcome.out) == (not words)

    def test_charge_above_one_once(self, take: Take, stored: Stored) -> None:
        """One value above 1 says that it is per cent."""
        assert take("ts,V,A,soc\n1780300800,1,1,0.5\n1780300801,1,1,2\n").code == 0
        assert [row[3] for row in stored()] == [0.5, 2.0]


def seconds_of(stored: Stored) -> list[float]:
    """The times of the meter's readings, in epoch seconds."""
    return [power_manager.to_microseconds(row[0]) / SECOND for row in stored()]


class TestTimesOfLogs(Logs):
    """Times of any form, exact in every zone."""

    EIGHT = 1780300800.0  # 2026-06-01T08:00:00Z

    @pytest.mark.parametrize(
        "text",
        [
            "2026-06-01T08:00:00Z",
            "2026-06-01T08:00:00.000000+00:00",
            "2026-06-01T10:00:00+02:00",
            "2026-06-01 10:00:00+0200",
            "2026-06-01 10:00 +02",
            "2026-06-01T02:30:00.000-05:30",
            "2026-6-1 8:00 UTC",
            "2026/06/01 08:00:00 GMT",
            "01.06.2026 08:00z",
            " 2026-06-01T08:00:00Z ",
            "1780300800",
            "1780300800.0",
            "1780300800000",
            "1780300800000000",
            "1780300800000000000",
        ],
    )
    def test_times_that_say_their_zone(self, take: Take, stored: Stored, text: str) -> None:
        """An offset, Z, UTC, or an epoch told apart by its size."""
        assert take(f"ts,V,A\n{text},1,1\n").code == 0
        assert seconds_of(stored) == [self.EIGHT]

    @pytest.mark.parametrize(
        "text",
        [
            "2026-06-01T10:00:00",
            "2026-06-01 10:00",
            "2026/06/01 10:00:00",
            "2026/6/1 10:00",
            "01.06.2026 10:00",
            "1.6.2026, 10:00:00",
            "01.06.2026 10:00:00,000",
        ],
    )
    def test_local_times(self, take: Take, stored: Stored, text: str) -> None:
        """They need a zone: without one the log is refused, and told which option to give."""
        log = f'ts;V;A\n"{text}";1;1\n'
        outcome = take(log)
        assert (outcome.code, outcome.out) == (1, "")
        assert re.search(r"line 2: timestamp: .* has no zone: .*--time-zone", outcome.err)
        assert take(log, "--time-zone", "Europe/Berlin").code == 0
        assert seconds_of(stored) == [self.EIGHT]

    def test_zone_of_this_machine(
        self, take: Take, stored: Stored, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """--time-zone local is the machine's own."""
        monkeypatch.setenv("TZ", "America/New_York")
        time.tzset()
        try:
            assert take("ts,V,A\n2026-06-01 04:00,1,1\n", "--time-zone", "local").code == 0
            assert seconds_of(stored) == [self.EIGHT]
            assert (
                "does not exist in the zone local"
                in take("ts,V,A\n2026-03-08 02:30,1,1\n", "--time-zone", "local").err
            )
        finally:
            monkeypatch.undo()
            time.tzset()

    def test_column_that_says_utc(self, take: Take, stored: Stored) -> None:
        """A name such as "Time (UTC)" is a zone too."""
        outcome = take("Time (UTC),V,A\n2026-06-01 08:00,1,1\n")
        assert (outcome.code, seconds_of(stored)) == (0, [self.EIGHT])
        assert "times in UTC" in outcome.err

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("05/06/2026 08:00", "day or the month first? Say --time-format"),
            ("5/6/26 8:00", "day or the month first?"),
            ("01.06.26 08:00", "say its form, such as --time-format"),
            ("01-06-2026 08:00", "say its form"),
            ("2026-06-01 08:00 PM", "say its form"),
            ("2026-06-01", "a date without a time of day"),
            ("01.06.2026", "a date without a time of day"),
            ("08:00:00", "a time of day without a date"),
            ("12.5", "seconds since a start"),
            ("0", "seconds since a start"),
            ("46174.3333333333", "an Excel date: say --time-format excel"),
            ("20260601", "a date in digits: say --time-format %Y%m%d"),
            ("202606010800", "a date and a time in digits: say --time-format %Y%m%d%H%M"),
            ("20260601080000", "a date and a time in digits: say --time-format %Y%m%d%H%M%S"),
            ("2026060108", "a date and an hour in digits: say --time-format %Y%m%d%H"),
            ("2606010800", "a date and a time in digits: say --time-format %y%m%d%H%M"),
            ("260601080000", "a date and a time in digits: say --time-format %y%m%d%H%M%S"),
        ],
    )
    def test_times_that_are_not_clear(self, take: Take, text: str, message: str) -> None:
        """A log of such times is refused at once, with what would do, --skip-bad or not."""
        log = "ts,V,A\n" + f"{text},1,1\n" * 3
        for words in ([], ["--skip-bad"]):
            outcome = take(log, *words)
            assert (outcome.code, outcome.out) == (1, "")
            assert message in outcome.err
        later = take(f"ts,V,A\n1780300800,1,1\n{text},1,1\n")
        assert (later.code, bad_lines(later), message in later.err) == (1, [3], True)

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "timestamp",
                "never",
                "",
                "-5",
                "1e9",
                "2026-02-30T08:00:00Z",
                "2026-06-01T25:00:00Z",
            ),
            *("2026-06-01T08:61:00Z", "2026-06-01T08:00:61Z", "2026-06-01T08:00:00+02:61"),
            *("2026-06-01T08:00:00+x", "9999999999", "1969-12-31T23:59:59Z", "1" * 400, "20261301"),
        ],
    )
    def test_times_that_are_none(self, take: Take, stored: Stored, text: str) -> None:
        """Each is a bad row."""
        outcome = take(f"ts,V,A\n1780300800,1,1\n{text},1,1\n", "--skip-bad")
        assert (bad_lines(outcome), len(stored())) == ([3], 1)
        assert "timestamp: " in outcome.err

    def test_epoch_seconds_that_could_be_a_date(self, take: Take, stored: Stored) -> None:
        """Until 2033 they are what they are: 1712312359 is no 31 December 2017."""
        assert take("ts,V,A\n1712312359,1,1\n").code == 0
        assert seconds_of(stored) == [1712312359]
        assert bad_lines(take("ts,V,A\n1712312359,1,1\n2712312359,1,1\n")) == [3]

    def test_words_with_am_in_them(self, take: Take) -> None:
        """They are no times of a twelve-hour clock."""
        for text, reason in (("timestamp", "ISO 8601"), ("2026-06-01 8:00 pm", "say its form")):
            assert reason in take(f"ts,V,A\n1780300800,1,1\n{text},1,1\n").err

    @pytest.mark.parametrize("value", ["true", "null", "[1]"])
    def test_times_of_json_that_are_none(self, take: Take, value: str) -> None:
        """A truth value, nothing and a list are bad rows."""
        log = f'{{"ts": 1780300800, "V": 1, "A": 1}}\n{{"ts": {value}, "V": 1, "A": 1}}\n'
        assert bad_lines(take(log)) == [2]

    @pytest.mark.parametrize(
        ("form", "text", "zone"),
        [
            ("%d/%m/%Y %H:%M", "01/06/2026 10:00", "Europe/Berlin"),
            ("%m/%d/%Y %I:%M:%S %p", "06/01/2026 04:00:00 AM", "America/New_York"),
            ("%Y%m%d%H%M%S%z", "20260601100000+0200", ""),
            ("epoch", "1780300800.0", ""),
            ("epoch-ms", "1780300800000", ""),
            ("excel", "46174.4166666667", "Europe/Berlin"),
            ("excel", "46174,3333333333", "UTC"),
        ],
    )
    def test_time_format(self, take: Take, stored: Stored, form: str, text: str, zone: str) -> None:
        """Any form that strptime() knows, epochs of any size, and Excel's days."""
        words = ["--time-format", form, *(["--time-zone", zone] if zone else [])]
        assert take(f'ts;V;A\n"{text}";1;1\n', *words).code == 0
        assert seconds_of(stored) == [self.EIGHT]
        assert bad_lines(take("ts;V;A\nx;1;1\n", *words)) == [2]

    def test_epochs_of_any_size(self, take: Take, stored: Stored) -> None:
        """With --time-format epoch small numbers are seconds since 1970."""
        assert take("ts,V,A\n5,1,1\n", "--time-format", "epoch").code == 0
        assert take('{"ts": 6000, "V": 1, "A": 1}', "--time-format", "epoch-ms").code == 0
        assert seconds_of(stored) == [5.0, 6.0]

    @pytest.mark.parametrize("form", ["%d/%m %H:%M", "%H:%M", "x", "%", "%Q", "%d/%m/%Y %I:%M", ""])
    def test_time_format_that_cannot_do(self, take: Take, form: str) -> None:
        """A form without a year, or that takes afternoon for morning, is wrong usage."""
        with pytest.raises(SystemExit, match="2"):
            take(HEAD, "--time-format", form)

    def test_date_and_time_apart(self, take: Take, stored: Stored) -> None:
        """They are joined; a row that lacks one is bad."""
        log = (
            "Date;Time;V;A\n2026-06-01;10:00;1;1\n2026-06-01;10:00:30;1;1\n"
            ";10:01;1;1\n2026-06-01;;1;1\n"
        )
        outcome = take(log, "--time-zone", "Europe/Berlin", "--skip-bad")
        assert (bad_lines(outcome), seconds_of(stored)) == ([4, 5], [self.EIGHT, self.EIGHT + 30])

    @pytest.mark.parametrize("name", ["Date", "Time"])
    def test_date_or_time_alone(self, take: Take, stored: Stored, name: str) -> None:
        """It is the timestamp."""
        assert take(f"{name},V,A\n2026-06-01T08:00:00Z,1,1\n").code == 0
        assert seconds_of(stored) == [self.EIGHT]

    def test_date_and_time_by_option(self, take: Take, stored: Stored) -> None:
        """--column date and time come before a timestamp."""
        log = "ts,d,h,V,A\n1,2026-06-01,08:00,1,1\n"
        assert take(log, "--column=date=d", "--column=time=h", "--time-zone", "UTC").code == 0
        assert seconds_of(stored) == [self.EIGHT]

    @pytest.mark.parametrize(
        "zone",
        [
            *("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"),
            *("Africa/Monrovia", "Pacific/Apia", "America/St_Johns", "Africa/Casablanca"),
        ],
    )
    @pytest.mark.parametrize("step", [60, 1800, 3600, 7])
    def test_every_zone(self, zone: str, step: int) -> None:
        """Local times, read in their order, are the instants that they were written at."""
        chance = random.Random(f"{zone} {step}")
        place = zoneinfo.ZoneInfo(zone)
        if (zone, step) == ("Australia/Lord_Howe", 3600):
            step = 1800  # clocks are put back by half an hour there: an hourly log cannot tell
        for start in self.transitions(zone, chance):
            first = start - 300 * step
            times = power_manager._LogTimes(place, True)
            instants = [first + number * step for number in range(600)]
            texts = [
                f"{datetime.fromtimestamp(instant, place).replace(tzinfo=None)}"
                for instant in instants
            ]
            assert [times.read(text) // SECOND for text in texts] == instants

    @staticmethod
    def transitions(zone: str, chance: random.Random) -> list[int]:
        """Some instants at which a zone's offset changes, and some others."""
        place = zoneinfo.ZoneInfo(zone)
        found = [chance.randrange(10**7, 10**9) for _ in range(2)]
        day = 86400
        for start in range(10**7, 1_900_000_000, day):
            before, after = (
                datetime.fromtimestamp(instant, place).utcoffset()
                for instant in (start, start + day)
            )
            if before != after:
                low, high = start, start + day
                while high - low > 1:
                    middle = (low + high) // 2
                    is_before = datetime.fromtimestamp(middle, place).utcoffset() == before
                    low, high = (middle, high) if is_before else (low, middle)
                found.append(high)
        return [*found[:2], *chance.sample(found[2:], min(4, len(found) - 2))]

    def test_newest_first(self) -> None:
        """A log that begins with its newest row is read as exactly."""
        place = zoneinfo.ZoneInfo("Europe/Berlin")
        for step in (60, 1800, 3600):
            start = 1792890000  # 2026-10-25T01:00:00Z, when the clocks are put back
            instants = [start + 100 * step - number * step for number in range(200)]
            texts = [f"{datetime.fromtimestamp(i, place).replace(tzinfo=None)}" for i in instants]
            times = power_manager._LogTimes(place, True)
            assert [times.read(text) // SECOND for text in texts] == instants
            assert times.repeated_count == 7200 // step

    def test_many_rows_a_second(self) -> None:
        """The same time again is no second pass, where rows come closer than the clocks go back."""
        times = power_manager._LogTimes(zoneinfo.ZoneInfo("Europe/Berlin"), True)
        texts = ["2026-10-25 02:00:00"] * 3 + ["2026-10-25 02:00:01"] * 3
        assert len({times.read(text) for text in texts}) == 2

    def test_clocks_put_forward(self, take: Take, stored: Stored) -> None:
        """A time that they skip is a bad row that says so."""
        log = "ts,V,A\n2026-03-29 01:59,1,1\n2026-03-29 02:30,1,1\n2026-03-29 03:00,1,1\n"
        outcome = take(log, "--time-zone", "Europe/Berlin", "--skip-bad")
        assert (bad_lines(outcome), "clocks are put forward" in outcome.err) == ([3], True)
        assert [b - a for a, b in itertools.pairwise(seconds_of(stored))] == [60.0]

    def test_clocks_put_back(self, take: Take, stored: Stored) -> None:
        """The times that exist twice are read in two passes, and counted."""
        times = [*range(60, 180, 30), *range(120, 240, 30)]  # minutes from midnight on
        rows = [f"2026-10-25 {minute // 60:02}:{minute % 60:02},10,1\n" for minute in times]
        outcome = take("ts,V,A\n" + "".join(rows), "--time-zone", "Europe/Berlin")
        assert "times that exist twice, because clocks were put back: 4; taken as" in outcome.out
        assert {b - a for a, b in itertools.pairwise(seconds_of(stored))} == {1800.0}

    def test_fractions(self) -> None:
        """Of any number of digits, in any order, to the microsecond."""
        times = power_manager._LogTimes(None, False)
        for rest, us in [
            (".5Z", 500_000),
            (".123456Z", 123_456),
            ("Z", 0),
            (".123456Z", 123_456),
            (".123456789Z", 123_456),
            (".1234567Z", 123_456),
            (".999999Z", 999_999),
            (".12Z", 120_000),
            (".123Z", 123_000),
            (".120Z", 120_000),
            (",250+00:00", 250_000),
        ]:
            for second in ("00", "59", "00"):
                got = times.read(f"2026-06-01T08:00:{second}{rest}")
                assert got == 1780300800 * SECOND + int(second) * SECOND + us

    def test_what_is_remembered_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """However many times there are, each is right."""
        monkeypatch.setattr(power_manager, "_REMEMBERED_TIMES", 3)
        for zone, end in ((None, "Z"), (timezone.utc, "")):
            times = power_manager._LogTimes(zone, zone is not None)
            for hour in (1, 2, 3, 4, 5, 1, 2):
                got = times.read(f"2026-06-01T{hour:02}:07:00{end}")
                assert got == (1780300800 + (hour - 8) * 3600 + 420) * SECOND

    def test_ends_of_the_calendar(self, take: Take) -> None:
        """A local time that no instant can be is a bad row."""
        for text in ("0001-01-01 00:00", "9999-12-31 23:59"):
            assert bad_lines(take(f"ts,V,A\n{text},1,1\n", "--time-zone", "Asia/Tokyo")) == [2]


class Sample(NamedTuple):
    """One reading of a log as a maker's device has it, in whole thousandths."""

    minute: int
    millivolts: int
    milliamperes: int
    charge_pct: int

    @property
    def utc(self) -> datetime:
        """When it was taken."""
        return datetime(2026, 3, 2, 7, 50, tzinfo=timezone.utc) + timedelta(minutes=self.minute)

    def local(self, form: str, zone: str = "Europe/Berlin") -> str:
        """When it was taken, as a clock of that zone shows it."""
        return self.utc.astimezone(zoneinfo.ZoneInfo(zone)).strftime(form)

    @property
    def volts(self) -> str:
        """Volts, with a point."""
        return f"{self.millivolts / 1000:.3f}"

    @property
    def amperes(self) -> str:
        """Amperes, with a point."""
        return f"{self.milliamperes / 1000:.3f}"


SAMPLES = [
    Sample(10 * n, 13_300 - 37 * n, (-1) ** (n // 6) * (500 + 125 * n), 90 - 2 * n)
    for n in range(13)
]


class Maker(NamedTuple):
    """A form of log: its head, how it writes a row, and the options that it needs."""

    name: str
    head: str
    row: Callable[[Sample], str]
    options: str = ""
    encoding: str = "utf-8"
    has_charge: bool = True
    sign: int = 1  # -1: it writes the current with the sign that the options turn


def comma(text: str) -> str:
    """The number with a decimal comma."""
    return text.replace(".", ",")


IN_BERLIN = " --time-zone Europe/Berlin"
MAKERS = [
    Maker(
        "shunt",
        "Datum;Uhrzeit;Spannung (V);Strom (A);Ladezustand (%)",
        lambda s: (
            f"{s.local('%d.%m.%Y;%H:%M:%S')};{comma(s.volts)};{comma(s.amperes)};{s.charge_pct},0"
        ),
        IN_BERLIN,
    ),
    Maker(
        "victron",
        '"Date / Time","Battery voltage (V)","Battery current (A)","State of charge (%)","Alarm"',
        lambda s: f'"{s.utc:%Y-%m-%d %H:%M:%S}","{s.volts}","{s.amperes}","{s.charge_pct}",""',
        "--time-zone UTC",
    ),
    Maker(
        "bms in mV and mA",
        "time,pack_voltage_mv,pack_current_ma,soc,cell_1_mv,cell_2_mv",
        lambda s: (
            f"{s.utc:%Y-%m-%dT%H:%M:%SZ},{s.millivolts},{s.milliamperes},{s.charge_pct},3310,3312"
        ),
    ),
    Maker(
        "home assistant",
        "last_changed,sensor.battery_voltage,sensor.battery_current,sensor.battery_soc",
        lambda s: f"{s.utc:%Y-%m-%dT%H:%M:%S.123Z},{s.volts},{s.amperes},{s.charge_pct}",
    ),
    Maker(
        "ina219",
        "Timestamp,Bus Voltage (V),Shunt Voltage (mV),Current (mA),Power (mW)",
        lambda s: f"{s.utc.timestamp()},{s.volts},{s.milliamperes / 10},{s.milliamperes}.0,1",
        has_charge=False,
    ),
    Maker(
        "ups with its date apart",
        "DATE\tTIME\tVOLTAGE\tCURRENT\tBATTERY%\tSTATUS",
        lambda s: (
            f"{s.local('%Y/%m/%d%t%H:%M')}\t{s.volts}\t{s.amperes}\t{s.charge_pct}\tOL".replace(
                "%t", "\t"
            )
        ),
        IN_BERLIN,
    ),
    Maker(
        "multimeter",
        "No.;Date and Time;U/mV;I/mA",
        lambda s: f"{s.minute};{s.local('%d.%m.%Y %H:%M:%S')};{s.millivolts};{s.milliamperes}",
        IN_BERLIN,
        has_charge=False,
    ),
    Maker(
        "tab",
        "epoch\tvolts\tamps\tcharge_pct",
        lambda s: f"{int(s.utc.timestamp())}\t{s.volts}\t{s.amperes}\t{s.charge_pct}",
    ),
    Maker(
        "pipe",
        "| timestamp | voltage | current | charge_pct |",
        lambda s: f"| {s.utc.isoformat()} | {s.volts} | {s.amperes} | {s.charge_pct} |",
    ),
    Maker(
        "utf-16 of a spreadsheet",
        "Zeitstempel\tSpannung [mV]\tStrom [µA]\tAkku %",
        lambda s: (
            f"{s.local('%d.%m.%Y %H:%M')}\t{s.millivolts}\t{s.milliamperes}000\t{s.charge_pct}"
        ),
        IN_BERLIN,
        "utf-16",
    ),
    Maker(
        "epoch ms",
        "ts,v,i,charge_pct",
        lambda s: f"{int(s.utc.timestamp() * 1000)},{s.volts},{s.amperes},{s.charge_pct}",
    ),
    Maker(
        "epoch us",
        "time;V;A;soc_pct",
        lambda s: f"{int(s.utc.timestamp())}000000;{s.volts};{s.amperes};{s.charge_pct}",
    ),
    Maker(
        "ndjson of a broker",
        "",
        lambda s: json.dumps(
            {
                "ts": s.utc.timestamp(),
                "voltage": float(s.volts),
                "current_ma": s.milliamperes,
                "soc": s.charge_pct,
                "tags": ["a"],
            }
        ),
    ),
    Maker(
        "no head",
        "",
        lambda s: f"{s.utc:%Y-%m-%dT%H:%M:%SZ},x,{s.volts},{s.amperes},{s.charge_pct}",
        "--no-header --column timestamp=1 --column voltage=3 --column current=4 "
        "--column charge_pct=5",
    ),
    Maker(
        "sign turned",
        "timestamp,voltage,charging current,soc %",
        lambda s: f"{s.utc.isoformat()},{s.volts},{-s.milliamperes / 1000},{s.charge_pct}",
        "--column 'current=-charging current'",
        sign=-1,
    ),
    Maker(
        "power only",
        "timestamp,DC voltage,DC power (mW),SoC",
        lambda s: (
            f"{s.utc.isoformat()},{s.volts},{s.millivolts * s.milliamperes / 1000},{s.charge_pct}"
        ),
    ),
    Maker(
        "power taken in",
        "timestamp,voltage,P",
        lambda s: f"{s.utc.isoformat()},{s.volts},{-s.millivolts * s.milliamperes / 1e9:.12f}",
        "--column power=-P:kW",
        has_charge=False,
        sign=-1,
    ),
    Maker(
        "charge as a fraction",
        "timestamp,voltage,current,soc",
        lambda s: f"{s.utc.isoformat()},{s.volts},{s.amperes},{s.charge_pct / 100}",
        "--column charge_pct=soc:fraction",
    ),
    Maker(
        "excel",
        "Date;Voltage;Current;Level",
        lambda s: comma(
            f"{46083 + (470 + 60 + s.minute) / 1440:.10f};{s.volts};{s.amperes};{s.charge_pct}"
        ),
        "--time-format excel" + IN_BERLIN,
    ),
    Maker(
        "american",
        "Date,Time,Volts,Amps,Battery %",
        lambda s: (
            f"{s.local('%m/%d/%Y,%I:%M:%S %p', 'America/New_York')},"
            f"{s.volts},{s.amperes},{s.charge_pct}"
        ),
        "--time-format '%m/%d/%Y %I:%M:%S %p' --time-zone America/New_York",
    ),
    Maker(
        "british",
        "Logged at,Pack voltage [V],Pack current [A],Charge [%]",
        lambda s: (
            f"{s.local('%d/%m/%Y %H:%M', 'Europe/London')},{s.volts},{s.amperes},{s.charge_pct}"
        ),
        "--time-format '%d/%m/%Y %H:%M' --time-zone Europe/London",
    ),
    Maker(
        "digits",
        "stamp,u_mV,i_mA",
        lambda s: f"{s.utc:%Y%m%d%H%M%S},{s.millivolts},{s.milliamperes}",
        "--column timestamp=stamp --column voltage=u_mV --column current=i_mA "
        "--time-format %Y%m%d%H%M%S --time-zone UTC",
        has_charge=False,
    ),
    Maker(
        "decimal commas in quotes",
        "timestamp,voltage,current,charge_pct",
        lambda s: f'{s.utc.isoformat()},"{comma(s.volts)}","{comma(s.amperes)}",{s.charge_pct}',
    ),
    Maker(
        "hint of a spreadsheet",
        "sep=;\ntimestamp;voltage;current;charge_pct",
        lambda s: f"{s.utc.isoformat()};{s.volts};{s.amperes};{s.charge_pct}",
    ),
    Maker(
        "carriage returns and a mark",
        "Timestamp (UTC),Voltage,Current,SOC (%)\r",
        lambda s: f"{s.utc:%Y-%m-%d %H:%M:%S},{s.volts},{s.amperes},{s.charge_pct}\r",
        encoding="utf-8-sig",
    ),
    Maker(
        "names in capitals",
        "UNIX_TIME,BATT_VOLTAGE_MV,BATT_CURRENT_MA,BATT_SOC_PCT",
        lambda s: f"{int(s.utc.timestamp())},{s.millivolts},{s.milliamperes},{s.charge_pct}",
    ),
    Maker(
        "offset of its zone",
        "created_at;U;I;Akkustand",
        lambda s: (
            f"{s.local('%Y-%m-%dT%H:%M:%S%z')};{comma(s.volts)};{comma(s.amperes)};{s.charge_pct}"
        ),
    ),
]


def trapezoid_wh(rows: Sequence[tuple[datetime, Fraction]]) -> tuple[float, float]:
    """Energy out and in of times and watts, exactly."""
    steps = [
        (first + last) / 2 * Fraction(int((end - begin).total_seconds()), 3600)
        for (begin, first), (end, last) in itertools.pairwise(rows)
    ]
    return float(sum(max(step, Fraction(0)) for step in steps)), float(
        sum(max(-step, Fraction(0)) for step in steps)
    )


class TestLogsOfMakers(Logs):
    """Logs as devices and programs write them, each with its right readings and energy."""

    @pytest.mark.parametrize("maker", MAKERS, ids=[maker.name for maker in MAKERS])
    def test_log_of_a_maker(self, take: Take, stored: Stored, pack: str, maker: Maker) -> None:
        """Every reading is exact, and the energy is that of the trapezoids."""
        lines = [*([maker.head] if maker.head else []), *map(maker.row, SAMPLES), ""]
        outcome = take(
            "\n".join(lines).encode(maker.encoding), *shlex.split(maker.options), "--json"
        )
        assert (outcome.code, outcome.err) == (0, "")
        fraction = timedelta(milliseconds=123) if maker.name == "home assistant" else timedelta(0)
        charges = [sample.charge_pct if maker.has_charge else 100 for sample in SAMPLES]
        expected = [
            ((sample.utc + fraction).isoformat(timespec="microseconds"), sample, charge)
            for sample, charge in zip(SAMPLES, charges, strict=True)
        ]
        got = stored()
        assert [row[0] for row in got] == [time for time, _, _ in expected]
        assert [row[1] for row in got] == [sample.millivolts / 1000 for sample in SAMPLES]
        assert [row[2] for row in got] == pytest.approx(
            [sample.milliamperes / 1000 for sample in SAMPLES], rel=1e-12
        )
        assert [row[3] for row in got] == charges
        watts = [
            (sample.utc, Fraction(sample.millivolts * sample.milliamperes, 10**6))
            for sample in SAMPLES
        ]
        energy_out, energy_in = trapezoid_wh(watts)
        said = json.loads(outcome.out)
        with PowerManager() as pm:
            totals = pm.energy_totals(pack)
        for found in (
            (said["energy_out_wh"], said["energy_in_wh"]),
            (totals.energy_out_wh, totals.energy_in_wh),
        ):
            assert found == pytest.approx((energy_out, energy_in), abs=1e-5)

    def test_array_of_a_service(self, take: Take, stored: Stored) -> None:
        """A JSON array, as an answer of a service is."""
        rows = [
            {
                "time": s.utc.isoformat(),
                "voltage": s.volts,
                "current": s.amperes,
                "level": s.charge_pct,
            }
            for s in SAMPLES
        ]
        assert take(json.dumps(rows, indent=2)).code == 0
        assert [row[1:] for row in stored()] == [
            (s.millivolts / 1000, s.milliamperes / 1000, s.charge_pct) for s in SAMPLES
        ]


class TestWhatImportSays(Logs):
    """Before it stores, and after."""

    LOG = "Zeit;Spannung [V];Strom (mA);SoC;Temp\n" + "".join(
        f"2026-11-28T{10 + n // 60:02}:{n % 60:02}:00;12,5;-1500;{90 - n // 10};21,0\n"
        for n in (*range(0, 60, 10), *range(240, 300, 10))
    )
    OPTIONS = ("--time-zone", "Europe/Berlin", "--column", "current=-Strom (mA)")

    def test_before(self, take: Take) -> None:
        """Form, delimiter, decimal sign, zone, and a line for each column."""
        assert take(self.LOG, *self.OPTIONS).err == (
            "log.txt: delimited text in UTF-8, delimiter semicolon, decimal comma, "
            "times in Europe/Berlin\n"
            "  timestamp: Zeit\n"
            "  voltage: Spannung [V] in V\n"
            "  current: Strom (mA) in mA, its sign turned\n"
            "  charge_pct: SoC in %\n"
            "  not used: Temp\n"
        )

    def test_after(self, take: Take) -> None:
        """Counts, span, energy and gaps."""
        assert take(self.LOG, *self.OPTIONS).out == (
            "12 new readings, 0 already there, 0 bad rows left out\n"
            "from 2026-11-28 10:00:00 to 2026-11-28 14:50:00, Europe/Berlin\n"
            "energy: 31.2 Wh out, 0.00 Wh in\n"
            "no energy in 1 gap of more than 1 h 30 min\n"
        )
        again = take(self.LOG, *self.OPTIONS).out.splitlines()
        assert again[0] == "0 new readings, 12 already there, 0 bad rows left out"
        assert again[2] == "energy: 0.00 Wh out, 0.00 Wh in"

    def test_json(self, take: Take) -> None:
        """One object has everything, and standard error stays empty."""
        said = take(self.LOG, *self.OPTIONS, "--json").json
        assert said.pop("layout") == {
            "form": "delimited text",
            "encoding": "UTF-8",
            "delimiter": ";",
            "decimal": ",",
            "time_zone": "Europe/Berlin",
            "columns": [
                {"meaning": "timestamp", "name": "Zeit", "unit": None, "sign": "kept"},
                {"meaning": "voltage", "name": "Spannung [V]", "unit": "V", "sign": "kept"},
                {"meaning": "current", "name": "Strom (mA)", "unit": "mA", "sign": "turned"},
                {"meaning": "charge_pct", "name": "SoC", "unit": "%", "sign": "kept"},
            ],
            "only": None,
            "not_used": ["Temp"],
            "comment_lines": 0,
        }
        assert said == {
            "new": 12,
            "already_there": 0,
            "bad_rows_left_out": 0,
            "with_other_values": 0,
            "in_closed_hours": 0,
            "dry_run": False,
            "first": "2026-11-28T09:00:00.000000+00:00",
            "last": "2026-11-28T13:50:00.000000+00:00",
            "energy_out_wh": 31.25,
            "energy_in_wh": 0.0,
            "gaps": 1,
            "max_gap_s": 5400.0,
            "charges_left_out": 0,
            "charges_of_the_reading_before": 0,
            "unknown_power": 0,
            "rows_of_others": 0,
            "last_is_ahead_s": 0.0,
            "times_that_exist_twice": 0,
            "torn_line": None,
            "bad_rows": [],
        }

    def test_bad_rows_in_json(self, take: Take) -> None:
        """Those that are left out are in the object too."""
        outcome = take(HEAD + "x,1,1,1\n1780300800,1,1,1\n", "--skip-bad", "--json")
        (row,) = json.loads(outcome.out)["bad_rows"]
        assert (row["line"], "timestamp: expected" in row["error"]) == (2, True)

    @pytest.mark.parametrize(
        ("start", "count"),
        [
            ("# BMS 4711\n" + HEAD, 1),
            ("# BMS 4711\n\n  # voltage and current of the pack\n" + HEAD, 2),
            ("# taken, by, hand\n#" + HEAD, 1),
            ("#" + HEAD, 0),
            ("# U,I,SoC,Zeit of the old logger\n" + HEAD, 1),
            ("\ufeff# BMS 4711\n" + HEAD, 1),
        ],
    )
    def test_comments_at_the_start(
        self, take: Take, stored: Stored, start: str, count: int
    ) -> None:
        """Lines that begin with # are skipped, and said, but for one that is the head."""
        row = "1780300800,12,1,3\n"
        outcome = take(start + row)
        assert (outcome.code, len(stored())) == (0, 1)
        said = {0: "", 1: "  skipped: 1 comment line at the start\n"}
        said[2] = "  skipped: 2 comment lines at the start\n"
        assert outcome.err.endswith(f"  charge_pct: charge_pct in %\n{said[count]}")
        assert take(start + row, "--json").json["layout"]["comment_lines"] == count

    def test_comments_and_bad_rows(self, take: Take, stored: Stored) -> None:
        """Lines keep their numbers; a comment further down is a bad row."""
        outcome = take("# a\n# b\n" + HEAD + "1780300800,12,1,3\n# c\n", "--skip-bad")
        assert (bad_lines(outcome), len(stored())) == ([5], 1)

    def test_comment_with_one_known_name(self, take: Take, stored: Stored) -> None:
        """A single word that could be a column makes no head."""
        options = "--column timestamp=when --column voltage=x --column current=y"
        outcome = take("# Voltage, by hand\nwhen,x,y\n1780300800,12,1\n", *options.split())
        assert (outcome.code, len(stored())) == (0, 1)

    @pytest.mark.parametrize("head", ["# a\n", "# time,V,A\n"])
    def test_comments_without_a_head(self, take: Take, stored: Stored, head: str) -> None:
        """With --no-header the first line after them is a row."""
        options = "--no-header --column timestamp=1 --column voltage=2 --column current=3"
        outcome = take(head + "1780300800,12,1\n", *options.split(), "--delimiter", "comma")
        assert (outcome.code, len(stored())) == (0, 1)

    def test_comments_alone(self, take: Take) -> None:
        """A log of comments has no text to read."""
        assert "got a file with no text" in take("# a\n# b\n").err

    def test_comments_of_a_pipe(
        self, run: Run, pack: str, stored: Stored, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A pause between comments and head makes no difference."""

        def pieces(_: object) -> Iterator[bytes]:
            yield from (b"# BMS\n", b"", HEAD.encode(), b"", b"1780300800,12,1,3\n", b"")

        monkeypatch.setattr(power_manager, "_piped_pieces", lambda stream: pieces(stream))
        assert (run("import", pack).code, len(stored())) == (0, 1)

    def test_dry_run(self, take: Take, stored: Stored, run: Run) -> None:
        """It says all that, and stores nothing, no event either."""
        outcome = take(HEAD + "1780300800,12,1,3\n1780304400,12,1,2\n", "--dry-run")
        assert outcome.out.splitlines() == [
            "2 new readings, 0 already there, 0 bad rows left out",
            "a dry run: nothing is stored",
            outcome.out.splitlines()[2],
            "energy: 12.0 Wh out, 0.00 Wh in",
        ]
        assert (stored(), run("events", "dev-001", "--json").json) == ([], [])

    def test_span_in_local_time(self, take: Take, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a zone of its own the span is shown in that of this machine."""
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        try:
            out = take(HEAD + "1780300800,12,1,3\n").out
        finally:
            monkeypatch.undo()
            time.tzset()
        assert "from 2026-06-01 17:00:00 to 2026-06-01 17:00:00, local time\n" in out

    def test_log_without_readings(self, take: Take) -> None:
        """A head alone is no error, and there is no span."""
        assert take(HEAD).out == "0 new readings, 0 already there, 0 bad rows left out\n"

    @pytest.mark.parametrize("max_gap", [0, 1, 60, 3600, 5400, 86400, 10**9])
    def test_gaps(self, max_gap: int) -> None:
        """They are counted as a look at each pair of neighbours with watts counts them."""
        chance = random.Random(max_gap)
        with PowerManager("gaps.db", max_gap=max_gap) as pm:
            pm.register_device("d", "D")
            meter = pm.add_meter("d", "battery", name="b")
            times = sorted(chance.sample(range(1_780_000_000, 1_780_400_000), 200))
            rows = [
                (
                    time,
                    None if chance.random() < 0.2 else 12.0,
                    None if chance.random() < 0.2 else 1.0,
                )
                for time in times
            ]
            pm.log_many([(meter.id, volts, amps, 50.0, float(time)) for time, volts, amps in rows])
            first, last = times[20], times[180]
            powered = [
                t for t, v, a in rows if v is not None and a is not None and first <= t <= last
            ]
            values = {"key": 1, "first": first * SECOND, "last": last * SECOND}
            with pm.connection() as conn:
                (count,) = conn.execute(
                    power_manager._GAPS_SQL, {**values, "max_gap": max_gap * SECOND}
                ).fetchone()
        assert count == sum(b - a > max_gap for a, b in itertools.pairwise(powered))

    def test_hours_that_prune_has_closed(self, take: Take, run: Run, pack: str) -> None:
        """Readings of theirs are not stored, and not counted as already there."""
        log = HEAD + "".join(f"{1780300800 + 1800 * n},12,1,50\n" for n in range(10))
        take(log)
        run("prune", 0)
        outcome = take(log)
        count = int(
            re.findall(r"^(\d+) not stored: prune\(\) has closed", outcome.out, re.MULTILINE)[0]
        )
        there = int(re.findall(r"(\d+) already there", outcome.out)[0])
        assert (count + there, count > 0) == (10, True)

    def test_charges_in_any_order(self, run: Run) -> None:
        """A reading without a charge takes that of the one before it in time, in any order."""
        rows = ["08:00:00Z,12,1,90", "08:30:00Z,12,1,", "10:00:00Z,12,1,15"]
        found = []
        for number, order in enumerate(itertools.permutations(rows)):
            run("register", "dev-001", "Edge Node")
            run("add-meter", "dev-001", "battery", "--name", f"m{number}")
            Path("log.txt").write_text(HEAD + "".join(f"2026-06-01T{row}\n" for row in order))
            run("import", f"dev-001/m{number}", "log.txt")
            with PowerManager() as pm:
                (meter,) = [m for m in pm.list_meters() if m.name == f"m{number}"]
                stats = pm.get_statistics(meter.id, days=36500)
                found.append([(s.min_charge_pct, s.max_charge_pct) for s in stats])
        assert found == [[(90.0, 90.0), (15.0, 15.0)]] * 6

    def test_hourly_log_with_jitter(self, take: Take) -> None:
        """It loses no energy to a second of jitter."""
        start = datetime(2026, 6, 1, tzinfo=timezone.utc)
        times = [start + timedelta(hours=n, seconds=[0, 2, 1, 3][n % 4]) for n in range(25)]
        out = take(
            "timestamp,voltage,current\n" + "".join(f"{t.isoformat()},10,1\n" for t in times)
        ).out
        assert "energy: 240 Wh out" in out
        assert "no energy" not in out

    @pytest.mark.parametrize("is_terminal", [True, False])
    @pytest.mark.parametrize("source", ["file", "batches", "bad"])
    def test_progress(
        self,
        run: Run,
        pack: str,
        stdin: Callable[[str], None],
        monkeypatch: pytest.MonkeyPatch,
        is_terminal: bool,
        source: str,
    ) -> None:
        """On a terminal, and only there, a line shows how far it is, and goes at the end."""
        log = HEAD + "".join(f"{1_750_000_000 + i},1,1,50\n" for i in range(25))
        log += "never,1,1,1\n" * (source == "bad")
        Path("log.txt").write_text(log)
        stdin(log)
        monkeypatch.setattr(power_manager, "_CHUNK_ROWS", 10)
        monkeypatch.setattr(power_manager, "_PIECE_BYTES", 100)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
        words = ["--batch", "10"] if source == "batches" else ["log.txt", "--skip-bad"]
        err = run("import", pack, *words).err
        shown = re.findall(r"\r(\d+ rows(?:, \d+%)?) +\r", err)
        if not is_terminal:
            assert (shown, "\r" in err) == ([], False)
        elif source == "batches":
            assert shown == ["10 rows", "20 rows", "25 rows"]
        else:
            assert [text.split()[0] for text in shown] == ["10", "20", "25"]
            assert shown[-1] == "25 rows, 100%"
            assert re.search(r"\r +\r", err)


BATCHES = """
import power_manager, sys
power_manager._QUIET_S = 0.1
sys.exit(power_manager.main(["--db", "power_manager.db", "import", "dev-001/Pack", *sys.argv[1:]]))
"""


class TestBatches(Logs):
    """Standard input is stored in batches, so that other writers do not wait for a pipe."""

    @contextmanager
    def piped(self, *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A real process that imports what is written into it."""
        command = [sys.executable, "-c", BATCHES, *words]
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment
        ) as child:
            try:
                yield child
            finally:
                child.kill()

    @staticmethod
    def feed(child: subprocess.Popen[bytes], text: str) -> None:
        """Write into its standard input."""
        assert child.stdin is not None
        child.stdin.write(text.encode())
        child.stdin.flush()

    @staticmethod
    def wait_for(pack: str, count: int) -> None:
        """Wait until so many readings are stored; other writers are never locked out meanwhile."""
        deadline = time.monotonic() + 60
        with PowerManager() as pm:
            while len(history(pm, pack)) < count:
                assert time.monotonic() < deadline
                pm.trigger_event("dev-001", "restore")
                time.sleep(0.02)

    @staticmethod
    def rows(start: int, stop: int) -> str:
        """Rows of CSV."""
        return "".join(f"{1_780_300_800 + n},12,1,50\n" for n in range(start, stop))

    @pytest.mark.parametrize("form", ["csv", "ndjson"])
    def test_pipe_that_goes_on(self, pack: str, form: str) -> None:
        """What comes is stored at once, though the pipe stays open; at its end all is said."""

        def made(start: int, stop: int) -> str:
            if form == "csv":
                return self.rows(start, stop)
            row = '{{"ts": {}, "v": 12, "i": 1}}\n'
            return "".join(row.format(1_780_300_800 + n) for n in range(start, stop))

        with self.piped() as child:
            self.feed(child, (HEAD if form == "csv" else "") + made(0, 3))
            self.wait_for(pack, 3)
            self.feed(child, made(3, 4)[:9])
            self.feed(child, made(3, 4)[9:])
            self.wait_for(pack, 4)
            out, err = child.communicate(made(4, 6).encode(), timeout=60)
        assert child.returncode == 0, err
        assert out.startswith(b"6 new readings, 0 already there, 0 bad rows left out\n")
        assert b"energy: 0.02 Wh out" in out

    def test_full_batches(self, pack: str) -> None:
        """A batch that is full is stored, while the next one waits."""
        with self.piped("--batch", "10") as child:
            self.feed(child, HEAD + self.rows(0, 25))
            self.wait_for(pack, 20)
            out, _ = child.communicate(timeout=60)
        assert (child.returncode, out[:15]) == (0, b"25 new readings")

    def test_interrupted(self, pack: str) -> None:
        """Ctrl-C stores what is pending, says how much is stored, and ends with 130."""
        with self.piped("--batch", "10") as child:
            self.feed(child, HEAD + self.rows(0, 15))
            self.wait_for(pack, 10)
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=60)
        assert (child.returncode, out) == (130, b"")
        with PowerManager() as pm:
            count = len(history(pm, pack))
        assert 10 <= count <= 15
        assert err.decode().endswith(f"-: stored so far: {count} rows\n")

    @pytest.mark.parametrize(
        "words", [["--batch", "0"], ["--dry-run"], ["--dry-run", "--batch", "5"]]
    )
    def test_all_or_nothing(self, pack: str, words: list[str]) -> None:
        """--batch 0 and --dry-run read the pipe to its end before they write."""
        with self.piped(*words) as child:
            self.feed(child, HEAD + self.rows(0, 15))
            with PowerManager() as pm:
                for _ in range(3):
                    pm.trigger_event("dev-001", "restore")
                assert history(pm, pack) == []
            out, _ = child.communicate(timeout=60)
        with PowerManager() as pm:
            assert len(history(pm, pack)) == (0 if "--dry-run" in words else 15)
        assert (child.returncode, out[:15]) == (0, b"15 new readings")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
    @pytest.mark.parametrize("words", [[], ["--batch", "5"]])
    def test_named_pipe(self, run: Run, pack: str, stored: Stored, words: list[str]) -> None:
        """It is read as a pipe is."""
        os.mkfifo("pipe")
        writer = threading.Thread(target=lambda: Path("pipe").write_text(HEAD + self.rows(0, 12)))
        writer.start()
        outcome = run("import", pack, "pipe", *words)
        writer.join(60)
        assert (outcome.code, len(stored())) == (0, 12)

    @pytest.mark.parametrize("source", ["file", "stdin"])
    def test_bad_row_in_a_later_batch(
        self, run: Run, pack: str, stored: Stored, stdin: Callable[[str], None], source: str
    ) -> None:
        """Its batch is not stored, those before are, and the error says how many rows."""
        log = HEAD + self.rows(0, 25) + "never,1,1,1\n" + self.rows(25, 40)
        Path("log.txt").write_text(log)
        stdin(log)
        words = ["log.txt"] if source == "file" else []
        outcome = run("import", pack, *words, "--batch", "10")
        assert (outcome.code, outcome.out, len(stored())) == (1, "", 20)
        assert outcome.err.endswith(
            f"{words[0] if words else '-'}: stored so far: 20 rows\n"
            "power-manager: 1 bad row: the batch was not stored; correct the log, or leave out "
            "bad rows with --skip-bad\n"
        )

    def test_bad_rows_that_never_end(
        self, run: Run, pack: str, stdin: Callable[[str], None]
    ) -> None:
        """The import ends with as many of them as a batch has rows."""
        stdin(HEAD + self.rows(0, 1) + "never,1,1,1\n" * 200)
        outcome = run("import", pack, "--batch", "50")
        assert outcome.code == 1
        assert (
            "-: and 30 more bad rows\npower-manager: 50 bad rows: nothing was stored" in outcome.err
        )
        stdin(HEAD + self.rows(0, 1) + "never,1,1,1\n" * 200)
        assert run("import", pack, "--batch", "50", "--skip-bad").code == 0

    def test_charge_that_is_asked_about(
        self, run: Run, pack: str, stored: Stored, stdin: Callable[[str], None]
    ) -> None:
        """The first batch decides."""
        log = "ts,V,A,soc\n" + "".join(f"{1_780_300_800 + n},1,1,{n / 10}\n" for n in range(30))
        stdin(log)
        outcome = run("import", pack, "--batch", "5")
        assert (outcome.code, stored()) == (1, [])
        assert "charge_pct=soc:fraction" in outcome.err
        stdin(log)
        assert run("import", pack, "--batch", "20").code == 0

    def test_array_that_breaks_later(
        self, run: Run, pack: str, stored: Stored, stdin: Callable[[str], None]
    ) -> None:
        """The batches before are stored, and said."""
        objects = [f'{{"ts": {1_780_300_800 + n}, "v": 1, "i": 1}}' for n in range(190)]
        stdin("[" + ",\n".join(objects))
        outcome = run("import", pack, "--batch", "50")
        assert (outcome.code, len(stored())) == (1, 150)
        assert outcome.err.startswith("-: JSON array")
        assert "-: stored so far: 150 rows\npower-manager: line 190: expected" in outcome.err

    @staticmethod
    def interrupted(monkeypatch: pytest.MonkeyPatch, text: str, number: int = 2) -> None:
        """Let a signal, Ctrl-C, come when a text has been read from standard input."""

        def pieces(_: object) -> Iterator[bytes]:
            yield text.encode()
            signal.raise_signal(number)

        monkeypatch.setattr(power_manager, "_piped_pieces", lambda stream: pieces(stream))

    def test_sigterm(
        self, run: Run, pack: str, stored: Stored, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SIGTERM stores what is pending, as Ctrl-C does, and ends with 143."""
        self.interrupted(monkeypatch, HEAD + self.rows(0, 150), signal.SIGTERM)
        with pytest.raises(SystemExit, match="143"):
            run("import", pack)
        assert len(stored()) == 150

    def test_interrupted_in_process(
        self, run: Run, pack: str, stored: Stored, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is pending is stored; a batch with a bad row is not."""
        self.interrupted(monkeypatch, HEAD + self.rows(0, 150))
        outcome = run("import", pack)
        assert (outcome.code, outcome.out, len(stored())) == (130, "", 150)
        assert outcome.err.endswith("-: stored so far: 150 rows\n")
        self.interrupted(monkeypatch, HEAD + self.rows(150, 300) + "never,1,1,1\n")
        outcome = run("import", pack)
        assert (outcome.code, len(stored())) == (130, 150)
        assert "-: 1 bad row: nothing was stored" in outcome.err
        assert outcome.err.endswith("-: stored so far: 0 rows\n")

    def test_interrupted_before_the_form_is_known(
        self, run: Run, pack: str, stored: Stored, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a log that has only begun nothing is stored, and that is said."""
        self.interrupted(monkeypatch, HEAD + self.rows(0, 3))
        outcome = run("import", pack)
        assert (outcome.code, outcome.err, stored()) == (130, "-: stored so far: 0 rows\n", [])

    def test_interrupted_in_one_transaction(
        self, run: Run, pack: str, stored: Stored, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C during the import of a file ends with 130, and nothing is stored."""
        Path("log.txt").write_text(HEAD + self.rows(0, 500))
        real = power_manager._LogReader._arrival

        def arrival(reader: Any, number: int, fields: Any) -> Any:
            if number == 300:
                raise KeyboardInterrupt
            return real(reader, number, fields)

        monkeypatch.setattr(power_manager, "_CHUNK_ROWS", 100)
        monkeypatch.setattr(power_manager._LogReader, "_arrival", arrival)
        outcome = run("import", pack, "log.txt")
        assert (outcome.code, outcome.out, stored()) == (130, "", [])

    def test_number_as_python_writes_it(self, run: Run, pack: str) -> None:
        """1_2 is no number of a log, though Python would read 12."""
        Path("log.txt").write_text(HEAD + self.rows(0, 1) + self.rows(1, 2).replace("12", "1_2"))
        outcome = run("import", pack, "log.txt")
        assert outcome.code == 1
        assert "'1_2" in outcome.err

    def test_pipe_that_fails(self, run: Run, pack: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error of reading ends the import in one line."""

        class Broken(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any) -> int:
                raise OSError(errno.EIO, "broken")

        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Broken())))
        outcome = run("import", pack)
        assert (outcome.code, outcome.err) == (1, "power-manager: broken\n")

    def test_import_that_ends_before_its_pipe(self, run: Run, pack: str) -> None:
        """The thread that reads does not wait for ever for somebody to take what it has read."""
        read, write = os.pipe()
        before = threading.active_count()
        with os.fdopen(read) as source, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", source)
            patch.setattr(power_manager, "_WAITING_PIECES", 1)
            patch.setattr(power_manager, "_PIECE_BYTES", 10)
            with os.fdopen(write, "w") as target:
                target.write("x,y\n" + "1,2\n" * 500)
            assert run("import", pack).code == 1
            deadline = time.monotonic() + 60
            while threading.active_count() > before and time.monotonic() < deadline:
                time.sleep(0.01)
            assert threading.active_count() <= before

    @pytest.mark.parametrize("form", ["csv", "ndjson", "array"])
    def test_lulls(
        self, run: Run, pack: str, stored: Stored, monkeypatch: pytest.MonkeyPatch, form: str
    ) -> None:
        """Wherever nothing comes for a while, what is whole is stored, and the rest goes on."""
        objects = [f'{{"ts": {1_780_300_800 + n}, "v": 1, "i": 1}}' for n in range(6)]
        text = {
            "csv": HEAD + self.rows(0, 6),
            "ndjson": "\n".join([*objects, ""]),
            "array": " [\n" + ",\n".join(objects) + "\n]\n",
        }[form]
        counts = []

        def pieces(_: object) -> Iterator[bytes]:
            for character in text:
                yield character.encode()
                yield b""
                counts.append(len(stored()))

        monkeypatch.setattr(power_manager, "_piped_pieces", pieces)
        outcome = run("import", pack)
        assert (outcome.code, len(stored())) == (0, 6), outcome.err
        assert list(dict.fromkeys(counts)) == [0, 1, 2, 3, 4, 5, 6]

    def test_pipe_that_pauses(self, run: Run, pack: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The thread that reads says when nothing comes: then the rows before are stored."""
        monkeypatch.setattr(power_manager, "_QUIET_S", 0.02)
        read, write = os.pipe()

        def feed() -> None:
            with os.fdopen(write, "w") as target:
                target.write(HEAD + self.rows(0, 3))
                target.flush()
                self.wait_for(pack, 3)
                target.write(self.rows(3, 5))

        writer = threading.Thread(target=feed)
        with os.fdopen(read) as source:
            monkeypatch.setattr(sys, "stdin", source)
            writer.start()
            outcome = run("import", pack)
            writer.join(60)
        assert outcome.out.startswith("5 new readings")

    def test_standard_input_without_rows(
        self, run: Run, pack: str, stdin: Callable[[str], None]
    ) -> None:
        """A head alone is no error."""
        stdin(HEAD)
        assert run("import", pack).out == "0 new readings, 0 already there, 0 bad rows left out\n"


class TestExport(Logs):
    """export: formats, zones, signs, and back again."""

    @pytest.fixture
    def exported(self, run: Run, pack: str) -> Callable[..., str]:
        """Export three readings, of which two lack a value."""
        with PowerManager() as pm:
            pm.log_many(
                [
                    (pack, 12.5, 1.5, 80.5, 1_780_300_800.25),
                    (pack, 12.0, None, 80.0, 1_780_300_860.0),
                    (pack, None, 0.000015, 79.0, 1_780_300_920.0),
                ]
            )

        def export(*words: object) -> str:
            outcome = run("export", pack, *words)
            assert (outcome.code, outcome.err) == (0, "")
            return outcome.out

        return export

    def test_csv(self, exported: Callable[..., str]) -> None:
        """Times in UTC; an unknown value is an empty field."""
        assert exported() == (
            "timestamp,voltage,current,charge_pct\n"
            "2026-06-01T08:00:00.250000+00:00,12.5,1.5,80.5\n"
            "2026-06-01T08:01:00.000000+00:00,12.0,,80.0\n"
            "2026-06-01T08:02:00.000000+00:00,,1.5e-05,79.0\n"
        )

    @pytest.mark.parametrize("style", ["csv", "ndjson", "influx"])
    def test_disk_full(self, run: Run, pack: str, style: str) -> None:
        """The file is there whole or not at all: an earlier one stays as it was."""
        with PowerManager() as pm:
            pm.log_many((pack, 12.0, 1.0, 80.0, NOW + i) for i in range(3000))
        for earlier in (None, "an earlier export\n"):
            if earlier is not None:
                Path("out.txt").write_text(earlier)
            before = content(Path())
            with full_disk(50_000):
                outcome = run("export", pack, "--format", style, "--output", "out.txt")
            assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
            assert "out.txt: " in outcome.err
            assert "free some space" in outcome.err
            assert content(Path()) == before

    def test_links(self, run: Run, exported: Callable[..., str]) -> None:
        """Writing to a link writes to the file that it names, which keeps its permissions."""
        expected = exported()
        Path("shared").mkdir()
        Path("shared/real.csv").write_text("before")
        Path("shared/real.csv").chmod(0o644)
        os.symlink("shared/real.csv", "link.csv")
        exported("--output", "link.csv")
        assert os.readlink("link.csv") == "shared/real.csv"
        assert Path("shared/real.csv").read_text() == expected
        assert stat.S_IMODE(Path("shared/real.csv").stat().st_mode) == 0o644
        assert os.listdir("shared") == ["real.csv"]

    def test_named_pipe(self, exported: Callable[..., str]) -> None:
        """What is no file is written to as it is."""
        expected = exported()
        os.mkfifo("pipe")
        read: list[str] = []
        in_threads(
            lambda: read.append(Path("pipe").read_text()), lambda: exported("--output", "pipe")
        )
        assert read == [expected]
        assert stat.S_ISFIFO(os.lstat("pipe").st_mode)

    def test_standard_output_by_its_path(self, exported: Callable[..., str]) -> None:
        """/dev/stdout is written to, not replaced, also where the shell appends to a file."""
        expected = exported()
        Path("all.csv").write_text("before\n")
        words = [sys.executable, str(MODULE), "export", "dev-001/Pack", "--output", "/dev/stdout"]
        with open("all.csv", "a") as out:
            subprocess.run(words, stdout=out, timeout=60, check=True)
        assert Path("all.csv").read_text() == "before\n" + expected

    def test_unknown_charge(self, run: Run, pack: str) -> None:
        """It is an empty field, null, or left out; with --unknown-charge it comes back."""
        run("update-meter", pack, "--forget-charge")
        run("log", pack, 12, 1, "--timestamp", "2026-06-01T08:00:00Z")
        assert run("export", pack).out.splitlines()[1].endswith(",12.0,1.0,")
        assert json.loads(run("export", pack, "--format=ndjson").out)["charge_pct"] is None
        assert "charge_pct" not in run("export", pack, "--format=influx").out
        run("add-meter", "dev-001", "battery", "--name", "Copy")
        run("export", pack, "--output", "out.csv")
        assert run("import", "dev-001/Copy", "out.csv", "--unknown-charge").code == 0
        with PowerManager() as pm:
            (copy,) = [meter for meter in pm.list_meters() if meter.name == "Copy"]
            assert (history(pm, copy.id), copy.charge_pct) == (history(pm, pack), None)

    def test_csv_for_a_spreadsheet(self, exported: Callable[..., str]) -> None:
        """Another delimiter, decimal commas, a zone, and more columns."""
        words = (
            "--delimiter",
            "semicolon",
            "--decimal",
            ",",
            "--time-zone",
            "Europe/Berlin",
            "--wide",
        )
        assert exported(*words).splitlines() == [
            "timestamp;voltage;current;charge_pct;wattage;device;meter",
            "2026-06-01T10:00:00.250000+02:00;12,5;1,5;80,5;18,75;dev-001;Pack",
            "2026-06-01T10:01:00.000000+02:00;12,0;;80,0;;dev-001;Pack",
            "2026-06-01T10:02:00.000000+02:00;;1,5e-05;79,0;;dev-001;Pack",
        ]

    def test_ndjson(self, exported: Callable[..., str], pack: str, run: Run) -> None:
        """An unknown value is null; a meter without a name goes by its id."""
        (first, *others) = map(json.loads, exported("--format", "ndjson").splitlines())
        assert first == {
            "timestamp": "2026-06-01T08:00:00.250000+00:00",
            "voltage": 12.5,
            "current": 1.5,
            "charge_pct": 80.5,
        }
        assert [row["current"] for row in others] == [None, 1.5e-05]
        wide = json.loads(exported("--format", "ndjson", "--wide").splitlines()[0])
        assert (wide["wattage"], wide["device"], wide["meter"]) == (18.75, "dev-001", "Pack")
        other = run("add-meter", "dev-001", "solar", "--json").json["id"]
        run("log", other, 1, 2)
        assert json.loads(run("export", other, "--format=ndjson", "--wide").out)["meter"] == other

    def test_influx(self, run: Run) -> None:
        """The line protocol, with its escapes, without what is unknown."""
        with PowerManager() as pm:
            pm.register_device("a b,c=d", "D")
            named = pm.add_meter("a b,c=d", "ups", name="x=1,\n y\\")
            plain = pm.add_meter("a b,c=d", "main")
            pm.log_many(
                [
                    (named.id, 12.5, 1.5, 80.5, 1_780_300_800.25),
                    (named.id, None, 1.5, 80.0, 1_780_300_860.0),
                    (plain.id, None, None, 80.0, 1_780_300_860.0),
                ]
            )
        assert run("export", named.id, "--format", "influx").out == (
            rf"power,device=a\ b\,c\=d,meter={named.id},name=x\=1\,\ \ y,type=ups "
            "voltage=12.5,current=1.5,charge_pct=80.5,wattage=18.75 1780300800250000000\n"
            rf"power,device=a\ b\,c\=d,meter={named.id},name=x\=1\,\ \ y,type=ups "
            "current=1.5,charge_pct=80.0 1780300860000000000\n"
        )
        assert run("export", plain.id, "--format", "influx").out == (
            rf"power,device=a\ b\,c\=d,meter={plain.id},type=main "
            "charge_pct=80.0 1780300860000000000\n"
        )

    @pytest.mark.parametrize(
        ("words", "option"),
        [
            ("--format ndjson --delimiter ;", "--delimiter"),
            ("--format influx --decimal ,", "--decimal"),
            ("--format influx --time-zone UTC", "--time-zone"),
            ("--format influx --wide", "--wide"),
        ],
    )
    def test_options_of_another_format(self, run: Run, pack: str, words: str, option: str) -> None:
        """They are refused, and no file is made."""
        outcome = run("export", pack, *words.split(), "--output", "out.txt")
        assert (outcome.code, outcome.out) == (1, "")
        assert f"power-manager: {option}: the format " in outcome.err
        assert not Path("out.txt").exists()

    def test_range_before_now(self, run: Run, pack: str) -> None:
        """--since takes a span before now."""
        run("log", pack, 12, 1, 50)
        run("log", pack, 12, 1, 50, "--timestamp", "-3d")
        assert len(run("export", pack, "--since", "-1d").out.splitlines()) == 2
        assert len(run("export", pack, "--until", "-1d").out.splitlines()) == 2
        assert len(run("export", pack, "--since", "-7d").out.splitlines()) == 3

    @pytest.mark.parametrize("number", range(12))
    def test_there_and_back(self, run: Run, number: int) -> None:
        """For any delimiter, decimal sign, zone and format the same readings come back."""
        chance = random.Random(number)

        def run_given(*words: object) -> Outcome:
            outcome = run(*words)
            assert outcome.code == 0, outcome.err
            return outcome

        self.round_trip(run_given, chance, number)

    def test_nothing_found_that_does_not_come_back(self, run: Run) -> None:
        """Hypothesis, where it is installed, searches for readings that change on the way."""
        numbers = itertools.count()

        def there_and_back(chance: random.Random) -> None:
            self.round_trip(run, chance, f"found {next(numbers)}")

        try:
            from hypothesis import given, settings, strategies
        except ImportError:  # requirements.txt does not ask for it; the gate does
            there_and_back(random.Random(99))
            return
        search = given(strategies.randoms(use_true_random=False))(there_and_back)
        settings(max_examples=25, deadline=None, derandomize=True, database=None)(search)()

    @staticmethod
    def round_trip(run: Run, chance: random.Random, number: object) -> None:
        """Export random readings and import them into another meter of the same file."""
        delimiter = chance.choice([",", ";", "\t", "|"])
        decimal = chance.choice([".", ","])
        zone = chance.choice(["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia", "local"])
        rows = [
            (
                chance.choice(
                    [None, 0.0, chance.uniform(-1e6, 1e6), round(chance.uniform(0, 60), 3)]
                ),
                chance.choice([None, 0.0, chance.uniform(-1e6, 1e6), chance.uniform(-1, 1) * 1e-9]),
                chance.choice([0.0, 100.0, round(chance.uniform(0, 100), 2)]),
                chance.randrange(0, 7_289_654_400 * SECOND) / SECOND,
            )
            for _ in range(chance.randrange(1, 30))
        ]
        powered = [row for row in rows if row[:2] != (None, None)]
        unknown = [(*row[:2], None, row[3] + 1e-6) for row in powered if chance.random() < 0.3]
        run("register", "dev-001", "Edge Node")
        for name in ("from", "to"):
            run("add-meter", "dev-001", "solar", "--name", f"{name} {number}")
        with PowerManager() as pm:
            ids = {meter.name: meter.id for meter in pm.list_meters()}
            source, target = ids[f"from {number}"], ids[f"to {number}"]
            pm.log_many([(source, *row) for row in rows])
            pm.update_meter(source, charge_pct=None)
            pm.log_many([(source, *row) for row in unknown], live=True)
        words = ["--time-zone", zone, *(["--wide"] if chance.random() < 0.5 else [])]
        if chance.random() < 0.3:
            words += ["--format", "ndjson"]
            options = []
        else:
            words += ["--delimiter", delimiter, "--decimal", decimal]
            # 1,234 in a file with commas is asked about.
            options = ["--decimal", ","] if (delimiter, decimal) == (",", ",") else []
        run("export", source, *words, "--output", "out.txt")
        run("import", target, "out.txt", "--unknown-charge", *options)
        with PowerManager() as pm:
            assert history(pm, target) == history(pm, source)


class TestNewCommands(CommandLine):
    """Updating, deleting and restoring on the command line."""

    @pytest.fixture
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """Answer on a terminal."""

        def answer(text: str) -> None:
            stream = io.StringIO(text)
            monkeypatch.setattr(stream, "isatty", lambda: True)
            monkeypatch.setattr(sys, "stdin", stream)

        return answer

    def test_update_device(self, run: Run, pack: str) -> None:
        """What is given changes; --unset takes a value away."""
        before = run("devices", "--json").json[0]
        thresholds = ("--low-battery-threshold", 40, "--critical-battery-threshold", 10)
        updated = run("update-device", "dev-001", "--target-wh", 99, *thresholds, "--json").json
        assert updated == {
            **before,
            "target_wh": 99.0,
            "low_battery_threshold": 40.0,
            "critical_battery_threshold": 10.0,
        }
        values = ("--name", "Renamed", "--unset", "target-wh")
        updated = run("update-device", "dev-001", *values, "--json").json
        assert (updated["name"], updated["target_wh"]) == ("Renamed", None)
        assert updated["low_battery_threshold"] == 40.0
        assert run("devices", "--json").json == [updated]

    @pytest.mark.parametrize(
        ("text", "charge"), [("unknown", None), ("0", 0.0), ("37.5", 37.5), ("100", 100.0)]
    )
    def test_add_meter_of_some_charge(self, run: Run, text: str, charge: float | None) -> None:
        """--charge is what it has until a reading brings one; without it that is 100 %."""
        run("register", "dev-001", "Edge Node")
        added = run("add-meter", "dev-001", "battery", "--charge", text, "--json").json
        assert added["charge_pct"] == charge
        assert run("add-meter", "dev-001", "ups", "--json").json["charge_pct"] == 100.0

    @pytest.mark.parametrize("text", ["-1", "101", "nan", "1_0", "Unknown", ""])
    def test_charge_that_is_none(
        self, run: Run, text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Another --charge is a usage error that says what it may be."""
        run("register", "dev-001", "Edge Node")
        with pytest.raises(SystemExit) as caught:
            run("add-meter", "dev-001", "battery", f"--charge={text}")
        expected = f"expected per cent from 0 to 100, or unknown, got {text!r}"
        assert (caught.value.code, expected in capsys.readouterr().err) == (2, True)
        assert run("meters", "--json").json == []

    def test_forget_charge(self, run: Run, pack: str) -> None:
        """It is unknown until a reading brings one, and shown so everywhere."""
        run("log", pack, 3.7, 1, 15)
        forgotten = run("update-meter", "dev-001/Pack", "--forget-charge", "--json").json
        assert (forgotten["charge_pct"], forgotten["alert_level"]) == (None, "low")
        (meter,) = run("meters", "--json").json
        assert (meter["charge_pct"], meter["state"]) == (None, "unknown")
        (line,) = [line for line in run("meters").out.splitlines() if "Pack" in line]
        assert line.split()[1:4] == ["battery", "unknown", "-"]
        status = run("status").out
        assert re.search(r"Pack +battery unknown +- ", status)
        assert "! Pack: battery low when its charge was last known\n" in status
        assert run("log", pack, 3.7, 1, "--json").json["charge_pct"] is None
        run("prune", 0)
        assert run("check").code == 0

    def test_shown_without_any_charge(self, run: Run) -> None:
        """Tables, status and report of a pack whose charge is not measured show a dash."""
        run("register", "dev-001", "Edge Node")
        run("add-meter", "dev-001", "battery", "--name", "Pack", "--charge", "unknown")
        run("log", "dev-001/Pack", 12, 1)
        assert re.search(r"Pack +battery +unknown +- ", run("meters").out)
        assert re.search(r"Pack +battery unknown +- ", run("status").out)
        assert re.search(r"dev-001 .* - +- ", run("budget").out)
        assert re.search(r"Pack +battery +unknown .* - ", run("report", "dev-001", "--text").out)
        assert " - " in run("stats", "dev-001/Pack").out.splitlines()[1]
        run("log", "dev-001/Pack", 12, 1, 50)
        assert "50%" in run("stats", "dev-001/Pack").out

    def test_update_meter(self, run: Run, pack: str) -> None:
        """Name, capacity and whether it counts; the meter is named as in all commands."""
        values = ("--capacity-wh", 80, "--inactive")
        updated = run("update-meter", "dev-001/Pack", *values, "--json").json
        assert (updated["capacity_wh"], updated["active"], updated["name"]) == (80.0, False, "Pack")
        updated = run("update-meter", pack, "--active", "--name", "Cells", "--json").json
        assert (updated["capacity_wh"], updated["active"], updated["name"]) == (80.0, True, "Cells")
        (shown,) = run("meters", "--json").json
        assert shown == {**updated, "wattage": 0.0, "state": "charging"}
        run("update-meter", pack, "--inactive")
        run("log", pack, 3.7, 0.5)
        assert run("meters", "--json").json[0]["active"] is True

    @pytest.mark.parametrize(
        "words",
        [
            ["delete-readings", "dev-001/Pack"],
            ["delete-meter", "dev-001/Pack"],
            ["delete-device", "dev-001"],
        ],
        ids=lambda words: words[0],
    )
    def test_asks_before_deleting(
        self, run: Run, pack: str, terminal: Callable[[str], None], words: list[str]
    ) -> None:
        """Only a yes on a terminal, or --yes, deletes; otherwise nothing changes."""
        database = Path("power_manager.db")
        run("log", pack, 3.7, 0.5, 80)
        before = reread(database)
        for answer in ("\n", "n\n", "no\n", "", "yeah?\n"):
            terminal(answer)
            outcome = run(*words)
            assert (outcome.code, outcome.out) == (1, "")
            assert "[y/N]" in outcome.err
            assert "nothing was changed" in outcome.err
        assert reread(database) == before
        terminal("y\n")
        outcome = run(*words)
        assert (outcome.code, "deleted" in outcome.out) == (0, True)
        assert reread(database) != before

    @pytest.mark.parametrize("stdin_text", ["y\n", None])
    @pytest.mark.parametrize("command", ["delete-readings", "delete-meter", "delete-device"])
    def test_without_a_terminal(
        self,
        run: Run,
        pack: str,
        monkeypatch: pytest.MonkeyPatch,
        command: str,
        stdin_text: str | None,
    ) -> None:
        """It deletes nothing and says what to give; with --yes it deletes."""
        monkeypatch.setattr(sys, "stdin", None if stdin_text is None else io.StringIO(stdin_text))
        what = "dev-001" if command == "delete-device" else pack
        run("log", pack, 3.7, 0.5, 80)
        before = reread(Path("power_manager.db"))
        outcome = run(command, what)
        assert (outcome.code, outcome.out) == (1, "")
        assert "--yes" in outcome.err
        assert reread(Path("power_manager.db")) == before
        assert run(command, what, "--yes").code == 0
        assert reread(Path("power_manager.db")) != before

    def test_delete_readings(self, run: Run, pack: str) -> None:
        """A range of a meter's readings goes, and is counted."""
        for second in range(6):
            run("log", pack, 3.7, second, 80, "--timestamp", NOW + second)
        deleted = run(
            "delete-readings", pack, "--since", NOW + 1, "--until", "2025-06-16T12:30:04Z", "--yes"
        )
        assert deleted == (0, "3 readings deleted\n", "")
        with PowerManager() as pm:
            assert [row[2] for row in history(pm, pack)] == [0.0, 4.0, 5.0]

    def test_delete_what_is_not_there(self, run: Run, pack: str) -> None:
        """It is an error, in the words of the command line."""
        for words in (["delete-device", "absent"], ["delete-meter", "absent"]):
            outcome = run(*words, "--yes")
            assert (outcome.code, outcome.out) == (1, "")
            assert "'absent'" in outcome.err
            assert "()" not in outcome.err

    @pytest.mark.parametrize("present", ["whole", "missing", "damaged", "empty"])
    def test_restore(self, run: Run, pack: str, present: str) -> None:
        """A backup is put in place of the database, which may be missing or damaged."""
        database = Path("power_manager.db")
        run("log", pack, 3.7, 0.5, 80)
        run("backup", "backup.db")
        run("log", pack, 3.7, 0.6, 70)
        if present == "missing":
            database.unlink()
        elif present != "whole":
            database.write_bytes(b"damaged" * 1000 if present == "damaged" else b"")
        outcome = run("restore", "backup.db")
        assert (outcome.code, outcome.err) == (0, "")
        assert "backup.db" in outcome.out
        assert reread(database) == reread(Path("backup.db"))
        assert run("check") == (0, "ok\n", "")

    def test_restore_refused(self, run: Run, pack: str) -> None:
        """What is no backup is named, and the database stays as it is."""
        before = reread(Path("power_manager.db"))
        Path("notes.txt").write_text("not a backup\n" * 100)
        for name in ("notes.txt", "missing.db", "power_manager.db", "."):
            outcome = run("restore", name)
            assert (outcome.code, outcome.out) == (1, "")
            assert outcome.err.startswith("power-manager: ")
            assert outcome.err.count("\n") == 1
        assert reread(Path("power_manager.db")) == before

    @pytest.mark.parametrize("style", ["csv", "ndjson"])
    def test_export_is_private(self, run: Run, pack: str, style: str) -> None:
        """A new file belongs to its owner alone, whatever the umask."""
        before = os.umask(0o022)
        try:
            assert run("export", pack, "--format", style, "--output", "out.txt").code == 0
        finally:
            os.umask(before)
        assert stat.S_IMODE(Path("out.txt").stat().st_mode) == 0o600

    @pytest.mark.parametrize("style", ["csv", "ndjson"])
    def test_unknown_values_there_and_back(self, run: Run, pack: str, style: str) -> None:
        """Readings that lack volts or amperes are exported and imported as such."""
        with PowerManager() as pm:
            pm.log_many(
                [
                    (pack, None, 1.5, 50.0, NOW),
                    (pack, 12.0, None, 49.0, NOW + 1),
                    (pack, None, None, 48.0, NOW + 2),
                    (pack, 12.0, 1.5, 47.0, NOW + 3),
                ]
            )
            expected = history(pm, pack)
        assert run("export", pack, "--format", style, "--output", "out.txt").code == 0
        copy = run("add-meter", "dev-001", "battery", "--name", "Copy", "--json").json["id"]
        outcome = run("import", copy, "out.txt")
        assert outcome.code == 0
        assert "4 new readings" in outcome.out
        with PowerManager() as pm:
            assert history(pm, copy) == expected
        assert run("meters").code == 0
        assert run("stats", copy, "--days", 36500).code == 0

    def test_tables_of_unknown_values(self, run: Run, pack: str) -> None:
        """An hour without watts is shown with dashes."""
        with PowerManager() as pm:
            pm.log_power(pack, None, None, 50.0)
        (row,) = run("stats", pack).out.splitlines()[1:]
        assert row.split()[2:5] == ["-", "-", "-"]

    def test_output_that_cannot_show_a_name(self, tmp_path: Path) -> None:
        """A name in other letters never ends a command in a UnicodeEncodeError."""
        with PowerManager(tmp_path / "power_manager.db") as pm:
            pm.register_device("d", "Büro ☀ 北京")
            pm.add_meter("d", "battery", name="Akku ☀")
        for words in ("meters", "report d"):
            command = [sys.executable, str(MODULE), "--db", "power_manager.db", *words.split()]
            environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout

    def test_what_demo_tells_to_run_next(self, run: Run, tmp_path: Path) -> None:
        """It runs as it is printed, from any directory."""
        told = run("demo").err
        command = told.partition("run: ")[2].strip()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        done = subprocess.run(
            command, shell=True, cwd=elsewhere, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "demo-001" in done.stdout

    def test_device_null(self, run: Run) -> None:
        """/dev/null is not a disk that failed."""
        for words in (["devices"], ["register", "d", "D"], ["backup", "b.db"]):
            outcome = run("--db", os.devnull, *words)
            assert (outcome.code, outcome.out) == (1, "")
            assert "not a regular file" in outcome.err
            assert "disk failed" not in outcome.err


# --- Showing ----------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says of itself that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        """Whether it is one: yes."""
        return True


def with_colour_names(text: str) -> str:
    """The text with <red> and <> for what begins and ends a colour."""
    names = {code: name for name, code in power_manager._COLOURS.items()}
    return re.sub(r"\x1b\[(\d+)m", lambda found: f"<{names.get(found[1], '')}>", text)


def fill_house(path: Path) -> None:
    """Four devices as people have them, up to NOW: at work, low, empty, and with old readings."""
    with PowerManager(path, clock=Clock()) as pm:
        pm.register_device("house", "House on the hill", target_wh=9000.0)
        grid = pm.add_meter("house", "main", name="Grid").id
        roof = pm.add_meter("house", "solar", name="Roof, south-west side").id
        pack = pm.add_meter("house", "battery", 10_000.0, "House battery").id
        ups = pm.add_meter("house", "ups", 600.0).id
        pm.register_device("gate", "Garden gate 東京")
        cell = pm.add_meter("gate", "battery", 20.0, "電池パック三号機").id
        panel = pm.add_meter("gate", "solar", name="Panel").id
        pm.add_meter("gate", "battery", 5.0, "Spare")
        pm.register_device("a-rather-long-id-of-a-device-without-meters", "Nothing measured yet")
        pm.register_device("late", "Late \x1b[31mnode")
        old = pm.add_meter("late", "battery", 50.0, "Old").id
        ahead = pm.add_meter("late", "main", name="Ahead").id
        off = pm.add_meter("late", "solar", name="Off").id
        gauge = pm.add_meter("late", "battery", 30.0, "Gauge").id
        rows: list[tuple[Any, ...]] = []
        for minute in range(0, 40 * 60, 15):
            when = NOW - 40 * 3600 + 60 * minute + 897
            sun = max(0.0, math.sin((when % 86400 / 3600 - 5) / 14 * math.pi))
            load = 400 + 900 * (17 < when % 86400 / 3600 < 22)
            stored = max(load - 2500 * sun, -1000)
            rows += [
                (grid, 231.0, (load - 2500 * sun - stored) / 231, None, when),
                (roof, 380.0, 2500 * sun / 380, None, when),
                (pack, 51.2, stored / 51.2, 60 - 30 * math.cos(when % 86400 / 13751), when),
                (ups, 230.0, 0.2, 98.0, when),
                (cell, 3.42, 1.9, 28 - minute / 240, when),
                (panel, 18.1 if sun else 0.3, 0.4 * sun, None, when),
                (off, 1.0, 1.0, None, when),
            ]
            if minute < 35 * 60:
                rows.append((old, 12.6, 0.8, 40.0, when))
        rows += [(ahead, 230.0, 0.5, None, NOW + 7500), (gauge, None, None, 55.0, NOW - 20)]
        pm.log_many(rows)
        pm.update_meter(off, active=False)
        pm.trigger_event("gate", "charge_start", 1.5)
        pm.trigger_event("house", "restore", note="the mains are back")


@pytest.fixture(scope="module")
def filled_house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the file once; tests work on copies of it."""
    path = tmp_path_factory.mktemp("house") / "house.db"
    fill_house(path)
    return path


Show = Callable[..., str]


class Showing(CommandLine):
    """Commands on that house, at NOW, in a zone two hours east of Greenwich."""

    @pytest.fixture(autouse=True)
    def _zone(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
            patch.delenv("NO_COLOR", raising=False)
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", "80")
            time.tzset()
            yield
        time.tzset()

    @pytest.fixture
    def house(self, filled_house: Path, tmp_path: Path) -> Path:
        """Copy the house to ./power_manager.db."""
        return Path(shutil.copy(filled_house, tmp_path / "power_manager.db"))

    @pytest.fixture
    def show(self, run: Run, house: Path, monkeypatch: pytest.MonkeyPatch) -> Show:
        """Run a command that succeeds, at a width of the screen, and return what it prints."""

        def run_one(line: str, width: int = 80) -> str:
            monkeypatch.setenv("COLUMNS", str(width))
            outcome = run(*shlex.split(line), clock=Clock())
            assert (outcome.code, outcome.err) == (0, "")
            return outcome.out

        return run_one


# What is printed, line by line; a line that is wider than this file goes on after its \.
GOLDEN = {
    ("status", 80): """\
meter        type    state    charge          W     V     A  left 24 h      read

House on the hill  house                  today 15.4 kWh out, 9.53 in, 5.91 used
  Grid       main    normal               -1084   231 -4.69       ▄█████▅▁    3s
  Roof, sou… solar   charging              2484   380  6.54       ▇▃▁▁▁▂▆█    3s
  House bat… battery charging ████▌  90%  -1000  51.2 -19.5       ▁▅█▅▅▄▁▁    3s
  ups        ups     full     ████▉  98%   46.0   230  0.20       ████████    3s

Garden gate 東京  gate              1h19m left, today 130 Wh out, 0 in, 130 used
  電池パッ…  battery low      ▉░░░░  18%   6.50  3.42  1.90   33m ████████    3s
  Panel      solar   charging              7.19  18.1  0.40       ▇▃▁▁▁▂▆█    3s
  Spare      battery  no reading yet
  ! 電池パック三号機: battery low, 18.1 % left

Nothing measured yet  a-rather-long-id-of-a-device-without-meters
  no meters yet: the command `add-meter` adds one

Late \\x1b[31mnode  late                         today 110 Wh out, 0 in, 110 used
  Old        battery normal   ██░░░  40%   10.1  12.6  0.80       ███████     5h
  Ahead      main    normal                 115   230  0.50                  +2h
  Off        solar   inactive              1.00  1.00  1.00       ████████    3s
  Gauge      battery normal   ██▊░░  55%      -     -     -                  20s
  ! Old: stale, no reading for 5 h
  ! Ahead: its newest reading is dated 2 h 5 min after now
  ! Gauge: power unknown, the reading lacks volts or amperes
""",
    ("report house --text --days 2", 80): """\
House on the hill  house                              2 days to 2025-06-16 14:30

used              21.6 kWh  12.8 kWh a day, over 1d16h
from the sun      34.7 kWh
into the mains    9.96 kWh
from the UPS      1.83 kWh
out of batteries  13.1 kWh
into batteries    16.1 kWh
self-sufficient      100 %

                used kWh  out kWh  in kWh  █ used  ░ in
Sat 2025-06-14      1.62     1.62       0  ██
Sun 2025-06-15      14.1     30.7    16.6  █████████████████░░░░░░░░░░░░░░░░░░░░
Mon 2025-06-16      5.91     15.4    9.53  ███████░░░░░░░░░░░░

meter            type     state     mean W    min   max  charge  out kWh  in kWh
Grid             main     normal      -253  -1100     0       -        0    9.96
Roof, south-we…  solar    charging     874      0  2500       -     34.7       0
House battery    battery  charging   -75.5  -1000  1300  30-90%     13.1    16.1
ups              ups      full        46.0   46.0  46.0     98%     1.83       0

time                 event    note
2025-06-16 14:30:00  restore  the mains are back
""",
    ("meters", 80): """\
meter               type     state     charge      W     V      A  Wh full  read
house/Grid          main     normal         -  -1084   231  -4.69        -    3s
house/Roof, south…  solar    charging       -   2484   380   6.54        -    3s
house/House batte…  battery  charging     90%  -1000  51.2  -19.5    10000    3s
house/ups           ups      full         98%   46.0   230   0.20      600    3s
gate/電池パック三…  battery  low          18%   6.50  3.42   1.90     20.0    3s
gate/Panel          solar    charging       -   7.19  18.1   0.40        -    3s
gate/Spare          battery  no data        -      -     -      -     5.00     -
late/Old            battery  normal       40%   10.1  12.6   0.80     50.0    5h
late/Ahead          main     normal         -    115   230   0.50        -   +2h
late/Off            solar    inactive       -   1.00  1.00   1.00        -    3s
late/Gauge          battery  normal       55%      -     -      -     30.0   20s
""",
    ("devices", 80): """\
id                name              meters  target Wh  shutdown W  low %  crit %
house             House on the hi…       4       9000        3.00     20       5
gate              Garden gate 東京       3          -        3.00     20       5
a-rather-long-i…  Nothing measure…       0          -        3.00     20       5
late              Late \\x1b[31mno…       4          -        3.00     20       5
""",
    ("stats house/battery --days 1", 80): """\
hour              mean W                  min    max  charge  out Wh  in Wh  n
2025-06-15 14:00   -1000  █████         -1000  -1000  89-90%       0   1000  4
2025-06-15 15:00   -1000  █████         -1000  -1000  86-88%       0   1000  4
2025-06-15 16:00   -1000  █████         -1000  -1000  81-85%       0   1000  4
2025-06-15 17:00   -1000  █████         -1000  -1000  75-80%       0   1000  4
2025-06-15 18:00    -856  ▐████         -1000   -685  68-73%       0    896  4
2025-06-15 19:00     542       ███        343    743  60-66%     406   42.8  4
2025-06-15 20:00    1090       ██████     881   1300  52-58%    1020      0  4
2025-06-15 21:00    1300       ███████   1300   1300  45-50%    1300      0  4
2025-06-15 22:00    1300       ███████   1300   1300  39-43%    1300      0  4
2025-06-15 23:00    1300       ███████   1300   1300  34-37%    1300      0  4
2025-06-16 00:00     400       ██▌        400    400  31-33%     512      0  4
2025-06-16 01:00     400       ██▌        400    400  30-31%     400      0  4
2025-06-16 02:00     400       ██▌        400    400  30-31%     400      0  4
2025-06-16 03:00     400       ██▌        400    400  32-34%     400      0  4
2025-06-16 04:00     400       ██▌        400    400  35-39%     400      0  4
2025-06-16 05:00     400       ██▌        400    400  40-45%     400      0  4
2025-06-16 06:00     400       ██▌        400    400  47-52%     400      0  4
2025-06-16 07:00    51.7       ▌         -156    260  54-60%     143   21.8  4
2025-06-16 08:00    -489    ▐██          -684   -292  62-68%       0    423  4
2025-06-16 09:00    -935  ▐████         -1000   -809  70-75%       0    895  4
2025-06-16 10:00   -1000  █████         -1000  -1000  77-81%       0   1000  4
2025-06-16 11:00   -1000  █████         -1000  -1000  83-86%       0   1000  4
2025-06-16 12:00   -1000  █████         -1000  -1000  87-89%       0   1000  4
2025-06-16 13:00   -1000  █████         -1000  -1000  89-90%       0   1000  4
2025-06-16 14:00   -1000  █████         -1000  -1000     90%       0    500  2
""",
    ("stats house/battery --bucket day --days 2", 80): """\
UTC day     mean W                  min   max  charge  out kWh  in kWh   n
2025-06-14     786            █▅    400  1300  30-40%     2.54       0  14
2025-06-15   -79.0  ▅▅▅▂▁▁▁▁▄██▅  -1000  1300  30-90%     8.38    10.3  96
2025-06-16    -310  ▅▅▅▂▁▁▁       -1000   400  30-90%     2.14    5.84  50
""",
    ("events", 80): """\
time                 device  event         note
2025-06-16 14:30:00  house   restore       the mains are back
2025-06-16 14:30:00  gate    charge_start  1.50
2025-06-16 06:44:57  gate    discharge     電池パック三号機: 20 % charge, thres…
""",
    ("budget", 80): """\
device       load W  solar W  net W  charge   left  24 h Wh  target  verdict
house             0     2484   2484     90%      -    14000    9000  over target
gate           6.50     7.19   0.70     59%  1h19m      217       -  ok
a-rather-l…       0        0      0       -      -        -       -  inactive
late            125        0   -125     48%      -      213       -  stale 5h
""",
    ("status", 120): """\
meter                    type     state     charge           W      V      A   left  24 h       \
                read

House on the hill  house                                                      today 15.4 kWh out\
, 9.53 in, 5.91 used
  Grid                   main     normal                 -1084    231  -4.69         ▂▄▆████████\
████████▅▃▂▁▁     3s
  Roof, south-west side  solar    charging                2484    380   6.54         █▇▆▅▃▂▁▁▁▁▁\
▁▁▁▁▁▂▄▅▆▇███     3s
  House battery          battery  charging  ████▌  90%   -1000   51.2  -19.5         ▁▁▁▁▆▇███▅▅\
▅▅▅▅▅▄▃▁▁▁▁▁▁     3s
  ups                    ups      full      ████▉  98%    46.0    230   0.20         ███████████\
█████████████     3s

Garden gate 東京  gate                                                  1h19m left, today 130 Wh\
 out, 0 in, 130 used
  電池パック三号機       battery  low       ▉░░░░  18%    6.50   3.42   1.90    33m  ███████████\
█████████████     3s
  Panel                  solar    charging                7.19   18.1   0.40         █▇▆▅▃▂▁▁▁▁▁\
▁▁▁▁▁▂▄▅▆▇███     3s
  Spare                  battery  no reading yet
  ! 電池パック三号機: battery low, 18.1 % left

Nothing measured yet  a-rather-long-id-of-a-device-without-meters
  no meters yet: the command `add-meter` adds one

Late \\x1b[31mnode  late                                                             today 110 W\
h out, 0 in, 110 used
  Old                    battery  normal    ██░░░  40%    10.1   12.6   0.80         ███████████\
████████          5h
  Ahead                  main     normal                   115    230   0.50                    \
                 +2h
  Off                    solar    inactive                1.00   1.00   1.00         ███████████\
█████████████     3s
  Gauge                  battery  normal    ██▊░░  55%       -      -      -                    \
                 20s
  ! Old: stale, no reading for 5 h
  ! Ahead: its newest reading is dated 2 h 5 min after now
  ! Gauge: power unknown, the reading lacks volts or amperes
""",
    ("report house --text --days 2", 120): """\
House on the hill  house                                                                      2 \
days to 2025-06-16 14:30

used              21.6 kWh  12.8 kWh a day, over 1d16h
from the sun      34.7 kWh
into the mains    9.96 kWh
from the UPS      1.83 kWh
out of batteries  13.1 kWh
into batteries    16.1 kWh
self-sufficient      100 %

                used kWh  out kWh  in kWh  █ used  ░ in
Sat 2025-06-14      1.62     1.62       0  ███
Sun 2025-06-15      14.1     30.7    16.6  ████████████████████████████░░░░░░░░░░░░░░░░░░░░░░░░░\
░░░░░░░
Mon 2025-06-16      5.91     15.4    9.53  ████████████░░░░░░░░░░░░░░░░░░

meter                  type     state     mean W    min   max  charge  out kWh  in kWh
Grid                   main     normal      -253  -1100     0       -        0    9.96
Roof, south-west side  solar    charging     874      0  2500       -     34.7       0
House battery          battery  charging   -75.5  -1000  1300  30-90%     13.1    16.1
ups                    ups      full        46.0   46.0  46.0     98%     1.83       0

time                 event    note
2025-06-16 14:30:00  restore  the mains are back
""",
    ("meters", 120): """\
meter                        type     state     charge      W     V      A  Wh full  read
house/Grid                   main     normal         -  -1084   231  -4.69        -    3s
house/Roof, south-west side  solar    charging       -   2484   380   6.54        -    3s
house/House battery          battery  charging     90%  -1000  51.2  -19.5    10000    3s
house/ups                    ups      full         98%   46.0   230   0.20      600    3s
gate/電池パック三号機        battery  low          18%   6.50  3.42   1.90     20.0    3s
gate/Panel                   solar    charging       -   7.19  18.1   0.40        -    3s
gate/Spare                   battery  no data        -      -     -      -     5.00     -
late/Old                     battery  normal       40%   10.1  12.6   0.80     50.0    5h
late/Ahead                   main     normal         -    115   230   0.50        -   +2h
late/Off                     solar    inactive       -   1.00  1.00   1.00        -    3s
late/Gauge                   battery  normal       55%      -     -      -     30.0   20s
""",
    ("stats house/battery --bucket day --days 2", 120): """\
UTC day     mean W                              min   max  charge  out kWh  in kWh   n
2025-06-14     786                      ██▅▅    400  1300  30-40%     2.54       0  14
2025-06-15   -79.0  ▅▅▅▅▅▄▃▁▁▁▁▁▁▁▁▁▁▆▇███▅▅  -1000  1300  30-90%     8.38    10.3  96
2025-06-16    -310  ▅▅▅▅▅▄▃▁▁▁▁▁▁             -1000   400  30-90%     2.14    5.84  50
""",
    ("events", 120): """\
time                 device  event         note
2025-06-16 14:30:00  house   restore       the mains are back
2025-06-16 14:30:00  gate    charge_start  1.50
2025-06-16 06:44:57  gate    discharge     電池パック三号機: 20 % charge, threshold 20 %
""",
    ("budget", 120): """\
device                                       load W  solar W  net W  charge   left  24 h Wh  tar\
get  verdict
house                                             0     2484   2484     90%      -    14000    9\
000  over target
gate                                           6.50     7.19   0.70     59%  1h19m      217     \
  -  ok
a-rather-long-id-of-a-device-without-meters       0        0      0       -      -        -     \
  -  inactive
late                                            125        0   -125     48%      -      213     \
  -  stale 5h
""",
}
DEMO = """\
Solar-powered gateway  demo-001                       7 days to 2025-06-16 14:30

used              940 Wh  134 Wh a day
from the sun      940 Wh
out of batteries  514 Wh
into batteries    514 Wh
self-sufficient    100 %

                used Wh  out Wh  in Wh  █ used  ░ in
Mon 2025-06-09     53.4    53.4      0  ████████
Tue 2025-06-10      134     206   72.7  █████████████████████░░░░░░░░░░░░
Wed 2025-06-11      134     206   71.8  █████████████████████░░░░░░░░░░░░
Thu 2025-06-12      134     172   38.3  █████████████████████░░░░░░
Fri 2025-06-13      134     251    117  █████████████████████░░░░░░░░░░░░░░░░░░░
Sat 2025-06-14      134     205   70.6  █████████████████████░░░░░░░░░░░░
Sun 2025-06-15      135     206   71.9  █████████████████████░░░░░░░░░░░░
Mon 2025-06-16     81.6     154   72.1  █████████████░░░░░░░░░░░

meter  type     state     mean W    min   max  charge  out Wh  in Wh
Panel  solar    charging    5.59      0  38.5       -     940      0
Pack   battery  full        0.00  -33.8  8.30  3-100%     514    514

time                 event        note
2025-06-13 05:49:30  low_battery  Pack: 5 % charge, threshold 5 %
2025-06-13 02:35:30  discharge    Pack: 20 % charge, threshold 20 %
"""
DEMO_STATUS = """\
meter        type    state    charge          W     V     A  left 24 h      read

Solar-powered gateway  demo-001             today 154 Wh out, 72.1 in, 81.6 used
  Panel      solar   charging              4.79  18.0  0.27       ▂▁▁▁▁▄█▃   30s
  Pack       battery full     █████ 100%      0  12.6     0       ▇████▅▁▆   30s
"""


class TestShownToAPerson(Showing):
    """What the commands that show print, on screens of 80 and 120 columns."""

    @pytest.mark.parametrize(("line", "width"), GOLDEN)
    def test_output(self, show: Show, line: str, width: int) -> None:
        """It is printed to the letter, and no line is wider than the screen."""
        shown = show(line, width)
        assert shown == GOLDEN[line, width]
        assert all(power_manager.text_width(row) <= width for row in shown.splitlines())

    @pytest.mark.parametrize("line", dict.fromkeys(line for line, _ in GOLDEN))
    @pytest.mark.parametrize("width", [40, 79, 101])
    def test_any_width(self, show: Show, line: str, width: int) -> None:
        """On any screen every line of text fits; tables of many numbers need 80 columns."""
        rows = show(line, width).splitlines()
        most = max(width, 80) if not line.startswith("status") else width
        assert max(power_manager.text_width(row) for row in rows) <= most

    def test_narrow_status(self, show: Show) -> None:
        """A narrow screen leaves out columns, not figures; names are cut, and keep their start."""
        assert show("status gate", 40) == (
            "meter              state         W  read\n"
            "\n"
            "Garden gate 東京  gate\n"
            "1h19m left, today 130 Wh out, 0 in, 130…\n"
            "  電池パック三号機 low        6.50    3s\n"
            "  Panel            charging   7.19    3s\n"
            "  Spare             no reading yet\n"
            "  ! 電池パック三号機: battery low, 18.1…\n"
        )

    def test_wide_status(self, show: Show) -> None:
        """A wide screen has a column for each hour, longer bars and longer names."""
        line = show("status house", 150).splitlines()[5]
        assert line == (
            "  House battery          battery  charging  █████████░  90%   -1000   51.2  -19.5"
            "         ▁▁▁▁▆▇███▅▅▅▅▅▅▅▄▃▁▁▁▁▁▁     3s"
        )

    def test_colours(self, show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a terminal, what is good, low, old or off has its colour."""
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        assert power_manager.main(["status", "gate", "late"], clock=Clock()) == 0
        assert with_colour_names(terminal.getvalue()) == (
            "<dim>meter        type    state    charge          W     V     A  left 24 h      "
            "read<>\n"
            "\n"
            "<bold>Garden gate 東京<>  <dim>gate<>              "
            "1h19m left, today 130 Wh out, 0 in, 130 used\n"
            "  電池パッ…  battery <yellow>low     <> <yellow>▉░░░░  18%<>   6.50  3.42  1.90   33m "
            "<blue>████████<>    3s\n"
            "  Panel      solar   <green>charging<>              7.19  18.1  0.40       "
            "<blue>▇▃▁▁▁▂▆█<>    3s\n"
            "<dim>  Spare     <> <dim>battery<> <dim> no reading yet<>\n"
            "<yellow>  ! 電池パック三号機: battery low, 18.1 % left<>\n"
            "\n"
            r"<bold>Late \x1b[31mnode<>  <dim>late<>                         "
            "today 110 Wh out, 0 in, 110 used\n"
            "<dim>  Old       <> <dim>battery<> <dim>normal  <> <dim>██░░░  40%<> <dim>  10.1<> "
            "<dim> 12.6<> <dim> 0.80<>       <dim>███████ <> <yellow>   5h<>\n"
            "  Ahead      main    normal                 115   230  0.50       "
            "         <yellow>  +2h<>\n"
            "<dim>  Off       <> <dim>solar  <> <dim>inactive<>            <dim>  1.00<> "
            "<dim> 1.00<> <dim> 1.00<>       <dim>████████<>    3s\n"
            "  Gauge      battery normal   <green>██▊░░  55%<>      -     -     -       "
            "           20s\n"
            "<yellow>  ! Old: stale, no reading for 5 h<>\n"
            "<yellow>  ! Ahead: its newest reading is dated 2 h 5 min after now<>\n"
            "<yellow>  ! Gauge: power unknown, the reading lacks volts or amperes<>\n"
        )

    @pytest.mark.parametrize(
        ("line", "row"),
        [
            ("meters late", "<bold>late/Old  <>  battery  normal       40%  10.1  12.6  0.80"),
            ("meters late", "     50.0  <yellow>  5h<>"),
            ("meters late", "        -  <yellow> +2h<>"),
            ("meters late", "<dim>inactive<>       -  1.00  1.00  1.00        -    3s"),
            ("meters gate", "  <yellow>low     <>     18%"),
            ("budget", "    9000  <yellow>over target<>"),
            ("budget", "       -  <green>ok<>"),
            ("events", "  <yellow>discharge   <>  "),
            ("events", "  <green>restore     <>  the mains are back"),
            ("stats house/Grid --days 0.02", "  <blue>"),
            ("devices", "  <bold>House on the hi…<>  "),
            ("report gate --text", "<dim>used            <>  <bold>"),
            ("report gate --text", "  <green>█"),
        ],
    )
    def test_colour(
        self, house: Path, monkeypatch: pytest.MonkeyPatch, line: str, row: str
    ) -> None:
        """What a person looks for stands out in the other commands too."""
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        assert power_manager.main(shlex.split(line), clock=Clock()) == 0
        assert row in with_colour_names(terminal.getvalue())

    @pytest.mark.parametrize("line", dict.fromkeys(line for line, _ in GOLDEN))
    def test_no_colour(
        self, house: Path, monkeypatch: pytest.MonkeyPatch, show: Show, line: str
    ) -> None:
        """With NO_COLOR a terminal shows the same as a pipe."""
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setenv("NO_COLOR", "1")
            patch.setattr(sys, "stdout", terminal)
            assert power_manager.main(shlex.split(line), clock=Clock()) == 0
        assert terminal.getvalue() == show(line)

    @pytest.mark.parametrize("line", ["status", "report house --text", "stats house/Grid"])
    @pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
    @pytest.mark.usefixtures("house")
    def test_output_without_blocks(
        self, monkeypatch: pytest.MonkeyPatch, line: str, encoding: str
    ) -> None:
        """Where the encoding has no blocks, ASCII stands for them; other letters are escaped."""
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            assert power_manager.main(shlex.split(line), clock=Clock()) == 0
        shown = raw.getvalue().decode(encoding)
        assert shown.isascii()
        if line == "status":
            assert r"  Gauge      battery normal   ###--  55%      -     -     -" in shown
            assert "  Roof, sou~ solar   charging              2484   380  6.54       #-___.*@" in (
                shown
            )

    def test_utc(self, show: Show) -> None:
        """--utc shows UTC, and takes its day."""
        assert "14:30:00" in show("events house")
        assert show("events house --utc").startswith("UTC ")
        assert "12:30:00" in show("events house --utc")
        assert "to 2025-06-16 12:30 UTC\n" in show("report house --text --utc")
        assert "UTC hour" in show("stats house/Grid --days 1 --utc")
        assert show("status house --utc") != show("status house")

    @pytest.mark.parametrize(
        ("line", "text"),
        [
            ("status", "no devices yet: the command `register` makes one"),
            ("devices", "no devices yet: the command `register` makes one"),
            ("meters", "no meters yet: the command `add-meter` adds one"),
            ("budget", "no devices yet: the command `register` makes one"),
            ("events", "no events"),
            ("devices --wide", "none"),
        ],
    )
    def test_empty_file(self, run: Run, line: str, text: str) -> None:
        """What is not there yet is said, with what makes it."""
        PowerManager("power_manager.db").close()
        assert run(*line.split()) == (0, f"{text}\n", "")

    def test_device_without_meters(self, show: Show) -> None:
        """Its report says so, and so does its list of meters."""
        device = "a-rather-long-id-of-a-device-without-meters"
        assert show(f"report {device} --text") == (
            f"Nothing measured yet  {device}\n"
            "                                                      7 days to 2025-06-16 14:30\n"
            "\n"
            "no meters yet: the command `add-meter` adds one\n"
            "\n"
            "no events\n"
        )
        assert show(f"meters {device}") == "no meters yet: the command `add-meter` adds one\n"
        assert show(f"status {device}") == (
            f"Nothing measured yet  {device}\n  no meters yet: the command `add-meter` adds one\n"
        )

    def test_budget_of_an_unknown_device(self, run: Run, house: Path) -> None:
        """It has a line in the table and one on standard error, and the exit code is 1."""
        outcome = run("budget", "absent", clock=Clock())
        assert (outcome.code, outcome.err) == (
            1,
            "power-manager: no device has the id 'absent': make it with the command `register`\n",
        )
        budget = run("budget", "absent", "--json")
        assert (budget.code, json.loads(budget.out)) == (
            1,
            {"absent": {"error": outcome.err.strip().removeprefix("power-manager: ")}},
        )
        assert outcome.out.splitlines()[1].split() == ["absent", *["-"] * 7, "no", "such", "id"]

    def test_budget_verdicts(self, run: Run) -> None:
        """A supply below the threshold, and a target that is kept."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("weak", "Weak", shutdown_threshold=5.0)
            pm.log_power(pm.add_meter("weak", "main").id, 1.0, 1.0)
        assert run("budget", clock=Clock()).out.splitlines()[1].endswith("  low supply")

    def test_low_supply_is_the_more_urgent_verdict(self, run: Run) -> None:
        """A device that is over its target too is told by what may end it now."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("weak", "Weak", shutdown_threshold=5.0, target_wh=1.0)
            meter = pm.add_meter("weak", "main").id
            pm.log_many(
                (meter, 12.0, amperes, None, NOW - age) for age, amperes in [(600, 5), (0, 0)]
            )
        assert run("budget", clock=Clock()).out.splitlines()[1].endswith("  low supply")

    @pytest.mark.parametrize(
        ("ages", "cells"),
        [
            ([], "0 0 0 - - - 100 no readings"),
            ([9 * 86400], "60.0 0 -60.0 - - - 100 stale 9d"),
            ([7200 * number for number in range(11)], "60.0 0 -60.0 - - - 100 unknown Wh"),
            ([300 * number for number in range(11)], "60.0 0 -60.0 - - 50.0 100 ok"),
            ([300 * number for number in range(31)], "60.0 0 -60.0 - - 150 100 over target"),
            ([300 * number + 9000 for number in range(31)], "60.0 0 -60.0 - - 150 100 over target"),
            ([300 * number + 9000 for number in range(11)], "60.0 0 -60.0 - - 50.0 100 stale 2h"),
        ],
        ids=["never", "old", "far apart", "ok", "over", "old and over", "old and below"],
    )
    def test_budget_of_what_is_not_known(self, run: Run, ages: list[float], cells: str) -> None:
        """What is old or was never measured is not `ok`, and no energy known is not 0 Wh."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("d", "D", target_wh=100.0)
            meter = pm.add_meter("d", "main").id
            pm.log_many((meter, 12.0, 5.0, None, NOW - age) for age in ages)
        outcome = run("budget", clock=Clock())
        assert (outcome.code, outcome.out.splitlines()[1].split()) == (0, ["d", *cells.split()])
        # The JSON is that of power_budget_check(), by the last readings, however old.
        budget = run("budget", "--json", clock=Clock()).json["d"]
        assert budget["consumption_24h_wh"] == {"50.0": 50.0, "150": 150.0}.get(cells.split()[5], 0)

    def test_budget_doubt(self) -> None:
        """It is of the stalest active meter, and public for whoever shows budgets of its own."""
        with PowerManager(":memory:", clock=Clock()) as pm:
            pm.register_device("d", "D")
            ids = [pm.add_meter("d", "main").id for _ in range(3)]

            def doubt(stale_s: float) -> str:
                return power_manager.budget_doubt(pm.list_meters("d"), int(NOW) * SECOND, stale_s)

            assert doubt(0) == "no readings"
            for id_, age in zip(ids, (60, 7200, 90_000), strict=True):
                pm.log_power(id_, 1.0, 1.0, timestamp=NOW - age)
            pm.update_meter(ids[2], active=False)
            assert [doubt(seconds) for seconds in (7200, 7199)] == ["", "stale 2h"]

    def test_budget_without_some_watts(self, run: Run) -> None:
        """A meter that is read, and whose power is not known, is said, whatever the others say."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("d", "D", target_wh=100.0)
            gauge, main = (pm.add_meter("d", kind).id for kind in ("battery", "main"))
            for age in (600, 0):
                pm.log_power(main, 12.0, 1.0, timestamp=NOW - age)
                pm.log_power(gauge, None, None, 50.0, timestamp=NOW - age)
        assert run("budget", clock=Clock()).out.splitlines()[1].endswith("  unknown W")

    def test_inactive_meters_are_not_stale(self, run: Run) -> None:
        """One that was taken out of service says nothing of the others."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("d", "D")
            old = pm.add_meter("d", "main", name="Old").id
            pm.log_power(old, 1.0, 1.0, timestamp=NOW - 90_000)
            pm.update_meter(old, active=False)
            pm.log_power(pm.add_meter("d", "battery").id, 12.0, 1.0)
        assert run("budget", clock=Clock()).out.splitlines()[1].endswith("  ok")

    @pytest.fixture
    def sparse(self, run: Run) -> None:
        """A panel that is read every ten minutes, and mains that are read every two hours."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("d", "D")
            mains = pm.add_meter("d", "main", name="Mains").id
            panel = pm.add_meter("d", "solar", name="Panel").id
            pm.log_many((mains, 12.0, 10.0, None, NOW - 7200 * i) for i in range(12))
            pm.log_many((panel, 12.0, 1.0, None, NOW - 600 * i) for i in range(12))

    @pytest.mark.usefixtures("sparse")
    def test_energy_that_is_not_known(self, run: Run) -> None:
        """Where no energy came of a meter's readings it is -, not 0, and a report says why."""
        report = run("report", "d", "--text", clock=Clock()).out
        facts = [line.split() for line in report.splitlines()[2:5]]
        assert facts == [
            ["used", "-"],
            ["from", "the", "sun", "22.0", "Wh"],
            ["from", "the", "mains", "-"],
        ]
        assert "self-sufficient" not in report
        rows = {line.split()[0]: line.split()[-2:] for line in report.splitlines() if line}
        assert (rows["Mains"], rows["Panel"]) == (["-", "-"], ["22.0", "0"])
        assert (
            "\nno energy known of Mains: its readings are further apart than the file's max_gap\n"
            in report
        )
        for line in run("stats", "d/Mains", clock=Clock()).out.splitlines()[1:]:
            assert line.split()[-3:] == ["-", "-", "1"]
        assert "  today unknown\n" in run("status", clock=Clock()).out

    @pytest.mark.parametrize(
        ("hours", "days", "said"),
        [
            (23, 7, " 2350 Wh"),
            (23, 365, " 2350 Wh"),
            (48, 365, " 4850 Wh  2400 Wh a day, over 2d"),
            (60, 365, " 6050 Wh  2400 Wh a day, over 2d12h"),
            (60, 2, " 4750 Wh  2375 Wh a day"),
        ],
    )
    def test_energy_a_day(self, run: Run, hours: int, days: int, said: str) -> None:
        """It is over the time from the first reading on, not over days before there was any."""
        with PowerManager("power_manager.db", clock=Clock(), max_gap=86_400) as pm:
            pm.register_device("d", "D")
            main = pm.add_meter("d", "main").id
            start = NOW - 1800 - 3600 * hours  # a full hour
            pm.log_many((main, 100.0, 1.0, None, start + 1800 * i) for i in range(2 * hours + 2))
        out = run("report", "d", "--text", "--days", days, clock=Clock()).out
        assert out.splitlines()[2] == f"used            {said}"

    def test_no_readings_in_the_time(self, show: Show) -> None:
        """Statistics and reports without any say so."""
        assert show("stats gate/Spare") == "no readings in that time\n"
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("new", "New")
            pm.add_meter("new", "main")
        assert "\n\nno readings in that time\n\n" in show("report new --text")

    def test_scale_of_days(self, run: Run) -> None:
        """Hours before the first day that is shown do not make the others small."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("d", "D")
            main = pm.add_meter("d", "main").id
            pm.log_power(main, 230.0, 100.0, timestamp=NOW - 40 * 3600)
            pm.log_power(main, 230.0, 1.0, timestamp=NOW - 60)
        shown = run("stats", "d/main", "--days", 1, "--bucket", "day", clock=Clock()).out
        assert shown.splitlines()[1].split()[:3] == ["2025-06-16", "230", "█"]

    def test_statistics_of_a_meter_without_charge(self, show: Show) -> None:
        """They have no column for it, nor a bar where all is 0."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("new", "New")
            pm.log_power(pm.add_meter("new", "main").id, 230.0, 0.0)
        assert show("stats new/main") == (
            "hour              mean W                min  max  out Wh  in Wh  n\n"
            "2025-06-16 14:00       0                  0    0       0      0  1\n"
        )

    def test_wide(self, show: Show) -> None:
        """--wide shows every value and the whole of each id, at any width."""
        with PowerManager("power_manager.db") as pm:
            ids = [meter.id for meter in pm.list_meters()]
        head, *rows = show("meters --wide").splitlines()
        assert [row.split()[0] for row in rows] == ids
        assert head.split()[-2:] == ["wattage", "state"]
        assert "a-rather-long-id-of-a-device-without-meters" in show("devices --wide")
        assert "energy_out_wh" in show("stats house/Grid --wide")
        assert "meter_id" in show("events --wide")


class TestStatusOfToday(Showing):
    """The figures of `status`, as JSON."""

    def test_json(self, show: Show) -> None:
        """All that is shown, and the whole records, with times in UTC."""
        status = json.loads(show("status gate late --json"))
        assert status["generated_at"] == "2025-06-16T12:30:00.000000+00:00"
        gate, late = status["devices"]
        assert (gate["name"], gate["estimated_runtime_hours"]) == ("Garden gate 東京", 1.33)
        cell, panel, spare = gate["meters"]
        assert (cell["wattage"], cell["state"], cell["alert_level"]) == (6.498, "low", "low")
        assert (cell["age_seconds"], cell["stale"], cell["ahead"]) == (3.0, False, False)
        assert cell["estimated_runtime_hours"] == 0.56
        assert len(panel["hourly_wattage"]) == 24
        assert panel["hourly_wattage"][-1] == pytest.approx(7.15, rel=0.01)
        assert spare["age_seconds"] is None
        assert spare["hourly_wattage"] == [None] * 24
        old, ahead, off, gauge = late["meters"]
        assert (old["stale"], ahead["ahead"], off["active"]) == (True, True, False)
        assert (gauge["wattage"], gauge["stale"]) == (None, False)
        assert "東京" in show("status gate --json")  # letters as they are

    def test_today_is_the_local_day(self, show: Show) -> None:
        """Its energy is that of the UTC hours which begin in it, by the rule of the report."""
        (shown,) = json.loads(show("status house --json"))["devices"]
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            out_wh = in_wh = 0.0
            for meter in pm.list_meters("house"):
                for row in pm.get_statistics(meter.id, days=2):
                    if meter.type != "ups" and row.start >= "2025-06-15T22":  # midnight in Berlin
                        out_wh += row.energy_out_wh
                        in_wh += row.energy_in_wh
        assert shown["energy_today_out_wh"] == about(out_wh)
        assert shown["energy_today_in_wh"] == about(in_wh)
        assert shown["consumption_today_wh"] == about(out_wh - in_wh)

    @pytest.mark.parametrize(
        ("now", "hours"),
        [("2025-10-26T22:59:00Z", 25), ("2025-03-30T21:59:00Z", 23), ("2025-06-16T21:59:00Z", 24)],
        ids=["back", "forward", "plain"],
    )
    def test_today_of_another_length(self, run: Run, now: str, hours: int) -> None:
        """A day on which clocks are changed has the hours that it has."""
        clock = Clock()
        clock.now = power_manager.to_microseconds(now) / SECOND
        with PowerManager("power_manager.db", clock=clock) as pm:
            pm.register_device("d", "D")
            main = pm.add_meter("d", "main").id
            pm.log_many((main, 1.0, 1.0, None, clock.now - 60 * m) for m in range(30 * 60, -1, -1))
        (device,) = json.loads(run("status", "--json", clock=clock).out)["devices"]
        assert device["consumption_today_wh"] == about(hours)

    def test_readings_after_now(self, run: Run) -> None:
        """They are none of today's energy, though they are dated today."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("d", "D")
            main = pm.add_meter("d", "main").id
            for start in (NOW - 1200, NOW + 7200):
                pm.log_many((main, 60.0, 1.0, None, start + 60 * m) for m in range(21))
        (device,) = json.loads(run("status", "--json", clock=Clock()).out)["devices"]
        assert device["consumption_today_wh"] == about(20.0)

    def test_names_do_not_steer_the_terminal(self, run: Run) -> None:
        """What a terminal would obey is shown as it is written in Python, in every line."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("d\x9b", "D\x1b[2J")
            cell = pm.add_meter("d\x9b", "battery", name="C\x07")
            pm.log_power(cell.id, 3.0, 1.0, 10.0)
            pm.trigger_event("d\x9b", "restore", note="N\x1b[2J")
        for line in ("status", "meters", "devices", "events", "budget", "stats d\x9b/C\x07"):
            assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f]", run(*line.split(" ")).out)
        out = run("report", "d\x9b", "--text").out
        assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f]", out)
        followed = run("events", "--follow", wait=Frames()).out
        assert not re.search("[\0-\x09\x0b-\x1f\x7f-\x9f]", followed)
        assert r"C\x07: battery low, 10.0 % left" in run("status", clock=Clock()).out

    def test_critical_alert(self, run: Run) -> None:
        """It stands below the meters, with the charge."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.register_device("d", "d")
            pm.log_power(pm.add_meter("d", "battery", name="Cell").id, 3.0, 1.0, 4.2)
        lines = run("status", clock=Clock()).out.splitlines()
        assert lines[2].startswith("d  ")
        assert lines[2].endswith("  today 0 Wh out, 0 in, 0 used")
        assert lines[-1] == "  ! Cell: battery critical, 4.20 % left"

    def test_a_meter_that_is_deleted_meanwhile(
        self, show: Show, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has no statistics any more, and ends nothing."""

        def gone(pm: PowerManager, meter_id: str, **_: Any) -> Any:
            raise NotFound("gone", "meter", meter_id)

        monkeypatch.setattr(PowerManager, "get_statistics", gone)
        assert "today 0 Wh out, 0 in, 0 used" in show("status house")

    @pytest.mark.parametrize(
        ("max_gap", "age", "is_stale"), [(0, 119, 0), (0, 121, 1), (600, 599, 0)]
    )
    def test_stale(self, run: Run, max_gap: float, age: float, is_stale: int) -> None:
        """A reading is old once no energy is booked to it, but not before two minutes."""
        with PowerManager("power_manager.db", clock=Clock(), max_gap=max_gap) as pm:
            pm.register_device("d", "D")
            pm.log_power(pm.add_meter("d", "main").id, 1.0, 1.0, timestamp=NOW - age)
        assert run("status", clock=Clock()).out.count("stale") == is_stale


class TestWordsForAPerson:
    """States, numbers and durations in few columns."""

    @pytest.mark.parametrize(
        ("kind", "volts", "amperes", "charge", "state"),
        [
            ("battery", 12.0, 1.0, 99.0, "full"),
            ("battery", 12.0, 0.0, 99.0, "full"),
            ("battery", 12.0, -1.0, 99.0, "charging"),
            ("battery", 12.0, -1.0, 50.0, "charging"),
            ("battery", 12.0, 1.0, 50.0, "normal"),
            ("battery", 12.0, -1.0, 20.0, "low"),
            ("battery", 12.0, 1.0, 4.0, "critical"),
            ("battery", None, None, 97.0, "full"),
            ("battery", None, None, 50.0, "normal"),
            ("ups", 230.0, 1.0, 98.0, "full"),
            ("solar", 18.0, 1.0, None, "charging"),
            ("solar", 0.3, 0.0, None, "idle"),
            ("solar", None, None, 50.0, "unknown"),
            ("main", 230.0, 0.0, None, "normal"),
            ("main", 0.0, 0.0, None, "unknown"),
        ],
    )
    def test_state(
        self,
        pm: PowerManager,
        device: DeviceRecord,
        kind: str,
        volts: float | None,
        amperes: float | None,
        charge: float | None,
        state: str,
    ) -> None:
        """Charging is said of what takes energy in, and of a panel in the sun."""
        meter = pm.add_meter("dev-001", kind)
        assert power_manager._shown_state(meter) == "no data"
        pm.log_power(meter.id, volts, amperes, charge)
        meter = pm.get_meter(meter.id)
        assert power_manager._shown_state(meter) == state
        assert power_manager._state_colour(meter) in ("", *power_manager._COLOURS)
        inactive = pm.update_meter(meter.id, active=False)
        assert power_manager._shown_state(inactive) == "inactive"

    @pytest.mark.parametrize(
        ("seconds", "one", "two"),
        [
            (0, "0s", "0s"),
            (59.9, "59s", "59s"),
            (60, "1m", "1m"),
            (3599, "59m", "59m"),
            (3600, "1h", "1h00m"),
            (35_999, "9h", "9h59m"),
            (36_000, "10h", "10h"),
            (86_400, "1d", "1d"),
            (90_000, "1d", "1d1h"),
            (863_999, "9d", "9d23h"),
            (864_000, "10d", "10d"),
            (86_399_999, "999d", "999d"),
            (86_400_000, "2y", "2y"),
        ],
    )
    def test_brief_duration(self, seconds: float, one: str, two: str) -> None:
        """The largest unit, or two of them while the first is small."""
        assert power_manager._brief_duration(seconds) == one
        assert power_manager._brief_duration(seconds, 2) == two

    @pytest.mark.parametrize("width", [5, 6])
    def test_narrow_number_fits(self, width: int) -> None:
        """Every number that a meter can have fits its column, and stays within half a unit."""
        chance = random.Random(1)
        for _ in range(2000):
            value = chance.choice([-1, 1]) * 10 ** chance.uniform(-6, 11.99)
            text = power_manager._narrow_number(value, width)
            assert len(text) <= width
            factor = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1)
            number = float(text.rstrip("kMG"))
            assert number * factor == pytest.approx(value, abs=factor / 2 + 1e-9)

    @pytest.mark.parametrize(
        ("value", "text"),
        [(None, "-"), (0, "0%"), (0.4, "1%"), (50.4, "50%"), (99.6, "99%"), (100.0, "100%")],
    )
    def test_percent(self, value: float | None, text: str) -> None:
        """What is not empty is not 0 %, and what is not full is not 100 %."""
        assert power_manager._shown_percent(value) == text

    @pytest.mark.parametrize("has_unicode", [True, False])
    def test_signed_bar(self, has_unicode: bool) -> None:
        """It reaches from 0 to the value, on its side, and is as wide as it was told to be."""
        screen = power_manager.Screen(has_unicode=has_unicode)
        bars = [
            power_manager._signed_bar(value, -10.0, 10.0, 4, screen)
            for value in (None, -10.0, -7.5, 0.0, 2.5, 10.0)
        ]
        expected = ["    ", "██  ", "▐█  ", "    ", "  ▌ ", "  ██"]
        assert bars == [text if has_unicode else re.sub("[█▌▐]", "#", text) for text in expected]

    @pytest.mark.parametrize(
        ("value", "note", "shown"),
        [
            (0.0, None, ""),
            (0.0, "text", "text"),
            (1.5, None, "1.50"),
            (1.5, "text", "1.50  text"),
            (19.5, "Pack: 19.5 % charge", "Pack: 19.5 % charge"),
        ],
    )
    def test_event_note(self, value: float, note: str | None, shown: str) -> None:
        """A value is said once."""
        event = PowerEvent("id", "d", PowerEventType.RESTORE, value, "", note)
        assert power_manager._event_note(event) == shown


class TestReadableReport(Showing):
    """`report --text`, and `report` as ever."""

    def test_report_is_json(self, show: Show) -> None:
        """Without --text it is export_report's text to the letter; --json is taken too."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            expected = pm.export_report("house", 3) + "\n"
        assert show("report house --days 3") == expected
        assert show("report house --days 3 --json") == expected
        assert show("report house --days 3 --json --text") == expected

    def report_of(self, run: Run, *readings: float, days: float = 7) -> list[str]:
        """Report, in text, one meter with a reading of 100 W at each of the times."""
        with PowerManager("power_manager.db", clock=Clock(), max_gap=86_400) as pm:
            pm.register_device("d", "D")
            main = pm.add_meter("d", "main").id
            pm.log_many((main, 100.0, 1.0, None, when) for when in readings)
        out: str = run("report", "d", "--text", "--days", days, clock=Clock()).out
        return out.splitlines()

    def test_days_without_readings(self, run: Run) -> None:
        """A day between two others is there, without figures."""
        times = [NOW - 3600 * hour for hour in (73, 72, 2, 1, 0)]
        lines = self.report_of(run, *times)
        start = next(number for number, line in enumerate(lines) if "█ used" in line)
        assert lines[start + 1 : start + 5] == [
            "Fri 2025-06-13      100     100      0  " + "█" * 20,
            "Sat 2025-06-14        -       -      -",
            "Sun 2025-06-15        -       -      -",
            "Mon 2025-06-16      200     200      0  " + "█" * 40,
        ]

    def test_clock_that_was_years_off(self, run: Run) -> None:
        """The days between are not listed."""
        lines = self.report_of(run, NOW - 3600, NOW, NOW + YEARS, days=7)
        days = [line for line in lines if re.match(r"\w{3} \d{4}-\d\d-\d\d ", line)]
        assert [day[4:8] for day in days] == ["2025", "2045"]

    def test_months(self, run: Run) -> None:
        """Many days are shown as months."""
        times = [NOW - 43_200 * half for half in range(400, -1, -1)]
        lines = self.report_of(run, *times, days=400)
        months = [line[:7] for line in lines if re.match(r"\d{4}-\d\d ", line)]
        assert months == [
            *(f"2024-{month}" for month in (11, 12)),
            *(f"2025-0{month}" for month in range(1, 7)),
        ]

    def test_more_events_than_shown(self, show: Show) -> None:
        """Those that are left out are counted."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            for _ in range(30):
                pm.trigger_event("gate", "restore")
        assert show("report gate --text --days 1").endswith("\nand 12 earlier events\n")

    def test_one_day_has_no_mean_of_days(self, show: Show) -> None:
        """The period is named as a person would."""
        text = show("report house --text --days 1")
        assert "1 day to 2025" in text
        assert "a day\n" not in text

    def test_no_energy(self, run: Run) -> None:
        """Without energy there are no bars, and nothing is divided by it."""
        lines = self.report_of(run, NOW)
        assert "Mon 2025-06-16        0       0      0" in lines


class Frames:
    """Stands in for waiting: runs what is to happen at each wait, then presses Ctrl-C."""

    def __init__(self, *happenings: Callable[[], object]) -> None:
        self._happenings = list(happenings)
        self.waits: list[float] = []

    def __call__(self, seconds: float) -> None:
        """Wait."""
        self.waits.append(seconds)
        if not self._happenings:
            raise KeyboardInterrupt
        self._happenings.pop(0)()


class TestWatching(Showing):
    """`status --watch`."""

    def test_on_a_pipe(self, run: Run, house: Path, show: Show) -> None:
        """One follows another, with a blank line between them, until Ctrl-C: 130."""
        once = show("status gate")
        wait = Frames(lambda: None)
        outcome = run("status", "gate", "--watch", "7", clock=Clock(), wait=wait)
        assert outcome == (130, f"{once}\n{once}\n", "")
        assert wait.waits == [7.0, 7.0]

    def test_json(self, run: Run, house: Path) -> None:
        """One JSON object a line."""
        wait = Frames(lambda: None)
        outcome = run("status", "gate", "--watch", "--json", clock=Clock(), wait=wait)
        assert outcome.code == 130
        first, second = outcome.out.splitlines()
        assert first == second
        assert json.loads(first)["devices"][0]["id"] == "gate"
        assert wait.waits == [2.0, 2.0]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--watch=0"], "expected at least 0.1 s, got '0'"),
            (["--watch", "gate"], "got 'gate'; name devices before --watch"),
        ],
    )
    def test_interval(
        self, house: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
    ) -> None:
        """It is a duration of at least a tenth of a second."""
        with pytest.raises(SystemExit, match="2"):
            power_manager.main(["status", *words])
        assert message in capsys.readouterr().err

    def watch(
        self, monkeypatch: pytest.MonkeyPatch, line: str, *happenings: Callable[[], object]
    ) -> list[str]:
        """Watch on a terminal of 80 columns and 24 lines; return what was written, in pieces."""
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            patch.setenv("LINES", "24")
            patch.setenv("NO_COLOR", "1")
            code = power_manager.main(line.split(), clock=Clock(), wait=Frames(*happenings))
        assert code == 130
        return re.split(r"(?<=\x1b\[\?2026l)", terminal.getvalue())

    def test_on_a_terminal(self, house: Path, monkeypatch: pytest.MonkeyPatch, show: Show) -> None:
        """Each frame is written over the last one, and the terminal is left as it was."""
        first, second, rest = self.watch(monkeypatch, "status gate --watch 0.2", lambda: None)
        title = "2025-06-16 14:30:00, every 0.2 s; Ctrl-C ends"
        lines = [title, "", *show("status gate").splitlines()]
        body = "\r\n".join(f"\x1b[K{line}" for line in lines)
        frame = f"\x1b[?2026h\x1b[H{body}\r\n\x1b[J\x1b[?2026l"
        assert first == f"\x1b[?1049h\x1b[?25l{frame}"
        assert second == frame
        assert rest == "\x1b[?25h\x1b[?1049l"

    def test_low_window(self, house: Path, monkeypatch: pytest.MonkeyPatch, show: Show) -> None:
        """What does not fit is counted in the last line; a change of the size is followed."""
        pieces = self.watch(
            monkeypatch,
            "status --utc --watch 10",
            lambda: monkeypatch.setenv("LINES", "6"),
        )
        first, second, _rest = pieces
        assert first.count("\n") == 23
        assert first.endswith("\x1b[K4 more lines: the window is too short for them\x1b[?2026l")
        assert second.count("\n") == 5
        assert "12:30:00 UTC, every 10 s" in second

    def test_sigterm_leaves_the_terminal(
        self, house: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SIGTERM ends it with 0, and the terminal is as it was."""
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        with pytest.raises(SystemExit) as caught:
            power_manager.main(
                ["status", "gate", "--watch"],
                clock=Clock(),
                wait=lambda _seconds: signal.raise_signal(signal.SIGTERM),
            )
        assert caught.value.code == 0
        assert terminal.getvalue().endswith("\x1b[?25h\x1b[?1049l")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_sigterm_ends_following(self, house: Path) -> None:
        """It ends `events --follow` with 0 too."""
        with pytest.raises(SystemExit) as caught:
            power_manager.main(
                ["events", "--follow"],
                clock=Clock(),
                wait=lambda _seconds: signal.raise_signal(signal.SIGTERM),
            )
        assert caught.value.code == 0

    def test_handler_of_the_caller_stays(self, house: Path, run: Run) -> None:
        """A program with a handler of its own keeps it, and one may run commands in a thread."""
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            seen: list[object] = []
            wait = Frames(lambda: seen.append(signal.getsignal(signal.SIGTERM)))
            assert run("status", "--watch", "7", clock=Clock(), wait=wait).code == 130
        finally:
            signal.signal(signal.SIGTERM, before)
        assert seen == [signal.SIG_IGN]
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(power_manager.main(["devices"])))
        thread.start()
        thread.join()
        assert codes == [0]

    def test_error_leaves_the_terminal(
        self, house: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """An error is printed after the terminal is as it was."""
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)

        def delete(_seconds: float) -> None:
            with PowerManager("power_manager.db") as pm:
                pm.delete_device("gate")

        code = power_manager.main(["status", "gate", "--watch"], clock=Clock(), wait=delete)
        assert (code, terminal.getvalue()[-14:]) == (1, "\x1b[?25h\x1b[?1049l")
        assert "no device has the id 'gate'" in capsys.readouterr().err

    @pytest.mark.skipif(sys.platform == "win32", reason="has no pty")
    def test_in_a_real_terminal(self, house: Path) -> None:
        """It redraws, follows the size, and ends on Ctrl-C with 130 and no traceback."""
        import fcntl
        import pty
        import struct
        import termios

        def resize(lines: int, columns: int) -> None:
            fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

        def read_until(ending: bytes) -> bytes:
            seen = b""
            deadline = time.monotonic() + 30
            while ending not in seen:
                ready, _, _ = select.select([master], [], [], deadline - time.monotonic())
                assert ready, seen
                seen += os.read(master, 65536)
            return seen

        master, slave = pty.openpty()
        resize(30, 80)
        environment = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        child = subprocess.Popen(
            [sys.executable, str(MODULE), "status", "gate", "--watch", "0.1"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        try:
            frame_end = b"\x1b[?2026l"
            first = read_until(frame_end)
            assert first.startswith(power_manager._ENTER_FRAMES.encode())
            assert "\x1b[33m" in first.decode()
            resize(30, 130)
            read_until(b"meter" + b" " * 15 + b"type")  # names have the room that they need
            os.write(master, b"\x03")
            rest = read_until(b"\x1b[?25h\x1b[?1049l")
            assert child.wait(timeout=30) == 130
            assert b"Traceback" not in rest
        finally:
            child.kill()
            child.wait()
            os.close(slave)
            os.close(master)


class TestFollowing(Showing):
    """`events`, of one device or all, and `events --follow`."""

    def test_all_devices_and_one(self, show: Show) -> None:
        """Newest first; of one device without a column for it."""
        assert [line.split()[3] for line in show("events").splitlines()[1:]] == [
            "restore",
            "charge_start",
            "discharge",
        ]
        assert show("events house") == (
            "time                 event    note\n2025-06-16 14:30:00  restore  the mains are back\n"
        )
        assert len(json.loads(show("events --json"))) == 3
        assert len(json.loads(show("events --limit 2 --json"))) == 2

    def test_since(self, show: Show) -> None:
        """Events before that time are left out; what happened at it is in."""
        assert len(json.loads(show("events --since today --json"))) == 3
        assert len(json.loads(show("events --since -1h --json"))) == 2
        assert len(json.loads(show("events --since 2025-06-16T14:30:00 --json"))) == 2
        assert show("events --since 2025-06-16T14:30:01") == "no events\n"

    def happen(self, device_id: str = "gate", kind: str = "restore", **more: Any) -> None:
        """Another process records an event."""
        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.trigger_event(device_id, kind, **more)

    def test_follow(self, run: Run, house: Path) -> None:
        """The newest come first, oldest of them on top; then each that comes, until Ctrl-C."""
        wait = Frames(
            lambda: self.happen(note="後", value=2.0),
            lambda: None,
            lambda: self.happen("house", "shutdown"),
        )
        outcome = run("events", "--follow", clock=Clock(), wait=wait)
        assert (outcome.code, outcome.err) == (130, "")
        assert outcome.out == (
            "2025-06-16 06:44:57  gate            discharge     "
            "電池パック三号機: 20 % charge, threshold 20 %\n"
            "2025-06-16 14:30:00  gate            charge_start  1.50\n"
            "2025-06-16 14:30:00  house           restore       the mains are back\n"
            "2025-06-16 14:30:00  gate            restore       2.00  後\n"
            "2025-06-16 14:30:00  house           shutdown\n"
        )
        assert set(wait.waits) == {1.0}

    def test_follow_one_device_as_json(self, run: Run, house: Path) -> None:
        """Events of other devices are left out; one JSON object a line."""
        wait = Frames(lambda: self.happen("house"), self.happen)
        outcome = run(
            *("events", "gate", "--follow", "--json", "--limit", 1), clock=Clock(), wait=wait
        )
        events = [json.loads(line) for line in outcome.out.splitlines()]
        assert [(e["device_id"], e["type"]) for e in events] == [
            ("gate", "charge_start"),
            ("gate", "restore"),
        ]

    def test_event_between_two_looks(
        self, run: Run, house: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What comes while the newest are read is printed once."""
        last_sequence = PowerManager.last_sequence

        def last_then_one_more(pm: PowerManager) -> int:
            number = last_sequence(pm)
            monkeypatch.setattr(PowerManager, "last_sequence", last_sequence)
            self.happen(note="between")
            return number

        monkeypatch.setattr(PowerManager, "last_sequence", last_then_one_more)
        outcome = run("events", "--follow", clock=Clock(), wait=Frames())
        assert outcome.out.count("between") == 1

    def test_follow_across_a_restore(self, run: Run, house: Path) -> None:
        """In a file that is restored meanwhile, what comes next is printed."""

        def restore() -> None:
            with PowerManager("power_manager.db", clock=Clock()) as pm:
                pm.restore("backup.db")

        with PowerManager("power_manager.db", clock=Clock()) as pm:
            pm.backup("backup.db")
        for _ in range(3):
            self.happen(note="undone")
        wait = Frames(restore, lambda: self.happen(note="after"))
        outcome = run("events", "--follow", clock=Clock(), wait=wait)
        assert outcome.out.endswith("  after\n")


class TestFileThatGoes(Showing):
    """What follows a file ends when another one has its name: it would never show news again."""

    @pytest.mark.parametrize(
        "line", ["events --follow", "status --watch 7", "status --watch --json"]
    )
    @pytest.mark.parametrize("how", ["moved", "replaced"])
    def test_it_ends(self, run: Run, house: Path, line: str, how: str) -> None:
        """One line on standard error, and exit code 1."""

        def go() -> None:
            if how == "moved":
                os.rename("power_manager.db", "moved.db")
                return
            with PowerManager("other.db"):
                pass
            os.replace("other.db", "power_manager.db")

        wait = Frames(lambda: None, go)
        outcome = run(*line.split(), clock=Clock(), wait=wait)
        assert outcome.code == 1
        assert re.fullmatch(r"power-manager: .*: this file was deleted or repl.*\n", outcome.err)


class TestDemo(Showing):
    """The first thing that a new user sees."""

    def test_demo_for_a_person(self, run: Run) -> None:
        """The report of the week, then where its JSON is, and what to run next."""
        outcome = run("demo", clock=Clock())
        assert outcome.code == 0
        assert outcome.out == DEMO
        report, status = outcome.err.strip().splitlines()
        assert report.startswith("The same as JSON: ")
        assert report.endswith("power_manager_demo.db report demo-001")
        assert status.startswith("To see more, run: ")
        assert status.endswith("power_manager_demo.db status")

    @pytest.mark.parametrize("hour", range(0, 24, 4))
    @pytest.mark.parametrize("zone", ["UTC", "<+1245>-12:45"])
    def test_demo_has_alerts(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, zone: str, hour: int
    ) -> None:
        """Whenever and wherever it is made, a night takes the pack below both thresholds."""
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            clock = Clock()
            clock.now += 3600 * hour + 61.5
            assert run("demo", clock=clock).code == 0
            with PowerManager("power_manager_demo.db", clock=clock) as pm:
                events = [
                    (event.type, datetime.fromisoformat(event.timestamp).astimezone().hour)
                    for event in pm.get_events("demo-001")
                ]
        time.tzset()
        assert events == [("low_battery", 5), ("discharge", 2)]

    def test_demo_in_memory(self, run: Run) -> None:
        """Nothing is kept, so there is nothing to run next."""
        outcome = run("--db", ":memory:", "demo", clock=Clock())
        assert (outcome.code, outcome.out) == (0, DEMO)
        assert "Nothing of it is kept" in outcome.err
        assert "run:" not in outcome.err

    def test_status_of_the_demo(self, run: Run) -> None:
        """It is the picture in the README."""
        run("--db", "week.db", "demo", clock=Clock())
        assert run("--db", "week.db", "status", clock=Clock()) == (0, DEMO_STATUS, "")


# --- Recordings -------------------------------------------------------------------------------


class TestRecordings(CommandLine):
    """Recordings as devices make them, imported through the command line."""

    @pytest.fixture
    def imported(self, run: Run) -> Opener:
        """Import recordings, each for a meter of dev-001, and open the file after their end."""

        def import_rows(**recordings: tuple[str, list[Reading]]) -> PowerManager:
            clock = Clock()
            run("register", "dev-001", "Edge Node")
            for name, (kind, rows) in recordings.items():
                run("add-meter", "dev-001", kind, "--name", name, "--capacity-wh", 38)
                write_csv(Path(f"{name}.csv"), rows)
                imported = run("import", f"dev-001/{name}", f"{name}.csv")
                counts = f"{len(rows)} new readings, 0 already there, 0 bad rows left out"
                assert (imported.code, imported.out.splitlines()[0]) == (0, counts)
                clock.now = rows[-1].us / SECOND + 60
            assert run("check") == (0, "ok\n", "")
            return PowerManager(clock=clock)

        return import_rows

    @staticmethod
    def first_at_or_below(rows: list[Reading], charge: float) -> str:
        """The time of the first reading of at most that charge."""
        return iso(next(row.us for row in rows if cast(float, row.charge_pct) <= charge))

    def test_discharge(self, imported: Opener, run: Run) -> None:
        """Four hours give their energy, one event for each thing that happened, and a report."""
        rows = discharge()
        with imported(Pack=("battery", rows)) as pm:
            report = json.loads(pm.export_report("dev-001", days=1))
            (meter,) = report["meters"]
            assert meter_part(pm, "dev-001", 1) == near(brute_force(rows))
            assert (meter["energy_in_wh"], meter["current_state"]) == (0.0, "critical")
            assert 25 < meter["energy_out_wh"] < 40
            assert [(event.type, event.timestamp) for event in pm.get_events("dev-001")] == [
                ("low_battery", self.first_at_or_below(rows, 5)),
                ("discharge", self.first_at_or_below(rows, 20)),
            ]
            assert report["event_count"] == 2
            assert_statistics(pm, meter["meter_id"], buckets(rows, HOUR))
        printed = run("report", "dev-001", "--days", 36500).json["meters"]
        assert printed[0]["energy_out_wh"] == meter["energy_out_wh"]

    @pytest.mark.parametrize("threshold", [20, 5])
    def test_noisy_gauge(self, threshold: float) -> None:
        """The recording crosses each threshold many times, so that the hysteresis is needed."""
        below = [cast(float, row.charge_pct) <= threshold for row in discharge()]
        crossings = sum(before != after for before, after in itertools.pairwise(below))
        assert crossings > 10

    def test_estimate_over_a_window_is_steadier(
        self, memory_pm: PowerManager, battery_meter: PowerMeter
    ) -> None:
        """Over two minutes a runtime jumps by little, where that of a sample jumps by hours."""
        estimates: dict[float | None, list[float]] = {None: [], 2: []}
        for row in discharge()[:400]:
            memory_pm.log_power(battery_meter.id, *row[1:], timestamp=iso(row.us))
            for window, got in estimates.items():
                hours = memory_pm.estimate_runtime("dev-001", window_minutes=window)
                assert hours is not None
                got.append(hours)
        sample, steady = (
            max(abs(later - earlier) for earlier, later in itertools.pairwise(got[30:]))
            for got in estimates.values()
        )
        assert sample > 4 * steady
        assert steady < 0.25

    def test_solar_week(self, imported: Opener) -> None:
        """A week of panel and battery gives the energies of both, hour by hour and day by day."""
        panel_rows, battery_rows = solar_week()
        with imported(Panel=("solar", panel_rows), Pack=("battery", battery_rows)) as pm:
            panel, pack = json.loads(pm.export_report("dev-001", days=14))["meters"]
            assert meter_part(pm, "dev-001", 14, 0) == near(brute_force(panel_rows))
            assert meter_part(pm, "dev-001", 14, 1) == near(brute_force(battery_rows))
            assert (panel["energy_in_wh"], pack["energy_out_wh"]) == (0.0, 0.0)
            assert panel["energy_out_wh"] == pytest.approx(pack["energy_in_wh"], rel=0.01)
            assert pm.get_events("dev-001") == []
            for meter, rows in ((panel, panel_rows), (pack, battery_rows)):
                assert_statistics(pm, meter["meter_id"], buckets(rows, HOUR))
                assert_statistics(pm, meter["meter_id"], buckets(rows, DAY), "day")

    @pytest.mark.parametrize(
        ("max_gap", "share"),
        [(0, 0.0), (890.0, 0.0), (910.0, 1.0), (MAX_GAP, 1.0), (86400.0, None)],
    )
    def test_gaps_of_the_solar_week(
        self, opened: Opener, max_gap: float, share: float | None
    ) -> None:
        """Just under the spacing nothing is booked; just over it all but the gaps of hours."""
        panel, _ = solar_week()
        pm = opened(max_gap=max_gap)
        pm.register_device("d", "D")
        meter = pm.add_meter("d", "solar")
        pm.log_many(as_readings(meter.id, panel))
        energy = pm.energy_totals(meter.id).energy_out_wh
        in_steps = sum(
            (cast(float, earlier.watts) + cast(float, later.watts))
            / 2
            * (later.us - earlier.us)
            / HOUR
            for earlier, later in itertools.pairwise(panel)
            if later.us - earlier.us < 1800 * SECOND
        )
        if share is None:  # a max_gap of a day bridges the gap at noon too
            assert energy > 1.01 * in_steps
        else:
            assert energy == pytest.approx(share * in_steps, abs=1e-6)


# --- The README -------------------------------------------------------------------------------

README = HERE / "README.md"
PROGRAM = re.compile(r"^(?:\$ )?(?:python3? power_manager\.py|power-manager)(?: |$)(.*)")


DEMO_TIME = power_manager.to_microseconds("2026-06-21T21:10:00Z") / SECOND


class Example(NamedTuple):
    """A Python block or a command line of a Markdown text, and what it says that this prints."""

    line: int
    kind: str
    text: str
    prints: list[str]


def examples(text: str) -> Iterator[Example]:
    """Each Python block and each command line of a Markdown text."""
    for block in re.finditer(r"^```(\w+)[^\n]*\n(.*?)^```\s*$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, block.start(2)) + 1
        if block[1] == "python":
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
    """The output of a command line, run in process; `< file` and `> file` work, `|` ends it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="<>|")
    lexer.whitespace_split = True
    words = list(lexer)
    source = ""
    target = ""
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
        clock: Callable[[], float] = time.time
        if {"week.db", "shed.db"} & set(words):  # what is shown of them depends on the time
            clock = Clock()
            clock.now = DEMO_TIME
        try:
            code: object = power_manager.main(words, clock=clock)
        except SystemExit as end:  # of help and completion
            code = end.code
        assert code == 0, f"python3 power_manager.py {line}"
    if target:
        Path(target).write_text(out.getvalue())
    return out.getvalue()


class TestReadme:
    """The README does what it says."""

    @pytest.fixture
    def in_utc(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """A machine in Greenwich, with a terminal of 80 columns."""
        with monkeypatch.context() as patch:
            patch.setenv("TZ", "UTC0")
            patch.setenv("COLUMNS", "80")
            time.tzset()
            yield
        time.tzset()

    @pytest.mark.usefixtures("in_utc")
    def test_readme_examples(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every example runs, in order, in an empty directory, and prints what the README shows."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("POWER_MANAGER_DB", raising=False)
        found = list(examples(README.read_text(encoding="utf-8")))
        namespace = {"__name__": "readme"}
        assert {example.kind for example in found} == {"python", "command"}
        for line, kind, text, prints in found:
            with redirect_stdout(io.StringIO()) as out:
                if kind == "python":
                    exec(compile("\n" * (line - 1) + text, str(README), "exec"), namespace)
            output = run_command(text) if kind == "command" else out.getvalue()
            if prints:  # of a Python block the lines that it names
                printed = [
                    shown for shown in output.splitlines() if kind == "command" or shown in prints
                ]
                assert (line, prints) == (line, printed)

    def test_readme_names_every_method_and_command(self) -> None:
        """The README names every public method and attribute, and every command."""
        text = README.read_text(encoding="utf-8")
        methods = [name for name in vars(PowerManager) if not name.startswith("_")]
        assert [name for name in [*methods, *COMMANDS] if f"`{name}`" not in text] == []

    def test_settings(self) -> None:
        """The README has the table of the program's options, as the program itself makes it."""
        text = README.read_text(encoding="utf-8")
        table = power_manager.settings_table(power_manager._PowerCommands(time.time).parser)
        shown = text.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0].strip()
        assert shown == table, table


class TestDocstrings(CommandLine):
    """They are the reference."""

    def test_public_names(self) -> None:
        """Every public class, function, method and property has one of its own."""
        documented: dict[str, Any] = {}
        for name in power_manager.__all__:
            value = getattr(power_manager, name)
            if callable(value):
                documented[name] = value
            if isinstance(value, type):
                fields = getattr(value, "__dataclass_fields__", {})
                for member, of in vars(value).items():
                    is_documented = isinstance(of, (property, classmethod, FunctionType))
                    if is_documented and not member.startswith("_") and member not in fields:
                        documented[f"{name}.{member}"] = of
        assert len(documented) > 100
        assert [name for name, value in documented.items() if not value.__doc__] == []

    @pytest.mark.usefixtures("pack")
    def test_keys(self, run: Run) -> None:
        """Those of the JSON contracts are named where they are made, or in a command's help."""
        budget = cast(str, power_manager.make_budget.__doc__)
        report = cast(str, power_manager.make_report.__doc__)
        parser = power_manager._PowerCommands(time.time).parser
        status = parser.commands["status"].format_help()
        assert [key for key in BUDGET_KEYS if key not in budget] == []
        assert [key for key in [*REPORT_KEYS, *METER_KEYS] if f'"{key}": ' not in report] == []
        view = run("status", "--json").json
        (device,) = view["devices"]
        keys = {*view, *device, *device["meters"][0]}
        keys -= {field.name for field in dataclasses.fields(power_manager.DeviceRecord)}
        keys -= {field.name for field in dataclasses.fields(PowerMeter)}
        assert [key for key in keys if key not in status] == []


class TestPackage:
    """What the module needs."""

    def test_requirements_are_two(self) -> None:
        """The tests need pytest and its coverage plug-in, and nothing else."""
        requirements = HERE / "requirements.txt"
        assert requirements.read_text(encoding="utf-8").split() == [
            "pytest>=7.0",
            "pytest-cov>=4.0",
        ]

    def test_only_the_standard_library_is_imported(self) -> None:
        """The module imports nothing that Python does not bring along."""
        tree = ast.parse(MODULE.read_text(encoding="utf-8"))
        nodes = list(ast.walk(tree))
        names = {
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names) | {
            "__future__"
        }
