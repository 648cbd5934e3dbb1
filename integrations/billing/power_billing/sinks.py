"""Where usage goes: the interface UsageSink, and a CSV file as one of them."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol, runtime_checkable

from power_billing.errors import BillingError, CannotSayNow
from power_billing.hours import HOUR, hour_of, iso
from power_manager import InvalidValue, check_text

_MAX_PATH = 4096  # characters: no system has longer ones
EVENT_NAME = "power_watt_hours"  # of the meter, unless a ledger has one of its own


@dataclass(frozen=True)
class UsageEvent:
    """What a customer used in an hour (since 1970); a later revision replaces an earlier one.

    Watt-hours are below 0 where a correction takes back more than the hour had. meter_name: the
    meter's name in events, at most as long as the default.
    """

    customer: str
    hour: int
    revision: int
    watt_hours: int
    meter_name: str = EVENT_NAME

    @property
    def identifier(self) -> str:
        """Unique, at most 100 characters, and the same whenever it is made.

        Another ledger makes the same one, so that the biller refuses an hour's second event at
        once: see claims.
        """
        return f"{self.customer}:{self.meter_name}:{iso(self.hour)}:{self.revision}"

    @property
    def timestamp(self) -> int:
        """Epoch seconds inside the hour, later for a later revision: a biller may go by that."""
        return self.hour * HOUR + min(self.revision, HOUR - 1)


class Outcome(str, Enum):
    """What came of sending an event."""

    SENT = "sent"  # the biller has it
    KNOWN = "known"  # the biller already had an event of this identifier, with any value
    REFUSED = "refused"  # the biller said no, and would say so again
    LATER = "later"  # unknown, or not now: send it again under the same identifier


@dataclass(frozen=True)
class Receipt:
    """An outcome, its reason, and for how many seconds the biller wants no calls."""

    outcome: Outcome
    reason: str | None = None
    retry_after: float = 0.0


class UsageSink(Protocol):
    """A biller that takes usage. One file's usage goes to one biller.

    account: who takes it, such as one meter of one Stripe account. batch: how many events one call
    may have.
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
        """Send events of different hours or customers; return each one's outcome, in their order.

        An identifier that the biller has already is KNOWN. Raises BillingError where nothing can be
        sent at all.
        """
        ...

    def recorded(self, customer: str, hours: range) -> Mapping[int, int] | None:
        """The watt-hours that the biller has, by hour; an hour without a value is left out.

        None: it can never say. Raises CannotSayNow.
        """
        ...


@dataclass(frozen=True)
class Recorded:
    """Watt-hours that a biller has, by hour: on the hour's own meter, and on others."""

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
    """A sink that knows which ledger bills a customer: see claims.

    claim_seconds: how long an answer is relied on.
    """

    @property
    def claim_seconds(self) -> float:
        """Seconds; 0: every run asks."""
        ...

    def claim(self, customer: str, ledger_id: str, *, take_over: bool = False) -> str | None:
        """Let the ledger bill the customer unless another one does; return the one that does.

        Both are ids. take_over: also if another one does. None: the biller has no such customer.
        Raises CannotSayNow.
        """
        ...


_CSV = "csv:"


def is_csv(account: str) -> bool:
    """Whether an account is a CSV file."""
    return account.startswith(_CSV)


def took_nothing(account: str) -> bool:
    """Whether an account has no usage for sure: a CSV file that is not there, or is empty."""
    if not is_csv(account):
        return False
    try:
        found = Path(account.removeprefix(_CSV)).stat()
        return not stat.S_ISREG(found.st_mode) or found.st_size == 0
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # it may be there
        return False


class CsvSink:
    """A CSV file for another biller, appended to: an hour's highest revision counts.

    A customer's rows come from one ledger and name its id. Raises InvalidValue for a path that is
    not text: the ledger keeps it. Every use raises BillingError for one that is no regular file,
    such as a device that never ends, or that is in no folder.
    """

    COLUMNS = ("identifier", "customer", "hour", "revision", "watt_hours", "ledger")
    _HEAD = ",".join(COLUMNS) + "\n"
    batch = 1000
    claim_seconds = 0.0

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.account = f"{_CSV}{check_text('csv', os.path.realpath(path), _MAX_PATH)}"
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
        """The ledger of the customer's last row; this one if there is none.

        Taking over repeats that row with this ledger's id. Raises CannotSayNow for a file that
        cannot be read or written.
        """
        rows = [row for row in self._readable_rows() if row["customer"] == customer]
        last = rows[-1] if rows else {"ledger": ledger_id}
        owner = last["ledger"]
        if owner != ledger_id and not take_over:
            return owner
        if owner != ledger_id:
            self._append([list({**last, "ledger": ledger_id}.values())])
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
        return {hour: value_wh for hour, (_, value_wh) in newest.items() if hour in hours}

    def _value(self, row: dict[str, str]) -> tuple[int, tuple[int, int]]:
        """A row's hour, and its revision and watt-hours. Raises BillingError for a changed row."""
        try:
            return hour_of("hour", row["hour"]), (int(row["revision"]), int(row["watt_hours"]))
        except (InvalidValue, TypeError, ValueError):
            raise BillingError(
                f"{self.path}: {row['identifier']}: not a row of this sink: correct it or remove it"
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

    def check(self) -> None:
        """Raise BillingError for a path at which there can be no file of rows."""
        if not self.path.parent.is_dir():
            raise BillingError(f"{self.path}: there is no such folder: name a file in another")
        if self.path.exists() and not self.path.is_file():
            raise BillingError(f"{self.path}: not a regular file: name another")

    def _rows(self) -> list[dict[str, str]]:
        self.check()
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            head = file.readline()
            # A crash may have left only a part of the head.
            if not self._HEAD.startswith(head.replace("\r\n", "\n")):
                raise BillingError(
                    f"{self.path}: not a file of this sink: it begins with {head[:80].rstrip()!r}"
                )
            whole = (line for line in file if line.endswith("\n"))  # a torn line is none yet
            return list(csv.DictReader(whole, self.COLUMNS))

    def _cut_torn_line(self) -> None:
        """Remove what a crash has left of a line; its event is sent again."""
        self._rows()  # refuses a file that is not this sink's before it is touched
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.path, whole)


def _csv_row(event: UsageEvent) -> list[str | int]:
    return [event.identifier, event.customer, iso(event.hour), event.revision, event.watt_hours]


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
