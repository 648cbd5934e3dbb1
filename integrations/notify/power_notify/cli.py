"""`power-notify`: tell people what happens in a power_manager file."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from power_manager import (
    DB_PATH,
    CommandParser,
    PowerEventType,
    PowerManager,
    PowerManagerError,
    StorageError,
    nearest,
    parse_duration,
    parse_number,
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
    from power_notify.ways import Way

_DEFAULT_REPEAT_S = 3600.0
_ONCE_WAIT_S = 60.0  # for all messages of --once and of --test

_above_zero = functools.partial(parse_duration, above=0)


class _Undo(Exception):
    """Ends the transaction of a dry run."""


def _silent_span(text: str) -> float:
    """--silent: minutes, or a length of time with its unit; in seconds."""
    try:
        return parse_number(text, above=0) * 60.0
    except argparse.ArgumentTypeError:
        return parse_duration(text, above=0)


def _event_type(text: str) -> PowerEventType:
    try:
        return PowerEventType(text)
    except ValueError:
        known = [str(kind) for kind in PowerEventType]
        hint = nearest(text, known) or f": expected one of {', '.join(known)}"
        raise argparse.ArgumentTypeError(f"unknown event {text!r}{hint}") from None


def _follower_name(text: str) -> str:
    if not text or len(text) > 100 or not text.isprintable():
        raise argparse.ArgumentTypeError(f"expected a name of 1 to 100 letters, got {text!r}")
    return text


def _parser() -> CommandParser:
    parser = CommandParser(
        program_name("power-notify", __file__),
        "Tell people what happens in a power_manager file.",
        name="power-notify",
        version=__version__,
        examples=[
            "--to ntfy://my-topic --test",
            "--to-file /etc/power-notify.urls --quiet 22:00-07:00 --silent 30",
        ],
    )
    add = parser.add_argument
    add(
        "--db",
        default=os.environ.get("POWER_MANAGER_DB") or str(DB_PATH),
        metavar="PATH",
        help="the file (default: $POWER_MANAGER_DB, else power_manager.db here)",
    )
    add("--to", action="append", default=[], metavar="URL", help="tell this one; an Apprise URL")
    add(
        "--to-file",
        action="append",
        default=[],
        metavar="FILE",
        help="tell those whose URLs are in a file, one a line; other users see a command line",
    )
    usual = ", ".join(str(kind) for kind in PowerEventType if kind in DEFAULT_EVENTS)
    add(
        "--event",
        action="append",
        type=_event_type,
        metavar="TYPE",
        help=f"tell only these events (default: {usual})",
    )
    add("--device", action="append", metavar="ID", help="tell only of these devices (default: all)")
    add(
        "--silent",
        type=_silent_span,
        metavar="MIN",
        help="also tell of a device that has had no reading for so long, and when it is back",
    )
    add(
        "--repeat",
        nargs="?",
        type=_above_zero,
        const=_DEFAULT_REPEAT_S,
        metavar="TIME",
        help="tell an alert that still stands again, every TIME (1h where none is given)",
    )
    _add_timing_options(parser)
    once = parser.add_mutually_exclusive_group()
    add = once.add_argument
    add("--test", action="store_true", help="send everyone a message to try it out, then end")
    add(
        "--dry-run",
        action="store_true",
        help="print what would be told now; nothing is sent or kept",
    )
    add(
        "--once",
        action="store_true",
        help="look and tell once, then end; 1 if a way did not take it",
    )
    return parser


def _add_timing_options(parser: CommandParser) -> None:
    """Add when people are told."""
    add = parser.add_argument
    add(
        "--quiet",
        type=parse_quiet_hours,
        metavar="FROM-TO",
        help="hours such as 22:00-07:00 in which only what is critical is told; the rest waits",
    )
    add(
        "--zone",
        type=parse_zone,
        metavar="ZONE",
        help="of quiet hours and of times in texts (default: local)",
    )
    add(
        "--pause",
        type=parse_duration,
        default=30.0,
        metavar="TIME",
        help="between two messages of one way; what happens meanwhile is one message (default: 30s)",
    )
    add(
        "--interval",
        type=_above_zero,
        default=5.0,
        metavar="TIME",
        help="between two looks at the file (default: 5s)",
    )
    add(
        "--name",
        type=_follower_name,
        default="main",
        help="under which it keeps its place; several for one file need several names (default: main)",
    )


def _run(options: argparse.Namespace, clocks: Clocks) -> int:
    try:
        from power_notify.notifier import Bell, Notifier, Timing, follow
        from power_notify.ways import open_ways
    except ModuleNotFoundError as error:
        print_error(
            f"power-notify: {error.name} is not installed: pip install 'blackroad-power-manager[notify]'"
        )
        return 1
    ways = open_ways(options.to, options.to_file)
    pause_s = 0.0 if options.once else options.pause
    timing = Timing(options.zone, options.quiet, pause_s, options.interval)
    if options.test:
        return _test(ways, options)
    if not os.path.exists(options.db):
        raise StorageError(options.db, "no such file: name with --db the one that readings go to")
    rules = Rules(
        events=frozenset(options.event) if options.event else DEFAULT_EVENTS,
        devices=frozenset(options.device) if options.device else None,
        silent_s=options.silent,
        repeat_s=options.repeat,
    )
    with PowerManager(options.db, clock=clocks.wall) as pm:
        check_devices(pm, options.device or ())
        make = functools.partial(Notifier, pm, options.name, ways, rules, timing, clocks)
        if options.dry_run:
            return _dry_run(pm, make, ways)
        notifier = make()
        if options.once:
            return _once(notifier, ways)
        with Bell() as bell:
            follow(notifier, bell, clocks)
    return bell.exit_code


def _test(ways: Sequence[Way], options: argparse.Namespace) -> int:
    """Send everyone a message now; say of each whether it was taken."""
    from power_notify.texts import INFO, Message

    title = "Test of power-notify"
    text = (
        f"What happens in {printable(options.db)} on {socket.gethostname()} will be told this way."
    )
    for way in ways:
        way.start(Message(title, text, INFO), lambda: None)
    deadline = time.monotonic() + _ONCE_WAIT_S
    failure_count = 0
    for way in ways:
        outcome = way.outcome(max(deadline - time.monotonic(), 0.0))
        problem = "no answer so far" if outcome is None else outcome[1]
        failure_count += bool(problem)
        print(f"way {way.label}: {f'not told: {problem}' if problem else 'told'}")
    return 1 if failure_count else 0


def _dry_run(pm: PowerManager, make: functools.partial[Notifier], ways: Sequence[Way]) -> int:
    """Print what would be told, by doing all of it but the sending, and taking it back."""
    try:
        with pm.transaction():
            notifier = make()
            notifier.take_in()
            for way in ways:
                message = notifier.message_for(way)
                if message is not None:
                    print(
                        f"way {way.label}: would be told now\n{message.title}\n\n{message.text}\n"
                    )
                    continue
                count = notifier.waiting_count(way)
                waits = f"; {count} wait for the end of quiet hours" if count else ""
                print(f"way {way.label}: nothing to tell now{waits}")
            raise _Undo
    except _Undo:
        return 0


def _once(notifier: Notifier, ways: Sequence[Way]) -> int:
    """Look once, and tell; 1 if a way has not taken what it should have."""
    notifier.look()
    notifier.settle(_ONCE_WAIT_S)
    while notifier.waits_for_a_way() and not any(way.failure_count or way.is_busy for way in ways):
        notifier.look()  # there was more than one message holds
        notifier.settle(_ONCE_WAIT_S)
    if notifier.waits_for_a_way():
        print_error("power-notify: not everything was told; what waits is kept for the next time")
        return 1
    return 0


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Log to the standard error of now, for as long as this runs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def main(argv: Sequence[str] | None = None, clocks: Clocks | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 for an error, 130 for Ctrl-C. SIGTERM ends it with 0."""

    def program() -> int:
        parser = _parser()
        options = parser.parse_args(argv)
        if not options.to and not options.to_file:
            parser.error("nobody to tell: name someone with --to URL or --to-file FILE")
        with _log_to_stderr():
            return _run(options, clocks or Clocks())

    return run_program(program, "power-notify", (PowerManagerError,))


if __name__ == "__main__":
    sys.exit(main())
