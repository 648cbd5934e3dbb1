"""What one core needs for a look at a large file, for a chart of many readings, and for sparklines.

    python3 integrations/service/bench/looks.py

It prints a table of RESULTS.md: medians of 5 runs.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "integrations/service")]

from power_service.charts import thin_out  # noqa: E402 - the line above makes it importable
from power_service.hours import sparklines  # noqa: E402
from power_service.watcher import Watcher  # noqa: E402

from power_manager import PowerManager  # noqa: E402

RUNS = 5
DEVICES = 2000
METERS_A_DEVICE = 3
CHART_READINGS = 300_000
SPARKLINE_DEVICES = 100
SPARKLINE_METERS_A_DEVICE = 4
DAY_S = 86_400.0


def median_ms(measured: Callable[[], object]) -> float:
    """The median time of a call, in milliseconds."""
    taken = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        measured()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken) * 1000


def meter_ids(pm: PowerManager, devices: int, meters: int) -> dict[str, list[str]]:
    """Register devices with so many meters each; return the meters' ids by device."""
    found: dict[str, list[str]] = {}
    with pm.transaction():
        for number in range(devices):
            device_id = f"edge-{number:04d}"
            pm.register_device(device_id, f"Edge {number}")
            found[device_id] = [
                pm.add_meter(device_id, "battery", 100.0, f"Pack {meter}").id
                for meter in range(meters)
            ]
    return found


def look(directory: Path) -> float:
    """A look of the stream at all devices and meters, each of which has a reading."""
    path = directory / "look.db"
    with PowerManager(path, durability="normal") as pm:
        ids = meter_ids(pm, DEVICES, METERS_A_DEVICE)
        pm.log_many((meter_id, 12.0, 1.0, 50.0) for of_one in ids.values() for meter_id in of_one)
        now = 0.0
        watcher = Watcher(pm, path, 0.0, lambda: now)
        watcher.look()

        def changed_look() -> None:
            nonlocal now
            now += DAY_S
            pm.log_power(ids["edge-0000"][0], 12.0, 1.0, 50.0)
            changes = watcher.look()
            assert changes is not None
            assert changes.error is None

        return median_ms(changed_look)


def charts(directory: Path) -> tuple[float, float]:
    """A chart of many readings, and of that the time for reading them."""
    with PowerManager(directory / "chart.db", durability="normal") as pm:
        (meter_id,) = meter_ids(pm, 1, 1)["edge-0000"]
        begin = time.time() - CHART_READINGS
        pm.log_many(
            (meter_id, 12.0 + second % 7 / 10, second % 11 / 10, 50.0, begin + second)
            for second in range(CHART_READINGS)
        )
        whole = median_ms(lambda: thin_out(pm.iter_history(meter_id), 1000))
        reading = median_ms(lambda: sum(1 for _ in pm.iter_history(meter_id)))
    return whole, reading


def sparkline(directory: Path) -> float:
    """Sparklines of devices with a day of readings each."""
    with PowerManager(directory / "sparkline.db", durability="normal") as pm:
        ids = meter_ids(pm, SPARKLINE_DEVICES, SPARKLINE_METERS_A_DEVICE)
        begin = time.time() - DAY_S
        pm.log_many(
            (meter_id, 12.0, 1.0, 50.0, begin + 900.0 * step)
            for step in range(96)
            for of_one in ids.values()
            for meter_id in of_one
        )
        return median_ms(lambda: sparklines(pm, list(ids), int(time.time() * 1e6)))


def main() -> int:
    """Measure, and print the table."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        whole, reading = charts(directory)
        meters = DEVICES * METERS_A_DEVICE
        spark_meters = SPARKLINE_DEVICES * SPARKLINE_METERS_A_DEVICE
        print("| one core | ms |")
        print("| --- | --- |")
        print(f"| a look at {DEVICES:,} devices with {meters:,} meters | {look(directory):,.0f} |")
        print(f"| `max_points=1000` over {CHART_READINGS:,} readings | {whole:,.0f} |")
        print(f"| of that, reading them | {reading:,.0f} |")
        name = f"sparklines of {SPARKLINE_DEVICES} devices with {spark_meters} meters"
        print(f"| {name} | {sparkline(directory):,.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
