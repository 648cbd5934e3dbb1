"""`power-billing link` and `unlink`: which device is billed to which customer."""

from __future__ import annotations

import argparse
import sys

from power_billing.command_line import opened, time_argument
from power_billing.counting import chosen_meters
from power_billing.errors import BillingError
from power_billing.hours import iso
from power_billing.links import TYPES, check_id, link, unlink
from power_billing.sources import NANO, FileUsage
from power_manager import CommandParser, MeterType, PowerManager, printable


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
        "--types",
        metavar="LIST",
        help=f"of {', '.join(TYPES)}, those that count (default: all, but a ups only without a main)",
    )
    add("--yes", action="store_true", help="bill main beside battery or ups without asking")
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
    types = options.types.split(",") if options.types else None
    with opened(options) as (pm, place):
        pm.get_device(options.device_id)
        check_id("customer", "cus", options.customer)
        if types is None:
            _confirm_choice(pm, options)
        made = link(
            pm,
            options.device_id,
            options.customer,
            subscription_item=options.subscription_item,
            types=types,
            since=options.since,
            ledger=place,
        )
    counted = "all that counts" if made.types is None else ", ".join(made.types)
    print(f"{made.device_id}: billed to {made.customer} from {iso(made.from_hour)} on ({counted})")
    return 0


def _confirm_choice(pm: PowerManager, options: argparse.Namespace) -> None:
    """Show which meters count and what that was in a day; ask where two of them may measure the same energy.

    Raises BillingError where nobody says yes.
    """
    parts = FileUsage(pm).usage(options.device_id, days=1) or []
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
    print(f"{options.device_id}: {total_wh:.3f} Wh would be billed of the last 24 hours")
    types = {meter.type for meter in meters}
    if MeterType.MAIN not in types or not types & {MeterType.BATTERY, MeterType.UPS}:
        return
    if options.yes or _says_yes():
        return
    raise BillingError(
        f"{options.device_id}: it has main and battery or ups meters, and nobody said yes: check the sum, "
        "and give --yes, or --types with the meters that count"
    )


def _says_yes() -> bool:
    """Ask, where somebody is there."""
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        return False
    return input("Bill it like that? [y/N] ").strip().lower() in ("y", "yes")


def _unlink(options: argparse.Namespace) -> int:
    with opened(options) as (_, place):
        ended = unlink(place, options.device_id)
    print(f"{ended.device_id}: billed to {ended.customer} until {iso(ended.until_hour or 0)}")
    return 0
