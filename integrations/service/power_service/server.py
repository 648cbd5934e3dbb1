"""uvicorn with a listener of our own, limits on times, and an end within 2 seconds of a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from power_service.listener import Listener, bind
from power_service.settings import Refused, Settings

_log = logging.getLogger("power_service")
GRACE_SECONDS = 1.2  # for clients to take in what is on its way when the service ends
LAST_SECONDS = 1.8  # after which the process ends, whatever still runs
CLOSE_SECONDS = 5.0  # for a client to take in a close frame

if TYPE_CHECKING:
    _Http = H11Protocol
else:
    try:
        # With the extra `fast`.
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as _Http
    except ImportError:
        _Http = H11Protocol


class HttpProtocol(_Http):
    """A connection that is cut if its client stalls in sending a head or reading an answer."""

    settings: Settings  # set on a subclass, by make_server()
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in bytes; those of a head are counted and limited in time."""
        waiting = self._between_requests()
        super().data_received(data)
        if not self._between_requests() or self.transport.is_closing():
            self._disarm()
        elif waiting:
            self._expect_head()
            self._head_bytes += len(data)
            if self._head_bytes > 4 * self.settings.max_headers:
                self.transport.abort()

    def handle_websocket_upgrade(self, *arguments: Any) -> None:
        """Hand the connection over to the WebSocket."""
        self._upgraded = True
        self._disarm()
        super().handle_websocket_upgrade(*arguments)

    def pause_writing(self) -> None:
        """Start the timer of a client that takes nothing in."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(
                self.settings.body_seconds, self.transport.abort
            )

    def resume_writing(self) -> None:
        """Stop that timer: the client takes something in again."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        super().resume_writing()

    def _between_requests(self) -> bool:
        return not self._upgraded and (self.cycle is None or self.cycle.response_complete)

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self.settings.header_seconds, self.transport.abort
            )

    def _disarm(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class StreamProtocol(WebSocketsSansIOProtocol):
    """A WebSocket that can be closed even while its client takes nothing in."""

    def handle_connect(self, event: Any) -> None:
        """Give the application `close`, in scope["extensions"]["power_service.close"]."""
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"]["power_service.close"] = self.close

    def close(self, code: int, reason: str) -> None:
        """Queue a close frame behind what was sent; cut the connection if it is not taken in."""
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(CLOSE_SECONDS, self.transport.abort)


class Server(uvicorn.Server):
    """Ends within LAST_SECONDS of a signal, even if clients stay connected."""

    def __init__(
        self,
        config: uvicorn.Config,
        settings: Settings,
        app: FastAPI,
        announce: Callable[[str], None],
    ) -> None:
        super().__init__(config)
        self._announce = announce
        self._settings = settings
        self._app = app
        self.replaced = False  # it ended because the database is another file
        self.is_interrupted = False  # it ended by Ctrl-C
        self.at_hard_end: Callable[[], object] = _nothing  # called where LAST_SECONDS have passed

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 1 if it could not go on, else 0."""
        if self.is_interrupted:
            return 130
        return 1 if self.replaced or not self.started else 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a timer ends the process even if something hangs."""
        self.is_interrupted = sig == signal.SIGINT
        last = threading.Timer(LAST_SECONDS, self._end_hard, (130 if self.is_interrupted else 0,))
        last.daemon = True
        last.start()
        super().handle_exit(sig, frame)

    def _end_hard(self, code: int) -> NoReturn:
        """End the process, whatever still runs. It is safe: every write is one transaction."""
        try:
            self.at_hard_end()
        finally:
            os._exit(code)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the database, listen, and say where. Raises CannotListen."""
        bound = sockets or bind(self._settings.host, self._settings.port)  # first, as it may fail
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            for listening in bound:
                listening.close()
            sys.exit(1)  # the log says why
        listener = Listener(
            bound,
            self._new_connection,
            self.server_state.connections,
            self._settings,
            self.config.ssl,
        )
        self.servers = [listener]  # type: ignore[list-item]
        self.started = True
        scheme = "https" if self.config.is_ssl else "http"
        for listening in bound:
            host, port = listening.getsockname()[:2]
            _log.info("listening at %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)
        self._announce(_address(scheme, self._settings.host, bound[0].getsockname()[1]))

    def _new_connection(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; also true when the database was replaced."""
        hub = getattr(self._app.state, "hub", None)
        if hub is not None and hub.stop_service.is_set():
            self.replaced = self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close every connection; after GRACE_SECONDS, cut those that are left."""
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._cut)
        await super().shutdown(sockets)

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _nothing() -> None:
    """There is nothing to put in order."""


def _address(scheme: str, host: str, port: int) -> str:
    """The page's address for a browser on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    if ":" in name and not name.startswith("["):
        name = f"[{name}]"
    return f"{scheme}://{name}:{port}/"


def _load(config: uvicorn.Config, settings: Settings) -> None:
    """Read the certificate and its key, and name the files in errors: those of ssl name none."""
    files = {"--tls-cert": settings.tls_cert, "--tls-key": settings.tls_key}
    for option, path in files.items():
        try:
            if path:
                path.open("rb").close()
        except OSError as error:
            raise Refused(f"{option} {path}: expected a PEM file: {error.strerror}") from None
    try:
        config.load()
    except ssl.SSLError as error:
        named = ", ".join(f"{option} {path}" for option, path in files.items())
        raise Refused(f"{named}: expected a certificate and its key, PEM: {error}") from None


def make_server(
    settings: Settings, guarded: ASGIApp, app: FastAPI, announce: Callable[[str], None]
) -> Server:
    """The server of an application; `announce` is called with its address.

    Raises Refused for a certificate or key that cannot be used.
    """
    http = type("HttpProtocol", (HttpProtocol,), {"settings": settings})
    config = uvicorn.Config(
        guarded,
        host=settings.host,
        port=settings.port,
        http=http,
        ws=StreamProtocol,
        ws_max_size=4096,  # the stream needs no messages from its clients
        ws_per_message_deflate=True,  # a seventh of the bytes, for 7 µs a message
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=settings.behind_proxy,
        h11_max_incomplete_event_size=4 * settings.max_headers,
        timeout_graceful_shutdown=int(GRACE_SECONDS) + 1,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    _load(config, settings)
    return Server(config, settings, app, announce)


def run(server: Server, bound: list[socket.socket]) -> int:
    """Serve at these sockets until a signal; return the exit code."""
    # uvicorn raises its signal again when it has ended.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(bound)
    return server.exit_code
