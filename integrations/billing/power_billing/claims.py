"""Which ledger bills a customer: only one, and the biller keeps which one.

Of a customer's events in an hour, Stripe's meter counts only the newest. Two ledgers that bill one
customer on one meter would replace each other's hours; if both had the same number, neither the
event's identifier nor Stripe's sums would show it. So a ledger claims a customer before it first
sends anything for it: it writes its id at the biller. The id is made once and goes wherever the
ledger's tables go. A customer that another ledger has claimed is held: its usage waits, every run
says so, and a person decides.

What follows from that:

- A restored backup and a ledger that is moved have the same id, and continue.
- A new ledger, begun because the old one is lost, has another id: nothing is billed twice. A person
  takes the customer over; hours that the biller has already are found there, or are conflicts.
- Two ledgers with different devices have to be added up. One meter cannot do that, so the second
  ledger gets a meter of its own, or one ledger bills all devices.
- A copy that runs beside its original has the same id and makes the same identifiers. Where the two
  have different values of an hour, that is a conflict; where they have the same value, it is one
  event, which is right as long as both measure the same devices. If one of them gets other devices,
  only the first hour that differs shows it.

Three other ways were considered. With the ledger's id in the event's identifier, Stripe would take
the second ledger's event at once in place of the first one's, and its sums, which follow later,
would show nothing where the numbers agree; with a common identifier Stripe refuses the second event
at once. Stripe's window does not know devices, so naming the device in the event does not help. And
a meter without a window would add the ledgers up, but its sums could no longer say whether an event
of more than a day ago, whose answer was lost, has arrived.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from power_billing.errors import BillingError, CannotSayNow
from power_billing.sinks import ClaimingSink
from power_billing.tables import Place, ledger_id, tables

NO_CUSTOMER = "the biller has no such customer"


@dataclass(frozen=True)
class Claim:
    """The ledger that bills a customer, as the biller said at a time (epoch seconds)."""

    ledger_id: str
    asked_at: float

    def is_fresh(self, now: float, seconds: float) -> bool:
        """Whether it was asked within so many seconds, either way: clocks may be set back."""
        return abs(now - self.asked_at) < seconds


def claims(conn: sqlite3.Connection) -> dict[str, Claim]:
    """What is known, by customer."""
    sql = """SELECT customer, ledger_id, ledger_asked_at FROM billing_customers
        WHERE ledger_id IS NOT NULL ORDER BY customer"""
    return {customer: Claim(owner, asked_at) for customer, owner, asked_at in conn.execute(sql)}


def note_claim(conn: sqlite3.Connection, customer: str, claim: Claim) -> None:
    """Keep the biller's answer."""
    sql = """INSERT INTO billing_customers (customer, ledger_id, ledger_asked_at) VALUES (?, ?, ?)
        ON CONFLICT (customer) DO UPDATE
            SET ledger_id = excluded.ledger_id, ledger_asked_at = excluded.ledger_asked_at"""
    conn.execute(sql, (customer, claim.ledger_id, claim.asked_at))


def forget_claims(conn: sqlite3.Connection) -> None:
    """Have all of them asked for again: usage goes elsewhere from now on."""
    conn.execute("UPDATE billing_customers SET ledger_id = NULL, ledger_asked_at = NULL")


def others_customers(conn: sqlite3.Connection) -> dict[str, str]:
    """The customers that another ledger bills, and its id."""
    ours = ledger_id(conn)
    return {
        customer: claim.ledger_id
        for customer, claim in claims(conn).items()
        if claim.ledger_id != ours
    }


def take_over(place: Place, sink: ClaimingSink, customer: str, now: float) -> None:
    """Bill a customer of another ledger from this one. Raises BillingError where that fails."""
    with tables(place) as conn:
        ours = ledger_id(conn)
    try:
        owner = sink.claim(customer, ours, take_over=True)
    except CannotSayNow as error:
        raise BillingError(f"{customer}: {error}") from None
    if owner is None:
        raise BillingError(f"{customer}: {NO_CUSTOMER}")
    with tables(place) as conn:
        note_claim(conn, customer, Claim(owner, now))


def waiting_reason(other_id: str) -> str:
    """Why the usage of another ledger's customer waits."""
    return f"the ledger {other_id} bills this customer: power-billing resolve"
