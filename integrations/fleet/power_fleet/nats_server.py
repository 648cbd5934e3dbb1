"""The NATS server of a hub: a child process with its files in one directory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

from power_fleet import child
from power_fleet.backoff import Backoff
from power_fleet.discovery import LOOPBACK
from power_fleet.errors import Refused
from power_fleet.stream import NATS_FAILURES, Nats, check_server
from power_manager import StorageError, not_installed

READY_SECONDS = 60.0  # a server reads what it has stored before it answers
END_SECONDS = 1.0  # to end after SIGTERM
HEALTH_SECONDS = 2.0  # to say how it is
_FAILED = re.compile(rb"write error|JetStream not enabled")  # of what it says in /healthz
_DIRECT = build_opener(ProxyHandler({}))
_MORE_BYTES = 64 * 2**20  # beside the streams: what is on its way out of them
_log = logging.getLogger("power_fleet")

_CONFIGURATION = """# `power-fleet hub` writes this file: what is changed here is lost.
server_name: hub
listen: {listen}
http: "127.0.0.1:-1" # any free port
pid_file: {pid_file}
ports_file_dir: {home}
logfile: {log}
logfile_size_limit: 10MB
logfile_max_num: 2
jetstream {{
  store_dir: {store}
  sync_interval: always
  max_memory_store: 0
  max_file_store: {max_bytes}
}}
{security}
"""
_SECURITY = """tls {{ cert_file: {certificate}, key_file: {key}, min_version: "1.2" }}
authorization {{
  timeout: 5
  include {users} # always below the directory of this file
}}
"""


@dataclass(frozen=True)
class Security:
    """What a server needs that others reach.

    The address; a certificate with its key, both PEM; and the file of users, in the directory above
    the server's.
    """

    host: str
    certificate: Path
    key: Path
    users: Path


class NatsServer:
    """One server with JetStream.

    `port` 0 is a free one, which it keeps; `max_bytes` is what its streams may take.
    """

    def __init__(
        self,
        home: Path,
        port: int,
        max_bytes: int,
        security: Security | None = None,
    ) -> None:
        self.home = home.absolute()
        self.host = LOOPBACK if security is None else security.host
        self.port = port
        self._max_bytes = max_bytes
        self._security = security
        self._process: asyncio.subprocess.Process | None = None
        self._is_restarting = False
        self._watched_at = ""  # the URL where it says how it is; another port at each start

    @property
    def url(self) -> str:
        """Where this machine's programs reach it."""
        scheme = "nats" if self._security is None else "tls"
        host = LOOPBACK if self.host in ("0.0.0.0", "::") else self.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def process(self) -> int:
        """Its process id; it has to be started already."""
        assert self._process is not None
        return self._process.pid

    @property
    def pid_file(self) -> Path:
        """Holds its process id."""
        return self.home / "nats.pid"

    async def start(self) -> None:
        """Start it. Raises Refused where its port is taken, StorageError where it ends at once."""
        program = nats_program()
        self.home.mkdir(mode=0o700, exist_ok=True)
        if self.port:
            check_port(self.host, self.port)
        configuration = self.home / "nats.conf"
        configuration.write_text(self._configuration(), encoding="utf-8")
        for old in self.home.glob("*.ports"):
            old.unlink()
        command = [sys.executable, "-I", "-S", child.__file__, str(os.getpid()), program]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            "-c",
            str(configuration),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            # Ctrl-C is for the hub, which ends its server when it has ended itself.
            start_new_session=True,
        )
        await self._await_port()

    def _configuration(self) -> str:
        security = ""
        if self._security is not None:
            security = _SECURITY.format(
                certificate=_quoted(self._security.certificate.absolute()),
                key=_quoted(self._security.key.absolute()),
                users=_quoted(f"../{self._security.users.name}"),
            )
        host = f"[{self.host}]" if ":" in self.host else self.host
        return _CONFIGURATION.format(
            listen=_quoted(f"{host}:{self.port or -1}"),
            pid_file=_quoted(self.pid_file),
            home=_quoted(self.home),
            log=_quoted(self.home / "nats.log"),
            store=_quoted(self.home / "store"),
            max_bytes=self._max_bytes + _MORE_BYTES,
            security=security,
        )

    async def _await_port(self) -> None:
        """Wait until it has said in its file at which port it listens.

        It writes that file when it takes connections.
        """
        assert self._process is not None
        deadline = time.monotonic() + READY_SECONDS
        while True:
            if self._process.returncode is not None:
                raise StorageError(
                    self.home, f"the NATS server does not start: {self._last_words()}"
                )
            for file in self.home.glob("*.ports"):
                with contextlib.suppress(ValueError, KeyError):  # it is being written
                    said = json.loads(file.read_text(encoding="utf-8"))
                    address, *_ = said["nats"]  # of 0.0.0.0 it names each of the machine's
                    (self._watched_at,) = said["monitoring"]
                    self.port = int(address.rpartition(":")[2])
                    return
            if time.monotonic() > deadline:
                raise StorageError(self.home, "the NATS server does not get ready: see nats.log")
            await asyncio.sleep(0.02)

    def _last_words(self) -> str:
        try:
            lines = (
                (self.home / "nats.log").read_text(encoding="utf-8", errors="replace").splitlines()
            )
        except OSError:
            lines = []
        return lines[-1] if lines else "it says nothing"

    async def keep_running(self, backoff: Backoff) -> None:
        """Start it again whenever it ends; it has to be started already."""
        while True:
            assert self._process is not None
            code = await self._process.wait()
            if self._is_restarting:
                self._is_restarting = False
            else:
                _log.error("the NATS server ended (code %d), and is started again", code)
                await asyncio.sleep(backoff.next())
            try:
                await self.start()
            except (StorageError, Refused, OSError) as error:
                _log.error("%s", error)
            else:
                backoff.reset()

    def has_failed(self) -> bool:
        """Whether it says that it takes in nothing, as after an error of its disk.

        It goes on like that until it is restarted (seen with 2.15.1), though it answers
        everything else. One that does not answer is starting, or has ended.
        """
        try:
            with _DIRECT.open(f"{self._watched_at}/healthz", timeout=HEALTH_SECONDS):
                return False
        except HTTPError as error:
            with error:
                return _FAILED.search(error.read()) is not None
        except (OSError, HTTPException):
            return False

    def restart(self) -> None:
        """Have it end; keep_running() then starts it again."""
        self._is_restarting = True
        self._terminate()

    def _terminate(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def stop(self) -> None:
        """End it, and wait until it is gone."""
        if self._process is None:
            return
        self._terminate()
        try:
            await asyncio.wait_for(self._process.wait(), END_SECONDS)
        except asyncio.TimeoutError:
            self._process.kill()
            await self._process.wait()


async def await_answer(to: Nats) -> None:
    """Wait until the server takes in messages. Raises TimeoutError."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            connection = await to.connect("power-fleet hub")
            try:
                await check_server(connection)
                return
            finally:
                await connection.close()
        except NATS_FAILURES as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the NATS server does not answer: {error}") from error
            await asyncio.sleep(0.1)


def nats_program() -> str:
    """Where nats-server is: that of the Python package beside this Python, or one on the PATH.

    Raises Refused.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise Refused(not_installed("nats-server", "hub"))
    return found


def check_port(host: str, port: int) -> None:
    """Raise Refused for a port that cannot be listened at."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Refused(
                f"--nats-port: {host}:{port} cannot be had ({error.strerror}): "
                "name another one, or 0 for any free one"
            ) from error


def _quoted(value: object) -> str:
    return json.dumps(str(value))
