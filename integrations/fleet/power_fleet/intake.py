"""What the stream has for the sinks, taken many at once.

While those are being stored, the next ones come already.

The client's own way of fetching waits for each message by itself, which costs more than all the
rest of a sink, and reads headers that a device may have made up: see wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Iterable
from typing import NamedTuple

from nats.aio.msg import Msg

from power_fleet.stream import Nats
from power_fleet.subjects import CONSUMER, STREAM
from power_fleet.wire import Delivery, Wire, open_wire

MESSAGES = 4000  # asked for at once
BYTES = 8 * 1024 * 1024  # of those; more than one message can have, or it would never come
ASKED_SECONDS = 5.0  # that the server may take to answer
LATE_SECONDS = 5.0  # after that the server is taken for gone
CLOSE_SECONDS = 0.5  # to wait for what is on its way
_NEXT = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}"
_ACKNOWLEDGEMENT = "$JS.ACK."  # what the reply of a message of the stream begins with
_SHORT_REPLY = 9  # parts that it has; the longer form names domain and account before the stream
# How the server ends a question where nothing is wrong: its time is over, it has had all messages
# that it asked for, or the next message has more bytes than are left of those that it asked for.
_ENDED = ("404", "408")
_DONE = ("409 batch completed", "409 message size exceeds maxbytes")
_STATUS = b"NATS/1.0 "  # what the headers begin with where the server says how it is


class Message(NamedTuple):
    """A message of the stream."""

    subject: str
    data: bytes
    has_headers: bool
    reply: str  # where it is acknowledged
    sequence: int  # its place in the stream
    taken_at: int  # when the stream took it in, microseconds since 1970 by its own clock


class Intake:
    """Messages as they come to one sink. Its methods raise OSError where the stream is away."""

    def __init__(self, source: Nats, messages: int = MESSAGES) -> None:
        self._source = source
        self._messages = messages
        self._inbox = f"{source.answers_to(source.key())}.{secrets.token_hex(12)}"
        self._waiting: list[Message] = []
        self._news = asyncio.Event()
        self._questions = 0
        self._expected = 0  # of the present question
        self._late_at = (
            0.0  # when the present question should have been answered, by the monotonic clock
        )
        self._failure: Exception | None = None
        self._wire: Wire

    async def start(self) -> None:
        """Have messages come, from now on."""
        self._wire = await open_wire(self._source, "power-fleet sink", self._arrive, self._fail)
        self._wire.subscribe(f"{self._inbox}.*")
        self._ask()

    @property
    def is_full(self) -> bool:
        """Whether half as many wait as are asked for at once, or more."""
        return len(self._waiting) >= self._messages // 2

    async def wait(self, seconds: float) -> bool:
        """Return whether there are messages, as soon as there are, or after so many seconds."""
        self._ask()
        if not self._waiting:
            self._news.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), seconds)
        if self._failure is not None:
            raise self._failure
        return bool(self._waiting)

    def take(self) -> list[Message]:
        """All messages that have come; more are asked for."""
        taken = self._waiting
        self._waiting = []
        self._ask()
        return taken

    def acknowledge(self, messages: Iterable[Message]) -> None:
        """Have the stream drop messages."""
        for message in messages:
            self._wire.publish(message.reply, Msg.Ack.Ack)

    def give_back(self, message: Message, delay: float) -> None:
        """Have a message come again, to any sink, after so many seconds."""
        order = json.dumps({"delay": int(delay * 1e9)}).encode()
        self._wire.publish(message.reply, Msg.Ack.Nak + b" " + order)

    def drop(self, message: Message) -> None:
        """Have the stream drop a message that cannot be stored."""
        self._wire.publish(message.reply, Msg.Ack.Term)

    async def close(self) -> None:
        """Give back at once what was not taken: it need not wait until its time is over."""
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            # In this order, or what is given back would be sent to this very sink again.
            self._wire.unsubscribe()
            await asyncio.wait_for(self._wire.ping(), CLOSE_SECONDS)
            for message in self._waiting:
                self._wire.publish(message.reply, Msg.Ack.Nak)
        self._waiting = []
        self._wire.close()

    def _ask(self) -> None:
        """Ask for more, unless the present question is still open."""
        now = time.monotonic()
        if self._expected > 0:
            if now > self._late_at and not self._waiting:
                raise ConnectionError(f"nothing is heard of the stream {STREAM}")
            return
        self._questions += 1
        self._expected = self._messages
        self._late_at = now + ASKED_SECONDS + LATE_SECONDS
        question = {
            "batch": self._messages,
            "max_bytes": BYTES,
            "expires": int(ASKED_SECONDS * 1e9),
        }
        self._wire.publish(_NEXT, json.dumps(question).encode(), self._answers_to())

    def _answers_to(self) -> str:
        """Where the server says that the present question is over."""
        return f"{self._inbox}.{self._questions}"

    def _arrive(self, found: Delivery) -> None:
        if found.reply.startswith(_ACKNOWLEDGEMENT):
            sequence, taken_at = place_of(found.reply)
            self._waiting.append(
                Message(
                    found.subject,
                    found.data,
                    bool(found.headers),
                    found.reply,
                    sequence,
                    taken_at,
                )
            )
            self._expected -= 1
        elif found.subject == self._answers_to():
            self._expected = 0
            wrong = what_is_wrong(found.headers)
            if wrong:
                self._fail(ConnectionError(f"the stream {STREAM} gives nothing: {wrong}"))
        self._news.set()

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        self._news.set()


def place_of(reply: str) -> tuple[int, int]:
    """A message's place in the stream and when it came there (microseconds), by its reply.

    >>> place_of("$JS.ACK.POWER_FLEET.sink.1.1234.1235.1700000000123456789.0")
    (1234, 1700000000123456)
    """
    parts = reply.split(".")
    first = 2 if len(parts) == _SHORT_REPLY else 4
    try:
        return int(parts[first + 3]), int(parts[first + 5]) // 1000
    except (IndexError, ValueError):
        raise ValueError(f"not where a message of a stream is acknowledged: {reply!r}") from None


def what_is_wrong(headers: bytes) -> str:
    r"""What the server says where it ends a question; '' where that is as it should be.

    >>> what_is_wrong(b"NATS/1.0 409 Consumer Deleted\r\n\r\n")
    '409 Consumer Deleted'
    >>> what_is_wrong(b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 7\r\n\r\n")
    ''
    """
    status = headers.partition(b"\r\n")[0].removeprefix(_STATUS).decode(errors="replace").strip()
    if status.startswith(_ENDED) or status.lower() in _DONE:
        return ""
    return status or "it does not say why"
