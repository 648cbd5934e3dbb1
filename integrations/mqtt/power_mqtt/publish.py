"""`power-mqtt publish`: what any process writes to the file, to a broker."""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import logging
import queue
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from power_manager import (
    CommandParser,
    InvalidValue,
    PowerManager,
    StorageError,
    check_text,
    parse_duration,
    parse_number,
)
from power_mqtt.broker import add_broker_options, broker_of
from power_mqtt.discovery import DEFAULT_PREFIX as DISCOVERY_PREFIX
from power_mqtt.errors import MqttError
from power_mqtt.notices import END_SECONDS, Down, Inbox, Notice, Stop, Will, stop_signals
from power_mqtt.options import DEFAULT_PREFIX, Options
from power_mqtt.parts import Rules
from power_mqtt.payloads import OFFLINE
from power_mqtt.publisher import ACKNOWLEDGE_SECONDS, POLL_SECONDS, Publisher
from power_mqtt.topics import parse_prefix

if TYPE_CHECKING:
    from power_mqtt.connection import Connection

_NOTICES_AT_ONCE = 1000  # then the file's turn comes, however much the broker sends
_log = logging.getLogger("power_mqtt")


def run_bridge(publisher: Publisher, connection: Connection, inbox: Inbox[Notice]) -> int:
    """Publish until a Stop comes; return its code."""
    while True:
        for notice in _notices(inbox):
            if isinstance(notice, Stop):
                _say_goodbye(publisher, connection, inbox)
                # Last, because a locked file holds it up until stop_signals() ends the program.
                publisher.end()
                return notice.code
            publisher.handle(notice)
            if isinstance(notice, Down):
                # What was cleared since is listened to as well. A file that cannot be read now is
                # the next look's trouble.
                with contextlib.suppress(StorageError):
                    connection.listen(publisher.filters())
        publisher.tick()
        if publisher.is_stuck():
            connection.drop(f"the broker has acknowledged nothing for {ACKNOWLEDGE_SECONDS:g} s")


def _notices(inbox: Inbox[Notice]) -> Iterator[Notice]:
    """The notices that wait; if none does, those that come before the file's next turn."""
    seconds = POLL_SECONDS
    with contextlib.suppress(queue.Empty):
        for _ in range(_NOTICES_AT_ONCE):
            yield inbox.get(timeout=seconds)
            seconds = 0.0


def _say_goodbye(publisher: Publisher, connection: Connection, inbox: Inbox[Notice]) -> None:
    """Publish `offline` and disconnect; a broker that is stuck will publish the last will."""
    publisher.say_offline()
    end = time.monotonic() + END_SECONDS / 2
    while connection.is_up() and not publisher.is_done():
        publisher.send()
        try:
            publisher.handle(inbox.get(timeout=max(end - time.monotonic(), 0.0)))
        except queue.Empty:
            break
    waiting_count = publisher.waiting_count()
    if waiting_count:
        _log.warning(
            "%d topics may show an older value until the next start: the broker has not taken the "
            "latest",
            waiting_count,
        )
    if connection.is_up() and publisher.is_offline():
        connection.say_goodbye(END_SECONDS / 4)


# --- The command


def _run(args: argparse.Namespace) -> int:
    options = _options(args)
    if not options.db.exists():
        raise MqttError(f"{options.db}: no such file: name the device's file with --db")
    if args.dry_run:
        return _dry_run(options)
    # Here, because only what connects needs the package paho-mqtt.
    from power_mqtt.connection import Connection

    broker = broker_of(args)
    inbox: Inbox[Notice] = queue.SimpleQueue()
    # durability: a power cut may set the cursor back by some events, which then come twice.
    with PowerManager(options.db, durability="normal") as pm, stop_signals(inbox):
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
    """The same for the same file and bridge, in 23 letters and digits: every broker takes those."""
    return f"power{hashlib.sha256(f'{file_id} {key}'.encode()).hexdigest()[:18]}"


class _NothingStored(Exception):
    """Rolls back what a dry run wrote."""


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
            "--broker mqtts://edge-001@broker.example.com --password-file password",
            "--dry-run",
        ],
    )
    add_broker_options(command)
    add = command.add_argument
    command.add_database()
    add(
        "--device",
        action="append",
        default=[],
        metavar="ID",
        type=_name,
        help="publish only this device, repeatable (default: all)",
    )
    add(
        "--prefix",
        type=parse_prefix,
        default=DEFAULT_PREFIX,
        metavar="PREFIX",
        help=f"prefix of all topics (default: {DEFAULT_PREFIX})",
    )
    add(
        "--name",
        type=_name,
        metavar="NAME",
        help="the bridge's name; two bridges of one file need two (default: the machine's name)",
    )
    add(
        "--interval",
        type=parse_duration,
        default=Rules.interval,
        metavar="TIME",
        help="the least time between two messages of a meter (default: 5s)",
    )
    add(
        "--min-change",
        type=functools.partial(parse_number, at_least=0),
        default=Rules.min_change,
        metavar="W",
        help="publish a state only if it differs by so many watts or a point of charge "
        "(default: 0, any change)",
    )
    add(
        "--expire",
        type=functools.partial(parse_duration, above=0),
        default=Rules.expire,
        metavar="TIME",
        help="a device without a reading for so long is offline (default: 10m)",
    )
    add(
        "--discovery-prefix",
        type=parse_prefix,
        default=DISCOVERY_PREFIX,
        metavar="PREFIX",
        help=f"prefix of Home Assistant's discovery topics (default: {DISCOVERY_PREFIX})",
    )
    add(
        "--no-discovery",
        action="store_true",
        help="do not announce devices to Home Assistant, and withdraw what was announced",
    )
    add("--dry-run", action="store_true", help="print what would be published now, and end")


def _name(text: str) -> str:
    """A device's id or a bridge's name, for argparse."""
    try:
        return check_text("value", text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error)) from None
