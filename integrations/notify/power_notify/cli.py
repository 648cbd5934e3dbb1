"""`power-notify`: tell people what happens in a power_manager file."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from power_manager import (
    CommandParser,
    PowerEventType,
    PowerManager,
    PowerManagerError,
    StopSignals,
    StorageError,
    log_to_stderr,
    nearest,
    parse_duration,
    parse_zone,
    print_error,
    printable,
    program_name,
    run_program,
)
from power_notify import __version__
from power_notify.news import DEFAULT_EVENTS, Clocks, Rules, check_devices
from power_notify.quiet import parse_quiet_hours

if TYPE_CHECKING:
    from power_notify.notifier import Notifier
    from power_notify.texts import Message
    from power_notify.ways import Way

_DEFAULT_REPEAT_S = 3600.0
_ONCE_WAIT_S = 60.0  # for all messages of --once and of --test

_above_zero = functools.partial(parse_duration, above=0)


class _Undo(Exception):
    """Ends the transaction of a dry run."""


def _event_type(text: str) -> PowerEventType:
    try:
        return PowerEventType(text)
    except ValueError:
        known = [str(kind) for kind in PowerEventType]
        hint = nearest(text, known) or f": expected one of {', '.join(known)}"
        raise argparse.ArgumentTypeError(f"unknown event type {text!r}{hint}") from None


def _follower_name(text: str) -> str:
    if not text or len(text) > 100 or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected a name of 1 to 100 letters, got {text!r}")
    return text


def _parser() -> CommandParser:
    parser = CommandParser(
        program_name("power-notify", "-m power_notify"),
        "Tell people what happens in a power_manager file.",
        name="power-notify",
        version=__version__,
        examples=[
            "--to ntfy://my-topic --test",
            "--to-file /etc/power-notify.urls --quiet-hours 22:00-07:00 --silent-after 30m",
        ],
    )
    parser.add_database("the database; it must exist")
    add = parser.add_argument
    add(
        "--to",
        action="append",
        default=[],
        metavar="URL",
        help="an Apprise URL of somebody to tell (repeatable)",
    )
    add(
        "--to-file",
        action="append",
        default=[],
        metavar="FILE",
        help="a file with such URLs, one a line; other users see command lines (repeatable)",
    )
    _add_filter_options(parser)
    _add_timing_options(parser)
    once = parser.add_mutually_exclusive_group()
    add = once.add_argument
    add("--test", action="store_true", help="send a test message to everybody, then end")
    add(
        "--dry-run",
        action="store_true",
        help="print what would be told now, then end; nothing is sent or kept",
    )
    add(
        "--once",
        action="store_true",
        help="look and tell once, then end, for cron; exit code 1 if a message was not taken",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="with --test or --dry-run: an object a line for each way, for programs",
    )
    parser.add_argument("--quiet", action="store_true", help="log warnings and errors only")
    parser.add_help_commands("power-notify")
    return parser


def _add_filter_options(parser: CommandParser) -> None:
    """Add the options that say what is told."""
    add = parser.add_argument
    usual = ", ".join(str(kind) for kind in PowerEventType if kind in DEFAULT_EVENTS)
    add(
        "--event",
        action="append",
        type=_event_type,
        metavar="TYPE",
        help="tell events of this type only; an alert's end is told where its beginning was "
        f"(repeatable) (default: {usual})",
    )
    add(
        "--device",
        action="append",
        metavar="ID",
        help="tell of this device only (repeatable) (default: all)",
    )
    add(
        "--silent-after",
        type=_above_zero,
        metavar="TIME",
        help="also tell of a device without a reading for this long, and when it is back",
    )
    add(
        "--repeat",
        nargs="?",
        type=_above_zero,
        const=_DEFAULT_REPEAT_S,
        metavar="TIME",
        help="tell an alert that still stands again, every TIME; 1h if only --repeat is given",
    )


def _add_timing_options(parser: CommandParser) -> None:
    """Add the options that say when people are told."""
    add = parser.add_argument
    add(
        "--quiet-hours",
        type=parse_quiet_hours,
        metavar="FROM-TO",
        help="hours such as 22:00-07:00 in which only critical events are told; the others wait",
    )
    add(
        "--time-zone",
        type=parse_zone,
        metavar="ZONE",
        help="the zone of quiet hours and of times in messages (default: local)",
    )
    add(
        "--pause",
        type=parse_duration,
        default=30.0,
        metavar="TIME",
        help="the least time between two messages of one way; events of that time are one message "
        "(default: 30s)",
    )
    add(
        "--interval",
        type=_above_zero,
        default=5.0,
        metavar="TIME",
        help="the time between two looks at the file (default: 5s)",
    )
    add(
        "--name",
        type=_follower_name,
        default="main",
        help="the name of this power-notify's place in the file; several for one file need "
        "different names (default: main)",
    )


def _run(options: argparse.Namespace, clocks: Clocks) -> int:
    # Here, because only what sends needs the package apprise.
    from power_notify.notifier import END_WITHIN_S, Notifier, Timing, follow
    from power_notify.ways import open_ways

    ways = open_ways(options.to, options.to_file)
    pause_s = 0.0 if options.once else options.pause
    timing = Timing(options.time_zone, options.quiet_hours, pause_s, options.interval)
    if options.test:
        return _test(ways, options)
    if not os.path.exists(options.db):
        raise StorageError(options.db, "no such file: name the file of the readings with --db")
    rules = Rules(
        events=frozenset(options.event) if options.event else DEFAULT_EVENTS,
        devices=frozenset(options.device) if options.device else None,
        silent_s=options.silent_after,
        repeat_s=options.repeat,
    )
    with PowerManager(options.db, clock=clocks.wall) as pm:
        check_devices(pm, options.device or ())
        make = functools.partial(Notifier, pm, options.name, ways, rules, timing, clocks)
        if options.dry_run:
            return _dry_run(pm, make, ways, as_json=options.json)
        notifier = make()
        if options.once:
            return _once(notifier, ways)
        with StopSignals(hard_end_s=END_WITHIN_S) as signals:
            follow(notifier, signals, clocks)
    return signals.exit_code


def _test(ways: Sequence[Way], options: argparse.Namespace) -> int:
    """Send everyone a message now; say of each whether it was taken."""
    from power_notify.texts import INFO, Message

    title = "Test of power-notify"
    text = f"Events of {printable(options.db)} on {socket.gethostname()} will be sent this way."
    for way in ways:
        way.start(Message(title, text, INFO), lambda: None)
    deadline = time.monotonic() + _ONCE_WAIT_S
    failure_count = 0
    for way in ways:
        outcome = way.outcome(max(deadline - time.monotonic(), 0.0))
        problem = f"no answer for {_ONCE_WAIT_S:g} s" if outcome is None else outcome[1]
        failure_count += bool(problem)
        if options.json:
            _print_object(way=way.label, is_told=not problem, problem=problem or None)
        else:
            print(f"way {way.label}: {f'not told: {problem}' if problem else 'told'}")
    return 1 if failure_count else 0


def _dry_run(
    pm: PowerManager,
    make: functools.partial[Notifier],
    ways: Sequence[Way],
    *,
    as_json: bool,
) -> int:
    """Print what would be told: do everything but the sending, then roll it back."""
    show = _print_news_object if as_json else _print_news
    try:
        with pm.transaction():
            notifier = make()
            notifier.take_in()
            for way in ways:
                show(way, notifier.message_for(way), notifier.waiting_count(way))
            raise _Undo
    except _Undo:
        return 0


def _print_news(way: Way, message: Message | None, waiting_count: int) -> None:
    """Print what a way would be told now, for people."""
    if message is not None:
        print(f"way {way.label}: would be told now\n{message.title}\n\n{message.text}\n")
        return
    waits = f"; {waiting_count} until the end of quiet hours" if waiting_count else ""
    print(f"way {way.label}: nothing to tell now{waits}")


def _print_news_object(way: Way, message: Message | None, waiting_count: int) -> None:
    """Print it for programs: the message is null if there is nothing to tell now."""
    _print_object(
        way=way.label,
        would_be_told=message is not None,
        severity=None if message is None else message.severity,
        title=None if message is None else message.title,
        text=None if message is None else message.text,
        waiting_count=0 if message is not None else waiting_count,
    )


def _print_object(**values: Any) -> None:
    print(json.dumps(values, ensure_ascii=False))


def _once(notifier: Notifier, ways: Sequence[Way]) -> int:
    """Look once, and tell; return 1 if a message was not taken."""
    notifier.look()
    notifier.settle(_ONCE_WAIT_S)
    while notifier.waits_for_a_way() and not any(way.failure_count or way.is_busy for way in ways):
        notifier.look()  # there was more than fits into one message
        notifier.settle(_ONCE_WAIT_S)
    if notifier.waits_for_a_way():
        print_error("power-notify: some messages were not taken; they are kept for the next time")
        return 1
    return 0


def main(argv: Sequence[str] | None = None, clocks: Clocks | None = None) -> int:
    """Run the command line; return its exit code: 0, also for SIGTERM; 1: error; 130: Ctrl-C.

    Wrong usage raises SystemExit(2).
    """

    def program() -> int:
        parser = _parser()
        options = parser.parse_args(argv)
        if not options.to and not options.to_file:
            parser.error("expected somebody to tell: give --to URL or --to-file FILE")
        if options.json and not (options.test or options.dry_run):
            parser.error("--json: only with --test or --dry-run; nothing else is printed")
        level = logging.WARNING if options.quiet else logging.INFO
        with log_to_stderr("power_notify", level):
            return _run(options, clocks or Clocks())

    return run_program(program, "power-notify", (PowerManagerError,), extra="notify")


if __name__ == "__main__":
    sys.exit(main())
