"""What a run asks Stripe before it sends: customers that are none, subscriptions that ended, events
refused later.
"""

from __future__ import annotations

import json

import pytest
from desk import SECRET, sign
from power_billing.customers import recheck_customer
from power_billing.hours import iso
from power_billing.keys import WEBHOOK_SECRET, Secret
from power_billing.outbox import State, every_entry
from power_billing.stripe_sinks import StripeMeterSink
from power_billing.tables import tables
from power_billing.webhooks import WebhookSettings, handle, verified
from shop import ALICE, PRICED, Shop

from power_manager import PowerManager

NOBODY = "cus_Nobody3"


@pytest.fixture
def shop(shop: Shop) -> Shop:
    """Meter, product and price are there."""
    shop(*PRICED)
    return shop


def link(shop: Shop, customer: str, device: str = "edge") -> None:
    """Link without asking, from ten hours ago on."""
    since = iso(shop.hour - 10)
    shop("link", device, "--customer", customer, "--since", since, "--offline")


def deliver(shop: Shop, event: dict[str, object]) -> str:
    """Deliver an event by the webhook, signed."""
    settings = WebhookSettings((Secret(WEBHOOK_SECRET, SECRET),))
    body = json.dumps(event).encode()
    signed = verified(settings, body, sign(body, int(shop.clock())), shop.clock)
    with PowerManager(shop.db) as pm:
        return handle(pm, settings, signed, shop.clock)


def states(shop: Shop) -> list[State]:
    """Of every event, by customer and hour."""
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        return [entry.state for entry in every_entry(conn)]


def forget_checks(shop: Shop) -> None:
    """As if a day had gone by since customers were looked at."""
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        conn.execute("UPDATE billing_customers SET checked_at = checked_at - 86400")


def test_usage_of_a_customer_that_there_is_not_is_held(shop: Shop) -> None:
    """Stripe would take it, and give it to nobody: it waits, the report says so, and another
    customer's goes.
    """
    link(shop, NOBODY)
    shop.subscribe(device="twin")
    out = shop("report", code=1)
    assert "3 hours sent, 3 left" in out
    assert out[-1] == (
        f"at Stripe: {NOBODY}: Stripe has no such customer; "
        "test and live mode have customers of their own"
    )
    assert shop.stripe.errors == []
    assert shop.stripe.billed(ALICE) == 31
    assert sum(line.startswith(f"waiting: {NOBODY}:") for line in out) == 3
    assert shop("status")[-1] == out[-1]
    assert list(json.loads("\n".join(shop("status", "--json")))["problems"]) == [NOBODY]


def test_usage_goes_when_the_customer_is_there(shop: Shop) -> None:
    """A customer with a problem is asked about in every run."""
    link(shop, NOBODY)
    shop("report", code=1)
    shop.stripe.catalog.add_customer(NOBODY)
    shop("subscribe", "edge", "--customer", NOBODY)
    assert shop("report")[-1] == "3 hours sent, 0 left"
    assert shop.stripe.billed(NOBODY) == 31


def test_a_wrong_customer_is_forgotten_and_its_usage_billed_to_the_right_one(shop: Shop) -> None:
    """A typing mistake loses nothing: the devices are linked anew, from the same hour on."""
    link(shop, NOBODY)
    link(shop, NOBODY, "twin")
    shop("report", code=1)
    out = shop("forget", "--customer", NOBODY)
    again = f"power-billing link edge --since {iso(shop.hour - 10)} --customer cus_..."
    assert out[0] == f"edge: not billed; {again} bills it from that hour on"
    assert shop("status") == ["usage goes to stripe:mtr_test_1"]
    shop.subscribe()
    shop.subscribe(device="twin")
    assert shop("report")[-1] == "3 hours sent, 0 left"
    assert shop.stripe.billed(ALICE) == 63


def test_a_customer_of_stripes_is_not_forgotten(shop: Shop) -> None:
    """Nor one that it had: its usage may be on invoices. Nor one whom the ledger does not know."""
    shop.subscribe("--report")
    assert "Stripe has this customer, or had it" in shop("forget", "--customer", ALICE, code=1)[-1]
    shop.stripe.catalog._delete("customer", ALICE)
    assert "Stripe has this customer, or had it" in shop("forget", "--customer", ALICE, code=1)[-1]
    assert "no device was ever billed to it" in shop("forget", "--customer", NOBODY, code=1)[-1]
    assert states(shop) == [State.SENT] * 3


def test_the_clock_is_asked_before_the_file_is_locked(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is Stripe's, over a network: another process writes meanwhile."""
    shop.subscribe()
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        sql = "INSERT INTO billing_invoices (invoice, customer, due_at) VALUES ('in_1', ?, 1.0)"
        conn.execute(sql, (ALICE,))

    def clock(_: StripeMeterSink) -> float:
        with PowerManager(shop.db) as other:
            other.trigger_event("twin", "restore")
        return shop.clock()

    monkeypatch.setattr(StripeMeterSink, "clock", clock)
    assert "1 devices told to shut down" in shop("report")
    with PowerManager(shop.db) as pm:
        events = [(event.device_id, event.type.value) for _, event in pm.events_since(0)]
    assert events == [("twin", "restore"), ("edge", "shutdown")]


def test_a_customer_without_a_subscription_is_said(shop: Shop) -> None:
    """Its usage goes, for a subscription that is backdated will have it; the exit code is 1 until
    there is one.
    """
    link(shop, ALICE)
    out = shop("report", code=1)
    assert "3 hours sent, 0 left" in out
    assert (
        f"at Stripe: {ALICE}: no active subscription to a price of the meter mtr_test_1" in out[-1]
    )
    shop("subscribe", "edge", "--customer", ALICE)
    assert shop("report")[-1] == "0 hours sent, 0 left"


@pytest.mark.parametrize("status", ["unpaid", "incomplete", "paused", "canceled"])
def test_a_subscription_without_invoices_does_not_count(shop: Shop, status: str) -> None:
    """Nor one to another meter's price."""
    shop.subscribe("--report")
    shop.objects("subscription")[0]["status"] = status
    forget_checks(shop)
    assert "no active subscription" in shop("report", code=1)[-1]


def test_a_customer_that_is_fine_is_asked_about_once_a_day(shop: Shop) -> None:
    """An hourly report makes no calls for it in between."""
    shop.subscribe("--report")
    shop.stripe.requests.clear()
    shop("report")
    assert not any("customers" in path for _, path in shop.stripe.requests)
    forget_checks(shop)
    shop("report")
    assert ("GET", f"/v1/customers/{ALICE}") in shop.stripe.requests


def test_a_deleted_subscription_is_said_by_the_next_report(shop: Shop) -> None:
    """The webhook only notes it; what is true now, Stripe says."""
    shop.subscribe("--report")
    subscription = shop.stripe.catalog._delete("subscription", "sub_loop1")
    event = {
        "id": "evt_1",
        "object": "event",
        "type": "customer.subscription.deleted",
        "created": int(shop.clock()),
        "data": {"object": {"id": subscription["id"], "customer": ALICE}},
    }
    assert deliver(shop, event).endswith("the next report looks at the customer")
    assert "no active subscription" in shop("report", code=1)[-1]


def test_a_deleted_customer_is_held_and_what_was_sent_stays(shop: Shop) -> None:
    """It was a customer when the usage went."""
    shop.subscribe("--report")
    shop.stripe.catalog._delete("customer", ALICE)
    forget_checks(shop)
    assert "this customer was deleted at Stripe" in shop("report", code=1)[-1]
    assert states(shop) == [State.SENT] * 3
    with PowerManager(shop.db, max_gap=1500) as pm:
        (meter,) = pm.list_meters("edge")
        for second in (600, 2040):
            at = (shop.hour - 6) * 3600 + second
            pm.log_power(meter.id, 10.0, 1.0, timestamp=at)
    assert "0 hours sent, 1 left" in shop("report", code=1), "though the ledger has claimed it"
    assert len(shop.stripe.events) == 3


@pytest.mark.parametrize("named_by", ["identifier", "idempotency_key"])
def test_events_that_are_refused_later_turn_from_sent_to_refused(shop: Shop, named_by: str) -> None:
    """By the thin event: it names them by their identifier or by the request's key, and the reason
    is kept.
    """
    shop.stripe.errors_name = named_by
    shop.subscribe("--report", device="twin")
    shop.subscribe()
    shop.stripe.catalog.objects["customer"].pop(ALICE)
    shop("report")  # within the day, nobody asks again
    assert [error["code"] for error in shop.stripe.errors] == ["meter_event_customer_not_found"] * 3
    shop.stripe.catalog.add_customer(ALICE)
    assert deliver(shop, shop.stripe.report_errors()).endswith("the next report fetches it")
    out = shop("report", code=1)
    assert out[-1] == "at Stripe: Stripe has refused events after it had taken them (evt_loop1)"
    assert states(shop).count(State.REFUSED) == 3
    refused = [line for line in out if line.startswith("refused:")]
    assert len(refused) == 3
    assert "meter_event_customer_not_found: The customer cus_Alice1 was not found." in refused[0]
    shop("report", "--retry-refused")
    assert shop.stripe.billed(ALICE) == 63
    assert shop("report")[-1] == "0 hours sent, 0 left"


def test_a_report_that_names_only_some_says_so(shop: Shop) -> None:
    """Stripe gives samples. A customer that never was is looked at, and all of its events turn to
    refused.
    """
    shop.subscribe("--report")
    shop.stripe.catalog.objects["customer"].pop(ALICE)
    for event in shop.stripe.events:
        shop.stripe._look_for_customer(event, "")
    deliver(shop, shop.stripe.report_errors(samples=1))
    out = shop("report", code=1)
    said = "Stripe has refused events after it had taken them (evt_loop1): 1 of 3 by name"
    assert f"at Stripe: {said}; power-billing reconcile finds the others" in out
    assert states(shop) == [State.REFUSED] * 3


def test_a_report_that_stripe_no_longer_has_is_said_once(shop: Shop) -> None:
    """After 30 days; and one in a form that is not known."""
    shop.subscribe("--report")
    deliver(shop, {**thin(shop), "id": "evt_gone"})
    assert "(evt_gone), and no longer says which" in shop("report", code=1)[-1]
    known = thin(shop)
    shop.stripe.v2_events[str(known["id"])]["data"] = {"reason": None}
    deliver(shop, known)
    assert "in an unknown form" in shop("report", code=1)[-1]
    assert shop("report")[-1] == "0 hours sent, 0 left"


def thin(shop: Shop) -> dict[str, object]:
    """A thin event about nothing."""
    return shop.stripe.report_errors()


def test_somebody_elses_events_on_the_meter_are_left_alone(shop: Shop) -> None:
    """A report may name what another program has sent."""
    shop.subscribe("--report")
    error = {"code": "meter_event_invalid_value", "message": "no", "idempotency_key": "x"}
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        (first, *_) = every_entry(conn)
    at_another_meter = first.event.identifier.replace("power_watt_hours", "energy_roof")
    shop.stripe.errors = [
        {**error, "identifier": "another-programs-own"},
        {**error, "identifier": at_another_meter},
    ]
    deliver(shop, thin(shop))
    shop("report", code=1)
    assert states(shop) == [State.SENT] * 3


def test_an_error_of_an_earlier_revision_changes_nothing(shop: Shop) -> None:
    """A later one has taken its place."""
    shop.subscribe("--report")
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        (first, *_) = every_entry(conn)
        sql = """INSERT INTO billing_outbox (customer, hour, revision, value_wh, state)
            VALUES (?, ?, 1, 12, 'sent')"""
        conn.execute(sql, (ALICE, first.event.hour))
    error = {"code": "meter_event_invalid_value", "message": "no", "idempotency_key": "x"}
    shop.stripe.errors = [{**error, "identifier": first.event.identifier}]
    deliver(shop, thin(shop))
    shop("report", code=1)
    assert State.REFUSED not in states(shop)


def test_a_key_that_may_not_look_is_said_and_sends(shop: Shop) -> None:
    """A restricted key that is allowed meter events alone: usage of claimed customers goes, and the
    rest is said.
    """
    link(shop, ALICE)
    shop("report", "--until", iso(shop.hour - 3), code=1)
    shop.stripe.forbidden = ("/v1/customers",)
    out = shop("report", code=1)
    assert "2 hours sent, 0 left" in out
    assert "this key may not read customers and subscriptions" in out[-1]
    said = shop("link", "twin", "--customer", ALICE, code=1)[-1]
    assert said.endswith("allow it to read both; --offline links without asking Stripe")


def test_a_stripe_that_does_not_answer_the_questions_keeps_nothing_from_being_sent(
    shop: Shop,
) -> None:
    """Usage goes, the exit code is 1, and whom Stripe did not have the last time is held still."""
    link(shop, NOBODY)
    shop.subscribe(device="twin")
    shop("report", "--until", iso(shop.hour - 3), code=1)
    with PowerManager(shop.db) as pm, tables(pm) as conn:
        recheck_customer(conn, ALICE)
    shop.stripe.broken = ("/v1/customers",)
    out = shop("report", code=1)
    assert "2 hours sent, 3 left" in out
    assert out[-1] == (
        "at Stripe: Stripe cannot be used now: APIError 500: try again later; "
        "what could not be asked is asked again in the next run"
    )
    assert shop.stripe.errors == []
    assert shop.stripe.billed(ALICE) == 31
