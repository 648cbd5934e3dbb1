"""What the stream has for the sinks, taken many at once; while those are being stored, the next ones come already.

The client's own way of fetching waits for each message by itself, which costs more than all the rest of a sink.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterable
from typing import NamedTuple

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from power_fleet.stream import CONSUMER, STREAM

MESSAGES = 4000  # asked for at once
BYTES = 8 * 1024 * 1024  # of those; more than one message can have, or it would never come
ASKED_SECONDS = 5.0  # that the server may take to answer
LATE_SECONDS = 2.0  # after that the question is lost: it went to a server that is gone
_NEXT = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}"
_ACKNOWLEDGEMENT = "$JS.ACK."  # what the reply of a message of the stream begins with
_SHORT_REPLY = 9  # parts that it has; the longer form names domain and account before the stream
# How the server ends a question where nothing is wrong: its time is over, it has had all messages that it asked for, or
# the next message has more bytes than are left of those that it asked for.
_ENDED = ("404", "408")
_DONE = ("batch completed", "message size exceeds maxbytes")


class Message(NamedTuple):
    """A message of the stream."""

    subject: str
    data: bytes
    has_headers: bool
    reply: str  # where it is acknowledged
    sequence: int  # its place in the stream
    taken_at: int  # when the stream took it in, microseconds since 1970 by its own clock


class Intake:
    """Messages as they come to one sink. Its methods raise nats.errors.Error or OSError where the stream is away."""

    def __init__(self, connection: Client, messages: int = MESSAGES) -> None:
        self._connection = connection
        self._messages = messages
        self._inbox = connection.new_inbox()
        self._waiting: list[Message] = []
        self._news = asyncio.Event()
        self._questions = 0
        self._expected = 0  # of the present question
        self._lost_at = 0.0  # when the present question is lost, by the monotonic clock
        self._refusal = ""

    async def start(self) -> None:
        """Have messages come, from now on."""
        await self._connection.subscribe(f"{self._inbox}.*", cb=self._arrive)
        await self._ask()

    @property
    def is_full(self) -> bool:
        """Whether as many wait as are asked for at once."""
        return len(self._waiting) >= self._messages // 2

    async def wait(self, seconds: float) -> bool:
        """Return whether there are messages, as soon as there are, or after so many seconds."""
        await self._ask()
        if not self._waiting:
            self._news.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), seconds)
        if self._refusal:
            raise ConnectionError(f"the stream {STREAM} gives nothing: {self._refusal}")
        return bool(self._waiting)

    async def take(self) -> list[Message]:
        """All messages that have come; more are asked for."""
        taken = self._waiting
        self._waiting = []
        await self._ask()
        return taken

    async def acknowledge(self, messages: Iterable[Message]) -> None:
        """Have the stream drop messages."""
        for message in messages:
            await self._connection.publish(message.reply, Msg.Ack.Ack)

    async def give_back(self, message: Message, delay: float) -> None:
        """Have a message come again, to any sink, after so many seconds."""
        order = json.dumps({"delay": int(delay * 1e9)}).encode()
        await self._connection.publish(message.reply, Msg.Ack.Nak + b" " + order)

    async def drop(self, message: Message) -> None:
        """Have the stream drop a message that cannot be stored."""
        await self._connection.publish(message.reply, Msg.Ack.Term)

    async def close(self) -> None:
        """Give back what nobody took, at once: it needs not wait for the end of its time."""
        for message in self._waiting:
            await self._connection.publish(message.reply, Msg.Ack.Nak)
        self._waiting = []

    async def _ask(self) -> None:
        """Ask for more, unless the present question is still open."""
        now = time.monotonic()
        if self._expected > 0 and now < self._lost_at:
            return
        self._questions += 1
        self._expected = self._messages
        self._lost_at = now + ASKED_SECONDS + LATE_SECONDS
        question = {
            "batch": self._messages,
            "max_bytes": BYTES,
            "expires": int(ASKED_SECONDS * 1e9),
        }
        await self._connection.publish(_NEXT, json.dumps(question).encode(), self._answers_to())

    def _answers_to(self) -> str:
        """Where the server says that the present question is over."""
        return f"{self._inbox}.{self._questions}"

    async def _arrive(self, found: Msg) -> None:
        if found.reply.startswith(_ACKNOWLEDGEMENT):
            sequence, taken_at = place_of(found.reply)
            self._waiting.append(
                Message(
                    found.subject,
                    found.data,
                    found.headers is not None,
                    found.reply,
                    sequence,
                    taken_at,
                )
            )
            self._expected -= 1
        elif found.subject == self._answers_to():
            self._expected = 0
            self._refusal = _refusal(found)
        self._news.set()


def place_of(reply: str) -> tuple[int, int]:
    """A message's place in the stream, and when the stream took it in (microseconds), from where it is acknowledged.

    >>> place_of("$JS.ACK.POWER_FLEET.sink.1.1234.1235.1700000000123456789.0")
    (1234, 1700000000123456)
    """
    parts = reply.split(".")
    first = 2 if len(parts) == _SHORT_REPLY else 4
    try:
        return int(parts[first + 3]), int(parts[first + 5]) // 1000
    except (IndexError, ValueError):
        raise nats.errors.NotJSMessageError from None


def _refusal(status: Msg) -> str:
    """What is wrong where the server ends a question; '' where nothing is."""
    headers = status.headers or {}
    code = headers.get("Status", "")
    description = headers.get("Description", "")
    if code in _ENDED or description.lower() in _DONE:
        return ""
    return f"{code} {description}".strip()
