"""Stripe's invoices into `shutdown` and `restore` events: signals, on which the device decides.

Stripe delivers an event at least once and in any order. So its id is stored in the same transaction as its effect, and
what arrives late never undoes what is newer: a settled invoice stays settled, and a failure counts by its attempt.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import stripe

from power_billing.errors import BillingError
from power_billing.hours import HOUR
from power_billing.keys import WEBHOOK_SECRET, Secret, is_set, read_secret
from power_billing.links import linked_devices
from power_billing.tables import Place, tables
from power_manager import NotFound, PowerEventType, PowerManager

TOLERANCE = 300  # seconds between a signature's time and now, either way
POLICY = "POWER_BILLING_SHUTDOWN"
GRACE = "POWER_BILLING_GRACE_HOURS"
POLICIES = ("final_attempt", "first_failure")
DEFAULT_GRACE_HOURS = 72.0  # a weekend
_SETTLED = ("invoice.paid", "invoice.voided")  # a voided invoice is owed by nobody


class BadSignature(BillingError):
    """Not from Stripe, or not from now."""


class BadEvent(BillingError):
    """From Stripe, and not an event that a webhook endpoint like this one can take."""


@dataclass(frozen=True)
class WebhookSettings:
    """policy: final_attempt (default; Stripe will not try again) or first_failure. grace_seconds: from then on."""

    secret: Secret
    policy: str = POLICIES[0]
    grace_seconds: float = DEFAULT_GRACE_HOURS * HOUR

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> WebhookSettings | None:
        """The settings in the environment; None where there are none at all. Raises BillingError for half of them."""
        given = [name for name in (POLICY, GRACE) if environ.get(name)]
        if not is_set(environ, WEBHOOK_SECRET):
            if given:
                raise BillingError(
                    f"{given[0]} is set and {WEBHOOK_SECRET} is not: set both, or neither"
                )
            return None
        policy, grace = (
            environ.get(POLICY) or POLICIES[0],
            environ.get(GRACE) or str(DEFAULT_GRACE_HOURS),
        )
        if policy not in POLICIES:
            raise BillingError(f"{POLICY}: expected {' or '.join(POLICIES)}, got {policy!r}")
        if not re.fullmatch(r"\d{1,4}(\.\d+)?", grace):
            raise BillingError(f"{GRACE}: expected hours from 0 to 9999, got {grace!r}")
        return cls(read_secret(environ, WEBHOOK_SECRET), policy, float(grace) * HOUR)


def verified(
    settings: WebhookSettings,
    body: bytes,
    signature: str | None,
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """The event in a delivery: the raw body, and its Stripe-Signature header. Needs no database.

    Raises BadSignature and BadEvent.
    """
    try:
        event = stripe.Webhook.construct_event(body, signature, settings.secret.reveal(), TOLERANCE)
        found: dict[str, Any] = event.to_dict()
    except stripe.SignatureVerificationError:
        raise BadSignature("the signature is not Stripe's, or older than 5 minutes") from None
    except (
        ValueError,
        TypeError,
        AttributeError,
    ) as error:  # also a thin event of v2: parse_event_notification's
        raise BadEvent(f"not a webhook event: {type(error).__name__}") from None
    # The SDK looks at the past only: a header from the future could be kept and played back for long.
    # Read as the SDK has read it: int() takes more than digits, and what it took is what was signed.
    at = next(part.split("=")[1] for part in str(signature).split(",") if part.split("=")[0] == "t")
    if int(at) > clock() + TOLERANCE:
        raise BadSignature("the signature is dated more than 5 minutes ahead")
    wrong = [
        name
        for name, kind in {"id": str, "created": int, "type": str}.items()
        if type(found.get(name)) is not kind
    ]
    data = found.get("data")
    if wrong or not isinstance(data, dict) or not isinstance(data.get("object"), dict):
        raise BadEvent(
            f"an event needs id, created, type and data.object: look at {wrong or 'data'}"
        )
    return found


def handle(
    pm: PowerManager,
    settings: WebhookSettings,
    event: Mapping[str, Any],
    clock: Callable[[], float] = time.time,
    ledger: Place | None = None,
) -> str:
    """Take an event that is verified. Return what was done, for the log. ledger: the library's file by default.

    Raises BadEvent and StorageError; then nothing is stored, and Stripe delivers it again.
    """
    kind = str(event.get("type"))
    if kind != "invoice.payment_failed" and kind not in _SETTLED:
        return f"{kind}: not for this endpoint"
    with tables(ledger or pm) as conn:
        row = (str(event["id"]), kind, int(event["created"]))
        if not conn.execute(
            "INSERT OR IGNORE INTO billing_stripe_events VALUES (?, ?, ?)", row
        ).rowcount:
            return f"{kind} {event['id']}: known already"
        invoice = event["data"]["object"]
        customer = _id(invoice.get("customer"))
        if customer is None or _id(invoice) is None:
            raise BadEvent(f"{kind} {event['id']}: its invoice has no id or no customer")
        conn.execute(
            "INSERT OR IGNORE INTO billing_invoices (invoice, customer) VALUES (?, ?)",
            (_id(invoice), customer),
        )
        if kind in _SETTLED:
            conn.execute(
                "UPDATE billing_invoices SET settled = 1 WHERE invoice = ?", (invoice["id"],)
            )
        else:
            _fail(conn, invoice, int(event["created"]), settings)
        _tell_due(
            pm, conn, clock()
        )  # before the next: another invoice may hold the devices from now on
        if kind in _SETTLED:
            _restore(pm, conn, invoice, customer)
    return f"{kind} {event['id']}: taken"


def tell_due(
    pm: PowerManager, clock: Callable[[], float] = time.time, ledger: Place | None = None
) -> int:
    """Record the shutdown events whose grace period is over; return how many. `report` does so at each run."""
    now = clock()  # it may be Stripe's, over a network: not while the file is locked
    with tables(ledger or pm) as conn:
        return _tell_due(pm, conn, now)


# --- Invoices


def _id(value: Any) -> str | None:
    """The id of an object that may come as its id alone."""
    found = value.get("id") if isinstance(value, dict) else value
    return found if isinstance(found, str) and found else None


def _fail(
    conn: sqlite3.Connection, invoice: dict[str, Any], created: int, settings: WebhookSettings
) -> None:
    """Note a failed attempt, and when the customer's devices are to be told unless the invoice is settled."""
    sql = "SELECT attempt, attempt_at, first_failed_at, due_at FROM billing_invoices WHERE invoice = ?"
    attempt, attempt_at, first, due = conn.execute(sql, (invoice["id"],)).fetchone()
    first = created if first is None else min(first, created)
    this = (int(invoice.get("attempt_count") or 0), created)
    newest = this >= (attempt, attempt_at)
    if settings.policy == "first_failure":
        due = first + settings.grace_seconds
    elif newest:
        final = invoice.get("next_payment_attempt") is None
        due = created + settings.grace_seconds if final else None
    if newest:
        attempt, attempt_at = this
    conn.execute(
        "UPDATE billing_invoices SET attempt = ?, attempt_at = ?, first_failed_at = ?, due_at = ? WHERE invoice = ?",
        (attempt, attempt_at, first, due, invoice["id"]),
    )


def _restore(
    pm: PowerManager, conn: sqlite3.Connection, invoice: dict[str, Any], customer: str
) -> None:
    """Tell the devices to come back after an invoice was settled, if no other one holds them."""
    sql = "SELECT count(*) FROM billing_invoices WHERE customer = ? AND told AND NOT settled"
    (unpaid,) = conn.execute(sql, (customer,)).fetchone()
    if unpaid:
        return
    told = conn.execute(
        "SELECT device_id FROM billing_shutdowns WHERE customer = ? ORDER BY 1", (customer,)
    ).fetchall()
    for (device_id,) in told:
        note = f"billing: nothing is owed for {invoice['id']} any more"
        _tell(pm, device_id, PowerEventType.RESTORE, note)
    conn.execute("DELETE FROM billing_shutdowns WHERE customer = ?", (customer,))


def _tell_due(pm: PowerManager, conn: sqlite3.Connection, now: float) -> int:
    """Record `shutdown` for the devices of customers whose grace period is over, once each."""
    sql = """SELECT invoice, customer FROM billing_invoices
        WHERE due_at <= ? AND NOT told AND NOT settled ORDER BY due_at"""
    hold = "INSERT OR IGNORE INTO billing_shutdowns VALUES (?, ?)"  # of one customer each: link() frees a device
    recorded = 0
    for invoice, customer in conn.execute(sql, (now,)).fetchall():
        conn.execute("UPDATE billing_invoices SET told = 1 WHERE invoice = ?", (invoice,))
        for device_id in linked_devices(conn, customer):
            if conn.execute(hold, (device_id, customer)).rowcount:
                note = f"billing: {invoice} is not paid"
                recorded += _tell(pm, device_id, PowerEventType.SHUTDOWN, note)
    return recorded


def _tell(pm: PowerManager, device_id: str, kind: PowerEventType, note: str) -> bool:
    """Record an event of a device; return whether it is still there: a deleted one has nothing to be told."""
    try:
        pm.trigger_event(device_id, kind, note=note)
    except NotFound:
        return False
    return True
