"""What a run asks Stripe before it sends: whether customers exist, and what it refused later.

Stripe checks a meter event's customer only when it has taken the event, and says so by a thin event
to a webhook, if there is one. So every run with a key looks: at reports of errors that a webhook
has noted, and once a day at each customer.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, field
from typing import Any

import stripe

from power_billing.customers import (
    customers_to_check,
    missing_customers,
    note_customer,
    recheck_customer,
)
from power_billing.errors import BillingError
from power_billing.hours import hour_of
from power_billing.links import links_of
from power_billing.outbox import refuse_customer, refuse_sent
from power_billing.stripe_client import cannot
from power_billing.stripe_sinks import StripeMeterSink
from power_billing.subscriptions import customer_problem
from power_billing.tables import Place, tables

# An event's identifier, or the idempotency key that was made of it.
_IDENTIFIER = re.compile(
    r"(?P<customer>cus_\w+):(?P<meter>\w+):(?P<hour>[^/]+Z):(?P<revision>\d+)(/\w+)?"
)


@dataclass
class Checked:
    """What a person has to look at, in sentences, and customers whose usage is held."""

    problems: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)


def check_before_sending(place: Place, sink: StripeMeterSink, now: float) -> Checked:
    """Take in what Stripe has refused since, and look at the customers; `now` is epoch seconds.

    What was sent and is refused turns from sent to refused. Where Stripe cannot be asked that is a
    problem too, and keeps nothing from being sent: whom it did not have the last time is held
    still.
    """
    checked = Checked()
    try:
        _take_error_reports(place, sink, checked)
        _check_customers(place, sink, now, checked)
    except BillingError as error:
        checked.problems.append(f"{error}; what could not be asked is asked again in the next run")
    with tables(place) as conn:
        checked.held = missing_customers(conn)
    return checked


# --- Refused later


def _take_error_reports(place: Place, sink: StripeMeterSink, checked: Checked) -> None:
    with tables(place) as conn:
        sql = "SELECT id FROM billing_error_reports ORDER BY announced_at, id"
        announced = [report_id for (report_id,) in conn.execute(sql)]
    for report_id in announced:
        report = _fetch(sink.client, report_id)
        with tables(place) as conn:
            checked.problems.append(_take_report(conn, report_id, report, sink.meters.name))
            conn.execute("DELETE FROM billing_error_reports WHERE id = ?", (report_id,))


def _fetch(client: stripe.StripeClient, report_id: str) -> dict[str, Any] | None:
    """The whole event of an announced report; None: Stripe no longer has it, after 30 days."""
    try:
        return client.v2.core.events.retrieve(report_id).to_dict()
    except stripe.InvalidRequestError as error:
        if error.http_status == 404:
            return None
        raise cannot(error) from None
    except stripe.StripeError as error:
        raise cannot(error) from None


def _take_report(
    conn: sqlite3.Connection, report_id: str, report: dict[str, Any] | None, meter_name: str
) -> str:
    """Turn the events that a report names from sent to refused; return a sentence about it."""
    refused = f"Stripe has refused events after it had taken them ({report_id})"
    if report is None:
        return f"{refused}, and no longer says which: power-billing reconcile finds them"
    try:
        reason = report["data"]["reason"]
        types = reason["error_types"]
        named = sum(_refuse_samples(conn, error_type, meter_name) for error_type in types)
        count = int(reason["error_count"])
    except (KeyError, TypeError, ValueError):
        return f"{refused}, in an unknown form: power-billing reconcile finds them"
    if named < count:
        refused += f": {named} of {count} by name; power-billing reconcile finds the others"
    return refused


def _refuse_samples(conn: sqlite3.Connection, error_type: dict[str, Any], meter_name: str) -> int:
    """Turn the samples of one kind of error from sent to refused; return how many there are."""
    samples = error_type["sample_errors"]
    for sample in samples:
        found = _IDENTIFIER.fullmatch(sample["request"]["identifier"])
        if found is None or found["meter"] != meter_name:
            continue  # another program's event
        customer = found["customer"]
        reason = f"{error_type['code']}: {sample['error_message']}"
        hour = hour_of("hour", found["hour"])
        refuse_sent(conn, customer, hour, int(found["revision"]), reason)
        recheck_customer(conn, customer)  # the others of its events may have met with the same
    return len(samples)


# --- Customers


def _check_customers(place: Place, sink: StripeMeterSink, now: float, checked: Checked) -> None:
    links = links_of(place)
    with tables(place) as conn:
        wanted = customers_to_check(conn, links, now)
    for customer in wanted:
        problem = customer_problem(sink.client, sink.meters.ids, customer)
        with tables(place) as conn:
            if problem is None:
                note_customer(conn, customer, now, None, False)
                continue
            note_customer(conn, customer, now, problem.text, problem.is_missing)
            if problem.never_was:
                refuse_customer(conn, customer, problem.text)
        checked.problems.append(f"{customer}: {problem.text}")
