"""A month's statement: what each customer was billed, by device and day, what came after the invoice, what is missing.

Days are UTC days, as hours are UTC hours. What was billed of an hour is what the biller has of it: the newest event
that it took. Money is that at the price, rounded once over the month, as on an invoice; its parts are differences of
rounded running sums, so they add up to it.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal

from power_billing.closing import closed_days
from power_billing.errors import BillingError
from power_billing.findings import Finding, FindingKind, findings
from power_billing.hours import HOUR, day_of
from power_billing.ledger import by_customer, counted_by_day
from power_billing.links import Link, links_of
from power_billing.money import Price
from power_billing.outbox import Entry, State, entries_of
from power_billing.sources import NANO
from power_billing.tables import Place, tables
from power_manager import InvalidValue, NotFound, PowerManager

# Stripe waits an hour after the end of a period before it makes the invoice final.
INVOICE_GRACE_HOURS = 1


@dataclass(frozen=True)
class Month:
    """A calendar month of UTC: its hours since 1970, from `first` on and before `end`."""

    name: str
    first: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Month:
        """A month such as 2026-10. Raises InvalidValue.

        >>> Month.parse("2026-02").end - Month.parse("2026-02").first
        672
        """
        found = re.fullmatch(r"([0-9]{4})-([0-9]{2})", text)
        if found is None or not 1970 <= int(found[1]) < 2200 or not 1 <= int(found[2]) <= 12:
            raise InvalidValue(f"month: expected a month such as 2026-10, got {text!r}")
        year, month = int(found[1]), int(found[2])
        following = (year + 1, 1) if month == 12 else (year, month + 1)
        begin = datetime(year, month, 1, tzinfo=timezone.utc)
        end = datetime(*following, 1, tzinfo=timezone.utc)
        return cls(text, int(begin.timestamp()) // HOUR, int(end.timestamp()) // HOUR)

    @property
    def hours(self) -> range:
        """Its hours."""
        return range(self.first, self.end)


@dataclass(frozen=True)
class Line:
    """Energy and what it costs; `cost` is in the currency's main unit, None where there is no price."""

    watt_hours: Decimal
    cost: Decimal | None


@dataclass(frozen=True)
class DeviceLines:
    """What a device used in billed hours, by day (2026-10-31) and in all. `name` is None for one that was deleted."""

    device_id: str
    name: str | None
    days: dict[str, Line]
    total: Line


@dataclass(frozen=True)
class Late:
    """An hour that changed after the invoice: what was billed of it until then, and since."""

    hour: int
    before_wh: int
    after_wh: int


@dataclass(frozen=True)
class Unbilled:
    """An hour of which something is not billed, and why; `watt_hours` may be negative: billed too much."""

    hour: int
    watt_hours: Decimal
    reason: str


@dataclass(frozen=True)
class CustomerStatement:
    """One customer's month. `other` is what is billed and of no device: rounding, readings that are gone or changed."""

    customer: str
    devices: list[DeviceLines]
    days: dict[str, Line]
    other: Line
    total: Line
    late: list[Late]
    unbilled: list[Unbilled]


@dataclass(frozen=True)
class Statement:
    """A month of all customers, or of one. `is_over`: whether the month is, with the hour that an invoice waits."""

    month: Month
    price: Price | None
    is_over: bool
    customers: list[CustomerStatement]
    total: Line


def make_statement(
    pm: PowerManager,
    place: Place,
    month: Month,
    *,
    customer: str | None = None,
    price: Price | None = None,
    clock: Callable[[], float] = time.time,
) -> Statement:
    """The statement of a month, for every customer who was billed then or is linked, or for one.

    Raises BillingError for a customer of whom there is nothing, and InvalidValue for a month that has not begun.
    """
    now = clock()
    if month.first * HOUR > now:
        raise InvalidValue(f"month: {month.name} has not begun")
    links = by_customer(links_of(place))
    if customer is not None and customer not in links:
        raise BillingError(f"{customer}: no device was ever billed to it: see power-billing status")
    found = []
    for name in sorted(links if customer is None else [customer]):
        one = _of_customer(pm, place, month, name, links[name], price, now)
        if customer is not None or one.days or one.late or one.unbilled:
            found.append(one)
    total_wh = sum((one.total.watt_hours for one in found), Decimal(0))
    costs = [one.total.cost for one in found if one.total.cost is not None]
    total = Line(total_wh, None if price is None else sum(costs, Decimal(0)))
    is_over = now >= (month.end + INVOICE_GRACE_HOURS) * HOUR
    return Statement(month, price, is_over, found, total)


def _of_customer(
    pm: PowerManager,
    place: Place,
    month: Month,
    customer: str,
    links: list[Link],
    price: Price | None,
    now: float,
) -> CustomerStatement:
    with tables(place) as conn:
        events = _by_hour(entries_of(conn, customer, month.hours))
        closed = closed_days(conn, customer, month.hours)
        counted = counted_by_day(conn, customer, month.hours)
        found = [one for one in findings(conn) if one.customer == customer]
    billed = {hour: taken for hour, rows in events.items() if (taken := _taken(rows)) is not None}
    lines = _Lines(price)
    devices = [
        _of_device(pm, device_id, counted.get(device_id, {}), lines)
        for device_id in dict.fromkeys([*_by_device(links, month), *counted])
    ]
    total_wh = sum(billed.values()) + sum(closed.values())
    other = lines.add(Decimal(total_wh) - lines.watt_hours)
    by_day: dict[str, int] = defaultdict(int)
    for hour in billed:
        by_day[day_of(hour)] += billed[hour]
    for day, wh in closed.items():
        by_day[day_of(day * 24)] += wh
    of_days = _Lines(price)
    days = {day: of_days.add(Decimal(by_day[day])) for day in sorted(by_day)}
    deadline = (month.end + INVOICE_GRACE_HOURS) * HOUR
    late = []
    unbilled = []
    for hour in sorted(events):
        late += _late(hour, events[hour], deadline)
        unbilled += _open(hour, events[hour])
    unbilled += [
        _unbilled(one) for one in found if one.kind in _REASONS and one.hour in month.hours
    ]
    return CustomerStatement(customer, devices, days, other, lines.total, late, unbilled)


# --- What was billed


def _by_hour(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    found: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.event.hour].append(entry)
    return dict(found)


def _taken(rows: list[Entry]) -> int | None:
    """What the biller has of an hour, by its events in order; None where it has none."""
    sent = [row.event.watt_hours for row in rows if row.state in (State.SENT, State.KEPT)]
    return sent[-1] if sent else None


def _late(hour: int, rows: list[Entry], deadline: float) -> list[Late]:
    """What an hour's events changed after that time, if anything."""
    sent = [row for row in rows if row.state is State.SENT]
    in_time = [row for row in sent if row.attempted_at is None or row.attempted_at < deadline]
    if len(in_time) == len(sent):
        return []
    before = in_time[-1].event.watt_hours if in_time else 0
    after = sent[-1].event.watt_hours
    return [] if before == after else [Late(hour, before, after)]


def _open(hour: int, rows: list[Entry]) -> list[Unbilled]:
    """What is still to be sent of an hour, or was refused, if anything."""
    newest = rows[-1]
    if newest.state not in (State.QUEUED, State.REFUSED, State.CONFLICT, State.LOST):
        return []
    difference = newest.event.watt_hours - (_taken(rows) or 0)
    what = "waiting" if newest.state is State.QUEUED else newest.state.value
    return [Unbilled(hour, Decimal(difference), f"{what}: {newest.reason or 'not sent yet'}")]


_REASONS = {
    FindingKind.LATE: "came to light too late to be billed",
    FindingKind.SENSOR: "more than any device draws: a broken sensor's",
}


def _unbilled(one: Finding) -> Unbilled:
    return Unbilled(one.hour, Decimal(str(one.watt_hours)), _REASONS[one.kind])


# --- By device


def _by_device(links: list[Link], month: Month) -> dict[str, list[Link]]:
    """The links that bill some of the month, by device in order of linking."""
    found: dict[str, list[Link]] = defaultdict(list)
    for one in links:
        ends = month.end if one.until_hour is None else one.until_hour
        if max(one.from_hour, month.first) < min(ends, month.end):
            found[one.device_id].append(one)
    return dict(found)


def _of_device(
    pm: PowerManager, device_id: str, counted: dict[int, int], lines: _Lines
) -> DeviceLines:
    """What the device was billed: `counted` nano-watt-hours, by day since 1970."""
    before = lines.total
    days = {day_of(day * 24): lines.add(Decimal(counted[day]) / NANO) for day in sorted(counted)}
    total = lines.since(before)
    try:
        name = pm.get_device(device_id).name
    except NotFound:
        return DeviceLines(device_id, None, days, total)
    return DeviceLines(device_id, name, days, total)


@dataclass
class _Lines:
    """Adds up lines so that their costs, each rounded, are together the rounded cost of their sum."""

    price: Price | None
    watt_hours: Decimal = field(default=Decimal(0))

    def add(self, watt_hours: Decimal) -> Line:
        """The line of so many watt-hours more."""
        before = self.total
        self.watt_hours += watt_hours
        return Line(watt_hours, self.since(before).cost)

    @property
    def total(self) -> Line:
        """All of them so far."""
        cost = None if self.price is None else self.price.cost(self.watt_hours)
        return Line(self.watt_hours, cost)

    def since(self, before: Line) -> Line:
        """All of them since a total of before."""
        now = self.total
        cost = None if now.cost is None or before.cost is None else now.cost - before.cost
        return Line(now.watt_hours - before.watt_hours, cost)
