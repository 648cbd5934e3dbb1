"""What --json prints, as plain values: one object a command, the same words in all of them.

Hours are ISO 8601 text, times of runs epoch seconds. Watt-hours of events are whole numbers, as the
biller has them; money is decimal text. null is what is not known, or not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from power_billing.decisions import Undecided
from power_billing.findings import UNMEASURED, Finding
from power_billing.hours import day_of, iso
from power_billing.links import Link
from power_billing.outbox import Entry
from power_billing.periods import HourPeriods, periods_of
from power_billing.reconcile import Difference, Reconciliation, Repair
from power_billing.tables import Place, tables
from power_billing.tariff import Tariff, shown_hours
from power_billing.usage import Report, Status

# --- report


def preview_json(place: Place, entries: Sequence[Entry]) -> dict[str, Any]:
    """What a dry run would send."""
    ordered = sorted(entries, key=_in_order)
    return {"is_dry_run": True, "would_send": _entries_json(place, ordered)}


def report_json(place: Place, account: str, done: Report, told_count: int) -> dict[str, Any]:
    """What a run has done; told_count: how many devices it told to shut down."""
    compared = done.reconciliation
    return {
        "is_dry_run": False,
        "is_complete": done.complete,
        "account": account,
        "told_device_count": told_count,
        "sent": _entries_json(place, sorted(done.sent, key=_in_order)),
        "open": _entries_json(place, done.open),
        "too_old": _entries_json(place, done.too_old),
        "lost": [_finding_json(finding) for finding in done.lost],
        "kept": [_finding_json(finding) for finding in done.kept],
        "reconciliation": None if compared is None else _compared_json(place, compared),
        "problems": done.problems,
    }


# --- status


def status_json(place: Place, now: Status) -> dict[str, Any]:
    """What the ledger says."""
    return {
        "account": now.account,
        "last_run": now.last_run,
        "last_good_run": now.last_good_run,
        "lost_wh": now.lost_wh,
        "links": [_link_json(link, now.deleted) for link in now.links],
        "customers": [
            {
                "customer": one.customer,
                "billed_wh": one.billed_wh,
                "events": {state.value: count for state, count in one.counts.items()},
            }
            for one in now.customers
        ],
        "open": _entries_json(place, now.open),
        "too_old": _entries_json(place, now.too_old),
        "findings": [_finding_json(finding) for finding in now.findings],
        "problems": now.problems,
        "other_ledgers": now.other_ledgers,
        "tariff": None if now.tariff is None else _tariff_json(now.tariff),
    }


def _tariff_json(tariff: Tariff) -> dict[str, Any]:
    return {
        "zone": tariff.zone,
        "periods": [
            {
                "period": period.name,
                "hours": shown_hours(period.hours),
                "price": f"{period.price.amount:f}",
                "currency": period.price.currency,
                "price_unit": period.price.unit,
            }
            for period in tariff.periods
        ],
    }


def _link_json(link: Link, deleted: Sequence[str]) -> dict[str, Any]:
    return {
        "device_id": link.device_id,
        "customer": link.customer,
        "subscription_item": link.subscription_item,
        "types": link.types,
        "from": iso(link.from_hour),
        "until": None if link.until_hour is None else iso(link.until_hour),
        "is_deleted": link.device_id in deleted,
    }


# --- reconcile


def reconciliation_json(
    place: Place, account: str, found: Reconciliation, repaired: Repair | None
) -> dict[str, Any]:
    """What was compared; repaired: None where nobody asked for that."""
    return {
        "account": account,
        "from": iso(found.hours.start),
        "until": iso(found.hours.stop),
        **_compared_json(place, found),
        "repair": None if repaired is None else _repair_json(repaired),
    }


def _compared_json(place: Place, found: Reconciliation) -> dict[str, Any]:
    return {
        "differences": [_difference_json(place, one) for one in found.differences],
        "not_compared": found.unsaid,
        "settling_hour_count": found.settling_count,
    }


def _difference_json(place: Place, one: Difference) -> dict[str, Any]:
    is_day = len(one.hours) > 1
    return {
        "customer": one.customer,
        "day": day_of(one.hours.start),
        "hour": None if is_day else iso(one.hours.start),
        "period": one.period or None,
        "energy_wh": one.ours_wh,
        "biller_wh": one.theirs_wh,
        "misplaced_wh": one.misplaced_wh,
        "is_foreign": one.is_foreign,
        "events": _entries_json(place, one.entries),
    }


def _repair_json(repaired: Repair) -> dict[str, Any]:
    return {
        "repaired": [
            {"customer": one.customer, "hour": iso(one.hours.start)} for one in repaired.repaired
        ],
        "queued_hour_count": repaired.queued_count,
        "too_old_count": repaired.too_old_count,
        "misplaced_count": repaired.misplaced_count,
        "foreign_hour_count": repaired.foreign_count,
    }


# --- resolve


def undecided_json(place: Place, listed: Undecided, decision: str | None) -> dict[str, Any]:
    """What waits for a person, or has just been decided: decision is keep, send, or None."""
    waiting = [entry for entries in listed.others.values() for entry in entries]
    return {
        "decision": decision,
        "kept_hour_count": len(listed.conflicts) if decision == "keep" else 0,
        "accepted_loss_count": listed.loss_count if decision == "keep" else 0,
        "queued_hour_count": len(listed.conflicts) if decision == "send" else 0,
        "conflicts": _entries_json(place, listed.conflicts),
        "too_old": _entries_json(place, listed.too_old),
        "lost": [_finding_json(finding) for finding in listed.lost],
        "other_ledgers": {customer: listed.ledger_ids[customer] for customer in listed.others},
        "waiting": _entries_json(place, waiting),
    }


# --- In all of them


def _in_order(entry: Entry) -> tuple[int, str]:
    return entry.event.hour, entry.event.customer


def _entries_json(place: Place, entries: Iterable[Entry]) -> list[dict[str, Any]]:
    shown = list(entries)
    with tables(place) as conn:
        periods = periods_of(conn, [entry.event.hour for entry in shown])
    return [_entry_json(entry, periods) for entry in shown]


def _entry_json(entry: Entry, periods: HourPeriods) -> dict[str, Any]:
    event = entry.event
    return {
        "identifier": event.identifier,
        "customer": event.customer,
        "hour": iso(event.hour),
        "period": periods.of(event.hour) or None,
        "revision": event.revision,
        "energy_wh": event.watt_hours,
        "biller_wh": entry.theirs_wh,
        "state": entry.state.value,
        "attempts": entry.attempts,
        "reason": entry.reason,
    }


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind.value,
        "customer": finding.customer,
        "device_id": finding.device_id,
        "hour": iso(finding.hour),
        "energy_wh": None if finding.kind in UNMEASURED else finding.watt_hours,
        "is_accepted": finding.is_accepted,
        "text": str(finding),
    }
