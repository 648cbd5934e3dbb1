"""What `power-mqtt publish` costs: processor, memory and messages, while a device writes the file.

    python3 integrations/mqtt/bench/run.py            # four runs in 6 minutes; writes RESULTS.md
    python3 integrations/mqtt/bench/run.py --quick    # of 5 seconds each; prints the results only

Starts a mosquitto on loopback, a writer and the bridge, and reads from /proc what the bridge's
process uses: for its first start with a file, for the next one, and from then on. A start is over
when every device has its energy message.
"""

from __future__ import annotations

import argparse
import importlib.metadata
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
from datetime import datetime, timezone
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE / "tests"), str(HERE.parents[1])]

from mosquitto import Listener, Mosquitto  # noqa: E402 - the path above comes first

from power_manager import PowerManager, print_error  # noqa: E402

METERS_A_DEVICE = 5
WARM_UP_SECONDS = 5.0
DAYS = 30  # of hourly readings behind each meter
RUNS = ((50, 60.0), (600, 30.0))  # meters, and seconds that are measured
RESULTS = HERE / "RESULTS.md"


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


@dataclass
class Measured:
    """What one run has shown."""

    meter_count: int
    changes: str
    messages_a_second: float
    percent_of_a_core: float
    memory_mb: float
    first_start_seconds: float  # of the processor
    next_start_seconds: float


def fill(pm: PowerManager, meter_count: int) -> list[str]:
    """Register devices of five meters each, with hourly readings; return the meters' ids."""
    ids = []
    now = time.time()
    with pm.transaction():
        for number in range(meter_count):
            device_id = f"edge-{number // METERS_A_DEVICE:03}"
            if number % METERS_A_DEVICE == 0:
                pm.register_device(device_id, device_id)
            ids.append(pm.add_meter(device_id, "battery", 50.0, f"Pack {number}").id)
    hours = range(DAYS * 24, 0, -1)
    pm.log_many((id_, 12.0, 1.0, 80.0, now - hour * 3600) for id_ in ids for hour in hours)
    return ids


def write(pm: PowerManager, ids: Sequence[str], seconds: float, *, changes: bool) -> None:
    """Log a reading a second of each meter, in one commit, as a collector does."""
    begin = time.monotonic()
    while (elapsed := time.monotonic() - begin) < seconds:
        amperes = 1.0 + math.sin(elapsed) / 2 if changes else 1.0
        pm.log_many((id_, 12.0, amperes, 80.0) for id_ in ids)
        time.sleep(max(math.ceil(elapsed + 1e-9) + begin - time.monotonic(), 0.0))


def await_start(
    process: subprocess.Popen[bytes],
    listener: Listener,
    pm: PowerManager,
    ids: Sequence[str],
    *,
    changes: bool,
) -> float:
    """Write until every device has its energy message; return the processor seconds until then."""
    device_count = math.ceil(len(ids) / METERS_A_DEVICE)
    earlier_count = len(listener.messages)
    told: set[str] = set()
    while len(told) < device_count:
        if process.poll() is not None:
            raise RuntimeError(f"power-mqtt has ended with {process.returncode}")
        write(pm, ids, 0.5, changes=changes)
        new = listener.messages[earlier_count:]
        told = {topic for topic, _ in new if topic.endswith("/energy")}
    return Used.by(process.pid).processor_seconds


def measure(folder: Path, meter_count: int, seconds: float, *, changes: bool) -> Measured:
    """One run."""
    db = folder / "power.db"
    with PowerManager(db, durability="normal") as pm, Mosquitto(folder / "mosquitto") as broker:
        ids = fill(pm, meter_count)
        words = ["publish", "--db", str(db), "--broker", broker.url]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:3])}
        command = [sys.executable, "-m", "power_mqtt", *words]

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)

        process = start()
        try:
            with Listener(broker, "#", qos=0) as listener:
                first_start = await_start(process, listener, pm, ids, changes=changes)
                process.terminate()
                process.wait()
                process = start()
                next_start = await_start(process, listener, pm, ids, changes=changes)
                write(pm, ids, WARM_UP_SECONDS, changes=changes)
                before, count = Used.by(process.pid), len(listener.messages)
                began = time.monotonic()
                write(pm, ids, seconds, changes=changes)
                elapsed = time.monotonic() - began
                after, count = Used.by(process.pid), len(listener.messages) - count
        finally:
            process.terminate()
            process.wait()
    processor_seconds = after.processor_seconds - before.processor_seconds
    return Measured(
        meter_count,
        "every second" if changes else "never",
        count / elapsed,
        processor_seconds / elapsed * 100,
        after.memory_mb,
        first_start,
        next_start,
    )


def report(results: Sequence[Measured], load: float) -> str:
    """The results, in Markdown."""
    said = subprocess.run(["mosquitto", "-h"], capture_output=True, text=True, check=False)
    versions = (
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"paho-mqtt {importlib.metadata.version('paho-mqtt')}, {said.stdout.partition(chr(10))[0]}"
    )
    machine = f"Linux {platform.release()} {platform.machine()}, {os.cpu_count()} processors"
    lines = [
        "# What `power-mqtt publish` costs",
        "",
        "Command: `python3 integrations/mqtt/bench/run.py`  ",
        f"Date: {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC  ",
        f"Machine: {machine}, load average {load:.1f} at the start  ",
        versions,
        "",
        "A writer stores a reading a second of each meter, in one commit a second; five meters are",
        f"a device, and each has {DAYS} days of hourly readings. What the bridge's process uses is",
        "read from /proc: for a start, until every device has its energy message, and five seconds",
        "later for a minute (50 meters) or half a minute (600).",
        "",
        "| meters at 1 Hz | values change | messages/s | % of a core | MB | first | next start |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {it.meter_count} | {it.changes} | {it.messages_a_second:.1f} "
        f"| {it.percent_of_a_core:.2f} | {it.memory_mb:.0f} "
        f"| {it.first_start_seconds:.1f} s | {it.next_start_seconds:.1f} s |"
        for it in results
    ]
    lines += [
        "",
        "Where values change, each meter's state and each device's totals are sent every 5 s: 50",
        "meters make 12 messages a second. Where the same is measured again, none is sent. The",
        "rest of the cost is asking five times a second whether the file has changed, and reading",
        "all meters once a second.",
        "",
        "A start is in seconds of a core. The first one with a file reads all hours. The next one",
        "compares what is kept of them with the file's totals; the rest is Python's own start and",
        "the first message of every topic.",
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurements, and write or print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure 5 seconds of each run, and print the results"
    )
    options = parser.parse_args(argv)
    load = os.getloadavg()[0]
    results = []
    for meter_count, seconds in RUNS:
        for changes in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                seconds = 5.0 if options.quick else seconds
                result = measure(Path(folder), meter_count, seconds, changes=changes)
            print_error(str(result))
            results.append(result)
    text = report(results, load)
    if options.quick:
        print(text)
    else:
        RESULTS.write_text(text, encoding="utf-8")
        print_error(f"written to {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
