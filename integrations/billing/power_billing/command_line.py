"""What the commands share: the files they are about, how times are read, how rows are shown."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timezone
from pathlib import Path

from power_billing.errors import BillingError
from power_billing.hours import iso, oldest_billable
from power_billing.ledger import Entry, State
from power_billing.sinks import UsageEvent
from power_billing.tables import LedgerFile, Place
from power_manager import Column, PowerManager, Screen, make_table, parse_time, print_error

LEDGER = "POWER_BILLING_LEDGER"  # the ledger's own file; empty or unset: the library's
Command = Callable[[argparse.Namespace], int]  # returns the exit code

# Bills are by UTC hours, so times without an offset are UTC.
time_argument = functools.partial(parse_time, zone=timezone.utc)

_EVENT_COLUMNS = (
    Column("customer", lambda event: event.customer),
    Column("hour", lambda event: iso(event.hour)),
    Column("watt-hours", lambda event: event.watt_hours, right=True),
    Column("revision", lambda event: event.revision, right=True),
)


@contextlib.contextmanager
def opened(options: argparse.Namespace) -> Iterator[tuple[PowerManager, Place]]:
    """The library's file of --db, and where the ledger is: --ledger, or the same file.

    Raises BillingError for a database that is not there: a typing mistake must not look like a fleet that used nothing.
    """
    if not Path(options.db).exists():
        raise BillingError(f"{options.db}: no such database: name it with --db")
    with PowerManager(options.db) as pm:
        yield pm, LedgerFile(options.ledger) if options.ledger else pm


def confirm(question: str, yes: bool) -> None:
    """Ask on a terminal, unless --yes was given. Raises BillingError where the answer is not yes."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise BillingError(f"{question} There is no terminal to ask: give --yes")
    print_error(f"{question} [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise BillingError("nothing was changed")


def print_events(events: Iterable[UsageEvent]) -> None:
    """Events as a table, by hour; nothing where there are none."""
    rows = sorted(events, key=lambda event: (event.hour, event.customer))
    if rows:
        print(make_table(_EVENT_COLUMNS, rows, Screen.of(sys.stdout)))


def open_line(entry: Entry, now: float) -> str:
    """What is open, and why."""
    event = entry.event
    what = "waiting"
    if event.hour < oldest_billable(now):
        what = "too old to be billed"
    elif entry.state is State.REFUSED:
        what = "refused"
    reason = entry.reason or "-"
    return (
        f"{what}: {event.identifier} {event.watt_hours} Wh, tried {entry.attempts} times: {reason}"
    )
