"""What the commands of `power-fleet` share: their options, what those mean, and how long work ends."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from power_fleet.discovery import find_hub
from power_fleet.stream import Nats, Refused
from power_manager import CommandParser, parse_count, parse_duration

if TYPE_CHECKING:
    from prometheus_client.core import Metric

HUB_GROUP = "on one machine"
DEVICE_GROUP = "on a device"
SERVER_GROUP = "beside the stream and the engine"
QUESTION_GROUP = "questions to the engine"
OPERATOR_GROUP = "for operators"

NATS_VARIABLE = "POWER_FLEET_NATS"
ENGINE_VARIABLE = "POWER_FLEET_CLICKHOUSE"

_OR_A_HUB = "or start a hub on this machine: power-fleet hub --data DIR"

LEAST_WAIT_S = 0.1
MOST_WAIT_S = 86400.0
END_SECONDS = 1.8  # after a signal: what is stuck for longer ends the hard way


def parse_wait(text: str) -> float:
    """Text as seconds to wait, for argparse: a duration from 0.1 s to a day."""
    seconds = parse_duration(text)
    if not LEAST_WAIT_S <= seconds <= MOST_WAIT_S:
        raise argparse.ArgumentTypeError(f"expected a duration from 0.1s to 1d, got {text!r}")
    return seconds


def parse_positive(text: str) -> int:
    """Text as a whole number of at least 1, for argparse: to a stream, 0 would mean without a limit."""
    try:
        number = parse_count(text)
    except argparse.ArgumentTypeError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


def add_log_option(command: CommandParser) -> None:
    """Add --verbose, for commands that go on for ever."""
    command.add_argument(
        "-v", "--verbose", action="store_true", help="say what is the same as before too"
    )


def add_metrics_option(command: CommandParser) -> None:
    """Add --metrics-file, for commands that go on for ever; run_with_metrics() reads it."""
    command.add_argument(
        "--metrics-file",
        type=Path,
        metavar="FILE",
        help="write metrics for Prometheus there, such as /var/lib/node_exporter/fleet.prom",
    )


def run_with_metrics(
    work: Coroutine[Any, Any, None],
    options: argparse.Namespace,
    make: Callable[[], Iterable[Metric]],
) -> int:
    """As run_until_signal, and write what `make` makes to the file of add_metrics_option()."""
    if options.metrics_file is None:
        return run_until_signal(work)
    from power_fleet import metrics  # who writes none has no memory for it

    registry = metrics.registry_of(make)
    return run_until_signal(metrics.with_metrics(work, options.metrics_file, registry))


def add_json_option(command: CommandParser) -> None:
    """Add --json, for commands that show a table."""
    command.add_argument("--json", action="store_true", help="JSON, for programs")


def add_nats_options(command: CommandParser) -> None:
    """Add the options that say where NATS is, and who we are to it; nats_of() reads them."""
    command.add_argument(
        "--nats",
        default=os.environ.get(NATS_VARIABLE),
        metavar="URL",
        help=f"servers, by commas (default: ${NATS_VARIABLE}, else this machine's hub)",
    )
    command.add_argument("--user", help="who we are to NATS")
    command.add_argument("--password-file", type=Path, metavar="FILE", help="its password")
    command.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="our key, from `power-fleet enroll`, in place of both",
    )
    command.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="the certificate that the servers' are checked against, PEM",
    )
    command.add_argument(
        "--inbox-prefix",
        default="_INBOX",
        metavar="SUBJECT",
        help="where answers to us come (default: _INBOX)",
    )


def nats_of(options: argparse.Namespace) -> Nats:
    """What the options of add_nats_options() say. Raises Refused."""
    if not options.nats:
        return _nats_of_hub(options)
    return Nats(
        options.nats,
        options.user,
        options.password_file,
        options.ca,
        options.inbox_prefix,
        options.key_file,
    )


def _nats_of_hub(options: argparse.Namespace) -> Nats:
    for name in ("user", "password_file", "key_file", "ca"):
        if getattr(options, name) is not None:
            raise Refused(f"--{name.replace('_', '-')}: it is for servers named with --nats")
    hub = find_hub()
    if hub is None:
        raise Refused(f"--nats: name the servers, here or in ${NATS_VARIABLE}; {_OR_A_HUB}")
    key_file = Path(hub.key_file) if hub.key_file else None
    certificate = Path(hub.certificate) if hub.certificate else None
    return Nats(hub.nats, key_file=key_file, certificate=certificate)


def add_engine_option(command: CommandParser) -> None:
    """Add the option that says where the engine is; engine_urls_of() reads it."""
    command.add_argument(
        "--clickhouse",
        action="append",
        metavar="URL",
        help=(
            "once for each shard, its replicas by commas "
            f"(default: ${ENGINE_VARIABLE}, shards by spaces, else this machine's hub)"
        ),
    )


def engine_urls_of(options: argparse.Namespace) -> list[str]:
    """The URLs of the engine, one text for each shard. Raises Refused."""
    urls = options.clickhouse or os.environ.get(ENGINE_VARIABLE, "").split()
    if urls:
        return list(urls)
    hub = find_hub()
    if hub is None:
        raise Refused(f"--clickhouse: name the shards, here or in ${ENGINE_VARIABLE}; {_OR_A_HUB}")
    return [hub.clickhouse]


def log_at(options: argparse.Namespace) -> None:
    """Log what add_log_option() asks for."""
    is_verbose = getattr(options, "verbose", False)
    logging.getLogger("power_fleet").setLevel(logging.DEBUG if is_verbose else logging.INFO)


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

    A thread that is stuck in a dead network holds up no one: END_SECONDS after the signal the process ends as it is.
    Nothing is lost by that, as after kill -9.
    """
    return asyncio.run(_until_signal(work))


async def _until_signal(work: Coroutine[Any, Any, None]) -> int:
    task = asyncio.ensure_future(work)
    codes: list[int] = []

    def end(code: int) -> None:
        if not codes:
            hard_end = threading.Timer(END_SECONDS, os._exit, [code])
            hard_end.daemon = True
            hard_end.start()
        codes.append(code)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        loop.add_signal_handler(number, end, code)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return codes[0] if codes else 0
