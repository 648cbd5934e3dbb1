"""What has to be at Stripe before usage can be sent there and become invoices: meter, product and price.

Everything is looked for before it is made, so that setup can be repeated. Nothing is changed or deleted.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass

import stripe

from power_billing.claims import forget_claims
from power_billing.errors import BillingError
from power_billing.money import METERED_UNIT, Price, keep_amount
from power_billing.outbox import was_sent
from power_billing.sinks import EVENT_NAME
from power_billing.stripe_client import (
    account_of,
    cannot,
    check_meter,
    meter_name_of,
    meter_of,
)
from power_billing.tables import (
    METER_NAME_SETTING,
    METER_SETTING,
    Place,
    set_setting,
    setting,
    tables,
)
from power_manager import InvalidValue

MARK = "power_billing"  # in the metadata of what this package makes
PRICE_SETTING = "stripe_price"  # the price's id, in the ledger's settings
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

    name: the meter's name in events, 1 to 16 lower-case letters, digits and underscores; None (default): the one that
    the ledger has, power_watt_hours at first. Another ledger that bills the same customers needs another one. Raises
    InvalidValue for another name; BillingError for a meter of that name which counts otherwise: it cannot be changed,
    nor deleted; and where usage goes elsewhere already.
    """
    name = check_meter_name(name) if name is not None else meter_name_of(place)
    meter = find_or_make_meter(client, name)
    with tables(place) as conn:
        account = setting(conn, "account")
        if account not in (None, account_of(meter.id)):
            is_another = setting(conn, METER_NAME_SETTING) not in (None, name)
            if not is_another or was_sent(conn):
                raise BillingError(
                    f"{place.db_path}: its usage goes to {account}, so it cannot go to {account_of(meter.id)} as well: "
                    "power-billing go-live ends a trial with a test key; another meter wants another --ledger"
                )
            # Nothing went out yet: the customers were another ledger's.
            set_setting(conn, "account", account_of(meter.id))
            forget_claims(conn)
        set_setting(conn, METER_SETTING, meter.id)
        set_setting(conn, METER_NAME_SETTING, name)
    return meter


def check_meter_name(name: str) -> str:
    """The name, if a meter can have it and the identifiers of its events are short enough; otherwise InvalidValue."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,15}", name):
        raise InvalidValue(
            f"meter: expected 1 to 16 lower-case letters, digits and underscores, a letter first, got {name!r}"
        )
    return name


def find_or_make_meter(client: stripe.StripeClient, name: str = EVENT_NAME) -> Found:
    """The meter of that name in events, in the key's account and mode."""
    try:
        meters = client.v1.billing.meters.list().auto_paging_iter()
        meter = next((one for one in meters if one.event_name == name), None)
        made = meter is None
        if meter is None:
            meter = client.v1.billing.meters.create(
                {
                    "display_name": "Energy used (Wh)",
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
    """Find the product of that name and its monthly price on the ledger's meter, or make them; return both.

    The price is of a watt-hour, for that is what the meter counts, and so the product's unit label is Wh. Raises
    BillingError for a product with another label, and where Stripe cannot be asked.
    """
    product, found = find_or_make_price(client, meter_of(place), name, price)
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
            "unit_amount_decimal": price.minor_per_wh,
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter_id},
            "nickname": str(price),
            "metadata": {MARK: EVENT_NAME},
        }
    )
    return Found(made.id, made=True)
