"""Finds the message that makes a broker end the connection.

A broker of MQTT 3.1.1 cannot say that a message is not allowed, and some of MQTT 5, mosquitto 2.0
among them, end the connection before the answer is sent. They take messages in order, so the one
that has been on its way for longest is the suspect. If it is the same one time after time, it is
held back, so that everything else gets through.
"""

from __future__ import annotations

SHORT_SECONDS = 10.0  # everything is sent by then: a connection that ends later has other reasons
STRIKES = 3  # ends in a row with the same suspect; after the first find one is enough


class Suspicion:
    """Counts the ends of connections and who is suspected of each."""

    def __init__(self) -> None:
        self._topic: str | None = None
        self._strikes = 0
        self._has_found = False

    def ended(self, topic: str | None, seconds: float) -> bool:
        """Note that a connection ended after so long; return whether to hold its suspect back.

        `topic`: that of the message on its way for longest; None if there was none, or if the
        broker said which one it refused.
        """
        if topic is None or seconds >= SHORT_SECONDS:
            self._topic = None
            self._strikes = 0
            self._has_found = self._has_found and seconds < SHORT_SECONDS
            return False
        self._strikes = self._strikes + 1 if topic == self._topic else 1
        self._topic = topic
        if self._strikes < (1 if self._has_found else STRIKES):
            return False
        self._has_found = True
        self._strikes = 0
        return True
