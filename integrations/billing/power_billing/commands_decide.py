"""`power-billing reconcile` and `resolve`: compare with the biller, and let a person decide."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import groupby

from power_billing.claims import take_over
from power_billing.command_line import (
    add_sink_options,
    customer_argument,
    month_argument,
    open_line,
    opened,
    sink_of,
    time_argument,
)
from power_billing.decisions import Undecided, keep_theirs, send_ours, undecided
from power_billing.errors import BillingError
from power_billing.hours import HOUR, day_of, hour_of, iso, oldest_billable
from power_billing.json_values import reconciliation_json, undecided_json
from power_billing.links import links_to
from power_billing.outbox import Entry
from power_billing.reconcile import Difference, Reconciliation, Repair, reconcile, repair
from power_billing.sender import Sender, check_account
from power_billing.sinks import ClaimingSink, UsageSink
from power_billing.tables import Place, tables
from power_billing.usage import one_run
from power_manager import Column, CommandParser, Screen, make_table, shown_json

_CONFLICT_COLUMNS = (
    Column("customer", lambda entry: entry.event.customer),
    Column("hour", lambda entry: iso(entry.event.hour)),
    Column("ours Wh", lambda entry: entry.event.watt_hours, right=True),
    Column("theirs Wh", lambda entry: entry.theirs_wh, right=True),
    Column("why", lambda entry: entry.reason, shrinks=True),
)


def add_decision_commands(parser: CommandParser, clock: Callable[[], float]) -> None:
    """Add the commands about what the biller has."""
    command = parser.add_command(
        "reconcile",
        _reconcile,
        "compare the ledger with what the biller has, by customer and day",
        examples=["", "--month 2026-10", "--repair", "--json"],
        group="usage",
    )
    add = command.add_argument
    add(
        "--month",
        type=month_argument(clock),
        metavar="YYYY-MM",
        help="a UTC month (default: the hours that can still be billed)",
    )
    add("--repair", action="store_true", help="send revisions of the hours that differ")
    add_sink_options(command)
    command.add_json()
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
    add("--customer", type=customer_argument, metavar="ID", help="only this customer")
    add("--hour", type=time_argument(clock), metavar="TIME", help="only this hour")
    add("--all", action="store_true", help="everything that is listed")
    add_sink_options(command)
    command.add_json()


# --- reconcile


def _reconcile(options: argparse.Namespace) -> int:
    with opened(options) as (_, place):
        sink = sink_of(place, options)
        now = options.clock()
        present = int(now // HOUR)
        hours = options.month or range(oldest_billable(now), present)
        hours = range(hours.start, min(hours.stop, present))
        if not hours:
            raise BillingError("--month: no hour of that month is over yet")
        with one_run(place):
            found = reconcile(place, sink, hours, now)
            if not options.json:
                print_differences(found)
                _print_settling(found)
            repaired = None
            if options.repair and found.differences:
                repaired = _repair(place, sink, found.differences, options.clock)
        if options.json:
            print(shown_json(reconciliation_json(place, sink.account, found, repaired)))
        elif repaired is not None:
            _print_repair(repaired)
        else:
            count = len(found.differences)
            differences = "1 difference" if count == 1 else f"{count} differences"
            print(f"{iso(hours.start)} to {iso(hours.stop)}: {differences}")
    if repaired is None:
        return 0 if found.is_clean else 1
    is_repaired = len(repaired.repaired) == len(found.differences)
    return 0 if is_repaired and not found.unsaid else 1


def _repair(
    place: Place, sink: UsageSink, differences: Sequence[Difference], clock: Callable[[], float]
) -> Repair:
    """Send what differs."""
    oldest = oldest_billable(clock())
    queued_count = repair(place, differences, oldest)
    customers = {one.customer for one in differences}
    sent = Sender(place, sink, clock).run(customers)
    return Repair(
        [one for one in differences if (one.customer, one.hours.start) in sent],
        queued_count,
        sum(one.hours.start < oldest for one in differences),
        sum(bool(one.misplaced_wh) for one in differences),
        sum(one.is_foreign and not one.misplaced_wh for one in differences),
    )


def _print_repair(done: Repair) -> None:
    print(f"{len(done.repaired)} of {done.queued_count} hours repaired")
    if done.too_old_count:
        print(
            f"{done.too_old_count} differences are too old to be repaired: correct the invoice by "
            "hand"
        )
    if done.misplaced_count:
        print(
            f"{done.misplaced_count} differences have usage on another period's meter, which "
            "nothing sent from here replaces: cancel it at Stripe, or credit it by hand"
        )
    if done.foreign_count:
        print(f"{done.foreign_count} hours were never sent from here: power-billing resolve")


def _print_settling(found: Reconciliation) -> None:
    if found.settling_count:
        count = found.settling_count
        print(f"not compared: {count} hours that were sent within the last hour")


def print_differences(found: Reconciliation) -> None:
    """By customer, day and period, each with its rows; and what could not be compared."""
    for (customer, day, period), of_day in groupby(found.differences, key=lambda one: one.group):
        rows = list(of_day)
        ours = sum(one.ours_wh for one in rows)
        theirs = sum(one.theirs_wh for one in rows)
        when = f"{day_of(24 * day)} {period}".rstrip()
        print(f"differs: {customer} {when} sent {ours} Wh, the biller has {theirs} Wh")
        for one in rows:
            print(f"  {_difference_line(one)}")
    for customer, reason in found.unsaid.items():
        print(f"not compared: {customer}: {reason}")


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
        if options.customer is not None:
            links_to(place, options.customer)  # a mistyped one has nothing to decide
        oldest = oldest_billable(options.clock())
        if options.keep or options.send:
            with one_run(place):  # a report under way may settle what is listed
                listed = undecided(place, oldest, options.customer, hours)
                if options.keep:
                    keep_theirs(place, listed)
                else:
                    send_ours(place, listed.conflicts)
        else:
            listed = undecided(place, oldest, options.customer, hours)
        if options.json:
            print(shown_json(undecided_json(place, listed, _decision_of(options))))
        else:
            _print_undecided(listed, options.clock())
            _print_decision(listed, options)
    return 0 if options.keep or options.send or not listed else 1


def _decision_of(options: argparse.Namespace) -> str | None:
    if options.keep:
        return "keep"
    return "send" if options.send else None


def _print_decision(listed: Undecided, options: argparse.Namespace) -> None:
    count = len(listed.conflicts)
    if options.keep:
        print(f"{count} hours stay as the biller has them, {listed.loss_count} losses accepted")
    elif options.send:
        print(f"{count} hours go out with the next report")


def _take_over(options: argparse.Namespace) -> int:
    customer = options.customer
    if customer is None:
        options.usage_error("--take-over needs --customer")
    if options.hour is not None or options.all:
        options.usage_error("--take-over is of a whole customer: leave out --hour and --all")
    with opened(options) as (_, place):
        links_to(place, customer)
        sink = sink_of(place, options)
        if not isinstance(sink, ClaimingSink):
            raise BillingError(f"{sink.account} does not know which ledger bills a customer")
        with one_run(place):
            with tables(place) as conn:
                check_account(conn, place, sink)
            take_over(place, sink, customer, options.clock())
    if options.json:
        print(shown_json({"decision": "take_over", "customer": customer}))
    else:
        print(f"{customer}: billed from this ledger; what waits goes out with the next report")
    return 0


def _print_undecided(listed: Undecided, now: float) -> None:
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
        print(open_line(entry, now))
    for lost in listed.lost:
        print(lost)
    if not listed:
        print("nothing to decide")
