"""Stripe's invoices into `shutdown` and `restore` events: signals, on which the device decides.

Stripe delivers an event at least once and in any order. So its id is stored in the same transaction
as its effect, and what arrives late never undoes what is newer: a settled invoice stays settled,
and a failure counts by its attempt.

What else Stripe has to say about billing is noted for the next run with a key, which asks for the
present state: a subscription that ended, a customer that was deleted, meter events that were
refused after they had been taken.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from power_billing.customers import recheck_customer
from power_billing.errors import BillingError
from power_billing.hours import HOUR
from power_billing.keys import WEBHOOK_SECRET, Secret, is_set, read_secrets
from power_billing.links import linked_devices
from power_billing.signatures import (
    LATEST,
    BadEvent,
    BadSignature,
    StripeEvent,
    check_signature,
    parse_event,
    read_count,
    read_id,
)
from power_billing.sources import Devices
from power_billing.tables import LEDGER, LedgerFile, Place, tables
from power_manager import NotFound, PowerEventType, parse_number

__all__ = [
    "BadEvent",
    "BadSignature",
    "BillingError",
    "WebhookSettings",
    "handle",
    "tell_due",
    "verified",
]

POLICY = "POWER_BILLING_SHUTDOWN"
GRACE = "POWER_BILLING_GRACE_HOURS"
DEFAULT_POLICY = "final_attempt"
POLICIES = (DEFAULT_POLICY, "first_failure")
DEFAULT_GRACE_HOURS = 72.0  # a weekend
_MOST_GRACE_HOURS = 9999
_MOST_ATTEMPTS = 1_000_000

FAILED = "invoice.payment_failed"
SETTLED = ("invoice.paid", "invoice.voided")  # nothing is owed on a voided invoice
# Stripe will not try again: a mailed invoice is overdue, or a person has written it off.
GIVEN_UP = ("invoice.overdue", "invoice.marked_uncollectible")
CUSTOMER_CHANGED = ("customer.subscription.deleted", "customer.deleted")
REFUSED_EVENTS = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")


@dataclass(frozen=True)
class WebhookSettings:
    """What the environment says about webhooks.

    secrets: of each endpoint that Stripe knows here. policy: final_attempt (default; Stripe will
    not try again) or first_failure. grace_seconds: from then on. ledger: the ledger's own file;
    None (default): the library's.
    """

    secrets: tuple[Secret, ...]
    policy: str = DEFAULT_POLICY
    grace_seconds: float = DEFAULT_GRACE_HOURS * HOUR
    ledger: Place | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> WebhookSettings | None:
        """The settings in the environment; None: there are none. Raises BillingError for half."""
        if not is_set(environ, WEBHOOK_SECRET):
            for name in (POLICY, GRACE):
                if environ.get(name):
                    raise BillingError(
                        f"{name} is set and {WEBHOOK_SECRET} is not: set both, or neither"
                    )
            return None
        policy = environ.get(POLICY) or DEFAULT_POLICY
        if policy not in POLICIES:
            raise BillingError(f"{POLICY}: expected {' or '.join(POLICIES)}, got {policy!r}")
        grace_hours = _grace_hours(environ.get(GRACE) or str(DEFAULT_GRACE_HOURS))
        secrets = read_secrets(environ, WEBHOOK_SECRET)
        path = environ.get(LEDGER)
        ledger = LedgerFile(path) if path else None
        return cls(secrets, policy, grace_hours * HOUR, ledger)


def _grace_hours(text: str) -> float:
    """Hours from 0 to 9999. Raises BillingError for anything else."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        hours = parse_number(text, at_least=0)
        if hours <= _MOST_GRACE_HOURS:
            return float(hours)
    raise BillingError(f"{GRACE}: expected hours from 0 to {_MOST_GRACE_HOURS}, got {text!r}")


def verified(
    settings: WebhookSettings,
    body: bytes,
    signature: str | None,
    clock: Callable[[], float] = time.time,
) -> StripeEvent:
    """The event in a delivery: the raw body, and its Stripe-Signature header. Needs no database.

    Raises BadSignature and BadEvent.
    """
    check_signature(settings.secrets, body, signature, clock())
    return parse_event(body)


def handle(
    pm: Devices,
    settings: WebhookSettings,
    event: StripeEvent,
    clock: Callable[[], float] = time.time,
) -> str:
    """Take an event that is verified. Return what was done, for the log.

    Raises BadEvent and StorageError; then nothing is stored, and Stripe delivers it again.
    """
    take = _TAKES.get(event.type)
    if take is None:
        return f"{event.type}: not for this endpoint"
    now = clock()
    with tables(settings.ledger or pm) as conn:
        sql = "INSERT OR IGNORE INTO billing_stripe_events VALUES (?, ?)"
        created = now if event.thin else event.created
        if not conn.execute(sql, (event.id, int(created))).rowcount:
            return f"{event.type} {event.id}: known already"
        done = take(pm, conn, settings, event, now)
    return f"{event.type} {event.id}: {done}"


def tell_due(pm: Devices, conn: sqlite3.Connection, now: float) -> int:
    """Record `shutdown` once for the devices of customers whose grace is over; return how many.

    `now` is Stripe's clock where it can be asked: before the transaction, for that may take long.
    """
    sql = """SELECT invoice, customer FROM billing_invoices
        WHERE due_at <= ? AND NOT told AND NOT settled ORDER BY due_at"""
    # A device is held for one customer: link() frees it.
    hold = "INSERT OR IGNORE INTO billing_shutdowns VALUES (?, ?)"
    recorded = 0
    for invoice, customer in conn.execute(sql, (now,)).fetchall():
        conn.execute("UPDATE billing_invoices SET told = 1 WHERE invoice = ?", (invoice,))
        for device_id in linked_devices(conn, customer):
            if conn.execute(hold, (device_id, customer)).rowcount:
                note = f"billing: {invoice} is not paid"
                recorded += _tell(pm, device_id, PowerEventType.SHUTDOWN, note)
    return recorded


def shut_down_devices(conn: sqlite3.Connection) -> list[tuple[str, str]]:
    """The devices that were told to shut down and not yet to come back, with their customers."""
    sql = "SELECT device_id, customer FROM billing_shutdowns ORDER BY device_id"
    return conn.execute(sql).fetchall()


# --- Invoices


def _take_invoice(
    pm: Devices,
    conn: sqlite3.Connection,
    settings: WebhookSettings,
    event: StripeEvent,
    now: float,
) -> str:
    """An invoice failed, was given up, or was settled."""
    invoice = read_id(event.object.get("id"), f"{event.id}: the invoice's id")
    customer = _customer_of(event)
    if customer is None:  # an account of API v2 pays it: no device is linked to one
        return "its invoice has no customer; left alone"
    if event.type == FAILED and event.object.get("collection_method") == "send_invoice":
        # A card was tried on an invoice that came by mail, and which may not even be due.
        return "sent by mail: it counts when it is overdue"
    sql = "INSERT OR IGNORE INTO billing_invoices (invoice, customer) VALUES (?, ?)"
    conn.execute(sql, (invoice, customer))
    if event.type in SETTLED:
        conn.execute("UPDATE billing_invoices SET settled = 1 WHERE invoice = ?", (invoice,))
    elif event.type in GIVEN_UP:
        _give_up(conn, invoice, event.created)
    else:
        _fail(conn, invoice, event)
    _set_due(conn, invoice, settings)
    tell_due(pm, conn, now)  # before the next: another invoice may hold the devices from now on
    if event.type in SETTLED:
        _restore(pm, conn, invoice, customer)
    return "taken"


def _customer_of(event: StripeEvent) -> str | None:
    """The customer of an object, which may come as its id or whole; None where Stripe says null."""
    found = event.object.get("customer")
    if found is None:
        return None
    if isinstance(found, dict):
        found = found.get("id")
    return read_id(found, f"{event.id}: customer")


def _give_up(conn: sqlite3.Connection, invoice: str, at: int) -> None:
    """Note since when Stripe will not try again."""
    sql = """UPDATE billing_invoices SET given_up_at = min(coalesce(given_up_at, :at), :at)
        WHERE invoice = :invoice"""
    conn.execute(sql, {"at": at, "invoice": invoice})


def _fail(conn: sqlite3.Connection, invoice: str, event: StripeEvent) -> None:
    """Note a failed attempt; of two the later one counts."""
    attempt = event.object.get("attempt_count")
    attempt = (
        0 if attempt is None else read_count(attempt, f"{event.id}: attempt_count", _MOST_ATTEMPTS)
    )
    following = event.object.get("next_payment_attempt")
    if following is not None:
        read_count(following, f"{event.id}: next_payment_attempt", LATEST)
    values = {
        "invoice": invoice,
        "at": event.created,
        "attempt": attempt,
        "is_last": following is None,
    }
    sql = """UPDATE billing_invoices SET first_failed_at = min(coalesce(first_failed_at, :at), :at)
        WHERE invoice = :invoice"""
    conn.execute(sql, values)
    sql = """UPDATE billing_invoices
        SET attempt = :attempt, attempt_at = :at, attempt_is_last = :is_last
        WHERE invoice = :invoice AND (attempt, attempt_at) <= (:attempt, :at)"""
    conn.execute(sql, values)


def _set_due(conn: sqlite3.Connection, invoice: str, settings: WebhookSettings) -> None:
    """Work out from all that is known of the invoice when its customer's devices are told."""
    sql = """SELECT attempt_at, attempt_is_last, first_failed_at, given_up_at FROM billing_invoices
        WHERE invoice = ?"""
    attempt_at, attempt_is_last, first_failed_at, given_up_at = conn.execute(
        sql, (invoice,)
    ).fetchone()
    since = []
    if given_up_at is not None:
        since.append(given_up_at)
    if first_failed_at is not None and settings.policy == "first_failure":
        since.append(first_failed_at)
    if attempt_is_last and settings.policy == "final_attempt":
        since.append(attempt_at)
    due_at = min(since) + settings.grace_seconds if since else None
    conn.execute("UPDATE billing_invoices SET due_at = ? WHERE invoice = ?", (due_at, invoice))


def _restore(pm: Devices, conn: sqlite3.Connection, invoice: str, customer: str) -> None:
    """Tell the devices to come back after an invoice was settled, if no other one holds them."""
    sql = "SELECT count(*) FROM billing_invoices WHERE customer = ? AND told AND NOT settled"
    (unpaid,) = conn.execute(sql, (customer,)).fetchone()
    if unpaid:
        return
    sql = "SELECT device_id FROM billing_shutdowns WHERE customer = ? ORDER BY device_id"
    for (device_id,) in conn.execute(sql, (customer,)).fetchall():
        note = f"billing: nothing is owed for {invoice} now"
        _tell(pm, device_id, PowerEventType.RESTORE, note)
    conn.execute("DELETE FROM billing_shutdowns WHERE customer = ?", (customer,))


def _tell(pm: Devices, device_id: str, kind: PowerEventType, note: str) -> bool:
    """Record an event of a device; return whether the device still exists."""
    try:
        pm.trigger_event(device_id, kind, note=note)
    except NotFound:
        return False
    return True


# --- Noted for the next run


def _take_customer(
    _pm: Devices,
    conn: sqlite3.Connection,
    _settings: WebhookSettings,
    event: StripeEvent,
    _now: float,
) -> str:
    """Have Stripe asked about a customer whose subscription ended, or who was deleted."""
    customer = event.object.get("id") if event.type == "customer.deleted" else _customer_of(event)
    if customer is None:
        return "no customer; left alone"
    customer = read_id(customer, f"{event.id}: customer")
    if not linked_devices(conn, customer):
        return "no device is billed to it"
    recheck_customer(conn, customer)
    return "the next report looks at the customer"


def _take_error_report(
    _pm: Devices,
    conn: sqlite3.Connection,
    _settings: WebhookSettings,
    event: StripeEvent,
    now: float,
) -> str:
    """Stripe has refused meter events that it had taken; which ones, only the whole event says."""
    conn.execute("INSERT OR IGNORE INTO billing_error_reports VALUES (?, ?)", (event.id, now))
    return "the next report fetches it"


_Take = Callable[[Devices, sqlite3.Connection, WebhookSettings, StripeEvent, float], str]
_TAKES: dict[str, _Take] = {
    **dict.fromkeys((FAILED, *SETTLED, *GIVEN_UP), _take_invoice),
    **dict.fromkeys(CUSTOMER_CHANGED, _take_customer),
    **dict.fromkeys(REFUSED_EVENTS, _take_error_report),
}
