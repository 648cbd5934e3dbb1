"""A loopback Stripe in memory: the part of the API that bills usage, as strict as documented.

`Loopback.handle` is the server as a function: FakeTransport calls it for stripe-python in this
process, `serve` puts it on a port of 127.0.0.1. Written from these pages of docs.stripe.com and
from the OpenAPI description of 2026-09-30.endive:

meters, events, summaries   api/billing/meter, api/billing/meter-event,
api/billing/meter-event-summary, billing/subscriptions/usage-based/recording-usage-api (windows,
digits, negative values) the v2 stream               api/v2/billing/meter-event-stream errors found
later          api/v2/core/events/object, event-destinations#thin-events: an event of a customer
that there is not is taken, and reported afterwards keys of repeated requests
api/idempotent_requests customers to subscriptions  see loopback_catalog

What it cannot show: Stripe's real aggregation, invoices, how soon and with how many samples errors
are reported, live limits.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import stripe
from loopback_catalog import PAGE, Catalog, page
from loopback_schema import Answer, Refusal, Schema, check, flat

KEY = "sk_test_51LoopbackOnlyNoRealAccount"
KEY_LIVE = "sk_live_51LoopbackOnlyNoRealAccount"
DAY = 86_400
_PAST = 35 * DAY
_FUTURE = 5 * 60
METER: Schema = {
    "display_name": (True, r".{1,250}"),
    "event_name": (True, r".{1,100}"),
    "default_aggregation[formula]": (True, r"count|last|sum"),
    "event_time_window": (False, r"day|hour"),
    "customer_mapping[type]": (False, r"by_id"),
    "customer_mapping[event_payload_key]": (False, r".{1,100}"),
    "value_settings[event_payload_key]": (False, r".{1,100}"),
}
LIST: Schema = {**PAGE, "status": (False, r"active|inactive")}
EVENT: Schema = {
    "event_name": (True, r".{1,100}"),
    "identifier": (False, r".{1,100}"),
    "timestamp": (False, r"\d{1,12}"),
    "payload[stripe_customer_id]": (True, r"cus_\w+"),
    "payload[value]": (True, r"-?\d+"),
}
STREAM_EVENT: Schema = {**EVENT, "timestamp": (False, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")}
SUMMARIES: Schema = {
    **PAGE,
    "customer": (True, r"cus_\w+"),
    "start_time": (True, r"\d{1,12}"),
    "end_time": (True, r"\d{1,12}"),
    "value_grouping_window": (False, r"day|hour"),
}


class Asked(NamedTuple):
    """A request that came."""

    method: str
    path: str


class Lost(Exception):
    """The connection ends without an answer."""


class Loopback:
    """The server.

    faults: one for each POST of events, see _fault. clock: Stripe's, which is right.
    newest_by: whether the newest event of an hour is the last received, or the one with the latest
    timestamp. knows_customers: whether it looks, after it has taken an event, for the customer;
    otherwise every customer exists, and is subscribed. livemode: one with a key and objects of its
    own, as live and test mode have at Stripe.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        newest_by: str = "receipt",
        *,
        knows_customers: bool = False,
        livemode: bool = False,
    ) -> None:
        self.clock, self.newest_by = clock, newest_by
        self.retry_after = "3"  # seconds, or a date
        self.key = KEY_LIVE if livemode else KEY  # the one that is taken
        self.forbidden: tuple[str, ...] = ()  # paths that a restricted key may not use
        self.broken: tuple[str, ...] = ()  # paths that fail
        self.faults: deque[str] = deque()
        self.meters: dict[str, dict[str, Any]] = {}
        self.catalog = Catalog(clock, self.meters, livemode, not knows_customers)
        self.knows_customers = knows_customers
        self.errors: list[dict[str, Any]] = []  # of events that were taken; not reported yet
        self.errors_name = "identifier"  # by what a report names an event: also "idempotency_key"
        self.v2_events: dict[str, dict[str, Any]] = {}
        self.livemode = livemode
        self.events: list[dict[str, Any]] = []  # accepted, in order
        self.requests: list[Asked] = []
        self.idempotency_keys: list[str] = []  # of every POST that had one, repetitions too
        self.summaries_work = True
        self._identifiers: dict[str, float] = {}
        self._replies: dict[str, tuple[Any, Answer]] = {}
        self._sessions: dict[str, float] = {}
        self._lock = threading.Lock()

    # --- What tests look at

    def meter_hours(self, customer: str) -> dict[str, dict[int, int]]:
        """The newest event of each hour, which is what a meter counts, by event name."""
        kept = [
            event
            for event in self.events
            if event["customer"] == customer and not event.get("dropped")
        ]
        if self.newest_by == "timestamp":  # of one timestamp, the one that was received last
            kept.sort(key=lambda event: int(event["timestamp"]))
        by_meter: dict[str, dict[int, int]] = {}
        for event in kept:
            by_meter.setdefault(event["name"], {})[event["timestamp"] // 3600] = event["value"]
        return by_meter

    def hours(self, customer: str, name: str | None = None) -> dict[int, int]:
        """What one meter has, or all together, by hour."""
        sums: dict[int, int] = {}
        for of_meter, by_hour in self.meter_hours(customer).items():
            if name in (None, of_meter):
                for hour, value in by_hour.items():
                    sums[hour] = sums.get(hour, 0) + value
        return sums

    def billed(self, customer: str) -> int:
        """The sum that an invoice would have."""
        return sum(self.hours(customer).values())

    def report_errors(self, samples: int = 10) -> dict[str, Any]:
        """Report what was found wrong since the last report: the thin event that a webhook gets."""
        found, self.errors = self.errors, []
        types = []
        for code in dict.fromkeys(error["code"] for error in found):
            of_code = [error for error in found if error["code"] == code]
            sample_errors = [
                {
                    "error_message": error["message"],
                    "request": {"identifier": error[self.errors_name]},
                }
                for error in of_code[:samples]
            ]
            types.append(
                {"code": code, "error_count": len(of_code), "sample_errors": sample_errors}
            )
        meter = next(iter(self.meters))
        now = datetime.fromtimestamp(self.clock(), timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        thin: dict[str, Any] = {
            "id": f"evt_loop{len(self.v2_events) + 1}",
            "object": "v2.core.event",
            "type": "v1.billing.meter.error_report_triggered",
            "livemode": self.livemode,
            "created": now,
            "context": None,
            "reason": None,
            "related_object": {
                "id": meter,
                "type": "billing.meter",
                "url": f"/v1/billing/meters/{meter}",
            },
        }
        data = {
            "developer_message_summary": f"There are {len(found)} invalid events",
            "reason": {"error_count": len(found), "error_types": types},
            "validation_start": now,
            "validation_end": now,
        }
        self.v2_events[thin["id"]] = {**thin, "data": data}
        return thin

    # --- The server

    def handle(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """One request. Raises Lost where no answer comes."""
        with self._lock:
            path = urlsplit(url).path
            self.requests.append(Asked(method, path))
            try:
                return self._answer(method, url, {k.lower(): v for k, v in headers.items()}, body)
            except Refusal as refusal:
                return refusal.answer()

    def _answer(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
        path = urlsplit(url).path
        token = headers.get("authorization", "").removeprefix("Bearer ")
        stream = path == "/v2/billing/meter_event_stream"
        if stream and self._sessions.get(token, 0) < self.clock():
            raise Refusal(
                401, "The session has expired", type="temporary_session_expired", code="billing"
            )
        if not stream and token != self.key:
            raise Refusal(401, f"Invalid API Key provided: {token[:8]}****{token[-4:]}")
        if path.startswith(self.forbidden):
            raise Refusal(403, "The provided key does not have the required permissions.")
        if path.startswith(self.broken):
            raise Refusal(500, "as told", type="api_error")
        if "stripe-version" not in headers:
            raise Refusal(400, "no Stripe-Version")
        fault = self.faults.popleft() if path in _EVENT_PATHS and self.faults else ""
        self._fault(fault, "before")
        try:
            if path.startswith("/v2/"):
                return self._v2(method, path, headers, body)
            query = dict(parse_qsl(urlsplit(url).query, strict_parsing=bool(urlsplit(url).query)))
            return self._idempotent(method, path, headers, body, query)
        finally:  # whatever the answer was, it does not arrive
            if (
                fault == "500-after" and "idempotency-key" in headers
            ):  # Stripe answers the key so from now on
                failed = Refusal(500, "as told", type="api_error").answer()
                self._replies[headers["idempotency-key"]] = ((path, body), failed)
            self._fault(fault, "after")

    def _fault(self, fault: str, when: str) -> None:
        """Fail as told, `before` the event is taken or `after`: lost-before, 500-after, ..."""
        what, _, time = fault.partition("-")
        if time != when:
            return
        if what == "lost":
            raise Lost
        if what == "429":
            again = {
                "Retry-After": self.retry_after,
                "Stripe-Rate-Limited-Reason": "endpoint-concurrency",
            }
            raise Refusal(429, "Request rate limit exceeded.", code="rate_limit", headers=again)
        raise Refusal(
            int(what), "as told", type="api_error" if what == "500" else "invalid_request_error"
        )

    def _idempotent(
        self, method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, str]
    ) -> Answer:
        """Answer a POST under a known key as before; with other parameters it is an error."""
        key = headers.get("idempotency-key")
        if method != "POST" or key is None:
            return self._v1(method, path, query, "")
        self.idempotency_keys.append(key)
        if headers.get("content-type") != "application/x-www-form-urlencoded":
            raise Refusal(400, "a v1 body is a form")
        if key in self._replies:
            before, answer = self._replies[key]
            if before != (path, body):
                raise Refusal(
                    400,
                    "Keys for idempotent requests can only be used with the same parameters",
                    type="idempotency_error",
                )
            status, found, _ = answer
            return status, found, {"Idempotent-Replayed": "true"}
        values = dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True))
        answer = self._v1(method, path, values, key)  # what is refused here is not kept
        self._replies[key] = ((path, body), answer)
        return answer

    def _v1(self, method: str, path: str, values: dict[str, str], key: str) -> Answer:
        of_catalog = self.catalog.answer(method, path, values)
        if of_catalog is not None:
            return of_catalog
        if (method, path) == ("POST", "/v1/billing/meters"):
            return 200, self._make_meter(values), {}
        if (method, path) == ("GET", "/v1/billing/meters"):
            check(LIST, values)
            return 200, page(path, list(self.meters.values())[::-1], values), {}
        if (method, path) == ("POST", "/v1/billing/meter_events"):
            check(EVENT, values)
            return 200, self._take(values, int(values.get("timestamp", self.clock())), key), {}
        found = re.fullmatch(r"/v1/billing/meters/(?P<id>\w+)(?P<sums>/event_summaries)?", path)
        if method != "GET" or found is None:
            raise Refusal(404, f"Unrecognized request URL ({method}: {path}).")
        meter = self.meters.get(found["id"])
        if meter is None:
            raise Refusal(404, f"No such billing meter: '{found['id']}'", "id", "resource_missing")
        if found["sums"]:
            return 200, self._summaries(path, meter["id"], values), {}
        return 200, meter, {}

    def _make_meter(self, values: dict[str, str]) -> dict[str, Any]:
        check(METER, values)
        if any(meter["event_name"] == values["event_name"] for meter in self.meters.values()):
            raise Refusal(400, "There is already an active meter for that event name", "event_name")
        meter: dict[str, Any] = {
            "id": f"mtr_{'live' if self.livemode else 'test'}_{len(self.meters) + 1}",
            "object": "billing.meter",
            "created": int(self.clock()),
            "updated": int(self.clock()),
            "livemode": self.livemode,
            "status": "active",
            "status_transitions": {"deactivated_at": None},
            "display_name": values["display_name"],
            "event_name": values["event_name"],
            "event_time_window": values.get("event_time_window"),
            "default_aggregation": {"formula": values["default_aggregation[formula]"]},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
        self.meters[meter["id"]] = meter
        return meter

    def _take(self, values: dict[str, str], timestamp: int, key: str) -> dict[str, Any]:
        """Validate an event against the meter, the window and what was sent before, and keep it."""
        now, name, text = self.clock(), values["event_name"], values["payload[value]"]
        if not any(
            m["event_name"] == name and m["status"] == "active" for m in self.meters.values()
        ):
            raise Refusal(400, f"No active meter found for event name {name}.", "event_name")
        if timestamp < now - _PAST or timestamp > now + _FUTURE:
            raise Refusal(
                400,
                "The timestamp must be within the past 35 days or up to 5 minutes ahead",
                "timestamp",
            )
        if len(text.lstrip("-")) > 15:
            raise Refusal(
                400, "At most 15 significant digits", "payload", "meter_event_value_too_many_digits"
            )
        identifier = values.get("identifier", f"made-{len(self.events)}")
        if self._identifiers.get(identifier, -DAY) > now - DAY:
            # As live Stripe words it: without a code.
            again = {"Stripe-Should-Retry": "false"}
            raise Refusal(
                400, f"An event already exists with identifier {identifier}.", headers=again
            )
        self._identifiers[identifier] = now
        customer = values["payload[stripe_customer_id]"]
        event = {
            "name": name,
            "identifier": identifier,
            "timestamp": timestamp,
            "customer": customer,
            "value": int(text),
        }
        self._look_for_customer(event, key)
        self.events.append(event)
        payload = {"stripe_customer_id": customer, "value": text}
        return {
            "object": "billing.meter_event",
            "created": int(now),
            "event_name": name,
            "identifier": identifier,
            "livemode": False,
            "payload": payload,
            "timestamp": timestamp,
        }

    def _look_for_customer(self, event: dict[str, Any], key: str) -> None:
        """What Stripe finds wrong only after it has taken an event: it counts for nobody."""
        customers = self.catalog.objects["customer"]
        if not self.knows_customers or "created" in customers.get(event["customer"], {}):
            return
        event["dropped"] = True
        self.errors.append(
            {
                "code": "meter_event_customer_not_found",
                "message": f"The customer {event['customer']} was not found.",
                "identifier": event["identifier"],
                "idempotency_key": key,
            }
        )

    def _summaries(self, path: str, meter_id: str, values: dict[str, str]) -> dict[str, Any]:
        check(SUMMARIES, values)
        if not self.summaries_work:
            raise Refusal(500, "summaries are down", type="api_error")
        start, end = int(values["start_time"]), int(values["end_time"])
        window = values.get("value_grouping_window")
        step = {"hour": 3600, "day": DAY, None: 60}[window]
        if start % step or end % step or end <= start:
            raise Refusal(400, f"start_time and end_time must align with {step} s", "start_time")
        sums: dict[int, int] = {}
        name = self.meters[meter_id]["event_name"]
        for hour, value in self.hours(values["customer"], name).items():
            if start <= hour * 3600 < end:
                begin = start if window is None else hour * 3600 // step * step
                sums[begin] = sums.get(begin, 0) + value
        data = [
            {
                "id": f"mtrsum_{begin}",
                "object": "billing.meter_event_summary",
                "livemode": self.livemode,
                "meter": meter_id,
                "aggregated_value": float(sums[begin]),
                "start_time": begin,
                "end_time": end if window is None else begin + step,
            }
            for begin in sorted(sums, reverse=True)
        ]
        return page(path, data, values)

    def _v2(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        event = re.fullmatch(r"/v2/core/events/(?P<id>\w+)", path)
        if event is not None and method == "GET":
            if event["id"] not in self.v2_events:
                raise Refusal(404, f"No such event: {event['id']}", code="not_found")
            return 200, self.v2_events[event["id"]], {}
        if headers.get("content-type") != "application/json":
            raise Refusal(400, "a v2 body is JSON")
        if path == "/v2/billing/meter_event_session":
            token = f"session_token_{len(self._sessions)}"
            self._sessions[token] = self.clock() + 15 * 60
            ends = datetime.fromtimestamp(self._sessions[token], timezone.utc).isoformat()
            session = {
                "id": "bmes_1",
                "object": "v2.billing.meter_event_session",
                "authentication_token": token,
                "created": ends,
                "expires_at": ends,
                "livemode": False,
            }
            return 200, session, {}
        if path != "/v2/billing/meter_event_stream":
            raise Refusal(404, f"Unrecognized request URL ({path})")
        content = json.loads(body)
        if set(content) != {"events"} or not 1 <= len(content["events"]) <= 100:
            raise Refusal(400, "events: from 1 to 100 of them", "events")
        parsed = [flat(event) for event in content["events"]]
        for values in parsed:
            check(STREAM_EVENT, values)
        for values in parsed:
            at = int(datetime.fromisoformat(values["timestamp"].replace("Z", "+00:00")).timestamp())
            try:
                self._take(values, at, "")
            except Refusal:  # the stream says nothing of what it finds wrong later
                continue
        return 200, {}, {}


_EVENT_PATHS = ("/v1/billing/meter_events", "/v2/billing/meter_event_stream")


# --- Ways to it


class FakeTransport(stripe.HTTPClient):
    """Carries stripe-python's requests to a Loopback in this process."""

    name = "loopback"

    def __init__(self, server: Loopback) -> None:
        super().__init__()
        self._server = server

    def request(
        self,
        method: str,
        url: str,
        headers: Any,
        post_data: Any = None,
        *,
        _usage: list[str] | None = None,
    ) -> tuple[str, int, dict[str, str]]:
        """One request; a lost answer is what requests makes of a connection that ends."""
        body = post_data.encode() if isinstance(post_data, str) else post_data or b""
        try:
            status, answer, fields = self._server.handle(method.upper(), url, dict(headers), body)
        except Lost:
            raise stripe.APIConnectionError("the connection ended", should_retry=True) from None  # type: ignore[no-untyped-call]
        return (
            json.dumps(answer),
            status,
            {**fields, "Date": formatdate(self._server.clock(), usegmt=True)},
        )

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def serve(
    server: Loopback, on_request: Callable[[str, str], None] = lambda *_: None
) -> Iterator[str]:
    """Serve it on a free port of 127.0.0.1, whose URL is yielded.

    on_request sees every request before it is handled.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet an answer
        disable_nagle_algorithm = True

        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            on_request(self.command, self.path)
            try:
                status, answer, fields = server.handle(
                    self.command, self.path, dict(self.headers), body
                )
            except Lost:
                self.close_connection = True
                return
            content = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**fields, "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def date_time_string(self, timestamp: float | None = None) -> str:
            """Of the Date that every answer has: by the server's clock."""
            return formatdate(server.clock() if timestamp is None else timestamp, usegmt=True)

        do_GET = do_POST = _do  # noqa: N815 - the names that http.server looks for

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server has it
            """Say nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(
        target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
