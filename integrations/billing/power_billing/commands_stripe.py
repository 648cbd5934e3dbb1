"""`power-billing setup`, `subscribe`, `go-live` and `forget`: what Stripe needs.

The SDK takes a while to import, so each command imports it where it is used.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from power_billing.command_line import (
    add_customer_option,
    add_link_options,
    check_device,
    check_since,
    customer_argument,
    file_argument,
    given_price,
    name_argument,
    opened,
)
from power_billing.commands_links import confirm_choice, linked_line, print_other_ledger
from power_billing.commands_usage import run_report
from power_billing.errors import BillingError
from power_billing.hours import HOUR, hour_of, iso, shown_minute
from power_billing.keys import API_KEY, Secret, read_secret
from power_billing.links import Link, keep_item, link, links_of, links_to, parse_id
from power_billing.money import UNITS, Price, parse_amount, parse_currency
from power_billing.periods import event_name_of, meter_name_of, parse_meter_name
from power_billing.sources import Devices
from power_billing.tables import Place, forget_customer, tables
from power_billing.tariff import shown_hours
from power_billing.usage import one_run
from power_manager import CommandParser, confirm, parse_count

if TYPE_CHECKING:
    import stripe

    from power_billing.stripe_setup import Found
    from power_billing.subscriptions import Subscribed

_GROUP = "Stripe"


def add_stripe_commands(parser: CommandParser, clock: Callable[[], float]) -> None:
    """Add the commands about what is at Stripe."""
    _add_setup(parser)
    _add_subscribe(parser, clock)
    _add_go_live(parser)
    command = parser.add_command(
        "forget",
        _forget,
        "forget a customer that Stripe never had, such as a typing mistake",
        examples=["--customer cus_Typo1Xyz"],
        group=_GROUP,
    )
    add_customer_option(command)


def _client() -> tuple[stripe.StripeClient, Secret]:
    from power_billing.stripe_client import make_client

    key = read_secret(os.environ, API_KEY)
    return make_client(key, os.environ), key


# --- setup


def _add_setup(parser: CommandParser) -> None:
    command = parser.add_command(
        "setup",
        _setup,
        "find Stripe's meter, product and price, or make them",
        examples=[
            "--product Energy --price 0.30 --currency eur",
            "--product Energy --tariff tariff.toml",
            "",
            "--meter energy_roof",
        ],
        group=_GROUP,
    )
    add = command.add_argument
    add(
        "--product",
        type=name_argument,
        metavar="NAME",
        help="the product on invoices (default: only the meter)",
    )
    add(
        "--price",
        type=parse_amount,
        metavar="AMOUNT",
        help="price of one unit of energy, such as 0.30",
    )
    add(
        "--currency",
        type=parse_currency,
        metavar="CODE",
        help="currency of the price, such as eur",
    )
    add(
        "--unit",
        choices=UNITS,
        help="unit of the price; invoices count watt-hours (default: kWh)",
    )
    add(
        "--tariff",
        type=file_argument,
        metavar="FILE",
        help="prices by time of day: a meter, a product and a price for each period",
    )
    add(
        "--meter",
        type=parse_meter_name,
        metavar="NAME",
        help="a separate meter, for customers that another ledger bills too; with --tariff, the "
        "beginning of its meters' names",
    )


def _setup(options: argparse.Namespace) -> int:
    from power_billing.stripe_setup import setup, setup_price

    if options.tariff is not None:
        return _setup_tariff(options)
    given = [options.product, options.price, options.currency]
    if any(given) and not all(given):
        options.usage_error("--product, --price and --currency go together: give all three")
    if options.unit is not None and options.price is None:
        options.usage_error("--unit is of --price: give both")
    price = None if options.price is None else given_price(options)
    with opened(options) as (_, place):
        client, _ = _client()
        with one_run(place):  # a report under way goes on with the meter that it has
            meter = setup(place, client, options.meter)
        print(f"meter: {meter}")
        if price is None:
            return 0
        product, found = setup_price(place, client, options.product, price)
    print(f"product: {product} {options.product}")
    print(_price_line(found, price))
    return 0


def _setup_tariff(options: argparse.Namespace) -> int:
    from power_billing.stripe_setup import product_of, setup_tariff
    from power_billing.tariff_file import read_tariff

    if options.price or options.currency or options.unit:
        options.usage_error("--tariff has the prices: leave out --price, --currency and --unit")
    if not options.product:
        options.usage_error("--tariff and --product go together: invoices name the product")
    tariff = read_tariff(options.tariff)
    with opened(options) as (_, place):
        client, _ = _client()
        with one_run(place):  # a report under way goes on with the meters that it has
            sold = setup_tariff(place, client, options.product, tariff, options.meter)
            with tables(place) as conn:
                meter_name = meter_name_of(conn)
    print(f"tariff: hours of {tariff.zone}")
    for period in tariff.periods:
        found = sold[period.name]
        print(f"{period.name}: {shown_hours(period.hours)}")
        print(f"  meter: {found.meter} {event_name_of(meter_name, period.name)}")
        print(f"  product: {found.product} {product_of(options.product, period.name)}")
        print(f"  {_price_line(found.price, period.price)}")
    return 0


def _price_line(found: Found | None, price: Price) -> str:
    wh = f"{price.minor_per_wh:f}"
    return f"price: {found} {price}, which Stripe has as {wh} of its smallest unit a watt-hour"


# --- subscribe


def _add_subscribe(parser: CommandParser, clock: Callable[[], float]) -> None:
    command = parser.add_command(
        "subscribe",
        _subscribe,
        "bill a device to a customer, and subscribe the customer to the price",
        examples=[
            "edge-001 --customer cus_Nf1XyzAbc",
            "edge-001 --customer cus_Nf1XyzAbc --report",
        ],
        group=_GROUP,
    )
    add_link_options(command, clock)
    add = command.add_argument
    add(
        "--subscription",
        type=functools.partial(parse_id, prefix="sub"),
        metavar="ID",
        help="add the price to this one, such as sub_1Nf (default: a new one from the link on)",
    )
    add(
        "--days-until-due",
        type=parse_count,
        metavar="N",
        help="send invoices by mail, due after N days (default: Stripe charges the customer)",
    )
    add("--report", action="store_true", help="then report, as the timer will")


def _subscribe(options: argparse.Namespace) -> int:
    from power_billing.stripe_sinks import other_ledger, sink_from
    from power_billing.subscriptions import Wanted, prices_to_subscribe, refuse_missing, subscribe

    if options.subscription is not None and options.days_until_due is not None:
        options.usage_error("--days-until-due is for a new subscription: leave one out")
    with opened(options) as (pm, place):
        check_device(pm, options)
        client, _ = _client()
        # Before the device is linked: what is missing then is not half done.
        prices_to_subscribe(place)
        refuse_missing(client, options.customer, [one.customer for one in links_of(place)])
        billed = _linked(pm, place, options)
        print(linked_line(billed))
        begins = billed.from_hour * HOUR
        now = options.clock()
        wanted = Wanted(
            now,
            since=begins if begins < now else None,
            subscription=options.subscription,
            days_until_due=options.days_until_due,
        )
        found = subscribe(place, client, options.customer, wanted)
        keep_item(place, options.customer, ",".join(one.item.id for one in found))
        is_covered = _print_subscribed(billed, found, now)
        other_id = other_ledger(place, client, options.customer)
        print_other_ledger(place, options.customer, other_id, now)
        code = 0
        if options.report:
            sink = sink_from(os.environ, place, clock=options.clock)
            code = run_report(pm, place, sink, options.clock)
    return code if is_covered else 1


def _linked(pm: Devices, place: Place, options: argparse.Namespace) -> Link:
    """The device's present link to the customer, or a new one.

    Raises BillingError if the present one is not as wanted.
    """
    types = options.types
    for one in links_of(place):
        is_present = one.until_hour is None and one.device_id == options.device_id
        if not is_present or one.customer != options.customer:
            continue
        is_earlier = options.since is not None and hour_of("since", options.since) < one.from_hour
        if is_earlier or (types is not None and set(types) != set(one.types or ())):
            raise BillingError(
                f"{linked_line(one)} already: end that by power-billing unlink, or leave out "
                "--since and --types"
            )
        return one
    check_since(options)
    if types is None:
        confirm_choice(pm, options.device_id, options.yes)
    return link(
        pm,
        options.device_id,
        options.customer,
        types=types,
        since=options.since,
        clock=options.clock,
        ledger=place,
    )


def _print_subscribed(billed: Link, found: Sequence[Subscribed], now: float) -> bool:
    """Print the subscriptions; return whether all the link's usage is on their invoices."""
    is_covered = True
    for one in found:
        period = f", {one.period}" if one.period else ""
        print(f"subscription: {one.subscription}, item {one.item}, price {one.price}{period}")
        if one.since > max(billed.from_hour * HOUR, now - HOUR):
            is_covered = False
            span = f"from {iso(billed.from_hour)} to {shown_minute(one.since)}{period}"
            print(f"on no invoice: usage {span}, when the subscription began")
    return is_covered


# --- go-live


def _add_go_live(parser: CommandParser) -> None:
    command = parser.add_command(
        "go-live",
        _go_live,
        "end a trial with a test key, and bill with a live key from the next full hour on",
        examples=["--customer cus_Test1Xyz=cus_Live1Xyz"],
        group=_GROUP,
    )
    add = command.add_argument
    add(
        "--customer",
        action="append",
        default=[],
        type=_pair,
        metavar="cus_TEST=cus_LIVE",
        help="bill a test customer's devices to this live one, repeatable (default: stop billing)",
    )
    add("--yes", action="store_true", help="do not ask")


def _pair(text: str) -> tuple[str, str]:
    before, _, after = text.partition("=")
    try:
        return customer_argument(before), customer_argument(after)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected cus_TEST=cus_LIVE, got {text!r}") from None


def _go_live(options: argparse.Namespace) -> int:
    from power_billing.go_live import go_live, trial_of

    named = [test_customer for test_customer, _ in options.customer]
    twice = next((one for one in named if named.count(one) > 1), None)
    if twice is not None:
        options.usage_error(f"--customer: {twice} is there twice: name one live customer for it")
    with opened(options) as (pm, place):
        client, key = _client()
        trial = trial_of(place, client, key)
        confirm(
            f"Forget {trial.hours} hours that were billed to {trial.account}, "
            "and bill with the live key?",
            yes=options.yes,
        )
        with one_run(place):  # a report of the trial that is under way would go on with it
            trial = trial_of(place, client, key)
            live = go_live(pm, place, client, trial, dict(options.customer), options.clock)
    for period, found in live.sold.items():
        head = f"{period} " if period else ""
        print(f"{head}meter: {found.meter}")
        if found.product is not None:
            print(f"{head}product: {found.product}")
            print(f"{head}price: {found.price}")
    for one in live.billed:
        print(f"{one.device_id}: billed to {one.customer} from {iso(one.from_hour)} on")
    for one in live.ended:
        again = f"power-billing subscribe {one.device_id} --customer cus_..."
        print(f"{one.device_id}: no longer billed; {again} bills it again")
    if any(found.product is None for found in live.sold.values()):
        raise BillingError("the trial had no price: power-billing setup --product makes one")
    return 0


# --- forget


def _forget(options: argparse.Namespace) -> int:
    """Nothing of such a customer can be on an invoice: Stripe counted what was sent for no one."""
    from power_billing.subscriptions import customer_problem

    with opened(options) as (_, place):
        links = links_to(place, options.customer)
        client, _ = _client()
        problem = customer_problem(client, [], options.customer)
        if problem is None or not problem.never_was:
            raise BillingError(
                f"{options.customer}: Stripe has this customer, or had it: "
                "power-billing unlink ends a link"
            )
        with one_run(place), tables(place) as conn:
            forget_customer(conn, options.customer)
    for one in links:
        again = (
            f"power-billing link {one.device_id} --since {iso(one.from_hour)} --customer cus_..."
        )
        print(f"{one.device_id}: not billed; {again} bills it from that hour on")
    return 0
