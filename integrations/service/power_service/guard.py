"""What every request and WebSocket passes first: hosts, origins, sizes, times, headers, log, metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from power_service.metrics import Metrics
from power_service.problems import Code, Problem, retry_later
from power_service.settings import Settings

_access_log = logging.getLogger("power_service.access")
_MAX_HEADERS = 100  # fields
_SLASH = "\0"  # an encoded slash inside a path segment; no id can hold a NUL
_CONTENT_SECURITY = "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
_ALWAYS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": _CONTENT_SECURITY.encode(),
    b"cache-control": b"no-store",
}


def _authority(url: str) -> tuple[str, str]:
    """The authority of a URL with its port, and its host name alone, in lower case; empty where it has none."""
    try:
        parts = urlsplit(url.lower())
        return parts.netloc, parts.hostname or ""
    except ValueError:
        return "", ""


def path_text(text: str) -> str:
    """A path parameter as it was meant; see _decode."""
    return text.replace(_SLASH, "/")


def _decode(scope: Scope) -> None:
    """Keep an encoded slash apart from those between segments: ids may hold slashes."""
    raw = scope.get("raw_path", b"")
    if b"%" not in raw:
        return
    if b"%00" in raw:
        raise Problem(Code.INVALID_VALUE, "path: expected text without NUL")
    scope["path"] = "/".join(
        unquote(part).replace("/", _SLASH) for part in raw.decode("ascii", "replace").split("/")
    )


class Guard:
    """The outermost ASGI application."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        names = (
            "localhost",
            "127.0.0.1",
            "::1",
            settings.host.strip("[]"),
            *settings.allowed_hosts,
        )
        self._hosts = frozenset(map(str.lower, names)) - {"0.0.0.0", "::", ""}
        self._origins = frozenset(origin.lower().rstrip("/") for origin in settings.allowed_origins)
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it in, or answer with a problem."""
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
        begin, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(h for h in _ALWAYS.items() if h[0] not in there),
                ]
            await send(message)

        self._under_way += 1
        try:
            self._check(scope)
            if self._under_way > self._settings.max_requests:
                raise retry_later(Code.OVERLOADED, "too many requests are under way", 1)
            await self._app(scope, self._limited(scope, receive), answer)
        except Problem as problem:
            await problem.response()(scope, receive, answer)
        finally:
            self._under_way -= 1
            seconds = time.perf_counter() - begin
            route = getattr(scope.get("route"), "path", None)
            self._metrics.request(route, scope["method"], status, seconds)
            grant = scope.get("state", {}).get("grant")
            path = scope.get("raw_path", b"").decode(
                "ascii", "replace"
            )  # without the query, and still encoded
            who = grant.id if grant else "-"
            _access_log.info(
                "%s %s %d %.1f ms token=%s", scope["method"], path, status, seconds * 1000, who
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
                Code.HOST_NOT_ALLOWED, "this service does not go by that name: see --allow-host"
            )
        # Any page a user looks at can send requests to localhost; browsers say which page it was.
        origin = headers.get("origin", "").lower()
        own = not origin or _authority(origin)[0] == hosts[0].lower()
        if not own and origin not in self._origins:
            raise Problem(Code.FORBIDDEN_ORIGIN, "pages of that origin may not use this service")
        _decode(scope)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """The request's body, up to max_body bytes within body_seconds."""
        limit, taken = self._settings.max_body, 0
        too_large = Problem(Code.BODY_TOO_LARGE, f"a body has at most {limit} bytes")
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdigit() and int(length[:20]) > limit:
            raise too_large
        deadline = asyncio.get_running_loop().time() + self._settings.body_seconds
        complete = False

        async def limited() -> Message:
            nonlocal taken, complete
            if complete:  # now it waits for the client to go
                return await receive()
            left = deadline - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(receive(), max(left, 0.001))
            except asyncio.TimeoutError:
                raise Problem(Code.REQUEST_TIMEOUT, "the body did not come in time") from None
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > limit:
                raise too_large
            return message

        return limited
