"""The outbox into a sink: retries, lost answers, what is too old.

Before an event goes out, the ledger says that it does; afterwards, what came of it. After a crash or a lost answer it
is sent again under the same identifier, which the biller takes once. That holds for 24 hours at Stripe. Later the
biller is asked what it has: if that is the event's value, it arrived; if not, a new revision takes the event's place;
if the biller cannot say, nothing is sent.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Container
from dataclasses import dataclass

from power_billing.errors import BillingError
from power_billing.hours import HOUR, oldest_billable
from power_billing.ledger import Entry, State, queued, refused_entries, revise
from power_billing.sinks import Outcome, Receipt, UsageEvent, UsageSink
from power_billing.tables import Place, set_setting, setting, tables

PROTECTED = 23 * HOUR  # seconds: Stripe knows an identifier again for at least 24 hours
PAUSES = (1.0, 2.0, 4.0)  # seconds before the tries after the first
MAX_FAILURES = 3  # calls in a row that came to nothing: the rest waits for the next run
_MAX_PAUSE = 60.0  # seconds, whatever the biller asks for
_TOO_LATE = "too late"
_CANNOT_SAY = "unresolved: the biller cannot say what it has"
_STATES = {
    Outcome.SENT: State.SENT,
    Outcome.REFUSED: State.REFUSED,
    Outcome.LATER: State.QUEUED,
}
_OF_EVENT = "WHERE customer = ? AND hour = ? AND revision = ?"
_NOTE_ATTEMPT = f"""UPDATE billing_outbox
    SET attempted_at = coalesce(attempted_at, ?), attempts = attempts + 1 {_OF_EVENT}"""
_NOTE_OUTCOME = f"UPDATE billing_outbox SET state = ?, reason = ? {_OF_EVENT}"
_NOTE_IN_VAIN = f"UPDATE billing_outbox SET attempts = attempts + 1, reason = ? {_OF_EVENT}"

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
        """Send what is queued: all of it, or these customers' hours. Return the hours that were settled as sent.

        Raises BillingError where nothing can be sent at all; what was not sent stays queued.
        """
        self._claim()
        return self._resolve(customers, hours) | self._send_queued(customers, hours)

    def _resolve(self, customers: Container[str] | None, hours: range | None) -> set[HourKey]:
        """Ask for the events that may be at the biller, and whose identifiers it may have forgotten."""
        sent = set()
        failures = 0
        for entry in self._queued(customers, hours):
            if failures == MAX_FAILURES:
                break
            if not self._unresolved(entry):
                continue
            there = self.sink.recorded(entry.event.customer, entry.event.hour)
            failures = failures + 1 if there is None else 0
            if self._settle(entry, there):
                sent.add((entry.event.customer, entry.event.hour))
        return sent

    def _send_queued(self, customers: Container[str] | None, hours: range | None) -> set[HourKey]:
        """Send what can be sent, in batches, until too many calls in a row come to nothing."""
        sent = set()
        failures = 0
        entries = [entry for entry in self._queued(customers, hours) if self._sendable(entry)]
        for start in range(0, len(entries), self.sink.batch):
            batch = entries[start : start + self.sink.batch]
            # Looked at again: sending those before may have taken hours.
            events = [entry.event for entry in batch if self._sendable(entry)]
            if not events:
                continue
            receipts = self._send(events)
            for event, receipt in zip(events, receipts):
                if receipt.outcome is Outcome.SENT:
                    sent.add((event.customer, event.hour))
            in_vain = all(receipt.outcome is Outcome.LATER for receipt in receipts)
            failures = failures + 1 if in_vain else 0
            if failures == MAX_FAILURES:
                break
        return sent

    def _claim(self) -> None:
        """Remember whose ledger it is: an hour that went to one biller must not go to another as well."""
        with tables(self.place) as conn:
            there = setting(conn, "account")
            if there is None:
                set_setting(conn, "account", self.sink.account)
            elif there != self.sink.account:
                raise BillingError(
                    f"{self.place.db_path}: its usage goes to {there}, so it cannot go to {self.sink.account} "
                    "as well: to try things out, take --dry-run, or a backup of the file"
                )

    def _queued(self, customers: Container[str] | None, hours: range | None) -> list[Entry]:
        with tables(self.place) as conn:
            return [
                entry
                for entry in queued(conn)
                if (customers is None or entry.event.customer in customers)
                and (hours is None or entry.event.hour in hours)
            ]

    def _sendable(self, entry: Entry) -> bool:
        """Whether the hour can be billed, and sending it cannot bill it twice."""
        return self._protected(entry) and entry.event.hour >= oldest_billable(self.clock())

    def _protected(self, entry: Entry) -> bool:
        """Whether the biller would know the event again, or cannot have it yet."""
        return entry.attempted_at is None or 0 <= self.clock() - entry.attempted_at < PROTECTED

    def _unresolved(self, entry: Entry) -> bool:
        """Whether to ask the biller what it has; for an hour that is too old, once is enough."""
        if self._protected(entry):
            return False
        too_old = entry.event.hour < oldest_billable(self.clock())
        asked = (entry.reason or "").startswith(_TOO_LATE)
        return not (too_old and asked)

    def _settle(self, entry: Entry, there: int | None) -> bool:
        """Decide about an event by what the biller has for its hour; return whether it is the event's value."""
        event = entry.event
        key = (event.customer, event.hour, event.revision)
        with tables(self.place) as conn:
            if there is None:
                # Counted, so that the next run asks for others first.
                conn.execute(_NOTE_IN_VAIN, (_CANNOT_SAY, *key))
            elif there == event.watt_hours:
                conn.execute(_NOTE_OUTCOME, (State.SENT, "found at the biller", *key))
            elif event.hour >= oldest_billable(self.clock()):
                revise(conn, event.customer, event.hour, event.watt_hours)
            else:
                reason = f"{_TOO_LATE}: the biller has {there} Wh"
                conn.execute(_NOTE_OUTCOME, (State.QUEUED, reason, *key))
        return there == event.watt_hours

    def _send(self, events: list[UsageEvent]) -> list[Receipt]:
        """One batch: say that it goes, send it until all is answered or the pauses are over, say what came of it."""
        now = self.clock()
        with tables(self.place) as conn:
            for event in events:
                conn.execute(_NOTE_ATTEMPT, (now, event.customer, event.hour, event.revision))
        receipts: dict[UsageEvent, Receipt] = {}
        left = events
        for pause in (*PAUSES, None):
            receipts.update(zip(left, self.sink.send(left)))
            self._record(left, receipts)
            left = [event for event in events if receipts[event].outcome is Outcome.LATER]
            if not left or pause is None:
                break
            longest = max(receipts[event].retry_after for event in left)
            # Some chance in it, so that a fleet's senders do not all come back at once.
            self.sleep(min(max(pause * random.uniform(0.75, 1.25), longest), _MAX_PAUSE))
        return [receipts[event] for event in events]

    def _record(self, events: list[UsageEvent], receipts: dict[UsageEvent, Receipt]) -> None:
        with tables(self.place) as conn:
            for event in events:
                receipt = receipts[event]
                state = _STATES[receipt.outcome]
                key = (event.customer, event.hour, event.revision)
                conn.execute(_NOTE_OUTCOME, (state, receipt.reason, *key))


def queue_refused(place: Place, oldest: int) -> int:
    """Queue what was refused once more, as new revisions, from the hour `oldest` on; return how many hours that are."""
    with tables(place) as conn:
        refused = refused_entries(conn, oldest)
        for entry in refused:
            revise(conn, entry.event.customer, entry.event.hour, entry.event.watt_hours)
    return len(refused)
