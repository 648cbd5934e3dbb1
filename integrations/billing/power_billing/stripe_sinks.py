"""Stripe's billing meters as sinks: one v1 call an event, or the v2 stream for large fleets.

The meter has a window of an hour: of the events in an hour only the newest counts, which is what a later revision
relies on. Usage records, which older integrations used, are gone from Stripe.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime

import stripe

from power_billing.errors import BillingError
from power_billing.hours import DAY, HOUR, iso
from power_billing.keys import API_KEY, Secret, read_secret
from power_billing.sinks import EVENT_NAME, CannotSayNow, Outcome, Receipt, UsageEvent
from power_billing.stripe_client import (
    KEY_ERRORS,
    account_of,
    cannot,
    check_meter,
    make_client,
    meter_name_of,
    meter_of,
)
from power_billing.tables import Place

SUMMARY_HOURS = 100  # as many summaries as Stripe has on a page
_SESSION_SECONDS = 10 * 60.0  # a stream's session is good for 15 minutes


def open_sink(
    place: Place,
    client: stripe.StripeClient,
    *,
    stream: bool = False,
    session: Callable[[str], stripe.StripeClient],
) -> StripeMeterSink:
    """The sink of the meter that setup() has remembered, after a look at it.

    Raises BillingError where there was no setup, and where this key cannot see that meter: a test key does not see
    what a live one has made.
    """
    meter_id = meter_of(place)
    name = meter_name_of(place)
    try:
        check_meter(client.v1.billing.meters.retrieve(meter_id), name)
    except stripe.InvalidRequestError:
        reason = "is this key of the account and mode (test, live) that setup was run with?"
        raise BillingError(f"{API_KEY}: it cannot see the meter {meter_id}: {reason}") from None
    except stripe.StripeError as error:
        raise cannot(error) from None
    if stream:
        return StripeStreamSink(client, meter_id, session, name)
    return StripeMeterSink(client, meter_id, name)


def sink_from(environ: Mapping[str, str], place: Place, *, stream: bool = False) -> StripeMeterSink:
    """The Stripe sink of a file, with the key that the environment holds."""
    client = make_client(read_secret(environ, API_KEY), environ)
    return open_sink(
        place,
        client,
        stream=stream,
        session=lambda token: make_client(Secret("session", token), environ),
    )


# --- The sinks


class StripeMeterSink:
    """One POST /v1/billing/meter_events an event, one after the other: Stripe takes one a customer at a time."""

    batch = 1
    claim_seconds: float = DAY

    def __init__(
        self, client: stripe.StripeClient, meter_id: str, meter_name: str = EVENT_NAME
    ) -> None:
        self.client, self.meter_id, self.meter_name = client, meter_id, meter_name
        self.account = account_of(meter_id)

    def send(self, events: Sequence[UsageEvent]) -> list[Receipt]:
        """Send each event. Raises BillingError for a key that Stripe does not take."""
        return [self._send_one(event) for event in events]

    def _send_one(self, event: UsageEvent) -> Receipt:
        try:
            answer = self.client.v1.billing.meter_events.create(
                {
                    "event_name": event.meter_name,
                    "payload": {
                        "stripe_customer_id": event.customer,
                        "value": str(event.watt_hours),
                    },
                    "identifier": event.identifier,
                    "timestamp": event.timestamp,
                },
                # Stripe names events that it refuses later by this key or by the identifier. A key of each call's own,
                # for Stripe would answer a failure under the same one again.
                {"idempotency_key": f"{event.identifier}/{secrets.token_hex(8)}"},
            )
        except stripe.StripeError as error:
            return _receipt(error, event.identifier)
        if getattr(answer, "identifier", None) != event.identifier:
            return Receipt(Outcome.LATER, "Stripe's answer does not name the event")
        return Receipt(Outcome.SENT)

    def claim(self, customer: str, ledger_id: str, *, take_over: bool = False) -> str | None:
        """As ClaimingSink has it: the ledger's id stands in the customer's metadata, under the meter's name."""
        try:
            found = self.client.v1.customers.retrieve(customer)
            if getattr(found, "deleted", False):
                return None
            there = _metadata(found).get(self.meter_name)
            if there and (there == ledger_id or not take_over):
                return there
            # Of two ledgers that find nobody's customer at once, Stripe takes the one that comes first: the key is the
            # same, and the other's parameters are not. Another key an hour later: Stripe repeats a failure, too.
            key = f"{self.meter_name}:{customer}:{iso(int(time.time() // HOUR))}"
            claimed = self.client.v1.customers.update(
                customer,
                {"metadata": {self.meter_name: ledger_id}},
                {"idempotency_key": secrets.token_hex(16) if there else key},
            )
        except stripe.PermissionError:
            raise CannotSayNow(
                f"{API_KEY}: this key may not read and write customers, where it stands which ledger bills them: "
                "allow it both"
            ) from None
        except stripe.AuthenticationError as error:
            raise cannot(error) from None
        except stripe.StripeError as error:
            if isinstance(error, stripe.InvalidRequestError) and error.http_status == 404:
                return None
            reason = f"Stripe does not say which ledger bills {customer}: {type(error).__name__}"
            raise CannotSayNow(reason) from None
        return _metadata(claimed).get(self.meter_name)

    def recorded(self, customer: str, hours: range) -> dict[int, int]:
        """What Stripe's summaries of the hours say; they follow the events with some delay."""
        found: dict[int, int] = {}
        for start in range(hours.start, hours.stop, SUMMARY_HOURS):
            stop = min(start + SUMMARY_HOURS, hours.stop)
            for summary in self._summaries(customer, start, stop):
                hour = summary.start_time // HOUR
                found[hour] = found.get(hour, 0) + round(summary.aggregated_value)
        return found

    def _summaries(
        self, customer: str, start: int, stop: int
    ) -> list[stripe.billing.MeterEventSummary]:
        """One page of them: an hour each."""
        try:
            page = self.client.v1.billing.meters.event_summaries.list(
                self.meter_id,
                {
                    "customer": customer,
                    "start_time": start * HOUR,
                    "end_time": stop * HOUR,
                    "value_grouping_window": "hour",
                    "limit": SUMMARY_HOURS,
                },
            )
        except KEY_ERRORS as error:
            raise cannot(error) from None
        except stripe.StripeError as error:
            reason = f"Stripe does not say what it has for {customer}: {type(error).__name__}"
            raise CannotSayNow(reason) from None
        return page.data

    def clock(self) -> float:
        """Epoch seconds by Stripe's clock, to the second. Raises BillingError where it does not say."""
        try:
            answer = self.client.v1.billing.meters.retrieve(self.meter_id).last_response
            return parsedate_to_datetime(answer.headers["Date"] if answer else "").timestamp()
        except stripe.StripeError as error:
            raise cannot(error) from None
        except (KeyError, TypeError, ValueError):
            raise BillingError("Stripe's answer has no date: is something else between?") from None


class StripeStreamSink(StripeMeterSink):
    """Up to 100 events a call by the v2 stream, which validates them later: see the README on what that hides."""

    batch = 100

    def __init__(
        self,
        client: stripe.StripeClient,
        meter_id: str,
        session: Callable[[str], stripe.StripeClient],
        meter_name: str = EVENT_NAME,
    ) -> None:
        super().__init__(client, meter_id, meter_name)
        self._make_session = session  # a client that has the session's token as its key
        self._session: stripe.StripeClient | None = None
        self._session_ends = 0.0

    def send(self, events: Sequence[UsageEvent]) -> list[Receipt]:
        """Send them in one call; a call that is refused is halved until the event at fault stands alone."""
        try:
            self._open_session().v2.billing.meter_event_stream.create(
                {
                    "events": [
                        {
                            "event_name": event.meter_name,
                            "payload": {
                                "stripe_customer_id": event.customer,
                                "value": str(event.watt_hours),
                            },
                            "identifier": event.identifier,
                            "timestamp": f"{iso(event.hour)[:-4]}:{event.timestamp % HOUR // 60:02d}"
                            f":{event.timestamp % 60:02d}.000Z",
                        }
                        for event in events
                    ]
                }
            )
        except stripe.StripeError as error:
            self._session = None  # it may have been the session
            receipts = [_receipt(error, event.identifier) for event in events]
            if len(events) == 1 or receipts[0].outcome is not Outcome.REFUSED:
                return receipts
            half = len(events) // 2
            return self.send(events[:half]) + self.send(events[half:])
        return [Receipt(Outcome.SENT)] * len(events)

    def _open_session(self) -> stripe.StripeClient:
        if self._session is None or time.monotonic() > self._session_ends:
            made = self.client.v2.billing.meter_event_session.create()
            self._session = self._make_session(made.authentication_token)
            self._session_ends = time.monotonic() + _SESSION_SECONDS
        return self._session


def _metadata(customer: stripe.Customer) -> dict[str, str]:
    return {} if customer.metadata is None else dict(customer.metadata.to_dict())


# --- Errors


def _receipt(error: stripe.StripeError, identifier: str) -> Receipt:
    """What an error of a call says about its event."""
    if isinstance(error, KEY_ERRORS):
        raise cannot(error) from None
    reason = f"{error.code or type(error).__name__}: {error.user_message or 'no message'}"[:300]
    if isinstance(error, stripe.RateLimitError):
        return Receipt(Outcome.LATER, reason, _retry_after(error))
    if not isinstance(
        error, stripe.InvalidRequestError
    ):  # a lost answer, a failing server: nobody knows
        return Receipt(Outcome.LATER, reason)
    # v1 gives this error no code: its text is all there is.
    if (
        error.code == "duplicate_meter_event"
        or f"already exists with identifier {identifier}" in reason
    ):
        return Receipt(Outcome.KNOWN, "Stripe had it already")
    if (
        error.param == "timestamp"
    ):  # the hour can be billed by this clock: one of the two clocks is wrong
        return Receipt(Outcome.LATER, f"this machine's clock and Stripe's differ; {reason}")
    return Receipt(Outcome.REFUSED, reason)


def _retry_after(error: stripe.StripeError) -> float:
    try:
        return max(float((error.headers or {}).get("Retry-After", 0)), 0.0)
    except ValueError:
        return 0.0
