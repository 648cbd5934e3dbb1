"""A real power-service process on a loopback port, and how to wait for things."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import forked
import httpx2
from forked import Forked
from hold_port import held_port
from power_service.tokens import Scope, TokenFile

_T = TypeVar("_T")
SERVICE = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SERVICE), str(SERVICE.parents[1])])}
ENVIRONMENT.pop("POWER_MANAGER_DB", None)
SOON = 60.0  # seconds, on a machine that does other things too


def eventually(check: Callable[[], _T], seconds: float = SOON) -> _T:
    """What check returns as soon as it is true; fails after that many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        result = check()
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {seconds} s: {check}"
        time.sleep(0.02)


@contextlib.contextmanager
def small_disk(byte_count: int) -> Iterator[None]:
    """No file can have more bytes: a write fails as on a full disk, with another word."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte_count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


COMMAND = ("-m", "power_service")


class Service:
    """A process with a database of its own in a directory.

    program: ("-c", CODE), which runs in a process that is forked from one that has imported the
    service, as the command does by default; or COMMAND, for the command in a Python of its own.
    """

    def __init__(self, directory: Path, *options: str, program: tuple[str, ...] = ()) -> None:
        self.directory, self.db = directory, directory / "power.db"
        self._held = held_port()
        self.port: int = self._held.getsockname()[1]
        self.log = directory / "service.log"
        self.tokens = TokenFile(directory / "power.db.tokens.json")
        self._program = program
        self._arguments = ["--db", str(self.db), "--port", str(self.port), *options]
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self.scheme = "https" if "--tls-cert" in options else "http"
        self.verify: Any = True

    def token(self, *scopes: str, devices: list[str] | None = None) -> str:
        """The text of a new token."""
        return self.tokens.new("test", map(Scope, scopes), devices)[0]

    def start(self) -> Service:
        """Start, and wait until it listens."""
        begin = self.log.stat().st_size if self.log.exists() else 0
        if self._program == COMMAND:
            command = [sys.executable, "-W", "error", *self._program, *self._arguments]
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT)
        else:
            code = self._program[1:] or (forked.COMMAND,)
            self._process = Forked(self._arguments, self.log, ENVIRONMENT, *code)
        eventually(lambda: self._listens(begin))
        return self

    def _listens(self, begin: int) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        return self.log.exists() and b"listening at" in self.log.read_bytes()[begin:]

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def end(self, sig: int = signal.SIGTERM, seconds: float = SOON) -> tuple[int, float]:
        """Send a signal; return the exit code and how long the process took to end."""
        assert self._process is not None
        begin = time.monotonic()
        self._process.send_signal(sig)
        code = self._process.wait(seconds)
        return code, time.monotonic() - begin

    def wait(self) -> int:
        """The exit code of a process that ends by itself."""
        assert self._process is not None
        return self._process.wait(SOON)

    def stop(self) -> None:
        """Make sure that it is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._held.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def stream_url(self) -> str:
        """Where its stream is."""
        return f"{self.scheme.replace('http', 'ws')}://127.0.0.1:{self.port}/v1/stream"

    def client(self, token: str | None = None, **headers: str) -> httpx2.Client:
        """An HTTP client with that token."""
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return httpx2.Client(
            base_url=self.url, headers=headers, timeout=SOON, verify=self.verify, trust_env=False
        )


def certificate(directory: Path) -> tuple[list[str], ssl.SSLContext]:
    """The options of a service with a certificate for this machine, and a context to trust it."""
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += [
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    subprocess.run(command, check=True, capture_output=True)
    options = ["--tls-cert", str(cert), "--tls-key", str(key)]
    return options, ssl.create_default_context(cafile=cert)
