"""What is known of customers at Stripe: whether usage reaches an invoice, and as of when."""

from __future__ import annotations

import sqlite3

from power_billing.hours import DAY, HOUR
from power_billing.links import Link

CHECK_AGAIN = DAY  # seconds for which a customer without a problem is not asked for again


def recheck_customer(conn: sqlite3.Connection, customer: str) -> None:
    """Have the next run with a key ask about a customer."""
    sql = """INSERT INTO billing_customers (customer) VALUES (?)
        ON CONFLICT (customer) DO UPDATE SET checked_at = NULL"""
    conn.execute(sql, (customer,))


def note_customer(
    conn: sqlite3.Connection, customer: str, now: float, problem: str | None, is_missing: bool
) -> None:
    """Keep Stripe's answer about a customer.

    problem: why its usage reaches no invoice; None: it does reach one. is_missing: because Stripe
    does not have the customer.
    """
    sql = """INSERT INTO billing_customers (customer, checked_at, problem, is_missing)
        VALUES (?, ?, ?, ?)
        ON CONFLICT (customer) DO UPDATE SET checked_at = excluded.checked_at,
            problem = excluded.problem, is_missing = excluded.is_missing"""
    conn.execute(sql, (customer, now, problem, is_missing))


def missing_customers(conn: sqlite3.Connection) -> set[str]:
    """The customers whom Stripe did not have when it was last asked."""
    sql = "SELECT customer FROM billing_customers WHERE is_missing"
    return {customer for (customer,) in conn.execute(sql)}


def customers_to_check(conn: sqlite3.Connection, links: list[Link], now: float) -> list[str]:
    """Customers who are billed now and who had a problem, or were not checked for a day."""
    present = {
        link.customer: None
        for link in links
        if link.until_hour is None or link.until_hour * HOUR > now - CHECK_AGAIN
    }
    sql = """SELECT customer, checked_at FROM billing_customers
        WHERE problem IS NULL AND checked_at IS NOT NULL"""
    fine = {
        customer
        for customer, checked_at in conn.execute(sql)
        if abs(now - checked_at) < CHECK_AGAIN  # both ways: the clock may have been set back
    }
    return [customer for customer in present if customer not in fine]


def customer_problems(conn: sqlite3.Connection) -> dict[str, str]:
    """The customers whose usage reaches no invoice, and why, by Stripe's last answer."""
    sql = """SELECT customer, problem FROM billing_customers
        WHERE problem IS NOT NULL ORDER BY customer"""
    return dict(conn.execute(sql).fetchall())
