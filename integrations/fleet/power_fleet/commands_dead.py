"""`power-fleet dead list|read|replay|drop`: what an operator does with dead letters."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from nats.js import JetStreamContext

from power_fleet import dead
from power_fleet.codec import MAX_BYTES
from power_fleet.dead import Letter
from power_fleet.options import (
    OPERATOR_GROUP,
    add_json_option,
    add_nats_options,
    nats_of,
    parse_positive,
)
from power_fleet.stream import Refused, check_server
from power_manager import Column, CommandParser, Screen, make_table, print_error, shown_json

SHOWN_BYTES = 4096  # of a letter that is no JSON
_Action = Callable[[JetStreamContext, argparse.Namespace], Awaitable[None]]


def add_commands(parser: CommandParser) -> None:
    """Add `dead` with its own commands."""
    dead_parser = parser.add_command(
        "dead",
        None,
        "look after messages that can never be stored",
        examples=["list", "read 1", "replay --all", "drop --device edge-001"],
        group=OPERATOR_GROUP,
    )
    command = dead_parser.add_command(
        "list", _run(_list), "list them, or those of one device", examples=["", "--device edge-001"]
    )
    command.add_argument("--device", metavar="ID", help="of this device (default: of all)")
    add_json_option(command)
    add_nats_options(command)

    command = dead_parser.add_command(
        "read", _run(_read), "show what one of them holds", examples=["1", "1 --raw"]
    )
    command.add_argument("number", type=parse_positive, metavar="NUMBER")
    command.add_argument("--raw", action="store_true", help="its bytes as they came")
    add_nats_options(command)

    texts = {
        "replay": "send them to the sinks once more, and drop them",
        "drop": "delete them for good",
    }
    for action, text in texts.items():
        command = dead_parser.add_command(
            action, _run(_each), text, examples=["1 2", "--device edge-001", "--all"]
        )
        command.add_argument("number", type=parse_positive, nargs="*", metavar="NUMBER")
        command.add_argument("--device", metavar="ID", help="all of this device")
        command.add_argument("--all", action="store_true", help="all that there are")
        command.set_defaults(action=action)
        add_nats_options(command)

    def refuse(_: argparse.Namespace) -> NoReturn:
        dead_parser.error(f"name what to do: {', '.join(dead_parser.commands)}")

    dead_parser.set_defaults(command="dead", run=refuse)


def _run(action: _Action) -> Callable[[argparse.Namespace], int]:
    """What does one of the actions. Raises Refused for wrong usage, Unknown for a letter that is not there."""

    async def work(options: argparse.Namespace) -> None:
        connection = await nats_of(options).connect("power-fleet dead")
        try:
            await check_server(connection)
            await action(connection.jetstream(timeout=20), options)
        finally:
            await connection.close()

    def run(options: argparse.Namespace) -> int:
        asyncio.run(work(options))
        return 0

    return run


async def _list(js: JetStreamContext, options: argparse.Namespace) -> None:
    found = [letter async for letter in dead.letters(js, options.device)]
    if options.json:
        print(shown_json([_head(letter) for letter in found]))
        return
    columns = [
        Column("number", lambda letter: letter.number, right=True),
        Column("device", lambda letter: letter.device_id, shrinks=True),
        Column("since", lambda letter: letter.at.isoformat(timespec="seconds")),
        Column("bytes", lambda letter: letter.size, right=True),
        Column("reason", lambda letter: letter.reason, shrinks=True),
    ]
    if found:
        print(make_table(columns, found, Screen.of(sys.stdout)))
    print_error(f"{len(found)} dead letters")


def _head(letter: Letter) -> dict[str, Any]:
    return {
        "number": letter.number,
        "device_id": letter.device_id,
        "timestamp": letter.at.isoformat(),
        "reason": letter.reason,
        "bytes": letter.size,
        "whole": letter.is_whole,
    }


async def _read(js: JetStreamContext, options: argparse.Namespace) -> None:
    letter = await dead.letter(js, options.number)
    if options.raw:
        sys.stdout.buffer.write(letter.data)
        sys.stdout.buffer.flush()
        return
    print(shown_json({**_head(letter), "content": _content(letter.data)}))


def _content(data: bytes) -> Any:
    """The batch as JSON where it is one, otherwise the beginning of its bytes as hexadecimal text."""
    try:
        return json.loads(zlib.decompressobj().decompress(data, MAX_BYTES))
    except (zlib.error, ValueError, RecursionError):
        return data[:SHOWN_BYTES].hex(" ")


async def _each(js: JetStreamContext, options: argparse.Namespace) -> None:
    """Replay or drop the letters that are named, one way or another."""
    ways = [bool(options.number), options.device is not None, options.all]
    if sum(ways) != 1:
        raise Refused(f"dead {options.action}: name letters by number, or --device ID, or --all")
    if options.number:
        found = [await dead.letter(js, number) for number in options.number]
    else:
        found = [letter async for letter in dead.letters(js, options.device)]
    act = {"replay": dead.replay, "drop": dead.drop}[options.action]
    if options.action == "replay":
        for letter in found:
            dead.check_whole(letter)  # all or none
    for letter in found:
        await act(js, letter)
    done = {"replay": "replayed", "drop": "dropped"}[options.action]
    print_error(f"{len(found)} dead letters {done}")
