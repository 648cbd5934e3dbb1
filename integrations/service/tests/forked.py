"""The service in a process that has imported it before: a start costs a third of the command's.

A server of multiprocessing forks it, which imports the service once, and nothing of the tests. Each
module of tests also has a service that the command itself starts.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["power_service.server", "power_service.app", "power_service.cli"])


COMMAND = "import sys; from power_service.__main__ import main; sys.exit(main())"


def serve(code: str, arguments: list[str], log: str, environment: dict[str, str]) -> None:
    """Run code in this process as `python -c` does, with all that it prints in a file."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    warnings.simplefilter("error")
    exec(code, {"__name__": "__main__"})


class Forked:
    """Such a process, with the methods of subprocess.Popen that the tests use."""

    def __init__(
        self, arguments: list[str], log: Path, environment: dict[str, str], code: str = COMMAND
    ) -> None:
        _begin(environment)
        self._process = _CONTEXT.Process(
            target=serve, args=(code, arguments, str(log), environment), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        """Send a signal."""
        os.kill(self.pid, sig)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends; return its exit code."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("power-service", timeout or 0.0)
        return code


def end() -> None:
    """End the server that forks and wait for it: nothing of the tests outlives them.

    Left alone it ends a moment after the tests do. multiprocessing has these methods for tests.
    """
    forks: Any = multiprocessing.forkserver
    tracker: Any = multiprocessing.resource_tracker
    forks._forkserver._stop()
    tracker._resource_tracker._stop()


atexit.register(end)


def _begin(environment: dict[str, str]) -> None:
    """Start the server that forks, once; the environment's path says where the service is."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = environment["PYTHONPATH"]
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
