"""uvicorn behind a listener of our own, with limits of times, a way to end slow clients, and an end within seconds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from power_service.listener import Listener, bind
from power_service.settings import Refused, Settings

_log = logging.getLogger("power_service")
GRACE_SECONDS = 2.5  # for clients to take in what is on its way, when the service ends
LAST_SECONDS = 4.5  # after that long the process is gone, whatever still runs
CLOSE_SECONDS = 5.0  # for a client to take in a close frame

if TYPE_CHECKING:
    _Http = H11Protocol
else:
    try:
        from uvicorn.protocols.http.httptools_impl import (
            HttpToolsProtocol as _Http,
        )  # the extra `fast`
    except ImportError:
        _Http = H11Protocol


class HttpProtocol(_Http):
    """A connection that is cut where it stalls: in a request's head, or in taking in an answer."""

    settings: Settings  # set on a subclass, by make_server()
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _upgraded = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in bytes; those of a head are counted and timed."""
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
        """From now on the connection is a WebSocket's."""
        self._upgraded = True
        self._disarm()
        super().handle_websocket_upgrade(*arguments)

    def pause_writing(self) -> None:
        """The client does not take in what is sent."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(
                self.settings.body_seconds, self.transport.abort
            )

    def resume_writing(self) -> None:
        """The client does again."""
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
    """A WebSocket that can be closed also while its client takes nothing in."""

    def handle_connect(self, event: Any) -> None:
        """Let the application close it by scope["extensions"]["power_service.close"]."""
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"]["power_service.close"] = self.close

    def close(self, code: int, reason: str) -> None:
        """Queue a close frame behind what is sent already; cut the connection if it is not taken in."""
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
    """Ends within LAST_SECONDS of a signal, also with clients that do not go."""

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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; a thread sees to it that it does end, whatever else hangs."""
        last = threading.Timer(LAST_SECONDS, os._exit, (0,))  # safe: what is committed is committed
        last.daemon = True
        last.start()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: Any = None) -> None:
        """Open the database, listen, and say where."""
        bound = bind(self._settings.host, self._settings.port)  # first: it is what may fail
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
        """Whether to end: also when the database was replaced."""
        hub = getattr(self._app.state, "hub", None)
        if hub is not None and hub.stop_service.is_set():
            self.replaced = self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Close every connection, and after GRACE_SECONDS cut those that are left."""
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._cut)
        await super().shutdown(sockets)

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _address(scheme: str, host: str, port: int) -> str:
    """Where a browser on this machine finds the page."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    if ":" in name and not name.startswith("["):
        name = f"[{name}]"
    return f"{scheme}://{name}:{port}/"


def _load(config: uvicorn.Config, settings: Settings) -> None:
    """Read the certificate and its key now, to say which will not do: the errors of ssl name no file."""
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
    """The server of an application; `announce` is called with its address. Raises Refused for a wrong certificate."""
    http = type("HttpProtocol", (HttpProtocol,), {"settings": settings})
    config = uvicorn.Config(
        guarded,
        host=settings.host,
        port=settings.port,
        http=http,
        ws=StreamProtocol,
        ws_max_size=4096,  # clients of the stream have nothing to say
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


def run(server: Server) -> int:
    """Serve until a signal; return the exit code."""
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # uvicorn raises it again when it has ended: that is all right
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    return 1 if server.replaced or not server.started else 0
