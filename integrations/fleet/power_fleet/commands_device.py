"""`power-fleet forward`: what runs on a device."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from power_fleet.forwarder import forward
from power_fleet.options import (
    DEVICE_GROUP,
    add_log_option,
    add_nats_options,
    nats_of,
    parse_wait,
    run_until_signal,
)
from power_fleet.outbox import Outbox
from power_fleet.stream import Backoff
from power_manager import DB_PATH, CommandParser, PowerManager, StorageError

DB_VARIABLE = "POWER_MANAGER_DB"


def add_commands(parser: CommandParser) -> None:
    """Add `forward`."""
    command = parser.add_command(
        "forward",
        _forward,
        "send a file's readings, events, meters and devices to the stream",
        examples=["--once", "--db edge-001.db --site workshop --nats nats://127.0.0.1:4222"],
        group=DEVICE_GROUP,
    )
    command.add_argument(
        "--db",
        type=Path,
        metavar="FILE",
        default=Path(os.environ.get(DB_VARIABLE) or DB_PATH),
        help=f"the file (default: ${DB_VARIABLE}, else {DB_PATH})",
    )
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
    add_log_option(command)
    add_nats_options(command)


def _forward(options: argparse.Namespace) -> int:
    to = nats_of(options)
    if not options.db.exists():
        raise StorageError(
            options.db, "no such file: name with --db the one that the device writes"
        )
    with PowerManager(options.db) as pm:
        backoff = Backoff(most=options.max_wait)
        work = forward(Outbox(pm, options.site), to, options.interval, backoff, options.once)
        return run_until_signal(work)
