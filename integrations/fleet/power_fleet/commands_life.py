"""`power-fleet devices`, `retire`, `replace` and `delete`: what an operator does with devices."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from power_fleet.options import (
    OPERATOR_GROUP,
    add_engine_option,
    add_nats_options,
    engine_urls_of,
    nats_of,
    print_done,
)
from power_manager import (
    SECOND_US,
    Column,
    CommandParser,
    Screen,
    confirm,
    make_table,
    shown_duration,
    shown_json,
    to_microseconds,
)

if TYPE_CHECKING:
    from power_fleet.engine import Engine
    from power_fleet.life import FleetDevice


def add_commands(parser: CommandParser) -> None:
    """Add `devices`, `retire`, `replace` and `delete`."""
    text = "list the devices of the fleet"
    _add(parser, "devices", _devices, text, ["", "--json"])

    text = "take a device or a meter out of the present; its history stays"
    command = _add(parser, "retire", _retire, text, ["edge-001", "edge-001 --undo"])
    command.add_argument("id", help="the id of a device or a meter")
    command.add_argument("--undo", action="store_true", help="bring it back")
    command.add_argument(
        "--kind", choices=["device", "meter"], help="which one, if both have that id"
    )

    text = "note that a device has taken the place of another one"
    command = _add(parser, "replace", _replace, text, ["edge-001 edge-007"])
    command.add_argument("old", help="the device that is retired")
    command.add_argument("new", help="the device in its place")

    text = "delete everything of a device from the engine"
    command = _add(parser, "delete", _delete, text, ["edge-001", "edge-001 --yes"])
    command.add_argument("device_id", help="the device")
    command.add_argument(
        "--force", action="store_true", help="even if it was heard from within the last hour"
    )
    command.add_argument("--yes", action="store_true", help="do not ask")
    add_nats_options(command)


def _add(
    parser: CommandParser, name: str, run: Any, text: str, examples: Sequence[str]
) -> CommandParser:
    command = parser.add_command(name, run, text, examples=examples, group=OPERATOR_GROUP)
    command.add_json()
    add_engine_option(command)
    return command


def _engine(options: argparse.Namespace) -> Engine:
    from power_fleet.engine import Engine

    return Engine(engine_urls_of(options))


def _devices(options: argparse.Namespace) -> int:
    from power_fleet.life import list_devices

    found = list_devices(_engine(options))
    if options.json:
        print(shown_json([dataclasses.asdict(device) for device in found]))
        return 0
    columns = [
        Column("device", lambda device: device.device_id, shrinks=True),
        Column("name", lambda device: device.name, shrinks=True),
        Column("site", lambda device: device.site, shrinks=True),
        Column("version", lambda device: device.version),
        Column("file", lambda device: device.file_id[:8]),
        Column("line", lambda device: device.line, right=True),
        Column("seen", _seen_column, right=True),
        Column("notes", _notes, shrinks=True),
    ]
    if found:
        print(make_table(columns, found, Screen.of(sys.stdout)))
    else:
        print("no devices yet: `power-fleet forward` sends one's file")
    return 0


def _seen_column(device: FleetDevice) -> str:
    if device.last_seen is None:
        return "never"
    seconds = time.time() - to_microseconds(device.last_seen) / SECOND_US
    return f"{shown_duration(max(seconds, 0.0))} ago"


def _notes(device: FleetDevice) -> str:
    notes = list(device.alarms)
    if device.replaced_by:
        notes.append(f"replaced by {device.replaced_by}")
    elif device.retired:
        notes.append("retired")
    if device.deleted:
        notes.append("deleted, but goes on sending: restart its forwarder, or revoke it")
    return ", ".join(notes)


def _retire(options: argparse.Namespace) -> int:
    from power_fleet.life import retire

    done = retire(_engine(options), options.id, options.undo, options.kind)
    what = f"the meter {done.meter_id} of {done.device_id}" if done.meter_id else done.device_id
    state = "retired" if done.retired else "not retired"
    text = f"{what} is {state}" if done.is_new else f"{what} was {state} before: nothing changed"
    print_done(
        options,
        text,
        device_id=done.device_id,
        meter_id=done.meter_id or None,
        retired=done.retired,
        changed=done.is_new,
    )
    return 0


def _replace(options: argparse.Namespace) -> int:
    from power_fleet.life import replace_device

    replace_device(_engine(options), options.old, options.new)
    text = f"{options.new} has taken the place of {options.old}, which is retired"
    print_done(options, text, device_id=options.old, replaced_by=options.new)
    return 0


def _delete(options: argparse.Namespace) -> int:
    from power_fleet.life import delete_device, last_sequence

    engine = _engine(options)
    source = nats_of(options)
    question = f"Delete everything of {options.device_id} from the engine?"
    confirm(question, yes=options.yes)
    sequence = asyncio.run(last_sequence(source))
    delete_device(engine, options.device_id, sequence, options.force)
    text = f"everything of {options.device_id} is deleted"
    print_done(options, text, device_id=options.device_id, deleted=True)
    return 0
