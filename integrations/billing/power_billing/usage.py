"""One run: consumption into the ledger, the ledger into the sink; and what the ledger says."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from power_billing.errors import BillingError
from power_billing.hours import DAY, HOUR, hour_of, next_hour, oldest_billable, seconds_of
from power_billing.ledger import (
    LOOK_BACK_DAYS,
    Consumption,
    Entry,
    Missed,
    State,
    billed_wh,
    book,
    by_customer,
    consumption,
    counts,
    missed,
    open_entries,
    queued,
    revisions,
)
from power_billing.links import Link, links_of
from power_billing.sender import Sender, queue_refused
from power_billing.sinks import UsageSink
from power_billing.tables import Place, copy_in_memory, setting, tables
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


@dataclass(frozen=True)
class Run:
    """A file's usage on its way to a sink.

    ledger: where the billing tables are, the file itself by default. `clock` is the one that the PowerManager has, in
    epoch seconds; `sleep` makes the pauses between tries.
    """

    pm: PowerManager
    ledger: Place | None = None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep

    @property
    def place(self) -> Place:
        """Where the billing tables are."""
        return self.ledger or self.pm

    def report(
        self,
        sink: UsageSink,
        *,
        until: Any = None,
        retry_refused: bool = False,
        held: Container[str] = (),
    ) -> Report:
        """Bring every closed UTC hour that ends by `until` (default: now) into the outbox, and the outbox to the sink.

        until: an aware datetime, ISO 8601 text with an offset, or epoch seconds. retry_refused: also send again, as
        new revisions, what was refused. held: customers whose usage is decided, and not sent. Raises InvalidValue,
        StorageError, and BillingError where another run is under way or nothing can be sent; what was decided until
        then is kept, and the next run goes on from there.
        """
        end = self._end(until)
        with _only_run(self.place):
            if retry_refused:
                queue_refused(self.place, oldest_billable(self.clock()))
            customers = by_customer(links_of(self.place))
            for customer, links in customers.items():
                self._settle(customer, links, end)
            wanted = [customer for customer in customers if customer not in held] if held else None
            sent = Sender(self.place, sink, self.clock, self.sleep).run(wanted)
            return self._outcome(sent)

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
        with _only_run(self.place):
            links = links_of(self.place)
            of_device = [link for link in links if link.device_id == device_id]
            if not of_device:
                raise BillingError(
                    f"{device_id}: not linked to a customer: power-billing link makes it so"
                )
            customers = {link.customer for link in of_device if any(map(link.covers, hours))}
            for customer in customers:
                self._settle(customer, by_customer(links)[customer], hours.stop, hours.start)
            sent = Sender(self.place, sink, self.clock, self.sleep).run(customers, hours)
            return self._outcome(sent, customers, hours)

    def preview(self, *, until: Any = None, retry_refused: bool = False) -> list[Entry]:
        """What report() would send, without sending or keeping anything: it is decided in a copy of the ledger."""
        end = self._end(until)
        oldest = oldest_billable(self.clock())
        with copy_in_memory(self.place) as copy:
            if retry_refused:
                queue_refused(copy, oldest)
            for customer, links in by_customer(links_of(copy)).items():
                consumed = self._consumed(links)
                with tables(copy) as conn:
                    book(conn, customer, consumed, range(oldest, end))
            with tables(copy) as conn:
                return [entry for entry in queued(conn) if entry.event.hour >= oldest]

    def _end(self, until: Any) -> int:
        """The first hour that is not wanted: the present one, or that of `until`."""
        present = int(self.clock() // HOUR)
        return present if until is None else min(hour_of("until", until), present)

    def _settle(self, customer: str, links: Sequence[Link], end: int, begin: int = 0) -> None:
        """Take the customer's hours that can still be billed into account, from `begin` on and before `end`."""
        oldest = oldest_billable(self.clock())
        consumed = self._consumed(links)
        with tables(self.place) as conn:
            book(conn, customer, consumed, range(max(begin, oldest), end))

    def _consumed(self, links: Sequence[Link]) -> Consumption:
        """What was consumed in every hour that can still be billed."""
        now = self.clock()
        consumed = consumption(self.pm, links, LOOK_BACK_DAYS)
        if abs(self.clock() - now) > DAY:  # then what was read may begin too late
            raise BillingError("the clock was set while the readings were looked at: try again")
        return consumed

    def _outcome(
        self,
        sent: Iterable[tuple[str, int]],
        customers: Container[str] | None = None,
        hours: range | None = None,
    ) -> Report:
        """What was sent, and what is still open of what can be billed."""
        billable = oldest_billable(self.clock())
        with tables(self.place) as conn:
            left = [
                entry
                for entry in open_entries(conn)
                if entry.event.hour >= billable
                and (customers is None or entry.event.customer in customers)
                and (hours is None or entry.event.hour in hours)
            ]
            return Report([revisions(conn, *key)[-1] for key in sorted(sent)], left)


# --- Status


@dataclass(frozen=True)
class CustomerStatus:
    """What the ledger says of a customer; `billed_wh` is what was taken into account so far."""

    customer: str
    billed_wh: int
    counts: dict[State, int]  # events by state


@dataclass(frozen=True)
class Status:
    """What the ledger says: whom usage goes to (None: nobody yet), each customer's sums, and what is not billed."""

    account: str | None
    links: list[Link]
    deleted: list[str]  # linked devices that are not in the file any more
    customers: list[CustomerStatus]
    open: list[Entry]
    missed: list[Missed]


def status(
    pm: PowerManager, ledger: Place | None = None, clock: Callable[[], float] = time.time
) -> Status:
    """What the ledger says now; ledger: the library's file by default."""
    place = ledger or pm
    links = links_of(place)
    of_customers = by_customer(links)
    known = {device.id for device in pm.list_devices()}
    with tables(place) as conn:
        account = setting(conn, "account")
        entries = open_entries(conn)
        customers = [_customer_status(conn, customer) for customer in of_customers]
    oldest = oldest_billable(clock())
    lost = []
    for customer, of_customer in of_customers.items():
        lost += missed(pm, place, customer, of_customer, oldest)
    deleted = sorted({link.device_id for link in links} - known)
    return Status(account, links, deleted, customers, entries, lost)


def _customer_status(conn: sqlite3.Connection, customer: str) -> CustomerStatus:
    return CustomerStatus(customer, billed_wh(conn, customer), counts(conn, customer))


# --- In one call


def report(
    pm: PowerManager,
    sink: UsageSink,
    *,
    until: Any = None,
    retry_refused: bool = False,
    ledger: Place | None = None,
) -> Report:
    """Bill every closed UTC hour to its customer, once: see Run.report."""
    return Run(pm, ledger).report(sink, until=until, retry_refused=retry_refused)


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
        return Run(pm).create_usage_record(sink, device_id, start, end)


@contextlib.contextmanager
def _only_run(place: Place) -> Iterator[None]:
    """Let one run at a time use a ledger: revisions must go out in their order."""
    if str(place.db_path) == ":memory:":
        yield
        return
    path = f"{os.path.realpath(place.db_path)}.billing.lock"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BillingError(
                f"{place.db_path}: another run is under way: wait for it to end"
            ) from None
        yield
    finally:
        os.close(descriptor)
