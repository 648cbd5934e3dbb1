"""The loop: look at the file, send messages by every way, note which were taken."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, tzinfo
from types import FrameType
from typing import Any

from power_manager import PowerManager, StorageError, shown_duration
from power_notify.news import Clocks, Rules, Watch
from power_notify.quiet import QuietHours
from power_notify.store import Item, Store
from power_notify.texts import CRITICAL, Message, compose, worst_severity
from power_notify.ways import Way

_FILE_TROUBLE_S = 60.0  # without the file, after which the program ends, to be started again
_LAST_WAIT_S = 1.0  # at the end, for messages that are being sent
_END_WITHIN_S = 1.6  # after a signal
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
        return compose(self._pm, items, self._timing.zone)

    def settle(self, wait_s: float = 0.0) -> None:
        """Note which messages were taken; wait at most so long for those being sent."""
        deadline_s = time.monotonic() + wait_s
        for way in self.ways:
            outcome = way.outcome(max(deadline_s - time.monotonic(), 0.0))
            if outcome is not None:
                self._note(way, *outcome)
            elif way.is_busy and self._clocks.steady() - way.started_s >= _STUCK_S:
                message = way.give_up()
                if message is not None:
                    self._note(way, message, f"no answer for {shown_duration(_STUCK_S)}")

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
        self._store.take(way.key, message.last_sequence)
        self._waiting[way.key] = self._store.waiting(way.key)
        way.failure_count = 0
        way.due_s = now_s + self._timing.pause_s
        _log.info("way %s: told: %s", way.label, message.title)
        if way.key in self._down_since:
            down_s = now_s - self._down_since.pop(way.key)
            _log.info("way %s works again, after %s", way.label, shown_duration(down_s))


class Bell:
    """Ends a wait: by ring(), from any thread, and for good by SIGTERM, SIGINT or SIGHUP.

    If the program does not end in time, because it waits for a locked file or a server, the process
    ends all the same: every write to the file is one transaction.
    """

    def __enter__(self) -> Bell:
        self.is_stopped = False
        self.signal_number = 0  # of the signal that stopped it
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._last_resort: threading.Timer | None = None
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays in force
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._last_resort is not None:
            self._last_resort.cancel()
        self._reader.close()
        self._writer.close()

    @property
    def exit_code(self) -> int:
        """130 if Ctrl-C has stopped it, else 0."""
        return 130 if self.signal_number == signal.SIGINT else 0

    def ring(self) -> None:
        """End the present wait, or the next."""
        with suppress(OSError):  # full: it rings already; closed: nothing waits any more
            self._writer.send(b"x")

    def wait(self, seconds: float) -> None:
        """Wait so long, or until it rings."""
        if not self.is_stopped:
            select.select([self._reader], [], [], max(seconds, 0.0))
            with suppress(BlockingIOError):
                self._reader.recv(4096)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.is_stopped = True
        self.signal_number = number
        if self._last_resort is None:
            self._last_resort = threading.Timer(_END_WITHIN_S, os._exit, [self.exit_code])
            self._last_resort.daemon = True
            self._last_resort.start()
        self.ring()


def follow(notifier: Notifier, bell: Bell, clocks: Clocks) -> None:
    """Look and tell until the bell stops. Raises StorageError if the file stays out of reach."""
    in_trouble_since: float | None = None
    while not bell.is_stopped:
        try:
            notifier.look(bell.ring)
            in_trouble_since = None
        except StorageError as error:
            now_s = clocks.steady()
            if in_trouble_since is None:
                in_trouble_since = now_s
                _log.warning("trying again: %s", error)
            if now_s - in_trouble_since >= _FILE_TROUBLE_S:
                raise
        bell.wait(notifier.next_look_s())
    notifier.settle(_LAST_WAIT_S)
