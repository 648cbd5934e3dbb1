"""What Stripe needs before usage can become invoices: meter, product and price.

Everything is looked for before it is made, so setup can be repeated. Nothing is changed or deleted.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

import stripe

from power_billing.claims import forget_claims
from power_billing.errors import BillingError
from power_billing.money import METERED_UNIT, Price, keep_amount
from power_billing.outbox import was_sent
from power_billing.periods import (
    LedgerMeter,
    event_name_of,
    keep_tariff,
    meter_name_of,
    parse_meter_name,
    refuse_other_hours,
)
from power_billing.sender import has_nothing
from power_billing.sinks import EVENT_NAME
from power_billing.stripe_client import account_of, cannot, check_meter, meters_of
from power_billing.tables import (
    METER_NAME_SETTING,
    METER_SETTING,
    PRICE_SETTING,
    Place,
    set_setting,
    setting,
    tables,
)
from power_billing.tariff import Tariff
from power_manager import InvalidValue

MARK = "power_billing"  # in the metadata of what this package makes
_NAME_SETTING = "product_name"


@dataclass(frozen=True)
class Found:
    """An object at Stripe, and whether it was there before."""

    id: str
    made: bool

    def __str__(self) -> str:
        return f"{self.id} ({'made' if self.made else 'found'})"


# --- The meter


def setup(place: Place, client: stripe.StripeClient, name: str | None = None) -> Found:
    """Find the ledger's meter, or make it; remember its id in the ledger.

    name: the meter's name in events, 1 to 16 lower-case letters, digits and underscores; None
    (default): the one that the ledger has, power_watt_hours at first. Another ledger that bills the
    same customers needs another one. Raises InvalidValue for another name; BillingError for a meter
    of that name which counts otherwise: it cannot be changed, nor deleted; where usage goes
    elsewhere already; and for a ledger with a tariff.
    """
    with tables(place) as conn:
        refuse_other_hours(conn, place, None)
        name = check_meter_name(name) if name is not None else meter_name_of(conn)
    meter = find_or_make_meter(client, name)
    with tables(place) as conn:
        refuse_other_hours(conn, place, None)
        is_another = setting(conn, METER_NAME_SETTING) not in (None, name)
        _take_account(conn, place, account_of([meter.id]), is_another)
        set_setting(conn, METER_SETTING, meter.id)
        set_setting(conn, METER_NAME_SETTING, name)
    return meter


def _take_account(conn: sqlite3.Connection, place: Place, account: str, is_another: bool) -> None:
    """Let usage go to that account. Raises BillingError if that is not possible.

    is_another: to other meters than before, on purpose, as long as nothing was sent.
    """
    there = setting(conn, "account")
    if there in (None, account):
        return
    is_free = has_nothing(conn, there) or (is_another and not was_sent(conn))
    if not is_free:
        raise BillingError(
            f"{place.db_path}: its usage goes to {there}, so it cannot go to {account} as well: "
            "power-billing go-live ends a trial with a test key; another meter needs another "
            "--ledger"
        )
    # Nothing is there: the customers were another ledger's, or a CSV file's name was mistyped.
    set_setting(conn, "account", account)
    forget_claims(conn)


def check_meter_name(name: str) -> str:
    """The name, if a meter can have it and its identifiers are short; otherwise InvalidValue."""
    try:
        return parse_meter_name(name)
    except argparse.ArgumentTypeError as error:
        raise InvalidValue(f"meter: {error}") from None


def find_or_make_meter(
    client: stripe.StripeClient, name: str = EVENT_NAME, title: str = "Energy used (Wh)"
) -> Found:
    """The meter of that name in events, in the key's account and mode.

    title: a new one's name in the dashboard.
    """
    try:
        meters = client.v1.billing.meters.list().auto_paging_iter()
        meter = next((one for one in meters if one.event_name == name), None)
        made = meter is None
        if meter is None:
            meter = client.v1.billing.meters.create(
                {
                    "display_name": title,
                    "event_name": name,
                    "default_aggregation": {"formula": "sum"},
                    "event_time_window": "hour",
                }
            )
    except stripe.StripeError as error:
        raise cannot(error) from None
    check_meter(meter, name)
    return Found(meter.id, made)


# --- Product and price


def setup_price(
    place: Place, client: stripe.StripeClient, name: str, price: Price
) -> tuple[Found, Found]:
    """Find or make the product of that name and its monthly price on the ledger's meter.

    The price is of a watt-hour, for that is what the meter counts, and so the product's unit label
    is Wh. Raises BillingError for a product with another label, and where Stripe cannot be asked.
    """
    with tables(place) as conn:
        refuse_other_hours(conn, place, None)
    (meter,) = meters_of(place)
    product, found = find_or_make_price(client, meter.meter_id, name, price)
    with tables(place) as conn:
        keep_price(conn, name, price, found)
    return product, found


def find_or_make_price(
    client: stripe.StripeClient, meter_id: str, name: str, price: Price
) -> tuple[Found, Found]:
    """Find or make the product and its price at Stripe alone, without the ledger."""
    try:
        product = _product(client, name)
        return product, _price(client, product.id, meter_id, price)
    except stripe.StripeError as error:
        raise cannot(error) from None


def keep_price(conn: sqlite3.Connection, name: str, price: Price, found: Found) -> None:
    """Remember the price that new subscriptions get."""
    set_setting(conn, PRICE_SETTING, found.id)
    set_setting(conn, _NAME_SETTING, name)
    keep_amount(conn, price)


def product_name_of(conn: sqlite3.Connection) -> str | None:
    """The product's name that setup_price() was given last."""
    return setting(conn, _NAME_SETTING)


# --- A tariff


@dataclass(frozen=True)
class Sold:
    """What there is at Stripe for the usage of a period: of all of them where there is no tariff.

    product and price are None where setup was given none, which a tariff always has.
    """

    meter: Found
    product: Found | None
    price: Found | None


def setup_tariff(
    place: Place,
    client: stripe.StripeClient,
    product: str,
    tariff: Tariff,
    meter_name: str | None = None,
) -> dict[str, Sold]:
    """Find or make a meter, a product and a monthly price for each period; return them by name.

    product: its name; a period has one of its own, named by it and the period, since invoices name
    products. meter_name: what the names of the meters begin with, see setup(). The ledger remembers
    the tariff with all of that at once, in the end. Raises what setup() and setup_price() raise,
    and BillingError for a ledger with hours that were counted by another tariff, or by none.
    """
    with tables(place) as conn:
        refuse_other_hours(conn, place, tariff)
        present = meter_name_of(conn)
    meter_name = present if meter_name is None else check_meter_name(meter_name)
    sold = find_or_make_tariff(client, product, tariff, meter_name)
    account = account_of(found.meter.id for found in sold.values())
    with tables(place) as conn:
        refuse_other_hours(conn, place, tariff)
        _take_account(conn, place, account, is_another=True)
        keep_tariff(conn, tariff, meter_name, meters_sold(meter_name, sold))
        set_setting(conn, _NAME_SETTING, product)
    return sold


def find_or_make_tariff(
    client: stripe.StripeClient, product: str, tariff: Tariff, meter_name: str
) -> dict[str, Sold]:
    """Find or make the same at Stripe alone, without the ledger."""
    sold = {}
    for period in tariff.periods:
        event_name = event_name_of(meter_name, period.name)
        meter = find_or_make_meter(client, event_name, f"Energy used (Wh), {period.name}")
        name = product_of(product, period.name)
        found, price = find_or_make_price(client, meter.id, name, period.price)
        sold[period.name] = Sold(meter, found, price)
    return sold


def find_or_make_plain(
    client: stripe.StripeClient, product: str | None, price: Price | None, meter_name: str
) -> Sold:
    """Find or make the one meter without a tariff, and product and price if both are given."""
    meter = find_or_make_meter(client, meter_name)
    if product is None or price is None:
        return Sold(meter, None, None)
    found, found_price = find_or_make_price(client, meter.id, product, price)
    return Sold(meter, found, found_price)


def meters_sold(meter_name: str, sold: Mapping[str, Sold]) -> dict[str, LedgerMeter]:
    """The meters of a tariff's periods, for the ledger."""
    meters = {}
    for period, found in sold.items():
        price_id = None if found.price is None else found.price.id
        event_name = event_name_of(meter_name, period)
        meters[period] = LedgerMeter(period, event_name, found.meter.id, price_id)
    return meters


def product_of(name: str, period: str) -> str:
    """What invoices name the usage of a period.

    >>> product_of("Energy", "off_peak")
    'Energy off peak'
    """
    return f"{name} {period.replace('_', ' ')}"


# --- What Stripe sells


def _product(client: stripe.StripeClient, name: str) -> Found:
    products = client.v1.products.list({"active": True, "limit": 100}).auto_paging_iter()
    named = [product for product in products if product.name == name]
    # One of our own rather than one that was made by hand.
    named.sort(key=lambda product: MARK not in (product.metadata or {}))
    for product in named:
        label = product.unit_label
        if label not in (None, METERED_UNIT):
            raise BillingError(
                f"Stripe's product {product.id}, {name}, has the unit label {label}, and the meter "
                f"counts {METERED_UNIT}: invoices would name the wrong unit: change the label at "
                "Stripe, or choose another --product"
            )
        return Found(product.id, made=False)
    made = client.v1.products.create(
        {"name": name, "unit_label": METERED_UNIT, "metadata": {MARK: EVENT_NAME}}
    )
    return Found(made.id, made=True)


def _price(client: stripe.StripeClient, product_id: str, meter_id: str, price: Price) -> Found:
    prices = client.v1.prices.list(
        {
            "active": True,
            "product": product_id,
            "currency": price.currency,
            "recurring": {"meter": meter_id, "usage_type": "metered"},
            "limit": 100,
        }
    )
    for one in prices.auto_paging_iter():
        monthly = one.recurring is not None and one.recurring.interval == "month"
        if monthly and one.unit_amount_decimal == price.minor_per_wh:
            return Found(one.id, made=False)
    made = client.v1.prices.create(
        {
            "product": product_id,
            "currency": price.currency,
            # As text: the SDK writes the decimal 30 as 3E+1, and Stripe takes no exponents.
            "unit_amount_decimal": price.unit_amount_decimal,  # type: ignore[typeddict-item]
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter_id},
            "nickname": str(price),
            "metadata": {MARK: EVENT_NAME},
        }
    )
    return Found(made.id, made=True)
