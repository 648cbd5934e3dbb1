"""Stripe's billing meters as sinks: one v1 call an event, or the v2 stream for large fleets.

The meter has a window of an hour: of the events in an hour only the newest counts, which is what a
later revision relies on. Usage records, which older integrations used, are gone from Stripe.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime

import stripe

from power_billing.errors import BillingError, CannotSayNow
from power_billing.hours import DAY, HOUR, iso, iso_second
from power_billing.keys import API_KEY, Secret, read_secret
from power_billing.periods import HourMeters, ledger_meters
from power_billing.sinks import Outcome, Receipt, Recorded, UsageEvent
from power_billing.stripe_client import (
    KEY_ERRORS,
    account_of,
    cannot,
    check_meter,
    make_client,
    meters_of,
)
from power_billing.tables import Place, ledger_id, tables

SUMMARY_HOURS = 100  # as many summaries as Stripe has on a page
_SESSION_SECONDS = 10 * 60.0  # a stream's session is good for 15 minutes


def open_sink(
    place: Place,
    client: stripe.StripeClient,
    *,
    stream: bool = False,
    session: Callable[[str], stripe.StripeClient],
    clock: Callable[[], float] = time.time,
) -> StripeMeterSink:
    """The sink of the meters that setup() has remembered, after checking them.

    clock: this machine's, in epoch seconds.

    Raises BillingError where there was no setup, and where this key cannot see one of them: a test
    key does not see what a live one has made.
    """
    found = meters_of(place)
    for meter in found:
        try:
            check_meter(client.v1.billing.meters.retrieve(meter.meter_id), meter.event_name)
        except stripe.InvalidRequestError:
            cannot_see = f"{API_KEY}: it cannot see the meter {meter.meter_id}"
            reason = "is this key of the account and mode (test, live) that setup was run with?"
            raise BillingError(f"{cannot_see}: {reason}") from None
        except stripe.StripeError as error:
            raise cannot(error) from None
    meters = HourMeters(place, found)
    if stream:
        return StripeStreamSink(client, meters, session, clock)
    return StripeMeterSink(client, meters, clock)


def sink_from(
    environ: Mapping[str, str],
    place: Place,
    *,
    stream: bool = False,
    clock: Callable[[], float] = time.time,
) -> StripeMeterSink:
    """The Stripe sink of a file, with the key that the environment holds."""
    client = make_client(read_secret(environ, API_KEY), environ)
    return open_sink(
        place,
        client,
        stream=stream,
        session=lambda token: make_client(Secret("session", token), environ),
        clock=clock,
    )


# --- The sinks


class StripeMeterSink:
    """One POST /v1/billing/meter_events an event: Stripe takes one a customer at a time."""

    batch = 1
    claim_seconds: float = DAY

    def __init__(
        self,
        client: stripe.StripeClient,
        meters: HourMeters,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client, self.meters = client, meters
        self._clock = clock
        self.account = account_of(meters.ids)

    def send(self, events: Sequence[UsageEvent]) -> list[Receipt]:
        """Send each event. Raises BillingError for a key that Stripe does not take."""
        return [self._send_one(event) for event in events]

    def _send_one(self, event: UsageEvent) -> Receipt:
        event_name = self.meters.of([event.hour])[event.hour].event_name
        try:
            answer = self.client.v1.billing.meter_events.create(
                {
                    "event_name": event_name,
                    "payload": {
                        "stripe_customer_id": event.customer,
                        "value": str(event.watt_hours),
                    },
                    "identifier": event.identifier,
                    "timestamp": event.timestamp,
                },
                # Stripe names events that it refuses later by this key or by the identifier. A key
                # of each call's own, for Stripe would answer a failure under the same one again.
                {"idempotency_key": f"{event.identifier}/{secrets.token_hex(8)}"},
            )
        except stripe.StripeError as error:
            return _receipt(error, event.identifier)
        if getattr(answer, "identifier", None) != event.identifier:
            return Receipt(Outcome.LATER, "Stripe's answer does not name the event")
        return Receipt(Outcome.SENT)

    def claim(self, customer: str, ledger_id: str, *, take_over: bool = False) -> str | None:
        """As in ClaimingSink: the id is in the customer's metadata, under each meter's name."""
        names = self.meters.event_names
        try:
            found = self.client.v1.customers.retrieve(customer)
            if getattr(found, "deleted", False):
                return None
            there = _owners(found, names)
            other = _another(there, ledger_id)
            if other is not None and not take_over:
                return other
            if len(there) == len(names) and other is None:
                return ledger_id
            # Of two ledgers that find nobody's customer at once, Stripe takes the one that comes
            # first: the key is the same, and the other's parameters are not. Another key an hour
            # later: Stripe repeats a failure, too.
            of_meters = self.meters.name if len(names) == 1 else f"{self.meters.name}_*"
            key = f"{of_meters}:{customer}:{iso(int(self._clock() // HOUR))}"
            claimed = self.client.v1.customers.update(
                customer,
                {"metadata": dict.fromkeys(names, ledger_id)},
                {"idempotency_key": secrets.token_hex(16) if there else key},
            )
        except stripe.PermissionError:
            raise CannotSayNow(
                f"{API_KEY}: this key may not read and write customers, so it is unknown which "
                "ledger bills them: allow both"
            ) from None
        except stripe.AuthenticationError as error:
            raise cannot(error) from None
        except stripe.StripeError as error:
            why = type(error).__name__
            if isinstance(error, stripe.InvalidRequestError):
                if error.http_status == 404:
                    return None
                why = str(error.user_message)  # such as no room in the metadata
            reason = f"Stripe does not say which ledger bills {customer}: {why}"
            raise CannotSayNow(reason) from None
        return _another(_owners(claimed, names), ledger_id) or ledger_id

    def recorded(self, customer: str, hours: range) -> dict[int, int]:
        """What Stripe's summaries of the hours say; they follow the events with some delay.

        Of all the ledger's meters: what is on one that the hour does not belong to is billed, too.
        """
        return self.recorded_apart(customer, hours).whole()

    def recorded_apart(self, customer: str, hours: range) -> Recorded:
        """The same, by whether it is on the hour's own meter. Raises CannotSayNow."""
        found = Recorded()
        for meter_id in self.meters.ids:
            recorded = self._recorded_on(meter_id, customer, hours)
            own = self.meters.of(recorded)
            for hour, watt_hours in recorded.items():
                is_own = own[hour].meter_id == meter_id
                part = found.own if is_own else found.misplaced
                part[hour] = part.get(hour, 0) + watt_hours
        return found

    def _recorded_on(self, meter_id: str, customer: str, hours: range) -> dict[int, int]:
        """What one meter has."""
        found: dict[int, int] = {}
        for start in range(hours.start, hours.stop, SUMMARY_HOURS):
            stop = min(start + SUMMARY_HOURS, hours.stop)
            for summary in self._summaries(meter_id, customer, start, stop):
                hour = summary.start_time // HOUR
                found[hour] = found.get(hour, 0) + round(summary.aggregated_value)
        return found

    def _summaries(
        self, meter_id: str, customer: str, start: int, stop: int
    ) -> list[stripe.billing.MeterEventSummary]:
        """One page of them: an hour each."""
        try:
            page = self.client.v1.billing.meters.event_summaries.list(
                meter_id,
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
        """Epoch seconds by Stripe's clock, to the second. Raises BillingError without an answer."""
        try:
            meter = self.client.v1.billing.meters.retrieve(self.meters.ids[0])
            answer = meter.last_response
            return parsedate_to_datetime(answer.headers["Date"] if answer else "").timestamp()
        except stripe.StripeError as error:
            raise cannot(error) from None
        except (KeyError, TypeError, ValueError):
            raise BillingError("Stripe's answer has no date: is a proxy in between?") from None


class StripeStreamSink(StripeMeterSink):
    """Up to 100 events a call by the v2 stream, which validates them later: see the README."""

    batch = 100

    def __init__(
        self,
        client: stripe.StripeClient,
        meters: HourMeters,
        session: Callable[[str], stripe.StripeClient],
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(client, meters, clock)
        self._make_session = session  # a client that has the session's token as its key
        self._session: stripe.StripeClient | None = None
        self._session_ends = 0.0

    def send(self, events: Sequence[UsageEvent]) -> list[Receipt]:
        """Send them in one call; a refused call is halved until the event at fault is alone."""
        meters = self.meters.of([event.hour for event in events])
        try:
            self._open_session().v2.billing.meter_event_stream.create(
                {
                    "events": [
                        {
                            "event_name": meters[event.hour].event_name,
                            "payload": {
                                "stripe_customer_id": event.customer,
                                "value": str(event.watt_hours),
                            },
                            "identifier": event.identifier,
                            "timestamp": iso_second(event.timestamp),
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


# --- Which ledger bills a customer


def other_ledger(place: Place, client: stripe.StripeClient, customer: str) -> str | None:
    """The id of another ledger that bills an existing customer; None: there is none.

    Nothing is written at Stripe. Raises BillingError if Stripe does not say.
    """
    with tables(place) as conn:
        ours = ledger_id(conn)
        names = [meter.event_name for meter in ledger_meters(conn)]
    try:
        found = client.v1.customers.retrieve(customer)
    except stripe.StripeError as error:
        raise cannot(error) from None
    return _another(_owners(found, names), ours)


def _owners(customer: stripe.Customer, event_names: Sequence[str]) -> list[str]:
    """The ids of ledgers in a customer's metadata, under the names of these meters."""
    metadata = {} if customer.metadata is None else customer.metadata.to_dict()
    return [metadata[name] for name in event_names if metadata.get(name)]


def _another(owners: Sequence[str], ledger_id: str) -> str | None:
    """The first that is not this ledger."""
    return next((one for one in owners if one != ledger_id), None)


# --- Errors


def _receipt(error: stripe.StripeError, identifier: str) -> Receipt:
    """What an error of a call says about its event."""
    if isinstance(error, KEY_ERRORS):
        raise cannot(error) from None
    reason = f"{error.code or type(error).__name__}: {error.user_message or 'no message'}"[:300]
    if isinstance(error, stripe.RateLimitError):
        return Receipt(Outcome.LATER, reason, _retry_after(error))
    if not isinstance(error, stripe.InvalidRequestError):
        # A lost answer or a failing server: the event may have arrived.
        return Receipt(Outcome.LATER, reason)
    # v1 gives this error no code, only this text.
    is_there = f"already exists with identifier {identifier}" in reason
    if error.code == "duplicate_meter_event" or is_there:
        return Receipt(Outcome.KNOWN, "Stripe had it already")
    if error.param == "timestamp":
        # The hour can be billed by this clock, so one of the two clocks is wrong.
        return Receipt(Outcome.LATER, f"this machine's clock and Stripe's differ; {reason}")
    return Receipt(Outcome.REFUSED, reason)


def _retry_after(error: stripe.StripeError) -> float:
    try:
        return max(float((error.headers or {}).get("Retry-After", 0)), 0.0)
    except ValueError:
        return 0.0
