"""`power-fleet dead list|read|replay|drop`: what an operator does with dead letters."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from power_fleet.codec import MAX_BYTES
from power_fleet.errors import WrongOptions
from power_fleet.options import (
    OPERATOR_GROUP,
    add_nats_options,
    counted,
    nats_of,
    parse_positive,
    print_done,
)
from power_manager import Column, CommandParser, Screen, make_table, shown_json

if TYPE_CHECKING:
    from nats.js import JetStreamContext

    from power_fleet.dead import Letter

SHOWN_BYTES = 4096  # of a letter that is no JSON
_Action = Callable[["JetStreamContext", argparse.Namespace], Awaitable[None]]


def add_commands(parser: CommandParser) -> None:
    """Add `dead` with its own commands."""
    dead_parser = parser.add_command(
        "dead",
        None,
        "look after messages that can never be stored",
        examples=["list", "read 1", "replay --all", "drop --device edge-001"],
        group=OPERATOR_GROUP,
    )
    text = "list them, oldest first"
    command = _add(dead_parser, "list", _list, text, ["", "--device edge-001"])
    command.add_argument("--device", metavar="ID", help="those of this device (default: all)")

    command = _add(dead_parser, "read", _read, "show what one of them holds", ["1", "1 --raw"])
    command.add_argument("number", type=parse_positive, help="its number in the list")
    command.add_argument("--raw", action="store_true", help="print its bytes as they came")

    texts = {
        "replay": "send them to the sinks once more, and drop them",
        "drop": "delete them for good",
    }
    for action, text in texts.items():
        examples = ["1 2", "--device edge-001", "--all"]
        command = _add(dead_parser, action, _each, text, examples)
        command.add_argument(
            "number", type=parse_positive, nargs="*", help="their numbers in the list"
        )
        command.add_argument("--device", metavar="ID", help="all of this device")
        command.add_argument("--all", action="store_true", help="all of them")
        command.set_defaults(action=action)


def _add(
    parser: CommandParser, name: str, action: _Action, text: str, examples: Sequence[str]
) -> CommandParser:
    command = parser.add_command(name, _run(action), text, examples=examples)
    command.add_json()
    add_nats_options(command)
    return command


def _run(action: _Action) -> Callable[[argparse.Namespace], int]:
    """What does one of the actions. Raises Unknown for a letter that is not there."""

    async def work(options: argparse.Namespace) -> None:
        from power_fleet.stream import ASKED_SECONDS, check_server

        connection = await nats_of(options).connect("power-fleet dead")
        try:
            await check_server(connection)
            await action(connection.jetstream(timeout=ASKED_SECONDS), options)
        finally:
            await connection.close()

    def run(options: argparse.Namespace) -> int:
        _check(options)
        asyncio.run(work(options))
        return 0

    return run


def _check(options: argparse.Namespace) -> None:
    """Raise WrongOptions for options that do not go together."""
    if getattr(options, "raw", False) and options.json:
        raise WrongOptions("--raw and --json: give one of them")
    if getattr(options, "action", None) is None:
        return
    ways = [bool(options.number), options.device is not None, options.all]
    if sum(ways) != 1:
        raise WrongOptions("name letters by their numbers, or give --device ID or --all")


async def _list(js: JetStreamContext, options: argparse.Namespace) -> None:
    from power_fleet import dead

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
    else:
        print("no dead letters")


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
    from power_fleet import dead

    letter = await dead.letter(js, options.number)
    if options.raw:
        sys.stdout.buffer.write(letter.data)
        sys.stdout.buffer.flush()
        return
    print(shown_json({**_head(letter), "content": _content(letter.data)}))


def _content(data: bytes) -> Any:
    """The batch as JSON where it is one, otherwise its first bytes as hexadecimal text."""
    try:
        return json.loads(zlib.decompressobj().decompress(data, MAX_BYTES))
    except (zlib.error, ValueError, RecursionError):
        return data[:SHOWN_BYTES].hex(" ")


async def _each(js: JetStreamContext, options: argparse.Namespace) -> None:
    """Replay or drop the letters that are named, in one of the three ways."""
    from power_fleet import dead

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
    numbers = [letter.number for letter in found]
    print_done(options, f"{done}: {counted(len(found), 'dead letter')}", **{done: numbers})
