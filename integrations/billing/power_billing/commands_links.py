"""`power-billing link` and `unlink`: which device is billed to which customer."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

from power_billing.claims import Claim, note_claim, waiting_reason
from power_billing.command_line import (
    add_link_options,
    check_device,
    check_since,
    name_argument,
    opened,
)
from power_billing.counting import chosen_meters
from power_billing.errors import BillingError
from power_billing.hours import iso
from power_billing.keys import API_KEY, is_set, read_secret
from power_billing.links import Link, link, links_of, parse_id, unlink
from power_billing.periods import ledger_meters
from power_billing.sources import NANO, Devices, source_of
from power_billing.tables import Place, tables
from power_manager import CommandParser, MeterType, confirm, nearest, printable


def add_link_commands(parser: CommandParser, clock: Callable[[], float]) -> None:
    """Add the commands about links."""
    command = parser.add_command(
        "link",
        _link,
        "bill a device to a customer",
        examples=["edge-001 --customer cus_Nf1XyzAbc --types main"],
        group="who is billed",
    )
    add_link_options(command, clock)
    add = command.add_argument
    add(
        "--subscription-item",
        type=functools.partial(parse_id, prefix="si"),
        metavar="ID",
        help="kept for people: meters bill by customer",
    )
    add(
        "--offline",
        action="store_true",
        help="do not ask Stripe about the customer: the next report does",
    )

    command = parser.add_command(
        "unlink",
        _unlink,
        "stop billing a device at the next full UTC hour",
        examples=["edge-001"],
        group="who is billed",
    )
    command.add_argument("device_id", type=name_argument, help="the device's id")


def _link(options: argparse.Namespace) -> int:
    check_since(options)
    with opened(options) as (pm, place):
        check_device(pm, options)
        if options.types is None:
            confirm_choice(pm, options.device_id, options.yes)
        answer = _asked_stripe(place, options)
        made = link(
            pm,
            options.device_id,
            options.customer,
            subscription_item=options.subscription_item,
            types=options.types,
            since=options.since,
            clock=options.clock,
            ledger=place,
        )
        print(linked_line(made))
        print(f"{made.customer}: {answer.text}")
        print_other_ledger(place, made.customer, answer.other_ledger, options.clock())
    return 0


def linked_line(made: Link) -> str:
    """Who is billed for a device, since when, and by which meters."""
    counted = "all that counts" if made.types is None else ", ".join(made.types)
    return f"{made.device_id}: billed to {made.customer} from {iso(made.from_hour)} on ({counted})"


def confirm_choice(pm: Devices, device_id: str, yes: bool) -> None:
    """Show which meters count and their energy of a day; ask if two may measure the same energy.

    Raises BillingError if the answer is not yes.
    """
    parts = source_of(pm).usage(device_id, days=1) or []
    meters = [part.meter for part in parts]
    counted = chosen_meters(meters, None)
    total_wh = 0.0
    for part in parts:
        wh = sum(one.energy_nwh for one in part.hours) / NANO
        meter = part.meter
        name = f"{meter.type.value} {printable(meter.name or meter.id)}"
        if meter in counted:
            total_wh += wh
            print(f"{name}: {wh:.3f} Wh in the last 24 hours")
        else:
            print(f"{name}: {wh:.3f} Wh, not counted: the main meter measures it already")
    print(f"{device_id}: {total_wh:.3f} Wh would be billed of the last 24 hours")
    types = {meter.type for meter in meters}
    if MeterType.MAIN not in types or not types & {MeterType.BATTERY, MeterType.UPS}:
        return
    confirm(
        f"{device_id} has main and battery or ups meters: check the sum, or choose by --types. "
        "Bill it like this?",
        yes=yes,
    )


def print_other_ledger(place: Place, customer: str, other_id: str | None, now: float) -> None:
    """Say that another ledger bills the customer, and note it for `status`; None: none does."""
    if other_id is None:
        return
    with tables(place) as conn:
        note_claim(conn, customer, Claim(other_id, now))
    print(f"{customer}: {waiting_reason(other_id)}")


@dataclass(frozen=True)
class _Answer:
    """What Stripe says of a customer, and the id of another ledger that bills it, if one does."""

    text: str
    other_ledger: str | None = None


def _asked_stripe(place: Place, options: argparse.Namespace) -> _Answer:
    """Ask Stripe about the customer. Raises BillingError if it has none: nothing is linked."""
    if options.offline or not is_set(os.environ, API_KEY):
        return _Answer(
            "Stripe was not asked whether its usage reaches an invoice: the next report does"
        )
    from power_billing.stripe_client import make_client
    from power_billing.stripe_sinks import other_ledger
    from power_billing.subscriptions import customer_problem

    with tables(place) as conn:
        meter_ids = [meter.meter_id for meter in ledger_meters(conn)]
    try:
        client = make_client(read_secret(os.environ, API_KEY), os.environ)
        problem = customer_problem(client, meter_ids, options.customer)
        is_missing = problem is not None and problem.is_missing
        other_id = None if is_missing else other_ledger(place, client, options.customer)
    except BillingError as error:
        raise BillingError(f"{error}; --offline links without asking Stripe") from None
    if problem is None and meter_ids:
        return _Answer("its usage reaches an invoice", other_id)
    if problem is None:
        return _Answer("Stripe has this customer; power-billing setup makes meter and price")
    if problem.is_missing:
        hint = nearest(options.customer, [one.customer for one in links_of(place)])
        raise BillingError(f"{options.customer}: {problem.text}; nothing was linked{hint}")
    return _Answer(problem.text, other_id)


def _unlink(options: argparse.Namespace) -> int:
    with opened(options) as (_, place):
        ended = unlink(place, options.device_id, clock=options.clock)
    print(f"{ended.device_id}: billed to {ended.customer} until {iso(ended.until_hour or 0)}")
    return 0
