"""Stripe's SDK: a client with timeouts, what its failures mean, and what the meter must be like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import stripe

from power_billing.errors import BillingError
from power_billing.keys import API_KEY, API_URL, Secret
from power_billing.periods import LedgerMeter, ledger_meters
from power_billing.tables import Place, tables

NETWORK_RETRIES = 2  # the SDK's own, under one idempotency key; StripeClient's default is none
TIMEOUT = 30.0  # seconds for an answer

KEY_ERRORS = (stripe.AuthenticationError, stripe.PermissionError)


def make_client(
    key: Secret, environ: Mapping[str, str], http_client: stripe.HTTPClient | None = None
) -> stripe.StripeClient:
    """A client with timeouts and retries, at Stripe or at POWER_BILLING_STRIPE_URL.

    Raises BillingError for an address that would send the key unencrypted to another machine.
    """
    url = environ.get(API_URL, "")
    try:
        parts = urlsplit(url)
        safe = parts.scheme == "https" or parts.hostname in ("127.0.0.1", "localhost", "::1")
    except ValueError:
        safe = False
    if url and not safe:
        raise BillingError(f"{API_URL}: expected https, or this machine's own address, got {url!r}")
    # Otherwise the SDK sends times of earlier requests, and leaves an id of this machine in the
    # home directory. A client has no setting of its own for it.
    stripe.enable_telemetry = False
    return stripe.StripeClient(
        key.reveal(),
        base_addresses={"api": url, "meter_events": url} if url else None,
        max_network_retries=NETWORK_RETRIES,
        http_client=http_client or stripe.RequestsClient(timeout=TIMEOUT),
    )


def meters_of(place: Place) -> list[LedgerMeter]:
    """The meters that setup has remembered, one or one a period. Raises BillingError if none."""
    with tables(place) as conn:
        meters = ledger_meters(conn)
    if not meters:
        raise BillingError(f"{place.db_path}: no meter yet: run power-billing setup")
    return meters


def account_of(meter_ids: Iterable[str]) -> str:
    """What a ledger remembers of where its usage goes, in any order of the meters."""
    return f"stripe:{'+'.join(sorted(meter_ids))}"


def check_meter(meter: stripe.billing.Meter, name: str) -> None:
    """Raise BillingError for a meter that counts otherwise than this package's events do."""
    keys = meter.customer_mapping.event_payload_key, meter.value_settings.event_payload_key
    found = (
        meter.event_name,
        meter.status,
        meter.default_aggregation.formula,
        meter.event_time_window,
        *keys,
    )
    expected = (name, "active", "sum", "hour", "stripe_customer_id", "value")
    if found != expected:
        wrong = "; ".join(
            f"{text!r} instead of {right!r}"
            for text, right in zip(found, expected)
            if text != right
        )
        raise BillingError(
            f"Stripe's meter {meter.id} has {wrong}: a meter cannot be changed, but the dashboard "
            "can reactivate one; otherwise use another Stripe account"
        )


def cannot(error: stripe.StripeError) -> BillingError:
    """The error that nothing can be sent, without Stripe's words, which quote a part of the key."""
    if isinstance(error, KEY_ERRORS):
        return BillingError(
            f"{API_KEY}: Stripe refuses this key ({error.http_status}): it needs billing meters"
        )
    failure = f"{type(error).__name__} {error.http_status or ''}".rstrip()
    return BillingError(f"Stripe cannot be used now: {failure}: try again later")
