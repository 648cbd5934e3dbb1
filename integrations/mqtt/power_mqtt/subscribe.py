"""`power-mqtt subscribe`: what devices publish, into the file.

A message is acknowledged once the reading made from it has been committed, and the session at the
broker outlives the program. So neither a kill nor a day without the program loses what the broker
can keep.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import logging
import os
import queue
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from power_manager import (
    CommandParser,
    PowerManager,
    StorageError,
    parse_count,
    parse_duration,
    printable,
    shown_number,
)
from power_mqtt.broker import add_broker_options, broker_of
from power_mqtt.intake import MOST_METERS, Intake, entries_for, now_us, shown_source
from power_mqtt.joining import Joiner, Message, Reading
from power_mqtt.mapping import Map, NoMeaning, load_map, ready_maps, subscriptions
from power_mqtt.notices import (
    RECEIVE_WINDOW,
    WINDOW,
    Arrived,
    Down,
    Inbox,
    Notice,
    Stop,
    Up,
    stop_signals,
)

if TYPE_CHECKING:
    from power_mqtt.connection import Connection

DEFAULT_COMMIT_EVERY_S = 60.0
DEFAULT_SESSION_S = 86_400.0
_RETRY_S = 5.0  # after a commit that failed
_STALL_S = 1.0  # a broker that sends nothing for so long may be waiting for acknowledgements,
_STALL_COUNT = 16  # if so many are missing: no known broker stops before 20
_log = logging.getLogger("power_mqtt")


class Pace:
    """When to commit: after a time, at a low charge, and before the broker stops sending.

    A broker stops when too many messages are unacknowledged, and does not say how many that is. If
    messages come as soon as they are acknowledged, it was waiting for that.
    """

    def __init__(self, commit_every_s: float, now_s: float) -> None:
        self._commit_every_s = commit_every_s
        self._committed_s = now_s
        self._arrived_s = now_s
        self._most = WINDOW * 4 // 5
        self._least_stall = _STALL_COUNT
        self._stalled_count = 0  # at the last commit because of a stall; 0: it had another reason

    def connected(self, protocol: str) -> None:
        """With MQTT 5 the broker keeps to the window that we name, with 3.1.1 to its own."""
        window = RECEIVE_WINDOW if protocol == "5" else WINDOW
        self._most = window * 4 // 5
        self._least_stall = _STALL_COUNT

    def arrived(self, now_s: float) -> None:
        """A message has come."""
        if self._stalled_count:
            if now_s - self._committed_s < _STALL_S / 2:
                self._most = min(self._most, self._stalled_count)
            else:
                self._least_stall = self._stalled_count + 1  # nothing was held back
            self._stalled_count = 0
        self._arrived_s = now_s

    def is_due(
        self, now_s: float, unacknowledged_count: int, waiting_count: int, is_urgent: bool
    ) -> bool:
        """Whether to commit now."""
        if not unacknowledged_count and not waiting_count:
            return False
        if is_urgent or unacknowledged_count >= self._most:
            return True
        if now_s - self._committed_s >= self._commit_every_s:
            return True
        return self._is_stalled(now_s, unacknowledged_count)

    def _is_stalled(self, now_s: float, unacknowledged_count: int) -> bool:
        return unacknowledged_count >= self._least_stall and now_s - self._arrived_s >= _STALL_S

    def committed(self, now_s: float, unacknowledged_count: int) -> None:
        """A commit has been made, of what was unacknowledged before it."""
        is_stall = self._is_stalled(now_s, unacknowledged_count)
        self._stalled_count = unacknowledged_count if is_stall else 0
        self._committed_s = now_s

    def next_s(self, now_s: float) -> float:
        """Seconds until there may be something to do."""
        return max(min(self._committed_s + self._commit_every_s - now_s, _STALL_S), 0.0)


@dataclass
class Asker:
    """Publishes what keeps devices sending, as their maps say."""

    maps: Sequence[Map]
    parts: Mapping[str, str]  # those that the command line names
    publish: Callable[[str, bytes], object]

    def __post_init__(self) -> None:
        self._topics: dict[str, tuple[Map, float]] = {}
        for one in self.maps:
            self._learn(one, self.parts)

    def arrived(self, topic: str) -> None:
        """Learn from a topic which device to ask."""
        for one in self.maps:
            if one.keepalive is not None:
                for entry in entries_for(one, topic)[:1]:
                    self._learn(one, {**self.parts, **(entry.parts(topic) or {})})

    def look(self, now_s: float) -> None:
        """Ask the devices that are due."""
        for topic, (one, due_s) in self._topics.items():
            if one.keepalive is not None and now_s >= due_s:
                self.publish(topic, one.keepalive.payload)
                self._topics[topic] = (one, now_s + one.keepalive.interval_s)

    def _learn(self, one: Map, parts: Mapping[str, str]) -> None:
        if one.keepalive is None:
            return
        topic = one.keepalive.topic_of(parts)
        if topic is not None and len(self._topics) < 1000:
            self._topics.setdefault(topic, (one, float("-inf")))


def run_intake(
    intake: Intake, connection: Connection, inbox: Inbox[Notice], pace: Pace, asker: Asker
) -> int:
    """Take messages until a Stop, then commit what waits; return the exit code of the Stop.

    Raises MqttError if another file has taken the place of the one that is open: the broker keeps
    what is not stored for the next start.
    """
    code: int | None = None
    retry_s = float("-inf")
    trouble = ""  # why the last commit failed
    while code is None:
        now_s = time.monotonic()
        for notice in _notices(inbox, _patience(intake, pace, now_s)):
            now_s = time.monotonic()
            if isinstance(notice, Arrived):
                intake.take(notice, now_s, now_us(time.time()))
                pace.arrived(now_s)
                asker.arrived(notice.topic)
            elif isinstance(notice, Up):
                pace.connected(notice.protocol)
            elif isinstance(notice, Down):
                intake.cut_off()
            elif isinstance(notice, Stop):
                code = notice.code
        intake.look(now_s, is_end=code is not None)
        if connection.is_up():
            asker.look(now_s)
        count = intake.unacknowledged_count
        is_due = pace.is_due(now_s, count, intake.waiting_count, intake.is_urgent)
        if code is not None or (is_due and now_s >= retry_s):
            try:
                intake.commit()
                pace.committed(time.monotonic(), count)
                trouble = ""
            except StorageError as error:
                if code is not None:
                    raise
                intake.check_file()
                retry_s = now_s + _RETRY_S
                if str(error) != trouble:
                    _log.warning("%s; not stored yet, trying again", error)
                trouble = str(error)
    _log.info("%s", intake.summary() or "nothing came")
    return code


def _patience(intake: Intake, pace: Pace, now_s: float) -> float:
    due_s = intake.next_due_s()
    wait_s = pace.next_s(now_s)
    return wait_s if due_s is None else max(min(wait_s, due_s - now_s), 0.0)


def _notices(inbox: Inbox[Notice], seconds: float) -> list[Notice]:
    """The notices that wait; if none does, those that come within so many seconds."""
    notices: list[Notice] = []
    try:
        notices.append(inbox.get(timeout=max(seconds, 0.001)))
        while len(notices) < 1000:
            notices.append(inbox.get_nowait())
    except queue.Empty:
        pass
    return notices


def print_readings(maps: Sequence[Map], inbox: Inbox[Notice]) -> int:
    """Print what would be stored, until a Stop; nothing is stored or acknowledged."""
    joiner = Joiner(maps)
    while True:
        due_s = joiner.next_due_s()
        seconds = 1.0 if due_s is None else due_s - time.monotonic()
        for notice in _notices(inbox, min(seconds, 1.0)):
            if isinstance(notice, Stop):
                _print_readings(joiner.due(time.monotonic(), is_end=True))
                return notice.code
            if isinstance(notice, Arrived):
                _print_arrived(maps, joiner, notice)
        _print_readings(joiner.due(time.monotonic()))


def _print_arrived(maps: Sequence[Map], joiner: Joiner, arrived: Arrived) -> None:
    for one in maps:
        for entry in entries_for(one, arrived.topic):
            try:
                wall_us = now_us(time.time())
                measured = entry.measure(arrived.topic, arrived.payload, wall_us)
            except NoMeaning as error:
                _log.warning("not understood: %s: %s", printable(arrived.topic), error)
                continue
            if measured is None or (arrived.is_retained and measured.at_us is None):
                continue
            for why in measured.left_out:
                _log.warning("not plausible: %s: %s", printable(arrived.topic), why)
            now_s = time.monotonic()
            _print_readings(joiner.add(measured, Message(None), now_s, wall_us))


def _print_readings(readings: Iterable[Reading]) -> None:
    for reading in readings:
        if reading.has_watts_alone:
            _log.warning("%s: watts without volts are not stored", shown_source(reading.source))
        if not reading.is_empty:
            print(_line(reading), flush=True)


def _line(reading: Reading) -> str:
    source = reading.source
    name = f" {source.name}" if source.name else ""
    return printable(
        f"{source.device_id}  {source.type}{name}  {shown_number(reading.voltage)} V  "
        f"{shown_number(reading.current_draw)} A  {shown_number(reading.charge_pct)} %"
    )


# --- The command


def _run(args: argparse.Namespace) -> int:
    maps = [load_map(name) for name in args.map]
    broker = broker_of(args)
    filters = subscriptions(maps)
    parts = dict(args.set)
    inbox: Inbox[Notice] = queue.SimpleQueue()
    # Here, because only what connects needs the package paho-mqtt.
    from power_mqtt.connection import Connection

    if args.dry_run:
        with stop_signals(inbox):
            client_id = _client_id("dry run", str(os.getpid()))
            with Connection(
                broker, inbox, client_id=client_id, filters=filters, says_what_it_hears=True
            ):
                return print_readings(maps, inbox)
    with PowerManager(args.db) as pm, stop_signals(inbox):
        connection = Connection(
            broker,
            inbox,
            client_id=_client_id(pm.file_id, args.name),
            filters=filters,
            session_seconds=round(args.session),
            manual_ack=True,
            says_what_it_hears=True,
        )
        intake = Intake(pm, maps, acknowledge=connection.acknowledge, most_meters=args.most_meters)
        asker = Asker(maps, parts, lambda topic, payload: connection.publish(topic, payload, False))
        pace = Pace(args.commit_every, time.monotonic())
        with connection:
            code = run_intake(intake, connection, inbox, pace, asker)
            connection.say_goodbye(0.5)  # the last acknowledgements have to reach the broker
            return code


def _client_id(file_id: str, name: str) -> str:
    """The same for the same file and name: by it the broker finds the session."""
    return f"powerin{hashlib.sha256(f'{file_id} {name}'.encode()).hexdigest()[:16]}"


def _part(text: str) -> tuple[str, str]:
    """--set: NAME=VALUE."""
    found = re.fullmatch(r"([a-z][a-z0-9_]*)=([^/+#]+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected PART=VALUE, got {text!r}")
    return found[1], found[2]


def add_command(parser: CommandParser) -> None:
    """Add `subscribe`."""
    command = parser.add_command(
        "subscribe",
        _run,
        "store what devices publish, until SIGTERM or Ctrl-C",
        examples=[
            "--broker mqtt://localhost --map tasmota",
            "--broker mqtts://broker.example.com --map my.toml --dry-run",
        ],
    )
    add_broker_options(command)
    add = command.add_argument
    command.add_database()  # the file is made where it is missing
    add(
        "--map",
        action="append",
        required=True,
        metavar="MAP",
        help="a map, which says which topic is which meter: FILE.toml, or "
        f"{', '.join(ready_maps())} (repeatable)",
    )
    add(
        "--set",
        action="append",
        default=[],
        type=_part,
        metavar="PART=VALUE",
        help="a part of a map's topics that is known beforehand, such as portal=ID for victron "
        "(repeatable)",
    )
    add(
        "--commit-every",
        type=parse_duration,
        default=DEFAULT_COMMIT_EVERY_S,
        metavar="TIME",
        help="time between two commits; a low charge is committed at once (default: 60s)",
    )
    add(
        "--session",
        type=functools.partial(parse_duration, above=0),
        default=DEFAULT_SESSION_S,
        metavar="TIME",
        help="how long the broker keeps messages while this program does not run (default: 1d)",
    )
    add(
        "--most-meters",
        type=parse_count,
        default=MOST_METERS,
        metavar="N",
        help=f"register no more meters than that (default: {MOST_METERS})",
    )
    add(
        "--name",
        default="",
        metavar="NAME",
        help="the subscriber's name; two subscribers of one file need two",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print what would be stored, until Ctrl-C; store nothing",
    )
