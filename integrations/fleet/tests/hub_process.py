"""A hub as a process of its own, for the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fleet_harness import INTEGRATION
from power_fleet.discovery import HUB_VARIABLE, Addresses, find_hub

PATHS = [str(INTEGRATION), str(INTEGRATION.parent / "service"), str(INTEGRATION.parents[1])]
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
            timeout=60,
        )

    def end(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal; return its exit code."""
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.send_signal(sig)
        code = self.process.wait(30)
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
