"""`power-fleet dead list|read|replay|drop`: what an operator does with dead letters."""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from typing import Any

from nats.js import JetStreamContext

from power_fleet import dead
from power_fleet.codec import MAX_BYTES
from power_fleet.dead import Letter
from power_fleet.stream import Nats, Refused, check_server
from power_manager import Column, Screen, make_table

SHOWN_BYTES = 4096  # of a letter that is no JSON


async def run(options: argparse.Namespace, source: Nats) -> None:
    """Do one of the actions. Raises Refused for wrong usage, Unknown for a letter that is not there."""
    connection = await source.connect("power-fleet dead")
    try:
        await check_server(connection)
        js = connection.jetstream(timeout=20)
        if options.action == "list":
            await _list(js, options.device, options.json)
        elif options.action == "read":
            _show(await dead.letter(js, options.number), options.raw)
        else:
            await _each(js, options)
    finally:
        await connection.close()


async def _list(js: JetStreamContext, device_id: str | None, as_json: bool) -> None:
    found = [letter async for letter in dead.letters(js, device_id)]
    if as_json:
        print(json.dumps([_head(letter) for letter in found], indent=2, ensure_ascii=False))
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
    print(f"{len(found)} dead letters", file=sys.stderr)


def _head(letter: Letter) -> dict[str, Any]:
    return {
        "number": letter.number,
        "device_id": letter.device_id,
        "timestamp": letter.at.isoformat(),
        "reason": letter.reason,
        "bytes": letter.size,
        "whole": letter.is_whole,
    }


def _show(letter: Letter, as_bytes: bool) -> None:
    if as_bytes:
        sys.stdout.buffer.write(letter.data)
        sys.stdout.buffer.flush()
        return
    print(json.dumps({**_head(letter), "content": _content(letter.data)}, indent=2))


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
    print(f"{len(found)} dead letters {done}", file=sys.stderr)
