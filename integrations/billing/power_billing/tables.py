"""The ledger's tables, in the library's file or in a file of their own, and how to open them."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from power_billing.errors import BillingError

# Versions: 4 is the tables below; 1 to 3 were never released.
_VERSION = "4"
LEDGER = "POWER_BILLING_LEDGER"  # the ledger's own file; empty or unset: the library's
METER_SETTING = "stripe_meter"  # the id of Stripe's meter, without a tariff
PRICE_SETTING = "stripe_price"  # the id of its price
METER_NAME_SETTING = "stripe_meter_name"  # its name in events; unset: EVENT_NAME
_ID_SETTING = "ledger_id"  # see ledger_id()
_BUSY_SECONDS = 30.0  # how long another process may hold the file
_SETTINGS = """CREATE TABLE IF NOT EXISTS billing_settings (
    name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"""
_SCHEMA = """
-- a device is billed to a customer from one hour (since 1970) to before another; NULL: no end yet
CREATE TABLE billing_links (
    link_key INTEGER PRIMARY KEY,
    device_id TEXT NOT NULL,
    customer TEXT NOT NULL,
    subscription_item TEXT,
    types TEXT,            -- of the meters that count, with commas; NULL: the library's rule
    from_hour INTEGER NOT NULL,
    until_hour INTEGER
);
-- meters that have counted, and their hours: what was billed of one stays billed if it is deleted
CREATE TABLE billing_meters (
    device_id TEXT NOT NULL,
    meter_id TEXT NOT NULL,
    type TEXT NOT NULL,
    first_hour INTEGER NOT NULL,
    last_hour INTEGER NOT NULL,
    PRIMARY KEY (device_id, meter_id)
) WITHOUT ROWID;
-- what was counted of each device: nano-watt-hours out less in, and of how many readings
CREATE TABLE billing_device_hours (
    customer TEXT NOT NULL,
    hour INTEGER NOT NULL,
    device_id TEXT NOT NULL,
    counted_nwh INTEGER NOT NULL,
    reading_count INTEGER NOT NULL,
    PRIMARY KEY (customer, hour, device_id)
) WITHOUT ROWID;
-- the same of each customer, and the whole watt-hours made of it
CREATE TABLE billing_hours (
    customer TEXT NOT NULL,
    hour INTEGER NOT NULL,
    counted_nwh INTEGER NOT NULL,
    whole_wh INTEGER NOT NULL,
    PRIMARY KEY (customer, hour)
) WITHOUT ROWID;
-- each customer's sums, with closed days: whole watt-hours, and the rest below one
CREATE TABLE billing_totals (
    customer TEXT PRIMARY KEY, billed_wh INTEGER NOT NULL, rest_nwh INTEGER NOT NULL
) WITHOUT ROWID;
-- one row an event; an hour's highest revision is the one that counts
CREATE TABLE billing_outbox (
    customer TEXT NOT NULL,
    hour INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    value_wh INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued',  -- of the enum State
    attempted_at REAL,     -- when it was first sent, with any outcome; epoch seconds
    taken_at REAL,         -- when the biller said that it takes it; NULL: it never said so
    attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    theirs_wh INTEGER,     -- what the biller had, when it was asked because of this event
    asked_at REAL,         -- when it was asked what became of this event; NULL: not yet
    PRIMARY KEY (customer, hour, revision)
) WITHOUT ROWID;
-- serves every run and status: what is to be sent, or waits for a person
CREATE INDEX billing_outbox_open ON billing_outbox (attempts, hour)
    WHERE state IN ('queued', 'refused', 'conflict');
-- closed hours, which can no longer be billed, by UTC day (since 1970) and period; '': no tariff
CREATE TABLE billing_device_days (
    customer TEXT NOT NULL,
    day INTEGER NOT NULL,
    period TEXT NOT NULL,
    device_id TEXT NOT NULL,
    counted_nwh INTEGER NOT NULL,
    PRIMARY KEY (customer, day, period, device_id)
) WITHOUT ROWID;
CREATE TABLE billing_customer_days (
    customer TEXT NOT NULL,
    day INTEGER NOT NULL,
    period TEXT NOT NULL,
    whole_wh INTEGER NOT NULL,
    sent_wh INTEGER NOT NULL,
    event_count INTEGER NOT NULL,  -- of the events that are summed here
    PRIMARY KEY (customer, day, period)
) WITHOUT ROWID;
-- the periods of the tariff, each with its meter and the price of new subscriptions at Stripe
CREATE TABLE billing_periods (
    position INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    event_name TEXT NOT NULL UNIQUE,
    week TEXT NOT NULL,    -- a digit for each hour of the local week, from Monday on; 1: its own
    amount TEXT NOT NULL,
    currency TEXT NOT NULL,
    unit TEXT NOT NULL,
    meter_id TEXT NOT NULL,
    price_id TEXT NOT NULL
);
-- the period of each hour that was counted; of closed ones too, which reconcile compares by period
CREATE TABLE billing_hour_periods (hour INTEGER PRIMARY KEY, period TEXT NOT NULL);
-- what cannot be billed, or stays billed without its readings
CREATE TABLE billing_findings (
    customer TEXT NOT NULL,
    device_id TEXT NOT NULL,
    hour INTEGER NOT NULL,
    kind TEXT NOT NULL,    -- of the enum FindingKind
    watt_hours REAL NOT NULL,
    is_accepted INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (customer, device_id, hour, kind)
) WITHOUT ROWID;
-- Stripe delivers an event at least once
CREATE TABLE billing_stripe_events (id TEXT PRIMARY KEY, created INTEGER NOT NULL) WITHOUT ROWID;
-- what is known of an unpaid or settled invoice; times by Stripe's clock, epoch seconds
CREATE TABLE billing_invoices (
    invoice TEXT PRIMARY KEY,
    customer TEXT NOT NULL,
    settled INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT -1,  -- the newest failure
    attempt_at INTEGER NOT NULL DEFAULT 0,
    attempt_is_last INTEGER NOT NULL DEFAULT 0,  -- Stripe will not try again
    first_failed_at INTEGER,
    given_up_at INTEGER,   -- when it was first overdue, or marked uncollectible
    due_at REAL,           -- when the devices are told, unless it is settled before
    told INTEGER NOT NULL DEFAULT 0  -- shutdown events are recorded
) WITHOUT ROWID;
-- what Stripe says of customers
CREATE TABLE billing_customers (
    customer TEXT PRIMARY KEY,
    checked_at REAL,       -- epoch seconds; NULL: to be asked for
    problem TEXT,          -- why its usage reaches no invoice; NULL: it does reach one
    is_missing INTEGER NOT NULL DEFAULT 0,  -- because Stripe does not have it
    ledger_id TEXT,        -- of the ledger that bills it, as the biller says; NULL: never asked
    ledger_asked_at REAL   -- when that was asked
) WITHOUT ROWID;
-- reports of refused meter events that Stripe has announced, until a run with a key fetches them
CREATE TABLE billing_error_reports (id TEXT PRIMARY KEY, announced_at REAL NOT NULL) WITHOUT ROWID;
-- devices that were told to shut down, and not yet to come back
CREATE TABLE billing_shutdowns (device_id TEXT PRIMARY KEY, customer TEXT NOT NULL) WITHOUT ROWID;
"""

# Every table by name, in statements that can be searched for; a test holds them against the schema.
_CLEAR = (
    "DELETE FROM billing_meters",
    "DELETE FROM billing_device_hours",
    "DELETE FROM billing_hours",
    "DELETE FROM billing_totals",
    "DELETE FROM billing_outbox",
    "DELETE FROM billing_device_days",
    "DELETE FROM billing_customer_days",
    "DELETE FROM billing_periods",
    "DELETE FROM billing_hour_periods",
    "DELETE FROM billing_findings",
    "DELETE FROM billing_stripe_events",
    "DELETE FROM billing_invoices",
    "DELETE FROM billing_customers",
    "DELETE FROM billing_error_reports",
    "DELETE FROM billing_shutdowns",
)
_FORGET_CUSTOMER = (
    "DELETE FROM billing_links WHERE customer = ?",
    "DELETE FROM billing_device_hours WHERE customer = ?",
    "DELETE FROM billing_hours WHERE customer = ?",
    "DELETE FROM billing_totals WHERE customer = ?",
    "DELETE FROM billing_outbox WHERE customer = ?",
    "DELETE FROM billing_device_days WHERE customer = ?",
    "DELETE FROM billing_customer_days WHERE customer = ?",
    "DELETE FROM billing_findings WHERE customer = ?",
    "DELETE FROM billing_invoices WHERE customer = ?",
    "DELETE FROM billing_customers WHERE customer = ?",
    "DELETE FROM billing_shutdowns WHERE customer = ?",
)
_COPY = (
    (
        "SELECT * FROM billing_settings",
        "INSERT OR REPLACE INTO billing_settings VALUES (?, ?)",
    ),
    (
        "SELECT * FROM billing_links",
        "INSERT OR REPLACE INTO billing_links VALUES (?, ?, ?, ?, ?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_meters",
        "INSERT OR REPLACE INTO billing_meters VALUES (?, ?, ?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_device_hours",
        "INSERT OR REPLACE INTO billing_device_hours VALUES (?, ?, ?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_hours",
        "INSERT OR REPLACE INTO billing_hours VALUES (?, ?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_totals",
        "INSERT OR REPLACE INTO billing_totals VALUES (?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_outbox",
        "INSERT OR REPLACE INTO billing_outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_device_days",
        "INSERT OR REPLACE INTO billing_device_days VALUES (?, ?, ?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_customer_days",
        "INSERT OR REPLACE INTO billing_customer_days VALUES (?, ?, ?, ?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_periods",
        "INSERT OR REPLACE INTO billing_periods VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_hour_periods",
        "INSERT OR REPLACE INTO billing_hour_periods VALUES (?, ?)",
    ),
    (
        "SELECT * FROM billing_findings",
        "INSERT OR REPLACE INTO billing_findings VALUES (?, ?, ?, ?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_stripe_events",
        "INSERT OR REPLACE INTO billing_stripe_events VALUES (?, ?)",
    ),
    (
        "SELECT * FROM billing_invoices",
        "INSERT OR REPLACE INTO billing_invoices VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_customers",
        "INSERT OR REPLACE INTO billing_customers VALUES (?, ?, ?, ?, ?, ?)",
    ),
    (
        "SELECT * FROM billing_error_reports",
        "INSERT OR REPLACE INTO billing_error_reports VALUES (?, ?)",
    ),
    (
        "SELECT * FROM billing_shutdowns",
        "INSERT OR REPLACE INTO billing_shutdowns VALUES (?, ?)",
    ),
)


class Place(Protocol):
    """Where the tables are: a PowerManager is such a place, and so is a LedgerFile."""

    @property
    def db_path(self) -> Path | str:
        """The file."""
        ...

    def connection(self) -> AbstractContextManager[sqlite3.Connection]:
        """The connection to it, in one transaction."""
        ...


class LedgerFile:
    """A file of the ledger's own, private to its owner; made where it is missing.

    Every transaction opens it anew, so that any thread may use it. Raises BillingError for a file
    that SQLite cannot use, and for one of another program.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.db_path = Path(path)

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when this ends; after an error nothing is stored."""
        try:
            os.close(os.open(self.db_path, os.O_CREAT | os.O_RDWR, 0o600))
            conn = sqlite3.connect(self.db_path, _BUSY_SECONDS, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise self._cannot(error) from error
        try:
            conn.execute("PRAGMA synchronous = FULL")
            conn.execute("BEGIN IMMEDIATE")
            self._refuse_others(conn)
            yield conn
            conn.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._cannot(error) from error
        finally:
            conn.close()  # which rolls back what was not committed

    def _refuse_others(self, conn: sqlite3.Connection) -> None:
        if not has_tables(conn) and conn.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise BillingError(
                f"{self.db_path}: not a ledger: it has tables of another program: name a new file, "
                "or leave out --ledger to have the ledger in the database"
            )

    def _cannot(self, error: Exception) -> BillingError:
        return BillingError(f"{self.db_path}: cannot be used as the ledger: {error}")


class _InMemory:
    """A copy that is gone afterwards; one thread uses it, one transaction at a time."""

    db_path = ":memory:"

    def __init__(self) -> None:
        self.conn = sqlite3.connect(":memory:", isolation_level=None)

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        self.conn.execute("BEGIN")
        yield self.conn
        self.conn.execute("COMMIT")


@contextlib.contextmanager
def copy_in_memory(place: Place) -> Iterator[Place]:
    """The tables as they are, in memory, to try something out; `place` itself is only read."""
    copy = _InMemory()
    try:
        with place.connection() as conn:
            is_used = has_tables(conn)  # else nothing was ever billed here
            if is_used:
                _check_version(place, setting(conn, "schema"))
            with tables(copy) as into:
                if is_used:
                    _copy_rows(conn, into)
        yield copy
    finally:
        copy.conn.close()


def clear_ledger(conn: sqlite3.Connection) -> None:
    """Forget everything but the settings, the ledger's id among them, and the links."""
    for statement in _CLEAR:
        conn.execute(statement)


def forget_customer(conn: sqlite3.Connection, customer: str) -> None:
    """Forget everything about a customer, its links too."""
    for statement in _FORGET_CUSTOMER:
        conn.execute(statement, (customer,))


def _copy_rows(conn: sqlite3.Connection, into: sqlite3.Connection) -> None:
    for select, insert in _COPY:
        into.executemany(insert, conn.execute(select))


def has_tables(conn: sqlite3.Connection) -> bool:
    """Whether there is a ledger in the file; tables() makes one."""
    sql = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'billing_settings'"
    return conn.execute(sql).fetchone() is not None


@contextlib.contextmanager
def tables(place: Place) -> Iterator[sqlite3.Connection]:
    """One transaction with the ledger's tables, which are made if they are missing.

    Raises BillingError for tables of a later version, StorageError for the library's file; then
    nothing is stored.
    """
    with place.connection() as conn:
        conn.execute(_SETTINGS)
        version = setting(conn, "schema")
        if version is None:
            for statement in _SCHEMA.split(";\n"):
                conn.execute(statement)
            set_setting(conn, _ID_SETTING, secrets.token_hex(8))
            set_setting(conn, "schema", _VERSION)
        else:
            _check_version(place, version)
        yield conn


def _check_version(place: Place, version: str | None) -> None:
    if version != _VERSION:
        raise BillingError(
            f"{place.db_path}: its billing tables are version {version}, and this power-billing "
            f"knows version {_VERSION}: use the one that made them"
        )


def ledger_id(conn: sqlite3.Connection) -> str:
    """The ledger's own id: 16 random hexadecimal digits, made with its tables and never changed.

    It goes wherever the tables go: into a backup and its restored file, a copy, and from a trial to
    a live key. A new ledger has another.
    """
    found = setting(conn, _ID_SETTING)
    assert found is not None, "tables() makes it with the tables"
    return found


def setting(conn: sqlite3.Connection, name: str) -> str | None:
    """A setting of the ledger."""
    rows = conn.execute("SELECT value FROM billing_settings WHERE name = ?", (name,))
    return next((str(value) for (value,) in rows), None)


def forget_setting(conn: sqlite3.Connection, name: str) -> None:
    """Remove a setting; one that is not there is fine."""
    conn.execute("DELETE FROM billing_settings WHERE name = ?", (name,))


def set_setting(conn: sqlite3.Connection, name: str, value: str) -> None:
    """Keep a setting."""
    conn.execute("INSERT OR REPLACE INTO billing_settings VALUES (?, ?)", (name, value))
