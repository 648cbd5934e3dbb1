"""`power-billing report` and `status`: usage to the biller, and what the ledger says."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from power_billing.command_line import open_line, opened, print_events, time_argument
from power_billing.hours import iso
from power_billing.links import Link
from power_billing.sinks import CsvSink, UsageSink
from power_billing.tables import Place, tables
from power_billing.usage import Run, status
from power_manager import CommandParser, PowerManager


def add_usage_commands(parser: CommandParser) -> None:
    """Add the commands about usage."""
    command = parser.add_command(
        "report",
        _report,
        "bill every closed UTC hour; for a timer",
        examples=["--dry-run", "", "--sink csv --csv usage.csv"],
        group="usage",
    )
    add = command.add_argument
    add(
        "--until",
        type=time_argument,
        metavar="TIME",
        help="only hours that end by then (default: now)",
    )
    add(
        "--sink",
        choices=["stripe", "stripe-stream", "csv"],
        default="stripe",
        help="where usage goes (default: %(default)s)",
    )
    add("--csv", type=Path, metavar="FILE", help="the file of --sink csv")
    add("--dry-run", action="store_true", help="print what would be sent; send and keep nothing")
    add("--retry-refused", action="store_true", help="send again what was refused")
    command.set_defaults(parser=command)
    parser.add_command(
        "status",
        _status,
        "show links, sums, and whatever could not be billed",
        examples=[""],
        group="usage",
    )


def _report(options: argparse.Namespace) -> int:
    if (options.sink == "csv") != (options.csv is not None):
        options.parser.error("--sink csv and --csv FILE go together: give both")
    with opened(options) as (pm, place):
        run = Run(pm, place)
        if options.dry_run:
            entries = run.preview(until=options.until, retry_refused=options.retry_refused)
            print_events(entry.event for entry in entries)
            print(f"dry run: {len(entries)} hours would be sent")
            return 0
        sink = _sink(place, options)
        return run_report(pm, place, sink, until=options.until, retry_refused=options.retry_refused)


def run_report(
    pm: PowerManager,
    place: Place,
    sink: UsageSink,
    *,
    until: float | None = None,
    retry_refused: bool = False,
) -> int:
    """Report to the sink, and print what came of it; return the exit code."""
    _tell_due(pm, place, sink)
    problems, held = _checked(place, sink)
    done = Run(pm, place).report(sink, until=until, retry_refused=retry_refused, held=held)
    print_events(entry.event for entry in done.sent)
    print(f"{len(done.sent)} hours sent, {len(done.open)} left")
    for entry in done.open:
        print(open_line(entry, time.time()))
    for problem in problems:
        print(f"at Stripe: {problem}")
    return 0 if done.complete and not problems else 1


def _checked(place: Place, sink: UsageSink) -> tuple[list[str], set[str]]:
    """What Stripe says is wrong, and the customers whose usage is not sent; nothing for another biller."""
    if not sink.account.startswith("stripe:"):
        return [], set()
    from power_billing.stripe_checks import check_before_sending
    from power_billing.stripe_sinks import StripeMeterSink

    if not isinstance(sink, StripeMeterSink):
        return [], set()
    checked = check_before_sending(place, sink, time.time())
    return checked.problems, checked.held


def _tell_due(pm: PowerManager, place: Place, sink: UsageSink) -> None:
    """Shutdown events whose grace period is over; without webhooks there are none, and no need for stripe."""
    with tables(place) as conn:
        waiting = conn.execute(
            "SELECT 1 FROM billing_invoices WHERE NOT told AND NOT settled LIMIT 1"
        ).fetchone()
    if waiting:
        from power_billing.stripe_sinks import StripeMeterSink
        from power_billing.webhooks import tell_due

        # By Stripe's clock, where it can be asked: if this machine's were ahead, devices would go before their time.
        # Before the file is locked: it comes over a network.
        now = sink.clock() if isinstance(sink, StripeMeterSink) else time.time()
        with tables(place) as conn:
            print(f"{tell_due(pm, conn, now)} devices told to shut down")


def _sink(place: Place, options: argparse.Namespace) -> UsageSink:
    if options.csv is not None:
        return CsvSink(options.csv)
    from power_billing.stripe_sinks import sink_from

    return sink_from(os.environ, place, stream=options.sink == "stripe-stream")


def _status(options: argparse.Namespace) -> int:
    with opened(options) as (pm, place):
        now = status(pm, place)
    for one in now.links:
        print(_link_line(one, one.device_id in now.deleted))
    print(f"usage goes to {now.account or 'nobody yet'}")
    for of_customer in now.customers:
        events = ", ".join(f"{count} {state.value}" for state, count in of_customer.counts.items())
        print(
            f"{of_customer.customer}: {of_customer.billed_wh} Wh in all; events: {events or 'none'}"
        )
    for entry in now.open:
        print(open_line(entry, time.time()))
    for lost in now.missed:
        print(
            f"cannot be billed: {lost.customer} {iso(lost.hour)} {lost.watt_hours:+.3f} Wh "
            "that came to light too late"
        )
    return 0


def _link_line(one: Link, is_deleted: bool) -> str:
    until = "on" if one.until_hour is None else f"to {iso(one.until_hour)}"
    item = f", {one.subscription_item}" if one.subscription_item else ""
    deleted = "; deleted: what was billed of it stays billed" if is_deleted else ""
    return (
        f"{one.device_id}: {one.customer}{item}, {'+'.join(one.types)}, "
        f"from {iso(one.from_hour)} {until}{deleted}"
    )
