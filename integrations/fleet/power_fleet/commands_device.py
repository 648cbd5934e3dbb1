"""`power-fleet forward` and `resend`: what runs on a device."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from power_fleet.forwarder import Sent, forward_file, open_file
from power_fleet.options import (
    DEVICE_GROUP,
    add_log_option,
    add_metrics_option,
    add_nats_options,
    nats_of,
    parse_wait,
    run_with_metrics,
)
from power_fleet.progress import resend
from power_fleet.stream import Backoff
from power_manager import DB_PATH, CommandParser, parse_time

if TYPE_CHECKING:
    from prometheus_client.core import Metric

DB_VARIABLE = "POWER_MANAGER_DB"


def add_commands(parser: CommandParser) -> None:
    """Add `forward` and `resend`."""
    _add_forward(parser)
    _add_resend(parser)


def _add_forward(parser: CommandParser) -> None:
    command = parser.add_command(
        "forward",
        _forward,
        "send a file's readings, events, meters and devices to the stream",
        examples=["--once", "--db edge-001.db --site workshop --nats nats://127.0.0.1:4222"],
        group=DEVICE_GROUP,
    )
    _add_db_option(command)
    command.add_argument("--site", default="", help="where this machine is, for sums by site")
    command.add_argument(
        "--interval",
        type=parse_wait,
        default=5.0,
        metavar="TIME",
        help="between two looks (default: 5s)",
    )
    command.add_argument(
        "--max-wait",
        type=parse_wait,
        default=60.0,
        metavar="TIME",
        help="between two attempts at most (default: 60s)",
    )
    command.add_argument("--once", action="store_true", help="end when everything is sent")
    add_metrics_option(command)
    add_log_option(command)
    add_nats_options(command)


def _add_resend(parser: CommandParser) -> None:
    command = parser.add_command(
        "resend",
        _resend,
        "have a file sent once more, for an engine that has lost it",
        examples=["--since -7d", "edge-001 --since 2026-11-01 --db edge-001.db"],
        group=DEVICE_GROUP,
    )
    command.add_argument(
        "device_id", nargs="?", metavar="DEVICE", help="(default: all of the file)"
    )
    command.add_argument(
        "--since",
        type=parse_time,
        required=True,
        metavar="TIME",
        help="what is of then or later; 0: everything",
    )
    _add_db_option(command)


def _add_db_option(command: CommandParser) -> None:
    command.add_argument(
        "--db",
        type=Path,
        metavar="FILE",
        default=Path(os.environ.get(DB_VARIABLE) or DB_PATH),
        help=f"the file (default: ${DB_VARIABLE}, else {DB_PATH})",
    )


def _forward(options: argparse.Namespace) -> int:
    sent = Sent()
    work = forward_file(
        options.db,
        options.site,
        nats_of(options),
        options.interval,
        Backoff(most=options.max_wait),
        options.once,
        sent,
    )
    return run_with_metrics(work, options, lambda: _metrics_of(sent))


def _metrics_of(sent: Sent) -> Iterable[Metric]:
    from power_fleet.metrics import forward_metrics

    return forward_metrics(sent)


def _resend(options: argparse.Namespace) -> int:
    with open_file(options.db) as pm:
        resent = resend(pm, options.since, options.device_id)
    print(
        f"to be sent again: {_counted(resent.readings, 'reading')}, {_counted(resent.events, 'event')}, "
        f"{_counted(resent.deletions, 'deletion')}, and every state; `power-fleet forward` sends them"
    )
    return 0


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
