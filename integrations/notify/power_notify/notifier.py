"""The loop: look at the file, send messages by every way, note which were taken."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo

from power_manager import PowerManager, StopSignals, StorageError, shown_duration
from power_notify.news import Clocks, Rules, Watch
from power_notify.quiet import QuietHours
from power_notify.store import Item, Store
from power_notify.texts import CRITICAL, Message, compose, worst_severity
from power_notify.ways import Way

_FILE_TROUBLE_S = 60.0  # without the file, after which the program ends, to be started again
_LAST_WAIT_S = 0.5  # at the end, for messages that are being sent
END_WITHIN_S = 1.6  # after a signal: every write to the file is one transaction
# For one message: Apprise limits only silence, and a server that answers a byte at a time would
# block a way for ever.
_STUCK_S = 120.0
_SAY_AGAIN_S = 3600.0  # between two log lines about a way that stays down
_log = logging.getLogger("power_notify")


@dataclass(frozen=True)
class Timing:
    """When people are told.

    zone: of quiet hours and texts; None: local. quiet: hours in which only critical events are
    told. pause_s: least time between two messages of a way. interval_s: between two looks.
    """

    zone: tzinfo | None = None
    quiet: QuietHours | None = None
    pause_s: float = 30.0
    interval_s: float = 5.0


class Notifier:
    """Follows a file, and tells what happens by all ways."""

    def __init__(
        self,
        pm: PowerManager,
        follower: str,
        ways: Sequence[Way],
        rules: Rules,
        timing: Timing,
        clocks: Clocks | None = None,
    ) -> None:
        self._pm = pm
        self.ways = ways
        self._timing = timing
        self._clocks = clocks or Clocks()
        self._store = Store(pm, follower)
        self._watch = Watch(pm, self._store, rules, self._clocks)
        self._store.set_ways(way.key for way in ways)
        self._waiting: dict[str, list[Item]] = {}
        self._load_waiting()
        self._lines: dict[str, str] = {}  # by way: the file_id when its last message was made
        # By way: the newest item that it has taken, until that is noted in the file.
        self._taken: dict[str, int] = {}
        self._down_since: dict[str, float] = {}
        self._said_s: dict[str, float] = {}

    def look(self, ring: Callable[[], None] = lambda: None) -> None:
        """Look at the file once, and start a message by each way that has one to send.

        ring() is called, in another thread, when a message was sent or has failed.
        """
        self.settle()
        self.take_in()
        for way in self.ways:
            message = self.message_for(way)
            if message is not None and not way.is_busy and way.due_s <= self._clocks.steady():
                self._lines[way.key] = self._pm.file_id
                way.start(message, ring, self._clocks.steady())

    def take_in(self) -> None:
        """Look at the file, and store what is to be told."""
        if self._watch.look():
            self._load_waiting()

    def message_for(self, way: Way) -> Message | None:
        """The message to send by that way now; None if there is none, or it waits.

        In quiet hours, a message is sent only if something in it is critical; it then has all that
        waits.
        """
        items = self._waiting.get(way.key)
        if not items:
            return None
        if self._is_quiet() and worst_severity(items) != CRITICAL:
            return None
        return compose(self._pm, items, self._timing.zone, self._clocks.wall())

    def settle(self, wait_s: float = 0.0) -> None:
        """Note which messages were taken; wait at most so long for those being sent.

        Raises StorageError if the file cannot be written; the next call notes them then.
        """
        deadline_s = time.monotonic() + wait_s
        for way in self.ways:
            outcome = way.outcome(max(deadline_s - time.monotonic(), 0.0))
            if outcome is not None:
                self._note(way, *outcome)
            elif way.is_busy and self._clocks.steady() - way.started_s >= _STUCK_S:
                message = way.give_up()
                if message is not None:
                    self._note(way, message, f"no answer for {shown_duration(_STUCK_S)}")
        self._note_taken()

    def waiting_count(self, way: Way) -> int:
        """How many items a way has not told yet."""
        return len(self._waiting[way.key])

    def waits_for_a_way(self) -> bool:
        """Whether a way has a message to send now."""
        return any(self.message_for(way) is not None for way in self.ways)

    def next_look_s(self) -> float:
        """Seconds until the next look: the interval, or less if a way is ready earlier."""
        now_s = self._clocks.steady()
        due = [way.due_s - now_s for way in self.ways if self._waiting.get(way.key)]
        return min([self._timing.interval_s, *(wait_s for wait_s in due if wait_s > 0)])

    def _is_quiet(self) -> bool:
        if self._timing.quiet is None:
            return False
        now = datetime.fromtimestamp(self._clocks.wall(), self._timing.zone)
        return self._timing.quiet.contains(now.time())

    def _load_waiting(self) -> None:
        self._waiting = {way.key: self._store.waiting(way.key) for way in self.ways}

    def _note(self, way: Way, message: Message, problem: str) -> None:
        now_s = self._clocks.steady()
        if problem:
            way.failure_count += 1
            way.due_s = now_s + way.delay_s()
            self._down_since.setdefault(way.key, now_s)
            if way.failure_count == 1 or now_s - self._said_s[way.key] >= _SAY_AGAIN_S:
                self._said_s[way.key] = now_s
                _log.warning("way %s did not take a message, which is kept: %s", way.label, problem)
            return
        self._taken[way.key] = message.last_sequence
        way.failure_count = 0
        way.due_s = now_s + self._timing.pause_s
        _log.info("way %s: told: %s", way.label, message.title)
        if way.key in self._down_since:
            down_s = now_s - self._down_since.pop(way.key)
            _log.info("way %s works again, after %s", way.label, shown_duration(down_s))

    def _note_taken(self) -> None:
        """Note in the file what was taken, before anything is sent again."""
        for key, sequence in list(self._taken.items()):
            with self._pm.transaction():
                # A backup restored since has other items under these numbers.
                if self._pm.file_id == self._lines[key]:
                    self._store.take(key, sequence)
            del self._taken[key]
            self._waiting[key] = self._store.waiting(key)


def follow(notifier: Notifier, signals: StopSignals, clocks: Clocks) -> None:
    """Look and tell until a signal comes. Raises StorageError if the file stays out of reach."""
    in_trouble_since: float | None = None
    while signals.number is None:
        try:
            notifier.look(signals.ring)
            in_trouble_since = None
        except StorageError as error:
            now_s = clocks.steady()
            if in_trouble_since is None:
                in_trouble_since = now_s
                _log.warning("trying again: %s", error)
            if now_s - in_trouble_since >= _FILE_TROUBLE_S:
                raise
        signals.wait(notifier.next_look_s())
    notifier.settle(_LAST_WAIT_S)
