"""Where usage goes: the interface UsageSink, and a CSV file as one of them."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol, runtime_checkable

from power_billing.errors import BillingError
from power_billing.hours import HOUR, hour_of, iso
from power_manager import InvalidValue

EVENT_NAME = "power_watt_hours"  # of the meter, unless a ledger has one of its own


@dataclass(frozen=True)
class UsageEvent:
    """An hour (since 1970) of a customer is that many watt-hours; a later revision takes the place of an earlier one.

    Watt-hours are below 0 where a correction takes back more than the hour had. meter_name: the meter's name in events,
    at most as long as the default.
    """

    customer: str
    hour: int
    revision: int
    watt_hours: int
    meter_name: str = EVENT_NAME

    @property
    def identifier(self) -> str:
        """Unique, and the same whenever and by whomever it is made: at most 100 characters.

        Also by another ledger: the biller refuses the second event of an hour at once; see claims.
        """
        return f"{self.customer}:{self.meter_name}:{iso(self.hour)}:{self.revision}"

    @property
    def timestamp(self) -> int:
        """Epoch seconds inside the hour; a later revision's is later, should a biller go by that."""
        return self.hour * HOUR + min(self.revision, HOUR - 1)


class Outcome(str, Enum):
    """What came of sending an event."""

    SENT = "sent"  # the biller has it
    KNOWN = "known"  # the biller had an event of this identifier before, with whatever value
    REFUSED = "refused"  # the biller has said no, and would again
    LATER = "later"  # nobody knows, or not now: to be sent again, under the same identifier


@dataclass(frozen=True)
class Receipt:
    """An outcome, why, and how many seconds the biller wants to be left alone."""

    outcome: Outcome
    reason: str | None = None
    retry_after: float = 0.0


class CannotSayNow(Exception):
    """The biller could say what it has for an hour, and does not now."""


class UsageSink(Protocol):
    """A biller that takes usage. One file's usage goes to one biller.

    account: who takes it, such as one meter of one Stripe account. batch: how many events one call may have.
    """

    @property
    def account(self) -> str:
        """The name that the ledger remembers."""
        ...

    @property
    def batch(self) -> int:
        """The most events in one call."""
        ...

    def send(self, events: Sequence[UsageEvent]) -> list[Receipt]:
        """Send events of different hours or customers; return what came of each, in their order.

        An identifier that the biller has already is KNOWN. Raises BillingError where nothing can be sent at all.
        """
        ...

    def recorded(self, customer: str, hours: range) -> Mapping[int, int] | None:
        """The watt-hours that the biller has, by hour; an hour that is not there has none.

        None where it never can say. Raises CannotSayNow.
        """
        ...


@dataclass(frozen=True)
class Recorded:
    """Watt-hours that a biller has, by hour: on the meter that the hour belongs to, and on others."""

    own: dict[int, int] = field(default_factory=dict)
    misplaced: dict[int, int] = field(default_factory=dict)

    def whole(self) -> dict[int, int]:
        """Both together."""
        hours = {*self.own, *self.misplaced}
        return {hour: self.own.get(hour, 0) + self.misplaced.get(hour, 0) for hour in hours}


@runtime_checkable
class SinkOfMeters(Protocol):
    """A sink with several meters, of which each hour belongs to one."""

    def recorded_apart(self, customer: str, hours: range) -> Recorded:
        """What recorded() says, by whether it is on the hour's own meter. Raises CannotSayNow."""
        ...


@runtime_checkable
class ClaimingSink(Protocol):
    """A sink that knows which ledger bills a customer: see claims. Others leave that to whoever runs them.

    claim_seconds: how long an answer is relied on.
    """

    @property
    def claim_seconds(self) -> float:
        """Seconds; 0: every run asks."""
        ...

    def claim(self, customer: str, ledger_id: str, *, take_over: bool = False) -> str | None:
        """Let the ledger of that id bill the customer, where no other one does; return the id of the one that does.

        take_over: also where another one does. None: the biller has no such customer. Raises CannotSayNow.
        """
        ...


class CsvSink:
    """A CSV file for another biller, appended to: of an hour's rows, that with the highest revision counts.

    The rows of a customer are of one ledger, whose id they name.
    """

    COLUMNS = ("identifier", "customer", "hour", "revision", "watt_hours", "ledger")
    _HEAD = ",".join(COLUMNS) + "\n"
    batch = 1000
    claim_seconds = 0.0

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.account = f"csv:{os.path.realpath(path)}"
        self._ledgers: dict[str, str] = {}  # by customer: whose rows send() writes

    def send(self, events: Sequence[UsageEvent]) -> list[Receipt]:
        """Append the events that are not there yet; they are on the disk when this returns."""
        try:
            self._cut_torn_line()
            there = {row["identifier"] for row in self._rows()}
            new = [event for event in events if event.identifier not in there]
            self._write([[*_csv_row(one), self._ledgers.get(one.customer, "")] for one in new])
        except OSError as error:
            return [Receipt(Outcome.LATER, f"{self.path}: {error.strerror}")] * len(events)
        known = Receipt(Outcome.KNOWN, "the file has a row of that identifier")
        sent = Receipt(Outcome.SENT)
        return [known if event.identifier in there else sent for event in events]

    def claim(self, customer: str, ledger_id: str, *, take_over: bool = False) -> str:
        """The ledger of the customer's last row, or this one; taking over repeats that row in this one's name.

        Raises CannotSayNow for a file that cannot be read or written.
        """
        rows = [row for row in self._readable_rows() if row["customer"] == customer]
        owner = rows[-1]["ledger"] if rows else ledger_id
        if owner != ledger_id and not take_over:
            return owner
        if owner != ledger_id:
            self._append([[*list(rows[-1].values())[:-1], ledger_id]])
        self._ledgers[customer] = ledger_id
        return ledger_id

    def recorded(self, customer: str, hours: range) -> dict[int, int]:
        """What the file says. Raises CannotSayNow for a file that cannot be read."""
        rows = self._readable_rows()
        newest: dict[int, tuple[int, int]] = {}
        for row in rows:
            if row["customer"] == customer:
                hour, value = self._value(row)
                newest[hour] = max(value, newest.get(hour, value))
        return {hour: wh for hour, (_, wh) in newest.items() if hour in hours}

    def _value(self, row: dict[str, str]) -> tuple[int, tuple[int, int]]:
        """A row's hour, and its revision and watt-hours. Raises BillingError for a row that somebody has changed."""
        try:
            return hour_of("hour", row["hour"]), (int(row["revision"]), int(row["watt_hours"]))
        except (InvalidValue, TypeError, ValueError):
            raise BillingError(
                f"{self.path}: {row['identifier']}: not a row of this sink: put it right, or take the row out"
            ) from None

    def _append(self, rows: Sequence[Sequence[str | int]]) -> None:
        try:
            self._cut_torn_line()
            self._write(rows)
        except OSError as error:
            raise CannotSayNow(f"{self.path}: {error.strerror}") from None

    def _write(self, rows: Sequence[Sequence[str | int]]) -> None:
        """Append rows to what is whole; they are on the disk when this returns."""
        with open(self.path, "a", newline="", encoding="utf-8", opener=_private) as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(self.COLUMNS)
            writer.writerows(rows)
            file.flush()
            os.fsync(file.fileno())

    def _readable_rows(self) -> list[dict[str, str]]:
        try:
            return self._rows()
        except OSError as error:
            raise CannotSayNow(f"{self.path}: {error.strerror}") from None

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            head = file.readline()
            if not self._HEAD.startswith(
                head.replace("\r\n", "\n")
            ):  # a crash may have left only a part of it
                raise BillingError(
                    f"{self.path}: not a file of this sink: it begins with {head[:80].rstrip()!r}"
                )
            whole = (line for line in file if line.endswith("\n"))  # a torn line is none yet
            return list(csv.DictReader(whole, self.COLUMNS))

    def _cut_torn_line(self) -> None:
        """What a crash has left of a line goes; its event is sent again."""
        self._rows()  # refuses a file of somebody else's before it is touched
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.path, whole)


def _csv_row(event: UsageEvent) -> list[str | int]:
    return [event.identifier, event.customer, iso(event.hour), event.revision, event.watt_hours]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
