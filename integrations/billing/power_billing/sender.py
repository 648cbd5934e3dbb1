"""The outbox into a sink: retries, lost answers, what is too old.

Before an event goes out, the file says that it does; afterwards, what came of it. After a crash or a lost answer it is
sent again under the same identifier, which the biller takes once. That holds for 24 hours at Stripe. Later the biller
is asked what it has: if that is the event's value, it arrived; if not, a new revision takes the event's place; if the
biller cannot say, nothing is sent.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from power_billing.errors import BillingError
from power_billing.hours import HOUR, oldest_billable
from power_billing.ledger import Entry, outbox, revise
from power_billing.sinks import Outcome, Receipt, UsageEvent, UsageSink
from power_billing.tables import set_setting, setting, tables
from power_manager import PowerManager

PROTECTED = 23 * HOUR  # seconds: Stripe knows an identifier again for at least 24 hours
PAUSES = (1.0, 2.0, 4.0)  # seconds before the tries after the first
MAX_FAILURES = 3  # calls in a row that came to nothing: the rest waits for the next run
_MAX_PAUSE = 60.0  # seconds, whatever the biller asks for
_TOO_LATE = "too late"
_UPDATE = "UPDATE billing_outbox SET {} WHERE customer = ? AND hour = ? AND revision = ?"


@dataclass(frozen=True)
class Sender:
    """Sends what the outbox of a file has queued; the pauses between tries are the `sleep` function's."""

    pm: PowerManager
    sink: UsageSink
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep

    def run(self, customers: Sequence[str] | None = None, hours: range | None = None) -> None:
        """Send what is queued: all of it, or these customers' hours.

        Raises BillingError where nothing can be sent at all; what was not sent stays queued.
        """
        self._claim()

        def wanted(entry: Entry) -> bool:
            named = customers is None or entry.event.customer in customers
            return named and (hours is None or entry.event.hour in hours)

        failures = 0
        for entry in filter(wanted, self._queued()):
            if self._unresolved(entry) and failures < MAX_FAILURES:
                failures = 0 if self._ask(entry) else failures + 1
        entries = [entry for entry in self._queued() if wanted(entry) and self._sendable(entry)]
        failures = 0
        for start in range(0, len(entries), self.sink.batch):
            # Looked at again: sending those before may have taken hours.
            events = [
                entry.event
                for entry in entries[start : start + self.sink.batch]
                if self._sendable(entry)
            ]
            if not events:
                continue
            receipts = self._send(events)
            failures = failures + 1 if all(r.outcome is Outcome.LATER for r in receipts) else 0
            if failures == MAX_FAILURES:
                break

    def _claim(self) -> None:
        """Remember whose file it is: an hour that went to one biller must not go to another as well."""
        with tables(self.pm) as conn:
            there = setting(conn, "biller")
            if there is None:
                set_setting(conn, "biller", self.sink.biller)
            elif there != self.sink.biller:
                raise BillingError(
                    f"{self.pm.db_path}: its usage goes to {there}, so it cannot go to {self.sink.biller} as well: "
                    "to try things out, take --dry-run, or a backup of the file"
                )

    def _queued(self) -> list[Entry]:
        with tables(self.pm) as conn:
            return outbox(conn, "state = 'queued'")

    def _sendable(self, entry: Entry) -> bool:
        """Whether the hour can be billed, and sending it cannot bill it twice."""
        return self._protected(entry) and entry.event.hour >= oldest_billable(self.clock())

    def _protected(self, entry: Entry) -> bool:
        """Whether the biller would know the event again, or cannot have it yet."""
        return entry.attempted_at is None or 0 <= self.clock() - entry.attempted_at < PROTECTED

    def _unresolved(self, entry: Entry) -> bool:
        """Whether to ask the biller what it has; for an hour that is too old, once is enough."""
        settled = entry.event.hour < oldest_billable(self.clock()) and (
            entry.reason or ""
        ).startswith(_TOO_LATE)
        return not self._protected(entry) and not settled

    def _ask(self, entry: Entry) -> bool:
        """Settle an event whose identifier the biller may have forgotten; return whether it could say what it has."""
        event = entry.event
        there = self.sink.recorded(event.customer, event.hour)
        with tables(self.pm) as conn:
            key = (event.customer, event.hour, event.revision)
            if there is None:
                # Counted, so that the next run asks for others first.
                reason = "'unresolved: the biller cannot say what it has'"
                conn.execute(_UPDATE.format(f"attempts = attempts + 1, reason = {reason}"), key)
            elif there == event.watt_hours:
                conn.execute(_UPDATE.format("state = 'sent', reason = 'found at the biller'"), key)
            elif event.hour >= oldest_billable(self.clock()):
                revise(conn, event.customer, event.hour, event.watt_hours)
            else:
                conn.execute(
                    _UPDATE.format("reason = ?"), (f"{_TOO_LATE}: the biller has {there} Wh", *key)
                )
        return there is not None

    def _send(self, events: list[UsageEvent]) -> list[Receipt]:
        """One batch: say that it goes, send it until all is answered or the pauses are over, say what came of it."""
        now = self.clock()
        with tables(self.pm) as conn:
            sql = _UPDATE.format(
                "attempted_at = coalesce(attempted_at, ?), attempts = attempts + 1"
            )
            conn.executemany(sql, [(now, e.customer, e.hour, e.revision) for e in events])
        receipts: dict[UsageEvent, Receipt] = {}
        for pause in (*PAUSES, None):
            left = [
                event
                for event in events
                if event not in receipts or receipts[event].outcome is Outcome.LATER
            ]
            receipts |= zip(left, self.sink.send(left))
            waits = [
                receipt.retry_after
                for receipt in receipts.values()
                if receipt.outcome is Outcome.LATER
            ]
            self._record(left, receipts)
            if not waits or pause is None:
                break
            # Some chance in it, so that a fleet's senders do not all come back at once.
            self.sleep(min(max(pause * random.uniform(0.75, 1.25), *waits), _MAX_PAUSE))
        return [receipts[event] for event in events]

    def _record(self, events: list[UsageEvent], receipts: dict[UsageEvent, Receipt]) -> None:
        states = {Outcome.SENT: "sent", Outcome.REFUSED: "refused", Outcome.LATER: "queued"}
        with tables(self.pm) as conn:
            for event in events:
                receipt = receipts[event]
                key = (
                    states[receipt.outcome],
                    receipt.reason,
                    event.customer,
                    event.hour,
                    event.revision,
                )
                conn.execute(_UPDATE.format("state = ?, reason = ?"), key)


def queue_refused(pm: PowerManager, oldest: int) -> int:
    """Queue what was refused once more, as new revisions, from the hour `oldest` on; return how many hours that are."""
    with tables(pm) as conn:
        refused = outbox(conn, "state = 'refused' AND hour >= ?", [oldest])
        for entry in refused:
            revise(conn, entry.event.customer, entry.event.hour, entry.event.watt_hours)
    return len(refused)
