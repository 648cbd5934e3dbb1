"""Watt-hours that are charged once: `power-billing report` makes what devices used into usage of a biller.

hours          UTC hours, and how far back one may still be billed
errors         the one error of this package
keys           secrets from the environment or a file, never shown
tables         what this package keeps, in the library's file or one of its own, and the one way to it
links          which device is billed to which customer, from which hour to which
sources        where usage comes from: the interfaces Devices and UsageSource, and the library's file
fleet_usage    a fleet's engine as a source, for who has the extra `fleet`
counting       which meters of a device count, hour by hour
findings       what cannot be billed, or stays billed without its readings
ledger         what each hour is in whole watt-hours
claims         which ledger bills a customer
outbox         one row for each event, from its decision to what became of it
closing        once a month: old hours looked at again, and summed by day
sinks          where usage goes: the interface UsageSink, and a CSV file as one of them
stripe_client  Stripe's SDK: times, failures, and what the meter has to be like
money          what a watt-hour costs
tariff         prices by time of day: periods that have every hour of the week between them
tariff_file    the same in a file
periods        the ledger's meters, and which of them an hour belongs to
stripe_setup   what has to be at Stripe: meter, product and price
subscriptions  whether a customer's usage reaches an invoice, and the subscription that it takes
customers      what is known of customers at Stripe
go_live        from a trial with a test key to a live one
stripe_sinks   Stripe's billing meters as sinks: the v1 calls and the v2 stream
stripe_checks  what a run asks Stripe before it sends
sender         the outbox into a sink: retries, lost answers, conflicts, what is too old
reconcile      the ledger beside what the biller has
decisions      what a person decides
usage          all of that in one run: report(), create_usage_record(); and status()
metrics        what the ledger says, for Prometheus
statement      a month by customer, device and day
statement_formats  the same as text, JSON, CSV and HTML
signatures     deliveries of Stripe's webhooks: the signature, and what is an event
webhooks       Stripe's invoices into `shutdown` and `restore` events
command_line   what the commands share
commands_*     the commands, by what they are about
cli            `power-billing`
"""

from power_billing.errors import BillingError
from power_billing.findings import Finding, FindingKind
from power_billing.links import Link, link, links_of, unlink
from power_billing.outbox import State
from power_billing.reconcile import Difference, Reconciliation
from power_billing.sinks import (
    CannotSayNow,
    ClaimingSink,
    CsvSink,
    Outcome,
    Receipt,
    UsageEvent,
    UsageSink,
)
from power_billing.sources import FileUsage, HourUsage, MeterUsage, UsageSource
from power_billing.tables import LedgerFile
from power_billing.usage import Report, Run, Status, create_usage_record, report, status

__version__ = "1.0.0"
# fmt: off
__all__ = [
    "BillingError", "CannotSayNow", "ClaimingSink", "CsvSink", "Difference", "FileUsage", "Finding", "FindingKind",
    "HourUsage", "LedgerFile", "Link", "MeterUsage", "Outcome", "Receipt", "Reconciliation", "Report", "Run", "State",
    "Status", "UsageEvent", "UsageSink", "UsageSource", "create_usage_record", "link", "links_of", "report", "status",
    "unlink",
]
# fmt: on
