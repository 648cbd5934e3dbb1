"""`power-fleet budget`, `report`, `latest`, `energy` and `silent`.

The questions, as tables or JSON.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import timezone
from typing import TYPE_CHECKING, Any

from power_fleet.options import (
    QUESTION_GROUP,
    add_engine_option,
    add_utc_option,
    engine_urls_of,
    parse_positive,
)
from power_manager import (
    SECOND_US,
    Column,
    CommandParser,
    PowerMeter,
    Screen,
    budget_doubt,
    make_budget_table,
    make_meter_table,
    make_table,
    parse_duration,
    parse_number,
    print_error,
    printable,
    shown_duration,
    shown_json,
    shown_number,
    shown_time,
    to_microseconds,
)

if TYPE_CHECKING:
    from power_fleet.fleet import Answer, Fleet

STALE_SECONDS = 5400.0  # the library's max_gap unless a file has another
MOST_NAMED = 10  # devices in a line


def add_commands(parser: CommandParser) -> None:
    """Add the questions."""
    command = _add(parser, "budget", _budget, "show power budgets", ["", "edge-001 --json"])
    _add_device_ids(command)

    command = _add(parser, "report", _report, "print a device's report", ["edge-001 --days 30"])
    command.add_argument("device_id", help="the device")
    command.add_argument(
        "--days",
        type=functools.partial(parse_number, above=0),
        default=7,
        metavar="N",
        help="how far back (default: 7)",
    )

    text = "show the present state of every meter"
    command = _add(parser, "latest", _latest, text, ["", "edge-001"])
    _add_device_ids(command)

    text = "show energy by UTC day, site and meter type"
    command = _add(parser, "energy", _energy, text, ["", "--days 30 --json"])
    command.add_argument(
        "--days",
        type=parse_positive,
        default=7,
        metavar="N",
        help="today and the days before it (default: 7)",
    )

    text = "show devices that have sent nothing for a while"
    command = _add(parser, "silent", _silent, text, ["", "--for 15m"])
    command.add_argument(
        "--for",
        dest="silence_s",
        type=parse_duration,
        default=3600.0,
        metavar="TIME",
        help="how long a while is (default: 1h)",
    )
    add_utc_option(command)


def _add(
    parser: CommandParser, name: str, run: Any, text: str, examples: Sequence[str]
) -> CommandParser:
    command = parser.add_command(name, run, text, examples=examples, group=QUESTION_GROUP)
    command.add_json()
    add_engine_option(command)
    return command


def _add_device_ids(command: CommandParser) -> None:
    command.add_argument(
        "device_ids", nargs="*", metavar="device_id", help="(default: every device)"
    )


def _fleet(options: argparse.Namespace) -> Fleet:
    from power_fleet.fleet import Fleet

    return Fleet(engine_urls_of(options))


def _say(text: str, answer: Answer[Any]) -> None:
    """Print an answer, and on standard error how fresh it is."""
    print(text)
    sys.stdout.flush()
    if answer.fresh_as_of is None:
        print_error("not known how fresh it is: no sink has run yet")
    else:
        print_error(f"fresh as of {answer.fresh_as_of}")
    if answer.kept_since is not None:
        print_error(f"without what was before {answer.kept_since}: it is no longer kept")


def _budget(options: argparse.Namespace) -> int:
    fleet = _fleet(options)
    answer = fleet.budget(options.device_ids or None)
    if options.json:
        text = shown_json(answer.value)
    elif answer.value:
        doubts = _doubts(fleet.latest(options.device_ids or None).value)
        text = make_budget_table(answer.value, Screen.of(sys.stdout), doubts=doubts)
    else:
        text = "no devices yet: `power-fleet forward` sends one's file"
    _say(text, answer)
    return _say_unknown(answer.value)


def _doubts(meters: Iterable[PowerMeter]) -> dict[str, str]:
    """By device, why the figures of its budget may mean nothing, where that is so."""
    now_us = int(time.time() * SECOND_US)
    by_device: dict[str, list[PowerMeter]] = {}
    for meter in meters:
        by_device.setdefault(meter.device_id, []).append(meter)
    return {id_: budget_doubt(some, now_us, STALE_SECONDS) for id_, some in by_device.items()}


def _say_unknown(budgets: Mapping[str, Mapping[str, Any]]) -> int:
    """Name the devices that have no present budget, and why; return the exit code."""
    errors = [budget["error"] for budget in budgets.values() if "error" in budget]
    for error in errors:
        print_error(f"power-fleet: {error}")
    return 1 if errors else 0


def _report(options: argparse.Namespace) -> int:
    answer = _fleet(options).report(options.device_id, options.days)
    _say(answer.value, answer)
    return 0


def _latest(options: argparse.Namespace) -> int:
    from power_fleet.fleet import shown

    fleet = _fleet(options)
    answer = fleet.latest(options.device_ids or None)
    if options.json:
        text = shown_json([shown(meter) for meter in answer.value])
    elif answer.value:
        now_us = int(time.time() * SECOND_US)
        text = make_meter_table(answer.value, now_us, STALE_SECONDS, Screen.of(sys.stdout))
    elif options.device_ids:
        text = "no meters of these devices"
    else:
        text = "no meters yet: `power-fleet forward` sends a device's file"
    _say(text, answer)
    found = {meter.device_id for meter in answer.value}
    missing = [id_ for id_ in options.device_ids if id_ not in found]
    return _say_unknown(fleet.budget(missing).value) if missing else 0


def _energy(options: argparse.Namespace) -> int:
    answer = _fleet(options).energy(options.days)
    _say(_energy_text(answer.value, options.json), answer)
    return 0


def _energy_text(rows: Sequence[Mapping[str, Any]], as_json: bool) -> str:
    if as_json:
        return shown_json(rows)
    if not rows:
        return "no energy in that time"
    columns = [
        Column("UTC day", lambda row: row["day"]),
        Column("site", lambda row: row["site"] or "-", shrinks=True),
        Column("type", lambda row: row["type"]),
        Column("out Wh", lambda row: shown_number(row["energy_out_wh"]), right=True),
        Column("in Wh", lambda row: shown_number(row["energy_in_wh"]), right=True),
    ]
    return make_table(columns, rows, Screen.of(sys.stdout))


def _silent(options: argparse.Namespace) -> int:
    fleet = _fleet(options)
    answer = fleet.silent(options.silence_s / 60.0)
    _say(_silent_text(answer.value, options), answer)
    silent = {row["device_id"] for row in answer.value}
    _say_without_readings(fleet.latest().value, silent, options.silence_s)
    return 0


def _say_without_readings(
    meters: Iterable[PowerMeter], silent: Container[str], silence_s: float
) -> None:
    """Name the devices that are not silent, but of which no meter was read for so long.

    A forwarder that starts sends messages, though what reads the meters has died.
    """
    now_us = int(time.time() * SECOND_US)
    newest: dict[str, int] = {}  # 0: none was ever read
    for meter in meters:
        if meter.active and meter.device_id not in silent:
            read_us = 0 if meter.updated_at is None else to_microseconds(meter.updated_at)
            newest[meter.device_id] = max(newest.get(meter.device_id, 0), read_us)
    named = []
    for device_id, read_us in newest.items():
        age_s = (now_us - read_us) / SECOND_US
        if age_s >= silence_s:
            last = f"read {shown_duration(age_s)} ago" if read_us else "never read"
            named.append(f"{printable(device_id)} ({last})")
    if named:
        more = f", and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        names = ", ".join(named[:MOST_NAMED])
        print_error(f"power-fleet: messages come without new readings from {names}{more}")


def _silent_text(rows: Sequence[Mapping[str, str]], options: argparse.Namespace) -> str:
    if options.json:
        return shown_json(rows)
    if not rows:
        return "no device is silent"
    zone = timezone.utc if options.utc else None
    now_us = int(time.time() * SECOND_US)

    def silence(row: Mapping[str, str]) -> str:
        return shown_duration((now_us - to_microseconds(row["last_seen"])) / SECOND_US)

    columns = [
        Column("device", lambda row: row["device_id"], shrinks=True),
        Column("last seen", lambda row: shown_time(row["last_seen"], zone)),
        Column("silent for", silence, right=True),
    ]
    return make_table(columns, rows, Screen.of(sys.stdout))
