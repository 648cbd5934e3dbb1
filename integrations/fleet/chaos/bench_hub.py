"""Measure a hub: its start and end, its memory and processor time, and a made-up fleet on it.

python3 integrations/fleet/chaos/bench_hub.py --devices 1000
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

FLEET = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    str(FLEET),
    str(FLEET / "tests"),
    str(FLEET.parent / "service"),
    str(FLEET.parents[1]),
]

from chaos_common import processor_s  # noqa: E402 - found by the line above
from fleet_harness import queried  # noqa: E402
from hub_process import HubProcess  # noqa: E402
from power_fleet.engine import Engine  # noqa: E402

STARTS = 5
IDLE_S = 20.0
READINGS_A_DEVICE = 192  # of the demo's day
WAIT_S = 300.0
PATHS = (
    "/",
    "/v1/devices",
    "/v1/meters",
    "/v1/budget",
    "/v1/fleet/devices",
    "/v1/devices/demo-0001/report",
)
COMMANDS = (["budget"], ["latest"], ["energy"], ["report", "demo-0001"])


def memory_mb(process: int) -> dict[str, int]:
    """Resident memory: what is the process's own, and what it shares with files."""
    found = {}
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            kb, _unit = value.split()
            found[name] = int(kb) // 1024
    return found


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def processes_of(hub: HubProcess) -> dict[str, int]:
    """The hub and its NATS server."""
    return {"hub": hub.addresses.process, "NATS": hub.nats_process}


def measure_starts(hub: HubProcess) -> None:
    """From the command to the ready line, and from SIGTERM to the end."""
    starts = []
    ends = []
    for _ in range(STARTS):
        begin = time.monotonic()
        hub.start()
        starts.append(time.monotonic() - begin)
        begin = time.monotonic()
        hub.end(signal.SIGTERM)
        ends.append(time.monotonic() - begin)
    for name, seconds in (("ready", starts), ("ended", ends)):
        say(f"{name} in {', '.join(f'{one:.1f}' for one in seconds)} s")


def measure_idle(hub: HubProcess, what: str) -> None:
    """Memory and processor time for some seconds."""
    processes = processes_of(hub)
    before = {name: processor_s(process) for name, process in processes.items()}
    time.sleep(IDLE_S)
    for name, process in processes.items():
        share = (processor_s(process) - before[name]) / IDLE_S
        memory = memory_mb(process)
        say(
            f"{what}: {name} has {memory['RssAnon']} MB of its own, "
            f"{memory['RssFile']} MB of files, takes {share:.1%} of a core"
        )


@contextlib.contextmanager
def running_demo(hub: HubProcess, count: int) -> Iterator[None]:
    """A made-up fleet that goes on measuring; it begins to send at once."""
    command = hub.command("demo", "--devices", str(count))
    with subprocess.Popen(
        command, env=hub.environment, cwd=hub.data.parent, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stderr is not None
        demo.stderr.readline()
        demo.stderr.readline()  # it has made its files
        try:
            yield
        finally:
            demo.terminate()


def await_stored(hub: HubProcess, count: int) -> None:
    """Wait until the engine has the day of all devices."""
    begin = time.monotonic()
    engine = Engine([hub.addresses.clickhouse])
    wanted = count * READINGS_A_DEVICE
    while queried(engine, "SELECT toInt64(count()) FROM power_readings FINAL") < [(wanted,)]:
        if time.monotonic() > begin + WAIT_S:
            sys.exit(f"not stored in {WAIT_S:g} s")
        time.sleep(0.5)
    say(f"{wanted} readings of {count} devices sent and stored in {time.monotonic() - begin:.0f} s")


def measure_answers(hub: HubProcess) -> None:
    """How long pages and commands take, one by one."""
    for path in PATHS:
        begin = time.monotonic()
        with urllib.request.urlopen(hub.addresses.service + path, timeout=60) as answer:
            size = len(answer.read())
        say(f"GET {path}: {time.monotonic() - begin:.2f} s, {size} bytes")
    for words in COMMANDS:
        begin = time.monotonic()
        hub.run(*words)
        say(f"power-fleet {' '.join(words)}: {time.monotonic() - begin:.2f} s")


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=1000, help="of the fleet (default: 1000)")
    count = parser.parse_args().devices
    with tempfile.TemporaryDirectory(prefix="bench-hub-") as directory:
        hub = HubProcess(Path(directory) / "fleet", "--nats-port", "0", "--port", "0")
        say(f"load average {os.getloadavg()[0]:.1f}")
        measure_starts(hub)
        hub.start()
        try:
            measure_idle(hub, "idle")
            with running_demo(hub, count):
                await_stored(hub, count)
                measure_idle(hub, f"{count} devices, two readings each in 10 s")
                measure_answers(hub)
        finally:
            hub.end()
        size = sum(file.stat().st_size for file in hub.data.rglob("*") if file.is_file())
        say(f"load average {os.getloadavg()[0]:.1f}; {size / 1e6:.0f} MB on the disk")
    return 0


if __name__ == "__main__":
    sys.exit(main())
