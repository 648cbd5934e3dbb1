"""What the commands share: opening the files, reading times, showing rows."""

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
from power_billing.hours import hour_of, iso, oldest_billable
from power_billing.links import TYPES
from power_billing.outbox import Entry, State
from power_billing.periods import periods_of
from power_billing.sinks import CsvSink, UsageEvent, UsageSink
from power_billing.sources import Devices
from power_billing.tables import LedgerFile, Place, tables
from power_manager import (
    Column,
    CommandParser,
    PowerManager,
    Screen,
    make_table,
    not_installed,
    parse_time,
)

Command = Callable[[argparse.Namespace], int]  # returns the exit code

# Bills are by UTC hours, so times without an offset are UTC.
time_argument = functools.partial(parse_time, zone=timezone.utc)


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
    with PowerManager(options.db) as pm:
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
        return FleetDevices(engine_urls_of(options), ledger)
    except Refused as error:
        options.usage_error(str(error))
        raise


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
        metavar="ID",
        help="a customer of Stripe's, such as cus_Nf1XyzAbc",
    )


def add_link_options(command: CommandParser) -> None:
    """Add what makes a link: the device, the customer, and which meters count from when on."""
    command.add_argument("device_id", help="the device's id")
    add_customer_option(command)
    add = command.add_argument
    add(
        "--types",
        metavar="LIST",
        help=f"meters that count, of {', '.join(TYPES)} (default: all, a ups only without a main)",
    )
    add("--yes", action="store_true", help="bill main beside battery or ups without asking")
    add(
        "--since",
        type=time_argument,
        metavar="TIME",
        help="from this hour on, at most 35 days back (default: the next full UTC hour)",
    )


def month_hours(text: str) -> range:
    """The hours (since 1970) of a UTC month, for argparse.

    >>> len(month_hours("2026-10")) // 24
    31
    """
    try:
        first = datetime.strptime(text, "%Y-%m").replace(tzinfo=timezone.utc)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a month such as 2026-10, got {text!r}"
        ) from None
    following = (first + timedelta(days=31)).replace(day=1)
    return range(hour_of("month", first), hour_of("month", following))


def check_sink_options(options: argparse.Namespace) -> None:
    """End with exit code 2 if only one of --sink csv and --csv is given."""
    if (options.sink == "csv") != (options.csv is not None):
        options.usage_error("--sink csv and --csv FILE go together: give both")


def sink_of(place: Place, options: argparse.Namespace) -> UsageSink:
    """The sink that --sink and --csv name. Raises BillingError for Stripe's key or meter."""
    check_sink_options(options)
    if options.csv is not None:
        return CsvSink(options.csv)
    from power_billing.stripe_sinks import sink_from

    return sink_from(os.environ, place, stream=options.sink == "stripe-stream")


def add_sink_options(command: CommandParser) -> None:
    """Add --sink and --csv, for sink_of."""
    command.add_argument(
        "--sink",
        choices=["stripe", "stripe-stream", "csv"],
        default="stripe",
        help="where usage goes (default: %(default)s)",
    )
    command.add_argument("--csv", type=Path, metavar="FILE", help="the file of --sink csv")


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
