"""Which ledger bills a customer: one alone, and which one stands at the biller.

Of a customer's events in an hour Stripe's meter counts the newest alone. Two ledgers that bill one customer on one
meter would replace each other's hours; and where both say the same number, neither the event's identifier nor Stripe's
sums would show it. So a ledger claims a customer before it first sends anything for it: its id, which is made once and
goes wherever the ledger's tables go, is written down at the biller. A customer that another ledger has claimed is held:
its usage waits, every run says so, and a person decides.

What follows from that:

- A restored backup, or a ledger that is moved, has the same id, and goes on.
- A ledger that is begun anew, because the old one is lost, has another: nothing is billed twice. A person takes the
  customer over; then hours that the biller has already are found there, or are conflicts.
- Two ledgers whose devices are others are to be added up. One meter cannot do that, so the second ledger gets a meter
  of its own; or one ledger bills all devices.
- A copy that lives on beside its original has the same id too. Its identifiers are the same, so where the two say
  different things of an hour that is a conflict; where they say the same, it is one event, as long as both measure the
  same devices. That one of them has other devices since, nothing shows but the first hour that differs.

Three other ways were weighed. With the ledger's id in the identifier of an event, Stripe would take the second
ledger's event at once, in place of the first one's, and its sums, which follow some time later, would show nothing
where the numbers agree; with a common identifier it refuses the second one at once. Stripe's window knows nothing of
devices, so a device in the event does not help. And a meter without a window would add the ledgers up, but its sums
could no longer say whether an event of more than a day ago, whose answer was lost, has arrived.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from power_billing.errors import BillingError
from power_billing.sinks import CannotSayNow, ClaimingSink
from power_billing.tables import Place, ledger_id, tables

NO_CUSTOMER = "the biller has no such customer"


@dataclass(frozen=True)
class Claim:
    """The ledger that bills a customer, as the biller said at a time (epoch seconds)."""

    ledger_id: str
    asked_at: float

    def is_fresh(self, now: float, seconds: float) -> bool:
        """Whether it was asked so few seconds ago, or will have been: the clock may have been set back."""
        return abs(now - self.asked_at) < seconds


def claims(conn: sqlite3.Connection) -> dict[str, Claim]:
    """What is known, by customer."""
    sql = """SELECT customer, ledger_id, ledger_asked_at FROM billing_customers
        WHERE ledger_id IS NOT NULL ORDER BY customer"""
    return {customer: Claim(owner, asked_at) for customer, owner, asked_at in conn.execute(sql)}


def note_claim(conn: sqlite3.Connection, customer: str, claim: Claim) -> None:
    """Keep what the biller has said."""
    sql = """INSERT INTO billing_customers (customer, ledger_id, ledger_asked_at) VALUES (?, ?, ?)
        ON CONFLICT (customer) DO UPDATE
            SET ledger_id = excluded.ledger_id, ledger_asked_at = excluded.ledger_asked_at"""
    conn.execute(sql, (customer, claim.ledger_id, claim.asked_at))


def forget_claims(conn: sqlite3.Connection) -> None:
    """Ask for all of them again: usage goes elsewhere from now on."""
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
    """Bill a customer from this ledger that another one has billed so far. Raises BillingError where that fails."""
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
    """Why the usage of a customer of another ledger waits."""
    return f"the ledger {other_id} bills this customer: power-billing resolve"
