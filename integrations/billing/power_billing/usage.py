"""One run: consumption into the ledger, the ledger into the sink; and what the ledger says."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from power_billing.claims import others_customers
from power_billing.closing import close, closed_before, closed_findings, is_due
from power_billing.counting import DeviceUsage, device_usage, keep_meters, known_meters
from power_billing.customers import customer_problems
from power_billing.errors import BillingError
from power_billing.findings import (
    LOST_ENERGY,
    Finding,
    FindingKind,
    deleted_findings,
    device_findings,
    findings,
    keep_findings,
)
from power_billing.hours import DAY, HOUR, hour_of, next_hour, oldest_billable, seconds_of
from power_billing.ledger import LOOK_BACK_DAYS, Hours, billed_wh, book, by_customer
from power_billing.links import Link, links_of
from power_billing.outbox import Entry, State, counts, entries_in, open_entries, revisions
from power_billing.periods import tariff_of
from power_billing.reconcile import Reconciliation, reconcile
from power_billing.sender import Sender, queue_refused
from power_billing.sinks import UsageSink
from power_billing.sources import ALL_DAYS, BatchSource, Devices, UsageSource, source_of
from power_billing.tables import Place, copy_in_memory, set_setting, setting, tables
from power_billing.tariff import Tariff
from power_manager import DB_PATH, InvalidValue, PowerManager

_FOR_EVER = 2**53  # an hour that never comes
_LAST_RUN = "last_run"
_LAST_GOOD_RUN = "last_good_run"
_COUNTED_UNTIL = "counted_until"  # the first hour that no run has counted yet
_RECONCILED_ON = "reconciled_on"


@dataclass(frozen=True)
class Report:
    """What a run has done.

    sent: the outbox's rows that it sent. open: those that it could not, or that somebody has to
    look at. too_old: those that were not sent in time. lost: what came to light too late, or is not
    measured; both until somebody accepts that. kept: what stays billed although its readings are
    deleted. reconciliation: the ledger beside what the biller has, if this run has compared them.
    problems: what else is wrong at the biller.
    """

    sent: list[Entry]
    open: list[Entry]
    too_old: list[Entry] = field(default_factory=list)
    lost: list[Finding] = field(default_factory=list)
    kept: list[Finding] = field(default_factory=list)
    reconciliation: Reconciliation | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is left to send, or to decide."""
        agrees = self.reconciliation is None or self.reconciliation.is_clean
        is_left = self.open or self.too_old or self.lost or self.problems
        return not is_left and agrees


@dataclass(frozen=True)
class Run:
    """Usage on its way to a sink; pm: the file, or a fleet's devices.

    ledger: where the billing tables are, the file itself by default. source: what knows the usage,
    `pm` by default. `clock` is the one that the PowerManager has, in epoch seconds; `sleep` makes
    the pauses between tries.
    """

    pm: Devices
    ledger: Place | None = None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep
    source: UsageSource | None = None

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
        compare: bool | None = False,
        held: Container[str] = (),
        problems: Sequence[str] = (),
    ) -> Report:
        """Put every closed UTC hour that ends by `until` into the outbox, and send the outbox.

        until: an aware datetime, ISO 8601 text with an offset, or epoch seconds. retry_refused:
        also send again, as new revisions, what was refused. compare: afterwards look at what the
        sink has of the hours that can be billed; None: once a day, and in every run until it
        agrees. held: customers whose usage is decided, and not sent; problems: what else somebody
        has to look at, which makes the run no good one. Raises InvalidValue, StorageError, and
        BillingError where another run is under way or nothing can be sent; what was decided until
        then is kept, and the next run goes on from there.
        """
        end = self._end(until)
        with one_run(self.place):
            if retry_refused:
                queue_refused(self.place, oldest_billable(self.clock()))
            self._close_if_due()
            customers = by_customer(links_of(self.place))
            self._expect(customers)
            for customer, links in customers.items():
                self._settle_all(self.place, customer, links, end)
            with tables(self.place) as conn:
                counted_until = max(end, int(setting(conn, _COUNTED_UNTIL) or 0))
                set_setting(conn, _COUNTED_UNTIL, str(counted_until))
            wanted = [customer for customer in customers if customer not in held] if held else None
            sent = Sender(self.place, sink, self.clock, self.sleep).run(wanted)
            compared = self._compare(sink) if self._is_comparing(compare) else None
            done = self._outcome(sent, compared, problems)
            self._note_run(done)
            return done

    def create_usage_record(self, sink: UsageSink, device_id: str, start: Any, end: Any) -> Report:
        """Report the closed UTC hours from `start` to `end` of the device's customer at that time.

        A customer's hour is one event over all its devices, so the other devices' energy in these
        hours is part of it. Hours that are not wholly inside, or not over yet, are left out.
        Parameters and errors as report()'s; also NotFound for a device, and BillingError for one
        that is not linked.
        """
        self.pm.get_device(device_id)
        if seconds_of("start", start) >= seconds_of("end", end):
            raise InvalidValue(f"end: expected a time after start, {start!r}, got {end!r}")
        first = next_hour(seconds_of("start", start))
        hours = range(first, max(first, self._end(end)))
        with one_run(self.place):
            links = links_of(self.place)
            of_device = [link for link in links if link.device_id == device_id]
            if not of_device:
                raise BillingError(
                    f"{device_id}: not linked to a customer: power-billing link does that"
                )
            customers = {link.customer for link in of_device if any(map(link.covers, hours))}
            wanted = {customer: by_customer(links)[customer] for customer in customers}
            self._expect(wanted)
            for customer, of_customer in wanted.items():
                usages = self._usages(self.place, of_customer)
                with tables(self.place) as conn:
                    _keep_meters_of(conn, usages)
                    book(conn, customer, usages, self._hours(conn, hours.stop, hours.start))
            sent = Sender(self.place, sink, self.clock, self.sleep).run(customers, hours)
            left, _ = self._left()
            left = [
                entry
                for entry in left
                if entry.event.customer in customers and entry.event.hour in hours
            ]
            with tables(self.place) as conn:
                return Report([revisions(conn, *key)[-1] for key in sorted(sent)], left)

    def preview(self, *, until: Any = None, retry_refused: bool = False) -> list[Entry]:
        """What report() would send, decided in a copy of the ledger; nothing is sent or kept."""
        end = self._end(until)
        oldest = oldest_billable(self.clock())
        with copy_in_memory(self.place) as copy:
            if retry_refused:
                queue_refused(copy, oldest)
            customers = by_customer(links_of(copy))
            self._expect(customers)
            for customer, links in customers.items():
                self._settle_all(copy, customer, links, end)
            with tables(copy) as conn:
                queued = entries_in(conn, State.QUEUED)
        return [entry for entry in queued if entry.event.hour >= oldest]

    # --- Consumption into the ledger

    def _end(self, until: Any) -> int:
        """The first hour that is not wanted: the present one, or that of `until`."""
        present = int(self.clock() // HOUR)
        return present if until is None else min(hour_of("until", until), present)

    def _hours(self, conn: sqlite3.Connection, end: int, begin: int = 0) -> Hours:
        """The hours to look at, and those from `begin` to before `end` that can be billed."""
        closed = closed_before(conn)
        seen = max(int(self.clock() // HOUR) - LOOK_BACK_DAYS * 24, closed)
        return Hours(seen, range(max(begin, oldest_billable(self.clock()), closed), end))

    def _settle_all(self, place: Place, customer: str, links: Sequence[Link], end: int) -> None:
        """Count the customer's hours that can still be billed, and note what cannot be."""
        usages = self._usages(place, links)
        now_hour = int(self.clock() // HOUR)
        found: list[Finding] = []
        with tables(place) as conn:
            _keep_meters_of(conn, usages)
            counted_until = setting(conn, _COUNTED_UNTIL)
            for link, usage in zip(links, usages):
                stop = now_hour if link.until_hour is None else link.until_hour
                found += device_findings(customer, usage, range(link.from_hour, stop), now_hour)
                if counted_until is not None:
                    covered = range(link.from_hour, link.until_hour or _FOR_EVER)
                    found += deleted_findings(customer, usage, covered, int(counted_until))
            hours = self._hours(conn, end)
            found += book(conn, customer, usages, hours)
            keep_findings(conn, customer, found, range(hours.seen, _FOR_EVER))

    @property
    def _source(self) -> UsageSource:
        return self.source or source_of(self.pm)

    def _expect(self, customers: Mapping[str, list[Link]], days: float = LOOK_BACK_DAYS) -> None:
        """Let a source that answers about many devices at once know what follows."""
        source = self._source
        if isinstance(source, BatchSource):
            device_ids = [link.device_id for links in customers.values() for link in links]
            source.expect(device_ids, days)

    def _usages(
        self, place: Place, links: Sequence[Link], days: float = LOOK_BACK_DAYS
    ) -> list[DeviceUsage]:
        """What each link's device used; without a lock, as a large fleet takes long."""
        source = self._source
        with tables(place) as conn:
            known = {link.device_id: known_meters(conn, link.device_id) for link in links}
        now = self.clock()
        usages = [device_usage(source, link, known[link.device_id], days) for link in links]
        if abs(self.clock() - now) > DAY:  # then what was read may begin too late
            raise BillingError("the clock was set while usage was read: try again")
        return usages

    def _close_if_due(self) -> None:
        """Once a month: look at all hours there are, and close the old ones."""
        now = self.clock()
        with tables(self.place) as conn:
            if not is_due(conn, now):
                return
            first_of_all = setting(conn, _LAST_RUN) is None
        if not first_of_all:
            customers = by_customer(links_of(self.place))
            self._expect(customers, ALL_DAYS)
            for customer, links in customers.items():
                self._look_at_old_hours(customer, links)
        with tables(self.place) as conn:
            close(conn, now)

    def _look_at_old_hours(self, customer: str, links: Sequence[Link]) -> None:
        """Note what came to light of hours that the usual runs no longer look at."""
        usages = self._usages(self.place, links, ALL_DAYS)
        with tables(self.place) as conn:
            seen = self._hours(conn, 0).seen
            old = Hours(closed_before(conn), range(seen, seen))
            found = [one for one in book(conn, customer, usages, old) if one.hour < seen]
            late = closed_findings(conn, customer, usages)
            keep_findings(conn, customer, found + late, range(seen))

    # --- What came of it

    def _left(self) -> tuple[list[Entry], list[Entry]]:
        """What is open of what can still be billed, and what is too old."""
        oldest = oldest_billable(self.clock())
        with tables(self.place) as conn:
            entries = open_entries(conn)
        return (
            [entry for entry in entries if entry.event.hour >= oldest],
            [entry for entry in entries if entry.event.hour < oldest],
        )

    def _outcome(
        self,
        sent: Iterable[tuple[str, int]],
        compared: Reconciliation | None,
        problems: Sequence[str],
    ) -> Report:
        left, too_old = self._left()
        with tables(self.place) as conn:
            rows = [revisions(conn, *key)[-1] for key in sorted(sent)]
            found = findings(conn)
        lost = [one for one in found if one.is_lost]
        kept = [one for one in found if one.kind is FindingKind.KEPT]
        return Report(rows, left, too_old, lost, kept, compared, list(problems))

    def _is_comparing(self, compare: bool | None) -> bool:
        if compare is not None:
            return compare
        with tables(self.place) as conn:
            return setting(conn, _RECONCILED_ON) != str(int(self.clock() // DAY))

    def _compare(self, sink: UsageSink) -> Reconciliation:
        now = self.clock()
        hours = range(oldest_billable(now), int(now // HOUR))
        compared = reconcile(self.place, sink, hours, now)
        if compared.is_clean:  # otherwise the next run compares again
            with tables(self.place) as conn:
                set_setting(conn, _RECONCILED_ON, str(int(now // DAY)))
        return compared

    def _note_run(self, done: Report) -> None:
        now = str(self.clock())
        with tables(self.place) as conn:
            set_setting(conn, _LAST_RUN, now)
            if done.complete:
                set_setting(conn, _LAST_GOOD_RUN, now)


def _keep_meters_of(conn: sqlite3.Connection, usages: Iterable[DeviceUsage]) -> None:
    for usage in usages:
        keep_meters(conn, usage.meters)


# --- Status


@dataclass(frozen=True)
class CustomerStatus:
    """What the ledger says of a customer; `billed_wh` is what was taken into account so far."""

    customer: str
    billed_wh: int
    counts: dict[State, int]  # events by state


@dataclass(frozen=True)
class Status:
    """What the ledger says, as of the last run.

    account: whom usage goes to; None: nobody yet. The times are epoch seconds, None before the
    first such run: a good one left nothing to be sent or to be looked at. deleted: linked devices
    that are not in the file any more. too_old: events that were not sent in time. problems: why the
    usage of these customers reaches no invoice, as far as Stripe was asked. other_ledgers:
    customers whom another ledger bills, and its id. tariff: None where every hour has the same
    price.
    """

    account: str | None
    last_run: float | None
    last_good_run: float | None
    links: list[Link]
    deleted: list[str]
    customers: list[CustomerStatus]
    open: list[Entry]
    too_old: list[Entry]
    findings: list[Finding]
    problems: dict[str, str]
    other_ledgers: dict[str, str] = field(default_factory=dict)
    tariff: Tariff | None = None

    @property
    def lost_wh(self) -> float:
        """Watt-hours that came to light or could be sent too late, and are not accepted as lost."""
        late = [one for one in self.findings if one.kind in LOST_ENERGY and one.is_lost]
        waited = sum(entry.event.watt_hours for entry in self.too_old)
        return waited + sum(one.watt_hours for one in late)

    def count(self, state: State) -> int:
        """How many events are open in that state."""
        return sum(entry.state is state for entry in self.open)


def status(
    pm: Devices, ledger: Place | None = None, clock: Callable[[], float] = time.time
) -> Status:
    """What the ledger says, in a time that does not grow with its years.

    ledger: where the billing tables are; None (default): in the library's file.
    """
    place = ledger or pm
    links = links_of(place)
    known = {device.id for device in pm.list_devices()}
    with tables(place) as conn:
        oldest = oldest_billable(clock())
        entries = open_entries(conn)
        last_run = setting(conn, _LAST_RUN)
        last_good_run = setting(conn, _LAST_GOOD_RUN)
        return Status(
            setting(conn, "account"),
            None if last_run is None else float(last_run),
            None if last_good_run is None else float(last_good_run),
            links,
            sorted({link.device_id for link in links} - known),
            [_customer_status(conn, customer) for customer in by_customer(links)],
            [entry for entry in entries if entry.event.hour >= oldest],
            [entry for entry in entries if entry.event.hour < oldest],
            findings(conn),
            customer_problems(conn),
            others_customers(conn),
            tariff_of(conn),
        )


def _customer_status(conn: sqlite3.Connection, customer: str) -> CustomerStatus:
    return CustomerStatus(customer, billed_wh(conn, customer), counts(conn, customer))


# --- In one call


def report(
    pm: Devices,
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
    """Bill the closed UTC hours from `start` to `end` of the customer that a device is linked to.

    It makes meter events: Stripe no longer has usage records. start and end are aware datetimes,
    ISO 8601 text with an offset, or epoch seconds; calling it again, or with overlapping times,
    bills nothing twice. pm and sink: default to the database in POWER_MANAGER_DB (power_manager.db
    here) and to Stripe with the key in STRIPE_API_KEY. Raises NotFound, InvalidValue, StorageError
    and BillingError.
    """
    with contextlib.ExitStack() as opened:
        if pm is None:
            pm = opened.enter_context(PowerManager(os.environ.get("POWER_MANAGER_DB") or DB_PATH))
        if sink is None:
            from power_billing.stripe_sinks import sink_from

            sink = sink_from(os.environ, pm)
        return Run(pm).create_usage_record(sink, device_id, start, end)


@contextlib.contextmanager
def one_run(place: Place) -> Iterator[None]:
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
