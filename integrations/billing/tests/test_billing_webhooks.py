"""Invoices that fail and are paid, in any order and more than once, into shutdown and restore
events.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from desk import DOWN, HOUR, SECRET, UP, Desk, thin_event
from power_billing.customers import note_customer
from power_billing.errors import BillingError
from power_billing.keys import WEBHOOK_SECRET
from power_billing.links import link, unlink
from power_billing.tables import LEDGER, LedgerFile, tables
from power_billing.webhooks import (
    GRACE,
    POLICY,
    WebhookSettings,
)
from world import CUSTOMER, World


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


def test_a_device_that_joins_a_customer_in_debt_is_told(desk: Desk) -> None:
    """Once; it comes back with the others, or at once when it leaves for somebody without debts."""
    desk.pm.register_device("late", "Late")
    desk.fail(4, again=False)
    link(desk.pm, "late", CUSTOMER, clock=desk.clock)
    assert desk.told() == [*DOWN, ("late", "shutdown")]
    unlink(desk.pm, "late", clock=desk.clock)
    link(desk.pm, "late", CUSTOMER, clock=desk.clock)
    assert desk.told() == [*DOWN, ("late", "shutdown")], "it knows"
    unlink(desk.pm, "late", clock=desk.clock)
    link(desk.pm, "late", "cus_Next", clock=desk.clock)
    assert desk.told() == [*DOWN, ("late", "shutdown"), ("late", "restore")]
    desk.pay()
    assert desk.told()[-2:] == UP


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


@pytest.mark.parametrize("customer", [{"id": CUSTOMER, "object": "customer"}, CUSTOMER])
def test_the_customer_may_come_expanded(desk: Desk, customer: object) -> None:
    """As an id or as an object."""
    desk.fail(4, again=False, customer=customer)
    assert desk.told() == DOWN


# --- Order and repetition


def test_a_deleted_device_holds_up_nothing(desk: Desk) -> None:
    """It is linked still, and the other device is told all the same, of the failure and of the
    payment.
    """
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
    """Three failures and the payment, in all 24 orders: the devices end up restored, or were never
    told.
    """
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
    assert desk.tell_due() == 2
    assert desk.told() == DOWN


def test_a_newer_attempt_undoes_a_final_one_that_is_not_due_yet(world: World) -> None:
    """Somebody has started the dunning again."""
    desk = Desk(world, grace_hours=1)
    desk.fail(4, again=False, at=desk.now - 60)
    desk.fail(5, again=True, at=desk.now - 30)
    desk.now += 2 * HOUR
    assert desk.tell_due() == 0


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
    edge_down, _ = DOWN
    edge_up, twin_up = UP
    assert desk.told() == [*DOWN, edge_up]
    desk.fail(4, again=False, **theirs)
    desk.pay()
    assert desk.told() == [*DOWN, edge_up, edge_down, twin_up]
    desk.pay(**theirs)
    assert desk.told() == [*DOWN, edge_up, edge_down, twin_up, edge_up]


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
    assert desk.tell_due(HOUR - 1.0) == 0
    assert desk.tell_due(HOUR) == 2
    assert desk.tell_due(HOUR + 1.0) == 0
    assert desk.told() == DOWN


def test_payment_within_the_grace_period_cancels(world: World) -> None:
    """Nobody is told anything."""
    desk = Desk(world, grace_hours=2)
    desk.fail(4, again=False)
    desk.pay()
    assert desk.tell_due(9 * HOUR) == 0
    assert desk.told() == []


def test_any_delivery_tells_what_is_due(world: World) -> None:
    """Also one about somebody else."""
    desk = Desk(world, grace_hours=2)
    desk.fail(4, again=False)
    desk.now += 2 * HOUR
    desk.fail(1, again=True, customer="cus_Stranger", id="evt_x")
    assert desk.told() == DOWN


# --- Invoices that come by mail


@pytest.mark.parametrize("kind", ["invoice.overdue", "invoice.marked_uncollectible"])
@pytest.mark.parametrize("policy", ["final_attempt", "first_failure"])
def test_an_invoice_that_is_given_up_shuts_down(world: World, kind: str, policy: str) -> None:
    """After the grace period, and payment brings the devices back."""
    desk = Desk(world, policy, grace_hours=2)
    desk.deliver(kind, collection_method="send_invoice", attempt_count=0, next_payment_attempt=None)
    assert desk.tell_due(2 * HOUR - 1) == 0
    assert desk.tell_due(2 * HOUR) == 2
    desk.pay()
    assert desk.told() == DOWN + UP


def test_a_card_that_fails_on_a_mailed_invoice_is_no_final_attempt(desk: Desk) -> None:
    """Stripe never tries by itself there, so next_payment_attempt is null from the start, long
    before it is due.
    """
    done = desk.fail(1, again=False, collection_method="send_invoice")
    assert done.endswith("sent by mail: it counts when it is overdue")
    assert desk.told() == []
    desk.deliver("invoice.overdue", collection_method="send_invoice")
    assert desk.told() == DOWN


def test_a_newer_attempt_does_not_undo_an_overdue_invoice(world: World) -> None:
    """Whatever the order: the first time that it was given up counts."""
    desk = Desk(world, grace_hours=1)
    desk.deliver("invoice.marked_uncollectible", at=desk.now)
    desk.deliver("invoice.overdue", at=desk.now - 600)
    desk.fail(2, again=True, at=desk.now - 300)
    assert desk.tell_due(HOUR - 601) == 0
    assert desk.tell_due(HOUR - 600) == 2


# --- What the next report looks at


def rows(desk: Desk, sql: str) -> list[tuple[object, ...]]:
    """Rows of this package's tables."""
    with tables(desk.pm) as conn:
        return list(conn.execute(sql))


@pytest.mark.parametrize("kind", ["customer.subscription.deleted", "customer.deleted"])
def test_a_customer_that_changed_is_looked_at_by_the_next_report(desk: Desk, kind: str) -> None:
    """Whether the usage still reaches an invoice, only Stripe can say; strangers are of no
    interest.
    """
    named = {"invoice": CUSTOMER, "customer": CUSTOMER}
    assert desk.deliver(kind, **named).endswith("the next report looks at the customer")
    stranger = {"invoice": "cus_Stranger", "customer": "cus_Stranger"}
    assert desk.deliver(kind, **stranger).endswith("no device is billed to it")
    assert rows(desk, "SELECT customer, checked_at FROM billing_customers") == [(CUSTOMER, None)]
    assert desk.told() == []


def test_a_customer_that_was_looked_at_is_looked_at_again(desk: Desk) -> None:
    """What was found before is no answer to what came since."""
    with tables(desk.pm) as conn:
        note_customer(conn, CUSTOMER, 1.0, None, False)
    desk.deliver("customer.subscription.deleted", invoice="sub_1")
    assert rows(desk, "SELECT customer, checked_at FROM billing_customers") == [(CUSTOMER, None)]


@pytest.mark.parametrize("kind", ["error_report_triggered", "no_meter_found"])
def test_a_thin_event_of_refused_meter_events_is_noted(desk: Desk, kind: str) -> None:
    """It says nothing but its id: the next report, which has a key, fetches the rest. Twice is
    once.
    """
    body = thin_event(f"v1.billing.meter.{kind}", "evt_thin_1")
    assert desk.send(body).endswith("the next report fetches it")
    assert desk.send(body).endswith("known already")
    assert rows(desk, "SELECT id FROM billing_error_reports") == [("evt_thin_1",)]


def test_other_thin_events_are_answered_and_forgotten(desk: Desk) -> None:
    """Also the ping that Stripe sends to try an endpoint."""
    body = thin_event("v2.core.event_destination.ping", "evt_ping")
    assert desk.send(body) == "v2.core.event_destination.ping: not for this endpoint"


def test_other_events_are_answered_and_forgotten(desk: Desk) -> None:
    """An endpoint that is told too much does not mind."""
    assert (
        desk.deliver("customer.created", invoice="cus_1")
        == "customer.created: not for this endpoint"
    )


# --- Settings


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    """Defaults: final attempt, 72 hours."""
    made = WebhookSettings.from_environ({WEBHOOK_SECRET: SECRET})
    assert made is not None
    assert (made.policy, made.grace_seconds) == ("final_attempt", 72 * HOUR)
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    made = WebhookSettings.from_environ(
        {WEBHOOK_SECRET + "_FILE": str(file), POLICY: "first_failure", GRACE: "1.5"}
    )
    assert made is not None
    assert (made.policy, made.grace_seconds) == ("first_failure", 5400)
    assert SECRET not in repr(made)
    assert WebhookSettings.from_environ({WEBHOOK_SECRET: ""}) is None


def test_a_ledger_of_its_own_gets_the_deliveries(desk: Desk, tmp_path: Path) -> None:
    """The same variable as for the command line: the devices are in one file, and who is billed is
    in the other.
    """
    ledger = tmp_path / "ledger.db"
    found = WebhookSettings.from_environ({WEBHOOK_SECRET: SECRET, GRACE: "0", LEDGER: str(ledger)})
    assert found is not None
    link(desk.pm, "edge", "cus_Other", ledger=LedgerFile(ledger))
    desk.settings = found
    desk.fail(4, again=False, customer="cus_Other")
    assert desk.told() == DOWN[:1]


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
