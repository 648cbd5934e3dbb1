"""`power-fleet devices`, `retire`, `replace` and `delete`: what an operator does with devices."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
import time
from typing import TYPE_CHECKING

from power_fleet.options import (
    OPERATOR_GROUP,
    add_engine_option,
    add_json_option,
    add_nats_options,
    engine_urls_of,
    nats_of,
)
from power_manager import (
    SECOND_US,
    Column,
    CommandParser,
    PowerManagerError,
    Screen,
    make_table,
    print_error,
    shown_duration,
    shown_json,
    to_microseconds,
)

if TYPE_CHECKING:
    from power_fleet.engine import Engine
    from power_fleet.life import FleetDevice


def add_commands(parser: CommandParser) -> None:
    """Add `devices`, `retire`, `replace` and `delete`."""
    command = parser.add_command(
        "devices",
        _devices,
        "list the devices of the fleet",
        examples=["", "--json"],
        group=OPERATOR_GROUP,
    )
    add_json_option(command)
    add_engine_option(command)

    command = parser.add_command(
        "retire",
        _retire,
        "take a device or a meter out of the present; its history stays",
        examples=["edge-001", "edge-001 --undo"],
        group=OPERATOR_GROUP,
    )
    command.add_argument("id", metavar="DEVICE|METER")
    command.add_argument("--undo", action="store_true", help="take that back")
    command.add_argument(
        "--kind", choices=["device", "meter"], help="which of them, where one id is both"
    )
    add_engine_option(command)

    command = parser.add_command(
        "replace",
        _replace,
        "note that a device has taken the place of another one",
        examples=["edge-001 edge-007"],
        group=OPERATOR_GROUP,
    )
    command.add_argument("old", metavar="OLD")
    command.add_argument("new", metavar="NEW")
    add_engine_option(command)

    command = parser.add_command(
        "delete",
        _delete,
        "delete everything of a device from the engine",
        examples=["edge-001", "edge-001 --yes"],
        group=OPERATOR_GROUP,
    )
    command.add_argument("device_id", metavar="DEVICE")
    command.add_argument(
        "--force", action="store_true", help="even if it was heard of within the last hour"
    )
    command.add_argument("--yes", action="store_true", help="do not ask")
    add_nats_options(command)
    add_engine_option(command)


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
    print_error(f"{len(found)} {'device' if len(found) == 1 else 'devices'}")
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
    print(
        f"{what} is {state}" if done.is_new else f"{what} was {state} before: nothing has changed"
    )
    return 0


def _replace(options: argparse.Namespace) -> int:
    from power_fleet.life import replace_device

    replace_device(_engine(options), options.old, options.new)
    print(f"{options.new} has taken the place of {options.old}, which is retired")
    return 0


def _delete(options: argparse.Namespace) -> int:
    from power_fleet.life import delete_device, last_sequence

    engine = _engine(options)
    source = nats_of(options)
    _confirm(options, f"Delete everything of {options.device_id} from the engine?")
    sequence = asyncio.run(last_sequence(source))
    delete_device(engine, options.device_id, sequence, options.force)
    print(f"everything of {options.device_id} is deleted")
    return 0


def _confirm(options: argparse.Namespace, question: str) -> None:
    """Ask on a terminal before something is deleted, unless --yes was given."""
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise PowerManagerError(f"{question} There is no terminal to ask: give --yes")
    print_error(f"{question} [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise PowerManagerError("nothing was deleted")
