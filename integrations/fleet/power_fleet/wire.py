"""The connection over which a sink takes messages.

The few words of NATS's protocol that this needs.

The publisher of a message also writes its headers, and any bytes are headers to the server.
nats-py reads them all, and where it cannot it stops reading without a word, and so again when the
message comes again: one stolen device would end every sink. Here nothing reads a message's
headers.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from typing import NamedTuple, cast
from urllib.parse import urlsplit

from power_fleet.discovery import NATS_PORT
from power_fleet.stream import Nats

CONNECT_SECONDS = 5.0  # for each server
_LINE_END = b"\r\n"
_MOST_OF_A_LINE = 64 * 1024


class Delivery(NamedTuple):
    """A message as it came."""

    subject: str
    reply: str
    headers: bytes
    data: bytes


class Wire(asyncio.Protocol):
    """One connection to one server; see open_wire.

    deliver is called with each message, and ended once, with the reason, when the connection has
    ended.
    """

    def __init__(
        self, deliver: Callable[[Delivery], None], ended: Callable[[Exception], None]
    ) -> None:
        self._deliver = deliver
        self._ended = ended
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._is_over = False
        self._failure: Exception | None = None
        loop = asyncio.get_running_loop()
        self._info: asyncio.Future[bytes] = loop.create_future()
        self._pong: asyncio.Future[None] = loop.create_future()  # to the present ping

    # --- What the program says

    def subscribe(self, subject: str) -> None:
        """Have the messages of a subject delivered."""
        self._write(f"SUB {subject} 1\r\n".encode())

    def publish(self, subject: str, data: bytes = b"", reply: str = "") -> None:
        """Send a message. What the connection cannot take at once waits in memory."""
        self._write(
            b"PUB %s %d\r\n%s\r\n" % (f"{subject} {reply}".strip().encode(), len(data), data)
        )

    def unsubscribe(self) -> None:
        """Have nothing delivered any more, but for what is on its way; see ping."""
        self._write(b"UNSUB 1\r\n")

    async def ping(self) -> None:
        """Return when the server has done all that it was told, and its answers have come."""
        if self._pong.done():
            self._pong = asyncio.get_running_loop().create_future()
        self._write(b"PING\r\n")
        await self._pong

    def close(self) -> None:
        """Send what waits, and end."""
        self._is_over = True
        if self._transport is not None:
            self._transport.close()

    async def log_in(self, source: Nats, host: str, name: str) -> None:
        """Do what a new connection begins with. Raises OSError where the server refuses it."""
        info = json.loads(await self._info)
        context = source.tls()
        if context is not None:
            if not info.get("tls_required") and not info.get("tls_available"):
                raise ConnectionError("the NATS server has no TLS")
            await self._start_tls(context, host)
        elif info.get("tls_required"):
            raise ConnectionError("the NATS server asks for TLS: give --ca")
        options: dict[str, object] = {
            "verbose": False,
            "pedantic": False,
            "lang": "python",
            "version": "1",
            "protocol": 1,
            "name": name,
            "headers": True,  # else the server would not say why it ends a question
            "no_responders": True,
        }
        if source.user is not None:
            options |= {"user": source.user, "pass": source.password()}
        key = source.key()
        if key is not None:
            options |= {"nkey": key.public, "sig": key.sign(info.get("nonce", ""))}
        self._write(b"CONNECT " + json.dumps(options).encode() + b"\r\n")
        await self.ping()

    async def _start_tls(self, context: ssl.SSLContext, host: str) -> None:
        loop = asyncio.get_running_loop()
        plain = cast(asyncio.Transport, self._transport)
        secured = await loop.start_tls(plain, self, context, server_hostname=host)
        self._transport = cast(asyncio.Transport, secured)

    def _write(self, data: bytes) -> None:
        if self._is_over or self._transport is None:
            raise self._failure or ConnectionError("the connection to the NATS server is closed")
        self._transport.write(data)

    # --- What asyncio says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._end(exc or ConnectionError("the NATS server ended the connection"))

    def data_received(self, data: bytes) -> None:
        """Understand what is there as a whole, and keep the rest."""
        self._buffer += data
        try:
            del self._buffer[: self._understand()]
        except (ValueError, IndexError) as error:
            self._end(ConnectionError(f"the NATS server says what is not understood: {error}"))

    def _understand(self) -> int:
        """Deliver every message that is there as a whole.

        Return up to where the bytes are done with.
        """
        buffer = self._buffer
        start = 0
        while not self._is_over:
            end = buffer.find(_LINE_END, start)
            if end < 0:
                if len(buffer) - start > _MOST_OF_A_LINE:
                    raise ValueError("a line that does not end")
                return start
            word, _, rest = bytes(buffer[start:end]).partition(b" ")
            body = end + len(_LINE_END)
            if word in (b"MSG", b"HMSG"):
                parts = rest.split()
                total = int(parts[-1])
                if len(buffer) < body + total + len(_LINE_END):
                    return start
                self._message(word == b"HMSG", parts, bytes(buffer[body : body + total]))
                start = body + total + len(_LINE_END)
            else:
                self._control(word, rest)
                start = body
        return start

    def _message(self, has_headers: bool, parts: list[bytes], content: bytes) -> None:
        """A message: subject, subscription, perhaps a reply, bytes of headers, and of all."""
        length_of_headers = int(parts[-2]) if has_headers else 0
        fields = parts[2 : -2 if has_headers else -1]
        self._deliver(
            Delivery(
                parts[0].decode(errors="replace"),  # whose, is decided by the batch in it
                fields[0].decode() if fields else "",
                content[:length_of_headers],
                content[length_of_headers:],
            )
        )

    def _control(self, word: bytes, rest: bytes) -> None:
        if word == b"PING":
            self._write(b"PONG\r\n")
        elif word == b"PONG":
            if not self._pong.done():
                self._pong.set_result(None)
        elif word == b"INFO":  # comes again whenever the cluster changes
            if not self._info.done():
                self._info.set_result(rest)
        elif word == b"-ERR":
            self._end(ConnectionError(f"the NATS server: {rest.decode(errors='replace')}"))
        elif word != b"+OK":
            raise ValueError(repr(word[:40]))

    def _end(self, error: Exception) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._failure = error
        if self._transport is not None:
            self._transport.abort()
        for future in (self._info, self._pong):
            if not future.done():
                future.set_exception(error)
                future.exception()  # perhaps nothing waits for it
        self._ended(error)


async def open_wire(
    source: Nats,
    name: str,
    deliver: Callable[[Delivery], None],
    ended: Callable[[Exception], None],
) -> Wire:
    """A connection to the first of the servers that takes it. Raises OSError where none does."""
    failure: OSError = ConnectionError("no NATS server is named")
    for url in source.servers:
        parts = urlsplit(url)
        host = parts.hostname or ""
        try:
            return await asyncio.wait_for(
                _open(source, name, host, parts.port or NATS_PORT, deliver, ended), CONNECT_SECONDS
            )
        except asyncio.TimeoutError:
            failure = ConnectionError(f"no NATS server answers at {host}")
        except OSError as error:
            failure = error
    raise failure


async def _open(
    source: Nats,
    name: str,
    host: str,
    port: int,
    deliver: Callable[[Delivery], None],
    ended: Callable[[Exception], None],
) -> Wire:
    is_open = False

    def tell(error: Exception) -> None:
        if is_open:  # else log_in raises it
            ended(error)

    loop = asyncio.get_running_loop()
    _, wire = await loop.create_connection(lambda: Wire(deliver, tell), host, port)
    try:
        await wire.log_in(source, host, name)
    except BaseException:
        wire.close()
        raise
    is_open = True
    return wire
