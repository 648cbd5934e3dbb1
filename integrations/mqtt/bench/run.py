"""What `power-mqtt publish` costs: processor, memory and messages, while others write to the file.

    python integrations/mqtt/bench/run.py                  # 50 meters at 1 Hz for a minute
    python integrations/mqtt/bench/run.py --meters 600 --seconds 30

Starts a mosquitto of its own on loopback, a writer and the bridge, and reads what the bridge's
process has used from /proc. The first seconds are not measured: they are the start.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE / "tests"), str(HERE.parents[1])]

from mosquitto import Listener, Mosquitto  # noqa: E402 - the path above comes first

from power_manager import PowerManager, print_error  # noqa: E402

METERS_A_DEVICE = 5
WARM_UP_SECONDS = 5.0


@dataclass
class Used:
    """What a process has used so far, and how much memory it has."""

    processor_seconds: float
    memory_mb: float

    @classmethod
    def by(cls, pid: int) -> Used:
        """Read it from /proc."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def fill(pm: PowerManager, meters: int, days: int) -> list[str]:
    """Devices of five meters each with hourly readings of so many days behind them; the meters' ids."""
    ids = []
    now = time.time()
    with pm.transaction():
        for number in range(meters):
            device_id = f"edge-{number // METERS_A_DEVICE:03}"
            if number % METERS_A_DEVICE == 0:
                pm.register_device(device_id, device_id)
            ids.append(pm.add_meter(device_id, "battery", 50.0, f"Pack {number}").id)
    hours = range(days * 24, 0, -1)
    pm.log_many((id_, 12.0, 1.0, 80.0, now - hour * 3600) for id_ in ids for hour in hours)
    return ids


def write(pm: PowerManager, ids: Sequence[str], seconds: float, changes: bool) -> int:
    """A reading a second of each meter, in one commit, as a collector's; how many."""
    begin = time.monotonic()
    count = 0
    while (elapsed := time.monotonic() - begin) < seconds:
        amperes = 1.0 + math.sin(elapsed) / 2 if changes else 1.0
        pm.log_many((id_, 12.0, amperes, 80.0) for id_ in ids)
        count += len(ids)
        time.sleep(max(math.ceil(elapsed + 1e-9) + begin - time.monotonic(), 0.0))
    return count


def measure(folder: Path, options: argparse.Namespace, *, changes: bool) -> str:
    """One run; a row of the table."""
    name = "every second" if changes else "never"
    db = folder / f"{name}.db"
    with PowerManager(db, durability="normal") as pm, Mosquitto(folder / name) as broker:
        ids = fill(pm, options.meters, options.days)
        words = ["publish", "--db", db, "--broker", broker.url, *options.options]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:3])}
        command = [sys.executable, "-m", "power_mqtt", *map(str, words)]
        process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
        try:
            with Listener(broker, "#", qos=0) as listener:
                write(pm, ids, WARM_UP_SECONDS, changes)
                before, messages = Used.by(process.pid), len(listener.messages)
                began = time.monotonic()
                write(pm, ids, options.seconds, changes)
                elapsed = time.monotonic() - began
                after, messages = Used.by(process.pid), len(listener.messages) - messages
        finally:
            process.terminate()
            process.wait()
    percent = (after.processor_seconds - before.processor_seconds) / elapsed * 100
    return f"| {options.meters} | {name} | {messages / elapsed:.1f} | {percent:.2f} | {after.memory_mb:.0f} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement; print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--meters", type=int, default=50, help="five of them a device (default: 50)")
    add("--seconds", type=float, default=60.0, help="that are measured (default: 60)")
    add("--days", type=int, default=30, help="of hourly readings behind each meter (default: 30)")
    add("options", nargs="*", help="more options of `publish`, after --")
    options = parser.parse_args(argv)
    print_error(f"load average {os.getloadavg()[0]:.1f}")
    print(
        f"{platform.machine()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}\n"
    )
    print("| meters at 1 Hz | values change | messages/s | % of a core | MB |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for changes in (True, False):
            print(measure(Path(folder), options, changes=changes), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
