"""Invoices that fail and are paid, in any order and more than once, into shutdown and restore events."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import time
from pathlib import Path

import pytest
import stripe
from power_billing.errors import BillingError
from power_billing.keys import WEBHOOK_SECRET, Secret
from power_billing.links import link, unlink
from power_billing.tables import tables
from power_billing.webhooks import (
    GRACE,
    POLICY,
    BadEvent,
    BadSignature,
    WebhookSettings,
    handle,
    tell_due,
    verified,
)
from world import CUSTOMER, World

from power_manager import PowerManager

SECRET = "whsec_Ab3dEf6hIj9kLmN0pQrStUv"
HOUR = 3600


class Desk:
    """A customer with two devices, and Stripe that delivers. `now` is what this machine's clock says."""

    def __init__(
        self, world: World, policy: str = "final_attempt", grace_hours: float = 0.0
    ) -> None:
        self.pm, self.now = world.pm, int(time.time())
        world.now = float(self.now)
        world.add_device("twin")
        world.link(hours_ago=1)
        world.link("twin", hours_ago=1)
        self.settings = WebhookSettings(Secret(WEBHOOK_SECRET, SECRET), policy, grace_hours * HOUR)
        self._ids = itertools.count()

    def event(self, kind: str, **invoice: object) -> bytes:
        """An event as Stripe writes it; `at` is when it was made; `id` and `invoice` are ids."""
        made = {
            "id": invoice.pop("id", f"evt_{next(self._ids)}"),
            "object": "event",
            "api_version": "2026-10-28.endive",
            "created": invoice.pop("at", self.now),
            "livemode": False,
            "type": kind,
            "data": {
                "object": {
                    "id": invoice.pop("invoice", "in_1"),
                    "object": "invoice",
                    "customer": CUSTOMER,
                    **invoice,
                }
            },
        }
        return json.dumps(made).encode()

    def deliver(self, kind: str, **invoice: object) -> str:
        """Deliver a new event, signed."""
        return self.send(self.event(kind, **invoice))

    def send(self, body: bytes) -> str:
        """Deliver a body, signed now."""
        event = verified(self.settings, body, sign(body, int(time.time())), lambda: float(self.now))
        return handle(self.pm, self.settings, event, lambda: float(self.now))

    def fail(self, attempt: int, again: bool, **invoice: object) -> str:
        """A payment has failed; Stripe will try again, or not."""
        following = self.now + 86_400 if again else None
        return self.deliver(
            "invoice.payment_failed",
            attempt_count=attempt,
            next_payment_attempt=following,
            **invoice,
        )

    def pay(self, **invoice: object) -> str:
        """The invoice is paid."""
        return self.deliver("invoice.paid", attempt_count=1, next_payment_attempt=None, **invoice)

    def told(self) -> list[tuple[str, str]]:
        """Device and event, in order of recording."""
        return [(event.device_id, event.type.value) for _, event in self.pm.events_since(0)]


DOWN = [("edge", "shutdown"), ("twin", "shutdown")]
UP = [("edge", "restore"), ("twin", "restore")]


def sign(body: bytes, at: int, secret: str = SECRET) -> str:
    """The header that Stripe would send: an HMAC made by hand."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


@pytest.fixture
def desk(world: World) -> Desk:
    """Policy final_attempt, no grace."""
    return Desk(world)


def test_the_final_failure_shuts_down_and_payment_restores(desk: Desk) -> None:
    """Each device of the customer once, and back once."""
    desk.fail(4, again=False)
    assert desk.told() == DOWN
    desk.pay()
    assert desk.told() == DOWN + UP


def test_earlier_failures_shut_nothing_down(desk: Desk) -> None:
    """Stripe tries again: next_payment_attempt says when."""
    desk.fail(1, again=True)
    desk.fail(2, again=True)
    assert desk.told() == []


def test_the_first_failure_is_enough_by_that_policy(world: World) -> None:
    """first_failure does not wait for further attempts."""
    desk = Desk(world, "first_failure")
    desk.fail(1, again=True)
    desk.fail(2, again=True)
    assert desk.told() == DOWN


def test_payment_without_shutdown_restores_nothing(desk: Desk) -> None:
    """A customer who pays every month hears nothing of it."""
    desk.pay()
    assert desk.told() == []


def test_other_customers_devices_are_left_alone(desk: Desk) -> None:
    """Also where nobody is linked to the customer."""
    desk.fail(4, again=False, customer="cus_Stranger")
    assert desk.told() == []


def test_devices_of_ended_links_are_left_alone(desk: Desk, world: World) -> None:
    """Who is no longer billed is not shut down."""
    unlink(desk.pm, "twin")
    desk.fail(4, again=False)
    assert desk.told() == DOWN[:1]


def test_a_device_that_is_linked_later_is_not_told(desk: Desk, world: World) -> None:
    """Who links it knows what is owed."""
    desk.fail(4, again=False)
    world.add_device("new")
    world.link("new", hours_ago=1)
    tell_due(desk.pm)
    assert desk.told() == DOWN


@pytest.mark.parametrize("customer", [{"id": CUSTOMER, "object": "customer"}, CUSTOMER])
def test_the_customer_may_come_expanded(desk: Desk, customer: object) -> None:
    """As an id or as an object."""
    desk.fail(4, again=False, customer=customer)
    assert desk.told() == DOWN


# --- Order and repetition


def test_a_deleted_device_holds_up_nothing(desk: Desk) -> None:
    """It is linked still, and the other device is told all the same, of the failure and of the payment."""
    desk.fail(1, again=False)
    desk.pm.delete_device("twin")
    desk.deliver("invoice.paid")
    desk.fail(1, again=False, invoice="in_2")
    assert desk.told() == [("edge", "shutdown"), ("edge", "restore"), ("edge", "shutdown")]


def test_an_event_counts_once(desk: Desk) -> None:
    """The same id again is answered well and does nothing."""
    body = desk.event("invoice.payment_failed", attempt_count=4, next_payment_attempt=None)
    assert desk.send(body).endswith("taken")
    assert desk.send(body).endswith("known already")
    assert desk.told() == DOWN


def test_any_order_ends_the_same() -> None:
    """Three failures and the payment, in all 24 orders: the devices end up restored, or were never told."""
    for order in itertools.permutations(range(4)):
        desk = Desk(World(":memory:"))
        start = desk.now - 4 * 86_400
        for number in order:
            at = start + number * 86_400
            if number == 3:
                desk.pay(at=at)
            else:
                desk.fail(number + 1, again=number < 2, at=at)
        assert [kind for _, kind in desk.told()] in ([], ["shutdown"] * 2 + ["restore"] * 2), order
        desk.pm.close()


def test_an_older_failure_does_not_undo_the_final_one(world: World) -> None:
    """Attempt 1 arrives after attempt 4, within the grace period: the shutdown stays due."""
    desk = Desk(world, grace_hours=1)
    desk.fail(4, again=False, at=desk.now - 60)
    desk.fail(1, again=True, at=desk.now - 86_400)
    desk.now += HOUR
    assert tell_due(desk.pm, lambda: float(desk.now)) == 2
    assert desk.told() == DOWN


def test_a_newer_attempt_undoes_a_final_one_that_is_not_due_yet(world: World) -> None:
    """Somebody has started the dunning again."""
    desk = Desk(world, grace_hours=1)
    desk.fail(4, again=False, at=desk.now - 60)
    desk.fail(5, again=True, at=desk.now - 30)
    desk.now += 2 * HOUR
    assert tell_due(desk.pm, lambda: float(desk.now)) == 0


def test_a_failure_after_payment_does_nothing(desk: Desk) -> None:
    """It was made before, and comes late."""
    desk.pay()
    desk.fail(4, again=False, at=desk.now - 60)
    assert desk.told() == []


def test_two_unpaid_invoices_need_two_payments(desk: Desk) -> None:
    """The devices come back when nothing is owed."""
    desk.fail(4, again=False)
    desk.fail(4, again=False, invoice="in_2")
    desk.pay()
    assert desk.told() == DOWN
    desk.pay(invoice="in_2")
    assert desk.told() == DOWN + UP


def test_a_voided_invoice_is_owed_by_nobody(desk: Desk) -> None:
    """It settles as a payment does."""
    desk.fail(4, again=False)
    desk.deliver("invoice.voided")
    assert desk.told() == DOWN + UP


def test_a_device_that_changes_hands_comes_back(desk: Desk) -> None:
    """What its old customer owes holds it no longer, and what its new one owes does."""
    theirs = {"customer": "cus_Next", "invoice": "in_2"}
    desk.fail(4, again=False)
    unlink(desk.pm, "edge")
    assert desk.told() == DOWN
    link(desk.pm, "edge", "cus_Next")
    assert desk.told() == [*DOWN, UP[0]]
    desk.fail(4, again=False, **theirs)
    desk.pay()
    assert desk.told() == [*DOWN, UP[0], DOWN[0], UP[1]]
    desk.pay(**theirs)
    assert desk.told() == [*DOWN, UP[0], DOWN[0], UP[1], UP[0]]


def test_a_device_that_is_linked_to_its_customer_again_stays_down(desk: Desk) -> None:
    """Unlinking and linking is no way around a debt."""
    desk.fail(4, again=False)
    unlink(desk.pm, "edge")
    link(desk.pm, "edge", CUSTOMER)
    assert desk.told() == DOWN
    desk.pay()
    assert desk.told() == DOWN + UP


def test_an_invoice_that_falls_due_keeps_the_devices_down(world: World) -> None:
    """They are not told to come back for one invoice and to go for another at once."""
    desk = Desk(world, grace_hours=1)
    desk.fail(4, again=False, at=desk.now - 2 * HOUR)
    desk.fail(4, again=False, invoice="in_2")
    desk.now += 2 * HOUR
    desk.pay()
    assert desk.told() == DOWN
    desk.pay(invoice="in_2")
    assert desk.told() == DOWN + UP


def test_the_id_is_kept_with_its_effect_or_not_at_all(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the shutdown cannot be recorded, the delivery is not known, and the next one does it."""
    body = desk.event("invoice.payment_failed", attempt_count=4, next_payment_attempt=None)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("as told")

    with monkeypatch.context() as patch:
        patch.setattr(desk.pm, "trigger_event", broken)
        with pytest.raises(RuntimeError):
            desk.send(body)
    assert desk.send(body).endswith("taken")
    assert desk.told() == DOWN


# --- Grace


def test_the_grace_period_runs_by_stripes_clock(world: World) -> None:
    """From when the event was made, not from when it arrived."""
    desk = Desk(world, grace_hours=2)
    desk.fail(4, again=False, at=desk.now - HOUR)
    assert tell_due(desk.pm, lambda: desk.now + HOUR - 1.0) == 0
    assert tell_due(desk.pm, lambda: desk.now + HOUR + 0.0) == 2
    assert tell_due(desk.pm, lambda: desk.now + HOUR + 1.0) == 0
    assert desk.told() == DOWN


def test_the_clock_is_asked_before_the_file_is_locked(world: World) -> None:
    """It may be Stripe's, over a network: another process writes meanwhile."""
    desk = Desk(world, grace_hours=2)
    desk.fail(4, again=False)

    def clock() -> float:
        with PowerManager(desk.pm.db_path) as other:
            other.trigger_event("edge", "restore")
        return desk.now + 2.0 * HOUR

    assert tell_due(desk.pm, clock) == 2
    assert desk.told() == [UP[0], *DOWN]


def test_payment_within_the_grace_period_cancels(world: World) -> None:
    """Nobody is told anything."""
    desk = Desk(world, grace_hours=2)
    desk.fail(4, again=False)
    desk.pay()
    assert tell_due(desk.pm, lambda: desk.now + 9.0 * HOUR) == 0
    assert desk.told() == []


def test_any_delivery_tells_what_is_due(world: World) -> None:
    """Also one about somebody else."""
    desk = Desk(world, grace_hours=2)
    desk.fail(4, again=False)
    desk.now += 2 * HOUR
    desk.fail(1, again=True, customer="cus_Stranger", id="evt_x")
    assert desk.told() == DOWN


# --- What is not Stripe's


@pytest.mark.parametrize(
    ("at", "secret", "change", "message"),
    [
        (0, SECRET, b" ", "the signature is not Stripe's"),
        (0, "whsec_AnotherSecretAltogether", b"", "the signature is not Stripe's"),
        (-310, SECRET, b"", "older than 5 minutes"),
        (310, SECRET, b"", "more than 5 minutes ahead"),
        (3600, SECRET, b"", "more than 5 minutes ahead"),
    ],
    ids=["tampered", "another secret", "old", "ahead", "an hour ahead"],
)
def test_a_bad_signature_is_refused(
    desk: Desk, at: int, secret: str, change: bytes, message: str
) -> None:
    """Nothing is stored, and the secret is not named."""
    body = desk.event("invoice.paid")
    header = sign(body, int(time.time()) + at, secret)
    with pytest.raises(BadSignature, match=message) as caught:
        verified(desk.settings, body + change, header)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("written", ["+{}", " {}", "{:_}"])
def test_a_time_ahead_is_read_as_the_sdk_reads_it(desk: Desk, written: str) -> None:
    """int() takes more than digits, and what is signed is the number."""
    body, at = desk.event("invoice.paid"), int(time.time()) + 3600
    header = sign(body, at).replace(f"t={at}", "t=" + written.format(at))
    with pytest.raises(BadSignature, match="more than 5 minutes ahead"):
        verified(desk.settings, body, header)


@pytest.mark.parametrize("header", [None, "", "t=1", "v1=00", "t=x,v1=00", "\x00"])
def test_a_header_that_is_none_is_refused(desk: Desk, header: str | None) -> None:
    """Missing, empty or half of one."""
    with pytest.raises(BadSignature):
        verified(desk.settings, desk.event("invoice.paid"), header)


def test_a_rolled_secret_leaves_two_signatures(desk: Desk) -> None:
    """One of them is ours; the SDK's own helper agrees with the HMAC made by hand."""
    body, now = desk.event("invoice.paid"), int(time.time())
    theirs = stripe.WebhookSignature.generate_signature_header(body.decode(), SECRET, now)
    assert theirs == sign(body, now)
    both = sign(body, now, "whsec_TheOldSecretOfLastWeek") + "," + theirs.split(",")[1]
    assert handle(desk.pm, desk.settings, verified(desk.settings, body, both)).endswith("taken")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"object": "event"}',
        b'{"object": "event", "id": "evt_1", "type": "invoice.paid", "created": 1, "data": {"object": {}}}',
        b'{"object": "event", "id": "evt_1", "type": "invoice.paid", "created": 1, "data": {"object": {"id": "in_1"}}}',
        b'{"object": "event", "id": "evt_1", "type": "invoice.paid", "created": 1, "data": null}',
        b'{"object": "event", "id": "evt_1", "type": "invoice.paid", "created": 1, "data": []}',
        b'{"object": "event", "id": 7, "type": "invoice.paid", "created": 1, "data": {"object": {"id": "in_1"}}}',
        b'{"object": "v2.core.event", "id": "evt_1", "type": "v1.billing.meter.error_report_triggered"}',
    ],
)
def test_a_body_that_is_no_event_is_refused(desk: Desk, body: bytes) -> None:
    """Well signed, and still nothing to take: also the thin events of v2."""
    with pytest.raises(BadEvent):
        desk.send(body)
    with tables(desk.pm) as conn:
        assert conn.execute("SELECT count(*) FROM billing_stripe_events").fetchone() == (0,)


def test_other_events_are_answered_and_forgotten(desk: Desk) -> None:
    """An endpoint that is told too much does not mind."""
    assert desk.deliver("customer.created") == "customer.created: not for this endpoint"


# --- Settings


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    """Defaults: final attempt, 72 hours."""
    made = WebhookSettings.from_environ({WEBHOOK_SECRET: SECRET})
    assert made is not None
    assert (made.policy, made.grace_seconds) == ("final_attempt", 72 * HOUR)
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    made = WebhookSettings.from_environ(
        {WEBHOOK_SECRET + "_FILE": str(file), POLICY: "first_failure", GRACE: "1.5"}
    )
    assert made is not None
    assert (made.policy, made.grace_seconds) == ("first_failure", 5400)
    assert SECRET not in repr(made)
    assert WebhookSettings.from_environ({WEBHOOK_SECRET: ""}) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {POLICY: "final_attempt"},
            "POWER_BILLING_SHUTDOWN is set and STRIPE_WEBHOOK_SECRET is not",
        ),
        ({GRACE: "1"}, "POWER_BILLING_GRACE_HOURS is set and"),
        (
            {WEBHOOK_SECRET: SECRET, POLICY: "at_once"},
            "expected final_attempt or first_failure, got 'at_once'",
        ),
        ({WEBHOOK_SECRET: SECRET, GRACE: "-1"}, "expected hours from 0 to 9999, got '-1'"),
        ({WEBHOOK_SECRET: SECRET, GRACE: "nan"}, "expected hours"),
        ({WEBHOOK_SECRET: "whsec_..."}, "a placeholder"),
        ({WEBHOOK_SECRET: SECRET, WEBHOOK_SECRET + "_FILE": "/x"}, "both are set"),
        ({WEBHOOK_SECRET + "_FILE": "/does/not/exist"}, "cannot be read: FileNotFoundError"),
    ],
)
def test_half_a_configuration_is_refused(environ: dict[str, str], message: str) -> None:
    """With the name of what is wrong."""
    with pytest.raises(BillingError, match=message):
        WebhookSettings.from_environ(environ)
