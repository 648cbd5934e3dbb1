"""A loopback Stripe: the billing-meter part of the API, as strict as Stripe is, in memory.

`Loopback.handle` is the server as a function: FakeTransport calls it for stripe-python in this process, `serve` puts
it on a port of 127.0.0.1. What it cannot show: Stripe's real aggregation, invoices, asynchronous errors, live limits.
"""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import stripe

KEY = "sk_test_51LoopbackOnlyNoRealAccount"
DAY = 86_400
_PAST = 35 * DAY
_FUTURE = 5 * 60
Schema = dict[
    str, tuple[bool, str]
]  # by flat name: whether it must be there, and what its text must match

METER: Schema = {
    "display_name": (True, r".{1,250}"),
    "event_name": (True, r".{1,100}"),
    "default_aggregation[formula]": (True, r"count|last|sum"),
    "event_time_window": (False, r"day|hour"),
    "customer_mapping[type]": (False, r"by_id"),
    "customer_mapping[event_payload_key]": (False, r".{1,100}"),
    "value_settings[event_payload_key]": (False, r".{1,100}"),
}
LIST: Schema = {
    "limit": (False, r"[1-9]\d?|100"),
    "starting_after": (False, r".+"),
    "status": (False, r"active|inactive"),
}
EVENT: Schema = {
    "event_name": (True, r".{1,100}"),
    "identifier": (False, r".{1,100}"),
    "timestamp": (False, r"\d{1,12}"),
    "payload[stripe_customer_id]": (True, r"cus_\w+"),
    "payload[value]": (True, r"-?\d+"),
}
STREAM_EVENT: Schema = {**EVENT, "timestamp": (False, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")}
SUMMARIES: Schema = {
    "customer": (True, r"cus_\w+"),
    "start_time": (True, r"\d{1,12}"),
    "end_time": (True, r"\d{1,12}"),
    "value_grouping_window": (False, r"day|hour"),
    "limit": (False, r"[1-9]\d?|100"),
}


class Lost(Exception):
    """The connection ends without an answer."""


@dataclass
class Refusal(Exception):
    """An answer of Stripe's that is an error."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    type: str = "invalid_request_error"
    headers: dict[str, str] = field(default_factory=dict)

    def answer(self) -> Answer:
        """The error as Stripe writes it."""
        parts = {"type": self.type, "message": self.message, "param": self.param, "code": self.code}
        return (
            self.status,
            {"error": {k: v for k, v in parts.items() if v is not None}},
            self.headers,
        )


Answer = tuple[int, Any, dict[str, str]]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """JSON as flat names, like those of a form: {"a": {"b": 1}} is {"a[b]": 1}."""
    if isinstance(value, dict):
        parts = [flat(part, f"{name}[{key}]" if name else key) for key, part in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    return {name: value}


def check(schema: Schema, values: dict[str, Any]) -> None:
    """Raise what Stripe answers to a missing, an unknown, or a wrong parameter."""
    for name, text in values.items():
        if name not in schema:
            raise Refusal(400, f"Received unknown parameter: {name}", name, "parameter_unknown")
        if not isinstance(text, str) or not re.fullmatch(schema[name][1], text):
            raise Refusal(400, f"Invalid {name}: {text!r}", name, "parameter_invalid")
    for name, (required, _) in schema.items():
        if required and name not in values:
            raise Refusal(400, f"Missing required param: {name}.", name, "parameter_missing")


class Loopback:
    """The server. `faults` are taken one a POST of events: see _fault. `clock` is Stripe's, which is right.

    newest_by: whether the newest event of an hour is the last received, or the one with the latest timestamp.
    """

    def __init__(self, clock: Callable[[], float], newest_by: str = "receipt") -> None:
        self.clock, self.newest_by = clock, newest_by
        self.retry_after = "3"  # seconds, or a date
        self.key = KEY  # the one that is taken
        self.faults: deque[str] = deque()
        self.meters: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []  # accepted, in order
        self.requests: list[tuple[str, str]] = []
        self.idempotency_keys: list[str] = []  # of every POST that had one, repetitions too
        self.summaries_work = True
        self._identifiers: dict[str, float] = {}
        self._replies: dict[str, tuple[Any, Answer]] = {}
        self._sessions: dict[str, float] = {}
        self._lock = threading.Lock()

    # --- What tests look at

    def hours(self, customer: str) -> dict[int, int]:
        """What the hourly window leaves of the events: the newest of each hour."""
        found: dict[int, tuple[tuple[int, int], int]] = {}
        for order, event in enumerate(self.events):
            if event["customer"] == customer:
                rank = (event["timestamp"] if self.newest_by == "timestamp" else 0, order)
                hour = event["timestamp"] // 3600
                if hour not in found or rank > found[hour][0]:
                    found[hour] = rank, event["value"]
        return {hour: value for hour, (_, value) in found.items()}

    def billed(self, customer: str) -> int:
        """The sum that an invoice would have."""
        return sum(self.hours(customer).values())

    # --- The server

    def handle(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """One request. Raises Lost where no answer comes."""
        with self._lock:
            path = urlsplit(url).path
            self.requests.append((method, path))
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
        if "stripe-version" not in headers:
            raise Refusal(400, "no Stripe-Version")
        fault = self.faults.popleft() if path in _EVENT_PATHS and self.faults else ""
        self._fault(fault, "before")
        try:
            if path.startswith("/v2/"):
                return self._v2(path, headers, body)
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
        """Fail as told, `before` the event is taken or `after`: lost-before, lost-after, 500-after, 429-before."""
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
        """A POST under a key that is known is answered as before; with other parameters it is an error."""
        key = headers.get("idempotency-key")
        if method != "POST" or key is None:
            return self._v1(method, path, query)
        self.idempotency_keys.append(key)
        if headers.get("content-type") != "application/x-www-form-urlencoded":
            raise Refusal(400, "a v1 body is a form")
        if key in self._replies:
            before, answer = self._replies[key]
            if before != (path, body):
                raise Refusal(400, "Keys for idempotent requests can only be used with the same parameters",
                              type="idempotency_error")  # fmt: skip
            return answer[0], answer[1], {"Idempotent-Replayed": "true"}
        values = dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True))
        answer = self._v1(method, path, values)  # what is refused here is not kept
        self._replies[key] = ((path, body), answer)
        return answer

    def _v1(self, method: str, path: str, values: dict[str, str]) -> Answer:
        if (method, path) == ("POST", "/v1/billing/meters"):
            return 200, self._make_meter(values), {}
        if (method, path) == ("GET", "/v1/billing/meters"):
            check(LIST, values)
            return 200, self._page(path, values), {}
        if (method, path) == ("POST", "/v1/billing/meter_events"):
            check(EVENT, values)
            return 200, self._take(values, int(values.get("timestamp", self.clock()))), {}
        found = re.fullmatch(r"/v1/billing/meters/(\w+)(/event_summaries)?", path)
        if method != "GET" or found is None:
            raise Refusal(404, f"Unrecognized request URL ({method}: {path}).")
        meter = self.meters.get(found[1])
        if meter is None:
            raise Refusal(404, f"No such billing meter: '{found[1]}'", "id", "resource_missing")
        return (
            (200, self._summaries(path, meter["id"], values), {}) if found[2] else (200, meter, {})
        )

    def _page(self, path: str, values: dict[str, str]) -> dict[str, Any]:
        """A page of the meters, the newest first, as Stripe lists."""
        ids = list(self.meters)[::-1]
        begin = ids.index(values["starting_after"]) + 1 if "starting_after" in values else 0
        page = ids[begin : begin + int(values.get("limit", "10"))]
        more = begin + len(page) < len(ids)
        return {
            "object": "list",
            "url": path,
            "has_more": more,
            "data": [self.meters[id_] for id_ in page],
        }

    def _make_meter(self, values: dict[str, str]) -> dict[str, Any]:
        check(METER, values)
        if any(meter["event_name"] == values["event_name"] for meter in self.meters.values()):
            raise Refusal(400, "There is already an active meter for that event name", "event_name")
        meter: dict[str, Any] = {
            "id": f"mtr_test_{len(self.meters) + 1}",
            "object": "billing.meter",
            "created": int(self.clock()),
            "updated": int(self.clock()),
            "livemode": False,
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

    def _take(self, values: dict[str, str], timestamp: int) -> dict[str, Any]:
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
            "identifier": identifier,
            "timestamp": timestamp,
            "customer": customer,
            "value": int(text),
        }
        self.events.append(event)
        payload = {"stripe_customer_id": customer, "value": text}
        return {
            "object": "billing.meter_event", "created": int(now), "event_name": name, "identifier": identifier,
            "livemode": False, "payload": payload, "timestamp": timestamp,
        }  # fmt: skip

    def _summaries(self, path: str, meter_id: str, values: dict[str, str]) -> dict[str, Any]:
        check(SUMMARIES, values)
        if not self.summaries_work:
            raise Refusal(500, "summaries are down", type="api_error")
        start, end = int(values["start_time"]), int(values["end_time"])
        if start % 3600 or end % 3600 or end <= start:
            raise Refusal(400, "start_time and end_time must align with the hour", "start_time")
        hours = self.hours(values["customer"])
        data = [
            {
                "id": f"mtrsum_{hour}", "object": "billing.meter_event_summary", "livemode": False, "meter": meter_id,
                "aggregated_value": float(value), "start_time": hour * 3600, "end_time": (hour + 1) * 3600,
            }
            for hour, value in hours.items() if start <= hour * 3600 < end
        ]  # fmt: skip
        return {"object": "list", "url": path, "has_more": False, "data": data}

    def _v2(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        if headers.get("content-type") != "application/json":
            raise Refusal(400, "a v2 body is JSON")
        if path == "/v2/billing/meter_event_session":
            token = f"session_token_{len(self._sessions)}"
            self._sessions[token] = self.clock() + 15 * 60
            ends = datetime.fromtimestamp(self._sessions[token], timezone.utc).isoformat()
            session = {"id": "bmes_1", "object": "v2.billing.meter_event_session", "authentication_token": token,
                       "created": ends, "expires_at": ends, "livemode": False}  # fmt: skip
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
                self._take(values, at)
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
    """Serve it on a free port of 127.0.0.1; the URL is yielded. on_request sees every request before it is handled."""

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
