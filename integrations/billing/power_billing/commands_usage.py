"""`power-billing report` and `status`: send usage to the biller, and show the ledger."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from power_billing.claims import waiting_reason
from power_billing.command_line import (
    add_sink_options,
    check_sink_options,
    file_argument,
    open_line,
    opened,
    print_events,
    sink_of,
    time_argument,
)
from power_billing.commands_decide import print_differences
from power_billing.errors import BillingError
from power_billing.hours import iso
from power_billing.json_values import preview_json, report_json, status_json
from power_billing.links import Link, has_links
from power_billing.sinks import CsvSink, UsageSink
from power_billing.sources import Devices
from power_billing.tables import Place, tables
from power_billing.tariff import shown_hours
from power_billing.usage import Report, Run, status
from power_billing.webhooks import shut_down_devices
from power_manager import CommandParser, PowerManager, shown_json


def add_usage_commands(parser: CommandParser, clock: Callable[[], float]) -> None:
    """Add the commands about usage."""
    command = parser.add_command(
        "report",
        _report,
        "bill every closed UTC hour; for a timer",
        examples=["--dry-run", "", "--sink csv --csv usage.csv", "--json"],
        group="usage",
    )
    add = command.add_argument
    add(
        "--until",
        type=time_argument(clock),
        metavar="TIME",
        help="only hours that end by then (default: now)",
    )
    add_sink_options(command)
    add("--dry-run", action="store_true", help="print what would be sent; send and keep nothing")
    add("--retry-refused", action="store_true", help="send again what was refused")
    add("--quiet", action="store_true", help="print only what needs a person")
    command.add_json()
    _add_metrics_option(command)
    command = parser.add_command(
        "status",
        _status,
        "show links, sums, and what could not be billed",
        examples=["", "--json"],
        group="usage",
    )
    command.add_json()
    _add_metrics_option(command)


def _add_metrics_option(command: CommandParser) -> None:
    command.add_argument(
        "--metrics-file",
        type=file_argument,
        metavar="FILE",
        help="also write metrics for Prometheus there",
    )


# --- report


def _report(options: argparse.Namespace) -> int:
    check_sink_options(options)
    if options.quiet and options.json:
        options.usage_error("--quiet is for text: leave out --quiet or --json")
    if options.dry_run and (options.quiet or options.metrics_file is not None):
        options.usage_error("--dry-run only prints: leave out --quiet and --metrics-file")
    with opened(options) as (pm, place):
        _refuse_unlinked(place)
        if options.dry_run:
            entries = Run(pm, place, options.clock).preview(
                until=options.until, retry_refused=options.retry_refused
            )
            if options.json:
                print(shown_json(preview_json(place, entries)))
                return 0
            print_events(place, (entry.event for entry in entries))
            print(f"dry run: {len(entries)} hours would be sent")
            return 0
        sink = sink_of(place, options)
        return run_report(
            pm,
            place,
            sink,
            options.clock,
            until=options.until,
            retry_refused=options.retry_refused,
            is_quiet=options.quiet,
            is_json=options.json,
            metrics_file=options.metrics_file,
        )


def run_report(
    pm: Devices,
    place: Place,
    sink: UsageSink,
    clock: Callable[[], float],
    *,
    until: datetime | None = None,
    retry_refused: bool = False,
    is_quiet: bool = False,
    is_json: bool = False,
    metrics_file: Path | None = None,
) -> int:
    """Report to the sink, and print what came of it; return the exit code."""
    if metrics_file is not None:  # first: a missing package is said before anything is sent
        from power_billing.metrics import write_metrics
    told_count = _tell_due(pm, place, sink, clock)
    if told_count is not None and not is_json and (told_count or not is_quiet):
        print(f"{told_count} devices told to shut down")
    problems, held = _checked(place, sink, clock())
    problems += _untold(pm, place)
    # A file can be looked at whole every time; Stripe is asked once a day.
    compare = True if isinstance(sink, CsvSink) else None
    done = Run(pm, place, clock).report(
        sink,
        until=until,
        retry_refused=retry_refused,
        compare=compare,
        held=held,
        problems=problems,
    )
    try:
        if metrics_file is not None:
            write_metrics(metrics_file, status(pm, place, clock))
    finally:  # what was sent is said in any case
        if is_json:
            print(shown_json(report_json(place, sink.account, done, told_count or 0)))
        else:
            _print_report(place, done, is_quiet, clock())
    return 0 if done.complete else 1


def _refuse_unlinked(place: Place) -> None:
    """Raise BillingError for a ledger without links: a mistyped --ledger must not look like one."""
    if not has_links(place):
        raise BillingError(
            f"{place.db_path}: no device is linked to a customer: power-billing link does that, "
            "and --ledger names another ledger"
        )


def _print_report(place: Place, done: Report, is_quiet: bool, now: float) -> None:
    if not is_quiet:
        print_events(place, (entry.event for entry in done.sent))
        for kept in done.kept:
            print(kept)
    if not is_quiet or not done.complete:
        print(f"{len(done.sent)} hours sent, {len(done.open)} left")
    for entry in (*done.open, *done.too_old):
        print(open_line(entry, now))
    for lost in done.lost:
        print(lost)
    if done.reconciliation is not None:
        print_differences(done.reconciliation)
        if done.reconciliation.differences:
            print("power-billing reconcile --repair sends the ledger's values of what differs")
    for problem in done.problems:
        print(problem)


def _checked(place: Place, sink: UsageSink, now: float) -> tuple[list[str], set[str]]:
    """What Stripe says is wrong, and the customers whose usage is held; other billers say none."""
    if not sink.account.startswith("stripe:"):
        return [], set()
    from power_billing.stripe_checks import check_before_sending
    from power_billing.stripe_sinks import StripeMeterSink

    if not isinstance(sink, StripeMeterSink):
        return [], set()
    checked = check_before_sending(place, sink, now)
    return [f"at Stripe: {problem}" for problem in checked.problems], checked.held


def _untold(pm: Devices, place: Place) -> list[str]:
    """The devices that a person has to shut down, because nothing carries an event to them."""
    if isinstance(pm, PowerManager):
        return []
    with tables(place) as conn:
        return [
            f"{customer}: shut down {device_id} by hand: a fleet's engine cannot tell the device"
            for device_id, customer in shut_down_devices(conn)
        ]


def _tell_due(pm: Devices, place: Place, sink: UsageSink, clock: Callable[[], float]) -> int | None:
    """Tell devices whose grace period is over to shut down; return how many were told.

    None: no invoice waits, or the devices are a fleet's, which nothing tells (see _untold). Without
    webhooks there are none.
    """
    with tables(place) as conn:
        waiting = conn.execute(
            "SELECT 1 FROM billing_invoices WHERE NOT told AND NOT settled LIMIT 1"
        ).fetchone()
    if not waiting:
        return None
    from power_billing.stripe_sinks import StripeMeterSink
    from power_billing.webhooks import tell_due

    # By Stripe's clock, if it can be asked: by a clock of this machine that is ahead, devices
    # would go too early. Asked before the file is locked, because it comes over a network.
    now = sink.clock() if isinstance(sink, StripeMeterSink) else clock()
    with tables(place) as conn:
        told_count = tell_due(pm, conn, now)
    return told_count if isinstance(pm, PowerManager) else None


# --- status


def _status(options: argparse.Namespace) -> int:
    with opened(options) as (pm, place):
        now = status(pm, place, options.clock)
        if options.metrics_file is not None:
            from power_billing.metrics import write_metrics

            write_metrics(options.metrics_file, now)
        if options.json:
            print(shown_json(status_json(place, now)))
            return 0
    for one in now.links:
        print(_link_line(one, one.device_id in now.deleted))
    print(f"usage goes to {now.account}" if now.account else "no usage has been sent yet")
    if now.tariff is not None:
        for period in now.tariff.periods:
            print(f"{period.name}: {shown_hours(period.hours)}, {now.tariff.zone}, {period.price}")
    for of_customer in now.customers:
        events = ", ".join(f"{count} {state.value}" for state, count in of_customer.counts.items())
        print(
            f"{of_customer.customer}: {of_customer.billed_wh} Wh in all; events: {events or 'none'}"
        )
    for entry in (*now.open, *now.too_old):
        print(open_line(entry, options.clock()))
    for finding in now.findings:
        print(f"{finding}; accepted" if finding.is_accepted else finding)
    for customer, problem in now.problems.items():
        print(f"at Stripe: {customer}: {problem}")
    for customer, other_id in now.other_ledgers.items():
        print(f"{customer}: {waiting_reason(other_id)}")
    return 0


def _link_line(one: Link, is_deleted: bool) -> str:
    until = "on" if one.until_hour is None else f"to {iso(one.until_hour)}"
    item = f", {one.subscription_item}" if one.subscription_item else ""
    deleted = "; deleted: what was billed of it stays billed" if is_deleted else ""
    types = "all that counts" if one.types is None else "+".join(one.types)
    head = f"{one.device_id}: {one.customer}{item}, {types}"
    return f"{head}, from {iso(one.from_hour)} {until}{deleted}"
