"""Which message makes a broker end the connection.

A broker of MQTT 3.1.1 has no word for a message that is not allowed, and some of MQTT 5 end the
connection before the word gets out: mosquitto 2.0 does. They take messages in order, so the one that
was on its way for longest is the suspect. If it is the same one time after time, it is held back, so
that everything else gets through.
"""

from __future__ import annotations

SHORT_SECONDS = (
    10.0  # everything is sent soon after the greeting; an end after that has other reasons
)
STRIKES = (
    3  # ends in a row with the same suspect; once one has been found, one is enough for the next
)


class Suspicion:
    """Counts the ends of connections and who is suspected of each."""

    def __init__(self) -> None:
        self._topic: str | None = None
        self._strikes = 0
        self._has_found = False

    def ended(self, topic: str | None, seconds: float) -> bool:
        """Note the end of a connection after that long; whether its suspect is to be held back.

        `topic`: of the message that was on its way for longest; None if there was none, or if the
        broker had said which one it refused.
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
