"""What the broker is to retain beside what it retains: only the difference is sent.

Memory is one entry a topic, however long the broker is away: newer values replace those that wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from power_mqtt.notices import WINDOW, Ticket

REFUSED_SECONDS = 300.0  # after which a refused message is tried again
CONTRADICT_SECONDS = 1.0  # after which another program's message on our topic is corrected
_log = logging.getLogger("power_mqtt")

# Takes topic, payload and retain; returns None without a connection.
Publish = Callable[[str, bytes, bool], "Ticket | None"]


@dataclass(frozen=True)
class Retained:
    """What a topic is to hold, b"" for nothing. `interval`: seconds between two messages."""

    topic: str
    payload: bytes
    interval: float = 0.0


@dataclass
class _Entry:
    """One topic."""

    wanted: Retained
    held: bytes | None = None  # what the broker has acknowledged; None: unknown
    ticket: Ticket | None = None  # a message that is on its way
    sending: bytes = b""  # its payload
    not_before: float = 0.0
    refused_until: float = 0.0  # also beyond the end of the connection


class Mirror:
    """The retained topics.

    `cleared` is called with a topic once the broker holds nothing there any more.
    """

    def __init__(self, publish: Publish, cleared: Callable[[str], None]) -> None:
        self._publish = publish
        self._cleared = cleared
        self._entries: dict[str, _Entry] = {}
        # The topics with something to send, in the order in which it was wanted.
        self._waiting: dict[str, None] = {}
        self._tickets: dict[Ticket, str] = {}
        self._has_complained = False

    def want(self, message: Retained) -> None:
        """Have the broker hold that, from the next send() on."""
        entry = self._entries.get(message.topic)
        if entry is None:
            self._entries[message.topic] = _Entry(message)
        elif entry.wanted is message or entry.wanted == message:
            return
        else:
            entry.wanted = message
        self._waiting.setdefault(message.topic)

    def drop(self, topics: Iterable[str]) -> None:
        """Leave these topics to somebody else from now on."""
        for topic in topics:
            self._waiting.pop(topic, None)
            entry = self._entries.pop(topic, None)
            if entry is not None and entry.ticket is not None:
                del self._tickets[entry.ticket]  # it is on its way, and its answer means nothing

    def topics(self) -> set[str]:
        """The topics that are to hold something."""
        return {topic for topic, entry in self._entries.items() if entry.wanted.payload}

    def resend(self, topics: set[str] | None = None) -> None:
        """Send these topics again (None: all): what the broker holds there is unknown."""
        for topic, entry in self._entries.items():
            if topics is None or topic in topics:
                entry.held = None
                entry.not_before = 0.0
                self._waiting.setdefault(topic)

    def reset(self) -> None:
        """Start with a new connection: what the broker holds is unknown."""
        self._tickets.clear()
        for entry in self._entries.values():
            entry.ticket = None
        self.resend()

    def contradict(self, topic: str, payload: bytes, now: float) -> None:
        """Note another program's message on a topic of ours, and correct it if it is wrong."""
        entry = self._entries.get(topic)
        if entry is None or entry.ticket is not None or payload == entry.wanted.payload:
            return
        entry.held = None
        entry.not_before = now + CONTRADICT_SECONDS
        self._waiting.setdefault(topic)

    def hurry(self, first: Sequence[Retained]) -> None:
        """Want these too, before everything else, and let nothing wait for its interval."""
        waiting = self._waiting
        self._waiting = {}
        for message in first:
            self.want(message)
        self._waiting |= waiting
        for entry in self._entries.values():
            entry.not_before = 0.0

    def is_quiet(self) -> bool:
        """Whether no message is on its way."""
        return not self._tickets

    def holds(self, messages: Sequence[Retained]) -> bool:
        """Whether the broker holds these."""
        return all(self._entries[one.topic].held == one.payload for one in messages)

    def is_done(self) -> bool:
        """Whether the broker holds everything that is wanted."""
        return not self._tickets and not self._waiting

    def waiting_count(self) -> int:
        """How many topics are to be sent, or are not acknowledged yet."""
        return len(self._waiting.keys() | set(self._tickets.values()))

    def send(self, now: float) -> None:
        """Send what differs and is due, within the window; `now`: seconds of any clock."""
        for topic in list(self._waiting):
            if len(self._tickets) >= WINDOW:
                return
            entry = self._entries[topic]
            if entry.ticket is not None or now < max(entry.not_before, entry.refused_until):
                continue
            if entry.wanted.payload == entry.held:
                del self._waiting[topic]
                continue
            ticket = self._publish(topic, entry.wanted.payload, True)
            if ticket is None:
                return
            entry.ticket = ticket
            entry.sending = entry.wanted.payload
            entry.not_before = now + entry.wanted.interval
            self._tickets[ticket] = topic

    def acknowledge(self, ticket: Ticket, refusal: str, now: float) -> bool:
        """Note the broker's answer to a message; return whether it was one of these topics."""
        topic = self._tickets.pop(ticket, None)
        if topic is None:
            return False
        entry = self._entries[topic]
        entry.ticket = None
        if refusal:
            self.refuse(topic, refusal, now)
            return True
        entry.held = entry.sending
        if entry.wanted.payload == entry.held:
            self._waiting.pop(topic, None)
            if not entry.held:
                del self._entries[topic]
                self._cleared(topic)
        return True

    def oldest(self) -> tuple[Ticket, str] | None:
        """The message that has been on its way for longest, and its topic."""
        return next(iter(self._tickets.items()), None)

    def refuse(self, topic: str, refusal: str, now: float) -> None:
        """Note that the broker refused a topic; it is tried again after a while."""
        self._entries[topic].refused_until = now + REFUSED_SECONDS
        if not self._has_complained:
            self._has_complained = True  # hundreds may follow, for the same reason
            _log.error(
                "the broker refuses %s: %s; what it refuses is tried again every %g s",
                topic,
                refusal,
                REFUSED_SECONDS,
            )
