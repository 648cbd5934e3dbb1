"""`power-fleet metrics`: what the stream and the engine are like now, as text for Prometheus."""

from __future__ import annotations

import argparse
import asyncio
import sys

from power_fleet.options import (
    OPERATOR_GROUP,
    add_engine_option,
    add_nats_options,
    engine_urls_of,
    nats_of,
)
from power_manager import CommandParser


def add_commands(parser: CommandParser) -> None:
    """Add `metrics`."""
    command = parser.add_command(
        "metrics",
        _metrics,
        "print metrics of the stream and the engine for Prometheus",
        examples=["", "--nats nats://127.0.0.1:4222 --clickhouse http://127.0.0.1:8123"],
        group=OPERATOR_GROUP,
    )
    add_nats_options(command)
    add_engine_option(command)


def _metrics(options: argparse.Namespace) -> int:
    from power_fleet.engine import Engine
    from power_fleet.metrics import fleet_metrics, is_up

    source = nats_of(options)
    engine = Engine(engine_urls_of(options))
    text = asyncio.run(fleet_metrics(engine, source)).decode()
    sys.stdout.write(text)
    return 0 if is_up(text) else 1
