"""Where connections come in: counted from accept on, with a time for their TLS handshake.

uvicorn counts a connection when its protocol begins, which with TLS is after the handshake: clients that connect and
say nothing would be outside of every limit. And asyncio's own accepting writes a line for each connection that it
cannot take in.
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

from power_service.settings import Settings

BACKLOG = 2048  # connections that may wait to be accepted
_PAUSE_SECONDS = 1.0  # without descriptors nothing is accepted for so long
_REPEAT_SECONDS = 60.0  # as often the log says so
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # as ::1 of localhost without IPv6
_log = logging.getLogger("power_service")


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets at every address that a host has here. Raises OSError."""
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
    """Takes in connections, up to max_connections of them; to uvicorn it is a server.

    connections: those whose protocol has begun; uvicorn keeps them.
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
        # Accepted, and not among the connections yet.
        self._arriving: dict[asyncio.Protocol, asyncio.Task[None]] = {}
        self._refused_at = -_REPEAT_SECONDS  # when the log last said that descriptors are wanting
        self._resuming: dict[socket.socket, asyncio.TimerHandle] = {}
        for listening in sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Take in no more, and drop what is arriving."""
        for timer in self._resuming.values():
            timer.cancel()
        for listening in self.sockets:
            self._loop.remove_reader(listening)
            listening.close()
        for task in self._arriving.values():
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait for what was arriving."""
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
            # Together, for one that has just begun is still in both.
            if len(self._connections | self._arriving.keys()) >= self._settings.max_connections:
                connection.close()
                continue
            connection.setblocking(False)
            # asyncio does so only for sockets that name TCP as their protocol, which those of create_server do not.
            # Without it an answer in two parts waits for the client to say that it has the first: 40 ms.
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
        """Have the connection's protocol begin, after the handshake where there is one."""
        seconds = None if self._tls is None else self._settings.handshake_seconds
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._tls, ssl_handshake_timeout=seconds
            )
        except OSError:
            pass  # the client went, does not speak TLS, or took too long: its own affair
        finally:
            del self._arriving[protocol]
