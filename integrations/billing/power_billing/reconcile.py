"""The ledger compared with what the biller has, hour by hour."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from power_billing.claims import others_customers, waiting_reason
from power_billing.closing import closed_before, closed_days
from power_billing.errors import CannotSayNow
from power_billing.hours import HOUR
from power_billing.outbox import TAKEN, Entry, State, entries_of, note_theirs, revise
from power_billing.periods import (
    PLAIN,
    DayPeriod,
    HourPeriods,
    hour_periods,
    note_periods,
)
from power_billing.sender import check_account
from power_billing.sinks import CsvSink, Recorded, SinkOfMeters, UsageSink
from power_billing.tables import Place, tables

SETTLING = HOUR  # seconds: Stripe's summaries follow its events; a file needs no such time
# A repair is a revision with a later timestamp than those that others may have sent of the hour.
REPAIR_STEP = 100


@dataclass(frozen=True)
class Difference:
    """Hours (since 1970), one or a closed day's, of which the biller and the ledger differ.

    is_foreign: the hour is somebody else's: nothing was ever sent from here, or somebody has kept
    what the biller had. period: which the hours belong to; "" where there is no tariff.
    misplaced_wh: what of the biller's is on another period's meter, where no event of ours replaces
    it.
    """

    customer: str
    hours: range
    ours_wh: int
    theirs_wh: int
    entries: list[Entry] = field(default_factory=list)
    period: str = PLAIN
    misplaced_wh: int = 0

    @property
    def is_foreign(self) -> bool:
        """Whether the hour was sent from elsewhere, so that a person decides."""
        is_kept = bool(self.entries) and self.entries[-1].state is State.KEPT
        return is_kept or (not self.entries and len(self.hours) == 1)

    @property
    def day(self) -> int:
        """The UTC day, since 1970."""
        return self.hours.start // 24

    @property
    def group(self) -> tuple[str, int, str]:
        """The customer, the day and the period that it is shown with."""
        return self.customer, self.day, self.period


@dataclass(frozen=True)
class Reconciliation:
    """What was compared; differences by customer, day, period and hour.

    unsaid: why the biller does not say what it has, by customer. settling_count: hours that were
    left out because they were sent within the last hour.
    """

    hours: range
    differences: list[Difference]
    unsaid: dict[str, str]
    settling_count: int

    @property
    def is_clean(self) -> bool:
        """Whether everything could be compared, and agrees."""
        return not self.differences and not self.unsaid


@dataclass(frozen=True)
class Repair:
    """What came of repairing differences.

    queued_count: hours of which a revision was made; `repaired` are those whose revision the biller
    has taken. The others cannot be repaired from here: they are too old, have usage on another
    period's meter, or were never sent from here; a difference may be too old and on another meter.
    """

    repaired: list[Difference]
    queued_count: int
    too_old_count: int
    misplaced_count: int
    foreign_count: int


def reconcile(place: Place, sink: UsageSink, hours: range, now: float) -> Reconciliation:
    """Compare those hours of every customer that the ledger knows.

    Raises BillingError where nothing can be asked, and for a sink that is not the ledger's.

    Hours that are open are left out: report and status list them. An hour that somebody has left to
    the biller is compared with what was kept. Customers of another ledger are not compared.
    """
    differences: list[Difference] = []
    unsaid: dict[str, str] = {}
    settling_count = 0
    sent_before = now if isinstance(sink, CsvSink) else now - SETTLING
    with tables(place) as conn:
        check_account(conn, place, sink)
        sql = "SELECT customer FROM billing_totals ORDER BY customer"
        customers = [customer for (customer,) in conn.execute(sql)]
        others = others_customers(conn)
    for customer in customers:
        if customer in others:
            unsaid[customer] = waiting_reason(others[customer])
            continue
        try:
            theirs = _recorded(sink, customer, hours)
        except CannotSayNow as error:
            unsaid[customer] = str(error)
            continue
        if theirs is None:
            unsaid[customer] = f"{sink.account} cannot say what it has"
            continue
        with tables(place) as conn:
            ours = _sent(conn, customer, hours, sent_before)
            there = theirs.whole()
            for entry in ours.refused:  # an earlier event of the hour may have arrived
                note_theirs(conn, entry.event, there.get(entry.event.hour, 0))
        settling_count += ours.settling_count
        differences += _differences(customer, ours, theirs)
    differences.sort(key=lambda one: one.group)
    return Reconciliation(hours, differences, unsaid, settling_count)


def repair(place: Place, differences: Iterable[Difference], oldest: int) -> int:
    """Queue the ledger's values of hours that differ; return how many hours that are.

    Hours that were sent from elsewhere become conflicts, which a person decides. Hours too old to
    be billed, closed days, and what is on another period's meter cannot be repaired.
    """
    count = 0
    with tables(place) as conn:
        for one in differences:
            hour = one.hours.start
            if hour < oldest or len(one.hours) > 1 or one.misplaced_wh:
                continue
            if one.is_foreign:
                reason = f"the biller has {one.theirs_wh} Wh from elsewhere"
                note_periods(conn, [hour])
                ours = [entry for entry in one.entries if entry.state is not State.KEPT]
                ours_wh = ours[-1].event.watt_hours if ours else 0
                revise(conn, one.customer, hour, ours_wh, State.CONFLICT, reason, one.theirs_wh)
                continue
            reason = f"repair: the biller had {one.theirs_wh} Wh"
            revise(
                conn,
                one.customer,
                hour,
                one.ours_wh,
                reason=reason,
                theirs_wh=one.theirs_wh,
                step=REPAIR_STEP,
            )
            count += 1
    return count


def _recorded(sink: UsageSink, customer: str, hours: range) -> Recorded | None:
    """What the sink has; None where it never can say."""
    if isinstance(sink, SinkOfMeters):
        return sink.recorded_apart(customer, hours)
    recorded = sink.recorded(customer, hours)
    return None if recorded is None else Recorded(dict(recorded))


@dataclass
class _Sent:
    """What was sent of a customer's hours, or kept.

    open_hours: those that are not compared; `refused` are some of them.
    """

    periods: HourPeriods
    by_hour: dict[int, int] = field(default_factory=dict)
    entries: dict[int, list[Entry]] = field(default_factory=dict)
    open_hours: set[int] = field(default_factory=set)
    refused: list[Entry] = field(default_factory=list)
    closed_before: int = 0
    by_closed_day: dict[DayPeriod, int] = field(default_factory=dict)
    settling_count: int = 0


def _sent(conn: sqlite3.Connection, customer: str, hours: range, sent_before: float) -> _Sent:
    found = _Sent(hour_periods(conn, hours), closed_before=closed_before(conn))
    by_hour: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries_of(conn, customer, hours):
        by_hour[entry.event.hour].append(entry)
    for hour, entries in by_hour.items():
        newest = entries[-1]
        attempted_at = newest.attempted_at
        is_settling = attempted_at is not None and attempted_at > sent_before
        if newest.state in TAKEN and not is_settling:
            found.by_hour[hour] = newest.event.watt_hours
            found.entries[hour] = entries
        else:
            found.open_hours.add(hour)
            found.settling_count += newest.state is State.SENT
        if newest.state is State.REFUSED:
            found.refused.append(newest)
    found.by_closed_day = closed_days(conn, customer, hours)
    return found


def _differences(customer: str, ours: _Sent, theirs: Recorded) -> list[Difference]:
    found = []
    there = theirs.whole()
    days = {day: _Sum(ours_wh) for day, ours_wh in ours.by_closed_day.items()}
    for hour in sorted({*ours.by_hour, *there} - ours.open_hours):
        period = ours.periods.of(hour)
        one = _Sum(ours.by_hour.get(hour, 0), there.get(hour, 0), theirs.misplaced.get(hour, 0))
        if hour < ours.closed_before:
            days.setdefault(DayPeriod(hour // 24, period), _Sum()).add(one)
        elif not one.agrees:
            hours = range(hour, hour + 1)
            entries = ours.entries.get(hour, [])
            found.append(one.difference(customer, hours, period, entries))
    for day, whole in sorted(days.items()):
        if not whole.agrees:
            hours = range(day.day * 24, day.day * 24 + 24)
            found.append(whole.difference(customer, hours, day.period, []))
    return found


@dataclass
class _Sum:
    """What was sent from here, what the biller has, and how much is on another period's meter."""

    ours_wh: int = 0
    theirs_wh: int = 0
    misplaced_wh: int = 0

    def add(self, other: _Sum) -> None:
        self.ours_wh += other.ours_wh
        self.theirs_wh += other.theirs_wh
        self.misplaced_wh += other.misplaced_wh

    @property
    def agrees(self) -> bool:
        return self.ours_wh == self.theirs_wh and not self.misplaced_wh

    def difference(
        self, customer: str, hours: range, period: str, entries: list[Entry]
    ) -> Difference:
        return Difference(
            customer, hours, self.ours_wh, self.theirs_wh, entries, period, self.misplaced_wh
        )
