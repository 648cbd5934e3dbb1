"""What a person decides: conflicts with values that the biller has from elsewhere, and losses."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from power_billing.claims import others_customers
from power_billing.findings import Finding, accept_findings, findings
from power_billing.outbox import Entry, State, note_outcome, open_entries, revise
from power_billing.reconcile import REPAIR_STEP
from power_billing.tables import Place, tables


@dataclass(frozen=True)
class Undecided:
    """What waits for a person: conflicts, what was not sent in time, and what is lost.

    conflicts: by customer and hour. others: hours that wait because another ledger bills their
    customer, by customer; `ledger_ids` are those ledgers' ids.
    """

    conflicts: list[Entry]
    too_old: list[Entry]
    lost: list[Finding]
    others: dict[str, list[Entry]]
    ledger_ids: dict[str, str]

    def __bool__(self) -> bool:
        """Whether there is anything to decide."""
        return bool(self.conflicts or self.too_old or self.lost or self.others)

    @property
    def loss_count(self) -> int:
        """How many losses are accepted if the biller's values are kept."""
        left_to_others = sum(len(entries) for entries in self.others.values())
        return len(self.too_old) + len(self.lost) + left_to_others


def undecided(
    place: Place, oldest: int, customer: str | None = None, hours: range | None = None
) -> Undecided:
    """What is to be decided: all of it, or a customer's, or that of some hours.

    oldest: the first hour that can still be billed.
    """
    with tables(place) as conn:
        entries = [
            entry
            for entry in open_entries(conn)
            if _is_wanted(entry.event.customer, entry.event.hour, customer, hours)
        ]
        lost = [
            one
            for one in findings(conn)
            if one.is_lost and _is_wanted(one.customer, one.hour, customer, hours)
        ]
        ledger_ids = others_customers(conn)
    entries.sort(key=lambda entry: (entry.event.customer, entry.event.hour))
    others: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        is_queued = entry.state is State.QUEUED and entry.event.hour >= oldest
        if is_queued and entry.event.customer in ledger_ids:
            others[entry.event.customer].append(entry)
    return Undecided(
        [one for one in entries if one.event.hour >= oldest and one.state is State.CONFLICT],
        [one for one in entries if one.event.hour < oldest],
        lost,
        dict(others),
        ledger_ids,
    )


def _is_wanted(customer: str, hour: int, wanted: str | None, hours: range | None) -> bool:
    return wanted in (None, customer) and (hours is None or hour in hours)


def keep_theirs(place: Place, decided: Undecided) -> None:
    """Leave conflicts as the biller has them; accept what is lost or is another ledger's to bill.

    If such an hour changes once more, it is a conflict again, or waits again.
    """
    with tables(place) as conn:
        for entry in decided.conflicts:
            event = entry.event
            theirs = 0 if entry.theirs_wh is None else entry.theirs_wh
            reason = f"the biller's was kept, instead of {event.watt_hours} Wh"
            revise(conn, event.customer, event.hour, theirs, State.KEPT, reason)
        for entry in decided.too_old:
            note_outcome(conn, entry.event, State.LOST, entry.reason)
        for customer, entries in decided.others.items():
            reason = f"left to the ledger {decided.ledger_ids[customer]}"
            for entry in entries:
                note_outcome(conn, entry.event, State.LOST, reason)
        accept_findings(conn, decided.lost)


def send_ours(place: Place, conflicts: Iterable[Entry]) -> None:
    """Queue the ledger's value of the conflicts' hours as a revision that replaces the biller's."""
    with tables(place) as conn:
        for entry in conflicts:
            _send_one(conn, entry)


def _send_one(conn: sqlite3.Connection, entry: Entry) -> None:
    event = entry.event
    reason = f"sent instead of the biller's {entry.theirs_wh} Wh"
    revise(
        conn,
        event.customer,
        event.hour,
        event.watt_hours,
        State.QUEUED,
        reason,
        entry.theirs_wh,
        REPAIR_STEP,
    )
