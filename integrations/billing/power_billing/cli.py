"""`power-billing`: setup, link, unlink, status, report."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from power_billing.errors import BillingError
from power_billing.hours import iso, oldest_billable
from power_billing.ledger import (
    OPEN,
    TABLE_HEAD,
    Entry,
    billed_wh,
    by_customer,
    counts,
    describe,
    missed,
    outbox,
)
from power_billing.links import TYPES, Link, link, links_of, unlink
from power_billing.sinks import CsvSink, UsageSink
from power_billing.tables import setting, tables
from power_billing.usage import Biller
from power_manager import DB_PATH, PowerManager, PowerManagerError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="power-billing", description="Bill the energy that devices used, once."
    )
    default = os.environ.get("POWER_MANAGER_DB") or str(DB_PATH)
    parser.add_argument(
        "--db", type=Path, default=Path(default), help="the database (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    commands.add_parser(
        "setup", help="find Stripe's meter, or make it, and print the price to make"
    )

    add = commands.add_parser("link", help="bill a device to a customer").add_argument
    add("device_id", metavar="DEVICE_ID")
    add("--customer", required=True, metavar="cus_...")
    add("--subscription-item", metavar="si_...", help="kept for people: meters bill by customer")
    add(
        "--types",
        default=",".join(TYPES),
        metavar="LIST",
        help="meters that count (default: %(default)s)",
    )
    add(
        "--since",
        metavar="TIME",
        help="from this hour on, at most 35 days back (default: the next full UTC hour)",
    )

    add = commands.add_parser(
        "unlink", help="bill a device no longer, from the next full UTC hour on"
    ).add_argument
    add("device_id", metavar="DEVICE_ID")

    commands.add_parser("status", help="links, sums, and whatever could not be billed")

    add = commands.add_parser("report", help="bill every closed UTC hour; for a timer").add_argument
    add("--until", metavar="TIME", help="only hours that end by then (default: now)")
    add(
        "--sink",
        choices=["stripe", "stripe-stream", "csv"],
        default="stripe",
        help="(default: %(default)s)",
    )
    add("--csv", type=Path, metavar="FILE", help="the file of --sink csv")
    add("--dry-run", action="store_true", help="print what would be sent; send and keep nothing")
    add("--retry-refused", action="store_true", help="send again what was refused")
    return parser


# --- Commands


def _setup(pm: PowerManager, _: argparse.Namespace) -> int:
    from power_billing.keys import (
        API_KEY,
        read_secret,
    )  # stripe takes a while to import: only where it is used
    from power_billing.stripe_sinks import make_client, setup

    meter_id = setup(pm, make_client(read_secret(os.environ, API_KEY), os.environ))
    print(
        f"meter {meter_id} is ready. Make a price on it, and subscribe each customer to that; 0.03 cents a Wh are"
    )
    print("0.30 a kWh:")
    print("  stripe prices create --currency usd --product prod_... -d unit_amount_decimal=0.03 \\")
    print(
        f'    -d "recurring[interval]=month" -d "recurring[usage_type]=metered" -d "recurring[meter]={meter_id}"'
    )
    return 0


def _link(pm: PowerManager, options: argparse.Namespace) -> int:
    made = link(
        pm,
        options.device_id,
        options.customer,
        subscription_item=options.subscription_item,
        types=options.types.split(","),
        since=options.since,
    )
    print(
        f"{made.device_id}: billed to {made.customer} from {iso(made.from_hour)} on ({', '.join(made.types)})"
    )
    return 0


def _unlink(pm: PowerManager, options: argparse.Namespace) -> int:
    ended = unlink(pm, options.device_id)
    print(f"{ended.device_id}: billed to {ended.customer} until {iso(ended.until_hour or 0)}")
    return 0


def _report(pm: PowerManager, options: argparse.Namespace) -> int:
    biller = Biller(pm)
    if options.dry_run:
        entries = biller.preview(until=options.until, retry_refused=options.retry_refused)
        _table(entries)
        print(f"dry run: {len(entries)} hours would be sent")
        return 0
    sink = _sink(pm, options)
    _tell_due(pm, sink)
    done = biller.report(sink, until=options.until, retry_refused=options.retry_refused)
    _table(done.sent)
    print(f"{len(done.sent)} hours sent, {len(done.open)} left")
    _problems(done.open)
    return 0 if done.complete else 1


def _tell_due(pm: PowerManager, sink: UsageSink) -> None:
    """Shutdown events whose grace period is over; without webhooks there are none, and no need for stripe."""
    with tables(pm) as conn:
        waiting = conn.execute(
            "SELECT 1 FROM billing_invoices WHERE NOT told AND NOT settled LIMIT 1"
        ).fetchone()
    if waiting:
        from power_billing.stripe_sinks import StripeMeterSink
        from power_billing.webhooks import tell_due

        # By Stripe's clock, where it can be asked: if this machine's were ahead, devices would go before their time.
        # Before the file is locked: it comes over a network.
        now = sink.clock() if isinstance(sink, StripeMeterSink) else time.time()
        with tables(pm) as conn:
            print(f"{tell_due(pm, conn, now)} devices told to shut down")


def _sink(pm: PowerManager, options: argparse.Namespace) -> UsageSink:
    if (options.sink == "csv") != (options.csv is not None):
        raise BillingError("--sink csv and --csv FILE go together: give both")
    if options.csv is not None:
        return CsvSink(options.csv)
    from power_billing.stripe_sinks import sink_from

    return sink_from(os.environ, pm, stream=options.sink == "stripe-stream")


def _status(pm: PowerManager, _: argparse.Namespace) -> int:
    links = links_of(pm)
    now = time.time()
    known = {device.id for device in pm.list_devices()}
    for one in links:
        print(
            _link_line(one)
            + ("" if one.device_id in known else "; deleted: what was billed of it stays billed")
        )
    with tables(pm) as conn:
        print(f"usage goes to {setting(conn, 'biller') or 'nobody yet'}")
        entries = outbox(conn, OPEN)
        sums = [
            (customer, billed_wh(conn, customer), counts(conn, customer))
            for customer in by_customer(links)
        ]
    for customer, wh, states in sums:
        events = ", ".join(f"{count} {state}" for state, count in states.items())
        print(f"{customer}: {wh} Wh in all; events: {events or 'none'}")
    _problems(entries)
    for customer, of_customer in by_customer(links).items():
        for lost in missed(pm, customer, of_customer, oldest_billable(now)):
            print(
                f"cannot be billed: {customer} {iso(lost.hour)} {lost.watt_hours:+.3f} Wh that came to light too late"
            )
    return 0


def _link_line(one: Link) -> str:
    until = "on" if one.until_hour is None else f"to {iso(one.until_hour)}"
    item = f", {one.subscription_item}" if one.subscription_item else ""
    return f"{one.device_id}: {one.customer}{item}, {'+'.join(one.types)}, from {iso(one.from_hour)} {until}"


def _table(entries: Iterable[Entry]) -> None:
    rows = sorted(entries, key=lambda entry: (entry.event.hour, entry.event.customer))
    if rows:
        print(TABLE_HEAD)
    for entry in rows:
        print(describe(entry.event))


def _problems(entries: Iterable[Entry]) -> None:
    """Say what is open, and why."""
    oldest = oldest_billable(time.time())
    for entry in entries:
        event = entry.event
        what = (
            "too old to be billed"
            if event.hour < oldest
            else "refused"
            if entry.state == "refused"
            else "waiting"
        )
        print(
            f"{what}: {event.identifier} {event.watt_hours} Wh, tried {entry.attempts} times: {entry.reason or '-'}"
        )


_COMMANDS = {
    "setup": _setup,
    "link": _link,
    "unlink": _unlink,
    "status": _status,
    "report": _report,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 for an error or for hours that are left, 2 for wrong usage."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    try:
        if not options.db.exists():
            raise BillingError(f"{options.db}: no such database: name it with --db")
        with PowerManager(options.db) as pm:
            return _COMMANDS[options.command](pm, options)
    except (BillingError, PowerManagerError, OSError) as error:
        print(f"power-billing: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"power-billing: {error.name} is not installed: pip install '.[billing]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
