"""A hub as a process of its own, for the tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fleet_harness import INTEGRATION, queried
from pipeline import send
from power_fleet.discovery import HUB_VARIABLE, Addresses, find_hub
from power_fleet.engine import Engine
from power_fleet.fleet import Fleet
from power_fleet.stream import Nats
from servers import SOON

from power_manager import NotFound, PowerManager

PATHS = [str(INTEGRATION), str(INTEGRATION.parent / "service"), str(INTEGRATION.parents[1])]
# A hub ends within 2 seconds; what else the machine does may delay the test itself.
GRACE_S = 30.0
ADDRESS_VARIABLES = ("POWER_FLEET_NATS", "POWER_FLEET_CLICKHOUSE", "POWER_MANAGER_DB")


class HubProcess:
    """`power-fleet hub --data DIR`, and commands that find it."""

    def __init__(self, data: Path, *options: str, log: Path | None = None) -> None:
        self.data = data
        self._options = options or ("--nats-port", "0", "--no-service")
        self.environment = {
            name: value for name, value in os.environ.items() if name not in ADDRESS_VARIABLES
        }
        self.environment["PYTHONPATH"] = os.pathsep.join(PATHS)
        self.environment["XDG_STATE_HOME"] = str(data.parent / "state")
        self.environment.pop(HUB_VARIABLE, None)
        self.log = log or data.parent / f"{data.name}.log"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start it; return the line that says that it is ready."""
        command = [
            sys.executable,
            "-W",
            "error",
            "-m",
            "power_fleet",
            "hub",
            "--data",
            str(self.data),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self._options],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready "), self.errors()
        return line

    def errors(self) -> str:
        """What it has said on standard error."""
        return self.log.read_text(encoding="utf-8")

    @property
    def addresses(self) -> Addresses:
        """Where its parts are."""
        found = find_hub(self.environment)
        assert found is not None
        return found

    @property
    def nats_process(self) -> int:
        """The process of its NATS server."""
        return int((self.data / "nats" / "nats.pid").read_text())

    @property
    def nats_log(self) -> Path:
        """What its NATS server says."""
        return self.data / "nats" / "nats.log"

    def command(self, *arguments: str) -> list[str]:
        """The words of another command."""
        return [sys.executable, "-W", "error", "-m", "power_fleet", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command, which finds the hub by itself."""
        return subprocess.run(
            self.command(*arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.data.parent,
            timeout=SOON,
        )

    def end(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal; return its exit code."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(sig)
        code = self.process.wait(SOON)
        self.process.stdout.close()
        self.process = None
        return code


@contextlib.contextmanager
def running_hub(data: Path, *options: str, log: Path | None = None) -> Iterator[HubProcess]:
    """A hub that runs."""
    hub = HubProcess(data, *options, log=log)
    try:
        hub.start()
        yield hub
    finally:
        if hub.process is not None:
            hub.end(signal.SIGKILL)


def device(path: Path, device_id: str, count: int = 60) -> PowerManager:
    """A file with a device whose readings are of the last hour."""
    pm = PowerManager(path, durability="normal")
    pm.register_device(device_id, "Edge")
    pack = pm.add_meter(device_id, "battery", 50.0, "Pack", charge_pct=80.0)
    now = time.time()
    pm.log_many([(pack.id, 4.0, 0.5, 80.0, now - 3000 + 3000 * i / count) for i in range(count)])
    return pm


def readings_of(hub: HubProcess, device_id: str) -> int:
    """How many readings of a device the hub's engine has."""
    count = "SELECT toInt64(count()) FROM power_readings FINAL WHERE device_id = %(id)s"
    ((found,),) = queried(Engine([hub.addresses.clickhouse]), count, id=device_id)
    return int(found)


def reported(fleet: Fleet, device_id: str) -> int:
    """How many readings a device's report counts; 0 where nothing is known of it yet."""
    try:
        report = json.loads(fleet.report(device_id).value)
    except NotFound:
        return 0
    return sum(meter["reading_count"] for meter in report["meters"])


def send_to(hub: HubProcess, pm: PowerManager) -> None:
    """Forward a file until the hub's stream has all of it."""
    asyncio.run(send(pm, Nats(hub.addresses.nats)))


def is_gone(process: int) -> bool:
    """Whether a process does not run any more."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"
