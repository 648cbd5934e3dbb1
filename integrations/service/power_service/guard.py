"""Checks on every request and WebSocket: hosts, origins, sizes, times; headers, log, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from power_service.metrics import Metrics
from power_service.problems import Code, Problem, retry_later
from power_service.settings import Settings

_access_log = logging.getLogger("power_service.access")
_MAX_HEADERS = 100  # fields
_PROBES = frozenset({"/healthz", "/readyz"})
_READING = frozenset({"GET", "HEAD", "OPTIONS"})  # methods; all others may write
_SLASH = "\0"  # an encoded slash inside a path segment; no id can hold a NUL
_CONTENT_SECURITY = "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
_ALWAYS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": _CONTENT_SECURITY.encode(),
    b"cache-control": b"no-store",
}


def _authority(url: str) -> tuple[str, str]:
    """A URL's authority with port, and its host name, in lower case; "" if it has none."""
    try:
        parts = urlsplit(url.lower())
        return parts.netloc, parts.hostname or ""
    except ValueError:
        return "", ""


def path_text(text: str) -> str:
    """A path parameter with its slashes; see _decode."""
    return text.replace(_SLASH, "/")


def _decode(scope: Scope) -> None:
    """Keep an encoded slash apart from the slashes between segments: ids may contain slashes."""
    raw = scope.get("raw_path", b"")
    if b"%" not in raw:
        return
    if b"%00" in raw:
        raise Problem(Code.INVALID_VALUE, "path: expected text without NUL")
    try:
        parts = [unquote(part, errors="strict") for part in raw.decode("ascii").split("/")]
    except UnicodeDecodeError:  # with a character in its place, different ids would be one
        raise Problem(Code.INVALID_VALUE, "path: expected UTF-8, percent-encoded") from None
    scope["path"] = "/".join(part.replace("/", _SLASH) for part in parts)


class _Body:
    """A request's body: up to max_body bytes, within body_seconds."""

    def __init__(self, headers: Headers, receive: Receive, settings: Settings) -> None:
        self._receive = receive
        self._limit = settings.max_body
        self._taken = 0
        self._deadline = asyncio.get_running_loop().time() + settings.body_seconds
        self._length = headers.get("content-length", "0")
        self.complete = self._length == "0" and "transfer-encoding" not in headers

    def check_length(self) -> None:
        """Raise Problem 413 if the body's announced length is too large."""
        if self._length.isdigit() and int(self._length[:20]) > self._limit:
            raise self._too_large()

    def _too_large(self) -> Problem:
        return Problem(Code.BODY_TOO_LARGE, f"a body has at most {self._limit} bytes")

    async def receive(self) -> Message:
        """The next part, for the application. Raises Problem 408 or 413."""
        if self.complete:  # the application waits for the client to disconnect
            return await self._receive()
        try:
            message = await self._next()
        except asyncio.TimeoutError:
            raise Problem(Code.REQUEST_TIMEOUT, "the body did not arrive in time") from None
        if self._taken > self._limit:
            raise self._too_large()
        return message

    async def _next(self) -> Message:
        left = self._deadline - asyncio.get_running_loop().time()
        message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        self._taken += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        return message

    async def drop(self) -> None:
        """Read the rest and drop it."""
        with contextlib.suppress(asyncio.TimeoutError):
            while not self.complete:
                await self._next()


class _Answer:
    """An answer, with the headers of every answer; its last part waits for finish()."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._last: Message | None = None
        self.status = 500

    async def send(self, message: Message) -> None:
        """Send a part; keep the last one."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            there = {name.lower() for name, _ in message["headers"]}
            further = [header for header in _ALWAYS.items() if header[0] not in there]
            message["headers"] = [*message["headers"], *further]
        elif not message.get("more_body", False):
            self._last = message
            return
        await self._send(message)

    async def finish(self, body: _Body) -> None:
        """Send the last part, after reading a body that is still coming.

        If a connection is closed while its client still sends, it is reset, and the client may
        never see the answer.
        """
        if self._last is None:
            return
        if body.complete:
            await self._send(self._last)
            return
        await self._send({**self._last, "more_body": True})
        await body.drop()
        await self._send({"type": "http.response.body"})


class Guard:
    """The outermost ASGI application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        names = (
            "localhost",
            "127.0.0.1",
            "::1",
            settings.host.strip("[]"),
            *settings.allow_host,
        )
        self._hosts = frozenset(map(str.lower, names)) - {"0.0.0.0", "::", ""}
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.allow_origin)
        self._under_way = {"read": 0, "write": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, or answer with a problem."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            try:
                self._check(scope)
            except Problem as problem:
                await WebSocket(scope, receive, send).send_denial_response(problem.response())
            else:
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = time.perf_counter()
        reason = ""  # why it was refused before it reached a route
        body = _Body(Headers(scope=scope), receive, self._settings)
        answer = _Answer(send)
        try:
            self._check(scope)
            body.check_length()
            with self._counted(scope):
                await self._app(scope, body.receive, answer.send)
        except Problem as problem:
            reason = f" {problem.code.value}"
            await problem.response()(scope, receive, answer.send)
        finally:
            self._log(scope, answer.status, reason, time.perf_counter() - begin)
            await answer.finish(body)

    @contextlib.contextmanager
    def _counted(self, scope: Scope) -> Iterator[None]:
        """Count a request in its lane while it runs. Raises Problem 503 if its lane is full.

        So writers that wait for a locked file delay no reader, and nothing delays a supervisor's
        probes.
        """
        if scope["path"] in _PROBES:
            yield
            return
        lane = "read" if scope["method"] in _READING else "write"
        if self._under_way[lane] >= self._settings.max_requests:
            raise retry_later(Code.OVERLOADED, f"too many requests that {lane} are under way", 1)
        self._under_way[lane] += 1
        try:
            yield
        finally:
            self._under_way[lane] -= 1

    def _log(self, scope: Scope, status: int, reason: str, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        self._metrics.request(route, scope["method"], status, seconds)
        grant = scope.get("state", {}).get("grant")
        # Without the query, which may hold a ticket, and still encoded.
        path = scope.get("raw_path", b"").decode("ascii", "replace")
        who = grant.id if grant else "-"
        _access_log.info(
            "%s %s %d%s %.1f ms token=%s",
            scope["method"],
            path,
            status,
            reason,
            seconds * 1000,
            who,
        )

    def _check(self, scope: Scope) -> None:
        """Raise a problem for what no route should see."""
        fields = scope["headers"]
        if (
            len(fields) > _MAX_HEADERS
            or sum(len(k) + len(v) for k, v in fields) > self._settings.max_headers
        ):
            raise Problem(
                Code.HEADERS_TOO_LARGE, f"at most {self._settings.max_headers} bytes of headers"
            )
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _authority(f"//{hosts[0]}")[1] not in self._hosts:
            raise Problem(
                Code.HOST_NOT_ALLOWED, "this host name is not allowed here: see --allow-host"
            )
        # Any page that a user opens can send requests to localhost; browsers name the page.
        origin = headers.get("origin", "").lower()
        own = not origin or _authority(origin)[0] == hosts[0].lower()
        if not own and origin not in self._origins:
            raise Problem(
                Code.FORBIDDEN_ORIGIN,
                "pages of that origin may not use this service: see --allow-origin",
            )
        _decode(scope)
