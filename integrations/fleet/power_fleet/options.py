"""What the commands of `power-fleet` share.

Their options, what those mean, and how long work ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from power_fleet.discovery import HUB_VARIABLE, find_hub
from power_fleet.errors import WrongOptions
from power_fleet.limits import ONCE_SECONDS
from power_manager import (
    CommandParser,
    InvalidValue,
    StopSignals,
    parse_count,
    parse_duration,
    shown_json,
)

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from power_fleet.stream import Nats

HUB_GROUP = "on one machine"
DEVICE_GROUP = "on a device"
SERVER_GROUP = "beside the stream and the engine"
QUESTION_GROUP = "questions to the engine"
OPERATOR_GROUP = "for operators"

NATS_VARIABLE = "POWER_FLEET_NATS"
ENGINE_VARIABLE = "POWER_FLEET_CLICKHOUSE"
USERS_VARIABLE = "POWER_FLEET_USERS"

# Of `--once`, for commands that send.
OR_GIVE_UP = f"or with 1 after {ONCE_SECONDS:g} s in which nothing could be sent"
_OR_A_HUB = "or start a hub on this machine: power-fleet hub --data DIR"

LEAST_WAIT_S = 0.1
MOST_WAIT_S = 86400.0
END_SECONDS = 1.8  # after a signal: what is stuck for longer ends the hard way


# --- Values


def parse_wait(text: str) -> float:
    """Text as seconds to wait, for argparse: a duration from 0.1 s to a day."""
    seconds = parse_duration(text)
    if not LEAST_WAIT_S <= seconds <= MOST_WAIT_S:
        raise argparse.ArgumentTypeError(f"expected a duration from 0.1s to 1d, got {text!r}")
    return seconds


# To a stream, 0 would mean no limit.
parse_positive = functools.partial(parse_count, at_least=1)
parse_port = functools.partial(parse_count, at_most=65535)  # 0: any free one


def parse_public_key(text: str) -> str:
    """Text as a public key, for argparse."""
    from power_fleet.keys import check_public

    try:
        return check_public(text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error)) from None


# --- Options


def add_variables(parser: CommandParser) -> None:
    """Name the variables that have no option."""
    text = "the directory of the hub that commands without addresses ask"
    parser.add_variable(HUB_VARIABLE, text, default="that of the hub you started last")


def add_verbose_option(command: CommandParser) -> None:
    """Add --verbose, for commands that run until they are stopped."""
    text = "log repeated failures too"
    command.add_argument("-v", "--verbose", action="store_true", help=text)


def add_metrics_option(command: CommandParser) -> None:
    """Add --metrics-file, for commands that run until they are stopped; see run_with_metrics()."""
    text = "write metrics for Prometheus there, such as /var/lib/node_exporter/fleet.prom"
    command.add_argument("--metrics-file", type=Path, metavar="FILE", help=text)


def add_utc_option(command: CommandParser) -> None:
    """Add --utc, for commands that show times."""
    text = "times in UTC (default: local time)"
    command.add_argument("--utc", action="store_true", help=text)


def add_interval_option(command: CommandParser, default_s: float, shown: str) -> None:
    """Add --interval, for commands that look again and again."""
    command.add_argument(
        "--interval",
        type=parse_wait,
        default=default_s,
        metavar="TIME",
        help=f"between two looks (default: {shown})",
    )


def add_max_wait_option(command: CommandParser, default_s: float, shown: str) -> None:
    """Add --max-wait, for commands that try again after a failure."""
    command.add_argument(
        "--max-wait",
        type=parse_wait,
        default=default_s,
        metavar="TIME",
        help=f"the longest wait between two attempts (default: {shown})",
    )


def add_max_bytes_option(command: CommandParser, default: int, shown: str) -> None:
    """Add --max-bytes, for commands that make a stream."""
    command.add_argument(
        "--max-bytes",
        type=parse_positive,
        default=default,
        metavar="BYTES",
        help=f"that may wait in the stream, which refuses what is beyond (default: {shown})",
    )


def add_once_option(command: CommandParser, text: str) -> None:
    """Add --once, for commands that otherwise run until they are stopped."""
    command.add_argument("--once", action="store_true", help=text)


def add_nats_options(command: CommandParser) -> None:
    """Add the options that say where NATS is and how to log in there; nats_of() reads them."""
    command.add_setting(
        "--nats",
        variable=NATS_VARIABLE,
        text="the servers, separated by commas",
        shown_default="this machine's hub",
        metavar="URL",
    )
    command.add_argument("--user", metavar="NAME", help="the user to log in to NATS as")
    command.add_argument(
        "--password-file", type=Path, metavar="FILE", help="the file with the user's password"
    )
    command.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="the key from `power-fleet enroll`, instead of a user and a password",
    )
    command.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="the certificate of the authority that signed the servers' certificates, PEM",
    )
    command.add_argument(
        "--inbox-prefix",
        default="_INBOX",
        metavar="SUBJECT",
        help="the subject below which replies arrive (default: _INBOX)",
    )


def nats_of(options: argparse.Namespace) -> Nats:
    """What the options of add_nats_options() say. Raises WrongOptions, StorageError, OSError."""
    from power_fleet.stream import Nats, nats_of_hub

    urls = options.nats or os.environ.get(NATS_VARIABLE)
    if urls:
        named = Nats(
            urls,
            options.user,
            options.password_file,
            options.ca,
            options.inbox_prefix,
            options.key_file,
        )
        named.key()  # a file that is none is said at once: no later attempt would mend it
        named.password()
        return named
    for name in ("user", "password_file", "key_file", "ca"):
        if getattr(options, name) is not None:
            raise WrongOptions(f"--{name.replace('_', '-')}: give it together with --nats")
    hub = find_hub()
    if hub is None:
        raise WrongOptions(f"--nats: name the servers, here or in ${NATS_VARIABLE}; {_OR_A_HUB}")
    return nats_of_hub(hub)


def add_engine_option(command: CommandParser) -> None:
    """Add the option that says where the engine is; engine_urls_of() reads it."""
    command.add_setting(
        "--clickhouse",
        variable=ENGINE_VARIABLE,
        text="a shard, its replicas separated by commas (repeatable)",
        shown_default="this machine's hub",
        action="append",
        metavar="URL",
    )


def engine_urls_of(options: argparse.Namespace) -> list[str]:
    """The URLs of the engine, one text for each shard. Raises WrongOptions."""
    urls = getattr(options, "clickhouse", None) or os.environ.get(ENGINE_VARIABLE, "").split()
    if urls:
        return list(urls)
    hub = find_hub()
    if hub is None:
        raise WrongOptions(
            f"--clickhouse: name the shards, here or in ${ENGINE_VARIABLE}; {_OR_A_HUB}"
        )
    return [hub.clickhouse]


# --- What they print


def print_done(options: argparse.Namespace, text: str, **facts: Any) -> None:
    """Print what a command has done: as text, or as JSON with --json."""
    print(shown_json(facts) if options.json else text, flush=True)


def counted(count: int, name: str) -> str:
    """A count with its noun.

    >>> counted(1, "reading"), counted(2, "reading")
    ('1 reading', '2 readings')
    """
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


# --- How they run


def run_with_metrics(
    work: Coroutine[Any, Any, None],
    options: argparse.Namespace,
    make: Callable[[], Iterable[Metric]],
) -> int:
    """As run_until_signal, and write what `make` makes to the file of add_metrics_option()."""
    if options.metrics_file is None:
        return run_until_signal(work)
    from power_fleet import metrics  # its package takes memory: only where it is used

    registry = metrics.registry_of(make)
    return run_until_signal(metrics.with_metrics(work, options.metrics_file, registry))


def log_level(options: argparse.Namespace) -> int:
    """The level of the program's log, by add_verbose_option()."""
    return logging.DEBUG if getattr(options, "verbose", False) else logging.INFO


async def together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do all of them at once; where one fails, end the others and raise what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_until_signal(work: Coroutine[Any, Any, None]) -> int:
    """Do the work until it ends, or a signal comes; return the exit code: 130 for Ctrl-C, else 0.

    A thread that is stuck in a dead network does not delay the end: END_SECONDS after the signal
    the process ends as it is. That loses nothing, as kill -9 loses nothing.
    """
    stoppable = _Stoppable(work)
    with StopSignals(stoppable.stop, END_SECONDS) as signals:
        asyncio.run(stoppable.run())
    return signals.exit_code


class _Stoppable:
    """Work of an event loop that another thread may end, before its beginning too."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._cancel: Callable[[], object] | None = None  # while it runs
        self._is_stopped = False

    def stop(self, _code: int) -> None:
        """End it."""
        with self._lock:
            self._is_stopped = True
            if self._cancel is not None:
                self._cancel()

    async def run(self) -> None:
        """Return when it has ended; raises what it raises."""
        task = asyncio.ensure_future(self._work)
        loop = asyncio.get_running_loop()
        with self._lock:
            self._cancel = functools.partial(loop.call_soon_threadsafe, task.cancel)
            if self._is_stopped:
                task.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        finally:
            with self._lock:
                self._cancel = None
