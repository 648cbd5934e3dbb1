"""Sends events to the broker in order, each at least once, from a cursor in the file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from power_manager import PowerEvent, PowerManager
from power_mqtt.mirror import Publish
from power_mqtt.notices import Ticket
from power_mqtt.payloads import event_payload, json_bytes
from power_mqtt.topics import Topics

BATCH = 100  # events on their way at a time; all others wait in the file
REFUSED_SECONDS = 60.0  # after which events that the broker refused are tried again
# Between two tries to move the cursor in a locked file: each try holds up everything else.
LOCKED_SECONDS = 20.0
_log = logging.getLogger("power_mqtt")


@dataclass
class _Sent:
    """An event on its way. Without a ticket it is done: acknowledged, or of no published device."""

    sequence: int
    ticket: Ticket | None
    topic: str = ""
    refusal: str = ""


class EventFeed:
    """Sends the events after the cursor; once they are acknowledged, the cursor moves past them.

    `name`: the follower's name in the file. `wants`: whether events of a device are published.
    `meter_name`: a meter's name, None if it is not known.
    """

    def __init__(
        self,
        pm: PowerManager,
        name: str,
        topics: Topics,
        publish: Publish,
        *,
        wants: Callable[[str], bool],
        meter_name: Callable[[str], str | None],
    ) -> None:
        self._pm = pm
        self._follower = pm.event_follower(name)
        self._topics = topics
        self._publish = publish
        self._wants = wants
        self._meter_name = meter_name
        self._batch: list[_Sent] = []
        self._file_id = ""  # the file_id when the batch was read
        self._reached: int | None = None  # where the cursor may move to
        self._is_due = True  # there may be events to send
        self._not_before = 0.0
        self._save_not_before = 0.0
        self._has_complained = False

    def reset(self) -> None:
        """Begin with a new connection: what was on its way is sent again."""
        self._batch = []
        self._is_due = True

    def waiting(self) -> list[tuple[str, bytes]]:
        """Topic and payload of the events that wait, at most one batch."""
        file_id = self._pm.file_id
        return [
            (self._topics.event(event.device_id), self._payload(sequence, event, file_id))
            for sequence, event in self._follower.pending(BATCH)
            if self._wants(event.device_id)
        ]

    def wake(self) -> None:
        """Have the next send() look for events: the file has changed."""
        self._is_due = True

    def is_quiet(self) -> bool:
        """Whether no event is on its way."""
        return not self._batch

    def send(self, now: float) -> None:
        """Save how far it has come, and send the next events unless some are still on their way.

        Raises PowerManagerError; nothing is then sent before the cursor has been moved.
        """
        while self._save(now) and self._is_due and not self._batch and now >= self._not_before:
            file_id = self._pm.file_id
            pending = self._follower.pending(BATCH)
            if self._pm.file_id != file_id:
                return  # restored in between: the next look reads the restored events
            if not pending:
                self._is_due = False
                return
            self._file_id = file_id
            for sequence, event in pending:
                if not self._send_one(sequence, event):
                    self._batch = []  # the connection has ended: the next one starts with them
                    return
            self._finish(now)

    def _send_one(self, sequence: int, event: PowerEvent) -> bool:
        if not self._wants(event.device_id):
            self._batch.append(_Sent(sequence, None))
            return True
        topic = self._topics.event(event.device_id)
        ticket = self._publish(topic, self._payload(sequence, event, self._file_id), False)
        self._batch.append(_Sent(sequence, ticket, topic))
        return ticket is not None

    def _payload(self, sequence: int, event: PowerEvent, file_id: str) -> bytes:
        name = None if event.meter_id is None else self._meter_name(event.meter_id)
        return json_bytes(event_payload(sequence, event, file_id, name))

    def acknowledge(self, ticket: Ticket, refusal: str, now: float) -> bool:
        """Note the broker's answer to a message; return whether it was one of these events."""
        for sent in self._batch:
            if sent.ticket == ticket:
                sent.ticket = None
                sent.refusal = refusal
                self._finish(now)
                return True
        return False

    def _finish(self, now: float) -> None:
        """If nothing is on its way, note how far the cursor may move: up to a refused event."""
        if any(sent.ticket is not None for sent in self._batch):
            return
        for sent in self._batch:
            if sent.refusal:
                self.refuse(sent.topic, sent.refusal, now)
                break
            self._reached = sent.sequence
        self._batch = []

    def _save(self, now: float) -> bool:
        """Move the cursor as far as it may; whether it is there. Raises PowerManagerError."""
        if self._reached is None:
            return True
        if now < self._save_not_before:
            return False
        self._save_not_before = now + LOCKED_SECONDS
        # In one transaction: a backup restored meanwhile has other events under these numbers.
        with self._pm.transaction():
            if self._pm.file_id == self._file_id:
                self._follower.acknowledge(self._reached)
        self._reached = None
        self._save_not_before = 0.0
        return True

    def oldest(self) -> tuple[Ticket, str] | None:
        """The event that has been on its way for longest, and its topic."""
        for sent in self._batch:
            if sent.ticket is not None:
                return sent.ticket, sent.topic
        return None

    def refuse(self, topic: str, refusal: str, now: float) -> None:
        """Note that the broker refused an event; it and those after it are tried again later."""
        self._not_before = now + REFUSED_SECONDS
        if not self._has_complained:
            self._has_complained = True
            _log.error(
                "the broker refuses an event on %s: %s; it and the events after it are tried again "
                "every %g s",
                topic,
                refusal,
                REFUSED_SECONDS,
            )
