"""gzip for clients that accept it: answers as they are made, fixed files once."""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LEAST_BYTES = 1024  # a smaller answer fits into one packet anyway
_LARGE_BYTES = 65_536  # compressing more takes milliseconds: off the event loop
_COMPRESSIBLE = (
    "text/",
    "application/json",
    "application/problem+json",
    "application/manifest+json",
    "application/javascript",
    "image/svg+xml",
)


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header accepts gzip; an empty one does not."""
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        coding, _, parameters = part.partition(";")
        name, _, value = parameters.partition("=")
        try:
            weights[coding.strip()] = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            weights[coding.strip()] = 0.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def is_compressible(media_type: str) -> bool:
    """Whether gzip makes content of that type much smaller."""
    return media_type.lower().startswith(_COMPRESSIBLE)


# Without a time in it, so that the same content always gives the same bytes.
_compressed = functools.partial(gzip.compress, compresslevel=6, mtime=0)


class Compress:
    """Compresses answers of an ASGI application that are text and have a single part.

    Streamed answers pass unchanged, and so do those with an ETag, which names their exact bytes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, compressed if the client accepts it."""
        if scope["type"] == "http":
            taken = accepts_gzip(Headers(scope=scope).get("accept-encoding", ""))
            await self._app(scope, receive, _Compressing(send, taken).send)
        else:
            await self._app(scope, receive, send)


class _Compressing:
    """One answer; its head waits for its body, whose size decides."""

    def __init__(self, send: Send, taken: bool) -> None:
        self._send = send
        self._taken = taken
        self._head: Message | None = None

    async def send(self, message: Message) -> None:
        """Send a part, compressed if it is the whole body."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        head = self._head
        self._head = None
        if head is not None:
            if not message.get("more_body", False):
                message = await self._whole(head, message)
            await self._send(head)
        await self._send(message)

    async def _whole(self, head: Message, message: Message) -> Message:
        """The body as it is sent; sets the head's fields for it."""
        body: bytes = message.get("body", b"")
        headers = MutableHeaders(raw=head["headers"])
        is_fixed = "etag" in headers or "content-encoding" in headers
        if is_fixed or len(body) < LEAST_BYTES:
            return message
        if not is_compressible(headers.get("content-type", "")):
            return message
        headers.add_vary_header("Accept-Encoding")
        if not self._taken:
            return message
        if len(body) < _LARGE_BYTES:
            smaller = _compressed(body)
        else:
            smaller = await asyncio.to_thread(_compressed, body)
        headers["Content-Encoding"] = "gzip"
        headers["Content-Length"] = str(len(smaller))
        return {**message, "body": smaller}


class FixedFile:
    """Content that does not change while the service runs, with an ETag for each encoding."""

    def __init__(self, content: bytes, media_type: str, headers: dict[str, str]) -> None:
        self._media_type = media_type
        etag = hashlib.sha256(content).hexdigest()[:32]
        self._plain = (content, {**headers, "ETag": f'"{etag}"'})
        self._gzip = self._plain
        if is_compressible(media_type) and len(content) >= LEAST_BYTES:
            self._plain[1]["Vary"] = "Accept-Encoding"
            encoded = {"ETag": f'"{etag}-gzip"', "Content-Encoding": "gzip"}
            smaller = gzip.compress(content, 9, mtime=0)
            self._gzip = (smaller, {**self._plain[1], **encoded})

    async def answer(self, request: Request) -> Response:
        """The content, or 304 if the client has it."""
        taken = accepts_gzip(request.headers.get("accept-encoding", ""))
        content, headers = self._gzip if taken else self._plain
        known = request.headers.get("if-none-match", "").replace("W/", "")
        if headers["ETag"] in [etag.strip() for etag in known.split(",")]:
            kept = {name: headers[name] for name in headers if name != "Content-Encoding"}
            return Response(status_code=304, headers=kept)
        return Response(content, headers=headers, media_type=self._media_type)
