"""`power-fleet`: forward, sink, stream, dead, schema, close, and the questions.

Answers go to standard output, the rest to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

try:
    from nats.errors import Error as NatsError
except ModuleNotFoundError as error:
    sys.exit(f"power-fleet: {error.name} is not installed: pip install '.[fleet]'")

from power_fleet import dead_commands
from power_fleet.dead import Unknown, make_dead_stream
from power_fleet.forwarder import forward
from power_fleet.outbox import Outbox
from power_fleet.quota import BYTES_A_MINUTE, MESSAGES_A_MINUTE, Quota
from power_fleet.stream import (
    DEVICE_MESSAGES,
    Backoff,
    Nats,
    Refused,
    check_server,
    make_streams,
)
from power_manager import DB_PATH, PowerManager, PowerManagerError, StorageError

_CLICKHOUSE, _NATS, _DB = "POWER_FLEET_CLICKHOUSE", "POWER_FLEET_NATS", "POWER_MANAGER_DB"


def _nats_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--nats",
        default=os.environ.get(_NATS),
        metavar="URL",
        help=f"servers, by commas (default: ${_NATS})",
    )
    add("--user", help="who we are to NATS")
    add("--password-file", type=Path, metavar="FILE", help="its password")
    add(
        "--ca",
        type=Path,
        metavar="FILE",
        help="the certificate that the servers' are checked against, PEM",
    )
    add(
        "--inbox-prefix",
        default="_INBOX",
        metavar="SUBJECT",
        help="where answers to us come (default: %(default)s)",
    )


def _clickhouse_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clickhouse", action="append", metavar="URL",
        help=f"once for each shard, its replicas by commas (default: ${_CLICKHOUSE}, shards by spaces)",
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="power-fleet", description="From many devices' files to one engine."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add = commands.add_parser(
        "forward", help="send a file's readings, events, meters and devices to the stream"
    )
    db = Path(os.environ.get(_DB) or DB_PATH)
    add.add_argument(
        "--db", type=Path, default=db, help=f"the file (default: ${_DB}, else power_manager.db)"
    )
    add.add_argument("--site", default="", help="where this machine is, for sums by site")
    add.add_argument(
        "--interval", type=_seconds, default=5.0, help="seconds between two looks (default: 5)"
    )
    add.add_argument(
        "--max-wait",
        type=_seconds,
        default=60.0,
        help="seconds between attempts at most (default: 60)",
    )
    add.add_argument("--once", action="store_true", help="end when everything is sent")
    _nats_options(add)
    add = commands.add_parser("sink", help="store what is in the stream; any number of copies")
    add.add_argument(
        "--max-wait",
        type=_seconds,
        default=30.0,
        help="seconds between attempts at most (default: 30)",
    )
    add.add_argument(
        "--device-rate",
        type=_count,
        default=MESSAGES_A_MINUTE,
        metavar="N",
        help="messages of one device that are stored in a minute (default: %(default)s)",
    )
    add.add_argument(
        "--device-bytes",
        type=_count,
        default=BYTES_A_MINUTE,
        metavar="N",
        help="bytes of one device that are stored in a minute (default: 64 MiB)",
    )
    _nats_options(add)
    _clickhouse_options(add)
    add = commands.add_parser("stream", help="make the streams, or give them these settings")
    add.add_argument(
        "--replicas", type=_count, default=3, help="servers that keep a copy (default: 3)"
    )
    add.add_argument(
        "--max-bytes",
        type=_count,
        default=10 * 2**30,
        help="beyond it what is new is refused (default: 10 GiB)",
    )
    add.add_argument(
        "--first-sequence",
        type=_count,
        default=1,
        metavar="N",
        help="the number that the next message gets at least, in place of a stream that was lost (default: 1)",
    )
    add.add_argument(
        "--device-messages",
        type=_count,
        default=DEVICE_MESSAGES,
        help="of one device that may wait; its file keeps the rest (default: %(default)s)",
    )
    _nats_options(add)
    _add_dead(commands)
    _clickhouse_options(commands.add_parser("schema", help="make the tables that are missing"))
    add = commands.add_parser("close", help="compute the statistics of closed hours as they close")
    add.add_argument(
        "--interval", type=_seconds, default=60.0, help="seconds between two looks (default: 60)"
    )
    add.add_argument("--once", action="store_true", help="end when all that there are are done")
    _clickhouse_options(add)
    _add_questions(commands)
    return parser


def _add_dead(commands: Any) -> None:
    dead = commands.add_parser("dead", help="messages that can never be stored: look after them")
    actions = dead.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("list", help="all of them, or those of one device")
    add.add_argument("--device", metavar="ID")
    add.add_argument("--json", action="store_true", help="for programs: a JSON list")
    _nats_options(add)
    add = actions.add_parser("read", help="what one of them holds")
    add.add_argument("number", type=_count)
    add.add_argument("--raw", action="store_true", help="its bytes as they came")
    _nats_options(add)
    for action, help_ in {
        "replay": "send them to the sinks once more, and drop them",
        "drop": "delete them for good",
    }.items():
        add = actions.add_parser(action, help=help_)
        add.add_argument("number", type=_count, nargs="*")
        add.add_argument("--device", metavar="ID", help="all of this device")
        add.add_argument("--all", action="store_true", help="all that there are")
        _nats_options(add)


def _add_questions(commands: Any) -> None:
    add = commands.add_parser("budget", help="the power budget of all devices, or of these")
    add.add_argument("device_id", nargs="*")
    _clickhouse_options(add)
    add = commands.add_parser("report", help="a device's report")
    add.add_argument("device_id")
    add.add_argument("--days", type=_plain, default=7, help="(default: 7)")
    _clickhouse_options(add)
    _clickhouse_options(commands.add_parser("latest", help="the present state of every meter"))
    add = commands.add_parser("energy", help="energy by UTC day, site and meter type")
    add.add_argument("--days", type=int, default=7, help="(default: 7)")
    _clickhouse_options(add)
    add = commands.add_parser("silent", help="devices the stream has had nothing from")
    add.add_argument("--minutes", type=float, default=60.0, help="for so long (default: 60)")
    _clickhouse_options(add)


def _plain(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() else number


def _seconds(text: str) -> float:
    if not 0.1 <= (number := float(text)) <= 86400:  # false for NaN
        raise argparse.ArgumentTypeError(f"expected 0.1 to 86400 seconds, got {text!r}")
    return number


def _count(text: str) -> int:
    if (number := int(text)) < 1:  # to a stream, less than that means without a limit
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return number


_plain.__name__, _seconds.__name__, _count.__name__ = (
    "number",
    "number",
    "whole number",
)  # argparse says them


def _nats(options: argparse.Namespace) -> Nats:
    if not options.nats:
        raise Refused(f"--nats: name the servers, here or in ${_NATS}")
    return Nats(options.nats, options.user, options.password_file, options.ca, options.inbox_prefix)


def _urls(options: argparse.Namespace) -> list[str]:
    urls = options.clickhouse or os.environ.get(_CLICKHOUSE, "").split()
    if not urls:
        raise Refused(f"--clickhouse: name the shards, here or in ${_CLICKHOUSE}")
    return list(urls)


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Do the work, until it ends or SIGTERM or SIGINT comes."""
    task = asyncio.ensure_future(work)
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _forward(options: argparse.Namespace) -> None:
    to, backoff = _nats(options), Backoff(most=options.max_wait)
    if not options.db.exists():
        raise StorageError(
            options.db, "no such file: name with --db the one that the device writes"
        )
    with PowerManager(options.db) as pm:
        work = forward(Outbox(pm, options.site), to, options.interval, backoff, options.once)
        asyncio.run(_until_signal(work))


def _sink(options: argparse.Namespace) -> None:
    from power_fleet.engine import (
        Engine,
    )  # a device that forwards needs no ClickHouse client, nor has the memory
    from power_fleet.sink import Sink

    source = _nats(options)
    engine = Engine(_urls(options))
    quota = Quota(options.device_rate, options.device_bytes)
    sink = Sink(engine, source, Backoff(most=options.max_wait), quota=quota)
    asyncio.run(_until_signal(sink.run()))


def _stream(options: argparse.Namespace) -> None:
    async def work() -> None:
        connection = await _nats(options).connect("power-fleet stream")
        try:
            await check_server(connection)
            js = connection.jetstream(timeout=20)
            await make_streams(
                js,
                options.replicas,
                options.max_bytes,
                options.device_messages,
                options.first_sequence,
            )
            await make_dead_stream(js, options.replicas, max(options.max_bytes // 10, 1))
        finally:
            await connection.close()

    asyncio.run(work())


def _dead(options: argparse.Namespace) -> None:
    asyncio.run(dead_commands.run(options, _nats(options)))


def _schema(options: argparse.Namespace) -> None:
    from power_fleet.engine import Engine
    from power_fleet.schema import create

    create(Engine(_urls(options)))


def _close(options: argparse.Namespace) -> None:
    from power_fleet.engine import Engine
    from power_fleet.hours import keep_closing

    engine = Engine(_urls(options))
    work = keep_closing(engine, options.interval, Backoff(), once=options.once)
    asyncio.run(_until_signal(work))


def _ask(options: argparse.Namespace) -> None:
    from power_fleet.fleet import Answer, Fleet, shown

    fleet = Fleet(_urls(options))
    answers: dict[str, Any] = {
        "budget": lambda: fleet.budget(options.device_id or None),
        "report": lambda: fleet.report(options.device_id, options.days),
        "latest": fleet.latest,
        "energy": lambda: fleet.energy(options.days),
        "silent": lambda: fleet.silent(options.minutes),
    }
    answer: Answer[Any] = answers[options.command]()
    value = answer.value
    print(value if isinstance(value, str) else json.dumps(value, indent=2, default=shown))
    print(
        f"fresh as of {answer.fresh_as_of or 'nobody knows when: no sink has run yet'}",
        file=sys.stderr,
    )


_COMMANDS = {
    "forward": _forward,
    "sink": _sink,
    "stream": _stream,
    "dead": _dead,
    "schema": _schema,
    "close": _close,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 for an error, 2 for wrong usage."""
    options = _parser().parse_args(argv)
    level = logging.DEBUG if options.verbose else logging.INFO
    # Of the others' loggers only errors: what they warn of, ours says with what is done about it.
    logging.basicConfig(
        level=logging.ERROR, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger("power_fleet").setLevel(level)
    try:
        _COMMANDS.get(options.command, _ask)(options)
    except Refused as error:
        print(f"power-fleet: {error}", file=sys.stderr)
        return 2
    except (PowerManagerError, OSError, TimeoutError, NatsError, Unknown) as error:
        print(f"power-fleet: {error or type(error).__name__}", file=sys.stderr)
        return 1
    return 0
