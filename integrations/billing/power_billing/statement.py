"""A month's statement: what each customer was billed by device and day, what came late or is open.

Days are UTC days, as hours are UTC hours. What was billed of an hour is what the biller has of it:
the newest event that it took. Money is that at the price, or at that of each period of the tariff,
rounded once over the month, as on an invoice; its parts are differences of rounded running sums, so
they add up to it. All of it is the ledger's: readings that are gone since change nothing.
"""

from __future__ import annotations

import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from power_billing.closing import closed_days
from power_billing.errors import BillingError
from power_billing.findings import UNMEASURED, Finding, FindingKind, findings
from power_billing.hours import HOUR, day_of
from power_billing.ledger import by_customer, counted_by_day
from power_billing.links import links_of, links_to
from power_billing.money import Price
from power_billing.outbox import TAKEN, Entry, State, entries_of
from power_billing.periods import PLAIN, DayPeriod, hour_periods, tariff_of
from power_billing.sources import NANO, Devices
from power_billing.tables import Place, tables
from power_billing.tariff import Tariff
from power_manager import InvalidValue

# Stripe waits an hour after the end of a period before it makes the invoice final.
INVOICE_GRACE_HOURS = 1
Prices = Mapping[str, Price | None]  # by period; None: there is no price
_REASONS = {
    FindingKind.LATE: "came to light too late to be billed",
    FindingKind.UNCLEAR: "of an hour of which a meter was deleted",
    FindingKind.SENSOR: "more than any device draws: look at the sensor",
    FindingKind.NO_ENERGY: "from then on readings, but no energy in most hours",
    FindingKind.SILENT: "from then on no readings",
    FindingKind.DELETED: "from then on readings that were deleted before they were counted",
}


@dataclass(frozen=True)
class Line:
    """Energy and what it costs; `cost` is in the currency's main unit; None: there is no price."""

    watt_hours: Decimal
    cost: Decimal | None


@dataclass(frozen=True)
class DeviceLines:
    """What a device used in billed hours, by day (2026-10-31) and in all.

    name: None for a device that was deleted.
    """

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
    """An hour that is not billed in full, and why; negative watt-hours: billed too much.

    watt_hours: None where nothing was measured, from that hour on.
    """

    hour: int
    watt_hours: Decimal | None
    reason: str


@dataclass(frozen=True)
class CustomerStatement:
    """One customer's month.

    other: what the total has beside the devices' sums: rounding, and what of theirs is not billed.
    periods: the total by period of the tariff; empty without a tariff.
    """

    customer: str
    devices: list[DeviceLines]
    days: dict[str, Line]
    other: Line
    total: Line
    late: list[Late]
    unbilled: list[Unbilled]
    periods: dict[str, Line] = field(default_factory=dict)


@dataclass(frozen=True)
class Statement:
    """A month of all customers, or of one.

    is_over: whether the month is over, and the hour that an invoice waits. price: that of every
    hour; None: there is no price, or a tariff.
    """

    month: str
    price: Price | None
    is_over: bool
    customers: list[CustomerStatement]
    total: Line
    tariff: Tariff | None = None

    @property
    def some_price(self) -> Price | None:
        """One of the prices, which share their currency and unit; None: there is none."""
        return self.price if self.tariff is None else self.tariff.periods[0].price


def make_statement(
    pm: Devices,
    place: Place,
    hours: range,
    *,
    customer: str | None = None,
    price: Price | None = None,
    tariff: Tariff | None = None,
    clock: Callable[[], float] = time.time,
) -> Statement:
    """The statement of a month of UTC, for every customer with something in it, or for one.

    hours: those of the month, since 1970.

    price: of every hour, where the ledger has no tariff (default: none, and no money is named).
    tariff: the ledger's, with other prices (default: with those that it has now). Raises
    BillingError for a customer to whom no device was ever billed, for a price where there is a
    tariff, and for a tariff that is not the ledger's; InvalidValue for a month to come.
    """
    now = clock()
    month = day_of(hours.start)[: len("2026-10")]
    if hours.start * HOUR > now:
        raise InvalidValue(f"month: {month} has not begun")
    links = links_of(place) if customer is None else links_to(place, customer)
    customers = sorted(by_customer(links))
    names = {device.id: device.name for device in pm.list_devices()}
    tariff = _tariff(place, price, tariff)
    prices: Prices = {PLAIN: price} if tariff is None else tariff.prices()
    found = []
    for name in customers:
        with tables(place) as conn:
            one = _of_customer(conn, hours, name, names, prices)
        if customer is not None or one.devices or one.days or one.late or one.unbilled:
            found.append(one)
    total_wh = sum((one.total.watt_hours for one in found), Decimal(0))
    costs = [one.total.cost for one in found if one.total.cost is not None]
    has_price = price is not None or tariff is not None
    total = Line(total_wh, sum(costs, Decimal(0)) if has_price else None)
    is_over = now >= (hours.stop + INVOICE_GRACE_HOURS) * HOUR
    return Statement(month, price, is_over, found, total, tariff)


def _tariff(place: Place, price: Price | None, wanted: Tariff | None) -> Tariff | None:
    """The ledger's tariff, with the prices of `wanted` if that is given; None: it has none."""
    with tables(place) as conn:
        present = tariff_of(conn)
    if present is not None and price is not None:
        raise BillingError(
            f"{place.db_path}: it has a tariff, so one price does not do: give other prices by "
            "--tariff FILE"
        )
    if wanted is None:
        return present
    if present is None or not present.has_same_hours(wanted):
        raise BillingError(
            f"{place.db_path}: hours were not counted by this tariff: its zone, hours and periods "
            "must be those given to power-billing setup"
        )
    return wanted


def _of_customer(
    conn: sqlite3.Connection,
    hours: range,
    customer: str,
    names: dict[str, str],
    prices: Prices,
) -> CustomerStatement:
    events = _by_hour(entries_of(conn, customer, hours))
    period_of = hour_periods(conn, hours).of
    taken: dict[DayPeriod, int] = defaultdict(int, closed_days(conn, customer, hours))
    for hour, rows in events.items():
        taken[DayPeriod(hour // 24, period_of(hour))] += _taken(rows)
    lines = _Lines(prices)
    devices = [
        _of_device(device_id, names.get(device_id), counted, lines)
        for device_id, counted in sorted(counted_by_day(conn, customer, hours).items())
    ]
    of_days = _Lines(prices)
    days = {day_of(day * 24): of_days.add(parts) for day, parts in _by_day(taken).items()}
    other = lines.add(of_days.beside(lines))
    periods = {period: lines.of(period) for period in prices if period != PLAIN}
    deadline = (hours.stop + INVOICE_GRACE_HOURS) * HOUR
    late = []
    unbilled = []
    for hour in sorted(events):
        late += _late(hour, events[hour], deadline)
        unbilled += _open(hour, events[hour])
    for one in findings(conn):
        if one.customer == customer and one.kind in _REASONS and _is_of(one, hours):
            reason = f"{_REASONS[one.kind]} ({one.device_id})"
            is_known = one.kind not in UNMEASURED
            wh = Decimal(str(one.watt_hours)) if is_known else None
            unbilled.append(Unbilled(one.hour, wh, reason))
    return CustomerStatement(customer, devices, days, other, lines.total, late, unbilled, periods)


def _is_of(finding: Finding, hours: range) -> bool:
    """Whether a month has it: what is not measured lasts from its hour on until now."""
    if finding.kind in (FindingKind.NO_ENERGY, FindingKind.SILENT):
        return finding.hour < hours.stop
    return finding.hour in hours


# --- What was billed


def _by_hour(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    found: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        found[entry.event.hour].append(entry)
    return dict(found)


def _taken(rows: list[Entry]) -> int:
    """What the biller has of an hour: by its answer about the last event, or by what it took."""
    if rows and rows[-1].state not in TAKEN and rows[-1].theirs_wh is not None:
        return rows[-1].theirs_wh
    taken = [row.event.watt_hours for row in rows if row.state in TAKEN]
    return taken[-1] if taken else 0


def _late(hour: int, rows: list[Entry], deadline: float) -> list[Late]:
    """What an hour's events changed after that time, if anything."""
    taken = [row for row in rows if row.state in TAKEN]
    in_time = [row for row in taken if _taken_at(row) < deadline]
    late = [row for row in taken if _taken_at(row) >= deadline]
    before_wh, after_wh = _taken(in_time), _taken(taken)
    if late and late[0].theirs_wh is not None:  # a repair: the biller was asked what it had
        before_wh = late[0].theirs_wh
    return [] if before_wh == after_wh else [Late(hour, before_wh, after_wh)]


def _taken_at(row: Entry) -> float:
    """When the biller took an event, as far as it is known; 0 for what was found there."""
    if row.taken_at is not None:
        return row.taken_at
    return 0.0 if row.attempted_at is None else row.attempted_at


def _open(hour: int, rows: list[Entry]) -> list[Unbilled]:
    """What the biller does not have of an hour: it waits, was refused, or a person decides."""
    newest = rows[-1]
    if newest.state in (*TAKEN, State.SUPERSEDED):
        return []
    difference = newest.event.watt_hours - _taken(rows)
    what = "waiting" if newest.state is State.QUEUED else newest.state.value
    return [Unbilled(hour, Decimal(difference), f"{what}: {newest.reason or 'not sent yet'}")]


# --- By device


def _of_device(
    device_id: str, name: str | None, counted_nwh: Mapping[DayPeriod, int], lines: _Lines
) -> DeviceLines:
    """What was counted of a device."""
    before = lines.total
    days = {
        day_of(day * 24): lines.add({period: nwh / NANO for period, nwh in parts.items()})
        for day, parts in _by_day(counted_nwh).items()
    }
    return DeviceLines(device_id, name, days, lines.since(before))


def _by_day(values: Mapping[DayPeriod, int]) -> dict[int, dict[str, Decimal]]:
    """Values by day, in order, and period."""
    found: dict[int, dict[str, Decimal]] = defaultdict(dict)
    for key in sorted(values):
        found[key.day][key.period] = Decimal(values[key])
    return found


@dataclass
class _Lines:
    """Adds up lines so that their rounded costs add up to the rounded costs of the periods."""

    prices: Prices
    watt_hours: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))

    def add(self, parts: Mapping[str, Decimal]) -> Line:
        """The line of so many watt-hours more, by period."""
        before = self.total
        for period, watt_hours in parts.items():
            self.watt_hours[period] += watt_hours
        return Line(sum(parts.values(), Decimal(0)), self.since(before).cost)

    def beside(self, others: _Lines) -> dict[str, Decimal]:
        """What these have and others have not, by period."""
        return {
            period: self.watt_hours[period] - others.watt_hours[period] for period in self.prices
        }

    def of(self, period: str) -> Line:
        """All of a period so far."""
        price = self.prices[period]
        watt_hours = self.watt_hours[period]
        return Line(watt_hours, None if price is None else price.cost(watt_hours))

    @property
    def total(self) -> Line:
        """All of them so far."""
        lines = [self.of(period) for period in self.prices]
        costs = [line.cost for line in lines if line.cost is not None]
        watt_hours = sum((line.watt_hours for line in lines), Decimal(0))
        return Line(watt_hours, sum(costs, Decimal(0)) if costs else None)

    def since(self, before: Line) -> Line:
        """All of them since a total of before."""
        now = self.total
        cost = None if now.cost is None or before.cost is None else now.cost - before.cost
        return Line(now.watt_hours - before.watt_hours, cost)
