"""Deliveries that are not Stripe's, or not of now, or no events: refused, and nothing of them is
stored.
"""

from __future__ import annotations

import pytest
import stripe
from desk import SECRET, Desk, sign
from power_billing.keys import WEBHOOK_SECRET
from power_billing.tables import tables
from power_billing.webhooks import (
    BadEvent,
    BadSignature,
    WebhookSettings,
    handle,
    verified,
)
from world import World


@pytest.fixture
def desk(world: World) -> Desk:
    """Policy final_attempt, no grace."""
    return Desk(world)


@pytest.mark.parametrize(
    ("at", "secret", "change", "message"),
    [
        (0, SECRET, b" ", "the signature is not Stripe's"),
        (0, "whsec_AnotherSecretAltogether", b"", "the signature is not Stripe's"),
        (-301, SECRET, b"", "more than 5 minutes before or after now"),
        (301, SECRET, b"", "more than 5 minutes before or after now"),
        (3600, SECRET, b"", "more than 5 minutes before or after now"),
    ],
    ids=["tampered", "another secret", "old", "ahead", "an hour ahead"],
)
def test_a_bad_signature_is_refused(
    desk: Desk, at: int, secret: str, change: bytes, message: str
) -> None:
    """Nothing is stored, and the secret is not named."""
    body = desk.event("invoice.paid")
    header = sign(body, desk.now + at, secret)
    with pytest.raises(BadSignature, match=message) as caught:
        verified(desk.settings, body + change, header, desk.clock)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("at", [-300, 300])
def test_five_minutes_either_way_are_allowed(desk: Desk, at: int) -> None:
    """Clocks differ, and deliveries take their time."""
    body = desk.event("invoice.paid")
    assert verified(desk.settings, body, sign(body, desk.now + at), desk.clock).id == "evt_0"


@pytest.mark.parametrize("written", ["+{}", " {}", "{:_}", "{}.0", "\u0661{}"])
def test_a_time_is_digits(desk: Desk, written: str) -> None:
    """int() takes more than that; what Stripe writes is epoch seconds, and what is signed is the
    text.
    """
    body, at = desk.event("invoice.paid"), desk.now
    header = sign(body, at).replace(f"t={at}", "t=" + written.format(at))
    with pytest.raises(BadSignature):
        verified(desk.settings, body, header, desk.clock)


@pytest.mark.parametrize(
    "header", [None, "", "t=1", "v1=00", "t=x,v1=00", "t=1,t=2,v1=00", "v1=\udc80,t=1", "\x00"]
)
def test_a_header_that_is_none_is_refused(desk: Desk, header: str | None) -> None:
    """Missing, empty or half of one."""
    with pytest.raises(BadSignature):
        verified(desk.settings, desk.event("invoice.paid"), header)


def test_a_rolled_secret_leaves_two_signatures(desk: Desk) -> None:
    """One of them is ours; the SDK's own helper agrees with the HMAC made by hand."""
    body, now = desk.event("invoice.paid"), desk.now
    theirs = stripe.WebhookSignature.generate_signature_header(body.decode(), SECRET, now)
    assert theirs == sign(body, now)
    _, signature = theirs.split(",")
    both = f"{sign(body, now, 'whsec_TheOldSecretOfLastWeek')},{signature}"
    event = verified(desk.settings, body, both, desk.clock)
    assert handle(desk.pm, desk.settings, event, desk.clock).endswith("taken")


def test_each_endpoint_has_a_secret_of_its_own(desk: Desk) -> None:
    """Thin events and the others come to two endpoints of Stripe's, and both may lead here."""
    made = WebhookSettings.from_environ({WEBHOOK_SECRET: f"{SECRET}, whsec_TheOtherEndpointsOwn"})
    assert made is not None
    body = desk.event("invoice.paid")
    for secret in (SECRET, "whsec_TheOtherEndpointsOwn"):
        assert verified(made, body, sign(body, desk.now, secret), desk.clock).type == "invoice.paid"
    with pytest.raises(BadSignature):
        verified(made, body, sign(body, desk.now, "whsec_OfNobodyAtAll0000"), desk.clock)


EVENT_HEAD = '"object": "event", "id": "evt_1", "type": "invoice.paid", "created": 1'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSONDecodeError"),
        (b"{", "JSONDecodeError"),
        (b"[]", "expected a JSON object, got list"),
        (b"null", "got NoneType"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b"1" * 5000, "ValueError"),
        (b'{"object": "event"}', "id: expected an id of Stripe's, got None"),
        (b'{"id": "evt_1"}', "evt_1: type: expected a type"),
        (b'{"id": "evt_\\ud800", "type": "invoice.paid"}', r"id: expected .* got 'evt_\\ud800'"),
        (b'{"id": "evt_1", "type": "\\ud800"}', "type: expected"),
        (b'{"object": "v2.core.event", "type": "v1.billing.meter.no_meter_found"}', "id: expected"),
    ],
)
def test_a_body_that_is_no_event_is_refused(desk: Desk, body: bytes, message: str) -> None:
    """Well signed, and still nothing to take."""
    with pytest.raises(BadEvent, match=message):
        desk.send(body)


@pytest.mark.parametrize(
    "created", ["null", "-1", "9223372036854775808", "1e30", "true", '"1"', "1.5"]
)
def test_an_odd_time_is_refused(desk: Desk, created: str) -> None:
    """What no file can keep, and what is no time, never gets that far."""
    head = f'"id": "evt_1", "type": "invoice.paid", "created": {created}'
    body = f'{{{head}, "data": {{"object": {{}}}}}}'
    with pytest.raises(BadEvent, match="evt_1: created: expected a whole number"):
        desk.send(body.encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("null", "data.object: expected an object, got None"),
        ("[]", "data.object"),
        ('{"object": []}', "data.object"),
        ('{"object": {}}', "the invoice's id: expected an id of Stripe's, got None"),
        ('{"object": {"id": 7}}', "the invoice's id"),
        ('{"object": {"id": "in_\\ud800", "customer": "cus_1"}}', "the invoice's id"),
        ('{"object": {"id": "in_1", "customer": 7}}', "customer: expected an id"),
        ('{"object": {"id": "in_1", "customer": {}}}', "customer: expected an id"),
        ('{"object": {"id": "in_1", "customer": "\\udfff"}}', "customer: expected an id"),
    ],
)
def test_an_odd_invoice_is_refused(desk: Desk, data: str, message: str) -> None:
    """Nothing of it is stored: Stripe delivers it again, or a person looks."""
    with pytest.raises(BadEvent, match=message):
        desk.send(f'{{{EVENT_HEAD}, "data": {data}}}'.encode())
    with tables(desk.pm) as conn:
        assert conn.execute("SELECT count(*) FROM billing_stripe_events").fetchone() == (0,)
        assert conn.execute("SELECT count(*) FROM billing_invoices").fetchone() == (0,)


@pytest.mark.parametrize("count", ["three", 1e30, -1, True, [], 10**7])
def test_an_odd_count_of_attempts_is_refused(desk: Desk, count: object) -> None:
    """Nobody is shut down by what is not understood."""
    with pytest.raises(BadEvent, match="attempt_count: expected a whole number"):
        desk.deliver("invoice.payment_failed", attempt_count=count, next_payment_attempt=None)
    with pytest.raises(BadEvent, match="next_payment_attempt: expected a whole number"):
        desk.deliver("invoice.payment_failed", attempt_count=1, next_payment_attempt="soon")
    assert desk.told() == []


def test_an_invoice_without_customer_is_left_alone(desk: Desk) -> None:
    """Accounts of API v2 pay it (`customer_account`): taken, so that Stripe does not deliver it for
    days.
    """
    done = desk.fail(4, again=False, customer=None, customer_account="acct_1")
    assert done.endswith("its invoice has no customer; left alone")
    assert desk.told() == []
