"""Accepts connections: counts them from accept on, and limits the time of a TLS handshake.

uvicorn counts a connection only when its protocol begins, with TLS after the handshake: clients
that connect and send nothing would escape every limit. And asyncio's own accept loop logs a line
for each connection that it cannot accept.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from power_service.errors import ServiceError
from power_service.settings import Settings

BACKLOG = 2048  # connections that may wait to be accepted
_PAUSE_SECONDS = 1.0  # for which nothing is accepted when descriptors run out
_REPEAT_SECONDS = 60.0  # between two log lines about that
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # such as ::1 of localhost without IPv6
_WHAT_TO_DO = {
    errno.EADDRINUSE: "another program has this port: end it, or choose another with --port "
    "(0: any free one)",
    errno.EACCES: "this user may not have this port: choose one from 1024 on with --port",
    errno.EADDRNOTAVAIL: "this machine does not have this address: choose another with --host",
}
_log = logging.getLogger("power_service")


class CannotListen(ServiceError, OSError):
    """Nothing can be served at an address; the message names it and says what to do."""

    def __init__(self, host: str, port: int, error: OSError) -> None:
        super().__init__()
        shown_host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        self._address = f"{shown_host}:{port}"
        self._reason = str(error.strerror or error)
        if isinstance(error, socket.gaierror):
            self._reason += ": name an address or a host of this machine with --host"
        elif error.errno in _WHAT_TO_DO:
            self._reason = _WHAT_TO_DO[error.errno]

    def __str__(self) -> str:  # OSError's own would speak of an errno
        return f"cannot listen at {self._address}: {self._reason}"


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets at every address that a host has here. Raises CannotListen."""
    try:
        return _bind(host, port)
    except OSError as error:
        raise CannotListen(host, port, error) from error


def _bind(host: str, port: int) -> list[socket.socket]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    missing: OSError | None = None
    with contextlib.ExitStack() as undo:
        for family, address in dict.fromkeys((family, address) for family, *_, address in found):
            try:
                listening = socket.create_server(address, family=family, backlog=BACKLOG)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                missing = error
                continue
            undo.callback(listening.close)
            listening.setblocking(False)
            bound.append(listening)
        if missing is not None and not bound:
            raise missing
        undo.pop_all()
    return bound


class Listener:
    """Accepts connections, up to max_connections; uvicorn treats it as one of its servers.

    connections: those whose protocol has begun, in uvicorn's set.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        new_protocol: Callable[[], asyncio.Protocol],
        connections: set[Any],
        settings: Settings,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.sockets = sockets
        self._new_protocol = new_protocol
        self._connections = connections
        self._settings = settings
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        # Accepted, and not yet among the connections.
        self._arriving: dict[asyncio.Protocol, asyncio.Task[None]] = {}
        self._refused_at = -_REPEAT_SECONDS  # when the log last said that descriptors ran out
        self._resuming: dict[socket.socket, asyncio.TimerHandle] = {}
        for listening in sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Accept no more connections, and drop those that are still arriving."""
        for timer in self._resuming.values():
            timer.cancel()
        for listening in self.sockets:
            self._loop.remove_reader(listening)
            listening.close()
        for task in self._arriving.values():
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait for the connections that were still arriving."""
        if self._arriving:
            await asyncio.wait(self._arriving.values())

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(BACKLOG):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                self._pause(listening, error)
                return
            # The union: a connection that has just begun is in both.
            if len(self._connections | self._arriving.keys()) >= self._settings.max_connections:
                connection.close()
                continue
            connection.setblocking(False)
            # asyncio sets this only for sockets that name TCP as their protocol, which those of
            # create_server do not. Without it, the second part of an answer waits 40 ms for the
            # client to acknowledge the first.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            protocol = self._new_protocol()
            task = self._loop.create_task(self._take_in(connection, protocol))
            self._arriving[protocol] = task

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        now = time.monotonic()
        if now - self._refused_at >= _REPEAT_SECONDS:
            self._refused_at = now
            _log.error("no connection can be accepted: %s", error.strerror)
        self._loop.remove_reader(listening)
        self._resuming[listening] = self._loop.call_later(_PAUSE_SECONDS, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        del self._resuming[listening]
        self._loop.add_reader(listening, self._accept, listening)

    async def _take_in(self, connection: socket.socket, protocol: asyncio.Protocol) -> None:
        """Begin the connection's protocol, after the handshake if there is TLS."""
        seconds = None if self._tls is None else self._settings.handshake_seconds
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._tls, ssl_handshake_timeout=seconds
            )
        except OSError:
            pass  # the client disconnected, does not speak TLS, or took too long
        finally:
            del self._arriving[protocol]
