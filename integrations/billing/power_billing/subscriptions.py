"""Whether a customer's usage reaches an invoice, and the subscription that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

import stripe

from power_billing.errors import BillingError
from power_billing.links import check_id
from power_billing.sinks import EVENT_NAME
from power_billing.stripe_client import cannot, meter_of
from power_billing.stripe_setup import MARK, PRICE_SETTING, Found
from power_billing.tables import Place, setting, tables

# Invoices are made for a subscription in these states.
_INVOICED = ("active", "trialing", "past_due")


@dataclass(frozen=True)
class Subscribed:
    """The subscription item by which a customer's usage reaches an invoice, and from when on (epoch seconds)."""

    item: Found
    subscription: str
    since: int
    price: str


@dataclass(frozen=True)
class Problem:
    """Why usage reaches no invoice, in a sentence.

    is_missing: because there is no such customer now; never_was: nor ever, so what was sent for it is at nobody's.
    """

    text: str
    is_missing: bool = False
    never_was: bool = False


@dataclass(frozen=True)
class Wanted:
    """The subscription to make where there is none.

    now, since: epoch seconds. It is backdated to `since`, in the past, so that usage from then on is on its invoices;
    None (default): from now on. subscription: add the item to that one (sub_...) instead; usage from before is on no
    invoice then. days_until_due: invoices go out by mail and are due after so many days; None (default): Stripe charges
    the customer.
    """

    now: float
    since: int | None = None
    subscription: str | None = None
    days_until_due: int | None = None


def customer_problem(
    client: stripe.StripeClient, meter_id: str | None, customer: str
) -> Problem | None:
    """Why the customer's usage would reach no invoice; None where it does.

    meter_id: None before there is one; then only the customer itself is looked for. Raises BillingError where Stripe
    does not say, also because the key may send usage and not read what shows whether it reaches an invoice, and
    InvalidValue for what is no id of a customer.
    """
    check_id("customer", "cus", customer)
    try:
        missing = _missing(client, customer)
        if missing is not None or meter_id is None:
            return missing
        return _unsubscribed(client, meter_id, customer)
    except stripe.PermissionError:
        raise BillingError(
            "this key may not read customers and subscriptions, so nobody knows whether usage reaches an invoice: "
            "allow it to read both"
        ) from None
    except stripe.StripeError as error:
        raise cannot(error) from None


def refuse_missing(client: stripe.StripeClient, customer: str) -> None:
    """Raise BillingError for a customer that there is not; see customer_problem()."""
    problem = customer_problem(client, None, customer)
    if problem is not None:
        raise BillingError(f"{customer}: {problem.text}")


def _missing(client: stripe.StripeClient, customer: str) -> Problem | None:
    """Whether there is no such customer."""
    try:
        found = client.v1.customers.retrieve(customer)
    except stripe.InvalidRequestError as error:
        if error.http_status != 404:
            raise
        text = "Stripe has no such customer; test and live mode have customers of their own"
        return Problem(text, is_missing=True, never_was=True)
    if getattr(found, "deleted", False):
        return Problem("this customer was deleted at Stripe", is_missing=True)
    return None


def _unsubscribed(client: stripe.StripeClient, meter_id: str, customer: str) -> Problem | None:
    """Whether a customer that there is has no subscription for the meter."""
    for _, item in _metered_items(client, meter_id, customer):
        if item is not None:
            return None
    return Problem(
        f"no active subscription to a price of the meter {meter_id}, so its usage is on no invoice: "
        "power-billing subscribe makes one"
    )


def _metered_items(
    client: stripe.StripeClient, meter_id: str, customer: str
) -> Iterator[tuple[stripe.Subscription, stripe.SubscriptionItem | None]]:
    """The customer's subscriptions that are invoiced, each with its item on the meter, where it has one."""
    subscriptions = client.v1.subscriptions.list({"customer": customer, "limit": 100})
    for subscription in subscriptions.auto_paging_iter():
        if subscription.status not in _INVOICED:
            continue
        items = client.v1.subscription_items.list({"subscription": subscription.id, "limit": 100})
        on_meter = None
        for item in items.auto_paging_iter():
            recurring = item.price.recurring
            if recurring is not None and recurring.meter == meter_id:
                on_meter = item
        yield subscription, on_meter


def price_to_subscribe(place: Place) -> str:
    """The id of the price that new subscriptions get. Raises BillingError where setup has made none."""
    meter_of(place)
    with tables(place) as conn:
        price = setting(conn, PRICE_SETTING)
    if price is None:
        raise BillingError(
            f"{place.db_path}: no price yet: power-billing setup --product NAME --price 0.30 --currency eur makes one"
        )
    return price


def subscribe(
    place: Place,
    client: stripe.StripeClient,
    customer: str,
    wanted: Wanted,
) -> Subscribed:
    """Find the customer's subscription item on the ledger's meter, or make it.

    Raises BillingError for a customer that there is not, where there is no price yet, and where Stripe makes none.
    """
    meter_id = meter_of(place)
    price = price_to_subscribe(place)
    refuse_missing(client, customer)
    try:
        for subscription, item in _metered_items(client, meter_id, customer):
            if item is not None:
                return _found(subscription, item)
        if wanted.subscription is not None:
            return _add_item(client, wanted.subscription, price)
        return _make(client, customer, price, wanted)
    except stripe.InvalidRequestError as error:
        raise BillingError(
            f"{customer}: Stripe makes no subscription: {error.user_message}"
        ) from None
    except stripe.StripeError as error:
        raise cannot(error) from None


def _found(subscription: stripe.Subscription, item: stripe.SubscriptionItem) -> Subscribed:
    """One that was there. An item that was added later counts from then on, whenever its subscription began."""
    since = subscription.start_date
    if item.created > subscription.created:
        since = item.created
    return Subscribed(Found(item.id, made=False), subscription.id, since, item.price.id)


def _add_item(client: stripe.StripeClient, subscription: str, price: str) -> Subscribed:
    added = client.v1.subscription_items.create({"subscription": subscription, "price": price})
    return Subscribed(Found(added.id, made=True), subscription, added.created, price)


def _next_month(now: float) -> int:
    """When the next calendar month of UTC begins, in epoch seconds."""
    present = datetime.fromtimestamp(now, timezone.utc)
    year = present.year + present.month // 12
    return int(datetime(year, present.month % 12 + 1, 1, tzinfo=timezone.utc).timestamp())


def _make(client: stripe.StripeClient, customer: str, price: str, wanted: Wanted) -> Subscribed:
    parameters: stripe.params.SubscriptionCreateParams = {
        "customer": customer,
        "items": [{"price": price}],
        # Invoices are of calendar months, as statements are.
        "billing_cycle_anchor": _next_month(wanted.now),
        "metadata": {MARK: EVENT_NAME},
    }
    if wanted.since is not None:
        parameters["backdate_start_date"] = wanted.since
    if wanted.days_until_due is not None:
        parameters["collection_method"] = "send_invoice"
        parameters["days_until_due"] = wanted.days_until_due
    made = client.v1.subscriptions.create(parameters)
    # By key: the attribute is a method, as of a dict.
    (item,) = made["items"].data
    return Subscribed(Found(item.id, made=True), made.id, made.start_date, price)
