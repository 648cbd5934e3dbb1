"""Bill the energy that devices used, each hour once.

hours          UTC hours, and how far back an hour can still be billed
errors         the root of this package's errors
keys           secrets from the environment or a file, never shown
tables         the ledger's tables, in the library's file or a file of their own
links          which device is billed to which customer, and for which hours
sources        where usage comes from: Devices and UsageSource, and the library's file
fleet_usage    a fleet's engine as a source; needs the extra `fleet`
counting       which meters of a device count, hour by hour
findings       what cannot be billed, or stays billed without its readings
ledger         each hour in whole watt-hours
claims         which ledger bills a customer
outbox         one row for each event, from the decision to its outcome
closing        once a month: check old hours again, and sum them by day
sinks          where usage goes: UsageSink, and a CSV file
stripe_client  Stripe's SDK: timeouts, failures, and what the meter must be like
money          what a watt-hour costs
tariff         prices by time of day: periods that divide the week
tariff_file    a tariff in a file
periods        the ledger's meters, and which of them an hour belongs to
stripe_setup   what Stripe needs first: meter, product and price
subscriptions  whether a customer's usage reaches an invoice, and its subscription
customers      what is known of customers at Stripe
go_live        from a trial with a test key to a live key
stripe_sinks   Stripe's billing meters as sinks: v1 calls and the v2 stream
stripe_checks  what a run asks Stripe before it sends
sender         the outbox into a sink: retries, lost answers, conflicts, old hours
reconcile      the ledger compared with what the biller has
decisions      what a person decides
usage          one run of all that: report(), create_usage_record(); and status()
metrics        the ledger as metrics for Prometheus
statement      a month by customer, device and day
statement_formats  a statement as text, JSON, CSV and HTML
signatures     deliveries of Stripe's webhooks: their signature and their shape
webhooks       Stripe's invoices into `shutdown` and `restore` events
command_line   what the commands share
commands_*     the commands by subject
cli            `power-billing`
"""

from power_billing.errors import BillingError, CannotSayNow
from power_billing.findings import Finding, FindingKind
from power_billing.links import Link, link, links_of, unlink
from power_billing.outbox import State
from power_billing.reconcile import Difference, Reconciliation
from power_billing.sinks import (
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
from power_manager import __version__ as __version__

__all__ = [
    "BillingError",
    "CannotSayNow",
    "ClaimingSink",
    "CsvSink",
    "Difference",
    "FileUsage",
    "Finding",
    "FindingKind",
    "HourUsage",
    "LedgerFile",
    "Link",
    "MeterUsage",
    "Outcome",
    "Receipt",
    "Reconciliation",
    "Report",
    "Run",
    "State",
    "Status",
    "UsageEvent",
    "UsageSink",
    "UsageSource",
    "create_usage_record",
    "link",
    "links_of",
    "report",
    "status",
    "unlink",
]
