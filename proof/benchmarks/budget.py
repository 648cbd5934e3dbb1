"""The power budget of many devices, by the library and by hand; run by works.py, prints JSON."""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import power_manager

_KINDS = ("main", "battery", "solar")
_MADE_SQL = """
CREATE TABLE device (id TEXT PRIMARY KEY, threshold REAL, target REAL);
CREATE TABLE meter (
    key INTEGER PRIMARY KEY, device TEXT, type TEXT,
    voltage REAL, current REAL, charge REAL, capacity REAL
);
CREATE TABLE hourly (
    meter INTEGER, hour INTEGER, energy REAL, PRIMARY KEY (meter, hour)
) WITHOUT ROWID;
"""


def library(path: Path, devices: int) -> Callable[[], dict[str, Any]]:
    """The library with three meters a device and four readings a meter, the last of them now."""
    pm = power_manager.PowerManager(path)
    now = time.time()
    ids = [f"edge-{number:05}" for number in range(devices)]
    with pm.transaction():
        meters = []
        for device_id in ids:
            pm.register_device(device_id, device_id, target_wh=100.0)
            meters += [
                pm.add_meter(device_id, kind, 50.0 * (kind == "battery")).id for kind in _KINDS
            ]

        def readings() -> Iterator[tuple[str, float, float, float, float]]:
            for ago in (3000, 2000, 1000, 0):
                for i, meter_id in enumerate(meters):
                    yield meter_id, 12.0 + i % 7 / 10, 0.5 + i % 11 / 10, 50.0 + i % 40, now - ago

        pm.log_many(readings())
    return lambda: pm.power_budget_check(ids)


def by_hand(path: Path, devices: int) -> Callable[[], dict[str, Any]]:
    """The same of tables made for it, without a record, a check or a late hour's readings."""
    conn = sqlite3.connect(path)
    hour = int(time.time() // 3600)
    conn.executescript(_MADE_SQL)
    ids = [f"edge-{number:05}" for number in range(devices)]
    conn.executemany("INSERT INTO device VALUES (?, 3.0, 100.0)", [(id_,) for id_ in ids])
    rows = [
        (id_, kind, 12.0 + i % 7 / 10, 0.5, 50.0, 50.0)
        for i, id_ in enumerate(ids)
        for kind in _KINDS
    ]
    columns = "device, type, voltage, current, charge, capacity"
    conn.executemany(f"INSERT INTO meter ({columns}) VALUES (?, ?, ?, ?, ?, ?)", rows)
    hours = [(key, hour, 1.5) for key in range(1, len(rows) + 1)]
    conn.executemany("INSERT INTO hourly VALUES (?, ?, ?)", hours)
    conn.commit()
    sql = """SELECT device, type, voltage * current, charge, capacity,
        (SELECT sum(energy) FROM hourly WHERE meter = key AND hour > ?1) FROM meter"""

    def check() -> dict[str, Any]:
        devices = conn.execute("SELECT id, threshold, target FROM device").fetchall()
        found: dict[str, Any] = {
            id_: {"total": 0.0, "energy": 0.0, "charges": [], "wh": 0.0} for id_, _, _ in devices
        }
        for device, kind, watts, charge, capacity, energy in conn.execute(sql, (hour - 24,)):
            entry = found[device]
            entry["total"] += watts
            if kind == "battery":
                entry["charges"].append(charge)
                entry["wh"] += capacity * charge / 100
            entry["energy"] += energy if kind != "solar" else 0.0
        for id_, threshold, target in devices:
            entry = found[id_]
            entry["below"] = entry["total"] < threshold
            entry["within"] = entry["energy"] <= target
        return found

    return check


def main() -> None:
    """Measure in turn; the arguments are the number of devices, that of rounds, a directory."""
    devices_text, rounds_text, place = sys.argv[1:]
    devices = int(devices_text)
    rounds = int(rounds_text)
    seconds: dict[str, list[float]] = {"power_manager": [], "by hand": []}
    with tempfile.TemporaryDirectory(dir=place) as folder:
        checks = {
            "power_manager": library(Path(folder, "power_manager.db"), devices),
            "by hand": by_hand(Path(folder, "hand.db"), devices),
        }
        for _ in range(rounds):
            for name, check in checks.items():
                begin = perf_counter()
                found = check()
                seconds[name].append(perf_counter() - begin)
                assert len(found) == devices
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
