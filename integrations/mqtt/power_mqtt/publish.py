"""`power-mqtt publish`: what any process writes to the file, to a broker.

One thread looks at the file some times a second, which costs little while nothing has changed, and
takes the notices of the connection. Events wait in the file until the broker has taken them over;
of everything else only the latest counts, and is kept by the mirror.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import logging
import os
import queue
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from power_manager import (
    DB_PATH,
    CommandParser,
    DeviceRecord,
    InvalidValue,
    NotFound,
    PowerManager,
    PowerManagerError,
    PowerMeter,
    check_text,
    parse_duration,
    parse_number,
    printable,
)
from power_mqtt.broker import add_broker_options, broker_of
from power_mqtt.connection import (
    END_SECONDS,
    Acknowledged,
    Arrived,
    Connection,
    Down,
    Inbox,
    Notice,
    Stop,
    Up,
    Will,
    stop_on_signals,
)
from power_mqtt.discovery import DEFAULT_PREFIX as DISCOVERY_PREFIX
from power_mqtt.discovery import Discovery, Site
from power_mqtt.energies import Energies
from power_mqtt.errors import MqttError
from power_mqtt.events import EventFeed
from power_mqtt.known import KnownTopics, Owner
from power_mqtt.mirror import Mirror, Publish, Retained
from power_mqtt.parts import Availability, Look, Part, Rules, Said, States, Totals
from power_mqtt.payloads import OFFLINE, ONLINE
from power_mqtt.suspicion import Suspicion
from power_mqtt.topics import Topics, parse_prefix

DEFAULT_PREFIX = "power"
POLL_SECONDS = 0.2  # between two questions whether the file has changed
LOOK_SECONDS = 1.0  # between two looks at all meters, at least
QUIET_LOOK_SECONDS = (
    5.0  # between two looks while the file does not change: a device may fall silent
)
ACKNOWLEDGE_SECONDS = 60.0  # a broker that takes nothing over for so long is left
WORK_SECONDS = 0.05  # between two looks, for what takes long
HEAR_SECONDS = 10.0  # after the greeting a broker has said what it held, or never will
TROUBLE_SECONDS = 60.0  # without a trouble of the file, after which the same one is said again
_LOOK_SHARE = (
    20  # times as long as a look has computed, the next one waits: thousands of meters take a while
)
_ENDS = "it ends the connection at once, so it may not be allowed"
_NOTICES_AT_ONCE = 1000  # the file must not wait for a broker that never stops talking
_log = logging.getLogger("power_mqtt")


@dataclass(frozen=True)
class Options:
    """What is published, and how."""

    db: Path
    name: str  # the bridge's own level in its topic
    key: str = "mqtt"  # what the bridge is called in the file: its cursor, its topics
    prefix: str = DEFAULT_PREFIX
    device_ids: tuple[str, ...] = ()  # none: all
    discovery: str | None = DISCOVERY_PREFIX  # of Home Assistant's topics; None: it is told nothing
    rules: Rules = field(default_factory=Rules)

    def wants(self, device_id: str) -> bool:
        """Whether that device is published."""
        return not self.device_ids or device_id in self.device_ids

    def topics(self) -> Topics:
        """The topics of this bridge."""
        return Topics(self.prefix, self.name)

    def availability(self) -> str:
        """Where this bridge says that it is there, and where its last will goes.

        A connection has one last will. Of a bridge for one device alone it is that device's.
        """
        if len(self.device_ids) == 1:
            return self.topics().availability(self.device_ids[0])
        return self.topics().bridge()


def boot_time() -> float:
    """Seconds of a clock that nobody sets, and that also runs while the machine sleeps where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Publisher:
    """Publishes a file: `handle` takes what the connection says, `tick` looks at the file.

    `clock` cannot be set and only its differences count; `wall` is the time since 1970.
    """

    def __init__(
        self,
        pm: PowerManager,
        options: Options,
        publish: Publish,
        *,
        clock: Callable[[], float] = boot_time,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._pm = pm
        self._options = options
        self._clock = clock
        self._wall = wall
        self._topics = options.topics()
        self._known = KnownTopics(pm, options.key)
        self._cleared: list[str] = []
        self._mirror = Mirror(publish, self._cleared.append)
        self._events = EventFeed(
            pm,
            options.key,
            self._topics,
            publish,
            wants=options.wants,
            meter_name=self._meter_name,
        )
        self.parts = make_parts(pm, options)
        self._inode = os.stat(options.db).st_ino
        self._file_id = pm.file_id
        self._version: int | None = None
        self._devices: list[DeviceRecord] = []
        self._meters: dict[str, list[PowerMeter]] = {}
        self._meter_names: dict[str, str | None] = {}
        self._missing: set[str] = set()  # devices that were asked for and are not there
        self._is_stale = True  # the meters that were read are of an earlier version of the file
        self._next_look = 0.0
        self._next_poll = 0.0
        self._is_up = False
        self._is_heard = False  # the broker has said what it held when this program came
        self._up_since = 0.0
        self._was_refused = False  # the broker has refused something, by its word, since it greeted
        self._suspicion = Suspicion()
        self._progress_at = 0.0  # when the broker last took something over, or had nothing to take
        self._trouble = ""  # what was wrong with the file the last time
        self._trouble_at = 0.0
        self._last_words: list[Retained] = []

    # --- What the connection says

    def filters(self) -> list[str]:
        """What of the broker's topics is to be heard."""
        filters = [self._options.availability()]
        for part in self.parts:
            filters += part.filters()
        return filters

    def handle(self, notice: Notice) -> None:
        """Take a notice of the connection; Stop is the caller's."""
        now = self._clock()
        match notice:
            case Up():
                self._is_up = True
                self._up_since = now
                self._was_refused = False
                self._progress_at = now
                self._mirror.reset()
                self._events.reset()
                self._look_at_once()
                for part in self.parts:
                    part.connected()
            case Down():
                if self._is_up:
                    self._suspect(now)
                self._is_up = False
                self._mirror.reset()
                self._events.reset()
            case Acknowledged(ticket, refusal):
                self._progress_at = now
                self._was_refused = self._was_refused or refusal != ""
                if not self._mirror.acknowledge(ticket, refusal, now):
                    self._events.acknowledge(ticket, refusal, now)
            case Arrived(topic, payload, is_retained):
                self._hear(topic, payload, is_retained)

    def _suspect(self, now: float) -> None:
        """Hold back what makes the broker end the connection, if there is such a message."""
        oldest = min(filter(None, (self._mirror.oldest(), self._events.oldest())), default=None)
        topic = None if oldest is None or self._was_refused else oldest[1]
        if self._suspicion.ended(topic, now - self._up_since) and oldest is not None:
            is_event = oldest == self._events.oldest()
            (self._events if is_event else self._mirror).refuse(oldest[1], _ENDS, now)

    def _look_at_once(self) -> None:
        """What is about to be sent is not to be older than the file."""
        self._is_stale = True
        self._next_poll = self._next_look = 0.0

    def _hear(self, topic: str, payload: bytes, is_retained: bool) -> None:
        own = self._options.availability()
        if topic == own:
            if not is_retained:  # what was retained came before
                self._hear_no_more()
            # The last will of an earlier connection can come late, and say that we are not there.
            self._mirror.contradict(own, payload, self._clock())
            return
        for part in self.parts:
            if part.arrived(topic, payload, is_retained):
                self._mirror.resend()

    def _hear_no_more(self) -> None:
        if not self._is_heard:
            self._is_heard = True
            self._look_at_once()
            for part in self.parts:
                part.heard()

    def _wait_no_longer(self, now: float) -> None:
        if not self._is_heard and now - self._up_since >= HEAR_SECONDS:
            _log.warning(
                "the broker does not let this user read %s: what it held is not known",
                self._options.availability(),
            )
            self._hear_no_more()

    def is_stuck(self) -> bool:
        """Whether the broker has taken nothing over for too long, although there is something."""
        now = self._clock()
        if not self._is_up or (self._mirror.is_quiet() and self._events.is_quiet()):
            self._progress_at = now
        return now - self._progress_at >= ACKNOWLEDGE_SECONDS

    # --- The file

    def tick(self) -> None:
        """Look at the file if it is time, and send what is due. Raises MqttError if the file is another one."""
        now = self._clock()
        try:
            self._forget_cleared()
            if now >= self._next_poll:
                self._next_poll = now + POLL_SECONDS
                self._poll(now)
                self._work()
            if self._is_up:
                self._wait_no_longer(now)
                self._mirror.send(now)
                self._events.send(now)
        except PowerManagerError as error:
            is_news = str(error) != self._trouble or now - self._trouble_at >= TROUBLE_SECONDS
            if is_news:
                _log.error("%s; trying again", error)
            self._trouble = str(error)
            self._trouble_at = now
            self._version = None
            self._next_poll = now + LOOK_SECONDS

    def _poll(self, now: float) -> None:
        self._check_file()
        version = self._pm.data_version()
        if version != self._version:
            self._check_line()
            self._version = version  # what is to be done about it is remembered from here on
            self._is_stale = True
            self._events.wake()
        if (
            self._is_stale and now >= self._next_look
        ) or now >= self._next_look + QUIET_LOOK_SECONDS:
            self._look(now)

    def _work(self) -> bool:
        """Have a part do a little of what takes long, beside the looks; whether one had something to do."""
        end = self._clock() + WORK_SECONDS
        has_worked = False
        while any(part.work() for part in self.parts):
            has_worked = True
            if self._clock() >= end:
                break
        if has_worked:
            self._is_stale = True  # it may have something to say
        return has_worked

    def _check_file(self) -> None:
        path = self._options.db
        try:
            if os.stat(path).st_ino == self._inode:
                return
        except FileNotFoundError:
            pass
        raise MqttError(f"{path} was moved, deleted or replaced: start again on the new file")

    def _check_line(self) -> None:
        """A restored backup has another cursor and another memory of what was published."""
        file_id = self._pm.file_id
        if file_id != self._file_id:
            _log.warning("%s: a backup was restored into it", self._options.db)
            self._known.load()
            self._events.reset()
            for part in self.parts:
                part.restored()
            self._file_id = file_id

    def _look(self, now: float) -> None:
        """Ask all parts what their topics are to hold, and have the mirror see to it."""
        began = time.thread_time()
        if self._is_stale:
            self._read_meters()
        said = self._said(now)
        new = {topic: one for topic, one in said.items() if not one.is_left}
        self._known.add({topic: one.owner for topic, one in new.items()})
        for one in new.values():
            self._mirror.want(one.message)
        own = f"{self._options.prefix}/"
        gone = self._known.owners.keys() - said.keys()
        # Home Assistant is told first: it would take an empty topic for a state.
        for topic in sorted(gone, key=lambda topic: (topic.startswith(own), topic)):
            self._mirror.want(Retained(topic, b""))
        pause = (time.thread_time() - began) * _LOOK_SHARE
        self._next_look = now + max(LOOK_SECONDS, min(pause, self._options.rules.interval))

    def _read_meters(self) -> None:
        self._is_stale = False  # what comes from here on is seen at the next look
        devices = [device for device in self._pm.list_devices() if self._options.wants(device.id)]
        meters: dict[str, list[PowerMeter]] = {device.id: [] for device in devices}
        names: dict[str, str | None] = {}
        for meter in self._pm.list_meters():
            if meter.device_id in meters:
                meters[meter.device_id].append(meter)
                names[meter.id] = meter.name
        for device in self._devices:
            if device.id not in meters:
                for part in self.parts:
                    part.forget(device.id)
        self._devices, self._meters, self._meter_names = devices, meters, names
        self._say_missing()

    def _say_missing(self) -> None:
        present = {device.id for device in self._devices}
        for device_id in self._options.device_ids:
            if device_id not in present and device_id not in self._missing:
                _log.warning(
                    "%s: no such device yet: published when it is there", printable(device_id)
                )
        self._missing = set(self._options.device_ids) - present

    def _meter_name(self, meter_id: str) -> str | None:
        if meter_id not in self._meter_names:  # newer than the last look, or gone
            with contextlib.suppress(NotFound):
                return self._pm.get_meter(meter_id).name
        return self._meter_names.get(meter_id)

    def _said(self, now: float) -> dict[str, Said]:
        """What the topics are to hold, by topic."""
        wall = self._wall()
        removed = self._removed_meter_ids()
        said: dict[str, Said] = {}
        if len(self._options.device_ids) != 1:
            own = self._options.availability()
            said[own] = Said(Retained(own, ONLINE), Owner())
        for device in self._devices:
            look = Look(device, self._meters[device.id], removed.get(device.id, []), now, wall)
            for part in self.parts:
                for one in part.messages(look):
                    said[one.message.topic] = one
        return said

    def _removed_meter_ids(self) -> dict[str, list[str]]:
        """Meters that are gone and of which something may still be retained, by device."""
        removed: dict[str, list[str]] = {}
        for owner in self._known.owners.values():
            if owner.meter_id and owner.meter_id not in self._meter_names:
                ids = removed.setdefault(owner.device_id, [])
                if owner.meter_id not in ids:
                    ids.append(owner.meter_id)
        return removed

    def _forget_cleared(self) -> None:
        if self._cleared:
            self._known.remove(self._cleared)
            self._cleared.clear()

    def describe(self) -> list[str]:
        """What would be published now, as lines for a person: by device, then the events that wait."""
        self._hear_no_more()
        self._read_meters()
        said = self._said(self._clock())
        while self._work():
            said = self._said(self._clock())
        titles = {device.id: f"{device.name} ({device.id})" for device in self._devices}
        lines = []
        for device_id in ["", *titles]:
            messages = [one.message for one in said.values() if one.owner.device_id == device_id]
            if messages:
                lines.append(printable(titles.get(device_id, "This bridge")))
                lines += [
                    f"  {printable(_shown(message.topic, message.payload))}" for message in messages
                ]
        events = self._events.waiting()
        if events:
            lines.append("Events")
            lines += [f"  {printable(_shown(topic, payload))}" for topic, payload in events]
        to_clear = len(self._known.owners.keys() - said.keys())
        lines.append(
            f"{len(said)} messages to be retained, {len(events)} events, {to_clear} topics to clear; nothing was sent"
        )
        return lines

    # --- The end

    def say_offline(self) -> None:
        """From here on want the broker to hold that nothing of this is there any more, and the latest states."""
        topics = {self._topics.availability(device.id) for device in self._devices}
        if (
            len(self._options.device_ids) != 1
        ):  # else it is that device's, and gone if the device is
            topics.add(self._options.availability())
        self._last_words = [Retained(topic, OFFLINE) for topic in sorted(topics)]
        self._mirror.hurry(self._last_words)

    def end(self) -> None:
        """Have the parts keep what they have to."""
        for part in self.parts:
            try:
                part.end()
            except PowerManagerError as error:
                _log.error("%s", error)

    def send(self) -> None:
        """Send what waits, without a look at the file."""
        self._mirror.send(self._clock())

    def is_done(self) -> bool:
        """Whether the broker holds everything that it is to hold."""
        return self._mirror.is_done()

    def is_offline(self) -> bool:
        """Whether the broker holds at least that nothing of this is there any more."""
        return self._mirror.holds(self._last_words)


def _shown(topic: str, payload: bytes) -> str:
    return f"{topic} {payload.decode()}"


def make_parts(pm: PowerManager, options: Options) -> list[Part]:
    """What is published of each device, in the order of sending."""
    topics, rules = options.topics(), options.rules

    def device_ids() -> list[str]:
        return [device.id for device in pm.list_devices() if options.wants(device.id)]

    parts: list[Part] = [
        Availability(topics, rules),
        States(topics, rules),
        Totals(topics, rules, pm.power_budget_check),
        Energies(pm, topics, rules, device_ids),
    ]
    if options.discovery is not None:
        site = Site(topics, options.availability(), rules.expire)
        parts.append(Discovery(site, options.discovery, device_ids))
    return parts


# --- The command


def run_bridge(publisher: Publisher, connection: Connection, inbox: Inbox[Notice]) -> int:
    """Publish until a Stop comes; return its code."""
    while True:
        for notice in _notices(inbox):
            if isinstance(notice, Stop):
                _say_goodbye(publisher, connection, inbox)
                publisher.end()  # last: a locked file holds it up, until stop_on_signals() ends the program
                return notice.code
            publisher.handle(notice)
        publisher.tick()
        if publisher.is_stuck():
            connection.drop(f"the broker has taken nothing over for {ACKNOWLEDGE_SECONDS:g} s")


def _notices(inbox: Inbox[Notice]) -> Iterator[Notice]:
    """Whatever has come; if nothing has, what comes before the next look at the file is due."""
    seconds = POLL_SECONDS
    with contextlib.suppress(queue.Empty):
        for _ in range(_NOTICES_AT_ONCE):
            yield inbox.get(timeout=seconds)
            seconds = 0.0


def _say_goodbye(publisher: Publisher, connection: Connection, inbox: Inbox[Notice]) -> None:
    """Say offline and go; if the broker does not take that over, leave it to the last will."""
    publisher.say_offline()
    end = time.monotonic() + END_SECONDS / 2
    while connection.is_up() and not publisher.is_done():
        publisher.send()
        try:
            publisher.handle(inbox.get(timeout=max(end - time.monotonic(), 0.0)))
        except queue.Empty:
            break
    if connection.is_up() and publisher.is_offline():
        connection.say_goodbye(END_SECONDS / 4)


def _run(args: argparse.Namespace) -> int:
    options = _options(args)
    if not options.db.exists():
        raise MqttError(f"{options.db}: no such file: name the device's with --db")
    if args.dry_run:
        return _dry_run(options)
    broker = broker_of(args)
    inbox: Inbox[Notice] = queue.SimpleQueue()
    # durability: at a power cut the cursor may fall back by some events, which then come twice.
    with PowerManager(options.db, durability="normal") as pm, stop_on_signals(inbox):
        publisher = Publisher(pm, options, lambda *message: connection.publish(*message))
        connection = Connection(
            broker,
            inbox,
            client_id=_client_id(pm.file_id, options.key),
            will=Will(options.availability(), OFFLINE),
            filters=publisher.filters(),
        )
        with connection:
            return run_bridge(publisher, connection, inbox)


def _client_id(file_id: str, key: str) -> str:
    """The same for the same file and bridge; 23 letters and digits are what every broker takes."""
    return f"power{hashlib.sha256(f'{file_id} {key}'.encode()).hexdigest()[:18]}"


class _NothingStored(Exception):
    """Takes back what a dry run wrote."""


def _dry_run(options: Options) -> int:
    """Print what would be published now; store and send nothing."""
    with PowerManager(options.db) as pm, contextlib.suppress(_NothingStored), pm.transaction():
        publisher = Publisher(pm, options, lambda *_: None)
        lines = publisher.describe()
        raise _NothingStored
    print("\n".join(lines))
    return 0


def _options(args: argparse.Namespace) -> Options:
    host = socket.gethostname() or "localhost"
    return Options(
        db=Path(args.db),
        name=args.name or host,
        key=f"mqtt {args.name}" if args.name else "mqtt",
        prefix=args.prefix,
        device_ids=tuple(dict.fromkeys(args.device)),
        rules=Rules(args.interval, args.min_change, args.expire),
        discovery=None if args.no_discovery else args.discovery_prefix,
    )


def add_command(parser: CommandParser) -> None:
    """Add `publish`."""
    command = parser.add_command(
        "publish",
        _run,
        "publish what is written to the file, until SIGTERM or Ctrl-C",
        examples=[
            "--broker mqtt://localhost",
            "--broker mqtts://edge-001@broker.example.com --password-file password --device edge-001",
            "--dry-run",
        ],
    )
    add_broker_options(command)
    add = command.add_argument
    add("--db", default=os.environ.get("POWER_MANAGER_DB") or str(DB_PATH), metavar="PATH",
        help="the database (default: $POWER_MANAGER_DB, else power_manager.db here)")  # fmt: skip
    add("--device", nargs="+", action="extend", default=[], metavar="ID", type=_name,
        help="publish these devices only (default: all)")  # fmt: skip
    add("--prefix", type=parse_prefix, default=DEFAULT_PREFIX,
        help=f"of all topics (default: {DEFAULT_PREFIX})")  # fmt: skip
    add("--name", type=_name, help="what this bridge is called (default: this machine's name); two "
        "bridges of one file need two")  # fmt: skip
    add("--interval", type=parse_duration, default=Rules.interval, metavar="TIME",
        help="between two messages of a meter, at least: seconds, or 30s, 5m (default: 5s)")  # fmt: skip
    add("--min-change", type=functools.partial(parse_number, at_least=0), default=Rules.min_change,
        metavar="W", help="publish no state whose watts differ less, nor its charge by a point "
        "(default: 0: any change)")  # fmt: skip
    add("--expire", type=functools.partial(parse_duration, above=0), default=Rules.expire,
        metavar="TIME", help="a device without a reading for so long is offline (default: 10m)")  # fmt: skip
    add("--discovery-prefix", type=parse_prefix, default=DISCOVERY_PREFIX, metavar="PREFIX",
        help=f"of the topics by which Home Assistant discovers devices (default: {DISCOVERY_PREFIX})")  # fmt: skip
    add("--no-discovery", action="store_true", help="tell Home Assistant nothing")
    add("--dry-run", action="store_true", help="print what would be published now, and end")


def _name(text: str) -> str:
    """A device's id or a bridge's name, for argparse."""
    try:
        return check_text("value", text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error)) from None
