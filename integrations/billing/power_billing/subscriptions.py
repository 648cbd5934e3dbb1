"""Whether a customer's usage reaches an invoice, and the subscription that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import stripe

from power_billing.errors import BillingError
from power_billing.links import check_id
from power_billing.periods import LedgerMeter
from power_billing.sinks import EVENT_NAME
from power_billing.stripe_client import cannot, meters_of
from power_billing.stripe_setup import MARK, Found
from power_billing.tables import Place
from power_manager import nearest

# Invoices are made for a subscription in these states.
_INVOICED = ("active", "trialing", "past_due")


@dataclass(frozen=True)
class Subscribed:
    """The subscription item by which a customer's usage reaches an invoice.

    since: from when on, in epoch seconds. period: of the tariff; "" without one.
    """

    period: str
    item: Found
    subscription: str
    since: int
    price: str


@dataclass(frozen=True)
class Problem:
    """Why usage reaches no invoice, in a sentence.

    is_missing: the customer does not exist now; never_was: it never did, so Stripe counted for no
    one what was sent for it.
    """

    text: str
    is_missing: bool = False
    never_was: bool = False


@dataclass(frozen=True)
class Wanted:
    """The subscription to make if there is none.

    now, since: epoch seconds. It is backdated to `since`, in the past, so that usage from then on
    is on its invoices; None (default): from now on. subscription: add the item to that one
    (sub_...) instead; usage from before is on no invoice then. days_until_due: invoices go out by
    mail and are due after so many days; None (default): Stripe charges the customer.
    """

    now: float
    since: int | None = None
    subscription: str | None = None
    days_until_due: int | None = None


def customer_problem(
    client: stripe.StripeClient, meter_ids: Sequence[str], customer: str
) -> Problem | None:
    """Why the customer's usage would reach no invoice; None: it does, on every meter.

    meter_ids: none before setup; then only the customer itself is looked for. Raises BillingError
    where Stripe does not say, also because the key may send usage and not read what shows whether
    it reaches an invoice, and InvalidValue for what is no id of a customer.
    """
    check_id("customer", "cus", customer)
    try:
        missing = _missing(client, customer)
        if missing is not None or not meter_ids:
            return missing
        return _unsubscribed(client, meter_ids, customer)
    except stripe.PermissionError:
        raise BillingError(
            "this key may not read customers and subscriptions, so it is unknown whether usage "
            "reaches an invoice: allow it to read both"
        ) from None
    except stripe.StripeError as error:
        raise cannot(error) from None


def refuse_missing(client: stripe.StripeClient, customer: str, known: Iterable[str] = ()) -> None:
    """Raise BillingError for a customer that does not exist; see customer_problem().

    known: customers of whom the nearest is offered.
    """
    problem = customer_problem(client, [], customer)
    if problem is not None:
        raise BillingError(f"{customer}: {problem.text}{nearest(customer, known)}")


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


def _unsubscribed(
    client: stripe.StripeClient, meter_ids: Sequence[str], customer: str
) -> Problem | None:
    """Whether an existing customer has no subscription for one of the meters."""
    left = list(meter_ids)
    for _, items in _metered_items(client, meter_ids, customer):
        left = [meter_id for meter_id in left if meter_id not in items]
        if not left:
            return None
    meters = "meter" if len(left) == 1 else "meters"
    return Problem(
        f"no active subscription to a price of the {meters} {' and '.join(left)}, so its usage is "
        "on no invoice: power-billing subscribe makes one"
    )


def _metered_items(
    client: stripe.StripeClient, meter_ids: Sequence[str], customer: str
) -> Iterator[tuple[stripe.Subscription, dict[str, stripe.SubscriptionItem]]]:
    """The customer's invoiced subscriptions, each with its items on the meters, by meter id."""
    subscriptions = client.v1.subscriptions.list({"customer": customer, "limit": 100})
    for subscription in subscriptions.auto_paging_iter():
        if subscription.status not in _INVOICED:
            continue
        items = client.v1.subscription_items.list({"subscription": subscription.id, "limit": 100})
        on_meters = {}
        for item in items.auto_paging_iter():
            meter_id = None if item.price.recurring is None else item.price.recurring.meter
            if meter_id is not None and meter_id in meter_ids:
                on_meters[meter_id] = item
        yield subscription, on_meters


def prices_to_subscribe(place: Place) -> dict[LedgerMeter, str]:
    """The price ids of new subscriptions, by meter. Raises BillingError if setup has made none."""
    prices = {}
    for meter in meters_of(place):
        if meter.price_id is None:
            raise BillingError(
                f"{place.db_path}: no price yet: power-billing setup --product NAME --price 0.30 "
                "--currency eur makes one"
            )
        prices[meter] = meter.price_id
    return prices


def subscribe(
    place: Place,
    client: stripe.StripeClient,
    customer: str,
    wanted: Wanted,
) -> list[Subscribed]:
    """Find the customer's subscription item on each of the ledger's meters, or make it.

    Items that are missing beside others are added to the subscription of these. Raises BillingError
    for a customer that there is not, where there is no price yet, and where Stripe makes none.
    """
    prices = prices_to_subscribe(place)
    refuse_missing(client, customer)
    try:
        found = _found(client, customer, list(prices))
        missing = {meter: price for meter, price in prices.items() if meter.meter_id not in found}
        if missing:
            present = next(iter(found.values())).subscription if found else None
            subscription = wanted.subscription or present
            if subscription is None:
                found = _make(client, customer, missing, wanted)
            else:
                found |= _add_items(client, subscription, missing)
        return [found[meter.meter_id] for meter in prices]
    except stripe.InvalidRequestError as error:
        raise BillingError(
            f"{customer}: Stripe makes no subscription: {error.user_message}"
        ) from None
    except stripe.StripeError as error:
        raise cannot(error) from None


def _found(
    client: stripe.StripeClient, customer: str, meters: Sequence[LedgerMeter]
) -> dict[str, Subscribed]:
    """What was there, by the meter's id.

    An item that was added later counts from then on, whenever its subscription began.
    """
    found: dict[str, Subscribed] = {}
    periods = {meter.meter_id: meter.period for meter in meters}
    for subscription, items in _metered_items(client, list(periods), customer):
        for meter_id, item in items.items():
            since = subscription.start_date
            if item.created > subscription.created:
                since = item.created
            there = Found(item.id, made=False)
            one = Subscribed(periods[meter_id], there, subscription.id, since, item.price.id)
            found.setdefault(meter_id, one)
    return found


def _add_items(
    client: stripe.StripeClient, subscription: str, prices: Mapping[LedgerMeter, str]
) -> dict[str, Subscribed]:
    found = {}
    for meter, price in prices.items():
        added = client.v1.subscription_items.create({"subscription": subscription, "price": price})
        item = Found(added.id, made=True)
        found[meter.meter_id] = Subscribed(meter.period, item, subscription, added.created, price)
    return found


def _next_month(now: float) -> int:
    """When the next calendar month of UTC begins, in epoch seconds."""
    present = datetime.fromtimestamp(now, timezone.utc)
    year = present.year + present.month // 12
    return int(datetime(year, present.month % 12 + 1, 1, tzinfo=timezone.utc).timestamp())


def _make(
    client: stripe.StripeClient, customer: str, prices: Mapping[LedgerMeter, str], wanted: Wanted
) -> dict[str, Subscribed]:
    parameters: stripe.params.SubscriptionCreateParams = {
        "customer": customer,
        "items": [{"price": price} for price in prices.values()],
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
    by_price = {item.price.id: item.id for item in made["items"].data}
    found = {}
    for meter, price in prices.items():
        item = Found(by_price[price], made=True)
        found[meter.meter_id] = Subscribed(meter.period, item, made.id, made.start_date, price)
    return found
