"""`power-mqtt sniff TOPIC`: prints what comes, and a map for it."""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from power_manager import CommandParser, parse_duration, print_error, printable
from power_mqtt.broker import add_broker_options, broker_of
from power_mqtt.intake import entries_for
from power_mqtt.mapping import MOST_PAYLOAD, NoMeaning, load_map, read_number, ready_maps
from power_mqtt.notices import Arrived, Inbox, Notice, Stop, stop_signals

_MOST_TOPICS = 1000
_MOST_DEPTH = 8  # of JSON
_SHOWN = 200  # characters of a payload
# What the last word of a topic or of a path means. Counted energy and limits are no present values.
_WORDS = {
    "voltage": re.compile(r"(?:.*[_ ])?(?:voltage|volts?|u|v)(?:_?[a-c1-3])?", re.IGNORECASE),
    "current": re.compile(
        r"(?:.*[_ ])?(?:current|amps?|amperes?|i|a)(?:_?[a-c1-3])?", re.IGNORECASE
    ),
    "power": re.compile(
        r"(?:.*[_ ])?(?:power|watts?|a?power|act_power|p|w)(?:_?[a-c1-3])?", re.IGNORECASE
    ),
    "charge": re.compile(
        r"(?:.*[_ ])?(?:soc|battery|battery_level|charge|state_of_charge)", re.IGNORECASE
    ),
}
_NOT_MEASURED = re.compile(
    r"apparent|reactive|factor|max|min|limit|nominal|rated|total|today|yesterday|target",
    re.IGNORECASE,
)


@dataclass
class Heard:
    """What came on one topic; `found`: the paths of values, by the values' names."""

    topic: str
    count: int = 0
    found: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def take(self, payload: bytes) -> None:
        """Look for values in a payload; of each kind the first one counts."""
        self.count += 1
        for path, value in _values(payload):
            kind = _kind(path[-1] if path else _last_word(self.topic))
            if kind is not None and read_number(value) is not None:
                self.found.setdefault(kind, path)


def _values(payload: bytes) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of a payload, with its path."""
    if len(payload) > MOST_PAYLOAD:
        return
    try:
        text = payload.decode("utf-8")
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    yield from _walk(document, ())


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict) and len(path) < _MOST_DEPTH:
        for key, inner in value.items():
            yield from _walk(inner, (*path, key))
    elif not isinstance(value, (dict, list)):
        yield path, value


def _kind(word: str) -> str | None:
    """What a word of a topic or path means.

    >>> [_kind(word) for word in ("GridVoltage", "ups.load", "battery.charge", "apparent_power")]
    ['voltage', None, 'charge', None]
    """
    if _NOT_MEASURED.search(word):
        return None
    # GridVoltage, battery.voltage and output-power are words of several parts, as battery_voltage
    # is.
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])|[. -]", "_", word)
    for kind, pattern in _WORDS.items():
        if pattern.fullmatch(parts):
            return kind
    return None


def _last_word(topic: str) -> str:
    """The level of a topic that says what it is: the last, but for ESPHome's `state`."""
    levels = topic.split("/")
    return levels[-2] if len(levels) > 1 and levels[-1] in ("state", "value") else levels[-1]


def _place(heard: Heard) -> tuple[str, tuple[str, ...]]:
    """Where a meter's values are: topics and objects with the same place are of one meter."""
    paths = list(heard.found.values())
    if any(paths):
        return heard.topic, paths[0][:-1]
    levels = heard.topic.split("/")
    cut = 2 if levels[-1] in ("state", "value") and len(levels) > 2 else 1
    return "/".join(levels[:-cut]) or heard.topic, ()


def propose(heard: Sequence[Heard]) -> str:
    """A map for what was heard, as TOML; "" where nothing looks like a measured value."""
    useful = [one for one in heard if one.found]
    batteries = {_place(one) for one in useful if "charge" in one.found}
    entries = []
    for one in useful:
        place = _place(one)
        device = place[0][:200]
        meter = "battery" if place in batteries else "main"
        values = ", ".join(f"{kind} = {_toml_path(path)}" for kind, path in one.found.items())
        lines = ["[[topic]]", f"filter = {_quoted(one.topic)}", f"device = {_quoted(device)}"]
        lines += [f'meter = "{meter}" # main, battery, solar or ups']
        lines += [f"values = {{ {values} }}"]
        entries.append("\n".join(lines))
    return "\n\n".join(entries)


def _quoted(text: str) -> str:
    # JSON's escapes are TOML's too, but for the delete character, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_path(path: Sequence[str]) -> str:
    if not path:
        return '""'
    if any("." in key or not key for key in path):
        return "[" + ", ".join(_quoted(key) for key in path) + "]"
    return _quoted(".".join(path))


def known_maps(messages: dict[str, bytes]) -> dict[str, int]:
    """The ready maps that understand some of these topics, and how many."""
    counts = {}
    for name in ready_maps():
        one = load_map(name)
        count = 0
        for topic, payload in messages.items():
            for entry in entries_for(one, topic):
                try:
                    count += entry.measure(topic, payload) is not None
                except NoMeaning:
                    continue
        if count:
            counts[name] = count
    return counts


def listen(inbox: Inbox[Notice], seconds: float) -> tuple[dict[str, Heard], dict[str, bytes], int]:
    """Print what comes to standard error.

    Return by topic what was heard and the latest payload, and the exit code.
    """
    heard: dict[str, Heard] = {}
    latest: dict[str, bytes] = {}
    end_s = time.monotonic() + seconds
    while (rest_s := end_s - time.monotonic()) > 0:
        try:
            notice = inbox.get(timeout=rest_s)
        except queue.Empty:
            break
        if isinstance(notice, Stop):
            return heard, latest, 0  # Ctrl-C ends the listening, and the map follows
        if not isinstance(notice, Arrived):
            continue
        shown = notice.payload.decode("utf-8", "replace")[:_SHOWN]
        mark = " (retained)" if notice.is_retained else ""
        print_error(f"{printable(notice.topic)}{mark}  {printable(shown)}")
        if notice.topic in heard or len(heard) < _MOST_TOPICS:
            heard.setdefault(notice.topic, Heard(notice.topic)).take(notice.payload)
            latest[notice.topic] = notice.payload
    return heard, latest, 0


def _run(args: argparse.Namespace) -> int:
    broker = broker_of(args)
    # Here, because only what connects needs the package paho-mqtt.
    from power_mqtt.connection import Connection

    inbox: Inbox[Notice] = queue.SimpleQueue()
    client_id = f"powersniff{os.getpid()}"
    with (
        stop_signals(inbox),
        Connection(
            broker, inbox, client_id=client_id, filters=args.topic, says_what_it_hears=True
        ) as connection,
    ):
        heard, latest, code = listen(inbox, args.listen_s)
        connection.say_goodbye(0.5)
    if not heard:
        print_error("power-mqtt: nothing came")
        return 1
    for name, count in known_maps(latest).items():
        print(f"# --map {name} understands {count} of these {len(latest)} topics.")
    proposal = propose(list(heard.values()))
    if not proposal:
        print_error("power-mqtt: nothing that came looks like volts, amperes, watts or a charge")
        return 1
    print(
        "# Proposed from what came: check the meters' types and the signs. A part of a topic that\n"
        '# differs between devices can be named: filter = "plugs/{device}/power",\n'
        '# device = "{device}".\n'
    )
    print(proposal)
    return code


def _filter(text: str) -> str:
    levels = text.split("/")
    is_wrong = any(("+" in level or "#" in level) and len(level) > 1 for level in levels)
    if not text or is_wrong or "#" in levels[:-1]:
        raise argparse.ArgumentTypeError(
            f"expected a topic such as tele/+/SENSOR or '#', got {text!r}"
        )
    return text


def add_command(parser: CommandParser) -> None:
    """Add `sniff`."""
    command = parser.add_command(
        "sniff",
        _run,
        "print what comes, and propose a map for `subscribe`",
        examples=[
            "--broker mqtt://localhost 'tele/#'",
            "--broker mqtt://localhost '#' --for 1m",
        ],
    )
    add_broker_options(command)
    add = command.add_argument
    add(
        "topic",
        nargs="+",
        type=_filter,
        metavar="TOPIC",
        help="the topics to listen to, with + and # as in MQTT",
    )
    add(
        "--for",
        type=parse_duration,
        default=10.0,
        dest="listen_s",
        metavar="TIME",
        help="how long to listen; Ctrl-C ends it sooner (default: 10s)",
    )
