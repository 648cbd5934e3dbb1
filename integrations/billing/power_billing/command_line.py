"""What the commands share: opening the files, reading values, showing rows."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from power_billing.errors import BillingError
from power_billing.hours import HOUR, hour_of, iso, oldest_billable
from power_billing.links import TYPES, can_begin, parse_id, parse_types
from power_billing.money import Price
from power_billing.outbox import Entry, State
from power_billing.periods import periods_of
from power_billing.sinks import CsvSink, UsageEvent, UsageSink
from power_billing.sources import Devices
from power_billing.tables import LedgerFile, Place, tables
from power_manager import (
    Column,
    CommandParser,
    InvalidValue,
    NotFound,
    PowerManager,
    Screen,
    check_text,
    make_table,
    not_installed,
    parse_time,
    unknown_id,
)

Command = Callable[[argparse.Namespace], int]  # returns the exit code


@contextlib.contextmanager
def opened(options: argparse.Namespace) -> Iterator[tuple[Devices, Place]]:
    """The devices, and where the ledger is.

    By default both are the file of --db; --ledger names another file for the ledger, --fleet an
    engine for the devices. Raises BillingError for a database that does not exist: a typing mistake
    must not look like devices that used nothing.
    """
    if options.fleet:
        ledger = LedgerFile(options.ledger)
        yield _fleet(options, ledger), ledger
        return
    if not Path(options.db).exists():
        raise BillingError(f"{options.db}: no such database: name it with --db")
    with PowerManager(options.db, clock=options.clock) as pm:
        yield pm, LedgerFile(options.ledger) if options.ledger else pm


def _fleet(options: argparse.Namespace, ledger: Place) -> Devices:
    """The devices of a fleet.

    Raises BillingError if the extra `fleet` is not installed, and OSError without a hub.
    """
    try:
        from power_fleet.errors import Refused
        from power_fleet.options import engine_urls_of

        from power_billing.fleet_usage import FleetDevices
    except ModuleNotFoundError as error:
        raise BillingError(f"--fleet: {not_installed(error, 'billing,fleet')}") from None
    for name in ("clickhouse_connect", "urllib3"):  # of a failed request the error says enough
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return FleetDevices(engine_urls_of(options), ledger, options.clock)
    except Refused as error:
        options.usage_error(str(error))
        raise


def check_device(pm: Devices, options: argparse.Namespace) -> None:
    """Raise NotFound for a device that there is not, with the nearest id."""
    try:
        pm.get_device(options.device_id)
    except NotFound:
        lists = "power-fleet latest" if options.fleet else "power-manager devices"
        known = [device.id for device in pm.list_devices()]
        remedy = f": `{lists}` lists them"
        raise unknown_id("device", options.device_id, known, remedy) from None


def print_events(place: Place, events: Iterable[UsageEvent]) -> None:
    """Print events as a table, by hour; print nothing if there are none.

    A ledger with a tariff shows the period of each hour.
    """
    rows = sorted(events, key=lambda event: (event.hour, event.customer))
    if not rows:
        return
    with tables(place) as conn:
        periods = periods_of(conn, [event.hour for event in rows])
    columns = [
        Column("customer", lambda event: event.customer),
        Column("hour", lambda event: iso(event.hour)),
        Column("watt-hours", lambda event: event.watt_hours, right=True),
        Column("revision", lambda event: event.revision, right=True),
    ]
    if periods.tariff is not None:
        columns.insert(2, Column("period", lambda event: periods.of(event.hour)))
    print(make_table(columns, rows, Screen.of(sys.stdout)))


def add_customer_option(command: CommandParser) -> None:
    """Add --customer, of a command that is about one customer."""
    command.add_argument(
        "--customer",
        required=True,
        type=customer_argument,
        metavar="ID",
        help="a customer of Stripe's, such as cus_Nf1XyzAbc",
    )


def add_link_options(command: CommandParser, clock: Callable[[], float]) -> None:
    """Add what makes a link: the device, the customer, and which meters count from when on."""
    command.add_argument("device_id", type=name_argument, help="the device's id")
    add_customer_option(command)
    add = command.add_argument
    add(
        "--types",
        type=parse_types,
        metavar="LIST",
        help=f"meters that count, of {', '.join(TYPES)} (default: all, a ups only without a main)",
    )
    add("--yes", action="store_true", help="bill main beside battery or ups without asking")
    add(
        "--since",
        type=time_argument(clock),
        metavar="TIME",
        help="from this hour on, at most 35 days back (default: the next full UTC hour)",
    )


def check_since(options: argparse.Namespace) -> None:
    """End with exit code 2 for a --since from which no link can begin."""
    since = options.since
    if since is not None and not can_begin(hour_of("since", since), options.clock()):
        options.usage_error(f"--since: expected a time of the past 35 days, got {since}")


# --- Values


def time_argument(clock: Callable[[], float]) -> Callable[[str], datetime]:
    """What reads a time, for argparse; one without an offset is UTC, as bills are by UTC hours."""
    return functools.partial(parse_time, zone=timezone.utc, clock=clock)


def month_hours(text: str) -> range:
    """The hours (since 1970) of a UTC month, for argparse.

    >>> len(month_hours("2026-10")) // 24
    31
    """
    try:
        first = datetime.strptime(text, "%Y-%m").replace(tzinfo=timezone.utc)
        following = (first + timedelta(days=31)).replace(day=1)
        return range(hour_of("month", first), hour_of("month", following))
    except (ValueError, OverflowError):  # also a month before 1970, or after 2200
        raise argparse.ArgumentTypeError(
            f"expected a month from 1970 on such as 2026-10, got {text!r}"
        ) from None


def month_argument(clock: Callable[[], float]) -> Callable[[str], range]:
    """What reads a UTC month that has begun, for argparse: see month_hours."""

    def month_begun(text: str) -> range:
        hours = month_hours(text)
        if hours.start * HOUR > clock():
            raise argparse.ArgumentTypeError(f"expected a month that has begun, got {text!r}")
        return hours

    return month_begun


def name_argument(text: str) -> str:
    """Text that is not empty, for argparse."""
    try:
        return check_text("text", text)
    except InvalidValue as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("text: ")) from None


def file_argument(text: str) -> Path:
    """A file's name, for argparse: as a path, no text would be the present folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file, got ''")
    return Path(text)


def given_price(options: argparse.Namespace) -> Price:
    """The price of --price, --currency and --unit.

    End with exit code 2 if Stripe cannot carry it exactly.
    """
    try:
        return Price.of(options.price, options.currency, options.unit or "kWh")
    except InvalidValue as error:
        options.usage_error(f"--{error}")
        raise


customer_argument = functools.partial(parse_id, prefix="cus")


# --- Where usage goes


def check_sink_options(options: argparse.Namespace) -> None:
    """End with exit code 2 if only one of --sink csv and --csv is given."""
    if (options.sink == "csv") != (options.csv is not None):
        options.usage_error("--sink csv and --csv FILE go together: give both")


def sink_of(place: Place, options: argparse.Namespace) -> UsageSink:
    """The sink that --sink and --csv name. Raises BillingError for Stripe's key or meter."""
    check_sink_options(options)
    if options.csv is not None:
        sink = CsvSink(options.csv)
        sink.check()  # before anything is counted, or kept
        return sink
    from power_billing.stripe_sinks import sink_from

    stream = options.sink == "stripe-stream"
    return sink_from(os.environ, place, stream=stream, clock=options.clock)


def add_sink_options(command: CommandParser) -> None:
    """Add --sink and --csv, for sink_of."""
    command.add_argument(
        "--sink",
        choices=["stripe", "stripe-stream", "csv"],
        default="stripe",
        help="where usage goes (default: %(default)s)",
    )
    command.add_argument("--csv", type=file_argument, metavar="FILE", help="the file of --sink csv")


def open_line(entry: Entry, now: float) -> str:
    """What is open, and why."""
    event = entry.event
    what = "waiting"
    if event.hour < oldest_billable(now):
        what = "too old to be billed"
    elif entry.state is not State.QUEUED:
        what = entry.state.value
    reason = entry.reason or "-"
    return (
        f"{what}: {event.identifier} {event.watt_hours} Wh, tried {entry.attempts} times: {reason}"
    )
