"""What this package keeps in the library's file, and the one way to it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from power_billing.errors import BillingError
from power_manager import PowerManager

# Versions: 1 is the tables below.
_VERSION = "1"
_SETTINGS = "CREATE TABLE IF NOT EXISTS billing_settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
_SCHEMA = """
-- a device is billed to a customer from one hour (since 1970) on and before another; NULL: no end yet
CREATE TABLE billing_links (
    link_key INTEGER PRIMARY KEY, device_id TEXT NOT NULL, customer TEXT NOT NULL, subscription_item TEXT,
    types TEXT NOT NULL,                          -- of the meters that count, with commas
    from_hour INTEGER NOT NULL, until_hour INTEGER
);
-- what has been taken into account: nano-watt-hours consumed, and the whole watt-hours made of them
CREATE TABLE billing_hours (
    customer TEXT NOT NULL, hour INTEGER NOT NULL, counted_nwh INTEGER NOT NULL, whole_wh INTEGER NOT NULL,
    PRIMARY KEY (customer, hour)
) WITHOUT ROWID;
-- one row an event; an hour's highest revision is the one that counts
CREATE TABLE billing_outbox (
    customer TEXT NOT NULL, hour INTEGER NOT NULL, revision INTEGER NOT NULL, value_wh INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'queued',         -- queued, sent, refused, superseded
    attempted_at REAL,                            -- when it was first sent, whatever came of it; epoch seconds
    attempts INTEGER NOT NULL DEFAULT 0, reason TEXT, PRIMARY KEY (customer, hour, revision)
) WITHOUT ROWID;
-- serves every run: what is to be sent
CREATE INDEX billing_outbox_queued ON billing_outbox (attempts, hour) WHERE state = 'queued';
-- Stripe delivers an event at least once
CREATE TABLE billing_stripe_events (id TEXT PRIMARY KEY, type TEXT NOT NULL, created INTEGER NOT NULL) WITHOUT ROWID;
-- what is known of an invoice that is not paid, or was settled; times by Stripe's clock, epoch seconds
CREATE TABLE billing_invoices (
    invoice TEXT PRIMARY KEY, customer TEXT NOT NULL, settled INTEGER NOT NULL DEFAULT 0,
    attempt INTEGER NOT NULL DEFAULT -1, attempt_at INTEGER NOT NULL DEFAULT 0,     -- the newest failure
    attempt_is_last INTEGER NOT NULL DEFAULT 0,   -- Stripe will not try again
    first_failed_at INTEGER,
    given_up_at INTEGER,                          -- when it was first overdue, or marked uncollectible
    due_at REAL,                                  -- when the devices are to be told, unless it is settled before
    told INTEGER NOT NULL DEFAULT 0               -- shutdown events are recorded
) WITHOUT ROWID;
-- customers to look at: Stripe says what is wrong with them when a run with a key asks
CREATE TABLE billing_customers (
    customer TEXT PRIMARY KEY,
    checked_at REAL,                              -- epoch seconds; NULL: to be asked for
    problem TEXT                                  -- NULL: none
) WITHOUT ROWID;
-- reports of refused meter events that Stripe has announced, until a run with a key fetches them
CREATE TABLE billing_error_reports (id TEXT PRIMARY KEY, announced_at REAL NOT NULL) WITHOUT ROWID;
-- devices that were told to shut down, and not yet to come back
CREATE TABLE billing_shutdowns (device_id TEXT PRIMARY KEY, customer TEXT NOT NULL) WITHOUT ROWID;
"""


@contextlib.contextmanager
def tables(pm: PowerManager) -> Iterator[sqlite3.Connection]:
    """One transaction of the library's file with this package's tables in it, made where they are missing.

    Raises BillingError for tables of a later version, StorageError for the file; then nothing is stored.
    """
    with pm.connection() as conn:
        conn.execute(_SETTINGS)
        version = setting(conn, "schema")
        if version is None:
            for statement in _SCHEMA.split(";\n"):
                conn.execute(statement)
            set_setting(conn, "schema", _VERSION)
        elif version != _VERSION:
            raise BillingError(
                f"{pm.db_path}: its billing tables are version {version}, not {_VERSION}: upgrade"
            )
        yield conn


def setting(conn: sqlite3.Connection, name: str) -> str | None:
    """A setting of this package in the file."""
    row = conn.execute("SELECT value FROM billing_settings WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def set_setting(conn: sqlite3.Connection, name: str, value: str) -> None:
    """Keep a setting."""
    conn.execute("INSERT OR REPLACE INTO billing_settings VALUES (?, ?)", (name, value))
