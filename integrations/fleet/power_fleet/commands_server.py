"""`power-fleet sink`, `close`, `stream` and `schema`: what runs beside the stream and the engine.

Each command imports the engine's client by itself: a device that forwards has neither the memory
nor the need.
"""

from __future__ import annotations

import argparse
import asyncio
import functools

from power_fleet.limits import BYTES_A_MINUTE, DEVICE_MESSAGES, MESSAGES_A_MINUTE, STREAM_BYTES
from power_fleet.options import (
    SERVER_GROUP,
    add_engine_option,
    add_interval_option,
    add_max_bytes_option,
    add_max_wait_option,
    add_metrics_option,
    add_nats_options,
    add_once_option,
    add_verbose_option,
    engine_urls_of,
    nats_of,
    parse_positive,
    run_with_metrics,
    together,
)
from power_manager import CommandParser, parse_count, parse_duration


def add_commands(parser: CommandParser) -> None:
    """Add `sink`, `close`, `stream` and `schema`."""
    _add_sink(parser)
    _add_close(parser)
    _add_stream(parser)
    _add_schema(parser)


def _add_schema(parser: CommandParser) -> None:
    command = parser.add_command(
        "schema",
        _schema,
        "make the tables that are missing, and set how long they keep what they hold",
        examples=["", "--keep-readings 90 --keep-hours 730", "--keep-hours none"],
        group=SERVER_GROUP,
    )
    for name, what in {"readings": "readings", "hours": "the statistics of hours"}.items():
        command.add_argument(
            f"--keep-{name}",
            type=parse_kept_days,
            metavar="DAYS",
            help=f"keep {what} for so many days, or `none`: for ever (default: unchanged)",
        )
    add_engine_option(command)


def parse_kept_days(text: str) -> int:
    """Text as a number of days to keep, for argparse: `none` and 0 are for ever."""
    return 0 if text == "none" else parse_count(text)


def _add_sink(parser: CommandParser) -> None:
    command = parser.add_command(
        "sink",
        _sink,
        "store what is in the stream; several may run",
        examples=["", "--nats nats://127.0.0.1:4222 --clickhouse http://127.0.0.1:8123"],
        group=SERVER_GROUP,
    )
    add_max_wait_option(command, 30.0, "30s")
    command.add_argument(
        "--device-rate",
        type=parse_positive,
        default=MESSAGES_A_MINUTE,
        metavar="N",
        help=f"messages of one device to store in a minute (default: {MESSAGES_A_MINUTE})",
    )
    command.add_argument(
        "--device-bytes",
        type=parse_positive,
        default=BYTES_A_MINUTE,
        metavar="BYTES",
        help="of one device to store in a minute (default: 64 MiB)",
    )
    add_metrics_option(command)
    add_verbose_option(command)
    add_nats_options(command)
    add_engine_option(command)


def _add_close(parser: CommandParser) -> None:
    command = parser.add_command(
        "close",
        _close,
        "compute the statistics of hours as they close, and raise alarms",
        examples=["", "--once"],
        group=SERVER_GROUP,
    )
    add_interval_option(command, 60.0, "60s")
    command.add_argument(
        "--silent-after",
        type=functools.partial(parse_duration, above=0),
        default=3600.0,
        metavar="TIME",
        help="raise an alarm for a device that has sent nothing for so long (default: 1h)",
    )
    add_once_option(command, "end when every closed hour is computed")
    add_metrics_option(command)
    add_verbose_option(command)
    add_engine_option(command)


def _add_stream(parser: CommandParser) -> None:
    command = parser.add_command(
        "stream",
        _stream,
        "make the streams, or give them these settings",
        examples=["", "--replicas 1 --max-bytes 1000000000"],
        group=SERVER_GROUP,
    )
    command.add_argument(
        "--replicas",
        type=parse_positive,
        default=3,
        metavar="N",
        help="servers that keep a copy (default: 3)",
    )
    add_max_bytes_option(command, STREAM_BYTES, "10 GiB")
    command.add_argument(
        "--first-sequence",
        type=parse_positive,
        default=1,
        metavar="N",
        help="the least number of its next message, in place of a lost stream (default: 1)",
    )
    command.add_argument(
        "--device-messages",
        type=parse_positive,
        default=DEVICE_MESSAGES,
        metavar="N",
        help=f"of one device that may wait in the stream (default: {DEVICE_MESSAGES})",
    )
    add_nats_options(command)


def _sink(options: argparse.Namespace) -> int:
    from power_fleet.backoff import Backoff
    from power_fleet.engine import Engine
    from power_fleet.metrics import sink_metrics
    from power_fleet.quota import Quota
    from power_fleet.sink import Sink

    source = nats_of(options)
    engine = Engine(engine_urls_of(options))
    quota = Quota(options.device_rate, options.device_bytes)
    sink = Sink(engine, source, Backoff(most=options.max_wait), quota=quota)
    return run_with_metrics(sink.run(), options, lambda: sink_metrics(sink.work))


def _close(options: argparse.Namespace) -> int:
    from power_fleet.backoff import Backoff
    from power_fleet.engine import Engine
    from power_fleet.hours import Closed, keep_closing
    from power_fleet.metrics import close_metrics
    from power_fleet.watch import keep_watching

    engine = Engine(engine_urls_of(options))
    closed = Closed()
    closing = keep_closing(engine, options.interval, Backoff(), once=options.once, closed=closed)
    watching = keep_watching(
        engine, options.interval, Backoff(), options.silent_after, once=options.once
    )
    work = together([closing, watching])
    return run_with_metrics(work, options, lambda: close_metrics(closed))


def _stream(options: argparse.Namespace) -> int:
    from power_fleet.dead import set_up_streams

    asyncio.run(
        set_up_streams(
            nats_of(options),
            options.replicas,
            options.max_bytes,
            options.device_messages,
            options.first_sequence,
        )
    )
    return 0


def _schema(options: argparse.Namespace) -> int:
    from power_fleet.engine import Engine
    from power_fleet.keep import keep
    from power_fleet.schema import create

    engine = Engine(engine_urls_of(options))
    create(engine)
    keep(engine, options.keep_readings, options.keep_hours)
    return 0
