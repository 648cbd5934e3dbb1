"""`power-billing reconcile` and `resolve`: compare with the biller, and let a person decide."""

from __future__ import annotations

import argparse
import sys
import time
from itertools import groupby

from power_billing.claims import take_over
from power_billing.command_line import (
    add_sink_options,
    day_text,
    month_hours,
    open_line,
    opened,
    sink_of,
    time_argument,
)
from power_billing.decisions import Undecided, keep_theirs, send_ours, undecided
from power_billing.errors import BillingError
from power_billing.hours import HOUR, hour_of, iso, oldest_billable
from power_billing.outbox import Entry
from power_billing.reconcile import Difference, Reconciliation, reconcile, repair
from power_billing.sender import Sender, check_account
from power_billing.sinks import ClaimingSink, UsageSink
from power_billing.tables import Place, tables
from power_billing.usage import one_run
from power_manager import Column, CommandParser, Screen, make_table

_CONFLICT_COLUMNS = (
    Column("customer", lambda entry: entry.event.customer),
    Column("hour", lambda entry: iso(entry.event.hour)),
    Column("ours Wh", lambda entry: entry.event.watt_hours, right=True),
    Column("theirs Wh", lambda entry: entry.theirs_wh, right=True),
    Column("why", lambda entry: entry.reason, shrinks=True),
)


def add_decision_commands(parser: CommandParser) -> None:
    """Add the commands about what the biller has."""
    command = parser.add_command(
        "reconcile",
        _reconcile,
        "compare the ledger with what the biller has, by customer and day",
        examples=["", "--month 2026-10", "--repair"],
        group="usage",
    )
    add = command.add_argument
    add(
        "--month",
        type=month_hours,
        metavar="YYYY-MM",
        help="a UTC month (default: the hours that can still be billed)",
    )
    add("--repair", action="store_true", help="send revisions of the hours that differ")
    add_sink_options(command)
    command = parser.add_command(
        "resolve",
        _resolve,
        "list what a person has to decide, or decide it",
        examples=["", "--keep --customer cus_Nf1XyzAbc", "--send --all"],
        group="usage",
    )
    add = command.add_argument
    what = command.add_mutually_exclusive_group()
    what.add_argument(
        "--keep", action="store_true", help="keep the biller's values, and accept what is lost"
    )
    what.add_argument(
        "--send", action="store_true", help="send the ledger's values in place of the biller's"
    )
    what.add_argument(
        "--take-over",
        action="store_true",
        help="bill from this ledger a customer that another ledger bills",
    )
    add("--customer", metavar="ID", help="only this customer")
    add("--hour", type=time_argument, metavar="TIME", help="only this hour")
    add("--all", action="store_true", help="everything that is listed")
    add_sink_options(command)


# --- reconcile


def _reconcile(options: argparse.Namespace) -> int:
    with opened(options) as (_, place):
        sink = sink_of(place, options)
        now = time.time()
        present = int(now // HOUR)
        hours = options.month or range(oldest_billable(now), present)
        hours = range(hours.start, min(hours.stop, present))
        if not hours:
            raise BillingError("--month: that month has not begun")
        with one_run(place):
            found = reconcile(place, sink, hours, now)
            print_differences(found)
            if found.settling_count:
                count = found.settling_count
                print(f"not compared: {count} hours that were sent within the last hour")
            if options.repair and found.differences:
                return _repair(place, sink, found)
    count = len(found.differences)
    print(f"{iso(hours.start)} to {iso(hours.stop)}: {count} differences")
    return 0 if found.is_clean else 1


def _repair(place: Place, sink: UsageSink, found: Reconciliation) -> int:
    """Send what differs; return the exit code."""
    oldest = oldest_billable(time.time())
    count = repair(place, found.differences, oldest)
    keys = {(one.customer, one.hours.start) for one in found.differences}
    sent = Sender(place, sink).run({customer for customer, _ in keys}) & keys
    print(f"{len(sent)} of {count} hours repaired")
    too_old = sum(one.hours.start < oldest for one in found.differences)
    if too_old:
        print(f"{too_old} differences are too old to be repaired: correct the invoice by hand")
    misplaced = sum(bool(one.misplaced_wh) for one in found.differences)
    if misplaced:
        print(
            f"{misplaced} differences have usage on another period's meter, which nothing sent "
            "from here replaces: cancel it at Stripe, or credit it by hand"
        )
    foreign = sum(one.is_foreign and not one.misplaced_wh for one in found.differences)
    if foreign:
        print(f"{foreign} hours were never sent from here: power-billing resolve")
    return 0 if len(sent) == len(found.differences) and not found.unsaid else 1


def print_differences(found: Reconciliation) -> None:
    """By customer, day and period, each with its rows; and what could not be compared."""
    differences = sorted(found.differences, key=_group_of)
    for (customer, day, period), of_day in groupby(differences, key=_group_of):
        rows = list(of_day)
        ours = sum(one.ours_wh for one in rows)
        theirs = sum(one.theirs_wh for one in rows)
        when = f"{day_text(day)} {period}".rstrip()
        print(f"differs: {customer} {when} sent {ours} Wh, the biller has {theirs} Wh")
        for one in rows:
            print(f"  {_difference_line(one)}")
    for customer, reason in found.unsaid.items():
        print(f"not compared: {customer}: {reason}")


def _group_of(one: Difference) -> tuple[str, int, str]:
    return one.customer, one.day, one.period


def _difference_line(one: Difference) -> str:
    misplaced = ""
    if one.misplaced_wh:
        misplaced = f", {one.misplaced_wh} Wh of that on another period's meter"
    if len(one.hours) > 1:
        theirs = f"the biller has {one.theirs_wh} Wh{misplaced}"
        return f"the day, whose hours are closed: {one.ours_wh} Wh, {theirs}"
    events = ", ".join(
        f"revision {entry.event.revision} of {entry.event.watt_hours} Wh {entry.state.value}"
        for entry in one.entries
    )
    theirs = f"the biller has {one.theirs_wh} Wh{misplaced}"
    return f"{iso(one.hours.start)} {theirs}; {events or 'never sent from here'}"


# --- resolve


def _resolve(options: argparse.Namespace) -> int:
    hours = None
    if options.hour is not None:
        hour = hour_of("hour", options.hour)
        hours = range(hour, hour + 1)
    is_chosen = options.all or options.customer or hours
    if (options.keep or options.send) and not is_chosen:
        options.usage_error("choose by --customer, --hour, or --all")
    if options.take_over:
        return _take_over(options)
    with opened(options) as (_, place):
        oldest = oldest_billable(time.time())
        if options.keep or options.send:
            with one_run(place):  # a report under way may settle what is listed
                listed = undecided(place, oldest, options.customer, hours)
                if options.keep:
                    keep_theirs(place, listed)
                else:
                    send_ours(place, listed.conflicts)
        else:
            listed = undecided(place, oldest, options.customer, hours)
    _print_undecided(listed)
    if options.keep:
        left_to_others = sum(len(entries) for entries in listed.others.values())
        lost = len(listed.too_old) + len(listed.lost) + left_to_others
        print(f"{len(listed.conflicts)} hours stay as the biller has them, {lost} losses accepted")
        return 0
    if options.send:
        print(f"{len(listed.conflicts)} hours go out with the next report")
        return 0
    return 1 if listed else 0


def _take_over(options: argparse.Namespace) -> int:
    if options.customer is None:
        options.usage_error("--take-over needs --customer")
    with opened(options) as (_, place):
        sink = sink_of(place, options)
        if not isinstance(sink, ClaimingSink):
            raise BillingError(f"{sink.account} does not know which ledger bills a customer")
        with one_run(place):
            with tables(place) as conn:
                check_account(conn, place, sink)
            take_over(place, sink, options.customer, time.time())
    print(f"{options.customer}: billed from this ledger; what waits goes out with the next report")
    return 0


def _print_undecided(listed: Undecided) -> None:
    conflicts: list[Entry] = listed.conflicts
    for customer, entries in listed.others.items():
        other_id = listed.ledger_ids[customer]
        print(
            f"{customer}: the ledger {other_id} bills this customer: {len(entries)} hours wait here"
        )
        print("  if that ledger is gone: --take-over; if it bills the same devices: unlink, --keep")
        print("  if it bills other devices: setup --meter NAME, or one ledger for all of them")
    if conflicts:
        print(make_table(_CONFLICT_COLUMNS, conflicts, Screen.of(sys.stdout)))
    for entry in listed.too_old:
        print(open_line(entry, time.time()))
    for lost in listed.lost:
        print(lost)
    if not listed:
        print("nothing to decide")
