"""A file that a test writes to, and the program that publishes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mosquitto import PATIENCE
from power_mqtt.notices import END_SECONDS

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
QUICK = HERE / "tests/quick.py"
PYTHONPATH = os.pathsep.join([str(ROOT), str(HERE)])


def power_mqtt(
    *arguments: object, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run power-mqtt to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "power_mqtt", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


class Bridge:
    """A running power-mqtt, with the pauses of quick.py.

    hard_end: it ends by force as in life, within two seconds; else it has to end by itself.
    """

    def __init__(self, *arguments: object, log: Path, hard_end: bool = False) -> None:
        self._log = log
        limits = {"POWER_TEST_END_SECONDS": str(END_SECONDS)} if hard_end else {}
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", str(QUICK), *map(str, arguments)],
                env={**os.environ, "PYTHONPATH": PYTHONPATH, **limits},
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, and return its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        return self.process.wait(PATIENCE)

    def wait_for(self, text: str) -> None:
        """Return when it has said that; the test fails if it does not, or ends."""
        end = time.monotonic() + PATIENCE
        while text not in self.log():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)

    def log(self) -> str:
        """What it has said."""
        return self._log.read_text(encoding="utf-8")


@contextmanager
def bridge(*arguments: object, log: Path, hard_end: bool = False) -> Iterator[Bridge]:
    """A power-mqtt that runs until the end of the block, or is killed there."""
    running = Bridge(*arguments, log=log, hard_end=hard_end)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
