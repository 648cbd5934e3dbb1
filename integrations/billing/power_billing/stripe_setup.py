"""What has to be at Stripe before usage can be sent there and become invoices: meter, product and price.

Everything is looked for before it is made, so that setup can be repeated. Nothing is changed or deleted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

import stripe

from power_billing.errors import BillingError
from power_billing.money import METERED_UNIT, Price, keep_amount
from power_billing.periods import LedgerMeter, keep_tariff, refuse_other_hours
from power_billing.sinks import EVENT_NAME
from power_billing.stripe_client import account_of, cannot, check_meter, meters_of
from power_billing.tables import METER_SETTING, PRICE_SETTING, Place, set_setting, setting, tables
from power_billing.tariff import Tariff

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


def setup(place: Place, client: stripe.StripeClient) -> Found:
    """Find the meter of power_watt_hours, or make it; remember its id in the ledger.

    Raises BillingError for a meter of that name which counts otherwise: it cannot be changed, nor deleted; where usage
    goes elsewhere already; and for a ledger with a tariff.
    """
    with tables(place) as conn:
        refuse_other_hours(conn, place, None)
    meter = find_or_make_meter(client)
    with tables(place) as conn:
        refuse_other_hours(conn, place, None)
        _refuse_other_account(conn, place, account_of([meter.id]))
        set_setting(conn, METER_SETTING, meter.id)
    return meter


def _refuse_other_account(conn: sqlite3.Connection, place: Place, account: str) -> None:
    there = setting(conn, "account")
    if there not in (None, account):
        raise BillingError(
            f"{place.db_path}: its usage goes to {there}, so it cannot go to {account} as well: "
            "power-billing go-live ends a trial with a test key"
        )


def find_or_make_meter(
    client: stripe.StripeClient, event_name: str = EVENT_NAME, title: str = "Energy used (Wh)"
) -> Found:
    """The meter of that event name in the key's account and mode; title: what Stripe's dashboard calls a new one."""
    try:
        meters = client.v1.billing.meters.list().auto_paging_iter()
        meter = next((one for one in meters if one.event_name == event_name), None)
        made = meter is None
        if meter is None:
            meter = client.v1.billing.meters.create(
                {
                    "display_name": title,
                    "event_name": event_name,
                    "default_aggregation": {"formula": "sum"},
                    "event_time_window": "hour",
                }
            )
    except stripe.StripeError as error:
        raise cannot(error) from None
    check_meter(meter, event_name)
    return Found(meter.id, made)


# --- Product and price


def setup_price(
    place: Place, client: stripe.StripeClient, name: str, price: Price
) -> tuple[Found, Found]:
    """Find the product of that name and its monthly price on the ledger's meter, or make them; return both.

    The price is of a watt-hour, for that is what the meter counts, and so the product's unit label is Wh. Raises
    BillingError for a product with another label, and where Stripe cannot be asked.
    """
    (meter,) = meters_of(place)
    product, found = find_or_make_price(client, meter.meter_id, name, price)
    with tables(place) as conn:
        keep_price(conn, name, price, found)
    return product, found


def find_or_make_price(
    client: stripe.StripeClient, meter_id: str, name: str, price: Price
) -> tuple[Found, Found]:
    """The product and its price, as setup_price() has them; the ledger is not asked, nor told."""
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
    """What there is at Stripe for the usage of a period."""

    meter: Found
    product: Found
    price: Found


def setup_tariff(
    place: Place, client: stripe.StripeClient, name: str, tariff: Tariff
) -> dict[str, Sold]:
    """Find a meter, a product and a monthly price for each period, or make them; return them by the period's name.

    A period has a product of its own, named `name` and the period, since invoices name products. The ledger remembers
    the tariff with all of that at once, in the end. Raises BillingError as setup() and setup_price() do, and for a
    ledger with hours that were counted by another tariff, or by none.
    """
    with tables(place) as conn:
        refuse_other_hours(conn, place, tariff)
    sold = find_or_make_tariff(client, name, tariff)
    with tables(place) as conn:
        refuse_other_hours(conn, place, tariff)
        _refuse_other_account(conn, place, account_of(one.meter.id for one in sold.values()))
        keep_sold(conn, name, tariff, sold)
    return sold


def find_or_make_tariff(client: stripe.StripeClient, name: str, tariff: Tariff) -> dict[str, Sold]:
    """Meters, products and prices, as setup_tariff() has them; the ledger is not asked, nor told."""
    sold = {}
    for period in tariff.periods:
        title = f"Energy used (Wh), {period.name}"
        meter = find_or_make_meter(client, period.event_name, title)
        product, price = find_or_make_price(
            client, meter.id, product_of(name, period.name), period.price
        )
        sold[period.name] = Sold(meter, product, price)
    return sold


def product_of(name: str, period: str) -> str:
    """What invoices name the usage of a period.

    >>> product_of("Energy", "off_peak")
    'Energy off peak'
    """
    return f"{name} {period.replace('_', ' ')}"


def keep_sold(
    conn: sqlite3.Connection, name: str, tariff: Tariff, sold: Mapping[str, Sold]
) -> None:
    """Remember a tariff and what there is at Stripe for it."""
    meters = {}
    for period in tariff.periods:
        found = sold[period.name]
        meters[period.name] = LedgerMeter(
            period.name, period.event_name, found.meter.id, found.price.id
        )
    keep_tariff(conn, tariff, meters)
    set_setting(conn, _NAME_SETTING, name)


# --- What Stripe sells


def _product(client: stripe.StripeClient, name: str) -> Found:
    products = client.v1.products.list({"active": True, "limit": 100}).auto_paging_iter()
    named = [product for product in products if product.name == name]
    # One of our own rather than one that somebody has made by hand.
    named.sort(key=lambda product: MARK not in (product.metadata or {}))
    if named:
        label = named[0].unit_label
        if label not in (None, METERED_UNIT):
            raise BillingError(
                f"Stripe's product {named[0].id}, {name}, has the unit label {label}, and the meter counts "
                f"{METERED_UNIT}: invoices would name the wrong unit: change the label there, or take another --product"
            )
        return Found(named[0].id, made=False)
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
            # As text: the SDK writes 30 as 3E+1 where it is a decimal, and Stripe takes no exponents.
            "unit_amount_decimal": price.unit_amount_decimal,  # type: ignore[typeddict-item]
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter_id},
            "nickname": str(price),
            "metadata": {MARK: EVENT_NAME},
        }
    )
    return Found(made.id, made=True)
