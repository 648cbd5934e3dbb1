"""A hub's engine by itself, in a process of its own.

A process holds one chDB, and the tests' has one already.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hub_process import PATHS

_CODE = """
import sys
from power_fleet.front import Front
front = Front(sys.argv[1], "secret")
front.start()
print(front.url, flush=True)
sys.stdin.read()
front.stop()
"""


@contextlib.contextmanager
def running_front(directory: Path) -> Iterator[str]:
    """Its URL while it runs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    command = [sys.executable, "-W", "error", "-c", _CODE, str(directory)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()
