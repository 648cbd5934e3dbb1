"""The parent's side: which contenders are here, and their worker processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from contenders import CONTENDERS

HERE = Path(__file__).resolve().parent
_VERSION = """import {0}, sys, importlib.metadata as m
try:
    print(m.version({1!r} or {0!r}))
except m.PackageNotFoundError:
    print("SQLite " + {0}.sqlite_version if {0}.__name__ == "sqlite3" else "installed")
"""


def environment() -> dict[str, str]:
    """The workers' environment: no bytecode beside the checkout's modules."""
    return os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}


def interpreters(names: list[str]) -> dict[str, tuple[str, str]]:
    """Of the contenders that are installed, the interpreter that has it and the version.

    Debian's python3-rrdtool serves the system's own python, so that one is asked too.
    """
    found = {}
    for name in names:
        entry = CONTENDERS[name]
        pythons = [sys.executable] + ["/usr/bin/python3"] * (name == "rrdtool")
        for python in pythons:
            script = _VERSION.format(entry.needs, entry.distribution)
            done = subprocess.run(
                [python, "-c", script], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                found[name] = python, done.stdout.strip()
                break
    return found


class Worker:
    """The worker process of a contender; a call that it cannot do returns {"unsupported": why}."""

    def __init__(self, name: str, python: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self._process = subprocess.Popen(
            [python, str(HERE / "worker.py"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )

    def call(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have something done, and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer: dict[str, Any] = (
            json.loads(line) if line else {"unsupported": "failed: see standard error"}
        )
        return answer

    def size(self) -> int:
        """Bytes of all its files, as their lengths say."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def sync(self) -> None:
        """Write out what the contender has left unsynced, as the kernel does after half a minute.

        From this process, not the contender's: closing a descriptor there would drop SQLite's
        locks.
        """
        for path in self.folder.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def stop(self) -> None:
        """Let the process end, and remove its files."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
