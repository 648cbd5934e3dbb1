"""One run: consumption into the ledger, the ledger into the sink."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from power_billing.errors import BillingError
from power_billing.hours import DAY, HOUR, hour_of, next_hour, oldest_billable, seconds_of
from power_billing.ledger import (
    LOOK_BACK_DAYS,
    OPEN,
    Consumption,
    Entry,
    book,
    by_customer,
    consumption,
    latest,
    outbox,
)
from power_billing.links import Link, links_of
from power_billing.sender import Sender, queue_refused
from power_billing.sinks import UsageSink
from power_billing.tables import tables
from power_manager import DB_PATH, InvalidValue, PowerManager


@dataclass(frozen=True)
class Report:
    """What a run has done: the outbox's rows that it sent, and those that it could not: they wait, or were refused.

    Hours too old to be billed are in neither: `power-billing status` lists them.
    """

    sent: list[Entry]
    open: list[Entry]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be sent, or to be looked at by somebody."""
        return not self.open


class _Undo(Exception):
    """Takes a dry run back."""


@dataclass(frozen=True)
class Biller:
    """A file's usage on its way to a sink; `clock` is the one the PowerManager has, in epoch seconds."""

    pm: PowerManager
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep

    def report(self, sink: UsageSink, *, until: Any = None, retry_refused: bool = False) -> Report:
        """Bring every closed UTC hour that ends by `until` (default: now) into the outbox, and the outbox to the sink.

        until: an aware datetime, ISO 8601 text with an offset, or epoch seconds. retry_refused: also send again, as
        new revisions, what was refused. Raises InvalidValue, StorageError, and BillingError where another run is under
        way or nothing can be sent; what was decided until then is kept, and the next run goes on from there.
        """
        end = self._end(until)
        with _only_run(self.pm):
            if retry_refused:
                queue_refused(self.pm, oldest_billable(self.clock()))
            before = self._open_rows()
            customers = by_customer(links_of(self.pm))
            for customer, links in customers.items():
                self._settle(customer, links, end)
            before |= self._open_rows()
            Sender(self.pm, sink, self.clock, self.sleep).run()
            return self._outcome(before)

    def create_usage_record(self, sink: UsageSink, device_id: str, start: Any, end: Any) -> Report:
        """Report the closed UTC hours from `start` to `end` of the customer that the device is billed to then.

        A customer's hour is one event over all its devices, so the other devices' energy in these hours is part of it.
        Hours that are not wholly inside, or not over yet, are left out. Parameters and errors as report()'s; also
        NotFound for a device, and BillingError for one that is not linked.
        """
        self.pm.get_device(device_id)
        if seconds_of("start", start) >= seconds_of("end", end):
            raise InvalidValue(f"end: expected a time after start, {start!r}, got {end!r}")
        first = next_hour(seconds_of("start", start))
        hours = range(first, max(first, self._end(end)))
        with _only_run(self.pm):
            links = links_of(self.pm)
            customers = {
                link.customer
                for link in links
                if link.device_id == device_id and any(map(link.covers, hours))
            }
            if not customers and not any(link.device_id == device_id for link in links):
                raise BillingError(
                    f"{device_id}: not linked to a customer: power-billing link makes it so"
                )
            for customer in customers:
                self._settle(customer, by_customer(links)[customer], hours.stop, hours.start)
            before = self._open_rows(hours, customers)
            Sender(self.pm, sink, self.clock, self.sleep).run(list(customers), hours)
            return self._outcome(before)

    def preview(self, *, until: Any = None, retry_refused: bool = False) -> list[Entry]:
        """What report() would send, without sending or keeping anything."""
        end, oldest, found = self._end(until), oldest_billable(self.clock()), []
        customers = by_customer(links_of(self.pm))
        # Before the transaction: with a large fleet it takes long, and others want to write.
        consumed = {customer: self._consumed(links) for customer, links in customers.items()}
        with contextlib.suppress(_Undo), self.pm.transaction():
            if retry_refused:
                queue_refused(self.pm, oldest)
            with tables(self.pm) as conn:
                for customer, of_customer in consumed.items():
                    book(conn, customer, of_customer, range(oldest, end))
            rows = self._open_rows().values()
            found = [row for row in rows if row.state == "queued" and row.event.hour >= oldest]
            raise _Undo
        return found

    def _end(self, until: Any) -> int:
        """The first hour that is not wanted: the present one, or that of `until`."""
        present = int(self.clock() // HOUR)
        return present if until is None else min(hour_of("until", until), present)

    def _settle(self, customer: str, links: Sequence[Link], end: int, begin: int = 0) -> None:
        """Take the customer's hours that can still be billed into account, from `begin` on and before `end`."""
        oldest, consumed = oldest_billable(self.clock()), self._consumed(links)
        with tables(self.pm) as conn:
            book(conn, customer, consumed, range(max(begin, oldest), end))

    def _consumed(self, links: Sequence[Link]) -> Consumption:
        """What was consumed in every hour that can still be billed."""
        now = self.clock()
        consumed = consumption(self.pm, links, LOOK_BACK_DAYS)
        if abs(self.clock() - now) > DAY:  # then what was read may begin too late
            raise BillingError("the clock was set while the readings were looked at: try again")
        return consumed

    def _open_rows(
        self, hours: range | None = None, customers: set[str] | None = None
    ) -> dict[Any, Entry]:
        with tables(self.pm) as conn:
            rows = outbox(conn, OPEN)
        return {
            (row.event.customer, row.event.hour): row
            for row in rows
            if (hours is None or row.event.hour in hours)
            and (customers is None or row.event.customer in customers)
        }

    def _outcome(self, before: dict[Any, Entry]) -> Report:
        """What became of rows that were open: the hour's latest revision counts."""
        with tables(self.pm) as conn:
            rows = [latest(conn, *key) for key in before]
        billable = oldest_billable(self.clock())
        left = [row for row in rows if row.state != "sent" and row.event.hour >= billable]
        return Report([row for row in rows if row.state == "sent"], left)


def report(
    pm: PowerManager, sink: UsageSink, *, until: Any = None, retry_refused: bool = False
) -> Report:
    """Bill every closed UTC hour to its customer, once: see Biller.report."""
    return Biller(pm).report(sink, until=until, retry_refused=retry_refused)


def create_usage_record(
    device_id: str,
    start: Any,
    end: Any,
    *,
    pm: PowerManager | None = None,
    sink: UsageSink | None = None,
) -> Report:
    """Bill the closed UTC hours from `start` to `end` of the customer that a device is linked to, once.

    It makes meter events: Stripe has no usage records any more. start and end are aware datetimes, ISO 8601 text with
    an offset, or epoch seconds; calling it again, or with overlapping times, bills nothing twice. pm and sink: default
    to the database in POWER_MANAGER_DB (power_manager.db here) and to Stripe with the key in STRIPE_API_KEY. Raises
    NotFound, InvalidValue, StorageError and BillingError.
    """
    with contextlib.ExitStack() as opened:
        if pm is None:
            pm = opened.enter_context(PowerManager(os.environ.get("POWER_MANAGER_DB") or DB_PATH))
        if sink is None:
            from power_billing.stripe_sinks import sink_from

            sink = sink_from(os.environ, pm)
        return Biller(pm).create_usage_record(sink, device_id, start, end)


@contextlib.contextmanager
def _only_run(pm: PowerManager) -> Iterator[None]:
    """Let one run at a time use a file: revisions must go out in their order."""
    if str(pm.db_path) == ":memory:":
        yield
        return
    path = f"{os.path.realpath(pm.db_path)}.billing.lock"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BillingError(
                f"{pm.db_path}: another run is under way: wait for it to end"
            ) from None
        yield
    finally:
        os.close(descriptor)
