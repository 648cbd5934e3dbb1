"""The outbox into a sink: retries, lost answers, conflicts, old hours.

Before an event goes out, the ledger says that it does; afterwards, what came of it. After a crash
or a lost answer it is sent again under the same identifier, which the biller takes once. That holds
for 24 hours at Stripe. Later the biller is asked what it has: if that is the event's value, it
arrived; if not, a new revision takes the event's place; if the biller cannot say, nothing is sent.

A customer is billed by one ledger: see claims. What waits for a customer of another one is not
sent.

An identifier that the biller knows although it was never sent from here, and an hour for which it
has what was never sent from here, are somebody else's work: the ledger before a backup was
restored, a copy of it, or one that this ledger has taken over from. Where the values agree, all is
well: it is the same event. Where not, that is a conflict, which a person decides.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from enum import Enum

from power_billing.claims import (
    NO_CUSTOMER,
    Claim,
    claims,
    forget_claims,
    note_claim,
    waiting_reason,
)
from power_billing.errors import BillingError, CannotSayNow
from power_billing.hours import HOUR, oldest_billable
from power_billing.outbox import (
    Entry,
    State,
    entries_in,
    note_asked,
    note_attempt,
    note_outcome,
    note_taken,
    note_theirs,
    note_waiting,
    put_off,
    revise,
    revisions,
    was_sent,
    was_taken,
)
from power_billing.sinks import (
    ClaimingSink,
    Outcome,
    Receipt,
    UsageEvent,
    UsageSink,
    is_csv,
    took_nothing,
)
from power_billing.tables import Place, ledger_id, set_setting, setting, tables

PROTECTED = 23 * HOUR  # seconds: Stripe knows an identifier again for at least 24 hours
PAUSES = (1.0, 2.0, 4.0)  # seconds before the tries after the first
MAX_FAILURES = 3  # failed calls in a row: the rest waits for the next run
_MAX_PAUSE = 60.0  # seconds, whatever the biller asks for
_CANNOT_SAY = "unresolved: the biller cannot say what it has"
_FOUND = "found at the biller"
_STATES = {
    Outcome.SENT: State.SENT,
    Outcome.REFUSED: State.REFUSED,
    Outcome.LATER: State.QUEUED,
}


class _Silence(Enum):
    """Why the biller does not say what it has."""

    NOW = "it could, and does not now"
    EVER = "it never can"


HourKey = tuple[str, int]  # a customer's hour


@dataclass(frozen=True)
class Sender:
    """Sends what the outbox has queued; the pauses between tries are the `sleep` function's."""

    place: Place
    sink: UsageSink
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep

    def run(
        self, customers: Container[str] | None = None, hours: range | None = None
    ) -> set[HourKey]:
        """Send what is queued, all of it or these customers' hours; return the hours now sent.

        Raises BillingError where nothing can be sent at all; what was not sent stays queued.
        """
        self._claim()
        wanted = _Wanted(customers, hours)
        held = self._held_customers(wanted)
        wanted = _Wanted(customers, hours, held)
        sent = self._ask_about_unresolved(wanted)
        sent |= self._ask_about_conflicts(wanted)
        found, not_now = self._ask_before_sending(wanted)
        return sent | found | self._send_queued(wanted, not_now)

    def _claim(self) -> None:
        """Remember the biller: an hour that went to one must not go to another as well."""
        with tables(self.place) as conn:
            check_account(conn, self.place, self.sink)
            if setting(conn, "account") != self.sink.account:
                set_setting(conn, "account", self.sink.account)
                forget_claims(conn)

    # --- Whose customers they are

    def _held_customers(self, wanted: _Wanted) -> set[str]:
        """Customers with open hours who are another ledger's, or may be; each hour says so."""
        if not isinstance(self.sink, ClaimingSink):
            return set()
        queued = _by_customer(self._entries(State.QUEUED, wanted))
        customers = dict.fromkeys([*queued, *_by_customer(self._entries(State.CONFLICT, wanted))])
        with tables(self.place) as conn:
            ours = ledger_id(conn)
            known = claims(conn)
        held = set()
        failures = 0
        for customer in customers:
            there = known.get(customer)
            is_ours = there is not None and there.ledger_id == ours
            if there and is_ours and there.is_fresh(self.clock(), self.sink.claim_seconds):
                continue
            try:
                if failures == MAX_FAILURES:
                    raise CannotSayNow("the biller did not say for others which ledger bills them")
                owner = self.sink.claim(customer, ours)
            except CannotSayNow as error:
                failures = min(failures + 1, MAX_FAILURES)
                if is_ours:  # as it was the last time
                    continue
                owner, reason = None, str(error)
            else:
                reason = NO_CUSTOMER
            with tables(self.place) as conn:
                if owner is not None:
                    note_claim(conn, customer, Claim(owner, self.clock()))
                    reason = waiting_reason(owner)
                if owner != ours:
                    held.add(customer)
                    for entry in queued.get(customer, []):
                        note_waiting(conn, entry.event, reason)
        return held

    # --- Asking what the biller has

    def _ask_about_unresolved(self, wanted: _Wanted) -> set[HourKey]:
        """Ask about events that may have arrived and whose identifiers may be forgotten there."""
        sent = set()
        failures = 0
        for entry in self._entries(State.QUEUED, wanted):
            if failures == MAX_FAILURES:
                break
            if not self._is_unresolved(entry):
                continue
            theirs = self._recorded_hour(entry.event)
            failures = failures + 1 if isinstance(theirs, _Silence) else 0
            if self._settle(entry, theirs):
                sent.add((entry.event.customer, entry.event.hour))
        return sent

    def _settle(self, entry: Entry, theirs: int | _Silence) -> bool:
        """Decide about an event by the biller's value of its hour; return whether both agree."""
        event = entry.event
        with tables(self.place) as conn:
            if isinstance(theirs, _Silence):
                put_off(conn, event, _CANNOT_SAY)
            elif theirs == event.watt_hours:
                note_outcome(conn, event, State.SENT, _FOUND)
            elif event.hour < oldest_billable(self.clock()):
                reason = f"too late: the biller has {theirs} Wh"
                note_outcome(conn, event, State.QUEUED, reason)
                note_asked(conn, event, theirs, self.clock())
            else:  # before the revision goes out, the biller's value is checked
                revise(conn, event.customer, event.hour, event.watt_hours)
        return theirs == event.watt_hours

    def _ask_about_conflicts(self, wanted: _Wanted) -> set[HourKey]:
        """Ask about conflicts again: summaries come late, and others may correct the hour."""
        sent = set()
        failures = 0
        for customer, entries in _by_customer(self._entries(State.CONFLICT, wanted)).items():
            if failures == MAX_FAILURES:
                break
            try:
                recorded = self.sink.recorded(customer, _span(entries))
            except CannotSayNow:
                failures += 1
                continue
            if recorded is None:
                continue
            with tables(self.place) as conn:
                for entry in entries:
                    event = entry.event
                    theirs = recorded.get(event.hour, 0)
                    note_theirs(conn, event, theirs)
                    if theirs == event.watt_hours:
                        note_outcome(conn, event, State.SENT, _FOUND)
                        sent.add((customer, event.hour))
        return sent

    def _ask_before_sending(self, wanted: _Wanted) -> tuple[set[HourKey], set[UsageEvent]]:
        """Ask what the biller has of hours that are to be sent: others may have sent them.

        Return the hours that it has already, and the events that have to wait because it does not
        say now.
        """
        sent: set[HourKey] = set()
        not_now: set[UsageEvent] = set()
        failures = 0
        # Others' first event may have been refused, or be forgotten before this one is: then its
        # identifier shows nothing. Where events go in batches, a call for each customer would cost
        # more than the sending: there the daily comparison finds the rest.
        asks_always = self.sink.batch == 1
        queued = [
            entry
            for entry in self._entries(State.QUEUED, wanted)
            if self._is_sendable(entry) and (asks_always or self._is_unprotected(entry))
        ]
        for customer, entries in _by_customer(queued).items():
            recorded = None
            try:
                if failures == MAX_FAILURES:
                    raise CannotSayNow("the biller did not say for others")
                recorded = self.sink.recorded(customer, _span(entries))
            except CannotSayNow as error:
                failures = min(failures + 1, MAX_FAILURES)
                waiting = [entry.event for entry in entries if self._is_unprotected(entry)]
                not_now.update(waiting)
                with tables(self.place) as conn:
                    for event in waiting:
                        put_off(conn, event, str(error))
            if recorded is None:
                continue
            with tables(self.place) as conn:
                for entry in entries:
                    event = entry.event
                    theirs = recorded.get(event.hour, 0)
                    before = revisions(conn, customer, event.hour)
                    if theirs in _believable(before):
                        continue
                    if theirs == event.watt_hours:
                        note_outcome(conn, event, State.SENT, _FOUND)
                        sent.add((customer, event.hour))
                    else:
                        _note_conflict(conn, event, theirs)
        return sent, not_now

    def _recorded_hour(self, event: UsageEvent) -> int | _Silence:
        """What the biller has for the event's hour, or why it does not say."""
        try:
            recorded = self.sink.recorded(event.customer, range(event.hour, event.hour + 1))
        except CannotSayNow:
            return _Silence.NOW
        return _Silence.EVER if recorded is None else recorded.get(event.hour, 0)

    # --- Sending

    def _send_queued(self, wanted: _Wanted, not_now: Container[UsageEvent]) -> set[HourKey]:
        """Send what can be sent, in batches, until too many calls in a row come to nothing."""
        sent = set()
        failures = 0
        entries = [
            entry
            for entry in self._entries(State.QUEUED, wanted)
            if self._is_sendable(entry) and entry.event not in not_now
        ]
        for start in range(0, len(entries), self.sink.batch):
            batch = entries[start : start + self.sink.batch]
            # Looked at again: sending those before may have taken hours.
            batch = [entry for entry in batch if self._is_sendable(entry)]
            if not batch:
                continue
            states = self._send(batch)
            for event, state in states.items():
                if state is State.SENT:
                    sent.add((event.customer, event.hour))
            in_vain = all(state is State.QUEUED for state in states.values())
            failures = failures + 1 if in_vain else 0
            if failures == MAX_FAILURES:
                break
        return sent

    def _send(self, entries: list[Entry]) -> dict[UsageEvent, State]:
        """Send one batch until all is answered or the pauses are over; note it before and after."""
        now = self.clock()
        with tables(self.place) as conn:
            for entry in entries:
                note_attempt(conn, entry.event, now)
        unseen = {entry.event for entry in entries if entry.attempted_at is None}
        states: dict[UsageEvent, State] = {}
        left = [entry.event for entry in entries]
        for pause in (*PAUSES, None):
            receipts = dict(zip(left, self.sink.send(left)))
            states.update(self._record(receipts, unseen))
            left = [event for event in left if states[event] is State.QUEUED]
            if not left or pause is None:
                break
            longest = max(receipts[event].retry_after for event in left)
            # Random, so that a fleet's senders do not all come back at once.
            self.sleep(min(max(pause * random.uniform(0.75, 1.25), longest), _MAX_PAUSE))
        return states

    def _record(
        self, receipts: dict[UsageEvent, Receipt], unseen: Container[UsageEvent]
    ) -> dict[UsageEvent, State]:
        """Note what came of events; `unseen` are those that were never sent before."""
        asked = {
            event: self._recorded_hour(event)
            for event, receipt in receipts.items()
            if receipt.outcome is Outcome.KNOWN
        }
        # An earlier event of the hour, whose answer was lost, may be there: the hour is billed that
        # much, then.
        refused = {
            event: self._recorded_hour(event)
            for event, receipt in receipts.items()
            if receipt.outcome is Outcome.REFUSED and event.revision > 0
        }
        states = {}
        with tables(self.place) as conn:
            for event, receipt in receipts.items():
                if event in asked:
                    states[event] = _note_known(conn, event, asked[event], event in unseen)
                    continue
                states[event] = _STATES[receipt.outcome]
                note_outcome(conn, event, states[event], receipt.reason)
                if states[event] is State.SENT:
                    note_taken(conn, event, self.clock())
                theirs = refused.get(event, _Silence.NOW)
                if not isinstance(theirs, _Silence):
                    note_theirs(conn, event, theirs)
        return states

    # --- Which events

    def _entries(self, state: State, wanted: _Wanted) -> list[Entry]:
        with tables(self.place) as conn:
            return [entry for entry in entries_in(conn, state) if wanted.has(entry.event)]

    def _is_sendable(self, entry: Entry) -> bool:
        """Whether the hour can be billed, and sending it cannot bill it twice."""
        return self._is_protected(entry) and entry.event.hour >= oldest_billable(self.clock())

    def _is_protected(self, entry: Entry) -> bool:
        """Whether the biller would know the event again, or cannot have it yet."""
        return entry.attempted_at is None or 0 <= self.clock() - entry.attempted_at < PROTECTED

    def _is_unresolved(self, entry: Entry) -> bool:
        """Whether to ask the biller what it has; for an hour that is too old, once is enough."""
        if self._is_protected(entry):
            return False
        asked_at = entry.asked_at
        if asked_at is None or asked_at > self.clock():  # or by a clock that was wrong
            return True
        return entry.event.hour >= oldest_billable(asked_at)

    def _is_unprotected(self, entry: Entry) -> bool:
        """Whether an event's identifier cannot show what others have sent of its hour.

        The biller may have forgotten identifiers of more than a day ago, and others count their
        revisions otherwise.
        """
        age = self.clock() - (entry.event.hour + 1) * HOUR
        return age > PROTECTED or entry.event.revision > 0


def has_nothing(conn: sqlite3.Connection, account: str | None) -> bool:
    """Whether the ledger's account has no usage for sure, so that it may go elsewhere.

    Only a CSV file can show that: one whose name was mistyped would else be the ledger's for ever.
    """
    if account is None or not is_csv(account):
        return False
    return not was_sent(conn) or (took_nothing(account) and not was_taken(conn))


def check_account(conn: sqlite3.Connection, place: Place, sink: UsageSink) -> None:
    """Raise BillingError for a sink that is not the ledger's."""
    there = setting(conn, "account")
    if there not in (None, sink.account) and not has_nothing(conn, there):
        raise BillingError(
            f"{place.db_path}: its usage goes to {there}, so it cannot go to {sink.account} "
            "as well: to try things out, take --dry-run, or another --ledger"
        )


@dataclass(frozen=True)
class _Wanted:
    """Which events a run is about, None: all; `held` are customers of other ledgers."""

    customers: Container[str] | None
    hours: range | None
    held: Container[str] = ()

    def has(self, event: UsageEvent) -> bool:
        is_wanted = self.customers is None or event.customer in self.customers
        is_in_time = self.hours is None or event.hour in self.hours
        return is_wanted and is_in_time and event.customer not in self.held


def _believable(before: Iterable[Entry]) -> set[int]:
    """What the biller may have for an hour by what was sent from here: nothing, or an own value.

    Its summaries follow its events, so an earlier value does not mean that others sent the hour.
    """
    ours = {0}
    for entry in before:
        if entry.attempted_at is not None or entry.state in (State.SENT, State.KEPT):
            ours.add(entry.event.watt_hours)
        if entry.state is State.QUEUED and entry.theirs_wh is not None:
            ours.add(entry.theirs_wh)  # a person has seen it, and decided to replace it
    return ours


def _by_customer(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    found = defaultdict(list)
    for entry in entries:
        found[entry.event.customer].append(entry)
    return dict(found)


def _span(entries: Iterable[Entry]) -> range:
    """All hours from the first of the entries' to the last."""
    hours = [entry.event.hour for entry in entries]
    return range(min(hours), max(hours) + 1)


def _note_known(
    conn: sqlite3.Connection, event: UsageEvent, theirs: int | _Silence, is_unseen: bool
) -> State:
    """Decide about an event whose identifier the biller knows; return the event's new state."""
    if theirs == event.watt_hours or (theirs is _Silence.EVER and not is_unseen):
        note_outcome(conn, event, State.SENT, "the biller had it already")
        return State.SENT
    if theirs is _Silence.EVER:
        note_outcome(
            conn, event, State.CONFLICT, "the biller has an event of this name from elsewhere"
        )
        return State.CONFLICT
    if theirs is _Silence.NOW:
        reason = "the biller has an event of this name, and does not say its value now"
    elif theirs in _believable(revisions(conn, event.customer, event.hour)):
        reason = f"the biller has an event of this name, and its summary says {theirs} Wh so far"
    else:
        _note_conflict(conn, event, theirs)
        return State.CONFLICT
    note_outcome(conn, event, State.QUEUED, reason)
    return State.QUEUED


def _note_conflict(conn: sqlite3.Connection, event: UsageEvent, theirs: int) -> None:
    """Note that the hour was sent from elsewhere: a person decides."""
    note_theirs(conn, event, theirs)
    note_outcome(conn, event, State.CONFLICT, f"the biller has {theirs} Wh from elsewhere")


def queue_refused(place: Place, oldest: int) -> int:
    """Queue refused hours from `oldest` on once more, as new revisions; return how many."""
    with tables(place) as conn:
        refused = [entry for entry in entries_in(conn, State.REFUSED) if entry.event.hour >= oldest]
        for entry in refused:
            revise(conn, entry.event.customer, entry.event.hour, entry.event.watt_hours)
    return len(refused)
