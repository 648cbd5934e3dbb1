"""Measure what the collector costs, and what kill -9 and SIGTERM lose.

    python3 integrations/collector/cost.py [--hours H] [--seconds S]

24 hours at 1 Hz with 8 meters are simulated. That part runs the whole loop, its own process and
real files with a clock that jumps instead of waiting; its CPU time over the simulated time is the
share of one core. The second part runs in real time.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
if importlib.util.find_spec("power_manager") is None:
    sys.path.insert(0, str(HERE.parents[1]))

import power_collector  # noqa: E402  # after the path

from power_manager import PowerManager  # noqa: E402

BATTERY = {
    "type": "Battery",
    "present": "1",
    "status": "Discharging",
    "capacity": "60",
    "voltage_now": "11400000",
    "current_now": "1250000",
    "energy_full": "45000000",
    "voltage_min_design": "11100000",
}


def make_tree(root: Path) -> None:
    """Write a machine of 8 meters: four batteries and four monitors."""
    for name in ("BAT0", "BAT1", "BAT2", "BAT3"):
        place = root / "sys/class/power_supply" / name
        place.mkdir(parents=True)
        for file, text in BATTERY.items():
            (place / file).write_text(text + "\n")
    for number, chip in enumerate(("ina219", "ina226", "ina231", "ina260")):
        place = root / f"sys/class/hwmon/hwmon{number}"
        place.mkdir(parents=True)
        for file, text in {"name": chip, "in1_input": "5032", "curr1_input": "1192"}.items():
            (place / file).write_text(text + "\n")


def simulate(directory: Path, hours: float) -> None:
    """Run the loop over simulated time, and print its CPU time and memory."""
    now = 1000.0
    end = now + hours * 3600
    current = directory / "root/sys/class/power_supply/BAT0/current_now"

    def wait(seconds: float) -> bool:
        nonlocal now
        now += seconds
        if int(now) % 10 == 0:
            current.write_text(f"{1_000_000 + int(now) % 977 * 1000}\n")
        return now >= end

    clocks = power_collector.Clocks(wall=lambda: 1.7e9 + now, boot=lambda: now, wait=wait)
    arguments = ["--root", str(directory / "root"), "--db", str(directory / "day.db")]
    arguments += ["--interval", "1"]
    assert power_collector.main(["run", "dev", *arguments], clocks) == 0
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    rss = usage.ru_maxrss / 1024
    with PowerManager(directory / "day.db") as pm:
        count = sum(1 for meter in pm.list_meters() for _ in pm.iter_history(meter.id))
        problems = pm.check()
    size = (directory / "day.db").stat().st_size
    print(
        f"{hours:g} simulated hours at 1 Hz x 8 meters: {count:,} readings, "
        f"{size / count:.1f} bytes each, check {problems or 'ok'}"
    )
    print(f"  CPU {cpu:.1f} s = {100 * cpu / (hours * 3600):.3f} % of one core (aim: < 0.06 %)")
    print(f"  peak RSS {rss:.1f} MiB (aim: < 30 MiB)")


def wait_for_a_reading(db: Path) -> None:
    """Wait until the file has one, however long the program takes to start."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if db.exists():
            with PowerManager(db) as pm:
                if any(meter.updated_at for meter in pm.list_meters()):
                    return
        time.sleep(0.05)
    raise SystemExit(f"{db}: no reading has come")


def end_by(number: signal.Signals, directory: Path, seconds: float) -> None:
    """Run in real time, end it by a signal, and print what it lost."""
    db = directory / f"{number.name}.db"
    arguments = ["--root", str(directory / "root"), "--db", str(db)]
    arguments += ["--interval", "0.05", "--commit-every", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    command = [sys.executable, str(HERE / "power_collector.py"), "run", "dev", *arguments]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_for_a_reading(db)
    time.sleep(seconds)
    process.send_signal(number)
    ended = time.time()
    code = process.wait()
    with PowerManager(db) as pm:
        meters = pm.list_meters()
        newest = max(meter.updated_at for meter in meters if meter.updated_at)
        count = len(pm.get_history(meters[0].id))
        problems = pm.check()
    lost = ended - datetime.fromisoformat(newest).timestamp()
    print(
        f"{number.name} after {seconds:g} s (20 Hz, a commit a second): exit {code}, "
        f"{count} readings a meter, the newest {lost:.2f} s before the end, "
        f"check {problems or 'ok'}"
    )


def main() -> int:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description="What the collector costs, and what it loses.")
    parser.add_argument("--hours", type=float, default=24.0, help="simulated (default: 24)")
    parser.add_argument(
        "--seconds", type=float, default=4.5, help="of each run that a signal ends (default: 4.5)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_tree(directory / "root")
        # In a child: the parent's memory is not the collector's, and a second run starts afresh.
        pid = os.fork()
        if pid == 0:
            simulate(directory, args.hours)
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            return 1
        for number in (signal.SIGKILL, signal.SIGTERM):
            end_by(number, directory, args.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
