"""From a trial to bills: a ledger moves from a meter of test mode to one of live mode.

Nothing of the trial is billed: its hours are forgotten, and billing begins with the next full hour.
Live mode does not have the customers of test mode, so each is named again, or its devices are no
longer billed.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import stripe

from power_billing.errors import BillingError
from power_billing.hours import next_hour
from power_billing.keys import API_KEY, Secret
from power_billing.links import SEE_STATUS, Link, check_clock, keep_item, links_of
from power_billing.money import price_of
from power_billing.periods import PLAIN, keep_tariff, ledger_meters, meter_name_of, tariff_of
from power_billing.sources import Devices
from power_billing.stripe_client import account_of, cannot
from power_billing.stripe_setup import (
    Sold,
    find_or_make_plain,
    find_or_make_tariff,
    keep_price,
    meters_sold,
    product_name_of,
)
from power_billing.subscriptions import Wanted, refuse_missing, subscribe
from power_billing.tables import (
    METER_SETTING,
    Place,
    clear_ledger,
    forget_setting,
    set_setting,
    setting,
    tables,
)
from power_manager import NotFound, PowerEventType, nearest


@dataclass(frozen=True)
class Trial:
    """What a ledger has of its trial: where usage went, how many hours, and the present links."""

    account: str
    hours: int
    links: list[Link]


@dataclass(frozen=True)
class Live:
    """What became of it: what is at Stripe now, the links that continue, and those that ended.

    sold: by period of the tariff; by "" without a tariff.
    """

    sold: dict[str, Sold]
    billed: list[Link]
    ended: list[Link]


def trial_of(place: Place, client: stripe.StripeClient, key: Secret) -> Trial:
    """The trial that go_live() would end.

    Raises BillingError for a key that is not live, for a ledger whose usage goes elsewhere than to
    Stripe, and for one that is live already.
    """
    if not re.match("(sk|rk)_live_", key.reveal()):
        raise BillingError(f"{API_KEY}: go-live takes a live key, sk_live_ or rk_live_")
    with tables(place) as conn:
        meter_ids = [meter.meter_id for meter in ledger_meters(conn)]
        account = setting(conn, "account")
        (hours,) = conn.execute("SELECT count(*) FROM billing_hours").fetchone()
    first_id = next(iter(meter_ids), None)
    if first_id is None:
        raise BillingError(
            f"{place.db_path}: no trial to end: run power-billing setup with the live key"
        )
    if account not in (None, account_of(meter_ids)):
        raise BillingError(
            f"{place.db_path}: its usage goes to {account}, which is not a trial at Stripe"
        )
    try:
        client.v1.billing.meters.retrieve(first_id)
    except stripe.InvalidRequestError:
        present = [link for link in links_of(place) if link.until_hour is None]
        return Trial(account_of(meter_ids), hours, present)
    except stripe.StripeError as error:
        raise cannot(error) from None
    raise BillingError(f"{place.db_path}: it is live already: this key sees its meter, {first_id}")


def go_live(
    pm: Devices,
    place: Place,
    client: stripe.StripeClient,
    trial: Trial,
    customers: Mapping[str, str],
    clock: Callable[[], float] = time.time,
) -> Live:
    """Move the ledger to the meters of a live key.

    customers: live customers by those of test mode; their devices are billed to the live ones from
    the next full hour on. Meters, products and prices are found or made as setup did for the trial,
    before the ledger is touched; subscriptions follow. Raises BillingError, also for a clock behind
    the newest reading of such a device.
    """
    known = {link.customer for link in trial.links}
    for test_customer, live_customer in customers.items():
        if test_customer not in known:
            hint = nearest(test_customer, known) or SEE_STATUS
            raise BillingError(f"{test_customer}: no device is billed to it{hint}")
        refuse_missing(client, live_customer)
    registered = {device.id for device in pm.list_devices()}
    for link in trial.links:
        if link.customer in customers and link.device_id in registered:
            check_clock(pm, link.device_id, clock())
    with tables(place) as conn:
        name = product_name_of(conn)
        price = price_of(conn)
        meter_name = meter_name_of(conn)
        tariff = tariff_of(conn)
    if tariff is None or name is None:
        sold = {PLAIN: find_or_make_plain(client, name, price, meter_name)}
    else:
        sold = find_or_make_tariff(client, name, tariff, meter_name)
    with tables(place) as conn:
        held = conn.execute("SELECT device_id FROM billing_shutdowns")
        shut_down = [device_id for (device_id,) in held]
        clear_ledger(conn)
        forget_setting(conn, "account")
        if tariff is not None:
            keep_tariff(conn, tariff, meter_name, meters_sold(meter_name, sold))
        else:
            plain = sold[PLAIN]
            set_setting(conn, METER_SETTING, plain.meter.id)
            if name is not None and price is not None and plain.price is not None:
                keep_price(conn, name, price, plain.price)
        _move_links(conn, customers, next_hour(clock()))
        for device_id in shut_down:
            _restore(pm, device_id)
    if all(one.price is not None for one in sold.values()):
        for live_customer in dict.fromkeys(customers.values()):
            subscribed = subscribe(place, client, live_customer, Wanted(clock()))
            keep_item(place, live_customer, ",".join(one.item.id for one in subscribed))
    ended = [link for link in trial.links if link.customer not in customers]
    return Live(sold, links_of(place), ended)


def _move_links(conn: sqlite3.Connection, customers: Mapping[str, str], begin: int) -> None:
    """Continue present links with the live customers from hour `begin` on; delete the others."""
    (last_key,) = conn.execute("SELECT coalesce(max(link_key), 0) FROM billing_links").fetchone()
    for test_customer, live_customer in customers.items():
        sql = """INSERT INTO billing_links (device_id, customer, types, from_hour)
            SELECT device_id, ?, types, ? FROM billing_links
            WHERE customer = ? AND until_hour IS NULL AND link_key <= ? ORDER BY link_key"""
        conn.execute(sql, (live_customer, begin, test_customer, last_key))
    conn.execute("DELETE FROM billing_links WHERE link_key <= ?", (last_key,))


def _restore(pm: Devices, device_id: str) -> None:
    """Bring back what an invoice of the trial has shut down."""
    try:
        pm.trigger_event(device_id, PowerEventType.RESTORE, note="billing: its trial is over")
    except NotFound:
        return
