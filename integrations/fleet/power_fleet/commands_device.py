"""`power-fleet forward` and `resend`: what runs on a device."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from power_fleet.options import (
    DEVICE_GROUP,
    OR_GIVE_UP,
    add_interval_option,
    add_max_wait_option,
    add_metrics_option,
    add_nats_options,
    add_once_option,
    add_verbose_option,
    counted,
    nats_of,
    print_done,
    run_with_metrics,
)
from power_manager import CommandParser, parse_time

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from power_fleet.forwarder import Sent


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
    command.add_database(type=Path)
    command.add_argument(
        "--site", default="", metavar="NAME", help="where this machine is, for sums by site"
    )
    add_interval_option(command, 5.0, "5s")
    add_max_wait_option(command, 60.0, "60s")
    add_once_option(command, f"end when everything is sent, {OR_GIVE_UP}")
    add_metrics_option(command)
    add_verbose_option(command)
    add_nats_options(command)


def _add_resend(parser: CommandParser) -> None:
    command = parser.add_command(
        "resend",
        _resend,
        "send a file once more, for an engine that has lost what it had",
        examples=["--since -7d", "edge-001 --since 2026-11-01 --db edge-001.db"],
        group=DEVICE_GROUP,
    )
    command.add_argument(
        "device_id", nargs="?", metavar="device_id", help="(default: every device of the file)"
    )
    command.add_argument(
        "--since",
        type=parse_time,
        required=True,
        metavar="TIME",
        help="send what is dated from then on, such as -7d or 2026-11-01; 0 is everything",
    )
    command.add_database(type=Path)
    command.add_json()


def _forward(options: argparse.Namespace) -> int:
    from power_fleet.backoff import Backoff
    from power_fleet.forwarder import Sent, forward_file

    to = nats_of(options)
    sent = Sent()
    work = forward_file(
        options.db,
        options.site,
        to,
        options.interval,
        Backoff(most=options.max_wait),
        options.once,
        sent,
    )
    code = run_with_metrics(work, options, lambda: _metrics_of(sent))
    if options.once and code == 0 and not sent.waiting:
        readings = counted(sent.readings, "reading")
        print(f"{readings} sent in {counted(sent.messages, 'message')}; nothing waits")
    return code


def _metrics_of(sent: Sent) -> Iterable[Metric]:
    from power_fleet.metrics import forward_metrics

    return forward_metrics(sent)


def _resend(options: argparse.Namespace) -> int:
    from power_fleet.forwarder import open_file
    from power_fleet.progress import resend

    with open_file(options.db) as pm:
        resent = resend(pm, options.since, options.device_id)
    readings = counted(resent.readings, "reading")
    events = counted(resent.events, "event")
    deletions = counted(resent.deletions, "deletion")
    print_done(
        options,
        f"to be sent again: {readings}, {events}, {deletions}, and every state; "
        "`power-fleet forward` sends them",
        readings=resent.readings,
        events=resent.events,
        deletions=resent.deletions,
    )
    return 0
