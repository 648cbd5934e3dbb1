"""`power-billing link` and `unlink`: which device is billed to which customer."""

from __future__ import annotations

import argparse
import os

from power_billing.command_line import opened, time_argument
from power_billing.errors import BillingError
from power_billing.hours import iso
from power_billing.keys import API_KEY, is_set, read_secret
from power_billing.links import TYPES, link, unlink
from power_billing.tables import METER_SETTING, Place, setting, tables
from power_manager import CommandParser


def add_link_commands(parser: CommandParser) -> None:
    """Add the commands about links."""
    command = parser.add_command(
        "link",
        _link,
        "bill a device to a customer",
        examples=["edge-001 --customer cus_Nf1XyzAbc --types main"],
        group="who is billed",
    )
    add = command.add_argument
    add("device_id", metavar="DEVICE_ID")
    add("--customer", required=True, metavar="cus_...")
    add("--subscription-item", metavar="si_...", help="kept for people: meters bill by customer")
    add(
        "--offline",
        action="store_true",
        help="do not ask Stripe whether it has the customer: the next report does",
    )
    add(
        "--types",
        default=",".join(TYPES),
        metavar="LIST",
        help="meters that count (default: %(default)s)",
    )
    add(
        "--since",
        type=time_argument,
        metavar="TIME",
        help="from this hour on, at most 35 days back (default: the next full UTC hour)",
    )
    command = parser.add_command(
        "unlink",
        _unlink,
        "bill a device no longer, from the next full UTC hour on",
        examples=["edge-001"],
        group="who is billed",
    )
    command.add_argument("device_id", metavar="DEVICE_ID")


def _link(options: argparse.Namespace) -> int:
    with opened(options) as (pm, place):
        checked = _checked_customer(place, options)
        made = link(
            pm,
            options.device_id,
            options.customer,
            subscription_item=options.subscription_item,
            types=options.types.split(","),
            since=options.since,
            ledger=place,
        )
    types = ", ".join(made.types)
    print(f"{made.device_id}: billed to {made.customer} from {iso(made.from_hour)} on ({types})")
    print(f"{made.customer}: {checked}")
    return 0


def _checked_customer(place: Place, options: argparse.Namespace) -> str:
    """What Stripe says of the customer. Raises BillingError for one that there is not: nothing is linked to it."""
    if options.offline or not is_set(os.environ, API_KEY):
        return "Stripe was not asked whether its usage reaches an invoice: the next report does"
    from power_billing.stripe_client import make_client
    from power_billing.subscriptions import customer_problem

    client = make_client(read_secret(os.environ, API_KEY), os.environ)
    with tables(place) as conn:
        meter_id = setting(conn, METER_SETTING)
    problem = customer_problem(client, meter_id, options.customer)
    if problem is None and meter_id is not None:
        return "its usage reaches an invoice"
    if problem is None:
        return "Stripe has this customer; power-billing setup makes meter and price"
    if problem.is_missing:
        raise BillingError(f"{options.customer}: {problem.text}; nothing was linked")
    return problem.text


def _unlink(options: argparse.Namespace) -> int:
    with opened(options) as (_, place):
        ended = unlink(place, options.device_id)
    print(f"{ended.device_id}: billed to {ended.customer} until {iso(ended.until_hour or 0)}")
    return 0
