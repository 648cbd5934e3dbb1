"""`power-fleet alarms`: what is wrong with devices, as a table, as JSON, or as it happens."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable
from datetime import timezone, tzinfo
from typing import TYPE_CHECKING, Any

from power_fleet.options import (
    OPERATOR_GROUP,
    add_engine_option,
    add_interval_option,
    add_utc_option,
    engine_urls_of,
    run_until_signal,
)
from power_manager import (
    Column,
    CommandParser,
    Screen,
    from_microseconds,
    make_table,
    printable,
    shown_json,
    shown_time,
)

if TYPE_CHECKING:
    from power_fleet.engine import Engine
    from power_fleet.watch import Alarm


def add_commands(parser: CommandParser) -> None:
    """Add `alarms`."""
    command = parser.add_command(
        "alarms",
        _alarms,
        "show devices that are silent, cloned, restored or replaced",
        examples=["", "--all --utc", "--follow --json"],
        group=OPERATOR_GROUP,
    )
    command.add_argument("--all", action="store_true", help="show alarms that are over too")
    command.add_argument(
        "--follow",
        action="store_true",
        help="go on, a line for each alarm that begins or ends, until Ctrl-C",
    )
    add_interval_option(command, 5.0, "5s")
    add_utc_option(command)
    command.add_json()
    add_engine_option(command)


def _alarms(options: argparse.Namespace) -> int:
    from power_fleet.engine import Engine
    from power_fleet.watch import list_alarms

    engine = Engine(engine_urls_of(options))
    zone = timezone.utc if options.utc else None
    if options.follow:
        return run_until_signal(_follow(engine, options, zone))
    alarms = list_alarms(engine, options.all)
    if options.json:
        print(shown_json([as_json(alarm) for alarm in alarms]))
    elif alarms:
        print(_table(alarms, zone, options.all))
    else:
        print("no alarms")
    return 0


async def _follow(engine: Engine, options: argparse.Namespace, zone: tzinfo | None) -> None:
    """Print what there is, then every change; each once, through outages of the engine too."""
    from power_fleet.backoff import Backoff
    from power_fleet.engine import EngineError
    from power_fleet.watch import list_alarms

    known: dict[tuple[str, str, int], Alarm] = {}
    is_first = True
    backoff = Backoff(most=30.0)
    while True:
        try:
            alarms = await asyncio.to_thread(list_alarms, engine, True)
        except EngineError as error:
            await backoff.wait("alarms not known", error)
            continue
        backoff.reset()
        for alarm in alarms:
            if known.get(alarm.identity) != alarm and not (
                is_first and alarm.cleared and not options.all
            ):
                print(_line(alarm, zone, options.json))
        sys.stdout.flush()
        known = {alarm.identity: alarm for alarm in alarms}
        is_first = False
        await asyncio.sleep(options.interval)


def as_json(alarm: Alarm) -> dict[str, Any]:
    """An alarm for programs; cleared_at is null while it lasts."""
    return {
        "device_id": alarm.device_id,
        "kind": alarm.kind,
        "since": from_microseconds(alarm.at),
        "cleared_at": from_microseconds(alarm.cleared) if alarm.cleared else None,
        "note": alarm.note,
    }


def _line(alarm: Alarm, zone: tzinfo | None, is_json: bool) -> str:
    """One change as a line."""
    if is_json:
        return json.dumps(as_json(alarm), ensure_ascii=False)
    moment = shown_time(alarm.cleared or alarm.at, zone)
    name = printable(alarm.device_id)
    if alarm.cleared:
        return f"{moment}  {name}: no longer {alarm.kind}"
    return f"{moment}  {name}: {alarm.kind}: {alarm.note}"


def _table(alarms: Iterable[Alarm], zone: tzinfo | None, with_cleared: bool) -> str:
    columns = [
        Column("device", lambda alarm: alarm.device_id, shrinks=True),
        Column("alarm", lambda alarm: alarm.kind),
        Column("since", lambda alarm: shown_time(alarm.at, zone)),
    ]
    if with_cleared:
        columns.append(
            Column(
                "until",
                lambda alarm: shown_time(alarm.cleared, zone) if alarm.cleared else "-",
            )
        )
    columns.append(Column("what", lambda alarm: alarm.note, shrinks=True))
    return make_table(columns, alarms, Screen.of(sys.stdout))
